"""A mesh as plain arrays, before it is distributed: what files and builders give."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from spinverse.errors import InputError
from spinverse.mesh import checks


@dataclass(frozen=True, eq=False)
class MeshData:
    """A tetrahedral mesh in plain arrays, in the numbering of its file or builder.

    Types are converted and shapes checked on construction; geometry and conformity are
    checked by :meth:`check`, which every reader and builder calls.

    Attributes:
        points: vertex coordinates, ``(Nv, 3)`` float64, um.
        tets: vertices of each tetrahedron, ``(Nt, 4)`` int64, positively oriented.
        cell_tags: tag of each tetrahedron, ``(Nt,)`` int32 (1 where nothing is said).
        interface_facets: vertex triples of the known membrane, ``(Nb, 3)`` int64, each
            row ascending; empty where no membrane is known.
        interface_tags: tag of each row of ``interface_facets``, ``(Nb,)`` int32 (1 where
            nothing is said).
        name: for messages and reports.
        input_vertices: number that each vertex had in the file, ``(Nv,)`` int64, ascending;
            differs from ``0 .. Nv-1`` only where a reader left unused vertices out.

    Raises:
        InputError: an array of a wrong shape or type.
    """

    points: np.ndarray
    tets: np.ndarray
    cell_tags: np.ndarray = None
    interface_facets: np.ndarray = None
    interface_tags: np.ndarray = None
    name: str = field(default="mesh")
    input_vertices: np.ndarray = None

    def __post_init__(self):
        points = _array(self.name, "points", self.points, (None, 3), np.float64)
        tets = _array(self.name, "tets", self.tets, (None, 4), np.int64)
        triples = np.empty((0, 3), np.int64) if self.interface_facets is None \
            else self.interface_facets
        triples = _array(self.name, "interface_facets", triples, (None, 3), np.int64)
        vertices = self.input_vertices
        values = {
            "points": points,
            "tets": tets,
            "cell_tags": _tags(self.name, "cell_tags", self.cell_tags, len(tets)),
            "interface_facets": np.sort(triples, axis=1),
            "interface_tags": _tags(
                self.name, "interface_tags", self.interface_tags, len(triples)),
            "input_vertices": _array(
                self.name, "input_vertices",
                np.arange(len(points)) if vertices is None else vertices,
                (len(points),), np.int64),
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def check(self) -> MeshData:
        """Check geometry and conformity (see :func:`checks.check_mesh`); returns itself.

        Raises:
            InputError: the first defect found, in one line.
        """
        checks.check_mesh(self)
        return self


def _tags(name: str, key: str, value, count: int) -> np.ndarray:
    tags = np.ones(count, np.int64) if value is None else value
    tags = _array(name, key, tags, (count,), np.int64)
    limit = np.iinfo(np.int32).max
    if count and np.abs(tags).max() > limit:
        raise InputError(f"mesh '{name}': {key}[{np.abs(tags).argmax()}] does not fit 32 bits, "
                         f"expected tags of at most {limit}")
    return tags.astype(np.int32)


def _array(name: str, key: str, value, shape: tuple, dtype) -> np.ndarray:
    """``value`` as a fresh array of ``dtype`` and ``shape`` (``None``: any length)."""
    expected = "(" + ", ".join("N" if n is None else str(n) for n in shape) + \
        (",)" if len(shape) == 1 else ")")
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(f"mesh '{name}': {key} is ragged, expected an array of shape "
                         f"{expected}") from None
    if array.size == 0 and array.ndim < 2:
        # an empty list has no second dimension and no integer type
        array = np.empty([n or 0 for n in shape], dtype)
    fits = array.ndim == len(shape) and all(
        n is None or n == m for n, m in zip(shape, array.shape, strict=True))
    if not fits:
        raise InputError(f"mesh '{name}': {key} has shape {array.shape}, expected {expected}")
    kinds, words = ("iu", "integers") if dtype == np.int64 else ("iuf", "real numbers")
    if array.dtype.kind not in kinds:
        raise InputError(f"mesh '{name}': {key} has type {array.dtype}, expected {words}")
    return np.array(array, dtype=dtype, order="C")
