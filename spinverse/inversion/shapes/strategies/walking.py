"""Walks from starts: short ones tell the good starts, which are then followed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..hypothesis import Hypothesis
from ..ledger import SearchLedger
from ..search import Search
from ..walk import Places, Walk

NEAR = 1e-4  # misfit, in units of `Walk.unit`, that is followed up at once
# whitened misfit, in these units, of walks that do not look at their place and of others: from
# there on they are not followed before graded shapes were tried
STRANGE, LOST = 1e-2, 2e-3
KEPT = 0.75  # of a shape, when it is moved elsewhere
WORSE, AT_ONCE = 1.5, 5e-4  # than here: misfit of another place, as a factor and in units
BACK, WORTH = 3.0, 1e-3  # after a move: misfit from which on it is given up, likewise


def walk_from(search: Search, starts: Sequence[Hypothesis], ledger: SearchLedger, stream: tuple,
              followed: int, numbers: Sequence[int] | None = None) -> list[Hypothesis]:
    """A short walk from each start; the best of them, or one that comes near, go on.

    Args:
        search, ledger: as of all strategies.
        starts: hypotheses to start from.
        stream: of all that is random; each start has its number added.
        followed: walks that go on.
        numbers: of the starts; 0, 1, ... if not given.

    Returns:
        What walks ended with.
    """
    found: list[Hypothesis] = []
    begun: list[Walk] = []
    for k, start in zip(numbers or range(len(starts)), starts, strict=True):
        places = []
        for walk in begin(search, start, ledger, (*stream, k), found):
            run(walk, search.settings.steps, ledger)
            found.append(ledger.take(walk))
            if walk.best.misfit < NEAR * walk.unit + search.models.floor:
                found += follow(search, walk, ledger)
            else:
                places.append(walk)
            if ledger.over():
                return found
        if len(places) > 1:  # in its right place a shape is soon found
            places.sort(key=lambda walk: walk.white)
            run(places[0], search.settings.steps, ledger)
            found.append(ledger.take(places[0]))
        if ledger.over():
            return found
        begun += places
    begun.sort(key=lambda walk: walk.white)
    for walk in begun[:followed]:
        if graded_first(search, walk, ledger, LOST):
            break
        found += follow(search, walk, ledger)
        if ledger.over():
            return found
    return found


def begin(search: Search, start: Hypothesis, ledger: SearchLedger, seed: tuple,
          found: list[Hypothesis]) -> Iterator[Walk]:
    """Walks from a start: of one cell from the places that fit its shape best.

    What comes up on the way is added to ``found``.

    A shape that is nearly right lies in a wrong place as long as that makes up for its errors, and
    no single moves take it from there. So what places change does not count at first.
    """
    s, scout = search.settings, search.scout(seed)
    scout.begin(start.labels, start.theta)
    if start.cells > 1:
        yield scout.fork(placed(search, scout, ledger))
        return
    run(scout, s.blind, ledger, places=search.placements.of)
    found.append(ledger.take(scout))
    if ledger.over() or graded_first(search, scout, ledger, STRANGE):
        return
    scout.begin(scout.here.labels, nearby=True)
    best = ranked(scout, s.places + 1, search.placements.of)
    ledger.count(scout)
    for _, there in best[: s.places] or [(0.0, scout.here.labels)]:
        yield scout.fork(there)


def run(walk: Walk, iterations: int, ledger: SearchLedger, target: float | None = None,
        places: Places | None = None) -> None:
    """Walk within the ledger's budget, until the data are explained."""
    walk.run(iterations, ledger.score.limit if target is None else target, ledger.step,
             lambda: ledger.left(walk) <= 0, places)


def go_on(search: Search, ledger: SearchLedger) -> list[Hypothesis]:
    """Follow the ledger's best, of a search that was interrupted in the middle of a part."""
    best = ledger.best
    ledger.calibrate(best)
    walk = search.scout((*best.origin, 0))
    walk.begin(best.labels, best.theta)
    return follow(search, walk, ledger)


def follow(search: Search, walk: Walk, ledger: SearchLedger) -> list[Hypothesis]:
    """Walk on; where it stalls, elsewhere on the lattice."""
    s, found = search.settings, []
    if search.models.large:  # from few directions as long as that gains
        run(walk, s.walk, ledger)
        found.append(ledger.take(walk))
        if ledger.over():
            return found
    walk = search.told(walk, ledger.part)
    for turn in range(1, s.turns + 1):
        run(walk, s.walk, ledger)
        found.append(ledger.take(walk))
        best = walk.best
        if ledger.over() or ledger.score.explains(best.misfit) or turn == s.turns:
            break
        if best.cells > 1:
            scout = search.scout(walk.seed)
            scout.begin(best.labels, best.theta)
            walk.begin(placed(search, scout, ledger), nearby=True)
            continue
        here = walk.misfits([best.labels])[0]
        moved, misfit = elsewhere(search, walk, best.labels)
        if moved is None or misfit > WORSE * here + AT_ONCE * walk.unit:
            break
        ledger.report("moved", misfit)
        walk.begin(moved)
        run(walk, s.steps, ledger)
        if walk.best.misfit > BACK * best.misfit + WORTH * walk.unit:
            break
    return found


def graded_first(search: Search, walk: Walk, ledger: SearchLedger, limit: float) -> bool:
    """Whether graded shapes, which have not been tried, promise more than a far walk."""
    return not ledger.part and not search.noisy and walk.white > limit


def ranked(walk: Walk, number: int, places: Places) -> list[tuple[float, np.ndarray]]:
    """Partitions at other places, at most so many, those that explain most first."""
    found = sorted(walk.survey(places(walk.here.labels)), key=lambda item: item[0])
    settled = [walk.settle(place) for _, place in found[:number]]
    return sorted((item for item in settled if item is not None), key=lambda item: item[0])


def placed(search: Search, scout: Walk, ledger: SearchLedger) -> np.ndarray:
    """Cells of about the right shapes, where the scout is, in the places that explain most."""
    # relative to each other, then as a whole
    for places in (search.placements.of, search.placements.together):
        found = ranked(scout, search.settings.settled, places)
        if found:
            scout.begin(found[0][1], nearby=True)
            ledger.report("placed", found[0][0])
    ledger.count(scout)
    return scout.here.labels


def elsewhere(search: Search, walk: Walk,
              labels: np.ndarray) -> tuple[np.ndarray | None, float]:
    """The best other place of a shape on the lattice, and its misfit; None if there is none.

    A shape one step of the lattice away from the truth is a deep minimum of its own.
    """
    cells, found, inside = search.cells, [], np.count_nonzero(labels)
    for source in cells.translations():
        moved = np.where(source >= 0, labels[source], 0).astype(labels.dtype)
        if np.count_nonzero(moved) < KEPT * inside:
            continue
        moved = cells.repaired(moved)
        if cells.allowed(moved) and not np.array_equal(moved, labels):
            found.append(moved)
    if not found:
        return None, np.inf
    values = walk.misfits(found)
    best = int(np.argmin(values))
    return found[best], float(values[best])
