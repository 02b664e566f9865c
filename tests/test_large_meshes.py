"""The search on meshes of more than a thousand cells: fields in modes of the box, effects of moves
from the states at one partition, a whole search, the same on two ranks."""

import numpy as np
import pytest
import ufl
from mpi4py import MPI

import spinverse
from spinverse import Acquisition, InverseProblem, Permeability, Shapes, Tissue
from spinverse.benchmark import targets
from spinverse.engines.shapes.partition import PartitionModel
from spinverse.engines.shapes.restricted import RestrictedModel
from spinverse.errors import InputError
from spinverse.inversion.shapes import schedule
from spinverse.inversion.shapes.cells import SMALLEST, STEPS, Cells, changed
from spinverse.inversion.shapes.hypothesis import overlap
from spinverse.inversion.shapes.ledger import SearchLedger
from spinverse.inversion.shapes.levels import Levels
from spinverse.inversion.shapes.models import Models
from spinverse.inversion.shapes.search import Search
from spinverse.inversion.shapes.settings import Settings
from spinverse.inversion.shapes.surfaces import Surfaces
from spinverse.mesh.grids import kuhn
from spinverse.mesh.whole import WholeMesh

CUBES = 5  # 1200 mesh cells


def relaxing(m, v, t, c):
    """Inside cells, on the outer boundary and on all facets."""
    both = ufl.inner(m("+"), v("+")) + ufl.inner(m("-"), v("-"))
    return (0.02 * ufl.inner(m, v) * c.dx + c["rho"] * ufl.inner(m, v) * c.ds
            + c["rho"] * c.membrane("+") * both * c.dS)


CASES = {  # of the problem, and the boundary
    "absorbing": ({}, "absorbing"), "reflecting": ({}, "reflecting"),
    "two diffusivities": ({"unknown": ("diffusivity_inside", "diffusivity_outside")}, "absorbing"),
    "densities": ({"unknown": ("density_ratio",)}, "absorbing"),
    "terms": ({"extra_terms": relaxing, "extra_coefficients": {"rho": 0.03}}, "absorbing")}


@pytest.fixture(scope="module")
def target():
    return targets.own("sphere", CUBES)


def models_of(target, comm, case="absorbing", cells=1):
    """With signals of nothing: predictions count."""
    known, boundary = CASES[case]
    mesh = spinverse.mesh.Mesh.from_data(target.data, comm)
    table = Acquisition.pgse(b=[0, 2000, 5000], directions=4, delta=10, Delta=[20, 60])
    values = np.ones(len(table), dtype=complex)
    problem = InverseProblem(mesh, spinverse.Signals(table, values, "um^3"), boundary=boundary,
                             wall_permeability=0.05, noise=0.0, **known)
    return Models(problem, cells)


def shapes_of(models):
    """A ball, an ellipsoid that the boundary cuts, two cells that touch."""
    x = models.whole.centroids
    ball = np.linalg.norm(x - [1.0, -0.5, 0.0], axis=1) < 6.5
    cut = ((x - [8.0, 0, 0]) / [9.0, 5.0, 6.0]) ** 2 @ np.ones(3) < 1
    return [ball.astype(np.int8), cut.astype(np.int8), ball * (1 + (x[:, 0] > 1)).astype(np.int8)]


@pytest.mark.parametrize("case", CASES)
def test_modes_of_the_box_do_as_all_functions_of_each_label(target, case):
    models = models_of(target, MPI.COMM_SELF, case, cells=2)
    theta = models.start + 0.2 * np.arange(len(models.start))
    model = models.partition(theta)
    assert isinstance(model, RestrictedModel)
    full = PartitionModel(model.blocks, model.walls)
    sweeps = models.all.sweeps(0.5, model.kind)
    for labels in shapes_of(models):
        expected = full.signals(labels, sweeps)
        error = np.abs(model.signals(labels, sweeps)) - np.abs(expected)
        rest = np.abs(expected[models.all.likelihood.acquisition.b == 0]).max()
        # open facets slow down by 1e-3: what the full model corrects is as large
        assert np.sqrt(np.mean(error**2)) < 5e-4 * rest


