"""How far predicted signals are from measured ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class NormalisedMagnitude:
    """Weighted mean of (|S| / scale - measured)^2: the published misfit.

    Attributes:
        measured: ``(N,)`` normalised magnitudes.
        scale: ``(N,)`` what |S| is divided by: the measured |S(b = 0)| of the same sequence.
        weights: ``(N,)``, not negative; their sum is divided out.
    """

    measured: np.ndarray
    scale: np.ndarray
    weights: np.ndarray

    def residual(self, signals: np.ndarray) -> np.ndarray:
        return np.abs(signals) / self.scale - self.measured

    def value(self, signals: np.ndarray) -> float:
        return float(self.weights @ self.residual(signals) ** 2 / self.weights.sum())

    def pull_back(self, signals: np.ndarray, adjoint: float) -> np.ndarray:
        magnitude = np.abs(signals)
        phase = np.divide(signals, magnitude, out=np.zeros_like(signals), where=magnitude > 0)
        factor = 2 * self.weights / self.weights.sum() * self.residual(signals) / self.scale
        return adjoint * factor * phase
