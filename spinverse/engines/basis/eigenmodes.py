"""Lowest diffusion modes of the tissue: SLEPc shift-invert, MUMPS factor, MPI parallel.

What modes that are left out do to those that are kept: with X_j = Phi^T x_j Phi, and o for the
others, u' = -(Lambda + i g . X) u - i g . X_o w, where w' = -Lambda_o w - i g . X_o^T u - ... is
fast beside u, so that w = -i Lambda_o^-1 g . X_o^T u and

    u' = -(Lambda + i g . X + g . C g) u,      C_jk = X_oj Lambda_o^-1 X_ok^T.

C needs no further modes: with a shift s (small beside Lambda_o) it is
Phi^T x_j (A + s M)^-1 x_k Phi - X_j (Lambda + s)^-1 X_k, a solve for each mode and axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import scipy.sparse
from mpi4py import MPI
from petsc4py import PETSc
from slepc4py import SLEPc

from ...errors import InputError, SolverError, on_root
from ...extra_terms import Unsuitable
from ...parallel.columns import solved
from ...parallel.exchange import reduced
from ...phases import phase
from ...problem import BlochTorrey
from ...unknowns import Unknowns
from ..linear.direct import ALONE_AT_ALL, count_pivots, failure, gathered
from .blocks import CANDIDATES, Inverse, at_gap, coarse_modes, iterated, lowest_pairs
from .dense import dense_modes, is_small
from .drifting import Gauge, enriched, gauge_of, lowest
from .krylov import waves
from .spectrum import decay_rates, negative_pivots, rounding

SOLVERS = ("auto", "direct", "iterative")
LARGE = 20_000  # unknowns from which "auto" makes no factor
_BLOCK = 32  # right-hand sides solved at once


@dataclass(frozen=True, eq=False)
class Eigenmodes:
    """Modes phi_k with (decay) phi_k = lambda_k (mass) phi_k, mass-orthonormal.

    Attributes:
        eigenvalues: ``(K,)`` ascending, 1/ms.
        columns: ``(n, K)`` values at the rank's ``unknowns`` (`spinverse.unknowns`), um^-3/2.
        positions: ``(d, K, K)`` position operators Phi^T J_j Phi, um.
        start, receive: ``(K,)`` the initial magnetisation in the modes, and the integral of each:
            the signal is receive . m.
        reach: ``(d,)`` half-widths of the bounding box: a bound on |x|, um.
        gauge: what drives them along periodic axes, None without.
        nest: ``(K, K)`` how to leave some out: see `drifting.enriched`; None without.
        responses: ``(d, d, K, K)`` Phi^T J_j (A + s M)^-1 J_k Phi, um^2 ms, fields behind the axes;
            None if not asked for.
        shift: s of `responses`, 1/ms.
        fields: ``(n, K, K)`` what turns phases without gradient, rad/ms, before a 180-degree pulse
            and (n = 2) after it: see `spinverse.extra_terms`.
        field_reach: ``(n,)`` bounds on the spectral radius of `fields`, rad/ms.
        rows: of the rank's unknowns that ``columns`` are at, zero at all others (`parts`); None for
            all.
        copies: rows and columns of parts that have the same operators.
        storage: ``(K, K)`` what decay changes by while magnetisation is stored along z
            (`forms.storage`), 1/ms; None where no waveform asks for it. It is the last one in
            `responses` then.
        about: ``(d,)`` what positions and responses are relative to, um from the centre of the
            mesh.
    """

    eigenvalues: np.ndarray
    columns: np.ndarray
    unknowns: Unknowns
    positions: np.ndarray
    start: np.ndarray
    receive: np.ndarray
    reach: np.ndarray
    gauge: Gauge | None = None
    nest: np.ndarray | None = None
    responses: np.ndarray | None = None
    shift: float = 0.0
    fields: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    field_reach: tuple[float, ...] = ()
    rows: np.ndarray | None = None
    copies: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    about: np.ndarray = field(default_factory=lambda: np.zeros(0))
    storage: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.eigenvalues)

    @property
    def count(self) -> int:
        """How many parts have these modes."""
        return 1 + len(self.copies)

    @property
    def modes(self) -> np.ndarray:
        """``(n_owned, K)`` values at the owned broken dofs, um^-3/2; made anew if any are tied."""
        return self.unknowns.broken(self.columns)

    def truncated(self, number: int) -> Eigenmodes:
        """The first ``number`` of them; with `nest` of the functions that it leads back to."""
        if self.nest is not None:
            return self._nested(number)
        few = slice(number)
        return Eigenmodes(self.eigenvalues[few], self.columns[:, few], self.unknowns,
                          self.positions[:, few, few], self.start[few], self.receive[few],
                          self.reach, self.gauge and self.gauge.truncated(number), None,
                          None if self.responses is None else self.responses[:, :, few, few],
                          self.shift, self.fields[:, few, few], self.field_reach, self.rows,
                          tuple((rows, columns[:, few]) for rows, columns in self.copies),
                          self.about, None if self.storage is None else self.storage[few, few])

    @property
    def turning(self) -> np.ndarray:
        """Positions, followed by fields."""
        return np.concatenate([self.positions, self.fields]) if len(self.fields) else self.positions

    def _nested(self, number: int) -> Eigenmodes:
        first = self.nest[:number]
        values, rotation = np.linalg.eigh((first * self.eigenvalues) @ first.T)
        T = first.T @ rotation
        return Eigenmodes(decay_rates(values), self.columns @ T, self.unknowns,
                          T.T @ self.positions @ T, self.start @ T, self.receive @ T,
                          self.reach, self.gauge.turned(T), rotation, about=self.about,
                          storage=None if self.storage is None else T.T @ self.storage @ T)

    def omitted(self, direction) -> np.ndarray:
        """C along a direction, ``(K, K)`` um^2 ms: what all other modes do, see above.

        With `fields`, ``direction`` is g followed by a weight for each of them, and C in 1/ms.
        """
        X = np.tensordot(direction, self.turning, axes=1)
        n = len(self.turning)
        whole = np.tensordot(np.outer(direction, direction), self.responses[:n, :n], axes=2)
        C = whole - X @ (X / (self.eigenvalues + self.shift)[:, None])
        return 0.5 * (C + C.T)

    @cached_property
    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        """Decay rates while stored, ``(K,)`` 1/ms ascending, and their vectors ``(K, K)``."""
        values, vectors = np.linalg.eigh(np.diag(self.eigenvalues) + self.storage)
        return values, vectors

    @cached_property
    def stored_with_omitted(self) -> tuple[np.ndarray, np.ndarray]:
        """As `stored`, with what all other modes do: they are driven by R_o u, and decay fast."""
        R = self.storage
        C = self.responses[-1, -1] - R @ (R / (self.eigenvalues + self.shift)[:, None])
        values, vectors = np.linalg.eigh(np.diag(self.eigenvalues) + R - 0.5 * (C + C.T))
        return values, vectors


def eigenmodes(problem: BlochTorrey, number: int, options_prefix: str = "spinverse_eps_",
               responses: bool = False, solver: str = "auto") -> Eigenmodes:
    """The lowest modes at the problem's present permeability. Collective.

    Args:
        problem: the discrete problem.
        number: how many; a few fewer or more come back, cut at a gap of the spectrum. On
            periodic boxes some of them are made by drift: see `drifting_basis`.
        options_prefix: PETSc/SLEPc options with this prefix reach the solver, which small problems
            (`dense_modes.is_small`) do without.
        responses: fill `Eigenmodes.responses`; not on periodic boxes.
        solver: "direct" factorises, "iterative" does not (see `blocks`; where facets are
            tied, conjugate gradients with multigrid), "auto" takes the faster one. The PETSc
            option ``solver`` with the prefix overrides it.

    Raises:
        SolverError: if the factorisation fails or too few pairs converge.
        InputError: extra terms that the matrix formalism cannot take.
    """
    size = problem.num_unknowns
    number = lowest(problem, number)
    wanted = min(number + CANDIDATES, size)
    with phase("assembly"):
        A, M = problem.decay_matrix(), problem.mass_matrix
    shift = shift_of(problem)
    iterative = _iterative(problem, size, solver, options_prefix)
    start = problem.unknowns.owned_loads(wave(problem))[:, 0]
    made = None  # to be freed at the end
    with phase("eigenproblem"):
        if is_small(size, wanted, problem.comm.size) and not iterative:
            values, vectors, make_solve = dense_modes(A, M, wanted)
            solve = make_solve(shift)
        elif iterative and problem.prolongation is None:
            made = solve = Inverse(problem, A, M, shift, options_prefix)
            values, vectors = lowest_pairs(
                solve, A, M, wanted, shift,
                coarse_modes(solve.preconditioner, A, M, wanted, waves(
                    problem.space.tabulate_dof_coordinates()[: A.getLocalSize()[0]],
                    extent_of(problem), iterated(A, wanted))), options_prefix)
        elif problem.comm.size > 1 and size <= ALONE_AT_ALL and not iterative:
            values, vectors, solve, made = _by_root(
                A, M, wanted, min(number, size), shift, options_prefix, start,
                definite=problem.extra_blocks is None)
        else:
            made = shift_invert(A, M, wanted, min(number, size), shift, options_prefix, start,
                                 iterative, definite=problem.extra_blocks is None)
            values, vectors = converged_pairs(made, wanted)
            solve = partial(solved, made.getST().getKSP())
    kept = at_gap(values, min(number, size), CANDIDATES // (1 + len(problem.periodic)))
    check_decay(problem, values)
    values, nest = decay_rates(values[:kept], small := rounding(A, M)), None
    columns = problem.unknowns.local(vectors[:, :kept])
    if problem.periodic and kept < size:
        values, columns, nest = enriched(problem, A, columns, solve, small)
    R = _responses(problem, columns, solve) if responses and not problem.periodic else None
    if made is not None:
        made.destroy()
    problem.release(A)
    return project(problem, values, columns, nest, R, shift)


def _iterative(problem: BlochTorrey, size: int, solver: str, options_prefix: str) -> bool:
    """Whether no factor of the problem's matrix is to be made."""
    solver = PETSc.Options(options_prefix).getString("solver", solver)
    if solver not in SOLVERS:
        raise InputError(f"solver of the eigenproblem: {solver!r}, expected one of "
                         f"{', '.join(SOLVERS)}")
    return solver == "iterative" or (
        solver == "auto" and size > LARGE and problem.prolongation is None
        and problem.extra_blocks is None)


