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

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import ive

from ..errors import SolverError

TOLERANCE = 1e-11
# Terms may grow before they cancel: what is lost of the 16 digits at most.
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


@dataclass
class Propagation:
    """exp(-duration (A + i Y)) on a block of columns, remembering what the adjoint needs.

    Args:
        eigenvalues: ``(K,)`` of A, 1/ms.
        X: ``(K, K)`` position operator along the direction, um; any real matrix if ``interval``
            is given.
        q: ``(C,)`` precession gradient of each column, rad/(ms um): Y of column c is q[c] X.
        reach: bound on the spectral radius of the symmetric part of X, um.
        duration: ms.
        square: what times q[c]^2 is added to A, a number (times 1) or ``(K, K)`` symmetric.
        interval: that the Hermitian part of all columns lies in, 1/ms; [0, lambda_max] if not
            given.
        field: ``(K, K)`` real symmetric, rad/ms, that is added to Y of every column.
        field_reach: bound on its spectral radius, rad/ms.
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

    def __post_init__(self):
        phase = float(np.abs(self.q).max(initial=0.0)) * self.reach + self.field_reach
        low, high = (0.0, float(self.eigenvalues[-1])) if self.interval is None else self.interval
        plan = expansion(float(self.duration), high - low, phase)
        self.plan = plan
        self._coefficients = np.exp(-self.duration * low / plan.steps) * np.array(plan.coefficients)
        self._q = np.concatenate([self.q, self.q]) / plan.width
        squares = self._q * np.concatenate([self.q, self.q])
        self._decay = ((self.eigenvalues - low - plan.centre) / plan.width)[:, None]
        self._squares = squares if np.ndim(self.square) else None
        if np.ndim(self.square) == 0 and self.square:
            self._decay = self._decay + self.square * squares
        self._field = None if self.field is None else self.field / plan.width
        self._tape: list[np.ndarray] = []

    def _apply(self, u, X, sign):
        """((A - c) + sign i (q X + field)) / a on columns u = [Re | Im]."""
        half = u.shape[1] // 2
        if self._field is None:
            Yu = (X @ u) * self._q
        else:
            Yu = self._field @ u
            if self._q.any():
                Yu += (X @ u) * self._q
        out = self._decay * u
        if self._squares is not None:
            out += (self.square @ u) * self._squares
        if sign < 0:
            np.negative(Yu, out=Yu)
        out[:, :half] -= Yu[:, half:]
        out[:, half:] += Yu[:, :half]
        return out

    def _forth(self, u):
        return self._apply(u, self.X, 1)

    def _back(self, u):
        """Conjugate transpose of `_forth`."""
        return self._apply(u, self.X.T, -1)

    def forward(self, u: np.ndarray, remember: bool = False) -> np.ndarray:
        """The action on complex columns ``(K, C)``."""
        state = np.hstack([u.real, u.imag])
        c = self._coefficients
        for _ in range(self.plan.steps):
            before, now = state, self._forth(state)
            terms = [before, now]
            total = c[0] * before + c[1] * now
            for ck in c[2:]:
                after = self._forth(now)
                after *= 2
                after -= before
                before, now = now, after
                total += ck * now
                if remember:
                    terms.append(now)
            if remember:
                self._tape.append(np.hstack(terms[:-1]))
            state = total
        half = state.shape[1] // 2
        return state[:, :half] + 1j * state[:, half:]

    def backward(self, adjoint: np.ndarray, gradient: np.ndarray,
                 turning: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
        """Pull an adjoint back, and add to the derivative with respect to A.

        Args:
            adjoint: ``(K, C)`` complex p with dJ = Re sum(conj(p) d(output)).
            gradient: ``(K, K)``; dJ = sum(gradient * dA) is added in place.
            turning: two of these, for X and for the field, if they are wanted.

        Returns:
            ``(K, C)`` adjoint of the input.
        """
        state = np.hstack([adjoint.real, adjoint.imag])
        c = self._coefficients
        for terms in reversed(self._tape):
            later = np.zeros_like(state)
            now = c[-1] * state
            swept = []
            for ck in c[-2:0:-1]:
                swept.append(now)
                before = self._back(now)
                before *= 2
                before -= later
                before += ck * state
                later, now = now, before
            swept.append(now)
            # s_1 meets t_0 with weight 1, s_{k+1} meets t_k with weight 2
            swept = [2.0 * s for s in swept[:-1]] + [swept[-1]]
            swept = np.hstack(swept[::-1])
            gradient += swept @ terms.T / self.plan.width
            if turning is not None:
                self._add_turning(swept, terms, *turning)
            state = c[0] * state + self._back(now) - later
        half = state.shape[1] // 2
        return state[:, :half] + 1j * state[:, half:]

    def _add_turning(self, swept: np.ndarray, terms: np.ndarray, by_position: np.ndarray,
                     by_field: np.ndarray) -> None:
        """As for A, where i times a real matrix is added to it: i (Re, Im) is (-Im, Re)."""
        width = 2 * len(self.q)
        turned = np.empty_like(terms)
        for first in range(0, terms.shape[1], width):
            middle, last = first + width // 2, first + width
            turned[:, first:middle] = -terms[:, middle:last]
            turned[:, middle:last] = terms[:, first:middle]
        by_field += swept @ turned.T / self.plan.width
        # _q is q / width, once for Re and once for Im
        by_position += (swept * np.tile(self._q, terms.shape[1] // width)) @ turned.T
