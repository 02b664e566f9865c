"""Which freedom would explain data that a solution does not: a test of what was taken as known.

Each number is moved alone, over its usual range, at the shape that was found; the outer boundary is
changed to the other one; random ellipsoids are tried as a further cell. Unknown numbers answer.
What that leaves of the misfit tells which assumption to doubt first (a score test, Rao 1948, but
one that looks far from the solution too).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import InputError
from .. import parameters
from ..problem import BOUNDARIES, InverseProblem
from .cells import Cells
from .ellipsoids import ellipsoid_labels, random_ellipsoid
from .hypothesis import whole_labels
from .models import Models

POINTS = 9  # of each range, spread evenly in its coordinate
FURTHER = 150  # ellipsoids that are tried as a further cell


@dataclass(frozen=True)
class Freedom:
    """What an assumption costs.

    Attributes:
        name: of a number, "boundary", or "further cell".
        value: that explains most; of a further cell its volume and its place.
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
        One for each number that was taken as known, for the boundary, and for a further cell, as
        far as they leave less than the solution does.
    """
    labels = whole_labels(problem.mesh, labels)
    theta = {**problem.start_of_unknown, **theta}
    number = int(labels.max(initial=1))
    here = Models(problem, number)
    there = here.coordinates(theta)
    full = here.exact(labels, there, here.all)
    bias = full - here.residual(here.partition(there), labels, here.all)
    slopes = here.slopes(labels, there, here.all)

    def left(models: Models, x: np.ndarray, shapes: Sequence[np.ndarray] = (labels,)):
        """Misfits of shapes after what is unknown already has answered."""
        r = models.residuals(list(shapes), x, models.all) + bias
        return np.mean(here.answered(r, slopes) ** 2, axis=1)

    found = []
    for name in parameters.additional(problem.unknown):
        unknown = parameters.KINDS[name].usual
        known = {"wall_permeability": None} if name == "wall_permeability" else {}
        try:
            models = Models(replace(problem, unknown={**problem.unknown, name: unknown}, **known),
                            number)
        except InputError:  # what is known of it is no single number
            continue
        values = [unknown.value(x) for x in np.linspace(*unknown.range, POINTS)]
        misfits = [left(models, models.coordinates({**theta, name: value}))[0] for value in values]
        best = int(np.argmin(misfits))
        found.append(Freedom(name, values[best], float(misfits[best])))
    # labels of a periodic box say nothing of one that is not, and the other way round
    for other in BOUNDARIES[:2] if problem.boundary in BOUNDARIES[:2] else ():
        if other != problem.boundary:
            models = Models(replace(problem, boundary=other), number)
            found.append(Freedom("boundary", other, float(left(models, there)[0])))
    found.append(_further_cell(problem, labels, theta, left))
    before = float(np.mean(full**2))
    found = problem.comm.bcast([freedom for freedom in found if freedom.misfit < before])
    return sorted(found, key=lambda freedom: freedom.misfit)


def _further_cell(problem: InverseProblem, labels: np.ndarray, theta: parameters.Theta,
                  left: Callable[..., np.ndarray]) -> Freedom:
    """The ellipsoid within one label that explains most as a cell of its own."""
    new = int(labels.max(initial=0)) + 1
    models = Models(problem, new)
    cells, x = Cells(models.whole), models.coordinates(theta)
    rng, shapes = np.random.default_rng(0), []
    for _ in range(FURTHER):
        inside = ellipsoid_labels(cells, random_ellipsoid(rng, cells)) == 1
        host = np.bincount(labels[inside]).argmax() if inside.any() else 0
        shape = cells.repaired(np.where(inside & (labels == host), new, labels).astype(np.int8))
        if shape.max() == new and cells.allowed(shape):
            shapes.append(shape)
    if not shapes:
        return Freedom("further cell", "any size", np.inf)
    misfits = left(models, x, shapes)
    best, whole = shapes[int(np.argmin(misfits))] == new, models.whole
    place = np.average(whole.centroids[best], axis=0, weights=whole.volumes[best])
    where = ", ".join(f"{value:.1f}" for value in place)
    return Freedom("further cell", f"{whole.volumes[best].sum():.0f} um^3 at ({where}) um",
                   float(misfits.min()))
