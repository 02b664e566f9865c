"""Files of arrays whose rows lie on all ranks: rank 0 writes, the others send piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from mpi4py import MPI

from ..atomic import replace
from ..errors import on_root

PIECE = 1 << 16  # bytes that go at a time: all that rank 0 holds of other ranks


def write_together(comm: MPI.Comm, path: Path, arrays: Sequence[np.ndarray],
                   write: Callable[[Path, list[Iterator]], object]) -> None:
    """Write a file that appears whole or not at all. Collective.

    ``write`` is called on rank 0 with a temporary path, and with an iterator over the bytes of each
    of the ``arrays``, the rows of all ranks in the ranks' order. It goes through them in their
    order.

    Raises:
        Exception: what ``write`` raises, on every rank; there is no new file then.
    """
    parts = [memoryview(np.ascontiguousarray(a).reshape(-1).view(np.uint8)) for a in arrays]
    lengths = comm.gather([len(part) for part in parts])
    for part in parts if comm.rank else []:
        for piece in _cut(part):
            comm.Send(piece, dest=0)

    def run() -> None:
        streams = [_pieces(comm, part, [sent[k] for sent in lengths[1:]])
                   for k, part in enumerate(parts)]
        try:
            replace(path, lambda temporary: write(temporary, streams))
        finally:
            for _ in chain(*streams):  # of a write that failed: those who send wait for it
                pass

    on_root(comm, run)


def _cut(part: memoryview) -> Iterator[memoryview]:
    return (part[at: at + PIECE] for at in range(0, len(part), PIECE))


def _pieces(comm: MPI.Comm, part: memoryview, lengths: list[int]) -> Iterator:
    """The bytes of rank 0, then those that come from the other ranks."""
    yield from _cut(part)
    for source, length in enumerate(lengths, start=1):
        for at in range(0, length, PIECE):
            piece = bytearray(min(PIECE, length - at))
            comm.Recv(piece, source)
            yield piece
