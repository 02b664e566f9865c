"""The benchmark: targets, signals with noise, runs that go on where they were, the table."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
import sys
import threading

import numpy as np
import pytest
import yaml
from mpi import GUARD, ROOT, as_python

from spinverse import cli
from spinverse.acquisition import Acquisition, Signals
from spinverse.benchmark import fine, methods, processes, runs, table, targets
from spinverse.benchmark.coverage import covered
from spinverse.benchmark.runs import ACQUISITIONS, add_noise
from spinverse.config import ReconstructConfig, SimulateConfig
from spinverse.errors import InputError
from spinverse.interface import edge_defects
from spinverse.mesh import Ball, BentTube, Cylinder, Torus, readers, tagged_grid, write_npz
from spinverse.mesh.checks import cell_volumes, facets_of, quality
from spinverse.mesh.connected import cell_regions
from spinverse.mesh.data import MeshData

CHEAP = """stages:
  - {name: long, iterations: 2, sequences: [0], every: 15}
  - {name: all, iterations: 2, every: 15}
modes: 40
"""
#: Three measurements a sequence, for the tests' targets.
TINY = {"pgse": {"b_s_per_mm2": [0, 1000], "directions": 3, "delta_ms": [5, 10],
                 "Delta_ms": [10, 30]}}


def benchmark(place, *more, out="bench"):
    return cli.main(["benchmark", "-o", str(place / out), "--jobs", "2", *map(str, more)])


def rows_of(place, out="bench") -> list[dict]:
    with (place / out / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("spinverse: "), lines
    return lines[0]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a small target, a cheap method, and a cheap acquisition."""
    monkeypatch.setitem(ACQUISITIONS, "published", TINY)
    write_npz(tmp_path / "ball.npz", tagged_grid(Ball(7.0), length=20.0, cells=2))
    (tmp_path / "cheap.yaml").write_text(CHEAP)
    return tmp_path


# ---- targets --------------------------------------------------------------------------------

def test_the_published_grid():
    points, tets = targets.grid()
    facets, pairs = facets_of(tets)
    assert (len(points), len(tets)) == (181, 576)  # the cube's 8 corners belong to no tet
    assert (pairs[:, 1] < 0).sum() == 288 and len(facets) == 1296
    assert np.isclose(cell_volumes(points, tets).sum(), 0.75 * targets.SIDE**3)
    assert (cell_volumes(points, tets) > 0).all()


@pytest.mark.parametrize("name", [*targets.OWN, "axon-11", "blob-7", "touching-3"])
def test_our_own(name):
    target = targets.own(name)
    data, again = target.data, targets.own(name).data
    assert np.array_equal(data.interface_facets, again.interface_facets)
    _, pairs = facets_of(data.cells)
    links = pairs[(pairs >= 0).all(axis=1)]
    for number in range(1, len(target.shapes) + 1):
        member = data.cell_tags == number
        assert 15 <= member.sum() < 0.4 * len(member)
        parts = cell_regions(len(member), pairs, ~member[pairs].all(axis=1))[member]
        assert len(set(parts.tolist())) == 1
        parts = (data.cell_tags[links] == number).any(axis=1)
        assert parts.any()
    if name == "sphere":  # the published one has as many
        assert (data.cell_tags == 1).sum() == len(data.interface_facets) == 48
    if len(target.shapes) == 1:
        edges = data.interface_facets[:, [[0, 1], [0, 2], [1, 2]]].reshape(-1, 2)
        _, degree = np.unique(edges, axis=0, return_counts=True)
        assert (degree % 2 == 0).all()  # closed, the outer facets of the cell included


