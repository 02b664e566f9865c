"""Cells with smooth surfaces in a mesh: what is inside, outside and between, within mesh cells.

A cell is where a level function is positive that is linear in each of the eight parts of a mesh
cell, so the surface is a polyhedron of many small triangles, and integrals over what is inside,
what is outside, and the surface between are sums over tetrahedra and triangles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ...mesh.checks import facets_of
from ...mesh.refinement import refined
from ...mesh.surfaces import Surface
from ...mesh.whole import WholeMesh

NEAREST = 1e-3  # of the size of a mesh cell: how near a vertex the surface may be, um over um
DIGITS = 7  # of coordinates (um) of vertices of a surface that are one
# points of second order in a tetrahedron (Hammer and Stroud) and a triangle, equal weights
_IN_TET = np.where(np.eye(4) > 0, 0.585410196624969, 0.138196601125011)
_IN_TRIANGLE = np.where(np.eye(3) > 0, 2 / 3, 1 / 6)


@dataclass(frozen=True, eq=False)
class Pieces:
    """What is inside of some tetrahedra, each with a level function that is linear in it.

    Matrices are between the four linear functions of the mesh cell that the tetrahedron lies in.

    Attributes:
        volume: ``(n,)`` um^3.
        mass: ``(n, 4, 4)``.
        position: ``(3, n, 4, 4)``.
        wall: ``(n, 4, 4)``, of the surface.
        triangles: ``(m, 3, 3)`` um, of the surface, normals outwards.
    """

    volume: np.ndarray
    mass: np.ndarray
    position: np.ndarray
    wall: np.ndarray
    triangles: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, places: np.ndarray, points: np.ndarray) -> Pieces:
        """Of levels ``(n, 4)``, none of them 0.

        Args:
            values: at the vertices of the tetrahedra.
            places: ``(n, 4, 4)`` barycentric coordinates of these in the mesh cell.
            points: ``(n, 4, 3)`` um, their coordinates.
        """
        n, corners, inside = len(values), np.concatenate([places, points], axis=-1), values > 0
        count = inside.sum(axis=1)
        volume, mass = np.zeros(n), np.zeros((n, 4, 4))
        position, wall = np.zeros((3, n, 4, 4)), np.zeros((n, 4, 4))
        surface = []

        def add(rows, tets, sign=1.0):
            x = tets[..., 4:]
            size = sign / 6 * np.abs(np.einsum("ni,ni->n", np.cross(
                x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]), x[:, 3] - x[:, 0]))
            at = np.einsum("qv,nvd->nqd", _IN_TET, tets)
            m = np.einsum("n,nqa,nqb->nqab", size / 4, at[..., :4], at[..., :4])
            volume[rows] += size
            mass[rows] += m.sum(axis=1)
            for j in range(3):
                position[j, rows] += np.einsum("nq,nqab->nab", at[..., 4 + j], m)

        def bound(rows, triangles):
            x = triangles[..., 4:]
            area = 0.5 * np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])
            at = np.einsum("qv,nvd->nqd", _IN_TRIANGLE, triangles[..., :4])
            wall[rows] += np.einsum("n,nqa,nqb->nab", np.linalg.norm(area, axis=1) / 3, at, at)
            # outwards: away from the vertices where the level is higher
            high = np.einsum("nv,nvd->nd", inside[rows] / count[rows, None], points[rows])
            turned = np.einsum("ni,ni->n", area, x.mean(axis=1) - high) < 0
            surface.append(np.where(turned[:, None, None], x[:, [0, 2, 1]], x))

        def crossings(rows, order, pairs):
            for i, j in pairs:
                a, b = values[rows, order[:, i]], values[rows, order[:, j]]
                share = (a / (a - b))[:, None]
                yield corners[rows, order[:, i]] * (1 - share) + corners[rows, order[:, j]] * share

        add(np.flatnonzero(count >= 3), corners[count >= 3])
        for number, first, sign in ((1, inside, 1.0), (3, ~inside, -1.0)):
            rows = np.flatnonzero(count == number)
            order = np.argsort(~first[rows], axis=1, kind="stable")
            cuts = list(crossings(rows, order, ((0, 1), (0, 2), (0, 3))))
            add(rows, np.stack([corners[rows, order[:, 0]], *cuts], axis=1), sign)
            bound(rows, np.stack(cuts, axis=1))
        rows = np.flatnonzero(count == 2)
        order = np.argsort(~inside[rows], axis=1, kind="stable")
        a, b = (corners[rows, order[:, k]] for k in range(2))
        a2, a3, b2, b3 = crossings(rows, order, ((0, 2), (0, 3), (1, 2), (1, 3)))
        for wedge in ((a, a2, a3, b), (a2, a3, b, b2), (a3, b, b2, b3)):
            add(rows, np.stack(wedge, axis=1))
        for half in ((a2, a3, b3), (a2, b3, b2)):
            bound(rows, np.stack(half, axis=1))
        return cls(volume, mass, position, wall, np.concatenate(surface))


class Grid:
    """Where level functions are asked, and the parts of mesh cells in which they are linear.

    Args:
        whole: the mesh.
        corners: ``(Nt, 4, 3)`` um, coordinates of the values of each mesh cell, in their order.
        refinements: of a mesh cell into parts, each into eight.

    Attributes:
        points: ``(n, 3)`` um from the centre of the box: vertices of the mesh come first.
        parts: ``(Nt, k, 4)`` which of them are the vertices of the parts of each mesh cell.
        places: ``(Nt, k, 4, 4)`` barycentric coordinates of these.
        size: um, of a mesh cell.
        rim: facets on the outer boundary.
    """

    def __init__(self, whole: WholeMesh, corners: np.ndarray, refinements: int = 1):
        points, parts = whole.points, whole.cells
        for _ in range(refinements):
            points, parts = refined(points, parts)
        self.whole, self.points = whole, points - whole.centre
        self.parts = parts.reshape(len(whole.cells), -1, 4)
        self.size = float(np.mean(whole.volumes) ** (1 / 3))
        self.rim = np.flatnonzero(whole.outer)
        frame = np.concatenate([corners - whole.centre, np.ones((*corners.shape[:2], 1))], axis=-1)
        at = self.points[self.parts]
        at = np.concatenate([at, np.ones((*at.shape[:3], 1))], axis=-1)
        self.places = np.einsum("tpvd,tdb->tpvb", at, np.linalg.inv(frame))
        edges = self.parts.reshape(-1, 4)[:, [0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3]].reshape(-1, 2)
        self._edges = np.unique(np.sort(edges, axis=1), axis=0)

    def connected(self, values: np.ndarray) -> np.ndarray:
        """Levels of which what is inside is in one piece, the largest, without voids."""
        inside = values > 0
        for largest in (inside, ~inside):
            a, b = self._edges[(largest[self._edges]).all(axis=1)].T
            graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(len(values),) * 2)
            _, part = connected_components(graph, directed=False)
            sizes = np.bincount(part[largest], minlength=part.max() + 1)
            values = np.where(largest & (part != sizes.argmax()), -values, values)
        return values


class Shape:
    """One cell, as its level function cuts it out of a mesh: its largest piece, without voids.

    Args:
        grid: of the mesh.
        values: ``(points,)`` levels at `Grid.points`, positive inside, about distances, um.

    Attributes:
        volume: um^3.
        triangles: ``(m, 3, 3)`` um from the centre of the box, of the surface.
        normals: ``(m, 3)`` um^2, theirs, as long as their area.
        area: um^2, of these.
        full, cut: mesh cells that are all inside, and others that are so in part.
        levels: ``(cut, k, 4)`` at the vertices of their parts.
    """

    def __init__(self, grid: Grid, values: np.ndarray):
        nearest = NEAREST * grid.size / grid.parts.shape[1] ** (1 / 3)
        values = np.where(np.abs(values) < nearest, np.where(values < 0, -nearest, nearest), values)
        values = grid.connected(values)
        levels = values[grid.parts]
        low, high = levels.min(axis=(1, 2)), levels.max(axis=(1, 2))
        self.full, self.cut = np.flatnonzero(low > 0), np.flatnonzero((low < 0) & (high > 0))
        self.levels = levels[self.cut]
        (n, k), whole = self.levels.shape[:2], grid.whole
        pieces = Pieces.of(self.levels.reshape(-1, 4), grid.places[self.cut].reshape(-1, 4, 4),
                           grid.points[grid.parts[self.cut]].reshape(-1, 4, 3))
        volumes = pieces.volume.reshape(n, k).sum(axis=1)
        self.share = volumes / whole.volumes[self.cut]
        self.mass = pieces.mass.reshape(n, k, 4, 4).sum(axis=1)
        self.position = pieces.position.reshape(3, n, k, 4, 4).sum(axis=2)
        self.wall = pieces.wall.reshape(n, k, 4, 4).sum(axis=1)
        self.volume = float(volumes.sum() + whole.volumes[self.full].sum())
        self.triangles = x = pieces.triangles
        self.normals = 0.5 * np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])
        self.area = float(np.linalg.norm(self.normals, axis=1).sum())
        self._values = values
        self.rim = _share_of_triangle(values[whole.facets[grid.rim]])

    def rim_area(self, grid: Grid) -> float:
        """Of what of it lies on the outer boundary, um^2."""
        return float(self.rim @ grid.whole.areas[grid.rim])

    def surface(self, grid: Grid, name: str) -> Surface:
        """Closed, with what of it lies on the outer boundary; from the centre of the box."""
        triangles = self.triangles
        if self.rim.any():
            triangles = np.concatenate([triangles, _caps(grid, self._values)])
        points, which = np.unique(np.round(triangles.reshape(-1, 3), DIGITS), axis=0,
                                  return_inverse=True)
        which = which.reshape(-1, 3)
        whole = (which != np.roll(which, 1, axis=1)).all(axis=1)
        return Surface(points, which[whole], name)


def _caps(grid: Grid, values: np.ndarray) -> np.ndarray:
    """What of the outer boundary lies where levels are positive, ``(m, 3, 3)`` um, outwards."""
    parts = grid.parts.reshape(-1, 4)
    facets, sides = facets_of(parts)
    outer = np.flatnonzero(sides[:, 1] < 0)
    facets, x = facets[outer], grid.points
    middle = x[parts[sides[outer, 0]]].mean(axis=1)
    a, b, c = (x[facets[:, k]] for k in range(3))
    turned = np.einsum("ni,ni->n", np.cross(b - a, c - a), a - middle) < 0
    facets = np.where(turned[:, None], facets[:, [0, 2, 1]], facets)
    count = (values[facets] > 0).sum(axis=1)
    found = [x[facets[count == 3]]]
    for number in (1, 2):
        some = facets[count == number]
        inside = values[some] > 0
        odd = (inside if number == 1 else ~inside).argmax(axis=1)
        rows = np.arange(len(some))
        a, b, c = (some[rows, (odd + k) % 3] for k in range(3))
        ab, ac = (x[a] + (values[a] / (values[a] - values[q]))[:, None] * (x[q] - x[a])
                  for q in (b, c))
        if number == 1:
            found.append(np.stack([x[a], ab, ac], axis=1))
        else:
            found += [np.stack([ab, x[b], x[c]], axis=1), np.stack([ab, x[c], ac], axis=1)]
    return np.concatenate(found)


def _share_of_triangle(values: np.ndarray) -> np.ndarray:
    """Of the areas of triangles where a linear function is positive, ``(n,)``."""
    inside = values > 0
    count = inside.sum(axis=1)
    odd = np.where(count == 1, inside.argmax(axis=1), (~inside).argmax(axis=1))
    rows = np.arange(len(values))
    a, b, c = (values[rows, (odd + k) % 3] for k in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        small = a * a / ((a - b) * (a - c))
    return np.select([count == 0, count == 1, count == 2], [0.0, small, 1 - small], 1.0)
