"""The command ``spinverse``; the same under ``mpiexec -n N``, where rank 0 speaks.

Exit codes: 0; 2 for bad input, with one line on standard error; 1 for a failure.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import sys
import time
import traceback
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

from . import __version__, config
from ._stack import load_stack
from .acquisition import Acquisition, Signals
from .acquisition.io import read_acquisition, read_signals, write_signals
from .errors import InputError, SpinverseError, StackError, on_root
from .inversion import TAO, Stage, reconstruct
from .inversion.clock import Clock
from .mesh import Mesh
from .problem import BlochTorrey
from .report import folder
from .report.screen import (
    Screen,
    count,
    describe_engine,
    describe_known_permeability,
    describe_mesh,
    describe_result,
    describe_stage,
    describe_tissue,
    one_line,
    versions,
)
from .simulate import make_engine
from .tissue import Permeability, Tissue
from .units import describe_permeability

PATIENCE = 10.0  # s that a failed rank waits for the others before it ends them


class _Parser(argparse.ArgumentParser):
    """Wrong usage is an InputError; help and version come from rank 0 only."""

    def error(self, message):
        raise InputError(f"{message} (spinverse --help shows the usage)")

    def _print_message(self, message, file=None):
        if MPI.COMM_WORLD.rank == 0:
            super()._print_message(message, file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="spinverse", description="Diffusion-MRI signals from permeable "
                     "membranes, and membranes from signals.",
                     epilog="What follows -- are PETSc options. Run in parallel with "
                     "mpiexec -n N spinverse ...")
    parser.add_argument("--version", action="version", version=f"spinverse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND",
                                     parser_class=_Parser)
    for name, words in (("simulate", "signals of a mesh with membranes"),
                        ("reconstruct", "membranes from signals")):
        command = commands.add_parser(name, help=words, description=words.capitalize() + ".")
        command.add_argument("config", type=Path, metavar="CONFIG.yaml")
        command.add_argument("-o", "--output", type=Path, required=True, metavar="DIR",
                             help="folder of the run; must not exist or be empty")
        command.add_argument("--force", action="store_true", help="overwrite an earlier run in DIR")
        command.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
        command.add_argument("--debug", action="store_true", help="show the traceback of a failure")
        if name == "reconstruct":
            command.add_argument("--resume", action="store_true",
                                 help="go on from the checkpoint in DIR, if there is one")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code. Collective over all ranks.

    Args:
        argv: arguments without the program's name; ``sys.argv`` when nothing is said.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    comm, watch = MPI.COMM_WORLD, MPI.COMM_WORLD.Dup()
    try:
        if "--" in argv:
            _set_petsc_options(argv[argv.index("--") + 1:])
            argv = argv[: argv.index("--")]
        arguments = _parser().parse_args(argv)
        if arguments.command == "simulate":
            _simulate(arguments, comm)
        else:
            _reconstruct(arguments, comm)
        return 0
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        return _fail(watch, *_exit(error, "--debug" in argv))
    finally:
        watch.Free()


def _exit(error: BaseException, debug: bool) -> tuple[int, str]:
    """Exit code and what to say."""
    cause = error
    while isinstance(cause, PETSc.Error) and cause.__cause__ is not None:
        cause = cause.__cause__  # an exception that passed through a callback of PETSc
    if isinstance(cause, InputError | StackError):
        return 2, one_line(cause)
    if isinstance(cause, KeyboardInterrupt):
        return 130, "interrupted (--resume continues a reconstruction)"
    if debug:
        return 1, "".join(traceback.format_exception(error))
    kind = "" if isinstance(cause, SpinverseError) else f"{type(cause).__name__}: "
    return 1, f"{kind}{one_line(cause)} (--debug shows where)"


def _fail(comm: MPI.Comm, code: int, message: str) -> int:
    """Say it once; if this rank failed alone, end the others, who would wait for ever."""
    request, deadline = comm.Ibarrier(), time.monotonic() + PATIENCE
    while not request.Test():
        if time.monotonic() > deadline:
            print(f"spinverse: {message}", file=sys.stderr, flush=True)
            comm.Abort(code)
        time.sleep(0.01)
    if comm.rank == 0:
        print(f"spinverse: {message}", file=sys.stderr, flush=True)
    return code


def _set_petsc_options(words: list[str]) -> None:
    if words and not words[0].startswith("-"):
        raise InputError(f"{words[0]!r} after --, expected PETSc options as -name value")
    PETSc.Options().insertString(" ".join(words))


def _everywhere(comm: MPI.Comm, function, *args, **kwargs):
    """Run on rank 0, have the result on every rank. Collective."""
    return comm.bcast(on_root(comm, function, *args, **kwargs))


@contextmanager
def _named(where: str):
    """Put the place in the run file before an InputError's message."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


