"""Facet traces of broken Lagrange functions, as sparse matrices.

Q_F, the matrix of int_F [m][v], is the Gram matrix of the jump at the facet's quadrature points:
with T the rows ``sqrt(w_q |F|) (phi+(x_q), -phi-(x_q))``, Q(kappa) = T^T diag(kappa) T exactly.
The matrix formalism contracts its gradient with T, and ties facets by the same pairing of nodes.
"""

from __future__ import annotations

import basix
import basix.ufl
import dolfinx
import numpy as np
import scipy.sparse
from mpi4py import MPI
from petsc4py import PETSc

from .mesh.distributed import Mesh

_CORNERS = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


class FacetTraces:
    """Pairs the two sides of every owned facet of a broken scalar Lagrange space.

    Args:
        mesh: the mesh.
        space: broken Lagrange space of any degree on ``mesh.domain``.
    """

    def __init__(self, mesh: Mesh, space: dolfinx.fem.FunctionSpace):
        self.mesh, self.space = mesh, space
        self._cells = mesh.facet_cells
        geometry_nodes = mesh.domain.geometry.dofmaps[0]
        facet_nodes = np.sort(dolfinx.mesh.entities_to_geometry(
            mesh.domain, 2, mesh.facet_entities).reshape(-1, 3), axis=1)
        # position of the facet's three nodes within each side's cell: (nf, 2, 3)
        sides = np.maximum(self._cells, 0)
        self._corner = np.empty((len(sides), 2, 3), dtype=np.int64)
        for side in range(2):
            nodes = geometry_nodes[sides[:, side]] if len(sides) else np.empty((0, 4), int)
            match = nodes[:, None, :] == facet_nodes[:, :, None]
            self._corner[:, side] = match.argmax(axis=2)

    def jump_matrix(self) -> scipy.sparse.csr_matrix:
        """T, ``(nf * nq, nd)``: weighted jumps (traces on outer facets) of local functions.

        ``nd`` counts owned and ghost dofs; rows of one facet are consecutive.
        """
        element = self.space.element.basix_element
        points, weights = basix.make_quadrature(basix.CellType.triangle, 2 * element.degree)
        bary = np.column_stack([1 - points.sum(axis=1), points])
        nq, nf = len(weights), len(self._cells)
        # basix weights sum to 1/2, the area of the reference triangle
        scale = np.sqrt(2 * weights[None, :] * self.mesh.facet_areas[:, None])
        rows, cols, values = [], [], []
        for side, sign in ((0, 1.0), (1, -1.0)):
            for corner, facets in self._by_corner(side):
                table = element.tabulate(0, bary @ _CORNERS[list(corner)])[0, :, :, 0]
                dofs = self.space.dofmap.list[self._cells[facets, side]]
                shape = (len(facets), nq, dofs.shape[1])
                row = facets[:, None] * nq + np.arange(nq)
                rows.append(np.broadcast_to(row[:, :, None], shape).ravel())
                cols.append(np.broadcast_to(dofs[:, None, :], shape).ravel())
                values.append((sign * scale[facets][:, :, None] * table).ravel())
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
        element = self.space.element.basix_element
        nodes = element.points
        pairs = []
        order = {}
        for side in range(2):
            found = np.empty((len(facets), _nodes_per_facet(element.degree)), dtype=np.int64)
            for corner, chosen in self._by_corner(side, facets):
                if corner not in order:
                    order[corner] = _facet_nodes(nodes, corner)
                dofs = self.space.dofmap.list[self._cells[facets[chosen], side]]
                found[chosen] = dofs[:, order[corner]]
            pairs.append(found.ravel())
        return np.column_stack(pairs)

    def _by_corner(self, side: int, facets: np.ndarray | None = None):
        """Facets grouped by which corners of the side's cell they are."""
        facets = np.arange(len(self._cells)) if facets is None else facets
        inside = self._cells[facets, side] >= 0
        code = self._corner[facets, side] @ np.array([16, 4, 1])
        for value in np.unique(code[inside]):
            corner = (int(value) // 16, int(value) // 4 % 4, int(value) % 4)
            yield corner, np.flatnonzero(inside & (code == value))


def tie(mesh: Mesh, space: dolfinx.fem.FunctionSpace, traces: FacetTraces,
        tied: np.ndarray) -> PETSc.Mat | None:
    """Prolongation P from the space with tied facets to the broken one. Collective.

    Args:
        tied: ``(nf,)`` bool over owned facets: True ties the two sides.

    Returns:
        P with one 1 in each row, or ``None`` when no facet is tied. A_tied = P^T A P.
    """
    comm = mesh.comm
    if not comm.allreduce(bool(tied.any()), op=MPI.LOR):
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
    P = PETSc.Mat().create(comm)
    P.setSizes(((owned, index_map.size_global), (len(roots), PETSc.DETERMINE)))
    P.setType(PETSc.Mat.Type.AIJ)
    P.setPreallocationNNZ((1, 1))
    start = index_map.local_range[0]
    P.setValuesIJV(np.arange(owned + 1, dtype=PETSc.IntType), column.astype(PETSc.IntType),
                   np.ones(owned)) if comm.size == 1 else [
        P.setValue(start + i, int(j), 1.0) for i, j in enumerate(column)]
    P.assemble()
    return P


def _lower_owners(index_map, label) -> None:
    """Owners take the smallest label that any rank holds for their dofs."""
    ghosts = label.array[index_map.size_local:]
    comm = index_map.comm
    send = [[] for _ in range(comm.size)]
    for owner in range(comm.size):
        mine = index_map.owners == owner
        if mine.any():
            send[owner] = (index_map.ghosts[mine], ghosts[mine])
    start = index_map.local_range[0]
    for part in comm.alltoall(send):
        if len(part):
            np.minimum.at(label.array, part[0] - start, part[1])


def _look_up(comm, index_map, wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``values`` (over owned dofs) at the global dofs ``wanted``, which others may own."""
    starts = np.array(comm.allgather(index_map.local_range[0]) + [index_map.size_global])
    owner = np.searchsorted(starts, wanted, side="right") - 1
    asked = comm.alltoall([wanted[owner == rank] for rank in range(comm.size)])
    answers = comm.alltoall([values[ask - starts[comm.rank]] for ask in asked])
    result = np.empty(len(wanted), dtype=np.int64)
    for rank in range(comm.size):
        result[owner == rank] = answers[rank]
    return result


def _nodes_per_facet(degree: int) -> int:
    return (degree + 1) * (degree + 2) // 2


def _facet_nodes(nodes: np.ndarray, corner: tuple[int, int, int]) -> np.ndarray:
    """Nodes of a cell that lie on the facet ``corner``, ordered by facet coordinates."""
    bary = np.column_stack([1 - nodes.sum(axis=1), nodes])
    other = ({0, 1, 2, 3} - set(corner)).pop()
    on = np.flatnonzero(np.abs(bary[:, other]) < 1e-10)
    coordinates = np.round(bary[on][:, list(corner)], 8)
    return on[np.lexsort(coordinates.T)]
