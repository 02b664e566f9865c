"""Tables of figures in the pages, made from the files in benchmarks/results/.

    python benchmarks/tables.py                  # write the tables of all pages anew
    python benchmarks/tables.py --check          # exit code 1 where a page is not up to date
    python benchmarks/tables.py --add published DIR --command "spinverse benchmark -o DIR ..."
    python benchmarks/tables.py --add validation DIR --command "spinverse validate -o DIR"
    python benchmarks/tables.py --add NAME FILE.csv --command "..."

In a page, what stands between `<!-- table: NAME -->` and `<!-- end -->` becomes the rows of
results/NAME.csv. Words after NAME choose rows: `boundary=absorbing` takes those rows and leaves the
column out; `means` gives one row for each boundary, SNR and method.

NAME.csv has the heads and cells that are shown, and a column `source`. NAME.json says for each
source by which command, at which commit, on which day and on what machine it was made. Rows of a
benchmark that are added replace those of the same target, boundary, SNR and method, those of a
validation those of the same family and level.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"^(<!-- table: ([^\n]+) -->\n).*?^(<!-- end -->)", re.DOTALL | re.MULTILINE)
MACHINE = "two cores, x86-64"  # unless said
GROUP = ("boundary", "SNR", "method")
#: What is kept of a benchmark's table.csv: head, column, format.
KEPT = (("boundary", "boundary", ""), ("SNR", "snr", "g"), ("method", "method", ""),
        ("misfit", "misfit", ".3e"), ("true misfit", "true_misfit", ".3e"),
        ("aligned F1", "aligned_f1", ".3f"), ("CPU s", "cpu_seconds", ".0f"),
        ("status", "status", ""))
#: Of runs that differ from these, the target's name says so.
USUAL = {"target_mesh": "grid", "acquisition": "published", "seed": "0"}
#: Families of a validation, as `spinverse validate` has them.
ORDER = ("1", "2", "3", "4", "5", "6", "7", "exchange", "layers", "narrowing", "short_time",
         "effective", "lattice", "published", "b_values", "orders", "agreement", "tolerance")
VERDICT = re.compile(r"^ *(\w+) +(default|refined) +(.+?) \((?:target|expected) (.+?)\) in (\S+): "
                     r"(.*); (\d+) s$", re.MULTILINE)


def read(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def load(name: str) -> tuple[list[dict], dict]:
    """Rows of a result file, and its sources."""
    return read(RESULTS / f"{name}.csv"), json.loads((RESULTS / f"{name}.json").read_text())


def save(name: str, rows: list[dict], sources: dict) -> None:
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    kept = {key: sources[key] for key in dict.fromkeys(row["source"] for row in rows)}
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def render(words: str) -> str:
    """The table of a block, with a line that says where it comes from."""
    name, *choice = shlex.split(words)
    rows, sources = load(name)
    hidden = {"source"}
    for key, _, value in (word.partition("=") for word in choice if word != "means"):
        rows = [row for row in rows if row[key] == value]
        hidden.add(key)
    if not rows:
        raise SystemExit(f"table {words!r}: no such rows in {name}.csv")
    said = dict.fromkeys(origin(sources[row["source"]]) for row in rows)
    if "means" in choice:
        rows = means(rows)
    if all(row.get("status") == "ok" for row in rows):
        hidden.add("status")
    heads = [head for head in rows[0] if head not in hidden and any(row[head] for row in rows)]
    lines = [heads, ["---"] * len(heads), *([row[head] or "-" for head in heads] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"\n{table}\n\n{'; '.join(said)}\n\n"


def origin(source: dict) -> str:
    commit = f"commit {source['commit']}, " if source["commit"] else ""
    machine = source["machine"]
    more = machine.removeprefix(MACHINE) if machine.startswith(MACHINE) else f", {machine}"
    return f"{commit}{source['date']}{more}, `{source['command']}`"


def means(rows: list[dict]) -> list[dict]:
    """A row for each boundary, SNR and method."""
    found = []
    for key in dict.fromkeys(tuple(row[head] for head in GROUP) for row in rows):
        members = [row for row in rows if tuple(row[head] for head in GROUP) == key]
        scores = [float(row["aligned F1"]) for row in members if row["aligned F1"]]
        seconds = [float(row["CPU s"]) for row in members if row["CPU s"]]
        found.append(dict(zip(GROUP, key, strict=True)) | {
            "targets": str(len(members)), "found exactly": str(sum(s > 0.9995 for s in scores)),
            "mean aligned F1": f"{statistics.mean(scores):.3f}" if scores else "",
            "median CPU s": f"{statistics.median(seconds):.0f}" if seconds else ""})
    return found


def from_benchmark(row: dict) -> dict:
    """What is kept of a row of a benchmark; 018_sphere_10r_in_grid becomes 018 sphere."""
    name = re.sub(r"^(\d{3})_([a-z]+).*", r"\1 \2", row["target"])
    unusual = [f"{key.replace('_', ' ')} {row[key]}" for key in USUAL if row[key] != USUAL[key]]
    return {"target": ", ".join([name, *unusual])} | {
        head: format(float(row[column]), form) if form and row[column] else row[column]
        for head, column, form in KEPT}


def from_validation(text: str) -> list[dict]:
    heads = ("family", "level", "worst", "target", "case", "verdict", "s")
    return [dict(zip(heads, line, strict=True)) for line in VERDICT.findall(text)]


def cases_of(text: str) -> list[dict]:
    """Every case of a validation, from its tables in markdown."""
    found, heads = [], []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if line.startswith("### family "):
            family, heads = line.split()[-1], []
        elif cells and not heads:
            heads = ["family", *cells[:-1], "note"]
        elif cells and cells[0] != "---":
            found.append(dict(zip(heads, [family, *cells], strict=True)))
    return found


def _case(row: dict) -> tuple:
    """What makes a row of a benchmark one; of other tables all of it."""
    heads = ("target", *GROUP)
    return tuple(row[head] for head in (heads if all(head in row for head in heads) else row))


def add_validation(name: str, text: str, key: str, source: dict) -> None:
    """Take the families and levels of a validation, and their cases, in place of those there."""
    for file, new in ((name, from_validation(text)), (f"{name}_cases", cases_of(text))):
        rows, sources = load(file)
        there = {(row["family"], row["level"]) for row in new}
        rows = [row for row in rows if (row["family"], row["level"]) not in there]
        rows = sorted([*rows, *(row | {"source": key} for row in new)],
                      key=lambda row: (row["level"] == "refined", ORDER.index(row["family"])))
        save(file, rows, sources | {key: source})


def add(name: str, path: Path, source: dict) -> None:
    """Take a table into the result files."""
    key, rows, sources = f"{source['commit']} {source['date']} {source['command']}", {}, {}
    if path.is_file():
        new = read(path)
    elif (path / "table.json").exists():
        return add_validation(name, (path / "table.md").read_text(), key, source)
    else:
        new = [from_benchmark(row) for row in read(path / "table.csv")]
        if (RESULTS / f"{name}.csv").exists():
            old, sources = load(name)
            rows = {_case(row): row for row in old}
    rows |= {_case(row): row | {"source": key} for row in new}  # in the places that they had
    save(name, list(rows.values()), sources | {key: source})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--add", nargs=2, metavar=("NAME", "DIR|FILE.csv"))
    parser.add_argument("--command", help="with --add: what made the table")
    parser.add_argument("--commit", help="of that run; the present one if not given")
    parser.add_argument("--machine", default=MACHINE)
    asked = parser.parse_args()
    if asked.add:
        if not asked.command:
            parser.error("--add needs --command")
        commit = asked.commit or subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True,
            text=True, check=True).stdout.strip()
        add(asked.add[0], Path(asked.add[1]), {"command": asked.command, "commit": commit,
            "date": str(date.today()), "machine": asked.machine})
    docs = (path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
    stale = False
    for page in [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted(docs)]:
        text = page.read_text()
        new = BLOCK.sub(lambda m: m[1] + render(m[2]) + m[3], text)
        if new != text:
            stale = True
            print(f"{page.relative_to(ROOT)}: {'not up to date' if asked.check else 'written'}")
            if not asked.check:
                page.write_text(new)
    return int(asked.check and stale)


if __name__ == "__main__":
    sys.exit(main())
