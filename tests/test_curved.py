"""Cells of second order: geometry, the whole chain on them, files, what they are refused for."""

from __future__ import annotations

from dataclasses import replace

import meshio
import numpy as np
import pytest
import scipy.sparse
from mpi4py import MPI
from test_adjoint import functional

from spinverse import (
    Acquisition,
    BlochTorrey,
    InputError,
    Permeability,
    SolverError,
    Tissue,
    cli,
    forms,
    mesh,
    simulate,
)
from spinverse.adjoint import taylor_rate
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.glued import glued
from spinverse.interface.magnetisation import magnetisation, write_magnetisation
from spinverse.mesh import MeshData, RepairWarning, readers
from spinverse.mesh.checks import facets_of
from spinverse.mesh.curved import bent_edges
from spinverse.mesh.whole import WholeMesh
from spinverse.quantities import exchange_times, mf_adc, short_time_approximation
from spinverse.validation import analytic
from spinverse.validation.convergence import fitted_order
from spinverse.validation.references import EXCHANGE

SELF = MPI.COMM_SELF
KAPPA = 0.02  # um/ms, of the exchange times


def same(one: MeshData, other: MeshData, tolerance=0.0) -> None:
    assert (one.cells == other.cells).all() and (one.points == other.points).all()
    assert (one.curved_edges == other.curved_edges).all() and len(one.curved_edges)
    assert np.abs(one.middles - other.middles).max() <= tolerance


# ---- geometry -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("builder", "exact", "sizes"), [
    (lambda h: mesh.disks([3, 5], h, order=2, match_area=False),
     (np.pi * 9, np.pi * 16, 6 * np.pi), (2.0, 1.0, 0.5)),
    (lambda h: mesh.spheres([3, 5], h, order=2, match_volume=False),
     (36 * np.pi, 4 / 3 * np.pi * 98, 36 * np.pi), (2.4, 1.2, 0.8)),
    (lambda h: mesh.torus(6, 2, h, order=2, match_volume=False),
     (48 * np.pi**2, None, 48 * np.pi**2), (2.4, 1.2, 0.8))], ids=["disks", "spheres", "torus"])
def test_volumes_and_areas_are_of_fourth_order(builder, exact, sizes):
    errors = []
    for size in sizes:
        data = builder(size)
        grid = mesh.Mesh.from_data(data, SELF)
        held = [grid.cell_volumes[grid.cell_tags == tag].sum() for tag in (1, 2) if exact[tag - 1]]
        assert np.allclose(data.volumes, grid.cell_volumes[np.argsort(grid.input_cells)])
        wall = grid.interface > 0 if grid.interface.any() else grid.outer
        found = np.array([*held, grid.facet_areas[wall].sum()])
        errors.append(np.abs(found / [value for value in exact if value] - 1))
    for each in np.transpose(errors):
        assert fitted_order(sizes, each) > 3.3 and each[-1] < 5e-4


def test_volumes_are_matched():
    for data, held in [
            (mesh.disks([3, 5], 1.5, order=2), [np.pi * 9, np.pi * 16]),
            (mesh.cylinders([3, 5], 4, 1.5, 2, order=2), [np.pi * 36, np.pi * 64]),
            (mesh.spheres([3, 5], 2, centre=(1, 2, 3), order=2), [36 * np.pi, 4 / 3 * np.pi * 98]),
            (mesh.sphere_in_box(3, [9, 9, 9], 2.5, order=2), [36 * np.pi, 729 - 36 * np.pi]),
            (mesh.torus(6, 2, 2, order=2), [48 * np.pi**2]),
            (mesh.packed_cylinders(2, 1.5, radii=[2, 3], volume_fraction=0.4, periodic=True,
                                   cell_tags="each", order=2), [8 * np.pi, 18 * np.pi])]:
        assert len(data.curved_edges)
        for tag, value in enumerate(held, 1):
            assert data.volumes[data.cell_tags == tag].sum() == pytest.approx(value, rel=1e-9)


