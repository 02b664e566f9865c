"""``spinverse benchmark``: methods on targets whose membrane is known, as one table."""

from __future__ import annotations

import argparse
import fcntl
import itertools
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from mpi4py import MPI

from ..benchmark import methods, runs, table, targets
from ..benchmark.runs import Bench, Case, Data
from ..errors import InputError, SpinverseError
from ..inversion.parameters import KINDS
from ..report.screen import Screen
from . import interruption

HELP = "reconstruct targets whose membrane is known, and tabulate how well"
MOST_CUBES = 20  # 91,200 tetrahedra
MARKER = "benchmark.lock"  # in the folder of a benchmark


class RunsFailed(SpinverseError):
    """Some runs did not end well; the table is there."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    seeded = ", ".join(f"{name}-N" for name in targets.SEEDED)
    parser.add_argument("--targets", nargs="+", metavar="NAME|FILE", default=["own"],
                        help=f"our own by name ({', '.join(targets.FIXED)}; {seeded} with a seed "
                        "N; own: a set of all), meshes with interface_facets, folders of such "
                        ".npz files (default own)")
    parser.add_argument("--methods", nargs="+", metavar="NAME|FILE", default=["default"],
                        help="presets, or YAML files with a list of stages (default default)")
    parser.add_argument("--boundary", nargs="+", choices=runs.BOUNDARIES, default=["absorbing"],
                        help="outer boundary (default absorbing, as published)")
    parser.add_argument("--snr", nargs="+", type=float, metavar="SNR", default=[float("inf")],
                        help="at b = 0, Rician noise; inf for none (default inf)")
    parser.add_argument("--seed", nargs="+", type=int, metavar="N", default=[0],
                        help="of the noise and of searches (default 0)")
    parser.add_argument("--acquisition", choices=tuple(runs.ACQUISITIONS), default="published",
                        help="published: b to 5000, 30 directions, three sequences; rich: b to "
                        "40000, 60 directions, five (default published)")
    parser.add_argument("--target-mesh", choices=runs.TARGET_MESHES, default="grid",
                        help="fine: signals of the true, smooth shape on a mesh of its own; our "
                        "own targets only (default grid: that of the reconstruction)")
    parser.add_argument("--cubes", type=int, metavar="N", default=targets.CUBES,
                        help="of the grid of our own targets along each side: 12 N^2 (N - 1) "
                        f"tetrahedra (default {targets.CUBES}, as published: 576)")
    parser.add_argument("--wall", nargs="+", type=float, metavar="K", default=[runs.WALL],
                        help="permeability of the targets' membranes, um/ms (default "
                        f"{runs.WALL:g})")
    parser.add_argument("--diffusivity", nargs="+", type=float, metavar="D",
                        default=[runs.DIFFUSIVITY],
                        help="of the targets, um^2/ms: one, or inside and outside (default "
                        f"{runs.DIFFUSIVITY:g})")
    parser.add_argument("--T2", nargs=2, type=float, metavar=("IN", "OUT"), default=runs.NO_T2,
                        help="of the targets, ms (default: none)")
    parser.add_argument("--density", type=float, metavar="RATIO", default=1.0,
                        help="of the targets, inside over outside (default 1)")
    parser.add_argument("--echo-time", nargs="+", type=float, metavar="TE",
                        help="ms, of all sequences or of each (default: the end of its pulses)")
    parser.add_argument("--units", choices=runs.UNITS, default="um^3",
                        help="of the signals; arbitrary: times a factor that methods are not told "
                        "(default um^3)")
    parser.add_argument("--unknown", nargs="+", choices=tuple(KINDS), metavar="NAME", default=[],
                        help="numbers that methods are not told: " + ", ".join(KINDS))
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="runs at a time, one core each (default: the number of cores)")
    parser.add_argument("--time-limit", type=float, metavar="S", default=float("inf"),
                        help="seconds for a run (default: none)")
    parser.add_argument("--collect", action="store_true",
                        help="run nothing: the metrics and the table of what is there")


def run(arguments, comm: MPI.Comm) -> None:
    """Run the cases that are not done, write the table; RunsFailed if some did not end well."""
    screen, out = Screen(comm, arguments.quiet), arguments.output
    if comm.size > 1:
        raise InputError(f"{comm.size} ranks, expected one: a benchmark runs its own processes "
                         "(--jobs)")
    jobs = len(os.sched_getaffinity(0)) if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: expected at least 1")
    if not arguments.time_limit > 0:
        raise InputError(f"--time-limit {arguments.time_limit:g}: expected a positive time in s")
    if not 2 <= arguments.cubes <= MOST_CUBES:
        raise InputError(f"--cubes {arguments.cubes}: expected 2 to {MOST_CUBES}")
    if arguments.cubes != targets.CUBES and "periodic" in arguments.boundary:
        raise InputError(f"--cubes {arguments.cubes}: periodic boxes have a grid of their own, "
                         f"expected {targets.CUBES} with --boundary periodic")
    for snr in arguments.snr:
        if not snr > 0:
            raise InputError(f"--snr {snr:g}: expected a positive number or inf")
    for seed in arguments.seed:
        if seed < 0:
            raise InputError(f"--seed {seed}: expected 0 or above")
    for option in ("wall", "diffusivity", "T2", "density", "echo_time"):
        given, none = getattr(arguments, option), option == "T2"
        for value in given if isinstance(given, list | tuple) else [given] * (given is not None):
            if not (0 < value < float("inf") or none and value == float("inf")):
                raise InputError(f"--{option.replace('_', '-')} {value:g}: expected a positive "
                                 "number")
    echoes = arguments.echo_time
    if echoes is not None and len(echoes) > 1:
        number = len(runs.sequences(arguments.acquisition))
        if len(echoes) != number:
            raise InputError(f"--echo-time: {len(echoes)} numbers, expected one, or {number}: one "
                             "for each sequence")
    if len(arguments.diffusivity) > 2:
        raise InputError(f"--diffusivity: {len(arguments.diffusivity)} numbers, expected one, or "
                         "two: inside and outside")
    bench = Bench(out)
    if arguments.collect:
        if not (out / MARKER).is_file():
            raise InputError(f"-o {out}: holds no benchmark, expected one for --collect")
        with _alone(out):
            rows = _collect(bench)
    else:
        chosen = targets.find(arguments.targets, arguments.cubes)
        known = methods.find(arguments.methods)
        inside, outside = arguments.diffusivity[0], arguments.diffusivity[-1]
        made = {boundary: [targets.across(target) if boundary == "periodic" else target
                           for target in chosen]
                for boundary in dict.fromkeys(arguments.boundary)}
        if "periodic" in made and arguments.target_mesh == "fine":
            raise InputError("--target-mesh fine: with --boundary periodic, expected grid")
        data = [Data(target.name, boundary, arguments.acquisition, arguments.target_mesh, wall,
                     inside, outside, tuple(arguments.T2), arguments.density,
                     None if echoes is None else tuple(echoes), arguments.units)
                for boundary, found in made.items() for target in found
                for wall in dict.fromkeys(arguments.wall)]
        cases = [(Case(item, snr, seed, method.name, tuple(arguments.unknown)), method)
                 for snr, seed, method, item in itertools.product(
                     dict.fromkeys(arguments.snr), dict.fromkeys(arguments.seed), known, data)]
        _check_folder(out)
        with _alone(out):
            for target in {t.name: t for found in made.values() for t in found}.values():
                bench.write_target(target, arguments.target_mesh == "fine")
            rows = _run(bench, screen, arguments, jobs, data, cases)
    if not screen.quiet and rows:
        print(table.markdown(rows))
    bad = [row for row in rows if row["status"] != runs.DONE]
    screen.say(f"results in {out}")
    if bad:
        raise RunsFailed(f"{len(bad)} of {len(rows)} runs did not end well; "
                         f"{out / table.MARKDOWN} says which")


def _run(bench: Bench, screen: Screen, arguments, jobs: int, data: list[Data],
         cases: list[tuple[Case, methods.Method]]) -> list[dict]:
    """Signals, then runs, ``jobs`` at a time; the table is written after each."""
    stop = threading.Event()
    missing: dict[Data, str] = {}
    rows: list[dict] = []
    screen.say(f"{len(cases)} runs, {jobs} at a time")

    def go(case: Case, method: methods.Method) -> str:
        if case.data in missing:
            return bench.give_up(case, missing[case.data])
        return bench.reconstruct(case, method, arguments.time_limit, arguments.force, stop)

    with ThreadPoolExecutor(jobs) as pool, interruption.at_once((signal.SIGHUP,)):
        try:
            # on the grid too: what the true cells' misfit is taken from
            needed = dict.fromkeys([*data, *(item.on_grid for item in data)])
            waiting = {pool.submit(bench.simulate, item, stop): item for item in needed}
            for future in as_completed(waiting):
                try:
                    future.result()
                except SpinverseError as error:
                    item = waiting[future]
                    missing |= {other: str(error) for other in data
                                if item in (other, other.on_grid)}
                    screen.warn(error)
            screen.say(f"signals of {len(data) - len(missing)} settings are there")
            waiting = {pool.submit(go, *pair): pair[0] for pair in cases}
            for number, future in enumerate(as_completed(waiting), 1):
                case, status = waiting[future], future.result()
                rows = table.update(bench)
                screen.say(f"{number}/{len(cases)}  {case.describe()}: "
                           f"{_words(table.row_of(bench, bench.run_folder(case)), status)}")
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            table.update(bench)
            raise
    return rows


def _words(row: dict, status: str) -> str:
    if row["status"] != runs.DONE:
        return " ".join(f"{row['status']} {row['message']}".split())
    figures = ", ".join(f"{name} {table.cell(row[key], form)}" for name, key, form in (
        ("misfit", "misfit", ".1e"), ("F1", "f1", ".3f"), ("aligned", "aligned_f1", ".3f"),
        ("s", "seconds", ".0f")))
    return f"{figures}{' (done before)' if status == 'done before' else ''}"


def _collect(bench: Bench) -> list[dict]:
    for path in (bench.root / "runs").glob("*/*/*/*/run.json"):
        state = bench.state(path.parent)
        if state.get("status") == runs.DONE:
            bench.measure(runs.case_of(state))
    return table.update(bench)


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"-o {out}: is a file, expected a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise InputError(f"-o {out}: holds something else, expected a new folder or that of a "
                         "benchmark")
    above = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not os.access(above, os.W_OK):
        raise InputError(f"-o {out}: {above} is no folder that can be written to")


@contextmanager
def _alone(out: Path):
    """Keep other benchmarks out of the folder while the block runs."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / MARKER).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"-o {out}: another benchmark is at work there, expected its end "
                             "or another folder") from None
        yield
