"""Every demo runs at its small size and leaves what it promises; meshes/ is what its table says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import mpi
import pytest

from spinverse.mesh import checks, readers
from spinverse.mesh.checks import cell_volumes, facets_of

DEMOS = Path(__file__).resolve().parent.parent / "demos"

# what each leaves in results/, and what it needs beside the package
FILES = {
    "forward_and_validation": (["signals.png"], []),
    "own_geometry": (["capsule.npz", "two_cells.npz", "cylinders.msh", "labels.csv", "signals.png"],
                     ["gmsh", "trimesh"]),
    "reconstruction": (["permeability.npz", "permeability.vtu", "interface.stl",
                        "reconstruction.png"], []),
    "noise_and_uncertainty": (["uncertainty.png"], []),
    "real_data": (["voxel.png"], ["dipy", "nibabel", "gmsh"]),
    "cluster": (["ranks_1.npz"], []),
    "exchange_models": (["exchange_models.csv", "exchange_models.png"],
                        ["graymatter_swissknife"]),
}


def test_all_demos_are_known():
    """A demo without a test here or in the tests of new physics would be forgotten."""
    scripts = {path.stem for path in DEMOS.glob("*.py") if not path.stem.startswith("physics_")}
    assert scripts - {"make_neuron"} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_header(name):
    """The first cell has goal, cores, minutes and what to expect, for a reader of the notebook."""
    text = (DEMOS / f"{name}.py").read_text()
    first = text.split("# %%")[1]
    assert first.startswith(" [markdown]\n# # ")
    for word in ("Goal", "Cores", "Minutes", "Expected output"):
        assert re.search(rf"^# - \*\*{word}\*\*: \S", first, re.MULTILINE), word


@pytest.mark.parametrize("name", FILES)
def test_is_a_notebook(name):
    jupytext = pytest.importorskip("jupytext")
    notebook = jupytext.read(DEMOS / f"{name}.py", fmt="py:percent")
    kinds = {cell.cell_type for cell in notebook.cells}
    assert kinds == {"markdown", "code"}


@pytest.mark.parametrize("name", FILES)
def test_runs(name, tmp_path):
    files, needs = FILES[name]
    for package in needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    if importlib.util.find_spec("matplotlib") is None:
        files = [file for file in files if not file.endswith(".png")]
    run(1, name, tmp_path)
    left = tmp_path / "results" / name
    assert [file for file in files if not (left / file).stat().st_size] == []


def test_cluster_on_two_ranks(tmp_path):
    """The demo itself compares with the file that one rank left."""
    run(1, "cluster", tmp_path)
    said = run(2, "cluster", tmp_path)
    assert re.search(r"gradient: \S+ from ranks_1.npz", said)


def run(ranks: int, name: str, folder: Path) -> str:
    return mpi.run_mpi(ranks, DEMOS / f"{name}.py", cwd=folder,
                       env={"SPINVERSE_DEMO_SIZE": "small", "MPLBACKEND": "agg"})


def mesh_rows() -> dict[str, list[str]]:
    """Rows of the table in meshes/README.md by the file that is read."""
    text = (DEMOS.parent / "meshes" / "README.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {re.findall("`([^`]+)`", row[0])[0]: row for row in rows}


def test_meshes_are_what_their_table_says():
    rows = mesh_rows()
    folder = DEMOS.parent / "meshes"
    files = {path.name for path in folder.iterdir() if path.suffix in (".npz", ".msh", ".node")}
    assert files == set(rows)
    for name, row in rows.items():
        data = readers.read(folder / name)
        _, pairs = facets_of(data.cells)
        inside = data.cell_tags == 1
        volume = cell_volumes(data.points, data.cells)[inside].sum()
        cells, vertices, facets, within, interface, quality = row[2:]
        assert [int(cells), int(vertices)] == [len(data.cells), len(data.points)], name
        assert facets == f"{len(pairs)} ({(pairs[:, 1] < 0).sum()})", name
        assert int(within.split(",")[0]) == inside.sum(), name
        assert float(within.split()[1]) == pytest.approx(volume, rel=1e-3), name
        assert int(interface) == len(data.interface_facets), name
        assert float(quality) == pytest.approx(checks.quality(data).min(), abs=6e-3), name
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < 2e6
