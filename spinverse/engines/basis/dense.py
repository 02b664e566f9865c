"""Diffusion modes of small problems by LAPACK: no iteration, for any part of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
from petsc4py import PETSc

from ...errors import SolverError, sleep_until_all_are_here
from ..linear.direct import gathered

# Unknowns up to which a dense solve takes no time; up to which it beats the messages of several
# ranks; and up to which it beats shift-invert where more than half of all modes are wanted.
ALWAYS, ON_RANKS, FOR_MANY = 300, 1000, 2500


def is_small(size: int, wanted: int, ranks: int) -> bool:
    """Whether a dense solve is the faster one."""
    always = ALWAYS if ranks == 1 else ON_RANKS
    return size <= always or (size <= FOR_MANY and 2 * wanted > size)


def dense_modes(A: PETSc.Mat, M: PETSc.Mat, wanted: int) -> tuple:
    """The lowest pairs of A x = lambda M x, by rank 0, so that digits are the same. Collective.

    Eigenvalues ``(wanted,)``, vectors ``(n_local, wanted)``, and a function from a shift s to the
    solver of (A + s M) x = b for local columns.

    Raises:
        SolverError: LAPACK failed; a matrix has entries that are no numbers.
    """
    comm = A.comm.tompi4py()
    a: Any  # rank 0 has the rows
    m: Any
    a, m = (gathered(matrix) for matrix in (A, M))
    found: Any = None
    if comm.rank == 0:
        try:
            found = scipy.linalg.eigh(a.toarray(), m.toarray(), driver="gvd")
        except (ValueError, np.linalg.LinAlgError) as error:
            found = str(error)
    sleep_until_all_are_here(comm)
    found = comm.bcast(found)
    if isinstance(found, str):
        raise SolverError(f"eigenproblem of {A.getSize()[0]} unknowns: {found}")
    values, vectors = found
    first, last = A.getOwnershipRange()

    def solver(shift: float) -> Callable[[np.ndarray], np.ndarray]:
        def solve(local: np.ndarray) -> np.ndarray:
            loads = np.concatenate(comm.allgather(local))
            return vectors[first:last] @ ((vectors.T @ loads) / (values + shift)[:, None])
        return solve

    return values[:wanted], vectors[first:last, :wanted], solver
