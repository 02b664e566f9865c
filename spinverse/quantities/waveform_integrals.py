"""Double time integrals of a gradient waveform that second-order quantities are made of.

Notation: f(t) the waveform, F(t) = int_0^t f, B = int_0^TE |F|^2 dt (so b = g^2 B). For a
waveform whose direction varies, f is a vector and each product of two f is a matrix.

Both integrals are exact for piecewise constant f. Other waveforms are replaced by their means
over small steps; what that leaves, of second order in the step, is removed by extrapolation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import exprel

from ..acquisition.waveform import Waveform

_STEPS = 512  # in all, for waveforms that are not piecewise constant; then twice as many


def memory(waveform: Waveform, rates) -> np.ndarray:
    """j(lambda) = (1/B) int_0^TE f(t) int_0^t exp(-lambda (t - s)) f(s) ds dt.

    By parts, with F(TE) = 0, it equals lambda int F(t) int_0^t exp(-lambda (t - s)) f(s) ds dt / B
    (Li, Tran and Nguyen, NMR Biomed. 33, e4353, 2020, eq. 26). It grows as lambda for slow modes
    and falls as int f^2 / (B lambda) for fast ones.

    For ``rates``, lambda >= 0, ``(K,)`` 1/ms, it is ``(K,)`` 1/ms; ``(K, 3, 3)``, symmetric, for a
    vector waveform.
    """
    rates = np.asarray(rates, dtype=float)
    value = _over_steps(waveform, lambda times, values: _memory(times, values, rates))
    value = (value + value.swapaxes(1, 2)) / (2 * waveform.b_factor)
    return value if waveform.vector else value[:, 0, 0]


def short_time_weight(waveform: Waveform) -> float | np.ndarray:
    """-(1/B) int_0^TE f(t) int_0^t (t - s)^(3/2) f(s) ds dt, ms^(1/2).

    For rectangular pulses it is (4/35) ((Delta + delta)^(7/2) + (Delta - delta)^(7/2)
    - 2 delta^(7/2) - 2 Delta^(7/2)) / (delta^2 (Delta - delta/3)), and Delta^(1/2) for short ones.
    It is ``(3, 3)`` for a vector waveform.
    """
    value = _over_steps(waveform, _three_halves) / waveform.b_factor
    return value if waveform.vector else float(value[0, 0])


def time_scale(waveform: Waveform) -> float:
    """sqrt(B / int |f|^2), ms: how fast F changes; 1/omega for f = cos(omega t)."""
    durations, values = _steps(waveform, 1 if waveform.piecewise_constant else 64)
    return float(np.sqrt(waveform.b_factor / (durations @ (values**2).sum(axis=1))))


def squared(waveform: Waveform) -> np.ndarray:
    """int F F^T dt / B of a vector waveform, ``(3, 3)``: its trace is 1."""
    return waveform.b_tensor_factor() / waveform.b_factor


def _over_steps(waveform: Waveform, function: Callable) -> np.ndarray:
    if waveform.piecewise_constant:
        return function(*_steps(waveform, 1))
    intervals = len(waveform.breakpoints) - 1
    number = max(1, -(-_STEPS // intervals))
    coarse, fine = (function(*_steps(waveform, n)) for n in (number, 2 * number))
    return (4 * fine - coarse) / 3


def _steps(waveform: Waveform, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Durations ``(n,)`` and means of f ``(n, 1)`` or ``(n, 3)`` over steps of each interval."""
    breaks = np.asarray(waveform.breakpoints, dtype=float)
    share = np.arange(number) / number
    times = np.append((breaks[:-1, None] + np.diff(breaks)[:, None] * share).ravel(), breaks[-1])
    F = np.asarray(waveform.integral(times)).reshape(len(times), -1)
    durations = np.diff(times)
    return durations, np.diff(F, axis=0) / durations[:, None]


def _memory(durations, values, rates) -> np.ndarray:
    inner = np.zeros((len(rates), values.shape[1]))
    total = np.zeros((len(rates), values.shape[1], values.shape[1]))
    for h, v in zip(durations, values, strict=True):
        x = rates * h
        kept, gained = np.exp(-x), h * exprel(-x)
        total += v[:, None] * (gained[:, None] * inner)[:, None, :]
        total += (h**2 * _phi2(x))[:, None, None] * np.outer(v, v)
        inner = kept[:, None] * inner + gained[:, None] * v
    return total


def _phi2(x):
    """(x - 1 + exp(-x)) / x^2."""
    series = 0.5 - x / 6 * (1 - x / 4 * (1 - x / 5 * (1 - x / 6 * (1 - x / 7))))
    safe = np.where(x > 0.05, x, 1.0)
    return np.where(x > 0.05, (safe + np.expm1(-safe)) / safe**2, series)


def _three_halves(durations, values) -> np.ndarray:
    """By parts twice: a sum over pairs of jumps c of f of c c' |t - t'|^(7/2) 4/35, halved."""
    times = np.concatenate([[0.0], np.cumsum(durations)])
    none = np.zeros((1, values.shape[1]))
    jumps = np.diff(np.concatenate([none, values, none]), axis=0)
    kernel = np.abs(times[:, None] - times) ** 3.5 * (4 / 35)
    return 0.5 * jumps.T @ kernel @ jumps
