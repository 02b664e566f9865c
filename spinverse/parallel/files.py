"""Files that all ranks write together; they appear whole or not at all.

Each rank writes its own bytes with `os.pwrite`. No two ranks write the same byte and pieces are
long, so that MPI's own files, which collect small pieces first, would gain nothing; and an error
keeps its number here, by which a full disk is told from a fault of the program. All ranks must see
the same file system, as for any file of MPI.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from ..errors import on_all, on_root


def write_together(comm: MPI.Comm, path: Path, pieces: Iterable[tuple[int, Any]]) -> None:
    """Write a file of which every rank has some pieces. Collective.

    Args:
        comm: the communicator.
        path: of the file.
        pieces: this rank's: ``(offset, buffer)`` each.

    Raises:
        OSError: on every rank, where one of them cannot write; there is no new file then.
    """
    # nodes of a network file system remember where names led: a name that was used before could
    # lead them to the file that has been renamed since
    token = comm.bcast(secrets.token_hex(4) if comm.rank == 0 else None)
    temporary = path.with_name(f".{token}-{path.name}")
    try:
        on_root(comm, temporary.write_bytes, b"")
        on_all(comm, _write, temporary, pieces)
        on_root(comm, os.replace, temporary, path)
    finally:
        if comm.rank == 0:
            with suppress(OSError):  # of one rank alone; and it would hide what is being raised
                temporary.unlink(missing_ok=True)


def _write(path: Path, pieces: Iterable[tuple[int, Any]]) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        for offset, buffer in pieces:
            left = as_bytes(buffer)
            while len(left):  # a call writes 2 GB at most
                done = os.pwrite(file, left, offset)
                offset, left = offset + done, left[done:]
        os.fsync(file)  # or a power cut may leave the name without the content
    finally:
        os.close(file)


def as_bytes(buffer) -> memoryview:
    """The bytes of an array or of bytes; arrays must be contiguous."""
    if isinstance(buffer, np.ndarray):
        buffer = buffer.reshape(-1).view(np.uint8)
    return memoryview(buffer)
