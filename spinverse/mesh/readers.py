"""Mesh files to and from :class:`MeshData`."""

from __future__ import annotations

import io
import re
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import meshio
import numpy as np

from spinverse.errors import InputError, one_line, warn_caller
from spinverse.mesh.arguments import target
from spinverse.mesh.checks import RepairWarning, cell_volumes, facets_of, find_facets
from spinverse.mesh.curved import STRAIGHT, Bent, edges_of
from spinverse.mesh.data import CELLS, MeshData
from spinverse.mesh.grids import oriented
from spinverse.mesh.tetgen import read_tetgen
from spinverse.mesh.xdmf import read_xdmf

KEYS = ("cell_tags", "interface_facets", "interface_tags")
BENT = ("curved_edges", "middles")
GMSH = {3: "tetra", 2: "triangle", 1: "line", 0: "vertex"}  # meshio's names, by dimension
SECOND = {"tetra10": "tetra", "triangle6": "triangle", "line3": "line"}  # of second order
ENDS = {"tetra10": ((0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3)),
        "triangle6": ((0, 1), (1, 2), (2, 0)), "line3": ((0, 1),)}  # of edges, as meshio orders


def read(path: str | Path, repair: bool = False) -> MeshData:
    """Read and check a mesh file; coordinates are taken as um.

    * ``.npz``: ``points (Nv, 3)``, ``tets (Nt, 4)`` (or ``triangles``, ``intervals``), optionally
      ``cell_tags (Nt,)``, ``interface_facets (Nb, 3)``, ``interface_tags (Nb,)``, and of curved
      cells ``curved_edges (Ne, 2)`` with their ``middles (Ne, 3)``; no others.
    * ``.msh``: gmsh 2.2 and 4.x with tetrahedra, or else triangles in the plane z = 0,
      or else intervals on the x axis; of first order or second (``Mesh.ElementOrder``), whose
      edges are bent where their middle node is not half way (:mod:`.curved`). Physical tags of
      these cells become cell tags (1 without physical groups). Facets of a physical group become
      interface facets with that tag if one of them at least is an inner one: a membrane that
      reaches the outer boundary keeps its outer
      part, while a group that only names outer boundary is left out. Vertices of no tet (gmsh
      writes geometry points) are dropped and the others renumbered in file order; that is the
      input numbering from then on, and ``input_vertices`` holds the place of each in the file.
    * ``.node`` or ``.ele``: TetGen, see :func:`tetgen.read_tetgen`. Region attributes become cell
      tags, markers of ``.face`` interface tags, and the rest is as for ``.msh``.
    * ``.xdmf``: as DOLFINx and meshio write it, see :func:`xdmf.read_xdmf`, with the same rules
      for vertices; facets in it are interface facets.

    Args:
        repair: swap two vertices of inverted tets, make curved edges straighter that turn a cell
            inside out and, in ``.npz`` too, drop vertices of no tet, instead of refusing the mesh;
            a :class:`.RepairWarning` says what was done.

    Raises:
        InputError: no such file, an unknown suffix, a file that cannot be parsed, a missing
            array, no tetrahedra, or a defect found by :func:`checks.check_mesh`.

    Warns:
        UnitWarning: the size suggests that the coordinates are not in um.
    """
    path = Path(path)
    kind = path.suffix.lower()
    readers = {".npz": _read_npz, ".msh": _read_msh, ".node": read_tetgen, ".ele": read_tetgen,
               ".xdmf": read_xdmf}
    if kind not in readers:
        raise InputError(f"mesh file '{path}': suffix is '{path.suffix}', expected one of "
                         + ", ".join(readers))
    if not path.is_file():
        raise InputError(f"mesh file '{path}': no such file, expected a mesh")
    data = readers[kind](path)
    if kind in (".node", ".ele"):
        data = _membranes_only(data)
    if kind != ".npz":
        data = _used_only(data)
    return (_repaired(data) if repair else data).check()


