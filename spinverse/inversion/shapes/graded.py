"""Graded shapes: Levenberg-Marquardt on the shares of every cell, from blurred to sharp.

Total variation is the only prior; a growing weight of c (1 - c) makes shares c sharp.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from ..levenberg import Damping, Dense, bounded_minimum, damped_step
from .look import Look
from .models import Models

# weights, where shares at the edge change the signals as in `Models.unit`
TV = 1e-6  # weight of the total variation of the shares
EDGE = 0.1  # differences of shares below this are smoothed, not kept
# weight of c (1 - c), iterations with it
SHARPER = ((0.0, 10), (1e-5, 12), (1e-4, 10), (1e-3, 12), (1e-2, 5))
FREE = 1e-5  # largest of these weights that leaves shares free: the misfit that counts
MODES, STEP = 160, 0.8  # of the model; ms, longest step
DAMPING, LEAST = 1e-4, 1e-7  # at first, and at least, of the mean curvature by a share
SOFT, HARD = 1e-5, 1e-3  # damping that a heavier weight begins with, at least and at most
TRIES, ROUNDS = 8, 8  # dampings; Newton steps within bounds
GAIN, GAIN_SHARP = 1e-3, 3e-3  # shares of the loss: less than this ends it


class Graded:
    """Shares of cells in [0, 1] fitted to measurements.

    Args:
        models: of the search.
        theta: coordinates of the unknown numbers, which are held.
        look: measurements that count.
    """

    def __init__(self, models: Models, theta: np.ndarray, look: Look):
        self.models, self.look = models, look
        self.model = models.graded(theta, MODES)
        areas = models.whole.areas[self.model.inner]
        self._weights = areas / areas.mean()
        self._variation = TV * models.unit
        self.damping, self.misfit = Damping(DAMPING, LEAST), np.inf
        self._last: tuple = (None,)

    def run(self, c: np.ndarray, iterations: int, sharpen: float = 0.0,
            tolerance: float = GAIN) -> np.ndarray:
        """At most so many steps; ``sharpen`` is the weight of sum c (1 - c) / Nt."""
        sharpen = sharpen * self.models.unit
        predicted, J = self._jacobian(c)
        r = predicted - self.look.measured
        f = self._loss(r, c, sharpen)
        for _ in range(iterations):
            H, g, mean = self._quadratic(c, r, J, sharpen)

            def step(mu, H=H, g=g, mean=mean, c=c):
                damped = Dense(H + mu * mean * np.eye(len(g)), g)
                d = bounded_minimum(damped, -c, 1 - c, rounds=ROUNDS)
                return d, -Dense(H, g).value(d)

            def after(d, c=c):
                moved = np.clip(c + d, 0.0, 1.0)
                return self._loss(self._signals(moved) - self.look.measured, moved, sharpen), moved

            found = damped_step(self.damping, TRIES, f, step, after)
            if found is None:
                break
            before, (reached, c) = f, found
            predicted, J = self._jacobian(c)
            r = predicted - self.look.measured
            f = self._loss(r, c, sharpen)
            if before - reached < tolerance * before:
                break
        self.misfit = float(np.mean(r**2))
        return c

    def sharpened(self, c: np.ndarray) -> tuple[np.ndarray, float]:
        """Shares after ever heavier weights, and the misfit while they were free."""
        misfit = np.inf
        for weight, iterations in SHARPER:
            self.damping = Damping(min(max(self.damping.mu, SOFT), HARD), LEAST)
            c = self.run(c, iterations, weight, GAIN_SHARP)
            if weight <= FREE:
                misfit = self.misfit
        return c, misfit

    def _quadratic(self, c, r, J, sharpen) -> tuple[np.ndarray, np.ndarray, float]:
        """The loss round c: its curvature, its slope, and the mean curvature by a share."""
        n, jump = len(c), self.model.jump
        H, g = J.T @ J / len(r), J.T @ r / len(r)
        mean = np.trace(H) / n
        d = jump @ c
        weight = self._variation * self._weights / np.sqrt(d**2 + EDGE**2)
        H += (jump.T @ scipy.sparse.diags(weight) @ jump).toarray() / n
        g += (jump.T @ (weight * d) + sharpen * (1 - 2 * c)) / n
        return H, g, mean

    def _signals(self, c):
        # one eigenproblem, nothing to deal out
        return self.models.comm.bcast(
            self.look.predicted(self.model.signals(c, self.look.sweeps(STEP, self.model.kind))))

    def _jacobian(self, c):
        if self._last[0] is None or not np.array_equal(self._last[0], c):
            self._last = c, self.models.graded_jacobian(self.model, c, self.look, STEP)
        return self._last[1]

    def _loss(self, r, c, sharpen):
        d = self.model.jump @ c
        penalty = sharpen * (c * (1 - c)).sum()
        penalty += self._variation * (self._weights @ (np.sqrt(d * d + EDGE**2) - EDGE))
        return 0.5 * float(np.mean(r**2)) + penalty / len(c)


def sharpest(c: np.ndarray) -> np.ndarray:
    """Labels ``(Nt,)`` int8 of the cells that are more inside than outside."""
    return (c > 0.5).astype(np.int8)


def blurred(sides: np.ndarray, c: np.ndarray, times: int) -> np.ndarray:
    """Each cell half itself, half the mean of its neighbours; so often.

    Args:
        sides: ``(n, 2)`` cells on the two sides of the inner facets.
        c: ``(Nt,)``.
        times: how often.
    """
    a, b = sides.T
    degree = np.bincount(np.r_[a, b], minlength=len(c))
    c = np.asarray(c, dtype=float)
    for _ in range(times):
        total = np.bincount(a, c[b], len(c)) + np.bincount(b, c[a], len(c))
        c = 0.5 * c + 0.5 * total / degree
    return c
