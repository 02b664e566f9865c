"""Files for ParaView and for surface tools: what they hold, and which way surfaces point."""

from __future__ import annotations

from xml.etree import ElementTree

import meshio
import numpy as np
import pytest
from mpi4py import MPI

from spinverse import Acquisition, BlochTorrey, Mesh, Permeability, Tissue
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.errors import InputError
from spinverse.interface import (
    magnetisation,
    read_permeability,
    write_cells,
    write_compartment,
    write_magnetisation,
    write_permeability,
    write_ply,
    write_stl,
    write_vtu,
)
from spinverse.interface.extraction import between
from spinverse.mesh import Ball, intervals, slabs, tagged_grid
from spinverse.mesh.data import MeshData


def grid(comm=MPI.COMM_WORLD, radius=7.0, cells=3):
    data = tagged_grid(Ball(radius), length=20.0, cells=cells) if comm.rank == 0 else None
    return Mesh.from_data(data, comm)


def labels_of(mesh, inside=1):
    """1 in the cells of the shape, 0 elsewhere."""
    return (mesh.cell_tags[: mesh.num_owned_cells] == inside).astype(np.int32)


def volume(mesh, chosen):
    owned = mesh.cell_volumes[: mesh.num_owned_cells]
    return mesh.comm.allreduce(float(owned[chosen].sum()))


def closed(path):
    trimesh = pytest.importorskip("trimesh")
    surface = trimesh.load_mesh(path)
    surface.merge_vertices()
    assert surface.is_winding_consistent
    assert surface.is_watertight
    return surface


# ---- surfaces -------------------------------------------------------------------------------

@pytest.mark.mpi
@pytest.mark.parametrize("write, suffix", [(write_stl, "stl"), (write_ply, "ply")])
@pytest.mark.parametrize("known", [True, False])
def test_the_interface_is_closed_and_points_outwards(shared_tmp_path, write, suffix, known):
    mesh = grid()
    labels = labels_of(mesh)
    path = shared_tmp_path / f"interface.{suffix}"
    write(path, mesh, between(mesh, labels, True), labels if known else None)
    expected = volume(mesh, labels == 1)
    if mesh.comm.rank == 0:
        assert closed(path).volume == pytest.approx(expected, rel=1e-5)
        assert [p.name for p in shared_tmp_path.iterdir()] == [path.name]


@pytest.mark.mpi
@pytest.mark.parametrize("suffix", ["stl", "ply"])
def test_compartments_that_touch_are_closed_each(shared_tmp_path, suffix):
    mesh = grid()
    x = mesh.domain.geometry.x[mesh.domain.geometry.dofmaps[0][: mesh.num_owned_cells]]
    # two halves of the box share a wall, and both end on its boundary
    labels = np.where(x[..., 0].mean(axis=1) < -3.3, 1, 2)
    for compartment in (1, 2):
        path = shared_tmp_path / f"cell{compartment}.{suffix}"
        write_compartment(path, mesh, labels, compartment)
        expected = volume(mesh, labels == compartment)
        if mesh.comm.rank == 0:
            assert closed(path).volume == pytest.approx(expected, rel=1e-5)
    total = volume(mesh, slice(None))
    if mesh.comm.rank == 0:
        whole = sum(closed(shared_tmp_path / f"cell{k}.{suffix}").volume for k in (1, 2))
        assert whole == pytest.approx(total, rel=1e-5)


def test_triangles_of_a_ply_share_their_points(tmp_path):
    mesh = grid()
    labels = labels_of(mesh)
    found = between(mesh, labels, True)
    write_ply(tmp_path / "a.ply", mesh, found, labels)
    surface = meshio.read(tmp_path / "a.ply")
    assert len(surface.cells_dict["triangle"]) == found.sum()
    assert len(surface.points) == found.sum() / 2 + 2  # Euler, of a sphere


