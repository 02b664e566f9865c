"""The pair (Re m, Im m) as PETSc matrices, factors and vectors, tied facets taken into account."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from itertools import combinations

import dolfinx
import numpy as np
import ufl
from dolfinx.fem import petsc as fem_petsc
from petsc4py import PETSc

from ... import forms
from ...errors import SolverError
from ...extra_terms import has
from ...parallel.columns import inner
from ...problem import BlochTorrey
from ...unknowns import prolonged, restricted
from ..linear.direct import failure

# Factors kept, of zero gradient, which all measurements share, and as many of others: one is
# enough for constant pulses.
FACTORS = 4

_SAME = PETSc.Mat.Structure.SAME_NONZERO_PATTERN
_SUBSET = PETSc.Mat.Structure.SUBSET_NONZERO_PATTERN

# g, one entry an axis, rad/(ms um); on periodic boxes followed by Q, rad/um; if extra terms know
# them, by the sign of the echo and by the time in ms: see `spinverse.forms`
# (if any waveform stores magnetisation along z, followed by 1 while it does and 0 else)
Gradient = tuple[float, ...]


class PairSystem:
    """Matrices, factors and vectors of one problem, extra terms included.

    ``stores``: gradients say whether magnetisation is stored.

    Attributes:
        space: broken Lagrange pairs; their dofs are those of ``problem.space``, doubled.
        stage, adjoint: Functions of this space that the derivatives are taken at.
    """

    width = 1

    def __init__(self, problem: BlochTorrey, options_prefix: str, stores: bool = False):
        self.problem, self.comm, self._prefix = problem, problem.comm, options_prefix
        self.stores = stores
        self.space = problem.pair_space
        m, v = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        self.signed, self.timed, by_g, by_Q = (has(problem.extra_form, known) for known in (
            problem.echo_sign, problem.t, problem.g, problem.Q))
        # A is linear in g and quadratic in Q, or assembled anew for each of them
        self._polynomial = not (by_g or by_Q or self.signed or self.timed)
        # A(-g, -Q) is A(g, Q) with the sign of Im m turned; terms of the user's may not know that
        self._symmetric = problem.extra_terms is None
        self._full = problem.compile(problem.weak_form(m, v))
        self._matrix = fem_petsc.create_matrix(self._full)
        self._decay: PETSc.Mat | None = None
        self._storage: PETSc.Mat | None = None
        self._drift: dict[tuple[int, ...], PETSc.Mat] = {}
        self._factors: OrderedDict = OrderedDict()
        self.stage = dolfinx.fem.Function(self.space)
        self.adjoint = dolfinx.fem.Function(self.space)

    @cached_property
    def prolongation(self) -> PETSc.Mat | None:
        """P of the problem for both parts: dofs of the pair are those of the scalar, doubled."""
        P = self.problem.prolongation
        if P is None:
            return None
        _, columns, values = P.getValuesCSR()  # one entry in each row
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
    def _precession(self) -> dict[int, PETSc.Mat]:
        """Derivatives of the operator with respect to g along each axis that is not periodic."""
        m, v, c = (ufl.TrialFunction(self.space), ufl.TestFunction(self.space),
                   self.problem.coefficients)
        axes = [j for j in range(self.problem.mesh.dim) if j not in self.problem.periodic]
        form = self.problem.compile(forms.precession(m, v, c)) if axes else None
        matrices = {}
        for axis in axes:
            self.problem.g.value[:] = np.eye(self.problem.mesh.dim)[axis]
            matrices[axis] = self._assembled(form)
        return matrices

    def _update_drift(self) -> None:
        """Coefficients of Q_j and of Q_j Q_k, from the operator at unit Q."""
        while self._drift:
            self._drift.popitem()[1].destroy()
        unit = np.eye(self.problem.mesh.dim)
        for j in self.problem.periodic:
            linear, square = (self._at(sign * unit[j]) for sign in (1.0, -1.0))
            linear.axpy(-1.0, square, _SAME)
            linear.scale(0.5)
            square.axpy(1.0, linear, _SAME)
            square.axpy(-1.0, self._decay, _SAME)
            self._drift[j,], self._drift[j, j] = linear, square
        if self.problem.tissue.diffusivity.ndim == 1:
            return
        for j, k in combinations(self.problem.periodic, 2):
            mixed = self._at(unit[j] + unit[k])
            for known in (self._decay, *(self._drift[key] for key in ((j,), (k,), (j, j), (k, k)))):
                mixed.axpy(-1.0, known, _SAME)
            self._drift[j, k] = mixed

    def _at(self, Q: np.ndarray) -> PETSc.Mat:
        self.problem.Q.value[:] = Q
        return self._assembled(self._full)

    def update(self) -> None:
        """Assemble at the present coefficients."""
        self.forget_factors()
        if self._polynomial:
            self._set((0.0,) * (2 * self.problem.mesh.dim + self.stores))
            if self._decay is not None:
                self._decay.destroy()
            self._decay = self._assembled(self._full)  # first: it fixes the nonzero pattern
            self._update_storage()
            self._update_drift()
            _ = self._precession

    def _update_storage(self) -> None:
        """What the operator changes by while magnetisation is stored."""
        if self._storage is not None:
            self._storage.destroy()
            self._storage = None
        if self.stores:
            self.problem.stored.value = 1.0
            self._storage = self._assembled(self._full)
            self.problem.stored.value = 0.0
            self._storage.axpy(-1.0, self._decay, _SAME)

    def forget_factors(self) -> None:
        """Free them. Explicitly, for PETSc frees nothing parallel behind Python's back."""
        while self._factors:
            self._factors.popitem()[1].destroy()

    def _set(self, gradient: Gradient) -> None:
        problem, dim = self.problem, self.problem.mesh.dim
        if self.stores:
            *gradient, problem.stored.value = gradient
        problem.g.value[:] = gradient[:dim]
        if problem.periodic:
            problem.Q.value[:] = gradient[dim: 2 * dim]
        if self.timed:
            *gradient, problem.t.value = gradient
        if self.signed:
            problem.echo_sign.value = gradient[-1]

    def _canonical(self, gradient: Gradient) -> tuple[Gradient, bool]:
        """Gradient to factorise with, and whether the sign of Im m is turned meanwhile."""
        known = gradient[-1:] if self.stores else ()
        gradient = gradient[: len(gradient) - len(known)]
        turned = self._symmetric and gradient < (0.0,) * len(gradient)
        return (tuple(-g + 0.0 for g in gradient) if turned else gradient) + known, turned

    def turn(self, y: np.ndarray, gradients: Sequence[Gradient]) -> None:
        """Turn the sign of Im m where the gradient is run as its opposite: before and after."""
        if self._canonical(gradients[0])[1]:
            y[1::2] *= -1

    def factor(self, gradient: Gradient, time: float) -> Factor:
        """Solver of M + time A(gradient), from the cache if it is there."""
        gradient, _ = self._canonical(gradient)
        key = (gradient, time)
        if key in self._factors:
            self._factors.move_to_end(key)
            return self._factors[key]
        dim = self.problem.mesh.dim * (2 if self.problem.periodic else 1)
        alike = [k for k in self._factors if any(k[0][:dim]) == any(gradient[:dim])]
        if len(alike) >= FACTORS:
            self._factors.pop(alike[0]).destroy()
        if self._polynomial:
            matrix = self._decay.copy()
            for axis, J in self._precession.items():
                if gradient[axis]:
                    matrix.axpy(gradient[axis], J, _SAME)
            if self._storage is not None and gradient[-1]:
                matrix.axpy(1.0, self._storage, _SAME)
            Q = gradient[self.problem.mesh.dim:]
            for axes, part in self._drift.items():
                if weight := float(np.prod([Q[axis] for axis in axes])):
                    matrix.axpy(weight, part, _SAME)
        else:
            self._set(gradient)
            matrix = self._assembled(self._full)
        matrix.scale(time)
        matrix.axpy(1.0, self.mass, _SUBSET)
        slim = _without_zeros(matrix)
        matrix.destroy()
        self._factors[key] = Factor(slim, self._prefix)
        slim.destroy()
        return self._factors[key]

    @cached_property
    def _vectors(self) -> tuple[PETSc.Vec, PETSc.Vec]:
        return self.mass.createVecs()

    def mass_times(self, column: np.ndarray) -> np.ndarray:
        x, y = self._vectors
        x.setArray(column)
        self.mass.mult(x, y)
        return y.getArray(readonly=True).copy()[:, None]

    def solve(self, load: np.ndarray, guess: np.ndarray, gradients: Sequence[Gradient],
              tau: float, transposed: bool = False) -> np.ndarray:
        """y with (M + tau A) y = load, or the transposed problem's. Collective."""
        x, y = self._vectors
        x.setArray(load)
        self.factor(gradients[0], tau).solve(x, y, transposed)
        return y.getArray(readonly=True).copy()[:, None]

    def broken(self, column: np.ndarray) -> np.ndarray:
        """Complex values at the owned broken degrees of freedom, ``(nd,)``. Collective."""
        x, _ = self._vectors
        x.setArray(column)
        pair = prolonged(self.prolongation, x)
        return pair[0::2] + 1j * pair[1::2]

    def start(self, _: int) -> np.ndarray:
        """The density, ``(n, 1)``; its projection in the mass product where facets are tied."""
        return self._initial.copy()

    @cached_property
    def _initial(self) -> np.ndarray:
        broken = np.outer(self.problem.initial, [1.0, 0.0])
        if self.prolongation is None:
            return broken.reshape(-1, 1)
        factor, y = Factor(self.mass, self._prefix), self.mass.createVecRight()
        factor.solve(self._tested(broken), y)
        factor.destroy()
        return y.getArray().copy()[:, None]

    @cached_property
    def _receive(self) -> np.ndarray:
        """Integrals of Re m and Im m, ``(n, 2)``."""
        return np.column_stack([self._tested(np.outer(self.problem.scale, unit)).getArray().copy()
                                for unit in np.eye(2)])

    def _tested(self, broken: np.ndarray) -> PETSc.Vec:
        """P^T M b for a pair of values at each owned broken dof, ``(nd, 2)``."""
        local = np.stack([self.problem.local_mass @ part for part in broken.T], axis=1)
        return restricted(self.prolongation, local.ravel(), self.mass.createVecRight())

    def signals(self, y: np.ndarray) -> np.ndarray:
        parts = inner(self.comm, self._receive, y)
        return parts[0] + 1j * parts[1]

    def end(self, w: np.ndarray) -> np.ndarray:
        """The transpose of `signals`, of complex weights ``(1,)``."""
        return self._receive @ np.array([w.real, w.imag])

    def add(self, weight: float, stage: np.ndarray, adjoint: np.ndarray,
            gradients: Sequence[Gradient], sums: list) -> None:
        """Add weight d a(stage, adjoint) to ``sums``. Collective."""
        self._set(self._canonical(gradients[0])[0])
        owned = 2 * self.space.dofmap.index_map.size_local
        x, _ = self._vectors
        for column, function in ((stage, self.stage), (adjoint, self.adjoint)):
            x.setArray(column)
            function.x.array[:owned] = prolonged(self.prolongation, x)
            function.x.scatter_forward()
        for total in sums:
            total.add(weight)
        self.problem.stored.value = 0.0


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
        if reason == PETSc.KSP.ConvergedReason.DIVERGED_PCSETUP_FAILED:
            prefix = self._ksp.getOptionsPrefix()
            raise SolverError(failure(self._ksp, size, "time stepping",
                                      f"-{prefix}ksp_type gmres -{prefix}pc_type bjacobi"))
        if reason < 0:
            raise SolverError(f"time stepping: linear solve of {size} unknowns failed "
                              f"(PETSc reason {reason}); more memory, or another solver?")

    def destroy(self) -> None:
        self._ksp.destroy()
