"""TetGen's files: .node, .ele and, where there is one, .face."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spinverse.errors import InputError, one_line
from spinverse.mesh.checks import cell_volumes
from spinverse.mesh.data import MeshData


def read_tetgen(path: str | Path) -> MeshData:
    """Read the mesh of which ``path`` is the ``.node`` or the ``.ele`` file, of the same name.

    Numbers count from 0 or 1, as the ``.node`` file does. The last attribute of a tetrahedron
    (the region, ``tetgen -A``) is its cell tag, the marker of a face in ``.face`` its interface
    tag; marker 0 and missing ones say nothing. Of quadratic tetrahedra the corners are taken.
    Coordinates are um. The mesh is not checked, and its unused vertices are still there.

    Raises:
        InputError: a companion is missing, or a file does not have TetGen's format.
    """
    path = Path(path)
    files = {suffix: path.with_suffix(suffix) for suffix in (".node", ".ele", ".face")}
    for suffix in (".node", ".ele"):
        if not files[suffix].is_file():
            raise InputError(f"mesh file '{path}': no such file as '{files[suffix].name}' beside "
                             "it, expected .node and .ele of the same name")
    header, rows = _table(files[".node"], (2, 4), 4)
    if len(header) > 1 and header[1] != 3:
        raise InputError(f"mesh file '{files['.node']}': dimension is {header[1]}, expected 3")
    first = int(rows[0, 0]) if len(rows) else 0
    if first not in (0, 1) or (rows[:, 0] != np.arange(first, first + len(rows))).any():
        raise InputError(f"mesh file '{files['.node']}': points are not numbered one by one, "
                         "expected numbers from 0 or 1")
    points = rows[:, 1:4]

    header, rows = _table(files[".ele"], (1, 3), 5)
    width = header[1] if len(header) > 1 else 4
    if width not in (4, 10):
        raise InputError(f"mesh file '{files['.ele']}': {width} nodes a tetrahedron, expected 4 "
                         "or 10")
    tets = _whole(files[".ele"], rows[:, 1:5]) - first
    tags = _whole(files[".ele"], rows[:, -1]) if rows.shape[1] > 1 + width else None
    tags = tags if np.any(tags) else None
    _in_range(files[".ele"], tets, len(points))

    triples = markers = None
    if files[".face"].is_file():
        header, rows = _table(files[".face"], (1, 2), 4)
        if len(header) > 1 and header[1] and len(rows):
            # nodes of the face, 3 or 6, then the marker; -nn appends the two tets
            columns = 7 if rows.shape[1] in (8, 10) and width == 10 else 4
            if rows.shape[1] <= columns:
                raise InputError(f"mesh file '{files['.face']}': has {rows.shape[1]} columns, "
                                 "expected the marker that its first line announces")
            markers = _whole(files[".face"], rows[:, columns])
            triples = _whole(files[".face"], rows[:, 1:4])[markers != 0] - first
            markers = markers[markers != 0]
            _in_range(files[".face"], triples, len(points))
    if not len(tets):
        raise InputError(f"mesh file '{path}': holds no tetrahedra, expected some")
    if (cell_volumes(points, tets) < 0).all():  # the other convention, not a defect
        tets = tets[:, [0, 1, 3, 2]]
    return MeshData(points, tets, tags, triples, markers, name=path.name)


def _table(path: Path, header_widths: tuple, least: int) -> tuple[list[int], np.ndarray]:
    """The numbers of the first line and the rows that it announces; ``#`` starts a comment."""
    try:
        stripped = (raw.split("#", 1)[0].strip() for raw in path.read_text().splitlines())
        lines = [line for line in stripped if line]
        header = [int(word) for word in lines[0].split()]
        rows = np.loadtxt(lines[1:], ndmin=2) if len(lines) > 1 else np.empty((0, least))
    except (ValueError, IndexError, OSError) as error:
        raise InputError(f"mesh file '{path}': cannot be read as TetGen {path.suffix} "
                         f"({one_line(error)[:200]}), expected rows of numbers") from None
    if not header_widths[0] <= len(header) <= header_widths[1] or header[0] < 0:
        raise InputError(f"mesh file '{path}': first line is '{lines[0][:80]}', expected the count "
                         "of rows and what they hold")
    if len(rows) != header[0]:
        raise InputError(f"mesh file '{path}': has {len(rows)} rows, expected the {header[0]} "
                         "that its first line announces")
    if rows.shape[1] < least:
        raise InputError(f"mesh file '{path}': has {rows.shape[1]} columns, expected {least} or "
                         "more")
    return header, rows


def _whole(path: Path, values: np.ndarray) -> np.ndarray:
    bad = ~np.isfinite(values) | (values != np.rint(values)) | (np.abs(values) > 2**53)
    if bad.any():
        raise InputError(f"mesh file '{path}': holds {values[bad][0]:g} where a vertex number, "
                         "attribute or marker stands, expected integers")
    return values.astype(np.int64)


def _in_range(path: Path, rows: np.ndarray, count: int) -> None:
    bad = ((rows < 0) | (rows >= count)).any(axis=1)
    if bad.any():
        raise InputError(f"mesh file '{path}': row {bad.argmax()} names a vertex that the .node "
                         f"file does not have ({bad.sum()} such), expected {count} vertices")
