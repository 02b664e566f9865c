"""Builders of layers, discs, tubes, tori and the L cell: volumes, tags, quality, bad arguments."""

from math import pi

import numpy as np
import pytest
from built import check_interfaces, held

from spinverse.errors import InputError, SolverError
from spinverse.mesh import bent_axon, box, build, disks, intervals, l_cell, torus, twisted_axons
from spinverse.mesh.builders import cylinders, slabs, spheres
from spinverse.mesh.checks import facets_of, quality
from spinverse.mesh.grids import graded

TRIPLE = [(1.2, 0), (-0.6, 1.04), (-0.6, -1.04)]


@pytest.fixture
def gmsh():
    return pytest.importorskip("gmsh", exc_type=ImportError)


def closed(facets) -> bool:
    """Every edge of the triangles belongs to two of them."""
    edges = facets[:, [[0, 1], [0, 2], [1, 2]]].reshape(-1, 2)
    return bool((np.unique(edges, axis=0, return_counts=True)[1] == 2).all())


# --- one and two dimensions ----------------------------------------------------------------------

@pytest.mark.parametrize("how", [{"cells_per_layer": [2, 1, 6]}, {"size": [1.0, 1.0, 0.5]}])
def test_intervals(how):
    data = intervals([2, 1, 3], **how)
    assert data.dim == 1 and len(data.cells) == 9
    np.testing.assert_allclose(held(data), [2, 1, 3])
    np.testing.assert_allclose(data.points[data.interface_facets[:, 0], 0], [-1, 0], atol=1e-12)
    assert data.interface_tags.tolist() == [1, 2]
    check_interfaces(data)


def test_intervals_are_slabs_without_width():
    line, layers = intervals([2, 5], size=0.7), slabs([2, 5], size=0.7)
    np.testing.assert_allclose(np.unique(layers.points[:, 0]), line.points[:, 0])


@pytest.mark.parametrize("radii", [[5.0], [3.0, 4.0, 6.0]])
def test_disks(gmsh, radii):
    data = disks(radii, 1.0)
    assert data.dim == 2 and (data.points[:, 2] == 0).all()
    np.testing.assert_allclose(held(data), np.diff(pi * np.array([0, *radii])**2), rtol=1e-10)
    check_interfaces(data)
    assert quality(data).min() > 0.5
    assert len(np.unique(data.interface_tags)) == len(radii) - 1


def test_unmatched_area_converges_at_second_order(gmsh):
    lacking = [1 - held(disks([3], h, match_area=False))[0] / (9 * pi) for h in (1, 0.5)]
    assert 0 < lacking[1] < lacking[0] / 3


@pytest.mark.parametrize("thickness", [0.3, 0.1])
def test_thin_layers_mesh_well(gmsh, thickness):
    """A number for the size yields to the layer; a list is taken as it is."""
    radii = [2, 2 + thickness, 3]
    for data in (disks(radii, 1.0), spheres(radii[:2], 1.0)):
        assert quality(data).min() > 0.1
        assert len(held(data)) == {2: 3, 3: 2}[data.dim]
    ring = disks(radii, [0.5, 0.05, 0.5])
    lengths = np.linalg.norm(np.diff(ring.points[ring.interface_facets], axis=1), axis=2)
    assert 0.03 < lengths.mean() < 0.06 and quality(ring).min() > 0.3
    assert len(ring.cells) < len(disks(radii, 0.05).cells) / 2


def test_cylinders_take_a_size_for_each_layer(gmsh):
    data = cylinders([2, 2.2, 4], 0.4, [0.8, 0.2, 0.8])
    np.testing.assert_allclose(held(data), 0.4 * np.diff(pi * np.array([0, 2, 2.2, 4])**2),
                               rtol=1e-10)
    check_interfaces(data)
    assert quality(data).min() > 0.2


# --- the L cell ----------------------------------------------------------------------------------

@pytest.mark.parametrize("pattern", ["kuhn", "gmsh"])
@pytest.mark.parametrize("fine", [None, 1.0])
def test_l_cell(pattern, fine, request):
    if pattern == "gmsh":
        request.getfixturevalue("gmsh")
    data = l_cell(3.0, fine, pattern)
    np.testing.assert_allclose(held(data), [864, 8000 - 864], rtol=1e-12)
    check_interfaces(data)
    assert closed(data.interface_facets) and set(data.interface_tags) == {1}
    corners = data.points[data.interface_facets]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1).sum() / 2,
                               2 * (12 * 6 + 6 * 6) + 8 * 48, rtol=1e-12)
    np.testing.assert_allclose([corners.min((0, 1)), corners.max((0, 1))],
                               [[4, 4, 4], [16, 16, 12]])
    np.testing.assert_allclose([data.points.min(0), data.points.max(0)], [[0] * 3, [20] * 3])
    assert quality(data).min() > 0.15