def test_an_interface_without_facets(tmp_path):
    mesh = grid(cells=2)
    for write, name in ((write_stl, "a.stl"), (write_ply, "a.ply")):
        write(tmp_path / name, mesh, np.zeros(mesh.num_owned_facets, bool))
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize("name, label, words", [
    ("a.obj", 1, "suffix '.obj', expected .stl or .ply"),
    ("a.stl", 7, "compartment 7: no cell has this label"),
])
def test_compartments_that_cannot_be_written(tmp_path, name, label, words):
    mesh = grid(cells=2)
    with pytest.raises(InputError, match=words):
        write_compartment(tmp_path / name, mesh, labels_of(mesh), label)
    assert not list(tmp_path.iterdir())


# ---- cells and facets -----------------------------------------------------------------------

@pytest.mark.mpi
def test_labels_on_cells(shared_tmp_path):
    mesh = grid()
    labels = labels_of(mesh)
    path = shared_tmp_path / "cells.vtu"
    write_cells(path, mesh, {"label": labels, "inside": labels > 0,
                             "number": mesh.input_cells[: mesh.num_owned_cells]})
    inside, whole = volume(mesh, labels == 1), mesh.num_cells
    if mesh.comm.rank:
        return
    read = meshio.read(path)
    tets = read.cells_dict["tetra"]
    data = {name: value[0] for name, value in read.cell_data.items()}
    assert len(tets) == whole and len(read.points) == len(np.unique(read.points, axis=0))
    np.testing.assert_array_equal(data["number"], np.arange(whole))  # the order of the input
    np.testing.assert_array_equal(data["label"], (data["tag"] == 1).astype(int))
    np.testing.assert_array_equal(data["inside"], data["label"])
    x = read.points[tets]
    volumes = np.linalg.det(x[:, 1:] - x[:, :1]) / 6
    assert (volumes > 0).all()
    assert volumes[data["label"] == 1].sum() == pytest.approx(inside)


def test_cells_of_the_plane_and_the_line(tmp_path):
    mesh = Mesh.from_data(intervals([2.0, 3.0], cells_per_layer=4))
    write_cells(tmp_path / "line.vtu", mesh, {})
    read = meshio.read(tmp_path / "line.vtu")
    assert len(read.cells_dict["line"]) == 8
    assert set(read.cell_data["tag"][0]) == {1, 2}


@pytest.mark.parametrize("name, length, words", [
    ("a.vtk", None, "suffix '.vtk', expected .vtu"),
    ("a.vtu", 3, r"label: shape \(3,\), expected"),
])
def test_cells_that_cannot_be_written(tmp_path, name, length, words):
    mesh = grid(cells=2)
    with pytest.raises(InputError, match=words):
        write_cells(tmp_path / name, mesh, {"label": labels_of(mesh)[:length]})
    assert not list(tmp_path.iterdir())


@pytest.mark.mpi
@pytest.mark.parametrize("name, write", [
    ("p.npz", write_permeability), ("s.stl", write_stl),
    ("f.vtu", lambda path, mesh, values: write_vtu(path, mesh, {"permeability": values}))])
def test_arrays_that_do_not_fit_on_one_rank(comm, shared_tmp_path, name, write):
    """All hear of it, and no rank waits for the others."""
    mesh, last = grid(cells=2), comm.rank == comm.size - 1
    values = np.ones(mesh.num_owned_facets)
    for wrong, words in ((values[1:], "expected .*: one value for each facet that this rank owns"),
                         (values[:, None].astype(object), "Python objects"),
                         (values.astype(np.float32), "differ between ranks")):
        if words == "differ between ranks" and comm.size == 1:
            continue
        with pytest.raises(InputError, match=words):
            write(shared_tmp_path / name, mesh, wrong if last else values)
    comm.Barrier()
    assert not list(shared_tmp_path.iterdir())


@pytest.mark.mpi
@pytest.mark.parametrize("make", [
    lambda: intervals([3.0, 4.0], size=1.0),
    lambda: MeshData([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])])
