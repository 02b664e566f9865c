"""Signals of graded shapes: every cell belongs to the inside by a share, with derivatives.

A continuous field on the whole mesh for the inside and one for the outside, with matrices weighted
by the share c of each cell, or by 1 - c. They exchange through every facet with the permeability
wall [c]^2. Where all shares are 0 or 1 this is a partition with walls; in between, a differentiable
path from one to the next. The derivative of every measurement with respect to every share comes
from one sweep back in time (continuous adjoint, midpoints of the steps): with the adjoint state p,

    dS = -int p . (dA + i g dX) u + p . dM u' dt + ends,

and waveforms that are mirror images need their first half only. Sums over facets and cells run in
single precision; signals do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import scipy.linalg
import scipy.sparse

from ..basis.spectrum import decay_rates
from .blocks import Blocks
from .drift import DriftAdjoint, DriftSweeps, DriftSystem
from .propagation import Basis, Run, Sweep, Sweeps, at_rest, received
from .smooth import Smooth, nodes_of, scattered
from .walls import Walls

FLOOR = 1e-4  # share of a field where it should not be
RIM = 0.75  # of the permeability of outer facets: cells of a broken mesh add their resistance
_GAUSS = np.polynomial.legendre.leggauss(5)
# shares of a time without gradient: fast modes live near its ends
_ENDS = np.array([0.0, 1e-4, 5e-4, 0.002, 0.008, 0.03, 0.12, 0.5])


class GradedModel:
    """Signals of shares of cells, um^3 times density, and derivatives of their magnitudes.

    Args:
        blocks: matrices of the cells and facets.
        walls: permeabilities.
        modes: number of modes.
        mass_floor: share of the mass that is always there.
        smooth: functions that the fields are expanded in; None: any at the nodes.
    """

    def __init__(self, blocks: Blocks, walls: Walls, modes: int = 160, mass_floor: float = FLOOR,
                 smooth: Smooth | None = None):
        self.blocks, self.walls, self.modes, self.mass_floor = blocks, walls, modes, mass_floor
        self.smooth = smooth
        whole = self.whole = blocks.whole
        cells, n = blocks.mass.shape[:2]
        inner = self.inner = np.flatnonzero(~whole.outer)
        rim = np.flatnonzero(whole.outer)
        self.node = nodes_of(blocks)
        node, self.num_nodes = self.node.ravel(), int(self.node.max()) + 1
        self.jump = _sparse(np.repeat([[1.0, -1.0]], len(inner), axis=0), whole.sides[inner],
                            cells)
        self._rim_cell = _sparse(np.ones((len(rim), 1)), whole.sides[rim, :1], cells)
        # between nodes on the facets: of one field, and of two that face each other
        self._density = blocks.density_of(np.array([1, 0]))  # inside and outside
        a, b = self._density
        wall = np.full(len(whole.outer), walls.first)
        if walls.factor is not None:
            wall *= walls.factor
        facets = blocks.exchange * np.reshape(wall * 2 * a * b / (a + b), (-1, 1, 1, 1, 1))
        at_walls = None if blocks.at_walls is None else blocks.at_walls[0]
        if at_walls is not None:  # where densities differ, terms of the user's are about right
            facets = facets + np.sqrt(a * b) * at_walls
        self._own = 0.5 * (facets[inner, 0, :, 0] + facets[inner, 1, :, 1])
        self._other = 0.5 * (facets[inner, 0, :, 1] + facets[inner, 1, :, 0])
        self._facet = node[blocks.nodes[inner, 0]]
        out = (blocks.exchange if walls.absorbing else 0 * blocks.exchange)[rim, 0, :, 0]
        more = [extra if extra is None else extra[rim, 0, :, 0]
                for extra in (at_walls, blocks.at_open)]
        self._outflow = [kappa * out + (0.0 if extra is None else extra) for kappa, extra in zip(
            (wall[rim, None, None], RIM * walls.outer), more, strict=True)]
        self._rim = node[blocks.nodes[rim, 0]]
        self._decays = [blocks.decay_of(label) for label in (1, 0)]
        if blocks.at_open is not None:  # the nodes of the two sides are one
            where = blocks.nodes[inner, 0]
            values = blocks.at_open[inner].sum(axis=(1, 3))
            c = where[:, :1, None] // n
            self._decays = [decay.copy() for decay in self._decays]
            for decay in self._decays:
                np.add.at(decay, (c, where[:, :, None] % n, where[:, None, :] % n), values)

    @property
    def kind(self) -> type:
        """Of the sweeps that it takes."""
        return self.blocks.kind

    def basis(self, c: np.ndarray, dtype=float) -> tuple[Basis, np.ndarray]:
        """The modes at shares ``(Nt,)``, and their values at the nodes, ``(2 Nv, K)``.

        The inside comes first.
        """
        A, mass = self._operators(c)
        X = [scipy.sparse.block_diag([self._put(self.node, values, weight)
                                      for weight in self._mass_weights(c)], "csr")
             for values in self.blocks.position]
        P = self._functions
        A, M = (matrix.toarray() if P is None else P.T @ (matrix @ P) for matrix in (A, mass))
        K = min(self.modes, len(A))
        some = {"subset_by_index": [0, K - 1]} if K < len(A) else {}
        rates, modes = scipy.linalg.eigh(A, M, check_finite=False, **some)
        modes = modes if P is None else P @ modes
        positions = np.stack([modes.T @ (x @ modes) for x in X])
        return Basis(decay_rates(rates), (mass @ modes).sum(axis=0), np.eye(K), [positions],
                     dtype), modes

    @cached_property
    def _functions(self) -> np.ndarray | None:
        """Of both fields at the nodes, ``(2 Nv, functions)``."""
        if self.smooth is None:
            return None
        return scipy.linalg.block_diag(self.smooth.inside, self.smooth.outside)

    def _mass_weights(self, c: np.ndarray) -> list[np.ndarray]:
        return [rho * (self.mass_floor + (1 - self.mass_floor) * share)
                for share, rho in zip((c, 1 - c), self._density, strict=True)]

    def _put(self, where: np.ndarray, values: np.ndarray,
             weight: np.ndarray) -> scipy.sparse.csr_matrix:
        return scattered(where, values * weight[:, None, None], self.num_nodes)

    def _operators(self, c: np.ndarray) -> tuple:
        """Decay and mass between the nodes, ``(2 Nv, 2 Nv)``, sparse."""
        put, walls = self._put, (self.jump @ c) ** 2
        own, other = (put(self._facet, F, walls) for F in (self._own, self._other))
        inside, outside = (
            put(self.node, decay, rho * (FLOOR + (1 - FLOOR) * share))
            + put(self._rim, outflow, rho * (self._rim_cell @ share)) + own
            for share, rho, decay, outflow in zip(
                (c, 1 - c), self._density, self._decays, self._outflow, strict=True))
        A = scipy.sparse.bmat([[inside, other], [other.T, outside]], "csr")
        M = scipy.sparse.block_diag([put(self.node, self.blocks.mass, weight)
                                     for weight in self._mass_weights(c)], "csr")
        return A, M

    def system(self, c: np.ndarray) -> DriftSystem:
        """The operators of a periodic box at shares ``(Nt,)``; nodes as of `basis`."""
        A, M = (matrix.toarray() for matrix in self._operators(c))
        n, half = len(A), self.num_nodes
        fields = [(here * half + self.node, self._density[here] * (FLOOR + (1 - FLOOR) * share))
                  for here, share in enumerate((c, 1 - c))]
        where = np.concatenate([node for node, _ in fields])
        rows, columns = (np.broadcast_to(a, (*where.shape, where.shape[1])).ravel()
                         for a in (where[:, :, None], where[:, None, :]))

        def sparse(of_two, axis):
            values = np.concatenate([share[:, None, None] * values[axis] for (_, share), values
                                     in zip(fields, of_two, strict=True)])
            return scipy.sparse.csr_matrix((values.ravel(), (rows, columns)), shape=(n, n))

        blocks = self.blocks
        return DriftSystem(A, M, [sparse(blocks.drift_of_two, j) for j in range(3)],
                           [sparse(blocks.square_of_two, j) for j in range(6)], blocks.fastest)

    def signals(self, c: np.ndarray, sweeps: Sweeps | DriftSweeps) -> np.ndarray:
        """``(N,)`` complex, for shares ``(Nt,)``."""
        if isinstance(sweeps, DriftSweeps):
            return self.system(c).signals(sweeps)
        basis, _ = self.basis(c)
        result = at_rest(sweeps, basis)
        for sweep in sweeps.parts:  # as those of `jacobian`, to rounding: steps compare them
            result[sweep.rows] = received(basis, sweep, forward(basis, sweep)[0])
        return result

    def jacobian(self, c: np.ndarray, sweeps: Sweeps | DriftSweeps,
                 mine: Callable[[int], bool] = lambda k: True,
                 cells: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Signals ``(N,)``, and derivatives of their magnitudes by the shares, ``(N, n)``.

        Args:
            c: ``(Nt,)``.
            sweeps: the measurements.
            mine: says whether to do the k-th part of the work; rows of others stay zero.
            cells: whose shares count; all of them if not given.
        """
        shares = Shares(self, c, np.arange(len(c)) if cells is None else cells)
        if isinstance(sweeps, DriftSweeps):
            return self._drifting(c, sweeps, mine, shares)
        basis, modes = self.basis(c)
        modes = modes[shares.nodes]
        S, J = np.zeros(sweeps.number, complex), np.zeros((sweeps.number, len(shares.cells)))
        for k, sweep in enumerate(sweeps.parts):
            if mine(k):
                S[sweep.rows], J[sweep.rows] = Adjoint(shares, basis, modes, sweep).result()
        if len(sweeps.still) and mine(len(sweeps.parts)):
            time, which = np.unique(sweeps.echo_time, return_inverse=True)
            sweep = Sweep((), 0, np.arange(len(time)), np.zeros(len(time)), time)
            values, slopes = Adjoint(shares, basis, modes, sweep).result()
            S[sweeps.still], J[sweeps.still] = values[which], slopes[which]
        return S, J

    def _drifting(self, c: np.ndarray, sweeps: DriftSweeps, mine: Callable[[int], bool],
                  shares: Shares) -> tuple[np.ndarray, np.ndarray]:
        """`jacobian` of a periodic box; a part of the work is one direction of a waveform."""
        S, J = np.zeros(sweeps.number, complex), np.zeros((sweeps.number, len(shares.cells)))
        directions = sweeps.directions if len(sweeps.directions) else np.eye(3)[:1]
        bases = self.system(c).bases(directions)
        work = [(which, rows, strength, sweep.pieces, sweep.fold) for sweep in sweeps.parts
                for which, rows, strength in zip(sweep.which, sweep.rows, sweep.strength,
                                                 strict=True)]
        for time in np.unique(sweeps.echo_time):
            rows = sweeps.still[sweeps.echo_time == time]
            work.append((0, rows, np.zeros(1), ((float(time), 0.0),), 0))
        for k, (which, rows, strength, pieces, fold) in enumerate(work):
            if mine(k):
                S[rows], J[rows] = DriftAdjoint(
                    shares, bases.of(np.array([which])), directions[which], pieces, fold,
                    strength).result()
        return S, J

    @cached_property
    def _single(self) -> tuple:
        """Matrices of cells, times what their weights change with a share, and of facets.

        The first two are of the decay inside and outside; the last one is what terms of the user's
        add to an exchange of differences; None without.
        """
        rest = self._own + self._other
        scaled = (*((1 - FLOOR) * decay for decay in self._decays),
                  (1 - self.mass_floor) * self.blocks.mass, self._own)
        return (*(a.astype(np.float32) for a in scaled),
                rest.astype(np.float32) if self.blocks.at_walls is not None else None)