# ---- inputs ---------------------------------------------------------------------------------

def _read_acquisition(section: config.AcquisitionSection, comm, name) -> Acquisition:
    if section.file is not None:
        return _everywhere(comm, read_acquisition, section.file)
    pgse = section.pgse
    with _named(f"{name}: acquisition.pgse"):
        return Acquisition.pgse(pgse.b_s_per_mm2, pgse.directions, pgse.delta_ms, pgse.Delta_ms,
                                pgse.echo_time_ms)


def _permeability(tissue: config.TissueSection, mesh: Mesh) -> Permeability:
    section, absorbing = tissue.permeability, tissue.boundary == "absorbing"
    if section.file is not None:
        from .interface import export

        values = export.read_permeability(section.file, mesh)
        return Permeability(mesh, values if absorbing else np.where(mesh.outer, 0.0, values))
    outer = section.value("outer", 0.0)
    if absorbing and not outer > 0:
        raise InputError(f"permeability.outer_m_per_s: {outer:g} with boundary absorbing, "
                         "expected a positive value")
    if outer and not absorbing:
        raise InputError(f"permeability: outer facets have {describe_permeability(outer)} with "
                         "boundary reflecting, expected boundary: absorbing")
    membrane, known = section.value("membrane", None), count(mesh, mesh.interface > 0)
    if known and membrane is None:
        raise InputError("permeability.membrane_m_per_s: missing, expected a value for the "
                         f"{known} known interface facets of the mesh")
    if membrane is not None and not known:
        raise InputError("permeability: a value for the membrane, but the mesh has no interface "
                         "facets, expected elsewhere_m_per_s alone")
    return Permeability.on(mesh, 0.0 if membrane is None else membrane,
                           section.value("elsewhere", np.inf), outer)


def _hashes(**paths: Path | None) -> dict[str, dict]:
    return {name: {"path": str(path), "sha256": folder.sha256(path)}
            for name, path in paths.items() if path is not None}


def _check_stages(stages: list[Stage], acquisition: Acquisition) -> None:
    """What would otherwise be noticed in the middle of the run."""
    for stage in stages:
        stage.rows(acquisition)
        if isinstance(stage.optimiser, TAO):
            tao = PETSc.TAO().create(comm=PETSc.COMM_SELF)
            try:
                tao.setType(stage.optimiser.type)
            except PETSc.Error:
                raise InputError(f"stage {stage.name!r}: optimiser {stage.optimiser.type!r}, "
                                 "expected a type of TAO as blmvm or bqnls") from None
            finally:
                tao.destroy()


# ---- results ---------------------------------------------------------------------------------

def _summary(arguments, run, comm: MPI.Comm, inputs: dict, clock: Clock) -> dict:
    """The part of summary.json that both commands share. Collective."""
    memory = comm.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0)
    return {"command": arguments.command, "spinverse": __version__,
            "stack": dataclasses.asdict(load_stack()), "ranks": comm.size,
            "units": {"length": "um", "time": "ms", "permeability": "um/ms", "b": "s/mm^2",
                      "signal": "um^3 times density", "seconds": "s", "memory": "MiB"},
            "config": run.model_dump(mode="python", exclude_none=True), "inputs": inputs,
            "seconds": dict(clock.seconds), "peak_memory_per_rank": memory}


# ---- simulate -------------------------------------------------------------------------------

