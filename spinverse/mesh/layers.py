"""Builders of concentric layers: discs, cylinders, spheres, and a sphere in a box."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import numpy as np

from spinverse.errors import InputError, SolverError
from spinverse.mesh import arguments as expect
from spinverse.mesh import gmsh_model
from spinverse.mesh.checks import cell_volumes
from spinverse.mesh.curved import Bent, extruded, surface_facets
from spinverse.mesh.data import MeshData
from spinverse.mesh.grids import BALL, GROWTH, extrude, oriented, tagged

ORIGIN = (0.0, 0.0, 0.0)
FLATTEST = 3.0  # edge length over thickness; from 10 on gmsh leaves slivers in shells


def disks(radii: Sequence[float], size: float | Sequence[float],
          match_area: bool = True, order: int = 1) -> MeshData:
    """Concentric discs in the plane z = 0: rings tagged 1 (inner) .. n, circles 1 .. n-1.

    Args:
        radii: ascending, um; the last is the outer boundary.
        size: target edge length, um, at most three times the thickness of a ring; or one
            for each ring, taken as it is. From a fine ring on it grows by 0.3 um per um.
        match_area: move the circles out so that each holds pi r^2.
        order: 1: straight edges; 2: those on circles are bent (see :mod:`.curved`).
    """
    return tagged("disks", *_layered("disks", 2, radii, size, match_area, order))


def cylinders(radii: Sequence[float], height: float, size: float | Sequence[float],
              layers: int = 1, match_volume: bool = True, order: int = 1) -> MeshData:
    """Concentric cylinders along z, centred at the origin, tagged as :func:`spheres` are.

    A triangle mesh of the discs is extruded in prisms of three tets each.

    Args:
        radii, size: as for :func:`disks`, um.
        height: um.
        layers: prisms along z.
        match_volume: move the circles out so that each holds pi r^2.
        order: 1: straight edges; 2: those on cylinders are bent (see :mod:`.curved`).
    """
    name = "cylinders"
    height = expect.positive(name, "height", height)
    layers = expect.count(name, "layers", layers)
    flat, triangles, tags, bent = _layered(name, 2, radii, size, match_volume, order, 3 * layers)
    points, tets = extrude(flat, triangles, height, layers)
    tags = np.tile(np.repeat(tags, 3), layers)
    return tagged(name, points, tets, tags,
                  None if bent is None else extruded(bent, flat, points, tets))


def spheres(radii: Sequence[float], size: float | Sequence[float],
            centre: Sequence[float] = ORIGIN, match_volume: bool = True,
            order: int = 1) -> MeshData:
    """Concentric balls: layers tagged 1 (inner) .. n, spheres between them 1 .. n-1.

    Args:
        radii, size: as for :func:`disks`, um; a size for each layer that is far above its
            thickness gives flat tets there (see :func:`.checks.quality`).
        centre: um.
        match_volume: move the spheres out so that each holds 4/3 pi r^3.
        order: 1: straight edges; 2: those on spheres are bent (see :mod:`.curved`).
    """
    centre = np.array(expect.vector("spheres", "centre", centre))
    points, tets, tags, bent = _layered("spheres", 3, radii, size, match_volume, order)
    return tagged("spheres", points + centre, tets, tags, _moved(bent, centre))


def sphere_in_box(radius: float, box: Sequence[float], size: float,
                  size_interface: float | None = None, centre: Sequence[float] = ORIGIN,
                  match_volume: bool = True, periodic: bool = False,
                  order: int = 1) -> MeshData:
    """A ball (tag 1) in a box (tag 2) that is centred at the origin; interface tagged 1.

    Args:
        radius: um.
        box: lengths (x, y, z) of the box, um.
        size: target edge length, um; above the gap to the box it gives flat tets there.
        size_interface: the same at the sphere, um (``None``: ``size``); it grows over one radius.
        centre: of the ball, um.
        match_volume: move the sphere out so that it holds 4/3 pi radius^3.
        periodic: opposite faces of the box carry the same triangles.
        order: 1: straight edges; 2: those on the sphere are bent (see :mod:`.curved`).
    """
    name = "sphere_in_box"
    order = expect.order(name, order)
    radius, lengths = expect.positive(name, "radius", radius), expect.lengths(name, "box", box, 3)
    size = expect.positive(name, "size", size)
    centre = np.array(expect.vector(name, "centre", centre))
    fine = size if size_interface is None else \
        expect.positive(name, "size_interface", size_interface)
    gap = float((lengths / 2 - np.abs(centre)).min()) - radius
    if not gap > 0:
        raise InputError(f"{name}: ball of radius {radius:g} um leaves a gap of {gap:g} um to "
                         "the box, expected a positive one")
    expect.affordable_volume(name, lengths.prod(), size)
    expect.affordable_volume(name, 4 * pi * radius**2 * fine, fine)

    def target(point):
        distance = abs(np.linalg.norm(point - centre) - radius)
        return fine + (size - fine) * min(1.0, distance / radius)

    with gmsh_model.model(name, max(size, fine), min(size, fine)) as gmsh:
        occ = gmsh.model.occ
        outer = occ.addBox(*(-lengths / 2), *lengths)
        occ.fragment([(3, outer)], [(3, occ.addSphere(*centre, radius))])
        occ.synchronize()
        if periodic:
            gmsh_model.match_opposite(gmsh, name, lengths)
        points, tets, entities = gmsh_model.arrays(
            gmsh, name, target=None if fine == size else target)
    points = points - centre
    tags = 1 + (_reach(points, tets, entities) > radius * (1 + 1e-6))
    bent = None if order == 1 else _on_spheres(
        points, tets, surface_facets(tets, tags, outer=False))
    if match_volume:
        points, bent = _match(name, points, tets, tags, bent, np.array([radius]), 3,
                              fixed=radius + gap)
    return tagged(name, points + centre, tets, tags, _moved(bent, centre))


def _layered(name: str, dim: int, radii, size, match: bool, order,
             cells_each: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, Bent | None]:
    """Concentric discs or balls: points ``(Nv, 3)``, triangles or tets, and the layer of each.

    And the edges that are bent, if the order is 2.
    """
    order = expect.order(name, order)
    radii = expect.ascending(name, "radii", radii)
    sizes = expect.each(name, "size", size, len(radii))
    if np.ndim(size) == 0:  # it yields to layers that it would flatten
        sizes[1:] = np.minimum(sizes[1:], FLATTEST * np.diff(radii))
    expect.affordable_volume(name, cells_each * BALL[dim] * np.diff(radii**dim, prepend=0), sizes,
                             dim)
    inner = np.concatenate([[0], radii[:-1]])

    def target(point):
        r = np.linalg.norm(point)
        return (sizes + GROWTH * np.maximum(0, np.maximum(inner - r, r - radii))).min()

    varied = np.ptp(sizes) > 0
    with gmsh_model.model(name, sizes.max(), sizes.min()) as gmsh:
        occ = gmsh.model.occ
        parts = [(dim, occ.addDisk(0, 0, 0, r, r) if dim == 2 else occ.addSphere(0, 0, 0, r))
                 for r in radii]
        if len(parts) > 1:
            occ.fragment(parts[-1:], parts[:-1])
        occ.synchronize()
        points, cells, entities = gmsh_model.arrays(gmsh, name, dim, varied,
                                                    target if varied else None)
    if dim == 2:
        points[:, 2] = 0
    tags = 1 + np.abs(_reach(points, cells, entities)[:, None] - radii).argmin(axis=1)
    cells = oriented(points, cells)
    bent = None if order == 1 else _on_spheres(points, cells, surface_facets(cells, tags))
    if match:
        points, bent = _match(name, points, cells, tags, bent, radii, dim)
    return points, cells, tags, bent


def _on_spheres(points: np.ndarray, cells: np.ndarray, facets: np.ndarray) -> Bent:
    """Edges of facets whose vertices are on circles or spheres about the origin."""
    return Bent.around(points, facets, np.zeros((len(points), facets.shape[1])),
                       np.linalg.norm(points, axis=1)).valid(points, cells)


def _moved(bent: Bent | None, by: np.ndarray) -> Bent | None:
    return None if bent is None else bent._replace(middles=bent.middles + by)


def _reach(points: np.ndarray, cells: np.ndarray, entities: np.ndarray) -> np.ndarray:
    """For each cell the largest distance from the origin in its gmsh entity, ``(Nt,)``."""
    reach = np.zeros(entities.max() + 1)
    np.maximum.at(reach, entities, np.linalg.norm(points[cells], axis=2).max(axis=1))
    return reach[entities]


def _match(name: str, points: np.ndarray, cells: np.ndarray, tags: np.ndarray, bent: Bent | None,
           radii: np.ndarray, dim: int,
           fixed: float | None = None) -> tuple[np.ndarray, Bent | None]:
    """Move vertices radially until each faceted or curved surface holds what the smooth one holds.

    All nodes of a surface lie at its radius, so that one factor scales what it holds exactly;
    between surfaces the radius is mapped linearly, and beyond ``fixed`` nothing moves.
    """
    volumes = np.abs(cell_volumes(points, cells)) if bent is None else bent.volumes(points, cells)
    held = np.bincount(tags, weights=volumes)[1:len(radii) + 1].cumsum()
    wanted = radii * (BALL[dim] * radii**dim / held)**(1 / dim)
    if fixed is not None and not wanted[-1] < fixed:
        raise SolverError(f"{name}: matching the volume needs radius {wanted[-1]:g} um, which "
                          f"leaves the box at {fixed:g} um (try a smaller size)")
    outer = [] if fixed is None else [fixed]
    knots, values = (np.array([0, *inner, *outer]) for inner in (radii, wanted))

    def moved(nodes: np.ndarray) -> np.ndarray:
        r = np.linalg.norm(nodes, axis=1)
        # past the last knot: the same factor; that is 1 with `fixed`, round-off without
        new = np.where(r <= knots[-1], np.interp(r, knots, values), r * values[-1] / knots[-1])
        return nodes * np.divide(new, r, out=np.ones_like(r), where=r > 0)[:, None]

    return moved(points), None if bent is None else bent._replace(middles=moved(bent.middles))
