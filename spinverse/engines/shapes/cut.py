"""Signals of cells with smooth surfaces, which cut through the tetrahedra of a mesh.

Stairs of facets have moments and an area of their own: on a mesh whose edges are half a cell's
radius, the facets nearest to a sphere are as far from its signals as a sphere 8 % larger. Here a
cell is where a level function is positive. That is linear in each of the eight parts of a mesh
cell, so the surface is a polyhedron of many small triangles, and integrals over what is inside,
what is outside, and the surface between are sums over tetrahedra and triangles within a mesh cell.

Fields of the inside and the outside are modes of the box without walls, each restricted to its
side, as in `restricted` (cut cells, without the ghost penalties of Burman et al., Int. J. Numer.
Meth. Engng 104 (2015) 472: a few modes of the whole box are tame beyond the cut).

Derivatives by the level function are those of these sums, from the states and adjoint states at one
shape, as in `graded`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.linalg
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ...mesh.checks import facets_of
from ...mesh.refinement import refined
from ...mesh.surfaces import Surface
from ...mesh.whole import WholeMesh
from ..basis.spectrum import decay_rates
from .blocks import Blocks
from .graded import Adjoint, product
from .propagation import Basis, Sweep, Sweeps, signals
from .smooth import Smooth, scattered
from .walls import Walls

KEPT = 90, 60  # modes of the outside, and of each cell, at most; all where the boundary reflects
TOLD_APART = 1e-7  # of the largest mass: combinations of functions that a side still tells
NEAREST = 1e-3  # of the size of a mesh cell: how near a vertex the surface may be, um over um
DIGITS = 7  # of coordinates (um) of vertices of a surface that are one
STEP = 1e-5  # likewise: of the level at a vertex, for derivatives of the sums
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


class CutModel:
    """Signals of cells apart from each other, um^3 times density; of a box that is not periodic.

    Args:
        blocks: matrices of the cells and facets, without terms of the user's.
        walls: permeabilities.
        smooth: functions that fields are expanded in.
        grid: of the mesh.
    """

    def __init__(self, blocks: Blocks, walls: Walls, smooth: Smooth, grid: Grid):
        self.blocks, self.walls, self.smooth, self.grid = blocks, walls, smooth, grid
        self._rim_nodes = smooth.node.ravel()[blocks.nodes[grid.rim, 0]]
        self._rim = blocks.exchange[grid.rim, 0, :, 0] * float(walls.absorbing)
        B, nv = smooth.outside, len(smooth.outside)
        rho = blocks.density_of(0)
        self._all = [rho * B.T @ (matrix @ B) for matrix in (
            scattered(smooth.node, blocks.decay_of(0), nv)
            + scattered(self._rim_nodes, walls.outer * self._rim, nv),
            *(scattered(smooth.node, values, nv) for values in (blocks.mass, *blocks.position)))]
        self._load = rho * (scattered(smooth.node, blocks.mass, nv) @ B).sum(axis=0)

    def shapes(self, levels: Sequence[np.ndarray]) -> list[Shape]:
        """Of the level functions ``(points,)`` of each cell."""
        return [Shape(self.grid, values) for values in levels]

    def permeability(self, label: int) -> float:
        """What multiplies jumps at the wall of a cell, um/ms times density."""
        a, b = (float(self.blocks.density_of(k)) for k in (0, label))
        return float(np.ravel(self.walls.wall)[label - 1 if np.size(self.walls.wall) > 1 else 0]
                     * 2 * a * b / (a + b))

    def basis(self, shapes: Sequence[Shape]) -> tuple[Basis, list[np.ndarray]]:
        """The coupled modes, and their coefficients ``(functions, K)``, of the outside first."""
        outer = [*self._all, self._load]
        found, couplings = [], []
        for label, shape in enumerate(shapes, 1):
            parts, load, wall, used = self._sums(shape, label)
            inner, lost = ([rho * (B.T @ (matrix @ B)) for matrix in matrices]
                           for rho, B, matrices in zip(
                (self.blocks.density_of(k) for k in (label, 0)),
                (self.smooth.inside[used], self.smooth.outside[used]), parts, strict=True))
            Bi, Bo = self.smooth.inside[used], self.smooth.outside[used]
            inner[0] = inner[0] + Bi.T @ (wall @ Bi)
            lost[0] = lost[0] - Bo.T @ (wall @ Bo)
            rho = self.blocks.density_of(0)
            outer = [a - b for a, b in zip(outer, (*lost, rho * (load @ Bo)), strict=True)]
            found.append((*inner, self.blocks.density_of(label) * (load @ Bi)))
            couplings.append(-Bo.T @ (wall @ Bi))
        kept = KEPT if self.walls.absorbing else (None, None)
        sides = [_side(*matrices, kept[min(k, 1)]) for k, matrices in enumerate((outer, *found))]
        ends = np.cumsum([0, *(len(rates) for rates, *_ in sides)])
        A = np.diag(np.concatenate([rates for rates, *_ in sides]))
        for k, C in enumerate(couplings, 1):
            here, block = slice(ends[k], ends[k + 1]), sides[0][1].T @ C @ sides[k][1]
            A[: ends[1], here], A[here, : ends[1]] = block, block.T
        rates, Q = scipy.linalg.eigh(A, driver="evd", check_finite=False, overwrite_a=True)
        start = Q.T @ np.concatenate([load for *_, load, _ in sides])
        basis = Basis(decay_rates(rates), start, Q, [position for *_, position in sides], float)
        return basis, [F @ Q[a:b] for (_, F, *_), a, b in zip(sides, ends[:-1], ends[1:],
                                                             strict=True)]

    def _sums(self, shape: Shape, label: int) -> tuple:
        """Sparse matrices of what is inside, for either side's decay, between nodes that count."""
        blocks, cells = self.blocks, np.concatenate([shape.full, shape.cut])
        used, local = np.unique(self.smooth.node[cells], return_inverse=True)
        local, n = local.reshape(-1, 4), len(used)

        def put(whole, part):
            return scattered(local, np.concatenate([whole[shape.full], part]), n)

        mass = put(blocks.mass, shape.mass)
        positions = [put(x, part) for x, part in zip(blocks.position, shape.position, strict=True)]
        wall = scattered(local[len(shape.full):], self.permeability(label) * shape.wall, n)
        there = np.flatnonzero(shape.rim > 0)
        place = np.searchsorted(used, self._rim_nodes[there])
        sides = []
        for k, kappa in ((label, self.permeability(label)), (0, self.walls.outer)):
            decay = blocks.decay_of(k)
            A = put(decay, decay[shape.cut] * shape.share[:, None, None])
            if len(there) and self.walls.absorbing:
                A = A + scattered(place, kappa * shape.rim[there, None, None] * self._rim[there], n)
            sides.append([A, mass, *positions])
        return sides, np.asarray(mass.sum(axis=0)).ravel(), wall, used

    def signals(self, shapes: Sequence[Shape], sweeps: Sweeps) -> np.ndarray:
        """``(N,)`` complex."""
        return signals(sweeps, self.basis(shapes)[0])

    def jacobian(self, shapes: Sequence[Shape], slopes: np.ndarray, sweeps: Sweeps,
                 mine: Callable[[int], bool] = lambda k: True) -> tuple[np.ndarray, ...]:
        """Signals ``(N,)``, and derivatives of their magnitudes, ``(N, cells n)``.

        And of the areas of the surfaces, ``(cells n,)`` um^2.

        Args:
            shapes: of the cells.
            slopes: ``(points, n)`` derivatives of a level function by what counts.
            sweeps: the measurements.
            mine: says whether to do the k-th part of the work; rows of others stay zero.
        """
        basis, fields = self.basis(shapes)
        slope = _Slopes(self, shapes, slopes, fields)
        S, J = np.zeros(sweeps.number, complex), np.zeros((sweeps.number, slope.number))
        for k, sweep in enumerate(sweeps.parts):
            if mine(k):
                S[sweep.rows], J[sweep.rows] = Adjoint(slope, basis, slope.modes, sweep).result()
        if len(sweeps.still) and mine(len(sweeps.parts)):
            time, which = np.unique(sweeps.echo_time, return_inverse=True)
            sweep = Sweep((), 0, np.arange(len(time)), np.zeros(len(time)), time)
            values, found = Adjoint(slope, basis, slope.modes, sweep).result()
            S[sweeps.still], J[sweeps.still] = values[which], found[which]
        return S, J, np.concatenate(slope.areas)


