"""Measurements in a small basis of modes, for searches that solve thousands of small problems.

    u' = -(Lambda + i g(t) . X) u,        S = receive . u(TE)

by a fixed splitting of second order: half decay, exact phases in the eigenbases of the positions
along x, y and z, half decay. (Positions commute, but for what a basis lacks: the order of the axes,
which alternates, changes signals by less than the basis does. An eigenbasis for each direction of
gradients took half of all time.) Operators are symmetric and the start is uniform, so a waveform
with f(TE - t) = -f(t) needs its first half only, S = sum_k exp(-lambda_k gap) |u_k|^2, and one with
f(TE - t) = f(t) likewise with u_k^2 (`spinverse.engines.schedule.groups`). The matrix formalism
propagates with control of its error; this does not, and is corrected by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg

from ...acquisition.table import Acquisition
from ..schedule.groups import Group, plan

FIRST_STEPS = (0.03, 0.07, 0.15, 0.25)  # ms: magnetisation is not smooth when a gradient begins
TOGETHER = 64  # waveforms of several directions that are propagated at once, for memory
Direction = tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Run:
    """Steps in one direction without a break, or a rest.

    Attributes:
        direction: of the gradient; empty for a rest.
        steps: ms.
        values: the waveform in each step, times which a measurement's strength is its gradient.
    """

    direction: Direction
    steps: np.ndarray
    values: np.ndarray

    @cached_property
    def joints(self) -> np.ndarray:
        """Times of decay between the phases, ms."""
        return np.round((self.steps[:-1] + self.steps[1:]) / 2, 9)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Measurements with the same waveform and direction.

    Attributes:
        runs: what is propagated.
        fold: as of `Group`: -1 or 1 if that is the first half.
        rows: ``(m,)`` of the acquisition.
        strength: ``(m,)`` gamma G, rad/(ms um).
        gap: ``(m,)`` ms without gradient after the runs, in the middle if folded.
    """

    runs: tuple[Run, ...]
    fold: int
    rows: np.ndarray
    strength: np.ndarray
    gap: np.ndarray


@dataclass(frozen=True, eq=False)
class Sweeps:
    """An acquisition, cut into steps.

    Attributes:
        number: of measurements.
        parts: what is propagated, without measurements that have no gradient.
        still: ``(n,)`` rows of these.
        echo_time: ``(n,)`` ms, theirs.
    """

    number: int
    parts: tuple[Sweep, ...]
    still: np.ndarray
    echo_time: np.ndarray

    @cached_property
    def bundles(self) -> list[Bundle]:
        """Parts that differ in directions and strengths alone, together."""
        alike: dict[tuple, list[Sweep]] = {}
        for sweep in self.parts:
            key = (sweep.fold, *(
                (bool(run.direction), *run.steps, *run.values) for run in sweep.runs))
            alike.setdefault(key, []).append(sweep)
        return [Bundle(sweeps[k:k + TOGETHER]) for sweeps in alike.values()
                for k in range(0, len(sweeps), TOGETHER)]

    @classmethod
    def of(cls, acquisition: Acquisition, longest: float) -> Sweeps:
        """In steps of at most ``longest`` ms."""
        parts, still, times = [], [], []
        for group in plan(acquisition, longest, 3, storing=False):
            if any(value for _, value, _ in group.pieces):
                parts.append(_sweep(group, longest))
            else:
                still += group.rows
                rest = sum(duration for duration, *_ in group.pieces)
                times += [(2 if group.fold else 1) * rest + gap for gap in group.gap]
        return cls(len(acquisition), tuple(parts), np.array(still, dtype=int), np.array(times))


class Bundle:
    """Sweeps that differ in directions and strengths alone.

    Attributes:
        runs: of the first of them.
        turns: of each run, ``(3, m)`` rad/(ms um); None for a rest.
        fold, rows, gap: as of `Sweep`.
    """

    def __init__(self, sweeps: list[Sweep]):
        self.runs, self.fold = sweeps[0].runs, sweeps[0].fold
        self.rows, self.gap = (np.concatenate([getattr(sweep, name) for sweep in sweeps])
                               for name in ("rows", "gap"))
        self.turns = [np.hstack([np.outer(run.direction, sweep.strength) for run, sweep in zip(
            runs, sweeps, strict=True)]) if runs[0].direction else None
            for runs in zip(*(sweep.runs for sweep in sweeps), strict=True)]


