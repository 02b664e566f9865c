"""Weak-form terms in Python files that run files name: real command lines, what is refused."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys

import numpy as np
import pytest
import ufl
import yaml
from mpi import ROOT, run_mpi

import spinverse
from spinverse import cli, config, mesh
from spinverse.acquisition import read_signals
from spinverse.commands import estimates
from spinverse.errors import InputError
from spinverse.inversion.parameters import Unknown
from spinverse.report import screen

STACK = "mesh: {builder: intervals, thicknesses_um: [3, 5], cells_per_layer: 4}\n"
TISSUE = "tissue: {permeability: {membrane_m_per_s: 2e-5}}\n"
PGSE = ("acquisition: {pgse: {b_s_per_mm2: [0, 1000], directions: [1, 0, 0], delta_ms: 5, "
        "Delta_ms: 10}}\n")
TERMS = """extra_terms:
  file: physics.py
  function: wall_relaxivity
  coefficients: {rho: 0.02}
"""
SIMULATE = STACK + TISSUE + PGSE + TERMS
CODE = '''"""Terms of a test."""

import ufl


def wall_relaxivity(m, v, t, coefficients):
    return coefficients["rho"] * ufl.inner(m, v) * coefficients.ds


def pulse(m, v, t, coefficients):
    strength = coefficients["k"] + coefficients["K"][0, 0] + coefficients["u"][0]
    on = ufl.conditional(ufl.And(ufl.ge(t, 3.0), ufl.lt(t, 7.0)), 1.0, 0.0)
    return on * strength * ufl.inner(m, v) * coefficients.dx


def flow(m, v, t, coefficients):
    return -ufl.inner(m, ufl.dot(ufl.grad(v), coefficients["u"])) * coefficients.dx


def source(m, v, t, coefficients):
    return -coefficients["rho"] * ufl.inner(m, v) * coefficients.dx


def misspelt(m, v, t, coefficients):
    return coefficients["roh"] * ufl.inner(m, v) * coefficients.ds


def broken(m, v, t, coefficients):
    """Fails when it is called."""
    return coefficients["rho"] / 0


def one_sided(m, v, t, coefficients):
    return ufl.inner(m, v) * coefficients.dS


def no_form(m, v, t, coefficients):
    return 0.5


def two(m, v):
    return None


def leaves(m, v, t, coefficients):
    raise SystemExit(0)


number = 3
'''


@pytest.fixture
def run(tmp_path, capsys):
    """Write a run file beside physics.py and simulate; what was said, or the line of the error."""
    (tmp_path / "physics.py").write_text(CODE)

    def simulate(text, *more, code=0):
        (tmp_path / "run.yaml").write_text(text)
        before = sorted(tmp_path.rglob("*"))
        where = () if "--dry-run" in more else ("-o", str(tmp_path / "out"), "--force")
        found = cli.main(["simulate", str(tmp_path / "run.yaml"), *where, *more])
        said = capsys.readouterr()
        assert found == code, said.err
        if code or "--dry-run" in more:
            assert sorted(tmp_path.rglob("*")) == before  # not even compiled code
        if code:
            assert said.err.startswith(f"spinverse: {tmp_path / 'run.yaml'}: ")
            assert said.err.count("\n") == 1
            return said.err
        assert said.err == ""
        return said.out

    simulate.folder = tmp_path
    return simulate


def stack():
    """The tissue of `STACK` and `TISSUE`."""
    layers = mesh.build(mesh.intervals, [3, 5], cells_per_layer=4)
    return spinverse.Tissue(layers, permeability=spinverse.Permeability.on(layers, 0.02))


def relaxing(m, v, t, c):
    return c["rho"] * ufl.inner(m, v) * c.ds


# ---- simulations ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["matrix_formalism", "time_stepping"])
def test_signals_are_those_of_the_function(run, engine):
    said = run(SIMULATE + f"engine: {engine}\ntolerance: 1e-3\n")
    line = (f"extra terms: function wall_relaxivity of {run.folder / 'physics.py'} (code of the "
            "run file is executed), coefficients rho 0.02\n")
    assert line in said
    found = read_signals(run.folder / "out" / "signals.npz")
    wanted = spinverse.simulate(stack(), found.acquisition, engine, tolerance=1e-3,
                                extra_terms=relaxing, extra_coefficients={"rho": 0.02})
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-10)
    plain = spinverse.simulate(stack(), found.acquisition, engine, tolerance=1e-3)
    assert np.all(found.values.real < 0.95 * plain.values.real)
    summary = json.loads((run.folder / "out" / "summary.json").read_text())
    assert summary["inputs"]["extra_terms"] == {
        "path": str(run.folder / "physics.py"),
        "sha256": hashlib.sha256(CODE.encode()).hexdigest()}
    assert summary["config"]["extra_terms"]["coefficients"] == {"rho": 0.02}
    said = run(SIMULATE, "--dry-run")
    assert line in said and said.endswith("dry run: nothing was simulated\n")


def test_every_kind_of_coefficient_and_times_at_which_terms_jump(run):
    said = run(STACK + TISSUE + PGSE + "engine: time_stepping\ntime_step_ms: 0.5\n"
               "extra_terms: {file: physics.py, function: pulse, breakpoints_ms: [7, 3],\n"
               "  coefficients: {k: {1: 0.05, 2: 0.0}, u: [0.01], K: [[0.02]]}}\n")
    assert "coefficients k {1: 0.05, 2: 0.0}, u [0.01], K [[0.02]], jumps at 7, 3 ms" in said
    found = read_signals(run.folder / "out" / "signals.npz")

    def decay(m, v, t, c):
        on = ufl.conditional(ufl.And(ufl.ge(t, 3.0), ufl.lt(t, 7.0)), 1.0, 0.0)
        return on * c["k"] * ufl.inner(m, v) * c.dx

    wanted = spinverse.simulate(stack(), found.acquisition, "time_stepping", time_step=0.5,
                                extra_terms=decay, extra_breakpoints=[3, 7],
                                extra_coefficients={"k": {1: 0.08, 2: 0.03}})
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-9)


BALL = """mesh: {builder: tagged_grid, shape: {kind: ball, radius_um: 7}, length_um: 20, cells: 2}
tissue: {permeability: {membrane_m_per_s: 1e-5}}
acquisition: {pgse: {b_s_per_mm2: [0, 1000], directions: 3, delta_ms: 5, Delta_ms: 10}}
modes: 1000
extra_terms:
  file: physics.py
  function: wall_relaxivity
  coefficients: {rho: {1: 0.01, 2: 0.02}}
