"""Neurons from SWC files, and surfaces as reconstructions of neurons have them."""

import numpy as np
import pytest
import trimesh

from spinverse import InputError, cli
from spinverse.mesh.checks import RepairWarning, cell_volumes
from spinverse.mesh.morphology import neuron_surface, read_swc
from spinverse.mesh.repair import repair_with_defects
from spinverse.mesh.surfaces import Surface, defects
from spinverse.mesh.tetrahedralise import from_surface

NEURON = """# a soma of three points, a dendrite that branches, an axon
 1 1 0 0 0 5 -1
2 1 0 5 0 5 1
3 1 0 -5 0 5 1
9 3 5 0 0 1 1
5 3 15 0 0 1 9
6 3 25 6 0 0.8 5
7 3 25 -6 0 0.05 5
8 2 -10 0 0 0.5 1
"""


@pytest.fixture
def write(tmp_path):
    def to(text, name="neuron.swc"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to


def test_points_come_after_their_parents(write):
    table = read_swc(write("3 3 2 0 0 1 2\n2 3 1 0 0 1 1\n1 1 0 0 0 1 -1\n"))
    assert table[:, 2].tolist() == [0, 1, 2] and table[:, 6].tolist() == [-1, 0, 1]


def test_volumes_are_those_of_balls_and_round_cones(write):
    ball = neuron_surface(write("1 1 1 2 3 4 -1"), segments=48)
    assert ball.volume == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.02)
    rod = neuron_surface(write("1 3 0 0 0 1 -1\n2 3 10 0 0 1 1"), segments=48)
    assert rod.volume == pytest.approx(10 * np.pi + 4 / 3 * np.pi, rel=0.02)
    # another unit, and no thinner than the floor
    thin = neuron_surface(write("1 3 0 0 0 1 -1\n2 3 10000 0 0 1 1"), scale=1e-3, segments=48)
    assert thin.volume == pytest.approx((10 + 4 / 3 * 0.2) * np.pi * 0.2**2, rel=0.02)


def test_a_branching_neuron_is_one_closed_surface_and_becomes_a_mesh(write):
    surface = neuron_surface(write(NEURON), segments=16)
    assert np.ptp(surface.points[:, 1]) < 14  # points that say the soma's size are no process
    assert surface.points[:, 0].min() > -5.5  # nor is there an axon
    assert not [text for text in defects(surface) if "no area" not in text]
    with_axon = neuron_surface(write(NEURON), kinds=(1, 2, 3), segments=16)
    assert with_axon.points[:, 0].min() < -10
    data = from_surface(surface, size=3.0)
    assert cell_volumes(data.points, data.cells).sum() == pytest.approx(surface.volume, rel=0.02)


@pytest.mark.parametrize("text, said", [
    ("", "0 points"),
    ("1 1 0 0 0", "expected rows of number, kind"),
    ("1 1 0 0 0 0 -1", "point 1 has radius 0, expected a positive one"),
    ("1 1 0 0 0 1 -1\n1 3 1 0 0 1 1", "numbers occur twice"),
    ("1 1 0 0 0 1 -1\n2 3 1 0 0 1 7", "point 2 has parent 7, expected the number of a point"),
    ("1 1 0 0 0 1 2\n2 3 1 0 0 1 1", "parents go round in a circle"),
    ("1 2 0 0 0 1 -1", "no points of kinds 1, 3, 4, expected some of 2"),
    ("1 3 0 0 0 1 -1\n2 3 50 0 0 1 -1", "fall into 2 parts")])
def test_what_is_no_neuron_is_refused(write, text, said):
    with pytest.raises(InputError, match=said):
        neuron_surface(write(text))


def test_a_run_file_takes_a_neuron(write, tmp_path):
    write(NEURON)
    (tmp_path / "run.yaml").write_text("""
mesh: {surface: neuron.swc, size_um: 4}
tissue: {boundary: reflecting}
acquisition: {pgse: {b_s_per_mm2: [0, 500], directions: 1, delta_ms: 5, Delta_ms: 10}}
""")
    assert cli.main(["simulate", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "out"),
                     "--dry-run"]) == 0


def test_surfaces_that_cut_themselves_are_mended():
    pytest.importorskip("pymeshfix")
    ball = trimesh.creation.icosphere(3, 5.0)
    points, triangles = ball.vertices * [1, 1, 0.1], np.array(ball.faces)
    points[points[:, 2].argmax()] = 0.2, 0.13, -0.65  # through the other side
    far = np.argsort(np.linalg.norm(points - points[100], axis=1))
    near = [k for k in far[10:40] if not (triangles == k)[(triangles == 100).any(axis=1)].any()]
    triangles = np.where(triangles == near[0], 100, triangles)  # edges get crowded
    bad = Surface(points, triangles, "bad")
    assert [text for text in defects(bad) if "cut each other" in text]
    with pytest.warns(RepairWarning, match="by MeshFix: .* cut each other"):
        mended, left = repair_with_defects(bad)
    assert not left and not defects(mended)
    assert mended.volume == pytest.approx(0.1 * ball.volume, rel=0.03)
