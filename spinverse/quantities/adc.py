"""ADC and kurtosis from signals over b, and whether the range of b allows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..acquisition.signals import Signals
from ..errors import InputError, warn_caller
from ..units import b_from_internal, b_to_internal
from .effective import FitWarning
from .measured import by_waveform_and_direction, positive_magnitudes

_SMALLEST_DECAY = 0.02  # of ln S over the range: less is hard to tell from noise


@dataclass(frozen=True, eq=False)
class ADCFit:
    """Fits ln S = ln S0 - b ADC + (b ADC)^2 K / 6, one for each waveform and axis, G in all.

    Attributes:
        adc: ``(G,)`` um^2/ms.
        adc_error: ``(G,)`` um^2/ms: how the ADC changes with a cubic term, or two standard
            errors if larger; nan where there are too few b-values to tell.
        kurtosis: ``(G,)`` excess kurtosis K; nan from two b-values.
        S0: ``(G,)`` fitted signal at b = 0.
        residual: ``(G,)`` root mean square of the fit of ln S.
        b_range: ``(G, 2)`` least and largest b used, s/mm^2.
        waveform_index: ``(G,)`` waveform of each fit; 0 where arrays were given.
        directions: ``(G, 3)`` axis; nan for arrays and for waveforms whose direction varies.
        valid: ``(G,)`` whether nothing was warned of.
    """

    adc: np.ndarray
    adc_error: np.ndarray
    kurtosis: np.ndarray
    S0: np.ndarray
    residual: np.ndarray
    b_range: np.ndarray
    waveform_index: np.ndarray
    directions: np.ndarray
    valid: np.ndarray

    def __len__(self) -> int:
        return len(self.adc)


def fit_adc(signals: Signals | np.ndarray, S=None, b_max: float | None = None,
            tolerance: float = 0.02, noise: float = 0.0) -> ADCFit:
    """ADC and kurtosis from ln |S|, by least squares weighted with |S|^2.

    The range of b is the widest in which a cubic term changes the ADC by no more than
    ``tolerance``, or than two standard errors of it; to check that takes four b-values.

    Args:
        signals: signals with at least two b-values along each axis; or b-values, s/mm^2.
        S: signals at the b-values, ``(n,)``, if those were given.
        b_max: largest b to use, s/mm^2; found if not given.
        tolerance: relative change of the ADC.
        noise: standard deviation of the signals in their own unit; what lies below three times
            it is left out, as magnitudes do not fall there any more.

    Raises:
        InputError: a bad argument, a signal of magnitude 0, fewer than two b-values to fit.

    Warns:
        FitWarning: the range is too wide, could not be checked, or too small for a decay; the
            signal rises with b.
    """
    for name, value, good in (("b_max", b_max, b_max is None or b_max > 0),
                              ("tolerance", tolerance, tolerance > 0),
                              ("noise", noise, noise >= 0)):
        if not good:
            raise InputError(f"{name}: {value!r}, expected a positive number")
    if isinstance(signals, Signals):
        b, magnitude = b_to_internal(signals.acquisition.b), positive_magnitudes(signals)
        groups = by_waveform_and_direction(signals)
        if not groups:
            raise InputError("signals: no row with b > 0, expected some to fit")
        pieces = [(rows, w, axis, signals.acquisition.waveforms[w].describe()
                   + f" along {np.round(axis, 3).tolist()}") for rows, w, axis in groups]
    else:
        b, magnitude = _arrays(signals, S)
        pieces = [(np.arange(len(b)), 0, np.full(3, np.nan), "the b-values")]
    limit = np.inf if b_max is None else float(b_to_internal(b_max)) * (1 + 1e-12)
    fits, remarks = [], []
    for rows, _, _, name in pieces:
        fit, remark = _fit_one(b[rows], magnitude[rows], limit, tolerance, 3 * noise, name,
                               b_max is None)
        fits.append((*fit, not remark))
        remarks += [f"{name}: {remark}"] if remark else []
    if remarks:
        more = f" (and {len(remarks) - 1} more of {len(pieces)})" if len(remarks) > 1 else ""
        warn_caller(f"fit_adc: {remarks[0]}{more}", FitWarning)
    *figures, b_range, valid = (np.array(column) for column in zip(*fits, strict=True))
    adc, error, kurtosis, S0, residual = figures
    return ADCFit(adc, error, kurtosis, S0, residual, b_range, np.array([p[1] for p in pieces]),
                  np.array([p[2] for p in pieces]), valid)


def _fit_one(b, S, limit, tolerance, floor, name, choose) -> tuple[tuple, str]:
    """(adc, error, kurtosis, S0, residual, b_range) and what is wrong with it, if anything."""
    keep = (b <= limit) & (S > floor)
    lost = int(np.count_nonzero((b <= limit) & ~keep))
    b, S = b[keep], S[keep]
    levels = np.unique(np.round(b, 12))
    if len(levels) < 2:
        raise InputError(f"signals: {len(levels)} b-value(s) to fit for {name}, expected at "
                         "least 2 below b_max and above the noise")
    remark = f"{lost} signal(s) below the noise floor were left out" if lost and choose else ""
    number = len(levels)
    while True:
        used = b <= levels[number - 1] * (1 + 1e-9)
        x, y = b[used], S[used]
        low = log_polynomial(x, y, min(2, number - 1))
        high = log_polynomial(x, y, 3) if number >= 4 else None
        error = np.nan if high is None else max(abs(high[0][1] - low[0][1]), 2 * low[1])
        settled = high is not None and abs(high[0][1] - low[0][1]) <= max(
            tolerance * abs(high[0][1]), 2 * high[1])
        if settled or number <= 4 or not choose:
            break
        number -= 1
    (c0, c1, *c2), _, residual = low
    ADC = -c1
    decay = ADC * x.max() if ADC > 0 else 0.0
    means = np.array([y[np.isclose(x, level, rtol=1e-9)].mean() for level in levels[:number]])
    if high is None:
        remark = remark or f"{number} b-values cannot tell whether the range is too wide"
    elif not settled:
        remark = (f"the range up to b = {b_from_internal(x.max()):g} s/mm^2 is too wide: a cubic "
                  f"term changes the ADC from {ADC:.4g} to {-high[0][1]:.4g} um^2/ms")
    if decay < max(_SMALLEST_DECAY, 3 * residual):
        remark = (f"ln S falls by only {decay:.2g} up to b = {b_from_internal(x.max()):g} s/mm^2: "
                  "b is too small, or the signal is noise")
    elif means[-1] > means[-2]:
        remark = (f"the signal rises up to b = {b_from_internal(x.max()):g} s/mm^2: it is at the "
                  "noise floor, or diffraction shows")
    K = 6 * c2[0] / c1**2 if c2 and c1 else np.nan
    span = (float(b_from_internal(x.min())), float(b_from_internal(x.max())))
    return (ADC, error, K, float(np.exp(c0)), residual, span), remark


def log_polynomial(b, S, degree: int) -> tuple[np.ndarray, float, float]:
    """Coefficients of ln S in b, standard error of the linear one, rms residual."""
    scale = b.max()
    design = np.vander(b / scale, degree + 1, increasing=True)
    weight = S / S.max()
    y = np.log(S)
    c, *_ = np.linalg.lstsq(design * weight[:, None], y * weight, rcond=None)
    difference = y - design @ c
    freedom = len(b) - degree - 1
    error = 0.0
    if freedom > 0:
        variance = float(((weight * difference) ** 2).sum()) / freedom
        inverse = np.linalg.pinv((design * weight[:, None]).T @ (design * weight[:, None]))
        error = float(np.sqrt(variance * inverse[1, 1])) / scale
    return c / scale ** np.arange(degree + 1), error, float(np.sqrt(np.mean(difference**2)))


def _arrays(b, S) -> tuple[np.ndarray, np.ndarray]:
    try:
        b, S = np.asarray(b, dtype=float), np.abs(np.asarray(S, dtype=complex))
    except (TypeError, ValueError):
        raise InputError("signals: expected Signals, or b-values and as many signals") from None
    if b.ndim != 1 or S.shape != b.shape:
        raise InputError(f"signals: b-values of shape {b.shape} and signals of shape {S.shape}, "
                         "expected two lists of equal length")
    if not (np.isfinite(b) & (b >= 0)).all() or not (np.isfinite(S) & (S > 0)).all():
        raise InputError("signals: expected finite b-values >= 0 in s/mm^2 and signals not 0")
    return b_to_internal(b), S
