"""The search for shapes: its forward models against the full one, its moves, a whole search."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI

import spinverse
from spinverse.engines.shapes.density import DensityModel
from spinverse.engines.shapes.elements import Elements
from spinverse.engines.shapes.partition import PartitionModel
from spinverse.engines.shapes.pulsed import PulseTable, steps
from spinverse.errors import InputError
from spinverse.inversion import Shapes
from spinverse.inversion.shapes import flips
from spinverse.inversion.shapes.cells import Cells, changed
from spinverse.inversion.shapes.ellipsoids import ellipsoid_labels, examples, overlap, starts
from spinverse.inversion.shapes.graded import bounded_step, shares_of, sharpest
from spinverse.inversion.shapes.levels import Levels, level_of
from spinverse.inversion.shapes.placements import Placements
from spinverse.inversion.shapes.search import STRANGE, Search, Settings
from spinverse.inversion.shapes.task import (
    Lifted,
    Measurements,
    Task,
    _rician_slope,
    repeated_noise,
    rician_mean,
)
from spinverse.inversion.stages import preset
from spinverse.mesh.whole import WholeMesh

MESH = Path(__file__).parents[1] / "meshes" / "sphere_in_grid_bcc.npz"
WALL, OPEN = 0.01, 100.0


def acquisition(directions=3):
    return spinverse.Acquisition.pgse(np.arange(0, 5001, 1000), directions, [5, 10, 10],
                                      [6, 20, 60])


@pytest.fixture(scope="module")
def mesh():
    return spinverse.mesh.read(MESH)


@pytest.fixture(scope="module")
def whole(mesh):
    return WholeMesh.of(mesh)


def ball(whole, radius=8.0, centre=(1.0, -0.5, 0.3)):
    x = whole.centroids - whole.centre - np.array(centre)
    return (np.linalg.norm(x, axis=1) < radius).astype(np.int8)


def halved(whole):
    """Two cells that touch."""
    labels = ball(whole)
    labels[(labels > 0) & (whole.centroids[:, 0] > whole.centre[0] + 2)] = 2
    return labels


def task_of(mesh, labels=None, boundary="absorbing", directions=3, opening=OPEN, signals=None):
    """A task whose signals are those of a partition."""
    if signals is None:
        whole = WholeMesh.of(mesh)
        first, second = whole.sides.T
        a, b = labels[first], np.where(second >= 0, labels[second], 0)
        kappa = np.where(a != b, WALL, opening)
        kappa = np.where((second < 0) & (boundary == "reflecting"), 0.0, kappa)
        kappa = np.where((second < 0) & np.isinf(kappa), OPEN, kappa)
        tissue = spinverse.Tissue(mesh, 2.0, permeability=spinverse.Permeability(
            mesh, whole.facet_values(kappa)))
        signals = spinverse.simulate(tissue, acquisition(directions), modes=250)
    return Task(mesh, spinverse.Tissue(mesh, 2.0), signals, boundary == "absorbing",
                (WALL, opening))


def elements(whole, opening=np.inf, resistance=2.0):
    n = len(whole.cells)
    return Elements(whole, np.tile(2.0 * np.eye(3), (n, 1, 1)), np.zeros(n), opening, resistance)


# ---- the whole mesh -----------------------------------------------------------------------------

@pytest.mark.mpi
def test_a_whole_mesh_is_the_input(mesh, whole):
    data = np.load(MESH)
    np.testing.assert_allclose(whole.points, data["points"], atol=1e-12)
    np.testing.assert_array_equal(np.sort(whole.cells, axis=1), np.sort(data["tets"], axis=1))
    assert len(whole.facets) == mesh.num_facets
    np.testing.assert_array_equal(whole.facets[whole.owned], mesh.facet_vertices)
    np.testing.assert_array_equal(whole.outer[whole.owned], mesh.outer)
    np.testing.assert_allclose(whole.areas[whole.owned], mesh.facet_areas)


# ---- forward models -----------------------------------------------------------------------------

@pytest.mark.parametrize("boundary", ["absorbing", "reflecting"])
def test_a_partition_with_tied_cells_is_what_the_engine_solves(mesh, whole, boundary):
    labels = halved(whole)
    task = task_of(mesh, labels, boundary, opening=np.inf)
    # permeable enough outer facets stand for open ones
    model = PartitionModel(elements(whole), WALL, OPEN if task.absorbing else 0.0, None, 0.1)
    S = model.signals(labels, task.all.table)
    wanted = task.all.signals.values.real
    assert np.abs(S - wanted).max() < (2e-4 * whole.volumes.sum())


def test_the_splitting_is_of_second_order(mesh, whole):
    model = [PartitionModel(elements(whole), WALL, OPEN, (40, 30), h) for h in (0.8, 0.4, 0.02)]
    table = PulseTable.of(acquisition())
    coarse, fine, exact = (m.signals(ball(whole), table) for m in model)
    ratio = np.linalg.norm(coarse - exact) / np.linalg.norm(fine - exact)
    assert 2.5 < ratio < 6.0


def test_steps_fill_the_pulse():
    for duration in (0.5, 5.0, 10.0, 23.7):
        h = steps(duration, 0.5)
        assert h.sum() == pytest.approx(duration, abs=1e-12) and h.max() <= 0.5 + 1e-12


@pytest.mark.parametrize("outer", [2.0, 0.0])
@pytest.mark.parametrize("compartments", [1, 2])
def test_the_derivative_of_graded_shapes(whole, outer, compartments):
    model = DensityModel(elements(whole, OPEN), WALL, outer, longest=0.1,
                         modes=(compartments + 1) * len(whole.points))
    table = PulseTable.of(acquisition(1))
    rng = np.random.default_rng(0)
    c = shares_of(halved(whole) if compartments == 2 else ball(whole))
    c = 0.1 + 0.7 * c + 0.05 * rng.random(c.shape)
    S, J = model.jacobian(c, table)
    np.testing.assert_allclose(S, model.signals(c, table), rtol=1e-9)
    v = rng.normal(size=c.shape)
    slope = (model.signals(c + 1e-4 * v, table) - model.signals(c - 1e-4 * v, table)) / 2e-4
    # a continuous adjoint in single precision: steps of 0.1 ms leave this
    assert np.linalg.norm(J @ v.ravel() - slope) < 3e-3 * np.linalg.norm(slope)


@pytest.mark.parametrize("compartments", [1, 2])
def test_a_sharp_graded_shape_is_a_partition(whole, compartments):
    table, labels = PulseTable.of(acquisition()), ball(whole)
    if compartments == 2:
        labels = halved(whole)
    graded = DensityModel(elements(whole), WALL, OPEN, (compartments + 1) * len(whole.points), 0.2)
    sharp = PartitionModel(elements(whole), WALL, OPEN, None, 0.2)
    difference = graded.signals(shares_of(labels), table) - sharp.signals(labels, table)
    assert np.abs(difference).max() < 3e-3 * whole.volumes.sum()
    np.testing.assert_array_equal(sharpest(shares_of(labels)), labels)


def test_other_waveforms_are_refused():
    oscillating = spinverse.Acquisition.ogse([500], 3, delta=20, Delta=25, periods=2)
    with pytest.raises(InputError, match="shape search: expected pairs of opposite rectangular"):
        PulseTable.of(oscillating)


# ---- noise --------------------------------------------------------------------------------------

def test_rician_mean_and_slope():
    rng = np.random.default_rng(1)
    sigma, s = 0.1, np.array([0.05, 0.2, 0.8])
    draws = np.abs(s + sigma * (rng.normal(size=(400_000, 3)) + 1j * rng.normal(size=(400_000, 3))))
    np.testing.assert_allclose(rician_mean(s, sigma), draws.mean(axis=0), atol=5e-4)
    slope = (rician_mean(s + 1e-5, sigma) - rician_mean(s - 1e-5, sigma)) / 2e-5
    np.testing.assert_allclose(_rician_slope(s, sigma), slope, rtol=1e-6)
    np.testing.assert_array_equal(rician_mean(s, 0.0), s)


def test_noise_from_repeated_measurements():
    a = acquisition(30)
    rng = np.random.default_rng(0)
    noisy = np.abs(1000 + 20 * (rng.normal(size=len(a)) + 1j * rng.normal(size=len(a))))
    assert repeated_noise(spinverse.Signals(a, noisy))[0] == pytest.approx(0.02, rel=0.15)
    assert repeated_noise(spinverse.Signals(a, np.full(len(a), 1000.0))) == (0.0, np.inf)


@pytest.mark.parametrize(("level", "bias"), [(3.0, 0.3), (30.0, 0.1), (1000.0, 0.1)])
def test_noise_leaves_less_where_signals_are_small(level, bias):
    a, sigma = acquisition(30), 20.0
    rng = np.random.default_rng(2)
    noisy = np.abs(level + sigma * (rng.normal(size=len(a)) + 1j * rng.normal(size=len(a))))
    noisy[a.b == 0] = 1000.0
    look = Measurements.of(spinverse.Signals(a, noisy), own=False, sigma=sigma / 1000)
    rows = look.select(np.flatnonzero(a.b > 0))
    draws = np.abs(level + sigma * (rng.normal(size=10**5) + 1j * rng.normal(size=10**5)))
    assert rows.floor == pytest.approx(draws.var() / 1e6, rel=bias)
    assert rows.floor < rows.explained < 1.2 * rows.floor
    assert Measurements.of(look.signals, own=False, sigma=0.0).floor == 0


def test_slope_of_signals_in_arbitrary_units(mesh, whole):
    task = task_of(mesh, ball(whole))
    own = Measurements.of(task.all.signals, own=True, sigma=0.03)
    rng = np.random.default_rng(0)
    S = task.all.signals.values.real * rng.uniform(0.8, 1.2, len(own.measured))
    d = rng.normal(size=len(S))
    slope = (own.normalised(S + 1e-3 * d) - own.normalised(S - 1e-3 * d)) / 2e-3
    np.testing.assert_allclose(own.slope(S, d[:, None])[:, 0], slope, rtol=1e-5, atol=1e-12)


# ---- partitions ---------------------------------------------------------------------------------

def test_what_partitions_are_allowed(whole):
    cells, labels = Cells(whole), ball(whole)
    assert cells.allowed(labels)
    assert not cells.allowed(np.zeros_like(labels))
    hollow = labels.copy()
    hollow[np.linalg.norm(whole.centroids - whole.centre, axis=1).argmin()] = 0
    assert not cells.allowed(hollow)
    np.testing.assert_array_equal(cells.repaired(hollow), labels)
    island = labels.copy()
    island[np.flatnonzero(cells.at_rim)[0]] = 1
    assert not cells.allowed(island)
    np.testing.assert_array_equal(cells.repaired(island), labels)


def test_moves_reach_every_cell_at_a_wall(whole):
    cells = Cells(whole)
    labels = (whole.centroids[:, 0] < whole.centre[0]).astype(np.int8)  # half the box
    moves = set(cells.moves(labels))
    for cell in range(len(labels)):
        across = any(labels[other] != labels[cell] for other in cells.neighbours[cell])
        rim = labels[cell] and cells.at_rim[cell]
        assert ((cell, 1 - labels[cell]) in moves) == bool(across or rim)


def test_what_came_apart_is_several_compartments(whole):
    cells = Cells(whole)
    x = np.abs(whole.centroids[:, 0] - whole.centre[0])
    apart = ball(whole, 12) * (x > 3)
    two = cells.parted(apart, 2)
    np.testing.assert_array_equal(two > 0, apart > 0)
    assert cells.allowed(two) and two.max() == 2
    assert np.count_nonzero(two == 1) >= np.count_nonzero(two == 2)
    np.testing.assert_array_equal(cells.parted(apart, 1) > 0, two == 1)


def test_the_right_place_of_a_compartment_is_found_from_about_right_shapes(mesh, whole):
    """Two cells apart, one shifted by steps of the lattice and both with a cell too many."""
    cells, labels = Cells(whole), ball(whole, 5, (-6, -6, 0)) + 2 * ball(whole, 5, (6, 6, 0))
    task = task_of(mesh, labels)
    wrong = labels
    for label in (1, 2):
        wrong = changed(wrong, [next(m for m in cells.moves(wrong) if m[1] == label)])
    places = Placements(cells)
    moved = [place(wrong) for place in places.of(wrong)]
    at = next(shape for shape in moved if cells.allowed(shape)
              and np.count_nonzero(shape) == np.count_nonzero(wrong)
              and overlap(shape, wrong) < 0.7)
    search = Search(task, Settings(settled=1))
    found = search._placed(search._scout((0,)), at)
    assert overlap(found, labels) > 0.8 or overlap(found, np.array([0, 2, 1])[labels]) > 0.8


@pytest.mark.mpi
def test_one_cell_walks_from_the_right_place(mesh, whole):
    """Of about the right shape, one step of the lattice away; magnitudes do not see the mirror."""
    cells, labels = Cells(whole), ball(whole, 6, (4, 3, 0))
    task = task_of(mesh, labels)
    wrong = labels
    for _ in range(2):
        wrong = changed(wrong, [next(m for m in cells.moves(wrong) if m[1] == 1)])
    moved = [place(wrong) for place in Placements(cells).of(wrong)]
    at = next(shape for shape in moved if cells.allowed(shape)
              and np.count_nonzero(shape) == np.count_nonzero(wrong)
              and 0.05 < overlap(shape, labels) < 0.7)
    search = Search(task, Settings(blind=1, places=2))
    walks = list(search._begun((0,), at))
    mirror = ball(whole, 6, (-4, -3, 0))
    assert max(overlap(walk.labels, there) for walk in walks for there in (labels, mirror)) > 0.8


def test_walks_of_many_moves_are_told_more(mesh, whole):
    """The first steps look at few directions, and where one small cell is followed the rest."""
    one, two = ball(whole), halved(whole)
    search = Search(task_of(mesh, one), Settings(few=1))
    few, everything = search.few, search.task.all
    assert len(few.measured) < len(everything.measured)

    def told(labels):
        walk = search._scout((0,))
        walk.begin(labels)
        assert walk.look is few
        return search._told(walk)

    assert told(one).look is few and told(two).look is everything
    search.settings = Settings(few=1, moves=len(search.cells.moves(one)) - 1)
    walk = told(one)
    assert walk.look is everything and walk.labels is one and walk.f < 0.1
    assert search._told(walk) is walk
    search.settings, search.part = Settings(few=1), Settings().early
    assert told(one).look is everything
    assert all(walk.look is few for walk in search._begun((0,), one))


def test_far_walks_wait_for_graded_shapes(mesh, whole):
    """In the first part only, and not where noise adds to what is left."""
    search = Search(task_of(mesh, ball(whole)), Settings(few=1, blind=1))
    strange = ball(whole, 9, (-3, 2, 4))

    def scouted(white):
        walk = search._scout((0,))
        walk.begin(strange)
        walk.step = lambda places=None: False
        walk.white = white
        search._scout = lambda seed: walk
        walk.begin = lambda labels, nearby=False: None
        try:
            return len(list(search._begun((0,), strange)))
        finally:
            del search._scout

    near, far = 0.5 * STRANGE, 2 * STRANGE
    assert scouted(near) and not scouted(far)
    search.part = 1
    assert scouted(far)
    search.part, search.task.floor = 0, 1e-4
    assert scouted(far)


def test_two_compartments_are_moved_together(mesh, whole):
    """One within the other, and apart: neither shape changes, nor where they are to each other."""
    cells = Cells(whole)
    inner = ball(whole, 5, (2, 0, 0))
    for labels in (ball(whole, 9, (2, 0, 0)) + inner, halved(whole)):
        there = [place(labels) for place in Placements(cells).together(labels)]
        assert len(there) > 5 and any(np.array_equal(shape, labels) for shape in there)
        counts = [np.bincount(shape, minlength=3)[1:] for shape in there]
        assert sum(np.array_equal(n, np.bincount(labels)[1:]) for n in counts) > 5
        x = whole.centroids
        apart = x[labels == 1].mean(axis=0) - x[labels == 2].mean(axis=0)
        for shape, n in zip(there, counts, strict=True):
            if np.array_equal(n, np.bincount(labels)[1:]):
                np.testing.assert_allclose(x[shape == 1].mean(axis=0) - x[shape == 2].mean(axis=0),
                                           apart, atol=1e-9)


def test_whitening_that_does_not_see_other_places(mesh, whole):
    cells, labels = Cells(whole), ball(whole, 6, (4, 3, 0))
    walk = flips.Walk(task_of(mesh, labels), cells, task_of(mesh, labels).all, (0,))
    walk.begin(labels)
    surrogate = flips.Surrogate(walk, labels, pairs=False)
    also = walk._elsewhere(Placements(cells).of(labels))
    assert len(also) > 3
    there = also[np.argmax(np.sum(also**2, axis=1))]

    def seen(W):
        return np.sum((there @ W) ** 2) / np.sum((surrogate.D[: surrogate.number] @ W) ** 2)

    assert seen(surrogate.whitening(0.3, also)) < 0.2 * seen(surrogate.whitening(0.3))


def test_translations_of_a_lattice_move_cells_as_they_are(whole):
    cells = Cells(whole)
    sources = cells.translations()
    assert len(sources) > 50
    for source in sources[:20]:
        known = source >= 0
        steps = whole.centroids[known] - whole.centroids[source[known]]
        assert np.abs(steps - steps.mean(axis=0)).max() < 0.7 * np.mean(whole.volumes) ** (1 / 3)


def test_some_directions_tell_the_others(mesh, whole):
    """What a move does, in all directions, from ten of them."""
    truth, cells = ball(whole, 7, (2, -1, 3)), Cells(whole)
    task = task_of(mesh, truth, directions=30)
    lifted = Lifted.learnt(task.all, 10, examples(task, cells, 60, (0,)))
    assert len(lifted.table.pulses[0].directions) == 10
    assert len(lifted.measured) == len(task.all.measured)
    model, rows = task.partition(), task.all.rows_of(10)
    shapes = [truth, *(changed(truth, [m]) for m in cells.moves(truth)[:20])]
    known, told = (np.array([task.residual(model, s, look) for s in shapes])
                   for look in (task.all, lifted))
    np.testing.assert_allclose(told[:, rows], known[:, rows], atol=2e-6)  # single precision
    done, said = known[1:] - known[0], told[1:] - told[0]
    others = np.setdiff1d(np.arange(done.shape[1]), rows)
    error = np.sqrt(np.mean((said - done)[:, others] ** 2) / np.mean(done[:, others] ** 2))
    assert error < 0.3
    assert Lifted.learnt(task.all, 30, np.zeros((1, len(task.all.measured)))) is task.all


# ---- annealing and bounded steps ----------------------------------------------------------------

def test_annealing_finds_the_set_that_explains_a_residual():
    rng = np.random.default_rng(3)
    D = rng.normal(size=(60, 100))
    truth = [4, 17, 23, 42, 51]
    Q = {4: (np.array([17]), np.array([rng.normal(size=100)])),
         17: (np.array([4]), None)}
    Q[17] = (Q[17][0], Q[4][1])
    r = -(D[truth].sum(axis=0) + Q[4][1][0])
    parents: list = [None] * 60
    parents[51] = {42, 7}
    pool = flips.anneal(r, D, parents, [[1, 2], [23, 24]], Q, np.random.default_rng(0), 30.0, 0.1)
    best = min(pool, key=pool.get)
    assert list(best) == truth and pool[best] < 1e-20
    assert not any({1, 2} <= set(moves) or {23, 24} <= set(moves) for moves in pool)
    assert all(51 not in moves or {42, 7} & set(moves) for moves in pool)


def test_bounded_steps_stay_in_the_box_and_descend():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(40, 30))
    H, g, c = A.T @ A + 0.1 * np.eye(30), 10 * rng.normal(size=30), rng.random(30)
    d = bounded_step(H, g, c, 50)
    assert (c + d >= -1e-12).all() and (c + d <= 1 + 1e-12).all()
    slope, free = H @ d + g, (c + d > 1e-9) & (c + d < 1 - 1e-9)
    assert np.abs(slope[free]).max() < 1e-6
    assert (slope[c + d <= 1e-9] > -1e-6).all() and (slope[c + d >= 1 - 1e-9] < 1e-6).all()


@pytest.mark.parametrize("shape", [(10,), (2, 10)])
def test_the_derivative_of_level_sets(mesh, whole, shape):
    levels = Levels(SimpleNamespace(whole=whole), 2)
    rng = np.random.default_rng(0)
    a, v = rng.normal(size=shape), rng.normal(size=shape)
    c, J = levels.shares(a, 1.0)
    slope = (levels.shares(a + 1e-5 * v, 1.0)[0] - levels.shares(a - 1e-5 * v, 1.0)[0]) / 2e-5
    np.testing.assert_allclose(J @ v.ravel(), slope.ravel(), atol=1e-8)
    assert c.min() >= 0 and np.atleast_2d(c).sum(axis=0).max() <= 1


def test_ellipsoids_as_level_sets(mesh, whole):
    levels = Levels(SimpleNamespace(whole=whole), 2)
    ellipsoid = np.array([1.0, 0, -2, *np.log([6.0, 7, 9]), 0.3, -0.2, 0.5])
    c, _ = levels.shares(level_of(levels, ellipsoid), 0.3)
    inside = ellipsoid_labels(Cells(whole), ellipsoid[None]) > 0
    assert np.mean((c > 0.5) == inside) > 0.97


# ---- the search ---------------------------------------------------------------------------------

@pytest.mark.mpi
def test_a_walk_finds_the_cells_that_were_flipped(mesh, whole):
    """The same steps at any number of ranks, and home."""
    truth, cells = ball(whole, 6.5), Cells(whole)
    task = task_of(mesh, truth, directions=2)
    rng = np.random.default_rng(5)
    labels = truth
    for _ in range(5):
        moves = [m for m in cells.moves(labels) if cells.allowed(changed(labels, [m]))]
        labels = changed(labels, [moves[rng.integers(len(moves))]])
    task.fit_resistance(labels, task.all)
    walk = flips.Walk(task, cells, task.all, (0,))
    walk.begin(labels)
    start = walk.f
    walk.run(6, 1e-8)
    assert start > 1e-4 and walk.best[0] < 1e-8
    np.testing.assert_array_equal(walk.best[1], truth)
    assert len(set(mesh.comm.allgather((walk.best[1].tobytes(), walk.shapes)))) == 1


@pytest.mark.mpi
def test_starts_do_not_depend_on_the_ranks(mesh, whole):
    task, cells = task_of(mesh, ball(whole)), Cells(whole)
    found = starts(task, cells, task.all, 2, 8, 3, (1,), generations=1)
    assert len(found) == 3 and all(set(np.unique(s.labels)) == {0, 1, 2} for s in found)
    alone = spinverse.mesh.read(MESH, comm=MPI.COMM_SELF)
    again = starts(task_of(alone, signals=task.all.signals), cells, task.all, 2, 8, 3, (1,),
                   generations=1)
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)


def test_presets_fall_back_where_a_search_cannot_run(mesh):
    names = [type(stage).__name__ for stage in preset("default", mesh, acquisition())]
    assert names == ["Shapes"]
    oscillating = spinverse.Acquisition.ogse([500], 3, delta=20, Delta=25, periods=2)
    assert preset("default", mesh, oscillating) == preset("facets")
    large = spinverse.mesh.build(spinverse.mesh.box, lengths=(10, 10, 10), cells=(9, 9, 9))
    assert preset("default", large, acquisition()) == preset("facets")
    with pytest.raises(InputError, match="shape search: 4374 cells, expected at most 4000"):
        Task(large, spinverse.Tissue(large, 2.0),
             spinverse.Signals(acquisition(), np.ones(len(acquisition()))), True, (WALL, OPEN))


@pytest.mark.slow
def test_a_search_goes_on_from_its_state(mesh, whole):
    settings = Settings(cells=1, ellipsoids=6, candidates=1, rounds=1, walks=1, steps=1, walk=1,
                        blind=1, places=1, target=0.0, budget=3000)
    task, states = task_of(mesh, ball(whole), directions=6), []
    whole_run = Search(task, settings).run(states.append)
    parts = [int(state["part"]) for state in states]
    assert parts == sorted(parts) and parts[:2] == [0, 0] and 1 in parts
    for state in (states[0], states[parts.index(1)]):  # in the middle of a part, and after it
        again = Search(task_of(mesh, signals=task.all.signals), settings)
        result = again.run(state=state)
        np.testing.assert_array_equal(result.labels, whole_run.labels)
        assert result.shapes == whole_run.shapes


@pytest.mark.mpi
def test_a_search_that_may_look_at_few_shapes_ends_with_the_best(mesh, whole):
    settings = Settings(cells=1, ellipsoids=6, candidates=1, walks=1, budget=1)
    found = Search(task_of(mesh, ball(whole), directions=2), settings).run()
    assert found.ending == "as many shapes as it may look at"
    assert found.labels.any() and np.isfinite(found.misfit)


def test_a_search_of_noisy_data_ends_when_nothing_likelier_comes(mesh, whole):
    task = task_of(mesh, ball(whole), directions=3)
    task.floor = 4e-4
    search = Search(task, Settings(examples=2))
    step = 2 * task.floor / len(task.all.measured)  # a factor of e
    for bests, ended in (([5e-4], False), ([5e-4, 4.9e-4, 4.8e-4], False),
                         ([4.8e-4 + 0.9 * step, 4.8e-4, 4.8e-4], True),
                         ([4.8e-4 + 1.1 * step, 4.8e-4, 4.8e-4], False)):
        search.bests, search.best = bests, (bests[-1], ball(whole))
        assert search._fruitless() == ended
    search.best = 10 * task.floor, ball(whole)  # far from what noise leaves
    assert not search._fruitless()
    search.task.floor = 0.0
    assert not search._fruitless()


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["absorbing", "reflecting"])
def test_a_whole_search(mesh, whole, boundary):
    truth = ball(whole)
    task = task_of(mesh, truth, boundary, directions=30)
    found = Search(task, Settings(cells=1)).run()
    np.testing.assert_array_equal(found.labels, truth)
    assert found.misfit < 1e-7


@pytest.mark.parametrize(("wrong", "message"), [
    ({"cells": 3}, "cells 3, expected from 1 to 2"),
    ({"rounds": 0}, "rounds 0, expected at least 1"),
    ({"budget": 0}, "budget 0, expected at least 1"),
])
def test_wrong_settings(wrong, message):
    with pytest.raises(InputError, match=message):
        Shapes(**wrong)
