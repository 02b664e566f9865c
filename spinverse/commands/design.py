"""``spinverse design``: the measurements of a pool that tell most about the membranes."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from mpi4py import MPI

from ..acquisition.io import write_acquisition
from ..errors import InputError, on_root
from ..inversion.posterior import design
from ..inversion.posterior.sampler import examples
from ..report import folder
from ..report.screen import Screen
from . import hypotheses, shared

HELP = "choose the measurements of a pool that tell most about shapes and numbers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml",
                        help="run file of a reconstruction, with signals.noise; the acquisition of "
                        "its signals is the pool, posterior.prior says of which shapes")
    parser.add_argument("--measurements", type=int, metavar="N",
                        help="so many, those at b = 0 among them (default: 40 %% of the pool)")
    parser.add_argument("--hypotheses", type=int, default=400, metavar="N",
                        help="of the prior, half of them held out (default 400)")
    parser.add_argument("--gradient", type=float, default=float("inf"), metavar="G",
                        help="largest gradient, mT/m (default: no limit)")
    parser.add_argument("--slew", type=float, default=float("inf"), metavar="S",
                        help="largest slew rate, T/m/s; rectangular pulses have none (default: no "
                        "limit)")
    parser.add_argument("--echo-time", type=float, default=float("inf"), metavar="TE",
                        help="longest echo time, ms (default: no limit)")
    parser.add_argument("--repetition-time", type=float, metavar="TR",
                        help="ms, a measurement takes (with --time)")
    parser.add_argument("--time", type=float, metavar="MIN",
                        help="minutes for all measurements (with --repetition-time)")


def run(arguments, comm: MPI.Comm) -> None:
    """Signals of hypotheses, dealt out to the ranks; the choice, its tables and figure."""
    screen, out = Screen(comm, arguments.quiet), arguments.output
    on_root(comm, folder.check_output, out, arguments.force)
    if arguments.hypotheses < 20:
        raise InputError(f"--hypotheses {arguments.hypotheses}: expected at least 20")
    for name in ("gradient", "slew", "echo_time", "repetition_time", "time"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')} {value:g}: expected a positive number")
    if (arguments.time is None) != (arguments.repetition_time is None):
        raise InputError("--time and --repetition-time: one of them is missing, expected both or "
                         "none")
    run, signals, sampling, space = hypotheses.of_run(arguments.config, comm)
    table = signals.acquisition
    within = design.allowed(table, arguments.gradient, arguments.slew, arguments.echo_time)
    number = _number(arguments, int(np.count_nonzero(within)))
    screen.say(f"{number} of {len(table)} measurements, {np.count_nonzero(within)} within the "
               f"limits; {arguments.hypotheses} hypotheses on "
               f"{space.problem.mesh.num_cells} mesh cells, {space.likelihood.describe()}")
    # always as many chains, so that the choice does not depend on the number of ranks
    chains = range(design.CHAINS)
    mine = {c: examples(space, (sampling.seed, c, 10**7), -(-arguments.hypotheses // len(chains)))
            for c in chains[comm.rank:: comm.size]}
    known = {c: part for parts in comm.allgather(mine) for c, part in parts.items()}
    labels, theta, S = (np.concatenate([known[c][name] for c in chains])
                        for name in ("labels", "theta", "predicted"))
    order = np.random.default_rng(sampling.seed).permutation(len(labels))
    labels, theta, S = labels[order], theta[order], S[order]

    inputs = shared.hashes(comm, arguments.config, run, signals=run.signals.file)

    def write() -> tuple[list[str], list[str]]:
        half, variance = len(S) // 2, space.likelihood.sigma**2
        found = design.choose(np.cov(S[:half].T) / variance, table, number, within, sampling.seed)
        left = {words: design.unexplained(space, labels, theta, S, rows, sampling.seed)
                for words, rows in (("chosen", found.rows), ("all", np.flatnonzero(within)))}
        random = found.at_random[:, -1]
        with folder.appearing(out) as partial:
            write_acquisition(partial / "acquisition.csv", table.select(np.sort(found.rows)))
            _write(partial / "design.csv", table, found)
            folder.write_json(partial / folder.SUMMARY, {
                "command": "design", "inputs": inputs, "measurements": len(found.rows),
                "pool": len(table), "within_limits": int(np.count_nonzero(within)),
                "information_nats": float(found.information[-1]), "of_all_nats": found.of_all,
                "at_random_nats": [float(random.mean()), float(random.std(ddof=1))],
                "unexplained": left})
            notes = shared.plot(partial, "design", found)
        return [f"{len(found.rows)} measurements tell {found.information[-1]:.1f} nats, as many at "
                f"random {random.mean():.1f} +- {random.std(ddof=1):.1f}, all "
                f"{np.count_nonzero(within)} {found.of_all:.1f}",
                *[f"left of the variance of {name.replace('_', ' ')}: {left['chosen'][name]:.2f} "
                  f"(all measurements: {left['all'][name]:.2f})" for name in left["all"]]], notes

    lines, notes = shared.everywhere(comm, write)
    screen.say(*lines, *notes, f"results in {out}: acquisition.csv is the choice")


def _number(arguments, within: int) -> int:
    """How many measurements."""
    number = arguments.measurements
    if number is None:
        number = max(2, int(0.4 * within))
    if arguments.time is not None:
        number = min(number, int(arguments.time * 60e3 / arguments.repetition_time))
    return number


def _write(path: Path, table, found: design.Design) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["order", "row", "waveform", "b_s_per_mm2", "x", "y", "z", "echo_time_ms",
                         "gradient_mT_per_m", "information_nats"])
        for k, (row, nats) in enumerate(zip(found.rows.tolist(), found.information, strict=True),
                                        1):
            waveform = table.waveforms[table.waveform_index[row]]
            writer.writerow([k, row, waveform.describe(), f"{table.b[row]:.6g}",
                             *(f"{x:.6f}" for x in table.directions[row]),
                             f"{table.echo_time[row]:.6g}",
                             f"{table.gradient_strength_mT_m[row]:.6g}", f"{nats:.4f}"])
