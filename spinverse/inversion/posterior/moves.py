"""Moves from hypothesis to hypothesis, each with the ratio of its proposals.

Single mesh cells at a wall, pairs of them, numbers, the whole shape shifted or reflected
(`Cells.maps`), cells exchanged, born and dying. Which kind is tried does not depend on the
hypothesis, and log q(back) - log q(there) comes with every proposal: Metropolis and Hastings.

Labels are a `bytearray` here, since one of them is read in a third of the time that an array takes;
its last item is 0 and of no cell: -1 is what is beyond the mesh.
"""

from __future__ import annotations

from functools import cached_property
from math import log, log1p

import numpy as np

from ..shapes.cells import SMALLEST, Cells

# how often each kind is tried; the first ones need a wall, and four of five find none: it costs
# next to nothing
KINDS = {"flip": 0.15, "cluster": 0.6, "pair": 0.05, "number": 0.15, "place": 0.02,
         "exchange": 0.01, "birth": 0.02}
BONDS = (0.2, 0.35, 0.5)  # chances of facets, of which clusters have one
LARGEST = 60  # mesh cells of a cluster
STEPS = (0.3, 0.1, 0.03)  # of numbers, in widths of their range

#: Which mesh cells change, to which labels, theta after it, log of the ratio of proposals.
Made = tuple[list[int], list[int], np.ndarray, float]