def test_permeabilities_of_the_plane_and_the_line(comm, shared_tmp_path, make):
    mesh = Mesh.from_data(make() if comm.rank == 0 else None, comm)
    values = 1.0 + mesh.facet_vertices @ np.arange(1.0, 1.0 + mesh.dim)
    write_permeability(shared_tmp_path / "p.npz", mesh, values)
    assert np.array_equal(read_permeability(shared_tmp_path / "p.npz", mesh), values)
    comm.Barrier()
    if comm.rank == 0:
        np.savez(shared_tmp_path / "p.npz", facets=np.zeros((2, 4), int), permeability=np.zeros(2))
    comm.Barrier()
    with pytest.raises(InputError, match=rf"expected facets \(Nf, {mesh.dim}\)"):
        read_permeability(shared_tmp_path / "p.npz", mesh)


@pytest.mark.mpi
def test_facets_are_the_same_at_any_number_of_ranks(shared_tmp_path):
    mesh = grid()
    path = shared_tmp_path / "facets.vtu"
    kappa = mesh.facet_corners.mean(axis=1) @ [1.0, 2.0, 4.0]
    write_vtu(path, mesh, {"permeability": kappa, "outer": mesh.outer})
    if mesh.comm.rank:
        return
    read = meshio.read(path)
    x = read.points[read.cells_dict["triangle"]]
    np.testing.assert_allclose(read.cell_data["permeability"][0],
                               x.mean(axis=1) @ [1.0, 2.0, 4.0], atol=1e-8)
    assert read.cell_data["outer"][0].sum() == 12 * 9  # two triangles a square


# ---- magnetisation --------------------------------------------------------------------------

def small(degree=1):
    mesh = grid(cells=2)
    tissue = Tissue(mesh, diffusivity=2.0, T2=80.0, density={1: 1.0, 2: 0.5},
                    permeability=Permeability.on(mesh, membrane=0.02, elsewhere=50.0))
    acquisition = Acquisition.pgse([0, 800], directions=2, delta=4, Delta=9)
    return BlochTorrey(tissue, degree), acquisition


def integral(problem, values):
    part = np.array([problem.local_mass.dot(v).sum() for v in values])
    return problem.comm.allreduce(part)


@pytest.mark.mpi
@pytest.mark.parametrize("make", [
    lambda *a: MatrixFormalism(*a, modes=10_000), lambda *a: TimeStepping(*a, time_step=0.7)])
def test_at_the_echo_the_magnetisation_adds_up_to_the_signal(make):
    problem, acquisition = small()
    engine = make(problem, acquisition)
    signals = engine.signals()
    for row in (0, 3):
        m = magnetisation(engine, row, [13.0, 0.0])
        total = integral(problem, m)
        assert total[0] == pytest.approx(signals[row], abs=2e-6 * abs(signals[0]))
        assert total[1] == pytest.approx(problem.magnetisation_at_start)


def test_both_engines_agree_in_between():
    problem, acquisition = small()
    times = [0.0, 2.37, 4.0, 6.5, 9.0, 11.111]
    both = [magnetisation(engine, 3, times) for engine in (
        MatrixFormalism(problem, acquisition, modes=10_000),
        TimeStepping(problem, acquisition, time_step=0.02))]
    assert np.abs(both[0] - both[1]).max() < 2e-4


def test_times_within_a_pulse_that_is_not_constant():
    mesh = Mesh.from_data(intervals([3.0, 5.0], cells_per_layer=8))
    tissue = Tissue(mesh, diffusivity=2.0, permeability=Permeability.on(mesh, membrane=0.02))
    acquisition = Acquisition.ogse([0, 500], directions=[[1, 0, 0]], delta=10, Delta=12,
                                   periods=2, kind="cos")
    problem, times = BlochTorrey(tissue), [3.3, 7.0, 22.0]
    coarse, fine = (magnetisation(MatrixFormalism(problem, acquisition, 500, max_step=step), 1,
                                  times) for step in (0.1, 0.02))
    np.testing.assert_allclose(coarse, fine, atol=4e-5)  # 2e-3 inside a step of two pieces
    other = magnetisation(TimeStepping(problem, acquisition, time_step=0.02), 1, times)
    np.testing.assert_allclose(fine, other, atol=1e-4)


