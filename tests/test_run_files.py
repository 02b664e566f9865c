"""Real command lines, one for each section that a simulation's run file can have."""

from __future__ import annotations

import csv
import json
import re
import shutil

import numpy as np
import pytest
from mpi import ROOT

import spinverse
from spinverse import cli, config, mesh
from spinverse.acquisition import (
    Acquisition,
    SampledGradient,
    read_acquisition,
    read_signals,
    write_fsl,
)
from spinverse.commands import derived, shared
from spinverse.config.mesh import BUILDERS
from spinverse.interface import extraction
from spinverse.report import screen

STACK = "mesh: {builder: intervals, thicknesses_um: [3, 5], cells_per_layer: 4}\n"
TISSUE = "tissue: {permeability: {membrane_m_per_s: 2e-5}}\n"
PGSE = ("acquisition: {pgse: {b_s_per_mm2: [0, 1000], directions: [1, 0, 0], delta_ms: 5, "
        "Delta_ms: 10}}\n")


@pytest.fixture
def run(tmp_path, capsys):
    """Write a run file, simulate it into out; returns what was said on standard output."""
    def simulate(text, *more, code=0, name="run.yaml"):
        (tmp_path / name).write_text(text)
        arguments = ["simulate", str(tmp_path / name), "-o", str(tmp_path / "out"), "--force"]
        found = cli.main([*arguments, *more])
        said = capsys.readouterr()
        assert found == code, said.err
        if code:
            assert said.err.startswith("spinverse: ") and said.err.count("\n") == 1
            return said.err
        return said.out
    simulate.folder = tmp_path
    return simulate


def stack(permeability=0.02, **fields):
    """The tissue of `STACK` and `TISSUE`."""
    layers = mesh.build(mesh.intervals, [3, 5], cells_per_layer=4)
    return spinverse.Tissue(layers, permeability=spinverse.Permeability.on(layers, permeability),
                            **fields)


X = [[1.0, 0.0, 0.0]]
B = [0, 500, 1000]
FAN = [0.0, 1.0, 1.0, 0.0, 0.0, -1.0, -1.0, 0.0]
TIMES = [0.0, 1.0, 4.0, 5.0, 10.0, 11.0, 14.0, 15.0]
SECTIONS = {
    "trapezoid": ("{b_s_per_mm2: [0, 500, 1000], directions: [1, 0, 0], delta_ms: 5, "
                  "Delta_ms: [10, 20], ramp_ms: 0.5, echo_time_ms: 40}",
                  lambda: Acquisition.trapezoid(B, X, 5, [10, 20], 0.5, 40)),
    "ogse": ("{b_s_per_mm2: [0, 500, 1000], directions: [1, 0, 0], delta_ms: 10, Delta_ms: 12, "
             "periods: [1, 2], kind: sin}",
             lambda: Acquisition.ogse(B, X, 10, 12, [1, 2], "sin")),
    "double_pgse": ("{b_s_per_mm2: [0, 500, 1000], directions: [1, 0, 0], delta_ms: 2, "
                    "Delta_ms: 5, mixing_time_ms: 6, parallel: [true, false]}",
                    lambda: Acquisition.double_pgse(B, X, 2, 5, 6, [True, False])),
    "sampled": (f"{{b_s_per_mm2: [0, 500, 1000], directions: [1, 0, 0], times_ms: {TIMES}, "
                f"values: {FAN}, echo_time_ms: 20}}",
                lambda: Acquisition.sampled(B, X, TIMES, FAN, echo_time=20.0)),
    "pgse": ("{gradient_mT_per_m: [0, 100, 300], directions: [1, 0, 0], delta_ms: 5, "
             "Delta_ms: 10}",
             lambda: Acquisition.from_gradient(spinverse.acquisition.PGSE(5.0, 10.0),
                                               [0, 100, 300], X)),
}



@pytest.mark.parametrize("name", SECTIONS)
def test_every_sequence(run, name):
    text, make = SECTIONS[name]
    run(STACK + TISSUE + f"acquisition: {{{name}: {text}}}\n")
    found = read_signals(run.folder / "out" / "signals.csv")
    made = make()
    assert found.acquisition.waveforms == made.waveforms
    np.testing.assert_allclose(found.acquisition.b, made.b, rtol=1e-14)
    assert read_acquisition(run.folder / "out" / "signals.npz") == found.acquisition
    wanted = spinverse.simulate(stack(), make())
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-10)
    # the table of a run is an acquisition for the next
    shutil.copy(run.folder / "out" / "signals.csv", run.folder)
    run(STACK + TISSUE + "acquisition: {file: signals.csv}\n")
    assert read_signals(run.folder / "out" / "signals.csv") == found


