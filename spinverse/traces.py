"""Facet traces of broken Lagrange functions, as sparse matrices.

Q_F, the matrix of int_F [m][v], is the Gram matrix of the jump at the facet's quadrature points:
with T the rows ``sqrt(w_q |F|) (phi+(x_q), -phi-(x_q))``, Q(kappa) = T^T diag(kappa) T exactly.
Where densities differ, phi stands for s phi with the factors of `spinverse.forms.exchange`.
The matrix formalism contracts its gradient with T, and ties facets by the same pairing of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import basix
import basix.ufl
import dolfinx
import numpy as np
import scipy.sparse
from mpi4py import MPI
from petsc4py import PETSc

from .mesh.curved import facet_vectors
from .mesh.distributed import Mesh
from .parallel.exchange import Route, reduced
from .periodic import faces, pair_across

_FACETS = {1: basix.CellType.point, 2: basix.CellType.interval, 3: basix.CellType.triangle}


class FacetTraces:
    """Pairs the two sides of every owned facet of a broken scalar Lagrange space of any degree."""

    def __init__(self, mesh: Mesh, space: dolfinx.fem.FunctionSpace):
        self.mesh, self.space = mesh, space
        self._cells = mesh.facet_cells

    def jump_matrix(self, factors: np.ndarray | None = None) -> scipy.sparse.csr_matrix:
        """T, ``(nf * nq, nd)``: weighted jumps (traces on outer facets) of local functions.

        ``nd`` counts owned and ghost dofs; rows of one facet are consecutive. ``factors``
        ``(nf, 2)`` multiply the traces of the two sides.
        """
        element = self.space.element.basix_element
        dim = self.mesh.dim
        points, weights = (np.zeros((1, 0)), np.ones(1)) if dim == 1 else basix.make_quadrature(
            _FACETS[dim], facet_degree(self.mesh, element.degree))
        bary = np.column_stack([1 - points.sum(axis=1), points])
        nq, nf = len(weights), len(self._cells)
        # basix weights sum to the measure of the reference facet
        if self.mesh.curved:
            scale = np.sqrt(weights * np.linalg.norm(facet_vectors(self.mesh, bary), axis=2))
        else:
            scale = np.sqrt(weights[None, :] / weights.sum() * self.mesh.facet_areas[:, None])
        reference = np.vstack([np.zeros(dim), np.eye(dim)])
        rows, cols, values = [], [], []
        for side, sign in ((0, 1.0), (1, -1.0)):
            factor = np.ones(nf) if factors is None else factors[:, side]
            for corner, facets in self.mesh.facets_by_corner(side):
                table = element.tabulate(0, bary @ reference[list(corner)])[0, :, :, 0]
                dofs = self.space.dofmap.list[self._cells[facets, side]]
                shape = (len(facets), nq, dofs.shape[1])
                row = facets[:, None] * nq + np.arange(nq)
                rows.append(np.broadcast_to(row[:, :, None], shape).ravel())
                cols.append(np.broadcast_to(dofs[:, None, :], shape).ravel())
                sized = (sign * factor[facets][:, None] * scale[facets])[:, :, None]
                values.append((sized * table).ravel())
        index_map = self.space.dofmap.index_map
        size = (nf * nq, index_map.size_local + index_map.num_ghosts)
        if not values:
            return scipy.sparse.csr_matrix(size)
        matrix = scipy.sparse.csr_matrix(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), shape=size)
        matrix.data[np.abs(matrix.data) < 1e-14 * np.abs(matrix.data).max()] = 0.0
        matrix.eliminate_zeros()
        return matrix

    def node_pairs(self, facets: np.ndarray) -> np.ndarray:
        """Dofs that sit at the same node on the two sides, ``(n, 2)``, of interior facets."""
        return np.column_stack([self.side_nodes(side, facets).ravel() for side in range(2)])

    def side_nodes(self, side: int, facets: np.ndarray) -> np.ndarray:
        """Dofs at the nodes of facets on one of their sides, ``(n, p)``, in one order on both."""
        element = self.space.element.basix_element
        dim = self.mesh.dim
        found = np.empty((len(facets), comb(element.degree + dim - 1, dim - 1)), dtype=np.int64)
        for corner, chosen in self.mesh.facets_by_corner(side, facets):
            dofs = self.space.dofmap.list[self._cells[facets[chosen], side]]
            found[chosen] = dofs[:, _facet_nodes(element.points, corner)]
        return found

    def periodic_pairs(self, axis: int) -> np.ndarray:
        """Global dofs, on all ranks, at nodes that a period joins, ``(n, 2)``. Collective."""
        index_map = self.space.dofmap.index_map
        global_dofs = np.concatenate([np.arange(*index_map.local_range), index_map.ghosts])
        x = self.space.tabulate_dof_coordinates()
        low, high = (self.side_nodes(0, facets) for facets in faces(self.mesh, axis))
        return pair_across(self.mesh, axis, (x[low], x[high]),
                           (global_dofs[low], global_dofs[high]))


def facet_degree(mesh: Mesh, degree: int) -> int:
    """Of the quadrature on facets, for polynomials of a degree; exact on straight ones.

    On curved ones the area is a square root, which two degrees more bring below the error of the
    geometry. Forms must take the same degree: T and Q are one by its quadrature points.
    """
    return 2 * degree + (2 if mesh.curved else 0)


def tie(mesh: Mesh, space: dolfinx.fem.FunctionSpace, traces: FacetTraces,
        tied: np.ndarray, weights: np.ndarray | None = None,
        periodic: Sequence[np.ndarray] = ()) -> PETSc.Mat | None:
    """Prolongation P from the space with tied facets to the broken one. Collective.

    Args:
        tied: ``(nf,)`` bool over owned facets: True ties the two sides.
        weights: of the owned broken dofs, the entries of P; 1 if not given.
        periodic: more pairs of dofs that are one, see `FacetTraces.periodic_pairs`.

    Returns:
        P with one entry in each row, or ``None`` when no facet is tied. A_tied = P^T A P.
    """
    comm = mesh.comm
    if not (comm.allreduce(bool(tied.any()), op=MPI.LOR) or len(periodic)):
        return None
    index_map = space.dofmap.index_map
    owned = index_map.size_local
    global_dofs = np.concatenate([np.arange(*index_map.local_range), index_map.ghosts])
    pairs = traces.node_pairs(np.flatnonzero(tied))
    # Two cells that share a tied facet may both be elsewhere's ghosts: labels travel by the
    # owner, smallest global dof wins, until nothing changes.
    label = dolfinx.la.vector(index_map, 1, dtype=np.int64)
    label.array[:] = global_dofs
    graph = scipy.sparse.coo_matrix(
        (np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(global_dofs),) * 2)
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    while True:
        before = label.array.copy()
        least = np.full(component.max(initial=-1) + 1, np.iinfo(np.int64).max)
        np.minimum.at(least, component, label.array)
        label.array[:] = least[component]
        _lower_owners(index_map, label)
        for pairs in periodic:
            _lower_pairs(index_map, label, pairs)
        label.scatter_forward()
        if not comm.allreduce(bool((label.array != before).any()), op=MPI.LOR):
            break
    roots = np.flatnonzero(label.array[:owned] == global_dofs[:owned])
    first = comm.exscan(len(roots)) or 0
    number = dolfinx.la.vector(index_map, 1, dtype=np.int64)
    number.array[:] = -1
    number.array[roots] = first + np.arange(len(roots))
    number.scatter_forward()
    column = _look_up(comm, index_map, label.array[:owned], number.array[:owned])
    weights = np.ones(owned) if weights is None else np.asarray(weights, dtype=float)
    P = PETSc.Mat().createAIJ(
        ((owned, index_map.size_global), (len(roots), PETSc.DETERMINE)), comm=comm,
        csr=(np.arange(owned + 1, dtype=PETSc.IntType), column.astype(PETSc.IntType), weights))
    P.assemble()
    return P


def _lower_owners(index_map, label) -> None:
    """Owners take the smallest label that any rank holds for their dofs."""
    route = Route(index_map.comm, index_map.owners)
    dofs = route.forward(index_map.ghosts) - index_map.local_range[0]
    np.minimum.at(label.array, dofs, route.forward(label.array[index_map.size_local:]))


def _lower_pairs(index_map, label, pairs: np.ndarray) -> None:
    """Both dofs of a pair, known to all ranks, take the smaller of their labels."""
    first, last = index_map.local_range
    mine = (pairs >= first) & (pairs < last)
    local = pairs[mine] - first
    values = np.full(pairs.shape, np.iinfo(np.int64).max)
    values[mine] = label.array[local]
    everywhere = reduced(index_map.comm, values, MPI.MIN)
    least = np.broadcast_to(everywhere.min(axis=1, keepdims=True), pairs.shape)
    np.minimum.at(label.array, local, least[mine])


def _look_up(comm, index_map, wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``values`` (over owned dofs) at the global dofs ``wanted``, which others may own."""
    starts = np.array(comm.allgather(index_map.local_range[0]) + [index_map.size_global])
    route = Route(comm, np.searchsorted(starts, wanted, side="right") - 1)
    return route.backward(values[route.forward(wanted) - starts[comm.rank]])


def _facet_nodes(nodes: np.ndarray, corner: tuple[int, ...]) -> np.ndarray:
    """Nodes of a cell that lie on the facet ``corner``, ordered by facet coordinates."""
    bary = np.column_stack([1 - nodes.sum(axis=1), nodes])
    other = (set(range(bary.shape[1])) - set(corner)).pop()
    on = np.flatnonzero(np.abs(bary[:, other]) < 1e-10)
    coordinates = np.round(bary[on][:, list(corner)], 8)
    return on[np.lexsort(coordinates.T)]
