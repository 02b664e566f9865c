"""Pieces without gradient in the modes: exp(-Lambda t), and its derivative."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def real_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Re(conj(a) b^T) of complex columns, ``(K, K)``."""
    return np.hstack([a.real, a.imag]) @ np.hstack([b.real, b.imag]).T


@dataclass
class Rest:
    """A piece without gradient: exp(-Lambda t)."""

    eigenvalues: np.ndarray
    duration: float
    _input: np.ndarray = None

    def forward(self, u, remember=False):
        self._input = u if remember else None
        return np.exp(-self.eigenvalues * self.duration)[:, None] * u

    def backward(self, adjoint, gradient):
        product = real_product(adjoint, self._input)
        gradient += product * divided_differences(self.eigenvalues, self.duration)
        return np.exp(-self.eigenvalues * self.duration)[:, None] * adjoint


def divided_differences(eigenvalues: np.ndarray, duration: float) -> np.ndarray:
    """(exp(-a t) - exp(-b t)) / (a - b) for all pairs, its limit -t exp(-a t) on the diagonal."""
    a, b = eigenvalues[:, None], eigenvalues[None, :]
    half = 0.5 * (a - b) * duration
    small = np.abs(half) < 1e-4
    sinhc = np.where(small, 1 + half**2 / 6, 0.0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        direct = (np.exp(-a * duration) - np.exp(-b * duration)) / (a - b)
    smooth = -duration * np.exp(-0.5 * (a + b) * duration) * sinhc
    return np.where(small, smooth, direct)
