"""Builders and shapes: volumes, tags, interfaces, quality, bad arguments."""

import builtins
import subprocess
import sys
from math import pi

import numpy as np
import pytest
from built import check_interfaces, held
from mpi import GUARD

from spinverse.errors import InputError, SolverError
from spinverse.mesh import builders
from spinverse.mesh.builders import box, cylinders, slabs, sphere_in_box, spheres, tagged_grid
from spinverse.mesh.checks import cell_volumes, facets_of, quality
from spinverse.mesh.shapes import Ball, BentTube, Cylinder, Torus


@pytest.fixture
def gmsh():
    return pytest.importorskip("gmsh", exc_type=ImportError)


def edge_degrees(triples) -> np.ndarray:
    edges = triples[:, [[0, 1], [0, 2], [1, 2]]].reshape(-1, 2)
    return np.unique(edges, axis=0, return_counts=True)[1]


def test_box_structured():
    data = box((2, 3, 4), cells=(2, 3, 5), centre=(1, 2, 3))
    assert len(data.cells) == 6 * 30 and len(data.points) == 3 * 4 * 6
    np.testing.assert_allclose([data.points.min(0), data.points.max(0)], [[0, .5, 1], [2, 3.5, 5]])
    np.testing.assert_allclose(cell_volumes(data.points, data.cells), 24 / 180)


def test_box_unstructured(gmsh):
    data = box((10, 8, 6), size=2.5, centre=(0, 0, 1))
    np.testing.assert_allclose(held(data), [480])
    np.testing.assert_allclose(data.points[:, 2].max(), 4)
    assert quality(data).min() > 0.2


@pytest.mark.parametrize("how", [{"cells_per_layer": [2, 1, 3]}, {"size": 1.0}])
def test_slabs(how):
    data = slabs([2, 1, 3], width=0.5, **how)
    assert len(data.cells) == 36 and len(data.interface_facets) == 4
    np.testing.assert_allclose(held(data), [0.5, 0.25, 0.75])
    check_interfaces(data)
    x = data.points[data.interface_facets][:, :, 0]
    np.testing.assert_allclose(x[data.interface_tags == 1], -1)
    np.testing.assert_allclose(x[data.interface_tags == 2], 0, atol=1e-12)


def test_slabs_across_and_single():
    assert len(slabs([1, 1], 2, cells_across=3).cells) == 6 * 4 * 9
    assert len(slabs([5], 4).interface_facets) == 0


@pytest.mark.parametrize("centre", [(0, 0, 0), (1.5, -1, 0.5)])
def test_sphere_in_box(gmsh, centre):
    data = sphere_in_box(5, (16, 16, 18), 4, size_interface=2, centre=centre)
    ball = 4 / 3 * pi * 125
    np.testing.assert_allclose(held(data), [ball, 16 * 16 * 18 - ball], rtol=1e-10)
    check_interfaces(data)
    assert (edge_degrees(data.interface_facets) == 2).all()
    radii = np.linalg.norm(data.points[data.interface_facets] - centre, axis=2)
    assert np.ptp(radii) < 1e-8 and 5 < radii.min() < 5.4
    assert quality(data).min() > 0.15
    coarse = sphere_in_box(5, (16, 16, 18), 4, centre=centre)
    assert len(coarse.interface_facets) < len(data.interface_facets) / 2


def test_spheres(gmsh):
    data = spheres([3, 4, 6], 2, centre=(1, 2, 3))
    exact = np.diff(4 / 3 * pi * np.array([0, 3, 4, 6.0])**3)
    np.testing.assert_allclose(held(data), exact, rtol=1e-10)
    check_interfaces(data)
    assert set(data.interface_tags) == {1, 2} and quality(data).min() > 0.1
    assert len(spheres([3], 2).interface_facets) == 0


def test_unmatched_volume_converges_at_second_order(gmsh):
    """Without matching a faceted ball lacks volume in proportion to size squared."""
    ball = 4 / 3 * pi * 27
    lacking = [1 - held(spheres([3], h, match_volume=False))[0] / ball for h in (2, 1)]
    assert 0 < lacking[1] < lacking[0] / 2.5


