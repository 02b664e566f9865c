"""From signals to permeabilities, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from pyadjoint import Control, Tape, continue_annotation, pause_annotation, set_working_tape

from ..acquisition import Signals
from ..adjoint import FacetField, mapped, scalar, simulated_signals
from ..errors import InputError
from ..mesh.distributed import Mesh
from ..problem import BlochTorrey
from ..simulate import make_engine
from ..tissue import Permeability, Tissue
from .clock import Clock
from .controls import CONTROLS, FromLog
from .facet_graph import FacetGraph
from .gauss_newton import Linearisation
from .memory import Keeper, Memory
from .misfit import NormalisedMagnitude, references
from .optimise import BacktrackingFunctional, StopStage, minimise
from .priors import make_prior
from .shapes.search import Search, Settings
from .shapes.task import Task
from .stages import Adam, GaussNewton, Shapes, Stage, preset

BOUNDARIES = ("reflecting", "absorbing")
NORMALISATIONS = ("measured", "own")


@dataclass(frozen=True)
class Progress:
    """One iteration: what the line on the screen and the row of history.csv say.

    A search for shapes has phases, and neither gradient nor step.
    """

    stage: str
    iteration: int
    loss: float
    data: float
    priors: dict
    gradient: float
    step: float
    seconds: float
    phase: str = ""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What came out.

    Attributes:
        mesh: the mesh.
        permeability: ``(nf,)`` um/ms of the owned facets.
        tissue: the tissue with this permeability.
        predicted: signals of all measurements at the end.
        data_misfit: mean square of normalised magnitudes over all measurements.
        history: one `Progress` an iteration.
        endings: why each stage ended.
        seconds: by phase.
        labels: ``(owned cells,)`` int32 where shapes were searched for: 0 outside, 1.. the cells
            that were found; else None.
        modes: number of modes at the end (matrix formalism), else 0.
        evaluations: of the loss.
    """

    mesh: Mesh
    permeability: np.ndarray
    tissue: Tissue
    predicted: Signals
    data_misfit: float
    history: list[Progress]
    endings: dict[str, str]
    seconds: dict[str, float]
    modes: int
    evaluations: int = 0
    unknown: np.ndarray = field(default=None)
    labels: np.ndarray | None = None