def test_edges_lie_on_spheres_and_on_the_faces_that_cut_them():
    with pytest.warns(UserWarning, match="straighter than the surface"):
        data = mesh.packed_spheres(1.5, radii=[2, 3], volume_fraction=0.3, periodic=True, seed=1,
                                   order=2, match_volume=False)
    half = data.points.max(axis=0)
    ends = data.points[data.curved_edges]
    for axis in range(3):
        on = (np.abs(ends[:, :, axis]) == half[axis]).all(axis=1) & (
            ends[:, 0, axis] == ends[:, 1, axis])
        assert on.any() and (data.middles[on, axis] == ends[on, 0, axis]).all()
        # what opposite faces have is the same
        other = [axis - 1, axis - 2]
        low, high = (data.middles[on & (data.middles[:, axis] == side * half[axis])][:, other]
                     for side in (-1, 1))
        assert np.allclose(low[np.lexsort(low.T)], high[np.lexsort(high.T)], atol=1e-6)


def outside_of(data: MeshData, path) -> None:
    """Write the outer facets as ``.stl``."""
    facets, pairs = facets_of(data.cells)
    meshio.write(path, meshio.Mesh(data.points, [("triangle", facets[pairs[:, 1] < 0])]))


@pytest.mark.filterwarnings("ignore::spinverse.mesh.RepairWarning")  # triangles turned outwards
def test_facets_of_a_closed_surface_become_smooth(tmp_path):
    errors = []
    for size in (2.8, 1.4):
        outside_of(mesh.spheres([5.0], size, match_volume=False), tmp_path / "ball.stl")
        straight, curved = (mesh.from_surface(tmp_path / "ball.stl", method="exact", order=order)
                            for order in (1, 2))
        assert (straight.points == curved.points).all() and (straight.cells == curved.cells).all()
        errors.append([abs(data.volumes.sum() / (500 / 3 * np.pi) - 1)
                       for data in (straight, curved)])
    (rough, better), (fine, best) = errors
    assert better < 0.2 * rough and best < 0.05 * fine and best < 0.1 * better
    # creases stay, and with them all of a cube
    outside_of(mesh.box([4, 4, 4], cells=(2, 2, 2)), tmp_path / "cube.stl")
    flat = mesh.from_surface(tmp_path / "cube.stl", method="exact", order=2)
    assert not len(flat.curved_edges) and flat.volumes.sum() == pytest.approx(64)


# ---- what is solved on them ---------------------------------------------------------------------


def shell(geometry: str, size: float, comm=SELF) -> BlochTorrey:
    radii, slowest = EXCHANGE[geometry]
    builder = {"disk": mesh.disks, "sphere": mesh.spheres}[geometry]
    grid = mesh.build(builder, radii, size, order=2, comm=comm)
    return BlochTorrey(Tissue(grid, 2.0, permeability=Permeability.on(grid, membrane=KAPPA)), 2)


def test_exchange_times_are_of_fourth_order():
    errors = [abs(float(exchange_times(shell("disk", size), 1)[0]) / 198.25123458598148 - 1)
              for size in (5.0, 2.5, 1.25)]
    assert errors[-1] < 2e-7 and fitted_order((5.0, 2.5, 1.25), errors) > 3.4
    assert float(exchange_times(shell("sphere", 5.0), 1)[0]) == pytest.approx(
        EXCHANGE["sphere"][1], rel=1.2e-4)


@pytest.mark.slow
def test_exchange_time_of_the_sphere_to_5e_5():
    assert float(exchange_times(shell("sphere", 2.5), 1)[0]) == pytest.approx(
        EXCHANGE["sphere"][1], rel=2e-5)


def test_signals_in_closed_shapes():
    b = np.array([0.0, 1000, 2000, 4000])
    table = Acquisition.pgse(b, [1, 0, 0], 10, 20)
    for builder, size, exact, allowed in ((mesh.disks, 1.4, analytic.cylinder, 1e-5),
                                          (mesh.spheres, 2.0, analytic.sphere, 1e-4)):
        grid = mesh.build(builder, [5.0], size, order=2, comm=SELF)
        found = simulate(Tissue(grid, 2.0), table, tolerance=1e-6, mesh_error=False).normalised
        assert np.abs(found - exact(b, 10, 20, 5.0)).max() < allowed


def small(comm=SELF, degree=2, elsewhere=3.0, builder=mesh.disks, radii=(2, 4)) -> BlochTorrey:
    """Discs or balls whose facets have different permeabilities."""
    grid = mesh.build(builder, radii, 2.5, order=2, comm=comm)
    wave = np.sin(grid.facet_vertices @ np.array([1.3, 2.9, 0.7])[: grid.dim])
    kappa = np.where(grid.interface > 0, 0.05 * (2 + wave), elsewhere)
    kappa[grid.outer] = 0.03 * (2 + wave[grid.outer])
    return BlochTorrey(Tissue(grid, 1 + 0.2 * grid.dim, T2=80.0,
                              permeability=Permeability(grid, kappa)), degree)


