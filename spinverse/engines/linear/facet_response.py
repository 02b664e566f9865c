"""How well the medium around a facet conducts, which limits what its permeability can change.

A facet whose permeability changes by d adds d W^T n n^T W to the decay matrix A, W being its rows
of the jump matrix and n the uniform jump. By Sherman and Morrison the response to it at the
Laplace variable s is that of first order divided by 1 + d R, R = n^T W (A + s M)^-1 W^T n: the
jump that a unit flux through the facet leaves. R = 1 / (kappa + c) defines the conductance c of
the way around the facet, which is in series with any new permeability.
"""

from __future__ import annotations

import dolfinx
import numpy as np
import scipy.sparse
from petsc4py import PETSc

from ...errors import SolverError
from ...parallel.columns import solved
from ...phases import phase
from ...problem import BlochTorrey
from .direct import direct

_BLOCK = 64  # facets solved at once


@phase("facet responses")
def surrounding_conductance(problem: BlochTorrey, rate: float,
                            wanted: np.ndarray | None = None,
                            options_prefix: str = "spinverse_facets_") -> np.ndarray:
    """Conductance c of the medium around each facet, at the present permeability. Collective.

    One solve for each ``wanted`` facet, ``(nf,)`` bool, or each that is not tied, with one factor
    of A + rate M.

    Args:
        rate: s, 1/ms, positive. With 2 / TE, x / (1 + x / (s TE)) follows 1 - exp(-x), what a leak
            drains until TE, to second order.
        options_prefix: PETSc options with this prefix reach the solver.

    Returns:
        ``(nf,)`` um/ms over the owned facets; inf where it was not wanted or the facet is tied.

    Raises:
        SolverError: if the factorisation fails.
    """
    comm, facets = problem.comm, problem.mesh.num_owned_facets
    chosen = ~problem.tied if wanted is None else np.asarray(wanted, bool) & ~problem.tied
    mine = np.flatnonzero(chosen)
    jumps = _uniform_jumps(problem)[mine]
    offset = comm.exscan(len(mine)) or 0
    total = comm.allreduce(len(mine))
    A = problem.decay_matrix()
    shifted = A.copy()
    shifted.axpy(rate, problem.mass_matrix)
    ksp = direct(shifted, options_prefix, "facet responses")
    response = np.zeros(len(mine))
    try:
        for first in range(0, total, _BLOCK):
            count = min(_BLOCK, total - first)
            here = np.arange(max(first - offset, 0),
                             min(max(first + count - offset, 0), len(mine)))
            loads = problem.unknowns.owned_loads(_distributed(
                problem.space.dofmap.index_map, jumps[here], here + offset - first, count))
            answer = comm.allreduce((loads * solved(ksp, loads)).sum(axis=0))
            response[here] = answer[here + offset - first]
    except PETSc.Error as error:
        raise SolverError("facet responses: PETSc failed while solving") from error
    finally:
        ksp.destroy()
        shifted.destroy()
        problem.release(A)
    result = np.full(facets, np.inf)
    kappa = problem.kappa.x.array[mine]
    # nothing conducts around a facet whose own permeability is all that R shows
    result[mine] = np.maximum(1.0 / response - kappa, 1e-9 * np.maximum(kappa, 1e-3))
    return result


def _uniform_jumps(problem: BlochTorrey) -> scipy.sparse.csr_matrix:
    """W^T n of every owned facet as rows, ``(nf, nd)`` over owned and ghost dofs."""
    T, mesh = problem.jump_matrix, problem.mesh
    facets = mesh.num_owned_facets
    if not facets:
        return scipy.sparse.csr_matrix((0, T.shape[1]))
    each = T.shape[0] // facets
    cell = np.empty(T.shape[1], dtype=np.int64)
    dofs = problem.space.dofmap.list
    cell[dofs] = np.arange(len(dofs))[:, None]
    entries = T.tocoo()
    side = cell[entries.col] == mesh.facet_cells[entries.row // each, 0]
    # a function that is 1 on the first side alone: the square roots of the quadrature weights
    e = np.bincount(entries.row, weights=entries.data * side, minlength=T.shape[0])
    e = e.reshape(facets, each)
    n = e / np.linalg.norm(e, axis=1, keepdims=True)
    rows = scipy.sparse.csr_matrix((n.ravel(), np.arange(n.size), np.arange(0, n.size + 1, each)))
    return (rows @ T).tocsr()


def _distributed(index_map, rows: scipy.sparse.csr_matrix, columns: np.ndarray,
                 count: int) -> np.ndarray:
    """Rows over owned and ghost dofs as columns over owned dofs alone, ``(n_owned, count)``."""
    vector = dolfinx.la.vector(index_map, count)
    values = vector.array.reshape(-1, count)
    values[:, columns] = rows.T.toarray()
    vector.scatter_reverse(dolfinx.la.InsertMode.add)
    return np.asfortranarray(values[: index_map.size_local])