def _simulate(arguments, comm: MPI.Comm) -> None:
    screen, clock, out = Screen(comm, arguments.quiet), Clock(), arguments.output
    on_root(comm, folder.check_output, out, arguments.force)
    with screen.held_warnings(), clock("read inputs"):
        run = _everywhere(comm, config.read, arguments.config, config.SimulateConfig)
        acquisition = _read_acquisition(run.acquisition, comm, arguments.config)
        with _named(str(arguments.config)):
            mesh = run.mesh.build(comm)
        with _named(f"{arguments.config}: tissue"):
            tissue = Tissue(mesh, run.tissue.diffusivity_um2_per_ms, run.tissue.T2_ms,
                            run.tissue.density, _permeability(run.tissue, mesh))
        inputs = _everywhere(comm, _hashes, config=arguments.config, mesh=run.mesh.file,
                             acquisition=run.acquisition.file,
                             permeability=run.tissue.permeability.file)
    screen.say(versions(comm), *describe_mesh(mesh), *describe_tissue(run.tissue),
               describe_known_permeability(run.tissue.permeability),
               *(f"acquisition: {line}" for line in acquisition.describe()),
               f"{describe_engine(run)}, polynomial degree {run.degree}")
    with clock("set-up"):
        problem = BlochTorrey(tissue, run.degree)
        engine = make_engine(problem, acquisition, run.engine, run.modes, run.tolerance,
                             run.time_step_ms)
    with clock("signals"):
        signals = Signals(acquisition, engine.signals())
    summary = _summary(arguments, run, comm, inputs, clock)
    summary |= {"measurements": len(signals), "unknowns": problem.num_unknowns,
                "modes": len(getattr(engine, "basis", None) or ())}

    def write() -> list[str]:
        with folder.appearing(out) as partial:
            folder.write_table(partial / "signals.csv", signals)
            write_signals(partial / "signals.npz", signals)
            notes = _plot(partial, "signals", acquisition, _normalised(signals))
            folder.write_summary(partial, summary)
        return notes

    screen.say(*(_everywhere(comm, write)),
               f"{len(signals)} signals in {clock.seconds['signals']:.1f} s",
               f"results in {out}")


def _normalised(signals: Signals) -> np.ndarray:
    """Normalised magnitudes; over the largest where there is nothing at b = 0."""
    try:
        return signals.normalised
    except InputError:
        return signals.magnitude / max(float(signals.magnitude.max()), 1e-300)


def _plot(run_folder: Path, name: str, *args) -> list[str]:
    """Write a figure; a line instead where matplotlib is missing."""
    from .report import plots

    (run_folder / "figures").mkdir(exist_ok=True)
    try:
        folder.replace(run_folder / "figures" / f"{name}.png",
                       lambda path: getattr(plots, name)(path, *args))
    except ImportError as error:
        if not any((run_folder / "figures").iterdir()):
            (run_folder / "figures").rmdir()
        return [f"no figure {name}.png: {one_line(error)} (pip install 'spinverse[plot]')"]
    return []


# ---- reconstruct ----------------------------------------------------------------------------

CHECKPOINT_EVERY = 20  # iterations; and after each stage


def _read_signals(run: config.ReconstructConfig, comm: MPI.Comm, name) -> Signals:
    expected = None
    if run.acquisition is not None:
        expected = _read_acquisition(run.acquisition, comm, name)

    def read() -> Signals:
        signals = read_signals(run.signals.file, expected)
        folder.check_rows(run.signals.file)
        with _named(str(run.signals.file)):
            signals.normalised  # noqa: B018 - raises where there is nothing to divide by
        return signals

    return _everywhere(comm, read)


def _resume(arguments, comm: MPI.Comm, mesh: Mesh, stages: list[Stage], hashes: dict,
            start: float) -> tuple[list[Stage], int, int, np.ndarray | float, list[dict]]:
    """What is left: stages, number of the first, its iterations done, start, old history."""
    if not arguments.resume:
        return stages, 0, 0, start, []
    names = [stage.name for stage in stages]
    found = _everywhere(comm, folder.load_checkpoint, arguments.output, names, hashes)
    if found is None:
        return stages, 0, 0, start, []
    permeability = mesh.scatter_facets(found.triples, found.permeability, "checkpoint")
    rest = stages[found.stage:]
    if found.iteration and rest:
        # ramps of priors go on from where they were
        weights = rest[0].prior_weights(found.iteration)
        priors = {key: (weights[key], np.broadcast_to(value, 2)[1].item())
                  for key, value in rest[0].priors.items()}
        rest[0] = dataclasses.replace(rest[0], priors=priors,
                                      iterations=rest[0].iterations - found.iteration)
    history = _everywhere(comm, folder.read_history, arguments.output / folder.HISTORY)
    history = [row for row in history if row["stage"] in names
               and (names.index(row["stage"]), row["iteration"]) <= (
                   (found.stage, found.iteration) if found.iteration
                   else (found.stage - 1, np.inf))]
    return rest, found.stage, found.iteration, permeability, history


