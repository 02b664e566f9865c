"""Boxes whose opposite faces are one: meshes of a torus, on which every facet has two sides.

`spinverse.periodic` ties the nodes of opposite faces, so that nothing is on them. Here the facets
there are facets like all others, and can be membranes: the topology is that of the torus, and the
coordinates are those of the box, in which a glued facet lies on the lower face.
"""

from __future__ import annotations

import dolfinx
import numpy as np
from mpi4py import MPI
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from .errors import InputError
from .mesh.distributed import Mesh, create_domain, representative
from .parallel.exchange import Ranges, Route
from .periodic import AXES, faces, pair_across, periodic_axes


def glued(mesh: Mesh, axes: str = "xyz") -> Mesh:
    """The same cells, with the faces of the box across these axes glued together. Collective.

    Cells and vertices keep their numbers in the input. Of two facets that become one, that on the
    lower face gives it its vertices.

    Args:
        mesh: a box of tetrahedra, with the same triangles on opposite faces.
        axes: as ``periodic`` of `spinverse.Tissue`.

    Raises:
        InputError: another dimension, faces that do not match, fewer than three cells along an axis
            (a facet is known by its vertices, which would not be different ones then).
    """
    if mesh.dim != 3:
        raise InputError(f"boundary: periodic, on a mesh of dimension {mesh.dim}, expected "
                         "tetrahedra")
    if mesh.curved:
        raise InputError(f"boundary: periodic, on mesh '{mesh.name}' with curved cells, expected "
                         "straight ones (order 1) where facets on its faces are unknown")
    numbers = periodic_axes(mesh, axes)
    nodes = mesh.input_nodes[mesh.facet_nodes]
    found = [np.empty((0, 2), np.int64)]
    for axis in numbers:
        sides = faces(mesh, axis)
        found.append(pair_across(mesh, axis, tuple(mesh.facet_corners[side] for side in sides),
                                 tuple(nodes[side] for side in sides)))
    pairs = np.concatenate(found)
    same = _representatives(pairs)
    kept = mesh.num_facets - len(pairs) // 3
    if _distinct(mesh.comm, np.sort(representative(same, nodes), axis=1)) != kept:
        raise InputError(f"boundary: periodic, on mesh '{mesh.name}' with fewer than three cells "
                         "along an axis, expected at least three")
    owned, count = mesh.geometry.index_map().size_local, mesh.num_owned_cells
    points = mesh.node_slabs.collect(mesh.geometry.x[:owned])
    cells = mesh.cell_slabs.collect(mesh.input_nodes[mesh.geometry.dofmaps[0][:count]])
    tags = mesh.cell_slabs.collect(mesh.cell_tags[:count])
    names = mesh.node_slabs.collect(mesh.input_vertices[:owned])
    domain = create_domain(mesh.comm, representative(same, cells), points)
    domain = _with_nodes(domain, cells, points)
    member = mesh.interface > 0
    # what the mesh knows of an upper face goes to the lower one
    total = mesh.geometry.index_map().size_global
    ends = Ranges(mesh.comm, total).fetch(pairs.ravel(), names).reshape(-1, 3, 2)
    lower = {tuple(sorted(up)): sorted(down) for down, up in ends.transpose(0, 2, 1).tolist()}
    triples = [lower.get(tuple(row), row) for row in mesh.facet_vertices[member].tolist()]
    return Mesh(domain, tags, np.array(triples, np.int64).reshape(-1, 3),
                mesh.interface[member], names, mesh.name,
                "".join(AXES[axis] for axis in numbers), same)


def _distinct(comm: MPI.Comm, triples: np.ndarray) -> int:
    """How many rows ``(n, 3)``, ascending, of all ranks differ, those with equal entries not."""
    triples = triples[(triples[:, 1:] > triples[:, :-1]).all(axis=1)]
    # equal rows meet on one rank
    found = Route(comm, triples.sum(axis=1) % comm.size).forward(triples)
    return comm.allreduce(len(np.unique(found, axis=0)))


def _representatives(pairs: np.ndarray) -> np.ndarray:
    """Nodes on the faces and the smallest that each is one with, ``(n, 2)``, ascending."""
    known, where = np.unique(pairs, return_inverse=True)
    where = where.reshape(-1, 2)
    graph = coo_matrix((np.ones(len(where)), (where[:, 0], where[:, 1])), shape=(len(known),) * 2)
    _, part = connected_components(graph, directed=False)
    first = np.full(part.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, part, known)
    return np.column_stack([known, first[part]])


def _with_nodes(domain: dolfinx.mesh.Mesh, cells: np.ndarray,
                points: np.ndarray) -> dolfinx.mesh.Mesh:
    """The same topology with the nodes of the box. Collective.

    Args:
        domain: of the torus.
        cells, points: of the box, this rank's ranges of all; a node belongs to the lowest rank
            that has a cell with it.
    """
    comm, topology = domain.comm, domain.topology
    cell_map = topology.index_map(3)
    number = np.asarray(topology.original_cell_index, dtype=np.int64)
    mine = Ranges(comm, cell_map.size_global).fetch(number, cells)
    used, local = np.unique(mine, return_inverse=True)
    in_owned = np.isin(used, mine[: cell_map.size_local])
    nodes = Ranges(comm, comm.allreduce(len(points)))
    route = Route(comm, nodes.holder(used))
    asked, claims = route.forward(used) - nodes.start, route.forward(in_owned)
    source = np.repeat(np.arange(comm.size), route.received)
    owner = np.full(len(points), comm.size)
    np.minimum.at(owner, asked[claims], source[claims])
    owner = route.backward(owner[asked])
    order = np.lexsort((used, owner != comm.rank))  # owned ones first
    used, owner = used[order], owner[order]
    owned = int(np.count_nonzero(owner == comm.rank))
    first = comm.exscan(owned) or 0
    route = Route(comm, nodes.holder(used[:owned]))
    index = np.zeros(len(points), dtype=np.int64)
    index[route.forward(used[:owned]) - nodes.start] = route.forward(first + np.arange(owned))
    ghosts = nodes.fetch(used[owned:], index)
    index_map = dolfinx.common.IndexMap(comm, owned, ghosts, owner[owned:].astype(np.int32), 0)
    place = np.empty(len(order), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    geometry = dolfinx.mesh.create_geometry(
        index_map, place[local].reshape(mine.shape), domain.geometry.cmaps[0],
        np.ascontiguousarray(nodes.fetch(used, points)), used)
    made = dolfinx.cpp.mesh.Mesh_float64(comm, topology._cpp_object, geometry._cpp_object)
    return dolfinx.mesh.Mesh(made, domain.ufl_domain())
