"""How far predicted signals are from measured ones: the one quotient rule and the one noise model.

Magnitudes count, each divided by |S(b = 0)| of the same sequence. Noise lifts small magnitudes:
what is compared with the measurement is the mean of the Rice distribution (Rice, Bell Syst. Tech.
J. 23, 282, 1944; Gudbjartsson and Patz, Magn. Reson. Med. 34, 910, 1995).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import ive

from ..acquisition import Acquisition, Signals

NOISES = ("rician", "gaussian")
_LEAST_NOISE = 1e-7  # of normalised magnitudes: repetitions that differ by less are rounded


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Normalised magnitudes, and how predicted signals become comparable with them.

    Attributes:
        measured: ``(N,)`` normalised magnitudes.
        scale: ``(N,)`` what |S| is divided by: the measured |S(b = 0)| of the same sequence.
        references: ``(N, N)`` or None; with it ``scale`` is ignored and |S| is divided by
            ``references @ |S|``, the predicted |S(b = 0)|: for signals in arbitrary units, which
            say nothing of the amount of magnetisation.
        sigma: standard deviation of the noise of normalised magnitudes; 0 for none.
        freedom: degrees of freedom that sigma was found with, inf where it was given.
        rician: whether magnitudes of complex noise were measured; else the noise is Gaussian.
        weights: ``(N,)``, not negative; of `value`, where their sum is divided out. Ones if None.
        acquisition: of the measurements; `select` needs it.
    """

    measured: np.ndarray
    scale: np.ndarray
    references: np.ndarray | None = None
    sigma: float = 0.0
    freedom: float = np.inf
    rician: bool = True
    weights: np.ndarray = None
    acquisition: Acquisition = None

    def __post_init__(self):
        if self.weights is None:
            object.__setattr__(self, "weights", np.ones(len(self.measured)))

    @classmethod
    def of(cls, signals: Signals, own: bool = False, sigma: float | None = None,
           rician: bool = True) -> Likelihood:
        """Of all rows.

        Args:
            signals: the measurements.
            own: divide predicted signals by their own |S(b = 0)|.
            sigma: of the noise; None: from measurements that were repeated, 0 if none were.
            rician: see `Likelihood`.

        Raises:
            InputError: a sequence without b = 0.
        """
        table = signals.acquisition
        found, freedom = repeated_noise(signals) if sigma is None else (sigma, np.inf)
        return cls(signals.normalised, signals.reference, references(table) if own else None,
                   found, freedom, rician, acquisition=table)

    def __len__(self) -> int:
        return len(self.measured)

    def select(self, rows: np.ndarray) -> Likelihood:
        """Of some rows, among which are those at b = 0 of their sequences."""
        table = self.acquisition.select(rows)
        return replace(self, acquisition=table, measured=self.measured[rows],
                       scale=self.scale[rows], weights=self.weights[rows],
                       references=None if self.references is None else references(table))

    def weighted(self, weights: np.ndarray) -> Likelihood:
        """With other weights, ``(N,)``."""
        return replace(self, weights=weights)

    # ---- predictions ----------------------------------------------------------------------------

    def expected(self, signals: np.ndarray) -> np.ndarray:
        """Expected normalised magnitudes of signals ``(..., N)``."""
        magnitude = np.abs(signals)
        return self._lifted(magnitude / self._scale(magnitude))

    def residual(self, signals: np.ndarray) -> np.ndarray:
        """Expected minus measured, ``(N,)``."""
        return self.expected(signals) - self.measured

    def slope(self, signals: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Derivatives of `residual` from those of the magnitudes, ``(N, n)``."""
        magnitude = np.abs(signals)
        scale = self._scale(magnitude)
        result = slopes / scale[:, None]
        if self.references is not None:
            result -= (magnitude / scale**2)[:, None] * (self.references @ slopes)
        return self._lift(magnitude / scale)[:, None] * result

    def _scale(self, magnitude: np.ndarray) -> np.ndarray:
        return self.scale if self.references is None else magnitude @ self.references.T

    def _lifted(self, signal: np.ndarray) -> np.ndarray:
        return rician_mean(signal, self.sigma) if self.rician else signal

    def _lift(self, signal: np.ndarray) -> np.ndarray:
        return rician_slope(signal, self.sigma) if self.rician else np.ones_like(signal)

    # ---- the misfit, as pyadjoint's tape takes it -----------------------------------------------

    def value(self, signals: np.ndarray) -> float:
        """Weighted mean square of the residual."""
        return float(self.weights @ self.residual(signals) ** 2 / self.weights.sum())

    def pull_back(self, signals: np.ndarray, adjoint: float) -> np.ndarray:
        """``(N,)`` complex w with d(adjoint value) = Re sum(conj(w) dS)."""
        magnitude = np.abs(signals)
        phase = np.divide(signals, magnitude, out=np.zeros_like(signals), where=magnitude > 0)
        scale = self._scale(magnitude)
        slope = (2 * self.weights / self.weights.sum() * self.residual(signals)
                 * self._lift(magnitude / scale) / scale)
        if self.references is not None:
            slope = slope - self.references.T @ (slope * magnitude / scale)
        return adjoint * slope * phase

    # ---- noise ----------------------------------------------------------------------------------

    @cached_property
    def floor(self) -> float:
        """Mean variance of the magnitudes: below sigma^2 where signals are small (Rice).

        From the measurements themselves: a quarter too much if there were nothing but noise.
        """
        if not self.sigma or not self.rician:
            return self.sigma**2
        signal = np.linspace(0.0, max(10.0, self.measured.max() / self.sigma), 4001)
        mean = rician_mean(signal, 1.0)
        return self.sigma**2 * float(np.mean(np.interp(self.measured / self.sigma, mean,
                                                       2 + signal**2 - mean**2)))

    def explained(self, errors: float = 1.0) -> float:
        """The mean-square residual up to which noise explains it, 0 without noise.

        Its variance and some standard errors: of the repetitions that it was found with, and of
        the residuals themselves.
        """
        return self.floor * (1 + errors * np.sqrt(2 / self.freedom + 2 / len(self)))

    def describe(self) -> str:
        """One line for people."""
        own = "arbitrary units" if self.references is not None else "um^3"
        if not self.sigma:
            return f"signals in {own}, noise: none is known"
        kind = "Rician" if self.rician else "Gaussian"
        origin = "given" if np.isinf(self.freedom) else (
            f"from {self.freedom:.0f} repeated measurements")
        return f"signals in {own}, noise: {kind}, sigma {self.sigma:.3g} of |S(b = 0)| ({origin})"


def references(acquisition: Acquisition) -> np.ndarray:
    """``(N, N)`` weights that average the |S(b = 0)| which each row is normalised by."""
    weights = np.zeros((len(acquisition.waveforms), len(acquisition)))
    for k in np.unique(acquisition.waveform_index):
        rows = acquisition.reference_rows(k)
        weights[k, rows] = 1.0 / len(rows)
    return weights[acquisition.waveform_index]


def rician_mean(signal: np.ndarray, sigma: float) -> np.ndarray:
    """Mean magnitude of a signal in complex noise of standard deviation sigma."""
    if not sigma:
        return signal
    x = signal**2 / (4 * sigma**2)
    return sigma * np.sqrt(np.pi / 2) * ((1 + 2 * x) * ive(0, x) + 2 * x * ive(1, x))


def rician_slope(signal: np.ndarray, sigma: float) -> np.ndarray:
    """Derivative of `rician_mean` by the signal."""
    if not sigma:
        return np.ones_like(signal)
    x = signal**2 / (4 * sigma**2)
    return np.sqrt(np.pi / 2) * signal / (2 * sigma) * (ive(0, x) + ive(1, x))


def repeated_noise(signals: Signals) -> tuple[float, float]:
    """Standard deviation of normalised magnitudes that were measured more than once.

    Returns:
        It, and its degrees of freedom; 0 and inf where nothing was repeated or nothing differs.
    """
    table, measured = signals.acquisition, signals.normalised
    moving = table.b > 0
    key = np.column_stack([table.waveform_index, table.b,
                           np.where(moving[:, None], table.directions, 0.0)])
    _, which = np.unique(np.round(key, 9), axis=0, return_inverse=True)
    which = which.ravel()
    count = np.bincount(which)
    mean = np.bincount(which, measured) / count
    freedom = int((count - 1).sum())
    sigma = float(np.sqrt(((measured - mean[which]) ** 2).sum() / freedom)) if freedom else 0.0
    return (sigma, float(freedom)) if sigma > _LEAST_NOISE else (0.0, np.inf)
