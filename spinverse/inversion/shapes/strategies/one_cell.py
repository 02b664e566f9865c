"""One cell: random ellipsoids with sharp walls, then walks of the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..cells import changed
from ..ellipsoids import cost, starts
from ..graded import blurred
from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..models import UNIT
from ..search import Search
from .two_cells import pool_of
from .walking import walk_from

LIKELY = 0.35  # of the misfit of one ellipsoid: where two leave less, they are followed up first
PER_THETA = 50  # ellipsoids at least for each point of unknown numbers that is tried


def one_cell(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
             turn: int) -> list[Hypothesis]:
    """New starts for a single cell. Collective."""
    s, thetas = search.settings, thetas_of(search, ledger)
    tried = max(s.ellipsoids, PER_THETA * len(thetas) if len(thetas) > 1 else 0)
    found = starts(search.models, search.cells, search.first, tried, s.candidates,
                   ledger.stream(turn), thetas)
    ledger.spend(cost(search.models, tried, s.candidates, len(thetas)))
    if not found:
        return []
    ledger.report("1 ellipsoid", found[0].misfit)
    ledger.calibrate(found[0])
    if not turn:
        set_unit(search, found[0], ledger)
        ledger.several = _two_are_likely(search, found[0], ledger)
        if ledger.several:
            return found
    return walk_from(search, found[: s.walks], ledger, ledger.stream(turn, 1), s.followed)


def thetas_of(search: Search, ledger: SearchLedger) -> list:
    """Values of unknown numbers to try: those of the best hypothesis, once there is one."""
    return search.models.design if ledger.best is None else [ledger.best.theta]


def set_unit(search: Search, start: Hypothesis, ledger: SearchLedger) -> None:
    """Of misfits, from what moves change at a first start."""
    models, cells, labels = search.models, search.cells, start.labels
    if models.large:  # from the moves themselves, which cost less there
        moves = [move for move in cells.moves(labels) if cells.allowed(changed(labels, [move]))]
        D, _ = models.effects(labels, start.theta, search.first, moves, [])
        models.unit = float(np.mean(D**2)) / UNIT
    else:
        sides = models.whole.sides[~models.whole.outer]
        models.measure_unit(blurred(sides, labels > 0, 1), start.theta, search.first)
    ledger.set_score()


def _two_are_likely(search: Search, one: Hypothesis, ledger: SearchLedger) -> bool:
    """Whether two ellipsoids leave far less than one did."""
    floor = search.models.floor
    if search.settings.cells < 2:
        return False
    two = pool_of(search, ledger, ledger.stream(0, 6)).promise(2)
    return two - floor < LIKELY * (one.misfit - floor)