@pytest.mark.mpi
@pytest.mark.parametrize("case", ["absorbing", "two diffusivities", "densities", "terms"])
def test_effects_of_moves_from_the_states_at_one_partition(comm, target, case):
    """Against solving each: single ones, and pairs of neighbours beside their sum."""
    models = models_of(target, comm, case, cells=2)
    labels = shapes_of(models)[2]
    cells = Cells(models.whole)
    every = [move for move in cells.moves(labels) if cells.allowed(changed(labels, [move]))]
    place = {move: k for k, move in enumerate(every)}
    pairs = [(k, place[other, label]) for k, (cell, label) in enumerate(every)
             for other in cells.neighbours[cell] if place.get((other, label), -1) > k]
    theta = models.start + 0.2 * np.arange(len(models.start))
    D, V = models.effects(labels, theta, models.all, every, pairs)
    assert D.shape == (len(every), len(models.all.measured))
    chosen, some = range(0, len(every), 12), pairs[::12]
    here, *there = models.residuals(
        [labels, *(changed(labels, [every[k]]) for k in chosen),
         *(changed(labels, [every[k] for k in pair]) for pair in some)], theta, models.all)
    single, both = np.array(there[: len(chosen)]) - here, np.array(there[len(chosen):]) - here
    found = np.array([D[k] for k in chosen])
    assert np.linalg.norm(found - single) < 0.25 * np.linalg.norm(single)
    sums = np.array([D[a] + D[b] for a, b in some])
    together = sums + np.array([V[pairs.index(pair)] for pair in some])
    assert np.linalg.norm(together - both) < 0.3 * np.linalg.norm(both)
    assert np.linalg.norm(together - both) < np.linalg.norm(sums - both)


def test_parts_of_a_label_that_meet_at_a_node(target):
    """They have magnetisation of their own there, as without modes of the box."""
    models = models_of(target, MPI.COMM_SELF)
    model, whole = models.partition(models.start), models.whole
    assert isinstance(model, RestrictedModel)
    cells, labels = Cells(whole), shapes_of(models)[0]
    # mesh cells that touch the ball at vertices alone, with one that connects each with it
    rng, meeting = np.random.default_rng(0), 0
    while meeting < 6:
        cell = int(rng.choice(np.flatnonzero(labels == 0)))
        trial = labels.copy()
        trial[[cell, cells.neighbours[cell][0]]] = 1
        if cells.allowed(trial):
            model.basis(trial)
            if len(model._apart[0]) > meeting:
                labels, meeting = trial, len(model._apart[0])
    full = PartitionModel(model.blocks, model.walls)
    sweeps = models.all.sweeps(0.5, model.kind)
    expected = np.abs(full.signals(labels, sweeps))
    change = np.abs(full.signals(shapes_of(models)[0], sweeps)) - expected
    error = np.abs(model.signals(labels, sweeps)) - expected
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(change)


@pytest.mark.mpi
def test_walls_move_as_the_slopes_of_smooth_shapes_say(comm, target):
    models = models_of(target, comm, cells=2)
    levels, surfaces = Levels(models, 2), Surfaces(models, Cells(models.whole), models.all)
    x = (models.whole.centroids - models.whole.centre).T
    # two ellipsoids that meet
    first = 1 - ((x[0] + 3) / 6) ** 2 - (x[1] / 5) ** 2 - (x[2] / 6) ** 2
    second = 1 - ((x[0] - 4) / 5) ** 2 - (x[1] / 6) ** 2 - (x[2] / 5) ** 2
    a = np.array([levels.scaled(np.linalg.lstsq(levels.values, psi, rcond=None)[0])
                  for psi in (first, second)])
    surfaces._sums = surfaces._within(np.where(second > 0, 2, first > 0), 2)
    assert np.array_equal(surfaces._sums, np.eye(2))  # beside each other
    here = surfaces._at(levels, a, models.start)
    J, metric, D, moved = surfaces._slopes(levels, a, here)
    assert J.shape == (len(models.all.measured), a.size) and metric.shape == (a.size,) * 2
    assert here.cells == 2
    # a mesh cell flips or not: half a cell both ways, one coefficient at a time
    alike = []
    for step in np.eye(a.size)[:10]:
        step = 0.5 * models.size * step / np.sqrt(np.mean((moved @ step) ** 2))
        up, down = (models.residuals([surfaces._at(levels, a + sign * step.reshape(a.shape),
                                                   models.start).labels], models.start,
                                     models.all)[0] for sign in (1, -1))
        found, said = up - down, 2 * J @ step
        alike.append(found @ said / np.linalg.norm(found) / np.linalg.norm(said))
    assert np.min(alike) > 0.8 and np.mean(alike) > 0.9


