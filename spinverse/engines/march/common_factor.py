"""Implicit steps of many measurements with one factor, which knows no gradient.

A stage of a step solves (B + i S) y = f with B = M + tau A real, symmetric and positive definite,
and S = tau g . X real and symmetric. B is the same for all measurements; in its product B^-1 S is
self-adjoint, so that i B^-1 S is skew and the iteration of Concus, Golub and Widlund (Widlund, SIAM
J. Numer. Anal. 15, 1978) converges with a recurrence of three terms, by a factor
rho / (1 + sqrt(1 + rho^2)) a step, rho = |tau g . X| in B^-1: a few per cent for usual steps. All
measurements that take the same steps go through it side by side, and the transposed problem is that
of -g.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from petsc4py import PETSc

from ...errors import SolverError
from ...parallel.columns import column_inner, solved, times
from ...problem import BlochTorrey
from ...unknowns import with_ghosts
from ..derivatives import OfPermeability
from ..linear.direct import direct
from .pair_system import PairSystem

TOLERANCE = 1e-12  # of a residual against its load, in the norm of B^-1
ITERATIONS = 200
PAYS_FROM = 5000  # unknowns
FACTORS = 6  # kept, one for each length of a step
WIDTH = 32  # measurements at once


class CommonFactor:
    """Operators on columns: the first half of them Re m, the second Im m.

    Of the problem of a `PairSystem`, at whose Functions derivatives are taken; without extra terms
    and periodic axes. ``options_prefix`` is of the linear solvers' PETSc options.
    """

    width = WIDTH

    def __init__(self, pair: PairSystem, options_prefix: str):
        self.pair, self.problem, self.comm = pair, pair.problem, pair.comm
        self._prefix = options_prefix
        self._decays: list[PETSc.Mat] = []  # as it is, and while magnetisation is stored
        self._factors: dict[tuple[float, bool], PETSc.KSP] = {}

    @staticmethod
    def serves(problem: BlochTorrey, options_prefix: str) -> bool:
        """Whether the gradient enters a problem as i g . X alone, and a common factor pays.

        The option ``common`` with the prefix overrides the latter. Collective.
        """
        if problem.extra_terms is not None or problem.periodic:
            return False
        return PETSc.Options(options_prefix).getBool("common", problem.num_unknowns >= PAYS_FROM)

    def mass_times(self, columns: np.ndarray) -> np.ndarray:
        return times(self.problem.mass_matrix, columns)

    @cached_property
    def _positions(self) -> list[PETSc.Mat]:
        index_map = self.problem.space.dofmap.index_map
        sizes = (index_map.size_local, index_map.size_global)
        first, found = index_map.local_range[0], []
        for J in self.problem.local_positions:
            matrix = PETSc.Mat().createAIJ((sizes, sizes), comm=self.comm, csr=(
                J.indptr.astype(PETSc.IntType), (J.indices + first).astype(PETSc.IntType), J.data))
            matrix.assemble()
            P = self.problem.prolongation
            found.append(matrix if P is None else matrix.ptap(P))
        return found

    def update(self) -> None:
        """Take the present coefficients."""
        self.forget_factors()
        while self._decays:
            self._decays.pop().destroy()
        for stored in (0.0, 1.0)[: 1 + self.pair.stores]:
            self.problem.stored.value = stored
            self._decays.append(self.problem.decay_matrix().copy())
        self.problem.stored.value = 0.0

    def forget_factors(self) -> None:
        """Free them."""
        while self._factors:
            self._factors.popitem()[1].destroy()

    def _factor(self, tau: float, stored: bool) -> PETSc.KSP:
        key = tau, stored
        if key not in self._factors:
            if len(self._factors) >= FACTORS:
                self._factors.pop(next(iter(self._factors))).destroy()
            matrix = self.problem.mass_matrix.copy()
            matrix.axpy(tau, self._decays[stored], PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN)
            self._factors[key] = direct(matrix, self._prefix, "time stepping")
            matrix.destroy()
        return self._factors[key]

    def _stored(self, gradient: Sequence) -> bool:
        """Of one of the measurements side by side, which agree in it."""
        return self.pair.stores and bool(gradient[-1])

    def start(self, count: int) -> np.ndarray:
        """Columns at the start, ``(n_local, 2 count)``."""
        y = np.zeros((self.problem.mass_matrix.getLocalSize()[0], 2 * count), order="F")
        y[:, :count] = self._initial[:, None]
        return y

    def signals(self, y: np.ndarray) -> np.ndarray:
        parts = column_inner(self.comm, np.broadcast_to(self._receive[:, None], y.shape), y)
        half = len(parts) // 2
        return parts[:half] + 1j * parts[half:]

    def end(self, w: np.ndarray) -> np.ndarray:
        """The transpose of `signals`, of complex weights."""
        return np.outer(self._receive, np.concatenate([w.real, w.imag]))

    def turn(self, y: np.ndarray, gradients: Sequence) -> None:
        """Nothing: the sign of a gradient is no matter here."""

    @cached_property
    def _initial(self) -> np.ndarray:
        """The density, ``(n_local,)``; its projection in the mass product where facets are tied."""
        if self.problem.prolongation is None:
            return self.problem.initial.copy()
        ksp = direct(self.problem.mass_matrix, self._prefix, "time stepping")
        result = solved(ksp, self._tested(self.problem.initial))[:, 0]
        ksp.destroy()
        return result

    @cached_property
    def _receive(self) -> np.ndarray:
        """Integrals as a vector, ``(n_local,)``."""
        return self._tested(self.problem.scale)[:, 0]

    def _tested(self, broken: np.ndarray) -> np.ndarray:
        load = (self.problem.local_mass @ broken)[:, None]
        P = self.problem.prolongation
        return load if P is None else times(P, load, transposed=True)

    def add(self, weight: float, stage: np.ndarray, adjoint: np.ndarray, gradients: Sequence,
            sums: list) -> None:
        """Add weight d a(stage, adjoint) of all measurements to ``sums``. Collective."""
        P, index_map = self.problem.prolongation, self.problem.space.dofmap.index_map
        stage, adjoint = (with_ghosts(index_map, columns if P is None else times(P, columns))
                          for columns in (stage, adjoint))
        for total in sums:
            if isinstance(total, OfPermeability):
                total.add_columns(weight, stage, adjoint)
        rest = [total for total in sums if not isinstance(total, OfPermeability)]
        for k, gradient in enumerate(gradients if rest else ()):
            self.problem.g.value[:] = gradient[: self.problem.mesh.dim]
            self.problem.stored.value = float(self._stored(gradient))
            for function, columns in ((self.pair.stage, stage), (self.pair.adjoint, adjoint)):
                function.x.array[:] = columns[:, k:: len(gradients)].ravel()
            for total in rest:
                total.add(weight)
        self.problem.stored.value = 0.0

    def solve(self, loads: np.ndarray, guess: np.ndarray, gradients: Sequence, tau: float,
              transposed: bool = False) -> np.ndarray:
        """y with (M + tau (A + i g . X)) y = load, or its conjugate transpose's. Collective.

        Of loads and a guess ``(n_local, 2 m)``, and a gradient of each measurement, rad/(ms um).

        Raises:
            SolverError: a solver failed or did not converge.
        """
        factor = self._factor(tau, self._stored(gradients[0]))
        strengths = (-tau if transposed else tau) * np.array(gradients)
        now = before = guess
        matrix = factor.getOperators()[0]
        Bnow = Bbefore = times(matrix, guess)
        size = omega = goal = None
        for _ in range(ITERATIONS):
            residual = loads - Bnow
            self._subtract_turned(residual, now, strengths)
            z = solved(factor, residual)
            if factor.getConvergedReason() < 0:
                raise SolverError(f"time stepping: linear solve of {matrix.getSize()[0]} "
                                  f"unknowns failed (PETSc reason {factor.getConvergedReason()}); "
                                  "more memory, or another solver?")
            last, size = size, self._size(residual, z)
            if goal is None:  # (guess, load) is about the square of what is looked for
                goal = TOLERANCE**2 * np.maximum(size, self._size(guess, loads))
            if not np.isfinite(size).all():
                break
            z += now
            if (size <= goal).all():
                return z
            if last is None:
                omega = np.ones_like(size)
            else:
                omega = 1 / (1 + size / np.maximum(last, 1e-300) / omega)
            # y = before + omega (z + now - before), and B y likewise
            residual += Bnow
            for new, old in ((z, before), (residual, Bbefore)):
                new -= old
                new *= np.tile(omega, 2)
                new += old
            now, before, Bnow, Bbefore = z, now, residual, Bnow
        raise SolverError(f"time stepping: {ITERATIONS} iterations with a common factor did not "
                          f"converge; a shorter time_step, or -{self._prefix}common false")

    def _size(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        both = column_inner(self.comm, left, right)
        return both[: len(both) // 2] + both[len(both) // 2:]

    def _subtract_turned(self, result: np.ndarray, columns: np.ndarray,
                         strengths: np.ndarray) -> None:
        """Take i strength . X of columns from ``result``."""
        half = columns.shape[1] // 2
        for axis, J in enumerate(self._positions):
            if strengths[:, axis].any():
                moved = times(J, columns)
                result[:, :half] += moved[:, half:] * strengths[:, axis]
                result[:, half:] -= moved[:, :half] * strengths[:, axis]
