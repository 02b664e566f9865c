"""Walk on from the best shape: of many that explain noisy data one is the likeliest."""

from __future__ import annotations

from collections.abc import Sequence

from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..search import Search
from .walking import run


def polish(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
           turn: int) -> list[Hypothesis]:
    """From the ledger's best, once for each. Collective."""
    best = ledger.best
    if best is None or best.labels.tobytes() in ledger.polished or ledger.gap():
        return []
    walk = search.scout((*best.origin, 0))  # with noise it looks at everything
    walk.begin(best.labels, best.theta)
    run(walk, search.settings.walk, ledger, 0.0)
    found = ledger.take(walk)
    ledger.polished |= {best.labels.tobytes(), ledger.best.labels.tobytes()}
    return [found]
