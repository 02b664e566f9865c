"""Fast models on periodic boxes: w' = -A(Q) w with A(Q) = A + i Q . N + Q . C Q, Q = int_0^t g.

The unknown w and the forms N and C are those of `spinverse.forms`; positions mean nothing where
faces are one. Each direction of gradients has a basis of its own,

    w_{k+1} = (A + s M)^-1 N w_k,    w_0 = 1,

for some rates s, which is what a uniform start comes to under gradients of all strengths in that
direction (moments of a rational Krylov space); in it waveforms are propagated by the pieces of
`spinverse.engines.schedule.waves`, each a Chebyshev sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from ...acquisition.table import Acquisition
from ...errors import InputError
from ..modal.chebyshev import expansion
from ..schedule.groups import Group, plan
from ..schedule.waves import Wave

ALL = (0, 1, 2)
AXIS_PAIRS = (0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)  # in the order of squares
RATES = 0.1, 1.0, 10.0  # 1/ms: slow and fast parts of a diffusion time
# of a chain, for each rate: 1e-6 of the signals of the broken space that is left; of a fast model
LINKS, FEW_LINKS = 12, 7
_TINY = 1e-300
_FIRST, _GROWTH = 0.05, 1.6  # ms; of pieces at rest, over which derivatives are summed


@dataclass(frozen=True, eq=False)
class DriftSweep:
    """Measurements with the same waveform and number of strengths, of D directions.

    Attributes:
        pieces: (duration in ms, `Wave` or 0.0) from 0 to TE / 2 if folded, else to TE.
        fold: as of `Group`.
        which: ``(D,)`` number of each direction in `DriftSweeps.directions`.
        rows: ``(D, m)`` of the acquisition.
        strength: ``(D, m)`` gamma G, rad/(ms um).
    """

    pieces: tuple[tuple[float, Wave | float], ...]
    fold: int
    which: np.ndarray
    rows: np.ndarray
    strength: np.ndarray


@dataclass(frozen=True, eq=False)
class DriftSweeps:
    """An acquisition, cut into pieces of the waves.

    Attributes:
        number: of measurements.
        directions: ``(n, 3)``.
        parts: what is propagated.
        still: ``(n,)`` rows without a gradient.
        echo_time: ``(n,)`` ms, theirs.
    """

    number: int
    directions: np.ndarray
    parts: tuple[DriftSweep, ...]
    still: np.ndarray
    echo_time: np.ndarray

    @classmethod
    def of(cls, acquisition: Acquisition, longest: float) -> DriftSweeps:
        """In pieces of at most ``longest`` ms where gradients are on.

        Raises:
            InputError: gradients that change their direction.
        """
        alike: dict[tuple, list[Group]] = defaultdict(list)
        still: list[int] = []
        times: list[float] = []
        directions: dict[tuple, int] = {}
        for group in plan(acquisition, longest, 3, ALL, storing=False):
            if not group.pieces:
                still += group.rows
                times += group.gap
                continue
            if any(along == () for _, _, along in group.pieces):
                raise InputError("shape search: waveforms of varying direction in a periodic box, "
                                 "expected PGSE, OGSE and others of one direction")
            directions.setdefault(group.pieces[0][2], len(directions))
            key = tuple(piece[:2] for piece in group.pieces), group.fold, len(group.rows)
            alike[key].append(group)
        parts = tuple(DriftSweep(
            pieces, fold, np.array([directions[group.pieces[0][2]] for group in groups]),
            np.array([group.rows for group in groups]),
            np.array([group.strength for group in groups]))
            for (pieces, fold, _), groups in alike.items())
        return cls(len(acquisition), np.array(list(directions)).reshape(-1, 3), parts,
                   np.array(still, dtype=int), np.array(times))

    @property
    def asked(self) -> np.ndarray:
        """Directions ``(D, 3)`` that bases are wanted of: one at least."""
        return self.directions if len(self.directions) else np.eye(3)[:1]

    def highest(self) -> np.ndarray:
        """Largest |Q| of each direction that is `asked`, rad/um, by the means over pieces."""
        found = np.zeros(len(self.asked))
        for part in self.parts:
            reach = max(abs(_means(wave)[0]) for _, wave in part.pieces)
            np.maximum.at(found, part.which, reach * part.strength.max(axis=1))
        return found


@dataclass(frozen=True, eq=False)
class DriftSystem:
    """Operators between the unknowns of one shape.

    Attributes:
        decay, mass: ``(n, n)`` A and M, dense or both sparse.
        drifts: N_j, three sparse ``(n, n)``, um/ms.
        squares: C_jk, sparse, of `AXIS_PAIRS`.
        fastest: largest diffusivity, um^2/ms.
        start: ``(n,)``, which also receives; ones if None.
        left_out: terms of Chebyshev sums, relative, that are not summed. Which these are depends
            on the directions at hand.
    """

    decay: Any
    mass: Any
    drifts: list[scipy.sparse.csr_matrix]
    squares: list[scipy.sparse.csr_matrix]
    fastest: float
    start: np.ndarray | None = None
    left_out: float = 1e-7

    @cached_property
    def load(self) -> np.ndarray:
        """M start, ``(n,)``: what is received."""
        return self.mass @ self.uniform

    @property
    def uniform(self) -> np.ndarray:
        """The start, ``(n,)``."""
        return np.ones(self.mass.shape[0]) if self.start is None else self.start

    def _solver(self, rate: float) -> Callable[[np.ndarray], np.ndarray]:
        matrix = self.decay + rate * self.mass
        if scipy.sparse.issparse(matrix):
            return scipy.sparse.linalg.splu(
                matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0,
                options={"SymmetricMode": True}).solve
        factor = scipy.linalg.cho_factor(matrix, check_finite=False)
        return lambda loads: scipy.linalg.cho_solve(factor, loads, check_finite=False)

    def bases(self, directions: np.ndarray, links: int = FEW_LINKS) -> Reduced:
        """Of each direction ``(D, 3)``, with so many ``links`` of a chain for each of `RATES`."""
        return self.between(self.chain(directions, links), directions)

    def chain(self, directions: np.ndarray, links: int) -> np.ndarray:
        """The start, its resolvent, and the links for each of `RATES`, ``(D, n, r)``."""
        D = len(directions)
        solvers = [self._solver(rate) for rate in RATES]
        rest = solvers[0](self.load)
        columns = [np.repeat(self.uniform[:, None], D, axis=1), np.repeat(rest[:, None], D, axis=1)]
        for solve in solvers:
            last = columns[0]
            for _ in range(links):
                driven = sum(N @ (last * along) for N, along in zip(
                    self.drifts, directions.T, strict=True))
                last = solve(np.ascontiguousarray(driven))
                last /= np.maximum(np.abs(last).max(axis=0), _TINY)
                columns.append(last)
        return np.array(columns[: len(rest)]).transpose(2, 1, 0)

    def between(self, columns: np.ndarray, directions: np.ndarray) -> Reduced:
        """Operators between ``columns (D, n, r)`` of each of the directions ``(D, 3)``."""
        D, n, r = columns.shape
        V = np.stack([_orthonormal(self.mass, each) for each in columns], axis=1).reshape(n, -1)

        def between(operator):
            return np.matmul(V.reshape(n, D, r).transpose(1, 2, 0),
                             (operator @ V).reshape(n, D, r).transpose(1, 0, 2))

        def along(operators, weights):
            if D == 1:
                return between(sum(w * op for w, op in zip(weights[0], operators, strict=True)))
            return sum(w[:, None, None] * between(op)
                       for w, op in zip(weights.T, operators, strict=True))

        N = along(self.drifts, directions)
        C = along(self.squares, along_pairs(directions))
        start = np.einsum("ndr,n->dr", V.reshape(n, D, r), self.load)
        return Reduced(between(self.decay), 0.5 * (N - N.transpose(0, 2, 1)), C, start,
                       V.reshape(n, D, r), self.fastest, self.left_out)

    def signals(self, sweeps: DriftSweeps, bases: Reduced | None = None) -> np.ndarray:
        """``(N,)`` complex, of the measurements of ``sweeps``; bases of their directions."""
        result = np.zeros(sweeps.number, dtype=complex)
        if bases is None:
            bases = self.bases(sweeps.asked)
        rates, modes = np.linalg.eigh(bases.decay[0])
        result[sweeps.still] = np.exp(-np.outer(sweeps.echo_time, rates)) @ (
            modes.T @ bases.start[0]) ** 2
        for sweep in sweeps.parts:
            mine = bases.of(sweep.which)
            y = mine.begin(sweep.strength.shape[1])
            for duration, wave in sweep.pieces:
                y = mine.moved(y, duration, wave, sweep.strength)
            left = y.conj() if sweep.fold < 0 else y if sweep.fold else mine.start[:, :, None]
            result[sweep.rows] = (left * y).sum(axis=1)
        return result


@dataclass(frozen=True, eq=False)
class Reduced:
    """Operators in the bases of D directions.

    Attributes:
        decay, drift, square: ``(D, r, r)`` in the mass-orthonormal functions of each.
        start: ``(D, r)``.
        functions: ``(n, D, r)`` their values.
        fastest, left_out: see `DriftSystem`.
    """

    decay: np.ndarray
    drift: np.ndarray
    square: np.ndarray
    start: np.ndarray
    functions: np.ndarray
    fastest: float
    left_out: float

    @cached_property
    def highest(self) -> float:
        """The largest decay rate, 1/ms, by the sums of rows."""
        return float(np.linalg.eigvalsh(self.decay)[:, -1].max())

    def of(self, which: np.ndarray) -> Reduced:
        """Some of the directions, ``(d,)``."""
        return Reduced(self.decay[which], self.drift[which], self.square[which],
                       self.start[which], self.functions[:, which], self.fastest,
                       self.left_out)

    def begin(self, number: int) -> np.ndarray:
        """The start, ``(D, r, number)`` complex."""
        return np.repeat(self.start[:, :, None], number, axis=2).astype(complex)

    def moved(self, y: np.ndarray, duration: float, wave: Wave | float, strength: np.ndarray,
              back: bool = False) -> np.ndarray:
        """States ``(D, r, m)`` after a piece; ``back``: of the transposed operator."""
        phase, square = _means(wave)
        q = (-phase if back else phase) * strength[:, None, :]
        qq = square * strength[:, None, :] ** 2
        # the wave number of a function grows by |Q| at most, and means have a variance
        top = float(np.abs(strength).max())
        beyond = (square - phase**2) * top**2 * self.fastest
        root = np.sqrt(max(self.highest, 0.0)) + np.sqrt(self.fastest) * abs(phase) * top
        low, high = min(beyond, 0.0), root**2 + max(beyond, 0.0)
        found = expansion(round(duration, 9), _rounded(high - low), 0.0)
        width, centre = found.width, found.centre + low

        def apply(u):
            v = self.decay @ u.view(float)
            if phase:
                v += self.drift @ (1j * q * u).view(float)
            if square:
                v += self.square @ (qq * u).view(float)
            v = v.view(complex)
            v -= centre * u
            v /= width
            return v

        c = np.exp(-duration * low / found.steps) * np.array(found.coefficients)
        c = c[: max(int(np.flatnonzero(np.abs(c) > self.left_out).max(initial=0)) + 1, 2)]
        for _ in range(found.steps):
            before, now = y, apply(y)
            total = c[0] * y + (c[1] * now if len(c) > 1 else 0.0)
            for value in c[2:]:
                before, now = now, 2 * apply(now) - before
                total += value * now
            y = np.ascontiguousarray(total)
        return y


class DriftAdjoint:
    """Measurements of one direction, and the derivatives of their magnitudes by shares of cells.

    ``shares`` are the derivatives of the operators, `graded.Shares`.
    """

    def __init__(self, shares, basis: Reduced, along: np.ndarray, pieces: tuple, fold: int,
                 strength: np.ndarray):
        self.shares, self.basis = shares, basis
        self.fold, self.strength = fold, strength.reshape(1, -1)
        self.pieces = [(part, wave) for duration, wave in pieces for part in (
            [duration] if isinstance(wave, Wave) and wave.rate else _cut(duration))]
        blocks = shares.blocks
        x, y, z = along
        six = x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z
        self.drifts = [np.tensordot(along, drift, axes=1) for drift in blocks.drift_of_two]
        self.squares = [np.tensordot(six, square, axes=1) for square in blocks.square_of_two]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Signals ``(m,)`` and derivatives by the shares, ``(m, n)``."""
        basis, fold, g = self.basis, self.fold, self.strength
        y, middles = basis.begin(g.shape[1]), []
        for duration, wave in self.pieces:
            y = basis.moved(y, duration / 2, wave, g)
            middles.append(y)
            y = basis.moved(y, duration / 2, wave, g)
        left = y.conj() if fold < 0 else y if fold else basis.begin(g.shape[1])
        S = (left * y).sum(axis=1)[0]
        size = np.abs(S)
        p = np.divide(S.conj(), size, out=np.zeros_like(S), where=size > 0) * left
        V = basis.functions[:, 0][self.shares.nodes]
        total = self.shares.mass_term(V @ p[0], V @ y[0])
        P, U, slopes, weights, turns, squares = [], [], [], [], [], []
        for (duration, wave), u in zip(reversed(self.pieces), reversed(middles), strict=True):
            phase, square = _means(wave)
            p = basis.moved(p, duration / 2, wave, g, back=True)
            P.append(p[0])
            U.append(u[0])
            turns.append(phase * g[0])
            squares.append(square * g[0] ** 2)
            slopes.append(-(basis.decay[0] @ u[0] + 1j * (basis.drift[0] @ u[0]) * turns[-1]
                            + (basis.square[0] @ u[0]) * squares[-1]))
            weights.append(np.full(g.shape[1], (2 if fold else 1) * duration))
            p = basis.moved(p, duration / 2, wave, g, back=True)
        P, U, slopes = ((V @ np.hstack(part)).astype(np.complex64) for part in (P, U, slopes))
        total = total + self.shares.contract(
            P, U, slopes, np.concatenate(weights), g.shape[1], self.drifts,
            np.concatenate(turns), self.squares, np.concatenate(squares))
        return S, total


