"""Facet values and surfaces as files: .npz, .vtu and .stl, written whole by rank 0."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import meshio
import numpy as np

from ..errors import InputError, on_root
from ..inversion.uncertainty import Uncertainty
from ..mesh.distributed import Mesh
from .metrics import cell_pairs, cell_regions


def write_permeability(path: str | Path, mesh: Mesh, permeability: np.ndarray,
                       uncertainty: Uncertainty | None = None, **extra: np.ndarray) -> None:
    """Write the permeability of all facets as ``.npz``. Collective.

    ``facets (Nf, 3)``: vertex triples in the numbering of the input, in lexicographic order;
    ``permeability (Nf,)`` um/ms; and every other array under its own name.

    Args:
        path: of the file; it appears complete or not at all.
        mesh: the mesh.
        permeability: ``(nf,)`` of the owned facets, um/ms.
        uncertainty: adds its ``sensitivity``, ``posterior_std`` and ``determined``.
        **extra: further arrays over the owned facets, such as ``membrane``.
    """
    extra = extra | _known(uncertainty)
    names = ("facets", "permeability", *extra)
    whole = mesh.gather_facets(permeability, *extra.values())

    def write(temporary):
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **dict(zip(names, whole, strict=True)))

    on_root(mesh.comm, _replace, Path(path), write)


def read_permeability(path: str | Path, mesh: Mesh) -> np.ndarray:
    """Permeability of the owned facets, ``(nf,)`` um/ms, from `write_permeability`. Collective.

    Raises:
        InputError: on every rank: no such file, another content, a facet without a value.
    """
    content = mesh.comm.bcast(on_root(mesh.comm, _load, Path(path)), root=0)
    return mesh.scatter_facets(*content, what=f"permeability file {path}")


def write_vtu(path: str | Path, mesh: Mesh, fields: Mapping[str, np.ndarray],
              uncertainty: Uncertainty | None = None) -> None:
    """Write all facets as triangles with cell data, for ParaView. Collective.

    Args:
        path: of the ``.vtu`` file.
        mesh: the mesh.
        fields: arrays over the owned facets, ``(nf,)``; permeabilities in um/ms.
        uncertainty: adds its ``sensitivity``, ``posterior_std`` and ``determined``.
    """
    fields = dict(fields) | _known(uncertainty)
    whole = mesh.gather_facets(mesh.facet_corners, *fields.values())

    def write(temporary):
        triples, corners, *values = whole
        points, triangles = _triangles(triples, corners)
        data = {name: [v.astype(np.int8) if v.dtype == bool else v]
                for name, v in zip(fields, values, strict=True)}
        meshio.write(temporary, meshio.Mesh(points, [("triangle", triangles)], cell_data=data),
                     file_format="vtu")

    on_root(mesh.comm, _replace, Path(path), write)


def write_stl(path: str | Path, mesh: Mesh, found: np.ndarray,
              labels: np.ndarray | None = None) -> None:
    """Write the interface as a binary ``.stl``. Collective.

    Normals point from the higher label to the lower, so out of the enclosed compartment.

    Args:
        path: of the file; without any facet it holds no triangle.
        mesh: the mesh.
        found: ``(nf,)`` bool, the owned facets of the interface.
        labels: ``(owned cells,)`` as `extraction.compartments` gives them. ``None``: the regions
            that the found facets enclose, the largest lowest.
    """
    owned = mesh.num_owned_cells
    x = mesh.domain.geometry.x[mesh.domain.geometry.dofmaps[0]].mean(axis=1)
    corners = mesh.facet_corners
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    away = np.einsum("fi,fi->f", normals, corners[:, 0] - x[mesh.facet_cells[:, 0]]) > 0
    whole = mesh.gather_facets(np.asarray(found, bool), corners, away, cell_pairs(mesh))
    parts = [mesh.comm.gather(part, root=0) for part in (
        mesh.input_cells[:owned], mesh.cell_volumes[:owned],
        None if labels is None else np.asarray(labels))]

    def write(temporary):
        triples, member, corners, away, pairs = whole
        cells = np.concatenate(parts[0])
        if labels is None:
            volumes = np.empty(len(cells))
            volumes[cells] = np.concatenate(parts[1])
            regions = cell_regions(len(cells), pairs, member)
            size = np.bincount(regions, weights=volumes)
            rank = np.empty(len(size), dtype=np.int64)
            rank[np.lexsort((np.arange(len(size)), -size))] = np.arange(len(size))
            label = rank[regions]
        else:
            label = np.empty(len(cells), dtype=np.int64)
            label[cells] = np.concatenate(parts[2])
        first, second = pairs[member].T
        below = np.where(second >= 0, label[second], -1)  # nothing is lower than the outside
        outwards = (label[first] > below) == away[member]
        corners = corners[member]
        corners = np.where(outwards[:, None, None], corners, corners[:, [0, 2, 1]])
        surface = meshio.Mesh(corners.reshape(-1, 3),
                              [("triangle", np.arange(3 * len(corners)).reshape(-1, 3))])
        meshio.write(temporary, surface, file_format="stl", binary=True)

    on_root(mesh.comm, _replace, Path(path), write)


def _known(uncertainty: Uncertainty | None) -> dict[str, np.ndarray]:
    """What files say of an uncertainty."""
    if uncertainty is None:
        return {}
    return {name: getattr(uncertainty, name)
            for name in ("sensitivity", "posterior_std", "determined")}


def _replace(path: Path, write) -> None:
    """Write beside ``path`` and move there: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path) as file:
            triples, values = file["facets"], file["permeability"]
    except FileNotFoundError:
        raise InputError(f"permeability file {path}: no such file, expected an .npz") from None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        raise InputError(f"permeability file {path}: cannot be read, expected an .npz with "
                         "facets (Nf, 3) and permeability (Nf,)") from None
    if triples.ndim != 2 or triples.shape[1] != 3 or values.shape != triples.shape[:1]:
        raise InputError(f"permeability file {path}: shapes {triples.shape} and {values.shape}, "
                         "expected facets (Nf, 3) and permeability (Nf,)")
    return triples, values


def _triangles(triples: np.ndarray, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shared points and triangles; corners of a facet come in any order, by coordinates then."""
    flat = np.round(corners.reshape(-1, 3), 9) + 0.0
    points, number = np.unique(flat, axis=0, return_inverse=True)
    return points, number.reshape(len(triples), 3)
