"""Adam (Kingma and Ba 2015) as the published method runs it (arXiv 2603.04638)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...adjoint import FacetField
from .optimise import Run, StopStage, norm

FIRST, SECOND, SMALL = 0.9, 0.999, 1e-8  # decay of the moments, and what is added to their root


@dataclass(frozen=True)
class Adam:
    """Adam with cycles of the learning rate.

    Attributes:
        learning_rate: of a cycle, after its warm-up.
        warm_up: steps over which the rate rises.
        cycle: steps after which the schedule starts anew.
        final: factor that the cosine decay ends at.
        clip: largest gradient norm.
    """

    learning_rate: float = 0.6
    warm_up: int = 50
    cycle: int = 200
    final: float = 0.1
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        place = step % self.cycle
        if place < self.warm_up:
            return self.learning_rate * (place + 1) / self.warm_up
        share = (place - self.warm_up) / max(1, self.cycle - self.warm_up)
        return self.learning_rate * (self.final + (1 - self.final)
                                     * 0.5 * (1 + np.cos(np.pi * share)))

    def run(self, run: Run) -> tuple[FacetField, str]:
        """See `minimise`."""
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
            length = np.sqrt(control.mesh.comm.allreduce(float(gradient @ gradient)))
            if functional.failed:
                return good, "the solver failed"
            good = control
            if length > self.clip:
                gradient = gradient * (self.clip / length)
            first = FIRST * first + (1 - FIRST) * gradient
            second = SECOND * second + (1 - SECOND) * gradient**2
            count = iteration + (run.before == 0)
            direction = first / (1 - FIRST**count) / (
                np.sqrt(second / (1 - SECOND**count)) + SMALL)
            before, rate = control, self.rate(iteration + run.before)
            control = control._like(np.clip(control.values - rate * direction, *run.bounds))
            try:
                facets = {"control": control.values, "first": first, "second": second}
                run.report(iteration, loss, length, norm(control, before),
                           lambda facets=facets: ({}, facets))  # type: ignore[misc]
            except StopStage as stop:
                return before, str(stop)
        return control, "iteration limit"
