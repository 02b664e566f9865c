"""Apparent exchange rate from filter-exchange signals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from ..acquisition.signals import Signals
from ..acquisition.stored import FEXI
from ..errors import InputError, warn_caller
from ..units import b_to_internal
from .adc import log_polynomial
from .effective import FitWarning
from .measured import positive_magnitudes, same_axis

_SAME_B = 1e-6  # relative: filters that are one
_SHALLOWEST, _STEEPEST = 1e-3, 20.0  # AXR tm: of the longest, and of the shortest difference
_TRIED = 200  # rates in between, for a start
_WEAKEST = 1e-3  # filter efficiency below which nothing is said of exchange
_FREE = 3  # numbers that are fitted


@dataclass(frozen=True, eq=False)
class AXRFit:
    """Fits ADC'(tm) = ADC_eq (1 - sigma exp(-AXR tm)), one for each filter and axis, G in all.

    Attributes:
        axr: ``(G,)`` apparent exchange rate, 1/ms; nan where the filter has no effect.
        axr_error: ``(G,)`` 1/ms, two standard errors; nan where no ADC is left to tell.
        sigma: ``(G,)`` filter efficiency.
        adc_equilibrium: ``(G,)`` um^2/ms.
        residual: ``(G,)`` root mean square of the fit of ADC', um^2/ms.
        filter_b: ``(G,)`` s/mm^2.
        directions: ``(G, 3)`` axis.
        mixing_times: for each fit ``(M,)`` ms.
        adc: for each fit ``(M,)`` ADC' after the filter, um^2/ms.
        valid: ``(G,)`` whether nothing was warned of.
    """

    axr: np.ndarray
    axr_error: np.ndarray
    sigma: np.ndarray
    adc_equilibrium: np.ndarray
    residual: np.ndarray
    filter_b: np.ndarray
    directions: np.ndarray
    mixing_times: tuple[np.ndarray, ...]
    adc: tuple[np.ndarray, ...]
    valid: np.ndarray

    def __len__(self) -> int:
        return len(self.axr)


def fit_axr(signals: Signals, b_max: float | None = None) -> AXRFit:
    """Apparent exchange rate (Lasic et al., Magn. Reson. Med. 66 (2011) 356, equation 5).

    ADC'(tm) is the slope of ln |S| over b of the detection after a filter and a mixing time:
    linear of two b-values, else with a term of second order. ADC_eq is fitted to it and to the
    slopes without filter. Of pools that exchange with one rate, and equal T1 and T2, the slope at
    b = 0 relaxes with exactly that rate, whatever the filter and exchange during pulses are: with
    several b-values the fit is closest to it.

    Args:
        signals: of `Acquisition.fexi`: at least two mixing times after a filter, with at least two
            b-values of the detection each; or three without any row of filter_b = 0.
        b_max: largest b of the detection to use, s/mm^2; all if not given.

    Raises:
        InputError: no or too few such rows, waveforms of another detection among them, a signal of
            magnitude 0.

    Warns:
        FitWarning: a filter has no effect, or the mixing times do not determine the rate.
    """
    if b_max is not None and not b_max > 0:
        raise InputError(f"b_max: {b_max!r}, expected a positive number")
    table = signals.acquisition
    fexi = [w for w in table.waveforms if isinstance(w, FEXI)]
    if not fexi:
        raise InputError("signals: no row of filter-exchange imaging, expected some "
                         "(Acquisition.fexi)")
    for w in fexi:
        if _blocks(w) != _blocks(fexi[0]):
            raise InputError(f"signals: {w.describe()} beside {fexi[0].describe()}, expected "
                             "pulses of the same timing (select rows)")
    rows = np.flatnonzero([isinstance(table.waveforms[k], FEXI) for k in table.waveform_index])
    share = np.array([getattr(w, "filter_share", np.nan) for w in table.waveforms])
    share, b = share[table.waveform_index[rows]], table.b[rows]
    time = np.array([getattr(w, "mixing_time", np.nan) for w in table.waveforms])[
        table.waveform_index[rows]]
    first, second, magnitude = b * share, b * (1 - share), positive_magnitudes(signals)[rows]
    # without gradient the direction is free: such rows belong to all axes
    axis = np.full(len(rows), -1)
    axis[b > 0] = same_axis(table.directions[rows[b > 0]])
    filters = _distinct(first)
    fits, remarks = [], []
    for number in range(axis.max() + 1):
        mine = (axis == number) | (axis < 0)
        direction = table.directions[rows[np.flatnonzero(axis == number)[0]]]
        _, without = _slopes(time, second, magnitude, mine & (filters == 0.0), b_max)
        for level in np.unique(filters[mine & (filters > 0.0)]):
            name = f"filter_b {level:g} s/mm^2 along {np.round(direction, 3).tolist()}"
            times, adc = _slopes(time, second, magnitude, mine & (filters == level), b_max)
            if len(times) < 2 or len(times) + len(without) < _FREE:
                raise InputError(f"signals: {len(times)} mixing time(s) of at least two b-values "
                                 f"of the detection for {name}, expected at least 2, and "
                                 f"{_FREE} without rows of filter_b = 0")
            *fit, remark = _fitted(times, adc, without)
            fits.append((*fit, level, direction, times, adc, not remark))
            remarks += [f"{name}: {remark}"] if remark else []
    if not fits:
        raise InputError("signals: no row with filter_b > 0, expected some")
    if remarks:
        more = f" (and {len(remarks) - 1} more of {len(fits)})" if len(remarks) > 1 else ""
        warn_caller(f"fit_axr: {remarks[0]}{more}", FitWarning)
    columns = list(zip(*fits, strict=True))
    axr, error, sigma, level, residual, filter_b, directions, valid = (
        np.array(columns[k]) for k in (0, 1, 2, 3, 4, 5, 6, 9))
    return AXRFit(axr, error, sigma, level, residual, filter_b, directions, tuple(columns[7]),
                  tuple(columns[8]), valid)


def _blocks(waveform: FEXI) -> tuple:
    """All of the timing but the mixing time, ms."""
    rest = waveform.echo_time - waveform.filter_echo_time - waveform.mixing_time  # type: ignore[operator]
    return (waveform.delta, waveform.Delta, waveform.filter_delta, waveform.filter_Delta,
            waveform.filter_echo_time, round(rest, 9))


def _distinct(b: np.ndarray) -> np.ndarray:
    """b with values that differ by rounding made one."""
    result = b.copy()
    for k, value in enumerate(b):
        near = np.flatnonzero(np.abs(b[:k] - value) <= _SAME_B * b.max())
        if len(near):
            result[k] = result[near[0]]
    return np.where(result <= _SAME_B * b.max(), 0.0, result)


def _slopes(time, b, S, rows: np.ndarray, b_max: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Mixing times with two b-values or more, and the slope of -ln S at each, um^2/ms."""
    if b_max is not None:
        rows = rows & (b <= b_max * (1 + _SAME_B))
    times, slopes = [], []
    for value in np.unique(time[rows]):
        these = rows & (time == value)
        levels = np.unique(_distinct(b[these])) if b[these].any() else np.zeros(1)
        if len(levels) < 2:
            continue
        coefficients, *_ = log_polynomial(b_to_internal(b[these]), S[these],
                                          min(2, len(levels) - 1))
        times.append(value)
        slopes.append(-coefficients[1])
    return np.array(times), np.array(slopes)


