"""The best match of two facet sets over shifts of the grid and point reflections.

Magnitude signals cannot see a translation or a point reflection of a whole closed cell, so a
result is judged as it is and after the best of them. Facets are counted, so only maps that take
the grid's vertices to vertices count, as far as the moved grid overlaps the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

_EXACT = 1e-3  # of the shortest edge: how far a moved vertex or facet may be from the grid's
_PAIRS = 2_000_000  # pairs of facets that vote
_QUERIES = 100_000  # facets that are moved in all, after the vote
_MAPS = 400  # maps that are tried, at most


@dataclass(frozen=True)
class Alignment:
    """How well found facets fit true ones after the map x -> shift +- (x - centre) + centre.

    Attributes:
        true_positives: moved facets that are true ones, over interior facets.
        counted: moved facets that count: those that land on an interior facet, or on none.
        true: true interior facets.
        shift: ``(3,)`` um.
        reflected: whether points are reflected through the centre of the grid first.
    """

    true_positives: int
    counted: int
    true: int
    shift: tuple[float, float, float]
    reflected: bool

    @property
    def precision(self) -> float | None:
        """Of the moved facets; None without any."""
        return self.true_positives / self.counted if self.counted else None

    @property
    def recall(self) -> float | None:
        """Of the true facets; None without any."""
        return self.true_positives / self.true if self.true else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; None where there is no facet at all."""
        both = self.counted + self.true
        return 2 * self.true_positives / both if both else None

    @property
    def iou(self) -> float | None:
        """Intersection over union; None where there is no facet at all."""
        union = self.counted + self.true - self.true_positives
        return self.true_positives / union if union else None


class Lattice:
    """What the maps of a grid onto itself are looked up in.

    Args:
        corners: ``(nf, 3, 3)`` um, of all facets of the grid.
        outer: ``(nf,)`` bool, facets on the outer boundary.
    """

    def __init__(self, corners: np.ndarray, outer: np.ndarray):
        edges = corners - corners[:, [1, 2, 0]]
        self.tolerance = _EXACT * float(np.linalg.norm(edges, axis=2).min())
        flat = corners.reshape(-1, 3)
        _, first = np.unique(np.round(flat / self.tolerance), axis=0, return_index=True)
        self.points = flat[first]
        self.low, self.high = self.points.min(axis=0), self.points.max(axis=0)
        self.centre = (self.low + self.high) / 2
        self.centroids = corners.mean(axis=1)
        self.outer = np.asarray(outer, bool)
        self._vertices, self._facets = cKDTree(self.points), cKDTree(self.centroids)

    def find(self, centroids: np.ndarray) -> np.ndarray:
        """Facet at each centroid ``(n, 3)``, -1 where there is none."""
        distance, place = self._facets.query(centroids, distance_upper_bound=self.tolerance)
        return np.where(np.isfinite(distance), place, -1)

    def moved(self, points: np.ndarray, sign: int, shift: np.ndarray) -> np.ndarray:
        """``points (n, 3)`` under the map of `Alignment`."""
        return self.centre + shift + sign * (points - self.centre)

    def keeps(self, sign: int, shift: np.ndarray) -> bool:
        """Whether the map takes vertices to vertices wherever they stay within the bounds."""
        points, margin = self.moved(self.points, sign, shift), self.tolerance
        # strictly: on the faces of the bounding box a grid may lack vertices, as at its corners
        within = ((points > self.low + margin) & (points < self.high - margin)).all(axis=1)
        if not within.any():
            return False
        distance, _ = self._vertices.query(points[within], distance_upper_bound=margin)
        return bool(np.isfinite(distance).all())


def align(lattice: Lattice, found: np.ndarray, true: np.ndarray,
          most: int = _MAPS) -> Alignment:
    """The best F1 over the lattice's shifts and point reflections.

    Facets that the map moves out of the grid count as false; those that land on the outer
    boundary do not count, as they do not before. Among equal maps the shortest shift is taken,
    without reflection if that does as well. Shifts are found by a vote of pairs of facets.

    Args:
        lattice: of the grid.
        found: ``(nf,)`` bool; outer facets that are found may land on interior ones.
        true: ``(nf,)`` bool.
        most: so many maps are tried, those with the most votes.
    """
    interior_true = np.asarray(true, bool) & ~lattice.outer
    member = np.zeros(len(lattice.centroids) + 1, bool)  # the last one: found nowhere
    member[:-1] = interior_true
    ignored = np.append(lattice.outer, False)
    source = lattice.centroids[np.asarray(found, bool)]
    best: Any = None  # the first candidate, no shift, is always kept
    for sign, shift in _candidates(lattice, source, lattice.centroids[interior_true],
                                   most):
        place = lattice.find(lattice.moved(source, sign, shift))
        x, y, z = (float(v) + 0.0 for v in shift)
        this = Alignment(int(member[place].sum()), int((~ignored[place]).sum()),
                         int(interior_true.sum()), (x, y, z), sign < 0)
        if best is not None and not _better(this, best):
            continue
        if (sign > 0 and not np.any(shift)) or lattice.keeps(sign, shift):
            best = this
    return best


def _better(this: Alignment, best: Alignment) -> bool:
    gain = (this.f1 or 0.0) - (best.f1 or 0.0)
    return gain > 1e-12 or (gain > -1e-12 and _length(this) < _length(best))


def _length(item: Alignment) -> tuple:
    """The order among maps that fit equally well."""
    shift = np.round(item.shift, 6)
    return round(float(np.linalg.norm(shift)), 6), item.reflected, tuple(shift)


def _candidates(lattice: Lattice, source: np.ndarray, target: np.ndarray, most: int):
    """No map, then the maps that most pairs of facets vote for."""
    yield 1, np.zeros(3)
    if not len(source) or not len(target):
        return
    stride = int(np.ceil(np.sqrt(max(1.0, len(source) * len(target) / _PAIRS))))
    few, goal = source[::stride] - lattice.centre, target[::stride] - lattice.centre
    shifts, votes, signs = [], [], []
    for sign in (1, -1):
        pairs = (goal[:, None] - sign * few[None]).reshape(-1, 3)
        # an odd bin width: the lattice's own distances must not fall on the edges of bins
        bins = np.round(pairs / (7.3 * lattice.tolerance)).astype(np.int64)
        _, first, count = np.unique(bins, axis=0, return_index=True, return_counts=True)
        shifts.append(pairs[first])
        votes.append(count)
        signs.append(np.full(len(count), sign))
    shifts, votes, signs = map(np.concatenate, (shifts, votes, signs))
    shifts[np.abs(shifts) < lattice.tolerance] = 0.0
    number = min(most, max(10, _QUERIES // len(source)))
    distance = np.round(np.linalg.norm(shifts, axis=1), 6)
    for k in np.lexsort((-signs, distance, -votes))[:number]:
        yield int(signs[k]), shifts[k]