@pytest.mark.parametrize("number", [3, 6])
def test_several_balls(number):
    """Each has at least four mesh cells, connected, and is as it would be alone."""
    target = targets.own(f"cells-{number}-1")
    data, again = target.data, targets.own(f"cells-{number}-1").data
    assert len(target.shapes) == number and np.array_equal(data.cell_tags, again.cell_tags)
    _, pairs = facets_of(data.cells)
    for tag, shape in enumerate(target.shapes, 1):
        member = data.cell_tags == tag
        assert member.sum() >= 4 and 3 <= shape.radius <= 5
        parts = cell_regions(len(member), pairs, ~member[pairs].all(axis=1))[member]
        assert len(set(parts.tolist())) == 1
        np.testing.assert_array_equal(member, shape.contains(data.points[data.cells].mean(axis=1)))
    with pytest.raises(InputError, match="cells with a number and a seed as cells-3-0"):
        targets.own("cells-2-0")


def test_finer_grids_of_our_own():
    """Their number of cells, and about the same volume inside."""
    coarse, fine = (targets.own("axon-0", cubes) for cubes in (4, 6))
    assert (coarse.name, fine.name) == ("axon-0", "axon-0-6cubes")
    assert len(fine.data.cells) == 12 * 6**2 * 5
    inside = [(t.data.cell_tags > 0).mean() for t in (coarse, fine)]
    assert abs(inside[1] / inside[0] - 1) < 0.2
    names = [target.name for target in targets.find(["sphere", "cells-3-1"], 5)]
    assert names == ["sphere-5cubes", "cells-3-1-5cubes"]


def test_kinds_of_pairs():
    touching, nested, apart = (targets.own(name).data
                               for name in ("touching-0", "nested-0", "two-cells-0"))
    between = [{tuple(sorted(p)) for p in _sides(data)} for data in (touching, nested, apart)]
    assert between == [{(0, 1), (0, 2), (1, 2)}, {(0, 2), (1, 2)}, {(0, 1), (0, 2)}]
    assert edge_defects(touching.interface_facets)["branch_edges_percent"] > 0


def _sides(data: MeshData) -> np.ndarray:
    _, pairs = facets_of(data.cells)
    tags = np.where(pairs < 0, 0, data.cell_tags[pairs])
    return tags[tags[:, 0] != tags[:, 1]]


def test_targets_from_files(tmp_path):
    target = targets.own("sphere")
    write_npz(tmp_path / "one.npz", target.data)
    np.savez(tmp_path / "signals.npz", values=np.ones(3))
    found, = targets.find([str(tmp_path)])
    assert found.name == "one" and not found.shapes
    assert np.array_equal(found.data.interface_facets, target.data.interface_facets)
    with pytest.raises(InputError, match="one: named 2 times"):
        targets.find([str(tmp_path), str(tmp_path / "one.npz")])
    with pytest.raises(InputError, match="'spere': expected a file, a folder of files, own, sph"):
        targets.find(["spere"])
    write_npz(tmp_path / "bare.npz", MeshData(target.data.points, target.data.cells))
    with pytest.raises(InputError, match="no interface_facets, expected the true membrane"):
        targets.find([str(tmp_path / "bare.npz")])
    with pytest.raises(InputError, match="holds no centroid of the 576 cells"):
        targets.on_grid("speck", [Ball(0.01, (0.5, 0.5, 0.5))])


@pytest.mark.parametrize("shape", [
    Ball(5.0, (1.0, 0, 0)), Cylinder(4.0, 9.0, (1.0, 1.0, 0)), Torus(6.0, 2.0, (0, 1.0, 1.0)),
    BentTube(3.0, ((-9.0, 0, 0), (0, 4.0, 0), (9.0, 0, 2.0)))], ids=lambda s: type(s).__name__)
def test_levels_are_negative_inside(shape):
    points = np.random.default_rng(0).uniform(-10, 10, (2000, 3))
    assert np.array_equal(shape.level(points) < 0, shape.contains(points))


# ---- the true shape on its own mesh ---------------------------------------------------------

