"""For a dry run: what was understood in words and in SI units, and what the run will take.

Times and memory are within a factor of about three of one core of 2024: fits to runs of 600 to
41000 unknowns and 80 to 900 modes (`engines.modal.costs`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .. import units
from ..acquisition import Acquisition
from ..config import KnownTissue, ReconstructConfig, SimulateConfig
from ..engines.march.time_stepping import TimeStepping
from ..engines.modal.costs import driven, eigenproblem, of_modes, of_turned_bases
from ..engines.modal.matrix_formalism import MatrixFormalism
from ..engines.modal.turned_bases import TurnedBases
from ..engines.shapes.directions import DirectionBases
from ..extra_terms import has
from ..inversion import GaussNewton, Shapes, Stage
from ..mesh import Mesh
from ..report.mesh_facts import MeshFacts

_PROCESS = 300.0  # MiB of a rank that has done nothing yet
_START = 5.0  # s to load, compile forms, write files and figures
_LONG = 180.0  # s: an estimate that is said before the run


def in_words(tissue: KnownTissue, facts: MeshFacts, acquisition: Acquisition) -> list[str]:
    """How far magnetisation moves in how much time on which mesh; the same values in SI units."""
    D, T2 = _largest(tissue.diffusivity_um2_per_ms), _largest(tissue.T2_ms)
    echo = np.array([waveform.echo_time for waveform in acquisition.waveforms])
    longest = float(np.nanmax(acquisition.diffusion_time, initial=0.0)) or echo.max()
    pulses = acquisition.delta[np.isfinite(acquisition.delta)]
    strongest = np.max(acquisition.gradient_strength_mT_m, initial=0.0)
    times = {"delta": pulses, "TE": echo} if len(pulses) else {"TE": echo}
    return [
        f"in words: along an axis magnetisation that nothing hinders moves "
        f"{np.sqrt(2 * D * longest):.3g} um in the longest diffusion time, {longest:.4g} ms; the "
        f"mesh has edges of {facts.edges[1]:.3g} um",
        f"in SI: diffusivity {units.diffusivity_from_internal(D):.4g} m^2/s; T2 "
        + ("none" if not np.isfinite(T2) else f"{units.time_from_internal(T2):.4g} s")
        + f"; mesh edges {units.length_from_internal(facts.edges[1]):.3g} m; b up to "
        f"{units.b_to_si(acquisition.b.max()):.4g} s/m^2; gradients up to "
        f"{units.gradient_to_si(strongest):.4g} T/m; "
        + "; ".join(f"{name} {units.describe_range(units.time_from_internal(values))} s"
                    for name, values in times.items())]


@dataclass(frozen=True)
class Estimate:
    """Of each of the ranks, and the number of modes if there are any; ``lines`` say it."""

    seconds: float
    memory: float  # MiB
    modes: int | None
    lines: list[str]

    @property
    def at_start(self) -> list[str]:
        """What is said before a run that takes long."""
        return self.lines if self.seconds > _LONG else []


def of_simulation(run: SimulateConfig,
                  engine: MatrixFormalism | TimeStepping | DirectionBases | TurnedBases,
                  ) -> Estimate:
    """Time and memory of ``spinverse simulate``. Collective."""
    problem, acquisition = engine.problem, engine.acquisition
    mesh, unknowns = problem.mesh, problem.num_unknowns
    if isinstance(engine, TimeStepping):
        timed = has(problem.extra_form, problem.t)
        seconds = _stepping(run.time_step_ms, acquisition, unknowns, timed)
        memory = _PROCESS + 60e-6 * 8 * (2 * unknowns) ** (4 / 3)
        return _said(mesh, seconds, memory)
    if isinstance(engine, TurnedBases):
        return _said(mesh, of_turned_bases(engine), _PROCESS + 0.1 * unknowns)
    if isinstance(engine, DirectionBases):
        solves = engine.num_modes * len(np.unique(acquisition.directions, axis=0))
        return _said(mesh, 5e-7 * solves * unknowns**1.33, _PROCESS + 2e-2 * unknowns)
    seconds, kinds = of_modes(engine)
    number = sum(tries[-1] * copies for _, tries, copies in kinds)
    memory = max(_modes_memory(size, tries[-1], 0) for size, tries, _ in kinds)
    return _said(mesh, seconds, memory, number, f", {number} modes")


def of_reconstruction(run: ReconstructConfig, mesh: Mesh, acquisition: Acquisition,
                      stages: list[Stage | Shapes]) -> Estimate:
    """Time and memory of ``spinverse reconstruct``, if every stage takes all it may. Collective."""
    unknowns = 4 * mesh.num_cells
    number = min(max(96, mesh.num_cells // 4) if run.modes == "auto" else run.modes, unknowns)
    seconds, searched, most = 0.0, 0.0, 0
    for stage in stages:
        if isinstance(stage, Shapes):
            # dense up to a thousand cells; beyond, the full model's eigenproblem is what grows
            size = mesh.num_cells / 576
            searched += 60.0 * min(size**2, 2.5 * size) * len(acquisition) / 540
            continue
        part = acquisition.select(stage.rows(acquisition))
        most = max(most, len(part))
        if run.engine == "time_stepping":
            once = 3 * _stepping(run.time_step_ms, part, unknowns)
        else:
            steep = 5 if isinstance(stage.optimiser, GaussNewton) else 3
            once = eigenproblem(unknowns, number) + steep * _evolution(number, part)
        seconds += 1.2 * stage.iterations * once
    final = min(2 * number, unknowns)
    seconds += 2 * eigenproblem(unknowns, final) + 6 * _evolution(final, acquisition)
    words = f", {number} modes in the stages" if run.engine == "matrix_formalism" and most else ""
    estimate = _said(mesh, seconds + searched,
                     _modes_memory(unknowns, final, max(most, len(acquisition))), number, words)
    if searched:
        estimate.lines.append("a search for shapes ends when the data are explained: a third of "
                              "that if it is lucky, ten times if it is not")
    return estimate


def _said(mesh: Mesh, seconds: float, memory: float, modes: int | None = None,
          words: str = "") -> Estimate:
    ranks = mesh.comm.size
    seconds, memory = _START + seconds / ranks**0.7, _PROCESS + (memory - _PROCESS) / ranks
    each = f" on each of {ranks} ranks" if ranks > 1 else ""
    return Estimate(seconds, memory, modes, [
        f"estimate: about {_duration(seconds)} and {_round(memory / 1024, 2):g} GiB{each}{words} "
        "(rough: a factor of three)"])


def _evolution(number: int, acquisition: Acquisition) -> float:
    """Of the time with gradients, on meshes of few cells."""
    return 3e-4 * float(driven(acquisition).sum()) * (number / 200) ** 2


def _stepping(step, acquisition: Acquisition, unknowns: int, timed: bool = False) -> float:
    """A factor for each gradient, or for each step where the equation knows the time; steps."""
    TE = acquisition.echo_time
    steps = np.full(len(TE), 150.0) if step == "auto" else TE / step
    size = unknowns / 10_000
    factors = steps if timed else 1.0
    return float((9.0 * size**1.7 * factors + 0.1 * size**1.2 * steps).sum())


def _modes_memory(unknowns: int, number: int, remembered: int) -> float:
    """MiB: basis, factor, and the states of ``remembered`` measurements for a gradient."""
    arrays = 5 * 8.0 * unknowns * number + 1600.0 * remembered * number + 500 * unknowns ** (4 / 3)
    return _PROCESS + arrays / 2**20


def _largest(value) -> float:
    values = value.values() if isinstance(value, Mapping) else [value]
    return max(float(np.max(np.abs(v))) for v in values)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{_round(seconds / size):g} {unit}"
    return f"{max(1.0, _round(seconds)):g} s"


def _round(value: float, digits: int = 1) -> float:
    return float(f"{value:.{digits}g}")
