"""Which freedom would explain data that a solution does not: a test of what was taken as known.

Each number is moved alone, over its usual range, at the shape that was found; the outer boundary is
changed to the other one. What that leaves of the misfit tells which assumption to doubt first (a
score test, Rao 1948, but one that looks far from the solution too).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...errors import InputError
from .. import parameters
from ..problem import BOUNDARIES, InverseProblem
from .hypothesis import whole_labels
from .models import Models

POINTS = 9  # of each range, spread evenly in its coordinate


@dataclass(frozen=True)
class Freedom:
    """What an assumption costs.

    Attributes:
        name: of a number, or "boundary".
        value: that explains most.
        misfit: that it would leave.
    """

    name: str
    value: float | str
    misfit: float

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else (
            f"{self.value:.3g} {parameters.KINDS[self.name].unit}")
        return f"{self.name.replace('_', ' ')} of {value} (misfit {self.misfit:.2g})"


def freedoms(problem: InverseProblem, labels: np.ndarray,
             theta: parameters.Theta) -> list[Freedom]:
    """What would explain the data better, the best first. Collective.

    Args:
        problem: what is known, and the measurements.
        labels: ``(owned cells,)`` that were found (`Reconstruction.labels`).
        theta: values that were found (`Reconstruction.theta`).

    Returns:
        One for each number that was taken as known, and for the boundary, as far as they leave
        less than the solution does.
    """
    labels = whole_labels(problem.mesh, labels)
    theta = {**problem.start_of_unknown, **theta}
    here = Models(problem, int(labels.max(initial=1)))
    there = here.coordinates(theta)
    full = here.exact(labels, there, here.all)
    bias = full - here.residual(here.partition(there), labels, here.all)

    def left(models: Models, x: np.ndarray) -> float:
        r = models.residual(models.partition(x), labels, models.all)
        return float(np.mean((r + bias) ** 2))

    found = []
    for name in parameters.additional(problem.unknown):
        unknown = parameters.KINDS[name].usual
        known = {"wall_permeability": None} if name == "wall_permeability" else {}
        try:
            models = Models(replace(problem, unknown={**problem.unknown, name: unknown}, **known))
        except InputError:  # what is known of it is no single number
            continue
        values = [unknown.value(x) for x in np.linspace(*unknown.range, POINTS)]
        misfits = [left(models, models.coordinates({**theta, name: value})) for value in values]
        best = int(np.argmin(misfits))
        found.append(Freedom(name, values[best], misfits[best]))
    # labels of a periodic box say nothing of one that is not, and the other way round
    for other in BOUNDARIES[:2] if problem.boundary in BOUNDARIES[:2] else ():
        if other != problem.boundary:
            models = Models(replace(problem, boundary=other))
            found.append(Freedom("boundary", other, left(models, there)))
    before = float(np.mean(full**2))
    found = problem.comm.bcast([freedom for freedom in found if freedom.misfit < before])
    return sorted(found, key=lambda freedom: freedom.misfit)
