"""Surfaces of constant value of a function on a grid, by marching tetrahedra."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from spinverse.errors import InputError
from spinverse.mesh.grids import kuhn_steps
from spinverse.mesh.surfaces import Surface, merged, part_volumes, parts

MOST_NODES = 2e7
SNAP = 0.1  # values this near the level, in grid steps of a distance, would make slivers


def layer(surface: Surface, gap: float) -> Surface:
    """The closed surface at distance ``gap`` um around another, without what it encloses.

    Distances are to sample points on the triangles, on a grid of step ``gap / 2``.

    Raises:
        InputError: the layer is too thin for a grid of 2e7 nodes.
    """
    step = gap / 2
    low = surface.points.min(axis=0) - gap - 2 * step
    shape = np.ceil((surface.points.max(axis=0) + gap + 2 * step - low) / step).astype(int) + 1
    nodes_asked = np.prod(shape.astype(float))
    if nodes_asked > MOST_NODES:
        least = gap * (nodes_asked / MOST_NODES) ** (1 / 3)
        raise InputError(f"surface '{surface.name}': gap is {gap:g} um, expected at least "
                         f"{least:.3g} um for a layer around a cell of this extent")
    axes = [a + step * np.arange(n) for a, n in zip(low, shape, strict=True)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    tree = cKDTree(samples(surface, step / 2))
    distance, _ = tree.query(nodes, distance_upper_bound=gap + 2 * step)
    distance = np.minimum(distance, gap + 2 * step).reshape(shape)
    found = isosurface(distance, gap, low, step, f"layer around {surface.name}")
    # the parts around the cell have outward normals; those that line its inside do not
    labels = parts(found)
    outer = found.triangles[(part_volumes(found, labels) > 0)[labels]]
    return merged(Surface(found.points, outer, found.name), None)


def isosurface(values: np.ndarray, level: float, origin, step: float,
               name: str = "isosurface") -> Surface:
    """The closed surface around the nodes whose value is below ``level``.

    Each cube is split into six tetrahedra along its diagonal (Kuhn), each of which the surface
    crosses in a triangle or a quadrilateral, so neighbours fit and every edge has two triangles
    (Payne and Toga, IEEE Comput. Graph. Appl. 10 (1990) 33).

    Args:
        values: ``(nx, ny, nz)``, above ``level`` on the border of the grid.
        origin, step: of node (0, 0, 0), and between nodes, um.
    """
    shape = np.array(values.shape)
    flat = np.asarray(values, float).ravel() - level
    flat = np.where(np.abs(flat) < SNAP * step, np.where(flat < 0, -SNAP, SNAP) * step, flat)
    below = (flat < 0).reshape(shape)
    corners = np.lib.stride_tricks.sliding_window_view(below, (2, 2, 2))
    mixed = corners.any(axis=(3, 4, 5)) & ~corners.all(axis=(3, 4, 5))
    cubes = np.ravel_multi_index(np.nonzero(mixed), shape)
    ends = []  # of the cut edges, three for each triangle, (n, 3, 2)
    for steps in kuhn_steps(shape):
        tets = cubes[:, None] + steps
        ends += _cut(tets, flat[tets] < 0)
    if not sum(map(len, ends)):
        raise InputError(f"{name}: no value is below {level:g}, expected some")
    pairs = np.concatenate(ends).reshape(-1, 2)
    pairs, numbers = np.unique(np.sort(pairs, axis=1), axis=0, return_inverse=True)
    weight = (flat[pairs[:, 0]] / (flat[pairs[:, 0]] - flat[pairs[:, 1]]))[:, None]
    a, b = (np.stack(np.unravel_index(pairs[:, k], shape), axis=1) for k in (0, 1))
    points = np.asarray(origin) + step * (a * (1 - weight) + b * weight)
    return Surface(points, numbers.reshape(-1, 3), name)


def _cut(tets: np.ndarray, below: np.ndarray) -> list[np.ndarray]:
    """Triangles of positively oriented tets, each corner as the ends of the edge it lies on."""
    found = []
    for case in range(1, 15):
        inner = [k for k in range(4) if case >> k & 1]
        outer = [k for k in range(4) if not case >> k & 1]
        rows = tets[(below == [k in inner for k in range(4)]).all(axis=1)]
        # even permutation of the corners: normals point away from the inner ones
        if np.linalg.det(np.eye(4)[inner + outer]) < 0:
            swapped = outer if len(outer) > 1 else inner
            swapped[:2] = swapped[1::-1]
        if len(inner) == 2:
            (a, b), (c, d) = inner, outer
            edges = [[(a, c), (a, d), (b, d)], [(a, c), (b, d), (b, c)]]
        else:
            edges = [[(a, b) for a in inner for b in outer]]
        found += [np.stack([rows[:, list(edge)] for edge in three], axis=1) for three in edges]
    return found


def samples(surface: Surface, spacing: float) -> np.ndarray:
    """Points on the triangles, no farther apart than about ``spacing`` um."""
    corners = surface.corners
    counts = np.maximum(1, np.ceil(surface.lengths.max(axis=1) / spacing)).astype(int)
    found = []
    for n in np.unique(counts):
        i, j = np.indices((n + 1, n + 1))
        i, j = i[i + j <= n] / n, j[i + j <= n] / n
        weights = np.stack([i, j, 1 - i - j], axis=1)
        found.append((weights @ corners[counts == n]).reshape(-1, 3))
    return np.unique(np.concatenate(found), axis=0)
