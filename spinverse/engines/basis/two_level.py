"""A preconditioner for broken elements with facets that conduct from nothing to everything.

The matrix A + s M of the problem has stiff parts of two kinds: slopes within a cell (D / h^2) and
jumps across facets that conduct well (kappa / h). What is soft is smooth, up to facets that hardly
conduct. Four additive parts deal with one each: the inverse of each cell's own block, exact where
nothing crosses facets; the inverse of the block of all degrees of freedom at one node, exact where
jumps are all; a coarse space that is continuous across conducting facets, the problem with these
tied; and one of constants by cell, where many facets conduct badly.

This is an auxiliary-space preconditioner (Xu, Computing 56, 1996; for broken elements Antonietti
and Houston, J. Sci. Comput. 46, 2011). All blocks are the same whatever the number of ranks.
"""

from __future__ import annotations

import dolfinx
import numpy as np
from petsc4py import PETSc

from ...parallel.columns import solved
from ...parallel.exchange import Route
from ...parallel.rows import Rows
from ...problem import BlochTorrey

# kappa h / D: facets above it are tied in the coarse space; below the other one they hinder
TIED_FROM, HINDERS_BELOW = 0.1, 1.0
MANY = 0.2  # share of facets that hinder from which constants by cell are worth their cost
# unknowns of a coarse problem up to which it is factorised
FACTOR_CONTINUOUS, FACTOR_CONSTANTS = 150_000, 20_000


class TwoLevel:
    """Approximate inverse of a symmetric positive definite matrix A + s M on the broken space.

    Nothing may be tied in the problem; its permeability decides on the coarse spaces, whose
    prolongations are ``spaces``. PETSc options of the coarse solvers have ``continuous_`` and
    ``constants_`` behind the prefix.
    """

    def __init__(self, problem: BlochTorrey, matrix: PETSc.Mat, prefix: str):
        self.comm, self.matrix = problem.comm, matrix
        self.spaces = coarse_spaces(problem)
        blocks = _block_inverses(problem, matrix)
        self.blocks = Rows(blocks)
        blocks.destroy()
        self.extend = {name: Rows(P) for name, P in self.spaces.items()}
        self.restrict = {}
        for name, P in self.spaces.items():
            transposed = P.copy().transpose()
            self.restrict[name] = Rows(transposed)
            transposed.destroy()
        self.solvers = {}
        for name, P in self.spaces.items():
            coarse = matrix.ptap(P)
            coarse.setOption(PETSc.Mat.Option.SPD, True)
            limit = FACTOR_CONTINUOUS if name == "continuous" else FACTOR_CONSTANTS
            self.solvers[name] = coarse_solver(coarse, f"{prefix}{name}_", limit)
            coarse.destroy()

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """The approximate inverse of rows ``(n_local, k)`` in single precision. Collective."""
        result = self.blocks @ block
        for name, solver in self.solvers.items():
            coarse = solved(solver, (self.restrict[name] @ block).astype(float, order="F"))
            result += self.extend[name] @ coarse.astype(self.blocks.dtype, order="C")
        return result

    def destroy(self) -> None:
        """Free matrices and factors."""
        for thing in (*self.solvers.values(), *self.spaces.values()):
            thing.destroy()


def coarse_solver(matrix: PETSc.Mat, prefix: str, limit: int) -> PETSc.KSP:
    """Cholesky up to a size, else one cycle of algebraic multigrid; options may say otherwise."""
    ksp = PETSc.KSP().create(matrix.comm)
    ksp.setOperators(matrix)
    ksp.setType(PETSc.KSP.Type.PREONLY)
    pc = ksp.getPC()
    if matrix.getSize()[0] <= limit:
        pc.setType(PETSc.PC.Type.CHOLESKY)
        pc.setFactorSolverType(PETSc.Mat.SolverType.MUMPS)
    else:
        pc.setType(PETSc.PC.Type.GAMG)
    ksp.setOptionsPrefix(prefix)
    ksp.setFromOptions()
    ksp.setUp()
    return ksp


def relative_conductance(problem: BlochTorrey) -> np.ndarray:
    """kappa h / D of the owned facets, ``(nf,)``; h is the mean height of the cells above them."""
    mesh, D = problem.mesh, problem.tissue.diffusivity
    mean = D if D.ndim == 1 else np.trace(D, axis1=1, axis2=2) / D.shape[1]
    cells = np.where(mesh.facet_cells < 0, mesh.facet_cells[:, :1], mesh.facet_cells)
    height = mesh.dim * mesh.cell_volumes[cells].mean(axis=1) / mesh.facet_areas
    kappa = problem.kappa.x.array[: mesh.num_owned_facets]
    return kappa * height / np.maximum(mean[cells].mean(axis=1), 1e-300)


