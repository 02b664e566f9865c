"""How far predicted signals are from measured ones: the one quotient rule and the one noise model.

Magnitudes count, each divided by |S(b = 0)| of the same sequence. Noise lifts small magnitudes:
what is compared with the measurement is the mean of the Rice distribution (Rice, Bell Syst. Tech.
J. 23, 282, 1944; Gudbjartsson and Patz, Magn. Reson. Med. 34, 910, 1995).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import i0e, i1e

from ..acquisition import Acquisition, Signals
from ..quantities.hardi import shells_of, spherical_harmonics
from .parameters import Unknown

NOISES = ("rician", "gaussian")
GIVEN, GUESS = "given", "a guess to begin with"
_LEAST_NOISE = 1e-7  # of normalised magnitudes: repetitions that differ by less are rounded
# of noise that is not known: its square is a misfit below which shapes are right anyway
NEGLIGIBLE = 3e-4
# directions of a shell for each coefficient of a smooth fit, at least; its highest order;
# degrees of freedom that are enough (a deviation to 9 %)
_PER_COEFFICIENT, _ORDER, _ENOUGH = 2, 8, 60


@dataclass(frozen=True)
class Scale:
    """What is known of the unit of signals over um^3 times density, one for all rows.

    Attributes:
        low, high: range.
        start, deviation: of a normal prior, of which the deviation is relative; None for none.
    """

    low: float = 0.0
    high: float = np.inf
    start: float = 1.0
    deviation: float | None = None


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
        origin: where sigma is from, in words.
        unit: where one `factor` of all predicted signals is fitted, what is known of it.
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
    origin: str = GIVEN
    unit: Scale | None = None

    def __post_init__(self):
        if self.weights is None:
            object.__setattr__(self, "weights", np.ones(len(self.measured)))

    @classmethod
    def of(cls, signals: Signals, own: bool = False, sigma: float | None = None,
           rician: bool = True, unit: Scale | None = None) -> Likelihood:
        """Of all rows.

        Args:
            signals: the measurements.
            own: divide predicted signals by their own |S(b = 0)|.
            sigma: of the noise; None: from measurements that were repeated, 0 if none were.
            rician, unit: see `Likelihood`.

        Raises:
            InputError: a sequence without b = 0.
        """
        table = signals.acquisition
        found, freedom = repeated_noise(signals) if sigma is None else (sigma, np.inf)
        origin = GIVEN if np.isinf(freedom) else f"from {freedom:.0f} repeated measurements"
        return cls(signals.normalised, signals.reference, references(table) if own else None,
                   found, freedom, rician, acquisition=table, origin=origin, unit=unit)

    def estimated(self, signals: Signals, unknown: Unknown) -> Likelihood:
        """With noise that is not known, estimated without a model where repetitions tell nothing.

        Args:
            signals: the measurements.
            unknown: its range, its prior, and what it begins with where nothing can be estimated.
        """
        sigma, freedom, origin = self.sigma, self.freedom, self.origin
        if not sigma:
            sigma, freedom = smooth_noise(signals)
            origin = f"from smooth fits of directions, {freedom:.0f} degrees of freedom"
        if not freedom:
            sigma, freedom, origin = unknown.start, np.inf, GUESS
        elif unknown.relative_deviation is not None and sigma:
            # the logarithm of an estimate has the variance 1 / (2 freedom)
            share = 2 * freedom / (2 * freedom + unknown.relative_deviation**-2)
            sigma = float(sigma**share * unknown.start ** (1 - share))
        sigma = float(np.clip(sigma, unknown.low, unknown.high))
        if sigma < max(NEGLIGIBLE, unknown.low):
            sigma, freedom = 0.0, np.inf
        return replace(self, sigma=sigma, freedom=freedom, origin=origin)

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
        result = slopes / scale[..., None]
        if self.references is not None:
            result -= (magnitude / scale**2)[:, None] * (self.references @ slopes)
        if self.unit is not None:
            result += np.outer(magnitude / self.scale, self._factor_slope(magnitude) @ slopes)
        return self._lift(magnitude / scale)[:, None] * result

    def _scale(self, magnitude: np.ndarray) -> np.ndarray:
        if self.unit is not None:
            return self.scale / self.factor(magnitude)[..., None]
        return self.scale if self.references is None else magnitude @ self.references.T

    # ---- one unit of all signals ----------------------------------------------------------------

    def factor(self, magnitude: np.ndarray) -> np.ndarray:
        """That which fits magnitudes ``(..., N)`` in um^3 to the measured ones best, ``(...)``.

        By weighted least squares, from measurements without the mean of their noise, s^2 = m^2 -
        sigma^2 (Gudbjartsson and Patz), so that it is linear.
        """
        top, bottom = self._normal(magnitude)
        return np.clip(top / bottom, self.unit.low, self.unit.high)

    def _factor_slope(self, magnitude: np.ndarray) -> np.ndarray:
        """Of `factor` by the magnitudes, ``(N,)``."""
        top, bottom = self._normal(magnitude)
        factor, p = top / bottom, magnitude / self.scale
        if not self.unit.low < factor < self.unit.high:
            return np.zeros(len(self))
        return self.weights / self.scale * (self._unlifted - 2 * factor * p) / bottom

    def _normal(self, magnitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        unit, p = self.unit, magnitude / self.scale
        prior = 0.0 if unit.deviation is None else (self.sigma / (unit.deviation * unit.start))**2
        return (p @ (self.weights * self._unlifted) + prior * unit.start,
                p**2 @ self.weights + prior)

    @cached_property
    def _unlifted(self) -> np.ndarray:
        if not self.rician:
            return self.measured
        return np.sqrt(np.maximum(self.measured**2 - self.sigma**2, 0.0))

    def _lifted(self, signal: np.ndarray) -> np.ndarray:
        return rician_mean(signal, self.sigma) if self.rician else signal

    def _lift(self, signal: np.ndarray) -> np.ndarray:
        return rician_slope(signal, self.sigma) if self.rician else np.ones_like(signal)

    # ---- densities ------------------------------------------------------------------------------

    def normalised(self, signals: np.ndarray) -> np.ndarray:
        """Normalised magnitudes of signals ``(..., N)``, without what noise does to their mean."""
        magnitude = np.abs(signals)
        return magnitude / self._scale(magnitude)

    def log_density(self, predicted: np.ndarray,
                    variance: np.ndarray | float = 0.0) -> np.ndarray:
        """Logarithm of the density of what was measured, up to a constant, ``(...)``.

        That of the Rice distribution, m / s^2 exp(-(m^2 + p^2) / 2 s^2) I0(m p / s^2), or of the
        normal one. Predicted signals that are normalised by themselves take, for each sequence,
        the factor that fits best: the measured |S(b = 0)| has noise, too.

        Args:
            predicted: `normalised` magnitudes, ``(..., N)``.
            variance: of errors of the prediction, ``(N,)``, on top of that of the noise.
        """
        variance, predicted = self.sigma**2 + variance, self.matched(predicted)
        left = -0.5 * (self.measured - predicted) ** 2 / variance
        if self.rician:  # I0 is exp of its argument times i0e
            left += np.log(i0e(self.measured * predicted / variance) / variance)
        else:
            left -= 0.5 * np.log(variance)
        return left.sum(axis=-1)

    def matched(self, predicted: np.ndarray) -> np.ndarray:
        """`normalised` magnitudes ``(..., N)`` times the factors that `log_density` gives them."""
        if self.references is None:
            return predicted
        return predicted * ((predicted * self._unlifted) @ self._together) / np.maximum(
            predicted**2 @ self._together, 1e-300)

    def slopes_of_log_density(self, matched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First derivatives by each of `matched` magnitudes, and minus the second ones, ``(N,)``.

        Their factors are held.
        """
        variance = self.sigma**2
        if not self.rician:
            return (self.measured - matched) / variance, np.full(len(self), 1 / variance)
        z = self.measured * matched / variance
        ratio = i1e(z) / i0e(z)
        over = np.divide(ratio, z, out=np.full_like(z, 0.5), where=z > 1e-6)
        return ((self.measured * ratio - matched) / variance,
                1 / variance - (self.measured / variance) ** 2 * (1 - over - ratio**2))

    def drawn(self, predicted: np.ndarray, rng: np.random.Generator) -> Likelihood:
        """Of measurements drawn from `log_density`, at `normalised` magnitudes ``(N,)``."""
        e1, e2 = self.sigma * rng.normal(size=(2, len(predicted)))
        measured = np.hypot(predicted + e1, e2) if self.rician else predicted + e1
        if self.references is not None:
            measured = measured / (self.references @ measured)
        return replace(self, measured=measured)

    @cached_property
    def _together(self) -> np.ndarray:
        """Which rows are of one sequence, ``(N, N)`` of 0 and 1."""
        which = self.acquisition.waveform_index
        return (which[:, None] == which).astype(float)

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
        if self.unit is not None:
            slope = slope + (slope * scale / self.scale @ magnitude) * self._factor_slope(magnitude)
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

    @property
    def judges(self) -> bool:
        """Whether the noise is known well enough to say that data are not explained."""
        return self.origin != GUESS and (self.sigma > 0 or self.origin != GIVEN)

    def describe(self) -> str:
        """One line for people."""
        own = ("arbitrary units, with one factor for all" if self.unit is not None else
               "arbitrary units" if self.references is not None else "um^3")
        if not self.sigma:
            less = "none is known" if self.origin == GIVEN else (
                f"unknown, less than {NEGLIGIBLE:g} of |S(b = 0)| ({self.origin})")
            return f"signals in {own}, noise: {less}"
        kind = "Rician" if self.rician else "Gaussian"
        return (f"signals in {own}, noise: {kind}, sigma {self.sigma:.3g} of |S(b = 0)| "
                f"({self.origin})")


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
    return sigma * np.sqrt(np.pi / 2) * ((1 + 2 * x) * i0e(x) + 2 * x * i1e(x))


