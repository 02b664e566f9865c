"""Periodic axes in the matrix formalism: modes of the box that drift with Q(t) = int_0^t g.

With m = w exp(-i Q . x) along the periodic axes (`spinverse.forms`), and X_j the positions along
the others,

    u' = -A(t) u,    A = Lambda + i Q . N + Q . C Q + i g . X,    N_j = Phi^T n_j Phi,  C likewise,

N antisymmetric, C symmetric: at rest (g = 0) A is Hermitian with spectrum in [0, inf). Its pieces
are those of `spinverse.engines.schedule.waves`.

Mirror images: f(TE - t) = -f(t) gives Q(TE - t) = Q(t), so A(TE - t) = A(t)^H and the second half
of the evolution is the conjugate transpose of the first; f(TE - t) = f(t) gives
Q(TE - t) = -Q(t), A(TE - t) = A(t)^T, and the transpose: as without periodic axes, here with half
of the gap in the middle as a piece.

What is at rest in a closed compartment is w = exp(i Q . x), whose gradient does not vanish at the
walls, as that of all modes does: modes alone approach it slowly. The responses
eta_jk = (A + s M)^-1 N_j phi_k to a drift along each periodic axis have the right flux: for a
closed compartment x_j itself. With them the error falls by about three orders at the same number
of functions. In the space of both the decay operator is diagonalised again (Rayleigh-Ritz); its
lowest modes are still exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

from ...parallel.columns import column_inner, inner, times
from ...parallel.exchange import reduced
from ...problem import BlochTorrey
from .spectrum import decay_rates, diagonalised

_INDEPENDENT = 3e-5  # part of a function's norm that is not in those before it, at least
_BLOCK = 32
_FEWEST = 24  # modes, so that the first truncations say something


@dataclass(frozen=True, eq=False)
class Gauge:
    """What drives modes along the periodic axes.

    Attributes:
        axes: the periodic ones.
        drifts: ``(d, K, K)`` N_j, um/ms; zero for the other axes.
        squares: C_jk, ``(d, d)`` um^2/ms where the diffusivity is the same everywhere, as it is
            times 1 then; else ``(d, d, K, K)``.
        fastest: largest diffusivity, um^2/ms.
    """

    axes: tuple[int, ...]
    drifts: np.ndarray
    squares: np.ndarray
    fastest: float

    def truncated(self, number: int) -> Gauge:
        """For the first ``number`` modes."""
        squares = self.squares if self.squares.ndim == 2 else self.squares[..., :number, :number]
        return Gauge(self.axes, self.drifts[:, :number, :number], squares, self.fastest)

    def turned(self, T: np.ndarray) -> Gauge:
        """For the combinations ``T``, ``(K, n)`` orthonormal, of the modes."""
        squares = self.squares if self.squares.ndim == 2 else T.T @ self.squares @ T
        return Gauge(self.axes, T.T @ self.drifts @ T, squares, self.fastest)


def gauge_of(problem: BlochTorrey, modes: np.ndarray) -> Gauge | None:
    """Operators of the mass-orthonormal ``modes``, ``(n_owned, K)``. Collective.

    None where no axis is periodic.
    """
    if not problem.periodic:
        return None
    dim, K, comm = problem.mesh.dim, modes.shape[1], problem.comm
    D = problem.tissue.diffusivity
    eigenvalues = D if D.ndim == 1 else np.linalg.eigvalsh(D)
    fastest = comm.allreduce(float(eigenvalues.max(initial=0.0)), MPI.MAX)
    drifts = np.zeros((dim, K, K))
    for j, form in problem.local_drifts.items():
        drifts[j] = modes.T @ (form @ modes)
    drifts = reduced(comm, drifts)
    tensor = D if D.ndim == 3 else D[:, None, None] * np.eye(dim)
    squares = reduced(comm, tensor.min(axis=0, initial=np.inf), MPI.MIN)
    if np.any(squares != reduced(comm, tensor.max(axis=0, initial=-np.inf), MPI.MAX)):
        squares = np.zeros((dim, dim, K, K))
        for (j, k), form in problem.local_squares.items():
            squares[j, k] = modes.T @ (form @ modes)
        squares = reduced(comm, squares)
        for j, k in problem.local_squares:
            squares[j, k] = squares[k, j] = 0.5 * (squares[j, k] + squares[j, k].T)
    return Gauge(problem.periodic, 0.5 * (drifts - drifts.transpose(0, 2, 1)), squares, fastest)


def lowest(problem: BlochTorrey, number: int) -> int:
    """How many modes make a basis of about ``number`` functions, or of somewhat more."""
    each = 1 + len(problem.periodic)
    size = problem.num_unknowns
    few = max(_FEWEST, -(-number // each)) if each > 1 else number
    return size if number >= size or few * each >= size else few


def enriched(problem: BlochTorrey, A: PETSc.Mat, columns: np.ndarray,
             solve: Callable[[np.ndarray], np.ndarray], rounding: float) -> tuple:
    """Modes and responses, diagonalised. Collective.

    The operator between them is made of the functions as they are after orthonormalisation: what is
    known of A times each would lose digits in combinations of functions that nearly depend on each
    other.

    Args:
        A: the decay matrix of the problem.
        columns: ``(n, K)`` modes, local columns of `spinverse.unknowns`, mass-orthonormal.
        solve: owned columns of loads to (A + s M)^-1 of them.
        rounding: of decay rates, 1/ms.

    Returns:
        Eigenvalues ``(m,)``, local columns ``(n, m)`` and a rotation ``(m, m)``: the columns times
        its transpose are modes and responses one after the other, orthonormalised, so that a
        smaller basis is the first of them. SolverError: they lost their digits.
    """
    comm, mass, unknowns = problem.comm, problem.mass_of_unknowns, problem.unknowns
    each = 1 + len(problem.periodic)
    functions = np.empty((len(columns), each * columns.shape[1]), order="F")
    functions[:, ::each] = columns
    for place, axis in enumerate(problem.periodic, start=1):
        loads = unknowns.gathered(unknowns.operator(problem.local_drifts[axis]) @ columns)
        for first in range(0, loads.shape[1], _BLOCK):
            block = slice(first, first + _BLOCK)
            functions[:, place::each][:, block] = unknowns.local(solve(loads[:, block]))
    # a mode that nothing drifts has responses of round-off alone
    norms = np.sqrt(column_inner(comm, functions, mass @ functions))
    norms[::each] = np.inf
    there = norms > _INDEPENDENT**2 * norms[norms < np.inf].max()
    functions = _orthonormal(comm, mass, functions[:, there])
    owned = np.asfortranarray(functions[: A.getLocalSize()[1]])
    found, rotation = diagonalised(comm, inner(comm, owned, times(A, owned)))
    return decay_rates(found, rounding), functions @ rotation, rotation


def _orthonormal(comm, mass, functions: np.ndarray) -> np.ndarray:
    """Gram-Schmidt in the mass product, dependent functions left out.

    In order, so that the first n span what the first n that were kept did. By blocks, and twice,
    for what is lost of the digits the first time.
    """
    kept = np.empty((len(functions), 0))
    for first in range(0, functions.shape[1], _BLOCK):
        block = functions[:, first: first + _BLOCK]
        norms = np.sqrt(column_inner(comm, block, mass @ block))
        for _ in range(2):
            block = block - kept @ inner(comm, kept, mass @ block)
        chosen = np.empty((len(functions), 0))
        for k in range(block.shape[1]):
            column = block[:, k: k + 1]
            for _ in range(2):
                column = column - chosen @ inner(comm, chosen, mass @ column)
            norm = float(np.sqrt(column_inner(comm, column, mass @ column))[0])
            if norm > _INDEPENDENT * norms[k]:
                chosen = np.hstack([chosen, column / norm])
        # what was taken off the last of a block may be large beside what is left of it
        chosen = chosen - kept @ inner(comm, kept, mass @ chosen)
        kept = np.hstack([kept, chosen])
    return kept
