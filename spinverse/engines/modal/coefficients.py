"""Derivatives of the matrix formalism with respect to any coefficient of the weak form.

With the modes as a fixed basis, dJ = <G, dA> + sum_j <H_j, dX_j> + sum_s <F_s, dB_s>, where the
K x K matrices A, X_j and B_s are the weak form between modes: a(phi_b, phi_a) for its real part,
and with i phi_a in place of phi_a for what turns phases. With the eigenpairs (w, psi) of G that is
a sum of w da(psi, psi), and `spinverse.engines.derivatives` has each term.
"""

from __future__ import annotations

from functools import cached_property

import dolfinx
import numpy as np

from ...errors import InputError
from ...problem import BlochTorrey
from ...unknowns import with_ghosts
from ..basis.eigenmodes import Eigenmodes
from ..basis.parts import combined
from ..derivatives import Derivatives

_SMALL = 1e-15  # of the largest eigenvalue


class ModeDerivatives:
    """One sum for each coefficient, made when it is first asked for."""

    def __init__(self, problem: BlochTorrey):
        self.problem = problem
        self._derivatives = Derivatives(self)

    def __call__(self, coefficient):
        if self.problem.periodic and coefficient is self.problem.coefficients.D:
            raise InputError("coefficient: the diffusivity on a periodic box, expected engine "
                             "time_stepping for its derivative")
        return self._derivatives(coefficient)

    @cached_property
    def stage(self) -> dolfinx.fem.Function:
        return dolfinx.fem.Function(self.problem.pair_space)

    @cached_property
    def adjoint(self) -> dolfinx.fem.Function:
        return dolfinx.fem.Function(self.problem.pair_space)

    def add(self, sums: list, bases: list[Eigenmodes], weights: list[np.ndarray],
            turning: bool) -> None:
        """Add <weights, d(operator)> to ``sums`` at the present g and sign of the echo. Collective.

        Weights ``(K, K)``, symmetric, of all ``bases`` at once, for the operator has no entries
        between parts; of the operator that i multiplies (``turning``), or of the real one.
        """
        found = [np.linalg.eigh(weight) for weight in weights]
        largest = max(np.abs(values).max(initial=0.0) for values, _ in found)
        few = [np.abs(values) > _SMALL * largest for values, _ in found]
        vectors = [v[:, kept] for (_, v), kept in zip(found, few, strict=True)]
        weighed = [v * values[kept] for v, (values, _), kept in zip(vectors, found, few,
                                                                    strict=True)]
        index_map = self.problem.space.dofmap.index_map
        right, left = (with_ghosts(index_map, self.problem.unknowns.broken(
            combined(self.problem, bases, each))) for each in (vectors, weighed))
        stage, adjoint = (f.x.array.reshape(-1, 2) for f in (self.stage, self.adjoint))
        stage[:], adjoint[:] = 0.0, 0.0
        for k in range(right.shape[1]):
            stage[:, 0], adjoint[:, int(turning)] = right[:, k], left[:, k]
            for total in sums:
                total.add(1.0)


def add_up(derivatives: ModeDerivatives, sums: list, bases: list[Eigenmodes],
           operators: list[np.ndarray]) -> None:
    """Fill sums of ``derivatives``. Collective.

    From G ``(1 + n, K, K)`` of each basis: by decay, and by `Eigenmodes.turning`, if any; or by
    decay, and by what of it is storage (`MatrixFormalism._by_operator`).
    """
    problem = derivatives.problem
    dim = problem.mesh.dim
    g, sign = problem.g.value, problem.echo_sign
    g[:], sign.value = 0.0, 1.0
    if problem.storing and len(operators[0]) > 1:
        derivatives.add(sums, bases, [part[0] - part[1] for part in operators], False)
        problem.stored.value = 1.0
        derivatives.add(sums, bases, [part[1] for part in operators], False)
        problem.stored.value = 0.0
        return
    derivatives.add(sums, bases, [part[0] for part in operators], False)
    blocks = problem.extra_blocks
    if len(operators[0]) == 1 or blocks is None:
        return
    # J_j is what the unit gradient adds to the field of sign 1
    for axis in blocks.positions:
        g[:] = np.eye(dim)[axis]
        derivatives.add(sums, bases, [part[1 + axis] for part in operators], True)
    g[:] = 0.0
    derivatives.add(sums, bases, [part[1 + dim: 2 + dim].sum(axis=0) - sum(
        part[1 + axis] for axis in blocks.positions) for part in operators], True)
    if len(operators[0]) > 2 + dim:
        sign.value = -1.0
        derivatives.add(sums, bases, [part[2 + dim] for part in operators], True)
        sign.value = 1.0
