"""Effective diffusion tensor of the matrix formalism, in closed form from the diffusion modes."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from ..acquisition.table import Acquisition
from ..engines.basis.eigenmodes import eigenmodes
from ..errors import InputError
from ..problem import BlochTorrey
from ..tissue import Tissue
from . import effective
from .compartments import pools_of, present_tissue, refuse_periodic
from .waveform_integrals import memory


def mf_adc(tissue: Tissue | BlochTorrey, acquisition: Acquisition, tolerance: float = 1e-4,
           degree: int = 1) -> effective.EffectiveDiffusion:
    """Initial slope of the signal for every waveform at any permeability. Collective.

    The signal to second order in g is, for a stationary start,

        S / S0 = 1 - g^2 int_{t > s} f(t) f(s) C(t - s),
        C(t) = (1/V) sum_k a_k a_k^T exp(-lambda_k t),        a_k = int x phi_k,

    (x sqrt(rho), and the integral of rho for V, where the densities rho are at rest),

    so that the slope -d ln S / db is n . D_eff n with (Li, Tran and Nguyen, NMR Biomed. 33,
    e4353, 2020)

        D_eff = (1/V) sum_k a_k a_k^T j(lambda_k),            j: see `waveform_integrals.memory`.

    Modes are added until the rest is known to be below the tolerance. The whole of it obeys two
    sum rules, sum_k a_k a_k^T = int x x^T and sum_k lambda_k a_k a_k^T = int D, so what the
    modes in use leave of either bounds what is left out.

    Parts that exchange no spins have tensors of their own; where all membranes are impermeable
    these are the compartments, and the result is that of `hadc`.

    Args:
        tissue: a tissue, or a problem without extra terms at its present permeability.
        acquisition: waveforms and directions; the b-values play no part.
        tolerance: of the tensors, relative to the largest diffusivity.
        degree: polynomial degree within a cell; that of a problem is its own.

    Returns:
        The slopes; ``errors`` are bounds of what the omitted modes would add.

    Raises:
        InputError: density or T2 that varies between cells that exchange spins, an absorbing
            outer boundary, extra terms, a tolerance that is not positive.
        SolverError: the eigenproblem failed.
    """
    if not tolerance > 0:
        raise InputError(f"tolerance: {tolerance!r}, expected a positive number")
    tissue, degree = plain(tissue, degree, "mf_adc")
    parts = pools_of(tissue)
    effective.check_stationary(tissue, parts, "mf_adc")
    problem = without_relaxation(tissue, degree)
    dofs = problem.space.dofmap.list[: problem.mesh.num_owned_cells]
    q = np.empty(problem.local_mass.shape[0])
    q[dofs] = np.sqrt(effective.profile(tissue))[: len(dofs), None]
    # sums owned broken dofs by the part that their cell belongs to, (C, n)
    label = np.repeat(parts.labels[: len(dofs)], dofs.shape[1])
    by_part = scipy.sparse.csr_matrix((np.ones(dofs.size), (label, dofs.ravel())),
                                      shape=(len(parts), len(q)))
    x = problem.space.tabulate_dof_coordinates()[: len(q)] - problem.mesh.centre
    x *= q[:, None]
    weighted = problem.local_mass @ x
    # int |x|^2 / V of each part, (C,) um^2: x lies in the space (of curved cells from degree 2 on),
    # so this is exact
    second_moments = problem.comm.allreduce(by_part @ (x * weighted).sum(axis=1)) / parts.capacities
    mean_D = effective.mean_diffusivity_tensors(tissue, parts)
    allowed = tolerance * float(np.abs(mean_D).max())
    size = problem.num_unknowns
    number = min(size, 24 + 4 * len(parts))
    while True:
        basis = eigenmodes(problem, number)
        rates, modes = basis.eigenvalues, basis.modes
        # a_k of each part, (C, 3, K)
        moments = problem.comm.allreduce(
            np.stack([by_part @ (component[:, None] * modes) for component in weighted.T], axis=1))
        left = (second_moments - np.einsum("cik,cik->c", moments, moments) / parts.capacities,
                np.trace(mean_D, axis1=1, axis2=2)
                - np.einsum("cik,cik,k->c", moments, moments, rates) / parts.capacities)
        errors = np.column_stack([_bound(w, rates[-1], left) for w in acquisition.waveforms])
        if len(basis) >= size:
            errors[:] = 0.0
        if problem.comm.bcast(bool(errors.max() <= allowed)):
            break
        number = min(size, 2 * len(basis))
    values = []
    for waveform in acquisition.waveforms:
        j = memory(waveform, rates)
        subscripts = "cik,cjk,kij->c" if waveform.vector else "cik,cjk,k->cij"
        values.append((np.einsum(subscripts, moments, moments, j).T / parts.capacities).T)
    return effective.collect(tissue, acquisition, parts, values, errors)


def plain(tissue: Tissue | BlochTorrey, degree: int, quantity: str) -> tuple[Tissue, int]:
    """Tissue and degree; terms of the user's and periodic boxes are refused."""
    if isinstance(tissue, BlochTorrey):
        if tissue.extra_terms is not None:
            raise InputError(f"problem: {quantity} does not know extra_terms; expected a problem "
                             "without them")
        degree = tissue.degree
    tissue = present_tissue(tissue)
    refuse_periodic(tissue, quantity)
    return tissue, degree


def without_relaxation(tissue: Tissue, degree: int) -> BlochTorrey:
    """The problem of a tissue with T2 left out."""
    problem = BlochTorrey(tissue, degree)
    problem.coefficients.R2.x.array[:] = 0.0
    return problem


def _bound(waveform, slowest: float, left: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Largest contribution of modes faster than ``slowest``, ``(C,)`` um^2/ms."""
    rates = np.maximum(slowest, 1e-12) * np.geomspace(1.0, 1e5, 201)
    j = memory(waveform, rates)
    size = np.abs(j) if j.ndim == 1 else np.linalg.norm(j, ord=2, axis=(1, 2))
    by_moment, by_energy = (np.maximum(part, 0.0) for part in left)
    return np.minimum(by_moment * size.max(), by_energy * (size / rates).max())
