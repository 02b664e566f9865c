"""Signals of cells with smooth surfaces, which cut through the tetrahedra of a mesh.

Stairs of facets have moments and an area of their own: on a mesh whose edges are half a cell's
radius, the facets nearest to a sphere are as far from its signals as a sphere 8 % larger. Here a
cell is where a level function is positive (`cut_cells`).

Fields of the inside and the outside are modes of the box without walls, each restricted to its
side, as in `restricted` (cut cells, without the ghost penalties of Burman et al., Int. J. Numer.
Meth. Engng 104 (2015) 472: a few modes of the whole box are tame beyond the cut).

Derivatives by the level function are those of the sums over its pieces, from the states and adjoint
states at one shape, as in `graded`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.linalg

from ..basis.spectrum import decay_rates
from .blocks import Blocks
from .cut_cells import Grid, Pieces, Shape
from .graded import Adjoint, product
from .propagation import Basis, Sweep, Sweeps, signals
from .smooth import Smooth, scattered
from .walls import Walls

KEPT = 90, 60  # modes of the outside, and of each cell, at most; all where the boundary reflects
TOLD_APART = 1e-7  # of the largest mass: combinations of functions that a side still tells
STEP = 1e-5  # um: of the level at a vertex, for derivatives of the sums


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
