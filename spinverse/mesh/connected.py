"""Sets of cells that are connected: in plain arrays, and across ranks."""

from __future__ import annotations

import dolfinx
import numpy as np
from mpi4py import MPI
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..parallel.exchange import Route, summed
from .distributed import Mesh


def cell_regions(num_cells: int, pairs: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """The connected region of each cell of a whole mesh, from 0 in the order of first cells.

    Args:
        pairs: ``(n, 2)`` cells of every facet, -1 outside.
        walls: ``(n,)`` bool, the facets that part regions.
    """
    return components(num_cells, pairs[~walls & (pairs >= 0).all(axis=1)])


def connected_cells(mesh: Mesh, open_facets: np.ndarray) -> np.ndarray:
    """Sets of cells that are connected through ``open_facets (nf,)``, owned inner ones. Collective.

    Every rank connects its own cells and those next to them; then the smallest numbers spread
    from rank to rank, once for each time that a set crosses from one to another on the way.

    Returns:
        ``(nc,)`` int64: of each cell on this rank, ghosts last, the smallest input number of a
        cell of its set.
    """
    topology, dim = mesh.domain.topology, mesh.dim
    # facets of owned cells may be owned elsewhere
    flags = dolfinx.la.vector(topology.index_map(dim - 1), 1, dtype=np.int64)
    flags.array[:] = 0
    flags.array[mesh.facet_entities] = open_facets
    flags.scatter_forward()
    links = topology.connectivity(dim - 1, dim)
    starts = links.offsets[:-1][(np.diff(links.offsets) == 2) & (flags.array > 0)]
    part = components(len(mesh.input_cells),
                       np.column_stack([links.array[starts], links.array[starts + 1]]))
    lowest = np.full(part.max(initial=-1) + 1, mesh.num_cells, dtype=np.int64)
    np.minimum.at(lowest, part, mesh.input_cells)
    label = dolfinx.la.vector(topology.index_map(dim), 1, dtype=np.int64)
    while True:
        label.array[:] = lowest[part]
        label.scatter_forward()
        before = lowest.copy()
        np.minimum.at(lowest, part, label.array)
        if not mesh.comm.allreduce(bool((lowest != before).any()), op=MPI.LOR):
            return label.array.copy()


def sizes_of(mesh: Mesh, labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Volumes, ``(n,)`` um^3, of the ``wanted (n,)`` sets of `connected_cells`. Collective.

    Any rank may want any of the ``labels (owned cells,)``, int64 from 0. The last digits depend on
    the number of ranks.
    """
    comm, owned = mesh.comm, mesh.num_owned_cells
    keys, volumes = summed(labels[:, None], mesh.cell_volumes[:owned])
    # the sums of a set are on rank ``label % size``
    route = Route(comm, keys[:, 0] % comm.size)
    keys, volumes = summed(route.forward(keys), route.forward(volumes))
    asked, place = np.unique(wanted, return_inverse=True)
    route = Route(comm, asked % comm.size)
    return route.backward(volumes[np.searchsorted(keys[:, 0], route.forward(asked))])[place]


def components(number: int, pairs: np.ndarray) -> np.ndarray:
    """The connected set, from 0, of each of so many things that ``pairs (n, 2)`` link. One rank."""
    graph = coo_matrix((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])),
                       shape=(number, number))
    return connected_components(graph, directed=False)[1]
