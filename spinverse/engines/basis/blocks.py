"""Lowest modes of meshes whose matrices do not fit when factorised: no factor of the broken space.

Preconditioned block iteration (Knyazev, SIAM J. Sci. Comput. 23, 2001) with the preconditioner of
`two_level`, from modes of the coarse spaces. An iteration adds to the span of the modes X a few
steps of conjugate gradients at (A + s M) W = residual, and where modes moved last; modes of the
span follow from Rayleigh and Ritz. The cost grows with the number of unknowns, and so does what is
kept: three blocks of modes.

SLEPc's LOBPCG, GD and JD with the same preconditioner, start and errors take longer or more memory,
or miss modes among equal ones (`benchmarks/eigensolvers.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from petsc4py import PETSc

from ...errors import SolverError
from ...parallel.columns import column_inner, inner, solved, times
from ...parallel.rows import Rows, add, largest
from ...problem import BlochTorrey
from .krylov import slow_space
from .spectrum import diagonalised
from .two_level import TwoLevel

# Modes: cut at the widest relative gap among so many, so that no cluster of equal eigenvalues is
# cut in two: the span, and the signals, would then depend on the ranks.
CANDIDATES = 12
SURPLUS = 1.15  # of the number wanted, so that the last converge: 8 iterations of 800 modes, not 21
STEPS = 5  # of conjugate gradients a correction; 3 take as long for 200 modes, 8 take longer for 60
TOLERANCE = 1e-5  # relative error of eigenvalues: of signals 1e-7, of gradients 1e-5 to 1e-4
GAIN = 0.2  # of an error, what a correction leaves at best that is relied on (0.1 is measured)
ITERATIONS = 40  # at most; 60 modes of random walls and a tolerance of 1e-10 take 12
# of Krylov spaces of coarse problems: with 9 or 14 modes of closed cells are not found, and little
# improves them later
ROUNDS = 18
EXACT = 1e-9  # relative residual of a solve
ROUGH, EXACT_STEPS = 1e-5, 500  # of iterations in single precision; steps at most, far beyond need
REFINEMENTS = 6  # of them; two do
_BLOCK = 32  # columns at once, whose work arrays are small beside the modes
_ROWS = 4096  # of the modes, turned at once: no second copy of them is made
_LIVED = 100  # times as exact are the lowest modes, which live long and carry the signals
_TINY = 1e-300  # um^-3/2: columns of zeros stay such
_DEPENDENT = 1e-10  # eigenvalue of a Gram matrix of unit vectors: what is below is rounding


class Inverse:
    """(A + s M)^-1 of columns, without a factor; see `TwoLevel` for the prefix of PETSc options.

    A is symmetric without eigenvalues below 0, M positive definite; nothing may be tied.
    """

    def __init__(self, problem: BlochTorrey, A: PETSc.Mat, M: PETSc.Mat, shift: float,
                 prefix: str):
        self.matrix = A.copy()
        self.matrix.axpy(shift, M)
        self.rows = Rows(self.matrix)
        self.preconditioner = TwoLevel(problem, self.matrix, prefix)

    def __call__(self, loads: np.ndarray) -> np.ndarray:
        """To `EXACT`, of columns ``(n_local, k)``. Collective.

        Iterations in single precision, of what is left in double precision after those before.

        Raises:
            SolverError: what is left does not become small.
        """
        found, left = np.zeros_like(loads), loads
        goal = EXACT**2 * self._size(loads)
        for _ in range(REFINEMENTS):
            found += self._solved(left, EXACT_STEPS, ROUGH)
            left = loads - times(self.matrix, found)
            if (self._size(left) <= goal).all():
                return found
        raise SolverError(f"conjugate gradients: no relative {EXACT:g} after {REFINEMENTS} "
                          "refinements")

    def roughly(self, loads: np.ndarray) -> np.ndarray:
        """After a few steps. Collective."""
        return self._solved(loads, STEPS)

    def _solved(self, loads: np.ndarray, steps: int, tolerance: float = 0.0) -> np.ndarray:
        return conjugate_gradients(self.rows, self.preconditioner, loads, steps, tolerance)

    def _size(self, loads: np.ndarray) -> np.ndarray:
        """``(k,)`` squares of the loads, as the preconditioner weighs them. Collective."""
        scale = np.maximum(largest(self.rows.comm, loads), _TINY)
        block = (loads / scale).astype(self.rows.dtype, order="C")
        return scale**2 * column_inner(self.rows.comm, block, self.preconditioner(block))

    def destroy(self) -> None:
        self.preconditioner.destroy()
        self.matrix.destroy()


def lowest_pairs(inverse: Inverse, A: PETSc.Mat, M: PETSc.Mat, wanted: int, shift: float,
                 first: np.ndarray, prefix: str) -> tuple:
    """The lowest pairs of A x = lambda M x on the broken space. Collective.

    From the ``inverse`` of A + shift M and the ``first`` of `coarse_modes`. PETSc options ``rtol``
    and ``max_it`` behind the prefix are the tolerance and the most iterations.

    Returns:
        Eigenvalues ``(wanted,)`` and vectors ``(n_local, wanted)``.

    Raises:
        SolverError: no convergence.
    """
    options = PETSc.Options(prefix)
    tolerance = options.getReal("rtol", TOLERANCE)
    iterations = options.getInt("max_it", ITERATIONS)
    span = _Span(A.comm.tompi4py(), A, M, first, iterated(A, wanted))
    del first
    for _ in range(iterations):
        span.improve(inverse.roughly, shift, tolerance)
        if span.error[:wanted].max() <= tolerance:
            return span.values[:wanted], span.modes[:, :wanted].copy(order="F")
    raise SolverError(f"eigenproblem: the last of {wanted} modes is known to a relative "
                      f"{span.error[:wanted].max():.1g} after {iterations} iterations, expected "
                      f"{tolerance:g}; a larger -{prefix}max_it, or fewer modes?")


def iterated(A: PETSc.Mat, wanted: int) -> int:
    """How many modes are improved: wherever among `CANDIDATES` the cut is, none wanted is lost."""
    return min(A.getSize()[0], max(int(SURPLUS * wanted), wanted + CANDIDATES))


def conjugate_gradients(matrix: Rows, inverse: Callable, loads: np.ndarray, steps: int,
                        tolerance: float = 0.0) -> np.ndarray:
    """Approximate solutions of columns ``(n_local, k)``, each by its own iteration. Collective.

    In the precision of the ``matrix``; ``inverse`` takes and gives blocks of rows as it does. With
    a ``tolerance`` of the preconditioned residual against that of the load, in at most so many
    steps; else in exactly so many.

    Raises:
        SolverError: the tolerance was not met.
    """
    comm, result = matrix.comm, np.empty_like(loads)
    for first in range(0, loads.shape[1], _BLOCK):
        block = slice(first, first + _BLOCK)
        scale = np.maximum(largest(comm, loads[:, block]), _TINY)
        r = (loads[:, block] / scale).astype(matrix.dtype, order="C")
        z = inverse(r)
        p, size, x = z, column_inner(comm, r, z), np.zeros_like(r)
        goal = tolerance**2 * size
        for step in range(1, steps + 1):
            Ap = matrix @ p
            curvature = column_inner(comm, p, Ap)
            alive = curvature > 0
            length = np.where(alive, size / np.where(alive, curvature, 1.0), 0.0)
            add(x, p, length)
            if step == steps and not tolerance:
                break
            add(r, Ap, -length)
            z = inverse(r)
            before, size = size, column_inner(comm, r, z)
            if (size <= goal).all():
                break
            add(z, p, size / np.where(before > 0, before, 1.0))
            p = z
        else:
            raise SolverError(f"conjugate gradients: {steps} steps did not meet a relative "
                              f"tolerance of {tolerance:g}")
        result[:, block] = x * scale
    return result


def at_gap(values: np.ndarray, number: int, candidates: int) -> int:
    """How many of the sorted values to keep: at least ``number - candidates`` and not a cluster."""
    if len(values) <= number:
        return len(values)
    first = max(1, number - candidates)
    gaps = np.diff(values[first - 1: number + candidates])
    return first + int(np.argmax(gaps))


def coarse_modes(preconditioner: TwoLevel, A: PETSc.Mat, M: PETSc.Mat, wanted: int,
                 first: np.ndarray) -> np.ndarray:
    """About the lowest modes of coarse spaces, on the broken space, ``(n_local, n)``. Collective.

    Args:
        wanted: what the broken space is asked for.
        first: ``(n_local, k)`` waves on the broken space that Krylov spaces start from, `waves`.
    """
    number = iterated(A, wanted)
    loads, found = times(M, first), []
    for name, P in preconditioner.spaces.items():
        solver, a, m = preconditioner.solvers[name], A.ptap(P), M.ptap(P)
        mass = Rows(m, np.float64)

        def relax(functions: np.ndarray, solver=solver, mass=mass) -> np.ndarray:
            return solved(solver, mass @ functions)

        size = P.getSize()[1]
        space = slow_space(mass.comm, mass, relax,
                           solved(solver, times(P, loads, transposed=True)), ROUNDS, size)
        values, turn = diagonalised(mass.comm, inner(
            mass.comm, space.functions, times(a, space.functions)))
        kept = at_gap(values, min(number, size), CANDIDATES)
        found.append(times(P, space.functions @ turn[:, :kept]))
        a.destroy()
        m.destroy()
    missing = number - CANDIDATES - sum(part.shape[1] for part in found)
    if missing > 0:
        rows = np.arange(*A.getOwnershipRange())[:, None]
        found.append(np.cos(0.618 * (1.0 + rows) * (1 + np.arange(missing))))
    return np.hstack(found)


class _Span:
    """Modes X, last moves P and corrections W side by side in one array."""

    def __init__(self, comm, A: PETSc.Mat, M: PETSc.Mat, start: np.ndarray, number: int):
        self.comm, self.matrices = comm, (Rows(A, np.float64), Rows(M, np.float64))
        self._columns = np.zeros((len(start), max(3 * (number + CANDIDATES), start.shape[1])),
                                 order="F")
        self._columns[:, : start.shape[1]] = start
        self._used = start.shape[1]
        self.values = np.zeros(0)
        self._rayleigh_ritz(start.shape[1], np.zeros(0, dtype=int))
        self.values = self.values[: at_gap(self.values, number, CANDIDATES)]
        self._used = len(self.values)
        # relative, of eigenvalues: before the last correction, and after it if it does as the last
        self._found, self.error = np.full((2, len(self.values)), np.inf)
        self._first = True

    @property
    def modes(self) -> np.ndarray:
        """``(n_local, n)``."""
        return self._columns[:, : len(self.values)]

    def improve(self, correct: Callable, shift: float, tolerance: float) -> None:
        """Add corrections of the modes that need it, and take the best modes of the span."""
        number, columns = len(self.values), self._columns
        active = np.flatnonzero(self.error > tolerance)
        for first in range(0, len(active), _BLOCK):
            chosen = active[first: first + _BLOCK]
            decayed, mass = self._products(columns[:, chosen])
            R = decayed - mass * self.values[chosen]
            W = correct(R)
            rates = self.values[chosen] + shift
            found = column_inner(self.comm, R, W) / rates * np.minimum(
                self.values[-1] / rates, _LIVED)
            self.error[chosen] = found * np.clip(found / self._found[chosen], GAIN, 1.0)
            self._found[chosen] = found
            columns[:, self._used: self._used + len(chosen)] = W
            self._used += len(chosen)
        self._rayleigh_ritz(number, active[:0] if self._first or (
            self.error.max() <= tolerance) else active)
        self._first = False

    def _products(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decay and mass times columns ``(n_local, k)``. Collective."""
        block = np.ascontiguousarray(columns)
        decay, mass = self.matrices
        return decay @ block, mass @ block

    def _rayleigh_ritz(self, number: int, active: np.ndarray) -> None:
        """Replace the columns by ``number`` modes and the last moves of the active ones."""
        known, used, columns = len(self.values), self._used, self._columns
        gram = np.zeros((2, used, used))
        gram[0, :known, :known], gram[1, :known, :known] = np.diag(self.values), np.eye(known)
        for first in range(known, used, _BLOCK):
            last = min(first + _BLOCK, used)
            block = slice(first, last)
            for whole, product in zip(gram, self._products(columns[:, block]), strict=True):
                part = inner(self.comm, columns[:, :last], product)
                whole[:last, block] = part
                whole[block, :last] = part.T
        self.values, turn = self.comm.bcast(_smallest(gram[0], gram[1], known, number))
        if len(active):
            moves = turn[:, active].copy()
            moves[:known] = 0.0
            turn = np.hstack([turn, moves])
        self._used = turn.shape[1]
        for first in range(0, len(columns), _ROWS):
            rows = slice(first, first + _ROWS)
            columns[rows, : self._used] = columns[rows, :used] @ turn


def _smallest(A: np.ndarray, M: np.ndarray, known: int, number: int) -> tuple:
    """Lowest pairs of small matrices, the first ``known`` columns of which are orthonormal.

    M may be singular, as vectors depend on each other: what is left out then is never a part of
    those that are known.
    """
    overlap = M[:known, known:]
    rest = M[known:, known:] - overlap.T @ overlap
    norms = 1 / np.sqrt(np.maximum(np.diag(rest), 1e-300))
    norms[np.diag(rest) < _DEPENDENT * np.diag(M)[known:]] = 0.0
    sizes, basis = np.linalg.eigh(0.5 * (rest + rest.T) * norms * norms[:, None])
    kept = sizes > _DEPENDENT
    basis = norms[:, None] * basis[:, kept] / np.sqrt(sizes[kept])
    basis = np.block([[np.eye(known), -overlap @ basis],
                      [np.zeros((len(basis), known)), basis]])
    small = basis.T @ (0.5 * (A + A.T)) @ basis
    values, vectors = np.linalg.eigh(0.5 * (small + small.T))
    return values[:number], basis @ vectors[:, :number]
