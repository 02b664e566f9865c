"""Other places for one of several compartments: the rest of the shape, and of the signal, stay.

The signal of what is behind closed walls depends on its shape alone, and a magnitude does not see
its point reflection. Where compartments lie relative to each other shows only in what remains of
the outside. So a search may have every shape about right and all of them in wrong places, which
no moves of single cells mend.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .cells import Cells

OVERLAP = 6  # cells that two compartments may have in common; one of them loses these
KEPT = 0.85  # of what is inside, when all of it moves
NEARBY = 0.28  # of the box: how far the others are shifted
APART = 0.06  # relative places nearer than this, in boxes, are the same


@dataclass(frozen=True, eq=False)
class Placement:
    """One compartment elsewhere, perhaps reflected; the others shifted to make room.

    Attributes:
        label: of the compartment.
        host: the label round it, which closes up behind it and gives way before it.
        source: ``(Nt,)`` the cell that each cell takes its share in ``label`` from, -1 none.
        others: the same for the other compartments.
    """

    label: int
    host: int
    source: np.ndarray
    others: np.ndarray

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """The partition after the move. What sticks out of the mesh is lost."""
        rest = np.where(labels == self.label, self.host, labels)
        result = np.where(self.others >= 0, rest[self.others], 0)
        mine = (self.source >= 0) & (labels[self.source] == self.label)
        result[mine & (result == self.host)] = self.label
        return result.astype(labels.dtype)


class Placements:
    """Places that `Cells.maps` take compartments to."""

    def __init__(self, cells: Cells):
        self.whole, self.sides, self.symmetric = cells.whole, cells.sides, cells.symmetric
        self.box = np.ptp(self.whole.points, axis=0).max()
        self.maps = [(sign, source) for sign, _, source in cells.maps]
        self.shifts = [source for sign, step, source in cells.maps
                       if sign > 0 and np.abs(step).max() < NEARBY * self.box]

    def of(self, labels: np.ndarray) -> list[Placement]:
        """All places of one compartment; of several, one of each relative place they can have."""
        if labels.max() == 1:
            return self.together(labels)
        x = self.whole.centroids - self.whole.centre
        found: dict[tuple, tuple] = {}
        several = labels.max() > 2
        for label in range(1, int(labels.max()) + 1):
            host = self._host(labels, label)
            one, rest = labels == label, (labels > 0) & (labels != label)
            blocked = rest & (labels != host)
            for sign, source in self.maps:
                mine = (source >= 0) & one[source]
                if mine.sum() < one.sum():
                    continue
                for back in self.shifts:
                    others = (back >= 0) & rest[back]
                    if others.sum() < rest.sum():
                        continue
                    overlap = np.count_nonzero(mine & (back >= 0) & blocked[back])
                    if overlap > OVERLAP:
                        continue
                    where = x[mine].mean(axis=0) - x[others].mean(axis=0)
                    where = np.round(where / (APART * self.box)).astype(int)
                    # with two, to move the one is to move the other back
                    turned = where if label == 1 or several else -where
                    key = (label if sign < 0 or several else 0, *turned.tolist())
                    off = np.abs(x[mine | others].mean(axis=0)).max() + overlap
                    if key not in found or off < found[key][0]:
                        found[key] = off, label, host, source, back
        return [Placement(label, host, source, back)
                for _, label, host, source, back in found.values()]

    def together(self, labels: np.ndarray) -> list[Placement]:
        """Translations of all compartments; a little of them may leave the mesh.

        None where they are symmetries.
        """
        if self.symmetric:
            return []
        inside = labels > 0
        least, host = KEPT * inside.sum(), self._host(labels, 1)
        return [Placement(1, host, source, source) for sign, source in self.maps
                if sign > 0 and np.count_nonzero((source >= 0) & inside[source]) >= least]

    def _host(self, labels: np.ndarray, label: int) -> int:
        """What a compartment has most of its walls with."""
        a, b = labels[self.sides].T
        across = np.r_[b[(a == label) & (b != label)], a[(b == label) & (a != label)]]
        return int(np.bincount(across).argmax()) if len(across) else 0