def reconstruct(mesh: Mesh, signals: Signals, stages: list[Stage | Shapes] | str = "default", *,
                diffusivity=2.0, T2=np.inf, density=1.0, interface: str = "equilibrium",
                boundary: str = "reflecting",
                normalisation: str = "measured",
                start: float | np.ndarray = 1.0, permeability_range=(0.01, 100.0),
                engine: str = "matrix_formalism", modes: int | str = "auto",
                tolerance: float = 1e-5, time_step: float = 0.25,
                progress: Callable[[Progress], None] | None = None,
                after_stage: Callable[[int, np.ndarray, np.ndarray | None], None] | None = None,
                after_iteration: Callable[[int, int, np.ndarray, Callable, np.ndarray | None],
                                          None] | None = None,
                memory: dict[str, np.ndarray] | None = None, labels: np.ndarray | None = None,
                ) -> Reconstruction:
    """Find the permeability of every facet from signals. Collective.

    Args:
        mesh: the mesh; what it knows of a true membrane is not looked at.
        signals: the measurements; magnitudes normalised by |S(b = 0)| of the same sequence count.
        stages: a list of `Stage` and `Shapes`, or the name of a preset: "default" (a search for
            shapes; `facets` for meshes too large for it and other waveforms than PGSE), "fast",
            "facets" or "published".
        diffusivity, T2, density, interface: as in `Tissue`; they are known. Periodic tissues
            cannot be reconstructed.
        boundary: "absorbing": outer facets are unknown too; "reflecting": they are closed.
        normalisation: what a predicted |S| is divided by: "measured", the measured |S(b = 0)| of
            the same sequence, when signals are in um^3 times density as `simulate` gives them; or
            "own", the predicted one, when they are in arbitrary units.
        start: permeability to start from, um/ms, a number or ``(nf,)``.
        permeability_range: smallest and largest permeability, um/ms.
        engine: "matrix_formalism" or "time_stepping".
        modes: of the matrix formalism during the stages, made of responses of the start
            (`spinverse.engines.basis.responses`); "auto": a quarter of the number of cells. While
            walls are half closed everywhere, short pulses would need many more for exact signals.
        tolerance: of the final signals, which have as many modes as that needs.
        time_step: ms, of time stepping.
        progress: called after every iteration, on every rank.
        after_stage: called with the stage's number, the permeability and `labels` when a stage
            ends.
        after_iteration: for checkpoints; called with the stage's number, the iteration, the
            permeability to go on with, ``(nf,)`` um/ms, a function that makes the optimiser's
            `Memory`, and `labels`.
        memory: of the optimiser of the first stage, as `Memory.scattered` takes it, when this stage
            was interrupted: it goes on as if it had not been.
        labels: `Reconstruction.labels` of a stage before the first one.

    Raises:
        InputError: for arguments that make no sense; SolverError: if the first solve fails.
    """
    if isinstance(stages, str):
        stages = preset(stages, mesh, signals.acquisition)
    if boundary not in BOUNDARIES:
        raise InputError(f"boundary: {boundary!r}, expected one of {', '.join(BOUNDARIES)}")
    if normalisation not in NORMALISATIONS:
        raise InputError(f"normalisation: {normalisation!r}, expected one of "
                         f"{', '.join(NORMALISATIONS)}")
    low, high = permeability_range
    if not 0 < low < high < np.inf:
        raise InputError(f"permeability_range: {permeability_range}, "
                         "expected 0 < low < high, um/ms")
    stage_modes = max(96, mesh.num_cells // 4) if modes == "auto" else modes
    clock, history, endings = Clock(), [], {}
    begin = time.perf_counter()
    unknown = np.ones(mesh.num_owned_facets, bool) if boundary == "absorbing" else ~mesh.outer
    fixed = np.zeros(mesh.num_owned_facets)
    kappa = np.where(unknown, np.clip(np.broadcast_to(start, unknown.shape), low, high), fixed)
    tissue = Tissue(mesh, diffusivity, T2, density, Permeability(mesh, kappa), interface)
    graph = None
    acquisition, measured, scale = signals.acquisition, signals.normalised, signals.reference
    if normalisation == "measured":
        check_amount(scale, tissue)
    evaluations = 0

    for number, stage in enumerate(stages):
        if isinstance(stage, Shapes):
            task = Task(mesh, tissue, signals, boundary == "absorbing", permeability_range,
                        normalisation == "own", stage.noise)
            count = iter(range(10**9))

            def seen(phase, misfit, stage=stage, count=count):
                item = Progress(stage.name, next(count), misfit, misfit, {}, np.nan, np.nan,
                                time.perf_counter() - begin, phase)
                history.append(item)
                if progress is not None:
                    progress(item)

            def keep(state, task=task, number=number):
                if after_iteration is None:
                    return
                best = task.whole.facet_values(task.permeability(state["labels"]))
                after_iteration(number, int(state["part"]), best, lambda: Memory(
                    "Shapes", int(state["part"]), state, {"control": best}), None)

            earlier = Memory.scattered(mesh, memory).numbers if memory and number == 0 else None
            with clock("shapes"):
                found = Search(task, Settings(
                    ellipsoids=stage.ellipsoids, candidates=stage.candidates, rounds=stage.rounds,
                    budget=stage.budget,
                    cells=stage.cells, target=stage.stop_at, seed=stage.seed), seen).run(
                        keep, earlier)
            evaluations += found.shapes
            endings[stage.name] = found.ending
            kappa = task.whole.facet_values(task.permeability(found.labels))
            labels = found.labels[task.whole.owned_cells].astype(np.int32)
            if after_stage is not None:
                after_stage(number, kappa, labels)
            continue
        rows = stage.rows(acquisition)
        control_type = CONTROLS[stage.control](low, high)
        origin = kappa if stage.restart is None else np.where(
            unknown, np.clip(stage.restart, low, high), fixed)
        if stage.priors and graph is None:
            with clock("set-up"):
                graph = FacetGraph(mesh, unknown)
        with clock("set-up"):
            problem = BlochTorrey(tissue.with_permeability(origin))
            solver = _Timed(make_engine(problem, acquisition.select(rows), engine, stage_modes,
                                        tolerance, time_step, "responses"), clock)
        misfit = NormalisedMagnitude(
            measured[rows], scale[rows], stage.row_weights(acquisition)[rows],
            references(acquisition.select(rows)) if normalisation == "own" else None)
        from_log = FromLog(unknown, fixed)
        parts = _Parts(misfit, {name: make_prior(name, graph, unknown) for name in stage.priors},
                       stage)

        set_working_tape(Tape())
        continue_annotation()
        try:
            control = FacetField(mesh, np.where(unknown, control_type.control(origin), 0.0))
            z = mapped(control, control_type)
            predicted = simulated_signals(mapped(z, from_log), solver)
            loss = scalar(predicted, parts.data)
            for prior in parts.priors:
                loss = loss + scalar(z, prior)
        finally:
            pause_annotation()
        functional = BacktrackingFunctional(loss, Control(control))
        best = np.inf
        if stage.restart is not None:
            functional(FacetField(mesh, np.where(unknown, control_type.control(kappa), 0.0)))
            best = parts.data.last
            if best <= stage.skip_below:
                endings[stage.name] = f"left out: data misfit {best:.1e} already"
                continue

        keeper = Keeper(Memory.scattered(mesh, memory) if memory and number == 0 else None)
        if keeper.earlier is not None:
            parts.ramp(keeper.earlier.iteration + 1)

        def monitor(iteration, value, gradient, step, stage=stage, parts=parts, number=number,
                    problem=problem, keeper=keeper, before=kappa, labels=labels):
            item = Progress(stage.name, iteration, value, parts.data.last,
                            {p.name: p.last for p in parts.priors}, gradient, step,
                            time.perf_counter() - begin)
            history.append(item)
            if progress is not None:
                progress(item)
            parts.ramp(iteration + 1)
            losses = keeper.losses
            if (not isinstance(stage.optimiser, Adam) and len(losses) > stage.patience
                    and value > 0.99 * losses[-1 - stage.patience]):
                raise StopStage("no longer improving")
            if parts.data.last <= stage.stop_at:
                raise StopStage(f"data misfit below {stage.stop_at:g}")
            # a stage that has ended is not to be gone on with: `after_stage` follows
            if after_iteration is not None:
                last = problem.kappa.x.array[: mesh.num_owned_facets].copy()
                # a stage that restarts is compared with what there was
                after_iteration(number, iteration, last if stage.restart is None else before,
                                keeper.memory, labels)

        linearise = None
        if isinstance(stage.optimiser, GaussNewton) and engine == "matrix_formalism":
            linearise = clock("jacobian")(Linearisation(
                solver.engine, misfit, control_type, from_log, stage.misfit_weight, parts.priors))
        control, ending = minimise(stage, functional, control, control_type.bounds, monitor,
                                   keeper, linearise)
        reached = float(functional(control))
        evaluations += solver.calls
        if stage.restart is not None and np.isfinite(reached) and parts.data.last >= best:
            endings[stage.name] = f"{ending}; fits worse ({parts.data.last:.1e}), dropped"
        else:
            # where the last solve failed, the stage's own last good point stands
            endings[stage.name] = ending
            kappa = from_log.value(control_type.value(control.values))
        if after_stage is not None:
            after_stage(number, kappa, labels)

    final = tissue.with_permeability(kappa)
    with clock("final signals"):
        engine_of_all = make_engine(BlochTorrey(final), acquisition, engine, modes, tolerance,
                                    time_step)
        predicted = Signals(acquisition, engine_of_all.signals())
    residual = NormalisedMagnitude(
        measured, scale, np.ones(len(measured)),
        references(acquisition) if normalisation == "own" else None).residual(predicted.values)
    clock.seconds["total"] = time.perf_counter() - begin
    return Reconstruction(mesh, kappa, final, predicted, float(np.mean(residual**2)), history,
                          endings, clock.seconds, len(getattr(engine_of_all, "basis", ())),
                          evaluations, unknown, labels)


def check_amount(scale: np.ndarray, tissue: Tissue) -> None:
    """|S(b = 0)| cannot exceed what was there, and is hardly a thousandth of it. Collective.

    Args:
        scale: the measured |S(b = 0)|, ``(N,)``.
        tissue: with the density; its permeability does not matter.

    Raises:
        InputError: the signals are in other units.
    """
    mesh, owned = tissue.mesh, slice(0, tissue.mesh.num_owned_cells)
    amount = mesh.comm.allreduce(float(tissue.density[owned] @ mesh.cell_volumes[owned]))
    worst = scale[np.argmax(np.abs(np.log(scale / amount)))]
    if not 1e-3 * amount <= worst <= 1.05 * amount:
        raise InputError(f"signals: |S(b = 0)| is {worst:.4g}, but the mesh holds {amount:.4g} "
                         "um^3 times density; expected signals in these units, or "
                         "normalisation: own")


class _Parts:
    """The terms of a stage's loss, remembering their last values for the history."""

    def __init__(self, misfit, priors: dict, stage: Stage):
        self.stage = stage
        self.data = _Weighted("data", misfit, stage.misfit_weight)
        weights = stage.prior_weights(0)
        self.priors = [_Weighted(name, prior, weights[name]) for name, prior in priors.items()]

    def ramp(self, iteration: int) -> None:
        # a quasi-Newton memory needs one function: ramps move with Adam only
        if isinstance(self.stage.optimiser, Adam):
            weights = self.stage.prior_weights(iteration)
            for prior in self.priors:
                prior.weight = weights[prior.name]


class _Weighted:
    """A weighted term of the loss; `last` is its value before weighting."""

    def __init__(self, name, operation, weight):
        self.name, self.operation, self.weight, self.last = name, operation, weight, np.nan

    def value(self, x):
        self.last = self.operation.value(x)
        return self.weight * self.last

    def pull_back(self, x, adjoint):
        return self.operation.pull_back(x, self.weight * adjoint)


class _Timed:
    """An engine whose two halves are timed."""

    def __init__(self, engine, clock: Clock):
        self.engine, self.clock, self.problem, self.calls = engine, clock, engine.problem, 0

    def signals(self, permeability, remember=False):
        self.calls += 1
        with self.clock("forward"):
            return self.engine.signals(permeability, remember)

    def gradient(self, adjoint):
        with self.clock("gradient"):
            return self.engine.gradient(adjoint)
