"""The best match of two facet sets over shifts of the grid and point reflections.

Magnitude signals cannot see a translation or a point reflection of a closed cell. Facets are
counted, so only maps that take the grid's vertices to vertices count, where the two overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from ..errors import on_root
from ..parallel.statistics import order_statistics, spread_distinct
from .lattice import Lattice
from .surfaces import ratio

_PAIRS = 2_000_000  # pairs of facets that vote
_QUERIES = 100_000  # facets that are moved in all, after the vote
_MAPS = 400  # maps that are tried, at most
# Cuts, and maps for each, that are tried for the best aligned F1; one cut on larger meshes.
_CUTS, _CUT_MAPS, _LARGE = 24, 60, 20000
_MOST = 4  # times the true facets: the largest number of found ones to look at


@dataclass(frozen=True)
class Alignment:
    """How well found facets fit true ones after the map x -> shift +- (x - centre) + centre.

    ``precision``, ``recall``, ``f1`` and ``iou`` are None where there is no facet to count.
    """

    true_positives: int  # moved facets that are true ones, over interior facets
    counted: int  # moved facets that land on an interior facet, or on none
    true: int  # true interior facets
    shift: tuple[float, float, float]  # um
    reflected: bool  # through the centre of the grid first

    @property
    def precision(self) -> float | None:
        return ratio(self.true_positives, self.counted)

    @property
    def recall(self) -> float | None:
        return ratio(self.true_positives, self.true)

    @property
    def f1(self) -> float | None:
        return ratio(2 * self.true_positives, self.counted + self.true)

    @property
    def iou(self) -> float | None:
        return ratio(self.true_positives, self.counted + self.true - self.true_positives)


def align(lattice: Lattice, found: np.ndarray, true: np.ndarray) -> Alignment:
    """The best F1 over the lattice's shifts and point reflections. Collective.

    Facets that the map moves out of the grid count as false; those that land on the outer
    boundary do not count. Among equal maps the shortest shift is taken, without reflection if that
    does as well. Shifts are found by a vote of pairs. Both sets, ``(nf,)`` bool, go to every rank.
    """
    return _best(lattice, lattice.everywhere(found)[0], _Truth.of(lattice, true), _MAPS)


def best_f1(lattice: Lattice, kappa: np.ndarray, surface: np.ndarray, true: np.ndarray,
            cut: float | None) -> float | None:
    """The largest aligned F1 of facets at or below a cut of the permeability. Collective.

    Cuts are ``cut`` (um/ms, None: there is none) and, on meshes of at most 20000 facets, 24 of the
    permeabilities ``kappa (nf,)`` that leave up to four times the true facets: beyond that F1
    cannot reach 0.4. On larger meshes a cut with more facets than that counts as it is, without a
    shift. ``surface`` and ``true`` are ``(nf,)`` bool: facets that may be found, and true ones.
    """
    comm = lattice.comm
    values = np.sort(kappa[surface])
    total, number = comm.allreduce(len(values)), comm.allreduce(int(true.sum()))
    if not number or not total:
        return None
    large = lattice.num_facets > _LARGE
    cuts = np.array([] if cut is None else [cut])
    if not large or cut is None:
        # the lowest value and those up to this one
        most = order_statistics(comm, values, np.array([min(total, _MOST * number) - 1]))
        distinct = spread_distinct(comm, values[values <= most])
        places = np.linspace(0, comm.allreduce(len(distinct)) - 1, _CUTS).astype(int)
        cuts = np.append(order_statistics(comm, distinct, np.unique(places)), cuts)
    truth = _Truth.of(lattice, true)
    below = np.searchsorted(values, cuts, "right")
    hits = np.searchsorted(np.sort(kappa[surface & truth.here]), cuts, "right")
    outer = np.searchsorted(np.sort(kappa[surface & lattice.outer]), cuts, "right")
    below, hits, outer = comm.allreduce(np.array([below, hits, outer]))
    # as they are, without a shift
    unmoved = 2 * hits / np.maximum(below - outer + truth.number, 1)
    best = float(unmoved.max(initial=0.0))
    # what a cut could reach: all true ones are hit, and outer facets are landed on
    limit = 2 * truth.number / np.maximum(
        np.maximum(below - lattice.num_outer, truth.number) + truth.number, 1)
    tried = [k for k in range(len(cuts)) if not (large and below[k] > _MOST * number)]
    sources: Any = None
    for k in sorted(tried, key=lambda k: below[k]):
        if limit[k] <= best:
            continue
        if sources is None:
            last = max(cuts[j] for j in tried if limit[j] > best)
            sources = lattice.everywhere(surface & (kappa <= last), kappa)
        source = sources[0][sources[1] <= cuts[k]]
        best = max(best, _best(lattice, source, truth, _CUT_MAPS).f1 or 0.0)
    return best


@dataclass(frozen=True, eq=False)
class _Truth:
    """Interior true facets: centroids of all of them, which are here, their number, a tree."""

    centroids: np.ndarray
    here: np.ndarray
    number: int
    tree: cKDTree

    @classmethod
    def of(cls, lattice: Lattice, true: np.ndarray) -> _Truth:
        here = np.asarray(true, bool) & ~lattice.outer
        centroids = lattice.everywhere(here)[0]
        return cls(centroids, here, len(centroids), cKDTree(lattice.centroids[here]))


def _best(lattice: Lattice, source: np.ndarray, truth: _Truth, most: int) -> Alignment:
    """The best map of the facets with centroids ``source``; the same on every rank."""
    maps = lattice.comm.bcast(on_root(
        lattice.comm, lambda: list(_candidates(lattice, source, truth.centroids, most))), root=0)
    counts = lattice.landings(source, maps, truth.tree)
    best: Any = None  # the first candidate, no shift, is always kept
    for (sign, shift), (hits, outer) in zip(maps, counts.tolist(), strict=True):
        this = Alignment(hits, len(source) - outer, truth.number, tuple((shift + 0.0).tolist()),
                         sign < 0)
        gain = (this.f1 or 0.0) - (best.f1 or 0.0 if best else -1.0)
        if gain < -1e-12 or (gain <= 1e-12 and _length(this) >= _length(best)):
            continue
        if (sign > 0 and not np.any(shift)) or lattice.keeps(sign, shift):
            best = this
    return best


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
    found = []
    for sign in (1, -1):
        # an odd bin width: the lattice's own distances must not fall on the edges of bins
        first, count = _votes(goal, sign * few, 7.3 * lattice.tolerance)
        found.append((goal[first // len(few)] - sign * few[first % len(few)], count,
                      np.full(len(count), sign)))
    shifts, votes, signs = map(np.concatenate, zip(*found, strict=True))
    shifts[np.abs(shifts) < lattice.tolerance] = 0.0
    number = min(most, max(10, _QUERIES // len(source)))
    distance = np.round(np.linalg.norm(shifts, axis=1), 6)
    for k in np.lexsort((-signs, distance, -votes))[:number]:
        yield int(signs[k]), shifts[k]


def _votes(goal: np.ndarray, few: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Differences of all pairs of points in cubes of a width, cubes in the order of x, y, z.

    Axis by axis: the differences themselves take several times the memory of their keys.
    Of each cube with a difference ``goal[i] - few[j]``: the first ``m i + j``, and how many.
    """
    low = np.round((goal.min(axis=0) - few.max(axis=0)) / width).astype(np.int64)
    high = np.round((goal.max(axis=0) - few.min(axis=0)) / width).astype(np.int64)
    key, number = np.zeros(len(goal) * len(few), dtype=np.int64), 1
    for k in range(3):
        extent = int(high[k] - low[k]) + 1
        if number * extent >= 2**62:  # too many cubes: count those that there are
            present, key = np.unique(key, return_inverse=True)
            number = len(present)
        number *= extent
        key *= extent
        cubes = np.round((goal[:, None, k] - few[None, :, k]) / width)
        key += cubes.astype(np.int64).ravel() - low[k]
    _, first, count = np.unique(key, return_index=True, return_counts=True)
    return first, count
