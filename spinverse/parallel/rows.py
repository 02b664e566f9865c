"""Blocks of vectors held row by row, and PETSc matrices that multiply them.

All columns of a row lie side by side, so that an entry of the matrix is read once for all of them
and the processor multiplies many at a time: with 32 columns three times as fast in single
precision as PETSc's product with columns (`parallel.columns`) is in double.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from mpi4py import MPI
from petsc4py import PETSc

from .columns import CHUNK
from .exchange import Route, reduced


class Rows:
    """A copy of a PETSc matrix that multiplies blocks of rows, ``matrix @ block``. Collective.

    Args:
        matrix: assembled; what is done to it later is not seen.
        dtype: of the copy and of the blocks.

    Attributes:
        shape: of the rank's part, ``(n_local rows, n_local columns)``.
    """

    def __init__(self, matrix: PETSc.Mat, dtype: type = np.float32):
        self.comm, self.dtype = matrix.comm.tompi4py(), np.dtype(dtype)
        indptr, columns, values = matrix.getValuesCSR()
        shape = (len(indptr) - 1, matrix.getLocalSize()[1])
        starts = np.asarray(matrix.getOwnershipRangesColumn())
        columns = columns - starts[self.comm.rank]
        own = (columns >= 0) & (columns < shape[1])
        row = np.repeat(np.arange(shape[0]), np.diff(indptr))

        def part(chosen: np.ndarray, columns: np.ndarray, width: int) -> scipy.sparse.csr_matrix:
            return scipy.sparse.csr_matrix(
                (values[chosen].astype(dtype), (row[chosen], columns)), (shape[0], width))

        self.shape = shape
        self._own = part(own, columns[own], shape[1])
        self._others = None
        if self.comm.size > 1:
            ghosts, place = np.unique(columns[~own] + starts[self.comm.rank], return_inverse=True)
            self._route = Route(self.comm, np.searchsorted(starts, ghosts, side="right") - 1)
            self._wanted = self._route.forward(ghosts) - starts[self.comm.rank]
            self._others = part(~own, place, len(ghosts))

    def __matmul__(self, block: np.ndarray) -> np.ndarray:
        """Of the rank's rows ``(n_local, k)``. Collective."""
        if self._others is None:
            return self._own @ block
        ghosts = self._route.backward(block[self._wanted])
        return self._own @ block + self._others @ ghosts


def largest(comm, columns: np.ndarray) -> np.ndarray:
    """``(k,)`` largest magnitude of each column. Collective."""
    found = np.maximum(columns.max(axis=0, initial=0.0), -columns.min(axis=0, initial=0.0))
    return reduced(comm, found, MPI.MAX)


def add(result: np.ndarray, block: np.ndarray, factors: np.ndarray) -> None:
    """``result += block * factors``, a factor a column, in place."""
    factors = factors.astype(result.dtype)
    for first in range(0, len(result), CHUNK):
        rows = slice(first, first + CHUNK)
        result[rows] += block[rows] * factors