@pytest.mark.parametrize("name", ["sphere", "axon-0", "touching-0"])
def test_fine_meshes(name):
    target = targets.own(name)
    data = fine.mesh(target, size=2.5)
    volumes = cell_volumes(data.points, data.cells)
    assert np.isclose(volumes.sum(), cell_volumes(target.data.points, target.data.cells).sum())
    assert quality(data).min() > 5e-3
    facets, pairs = facets_of(data.cells)
    inner = pairs[:, 1] >= 0
    walls = {tuple(row) for row in data.interface_facets.tolist()}
    wall = np.array([tuple(row) in walls for row in facets.tolist()]) & inner
    corners = facets[wall]
    on = np.min([np.abs(shape.level(data.points[np.unique(corners)])) for shape in target.shapes],
                axis=0)
    assert on.max() < 0.15 * 2.5 and np.median(on) < 1e-6
    if name == "sphere":
        inside = volumes[data.cell_tags == 1].sum()
        exact = 4 / 3 * np.pi * (20 / 3) ** 3
        finer = fine.mesh(target, size=1.7)
        fine_inside = cell_volumes(finer.points, finer.cells)[finer.cell_tags == 1].sum()
        assert 0.9 * exact < inside < fine_inside < exact  # the error is second order
        assert edge_defects(data.interface_facets)["bad_edges_percent"] == 0


def test_a_target_from_a_file_has_no_fine_mesh():
    target = targets.Target("file", targets.own("sphere").data)
    with pytest.raises(InputError, match="its true shape is not known"):
        fine.mesh(target)


# ---- noise ----------------------------------------------------------------------------------

def test_noise_is_rician_and_reproducible():
    acquisition = Acquisition.pgse([0, 1000], 4000, 5, [10, 30])
    values = np.where(acquisition.b == 0, 3.0, 0.0) * (1 + acquisition.waveform_index)
    clean = Signals(acquisition, values)
    noisy = add_noise(clean, 20.0, 0, "a")
    assert noisy == add_noise(clean, 20.0, 0, "a")
    assert noisy != add_noise(clean, 20.0, 1, "a") and noisy != add_noise(clean, 20.0, 0, "b")
    for sequence in (0, 1):
        sigma = 3.0 * (1 + sequence) / 20
        empty = noisy.magnitude[(acquisition.waveform_index == sequence) & (acquisition.b > 0)]
        assert np.isclose(empty.mean(), sigma * np.sqrt(np.pi / 2), rtol=0.03)  # Rayleigh
        assert np.isclose((empty**2).mean(), 2 * sigma**2, rtol=0.05)
        full = noisy.magnitude[(acquisition.waveform_index == sequence) & (acquisition.b == 0)]
        assert np.isclose(full.std(), sigma, rtol=0.05)
    assert np.array_equal(add_noise(clean, np.inf, 0, "a").magnitude, clean.magnitude)
    with pytest.raises(InputError, match="snr: 0, expected a positive number"):
        add_noise(clean, 0.0, 0, "a")


@pytest.mark.parametrize("name", list(ACQUISITIONS))
def test_acquisitions_are_sections_of_a_run_file(name):
    parts = [{kind: keys} for kind, keys in ACQUISITIONS[name].items()]
    content = {"mesh": {"file": "grid.npz"}, "acquisition": parts}
    sections = SimulateConfig.model_validate(content, context={"folder": "."}).acquisition
    assert sum(len(section.table()) for section in sections) == {
        "published": 540, "rich": 2700, "ogse": 540}[name]


# ---- the whole ------------------------------------------------------------------------------

def test_settings_of_signals():
    """Echo times of each sequence, T2, density and units have folders of their own."""
    plain = runs.Data("ball", "absorbing")
    data = runs.Data("ball", "absorbing", T2=(40.0, 80.0), density=0.7,
                     echo_time=(20.0, 45.0, 90.0), units="arbitrary")
    assert data.setting == "absorbing-published-T2-40in80-density0.7-TE20-45-90-arbitrary"
    assert data.normalisation == "auto" and plain.normalisation == "measured"
    assert data.known(["T2_inside"])["T2_ms"] == 80 and "T2_ms" not in data.known(["T2_outside"])
    assert [part["pgse"]["echo_time_ms"] for part in runs.acquisition_of(data)] == [20, 45, 90]
    assert runs.acquisition_of(plain) == [runs.ACQUISITIONS["published"]]
    case = runs.Case(data, np.inf, 0, "cheap")
    assert runs.case_of({"case": json.loads(json.dumps(dataclasses.asdict(case)))}) == case


