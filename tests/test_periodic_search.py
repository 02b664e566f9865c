"""Periodic boxes in the inverse problem: glued faces, fast models, places, a walk, alignment, bad
input; on one rank and on two."""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI

from spinverse import (
    Acquisition,
    BlochTorrey,
    InputError,
    InverseProblem,
    Permeability,
    Tissue,
    simulate,
)
from spinverse.acquisition import Signals
from spinverse.benchmark.targets import SIDE, across, own
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.engines.shapes.blocks import Assembly
from spinverse.engines.shapes.directions import DirectionBases
from spinverse.engines.shapes.drift import AXIS_PAIRS, DriftSweeps
from spinverse.engines.shapes.graded import GradedModel
from spinverse.engines.shapes.partition import PartitionModel
from spinverse.engines.shapes.walls import Walls
from spinverse.glued import glued
from spinverse.interface.metrics import compare
from spinverse.inversion.shapes.cells import Cells
from spinverse.inversion.shapes.search import Search
from spinverse.inversion.shapes.settings import Settings
from spinverse.mesh import Mesh
from spinverse.mesh.data import MeshData
from spinverse.mesh.grids import kuhn
from spinverse.mesh.whole import WholeMesh

LENGTH, CUBES = 16.0, 4
WALL, OPEN = 0.1, 100.0
STEPS = np.array([(0, 0, 0), (2, 0, 0), (2, 1, 3)])  # of a cube


def table(directions=2):
    return Acquisition.pgse([0, 1000, 3000], directions, [5, 10], [6, 20])


def box(comm=MPI.COMM_SELF, cubes=CUBES):
    planes = np.linspace(0, LENGTH, cubes + 1)
    data = MeshData(*kuhn(planes, planes, planes))
    return Mesh.from_data(data if comm.rank == 0 else None, comm)


def labels_of(whole, step=(0, 0, 0)):
    """A ball round the middle of the box, shifted by steps of a cube."""
    centre = whole.centre + np.array(step) * LENGTH / CUBES + (0.3, 0.5, 0.1)
    return (np.linalg.norm(whole.wrapped(whole.centroids - centre), axis=1) < 5.2).astype(np.int8)


def tissue_of(mesh, whole, labels, walls, **values):
    kappa = walls.permeability(labels, whole.sides)
    return Tissue(mesh, permeability=Permeability(mesh, whole.facet_values(kappa)), **values)


def magnitudes(mesh, step, opened=np.inf):
    whole = WholeMesh.of(mesh)
    tissue = tissue_of(mesh, whole, labels_of(whole, step), Walls(WALL, opened, False))
    problem = BlochTorrey(tissue)
    return np.abs(MatrixFormalism(problem, table(), min(100, problem.num_unknowns)).signals())


# ---- glued meshes -------------------------------------------------------------------------------

@pytest.mark.mpi
def test_glued_faces_are_facets_like_others(comm):
    """Facets of opposite faces are one; signals are those of tied faces, on any number of ranks."""
    plain = box(comm)
    mesh = glued(plain)
    assert comm.allreduce(int(mesh.outer.sum())) == 0
    assert mesh.num_facets == 2 * mesh.num_cells
    assert np.isclose(comm.allreduce(mesh.facet_areas.sum()) + 3 * LENGTH**2,
                      comm.allreduce(plain.facet_areas.sum()))
    whole = WholeMesh.of(mesh)
    assert whole.periodic and np.array_equal(np.bincount(whole.sides.ravel()), np.full(384, 4))
    inside = labels_of(whole)  # nowhere at a face
    kappa = np.full(plain.num_owned_facets, np.inf)
    old = WholeMesh.of(plain)
    kappa[:] = old.facet_values(Walls(WALL, np.inf, False).permeability(inside, old.sides))
    tied = BlochTorrey(Tissue(plain, permeability=Permeability(plain, kappa), periodic="xyz"))
    expected = np.abs(MatrixFormalism(tied, table(), 80).signals())
    new = BlochTorrey(tissue_of(mesh, whole, inside, Walls(WALL, np.inf, False)))
    found = np.abs(MatrixFormalism(new, table(), 80).signals())
    assert np.abs(found - expected).max() < 1e-8 * expected[0]
    alone = magnitudes(glued(box()), STEPS[2])
    assert np.abs(magnitudes(mesh, STEPS[2]) - alone).max() < 1e-8 * alone[0]


