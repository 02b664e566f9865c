"""Time stepping of a real scalar diffusion problem: M y' + A y = b(t)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import ufl
from dolfinx.fem import petsc as fem_petsc
from petsc4py import PETSc

from ..engines.linear.direct import direct
from ..errors import SolverError
from ..problem import BlochTorrey
from ..unknowns import prolonged, restricted

# Alexander, SIAM J. Numer. Anal. 14, 1006 (1977): two stages, second order, L-stable. It keeps
# what A keeps: where A has constants in its kernel, the integral of y.
_G = 1 - np.sqrt(0.5)


class ScalarSystem:
    """Matrices and factors of one bilinear form on the (tied) space of a problem.

    Args:
        form: the form a(m, v) of A, of ``ufl.TrialFunction(problem.space)`` and its test function.
        options_prefix: PETSc options with this prefix reach the linear solver, MUMPS Cholesky.
    """

    def __init__(self, problem: BlochTorrey, form: ufl.Form, options_prefix: str):
        self.problem, self._prefix = problem, options_prefix
        matrix = fem_petsc.assemble_matrix(problem.compile(form))
        matrix.assemble()
        P = problem.prolongation
        self.stiffness = matrix if P is None else matrix.ptap(P)
        self.mass = problem.mass_matrix
        self._step: float | None = None
        self._ksp: Any = None
        self._work = [self.vector() for _ in range(3)]

    def vector(self) -> PETSc.Vec:
        """A zero vector of the tied space."""
        vector = self.mass.createVecRight()
        vector.zeroEntries()
        return vector

    def restrict(self, broken: np.ndarray) -> PETSc.Vec:
        """A functional given by its values at the owned broken dofs, on the tied space: P^T b."""
        return restricted(self.problem.prolongation, broken, self.vector())

    def expand(self, vector: PETSc.Vec) -> np.ndarray:
        """Values of a function at the owned broken dofs: P y."""
        return prolonged(self.problem.prolongation, vector)

    def project(self, functional: PETSc.Vec) -> PETSc.Vec:
        """The function y with M y = functional."""
        ksp, y = direct(self.mass, self._prefix, "diffusion problem"), self.vector()
        self._solve(ksp, functional, y)
        ksp.destroy()
        return y

    def march(self, states: list[PETSc.Vec], start: float, stop: float, longest: float,
              load: Callable | None = None, visit: Callable | None = None) -> None:
        """Advance ``states``, y of each problem, in place by equal steps (ms). Collective.

        ``load(i, t, factor, rhs)`` adds factor times the source of problem i to rhs. The sum of
        weight times a function of (t, y) in ``visit(i, weight, t, y)`` is its time integral, of
        second order.
        """
        number = max(1, int(np.ceil((stop - start) / longest * (1 - 1e-12))))
        step = (stop - start) / number
        ksp = self._shifted(_G * step)
        rhs, z, Y = self._work
        for n in range(number):
            times = (start + (n + _G) * step, start + (n + 1) * step)
            for i, y in enumerate(states):
                y.copy(z)
                for stage, weight in enumerate((1 - _G, _G)):
                    self.mass.mult(z, rhs)
                    if load is not None:
                        load(i, times[stage], _G * step, rhs)
                    self._solve(ksp, rhs, Y)
                    if visit is not None:
                        visit(i, weight * step, times[stage], Y)
                    if stage == 0:  # z = y + (1 - G) step k, with step k = (Y - y) / G
                        z.axpby((1 - _G) / _G, 1 - (1 - _G) / _G, Y)
                Y.copy(y)

    def destroy(self) -> None:
        """Free the factor."""
        if self._ksp is not None:
            self._ksp.destroy()
            self._ksp = self._step = None

    def _shifted(self, coefficient: float) -> PETSc.KSP:
        """Factor of M + coefficient A; the last one is kept."""
        if self._step is None or abs(self._step - coefficient) > 1e-12 * coefficient:
            self.destroy()
            matrix = self.mass.copy()
            matrix.axpy(coefficient, self.stiffness,
                        structure=PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN)
            self._ksp = direct(matrix, self._prefix, "diffusion problem")
            self._step = coefficient
        return self._ksp

    def _solve(self, ksp: PETSc.KSP, rhs: PETSc.Vec, result: PETSc.Vec) -> None:
        ksp.solve(rhs, result)
        if ksp.getConvergedReason() < 0:
            raise SolverError(f"diffusion problem: the linear solver gave up (PETSc reason "
                              f"{ksp.getConvergedReason()})")