@pytest.mark.parametrize("elsewhere", [3.0, np.inf])
def test_engines_agree(elsewhere):
    table = Acquisition.pgse([0, 1000, 3000], [[0.6, 0.8, 0]], 3, 8)
    problem = small(elsewhere=elsewhere)
    modes = MatrixFormalism(problem, table, tolerance=1e-7).signals().real
    steps = TimeStepping(problem, table, 0.025).signals().real
    assert np.abs(steps - modes).max() < 2e-5 * modes[0]


@pytest.mark.mpi
@pytest.mark.parametrize("elsewhere", [3.0, np.inf])
def test_ranks_agree(comm, elsewhere):
    table, found = Acquisition.pgse([2000], [[0.6, 0.8, 0]], 3, 8), []
    for place in (SELF, comm):
        problem = small(place, elsewhere=elsewhere)
        grid = problem.mesh
        held = grid.cell_volumes[: grid.num_owned_cells].sum(), grid.facet_areas.sum()
        found.append([*map(problem.comm.allreduce, held),
                      *MatrixFormalism(problem, table, tolerance=1e-6).signals().real,
                      *TimeStepping(problem, table, 1.0).signals().real])
    assert np.allclose(*found, rtol=1e-8)


@pytest.mark.mpi
def test_ranks_agree_on_spheres(comm):
    assert np.allclose(*(exchange_times(shell("sphere", 9.0, place), 1)[0]
                         for place in (SELF, comm)), rtol=1e-8)


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("builder", [mesh.disks, mesh.spheres])
def test_jumps_are_those_of_the_form(builder, degree):
    grid = mesh.build(builder, [2, 4], 3, order=2, comm=SELF)
    kappa = 1 + np.sin(np.arange(grid.num_owned_facets))
    problem = BlochTorrey(Tissue(grid, permeability=Permeability(grid, kappa)), degree)
    m, v, c = problem.scalar_arguments
    Q, T = problem.assembled(forms.exchange(m, v, c) + forms.outflow(m, v, c)), problem.jump_matrix
    weights = np.repeat(kappa, T.shape[0] // len(kappa))
    assert abs(T.T @ scipy.sparse.diags(weights) @ T - Q).max() < 1e-13 * abs(Q).max()
    # constants have the volume of curved cells, and cross what is open freely
    ones = np.ones(problem.space.dofmap.index_map.size_local)
    assert ones @ problem.local_mass @ ones == pytest.approx(grid.cell_volumes.sum())
    assert np.abs((T @ ones).reshape(len(kappa), -1)[~grid.outer]).max() < 1e-13


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["matrix_formalism", "time_stepping"])
def test_taylor(comm, name):
    problem = small(comm, degree=1, builder=mesh.spheres, radii=[2])
    table = Acquisition.pgse([1500], [[0.6, 0.8, 0]], 3, 5)
    engine = TimeStepping(problem, table, 1.0) if name == "time_stepping" else MatrixFormalism(
        problem, table, modes=problem.num_unknowns)
    J, start = functional(problem, engine, priors=())
    assert taylor_rate(J, start, steps=2) > 1.9


def test_periodic_boxes():
    """Closed circles that reach through the faces: inside as outside of any box."""
    data = mesh.packed_cylinders(1, 1.2, radii=[2.0], box=[5, 5], periodic=True, seed=3, order=2)
    assert (np.abs(data.points[data.curved_edges][..., :2]) == 2.5).any()
    grid = mesh.Mesh.from_data(data, SELF)
    b = np.array([0.0, 500, 1000])
    found = [simulate(Tissue(grid, density=density, permeability=Permeability.on(grid, membrane=0),
                             periodic="xyz"), Acquisition.pgse(b, [1, 0, 0], 2, 10),
                      tolerance=1e-5, mesh_error=False).normalised
             for density in ({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1e-6})]
    assert np.abs(found[1] - analytic.cylinder(b, 2, 10, 2.0)).max() < 2e-4
    assert np.abs(found[0] - found[1]).max() > 0.05


