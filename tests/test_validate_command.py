"""``spinverse validate`` from the command line, on families that take a second."""

from __future__ import annotations

import csv
import json

import pytest
from mpi import run_mpi

from spinverse import cli

FILES = ["summary.json", "table.csv", "table.json", "table.md"]


def validate(*arguments) -> int:
    return cli.main(["validate", *map(str, arguments)])


def test_a_family_end_to_end(tmp_path, capsys):
    out = tmp_path / "deep" / "validation"
    assert validate("--families", "1", "b_values", "-o", out) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    said = capsys.readouterr().out
    assert said.count("slab10_reflect_d2500_D5000") >= 4  # progress and table, both engines
    assert "1 default  worst error" in said and "passed" in said and "MISSED" not in said
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["family"] == "1"]) == 3 * 4 * 2
    assert all(float(row["error"]) < 1e-3 and float(row["seconds"]) >= 0 for row in rows)
    saved = json.loads((out / "table.json").read_text())
    assert [verdict["passed"] for verdict in saved["verdicts"]] == [True, True]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["passed"] and summary["families"] == ["1", "b_values"]

    assert validate("--families", "1", "-o", out) == 2  # there already
    assert "--force" in capsys.readouterr().err
    assert validate("--families", "1", "--engine", "time_stepping", "--refined", "-o", out,
                    "--force", "-q") == 0
    assert capsys.readouterr().out == ""
    saved = json.loads((out / "table.json").read_text())
    assert {(row["method"], row["level"]) for row in saved["rows"]} == {
        ("time_stepping", "default"), ("time_stepping", "refined")}


def test_a_missed_target_is_a_failure_that_leaves_the_table(tmp_path, capsys):
    out = tmp_path / "coarse"
    assert validate("--families", "1", "--tolerance", "0.05", "-o", out) == 1
    heard = capsys.readouterr()
    assert "targets of the default meshes are missed in: 1 (" in heard.err
    assert "MISSED: slab10" in heard.out
    assert "MISSED" in (out / "table.md").read_text()
    assert not json.loads((out / "summary.json").read_text())["passed"]


@pytest.mark.parametrize("arguments, message", [
    (["--families", "8"], "--families: '8', expected some of 1, 2, 3"),
    (["--tolerance", "0"], "--tolerance: 0, expected a number between 0 and 1"),
    (["--tolerance", "small"], "--tolerance"),
    (["--engine", "best"], "--engine"),
    (["--families", "agreement", "--engine", "time_stepping"], "needs both engines"),
])
def test_bad_arguments(tmp_path, capsys, arguments, message):
    assert validate(*arguments, "-o", tmp_path / "out") == 2
    heard = capsys.readouterr().err
    assert message in heard and len(heard.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_two_ranks_give_the_same_values(tmp_path):
    for n in (1, 2):
        said = run_mpi(n, "-m", "spinverse", "validate", "--families", "1", "--engine",
                       "matrix_formalism", "-o", tmp_path / str(n))
        assert said.count("results in") == 1
    one, two = (json.loads((tmp_path / n / "table.json").read_text())["rows"] for n in "12")
    for a, b in zip(one, two, strict=True):
        assert a["case"] == b["case"] and a["ours"] == pytest.approx(b["ours"], abs=1e-7)
