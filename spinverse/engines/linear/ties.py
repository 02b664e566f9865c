"""Vectors at the unknowns of a problem with tied facets, and values at its broken dofs."""

from __future__ import annotations

import numpy as np
from petsc4py import PETSc


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
