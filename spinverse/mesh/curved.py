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
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..errors import InputError, warn_caller
from .checks import cell_volumes, facets_of, find_facets
from .ordered import FacetRows, FacetSlabs

if TYPE_CHECKING:
    from .data import MeshData
    from .distributed import Mesh

KINDS = {1: basix.CellType.interval, 2: basix.CellType.triangle, 3: basix.CellType.tetrahedron}
# corners of the edges of a cell, in the order of the nodes after its corners
EDGES = {2: ((1, 2), (0, 2), (0, 1)), 3: ((2, 3), (1, 3), (1, 2), (0, 3), (0, 2), (0, 1))}
STRAIGHT = 1e-12  # of its length, how far the middle of a straight edge may be from half way
THINNEST = 0.1  # of a cell's mean Jacobian determinant, what is left of it where it is least
HALVINGS = 4  # of what an edge is bent by, before it is straight
CREASE = np.pi / 3  # rad, about between normals of triangles of one surface: more is a crease
ON_FACE = 1e-6  # of a box's length, how far off its faces and from each other twins may be
MANY = 0.02  # of all curved edges, what is said
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

    def valid(self, points: np.ndarray, cells: np.ndarray) -> Bent:
        """`straightened`, with a warning where it is more than a few edges."""
        bent, count = self.straightened(points, cells)
        if count > MANY * len(self.middles):
            warn_caller(f"{count} of {len(self.middles)} curved edges are straighter than the "
                        "surface, as cells would be turned inside out (try a smaller size)")
        return bent

    def straightened(self, points: np.ndarray, cells: np.ndarray) -> tuple[Bent, int]:
        """Straighter where a cell would be turned inside out, and on opposite faces of a box alike.

        And how many edges these are: between them surfaces are as facets.
        """
        half = points[self.curved_edges].mean(axis=1)
        twin = _twins(points, half)
        near = np.flatnonzero(np.isin(cells, self.curved_edges).sum(axis=1) > 1)
        order = np.lexsort(self.curved_edges.T[::-1])
        ends = cells[near][:, EDGES[cells.shape[1] - 1]]
        place = find_facets(self.curved_edges[order], ends.reshape(-1, 2)).reshape(ends.shape[:2])
        place = np.where(place < 0, -1, order[place])
        share = np.ones(len(half))
        for halving in range(HALVINGS + 1):
            bent = self._replace(middles=half + share[:, None] * (self.middles - half))
            thin = _thinnest(cell_nodes(points, cells[near], *bent)) < THINNEST
            if not thin.any():
                break
            edges = np.unique(place[thin])
            share[np.isin(twin, twin[edges[edges >= 0]])] *= 0.5 if halving < HALVINGS - 1 else 0.0
        return bent, int(np.count_nonzero(share < 1))

    def volumes(self, points: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Of cells ``(Nt, d + 1)`` with these edges, ``(Nt,)`` um^d."""
        found = np.abs(cell_volumes(points, cells))
        near = np.flatnonzero(np.isin(cells, self.curved_edges).sum(axis=1) > 1)
        found[near] = volumes_of(cell_nodes(points, cells[near], *self))
        return found


def by_normals(points: np.ndarray, cells: np.ndarray, facets: np.ndarray,
               inside: np.ndarray) -> Bent:
    """Edges of a faceted surface in 3-D, bent as its normals at vertices say.

    Normals are means over the triangles around a vertex that are exact on spheres (Max, J. Graphics
    Tools 4 (1999) 1); with normals n and m at its ends a and b an edge is a cubic whose middle is
    (a + b)/2 - (((b - a) . n) n + ((a - b) . m) m)/8 (Vlachos, Peters, Boyd and Mitchell, I3D 2001,
    159). Edges that touch a crease or a rim stay straight.

    Args:
        facets: ``(n, 3)`` of the surface.
        inside: ``(Nt,)`` bool, cells on one side of it.
    """
    every, pairs = facets_of(cells)
    place = find_facets(every, facets)
    sides = pairs[place]
    first = inside[sides[:, 0]]
    cell = np.where(first, sides[:, 0], sides[:, 1])
    x = points[facets]
    normal = np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])
    outward = x.mean(axis=1) - points[cells[cell]].mean(axis=1)
    turn = np.where(np.einsum("fi,fi->f", normal, outward) < 0, -1.0, 1.0)[:, None]
    at_vertex = np.zeros_like(points)
    for k in range(3):
        e, f = x[:, (k + 1) % 3] - x[:, k], x[:, (k + 2) % 3] - x[:, k]
        size = (e**2).sum(axis=1) * (f**2).sum(axis=1)
        np.add.at(at_vertex, facets[:, k], turn * normal / size[:, None])
    length = np.linalg.norm(at_vertex, axis=1, keepdims=True)
    at_vertex = np.divide(at_vertex, length, out=np.zeros_like(points), where=length > 0)
    sharp = np.einsum("fi,fki->fk", turn * normal, at_vertex[facets]) < np.cos(
        CREASE / 2) * np.linalg.norm(normal, axis=1)[:, None]
    i, j = np.triu_indices(3, 1)
    rows, count = np.unique(np.sort(np.stack([facets[:, i], facets[:, j]], axis=-1).reshape(-1, 2),
                                    axis=1), axis=0, return_counts=True)
    kept = np.zeros(len(points), bool)
    kept[facets[sharp]] = kept[rows[count != 2]] = True
    edges = rows[~kept[rows].any(axis=1)]
    (a, b), (n, m) = (values[edges].swapaxes(0, 1) for values in (points, at_vertex))
    along = b - a
    bend = (np.einsum("ei,ei->e", along, n)[:, None] * n
            - np.einsum("ei,ei->e", along, m)[:, None] * m) / 8
    return Bent(edges, (a + b) / 2 - bend).valid(points, cells)


def extruded(bent: Bent, flat: np.ndarray, points: np.ndarray, cells: np.ndarray) -> Bent:
    """Edges of the prisms over a plane mesh with ``bent`` edges, of vertices ``flat (Nv, 3)``.

    Args:
        points, cells: of `grids.extrude`.
    """
    layers = len(points) // len(flat)
    tree = cKDTree(flat[:, :2])
    under = tree.query(points[: len(flat), :2])[1]  # extrusion renumbers
    under = np.tile(under, layers)
    edges = edges_of(cells)
    ends = np.sort(under[edges], axis=1)
    order = np.lexsort(bent.curved_edges.T[::-1])
    place = find_facets(bent.curved_edges[order], ends)
    edges, place = edges[place >= 0], order[place[place >= 0]]
    middles = points[edges].mean(axis=1)
    middles[:, :2] = bent.middles[place, :2]
    return Bent(edges, middles)


def _twins(points: np.ndarray, half: np.ndarray) -> np.ndarray:
    """A number for each place, the same for places opposite of each other on a box around all."""
    low, high = points.min(axis=0), points.max(axis=0)
    near = ON_FACE * float((high - low).max())
    place = np.where((np.abs(half - high) <= near) & (high - low > near), low, half)
    pairs = cKDTree(place).query_pairs(near, output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(half),) * 2)
    return connected_components(graph, directed=False)[1]


def _thinnest(nodes: np.ndarray) -> np.ndarray:
    """Least determinant of the Jacobian over its mean, of cells with nodes as `determinants`."""
    kind = KINDS[{6: 2, 10: 3}[nodes.shape[1]]]
    found = determinants(nodes, basix.create_lattice(kind, 3, basix.LatticeType.equispaced, True))
    mean = found.mean(axis=1)
    return np.where(mean > 0, found.min(axis=1) / np.where(mean > 0, mean, 1.0), -1.0)


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
    found = []
    for part in np.array_split(nodes, len(nodes) // BLOCK + 1):
        # columns of the Jacobian, (c, q, 3) each
        columns = [np.einsum("cki,qk->cqi", part, slope) for slope in slopes]
        normal = np.cross(columns[0], columns[1])
        found.append(normal[..., 2] if dim == 2 else (normal * columns[2]).sum(axis=2))
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
    bad = find_facets(edges_of(data.cells[bent_cells(data)]), edges) < 0
    for first in np.flatnonzero(bad)[:1]:
        raise InputError(f"{where}: curved edge {first} {tuple(edges[first].tolist())} is no edge "
                         f"of a cell ({bad.sum()} such), expected the vertices of one")
    if len(np.unique(edges, axis=0)) < len(edges):
        raise InputError(f"{where}: a curved edge is there twice, expected each once")
    cells = bent_cells(data)
    bad = _thinnest(cell_nodes(data.points, data.cells[cells], edges, data.middles)) <= 0
    for first in np.flatnonzero(bad)[:1]:
        raise InputError(f"{where}: {bad.sum()} of {len(data.cells)} cells are turned inside out "
                         f"by their curved edges, first cell {cells[first]}, expected none (read "
                         "with repair=True makes these straighter; or smaller cells)")


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
    rows = FacetRows(slabs := FacetSlabs(comm, ends[mine]), edges)
    lost = comm.allreduce(len(edges)) - (slabs.total - rows.missing)
    if lost:
        raise InputError(f"curved_edges: {lost} are no edges of the mesh or are given twice, "
                         "expected each once")
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
    moved = (values != x).any(axis=1)
    cells = nodes[: straight.topology.index_map(dim).size_local]
    inverted = comm.allreduce(int(np.count_nonzero(
        _thinnest(values[cells[moved[cells].any(axis=1)]]) <= 0)))
    if inverted:
        raise InputError(f"curved_edges: they turn {inverted} cells inside out, expected none (try "
                         "smaller cells, or order 1)")
    return dolfinx.mesh.Mesh(dolfinx.cpp.mesh.Mesh_float64(
        comm, straight.topology._cpp_object, made._cpp_object), ufl.Mesh(element))


def _bent_nodes(mesh: Mesh) -> np.ndarray:
    """Which nodes are the middles of bent edges, ``(n,)`` bool."""
    geometry, dim = mesh.domain.geometry, mesh.dim
    ends = mesh.geometry.x[mesh.geometry.dofmaps[0][:, EDGES[dim]]]
    away = np.linalg.norm(geometry.x[geometry.dofmaps[0][:, dim + 1:]] - ends.mean(axis=2), axis=2)
    found = np.zeros(len(geometry.x), bool)
    found[geometry.dofmaps[0][:, dim + 1:]] = away > STRAIGHT * np.linalg.norm(
        ends[:, :, 1] - ends[:, :, 0], axis=2)
    return found


def bent_edges(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """This rank's slab of the edges that are bent, and their middles. Collective.

    By nodes as `Mesh.input_nodes`.
    """
    geometry, dim = mesh.domain.geometry, mesh.dim
    nodes, first = np.unique(geometry.dofmaps[0][:, dim + 1:], return_index=True)
    ends = mesh.geometry.dofmaps[0][:, EDGES[dim]].reshape(-1, 2)[first]
    chosen = _bent_nodes(mesh)[nodes] & (nodes < geometry.index_map().size_local)
    slabs = FacetSlabs(mesh.comm, np.sort(mesh.input_nodes[ends[chosen]], axis=1))
    return slabs.keys, slabs.collect(geometry.x[nodes[chosen]])


def cell_volumes_of(mesh: Mesh) -> np.ndarray:
    """Of the cells on this rank, ghosts last, ``(nc,)`` um^d."""
    found = np.abs(cell_volumes(mesh.geometry.x, mesh.geometry.dofmaps[0]))
    nodes = mesh.domain.geometry.dofmaps[0]
    cells = _bent_nodes(mesh)[nodes].any(axis=1)
    found[cells] = volumes_of(mesh.domain.geometry.x[nodes[cells]])
    return found


def facet_vectors(mesh: Mesh, bary: np.ndarray) -> np.ndarray:
    """Normals of the owned facets at places of them, ``(nf, q, 3)``, of either sign.

    They are as long as the area is over that of the reference facet.

    Args:
        bary: ``(q, d)`` barycentric coordinates in the order of `Mesh.facet_places`.
    """
    dim, geometry = mesh.dim, mesh.domain.geometry
    reference = np.vstack([np.zeros(dim), np.eye(dim)])
    vectors = np.empty((mesh.num_owned_facets, len(bary), 3))
    for corner, facets in mesh.facets_by_corner(0):
        slopes = _slopes(dim, bary @ reference[list(corner)])
        along = reference[list(corner)][1:] - reference[corner[0]]
        for part in np.array_split(facets, len(facets) // BLOCK + 1):
            nodes = geometry.x[geometry.dofmaps[0][mesh.facet_cells[part, 0]]]
            tangents = [np.einsum("cki,jqk,j->cqi", nodes, slopes, t, optimize=True)
                        for t in along]
            vectors[part] = np.cross(*(tangents if dim == 3 else (tangents[0], (0.0, 0.0, 1.0))))
    return vectors


def facet_rule(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """`facet_vectors` at the points of a quadrature rule, and its weights ``(q,)``."""
    places, weights = basix.make_quadrature(KINDS[mesh.dim - 1], FACET_DEGREE)
    return facet_vectors(mesh, np.column_stack([1 - places.sum(axis=1), places])), weights
