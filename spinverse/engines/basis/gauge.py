"""Periodic axes in the matrix formalism: modes of the box that drift with Q(t) = int_0^t g.

With m = w exp(-i Q . x) along the periodic axes (`spinverse.forms`), and X_j the positions along
the others,

    u' = -A(t) u,    A = Lambda + i Q . N + Q . C Q + i g . X,    N_j = Phi^T n_j Phi,  C likewise,

N antisymmetric, C symmetric: at rest (g = 0) A is Hermitian with spectrum in [0, inf). Its pieces
are those of `spinverse.engines.schedule.waves`.

Mirror images: f(TE - t) = -f(t) gives Q(TE - t) = Q(t), so A(TE - t) = A(t)^H and the second half
of the evolution is the conjugate transpose of the first; f(TE - t) = f(t) gives Q(TE - t) = -Q(t),
A(TE - t) = A(t)^T, and the transpose: as without periodic axes, here with half of the gap in the
middle as a piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from ...parallel.exchange import reduced
from ...problem import BlochTorrey


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
