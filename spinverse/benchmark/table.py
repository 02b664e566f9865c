"""The table of a benchmark: a row a run, and means by method."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..report import folder as run_folder
from .coverage import QUANTITIES
from .runs import DONE, Bench, case_of

CSV, MEANS, MARKDOWN = "table.csv", "means.csv", "table.md"
CASE = ("target", "target_mesh", "acquisition", "boundary", "wall", "inside", "outside", "T2",
        "density", "echo_time", "units", "snr", "method", "unknown", "seed", "status")
#: Column to name in metrics.json.
METRICS = {
    "patch_f1": "patch_f1", "patch_leaky": "patch_leaky", "patch_rest": "patch_rest",
    "true_misfit": "true_misfit",
    **{name: name for name in (
        "precision", "recall", "f1", "iou", "aligned_precision", "aligned_recall", "aligned_f1",
        "aligned_iou", "best_f1", "aligned_best_f1", "auc", "chamfer", "chamfer_uncentred")},
    "open_percent": "open_edges_percent", "branch_percent": "branch_edges_percent",
    "bad_percent": "bad_edges_percent", "bad_inside_percent": "bad_edges_inside_percent",
    "true_bad_inside_percent": "true_bad_edges_inside_percent",
    "adjusted_rand": "adjusted_rand_index", "found": "found", "true": "true",
    "aligned_shift": "aligned_shift", "aligned_reflected": "aligned_reflected",
    **{f"covered_{name}": f"covered_{name}" for name in QUANTITIES}}
COLUMNS = (*CASE, "misfit", "numbers", *METRICS, "seconds", "cpu_seconds", "peak_mb", "message")
_AVERAGED = (*(name for name in METRICS if name not in (
    "true_bad_inside_percent", "found", "true", "aligned_shift", "aligned_reflected")),
    "seconds", "cpu_seconds", "peak_mb")
_GROUP = ("method", "target_mesh", "acquisition", "boundary", "wall", "inside", "outside", "T2",
          "density", "echo_time", "units", "unknown", "snr")

# What markdown shows: head, column, format.
_SHOWN = (
    ("target", "target", ""), ("mesh", "target_mesh", ""), ("acquisition", "acquisition", ""),
    ("boundary", "boundary", ""), ("wall", "wall", "g"), ("D inside", "inside", "g"),
    ("D outside", "outside", "g"), ("T2", "T2", ""), ("density", "density", "g"),
    ("TE", "echo_time", ""), ("units", "units", ""), ("SNR", "snr", "g"), ("method", "method", ""),
    ("unknown", "unknown", ""), ("seed", "seed", "d"), ("misfit", "misfit", ".1e"),
    ("numbers", "numbers", ""),
    ("true misfit", "true_misfit", ".1e"), ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"), ("F1", "f1", ".3f"), ("IoU", "iou", ".3f"),
    ("aligned F1", "aligned_f1", ".3f"), ("aligned IoU", "aligned_iou", ".3f"),
    ("best F1", "best_f1", ".3f"), ("aligned best", "aligned_best_f1", ".3f"),
    ("Chamfer", "chamfer", ".2f"), ("uncentred", "chamfer_uncentred", ".2f"),
    ("open %", "open_percent", ".1f"), ("branch %", "branch_percent", ".1f"),
    ("bad %", "bad_percent", ".1f"), ("bad inside %", "bad_inside_percent", ".1f"),
    ("ARI", "adjusted_rand", ".3f"), ("V in", "covered_volume", ".2f"),
    ("S/V in", "covered_surface_to_volume", ".2f"), ("kappa in", "covered_permeability", ".2f"),
    ("s", "seconds", ".0f"), ("CPU s", "cpu_seconds", ".0f"),
    ("MiB", "peak_mb", ".0f"), ("status", "status", ""))
_LEGEND = """\
Misfit: mean square of normalised magnitudes over all measurements; true misfit: that of the true
cells on the grid, which noise and a finer target mesh leave. Precision to IoU: interior facets;
aligned: after the best shift of the grid and point reflection, which magnitudes cannot
see; best: at the best cut of the permeability. Chamfer: um^2, both surfaces centred, and not.
Edges of the interface: degree 1, above 2, not 2, and not 2 among those off the outer boundary.
ARI: adjusted Rand index of the cells' partition. V, S/V, kappa in: the share of cells whose
interval (90 %) of volume, surface to volume, permeability of the wall holds the truth.
s: of the clock, in a process of its own.
"""


def row_of(bench: Bench, place: Path) -> dict | None:
    """The row of a run's folder; None where it holds none. Undefined figures are None."""
    state = bench.state(place)
    if "case" not in state:
        return None
    case = case_of(state)
    row = dict.fromkeys(COLUMNS)
    data = {name: " ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else value
            for name, value in asdict(case.data).items()}
    row |= {**data, "snr": case.snr, "method": case.method, "seed": case.seed,
            "status": state["status"], "unknown": ", ".join(case.unknown),
            "message": "" if state["status"] == DONE else state["message"],
            **{name: state[name] for name in ("seconds", "cpu_seconds", "peak_mb")}}
    if state["status"] == DONE:
        figures = json.loads((place / "metrics.json").read_text())
        row |= {column: figures.get(name) for column, name in METRICS.items()}
        summary = json.loads((place / "found" / run_folder.SUMMARY).read_text())
        row["misfit"] = summary["data_misfit"]
        row["numbers"] = "; ".join(
            " ".join([name, *(f"{v:.5g}" for v in np.atleast_1d(value))])
            for name, value in summary.get("unknown", {}).items())
    return row


