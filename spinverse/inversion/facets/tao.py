"""Bounded optimisers of PETSc/TAO through pyadjoint."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from petsc4py import PETSc
from pyadjoint import MinimizationProblem, TAOSolver
from pyadjoint.optimization.tao_solver import TAOConvergenceError

from ...adjoint import FacetField
from .memory import Log
from .optimise import Run, StopStage, norm

_HISTORY = 5  # points and gradients that a quasi-Newton matrix is made of: more did not help
_HISTORY_OPTION = "mat_lmvm_hist_size"
_SAME = 1e-6  # of a control, by facet: how close a replayed run must come to where it was


@dataclass(frozen=True)
class TAO:
    """A bounded optimiser of PETSc/TAO.

    Attributes:
        type: TAO's name: "bqnls", "blmvm", "bncg", ...
        options: further PETSc options, without the prefix.
    """

    type: str = "blmvm"
    options: dict = field(default_factory=dict)

    def run(self, run: Run) -> tuple[FacetField, str]:
        """See `minimise`."""
        return _tao(run, self)


def _tao(run: Run, optimiser: TAO) -> tuple[FacetField, str]:
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
        iteration, loss, slope, *_ = tao.getSolutionStatus()
        step, last, at = norm(now, last), now, iteration
        if earlier is not None and iteration <= run.done:
            if iteration == run.done:
                away = norm(now, start._like(earlier.facets["control"]))
                lost = log.replays or away > _SAME * (1 + np.sqrt(start.mesh.num_facets))
            lost = lost or log.broken
            return
        try:
            run.report(iteration, loss, slope, step, lambda: _with(
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


def _tao_solver(run: Run, optimiser: TAO, start: FacetField) -> TAOSolver:
    # pyadjoint has None for no bound
    limits = [tuple(None if np.isinf(b).all() else start._like(np.broadcast_to(b, len(start)))
                    for b in run.bounds)]
    problem = MinimizationProblem(run.functional, bounds=limits)
    parameters = {"tao_type": optimiser.type, "tao_max_it": run.iterations,
                  "tao_gatol": 1e-9, "tao_grtol": 0.0, "tao_gttol": 0.0, **optimiser.options}
    if optimiser.type in ("blmvm", "bqnls"):
        parameters.setdefault(f"tao_{optimiser.type}_{_HISTORY_OPTION}", _HISTORY)
    for control in run.functional.controls:
        control.update(start)
    return TAOSolver(problem, parameters, comm=start.mesh.comm,
                     options_prefix=f"spinverse_{run.name.replace('+', '_')}_tao_"[:60])


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
        iteration, loss, slope, *_ = tao.getSolutionStatus()
        extra(tao)
        if int(tao.getConvergedReason()) == 0:
            if slope <= gatol:
                tao.setConvergedReason(tao.Reason.CONVERGED_GATOL)
            elif iteration >= limit:
                tao.setConvergedReason(tao.Reason.DIVERGED_MAXITS)

    return test


_REASONS = {3: "gradient small enough", 4: "gradient small enough", 5: "gradient small enough",
            6: "step small enough", 7: "function small enough", -2: "iteration limit",
            -4: "numbers no longer finite", -5: "function evaluation limit",
            -6: "line search found nothing better", -7: "trust region too small"}
