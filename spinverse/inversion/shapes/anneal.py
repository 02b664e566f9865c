"""Annealing of sets of moves on a surrogate, without rejections."""

from __future__ import annotations

import numpy as np

STEPS = 4000  # of a chain: enough for sets of ten moves to come and go several times
MOST, SHARE = 16, 0.08  # moves at a time, at least, and of all: beyond, effects add up no more


def anneal(r: np.ndarray, D: np.ndarray, parents: list, rivals: list, interactions: dict,
           rng: np.random.Generator, hot: float, cold: float) -> dict[tuple, float]:
    """Sets of moves with a small |r + their effects|^2, by a chain without rejections.

    Args:
        r: ``(N,)``.
        D: ``(n, N)`` effects of single moves.
        parents, rivals, interactions: see `Surrogate`.
        rng: of the chain.
        hot, cold: temperatures at its ends.

    Returns:
        Mean square by set, for the sets of two and more that were met.
    """
    n, N = D.shape
    E, R, on, sign = D.copy(), r.copy(), np.zeros(n, bool), np.ones(n)
    square = (E**2).sum(axis=1)
    needs = np.zeros((n, n), bool)
    for k, mine in enumerate(parents):
        if mine is not None:
            needs[k, list(mine)] = True
    deep, most = needs.any(axis=1), max(MOST, int(SHARE * n))
    group_of = np.full(n, -1)
    for g, group in enumerate(rivals):
        group_of[group] = g
    taken = np.zeros(len(rivals) + 1, bool)  # the last one, of no group, stays free
    pool: dict[tuple, float] = {}
    value, last = float(R @ R), -1
    temperature = hot * (cold / hot) ** (np.arange(STEPS) / STEPS)
    draw = rng.random(STEPS)
    for step in range(STEPS):
        score = square + 2 * sign * (E @ R)
        if deep.any():
            score[deep & ~on & ~(needs & on).any(axis=1)] = np.inf
            for k in np.flatnonzero(deep & on):
                support = np.flatnonzero(needs[k] & on)
                if len(support) == 1:
                    score[support[0]] = np.inf
        score[~on & taken[group_of]] = np.inf
        if on.sum() >= most:
            score[~on] = np.inf
        if last >= 0:
            score[last] = np.inf
        low = score.min()
        if not np.isfinite(low):
            break
        chance = np.cumsum(np.exp(-(score - low) / temperature[step]))
        k = min(int(np.searchsorted(chance, draw[step] * chance[-1])), n - 1)
        R, value = R + sign[k] * E[k], value + score[k]
        on[k] ^= True
        direction = 1.0 if on[k] else -1.0
        sign[k] = -direction
        if group_of[k] >= 0:
            taken[group_of[k]] = on[k]
        if k in interactions:
            others, V = interactions[k]
            E[others] += direction * V
            square[others] = (E[others] ** 2).sum(axis=1)
        last = k
        if on.sum() > 1:
            pool[tuple(np.flatnonzero(on).tolist())] = float(R @ R) / N
    return pool