def test_means_over_long_times():
    """The ADC of `mf_adc` against that of fine facets."""
    table = Acquisition.pgse([500], [1, 0, 0], 5, 20)
    found = [mf_adc(Tissue(mesh.build(mesh.disks, [5.0], size, order=order, comm=SELF)), table,
                    degree=2).adc[0] for size, order in ((0.5, 1), (1.5, 2))]
    assert found[0] == pytest.approx(found[1], rel=2e-4)


def test_short_times_know_the_normals():
    """D(t) of a disc by its true area and normals: isotropic, S/V = 2/R."""
    grid = mesh.build(mesh.disks, [5.0], 1.5, order=2, comm=SELF)
    table = Acquisition.pgse(1000.0, [[1, 0, 0], [0.6, 0.8, 0]], delta=1e-5, Delta=0.1)
    found = short_time_approximation(Tissue(grid, 2.0), table).adc
    exact = 2.0 * (1 - 4 / (3 * np.sqrt(np.pi)) * np.sqrt(0.2) / 5.0)
    assert np.allclose(found, exact, rtol=3e-6)  # pulses are not quite short


# ---- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [mesh.disks([2, 4], 2, order=2), mesh.spheres([2, 4], 3, order=2)],
                         ids=["disks", "spheres"])
def test_round_trips(tmp_path, data):
    for suffix, write in ((".npz", readers.write_npz), (".msh", readers.write_msh)):
        write(tmp_path / f"mesh{suffix}", data)
        same(readers.read(tmp_path / f"mesh{suffix}"), data)


@pytest.mark.mpi
def test_saved_and_read_in_slabs(comm, tmp_path):
    data = mesh.spheres([2, 4], 3, order=2)
    path = comm.bcast(tmp_path / "mesh.npz")
    mesh.Mesh.from_data(data if comm.rank == 0 else None, comm).save(path)
    same(readers.read(path), data)
    grid = mesh.read_in_slabs(path, comm)
    edges, middles = (np.concatenate(comm.allgather(part)) for part in bent_edges(grid))
    assert (edges == data.curved_edges).all() and (middles == data.middles).all()


def test_second_order_files_of_gmsh(tmp_path):
    """A ball in a box as gmsh itself makes it, in its own formats."""
    import gmsh

    gmsh.initialize(readConfigFiles=False, interruptible=False)
    try:
        gmsh.option.setNumber("General.Terminal", 0)
        gmsh.option.setNumber("Mesh.MeshSizeMax", 3.0)
        gmsh.option.setNumber("Mesh.ElementOrder", 2)
        gmsh.option.setNumber("Mesh.HighOrderOptimize", 1)  # else a cell is turned inside out
        occ = gmsh.model.occ
        occ.fragment([(3, occ.addBox(-5, -5, -5, 10, 10, 10))], [(3, occ.addSphere(0, 0, 0, 3))])
        occ.synchronize()
        inner, = (tag for _, tag in gmsh.model.getEntitiesInBoundingBox(*[-3.1] * 3, *[3.1] * 3, 3))
        gmsh.model.addPhysicalGroup(3, [inner], 1)
        gmsh.model.addPhysicalGroup(3, [tag for _, tag in gmsh.model.getEntities(3)
                                        if tag != inner], 2)
        gmsh.model.addPhysicalGroup(2, [tag for _, tag in gmsh.model.getBoundary([(3, inner)])], 1)
        gmsh.model.mesh.generate(3)
        for version in (2.2, 4.1):
            gmsh.option.setNumber("Mesh.MshFileVersion", version)
            gmsh.write(str(tmp_path / f"{version}.msh"))
    finally:
        gmsh.finalize()
    old, new = (readers.read(tmp_path / f"{version}.msh") for version in (2.2, 4.1))
    assert len(old.curved_edges) == len(new.curved_edges) > 30
    for data in (old, new):
        held = [data.volumes[data.cell_tags == tag].sum() for tag in (1, 2)]
        assert held == pytest.approx([36 * np.pi, 1000 - 36 * np.pi], rel=5e-3)
        assert sum(held) == pytest.approx(1000) and len(data.interface_facets)
        wall = np.isin(data.curved_edges, data.interface_facets).all(axis=1)
        reach = np.linalg.norm(data.middles[wall], axis=1)
        assert np.count_nonzero(np.abs(reach - 3) < 1e-6) > 0.9 * wall.sum() > 30


