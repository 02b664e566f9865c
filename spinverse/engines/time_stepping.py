"""Time stepping: the weak form marched in time, whatever terms it has.

Both schemes are diagonally implicit Runge-Kutta with one diagonal coefficient a. A step of
length h of M y' + A y = 0, with A constant over it, is, for stages i = 1..s,

    (M + a h A) Y_i = M z_i,    z_i = y0 + sum_{j<i} a_ij K_j,    K_i = (Y_i - z_i) / a,
    y1 = y0 + sum_i b_i K_i,

so one factor serves all steps of that length and gradient. The derivative is that of these
formulas: one transposed solve a stage, with the same factor, from the last step to the first.

Pieces of constant gradient are cut into equal steps that end at the breakpoints. Where a waveform
is not piecewise constant, every step has the gradient of its midpoint. Both are second order.
"""

from __future__ import annotations

from dataclasses import dataclass

import dolfinx
import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

from ..acquisition.table import Acquisition
from ..errors import InputError, SolverError
from ..problem import BlochTorrey
from .coefficient_derivatives import OfConstant, OfFunction, OfPermeability
from .pair_system import PairSystem

# Stage vectors of one measurement that a rank keeps for the backward sweep, bytes; beyond, the
# measurement is swept in blocks of steps whose first states are kept.
TRAJECTORY_BYTES = 2**30

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
    """Equal steps under one gradient, rad/(ms um)."""

    gradient: tuple[float, float, float]
    steps: int
    step: float


