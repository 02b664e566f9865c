"""Gauss-Newton steps with bounds, from the whole Jacobian.

The loss is ``|r(v)|^2 + P(v)``, r the weighted residuals of N measurements, P the priors, v the
control on the facets. There are often more facets than measurements, and they are distributed:
every system is solved in the space of the data, N x N, by the identity of Woodbury (Nocedal and
Wright 2006, A.28; in data assimilation the dual form), so that no facet ever leaves its rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from mpi4py import MPI

from ...adjoint import FacetField
from ...engines.modal.jacobian import signal_jacobian
from ...errors import InputError, SolverError
from ..levenberg import Damping, bounded_minimum, damped_step
from ..likelihood import Likelihood
from .optimise import Run, StopStage, norm

_PROBES = 8  # random signs that estimate the diagonal of the priors' Hessian
_PROBE_STEP = 1e-4  # of log10 kappa
_LEAST_UNIT = 1e-6  # of damping, for numbers that change nothing, in that of facets


@dataclass(frozen=True)
class GaussNewton:
    """Levenberg-Marquardt with bounds and the whole Jacobian.

    For the end of a reconstruction: far from the solution it moves too many facets at once.

    Attributes:
        damping: at first, in units of the Gauss-Newton matrix: of its largest diagonal entry of
            facets, and of its own one for each number.
        least_damping: never less than this, in the same units.
        tries: steps that are refused, the damping growing, before the stage ends.
        longest_step: largest change of any facet's control in one iteration.
        tolerance: the stage ends when the norm of the projected gradient is smaller.
        least_gain: or when two iterations running lower the loss by less than this share of it.
    """

    damping: float = 1e-2
    least_damping: float = 1e-12
    tries: int = 12
    longest_step: float = 1.0
    tolerance: float = 1e-9
    least_gain: float = 1e-3

    def run(self, run: Run) -> tuple[FacetField, str]:
        """See `minimise`."""
        if run.linearisation is None:
            raise InputError(f"stage {run.name!r}: Gauss-Newton needs the matrix formalism, "
                             "expected engine matrix_formalism or another optimiser")
        functional, earlier = run.functional, run.earlier
        comm, (low, high) = run.start.mesh.comm, run.bounds
        facets = slice(0, run.start.mesh.num_owned_facets)
        control, damping, idle = run.start._ad_copy(), Damping(
            self.damping, self.least_damping), 0
        if earlier is not None:
            damping.mu, damping.growth, idle = earlier.numbers["damping"].tolist()
        loss = float(functional(control))
        if not np.isfinite(loss):
            return control, "the solver failed"
        failures = functional.failures

        def report(iteration, length, step):
            numbers = {"damping": np.array([damping.mu, damping.growth, idle])}
            facets = {"control": control.values}
            run.report(iteration, loss, length, step, lambda: (numbers, facets))

        def after(step):
            trial = control._like(np.clip(control.values + step, low, high))
            return float(functional(trial)), trial

        try:
            for iteration in range(run.done, run.iterations):
                try:
                    model = run.linearisation(control.values)
                except SolverError:
                    return control, "the solver failed"
                gradient = model.gradient
                projected = control.values - np.clip(control.values - gradient, low, high)
                length = np.sqrt(comm.allreduce(float(projected @ projected)))
                if iteration == 0 and earlier is None:
                    report(0, length, 0.0)
                if length <= self.tolerance:
                    return control, "gradient small enough"
                # a number moves all signals, a facet few: each kind has its unit of damping
                diagonal = model.diagonal
                largest = comm.allreduce(float(diagonal[facets].max(initial=0.0)), op=MPI.MAX)
                unit = np.maximum(diagonal, _LEAST_UNIT * largest)
                unit[facets] = largest
                lower = np.clip(low - control.values, -self.longest_step, 0.0)
                upper = np.clip(high - control.values, 0.0, self.longest_step)
                # bound now: both change from one iteration to the next
                found = damped_step(damping, self.tries, loss, _steps(
                    comm, model, unit, lower, upper), after)
                if found is None:
                    why = ("the solver failed" if functional.failures > failures
                           else "nothing better")
                    return control, f"no step of {self.tries} dampings lowered the loss ({why})"
                reached, trial = found
                idle = idle + 1 if loss - reached < self.least_gain * loss else 0
                step = norm(trial, control)
                control, loss = trial, reached
                report(iteration + 1, length, step)
                if idle >= 2:
                    return control, "no longer improving"
        except StopStage as stop:
            return control, str(stop)
        return control, "iteration limit"


def _steps(comm: MPI.Comm, model: Linearised, unit: np.ndarray, lower: np.ndarray,
           upper: np.ndarray):
    """Steps by damping, as `damped_step` wants them; one that cannot be made promises nothing."""
    def step(mu: float) -> tuple[np.ndarray, float]:
        try:
            return bounded_step(comm, model, mu * unit, lower, upper)
        except SolverError:
            return np.zeros(len(lower)), 0.0

    return step


@dataclass(frozen=True, eq=False)
class Linearised:
    """The loss around a control.

    Attributes:
        residual: ``(N,)`` r, of the measurements and of priors that are sums of squares, the same
            on every rank.
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
        likelihood: what the residuals are of.
        control_type: from control to log10 kappa, facet by facet: with ``value`` and ``pull_back``.
        from_log: `FromLog`, to the permeability.
        weight: what the misfit is multiplied by in the loss.
        priors: terms of the loss in log10 kappa, with ``pull_back``; those with ``squares`` are
            residuals too.
        numbers: `Numbers` that follow the facets in controls; None for none.
    """

    def __init__(self, engine, likelihood: Likelihood, control_type, from_log,
                 weight: float = 1.0, priors=(), numbers=None):
        self.engine, self.likelihood, self.priors = engine, likelihood, list(priors)
        self.numbers = numbers
        self.control_type, self.from_log = control_type, from_log
        self._root = np.sqrt(weight * likelihood.weights / likelihood.weights.sum())

    def __call__(self, control: np.ndarray) -> Linearised:
        """At a control, ``(nf,)``. Collective.

        Raises:
            SolverError: the eigenproblem failed.
        """
        z = self.control_type.value(control)
        signals, slopes = self._slopes(self.from_log.value(z))
        residual = self._root * self.likelihood.residual(signals)
        slopes = self._root[:, None] * self.likelihood.slope(signals, slopes)
        jacobian = self.control_type.pull_back(control, self.from_log.pull_back(z, slopes))
        gradient, curvature = np.zeros_like(z), np.zeros_like(z)
        others = []
        for prior in self.priors:
            rows = getattr(prior, "squares", lambda z: None)(z)
            if rows is None:
                others.append(prior)
                continue
            residual = np.r_[residual, rows[0]]
            jacobian = np.vstack([jacobian, self.control_type.pull_back(control, rows[1])])
        if others:
            slope = self.control_type.pull_back(control, np.ones_like(z))
            gradient = slope * _gradient(others, z)
            curvature = slope**2 * self._curvature(others, z)
        return Linearised(residual, jacobian, gradient, curvature)

    def _slopes(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signals, and derivatives of their magnitudes by permeabilities and numbers."""
        if self.numbers is None or not len(self.numbers):
            return signal_jacobian(self.engine, values)
        x = self.numbers.of(values)
        self.numbers.put(x)
        signals, slopes = signal_jacobian(self.engine, values[: self.numbers.facets])
        return signals, self.numbers.joined(slopes, self.numbers.slopes(self.engine, x))

    def _curvature(self, priors: list, z: np.ndarray) -> np.ndarray:
        """Diagonal of the priors' Hessian from its products with random signs (Bekas, Kokiopoulou
        and Saad 2007); what is negative is left out."""
        triples = self.engine.problem.mesh.facet_vertices
        total = np.zeros_like(z)
        for probe in range(_PROBES):
            # signs that a facet has at any number of ranks
            signs = np.where(np.sin(triples @ (12.9898, 78.233, 37.719)[: triples.shape[1]]
                                    * (probe + 1)) > 0, 1.0, -1.0)
            signs = np.r_[signs, np.ones(len(z) - len(signs))]
            step = _PROBE_STEP * signs
            total += signs * (_gradient(priors, z + step) - _gradient(priors, z - step))
        return np.maximum(total / (2 * _PROBE_STEP * _PROBES), 0.0)


