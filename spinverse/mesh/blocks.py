"""Builders of boxes: layers, blocks, tagged grids, the L-shaped cell."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from spinverse.errors import InputError
from spinverse.mesh import arguments as expect
from spinverse.mesh import gmsh_model
from spinverse.mesh.checks import facets_of
from spinverse.mesh.data import MeshData
from spinverse.mesh.grids import GROWTH, bcc, graded, kuhn, oriented, tagged

ORIGIN = (0.0, 0.0, 0.0)


def box(lengths: Sequence[float], size: float | None = None,
        cells: Sequence[int] | None = None, centre: Sequence[float] = ORIGIN,
        periodic: bool = False) -> MeshData:
    """A box; give either ``size`` (unstructured) or ``cells`` (six tets per brick).

    Args:
        lengths: (x, y, z), um.
        size: target edge length, um.
        cells: bricks along x, y, z.
        centre: of the box, um.
        periodic: opposite faces carry the same triangles (with ``cells`` they always do).
    """
    lengths = expect.lengths("box", "lengths", lengths, 3)
    centre = np.array(expect.vector("box", "centre", centre))
    expect.one_of("box", size=size, cells=cells)
    if cells is not None:
        counts = expect.counts("box", "cells", cells, 3)
        expect.affordable("box", 6 * np.prod(counts, dtype=float))
        points, tets = kuhn(*(np.linspace(-a / 2, a / 2, n + 1)
                              for a, n in zip(lengths, counts, strict=True)))
    else:
        size = expect.positive("box", "size", size)
        expect.affordable_volume("box", lengths.prod(), size)
        with gmsh_model.model("box", size) as gmsh:
            gmsh.model.occ.addBox(*(-lengths / 2), *lengths)
            gmsh.model.occ.synchronize()
            if periodic:
                gmsh_model.match_opposite(gmsh, "box", lengths)
            points, tets, _ = gmsh_model.arrays(gmsh, "box")
    return MeshData(points + centre, tets, name="box").check()


def intervals(thicknesses: Sequence[float], cells_per_layer: int | Sequence[int] | None = None,
              size: float | Sequence[float] | None = None) -> MeshData:
    """Layers on the x axis from ``-sum/2`` on, with arguments and tags as :func:`slabs`."""
    x, edges = _layer_coordinates("intervals", thicknesses, cells_per_layer, size, 1)
    points = np.column_stack([x, np.zeros((len(x), 2))])
    cells = np.column_stack([np.arange(len(x) - 1), np.arange(1, len(x))])
    return tagged("intervals", points, cells, np.searchsorted(edges, (x[1:] + x[:-1]) / 2))


def slabs(thicknesses: Sequence[float], cells_per_layer: int | Sequence[int] | None = None,
          size: float | Sequence[float] | None = None, width: float = 1.0,
          cells_across: int = 1) -> MeshData:
    """Parallel layers along x from ``-sum/2`` on, tagged 1..n; the planes between, 1..n-1.

    Args:
        thicknesses: of the layers, um.
        cells_per_layer: bricks along x in every layer, or one number for each.
        size: instead: largest brick length along x, um, or one for each layer.
        width: along y and z, um.
        cells_across: bricks along y and along z.
    """
    width = expect.positive("slabs", "width", width)
    across = expect.count("slabs", "cells_across", cells_across)
    x, edges = _layer_coordinates("slabs", thicknesses, cells_per_layer, size, 6 * across**2)
    side = np.linspace(-width / 2, width / 2, across + 1)
    points, tets = kuhn(x, side, side)
    return tagged("slabs", points, tets,
                  np.searchsorted(edges, points[tets].mean(axis=1)[:, 0]))


def _layer_coordinates(name: str, thicknesses, cells_per_layer, size,
                       cells_a_step: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along x of all planes, and of those between the layers (ends included)."""
    thicknesses = expect.lengths(name, "thicknesses", thicknesses)
    expect.one_of(name, cells_per_layer=cells_per_layer, size=size)
    if size is not None:
        steps = thicknesses / expect.each(name, "size", size, len(thicknesses))
        expect.affordable(name, cells_a_step * steps.sum())
        counts = [max(1, ceil(s * (1 - 1e-12))) for s in steps]
    else:
        if np.ndim(cells_per_layer) == 0:
            cells_per_layer = [cells_per_layer] * len(thicknesses)
        counts = expect.counts(name, "cells_per_layer", cells_per_layer, len(thicknesses))
        expect.affordable(name, float(cells_a_step * sum(counts)))
    edges = np.concatenate([[0], np.cumsum(thicknesses)]) - thicknesses.sum() / 2
    x = np.concatenate([np.linspace(a, b, n, endpoint=False) for a, b, n
                        in zip(edges[:-1], edges[1:], counts, strict=True)] + [edges[-1:]])
    return x, edges


