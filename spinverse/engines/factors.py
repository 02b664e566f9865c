"""Factorised matrices."""

from __future__ import annotations

from petsc4py import PETSc


def cholesky(matrix: PETSc.Mat, options_prefix: str | None = None) -> PETSc.KSP:
    """A solver that factorises the symmetric ``matrix`` (MUMPS), to be destroyed by the caller.

    Args:
        options_prefix: PETSc options with this prefix reach it.
    """
    ksp = PETSc.KSP().create(matrix.comm)
    ksp.setOperators(matrix)
    ksp.setType(PETSc.KSP.Type.PREONLY)
    ksp.getPC().setType(PETSc.PC.Type.CHOLESKY)
    ksp.getPC().setFactorSolverType(PETSc.Mat.SolverType.MUMPS)
    if options_prefix is not None:
        ksp.setOptionsPrefix(options_prefix)
        ksp.setFromOptions()
    return ksp