def _sweep(group: Group, longest: float) -> Sweep:
    runs: list[Run] = []
    for duration, value, along in group.pieces:
        direction = along if value else ()
        if runs and runs[-1].direction == direction:
            before = runs.pop()
            h, f = before.steps, before.values
        else:
            h, f = np.zeros(0), np.zeros(0)
        own = steps(duration, longest, first=not len(h)) if value else np.array([duration])
        runs.append(Run(direction, np.append(h, own), np.append(f, np.full(len(own), value))))
    return Sweep(tuple(runs), group.fold, np.array(group.rows), np.array(group.strength),
                 np.array(group.gap))


def steps(duration: float, longest: float, first: bool = True) -> np.ndarray:
    """Steps of a gradient, ms: up to ``longest``; growing from a short first one if it is new."""
    found, time = [], 0.0
    for step in FIRST_STEPS if first else ():
        if step < longest and time + step < duration / 3:
            found.append(step)
            time += step
    rest = int(np.ceil((duration - time) / longest - 1e-9))
    return np.array(found + [(duration - time) / rest] * rest)


class Basis:
    """Modes that signals are expanded in, as blocks whose positions are apart.

    Args:
        rates: ``(K,)`` decay rates, 1/ms.
        start: ``(K,)`` overlap of the modes with a uniform magnetisation, which also receives.
        modes: ``(K, K)`` in the basis of the blocks.
        positions: of each block, ``(3, n, n)`` um.
        dtype: of the propagation.
    """

    def __init__(self, rates: np.ndarray, start: np.ndarray, modes: np.ndarray,
                 positions: list[np.ndarray], dtype=np.float32):
        self.rates, self.start, self.modes, self.dtype = rates, start, modes, dtype
        ends = np.cumsum([0] + [x.shape[1] for x in positions])
        self._rows = [modes[a:b].T.astype(dtype)
                      for a, b in zip(ends[:-1], ends[1:], strict=True)]
        self._positions = [x.astype(dtype) for x in positions]
        self._frames: dict[Direction, Frame] = {}

    def frame(self, direction: Direction) -> Frame:
        """The eigenbasis of the position along a direction."""
        if direction not in self._frames:
            found = [scipy.linalg.eigh(np.tensordot(np.array(direction, x.dtype), x, axes=1),
                                       driver="evd", check_finite=False)
                     for x in self._positions]
            R = np.concatenate([r @ W for r, (_, W) in zip(self._rows, found, strict=True)],
                               axis=1)
            self._frames[direction] = Frame(self, np.concatenate([xi for xi, _ in found]), R)
        return self._frames[direction]

    def decay(self, time: float) -> np.ndarray:
        """``(K, 1)`` what is left of each mode."""
        return np.exp(-self.rates * time).astype(self.dtype)[:, None]

    @cached_property
    def axes(self) -> Axes:
        """The eigenbases of the positions along each axis."""
        return Axes(self, self._rows, self._positions)

    @cached_property
    def complex(self) -> np.dtype:
        return np.result_type(self.dtype, np.complex64)


class Frame:
    """The eigenbasis of one position operator.

    Args:
        basis: the modes.
        xi: ``(K,)`` eigenvalues, um.
        R: ``(K, K)`` eigenvectors in columns.
    """

    def __init__(self, basis: Basis, xi: np.ndarray, R: np.ndarray):
        self.basis, self.xi, self.R = basis, xi, R
        self.Rt = np.ascontiguousarray(R.T)
        self._transfer: dict[float, np.ndarray] = {}

    def between(self, y: np.ndarray, time: float) -> np.ndarray:
        """Decay over a time, ms, of states of the frame ``(K, m)``."""
        basis = self.basis
        if time not in self._transfer:
            self._transfer[time] = (self.Rt * basis.decay(time)[:, 0]) @ self.R
        return (self._transfer[time] @ y.view(basis.dtype)).view(basis.complex)

    def phase(self, turn: np.ndarray) -> np.ndarray:
        """exp(-i xi turn), ``turn`` ``(m,)`` rad/um, ``(K, m)``; by real functions, for speed."""
        angle = self.xi[:, None] * -turn.astype(self.basis.dtype)
        result = np.empty(angle.shape, self.basis.complex)
        np.cos(angle, out=result.real)
        np.sin(angle, out=result.imag)
        return result


def signals(sweeps: Sweeps, basis: Basis) -> np.ndarray:
    """Signals ``(N,)`` complex, of the measurements of ``sweeps``."""
    result = at_rest(sweeps, basis)
    for bundle in sweeps.bundles:
        z = np.repeat(basis.start.astype(basis.complex)[:, None], len(bundle.rows), axis=1)
        for run, turn in zip(bundle.runs, bundle.turns, strict=True):
            z = (basis.axes.moved(run, turn, z) if run.direction
                 else basis.decay(run.steps.sum()) * z)
        result[bundle.rows] = received(basis, bundle, z)
    return result


