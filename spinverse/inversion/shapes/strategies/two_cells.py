"""Two cells: the best pairs of ellipsoids, put in their places, then walks of the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..search import Search
from ..superposed import Pool
from .walking import walk_from

POOL = 2  # cells that several are chosen from, times the ellipsoids of one


def two_cells(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
              turn: int) -> list[Hypothesis]:
    """Two cells of about the right shapes in all places that they can have. Collective."""
    s, result = search.settings, []
    # others than the first ones
    found = several(search, ledger, pool_of(search, ledger, ledger.stream(turn + 1)), 2)
    if found:
        ledger.report("2 ellipsoids", found[0].misfit)
        ledger.calibrate(found[0])
        # the best of a few is followed before the others are looked at
        for few in np.array_split(np.arange(len(found)), s.couples):
            result += walk_from(search, [found[k] for k in few], ledger, ledger.stream(turn, 2), 1,
                                few.tolist())
            if ledger.over():
                break
    return result


def pool_of(search: Search, ledger: SearchLedger, stream: tuple) -> Pool:
    """Cells that several are chosen from."""
    thetas = search.models.design if ledger.best is None else [ledger.best.theta]
    pool = Pool(search.models, search.cells, search.first, POOL * search.settings.ellipsoids,
                stream, thetas)
    ledger.spend(pool.shapes)
    return pool


def several(search: Search, ledger: SearchLedger, pool: Pool, number: int) -> list[Hypothesis]:
    """Starts of so many cells."""
    before = pool.shapes
    found = pool.starts(number, search.settings.candidates)
    ledger.spend(pool.shapes - before)
    return found
