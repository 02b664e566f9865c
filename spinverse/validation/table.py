"""The table: on the screen, and as csv, json and markdown."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from .rows import MISSED, SHOWN, WITHIN, Row, Verdict, verdicts

CSV, JSON, MARKDOWN = "table.csv", "table.json", "table.md"
_ENGINES = {"matrix_formalism": "modes", "time_stepping": "steps"}
_MARKS = {MISSED: "MISSED", WITHIN: "(2 sigma)", SHOWN: ""}
_HEADS = ("case", "level", "by", "mesh", "unknowns", "modes or step", "at", "ours", "reference",
          "error", "+-", "estimated", "engines differ", "order", "s", "")


def cells_of(row: Row) -> tuple[str, ...]:
    """A row in words: the value that is furthest from its reference, and the figures."""
    worst = row.worst
    own = row.uncertainty[worst] if row.uncertainty else 0.0
    order = math.isnan(row.least_order)
    return (row.case, row.level, _ENGINES.get(row.method, row.method), row.mesh,
            str(row.unknowns or ""), row.resolution, row.at[worst if order else -1],
            _value(row.ours[worst]) if order else "", _value(row.reference[worst]) if order else "",
            _small(row.error if order else row.ours[-1]) + (" rel" if row.relative else ""),
            _small(own) if own > 1e-6 else "", _small(row.estimated_error),
            _small(row.difference), "" if math.isnan(row.order) else f"{row.order:.2f}",
            f"{row.seconds:.1f}", _MARKS.get(row.verdict, ""))


def line(row: Row) -> str:
    """One line as a case is done."""
    order = "" if math.isnan(row.order) else f"  order {row.order:.2f}"
    kind = "relative error" if row.relative else "error"
    mark = f"  {_MARKS[row.verdict]}" if _MARKS.get(row.verdict) else ""
    error = row.error if math.isnan(row.least_order) else row.ours[-1]
    return (f"{row.family:>10}  {row.case:48.48} {row.level:8} "
            f"{_ENGINES.get(row.method, row.method):18.18} {kind} {error:.1e}{order}"
            f"  {row.seconds:.1f} s{mark}")


def print_table(rows: Sequence[Row]) -> None:
    """Print the whole table, at least 210 characters wide; on one rank only."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=max(Console().width, 210))
    for family in dict.fromkeys(row.family for row in rows):
        table = Table(title=f"family {family}", title_justify="left", box=box.SIMPLE_HEAD,
                      padding=(0, 1, 0, 0))
        for head in _HEADS:
            wide = head in ("case", "mesh", "modes or step", "at", "level", "by")
            table.add_column(head, justify="left" if wide else "right", overflow="fold",
                             no_wrap=head == "case")
        for row in rows:
            if row.family == family:
                table.add_row(*cells_of(row))
        console.print(table)


def markdown(rows: Sequence[Row]) -> str:
    """The same as markdown, a table for each family."""
    parts = []
    for family in dict.fromkeys(row.family for row in rows):
        parts += [f"### family {family}", "", _line(_HEADS), _line(["---"] * len(_HEADS))]
        parts += [_line(cells_of(row)) for row in rows if row.family == family]
        parts.append("")
    parts += ["### verdicts", "", "```", *(v.describe() for v in verdicts(rows)), "```", ""]
    return "\n".join(parts)


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Write ``table.csv`` (a value a line), ``table.json`` and ``table.md``."""
    (folder / MARKDOWN).write_text(markdown(rows))
    entries = [entry(row) for row in rows]
    (folder / JSON).write_text(json.dumps(
        {"rows": entries, "verdicts": [_verdict(v) for v in verdicts(rows)]}, indent=1) + "\n")
    with (folder / CSV).open("w", newline="") as file:
        long = [item for row in entries for item in _by_value(row)]
        writer = csv.DictWriter(file, long[0] if long else ())
        writer.writeheader()
        writer.writerows(long)


def entry(row: Row) -> dict:
    """A row as strict JSON can hold it: what is not there is None."""
    found = {key: _plain(value) for key, value in dataclasses.asdict(row).items()}
    return found | {"error": row.error, "verdict": row.verdict}


def _by_value(item: dict) -> list[dict]:
    per_value = ("at", "ours", "reference", "uncertainty")
    rest = {key: value for key, value in item.items() if key not in per_value}
    columns = [item[key] or [""] * len(item["at"]) for key in per_value]
    head = {key: rest.pop(key) for key in ("family", "case", "level", "method")}
    return [head | dict(zip(per_value, values, strict=True)) | rest
            for values in zip(*columns, strict=True)]


def _verdict(verdict: Verdict) -> dict:
    return {"family": verdict.family, "level": verdict.level, "rows": verdict.rows,
            "passed": verdict.passed, "missed": list(verdict.missed),
            "within_reference_error": list(verdict.within), "seconds": verdict.seconds,
            "worst_case": verdict.worst.case, "worst_error": _plain(verdict.worst.error),
            "text": " ".join(verdict.describe().split())}


def _plain(value):
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _value(number: float) -> str:
    return f"{number:.5f}" if 0.02 <= abs(number) < 10 else f"{number:.7g}"


def _small(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.1e}"


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"
