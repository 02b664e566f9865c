"""The command line: run folders, exit codes, one line for bad input, the same under MPI."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import meshio
import numpy as np
import pytest
from mpi import GUARD, ROOT, clean_environment, run_mpi

from spinverse import cli, commands
from spinverse.acquisition import Signals
from spinverse.acquisition.io import read_signals, write_signals
from spinverse.inversion.verdict import NOT_EXPLAINED
from spinverse.mesh import Ball, readers, surfaces, tagged_grid, write_npz
from spinverse.mesh.checks import cell_volumes
from spinverse.report import folder

PGSE = """acquisition:
  pgse: {b_s_per_mm2: [0, 2000], directions: 3, delta_ms: [5, 10], Delta_ms: [10, 30]}
"""
SIMULATE = """mesh: {file: ball.npz}
tissue:
  diffusivity_um2_per_ms: 2.0
  boundary: absorbing
  permeability: {membrane_m_per_s: 1.0e-5, elsewhere_m_per_s: 0.1, outer_m_per_s: 0.1}
modes: 40
""" + PGSE
# too few iterations to explain the data: its runs end with NOT_EXPLAINED
RECONSTRUCT = """mesh: {file: ball.npz}
tissue: {boundary: absorbing}
signals: {file: target/signals.csv}
stages:
  - {name: long, iterations: 2, sequences: [0]}
  - {name: all, iterations: 4, priors: {continuity: 0.1}}
