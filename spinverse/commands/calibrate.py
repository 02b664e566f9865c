"""``spinverse calibrate``: whether the posteriors of a run mean what they say."""

from __future__ import annotations

import argparse
import csv
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from ..atomic import replace
from ..errors import InputError, on_all, on_root
from ..inversion.posterior import calibration
from ..report import folder
from ..report.screen import Screen
from . import hypotheses, shared

HELP = "truths from the prior of a run file, their posteriors, and whether these hold them"
MARKER = "calibrate.json"  # in the folder: what it is of
TABLES = {"reliability": calibration.reliability, "coverage": calibration.coverage,
          "ranks": calibration.ranks}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml",
                        help="run file of a reconstruction, with signals.noise; of the signals "
                        "the acquisition counts, and what they are divided by")
    parser.add_argument("--truths", type=int, default=100, metavar="N",
                        help="hypotheses of the prior whose signals are inverted (default 100); "
                        "those that DIR has already are not done again")


def run(arguments, comm: MPI.Comm) -> None:
    """Posteriors of truths, dealt out to the ranks; tables and a figure. Collective."""
    screen, out = Screen(comm, arguments.quiet), arguments.output
    if arguments.truths < 1:
        raise InputError(f"--truths {arguments.truths}: expected at least 1")
    run, signals, sampling, space = hypotheses.of_run(arguments.config, comm)
    inputs = shared.hashes(comm, arguments.config, run, signals=run.signals.file)
    sums = {name: item["sha256"] for name, item in inputs.items()}
    on_root(comm, _prepare, out, sums, arguments.force)
    screen.say(f"{arguments.truths} truths on {space.problem.mesh.num_cells} mesh cells, "
               f"{len(signals)} measurements, {space.likelihood.describe()}")

    path = out / "examples.npz"
    if not comm.bcast(path.is_file()):
        pool = calibration.pool(space, sampling, comm)
        on_root(comm, _save, path, pool)
    known = shared.everywhere(comm, _load, path)
    true = calibration.truths(space, arguments.truths, sampling.seed, comm)
    screen.say("truths and their signals are there")

    def mine() -> None:
        for k in range(comm.rank, arguments.truths, comm.size):
            path = out / f"truth_{k:04d}.npz"
            if path.is_file():
                continue
            begin = time.process_time()
            row = calibration.judged(space, sampling, known, true["labels"][k], true["theta"][k],
                                     true["measured"][k], sampling.seed + k + 1)
            row["cpu_seconds"] = time.process_time() - begin
            _save(path, row)
            screen.say(f"truth {k + 1} of {arguments.truths}: R-hat {row['r_hat']:.2f}, "
                       f"{row['effective_samples']:.0f} effective samples, "
                       f"{row['cpu_seconds']:.0f} s")

    on_all(comm, mine)

    def write() -> tuple[list[str], list[str]]:
        rows = [_load(out / f"truth_{k:04d}.npz") for k in range(arguments.truths)]
        tables = {name: table(rows) for name, table in TABLES.items()}
        for name, table in tables.items():
            replace(out / f"{name}.csv", partial(_write, rows=table))
        r_hat = np.array([float(row["r_hat"]) for row in rows])
        facts: dict[str, Any] = {
            "truths": len(rows), "r_hat_median": float(np.median(r_hat)),
            "r_hat_below_1.05": float(np.mean(r_hat <= 1.05)),
            "effective_samples_median": float(np.median([row["effective_samples"]
                                                         for row in rows])),
            "correction_rms_median": float(np.median([row["rms_of_log_likelihood"]
                                                      for row in rows])),
            "changed_decisions_mean": float(np.mean([row["changed_decisions"] for row in rows])),
            "cpu_seconds_median": float(np.median([row["cpu_seconds"] for row in rows])),
            "expected_f1_mean": float(np.mean([row["expected_f1"] for row in rows]))}
        folder.write_json(out / folder.SUMMARY, {"command": "calibrate", "inputs": inputs,
                                                 **facts, **tables})
        notes = shared.plot(out, "calibration", *tables.values())
        return [*[f"{row['quantity'].replace('_', ' ')}: {100 * row['covered']:.0f} % of truths "
                  f"in intervals of {100 * row['level']:.0f} % (+- {100 * row['error']:.0f})"
                  for row in tables["coverage"]],
                *[f"probability {row['from']:.1f} to {row['to']:.1f}: {row['cells']} mesh cells, "
                  f"mean {row['mean probability']:.3f}, inside {row['inside']:.3f} "
                  f"(+- {row['error']:.3f})" for row in tables["reliability"] if row["cells"]],
                f"R-hat {facts['r_hat_median']:.2f} (median), at most 1.05 in "
                f"{100 * facts['r_hat_below_1.05']:.0f} %; "
                f"{facts['effective_samples_median']:.0f} effective samples (median)"], notes

    lines, notes = shared.everywhere(comm, write)
    screen.say(*lines, *notes, f"results in {out}")


def _prepare(out: Path, sums: dict, force: bool) -> None:
    """The folder, new or of the same calibration."""
    marker = out / MARKER
    if marker.is_file() and json.loads(marker.read_text()) == sums and not force:
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (marker.is_file() and force):
            raise InputError(f"-o {out}: exists and is not of this calibration, expected a new "
                             "folder" + " (or --force)" * marker.is_file())
        for path in [*out.glob("truth*.npz"), out / "examples.npz", marker]:
            path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    folder.write_json(marker, sums)


def _save(path: Path, arrays: dict[str, Any]) -> None:
    replace(path, lambda part: np.savez_compressed(part, **arrays))


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _write(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
