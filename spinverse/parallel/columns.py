"""Blocks of vectors: columns of numpy arrays, the rows of each rank its own, and PETSc matrices."""

from __future__ import annotations

import numpy as np
from petsc4py import PETSc

from .exchange import reduced

CHUNK = 1024  # rows at once: sums of single precision keep their digits, and stay in the cache


def dense(matrix: PETSc.Mat, columns: np.ndarray, transposed: bool = False) -> PETSc.Mat:
    """Columns ``(n_local, k)`` that ``matrix`` can be multiplied with; no copy if Fortran order."""
    rows = matrix.getSizes()[0 if transposed else 1]
    result = PETSc.Mat().createDense((rows, (PETSc.DECIDE, columns.shape[1])),
                                     array=np.asfortranarray(columns), comm=matrix.comm)
    result.assemble()
    return result


def times(matrix: PETSc.Mat, columns: np.ndarray, transposed: bool = False) -> np.ndarray:
    """``matrix @ columns``, or its transpose's. Collective.

    Args:
        columns: ``(n_local, k)`` the rank's rows.
    """
    right = dense(matrix, columns, transposed)
    product = (matrix.transposeMatMult if transposed else matrix.matMult)(right)
    result = product.getDenseArray(readonly=True).copy(order="F")
    right.destroy()
    product.destroy()
    return result


def solved(ksp: PETSc.KSP, columns: np.ndarray) -> np.ndarray:
    """What a solver makes of right-hand sides ``(n_local, k)``, all at once. Collective."""
    matrix = ksp.getOperators()[0]
    right = dense(matrix, columns)
    left = dense(matrix, np.zeros(columns.shape, order="F"))
    ksp.matSolve(right, left)
    result = left.getDenseArray(readonly=True).copy(order="F")
    right.destroy()
    left.destroy()
    return result


def inner(comm, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``left^T right`` over all ranks. Collective."""
    return reduced(comm, left.T @ right)


def column_inner(comm, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``(k,)`` its diagonal, in double precision whatever that of the columns. Collective."""
    total = np.zeros(left.shape[1], np.result_type(left, right, float))
    for first in range(0, len(left), CHUNK):
        rows = slice(first, first + CHUNK)
        total += np.einsum("ik,ik->k", left[rows], right[rows])
    return reduced(comm, total)
