"""The page of a run's folder: what is in it, what it does without, and that a browser draws it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import meshio
import numpy as np
import pytest
from mpi import GUARD, clean_environment, run_mpi

from spinverse import Acquisition, cli
from spinverse.errors import InputError
from spinverse.inversion.verdict import NOT_EXPLAINED
from spinverse.mesh import Ball, tagged_grid, write_npz
from spinverse.report import folder, plots
from spinverse.report.html_run import read_run
from spinverse.report.planes import lines, section

pytest.importorskip("plotly")
pytest.importorskip("jinja2")
from spinverse.report import html, html_signals  # noqa: E402

SIMULATE = """mesh: {file: ball.npz}
tissue:
  diffusivity_um2_per_ms: 2.0
  boundary: absorbing
  permeability: {membrane_m_per_s: 1.0e-5, elsewhere_m_per_s: 0.1, outer_m_per_s: 0.1}
modes: 24
acquisition:
  pgse: {b_s_per_mm2: [0, 300, 600, 2000], directions: 6, delta_ms: [5, 10], Delta_ms: [10, 30]}
quantities:
  - adc: {b_max_s_per_mm2: 1000}
"""
RECONSTRUCT = """mesh: {file: ball.npz}
tissue: {boundary: absorbing}
signals: {file: target/signals.csv}
stages:
  - {name: long, iterations: 2, sequences: [0]}
  - {name: all, iterations: 3, priors: {continuity: 0.1}}
modes: 24
interface: {rule: threshold, cut_um_per_ms: 1.0}
"""
LARGEST = 6e6  # bytes
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A simulation and a reconstruction, once for all tests."""
    where = tmp_path_factory.mktemp("runs")
    write_npz(where / "ball.npz", tagged_grid(Ball(7.0), length=20.0, cells=2))
    (where / "simulate.yaml").write_text(SIMULATE)
    (where / "reconstruct.yaml").write_text(RECONSTRUCT)
    assert cli.main(["simulate", str(where / "simulate.yaml"), "-o", str(where / "target"),
                     "-q"]) == 0
    assert cli.main(["reconstruct", str(where / "reconstruct.yaml"), "-o", str(where / "found"),
                     "-q"]) == NOT_EXPLAINED  # of so few iterations
    return where


@pytest.fixture
def found(runs, tmp_path):
    """A copy of the reconstruction's folder, beside its mesh."""
    shutil.copytree(runs / "found", tmp_path / "found")
    return tmp_path / "found"


@pytest.fixture(autouse=True)
def without_stills(request, monkeypatch):
    """Pictures for paper take a second each: only the tests that name ``stills`` have them."""
    if "stills" not in request.fixturenames:
        monkeypatch.setattr(html, "_still", lambda *_: None)


@pytest.fixture
def stills():
    pytest.importorskip("matplotlib")


@pytest.fixture
def target(runs, tmp_path):
    shutil.copytree(runs / "target", tmp_path / "target")
    return tmp_path / "target"


class Page(HTMLParser):
    """What a page has: references, ids, headings, figures with their words and data."""

    def __init__(self, text: str):
        super().__init__()
        self.references, self.ids, self.words, self.figures = [], [], [], {}
        self.labels, self.depth, self.inside = {}, 0, None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.inside = tag
        for name in ("src", "href", "srcset", "data", "action", "poster", "formaction"):
            if name in values:
                self.references.append(values[name])
        if "id" in values:
            self.ids.append(values["id"])
        if values.get("type") == "application/json":
            self.inside = values["id"]
        if "aria-label" in values and "drawing" in values.get("class", ""):
            self.labels[values["id"]] = values["aria-label"]
        assert tag != "img" or values["alt"]

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside in ("script", "style"):
            return
        if self.inside is not None and self.inside.endswith("-data"):
            self.figures[self.inside.removesuffix("-data")] = json.loads(data)
        else:
            self.words.append(data)


def page_of(path: Path, *more: str) -> Page:
    assert cli.main(["report", str(path), "-q", *more]) == 0
    return Page((path / "report.html").read_text(encoding="utf-8"))


