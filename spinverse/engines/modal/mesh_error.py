"""How far signals are off for the mesh: what polynomials of one more degree would change.

With u the magnetisation of a measurement in the space of the mesh and z its adjoint, S = z . u at
any time. Functions of a larger space that are not in this one are rough, hence fast: they follow
what they are driven by, the residuals of the two equations in the larger space,

    r_u = M u' + L(t) u,    r_z = -M z' + L(t)^T z,    dS = int r_z . (A + s M)^-1 r_u dt

to leading order (weighted by the dual: Becker and Rannacher, Acta Numerica 10 (2001) 1). A few
steps of conjugate gradients do for the inverse, as residuals have next to no part in the space of
the mesh; the integral is a sum over the middles of some pieces. L(t)^T is L(t) with the opposite Q:
all operators of the matrix formalism are symmetric but for the drift.
"""

from __future__ import annotations

from dataclasses import dataclass

import dolfinx
import numpy as np
import ufl

from ... import forms
from ...acquisition.table import Acquisition
from ...parallel.columns import inner
from ...parallel.rows import Rows
from ...phases import phase
from ...problem import BlochTorrey
from ..basis.blocks import conjugate_gradients
from ..basis.eigenmodes import Eigenmodes
from ..basis.parts import combined
from ..schedule.echoes import refocusing_times
from ..schedule.groups import mirror_sign
from ..schedule.waves import Wave
from .chebyshev import Propagation
from .matrix_formalism import MatrixFormalism
from .steps import Rest, Stored, drifting, stored_rest
from .turned_bases import TurnedBases

PIECES = 8  # of TE, at least
STEPS = 4  # of conjugate gradients
LARGE = 1e-2  # of S(b=0, t=0): an error that is said; noise is about as large at best


@dataclass(frozen=True, eq=False)
class _Piece:
    """ms; g, rad/(ms um), its mean; int g in the middle, rad/um, and Q of it; sign of the echo.

    And whether the magnetisation is stored along z.
    """

    duration: float
    g: np.ndarray
    F: np.ndarray
    Q: np.ndarray
    sign: float
    stored: bool


def mesh_error(engine: MatrixFormalism) -> float:
    """For the strongest measurement and a middle one the larger, of S / S(b=0, t=0). Collective.

    After `MatrixFormalism.signals`.
    """
    return error_in(engine.problem, engine.bases, engine.ratio, engine.acquisition)


@phase("error of the mesh")
def error_in(problem: BlochTorrey, bases: list[Eigenmodes], ratio: float | None,
             table: Acquisition) -> float:
    """As `mesh_error`, for measurements that the modes of ``bases`` are enough for.

    Args:
        ratio: of the start to what receives, None if there is none.
    """
    estimate = _Estimate(problem, bases, ratio)
    changes = []
    for row in _looked_at(table.b):
        antisymmetric = mirror_sign(table.waveforms[table.waveform_index[row]]) < 0
        changes.append(estimate(_pieces(problem, table, row), antisymmetric))
    return estimate.largest(changes)


@phase("error of the mesh")
def error_of_states(engine: TurnedBases) -> float:
    """As `mesh_error`, of measurements along the direction of the strongest gradient. Collective.

    After the engine's signals.
    """
    problem, table, rows = engine.problem, engine.acquisition, engine.of_strongest
    estimate = _Estimate(problem, [], engine.ratio)
    changes = []
    for row in rows[_looked_at(table.b[rows])]:
        pieces = _pieces(problem, table, row)
        times = np.cumsum([piece.duration for piece in pieces])
        times = times - [piece.duration / 2 for piece in pieces]

        def residuals(back, row=row, pieces=pieces, times=times):
            # where the two equations meet, adjoints are in the order of their own time
            states, rates = engine.states(row, times, back)
            ordered = pieces[::-1] if back else pieces
            return np.hstack([estimate.residual_of(piece, states[:, k], rates[:, k])
                              for k, piece in enumerate(ordered)])

        forward = engine.ratio * residuals(False)
        adjoint = _backward(forward, [1.0, -1.0]) / engine.ratio if mirror_sign(
            table.waveforms[table.waveform_index[row]]) < 0 else _backward(residuals(True))
        changes.append(estimate.change(pieces, forward, adjoint))
    return estimate.largest(changes)