@pytest.mark.parametrize("opened", [np.inf, OPEN])
def test_signals_see_no_shift_over_the_faces(opened):
    """Walls on the faces are walls: lattice steps and the point reflection change nothing."""
    mesh = glued(box())
    first, *others = (magnitudes(mesh, step, opened) for step in STEPS)
    for other in others:
        assert np.abs(other - first).max() < 1e-7 * first[0]


def test_membranes_of_an_upper_face_are_kept():
    data = own_on_face()
    mesh = glued(Mesh.from_data(data, MPI.COMM_SELF))
    assert np.count_nonzero(mesh.interface) == len(data.interface_facets)


def own_on_face():
    """A box whose membrane is its whole upper x face."""
    planes = np.linspace(0, LENGTH, CUBES + 1)
    points, tets = kuhn(planes, planes, planes)
    plain = WholeMesh.of(Mesh.from_data(MeshData(points, tets), MPI.COMM_SELF))
    upper = (points[plain.facets][..., 0] == LENGTH).all(axis=1)
    return MeshData(points, tets, interface_facets=plain.facets[upper]).check()


# ---- fast models --------------------------------------------------------------------------------

@pytest.mark.mpi
@pytest.mark.parametrize("values", [{}, {"diffusivity": np.diag([2.0, 1.5, 1.0]),
                                         "T2": 50.0}])
def test_fast_models_of_a_periodic_box(comm, values):
    """Blocks entry by entry; signals of both models, and of the engine, against all modes."""
    mesh = glued(box(comm))
    whole = WholeMesh.of(mesh)
    labels, tied = labels_of(whole, STEPS[1]), Walls(WALL, np.inf, False)
    problem = BlochTorrey(tissue_of(mesh, whole, labels, tied, **values))
    blocks = Assembly(problem, whole).blocks(tied)
    dofs, owned = problem.space.dofmap.list, mesh.num_owned_cells
    for axis, form in problem.local_drifts.items():
        for cell in range(0, owned, 20):
            here = form[dofs[cell]][:, dofs[cell]].toarray()
            assert np.abs(blocks.drift[0, axis, mesh.input_cells[cell]] - here).max() < 1e-12
    for place, pair in enumerate(AXIS_PAIRS):
        for cell in range(0, owned, 20) if pair in problem.local_squares else ():
            here = problem.local_squares[pair][dofs[cell]][:, dofs[cell]].toarray()
            assert np.abs(blocks.square[0, place, mesh.input_cells[cell]] - here).max() < 1e-12
    expected = MatrixFormalism(problem, table(), problem.num_unknowns).signals()
    sweeps = DriftSweeps.of(table(), 0.5)
    for model, shape in ((PartitionModel(blocks, tied), labels),
                         (GradedModel(blocks, tied), labels.astype(float))):
        error = np.abs(model.signals(shape, sweeps) - expected).max() / np.abs(expected[0])
        assert error < 1e-3
    engine = DirectionBases(problem, table())
    assert np.abs(engine.signals() - expected).max() < 1e-5 * np.abs(expected[0])
    assert engine.estimated_error < 1e-4