def shift_of(problem: BlochTorrey) -> float:
    """1/ms: A is singular when nothing relaxes or leaves; a small shift keeps it definite."""
    return 0.3 * fastest(problem) / extent_of(problem)**2


def extent_of(problem: BlochTorrey) -> float:
    """Longest side of the bounding box, um."""
    return float(np.max(problem.mesh.bounds[1] - problem.mesh.bounds[0]))


def fastest(problem: BlochTorrey) -> float:
    """Largest diffusivity, um^2/ms. Collective."""
    return problem.comm.allreduce(
        float(np.max(problem.tissue.diffusivity, initial=1e-12)), op=MPI.MAX)


def wave(problem: BlochTorrey) -> np.ndarray:
    """A wave that shares no symmetry with the mesh, ``(n_owned, 1)``: the same at any ranks."""
    x = problem.space.tabulate_dof_coordinates()[: problem.local_mass.shape[0]]
    return 1.0 + np.sin(x @ np.array([0.7, 1.1, 1.9]))[:, None]  # x has three columns always


def _by_root(A: PETSc.Mat, M: PETSc.Mat, wanted: int, least: int, shift: float,
             options_prefix: str, start: np.ndarray, definite: bool) -> tuple:
    """Values, this rank's rows of vectors, a solver, and what is to be destroyed. Collective.

    A small problem by rank 0 alone: hundreds of solves of several messages each take longer than
    what there is to share, and on busy cores each message waits for a turn of the other rank.
    """
    comm, whole = A.comm.tompi4py(), [gathered(matrix) for matrix in (A, M)]
    starts = comm.gather(start)
    held: list[Any] = []  # A and M, and their solver

    def find() -> tuple:
        held.extend(PETSc.Mat().createAIJ(part.shape, csr=(part.indptr, part.indices, part.data),
                                          comm=PETSc.COMM_SELF) for part in whole)
        held.append(shift_invert(held[0], held[1], wanted, least, shift, options_prefix,
                                 np.concatenate(starts), definite=definite))
        return converged_pairs(held[-1], wanted)

    values, vectors = comm.bcast(on_root(comm, find))
    rows = slice(*A.getOwnershipRange())

    def solve(loads: np.ndarray) -> np.ndarray:
        parts = comm.gather(loads)
        return comm.bcast(on_root(comm, lambda: solved(
            held[-1].getST().getKSP(), np.concatenate(parts))))[rows]

    return values, vectors[rows].copy(order="F"), solve, _Held(held)


