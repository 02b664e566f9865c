"""Action of exp(-t (A + i Y)) on vectors by Chebyshev expansion, and its exact derivative.

A = diag(lambda) with lambda >= 0 and Y real symmetric, so the field of values lies in the
rectangle [0, lambda_max] x i [-|Y|, |Y|], whose sides are known. (Where Y has an antisymmetric
part too, the caller knows the interval of the Hermitian part.) On a half-width a around the
centre c, exp(-t z) = exp(-t c) sum_k (2 - delta_k0) (-1)^k I_k(t a) T_k((z - c) / a)
(Abramowitz & Stegun 9.6.34), summed by the three-term recurrence; the derivative of the sum is
Clenshaw's recurrence run on the adjoint. Unlike splitting there is no step to choose: the error
is round-off, and the gradient is that of the exact exponential.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as member
from functools import lru_cache

import numpy as np
from scipy.linalg.blas import daxpy, dgemm
from scipy.special import ive

from ...errors import SolverError

TOLERANCE = 1e-11
# Terms may grow before they cancel: the largest loss of the 16 digits.
LOSS = 1e4
_LARGEST_ARGUMENT = 1e8  # of Bessel functions that still have digits


@dataclass(frozen=True)
class Expansion:
    """exp(-t z) on a rectangle: ``steps`` equal steps of a polynomial in (z - centre) / width."""

    steps: int
    centre: float
    width: float
    coefficients: tuple[float, ...]


@lru_cache(maxsize=4096)
def expansion(duration: float, largest: float, phase: float) -> Expansion:
    """The cheapest expansion for [0, largest] x i [-phase, phase] over a duration (ms, 1/ms)."""
    best = None
    for width in (max(largest / 2, 1e-12), max(largest / 2, phase), np.hypot(largest / 2, phase)):
        corner = complex(largest / 2, phase) / width
        root = np.sqrt(corner * corner - 1)
        growth = max(abs(corner + root), abs(corner - root), 1.0)
        for steps in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512):
            scale = duration * width / steps
            if scale > _LARGEST_ARGUMENT:
                continue
            # I_k(s) exp(-s) < exp(-k^2 / 2s) / sqrt(s): terms end where growth^k no longer helps
            drift = scale * np.log(growth)
            k = np.arange(int(min(3 * scale * growth,
                                  1.5 * (drift + np.sqrt(drift**2 + 60 * scale))) + 60))
            with np.errstate(over="ignore", under="ignore"):
                weight = 2.0 * ive(k, scale) * np.exp(
                    np.minimum(scale - duration * largest / 2 / steps, 50.0))
                size = weight * np.exp(np.minimum(k * np.log(growth), 600.0))
            if size.max() > LOSS:
                continue
            degree = int(np.flatnonzero(size > TOLERANCE).max(initial=0)) + 1
            if best is None or steps * degree < best[0]:
                sign = np.where(k % 2, -1.0, 1.0)
                coefficients = (weight * sign)[: degree + 1]
                coefficients[0] /= 2
                best = (steps * degree, Expansion(steps, largest / 2, width, tuple(coefficients)))
            break
    if best is None:
        raise SolverError(f"matrix formalism: decay rates up to {largest:g} per ms are beyond its "
                          "exponentials; permeability inf ties facets exactly")
    return best[1]


class Store:
    """Memory that is used again: what is lent is valid until `restart`."""

    def __init__(self):
        self._block, self._lent = np.empty(0, complex), 0

    def restart(self) -> None:
        """Take back all, and make room for as much at once."""
        if self._lent > len(self._block):
            self._block = np.empty(self._lent, complex)
        self._lent = 0

    def lend(self, shape: tuple[int, ...]) -> np.ndarray:
        """A complex array of that shape, of any content."""
        first, self._lent = self._lent, self._lent + int(np.prod(shape))
        if self._lent > len(self._block):
            return np.empty(shape, complex)
        return self._block[first: self._lent].reshape(shape)


@dataclass
class Propagation:
    """exp(-duration (A + i Y)) on a block of columns, remembering what the adjoint needs.

    Args:
        eigenvalues: ``(K,)`` of A, 1/ms.
        X: ``(K, K)`` position operator along the direction, um; any real matrix if ``interval`` is
            given. ``(D, K, K)`` for several directions: columns are D equal blocks then.
        q: ``(C,)`` precession gradient of each column, rad/(ms um): Y of column c is q[c] X.
        reach: bound on the spectral radius of the symmetric part of X, um.
        square: what times q[c]^2 is added to A, a number (times 1) or ``(K, K)`` symmetric.
        interval: that the Hermitian part of all columns lies in, 1/ms; else [0, lambda_max].
        field, field_reach: ``(K, K)`` real symmetric, rad/ms, added to Y of every column, and a
            bound on its spectral radius.
        store: lends the memory for what is remembered.
    """

    eigenvalues: np.ndarray
    X: np.ndarray
    q: np.ndarray
    reach: float
    duration: float
    square: np.ndarray | float = 0.0
    interval: tuple[float, float] | None = None
    field: np.ndarray | None = None
    field_reach: float = 0.0
    store: Store = member(default_factory=Store)

    def __post_init__(self):
        phase = float(np.abs(self.q).max(initial=0.0)) * self.reach + self.field_reach
        low, high = (0.0, float(self.eigenvalues[-1])) if self.interval is None else self.interval
        self.plan = plan = expansion(float(self.duration), high - low, phase)
        self._coefficients = np.exp(-self.duration * low / plan.steps) * np.array(plan.coefficients)
        # real matrices act on complex columns as on twice as many real ones, by `_real`
        self._operators = self.X if self.X.ndim == 3 else self.X[None]
        self._turn = 1j * self.q / plan.width
        squares = self.q**2 / plan.width
        self._decay = ((self.eigenvalues - low - plan.centre) / plan.width)[:, None]
        self._squares = squares if np.ndim(self.square) else None
        if np.ndim(self.square) == 0 and self.square:
            self._decay = self._decay + self.square * squares
        self._field = None if self.field is None else self.field / plan.width
        self._tape: list[np.ndarray] = []

    def _apply(self, u, out, work, X, sign, factor):
        """factor ((A - c) + i (q X + field)) / a on u; with sign -1 and X^T the adjoint of it."""
        np.matmul(X, self._blocks(u), out=self._blocks(work))
        work *= sign * factor * self._turn
        if self._field is not None:
            work += (1j * sign * factor) * _times(self._field, u)
        np.multiply(factor * self._decay, u, out=out)
        if self._squares is not None:
            out += _times(self.square, u) * (factor * self._squares)
        out += work
        return out

    def forward(self, u: np.ndarray, remember: bool = False) -> np.ndarray:
        """The action on complex columns ``(K, C)``."""
        state, c, X = np.array(u, dtype=complex, order="C"), self._coefficients, self._operators
        work = np.empty_like(state)
        self._tape = []
        for _ in range(self.plan.steps):
            # without a tape three terms take turns
            shape = (len(c) if remember else 3, *state.shape)
            terms = self.store.lend(shape) if remember else np.empty(shape, complex)
            terms[0] = state
            now = self._apply(terms[0], terms[1], work, X, 1, 1.0)
            state *= c[0]
            _add(state, c[1], now)
            for k in range(2, len(c)):
                now = self._apply(now, terms[k % shape[0]], work, X, 1, 2.0)
                now -= terms[(k - 2) % shape[0]]
                _add(state, c[k], now)
            if remember:
                self._tape.append(terms)
        return state

    def backward(self, adjoint: np.ndarray, gradient: np.ndarray,
                 turning: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
        """Pull an adjoint back to that of the input, and add to the derivative with respect to A.

        Args:
            adjoint: ``(K, C)`` complex p with dJ = Re sum(conj(p) d(output)).
            gradient: ``(K, K)``; dJ = sum(gradient * dA) is added in place.
            turning: ``(D, K, K)`` for X along each direction and ``(K, K)`` for the field.
        """
        found = np.zeros(gradient.shape)

        def visit(swept, term, factor):
            # adds to its transpose in place, which is in Fortran's order
            dgemm(factor, _real(term).T, _real(swept).T, 1.0, found.T, 1, 0, 1)
            if turning is not None:
                by_position, by_field = turning
                turned = 1j * term
                by_field += factor * (_real(swept) @ _real(turned).T)
                by_position += factor * (self._blocks(swept * self.q)
                                         @ self._blocks(turned).transpose(0, 2, 1))

        result = self.sweep(adjoint, visit)
        gradient += found
        return result

    def sweep(self, adjoint: np.ndarray, visit: Callable) -> np.ndarray:
        """Pull an adjoint ``(K, C)`` back to that of the input.

        ``visit(swept, term, factor)`` is called with ``(K, C)`` complex, valid during the call:
        factor Re(conj(swept) term^T), summed over columns and calls, is the derivative by A.
        """
        state, c, width = np.array(adjoint, complex, order="C"), self._coefficients, self.plan.width
        X = np.ascontiguousarray(self._operators.transpose(0, 2, 1))
        turns, work = [np.empty_like(state) for _ in range(3)], np.empty_like(state)
        for terms in reversed(self._tape):
            later, now, spare = turns
            later[:] = 0.0
            np.multiply(c[-1], state, out=now)
            for k in range(len(c) - 2, 0, -1):
                visit(now, terms[k], 2.0 / width)
                before = self._apply(now, spare, work, X, -1, 2.0)
                before -= later
                _add(before, c[k], state)
                later, now, spare = now, before, later
            visit(now, terms[0], 1.0 / width)
            state *= c[0]
            state += self._apply(now, spare, work, X, -1, 1.0)
            state -= later
        return state

    def _blocks(self, u: np.ndarray) -> np.ndarray:
        """Columns ``(K, D C)`` as a real view ``(D, K, 2 C)``."""
        return _real(u).reshape(len(u), len(self._operators), -1).transpose(1, 0, 2)


def _real(u: np.ndarray) -> np.ndarray:
    """Complex columns ``(K, C)`` as a real view ``(K, 2 C)``."""
    return u.view(float)


def _add(total: np.ndarray, factor: float, u: np.ndarray) -> None:
    """total += factor u, in one pass over contiguous complex arrays."""
    daxpy(u.reshape(-1).view(float), total.reshape(-1).view(float), a=factor)


def _times(matrix: np.ndarray, u: np.ndarray) -> np.ndarray:
    return (matrix @ _real(u)).view(complex)