@pytest.mark.parametrize("values", [{}, {"density": 0.5}, {"diffusivity": np.diag([2.0, 1.5, 1])}])
def test_direction_bases_with_open_facets(values):
    """Where no facet is tied, at another permeability than at first."""
    mesh = glued(box(cubes=3))
    whole = WholeMesh.of(mesh)
    walls = Walls(WALL, OPEN, False)
    problem = BlochTorrey(tissue_of(mesh, whole, labels_of(whole), walls, **values))
    kappa = whole.facet_values(walls.permeability(labels_of(whole, STEPS[1]), whole.sides))
    found = DirectionBases(problem, table(1)).signals(kappa)
    expected = MatrixFormalism(problem, table(1), problem.num_unknowns).signals(kappa)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected[0])


def blocks_of_density(mesh, walls, inside):
    """Blocks of a density that is not known beforehand, over 1 outside."""
    problem = BlochTorrey(Tissue(mesh), densities=True)

    def put(value):
        problem.coefficients.rho.x.array[:] = value

    return Assembly(problem, WholeMesh.of(mesh)).blocks(
        walls, 0.0, [lambda: put(1.0), lambda: put(inside)])


def test_an_unknown_density_in_a_periodic_box():
    """Signals of all models against the engine for a tissue of that density."""
    mesh = glued(box())
    whole = WholeMesh.of(mesh)
    labels, sweeps = labels_of(whole, STEPS[1]), DriftSweeps.of(table(), 0.5)
    walls = Walls(WALL, np.inf, False)
    problem = BlochTorrey(tissue_of(mesh, whole, labels, walls,
                                    density=np.array([1.0, 0.6])[labels]))
    expected = MatrixFormalism(problem, table(), problem.num_unknowns).signals()
    blocks = blocks_of_density(mesh, walls, 0.6)
    for found in (PartitionModel(blocks, walls).signals(labels, sweeps),
                  GradedModel(blocks, walls).signals(labels.astype(float), sweeps)):
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected[0])


def test_a_density_that_changes_under_direction_bases():
    """The engine of a search stays while the density of its problem is changed."""
    mesh = glued(box(cubes=3))
    whole = WholeMesh.of(mesh)
    labels, walls = labels_of(whole, STEPS[1]), Walls(WALL, OPEN, False)
    problem = BlochTorrey(tissue_of(mesh, whole, labels, walls), densities=True)
    engine = DirectionBases(problem, table(1))
    engine.signals()
    rho = np.array([1.0, 0.6])[labels]
    # one value a cell, in the order of this rank's cells
    problem.coefficients.rho.x.array[:] = rho[mesh.input_cells]
    problem.density_has_changed()
    same = BlochTorrey(tissue_of(mesh, whole, labels, walls, density=rho))
    expected = MatrixFormalism(same, table(1), same.num_unknowns).signals()
    assert np.abs(engine.signals() - expected).max() < 1e-5 * np.abs(expected[0])


@pytest.mark.parametrize("inside", [1.0, 0.6])
def test_derivatives_of_graded_shapes(inside):
    mesh = glued(box())
    walls = Walls(WALL, np.inf, False)
    model = GradedModel(blocks_of_density(mesh, walls, inside), walls)
    sweeps = DriftSweeps.of(table(1), 0.1)
    c = np.random.default_rng(2).uniform(0.2, 0.8, mesh.num_cells)
    d, h = np.sin(np.arange(len(c))), 1e-2
    _, J = model.jacobian(c, sweeps)
    up, down = (np.abs(model.signals(c + sign * h * d, sweeps)) for sign in (1, -1))
    slope = (up - down) / (2 * h)
    # signals are sums to 1e-7, and the sum over time is a midpoint rule
    assert np.abs(J @ d - slope).max() < 1e-2 * np.abs(slope).max()


# ---- the search ---------------------------------------------------------------------------------

def problem_of(comm=MPI.COMM_SELF, **settings):
    """Data of a ball over the faces, and its labels."""
    mesh = box(comm)
    torus = glued(mesh)
    whole = WholeMesh.of(torus)
    labels, walls = labels_of(whole, STEPS[1]), Walls(WALL, OPEN, False)
    signals = simulate(tissue_of(torus, whole, labels, walls), table(4), "direction_bases",
                       degree=1)
    return InverseProblem(mesh, signals, boundary="periodic",
                          **settings), labels