def collect(bench: Bench) -> list[dict]:
    """The rows of all runs of a benchmark's folder, in order."""
    places = (path.parent for path in (bench.root / "runs").glob("*/*/*/*/run.json"))
    rows = [row for row in (row_of(bench, place) for place in sorted(places)) if row]
    return sorted(rows, key=lambda row: (
        row["target_mesh"] != "grid", row["acquisition"] != "published", row["boundary"],
        -row["snr"], row["method"], row["target"], row["seed"]))


def means(rows: Iterable[dict]) -> list[dict]:
    """Means over the ``ended`` of ``runs`` that ended well, by `_GROUP`; medians of the misfit."""
    averages: list[tuple[str, str, Callable]] = [("median_misfit", "misfit", np.median)]
    averages += [(name, name, np.mean) for name in _AVERAGED]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _GROUP), []).append(row)
    found = []
    for key, members in groups.items():
        good = [row for row in members if row["status"] == DONE]
        item = dict(zip(_GROUP, key, strict=True)) | {"runs": len(members), "ended": len(good)}
        for column, name, average in averages:
            values = [row[name] for row in good if row[name] is not None]
            item[column] = float(average(values)) if values else None
        found.append(item)
    return found


def update(bench: Bench) -> list[dict]:
    """Write ``table.csv``, ``means.csv`` and ``table.md`` of the rows that there are."""
    rows = collect(bench)
    averages = means(rows)
    columns = tuple(averages[0]) if averages else _GROUP
    for name, write in ((CSV, lambda path: _write_csv(path, COLUMNS, rows)),
                        (MEANS, lambda path: _write_csv(path, columns, averages)),
                        (MARKDOWN, lambda path: path.write_text(markdown(rows)))):
        run_folder.replace(bench.root / name, write)
    return rows


def markdown(rows: Sequence[dict]) -> str:
    """The rows and their means as tables that can be read as text too."""
    parts = ["# Benchmark", "", _LEGEND, _aligned(_SHOWN, rows), ""]
    averages = means(rows)
    heads = [("runs", "runs", "d"), ("ended", "ended", "d"),
             ("misfit (median)", "median_misfit", ".1e")]
    columns = [c for c in _SHOWN if c[1] in _GROUP] + heads + [
        c for c in _SHOWN if c[1] in _AVERAGED]
    parts += ["## Means over the runs that ended well", "", _aligned(columns, averages), ""]
    failed = [row for row in rows if row["status"] != DONE]
    if failed:
        parts += ["## Runs that did not end well", "", *(
            f"- {row['target']}, {row['boundary']}, SNR {row['snr']:g}, {row['method']}, seed "
            f"{row['seed']}: {row['status']}{': ' if row['message'] else ''}{row['message']}"
            for row in failed), ""]
    return "\n".join(parts)


def _aligned(columns: Sequence[tuple[str, str, str]], rows: Sequence[dict]) -> str:
    """A markdown table; columns that say the same everywhere stand above it."""
    common = [c for c in columns if c[1] in (
        "target_mesh", "acquisition", "wall", "inside", "outside", "T2", "density", "echo_time",
        "units", "unknown", "numbers", "seed",
        "status") and len(rows) and len({row[c[1]] for row in rows}) == 1]
    shown = [c for c in columns if c not in common]
    cells = [[head for head, *_ in shown]]
    cells += [[cell(row[name], form) for _, name, form in shown] for row in rows]
    widths = [max(3, *(len(line[k]) for line in cells)) for k in range(len(shown))]
    words = [not form for *_, form in shown]
    cells.insert(1, [f":{'-' * (n - 1)}" if left else f"{'-' * (n - 1)}:"
                     for n, left in zip(widths, words, strict=True)])
    lines = ["| " + " | ".join(
        item.ljust(n) if left else item.rjust(n)
        for item, n, left in zip(line, widths, words, strict=True)) + " |" for line in cells]
    said = [f"{head}: {cell(rows[0][name], form)}" for head, name, form in common]
    return "\n".join([*([f"({', '.join(said)} in all rows)", ""] if said else []), *lines])


def cell(value, form: str) -> str:
    return "-" if value is None else format(value, form) if form else str(value)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:  # shifts are lists of three numbers
            writer.writerow({name: " ".join(f"{v:.6g}" for v in row[name])
                             if isinstance(row[name], list) else row[name] for name in columns})
