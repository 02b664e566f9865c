"""One stage of a reconstruction that looks for the permeability of every facet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from petsc4py import PETSc
from pyadjoint import Control, Tape, continue_annotation, pause_annotation, set_working_tape

from ...acquisition import Acquisition
from ...adjoint import FacetField, SignalVector, mapped, scalar
from ...adjoint.blocks import apply
from ...engines.shapes.walls import between
from ...errors import InputError
from ..ledger import Ledger, State
from ..parameters import KINDS
from ..problem import InverseProblem
from ..verdict import ERRORS
from .adam import Adam
from .controls import CONTROLS, FromLog, LogPermeability
from .facet_graph import FacetGraph
from .gauss_newton import GaussNewton, Linearisation
from .memory import Keeper
from .numbers import Both, NumberPrior, Numbers, OfFacets, SignalsOfBoth
from .optimise import BacktrackingFunctional, StopStage, minimise
from .priors import PRIORS
from .tao import TAO

FACETS = ("all", "walls")
_GAIN = 0.99  # of the loss `Stage.patience` iterations before: what is above is no gain


@dataclass(frozen=True)
class Stage:
    """Permeabilities of facets by an optimiser, on some of the measurements, with priors.

    Attributes:
        name: for the history.
        iterations: at most so many.
        sequences: "all", or which ones, counted from the longest diffusion time: ``(0,)``.
        b_max: leave out larger b-values, s/mm^2.
        every: look at every n-th direction only.
        weights: weight of each sequence, from the longest; 1 where nothing is said.
        control: "log" (bounded) or "squashed" (the published one).
        priors: weight of each prior, or (first, last) of a linear ramp over the stage.
        optimiser: `TAO`, `Adam` or `GaussNewton`.
        misfit_weight: what the misfit is multiplied by in the loss.
        stop_at: stop when the data misfit (mean square) falls below.
        restart: um/ms; start anew from this uniform permeability, and go on with the result only
            if it fits this stage's measurements better than the one before it.
        skip_below: leave a stage that restarts out when the present one fits better than this.
        patience: a TAO stage ends when the loss has not fallen by 1 % over so many iterations.
        facets: "all", or "walls": those between the labels of a search, within the range of
            unknown wall permeabilities, while the others stay as they are. Such a stage is left
            out where the present permeabilities explain the data: up to noise, or `skip_below`.
    """

    name: str
    iterations: int = 50
    sequences: str | tuple[int, ...] = "all"
    b_max: float = np.inf
    every: int = 1
    weights: tuple[float, ...] = ()
    control: str = "log"
    priors: dict = field(default_factory=dict)
    optimiser: TAO | Adam | GaussNewton = field(default_factory=TAO)
    misfit_weight: float = 100.0
    stop_at: float = 0.0
    restart: float | None = None
    skip_below: float = 0.0
    patience: int = 20
    facets: str = "all"

    def __post_init__(self):
        if self.control not in CONTROLS:
            raise InputError(f"stage {self.name!r}: control {self.control!r}, "
                             f"expected one of {', '.join(CONTROLS)}")
        for name in self.priors:
            if name not in PRIORS:
                raise InputError(f"stage {self.name!r}: prior {name!r}, "
                                 f"expected one of {', '.join(PRIORS)}")
        if self.facets not in FACETS:
            raise InputError(f"stage {self.name!r}: facets {self.facets!r}, "
                             f"expected one of {', '.join(FACETS)}")
        if self.facets == "walls" and self.restart is not None:
            raise InputError(f"stage {self.name!r}: restart {self.restart:g} with facets walls, "
                             "expected no restart")
        if self.every < 1:
            raise InputError(f"stage {self.name!r}: every {self.every}, expected at least 1")
        if self.iterations < 1:
            raise InputError(f"stage {self.name!r}: iterations {self.iterations}, "
                             "expected at least 1")

    def rows(self, acquisition: Acquisition) -> np.ndarray:
        """Rows of the table that this stage looks at, ``(n,)``."""
        rank = sequence_ranks(acquisition)
        chosen = acquisition.b <= self.b_max
        if self.sequences != "all":
            count = len(acquisition.waveforms)
            # a table with fewer sequences than the preset knows: the shortest stands in
            wanted = {min(int(number), count - 1) for number in self.sequences}
            chosen &= np.isin(rank[acquisition.waveform_index], sorted(wanted))
        _, direction = np.unique(acquisition.directions, axis=0, return_inverse=True)
        chosen &= (direction.ravel() % self.every == 0) | (acquisition.b == 0)
        if not (chosen & (acquisition.b > 0)).any():
            raise InputError(f"stage {self.name!r}: sequences {self.sequences!r} up to b = "
                             f"{self.b_max:g} s/mm^2 choose no measurement with b > 0")
        for waveform in np.unique(acquisition.waveform_index[chosen]):
            chosen[acquisition.reference_rows(waveform)] = True
        return np.flatnonzero(chosen)

    def row_weights(self, acquisition: Acquisition) -> np.ndarray:
        """Weight of every row of the (whole) table, ``(N,)``."""
        rank = sequence_ranks(acquisition)[acquisition.waveform_index]
        weights = np.ones(len(acquisition.waveforms))
        weights[: len(self.weights)] = self.weights[: len(weights)]
        return weights[rank]

    def prior_weights(self, iteration: int) -> dict[str, float]:
        """Weight of each prior at an iteration of this stage."""
        share = min(1.0, iteration / max(1, self.iterations - 1))
        return {name: float(np.interp(share, [0, 1], np.broadcast_to(weight, 2)))
                for name, weight in self.priors.items()}

    # ---- running it -----------------------------------------------------------------------------

    def check(self, problem: InverseProblem) -> None:
        """Raise InputError for what would else be noticed in the middle of a run."""
        self.rows(problem.acquisition)
        problem.forward(problem.permeability(1.0).values)  # terms and coefficients
        if isinstance(self.optimiser, GaussNewton) and problem.engine != "matrix_formalism":
            raise InputError(f"stage {self.name!r}: optimiser gauss_newton with engine "
                             f"{problem.engine}, expected engine matrix_formalism (it gives the "
                             "Jacobian), or another optimiser")
        if isinstance(self.optimiser, TAO):
            tao = PETSc.TAO().create(comm=PETSc.COMM_SELF)
            try:
                tao.setType(self.optimiser.type)
            except PETSc.Error:
                raise InputError(f"stage {self.name!r}: optimiser {self.optimiser.type!r}, "
                                 "expected a type of TAO as blmvm or bqnls") from None
            finally:
                tao.destroy()

    def run(self, problem: InverseProblem, state: State, ledger: Ledger) -> tuple[State, str]:
        """From a state to the next one, and why it ended. Collective.

        Raises:
            SolverError: if the first solve fails.
        """
        return _Running(self, problem, state, ledger).result()


def _looked_for(stage: Stage, problem: InverseProblem,
                state: State) -> tuple[np.ndarray, tuple[float, float]]:
    """Owned facets that a stage looks for, ``(nf,)`` bool, and their range, um/ms. Collective."""
    if stage.facets == "all":
        return problem.unknown_facets, problem.permeability_range
    if state.labels is None:
        raise InputError(f"stage {stage.name!r}: facets walls, and no labels of cells; expected a "
                         "search for shapes before it")
    wall = problem.unknown.get("wall_permeability", KINDS["wall_permeability"].usual)
    return between(problem.mesh, state.labels, problem.absorbing), (wall.low, wall.high)


def sequence_ranks(acquisition: Acquisition) -> np.ndarray:
    """Rank of each waveform by diffusion time, 0 the longest."""
    times = np.array([waveform.diffusion_time for waveform in acquisition.waveforms])
    ranks = np.empty(len(times), dtype=int)
    ranks[np.argsort(-times, kind="stable")] = np.arange(len(times))
    return ranks


class _Running:
    """A stage on a problem: its loss on pyadjoint's tape, and what is looked at as it goes."""

    def __init__(self, stage: Stage, problem: InverseProblem, state: State, ledger: Ledger):
        self.stage, self.problem, self.state, self.ledger = stage, problem, state, ledger
        mesh, rows = problem.mesh, stage.rows(problem.acquisition)
        self.unknown, limits = _looked_for(stage, problem, state)
        self.origin = state.permeability if stage.restart is None else problem.permeability(
            stage.restart).values
        with ledger.clock("set-up"):
            graph = FacetGraph(mesh, self.unknown) if stage.priors else None
            self.forward = problem.forward(self.origin, state.theta, state.labels)
            self.numbers = Numbers(problem, self.forward, state)
            self.solver = _Timed(problem.stage_engine(
                self.forward, problem.acquisition.select(rows)), ledger)
        count, low_high = mesh.num_owned_facets, self.numbers.coordinates.bounds
        self.of_facets = CONTROLS[stage.control](*limits)
        # coordinates of numbers stand where log10 of a permeability does
        self.of_numbers = CONTROLS[stage.control](*10.0 ** low_high[:, : self.numbers.own])
        self.control_type = Both(count, self.of_facets, self.of_numbers)
        others = state.permeability if stage.facets == "walls" else np.zeros(count)
        self.from_log = Both(count, FromLog(self.unknown, others), LogPermeability())
        weights = stage.row_weights(problem.acquisition)[rows]
        self.likelihood = problem.likelihood.select(rows).weighted(weights)
        self.data = _Weighted("data", self.likelihood, stage.misfit_weight)
        first = stage.prior_weights(0)
        self.priors = [_Weighted(name, OfFacets(count, PRIORS[name](graph)), first[name])
                       for name in stage.priors]
        self.beliefs = []  # of numbers
        if self.numbers.coordinates.precision.any() and self.likelihood.floor:
            variance = self.likelihood.floor / len(self.likelihood)
            self.beliefs = [_Weighted(NumberPrior.name, NumberPrior(self.numbers, variance),
                                      stage.misfit_weight)]

    def result(self) -> tuple[State, str]:
        stage, ledger = self.stage, self.ledger
        control, functional = self._taped()
        before = np.inf  # misfit of what a restart has to beat
        if stage.restart is not None or stage.facets == "walls":
            functional(self._control(self.state.permeability))
            before, limit = self.data.last, stage.skip_below
            if stage.facets == "walls" and self.likelihood.sigma:
                limit = self.likelihood.explained(ERRORS)
            if before <= limit:
                return self.state, f"left out: data misfit {before:.1e} already"
        self.keeper = Keeper(ledger.earlier(self.problem.mesh))
        if self.keeper.earlier is not None:
            self._ramp(self.keeper.earlier.iteration + 1)
        linearise = None
        if isinstance(stage.optimiser, GaussNewton) and self.problem.engine == "matrix_formalism":
            linearise = ledger.clock("jacobian")(Linearisation(
                self.solver.engine, self.likelihood, self.control_type, self.from_log,
                stage.misfit_weight, self.priors + self.beliefs, self.numbers))
        facets = np.ones(self.problem.mesh.num_owned_facets)
        bounds = tuple(np.r_[of_facets * facets, np.broadcast_to(of_numbers, self.numbers.own)]
                       for of_facets, of_numbers in zip(self.of_facets.bounds,
                                                        self.of_numbers.bounds, strict=True))
        control, ending = minimise(stage.optimiser, stage.name, stage.iterations, functional,
                                   control, bounds, self._monitor, self.keeper, linearise)
        reached = float(functional(control))
        ledger.evaluations += self.solver.calls
        if stage.restart is not None and np.isfinite(reached) and self.data.last >= before:
            return self.state, f"{ending}; fits worse ({self.data.last:.1e}), dropped"
        # where the last solve failed, the stage's own last good point stands
        permeability = self.from_log.value(self.control_type.value(control.values))[: len(facets)]
        self.numbers.put(self.numbers.of(self.control_type.value(control.values)))
        return replace(self.state, permeability=permeability, theta=self.numbers.theta), ending

    def _taped(self) -> tuple[FacetField, BacktrackingFunctional]:
        """The control, and the loss as a function of it."""
        set_working_tape(Tape())
        continue_annotation()
        try:
            control = self._control(self.origin)
            z = mapped(control, self.control_type)
            predicted = apply(SignalsOfBoth(self.solver, self.numbers),
                              mapped(z, self.from_log), SignalVector)
            loss = scalar(predicted, self.data)
            for prior in self.priors + self.beliefs:
                loss = loss + scalar(z, prior)
        finally:
            pause_annotation()
        return control, BacktrackingFunctional(loss, Control(control))

    def _control(self, permeability: np.ndarray) -> FacetField:
        facets = np.where(self.unknown, self.of_facets.control(permeability), 0.0)
        numbers = self.of_numbers.control(10.0 ** self.numbers.start[: self.numbers.own])
        return FacetField(self.problem.mesh, np.r_[facets, numbers])

    def _ramp(self, iteration: int) -> None:
        # a quasi-Newton memory needs one function: ramps move with Adam only
        if isinstance(self.stage.optimiser, Adam):
            weights = self.stage.prior_weights(iteration)
            for prior in self.priors:
                prior.weight = weights[prior.name]

    def _monitor(self, iteration: int, loss: float, gradient: float, step: float) -> None:
        stage = self.stage
        self.ledger.report(stage.name, iteration, loss, self.data.last,
                           priors={p.name: p.last for p in self.priors + self.beliefs},
                           gradient=gradient, step=step)
        self._ramp(iteration + 1)
        losses = self.keeper.losses
        if (not isinstance(stage.optimiser, Adam) and len(losses) > stage.patience
                and loss > _GAIN * losses[-1 - stage.patience]):
            raise StopStage("no longer improving")
        if self.data.last <= stage.stop_at:
            raise StopStage(f"data misfit below {stage.stop_at:g}")
        # a stage that has ended is not to be gone on with; one that restarts is compared with
        # the state before it
        kappa = self.forward.kappa.x.array[: self.problem.mesh.num_owned_facets].copy()
        state = self.state if stage.restart is not None else replace(
            self.state, permeability=kappa, theta=self.numbers.theta)
        self.ledger.keep(iteration, state, self.keeper.memory)


class _Weighted:
    """A weighted term of the loss; `last` is its value before weighting."""

    def __init__(self, name, operation, weight):
        self.name, self.operation, self.weight, self.last = name, operation, weight, np.nan

    def value(self, x):
        self.last = self.operation.value(x)
        return self.weight * self.last

    def pull_back(self, x, adjoint):
        return self.operation.pull_back(x, self.weight * adjoint)

    def squares(self, x):
        found = getattr(self.operation, "squares", lambda x: None)(x)
        return found and tuple(np.sqrt(self.weight) * part for part in found)


class _Timed:
    """An engine whose two halves are timed."""

    def __init__(self, engine, ledger: Ledger):
        self.engine, self.clock, self.problem, self.calls = engine, ledger.clock, engine.problem, 0

    def signals(self, permeability, remember=False):
        self.calls += 1
        with self.clock("forward"):
            return self.engine.signals(permeability, remember)

    def gradient(self, adjoint):
        with self.clock("gradient"):
            return self.engine.gradient(adjoint)

    def gradients(self, adjoint, coefficients):
        with self.clock("gradient"):
            return self.engine.gradients(adjoint, coefficients)