def _fitted(times: np.ndarray, adc: np.ndarray, without: np.ndarray) -> tuple:
    """AXR, its error, sigma, ADC_eq, residual, and what is wrong with them, if anything.

    For a rate the rest is linear least squares; the rate is looked for on a logarithmic scale,
    beside none at all.
    """
    target = np.concatenate([adc, without])

    def design(rate: float) -> np.ndarray:
        return np.column_stack([np.ones(len(target)), np.concatenate(
            [-np.exp(-rate * times), np.zeros(len(without))])])

    def solved(rate: float) -> tuple[np.ndarray, np.ndarray]:
        c, *_ = np.linalg.lstsq(design(rate), target, rcond=None)
        return c, target - design(rate) @ c

    def misfit(logarithm: float) -> float:
        return float(np.sum(solved(np.exp(logarithm))[1] ** 2))

    span, nearest = np.ptp(times), np.min(np.diff(times))
    grid = np.linspace(np.log(_SHALLOWEST / span), np.log(_STEEPEST / nearest), _TRIED)
    best = int(np.argmin([misfit(g) for g in grid]))
    found = minimize_scalar(misfit, method="bounded", options={"xatol": 1e-12}, bounds=(
        grid[max(best - 1, 0)], grid[min(best + 1, _TRIED - 1)]))
    rate = float(np.exp(found.x))
    if len(without) and misfit(-np.inf) <= found.fun:
        rate = 0.0
    (level, depth), rest = solved(rate)
    sigma = depth / level
    slope = np.concatenate([depth * times * np.exp(-rate * times), np.zeros(len(without))])
    full, freedom = np.column_stack([design(rate), slope]), len(target) - _FREE
    error = np.nan
    if freedom > 0 and np.linalg.matrix_rank(full) == _FREE:
        inverse = np.linalg.inv(full.T @ full)
        error = 2 * float(np.sqrt(inverse[2, 2] * np.sum(rest**2) / freedom))
    residual = float(np.sqrt(np.mean(rest**2)))
    if abs(sigma) < max(_WEAKEST, residual / level):
        return np.nan, np.nan, sigma, level, residual, (
            f"a filter efficiency of {sigma:.2g}: the filter changes nothing that would exchange")
    remark = ""
    if best in (0, _TRIED - 1) and rate > 0.0 and not (len(without) and best == 0):
        remark = (f"mixing times of {times[0]:g} to {times[-1]:g} ms do not determine an exchange "
                  f"rate of {rate:.3g} 1/ms")
    return rate, error, sigma, level, residual, remark
