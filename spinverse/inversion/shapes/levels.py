"""Smooth shapes: level sets of polynomials, from random ellipsoids to quartics."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.polynomial.legendre import legval
from scipy.spatial.transform import Rotation

from .task import Measurements, Task


class Levels:
    """Shares of cells inside the level set of a polynomial.

    Args:
        task: of the search.
        degree: of the polynomial, products of Legendre's in the box.
    """

    def __init__(self, task: Task, degree: int):
        whole = task.whole
        self.half = 0.5 * (whole.points.max(axis=0) - whole.points.min(axis=0))
        self.powers = [e for e in product(range(degree + 1), repeat=3) if sum(e) <= degree]
        self.volumes = whole.volumes
        x = whole.centroids - whole.centre
        self.centroids, self.values = x, self._basis(x)
        step = 1e-4 * self.half.min()
        self.slopes = [(self._basis(x + step * axis) - self._basis(x - step * axis)) / (2 * step)
                       for axis in np.eye(3)]
        corners = whole.points[whole.cells] - whole.centre
        # four inner points of each cell (Hammer and Stroud's rule of second order)
        a, b = 0.585410196624969, 0.138196601125011
        self.inner = [self._basis(np.einsum("tvi,v->ti", corners,
                                            np.where(np.arange(4) == k, a, b)))
                      for k in range(4)]

    def _basis(self, x: np.ndarray) -> np.ndarray:
        y = x / self.half

        def one(t, degree):
            return legval(t, [0] * degree + [1])

        return np.stack([one(y[:, 0], i) * one(y[:, 1], j) * one(y[:, 2], k)
                         for i, j, k in self.powers], axis=1)

    def scaled(self, a: np.ndarray) -> np.ndarray:
        """Coefficients of the same surface whose values are distances near it, about, um."""
        if np.ndim(a) == 2:
            return np.array([self.scaled(one) for one in a])
        slope = np.sqrt(sum((D @ a) ** 2 for D in self.slopes) + 1e-12)
        near = np.exp(-np.abs(self.values @ a) / (2 * slope))
        return a / ((slope * near).sum() / max(near.sum(), 1e-300))

    def shares(self, a: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Shares ``(Nt,)`` and their derivatives ``(Nt, n)``; ``width`` of the edge, um.

        For ``a`` of ``(P, n)``: ``(P, Nt)`` and ``(P Nt, P n)``; the highest level wins.
        """
        levels = np.atleast_2d(a)
        number, (cells, n) = len(levels), self.inner[0].shape
        c, slope = np.zeros((number, cells)), np.zeros((number, cells, number, n))
        for B in self.inner:
            raised = np.exp(np.clip(levels @ B.T / width, -40, 40))
            v = raised / (1 + raised.sum(axis=0))
            c += v / 4
            for p in range(number):
                for q in range(number):
                    slope[p, :, q] += (v[p] * ((p == q) - v[q]) / (4 * width))[:, None] * B
        if np.ndim(a) == 1:
            return c[0], slope[0, :, 0]
        return c, slope.reshape(number * cells, number * n)

    def raised(self, coefficients: np.ndarray, powers: list) -> np.ndarray:
        """Coefficients of this degree from those of a lower one."""
        if np.ndim(coefficients) == 2:
            return np.array([self.raised(a, powers) for a in coefficients])
        known = dict(zip(powers, coefficients, strict=True))
        return np.array([known.get(e, 0.0) for e in self.powers])


def random_ellipsoid(levels: Levels, rng: np.random.Generator, width: float) -> np.ndarray:
    """Coefficients of an ellipsoid of random place, size and axes."""
    box = levels.volumes.sum()
    volume = np.exp(rng.uniform(np.log(0.045 * box), np.log(0.19 * box)))
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    long, flat = np.exp(rng.uniform(0, np.log(4))), np.exp(0.2 * rng.normal())
    centre = rng.uniform(-0.65, 0.65, 3) * levels.half
    x = (levels.centroids - centre) @ axes / np.array([flat, 1 / flat, long])
    r2 = (x**2).sum(axis=1)
    low, high = 1.0, 2.3 * levels.half.max()
    for _ in range(14):
        radius = np.sqrt(low * high)
        a = levels.scaled(np.linalg.lstsq(levels.values, 1 - r2 / radius**2, rcond=None)[0])
        inside = (levels.shares(a, width)[0] * levels.volumes).sum()
        low, high = (low, radius) if inside > volume else (radius, high)
    return a


