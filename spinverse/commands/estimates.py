"""For a dry run: what was understood in words and in SI units, and what the run will take.

Times and memory are rough, within a factor of about three of one core of 2024; they are meant to
tell a minute from a day. Each law is a fit to runs of 96 to 2592 cells and 86 to 600 modes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import units
from ..acquisition import Acquisition
from ..config import KnownTissue, ReconstructConfig, SimulateConfig
from ..extra_terms import has
from ..inversion import GaussNewton, Shapes, Stage
from ..mesh import Mesh
from ..problem import BlochTorrey
from ..report.mesh_facts import MeshFacts

_PROCESS = 300.0  # MiB of a rank that has done nothing yet
_START = 5.0  # s to load, compile forms, write files and figures


def in_words(tissue: KnownTissue, facts: MeshFacts, acquisition: Acquisition) -> list[str]:
    """How far magnetisation moves in how much time on which mesh; the same values in SI units."""
    D, T2 = _largest(tissue.diffusivity_um2_per_ms), _largest(tissue.T2_ms)
    echo = np.array([waveform.echo_time for waveform in acquisition.waveforms])
    longest = float(np.nanmax(acquisition.diffusion_time, initial=0.0)) or echo.max()
    pulses = acquisition.delta[np.isfinite(acquisition.delta)]
    strongest = np.max(acquisition.gradient_strength_mT_m, initial=0.0)
    return [
        f"in words: along an axis magnetisation that nothing hinders moves "
        f"{np.sqrt(2 * D * longest):.3g} um in the longest diffusion time, {longest:.4g} ms; the "
        f"mesh has edges of {facts.edges[1]:.3g} um",
        f"in SI: diffusivity {units.diffusivity_from_internal(D):.4g} m^2/s; T2 "
        + ("none" if not np.isfinite(T2) else f"{units.time_from_internal(T2):.4g} s")
        + f"; mesh edges {units.length_from_internal(facts.edges[1]):.3g} m; b up to "
        f"{units.b_to_si(acquisition.b.max()):.4g} s/m^2; gradients up to "
        f"{units.gradient_to_si(strongest):.4g} T/m; "
        + (f"delta {_seconds(pulses)}; " if len(pulses) else "") + f"TE {_seconds(echo)}"]


def _seconds(times: np.ndarray) -> str:
    return f"{units.describe_range(units.time_from_internal(times))} s"


def of_simulation(run: SimulateConfig, problem: BlochTorrey,
                  acquisition: Acquisition) -> list[str]:
    """Time and memory of ``spinverse simulate``. Collective."""
    mesh, unknowns = problem.mesh, problem.num_unknowns
    if run.engine == "time_stepping":
        timed = has(problem.extra_form, problem.t)
        seconds = _stepping(run.time_step_ms, acquisition, unknowns, timed)
        memory = _PROCESS + 60e-6 * 8 * (2 * unknowns) ** (4 / 3)
        return _said(mesh, seconds, memory, "")
    number = run.modes
    if number == "auto":
        number = _modes(run.tolerance, mesh, acquisition,
                        _largest(run.tissue.diffusivity_um2_per_ms))
    number = min(number, unknowns)
    tries = 1.5 if run.modes == "auto" else 1
    seconds = tries * _eigenproblem(unknowns, number) + 1.3 * _evolution(
        number, acquisition, always=problem.num_fields > 0)
    return _said(mesh, seconds, _modes_memory(unknowns, number, 0), f", {number} modes")


def of_reconstruction(run: ReconstructConfig, mesh: Mesh, acquisition: Acquisition,
                      stages: list[Stage | Shapes]) -> list[str]:
    """Time and memory of ``spinverse reconstruct``, if every stage takes all it may. Collective."""
    unknowns = 4 * mesh.num_cells
    number = max(96, mesh.num_cells // 4) if run.modes == "auto" else run.modes
    number = min(number, unknowns)
    seconds, searched, most = 0.0, 0.0, 0
    for stage in stages:
        if isinstance(stage, Shapes):
            searched += 60.0 * (mesh.num_cells / 576) ** 2 * len(acquisition) / 540
            continue
        part = acquisition.select(stage.rows(acquisition))
        most = max(most, len(part))
        if run.engine == "time_stepping":
            once = 3 * _stepping(run.time_step_ms, part, unknowns)
        else:
            steep = 5 if isinstance(stage.optimiser, GaussNewton) else 3
            once = _eigenproblem(unknowns, number) + steep * _evolution(number, part)
        seconds += 1.2 * stage.iterations * once
    final = min(2 * number, unknowns)
    seconds += 2 * _eigenproblem(unknowns, final) + 6 * _evolution(final, acquisition)
    words = f", {number} modes in the stages" if run.engine == "matrix_formalism" and most else ""
    lines = _said(mesh, seconds + searched,
                  _modes_memory(unknowns, final, max(most, len(acquisition))), words)
    if searched:
        lines.append("a search for shapes ends when the data are explained: a third of that if it "
                     "is lucky, ten times if it is not")
    return lines


def _said(mesh: Mesh, seconds: float, memory: float, words: str) -> list[str]:
    ranks = mesh.comm.size
    seconds = _START + seconds / ranks**0.7
    memory = _PROCESS + (memory - _PROCESS) / ranks
    where = f" on each of {ranks} ranks" if ranks > 1 else ""
    return [f"estimate: about {_duration(seconds)} and {_round(memory / 1024, 2):g} GiB"
            f"{where}{words} (rough: a factor of three)"]


def _eigenproblem(unknowns: int, number: int) -> float:
    return 0.02 + 3.5 * (unknowns / 10_000) ** 1.56 * (number / 200) ** 1.2


def _evolution(number: int, acquisition: Acquisition, always: bool = False) -> float:
    """Of the time with gradients; of all of it where extra terms turn phases too."""
    delta, TE = acquisition.delta, acquisition.echo_time
    driven = TE if always else np.where(np.isfinite(delta), delta, TE / 2) * (acquisition.b > 0)
    return 3e-4 * float(driven.sum()) * (number / 200) ** 2


def _stepping(step, acquisition: Acquisition, unknowns: int, timed: bool = False) -> float:
    """A factor for each gradient, or for each step where the equation knows the time; steps."""
    TE = acquisition.echo_time
    steps = np.full(len(TE), 150.0) if step == "auto" else TE / step
    size = unknowns / 10_000
    factors = steps if timed else 1.0
    return float((9.0 * size**1.7 * factors + 0.1 * size**1.2 * steps).sum())


def _modes(tolerance: float, mesh: Mesh, acquisition: Acquisition, D: float) -> int:
    """The engine's first guess: Weyl's count down to what the strongest gradient resolves."""
    dim = mesh.dim
    volume = mesh.comm.allreduce(float(mesh.cell_volumes[: mesh.num_owned_cells].sum()))
    strongest = float(np.max(acquisition.strength, initial=0.0))
    wave = 2.5 * (strongest / max(D, 1e-12)) ** (1 / 3)
    ball = {1: 2.0, 2: np.pi, 3: 4 / 3 * np.pi}[dim]
    finer = np.clip((1e-3 / tolerance) ** 0.25, 1.0, 4.0)
    return int(min(max(48, volume * ball * (wave / (2 * np.pi)) ** dim) * finer, 400))


def _modes_memory(unknowns: int, number: int, remembered: int) -> float:
    """MiB: basis, factor, and the states of ``remembered`` measurements for a gradient."""
    arrays = 5 * 8.0 * unknowns * number + 1600.0 * remembered * number + 500 * unknowns ** (4 / 3)
    return _PROCESS + arrays / 2**20


def _largest(value) -> float:
    values = list(value.values()) if isinstance(value, Mapping) else [value]
    return max(float(np.max(np.abs(v))) for v in values)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{_round(seconds / size):g} {unit}"
    return f"{max(1.0, _round(seconds)):g} s"


def _round(value: float, digits: int = 1) -> float:
    return float(f"{value:.{digits}g}")
