"""A smooth surface in place of facets, where those of the mesh do not explain the data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..search import Search
from ..smooth_surfaces import SmoothFit, suits
from .walking import run

FITS = 2  # in a search
SOON = 10  # iterations of a walk, in which it mostly comes to data of the mesh


def smooth_surface(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
                   turn: int) -> list[Hypothesis]:
    """Fit the surface of one cell; `SearchLedger.surface` is the best. Collective.

    What is allowed for the mesh's error is as much as its stairs change, so that a surface explains
    shapes of mesh cells, too. A walk from the nearest of these tells: it comes to data of the mesh.
    """
    single = [one for one in (*hypotheses, ledger.best) if one is not None and one.cells == 1]
    if ledger.fits >= FITS or not single or not suits(search.models.problem):
        return []
    ledger.fits += 1
    start = min(single, key=lambda found: found.misfit)
    # noise is averaged by looking at everything
    fit = SmoothFit(search.models, search.more if search.noisy else search.first)
    found = fit.fit(start, ledger.report, ledger.score.limit)
    ledger.spend(fit.shapes)
    if found is None:
        return []
    labels = search.cells.repaired(found.labels)
    r = search.models.exact(labels, found.theta, search.models.all)
    result = [Hypothesis(labels, found.theta, float(np.mean(r**2)), start.origin)]
    if ledger.best is None:
        ledger.best = result[0]
    if ledger.score.explains(found.misfit - found.error):
        walk = search.scout(ledger.stream(turn, 3))
        walk.begin(labels, found.theta)
        walk = search.told(walk, ledger.part)
        run(walk, SOON, ledger)
        result.append(ledger.take(walk))
    if ledger.surface is None or found.misfit < ledger.surface.misfit:
        ledger.surface = found
    return result