def test_phases_of_a_short_pulse():
    """Before anything diffuses m turns by -q x."""
    mesh = Mesh.from_data(slabs([10.0], size=2.5))
    tissue = Tissue(mesh, diffusivity=1e-9)
    acquisition = Acquisition.pgse([1e-6], [[0, 0, 1.0]], delta=2, Delta=5)
    problem = BlochTorrey(tissue)
    engine = TimeStepping(problem, acquisition, time_step=0.01)
    m = magnetisation(engine, 0, [2.0])[0]
    z = problem.space.tabulate_dof_coordinates()[: len(m), 2] - mesh.centre[2]
    expected = -acquisition.strength[0] * 2.0 * z
    np.testing.assert_allclose(np.angle(m), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.mpi
@pytest.mark.parametrize("degree", [1, 2])
def test_a_series_for_paraview(shared_tmp_path, degree):
    problem, acquisition = small(degree)
    engine = MatrixFormalism(problem, acquisition, modes=30)
    times = [0.0, 4.0]
    m = magnetisation(engine, 3, times)
    write_magnetisation(shared_tmp_path / "m.pvd", problem, times, m)
    cells, largest = problem.mesh.num_cells, problem.comm.allreduce(
        float(np.abs(m[0]).max()), op=MPI.MAX)
    if problem.comm.rank:
        return
    series = ElementTree.parse(shared_tmp_path / "m.pvd").getroot()
    files = {float(item.get("timestep")): item.get("file") for item in series[0]}
    assert sorted(files) == times
    for time, name in files.items():
        read = meshio.read(shared_tmp_path / name)
        tets = read.cells_dict["tetra"]
        assert tets.shape == (cells, 4) and len(read.points) == 4 * cells  # nothing is shared
        x, data = read.points[tets], read.point_data
        volumes = np.linalg.det(x[:, 1:] - x[:, :1]) / 6
        assert (volumes > 0).all()
        np.testing.assert_allclose(np.hypot(data["re"], data["im"]), data["magnitude"])
        if degree == 1:
            total = (volumes * data["re"][tets].mean(axis=1)).sum()
            expected = engine_total(problem, m[times.index(time)])
            if expected is not None:
                assert total == pytest.approx(expected, rel=1e-9)
        if time == 0:
            assert data["magnitude"].max() <= largest + 1e-12


def engine_total(problem, values):
    """Integral of Re m on one rank; None on several, where it is collective."""
    return None if problem.comm.size > 1 else float(problem.local_mass.dot(values).sum().real)


@pytest.mark.parametrize("row, times, words", [
    (6, [1.0], "measurement: 6, expected a row from 0 to 3"),
    (-1, [1.0], "measurement: -1"),
    (0, [13.5], "times: 13.5 ms, expected 0 to 13 ms"),
    (0, [float("nan")], "times: nan ms"),
])
def test_times_and_rows_that_are_not_there(row, times, words):
    problem, acquisition = small()
    engine = MatrixFormalism(problem, acquisition, modes=5)
    with pytest.raises(InputError, match=words):
        magnetisation(engine, row, times)


def test_a_series_that_cannot_be_written(tmp_path):
    problem, _ = small()
    with pytest.raises(InputError, match="expected .pvd"):
        write_magnetisation(tmp_path / "m.vtu", problem, [0.0], np.zeros((1, 1)))
    with pytest.raises(InputError, match="one row for each time"):
        write_magnetisation(tmp_path / "m.pvd", problem, [0.0], np.zeros((1, 3)))
    assert not list(tmp_path.iterdir())
