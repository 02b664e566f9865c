"""Smooth shapes: ellipsoids made level sets of polynomials, whose walls are sharp; then walks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..search import Search
from ..surfaces import DEGREES, RAGGED, Smooth, Surfaces
from .starting import Several, one_ellipsoid
from .walking import follow, placed, run

# whitened misfit, in units of `Walk.unit`: others are not looked at any more; walks find the rest
GOOD, NEAR = 2e-3, 1e-2
# whitened: so many fits are enough where the best is beyond, for so many cells cannot explain the
# data, or below `NEAR`
HOPELESS, TRIED = 0.1, 2
FEWER = 0.3  # of the whitened misfit with one cell less, to believe in one more
# how often several cells are placed anew and fitted there: what a fit starts from has their shapes
# about right, and hardly knows where they are
PLACINGS = 2
MOVED = 3  # other places of one cell where it is fitted again


def smooth_shapes(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
                  turn: int) -> list[Hypothesis]:
    """New starts, of as many cells as explain the data. Collective."""
    found = _fitted(search, ledger, turn)
    if set(search.models.names) - {"wall_permeability"}:  # others make up for places
        found = [smooth if smooth.hypothesis.cells > 1 else _moved(search, ledger, smooth)
                 for smooth in found]
    result: list[Hypothesis] = []
    # what needs a number at the end of its range comes last
    found.sort(key=lambda smooth: (search.models.at_an_end(
        smooth.hypothesis.labels, smooth.hypothesis.theta), smooth.white))
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
        self._search, self._ledger, self.starts = search, ledger, starts
        self.found: list[Smooth] = []

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
    several, number = Several(search, ledger, ledger.stream(turn, 6)), 0

    def of(number: int) -> _Fits:
        return _Fits(search, ledger, several.starts(number))

    def more_than_one(white: float) -> bool:
        nonlocal number
        number = number or several.likeliest(fits.starts[0].misfit, white >= NEAR)
        return number > 1

    if ledger.several:
        number = max(2, ledger.best.cells)
        fits = of(number)
    else:
        fits = _Fits(search, ledger, one_ellipsoid(search, ledger, turn))
        fits.more(1, lambda white: white >= NEAR and more_than_one(white))
        if fits.starts and fits.least >= GOOD and more_than_one(fits.least):
            fits = of(number)
    number = max(number, 1)
    fits.more()
    while fits.found and fits.least >= NEAR and number < search.settings.cells:  # what fits tell
        further = of(number + 1)
        further.more()
        if further.least > FEWER * fits.least:
            break
        fits, number = further, number + 1
    ledger.several = number > 1
    return fits.found


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
        if ledger.score.explains(scout.here.misfit):
            return replace(smooth, hypothesis=scout.here)
        if np.array_equal(there, here.labels):
            break
        smooth = _fit(search, ledger, Hypothesis(there, scout.theta, origin=here.origin), RAGGED)
    return smooth


def _moved(search: Search, ledger: SearchLedger, smooth: Smooth) -> Smooth:
    """One cell, fitted again in places that explain more once unknown numbers have answered."""
    here, surfaces = smooth.hypothesis, Surfaces(search.models, search.cells, search.first)
    better = surfaces.elsewhere(here, search.placements.together(here.labels))[:MOVED]
    ledger.spend(surfaces.shapes)
    if better:
        ledger.report("moved", here.misfit)
    return min([smooth, *(_fit(search, ledger, there, RAGGED) for there in better)],
               key=lambda each: each.white)
