"""Values of facets and cells, and surfaces, as files that appear complete or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import meshio
import numpy as np
from mpi4py import MPI

from ..atomic import replace
from ..engines.shapes.walls import spread_cells
from ..errors import InputError, on_root
from ..inversion.uncertainty import Uncertainty
from ..mesh.connected import connected_cells, sizes_of
from ..mesh.distributed import Mesh
from ..mesh.surfaces import Surface
from ..parallel.exchange import gather_chosen
from ..parallel.npz import NpzReader, Rows, write_npz
from .surfaces import sorted_corners
from .vtu import write_grid

BLOCK = 1024  # cells whose volumes are looked at together


def write_permeability(path: str | Path, mesh: Mesh, permeability: np.ndarray,
                       uncertainty: Uncertainty | None = None, *,
                       labels: np.ndarray | None = None, **extra: np.ndarray) -> None:
    """Write the permeability of all facets as ``.npz``. Collective.

    ``facets (Nf, d)``: vertex triples in the numbering of the input, in lexicographic order;
    ``permeability (Nf,)`` um/ms; ``labels (Nt,)`` of the cells in the order of the input; and every
    other array under its own name.

    Args:
        permeability: ``(nf,)`` of the owned facets, um/ms.
        uncertainty: adds its ``sensitivity``, ``posterior_std`` and ``determined``.
        labels: ``(owned cells,)`` of the found cells, if there are any.
        **extra: further arrays over the owned facets, such as ``membrane``.

    Raises:
        InputError: on every rank: an array of another length.
    """
    arrays = {"facets": mesh.facet_slabs.keys} | _collected(
        mesh, "facet", {"permeability": permeability} | extra | _known(uncertainty))
    if labels is not None:
        arrays |= _collected(mesh, "cell", {"labels": labels})
    write_npz(mesh.comm, Path(path), {name: Rows(array) for name, array in arrays.items()})


def read_permeability(path: str | Path, mesh: Mesh) -> np.ndarray:
    """Permeability of the owned facets, ``(nf,)`` um/ms, from `write_permeability`. Collective.

    Raises:
        InputError: on every rank: no such file, another content, a facet without a value.
    """
    triples, values = _load(Path(path), mesh)
    return mesh.scatter_facets(triples, values, what=f"permeability file {path}")


def write_vtu(path: str | Path, mesh: Mesh, fields: Mapping[str, np.ndarray],
              uncertainty: Uncertainty | None = None) -> None:
    """Write all facets as triangles with cell data, for ParaView. Collective.

    Args:
        path: of the ``.vtu`` file.
        fields: arrays over the owned facets, ``(nf,)``; permeabilities in um/ms.
        uncertainty: adds its ``sensitivity``, ``posterior_std`` and ``determined``.

    Raises:
        InputError: on every rank: an array of another length, or of no numbers.
    """
    corners = np.sort(mesh.input_nodes[mesh.facet_nodes], axis=1)
    data = _collected(mesh, "facet", dict(fields) | _known(uncertainty))
    write_grid(mesh.comm, Path(path), _points(mesh), mesh.facet_slabs.collect(corners), data, {})


def write_cells(path: str | Path, mesh: Mesh, fields: Mapping[str, np.ndarray]) -> None:
    """Write all cells with cell data, in the order of the input, for ParaView. Collective.

    Args:
        path: of the ``.vtu`` file.
        fields: arrays over the owned cells, ``(owned cells,)`` or ``(owned cells, m)``, such as
            the ``labels`` of a `Reconstruction`; bools become 0 and 1. ``tag`` is added.

    Raises:
        InputError: on every rank: a path of another suffix, an array of another length.
    """
    path, owned = Path(path), mesh.num_owned_cells
    if path.suffix != ".vtu":
        raise InputError(f"{path}: suffix {path.suffix!r}, expected .vtu")
    nodes = mesh.input_nodes[mesh.geometry.dofmaps[0][:owned]]
    data = _collected(mesh, "cell", {"tag": mesh.cell_tags[:owned]} | dict(fields))
    write_grid(mesh.comm, path, _points(mesh), mesh.cell_slabs.collect(turned(mesh, nodes)), data,
               {})


def write_stl(path: str | Path, mesh: Mesh, found: np.ndarray,
              labels: np.ndarray | None = None) -> None:
    """Write the interface as a binary ``.stl``, each facet once. Collective.

    Normals point from the higher label to the lower, so out of the enclosed compartment. Where
    compartments touch, three sheets meet at an edge; `write_compartment` writes the closed surface
    of one.

    Args:
        found: ``(nf,)`` bool, the owned facets of the interface.
        labels: ``(owned cells,)`` as `extraction.compartments` gives them. ``None``: the regions
            that the found facets enclose, the largest lowest.

    Raises:
        InputError: on every rank: an array of another length.
    """
    _write_surface(Path(path), mesh, found, labels, "stl")


def write_ply(path: str | Path, mesh: Mesh, found: np.ndarray,
              labels: np.ndarray | None = None) -> None:
    """Write the interface as `write_stl` does, as a ``.ply`` with shared points. Collective."""
    _write_surface(Path(path), mesh, found, labels, "ply")


def write_surfaces(path: str | Path, comm: MPI.Comm, surfaces: Sequence[Surface]) -> None:
    """Write closed surfaces as one binary ``.stl``, by rank 0. Collective.

    Args:
        path: of the file.
        comm: all of its ranks have the surfaces.
        surfaces: such as the ``smooth`` ones of `Reconstruction.surfaces`.
    """
    def write(temporary):
        first = np.cumsum([0, *(len(surface.points) for surface in surfaces)])
        meshio.write(temporary, meshio.Mesh(
            np.concatenate([surface.points for surface in surfaces]),
            [("triangle", np.concatenate([surface.triangles + k for surface, k in zip(
                surfaces, first, strict=False)]))]), file_format="stl", binary=True)

    on_root(comm, replace, Path(path), write)


def write_compartment(path: str | Path, mesh: Mesh, labels: np.ndarray, compartment: int) -> None:
    """Write the surface of one compartment as ``.stl`` or ``.ply``. Collective.

    It is all that bounds the cells of that label, outer facets included, with normals outwards:
    closed, and of the volume of these cells. Where they touch themselves in an edge only, that
    edge has four triangles. ``labels`` are ``(owned cells,)``.

    Raises:
        InputError: on every rank: another suffix, an array of another length, or no cell has that
            label.
    """
    path, labels = Path(path), _over(mesh, "cell", {"labels": labels})["labels"]
    count = mesh.comm.allreduce(int(np.count_nonzero(labels == compartment)))
    if path.suffix not in (".stl", ".ply"):
        raise InputError(f"{path}: suffix {path.suffix!r}, expected .stl or .ply")
    if not count:
        raise InputError(f"compartment {compartment}: no cell has this label")
    inside = np.append(spread_cells(mesh, labels == compartment), False)  # -1 is outside
    sides = _sides(mesh)
    first, second = inside[sides].T
    bounds = first != second
    _write_chosen(path, mesh, bounds, sides[bounds], first[bounds], path.suffix[1:])


def _points(mesh: Mesh) -> np.ndarray:
    """This rank's rows of the mesh's vertices, in the order of the input. Collective."""
    geometry = mesh.geometry
    return mesh.node_slabs.collect(geometry.x[: geometry.index_map().size_local])


def turned(mesh: Mesh, values: np.ndarray) -> np.ndarray:
    """Values ``(owned cells, d + 1, ...)`` of corners; swapped in place in inverted tetrahedra.

    Or values at all nodes of cells of second order, in VTK's order.
    """
    swap = [0, 1, 3, 2, 4, 8, 7, 6, 5, 9][: values.shape[1]]
    x, nodes = mesh.geometry.x, mesh.geometry.dofmaps[0][: mesh.num_owned_cells]
    for begin in range(0, len(nodes) if mesh.dim == 3 else 0, BLOCK):
        corners = x[nodes[begin: begin + BLOCK]]
        inverted = np.linalg.det(corners[:, 1:] - corners[:, :1]) < 0
        part = values[begin: begin + BLOCK]
        part[inverted] = part[inverted][:, swap]
    return values


def _write_surface(path: Path, mesh: Mesh, found, labels, kind: str) -> None:
    found = _over(mesh, "facet", {"found": found})["found"].astype(bool)
    sides = _sides(mesh)[found]
    if labels is None:
        lower = _in_larger(mesh, connected_cells(mesh, ~found), sides)
    else:
        labels = _over(mesh, "cell", {"labels": labels})["labels"].astype(np.int64)
        first, second = spread_cells(mesh, labels)[sides].T
        lower = second < first
    # nothing is lower than the outside
    _write_chosen(path, mesh, found, sides, lower | (sides[:, 1] < 0), kind)


def _in_larger(mesh: Mesh, labels: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Whether the second of two local cells is in the larger set, or the first of equal ones."""
    owned = mesh.num_owned_cells
    total = mesh.comm.allreduce(float(mesh.cell_volumes[:owned].sum()))
    first, second = labels[sides].T
    # rounded: the last digits depend on the number of ranks
    one, two = (np.round(sizes_of(mesh, labels[:owned], side) / total, 9)
                for side in (first, second))
    return (two > one) | ((two == one) & (second < first))


