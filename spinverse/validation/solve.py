"""What a validation run is to do, and engines on a set of measurements, timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mpi4py import MPI

from ..acquisition.table import Acquisition
from ..acquisition.waveform import Waveform
from ..problem import BlochTorrey
from ..simulate import make_engine
from .discretisation import DEFAULT, LEVELS, REFINED

MATRIX_FORMALISM, TIME_STEPPING = "matrix_formalism", "time_stepping"
ENGINES = (MATRIX_FORMALISM, TIME_STEPPING)
BOTH = "both"


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Attributes:
        comm: of the meshes.
        refined: whether the refined level runs too.
        engine: "both", "matrix_formalism" or "time_stepping".
        tolerance: of modes and steps at the default level; a tenth of it at the refined one.
        everything: time stepping of all 3-D measurements on both levels, not of the strongest
            on the default one alone.
    """

    comm: MPI.Comm = field(default_factory=lambda: MPI.COMM_WORLD)
    refined: bool = False
    engine: str = BOTH
    tolerance: float = 1e-4
    everything: bool = False

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels to run."""
        return LEVELS if self.refined else (DEFAULT,)

    def runs(self, engine: str) -> bool:
        """Whether an engine is wanted."""
        return self.engine in (BOTH, engine)

    def steps_through(self, dim: int, level: str) -> bool:
        """Whether time stepping runs on a mesh: in 3-D at the default level, or if asked for."""
        return self.runs(TIME_STEPPING) and (dim < 3 or level == DEFAULT or self.everything)

    def tolerance_at(self, level: str) -> float:
        """What modes and steps may leave."""
        return self.tolerance / 10 if level == REFINED else self.tolerance


@dataclass(frozen=True)
class Measurement:
    """A waveform, a b-value (s/mm^2) and a direction."""

    waveform: Waveform
    b: float
    direction: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Solved:
    """Signals of an engine.

    Attributes:
        signals: of each measurement, over the magnetisation at time 0.
        resolution: modes or time step in words.
        estimated_error: what the engine says that modes or steps leave.
    """

    signals: dict[Measurement, float]
    resolution: str
    estimated_error: float
    seconds: float

    @property
    def columns(self) -> dict:
        """The columns of a `Row` that the engine fills."""
        return {"resolution": self.resolution, "estimated_error": self.estimated_error}

    def average(self, rows: Sequence[Sequence[Measurement]]) -> tuple[float, ...]:
        """Means over the measurements of each row."""
        return tuple(float(np.mean([self.signals[m] for m in row])) for row in rows)


def solve(problem: BlochTorrey, measurements: Sequence[Measurement], engine: str, tolerance: float,
          modes: int | str = "auto", time_step: float | str = "auto") -> Solved:
    """Run an engine on every distinct measurement. Collective."""
    began = time.perf_counter()
    distinct = list(dict.fromkeys(measurements))
    table = Acquisition.from_rows([m.b for m in distinct], [m.direction for m in distinct],
                                  waveforms=[m.waveform for m in distinct])
    solver: Any = make_engine(problem, table, engine, modes, tolerance, time_step)
    values = solver.signals() / problem.magnetisation_at_start
    words = (f"{solver.num_modes} modes" if engine == MATRIX_FORMALISM
             else f"{solver.time_step:.3g} ms")
    return Solved(dict(zip(distinct, values.real.tolist(), strict=True)), words,
                  float(solver.estimated_error), time.perf_counter() - began)