quantities: [compartments]
"""


def test_two_ranks_give_the_same(run):
    run(BALL + "mesh_error: false\n")
    one = read_signals(run.folder / "out" / "signals.npz").values
    summary = json.loads((run.folder / "out" / "summary.json").read_text())
    said = run_mpi(2, "-m", "spinverse", "simulate", "run.yaml", "-o", "two", cwd=run.folder)
    assert said.count("(code of the run file is executed)") == 1 and "on 2 ranks" in said
    two = read_signals(run.folder / "two" / "signals.npz").values
    np.testing.assert_allclose(two, one, rtol=1e-8, atol=1e-8 * abs(one[0]))
    again = json.loads((run.folder / "two" / "summary.json").read_text())
    assert again["inputs"]["extra_terms"]["sha256"] == summary["inputs"]["extra_terms"]["sha256"]
    assert sorted(path.name for path in run.folder.iterdir()) == ["out", "physics.py", "run.yaml",
                                                                  "two"]


def test_two_ranks_fail_with_one_line(run):
    (run.folder / "physics.py").write_text("import ufl\n\n1 / 0\n")
    (run.folder / "run.yaml").write_text(BALL)
    done = run_mpi(2, "-m", "spinverse", "simulate", "run.yaml", "-o", "two", cwd=run.folder,
                   check=False)
    assert done.returncode == 2 and done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("spinverse: ")]
    assert lines == ["spinverse: run.yaml: extra_terms.file: physics.py: line 3: ZeroDivisionError:"
                     " division by zero, expected Python that runs by itself (its folder is not "
                     "searched for modules)"]


def test_quantities(run):
    text = SIMULATE.replace("[0, 1000]", "[0, 300, 600, 900]")
    run(text + "quantities: [adc, compartments]\n")
    document = json.loads((run.folder / "out" / "quantities.json").read_text())
    assert list(document) == ["adc", "compartments"]
    for name in ("hadc", "mf_adc", "short_time", "karger", "exchange_times", "mass_balance"):
        said = run(text + f"quantities: [adc, {name}]\n", "--dry-run", code=2)
        assert (f"quantities.{name}: with extra_terms, expected adc, tensor, hardi, axr, "
                "compartments there (the others do not know extra terms)") in said


def test_a_tag_that_the_mesh_does_not_have(run, capsys):
    text = SIMULATE.replace("rho: 0.02", "rho: {1: 0.02, 2: 0.02, 5: 1}")
    (run.folder / "run.yaml").write_text(text)
    assert cli.main(["simulate", str(run.folder / "run.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("spinverse: warning: extra_coefficients: rho: a value for cell tag 5")
    assert said.count("\n") == 1


def test_estimates_know_what_terms_cost():
    table = spinverse.Acquisition.pgse([0, 1000], [[1, 0, 0]], 5, 10)
    assert estimates._stepping(0.5, table, 1000, True) > 10 * estimates._stepping(0.5, table, 1000)


# ---- which code runs --------------------------------------------------------------------------


def test_reading_runs_no_code_and_a_run_that_of_its_file_only(run, comm):
    marked = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"
    for name in ("physics", "helper", "ufl", "conftest", "__init__"):
        (run.folder / f"{name}.py").write_text(marked + CODE * (name == "physics"))
    (run.folder / "run.yaml").write_text(SIMULATE)
    section = config.read(run.folder / "run.yaml", config.SimulateConfig).extra_terms
    assert not list(run.folder.glob("*.ran"))
    section.arguments(comm)
    assert [path.name for path in run.folder.glob("*.ran")] == ["physics.ran"]
    assert not {"physics", "helper"} & set(sys.modules)
    (run.folder / "physics.py").write_text("import helper\n" + CODE)
    said = run(SIMULATE, code=2)
    assert "extra_terms.file: " in said and "physics.py: line 1: ModuleNotFoundError: " in said
    assert not (run.folder / "helper.ran").exists()


def test_files_that_are_unusual(run):
    """Another encoding, names of modules that exist, classes that look for their module."""
    code = CODE.replace('"""Terms of a test."""', "from __future__ import annotations\n"
                        "from dataclasses import dataclass").replace("number = 3", """
