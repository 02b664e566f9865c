"""The forward models of a search, all from the weak form: two fast ones, and the full one.

`Models.residuals` is the partition model (milliseconds a hypothesis), `Models.graded` the one of
shares of cells, with derivatives, and `Models.exact` the matrix formalism that the reconstruction
ends with, on all ranks. Fast models know theta through what they are assembled from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np
from mpi4py import MPI
from scipy.stats import qmc

from ...engines.modal.matrix_formalism import MatrixFormalism
from ...engines.shapes.blocks import Assembly, Blocks
from ...engines.shapes.graded import FLOOR, GradedModel
from ...engines.shapes.partition import PartitionModel
from ...engines.shapes.walls import Walls
from ...mesh.whole import WholeMesh
from .. import parameters
from ..problem import InverseProblem
from .look import Look

PARTITION_STEP = 0.5  # ms, longest: 1e-3 of the signals, which the full model corrects
# modes outside and of each cell at least; all of them where the boundary reflects, since
# magnetisation outside stays in all of them
PARTITION_MODES = (60, 30)
# of the full model, a share of the number of mesh cells: signals to 1e-5 on the lattices
FULL_MODES = {True: 0.35, False: 0.46}  # by absorbing
FEWEST_MODES = 96
RESISTANCE, TRIALS, MOST = 2.0, (1.0, 3.0), 4.0  # of open facets; values that fit it; bound
UNIT = 1.6e-4  # mean square change of signals by a share at the edge, where `Models.unit` is 1
DESIGN = 11, 36  # points to begin with, for each unknown number, and at most
THETA_STEP = 0.1  # of a coordinate, for slopes by central differences


class Models:
    """Everything that strategies compute. Methods are collective.

    Args:
        problem: the inverse problem.
        cells: at most so many cells, each of which has its own numbers.

    Raises:
        InputError: a problem that the fast models cannot take (`engines.shapes.blocks.check`).

    Attributes:
        whole: the mesh, on every rank.
        names: of the unknown numbers, those that every cell has of its own once for each.
        floor: mean variance of the noise of normalised magnitudes.
        unit: of misfits of graded shapes, see `measure_unit`.
        resistance: see `fit_resistance`.
    """

    def __init__(self, problem: InverseProblem, cells: int = 1):
        self.problem, self.comm, self._cells = problem, problem.comm, cells
        self.whole = WholeMesh.of(problem.mesh)
        self._numbers = parameters.of_theta(problem.unknown)
        self.names = tuple(name for name in self._numbers
                           for _ in range(cells if parameters.is_each(name) else 1))
        # of which cell each is: 1, 2, ..., or 0 for none
        self.cell_of = np.array([k for name in self._numbers for k in (
            range(1, cells + 1) if parameters.is_each(name) else (0,))], dtype=int)
        self.all = Look(problem.likelihood)
        self.floor = problem.likelihood.floor
        self.unit, self.resistance = 1.0, RESISTANCE
        self.size = float(np.mean(self.whole.volumes) ** (1 / 3))
        outside = problem.walls.permeability(np.zeros(len(self.whole.cells), int),
                                             self.whole.sides)
        self._forward = problem.forward(self.whole.facet_values(outside))
        self._assembly = Assembly(self._forward, self.whole)
        self._known: dict[tuple, tuple[Blocks, Walls]] = {}
        self._engines: dict[int, tuple] = {}

    # ---- theta ----------------------------------------------------------------------------------

    @cached_property
    def start(self) -> np.ndarray:
        """Coordinates of the unknown numbers at the start, ``(P,)``."""
        return np.array([u.coordinate(u.start) for u in self._unknown])

    @cached_property
    def bounds(self) -> np.ndarray:
        """Their ranges, ``(2, P)``."""
        return np.array([u.range for u in self._unknown]).reshape(-1, 2).T

    @cached_property
    def precision(self) -> np.ndarray:
        """Of their priors round the start, ``(P,)``."""
        return np.array([u.precision for u in self._unknown])

    @property
    def _unknown(self) -> list[parameters.Unknown]:
        return [self._numbers[name] for name in self.names]

    def active(self, labels: np.ndarray) -> np.ndarray:
        """Which of them a hypothesis with these labels has, ``(P,)`` bool."""
        return self.cell_of <= labels.max(initial=0)

    def values(self, theta: np.ndarray, cells: int | None = None) -> dict:
        """The unknown numbers at coordinates, by name; those of ``cells`` cells where each has one.
        """
        found: dict = {}
        for name, unknown, cell, x in zip(self.names, self._unknown, self.cell_of, theta,
                                          strict=True):
            if not cell:
                found[name] = unknown.value(x)
            elif cells is None or cell <= max(cells, 1):
                found[name] = (*found.get(name, ()), unknown.value(x))
        return found

    def coordinates(self, values: parameters.Theta) -> np.ndarray:
        """Coordinates of unknown numbers by name; further cells have the value of the last one."""
        def of(name, cell):
            given = np.atleast_1d(values[name])
            return given[min(max(cell, 1), len(given)) - 1]

        return np.array([unknown.coordinate(of(name, cell)) for name, unknown, cell in zip(
            self.names, self._unknown, self.cell_of, strict=True)])

    @cached_property
    def design(self) -> list[np.ndarray]:
        """Coordinates to begin with: the start, and points that fill the ranges evenly.

        Cells have the same values there.
        """
        if not self.names:
            return [self.start]
        (low, high), unknown = self.bounds, list(self._numbers)
        number = min(DESIGN[0] * len(unknown), DESIGN[1])
        points = qmc.Halton(len(unknown), scramble=False).random(number + 1)[1:]
        points = points[:, [unknown.index(name) for name in self.names]]
        return [self.start, *(low + points * (high - low))]

    def _apply(self, theta: np.ndarray, labels: np.ndarray) -> Walls:
        return parameters.apply(self.values(theta), self._forward, self.problem.walls,
                                labels[self.whole.owned_cells])

    def _at(self, theta: np.ndarray) -> tuple[Blocks, Walls]:
        key = (self.resistance, theta.tobytes())
        if key not in self._known:
            if len(self._known) > 8:  # slopes, and the way back
                self._known.clear()
            values, known = self.values(theta), self.problem.walls
            walls = parameters.apply(values, self._forward, known)
            labels = range(self._cells + 1 if parameters.labelled(values) else 1)
            self._known[key] = self._assembly.blocks(walls, self.resistance, [
                partial(parameters.apply, values, self._forward, known, label)
                for label in labels]), walls
        return self._known[key]

    # ---- sharing out ----------------------------------------------------------------------------

    def shared(self, function: Callable, items: Sequence) -> list:
        """``[function(item) for item in items]``, the items dealt out to the ranks."""
        mine = [function(item) for item in items[self.comm.rank:: self.comm.size]]
        parts = self.comm.allgather(mine)
        return [parts[k % self.comm.size][k // self.comm.size] for k in range(len(items))]

    # ---- partitions -----------------------------------------------------------------------------

    def partition(self, theta: np.ndarray) -> PartitionModel:
        """The model of sharp hypotheses."""
        blocks, walls = self._at(theta)
        return PartitionModel(blocks, walls, PARTITION_MODES if walls.absorbing else None)

    def residuals(self, shapes: list[np.ndarray], theta: np.ndarray, look: Look) -> np.ndarray:
        """Of partitions, not corrected by the full model, ``(n, N)``."""
        model = self.partition(theta)
        values = self.shared(lambda labels: self.residual(model, labels, look), shapes)
        return np.array(values).reshape(len(shapes), len(look.measured))

    def residual(self, model: PartitionModel, labels: np.ndarray, look: Look) -> np.ndarray:
        """Of one partition, ``(N,)``. Not collective."""
        signals = model.signals(labels, look.sweeps(PARTITION_STEP))
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

    # ---- graded shapes --------------------------------------------------------------------------

    def graded(self, theta: np.ndarray, modes: int, mass_floor: float = FLOOR) -> GradedModel:
        """The model of shares of cells."""
        return GradedModel(*self._at(theta), modes, mass_floor)

    def graded_jacobian(self, model: GradedModel, c: np.ndarray, look: Look,
                        longest: float) -> tuple[np.ndarray, np.ndarray]:
        """Expected magnitudes and their derivatives by the shares; sweeps dealt out to ranks."""
        S, J = model.jacobian(c, look.sweeps(longest),
                              lambda k: k % self.comm.size == self.comm.rank)
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
        if id(look) not in self._engines:
            number = int(FULL_MODES[self.problem.absorbing] * len(self.whole.cells))
            number = min(max(FEWEST_MODES, number), self._forward.num_unknowns)
            self._engines[id(look)] = look, MatrixFormalism(
                self._forward, look.likelihood.acquisition, number)
        return self._engines[id(look)][1].signals(kappa)

    def fit_resistance(self, labels: np.ndarray, theta: np.ndarray, look: Look) -> None:
        """Fit how much of open facets' resistance cells take over, to the full model at a shape.

        No formula gives it; see `engines.shapes.blocks.Assembly`.
        """
        full, trial = self.exact(labels, theta, look), []
        for self.resistance in TRIALS:
            trial.append(self.residual(self.partition(theta), labels, look) - full)
        slope = (trial[1] - trial[0]) / (TRIALS[1] - TRIALS[0])
        best = TRIALS[0] - (trial[0] @ slope) / max(slope @ slope, 1e-300)
        self.resistance = float(np.clip(best, 0.0, MOST))