def test_a_cell_within_another_goes_with_it(target):
    """Its level function adds to that of its host, whose coefficients move the outer wall alone."""
    models = models_of(target, MPI.COMM_SELF, cells=2)
    levels, surfaces = Levels(models, 2), Surfaces(models, Cells(models.whole), models.all)
    x = (models.whole.centroids - models.whole.centre).T
    host = 1 - ((x[0] - 1) / 8) ** 2 - (x[1] / 7) ** 2 - (x[2] / 7) ** 2
    inner = 1 - ((x[0] + 1) / 4) ** 2 - (x[1] / 3) ** 2 - (x[2] / 3) ** 2
    a = np.array([levels.scaled(np.linalg.lstsq(levels.values, psi, rcond=None)[0])
                  for psi in (host, inner)])
    surfaces._sums = surfaces._within(np.where(inner > 0, 2, host > 0), 2)
    assert np.array_equal(surfaces._sums, [[1, 0], [1, 1]])
    here = surfaces._at(levels, a, models.start)
    assert np.array_equal(here.labels, np.where(inner > 0, 2, host > 0))
    *_, moved = surfaces._slopes(levels, a, here)
    n = a.shape[1]
    first, second = models.whole.sides[surfaces._inner].T
    p, q = here.labels[first], here.labels[second]
    between = ((p > 0) & (q > 0))[p != q]
    assert between.any() and not between.all()
    assert np.abs(moved[between, :n]).max() < 1e-12 < np.abs(moved[between, n:]).max()
    assert np.abs(moved[~between, n:]).max() < 1e-12 < np.abs(moved[~between, :n]).max()


def test_smooth_shapes_come_near_the_truth(target):
    """From a far start, with the permeability unknown; no search yet."""
    mesh = spinverse.mesh.Mesh.from_data(target.data, MPI.COMM_SELF)
    kappa = Permeability.on(mesh, membrane=0.05, elsewhere=100.0, outer=100.0)
    table = Acquisition.pgse(b=[0, 1000, 3000, 5000], directions=10, delta=[5, 10],
                             Delta=[6, 20])
    signals = spinverse.simulate(Tissue(mesh, permeability=kappa), table, tolerance=1e-4)
    models = Models(InverseProblem(mesh, signals, boundary="absorbing",
                                   unknown=("wall_permeability",)))
    x = models.whole.centroids
    start = ((x - [2.0, 1.0, 0.0]) / [9.0, 5.0, 4.0]) ** 2 @ np.ones(3) < 1
    surfaces = Surfaces(models, Cells(models.whole), models.all)
    begun = surfaces._hypothesis(start.astype(np.int8), models.start)
    smooth = surfaces.fit(begun)
    truth = (target.data.cell_tags > 0).astype(np.int8)
    assert smooth.hypothesis.misfit < 0.02 * begun.misfit
    # wherever it is
    places = [np.where(source >= 0, smooth.hypothesis.labels[source], 0)
              for _, _, source in Cells(models.whole).maps]
    assert max(overlap(place, truth) for place in places) > 0.7
    found = models.values(smooth.hypothesis.theta)["wall_permeability"]
    assert 0.03 < np.ravel(found)[0] < 0.08


def test_allowed_partitions_as_by_their_pieces(target):
    """The quick test against the pieces themselves, on random walks of labels."""
    whole = WholeMesh.of(spinverse.mesh.Mesh.from_data(target.data, MPI.COMM_SELF))
    cells, rng = Cells(whole), np.random.default_rng(0)

    def by_pieces(labels):
        inside = [labels == label for label in range(1, labels.max() + 1)]
        return (labels.any()
                and all(one.sum() >= SMALLEST and len(cells.pieces(one)) == 1 for one in inside)
                and all(cells.at_rim[part].any() for part in cells.pieces(labels == 0)))

    answers = []
    for turn in range(60):
        labels = (target.data.cell_tags > 0).astype(np.int8)
        if turn % 3 == 0:
            labels[(whole.centroids[:, 0] > 0) & (labels > 0)] = 2
        for _ in range(turn % 7):
            moves = cells.moves(labels)
            labels = changed(labels, [moves[rng.integers(len(moves))]])
        labels[rng.integers(len(labels), size=turn % 2)] = 0
        answers.append(cells.allowed(labels))
        assert answers[-1] == by_pieces(labels)
    assert 0 < sum(answers) < len(answers)
    assert not cells.allowed(np.zeros(len(whole.cells), np.int8))