def _sides(mesh: Mesh) -> np.ndarray:
    """Local cells beside each owned facet, ``(nf, 2)`` in the order of the input; -1: outside."""
    cells = mesh.facet_cells
    number = np.append(mesh.input_cells, mesh.num_cells)[cells]
    return np.take_along_axis(cells, np.argsort(number, axis=1), axis=1)


def _write_chosen(path: Path, mesh: Mesh, chosen: np.ndarray, sides: np.ndarray,
                  outwards: np.ndarray, kind: str) -> None:
    """Write chosen facets in the order of their triples.

    ``sides (n, 2)`` are those of the chosen ones; where ``outwards (n,)`` normals leave the first.
    """
    corners, geometry = sorted_corners(mesh.facet_corners[chosen]), mesh.geometry
    inner = geometry.x[geometry.dofmaps[0][sides[:, 0]]].mean(axis=1)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    leaves = np.einsum("fi,fi->f", normals, corners[:, 0] - inner) > 0
    kept = (leaves == outwards)[:, None, None]
    corners = np.where(kept, corners, corners[:, [0, 2, 1]])
    whole = gather_chosen(mesh.comm, np.ones(len(corners), bool), mesh.facet_vertices[chosen],
                          corners)

    def write(temporary):
        points = whole[1].reshape(-1, 3)
        number = np.arange(len(points))
        if kind == "ply":  # facets share points, which are told by their coordinates
            points, number = np.unique(np.round(points, 9) + 0.0, axis=0, return_inverse=True)
        meshio.write(temporary, meshio.Mesh(points, [("triangle", number.reshape(-1, 3))]),
                     file_format=kind, binary=True)

    on_root(mesh.comm, replace, path, write)


