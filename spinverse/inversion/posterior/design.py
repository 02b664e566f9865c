"""Which measurements of a pool tell most about shapes and numbers.

To second order the signals of hypotheses of the prior are a normal distribution with covariance C.
What measurements A with noise of variance s^2 tell about which hypothesis it is, is then

    I(A) = 1/2 ln det(1 + C_AA / s^2)   nats,

an upper bound for signals that are not normal. Each further one adds less, so taking the one that
adds most, again and again, has at least a share 1 - 1/e of the best choice of so many (Krause,
Singh and Guestrin, JMLR 9, 235, 2008).
Magnitudes well above the noise are taken as normal. Whether the choice serves is then asked of
hypotheses that it was not made for: how much of the variance of cells and numbers linear regression
on their noisy signals leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...acquisition import Acquisition
from ...errors import InputError
from .result import quantities_of
from .sampler import Space

KNOTS = 400  # points of a waveform at which its slew is looked at
JUMP = 1e-3  # of the peak: gradients that change by more at once have no slew rate
RANDOM = 20  # choices at random that the choice is compared with
CHAINS = 4  # of the prior, which hypotheses come from
LEAST_VARIANCE = 1e-12  # of mesh cells that hardly ever change


@dataclass(frozen=True, eq=False)
class Design:
    """Measurements in the order in which they were chosen.

    Attributes:
        rows: ``(n,)`` of the pool.
        information: ``(n,)`` nats of the first 1, 2, ... of them.
        of_all: nats of the pool within the limits.
        at_random: ``(choices, n)`` nats of rows drawn at random.
    """

    rows: np.ndarray
    information: np.ndarray
    of_all: float
    at_random: np.ndarray


def slew_rate(acquisition: Acquisition) -> np.ndarray:
    """Largest slew rate of each row, T/m/s, ``(N,)``; inf where the gradient jumps."""
    steepest = []
    for waveform in acquisition.waveforms:
        at = np.unique(np.r_[waveform.breakpoints, np.linspace(0, waveform.echo_time, KNOTS)])
        tiny = 1e-9 * waveform.echo_time
        left, right = (np.asarray(waveform(at + shift)) for shift in (-tiny, tiny))
        jumps = np.abs(right - left).max() > JUMP * waveform.peak
        change = np.abs(left[1:] - right[:-1]) / np.diff(at)[:, *[None] * (left.ndim - 1)]
        steepest.append(np.inf if jumps else change.max() / waveform.peak)
    steep = np.array(steepest)[acquisition.waveform_index]  # 1/ms, of the strongest gradient
    strength = acquisition.gradient_strength_mT_m
    return np.where(strength > 0, steep * np.where(strength > 0, strength, 1.0), 0.0)


def allowed(acquisition: Acquisition, gradient: float = np.inf, slew: float = np.inf,
            echo_time: float = np.inf) -> np.ndarray:
    """Which rows keep to limits, ``(N,)`` bool.

    Args:
        acquisition: the pool.
        gradient: largest strength, mT/m.
        slew: largest slew rate, T/m/s.
        echo_time: longest echo time, ms.

    Raises:
        InputError: no row with a gradient does.
    """
    within = ((acquisition.gradient_strength_mT_m <= gradient)
              & (acquisition.echo_time <= echo_time))
    if np.isfinite(slew):
        within &= slew_rate(acquisition) <= slew
    if not np.any(within & (acquisition.b > 0)):
        raise InputError(f"limits: gradient {gradient:g} mT/m, slew rate {slew:g} T/m/s, echo time "
                         f"{echo_time:g} ms leave no measurement with a gradient of "
                         f"{len(acquisition)}, expected wider ones")
    return within


def choose(covariance: np.ndarray, acquisition: Acquisition, number: int, within: np.ndarray,
           seed: int = 0) -> Design:
    """The rows that add most, one after the other, with a row at b = 0 of each of their sequences.

    Args:
        covariance: ``(N, N)`` of the signals over the variance of the noise.
        acquisition: the pool.
        number: of rows.
        within: ``(N,)`` bool, rows that may be chosen.
        seed: of the choices at random.

    Raises:
        InputError: a number that is not from 2 to that of allowed rows.
    """
    if not 2 <= number <= np.count_nonzero(within):
        raise InputError(f"measurements: {number}, expected 2 to the {np.count_nonzero(within)} "
                         "within the limits")
    rows = _greedy(covariance, acquisition, number, within)
    rng = np.random.default_rng(seed)
    moving = np.flatnonzero(within & (acquisition.b > 0))
    random = []
    for _ in range(RANDOM):
        drawn = with_references(rng.permutation(moving), acquisition, number)
        random.append(gained(covariance, drawn, number))
    everything = np.flatnonzero(within)
    whole = np.linalg.slogdet(np.eye(len(everything)) + covariance[np.ix_(everything, everything)])
    return Design(rows, gained(covariance, rows, len(rows)), 0.5 * float(whole[1]),
                  np.array(random))


def gained(covariance: np.ndarray, rows: np.ndarray, number: int) -> np.ndarray:
    """Nats of the first 1, 2, ... of some rows, ``(number,)``; the last counts on if they end."""
    C = covariance[np.ix_(rows, rows)] + np.eye(len(rows))
    found = np.cumsum(np.log(np.diag(np.linalg.cholesky(C))))
    return np.r_[found, np.full(max(number - len(found), 0), found[-1])][:number]


def _greedy(covariance, acquisition, number, within) -> np.ndarray:
    K = covariance
    free, rows, known = within & (acquisition.b > 0), [], set()

    def take(row):
        nonlocal K
        rows.append(int(row))
        K = K - np.outer(K[:, row], K[row]) / (1 + K[row, row])

    while len(rows) < number and free.any():
        variance = np.where(free, np.diag(K), -np.inf)
        row = int(variance.argmax())
        free[row] = False
        sequence = acquisition.waveform_index[row]
        if sequence not in known:
            if len(rows) + 2 > number:
                free[acquisition.waveform_index == sequence] = False
                continue
            known.add(sequence)
            take(acquisition.reference_rows(sequence)[0])
        take(row)
    return np.array(rows)


def with_references(order, acquisition, number) -> np.ndarray:
    """The first rows of an order, each after the b = 0 of its sequence."""
    rows: list[int] = []
    known: set = set()
    for row in order.tolist():
        sequence = acquisition.waveform_index[row]
        more = [row] if sequence in known else [int(acquisition.reference_rows(sequence)[0]), row]
        if len(rows) + len(more) <= number:
            known.add(sequence)
            rows += more
    return np.array(rows)


def unexplained(space: Space, labels: np.ndarray, theta: np.ndarray, signals: np.ndarray,
                rows: np.ndarray, seed: int = 0) -> dict[str, float]:
    """What regression on noisy signals leaves of the variance, of hypotheses that were held out.

    The first half learns, the second is asked. Nothing is told where 1 is left.

    Args:
        space: of the hypotheses.
        labels, theta, signals: of hypotheses, ``(n, Nt)``, ``(n, P)``, ``(n, N)``.
        rows: of the measurements.
        seed: of the noise.

    Returns:
        Shares for ``mesh cells`` (the mean), and for logarithms of volume, S/V and permeability.
    """
    sigma, half = space.likelihood.sigma, len(labels) // 2
    X = signals[:, rows]
    X = X + sigma * np.random.default_rng(seed).normal(size=X.shape)
    numbers = [quantities_of(space, *each) for each in zip(labels, theta, strict=True)]
    names = ("volume", "surface_to_volume", "permeability")
    logs = np.log([[item[name] for name in names] for item in numbers])
    Y = np.hstack([labels > 0, logs])
    mean = X[:half].mean(axis=0)
    A = X - mean
    # the noise of the signals is the ridge
    weights = np.linalg.solve(A[:half].T @ A[:half] + half * sigma**2 * np.eye(len(rows)),
                              A[:half].T @ (Y[:half] - Y[:half].mean(axis=0)))
    left = Y[half:] - Y[:half].mean(axis=0) - A[half:] @ weights
    before = Y[half:].var(axis=0)
    share = np.divide(np.mean(left**2, axis=0), before, out=np.full(len(before), np.nan),
                      where=before > LEAST_VARIANCE)
    return {"mesh cells": float(np.nanmean(share[:-3])),
            **{name: float(value) for name, value in zip(names, share[-3:], strict=True)}}
