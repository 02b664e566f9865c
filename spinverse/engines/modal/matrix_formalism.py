"""Matrix formalism: all measurements as small dense evolutions in the lowest diffusion modes.

Callaghan (1997), Barzykin (1998), Grebenkov (2007): with Phi the modes, Lambda their
eigenvalues and X_j = Phi^T x_j Phi,

    u' = -(Lambda + i g(t) . X) u,        S = receive . u(TE).

Pieces of constant gradient are propagated exactly (`chebyshev.py` beside this); other waveforms are
cut into pieces of fourth order in their length (`spinverse.acquisition.waveform`). While
magnetisation is stored along z, u' = -(Lambda + R) u, R = Phi^T (1/T1 - 1/T2) Phi. All operators
are symmetric, so a waveform with f(TE - t) = -f(t) needs its first half only:
S = conj(l)^T exp(-Lambda tau) u, where u and l are start and receive after that half and tau is
the gap in the middle. With f(TE - t) = f(t) it is l^T exp(-Lambda tau) u. Along periodic axes the
modes drift instead: see `spinverse.engines.basis.drifting`.

Extra terms take part if they have the structure that `spinverse.extra_terms` tells: what decays is
in Lambda, what turns with the gradient in X, and what turns without it is a field B,
u' = -(Lambda + i B + i g(t) . X) u, under which waveforms are run as a whole.

One eigenproblem serves all measurements; these are shared out over the ranks by direction. Parts of
the tissue that exchange nothing have one each, and signals of their own that add up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np

from ...acquisition.table import Acquisition
from ...errors import InputError
from ...extra_terms import has
from ...parallel.exchange import reduced
from ...phases import phase
from ...problem import BlochTorrey
from ...unknowns import with_ghosts
from .. import silent
from ..basis.eigenmodes import Eigenmodes, eigenmodes
from ..basis.parts import Parts, packed_columns
from ..basis.responses import response_basis
from ..schedule.groups import Batch, batches, check_directions, plan
from ..schedule.storage import STORED, stores
from ..schedule.waves import Wave
from .chebyshev import Propagation, Store
from .choice import Choice
from .coefficients import ModeDerivatives, add_up
from .steps import (
    Rest,
    Stored,
    divided_differences,
    drifting,
    real_product,
    step_in_field,
    stored_rest,
)

FUNCTIONS = ("modes", "responses")
_PER_PULSE = 2.0  # pole of the responses, times the time that a gradient is on for


class MatrixFormalism:
    """Signals and their exact derivative with respect to the facet permeabilities.

    Args:
        problem: the discrete problem; extra terms as above.
        acquisition: the measurements.
        modes: number of modes, or "auto": as many as `tolerance` needs, found at the first call.
        tolerance: wanted absolute error of the normalised signal from cutting the spectrum.
        max_step: ms; pieces of a waveform that is not piecewise constant, or of any gradient along
            a periodic axis.
        functions: what a given number of modes is made of: "modes", the lowest ones, or
            "responses" of the start to the gradients (`response_basis`), of which fewer do where
            walls are half closed. "auto" takes the lowest modes, for its estimate is of them.

    Raises:
        InputError: an argument that makes no sense, or extra terms of another structure
            (`spinverse.extra_terms.Unsuitable`).
    """

    def __init__(self, problem: BlochTorrey, acquisition: Acquisition,
                 modes: int | str = "auto", tolerance: float = 1e-5, max_step: float = 0.1,
                 functions: str = "modes"):
        if modes != "auto" and not (isinstance(modes, int) and modes > 0):
            raise InputError(f"modes: {modes!r}, expected a positive number or 'auto'")
        if not tolerance > 0:
            raise InputError(f"tolerance: {tolerance!r}, expected a positive number")
        if functions not in FUNCTIONS:
            raise InputError(f"functions: {functions!r}, expected one of {', '.join(FUNCTIONS)}")
        self.problem, self.acquisition = problem, acquisition
        self.modes, self.tolerance, self.functions = modes, tolerance, functions
        self.basis: Eigenmodes | None = None  # of all of the problem at once
        self.parts: list[Eigenmodes] = []  # or of its parts
        self.estimated_error = np.nan
        # how many fields there are: of extra terms, for each sign of the echo
        self._fields = problem.num_fields
        self._derivatives = ModeDerivatives(problem)
        # start = ratio * receive, if there is such a ratio: then one half serves both
        found = set(np.unique(problem.initial / problem.scale).tolist())
        found = set().union(*problem.comm.allgather(found))
        self.ratio = found.pop() if len(found) == 1 else None
        check_directions(acquisition, problem.mesh)
        self._stores = stores(problem, acquisition)
        self.share_out(max_step)
        self.choice, self._store = Choice(self), Store()
        self._tape: list[tuple] = []
        self._taped: list[Eigenmodes] = []
        self.progress: Callable[[str, int, int], None] = silent

    def signals(self, permeability: np.ndarray | None = None, remember: bool = False) -> np.ndarray:
        """Complex signals, ``(N,)``, um^3 times density, the same on every rank. Collective.

        Args:
            permeability: ``(nf,)`` um/ms of the owned facets; the present one if not given.
            remember: keep what `gradient` needs.
        """
        self.find_modes(permeability, True, remember)
        return self.evolve(remember)

    @property
    def num_modes(self) -> int:
        """Of the last signals, of all parts."""
        return sum(basis.count * len(basis) for basis in self.bases)

    @property
    def bases(self) -> list[Eigenmodes]:
        """Of the last signals: `basis`, or `parts`."""
        return self.parts or ([] if self.basis is None else [self.basis])

    def find_modes(self, permeability: np.ndarray | None = None, by_parts: bool = False,
                   remember: bool = False) -> Eigenmodes | None:
        """The modes at a permeability, ``(nf,)`` um/ms; as it is if nothing is said. Collective.

        With ``by_parts`` and modes "auto" in `parts`, of parts that exchange nothing, if there are
        any. To ``remember``, touching parts are one: facets between them have a derivative.
        """
        if permeability is not None:
            self.problem.set_permeability(permeability)
        self.parts = []
        if by_parts and isinstance(self.modes, str) and self.functions == "modes":
            parts = Parts(self.problem, remember)
            if parts.worth_it:
                self.basis = None
                self.parts, self.estimated_error = self.choice.of_parts(parts)
                return None
        if isinstance(self.modes, str):
            self.basis, self.modes, self.estimated_error = self.choice.of_whole()
            return self.basis
        self.progress(f"{self.modes} modes", 0, 0)
        if self.functions == "modes" or self.problem.periodic or (
                self.modes >= self.problem.num_unknowns):
            self.basis = eigenmodes(self.problem, self.modes)
        else:
            self.basis = response_basis(self.problem, self.modes, *self._reach_of_gradients())
        return self.basis

    def _reach_of_gradients(self) -> tuple[float, float]:
        """A rate, 1/ms, and the strongest gradient, rad/(ms um): see `response_basis`."""
        longest = max((group.cost / len(group.rows) for group in self.groups), default=0.0)
        table = self.acquisition
        peaks = np.array([waveform.peak for waveform in table.waveforms])
        return (_PER_PULSE / (longest or max(waveform.echo_time for waveform in table.waveforms)),
                float(np.max(table.strength * peaks[table.waveform_index], initial=0.0)))

    @phase("propagation")
    def evolve(self, remember: bool = False) -> np.ndarray:
        """Signals in the present modes. Collective."""
        if remember:
            self._tape = []  # before there is a new one: both at once would be twice the memory
            self._store.restart()
        bases = self.bases
        found: list[tuple] = []
        number = len(self._batches) * len(bases)
        for basis in bases:
            for batch in self._batches:
                self.progress("signals", len(found), number)
                found.append(self.evolve_batch(basis, batch, remember, store=self._store))
        if remember:
            self._tape, self._taped = [taped for _, taped in found], bases
        counts = np.repeat([basis.count for basis in bases], len(self._batches))
        return self.added_up(self._batches * len(bases), [
            count * signals for count, (signals, _) in zip(counts, found, strict=True)])

    def gradient(self, adjoint: np.ndarray) -> np.ndarray:
        """Derivative of J with respect to the permeability of the owned facets. Collective.

        It is the exact derivative of the signals with the modes as a fixed Galerkin basis; how
        they turn out of their own span is left out, and vanishes as their number grows.

        Args:
            adjoint: ``(N,)`` complex w with dJ = Re sum(conj(w) dS), the same on every rank.

        Returns:
            ``(nf,)``, zero on tied facets; after ``signals(..., remember=True)``.
        """
        return self.gradients(adjoint, [self.problem.kappa])[0]

    def gradient_of(self, coefficient, adjoint: np.ndarray) -> np.ndarray:
        """Derivative of J with respect to one coefficient; see `gradients`. Collective."""
        return self.gradients(adjoint, [coefficient])[0]

    def gradients(self, adjoint: np.ndarray, coefficients: list) -> list[np.ndarray]:
        """As `gradient`, by coefficients of the weak form: `TimeStepping.gradients`. Collective.

        Raises:
            InputError: a coefficient that the weak form does not contain, or the diffusivity on a
                periodic box.
        """
        problem = self.problem
        # by facets alone, unless terms on membranes change with the permeability too
        facets = [c is problem.kappa and not has(problem.extra_form, c) for c in coefficients]
        others = [None if alone else self._derivatives(coefficient)
                  for coefficient, alone in zip(coefficients, facets, strict=True)]
        operators = self._by_operator(adjoint, not (
            problem.periodic or problem.extra_blocks is None or all(facets)))
        if not all(facets):
            add_up(self._derivatives, [each for each in others if each is not None],
                   self._taped, operators)
        return [self._contract([each[0] for each in operators]) if other is None
                else other.result() for other in others]

    @phase("propagation back")
    def _by_operator(self, adjoint: np.ndarray, turning: bool = False) -> list[np.ndarray]:
        """Derivatives by Lambda, ``(1, K, K)`` of each basis; and by its `turning`. Collective.

        The last one is what storage has of the first where any waveform stores magnetisation.
        """
        result, tape = [], iter(self._tape)
        for basis in self._taped:
            K = len(basis)
            total = np.zeros((1 + turning * len(basis.turning) + self._stores, K, K))
            gaps: dict[float, np.ndarray] = defaultdict(partial(np.zeros, (K, K)))
            for _ in self._batches:
                batch, left, right, forward = next(tape)
                self._pull_back(basis, batch, left, right, forward, adjoint, total, gaps)
            for gap in sorted(gaps):
                total[0] += gaps[gap] * divided_differences(basis.eigenvalues, gap)
            result.append(reduced(self.problem.comm, 0.5 * (total + total.transpose(0, 2, 1))))
        return result

    def share_out(self, max_step: float) -> None:
        """Group the measurements, and choose this rank's."""
        self.max_step = max_step
        self.groups = plan(self.acquisition, max_step, self.problem.mesh.dim,
                           self.problem.periodic, self._fields)
        by_cost = sorted(range(len(self.groups)), key=lambda i: (-self.groups[i].cost, i))
        self._mine = by_cost[self.problem.comm.rank:: self.problem.comm.size]
        self._batches = batches(self.groups[i] for i in self._mine)

    def evolve_batch(self, basis: Eigenmodes, batch: Batch, remember: bool = False,
                     corrected: bool = False, store: Store | None = None) -> tuple:
        """Signals of the batch's rows; with what the omitted modes do, if ``corrected``.

        And what an adjoint needs, in memory of ``store``: batch, left and right states at the end,
        steps.
        """
        directions, count = batch.strength.shape
        double = bool(batch.fold) and self.ratio is None
        q = np.hstack([batch.strength] * (1 + double)).ravel()
        starts = np.stack([basis.start, basis.receive], axis=1)[:, : 1 + double].astype(complex)
        u = np.tile(np.repeat(starts, count, axis=1), directions)
        forward = []
        operators: dict[tuple, tuple] = {}
        drifts: dict[tuple, tuple] = {}
        for place, (duration, value, along) in enumerate(batch.pieces):
            if batch.fields:
                step = step_in_field(basis, batch.fields[place], along[0], value * q, duration,
                                     operators, corrected)
            elif value is STORED:
                step = stored_rest(basis, duration, corrected)
            elif not value:
                step = Rest(basis.eigenvalues, duration)
            elif isinstance(value, Wave):
                step = drifting(basis, value, along[0], q, duration, drifts)
            else:
                if along not in operators:
                    operators[along] = _operators(basis, along, corrected)
                X, reach, square, largest = operators[along]
                gradient = value * q
                highest = basis.eigenvalues[-1] + largest * np.max(gradient**2)
                step = Propagation(basis.eigenvalues, X, gradient, reach, duration, square,
                                   (0.0, float(highest)), store=store or Store())
            u = step.forward(u, remember)
            forward.append(step)
        u = u.reshape(len(basis), directions, -1)
        right = u[:, :, :count].reshape(len(basis), -1)
        if not batch.fold:
            left = np.repeat(basis.receive[:, None], len(batch.rows), axis=1)
        else:
            left = u[:, :, count:].reshape(len(basis), -1) if double else right / self.ratio
        decay = np.exp(-basis.eigenvalues[:, None] * batch.gap)
        signals = ((left if batch.fold > 0 else left.conj()) * decay * right).sum(axis=0)
        return signals, (batch, left, right, forward)

    def _pull_back(self, basis, batch, left, right, forward, adjoint, G, gaps):
        w = adjoint[batch.rows]
        ket = left.conj() if batch.fold > 0 else left
        for gap in set(batch.gap.tolist()) - {0.0}:
            chosen = batch.gap == gap
            gaps[gap] += real_product(w[chosen] * ket[:, chosen], right[:, chosen])
        if not forward:
            return
        p = self.at_the_end(basis, batch, w, left, right)
        if len(G) == 1:
            for step in reversed(forward):
                p = step.backward(p, G[0])
            return
        for place in reversed(range(len(forward))):
            if self._stores:
                part = np.zeros_like(G[0])
                p = forward[place].backward(p, part)
                G[0] += part
                if isinstance(forward[place], Stored):
                    G[-1] += part
            else:
                p = _backward_turning(forward[place], p, G, batch, place, len(basis.positions))

    def at_the_end(self, basis, batch: Batch, w, left, right) -> np.ndarray:
        """The adjoint that `Propagation.backward` begins with, for weights ``(n,)`` of the rows.

        S = sum(bra * decay * right); the adjoint of right is w conj(decay bra).
        """
        ket = left.conj() if batch.fold > 0 else left
        decay = np.exp(-basis.eigenvalues[:, None] * batch.gap)
        p = w * decay * ket
        if not batch.fold:
            return p
        p_left = w.conj() * decay * right if batch.fold < 0 else w * decay * right.conj()
        if self.ratio is not None:
            return p + p_left / self.ratio
        blocks = (len(basis), *batch.strength.shape)
        return np.concatenate([p.reshape(blocks), p_left.reshape(blocks)], axis=2).reshape(
            len(basis), -1)

    def added_up(self, batches: list[Batch], parts: list[np.ndarray]) -> np.ndarray:
        """All signals from those of batches that the ranks have. Collective."""
        result = np.zeros(len(self.acquisition), dtype=complex)
        for batch, part in zip(batches, parts, strict=True):
            result[batch.rows] += part
        return self.problem.comm.allreduce(result)

    @phase("facet contraction")
    def _contract(self, matrices: list[np.ndarray]) -> np.ndarray:
        """sum_ab G_ab int_F [phi_a][phi_b] for every owned facet; a matrix G for each basis."""
        problem, bases = self.problem, self._taped
        gradient = np.zeros(problem.mesh.num_owned_facets)
        if len(bases) == 1:
            free, W = free_jumps(problem, bases[0])
            if len(free):
                gradient[free] = np.einsum("ra,ra->r", W @ matrices[0], W).reshape(
                    len(free), -1).sum(axis=1)
            return gradient
        free, T = problem.free_jumps
        packed, part = packed_columns(problem, bases)
        if not len(free):
            return gradient
        W = (T @ packed).reshape(len(free), -1, packed.shape[1])
        part = part[problem.mesh.facet_cells[free, 0]]
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(len(bases) + 1))
        for k, G in enumerate(matrices):
            mine = order[bounds[k]: bounds[k + 1]]
            w = W[mine, :, : len(G)]
            gradient[free[mine]] = np.einsum("fra,fra->f", w @ G, w)
        return gradient