def _reconstruct(arguments, comm: MPI.Comm) -> None:
    screen, clock, out = Screen(comm, arguments.quiet), Clock(), arguments.output
    on_root(comm, folder.check_output, out, arguments.force, arguments.resume)
    with screen.held_warnings(), clock("read inputs"):
        run = _everywhere(comm, config.read, arguments.config, config.ReconstructConfig)
        signals = _read_signals(run, comm, arguments.config)
        stages = run.stage_list()
        with _named(str(arguments.config)):
            _check_stages(stages, signals.acquisition)
            mesh = run.mesh.build(comm)
        known, tissue = _known_tissue(run, arguments, mesh)
        inputs = _everywhere(comm, _hashes, config=arguments.config, mesh=run.mesh.file,
                             signals=run.signals.file)
        hashes = {name: item["sha256"] for name, item in inputs.items() if name != "config"}
        rest, first, done, start, history = _resume(arguments, comm, mesh, stages, hashes,
                                                    tissue.start_um_per_ms)
    low, high = tissue.permeability_range_um_per_ms
    screen.say(versions(comm), *describe_mesh(mesh), *describe_tissue(tissue),
               f"unknown permeability: {describe_permeability(low)} to "
               f"{describe_permeability(high)}, start "
               f"{describe_permeability(tissue.start_um_per_ms)}",
               *(f"acquisition: {line}" for line in signals.acquisition.describe()),
               describe_engine(run),
               *(describe_stage(i, stage) for i, stage in enumerate(stages)))
    if arguments.resume:
        screen.say("resumed: all stages are done" if not rest else
                   f"resumed at stage {rest[0].name}, iteration {done}" if first or done else
                   "nothing to resume, starting from the beginning")
    names = [stage.name for stage in stages]
    fresh = not (arguments.resume and (out / folder.HISTORY).is_file())
    comm.Barrier()  # every rank has looked before rank 0 makes it
    if fresh:
        on_root(comm, folder.make, out)
    try:
        priors = list(dict.fromkeys(prior for stage in stages for prior in stage.priors))
        log = on_root(comm, folder.History, out / folder.HISTORY, priors, history)
        count_done = [sum(stage.iterations for stage in stages[:first]) + done]

        def before(number):
            """Iterations of a stage that an earlier run did."""
            return done if number == 0 else 0

        def progress(item):
            count_done[0] += item.iteration > 0
            if done and item.stage == names[first]:
                item = dataclasses.replace(item, iteration=item.iteration + done)
            if log is not None:
                log.add(item)
            screen.iteration(item, count_done[0])

        def save(number, iteration, permeability):
            folder.save_checkpoint(out, mesh, permeability, number, iteration, names, hashes)

        def after_iteration(number, iteration, permeability):
            total = iteration + before(number)
            if iteration and total % CHECKPOINT_EVERY == 0 and total < stages[
                    first + number].iterations:
                save(first + number, total, permeability)

        def after_stage(number, permeability):
            save(first + number + 1, 0, permeability)

        iterations = sum(stage.iterations for stage in stages)
        with clock("reconstruct"), screen.progress_bar(iterations, count_done[0]):
            result = reconstruct(
                mesh, signals, rest, start=start, engine=run.engine, modes=run.modes,
                tolerance=run.tolerance, time_step=run.time_step_ms, progress=progress,
                after_stage=after_stage, after_iteration=after_iteration, **known)
        _write_results(arguments, run, comm, screen, clock, inputs, signals, result, log)
    except BaseException:
        if fresh and comm.rank == 0 and not (out / folder.CHECKPOINT).is_file():
            folder.remove(out)  # nothing in it to go on from
        raise


