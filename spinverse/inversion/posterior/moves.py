"""Moves from hypothesis to hypothesis, each with the ratio of its proposals.

Single mesh cells at a wall, pairs of them, numbers, the whole shape shifted or reflected
(`Cells.maps`), cells exchanged, born and dying. Which kind is tried does not depend on the
hypothesis, and log q(back) - log q(there) comes with every proposal: Metropolis and Hastings.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..shapes.cells import SMALLEST, Cells

# how often each kind is tried; four of five flips find no wall, which costs nothing
KINDS = {"flip": 0.3, "cluster": 0.3, "pair": 0.3, "number": 0.05, "place": 0.02,
         "exchange": 0.01, "birth": 0.02}
BONDS = (0.1, 0.2, 0.3, 0.45)  # chances of facets, of which clusters have one
LARGEST = 60  # mesh cells of a cluster
STEPS = (0.3, 0.1, 0.03)  # of numbers, in widths of their range

Made = tuple[np.ndarray, np.ndarray, float]


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
        self._until = np.cumsum([KINDS[kind] for kind in self.kinds])
        whole = cells.whole
        self._sides, self._flat = whole.sides.tolist(), whole.sides.ravel()
        self._at_walls = np.array([kind in ("flip", "cluster", "pair") for kind in self.kinds])
        self._outer = np.bincount(whole.sides[whole.outer, 0], minlength=len(whole.cells)).tolist()

    def draws(self, rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Which kinds of moves are tried, on which sides of which facets, ``(number,)`` each."""
        kinds = np.searchsorted(self._until, rng.random(number) * self._until[-1], side="right")
        return kinds, rng.integers(2 * len(self._sides), size=number)

    def idle(self, labels: np.ndarray, kinds: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Which of `draws` find no wall where they need one, bool."""
        beyond = np.append(labels, 0)  # -1 is beyond the mesh
        here, other = self._flat[places], self._flat[places ^ 1]
        return self._at_walls[kinds] & ((here < 0) | (beyond[here] == beyond[other]))

    def propose(self, rng: np.random.Generator, kind: int, place: int, labels: np.ndarray,
                theta: np.ndarray) -> Made | None:
        """Labels, theta and the logarithm of the ratio of proposals; None if there are none.

        Whether the partition is allowed is not looked at.
        """
        return getattr(self, f"_{self.kinds[kind]}")(rng, place, labels, theta)

    # ---- mesh cells ------------------------------------------------------------------------------

    def _across(self, place: int, labels: np.ndarray) -> tuple[int, int] | None:
        """A cell that takes the label across one of its facets, all facets alike."""
        facet, side = divmod(place, 2)
        cell, other = self._sides[facet][side], self._sides[facet][1 - side]
        if cell < 0:
            return None
        label = int(labels[other]) if other >= 0 else 0
        return None if label == labels[cell] else (cell, label)

    def _ways(self, labels, cell: int, label: int) -> int:
        """Facets across which a cell may take a label."""
        return sum(int(labels[other]) == label for other in self.cells.neighbours[cell]) + (
            self._outer[cell] if label == 0 else 0)

    def _flip(self, rng, place, labels, theta) -> Made | None:
        move = self._across(place, labels)
        if move is None:
            return None
        cell, label = move
        back = self._ways(labels, cell, int(labels[cell]))
        if not back:
            return None
        return _with(labels, move), theta, float(np.log(
            back / self._ways(labels, cell, label)))

    def _cluster(self, rng, place, labels, theta) -> Made | None:
        """A connected set of one label takes another label that it touches.

        Grown from a cell at a wall, across every facet with a chance p (Niedermayer, Phys. Rev.
        Lett. 61, 2026, 1988); what lies in the set cancels in the ratio, its surface does not.
        """
        move = self._across(place, labels)
        if move is None:
            return None
        (cell, label), p = move, BONDS[rng.integers(len(BONDS))]
        old, neighbours = int(labels[cell]), self.cells.neighbours
        part, grown = [cell], {cell}
        for here in part:
            for other in neighbours[here]:
                if other not in grown and labels[other] == old and rng.random() < p:
                    grown.add(other)
                    part.append(other)
            if len(part) > LARGEST:
                return None
        beside = [int(labels[other]) for here in part for other in neighbours[here]
                  if other not in grown]
        same, there = beside.count(old), beside.count(label)
        rim = sum(self._outer[here] for here in part)
        begins, returns = there + rim * (label == 0), same + rim * (old == 0)
        if not returns:
            return None
        new = labels.copy()
        new[part] = label
        return new, theta, float(np.log(returns / begins) + (there - same) * np.log1p(-p))

    def _pair(self, rng, place, labels, theta) -> Made | None:
        """Two at once: what either of them alone makes need not be allowed."""
        a = self._across(place, labels)
        if a is None:
            return None
        one = _with(labels, a)
        b = self._across(int(rng.integers(2 * len(self._sides))), one)
        if b is None or a[0] == b[0]:
            return None
        other, both = _with(labels, b), _with(one, b)
        undo_a, undo_b = (a[0], int(labels[a[0]])), (b[0], int(labels[b[0]]))
        there = self._ways(labels, *a) * self._ways(one, *b) + (
            self._ways(labels, *b) * self._ways(other, *a))
        back = self._ways(both, *undo_b) * self._ways(one, *undo_a) + (
            self._ways(both, *undo_a) * self._ways(other, *undo_b))
        return (both, theta, float(np.log(back / there))) if back else None

    # ---- numbers ---------------------------------------------------------------------------------

    def _number(self, rng, place, labels, theta) -> Made:
        new, k = theta.copy(), rng.integers(len(theta))
        new[k] += rng.choice(STEPS) * np.ptp(self.bounds[:, k]) * rng.normal()
        return labels, new, 0.0

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
        source, back = self._maps[rng.integers(len(self._maps))]
        if rng.random() < 0.5:  # which magnitudes do not see at all
            source = back = self.mirror
        new = moved(labels, source)
        # nothing may leave the mesh, and the way back leads back
        return (new, theta, 0.0) if np.array_equal(moved(new, back), labels) else None

    # ---- cells -----------------------------------------------------------------------------------

    def _exchange(self, rng, place, labels, theta) -> Made | None:
        """Two cells exchange their numbers in the count, with all that they have."""
        number = int(labels.max())
        if number < 2:
            return None
        a, b = rng.choice(number, 2, replace=False) + 1
        table = np.arange(number + 1)
        table[[a, b]] = b, a
        there, new = theta.copy(), table.astype(labels.dtype)[labels]
        first, second = (np.flatnonzero(self.cell_of == label) for label in (a, b))
        there[first], there[second] = theta[second], theta[first]
        return new, there, 0.0

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
        number, seeds = int(labels.max()), self._seeds
        if rng.random() < 0.5:
            chosen = seeds[rng.integers(len(seeds))]
            if number >= self.most or labels[chosen].any():
                return None
            new = labels.copy()
            new[chosen] = number + 1
            return new, theta, float(np.log(len(seeds)))
        if number < 2 or np.count_nonzero(labels == number) != SMALLEST:
            return None
        return np.where(labels == number, 0, labels).astype(labels.dtype), theta, -float(
            np.log(len(seeds)))


def _with(labels: np.ndarray, move: tuple[int, int]) -> np.ndarray:
    new = labels.copy()
    new[move[0]] = move[1]
    return new


def moved(labels: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Labels after a map of `Cells.maps`."""
    return np.where(source >= 0, labels[source], 0).astype(labels.dtype)
