"""What a run says on the terminal: rank 0 speaks, the others are silent."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import __version__
from .._stack import load_stack
from ..config import ExtraTermsSection, KnownTissue, PermeabilitySection
from ..errors import one_line
from ..inversion import TAO, InverseProblem, Progress, Shapes, Stage
from ..inversion.parameters import KINDS, NOISE, SCALE, Unknown
from ..mesh import Mesh
from ..units import describe_diffusivity, describe_permeability
from .mesh_facts import UNITS

SPEED_OF_LAST = 600.0  # s, whose iterations say how long the others will take
LINE_EVERY = 30.0  # s, of a simulation in a log
MOST_TAGS = 12  # that are shown


class Screen:
    """Lines and a progress bar on the terminal of rank 0; ``quiet``: warnings and errors only."""

    def __init__(self, comm, quiet: bool = False):
        self.speaks = comm.rank == 0
        self.quiet = quiet or not self.speaks
        self._bar: Any = None  # of rich
        self._task: Any = None

    def say(self, *lines: str) -> None:
        """Print lines."""
        for line in lines:
            if self.quiet:
                return
            if self._bar is not None:
                self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
                continue
            try:
                print(line, flush=True)
            except BrokenPipeError:  # the reader has gone, as head does; the run goes on
                self.quiet = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def warn(self, *messages) -> None:
        """Print each warning as one line on standard error."""
        for message in messages if self.speaks else ():
            print(f"spinverse: warning: {one_line(message)}", file=sys.stderr, flush=True)

    @contextmanager
    def held_warnings(self):
        """Collect warnings of the block; show them at its end, each once, also before its error."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", UserWarning)
                yield
        finally:
            self.warn(*dict.fromkeys(str(item.message) for item in caught))

    @contextmanager
    def working(self):
        """Gives ``progress`` of an engine: a bar on a terminal, now and then a line in a log."""
        begin = last = time.monotonic()

        def progress(what: str, done: int, total: int) -> None:
            nonlocal last
            if self._bar is not None:
                self._bar.update(self._task, description=what, completed=done, total=total or None)
            elif (now := time.monotonic()) - last >= LINE_EVERY:
                last = now
                self.say(f"{what}{f': {done} of {total}' if total else ''}, {now - begin:.0f} s")

        with self.progress_bar(None):
            yield progress

    @contextmanager
    def progress_bar(self, total: int | None, done: int = 0, **fields):
        """A bar below the lines, where standard output is a terminal; with words in fields."""
        if self.quiet or not sys.stdout.isatty():
            yield
            return
        from rich import progress as rich

        self._bar = rich.Progress(
            rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(),
            *(rich.TextColumn(f"{name} {{task.fields[{name}]}}") for name in fields),
            rich.TimeElapsedColumn(),
            rich.TextColumn("left"), rich.TimeRemainingColumn(), transient=True,
            speed_estimate_period=SPEED_OF_LAST)
        self._task = self._bar.add_task("starting", total=total, completed=done, **fields)
        try:
            with self._bar:
                yield
        finally:
            self._bar = None

    def iteration(self, item: Progress, done: int) -> None:
        """One line for an iteration, and the bar; ``done`` counts those of all stages."""
        priors = "".join(f"  {name} {value:9.3e}" for name, value in item.priors.items())
        words = f"{item.phase:<10} data {item.data:10.4e}" if item.phase else (
            f"loss {item.loss:10.4e}  data {item.data:10.4e}{priors}  |g| {item.gradient:9.3e}"
            f"  step {item.step:9.3e}")
        self.say(f"{item.stage:>14} {item.iteration:4d}  {words}  {item.seconds:8.1f} s")
        if self._bar is not None:
            self._bar.update(self._task, description=f"{item.stage} {item.phase}",
                             completed=done, misfit=f"{item.data:.3e}")


def count(mesh: Mesh, chosen: np.ndarray) -> int:
    """Number of chosen facets of the whole mesh. Collective."""
    return mesh.comm.allreduce(int(np.count_nonzero(chosen)))


def versions(comm) -> str:
    """Versions and ranks in a line."""
    return (f"spinverse {__version__} on {comm.size} rank{'s' * (comm.size > 1)}; "
            f"{load_stack().describe()}")


def _describe(value, describe) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"tag {tag}: {_describe(v, describe)}" for tag, v in value.items())
    return describe(value) if np.ndim(value) == 0 else f"tensor {value} um^2/ms"


