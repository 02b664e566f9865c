"""Cells of second order: straight ones of which some edges are bent.

A cell is the image of a straight reference cell under quadratic polynomials that are known by its
vertices and by the middles of its edges (isoparametric cells; Ciarlet and Raviart, 1972). A mesh of
second order is here one of first order and the middles of those edges that are not straight, so
that its vertices, cells and facets are those of the straight one. With edges of length h a surface
is missed by h^4 in area and volume, and by h^3 in place, where facets miss it by h^2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import basix
import basix.ufl
import dolfinx
import numpy as np
import ufl

from ..errors import InputError
from .checks import cell_volumes, facets_of, find_facets
from .ordered import FacetRows, FacetSlabs

if TYPE_CHECKING:
    from .data import MeshData
    from .distributed import Mesh

KINDS = {1: basix.CellType.interval, 2: basix.CellType.triangle, 3: basix.CellType.tetrahedron}
# corners of the edges of a cell, in the order of the nodes after its corners
EDGES = {2: ((1, 2), (0, 2), (0, 1)), 3: ((2, 3), (1, 3), (1, 2), (0, 3), (0, 2), (0, 1))}
STRAIGHT = 1e-12  # of its length, how far the middle of a straight edge may be from half way
THINNEST = 0.05  # of a cell's mean Jacobian determinant, what is left of it where it is least
FACET_DEGREE = 6  # of the quadrature of areas: sqrt of a polynomial, to 1e-7 on good facets
BLOCK = 50_000  # cells or facets whose Jacobians are held at a time


def edges_of(rows: np.ndarray) -> np.ndarray:
    """Edges of simplices ``(n, k)``, each once, ``(Ne, 2)`` ascending in lexicographic order."""
    i, j = np.triu_indices(rows.shape[1], 1)
    pairs = np.sort(np.stack([rows[:, i], rows[:, j]], axis=-1).reshape(-1, 2), axis=1)
    return np.unique(pairs, axis=0)


def surface_facets(cells: np.ndarray, tags: np.ndarray, outer: bool = True) -> np.ndarray:
    """Facets between cells of different tags, and, if wanted, those of the outer boundary."""
    facets, pairs = facets_of(cells)
    sides = tags[pairs]
    return facets[np.where(pairs[:, 1] < 0, outer, sides[:, 0] != sides[:, 1])]


class Bent(NamedTuple):
    """Edges ``curved_edges (Ne, 2)``, ascending, and their ``middles (Ne, 3)`` um."""

    curved_edges: np.ndarray
    middles: np.ndarray

    @classmethod
    def around(cls, points: np.ndarray, facets: np.ndarray, centres: np.ndarray, radii: np.ndarray,
               flat: np.ndarray | None = None) -> Bent:
        """Edges of ``facets (n, d)`` on spheres or cylinders along z, or on circles in z = 0.

        Args:
            centres: ``(Nv, d)`` of the surface that each vertex is on, um; d 2 for cylinders.
            radii: ``(Nv,)`` its radius, um.
            flat: ``(Nv, d)`` bool, planes x, y or z = const that vertices keep to: edges in one
                of them stay in it.
        """
        edges = edges_of(facets)
        dim = centres.shape[1]
        middles, centre = points[edges].mean(axis=1), centres[edges[:, 0]]
        offset = middles[:, :dim] - centre
        fixed = np.zeros(offset.shape, bool)
        if flat is not None:
            ends = points[edges][..., :dim]
            fixed = flat[edges].all(axis=1) & (ends[:, 0] == ends[:, 1])
        across = np.where(fixed, 0.0, offset)
        reach = np.sqrt(radii[edges[:, 0]]**2 - (np.where(fixed, offset, 0.0)**2).sum(axis=1))
        across *= (reach / np.linalg.norm(across, axis=1))[:, None]
        middles[:, :dim] = centre + np.where(fixed, offset, across)
        return cls(edges, middles)

    def volumes(self, points: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Of cells ``(Nt, d + 1)`` with these edges, ``(Nt,)`` um^d."""
        found = np.abs(cell_volumes(points, cells))
        near = np.flatnonzero(np.isin(cells, self.curved_edges).sum(axis=1) > 1)
        found[near] = volumes_of(cell_nodes(points, cells[near], *self))
        return found


