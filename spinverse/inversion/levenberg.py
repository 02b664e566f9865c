"""Damped Gauss-Newton steps within bounds: the one loop, and the one step, of all that use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from mpi4py import MPI

_SHORTEST = 1e-6  # of a Newton step, where the search along its projection gives up
_SAME = 1e-12  # of the value: a gain below is rounding


class Quadratic(Protocol):
    """A convex quadratic function of the entries that this rank owns. Methods are collective."""

    def value(self, d: np.ndarray) -> float:
        """At a step d, the same on every rank."""

    def slope(self, d: np.ndarray) -> np.ndarray:
        """Its gradient there."""

    def newton(self, d: np.ndarray, free: np.ndarray) -> np.ndarray:
        """The step from d to its minimum over the ``free`` entries (bool), zero elsewhere."""


@dataclass(frozen=True, eq=False)
class Dense:
    """d H d / 2 + g d, the same on every rank."""

    H: np.ndarray
    g: np.ndarray

    def value(self, d: np.ndarray) -> float:
        return float(0.5 * d @ self.H @ d + self.g @ d)

    def slope(self, d: np.ndarray) -> np.ndarray:
        return self.H @ d + self.g

    def newton(self, d: np.ndarray, free: np.ndarray) -> np.ndarray:
        step, where = np.zeros_like(d), np.flatnonzero(free)
        step[where] = -np.linalg.solve(self.H[np.ix_(where, where)], self.slope(d)[where])
        return step


def bounded_minimum(quadratic: Quadratic, lower: np.ndarray, upper: np.ndarray,
                    comm: MPI.Comm = MPI.COMM_SELF, rounds: int = 30) -> np.ndarray:
    """Minimise within bounds by projected Newton steps (Bertsekas 1982). Collective over ``comm``.

    Newton steps in the entries that are not held at a bound, each followed by a search along its
    projection.

    Args:
        quadratic: the function.
        lower, upper: ``(n,)`` of this rank's entries; 0 lies between them.
        comm: of those who hold a part of the entries.
        rounds: at most so many Newton steps.
    """
    d, held = np.zeros(len(lower)), None
    best = quadratic.value(d)
    for _ in range(rounds):
        slope, before = quadratic.slope(d), held
        held = ((d <= lower) & (slope >= 0)) | ((d >= upper) & (slope <= 0))
        done = before is not None and np.array_equal(held, before)
        if comm.allreduce(done or held.all(), op=MPI.LAND):
            break
        step, length, inside = quadratic.newton(d, ~held), 1.0, False
        while length > _SHORTEST:
            trial = np.clip(d + length * step, lower, upper)
            reached = quadratic.value(trial)
            if reached < best:
                inside = np.array_equal(trial, d + step)
                break
            length /= 2
        else:
            break
        gain, best, d = best - reached, reached, trial
        if not comm.allreduce(inside, op=MPI.LAND):
            held = None  # entries have met a bound: the same ones are not done
        if gain <= _SAME * abs(best):
            break
    return d


@dataclass
class Damping:
    """How much steps are damped (Nielsen 1999, IMM-REP-1999-05).

    Attributes:
        mu: at present, in a unit of the caller's.
        least: never less.
        growth: of the next refusal.
    """

    mu: float
    least: float = 1e-12
    growth: float = 2.0

    def refused(self) -> None:
        self.mu, self.growth = self.mu * self.growth, 2 * self.growth

    def taken(self, quality: float) -> None:
        """``quality``: the fall of the loss over what the undamped model promised."""
        factor = max(0.1, 1 - (2 * min(quality, 1.0) - 1) ** 3)
        self.mu, self.growth = max(self.least, self.mu * factor), 2.0


def damped_step[There](damping: Damping, tries: int, loss: float,
                       step: Callable[[float], tuple[np.ndarray, float]],
                       at: Callable[[np.ndarray], tuple[float, There]],
                       ) -> tuple[float, There] | None:
    """The first step of growing damping that lowers the loss; None if none does.

    Args:
        damping: is changed.
        tries: steps that may be refused.
        loss: at present.
        step: makes one for a damping, with the fall that it promises; not positive: refused.
        at: the loss after a step, and whatever else is wanted of there.
    """
    for _ in range(tries):
        d, promised = step(damping.mu)
        if promised > 0:
            reached, there = at(d)
            if reached < loss:
                damping.taken((loss - reached) / promised)
                return reached, there
        damping.refused()
    return None
