"""Graded shapes: soft ellipsoids, smooth shapes, shares of cells; the best walk, made sharp."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import levels
from ..graded import SHARPER, Graded, sharpest
from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..search import Search
from .walking import walk_from

QUADRIC, QUARTIC, SHARES = 6, 8, 12  # steps of level sets of degree 2 and 4, and of shares of cells
NARROWER = 0.8  # edge of the quartic over that of the quadric
ENOUGH = 4e-6  # misfit, in units of `Models.unit`, of a candidate that makes others unnecessary
PARTED = 0.25  # of the misfit of the largest part alone, to believe in several


def graded_shapes(search: Search, hypotheses: Sequence[Hypothesis], ledger: SearchLedger,
                  turn: int) -> list[Hypothesis]:
    """New starts that no ellipsoid is like. Collective."""
    s, models = search.settings, search.models
    theta = models.start if ledger.best is None else ledger.best.theta
    soft = levels.screen(models, theta, search.first, s.ellipsoids, s.candidates,
                         ledger.stream(turn), search.width)
    ledger.report("soft ellipsoids", soft[0][0])
    candidates, result = [], []
    for k, (_, a) in enumerate(soft):
        graded = Graded(models, theta, search.first)
        c = graded.run(_smooth(search, theta, a), SHARES)
        ledger.spend(steps=QUADRIC + QUARTIC + SHARES)
        candidates.append((graded.misfit, k, c))
        ledger.report("candidate", graded.misfit)
        if graded.misfit < ENOUGH * models.unit:
            break
    for _, k, c in sorted(candidates, key=lambda item: item[:2])[: s.sharpened]:
        c, misfit = Graded(models, theta, search.more).sharpened(c)
        ledger.spend(steps=sum(steps for _, steps in SHARPER))
        ledger.report("sharp", misfit)
        labels = _labels(search, theta, c, ledger)
        if labels is not None:
            result += walk_from(search, [Hypothesis(labels, theta)], ledger,
                                ledger.stream(turn, 0, k), 1)
        if ledger.over():
            break
    return result


def _smooth(search: Search, theta: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Shares of the best level set of degree 4, from an ellipsoid's coefficients."""
    models, look, width = search.models, search.first, search.width
    second, fourth = levels.Levels(models, 2), levels.Levels(models, 4)
    a, _, _ = levels.fit(models, theta, second, a, look, width, QUADRIC)
    a = fourth.raised(a, second.powers)
    return levels.fit(models, theta, fourth, a, look, NARROWER * width, QUARTIC)[1]


def _labels(search: Search, theta: np.ndarray, c: np.ndarray,
            ledger: SearchLedger) -> np.ndarray | None:
    """The partition that shares come to; what has come apart may be several cells."""
    cells, labels = search.cells, sharpest(c)
    whole = cells.repaired(labels)
    found = [whole] if cells.allowed(whole) else []
    if labels.any() and search.settings.cells > 1:
        parted = cells.repaired(cells.parted(labels, search.settings.cells))
        # cells never join again: crumbs of one are not taken for a second
        if cells.allowed(parted) and (not found or _misfit(search, theta, parted, ledger)
                                      < PARTED * _misfit(search, theta, whole, ledger)):
            found = [parted]
    return found[0] if found else None


def _misfit(search: Search, theta: np.ndarray, labels: np.ndarray, ledger: SearchLedger) -> float:
    ledger.spend(1)
    return float(search.models.misfits([labels], theta, search.first)[0])
