"""Smooth shapes: level sets of polynomials, from random ellipsoids to quartics."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.polynomial.legendre import legval

from ..levenberg import Damping, damped_step
from .look import Look
from .models import Models

STEP = 1.0  # ms, longest, of the model
SCREENED = (80, 1e-6)  # modes and least share of the mass, to tell random ellipsoids apart
MODES = 120
DAMPING, TRIES = 1e-2, 7  # of what a step changes in the shares; dampings
SURE = 1e-4  # shares this near 0 or 1 stay there: slopes by coefficients to 2e-4
SINGULAR = 1e-6  # of the mean: keeps combinations apart that nothing tells
OWN = 0.3  # deviation of points of a mesh cell from its centroid along an axis, in its size
RIDGE, NEWTON = 1e-4, 15  # of the mean over mesh cells; steps
GAIN, AT_LEAST = 2e-2, 4  # share of the misfit whose gain is enough, after so many iterations
ALIKE = 0.6  # overlap of shares from which on two ellipsoids are one
SMALL, LARGE = 0.045, 0.19  # volume of a random ellipsoid over that of the box
SPREAD = 0.65  # of its centre, in half boxes
LONG, FLAT = 4.0, 0.2  # longest axis over the others; deviation of the log ratio of these
# four inner points of each cell (Hammer and Stroud's rule of second order)
_INNER = 0.585410196624969, 0.138196601125011


class Levels:
    """Shares of cells inside the level set of a polynomial.

    Args:
        models: of the search.
        degree: of the polynomial, products of Legendre's in the box.
    """

    def __init__(self, models: Models, degree: int):
        whole = models.whole
        # where the box is periodic shapes begin in its middle, and places do not matter
        self.spread = 0.0 if whole.periodic else SPREAD
        self.half = 0.5 * (whole.points.max(axis=0) - whole.points.min(axis=0))
        self.powers = [e for e in product(range(degree + 1), repeat=3) if sum(e) <= degree]
        self.volumes = whole.volumes
        self.size = float(np.mean(whole.volumes) ** (1 / 3))
        x = whole.centroids - whole.centre
        self.centroids, self.values = x, self.basis(x)
        self.slopes = self.gradients(x)
        corners = whole.points[whole.cells] - whole.centre
        a, b = _INNER
        self.inner = [self.basis(np.einsum("tvi,v->ti", corners,
                                            np.where(np.arange(4) == k, a, b)))
                      for k in range(4)]

    def basis(self, x: np.ndarray) -> np.ndarray:
        """The polynomials at points ``(m, 3)`` um from the middle of the box, ``(m, n)``."""
        y = x / self.half

        def one(t, degree):
            return legval(t, [0] * degree + [1])

        return np.stack([one(y[:, 0], i) * one(y[:, 1], j) * one(y[:, 2], k)
                         for i, j, k in self.powers], axis=1)

    def gradients(self, x: np.ndarray) -> np.ndarray:
        """Their derivatives along each axis, ``(3, m, n)`` 1/um."""
        step = 1e-4 * self.half.min()
        return np.array([(self.basis(x + step * axis) - self.basis(x - step * axis)) / (2 * step)
                         for axis in np.eye(3)])

    def scaled(self, a: np.ndarray) -> np.ndarray:
        """Coefficients of the same surface whose values are distances near it, about, um."""
        slope = np.sqrt(sum((D @ a) ** 2 for D in self.slopes) + 1e-12)
        near = np.exp(-np.abs(self.values @ a) / (2 * slope))
        return a / ((slope * near).sum() / max(near.sum(), 1e-300))

    def ellipsoid(self, inside: np.ndarray) -> np.ndarray:
        """Coefficients of the ellipsoid with the moments of some mesh cells, ``(Nt,)`` bool."""
        x, w = self.centroids[inside], self.volumes[inside]
        middle = np.average(x, axis=0, weights=w)
        spread = np.cov((x - middle).T, aweights=w, bias=True)
        spread = spread + (OWN * self.size) ** 2 * np.eye(3)
        away = self.centroids - middle
        # the variance along an axis of an ellipsoid is a fifth of its square
        q = np.einsum("ni,ij,nj->n", away, np.linalg.inv(5 * spread), away)
        return self.scaled(np.linalg.lstsq(self.values, 1 - q, rcond=None)[0])

    def around(self, inside: np.ndarray) -> np.ndarray:
        """Coefficients of the surface that tells some mesh cells, ``(Nt,)`` bool, from the others.

        By logistic regression at their centroids, which count by volume, with a ridge: Newton's
        steps. It is smaller than the ellipsoid with their moments where cells are ragged.
        """
        B, w, a = self.values, self.volumes / self.volumes.sum(), np.zeros(self.values.shape[1])
        for _ in range(NEWTON):
            p = 1 / (1 + np.exp(-np.clip(B @ a, -40, 40)))
            H = B.T @ (B * (w * p * (1 - p))[:, None]) + RIDGE * np.eye(len(a))
            a = a - np.linalg.solve(H, B.T @ (w * (p - inside)) + RIDGE * a)
        return self.scaled(a)

    def shares(self, a: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Shares ``(Nt,)`` and their derivatives ``(Nt, n)``; ``width`` of the edge, um."""
        c, slope = np.zeros(len(self.volumes)), np.zeros((len(self.volumes), len(a)))
        for B in self.inner:
            v = 1 / (1 + np.exp(-np.clip(B @ a / width, -40, 40)))
            c, slope = c + v / 4, slope + (v * (1 - v) / (4 * width))[:, None] * B
        return c, slope

    def raised(self, coefficients: np.ndarray, powers: list) -> np.ndarray:
        """Coefficients of this degree from those of a lower one."""
        known = dict(zip(powers, coefficients, strict=True))
        return np.array([known.get(e, 0.0) for e in self.powers])


