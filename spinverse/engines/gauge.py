"""Periodic axes in the matrix formalism: modes of the box that drift with Q(t) = int_0^t g.

With m = w exp(-i Q . x) along the periodic axes (`spinverse.forms`), and X_j the positions along
the others,

    u' = -A(t) u,    A = Lambda + i Q . N + Q . C Q + i g . X,    N_j = Phi^T n_j Phi,  C likewise,

N antisymmetric, C symmetric: at rest (g = 0) A is Hermitian with spectrum in [0, inf). Plateaus of
Q are one piece. Where Q varies, steps are of fourth order: two exponentials of weighted means of A
at the Gauss points (commutator-free, as in `spinverse.acquisition.waveform`), for which the means
of g, Q and Q Q^T are enough.

Mirror images: f(TE - t) = -f(t) gives Q(TE - t) = Q(t), so A(TE - t) = A(t)^H and the second half
of the evolution is the conjugate transpose of the first. f(TE - t) = f(t) gives Q(TE - t) = -Q(t),
A(TE - t) = A(t)^T, and the second half is the transpose. These are the rules of the matrix
formalism without periodic axes; here they hold for the gap in the middle as well, of which half is
a piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from ..acquisition.table import Acquisition
from ..problem import BlochTorrey
from .chebyshev import Propagation

# Commutator-free Magnus integrator of order 4 with two exponentials (Blanes & Moan, Appl. Numer.
# Math. 56 (2006) 1519): Gauss points of the step, and the weights of the near and the far one.
_NODES = 0.5 + np.array([-1.0, 1.0]) * np.sqrt(3.0) / 6.0
_NEAR, _FAR = 0.5 + np.sqrt(3.0) / 3.0, 0.5 - np.sqrt(3.0) / 3.0
_EQUAL = 1e-12  # times closer than this, relative to TE, are the same


@dataclass(frozen=True)
class Wave:
    """Means of f, F = int f and F F over a piece; vectors and a matrix for a vector waveform."""

    rate: float | tuple[float, ...]
    phase: float | tuple[float, ...]
    square: float | tuple[tuple[float, ...], ...]


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
    drifts = _reduced(comm, drifts, MPI.SUM)
    tensor = D if D.ndim == 3 else D[:, None, None] * np.eye(dim)
    squares = _reduced(comm, tensor.min(axis=0, initial=np.inf), MPI.MIN)
    if np.any(squares != _reduced(comm, tensor.max(axis=0, initial=-np.inf), MPI.MAX)):
        squares = np.zeros((dim, dim, K, K))
        for (j, k), form in problem.local_squares.items():
            squares[j, k] = modes.T @ (form @ modes)
        squares = _reduced(comm, squares, MPI.SUM)
        for j, k in problem.local_squares:
            squares[j, k] = squares[k, j] = 0.5 * (squares[j, k] + squares[j, k].T)
    return Gauge(problem.periodic, 0.5 * (drifts - drifts.transpose(0, 2, 1)), squares, fastest)


def _reduced(comm, local: np.ndarray, op: MPI.Op) -> np.ndarray:
    result = np.empty_like(local)
    comm.Allreduce(np.ascontiguousarray(local), result, op=op)
    return result


def moves(waveform, direction: np.ndarray, axes: tuple[int, ...]) -> bool:
    """Whether there is a gradient along the periodic axes."""
    if not waveform.vector:
        return bool(np.any(direction[list(axes)]))
    return any(np.any(f[:, list(axes)]) for _, _, f in _intervals(waveform))


def first_step(acquisition: Acquisition, axes: tuple[int, ...]) -> float | None:
    """Piece length, ms, that cuts every waveform's longest interval where the operator varies.

    It varies with f, and along periodic axes with F = int f. None where it varies nowhere: then
    the length of pieces does not matter.
    """
    driven = {k for row, k in enumerate(acquisition.waveform_index) if axes and moves(
        acquisition.waveforms[k], acquisition.directions[row], axes)}
    longest = []
    for k, waveform in enumerate(acquisition.waveforms):
        used = axes if k in driven else ()
        lengths = [stop - start for start, stop, f in _intervals(waveform)
                   if not _constant(waveform, f, used)]
        longest += [max(lengths)] if lengths else []
    return float(min(longest)) / 4 if longest else None


def pieces(waveform, max_step: float, fold: int, axes: tuple[int, ...], dim: int) -> tuple:
    """(duration, `Wave`) of what is to be propagated; 0.0 for a `Wave` that is zero.

    Args:
        waveform: with gradients along ``axes``.
        max_step: longest piece in ms where Q varies.
        fold: stop at TE / 2 if it is not 0.
        axes: the periodic ones.
        dim: of the mesh.
    """
    durations, times, whole = [], [], []
    for start, stop, f in _intervals(waveform, bool(fold)):
        constant = _constant(waveform, f, axes)
        count = 1 if constant else max(1, int(np.ceil(
            (stop - start) / (2 * max_step) * (1 - _EQUAL))))
        length = (stop - start) / count
        nodes = np.full(2, 0.5) if constant else _NODES
        times += list(start + length * (np.arange(count)[:, None] + nodes))
        durations += [length] * count
        whole += [constant] * count
    times = np.array(times)
    f, F = waveform(times), waveform.integral(times)
    if waveform.vector:
        f, F = f[..., :dim], F[..., :dim]
    FF = F[..., :, None] * F[..., None, :] if waveform.vector else F**2
    small = _EQUAL * waveform.peak
    result = []
    for k, (duration, constant) in enumerate(zip(durations, whole, strict=True)):
        if constant:
            still = np.all(np.abs(f[k]) <= small) and np.all(
                np.abs(F[k]) <= small * waveform.echo_time)
            wave = 0.0 if still else Wave(*(_plain(values[k, 0]) for values in (f, F, FF)))
            result.append((duration, wave))
            continue
        for weights in ((_NEAR, _FAR), (_FAR, _NEAR)):
            means = (np.tensordot(weights, values[k], axes=1) for values in (f, F, FF))
            result.append((0.5 * duration, Wave(*map(_plain, means))))
    return tuple(result)


def propagation(basis, wave: Wave, direction: tuple[float, ...], q: np.ndarray, duration: float,
                operators: dict) -> Propagation:
    """The exponential of one piece.

    Args:
        basis: `Eigenmodes` with a gauge.
        direction: of the gradient, empty for a vector waveform.
        q: ``(C,)`` strength of each column, rad/(ms um).
        operators: a cache for one basis, from direction to its operators.
    """
    gauge = basis.gauge
    rate, phase, square = (np.asarray(mean) for mean in (wave.rate, wave.phase, wave.square))
    if direction:
        if direction not in operators:
            operators[direction] = _along(basis, np.array(direction))
        N, X, C, reach, size = operators[direction]
        Y, Z = phase * N + rate * X, square * C
        reach, wave_number, excess = abs(rate) * reach, abs(phase) * size, square - phase**2
        excess = excess * size**2
    else:
        fixed = _fixed(gauge, len(rate))
        Y = np.tensordot(phase, gauge.drifts, axes=1) + np.tensordot(
            np.where(fixed, rate, 0.0), basis.positions, axes=1)
        inside = np.where(np.add.outer(fixed, fixed), 0.0, square)
        Z = np.tensordot(inside, gauge.squares, axes=2)
        reach = np.abs(np.where(fixed, rate, 0.0)) @ basis.reach
        phase = np.where(fixed, 0.0, phase)
        wave_number = np.linalg.norm(phase)
        spread = np.linalg.eigvalsh(inside - np.outer(phase, phase))
        excess = spread[np.abs(spread).argmax()]
    # (grad - i Q) adds at most |Q| to the wave number of a mode; means add their variance, which
    # weights of both signs may make negative
    strongest = float(np.abs(q).max(initial=0.0))
    root = np.sqrt(max(basis.eigenvalues[-1], 0.0)) + (
        np.sqrt(gauge.fastest) * wave_number * strongest)
    beyond = float(gauge.fastest * excess * strongest**2)
    interval = (min(beyond, 0.0), float(root**2) + max(beyond, 0.0))
    return Propagation(basis.eigenvalues, Y, q, float(reach), duration, Z, interval)


def _along(basis, direction: np.ndarray) -> tuple:
    """Drift, position and square along a direction; reach of the position; |direction| inside."""
    gauge = basis.gauge
    fixed = _fixed(gauge, len(direction))
    inside, outside = np.where(fixed, 0.0, direction), np.where(fixed, direction, 0.0)
    return (np.tensordot(inside, gauge.drifts, axes=1),
            np.tensordot(outside, basis.positions, axes=1),
            np.tensordot(np.outer(inside, inside), gauge.squares, axes=2),
            float(np.abs(outside) @ basis.reach), float(np.linalg.norm(inside)))


def _fixed(gauge: Gauge, dim: int) -> np.ndarray:
    return ~np.isin(np.arange(dim), gauge.axes)


def _constant(waveform, f: np.ndarray, axes: tuple[int, ...]) -> bool:
    """Whether neither f nor its integral along the periodic axes varies; f at points inside."""
    if np.any(np.abs(f - f[:1]) > _EQUAL * waveform.peak):
        return False
    return not axes or not np.any(f[:, list(axes)] if waveform.vector else f)


def _intervals(waveform, half: bool = False):
    """Smooth intervals up to TE, or to TE / 2: start, stop and values of f inside."""
    edges = np.asarray(waveform.breakpoints)
    if half:
        middle = waveform.echo_time / 2
        edges = np.append(edges[edges < middle - _EQUAL * waveform.echo_time], middle)
    inside = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(17) + 0.5) / 17
    f = waveform(inside)
    f[np.abs(f) <= _EQUAL * waveform.peak] = 0.0
    return zip(edges[:-1], edges[1:], f, strict=True)


def _plain(mean):
    """A number, or nested tuples: they are hashed."""
    return tuple(_plain(part) for part in mean) if np.ndim(mean) else float(mean)