def rician_slope(signal: np.ndarray, sigma: float) -> np.ndarray:
    """Derivative of `rician_mean` by the signal."""
    if not sigma:
        return np.ones_like(signal)
    x = signal**2 / (4 * sigma**2)
    return np.sqrt(np.pi / 2) * signal / (2 * sigma) * (i0e(x) + i1e(x))


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


def smooth_noise(signals: Signals) -> tuple[float, float]:
    """Standard deviation of normalised magnitudes from what smooth fits of their directions leave.

    Harmonics of even order are fitted to each shell. Shells of low b count first, until there are
    enough degrees of freedom: they are smoothest, and far above the noise. What is not smooth adds
    to the deviation, so it is rather too large.

    Returns:
        It, and its degrees of freedom; 0 and 0 where no shell has directions enough.
    """
    table, measured, squares, freedom = signals.acquisition, signals.normalised, 0.0, 0
    for _, rows in sorted(shells_of(signals), key=lambda shell: table.b[shell[1]].mean()):
        order = max(L for L in range(0, _ORDER + 1, 2) if L == 0 or
                    _PER_COEFFICIENT * (L + 1) * (L + 2) // 2 <= len(rows))
        if not order:  # an isotropic fit leaves the shape of the cells
            continue
        fit = np.linalg.qr(spherical_harmonics(table.directions[rows], order))[0]
        left = measured[rows] - fit @ (fit.T @ measured[rows])
        squares, freedom = squares + float(left @ left), freedom + left.size - fit.shape[1]
        if freedom >= _ENOUGH:
            break
    return (float(np.sqrt(squares / freedom)) if freedom else 0.0), float(freedom)
