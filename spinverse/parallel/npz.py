"""Numpy's ``.npz``, written and read by all ranks together, each its rows of the long arrays.

What is written is a plain zip without compression, for rows then lie at places that every rank can
work out. Its dates and headers do not vary, so that the bytes are the same at any number of ranks.
Zips of more than 4 GB have the fields of zip64 (APPNOTE.TXT of PKWARE, 4.3 and 4.5.3). What is read
may be any ``.npz``: where it is compressed every rank goes through the stream and keeps its rows.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from ..errors import on_all
from .checksum import combined, crc32, of_parts
from .exchange import Ranges
from .files import as_bytes, write_together

SMALL = 0xFFFFFFFF  # sizes and offsets from here on are zip64's
DATE = 1 << 5 | 1  # 1980-01-01, the first one
BLOCK = 1 << 20  # bytes that are read at a time where a stream is gone through


@dataclass(frozen=True, eq=False)
class Rows:
    """This rank's rows of an array; those of all ranks follow each other in the ranks' order."""

    values: np.ndarray


# ---- writing --------------------------------------------------------------------------------

def write_npz(comm: MPI.Comm, path: Path, arrays: Mapping[str, np.ndarray | Rows],
              seal: str | None = None) -> None:
    """Write arrays so that `numpy.load` reads them; appears whole or not at all. Collective.

    Args:
        comm: the communicator.
        path: of the file.
        arrays: `Rows`, or arrays that are the same on every rank.
        seal: name of one more array, a text that changes with the content of any other, see
            `NpzReader.sealed`.

    Raises:
        ValueError: on every rank, where one of them has Python objects, or rows of another type or
            width than the others.
        OSError: on every rank, where one of them cannot write.
    """
    layout = _Layout(comm)
    pieces: list[tuple[int, Any]] = []
    members = [(name, array.values if isinstance(array, Rows) else np.asarray(array),
                isinstance(array, Rows)) for name, array in arrays.items()]
    parts = on_all(comm, lambda: [_part(values, rows) for _, values, rows in members])
    everywhere = comm.allgather([part[1:] for part in parts])
    for k, ((name, _, rows), (buffer, *_)) in enumerate(zip(members, parts, strict=True)):
        pieces += layout.member(name, [one[k] for one in everywhere], rows, buffer)
    if seal is not None:
        text = np.array(layout.seal())
        buffer, *part = _part(text, False)
        pieces += layout.member(seal, [part], False, buffer)
    pieces += [(layout.end, layout.directory())] if comm.rank == 0 else []
    write_together(comm, path, pieces)


def _part(values: np.ndarray, rows: bool) -> tuple[np.ndarray, np.dtype, tuple, int]:
    if values.dtype.hasobject or (rows and values.ndim == 0):
        raise ValueError(f"type {values.dtype}, shape {values.shape}, expected plain values")
    buffer = np.ascontiguousarray(values)
    return buffer, values.dtype, values.shape, crc32(as_bytes(buffer))


class _Layout:
    """Where the members of a zip lie, known on every rank alike."""

    def __init__(self, comm: MPI.Comm):
        self.comm, self.end = comm, 0
        self._members: list[tuple[bytes, int, int, int]] = []  # name, crc, size, offset

    def member(self, name: str, parts: list, rows: bool,
               buffer: np.ndarray) -> list[tuple[int, Any]]:
        """One more array, of these ``(type, shape, crc)``; the pieces that this rank writes.

        Collective.
        """
        rank, parts = self.comm.rank, parts if rows else parts[:1]
        kind, shape, _ = parts[0]
        if any((part[0], part[1][1:]) != (kind, shape[1:]) for part in parts):
            raise ValueError(f"{name}: ranks have rows of different types or widths")
        if rows:
            shape = (sum(part[1][0] for part in parts), *shape[1:])
        lengths = [kind.itemsize * prod(part[1]) for part in parts]
        header = _npy_header(kind, shape)
        crc = combined(crc32(header), of_parts(
            self.comm, parts[rank][2] if rank < len(parts) else 0, sum(lengths[rank + 1:])),
            sum(lengths))
        encoded, offset = f"{name}.npy".encode("ascii"), self.end
        size = len(header) + sum(lengths)
        local = _local_header(encoded, crc, size) + header
        self._members.append((encoded, crc, size, offset))
        start, self.end = offset + len(local), offset + len(local) + sum(lengths)
        mine = [(start + sum(lengths[:rank]), buffer)] if rank < len(parts) else []
        return ([(offset, local)] if rank == 0 else []) + mine

    def seal(self) -> str:
        return _seal((name.decode(), crc, size) for name, crc, size, _ in self._members)

    def directory(self) -> bytes:
        """What a zip ends with."""
        start = self.end
        entries = b"".join(_central_header(*member) for member in self._members)
        count, size = len(self._members), len(entries)
        tail = b""
        if start >= SMALL or count >= 0xFFFF:
            tail = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size,
                               start)
            tail += struct.pack("<4sLQL", b"PK\x06\x07", 0, start + size, 1)
        short = min(count, 0xFFFF)
        tail += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, short, short, min(size, 0xFFFFFFFF),
                            0xFFFFFFFF if start >= SMALL else start, 0)
        return entries + tail


def _local_header(name: bytes, crc: int, size: int) -> bytes:
    # always with the long sizes, as numpy does: readers take them whether or not they are needed
    extra = struct.pack("<2H2Q", 1, 16, size, size)
    return struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 0, 0, DATE, crc, 0xFFFFFFFF, 0xFFFFFFFF,
                       len(name), len(extra)) + name + extra


def _central_header(name: bytes, crc: int, size: int, offset: int) -> bytes:
    long = [size, size] * (size >= SMALL) + [offset] * (offset >= SMALL)
    extra = struct.pack(f"<2H{len(long)}Q", 1, 8 * len(long), *long) if long else b""
    size, offset = (0xFFFFFFFF if value >= SMALL else value for value in (size, offset))
    return struct.pack("<4s4B4H3L5H2L", b"PK\x01\x02", 45, 3, 45, 0, 0, 0, 0, DATE, crc, size, size,
                       len(name), len(extra), 0, 0, 0, 0o600 << 16, offset) + name + extra


def _npy_header(kind: np.dtype, shape: tuple) -> bytes:
    text = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(text, about)
    return text.getvalue()


def _seal(members: Iterable[tuple[str, int, int]]) -> str:
    """A hash of names, sizes and CRCs. It finds damage and edits; forgers it does not stop."""
    text = "".join(f"{name} {size} {crc:08x}\n" for name, crc, size in sorted(members))
    return hashlib.sha256(text.encode()).hexdigest()


# ---- reading --------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    kind: np.dtype
    shape: tuple
    fortran: bool
    header: bytes


class NpzReader:
    """An open ``.npz``, of which each rank reads its rows. A context manager; collective.

    Every rank opens the file. Content that is not what the zip's checksums say is an error.

    Args:
        comm: the communicator.
        path: of the file.

    Attributes:
        names: of the arrays.

    Raises:
        OSError, ValueError, KeyError, zipfile.BadZipFile: from here and from all methods, on every
            rank the same.
    """

    def __init__(self, comm: MPI.Comm, path: Path):
        self.comm, self.path = comm, path
        self._file, self._zip = on_all(comm, self._open)
        self.names = [info.filename.removesuffix(".npy") for info in self._zip.infolist()]

    def _open(self):
        file = self.path.open("rb")
        try:
            return file, zipfile.ZipFile(file)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> NpzReader:
        return self

    def __exit__(self, *_) -> None:
        self._zip.close()
        self._file.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a whole array."""
        return on_all(self.comm, self._member, name).shape

    def whole(self, name: str) -> np.ndarray:
        """A whole array, on every rank: for short ones."""
        return on_all(self.comm, self._whole, name)

    def rows(self, name: str) -> np.ndarray:
        """This rank's rows of an array, see `Ranges`."""
        member = on_all(self.comm, self._member, name)
        if not member.shape:
            raise ValueError(f"{name} is a single value, expected rows")
        ranges = Ranges(self.comm, member.shape[0])
        plain = member.info.compress_type == zipfile.ZIP_STORED and not member.fortran
        values = on_all(self.comm, self._stored if plain else self._streamed, member, ranges)
        if plain:
            self._check(member, values)
        return values

    def sealed(self, seal: str) -> bool:
        """Whether the array of that name is what `write_npz` made of all others.

        The others have then the checksums that they had; reading them compares with these.
        """
        if seal not in self.names:
            return False
        members = ((info.filename, info.CRC, info.file_size) for info in self._zip.infolist()
                   if info.filename != f"{seal}.npy")
        return str(self.whole(seal)) == _seal(members)

    def _member(self, name: str) -> _Member:
        info = self._zip.getinfo(f"{name}.npy")
        with self._zip.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            reader = {(1, 0): np.lib.format.read_array_header_1_0,
                      (2, 0): np.lib.format.read_array_header_2_0}.get(version)
            if reader is None:
                raise ValueError(f"{name}: version {version} of .npy")
            shape, fortran, kind = reader(stream)
            length = stream.tell()
            stream.seek(0)
            header = stream.read(length)
        if kind.hasobject:
            raise ValueError(f"{name}: holds Python objects, expected plain values")
        if info.file_size != length + kind.itemsize * prod(shape):
            raise ValueError(f"{name}: {info.file_size} bytes, expected {shape} of {kind}")
        return _Member(info, kind, shape, fortran and len(shape) > 1, header)

    def _whole(self, name: str) -> np.ndarray:
        self._member(name)  # for its checks
        with self._zip.open(f"{name}.npy") as stream:
            content = stream.read()  # to the end, where zipfile compares checksums
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)

    def _stored(self, member: _Member, ranges: Ranges) -> np.ndarray:
        """Rows that lie in the file as they are."""
        file, start = self._file.fileno(), member.info.header_offset
        local = os.pread(file, 30, start)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"{member.info.filename}: no header")
        values = np.empty((ranges.stop - ranges.start, *member.shape[1:]), member.kind)
        start += 30 + sum(struct.unpack("<2H", local[26:])) + len(member.header)
        start += ranges.start * member.kind.itemsize * prod(member.shape[1:])
        left = as_bytes(values)
        while len(left):
            done = os.preadv(file, [left], start)
            if not done:
                raise zipfile.BadZipFile(f"{member.info.filename}: ends too early")
            start, left = start + done, left[done:]
        return values

    def _check(self, member: _Member, values: np.ndarray) -> None:
        lengths = self.comm.allgather(values.nbytes)
        crc = combined(crc32(member.header), of_parts(
            self.comm, crc32(as_bytes(values)), sum(lengths[self.comm.rank + 1:])), sum(lengths))
        if crc != member.info.CRC:
            raise zipfile.BadZipFile(f"{member.info.filename}: another checksum than its zip says")

    def _streamed(self, member: _Member, ranges: Ranges) -> np.ndarray:
        """Rows of a member that is compressed, or in Fortran's order: all of it passes by."""
        count, width = ranges.stop - ranges.start, prod(member.shape[1:])
        # Fortran's order: column by column, (N, a, b) as (b, a, N)
        shape = (*member.shape[:0:-1], count) if member.fortran else (1, count, *member.shape[1:])
        values = np.empty(shape, member.kind)
        size, at = member.kind.itemsize, 0
        with self._zip.open(member.info) as stream:
            for k, column in enumerate(values.reshape(width if member.fortran else 1, -1)):
                begin = len(member.header) + size * (
                    k * member.shape[0] + ranges.start if member.fortran else ranges.start * width)
                _skip(stream, begin - at)
                left = as_bytes(column)
                at = begin + len(left)
                while len(left):
                    done = stream.readinto(left[:BLOCK])
                    if not done:
                        raise zipfile.BadZipFile(f"{member.info.filename}: ends too early")
                    left = left[done:]
            while stream.read(BLOCK):  # to the end, where zipfile compares checksums
                pass
        return np.ascontiguousarray(values.transpose()) if member.fortran else values[0]


def _skip(stream, count: int) -> None:
    while count > 0:
        done = len(stream.read(min(count, BLOCK)))
        if not done:
            return
        count -= done
