"""Meshes of many discs or balls, layered, alone or with the space around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi

import numpy as np
from scipy.spatial import cKDTree

from spinverse.errors import SolverError
from spinverse.mesh import arguments as expect
from spinverse.mesh import gmsh_model
from spinverse.mesh.checks import cell_volumes
from spinverse.mesh.curved import Bent, surface_facets
from spinverse.mesh.grids import BALL, GROWTH, oriented
from spinverse.mesh.packing import images, smallest_cut

AROUND = ("box", "tight", "none")
TAGGED = ("common", "each")
EDGES_A_CIRCLE = 10  # at least, however large the size
CUT = 0.7  # edge length over the half width of what a face of the box cuts off
ON_SURFACE = 1e-6  # of a radius or length, how far off vertices on it may be
FLATTEST = 2.0  # edge length over the width of a layer or of a gap


@dataclass(frozen=True)
class Arrangement:
    """Layered discs (d = 2) or balls (d = 3) that do not touch, and what surrounds them.

    Attributes:
        name: for messages.
        centres: ``(n, d)`` um.
        radii: of the layers of each cell, ascending, ``(n, layers)`` um.
        ecs, gap: space around the cells, see :func:`.packed.packed_cylinders`, and its width for
            ``"tight"``, um.
        lengths: of the box, centred at the origin, ``(d,)`` um.
        periodic: cells reach through the faces of the box and come in again opposite.
    """

    name: str
    centres: np.ndarray
    radii: np.ndarray
    ecs: str
    gap: float
    lengths: np.ndarray
    periodic: bool = False

    @property
    def dim(self) -> int:
        return self.centres.shape[1]

    def images(self, margin: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Centres and the cell of each, in a periodic box with images up to ``margin`` um off."""
        if not self.periodic:
            return self.centres, np.arange(len(self.centres))
        return images(self.centres, self.radii[:, -1], self.lengths, margin)

    def tags(self, owner: np.ndarray, layer: np.ndarray, how: str) -> np.ndarray:
        """Cell tags, see :func:`.packed.packed_cylinders`."""
        count, layers = self.radii.shape
        last = layers if how == "common" else count * layers
        inside = layer + 1 + (0 if how == "common" else owner * layers)
        return np.where(owner < 0, last + 1, inside)


def mesh(cells: Arrangement, size: float):
    """Mesh an arrangement by gmsh.

    Edges are shorter than ``size`` where a cell has fewer than ten edges around, and where a
    layer or the gap between two cells is thinner than half of it.

    Returns:
        Points ``(Nv, 3)`` um; triangles or tets, positively oriented; the cell that each is in, -1
        for the space around; and its layer there, 0 for the innermost.
    """
    name, dim, outer = cells.name, cells.dim, cells.radii[:, -1]
    target, smallest = _target(cells, size)
    total = np.prod(cells.lengths) if cells.ecs == "box" else \
        BALL[dim] * ((outer + (cells.gap if cells.ecs == "tight" else 0))**dim).sum()
    expect.affordable_volume(name, total, size, dim)
    for algorithm in (gmsh_model.FRONTAL_DELAUNAY, gmsh_model.DELAUNAY):
        try:
            with gmsh_model.model(name, size, smallest, algorithm) as gmsh:
                labels = _geometry(gmsh, cells)
                if cells.periodic:
                    gmsh_model.match_opposite(gmsh, name, np.resize(cells.lengths, 3), dim)
                points, simplices, entities = gmsh_model.arrays(gmsh, name, dim, True, target)
            break
        except SolverError:
            # the first is finer, but now and then leaves surfaces that cross; a second try on
            # the same model leaves volumes empty
            if algorithm == gmsh_model.DELAUNAY:
                raise
    if dim == 2:
        points[:, 2] = 0
    if cells.periodic:
        points = _snapped(points, cells)
    found, place = np.unique(entities, return_inverse=True)
    owner, layer = np.array([labels.get(int(e), (-1, 0)) for e in found])[place].T
    return points, oriented(points, simplices), owner, layer


