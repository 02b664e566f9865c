"""XDMF meshes with HDF5 data, as DOLFINx and meshio write them, or with the numbers inside."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from spinverse.errors import InputError, one_line
from spinverse.mesh.data import MeshData
from spinverse.mesh.grids import oriented

KINDS = {"tetrahedron": 3, "triangle": 2, "polyline": 1}  # topologies, their dimensions


def read_xdmf(path: str | Path) -> MeshData:
    """Read the mesh of an ``.xdmf`` file; coordinates are um.

    The first grid with tetrahedra (or else triangles, or intervals) is the mesh. Its cell tags
    are the values of a grid of the same kind of cells, or of the mesh grid itself, and the
    interface facets those of a grid of their facets, each with its values: that is how DOLFINx
    writes mesh tags. The mesh is not checked, and its unused vertices are still there.

    Raises:
        InputError: a file that cannot be parsed, more than one such grid, a quadratic mesh.
    """
    path = Path(path)
    where = f"mesh file '{path}'"
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise InputError(f"{where}: cannot be read as .xdmf ({one_line(error)[:200]}), expected XML"
                         ) from None
    formats = {item.get("Format", "XML").upper() for item in root.iter("DataItem")}
    if not formats or not formats <= {"HDF", "XML"}:
        raise InputError(f"{where}: has data in format {', '.join(sorted(formats)) or 'nothing'}, "
                         "expected HDF or XML")
    for item in root.iter("DataItem"):
        name = (item.text or "").strip().rpartition(":/")[0]
        if item.get("Format", "").upper() == "HDF" and name and not (path.parent / name).is_file():
            raise InputError(f"{where}: no such file as '{name}' beside it, expected its HDF5 data")
    try:
        return _from_grids(path, where, root)
    except InputError:
        raise
    except Exception as error:  # HDF5 and numpy raise whatever they like
        raise InputError(f"{where}: cannot be read as .xdmf ({one_line(error)[:200]}), expected a "
                         "mesh as DOLFINx writes it") from None


def _grids(where: str, root) -> tuple[list, list]:
    """The grids of cells, the mesh first, and of facets."""
    grids: dict[int, list] = {}
    for grid in root.iter("Grid"):
        topology = grid.find("Topology")
        if topology is None:  # a collection
            continue
        kind = (topology.get("TopologyType") or topology.get("Type") or "").lower()
        if kind not in KINDS:
            raise InputError(f"{where}: grid '{grid.get('Name')}' has topology '{kind}', "
                             f"expected one of {', '.join(KINDS)}")
        grids.setdefault(KINDS[kind], []).append(grid)
    if not grids:
        raise InputError(f"{where}: holds no grid with a topology, expected a mesh")
    dim = max(grids)
    cells, facets = grids[dim], grids.get(dim - 1, [])
    tagged = [grid for grid in cells if grid.find("Attribute") is not None]
    for what, found in (("cell tags", tagged), ("facets", facets)):
        if len(found) > 1:
            names = ", ".join(repr(grid.get("Name")) for grid in found)
            raise InputError(f"{where}: grids {names} all hold {what}, expected one")
    return [cells[0], *tagged], facets


def _from_grids(path: Path, where: str, root) -> MeshData:
    (first, *tagged), facets = _grids(where, root)
    points = _numbers(path, first.find("Geometry"), float)
    points = np.pad(points, [(0, 0), (0, 3 - points.shape[1])])
    cells = _numbers(path, first.find("Topology"), int)
    given, values = _rows(path, tagged)
    if given is not None and values is not None:
        order, place = (np.lexsort(np.sort(rows, axis=1).T) for rows in (cells, given))
        if len(order) != len(place) or (np.sort(cells[order]) != np.sort(given[place])).any():
            raise InputError(f"{where}: the {len(place)} cells with tags are not the {len(order)} "
                             "cells of the mesh, expected a tag for each")
        values[order] = values[place]
    if 0 <= cells.min() <= cells.max() < len(points):
        # DOLFINx does not orient cells, so an inverted one is no defect
        cells = oriented(points, cells)
    return MeshData(points, cells, values, *_rows(path, facets), name=path.name)


def _rows(path: Path, grids: list) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Vertices and values of the one grid, if there is one, and if it has values."""
    if not grids:
        return None, None
    values = grids[0].find("Attribute")
    return (_numbers(path, grids[0].find("Topology"), int),
            None if values is None else _numbers(path, values, int).ravel())


def _numbers(path: Path, parent, kind) -> np.ndarray:
    """The numbers of a Topology, Geometry or Attribute, from the file itself or its HDF5 data."""
    item = None if parent is None else parent.find("DataItem")
    if item is None:
        raise InputError(f"mesh file '{path}': a grid without numbers of its own, expected "
                         "topology and geometry in each")
    if item.get("Format", "").upper() == "HDF":
        import h5py

        name, _, key = item.text.strip().rpartition(":/")
        with h5py.File(path.parent / name) as file:
            numbers = file[key][()]
    else:
        shape = [int(word) for word in item.get("Dimensions", "-1").split()]
        numbers = np.array((item.text or "").split(), float).reshape(shape)
    if kind is int and (numbers != np.rint(numbers)).any():
        raise InputError(f"mesh file '{path}': {parent.tag.lower()} holds {numbers.max():g}, "
                         "expected integers")
    return numbers.astype(kind)
