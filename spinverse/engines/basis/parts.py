"""Modes of parts that exchange nothing, each with modes of its own.

The more parts there are, the more modes of all at once: dense algebra in these would cost the third
power of the number of parts. Values of different parts are at different unknowns, so that one
column has room for a mode of each (*packed* columns): operators are applied to as many columns as
the part with the most modes has. Every part is on one rank for its eigenproblem, the same one up to
the order of its unknowns. Parts with the same matrices have their modes in common, and if their
operators are then the same, their signals (`Eigenmodes.copies`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import scipy.sparse
from petsc4py import PETSc

from ...mesh.connected import connected_cells
from ...parallel.columns import solved, times
from ...parallel.exchange import reduced
from ...phases import phase
from ...problem import BlochTorrey
from ...unknowns import with_ghosts
from .blocks import CANDIDATES, at_gap
from .dense import ALWAYS, dense_modes, is_small
from .eigenmodes import (
    Eigenmodes,
    check_decay,
    converged_pairs,
    radius,
    shift_invert,
    shift_of,
    wave,
)
from .spectrum import decay_rates, rounding

_SAME = 1e-9  # of the largest entry: what equal matrices differ by
LARGEST = 20_000  # unknowns of a part that one rank solves for alone, as it does without a factor


def combined(problem: BlochTorrey, bases: list[Eigenmodes],
             weights: list[np.ndarray], copies: bool = True) -> np.ndarray:
    """Local columns of ``weights`` ``(K, m)`` of each basis, one on top of the other: ``(n, m)``.

    Bases of parts have no unknown in common. Weights of fewer columns leave the others as they are.
    Without ``copies`` of the first part with a basis alone.
    """
    if bases[0].rows is None:
        return bases[0].columns @ weights[0]
    unknowns = problem.unknowns
    size = unknowns.all_dofs.shape[1] if unknowns.tied else unknowns.num_owned
    result = np.zeros((size, max(weight.shape[1] for weight in weights)))
    for basis, weight in zip(bases, weights, strict=True):
        for rows, columns in ((basis.rows, basis.columns), *(basis.copies if copies else ())):
            result[rows, : weight.shape[1]] = columns @ weight
    return result


def packed_columns(problem: BlochTorrey, bases: list[Eigenmodes]) -> tuple:
    """What `BlochTorrey.free_jumps` is multiplied with, and the basis of each cell. Collective."""
    packed = combined(problem, bases, [np.eye(len(basis)) for basis in bases])
    number = combined(problem, bases, [np.zeros((len(basis), 1)) for basis in bases])[:, 0]
    for k, basis in enumerate(bases):
        for rows in (basis.rows, *(rows for rows, _ in basis.copies)):
            number[rows] = k
    unknowns = problem.unknowns
    if unknowns.tied:
        number = number[unknowns.all_dofs.indices]
    else:
        index_map = problem.space.dofmap.index_map
        packed, number = (with_ghosts(index_map, each) for each in (packed, number))
    return packed, number[problem.space.dofmap.list[:, 0]].astype(np.int64)


class Parts:
    """Parts of a problem at its present permeability. Collective.

    If ``touching``, parts that touch are one: what crosses a closed facet has a derivative by its
    permeability.

    Attributes:
        labels: ``(n,)`` part of each local unknown (`spinverse.unknowns`).
        sizes, volumes, centres: ``(P,)`` unknowns of each, ``(P,)`` um^d, ``(P, d)`` um from the
            centre of the mesh.
    """

    def __init__(self, problem: BlochTorrey, touching: bool):
        self.problem, mesh, comm = problem, problem.mesh, problem.comm
        kappa = problem.kappa.x.array[: mesh.num_owned_facets]
        cells = connected_cells(mesh, ~mesh.outer & (touching | problem.tied | (kappa > 0)))
        owned = cells[: mesh.num_owned_cells]
        names = np.unique(np.concatenate(comm.allgather(np.unique(owned))))
        cells = np.searchsorted(names, cells)
        self.volumes = reduced(comm, np.bincount(
            cells[: mesh.num_owned_cells], mesh.cell_volumes[: mesh.num_owned_cells], len(names)))
        dofs = np.empty(problem.space.dofmap.list.max(initial=-1) + 1, dtype=np.int64)
        dofs[problem.space.dofmap.list] = cells[:, None]
        unknowns = problem.unknowns
        if unknowns.tied:
            self.labels = np.empty(unknowns.all_dofs.shape[1], dtype=np.int64)
            self.labels[unknowns.all_dofs.indices] = dofs
        else:
            self.labels = dofs[: unknowns.num_owned]
        self.sizes = reduced(comm, np.bincount(self.labels[: unknowns.num_owned],
                                               minlength=len(names)))
        scale = problem.scale
        moments = [np.bincount(dofs[: len(scale)], scale * (J @ scale), len(names))
                   for J in (problem.local_mass, *problem.local_positions)]
        mass, *first = reduced(comm, np.array(moments))
        self.centres = np.column_stack([moment / mass for moment in first])

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def worth_it(self) -> bool:
        """Whether to solve for one after the other; the same at any number of ranks."""
        problem = self.problem
        return (len(self) > 1 and self.sizes.max() <= LARGEST and self.sizes.sum() > ALWAYS
                and not problem.periodic and not any(
                    i.integral_type() == "interior_facet" for i in problem.extra_form.integrals()))

    def modes(self, numbers: Iterable[int],
              which: Iterable[int]) -> list[tuple[list[int], Eigenmodes]]:
        """About so many of the lowest modes of each of some parts, with `responses`. Collective.

        For each kind of parts that are alike these, and their modes; errors as of `eigenmodes`.
        """
        problem = self.problem
        with phase("assembly"):
            A, M = problem.decay_matrix(), problem.mass_matrix
        shift, small = shift_of(problem), rounding(A, M)
        gathered = _Gathered(problem.comm, self, A, M)
        start = gathered.to_parts(problem.unknowns.owned_loads(wave(problem)))
        with phase("eigenproblem"):
            found: dict[int, tuple] = {}
            alike: dict[tuple, list] = {}
            for part, number in zip(which, numbers, strict=True):
                if part not in gathered.places:
                    continue
                blocks = gathered.block(part)
                like = alike.setdefault((int(number), blocks[0].shape, blocks[0].nnz), [])
                twins = (other for other, known in like if _same(blocks, known))
                if (twin := next(twins, None)) is not None:
                    found[part] = found[twin]
                    continue
                like.append((part, blocks))
                found[part] = _solve(blocks, int(number), shift,
                                     start[gathered.places[part]][:, 0],
                                     problem.extra_blocks is None)
        values = {part: rates for each in problem.comm.allgather(
            {part: each[0] for part, each in found.items()}) for part, rates in each.items()}
        for rates in values.values():
            check_decay(problem, rates)
        most = max(map(len, values.values()))
        columns = np.zeros((gathered.size, most))
        for part, (rates, vectors, _) in found.items():
            columns[gathered.places[part], : len(rates)] = vectors
        columns = problem.unknowns.local(gathered.to_owners(columns))

        def answer(loads: np.ndarray) -> np.ndarray:
            loads = gathered.to_parts(problem.unknowns.gathered(loads))
            result = np.zeros_like(loads)
            for part, (_, _, solve) in found.items():
                rows = gathered.places[part]
                result[rows] = solve(np.asfortranarray(loads[rows]))
            return problem.unknowns.local(gathered.to_owners(result))

        bases = self._projected({part: decay_rates(values[part], small) for part in which},
                                columns, answer, shift)
        gathered.destroy()
        problem.release(A)
        return bases

    @phase("projection")
    def _projected(self, values: dict[int, np.ndarray], columns: np.ndarray, answer: Callable,
                   shift: float) -> list[tuple[list[int], Eigenmodes]]:
        """As `eigenmodes.project` and the responses there, of packed columns. Collective."""
        problem, dim = self.problem, self.problem.mesh.dim
        mass, turning = problem.local_mass, len(problem.phase_operators)
        operators = [*problem.phase_operators, *problem.storage_operators]
        loads = [problem.unknowns.load(mass @ vector) for vector in (problem.initial,
                                                                     problem.scale)]
        moved = [J @ columns for J in operators]
        # about its own centre each part turns less, and a refocused waveform does not see where
        weighed = problem.mass_of_unknowns @ columns
        for J, centre in zip(moved, self.centres.T, strict=False):  # others come after axes
            J -= centre[self.labels][:, None] * weighed
        answers = [answer(load) for load in moved]
        order = np.argsort(self.labels, kind="stable")
        bounds = np.searchsorted(self.labels[order], np.arange(len(self) + 1))
        n, packed, rows_of = len(operators), [], {}
        for part, rates in values.items():
            rows = rows_of[part] = order[bounds[part]: bounds[part + 1]]
            few = slice(len(rates))
            own = columns[rows, few].T
            packed += [*(own @ J[rows, few] for J in moved),
                       *(moved[j][rows, few].T @ answers[k][rows, few]
                         for j in range(n) for k in range(n)),
                       np.stack([own @ load[rows] for load in loads])]
        total = reduced(problem.comm, np.concatenate([part.ravel() for part in packed]))
        bases: list[tuple[list[int], Eigenmodes]] = []
        alike: dict[int, list[int]] = {}  # by the number of modes: places in `bases`
        first = 0
        for part, rates in values.items():
            K = len(rates)
            size = (n + n * n) * K * K
            both = total[first: first + size].reshape(n + n * n, K, K)
            ends = total[first + size: first + size + 2 * K].reshape(2, K)
            first += size + 2 * K
            X = 0.5 * (both[:n] + both[:n].transpose(0, 2, 1))
            rows = rows_of[part]
            own = rows, columns[rows, :K]
            for place in alike.setdefault(K, []):
                members, basis = bases[place]
                if all(_close(a, b) for a, b in (
                        (rates, basis.eigenvalues), (X[:turning], basis.turning),
                        (ends, np.stack([basis.start, basis.receive])),
                        *((R, basis.storage) for R in X[turning:]))):
                    bases[place] = ([*members, part],
                                    replace(basis, copies=(*basis.copies, own)))
                    break
            else:
                alike[K].append(len(bases))
                bases.append(([part], Eigenmodes(
                    rates, own[1], problem.unknowns, X[:dim], ends[0], ends[1],
                    np.array([radius(x) for x in X[:dim]]),
                    responses=both[n:].reshape(n, n, K, K), shift=shift, fields=X[dim:turning],
                    field_reach=tuple(radius(J) for J in X[dim:turning]), rows=rows,
                    about=self.centres[part], storage=X[turning] if n > turning else None)))
        return bases


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max(initial=0.0) <= _SAME * np.abs(b).max(initial=0.0))


def _same(blocks: list[scipy.sparse.csr_matrix], others: list[scipy.sparse.csr_matrix]) -> bool:
    return all(np.array_equal(a.indices, b.indices) and np.array_equal(a.indptr, b.indptr)
               and _close(a.data, b.data) for a, b in zip(blocks, others, strict=True))


class _Gathered:
    """Matrices with the unknowns of each part one after the other, on one rank. Collective.

    Attributes:
        size: unknowns on this rank.
        places: of the parts on this rank, slices of these.
    """

    def __init__(self, comm, parts: Parts, A: PETSc.Mat, M: PETSc.Mat):
        labels = parts.labels[: parts.problem.unknowns.num_owned]
        # the largest first, each to the rank with the least to do; the cost of dense solves
        load, rank_of = np.zeros(comm.size), np.empty(len(parts), dtype=np.int64)
        for part in np.argsort(-parts.sizes, kind="stable"):
            rank_of[part] = np.argmin(load)
            load[rank_of[part]] += float(parts.sizes[part]) ** 3
        self.idle = len(np.unique(rank_of)) < comm.size
        order = np.argsort(rank_of, kind="stable")
        starts = np.empty(len(parts), dtype=np.int64)
        starts[order] = np.cumsum(parts.sizes[order]) - parts.sizes[order]
        mine = order[rank_of[order] == comm.rank]
        self.size = int(parts.sizes[mine].sum())
        begin = int(parts.sizes[rank_of < comm.rank].sum())
        self.places = {int(part): slice(int(starts[part]) - begin,
                                        int(starts[part] + parts.sizes[part]) - begin)
                       for part in mine}
        counts = np.bincount(labels, minlength=len(parts))
        before = comm.scan(counts) - counts
        order = np.argsort(labels, kind="stable")
        position = np.empty(len(labels), dtype=np.int64)
        position[order] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
        columns = starts[labels] + before[labels] + position
        self.Q = PETSc.Mat().createAIJ(
            (A.getSizes()[0], (self.size, int(parts.sizes.sum()))), comm=A.comm,
            csr=(np.arange(len(labels) + 1, dtype=PETSc.IntType), columns.astype(PETSc.IntType),
                 np.ones(len(labels))))
        self.Q.assemble()
        self.matrices = []
        for matrix in (A, M):
            whole = matrix.ptap(self.Q)
            indptr, indices, values = whole.getDiagonalBlock().getValuesCSR()
            self.matrices.append(scipy.sparse.csr_matrix((values, indices, indptr),
                                                         shape=(self.size, self.size)))
            whole.destroy()

    def block(self, part: int) -> list[scipy.sparse.csr_matrix]:
        """Matrices of a part."""
        rows = self.places[part]
        return [matrix[rows, rows] for matrix in self.matrices]

    def to_parts(self, columns: np.ndarray) -> np.ndarray:
        """Owned columns of the problem at the unknowns of the parts here. Collective."""
        return times(self.Q, columns, transposed=True)

    def to_owners(self, columns: np.ndarray) -> np.ndarray:
        """And back. Collective."""
        if not self.idle:
            return times(self.Q, columns)
        # PETSc's product of matrices crashes where a rank has no rows; that with vectors does not
        x, y = self.Q.createVecs()
        result = np.empty((y.getLocalSize(), columns.shape[1]), order="F")
        for column, found in zip(columns.T, result.T, strict=True):
            x.array[:] = column
            self.Q.mult(x, y)
            found[:] = y.array_r
        x.destroy()
        y.destroy()
        return result

    def destroy(self) -> None:
        self.Q.destroy()


def _solve(blocks: list[scipy.sparse.csr_matrix], number: int, shift: float, start: np.ndarray,
           definite: bool) -> tuple:
    """Rates ``(K,)``, vectors ``(n, K)`` of one part, and the solver of A + shift M."""
    A, M = (PETSc.Mat().createAIJ(block.shape, csr=(block.indptr, block.indices, block.data),
                                  comm=PETSc.COMM_SELF) for block in blocks)
    size = A.getSize()[0]
    wanted = min(number + CANDIDATES, size)
    if is_small(size, wanted, 1):
        values, vectors, solver = dense_modes(A, M, wanted)
        solve = solver(shift)
    else:
        eps = shift_invert(A, M, wanted, min(number, size), shift, "spinverse_eps_", start,
                           definite=definite)
        values, vectors = converged_pairs(eps, wanted)
        solve = partial(_with, eps)
    kept = at_gap(values, min(number, size), CANDIDATES)
    return values[:kept], vectors[:, :kept], solve


def _with(eps, loads: np.ndarray) -> np.ndarray:
    return solved(eps.getST().getKSP(), loads)
