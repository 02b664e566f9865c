"""Whether the walls of a solution have one permeability, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mpi4py import MPI
from scipy.optimize import minimize_scalar

from ..engines.shapes.walls import between
from .parameters import KINDS, Theta
from .problem import InverseProblem

_SAME = 1e-3  # of log10 kappa: walls that differ by less are uniform
_TOLERANCE = 0.02  # of log10 kappa, of the best uniform wall


@dataclass(frozen=True)
class WallField:
    """Permeabilities of the facets of walls, where they differ.

    Attributes:
        smallest, largest: um/ms.
        middle: geometric mean of these two, um/ms.
        share: of the area of walls, with a permeability above ``middle``.
        uniform: the best single permeability of the same walls, um/ms.
        uniform_misfit: what it leaves.
        misfit: what they leave, with the same functions.
    """

    smallest: float
    largest: float
    middle: float
    share: float
    uniform: float
    uniform_misfit: float
    misfit: float

    def __str__(self) -> str:
        return (f"walls are not uniform: {self.smallest:.3g} to {self.largest:.3g} um/ms, "
                f"{100 * self.share:.0f} % of their area above {self.middle:.3g} um/ms; misfit "
                f"{self.misfit:.2g}, and {self.uniform_misfit:.2g} with the best uniform one, "
                f"{self.uniform:.3g} um/ms")


def wall_field(problem: InverseProblem, permeability: np.ndarray, labels: np.ndarray,
               theta: Theta) -> WallField | None:
    """What the walls of a solution are like; None where they are uniform. Collective.

    Args:
        problem: with the measurements.
        permeability: ``(nf,)`` um/ms of the owned facets.
        labels: ``(owned cells,)``, 0 outside.
        theta: values of the other unknown numbers.
    """
    mesh, comm = problem.mesh, problem.comm
    walls = between(mesh, labels, problem.absorbing)
    values = permeability[walls]
    low = comm.allreduce(float(values.min(initial=np.inf)), op=MPI.MIN)
    high = comm.allreduce(float(values.max(initial=0.0)), op=MPI.MAX)
    found = comm.allgather(np.unique(np.round(np.log10(values) / _SAME)))
    # each cell may have a wall of its own, and what lies between two has their mean
    kinds = 3 if np.size(theta.get("wall_permeability", 0.0)) > 1 else 1
    if len(np.unique(np.concatenate(found))) <= kinds:
        return None
    middle = float(np.sqrt(low * high))
    area = mesh.facet_areas[walls]
    above, whole = comm.allreduce(np.array([area[values > middle].sum(), area.sum()]))
    forward = problem.forward(permeability, theta, labels)
    engine = problem.stage_engine(forward, problem.acquisition)

    def misfit(kappa: np.ndarray) -> float:
        return float(np.mean(problem.likelihood.residual(engine.signals(kappa)) ** 2))

    usual = problem.unknown.get("wall_permeability", KINDS["wall_permeability"].usual)
    best = minimize_scalar(
        lambda z: misfit(np.where(walls, 10.0**z, permeability)), method="bounded",
        bounds=(np.log10(usual.low), np.log10(usual.high)), options={"xatol": _TOLERANCE})
    return WallField(low, high, middle, float(above / whole), float(10.0**best.x),
                     float(best.fun), misfit(permeability))
