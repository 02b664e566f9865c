"""Numpy's ``.npz``, written and read by all ranks together, each its rows of the long arrays.

It is not HDF5, which ranks could write at once, for it needs no more than numpy to be read.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from mpi4py import MPI

from ..errors import on_all
from .exchange import Ranges
from .files import PIECE, write_together


@dataclass(frozen=True, eq=False)
class Rows:
    """This rank's rows of an array; those of all ranks follow each other in the ranks' order."""

    values: np.ndarray


def write_npz(comm: MPI.Comm, path: Path, arrays: Mapping[str, np.ndarray | Rows]) -> None:
    """Write arrays so that `numpy.load` reads them; appears whole or not at all. Collective.

    Arrays are `Rows`, or the same on every rank; the bytes are the same at any number of ranks.

    Raises:
        ValueError: rows of Python objects, or of another type or width than on other ranks.
        OSError: rank 0 cannot write. Either on every rank.
    """
    rows = {name: np.ascontiguousarray(array.values) for name, array in arrays.items()
            if isinstance(array, Rows)}
    said = comm.allgather([(a.dtype, a.shape[1:]) for a in rows.values()])
    for name, first, *others in zip(rows, *said, strict=True):
        if first[0].hasobject or any(other != first for other in others):
            raise ValueError(f"{name}: type {first[0]}, rows {first[1]} on rank 0, expected plain "
                             "values, the same on all ranks")
    counts = comm.allreduce(np.array([len(a) for a in rows.values()], dtype=np.int64))

    def write(temporary: Path, streams: list) -> None:
        totals, pieces = map(int, counts), iter(streams)
        with zipfile.ZipFile(temporary, "w") as file:
            for name, array in arrays.items():
                info = zipfile.ZipInfo(f"{name}.npy")  # of no date: that would change the bytes
                with file.open(info, "w", force_zip64=True) as member:
                    if not isinstance(array, Rows):
                        np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
                        continue
                    header = np.lib.format.header_data_from_array_1_0(rows[name])
                    header["shape"] = (next(totals), *rows[name].shape[1:])
                    np.lib.format.write_array_header_1_0(member, header)
                    member.writelines(next(pieces))

    write_together(comm, path, list(rows.values()), write)


class NpzReader:
    """An open ``.npz`` of any kind, of which each rank reads its rows. A context manager.

    Every rank goes through all of what is asked for, and so notices content that is not what the
    zip's checksums say. Methods are collective, and raise the same on every rank: OSError,
    ValueError, KeyError, zipfile.BadZipFile, zlib.error. ``names`` are those of the arrays.
    """

    def __init__(self, comm: MPI.Comm, path: Path):
        self.comm = comm
        self._zip = on_all(comm, zipfile.ZipFile, path)
        self.names = [name.removesuffix(".npy") for name in self._zip.namelist()]

    def __enter__(self) -> NpzReader:
        return self

    def __exit__(self, *_) -> None:
        self._zip.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a whole array."""
        return self._read(name, lambda stream: _header(stream)[0])

    def whole(self, name: str) -> np.ndarray:
        """A whole array, on every rank: for short ones."""
        def read(stream) -> np.ndarray:
            array = np.lib.format.read_array(stream, allow_pickle=False)
            _ends(stream)
            return array

        return self._read(name, read)

    def _read(self, name: str, read: Callable):
        def opened():
            with self._zip.open(f"{name}.npy") as stream:
                return read(stream)

        return on_all(self.comm, opened)

    def rows(self, name: str) -> np.ndarray:
        """This rank's rows of an array, see `Ranges`."""
        return on_all(self.comm, self._rows, name)

    def _rows(self, name: str) -> np.ndarray:
        with self._zip.open(f"{name}.npy") as stream:
            shape, fortran, kind = _header(stream)
            if kind.hasobject or not shape:
                raise ValueError(f"{name}: {shape} of {kind}, expected rows, no Python objects")
            ranges, width = Ranges(self.comm, shape[0]), prod(shape[1:])
            # Fortran's order: column by column
            columns, size = (width, kind.itemsize) if fortran else (1, kind.itemsize * width)
            here = (ranges.stop - ranges.start, *shape[1:])
            values = np.empty((columns, prod(here) // max(columns, 1)), kind)
            for column in values:
                left = memoryview(column.view(np.uint8))
                for _ in _pieces(stream, size * ranges.start):
                    pass
                for piece in _pieces(stream, len(left)):
                    left[: len(piece)] = piece
                    left = left[len(piece):]
                for _ in _pieces(stream, size * (shape[0] - ranges.stop)):
                    pass
            _ends(stream)
        return np.ascontiguousarray(values.T.reshape(here, order="F")) if fortran \
            else values.reshape(here)


def _header(stream) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type."""
    read = {(1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0}
    return read[np.lib.format.read_magic(stream)](stream)


def _pieces(stream, count: int) -> Iterator[bytes]:
    while count:
        piece = stream.read(min(count, PIECE))
        if not piece:
            raise zipfile.BadZipFile(f"{stream.name}: ends too early")
        count -= len(piece)
        yield piece


def _ends(stream) -> None:
    """At the end zipfile compares checksums."""
    if stream.read(1):
        raise zipfile.BadZipFile(f"{stream.name}: longer than its header says")
