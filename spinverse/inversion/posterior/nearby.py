"""Moves of up to four mesh cells at once, by what each of them alone does to the signals.

Where data tell much, every move of a single mesh cell is unlikely, and so are nearly all sets of
them; shapes as likely as the present one are a few such sets away. A picture of a hypothesis finds
them: the effects e_i of all its single moves and the slopes t_k by unknown numbers, both of the
fast model at fixed numbers, and with them the log posterior to second order,

    v(s, d) = g.(E s + T d) - 1/2 |E s + T d|_h^2 + what the prior changes,

g and h the score and the information of each magnitude. v(s) is its maximum by d. All sets of up to
four moves are looked at; one is drawn with a chance of t / (1 + t), t = exp v(s): locally balanced
(Zanella, J. Am. Stat. Assoc. 115, 852, 2020), and numbers from the normal distribution that v is in
d. The fast model then decides, with the picture of the proposal for the way back (Metropolis and
Hastings), which is exact whatever pictures are like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..shapes.cells import changed
from ..shapes.models import THETA_STEP

if TYPE_CHECKING:
    from .sampler import Space, Tuned

NEAR = 14.0  # units of log posterior below the best set (or none): what is less likely is left out
PAIRS = 6000  # likeliest pairs, which sets of three and four are made of
BLOCK = 1000  # pairs whose sets of four are looked at together: 24 MB with 6000 others
LEAST = 0.05  # of 1 / sigma^2: of the information of a magnitude
STEP = 2.0  # ms, longest, for effects: 2 % off, in two thirds of the time
KEPT = 200  # hypotheses whose effects are kept, 0.5 MB each on the published grid
APART = -1e6  # of two moves of one mesh cell, for they exclude each other


@dataclass(frozen=True, eq=False)
class Picture:
    """What is near a hypothesis.

    Attributes:
        rows: of each single move (cell, label), its number.
        sets: ``(m, 4)`` numbers of moves, ascending, and ``len(rows)`` where there are fewer.
        weights: ``(m,)``.
        middle, by_move: of the numbers after a set s: ``middle + by_move @ s``.
        spread: ``(P, P)`` lower factor of their covariance; ``precise``: of its inverse.
    """

    rows: dict[tuple[int, int], int]
    sets: np.ndarray
    weights: np.ndarray
    middle: np.ndarray
    by_move: np.ndarray
    spread: np.ndarray
    precise: np.ndarray

    def drawn(self, rng: np.random.Generator) -> int:
        """The number of a set."""
        until = np.cumsum(self.weights)
        return min(int(np.searchsorted(until, rng.random() * until[-1], side="right")),
                   len(until) - 1)

    def moves(self, k: int) -> list[tuple[int, int]]:
        """Of a set."""
        every = list(self.rows)
        return [every[i] for i in self.sets[k] if i < len(every)]

    def numbers(self, k: int) -> np.ndarray:
        """Expected ones after a set, ``(P,)``."""
        chosen = self.sets[k]
        return self.middle + self.by_move[:, chosen[chosen < len(self.rows)]].sum(axis=1)

    def find(self, moves: list[tuple[int, int]]) -> int | None:
        """The number of the set of some moves, None if it is not there."""
        if not all(move in self.rows for move in moves):
            return None
        row = np.full(4, len(self.rows))
        row[: len(moves)] = sorted(self.rows[move] for move in moves)
        found = np.flatnonzero((self.sets == row).all(axis=1))
        return int(found[0]) if len(found) else None

    def log_chance(self, k: int, theta: np.ndarray) -> float:
        """Of a set with numbers ``(P,)`` after it, up to a constant."""
        off = self.precise.T @ (theta - self.numbers(k))
        return float(np.log(self.weights[k] / self.weights.sum())
                     + np.log(np.diag(self.precise)).sum() - 0.5 * off @ off)


class Nearby:
    """Proposals by pictures, and their decisions.

    Args:
        space: of hypotheses.
        tuned: likelihood of the fast model, and the numbers that effects are computed at.

    Attributes:
        solved: partitions that effects took.
    """

    def __init__(self, space: Space, tuned: Tuned):
        self.space, self.tuned, self.solved = space, tuned, 0
        self._pictures: dict[bytes, Picture] = {}

    def step(self, rng: np.random.Generator, here: tuple, L: float, climbing: bool
             ) -> tuple[tuple | None, float, float]:
        """A proposal from (labels, theta, predicted) of log-likelihood ``L``, and its decision.

        Args:
            rng: of proposal and decision.
            here, L: the hypothesis.
            climbing: take what is likelier, whatever the way back is like: not reversible.

        Returns:
            The proposal if the fast model has seen it, its log-likelihood, and its chance.
        """
        space, labels, theta = self.space, here[0], here[1]
        picture = self.picture(labels, theta, here[2])
        if not len(picture.sets):  # nothing near is as likely by far
            return None, 0.0, 0.0
        k = picture.drawn(rng)
        moves, theta_there = picture.moves(k), theta.copy()
        active = space.models.active(labels)
        theta_there[active] = picture.numbers(k) + picture.spread @ rng.normal(
            size=len(picture.middle))
        there, prior = changed(labels, moves), space.prior
        if not space.cells.allowed(there):
            return None, 0.0, 0.0
        gain = prior.log_density(there, theta_there) - prior.log_density(labels, theta)
        if gain == -np.inf:
            return None, 0.0, 0.0
        y = there, theta_there, space.predicted(there, theta_there)
        value = float(self.tuned.log_likelihood(y[2]))
        gain += value - L
        if climbing:
            return y, value, float(np.exp(min(0.0, gain)))
        back = self.picture(*y)
        way = back.find([(cell, int(labels[cell])) for cell, _ in moves])
        if way is None:
            return y, value, 0.0
        gain += back.log_chance(way, theta[active]) - picture.log_chance(k, theta_there[active])
        return y, value, float(np.exp(min(0.0, gain)))

    def picture(self, labels: np.ndarray, theta: np.ndarray, predicted: np.ndarray) -> Picture:
        """Of a hypothesis and its normalised magnitudes by the fast model, ``(N,)``."""
        key = labels.tobytes() + theta.tobytes()
        if key not in self._pictures:
            if len(self._pictures) >= KEPT:
                self._pictures.pop(next(iter(self._pictures)))
            self._pictures[key] = self._picture(labels, theta, predicted)
        return self._pictures[key]

    def _picture(self, labels: np.ndarray, theta: np.ndarray, predicted: np.ndarray) -> Picture:
        space, likelihood = self.space, self.tuned.emulator.likelihood
        moves, E, T = self._effects(labels)
        p = likelihood.matched(np.maximum(predicted + self.tuned.bias, 0.0))
        g, h = likelihood.slopes_of_log_density(p)
        h = np.maximum(h, LEAST / likelihood.sigma**2)
        single, Q = space.prior.changes(labels, moves)
        single, Q = single + E @ g, Q - (E * h) @ E.T
        # numbers: v is b.d - 1/2 d.H d with b = T g - T h E s - precision (theta - start)
        active = space.models.active(labels)
        precision, start = space.models.precision[active], space.models.start[active]
        H = (T * h) @ T.T + np.diag(precision + 12 / np.ptp(space.models.bounds[:, active],
                                                            axis=0) ** 2)
        C, b = (T * h) @ E.T, T @ g - precision * (theta[active] - start)
        inverse = np.linalg.inv(H)
        single, Q = single - C.T @ inverse @ b, Q + C.T @ inverse @ C
        single = single + 0.5 * np.diag(Q)
        cells = np.array([cell for cell, _ in moves], int)
        Q[cells[:, None] == cells] = APART
        sets, v = likely(single, Q, bool(len(H)))
        return Picture({move: k for k, move in enumerate(moves)}, sets, 1 / (1 + np.exp(-v)),
                       theta[active] + inverse @ b, -inverse @ C, np.linalg.cholesky(inverse),
                       np.linalg.cholesky(H))

    def _effects(self, labels: np.ndarray) -> tuple[list, np.ndarray, np.ndarray]:
        """All allowed moves, what they change ``(n, N)``, and slopes by active numbers ``(P, N)``.

        Of normalised magnitudes, at the reference's numbers.
        """
        space, theta = self.space, self.tuned.reference
        key, known = labels.tobytes(), self.tuned.effects
        if key in known:
            return known[key]
        if len(known) >= KEPT:
            known.pop(next(iter(known)))
        match = self.tuned.emulator.likelihood.matched
        moves = space.cells.allowed_moves(labels)

        def seen(labels, theta):
            self.solved += 1
            return match(np.maximum(space.predicted(labels, theta, STEP) + self.tuned.bias, 0.0))

        middle = seen(labels, theta)
        E = np.array([seen(changed(labels, [move]), theta) - middle for move in moves])
        T = np.array([(seen(labels, theta + THETA_STEP * unit)
                       - seen(labels, theta - THETA_STEP * unit)) / (2 * THETA_STEP)
                      for unit in np.eye(len(theta))[space.models.active(labels)]])
        known[key] = moves, E.reshape(-1, len(middle)), T.reshape(-1, len(middle))
        return known[key]


def likely(single: np.ndarray, Q: np.ndarray, none: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sets of up to four of n moves, whose sums of ``single`` and of pairs' ``Q`` are large.

    Args:
        single: ``(n,)`` of each alone.
        Q: ``(n, n)`` symmetric, of pairs beside that.
        none: whether the empty set is one.

    Returns:
        ``(m, 4)`` ascending numbers, n where there are fewer, and their values ``(m,)``.
    """
    n = len(single)
    i, j = np.triu_indices(n, 1)
    pair = single[i] + single[j] + Q[i, j]
    best = np.argsort(-pair, kind="stable")[:PAIRS]
    i, j, pair = i[best], j[best], pair[best].astype(np.float32)
    Q = Q.astype(np.float32)
    beside = Q[i] + Q[j]  # of each pair with every move
    rows = np.arange(len(i))
    beside[rows, i] = beside[rows, j] = APART
    three = pair[:, None] + single.astype(np.float32) + beside
    found = [(np.empty((1, 0), int), np.zeros(1))] * none + [
        (np.arange(n)[:, None], single), (np.column_stack([i, j]), pair)]
    limit = max(0.0, float(single.max(initial=0.0)), float(pair.max(initial=0.0)),
                float(three.max(initial=0.0))) - NEAR
    p, k = np.nonzero(three > limit)
    found.append((np.column_stack([i[p], j[p], k]), three[p, k]))
    for first in range(0, len(i), BLOCK):
        part = slice(first, first + BLOCK)
        four = beside[part][:, i] + beside[part][:, j]
        four += pair[part, None]
        four += pair
        limit = max(limit, float(four.max()) - NEAR)
        p, q = np.nonzero(four > limit)
        p, q = p[q > p + first], q[q > p + first]
        found.append((np.column_stack([i[p + first], j[p + first], i[q], j[q]]),
                      four[p, q]))
    sets = np.concatenate([np.column_stack([np.sort(each, axis=1), np.full(
        (len(each), 4 - each.shape[1]), n)]) for each, _ in found])
    v = np.concatenate([value for _, value in found]).astype(float)
    near = v > max(limit, v.max(initial=0.0) - NEAR)
    sets, first = np.unique(sets[near], axis=0, return_index=True)
    return sets, v[near][first]