def numbers(array) -> np.ndarray:
    """A plotly array, typed or plain."""
    if isinstance(array, dict):
        return np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
    return np.array([np.nan if x is None else x for x in array], float)


# ---- a reconstruction's page ----------------------------------------------------------------

def test_the_page_of_a_reconstruction(found, stills, capsys):
    assert cli.main(["report", str(found)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(f"report in {found / 'report.html'} (")
    page = Page((found / "report.html").read_text(encoding="utf-8"))
    assert list(page.figures) == ["cells", "signals-b", "signals-direction", "scatter", "sphere",
                                  "interface", "planes", "permeability", "misfit"]
    assert set(page.labels) == {f"{name}-drawing" for name in page.figures}
    assert all(page.labels.values())
    assert len(page.ids) == len(set(page.ids))
    summary = json.loads((found / "summary.json").read_text())
    for words in ("What was asked", "threshold", "continuity", "dolfinx",
                  summary["stack"]["dolfinx"], summary["inputs"]["signals"]["sha256"][:16],
                  "The line is the cut, 1 µm/ms (0.001 m/s)", "PGSE, δ/Δ = 5/10 ms",
                  "Against the true membrane", "Stage long"):
        assert words in page.text, words
    said = page.text.index(summary["verdict"]["words"].removeprefix("t"))  # a sentence: a capital
    assert said < page.text.index("What was found") < page.text.index("What was asked")
    assert page.references.count("data:,") == 1  # the icon; one picture, for paper
    assert sum(r.startswith("data:image/png;base64,") for r in page.references) == 1
    assert (found / "report.html").stat().st_size < LARGEST


def test_numbers_in_the_figures_are_those_of_the_run(found):
    page, run = page_of(found), read_run(found)
    history = folder.read_history(found / "history.csv")
    data = next(t for t in page.figures["misfit"]["data"] if t["name"].startswith("data"))
    y = numbers(data["y"])
    np.testing.assert_allclose(y[np.isfinite(y)], [row["data"] for row in history])
    assert {t["name"] for t in page.figures["misfit"]["data"]} >= {"prior: continuity"}

    dots = [t for t in page.figures["scatter"]["data"] if t["mode"] == "markers"]
    measured = np.concatenate([numbers(t["x"]) for t in dots])
    predicted = np.concatenate([numbers(t["y"]) for t in dots])
    assert np.mean((measured - predicted) ** 2) == pytest.approx(
        json.loads((found / "summary.json").read_text())["data_misfit"])

    bars = [t for t in page.figures["permeability"]["data"] if t["type"] == "bar"]
    counts = {t["name"]: int(np.nansum(numbers(t["y"]))) for t in bars}
    unknown = run.found.unknown
    assert counts == {"found as membrane": int((run.found.membrane & unknown).sum()),
                      "others": int((~run.found.membrane & unknown).sum())}

    meshes = [t for t in page.figures["interface"]["data"] if t["type"] == "mesh3d"]
    drawn = sum(len(numbers(t["i"])) for t in meshes if not t["name"].startswith("true"))
    assert drawn == int(run.found.membrane.sum())
    true = [t for t in meshes if t["name"].startswith("true membrane")]
    assert sum(len(numbers(t["i"])) for t in true) == int(run.found.true.sum()) > 0


def test_measured_and_predicted_are_at_the_same_place_with_the_residual_below(found):
    figure, run = page_of(found).figures["signals-b"], read_run(found)
    dots = {}
    for trace in figure["data"]:
        if trace["mode"] == "markers":
            dots.setdefault(trace["name"], []).append(trace)
    x, y = ({name: np.concatenate([numbers(t[axis]) for t in traces])
             for name, traces in dots.items()} for axis in "xy")
    for name in ("predicted", "predicted − measured"):
        np.testing.assert_array_equal(x[name], x["measured"])
    assert (x["measured"] == 0).sum() == (run.acquisition.b == 0).sum() > 0
    np.testing.assert_allclose(y["predicted − measured"], y["predicted"] - y["measured"],
                               atol=1e-15)
    panels = {name: {t["yaxis"] for t in traces} for name, traces in dots.items()}
    assert panels["predicted"] == panels["measured"]
    assert not panels["predicted"] & panels["predicted − measured"]
    assert {figure["layout"][axis.replace("y", "yaxis")]["type"]
            for axis in panels["measured"]} == {"log"}


def test_panels_of_many_sequences():
    """Those of a second line are where their titles are."""
    acquisition = Acquisition.pgse([0, 1000], 3, delta=5, Delta=[10, 20, 30, 40, 50])
    values = np.exp(-acquisition.b / 2000)
    figure = html_signals.by_b(acquisition, values, values, "S").figure
    titles = [note.text for note in figure.layout.annotations]
    assert len(titles) == 5 and "50 ms" in titles[4]
    assert len({note.y for note in figure.layout.annotations}) == 2


def test_the_slider_shows_one_set_of_planes_at_a_time(found):
    figure = page_of(found).figures["planes"]
    walls = [t["type"] == "scatter" and "x" in t and len(numbers(t["x"])) > 1
             for t in figure["data"]]
    steps = figure["layout"]["sliders"][0]["steps"]
    seen = [step["args"][0]["visible"] for step in steps]
    assert len(steps) > 1 and all(len(flags) == len(walls) for flags in seen)
    drawn = np.array(seen)[:, walls]
    assert (drawn.sum(axis=0) == 1).all()  # each plane in one step
    active = figure["layout"]["sliders"][0]["active"]
    first = [t.get("visible", True) for t, wall in zip(figure["data"], walls, strict=True) if wall]
    np.testing.assert_array_equal(first, drawn[active])
    assert np.array(seen)[:, ~np.array(walls)].all()  # the legend stays


def test_opacity_follows_the_posterior(found):
    path, summary = found / "permeability.npz", json.loads((found / folder.SUMMARY).read_text())
    summary["verdict"]["explained"] = True  # else nothing is sure
    folder.write_json(found / folder.SUMMARY, summary)
    with np.load(path) as file:
        values = {name: file[name] for name in file.files}
    values["membrane"][:] = True
    values["determined"][:] = True
    for std, opacity in ((0.5, 0.5), (0.01, 0.96)):
        values["posterior_std"][:] = std
        np.savez(path, **values)
        page = page_of(found)
        assert {t["opacity"] for t in page.figures["interface"]["data"]
                if t["type"] == "mesh3d" and t.get("visible") != "legendonly"} == {opacity}
    values["determined"][:] = False
    np.savez(path, **values)
    names = [t.get("name") or "" for t in page_of(found).figures["interface"]["data"]]
    assert f"found, undetermined, 24 of them true ({len(values['facets'])})" in names


def test_determined_is_explained_where_it_is_used(found):
    """In a sentence; where the data are not explained, nothing is."""
    page = page_of(found)
    names = [t.get("name") or "" for t in page.figures["interface"]["data"]]
    assert any("undetermined" in name and "the data are NOT explained" in name for name in names)
    assert "not explained, so nothing is determined" in page.text
    assert html.DETERMINED not in page.text
    summary = json.loads((found / "summary.json").read_text())
    del summary["verdict"]  # of a run from before there were verdicts
    folder.write_json(found / folder.SUMMARY, summary)
    page = page_of(found)
    assert html.DETERMINED in page.text and "explained" not in page.text


def test_a_search_for_shapes_has_no_cut(found):
    summary = json.loads((found / "summary.json").read_text())
    summary["interface"] = {"rule": "search for shapes", "facets": 24}
    folder.write_json(found / folder.SUMMARY, summary)
    page = page_of(found)
    assert "a facet is a wall or open, and no cut was used" in page.text
    assert "shapes" not in page.figures["permeability"]["layout"]


def test_the_page_asks_for_nothing_from_elsewhere(found, target):
    for path in (found, target):
        page = page_of(path)
        assert page.references
        for reference in page.references:
            assert reference.startswith(("#", "data:")), reference
        text = (path / "report.html").read_text(encoding="utf-8")
        assert "default-src 'none'" in text
        own = re.sub(r"<script>.*?</script>", "", text, flags=re.S)  # the library names its own
        assert "http:" not in own and "https:" not in own
        assert not re.search(r"@import|url\(", own)


def test_names_in_a_page_are_no_markup(found):
    summary = json.loads((found / "summary.json").read_text())
    summary["config"]["mesh"]["file"] = "</script><script>alert(1)</script><b>.npz"
    summary["stage_endings"] = {"<i>x</i>": "</style>"}
    folder.write_json(found / folder.SUMMARY, summary)
    (found / "history.csv").write_text((found / "history.csv").read_text().replace(
        "long", "</script><b>long"))
    page = page_of(found)
    assert "alert(1)" in page.text and "<i>x</i>" in page.text  # as text
    assert any("</script><b>long" in str(figure) for figure in page.figures.values())


# ---- what is missing ------------------------------------------------------------------------

@pytest.mark.parametrize("name, figures, words", [
    ("signals.csv", {"signals-b", "signals-direction", "scatter", "sphere"},
     "There is no signals.csv in the folder."),
    ("history.csv", {"misfit"}, "history.csv cannot be read"),
    ("permeability.npz", {"cells", "permeability", "interface", "planes"},
     "There is no permeability.npz: nothing was found yet."),
])
def test_missing_parts_are_left_out_with_a_sentence(found, name, figures, words):
    everything = set(page_of(found).figures)
    (found / name).unlink()
    page = page_of(found)
    assert set(page.figures) == everything - figures
    assert words in page.text


def test_damaged_parts_are_left_out_too(found):
    (found / "permeability.npz").write_bytes(b"no zip")
    text = (found / "signals.csv").read_text().splitlines()
    (found / "signals.csv").write_text("\n".join(text[:-3]) + "\n")
    page = page_of(found)
    assert set(page.figures) == {"misfit"}
    assert "permeability.npz cannot be read" in page.text
    assert f"{len(text) - 4} rows, expected {len(text) - 1}" in page.text


def test_without_its_mesh_the_interface_is_there_but_not_the_truth(found, runs, tmp_path):
    summary = json.loads((found / "summary.json").read_text())
    summary["inputs"]["mesh"]["path"] = "gone.npz"
    folder.write_json(found / folder.SUMMARY, summary)
    page = page_of(found)
    assert "gone.npz) is not where it was" in page.text
    assert "There are no cells to cut" in page.text
    assert "interface" in page.figures and "planes" not in page.figures
    assert not any("true" in t.get("name", "") for t in page.figures["interface"]["data"])
    page = page_of(found, "--mesh", str(runs / "ball.npz"))
    assert "planes" in page.figures
    assert any("true" in t.get("name", "") for t in page.figures["interface"]["data"])


def test_a_truth_that_comes_later_is_compared_with(found):
    summary = json.loads((found / "summary.json").read_text())
    figures = summary["metrics"]
    summary["metrics"] = None
    folder.write_json(found / folder.SUMMARY, summary)
    page = page_of(found)
    assert "the mesh that was read now does" in page.text
    for key in ("f1", "chamfer", "adjusted_rand_index"):
        assert f"{key} {figures[key]:.4g} " in page.text


def test_labels_of_cells_are_shown_where_they_are_known(found):
    assert "Mesh cells by region" in page_of(found).text
    run = read_run(found)
    meshio.write(found / "cells.vtu", meshio.Mesh(
        run.mesh.points, [("tetra", run.mesh.cells)], cell_data={"label": [3 * (
            run.mesh.cell_tags == 1)]}))
    page = page_of(found)
    assert "the label that the search gave them" in page.text
    drawn = [t for t in page.figures["cells"]["data"] if t["type"] == "mesh3d"]
    assert [(t["name"], t["scene"], len(numbers(t["i"]))) for t in drawn] == [
        ("true membrane", "scene", 24), ("cell 3", "scene2", 24)]
    assert "Cells label volume (µm³) surface (µm²) S/V (1/µm) wall permeability (µm/ms) 3 2000 " \
        "848.5 0.424" in page.text
    assert {"outside", "cell 3"} <= {t.get("name") for t in page.figures["planes"]["data"]}
    (found / "cells.vtu").write_text("no xml")
    assert "Mesh cells by region" in page_of(found).text


def test_a_mesh_is_found_beside_the_folder(found, runs, tmp_path):
    summary = json.loads((found / "summary.json").read_text())
    summary["inputs"]["mesh"]["path"] = "ball.npz"
    folder.write_json(found / folder.SUMMARY, summary)
    shutil.copy(runs / "ball.npz", tmp_path)
    assert "planes" in page_of(found).figures


def test_a_run_that_has_not_ended(found):
    for path in list(found.iterdir()):
        if path.name not in ("history.csv", "checkpoint"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of(found)
    assert set(page.figures) == {"misfit"}
    assert "the run has not ended, or was ended" in page.text


def refused(capsys, *arguments) -> str:
    assert cli.main(["report", *map(str, arguments)]) == 2
    lines_said = capsys.readouterr().err.splitlines()
    assert len(lines_said) == 1
    return lines_said[0]


def test_folders_that_are_none(tmp_path, capsys, found, runs):
    assert "no such folder" in refused(capsys, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is a file, expected the folder of a run" in refused(capsys, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "holds no summary.json" in refused(capsys, tmp_path / "empty")
    for text, words in (("{", "expected JSON"), ("[1]", "has no key command"),
                        ('{"command": "validate"}', "was written by spinverse validate")):
        (tmp_path / "empty" / "summary.json").write_text(text)
        assert words in refused(capsys, tmp_path / "empty")
    assert "expected no -o" in refused(capsys, found, "-o", tmp_path / "page")
    assert "no such file" in refused(capsys, found, "--mesh", tmp_path / "no.npz")
    write_npz(tmp_path / "other.npz", tagged_grid(Ball(7.0), length=20.0, cells=3))
    assert "expected the mesh of the run" in refused(capsys, found, "--mesh",
                                                     tmp_path / "other.npz")
    assert not (found / "report.html").exists()
    with pytest.raises(InputError):
        html.write_page(tmp_path / "nowhere")


# ---- a simulation's page --------------------------------------------------------------------

def test_the_page_of_a_simulation(target):
    page = page_of(target)
    assert set(page.figures) == {"mesh", "signals-b", "signals-direction"}
    for words in ("adc: fits", "adc_um2_per_ms", "facets of a membrane", "b (s/mm²)"):
        assert words in page.text, words
    x = page.figures["mesh"]["data"][0]
    assert len(numbers(x["i"])) == 24
    assert (target / "report.html").stat().st_size < LARGEST


@pytest.mark.parametrize("mesh, acquisition, figures", [
    ("{builder: intervals, thicknesses_um: [3, 5], cells_per_layer: 4}",
     "pgse: {b_s_per_mm2: [1000], directions: [[1, 0, 0]], delta_ms: 5, Delta_ms: 10}",
     {"signals-b"}),
    ("{builder: disks, radii_um: [3, 5], size_um: 2}",
     "pgse: {b_s_per_mm2: [0, 1000], directions: [[1, 0, 0], [0, 1, 0]], delta_ms: 5, "
     "Delta_ms: 10}", {"mesh", "signals-b"}),
])
def test_simulations_on_the_line_and_in_the_plane(tmp_path, mesh, acquisition, figures):
    (tmp_path / "run.yaml").write_text(
        f"mesh: {mesh}\ntissue: {{permeability: {{membrane_m_per_s: 1.0e-5}}}}\n"
        f"acquisition:\n  {acquisition}\n")
    assert cli.main(["simulate", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "out"),
                     "-q"]) == 0
    page = page_of(tmp_path / "out")
    assert set(page.figures) == figures
    assert "None were asked for." in page.text


# ---- figures --------------------------------------------------------------------------------

def test_figures_for_papers(found, target, capsys):
    pytest.importorskip("matplotlib")
    shutil.rmtree(found / "figures")
    assert cli.main(["report", str(found), "--png"]) == 0
    names = {"signals", "losses", "permeability", "interface", "planes"}
    assert {path.stem for path in (found / "figures").iterdir()} == names
    assert capsys.readouterr().out.count("picture in") == len(names)
    for path in (found / "figures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["report", str(target), "--png", "-q"]) == 0
    assert (target / "figures" / "signals.png").is_file()


def test_the_legend_of_the_losses_is_below_the_axes(tmp_path, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    kept = []
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda self, *a, **k: kept.append(self))
    rows = [{"stage": "one", "iteration": i, "loss": 3.0 * 0.9**i, "data": 2.0 * 0.9**i,
             "continuity": 0.5} for i in range(20)]
    plots.losses(tmp_path / "a.png", rows)
    figure, = kept
    figure.draw_without_rendering()
    axes, legend = figure.axes[0].get_tightbbox(), figure.legends[0].get_window_extent()
    assert legend.y1 <= axes.y0 + 1
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1


def test_planes_cut_cells_into_polygons_of_the_right_area():
    data = tagged_grid(Ball(7.0), length=20.0, cells=4)
    for axis in range(3):
        for height in (0.0, 2.5, -7.3):
            cut = section(data.points, data.cells, axis, height)
            x, y = np.moveaxis(cut.polygons, 2, 0)
            area = 0.5 * np.abs((x * np.roll(y, -1, 1) - np.roll(x, -1, 1) * y).sum(axis=1))
            assert area.sum() == pytest.approx(400.0)
            inside = area[data.cell_tags[cut.cells] == 1].sum()
            ends = lines(data.points, data.interface_facets, axis, cut.height)
            if not len(ends):
                assert inside == pytest.approx(0.0, abs=1e-9)
                continue
            # Green: the area within the walls, each turned to leave the cells on its left
            centre = cut.polygons[data.cell_tags[cut.cells] == 1].mean(axis=(0, 1))
            a, b = ends[:, 0] - centre, ends[:, 1] - centre
            star = 0.5 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
            assert star >= inside * (1 - 1e-9)


def test_shells_of_a_scanner_are_told_by_b():
    b = np.array([0, 5, 995, 1000, 1010, 2000, 1990.0])
    masks = html_signals._shells(b)
    assert [sorted(b[mask]) for mask in masks][-2:] == [[995, 1000, 1010], [1990, 2000]]
    assert sum(mask.sum() for mask in masks) == len(b)


def test_the_residual_on_the_sphere():
    acquisition = Acquisition.pgse([0, 1000, 3000], directions=12, delta=5, Delta=20)
    residual = 1e-3 * acquisition.directions[:, 2] ** 2 * (acquisition.b > 2000)
    picture = html_signals.sphere(acquisition, residual)
    shown = [t for t in picture.figure.data if t.visible]
    assert {t.type for t in shown} == {"mesh3d", "scatter3d"}  # the shell with the most
    markers = next(t for t in shown if t.type == "scatter3d")
    np.testing.assert_allclose(markers.marker.color, 1e-3 * np.asarray(markers.z) ** 2, rtol=1e-5)
    assert len(picture.figure.layout.updatemenus[0].buttons) == 2
    assert html_signals.sphere(acquisition, 0 * residual) is None
    few = Acquisition.pgse([0, 1000], [[1, 0, 0], [0, 1, 0]], delta=5, Delta=20)
    assert html_signals.sphere(few, np.ones(4)) is None


def test_large_tables_stay_small():
    acquisition = Acquisition.pgse(np.linspace(0, 5000, 60), directions=400, delta=5, Delta=20)
    values = np.exp(-acquisition.b / 2000)
    for picture in (html_signals.by_b(acquisition, values, values, "S"),
                    html_signals.scatter(acquisition, values, values),
                    html_signals.by_direction(acquisition, values, values, "S"),
                    html_signals.sphere(acquisition, values)):
        assert len(picture.figure.to_json()) < 1.2e6, picture.name


# ---- several ranks, a browser ---------------------------------------------------------------

def test_several_ranks_write_one_page(found):
    alone = page_of(found)
    run_mpi(2, "-m", "spinverse", "report", str(found))
    assert Page((found / "report.html").read_text(encoding="utf-8")).figures == alone.figures


def browse(page: Path, profile: Path, *more: str) -> subprocess.CompletedProcess:
    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser is None:
        pytest.skip(f"no browser is installed, looked for {', '.join(BROWSERS)}")
    return subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader",
         "--disable-background-networking", "--no-first-run", "--disable-sync",
         f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0",
         "--virtual-time-budget=30000", "--window-size=1100,5200", *more, page.as_uri()],
        capture_output=True, text=True, timeout=GUARD, env=clean_environment())


def complaints(done: subprocess.CompletedProcess) -> list[str]:
    """Errors and refusals that the page caused; the driver's words on its speed are not."""
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return [line for line in said if "GL Driver Message" not in line
            and "willReadFrequently" not in line and "software WebGL" not in line]


@pytest.mark.parametrize("name", ["found", "target"])
def test_a_browser_draws_every_figure(runs, tmp_path, name):
    shutil.copytree(runs / name, tmp_path / name)
    page, picture = page_of(tmp_path / name), tmp_path / "page.png"
    path = tmp_path / name / "report.html"
    done = browse(path, tmp_path / "profile", "--dump-dom")
    state = re.search(r'data-figures="([^"]*)"', done.stdout)
    assert state is not None, done.stderr[-2000:]
    assert state[1].split() == ["drawn"] * len(page.figures)
    assert done.stdout.count('class="main-svg"') >= len(page.figures)
    assert complaints(done) == []
    done = browse(path, tmp_path / "profile", f"--screenshot={picture}")
    assert picture.is_file() and picture.stat().st_size > 50_000
    assert complaints(done) == []


def test_without_webgl_pictures_and_tables_remain(found, stills, tmp_path):
    page_of(found)
    done = browse(found / "report.html", tmp_path / "profile", "--dump-dom", "--disable-3d-apis")
    state = re.search(r'data-figures="([^"]*)"', done.stdout)
    assert state is not None and "failed" not in state[1] and "no WebGL" in state[1]
    assert re.search(r"<html[^>]*class=\"flat\"", done.stdout)
    assert complaints(done) == []


TURN = """<script>
(async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  while (!document.documentElement.dataset.figures) await wait(50);
  const drawing = document.getElementById("interface-drawing");
  const canvas = drawing.querySelector("canvas"), box = canvas.getBoundingClientRect();
  const eye = () => {
    const {x, y, z} = drawing._fullLayout.scene._scene.getCamera().eye;
    return [x, y, z].map((v) => v.toFixed(3)).join(" ");
  };
  const mouse = (type, x, buttons) => canvas.dispatchEvent(new MouseEvent(type, {
    bubbles: true, clientX: box.left + x, clientY: box.top + 200, button: 0, buttons}));
  const before = eye();
  mouse("mousedown", 200, 1);
  for (let x = 200; x < 320; x += 10) { mouse("mousemove", x, 1); await wait(30); }
  mouse("mouseup", 320, 0);
  await wait(300);
  document.documentElement.dataset.turned = `${before}, ${eye()}`;
})();
</script></body>"""


def test_the_interface_can_be_turned(found, tmp_path):
    page_of(found)
    path = found / "report.html"
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", TURN), encoding="utf-8")
    done = browse(path, tmp_path / "profile", "--dump-dom")
    turned = re.search(r'data-turned="([^"]*)"', done.stdout)
    assert turned is not None, done.stderr[-2000:]
    before, after = (np.array(eye.split(), float) for eye in turned[1].split(", "))
    assert np.linalg.norm(after - before) > 0.5
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=1e-2)
    assert complaints(done) == []


def test_a_narrow_screen_is_not_wider_than_itself(found, tmp_path):
    page_of(found)
    path = found / "report.html"
    text = path.read_text(encoding="utf-8")
    # browsers' own windows may not be so narrow
    text = text.replace("<body>", '<body style="width: 380px">').replace("</body>", """<script>
(async () => {
  while (!document.documentElement.dataset.figures) await new Promise((r) => setTimeout(r, 50));
  const wide = [...document.querySelectorAll("main > *, figure, .table, .frame")];
  document.documentElement.dataset.widest = Math.max(...wide.map((e) => e.offsetWidth));
})();
</script></body>""")
    path.write_text(text, encoding="utf-8")
    done = browse(path, tmp_path / "profile", "--dump-dom")
    widest = re.search(r'data-widest="([0-9]+)"', done.stdout)
    assert widest is not None and int(widest[1]) <= 380