def describe_mesh(mesh: Mesh) -> list[str]:
    """The size of the mesh. Collective."""
    volume = mesh.comm.allreduce(float(mesh.cell_volumes[: mesh.num_owned_cells].sum()))
    size = " x ".join(f"{a:.4g}" for a in np.ptp(mesh.bounds, axis=0)[: mesh.dim])
    amount = f"{('length', 'area', 'volume')[mesh.dim - 1]} {volume:.6g} {UNITS[mesh.dim]}"
    kind = "curved cells" if mesh.curved else "cells"
    return [f"mesh: {mesh.name}: {mesh.num_cells} {kind}, {mesh.num_facets} facets "
            f"({count(mesh, mesh.outer)} outer, {count(mesh, mesh.interface > 0)} of a known "
            f"membrane), " + (f"{size} um, " if mesh.dim > 1 else "") + amount, *_tags(mesh)]


def _tags(mesh: Mesh) -> list[str]:
    """What a run file may give values by, with sizes. Collective."""
    owned = mesh.num_owned_cells
    kinds = [("cells", mesh.cell_tags[:owned], mesh.cell_volumes[:owned], UNITS[mesh.dim]),
             ("membranes", mesh.interface, mesh.facet_areas * (mesh.interface > 0),
              UNITS[mesh.dim - 1])]
    words = []
    for name, tags, sizes, of in kinds:
        sums: Counter = Counter()
        for part in mesh.comm.allgather({int(tag): float(sizes[tags == tag].sum())
                                         for tag in np.unique(tags)}):
            sums.update(part)
        if name == "membranes":
            sums.pop(0, None)
        if sums:
            shown = [f"{tag} ({sums[tag]:.4g} {of})" if of else f"{tag}" for tag in sorted(sums)]
            more = f", ... {max(sums)}" if len(shown) > MOST_TAGS else ""
            words.append(f"{name} {', '.join(shown[:MOST_TAGS])}{more}")
    return [f"tags: {'; '.join(words)}"]


def describe_tissue(tissue: KnownTissue) -> list[str]:
    """Diffusivity, T2, T1, density, boundary, periodic axes."""
    density = tissue.density
    varied = isinstance(density, Mapping) and len(set(density.values())) > 1
    at_rest = {"equilibrium": "at rest across membranes", "plain": "levelling out"}
    axes = getattr(tissue, "periodic", "")
    def time(v) -> str:
        return "none" if np.isinf(v) else f"{v:g} ms"

    T1 = "" if tissue.T1_ms == np.inf else f"T1: {_describe(tissue.T1_ms, time)}; "
    return [f"diffusivity: {_describe(tissue.diffusivity_um2_per_ms, describe_diffusivity)}",
            f"T2: {_describe(tissue.T2_ms, time)}; {T1}"
            f"density {_describe(density, lambda v: f'{v:g}')}"
            + (f" ({at_rest[tissue.interface]}: interface {tissue.interface})" if varied else "")
            + f"; outer boundary {tissue.boundary}"
            + (f", periodic along {', '.join(axes)}" if axes else "")]


def describe_known_permeability(section: PermeabilitySection) -> str:
    """Permeability of a simulation, in both units."""
    if section.file is not None:
        return f"permeability: of {section.file}"

    def words(value):
        return "inf (both sides one)" if np.isinf(value) else describe_permeability(value)

    values = {name: section.value(name, default) for name, default in (
        ("membrane", None), ("elsewhere", np.inf), ("outer", 0.0))}
    return "permeability: " + "; ".join(f"{name} {_describe(value, words)}"
                                        for name, value in values.items() if value is not None)


def describe_extra_terms(section: ExtraTermsSection | None) -> list[str]:
    """That code of the user's runs, and with which coefficients; nothing without it."""
    if section is None:
        return []
    values = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
              for name, value in section.coefficients.items()]
    times = ", ".join(f"{time:g}" for time in section.breakpoints_ms)
    return [f"extra terms: function {section.function} of {section.file} (code of the run file is "
            "executed)" + (f", coefficients {', '.join(values)}" if values else "")
            + (f", jumps at {times} ms" if times else "")]


def describe_posterior(section) -> list[str]:
    """What a posterior is asked to be, one line; none without the section."""
    if section is None:
        return []
    prior = section.prior
    scale = "usual" if prior.area_scale_um2 is None else f"{prior.area_scale_um2:g} um^2"
    most = section.sampling().blocks * section.samples
    return [f"posterior: {section.samples} samples, up to {most} until chains agree, "
            f"{section.chains} chains, prior: area scale {scale}, volume about "
            f"{prior.volume_fraction:g} of the box (spread of its logarithm "
            f"{prior.volume_spread:g})"]


def describe_unknown(unknown: Mapping[str, Unknown]) -> list[str]:
    """Numbers that are found with the membranes, a line each."""
    def one(name: str, value: Unknown) -> str:
        kind = KINDS.get(name)
        found = {SCALE: "one factor of all signals, the one that fits best",
                 NOISE: "estimated before the search, less where a solution leaves less"}
        if name in found and value == KINDS[name].usual:
            return f"unknown {name}: {found[name]}"
        unit = f" {kind.unit}" if kind and kind.unit else ""
        each = " of each cell" if kind and kind.each else ""
        prior = "" if value.deviation is None else f", prior deviation {value.deviation:g}"
        return (f"unknown {name}{each}: {value.low:g} to {value.high:g}{unit}, start "
                f"{value.start:g} ({value.scale} scale{prior})")

    return [one(name, value) for name, value in unknown.items()]


