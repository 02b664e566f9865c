"""Optimisers: TAO through pyadjoint, and the published Adam."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mpi4py import MPI
from pyadjoint import AdjFloat, MinimizationProblem, ReducedFunctional, TAOSolver, stop_annotating
from pyadjoint.optimization.tao_solver import TAOConvergenceError

from ..adjoint import FacetField
from ..errors import SolverError
from .stages import TAO, Adam, Stage


class StopStage(Exception):
    """Raised by a monitor when the stage has reached its goal."""


class BacktrackingFunctional(ReducedFunctional):
    """A reduced functional for which a failed solve is J = inf, so that a line search backs off."""

    failures, failed = 0, False

    def __call__(self, values):
        self.failed = False
        try:
            return super().__call__(values)
        except SolverError:
            self.failures, self.failed = self.failures + 1, True
            return AdjFloat(np.inf)

    def derivative(self, *args, **kwargs):
        if not self.failed:
            try:
                return super().derivative(*args, **kwargs)
            except SolverError:
                self.failures, self.failed = self.failures + 1, True
        return self.controls[0].control._ad_init_zero()


def minimise(stage: Stage, functional: ReducedFunctional, start: FacetField,
             bounds: tuple[float, float], monitor: Callable) -> tuple[FacetField, str]:
    """Run a stage's optimiser. Collective.

    Args:
        stage: its optimiser and number of iterations.
        functional: the loss as a function of the control.
        start: the control to start from.
        bounds: lower and upper bound of the control.
        monitor: called as ``monitor(iteration, loss, gradient_norm, step)`` after each iteration;
            may raise `StopStage`.

    Returns:
        The control that was reached, and why it ended there.
    """
    run = _tao if isinstance(stage.optimiser, TAO) else _adam
    with stop_annotating():
        return run(stage, functional, start, bounds, monitor)


def _tao(stage, functional, start, bounds, monitor):
    optimiser: TAO = stage.optimiser
    limits = [tuple(b if np.isfinite(b) else None for b in bounds)]
    problem = MinimizationProblem(functional, bounds=limits)
    parameters = {"tao_type": optimiser.type, "tao_max_it": stage.iterations,
                  "tao_gatol": 1e-9, "tao_grtol": 0.0, "tao_gttol": 0.0, **optimiser.options}
    if optimiser.type in ("bqnls", "blmvm", "lmvm"):
        parameters.setdefault("mat_lmvm_hist_size" if optimiser.type == "bqnls"
                              else "tao_blmvm_mat_lmvm_num_vecs", 20)
    functional(start)
    solver = TAOSolver(problem, parameters, comm=start.mesh.comm,
                       options_prefix=f"spinverse_{stage.name.replace('+', '_')}_tao_"[:60])
    reached = [start._ad_copy(), start._ad_copy(), None]  # last, the one before, stop message

    def watch(tao):
        last = reached[0]
        x = solver.x if tao.getSolution() is None else tao.getSolution()
        now = start._ad_copy()
        now._ad_from_petsc(x)
        iteration, loss, norm, *_ = tao.getSolutionStatus()
        step = _norm(now, last)
        reached[0] = now
        try:
            monitor(iteration, loss, norm, step)
        except StopStage as stop:
            reached[2] = str(stop)

    def converged(tao):
        if reached[2] is not None:
            tao.setConvergedReason(solver.tao.Reason.CONVERGED_USER)

    solver.tao.setMonitor(watch)
    solver.tao.setConvergenceTest(_with_default(converged, solver.tao))
    try:
        solver.solve()
    except TAOConvergenceError:
        pass  # a capped stage or a tired line search ends; it does not fail
    reason = int(solver.tao.getConvergedReason())
    result = start._ad_copy()
    result._ad_from_petsc(solver.x)
    solver.tao.destroy()
    return result, reached[2] or _REASONS.get(reason, f"TAO reason {reason}")


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


def _adam(stage, functional, start, bounds, monitor):
    optimiser: Adam = stage.optimiser
    control = good = start._ad_copy()
    first, second = np.zeros(len(control)), np.zeros(len(control))
    for iteration in range(stage.iterations):
        loss = float(functional(control))
        gradient = functional.derivative().values
        norm = np.sqrt(start.mesh.comm.allreduce(float(gradient @ gradient)))
        if functional.failed:
            return good, "the solver failed"
        good = control
        if norm > optimiser.clip:
            gradient = gradient * (optimiser.clip / norm)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        count = iteration + 1
        direction = first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
        before = control
        control = control._like(np.clip(control.values - optimiser.rate(iteration) * direction,
                                        *bounds))
        try:
            monitor(iteration, loss, norm, _norm(control, before))
        except StopStage as stop:
            return before, str(stop)
    return control, "iteration limit"


def _norm(a: FacetField, b: FacetField) -> float:
    difference = a.values - b.values
    return float(np.sqrt(a.mesh.comm.allreduce(float(difference @ difference), op=MPI.SUM)))