class Shares:
    """Derivatives of the operators by the shares of some cells.

    Args:
        model: of the shares.
        c: ``(Nt,)``.
        cells: ``(n,)`` those that count.

    Attributes:
        nodes: those of `GradedModel.basis` that count.
    """

    def __init__(self, model: GradedModel, c: np.ndarray, cells: np.ndarray):
        self.cells, self.blocks, self.mass_floor = cells, model.blocks, model.mass_floor
        every = len(cells) == len(c)
        jump, rim = model.jump[:, cells], model._rim_cell[:, cells]
        walls = model.jump @ c
        # facets between equal shares change nothing to first order
        facets = np.flatnonzero((walls != 0) & (jump.getnnz(axis=1) > 0))
        outer = np.flatnonzero(rim.getnnz(axis=1) > 0)
        self._jump = (scipy.sparse.diags(2 * walls[facets]) @ jump[facets]).astype(np.float32)
        self._rim_cell = rim[outer].astype(np.float32)
        used = np.unique(np.concatenate([x.ravel() for x in (
            model.node[cells], model._facet[facets], model._rim[outer])]))
        self.nodes = np.concatenate([used, used + model.num_nodes])
        self._node, self._facet, self._rim = (np.searchsorted(used, x) for x in (
            model.node[cells], model._facet[facets], model._rim[outer]))
        # the outside loses what the inside gains
        self._signs = model._density * [1, -1]

        def chosen(values, which):
            return values if every else values[which]

        inside, outside, self._light, own, rest = model._single
        self._decays = [chosen(decay, cells) for decay in (inside, outside)]
        self._mass, self._light = chosen(model.blocks.mass, cells), chosen(self._light, cells)
        self._own, self._rest = own[facets], None if rest is None else rest[facets]
        self._outflow = [outflow[outer].astype(np.float32) for outflow in model._outflow]

    def mass_term(self, p: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Re p . dM u for values at the `nodes`, ``(m, n)``."""
        total = np.zeros((len(self.cells), p.shape[1]))
        for sign, a, b in zip(self._signs, *(np.split(x, 2) for x in (p, u)), strict=True):
            right = product(self._mass, b[self._node])
            total += sign * np.einsum("tnc,tnc->tc", a[self._node], right).real
        return (1 - self.mass_floor) * total.T

    def contract(self, P: np.ndarray, U: np.ndarray, slope: np.ndarray,
                 weight: np.ndarray, m: int, position: Sequence[np.ndarray] | None = None,
                 strength: np.ndarray | None = None,
                 square: Sequence[np.ndarray] | None = None,
                 strength_squared: np.ndarray | None = None) -> np.ndarray:
        """-sum of weights Re p . ((dA + i g dX) u + dM u'), ``(m, n)``.

        Args:
            P, U, slope: p, u and u' at the `nodes`, ``(2 nodes, k m)`` complex, single precision.
            weight: ``(k m,)`` of the times.
            m: number of measurements, which come one after the other at each time.
            position: inside and outside, ``(Nt, p, p)`` along the gradient, times what their
                weights change with a share; None at rest. In a periodic box the drift.
            strength: ``(k m,)`` g, or Q.
            square, strength_squared: what Q^2 multiplies there, likewise, and Q^2.
        """
        single = np.float32
        parts = [np.split(x, 2) for x in (P, U, slope)]
        total = np.zeros((len(self.cells), P.shape[1]), single)
        for k, (sign, decay, p, u, du) in enumerate(zip(self._signs, self._decays, *parts,
                                                        strict=True)):
            there = u[self._node]
            right = product(decay, there) + product(self._light, du[self._node])
            if position is not None:
                right += product(position[k][self.cells].astype(single), there) * (
                    1j * strength).astype(right.dtype)
            if square is not None:
                right += product(square[k][self.cells].astype(single),
                                 there) * strength_squared.astype(single)
            total -= single(sign) * np.einsum("tnc,tnc->tc", p[self._node], right).real
        (p, q), (u, v) = ([x[self._facet] for x in part] for part in parts[:2])
        f = np.einsum("fmc,fmc->fc", p - q, product(self._own, u - v)).real
        if self._rest is not None:
            f += np.einsum("fmc,fmc->fc", p, product(self._rest, v)).real
            f += np.einsum("fmc,fmc->fc", q, product(self._rest.transpose(0, 2, 1), u)).real
        total -= self._jump.T @ f
        for sign, outflow, p, u in zip(self._signs, self._outflow, *parts[:2], strict=True):
            if np.any(outflow):
                f = (p[self._rim] * product(outflow, u[self._rim])).real.sum(axis=1)
                total -= self._rim_cell.T @ (single(sign) * f)
        total *= weight.astype(single)
        return total.reshape(len(self.cells), -1, m).sum(axis=1).T


class Derivatives(Protocol):
    """What `Adjoint` asks: see `Shares`."""

    blocks: Blocks
    mass_floor: float

    def mass_term(self, p: np.ndarray, u: np.ndarray) -> np.ndarray:
        """As of `Shares`."""

    def contract(self, P: np.ndarray, U: np.ndarray, slope: np.ndarray, weight: np.ndarray, m: int,
                 position: Sequence[np.ndarray] | None = None,
                 strength: np.ndarray | None = None) -> np.ndarray:
        """As of `Shares`."""


def forward(basis: Basis, sweep: Sweep) -> tuple[np.ndarray, list]:
    """States ``(K, m)`` after all runs, and of each those in the middle of each step."""
    z = np.repeat(basis.start[:, None], len(sweep.rows), axis=1).astype(complex)
    kept = []
    for run in sweep.runs:
        z, middles = _through(basis, run, sweep.strength, z)
        kept.append(middles)
    return z, kept


def _through(basis: Basis, run: Run, strength: np.ndarray,
             z: np.ndarray) -> tuple[np.ndarray, list]:
    h = run.steps
    if not run.direction:
        return basis.decay(h.sum()) * z, [z]
    frame = basis.frame(run.direction)
    y, middles = frame.Rt @ (basis.decay(h[0] / 2) * z), []
    for k, (step, value) in enumerate(zip(h, run.values, strict=True)):
        half = frame.phase(step * value / 2 * strength)
        y = half * y
        middles.append(y)
        y = half * y
        if k < len(h) - 1:
            y = frame.between(np.ascontiguousarray(y), run.joints[k])
    return basis.decay(h[-1] / 2) * (frame.R @ y), middles


class Adjoint:
    """The measurements of one sweep, and the derivatives of their magnitudes."""

    def __init__(self, model: Derivatives, basis: Basis, modes: np.ndarray, sweep: Sweep):
        self.model, self.basis, self.modes, self.sweep = model, basis, modes, sweep
        self.single = modes.astype(np.float32)
        self.total: np.ndarray | float = 0.0

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        basis, sweep, modes = self.basis, self.sweep, self.modes
        m = len(sweep.rows)
        z, kept = forward(basis, sweep)
        S = received(basis, sweep, z)
        size = np.abs(S)
        w = np.divide(S.conj(), size, out=np.zeros_like(S), where=size > 0)
        left = z.conj() if sweep.fold < 0 else z if sweep.fold else basis.start[:, None]
        decay = np.exp(-basis.rates[:, None] * sweep.gap)
        p = w * decay * left
        if sweep.gap.max(initial=0.0) > 0:
            self._rest(w * np.broadcast_to(left, z.shape), z, sweep.gap, bool(sweep.fold))
        twice = 2 if sweep.fold else 1  # the mirror image has the same again
        if sweep.fold:
            self.total = self.total + self.model.mass_term(modes @ p, modes @ z)
        else:  # what receives is 1, in modes or not
            end = np.exp(-basis.rates[:, None] * sweep.gap) * z
            self.total = self.total + self.model.mass_term(
                np.broadcast_to(w, (len(modes), m)), modes @ end)
        for run, middles in zip(reversed(sweep.runs), reversed(kept), strict=True):
            p = self._backward(run, p, middles, twice)
        rest = 1 - modes @ basis.start  # a uniform start is no sum of few modes
        if np.abs(rest).max() > 1e-9:
            self.total = self.total + twice * self.model.mass_term(
                modes @ p, np.repeat(rest[:, None], m, axis=1))
        return S, np.asarray(self.total)

    def _backward(self, run: Run, p: np.ndarray, middles: list, twice: int) -> np.ndarray:
        """The adjoint before a run, of that after it; adds to the total."""
        basis, h, g = self.basis, run.steps, self.sweep.strength
        if not run.direction:
            self._rest(p, middles[0], np.full(len(g), h.sum()), False, twice)
            return basis.decay(h.sum()) * p
        frame = basis.frame(run.direction)
        y = frame.Rt @ (basis.decay(h[-1] / 2) * p)
        states, adjoints, slopes, strength, weight = [], [], [], [], []
        for k in range(len(h) - 1, -1, -1):
            turn, u = run.values[k] * g, middles[k]
            half = frame.phase(h[k] / 2 * turn)
            y = half * y
            states.append(u)
            adjoints.append(y)
            slopes.append(-(frame.Rt @ (basis.rates[:, None] * (frame.R @ u))
                            + 1j * turn * frame.xi[:, None] * u))
            weight.append(np.full(len(g), twice * h[k]))
            strength.append(turn)
            y = half * y
            if k:
                y = frame.between(np.ascontiguousarray(y), run.joints[k - 1])
        nodes = (self.modes @ frame.R).astype(np.float32)
        P, U, slope = (product(nodes[None], np.hstack(part).astype(np.complex64)[None])[0]
                       for part in (adjoints, states, slopes))
        along = (1 - self.model.mass_floor) * np.tensordot(
            run.direction, self.model.blocks.position, axes=1)
        self.total = self.total + self.model.contract(
            P, U, slope, np.concatenate(weight), len(g), [along, along],
            np.concatenate(strength))
        return basis.decay(h[0] / 2) * (frame.R @ y)

    def _rest(self, left: np.ndarray, right: np.ndarray, time: np.ndarray, smooth: bool,
              twice: int = 1) -> None:
        """A time without gradient, ``(m,)`` ms; adds to the total.

        Args:
            left: ``(K, m)`` adjoint states at its end.
            right: states at its beginning.
            smooth: whether fast modes are gone at both ends, as after a gradient.
        """
        rates = self.basis.rates[:, None]
        edges = np.array([0.0, 1.0]) if smooth else np.concatenate([_ENDS, 1 - _ENDS[-2::-1]])
        points, weights = (_GAUSS[0] + 1) / 2, _GAUSS[1] / 2
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            at = low + (high - low) * points
            u = np.hstack([np.exp(-rates * time * t) * right for t in at])
            slope = np.hstack([-rates * np.exp(-rates * time * t) * right for t in at])
            p = np.hstack([np.exp(-rates * time * (1 - t)) * left for t in at])
            P, U, dU = (product(self.single[None], x.astype(np.complex64)[None])[0]
                        for x in (p, u, slope))
            weight = twice * np.concatenate([w * (high - low) * time for w in weights])
            self.total = self.total + self.model.contract(P, U, dU, weight, right.shape[1])


def product(matrices: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Real matrices ``(t, n, n)`` by complex columns ``(t, n, m)``, as twice as many real ones."""
    columns = np.ascontiguousarray(columns)
    if not np.iscomplexobj(columns):
        return matrices @ columns
    real = columns.real.dtype
    return (matrices @ columns.view(real)).view(columns.dtype)


def _sparse(values: np.ndarray, columns: np.ndarray, width: int) -> scipy.sparse.csr_matrix:
    """Rows of values at the given columns, ``(n, width)``."""
    n, k = columns.shape
    rows = np.repeat(np.arange(n), k)
    return scipy.sparse.csr_matrix((np.asarray(values, float).ravel(), (rows, columns.ravel())),
                                   shape=(n, width))