modes: 40
"""


@pytest.fixture
def place(tmp_path):
    """A folder with a mesh and two run files."""
    write_npz(tmp_path / "ball.npz", tagged_grid(Ball(7.0), length=20.0, cells=2))
    (tmp_path / "simulate.yaml").write_text(SIMULATE)
    (tmp_path / "reconstruct.yaml").write_text(RECONSTRUCT)
    return tmp_path


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """The simulated signals, once for all tests."""
    where = tmp_path_factory.mktemp("signals")
    write_npz(where / "ball.npz", tagged_grid(Ball(7.0), length=20.0, cells=2))
    (where / "simulate.yaml").write_text(SIMULATE)
    assert simulate(where, "-q") == 0
    return where / "target"


@pytest.fixture
def ready(place, target):
    """The folder with the signals in it."""
    (place / "target").mkdir()
    shutil.copy(target / "signals.csv", place / "target")
    return place


def simulate(place, *more, config="simulate.yaml", out="target"):
    return cli.main(["simulate", str(place / config), "-o", str(place / out), *more])


def reconstruct(place, *more, config="reconstruct.yaml", out="found"):
    return cli.main(["reconstruct", str(place / config), "-o", str(place / out), *more])


def refused(capsys, code: int = 2) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("spinverse: ")
    return lines[0]


def test_from_mesh_to_signals_to_membranes(place, capsys):
    assert simulate(place) == 0
    said = capsys.readouterr().out
    assert "96 cells, 216 facets (48 outer, 24 of a known membrane)" in said
    assert "membrane 0.01 um/ms (1e-05 m/s)" in said
    assert said.splitlines()[-1] == f"results in {place / 'target'}"
    target = place / "target"
    signals = read_signals(target / "signals.csv")
    assert signals == read_signals(target / "signals.npz")
    assert len(signals) == 12
    assert {path.name for path in target.iterdir()} >= {"signals.csv", "signals.npz",
                                                        "summary.json"}

    assert reconstruct(place) == NOT_EXPLAINED
    said = capsys.readouterr().out
    assert sum(line.split()[:1] == ["all"] for line in said.splitlines()) == 5
    found = place / "found"
    for name in ("summary.json", "history.csv", "permeability.npz", "permeability.vtu",
                 "signals.csv", "interface.stl", "checkpoint/latest.npz"):
        assert (found / name).is_file(), name
    assert not [path for path in found.rglob(".*")]
    summary = json.loads((found / "summary.json").read_text())
    assert set(summary["inputs"]) == {"config", "mesh", "signals"}
    assert summary["metrics"] is not None
    assert summary["ranks"] == len(summary["peak_memory_per_rank"]) == 1
    history = folder.read_history(found / "history.csv")
    assert [row["stage"] for row in history] == ["long"] * 3 + ["all"] * 5
    assert history[-1]["data"] < history[0]["data"]
    assert "continuity" in history[-1] and "continuity" not in history[0]
    table = np.genfromtxt(found / "signals.csv", delimiter=",", names=True, dtype=None,
                          encoding="utf-8")
    np.testing.assert_allclose(table["measured_normalised"], signals.normalised)
    misfit = np.mean((table["measured_normalised"] - table["predicted_normalised"]) ** 2)
    assert misfit == pytest.approx(summary["data_misfit"])


def test_permeability_of_a_reconstruction_can_be_simulated(ready):
    place = ready
    assert reconstruct(place, "-q") == NOT_EXPLAINED
    again = SIMULATE.replace(
        "{membrane_m_per_s: 1.0e-5, elsewhere_m_per_s: 0.1, outer_m_per_s: 0.1}",
        "{file: found/permeability.npz}")
    (place / "again.yaml").write_text(again)
    assert simulate(place, "-q", config="again.yaml", out="again") == 0
    ours, theirs = (read_signals(place / name / "signals.csv") for name in ("again", "found"))
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-8, atol=1e-8)


def permeability(run):
    with np.load(run / "permeability.npz") as file:
        return file["permeability"]


@pytest.mark.parametrize("optimiser", ["adam: {warm_up: 2, cycle: 5}", "tao: {type: bqnls}",
                                       "gauss_newton: {damping: 1.0}"])
def test_a_resumed_run_ends_as_an_unbroken_one(ready, capsys, monkeypatch, optimiser):
    place, say = ready, commands.reconstruct.terminal.Screen.iteration
    monkeypatch.setattr(commands.reconstruct, "CHECKPOINT_EVERY", 2)
    (place / "reconstruct.yaml").write_text(RECONSTRUCT.replace(
        "name: all, iterations: 4", f"name: all, iterations: 7, optimiser: {{{optimiser}}}"
    ).replace("continuity: 0.1", "continuity: 0.1, manifold: [0, 0.1]"))
    assert reconstruct(place, "-q") == NOT_EXPLAINED
    (place / "found").rename(place / "unbroken")

    def power_cut(self, item, done):
        say(self, item, done)
        if (item.stage, item.iteration) == ("all", 5):
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(commands.reconstruct.terminal.Screen, "iteration", power_cut)
        assert reconstruct(place, "-q") == 1
    found = place / "found"
    (found / folder.CHECKPOINT).write_bytes(b"half a checkpoint")  # the one before serves
    assert reconstruct(place, "--resume") == NOT_EXPLAINED
    said = capsys.readouterr().out
    assert "went on from previous.npz" in said and "resumed at stage all, iteration 2" in said
    np.testing.assert_array_equal(permeability(found), permeability(place / "unbroken"))
    ours, theirs = (folder.read_history(run / folder.HISTORY)
                    for run in (found, place / "unbroken"))
    for row in (*ours, *theirs):
        row.pop("seconds")
    assert ours == theirs


def test_an_interrupted_run_is_resumed(ready, capsys, monkeypatch):
    place = ready
    monkeypatch.setattr(commands.reconstruct, "CHECKPOINT_EVERY", 2)
    say = commands.reconstruct.terminal.Screen.iteration

    def power_cut(self, item, done):
        say(self, item, done)
        if (item.stage, item.iteration) == ("all", 3):
            raise RuntimeError("power cut")

    assert reconstruct(place, "-q") == NOT_EXPLAINED
    whole = permeability(place / "found")
    (place / "found").rename(place / "unbroken")
    assert "the data are NOT explained" in refused(capsys)  # said as a warning
    with monkeypatch.context() as patch:
        patch.setattr(commands.reconstruct.terminal.Screen, "iteration", power_cut)
        assert reconstruct(place, "-q") == 1
    assert "RuntimeError: power cut" in refused(capsys)
    found = place / "found"
    assert (found / "checkpoint" / "latest.npz").is_file()
    assert not (found / "summary.json").exists()
    assert reconstruct(place, "-q") == 2  # there is a run
    assert "--force" in refused(capsys)

    assert reconstruct(place, "--resume") == NOT_EXPLAINED
    assert "resumed at stage all, iteration 2" in capsys.readouterr().out
    rows = [(row["stage"], row["iteration"]) for row in folder.read_history(found / "history.csv")]
    assert rows[:6] == [("long", 0), ("long", 1), ("long", 2), ("all", 0), ("all", 1), ("all", 2)]
    assert rows[-1] == ("all", 4)
    np.testing.assert_array_equal(permeability(found), whole)
    assert reconstruct(place, "--resume", "-q") == NOT_EXPLAINED  # nothing left to do
    assert "the data are NOT explained" in refused(capsys)

    other = RECONSTRUCT.replace("name: long", "name: longest")
    (place / "other.yaml").write_text(other)
    assert reconstruct(place, "--resume", config="other.yaml") == 2
    assert "has stages long, all" in refused(capsys)


def test_a_run_is_resumed_on_its_own_mesh_only(ready, capsys):
    """A mesh that is made has no file whose hash would tell."""
    made = RECONSTRUCT.replace("{file: ball.npz}", "{builder: tagged_grid, length_um: 20, "
                               "cells: 2, shape: {kind: ball, radius_um: 7}}")
    (ready / "made.yaml").write_text(made.replace("  - {name: all,", "  # - {name: all,"))
    assert reconstruct(ready, "-q", config="made.yaml") == NOT_EXPLAINED
    assert reconstruct(ready, "-q", "--resume", config="made.yaml") == NOT_EXPLAINED
    capsys.readouterr()
    for old, new in (("length_um: 20", "length_um: 21"), ("radius_um: 7", "radius_um: 6")):
        (ready / "other.yaml").write_text((ready / "made.yaml").read_text().replace(old, new))
        assert reconstruct(ready, "--resume", config="other.yaml") == 2
        assert "the section mesh is not what the run in" in refused(capsys)


def test_output_folder(place, capsys):
    (place / "target").mkdir()
    (place / "target" / "thesis.tex").write_text("...")
    assert simulate(place) == 2
    assert "not empty" in refused(capsys)
    assert simulate(place, "--force") == 2  # not a run of ours
    assert "holds no spinverse run" in refused(capsys)
    assert simulate(place, "-q", out="deep/run") == 0
    assert simulate(place, "-q", "--force", out="deep/run") == 0
    assert [path.name for path in (place / "deep").iterdir()] == ["run"]


def inverted(place):
    data = tagged_grid(Ball(7.0), length=20.0, cells=2)
    tets = data.cells.copy()
    tets[5] = tets[5][[1, 0, 2, 3]]
    np.savez(place / "bad.npz", points=data.points, tets=tets)


@pytest.mark.parametrize("old, new, message", [
    ("ball.npz", "no.npz", "no.npz': no such file"),
    ("ball.npz", "bad.npz", "inverted"),
    ("tissue", "tisue", "tisue: unknown key, did you mean tissue?"),
    ("ms: 2.0", "ms: -2.0", "tissue: diffusivity: -2 in cell"),
    ("delta_ms: [5, 10], ", "", "pgse.delta_ms: missing, expected the pulse length in ms"),
    ("delta_ms: [5, 10]", "delta_ms: [5, -10]", "delta"),
    ("1.0e-5", "-1.0e-5", "permeability: -0.01 um/ms"),
    (" outer_m_per_s: 0.1", "", "permeability.outer_m_per_s: 0 with boundary absorbing"),
    ("absorbing", "reflecting", "expected boundary: absorbing"),
    ("membrane_m_per_s: 1.0e-5, ", "", "permeability.membrane_m_per_s: missing"),
    ("modes: 40", "modes: many", "modes: 'many', expected"),
])
def test_bad_simulations(place, capsys, old, new, message):
    inverted(place)
    assert old in SIMULATE
    (place / "bad.yaml").write_text(SIMULATE.replace(old, new, 1))
    before = sorted(place.rglob("*"))
    assert simulate(place, config="bad.yaml", out="deep/target") == 2
    assert message in refused(capsys)
    assert sorted(place.rglob("*")) == before


def one_row_less(place):
    path = place / "target" / "signals.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


@pytest.mark.parametrize("text, damage, message", [
    (RECONSTRUCT + PGSE, one_row_less, "expected 12 rows as in the acquisition, found 11"),
    (RECONSTRUCT + PGSE.replace("2000", "2001"), None, "b is 2000.0, expected 2001.0"),
    (RECONSTRUCT.replace("signals.csv", "no.csv"), None, "no.csv: there is no such file"),
    (RECONSTRUCT.replace("absorbing", "absorbing, diffusivity_um2_per_ms: 0"), None,
     "diffusivity: 0 in cell"),
    (RECONSTRUCT.replace("absorbing", "absorbing, start_um_per_ms: 1e5"), None,
     "start_um_per_ms: 100000, expected a value from 0.01 to 100"),
    (RECONSTRUCT.replace("{boundary", "{periodic: x, boundary"), None, "tissue.periodic: unknown"),
    (RECONSTRUCT.replace("{file: ball.npz}", "{builder: intervals, thicknesses_um: [2, 3], size_um"
                         ": 1}"), None, "mesh: intervals has dimension 1, expected tetrahedra"),
    (RECONSTRUCT.replace("[0]}", "[0], b_max_s_per_mm2: 10}"), None, "choose no measurement"),
    (RECONSTRUCT.replace("[0]}", "[0], optimiser: {tao: {type: best}}}"), None,
     "optimiser 'best', expected a type of TAO"),
])
def test_bad_reconstructions(ready, capsys, text, damage, message):
    place = ready
    if damage is not None:
        damage(place)
    (place / "bad.yaml").write_text(text)
    before = sorted(place.rglob("*"))
    assert reconstruct(place, config="bad.yaml") == 2
    assert message in refused(capsys)
    assert sorted(place.rglob("*")) == before


def test_a_filtered_copy_of_our_signals(ready, capsys):
    """Rows may be left out; but they may also have been lost."""
    one_row_less(ready)
    assert cli.main(["reconstruct", str(ready / "reconstruct.yaml"), "--dry-run", "-q"]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "11 rows, expected 12" in said and "filtered copy" in said


@pytest.mark.parametrize("kind", ["column", "npy", "voxel"])
def test_signals_as_numbers_alone(ready, capsys, kind):
    """In any unit, beside an acquisition."""
    values = 37.0 * read_signals(ready / "target" / "signals.csv").magnitude
    where = {"column": "dwi.txt", "npy": "dwi.npy", "voxel": "dwi.nii.gz, voxel: [1, 0, 2]"}[kind]
    if kind == "column":
        (ready / "dwi.txt").write_text("\n".join(map(str, values)))
    elif kind == "npy":
        np.save(ready / "dwi.npy", values)
    else:
        nibabel = pytest.importorskip("nibabel")
        image = np.zeros((2, 1, 3, len(values)))
        image[1, 0, 2] = values
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), ready / "dwi.nii.gz")
    plain = RECONSTRUCT.replace("target/signals.csv", where)
    (ready / "plain.yaml").write_text(plain + PGSE)
    assert cli.main(["reconstruct", str(ready / "plain.yaml"), "--dry-run"]) == 0
    assert "12 measurements" in capsys.readouterr().out
    (ready / "plain.yaml").write_text(plain)
    assert cli.main(["reconstruct", str(ready / "plain.yaml"), "--dry-run"]) == 2
    assert "holds 12 numbers and no measurements, expected an acquisition" in refused(capsys)


@pytest.mark.parametrize("arguments", [
    [], ["simulate"], ["invert", "a.yaml"], ["simulate", "a.yaml", "-o", "b", "--fast"],
    ["simulate", "no/a.yaml", "-o", "b"], ["simulate", "a.yaml", "-o", "b", "--", "pc_type"],
])
def test_wrong_usage(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    refused(capsys)
    assert not list(tmp_path.iterdir())


def test_version_and_help(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("spinverse ")
    assert cli.main(["simulate", "--help"]) == 0


def test_a_reader_that_leaves(place):
    """As `| head -1` does: the run goes on, quietly."""
    command = [sys.executable, "-u", "-m", "spinverse", "simulate", place / "simulate.yaml", "-o",
               place / "target"]
    reads, writes = os.pipe()
    os.close(reads)  # before the run: one that leaves later may be later than the last line
    run = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=GUARD,
                         env=clean_environment())
    os.close(writes)
    assert (run.returncode, run.stderr) == (0, "")
    assert (place / "target" / "summary.json").is_file()


@pytest.mark.parametrize("interface", ["equilibrium", "plain"])
def test_known_densities_and_their_interface(place, interface):
    """What a reconstruction predicts is what a simulation of it gives."""
    tissue = f"density: {{1: 0.5, 2: 1.0}}, interface: {interface}, "
    text = SIMULATE.replace("  boundary: absorbing", "  density: {1: 0.5, 2: 1.0}\n"
                            f"  interface: {interface}\n  boundary: absorbing")
    (place / "simulate.yaml").write_text(text)
    assert simulate(place, "-q") == 0
    (place / "reconstruct.yaml").write_text(RECONSTRUCT.replace("{boundary", "{" + tissue
                                                                + "boundary"))
    assert reconstruct(place, "-q") == NOT_EXPLAINED
    (place / "again.yaml").write_text(text.replace(
        "{membrane_m_per_s: 1.0e-5, elsewhere_m_per_s: 0.1, outer_m_per_s: 0.1}",
        "{file: found/permeability.npz}"))
    assert simulate(place, "-q", config="again.yaml", out="again") == 0
    ours, theirs = (read_signals(place / name / "signals.csv") for name in ("again", "found"))
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("config, options", [
    (SIMULATE, {"eps_eps_tol": 1e-9, "eps_st_ksp_type": "preonly", "eps_st_pc_type": "cholesky"}),
    (SIMULATE, {"eps_solver": "iterative", "eps_rtol": 1e-8, "eps_continuous_ksp_type": "cg"}),
    (SIMULATE.replace("modes: 40", "engine: time_stepping\ntime_step_ms: 4"),
     {"ts_common": True, "ts_ksp_type": "cg", "ts_pc_type": "jacobi", "ts_ksp_rtol": 1e-12}),
    (RECONSTRUCT, {"long_tao_tao_max_it": 1, "all_tao_tao_type": "blmvm"})])
def test_options_by_prefix_reach_every_solver(ready, config, options):
    """PETSc says at its end which options nobody asked for."""
    (ready / "run.yaml").write_text(config)
    command = "reconstruct" if config == RECONSTRUCT else "simulate"
    words = [word for name, value in options.items()
             for word in (f"-spinverse_{name}", str(value).lower())]
    done = subprocess.run(
        [sys.executable, "-m", "spinverse", command, "run.yaml", "-o", "out", "-q", "--", *words,
         "-options_left"], cwd=ready, env=clean_environment(), capture_output=True, text=True,
        timeout=GUARD)
    assert done.returncode == (NOT_EXPLAINED if config == RECONSTRUCT else 0), done.stderr
    assert "There are no unused options" in done.stdout
    if command == "reconstruct":
        rows = (ready / "out" / "history.csv").read_text()
        assert "long,1," in rows and "long,2," not in rows and "all,4," in rows


def events_of(log: str) -> dict[str, dict[str, int]]:
    """How often each event happened, by stage of PETSc's log."""
    table = log[: log.index("\nObject Type")]
    parts = re.split(r"^--- Event Stage \d+: (.+?) *$", table, flags=re.MULTILINE)[1:]
    return {stage: {name: int(count) for name, count in re.findall(
        r"^(\S.*?) +(\d+) +\d+\.\d +\d\.\d+e", rows, flags=re.MULTILINE)}
        for stage, rows in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("config, once, solves", [
    (SIMULATE, ["read inputs", "set-up", "signals", "assembly", "eigenproblem", "projection",
                "propagation", "write results"],
     {"EPSSolve": {"eigenproblem"}, "PCSetUp": {"eigenproblem"}}),
    (RECONSTRUCT, ["read inputs", "reconstruct", "final signals", "interface", "uncertainty",
                   "Jacobian", "facet responses", "write results"],
     {"EPSSolve": {"eigenproblem"}, "KSPMatSolve": {"responses", "facet responses"}})])
def test_the_log_of_petsc_has_named_stages(ready, config, once, solves):
    """All that PETSc does is in a stage with a name, and the costly parts in that of theirs."""
    (ready / "run.yaml").write_text(config)
    command = "reconstruct" if config == RECONSTRUCT else "simulate"
    done = subprocess.run(
        [sys.executable, "-m", "spinverse", command, "run.yaml", "-o", "out", "-q", "--",
         "-log_view", ":log.txt"], cwd=ready, env=clean_environment(), capture_output=True,
        timeout=GUARD)
    assert done.returncode == (NOT_EXPLAINED if config == RECONSTRUCT else 0), done.stderr
    found = events_of((ready / "log.txt").read_text())
    assert found.pop("Main Stage") == {}
    # a phase is an event too, and lies in its own stage
    assert {stage: found[stage][stage] for stage in once} == dict.fromkeys(once, 1)
    assert all(stage in events for stage, events in found.items())
    for event, stages in solves.items():
        assert {stage for stage, events in found.items() if event in events} == stages
    if config == RECONSTRUCT:
        rows = folder.read_history(ready / "out" / "history.csv")
        back = found["propagation back"]["propagation back"]
        assert back == found["facet contraction"]["facet contraction"] >= len(rows)
        assert found["propagation"]["propagation"] > back == found["gradient"]["gradient"]
        # one set of modes with responses for each permeability that the stages try
        assert found["responses"]["responses"] == found["forward"]["forward"] >= back


def test_petsc_options_follow_two_dashes(place, capsys):
    from petsc4py import PETSc

    assert simulate(place, "-q", "--", "-spinverse_test_option", "7") == 0
    assert PETSc.Options().getInt("spinverse_test_option") == 7
    said = capsys.readouterr().err
    assert said.startswith("spinverse: warning: nothing used the PETSc options "
                           "-spinverse_test_option (") and said.count("\n") == 1


def test_without_matplotlib(place, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert simulate(place) == 0
    assert "no figure signals.png" in capsys.readouterr().out
    assert not (place / "target" / "figures").exists()


def numbers_in(value) -> list[float]:
    """All numbers of a JSON document, in order."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [number for item in inner for number in numbers_in(item)]
    return [float(value)] if isinstance(value, int | float) else []


def test_the_command_is_the_same_on_two_ranks(place):
    (place / "simulate.yaml").write_text(
        SIMULATE + "quantities: [compartments, exchange_times, mass_balance]\n")
    for n in (1, 2):
        run_mpi(n, "-m", "spinverse", "simulate", place / "simulate.yaml", "-o",
                place / f"target-{n}", "-q")
    one, two = (read_signals(place / f"target-{n}" / "signals.csv") for n in (1, 2))
    assert one.acquisition == two.acquisition
    np.testing.assert_allclose(one.values, two.values, rtol=1e-9, atol=1e-9 * abs(one.values[0]))

    one, two = (json.loads((place / f"target-{n}" / "quantities.json").read_text())
                for n in (1, 2))
    assert one.keys() == two.keys()
    np.testing.assert_allclose(numbers_in(one), numbers_in(two), rtol=1e-7, atol=1e-9)

    text = RECONSTRUCT.replace("target/", "target-1/")
    (place / "reconstruct.yaml").write_text(text)
    for n in (1, 2):
        run = run_mpi(n, "-m", "spinverse", "reconstruct", place / "reconstruct.yaml", "-o",
                      place / f"found-{n}", check=False)
        assert run.returncode == NOT_EXPLAINED, run.stderr
        assert run.stdout.count("results in") == run.stdout.count("NOT explained") == 1
    one, two = (read_signals(place / f"found-{n}" / "signals.csv") for n in (1, 2))
    np.testing.assert_allclose(one.normalised, two.normalised, rtol=1e-5)

    run = run_mpi(2, ROOT / "tests" / "command.py", "simulate", place / "no.yaml", "-o",
                  place / "bad", check=False)
    assert run.returncode == 2
    assert [line for line in run.stderr.splitlines() if line.startswith("spinverse:")] \
        == run.stderr.splitlines()
    assert len(run.stderr.splitlines()) == 1
    assert not (place / "bad").exists()


SHAPES = """mesh: {file: ball.npz}
tissue: {boundary: absorbing, wall_permeability_um_per_ms: 0.01}
signals: {file: target/signals.csv}
stages: [{name: cell, shapes: {cells: 1, ellipsoids: 12, candidates: 2, rounds: 1}}]
"""


def test_a_search_for_shapes(ready, capsys):
    (ready / "shapes.yaml").write_text(SHAPES)
    assert reconstruct(ready, config="shapes.yaml") == 0
    said = capsys.readouterr().out
    assert "stage 1: cell: search for the shapes of up to 1 cells" in said
    assert "1 ellipsoid" in said and "cells" in said
    found = ready / "found"
    summary = json.loads((found / "summary.json").read_text())
    # three directions see a ball this coarse, wherever it is
    assert summary["data_misfit"] < 1e-7 and summary["metrics"]["aligned_f1"] == 1.0
    assert summary["metrics"]["bad_edges_inside_percent"] == 0.0
    assert summary["interface"]["rule"] == "search for shapes"
    assert summary["uncertainty"]["determined"] > 0
    with np.load(found / "permeability.npz") as file:
        assert set(np.unique(file["permeability"])) == {0.01, 100.0}
        membrane = file["membrane"].astype(bool)
        assert (file["permeability"][membrane] == 0.01).all()
        assert {"sensitivity", "posterior_std", "determined"} <= set(file)
        labels = file["labels"]
    ball = readers.read(ready / "ball.npz")
    cells = meshio.read(found / "cells.vtu")
    np.testing.assert_array_equal(cells.cells_dict["tetra"], ball.cells)
    np.testing.assert_array_equal(cells.cell_data["label"][0], labels)
    np.testing.assert_array_equal(cells.cell_data["tag"][0], ball.cell_tags)
    assert (labels == 1).sum() == (ball.cell_tags == 1).sum() and set(labels) == {0, 1}
    phases = [row["phase"] for row in folder.read_history(found / "history.csv")]
    assert phases[:2] == ["1 ellipsoid", "smooth"]
    assert summary["verdict"]["explained"] is True and "the data are explained" in said
    with (found / "cells.csv").open(newline="") as file:
        row, = csv.DictReader(file)
    volume = cell_volumes(ball.points, ball.cells[ball.cell_tags == 1]).sum()
    assert float(row["volume"]) == pytest.approx(abs(volume)) and row["cell"] == "1"
    assert float(row["volume_low"]) < abs(volume) < float(row["volume_high"])
    assert float(row["permeability_si"]) == pytest.approx(1e-5)
    assert summary["cells"]["cells"][0]["volume"] == pytest.approx(abs(volume))
    smooth = surfaces.load_surface(found / "surface.stl")
    assert smooth.areas.sum() == pytest.approx(float(row["smooth_surface"]), rel=1e-5)
    assert "cell 1: exchange time" in said
    before = (found / "permeability.npz").read_bytes()
    assert reconstruct(ready, "--resume", config="shapes.yaml") == 0
    assert "resumed: all stages are done" in capsys.readouterr().out
    assert (found / "permeability.npz").read_bytes() == before


def test_signals_of_another_wall_are_not_explained(place, capsys):
    """Known wrongly: the wall five times, the diffusivity almost twice. It says so everywhere."""
    (place / "simulate.yaml").write_text(SIMULATE.replace("ms: 2.0", "ms: 1.2").replace(
        "membrane_m_per_s: 1.0e-5", "membrane_m_per_s: 5.0e-5"))
    assert simulate(place, "-q") == 0
    # what cannot be found would be looked for until the budget is spent
    (place / "shapes.yaml").write_text(SHAPES.replace("rounds: 1", "rounds: 1, budget: 300"))
    assert reconstruct(place, config="shapes.yaml") == NOT_EXPLAINED
    said = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(said) if "the data are NOT explained: misfit" in line)
    assert "diffusivity" in said[first] and "wall permeability" in said[first]
    assert said[first + 1].startswith("stage cell: ")  # first of the results
    assert any(line.startswith("most would be explained by ") for line in said)
    found = place / "found"
    summary = json.loads((found / "summary.json").read_text())
    assert summary["verdict"]["words"] == said[first] and summary["verdict"]["explained"] is False
    assert summary["verdict"]["misfit"] == summary["data_misfit"] > summary["verdict"]["limit"]
    assert summary["uncertainty"]["determined"] == 0
    with np.load(found / "permeability.npz") as file:
        assert not file["determined"].any()


def test_without_known_noise_nobody_can_tell(ready, capsys):
    """Signals that say neither a unit nor their noise."""
    path = ready / "target" / "signals.npz"
    signals = read_signals(ready / "target" / "signals.csv")
    write_signals(path, Signals(signals.acquisition, signals.magnitude))
    (ready / "shapes.yaml").write_text(SHAPES.replace("signals.csv", "signals.npz"))
    assert reconstruct(ready, config="shapes.yaml") == 0
    assert "nobody can tell, for their noise is not known" in capsys.readouterr().out
    summary = json.loads((ready / "found" / "summary.json").read_text())
    assert summary["verdict"]["explained"] is None