def write_npz(path: str | Path, data: MeshData) -> None:
    """Write the arrays of ``data`` as compressed ``.npz``, as :func:`read` takes them."""
    path = target(path, ".npz")
    arrays: dict[str, Any] = {"points": data.points, CELLS[data.dim]: data.cells}
    keys = (*KEYS, *BENT) if len(data.curved_edges) else KEYS
    np.savez_compressed(path, **arrays, **{key: getattr(data, key) for key in keys})


def write_msh(path: str | Path, data: MeshData) -> None:
    """Write ``data`` as gmsh 2.2 (binary), cell and interface tags as physical tags.

    Cells are of second order where edges are bent.
    """
    path = target(path, ".msh")
    cells, tags = [(GMSH[data.dim], data.cells)], [data.cell_tags]
    if len(data.interface_facets):
        cells.append((GMSH[data.dim - 1], data.interface_facets))
        tags.append(data.interface_tags)
    points = data.points
    if len(data.curved_edges):
        every = edges_of(data.cells)
        middles = points[every].mean(axis=1)
        middles[find_facets(every, data.curved_edges)] = data.middles
        second = {first: kind for kind, first in SECOND.items()}
        cells = [(second[kind], np.column_stack([rows, len(points) + find_facets(
            every, rows[:, ENDS[second[kind]]].reshape(-1, 2)).reshape(len(rows), -1)]))
            for kind, rows in cells]
        points = np.concatenate([points, middles])
    mesh = meshio.Mesh(points, cells,
                       cell_data={"gmsh:physical": tags, "gmsh:geometrical": tags})
    meshio.write(path, mesh, file_format="gmsh22", binary=True)


def _read_npz(path: Path) -> MeshData:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("points", *CELLS.values(), *KEYS, *BENT)
                      if key in file.files}
    except Exception as error:  # zip, pickle and header errors have no common base
        raise InputError(f"mesh file '{path}': cannot be read as .npz "
                         f"({one_line(error)[:200]}), expected a numpy archive") from None
    kinds = [key for key in CELLS.values() if key in arrays]
    missing = "points" if "points" not in arrays else "" if kinds else "tets"
    if missing:
        raise InputError(f"mesh file '{path}': key '{missing}' is missing, expected "
                         "'points' and 'tets' (in a plane 'triangles', on a line 'intervals')")
    if len(kinds) > 1:
        raise InputError(f"mesh file '{path}': keys {' and '.join(kinds)} are both there, "
                         "expected one kind of cells")
    return MeshData(name=path.name, cells=arrays.pop(kinds[0]), **arrays)


