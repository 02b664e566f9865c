"""The mesh that is computed on: distributed cells, the facet submesh and its DG0 space."""

from __future__ import annotations

from functools import cached_property
from math import factorial
from pathlib import Path
from typing import Any

import basix.ufl
import dolfinx
import numpy as np
from dolfinx.mesh import GhostMode
from mpi4py import MPI

from ..errors import InputError, on_all, on_root
from ..parallel.exchange import Ranges, gather_chosen, reduced, scatter
from ..parallel.npz import Rows, write_npz
from . import curved
from .arguments import target
from .checks import cell_volumes, find_facets
from .data import CELLS, MeshData, tags_in_words
from .ordered import FacetRows, FacetSlabs, Slabs


class Mesh:
    """A distributed simplex mesh, of dimension d = 1, 2 or 3, whose facets carry values.

    Both sides of every owned facet are on the rank, one of them maybe as a ghost. Facets form a
    submesh of their own; each is known by its vertex triple in the numbering of the input.

    Build one with `Mesh.from_data`, `spinverse.mesh.read` or the builders in `spinverse.mesh`.

    Attributes:
        domain: the dolfinx mesh (coordinates in um).
        straight: the same cells without bent edges (`spinverse.mesh.curved`); `domain` itself
            where no edge is bent.
        facets: the dolfinx submesh of all facets, interior and outer.
        facet_map: the entity map between the two, for ``entity_maps=[mesh.facet_map]``.
        facet_space: DG0 on `facets`; value ``i`` belongs to owned facet ``i``.
        facet_vertices: ``(nf, d)`` vertices of the owned facets, ascending, input numbering.
        facet_entities: ``(nf,)`` index of each owned facet in `domain`.
        outer: ``(nf,)`` bool, True for facets on the outer boundary.
        interface: ``(nf,)`` int32, tag of the known membrane on each owned facet, 0 for none.
        cell_tags: ``(nc,)`` int32 tags of the cells on this rank, ghosts last.
        input_cells: ``(nc,)`` index of each of these cells in the input.
        input_nodes: ``(nv,)`` index of each vertex on this rank among those that cells use.
        name: for messages and reports.
        glued: axes whose opposite faces are one (`spinverse.glued`), "" for none.
        same: ``(n, 2)`` nodes on such faces, ascending, and the one that stands for each.
    """

    def __init__(self, domain: dolfinx.mesh.Mesh, cell_tags: np.ndarray,
                 interface_triples: np.ndarray, interface_tags: np.ndarray,
                 input_vertices: np.ndarray, name: str = "mesh", glued: str = "",
                 same: np.ndarray | None = None,
                 curved_edges: tuple[np.ndarray, np.ndarray] | None = None):
        """Collective. Of a straight dolfinx mesh, and the rest as for `from_slabs`."""
        self.domain = self.straight = domain
        self.name, self.glued = name, glued
        self.same = np.empty((0, 2), np.int64) if same is None else same
        topology = domain.topology
        dim = topology.dim
        edges = ((dim - 1, 1), (1, 0)) if dim == 3 else ()  # of facets
        for pair in ((dim - 1, dim), (dim, dim - 1), (dim - 1, 0), (dim, 0), *edges):
            topology.create_connectivity(*pair)
        comm, geometry = domain.comm, domain.geometry
        self.input_nodes = np.asarray(geometry.input_global_indices, dtype=np.int64)
        self.input_vertices = Ranges(comm, geometry.index_map().size_global).fetch(
            self.input_nodes, input_vertices)
        if curved_edges is not None and comm.allreduce(len(curved_edges[0])):
            self.domain = domain = curved.second_order(domain, self.input_vertices, *curved_edges)
        owned = np.arange(topology.index_map(dim - 1).size_local, dtype=np.int32)
        self.facets, self.facet_map, *_ = dolfinx.mesh.create_submesh(domain, dim - 1, owned)
        self.facet_entities = self.facet_map.sub_topology_to_topology(owned, False)
        self.facet_space = dolfinx.fem.functionspace(self.facets, ("DG", 0))
        self.facet_vertices = np.sort(self.input_vertices[self.facet_nodes], axis=1)
        self.outer = np.isin(self.facet_entities, dolfinx.mesh.exterior_facet_indices(topology))
        self.input_cells = np.asarray(topology.original_cell_index, dtype=np.int64)
        self.cell_tags = Ranges(comm, self.num_cells).fetch(
            self.input_cells, np.asarray(cell_tags, dtype=np.int32))
        self.interface = FacetRows(self.facet_slabs, interface_triples).values(
            np.asarray(interface_tags, dtype=np.int32))

    @classmethod
    def from_data(cls, data: MeshData | None, comm: MPI.Comm | None = None) -> Mesh:
        """Distribute a mesh that rank 0 of ``comm`` (``MPI.COMM_WORLD``) holds. Collective."""
        comm = MPI.COMM_WORLD if comm is None else comm
        root = comm.rank == 0
        held: Any = data  # nothing elsewhere
        dim, name = comm.bcast(on_root(comm, lambda: (held.dim, held.name)))
        arrays = (held.points[:, :dim], held.cells, held.cell_tags, held.input_vertices) if root \
            else (None,) * 4
        triples, triple_tags = (np.empty((0, dim), np.int64), np.empty(0, np.int32)) if not root \
            else (held.input_vertices[held.interface_facets], held.interface_tags)
        bent = (held.input_vertices[held.curved_edges], held.middles) if root else \
            (np.empty((0, 2), np.int64), np.empty((0, 3)))
        points, cells, tags, vertices = (scatter(comm, array) for array in arrays)
        return cls.from_slabs(comm, points, cells, tags, vertices, triples, triple_tags, name,
                              bent)

    @classmethod
    def from_slabs(cls, comm: MPI.Comm, points: np.ndarray, cells: np.ndarray,
                   cell_tags: np.ndarray, input_vertices: np.ndarray,
                   interface_triples: np.ndarray, interface_tags: np.ndarray,
                   name: str = "mesh",
                   curved_edges: tuple[np.ndarray, np.ndarray] | None = None) -> Mesh:
        """Distribute a mesh of which each rank holds an even range (`Ranges`). Collective.

        Args:
            points: this rank's, ``(n, 3)`` or ``(n, d)`` um.
            cells: this rank's, ``(m, d + 1)`` numbers among the points of all ranks.
            cell_tags: ``(m,)``.
            input_vertices: ``(n,)`` number of each point in the input.
            interface_triples, interface_tags: rows of the known membrane, on any rank.
            curved_edges: ``(n, 2)`` vertices in the input and ``(n, 3)`` um, the middles of edges
                that are bent; rows on any rank.
        """
        dim = cells.shape[1] - 1
        domain = create_domain(comm, cells, points[:, :dim])
        return cls(domain, cell_tags, interface_triples, interface_tags, input_vertices, name,
                   curved_edges=curved_edges)

    @property
    def comm(self) -> MPI.Comm:
        return self.domain.comm

    @property
    def dim(self) -> int:
        """3 for tetrahedra, 2 for triangles, 1 for intervals."""
        return self.domain.topology.dim

    @property
    def geometry(self) -> dolfinx.mesh.Geometry:
        """Vertices: nodes, coordinates and their numbers in the input, of straight cells."""
        return self.straight.geometry

    @property
    def curved(self) -> bool:
        """Whether edges are bent, so that cells are of second order."""
        return self.domain is not self.straight

    @property
    def num_cells(self) -> int:
        """Number of cells of the whole mesh."""
        return self.domain.topology.index_map(self.dim).size_global

    @property
    def num_facets(self) -> int:
        """Number of facets of the whole mesh, outer ones included."""
        return self.facets.topology.index_map(self.dim - 1).size_global

    @property
    def num_owned_facets(self) -> int:
        return len(self.facet_vertices)

    @property
    def num_owned_cells(self) -> int:
        return self.domain.topology.index_map(self.dim).size_local

    @cached_property
    def bounds(self) -> np.ndarray:
        """Lower and upper corner of the bounding box, ``(2, 3)``, um."""
        x = self.geometry.x
        return np.array([reduced(self.comm, x.min(axis=0, initial=np.inf), MPI.MIN),
                         reduced(self.comm, x.max(axis=0, initial=-np.inf), MPI.MAX)])

    @property
    def centre(self) -> np.ndarray:
        """Centre of the bounding box, ``(3,)``, um: the origin of the gradient."""
        return self.bounds.mean(axis=0)

    @cached_property
    def facet_areas(self) -> np.ndarray:
        """Area of each owned facet, ``(nf,)``, um^2; length in 2-D, 1 in 1-D."""
        if self.curved:
            vectors, weights = curved.facet_rule(self)
            return np.linalg.norm(vectors, axis=2) @ weights
        edges = self.facet_corners[:, 1:] - self.facet_corners[:, :1]
        gram = np.einsum("fik,fjk->fij", edges, edges)
        return np.sqrt(np.maximum(np.linalg.det(gram), 0.0)) / factorial(self.dim - 1)

    @cached_property
    def facet_nodes(self) -> np.ndarray:
        """Nodes of the geometry at the corners of each owned facet, ``(nf, d)``.

        Of a facet where faces are glued those on the lower face.
        """
        nodes = dolfinx.mesh.entities_to_geometry(
            self.straight, self.dim - 1, self.facet_entities).reshape(-1, self.dim)
        if not self.glued:
            return nodes
        place = np.searchsorted(self.same[:, 0], self.input_nodes).clip(max=len(self.same) - 1)
        on_face = self.same[place, 0] == self.input_nodes
        facets = np.flatnonzero(on_face[nodes].all(axis=1))
        links = self.domain.topology.connectivity(self.dim, self.dim - 1).array.reshape(-1, 4)
        x, cells = self.geometry.x, self.geometry.dofmaps[0]
        found = []
        for side in self.facet_cells[facets].T:
            # facet i of a tetrahedron is opposite of its vertex i
            opposite = (links[side] == self.facet_entities[facets, None]).argmax(axis=1)
            kept = np.arange(4) != opposite[:, None]
            found.append(cells[side][kept].reshape(-1, 3))
        # alike but for a period: the sum of the coordinates tells the lower one
        height = [x[corners].sum(axis=(1, 2)) for corners in found]
        lower = np.where((height[0] <= height[1])[:, None], *found)
        nodes[facets] = lower
        return nodes

    @cached_property
    def facet_corners(self) -> np.ndarray:
        """Corner coordinates of each owned facet, ``(nf, d, 3)``, um."""
        return self.geometry.x[self.facet_nodes]

    @cached_property
    def cell_volumes(self) -> np.ndarray:
        """Volume of each cell on this rank, ghosts last, ``(nc,)``, um^d."""
        if self.curved:
            return curved.cell_volumes_of(self)
        return np.abs(cell_volumes(self.geometry.x, self.geometry.dofmaps[0]))

    @cached_property
    def facet_cells(self) -> np.ndarray:
        """Local cells on the two sides of each owned facet, ``(nf, 2)``; -1 is outside."""
        links = self.domain.topology.connectivity(self.dim - 1, self.dim)
        first, last = links.offsets[self.facet_entities], links.offsets[self.facet_entities + 1] - 1
        return np.column_stack([links.array[first],
                                np.where(last > first, links.array[last], np.int32(-1))])

    @cached_property
    def facet_places(self) -> np.ndarray:
        """Which corners of the cells on its two sides a facet has, ``(nf, 2, d)``.

        In one order on both sides.
        """
        # vertices, not nodes of the geometry: of a glued box the two sides have other nodes
        topology, dim = self.domain.topology, self.dim
        cells = topology.connectivity(dim, 0).array.reshape(-1, dim + 1)
        facets = np.sort(topology.connectivity(dim - 1, 0).array.reshape(-1, dim)[
            self.facet_entities], axis=1)
        sides = cells[np.maximum(self.facet_cells, 0)]
        return (sides[:, :, None, :] == facets[:, None, :, None]).argmax(axis=3)

    def facets_by_corner(self, side: int, facets: np.ndarray | None = None):
        """Yield which corners of the cell on a side facets are, and the places in ``facets``.

        Of the owned facets, or of some of them; those without such a cell are left out.
        """
        facets = np.arange(self.num_owned_facets) if facets is None else facets
        inside = self.facet_cells[facets, side] >= 0
        code = self.facet_places[facets, side] @ 4 ** np.arange(self.dim)
        for value in np.unique(code[inside]):
            corner = tuple(int(value) // 4**i % 4 for i in range(self.dim))
            yield corner, np.flatnonzero(inside & (code == value))

    def find_facets(self, triples: np.ndarray) -> np.ndarray:
        """Index of the owned facet of each row of vertices, ``(n,)``, -1 where none is owned here.

        Args:
            triples: ``(n, d)`` vertices in the input numbering, any order within a row.
        """
        order = np.lexsort(self.facet_vertices.T[::-1])
        place = find_facets(self.facet_vertices[order], triples)
        return np.where(place < 0, -1, np.append(order, -1)[place])

    def facet_function(self, values: np.ndarray, name: str = "permeability"):
        """A DG0 function on the facet submesh from values of the owned facets, ``(nf,)``."""
        function = dolfinx.fem.Function(self.facet_space, name=name)
        function.x.array[: self.num_owned_facets] = values
        return function

    @cached_property
    def facet_slabs(self) -> FacetSlabs:
        """The facets in the order of their vertex triples, each rank its slab. Collective."""
        return FacetSlabs(self.comm, self.facet_vertices)

    @cached_property
    def cell_slabs(self) -> Slabs:
        """The cells in the order of the input, each rank its slab. Collective."""
        return Slabs.by_number(self.comm, self.num_cells, self.input_cells[: self.num_owned_cells])

    @cached_property
    def node_slabs(self) -> Slabs:
        """The vertices in the order of the input, each rank its slab. Collective."""
        nodes = self.geometry.index_map()
        return Slabs.by_number(self.comm, nodes.size_global, self.input_nodes[: nodes.size_local])

    def gather_facets(self, *arrays: np.ndarray,
                      where: np.ndarray | None = None) -> tuple[np.ndarray, ...] | None:
        """Vertex triples and facet values on rank 0, triples in lexicographic order. Collective.

        ``(triples, *arrays)`` on rank 0, ``None`` elsewhere, for pictures of an interface and for
        tests; `facet_slabs` is for the whole mesh.

        Args:
            *arrays: ``(nf, ...)`` of the owned facets.
            where: ``(nf,)`` bool, the chosen facets; all if not given.
        """
        chosen = np.ones(self.num_owned_facets, bool) if where is None else np.asarray(where, bool)
        return gather_chosen(self.comm, chosen, self.facet_vertices, *arrays)

    def facet_rows(self, triples: np.ndarray, what: str) -> FacetRows:
        """Where the facets are in a table, whose values then come to their owners. Collective.

        Args:
            triples: ``(n, d)`` this rank's rows: vertices in the input numbering, any order within
                a row. Rows may be on any rank, and on several.

        Raises:
            InputError: a facet of the mesh has no row on any rank; ``what`` begins the message.
        """
        rows = FacetRows(self.facet_slabs, triples)
        if rows.missing:
            raise InputError(f"{what}: {rows.missing} of the mesh's {self.facet_slabs.total} "
                             "facets have no value; expected one row for every vertex triple")
        return rows

    def scatter_facets(self, triples: np.ndarray, values: np.ndarray, what: str) -> np.ndarray:
        """Values of the owned facets from rows on any ranks, as `facet_rows`. Collective."""
        return self.facet_rows(triples, what).values(values)

    def save(self, path: str | Path) -> None:
        """Write the mesh as ``.npz``, as `spinverse.mesh.read` takes it. Collective.

        Cells, and the vertices that they have, are in the order of the input. The file appears
        complete or not at all.

        Raises:
            InputError: on every rank: another suffix, or no such folder.
        """
        path = on_all(self.comm, target, path, ".npz")
        facets = self.facet_slabs.collect(np.sort(self.input_nodes[self.facet_nodes], axis=1))
        tags = self.facet_slabs.collect(self.interface)
        owned, cells = self.geometry.index_map().size_local, self.num_owned_cells
        write_npz(self.comm, path, {
            "points": Rows(self.node_slabs.collect(self.geometry.x[:owned])),
            CELLS[self.dim]: Rows(self.cell_slabs.collect(
                self.input_nodes[self.geometry.dofmaps[0][:cells]])),
            "cell_tags": Rows(self.cell_slabs.collect(self.cell_tags[:cells])),
            "interface_facets": Rows(facets[tags != 0]),
            "interface_tags": Rows(tags[tags != 0]), **self._bent_rows()})

    def _bent_rows(self) -> dict[str, Rows]:
        """Bent edges by nodes as in `save`, and their middles; nothing without. Collective."""
        if not self.curved:
            return {}
        edges, middles = curved.bent_edges(self)
        return {"curved_edges": Rows(edges), "middles": Rows(middles)}

    def __repr__(self) -> str:
        return f"Mesh({self.name!r}, cells={self.num_cells}, facets={self.num_facets})"

    def __str__(self) -> str:
        # not collective, as one rank alone may print
        kind = f"{'curved ' * self.curved}{CELLS[self.dim]}"
        words = f"mesh '{self.name}': {self.num_cells} {kind}, {self.num_facets} facets"
        if self.comm.size > 1:
            return f"{words}, on {self.comm.size} ranks"
        return "\n".join([words, *tags_in_words(self.geometry.x, self.cell_volumes,
                          self.cell_tags, self.interface[self.interface != 0])])


def create_domain(comm: MPI.Comm, cells: np.ndarray, points: np.ndarray) -> dolfinx.mesh.Mesh:
    """A dolfinx mesh with ghosts on the other side of every owned facet. Collective.

    Of this rank's even range (`Ranges`) of ``cells (m, d + 1)`` and ``points (n, d or 3)`` um.
    """
    dim = cells.shape[1] - 1
    kind = {1: "interval", 2: "triangle", 3: "tetrahedron"}[dim]
    element = basix.ufl.element("Lagrange", kind, 1, shape=(dim,))
    partitioner = dolfinx.mesh.create_cell_partitioner(GhostMode.shared_facet, 2)
    return dolfinx.mesh.create_mesh(comm, cells, element, np.ascontiguousarray(points[:, :dim]),
                                    partitioner=partitioner)


def representative(same: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The node that stands for each of ``nodes``, from pairs as `Mesh.same`."""
    if not len(same):
        return nodes
    place = np.searchsorted(same[:, 0], nodes).clip(max=len(same) - 1)
    return np.where(same[place, 0] == nodes, same[place, 1], nodes)