def match(cells: Arrangement, size: float, points: np.ndarray, simplices: np.ndarray,
          owner: np.ndarray, layer: np.ndarray,
          measure: Callable[[np.ndarray], np.ndarray] | None = None,
          bent: Bent | None = None) -> tuple[np.ndarray, Bent | None]:
    """The points, moved so that every layer of every cell holds what the smooth one does.

    And the middles of bent edges, moved as the middle between their ends.

    Vertices move away from the centre of their cell in proportion to the square of the local
    edge length, as a chord's distance from its arc goes, so that narrow gaps with their short
    edges stay open. The movement is interpolated between layers, fades out over half the way
    to the next cell, and along its normal towards the faces of a periodic box, alike on both
    sides. As volumes are not quite linear in it, it is found by repetition.

    Args:
        size, points, simplices, owner, layer: as for and from :func:`mesh`.
        measure: volumes (areas) of the simplices from the points; ``None``: their own.
    """
    dim = cells.dim
    count, layers = cells.radii.shape
    outer, (centres, owners) = cells.radii[:, -1], cells.images()
    wanted = BALL[dim] * cells.radii**dim
    inside = owner >= 0
    region = owner[inside] * layers + layer[inside]
    # the cell whose surface a point is nearest to, or deepest inside; in parts for the memory
    near = np.concatenate([
        (np.linalg.norm(part[:, None] - centres, axis=2) - outer[owners]).argmin(axis=1)
        for part in np.array_split(points[:, :dim], len(points) // 4096 + 1)])
    nearest = owners[near]
    offset = points[:, :dim] - centres[near]
    r = np.linalg.norm(offset, axis=1)
    unit = np.divide(offset, r[:, None], out=np.zeros_like(offset), where=r[:, None] > 0)
    fade = outer + _clear(cells, *cells.images(size / GROWTH)) / 2
    target, _ = _target(cells, size)
    weight = np.array([target(p) for p in points])**2
    on_surface = np.abs(r - outer[nearest]) < 1e-6 * outer[nearest]
    mean = np.bincount(nearest[on_surface], weight[on_surface], count) \
        / np.maximum(np.bincount(nearest[on_surface], minlength=count), 1)
    weight = np.minimum(weight / mean[nearest], 2.0)
    twin: slice | np.ndarray = slice(None)
    if cells.periodic:
        depth = (cells.lengths / 2 - np.abs(points[:, :dim])) / (outer[nearest, None] / 2)
        unit = unit * np.clip(depth, 0, 1)
        # the first of the vertices that are one in the periodic box
        tiny, place = 1e-6 * cells.lengths.max(), points[:, :dim]
        place = np.where(place > cells.lengths / 2 - tiny, place - cells.lengths, place)
        twin = np.array([min(same) for same in cKDTree(place).query_ball_point(place, tiny)])
    factor, moved = np.ones_like(cells.radii), points

    def along(nodes: np.ndarray) -> Bent | None:
        if bent is None:
            return None
        by = (nodes - points)[bent.curved_edges].mean(axis=1)
        return bent._replace(middles=bent.middles + by)

    def own(nodes: np.ndarray) -> np.ndarray:
        edges = along(nodes)
        return np.abs(cell_volumes(nodes, simplices)) if edges is None else \
            edges.volumes(nodes, simplices)

    measure = measure or own
    for _ in range(50):
        held = np.bincount(region, measure(moved)[inside], count * layers)
        held = held.reshape(count, layers).cumsum(axis=1)
        change = (wanted / held)**(1 / dim)
        if np.abs(change - 1).max() < 1e-13:
            break
        factor = factor * change
        shift = np.zeros_like(r)
        for i, radii in enumerate(cells.radii):
            near = nearest == i
            shift[near] = np.interp(r[near], [0, *radii, fade[i]],
                                    [0, *(radii * (factor[i] - 1)), 0])
        moved = points.copy()
        moved[:, :dim] += (unit * (shift * weight)[:, None])[twin]
    return moved, along(moved)


def bent(cells: Arrangement, points: np.ndarray, simplices: np.ndarray, owner: np.ndarray,
         layer: np.ndarray) -> Bent:
    """Edges of circles and spheres, with their middles on them and on the faces of the box."""
    dim = cells.dim
    facets = surface_facets(simplices, cells.tags(owner, layer, "each"))
    centres, owners = cells.images()
    radii = cells.radii[owners]
    if cells.ecs == "tight":
        radii = np.column_stack([radii, radii[:, -1] + cells.gap])
    vertices = np.unique(facets)
    centre, radius = np.zeros((len(points), dim)), np.full(len(points), np.nan)
    least = np.full(len(points), ON_SURFACE)
    for middle, own in zip(centres, radii, strict=True):
        away = np.linalg.norm(points[vertices, :dim] - middle, axis=1)
        for each in own:
            off = np.abs(away - each) / each
            near = vertices[off < least[vertices]]
            least[near] = off[off < least[vertices]]
            centre[near], radius[near] = middle, each
    # facets of one circle or sphere: others are on the faces of the box
    same = np.isfinite(radius[facets]).all(axis=1) & (radius[facets] == radius[facets[:, :1]]).all(
        axis=1) & (centre[facets] == centre[facets[:, :1]]).all(axis=(1, 2))
    flat = np.abs(np.abs(points[:, :dim]) - cells.lengths / 2) < ON_SURFACE * cells.lengths
    on_face = np.logical_and.reduce(flat[facets], axis=1).any(axis=1)
    return Bent.around(points, facets[same & ~on_face], centre, radius,
                       flat if cells.ecs == "box" else None).valid(points, simplices)


def _geometry(gmsh, cells: Arrangement) -> dict[int, tuple[int, int]]:
    """Make the shapes; returns (owner, layer) of each gmsh entity inside a cell."""
    occ, dim, (centres, owners) = gmsh.model.occ, cells.dim, cells.images()

    def ball(centre, radius):
        return (2, occ.addDisk(*centre, 0, radius, radius)) if dim == 2 else \
            (3, occ.addSphere(*centre, radius))

    around = []
    if cells.ecs == "box":
        low = -cells.lengths / 2
        around = [(2, occ.addRectangle(*low, 0, *cells.lengths)) if dim == 2 else
                  (3, occ.addBox(*low, *cells.lengths))]
    elif cells.ecs == "tight":
        around = [ball(c, cells.radii[i, -1] + cells.gap)
                  for c, i in zip(centres, owners, strict=True)]
        if len(around) > 1:
            around, _ = occ.fuse(around[:1], around[1:])
            around = [_filled(gmsh, piece) for piece in around]
    labels, parts = [], []
    for layer in range(cells.radii.shape[1] - 1, -1, -1):
        for centre, i in zip(centres, owners, strict=True):
            labels.append((int(i), layer))
            parts.append(ball(centre, cells.radii[i, layer]))
    known = {tag: label for (_, tag), label in zip(parts, labels, strict=True)}
    if around or cells.radii.shape[1] > 1:
        children, parents = occ.fragment(around, parts) if around else \
            occ.fragment(parts[:1], parts[1:])
        # from the outermost layer inwards: the innermost shape that holds an entity wins
        known = {}
        for label, pieces in zip(labels, parents[len(around):], strict=True):
            known.update({tag: label for _, tag in pieces})
        inside = {piece for pieces in parents[:len(around)] for piece in pieces}
        beyond = [piece for piece in children if piece not in inside]
        if around and beyond:
            occ.remove(beyond, recursive=True)
    occ.synchronize()
    return known


def _filled(gmsh, piece: tuple[int, int]) -> tuple[int, int]:
    """``piece`` without the voids that it encloses."""
    occ, (dim, tag) = gmsh.model.occ, piece
    _, loops = occ.getCurveLoops(tag) if dim == 2 else occ.getSurfaceLoops(tag)
    if len(loops) == 1:
        return piece

    def extent(parts):
        bounds = np.array([occ.getBoundingBox(dim - 1, part) for part in parts])
        return np.linalg.norm(bounds[:, 3:].max(axis=0) - bounds[:, :3].min(axis=0))

    outer = max(loops, key=extent).tolist()
    occ.remove([piece])
    new = (2, occ.addPlaneSurface([occ.addCurveLoop(outer)])) if dim == 2 else \
        (3, occ.addVolume([occ.addSurfaceLoop(outer)]))
    # what is left of the voids' walls would be meshed as well
    rest = [(dim - 1, part) for parts in loops for part in parts if part not in outer]
    occ.remove(rest, recursive=True)
    return new


def _clear(cells: Arrangement, centres, owners) -> np.ndarray:
    """Distance of each cell to the next one or to the end of the space around it, um."""
    outer = cells.radii[:, -1]
    clear = np.full(len(outer), cells.gap if cells.ecs == "tight" else outer.max())
    for i, centre in enumerate(cells.centres):
        apart = np.linalg.norm(centres - centre, axis=1)
        apart = np.where(apart > 0, apart - outer[owners] - outer[i], np.inf)
        clear[i] = min(clear[i], apart.min())
    if cells.ecs == "box" and not cells.periodic:
        clear = np.minimum(clear, (cells.lengths / 2 - np.abs(cells.centres)
                                   - outer[:, None]).min(axis=1))
    return clear


def _target(cells: Arrangement, size: float):
    """The edge length as a function of the point, and the smallest that it takes."""
    # all that the sizes in the box depend on
    centres, owners = cells.images(margin=size / GROWTH)
    inner, outer, dim = cells.radii[owners, 0], cells.radii[owners, -1], cells.dim
    finest = np.minimum(size, 2 * pi * inner / EDGES_A_CIRCLE)
    if cells.radii.shape[1] > 1:
        thinnest = np.diff(cells.radii, axis=1).min(axis=1)
        finest = np.minimum(finest, FLATTEST * thinnest[owners])
    if cells.periodic:
        # a cap that a face cuts off needs vertices of its own, or it is flat
        cut = smallest_cut(cells.centres, cells.radii, cells.lengths)
        finest = np.minimum(finest, CUT * cut[owners])
    floor = size if cells.ecs == "none" else FLATTEST * _clear(cells, centres, owners).min()

    def target(point):
        point = point[:dim]
        r = np.linalg.norm(centres - point, axis=1)
        layers = np.maximum(0, np.maximum(inner - r, r - outer))
        h = min(size, (finest + GROWTH * layers).min())
        if cells.ecs == "none":
            return h
        surfaces = np.abs(r - outer)
        if cells.ecs == "box" and not cells.periodic:  # a face that a cell crosses is no gap
            surfaces = np.append(surfaces, np.abs(cells.lengths / 2 - np.abs(point)).min())
        elif cells.ecs == "tight":
            surfaces = np.append(surfaces, abs((r - outer).min() - cells.gap))
        if len(surfaces) > 1:
            h = min(h, FLATTEST * np.partition(surfaces, 1)[:2].sum())
        return h

    return target, float(min(size, finest.min(), floor))


def _snapped(points: np.ndarray, cells: Arrangement) -> np.ndarray:
    """Vertices on the faces of the box exactly there, copies on opposite faces exactly equal."""
    dim, half = cells.dim, cells.lengths / 2
    near = 1e-7 * float(cells.lengths.max())
    for axis in range(dim):
        low, high = (np.flatnonzero(np.abs(points[:, axis] - s * half[axis]) < near)
                     for s in (-1, 1))
        points[low, axis], points[high, axis] = -half[axis], half[axis]
        shift = np.zeros(3)
        shift[axis] = cells.lengths[axis]
        distance, place = cKDTree(points[low] + shift).query(points[high])
        if len(low) != len(high) or not (distance < near).all():
            raise SolverError(f"{cells.name}: opposite faces do not match, expected a periodic "
                             "mesh (try another seed)")
        points[high] = points[low[place]] + shift
        points[high, axis] = half[axis]
    return points
