"""Whether chains agree, and how many independent samples they are worth.

R-hat of split and rank-normalised chains, and the effective sample size of the same by Geyer's
initial monotone sequence: Vehtari, Gelman, Simpson, Carpenter and Burkner, Bayesian Anal. 16, 667,
2021.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm, rankdata

LARGEST, FEWEST = 1.05, 100.0  # R-hat and effective samples that are good enough


def split(values: np.ndarray) -> np.ndarray:
    """Halves of chains ``(m, n)`` as chains, rank-normalised, ``(2 m, n // 2)``."""
    half = values.shape[1] // 2
    halves = np.concatenate([values[:, :half], values[:, values.shape[1] - half:]])
    ranks = rankdata(halves).reshape(halves.shape)
    return norm.ppf((ranks - 0.375) / (halves.size + 0.25))


def r_hat(values: np.ndarray) -> float:
    """Of chains ``(m, n)``; 1 where nothing varies, nan of fewer than four samples a chain."""
    if values.shape[1] < 4:
        return np.nan
    z = split(values)
    within = z.var(axis=1, ddof=1).mean()
    if np.ptp(values) == 0:
        return 1.0
    n = z.shape[1]
    between = n * z.mean(axis=1).var(ddof=1)
    return float(np.sqrt((n - 1) / n + between / (n * within))) if within > 0 else np.inf


def effective(values: np.ndarray) -> float:
    """Effective sample size of chains ``(m, n)``; nan where nothing varies."""
    if values.shape[1] < 4 or np.ptp(values) == 0:
        return np.nan
    z = split(values)
    m, n = z.shape
    centred = z - z.mean(axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred, 2 * n, axis=1)) ** 2
    covariance = np.fft.irfft(spectrum, axis=1)[:, :n].mean(axis=0) / n
    within = covariance[0] * n / (n - 1)
    total = within * (n - 1) / n + z.mean(axis=1).var(ddof=1)
    rho = 1 - (within - covariance * n / (n - 1)) / total
    pairs = rho[: n // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs < 0)
    pairs = np.minimum.accumulate(pairs[: negative[0] if len(negative) else None])
    time = max(-1 + 2 * pairs.sum(), 1 / np.log10(max(m * n, 10)))
    return float(m * n / time)
