"""Derivatives of all signals with respect to all facet permeabilities, by the matrix formalism.

For measurement m, dS_m = sum(G_m * dA) with A = Phi^T (decay) Phi and G_m a K x K matrix that one
backward sweep leaves (`spinverse.engines.modal.chebyshev`); what facet F contributes to dA is
dkappa_F B_F, B_F = int_F [Phi]^T [Phi]. So J_mF = <G_m, B_F>: both symmetric, packed to
K (K + 1) / 2 numbers, and contracted as a matrix product of blocks of measurements and facets. A
rank sweeps its own measurements and contracts its own facets; packed G_m are exchanged in between,
a block at a time, so N K^2 numbers are nowhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice

import numpy as np
from mpi4py import MPI

from ...errors import InputError
from ...extra_terms import has
from ...phases import phase
from ..schedule.groups import Batch
from .matrix_formalism import MatrixFormalism, free_jumps
from .steps import Stored, divided_differences

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 2**26  # packed matrices of a block of measurements, or of facets


def signal_jacobian(engine: MatrixFormalism, permeability: np.ndarray | None = None,
                    weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Signals, and the derivative of each one's magnitude by each facet permeability. Collective.

    Row m is what `MatrixFormalism.gradient` gives for an adjoint that is zero but at m, with the
    modes as a fixed basis. It costs about three gradients of all measurements.

    Args:
        engine: the matrix formalism on a problem; what it remembers for `gradient` stays.
        permeability: ``(nf,)`` um/ms of the owned facets; as it is if nothing is said.
        weights: ``(N,)`` complex w: derivatives of Re(conj(w) S) instead. The same on all ranks.

    Returns:
        Complex signals ``(N,)``, um^3 times density, the same on every rank; and ``(N, nf)`` over
        the owned facets, um^3 times density per um/ms, zero on tied facets.

    Raises:
        InputError: another engine, weights of another shape; SolverError: the eigenproblem failed.
    """
    if not isinstance(engine, MatrixFormalism):
        raise InputError(f"engine: a {type(engine).__name__}, expected a MatrixFormalism")
    number = len(engine.acquisition)
    if weights is not None and np.shape(weights) != (number,):
        raise InputError(f"weights: shape {np.shape(weights)}, expected ({number},)")
    problem = engine.problem
    if has(problem.extra_form, problem.kappa) and problem.comm.rank == 0:
        _log.warning("Jacobian: what extra_terms change with the permeability is left out of it")
    engine.find_modes(permeability)
    return _jacobian(engine, weights)


@phase("Jacobian")
def _jacobian(engine: MatrixFormalism,
              weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """`signal_jacobian` in the modes that were found."""
    number, K, comm = len(engine.acquisition), len(engine.basis), engine.problem.comm
    packed = K * (K + 1) // 2
    block = max(1, _BLOCK_BYTES // (8 * packed * comm.size))
    mine = sum(len(engine.groups[i].rows) for i in engine._mine)
    rounds = comm.allreduce(-(-mine // block), op=MPI.MAX)

    signals = np.zeros(number, dtype=complex)
    jacobian = np.zeros((number, engine.problem.mesh.num_owned_facets))
    sweeps = _sweeps(engine, weights, signals)
    free, jumps = free_jumps(engine.problem, engine.basis)
    jumps = jumps.reshape(len(free), -1, K) if len(free) else np.zeros((0, 1, K))
    for _ in range(rounds):
        found = list(islice(sweeps, block))
        rows = np.array([row for row, _ in found], dtype=np.int64)
        matrices = np.array([G for _, G in found]).reshape(-1, packed)
        rows, matrices = _gather(comm, rows, matrices)
        _contract(jacobian, rows, matrices, free, jumps)
    return comm.allreduce(signals), jacobian


def _sweeps(engine: MatrixFormalism, weights: np.ndarray | None,
            signals: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """This rank's measurements with their packed G_m; fills in their signals on the way."""
    basis = engine.basis
    K = len(basis)
    upper, decays = np.triu_indices(K), {}
    for index in engine._mine:
        group = Batch.of([engine.groups[index]])
        values, (_, left, right, forward) = engine.evolve_batch(basis, group, True)
        signals[group.rows] = values
        w = (values / np.where(values == 0, 1.0, np.abs(values)) if weights is None
             else np.asarray(weights)[group.rows])
        ket = left.conj() if group.fold > 0 else left
        products = []
        if forward:
            p = engine.at_the_end(basis, group, w, left, right)
            products = _backward(forward, p, len(group.rows))
        for m, row in enumerate(group.rows):
            G = np.zeros((K, K))
            for swept, states, factor, V in products:
                product = (swept[m] @ states[m].T) * factor
                G += product if V is None else V @ product @ V.T
            if gap := group.gap[m]:
                if gap not in decays:
                    decays[gap] = divided_differences(basis.eigenvalues, gap)
                G += np.outer((w[m] * ket[:, m]).conj(), right[:, m]).real * decays[gap]
            G += G.T
            G[np.diag_indices(K)] *= 0.5  # entries off the diagonal stand for two
            yield row, G[upper]


def _backward(forward: list, p: np.ndarray, count: int) -> list[tuple]:
    """What each measurement's G is the product of: all adjoints, pulled back through the pieces.

    ``(swept, states, factor, V)``, over the measurements ``(K, n)``: factor times swept states^T,
    in the columns of V unless it is None.
    """
    products = []
    for step in reversed(forward):
        found: dict = {}

        def visit(swept, term, factor, found=found):
            key = None if np.ndim(factor) else factor
            swept_of, terms_of, _ = found.setdefault(key, ([], [], factor))
            swept_of.append(swept.copy())
            terms_of.append(term)

        p = step.sweep(p, visit)
        V = step.V if isinstance(step, Stored) else None
        products += [(_by_measurement(swept, count), _by_measurement(terms, count), factor, V)
                     for swept, terms, factor in found.values()]
    return products


def _by_measurement(states: list[np.ndarray], count: int) -> np.ndarray:
    """Complex ``(K, C)``, a column or two for each measurement, as real ``(count, K, n)``."""
    stacked = np.stack(states, axis=-1)
    K, _, number = stacked.shape
    by = stacked.reshape(K, -1, count, number).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(by).reshape(count, K, -1).view(float)


def _gather(comm: MPI.Comm, rows: np.ndarray, matrices: np.ndarray) -> tuple:
    """Rows and packed matrices of all ranks, on every rank."""
    if comm.size == 1:
        return rows, matrices
    parts = comm.allgather(rows)
    whole = np.empty((sum(map(len, parts)), matrices.shape[1]))
    sizes = [len(part) * matrices.shape[1] for part in parts]
    comm.Allgatherv(np.ascontiguousarray(matrices), (whole, sizes))
    return np.concatenate(parts), whole


def _contract(jacobian: np.ndarray, rows: np.ndarray, matrices: np.ndarray, free: np.ndarray,
              jumps: np.ndarray) -> None:
    """Write <G, B_F> of packed ``matrices`` with free facets ``(n,)``, of jumps ``(n, q, K)``."""
    if not len(rows):
        return
    block, upper = max(1, _BLOCK_BYTES // (16 * matrices.shape[1])), np.triu_indices(jumps.shape[2])
    for first in range(0, len(free), block):
        W = jumps[first: first + block]
        B = (W.transpose(0, 2, 1) @ W)[:, *upper]
        jacobian[np.ix_(rows, free[first: first + block])] = matrices @ B.T
