"""Columns at the unknowns of a problem with tied facets."""

from __future__ import annotations

import numpy as np
from petsc4py import PETSc

from ...problem import BlochTorrey


class Tied:
    """Owned columns of the unknowns from and to values at the owned broken dofs."""

    def __init__(self, problem: BlochTorrey, A: PETSc.Mat):
        self.problem, self.unknowns, self.matrix = problem, problem.unknowns, A

    def load(self, values: np.ndarray) -> np.ndarray:
        """P^T of columns ``(n_owned, n)``. Collective."""
        return self.unknowns.gathered(self.unknowns.load(values))

    def broken(self, vectors: np.ndarray) -> np.ndarray:
        """P of columns ``(n_local, n)``. Collective."""
        return self.unknowns.broken(self.unknowns.local(vectors))

    def destroy(self) -> None:
        if self.unknowns.tied:
            self.matrix.destroy()


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
