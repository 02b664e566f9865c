"""Whether a solution explains the data, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .parameters import KINDS
from .problem import InverseProblem

ERRORS = 3.0  # standard errors of the noise that a misfit may lie above its variance
MODEL = 1e-3  # rms of normalised signals that mesh and modes are wrong by, on default meshes
NOT_EXPLAINED = 3  # exit code of a command that is done and whose result does not explain the data
NO_DATA = 0.1  # rms residual that no noise of usable data leaves


@dataclass(frozen=True)
class Verdict:
    """What a misfit says.

    Attributes:
        explained: None where the noise is not known, so that nobody can tell.
        misfit: mean square residual of normalised magnitudes.
        limit: up to which the data are explained.
        words: one line for people.
    """

    explained: bool | None
    misfit: float
    limit: float
    words: str


def verdict(problem: InverseProblem, misfit: float, error: float = 0.0) -> Verdict:
    """Whether a misfit is what noise and the errors of the model leave.

    Without noise, signals of a simulation (`Signals.unit`) are explained up to the error of the
    model. Of others whose noise is neither given nor found from repetitions, only a misfit that
    no noise leaves is judged.

    Args:
        problem: with the measurements.
        misfit: mean square residual (`Reconstruction.data_misfit`).
        error: mean square of what the mesh is wrong by, where that was estimated.
    """
    # noise that is the residual of the solution itself explains everything
    likelihood = problem.first_likelihood
    judged = likelihood.judges or bool(problem.signals.unit)
    limit = likelihood.explained(ERRORS) + max(MODEL**2, error) if judged else NO_DATA**2
    if not misfit <= limit:
        known = [name.replace("_", " ") for name, kind in KINDS.items()
                 if kind.put is not None and name not in problem.unknown]
        known += [f"{problem.boundary} boundary", "number of cells"]
        return Verdict(False, misfit, limit, (
            f"the data are NOT explained: misfit {misfit:.3g}, explained up to {limit:.3g} "
            f"({_noise(likelihood.sigma)}); what was taken as known may be wrong: "
            f"{', '.join(known)}"))
    if judged:
        return Verdict(True, misfit, limit, f"the data are explained: misfit {misfit:.3g}, of at "
                       f"most {limit:.3g} ({_noise(likelihood.sigma)})")
    return Verdict(None, misfit, limit, (
        f"whether the data are explained nobody can tell, for their noise is not known: misfit "
        f"{misfit:.3g}, as noise of {np.sqrt(misfit):.2g} of |S(b = 0)| would leave; say noise"))


def _noise(sigma: float) -> str:
    return f"noise {sigma:.3g} of |S(b = 0)|" if sigma else "no noise"
