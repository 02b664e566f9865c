"""Derivatives of the matrix formalism with respect to any coefficient of the weak form.

With the modes as a fixed basis, dJ = <G, dA> + sum_j <H_j, dX_j> + sum_s <F_s, dB_s>, where the
K x K matrices A, X_j and B_s are the weak form between modes: a(phi_b, phi_a) for its real part,
and with i phi_a in place of phi_a for what turns phases. With the eigenpairs (w, psi) of G that is
a sum of w da(psi, psi), and `coefficient_derivatives` has each term.
"""

from __future__ import annotations

from functools import cached_property

import dolfinx
import numpy as np
import ufl

from ... import forms
from ...errors import InputError
from ...problem import BlochTorrey
from ..derivatives import derivative_of

_SMALL = 1e-15  # of the largest eigenvalue


class ModeDerivatives:
    """One sum for each coefficient, made when it is first asked for."""

    def __init__(self, problem: BlochTorrey):
        self.problem = problem
        self._known: dict = {}

    def __call__(self, coefficient):
        if self.problem.periodic and coefficient is self.problem.coefficients.D:
            raise InputError("coefficient: the diffusivity on a periodic box, expected engine "
                             "time_stepping for its derivative")
        if id(coefficient) not in self._known:
            # the coefficient is kept, so that no other one gets its id
            self._known[id(coefficient)] = derivative_of(self, coefficient), coefficient
        return self._known[id(coefficient)][0]

    def operator(self, m, v) -> ufl.Form:
        return forms.bloch_torrey(m, v, self.problem.coefficients) + self.problem.extra_of(m, v)

    @property
    def stage(self) -> dolfinx.fem.Function:
        return self._functions[0]

    @property
    def adjoint(self) -> dolfinx.fem.Function:
        return self._functions[1]

    @cached_property
    def _functions(self) -> tuple:
        return tuple(dolfinx.fem.Function(self.problem.pair_space) for _ in range(2))

    def add(self, sums: list, modes: np.ndarray, weights: np.ndarray, turning: bool) -> None:
        """Add <weights, d(operator)> to each of ``sums``, at the present g and sign of the echo.

        Args:
            modes: ``(nd, K)`` at owned and ghost dofs.
            weights: ``(K, K)`` symmetric.
            turning: of the operator that i multiplies, not of the real one.
        """
        values, vectors = np.linalg.eigh(weights)
        kept = np.flatnonzero(np.abs(values) > _SMALL * np.abs(values).max(initial=0.0))
        stage, adjoint = (f.x.array.reshape(-1, 2) for f in (self.stage, self.adjoint))
        stage[:], adjoint[:] = 0.0, 0.0
        for k in kept:
            stage[:, 0] = modes @ vectors[:, k]
            adjoint[:, int(turning)] = values[k] * stage[:, 0]
            for total in sums:
                total.add(1.0)


def add_up(derivatives: ModeDerivatives, sums: list, modes: np.ndarray,
           operators: np.ndarray) -> None:
    """Fill sums of ``derivatives``. Collective.

    Args:
        modes: ``(nd, K)`` at owned and ghost dofs.
        operators: ``(1 + n, K, K)`` G, and the derivatives by `Eigenmodes.turning`, if any.
    """
    problem = derivatives.problem
    dim = problem.mesh.dim
    for total in sums:
        total.reset()
    g, sign = problem.g.value, problem.echo_sign
    g[:], sign.value = 0.0, 1.0
    derivatives.add(sums, modes, operators[0], False)
    blocks = problem.extra_blocks
    if len(operators) == 1 or blocks is None:
        return
    # J_j is what the unit gradient adds to the field of sign 1
    rest = np.zeros_like(operators[0])
    for axis in blocks.positions:
        g[:] = np.eye(dim)[axis]
        derivatives.add(sums, modes, operators[1 + axis], True)
        rest -= operators[1 + axis]
    g[:] = 0.0
    fields = operators[1 + dim:]
    derivatives.add(sums, modes, rest + fields[0] if len(fields) else rest, True)
    if len(fields) > 1:
        sign.value = -1.0
        derivatives.add(sums, modes, fields[1], True)
        sign.value = 1.0