@dataclass
class Wall:
    width: float = 1.0  # \xe9paisseur

    def __call__(self, m, v, t, coefficients):
        return self.width * wall_relaxivity(m, v, t, coefficients)


wall = Wall()
""")
    (run.folder / "numpy.py").write_bytes(b"# -*- coding: latin-1 -*-\n" + code.encode("latin-1"))
    run(SIMULATE)
    wanted = read_signals(run.folder / "out" / "signals.npz").values
    run(SIMULATE.replace("physics.py", "numpy.py").replace("wall_relaxivity", "wall"))
    np.testing.assert_array_equal(read_signals(run.folder / "out" / "signals.npz").values, wanted)
    assert sys.modules["numpy"] is np
    with pytest.raises(KeyError):
        sys.modules["physics"]


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("old, new, message", [
    ("  file: physics.py\n", "", "extra_terms.file: missing, expected a Python file with the func"),
    ("physics.py", "[1]", "extra_terms.file: [1], expected the path of a file"),
    ("physics.py", "run.yaml", "run.yaml, expected a Python file (.py)"),
    ("physics.py", "no/physics.py", "no/physics.py: no such file, expected a Python file"),
    ("  function: wall_relaxivity\n", "", "extra_terms.function: missing, expected the name of a"),
    ("wall_relaxivity", "wall_relaxivty", "extra_terms.function: 'wall_relaxivty', no such functio"
     "n in {folder}/physics.py, did you mean wall_relaxivity?"),
    ("wall_relaxivity", "ufl", "expected a function (m, v, t, coefficients) that returns a UFL"),
    ("wall_relaxivity", "qqq", "'qqq', no such function in {folder}/physics.py, expected one of wal"
     "l_relaxivity, pulse, flow"),
    ("wall_relaxivity", "a.b", "extra_terms.function: 'a.b', expected the name of a function in"),
    ("wall_relaxivity", "class", "extra_terms.function: 'class', expected the name of a function"),
    ("wall_relaxivity", "number", "extra_terms.function: number of {folder}/physics.py: 3, expected"
     " a function (m, v, t, coefficients)"),
    ("wall_relaxivity", "two", "extra_terms.function: two of {folder}/physics.py: two(m, v), expect"
     "ed a function (m, v, t, coefficients) that returns a UFL form"),
    ("wall_relaxivity", "misspelt", "extra_terms.function: misspelt of {folder}/physics.py: line 25"
     ": coefficient 'roh', expected one of coefficients: 'rho'"),
    ("wall_relaxivity", "broken", "broken of {folder}/physics.py: line 30: ValueError: "),
    ("wall_relaxivity", "leaves", "leaves of {folder}/physics.py: line 46: SystemExit: 0"),
    ("wall_relaxivity", "no_form", "extra_terms: expected a UFL form linear in m and in v, got"),
    ("wall_relaxivity", "one_sided", "on dS fields and m have two sides, m('+') and m('-')"),
    ("wall_relaxivity", "source", "extra_terms: engine matrix_formalism cannot take them, because "
     "a mode grows by a factor e in 50 ms; expected engine: time_stepping"),
    ("wall_relaxivity\n  coefficients: {rho: 0.02}", "flow\n  coefficients: {u: [0.1]}",
     "because they have a part that is not symmetric in m and v, as flow has; expected engine: ti"),
    ("wall_relaxivity\n  coefficients: {rho: 0.02}", "wall_relaxivity",
     "coefficient 'rho', expected one of coefficients: none"),
    ("coefficients:", "coefficient:", "extra_terms.coefficient: unknown key, did you mean coeff"),
    ("{rho: 0.02}", "0.02", "extra_terms.coefficients: 0.02, expected a value for each name"),
    ("{rho: 0.02}", "{on: 0.02}", "expected names, got True (words as yes and on need quotes)"),
    ("rho: 0.02", "rho: a", "extra_terms.coefficients.rho: 'a', expected a finite number, a vec"),
    ("rho: 0.02", "rho: .inf", "extra_terms.coefficients.rho: inf, expected a finite number"),
    ("rho: 0.02", "rho: .nan", "extra_terms.coefficients.rho: nan, expected a finite number"),
    ("rho: 0.02", "rho: yes", "extra_terms.coefficients.rho: True, expected a finite number"),
    ("rho: 0.02", "rho: [1, 2, 3, 4]", "coefficients.rho: [1, 2, 3, 4], expected a finite number"),
    ("rho: 0.02", "rho: [[1, 2], [3]]", "rho: [[1, 2], [3]], expected a finite number"),
    ("rho: 0.02", "rho: {a: 1}", "rho: {'a': 1}, expected a finite number"),
    ("rho: 0.02", "rho: {1: 1, 2: [1]}", "rho: {1: 1, 2: [1]}, expected a finite number"),
    ("rho: 0.02", "rho: {1: 1}", "extra_terms.coefficients.rho: no value for cell tag 2, expected o"
     "ne for each of [1, 2]"),
    ("{rho: 0.02}", "{rho: 0.02}\n  breakpoints_ms: [1, -2]", "extra_terms.breakpoints_ms: [1, -2],"
     " expected a time in ms, not negative, or a list of them"),
    ("extra_terms:", "extra_term:", "extra_term: unknown key, did you mean extra_terms?"),
    (TERMS, "extra_terms: physics.py\n", "extra_terms: 'physics.py', expected keys with values: fil"
     "e, function, coefficients, breakpoints_ms"),
    (TERMS, TERMS + "unknown: {}\n", "has unknown, so it is a run file of spinverse reconstruct"),
])
def test_bad_sections(run, old, new, message):
    assert old in SIMULATE
    said = run(SIMULATE.replace(old, new, 1), code=2)
    assert message.replace("{folder}", str(run.folder)) in said


@pytest.mark.parametrize("code, message", [
    ("def wall_relaxivity(m, v:\n", "line 1: SyntaxError: '(' was never closed"),
    ("import ufl\n\nx = ufl.nothing\n", "line 3: AttributeError: module 'ufl' has no attribute"),
    ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    ("def f():\n    raise ValueError('one\\ntwo')\nf()\n", "line 2: ValueError: one two, expected"),
    ("raise RuntimeError\n", "physics.py: line 1: RuntimeError, expected Python that runs by"),
    ("import sys\nsys.exit()\n", "line 2: SystemExit"),
    ("x = 1\n\0", "SyntaxError: source code"),
    ("", "no such function in {folder}/physics.py, which has none"),
    ("from math import sin as wall_relaxivity\n", "function: wall_relaxivity of "),
])
def test_bad_files(run, code, message):
    (run.folder / "physics.py").write_text(code)
    for more in ((), ("--dry-run",)):
        assert message.replace("{folder}", str(run.folder)) in run(SIMULATE, *more, code=2)


def test_errors_have_their_cause(run):
    """For those who call it from Python."""
    (run.folder / "run.yaml").write_text(SIMULATE.replace("wall_relaxivity", "broken"))
    section = config.read(run.folder / "run.yaml", config.SimulateConfig).extra_terms
    layers = stack()
    with pytest.raises(InputError) as caught:
        spinverse.BlochTorrey(layers, **section.arguments(layers.mesh.comm))
    assert caught.value.__cause__ is not None


# ---- unknown numbers of a reconstruction --------------------------------------------------------


RECONSTRUCT = "mesh: {file: a.npz}\nsignals: {file: s.csv}\n" + TERMS.replace(
    "{rho: 0.02}", "{rho: 0.02, shift: 0, by_tag: {1: 2.0}}")


def read(folder, text):
    (folder / "run.yaml").write_text(text)
    return config.read(folder / "run.yaml", config.ReconstructConfig)


def test_unknown_numbers(run, comm):
    found = read(run.folder, RECONSTRUCT + """unknown:
  rho: {start: 0.02, low: 0.001, high: 0.1}
  shift: {start: 0, low: -1, high: 1}
