"""Two cells: random pairs of ellipsoids, put in their places, then walks of the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ellipsoids import cost, starts
from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..search import Search
from .walking import walk_from


def two_cells(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
              turn: int) -> list[Hypothesis]:
    """Two cells of about the right shapes in all places that they can have. Collective."""
    s, result = search.settings, []
    theta = search.models.start if ledger.best is None else ledger.best.theta
    # others than the first ones
    found = pairs(search, theta, ledger, turn + 1, 2 * s.ellipsoids, s.pairs)
    if found:
        ledger.calibrate(found[0])
        # the best of a few is followed before the others are looked at
        for few in np.array_split(np.arange(len(found)), s.couples):
            result += walk_from(search, [found[k] for k in few], ledger, ledger.stream(turn, 2), 1,
                                few.tolist())
            if ledger.over():
                break
    return result


def pairs(search: Search, theta: np.ndarray, ledger: SearchLedger, number: int, tried: int,
          keep: int) -> list[Hypothesis]:
    """The best distinct pairs of ellipsoids. Collective."""
    found = starts(search.models, search.cells, search.first, 2, tried, keep,
                   ledger.stream(number), [theta])
    ledger.spend(cost(search.models, 2, tried, keep))
    if found:
        ledger.report("2 ellipsoids", found[0].misfit)
    return found
