"""A mesh as plain arrays, before it is distributed: what files and builders give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spinverse.errors import InputError
from spinverse.mesh import checks, curved
from spinverse.mesh.arguments import array

CELLS = {3: "tets", 2: "triangles", 1: "intervals"}  # names of cells, by dimension; npz keys
MOST = 6  # tags that a line names


@dataclass(frozen=True, eq=False, repr=False)
class MeshData:
    """A simplex mesh in plain arrays, in the numbering of its file or builder.

    Cells are tetrahedra, triangles in the plane z = 0, or intervals on the x axis: the dimension
    d is 3, 2 or 1. Facets are what separates cells: triangles, edges, points.

    Types are converted and shapes checked on construction, the rest by :meth:`check`, which every
    reader and builder calls.

    Attributes:
        points: vertex coordinates, ``(Nv, 3)`` float64, um.
        cells: vertices of each cell, ``(Nt, d + 1)`` int64, positively oriented.
        cell_tags: tag of each cell, ``(Nt,)`` int32 (1 where nothing is said).
        interface_facets: vertices of the facets of the known membrane, ``(Nb, d)`` int64, each
            row ascending; empty where no membrane is known.
        interface_tags: tag of each of them, ``(Nb,)`` int32 (1 where nothing is said).
        name: for messages and reports.
        input_vertices: number that each vertex had in the file, ``(Nv,)`` int64, ascending;
            differs from ``0 .. Nv-1`` only where a reader left unused vertices out.
        curved_edges: vertices of the edges that are bent, ``(Ne, 2)`` int64, each row ascending;
            empty in a mesh of first order. See :mod:`.curved`.
        middles: where these edges have their middle, ``(Ne, 3)`` float64, um.

    Raises:
        InputError: an array of a wrong shape or type.
    """

    points: np.ndarray
    cells: np.ndarray
    # arrays once made, whatever was given
    cell_tags: Any = None
    interface_facets: Any = None
    interface_tags: Any = None
    name: str = "mesh"
    input_vertices: Any = None
    curved_edges: Any = None
    middles: Any = None

    def __post_init__(self):
        where, given, vertices = f"mesh '{self.name}'", self.interface_facets, self.input_vertices
        points = array(where, "points", self.points, (None, 3), np.float64)
        cells = array(where, "cells", self.cells, (None, _width(self.cells)), np.int64)
        width = cells.shape[1] - 1
        facets = np.empty((0, width), np.int64) if given is None or np.size(given) == 0 else \
            array(where, "interface_facets", given, (None, width), np.int64)
        edges = np.empty((0, 2), np.int64) if self.curved_edges is None else array(
            where, "curved_edges", self.curved_edges, (None, 2), np.int64)
        values = {
            "points": points,
            "curved_edges": np.sort(edges, axis=1),
            "middles": np.empty((0, 3)) if self.middles is None else array(
                where, "middles", self.middles, (len(edges), 3), np.float64),
            "cells": cells,
            "cell_tags": _tags(where, "cell_tags", self.cell_tags, len(cells)),
            "interface_facets": np.sort(facets, axis=1),
            "interface_tags": _tags(where, "interface_tags", self.interface_tags, len(facets)),
            "input_vertices": np.arange(len(points)) if vertices is None else array(
                where, "input_vertices", vertices, (len(points),), np.int64)}
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @property
    def dim(self) -> int:
        """3 for tetrahedra, 2 for triangles, 1 for intervals."""
        return self.cells.shape[1] - 1

    def __repr__(self) -> str:
        return (f"MeshData({self.name!r}, {CELLS[self.dim]}={len(self.cells)}, "
                f"interface_facets={len(self.interface_facets)})")

    def __str__(self) -> str:
        return "\n".join([
            f"mesh '{self.name}': {len(self.cells)} {CELLS[self.dim]}, {len(self.points)} vertices",
            *tags_in_words(self.points, self.volumes, self.cell_tags, self.interface_tags)])

    @property
    def volumes(self) -> np.ndarray:
        """Of the cells, ``(Nt,)`` um^d, bent edges taken into account."""
        return curved.Bent(self.curved_edges, self.middles).volumes(self.points, self.cells)

    def check(self) -> MeshData:
        """Check geometry and conformity, see :func:`checks.check_mesh`; returns itself."""
        checks.check_mesh(self)
        curved.check(self)
        return self


def tags_in_words(points: np.ndarray, volumes: np.ndarray, cell_tags: np.ndarray,
                  interface_tags: np.ndarray) -> list[str]:
    """Lines about the extent of a mesh, its cell tags and its interface tags."""
    sides = " x ".join(f"{side:.4g}" for side in np.ptp(points, axis=0) if side > 0)
    cells = [f"{tag} ({100 * volumes[cell_tags == tag].sum() / volumes.sum():.3g} %)"
             for tag in np.unique(cell_tags)]
    facets = [f"{tag} ({np.count_nonzero(interface_tags == tag)} facets)"
              for tag in np.unique(interface_tags)]
    lines = [f"{sides} um"]
    for name, words in (("cell tags", cells), ("interface tags", facets or ["none"])):
        more = f" and {len(words) - MOST} more" if len(words) > MOST else ""
        lines.append(f"{name}: {', '.join(words[:MOST])}{more}")
    return lines


def _width(cells) -> int:
    """Vertices of a cell: 4 unless the array says 2 or 3."""
    try:
        shape = np.shape(cells)
    except ValueError:  # ragged
        return 4
    return shape[1] if len(shape) == 2 and shape[1] in (2, 3) else 4


def _tags(where: str, key: str, value, count: int) -> np.ndarray:
    if value is None:
        return np.ones(count, np.int32)
    tags = array(where, key, value, (count,), np.int64)
    limit = np.iinfo(np.int32).max
    if count and np.abs(tags).max() > limit:
        raise InputError(f"{where}: {key}[{np.abs(tags).argmax()}] does not fit 32 bits, "
                         f"expected tags of at most {limit}")
    return tags.astype(np.int32)