def random_ellipsoid(levels: Levels, rng: np.random.Generator, width: float) -> np.ndarray:
    """Coefficients of an ellipsoid of random place, size and axes."""
    box = levels.volumes.sum()
    volume = np.exp(rng.uniform(np.log(SMALL * box), np.log(LARGE * box)))
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    long, flat = np.exp(rng.uniform(0, np.log(LONG))), np.exp(FLAT * rng.normal())
    centre = rng.uniform(-levels.spread, levels.spread, 3) * levels.half
    x = (levels.centroids - centre) @ axes / np.array([flat, 1 / flat, long])
    r2 = (x**2).sum(axis=1)
    low, high = 1.0, 2.3 * levels.half.max()
    for _ in range(14):
        radius = np.sqrt(low * high)
        a = levels.scaled(np.linalg.lstsq(levels.values, 1 - r2 / radius**2, rcond=None)[0])
        inside = (levels.shares(a, width)[0] * levels.volumes).sum()
        low, high = (low, radius) if inside > volume else (radius, high)
    return a


def screen(models: Models, theta: np.ndarray, look: Look, number: int, keep: int, seed: tuple,
           width: float) -> list[tuple[float, np.ndarray]]:
    """Random ellipsoids by misfit, the best first and no two alike: (misfit, coefficients)."""
    levels, model = Levels(models, 2), models.graded(theta, *SCREENED)

    def one(k):
        a = random_ellipsoid(levels, np.random.default_rng((*seed, k)), width)
        c = levels.shares(a, width)[0]
        r = look.predicted(model.signals(c, look.sweeps(STEP, model.kind))) - look.measured
        return float(np.mean(r**2)), a, c

    found = sorted(models.shared(one, range(number)), key=lambda item: item[0])
    chosen: list[tuple] = []
    for misfit, a, c in found:
        alike = (np.minimum(c, other).sum() / np.maximum(c, other).sum() for *_, other in chosen)
        if all(share < ALIKE for share in alike):
            chosen.append((misfit, a, c))
        if len(chosen) == keep:
            break
    return [(misfit, a) for misfit, a, _ in chosen]


def fit(models: Models, theta: np.ndarray, levels: Levels, a: np.ndarray, look: Look, width: float,
        iterations: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Levenberg-Marquardt on the coefficients: they, the shares, the misfit."""
    model, damping = models.graded(theta, MODES), Damping(DAMPING)
    sweeps = look.sweeps(STEP, model.kind)

    def around(a):
        c, slope = levels.shares(a, width)
        graded = np.flatnonzero((c > SURE) & (c < 1 - SURE))
        predicted, J = models.graded_jacobian(model, c, look, STEP, graded)
        r = predicted - look.measured
        # damped by what a step changes in the shares
        metric = slope.T @ (slope * levels.volumes[:, None]) / levels.volumes.sum()
        metric += SINGULAR * np.eye(len(a)) * np.trace(metric) / len(a)
        Ja = J @ slope[graded]
        return c, float(np.mean(r**2)), Ja.T @ Ja / len(r), Ja.T @ r / len(r), metric

    a = levels.scaled(a)
    c, f, H, g, metric = around(a)
    for iteration in range(iterations):
        def step(mu, H=H, g=g, metric=metric):
            d = -np.linalg.solve(H + mu * metric, g)
            return d, -2 * float(0.5 * d @ H @ d + g @ d)

        def after(d, a=a):
            c = levels.shares(a + d, width)[0]
            r = look.predicted(model.signals(c, sweeps)) - look.measured
            return models.comm.bcast(float(np.mean(r**2))), a + d

        found = damped_step(damping, TRIES, f, step, after)
        if found is None:
            break
        gain, (f, a) = f - found[0], found
        if gain < GAIN * (f + gain) and iteration + 1 >= AT_LEAST or iteration + 1 == iterations:
            c = levels.shares(a, width)[0]
            break
        c, f, H, g, metric = around(a)
    return a, c, f


def damping(H: np.ndarray, metric: np.ndarray) -> np.ndarray:
    """What damps steps of coefficients ``(n,)``, by how far walls move, and of unknown numbers.

    Args:
        H: curvature ``(n + p, n + p)``.
        metric: ``(n, n)`` mean square of how far walls move.
    """
    n, result = len(metric), np.zeros_like(H)
    result[:n, :n] = metric * np.trace(H[:n, :n]) / np.trace(metric)
    result[:n, :n] += SINGULAR * np.trace(result[:n, :n]) / n * np.eye(n)
    result[n:, n:] = np.diag(np.diag(H[n:, n:]) + 1e-300)
    return result
