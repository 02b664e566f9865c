"""What a reconstruction writes down as it goes: progress, checkpoints, endings, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..mesh.distributed import Mesh
from .clock import Clock
from .facets.memory import Memory
from .parameters import Theta


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
class State:
    """What stages hand on.

    Attributes:
        permeability: ``(nf,)`` um/ms of the owned facets.
        labels: ``(owned cells,)`` int32 where shapes were searched for, 0 outside; else None.
        theta: values of unknown numbers, by name (`parameters.Theta`).
        surface: `shapes.smooth_surfaces.SmoothCells` where smooth surfaces explain more than
            labels; these are nearest to them.
    """

    permeability: np.ndarray
    labels: np.ndarray | None = None
    theta: Theta = field(default_factory=dict)
    surface: Any = None


class Saver:
    """Is told of states to go on from; this one keeps none. Called on every rank."""

    def within(self, stage: int, iteration: int, state: State,
               memory: Callable[[], Memory]) -> None:
        """In the middle of a stage; ``memory()`` makes what its optimiser needs to go on."""

    def due(self) -> bool:
        """Whether it is time to keep a state, where that costs something."""
        return False

    def after(self, stage: int, state: State) -> None:
        """A stage has ended."""


class Ledger:
    """Shared by all stages of a reconstruction.

    Args:
        progress: called after every iteration, on every rank.
        saver: for checkpoints.
        memory: of the optimiser of the first stage, as `Memory.scattered` takes it, when this stage
            was interrupted: it goes on as if it had not been.

    Attributes:
        history: one `Progress` an iteration.
        endings: why each stage ended.
        clock: seconds by phase.
        evaluations: of losses and of shapes.
    """

    def __init__(self, progress: Callable[[Progress], None] | None = None,
                 saver: Saver | None = None, memory: dict[str, np.ndarray] | None = None):
        self._progress, self.saver, self._memory = progress, saver or Saver(), memory
        self.history: list[Progress] = []
        self.endings: dict[str, str] = {}
        self.clock, self.evaluations = Clock(), 0
        self._begin = time.perf_counter()
        self._stage = 0

    def report(self, stage: str, iteration: int, loss: float, data: float, *,
               priors: dict | None = None, gradient: float = np.nan, step: float = np.nan,
               phase: str = "") -> None:
        """Write an iteration down and tell of it."""
        item = Progress(stage, iteration, loss, data, priors or {}, gradient, step, self.seconds,
                        phase)
        self.history.append(item)
        if self._progress is not None:
            self._progress(item)

    def earlier(self, mesh: Mesh) -> Memory | None:
        """What the first stage was interrupted with; None for other stages. Collective."""
        if self._memory is None or self._stage:
            return None
        return Memory.scattered(mesh, self._memory)

    def keep(self, iteration: int, state: State, memory: Callable[[], Memory]) -> None:
        """Tell the saver of a state in the middle of the present stage."""
        self.saver.within(self._stage, iteration, state, memory)

    def due(self) -> bool:
        """Whether the saver waits for a state."""
        return self.saver.due()

    def end(self, stage: str, why: str, state: State) -> None:
        """Close the present stage."""
        self.endings[stage] = why
        self.saver.after(self._stage, state)
        self._stage += 1

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._begin
