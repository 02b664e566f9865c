"""Structured lattices of simplices, and what every builder does at its end."""

from __future__ import annotations

from itertools import permutations
from math import ceil, pi

import numpy as np

from spinverse.errors import InputError, SolverError
from spinverse.mesh.checks import cell_volumes, facets_of
from spinverse.mesh.curved import Bent
from spinverse.mesh.data import MeshData

BALL = {2: pi, 3: 4 / 3 * pi}  # what a disc and a ball of radius 1 hold
GROWTH = 0.3  # of an edge length over a distance, where sizes are graded


def kuhn(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bricks of six tets around the diagonal: one tet for each order of the three steps.

    From ascending coordinates of the planes, um: points ``(Nv, 3)`` um and tets ``(Nt, 4)``, six
    after six a brick.
    """
    shape = (len(x), len(y), len(z))
    points = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)
    number = np.arange(len(points)).reshape(shape)
    low = number[:-1, :-1, :-1].reshape(-1, 1, 1)
    return points, (low + kuhn_steps(shape)).reshape(-1, 4)


def kuhn_steps(shape) -> np.ndarray:
    """What to add to the number of a brick's lowest vertex for its six positive tets, ``(6, 4)``.

    Vertices of a grid of this ``shape`` are numbered along z first.
    """
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    orders = np.array(list(permutations(range(3))))
    tets = np.pad(np.cumsum(strides[orders], axis=1), [(0, 0), (1, 0)])
    odd = np.linalg.det(np.eye(3)[orders]) < 0
    tets[odd] = tets[odd][:, [0, 1, 3, 2]]
    return tets


def bcc(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Body-centred cubic lattice on the cube ``x`` by ``x`` by ``x``, filled to its faces.

    Returns as :func:`kuhn`.
    """
    n = len(x) - 1
    middle = (x[1:] + x[:-1]) / 2
    points = np.concatenate([
        np.stack(np.meshgrid(g, g, g, indexing="ij"), axis=-1).reshape(-1, 3)
        for g in (x, middle)])
    corner = np.arange((n + 1)**3).reshape([n + 1] * 3)
    centre = (n + 1)**3 + np.arange(n**3).reshape([n] * 3)
    tets = []
    for axis in range(3):
        grid, cubes = np.moveaxis(corner, axis, 0), np.moveaxis(centre, axis, 0)
        ring = np.stack([grid[:, :-1, :-1], grid[:, 1:, :-1], grid[:, 1:, 1:],
                         grid[:, :-1, 1:]], axis=-1)
        for k in range(4):
            edge = ring[1:-1][..., [k, (k + 1) % 4]]
            tets.append(np.stack([cubes[:-1], cubes[1:], edge[..., 0], edge[..., 1]], axis=-1))
        i, j = np.indices((n, n))
        for face, top in ((ring[0], cubes[0]), (ring[-1], cubes[-1])):
            # alternating diagonals keep the closed grid free of a preferred direction
            turned = np.where(((i + j) % 2)[..., None] == 0, face, np.roll(face, 1, axis=-1))
            for half in ([0, 1, 2], [0, 2, 3]):
                tets.append(np.concatenate([top[..., None], turned[..., half]], axis=-1))
    tets = np.concatenate([t.reshape(-1, 4) for t in tets])
    return points, oriented(points, tets)


def extrude(flat: np.ndarray, triangles: np.ndarray, height: float,
            layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Prisms over ``triangles (Nt, 3)`` in equal layers about z = 0, three tets each.

    Splitting from the lowest vertex number upwards gives neighbours the same diagonal;
    vertices are renumbered along x, then y, so that opposite sides of a periodic rectangle
    get the same one too.

    Args:
        flat: ``(Nv, 2)`` or ``(Nv, 3)`` points of the triangles, um; only x and y count.
        height: of all layers, um.

    Returns:
        Points ``((layers + 1) Nv, 3)`` um; tets ``(3 layers Nt, 4)``, three after three a prism.
    """
    z = np.linspace(-height / 2, height / 2, layers + 1)
    n = len(flat)
    digits = np.round(flat[:, :2] / np.ptp(flat[:, :2]), 9)
    order = np.lexsort((digits[:, 1], digits[:, 0]))
    rank = np.argsort(order)
    points = np.concatenate([np.column_stack([flat[order, :2], np.full(n, level)]) for level in z])
    low = np.sort(rank[triangles], axis=1)
    prism = np.concatenate([low, low + n], axis=1)
    tets = prism[:, [[0, 1, 2, 5], [0, 1, 4, 5], [0, 3, 4, 5]]].reshape(-1, 4)
    tets = np.concatenate([tets + k * n for k in range(layers)])
    return points, oriented(points, tets)


def graded(planes: np.ndarray, size: float, fine: float, is_fine: np.ndarray) -> np.ndarray:
    """Coordinates through all ``planes (n,)`` that step by at most ``size``.

    Steps are ``fine`` at the planes that ``is_fine (n,)`` says, and grow from there. All in um.
    """
    parts = []
    for k, (a, b) in enumerate(zip(planes[:-1], planes[1:], strict=True)):
        s, step = np.array([a, b]), np.full(2, size)
        if is_fine[k] or is_fine[k + 1]:
            s = np.linspace(a, b, 1001)
            distance = np.minimum(s - a if is_fine[k] else np.inf,
                                  b - s if is_fine[k + 1] else np.inf)
            step = np.minimum(size, fine + GROWTH * distance)
        passed = np.concatenate([[0], np.cumsum(np.diff(s) * (1 / step[1:] + 1 / step[:-1]) / 2)])
        cells = max(1, ceil(passed[-1] * (1 - 1e-9)))
        parts += [[a], np.interp(np.arange(1, cells) * passed[-1] / cells, passed, s)]
    return np.concatenate([*parts, planes[-1:]])


def oriented(points: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """``cells`` with two vertices swapped where they are inverted, in place."""
    inverted = cell_volumes(points, cells) < 0
    cells[inverted, -2:] = cells[inverted, -2:][:, ::-1]
    return cells


def tagged(name: str, points: np.ndarray, cells: np.ndarray, tags: np.ndarray,
           bent: Bent | None = None) -> MeshData:
    """Checked mesh with the facets between different tags, tagged with the lower one.

    ``bent`` are edges and their middles, of a mesh of second order.

    Raises:
        SolverError: the mesh has a defect: gmsh's, as arguments are checked before.
    """
    try:
        facets, pairs = facets_of(cells, name)
        sides = tags[pairs]
        between = (pairs[:, 1] >= 0) & (sides[:, 0] != sides[:, 1])
        return MeshData(points, cells, tags, facets[between], sides[between].min(axis=1),
                        name=name, **({} if bent is None else bent._asdict())).check()
    except InputError as error:
        raise SolverError(f"{error} (try a smaller size)") from None
