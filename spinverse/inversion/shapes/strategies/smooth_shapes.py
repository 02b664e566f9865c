"""Smooth shapes: ellipsoids made level sets of polynomials, whose walls are sharp; then walks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from ..ellipsoids import cost, starts
from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..score import Score
from ..search import Search
from ..superposed import Pool
from ..surfaces import DEGREES, RAGGED, Smooth, Surfaces
from .one_cell import PER_THETA, set_unit, thetas_of
from .two_cells import pool_of, several
from .walking import follow, placed, run

# whitened misfit, in units of `Walk.unit`: others are not looked at any more; walks find the rest
GOOD, NEAR = 2e-3, 1e-2
# of the misfit of ellipsoids: where one more leaves less, that is believed in. Where there are two,
# they leave 0.01 to 0.13 of what one does; where there is one, 1.4 to 3.6
LIKELY = 0.35
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

    def __init__(self, search: Search, ledger: SearchLedger, starts: list[Hypothesis]):
        self._search, self._ledger, self.found = search, ledger, list[Smooth]()
        self.starts = starts
        if starts:
            number = starts[0].cells
            ledger.report(f"{number} ellipsoid{'s' * (number > 1)}", starts[0].misfit)
            ledger.calibrate(starts[0])

    @property
    def least(self) -> float:
        """Whitened misfit of the best fit."""
        return min((smooth.white for smooth in self.found), default=np.inf)

    def more(self, number: int | None = None,
             enough: Callable[[float], bool] = lambda white: False) -> None:
        """Fit so many of them in all, or all, until one is good."""
        for start in self.starts[len(self.found) : number]:
            if self.least < GOOD or len(self.found) == TRIED and not (
                    NEAR < self.least < HOPELESS):
                return
            self.found.append(_fit(self._search, self._ledger, start, enough=enough))


def _fitted(search: Search, ledger: SearchLedger, turn: int) -> list[Smooth]:
    """Of one cell where that comes near, or of as many as explain far more."""
    most, pool = search.settings.cells, _pool(search, ledger, turn)

    def of(number: int) -> _Fits:
        return _Fits(search, ledger, several(search, ledger, pool(), number))

    if ledger.several:
        number = max(2, ledger.best.cells)
        fits = of(number)
    else:
        fits = _one(search, ledger, turn)
        if not fits.starts:
            return []
        one = fits.starts[0].misfit
        number_of = cache(lambda far: _likeliest(search, ledger, pool, one, far))
        fits.more(1, lambda white: white >= NEAR and number_of(True) > 1)
        number = number_of(fits.least >= NEAR) if fits.least >= GOOD else 1
        if number > 1:
            fits = of(number)
    fits.more()
    while fits.found and fits.least >= NEAR and number < most:  # what fits tell
        further = of(number + 1)
        further.more()
        if further.least > FEWER * fits.least:
            break
        fits, number = further, number + 1
    ledger.several = number > 1
    return fits.found


def _pool(search: Search, ledger: SearchLedger, turn: int) -> Callable[[], Pool]:
    """Cells that several are chosen from, solved when they are asked for."""
    return cache(lambda: pool_of(search, ledger, ledger.stream(turn, 6)))


def _likeliest(search: Search, ledger: SearchLedger, pool: Callable[[], Pool], one: float,
               far: bool) -> int:
    """The number of cells that ellipsoids speak for; ``one`` leaves so much.

    Where one cell is ``far`` off, what two leave is known after their evolution alone: of cells
    within others the pool has few.
    """
    few, number = one, 1
    while number < search.settings.cells:
        many = pool().promise(number + 1)
        if far and number == 1 and not _likely(ledger.score, few, many):
            found = several(search, ledger, pool(), 2)
            many = found[0].misfit if found else np.inf
        if not _likely(ledger.score, few, many):
            break
        few, number = many, number + 1
    return number


def _one(search: Search, ledger: SearchLedger, turn: int) -> _Fits:
    s, models, thetas = search.settings, search.models, thetas_of(search, ledger)
    tried = max(s.ellipsoids, PER_THETA * len(thetas) if len(thetas) > 1 else 0)
    found = starts(models, search.cells, search.first, tried, s.candidates, ledger.stream(turn),
                   thetas)
    ledger.spend(cost(models, tried, s.candidates, len(thetas)))
    fits = _Fits(search, ledger, found)
    if found and not turn:
        set_unit(search, found[0], ledger)
    return fits


def _likely(score: Score, few: float, many: float) -> bool:
    """Whether the misfits of ellipsoids speak for one more: far less is left, and with noise the
    gain is worth its parameters (Schwarz, Ann. Statist. 6, 1978)."""
    return (many - score.floor < LIKELY * (few - score.floor)
            and score.likelier(few, many) > ELLIPSOID / 2 * np.log(score.number))


def _fit(search: Search, ledger: SearchLedger, start: Hypothesis,
         degrees: Sequence[tuple[int, int]] = DEGREES,
         enough: Callable[[float], bool] = lambda white: False) -> Smooth:
    smooth = Surfaces(search.models, search.cells, search.first).fit(start, degrees, enough)
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