def _looked_at(b: np.ndarray) -> np.ndarray:
    """Numbers of a middle b and of the largest."""
    order = np.argsort(b, kind="stable")
    order = order[b[order] > 0]
    return np.unique(order[[len(order) // 2, -1]]) if len(order) else order


def _pieces(problem: BlochTorrey, table, row: int) -> list[_Piece]:
    waveform, dim = table.waveforms[table.waveform_index[row]], problem.mesh.dim
    scale = table.strength[row] * (1.0 if waveform.vector else table.directions[row, :dim])
    turns = refocusing_times(waveform) if problem.num_fields > 1 else ()
    edges = np.unique([*waveform.breakpoints, *turns])
    counts = np.ceil(np.diff(edges) / waveform.echo_time * PIECES).astype(int)
    edges = np.concatenate([np.linspace(a, b, n, endpoint=False) for a, b, n in zip(
        edges[:-1], edges[1:], counts, strict=True)] + [edges[-1:]])
    middles, durations = (edges[1:] + edges[:-1]) / 2, np.diff(edges)

    def along(values):  # (n,) or (n, 3)
        return (values[:, :dim] if waveform.vector else values[:, None]) * scale

    g = along(np.diff(waveform.integral(edges), axis=0)) / durations[:, None]
    F = along(waveform.integral(middles))
    Q = F * np.isin(np.arange(dim), problem.periodic)
    signs = [(-1.0) ** sum(turn < middle for turn in turns) for middle in middles]
    return [_Piece(*each) for each in zip(durations.tolist(), g, F, Q, signs,
                                          waveform.stored(middles).tolist(), strict=True)]


class _Estimate:
    """For measurements of one problem in its modes."""

    def __init__(self, problem: BlochTorrey, bases: list[Eigenmodes], ratio: float | None):
        self.problem, self.bases, self.ratio = problem, bases, ratio
        fine = self.fine = BlochTorrey(problem.tissue, problem.degree + 1)
        fine.set_permeability(problem.kappa.x.array[: problem.mesh.num_owned_facets])
        self.u, self.rate = (dolfinx.fem.Function(problem.pair_space) for _ in range(2))
        v, c = ufl.TestFunction(fine.pair_space), problem.coefficients
        self._form = problem.compile(forms.mass(self.rate, v, c) + problem.weak_form(self.u, v))
        self._vector = dolfinx.fem.create_vector(fine.pair_space)
        A, M = fine.decay_matrix(), fine.mass_matrix
        self.matrix = A.copy()
        extent = float(np.max(problem.mesh.bounds[1] - problem.mesh.bounds[0]))
        # any rate that is small beside those of rough functions keeps it definite
        self.matrix.axpy(min((float(b.eigenvalues[-1]) for b in self.bases), default=0.0) / 1e2
                         + 1 / extent**2, M)
        fine.release(A)
        self._rows = Rows(self.matrix, np.float64)
        diagonal = self.matrix.getDiagonal()
        self._diagonal = diagonal.array_r[:, None].copy()
        diagonal.destroy()

    def __call__(self, pieces: list[_Piece], antisymmetric: bool) -> complex:
        """What one more degree adds to a signal, um^d times density. Collective.

        ``antisymmetric``: the waveform is.
        """
        mirrored = antisymmetric and self.ratio is not None and not len(self.bases[0].fields)
        forward = self._residuals(pieces, [basis.start for basis in self.bases], 1.0)
        if mirrored:
            # f(TE - t) = -f(t): L^T at TE - t is the conjugate of L at t, and so is all else
            adjoint = _backward(forward, [1.0, -1.0]) / self.ratio
        else:
            adjoint = self._residuals(pieces[::-1], [basis.receive for basis in self.bases], -1.0)
            adjoint = _backward(adjoint)
        return self.change(pieces, forward, adjoint)

    def largest(self, changes: list[complex]) -> float:
        """Of S(b=0, t=0), and the end of all estimates."""
        self.matrix.destroy()
        scale = abs(self.problem.magnetisation_at_start) or 1.0
        return max(map(abs, changes), default=0.0) / scale

    def change(self, pieces: list[_Piece], forward: np.ndarray, adjoint: np.ndarray) -> complex:
        """What residuals in the middles of pieces, in the order of time, come to. Collective."""
        answer = conjugate_gradients(self._rows, lambda r: r / self._diagonal, forward, STEPS)
        total = 0j
        for k, piece in enumerate(pieces):
            pair = slice(2 * k, 2 * k + 2)  # real and imaginary part
            product = inner(self.problem.comm, adjoint[:, pair], answer[:, pair])
            total += piece.duration * complex(product[0, 0] - product[1, 1],
                                              product[0, 1] + product[1, 0])
        return total

    def _residuals(self, pieces: list[_Piece], starts: list[np.ndarray],
                   turn: float) -> np.ndarray:
        """Real and imaginary parts in the middle of each piece, side by side. Collective."""
        states, found = [start[:, None].astype(complex) for start in starts], []
        for piece in pieces:
            steps = [_step(basis, piece, turn) for basis in self.bases]
            states = [step.forward(u) for step, u in zip(steps, states, strict=True)]
            found.append(self._residual(piece, states, turn))
            states = [step.forward(u) for step, u in zip(steps, states, strict=True)]
        return np.hstack(found)

    def _residual(self, piece: _Piece, states: list[np.ndarray], turn: float) -> np.ndarray:
        """Owned columns of its real and imaginary part in the larger space. Collective."""
        problem = self.problem
        # each part that is like another one counts as much as that; the root, for both equations
        both = [np.sqrt(basis.count) * np.exp(-1j * turn * (piece.F @ basis.about)) * np.hstack(
            [u, -_applied(basis, piece, u, turn)]) for basis, u in zip(
            self.bases, states, strict=True)]
        values = problem.unknowns.broken(combined(
            problem, self.bases, [each.view(float) for each in both], copies=False))
        return self._assembled(piece, values, turn)

    def residual_of(self, piece: _Piece, state: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """As `_residual`, of this rank's unknowns and their rates, ``(n,)`` complex. Collective."""
        unknowns = self.problem.unknowns
        pair = np.column_stack([state.real, state.imag, rate.real, rate.imag])
        return self._assembled(piece, unknowns.broken(unknowns.local(pair)), 1.0)

    def _assembled(self, piece: _Piece, values: np.ndarray, turn: float) -> np.ndarray:
        """Of values ``(n, 4)`` at owned broken dofs: of the state and of its rate."""
        problem, fine = self.problem, self.fine
        for function, part in zip((self.u, self.rate), np.hsplit(values, 2), strict=True):
            function.x.array[: part.size] = part.ravel()
            function.x.scatter_forward()
        problem.g.value[:], problem.echo_sign.value = piece.g, piece.sign
        problem.stored.value = float(piece.stored)
        if problem.periodic:
            problem.Q.value[:] = turn * piece.Q
        self._vector.array[:] = 0.0
        dolfinx.fem.assemble_vector(self._vector.array, self._form)
        self._vector.scatter_reverse(dolfinx.la.InsertMode.add)
        problem.g.value[:], problem.echo_sign.value = 0.0, 1.0
        problem.stored.value = 0.0
        owned = self._vector.array.reshape(-1, 2)[: fine.space.dofmap.index_map.size_local]
        return fine.unknowns.owned_loads(owned)


def _step(basis: Eigenmodes, piece: _Piece, turn: float) -> Propagation | Rest | Stored:
    """The exponential of half a piece."""
    if basis.gauge is not None:
        wave = Wave(tuple(piece.g), tuple(turn * piece.Q),
                    tuple(map(tuple, np.outer(piece.Q, piece.Q))), piece.stored)
        return drifting(basis, wave, (), np.ones(1), piece.duration / 2, {})
    if piece.stored:
        return stored_rest(basis, piece.duration / 2)
    number = _field(basis, piece)
    if number is None and not piece.g.any():
        return Rest(basis.eigenvalues, piece.duration / 2)
    field, bound = (None, 0.0) if number is None else (
        basis.fields[number], basis.field_reach[number])
    return Propagation(basis.eigenvalues, np.tensordot(piece.g, basis.positions, axes=1),
                       np.ones(1), float(np.abs(piece.g) @ basis.reach), piece.duration / 2,
                       field=field, field_reach=bound)


def _applied(basis: Eigenmodes, piece: _Piece, u: np.ndarray, turn: float) -> np.ndarray:
    """L u, or with ``turn`` -1 L^T u."""
    decayed, still = basis.eigenvalues[:, None] * u, np.ones(len(piece.g), dtype=bool)
    if piece.stored:
        decayed = decayed + basis.storage @ u
    if not (piece.g.any() or piece.Q.any() or len(basis.fields)):
        return decayed
    turning = np.zeros((len(basis), len(basis)))
    if basis.gauge is not None:
        still[list(basis.gauge.axes)] = False
        turning += np.tensordot(turn * piece.Q, basis.gauge.drifts, axes=1)
        square = np.tensordot(np.outer(piece.Q, piece.Q), basis.gauge.squares, axes=2)
        decayed = decayed + (square @ u if np.ndim(square) else square * u)
    turning += np.tensordot(np.where(still, piece.g, 0.0), basis.positions, axes=1)
    turning += np.eye(len(basis)) * (piece.g @ basis.about)
    if (number := _field(basis, piece)) is not None:
        turning += basis.fields[number]
    return decayed + 1j * (turning @ u)


def _field(basis: Eigenmodes, piece: _Piece) -> int | None:
    return (len(basis.fields) > 1 and piece.sign < 0) * 1 if len(basis.fields) else None


def _backward(pairs: np.ndarray, factors=(1.0, 1.0)) -> np.ndarray:
    """Pairs of columns in the other order, times a factor each; a rank may have no rows."""
    columns = np.arange(pairs.shape[1]).reshape(-1, 2)[::-1].ravel()
    return pairs[:, columns] * np.tile(factors, len(columns) // 2)
