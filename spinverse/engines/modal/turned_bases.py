"""Signals by a small basis for each direction, which turns with the phase of each node.

With x_j the position of node j along a gradient and F = int_0^t g, nodal values are m_j =
exp(-i F x_j) n_j: what turns by itself is out, and n changes little from cell to cell. The discrete
problem M m' + (A + i g J) m = 0 stays what it is,

    M(F) n' + (A(F) + i g K(F)) n = 0,    B(F)_jk = exp(i F (x_j - x_k)) B_jk,    K = J - M X,

and couples neighbours alone, however wide the mesh: x_j - x_k is at most an edge. Functions of n
are resolvents of the start at some constant F and some rates s, and again of these,

    n = D^* (A + s M)^-1 B D n',    D = diag exp(-i F x_j),    B one of M and K,

a reduced basis (Quarteroni, Manzoni and Negri, Reduced Basis Methods, 2016), for which one factor
of A + s M serves all directions and all F. Operators between them are polynomials of F, for F times
an edge is small, and time is stepped by Radau's formula of order 5 (Hairer and Wanner, Solving ODE
II, IV.5); where g = 0, exactly.

A dozen functions do for a direction what hundreds of modes do for all, in a wide mesh. Without
derivatives. All ranks hold the matrices, and have directions of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
import scipy.sparse
from mpi4py import MPI
from scipy.special import gammaln

from ...acquisition.table import Acquisition
from ...acquisition.waveform import Waveform
from ...errors import InputError
from ...parallel.exchange import reduced
from ...phases import phase
from ...problem import BlochTorrey
from .. import silent
from ..linear.whole import blocks, ratio_of_decay, solver, whole
from ..schedule.groups import check_directions

# A level of a basis: equal parts of the largest F, rates, links of a chain of resolvents, and on
# how many of the first of these K acts too. Each level holds the one before: 9, 17, 33, 127, 295
# and 547 functions at most.
LEVELS = (3, 2, 1, 0), (3, 2, 2, 0), (3, 2, 2, 1), (6, 3, 2, 1), (6, 3, 3, 3), (12, 3, 3, 3)
_FIRST_RATE, _NEXT = 5.0, 10.0  # over the longest echo time, and from one rate to the next
_DEPENDENT = 1e-6  # of a function, in the norm of the mass: what is left of it has lost its digits
_NOISE = 1e-9  # of the start's norm: smaller functions are rounding
_EXACT = 1e-11  # of the operators: their polynomials of F
_PARTS = 4  # of the longest interval with a gradient: steps of the first try
_GAIN = 31  # halved steps leave so much less, and 1
_OF_STEPS, _OF_LEVEL = 0.1, 0.25  # of the tolerance; others are up to twice as far off
_FINEST = 2**7  # parts of the first step
_TINY = 1e-300
_INSIDE = 1e-9  # of an interval: how far from its ends f is asked for
_ROOT = 6**0.5
_RADAU = np.array([
    [(88 - 7 * _ROOT) / 360, (296 - 169 * _ROOT) / 1800, (-2 + 3 * _ROOT) / 225],
    [(296 + 169 * _ROOT) / 1800, (88 + 7 * _ROOT) / 360, (-2 - 3 * _ROOT) / 225],
    [(16 - _ROOT) / 36, (16 + _ROOT) / 36, 1 / 9]])
_NODES = np.array([(4 - _ROOT) / 10, (4 + _ROOT) / 10, 1.0])


@dataclass(frozen=True, eq=False)
class _System:
    """Whole operators A, M and J_j ``(n, n)``; nodes ``(n, d)`` um; the start ``(n,)``."""

    decay: scipy.sparse.csr_matrix
    mass: scipy.sparse.csr_matrix
    positions: list[scipy.sparse.csr_matrix]
    nodes: np.ndarray
    start: np.ndarray

    @cached_property
    def _solvers(self) -> dict[float, Callable[[np.ndarray], np.ndarray]]:
        return {}

    def _resolvent(self, rate: float, loads: np.ndarray) -> np.ndarray:
        """(A + s M)^-1 of complex loads ``(n, k)``."""
        if rate not in self._solvers:
            self._solvers[rate] = solver(self.decay + rate * self.mass, "spinverse_directions_",
                                         "direction_bases")
        return self._solvers[rate](np.ascontiguousarray(loads).view(float)).view(complex)

    def basis(self, along: np.ndarray, low: float, high: float, level: int,
              first_rate: float) -> _Basis:
        """Of a direction ``(d,)``, for F from ``low <= 0`` to ``high``, rad/um."""
        x = self.nodes @ along
        K = (sum(a * J for a, J in zip(along, self.positions, strict=True))
             - self.mass @ scipy.sparse.diags(x)).tocsr()
        # so that what an operator makes is at most about as large as what it has been made of
        driving = K / max(_edge(self.mass, x), _TINY)
        least = _NOISE * float(np.sqrt(self.start @ (self.mass @ self.start)))
        functions, loads = (np.empty((len(x), 0), dtype=complex) for _ in range(2))
        counts = []
        done: set[tuple] = set()
        for parts, rates, links, driven in LEVELS[: level + 1]:
            new = [] if done else [self.start[:, None].astype(complex)]
            shares = np.arange(parts + 1) / parts
            F = np.unique(np.concatenate([high * shares, low * shares]))
            phases = np.exp(-1j * np.outer(x, F))
            for rate in first_rate * _NEXT ** np.arange(rates):
                words = {"": phases * self.start[:, None]}
                for link in range(links):
                    longer = {}
                    for word, last in words.items():
                        for letter, operator in (("M", self.mass), ("K", driving))[
                                : 1 + (link < driven)]:
                            longer[word + letter] = self._resolvent(
                                rate, rate * _times(operator, last))
                    words = longer
                    for word, found in words.items():
                        keys = [(round(f, 12), rate, word) for f in F]
                        wanted = [k for k, key in enumerate(keys) if key not in done]
                        new.append(found[:, wanted] * phases[:, wanted].conj())
                        done |= set(keys)
            functions, loads = _orthonormal(self.mass, functions, loads, np.hstack(new),
                                            least)
            counts.append(functions.shape[1])
        return _Basis(self, x, functions, low, high, tuple(counts), K)


def _times(matrix: scipy.sparse.csr_matrix, columns: np.ndarray) -> np.ndarray:
    """A real matrix times complex columns ``(n, k)``."""
    return (matrix @ np.ascontiguousarray(columns).view(float)).view(complex)


def _edge(mass: scipy.sparse.csr_matrix, x: np.ndarray) -> float:
    """The largest distance of neighbours along a direction, um."""
    pattern = mass.tocoo()
    return float(np.abs(x[pattern.row] - x[pattern.col]).max(initial=0.0))


def _orthonormal(mass, functions: np.ndarray, loads: np.ndarray, new: np.ndarray,
                 least: float) -> tuple:
    """Functions, orthonormal in the mass, with what ``new`` ones add; and the mass times them.

    New ones of a norm below ``least`` are rounding: K times what is linear is 0.
    """
    known, room = functions.shape[1], functions.shape[1] + new.shape[1]
    V, MV = (np.empty((len(new), room), dtype=complex, order="F") for _ in range(2))
    V[:, :known], MV[:, :known] = functions, loads
    for column in new.T:
        norm = np.sqrt(max((column.conj() @ (mass @ column)).real, 0.0))
        if norm < least:
            continue
        v = column / norm
        for _ in range(2):  # twice, for the digits
            v = v - V[:, :known] @ (MV[:, :known].conj().T @ v)
        load = mass @ v
        size = np.sqrt(max((v.conj() @ load).real, 0.0))
        if size > _DEPENDENT:
            V[:, known], MV[:, known] = v / size, load / size
            known += 1
    return V[:, :known], MV[:, :known]


class _Basis:
    """Operators between the functions of a direction, for F from ``low`` to ``high``.

    The first ``counts[k]`` functions are those of level k.
    """

    def __init__(self, system: _System, x: np.ndarray, functions: np.ndarray, low: float,
                 high: float, counts: tuple[int, ...], K: scipy.sparse.csr_matrix):
        self.x, self.functions, self.counts = x, functions, counts
        self._middle, self._half = (high + low) / 2, max((high - low) / 2, 1e-12)
        reach = self._half * _edge(system.mass, x)
        # Bessel functions, the coefficients of a phase, are below (reach / 2)^k / k!
        order = np.arange(2, 200)
        sizes = order * np.log(max(reach, 1e-9) / 2) - gammaln(order + 1)
        number = int(order[np.flatnonzero(sizes > np.log(_EXACT)).max(initial=0)]) + 2
        at = np.cos(np.pi * (np.arange(number) + 0.5) / number)
        values = np.stack([self._between(system, K, self._middle + self._half * a) for a in at])
        table = np.polynomial.chebyshev.chebvander(at, number - 1)
        self._terms = np.tensordot(np.linalg.inv(table), values, axes=1)
        self.start = functions.conj().T @ (system.mass @ system.start)

    def _between(self, system: _System, K, F: float) -> np.ndarray:
        """A, M and K at F, ``(3, r, r)``."""
        turned = self.functions * np.exp(-1j * F * self.x)[:, None]
        left = turned.conj().T
        return np.stack([left @ _times(operator, turned)
                         for operator in (system.decay, system.mass, K)])

    def operators(self, F: np.ndarray, count: int) -> np.ndarray:
        """A, M and K at each F ``(m,)`` between the first functions: ``(m, 3, count, count)``."""
        table = np.polynomial.chebyshev.chebvander((F - self._middle) / self._half,
                                                   len(self._terms) - 1)
        return np.tensordot(table, self._terms[:, :, :count, :count], axes=1)

    def begin(self, count: int, number: int) -> np.ndarray:
        """The start, ``(number, count)``."""
        return np.repeat(self.start[None, :count], number, axis=0)


@dataclass(frozen=True)
class _Course:
    """A waveform, or its first half, in pieces (start, stop, steps), ms; 0 steps: without gradient.

    ``back``: of -f(TE - t), as adjoints feel it.
    """

    waveform: Waveform
    pieces: tuple[tuple[float, float, int], ...]
    back: bool = False

    @classmethod
    def of(cls, waveform: Waveform, step: float, until: float,
           edges: Sequence[float] | np.ndarray = (), back: bool = False) -> _Course:
        """Up to a time, cut at its breakpoints and at further ``edges``."""
        breaks = np.asarray(waveform.breakpoints)
        breaks = waveform.echo_time - breaks if back else breaks
        times = np.unique(np.concatenate([breaks, edges, [0.0, until]]))
        times = times[np.append(True, np.diff(times) > 1e-12 * waveform.echo_time)]
        course = cls(waveform, (), back)
        return cls(waveform, tuple(
            (a, b, max(1, int(np.ceil((b - a) / step * (1 - 1e-9)))) if course.driven(a, b) else 0)
            for a, b in zip(times[:-1], times[1:], strict=True) if b <= until * (1 + 1e-12)), back)

    def driven(self, start: float, stop: float) -> bool:
        inside = start + (stop - start) * (np.arange(17) + 0.5) / 17
        return bool(np.abs(self.f(inside)).max() > 1e-12 * self.waveform.peak)

    def f(self, t: np.ndarray) -> np.ndarray:
        return -self.waveform(self.waveform.echo_time - t) if self.back else self.waveform(t)

    def F(self, t: np.ndarray) -> np.ndarray:
        return self.waveform.integral(self.waveform.echo_time - t if self.back else t)


def _after(basis: _Basis, y: np.ndarray, course: _Course, piece: tuple,
           q: np.ndarray) -> np.ndarray:
    """States ``(m, r)`` of strengths ``q (m,)``, rad/(ms um), after a piece of a course."""
    start, stop, steps = piece
    count = y.shape[1]
    if not steps:
        F = q * course.F(np.array([(start + stop) / 2]))
        for k, (A, M, _) in enumerate(basis.operators(F, count)):
            rates, V = scipy.linalg.eigh(A + A.conj().T, M + M.conj().T, check_finite=False)
            share = V.conj().T @ (0.5 * (M + M.conj().T) @ y[k])
            # V is orthonormal in twice the mass
            y[k] = 2 * V @ (np.exp(-(stop - start) * rates) * share)
        return y
    h, m = (stop - start) / steps, len(q)
    for step in range(steps):
        t = start + h * (step + _NODES)
        g = np.clip(t, start + _INSIDE * (stop - start), stop - _INSIDE * (stop - start))
        F, g = np.outer(q, course.F(t)), np.outer(q, course.f(g))
        A, M, K = basis.operators(F.ravel(), count).reshape(m, 3, 3, count, count).transpose(
            2, 0, 1, 3, 4)
        L = -(A + 1j * g[:, :, None, None] * K)
        # slopes k_i: M_i k_i = L_i (y + h sum_j a_ij k_j)
        matrix = -h * np.einsum("ij,miab->miajb", _RADAU, L)
        for i in range(3):
            matrix[:, i, :, i] += M[:, i]
        load = np.einsum("miab,mb->mia", L, y)
        slopes = np.linalg.solve(matrix.reshape(m, 3 * count, 3 * count),
                                 load.reshape(m, 3 * count, 1)).reshape(m, 3, count)
        y = y + h * np.einsum("j,mja->ma", _RADAU[2], slopes)
    return y


class TurnedBases:
    """Signals of a problem without periodic axes; the arguments are those of `DirectionBases`.

    Args:
        problem: the discrete problem.
        acquisition: the measurements.
        tolerance: wanted absolute error of S / S(b=0, t=0).

    Raises:
        InputError: periodic axes, extra terms that know the gradient or turn the phase, initial
            magnetisations that are not at rest, waveforms whose direction varies or that store
            magnetisation.

    Attributes:
        estimated_error: the largest of the last signals over S(b = 0, t = 0); NaN before.
        num_modes: the most functions of a direction.
    """

    def __init__(self, problem: BlochTorrey, acquisition: Acquisition, tolerance: float = 1e-5):
        where = "engine: direction_bases"
        if problem.periodic:
            raise InputError(f"{where}, expected a box that is periodic along x, y and z, or along "
                             "none")
        if not tolerance > 0:
            raise InputError(f"tolerance: {tolerance!r}, expected a positive number")
        ratio = ratio_of_decay(problem, acquisition, where)
        check_directions(acquisition, problem.mesh)
        driven = acquisition.strength > 0
        for waveform in (acquisition.waveforms[k] for k in np.unique(
                acquisition.waveform_index[driven])):
            if waveform.vector:
                raise InputError(f"{where}: {waveform.describe()} varies its direction, expected "
                                 "engine matrix_formalism or time_stepping")
        self.problem, self.acquisition, self.ratio = problem, acquisition, ratio
        self.tolerance = tolerance
        _, which = np.unique(np.round(acquisition.directions, 9), axis=0, return_inverse=True)
        which = which.ravel()
        self._strongest = int(np.argmax(acquisition.strength))
        # what has no gradient is where the strongest is
        which = np.where(driven, which, which[self._strongest])
        self._rows = [np.flatnonzero(which == k) for k in np.unique(which)]
        self._rows.sort(key=lambda rows: self._strongest not in rows)
        self.estimated_error, self.num_modes = np.nan, 0
        self._step = max((b - a for w in acquisition.waveforms for a, b, steps in _Course.of(
            w, w.echo_time, w.echo_time).pieces if steps), default=1.0) / _PARTS
        self._rate = _FIRST_RATE / max(w.echo_time for w in acquisition.waveforms)
        self.progress: Callable[[str, int, int], None] = silent

    @property
    def num_directions(self) -> int:
        """Of gradients."""
        return len(self._rows)

    def signals(self, permeability: np.ndarray | None = None) -> np.ndarray:
        """Complex signals, ``(N,)``, um^3 times density, the same on every rank. Collective.

        Args:
            permeability: ``(nf,)`` um/ms of the owned facets; the present one if not given.
        """
        if permeability is not None:
            self.problem.set_permeability(permeability)
        comm = self.problem.comm
        system = self._system()
        found = np.zeros(len(self.acquisition), dtype=complex)
        worst = np.zeros(2)
        with phase("directions"):
            # the same on all ranks, which have nothing else to do
            first, level, ratio = self._choose(system)
            self._known = first
            level, ratio, self._step = comm.bcast((level, ratio, self._step))
            mine = range(comm.rank, len(self._rows), comm.size)
            for done, k in enumerate(mine):
                self.progress("signals", done, len(mine))
                rows, at = self._rows[k], level
                basis = first if k == 0 else self._basis(system, rows, at)
                while True:
                    found[rows], error = self._judged(basis, rows, at)
                    error *= ratio
                    if error <= self.tolerance or at + 1 == len(LEVELS) or k == 0:
                        break
                    at += 1
                    basis = self._basis(system, rows, at)
                worst = np.maximum(worst, [error, basis.counts[at]])
        comm.Allreduce(MPI.IN_PLACE, worst, MPI.MAX)
        self.estimated_error, self.num_modes = float(worst[0]) + self._of_steps, int(worst[1])
        return reduced(comm, found)

    def states(self, row: int, times: np.ndarray, back: bool = False) -> tuple:
        """Unknowns of this rank and their rates, ``(n, T)`` complex, inside intervals of g.

        After `signals`, of a row of `of_strongest`; ``back``: of what receives, at TE - ``times``,
        as the transposed equation has it.
        """
        table, basis = self.acquisition, self._known
        waveform = table.waveforms[table.waveform_index[row]]
        at = np.sort(waveform.echo_time - times) if back else times
        course = _Course.of(waveform, self._step, float(at[-1]), at, back)
        q, count = table.strength[[row]], basis.counts[-1]
        y, found = basis.begin(count, 1), []
        for piece in course.pieces:
            y = _after(basis, y, course, piece, q)
            if not np.isclose(at, piece[1], rtol=0, atol=1e-12 * waveform.echo_time).any():
                continue
            t = np.array([piece[1]])
            F, g = q * course.F(t), q * course.f(t)
            A, M, K = basis.operators(F, count)[0]
            slope = -np.linalg.solve(M, (A + 1j * g * K) @ y[0])
            turned = np.exp(-1j * F * basis.x)[:, None] * (
                basis.functions[:, :count] @ np.column_stack([y[0], slope]))
            turned[:, 1] -= 1j * g * basis.x * turned[:, 0]
            found.append(turned)
        whole = np.stack(found)
        if back:
            whole = whole.conj()
        unknowns = self.problem.unknowns
        first = self.problem.comm.exscan(unknowns.num_owned) or 0
        whole = whole[:, first: first + unknowns.num_owned]
        return whole[:, :, 0].T, whole[:, :, 1].T

    @property
    def of_strongest(self) -> np.ndarray:
        """Rows of the direction with the strongest gradient."""
        return self._rows[0]

    def _choose(self, system: _System) -> tuple[_Basis, int, float]:
        """Basis of the strongest direction; its level; error over the change from one level less.

        A level's error is what the next one changes.
        """
        rows, level = self._rows[0], 1
        basis = self._basis(system, rows, level)
        self._choose_step(basis, rows)
        before, ratio = self._judged(basis, rows, level)[1], 1.0
        while before * ratio > _OF_LEVEL * self.tolerance and level + 1 < len(LEVELS):
            basis = self._basis(system, rows, level + 1)
            error = self._judged(basis, rows, level + 1)[1]
            if error <= _OF_LEVEL * self.tolerance:
                return basis, level, error / max(before, 1e-300)
            before, level = error, level + 1
        return basis, level, ratio

    def _choose_step(self, basis: _Basis, rows: np.ndarray) -> None:
        """Halve steps until that changes little."""
        first, count = self._step, basis.counts[-1]
        coarse = self._evolved(basis, rows, count, self._step)
        while True:
            fine = self._evolved(basis, rows, count, self._step / 2)
            self._of_steps = self._apart(fine, coarse)
            if self._of_steps <= _OF_STEPS * self.tolerance:
                return
            self._step, coarse = self._step / 2, fine
            self._of_steps /= _GAIN
            if self._of_steps <= _OF_STEPS * self.tolerance or self._step < first / _FINEST:
                return

    def _judged(self, basis: _Basis, rows: np.ndarray, level: int) -> tuple[np.ndarray, float]:
        """Signals of rows at a level, and the largest change from that of one less."""
        fine, coarse = (self._evolved(basis, rows, basis.counts[k], self._step)
                        for k in (level, level - 1))
        return fine, self._apart(fine, coarse)

    def _apart(self, one: np.ndarray, other: np.ndarray) -> float:
        scale = abs(self.problem.magnetisation_at_start) or 1.0
        return float(np.abs(one - other).max(initial=0.0)) / scale

    def _evolved(self, basis: _Basis, rows: np.ndarray, count: int, step: float) -> np.ndarray:
        """Signals of rows of one direction in the first functions of its basis."""
        table, found = self.acquisition, np.zeros(len(rows), dtype=complex)
        start = basis.start[:count]
        for k in np.unique(table.waveform_index[rows]):
            waveform = table.waveforms[k]
            here = table.waveform_index[rows] == k
            q = table.strength[rows[here]]
            fold = waveform.antisymmetric
            course = _Course.of(waveform, step, waveform.echo_time / (2 if fold else 1))
            y = basis.begin(count, len(q))
            for piece in course.pieces:
                y = _after(basis, y, course, piece, q)
            if fold:
                end = q * course.F(np.array([waveform.echo_time / 2]))
                M = basis.operators(end, count)[:, 1]
                found[here] = np.einsum("ma,mab,mb->m", y.conj(), M, y)
            else:
                found[here] = y @ start.conj()
        return self.ratio * found

    def _basis(self, system: _System, rows: np.ndarray, level: int) -> _Basis:
        """Of the direction of some rows, up to a level."""
        table = self.acquisition
        strong = rows[np.argmax(table.strength[rows])]
        low = high = 0.0
        for row in rows:
            waveform = table.waveforms[table.waveform_index[row]]
            edges = np.asarray(waveform.breakpoints)
            inside = (edges[:-1, None] + np.diff(edges)[:, None] * np.linspace(0, 1, 9)).ravel()
            F = table.strength[row] * waveform.integral(inside)
            low, high = min(low, float(F.min())), max(high, float(F.max()))
        small = 1e-9 * max(high, -low)
        low, high = (0.0 if abs(end) <= small else end for end in (low, high))
        return system.basis(table.directions[strong, : self.problem.mesh.dim], low, high, level,
                            self._rate)

    @phase("assembly")
    def _system(self) -> _System:
        problem = self.problem
        comm, P = problem.comm, problem.prolongation
        decay = problem.decay_matrix()
        A = whole(comm, decay.getValuesCSR())
        problem.release(decay)
        mass, *positions = (blocks(comm, each) for each in (
            problem.local_mass, *problem.local_positions))
        x = problem.space.tabulate_dof_coordinates()[: len(problem.scale)]
        x = (x - problem.mesh.centre)[:, : problem.mesh.dim]
        nodes, start = (np.concatenate(comm.allgather(each)) for each in (x, problem.scale))
        if P is not None:
            T = whole(comm, P.getValuesCSR(), P.getSize()[1])
            mass, *positions = ((T.T @ form @ T).tocsr() for form in (mass, *positions))
            squares = np.asarray(T.multiply(T).sum(axis=0)).ravel()
            start = (T.T @ start) / squares
            weights = np.asarray(T.sum(axis=0)).ravel()
            nodes = (T.T @ nodes) / weights[:, None]
        return _System(A, mass, positions, nodes, start)