def tagged_grid(shape, length: float, size: float | None = None, cells: int | None = None,
                pattern: str = "bcc") -> MeshData:
    """A cube whose cells are tagged 1 where their centroid lies in ``shape``, else 2.

    Interface facets (tag 1) are those between the two tags, and the outer facets of cells
    tagged 1: the whole surface of the tagged region.

    Args:
        shape: has ``contains(points (n, 3)) -> (n,) bool`` (see :mod:`.shapes`).
        length: side of the cube, um; it is centred at the origin.
        size: target edge length, um; for the lattices ``cells`` is ``length / size`` rounded.
        cells: cubes along each side; for gmsh ``size`` is ``length / cells``.
        pattern: ``"bcc"``: body-centred cubic, four tets around each square that two cubes share,
            outer squares closed by pyramids split in two; ``"kuhn"``: six tets in each cube;
            ``"gmsh"``: unstructured. Opposite faces of the lattices carry the same triangles.
    """
    name, length = "tagged_grid", expect.positive("tagged_grid", "length", length)
    expect.choice(name, "pattern", pattern, ("bcc", "kuhn", "gmsh"))
    expect.one_of(name, size=size, cells=cells)
    if cells is not None:
        size = length / expect.count(name, "cells", cells)
    size = expect.positive(name, "size", size)
    expect.affordable(name, 12 * (length / size)**3)
    if pattern == "gmsh":
        grid = box([length] * 3, size=size)
        points, tets = grid.points, grid.cells
    else:
        lattice = np.linspace(-length / 2, length / 2, max(1, round(length / size)) + 1)
        points, tets = bcc(lattice) if pattern == "bcc" else kuhn(*[lattice] * 3)
    inside = np.asarray(shape.contains(points[tets].mean(axis=1)), bool)
    if not inside.any():
        raise InputError(f"{name}: {shape.describe()} holds no centroid of the {len(tets)} "
                         "cells, expected at least one (a smaller size, or a larger shape)")
    facets, pairs = facets_of(tets)
    sides = inside[pairs] & (pairs >= 0)
    return MeshData(points, tets, np.where(inside, 1, 2), facets[sides[:, 0] != sides[:, 1]],
                    name=name).check()


def l_cell(size: float, size_interface: float | None = None, pattern: str = "kuhn",
           box: Sequence[float] = (20.0, 20.0, 20.0), corner: Sequence[float] = (4.0, 4.0, 4.0),
           arm: float = 12.0, width: float = 6.0, height: float = 8.0) -> MeshData:
    """An L-shaped cell (tag 1) in a box (tag 2) from the origin on; its surface is tagged 1.

    The defaults give {[4,16]x[4,10] u [4,10]x[10,16]}x[4,12] in [0,20]^3. All faces are
    planes of the mesh, so that volumes are exact.

    Args:
        size: target edge length (of bricks, for ``"kuhn"``), um.
        size_interface: the same at the cell's faces, um (``None``: ``size``); it grows by 0.3 um
            per um.
        pattern: ``"kuhn"``: bricks of six tets whose planes follow the cell's faces through
            the whole box; ``"gmsh"``: unstructured, fine at the cell's faces only.
        box: lengths (x, y, z), um.
        corner: lowest (x, y, z) of the cell, um.
        arm: length of both arms of the L, corner included, along x and y, um.
        width: of both arms, um.
        height: along z, um.
    """
    name = "l_cell"
    size = expect.positive(name, "size", size)
    fine = size if size_interface is None else \
        expect.positive(name, "size_interface", size_interface)
    expect.choice(name, "pattern", pattern, ("kuhn", "gmsh"))
    lengths = expect.lengths(name, "box", box, 3)
    low = np.array(expect.vector(name, "corner", corner))
    arm, width = expect.positive(name, "arm", arm), expect.positive(name, "width", width)
    height = expect.positive(name, "height", height)
    if not width < arm:
        raise InputError(f"{name}: width is {width:g} um, expected less than arm {arm:g} um")
    high = low + [arm, arm, height]
    if not ((low > 0) & (high < lengths)).all():
        raise InputError(f"{name}: the cell ends at {tuple(map(float, high))} um from corner "
                         f"{tuple(map(float, low))} um, expected it inside the box from 0 to "
                         f"{tuple(map(float, lengths))} um")
    # two boxes that overlap in the corner of the L
    lows = np.array([low, low])
    highs = np.array([low + [arm, width, height], low + [width, arm, height]])
    if pattern == "kuhn":
        axes = []
        for i in range(3):
            planes = np.unique([0, low[i], *highs[:, i], lengths[i]])
            axes.append(graded(planes, size, fine, (planes > 0) & (planes < lengths[i])))
        expect.affordable(name, 6 * np.prod([len(x) - 1 for x in axes], dtype=float))
        points, tets = kuhn(*axes)
    else:
        expect.affordable_volume(name, lengths.prod(), size)

        def target(point):
            depth = np.minimum(point - lows, highs - point).min(axis=1).max()
            apart = np.linalg.norm(np.maximum(0, np.maximum(lows - point, point - highs)), axis=1)
            return min(size, fine + GROWTH * max(depth, apart.min()))

        with gmsh_model.model(name, max(size, fine), min(size, fine)) as gmsh:
            occ = gmsh.model.occ
            outer = occ.addBox(0, 0, 0, *lengths)
            arms = [(3, occ.addBox(*a, *(b - a))) for a, b in zip(lows, highs, strict=True)]
            cell, _ = occ.fuse(arms[:1], arms[1:])
            occ.fragment([(3, outer)], cell)
            occ.synchronize()
            points, tets, _ = gmsh_model.arrays(gmsh, name,
                                                target=None if fine == size else target)
        tets = oriented(points, tets)
    middle = points[tets].mean(axis=1)[:, None]
    inside = ((lows < middle) & (middle < highs)).all(axis=2).any(axis=1)
    return tagged(name, points, tets, np.where(inside, 1, 2))
