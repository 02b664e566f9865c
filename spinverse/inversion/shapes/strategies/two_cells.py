"""Two cells: the best pairs of ellipsoids, put in their places, then walks of the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..search import Search
from .starting import Several
from .walking import walk_from


def two_cells(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
              turn: int) -> list[Hypothesis]:
    """Two cells of about the right shapes in all places that they can have. Collective."""
    result: list[Hypothesis] = []
    # others than the first ones
    found = Several(search, ledger, ledger.stream(turn + 1)).starts(2)
    # the best of a few is followed before the others are looked at
    for few in np.array_split(np.arange(len(found)), search.settings.couples):
        if not len(few):
            break
        result += walk_from(search, [found[k] for k in few], ledger, ledger.stream(turn, 2), 1,
                            few.tolist())
        if ledger.over():
            break
    return result
