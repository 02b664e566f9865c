"""Rows of arrays that go from rank to rank: each to a rank and back, or a few to rank 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from mpi4py import MPI


class Route:
    """A way for rows of this rank to other ranks, that can be gone again and back. Collective.

    ``to`` ``(n,)`` is the rank that each of this rank's n rows goes to, ``received`` ``(ranks,)``
    how many come from each.
    """

    def __init__(self, comm: MPI.Comm, to: np.ndarray):
        to = np.asarray(to, dtype=np.int64)
        self.comm = comm
        # None: they are in the order of the ranks already, and need no copy
        self._order = np.argsort(to, kind="stable") if np.any(to[1:] < to[:-1]) else None
        self._sent = np.bincount(to, minlength=comm.size).astype(np.int64)
        self.received = np.empty_like(self._sent)
        comm.Alltoall(self._sent, self.received)

    def forward(self, rows: np.ndarray) -> np.ndarray:
        """The rows ``(n, ...)``, of one type and width on all ranks, that arrive here. Collective.

        By rank and then in that rank's order.
        """
        rows = _of_length(rows, self._sent)
        rows = rows if self._order is None else rows[self._order]
        return _exchanged(self.comm, rows, self._sent, self.received)

    def backward(self, rows: np.ndarray) -> np.ndarray:
        """An answer to each of this rank's n rows, in their order. Collective.

        From answers to the rows that arrived here, as `forward` gave them.
        """
        answers = _exchanged(self.comm, _of_length(rows, self.received), self.received, self._sent)
        if self._order is None:
            return answers
        result = np.empty_like(answers)
        result[self._order] = answers
        return result


@dataclass(frozen=True)
class Ranges:
    """Numbers from 0 to ``total`` in even ranges, one a rank, in the order of the ranks."""

    comm: MPI.Comm
    total: int

    @cached_property
    def bounds(self) -> np.ndarray:
        """``(ranks + 1,)``: rank r has the numbers from ``bounds[r]`` to ``bounds[r + 1]``."""
        size = self.comm.size
        return np.array([rank * int(self.total) // size for rank in range(size + 1)],
                        dtype=np.int64)

    @property
    def start(self) -> int:
        """First number of this rank."""
        return int(self.bounds[self.comm.rank])

    @property
    def stop(self) -> int:
        """One more than the last number of this rank."""
        return int(self.bounds[self.comm.rank + 1])

    def holder(self, numbers: np.ndarray) -> np.ndarray:
        """The rank that has each number."""
        numbers = np.asarray(numbers, dtype=np.int64)
        return ((numbers + 1) * self.comm.size - 1) // max(int(self.total), 1)

    def fetch(self, numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Values ``(n, ...)`` of any numbers ``(n,)``, from the ranks that have them. Collective.

        ``values`` ``(stop - start, ...)`` are of this rank's range.
        """
        route = Route(self.comm, self.holder(numbers))
        return route.backward(np.asarray(values)[route.forward(numbers) - self.start])


def scatter(comm: MPI.Comm, array: np.ndarray | None) -> np.ndarray:
    """This rank's range of an array that rank 0 holds, see `Ranges`. Collective."""
    kind, shape = comm.bcast((array.dtype, array.shape) if array is not None else None)
    rows = np.empty((0, *shape[1:]), kind) if array is None or comm.rank else array
    return Route(comm, Ranges(comm, shape[0]).holder(np.arange(len(rows)))).forward(rows)


def gather_chosen(comm: MPI.Comm, chosen: np.ndarray, keys: np.ndarray,
                  *arrays: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """The chosen rows of all ranks on rank 0, in the lexicographic order of their keys. Collective.

    ``chosen`` ``(n,)`` bool are few, a surface in a mesh, say; ``keys`` ``(n, k)`` are integers
    that tell rows apart whatever the rank, as vertex triples do. ``(keys, *arrays)``, or ``None``
    elsewhere.
    """
    parts = [comm.gather(np.asarray(a)[chosen], root=0) for a in (keys, *arrays)]
    if comm.rank:
        return None
    whole = [np.concatenate(part) for part in parts]
    order = np.lexsort(whole[0].T[::-1])
    return tuple(array[order] for array in whole)


def summed(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal rows of integer keys ``(n, k)`` once, ascending, and the sums of their values ``(n,)``.

    Of one rank. Over all ranks: `Route` the sums to a rank that the key tells, and sum them again.
    """
    if not len(keys):
        return keys, values
    order = np.lexsort(keys.T[::-1])
    keys, values = keys[order], values[order]
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    return keys[first], np.add.reduceat(values, np.flatnonzero(first))


def _of_length(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The rows; MPI would go on reading behind the end of an array that is too short."""
    rows = np.asarray(rows)
    if rows.shape[:1] != (int(counts.sum()),):
        raise ValueError(f"rows: shape {rows.shape}, expected ({int(counts.sum())}, ...)")
    return rows


def _exchanged(comm: MPI.Comm, rows: np.ndarray, sent: np.ndarray,
               received: np.ndarray) -> np.ndarray:
    rows = np.ascontiguousarray(rows)
    result = np.empty((int(received.sum()), *rows.shape[1:]), rows.dtype)
    width = rows.dtype.itemsize * prod(rows.shape[1:])
    row = MPI.BYTE.Create_contiguous(width).Commit()  # rows are counted, bytes might be too many
    comm.Alltoallv([_bytes(rows), (sent, _starts(sent)), row],
                   [_bytes(result), (received, _starts(received)), row])
    row.Free()
    return result


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)[:-1]])


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def reduced(comm: MPI.Comm, local: np.ndarray, op: MPI.Op = MPI.SUM) -> np.ndarray:
    """An array of the same shape on all ranks, entry by entry. Collective."""
    result = np.empty_like(local)
    comm.Allreduce(np.ascontiguousarray(local), result, op=op)
    return result
