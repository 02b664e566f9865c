"""Unstructured grids as ``.vtu`` with raw appended data (VTK's XML formats)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
from mpi4py import MPI

from ..errors import InputError
from ..parallel.files import write_together

# VTK's numbers of lines, triangles and tetrahedra, of second order too, by nodes
TYPES = {2: 3, 3: 5, 4: 10, 6: 22, 10: 24}
# VTK's order of DOLFINx's nodes of cells of second order, by dimension
NODES = {2: (0, 1, 2, 5, 3, 4), 3: (0, 1, 2, 3, 9, 6, 8, 7, 5, 4)}
_LENGTH = np.dtype(np.uint64)  # stands before each array


def write_grid(comm: MPI.Comm, path: Path, points: np.ndarray, cells: np.ndarray,
               cell_data: Mapping[str, np.ndarray], point_data: Mapping[str, np.ndarray]) -> None:
    """Write a grid, of which each rank has its rows. Collective.

    ``points (n, 3)`` um; ``cells (m, k)`` are numbers of corners among the points of all ranks;
    data are ``(m,)`` or ``(m, w)`` and ``(n,)`` by name, bools become 0 and 1. Raises InputError of
    an array that the format does not know, OSError where rank 0 cannot write; on every rank.
    """
    counts = np.array(comm.allgather((len(points), len(cells))), dtype=np.int64)
    totals = counts.sum(axis=0)
    corners, before = cells.shape[1], counts[: comm.rank, 1].sum()
    ends = (before + 1 + np.arange(len(cells), dtype=np.int64)) * corners
    kinds = np.full(len(cells), TYPES[corners], dtype=np.uint8)
    sections = [
        ("Points", 0, {"Points": np.asarray(points, dtype=np.float64)}),
        ("Cells", 1, {"connectivity": np.asarray(cells, dtype=np.int64), "offsets": ends,
                      "types": kinds}),
        ("PointData", 0, point_data),
        ("CellData", 1, cell_data),
    ]
    rows: list[np.ndarray] = []
    sizes: list[int] = []
    text = ['<?xml version="1.0"?>\n<VTKFile type="UnstructuredGrid" version="1.0" '
            f'byte_order="{sys.byteorder.title()}Endian" header_type="UInt64">\n'
            '<UnstructuredGrid>\n'
            f'<Piece NumberOfPoints="{totals[0]}" NumberOfCells="{totals[1]}">\n']
    for section, which, arrays in sections:
        text.append(f"<{section}>\n")
        for name, given in arrays.items():
            array = np.ascontiguousarray(given.astype(np.int8) if given.dtype == bool else given)
            if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8 or array.ndim > 2:
                raise InputError(f"{name}: type {array.dtype}, shape {array.shape}, expected "
                                 "numbers or rows of numbers")
            word = {"i": "Int", "u": "UInt", "f": "Float"}[array.dtype.kind]
            wide = array.ndim == 2 and section != "Cells"
            components = f' NumberOfComponents="{array.shape[1]}"' if wide else ""
            text.append(f'<DataArray type="{word}{8 * array.dtype.itemsize}" '
                        f'Name={quoteattr(name)}{components} format="appended" '
                        f'offset="{sum(sizes) + _LENGTH.itemsize * len(sizes)}"/>\n')
            rows.append(array)
            sizes.append(int(totals[which]) * array.dtype.itemsize
                         * int(np.prod(array.shape[1:])))
        text.append(f"</{section}>\n")
    text.append('</Piece>\n</UnstructuredGrid>\n<AppendedData encoding="raw">\n_')

    def write(temporary: Path, streams: list) -> None:
        with temporary.open("wb") as file:
            file.write("".join(text).encode())
            for size, stream in zip(sizes, streams, strict=True):
                file.write(np.array(size, dtype=_LENGTH).tobytes())
                file.writelines(stream)
            file.write(b"\n</AppendedData>\n</VTKFile>\n")

    write_together(comm, path, rows, write)