def at_rest(sweeps: Sweeps, basis: Basis) -> np.ndarray:
    """Signals ``(N,)`` complex, of the measurements without gradient; 0 of others."""
    result = np.zeros(sweeps.number, dtype=complex)
    result[sweeps.still] = np.exp(-np.outer(sweeps.echo_time, basis.rates)) @ basis.start**2
    return result


def received(basis: Basis, sweep: Sweep | Bundle, z: np.ndarray) -> np.ndarray:
    """Signals of states ``(K, m)`` after the runs of a sweep."""
    z = z.astype(complex)
    decay = np.exp(-basis.rates[:, None] * sweep.gap)
    if sweep.fold < 0:
        return ((z.real**2 + z.imag**2) * decay).sum(axis=0)
    left = z if sweep.fold else basis.start[:, None]
    return (left * decay * z).sum(axis=0)


class Axes:
    """The eigenbases of the positions along each axis, in which phases are taken.

    Args:
        basis: the modes.
        rows: of the modes, of each block, ``(K, n)``.
        positions: of each block, ``(dim, n, n)`` um.
    """

    def __init__(self, basis: Basis, rows: list[np.ndarray], positions: list[np.ndarray]):
        self.basis = basis
        found = [np.linalg.eigh(x) for x in positions]
        self._xi = np.concatenate([xi for xi, _ in found], axis=1)[:, :, None]
        ends = np.cumsum([0] + [len(x[0]) for x in positions])
        self._blocks = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        bases = [V for _, V in found]  # (dim, n, n) of each block
        last = len(self._xi) - 1
        # from an axis to the next and back, of each block
        self._next = [[V[k + 1].T @ V[k] for V in bases] for k in range(last)]
        self._back = [[np.ascontiguousarray(V.T) for V in turn] for turn in self._next]
        # from the modes to the first axis and to the last
        self._from = [np.concatenate([V[k].T @ r.T for V, r in zip(bases, rows, strict=True)])
                      for k in (0, last)]
        self._decay: dict[tuple[float, int], np.ndarray] = {}

    def moved(self, run: Run, turn: np.ndarray, z: np.ndarray) -> np.ndarray:
        """States in the modes after a run, ``(K, m)``, of those before it.

        Args:
            run: steps with a gradient.
            turn: ``(dim, m)`` rad/(ms um), of each measurement where ``values`` is 1.
            z: ``(K, m)`` complex.
        """
        basis, h, last = self.basis, run.steps, None
        y = self._times(self._from[0], basis.decay(h[0] / 2) * z)
        for k, (step, value) in enumerate(zip(h, run.values, strict=True)):
            if (step, value) != last:
                phases, last = self._phases(step * value * turn), (step, value)
            end = (k + 1) % 2  # steps go from the first axis to the last, and back
            if end:
                y *= phases[0]
                for phase, change in zip(phases[1:], self._next, strict=True):
                    y = self._changed(change, y)
                    y *= phase
            else:
                y *= phases[-1]
                for phase, change in zip(phases[-2::-1], self._back[::-1], strict=True):
                    y = self._changed(change, y)
                    y *= phase
            if k < len(h) - 1:
                y = self._times(self._decayed(run.joints[k], end), y)
        return basis.decay(h[-1] / 2) * self._times(self._from[end].T, y)

    def _phases(self, turn: np.ndarray) -> np.ndarray:
        """exp(-i xi turn), ``(dim, K, m)``; by real functions, for speed."""
        angle = self._xi * -turn[:, None, :].astype(self.basis.dtype)
        result = np.empty(angle.shape, self.basis.complex)
        np.cos(angle, out=result.real)
        np.sin(angle, out=result.imag)
        return result

    def _changed(self, change: list[np.ndarray], y: np.ndarray) -> np.ndarray:
        result = np.empty_like(y)
        for V, block in zip(change, self._blocks, strict=True):
            np.matmul(V, y[block].view(self.basis.dtype), out=result[block].view(self.basis.dtype))
        return result

    def _decayed(self, time: float, end: int) -> np.ndarray:
        """Decay over a time, ms, of states in the first eigenbasis or in the last."""
        if (time, end) not in self._decay:
            from_modes = self._from[end]
            self._decay[time, end] = (from_modes * self.basis.decay(time)[:, 0]) @ from_modes.T
        return self._decay[time, end]

    def _times(self, matrix: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (matrix @ y.view(self.basis.dtype)).view(self.basis.complex)
