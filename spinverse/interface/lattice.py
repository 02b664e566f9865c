"""Which maps take the vertices of a grid to vertices, and what moved facets land on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import product

import numpy as np
from mpi4py import MPI
from scipy.spatial import cKDTree

from ..parallel.exchange import Route, gather_chosen, reduced
from .surfaces import sorted_corners

_EXACT = 1e-3  # of the shortest edge: how far a moved vertex or facet may be from the grid's
_BINS = 41.7  # along the longest side of the grid; vertices of a bin are on one rank
_PROBES = 100  # vertices of each rank that are tried before all are


class Lattice:
    """What the maps of a grid onto itself are looked up in. Collective, as all its methods are.

    Each facet is on one of the ranks, with its corners ``(nf, 3, 3)`` um, whether it is outer, and
    vertices ``triples (nf, 3)``, which tell the order of facets at any number of ranks (``None``:
    they are in order). ``tolerance`` is how far a moved vertex or facet may be from one of the
    grid; ``points (nv, 3)`` and ``centroids (nf, 3)`` are of this rank, ``low``, ``high`` and
    ``centre`` of the box around the grid; all in um. ``num_facets``, ``num_outer``: of all ranks.
    ``period``, um: axes along which what leaves the box comes in again opposite; 0 for none.
    """

    def __init__(self, corners: np.ndarray, outer: np.ndarray, triples: np.ndarray | None = None,
                 comm: MPI.Comm = MPI.COMM_SELF,
                 period: np.ndarray | Sequence[float] = (0.0, 0.0, 0.0)):
        self.comm, self.period = comm, np.asarray(period, dtype=float)
        corners = sorted_corners(corners)
        edges = np.linalg.norm(corners - corners[:, [1, 2, 0]], axis=2)
        self.tolerance = _EXACT * comm.allreduce(float(edges.min(initial=np.inf)), op=MPI.MIN)
        flat = corners.reshape(-1, 3)
        _, first = np.unique(np.round(flat / self.tolerance), axis=0, return_index=True)
        self.points = flat[first]
        self.low = reduced(comm, self.points.min(axis=0, initial=np.inf), MPI.MIN)
        self.high = reduced(comm, self.points.max(axis=0, initial=-np.inf), MPI.MAX)
        self.centre = (self.low + self.high) / 2
        self.centroids = corners.mean(axis=1)
        self.outer = np.asarray(outer, bool)
        self.triples = np.arange(len(outer))[:, None] if triples is None else triples
        self.num_facets = comm.allreduce(len(self.outer))
        self.num_outer = comm.allreduce(int(self.outer.sum()))
        self._outer_facets = cKDTree(self.centroids[self.outer])

    def everywhere(self, chosen: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
        """Centroids of a few chosen facets of all ranks, and their values, in order, everywhere."""
        whole = gather_chosen(self.comm, np.asarray(chosen, bool), self.triples, self.centroids,
                              *values)
        return self.comm.bcast(None if whole is None else list(whole[1:]), root=0)

    def landings(self, source: np.ndarray, maps: list[tuple[int, np.ndarray]],
                 goal: cKDTree) -> np.ndarray:
        """How many facets each map (sign, shift) takes to facets of ``goal``, and to outer ones.

        Centroids ``source (n, 3)`` and maps are the same on every rank; ``goal`` has centroids of
        this rank. Gives ``(len(maps), 2)`` counts over all ranks.
        """
        counts = np.zeros((len(maps), 2), dtype=np.int64)
        for k, (sign, shift) in enumerate(maps):
            moved = self.moved(source, sign, shift)
            for column, facets in enumerate((goal, self._outer_facets)):
                counts[k, column] = np.count_nonzero(self._reached(facets, moved))
        return reduced(self.comm, counts)

    def moved(self, points: np.ndarray, sign: int, shift: np.ndarray) -> np.ndarray:
        """``points (n, 3)`` under the map x -> shift + sign (x - centre) + centre."""
        moved = self.centre + shift + sign * (points - self.centre)
        # what lies on a face is on the lower one
        corner, period = self.low - self.tolerance, np.where(self.period > 0, self.period, 1.0)
        return moved - self.period * np.floor((moved - corner) / period)

    def keeps(self, sign: int, shift: np.ndarray) -> bool:
        """Whether the map takes vertices to vertices wherever they stay within the bounds."""
        points, margin = self.moved(self.points, sign, shift), self.tolerance
        # strictly: on the faces of the bounding box a grid may lack vertices, as at its corners
        within = ((self.period > 0) | (points > self.low + margin)
                  & (points < self.high - margin)).all(axis=1)
        points = points[within]
        if not self.comm.allreduce(len(points)):
            return False
        # most maps are refused by a few vertices
        return all(self._are_vertices(points[::step])
                   for step in (1 + len(points) // _PROBES, 1))

    def _are_vertices(self, points: np.ndarray) -> bool:
        """Whether there is a vertex at all points of all ranks."""
        asked = Route(self.comm, self._rank_of(points)).forward(points)
        return self.comm.allreduce(bool(self._reached(self._vertices, asked).all()), op=MPI.LAND)

    @cached_property
    def _vertices(self) -> cKDTree:
        """Vertices in, and just beside, the bins that this rank answers for."""
        reach = 2 * self.tolerance
        near = np.unique(np.concatenate([
            np.column_stack([np.arange(len(self.points)),
                             self._rank_of(self.points + reach * np.array(side))])
            for side in product((-1, 1), repeat=3)]), axis=0)
        return cKDTree(Route(self.comm, near[:, 1]).forward(self.points[near[:, 0]]))

    def _rank_of(self, points: np.ndarray) -> np.ndarray:
        """The rank that answers for the bin of each point."""
        width = (self.high - self.low).max() / _BINS
        bins = np.floor((points - self.low) / width).astype(np.int64)
        return bins @ [73856093, 19349663, 83492791] % self.comm.size

    def _reached(self, tree: cKDTree, points: np.ndarray) -> np.ndarray:
        distance, _ = tree.query(points, distance_upper_bound=self.tolerance)
        return np.isfinite(distance)
