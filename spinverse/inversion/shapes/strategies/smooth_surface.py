"""A smooth surface in place of facets, where those of the mesh do not explain the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..search import Search
from ..smooth_surfaces import SmoothFit, suits

FITS = 2  # in a search: after its first round and its second


def smooth_surface(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
                   turn: int) -> list[Hypothesis]:
    """Fit the surface of one cell; `SearchLedger.surface` is the best. Collective.

    Its fields are of a mesh that is not the data's, so that it explains shapes of mesh cells, too,
    within what is allowed for that: these are looked for first.
    """
    single = [found for found in hypotheses if found.cells == 1]
    if ledger.fits >= FITS or not single or not suits(search.models.problem):
        return []
    ledger.fits += 1
    start = min(single, key=lambda found: found.misfit)
    # noise is averaged by looking at everything
    fit = SmoothFit(search.models, search.more if search.noisy else search.first)
    found = fit.fit(start, ledger.report, ledger.score.limit)
    ledger.spend(fit.shapes)
    if found is not None and (ledger.surface is None or found.misfit < ledger.surface.misfit):
        ledger.surface = found
    if found is None or ledger.best is not None:
        return []
    labels = search.cells.repaired(found.labels)
    r = search.models.exact(labels, found.theta, search.models.all)
    ledger.best = Hypothesis(labels, found.theta, float(np.mean(r**2)), start.origin)
    return [ledger.best]
