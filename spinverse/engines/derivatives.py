"""Derivatives of the weak form with respect to its coefficients, summed over time steps.

Each class sums weight * d a(stage, adjoint) / d(coefficient), with the stage and the adjoint that a
`System` has at the time.
"""

from __future__ import annotations

from typing import Protocol

import dolfinx
import numpy as np
import scipy.sparse
import ufl

from ..errors import InputError
from ..extra_terms import has
from ..problem import BlochTorrey


class System(Protocol):
    """The weak form of a problem with two Functions of its pairs, ghosts included."""

    problem: BlochTorrey

    @property
    def stage(self) -> dolfinx.fem.Function: ...

    @property
    def adjoint(self) -> dolfinx.fem.Function: ...


class Derivatives:
    """One sum for each coefficient of a system, empty when it is asked for."""

    def __init__(self, system: System):
        self._system = system
        self._known: dict = {}

    def __call__(self, coefficient) -> OfPermeability | OfFunction | OfConstant:
        if id(coefficient) not in self._known:
            # the coefficient is kept, so that no other one gets its id
            self._known[id(coefficient)] = derivative_of(self._system, coefficient), coefficient
        found = self._known[id(coefficient)][0]
        found.reset()
        return found


def derivative_of(system: System, coefficient) -> OfPermeability | OfFunction | OfConstant:
    """The sum for one coefficient.

    Raises:
        InputError: it is not in the weak form, or neither a Function nor a Constant.
    """
    problem = system.problem
    if coefficient is problem.kappa and not has(problem.extra_form, coefficient):
        return OfPermeability(system)
    if isinstance(coefficient, dolfinx.fem.Function):
        return OfFunction(system, coefficient)
    if isinstance(coefficient, dolfinx.fem.Constant):
        return OfConstant(system, coefficient)
    raise InputError(f"coefficient: {coefficient!r:.60} is of the wrong kind, expected a dolfinx "
                     "Function or Constant")


def _form_with(system: System, coefficient, name: str) -> ufl.Form:
    """The weak form between stage and adjoint, which the coefficient is to be in."""
    form = system.problem.weak_form(system.stage, system.adjoint)
    if not has(form, coefficient):
        raise InputError(f"coefficient: {name} is not in the weak form")
    return form


class OfPermeability:
    """By facet jumps: Q(kappa) = T^T diag(kappa) T, without assembling anything."""

    def __init__(self, system: System):
        self._system = system
        self._jumps: scipy.sparse.csr_matrix = system.problem.jump_matrix

    def reset(self) -> None:
        self._sum = np.zeros(self._jumps.shape[0])

    def add(self, weight: float) -> None:
        self.add_columns(weight, *(f.x.array.reshape(-1, 2)
                                   for f in (self._system.stage, self._system.adjoint)))

    def add_columns(self, weight: float, stage: np.ndarray, adjoint: np.ndarray) -> None:
        """For many real parts of stages and adjoints at once, ``(nd, k)`` with ghosts."""
        self._sum += weight * np.einsum("rc,rc->r", self._jumps @ stage, self._jumps @ adjoint)

    def result(self) -> np.ndarray:
        problem = self._system.problem
        facets = problem.mesh.num_owned_facets
        gradient = self._sum.reshape(facets, -1).sum(axis=1) if facets else np.zeros(0)
        gradient[problem.tied] = 0.0
        return gradient


class OfFunction:
    """By ``ufl.derivative``: any dolfinx Function of the weak form."""

    def __init__(self, system: System, function: dolfinx.fem.Function):
        form = _form_with(system, function, repr(function.name))
        self._system, self._function = system, function
        self._form = system.problem.compile(ufl.derivative(form, function))
        self._part = dolfinx.fem.create_vector(function.function_space)

    def reset(self) -> None:
        self._sum = np.zeros_like(self._part.array)

    def add(self, weight: float) -> None:
        self._part.array[:] = 0.0
        dolfinx.fem.assemble_vector(self._part.array, self._form)
        self._sum += weight * self._part.array

    def result(self) -> np.ndarray:
        self._part.array[:] = self._sum
        self._part.scatter_reverse(dolfinx.la.InsertMode.add)
        dofmap = self._function.function_space.dofmap
        gradient = self._part.array[: dofmap.index_map.size_local * dofmap.index_map_bs].copy()
        if self._function is self._system.problem.kappa:
            gradient[self._system.problem.tied] = 0.0
        return gradient


class OfConstant:
    """By ``ufl.diff``: a Constant of the weak form, component by component."""

    def __init__(self, system: System, constant: dolfinx.fem.Constant):
        form = _form_with(system, constant, str(constant))
        self._comm, self._shape = system.problem.comm, np.shape(constant.value)
        zero = ufl.variable(dolfinx.fem.Constant(system.problem.mesh.domain, 0.0))
        self._forms = []
        for unit in np.eye(max(1, int(np.prod(self._shape)))):
            direction = ufl.as_tensor(unit.reshape(self._shape).tolist()) if self._shape else 1.0
            moved = ufl.replace(form, {constant: constant + zero * direction})
            self._forms.append(system.problem.compile(
                ufl.algorithms.expand_derivatives(ufl.diff(moved, zero))))

    def reset(self) -> None:
        self._sum = np.zeros(len(self._forms))

    def add(self, weight: float) -> None:
        self._sum += [weight * dolfinx.fem.assemble_scalar(form) for form in self._forms]

    def result(self) -> np.ndarray:
        return self._comm.allreduce(self._sum).reshape(self._shape)
