"""Facets and cells in the order of the input, in one slab a rank.

Facets are in the order of their vertices, cells in that of their number. The slabs of all ranks
follow each other in the ranks' order.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from ..parallel.exchange import Ranges, Route
from .checks import find_facets

BLOCK = 10_000  # facets that are looked for at a time


class Slabs:
    """Items, each owned by one rank, sorted over all ranks. Collective.

    Args:
        keys: ``(n, d)`` whole numbers of the items that this rank owns; no two are equal.
        to: ``(n,)`` rank whose slab each belongs to.

    Attributes:
        keys: ``(m, d)`` of the items in this rank's slab, in lexicographic order.
    """

    def __init__(self, comm: MPI.Comm, keys: np.ndarray, to: np.ndarray):
        self.comm, self._route = comm, Route(comm, to)
        arrived = self._route.forward(keys)
        self._order = np.lexsort(arrived.T[::-1])
        self.keys = arrived[self._order]

    @classmethod
    def by_number(cls, comm: MPI.Comm, total: int, numbers: np.ndarray) -> Slabs:
        """Items with the numbers 0 to ``total``, in even ranges (`Ranges`)."""
        numbers = np.asarray(numbers, dtype=np.int64)
        return cls(comm, numbers[:, None], Ranges(comm, total).holder(numbers))

    def collect(self, values: np.ndarray) -> np.ndarray:
        """Values of the slab's items, ``(m, ...)``, from those of owned ones. Collective."""
        return self._route.forward(values)[self._order]

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of the owned items, ``(n, ...)``, from those of the slab's. Collective."""
        values = np.asarray(values)
        arrived = np.empty_like(values)
        arrived[self._order] = values
        return self._route.backward(arrived)


class FacetSlabs(Slabs):
    """Slabs of facets ``(nf, d)``, ascending; as long as each other but for a vertex's facets."""

    def __init__(self, comm: MPI.Comm, facets: np.ndarray):
        super().__init__(comm, facets, _even(comm, facets[:, 0]))
        self.total = comm.allreduce(len(facets))
        # an empty slab begins where the next one does
        none = np.iinfo(np.int64).max
        firsts = comm.allgather(int(self.keys[0, 0]) if len(self.keys) else none)
        self._firsts = np.minimum.accumulate(firsts[::-1])[::-1]

    def holder(self, facets: np.ndarray) -> np.ndarray:
        """The rank in whose slab each facet would be."""
        return np.maximum(np.searchsorted(self._firsts, facets[:, 0], side="right") - 1, 0)


class FacetRows:
    """Where the facets are among rows ``(n, d)`` that any ranks have, or several. Collective.

    Vertices may be in any order within a row.

    Attributes:
        missing: how many facets of the mesh have no row.
    """

    def __init__(self, slabs: FacetSlabs, triples: np.ndarray):
        triples = np.asarray(triples, dtype=np.int64).reshape(-1, slabs.keys.shape[1])
        if np.any(triples[:, 1:] < triples[:, :-1]):
            triples = np.sort(triples, axis=1)
        self._slabs, self._route = slabs, Route(slabs.comm, slabs.holder(triples))
        self._row = _places(self._route.forward(triples), slabs.keys)
        self.missing = slabs.comm.allreduce(int(np.count_nonzero(self._row < 0)))

    def values(self, rows: np.ndarray, default=0) -> np.ndarray:
        """Values of the owned facets, ``(nf, ...)``, from those of this rank's rows. Collective."""
        arrived = self._route.forward(rows)
        result = np.full((len(self._row), *arrived.shape[1:]), default, arrived.dtype)
        known = self._row >= 0
        result[known] = arrived[self._row[known]]
        return self._slabs.spread(result)


def _places(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each of the ``wanted``, in lexicographic order, is among the rows; or -1."""
    result = np.full(len(wanted), -1)
    if rows.shape == wanted.shape and np.array_equal(rows, wanted):
        result[:] = np.arange(len(wanted))  # a file in our own order, read by as many ranks
        return result
    order = np.lexsort(rows.T[::-1])
    firsts = rows[order, 0]
    begin = 0
    while begin < len(wanted):  # in blocks of whole first vertices, as searching takes memory
        last = wanted[min(begin + BLOCK, len(wanted)) - 1, 0]
        end = int(np.searchsorted(wanted[:, 0], last, side="right"))
        low = np.searchsorted(firsts, wanted[begin, 0])
        high = np.searchsorted(firsts, last, side="right")
        near = order[low:high]
        place = find_facets(wanted[begin:end], rows[near])
        result[begin:end][place[place >= 0]] = near[place >= 0]
        begin = end
    return result


def _even(comm: MPI.Comm, first: np.ndarray) -> np.ndarray:
    """The rank for each facet, by its first vertex, so that all get as many.

    Vertices are counted by the rank in whose even range they are. Such ranges would not do
    themselves: low vertices come first in more facets than high ones.
    """
    vertices, inverse, counts = np.unique(first, return_inverse=True, return_counts=True)
    highest = comm.allreduce(int(vertices[-1]) if len(vertices) else -1, op=MPI.MAX)
    ranges = Ranges(comm, highest + 1)
    route = Route(comm, ranges.holder(vertices))
    asked = route.forward(vertices) - ranges.start
    number = np.zeros(ranges.stop - ranges.start, dtype=np.int64)
    np.add.at(number, asked, route.forward(counts))
    sums = comm.allgather(int(number.sum()))
    before = sum(sums[: comm.rank]) + np.cumsum(number) - number
    return route.backward((before * comm.size // max(sum(sums), 1))[asked])[inverse]
