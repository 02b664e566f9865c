"""Posteriors on the published grid against the truth: F1, whether chains agree, cost.

    python benchmarks/posterior_shapes.py DIR --targets sphere axon-0 FILE.npz --snr 50
    mpiexec -n 2 python benchmarks/posterior_shapes.py DIR --targets sphere
    python benchmarks/tables.py --add posterior_shapes DIR/table.csv --command "..."

Meshes, signals and noise are those of `spinverse benchmark --snr 50`, the permeability of the walls
is known. No search is run: chains begin near the truth, moves of the prior away from it, and how
many is the ``--moves`` option; where they agree it does not matter where they begin.

Mildest move of the truth: how much log-likelihood the single move takes that takes least of it.
Aligned F1 of interior facets against the truth: of the shape that has the largest expected F1, of
the likeliest sample, and the mean over samples, which is what the data leave of any one shape.
The state is kept after each round: the same command goes on. With ranks, CPU seconds are the sum,
and ``busiest rank`` is what the wall time would be where nothing else runs.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import spinverse
from spinverse.acquisition.io import read_signals
from spinverse.atomic import replace as replace_file
from spinverse.benchmark import runs, targets
from spinverse.interface import alignment
from spinverse.interface.lattice import Lattice
from spinverse.inversion.posterior.run import sample
from spinverse.inversion.posterior.sampler import Space, alone
from spinverse.mesh.checks import facets_of, find_facets
from spinverse.mesh.connected import cell_regions
from spinverse.mesh.data import MeshData
from spinverse.mesh.distributed import Mesh

JUDGED = 100  # samples whose F1 is computed
SETTINGS = "samples", "limit", "chains", "temperatures", "steps", "learning", "examples"


def problem_of(bench: runs.Bench, target: targets.Target, snr: float) -> spinverse.InverseProblem:
    """With the noise and the walls of the benchmark. Collective."""
    case = runs.Case(runs.Data(target.name, "absorbing"), snr, 0, "posterior")
    if MPI.COMM_WORLD.rank == 0:
        bench.write_target(target, False)
        bench.simulate(case.data, threading.Event())
        bench.write_signals(case)
    MPI.COMM_WORLD.barrier()
    mesh = Mesh.from_data(MeshData(target.data.points, target.data.cells), MPI.COMM_WORLD)
    signals = read_signals(bench.signals_folder(case.data) / f"{case.noise}.npz")
    return spinverse.InverseProblem(
        mesh, signals, boundary="absorbing", normalisation="measured", noise=1 / snr,
        wall_permeability=runs.WALL, diffusivity=runs.DIFFUSIVITY)


def inside(target: targets.Target) -> np.ndarray:
    """Which mesh cells its membrane encloses, ``(Nt,)`` int8."""
    data = target.data
    facets, sides = facets_of(data.cells, data.name)
    walls = np.zeros(len(facets), bool)
    walls[find_facets(facets, data.interface_facets)] = True
    region = cell_regions(len(data.cells), sides, walls)
    outside = np.unique(region[sides[(sides[:, 1] < 0) & ~walls, 0]])
    return (~np.isin(region, outside)).astype(np.int8)


def f1_of(space: Space, truth: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Aligned F1 of labels ``(n, Nt)`` against those of the truth, ``(n,)``."""
    whole = space.models.whole
    lattice = Lattice(whole.points[whole.facets], whole.outer)
    true = space.prior.walls(truth)
    return np.array([alignment.align(lattice, space.prior.walls(shape), true).f1
                     for shape in shapes])


def least_cost(space: Space, truth: np.ndarray) -> float:
    """Log-likelihood that the mildest single move from the truth takes away, by the fast model."""
    none, costs = np.zeros(0), []
    for cell, label in space.cells.moves(truth):
        shape = truth.copy()
        shape[cell] = label
        if space.cells.allowed(shape):
            costs.append(space.likelihood.log_density(space.predicted(shape, none)))
    return float(space.likelihood.log_density(space.predicted(truth, none)) - np.max(costs))