class TimeStepping:
    """Signals and their exact derivative with respect to any coefficient of the weak form.

    Args:
        problem: the discrete problem, extra terms included.
        acquisition: the measurements.
        time_step: longest step, ms.
        scheme: "sdirk2", or "midpoint" (half the solves, but stiff modes ring).
        options_prefix: PETSc options with this prefix reach the linear solver, which is MUMPS LU.

    Raises:
        InputError: a bad time step or scheme, or extra terms that are not linear in m and v.
    """

    def __init__(self, problem: BlochTorrey, acquisition: Acquisition, time_step: float = 0.1,
                 scheme: str = "sdirk2", options_prefix: str = "spinverse_ts_"):
        if scheme not in SCHEMES:
            raise InputError(f"scheme: {scheme!r}, expected one of {', '.join(sorted(SCHEMES))}")
        if not (isinstance(time_step, int | float) and 0 < time_step < np.inf):
            raise InputError(f"time_step: {time_step!r}, expected a positive time in ms")
        self.problem, self.acquisition = problem, acquisition
        self.time_step, self.scheme = float(time_step), SCHEMES[scheme]
        self._system = PairSystem(problem, options_prefix)
        self._plan = _plan(acquisition, self.time_step)
        self._remembered: np.ndarray | None = None
        self._derivatives: dict = {}

    def signals(self, permeability: np.ndarray | None = None, remember: bool = False) -> np.ndarray:
        """Complex signals, ``(N,)``, um^3 times density, the same on every rank. Collective.

        Args:
            permeability: ``(nf,)`` um/ms of the owned facets; as it is if nothing is said.
            remember: keep what `gradient` needs: the permeability, it computes the rest again.

        Raises:
            SolverError: a factorisation or solve failed, or the signals are not finite.
        """
        if permeability is not None:
            self.problem.set_permeability(permeability)
        if remember:
            self._remembered = self.problem.kappa.x.array.copy()
        self._system.update()
        result = np.zeros(len(self.acquisition), dtype=complex)
        y = self._system.initial.copy()
        try:
            for runs, rows in self._plan.items():
                self._system.initial.copy(y)
                for run in runs:
                    self._march(y, run)
                result[rows] = self._system.signal(y)
        finally:
            self._system.forget_factors()
            y.destroy()
        if not np.isfinite(result).all():
            raise SolverError(f"time stepping: signal of measurement "
                              f"{int(np.flatnonzero(~np.isfinite(result))[0])} is not finite")
        return result

    def gradient(self, adjoint: np.ndarray) -> np.ndarray:
        """Derivative of J with respect to the permeability of the owned facets. Collective.

        Args:
            adjoint: ``(N,)`` complex w with dJ = Re sum(conj(w) dS), the same on every rank.

        Returns:
            ``(nf,)``, zero on tied facets; at the permeability of the last
            ``signals(..., remember=True)``.
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
        problem, system = self.problem, self._system
        adjoint = np.asarray(adjoint, dtype=complex)
        if adjoint.shape != (len(self.acquisition),):
            raise InputError(f"adjoint: shape {adjoint.shape}, expected "
                             f"({len(self.acquisition)},): one value for each measurement")
        sums = [self._derivative(c) for c in coefficients]
        for total in sums:
            total.reset()
        present = problem.kappa.x.array.copy()
        if self._remembered is not None:
            problem.kappa.x.array[:] = self._remembered
        try:
            system.update()
            for runs, rows in self._plan.items():
                w = complex(adjoint[rows].sum())
                if w:
                    self._sweep(runs, w, sums)
        finally:
            system.forget_factors()
            problem.kappa.x.array[:] = present
        return [total.result() for total in sums]

    # ---- one measurement ----------------------------------------------------------------------

    def _march(self, y: PETSc.Vec, run: _Run, keep: list | None = None) -> None:
        """Advance ``y`` in place; append the stage vectors to ``keep``."""
        system, scheme = self._system, self.scheme
        factor = system.factor(run.gradient, scheme.diagonal * run.step)
        z, rhs, Y, *K = system.work(3 + len(scheme.b))
        system.turn(y, run.gradient)
        for _ in range(run.steps):
            for i, row in enumerate(scheme.a):
                y.copy(z)
                z.maxpy(row[:-1], K[:i])
                system.mass.mult(z, rhs)
                factor.solve(rhs, Y)
                if keep is not None:
                    keep.append(Y.getArray(readonly=True).copy())
                K[i].waxpy(-1.0, z, Y)
                K[i].scale(1 / scheme.diagonal)
            y.maxpy(scheme.b, K)
        system.turn(y, run.gradient)

    def _march_back(self, adjoint: PETSc.Vec, run: _Run, stages: list, sums: list) -> None:
        """The transpose of `_march`; adds -a h mu^T (dA/dc) Y of every stage to ``sums``."""
        system, scheme = self._system, self.scheme
        a, count = scheme.diagonal, len(scheme.b)
        factor = system.factor(run.gradient, a * run.step)
        rhs, mu, Y, *z = system.work(3 + count)
        system.turn(adjoint, run.gradient)
        for step in reversed(range(run.steps)):
            for i in reversed(range(count)):
                adjoint.copy(rhs)
                rhs.scale(scheme.b[i])
                rhs.maxpy([scheme.a[j][i] for j in range(i + 1, count)], z[i + 1:])
                rhs.scale(1 / a)
                factor.solve(rhs, mu, transposed=True)
                system.mass.mult(mu, z[i])  # M is symmetric
                z[i].axpy(-1.0, rhs)
                Y.setArray(stages[step * count + i])
                system.expand(Y, mu, run.gradient)
                for total in sums:
                    total.add(-a * run.step)
            adjoint.maxpy([1.0] * count, z)
        system.turn(adjoint, run.gradient)

    def _sweep(self, runs: tuple[_Run, ...], w: complex, sums: list) -> None:
        """Forward and back again through one measurement."""
        system, per_step = self._system, len(self.scheme.b)
        bytes_a_step = 8 * per_step * system.comm.allreduce(system.initial.getLocalSize(), MPI.MAX)
        fits = sum(run.steps for run in runs) * bytes_a_step <= TRAJECTORY_BYTES
        blocks = runs if fits else _cut(runs, max(1, TRAJECTORY_BYTES // bytes_a_step))
        y, starts, trajectories = system.initial.copy(), [], []
        for block in blocks:
            stages = [] if fits else None
            starts.append(None if fits else y.getArray(readonly=True).copy())
            self._march(y, block, stages)
            trajectories.append(stages)
        adjoint = system.signal_transposed(w)
        for block in reversed(blocks):
            start, stages = starts.pop(), trajectories.pop()
            if not fits:
                y.setArray(start)
                stages = []
                self._march(y, block, stages)
            self._march_back(adjoint, block, stages, sums)
        y.destroy()
        adjoint.destroy()

    # ---- coefficients -------------------------------------------------------------------------

    def _derivative(self, coefficient):
        known = self._derivatives.get(id(coefficient))
        if known is None:
            system = self._system
            if coefficient is self.problem.kappa and not system.extra_has(coefficient):
                known = OfPermeability(system)
            elif isinstance(coefficient, dolfinx.fem.Function):
                known = OfFunction(system, coefficient)
            elif isinstance(coefficient, dolfinx.fem.Constant):
                known = OfConstant(system, coefficient)
            else:
                raise InputError(f"coefficient: {coefficient!r:.60} is of the wrong kind, "
                                 "expected a dolfinx Function or Constant")
            self._derivatives[id(coefficient)] = known
        return known


def _plan(acquisition: Acquisition, time_step: float) -> dict[tuple[_Run, ...], list[int]]:
    """Rows of the table by the steps that they take; neighbours share gradients."""
    plan: dict[tuple, list[int]] = {}
    segments = [waveform.segments(time_step) for waveform in acquisition.waveforms]
    for row, g in enumerate(acquisition.gradient):
        runs: list[_Run] = []
        for duration, value in zip(*segments[acquisition.waveform_index[row]], strict=True):
            steps = max(1, int(np.ceil(duration / time_step * (1 - 1e-12))))
            # times and values that differ by rounding are to share a factor
            step = float(f"{duration / steps:.12g}")
            gradient = tuple((round(float(value), 12) * g + 0.0).tolist())
            if runs and (runs[-1].gradient, runs[-1].step) == (gradient, step):
                steps += runs.pop().steps
            runs.append(_Run(gradient, steps, step))
        plan.setdefault(tuple(runs), []).append(row)
    return dict(sorted(plan.items(), key=lambda item: (max(item[0]).gradient, item[0])))


def _cut(runs: tuple[_Run, ...], longest: int) -> list[_Run]:
    """Runs of at most ``longest`` steps."""
    return [_Run(run.gradient, min(longest, run.steps - first), run.step)
            for run in runs for first in range(0, run.steps, longest)]
