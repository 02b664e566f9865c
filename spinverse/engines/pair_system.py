"""The pair (Re m, Im m) as PETSc matrices, factors and vectors, tied facets taken into account."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property

import dolfinx
import numpy as np
import ufl
from dolfinx.fem import petsc as fem_petsc
from petsc4py import PETSc
from ufl.algorithms import expand_derivatives
from ufl.algorithms.check_arities import ArityMismatch, check_form_arity

from .. import forms
from ..errors import InputError, SolverError
from ..problem import BlochTorrey

# Factors kept, of zero gradient, which all measurements share, and as many of others: one is
# enough for constant pulses.
FACTORS = 4

_SAME = PETSc.Mat.Structure.SAME_NONZERO_PATTERN
_SUBSET = PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN

Gradient = tuple[float, float, float]  # rad/(ms um)


class PairSystem:
    """Matrices, factors and vectors of one problem.

    Args:
        problem: the discrete problem, extra terms included.
        options_prefix: of the linear solvers' PETSc options.

    Attributes:
        space: broken Lagrange pairs; their dofs are those of ``problem.space``, doubled.
        stage, adjoint: Functions of this space that the derivatives are taken at.

    Raises:
        InputError: extra terms that are not a form linear in m and in v.
    """

    def __init__(self, problem: BlochTorrey, options_prefix: str):
        self.problem, self.comm, self._prefix = problem, problem.comm, options_prefix
        self.space = dolfinx.fem.functionspace(problem.mesh.domain, ("DG", problem.degree, (2,)))
        m, v, c = ufl.TrialFunction(self.space), ufl.TestFunction(self.space), problem.coefficients
        self.extra = ufl.form.Form([])
        if problem.extra_terms is not None:
            self.extra = problem.extra_terms(m, v, c)
            if not _bilinear(self.extra, m, v):
                raise InputError("extra_terms: expected a UFL form linear in m and in v, "
                                 f"got {str(self.extra)!r:.60}")
        # otherwise A(g) is assembled anew for each gradient
        self._affine = not self.extra_has(problem.g)
        # A(-g) is A(g) with the sign of Im m turned; terms of the user's may not know that
        self._symmetric = problem.extra_terms is None
        self._full = problem.compile(self.operator(m, v))
        self._matrix = fem_petsc.create_matrix(self._full)
        self._decay = self._tied = None
        self._factors: OrderedDict = OrderedDict()
        self._work: list[PETSc.Vec] = []
        # the last stage and adjoint as Functions, for the derivatives
        self.stage = dolfinx.fem.Function(self.space)
        self.adjoint = dolfinx.fem.Function(self.space)

    def operator(self, m, v) -> ufl.Form:
        """The whole weak form for given m and v, with a common gradient ``problem.g``."""
        form = forms.bloch_torrey(m, v, self.problem.coefficients)
        if self.problem.extra_terms is not None:
            form += self.problem.extra_terms(m, v, self.problem.coefficients)
        return form

    def extra_has(self, coefficient) -> bool:
        return any(coefficient is x for x in (*self.extra.coefficients(), *self.extra.constants()))

    # ---- matrices -----------------------------------------------------------------------------

    @cached_property
    def prolongation(self) -> PETSc.Mat | None:
        """P of the problem for both parts: dofs of the pair are those of the scalar, doubled."""
        P = self.problem.prolongation
        if P is None:
            return None
        _, columns, values = P.getValuesCSR()  # one 1 in each row
        (rows, all_rows), (cols, all_cols) = P.getSizes()
        pair = PETSc.Mat().createAIJ(
            ((2 * rows, 2 * all_rows), (2 * cols, 2 * all_cols)), comm=self.comm,
            csr=(np.arange(2 * rows + 1, dtype=PETSc.IntType),
                 (2 * columns[:, None] + np.arange(2)).ravel().astype(PETSc.IntType),
                 np.repeat(values, 2)))
        pair.assemble()
        return pair

    def _tie(self, matrix: PETSc.Mat) -> PETSc.Mat:
        return matrix.copy() if self.prolongation is None else matrix.ptap(self.prolongation)

    def _assembled(self, form: dolfinx.fem.Form) -> PETSc.Mat:
        """In the nonzero pattern of the whole operator, on the tied space."""
        self._matrix.zeroEntries()
        fem_petsc.assemble_matrix(self._matrix, form)
        self._matrix.assemble()
        return self._tie(self._matrix)

    @cached_property
    def mass(self) -> PETSc.Mat:
        m, v = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        matrix = fem_petsc.assemble_matrix(
            self.problem.compile(forms.mass(m, v, self.problem.coefficients)))
        matrix.assemble()
        return self._tie(matrix)

    @cached_property
    def _precession(self) -> list[PETSc.Mat]:
        """Derivatives of the operator with respect to the three components of the gradient."""
        m, v, c = (ufl.TrialFunction(self.space), ufl.TestFunction(self.space),
                   self.problem.coefficients)
        form = self.problem.compile(forms.precession(m, v, c))
        matrices = []
        for axis in np.eye(3):
            self.problem.g.value[:] = axis
            matrices.append(self._assembled(form))
        return matrices

    def update(self) -> None:
        """Assemble at the present coefficients."""
        self.forget_factors()
        if self._affine:
            self.problem.g.value[:] = 0.0
            if self._decay is not None:
                self._decay.destroy()
            self._decay = self._assembled(self._full)  # first: it fixes the nonzero pattern
            _ = self._precession

    def forget_factors(self) -> None:
        """Free them. Explicitly, for PETSc frees nothing parallel behind Python's back."""
        while self._factors:
            self._factors.popitem()[1].destroy()

    def _canonical(self, gradient: Gradient) -> tuple[Gradient, bool]:
        """Gradient to factorise with, and whether the sign of Im m is turned meanwhile."""
        turned = self._symmetric and gradient < (0.0, 0.0, 0.0)
        return (tuple(-g + 0.0 for g in gradient) if turned else gradient), turned

    def turn(self, y: PETSc.Vec, gradient: Gradient) -> None:
        """Turn the sign of Im m where the gradient is run as its opposite: before and after."""
        if self._canonical(gradient)[1]:
            y.getArray()[1::2] *= -1

    def factor(self, gradient: Gradient, time: float) -> Factor:
        """Solver of M + time A(gradient), from the cache if it is there."""
        gradient, _ = self._canonical(gradient)
        key = (gradient, time)
        if key in self._factors:
            self._factors.move_to_end(key)
            return self._factors[key]
        alike = [k for k in self._factors if any(k[0]) == any(gradient)]
        if len(alike) >= FACTORS:
            self._factors.pop(alike[0]).destroy()
        if self._affine:
            matrix = self._decay.copy()
            for g, J in zip(gradient, self._precession, strict=True):
                if g:
                    matrix.axpy(g, J, _SAME)
        else:
            self.problem.g.value[:] = gradient
            matrix = self._assembled(self._full)
        matrix.scale(time)
        matrix.axpy(1.0, self.mass, _SUBSET)
        slim = _without_zeros(matrix)
        matrix.destroy()
        self._factors[key] = Factor(slim, self._prefix)
        slim.destroy()
        return self._factors[key]

    # ---- vectors ------------------------------------------------------------------------------

    def work(self, number: int) -> list[PETSc.Vec]:
        while len(self._work) < number:
            self._work.append(self.mass.createVecRight())
        return self._work[:number]

    @cached_property
    def initial(self) -> PETSc.Vec:
        """The density; its projection in the mass product where facets are tied."""
        broken = np.zeros((len(self.problem.initial), 2))
        broken[:, 0] = self.problem.initial
        y = self.mass.createVecRight()
        if self.prolongation is None:
            y.setArray(broken.ravel())
            return y
        local = np.stack([self.problem.local_mass @ part for part in broken.T], axis=1)
        load = self.prolongation.createVecLeft()
        load.setArray(local.ravel())
        rhs = y.duplicate()
        self.prolongation.multTranspose(load, rhs)
        factor = Factor(self.mass, self._prefix)
        factor.solve(rhs, y)
        factor.destroy()
        return y

    @cached_property
    def _receive(self) -> list[PETSc.Vec]:
        """Integrals of Re m and Im m as vectors."""
        result = []
        for part in range(2):
            ones, vector = self.mass.createVecs()
            ones.getArray()[part::2] = 1.0
            self.mass.mult(ones, vector)
            result.append(vector)
        return result

    def signal(self, y: PETSc.Vec) -> complex:
        return complex(*(vector.dot(y) for vector in self._receive))

    def signal_transposed(self, w: complex) -> PETSc.Vec:
        result = self._receive[0].duplicate()
        result.zeroEntries()
        result.maxpy([w.real, w.imag], self._receive)
        return result

    def expand(self, stage: PETSc.Vec, adjoint: PETSc.Vec, gradient: Gradient) -> None:
        """Put both into the Functions, ghosts included, and the gradient into ``problem.g``."""
        self.problem.g.value[:] = self._canonical(gradient)[0]
        owned = 2 * self.space.dofmap.index_map.size_local
        for vector, function in ((stage, self.stage), (adjoint, self.adjoint)):
            if self.prolongation is None:
                function.x.array[:owned] = vector.getArray(readonly=True)
            else:
                broken = self._broken
                self.prolongation.mult(vector, broken)
                function.x.array[:owned] = broken.getArray(readonly=True)
            function.x.scatter_forward()

    @cached_property
    def _broken(self) -> PETSc.Vec:
        return self.prolongation.createVecLeft()