@pytest.mark.parametrize("size", [2.0, 4.0, 6.0])
def test_size_is_met(gmsh, size):
    """Also above a tenth of the diagonal, where gmsh would take its own."""
    data = box((12, 12, 12), size=size)
    facets, pairs = facets_of(data.cells)
    area = 6 * 144 / (pairs[:, 1] < 0).sum()
    assert 0.6 < np.sqrt(area * 4 / 3**0.5) / size < 1.2


def test_cylinders(gmsh):
    data = cylinders([3, 4, 6], 2.0, 1.5, layers=2)
    exact = np.diff(2 * pi * np.array([0, 3, 4, 6.0])**2)
    np.testing.assert_allclose(held(data), exact, rtol=1e-10)
    check_interfaces(data)
    np.testing.assert_allclose(np.unique(data.points[:, 2].round(12)), [-1, 0, 1])
    assert quality(data).min() > 0.15


@pytest.mark.parametrize("pattern", ["bcc", "kuhn", "gmsh"])
@pytest.mark.parametrize("shape", [Ball(5), Cylinder(4), Ball(1000)])
def test_tagged_grid(pattern, shape, request):
    if pattern == "gmsh":
        request.getfixturevalue("gmsh")
    data = tagged_grid(shape, 16, cells=4, pattern=pattern)
    np.testing.assert_allclose(cell_volumes(data.points, data.cells).sum(), 16**3)
    inside = shape.contains(data.points[data.cells].mean(axis=1))
    assert (data.cell_tags == np.where(inside, 1, 2)).all()
    facets, pairs = facets_of(data.cells)
    expected = [f for f, (a, b) in zip(facets.tolist(), pairs, strict=True)
                if inside[a] != (b >= 0 and inside[b])]
    assert data.interface_facets.tolist() == expected
    assert (edge_degrees(data.interface_facets) % 2 == 0).all()
    assert quality(data).min() > 0.2


def test_bcc_counts():
    """4 tets around each square that two cubes share, 2 on each outer square."""
    for n in (1, 2, 4):
        data = tagged_grid(Ball(100), 10, cells=n)
        assert len(data.cells) == 4 * 3 * n * n * (n - 1) + 2 * 6 * n * n
    assert len(tagged_grid(Ball(10), 26.667, size=6.5).cells) == 768


def test_same_call_same_mesh(gmsh):
    one, two = (sphere_in_box(3, (10, 10, 10), 3, size_interface=2) for _ in range(2))
    assert (one.points == two.points).all() and (one.cells == two.cells).all()


def test_gmsh_is_silent_and_left_as_found(gmsh, capfd):
    box((4, 4, 4), size=2)
    assert not gmsh.isInitialized()
    gmsh.initialize(["x", "-v", "0"], readConfigFiles=False, interruptible=False)
    try:
        gmsh.model.add("mine")
        gmsh.option.setNumber("Mesh.MeshSizeMax", 7)
        box((4, 4, 4), size=2)
        assert gmsh.model.list()[-1] == "mine" and gmsh.model.getCurrent() == "mine"
        assert gmsh.option.getNumber("Mesh.MeshSizeMax") == 7
    finally:
        gmsh.finalize()
    assert capfd.readouterr() == ("", "")


def test_gmsh_failure_is_one_line(gmsh, monkeypatch):
    def fail(_dim):
        raise Exception("no\nway")  # what gmsh raises
    monkeypatch.setattr(gmsh.model.mesh, "generate", fail)
    with pytest.raises(SolverError, match="^box: gmsh could not mesh it .no way.$"):
        box((1, 1, 1), size=1)
    assert not gmsh.isInitialized()


