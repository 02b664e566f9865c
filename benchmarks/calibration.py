"""Calibration of posteriors in a small box, for `spinverse calibrate`, and its table.

    python benchmarks/calibration.py DIR --snr 20          # writes DIR/run.yaml, DIR/signals.npz
    spinverse calibrate DIR/run.yaml --truths 100 -o DIR/out
    python benchmarks/calibration.py DIR --snr 20 --table calibration.csv
    python benchmarks/tables.py --add calibration calibration.csv --command "..."

108 mesh cells, reflecting, 24 measurements; the permeability of the walls is unknown.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

STEPS = 1, 2  # of chains between samples: the more data tell, the more; below SNR 50 and from it on
RUN = """mesh: {{builder: box, lengths_um: [15, 15, 10], cells: [3, 3, 2]}}
signals: {{file: signals.npz, noise: {noise}}}
unknown: {{wall_permeability: {{start: 0.02, low: 0.001, high: 1.0}}}}
posterior: {{samples: 400, chains: 2, steps: {steps}, learning: 60, examples: 12000}}
"""


def write(folder: Path, snr: float) -> None:
    import spinverse
    from spinverse.acquisition.io import write_signals

    folder.mkdir(parents=True, exist_ok=True)
    mesh = spinverse.mesh.build(spinverse.mesh.box, [15.0, 15.0, 10.0], cells=[3, 3, 2])
    table = spinverse.Acquisition.pgse([0, 0, 1000, 3000], np.eye(3), delta=[8, 8], Delta=[12, 40])
    write_signals(folder / "signals.npz", spinverse.simulate(spinverse.Tissue(mesh), table))
    (folder / "run.yaml").write_text(RUN.format(noise=1 / snr, steps=STEPS[snr >= 50]))


def rows_of(summary: dict, snr: float) -> list[dict]:
    def row(what, number, expected, found, error):
        return {"SNR": f"{snr:g}", "what": what, "number": number, "expected": expected,
                "found": found, "error": error}

    n = summary["truths"]
    rows = [row(f"mesh cells of probability {r['from']:.1f} to {r['to']:.1f}", r["cells"],
                f"{r['mean probability']:.3f}", f"{r['inside']:.3f}", f"{r['error']:.3f}")
            for r in summary["reliability"] if r["cells"]]
    rows += [row(f"{r['quantity'].replace('_', ' ')} in intervals of {100 * r['level']:.0f} %", n,
                 f"{r['level']:g}", f"{r['covered']:.3f}", f"{r['error']:.3f}")
             for r in summary["coverage"]]
    rows += [row(f"ranks of {r['quantity'].replace('_', ' ')}, chi-square of 9", n, "9",
                 f"{r['chi-square of 9']:.1f}", f"{np.sqrt(18):.1f}") for r in summary["ranks"]]
    rows += [row("R-hat of all four, largest: median", n, "1.05",
                 f"{summary['r_hat_median']:.2f}", ""),
             row("R-hat of all four at most 1.05: share of truths", n, "0.9",
                 f"{summary['r_hat_below_1.05']:.2f}", ""),
             row("effective samples, fewest: median", n, "100",
                 f"{summary['effective_samples_median']:.0f}", ""),
             row("full model, rms of log-likelihood: median", n, "0",
                 f"{summary['correction_rms_median']:.3f}", ""),
             row("full model, share of decisions changed", n, "0",
                 f"{summary['changed_decisions_mean']:.3f}", ""),
             row("CPU s a truth: median", n, "", f"{summary['cpu_seconds_median']:.0f}", "")]
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--snr", type=float, default=20.0)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table is None:
        write(given.folder, given.snr)
    else:
        found = rows_of(json.loads((given.folder / "out" / "summary.json").read_text()), given.snr)
        with given.table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)