class Moves:
    """Proposals on a mesh.

    Args:
        cells: adjacency.
        bounds: ``(2, P)`` of the coordinates of the numbers.
        cell_of: ``(P,)`` of which cell each is, 0 for none.
        most: at most so many cells.
    """

    def __init__(self, cells: Cells, bounds: np.ndarray, cell_of: np.ndarray, most: int):
        self.cells, self.bounds, self.cell_of, self.most = cells, bounds, cell_of, most
        there = {"number": bounds.size > 0, "exchange": most > 1, "birth": most > 1}
        self.kinds = [kind for kind in KINDS if there.get(kind, True)]
        self._made = [getattr(self, f"_{kind}") for kind in self.kinds]
        self._until = np.cumsum([KINDS[kind] for kind in self.kinds])
        self._flat = cells.whole.sides.ravel().tolist()
        self._width = np.ptp(bounds, axis=0)
        #: across the facets of each cell, -1 for what is beyond the mesh
        self.around = [[a if b == cell else b for a, b in cells.whole.sides[facets].tolist()]
                       for cell, facets in enumerate(cells.whole.facets_of)]

    def draws(self, rng: np.random.Generator, number: int) -> tuple[list[int], list[int]]:
        """Which kinds of moves are tried, on which sides of which facets, ``number`` each."""
        kinds = np.searchsorted(self._until, rng.random(number) * self._until[-1], side="right")
        return kinds.tolist(), rng.integers(len(self._flat), size=number).tolist()

    def propose(self, rng: np.random.Generator, kind: int, place: int, labels: bytearray,
                theta: np.ndarray) -> Made | None:
        """A proposal, None if there is none. Whether it is allowed is not looked at."""
        return self._made[kind](rng, place, labels, theta)

    # ---- mesh cells ------------------------------------------------------------------------------

    def _across(self, place: int, labels: bytearray) -> tuple[int, int] | None:
        """A cell that takes the label across one of its facets, all facets alike."""
        cell = self._flat[place]
        if cell < 0:
            return None
        label = labels[self._flat[place ^ 1]]
        return None if label == labels[cell] else (cell, label)

    def _ways(self, labels: bytearray, cell: int, label: int) -> int:
        """Facets across which a cell may take a label."""
        return [labels[other] for other in self.around[cell]].count(label)

    def _flip(self, rng, place, labels, theta) -> Made | None:
        move = self._across(place, labels)
        if move is None:
            return None
        cell, label = move
        back = self._ways(labels, cell, labels[cell])
        if not back:
            return None
        return [cell], [label], theta, log(back / self._ways(labels, cell, label))

    def _cluster(self, rng, place, labels, theta) -> Made | None:
        """A connected set of one label takes another label that it touches.

        Grown from a cell at a wall, across every facet with a chance p (Niedermayer, Phys. Rev.
        Lett. 61, 2026, 1988); what lies in the set cancels in the ratio, its surface does not.
        """
        move = self._across(place, labels)
        if move is None:
            return None
        (cell, label), p = move, BONDS[int(len(BONDS) * rng.random())]
        old, around = labels[cell], self.around
        part, grown = [cell], {cell}
        for here in part:
            for other in around[here]:
                if other >= 0 and labels[other] == old and other not in grown and rng.random() < p:
                    grown.add(other)
                    part.append(other)
            if len(part) > LARGEST:
                return None
        beside = [labels[other] if other >= 0 else -1 for here in part for other in around[here]
                  if other not in grown]
        rim = beside.count(-1)
        same, there = beside.count(old), beside.count(label)
        begins, returns = there + rim * (label == 0), same + rim * (old == 0)
        if not returns:
            return None
        return (part, [label] * len(part), theta,
                log(returns / begins) + (there - same) * log1p(-p))

    def _pair(self, rng, place, labels, theta) -> Made | None:
        """Two at once: what either of them alone makes need not be allowed."""
        a = self._across(place, labels)
        if a is None:
            return None
        cell, old, ways = a[0], labels[a[0]], self._ways
        there = ways(labels, *a)
        labels[cell] = a[1]
        b = self._across(int(len(self._flat) * rng.random()), labels)
        if b is None or b[0] == cell:
            labels[cell] = old
            return None
        other, last = b[0], labels[b[0]]
        there, back = there * ways(labels, *b), ways(labels, cell, old)
        labels[other] = b[1]
        back *= ways(labels, other, last)
        undone = ways(labels, cell, old)
        labels[cell] = old
        there_b, back_b = ways(labels, *a), undone * ways(labels, other, last)
        labels[other] = last
        there, back = there + ways(labels, *b) * there_b, back + back_b
        if not back:
            return None
        return [cell, other], [a[1], b[1]], theta, log(back / there)

    # ---- numbers ---------------------------------------------------------------------------------

    def _number(self, rng, place, labels, theta) -> Made:
        new, k = theta.copy(), int(len(theta) * rng.random())
        new[k] += STEPS[int(len(STEPS) * rng.random())] * self._width[k] * rng.normal()
        return [], [], new, 0.0

    # ---- places ----------------------------------------------------------------------------------

    @cached_property
    def _maps(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Maps with their inverses: where each cell comes from, and goes."""
        maps = self.cells.maps
        size = 1e-6 * float(np.mean(self.cells.whole.volumes) ** (1 / 3))

        def key(sign, step):
            return sign, *np.round(step / size).astype(int).tolist()

        known = {key(sign, step): source for sign, step, source in maps}
        pairs = [(source, known.get(key(sign, -step) if sign > 0 else key(sign, step)))
                 for sign, step, source in maps if sign < 0 or np.any(step)]
        return [(source, back) for source, back in pairs if back is not None]

    @cached_property
    def mirror(self) -> np.ndarray:
        """The mesh cell opposite to each, ``(Nt,)``: itself where the mesh has no such symmetry."""
        every = np.arange(len(self.cells.whole.cells))
        x = self.cells.whole.centroids - self.cells.whole.centre
        for sign, _, source in self.cells.maps:
            if (sign < 0 and np.array_equal(np.sort(source), every)
                    and np.abs(x[source] + x).max() < 1e-6 * np.abs(x).max()):
                return source
        return every

    def _place(self, rng, place, labels, theta) -> Made | None:
        if not self._maps:
            return None
        source, back = self._maps[int(len(self._maps) * rng.random())]
        if rng.random() < 0.5:  # which magnitudes do not see at all
            source = back = self.mirror
        old = np.frombuffer(labels, np.int8)[:-1]
        new = moved(old, source)
        # nothing may leave the mesh, and the way back leads back
        if not np.array_equal(moved(new, back), old):
            return None
        return *_between(old, new), theta, 0.0

    # ---- cells -----------------------------------------------------------------------------------

    def _exchange(self, rng, place, labels, theta) -> Made | None:
        """Two cells exchange their numbers in the count, with all that they have."""
        number = max(labels)
        if number < 2:
            return None
        a, b = rng.choice(number, 2, replace=False) + 1
        table = np.arange(number + 1, dtype=np.int8)
        table[[a, b]] = b, a
        there, old = theta.copy(), np.frombuffer(labels, np.int8)[:-1]
        first, second = (np.flatnonzero(self.cell_of == label) for label in (a, b))
        there[first], there[second] = theta[second], theta[first]
        return *_between(old, table[old]), there, 0.0

    @cached_property
    def _seeds(self) -> np.ndarray:
        """All connected sets of `SMALLEST` mesh cells, ``(n, SMALLEST)``."""
        neighbours, found = self.cells.neighbours, {(cell,) for cell in range(
            len(self.cells.whole.cells))}
        for _ in range(SMALLEST - 1):
            found = {tuple(sorted((*part, other))) for part in found for cell in part
                     for other in neighbours[cell] if other not in part}
        return np.array(sorted(found))

    def _birth(self, rng, place, labels, theta) -> Made | None:
        """A further cell of the smallest size appears outside, or the last one goes."""
        number, seeds = max(labels), self._seeds
        if rng.random() < 0.5:
            chosen = seeds[int(len(seeds) * rng.random())].tolist()
            if number >= self.most or any(labels[cell] for cell in chosen):
                return None
            return chosen, [number + 1] * SMALLEST, theta, log(len(seeds))
        if number < 2 or labels.count(number) != SMALLEST:
            return None
        chosen = [cell for cell, label in enumerate(labels) if label == number]
        return chosen, [0] * SMALLEST, theta, -log(len(seeds))


def _between(old: np.ndarray, new: np.ndarray) -> tuple[list[int], list[int]]:
    """Which cells differ, and what they become."""
    changed = np.flatnonzero(old != new)
    return changed.tolist(), new[changed].tolist()


def moved(labels: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Labels after a map of `Cells.maps`."""
    return np.where(source >= 0, labels[source], 0).astype(labels.dtype)
