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
from ...parallel.columns import column_inner, inner, times
from ...problem import BlochTorrey
from .two_level import TwoLevel

# Modes: cut at the widest relative gap among so many, so that no cluster of equal eigenvalues is
# cut in two: the span, and the signals, would then depend on the ranks.
CANDIDATES = 12
SURPLUS = 1.15  # of the number wanted, so that the last converge: 8 iterations of 800 modes, not 21
STEPS = 5  # of conjugate gradients a correction; 3 take as long for 200 modes, 8 take longer for 60
TOLERANCE = 1e-6  # relative error of eigenvalues before a last Rayleigh-Ritz: of signals 1e-9
ITERATIONS = 40  # at most; 60 modes of random walls and a tolerance of 1e-10 take 12
EXACT, EXACT_STEPS = 1e-9, 500  # relative residual of a solve; steps at most, far beyond its need
_BLOCK = 32  # columns at once, whose work arrays are small beside the modes
_ROWS = 4096  # of the modes, turned at once: no second copy of them is made
_LIVED = 100  # times as exact are the lowest modes, which live long and carry the signals
_DEPENDENT = 1e-10  # eigenvalue of a Gram matrix of unit vectors: what is below is rounding


class Inverse:
    """(A + s M)^-1 of columns, without a factor; see `TwoLevel` for the prefix of PETSc options.

    A is symmetric without eigenvalues below 0, M positive definite; nothing may be tied.
    """

    def __init__(self, problem: BlochTorrey, A: PETSc.Mat, M: PETSc.Mat, shift: float,
                 prefix: str):
        self.matrix = A.copy()
        self.matrix.axpy(shift, M)
        self.preconditioner = TwoLevel(problem, self.matrix, prefix)

    def __call__(self, loads: np.ndarray) -> np.ndarray:
        """To `EXACT`, of columns ``(n_local, k)``. Collective."""
        return conjugate_gradients(self.matrix, self.preconditioner, loads, EXACT_STEPS, EXACT)

    def roughly(self, loads: np.ndarray) -> np.ndarray:
        """After a few steps. Collective."""
        return conjugate_gradients(self.matrix, self.preconditioner, loads, STEPS)

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


def conjugate_gradients(A: PETSc.Mat, inverse: Callable, loads: np.ndarray, steps: int,
                        tolerance: float = 0.0) -> np.ndarray:
    """Approximate A^-1 of columns ``(n_local, k)``, each by its own iteration. Collective.

    With a ``tolerance`` of the preconditioned residual against that of the load, in at most so many
    steps; else in exactly so many.

    Raises:
        SolverError: the tolerance was not met, or a preconditioner is not positive.
    """
    comm = A.comm.tompi4py()
    result = np.zeros_like(loads, order="F")
    for first in range(0, loads.shape[1], _BLOCK):
        block = slice(first, first + _BLOCK)
        r = np.array(loads[:, block], order="F")
        z = inverse(r)
        p, size = z.copy(order="F"), column_inner(comm, r, z)
        goal = tolerance**2 * size
        x = result[:, block]
        for step in range(1, steps + 1):
            Ap = times(A, p)
            curvature = column_inner(comm, p, Ap)
            alive = curvature > 0
            length = np.where(alive, size / np.where(alive, curvature, 1.0), 0.0)
            x += p * length
            if step == steps and not tolerance:
                break
            r -= Ap * length
            z = inverse(r)
            before, size = size, column_inner(comm, r, z)
            if (size <= goal).all():
                break
            p *= size / np.where(before > 0, before, 1.0)
            p += z
        else:
            raise SolverError(f"conjugate gradients: {steps} steps did not meet a relative "
                              f"tolerance of {tolerance:g}")
    return result


def at_gap(values: np.ndarray, number: int, candidates: int) -> int:
    """How many of the sorted values to keep: at least ``number - candidates`` and not a cluster."""
    if len(values) <= number:
        return len(values)
    first = max(1, number - candidates)
    gaps = np.diff(values[first - 1: number + candidates])
    return first + int(np.argmax(gaps))


def coarse_modes(preconditioner: TwoLevel, A: PETSc.Mat, M: PETSc.Mat, wanted: int,
                 start: np.ndarray, coarse_pairs: Callable) -> np.ndarray:
    """Lowest modes of each coarse space, on the broken space, ``(n_local, n)``. Collective.

    ``wanted`` is what the broken space is asked for, ``start`` ``(n_local,)`` what coarse problems
    start from, ``coarse_pairs`` their solver, ``(A, M, number, start) -> (values, vectors)``.
    """
    number = iterated(A, wanted)
    found = []
    for P in preconditioner.spaces.values():
        a, m = A.ptap(P), M.ptap(P)
        first = times(P, start[:, None], transposed=True)[:, 0]
        size = P.getSize()[1]
        values, vectors = coarse_pairs(a, m, min(number + CANDIDATES, size), first)
        kept = at_gap(values, min(number, size), CANDIDATES)
        found.append(times(P, vectors[:, :kept]))
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
        self.comm, self.A, self.M = comm, A, M
        self._columns = np.zeros((len(start), max(3 * (number + CANDIDATES), start.shape[1])),
                                 order="F")
        self._columns[:, : start.shape[1]] = start
        self._used = start.shape[1]
        self.values = np.zeros(0)
        self._rayleigh_ritz(start.shape[1], np.zeros(0, dtype=int))
        self.values = self.values[: at_gap(self.values, number, CANDIDATES)]
        self._used = len(self.values)
        self.error = np.full(len(self.values), np.inf)

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
            X = np.asfortranarray(columns[:, chosen])
            R = times(self.A, X) - times(self.M, X) * self.values[chosen]
            W = correct(R)
            rates = self.values[chosen] + shift
            self.error[chosen] = column_inner(self.comm, R, W) / rates * np.minimum(
                self.values[-1] / rates, _LIVED)
            columns[:, self._used: self._used + len(chosen)] = W
            self._used += len(chosen)
        self._rayleigh_ritz(number, active)

    def _rayleigh_ritz(self, number: int, active: np.ndarray) -> None:
        """Replace the columns by ``number`` modes and the last moves of the active ones."""
        known, used, columns = len(self.values), self._used, self._columns
        gram = np.zeros((2, used, used))
        gram[0, :known, :known], gram[1, :known, :known] = np.diag(self.values), np.eye(known)
        for first in range(known, used, _BLOCK):
            last = min(first + _BLOCK, used)
            block = slice(first, last)
            both = np.hstack([times(matrix, columns[:, block]) for matrix in (self.A, self.M)])
            part = inner(self.comm, columns[:, :last], both)
            for place, half in enumerate(np.hsplit(part, 2)):
                gram[place, :last, block] = half
                gram[place, block, :last] = half.T
        self.values, turn = self.comm.bcast(_smallest(gram[0], gram[1], known, number))
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
