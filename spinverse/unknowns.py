"""Columns of values at the unknowns of a problem: of all broken dofs, or of those that ties leave.

Where facets are tied, P has one entry in each row, so that a function of the tied space is known by
its values at the unknowns that a rank's cells touch. There may be twenty times fewer of these than
broken dofs, and products of a function with another one are sums over them:
(P v)^T J (P w) = v^T (P^T J P) w, where each rank takes the rows of J that it owns and the sum over
the ranks comes last.
"""

from __future__ import annotations

import dolfinx
import numpy as np
import scipy.sparse
from petsc4py import PETSc
from scipy.sparse.linalg import aslinearoperator


class Unknowns:
    """What belongs to the columns of one space. Without ties (P None) all of it is trivial.

    Columns are arrays ``(n, K)``. *Owned* ones have a row for each unknown of this rank; *local*
    ones have besides them those of other ranks that its cells, ghosts included, touch.
    """

    def __init__(self, index_map, P: PETSc.Mat | None):
        self.tied = P is not None
        self.num_owned = index_map.size_local
        if P is None:
            return
        _, column, weight = P.getValuesCSR()
        first, last = P.getOwnershipRangeColumn()
        self.num_owned = last - first
        columns = with_ghosts(index_map, column.astype(np.int64))
        weights = with_ghosts(index_map, np.asarray(weight))
        inside = (columns >= first) & (columns < last)
        others = np.unique(columns[~inside])
        owners = np.searchsorted(P.getOwnershipRangesColumn(), others, side="right") - 1
        comm = index_map.comm
        self._map = dolfinx.common.IndexMap(comm, self.num_owned, others, owners.astype(np.int32),
                                            0)
        place = np.where(inside, columns - first,
                         self.num_owned + np.searchsorted(others, columns))
        owned, size = index_map.size_local, self.num_owned + len(others)
        self.all_dofs = scipy.sparse.csr_matrix(
            (weights, place, np.arange(len(place) + 1)), shape=(len(place), size))
        self.owned_dofs = self.all_dofs[:owned]
        self._transposed = self.owned_dofs.T.tocsr()
        self._squares = self.gathered(self._transposed @ weights[:owned, None])

    def operator(self, J):
        """An operator between owned broken dofs, to be multiplied with local columns by ``@``."""
        if not self.tied:
            return J
        if scipy.sparse.issparse(J):
            return (self._transposed @ J @ self.owned_dofs).tocsr()
        return aslinearoperator(self._transposed) @ J @ aslinearoperator(self.owned_dofs)

    def local(self, owned: np.ndarray) -> np.ndarray:
        """Local columns of owned ones. Collective."""
        if not self.tied or self._map.comm.size == 1:
            return np.asfortranarray(owned)
        vector = dolfinx.la.vector(self._map, owned.shape[1])
        vector.array[: owned.size] = owned.ravel()
        vector.scatter_forward()
        return np.asfortranarray(vector.array.reshape(-1, owned.shape[1]))

    def gathered(self, loads: np.ndarray) -> np.ndarray:
        """Owned columns of loads of which each rank's local ones are a part. Collective."""
        if not self.tied or self._map.comm.size == 1:
            return loads
        vector = dolfinx.la.vector(self._map, loads.shape[1])
        vector.array[:] = loads.ravel()
        vector.scatter_reverse(dolfinx.la.InsertMode.add)
        return vector.array.reshape(-1, loads.shape[1])[: self.num_owned].copy(order="F")

    def broken(self, columns: np.ndarray) -> np.ndarray:
        """P of local columns: values at the owned broken dofs."""
        return np.asfortranarray(self.owned_dofs @ columns) if self.tied else columns

    def load(self, broken: np.ndarray) -> np.ndarray:
        """P^T of loads at the owned broken dofs: a rank's part of them, in local columns."""
        return self._transposed @ broken if self.tied else broken

    def owned_loads(self, broken: np.ndarray) -> np.ndarray:
        """P^T of loads at the owned broken dofs, owned columns. Collective."""
        return self.gathered(self.load(broken))

    def nearest(self, broken: np.ndarray) -> np.ndarray:
        """Local columns of values at the owned broken dofs; means of what is tied. Collective."""
        return self.local(self.owned_loads(broken) / self._squares) if self.tied else broken


def with_ghosts(index_map, owned: np.ndarray) -> np.ndarray:
    """Owned rows, ``(n,)`` or ``(n, k)``, followed by those of the ghosts. Collective."""
    if index_map.comm.size == 1:
        return owned
    vector = dolfinx.la.vector(index_map, *owned.shape[1:] or (1,), dtype=owned.dtype)
    vector.array[: owned.size] = np.ascontiguousarray(owned).ravel()
    vector.scatter_forward()
    return vector.array.reshape(index_map.size_local + index_map.num_ghosts, *owned.shape[1:])


def prolonged(P: PETSc.Mat | None, vector: PETSc.Vec) -> np.ndarray:
    """P of a vector: values at the owned broken dofs. None is P without ties. Collective."""
    if P is None:
        return vector.getArray(readonly=True).copy()
    broken = P.createVecLeft()
    P.mult(vector, broken)
    values = broken.getArray(readonly=True).copy()
    broken.destroy()
    return values


def restricted(P: PETSc.Mat | None, broken: np.ndarray, result: PETSc.Vec) -> PETSc.Vec:
    """P^T of values at the owned broken dofs, in ``result``, which is returned. Collective."""
    if P is None:
        result.setArray(broken)
        return result
    given = P.createVecLeft()
    given.setArray(broken)
    P.multTranspose(given, result)
    given.destroy()
    return result
