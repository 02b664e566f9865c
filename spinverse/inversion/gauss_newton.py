"""Gauss-Newton steps with bounds, from the whole Jacobian.

The loss is ``|r(v)|^2 + P(v)``, r the weighted residuals of N measurements, P the priors, v the
control on the facets. There are often more facets than measurements, and they are distributed:
every system is solved in the space of the data, N x N, by the identity of Woodbury (Nocedal &
Wright 2006, A.28; in data assimilation the dual form), so that no facet ever leaves its rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from mpi4py import MPI

from ..engines.modal.jacobian import signal_jacobian
from ..errors import SolverError
from .misfit import NormalisedMagnitude

_PROBES = 8
_PROBE_STEP = 1e-4  # of log10 kappa


@dataclass(frozen=True, eq=False)
class Linearised:
    """The loss around a control.

    Attributes:
        residual: ``(N,)`` r, the same on every rank.
        jacobian: ``(N, nf)`` dr/dv over the owned facets.
        prior_gradient: ``(nf,)`` of P.
        prior_curvature: ``(nf,)`` diagonal of the Hessian of P, not negative.
    """

    residual: np.ndarray
    jacobian: np.ndarray
    prior_gradient: np.ndarray
    prior_curvature: np.ndarray

    @property
    def gradient(self) -> np.ndarray:
        """Of the loss, ``(nf,)``."""
        return 2 * self.residual @ self.jacobian + self.prior_gradient

    @property
    def diagonal(self) -> np.ndarray:
        """Of the Gauss-Newton matrix, ``(nf,)``."""
        return 2 * np.einsum("nf,nf->f", self.jacobian, self.jacobian) + self.prior_curvature


class Linearisation:
    """Residuals and Jacobian of a stage as functions of its control.

    Args:
        engine: a `MatrixFormalism`, at the permeability that was evaluated last.
        misfit: what the residuals are of.
        control_type: from control to log10 kappa, facet by facet: with ``value`` and ``pull_back``.
        from_log: `FromLog`, to the permeability.
        weight: what the misfit is multiplied by in the loss.
        priors: terms of the loss in log10 kappa, with ``pull_back``.
    """

    def __init__(self, engine, misfit: NormalisedMagnitude, control_type, from_log,
                 weight: float = 1.0, priors=()):
        self.engine, self.misfit, self.priors = engine, misfit, list(priors)
        self.control_type, self.from_log, self.weight = control_type, from_log, weight

    def __call__(self, control: np.ndarray) -> Linearised:
        """At a control, ``(nf,)``. Collective.

        Raises:
            SolverError: the eigenproblem failed.
        """
        z = self.control_type.value(control)
        signals, slopes = signal_jacobian(self.engine, self.from_log.value(z))
        residual, slopes = self._residuals(signals, slopes)
        jacobian = self.control_type.pull_back(control, self.from_log.pull_back(z, slopes))
        gradient, curvature = np.zeros_like(z), np.zeros_like(z)
        if self.priors:
            slope = self.control_type.pull_back(control, np.ones_like(z))
            gradient = slope * self._prior_gradient(z)
            curvature = slope**2 * self._prior_curvature(z)
        return Linearised(residual, jacobian, gradient, curvature)

    def _residuals(self, signals, slopes) -> tuple[np.ndarray, np.ndarray]:
        misfit, magnitude = self.misfit, np.abs(signals)
        root = np.sqrt(self.weight * misfit.weights / misfit.weights.sum())
        if misfit.references is None:
            slopes = slopes * (root / misfit.scale)[:, None]
        else:
            scale = misfit.references @ magnitude
            slopes = (slopes * (root / scale)[:, None]
                      - (root * magnitude / scale**2)[:, None] * (misfit.references @ slopes))
        return root * misfit.residual(signals), slopes

    def _prior_gradient(self, z: np.ndarray) -> np.ndarray:
        return sum(prior.pull_back(z, 1.0) for prior in self.priors)

    def _prior_curvature(self, z: np.ndarray) -> np.ndarray:
        """Diagonal of the priors' Hessian from its products with random signs (Bekas, Kokiopoulou
        & Saad 2007); what is negative is left out."""
        triples = self.engine.problem.mesh.facet_vertices
        total = np.zeros_like(z)
        for probe in range(_PROBES):
            # signs that a facet has at any number of ranks
            signs = np.where(np.sin(triples @ (12.9898, 78.233, 37.719)[: triples.shape[1]]
                                    * (probe + 1)) > 0, 1.0, -1.0)
            step = _PROBE_STEP * signs
            total += signs * (self._prior_gradient(z + step) - self._prior_gradient(z - step))
        return np.maximum(total / (2 * _PROBE_STEP * _PROBES), 0.0)


def bounded_step(comm: MPI.Comm, model: Linearised, damping: np.ndarray, lower: np.ndarray,
                 upper: np.ndarray, rounds: int = 30) -> tuple[np.ndarray, float]:
    """The step d that minimises the damped Gauss-Newton model within bounds. Collective.

    |r + J d|^2 + p.d + d.(C + M) d / 2, lower <= d <= upper, by Newton steps in the facets that
    are not held at a bound, each followed by a search along its projection (Bertsekas 1982).

    Args:
        comm: of the mesh.
        model: r, J, p and C.
        damping: ``(nf,)`` M, positive.
        lower, upper: ``(nf,)``; 0 lies between them.
        rounds: at most so many Newton steps.

    Returns:
        d, ``(nf,)``, and by how much the loss falls if the model without damping is right.

    Raises:
        SolverError: the matrix is not finite.
    """
    r, J = model.residual, model.jacobian
    linear, curvature = model.prior_gradient, model.prior_curvature + damping

    def value(d, moved):
        own = float(linear @ d + 0.5 * curvature @ d**2)
        return float(moved @ moved) + comm.allreduce(own)

    d, moved = np.zeros(len(lower)), r.copy()
    best, held = value(d, moved), None
    for _ in range(rounds):
        slope = 2 * moved @ J + linear + curvature * d
        before = held
        held = ((d <= lower) & (slope >= 0)) | ((d >= upper) & (slope <= 0))
        if comm.allreduce(before is not None and np.array_equal(held, before), op=MPI.LAND):
            break
        step = np.zeros_like(d)
        free = ~held
        step[free] = _newton(comm, J[:, free], moved, (linear + curvature * d)[free],
                             curvature[free])
        length, inside = 1.0, False
        while length > 1e-6:
            trial = np.clip(d + length * step, lower, upper)
            trial_moved = r + _sum(comm, J @ trial)
            reached = value(trial, trial_moved)
            if reached < best:
                inside = np.array_equal(trial, d + step)
                break
            length /= 2
        else:
            break
        gain, best, d, moved = best - reached, reached, trial, trial_moved
        if not comm.allreduce(inside, op=MPI.LAND):
            held = None  # facets have met a bound: the same ones are not done
        if gain <= 1e-12 * abs(best):
            break
    fall = float(r @ r) - float(moved @ moved) - comm.allreduce(
        float(linear @ d + 0.5 * model.prior_curvature @ d**2))
    return d, fall


def _newton(comm, J, residual, extra, curvature) -> np.ndarray:
    """-(2 J^T J + A)^-1 (2 J^T residual + extra), A the diagonal ``curvature``."""
    scaled = J / np.sqrt(curvature)
    matrix = _sum(comm, scaled @ scaled.T)
    matrix[np.diag_indices(len(matrix))] += 0.5
    right = residual - _sum(comm, J @ (extra / curvature))
    try:
        factor = scipy.linalg.cho_factor(matrix, lower=True, overwrite_a=True)
    except (scipy.linalg.LinAlgError, ValueError) as error:
        raise SolverError(f"Gauss-Newton step: {error}") from None
    return -(extra + scipy.linalg.cho_solve(factor, right) @ J) / curvature


def _sum(comm: MPI.Comm, local: np.ndarray) -> np.ndarray:
    if comm.size == 1:
        return local
    total = np.empty_like(local)
    comm.Allreduce(np.ascontiguousarray(local), total)
    return total