def run(given: argparse.Namespace, target: targets.Target) -> dict:
    """The row of a target, from its file if it is there. Collective."""
    comm, bench = MPI.COMM_WORLD, runs.Bench(given.folder)
    ranks = f"-{comm.size}ranks" if comm.size > 1 else ""
    place = given.folder / "posteriors" / f"{target.name}-snr{given.snr:g}{ranks}"
    if (place / "row.json").is_file():
        return json.loads((place / "row.json").read_text())
    place.mkdir(parents=True, exist_ok=True)
    problem = problem_of(bench, target, given.snr)
    space, truth = Space(alone(problem), spinverse.ShapePrior()), inside(target)
    sampling = spinverse.Sampling(**{name: getattr(given, name) for name in SETTINGS})
    none, path, begun = np.zeros(0), place / "state.npz", time.process_time()
    start = space.walk(np.random.default_rng(7), truth, none, given.moves)
    saved = dict(np.load(path, allow_pickle=False)) if path.is_file() else None
    before = np.zeros(comm.size) if saved is None else saved.pop("cpu")

    def spent() -> np.ndarray:
        return before + comm.allgather(time.process_time() - begun)

    def keep(state: dict) -> None:
        cpu = spent()
        if comm.rank == 0:
            replace_file(path, lambda part: np.savez(part, cpu=cpu, **state))

    def progress(done: int, of: int) -> None:
        if comm.rank == 0:
            print(f"{target.name}: round {done} of {of}", flush=True)

    found = sample(space, sampling, comm, np.zeros((len(space.models.whole.facets), 3), np.int64),
                   start, None, progress, keep, saved)
    cpu, L = spent(), found.log_likelihood
    some = found.labels[np.unique(np.linspace(0, len(L) - 1, JUDGED).astype(int))]
    scores = f1_of(space, truth, some)
    true_L = float(space.likelihood.log_density(np.maximum(space.exact(truth, none), 0.0)))
    row = {"target": re.sub(r"^(\d{3})_([a-z]+).*", r"\1 \2", target.name),
           "SNR": f"{given.snr:g}", "chains": str(given.chains),
           "temperatures": str(given.temperatures), "learning": str(given.learning),
           "samples": str(len(L)),
           "R-hat": f"{max(found.r_hat.values()):.2f}",
           "effective samples": f"{min(found.effective.values()):.0f}",
           "F1, expected-F1 shape": f"{f1_of(space, truth, [found.expected_f1_shape])[0]:.3f}",
           "F1, likeliest sample": f"{f1_of(space, truth, [found.likeliest])[0]:.3f}",
           "F1, mean of samples": f"{scores.mean():.3f}",
           "expected F1, said": f"{found.expected_f1:.3f}",
           "F1, start": f"{f1_of(space, truth, [start[0]])[0]:.3f}",
           "log-likelihood, samples": f"{L.mean():.1f} (± {L.std():.1f})",
           "log-likelihood, truth": f"{true_L:.1f}",
           "mildest move of the truth": f"{least_cost(space, truth):.0f}",
           "exchanged": f"{found.acceptance['exchanges between temperatures']:.2f}",
           "partitions": str(found.solves), "ranks": str(comm.size),
           "CPU min": f"{cpu.sum() / 60:.1f}", "busiest rank, min": f"{cpu.max() / 60:.1f}"}
    if comm.rank == 0:
        found.save(place / "posterior.npz")
        (place / "row.json").write_text(json.dumps(row, indent=1))
        print(row, *found.describe(), sep="\n", flush=True)
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--targets", nargs="+", required=True, metavar="NAME|FILE")
    parser.add_argument("--snr", type=float, default=50.0)
    parser.add_argument("--moves", type=int, default=40, help="from the truth, where chains begin")
    for name in SETTINGS:
        parser.add_argument(f"--{name}", type=int, default=getattr(spinverse.Sampling, name))
    given = parser.parse_args()
    rows = [run(given, target) for target in targets.find(given.targets)]
    if MPI.COMM_WORLD.rank == 0:
        with (given.folder / "table.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
