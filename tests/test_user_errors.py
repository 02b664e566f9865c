"""What people do wrong: one clear line, the exit code of the contract, and nothing half-written."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import yaml
from mpi import clean_environment

from spinverse import __version__, cli, config
from spinverse.acquisition import write_fsl
from spinverse.acquisition.io import read_signals
from spinverse.acquisition.table import Acquisition
from spinverse.inversion.verdict import NOT_EXPLAINED
from spinverse.mesh import Ball, MeshData, UnitWarning, tagged_grid, write_npz
from spinverse.report import folder

SIMULATE = """version: 1
mesh: {file: ball.npz}
tissue:
  diffusivity_um2_per_ms: 2.0
  T2_ms: 80
  boundary: absorbing
  permeability: {membrane_m_per_s: 1.0e-5, elsewhere_m_per_s: 0.1, outer_m_per_s: 0.1}
acquisition:
  pgse: {b_s_per_mm2: [0, 2000], directions: 3, delta_ms: 5, Delta_ms: 10}
modes: 40
"""
RECONSTRUCT = """version: 1
mesh: {file: ball.npz}
tissue: {boundary: absorbing, T2_ms: 80}
signals: {file: target/signals.csv}
stages: [{name: all, iterations: 4}]
modes: 40
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a mesh and its signals, for all tests."""
    place = tmp_path_factory.mktemp("errors")
    write_npz(place / "ball.npz", tagged_grid(Ball(7.0), length=20.0, cells=2))
    (place / "simulate.yaml").write_text(SIMULATE)
    assert cli.main(["simulate", str(place / "simulate.yaml"), "-o", str(place / "target"),
                     "-q"]) == 0
    return place


@pytest.fixture
def place(made, tmp_path):
    """A copy of it."""
    (tmp_path / "ball.npz").write_bytes((made / "ball.npz").read_bytes())
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "signals.csv").write_bytes(
        (made / "target" / "signals.csv").read_bytes())
    return tmp_path


def command(place, capsys, text, *more, out=None):
    """Run a text as the run file of its command: exit code, what it said, lines of errors."""
    name = "reconstruct" if "signals:" in text else "simulate"
    (place / "run.yaml").write_text(text)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    where = ["--dry-run"] if out is None else ["-o", str(out)]
    code = cli.main([name, str(place / "run.yaml"), *where, *more])
    said = capsys.readouterr()
    if code == 2:
        assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
        *warned, error = said.err.splitlines()
        assert error.startswith("spinverse: ") and not error.startswith("spinverse: warning: ")
        assert all(line.startswith("spinverse: warning: ") for line in warned)
    return code, said.out, said.err.splitlines()


# ---- values off by a factor of 1000: warned of, not refused -------------------------------------

@pytest.mark.parametrize("text", [SIMULATE, RECONSTRUCT])
def test_usual_values_are_not_warned_of(place, capsys, text):
    code, said, errors = command(place, capsys, text)
    assert code == 0 and not errors and "dry run: nothing was" in said


@pytest.mark.parametrize("old, new, message", [
    ("ms: 2.0", "ms: 2.0e-9", "2e-09 um^2/ms is 2e-18 m^2/s; water has 2 to 3 um^2/ms (given in "
                              "m^2/s? then it would be 2 here)"),
    ("ms: 2.0", "ms: 0.002", "(given in mm^2/s? then it would be 2 here)"),
    ("ms: 2.0", "ms: {1: 2000, 2: 2000}", "2000 um^2/ms is 2e-06 m^2/s; water has 2 to 3 um^2/ms "
                                          "(given in um^2/s?"),
    ("T2_ms: 80", "T2_ms: 0.08", "T2_ms: 0.08 ms is 8e-05 s; tissue has 10 to 3000 ms (given in "
                                 "s? then it would be 80 here)"),
    ("T2_ms: 80", "T2_ms: 80000", "(given in us? then it would be 80 here)"),
    ("[0, 2000]", "[0, 2.0e+9]", "b is 2e+09 s/mm^2, that is 2e+15 s/m^2: more than scanners reach "
                                 "(given in s/m^2? then it would be 2000 here)"),
    ("[0, 2000]", "[0, 2]", "no signal falls by more than 1 or 2 % (given in ms/um^2? then it "
                            "would be 2000 here)"),
    ("delta_ms: 5, Delta_ms: 10", "delta_ms: 0.005, Delta_ms: 0.01",
     "PGSE with TE 0.015 ms, that is 1.5e-05 s (given in s? then it would be 15 here)"),
    ("delta_ms: 5, Delta_ms: 10", "delta_ms: 5000, Delta_ms: 10000",
     "TE 15000 ms, that is 15 s (given in us? then it would be 15 here)"),
    ("delta_ms: 5", "delta_ms: 0.005", "T/m, more than magnets have (a pulse length in s?)"),
    ("1.0e-5", "0.01", "membrane_m_per_s: 10 um/ms is 0.01 m/s; membranes of cells have 1e-7 to "
                       "1e-3 m/s (given in um/ms? then it would be 0.01 here)"),
    ("membrane_m_per_s: 1.0e-5", "membrane_um_per_ms: 1.0e-5",
     "(given in m/s? then it would be 0.01 here)"),
])
def test_another_unit_is_warned_of(place, capsys, old, new, message):
    assert old in SIMULATE
    code, _, errors = command(place, capsys, SIMULATE.replace(old, new))
    assert code == 0 and len(errors) == 1, errors
    assert errors[0].startswith("spinverse: warning: ") and message in errors[0]


@pytest.mark.parametrize("factor, message", [
    (1e-6, "box diagonal is 3.46e-05 um, expected 0.1 to 100000 um (mesh in metres or millimet"),
    (1e-3, "box diagonal is 0.0346 um"),
    (1e3, "mesh: edges of 8.66e+03 um, that is 0.00866 m, where magnetisation diffuses 7.75 um in "
          "15 ms (a mesh in nm?)"),
])
def test_a_mesh_in_another_unit_is_warned_of(place, capsys, factor, message):
    data = tagged_grid(Ball(7.0), length=20.0, cells=2)
    write_npz(place / "ball.npz", MeshData(data.points * factor, data.cells, data.cell_tags,
                                           data.interface_facets, data.interface_tags))
    code, _, errors = command(place, capsys, SIMULATE)
    assert code == 0 and len(errors) == 1 and message in errors[0], errors


def test_signals_of_a_mesh_in_another_unit_do_not_fit(place, capsys):
    data = tagged_grid(Ball(7.0), length=20.0, cells=2)
    write_npz(place / "ball.npz", MeshData(data.points * 1e-3, data.cells, data.cell_tags))
    code, _, errors = command(place, capsys, RECONSTRUCT)
    assert code == 2 and "but the mesh holds 8e-06 um^3 times density" in errors[-1]
    # what was known before the error came helps to find its cause
    assert len(errors) == 2 and "warning: mesh 'ball.npz': box diagonal is 0.0346 um" in errors[0]


# ---- the run file -------------------------------------------------------------------------------

@pytest.mark.parametrize("old, new, message", [
    ("version: 1", "version: 0", "version: 0, of an older spinverse; expected 1, as spinverse "
                                 f"{__version__} reads (spinverse config --example prints such"),
    ("version: 1", "version: 2\nstagings: 3", "version: 2, of a newer spinverse; expected 1"),
    ("version: 1", "version: one", "version: 'one', expected a whole number: 1 in spinverse"),
    ("modes:", "mode:", "mode: unknown key, did you mean modes?"),
    ("1.0e-5", "-1.0e-5", "tissue: permeability: -0.01 um/ms"),
    ("elsewhere_m_per_s: 0.1", "elsewhere_m_per_s: -0.1", "tissue: permeability: -100 um/ms"),
    ("outer_m_per_s: 0.1", "outer_m_per_s: -0.1", "permeability.outer_m_per_s: -100 with boundary"),
    ("[0, 2000]", "[0, -2000]", "acquisition.pgse: b"),
    ("directions: 3", "directions: [[1, 1, 0]]", "has length 1.41421356, expected a unit vector"),
    ("ball.npz", "cell.npz", "cell.npz': no such file, expected a mesh"),
])
def test_a_wrong_run_file(place, capsys, old, new, message):
    assert old in SIMULATE
    code, _, errors = command(place, capsys, SIMULATE.replace(old, new), out=place / "out")
    assert code == 2 and message in errors[0], errors


def test_the_file_of_another_command(place, capsys):
    (place / "mine.yaml").write_text(RECONSTRUCT)
    assert cli.main(["simulate", str(place / "mine.yaml"), "--dry-run"]) == 2
    assert "mine.yaml: has signals, so it is a run file of spinverse reconstruct" in \
        capsys.readouterr().err
    (place / "mine.yaml").write_text(SIMULATE + "quantities: [adc]\n")
    assert cli.main(["reconstruct", str(place / "mine.yaml"), "--dry-run"]) == 2
    assert "is a run file of spinverse simulate" in capsys.readouterr().err


def test_gauss_newton_without_its_jacobian(place, capsys):
    text = RECONSTRUCT.replace("iterations: 4", "optimiser: {gauss_newton: {}}")
    code, _, errors = command(place, capsys, text + "engine: time_stepping\n", out=place / "out")
    assert code == 2 and "stage 'all': optimiser gauss_newton with engine time_stepping, exp" in \
        errors[0]


def test_yaml_is_read_as_in_run_files():
    assert yaml.load("a: 1e-5", config.reading.Loader) == {"a": 1e-5}
    assert config.VERSION == config.SimulateConfig.model_fields["version"].default


# ---- signals and their directions ---------------------------------------------------------------

def with_cell(place, row: int, column: str, value: str) -> None:
    """Write a value into a column of the table of signals."""
    path = place / "target" / "signals.csv"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    cells = lines[1 + row].split(",")
    cells[lines[0].split(",").index(column)] = value
    lines[1 + row] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("value", ["nan", "inf", "", "n/a"])
def test_signals_that_are_no_numbers(place, capsys, value):
    with_cell(place, 4, "re", value)
    code, _, errors = command(place, capsys, RECONSTRUCT, out=place / "out")
    assert code == 2 and "signals.csv: row 4" in errors[0] and "column re" in errors[0], errors


def test_signals_without_b_0(place, capsys):
    for row in range(3):
        with_cell(place, row, "b", "100")
    code, _, errors = command(place, capsys, RECONSTRUCT, out=place / "out")
    assert code == 2 and "signals.csv: " in errors[0] and "b = 0" in errors[0], errors


def test_signals_without_a_signal_at_b_0(place, capsys):
    for row in range(3):
        with_cell(place, row, "re", "0")
        with_cell(place, row, "im", "0")
    code, _, errors = command(place, capsys, RECONSTRUCT, out=place / "out")
    assert code == 2 and "has zero signal at b = 0" in errors[0], errors


BVECS = {
    "two lines": ("0 1 0\n0 0 1\n", "2 x 3 numbers, expected 3 x 3 or 3 x 3 as there are 3 b-v"),
    "too many": ("0 1 0 1\n0 0 1 0\n0 0 0 0\n", "3 x 4 numbers, expected"),
    "ragged": ("0 1 0\n0 0\n0 0 0\n", "lines of different length, expected 3 x N or N x 3"),
    "long": ("0 2 0\n0 0 1\n0 0 0\n", "row 1 has b = 1000 and a direction of length 2, expected a"),
    "none": ("0 nan 0\n0 nan 1\n0 nan 0\n", "row 1 has b = 1000 and a direction of length 0"),
    "words": ("0 x 0\n0 0 1\n0 0 0\n", "'x' is not a number"),
    "empty": ("", "the file is empty"),
}


@pytest.mark.parametrize("name", BVECS)
def test_directions_that_do_not_fit(place, capsys, name):
    text, message = BVECS[name]
    write_fsl(place / "dwi.bval", place / "dwi.bvec",
              Acquisition.pgse([0], 1, 5, 20))
    (place / "dwi.bval").write_text("0 1000 1000\n")
    (place / "dwi.bvec").write_text(text)
    table = SIMULATE[: SIMULATE.index("acquisition")] + \
        "acquisition: {file: dwi.bval, delta_ms: 5, Delta_ms: 20}\nmodes: 40\n"
    code, _, errors = command(place, capsys, table, out=place / "out")
    assert code == 2 and "dwi.bvec: " in errors[0] and message in errors[0], errors


# ---- meshes -------------------------------------------------------------------------------------

def two_grids(gap: float) -> MeshData:
    one = tagged_grid(Ball(4.0), length=10.0, cells=2)
    return MeshData(np.vstack([one.points, one.points + [10.0 + gap, 0, 0]]),
                    np.vstack([one.cells, one.cells + len(one.points)]), name="two")


ONLY_D = SIMULATE.replace("{membrane_m_per_s: 1.0e-5, elsewhere_m_per_s: 0.1, outer_m_per_s: 0.1}",
                          "{elsewhere_m_per_s: 0.1, outer_m_per_s: 0.1}")


def test_a_mesh_of_two_parts(place, capsys):
    write_npz(place / "ball.npz", two_grids(5.0))
    code, _, errors = command(place, capsys, ONLY_D)
    assert code == 0 and len(errors) == 1
    assert "mesh: 2 parts that share no facet, of 1000, 1000 um^3: nothing passes" in errors[0]


def test_a_mesh_whose_parts_touch_without_sharing_vertices(place, capsys):
    write_npz(place / "ball.npz", two_grids(0.0))
    code, _, errors = command(place, capsys, ONLY_D)
    assert code == 2 and "coincide at" in errors[0], errors


MSH = """$MeshFormat
2.2 0 8
$EndMeshFormat
$Nodes
4
1 0 0 0
2 5 0 0
3 0 5 0
4 0 0 5
$EndNodes
$Elements
4
1 2 2 1 1 1 2 3
2 2 2 1 1 1 2 4
3 2 2 1 1 1 3 4
4 2 2 1 1 2 3 4
$EndElements
"""


@pytest.mark.parametrize("text, message", [
    (MSH, "holds no tetrahedra (it holds triangle), expected some of order 1 or 2"),
    (MSH.replace("1 2 2 1 1 1 2 3", "1 15 2 1 1 1").split("2 2 2 1 1 1 2 4")[0]
     .replace("$Elements\n4", "$Elements\n1") + "$EndElements\n", "holds no tetrahedra (it holds"),
    (MSH[:60], "cannot be read as gmsh .msh"),
    ("", "cannot be read as gmsh .msh"),
])
def test_a_gmsh_mesh_without_volume(place, capsys, text, message):
    (place / "cell.msh").write_text(text)
    code, _, errors = command(place, capsys, SIMULATE.replace("ball.npz", "cell.msh"))
    assert code == 2 and message in errors[0], errors


# ---- places that cannot be written to -----------------------------------------------------------

@pytest.mark.parametrize("text", [SIMULATE, RECONSTRUCT])
@pytest.mark.parametrize("out", ["ball.npz/run", "ball.npz", "/proc/run"])
def test_a_place_that_cannot_be_written_to(place, capsys, text, out):
    code, _, errors = command(place, capsys, text, out=place / out)  # an absolute one stands alone
    assert code == 2 and "-o " in errors[0] and ("is a file" in errors[0]
                                                 or "cannot be written to" in errors[0]), errors


# MPI and PETSc are there before: what they need in memory counts as files
LIMITED = """
import resource, sys
from spinverse import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(cli.main(sys.argv[2:]))
"""


def limited(place, size: int, *arguments):
    """The command, where no file can grow larger than ``size``, as on a disk that is full."""
    return subprocess.run([sys.executable, "-c", LIMITED, str(size), *arguments], cwd=place,
                          env=clean_environment(), capture_output=True, text=True)


def test_a_full_disk_while_simulating(place):
    (place / "simulate.yaml").write_text(SIMULATE)
    before = sorted(place.rglob("*"))
    ended = limited(place, 1000, "simulate", "simulate.yaml", "-o", "deep/out", "-q")
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.startswith("spinverse: cannot write: ") and ended.stderr.count("\n") == 1
    assert sorted(place.rglob("*")) == before


def test_a_full_disk_while_reconstructing(place, monkeypatch):
    """The checkpoint before the disk was full is gone on with."""
    (place / "reconstruct.yaml").write_text(RECONSTRUCT + "checkpoint: {every_iterations: 1}\n")
    sizes, save = [], folder.save_checkpoint

    def measured(out, *args):
        save(out, *args)
        sizes.append((out / folder.CHECKPOINT).stat().st_size)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "save_checkpoint", measured)
        assert cli.main(["reconstruct", str(place / "reconstruct.yaml"), "-o",
                         str(place / "whole"), "-q"]) == NOT_EXPLAINED  # of four iterations
    assert sizes[0] < sizes[1] < sizes[2]  # gradients are added
    ask = "reconstruct", "reconstruct.yaml", "-o", "out", "-q"
    ended = limited(place, sizes[2] - 1, *ask)
    assert ended.returncode == 1 and "cannot write: " in ended.stderr, ended.stderr
    assert ended.stderr.count("\n") == 1
    found = folder.load_checkpoint(place / "out", ["all"], {})
    assert found.iteration == 2 and not found.note
    assert not [path for path in (place / "out").rglob(".*")]
    ended = limited(place, 10**8, *ask, "--resume")
    assert ended.returncode == NOT_EXPLAINED, ended.stderr
    with np.load(place / "out" / "permeability.npz") as ours, \
            np.load(place / "whole" / "permeability.npz") as whole:
        np.testing.assert_allclose(ours["permeability"], whole["permeability"], rtol=1e-12)


def test_a_row_of_the_history_that_was_cut_short(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("stage,iteration,loss,seconds\na,0,1.5,0.1\na,1,1.2\n")
    assert folder.read_history(path) == [{"stage": "a", "iteration": 0, "loss": 1.5,
                                          "seconds": 0.1}]


def test_signals_are_as_they_were(made):
    """What the other tests stand on."""
    assert len(read_signals(made / "target" / "signals.csv")) == 6


def test_warnings_point_at_the_line_that_asked():
    points = 1e6 * np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9.0]])
    with pytest.warns(UnitWarning) as found:
        MeshData(points, np.array([[0, 1, 2, 3]])).check()
    assert {warning.filename for warning in found} == {__file__}
