"""Surfaces of cells without the stairs of the mesh."""

import meshio
import numpy as np
import pytest
from mpi4py import MPI

from spinverse.benchmark import targets
from spinverse.interface import write_surfaces
from spinverse.inversion.shapes.cell_surface import cell_surface, cell_surfaces
from spinverse.mesh.distributed import Mesh
from spinverse.mesh.surfaces import defects
from spinverse.mesh.whole import WholeMesh

pytestmark = pytest.mark.mpi


def distributed(target):
    return Mesh.from_data(target.data, MPI.COMM_WORLD)


# area at the same volume: of a ball it goes with volume^(2/3), of a tube on a circle with its root
@pytest.mark.parametrize(("name", "cubes", "power", "most"), [
    ("sphere", 4, 2 / 3, 0.07), ("sphere", 6, 2 / 3, 0.03), ("sphere", 8, 2 / 3, 0.03),
    ("torus", 8, 1 / 2, 0.05)])
def test_the_area_is_that_of_a_smooth_cell(name, cubes, power, most):
    """Which the stairs have 20 to 70 % too large."""
    target = targets.own(name, cubes)
    whole, labels = WholeMesh.of(distributed(target)), target.data.cell_tags.astype(np.int8)
    found = cell_surface(whole, labels, 1, True)
    volume = whole.volumes[labels > 0].sum()
    assert found.stairs.volume == pytest.approx(volume)
    assert found.smooth.volume == pytest.approx(volume, rel=1e-9)
    assert not defects(found.smooth)
    (shape,) = target.shapes
    if name == "sphere":
        exact = 4 * np.pi * shape.radius**2, 4 / 3 * np.pi * shape.radius**3
    else:
        R, r = shape.major_radius, shape.minor_radius
        exact = 4 * np.pi**2 * R * r, 2 * np.pi**2 * R * r**2
    area = exact[0] * (volume / exact[1]) ** power
    assert found.smooth.areas.sum() == pytest.approx(area, rel=most)
    assert found.stairs.areas.sum() > 1.2 * area
    assert found.narrowing == pytest.approx(found.smooth.areas.sum() / found.stairs.areas.sum())


def test_where_the_box_ends_there_is_no_wall_if_it_reflects():
    whole = WholeMesh.of(distributed(targets.own("axon-0")))
    labels = targets.own("axon-0").data.cell_tags.astype(np.int8)
    outer = whole.areas[whole.outer & (labels[whole.sides[:, 0]] > 0)].sum()
    absorbing, reflecting = (cell_surface(whole, labels, 1, value) for value in (True, False))
    assert absorbing.walls.all() and not reflecting.walls.all()
    ends = reflecting.smooth.areas[~reflecting.walls].sum()
    assert ends == pytest.approx(outer)  # they stay as they are
    assert max(reflecting.narrowing, absorbing.narrowing) < 0.85


def test_cells_that_touch_have_a_surface_each_on_any_number_of_ranks(tmp_path):
    target = targets.own("touching-0")
    mesh = distributed(target)
    mine = target.data.cell_tags[mesh.input_cells[: mesh.num_owned_cells]]
    found = cell_surfaces(mesh, mine, True)
    assert len(found) == 2
    for k, each in enumerate(found, 1):
        volume = mesh.comm.allreduce(mesh.cell_volumes[: len(mine)][mine == k].sum())
        assert each.smooth.volume == pytest.approx(volume)
    assert len(set(mesh.comm.allgather(tuple(each.narrowing for each in found)))) == 1
    path = mesh.comm.bcast(tmp_path) / "surface.stl"
    write_surfaces(path, mesh.comm, [each.smooth for each in found])
    read = meshio.read(path)
    corners = read.points[read.cells_dict["triangle"]]
    a, b, c = corners.astype(float).swapaxes(0, 1)
    volume = np.einsum("ij,ij->", a, np.cross(b, c)) / 6
    assert volume == pytest.approx(sum(each.smooth.volume for each in found), rel=1e-5)