def _backward_turning(step, p: np.ndarray, G: np.ndarray, batch: Batch, place: int,
                      dim: int) -> np.ndarray:
    """Pull back through one piece, adding to the derivatives of `MatrixFormalism._by_operator`."""
    if isinstance(step, Rest):
        return step.backward(p, G[0])
    along = batch.pieces[place][2]
    by_position, by_field = np.zeros((len(along), *G[0].shape)), np.zeros_like(G[0])
    p = step.backward(p, G[0], (by_position, by_field))
    for direction, by in zip(along, by_position, strict=True):
        for axis, part in enumerate(direction):
            G[1 + axis] += part * by
    if batch.fields:
        G[1 + dim + batch.fields[place]] += by_field
    return p


def _operators(basis: Eigenmodes, along: tuple[tuple[float, ...], ...], corrected: bool) -> tuple:
    """Positions along D directions ``(D, K, K)``, their reach, and what omitted modes add."""
    X = np.tensordot(np.array(along), basis.positions, axes=1)
    reach = float(np.max(np.abs(along) @ basis.reach))
    if not corrected:
        return X, reach, 0.0, 0.0
    C = basis.omitted(along[0])
    return X, reach, C, max(float(np.linalg.eigvalsh(C)[-1]), 0.0)


def free_jumps(problem: BlochTorrey, basis: Eigenmodes) -> tuple[np.ndarray, np.ndarray]:
    """Owned facets that are not tied, ``(n,)``, and modes' jumps, ``(n * nq, K)``. Collective."""
    free, T = problem.free_jumps
    return free, T @ (basis.columns if problem.unknowns.tied
                      else with_ghosts(problem.space.dofmap.index_map, basis.modes))
