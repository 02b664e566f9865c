"""``spinverse reconstruct``: from signals to permeabilities and membranes, resumable."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from mpi4py import MPI

from .. import config
from ..acquisition import Signals, description
from ..acquisition.io import read_signals as read_file
from ..atomic import replace
from ..config.physics import in_keys
from ..errors import InputError, on_root, warn_caller
from ..inversion import InverseProblem, Ledger, Reconstruction, Shapes, Stage, State
from ..inversion import posterior as posterior_of
from ..inversion.clock import Clock
from ..inversion.posterior.result import Posterior
from ..inversion.posterior.run import check as check_posterior
from ..inversion.problem import PERMEABILITIES
from ..inversion.reconstruct import solve, stages_for
from ..inversion.verdict import NOT_EXPLAINED
from ..mesh import Mesh
from ..report import folder
from ..report import screen as terminal
from . import estimates, interruption, shared
from .checkpoints import Checkpoints

HELP = "membranes from signals"
EPILOG = (f"The exit code is {NOT_EXPLAINED} where the result does not explain the data: it is "
          "written all the same, and nothing in it is determined.")
POSTERIOR_STATE = "checkpoint/posterior.npz"
CHECKPOINT_EVERY = 20  # iterations; and after each stage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the run file")
    parser.add_argument("--resume", action="store_true",
                        help="go on from the checkpoint in DIR, if there is one")
    parser.add_argument("--dry-run", action="store_true",
                        help="say what was understood and what it will take, reconstruct nothing; "
                        "needs no -o")


def run(arguments, comm: MPI.Comm) -> int:
    """Reconstruct what the run file says; returns the exit code. Collective."""
    screen, clock, out = terminal.Screen(comm, arguments.quiet), Clock(), arguments.output
    if arguments.dry_run and arguments.resume:
        raise InputError("--dry-run: expected without --resume")
    if not arguments.dry_run:
        on_root(comm, folder.check_output, out, arguments.force, arguments.resume)
    with screen.held_warnings(), clock("read inputs"):
        run = shared.everywhere(comm, config.read, arguments.config, config.ReconstructConfig)
        signals = read_signals(run, comm, arguments.config)
        with shared.named(str(arguments.config)):
            stored = out / shared.MESH if arguments.resume else None
            mesh, made = shared.make_mesh(run.mesh, comm, stored, run.tissue.boundary)
            if mesh.dim != 3:
                raise InputError(f"mesh: {mesh.name} has dimension {mesh.dim}, expected "
                                 "tetrahedra: membranes are found as surfaces")
            low, high = run.tissue.permeability_range_um_per_ms or PERMEABILITIES
            if not low <= run.tissue.start_um_per_ms <= high:
                raise InputError(f"start_um_per_ms: {run.tissue.start_um_per_ms:g}, "
                                 f"expected a value from {low:g} to {high:g}")
            with in_keys():
                problem = InverseProblem(mesh, signals, **run.known(comm))
                stages = stages_for(problem, run.stages if isinstance(run.stages, str)
                                    else run.stage_list())
                for stage in stages:
                    stage.check(problem)
                if run.posterior is not None:
                    check_posterior(problem)
        inputs = shared.hashes(comm, arguments.config, run, signals=run.signals.file)
        sums = {name: item["sha256"] for name, item in inputs.items() if name != "config"}
        # a mesh that is made has no file: with other arguments its facets are others
        sums["the section mesh"] = folder.sha256_of(
            run.mesh.model_dump(exclude={"file", "surface", "labels"}))
        found, history = _resume(arguments, comm, mesh, stages, sums)
        first = done = 0
        state, memory = problem.state(run.tissue.start_um_per_ms), None
        if found is not None:
            first, done, memory = found.stage, found.iteration, found.memory
            kappa = mesh.scatter_facets(found.triples, found.permeability, "checkpoint")
            labels = None if found.labels is None else mesh.cell_slabs.spread(found.labels)
            state = State(kappa, labels, {**state.theta, **found.theta})
        rest = stages[first:]
    tissue = run.tissue
    screen.say(terminal.versions(comm))
    facts = shared.understood(screen, run, mesh, signals.acquisition)
    searched = any(isinstance(stage, Shapes) for stage in stages)
    screen.say(*terminal.describe_tissue(tissue),
               *terminal.describe_facets(problem, stages, tissue.start_um_per_ms),
               *terminal.describe_extra_terms(run.extra_terms),
               *(terminal.describe_unknown(problem.unknown) if searched else ()),
               problem.likelihood.describe(),
               *(f"acquisition: {line}" for line in description.lines(signals.acquisition)),
               terminal.describe_engine(run),
               *terminal.describe_posterior(run.posterior),
               *(terminal.describe_stage(i, stage) for i, stage in enumerate(stages)))
    if found is not None and found.note:
        screen.say(found.note)
    if arguments.resume:
        screen.say("resumed: all stages are done" if not rest else
                   f"resumed at stage {rest[0].name}, iteration {done}" if first or done else
                   "nothing to resume, starting from the beginning")
    estimate = estimates.of_reconstruction(run, mesh, signals.acquisition, stages)
    if arguments.dry_run:
        screen.say(*estimates.in_words(tissue, facts, signals.acquisition), *estimate.lines)
        screen.say("dry run: nothing was reconstructed")
        return 0
    screen.say(*estimate.at_start)
    fresh = not (arguments.resume and (out / folder.HISTORY).is_file())
    comm.Barrier()  # every rank has looked before rank 0 makes it
    if fresh:
        on_root(comm, folder.make, out)
    try:
        if fresh:
            on_root(comm, shared.write_mesh, out, made)
        priors = list(dict.fromkeys(prior for stage in stages if isinstance(stage, Stage)
                                    for prior in stage.priors))
        log = on_root(comm, folder.History, out / folder.HISTORY, priors, history)
        count_done = [sum(stage.iterations for stage in stages[:first]) + done]
        iterations = sum(stage.iterations for stage in stages)
        with interruption.noted() as note:
            checkpoints = Checkpoints(
                out, mesh, stages, first, sums,
                run.checkpoint.every_iterations or CHECKPOINT_EVERY, run.checkpoint.every_s, note)

            def progress(item):
                count_done[0] += item.iteration > 0
                if log is not None:
                    log.add(item)
                screen.iteration(item, count_done[0])
                if item.phase:
                    checkpoints.within_part(item)

            with (clock("reconstruct"), shared.named(str(arguments.config)), in_keys(),
                  screen.progress_bar(iterations, count_done[0], misfit="-")):
                result = solve(problem, rest, state, Ledger(progress, checkpoints, memory))
            checkpoints.at_end()
            found = None
            if run.posterior is not None:
                with clock("posterior"), shared.named(str(arguments.config)):
                    found = _posterior(arguments, run, result, screen, checkpoints)
        _write_results(arguments, run, comm, screen, clock, inputs, signals, result, log, found)
        return NOT_EXPLAINED if result.verdict.explained is False else 0
    except BaseException:
        if fresh and comm.rank == 0 and not (out / folder.CHECKPOINT).is_file():
            shutil.rmtree(out, ignore_errors=True)  # nothing in it to go on from
        raise


def read_signals(run: config.ReconstructConfig, comm: MPI.Comm, name) -> Signals:
    """The measurements of a run file. Collective."""
    with shared.named(str(name)):
        expected = None if run.acquisition is None else shared.everywhere(
            comm, config.read_table, run.acquisition)

    def read() -> Signals:
        signals = read_file(run.signals.file, expected, run.signals.voxel)
        if expected is None:
            try:
                folder.check_rows(run.signals.file)
            except InputError as error:
                warn_caller(f"{error}; taken for a filtered copy")
        with shared.named(str(run.signals.file)):
            for waveform in range(len(signals.acquisition.waveforms)):
                signals.acquisition.reference_rows(waveform)  # stages need them
            signals.normalised  # noqa: B018 - raises where there is nothing to divide by
        return signals

    return shared.everywhere(comm, read)


def _resume(arguments, comm: MPI.Comm, mesh: Mesh, stages: list[Stage | Shapes],
            sums: dict) -> tuple[folder.Checkpoint | None, list[dict]]:
    """The checkpoint to go on from, if there is one, and the history up to it."""
    if not arguments.resume:
        return None, []
    names = [stage.name for stage in stages]
    found = folder.load_checkpoint(arguments.output, names, sums, comm)
    if found is None:
        return None, []
    history = shared.everywhere(comm, folder.read_history, arguments.output / folder.HISTORY)
    return found, [row for row in history if row["stage"] in names
                   and (names.index(row["stage"]), row["iteration"]) <= (
                       (found.stage, found.iteration) if found.iteration
                       else (found.stage - 1, np.inf))]


def _posterior(arguments, run, result: Reconstruction, screen, checkpoints) -> Posterior:
    """Samples from the solution on; their state is in the checkpoints after each round."""
    comm, path = result.mesh.comm, arguments.output / POSTERIOR_STATE
    labels = result.labels if result.labels is not None and comm.allreduce(
        int((result.labels > 0).sum())) else None
    of = folder.sha256_of({"posterior": run.posterior.model_dump(), "theta": dict(result.theta),
                           "misfit": result.data_misfit})

    def earlier() -> dict | None:
        if not arguments.resume or not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return arrays if str(arrays.pop("of")) == of else None

    def keep(arrays: dict) -> None:
        on_root(comm, replace, path, lambda part: np.savez(part, of=np.array(of), **arrays))
        checkpoints.at_end()

    saved = shared.everywhere(comm, earlier)
    if saved is not None:
        screen.say(f"posterior: resumed after round {int(saved['round'])}")
    return posterior_of(result.problem, run.posterior.sampling(), labels, result.theta,
                        progress=lambda done, of: screen.say(f"posterior: round {done} of {of}"),
                        keep=keep, saved=saved)


def _found(rule: config.InterfaceSection, result: Reconstruction):
    """The interface by a rule that does not know the truth: (nf,) bool, labels, the rule."""
    from ..interface import extraction

    mesh, absorbing = result.mesh, result.problem.absorbing
    if rule.rule == "compartments" and result.labels is not None:
        return (extraction.between(mesh, result.labels, absorbing), result.labels,
                {"rule": "search for shapes"})
    if rule.rule == "compartments":
        found = extraction.compartments(result.tissue, absorbing)
        return found.facets, found.labels, {"rule": rule.rule}
    cut = rule.cut_um_per_ms
    if rule.rule == "automatic":
        cut = extraction.automatic_cut(mesh, result.permeability, result.unknown)
    facets = extraction.by_threshold(mesh, result.permeability, cut) & result.unknown
    return facets, None, {"rule": rule.rule, "cut_um_per_ms": float(cut)}


def _write_results(arguments, run, comm, screen, clock, inputs, signals, result, log,
                   posterior) -> None:
    from ..interface import export
    from ..interface.metrics import metrics
    from ..inversion.uncertainty import uncertainty

    mesh, out, verdict = result.mesh, arguments.output, result.verdict
    with clock("interface"):
        found, labels, rule = _found(run.interface, result)
        truth_known = terminal.count(mesh, mesh.interface > 0) > 0
        figures = metrics(mesh, found, result.permeability, result.unknown,
                          run.tissue.boundary) if truth_known else None
        number = terminal.count(mesh, found)
    with clock("uncertainty"):
        known = uncertainty(result.problem, result.permeability, result.theta, result.labels,
                            misfit=result.data_misfit)
        table = result.cell_table() if result.labels is not None else None
        if table is not None and posterior is not None:
            table = posterior.improved(table)
        walls, surfaces = result.wall_field(), [each.smooth for each in result.surfaces()]
        freedoms = result.freedoms() if verdict.explained is False else []
        determined = terminal.count(mesh, known.determined & found)
    with clock("write results"):
        export.write_permeability(out / "permeability.npz", mesh, result.permeability, known,
                                  membrane=found, labels=labels)
        if labels is None:  # of an earlier end of this run by another rule
            on_root(comm, (out / folder.CELLS).unlink, missing_ok=True)
        else:
            export.write_cells(out / folder.CELLS, mesh, {"label": labels})
        export.write_vtu(out / "permeability.vtu", mesh,
                         {"permeability": result.permeability, "membrane": found}, known)
        export.write_stl(out / "interface.stl", mesh, found, labels)
        if surfaces:
            export.write_surfaces(out / folder.SURFACE, comm, surfaces)
        else:
            on_root(comm, (out / folder.SURFACE).unlink, missing_ok=True)
        if posterior is not None:
            owned = mesh.input_cells[: mesh.num_owned_cells]
            export.write_cells(out / "posterior.vtu", mesh, {
                name: values[owned] for name, values in posterior.of_cells.items()})
            on_root(comm, posterior.save, out / folder.POSTERIOR)
        # a picture of the interface: no more of the mesh comes to rank 0
        shown = mesh.gather_facets(mesh.facet_corners, result.permeability, found,
                                   mesh.interface > 0, known.evidence,
                                   where=found | (mesh.interface > 0))

        def write() -> list[str]:
            if table is not None:
                table.write(out / folder.CELL_TABLE)
            predicted = result.predicted.magnitude / signals.reference
            folder.write_table(out / "signals.csv", result.predicted,
                               measured_normalised=signals.normalised,
                               predicted_normalised=predicted)
            _, corners, permeability, facets, true, evidence = shown
            return [*shared.plot(out, "signals", signals.acquisition, predicted,
                                 signals.normalised),
                    *(shared.plot(out, "losses", log.rows) if log.rows else []),
                    *shared.plot(out, "interface", corners, permeability, facets,
                                 true if truth_known else None, mesh.bounds, evidence,
                                 known.level, explained=verdict.explained)]

        mesh.bounds  # noqa: B018 - collective at its first use
        notes = shared.everywhere(comm, write)
    clock.seconds |= {f"reconstruct: {key}": value for key, value in result.seconds.items()}
    content = shared.summary(arguments, run, comm, inputs, clock)
    loss = log.rows[-1]["loss"] if log is not None and log.rows else None
    content |= {"verdict": asdict(verdict), "final_loss": loss,
                "data_misfit": result.data_misfit, "modes": result.modes,
                "smooth_surface": None if result.surface is None else result.surface.summary(),
                "evaluations": result.evaluations, "stage_endings": result.endings,
                "unknown": dict(result.theta),
                "cells": None if table is None else table.summary(),
                "posterior": None if posterior is None else posterior.summary(),
                "walls": None if walls is None else asdict(walls),
                "freedoms": [asdict(freedom) for freedom in freedoms],
                "interface": {**rule, "facets": number}, "metrics": figures,
                "uncertainty": {"sigma": known.sigma, "determined": determined,
                                "directions": int((known.spectrum > 1).sum())}}
    on_root(comm, folder.write_json, out / folder.SUMMARY, content)
    if screen.quiet and verdict.explained is False:
        screen.warn(verdict.words)
    screen.say(verdict.words, *notes,
               *([] if result.surface is None else [result.surface.describe()]),
               *(f"stage {name}: {why}" for name, why in result.endings.items()),
               *(f"most would be explained by {freedom}" for freedom in freedoms[:1]),
               *([] if table is None else table.describe()),
               *([] if posterior is None else posterior.describe()),
               *([] if walls is None else [str(walls)]),
               *terminal.describe_result(rule, number, figures))
    picture = out / "figures" / "interface.png"
    screen.say(*[f"picture in {picture}"] * picture.is_file(), f"results in {out}")