def _gradient(priors: list, z: np.ndarray) -> np.ndarray:
    return sum(prior.pull_back(z, 1.0) for prior in priors)


@dataclass(frozen=True, eq=False)
class _InDataSpace:
    """|r + J d|^2 + p.d + d.(C + M) d / 2 of distributed facets; a `Quadratic`."""

    comm: MPI.Comm
    model: Linearised
    curvature: np.ndarray

    def moved(self, d: np.ndarray) -> np.ndarray:
        return self.model.residual + _sum(self.comm, self.model.jacobian @ d)

    def value(self, d: np.ndarray) -> float:
        own = float(self.model.prior_gradient @ d + 0.5 * self.curvature @ d**2)
        moved = self.moved(d)
        return float(moved @ moved) + self.comm.allreduce(own)

    def slope(self, d: np.ndarray) -> np.ndarray:
        return (2 * self.moved(d) @ self.model.jacobian + self.model.prior_gradient
                + self.curvature * d)

    def newton(self, d: np.ndarray, free: np.ndarray) -> np.ndarray:
        """-(2 J^T J + A)^-1 (2 J^T residual + extra), A the diagonal curvature."""
        J, curvature = self.model.jacobian[:, free], self.curvature[free]
        extra = (self.model.prior_gradient + self.curvature * d)[free]
        scaled = J / np.sqrt(curvature)
        matrix = _sum(self.comm, scaled @ scaled.T)
        matrix[np.diag_indices(len(matrix))] += 0.5
        right = self.moved(d) - _sum(self.comm, J @ (extra / curvature))
        try:
            factor = scipy.linalg.cho_factor(matrix, lower=True, overwrite_a=True)
        except (scipy.linalg.LinAlgError, ValueError) as error:
            raise SolverError(f"Gauss-Newton step: {error}") from None
        step = np.zeros_like(d)
        step[free] = -(extra + scipy.linalg.cho_solve(factor, right) @ J) / curvature
        return step


def bounded_step(comm: MPI.Comm, model: Linearised, damping: np.ndarray, lower: np.ndarray,
                 upper: np.ndarray, rounds: int = 30) -> tuple[np.ndarray, float]:
    """The step d that minimises the damped Gauss-Newton model within bounds. Collective.

    Args:
        comm: of the mesh.
        model: r, J, p and C of |r + J d|^2 + p.d + d.(C + M) d / 2.
        damping: ``(nf,)`` M, positive.
        lower, upper: ``(nf,)``; 0 lies between them.
        rounds: at most so many Newton steps.

    Returns:
        d, ``(nf,)``, and by how much the loss falls if the model without damping is right.

    Raises:
        SolverError: the matrix is not finite.
    """
    quadratic = _InDataSpace(comm, model, model.prior_curvature + damping)
    d = bounded_minimum(quadratic, lower, upper, comm, rounds)
    plain = _InDataSpace(comm, model, model.prior_curvature)
    return d, plain.value(np.zeros_like(d)) - plain.value(d)


def _sum(comm: MPI.Comm, local: np.ndarray) -> np.ndarray:
    if comm.size == 1:
        return local
    total = np.empty_like(local)
    comm.Allreduce(np.ascontiguousarray(local), total)
    return total