def test_columns_that_every_sequence_has(run):
    run(STACK + TISSUE + f"acquisition: {{sampled: {SECTIONS['sampled'][0]}}}\n")
    lines = (run.folder / "out" / "signals.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    made = SECTIONS["sampled"][1]()
    for name, values in (("gradient_mT_per_m", made.gradient_strength_mT_m),
                         ("diffusion_time_ms", made.diffusion_time)):
        np.testing.assert_allclose([float(row[name]) for row in rows], values)
    assert {row["delta"] for row in rows} == {"nan"} and {row["TE"] for row in rows} == {"20.0"}


def test_complex_signals_are_kept_and_shown(run):
    text = STACK.replace("[3, 5]", "[1, 2, 6]") + (
        "tissue: {density: {1: 1, 2: 0.5, 3: 0.2}, permeability: {membrane_um_per_ms: 0.2}}\n"
        "acquisition: {double_pgse: {b_s_per_mm2: [0, 3000], directions: [1, 0, 0], delta_ms: 2, "
        "Delta_ms: 10, mixing_time_ms: 4, parallel: false}}\n")
    assert "the signals are complex: phases in figures/phases.png" in run(text)
    assert (run.folder / "out" / "figures" / "phases.png").is_file()
    values = read_signals(run.folder / "out" / "signals.csv").values
    assert abs(values[1].imag) > 0.01 * abs(values[0])


def test_a_list_of_sequences_is_one_table(run):
    (run.folder / "times.csv").write_text("time_ms, g\n" + "\n".join(
        f"{t}, {g}" for t, g in zip(TIMES, FAN, strict=True)))
    np.save(run.folder / "axes.npy", np.eye(3)[:2])
    run("mesh: {builder: box, lengths_um: [4, 4, 4], cells: [1, 1, 1]}\n"
        "acquisition:\n"
        "  - sampled: {values: times.csv, b_s_per_mm2: [0, 700], directions: axes.npy}\n"
        "  - pgse: {b_s_per_mm2: 300, directions: 2, delta_ms: 1, Delta_ms: 3, echo_time_ms: 15}\n"
        "  - sampled: {times_ms: [0, 1, 2, 3], values_mT_per_m: [[50, 0, 0], [50, 20, 0], "
        "[50, 20, 0], [50, 0, 0]], refocusing_times_ms: [1.5]}\n"
        "modes: 10\n")
    found = read_signals(run.folder / "out" / "signals.csv").acquisition
    assert len(found) == 7
    assert [w.name for w in found.waveforms] == ["Sampled", "PGSE", "SampledGradient"]
    assert isinstance(found.waveforms[2], SampledGradient)
    assert found.gradient_strength_mT_m[6] == pytest.approx(np.hypot(50, 20))


def test_second_directions(run):
    run("mesh: {builder: box, lengths_um: [4, 4, 4], cells: [1, 1, 1]}\nmodes: 10\n"
        "acquisition: {double_pgse: {gradient_mT_per_m: [0, 200], "
        "directions: [[1, 0, 0], [0, 1, 0]], second_directions: [0, 1, 0], delta_ms: 2, "
        "Delta_ms: 5, mixing_time_ms: 6}}")
    found = read_signals(run.folder / "out" / "signals.csv").acquisition
    crossed, along = found.b_tensors[2:]
    assert crossed[0, 0] == pytest.approx(crossed[1, 1]) and crossed[0, 0] > 0
    assert along[0, 0] == 0 and along[1, 1] == pytest.approx(np.trace(crossed))


def test_the_order_of_rows_is_that_of_the_library(tmp_path):
    (tmp_path / "run.yaml").write_text(STACK + "acquisition: {pgse: {gradient_mT_per_m: [0, 80], "
                                       "directions: 3, delta_ms: 5, Delta_ms: [10, 20]}}\n")
    run = config.read(tmp_path / "run.yaml", config.SimulateConfig)
    found = config.read_table(run.acquisition)
    waveforms = [spinverse.acquisition.PGSE(5.0, Delta) for Delta in (10.0, 20.0)]
    wanted = Acquisition.from_gradient(waveforms, [0, 80], 3)
    np.testing.assert_allclose(found.b, wanted.b, rtol=1e-14)
    np.testing.assert_array_equal(found.directions, wanted.directions)
    np.testing.assert_array_equal(found.waveform_index, wanted.waveform_index)


def test_a_pair_of_fsl_files(run):
    table = Acquisition.pgse(B, 3, 5, 20)
    write_fsl(run.folder / "dwi.bval", run.folder / "dwi.vectors", table)
    text = ("mesh: {builder: box, lengths_um: [4, 4, 4], cells: [1, 1, 1]}\nmodes: 10\n"
            "acquisition: {file: dwi.bval, bvec: dwi.vectors, delta_ms: 5, Delta_ms: 20}\n")
    run(text)
    found = read_signals(run.folder / "out" / "signals.csv")
    assert found.acquisition.waveforms == table.waveforms
    summary = json.loads((run.folder / "out" / "summary.json").read_text())
    assert set(summary["inputs"]) == {"config", "acquisition", "bvec"}
    run(text.replace("delta_ms", "b0_up_to_s_per_mm2: 500, delta_ms", 1))
    found = read_signals(run.folder / "out" / "signals.csv")
    np.testing.assert_array_equal(np.unique(found.acquisition.b), [0, 1000])
    assert "Delta: missing" in (said := run(text.replace(", Delta_ms: 20", ""), code=2))
    assert "keys delta_ms, Delta_ms and echo_time_ms beside file" in said


LITTLE = {
    "intervals": "thicknesses_um: [2, 3], size_um: 1",
    "slabs": "thicknesses_um: [2, 3], cells_per_layer: 2, width_um: 2",
    "disks": "radii_um: [2, 3], size_um: 1.5, match_area: false",
    "spheres": "radii_um: [3], size_um: 2.5",
    "cylinders": "radii_um: [2, 3], height_um: 1, size_um: 1.5",
    "box": "lengths_um: [4, 4, 4], size_um: 2, periodic: true",
    "sphere_in_box": "radius_um: 2, box_um: [6, 6, 6], size_um: 2, centre_um: [0.5, 0, 0]",
    "l_cell": "size_um: 6, size_interface_um: 6",
    "bent_axon": "radii_um: [1, 1.5], height_um: 4, size_um: 2, bend_per_um: 0.02",
    "twisted_axons": "centres_um: [[-2, 0], [2, 0]], radii_um: 1.5, height_um: 4, size_um: 2, "
                     "twist_rad_per_um: 0.05, ecs: box, ecs_gap_um: 0.5",
    "torus": "major_radius_um: 4, minor_radius_um: 1.5, size_um: 2",
    "packed_cylinders": "count: 2, mean_radius_um: 2, volume_fraction: 0.3, height_um: 1, "
                        "size_um: 3, g_ratio: 0.7, gap_um: 0.4",
    "packed_spheres": "radii_um: [2, 2], box_um: [10, 6, 6], size_um: 3",
    "tagged_grid": "shape: {kind: bent_tube, radius_um: 3, path_um: [[-3, 0, 0], [3, 0, 0]]}, "
                   "length_um: 12, cells: 2",
}


def test_every_builder(run):
    """Each with its arguments; the summary of what was understood names it."""
    assert set(LITTLE) == set(BUILDERS) == set(mesh.builders.__all__)
    for name, arguments in LITTLE.items():
        with_membrane = name not in ("box", "spheres", "torus")
        said = run(f"mesh: {{builder: {name}, {arguments}}}\n"
                   + (TISSUE if with_membrane else "") + PGSE, "--dry-run")
        assert f"mesh: {name}: " in said and "dry run: nothing was simulated" in said
    assert not (run.folder / "out").exists()


def test_surfaces_and_labels(run):
    box = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    lines = ["v {} {} {}".format(*p) for p in box] + [
        f"f {a + 1} {b + 1} {c + 1}" for q in quads for a, b, c in (q[:3], (q[0], *q[2:]))]
    (run.folder / "cube.obj").write_text("\n".join(lines) + "\n")
    text = ("mesh: {surface: cube.obj, scale_um_per_unit: 6, size_um: 6, outside: box, gap_um: 3, "
            "method: exact}\n" + TISSUE + PGSE)
    said = run(text + "modes: 10\n")
    assert "12 x 12 x 12 um, volume 1728 um^3" in said
    assert "tags: cells 1 (216 um^3), 2 (1512 um^3); membranes 1 (216 um^2)" in said
    summary = json.loads((run.folder / "out" / "summary.json").read_text())
    assert set(summary["inputs"]) == {"config", "mesh"}
    assert "mesh.scale: unknown key, did you mean scale_um_per_unit?" in run(
        text.replace("scale_um_per_unit", "scale"), code=2)

    # the mesh that was made goes with the signals, and is a mesh file for other runs
    made = mesh.read(run.folder / "out" / "mesh.npz")
    assert made.num_cells == int(said.split("cube.obj: ")[1].split(" cells")[0])
    first = read_signals(run.folder / "out" / "signals.csv")
    shutil.copy(run.folder / "out" / "mesh.npz", run.folder)
    run("mesh: {file: mesh.npz}\n" + TISSUE + PGSE + "modes: 10\n")
    assert read_signals(run.folder / "out" / "signals.csv") == first
    assert not (run.folder / "out" / "mesh.npz").exists()
    inside = text.replace("outside: box, gap_um: 3, ", "")
    assert "its 12 facets are all on the outer boundary, which reflects; expected none" in run(
        inside, code=2)
    assert "volume 216 um^3" in run(inside.replace(TISSUE, ""), "--dry-run")
    assert "cube.obj holds a surface, expected it as mesh.surface" in run(
        inside.replace("surface:", "file:"), code=2)

    labels = np.zeros((3, 3, 3), np.int16)
    labels[1, 1, 1:] = 1
    np.save(run.folder / "cells.npy", labels)
    text = ("mesh: {labels: cells.npy, voxel_size_um: 2, smooth: 0, background: true}\n"
            "tissue: {diffusivity_um2_per_ms: {0: 2, 1: 1}, permeability: {membrane_m_per_s: 1e-5}}"
            "\n" + PGSE)
    assert "volume 216 um^3" in run(text, "--dry-run")
    assert "holds no voxel size, expected voxel_size" in run(
        text.replace("voxel_size_um: 2, ", ""), code=2)


def test_tissue_interface_and_period(run):
    fields = "density: {1: 1, 2: 0.4}, permeability: {membrane_um_per_ms: 0.02}"
    for interface in ("equilibrium", "plain"):
        run(STACK + f"tissue: {{{fields}, interface: {interface}}}\n" + PGSE)
        found = read_signals(run.folder / "out" / "signals.csv")
        wanted = spinverse.simulate(stack(density={1: 1, 2: 0.4}, interface=interface),
                                    found.acquisition)
        np.testing.assert_allclose(found.values, wanted.values, rtol=1e-10)
    said = run(STACK + f"tissue: {{{fields}, periodic: x}}\n" + PGSE)
    assert "periodic along x" in said
    found = read_signals(run.folder / "out" / "signals.csv")
    wanted = spinverse.simulate(stack(density={1: 1, 2: 0.4}, periodic="x"), found.acquisition)
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-10)