""")
    assert found.unknowns == {"rho": Unknown(0.02, 0.001, 0.1),
                              "shift": Unknown(0.0, -1.0, 1.0, "linear")}
    assert screen.describe_unknown(found.unknowns) == [
        "unknown rho: 0.001 to 0.1, start 0.02 (log scale)",
        "unknown shift: -1 to 1, start 0 (linear scale)"]
    arguments = found.extra_arguments(comm)
    assert arguments["extra_coefficients"] == {"rho": 0.02, "shift": 0.0, "by_tag": {1: 2.0}}
    assert arguments["extra_breakpoints"] == () and callable(arguments["extra_terms"])
    found = read(run.folder, RECONSTRUCT + "unknown: {rho: {start: 1, low: 1, high: 2, "
                                           "scale: linear}}\n")
    assert found.unknowns["rho"].scale == "linear"
    plain = read(run.folder, "mesh: {file: a.npz}\nsignals: {file: s.csv}\n")
    assert plain.unknowns == {} and plain.extra_arguments(comm) == {}


@pytest.mark.parametrize("section, message", [
    ("{rho: {start: 1, low: 0.1}}", "unknown.rho.high: missing, expected the largest value"),
    ("{rho: {start: 1, low: 2, high: 0.1}}", "unknown.rho: low, high: 2, 0.1, expected two finite"),
    ("{rho: {start: 1, low: 2, high: 2}}", "unknown.rho: low, high: 2, 2, expected two finite"),
    ("{rho: {start: 1, low: 2, high: .inf}}", "unknown.rho: low, high: 2, inf, expected two"),
    ("{rho: {start: 3, low: 1, high: 2}}", "unknown.rho: start: 3, expected a value from 1 to 2"),
    ("{rho: {start: 1, low: 0, high: 2, scale: log}}", "unknown.rho: low: 0, expected a positive"),
    ("{rho: {start: 1, low: 0, high: 2, scale: cube}}", "unknown.rho.scale: 'cube', expected 'lo"),
    ("{rho: {start: a, low: 0, high: 2}}", "unknown.rho.start: 'a', expected a number"),
    ("{rho: {start: 1, low: 0, hihg: 2}}", "unknown.rho.hihg: unknown key, did you mean high?"),
    ("{rho: 3}", "unknown.rho: 3, expected"),
    ("[rho]", "unknown.rho: usual, expected {start, low, high} of a coefficient"),
    ("[T2_outsde]", "unknown.T2_outsde: no coefficient of extra_terms, did you mean T2_outside?"),
    ("{roh: {start: 1, low: 0, high: 2}}", "unknown.roh: no coefficient of extra_terms, did you"),
    ("{x: {start: 1, low: 0, high: 2}}", "unknown.x: no coefficient of extra_terms, expected one of"
     " rho, shift, by_tag"),
    ("{by_tag: {start: 1, low: 0, high: 2}}", "unknown.by_tag: extra_terms.coefficients.by_tag is "
     "{1: 2.0}, expected a single number there"),
])
def test_bad_unknown_numbers(tmp_path, section, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read(tmp_path, RECONSTRUCT + f"unknown: {section}\n")
    without = RECONSTRUCT.split("extra_terms")[0]
    with pytest.raises(InputError, match="unknown"):
        read(tmp_path, without + f"unknown: {section}\n")


def test_unknown_numbers_of_the_tissue(tmp_path):
    """Names alone have usual ranges; what is said to be known is not unknown as well."""
    plain = RECONSTRUCT.split("extra_terms")[0]
    found = read(tmp_path, plain + "tissue: {diffusivity_um2_per_ms: 2.4, "
                 "wall_permeability_m_per_s: 2.0e-5}\nunknown: [diffusivity_inside]\n")
    assert found.unknowns == {"diffusivity_inside": Unknown(1.5, 0.2, 3.5)}
    assert found.tissue.wall_permeability == pytest.approx(0.02)
    assert screen.describe_unknown(found.unknowns) == [
        "unknown diffusivity_inside of each cell: 0.2 to 3.5 um^2/ms, start 1.5 (log scale)"]
    found = read(tmp_path, plain + "unknown: {T2: usual, diffusivity: {start: 2, low: 1, high: 3, "
                 "deviation: 0.1}}\n")
    assert found.unknowns["diffusivity"].deviation == 0.1 and found.unknowns["T2"].start == 60
    found = read(tmp_path, plain + "unknown: [scale, noise, density_ratio]\n")
    assert screen.describe_unknown(found.unknowns) == [
        "unknown scale: one factor of all signals, the one that fits best",
        "unknown noise: estimated before the search, less where a solution leaves less",
        "unknown density_ratio of each cell: 0.2 to 5, start 1 (log scale)"]
    noisy = plain.replace("signals: {", "signals: {noise: 0.02, ")
    assert noisy != plain and read(tmp_path, plain.replace("signals: {", "signals: {"
                                                           "noise: unknown, "))
    with pytest.raises(InputError, match="unknown.noise: signals.noise is there as well"):
        read(tmp_path, noisy + "unknown: [noise]\n")
    for text, message in (
            ("tissue: {T2_ms: 40}\nunknown: [T2]", "unknown.T2: tissue.T2_ms is there as well"),
            ("tissue: {wall_permeability_um_per_ms: 1, wall_permeability_m_per_s: 1}",
             "are both there, expected one of them")):
        with pytest.raises(InputError, match=message):
            read(tmp_path, plain + text + "\n")


@pytest.mark.parametrize("arguments", [
    (1, 2, 1), (1, 1, 1), (3, 1, 2), (0, 1, 2), (1, 0, 2), (1, -np.inf, 2, "linear"),
    (1, 0.1, np.inf), (np.nan, 1, 2), (1, np.nan, 2), (1, 0.1, 2, "lin")])
def test_unknown_refuses(arguments):
    with pytest.raises(InputError, match="expected"):
        Unknown(*arguments)


# ---- anything at all ----------------------------------------------------------------------------


PIECES = [None, True, 0, -1, 3, 0.02, 1e308, 10**400, float("inf"), float("nan"), "", "rho", "a.py",
          "physics.py", ".", "\0", "é", "1e-3", [], {}, [0.1, 0.2, 0.3], [[1, 2], [3, 4]], [[]],
          [None], {1: 0.5, 2: 0.7}, {1: [1, 0]}, {None: 1}, {"rho": 0.1}, {"rho": {"start": 1}},
          {"rho": {"start": 1, "low": 0.5, "high": 2}}, [1, [2]], {1: {2: 3}}, "log", -0.0]


def anything(chance: random.Random, depth: int = 0):
    if depth > 2 or chance.random() < 0.7:
        return chance.choice(PIECES)
    if chance.random() < 0.5:
        return [anything(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(["rho", "start", "low", "scale", 1, 2, True, ""]):
            anything(chance, depth + 1) for _ in range(chance.randrange(4))}


def mutated(chance: random.Random) -> dict:
    """Sections of a run file of which some values are anything."""
    section: dict = {"file": "physics.py", "function": "wall_relaxivity",
                     "coefficients": {"rho": 0.02}, "breakpoints_ms": [1, 2]}
    unknown: dict = {"rho": {"start": 0.02, "low": 0.001, "high": 0.1}}
    for _ in range(chance.randrange(3)):
        place = chance.choice([section, section, section["coefficients"], unknown]) \
            if isinstance(section["coefficients"], dict) else section
        place[chance.choice([*place, *place, "rho", "other", 7])] = anything(chance)
    data = {"extra_terms": section, "unknown": unknown}
    if chance.random() < 0.1:
        data[chance.choice(["extra_terms", "unknown"])] = anything(chance)
    return data


def test_any_section_is_read_or_refused_in_a_line(run, comm):
    chance, read_well = random.Random(5), 0
    for _ in range(1500):
        data = mutated(chance)
        try:
            text = yaml.safe_dump({"mesh": {"file": "a.npz"}, "signals": {"file": "s.csv"}, **data})
            found = read(run.folder, text)
            assert all(isinstance(each, Unknown) for each in found.unknowns.values())
            screen.describe_extra_terms(found.extra_terms)
            arguments = found.extra_arguments(comm)
        except InputError as error:
            assert "\n" not in str(error), data
            assert re.match(r".*(extra_terms|unknown|not YAML)", str(error)), data
            assert "expected" in str(error) or "did you mean" in str(error) or \
                "not YAML" in str(error), (data, error)
            continue
        read_well += 1
        for value in arguments.get("extra_coefficients", {}).values():
            for each in value.values() if isinstance(value, dict) else [value]:
                assert np.isfinite(np.array(each, dtype=float)).all()
    assert 300 < read_well < 1300


# ---- docs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["new_physics.md", "run_files.md"])
def test_the_run_file_of_the_docs(run, page):
    """With the function that new_physics.md has for it."""
    text = (ROOT / "docs" / page).read_text()
    section = next(block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
                   if block.startswith("extra_terms:"))
    code = re.search(r"def relaxing_wall.*?\n\n", (ROOT / "docs" / "new_physics.md").read_text(),
                     re.DOTALL)[0]
    (run.folder / "physics.py").write_text("import ufl\n\n\n" + code)
    assert "function relaxing_wall of " in run(STACK + TISSUE + PGSE + section)