def _known(uncertainty: Uncertainty | None) -> dict[str, np.ndarray]:
    """What files say of an uncertainty."""
    if uncertainty is None:
        return {}
    return {name: getattr(uncertainty, name)
            for name in ("sensitivity", "posterior_std", "determined")}


def _over(mesh: Mesh, what: str, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fields by name over each owned "facet" or "cell", as arrays, or an InputError. Collective."""
    number = mesh.num_owned_facets if what == "facet" else mesh.num_owned_cells
    arrays = {name: np.asarray(value) for name, value in fields.items()}
    wrong = [f"{name}: shape {a.shape}, expected ({number},): one value for each {what} that this "
             "rank owns" for name, a in arrays.items() if a.shape[:1] != (number,)]
    wrong += [f"{name}: Python objects, expected plain values"
              for name, a in arrays.items() if a.dtype.hasobject]
    kinds = {name: (a.dtype, a.shape[1:]) for name, a in arrays.items()}
    said = mesh.comm.allgather((wrong, kinds))
    wrong = [text for texts, _ in said for text in texts]
    if any(other != said[0][1] for _, other in said):
        wrong.append(f"{', '.join(arrays)}: types or widths differ between ranks, expected the "
                     "same")
    if wrong:
        raise InputError(wrong[0])
    return arrays


def _collected(mesh: Mesh, what: str, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is `_over` facets or cells, in the order of the input. Collective."""
    slabs = mesh.facet_slabs if what == "facet" else mesh.cell_slabs
    return {name: slabs.collect(v) for name, v in _over(mesh, what, fields).items()}


def _load(path: Path, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """This rank's rows of the facets and of their values. Collective."""
    expected = f"facets (Nf, {mesh.dim}) and permeability (Nf,)"
    try:
        with NpzReader(mesh.comm, path) as file:
            shapes = file.shape("facets"), file.shape("permeability")
            fits = len(shapes[0]) == 2 and shapes[0][1] == mesh.dim and shapes[1] == shapes[0][:1]
            if fits:
                return file.rows("facets"), file.rows("permeability")
    except FileNotFoundError:
        raise InputError(f"permeability file {path}: no such file, expected an .npz") from None
    except Exception:  # zip, stream, key and header errors have no common base
        raise InputError(f"permeability file {path}: cannot be read, expected an .npz with "
                         f"{expected}") from None
    raise InputError(f"permeability file {path}: shapes {shapes[0]} and {shapes[1]}, "
                     f"expected {expected}")