def coarse_spaces(problem: BlochTorrey) -> dict[str, PETSc.Mat]:
    """Prolongations to the broken space that pay: "continuous", "constants". Collective."""
    mesh, comm = problem.mesh, problem.comm
    inner, conductance = ~mesh.outer, relative_conductance(problem)
    spaces = {}
    P = problem.tie(inner & (conductance > TIED_FROM))
    if P is not None:
        if 2 * P.getSize()[1] < P.getSize()[0]:
            spaces["continuous"] = P
        else:
            P.destroy()
    hindered = comm.allreduce(int(np.count_nonzero(inner & (conductance < HINDERS_BELOW))))
    if not spaces or hindered > MANY * comm.allreduce(int(np.count_nonzero(inner))):
        spaces["constants"] = _constants(problem)
    return spaces


def _constants(problem: BlochTorrey) -> PETSc.Mat:
    """Magnetisation 1 in one cell and 0 in the others."""
    dofs, cells = problem.space.dofmap, problem.mesh.num_owned_cells
    owned = dofs.index_map.size_local
    cell = np.empty(owned, dtype=PETSc.IntType)
    cell[dofs.list[:cells]] = np.arange(cells)[:, None]
    first = problem.mesh.domain.topology.index_map(problem.mesh.dim).local_range[0]
    P = PETSc.Mat().createAIJ(
        ((owned, dofs.index_map.size_global), (cells, problem.mesh.num_cells)),
        csr=(np.arange(owned + 1, dtype=PETSc.IntType), cell + PETSc.IntType(first),
             problem.scale), comm=problem.comm)
    P.assemble()
    return P


def _block_inverses(problem: BlochTorrey, matrix: PETSc.Mat) -> PETSc.Mat:
    """Sum of the inverses of the blocks of cells and of nodes. Collective."""
    comm, index_map = problem.comm, problem.space.dofmap.index_map
    indptr, columns, values = matrix.getValuesCSR()
    first = index_map.local_range[0]
    rows = first + np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    cell = np.empty(index_map.size_local + index_map.num_ghosts, dtype=np.int64)
    cells = problem.mesh.domain.topology.index_map(problem.mesh.dim)
    cell[problem.space.dofmap.list] = cells.local_to_global(
        np.arange(len(problem.space.dofmap.list), dtype=np.int32))[:, None]
    everything = problem.tie(~problem.mesh.outer)
    if everything is None:
        node = index_map.local_to_global(np.arange(len(cell), dtype=np.int32))
    else:
        label = dolfinx.la.vector(index_map, 1, dtype=np.int64)
        label.array[: index_map.size_local] = everything.getValuesCSR()[1]
        label.scatter_forward()
        node, starts = label.array.copy(), everything.getOwnershipRangesColumn()
        everything.destroy()
    place = index_map.global_to_local(columns.astype(np.int64))
    entries = []
    for label, bounds in ((cell, None), (node, None if everything is None else starts)):
        same = label[rows - first] == label[place]
        block = (label[rows[same] - first], rows[same], columns[same].astype(np.int64),
                 values[same])
        if comm.size > 1 and bounds is not None:
            route = Route(comm, np.searchsorted(bounds, block[0], side="right") - 1)
            block = tuple(route.forward(part) for part in block)
        entries.append(_inverted(*block))
    i, j, v = (np.concatenate(part) for part in zip(*entries, strict=True))
    result = PETSc.Mat().create(comm)
    result.setSizes(matrix.getSizes())
    result.setType(PETSc.Mat.Type.AIJ)
    result.setPreallocationCOO(i.astype(PETSc.IntType), j.astype(PETSc.IntType))
    result.setValuesCOO(v)
    return result


def _inverted(group: np.ndarray, rows: np.ndarray, columns: np.ndarray, values: np.ndarray):
    """Rows, columns and values of the inverses of the diagonal blocks of given entries."""
    if not len(group):
        return rows, columns, values
    members = np.unique(np.stack([group, rows], axis=1), axis=0)  # by group, then by dof
    starts = np.flatnonzero(np.r_[True, members[1:, 0] != members[:-1, 0]])
    sizes = np.diff(np.r_[starts, len(members)])
    order = np.argsort(members[:, 1])  # each dof is in one group
    i, j = (order[np.searchsorted(members[:, 1], dof, sorter=order)] for dof in (rows, columns))
    number = np.repeat(np.arange(len(starts)), sizes)
    found = []
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        place = np.full(len(starts), -1)
        place[chosen] = np.arange(len(chosen))
        mine = np.flatnonzero(place[number[i]] >= 0)
        blocks = np.zeros((len(chosen), size, size))
        g = number[i[mine]]
        np.add.at(blocks, (place[g], i[mine] - starts[g], j[mine] - starts[g]), values[mine])
        dofs = members[starts[chosen][:, None] + np.arange(size), 1]
        shape = blocks.shape
        found.append((np.broadcast_to(dofs[:, :, None], shape).ravel(),
                      np.broadcast_to(dofs[:, None, :], shape).ravel(),
                      np.linalg.inv(blocks).ravel()))
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))
