"""The forward models of a search, all from the weak form: two fast ones, and the full one.

`Models.residuals` is the partition model (milliseconds a hypothesis), `Models.graded` the one of
shares of cells, with derivatives, and `Models.exact` the matrix formalism that the reconstruction
ends with, on all ranks. Fast models know theta through what they are assembled from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
from mpi4py import MPI
from scipy.stats import qmc

from ...engines.modal.matrix_formalism import MatrixFormalism
from ...engines.shapes.blocks import Assembly, Blocks
from ...engines.shapes.broken import BrokenModel, Pattern
from ...engines.shapes.cut import CutModel
from ...engines.shapes.cut_cells import Grid
from ...engines.shapes.directions import DirectionBases
from ...engines.shapes.effects import Effects
from ...engines.shapes.graded import FLOOR, GradedModel
from ...engines.shapes.partition import PartitionModel
from ...engines.shapes.restricted import RestrictedModel
from ...engines.shapes.smooth import Smooth, suits
from ...engines.shapes.walls import Walls
from ...errors import InputError
from ...extra_terms import has
from ...mesh.whole import WholeMesh
from .. import parameters
from ..problem import InverseProblem
from .cells import changed
from .look import Look

PARTITION_STEP = 0.5  # ms, longest: 1e-3 of the signals, which the full model corrects
# functions outside, a share of the nodes: what moves change to 0.2 % (60 of 333 nodes: 3 %). All of
# them where the boundary reflects, since magnetisation outside stays in all of them (100 of 170
# modes: 10 % off)
PARTITION_FUNCTIONS = 1 / 3
# of the full model, a share of the number of mesh cells: signals to 1e-5 on the lattices
FULL_MODES = {True: 0.35, False: 0.46}  # by absorbing
FEWEST_MODES, MOST_MODES = 96, 300  # signals to 1e-5 on finer ones, too
# modes of the box that fields are expanded in, of signals, and of what moves change: with more of
# them fields go astray beyond their labels
FUNCTIONS, FEWER = 200, 60
EFFECTS_STEP = 1.0  # ms, longest
LEAKY = 4e-4  # permeability of walls over that of open facets from which on these count
FEW_BROKEN = 1 / 4  # as `PARTITION_FUNCTIONS`, of `BrokenModel`
RESISTANCE, TRIALS, MOST = 2.0, (1.0, 3.0), 4.0  # of open facets; values that fit it; bound
UNIT = 1.6e-4  # mean square change of signals by a share at the edge, where `Models.unit` is 1
DESIGN = 7, 28  # points to begin with, for each unknown number, and at most
THETA_STEP = 0.1  # of a coordinate, for slopes by central differences
FLAT = 1e-3  # of the curvature by an unknown number: keeps unknown ones apart
LEAST_INSIDE = 2e-2  # of its range: a number nearer to the end is there
ANSWER = 0.4  # of the coordinate: how far unknown numbers answer to another shape or assumption


class Models:
    """Everything that strategies compute. Methods are collective.

    Args:
        problem: the inverse problem.
        cells: at most so many cells, each of which has its own numbers.
        factor: of the permeability of walls, see `Walls`.

    Raises:
        InputError: a problem that the fast models cannot take (`engines.shapes.blocks.check`), or
            waveforms that store magnetisation along z where T1 differs from T2.

    Attributes:
        whole: the mesh, on every rank.
        names, cell_of, start, bounds, precision, active, values, coordinates: of the unknown
            numbers, see `parameters.Coordinates`.
        cells: at most so many.
        floor: mean variance of the noise of normalised magnitudes.
        unit: of misfits of graded shapes, see `measure_unit`.
        resistance: see `calibrate`.
        leaky: whether open facets count in the model of sharp hypotheses, likewise.
    """

    def __init__(self, problem: InverseProblem, cells: int = 1,
                 factor: np.ndarray | None = None):
        self.problem, self.comm, self.cells = problem, problem.comm, cells
        _check_storage(problem)
        self.whole = WholeMesh.of(problem.mesh)
        numbers = parameters.Coordinates(parameters.of_theta(problem.unknown), cells)
        self.names, self.cell_of, self.start = numbers.names, numbers.cell_of, numbers.start
        self.bounds, self.precision = numbers.bounds, numbers.precision
        self.active, self.values = numbers.active, numbers.values
        self.coordinates = numbers.coordinates
        self.all = Look(problem.likelihood)
        self.floor = problem.likelihood.floor
        self.unit, self.resistance, self.leaky = 1.0, RESISTANCE, False
        self._walls = replace(problem.walls, factor=factor)
        self.size = float(np.mean(self.whole.volumes) ** (1 / 3))
        outside = problem.walls.permeability(np.zeros(len(self.whole.cells), int),
                                             self.whole.sides)
        self._forward = problem.forward(self.whole.facet_values(outside))
        self._assembly = Assembly(self._forward, self.whole)
        self._known: dict[tuple, Blocks] = {}
        self._sharp: dict[bytes, BrokenModel] = {}
        self._engines: dict[int, tuple] = {}
        self._functions: dict[int, Smooth] = {}
        self._grids: dict[int, Grid] = {}

    # ---- theta ----------------------------------------------------------------------------------

    @cached_property
    def design(self) -> list[np.ndarray]:
        """Coordinates to begin with: the start, and points that fill the ranges evenly.

        Cells have the same values there.
        """
        if not self.names:
            return [self.start]
        (low, high), unknown = self.bounds, list(dict.fromkeys(self.names))
        number = min(DESIGN[0] * len(unknown), DESIGN[1])
        points = qmc.Halton(len(unknown), scramble=False).random(number + 1)[1:]
        points = points[:, [unknown.index(name) for name in self.names]]
        return [self.start, *(low + points * (high - low))]

    def at_an_end(self, labels: np.ndarray, theta: np.ndarray) -> bool:
        """Whether an unknown number beside the wall is at the end of its range."""
        low, high = self.bounds
        near = LEAST_INSIDE * (high - low)
        active = self.active(labels) & (np.array(self.names) != "wall_permeability")
        return bool(np.any(active & ((theta < low + near) | (theta > high - near))))

    def _apply(self, theta: np.ndarray, labels: np.ndarray) -> Walls:
        return parameters.apply(self.values(theta), self._forward, self._walls,
                                labels[self.whole.owned_cells])

    def _at(self, theta: np.ndarray,
            resistance: float | None = None) -> tuple[Blocks, Walls]:
        resistance = self.resistance if resistance is None else resistance
        # blocks depend on the permeability of walls where terms of the user's do
        matter = np.array([name != "wall_permeability" or self._terms_at_walls
                           for name in self.names], bool)
        key = (resistance, theta[matter].tobytes())
        values, known = self.values(theta), self._walls
        walls = parameters.apply(values, self._forward, known)
        if key not in self._known:
            if len(self._known) > 8:  # slopes, and the way back
                self._known.clear()
            labels = range(self.cells + 1 if parameters.labelled(values) else 1)
            self._known[key] = self._assembly.blocks(walls, resistance, [
                partial(parameters.apply, values, self._forward, known, label)
                for label in labels])
        return self._known[key], walls

    @cached_property
    def _terms_at_walls(self) -> bool:
        return has(self._forward.extra_form, self._forward.kappa)

    # ---- sharing out ----------------------------------------------------------------------------

    def shared(self, function: Callable, items: Sequence) -> list:
        """``[function(item) for item in items]``, the items dealt out to the ranks."""
        mine = [function(item) for item in items[self.comm.rank:: self.comm.size]]
        parts = self.comm.allgather(mine)
        return [parts[k % self.comm.size][k // self.comm.size] for k in range(len(items))]

    # ---- partitions -----------------------------------------------------------------------------

    def partition(self, theta: np.ndarray) -> PartitionModel:
        """The model of sharp hypotheses."""
        if self.leaky:
            return self._broken(theta)
        blocks, walls = self._at(theta)
        if self.large:
            return RestrictedModel(blocks, walls, self._smooth(FUNCTIONS))
        number = round(PARTITION_FUNCTIONS * len(self.whole.points))
        return PartitionModel(blocks, walls, self._smooth(number) if walls.absorbing else None)

    def _broken(self, theta: np.ndarray) -> BrokenModel:
        key = theta.tobytes()
        if key not in self._sharp:
            if len(self._sharp) > 8:
                self._sharp.clear()
            blocks, walls = self._at(theta, 0.0)
            number = round(FEW_BROKEN * len(self.whole.points))
            self._sharp[key] = BrokenModel(
                blocks, walls, self._smooth(number) if walls.absorbing else None, self._pattern)
        return self._sharp[key]

    @cached_property
    def _pattern(self) -> Pattern:
        return Pattern(self._at(self.start, 0.0)[0])

    @property
    def large(self) -> bool:
        """Whether the mesh is one where fields are expanded in modes of the whole box."""
        return suits(len(self.whole.cells), self.whole.periodic)

    def _smooth(self, number: int) -> Smooth:
        """Modes of the box at the start of theta: functions to expand in, whatever theta is."""
        if number not in self._functions:
            self._functions[number] = self.comm.bcast(Smooth(*self._at(self.start), number))
        return self._functions[number]

    def effects(self, labels: np.ndarray, theta: np.ndarray, look: Look, moves: Sequence,
                pairs: Sequence) -> tuple[np.ndarray, np.ndarray]:
        """What moves change of the residual, and pairs of neighbouring ones beside their sum.

        ``(moves, N)`` and ``(pairs, N)``; to first order on meshes that are `large`, solved on
        others, single moves alone.
        """
        if not self.large:
            r = self.residuals([labels, *(changed(labels, [move]) for move in moves)], theta, look)
            return r[1:] - r[0], np.zeros((0, r.shape[1]))
        model = RestrictedModel(*self._at(theta), self._smooth(FEWER))
        S, J = Effects(model, labels, moves, pairs).measure(
            look.sweeps(EFFECTS_STEP, model.kind),
            lambda k: k % self.comm.size == self.comm.rank)
        if self.comm.size > 1:
            self.comm.Allreduce(MPI.IN_PLACE, S)
            self.comm.Allreduce(MPI.IN_PLACE, J)
        found = look.change(S, J).T
        return found[: len(moves)], found[len(moves):]

    def residuals(self, shapes: list[np.ndarray], theta: np.ndarray, look: Look) -> np.ndarray:
        """Of partitions, not corrected by the full model, ``(n, N)``."""
        model = self.partition(theta)
        values = self.shared(lambda labels: self.residual(model, labels, look), shapes)
        return np.array(values).reshape(len(shapes), len(look.measured))

    def residual(self, model: PartitionModel, labels: np.ndarray, look: Look) -> np.ndarray:
        """Of one partition, ``(N,)``. Not collective."""
        signals = model.signals(labels, look.sweeps(PARTITION_STEP, model.kind))
        return look.predicted(signals) - look.measured

    def misfits(self, shapes: list[np.ndarray], theta: np.ndarray, look: Look) -> np.ndarray:
        """Mean squares of `residuals`, ``(n,)``."""
        return np.mean(self.residuals(shapes, theta, look) ** 2, axis=1)

    def slopes(self, labels: np.ndarray, theta: np.ndarray, look: Look) -> np.ndarray:
        """Derivatives of the residual by the `active` coordinates of theta, ``(n, N)``."""
        found = []
        for unit in np.eye(len(theta))[self.active(labels)]:
            up, down = (self.residual(self.partition(theta + sign * THETA_STEP * unit), labels,
                                      look) for sign in (1, -1))
            found.append((up - down) / (2 * THETA_STEP))
        return np.array(found).reshape(len(found), len(look.measured))

    def theta_step(self, labels: np.ndarray, theta: np.ndarray, slopes: np.ndarray,
                   r: np.ndarray, longest: float, flat: float = FLAT,
                   noise: float | None = None) -> np.ndarray:
        """Coordinates after a Gauss-Newton step, kept in their ranges, ``(P,)``.

        Args:
            labels: of the hypothesis, which tell which numbers are `active`.
            theta: coordinates.
            slopes: as of `slopes`.
            r: residual, ``(N,)``.
            longest: of all changes.
            flat: damping, of the curvature by each.
            noise: variance of the residuals; `floor` if None.
        """
        noise = self.floor if noise is None else noise
        active, precision = self.active(labels), noise * self.precision
        H, pull = slopes @ slopes.T, precision * (theta - self.start)
        # what the misfit, taken for noise, tells less of than the range does stays: damping that
        # vanishes with the misfit (Yamashita and Fukushima, Computing Suppl. 15, 239, 2001)
        told = 12 * np.mean(r**2) / np.ptp(self.bounds[:, active], axis=0) ** 2
        H = H + np.diag(flat * np.diag(H) + precision[active] + told + 1e-300)
        step = np.zeros(len(theta))
        step[active] = -np.linalg.solve(H, slopes @ r + pull[active])
        step *= min(1.0, longest / max(np.abs(step).max(), 1e-300))
        return np.clip(theta + step, *self.bounds)

    @staticmethod
    def answered(r: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Residuals ``(..., N)`` after the best change of unknown numbers by at most `ANSWER`."""
        if not len(slopes):
            return r
        return r - np.clip(r @ np.linalg.pinv(slopes), -ANSWER, ANSWER) @ slopes

    # ---- smooth surfaces ------------------------------------------------------------------------

    def cut(self, theta: np.ndarray, refinements: int) -> CutModel:
        """The model of level functions, linear in parts of mesh cells; see `engines.shapes.cut`."""
        if refinements not in self._grids:
            self._grids[refinements] = Grid(self.whole, self._assembly.corners, refinements)
        return CutModel(*self._at(theta), self._smooth(FUNCTIONS), self._grids[refinements])

    # ---- graded shapes --------------------------------------------------------------------------

    def graded(self, theta: np.ndarray, modes: int, mass_floor: float = FLOOR) -> GradedModel:
        """The model of shares of cells."""
        return GradedModel(*self._at(theta), modes, mass_floor,
                           self._smooth(FUNCTIONS) if self.large else None)

    def graded_jacobian(self, model: GradedModel, c: np.ndarray, look: Look, longest: float,
                        cells: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Expected magnitudes and their derivatives by the shares; sweeps dealt out to ranks."""
        S, J = model.jacobian(c, look.sweeps(longest, model.kind),
                              lambda k: k % self.comm.size == self.comm.rank, cells)
        if self.comm.size > 1:  # each row comes from one rank: the sum adds zeros
            self.comm.Allreduce(MPI.IN_PLACE, S)
            self.comm.Allreduce(MPI.IN_PLACE, J)
        return look.predicted(S), look.likelihood.slope(S, J)

    def measure_unit(self, c: np.ndarray, theta: np.ndarray, look: Look) -> None:
        """Set `unit`: 1 where the share of a cell at the edge changes signals by 1.3 % rms."""
        _, J = self.graded_jacobian(self.graded(theta, 120), c, look, 1.0)
        edge = (c > 0.1) & (c < 0.9)
        self.unit = float(np.mean(J[:, edge] ** 2)) / UNIT if edge.any() else 1.0

    # ---- the full model -------------------------------------------------------------------------

    def permeability(self, labels: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Of this rank's facets, ``(nf,)`` um/ms."""
        walls = self._apply(theta, labels)
        return self.whole.facet_values(walls.permeability(labels, self.whole.sides))

    def exact(self, labels: np.ndarray, theta: np.ndarray, look: Look) -> np.ndarray:
        """Residual of the full model, as `reconstruct` ends with, ``(N,)``."""
        return look.likelihood.residual(self.signals(labels, theta, look))

    def signals(self, labels: np.ndarray, theta: np.ndarray, look: Look) -> np.ndarray:
        """Of the full model, um^3 times density, ``(N,)`` complex."""
        kappa = self.permeability(labels, theta)
        if id(look) not in self._engines and self.problem.periodic:
            self._engines[id(look)] = look, DirectionBases(self._forward,
                                                           look.likelihood.acquisition)
        if id(look) not in self._engines:
            number = int(FULL_MODES[self.problem.absorbing] * len(self.whole.cells))
            number = min(max(FEWEST_MODES, min(number, MOST_MODES)), self._forward.num_unknowns)
            self._engines[id(look)] = look, MatrixFormalism(
                self._forward, look.likelihood.acquisition, number)
        return self._engines[id(look)][1].signals(kappa)

    def calibrate(self, labels: np.ndarray, theta: np.ndarray, look: Look) -> None:
        """Fit how much of open facets' resistance cells take over, to the full model at a shape.

        No formula gives it; see `engines.shapes.blocks.Assembly`. Where its walls are leaky, open
        facets count in the model of sharp hypotheses from now on.
        """
        self.leaky, full, trial = False, self.exact(labels, theta, look), []
        for self.resistance in TRIALS:
            trial.append(self.residual(self.partition(theta), labels, look) - full)
        slope = (trial[1] - trial[0]) / (TRIALS[1] - TRIALS[0])
        best = TRIALS[0] - (trial[0] @ slope) / max(slope @ slope, 1e-300)
        self.resistance = float(np.clip(best, 0.0, MOST))
        walls = self._at(theta)[1]
        self.leaky = (not self.large and not self.whole.periodic
                      and float(np.max(walls.wall)) > LEAKY * walls.open)


def _check_storage(problem: InverseProblem) -> None:
    """To the fast models what is stored is at rest, which is right where T1 = T2. Collective."""
    for waveform in problem.acquisition.waveforms:
        if not waveform.storage:
            continue
        tissue = problem.tissue
        same = not np.any(tissue.T1 != tissue.T2) and not any(
            name.startswith("T2") for name in problem.unknown)
        if not all(problem.comm.allgather(same)):
            raise InputError(f"shape search: {waveform.describe()} stores magnetisation along z, "
                             "expected T1 = T2 in the whole tissue with it, both known")