def test_l_cell_is_graded():
    x = graded(np.array([0, 4, 10, 20.0]), 3.0, 0.5, np.array([False, True, True, False]))
    steps = np.diff(x)
    assert set(x) >= {0.0, 4.0, 10.0, 20.0} and steps.max() <= 3.01
    i = list(x).index(4.0)
    assert steps[i] < 0.65 and steps[i - 1] < 0.65 and steps[-1] > 2
    assert (np.maximum(steps[1:] / steps[:-1], steps[:-1] / steps[1:]) < 1.5).all()


def test_l_cell_of_other_dimensions():
    data = l_cell(1.0, box=(8, 9, 10), corner=(1, 2, 3), arm=5, width=2, height=4)
    np.testing.assert_allclose(held(data), [4 * (25 - 9), 720 - 64])


# --- tubes ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("deformation", [{}, {"bend": 0.03}, {"bend": 0.03, "twist": 0.3}])
def test_bent_axon(gmsh, deformation):
    data = bent_axon([0.7, 1.0], 12, 0.5, **deformation)
    np.testing.assert_allclose(held(data), 12 * pi * np.array([0.49, 0.51]), rtol=1e-10)
    check_interfaces(data)
    assert quality(data).min() > 0.2
    # undone, the vertices of the membrane lie on a straight cylinder
    x, y, z = data.points[np.unique(data.interface_facets)].T
    turn = np.exp(-1j * deformation.get("twist", 0.0) * z) * (x + 1j * y)
    r = np.abs(turn - deformation.get("bend", 0.0) * z**2)
    assert np.ptp(r) < 1e-9 and 0.7 < r.min() < 0.75


@pytest.mark.parametrize("ecs", ["none", "box", "tight"])
@pytest.mark.parametrize("cell_tags", ["common", "each"])
def test_twisted_axons(gmsh, ecs, cell_tags):
    data = twisted_axons(TRIPLE, 1.0, 6, 0.7, twist=0.3, g_ratio=0.7, ecs=ecs,
                         cell_tags=cell_tags)
    one = 6 * pi * np.array([0.49, 0.51])
    axons = 3 * one if cell_tags == "common" else np.tile(one, 3)
    volumes = held(data)
    np.testing.assert_allclose(volumes[:len(axons)], axons, rtol=1e-10)
    assert len(volumes) == len(axons) + (ecs != "none")
    check_interfaces(data)
    # prisms as high as the size between edges as short as the gap
    assert quality(data).min() > 0.05
    if ecs == "box":
        # the box is twisted along, and only it cuts the corners of the twist
        width = np.array([1.2 + 0.6 + 2 + 1, 2 * 1.04 + 2 + 1])
        assert volumes.sum() == pytest.approx(6 * width.prod(), rel=0.02)


def test_tight_wrap_fills_what_it_encloses(gmsh):
    """The gap in the middle of three axons belongs to the space around them."""
    data = twisted_axons(TRIPLE, 1.0, 1, 0.5, twist=0.0, ecs="tight", ecs_gap=0.12, layers=1)
    facets, pairs = facets_of(data.cells)
    assert closed(facets[pairs[:, 1] < 0])
    edges = np.unique(facets[:, [[0, 1], [0, 2], [1, 2]]].reshape(-1, 2), axis=0)
    # Euler characteristic of a solid without a channel
    assert len(data.points) - len(edges) + len(facets) - len(data.cells) == 1


@pytest.mark.parametrize("size", [2.0, 1.0])
def test_torus(gmsh, size):
    data = torus(5, 2, size)
    np.testing.assert_allclose(held(data), [2 * pi**2 * 20], rtol=1e-10)
    assert quality(data).min() > 0.3 and len(data.interface_facets) == 0
    facets, pairs = facets_of(data.cells)
    on = data.points[np.unique(facets[pairs[:, 1] < 0])]
    r = np.hypot(np.hypot(on[:, 0], on[:, 1]) - 5, on[:, 2])
    assert np.ptp(r) < 1e-9 and 2 < r.min() < 2.3


