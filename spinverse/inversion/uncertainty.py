"""What the signals say about each facet: sensitivity, posterior, and whether it is determined.

The variable is the openness x of a facet, 0 for a wall and 1 for an open facet, affine in the
transmission t = kappa / (kappa + c), where c is the conductance of the medium around the facet
(`engines.linear.facet_response`). Signals are nearly linear in it from wall to open, which
they are in neither kappa nor log kappa, so J_F = dS/dx_F predicts what toggling the facet does.

With noise of standard deviation sigma and a prior of standard deviation p on every x, the
covariance of the posterior is (J^T J / sigma^2 + 1 / p^2)^-1, here from the N x N matrix J J^T
(Woodbury), which is all that ranks exchange. Gaussians do not know that 0 <= x <= 1: an opened
wall could be made up for by walls that are more than closed. Whether a facet is determined is
therefore asked with the bounds: it is toggled, all others answer as well as they can within them
and at the prior's price, and what the signals still notice must exceed the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from mpi4py import MPI

from ..engines.linear.facet_response import surrounding_conductance
from ..engines.modal.jacobian import signal_jacobian
from ..engines.modal.matrix_formalism import MatrixFormalism
from ..errors import InputError, on_root
from .parameters import Theta
from .problem import InverseProblem
from .verdict import verdict

_FEWEST_MODES, _MOST_MODES = 96, 256
_KEPT = 1e-4  # directions of the data whose signal-to-noise ratio is below this say nothing
_SWEEPS = 120  # of the accelerated projected gradients
_CANDIDATES = 256  # facets toggled at once


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """What the signals determine. Arrays are over the owned facets, ``(nf,)``.

    Attributes:
        sensitivity: root mean square change of the normalised signals, linearised, from the facet
            as a wall to the facet open, all others as they are; 0 where it is not unknown.
        posterior_std: standard deviation of the openness x (0 wall, 1 open) given all signals,
            Gaussian, all facets unknown together; 0 where it is not unknown.
        evidence: by how many standard deviations of the noise the signals notice that the facet
            is toggled when all others answer within their bounds; inf where it is not unknown.
        determined: bool, evidence of at least `level`; nothing is where the data are not explained
            (`verdict`).
        openness: x, from the permeability.
        conductance: c, um/ms, of the medium around the facet; inf where it is not unknown.
        spectrum: ``(N,)`` descending: eigenvalues of p^2 J^T J / sigma^2, as many as there are
            signals. As many combinations of facets are determined as are above 1.
        sigma: standard deviation of the noise of the normalised signals.
        prior_std: p, standard deviation of x before the signals are known.
        level: that evidence is compared with.
    """

    sensitivity: np.ndarray
    posterior_std: np.ndarray
    evidence: np.ndarray
    determined: np.ndarray
    openness: np.ndarray
    conductance: np.ndarray
    spectrum: np.ndarray
    sigma: float
    prior_std: float
    level: float


def uncertainty(problem: InverseProblem, permeability: np.ndarray,
                theta: Theta | None = None, labels: np.ndarray | None = None, *,
                unknown: np.ndarray | None = None,
                sigma: float | None = None, prior_std: float = 0.5, level: float = 3.0,
                modes: int | str = "auto", model_error: float = 1e-3,
                misfit: float | None = None) -> Uncertainty:
    """What signals determine of the permeabilities of a tissue. Collective.

    Args:
        problem: what is known, and the measurements.
        permeability: that was found, ``(nf,)`` um/ms (`Reconstruction.permeability`).
        theta, labels: unknown numbers and cells that were found (attributes of
            `Reconstruction`).
        unknown: ``(nf,)`` bool, facets that were looked for; those of the problem if not given.
            Tied facets never are.
        sigma: standard deviation of the noise of the normalised signals. If not given, that of the
            likelihood or of the residual, whichever is larger, and of ``model_error`` together.
        prior_std: of the openness of a facet; 0.5 is that of "wall or open, nobody knows".
        level: evidence, in standard deviations, from which on a facet is determined.
        modes: of the matrix formalism; "auto": a quarter of the number of cells, from 96 to 256.
            Derivatives need fewer than signals do.
        model_error: standard deviation of what the model does not describe (mesh, modes), below
            which no fit says anything.
        misfit: by which to judge whether the data are explained (`Reconstruction.data_misfit`). If
            not given, that of these modes, less what they leave.

    Returns:
        An `Uncertainty`; the same at any number of ranks.

    Raises:
        InputError: for arguments that make no sense; SolverError: a solver failed.
    """
    mesh, likelihood = problem.mesh, problem.likelihood
    low, high = problem.permeability_range
    for name, value in (("prior_std", prior_std), ("level", level), ("model_error", model_error),
                        *((("sigma", sigma),) if sigma is not None else ())):
        if not 0 < value < np.inf:
            raise InputError(f"{name}: {value!r}, expected a positive number")
    unknown = problem.unknown_facets if unknown is None else np.asarray(unknown, bool)
    wrong = unknown.shape != permeability.shape
    if mesh.comm.allreduce(wrong, op=MPI.LOR):
        raise InputError(f"unknown: shape {unknown.shape}, expected {permeability.shape}: one "
                         "value for each facet that this rank owns")
    forward = problem.forward(permeability, theta, labels)
    unknown = unknown & ~forward.tied
    if modes == "auto":
        modes = int(np.clip(mesh.num_cells // 4, _FEWEST_MODES, _MOST_MODES))
    engine = MatrixFormalism(forward, problem.acquisition,
                             min(cast(int, modes), forward.num_unknowns))
    predicted, J = signal_jacobian(engine)
    J, residual = likelihood.slope(predicted, J), likelihood.residual(predicted)
    if sigma is None:
        left = float(np.sqrt(np.mean(residual**2)))
        sigma = float(np.hypot(max(left, likelihood.sigma), model_error))

    longest = max(waveform.echo_time for waveform in problem.acquisition.waveforms)
    c = surrounding_conductance(forward, 2.0 / longest, unknown)
    x, slope = _openness(np.where(unknown, permeability, 0.0), c, low, high)
    J = np.where(unknown, J * slope, 0.0)
    gram = np.empty((len(likelihood), len(likelihood)))
    mesh.comm.Allreduce(J @ J.T, gram)
    # one rank, so that all have the same digits
    values, vectors = mesh.comm.bcast(
        on_root(mesh.comm, lambda: tuple(np.linalg.eigh(gram / sigma**2))))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    kept = prior_std**2 * values > _KEPT**2
    reduced = vectors[:, kept].T @ J / sigma
    gain = 1.0 / (1.0 + prior_std**2 * values[kept])
    variance = prior_std**2 * (1.0 - prior_std**2 * gain @ reduced**2)
    evidence = _evidence(mesh.comm, reduced, x, unknown, prior_std, level)
    if misfit is None:  # fewer modes than final signals have leave a little more
        misfit = max(float(np.mean(residual**2)) - (3 * model_error) ** 2, 0.0)
    told = verdict(problem, misfit).explained is not False
    return Uncertainty(
        np.sqrt(np.mean(J**2, axis=0)),
        np.where(unknown, np.sqrt(np.maximum(variance, 0.0)), 0.0),
        evidence, told & (evidence >= level), x, c, prior_std**2 * values, sigma, prior_std, level)


def _openness(kappa: np.ndarray, c: np.ndarray, low: float, high: float) -> tuple:
    """x of each facet, and dkappa/dx."""
    c = np.where(np.isfinite(c), c, 1.0)
    wall, opened = low / (low + c), high / (high + c)
    x = np.clip((kappa / (kappa + c) - wall) / (opened - wall), 0.0, 1.0)
    return x, (kappa + c) ** 2 / c * (opened - wall)


def _evidence(comm: MPI.Comm, J: np.ndarray, x: np.ndarray, unknown: np.ndarray,
              prior_std: float, level: float) -> np.ndarray:
    """What the signals notice of each toggled facet, in standard deviations. Collective.

    Args:
        J: ``(n, nf)`` derivatives by x in units of the noise.
    """
    toggle = np.where(x < 0.5, 1.0 - x, -x)
    alone = np.linalg.norm(J, axis=0) * np.abs(toggle)
    evidence = np.where(unknown, alone, np.inf)
    # others can only lower it
    mine = np.flatnonzero(unknown & (alone >= level))
    counts = comm.allgather(len(mine))
    before, total = sum(counts[: comm.rank]), sum(counts)
    for first in range(0, total, _CANDIDATES):
        last = min(first + _CANDIDATES, total)
        here = np.arange(max(first - before, 0), min(max(last - before, 0), len(mine)))
        own = (mine[here], here + before - first)
        targets = np.zeros((len(J), last - first))
        targets[:, own[1]] = J[:, own[0]] * toggle[own[0]]
        targets = comm.allreduce(targets)
        left = _answered(comm, J, targets, own, x, prior_std)
        evidence[own[0]] = np.linalg.norm(left, axis=0)[own[1]]
    return evidence


def _answered(comm: MPI.Comm, J: np.ndarray, targets: np.ndarray, own: tuple, x: np.ndarray,
              prior_std: float) -> np.ndarray:
    """targets + J y with y that minimises |targets + J y|^2 + |y|^2 / p^2, 0 <= x + y <= 1.

    Projected gradients, accelerated (Beck and Teboulle, SIAM J. Imaging Sci. 2, 183, 2009) and
    started anew where they overshoot (O'Donoghue and Candes, Found. Comput. Math. 15, 715, 2015),
    in the metric of the diagonal |J_F| sum_G |J_G|, which bounds J^T J. A facet does not answer
    its own toggling: ``own`` are such pairs of facet and column.
    """
    norms = np.linalg.norm(J, axis=0)
    metric = norms * comm.allreduce(float(norms.sum())) + prior_std**-2
    low, high = -x[:, None], 1.0 - x[:, None]
    columns = targets.shape[1]
    y = np.zeros((len(x), columns))
    point, momentum = y, np.ones(columns)
    for _ in range(_SWEEPS):
        left = targets + comm.allreduce(J @ point)
        slope = J.T @ left + point / prior_std**2
        after = np.clip(point - slope / metric[:, None], low, high)
        after[own] = 0.0
        step = after - y
        uphill = comm.allreduce(np.einsum("fc,f,fc->c", point - after, metric, step)) > 0
        momentum = np.where(uphill, 1.0, momentum)
        later = 0.5 * (1 + np.sqrt(1 + 4 * momentum**2))
        point = after + np.where(uphill, 0.0, (momentum - 1) / later) * step
        y, momentum = after, later
    return targets + comm.allreduce(J @ y)