def test_from_targets_to_a_table(place, capsys):
    ask = ["--targets", place / "ball.npz", "--methods", place / "cheap.yaml",
           "--snr", "inf", "50"]
    assert benchmark(place, *ask) == 0
    said = capsys.readouterr().out
    assert "2/2" in said and "| absorbing " in said
    rows = rows_of(place)
    assert [row["snr"] for row in rows] == ["inf", "50.0"]
    for row in rows:
        assert row["status"] == "ok" and row["message"] == ""
        assert float(row["seconds"]) > 0 and float(row["peak_mb"]) > 50
        assert 0 <= float(row["f1"]) <= float(row["aligned_f1"]) <= 1
    assert float(rows[0]["true_misfit"]) < 1e-12 < 1e-5 < float(rows[1]["true_misfit"]) < 1e-2

    bench = runs.Bench(place / "bench")
    case = runs.Case(runs.Data("ball", "absorbing"), np.inf, 0, "cheap")
    folder = bench.run_folder(case)
    assert {"run.yaml", "log.txt", "run.json", "metrics.json"} <= {p.name for p in folder.iterdir()}
    content = yaml.safe_load((folder / "run.yaml").read_text())
    grid = readers.read(folder / content["mesh"]["file"])
    assert not len(grid.interface_facets) and (grid.cell_tags == 1).all()  # nothing of the truth
    summary = json.loads((folder / "found" / "summary.json").read_text())
    assert summary["metrics"] is None
    assert float(rows[0]["misfit"]) == summary["data_misfit"]
    assert table.row_of(bench, folder)["precision"] == bench.measure(case)["precision"]
    text = (place / "bench" / "table.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 + 2 + 2 and len({len(line) for line in lines[:4]}) == 1
    means = list(csv.DictReader((place / "bench" / "means.csv").open()))
    assert len(means) == 2 and all(item["runs"] == item["ended"] == "1" for item in means)

    # once more, and the other boundary: that one only is run
    before = {path: path.stat().st_mtime_ns for path in (place / "bench").rglob("summary.json")}
    assert benchmark(place, *ask[:-1], "--boundary", "absorbing", "reflecting") == 0
    assert capsys.readouterr().out.count("done before") == 1
    rows = rows_of(place)
    assert [row["boundary"] for row in rows] == ["absorbing", "absorbing", "reflecting"]
    assert 0 < float(rows[2]["misfit"]) != float(rows[0]["misfit"])
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    (folder / "metrics.json").unlink()
    assert benchmark(place, "--collect", "-q") == 0 and (folder / "metrics.json").is_file()


def test_unfinished_runs_go_on_and_failed_ones_begin_anew(place, capsys, monkeypatch):
    ask = ["--targets", place / "ball.npz", "--methods", place / "cheap.yaml", "-q"]
    run, words, spent = processes.spinverse, [], []

    def ended(arguments, folder, limit=np.inf, stop=None):
        """The second process never ends, the third waits for a signal in its second stage."""
        words.append(arguments)
        with monkeypatch.context() as patch:
            if len(words) == 2:
                limit = 0.3
                as_python(patch, place, f"exec sleep {GUARD}")
            if len(words) == 3:
                stop = Event(folder / "found" / "checkpoint" / "latest.npz")
                patch.setenv("HOLD", "all,1")
                as_python(patch, place,
                          f'shift 2; exec {sys.executable} {ROOT}/tests/command.py "$@"')
            outcome = run(arguments, folder, limit, stop)
        spent.append(outcome.seconds)
        return outcome

    monkeypatch.setattr(runs, "spinverse", ended)
    for status in ("time limit", "interrupted"):
        assert benchmark(place, *ask) == 1
        assert "1 of 1 runs did not end well" in refused(capsys)
        row, = rows_of(place)
        assert row["status"] == status and row["f1"] == ""
        assert float(row["seconds"]) == pytest.approx(sum(spent[1:]))
    assert benchmark(place, *ask) == 0
    assert [arguments[0] for arguments in words] == ["simulate", *["reconstruct"] * 3]
    folder = next((place / "bench" / "runs").glob("*/*/*/*"))
    assert "--resume" in words[-1] and "resumed at stage all" in (folder / "log.txt").read_text()
    row, = rows_of(place)
    assert row["status"] == "ok" and float(row["seconds"]) == pytest.approx(sum(spent[1:]))
    assert json.loads((folder / "run.json").read_text())["parts"] == 3

    # a checkpoint that is of no use
    state = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(state | {"status": "interrupted"}))
    for path in (folder / "found" / "checkpoint").iterdir():
        path.write_text("nothing")
    (folder / "found" / "summary.json").unlink()
    assert benchmark(place, *ask) == 0
    assert ["--resume" in arguments for arguments in words[4:]] == [True, False]

    # another method under this name is another run; and one that cannot work is a row
    (place / "cheap.yaml").write_text(CHEAP.replace(
        "sequences: [0]", "sequences: [0], optimiser: {tao: {type: newtons}}"))
    assert benchmark(place, *ask) == 1
    row, = rows_of(place)
    assert row["status"] == "failed" and "'newtons', expected a type of TAO" in row["message"]
    assert "newtons" in (place / "bench" / "table.md").read_text()


