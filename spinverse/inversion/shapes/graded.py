"""Graded shapes: Levenberg-Marquardt on the shares of every cell, from blurred to sharp.

Shares are ``(Nt,)`` for one compartment, ``(P, Nt)`` for several; those of a cell add up to 1 at
most, and the rest is outside.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from .task import Measurements, Task

# weights, where shares at the edge change the signals as in `Task.unit`
TV = 1e-6  # weight of the total variation of the shares
MODES = 80  # of each compartment, and of the outside
EDGE = 0.1  # differences of shares below this are smoothed, not kept
# weight of c (1 - c), iterations with it
SHARPER = ((0.0, 10), (1e-5, 12), (1e-4, 10), (1e-3, 12), (1e-2, 5))


class Graded:
    """Shares of cells in [0, 1] fitted to measurements.

    Args:
        task: of the search.
        look: measurements that count.
        compartments: how many.
    """

    def __init__(self, task: Task, look: Measurements, compartments: int = 1):
        self.task, self.look = task, look
        self.model = task.graded(MODES * (compartments + 1), 0.8)
        areas = task.whole.areas[self.model.inner]
        self.weights = areas / areas.mean()
        self.variation = TV * task.unit
        self.mu, self.misfit = 1e-4, np.inf
        self._last = None

    def run(self, c: np.ndarray, iterations: int, sharpen: float = 0.0,
            tolerance: float = 1e-3) -> np.ndarray:
        """At most so many steps; ``sharpen`` is the weight of sum c (1 - c) / Nt."""
        n, D = c.shape[-1], self.model.jump
        sharpen = sharpen * self.task.unit
        predicted, J = self._jacobian(c)
        r = self._residual(predicted)
        f = self._loss(r, c, sharpen)
        for _ in range(iterations):
            H0, g = J.T @ J / len(r), J.T @ r / len(r)
            H = H0.copy()
            for a, share in enumerate(np.atleast_2d(c)):
                d0, block = D @ share, slice(a * n, (a + 1) * n)
                weight = self.variation * self.weights / np.sqrt(d0**2 + EDGE**2)
                H[block, block] += (D.T @ scipy.sparse.diags(weight) @ D).toarray() / n
                g[block] += (D.T @ (weight * d0) + sharpen * (1 - 2 * share)) / n
            mean = np.trace(H0) / len(g)
            for _ in range(8):
                d = bounded_step(H + self.mu * mean * np.eye(len(g)), g, c.ravel())
                c_new = _possible(c + d.reshape(c.shape))
                d = (c_new - c).ravel()
                f_new = self._loss(self._residual(self._signals(c_new)), c_new, sharpen)
                rho = (f - f_new) / max(-(0.5 * d @ H @ d + g @ d), 1e-300)
                if f_new < f:
                    break
                self.mu *= 6
            else:
                break
            self.mu = self.mu / 4 if rho > 0.6 else self.mu * 3 if rho < 0.2 else self.mu
            self.mu = min(max(self.mu, 1e-7), 1e2)
            gain, c = (f - f_new) / f, c_new
            predicted, J = self._jacobian(c)
            r = self._residual(predicted)
            f = self._loss(r, c, sharpen)
            if gain < tolerance:
                break
        self.misfit = float(np.mean(r**2))
        return c

    def sharpened(self, c: np.ndarray) -> tuple[np.ndarray, float]:
        """Shares after ever heavier weights, and the misfit while they were free."""
        misfit = np.inf
        for weight, iterations in SHARPER:
            self.mu = min(max(self.mu, 1e-5), 1e-3)
            c = self.run(c, iterations, weight, 3e-3)
            if weight <= 1e-5:
                misfit = self.misfit
        return c, misfit

    def _signals(self, c):
        task = self.task
        # one eigenproblem, nothing to deal out
        return task.on_root(lambda: self.look.normalised(
            task.rho * self.model.signals(c, self.look.table)))

    def _jacobian(self, c):
        if self._last is None or not np.array_equal(self._last[0], c):
            self._last = c, *self.task.graded_jacobian(self.model, c, self.look)
        return self._last[1:]

    def _residual(self, predicted):
        return predicted - self.look.measured

    def _loss(self, r, c, sharpen):
        penalty = sharpen * (c * (1 - c)).sum()
        for share in np.atleast_2d(c):
            d = self.model.jump @ share
            penalty += self.variation * (self.weights @ (np.sqrt(d * d + EDGE**2) - EDGE))
        return 0.5 * np.mean(r**2) + penalty / c.shape[-1]


def _possible(c: np.ndarray) -> np.ndarray:
    """Shares in [0, 1] that add up to 1 at most."""
    c = np.clip(c, 0.0, 1.0)
    return c / np.maximum(c.sum(axis=0), 1.0) if c.ndim == 2 else c


def sharpest(c: np.ndarray) -> np.ndarray:
    """The label with the largest share of each cell, ``(Nt,)`` int8."""
    c = np.atleast_2d(c)
    return np.concatenate([1 - c.sum(axis=0, keepdims=True), c]).argmax(axis=0).astype(np.int8)


def shares_of(labels: np.ndarray) -> np.ndarray:
    """Shares of a partition: ``(Nt,)``, or ``(P, Nt)`` for more than one compartment."""
    most = int(labels.max())
    return np.array([labels == k for k in range(1, most + 1)] if most > 1 else labels > 0, float)


def bounded_step(H: np.ndarray, g: np.ndarray, c: np.ndarray, iterations: int = 8) -> np.ndarray:
    """d with c + d in [0, 1] that makes d H d / 2 + g d small, by projected Newton steps."""
    d = np.zeros_like(c)
    for _ in range(iterations):
        slope = H @ d + g
        fixed = ((c + d <= 1e-12) & (slope > 0)) | ((c + d >= 1 - 1e-12) & (slope < 0))
        free = np.flatnonzero(~fixed)
        if not len(free):
            break
        step = np.zeros_like(c)
        step[free] = -np.linalg.solve(H[np.ix_(free, free)], slope[free])
        value, t = 0.5 * d @ H @ d + g @ d, 1.0
        while t > 1e-4:
            trial = np.clip(c + d + t * step, 0.0, 1.0) - c
            if 0.5 * trial @ H @ trial + g @ trial < value - 1e-16:
                break
            t /= 2
        else:
            break
        moved = np.abs(trial - d).max()
        d = trial
        if moved < 1e-6:
            break
    return d


def blurred(task: Task, c: np.ndarray, times: int) -> np.ndarray:
    """Each cell half itself, half the mean of its neighbours; so many times over."""
    if np.ndim(c) == 2:
        return np.array([blurred(task, share, times) for share in c])
    a, b = task.whole.sides[~task.whole.outer].T
    degree = np.bincount(np.r_[a, b], minlength=len(c))
    c = np.asarray(c, dtype=float)
    for _ in range(times):
        total = np.bincount(a, c[b], len(c)) + np.bincount(b, c[a], len(c))
        c = 0.5 * c + 0.5 * total / degree
    return c
