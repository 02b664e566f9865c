"""Run files: what they may say, and the one line about what they may not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spinverse import config
from spinverse.errors import InputError
from spinverse.inversion import TAO, Adam

MESH = "mesh: {builder: tagged_grid, length_um: 20, cells: 2, shape: {kind: ball, radius_um: 7}}\n"
TISSUE = "tissue: {diffusivity_um2_per_ms: 2, permeability: {membrane_m_per_s: 1e-5}}\n"
PGSE = ("acquisition: {pgse: {b_s_per_mm2: [0, 1e3], directions: 3, delta_ms: 5, "
        "Delta_ms: 10}}\n")
SIMULATE = MESH + TISSUE + PGSE
RECONSTRUCT = "mesh: {file: a.npz}\nsignals: {file: s.csv}\n"


def read(folder, text, model=config.SimulateConfig):
    path = folder / "run.yaml"
    path.write_text(text)
    return config.read(path, model)


def test_units_and_defaults(tmp_path):
    run = read(tmp_path, SIMULATE)
    assert run.tissue.permeability.value("membrane", None) == pytest.approx(0.01)
    assert run.tissue.permeability.value("elsewhere", math.inf) == math.inf
    assert run.acquisition[0].pgse.b_s_per_mm2 == [0.0, 1000.0]  # YAML's 1e3 is a number here
    assert (run.engine, run.modes, run.degree) == ("auto", "auto", "auto")
    assert run.tissue.boundary == "reflecting"


def test_values_by_tag(tmp_path):
    text = SIMULATE.replace("1e-5", "{1: 1e-5, 2: 2e-5}").replace(
        "um2_per_ms: 2", "um2_per_ms: {1: 2, 2: [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}")
    tissue = read(tmp_path, text).tissue
    assert tissue.permeability.value("membrane", None) == pytest.approx({1: 0.01, 2: 0.02})
    assert np.shape(tissue.diffusivity_um2_per_ms[2]) == (3, 3)


def test_paths_are_relative_to_the_run_file(tmp_path):
    (tmp_path / "deep").mkdir()
    run = read(tmp_path / "deep", RECONSTRUCT.replace("a.npz", "../a.npz"),
               config.ReconstructConfig)
    assert run.mesh.file == tmp_path / "a.npz"
    assert run.signals.file == tmp_path / "deep" / "s.csv"


def test_stages(tmp_path):
    text = RECONSTRUCT + """
stages:
  - {name: one, iterations: 3, sequences: [0], priors: {manifold: [0, 1]}, b_max_s_per_mm2: 2000,
     optimiser: {adam: {learning_rate: 0.1}}}
  - {name: two, optimiser: {tao: {type: bqnls, options: {tao_gatol: 1e-6}}}}
"""
    one, two = read(tmp_path, text, config.ReconstructConfig).stage_list()
    assert one.optimiser == Adam(learning_rate=0.1)
    assert (one.iterations, one.sequences, one.b_max) == (3, (0,), 2000)
    assert one.priors == {"manifold": (0.0, 1.0)}
    assert two.optimiser == TAO("bqnls", {"tao_gatol": 1e-6})
    preset = read(tmp_path, RECONSTRUCT + "stages: published", config.ReconstructConfig)
    assert [stage.name for stage in preset.stage_list()] == ["10/60", "10/20"]


@pytest.mark.parametrize("text, message", [
    (SIMULATE.replace("tissue", "tisue"), "tisue: unknown key, did you mean tissue?"),
    (SIMULATE.replace("diffusivity_um2_per_ms", "diffusivity"),
     "tissue.diffusivity: unknown key, did you mean diffusivity_um2_per_ms?"),
    (SIMULATE.replace("delta_ms: 5", "delta: 5"),
     "acquisition.pgse.delta: unknown key, did you mean delta_ms?"),
    (SIMULATE.replace("length_um", "length"), "mesh.length: unknown key, did you mean length_um?"),
    (SIMULATE.replace("radius_um: 7", ""), "mesh.shape.radius_um: missing, expected a value"),
    (SIMULATE.replace("um2_per_ms: 2", "um2_per_ms: .nan"),
     "tissue.diffusivity_um2_per_ms: nan, expected a number"),
    (SIMULATE + "engine: fast",
     "engine: 'fast', expected 'auto', 'matrix_formalism', 'time_stepping' or 'direction_bases'"),
    (SIMULATE + "tolerance: 0", "tolerance: 0, expected greater than 0"),
    (SIMULATE + "mesh: {file: a.npz}", "the key mesh appears twice"),
    (SIMULATE.replace("{membrane", "{membrane_um_per_ms: 1, membrane"),
     "membrane_m_per_s and membrane_um_per_ms are both there"),
    (MESH + TISSUE, "acquisition: missing, expected a sequence, as pgse: {...}, a file, or"),
    (TISSUE + PGSE + "mesh: {}",
     "mesh: expected one of the keys file, builder, surface and labels"),
    (TISSUE + PGSE + "mesh: 3", "mesh: 3, expected keys with values"),
    (TISSUE + PGSE + "mesh: [", "not YAML"),
    ("", "expected keys with values"),
])
def test_refused(tmp_path, text, message):
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "run.yaml"))


@pytest.mark.parametrize("text, message", [
    ("stages: fastest", "stages: 'fastest', expected one of default, fast, walls, facets, publ"),
    ("stages: [{name: a, shapes: {cells: 10}}]", "cells 10, expected from 1 to 9"),
    ("stages: [{name: a, shapes: {}, every: 2}]", "expected no other key than name"),
    ("stages: [{name: a, iteration: 3}]", "stages.0.iteration: unknown key, did you mean itera"),
    ("stages: [{name: a, priors: {smooth: 1}}]", "prior 'smooth', expected one of continuity"),
    ("stages: [{name: a}, {name: a}]", "stages: name 'a' appears twice"),
    ("stages: [{name: a, sequences: longest}]", "stages.0.sequences: 'longest', expected all"),
    ("interface: {rule: threshold}", "interface.cut_um_per_ms: expected with rule threshold"),
    ("tissue: {start_um_per_ms: -1}", "tissue.start_um_per_ms: -1, expected greater than 0"),
])
def test_refused_in_reconstructions(tmp_path, text, message):
    with pytest.raises(InputError) as caught:
        read(tmp_path, RECONSTRUCT + text, config.ReconstructConfig)
    assert message in str(caught.value)