def level_of(levels: Levels, ellipsoid: np.ndarray) -> np.ndarray:
    """Coefficients of an ellipsoid of `ellipsoids.random_ellipsoids`, ``(9,)``."""
    turn = Rotation.from_rotvec(ellipsoid[6:]).as_matrix()
    x = (levels.centroids - ellipsoid[:3]) @ turn / np.exp(ellipsoid[3:6])
    return levels.scaled(np.linalg.lstsq(levels.values, 1 - (x**2).sum(axis=1), rcond=None)[0])


def screen(task: Task, look: Measurements, number: int, keep: int, seed: tuple,
           width: float) -> list[tuple[float, np.ndarray]]:
    """Random ellipsoids by misfit, the best first and no two alike: (misfit, coefficients)."""
    levels, model = Levels(task, 2), task.graded(80, 1.0, 1e-6)

    def one(k):
        a = random_ellipsoid(levels, np.random.default_rng((*seed, k)), width)
        c = levels.shares(a, width)[0]
        return float(np.mean(task.residual(model, c, look) ** 2)), a, c

    found = sorted(task.shared(one, range(number)), key=lambda item: item[0])
    chosen: list[tuple] = []
    for misfit, a, c in found:
        alike = (np.minimum(c, other).sum() / np.maximum(c, other).sum() for *_, other in chosen)
        if all(share < 0.6 for share in alike):
            chosen.append((misfit, a, c))
        if len(chosen) == keep:
            break
    return [(misfit, a) for misfit, a, _ in chosen]


def fit(task: Task, levels: Levels, a: np.ndarray, look: Measurements, width: float,
        iterations: int, tolerance: float = 2e-2) -> tuple[np.ndarray, np.ndarray, float]:
    """Levenberg-Marquardt on the coefficients: they, the shares, the misfit."""
    model, mu = task.graded(60 * (1 + len(np.atleast_2d(a))), 1.0), 1e-2

    def misfit(c):
        return float(np.mean(task.residual(model, c, look) ** 2))

    a = levels.scaled(a)
    c, slope = levels.shares(a, width)
    predicted, J = task.graded_jacobian(model, c, look)
    r = predicted - look.measured
    f = float(np.mean(r**2))
    for iteration in range(iterations):
        Ja = J @ slope
        H, g = Ja.T @ Ja / len(r), Ja.T @ r / len(r)
        # damped by what a step changes in the shares
        volumes = np.tile(levels.volumes, np.atleast_2d(a).shape[0])
        metric = slope.T @ (slope * volumes[:, None]) / levels.volumes.sum()
        metric += 1e-6 * np.eye(a.size) * np.trace(metric) / a.size
        steps = [mu * 5.0**k for k in range(7)]
        for mu in steps:
            d = -np.linalg.solve(H + mu * metric, g)
            c_new, slope_new = levels.shares(a + d.reshape(a.shape), width)
            f_new = task.on_root(misfit, c_new)
            if f_new < f:
                break
        else:
            break
        rho = (f - f_new) / max(-2 * (0.5 * d @ H @ d + g @ d), 1e-300)
        mu = mu / 5 if rho > 0.6 else mu * 2 if rho < 0.2 else mu
        gain, a, c, slope = (f - f_new) / f, a + d.reshape(a.shape), c_new, slope_new
        if gain < tolerance and iteration > 2:
            f = f_new
            break
        if iteration < iterations - 1:
            predicted, J = task.graded_jacobian(model, c, look)
            r = predicted - look.measured
            f = float(np.mean(r**2))
        else:
            f = f_new
    return a, c, f