class Event:
    """Is set when a file is there."""

    def __init__(self, path):
        self.is_set = path.is_file


def test_signals_that_cannot_be_made_are_rows(place, capsys, monkeypatch):
    monkeypatch.setitem(ACQUISITIONS, "published", {"pgse": {"b_s_per_mm2": [0], "directions": 3}})
    assert benchmark(place, "--targets", place / "ball.npz", "--methods", place / "cheap.yaml",
                     "-q") == 1
    row, = rows_of(place)
    assert row["status"] == "failed" and row["message"].startswith("signals of ball (absorbing")


def test_the_time_limit_ends_a_process(tmp_path, monkeypatch):
    as_python(monkeypatch, tmp_path, f"exec sleep {GUARD}")  # by itself it ends much too late
    outcome = processes.spinverse([], tmp_path, 0.5)
    assert (outcome.ended, outcome.code) == ("time limit", -signal.SIGTERM)
    assert outcome.seconds >= 0.5 and outcome.peak_mb > 0
    stop = threading.Event()
    stop.set()
    assert processes.spinverse([], tmp_path, stop=stop).ended == "interrupted"


# ---- bad input ------------------------------------------------------------------------------

@pytest.mark.parametrize("words, message", [
    (["--targets", "spere"], "target 'spere': expected a file"),
    (["--methods", "fastest"], "method 'fastest': expected default, "),
    (["--methods", "none.yaml"], "method none.yaml: no such file"),
    (["--snr", "-3"], "--snr -3: expected a positive number or inf"),
    (["--jobs", "0"], "--jobs 0: expected at least 1"),
    (["--time-limit", "0"], "--time-limit 0: expected a positive time"),
    (["--seed", "-1"], "--seed -1: expected 0 or above"),
    (["--echo-time", "20", "30"], "--echo-time: 2 numbers, expected one, or 3: one for each"),
    (["--density", "0"], "--density 0: expected a positive number"),
    (["--T2", "40", "-1"], "--T2 -1: expected a positive number"),
    (["--boundary", "open"], "--boundary: invalid choice: 'open'"),
    (["--collect"], "holds no benchmark, expected one for --collect"),
])
def test_bad_arguments(tmp_path, capsys, words, message):
    assert cli.main(["benchmark", "-o", str(tmp_path / "out"), *words]) == 2
    assert message in refused(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text, message", [
    ("- {name: a, iterations: 0}", "stages.0.iterations: 0, expected"),
    ("- {name: a, iteration: 3}", "stages.0.iteration: unknown key"),
    ("stages: default\nmesh: {file: a.npz}", "mesh: the benchmark says it"),
    ("stages: default\ntissue: {boundary: absorbing}", "expected keys without boundary"),
    ("modes: 3", "expected a list of stages, or a mapping with stages"),
    ("{", "not YAML"),
])
def test_bad_methods(tmp_path, text, message):
    (tmp_path / "method.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        methods.find([str(tmp_path / "method.yaml")])
    assert message in str(error.value)


@pytest.mark.parametrize("name, cells", [("sphere", 1), ("touching-0", 2)])
def test_intervals_of_cells_hold_the_truth_or_not(name, cells):
    truth = targets.own(name).data
    volumes = np.abs(cell_volumes(truth.points, truth.cells))
    tags = np.unique(truth.cell_tags)[1:]
    assert len(tags) == cells
    rows = [{"volume": v, "volume_low": 0.99 * v, "volume_high": 1.01 * v,
             "surface_to_volume_low": 50.0, "surface_to_volume_high": None,
             "permeability_low": 0.0, "permeability_high": 0.02}
            for v in (volumes[truth.cell_tags == tag].sum() for tag in tags)]
    assert covered(truth, rows, 0.01, True) == {
        "covered_volume": 1.0, "covered_surface_to_volume": 0.0, "covered_permeability": 1.0}
    assert covered(truth, rows, 0.03, True)["covered_permeability"] == 0.0
    assert covered(truth, rows[1:], 0.01, True)["covered_volume"] is None


def test_presets_are_methods():
    default, published = methods.find(["default", "published"])
    assert default.keys == {"stages": "default"}
    content = published.run_file("grid.npz", "signals.npz", {"boundary": "absorbing"})
    assert content["interface"] == {"rule": "threshold", "cut_um_per_ms": 1.0}
    run = ReconstructConfig.model_validate(content, context={"folder": "."})
    assert run.stages == "published" and run.tissue.boundary == "absorbing"


def test_other_folders_are_left_alone(place, capsys):
    (place / "bench").mkdir()
    (place / "bench" / "thesis.txt").write_text("all of it")
    assert benchmark(place, "--force") == 2
    assert "holds something else, expected a new folder" in refused(capsys)


def test_another_target_of_the_same_name(tmp_path):
    bench = runs.Bench(tmp_path)
    target = targets.own("sphere")
    for _ in range(2):
        bench.write_target(target, with_fine=False)
    other = targets.Target("sphere", targets.own("axon-0").data)
    with pytest.raises(InputError, match="holds another mesh of this name"):
        bench.write_target(other, with_fine=False)


def test_seeds_reach_searches(tmp_path):
    (tmp_path / "own.yaml").write_text("- {name: a, shapes: {seed: 3, rounds: 1}}\n"
                                       "- {name: b, iterations: 2}")
    own, default, facets = methods.find([str(tmp_path / "own.yaml"), "default", "published"])

    def stages(method, seed):
        content = method.run_file("grid.npz", "signals.npz", {"boundary": "absorbing"}, seed=seed)
        return ReconstructConfig.model_validate(content, context={"folder": "."}).stage_list()

    assert stages(own, 2)[0].seed == 5 and stages(own, 2)[1] == stages(own, 0)[1]
    for stage, same in zip(stages(default, 4), stages(default, 0), strict=True):
        assert dataclasses.replace(stage, seed=same.seed) == same and stage.seed == same.seed + 4
    assert stages(facets, 4) == stages(facets, 0)
