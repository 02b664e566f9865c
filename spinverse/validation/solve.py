"""Runs engines on a set of measurements and times them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..acquisition.table import Acquisition
from ..acquisition.waveform import Waveform
from ..problem import BlochTorrey
from ..simulate import make_engine

MATRIX_FORMALISM, TIME_STEPPING = "matrix_formalism", "time_stepping"
ENGINES = (MATRIX_FORMALISM, TIME_STEPPING)


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
        seconds: wall time.
    """

    signals: dict[Measurement, float]
    resolution: str
    estimated_error: float
    seconds: float

    def average(self, rows: Sequence[Sequence[Measurement]]) -> tuple[float, ...]:
        """Means over the measurements of each row."""
        return tuple(float(np.mean([self.signals[m] for m in row])) for row in rows)


def solve(problem: BlochTorrey, measurements: Sequence[Measurement], engine: str,
          tolerance: float, modes: int | str = "auto",
          time_step: float | str = "auto") -> Solved:
    """Run an engine on every distinct measurement. Collective.

    Raises:
        InputError, SolverError: as the engines.
    """
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
