"""Builders of tubes: bent and twisted axons, alone or in a bundle, and the torus."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, pi
from typing import Any

import numpy as np

from spinverse.errors import InputError, SolverError
from spinverse.mesh import arguments as expect
from spinverse.mesh import arrangement, gmsh_model
from spinverse.mesh.arrangement import AROUND, TAGGED, Arrangement
from spinverse.mesh.checks import cell_volumes
from spinverse.mesh.curved import Bent, edges_of, surface_facets
from spinverse.mesh.data import MeshData
from spinverse.mesh.grids import extrude, oriented, tagged
from spinverse.mesh.packed import with_myelin

MOST_LAYERS = 100000


def bent_axon(radii: Sequence[float], height: float, size: float, bend: float = 0.0,
              twist: float = 0.0, ecs: str = "none", ecs_gap: float | None = None,
              layers: int | None = None, match_volume: bool = True) -> MeshData:
    """One axon with its layers (myelin), bent and twisted; see :func:`twisted_axons`.

    Layers are tagged 1 (inner) .. n, the space around n + 1, interfaces with the lower tag.

    Args:
        radii: of the layers in each cross-section z = const, ascending, um; the rest is as there.
    """
    radii = expect.ascending("bent_axon", "radii", radii)
    return _bundle("bent_axon", np.zeros((1, 2)), radii[None], height, size, twist, bend, ecs,
                   ecs_gap, layers, "common", match_volume)


def twisted_axons(centres: Sequence[Sequence[float]], radii: float | Sequence[float],
                  height: float, size: float, twist: float, bend: float = 0.0,
                  g_ratio: float | None = None, ecs: str = "none",
                  ecs_gap: float | None = None, layers: int | None = None,
                  cell_tags: str = "common", match_volume: bool = True) -> MeshData:
    """A bundle of axons along z, from ``-height/2`` to ``height/2``, bent and then twisted.

    Straight cylinders are mapped by x -> x + bend z^2, then turned about the z axis by the
    angle twist z. Both maps keep volumes (their Jacobian has determinant 1) and the discs in
    planes z = const; across its own direction a slanted tube is narrower. These are the
    deformations of Li et al., SpinDoctor, NeuroImage 2019, section 2; the `deformation`
    (a, b) in its input files is bend = 30 a w / height^2 with the bundle's width w along x,
    and twist = b / height (there about the middle of the bent bundle).

    Tags are those of :func:`.packed.packed_cylinders`.

    Args:
        centres: (x, y) of the axons in the plane z = 0, ``(n, 2)`` um.
        radii: outer radius, one for all or one for each, um.
        height: along z, um.
        size: largest edge length, um; in the plane as for :func:`.packed.packed_cylinders`.
        twist: rad/um; too strong a one for ``layers`` turns tets inside out, which is an error.
        bend: 1/um.
        g_ratio, ecs, ecs_gap, cell_tags: as there; the ``"box"`` leaves ``ecs_gap`` around the
            straight axons, and is bent and twisted with them.
        layers: prisms along z; ``None``: enough for edges along the outermost axon to be at
            most ``size``.
        match_volume: let each axon hold pi r^2 height, whatever its facets cut off.
    """
    name = "twisted_axons"
    rows: Any = centres if np.ndim(centres) else [centres]
    places = np.asarray([expect.vector(name, f"centres[{i}]", [*row, 0] if np.ndim(row) else row)
                         for i, row in enumerate(rows)])
    if not len(places):
        raise InputError(f"{name}: centres is {expect.shown(centres)}, expected (x, y) rows")
    outer = expect.each(name, "radii", radii, len(places))
    places = places[:, :2]
    i, j = np.triu_indices(len(places), 1)
    gaps = np.linalg.norm(places[j] - places[i], axis=1) - outer[j] - outer[i]
    for k in np.flatnonzero(gaps <= 0)[:1]:
        raise InputError(f"{name}: axons {i[k]} and {j[k]} leave a gap of {gaps[k]:.3g} um, "
                         "expected a positive one")
    return _bundle(name, places, with_myelin(name, outer, g_ratio), height, size, twist, bend,
                   ecs, ecs_gap, layers, cell_tags, match_volume)


def torus(major_radius: float, minor_radius: float, size: float,
          box: Sequence[float] | None = None, match_volume: bool = True,
          order: int = 1) -> MeshData:
    """A torus around the z axis (tag 1), alone or in a box (tag 2); interface tagged 1.

    Args:
        major_radius: of the circle in the tube's middle, um.
        minor_radius: of the tube, um, below ``major_radius``.
        size: target edge length, um.
        box: lengths (x, y, z) of a box centred at the origin, um; ``None``: inside only.
        match_volume: move the surface out so that it holds 2 pi^2 R r^2.
        order: 1: straight edges; 2: those on the torus are bent (see :mod:`.curved`).
    """
    name = "torus"
    order = expect.order(name, order)
    major = expect.positive(name, "major_radius", major_radius)
    minor = expect.positive(name, "minor_radius", minor_radius)
    size = expect.positive(name, "size", size)
    if not minor < major:
        raise InputError(f"{name}: minor_radius is {minor:g} um, expected less than "
                         f"major_radius {major:g} um")
    volume, gap = 2 * pi**2 * major * minor**2, np.inf
    if box is not None:
        lengths = expect.lengths(name, "box", box, 3)
        gap = float((lengths / 2 - [major + minor, major + minor, minor]).min())
        if not gap > 0:
            raise InputError(f"{name}: it leaves a gap of {gap:g} um to the box, expected a "
                             "positive one")
    expect.affordable_volume(name, volume if box is None else lengths.prod(), size)
    with gmsh_model.model(name, size) as gmsh:
        occ = gmsh.model.occ
        ring = occ.addTorus(0, 0, 0, major, minor)
        inner = {ring}
        if box is not None:
            outer = occ.addBox(*(-lengths / 2), *lengths)
            _, parents = occ.fragment([(3, outer)], [(3, ring)])
            inner = {tag for _, tag in parents[1]}
        occ.synchronize()
        points, tets, entities = gmsh_model.arrays(gmsh, name)
    inside = np.isin(entities, list(inner))
    tets, tags = oriented(points, tets), np.where(inside, 1, 2)
    bent = None
    if order == 2:
        edges = edges_of(surface_facets(tets, tags, outer=box is None))
        middles = points[edges].mean(axis=1)
        circle = _circle(middles, major)
        offset = middles - circle
        middles = circle + minor * offset / np.linalg.norm(offset, axis=1, keepdims=True)
        bent = Bent(edges, middles).valid(points, tets)
    if match_volume:
        # fades out half the way to the box and to the middle of the hole
        fade = minor + min(gap, major - minor) / 2
        points, bent = _match_torus(points, tets[inside], bent, major, minor, volume, fade)
    return tagged(name, points, tets, tags, bent)


def _circle(points: np.ndarray, major: float) -> np.ndarray:
    """The place nearest to each point on the circle in the middle of the tube."""
    across = np.linalg.norm(points[:, :2], axis=1)[:, None]
    unit = np.divide(points[:, :2], across, out=np.zeros((len(points), 2)), where=across > 0)
    return np.column_stack([major * unit, np.zeros(len(points))])


def _match_torus(points, tets, bent, major, minor, volume, fade) -> tuple[np.ndarray, Bent | None]:
    """Scale the tube around the circle in its middle until ``tets`` hold ``volume``."""
    count = len(points)
    nodes = points if bent is None else np.concatenate([points, bent.middles])
    circle = _circle(nodes, major)
    offset = nodes - circle
    r = np.linalg.norm(offset, axis=1)
    factor, moved, edges = 1.0, nodes, bent
    for _ in range(20):
        held = cell_volumes(moved, tets) if edges is None else edges.volumes(moved[:count], tets)
        change = (volume / held.sum())**0.5
        if abs(change - 1) < 1e-14:
            break
        factor *= change
        if not factor * minor < fade:
            raise SolverError(f"torus: matching the volume needs a tube of {factor * minor:g} um, "
                              f"expected less than {fade:g} um (try a smaller size)")
        new = np.where(r < fade, np.interp(r, [0, minor, fade], [0, factor * minor, fade]), r)
        moved = circle + offset * np.divide(new, r, out=np.ones_like(r), where=r > 0)[:, None]
        edges = None if bent is None else bent._replace(middles=moved[count:])
    return moved[:count], edges


def _bundle(name, centres, radii, height, size, twist, bend, ecs, ecs_gap, layers, cell_tags,
            match_volume) -> MeshData:
    """Mesh the cross-section, extrude it, bend and twist it."""
    height, size = expect.positive(name, "height", height), expect.positive(name, "size", size)
    twist, bend = expect.number(name, "twist", twist), expect.number(name, "bend", bend)
    expect.choice(name, "ecs", ecs, AROUND)
    expect.choice(name, "cell_tags", cell_tags, TAGGED)
    outer = radii[:, -1]
    gap = outer.mean() / 2 if ecs_gap is None else expect.positive(name, "ecs_gap", ecs_gap)
    low = (centres - outer[:, None]).min(axis=0) - gap
    high = (centres + outer[:, None]).max(axis=0) + gap
    middle = (low + high) / 2
    if layers is None:
        reach = np.linalg.norm(np.abs(centres) + outer[:, None], axis=1).max()
        reach += abs(bend) * height**2 / 4
        slope = np.hypot(abs(twist) * reach, abs(bend) * height)
        layers = max(1, ceil(height / size * np.hypot(1, slope) * (1 - 1e-12)))
        if layers > MOST_LAYERS:
            raise InputError(f"{name}: {layers} layers of prisms, expected at most "
                             f"{MOST_LAYERS} (a larger size, or less bend and twist)")
    layers = expect.count(name, "layers", layers)
    # the arrangement's box is centred at the origin
    cells = Arrangement(name, centres - middle, radii, ecs, gap, high - low)
    flat, triangles, owner, layer = arrangement.mesh(cells, size)
    expect.affordable(name, 3.0 * layers * len(triangles))

    def deformed(section):
        points, tets = extrude(section + [*middle, 0], triangles, height, layers)
        x, y, z = points.T
        x = x + bend * z**2
        c, s = np.cos(twist * z), np.sin(twist * z)
        return np.column_stack([c * x - s * y, s * x + c * y, z]), tets

    def measure(section):
        # a triangle's prisms follow each other in every layer, three tets each
        volumes = cell_volumes(*deformed(section)) / height
        return volumes.reshape(layers, len(triangles), 3).sum(axis=(0, 2))

    if match_volume:
        flat, _ = arrangement.match(cells, size, flat, triangles, owner, layer,
                                    measure if twist else None)
    points, tets = deformed(flat)
    volumes = cell_volumes(points, tets)
    if not (volumes > 0).all():
        raise SolverError(f"{name}: {(volumes <= 0).sum()} of {len(tets)} tets are turned inside "
                          f"out by twist {twist:g} rad/um and bend {bend:g} 1/um, expected a "
                          "gentler deformation, a smaller size or more layers")
    tags = np.tile(np.repeat(cells.tags(owner, layer, cell_tags), 3), layers)
    return tagged(name, points, tets, tags)