def cell_nodes(points: np.ndarray, cells: np.ndarray, edges: np.ndarray,
               middles: np.ndarray) -> np.ndarray:
    """Corners and middles of the edges of cells, ``(n, 6 or 10, 3)`` um."""
    order = np.lexsort(edges.T[::-1])
    ends = cells[:, EDGES[cells.shape[1] - 1]]
    place = find_facets(edges[order], ends.reshape(-1, 2)).reshape(ends.shape[:2])
    nodes = points[ends].mean(axis=2)
    nodes[place >= 0] = middles[order][place[place >= 0]]
    return np.concatenate([points[cells], nodes], axis=1)


def bent_cells(data: MeshData) -> np.ndarray:
    """Cells that may have a curved edge, ``(n,)``."""
    return np.flatnonzero(np.isin(data.cells, data.curved_edges).sum(axis=1) > 1)


def _slopes(dim: int, places: np.ndarray) -> np.ndarray:
    """Derivatives of the quadratic functions at places of the reference cell, ``(d, n, nodes)``."""
    element = basix.create_element(basix.ElementFamily.P, KINDS[dim], 2,
                                   basix.LagrangeVariant.gll_warped)
    return element.tabulate(1, places)[1:, :, :, 0]


def determinants(nodes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of the Jacobian of cells with ``nodes (n, 6 or 10, 3)`` at reference places, ``(n, q)``."""
    dim = {6: 2, 10: 3}[nodes.shape[1]]
    slopes = _slopes(dim, places)
    found = [np.linalg.det(np.einsum("cki,jqk->cqij", part[..., :dim], slopes))
             for part in np.array_split(nodes, len(nodes) // BLOCK + 1)]
    return np.concatenate(found)


def volumes_of(nodes: np.ndarray) -> np.ndarray:
    """Of cells of second order, ``(n,)`` um^d, exactly."""
    dim = {6: 2, 10: 3}[nodes.shape[1]]
    places, weights = basix.make_quadrature(KINDS[dim], dim)  # of this degree is the determinant
    return np.abs(determinants(nodes, places)) @ weights


def check(data: MeshData) -> None:
    """Raise an InputError where bent edges are none of the mesh, or turn a cell inside out."""
    where, edges = f"mesh '{data.name}'", data.curved_edges
    if not len(edges):
        return
    if data.dim == 1:
        raise InputError(f"{where}: has {len(edges)} curved edges, expected none in a mesh of "
                         "intervals")
    bad = ~np.isfinite(data.middles).all(axis=1) | data.middles[:, data.dim:].any(axis=1)
    for first in np.flatnonzero(bad)[:1]:
        raise InputError(f"{where}: the middle of curved edge {first} is "
                         f"{tuple(data.middles[first].tolist())}, expected finite coordinates"
                         + ("" if data.dim == 3 else " in the plane z = 0"))
    bad = find_facets(edges_of(data.cells), edges) < 0
    for first in np.flatnonzero(bad)[:1]:
        raise InputError(f"{where}: curved edge {first} {tuple(edges[first].tolist())} is no edge "
                         f"of a cell ({bad.sum()} such), expected the vertices of one")
    if len(np.unique(edges, axis=0)) < len(edges):
        raise InputError(f"{where}: a curved edge is there twice, expected each once")
    cells = bent_cells(data)
    nodes = cell_nodes(data.points, data.cells[cells], edges, data.middles)
    lattice = basix.create_lattice(KINDS[data.dim], 3, basix.LatticeType.equispaced, True)
    found = determinants(nodes, lattice)
    least = found.min(axis=1) / found.mean(axis=1)
    bad = (found.mean(axis=1) <= 0) | (least <= 0)
    for first in np.flatnonzero(bad)[:1]:
        raise InputError(f"{where}: {bad.sum()} of {len(data.cells)} cells are turned inside out "
                         f"by their curved edges, first cell {cells[first]}, expected none (try a "
                         "smaller size, or order 1)")


def second_order(straight: dolfinx.mesh.Mesh, names: np.ndarray, edges: np.ndarray,
                 middles: np.ndarray) -> dolfinx.mesh.Mesh:
    """The cells of a straight mesh with the middles of edges where they are given. Collective.

    Args:
        names: number in the input of each vertex of this rank.
        edges, middles: ``(n, 2)`` such numbers, and um; rows may be on any rank.
    """
    comm, dim, geometry = straight.comm, straight.topology.dim, straight.geometry
    # a function space of second order numbers the nodes, and owns them
    space = dolfinx.fem.functionspace(straight, ("Lagrange", 2))
    nodes, index_map = space.dofmap.list, space.dofmap.index_map
    owned = index_map.size_local
    x = space.tabulate_dof_coordinates()
    on_edges, first = np.unique(nodes[:, dim + 1:], return_index=True)
    ends = np.sort(names[geometry.dofmaps[0][:, EDGES[dim]]].reshape(-1, 2)[first], axis=1)
    mine = on_edges < owned
    rows = FacetRows(FacetSlabs(comm, ends[mine]), edges)
    found = rows.values(np.asarray(middles, float), default=np.nan)
    vector = dolfinx.la.vector(index_map, 3)
    values = vector.array.reshape(-1, 3)
    values[:] = x
    given = ~np.isnan(found[:, 0])
    values[on_edges[mine][given]] = found[given]
    vector.scatter_forward()
    kind = {2: "triangle", 3: "tetrahedron"}[dim]
    element = basix.ufl.element("Lagrange", kind, 2, shape=(dim,))
    own = np.concatenate([np.arange(*index_map.local_range), index_map.ghosts])
    made = dolfinx.mesh.create_geometry(
        index_map, nodes, dolfinx.fem.coordinate_element(
            dolfinx.mesh.CellType[kind], 2, basix.LagrangeVariant.gll_warped),
        np.ascontiguousarray(values[:, :dim]), own)
    return dolfinx.mesh.Mesh(dolfinx.cpp.mesh.Mesh_float64(
        comm, straight.topology._cpp_object, made._cpp_object), ufl.Mesh(element))


def bent_edges(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """This rank's slab of the edges that are bent, and their middles. Collective.

    By nodes as `Mesh.input_nodes`.
    """
    x, dim = mesh.domain.geometry, mesh.dim
    nodes, first = np.unique(x.dofmaps[0][:, dim + 1:], return_index=True)
    ends = mesh.geometry.dofmaps[0][:, EDGES[dim]].reshape(-1, 2)[first]
    corners, middles = mesh.geometry.x[ends], x.x[nodes]
    away = np.linalg.norm(middles - corners.mean(axis=1), axis=1)
    length = np.linalg.norm(corners[:, 1] - corners[:, 0], axis=1)
    chosen = (nodes < x.index_map().size_local) & (away > STRAIGHT * length)
    slabs = FacetSlabs(mesh.comm, np.sort(mesh.input_nodes[ends[chosen]], axis=1))
    return slabs.keys, slabs.collect(middles[chosen])


def facet_density(mesh: Mesh, bary: np.ndarray) -> np.ndarray:
    """Area of each owned facet over that of the reference one, ``(nf, q)``, at places of it.

    Args:
        bary: ``(q, d)`` barycentric coordinates in the order of `Mesh.facet_places`.
    """
    dim, geometry = mesh.dim, mesh.domain.geometry
    reference = np.vstack([np.zeros(dim), np.eye(dim)])
    density = np.empty((mesh.num_owned_facets, len(bary)))
    for corner, facets in mesh.facets_by_corner(0):
        slopes = _slopes(dim, bary @ reference[list(corner)])
        along = reference[list(corner)][1:] - reference[corner[0]]
        for part in np.array_split(facets, len(facets) // BLOCK + 1):
            nodes = geometry.x[geometry.dofmaps[0][mesh.facet_cells[part, 0]]]
            tangents = np.einsum("cki,jqk,tj->cqti", nodes, slopes, along)
            gram = np.einsum("cqti,cqsi->cqts", tangents, tangents)
            density[part] = np.sqrt(np.maximum(np.linalg.det(gram), 0.0))
    return density