def test_what_was_used_is_said(run):
    out = run.folder / "out" / "summary.json"
    said = run(STACK + TISSUE + PGSE)
    assert "matrix formalism: " in said and "of S/S0 (tolerance 0.0001)" in said
    summary = json.loads(out.read_text())
    assert 0 <= summary["estimated_error"] <= 1e-4 and summary["modes"] > 1
    said = run(STACK + TISSUE + PGSE + "engine: time_stepping\ntolerance: 1e-3\ndegree: 2\n")
    assert "time stepping: steps up to " in said and "(tolerance 0.001)" in said
    summary = json.loads(out.read_text())
    assert 0 < summary["estimated_error"] <= 1e-3 and 0 < summary["time_step_ms"] < 10
    said = run(STACK + TISSUE + PGSE + "engine: time_stepping\ntime_step_ms: 0.5\n")
    assert "steps up to 0.5 ms, error not estimated (time_step_ms: auto does)" in said
    assert json.loads(out.read_text())["estimated_error"] is None


@pytest.mark.parametrize("engine, said", [
    ("matrix_formalism", [r"trying \d+ modes, ", r"signals: 0 of \d, "]),
    ("time_stepping", ["choosing the time step: 0 of ", r"signals: 1 of \d, "])])
def test_long_simulations_say_how_far_they_are(run, monkeypatch, engine, said):
    text = STACK + TISSUE + PGSE + f"engine: {engine}\n"
    monkeypatch.setattr(screen, "LINE_EVERY", np.inf)
    assert "signals: " not in run(text)  # nothing, where there is nothing to wait for
    monkeypatch.setattr(screen, "LINE_EVERY", 0.0)
    lines = run(text).splitlines()
    for words in said:
        assert any(re.match(words, line) for line in lines), (words, lines)
    assert run(text, "-q") == ""