@dataclass(frozen=True)
class _Held:
    """PETSc objects of one rank, which are destroyed together."""

    objects: list

    def destroy(self) -> None:
        while self.objects:
            self.objects.pop().destroy()


def check_decay(problem: BlochTorrey, values: np.ndarray) -> None:
    """Extra terms may let magnetisation grow, which the engine's exponentials do not know."""
    if problem.extra_blocks is not None and values[0] < -1e-8 * max(1.0, abs(values[-1])):
        raise Unsuitable(f"a mode grows by a factor e in {-1 / values[0]:.3g} ms")


def shift_invert(A: PETSc.Mat, M: PETSc.Mat, wanted: int, least: int, shift: float,
                  options_prefix: str, start: np.ndarray, iterative: bool = False,
                  tolerance: float = 1e-11, definite: bool = True) -> SLEPc.EPS:
    """The solved eigenproblem; ``start`` is the rank's part of the first vector.

    Unless A + shift M is known to be ``definite``, its factor is asked whether it is: eigenvalues
    far below 0 are as far from the shift as those of the highest modes, and would not be found.
    """
    size = A.getSize()[0]
    eps = SLEPc.EPS().create(A.comm)
    eps.setOperators(A, M)
    eps.setProblemType(SLEPc.EPS.ProblemType.GHEP)
    eps.setDimensions(nev=wanted, ncv=min(size, max(7 * wanted // 5, wanted + 24)))
    eps.setTolerances(tolerance, 200)
    eps.setTarget(0.0)
    eps.setWhichEigenpairs(SLEPc.EPS.Which.TARGET_MAGNITUDE)
    eps.setPurify(False)  # M is not singular
    st = eps.getST()
    st.setType(SLEPc.ST.Type.SINVERT)
    st.setShift(-shift)
    ksp = st.getKSP()
    pc = ksp.getPC()
    if iterative:
        ksp.setType(PETSc.KSP.Type.CG)
        ksp.setTolerances(rtol=0.1 * tolerance, max_it=1000)
        pc.setType(PETSc.PC.Type.GAMG)
    else:
        ksp.setType(PETSc.KSP.Type.PREONLY)
        pc.setType(PETSc.PC.Type.CHOLESKY)
        pc.setFactorSolverType(PETSc.Mat.SolverType.MUMPS)
    eps.setOptionsPrefix(options_prefix)
    column = A.createVecRight()
    column.setArray(start)
    eps.setInitialSpace([column])
    column.destroy()
    eps.setFromOptions()
    try:
        counted = not definite and pc.getType() == PETSc.PC.Type.CHOLESKY
        if counted:
            st.restoreOperator(st.getOperator())  # the matrix to be factorised
            count_pivots(pc)
        eps.solve()
        if counted and negative_pivots(pc):
            raise Unsuitable(f"a mode grows by a factor e in less than {1 / shift:.3g} ms")
    except (PETSc.Error, SystemError) as error:  # slepc4py wraps some PETSc errors
        raise SolverError(failure(ksp, size, f"eigenproblem, {wanted} modes",
                                  f"-{options_prefix}solver iterative")) from error
    converged = eps.getConverged()
    if converged < least:
        reason = eps.getConvergedReason()
        raise SolverError(f"eigenproblem: {converged} of {wanted} modes converged (SLEPc reason "
                          f"{reason}); a larger -{options_prefix}eps_max_it or "
                          f"-{options_prefix}eps_ncv, or fewer modes?")
    return eps


def converged_pairs(eps: SLEPc.EPS, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues ascending, at most ``wanted``, and their vectors ``(n_local, n)``."""
    values = np.array([eps.getEigenvalue(k).real for k in range(eps.getConverged())])
    order = np.argsort(values)[:wanted]
    column = eps.getOperators()[0].createVecRight()
    vectors = np.empty((column.getLocalSize(), len(order)), order="F")
    for place, k in enumerate(order):
        eps.getEigenvector(k, column)
        vectors[:, place] = column.array_r
    column.destroy()
    return values[order], vectors


@phase("omitted modes")
def _responses(problem: BlochTorrey, columns: np.ndarray, solve: Callable) -> np.ndarray:
    """See `Eigenmodes`; by blocks of modes, to hold no second basis. Collective."""
    K, unknowns = columns.shape[1], problem.unknowns
    moved = [J @ columns for J in (*problem.phase_operators, *problem.storage_operators)]
    dim = len(moved)
    local = np.zeros((dim, dim, K, K))
    for first in range(0, K, _BLOCK):
        block = slice(first, first + _BLOCK)
        for k in range(dim):
            answer = unknowns.local(solve(unknowns.gathered(moved[k][:, block])))
            for j in range(dim):
                local[j, k, :, block] = moved[j].T @ answer
    return reduced(problem.comm, local)


@phase("projection")
def project(problem: BlochTorrey, values: np.ndarray, columns: np.ndarray,
            nest: np.ndarray | None = None, responses: np.ndarray | None = None,
            shift: float = 0.0) -> Eigenmodes:
    """Position operators, start and receive vectors, the same on every rank."""
    K, dim = len(values), problem.mesh.dim
    turning = len(problem.phase_operators)
    operators = [*problem.phase_operators, *problem.storage_operators]
    number = len(operators)
    packed = np.zeros((number * K + 2, K))
    for j, J in enumerate(operators):
        packed[j * K: (j + 1) * K] = columns.T @ (J @ columns)
    mass: scipy.sparse.csr_matrix = problem.local_mass
    packed[-2] = problem.unknowns.load(mass @ problem.initial) @ columns
    packed[-1] = problem.unknowns.load(mass @ problem.scale) @ columns
    total = reduced(problem.comm, packed)
    X = total[:-2].reshape(number, K, K)
    X = 0.5 * (X + X.transpose(0, 2, 1))
    reach = (problem.mesh.bounds[1] - problem.mesh.bounds[0])[:dim] / 2
    if problem.extra_blocks is not None:
        for axis in problem.extra_blocks.positions:
            reach[axis] = radius(X[axis])
    driven = gauge_of(problem, problem.unknowns.broken(columns)) if problem.periodic else None
    fields = X[dim:turning]
    return Eigenmodes(values, columns, problem.unknowns, X[:dim], total[-2], total[-1], reach,
                      driven, nest, responses, shift, fields, tuple(radius(J) for J in fields),
                      about=np.zeros(dim), storage=X[turning] if number > turning else None)


def radius(matrix: np.ndarray) -> float:
    """Spectral radius of a symmetric matrix, a little more."""
    return 1.001 * float(np.abs(np.linalg.eigvalsh(matrix)[[0, -1]]).max())
