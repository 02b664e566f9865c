"""Facets that share an edge, across ranks."""

from __future__ import annotations

import numpy as np
from petsc4py import PETSc

from ...mesh.distributed import Mesh


class FacetGraph:
    """Edges of the mesh and the facets around them, for priors that compare neighbours.

    Each edge belongs to one rank; that rank sees the values of all facets around it through
    `spread`, and gives their derivatives back through `collect`.

    Args:
        mesh: the mesh.
        included: ``(nf,)`` bool; the other facets do not take part.

    Attributes:
        included: as given.
        edge, facet: ``(n,)`` incidences: local edge number and position among local values.
        degree: ``(ne,)`` facets around each owned edge (edges without any are left out).
        pairs: ``(np, 2)`` positions of facets that share an owned edge.
        ids: ``(n,)`` numbers in the whole mesh of the facets that have local values.
        num_edges, num_pairs: of the whole mesh.
    """

    def __init__(self, mesh: Mesh, included: np.ndarray):
        self.mesh, self.included, comm = mesh, np.asarray(included, dtype=bool), mesh.comm
        topology = mesh.domain.topology
        topology.create_connectivity(2, 1)
        edge_map = topology.index_map(1)
        facet_edges = topology.connectivity(2, 1).array.reshape(-1, 3)[mesh.facet_entities]
        owners = np.concatenate([np.full(edge_map.size_local, comm.rank), edge_map.owners])
        edge_ids = edge_map.local_to_global(
            np.arange(edge_map.size_local + edge_map.num_ghosts, dtype=np.int32))
        first = mesh.facets.topology.index_map(2).local_range[0]
        ids = np.repeat(first + np.arange(mesh.num_owned_facets), 3)
        flat = facet_edges.ravel()
        keep = np.repeat(self.included, 3)
        ids, flat = ids[keep], flat[keep]
        parts = comm.alltoall([np.column_stack([edge_ids[flat], ids])[owners[flat] == rank]
                               for rank in range(comm.size)])
        table = np.concatenate(parts).astype(np.int64).reshape(-1, 2)
        table = table[np.lexsort((table[:, 1], table[:, 0]))]
        edges, self.edge = np.unique(table[:, 0], return_inverse=True)
        last = first + mesh.num_owned_facets
        elsewhere = (table[:, 1] < first) | (table[:, 1] >= last)
        ghosts = np.unique(table[elsewhere, 1])
        self.facet = np.where(
            elsewhere, mesh.num_owned_facets + np.searchsorted(ghosts, table[:, 1]),
            table[:, 1] - first)
        self.ids = np.concatenate([np.arange(first, last), ghosts])
        self.degree = np.bincount(self.edge, minlength=len(edges))
        self.pairs = _pairs(self.edge, self.facet, self.degree)
        self.num_edges = comm.allreduce(len(edges))
        self.num_pairs = comm.allreduce(len(self.pairs))
        self._vector = PETSc.Vec().createGhost(
            ghosts.astype(PETSc.IntType), (mesh.num_owned_facets, mesh.num_facets), comm=comm)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Values of owned facets, followed by those of others that owned edges touch."""
        self._vector.setArray(values)
        self._vector.ghostUpdate(PETSc.InsertMode.INSERT, PETSc.ScatterMode.FORWARD)
        with self._vector.localForm() as local:
            return np.array(local.array_r)

    def collect(self, values: np.ndarray) -> np.ndarray:
        """Sum of what every rank holds for each owned facet: the transpose of `spread`."""
        with self._vector.localForm() as local:
            local.setArray(values)
        self._vector.ghostUpdate(PETSc.InsertMode.ADD, PETSc.ScatterMode.REVERSE)
        return np.array(self._vector.array_r)


def _pairs(edge: np.ndarray, facet: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """All pairs of facets around each edge; ``edge`` ascends."""
    start = np.concatenate([[0], np.cumsum(degree)])
    found = [np.empty((0, 2), dtype=np.int64)]
    for size in np.unique(degree[degree > 1]):
        rows = facet[start[:-1][degree == size][:, None] + np.arange(size)]
        i, j = np.triu_indices(size, 1)
        found.append(np.stack([rows[:, i].ravel(), rows[:, j].ravel()], axis=1))
    return np.concatenate(found)