def describe_facets(problem: InverseProblem, stages: Sequence[Stage | Shapes],
                    start: float) -> list[str]:
    """What is known of the permeability of walls, and of facets."""
    low, high = (describe_permeability(value) for value in problem.permeability_range)
    lines = []
    if any(isinstance(stage, Shapes) for stage in stages):
        if "wall_permeability" not in problem.unknown:
            wall = describe_permeability(problem.walls.first)
            lines.append(f"permeability of walls: {wall}, taken as known")
        lines.append(f"other facets: {high}")
    if any(isinstance(stage, Stage) for stage in stages):
        lines.append(f"unknown permeability of facets: {low} to {high}, start "
                     f"{describe_permeability(start)}")
    return lines


def describe_engine(run) -> str:
    """Engine and accuracy."""
    if run.engine == "time_stepping":
        steps = f"as long as {run.tolerance:g} of S/S0 allows" if run.time_step_ms == "auto" \
            else f"up to {run.time_step_ms:g} ms"
        return f"engine: time stepping, steps {steps}"
    if run.engine == "direction_bases":
        return "engine: a basis for each direction"
    modes = f"as many as {run.tolerance:g} of S/S0 needs" if run.modes == "auto" else run.modes
    if run.modes == "auto" and hasattr(run, "stages"):
        modes = f"a quarter of the number of cells; for the final signals {modes}"
    return f"engine: matrix formalism, modes: {modes}"


def describe_accuracy(run, engine) -> tuple[dict, str]:
    """What an engine used, after its first signals: for summary.json, and in a line."""
    error = float(engine.estimated_error)
    if np.isfinite(error):
        words = f"estimated error {error:.1g} of S/S0 (tolerance {run.tolerance:g})"
    else:
        key = "time_step_ms" if run.engine == "time_stepping" else "modes"
        words = f"error not estimated ({key}: auto does)"
    used = {"engine": run.engine, "estimated_error": error if np.isfinite(error) else None}
    if run.engine == "time_stepping":
        step = float(engine.time_step)
        return {**used, "time_step_ms": step}, f"time stepping: steps up to {step:.3g} ms, {words}"
    if run.engine == "direction_bases":
        return ({**used, "modes": engine.num_modes},
                f"{engine.num_modes} functions for each direction, {words}")
    return ({**used, "modes": engine.num_modes},
            f"matrix formalism: {engine.num_modes} modes, {words}")


def describe_stage(number: int, stage: Stage | Shapes) -> str:
    """A stage of a reconstruction in a line."""
    if isinstance(stage, Shapes):
        most = "" if stage.cells is None else f"up to {stage.cells} "
        return (f"stage {number + 1}: {stage.name}: search for the shapes of {most}"
                f"cells, {stage.rounds} rounds of {stage.candidates} candidates")
    which = stage.sequences
    words = [f"{stage.iterations} iterations", "all sequences" if which == "all" else
             f"sequence{'s' * (len(which) > 1)} {', '.join(map(str, which))}"]
    if np.isfinite(stage.b_max):
        words.append(f"b up to {stage.b_max:g} s/mm^2")
    optimiser = stage.optimiser
    words.append(f"TAO {optimiser.type}" if isinstance(optimiser, TAO)
                 else type(optimiser).__name__)
    words += [f"{name} {weight}" for name, weight in stage.priors.items()]
    return f"stage {number + 1}: {stage.name}: {', '.join(words)}"


def describe_result(rule: dict, number: int, figures: dict | None) -> list[str]:
    """What was found, in words."""
    cut = f" at {describe_permeability(rule['cut_um_per_ms'])}" if "cut_um_per_ms" in rule else ""
    found = f"membrane: {number} facets by the rule {rule['rule']}{cut}"
    if figures is None:
        return [found, "the true membrane is not known, so there are no metrics"]
    words = {"precision": "precision", "recall": "recall", "f1": "F1", "iou": "IoU",
             "bad_edges_percent": "bad edges (%)", "chamfer": "Chamfer (um^2)",
             "adjusted_rand_index": "adjusted Rand index of the cells", "auc": "AUC",
             "best_f1": "best F1 of any threshold"}
    said = [f"{word} {'undefined' if figures[name] is None else format(figures[name], '.4g')}"
            for name, word in words.items()]
    return [found, f"against the true membrane (interior facets): {figures['true']} true, "
            f"{figures['false_negatives']} of them missed, {figures['false_positives']} false; "
            + ", ".join(said[:4]), "; ".join(said[4:])]
