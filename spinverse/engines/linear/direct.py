"""Direct solvers of PETSc as spinverse sets them up: symmetric, by MUMPS, unless options differ."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from petsc4py import PETSc

from ...errors import SolverError, on_root
from ...parallel.columns import solved

# Unknowns up to which rank 0 solves for all: a solve of several messages takes longer than what
# there is to share, and on busy cores each message waits for a turn of the other rank.
ALONE_AT_ALL = 5000
OUT_OF_MEMORY = (-8, -9, -13, -17, -19, -20)  # MUMPS' INFOG(1)


def direct(matrix: PETSc.Mat, prefix: str, what: str, definite: bool = True,
           counted: bool = False) -> PETSc.KSP:
    """A solver with the factor of a symmetric matrix, that may be destroyed afterwards. Collective.

    PETSc options with the prefix reach it. ``what``: the computation, for messages; ``definite``:
    whether it is known to be positive definite; ``counted``: whether negative pivots are to be.

    Raises:
        SolverError: the factorisation failed, or entries are no numbers, of which it need not
            complain.
    """
    if not np.isfinite(matrix.norm()):
        raise SolverError(f"{what}: the matrix has entries that are no numbers")
    matrix.setOption(PETSc.Mat.Option.SPD, definite)
    ksp = PETSc.KSP().create(matrix.comm)
    ksp.setOperators(matrix)
    ksp.setType(PETSc.KSP.Type.PREONLY)
    ksp.getPC().setType(PETSc.PC.Type.CHOLESKY)
    ksp.getPC().setFactorSolverType(PETSc.Mat.SolverType.MUMPS)
    ksp.setOptionsPrefix(prefix)
    ksp.setFromOptions()
    try:
        if counted:
            count_pivots(ksp.getPC())
        ksp.setUp()
    except (PETSc.Error, SystemError) as error:
        raise SolverError(failure(ksp, matrix.getSize()[0], what)) from error
    if ksp.getPC().getFailedReason():
        raise SolverError(failure(ksp, matrix.getSize()[0], what))
    return ksp


class Factor:
    """Solves with a factor for columns ``(n_local, k)``. Collective.

    Of all ranks, or of ``root``: rank 0 alone has it, and solves for all.
    """

    def __init__(self, matrix: PETSc.Mat, prefix: str, what: str, definite: bool, root: bool):
        self.comm, self.root, self.what = matrix.comm.tompi4py(), root, what
        self.size, self.rows = matrix.getSize()[0], slice(*matrix.getOwnershipRange())
        self.ksp: PETSc.KSP | None = None
        if not root:
            self.ksp = direct(matrix, prefix, what, definite)
            return
        whole = gathered(matrix)

        def factorise() -> PETSc.KSP:
            alone = PETSc.Mat().createAIJ(whole.shape, csr=(
                whole.indptr, whole.indices, whole.data), comm=PETSc.COMM_SELF)
            return direct(alone, prefix, what, definite)

        self.ksp = on_root(self.comm, factorise)

    def __call__(self, loads: np.ndarray) -> np.ndarray:
        if not self.root:
            return self._solved(loads)
        parts = self.comm.gather(loads)
        return self.comm.bcast(on_root(self.comm, lambda: self._solved(
            np.concatenate(parts))))[self.rows]

    def _solved(self, loads: np.ndarray) -> np.ndarray:
        try:
            return solved(self.ksp, loads)
        except PETSc.Error as error:
            raise SolverError(failure(self.ksp, self.size, self.what)) from error

    def destroy(self) -> None:
        if self.ksp is not None:
            self.ksp.destroy()


def factor_of(matrix: PETSc.Mat, prefix: str, what: str, definite: bool = True) -> Factor:
    """As `direct`; on several ranks small ones are rank 0's alone (`ALONE_AT_ALL`). Collective."""
    return Factor(matrix, prefix, what, definite,
                  matrix.comm.size > 1 and matrix.getSize()[0] <= ALONE_AT_ALL)


def count_pivots(pc: PETSc.PC) -> None:
    """Have MUMPS count the negative pivots of a factor that is to be made. Collective."""
    pc.setFactorSetUpSolverType()
    # the last block by MUMPS too: ScaLAPACK does not count
    pc.getFactorMatrix().setMumpsIcntl(13, 1)


def failure(ksp: PETSc.KSP, size: int, what: str, instead: str | None = None) -> str:
    """What to say of a factorisation that failed: why, and what helps.

    Of ``what`` with ``size`` unknowns; ``instead`` are PETSc options that do without a factor, if
    not those of ``ksp``.
    """
    prefix = ksp.getOptionsPrefix() or ""
    instead = instead or f"-{prefix}ksp_type cg -{prefix}pc_type gamg"
    code, needed = 0, 0
    try:
        factor = ksp.getPC().getFactorMatrix()
        code, needed = factor.getMumpsInfog(1), factor.getMumpsInfog(17)
    except (PETSc.Error, SystemError):
        pass  # another solver, or none came into being
    if code in OUT_OF_MEMORY:
        return (f"{what}: out of memory in the factorisation of {size} unknowns (MUMPS error "
                f"{code}, about {needed} MB wanted by all ranks); more ranks or nodes, fewer "
                "cells, tied facets where the interface is known, or no factor: the PETSc "
                f"options {instead}")
    if code:
        return f"{what}: MUMPS error {code} in the factorisation of {size} unknowns"
    return (f"{what}: PETSc failed while factorising or iterating, {size} unknowns; more memory, "
            f"or no factor: the PETSc options {instead}?")


def gathered(matrix: PETSc.Mat) -> scipy.sparse.csr_matrix | None:
    """All rows on rank 0, None elsewhere."""
    rows, columns, values = matrix.getValuesCSR()
    part = scipy.sparse.csr_matrix(
        (values, columns, rows), shape=(len(rows) - 1, matrix.getSize()[1]))
    parts = matrix.comm.tompi4py().gather(part)
    return None if parts is None else scipy.sparse.vstack(parts)
