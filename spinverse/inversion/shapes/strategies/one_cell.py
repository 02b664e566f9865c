"""One cell: random ellipsoids with sharp walls, then walks of the best."""

from __future__ import annotations

from collections.abc import Sequence

from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..search import Search
from .starting import Several, one_ellipsoid
from .walking import walk_from


def one_cell(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
             turn: int) -> list[Hypothesis]:
    """New starts for a single cell; the first tell whether two are likely. Collective."""
    s, found = search.settings, one_ellipsoid(search, ledger, turn)
    if found and not turn:
        several = Several(search, ledger, ledger.stream(0, 6))
        ledger.several = several.likeliest(found[0].misfit, far=True) > 1
        if ledger.several:
            return found
    return walk_from(search, found[: s.walks], ledger, ledger.stream(turn, 1), s.followed)