def test_gmsh_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gmsh":
            raise ImportError("No module named 'gmsh'")
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"gmsh cannot be imported .* pip install"):
        builders.spheres([1], 1)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: box((1, 1), cells=(1, 1, 1)), "box: lengths is (1, 1), expected 3 positive"),
    (lambda: box((1, -1, 1), cells=(1, 1, 1)), "lengths[1] is -1, expected a positive length"),
    (lambda: box((1, 1, 1)), "exactly one of size and cells"),
    (lambda: box((1, 1, 1), 1.0, (1, 1, 1)), "exactly one of size and cells"),
    (lambda: box((1, 1, 1), cells=(1, 0, 1)), "cells is (1, 0, 1), expected 3 positive integers"),
    (lambda: box((1, 1, 1), size=np.nan), "size is nan"),
    (lambda: box((1, 1, 1), size=1, centre=(0, 0)), "centre is (0, 0)"),
    (lambda: slabs([], 1), "thicknesses is []"),
    (lambda: slabs([1, 2], [1]), "cells_per_layer is [1], expected 2 positive integers"),
    (lambda: slabs([1, 2], 1.5), "cells_per_layer is [1.5, 1.5]"),
    (lambda: slabs([1, 2]), "exactly one of cells_per_layer and size"),
    (lambda: sphere_in_box(5, (10, 20, 20), 1), "leaves a gap of 0 um"),
    (lambda: spheres([3, 2], 1), "radii is [3, 2], expected ascending"),
    (lambda: cylinders([1], 1, 1, layers=0), "layers is 0, expected a positive integer"),
    (lambda: tagged_grid(Ball(1), 10, cells=2, pattern="fcc"), "pattern is 'fcc'"),
    (lambda: tagged_grid(Ball(0.1), 10, cells=2), "ball of radius 0.1 um"),
    (lambda: Ball(-1), "Ball: radius is -1"),
    (lambda: Ball(1, (0, 0)), "Ball: centre is (0, 0)"),
    (lambda: Cylinder(1, axis=(0, 0, 0)), "Cylinder: axis is (0, 0, 0)"),
    (lambda: Cylinder(np.inf), "Cylinder: radius is inf"),
    (lambda: BentTube(1, [(0, 0, 0)]), "BentTube: path has 1 points"),
    (lambda: BentTube(1, [(0, 0, 0), (0, 0, 0)]), "path[1] repeats path[0]"),
    (lambda: Torus(1, 2), "minor_radius is 2 um, expected less"),
    (lambda: Ball(1).contains(np.zeros(3)), "points have shape (3,)"),
])
def test_bad_arguments(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("shape", "volume", "words"), [
    (Ball(3, (0.5, 0, 0)), 4 / 3 * pi * 27, "radius 3 um"),
    (Cylinder(2, 5, axis=(1, 2, 3)), pi * 4 * 5, "height 5 um"),
    (Cylinder(2, axis=(0, 0, 2)), pi * 4 * 10, "endless"),
    (Torus(3, 1, axis=(1, 2, 3)), 2 * pi**2 * 3, "radii 3 and 1 um"),
    # two legs at a right angle: two half balls, two cylinders, and at the bend a quarter
    # ball outside; inside, the cylinders share 2 r^3 / 3
    (BentTube(1, [(-3, 0, 0), (0, 0, 0), (0, 3, 0)]),
     4 / 3 * pi + 6 * pi + pi / 3 - 2 / 3, "3 points (6 um)"),
])
def test_shape_volumes(shape, volume, words):
    """Counting lattice points gives the volume."""
    x = (np.arange(80) + 0.5) / 8 - 5
    points = np.stack(np.meshgrid(x, x, x, indexing="ij"), axis=-1).reshape(-1, 3)
    assert abs(shape.contains(points).sum() / 8**3 / volume - 1) < 0.01
    assert words in shape.describe() and hash(shape) == hash(type(shape)(**vars(shape)))


def test_a_mesh_that_takes_too_long_is_an_error_and_no_hang():
    program = """
import gmsh
from spinverse import SolverError
from spinverse.mesh import gmsh_model, spheres

once = gmsh.model.mesh.generate

def again_and_again(dim):  # no machine is so fast that it has done
    while True:
        once(dim)

gmsh.model.mesh.generate = again_and_again
gmsh_model.TIMEOUT = 0.05
for size in (0.3, 3.0):
    try:
        spheres([3, 6], size=size)
    except SolverError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=GUARD)
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert "spheres: gmsh made no mesh in 0.05 s" in first
    assert "gmsh is still busy with spheres" in second