def along_pairs(directions: np.ndarray) -> np.ndarray:
    """Weights of `AXIS_PAIRS` in n . C n, ``(D, 6)``."""
    x, y, z = directions.T
    return np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)


def _means(wave: Wave | float) -> tuple[float, float]:
    """Of F and of F^2 over a piece, of a waveform of one direction; 0 for a `Wave` that is none."""
    if not isinstance(wave, Wave):
        return 0.0, 0.0
    return cast(float, wave.phase), cast(float, wave.square)


def _cut(duration: float) -> list[float]:
    """Pieces of a time at rest, short at its ends."""
    found, step, left = [], _FIRST, duration / 2
    while left > step:
        found.append(step)
        left, step = left - step, step * _GROWTH
    return [*found, *([2 * left] if left > 0 else []), *found[::-1]]


def _orthonormal(mass, columns: np.ndarray) -> np.ndarray:
    """A basis of columns ``(n, r)``, orthonormal in the mass; twice for the digits."""
    for _ in range(2):
        columns = np.linalg.qr(columns)[0]
        low = np.linalg.cholesky(columns.T @ (mass @ columns))
        columns = scipy.linalg.solve_triangular(low, columns.T, lower=True,
                                                check_finite=False).T
    return columns


def _rounded(bound: float) -> float:
    """A bound that few plans serve: the next of steps of 10 %."""
    return float(1.1 ** np.ceil(np.log(max(bound, 1e-6)) / np.log(1.1)))
