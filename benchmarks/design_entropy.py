"""What a choice of measurements leaves open: entropy of the cell probabilities of posteriors.

    python benchmarks/design_entropy.py DIR --truths 10
    python benchmarks/tables.py --add design_entropy DIR/table.csv --command "..."

The box of `benchmarks/calibration.py` (108 mesh cells, unknown permeability), a pool of 48
measurements. 40 % of them are chosen as `spinverse design` does, from examples of the prior; then
truths that the choice was not made for are measured with noise, and inverted from the whole pool,
from the choice, and from as many rows at random (others for each truth). Each posterior is kept:
the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from mpi4py import MPI

import spinverse
from spinverse.atomic import replace as replace_file
from spinverse.inversion.posterior import calibration, design
from spinverse.inversion.posterior.run import sample
from spinverse.inversion.posterior.sampler import Space, alone

SHARE = 0.4  # of the pool
DESIGNS = "all", "chosen", "at random"


def problem_of(snr: float) -> spinverse.InverseProblem:
    """Of the pool; its values say what signals are divided by and no more."""
    mesh = spinverse.mesh.build(spinverse.mesh.box, [15.0, 15.0, 10.0], cells=[3, 3, 2])
    table = spinverse.Acquisition.pgse([0, 1000, 3000, 6000], directions=6, delta=[8, 8],
                                       Delta=[12, 40])
    return spinverse.InverseProblem(
        mesh, spinverse.simulate(spinverse.Tissue(mesh), table), noise=1 / snr,
        unknown={"wall_permeability": spinverse.Unknown(0.02, 0.001, 1.0)})


def part(space: Space, rows: np.ndarray) -> Space:
    """The same hypotheses, with some rows of the pool."""
    problem = replace(space.problem, signals=space.problem.signals.select(rows))
    return Space(problem, space.shapes, space.most)


def entropy(probability: np.ndarray) -> float:
    """Mean over mesh cells, bits."""
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    return float(-np.mean(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


def posterior(space: Space, known: dict, rows: np.ndarray, measured: np.ndarray,
              sampling: spinverse.Sampling) -> dict:
    """Of a truth whose rows were measured."""
    here, begun = part(space, rows), time.process_time()
    here = here.measured(replace(here.likelihood, measured=measured[rows]))
    found = sample(here, sampling, MPI.COMM_SELF, np.zeros((len(here.areas), 3), np.int64), None,
                   {**known, "predicted": known["predicted"][:, rows]})
    widths = {name: float(np.log(np.divide(*found.interval(name)[::-1])))
              for name in calibration.QUANTITIES}
    return {"entropy": entropy(found.probability),
            "aligned": entropy(found.aligned_probability), **widths,
            "r_hat": max(found.r_hat.values()), "samples": len(found.labels),
            "cpu": time.process_time() - begun}


def table_of(rows: list[dict], prior: float, sizes: dict[str, int], snr: float) -> list[dict]:
    """One row a design; errors are standard errors of the mean over truths."""
    table = [{"SNR": f"{snr:g}", "measurements": "none (the prior)", "number": "0",
              "entropy, bits a cell": f"{prior:.3f}"}]
    for name in DESIGNS:
        mine = [row[name] for row in rows]

        def mean(key, mine=mine):
            values = np.array([row[key] for row in mine])
            return f"{values.mean():.3f} ± {values.std(ddof=1) / np.sqrt(len(values)):.3f}"

        more = np.array([row[name]["entropy"] - row["all"]["entropy"] for row in rows])
        table.append({
            "SNR": f"{snr:g}", "measurements": name, "number": str(sizes[name]),
            "entropy, bits a cell": mean("entropy"),
            "more than with all": "" if name == "all" else
            f"{more.mean():.3f} ± {more.std(ddof=1) / np.sqrt(len(more)):.3f}",
            "the same, aligned": mean("aligned"),
            **{f"ln width of 90 %: {key.replace('_', ' ')}": mean(key)
               for key in calibration.QUANTITIES},
            "truths": str(len(rows)), "R-hat at most": f"{max(row['r_hat'] for row in mine):.2f}",
            "CPU s each": f"{np.mean([row['cpu'] for row in mine]):.0f}"})
    heads = list(table[-1])
    return [{head: row.get(head, "") for head in heads} for row in table]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--truths", type=int, default=10)
    parser.add_argument("--snr", type=float, default=50.0)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=200)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    sampling = spinverse.Sampling(given.samples, chains=2, steps=2, learning=60,
                                  examples=given.examples)
    space, path = Space(alone(problem_of(given.snr)), sampling.prior), given.folder / "examples.npz"
    if not path.is_file():
        known = calibration.pool(space, sampling, MPI.COMM_SELF)
        replace_file(path, lambda file: np.savez_compressed(file, **known))
    known = dict(np.load(path))
    pool, everything = space.problem.signals.acquisition, np.arange(len(space.likelihood))
    number = int(SHARE * len(pool))
    within = np.ones(len(pool), bool)
    covariance = np.cov(known["predicted"].T) / space.likelihood.sigma**2
    chosen = design.choose(covariance, pool, number, within)
    print(f"chosen {len(chosen.rows)} of {len(pool)}: {chosen.information[-1]:.1f} nats, at random "
          f"{chosen.at_random[:, -1].mean():.1f}, all {chosen.of_all:.1f}", flush=True)
    true = calibration.truths(space, given.truths, 10**4, MPI.COMM_SELF)  # a stream of its own
    rows = []
    for k in range(given.truths):
        path = given.folder / f"truth_{k:04d}.json"
        row = json.loads(path.read_text()) if path.is_file() else {}
        moving = np.flatnonzero(pool.b > 0)
        order = np.random.default_rng((1, k)).permutation(moving)
        random = np.sort(design.with_references(order, pool, number))
        for name, mine in (("all", everything), ("chosen", np.sort(chosen.rows)),
                           ("at random", random)):
            if name not in row:
                row[name] = posterior(space, known, mine, true["measured"][k],
                                      replace(sampling, seed=k + 1))
                path.write_text(json.dumps(row))
                print(f"truth {k + 1}, {name}: {row[name]}", flush=True)
        rows.append(row)
    sizes = {"all": len(pool), "chosen": len(chosen.rows), "at random": len(random)}
    prior = entropy(np.mean(known["labels"][known["prior"]] > 0, axis=0))
    table = table_of(rows, prior, sizes, given.snr)
    with (given.folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        print(row)