def _known_tissue(run, arguments, mesh: Mesh) -> tuple[dict, config.UnknownTissue]:
    """Arguments of `reconstruct` that say what is known, checked before anything is written."""
    tissue = run.tissue
    known = {"diffusivity": tissue.diffusivity_um2_per_ms, "T2": tissue.T2_ms,
             "density": tissue.density, "boundary": tissue.boundary,
             "permeability_range": tissue.permeability_range_um_per_ms,
             "normalisation": run.signals.normalisation}
    with _named(f"{arguments.config}: tissue"):
        Tissue(mesh, known["diffusivity"], known["T2"], known["density"])
        low, high = known["permeability_range"]
        if not low < high < np.inf:
            raise InputError(f"permeability_range_um_per_ms: [{low:g}, {high:g}], "
                             "expected two finite values, the lower first")
        if not low <= tissue.start_um_per_ms <= high:
            raise InputError(f"start_um_per_ms: {tissue.start_um_per_ms:g}, "
                             f"expected a value from {low:g} to {high:g}")
    return known, tissue


def _found(rule: config.InterfaceSection, mesh: Mesh, result, boundary: str):
    """The interface by a rule that does not know the truth: (nf,) bool, labels, the rule."""
    from .interface import extraction

    if rule.rule == "compartments":
        found = extraction.compartments(result.tissue, boundary == "absorbing")
        return found.facets, found.labels, {"rule": rule.rule}
    cut = rule.cut_um_per_ms
    if rule.rule == "automatic":
        cut = extraction.automatic_cut(mesh, result.permeability, result.unknown)
    facets = extraction.by_threshold(mesh, result.permeability, cut) & result.unknown
    return facets, None, {"rule": rule.rule, "cut_um_per_ms": float(cut)}


def _write_results(arguments, run, comm, screen, clock, inputs, signals, result, log) -> None:
    from .interface import export
    from .interface.metrics import metrics

    mesh, out = result.mesh, arguments.output
    with clock("interface"):
        found, labels, rule = _found(run.interface, mesh, result, run.tissue.boundary)
        truth_known = count(mesh, mesh.interface > 0) > 0
        figures = metrics(mesh, found, result.permeability, result.unknown,
                          run.tissue.boundary) if truth_known else None
        number = count(mesh, found)
    scale = _reference(signals)
    with clock("write results"):
        export.write_permeability(out / "permeability.npz", mesh, result.permeability,
                                  membrane=found)
        export.write_vtu(out / "permeability.vtu", mesh,
                         {"permeability": result.permeability, "membrane": found})
        export.write_stl(out / "interface.stl", mesh, found, labels)
        whole = mesh.gather_facets(mesh.facet_corners, result.permeability, found,
                                   mesh.interface > 0)
        notes: list[str] = []

        def write() -> list[str]:
            predicted = result.predicted.magnitude / scale
            folder.write_table(out / "signals.csv", result.predicted,
                               measured_normalised=signals.normalised,
                               predicted_normalised=predicted)
            _, corners, permeability, facets, true = whole
            notes.extend(_plot(out, "signals", signals.acquisition, predicted,
                               signals.normalised))
            if log.rows:
                notes.extend(_plot(out, "losses", log.rows))
            notes.extend(_plot(out, "interface", corners, permeability, facets,
                               true if truth_known else None, mesh.bounds))
            return notes

        mesh.bounds  # noqa: B018 - collective at its first use
        notes = _everywhere(comm, write)
    clock.seconds |= {f"reconstruct: {key}": value for key, value in result.seconds.items()}
    summary = _summary(arguments, run, comm, inputs, clock)
    loss = log.rows[-1]["loss"] if log is not None and log.rows else None
    summary |= {"final_loss": loss, "data_misfit": result.data_misfit, "modes": result.modes,
                "evaluations": result.evaluations, "stage_endings": result.endings,
                "interface": {**rule, "facets": number}, "metrics": figures}
    on_root(comm, folder.write_summary, out, summary)
    screen.say(*notes, *(f"stage {name}: {why}" for name, why in result.endings.items()),
               *describe_result(result, rule, number, figures), *_picture(out),
               f"results in {out}")


def _picture(out: Path) -> list[str]:
    picture = out / "figures" / "interface.png"
    return [f"picture in {picture}"] if picture.is_file() else []


def _reference(signals: Signals) -> np.ndarray:
    """|S(b = 0)| of each row's sequence, ``(N,)``."""
    index = signals.acquisition.waveform_index
    zero = signals.acquisition.b == 0
    means = [signals.magnitude[(index == k) & zero].mean()
             for k in range(len(signals.acquisition.waveforms))]
    return np.array(means)[index]
