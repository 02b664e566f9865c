"""From signals to membranes, stage by stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..acquisition import Signals
from ..mesh.distributed import Mesh
from ..tissue import Tissue
from .facets.stage import Stage
from .ledger import Ledger, Progress, State
from .parameters import NOISE, SCALE, Theta
from .problem import InverseProblem
from .shapes.cell_surface import CellSurface, cell_surfaces
from .shapes.cell_table import LEVEL, CellTable, cell_table
from .shapes.freedoms import Freedom, freedoms
from .shapes.smooth_surfaces import SmoothCells
from .shapes.stage import Shapes
from .stages import facets, preset
from .verdict import Verdict, verdict
from .wall_field import WallField, wall_field

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What came out.

    Attributes:
        problem: that it is a solution of.
        permeability: ``(nf,)`` um/ms of the owned facets.
        tissue: the tissue with this permeability.
        predicted: signals of all measurements at the end.
        data_misfit: mean square residual of normalised magnitudes over all measurements.
        labels: ``(owned cells,)`` int32 where shapes were searched for: 0 outside, 1.. the cells
            that were found; else None.
        theta: values of unknown numbers, by name: a number, or one for each cell from label 1 on.
        history: one `Progress` an iteration.
        endings: why each stage ended.
        seconds: by phase.
        modes: number of modes at the end (matrix formalism), else 0.
        evaluations: of losses, and shapes whose signals were computed.
        surface: smooth surfaces, where these explain more than walls along facets: ``predicted``
            is of them then, ``labels`` and ``permeability`` are what on the mesh is nearest.
    """

    problem: InverseProblem
    permeability: np.ndarray
    tissue: Tissue
    predicted: Signals
    data_misfit: float
    labels: np.ndarray | None
    theta: Theta
    history: list[Progress]
    endings: dict[str, str]
    seconds: dict[str, float]
    modes: int
    evaluations: int = field(default=0)
    surface: SmoothCells | None = None

    @property
    def mesh(self) -> Mesh:
        return self.problem.mesh

    @property
    def unknown(self) -> np.ndarray:
        """Owned facets that were looked for, ``(nf,)`` bool."""
        return self.problem.unknown_facets

    @property
    def verdict(self) -> Verdict:
        """Whether it explains the data."""
        return verdict(self.problem, self.data_misfit,
                       0.0 if self.surface is None else self.surface.error)

    def cell_table(self, level: float = LEVEL) -> CellTable | None:
        """The cells in numbers, with intervals; None where there are no labels. Collective.

        Where walls are not uniform, a cell's permeability is the mean over their area.
        """
        if self.labels is None:
            return None
        return cell_table(self.problem, self.labels, self.theta, level, self.permeability,
                          self.surface)

    def surfaces(self) -> list[CellSurface]:
        """Of each cell from label 1 on, without the stairs of the mesh. Collective.

        Empty where there are no labels, or faces of the box are glued.
        """
        if self.labels is None or self.mesh.glued:
            return []
        if self.surface is not None:
            return [CellSurface(each, each, np.ones(len(each.triangles), bool))
                    for each in self.surface.surfaces]
        return cell_surfaces(self.mesh, self.labels, self.problem.absorbing)

    def wall_field(self) -> WallField | None:
        """What the walls are like; None where they are uniform or not known. Collective."""
        if self.labels is None:
            return None
        return wall_field(self.problem, self.permeability, self.labels, self.theta)

    def freedoms(self) -> list[Freedom]:
        """What would explain more of the data, the best first. Collective."""
        return [] if self.labels is None else freedoms(self.problem, self.labels, self.theta)


def reconstruct(mesh: Mesh, signals: Signals, stages: Sequence[Stage | Shapes] | str = "default",
                *, start: float | np.ndarray = 1.0, state: State | None = None,
                progress: Callable[[Progress], None] | None = None,
                ledger: Ledger | None = None, **known) -> Reconstruction:
    """Find the permeability of every facet from signals. Collective.

    Args:
        mesh, signals: see `InverseProblem`.
        stages: a list of `Stage` and `Shapes`, or the name of a preset: "default" (a search for
            shapes; `facets` where that cannot run, with a warning that says why), "fast", "facets"
            or "published".
        start: permeability to start from, um/ms, a number or ``(nf,)``.
        state: to go on from, in place of ``start``.
        progress: called after every iteration, on every rank.
        ledger: in place of ``progress``; is told of states to go on from, too.
        **known: further arguments of `InverseProblem`: what is known of tissue and noise, terms of
            your own, numerical settings.

    Raises:
        InputError: for arguments that make no sense; SolverError: if the first solve fails.
    """
    problem = InverseProblem(mesh, signals, **known)
    chosen = stages_for(problem, stages)
    return solve(problem, chosen, state or problem.state(start), ledger or Ledger(progress))


def solve(problem: InverseProblem, stages: Sequence[Stage | Shapes], state: State,
          ledger: Ledger | None = None) -> Reconstruction:
    """Run stages on a problem, from a state. Collective.

    Raises:
        InputError: a stage that does not fit the problem; SolverError: a solver failed.
    """
    ledger = Ledger() if ledger is None else ledger
    problem = problem.with_noise_of(state.theta)
    for stage in stages:
        stage.check(problem)
    for stage in stages:
        state, ending = stage.run(problem, state, ledger)
        ledger.end(stage.name, ending, state)
        problem = problem.with_noise_of(state.theta)
    with ledger.clock("final signals"):
        forward = problem.forward(state.permeability, state.theta, state.labels)
        surface, engine = state.surface, None
        if surface is None:
            engine = problem.final_engine(forward)
        predicted = Signals(problem.acquisition, engine.signals() if surface is None
                            else surface.signals, unit=problem.signals.unit)
    likelihood, theta = problem.likelihood, dict(state.theta)
    residual = likelihood.residual(predicted.values)
    if problem.unit is not None:
        theta[SCALE] = float(likelihood.factor(predicted.magnitude))
    if NOISE in problem.unknown:
        theta[NOISE] = likelihood.sigma
    ledger.clock.seconds["total"] = ledger.seconds
    return Reconstruction(
        problem, state.permeability, forward.tissue, predicted, float(np.mean(residual**2)),
        state.labels, theta, ledger.history, ledger.endings, ledger.clock.seconds,
        len(getattr(engine, "basis", ())), ledger.evaluations, surface)


def stages_for(problem: InverseProblem,
               stages: Sequence[Stage | Shapes] | str) -> list[Stage | Shapes]:
    """The stages of a preset, or those of a list. Collective.

    Where a preset's search for shapes cannot run, the stages of `facets` take its place, and a line
    of the log (rank 0, level warning) says why and what that costs.
    """
    if not isinstance(stages, str):
        return list(stages)
    found = preset(stages)
    why = next((stage.unsuitable(problem) for stage in found if isinstance(stage, Shapes)), "")
    if not why:
        return found
    if problem.comm.rank == 0:
        _log.warning("stages: facets in place of %s, because %s; membranes may then not close",
                     stages, why)
    return facets()
