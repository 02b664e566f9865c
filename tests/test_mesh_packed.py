"""Packed cylinders and spheres: places, volumes, periodic faces, bad arguments."""

from math import pi

import numpy as np
import pytest
from built import check_interfaces, held
from mpi4py import MPI

from spinverse import Mesh
from spinverse.errors import InputError
from spinverse.mesh import box, packed_cylinders, packed_spheres, sphere_in_box, tagged_grid
from spinverse.mesh.checks import facets_of, quality
from spinverse.mesh.packing import images, pack, random_radii
from spinverse.mesh.shapes import Ball
from spinverse.periodic import check_faces, faces, pair_across


@pytest.fixture
def gmsh():
    return pytest.importorskip("gmsh", exc_type=ImportError)


def check_periodic(data, axes=(0, 1, 2)) -> None:
    """Facets and tags pair by translation along each axis, and all outer facets are among them."""
    mesh = Mesh.from_data(data, MPI.COMM_SELF)
    tags = mesh.cell_tags[mesh.facet_cells[:, 0]]
    for axis in axes:
        sides = faces(mesh, axis)
        below, above = pair_across(
            mesh, axis, tuple(mesh.facet_corners[side] for side in sides),
            tuple(np.repeat(tags[side][:, None], 3, axis=1) for side in sides)).T
        assert (below == above).all()
    assert (check_faces(mesh, axes) == mesh.outer).all()


# --- places --------------------------------------------------------------------------------------

@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("dim, fraction", [(2, 0.3), (2, 0.6), (3, 0.3)])
def test_places_keep_their_distance(dim, fraction, periodic):
    radii = random_radii("x", 30, 1.0, 0.3, "gamma", 3)
    ball = {2: pi, 3: 4 / 3 * pi}[dim]
    lengths = np.full(dim, (ball * (radii**dim).sum() / fraction)**(1 / dim))
    gap = 0.05
    x = pack("x", radii, lengths, gap, seed=1, periodic=periodic)
    offset = x[:, None] - x[None]
    if periodic:
        offset -= lengths * np.round(offset / lengths)
    else:
        assert (np.abs(x) + radii[:, None] + gap <= lengths / 2 * (1 + 1e-9)).all()
    apart = np.linalg.norm(offset, axis=2) - radii - radii[:, None]
    assert apart[~np.eye(30, dtype=bool)].min() >= gap * (1 - 1e-5)
    again = pack("x", radii, lengths, gap, seed=1, periodic=periodic)
    assert (x == again).all()
    assert (x != pack("x", radii, lengths, gap, seed=2, periodic=periodic)).any()


def test_images_cover_the_box_once():
    """The pieces of a disc in a corner add up to a disc."""
    lengths, radius = np.array([6.0, 7.0]), np.array([1.5])
    centres, cell = images(np.array([[2.9, -3.2]]), radius, lengths)
    assert len(centres) == 4 and (cell == 0).all()
    grid = (np.arange(400) + 0.5) / 400 - 0.5
    points = np.stack(np.meshgrid(grid * 6, grid * 7), axis=-1).reshape(-1, 1, 2)
    inside = (np.linalg.norm(points - centres, axis=2) < 1.5).sum(axis=1)
    assert inside.max() == 1
    assert inside.mean() * 42 == pytest.approx(pi * 1.5**2, rel=1e-2)


@pytest.mark.parametrize("distribution", ["gamma", "lognormal", "normal"])
def test_random_radii(distribution):
    radii = random_radii("x", 20000, 2.0, 0.5, distribution, 0)
    assert radii.min() > 0
    np.testing.assert_allclose([radii.mean(), radii.std()], [2.0, 0.5], rtol=0.03)
    assert (random_radii("x", 3, 2.0, 0.0, distribution, 0) == 2.0).all()


# --- meshes --------------------------------------------------------------------------------------

@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("g_ratio", [None, 0.7])
def test_cylinders(gmsh, periodic, g_ratio):
    data = packed_cylinders(0.5, 0.5, count=12, mean_radius=1.0, radius_deviation=0.3,
                            volume_fraction=0.6, g_ratio=g_ratio, periodic=periodic, seed=4)
    parts = [0.6] if g_ratio is None else [0.6 * 0.49, 0.6 * 0.51]
    np.testing.assert_allclose(held(data) / held(data).sum(), [*parts, 0.4], rtol=1e-9)
    check_interfaces(data)
    assert quality(data).min() > 0.03
    if periodic:
        check_periodic(data)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_periodic_spheres(gmsh, seed):
    data = packed_spheres(1.2, radii=[2, 2.2, 1.8, 1.5, 2.1, 1.3], volume_fraction=0.4,
                          periodic=True, seed=seed)
    np.testing.assert_allclose(held(data) / held(data).sum(), [0.4, 0.6], rtol=1e-9)
    check_interfaces(data)
    check_periodic(data)
    assert quality(data).min() > 0.005