def _read_msh(path: Path) -> MeshData:
    content = path.read_bytes()
    if b"$PartitionedEntities" in content:
        raise InputError(f"mesh file '{path}': is cut into partitions, expected a whole mesh (save "
                         "it after gmsh.model.mesh.unpartition(); spinverse partitions by itself)")
    try:
        # meshio prints remarks of its own; the named format keeps it from sys.exit on errors
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            mesh = _parse_msh(path, content)
        groups = _groups(path, content)
        edges, middles = _second_order(mesh)
    except Exception as error:  # the parser raises whatever the bytes lead to
        expected = "format 2.2 or 4.x"
        if "'gmsh:physical'" in str(error):  # meshio cannot read a mixture in 4.x
            expected = "cells in physical groups only (save with Mesh.SaveAll = 0)"
        if "parametric" in str(error):
            expected = "vertices without parametric coordinates (Mesh.SaveParametric = 0)"
        raise InputError(f"mesh file '{path}': cannot be read as gmsh .msh "
                         f"({one_line(error)[:200]}), expected {expected}") from None
    none = [np.zeros(len(block.data), int) for block in mesh.cells]
    physical = mesh.cell_data.get("gmsh:physical", none)
    others = sorted({b.type for b in mesh.cells})
    dim = next((d for d in (3, 2, 1) if GMSH[d] in others), 0)
    rows = [b.data.ravel() for b in mesh.cells if b.type == GMSH[dim]]
    # cells of a lower dimension only where they lie in the plane or on the axis
    if not dim or mesh.points[np.concatenate(rows), dim:].any():
        raise InputError(f"mesh file '{path}': holds no tetrahedra (it holds "
                         f"{', '.join(others) or 'nothing'}), expected some of order 1 or 2, or "
                         "triangles in the plane z = 0, or intervals on the x axis")
    cells, cell_tags = _blocks(mesh, physical, dim, groups)
    facets, facet_tags = _blocks(mesh, physical, dim - 1, groups)
    _in_one_group(path, CELLS[dim][:-1], cells, cell_tags)
    if not cell_tags.any():
        cell_tags = None
        if b"$PhysicalNames" in content:
            warn_caller(f"mesh file '{path}': names physical groups, but no cell is in one, so "
                        "that all have tag 1 (save with Mesh.SaveAll = 0)")
    tagged = facet_tags != 0
    data = _membranes_only(MeshData(mesh.points, cells, cell_tags, facets[tagged],
                                    facet_tags[tagged], name=path.name, curved_edges=edges,
                                    middles=middles))
    _in_one_group(path, "interface facet", data.interface_facets, data.interface_tags)
    return data


def _second_order(mesh) -> tuple[np.ndarray, np.ndarray]:
    """Make a mesh of second order one of first, in place.

    Returns the vertices of edges that are bent, and their middles.
    """
    edges, nodes = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    kinds = [block.type for block in mesh.cells]
    cells = next((kind for kind in SECOND if kind in kinds), None)  # the others are of their edges
    for block in mesh.cells:
        if block.type in SECOND:
            ends = ENDS[block.type]
            if block.type == cells:
                edges.append(np.sort(block.data[:, ends].reshape(-1, 2), axis=1))
                nodes.append(block.data[:, -len(ends):].ravel())
            block.data, block.type = block.data[:, :-len(ends)], SECOND[block.type]
    rows, first = np.unique(np.concatenate(edges), axis=0, return_index=True)
    middles, ends = mesh.points[np.concatenate(nodes)[first]], mesh.points[rows]
    away = np.linalg.norm(middles - ends.mean(axis=1), axis=1)
    bent = away > STRAIGHT * np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    return rows[bent], middles[bent]


def _in_one_group(path: Path, kind: str, rows: np.ndarray, tags: np.ndarray) -> None:
    """Refuse cells or facets that are there twice, with different tags: which one would count?"""
    _, place = np.unique(np.sort(rows, axis=1), axis=0, return_inverse=True)
    order = np.lexsort((tags, place.ravel()))
    twice = (np.diff(place.ravel()[order]) == 0) & (np.diff(tags[order]) != 0)
    for first in np.flatnonzero(twice)[:1]:
        low, high = tags[order[first:first + 2]]
        raise InputError(f"mesh file '{path}': {twice.sum()} {kind}s are in several physical "
                         f"groups, first those {low} and {high} have one in common; expected each "
                         "in one group")


def _groups(path: Path, content: bytes) -> list[dict[int, list[int]]]:
    """By dimension the physical groups of each entity in format 4; meshio tells the first only."""
    version, kind, width = content.split(b"\n", 2)[1].split()[:3]
    begin = content.find(b"$Entities\n")
    if version[:1] != b"4" or begin < 0:
        return [{}, {}, {}, {}]
    with open(path, "rb") as file:
        file.seek(begin + len(b"$Entities\n"))
        if version == b"4.1":
            return meshio.gmsh._gmsh41._read_entities(file, kind == b"0", int(width))[0]
        return meshio.gmsh._gmsh40._read_entities(file, kind == b"0")


