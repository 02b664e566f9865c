"""Optimisers that can be interrupted: TAO through pyadjoint, Gauss-Newton, the published Adam."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc
from pyadjoint import AdjFloat, MinimizationProblem, ReducedFunctional, TAOSolver, stop_annotating
from pyadjoint.optimization.tao_solver import TAOConvergenceError

from ..adjoint import FacetField
from ..errors import InputError, SolverError
from .gauss_newton import Linearisation, bounded_step
from .memory import Keeper, Log, Memory
from .stages import TAO, Adam, GaussNewton, Stage

_HISTORY = 5  # points and gradients that a quasi-Newton matrix is made of: more did not help
_HISTORY_OPTION = "mat_lmvm_hist_size"
_SAME = 1e-6  # of a control, by facet: how close a replayed run must come to where it was


class StopStage(Exception):
    """Raised by a monitor when the stage has reached its goal."""


class BacktrackingFunctional(ReducedFunctional):
    """A reduced functional for which a failed solve is J = inf, so that a line search backs off.

    Attributes:
        log: what it writes its answers down in, and reads known ones from; None for neither.
    """

    failures, failed = 0, False
    log: Log | None = None

    def __call__(self, values):
        value = None if self.log is None else self.log.answer(gradient=False)
        if value is not None:
            self.failed = not np.isfinite(value)
            return AdjFloat(value)
        self.failed = False
        try:
            value = super().__call__(values)
        except SolverError:
            self.failures, self.failed = self.failures + 1, True
            value = AdjFloat(np.inf)
        if self.log is not None:
            self.log.add(False, float(value))
        return value

    def derivative(self, *args, **kwargs):
        known = None if self.log is None else self.log.answer(gradient=True)
        if known is not None:
            return self.controls[0].control._ad_init_object(known)
        found = None
        if not self.failed:
            try:
                found = super().derivative(*args, **kwargs)
            except SolverError:
                self.failures, self.failed = self.failures + 1, True
        if found is None:
            found = self.controls[0].control._ad_init_zero()
        if self.log is not None:
            self.log.add(True, found.values)
        return found


def minimise(stage: Stage, functional: BacktrackingFunctional, start: FacetField,
             bounds: tuple[float, float], monitor: Callable, keeper: Keeper | None = None,
             linearisation: Linearisation | None = None) -> tuple[FacetField, str]:
    """Run a stage's optimiser. Collective.

    Args:
        stage: its optimiser and number of iterations.
        functional: the loss as a function of the control.
        start: the control to start from.
        bounds: lower and upper bound of the control.
        monitor: called as ``monitor(iteration, loss, gradient_norm, step)`` after each iteration;
            may raise `StopStage`.
        keeper: has the memory of an earlier run of this stage to go on from, in which case
            iterations count on and ``start`` does not matter; gives the present one to the
            monitor.
        linearisation: of the functional; for `GaussNewton`, which needs it.

    Returns:
        The control that was reached, and why it ended there.

    Raises:
        InputError: `GaussNewton` without a linearisation.
    """
    keeper = Keeper() if keeper is None else keeper
    key = _key(stage.optimiser)
    earlier = keeper.earlier
    if earlier is not None:
        start = start._like(earlier.facets["control"])
    run = _Run(stage, functional, start, bounds, monitor, keeper, key, earlier)
    if earlier is not None and earlier.optimiser == key:
        run = replace(run, before=int(earlier.numbers["before"]))
    elif earlier is not None:
        run = run.without_memory()
    with stop_annotating():
        if isinstance(stage.optimiser, GaussNewton):
            if linearisation is None:
                raise InputError(f"stage {stage.name!r}: Gauss-Newton needs the matrix formalism, "
                                 "expected engine matrix_formalism or another optimiser")
            return _gauss_newton(run, stage.optimiser, linearisation)
        if isinstance(stage.optimiser, TAO):
            return _tao(run, stage.optimiser)
        return _adam(run, stage.optimiser)


@dataclass(frozen=True, eq=False)
class _Run:
    """What every optimiser is given: see `minimise`.

    ``earlier`` is a memory that this optimiser can use. Optimisers count their iterations from
    the point that their memory began with, which is ``before`` iterations after the stage's.
    """

    stage: Stage
    functional: BacktrackingFunctional
    start: FacetField
    bounds: tuple[float, float]
    monitor: Callable
    keeper: Keeper
    key: str
    earlier: Memory | None
    before: int = 0

    @property
    def iterations(self) -> int:
        """At most so many."""
        return max(1, self.stage.iterations - self.before)

    @property
    def done(self) -> int:
        """Iterations that the memory knows of."""
        return 0 if self.earlier is None else self.earlier.iteration - self.before

    def without_memory(self) -> _Run:
        """Go on from the control in the memory, forgetting the rest."""
        return replace(self, before=self.earlier.iteration, earlier=None)

    def report(self, iteration: int, loss: float, norm: float, step: float,
               state: Callable[[], tuple[dict, dict]]) -> None:
        """Keep the state, ``(numbers, values on facets)``, then call the monitor."""
        if iteration == 0 and self.before:
            return  # the last one of the run that was interrupted
        total, begun = iteration + self.before, np.array(self.before)

        def make():
            numbers, facets = state()
            return Memory(self.key, total, {"before": begun, **numbers}, facets)

        self.keeper.keep(loss, make)
        self.monitor(total, loss, norm, step)


def _key(optimiser) -> str:
    settings = json.dumps(asdict(optimiser), sort_keys=True, default=str)
    return f"{type(optimiser).__name__} {settings}"


def _tao(run: _Run, optimiser: TAO) -> tuple[FacetField, str]:
    functional, start, earlier = run.functional, run.start, run.earlier
    if earlier is not None and "kinds" not in earlier.numbers:  # the log had grown too long
        return _tao(run.without_memory(), optimiser)
    if earlier is not None:
        start = start._like(earlier.facets["start"])
    functional.log = log = Log(start.mesh.num_facets, earlier)
    with _sums_in_one_order():
        solver = _tao_solver(run, optimiser, start)
    last, at, stop, lost = start._ad_copy(), -1, None, False

    def watch(tao):
        nonlocal last, stop, lost, at
        now = start._ad_copy()
        now._ad_from_petsc(solver.x if tao.getSolution() is None else tao.getSolution())
        iteration, loss, norm, *_ = tao.getSolutionStatus()
        step, last, at = _norm(now, last), now, iteration
        if earlier is not None and iteration <= run.done:
            if iteration == run.done:
                away = _norm(now, start._like(earlier.facets["control"]))
                lost = log.replays or away > _SAME * (1 + np.sqrt(start.mesh.num_facets))
            lost = lost or log.broken
            return
        try:
            run.report(iteration, loss, norm, step, lambda: _with(
                log.arrays(), control=now.values, start=start.values))
        except StopStage as reason:
            stop = str(reason)

    def converged(tao):
        if stop is not None or lost:
            tao.setConvergedReason(tao.Reason.CONVERGED_USER)

    solver.tao.setMonitor(watch)
    solver.tao.setConvergenceTest(_with_default(converged, solver.tao))
    try:
        with _sums_in_one_order():
            solver.solve()
    except TAOConvergenceError:
        pass  # a capped stage or a tired line search ends; it does not fail
    finally:
        functional.log = None
    reason = int(solver.tao.getConvergedReason())
    result = start._ad_copy()
    result._ad_from_petsc(solver.x)
    solver.tao.destroy()
    if lost or at < run.done:
        return _tao(run.without_memory(), optimiser)
    return result, stop or _REASONS.get(reason, f"TAO reason {reason}")


def _tao_solver(run: _Run, optimiser: TAO, start: FacetField) -> TAOSolver:
    limits = [tuple(b if np.isfinite(b) else None for b in run.bounds)]
    problem = MinimizationProblem(run.functional, bounds=limits)
    parameters = {"tao_type": optimiser.type, "tao_max_it": run.iterations,
                  "tao_gatol": 1e-9, "tao_grtol": 0.0, "tao_gttol": 0.0, **optimiser.options}
    if optimiser.type in ("blmvm", "bqnls"):
        parameters.setdefault(f"tao_{optimiser.type}_{_HISTORY_OPTION}", _HISTORY)
    for control in run.functional.controls:
        control.update(start)
    return TAOSolver(problem, parameters, comm=start.mesh.comm,
                     options_prefix=f"spinverse_{run.stage.name.replace('+', '_')}_tao_"[:60])


@contextmanager
def _sums_in_one_order():
    """Vectors of PETSc that are made in the block add up in an order that memory has no say in.

    By default products of one vector with several go through BLAS's gemv where these happen to lie
    evenly spaced in memory, and one by one where they do not: the last digits of a quasi-Newton
    step would differ from process to process, and with them an interrupted run from a whole one.
    """
    options = PETSc.Options()
    ours = [name for name in ("vec_mdot_use_gemv", "vec_maxpy_use_gemv")
            if not options.hasName(name)]
    for name in ours:
        options.setValue(name, False)
    try:
        yield
    finally:
        for name in ours:
            options.delValue(name)


def _with(arrays: tuple[dict, dict], **facets: np.ndarray) -> tuple[dict, dict]:
    return arrays[0], {**arrays[1], **facets}


def _with_default(extra, tao):
    gatol, _, _ = tao.getTolerances()
    limit = tao.getMaximumIterations()

    def test(tao):
        iteration, loss, norm, *_ = tao.getSolutionStatus()
        extra(tao)
        if int(tao.getConvergedReason()) == 0:
            if norm <= gatol:
                tao.setConvergedReason(tao.Reason.CONVERGED_GATOL)
            elif iteration >= limit:
                tao.setConvergedReason(tao.Reason.DIVERGED_MAXITS)

    return test


_REASONS = {3: "gradient small enough", 4: "gradient small enough", 5: "gradient small enough",
            6: "step small enough", 7: "function small enough", -2: "iteration limit",
            -4: "numbers no longer finite", -5: "function evaluation limit",
            -6: "line search found nothing better", -7: "trust region too small"}


def _adam(run: _Run, optimiser: Adam) -> tuple[FacetField, str]:
    functional, earlier = run.functional, run.earlier
    control = good = run.start._ad_copy()
    first, second = np.zeros(len(control)), np.zeros(len(control))
    begin = int(run.before > 0)  # these iterations count from 0
    if earlier is not None:
        first, second = earlier.facets["first"], earlier.facets["second"]
        begin = run.done + 1
    for iteration in range(begin, run.iterations):
        loss = float(functional(control))
        gradient = functional.derivative().values
        norm = np.sqrt(control.mesh.comm.allreduce(float(gradient @ gradient)))
        if functional.failed:
            return good, "the solver failed"
        good = control
        if norm > optimiser.clip:
            gradient = gradient * (optimiser.clip / norm)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        count = iteration + (run.before == 0)
        direction = first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        before, rate = control, optimiser.rate(iteration + run.before)
        control = control._like(np.clip(control.values - rate * direction, *run.bounds))
        try:
            facets = {"control": control.values, "first": first, "second": second}
            run.report(iteration, loss, norm, _norm(control, before),
                       lambda facets=facets: ({}, facets))  # type: ignore[misc]
        except StopStage as stop:
            return before, str(stop)
    return control, "iteration limit"


def _gauss_newton(run: _Run, optimiser: GaussNewton,
                  linearisation: Linearisation) -> tuple[FacetField, str]:
    """Levenberg-Marquardt; the damping follows Nielsen (1999), IMM-REP-1999-05."""
    functional, earlier = run.functional, run.earlier
    comm, (low, high) = run.start.mesh.comm, run.bounds
    control, mu, growth, idle = run.start._ad_copy(), optimiser.damping, 2.0, 0
    if earlier is not None:
        mu, growth, idle = earlier.numbers["damping"].tolist()
    loss = float(functional(control))
    if not np.isfinite(loss):
        return control, "the solver failed"
    failures = 0

    def report(iteration, norm, step):
        numbers = {"damping": np.array([mu, growth, idle])}
        facets = {"control": control.values}
        run.report(iteration, loss, norm, step, lambda: (numbers, facets))

    try:
        for iteration in range(run.done, run.iterations + 1):
            if iteration == run.iterations:
                break
            try:
                model = linearisation(control.values)
            except SolverError:
                return control, "the solver failed"
            gradient = model.gradient
            projected = control.values - np.clip(control.values - gradient, low, high)
            norm = np.sqrt(comm.allreduce(float(projected @ projected)))
            if iteration == 0 and earlier is None:
                report(0, norm, 0.0)
            if norm <= optimiser.tolerance:
                return control, "gradient small enough"
            unit = comm.allreduce(float(model.diagonal.max(initial=0.0)), op=MPI.MAX)
            lower = np.maximum(low - control.values, -optimiser.longest_step)
            upper = np.minimum(high - control.values, optimiser.longest_step)
            lower, upper = np.minimum(lower, 0.0), np.maximum(upper, 0.0)
            for _ in range(optimiser.tries):
                try:
                    step, fall = bounded_step(comm, model, np.full(len(lower), mu * unit),
                                              lower, upper)
                except SolverError:
                    step, fall = None, 0.0
                reached = np.inf
                if fall > 0:
                    trial = control._like(np.clip(control.values + step, low, high))
                    reached = float(functional(trial))
                    failures += functional.failed
                if reached < loss:
                    break
                mu, growth = mu * growth, 2 * growth
            else:
                why = "the solver failed" if failures else "nothing better"
                return control, f"no step of {optimiser.tries} dampings lowered the loss ({why})"
            quality = (loss - reached) / fall
            mu = max(optimiser.least_damping,
                     mu * max(0.1, 1 - (2 * min(quality, 1.0) - 1) ** 3))
            growth = 2.0
            idle = idle + 1 if loss - reached < optimiser.least_gain * loss else 0
            length = _norm(trial, control)
            control, loss = trial, reached
            report(iteration + 1, norm, length)
            if idle >= 2:
                return control, "no longer improving"
    except StopStage as stop:
        return control, str(stop)
    return control, "iteration limit"


def _norm(a: FacetField, b: FacetField) -> float:
    difference = a.values - b.values
    return float(np.sqrt(a.mesh.comm.allreduce(float(difference @ difference), op=MPI.SUM)))