@pytest.mark.mpi
def test_a_walk_over_the_faces(comm):
    """From some cells off to the truth; places are no different ones, and need not be tried."""
    problem, truth = problem_of(comm, wall_permeability=WALL)
    assert problem.mesh.glued == "xyz" and problem.unknown_facets.all()
    search = Search(problem, Settings(cells=1))
    cells, models = search.cells, search.models
    assert cells.symmetric and cells.translations() == [] == search.placements.of(truth)
    sign, _, source = cells.maps[11]
    r = models.exact(truth[source], models.start, models.all)
    assert np.mean(r**2) < 1e-12, sign
    models.calibrate(truth, models.start, models.all)
    start, rng = truth.copy(), np.random.default_rng(3)
    moves = cells.moves(truth)
    for k in rng.choice(len(moves), 4, replace=False):
        start[moves[k][0]] = moves[k][1]
    start = cells.repaired(start)
    assert cells.allowed(start) and np.any(start != truth)
    walk = search.scout((0, 1))
    walk.begin(start)
    walk.run(6, 1e-9)
    assert np.array_equal(walk.best.labels, truth) and walk.best.misfit < 1e-12


def test_closed_surfaces_close_through_the_faces():
    problem, truth = problem_of(wall_permeability=WALL)
    cells = Search(problem, Settings(cells=1)).cells
    assert len(cells.pieces(truth > 0)) == 1 and cells.allowed(truth)
    shell = 1 - truth  # its outside is the ball, sealed, and the only part: it counts as outside
    assert cells.allowed(shell)
    holed = truth.copy()
    deep = [cell for cell in np.flatnonzero(truth)
            if all(truth[other] for other in cells.neighbours[cell])]
    holed[deep[0]] = 0
    assert not cells.allowed(holed) and np.array_equal(cells.repaired(holed), truth)


# ---- the benchmark ------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["sphere", "axon-0"])
def test_targets_across_the_faces(name):
    """Shifted round the box and reflected, the truth is found: aligned F1 1, with pairs once."""
    target = across(own(name))
    data = target.data
    mesh = glued(Mesh.from_data(data, MPI.COMM_SELF))
    whole = WholeMesh.of(mesh)
    on_face = np.abs(whole.centroids[data.cell_tags > 0]).max(axis=0) > SIDE / 2 - SIDE / 10
    assert on_face.any()
    sign, _, moved = Cells(whole).maps[33]
    assert sign == -1
    labels = data.cell_tags[moved]
    first, second = labels[whole.sides].T
    found = first != second
    figures = compare(data, whole.facets, found, np.where(found, WALL, OPEN), "periodic")
    assert figures["aligned_f1"] == 1.0 and figures["f1"] < 0.9
    assert figures["true"] == found.sum() == len(data.interface_facets)
    assert figures["bad_edges_percent"] == figures["true_bad_edges_inside_percent"]


# ---- bad input ----------------------------------------------------------------------------------

@pytest.mark.parametrize("mesh, message", [
    (lambda: Mesh.from_data(own("sphere").data, MPI.COMM_SELF), "no equal|no outer facet|expected"),
    (lambda: box(cubes=2), "fewer than three cells"),
])
def test_meshes_that_are_no_periodic_boxes(mesh, message):
    signals = Signals(table(1), np.ones(len(table(1))))
    with pytest.raises(InputError, match=message):
        InverseProblem(mesh(), signals, boundary="periodic")


def test_a_glued_mesh_is_periodic():
    signals = Signals(table(1), np.ones(len(table(1))))
    with pytest.raises(InputError, match="glued"):
        InverseProblem(glued(box()), signals, boundary="absorbing")
    with pytest.raises(InputError, match="glued"):
        Tissue(glued(box()), periodic="x")
