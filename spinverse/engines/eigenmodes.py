"""Lowest diffusion modes of the tissue: SLEPc shift-invert, MUMPS factor, MPI parallel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from mpi4py import MPI
from petsc4py import PETSc
from slepc4py import SLEPc

from ..errors import SolverError
from ..problem import BlochTorrey
from .drifting_basis import enriched, lowest
from .gauge import Gauge, gauge_of

# Modes are cut at the widest relative gap among this many candidates, so that no cluster of
# equal eigenvalues is cut in two: the span, and the signals, would then depend on the ranks.
CANDIDATES = 12


@dataclass(frozen=True, eq=False)
class Eigenmodes:
    """Modes phi_k with (decay) phi_k = lambda_k (mass) phi_k, mass-orthonormal.

    Attributes:
        eigenvalues: ``(K,)`` ascending, 1/ms.
        modes: ``(n_owned, K)`` values at the owned broken dofs, um^-3/2.
        positions: ``(d, K, K)`` position operators Phi^T J_j Phi, um.
        start: ``(K,)`` initial magnetisation in the modes.
        receive: ``(K,)`` integral of each mode's magnetisation: the signal is receive . m.
        reach: ``(d,)`` half-widths of the bounding box: a bound on |x|, um.
        gauge: what drives them along periodic axes, None without.
        nest: ``(K, K)`` how to leave some out: see `drifting_basis.enriched`; None without.
    """

    eigenvalues: np.ndarray
    modes: np.ndarray
    positions: np.ndarray
    start: np.ndarray
    receive: np.ndarray
    reach: np.ndarray
    gauge: Gauge | None = None
    nest: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def truncated(self, number: int) -> Eigenmodes:
        """The first ``number`` of them; with `nest` of the functions that it leads back to."""
        if self.nest is not None:
            return self._nested(number)
        return Eigenmodes(self.eigenvalues[:number], self.modes[:, :number],
                          self.positions[:, :number, :number], self.start[:number],
                          self.receive[:number], self.reach,
                          self.gauge and self.gauge.truncated(number))

    def _nested(self, number: int) -> Eigenmodes:
        first = self.nest[:number]
        values, rotation = np.linalg.eigh((first * self.eigenvalues) @ first.T)
        T = first.T @ rotation
        return Eigenmodes(np.maximum(values, 0.0), self.modes @ T, T.T @ self.positions @ T,
                          self.start @ T, self.receive @ T, self.reach, self.gauge.turned(T),
                          rotation)


def eigenmodes(problem: BlochTorrey, number: int,
               options_prefix: str = "spinverse_eps_") -> Eigenmodes:
    """The lowest modes at the problem's present permeability. Collective.

    Args:
        problem: the discrete problem.
        number: how many; a few fewer or more come back, cut at a gap of the spectrum. On
            periodic boxes some of them are made by drift: see `drifting_basis`.
        options_prefix: PETSc/SLEPc options with this prefix reach the solver.

    Raises:
        SolverError: if the factorisation fails or too few pairs converge.
    """
    size = problem.num_unknowns
    number = lowest(problem, number)
    wanted = min(number + CANDIDATES, size)
    eps = SLEPc.EPS().create(problem.comm)
    A, M = problem.decay_matrix(), problem.mass_matrix
    eps.setOperators(A, M)
    eps.setProblemType(SLEPc.EPS.ProblemType.GHEP)
    eps.setDimensions(nev=wanted, ncv=min(size, max(7 * wanted // 5, wanted + 24)))
    eps.setTolerances(1e-11, 200)
    eps.setTarget(0.0)
    eps.setWhichEigenpairs(SLEPc.EPS.Which.TARGET_MAGNITUDE)
    st = eps.getST()
    st.setType(SLEPc.ST.Type.SINVERT)
    # A is singular when nothing relaxes or leaves; a small negative shift keeps it definite.
    extent = float(np.max(problem.mesh.bounds[1] - problem.mesh.bounds[0]))
    fastest = problem.comm.allreduce(
        float(np.max(problem.tissue.diffusivity, initial=1e-12)), op=MPI.MAX)
    st.setShift(-0.3 * fastest / extent**2)
    ksp = st.getKSP()
    ksp.setType(PETSc.KSP.Type.PREONLY)
    pc = ksp.getPC()
    pc.setType(PETSc.PC.Type.CHOLESKY)
    pc.setFactorSolverType(PETSc.Mat.SolverType.MUMPS)
    eps.setOptionsPrefix(options_prefix)
    # the same start vector whatever the ranks: a wave that shares no symmetry with the mesh
    column = A.createVecRight()
    x = problem.space.tabulate_dof_coordinates()[: problem.local_mass.shape[0]]
    wave = 1.0 + np.sin(x @ np.array([0.7, 1.1, 1.9]))  # x has three columns in any dimension
    P = problem.prolongation
    broken = P.createVecLeft() if P is not None else column
    broken.setArray(wave)
    if P is not None:
        P.multTranspose(broken, column)
    eps.setInitialSpace([column])
    eps.setFromOptions()
    try:
        eps.solve()
    except (PETSc.Error, SystemError) as error:  # slepc4py wraps some PETSc errors
        raise SolverError(f"eigenproblem of {size} unknowns, {wanted} modes: PETSc failed while "
                          "factorising or iterating; fewer modes, or more memory?") from error
    converged = eps.getConverged()
    if converged < min(number, size):
        reason = eps.getConvergedReason()
        raise SolverError(f"eigenproblem: {converged} of {wanted} modes converged "
                          f"(SLEPc reason {reason})")
    values = np.array([eps.getEigenvalue(k).real for k in range(converged)])
    order = np.argsort(values)[:wanted]
    order = order[: _cut(values[order], min(number, size),
                         CANDIDATES // (1 + len(problem.periodic)))]
    owned = problem.space.dofmap.index_map.size_local
    modes = np.empty((owned, len(order)), order="F")
    for place, k in enumerate(order):
        eps.getEigenvector(k, column)
        if P is not None:
            P.mult(column, broken)
        modes[:, place] = broken.array_r
    values, nest = np.maximum(values[order], 0.0), None
    if problem.periodic and len(values) < size:
        values, modes, nest = enriched(problem, values, modes, -st.getShift(),
                                       _solver(ksp, P, column, broken))
    for thing in (eps, column) if P is None else (eps, column, broken, A):
        thing.destroy()
    return _project(problem, values, modes, nest)


def _cut(values: np.ndarray, number: int, candidates: int) -> int:
    """How many of the sorted values to keep: at least ``number - candidates`` and not a cluster."""
    if len(values) <= number:
        return len(values)
    first = max(1, number - candidates)
    gaps = np.diff(values[first - 1: number + candidates])
    return first + int(np.argmax(gaps))


def _solver(ksp: PETSc.KSP, P: PETSc.Mat, column: PETSc.Vec, broken: PETSc.Vec) -> Callable:
    """From a load at the broken dofs to the solution there, by way of the tied space."""
    load = column.duplicate()

    def solve(values: np.ndarray) -> np.ndarray:
        broken.setArray(values)
        P.multTranspose(broken, load)
        ksp.solve(load, column)
        P.mult(column, broken)
        return broken.array_r.copy()

    return solve


def _project(problem: BlochTorrey, values: np.ndarray, modes: np.ndarray,
             nest: np.ndarray | None = None) -> Eigenmodes:
    """Position operators, start and receive vectors, the same on every rank."""
    K, dim = len(values), problem.mesh.dim
    packed = np.zeros((dim * K + 2, K))
    for j, J in enumerate(problem.local_positions):
        packed[j * K: (j + 1) * K] = modes.T @ (J @ modes)
    mass: scipy.sparse.csr_matrix = problem.local_mass
    packed[dim * K] = (mass @ problem.initial) @ modes
    packed[dim * K + 1] = (mass @ problem.scale) @ modes
    total = np.empty_like(packed)
    problem.comm.Allreduce(packed, total)
    X = total[: dim * K].reshape(dim, K, K)
    reach = (problem.mesh.bounds[1] - problem.mesh.bounds[0])[:dim] / 2
    return Eigenmodes(values, modes, 0.5 * (X + X.transpose(0, 2, 1)), total[dim * K],
                      total[dim * K + 1], reach, gauge_of(problem, modes), nest)
