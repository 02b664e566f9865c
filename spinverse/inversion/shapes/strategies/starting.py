"""Starts: the best ellipsoids of one cell and of several, and how many cells they speak for."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..ellipsoids import cost, starts
from ..graded import blurred
from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..models import UNIT
from ..score import Score
from ..search import Search
from ..superposed import Pool

PER_THETA = 50  # ellipsoids at least for each point of unknown numbers that is tried
POOL = 2  # cells that several are chosen from, times the ellipsoids of one
# of the misfit of ellipsoids: where one more leaves less, that is believed in. Where there are two,
# they leave 0.01 to 0.13 of what one does; where there is one, 1.4 to 3.6
LIKELY = 0.35
ELLIPSOID = 9  # parameters


def one_ellipsoid(search: Search, ledger: SearchLedger, turn: int) -> list[Hypothesis]:
    """The best of one cell; the very first tell the unit of misfits. Collective."""
    s, models, thetas = search.settings, search.models, _thetas(search, ledger)
    tried = max(s.ellipsoids, PER_THETA * len(thetas) if len(thetas) > 1 else 0)
    found = starts(models, search.cells, search.first, tried, s.candidates, ledger.stream(turn),
                   thetas)
    ledger.spend(cost(models, tried, s.candidates, len(thetas)))
    if found:
        _begun(ledger, found)
        if not turn:
            _set_unit(search, found[0], ledger)
    return found


class Several:
    """Ellipsoids of several cells, solved when they are asked for. Collective.

    Args:
        search, ledger: as of all strategies.
        stream: of all that is random.
    """

    def __init__(self, search: Search, ledger: SearchLedger, stream: tuple):
        self._search, self._ledger, self._stream = search, ledger, stream
        self._starts: dict[int, list[Hypothesis]] = {}

    @cached_property
    def _pool(self) -> Pool:
        search, ledger = self._search, self._ledger
        pool = Pool(search.models, search.cells, search.first, POOL * search.settings.ellipsoids,
                    self._stream, _thetas(search, ledger))
        ledger.spend(pool.shapes)
        return pool

    def starts(self, number: int) -> list[Hypothesis]:
        """The best of so many cells."""
        if number not in self._starts:
            before = self._pool.shapes
            found = self._pool.starts(number, self._search.settings.candidates)
            self._ledger.spend(self._pool.shapes - before)
            if found:
                _begun(self._ledger, found)
            self._starts[number] = found
        return self._starts[number]

    def likeliest(self, one: float, far: bool) -> int:
        """The number of cells that ellipsoids speak for; ``one`` leaves so much.

        Where one cell is ``far`` off, what two leave is known after their evolution alone: of
        cells within others the pool has few.
        """
        few, number, score = one, 1, self._ledger.score
        while number < self._search.settings.cells:
            many = self._pool.promise(number + 1)
            if far and number == 1 and not _likely(score, few, many):
                many = min((start.misfit for start in self.starts(2)), default=np.inf)
            if not _likely(score, few, many):
                break
            few, number = many, number + 1
        return number


def _begun(ledger: SearchLedger, found: list[Hypothesis]) -> None:
    """Report starts, and calibrate the fast model at the best."""
    number = found[0].cells
    ledger.report(f"{number} ellipsoid{'s' * (number > 1)}", found[0].misfit)
    ledger.calibrate(found[0])


def _thetas(search: Search, ledger: SearchLedger) -> list:
    """Values of unknown numbers to try: those of the best hypothesis, once there is one."""
    return search.models.design if ledger.best is None else [ledger.best.theta]


def _set_unit(search: Search, start: Hypothesis, ledger: SearchLedger) -> None:
    """Of misfits, from what moves change at a first start."""
    models, cells, labels = search.models, search.cells, start.labels
    if models.large:  # from the moves themselves, which cost less there
        moves = cells.allowed_moves(labels)
        D, _ = models.effects(labels, start.theta, search.first, moves, [])
        models.unit = float(np.mean(D**2)) / UNIT
    else:
        sides = models.whole.sides[~models.whole.outer]
        models.measure_unit(blurred(sides, labels > 0, 1), start.theta, search.first)
    ledger.set_score()


def _likely(score: Score, few: float, many: float) -> bool:
    """Whether the misfits of ellipsoids speak for one more: far less is left, and with noise the
    gain is worth its parameters (Schwarz, Ann. Statist. 6, 1978)."""
    return (many - score.floor < LIKELY * (few - score.floor)
            and score.likelier(few, many) > ELLIPSOID / 2 * np.log(score.number))
