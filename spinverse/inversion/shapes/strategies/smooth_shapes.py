"""Smooth shapes: ellipsoids made level sets of polynomials, whose walls are sharp; then walks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ellipsoids import cost, starts
from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..search import Search
from ..surfaces import Smooth, Surfaces
from .one_cell import PER_THETA, set_unit, thetas_of
from .walking import follow, placed, run

# whitened misfit, in units of `Walk.unit`: others are not looked at any more; walks find the rest
GOOD, NEAR = 2e-3, 1e-2
HOPELESS, TRIED = 0.1, 2  # likewise: of so many fits, where so many cells cannot explain the data
FEWER = 0.3  # of the whitened misfit with one cell less, to believe in one more
# how often several cells are placed anew and fitted there: what a fit starts from has their shapes
# about right, and hardly knows where they are
PLACINGS = 2


def smooth_shapes(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
                  turn: int) -> list[Hypothesis]:
    """New starts: of one cell, and of one more as long as that explains far more. Collective."""
    found: list[Smooth] = []
    for number in range(1, search.settings.cells + 1):
        more = _fitted(search, ledger, turn, number)
        least = min((smooth.white for smooth in found), default=np.inf)
        if not more or found and min(smooth.white for smooth in more) > FEWER * least:
            break
        found = more
        if min(smooth.white for smooth in found) < NEAR:
            break
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


def _fitted(search: Search, ledger: SearchLedger, turn: int, number: int) -> list[Smooth]:
    """So many cells: the best ellipsoids, each fitted until one is good."""
    s, models, thetas = search.settings, search.models, thetas_of(search, ledger)
    tried = max(number * s.ellipsoids, PER_THETA * len(thetas) if len(thetas) > 1 else 0)
    begun = starts(models, search.cells, search.first, number, tried, s.candidates,
                   ledger.stream(turn), thetas)
    ledger.spend(cost(models, number, tried, s.candidates, len(thetas)))
    if not begun:
        return []
    ledger.report(f"{number} ellipsoid{'s' * (number > 1)}", begun[0].misfit)
    ledger.calibrate(begun[0])
    if not turn and number == 1:
        set_unit(search, begun[0], ledger)
    found = []
    for start in begun:
        found.append(_fit(search, ledger, start))
        best = min(smooth.white for smooth in found)
        if best < GOOD or len(found) == TRIED and best > HOPELESS:
            break
    return found


def _fit(search: Search, ledger: SearchLedger, start: Hypothesis) -> Smooth:
    smooth = Surfaces(search.models, search.cells, search.first).fit(start)
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
        smooth = _fit(search, ledger, Hypothesis(there, scout.theta, origin=here.origin))
    return smooth