def test_torus_in_a_box(gmsh):
    data = torus(5, 2, 1.5, box=(16, 17, 7))
    ring = 2 * pi**2 * 20
    np.testing.assert_allclose(held(data), [ring, 16 * 17 * 7 - ring], rtol=1e-10)
    check_interfaces(data)
    assert closed(data.interface_facets) and quality(data).min() > 0.1


# --- errors --------------------------------------------------------------------------------------

@pytest.mark.parametrize(("call", "message"), [
    (lambda: intervals([1, -1], size=1), "intervals: thicknesses[1] is -1"),
    (lambda: intervals([1, 1]), "exactly one of cells_per_layer and size"),
    (lambda: intervals([1, 1], size=[1]), "size is [1], expected 2 positive lengths"),
    (lambda: intervals([1, 1], size=1e-9), "make about 2e+09 cells"),
    (lambda: box((10, 10, 10), size=1e-3), "make about 8.5e+12 cells, expected at most 2e+07"),
    (lambda: box((10, 10, 10), cells=(1000, 1000, 1000)), "make about 6e+09 cells"),
    (lambda: disks([1, 1], 1), "disks: radii is [1, 1], expected ascending"),
    (lambda: disks([1, 2], [1, "a"]), "disks: size[1] is 'a'"),
    (lambda: disks([1, 2], [1, 1, 1]), "expected 2 positive lengths in um"),
    (lambda: disks([1], 1e-5), "make about"),
    (lambda: spheres([10], 0.01), "make about"),
    (lambda: l_cell(1, pattern="bcc"), "pattern is 'bcc', expected 'kuhn' or 'gmsh'"),
    (lambda: l_cell(1, arm=17), "expected it inside the box"),
    (lambda: l_cell(1, width=12), "width is 12 um, expected less than arm 12 um"),
    (lambda: l_cell(1e-3), "make about"),
    (lambda: bent_axon([2, 1], 1, 1), "bent_axon: radii is [2, 1], expected ascending"),
    (lambda: bent_axon([1], 1, 1, bend=np.inf), "bend is inf, expected a number"),
    (lambda: bent_axon([1], 10, 1, ecs="hull"), "ecs is 'hull', expected 'box', 'tight' or"),
    (lambda: bent_axon([1], 10, 1, twist=1e9, ecs="box"), "layers of prisms"),
    (lambda: twisted_axons(TRIPLE, 1.2, 5, 1, 0.1), "axons 0 and 1 leave a gap of -0.3"),
    (lambda: twisted_axons([], 1, 5, 1, 0.1), "centres is []"),
    (lambda: twisted_axons([(0, 0, 0, 0)], 1, 5, 1, 0.1), "centres[0] is "),
    (lambda: twisted_axons(TRIPLE, [1, 1], 5, 1, 0.1), "radii is [1, 1], expected 3 positive"),
    (lambda: twisted_axons(TRIPLE, 1, 5, 1, 0.1, g_ratio=1.2), "g_ratio is 1.2, expected a number"),
    (lambda: twisted_axons(TRIPLE, 1, 5, 1, 0.1, cell_tags="all"), "cell_tags is 'all'"),
    (lambda: torus(1, 2, 1), "minor_radius is 2 um, expected less"),
    (lambda: torus(5, 2, 1, box=(14, 20, 20)), "leaves a gap of 0 um to the box"),
])
def test_bad_arguments(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_too_strong_a_twist(gmsh):
    with pytest.raises(SolverError, match="inside out by twist 3 rad/um .* more layers"):
        twisted_axons(TRIPLE, 1.0, 10, 0.5, twist=3, layers=3)


@pytest.mark.mpi
def test_on_any_number_of_ranks(comm):
    """Built on rank 0, the volumes of the tags add up over the ranks; errors reach all."""
    mesh = build(twisted_axons, TRIPLE, 1.0, 4, 1.0, twist=0.3, ecs="tight", comm=comm)
    owned = mesh.cell_tags[:mesh.num_owned_cells]
    assert comm.allreduce(int((owned == 1).sum())) > 0
    assert comm.allreduce(int((mesh.interface == 1).sum())) > 0
    with pytest.raises(InputError, match="minor_radius"):
        build(torus, 1, 2, 1, comm=comm)
