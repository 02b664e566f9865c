"""Decay rates: eigenvalues of an operator that is symmetric and not negative, or an error.

Rounding leaves a rate of zero at plus or minus some units of the last digit of the largest rate
that the mesh knows. Beyond that a basis lost its digits, or physics are not those of decaying
modes; neither is to be hidden by a clip.
"""

from __future__ import annotations

import numpy as np
from petsc4py import PETSc

from ...errors import SolverError
from ..linear.direct import direct

# of the largest rate: some thousand units of the last digit, for sums over thousands of entries
ROUNDING = 1e-12
FOUND = 1e-8  # of the largest rate found: eigensolvers iterate to 1e-11, LAPACK is as good


def rounding(A: PETSc.Mat, M: PETSc.Mat) -> float:
    """What rates that are zero may be off by, 1/ms. Collective."""
    a, m = A.getDiagonal(), M.getDiagonal()
    a.pointwiseDivide(a, m)
    largest = a.max()[1]
    a.destroy()
    m.destroy()
    return ROUNDING * abs(largest)


def decay_rates(values: np.ndarray, rounding: float = 0.0) -> np.ndarray:
    """The eigenvalues ``(K,)``, ascending, without the sign that rounding gave some of them.

    Raises:
        SolverError: one is negative beyond ``rounding``, 1/ms.
    """
    limit = rounding + FOUND * np.abs(values).max(initial=0.0)
    if len(values) and not values[0] >= -limit:
        raise SolverError(f"eigenproblem: a decay rate of {values[0]:.3g} per ms, expected none "
                          f"below 0 (rounding is {limit:.1g}); the basis lost its digits, or a "
                          "coefficient is not positive")
    return np.maximum(values, 0.0)


def diagonalised(comm, operator: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues ``(K,)``, ascending, and eigenvectors ``(K, K)``, the same on every rank.

    Raises:
        SolverError: the operator is not symmetric beyond rounding.
    """
    size, skew = np.abs(operator).max(initial=0.0), np.abs(operator - operator.T).max(initial=0.0)
    if not skew <= FOUND * size:
        raise SolverError(f"eigenproblem: an operator between {len(operator)} functions is not "
                          f"symmetric, by {skew:.2g} of {size:.2g} per ms")
    return comm.bcast(tuple(np.linalg.eigh(0.5 * (operator + operator.T))))


def count_below(A: PETSc.Mat, M: PETSc.Mat, rate: float) -> int:
    """How many rates of A x = lambda M x are below one, 1/ms. Collective.

    The negative pivots of A - rate M (Sylvester): a factor, and no eigenproblem.
    """
    shifted = A.copy()
    shifted.axpy(-rate, M)
    ksp = direct(shifted, "spinverse_count_", "number of modes", definite=False, counted=True)
    number = negative_pivots(ksp.getPC())
    ksp.destroy()
    shifted.destroy()
    return number


def negative_pivots(pc: PETSc.PC) -> int:
    """Of a factor that was made with `count_pivots`. Collective."""
    return int(pc.getFactorMatrix().getMumpsInfog(12))
