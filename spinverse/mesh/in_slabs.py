"""Mesh files that no rank reads whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mpi4py import MPI

from ..errors import InputError, on_all, one_line
from ..parallel.exchange import Ranges, Route
from ..parallel.npz import NpzReader
from .checks import flat_cells
from .data import CELLS
from .distributed import Mesh
from .ordered import FacetRows

BLOCK = 512  # cells whose edges are looked at together


def read_in_slabs(path: str | Path, comm: MPI.Comm | None = None) -> Mesh:
    """Read an ``.npz`` of which each rank reads its rows, for meshes of any size. Collective.

    The file is as for `spinverse.mesh.read`. Coordinates, vertex numbers, volumes and orientation
    of cells, unused vertices and interface facets are checked. What only a look at the whole mesh
    shows is not: cells that are there twice or overlap, vertices that coincide, hanging nodes.
    `read` looks for them on rank 0. ``comm`` is ``MPI.COMM_WORLD`` when nothing is said.

    Raises:
        InputError: on every rank, in one line, for a file or mesh that cannot be used.
    """
    comm, path = MPI.COMM_WORLD if comm is None else comm, Path(path)
    try:
        with NpzReader(comm, path) as file:
            arrays = _arrays(file, path)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"mesh file '{path}': no such file, expected a mesh") from None
    except Exception as error:  # zip, stream and header errors have no common base
        raise InputError(f"mesh file '{path}': cannot be read as .npz "
                         f"({one_line(error)}), expected a numpy archive") from None
    points, cells, tags, triples, triple_tags, bent, count, facets = arrays
    _check(comm, path, points, cells, count)
    mesh = Mesh.from_slabs(comm, points, cells, tags, np.arange(
        Ranges(comm, count).start, Ranges(comm, count).stop), triples, triple_tags, path.name, bent)
    found = mesh.num_facets - FacetRows(mesh.facet_slabs, triples).missing
    if found != facets:
        raise InputError(f"mesh file '{path}': {facets - found} of {facets} interface facets are "
                         "no facets of the mesh or are given twice, expected each once")
    return mesh


def _arrays(file: NpzReader, path: Path) -> tuple:
    """This rank's rows of all arrays, and how many vertices and interface facets there are."""
    kinds = [(dim, key) for dim, key in CELLS.items() if key in file.names]
    if "points" not in file.names or len(kinds) != 1:
        raise InputError(f"mesh file '{path}': has {', '.join(file.names)}, expected 'points' and "
                         "'tets' (in a plane 'triangles', on a line 'intervals')")
    (dim, key), = kinds
    count, number = file.shape("points")[0], file.shape(key)[0]
    facets = file.shape("interface_facets")[0] if "interface_facets" in file.names else 0

    def rows(name: str, shape: tuple, kind: type = np.int64) -> np.ndarray:
        if file.shape(name) != shape:
            raise InputError(f"mesh file '{path}': {name} has shape {file.shape(name)}, expected "
                             f"{shape}")
        found = file.rows(name)
        kinds, words = ("iu", "integers") if kind is np.int64 else ("iuf", "real numbers")
        if found.dtype.kind not in kinds:
            raise InputError(f"mesh file '{path}': {name} has type {found.dtype}, expected {words}")
        return found.astype(kind, copy=False)

    def tags(name: str, length: int, here: int) -> np.ndarray:
        given = name in file.names
        return rows(name, (length,)).astype(np.int32) if given else np.ones(here, np.int32)

    here = Ranges(file.comm, number)
    triples = rows("interface_facets", (facets, dim)) if facets else np.empty((0, dim), np.int64)
    triple_tags = tags("interface_tags", facets, len(triples)) if facets else np.empty(0, np.int32)
    edges = file.shape("curved_edges")[0] if "curved_edges" in file.names else 0
    bent = (rows("curved_edges", (edges, 2)), rows("middles", (edges, 3), np.float64)) if edges \
        else None
    return (rows("points", (count, 3), np.float64), rows(key, (number, dim + 1)),
            tags("cell_tags", number, here.stop - here.start), triples, triple_tags, bent, count,
            facets)


def _check(comm: MPI.Comm, path: Path, points: np.ndarray, cells: np.ndarray, count: int) -> None:
    def fail(bad: np.ndarray, what: str, expected: str) -> None:
        number = comm.allreduce(int(np.count_nonzero(bad)))
        if number:
            raise InputError(f"mesh file '{path}': {number} {what}, expected {expected}")

    dim = cells.shape[1] - 1
    if not comm.allreduce(len(cells)):
        raise InputError(f"mesh file '{path}': holds no {CELLS[dim]}, expected at least one")
    fail(~np.isfinite(points).all(axis=1) | (points[:, dim:] != 0).any(axis=1),
         "points are not finite" + (", or off the plane or line" if dim < 3 else ""),
         "coordinates in um")
    fail(((cells < 0) | (cells >= count)).any(axis=1), "cells have vertices that are not there",
         f"numbers from 0 to {count - 1}")
    ascending = np.sort(cells, axis=1)
    fail((ascending[:, 1:] == ascending[:, :-1]).any(axis=1), "cells repeat a vertex",
         f"{dim + 1} different ones")
    ranges = Ranges(comm, count)
    names, place = on_all(comm, np.unique, cells, return_inverse=True)
    route = Route(comm, ranges.holder(names))
    asked = route.forward(names) - ranges.start
    used = np.zeros(len(points), bool)
    used[asked] = True
    fail(~used, "vertices belong to no cell", "none (spinverse.mesh.read with repair=True drops "
         "them)")
    near, place = route.backward(points[asked]), place.reshape(cells.shape)
    flat, inverted = np.zeros((2, len(cells)), bool)
    for begin in range(0, len(cells), BLOCK):
        part = slice(begin, begin + BLOCK)
        volumes, flat[part] = flat_cells(near, place[part])
        inverted[part] = volumes < 0
    fail(flat, "cells have no volume", "none")
    fail(inverted, "cells are inverted", "positive orientation (spinverse.mesh.read with "
         "repair=True turns them)")
