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
        references: ``(N, n)`` or None: with it ``scale`` is ignored, and |S| is divided by
            ``references @ |S|``, the predicted |S(b = 0)| of the same sequence. For signals in
            arbitrary units, which say nothing of the amount of magnetisation.
    """

    measured: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    references: np.ndarray | None = None

    def residual(self, signals: np.ndarray) -> np.ndarray:
        """Predicted minus measured normalised magnitude, ``(N,)``."""
        magnitude = np.abs(signals)
        return magnitude / self._scale(magnitude) - self.measured

    def value(self, signals: np.ndarray) -> float:
        return float(self.weights @ self.residual(signals) ** 2 / self.weights.sum())

    def pull_back(self, signals: np.ndarray, adjoint: float) -> np.ndarray:
        magnitude = np.abs(signals)
        phase = np.divide(signals, magnitude, out=np.zeros_like(signals), where=magnitude > 0)
        scale = self._scale(magnitude)
        slope = 2 * self.weights / self.weights.sum() * self.residual(signals) / scale
        if self.references is not None:
            slope = slope - self.references.T @ (slope * magnitude / scale)
        return adjoint * slope * phase

    def _scale(self, magnitude: np.ndarray) -> np.ndarray:
        return self.scale if self.references is None else self.references @ magnitude


def references(acquisition) -> np.ndarray:
    """``(N, N)`` weights that average the |S(b = 0)| which each row is normalised by."""
    weights = np.zeros((len(acquisition.waveforms), len(acquisition)))
    for k in np.unique(acquisition.waveform_index):
        rows = acquisition.reference_rows(k)
        weights[k, rows] = 1.0 / len(rows)
    return weights[acquisition.waveform_index]
