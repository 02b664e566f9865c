"""``spinverse simulate``: from a run file to signals, and what is derived from them."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from mpi4py import MPI

from .. import config
from ..acquisition import Acquisition, Signals, description
from ..acquisition.io import write_signals
from ..config.physics import in_keys
from ..errors import InputError, SolverError, on_root
from ..inversion.clock import Clock
from ..mesh import Mesh
from ..problem import BlochTorrey
from ..report import folder
from ..report import screen as terminal
from ..simulate import LARGE, degree_for, make_engine, name_of, signals_of
from ..tissue import Tissue
from . import derived, estimates, shared

HELP = "signals of a mesh with membranes"
COMPLEX = 1e-3  # imaginary part over the largest signal from which phases are worth a figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the run file")
    parser.add_argument("--dry-run", action="store_true",
                        help="say what was understood, simulate nothing; needs no -o")


def run(arguments, comm: MPI.Comm) -> None:
    """Simulate what the run file says; SolverError, when all is written, of fits. Collective."""
    screen, clock, out = terminal.Screen(comm, arguments.quiet), Clock(), arguments.output
    if out is not None and not arguments.dry_run:
        on_root(comm, folder.check_output, out, arguments.force)
    name = arguments.config
    with screen.held_warnings(), clock("read inputs"):
        run = shared.everywhere(comm, config.read, name, config.SimulateConfig)
        with shared.named(str(name)):
            extra = run.extra_arguments(comm)
            acquisition = shared.everywhere(comm, config.read_table, run.acquisition)
            mesh, made = shared.make_mesh(run.mesh, comm, boundary=run.tissue.boundary)
        with shared.named(f"{name}: tissue"):
            tissue = _tissue(run, mesh)
        with shared.named(f"{name}: quantities"):
            derived.check(run.quantities, acquisition)
        inputs = shared.hashes(comm, name, run, permeability=run.tissue.permeability.file)
    screen.say(terminal.versions(comm))
    facts = shared.understood(screen, run, mesh, acquisition)
    screen.say(*terminal.describe_tissue(run.tissue),
               terminal.describe_known_permeability(run.tissue.permeability),
               *terminal.describe_extra_terms(run.extra_terms),
               *(f"acquisition: {line}" for line in description.lines(acquisition)))
    with screen.held_warnings(), clock("set-up"), shared.named(str(name)), in_keys():
        problem = BlochTorrey(tissue, degree_for(tissue, acquisition, run.degree), **extra)
        # time stepping is for the user to choose: it may take hours
        kind = "matrix_formalism" if run.engine == "auto" and run.extra_terms else run.engine
        engine = make_engine(problem, acquisition.with_unweighted(), kind, run.modes,
                             run.tolerance, run.time_step_ms, derivatives=False)
        run = run.model_copy(update={"engine": name_of(engine)})
    screen.say(f"{terminal.describe_engine(run)}; polynomial degree {problem.degree}, "
               f"{problem.num_unknowns} unknowns")
    if run.quantities:
        screen.say(f"quantities: {', '.join(run.quantities)}")
    with shared.named(str(name)), in_keys():
        estimate = estimates.of_simulation(run, engine)
    if arguments.dry_run:
        screen.say(*estimates.in_words(run.tissue, facts, acquisition), *estimate.lines)
        screen.say("dry run: nothing was simulated")
        return
    screen.say(*estimate.at_start)
    with clock("quantities"), shared.named(f"{name}: quantities"):
        found = derived.of_tissue(run.quantities, problem, acquisition)
    with clock("signals"), shared.named(str(name)), in_keys(), screen.working() as engine.progress:
        signals = signals_of(engine, acquisition, run.mesh_error)
    error = signals.mesh_error
    with clock("quantities"):
        found |= derived.of_signals(run.quantities, signals)
    found = {key: found[key] for key in run.quantities}
    accuracy, words = terminal.describe_accuracy(run, engine)
    content = shared.summary(arguments, run, comm, inputs, clock)
    content |= {"measurements": len(signals), "unknowns": problem.num_unknowns, **accuracy}
    if np.isfinite(error):
        content["mesh_error"] = error
        words += f"; of the mesh {error:.1g}"
    if error > LARGE:
        screen.warn(f"mesh: estimated error {error:.2g} of S/S0, expected smaller cells"
                    + (" or degree: 2" if problem.degree == 1 else ""))

    def write() -> list[str]:
        with folder.appearing(out) as partial:
            folder.write_table(partial / "signals.csv", signals,
                               gradient_mT_per_m=acquisition.gradient_strength_mT_m,
                               diffusion_time_ms=acquisition.diffusion_time)
            write_signals(partial / "signals.npz", signals)
            shared.write_mesh(partial, made)
            notes = _figures(partial, acquisition, signals)
            if found:
                folder.write_json(partial / "quantities.json", {
                    key: {**item.values, "warnings": item.warnings} for key, item in found.items()})
            folder.write_json(partial / folder.SUMMARY, content)
        return notes

    with clock("write results"):
        notes = shared.everywhere(comm, write)
    for item in found.values():
        screen.warn(*item.warnings)
    screen.say(*notes, words, *(line for item in found.values() for line in item.lines),
               f"{len(signals)} signals in {clock.seconds['signals']:.1f} s",
               f"results in {out}")
    failed = [name for name, item in found.items() if item.failed]
    if failed:
        raise SolverError(f"no {', '.join(failed)}: the fit failed; signals and all else are in "
                          f"{out}")


def _tissue(run: config.SimulateConfig, mesh: Mesh) -> Tissue:
    section = run.tissue
    try:
        return Tissue(mesh, section.diffusivity_um2_per_ms, section.T2_ms, section.density,
                      shared.permeability(section, mesh), section.interface, section.periodic,
                      section.T1_ms)
    except InputError as error:
        if str(error).startswith("periodic: axis") and run.mesh.could_be_periodic:
            raise InputError(f"{error}; mesh.periodic: true makes it so") from None
        raise


def _figures(partial, acquisition: Acquisition, signals: Signals) -> list[str]:
    """Normalised magnitudes, over the largest where nothing is at b = 0; phases if there are."""
    largest = max(float(np.max(signals.magnitude)), 1e-300)
    notes = []
    try:
        values = signals.normalised
    except InputError as error:
        values = signals.magnitude / largest
        notes.append(f"{error}; the figure is relative to the largest signal")
    if np.abs(signals.values.imag).max() > COMPLEX * largest:
        notes.append("the signals are complex: phases in figures/phases.png")
        notes += shared.plot(partial, "phases", acquisition, signals.values)
    return [*dict.fromkeys([*notes, *shared.plot(partial, "signals", acquisition, values)])]
