"""What the optimisers of facets share: the functional, a run that can go on, how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from mpi4py import MPI
from pyadjoint import AdjFloat, ReducedFunctional, stop_annotating

from ...adjoint import FacetField
from ...errors import SolverError
from .memory import Keeper, Log, Memory


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


@dataclass(frozen=True, eq=False)
class Run:
    """What every optimiser is given: see `minimise`.

    ``earlier`` is a memory that this optimiser can use. Optimisers count their iterations from the
    point that their memory began with, which is ``before`` iterations after the stage's.
    """

    name: str
    total: int
    functional: BacktrackingFunctional
    start: FacetField
    bounds: tuple[float, float]
    monitor: Callable
    keeper: Keeper
    key: str
    linearisation: Any
    earlier: Memory | None
    before: int = 0

    @property
    def iterations(self) -> int:
        """At most so many."""
        return max(1, self.total - self.before)

    @property
    def done(self) -> int:
        """Iterations that the memory knows of."""
        return 0 if self.earlier is None else self.earlier.iteration - self.before

    def without_memory(self) -> Run:
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


def minimise(optimiser, name: str, iterations: int, functional: BacktrackingFunctional,
             start: FacetField, bounds: tuple[float, float], monitor: Callable,
             keeper: Keeper | None = None, linearisation=None) -> tuple[FacetField, str]:
    """Run an optimiser. Collective.

    Args:
        optimiser: `TAO`, `Adam` or `GaussNewton`: a dataclass with ``run(Run)``.
        name: of the stage, for messages and PETSc options.
        iterations: at most so many.
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
    settings = json.dumps(asdict(optimiser), sort_keys=True, default=str)
    key = f"{type(optimiser).__name__} {settings}"
    earlier = keeper.earlier
    if earlier is not None:
        start = start._like(earlier.facets["control"])
    run = Run(name, iterations, functional, start, bounds, monitor, keeper, key, linearisation,
              earlier)
    if earlier is not None and earlier.optimiser == key:
        run = replace(run, before=int(earlier.numbers["before"]))
    elif earlier is not None:
        run = run.without_memory()
    with stop_annotating():
        return optimiser.run(run)


def norm(a: FacetField, b: FacetField) -> float:
    """Euclidean norm of a difference. Collective."""
    difference = a.values - b.values
    return float(np.sqrt(a.mesh.comm.allreduce(float(difference @ difference), op=MPI.SUM)))