def _side(A: np.ndarray, M: np.ndarray, *rest) -> tuple:
    """The modes of one side: rates, coefficients of the functions, load, positions."""
    *X, load, K = rest
    mass, Q = scipy.linalg.eigh(M, driver="evd", check_finite=False)
    told = mass > TOLD_APART * mass[-1]
    Q = Q[:, told] / np.sqrt(mass[told])
    rates, Z = scipy.linalg.eigh(Q.T @ A @ Q, driver="evd", check_finite=False)
    F = Q @ Z[:, :K]
    return rates[:K], F, F.T @ load, np.stack([F.T @ x @ F for x in X])


class _Slopes:
    """What `Adjoint` asks: derivatives of the operators by what moves the surfaces.

    Attributes:
        number: of them, over all cells.
        modes: values of the modes at the nodes of the mesh cells that are cut.
        areas: derivatives of the area of each surface, ``(n,)`` um^2.
    """

    mass_floor = 0.0

    def __init__(self, model: CutModel, shapes: Sequence[Shape], slopes: np.ndarray,
                 fields: list[np.ndarray]):
        self._parts, rows, positions, first = [], [], [], 0
        self.areas = []
        self.n = slopes.shape[1]
        self.number = self.n * len(shapes)
        for label, shape in enumerate(shapes, 1):
            mass, volume, position, wall = _moved(model.grid, shape, slopes)
            self.areas.append(wall.sum(axis=(0, 2, 3)))  # the four functions add up to 1
            nodes, local = np.unique(model.smooth.node[shape.cut], return_inverse=True)
            local = local.reshape(-1, 4) + first
            at = [local, local + len(nodes)]
            first += 2 * len(nodes)
            rows += [model.smooth.outside[nodes] @ fields[0],
                     model.smooth.inside[nodes] @ fields[label]]
            densities = [-float(model.blocks.density_of(0)),
                         float(model.blocks.density_of(label))]
            decays = [model.blocks.decay_of(k)[shape.cut] for k in (0, label)]
            share = volume / model.blocks.whole.volumes[shape.cut, None]
            positions.append(position)
            self._parts.append(SimpleNamespace(
                at=at, densities=densities, mass=mass, exact=_rows(mass).astype(float),
                decays=[decay.astype(np.float32) for decay in decays],
                share=share.astype(np.float32), light=_rows(mass),
                wall=_rows(model.permeability(label) * wall)))
        self.modes = np.vstack(rows)
        # one after the other; `contract` takes them apart
        self.blocks: Any = SimpleNamespace(position=np.concatenate(positions, axis=1))

    def mass_term(self, p: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Re p . dM u for values at the nodes, ``(m, number)``."""
        found = []
        for part in self._parts:
            products = sum(rho * (p[at][:, :, None] * u[at][:, None, :]).real
                           for rho, at in zip(part.densities, part.at, strict=True))
            found.append(products.reshape(-1, p.shape[1]).T @ part.exact)
        return np.hstack(found)

    def contract(self, P: np.ndarray, U: np.ndarray, slope: np.ndarray, weight: np.ndarray, m: int,
                 position: Sequence[np.ndarray] | None = None,
                 strength: np.ndarray | None = None) -> np.ndarray:
        """As of `graded.Shares.contract`, ``(m, number)``."""
        weight, found, first = weight.astype(np.float32), [], 0
        times = P.shape[1] // m

        def summed(p, u):
            """Sums over the times of Re p_a u_b, ``(m, cells 16)``."""
            a = _by_measurement(p, times, m)
            b = _by_measurement(u.conj(), times, m)
            products = a @ b.swapaxes(-1, -2)
            return products.swapaxes(0, 1).reshape(m, -1)

        for part in self._parts:
            total = np.zeros((m, self.n), np.float32)
            p, u, v = ([x[at] for at in part.at] for x in (P, U, slope))
            for k, rho in enumerate(part.densities):
                q = p[k] * weight
                decayed = np.einsum("tac,tac->tc", q, product(part.decays[k], u[k])).real
                total -= rho * (decayed.reshape(-1, times, m).sum(axis=1).T @ part.share)
                total -= rho * (summed(q, v[k]) @ part.light)
                if position is not None:
                    here = position[0][first:first + len(q)]
                    total -= rho * (summed(q, u[k] * (1j * strength).astype(u[k].dtype))
                                    @ _rows(here))
            total -= summed((p[1] - p[0]) * weight, u[1] - u[0]) @ part.wall
            first += len(part.share)
            found.append(total)
        return np.hstack(found)


def _by_measurement(x: np.ndarray, times: int, m: int) -> np.ndarray:
    """``(t, 4, times m)`` complex as ``(t, m, 4, 2 times)`` real."""
    x = np.ascontiguousarray(x.reshape(*x.shape[:2], times, m).transpose(0, 3, 1, 2))
    return x.view(x.real.dtype)


def _rows(matrices: np.ndarray) -> np.ndarray:
    """``(t, n, 4, 4)`` as ``(t 16, n)`` in single precision."""
    return np.ascontiguousarray(matrices.transpose(0, 2, 3, 1), np.float32).reshape(
        -1, matrices.shape[1])


def _moved(grid: Grid, shape: Shape, slopes: np.ndarray) -> tuple:
    """Derivatives of mass, volume, positions and wall in the cut cells, cells first.

    By differences in the level at each vertex of each part that is cut: what is cut stays so.
    """
    cell, part = np.nonzero((shape.levels.min(axis=2) < 0) & (shape.levels.max(axis=2) > 0))
    levels, which = shape.levels[cell, part], grid.parts[shape.cut[cell], part]
    places, points = grid.places[shape.cut[cell], part], grid.points[which]
    step, n, t = STEP * grid.size, slopes.shape[1], len(shape.cut)
    mass, wall = np.zeros((2, t, n, 16))
    volume, position = np.zeros((t, n)), np.zeros((3, t, n, 16))
    starts = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])  # cells are in order

    def collect(into, values, by):
        found = values.reshape(len(cell), 1, -1) * by[:, :, None]
        into[cell[starts]] += np.add.reduceat(found, starts, axis=0).reshape(
            -1, *into.shape[1:])

    for vertex in range(4):
        up, down = (Pieces.of(levels + sign * step * np.eye(4)[vertex], places, points)
                    for sign in (1, -1))
        by = slopes[which[:, vertex]] / (2 * step)
        collect(mass, up.mass - down.mass, by)
        collect(wall, up.wall - down.wall, by)
        collect(volume, up.volume - down.volume, by)
        for axis in range(3):
            collect(position[axis], up.position[axis] - down.position[axis], by)
    return (mass.reshape(t, n, 4, 4), volume, position.reshape(3, t, n, 4, 4),
            wall.reshape(t, n, 4, 4))