def test_repair_makes_edges_straighter(tmp_path):
    data = mesh.disks([2, 4], 2, order=2)
    middles = data.middles.copy()
    middles[0] -= 20 * (middles[0] - data.points[data.curved_edges[0]].mean(axis=0))
    readers.write_npz(tmp_path / "bad.npz", replace(data, middles=middles))
    with pytest.raises(InputError, match="of .* turned inside out .*read with repair=True"):
        readers.read(tmp_path / "bad.npz")
    with pytest.warns(RepairWarning, match="1 curved edges made straighter"):
        read = readers.read(tmp_path / "bad.npz", repair=True)
    assert (read.middles[1:] == data.middles[1:]).all()


def test_magnetisation_is_written_on_curved_cells(tmp_path):
    for builder, kind in ((mesh.disks, "triangle6"), (mesh.spheres, "tetra10")):
        grid = mesh.build(builder, [3.0], 2.5, order=2, comm=SELF)
        problem = BlochTorrey(Tissue(grid), 2)
        engine = MatrixFormalism(problem, Acquisition.pgse([500], [1, 0, 0], 2, 5))
        engine.signals()
        write_magnetisation(tmp_path / "m.pvd", problem, [0.0], magnetisation(engine, 0, [0.0]))
        read = meshio.read(tmp_path / "m_0000.vtu")
        assert [block.type for block in read.cells] == [kind]
        assert read.point_data["re"] == pytest.approx(1.0)
        nodes = read.points[read.cells[0].data]
        assert np.linalg.norm(nodes, axis=2).max() == pytest.approx(3.0, rel=1e-2)
        # as VTK has it: edge (0, 1) comes first after the corners
        first = nodes[:, grid.dim + 1] - nodes[:, :2].mean(axis=1)
        size = np.linalg.norm(nodes[:, 1] - nodes[:, 0], axis=1)
        assert (np.linalg.norm(first, axis=1) < 0.3 * size).all()


def test_order_in_a_run_file(tmp_path, capsys):
    text = ("mesh: {{builder: disks, radii_um: [2, 4], size_um: 2, order: {}}}\n"
            "tissue: {{permeability: {{membrane_m_per_s: 2e-5}}}}\n"
            "acquisition: {{pgse: {{b_s_per_mm2: [0, 1000], directions: [1, 0, 0], delta_ms: 2, "
            "Delta_ms: 5}}}}\n")
    for order, code in ((2, 0), (3, 2)):
        (tmp_path / "run.yaml").write_text(text.format(order))
        folder = tmp_path / f"out{order}"
        assert cli.main(["simulate", str(tmp_path / "run.yaml"), "-o", str(folder)]) == code
    assert len(readers.read(tmp_path / "out2" / "mesh.npz").curved_edges)
    said = capsys.readouterr()
    assert "curved cells" in said.out
    assert "order is 3, expected 1 (straight cells) or 2 (curved ones)" in said.err


# ---- what is refused ----------------------------------------------------------------------------


def test_refused():
    data = mesh.disks([2, 4], 2, order=2)
    edges, middles = data.curved_edges, data.middles

    def made(edges, middles, **more):
        values = {"points": data.points, "cells": data.cells} | more
        return MeshData(**values, curved_edges=edges, middles=middles).check()

    for wrong, words in [
            (lambda: made([[0, 10**6]], [[0, 0, 0]]), "is no edge of a cell"),
            (lambda: made(np.repeat(edges[:1], 2, axis=0), middles[:2]), "there twice"),
            (lambda: made(edges, 4 * middles), "turned inside out"),
            (lambda: made(edges, middles + [0, 0, 1]), "in the plane z = 0"),
            (lambda: made(edges, middles * np.nan), "finite"),
            (lambda: made(edges, middles[1:]), "shape"),
            (lambda: made([[0, 1]], [[0.6, 0, 0]], points=[[0, 0, 0], [1, 0, 0]],
                          cells=[[0, 1]]), "expected none in a mesh of intervals"),
            (lambda: mesh.disks([2], 1, order="2"), "order is '2'"),
            (lambda: mesh.spheres([2], 1, order=True), "order is True"),
            (lambda: WholeMesh.of(mesh.Mesh.from_data(mesh.spheres([3], 3, order=2), SELF)),
             "expected straight ones (order 1) for a search"),
            (lambda: glued(mesh.Mesh.from_data(mesh.sphere_in_box(
                2, [6, 6, 6], 3, periodic=True, order=2), SELF)), "expected straight ones")]:
        with pytest.raises((InputError, SolverError), match="expected") as caught:
            wrong()
        assert words in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
