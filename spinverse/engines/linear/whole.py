"""Sparse matrices of which every rank has all rows, and their factors there; the problems that
engines with bases for each direction make them of.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse
from mpi4py import MPI
from petsc4py import PETSc

from ...acquisition.table import Acquisition
from ...errors import InputError
from ...extra_terms import has
from ...problem import BlochTorrey
from ..schedule.storage import refuse
from .direct import direct


def ratio_of_decay(problem: BlochTorrey, acquisition: Acquisition, where: str) -> float:
    """The start over what receives, of a problem that only decays without a gradient. Collective.

    Raises:
        InputError: extra terms that know the gradient or turn the phase, waveforms that store
            magnetisation, a start that is not at rest.
    """
    if has(problem.extra_form, problem.g) or problem.num_fields:
        raise InputError(f"{where} with extra_terms that know the gradient or turn the phase, "
                         "expected terms that decay")
    refuse(acquisition, where)
    ratio = problem.initial / problem.scale
    low, high = (problem.comm.allreduce(float(value), op) for value, op in (
        (ratio.min(initial=np.inf), MPI.MIN), (ratio.max(initial=-np.inf), MPI.MAX)))
    if low < high:
        raise InputError(f"{where} with several densities and interface 'plain', expected "
                         "'equilibrium'")
    return low


def whole(comm, rows: tuple, width: int | None = None) -> scipy.sparse.csr_matrix:
    """The matrix of which each rank has some ``rows`` (indptr, indices, values). Collective."""
    parts = comm.allgather(rows)
    count = sum(len(part[0]) - 1 for part in parts)
    starts = np.concatenate([[0], *(np.diff(part[0]) for part in parts)]).cumsum()
    columns, values = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
    return scipy.sparse.csr_matrix((values, columns, starts), shape=(count, width or count))


def blocks(comm, local: scipy.sparse.spmatrix) -> scipy.sparse.csr_matrix:
    """The block diagonal matrix of which each rank has a block. Collective."""
    return scipy.sparse.block_diag(comm.allgather(local.tocsr()), format="csr")


def solver(matrix: scipy.sparse.spmatrix, prefix: str,
           what: str) -> Callable[[np.ndarray], np.ndarray]:
    """Solutions of a symmetric positive definite matrix, of loads ``(n,)`` or ``(n, ...)``.

    PETSc options with the prefix reach the factor; ``what`` is for messages.

    Raises:
        SolverError: no factor.
    """
    matrix = matrix.tocsr()
    ksp = direct(PETSc.Mat().createAIJ(matrix.shape, csr=(
        matrix.indptr, matrix.indices, matrix.data), comm=PETSc.COMM_SELF), prefix, what)
    factor = ksp.getPC().getFactorMatrix()

    def solve(loads: np.ndarray) -> np.ndarray:
        columns = np.asfortranarray(loads.reshape(len(loads), -1))
        b, x = (PETSc.Mat().createDense(columns.shape, array=part, comm=PETSc.COMM_SELF)
                for part in (columns, np.zeros_like(columns)))
        b.assemble()
        x.assemble()
        factor.matSolve(b, x)
        found = x.getDenseArray().reshape(loads.shape).copy()
        b.destroy()
        x.destroy()
        return found

    solve.ksp = ksp  # type: ignore[attr-defined]  # lives as long as what it solves with
    return solve