def test_spheres_each_with_its_shell(gmsh):
    radii = np.array([2.0, 1.5, 1.0])
    data = packed_spheres(1.0, radii=radii, box=(9, 8, 7), g_ratio=0.8, cell_tags="each")
    whole = 4 / 3 * pi * radii**3
    expected = np.column_stack([0.512 * whole, 0.488 * whole]).ravel()
    np.testing.assert_allclose(held(data), [*expected, 504 - whole.sum()], rtol=1e-9)
    check_interfaces(data)
    assert set(data.interface_tags) == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("build, arguments", [
    (packed_cylinders, {"height": 0.5, "size": 0.5}), (packed_spheres, {"size": 0.8})])
@pytest.mark.parametrize("ecs", ["tight", "none"])
def test_other_surroundings(gmsh, build, arguments, ecs):
    radii = np.array([1.0, 1.2, 0.9])
    data = build(**arguments, radii=radii, volume_fraction=0.2, ecs=ecs, ecs_gap=0.3)
    cells = 0.5 * pi * (radii**2).sum() if build is packed_cylinders else \
        4 / 3 * pi * (radii**3).sum()
    volumes = held(data)
    assert volumes[0] == pytest.approx(cells, rel=1e-9)
    assert len(volumes) == (1 if ecs == "none" else 2)
    check_interfaces(data)
    facets, pairs = facets_of(data.cells)
    if ecs == "tight":
        assert set(data.cell_tags[pairs[pairs[:, 1] < 0, 0]]) == (
            {2} if build is packed_spheres else {1, 2})


def test_same_seed_same_mesh(gmsh):
    one, two = (packed_cylinders(1, 0.8, count=4, mean_radius=1.0, volume_fraction=0.4, seed=5)
                for _ in range(2))
    assert (one.points == two.points).all() and (one.cells == two.cells).all()


# --- periodic boxes without packing --------------------------------------------------------------

@pytest.mark.parametrize("make", [
    lambda: box((4, 5, 6), cells=(2, 3, 4)),
    lambda: box((4, 5, 6), size=1.5, periodic=True, centre=(1, 2, 3)),
    lambda: sphere_in_box(2, (6, 7, 8), 1.5, periodic=True),
    lambda: tagged_grid(Ball(3), 8, cells=3),
    lambda: tagged_grid(Ball(3), 8, cells=3, pattern="kuhn"),
])
def test_opposite_faces_match(gmsh, make):
    check_periodic(make())


# --- errors --------------------------------------------------------------------------------------

FEW = {"radii": [1, 1], "volume_fraction": 0.3}


@pytest.mark.parametrize(("call", "message"), [
    (lambda: packed_cylinders(1, 1), "exactly one of radii and count"),
    (lambda: packed_cylinders(1, 1, radii=[1]), "exactly one of volume_fraction and box"),
    (lambda: packed_cylinders(1, 1, radii=[1], box=(5, 5, 5)), "box is (5, 5, 5), expected 2"),
    (lambda: packed_cylinders(1, 1, radii=[1, 0], box=(5, 5)), "radii[1] is 0"),
    (lambda: packed_cylinders(1, 1, count=3, volume_fraction=0.3), "mean_radius is None"),
    (lambda: packed_cylinders(1, 1, count=3, mean_radius=1, volume_fraction=0.3,
                              distribution="uniform"), "distribution is 'uniform', expected"),
    (lambda: packed_cylinders(1, 1, count=3, mean_radius=1, volume_fraction=0.3,
                              radius_deviation=-1), "radius_deviation is -1, expected a number of"),
    (lambda: packed_cylinders(1, 1, **FEW, seed=-1), "seed is -1, expected a whole number"),
    (lambda: packed_cylinders(1, 1, **FEW, seed="a"), "seed is 'a'"),
    (lambda: packed_cylinders(1, 1, **FEW, g_ratio=0), "g_ratio is 0"),
    (lambda: packed_cylinders(1, 1, **FEW, ecs="hull"), "ecs is 'hull'"),
    (lambda: packed_cylinders(1, 1, **FEW, ecs="tight", periodic=True), "expected ecs 'box'"),
    (lambda: packed_cylinders(1, 1, **FEW, layers=0), "layers is 0"),
    (lambda: packed_spheres(1, radii=[1], volume_fraction=1.5), "volume_fraction is 1.5"),
    (lambda: packed_spheres(1, radii=[3], box=(5, 9, 9)), "does not fit the box of 5 um"),
    (lambda: packed_spheres(1e-3, radii=[1], volume_fraction=0.1), "make about"),
])
def test_bad_arguments(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("periodic", [False, True])
def test_a_fraction_out_of_reach(periodic):
    with pytest.raises(InputError, match="20 cells find no place in the box .* lower volume"):
        packed_cylinders(1, 1, count=20, mean_radius=1, volume_fraction=0.9, periodic=periodic)


def test_periodic_faces_match_where_a_ball_is_near_two_images_of_another():
    data = packed_spheres(3, radii=[2, 2], box=[10, 6, 6], periodic=True, seed=0)
    check_faces(Mesh.from_data(data, MPI.COMM_SELF), (0, 1, 2))