def test_a_fit_that_fails_ends_the_run_with_1_and_its_results(run, monkeypatch):
    def fit(signals):
        if signals.values[0] != 1:  # those of the check before the run
            raise spinverse.InputError("signals: all noise")

    monkeypatch.setitem(derived.QUANTITIES, "adc", fit)
    (run.folder / "run.yaml").write_text(STACK + TISSUE + PGSE + "quantities: [adc, compartments]")
    assert cli.main(["simulate", str(run.folder / "run.yaml"), "-o", str(run.folder / "out")]) == 1
    document = json.loads((run.folder / "out" / "quantities.json").read_text())
    assert document["adc"]["error"] == "adc: signals: all noise"
    assert len(document["compartments"]["compartments"]) == 2
    assert read_signals(run.folder / "out" / "signals.csv").values.size


def test_a_dry_run_needs_no_folder(run, tmp_path):
    (tmp_path / "run.yaml").write_text(STACK + TISSUE + PGSE)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["simulate", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert cli.main(["simulate", str(tmp_path / "run.yaml")]) == 2


QUANTITIES = """mesh:
  {builder: tagged_grid, shape: {kind: ball, radius_um: 7}, length_um: 20, cells: 2}
tissue: {permeability: {membrane_m_per_s: 1e-6}}
acquisition: {pgse: {b_s_per_mm2: [0, 100, 200, 300], directions: 10, delta_ms: 5, Delta_ms: 10}}
modes: 60
quantities: [adc, tensor, hardi, hadc: {time_step_ms: 1}, mf_adc: {tolerance: 0.01}, short_time,
  karger, compartments, exchange_times: {number: 2}, mass_balance: {start: 1, times_ms: [0, 5]}]
"""


def test_quantities(run):
    said = run(QUANTITIES)
    document = json.loads((run.folder / "out" / "quantities.json").read_text())
    assert list(document) == ["adc", "tensor", "hardi", "hadc", "mf_adc", "short_time", "karger",
                              "compartments", "exchange_times", "mass_balance"]
    for name in document:
        assert f"{name}: " in said
    signals = read_signals(run.folder / "out" / "signals.csv")
    fit = spinverse.quantities.fit_tensor(signals)
    np.testing.assert_allclose(document["tensor"]["fits"][0]["tensor_um2_per_ms"], fit.tensors[0])
    slopes = [fit["adc_um2_per_ms"] for fit in document["adc"]["fits"]]
    np.testing.assert_allclose(slopes, document["mf_adc"]["adc_um2_per_ms"][:10], rtol=0.05)
    assert len(document["exchange_times"]["exchange_times_ms"]) == 2
    masses = np.array(document["mass_balance"]["by_compartment_um3"])
    assert masses[0, 0] == 0 and masses[1, 0] > 0
    assert masses.sum(axis=1) == pytest.approx(masses[0].sum())
    assert document["short_time"]["warnings"]  # a cell of this size at these times


@pytest.mark.parametrize("old, new, message", [
    ("directions: 10", "directions: 3", "quantities: tensor: directions: those of PGSE"),
    ("[0, 100, 200, 300]", "300", "quantities: adc: signals: 1 b-value(s) to fit"),
    ("hadc:", "hadcs:", "did you mean hadc? expected quantities: adc, tensor"),
    ("time_step_ms: 1", "time_step: 1",
     "quantities.hadc.time_step: unknown key, did you mean time_step_ms?"),
    ("{number: 2}", "{number: -2}", "quantities: exchange_times: number: -2, expected"),
    ("{start: 1", "{start: 7", "quantities: mass_balance: start: compartment 7, expected 0 to 1"),
    ("{permeability", "{periodic: xyz, permeability", "quantities.hadc: with tissue.periodic"),
])
def test_bad_quantities(run, old, new, message):
    assert old in QUANTITIES
    assert message in run(QUANTITIES.replace(old, new, 1), code=2)
    assert not (run.folder / "out").exists()


@pytest.mark.parametrize("old, new, message", [
    ("intervals", "interval", "mesh.builder: 'interval', did you mean intervals? expected one of"),
    ("thicknesses_um", "thicknesses", "mesh.thicknesses: unknown key, did you mean thicknesses_um"),
    ("thicknesses_um: [3, 5], ", "", "mesh.thicknesses_um: missing, expected a value"),
    ("builder: intervals", "builder: intervals, surface: a.stl",
     "mesh: builder and surface are both there, expected one of the keys"),
    ("cells_per_layer: 4", "cells_per_layer: 4, repair: true", "mesh.repair: expected it beside"),
    ("cells_per_layer: 4", "cells_per_layer: [4]", "mesh: intervals: cells_per_layer is [4]"),
    ("delta_ms: 5, ", "", "acquisition.pgse.delta_ms: missing, expected the pulse length in ms"),
    (", Delta_ms: 10", "", "Delta_ms: missing, expected the time from pulse to pulse in ms (echo_"),
    ("b_s_per_mm2: [0, 1000]", "b: 3", "acquisition.pgse.b: unknown key, did you mean b_s_per_mm2"),
    ("directions: [1, 0, 0], ", "", "acquisition.pgse.directions: missing, expected a number of"),
    ("Delta_ms: 10", "Delta_ms: 3", "acquisition.pgse: Delta = 3 ms"),
    ("b_s_per_mm2: [0, 1000]", "b_s_per_mm2: [0, 1000], gradient_mT_per_m: 3",
     "acquisition.pgse: b_s_per_mm2 and gradient_mT_per_m are both there"),
    ("b_s_per_mm2: [0, 1000]", "gradient_mT_per_m: -3", "gradient_mT_per_m: -3, expected a finite"),
    ("pgse: {", "delta_ms: 5, pgse: {", "acquisition.delta_ms: expected it beside file only"),
    ("pgse", "ogse", "acquisition.ogse.periods: missing, expected how many periods a pulse has"),
    ("pgse", "trapezoid", "acquisition.trapezoid.ramp_ms: missing, expected the time of a rise"),
    ("pgse", "double_pgse", "double_pgse.mixing_time_ms: missing, expected the time from the star"),
    ("pgse", "dpgse", "acquisition.dpgse: unknown key, did you mean"),
    ("membrane", "interface: equal, membrane", "unknown key"),
    ("{permeability", "{interface: equal, permeability", "tissue.interface: 'equal', expected"),
    ("{permeability", "{periodic: yx1, permeability", "tissue.periodic: 'yx1', expected axes in"),
    ("{permeability", "{periodic: xy, permeability", "tissue: periodic: 'xy', expected some of"),
])
def test_bad_run_files(run, old, new, message):
    text = STACK + TISSUE + PGSE
    assert old in text
    assert message in run(text.replace(old, new, 1), code=2)


@pytest.mark.parametrize("section, message", [
    ("values: [1, -1]", "values say the shape only, expected one of b_s_per_mm2 and gradient"),
    ("values: [1, -1], b_s_per_mm2: 1", "sampled.times_ms: missing, expected the times of the va"),
    ("values: [1, x], b_s_per_mm2: 1", "values: [1, 'x'], expected a list of numbers, a list of"),
    ("values_mT_per_m: [1, -1], times_ms: [0, 1], b_s_per_mm2: 1", "b_s_per_mm2: expected it besi"),
    ("values: no.csv, b_s_per_mm2: 1, directions: 3", "no.csv: no such file, expected a table of"),
    ("values: a.csv, b_s_per_mm2: 1, directions: 3", "a.csv: line 3: 'x' is not a number"),
    ("values: b.csv, b_s_per_mm2: 1, directions: 3", "3 columns, expected 2 or 4: time in ms and"),
    ("times_ms: [0, 1], values: [1, 1], b_s_per_mm2: 1, directions: 3", "acquisition.sampled: "),
])
def test_bad_samples(run, section, message):
    (run.folder / "a.csv").write_text("t,g\n0,1\n1,x\n")
    (run.folder / "b.csv").write_text("0 1 2\n0 1 2\n")
    assert message in run(STACK + TISSUE + f"acquisition: {{sampled: {{{section}}}}}", code=2)


def test_periodic_hint(run):
    text = ("mesh: {builder: sphere_in_box, radius_um: 2, box_um: [6, 6, 6], size_um: 2}\n"
            "tissue: {periodic: xyz, permeability: {membrane_m_per_s: 1e-5}}\n" + PGSE)
    assert "mesh.periodic: true makes it so" in run(text, code=2)
    assert "periodic along x, y, z" in run(text.replace("size_um", "periodic: true, size_um"),
                                           "--dry-run")


def test_examples_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, out in (("simulate", "target"), ("reconstruct", "found")):
        assert cli.main(["config", "--example", name]) == 0
        text = capsys.readouterr().out
        if name == "reconstruct":  # shorter
            assert "\nstages: default " in text
            text = text.replace("stages: default ", "stages: [{name: cell, shapes: {cells: 1, "
                                "ellipsoids: 12, candidates: 2, rounds: 1}}] ")
        (tmp_path / f"{name}.yaml").write_text(text.replace("# modes: auto", "modes: 40"))
        assert cli.main([name, f"{name}.yaml", "-o", out, "-q"]) == 0
    assert (tmp_path / "found" / "summary.json").is_file()
    capsys.readouterr()


@pytest.mark.parametrize("path", sorted((ROOT / "demos").glob("*.yaml")), ids=lambda p: p.stem)
def test_demos_are_understood(path):
    model = config.ReconstructConfig if "reconstruct" in path.stem else config.SimulateConfig
    run = config.read(path, model)
    if run.mesh.source is not None and "published" not in path.stem:
        assert run.mesh.source.is_file()
    assert len(config.read_table(run.acquisition)) > 20


def test_a_demo_shows_that_its_stack_has_a_direction(tmp_path, capsys):
    assert cli.main(["simulate", str(ROOT / "demos" / "double_pgse_stack.yaml"), "-o",
                     str(tmp_path / "out")]) == 0
    found = read_signals(tmp_path / "out" / "signals.csv")
    phase = np.abs(np.angle(found.values))
    parallel = found.acquisition.waveform_index < 2
    assert phase[parallel].max() < 1e-6 < 0.2 < phase[~parallel].max()


def test_builders_are_explained(capsys):
    assert cli.main(["config", "--builder"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(BUILDERS)
    for name in BUILDERS:
        assert cli.main(["config", "--builder", name]) == 0
        assert f"  builder: {name}" in capsys.readouterr().out
    assert cli.main(["config", "--builder", "cube"]) == 2
    assert cli.main(["config"]) == 2


def test_a_periodic_tissue_has_no_interface_to_extract():
    grid = mesh.build(mesh.tagged_grid, mesh.Ball(4.0), length=10.0, cells=2)
    tissue = spinverse.Tissue(grid, permeability=1.0, periodic="xy")
    with pytest.raises(spinverse.InputError, match="periodic along x, y, expected one that is"):
        extraction.compartments(tissue, False)


def test_a_resumed_run_has_its_surface_mesh(tmp_path, comm):
    """A mesher may make another mesh of the same surface."""
    section = config.MeshSection.model_validate({"surface": "cell.stl", "size_um": 1})
    data = mesh.tagged_grid(mesh.Ball(7.0), length=20.0, cells=2)
    shared.write_mesh(tmp_path, data)
    found, made = shared.make_mesh(section, comm, tmp_path / shared.MESH)
    assert found.num_cells == len(data.cells)
    with pytest.raises(spinverse.InputError, match="no such file"):
        shared.make_mesh(section, comm, tmp_path / "no.npz")


def test_every_length_has_its_unit():
    """An argument that holds a float has a unit in its key, but for ratios."""
    from spinverse.config.arguments import UNITS, keys_of
    from spinverse.mesh.images import from_labels
    from spinverse.mesh.tetrahedralise import from_surface

    ratios = {"g_ratio", "volume_fraction"}
    for function in (*BUILDERS.values(), from_surface, from_labels):
        for parameter in keys_of(function).values():
            if "float" in str(parameter.annotation) and parameter.name not in ratios:
                assert parameter.name in UNITS, (function.__name__, parameter.name)