def _bilinear(form, m, v) -> bool:
    """Whether each term has both arguments once; compiling would find out too late."""
    if not isinstance(form, ufl.Form):
        return False
    try:
        check_form_arity(expand_derivatives(form), (v, m))
    except ArityMismatch:
        return False
    return form.empty() or set(form.arguments()) == {m, v}


def _without_zeros(matrix: PETSc.Mat) -> PETSc.Mat:
    """A copy without stored zeros: Re and Im then come apart where there is no gradient."""
    indptr, columns, values = matrix.getValuesCSR()
    keep = values != 0
    count = np.concatenate([[0], np.cumsum(keep)])[indptr].astype(PETSc.IntType)
    result = PETSc.Mat().createAIJ(matrix.getSizes(), comm=matrix.comm,
                                   csr=(count, columns[keep], values[keep]))
    result.assemble()
    return result


class Factor:
    """A linear solver, direct unless the options say otherwise."""

    def __init__(self, matrix: PETSc.Mat, prefix: str):
        self._ksp = ksp = PETSc.KSP().create(matrix.comm)
        ksp.setOperators(matrix)
        ksp.setType(PETSc.KSP.Type.PREONLY)
        ksp.setTolerances(rtol=1e-10)
        ksp.getPC().setType(PETSc.PC.Type.LU)
        ksp.getPC().setFactorSolverType(PETSc.Mat.SolverType.MUMPS)
        ksp.setOptionsPrefix(prefix)
        ksp.setFromOptions()
        self._call(ksp.setUp)

    def solve(self, rhs: PETSc.Vec, x: PETSc.Vec, transposed: bool = False) -> None:
        self._call(self._ksp.solveTranspose if transposed else self._ksp.solve, rhs, x)

    def _call(self, function, *args) -> None:
        size = self._ksp.getOperators()[0].getSize()[0]
        try:
            function(*args)
        except PETSc.Error as error:
            raise SolverError(f"time stepping: PETSc error {error.ierr} in a linear solve of "
                              f"{size} unknowns; more memory, or an iterative solver?") from error
        reason = self._ksp.getConvergedReason()
        if reason < 0:
            raise SolverError(f"time stepping: linear solve of {size} unknowns failed "
                              f"(PETSc reason {reason}); more memory, or another solver?")

    def destroy(self) -> None:
        self._ksp.destroy()
