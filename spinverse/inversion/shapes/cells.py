"""Partitions of the cells of a mesh: which are allowed, their repair, their translations.

A partition is an array of labels: 0 outside, 1, 2, ... compartments. Allowed are those whose
compartments are connected and of some size, and whose outside has no sealed pocket.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ...mesh.whole import WholeMesh

EXACT = 1e-6  # of the size of a mesh cell: maps this near are exact
STEPS, NEAR = 200, 2.0  # of places at most, as on 576 cells; in cell sizes, where all are tried
SMALLEST = 4  # mesh cells of a compartment: fewer make no closed surface of their own


class Cells:
    """The adjacency of a mesh, for partitions."""

    def __init__(self, whole: WholeMesh):
        self.whole, self.neighbours = whole, whole.neighbours
        self.at_rim = np.zeros(len(whole.cells), bool)
        self.at_rim[whole.sides[whole.outer, 0]] = True
        self._rim = self.at_rim.tolist()
        self.sides = whole.sides[~whole.outer]

    def pieces(self, chosen: np.ndarray) -> list[list[int]]:
        """Connected parts of a set of cells, ``(Nt,)`` bool, the largest first."""
        left, result = bytearray(chosen.astype(np.uint8).tobytes()), []
        for seed in np.flatnonzero(chosen).tolist():
            if not left[seed]:
                continue
            left[seed], part = 0, [seed]
            for cell in part:
                for other in self.neighbours[cell]:
                    if left[other]:
                        left[other] = 0
                        part.append(other)
            result.append(part)
        return sorted(result, key=len, reverse=True)

    def allowed(self, labels: np.ndarray) -> bool:
        """Whether a partition is allowed."""
        a, b = self.sides.T
        same = labels[a] == labels[b]
        graph = csr_matrix((np.ones(np.count_nonzero(same), np.int8), (a[same], b[same])),
                           shape=(len(labels),) * 2)
        number, piece = connected_components(graph, directed=False)
        label_of = np.zeros(number, int)
        label_of[piece] = labels
        size, most = np.bincount(piece), int(labels.max(initial=0))
        inside = np.bincount(label_of, minlength=most + 1)[1:]  # pieces of each label
        if not most or np.any(inside != 1) or size[label_of > 0].min() < SMALLEST:
            return False
        outside = np.flatnonzero(label_of == 0)
        if self.whole.periodic:
            return len(outside) <= 1
        at_rim = np.zeros(number, bool)
        at_rim[piece[self.at_rim]] = True
        return bool(at_rim[outside].all())

    def still_allowed(self, labels: bytearray, changed: list[int], before: list[int]) -> bool:
        """Whether a partition is allowed that was so before some cells changed: a local look.

        Args:
            labels: of the cells, and a 0 behind them.
            changed: cells whose label is another one now, none: allowed.
            before: their labels before.
        """
        for label in {*before}:
            left = labels.count(label) if label else SMALLEST
            if left < SMALLEST and (left or label < max(labels)):  # the last one may go
                return False
        # what is cut off touches what has changed
        seeds: dict[int, set[int]] = {}
        for cell in changed:
            for other in (cell, *self.neighbours[cell]):
                seeds.setdefault(labels[other], set()).add(other)
        now = [labels[cell] for cell in changed]
        for label, some in seeds.items():
            if not label and not self.whole.periodic:
                if not self._reach_the_rim(labels, some):
                    return False
                continue
            own = now.count(label)
            if own and len(some) == own and labels.count(label) > own:
                return False  # apart from the rest
            if len(some) > 1 and not self._together(labels, label, some):
                return False
        return True

    def _together(self, labels: bytearray, label: int, some: set[int]) -> bool:
        """Whether some cells of a label are connected in it."""
        part, left = [next(iter(some))], set(some)
        left.discard(part[0])
        seen = {part[0]}
        for cell in part:
            for other in self.neighbours[cell]:
                if labels[other] == label and other not in seen:
                    seen.add(other)
                    part.append(other)
                    if other in left:
                        left.discard(other)
                        if not left:
                            return True
        return not left

    def _reach_the_rim(self, labels: bytearray, some: set[int]) -> bool:
        """Whether some cells outside are connected with the rim."""
        open_ones: set[int] = set()
        for seed in some:
            part, seen = [seed], {seed}
            for cell in part:
                if self._rim[cell] or cell in open_ones:
                    open_ones |= seen
                    break
                for other in self.neighbours[cell]:
                    if labels[other] == 0 and other not in seen:
                        seen.add(other)
                        part.append(other)
            else:
                return False
        return True

    def _pockets(self, labels: np.ndarray) -> Iterator[list[int]]:
        """Parts of the outside that nothing connects with the rim, or the largest without one."""
        for k, part in enumerate(self.pieces(labels == 0)):
            if k > 0 if self.whole.periodic else not self.at_rim[part].any():
                yield part

    def repaired(self, labels: np.ndarray) -> np.ndarray:
        """The largest part of each compartment, pockets filled by what is around them."""
        result = np.zeros_like(labels)
        for label in np.unique(labels[labels > 0]):
            result[self.pieces(labels == label)[0]] = label
        for part in self._pockets(result):
            around = [result[other] for cell in part for other in self.neighbours[cell]
                      if result[other]]
            result[part] = np.bincount(around).argmax()
        return result

    def parted(self, labels: np.ndarray, number: int) -> np.ndarray:
        """The largest connected parts of what is inside, at most ``number``, as compartments."""
        result = np.zeros_like(labels)
        for label, part in enumerate(self.pieces(labels > 0)[:number], 1):
            if len(part) >= SMALLEST:
                result[part] = label
        return result

    def moves(self, labels: np.ndarray) -> list[tuple[int, int]]:
        """(cell, new label): every cell at a wall may take a label from across it.

        The outer boundary counts as outside: a cell there may become outside on its own.
        """
        a, b = self.sides[labels[self.sides[:, 0]] != labels[self.sides[:, 1]]].T
        found = set(zip(a.tolist(), labels[b].tolist(), strict=True))
        found |= set(zip(b.tolist(), labels[a].tolist(), strict=True))
        found |= {(cell, 0) for cell in np.flatnonzero(self.at_rim & (labels > 0)).tolist()}
        return sorted(found)

    def allowed_moves(self, labels: np.ndarray) -> list[tuple[int, int]]:
        """`moves` after which a partition is allowed."""
        return [move for move in self.moves(labels) if self.allowed(changed(labels, [move]))]

    @cached_property
    def maps(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Steps from the middle vertex to another, alone and after a point reflection.

        (sign, step in um, ``(Nt,)`` the cell that each cell comes from, -1 where none). On
        lattices these are the lattice's; elsewhere shapes move to the nearest cells.
        """
        return [found[:3] for found in self._maps]

    @cached_property
    def _maps(self) -> list[tuple[int, np.ndarray, np.ndarray, float]]:
        """`maps`, and how far the furthest cell is from where it should be, um."""
        whole = self.whole
        x = whole.centroids - whole.centre
        period = whole.period if whole.periodic else None
        half = 0.5 * whole.period  # a tree of a periodic box begins at its corner
        tree, size = cKDTree(x + half, boxsize=period), np.mean(whole.volumes) ** (1 / 3)
        middle = np.linalg.norm(whole.points - whole.centre, axis=1).argmin()
        steps = whole.points - whole.points[middle]
        if whole.periodic:  # vertices of opposite faces are one
            steps = whole.wrapped(steps + EXACT * size) - EXACT * size
            _, first = np.unique(np.round(steps / (EXACT * size)), axis=0, return_index=True)
            steps = steps[np.sort(first)]
        steps = _spread(steps, size)
        result = []
        for step in steps:
            for sign in (1, -1):
                asked = sign * (x - step) + half
                distance, source = tree.query(np.mod(asked, period) if whole.periodic else asked)
                result.append((sign, step, np.where(distance < 0.5 * size, source, -1),
                               float(distance.max())))
        return result

    @cached_property
    def symmetric(self) -> bool:
        """Whether all `maps` take a periodic mesh to itself: signals see none of them then."""
        size = np.mean(self.whole.volumes) ** (1 / 3)
        return self.whole.periodic and all(far < EXACT * size for *_, far in self._maps)

    def translations(self) -> list[np.ndarray]:
        """Where cells come from in steps of up to 0.6 of the box, ``(Nt,)`` each.

        None where they are symmetries.
        """
        if self.symmetric:
            return []
        box = np.ptp(self.whole.points, axis=0).max()
        return [source for sign, step, source in self.maps
                if sign > 0 and 0 < np.linalg.norm(step) < 0.6 * box]


def _spread(steps: np.ndarray, size: float) -> np.ndarray:
    """Of many steps those to near vertices, and of the others some that lie everywhere, um."""
    if len(steps) <= STEPS:
        return steps
    length = np.linalg.norm(steps, axis=1)
    chosen = np.flatnonzero(length < NEAR * size).tolist()
    gap = np.min([np.linalg.norm(steps - steps[k], axis=1) for k in chosen], axis=0)
    while len(chosen) < STEPS:
        chosen.append(int(gap.argmax()))
        gap = np.minimum(gap, np.linalg.norm(steps - steps[chosen[-1]], axis=1))
    return steps[np.sort(chosen)]


def changed(labels: np.ndarray, moves) -> np.ndarray:
    """Labels after some moves."""
    result = labels.copy()
    for cell, label in moves:
        result[cell] = label
    return result
