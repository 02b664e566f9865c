"""Builders of packed cylinders and spheres with extracellular space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spinverse.errors import InputError
from spinverse.mesh import arguments as expect
from spinverse.mesh import arrangement
from spinverse.mesh.arrangement import AROUND, TAGGED, Arrangement
from spinverse.mesh.curved import extruded
from spinverse.mesh.data import MeshData
from spinverse.mesh.grids import BALL, extrude, tagged
from spinverse.mesh.packing import pack, random_radii


def packed_cylinders(height: float, size: float, radii: Sequence[float] | None = None,
                     count: int | None = None, mean_radius: float | None = None,
                     radius_deviation: float = 0.0, distribution: str = "gamma",
                     volume_fraction: float | None = None, box: Sequence[float] | None = None,
                     g_ratio: float | None = None, gap: float | None = None, ecs: str = "box",
                     ecs_gap: float | None = None, periodic: bool = False, seed: int = 0,
                     layers: int = 1, cell_tags: str = "common",
                     match_volume: bool = True, order: int = 1) -> MeshData:
    """Parallel cylinders along z at random places in a box centred at the origin.

    Tags of cells with ``cell_tags="common"``: 1 for the insides of all cylinders, with ``g_ratio``
    2 for their myelin; with ``"each"``: cylinder i (from 0) has i + 1, or 2 i + 1 and 2 i + 2 for
    its myelin; the extracellular space has the number after the last. An interface has the lower
    tag of its two sides.

    Args:
        height: um.
        size: largest edge length in the plane, um; it shrinks in thin layers and gaps, and
            around cylinders that would have fewer than ten edges.
        radii: outer radii, um; or
        count: how many to draw, with ``mean_radius`` and ``radius_deviation`` (standard), um, from
            the distribution ``"gamma"``, ``"lognormal"`` or ``"normal"``.
        volume_fraction: of a square box that the cylinders hold, myelin included. Or give
        box: lengths (x, y) of the box, um.
        g_ratio: inner over outer radius, for a layer of myelin.
        gap: smallest distance between cylinders, and to the box if it is not periodic, um;
            ``None``: a tenth of the mean radius.
        ecs: space around: ``"box"``; ``"tight"``: all within ``ecs_gap`` of a cylinder, and the
            voids that this encloses (in pieces, where gaps are twice as wide); or ``"none"``.
        ecs_gap: um; ``None``: half of the mean radius.
        periodic: cylinders reach through the faces of the box and come in again opposite;
            all opposite faces carry the same triangles, which a periodic boundary needs.
        seed: of the random numbers.
        layers: prisms along z.
        cell_tags: as above.
        match_volume: move the circles so that each holds pi r^2.
        order: 1: straight edges; 2: those on cylinders are bent (see :mod:`.curved`), of a tight
            space's outer boundary too.
    """
    name = "packed_cylinders"
    order = expect.order(name, order)
    height = expect.positive(name, "height", height)
    layers = expect.count(name, "layers", layers)
    size = expect.positive(name, "size", size)
    cells = _packed(name, 2, radii, count, mean_radius, radius_deviation, distribution,
                    volume_fraction, box, g_ratio, gap, ecs, ecs_gap, periodic, seed, cell_tags)
    flat, triangles, owner, layer = arrangement.mesh(cells, size)
    bent = None if order == 1 else arrangement.bent(cells, flat, triangles, owner, layer)
    if match_volume:
        flat, bent = arrangement.match(cells, size, flat, triangles, owner, layer, bent=bent)
    points, tets = extrude(flat, triangles, height, layers)
    tags = np.tile(np.repeat(cells.tags(owner, layer, cell_tags), 3), layers)
    return tagged(name, points, tets, tags,
                  None if bent is None else extruded(bent, flat, points, tets))


def packed_spheres(size: float, radii: Sequence[float] | None = None,
                   count: int | None = None, mean_radius: float | None = None,
                   radius_deviation: float = 0.0, distribution: str = "gamma",
                   volume_fraction: float | None = None, box: Sequence[float] | None = None,
                   g_ratio: float | None = None, gap: float | None = None, ecs: str = "box",
                   ecs_gap: float | None = None, periodic: bool = False, seed: int = 0,
                   cell_tags: str = "common", match_volume: bool = True,
                   order: int = 1) -> MeshData:
    """Balls at random places in a box centred at the origin.

    Arguments, tags and errors are those of :func:`packed_cylinders`; ``box`` has three
    lengths, and ``g_ratio`` gives each ball a shell.
    """
    name = "packed_spheres"
    order = expect.order(name, order)
    size = expect.positive(name, "size", size)
    cells = _packed(name, 3, radii, count, mean_radius, radius_deviation, distribution,
                    volume_fraction, box, g_ratio, gap, ecs, ecs_gap, periodic, seed, cell_tags)
    points, tets, owner, layer = arrangement.mesh(cells, size)
    bent = None if order == 1 else arrangement.bent(cells, points, tets, owner, layer)
    if match_volume:
        points, bent = arrangement.match(cells, size, points, tets, owner, layer, bent=bent)
    return tagged(name, points, tets, cells.tags(owner, layer, cell_tags), bent)


def _packed(name, dim, radii, count, mean_radius, deviation, distribution, fraction, box,
            g_ratio, gap, ecs, ecs_gap, periodic, seed, cell_tags) -> Arrangement:
    """Check the arguments and find the places."""
    expect.choice(name, "ecs", ecs, AROUND)
    expect.choice(name, "cell_tags", cell_tags, TAGGED)
    if periodic and ecs != "box":
        raise InputError(f"{name}: periodic with ecs {ecs!r}, expected ecs 'box'")
    expect.one_of(name, radii=radii, count=count)
    if radii is not None:
        outer = expect.lengths(name, "radii", radii)
    else:
        outer = random_radii(name, count, mean_radius, deviation, distribution, seed)
    expect.one_of(name, volume_fraction=fraction, box=box)
    if fraction is not None:
        fraction = expect.number(name, "volume_fraction", fraction, 1e-6, 1.0)
        held = BALL[dim] * (outer**dim).sum()
        lengths = np.full(dim, (held / fraction)**(1 / dim))
    else:
        lengths = expect.lengths(name, "box", box, dim)
    gap = outer.mean() / 10 if gap is None else expect.positive(name, "gap", gap)
    around = outer.mean() / 2 if ecs_gap is None else expect.positive(name, "ecs_gap", ecs_gap)
    layers = with_myelin(name, outer, g_ratio)
    centres = pack(name, outer, lengths, gap, seed, bool(periodic), g_ratio)
    return Arrangement(name, centres, layers, ecs, around, lengths, bool(periodic))


def with_myelin(name: str, outer: np.ndarray, g_ratio: float | None) -> np.ndarray:
    """Radii of the layers of each cell, ``(n, 1)``, or ``(n, 2)`` with myelin."""
    if g_ratio is None:
        return outer[:, None]
    g_ratio = expect.number(name, "g_ratio", g_ratio, 0.05, 0.99)
    return np.column_stack([outer * g_ratio, outer])