def test_places_on_a_fine_mesh_lie_everywhere():
    data = targets.own("sphere", 8).data
    whole = WholeMesh.of(spinverse.mesh.Mesh.from_data(data, MPI.COMM_SELF))
    maps = Cells(whole).maps
    steps = np.array([step for sign, step, _ in maps if sign > 0])
    assert len(steps) == STEPS < len(whole.points)
    assert (np.abs(steps).max(axis=0) > 0.45 * np.ptp(whole.points, axis=0)).all()


@pytest.mark.slow
def test_a_search_on_a_large_mesh(target):
    """Of few measurements, from their own signals: the cells as they are."""
    mesh = spinverse.mesh.Mesh.from_data(target.data, MPI.COMM_SELF)
    kappa = Permeability.on(mesh, membrane=0.01, elsewhere=100.0, outer=100.0)
    table = Acquisition.pgse(b=[0, 1000, 3000, 5000], directions=10, delta=[5, 10],
                             Delta=[6, 20])
    signals = spinverse.simulate(Tissue(mesh, permeability=kappa), table)
    problem = InverseProblem(mesh, signals, boundary="absorbing", wall_permeability=0.01)
    search = Search(problem, Settings(cells=1, ellipsoids=100, candidates=3))
    ledger = SearchLedger(search)
    assert schedule.run(search, ledger) == "the data are explained"
    assert overlap(ledger.best.labels, (target.data.cell_tags > 0).astype(np.int8)) == 1


def test_two_cells_are_fitted_at_once():
    """From balls of wrong sizes near their places."""
    target = targets.own("two-cells-0", CUBES)
    mesh = spinverse.mesh.Mesh.from_data(target.data, MPI.COMM_SELF)
    kappa = Permeability.on(mesh, membrane=0.01, elsewhere=100.0, outer=100.0)
    table = Acquisition.pgse(b=[0, 1000, 3000, 5000], directions=6, delta=[5, 10], Delta=[6, 20])
    signals = spinverse.simulate(Tissue(mesh, permeability=kappa), table, tolerance=1e-4)
    problem = InverseProblem(mesh, signals, boundary="absorbing", wall_permeability=0.01)
    models = Models(problem, 2)
    x, truth = models.whole.centroids, target.data.cell_tags
    wrong = np.zeros(len(x), np.int8)
    for label, (ball, more) in enumerate(zip(target.shapes, (1.2, -1.0), strict=True), 1):
        wrong[ball.level(x - [0.5, 0.0, -0.5]) < more] = label
    surfaces = Surfaces(models, Cells(models.whole), models.all)
    begun = surfaces._hypothesis(wrong, models.start)
    smooth = surfaces.fit(begun, ((2, 8), (3, 4)))
    found = smooth.hypothesis
    assert found.misfit < 0.05 * begun.misfit
    assert found.cells == 2  # few measurements tell the sum of volumes best
    inside, true = (models.whole.volumes[labels > 0].sum() for labels in (found.labels, truth))
    assert inside == pytest.approx(true, rel=0.05)


def test_many_cells_are_for_boxes_that_end():
    table = Acquisition.pgse(b=[0, 2000], directions=2, delta=10, Delta=20)
    ones = spinverse.Signals(table, np.ones(len(table), complex), "um^3")
    planes = np.linspace(0, 12.0, 4)
    mesh = spinverse.mesh.Mesh.from_data(
        spinverse.mesh.MeshData(*kuhn(planes, planes, planes)), MPI.COMM_SELF)
    Shapes(cells=9).check(InverseProblem(mesh, ones))
    periodic = InverseProblem(mesh, ones, boundary="periodic")
    with pytest.raises(InputError, match="cells 3, expected at most 2 in a periodic box"):
        Shapes(cells=3).check(periodic)
    Shapes().check(periodic)