def _parse_msh(path: Path, content: bytes):
    """meshio takes the version "4" for 4.1, but gmsh writes it for 4.0."""
    header = re.match(rb"\$MeshFormat\s+4(?= [01] )", content)
    if not header:
        return meshio.gmsh.read(path)
    with tempfile.TemporaryDirectory() as folder:  # meshio reads from true files only
        copy = Path(folder) / path.name
        copy.write_bytes(header[0] + b".0" + content[header.end():])
        return meshio.gmsh.read(copy)


def _blocks(mesh, physical, dim: int, groups: list) -> tuple[np.ndarray, np.ndarray]:
    """Rows and tags of one dimension; a row for each group that an entity is in."""
    rows, tags = [np.empty((0, dim + 1), np.int64)], [np.empty(0, np.int64)]
    entities = mesh.cell_data.get("gmsh:geometrical", physical)
    for block, tag, entity in zip(mesh.cells, physical, entities, strict=True):
        if block.type == GMSH[dim]:
            more = groups[dim].get(int(entity[0]), [])[1:] if len(entity) else []
            for one in (tag, *(np.full(len(tag), other) for other in more)):
                rows.append(np.asarray(block.data, np.int64))
                tags.append(np.asarray(one, np.int64))
    return np.concatenate(rows), np.concatenate(tags)


def _membranes_only(data: MeshData) -> MeshData:
    """Leave out triangles of groups that lie on the outer boundary altogether."""
    facets, pairs = facets_of(data.cells, data.name)
    place = find_facets(facets, data.interface_facets)
    # triangles that are no facets stay, for the check to name them
    outer = (place >= 0) & (pairs[place, 1] < 0)
    keep = np.isin(data.interface_tags, data.interface_tags[~outer])
    return replace(data, interface_facets=data.interface_facets[keep],
                   interface_tags=data.interface_tags[keep])


def _in_range(data: MeshData) -> bool:
    cells = data.cells
    return bool(cells.size) and 0 <= cells.min() <= cells.max() < len(data.points)


def _used_only(data: MeshData) -> MeshData:
    """Drop the vertices of no tet and renumber the others in their order."""
    if data.cells.size and not _in_range(data):
        return data  # for the check to name
    used = np.zeros(len(data.points), bool)
    used[data.cells] = True
    triples = data.interface_facets
    lost = ~used[np.clip(triples, 0, len(used) - 1)] | (triples < 0) | (triples >= len(used))
    if lost.any():
        first = lost.any(axis=1).argmax()
        raise InputError(f"mesh '{data.name}': interface facet {first} "
                         f"{tuple(triples[first].tolist())} is no facet of the mesh, expected "
                         "the vertices of one")
    number = np.cumsum(used) - 1
    return replace(data, points=data.points[used], cells=number[data.cells],
                   interface_facets=number[triples], input_vertices=data.input_vertices[used],
                   curved_edges=number[data.curved_edges])


def _repaired(data: MeshData) -> MeshData:
    """Positive orientation and no unused vertices, with a warning that counts both."""
    fixed, done = _used_only(data), []
    if len(fixed.points) < len(data.points):
        done.append(f"{len(data.points) - len(fixed.points)} vertices of no tet dropped, "
                    "the others renumbered")
    tets = fixed.cells.copy()
    if _in_range(fixed) and (inverted := cell_volumes(fixed.points, tets) < 0).any():
        tets = oriented(fixed.points, tets)
        done.append(f"{inverted.sum()} inverted tets turned")
    fixed = replace(fixed, cells=tets)
    if len(fixed.curved_edges) and _in_range(fixed):
        bent, count = Bent(fixed.curved_edges, fixed.middles).straightened(fixed.points, tets)
        if count:
            fixed = replace(fixed, middles=bent.middles)
            done.append(f"{count} curved edges made straighter")
    if done:
        warn_caller(f"mesh '{data.name}': " + "; ".join(done), RepairWarning)
    return fixed
