"""Columns at the unknowns of a problem with tied facets, and solvers for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from petsc4py import PETSc

from ...problem import BlochTorrey


class Tied:
    """Owned columns of the unknowns from and to values at the owned broken dofs."""

    def __init__(self, problem: BlochTorrey, A: PETSc.Mat):
        self.problem, self.unknowns, self.matrix = problem, problem.unknowns, A
        self.column = A.createVecRight()

    def load(self, values: np.ndarray) -> np.ndarray:
        """P^T of columns ``(n_owned, n)``. Collective."""
        return self.unknowns.gathered(self.unknowns.load(values))

    def broken(self, vectors: np.ndarray) -> np.ndarray:
        """P of columns ``(n_local, n)``. Collective."""
        return self.unknowns.broken(self.unknowns.local(vectors))

    def destroy(self) -> None:
        self.column.destroy()
        if self.unknowns.tied:
            self.matrix.destroy()


def solver_of(ksp: PETSc.KSP, tied: Tied) -> Callable[[np.ndarray], np.ndarray]:
    """(A + s M)^-1 of columns ``(n_local, n)`` of loads in the tied space."""
    def solve(loads: np.ndarray) -> np.ndarray:
        sizes = (tied.column.getSizes(), (PETSc.DECIDE, loads.shape[1]))
        right, left = (PETSc.Mat().createDense(sizes, comm=tied.column.comm) for _ in range(2))
        right.getDenseArray()[:] = loads
        right.assemble()
        left.assemble()
        ksp.matSolve(right, left)
        result = left.getDenseArray(readonly=True).copy(order="F")
        right.destroy()
        left.destroy()
        return result

    return solve
