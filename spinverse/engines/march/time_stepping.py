"""Time stepping: the weak form marched in time, whatever terms it has.

Both schemes are diagonally implicit Runge-Kutta with one diagonal coefficient a. A step of length h
of M y' + A y = 0, with A constant over it, is, for stages i = 1..s,

    (M + a h A) Y_i = M z_i,    z_i = y0 + sum_{j<i} a_ij K_j,    K_i = (Y_i - z_i) / a,
    y1 = y0 + sum_i b_i K_i,

so one factor serves all steps of that length and gradient. The derivative is that of these
formulas: one transposed solve a stage, with the same factor, from the last step to the first. On
larger meshes without extra terms and periodic axes one factor, of M + a h A at no gradient, serves
all measurements, which are marched side by side: see `common_factor`.

Pieces of constant gradient are cut into equal steps that end at the breakpoints: second order. Of
other waveforms pieces of fourth order (`spinverse.acquisition.waveform`) are a step each. Extra
terms that know the time are taken at the middle of each step, of second order too, and cost a
factor a step; steps end at 180-degree pulses if the terms know their sign, and at the problem's
``extra_breakpoints``.

Along periodic axes the operator depends on Q(t) = int_0^t g (`spinverse.forms`): a step takes Q at
its middle and the mean of g, second order, which is a factor a step; plateaus of Q share one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...acquisition.table import Acquisition
from ...errors import InputError, SolverError
from ...phases import phase
from ...problem import BlochTorrey
from .. import silent
from ..derivatives import Derivatives
from ..schedule.echoes import refocusing_times, split
from ..schedule.groups import check_directions
from ..schedule.storage import ends, stores
from .columns import March
from .common_factor import CommonFactor
from .pair_system import PairSystem

# Stage vectors of one measurement that a rank keeps for the backward sweep, bytes; beyond, the
# measurement is swept in blocks of steps whose first states are kept.
TRAJECTORY_BYTES = 2**30

_AIM = 0.6  # of the tolerance, for the measurements that are not looked at
_COARSEST = 2e-3  # errors above it come from steps that are not yet of second order
_SAME = 1e-9  # ms; times closer than this are one
_SHORTER = 1.6  # times that steps are to be shorter in the next try


@dataclass(frozen=True)
class _Scheme:
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    @property
    def diagonal(self) -> float:
        return self.a[0][0]


_G = 1 - np.sqrt(0.5)
SCHEMES = {
    # Alexander (1977): two stages, second order, L-stable
    "sdirk2": _Scheme(((_G,), (1 - _G, _G)), (1 - _G, _G)),
    # Gauss-Legendre with one stage: second order, A-stable; stiff modes ring
    "midpoint": _Scheme(((0.5,),), (1.0,)),
}


@dataclass(frozen=True, order=True)
class _Run:
    """Equal steps under one gradient: see `pair_system.Gradient`; or while stored along z."""

    gradient: tuple[float, ...]
    steps: int
    step: float
    stored: bool = False


class TimeStepping:
    """Signals and their exact derivative with respect to any coefficient of the weak form.

    Args:
        problem: the discrete problem, extra terms included.
        acquisition: the measurements.
        time_step: longest step, ms; or "auto": as long as ``tolerance`` allows, found at the
            first call from the strongest measurement of each waveform, run at falling steps.
        tolerance: of "auto": wanted absolute error of the normalised signals from the steps.
        scheme: "sdirk2", or "midpoint" (half the solves, but stiff modes ring).
        options_prefix: PETSc options with this prefix reach the linear solvers, which are MUMPS
            factors; the option ``common`` says whether all measurements share one.

    Raises:
        InputError: a bad time step or scheme, or extra terms that are not linear in m and v.
    """

    def __init__(self, problem: BlochTorrey, acquisition: Acquisition,
                 time_step: float | str = 0.1, scheme: str = "sdirk2",
                 options_prefix: str = "spinverse_ts_", tolerance: float = 1e-4):
        if scheme not in SCHEMES:
            raise InputError(f"scheme: {scheme!r}, expected one of {', '.join(sorted(SCHEMES))}")
        if time_step != "auto" and not (isinstance(time_step, int | float)
                                        and 0 < time_step < np.inf):
            raise InputError(f"time_step: {time_step!r}, expected a positive time in ms or 'auto'")
        if not tolerance > 0:
            raise InputError(f"tolerance: {tolerance!r}, expected a positive number")
        check_directions(acquisition, problem.mesh)
        self.problem, self.acquisition = problem, acquisition
        self.scheme, self.tolerance = SCHEMES[scheme], tolerance
        # no step before the first call of "auto"
        self.time_step: float | str = "auto" if time_step == "auto" else float(time_step)
        self.estimated_error = np.nan
        self._stores = stores(problem, acquisition)
        self._system = PairSystem(problem, options_prefix, self._stores)
        self._common = CommonFactor(self._system, options_prefix) if CommonFactor.serves(
            problem, options_prefix) else None
        self._present: CommonFactor | PairSystem = self._common or self._system
        self._plan = (self._rows_by_steps(self.time_step) if isinstance(self.time_step, float)
                      else None)
        self._limit: tuple[list[int], np.ndarray] | None = None
        self._remembered: np.ndarray | None = None
        self._derivatives = Derivatives(self._system)
        self.progress: Callable[[str, int, int], None] = silent

    def signals(self, permeability: np.ndarray | None = None, remember: bool = False) -> np.ndarray:
        """Complex signals, ``(N,)``, um^3 times density, the same on every rank. Collective.

        At a permeability, ``(nf,)`` um/ms of the owned facets, or the present one. What `gradient`
        needs to ``remember`` is the permeability; it computes the rest again.

        Raises:
            SolverError: a factorisation or solve failed, or the signals are not finite.
        """
        if permeability is not None:
            self.problem.set_permeability(permeability)
        if remember:
            self._remembered = self.problem.kappa.x.array.copy()
        self._present.update()
        if self._plan is None:
            self._choose_step()
        result = self._run(self._plan, "signals")
        if not np.isfinite(result).all():
            raise SolverError(f"time stepping: signal of measurement "
                              f"{int(np.flatnonzero(~np.isfinite(result))[0])} is not finite")
        if self._limit is not None:
            rows, limit = self._limit
            scale = abs(self.problem.magnetisation_at_start) or 1.0
            self.estimated_error = float(np.abs(result[rows] - limit).max()) / scale
            self._limit = None
        return result

    @phase("time stepping")
    def _run(self, plan: dict[tuple[_Run, ...], list[int]],
             what: str = "choosing the time step") -> np.ndarray:
        """Signals of the rows in ``plan``, ``(N,)``; zero in the others."""
        result = np.zeros(len(self.acquisition), dtype=complex)
        try:
            March(self._present, self.scheme).run(plan, result, partial(self.progress, what))
        finally:
            self._present.forget_factors()
        return result

    def _rows_by_steps(self, time_step: float, rows=None) -> dict[tuple[_Run, ...], list[int]]:
        """Rows of the table by the steps that they take; neighbours share gradients."""
        acquisition, problem, system = self.acquisition, self.problem, self._system
        plan: dict[tuple, list[int]] = {}
        pieces, dim = [], problem.mesh.dim
        for waveform in acquisition.waveforms:
            turns = refocusing_times(waveform) if system.signed else ()
            cuts = sorted({*turns, *problem.extra_breakpoints, *ends(waveform)})
            found = _along_period(waveform, time_step, cuts) if problem.periodic else split(
                zip(*waveform.segments(time_step), strict=True), cuts)
            pieces.append(_with_extras(found, time_step, turns, system.signed, system.timed))
        along = np.isin(np.arange(dim), problem.periodic)
        for row in range(len(acquisition)) if rows is None else rows:
            k = acquisition.waveform_index[row]
            g = acquisition.strength[row] * (
                1.0 if acquisition.waveforms[k].vector else acquisition.directions[row, :dim])
            runs: list[_Run] = []
            begin = 0.0
            for duration, value, wave, known in pieces[k]:
                stored = bool(acquisition.waveforms[k].stored(begin + duration / 2))
                begin += duration
                steps = max(1, int(np.ceil(duration / time_step * (1 - 1e-12))))
                # times and values that differ by rounding are to share a factor
                step = float(f"{duration / steps:.12g}")
                gradient = _times(value, g, dim)
                if wave is not None:
                    gradient += _times(wave, g * along, dim)
                gradient += known + (float(stored),) * self._stores
                if runs and (runs[-1].gradient, runs[-1].step) == (gradient, step):
                    steps += runs.pop().steps
                runs.append(_Run(gradient, steps, step, stored))
            plan.setdefault(tuple(runs), []).append(row)
        return dict(sorted(plan.items(), key=lambda item: (max(item[0]).gradient, item[0])))

    def _choose_step(self) -> None:
        """Halve the step until some measurements of each waveform change by no more than it allows.

        Second order: of the change from steps r times as long 1 / (r^2 - 1) is left. The limit
        that the last two runs point at is what the signals are compared with, once they are there.
        """
        scale = abs(self.problem.magnetisation_at_start) or 1.0
        rows, wanted = self._telling_rows(), min(self.tolerance, _COARSEST)
        step = max(w.echo_time for w in self.acquisition.waveforms) / 20
        plan = self._rows_by_steps(step, rows)
        lengths, coarse = _mean_steps(plan, rows), self._run(plan)
        while True:
            before = lengths
            # shapes that ask for short steps themselves do not see all of these halvings
            while np.any(before < _SHORTER * lengths) or lengths is before:
                step /= 2
                plan = self._rows_by_steps(step, rows)
                lengths = _mean_steps(plan, rows)
            fine = self._run(plan)
            left = (fine[rows] - coarse[rows]) / ((before / lengths) ** 2 - 1)
            error = float(np.abs(left).max()) / scale
            if not error > wanted:  # NaN ends it too
                break
            coarse = fine
        if error > 0:
            step *= min(1.0, np.sqrt(_AIM * wanted / error))
        self.time_step = float(step)
        self._plan = self._rows_by_steps(step)
        self._limit = rows, fine[rows] + left

    def _telling_rows(self) -> list[int]:
        """Of each waveform the strongest, the weakest and a middle measurement."""
        acquisition, rows = self.acquisition, []
        for k in range(len(acquisition.waveforms)):
            mine = np.flatnonzero(acquisition.waveform_index == k)
            mine = mine[np.argsort(acquisition.b[mine], kind="stable")]
            rows += mine[np.unique([0, len(mine) // 2, len(mine) - 1])].tolist()
        return rows

    def gradient(self, adjoint: np.ndarray) -> np.ndarray:
        """Derivative of J with respect to the permeability of the owned facets; see `gradients`.

        At the permeability of the last ``signals(..., remember=True)``. Collective.
        """
        return self.gradients(adjoint, [self.problem.kappa])[0]

    def gradient_of(self, coefficient, adjoint: np.ndarray) -> np.ndarray:
        """Derivative of J with respect to one coefficient; see `gradients`. Collective."""
        return self.gradients(adjoint, [coefficient])[0]

    def gradients(self, adjoint: np.ndarray, coefficients: list) -> list[np.ndarray]:
        """Derivatives of J with respect to coefficients of the weak form. Collective.

        All come from one backward sweep a measurement.

        Args:
            adjoint: ``(N,)`` complex w with dJ = Re sum(conj(w) dS), the same on every rank.
            coefficients: dolfinx Functions (``problem.kappa``, ``problem.coefficients.D``, one
                of the user's own) or Constants that the weak form contains.

        Returns:
            For each Function dJ/d(its owned degrees of freedom), ``(n,)``, as they lie in
            ``x.array``; for each Constant an array of its shape, the same on every rank. Zero
            for the permeability of tied facets.

        Raises:
            InputError: a coefficient that the weak form does not contain.
            SolverError: as `signals`.
        """
        problem, present = self.problem, self.problem.kappa.x.array.copy()
        adjoint = np.asarray(adjoint, dtype=complex)
        if adjoint.shape != (len(self.acquisition),):
            raise InputError(f"adjoint: shape {adjoint.shape}, expected "
                             f"({len(self.acquisition)},): one value for each measurement")
        sums = [self._derivatives(c) for c in coefficients]
        if self._remembered is not None:
            problem.kappa.x.array[:] = self._remembered
        try:
            self._present.update()
            wanted = {runs: rows for runs, rows in self._plan.items() if adjoint[rows].sum()}
            with phase("time stepping back"):
                March(self._present, self.scheme).sweep(wanted, adjoint, sums, TRAJECTORY_BYTES)
        finally:
            self._present.forget_factors()
            problem.kappa.x.array[:] = present
        return [total.result() for total in sums]

    def states(self, row: int, times: Sequence[float]) -> np.ndarray:
        """The unknown in one measurement at ascending times, ``(n, nd)`` complex. Collective.

        Values at the owned degrees of freedom of the broken space, at ``times`` in ms up to TE; the
        steps in between are those of `signals`.
        """
        system = self._system
        if not isinstance(self.time_step, float):
            self.signals()  # it chooses the step
        (runs, _), = self._rows_by_steps(float(self.time_step), [row]).items()
        system.update()
        march, y, found = March(system, self.scheme), system.start(1), []
        waiting, begin = list(times), 0.0
        try:
            for run in runs:
                left = run.steps
                while waiting and waiting[0] <= begin + left * run.step + _SAME:
                    whole = min(int((waiting[0] - begin + _SAME) / run.step), left)
                    march.forward(y, [run.gradient], whole, run.step)
                    begin, left = begin + whole * run.step, left - whole
                    z, rest = y.copy(), waiting.pop(0) - begin
                    if rest > _SAME:
                        march.forward(z, [run.gradient], 1, rest)
                    found.append(system.broken(z))
                march.forward(y, [run.gradient], left, run.step)
                begin += left * run.step
            # what rounding left over is at the end
            found += [system.broken(y) for _ in waiting]
        finally:
            system.forget_factors()
        return np.array(found)


def _with_extras(pieces, time_step: float, turns: tuple[float, ...], signed: bool,
                 timed: bool) -> list[tuple]:
    """Pieces with f, F (None without periods), and what extra terms know: sign, time."""
    result, begin = [], 0.0
    for duration, value, *wave in pieces:
        sign = ((-1.0) ** sum(turn < begin + duration / 2 for turn in turns),) if signed else ()
        wave = wave[0] if wave else None
        count = max(1, int(np.ceil(duration / time_step * (1 - 1e-12)))) if timed else 1
        for k in range(count):
            middle = (float(f"{begin + (k + 0.5) * duration / count:.12g}"),) if timed else ()
            result.append((duration / count, value, wave, sign + middle))
        begin += duration
    return result


def _mean_steps(plan: dict[tuple[_Run, ...], list[int]], rows: list[int]) -> np.ndarray:
    """Step of each of ``rows``, ms, a mean over the time with a gradient, or over all if none."""
    result: dict[int, float] = {}
    for runs, its in plan.items():
        driven = [run for run in runs if any(run.gradient) and not run.stored] or runs
        h, n = (np.array([getattr(run, name) for run in driven]) for name in ("step", "steps"))
        result |= dict.fromkeys(its, float(n @ h**2 / (n @ h)))
    return np.array([result[row] for row in rows])


def _times(value, g, dim: int) -> tuple[float, ...]:
    value = np.round(value[:dim] if np.ndim(value) else value, 12)
    return tuple((value * g + 0.0).tolist())


def _along_period(waveform, time_step: float, cuts=()) -> list[tuple]:
    """Steps of a waveform: their length, the mean of f and F = int f in their middle."""
    bounds = np.asarray(waveform.breakpoints)
    inside = [cut for cut in cuts if 0 < cut < bounds[-1]
              and np.abs(bounds - cut).min() > 1e-9 * bounds[-1]]
    bounds = np.sort(np.append(bounds, inside))
    counts = np.maximum(1, np.ceil(np.diff(bounds) / time_step * (1 - 1e-12))).astype(int)
    edges = np.concatenate([np.linspace(low, high, n, endpoint=False) for low, high, n in
                            zip(bounds[:-1], bounds[1:], counts, strict=True)] + [bounds[-1:]])
    step = np.repeat(np.diff(bounds) / counts, counts)
    gained = np.diff(waveform.integral(edges), axis=0)
    mean = gained / step.reshape(-1, *[1] * (gained.ndim - 1))
    return list(zip(step, mean, waveform.integral((edges[1:] + edges[:-1]) / 2), strict=True))
