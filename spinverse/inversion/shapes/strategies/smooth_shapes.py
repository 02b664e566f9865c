"""Smooth shapes: ellipsoids made level sets of polynomials, whose walls are sharp; then walks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ellipsoids import cost, starts
from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..score import Score
from ..search import Search
from ..surfaces import DEGREES, RAGGED, Smooth, Surfaces
from .one_cell import PER_THETA, set_unit, thetas_of
from .walking import follow, placed, run

# whitened misfit, in units of `Walk.unit`: others are not looked at any more; walks find the rest
GOOD, NEAR = 2e-3, 1e-2
LIKELY = 0.35  # of the misfit of ellipsoids: where one more leaves less, that is looked at first
ELLIPSOID = 9  # parameters
# whitened: so many fits are enough where the best is beyond, for so many cells cannot explain the
# data, or below `NEAR`
HOPELESS, TRIED = 0.1, 2
FEWER = 0.3  # of the whitened misfit with one cell less, to believe in one more
# how often several cells are placed anew and fitted there: what a fit starts from has their shapes
# about right, and hardly knows where they are
PLACINGS = 2


def smooth_shapes(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
                  turn: int) -> list[Hypothesis]:
    """New starts, of as many cells as explain the data. Collective."""
    found = _fitted(search, ledger, turn)
    result: list[Hypothesis] = []
    found.sort(key=lambda smooth: smooth.white)
    for k, smooth in enumerate(found[: search.settings.walks]):
        if smooth.hypothesis.cells > 1:
            smooth = _elsewhere(search, ledger, ledger.stream(turn, 5, k), smooth)
        walk = search.scout(ledger.stream(turn, 4, k))
        walk.begin(smooth.hypothesis.labels, smooth.hypothesis.theta)
        run(walk, search.settings.steps, ledger)
        result.append(ledger.take(walk))
        if not ledger.over():
            result += follow(search, walk, ledger)
        if ledger.over():
            break
    return result


class _Fits:
    """Of so many cells: the best ellipsoids, of which the first ones are fitted."""

    def __init__(self, search: Search, ledger: SearchLedger, turn: int, number: int):
        s, models, thetas = search.settings, search.models, thetas_of(search, ledger)
        tried = max(number * s.ellipsoids, PER_THETA * len(thetas) if len(thetas) > 1 else 0)
        self._search, self._ledger, self.found = search, ledger, list[Smooth]()
        self.starts = starts(models, search.cells, search.first, number, tried, s.candidates,
                             ledger.stream(turn), thetas)
        ledger.spend(cost(models, number, tried, s.candidates, len(thetas)))
        if self.starts:
            ledger.report(f"{number} ellipsoid{'s' * (number > 1)}", self.starts[0].misfit)
            ledger.calibrate(self.starts[0])
            if not turn and number == 1:
                set_unit(search, self.starts[0], ledger)

    @property
    def least(self) -> float:
        """Whitened misfit of the best fit."""
        return min((smooth.white for smooth in self.found), default=np.inf)

    def more(self, number: int | None = None) -> None:
        """Fit so many of them in all, or all, until one is good."""
        for start in self.starts[len(self.found) : number]:
            if self.least < GOOD or len(self.found) == TRIED and not (
                    NEAR < self.least < HOPELESS):
                return
            self.found.append(_fit(self._search, self._ledger, start))


def _fitted(search: Search, ledger: SearchLedger, turn: int) -> list[Smooth]:
    """Of one cell, and of one more as long as that explains far more."""
    most, number = search.settings.cells, 1
    fits = [_Fits(search, ledger, turn, 1)]
    if not fits[0].starts:
        return []

    def one_more() -> _Fits:
        if len(fits) == number:
            fits.append(_Fits(search, ledger, turn, number + 1))
        return fits[number]

    fits[0].more(1)
    while number < most and fits[-1].least >= NEAR:  # what ellipsoids tell
        few, many = fits[-1].starts[0].misfit, one_more()
        if not many.starts or not _likely(ledger.score, few, many.starts[0].misfit):
            break
        many.more(1)
        number += 1
    fits[number - 1].more()
    while number < most and fits[number - 1].least >= NEAR:  # what fits tell
        many = one_more()
        many.more()
        if many.least > FEWER * fits[number - 1].least:
            break
        number += 1
    return fits[number - 1].found


def _likely(score: Score, few: float, many: float) -> bool:
    """Whether the misfits of ellipsoids speak for one more: far less is left, and with noise the
    gain is worth its parameters (Schwarz, Ann. Statist. 6, 1978)."""
    return (many - score.floor < LIKELY * (few - score.floor)
            and score.likelier(few, many) > ELLIPSOID / 2 * np.log(score.number))


def _fit(search: Search, ledger: SearchLedger, start: Hypothesis,
         degrees: Sequence[tuple[int, int]] = DEGREES) -> Smooth:
    smooth = Surfaces(search.models, search.cells, search.first).fit(start, degrees)
    ledger.spend(smooth.shapes)
    ledger.report("smooth", smooth.hypothesis.misfit)
    return smooth


def _elsewhere(search: Search, ledger: SearchLedger, seed: tuple, smooth: Smooth) -> Smooth:
    """Several cells in the places that explain most, fitted again there."""
    for turn in range(PLACINGS):
        here, scout = smooth.hypothesis, search.scout((*seed, turn))
        scout.begin(here.labels, here.theta)
        there = placed(search, scout, ledger)
        if np.array_equal(there, here.labels):
            break
        smooth = _fit(search, ledger, Hypothesis(there, scout.theta, origin=here.origin), RAGGED)
    return smooth
