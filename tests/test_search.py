"""The search for shapes: noise, partitions, walks, strategies from their public faces, whole
searches of one and of two cells, with noise, with unknown numbers, interrupted, on two ranks."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ufl
from mpi4py import MPI

import spinverse
from spinverse import (
    Acquisition,
    BlochTorrey,
    InputError,
    InverseProblem,
    Permeability,
    Tissue,
    Unknown,
)
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.engines.shapes.walls import is_wall
from spinverse.inversion import Ledger, Saver, Shapes, State
from spinverse.inversion.levenberg import Dense, bounded_minimum
from spinverse.inversion.likelihood import (
    Likelihood,
    Scale,
    repeated_noise,
    rician_mean,
    rician_slope,
    smooth_noise,
)
from spinverse.inversion.reconstruct import solve, stages_for
from spinverse.inversion.shapes import schedule
from spinverse.inversion.shapes.anneal import anneal
from spinverse.inversion.shapes.cell_table import cell_table
from spinverse.inversion.shapes.cells import Cells, changed
from spinverse.inversion.shapes.ellipsoids import examples, starts
from spinverse.inversion.shapes.freedoms import freedoms
from spinverse.inversion.shapes.graded import sharpest
from spinverse.inversion.shapes.hypothesis import Hypothesis, overlap
from spinverse.inversion.shapes.ledger import SearchLedger
from spinverse.inversion.shapes.levels import Levels
from spinverse.inversion.shapes.look import Lifted, Look
from spinverse.inversion.shapes.models import Models
from spinverse.inversion.shapes.placements import Placements
from spinverse.inversion.shapes.schedule import FINE, ROUND
from spinverse.inversion.shapes.score import Score
from spinverse.inversion.shapes.search import Search
from spinverse.inversion.shapes.settings import Settings
from spinverse.inversion.shapes.strategies import walking
from spinverse.inversion.shapes.strategies.graded_shapes import graded_shapes
from spinverse.inversion.shapes.strategies.one_cell import one_cell
from spinverse.inversion.shapes.strategies.polish import polish
from spinverse.inversion.shapes.strategies.two_cells import two_cells
from spinverse.inversion.shapes.superposed import Pool
from spinverse.inversion.shapes.surfaces import Surfaces
from spinverse.inversion.shapes.surrogate import Surrogate
from spinverse.inversion.shapes.walk import Walk
from spinverse.mesh.whole import WholeMesh

MESH = Path(__file__).parents[1] / "meshes" / "sphere_in_grid_bcc.npz"
WALL, OPEN = 0.01, 100.0


def acquisition(directions=3):
    return Acquisition.pgse(np.arange(0, 5001, 1000), directions, [5, 10, 10], [6, 20, 60])


@pytest.fixture(scope="module")
def mesh():
    return spinverse.mesh.read(MESH)


@pytest.fixture(scope="module")
def whole(mesh):
    return WholeMesh.of(mesh)


@pytest.fixture(scope="module")
def coarse():
    """A grid of few cells, on which a whole search takes seconds."""
    return spinverse.mesh.build(spinverse.mesh.tagged_grid, spinverse.mesh.Ball(7), 20, cells=2)


def ball(whole, radius=8.0, centre=(1.0, -0.5, 0.3)):
    x = whole.centroids - whole.centre - np.array(centre)
    return (np.linalg.norm(x, axis=1) < radius).astype(np.int8)


def halved(whole):
    """Two cells that touch."""
    labels = ball(whole)
    labels[(labels > 0) & (whole.centroids[:, 0] > whole.centre[0] + 2)] = 2
    return labels


def problem_of(mesh, labels, boundary="absorbing", directions=3, snr=np.inf, wall=WALL,
               table=None, terms=None, **known):
    """An inverse problem whose signals are those of a partition."""
    whole = WholeMesh.of(mesh)
    first, second = whole.sides.T
    a, b = labels[first], np.where(second >= 0, labels[second], 0)
    kappa = np.where(a != b, wall, OPEN)
    kappa = np.where((second < 0) & (boundary == "reflecting"), 0.0, kappa)
    tissue = Tissue(mesh, permeability=Permeability(mesh, whole.facet_values(kappa)))
    signals = spinverse.simulate(tissue, table or acquisition(directions), tolerance=1e-5,
                                 **(terms or {}))
    if np.isfinite(snr):
        noise = np.random.default_rng(4).normal(size=(2, len(signals))) * signals.reference / snr
        signals = replace(signals, values=np.abs(signals.values + noise[0] + 1j * noise[1]))
    wall_known = {} if "wall_permeability" in known.get("unknown", ()) else {
        "wall_permeability": wall}
    return InverseProblem(mesh, signals, boundary=boundary, **{
        **(terms or {}), **wall_known, **known})


# ---- noise --------------------------------------------------------------------------------------

def test_rician_mean_and_slope():
    rng = np.random.default_rng(1)
    sigma, s = 0.1, np.array([0.05, 0.2, 0.8])
    draws = np.abs(s + sigma * (rng.normal(size=(400_000, 3)) + 1j * rng.normal(size=(400_000, 3))))
    np.testing.assert_allclose(rician_mean(s, sigma), draws.mean(axis=0), atol=5e-4)
    slope = (rician_mean(s + 1e-5, sigma) - rician_mean(s - 1e-5, sigma)) / 2e-5
    np.testing.assert_allclose(rician_slope(s, sigma), slope, rtol=1e-6)
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
    signals = spinverse.Signals(a, noisy)
    rows = Likelihood.of(signals, sigma=sigma / 1000).select(np.flatnonzero(a.b > 0))
    draws = np.abs(level + sigma * (rng.normal(size=10**5) + 1j * rng.normal(size=10**5)))
    assert rows.floor == pytest.approx(draws.var() / 1e6, rel=bias)
    assert rows.floor < rows.explained() < 1.2 * rows.floor
    assert Likelihood.of(signals, sigma=0.0).floor == 0
    gaussian = Likelihood.of(signals, sigma=0.02, rician=False)
    assert gaussian.floor == pytest.approx(4e-4)
    np.testing.assert_array_equal(gaussian.expected(noisy), noisy / gaussian.scale)


@pytest.mark.parametrize(("own", "unit"), [
    (True, None), (False, None), (False, Scale()), (False, Scale(start=0.7, deviation=0.1)),
    (False, Scale(0.1, 0.2))])
def test_slope_of_the_residual(own, unit):
    a, rng = acquisition(), np.random.default_rng(0)
    likelihood = Likelihood.of(spinverse.Signals(a, rng.uniform(0.3, 1.2, len(a))), own, 0.03,
                               unit=unit)
    S = rng.uniform(0.3, 1.2, len(a)) * np.exp(1j * rng.normal(size=len(a)))
    d = rng.normal(size=len(a))
    moved = [likelihood.residual(S * (1 + h * d / np.abs(S))) for h in (1e-6, -1e-6)]
    np.testing.assert_allclose(likelihood.slope(S, d[:, None])[:, 0], (moved[0] - moved[1]) / 2e-6,
                               rtol=1e-5, atol=1e-9)
    pulled = likelihood.pull_back(S, 1.0)
    values = [likelihood.value(S * (1 + h * d / np.abs(S))) for h in (1e-6, -1e-6)]
    assert np.real(np.vdot(pulled, S / np.abs(S) * d)) == pytest.approx(
        (values[0] - values[1]) / 2e-6, rel=1e-5)


def test_one_factor_of_all_signals():
    """It is found, within its range, and drawn to its prior as far as there is noise."""
    a, rng = acquisition(), np.random.default_rng(1)
    S = np.exp(-a.b / 4000) * rng.uniform(0.5, 1, len(a))
    signals = spinverse.Signals(a, 0.37 * S)
    exact = Likelihood.of(signals, sigma=0.0, unit=Scale())
    assert exact.factor(S) == pytest.approx(0.37) and exact.value(S + 0j) < 1e-25
    assert Likelihood.of(signals, sigma=0.0, unit=Scale(0.5, 2)).factor(S) == 0.5
    drawn = Likelihood.of(signals, sigma=0.1, rician=False, unit=Scale(start=1, deviation=0.01))
    assert 0.37 < drawn.factor(S) < 1.0
    told = Likelihood.of(signals, sigma=1e-6, rician=False, unit=Scale(start=1, deviation=0.01))
    assert told.factor(S) == pytest.approx(0.37, rel=1e-6)


def test_noise_from_smooth_fits(coarse):
    """Without repeated measurements: of the right size, and next to none where there is none."""
    a = Acquisition.pgse(np.arange(0, 3001, 1000), 30, [10, 10], [20, 60])
    tensor = np.array([1.3, 1.0, 0.8])
    clean = 1000 * np.exp(-a.b / 1000 * (a.directions**2 @ tensor))
    sigma, freedom = smooth_noise(spinverse.Signals(a, clean))
    assert sigma < 1e-3 and freedom >= 60
    rng = np.random.default_rng(0)
    e = 30 * rng.normal(size=(2, len(a)))
    e[:, a.b == 0] = 0.0  # averaged ones
    noisy = spinverse.Signals(a, np.abs(clean + e[0] + 1j * e[1]))
    problem = InverseProblem(coarse, noisy, noise="unknown")
    found = problem.likelihood
    assert found.sigma == pytest.approx(0.03, rel=3 / np.sqrt(2 * freedom))
    assert found.freedom == freedom and "smooth fits" in found.describe() and found.judges
    narrow = {"noise": Unknown(0.05, 0.04, 0.1)}
    assert InverseProblem(coarse, noisy, unknown=narrow).likelihood.sigma == 0.04
    prior = {"noise": Unknown(0.05, 0.001, 0.2, deviation=0.02)}
    assert found.sigma < InverseProblem(coarse, noisy, unknown=prior).likelihood.sigma < 0.05
    # a search that finds less says so
    less = problem.with_noise_of({"noise": 0.01})
    assert less.likelihood.sigma == 0.01 and less.first_likelihood.sigma == found.sigma
    few = Acquisition.pgse([0, 1000], 3, 10, 20)
    guess = InverseProblem(coarse, spinverse.Signals(few, np.exp(-few.b / 2000)), noise="unknown")
    assert guess.likelihood.sigma == 0.02 and not guess.likelihood.judges


def test_scores():
    a = acquisition()
    signals = spinverse.Signals(a, np.full(len(a), 0.5))
    clean = Score.of(Likelihood.of(signals, sigma=0.0), 1e-7, 0.1)
    assert clean.explains(1e-8) and not clean.explains(2e-8) and not clean.near(1e-9)
    noisy = Score.of(Likelihood.of(signals, sigma=0.02), 1e-7, 0.1)
    assert noisy.explains(noisy.floor) and noisy.near(1.2 * noisy.floor)
    step = 2 * noisy.floor / len(a)  # a factor of e
    assert noisy.likelier(1e-3, 1e-3 - step) == pytest.approx(1.0)


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


def test_two_compartments_are_moved_together(whole):
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


def test_translations_of_a_lattice_move_cells_as_they_are(whole):
    cells = Cells(whole)
    sources = cells.translations()
    assert len(sources) > 50
    for source in sources[:20]:
        known = source >= 0
        steps = whole.centroids[known] - whole.centroids[source[known]]
        assert np.abs(steps - steps.mean(axis=0)).max() < 0.7 * np.mean(whole.volumes) ** (1 / 3)


# ---- models -------------------------------------------------------------------------------------

def test_some_directions_tell_the_others(mesh, whole):
    """What a move does, in all directions, from ten of them."""
    truth, cells = ball(whole, 7, (2, -1, 3)), Cells(whole)
    models = Models(problem_of(mesh, truth, directions=30))
    lifted = Lifted.learnt(models.all, 10, examples(models, cells, 60, (0,)))
    assert len(lifted.measured) == len(models.all.measured) > len(lifted.computed)
    shapes = [truth, *(changed(truth, [m]) for m in cells.moves(truth)[:20])]
    rows = models.all.rows_of(10)
    known, told = (models.residuals(shapes, models.start, look) for look in (models.all, lifted))
    np.testing.assert_allclose(told[:, rows], known[:, rows], atol=2e-6)  # single precision
    done, said = known[1:] - known[0], told[1:] - told[0]
    others = np.setdiff1d(np.arange(done.shape[1]), rows)
    error = np.sqrt(np.mean((said - done)[:, others] ** 2) / np.mean(done[:, others] ** 2))
    assert error < 0.3
    everything = np.zeros((1, len(models.all.measured)))
    assert Lifted.learnt(models.all, 30, everything) is models.all


def outer_wall(m, v, t, c):
    return c["rho"] * ufl.inner(m, v) * c.ds


def on_membranes(m, v, t, c):
    both = ufl.inner(m("+"), v("+")) + ufl.inner(m("-"), v("-"))
    return c["rho"] * c.membrane("+") * both * c.dS


WHOLE = {"diffusivity": Unknown(1.8, 1.0, 3.0, "linear"), "T2": Unknown(80.0, 20.0, 500.0)}
PARTS = {"diffusivity_inside": Unknown(1.8, 1.0, 3.0, "linear"),
         "diffusivity_outside": Unknown(1.5, 1.0, 3.0), "T2_inside": Unknown(80.0, 20.0, 500.0),
         "T2_outside": Unknown(60.0, 20.0, 500.0), "density_ratio": Unknown(1.3, 0.5, 2.0)}


@pytest.mark.mpi
@pytest.mark.parametrize(("wall", "more"), [(0.02, WHOLE), (0.8, WHOLE), (0.05, PARTS)])
def test_slopes_by_unknown_numbers(coarse, wall, more):
    """Of the fast model, against differences of the full one; those of another cell have none."""
    labels = ball(WholeMesh.of(coarse), 7)
    terms = {"extra_terms": on_membranes, "extra_coefficients": {"rho": 0.05}}
    models = Models(problem_of(
        coarse, labels, directions=2, terms=terms, unknown={
            "rho": Unknown(0.05, 0.001, 1.0), "wall_permeability": Unknown(wall, 0.001, 1.0),
            **more}), 2)
    values = models.values(models.start, 1)
    assert values["rho"] == pytest.approx(0.05)
    assert values["wall_permeability"] == pytest.approx((wall,))
    np.testing.assert_allclose(models.coordinates(values), models.start)
    active = models.active(labels)
    assert np.count_nonzero(~active) == (4 if more is PARTS else 1)
    slopes = models.slopes(labels, models.start, models.all)
    for unit, slope in zip(np.eye(len(active))[active], slopes, strict=True):
        up, down = (models.exact(labels, models.start + sign * 0.1 * unit, models.all)
                    for sign in (1, -1))
        exact = (up - down) / 0.2
        assert np.linalg.norm(slope - exact) < 0.1 * np.linalg.norm(exact) > 1e-6


@pytest.mark.mpi
def test_numbers_inside_and_outside_are_those_of_the_cells(coarse):
    """The discrete problem of a hypothesis is that of a tissue with these values by cell.

    Also where it was made for other values.
    """
    whole = WholeMesh.of(coarse)
    labels = ball(whole, 9, (0, 0, 0))
    labels[(labels > 0) & (whole.centroids[:, 0] > whole.centre[0])] = 2
    problem = problem_of(coarse, labels, unknown=[*PARTS, "wall_permeability"])
    theta = {"wall_permeability": (0.02, 0.08), "diffusivity_inside": (1.0, 1.4),
             "diffusivity_outside": 2.4, "T2_inside": (30.0, 50.0), "T2_outside": 90.0,
             "density_ratio": (0.7, 1.6)}
    models, owned = Models(problem, 2), whole.owned_cells
    kappa = models.permeability(labels, models.coordinates(theta))
    pairs = labels[whole.sides[whole.owned]]
    pairs[whole.outer[whole.owned], 1] = 0
    for pair, value in (((0, 1), 0.02), ((0, 2), 0.08), ((1, 2), 0.04)):
        there = (np.sort(pairs, axis=1) == pair).all(axis=1)
        np.testing.assert_allclose(kappa[there], value)
    made = problem.forward(kappa, theta, labels[owned].astype(np.int32))
    D, T2, rho = (np.array(values)[labels] for values in (
        [2.4, 1.0, 1.4], [90.0, 30.0, 50.0], [1.0, 0.7, 1.6]))
    same = BlochTorrey(Tissue(coarse, D, T2, rho, Permeability(coarse, kappa)))
    np.testing.assert_allclose(made.initial, same.initial)
    np.testing.assert_allclose(made.jump_matrix.toarray(), same.jump_matrix.toarray())
    engine = MatrixFormalism(same, problem.acquisition, 300)
    for values in ({**theta, "density_ratio": 1.0}, theta):
        found = models.signals(labels, models.coordinates(values), models.all)
    wanted = engine.signals()
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()
    for found, wanted in zip(made.decay_matrix().getValuesCSR(),
                             same.decay_matrix().getValuesCSR(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


# ---- what is said of a solution -----------------------------------------------------------------

@pytest.mark.mpi
def test_the_table_of_cells_tells_what_the_data_do(coarse):
    """A permeability with its interval; and where it changes nothing, a bound."""
    labels = ball(WholeMesh.of(coarse), 7)
    mine = labels[WholeMesh.of(coarse).owned_cells].astype(np.int32)
    told = {wall: cell_table(problem_of(coarse, labels, snr=50, wall=wall, unknown=[
        "wall_permeability"]), mine, {"wall_permeability": wall}) for wall in (1e-4, 0.05)}
    row, = told[0.05].rows
    kappa, volume = row["permeability"], WholeMesh.of(coarse).volumes[labels > 0].sum()
    assert 0 < kappa.low < 0.05 < kappa.high < 0.2 and row["volume"].value == pytest.approx(volume)
    assert row["volume"].low < volume < row["volume"].high
    time = volume / (0.05 * row["surface"].value)
    assert row["exchange_time"].value == pytest.approx(time)
    assert row["exchange_time_of_mode"].value == pytest.approx(time, rel=0.3)
    smooth = row["smooth_surface"].value * row["smooth_permeability"].value
    assert smooth == pytest.approx(row["surface"].value * kappa.value)  # it explains as much
    assert row["smooth_surface"].value < row["surface"].value
    np.testing.assert_allclose(np.diag(told[0.05].correlation), 1.0)
    bound = told[1e-4].rows[0]["permeability"]
    assert bound.low == 0 and bound.high < 0.05 and str(bound).startswith("at most")
    assert len(set(coarse.comm.allgather(tuple(told[0.05].describe())))) == 1


@pytest.mark.mpi
def test_the_table_of_cells_has_the_mean_of_walls_that_vary(coarse):
    """A wall that leaks five times more on one half, as a stage of walls may leave it."""
    whole = WholeMesh.of(coarse)
    labels = ball(whole, 7)
    mine = labels[whole.owned_cells].astype(np.int32)
    height = whole.points[whole.facets].mean(axis=1)[:, 2]
    kappa = np.where(height > whole.centre[2], 0.1, 0.02)
    walls = is_wall(labels, whole.sides)
    problem = problem_of(coarse, labels, snr=50, wall=kappa, unknown=["wall_permeability"])
    mean = np.average(kappa[walls], weights=whole.areas[walls])
    told = cell_table(problem, mine, {"wall_permeability": 0.03},
                      permeability=whole.facet_values(np.where(walls, kappa, OPEN)))
    row, = told.rows
    assert row["permeability"].value == pytest.approx(mean)
    assert row["permeability"].low < mean < row["permeability"].high < 3 * mean
    assert row["exchange_time"].value == pytest.approx(
        row["volume"].value / (mean * row["surface"].value))
    assert len(set(coarse.comm.allgather(tuple(told.describe())))) == 1


@pytest.mark.mpi
def test_the_table_of_cells_has_scale_density_and_noise(coarse):
    """Signals in a unit that nobody knows, at two echo times; intervals hold what is true."""
    whole = WholeMesh.of(coarse)
    labels = ball(whole, 7)
    mine = labels[whole.owned_cells].astype(np.int32)
    table = Acquisition.pgse([0, 1000, 2000], 12, [10, 10], [20, 60], echo_time=[40, 90])
    made = problem_of(coarse, labels, "reflecting", table=table, wall=0.05)
    numbers = ["wall_permeability", "density_ratio", "T2_inside", "T2_outside"]
    theta = {"wall_permeability": 0.05, "density_ratio": 0.7, "T2_inside": 40.0,
             "T2_outside": 80.0}
    truth = replace(made, unknown=numbers, wall_permeability=None)
    models = Models(truth)
    kappa = models.permeability(labels, models.coordinates(theta))
    clean = truth.final_engine(truth.forward(kappa, theta, mine)).signals()
    signals = replace(made.signals, values=clean)
    e = np.random.default_rng(4).normal(size=(2, len(signals))) * signals.reference / 50
    noisy = replace(signals, values=0.37 * np.abs(clean + e[0] + 1j * e[1]), unit="")
    problem = InverseProblem(coarse, noisy, unknown=[*numbers, "scale", "noise"])
    assert problem.likelihood.sigma == pytest.approx(0.02, rel=0.5)
    assert problem.likelihood.factor(np.abs(clean)) == pytest.approx(0.37, rel=0.02)
    told = cell_table(problem, mine, theta)
    scale, noise = told.others["scale"], told.others["noise"]
    assert scale.low < 0.37 < scale.high < 0.6 and noise.low < 0.02 < noise.high < 0.03
    ratio = told.rows[0]["density_ratio"]
    assert ratio.low < 0.7 < ratio.high  # wide: T2 and density are hard to tell apart
    assert len(set(coarse.comm.allgather(tuple(told.describe())))) == 1


def test_a_search_lowers_noise_that_it_does_not_find(coarse):
    """Data without noise, and noise that is said to be at least 1 %: solved all the same."""
    labels = ball(WholeMesh.of(coarse), 7)
    problem = problem_of(coarse, labels, unknown={"noise": Unknown(0.01, 0.0, 0.5, "linear")})
    assert problem.likelihood.sigma == 0.01  # three directions tell nothing
    ledger = Ledger()
    result = solve(problem, [Shapes(cells=1, ellipsoids=60)], problem.state(1.0), ledger)
    np.testing.assert_array_equal(result.labels, labels[WholeMesh.of(coarse).owned_cells])
    assert result.theta["noise"] == 0.0 and result.data_misfit < 1e-7
    assert result.problem.likelihood.sigma == 0.0


@pytest.mark.mpi
@pytest.mark.parametrize("cells", [1, 2])
def test_the_assumption_that_is_wrong_is_named(coarse, cells):
    """Signals of D 1.2 that are taken for those of 2.0."""
    whole = WholeMesh.of(coarse)
    labels = ball(whole, 7) if cells == 1 else halved(whole)
    assert labels.max() == cells
    made = problem_of(coarse, labels, directions=6)
    truth = replace(made, diffusivity=1.2)
    values = truth.final_engine(truth.forward(Models(truth).permeability(
        labels, np.zeros(0)))).signals()
    problem = replace(made, signals=replace(made.signals, values=values))
    mine = labels[WholeMesh.of(coarse).owned_cells].astype(np.int32)
    best, *others = freedoms(problem, mine, {})
    assert best.name == "diffusivity" and 1.0 < best.value < 1.5
    assert all(best.misfit < other.misfit for other in others)


@pytest.mark.mpi
def test_a_cell_that_is_missing_is_named(coarse):
    """Signals of two cells, the larger of which was found."""
    whole = WholeMesh.of(coarse)
    both = ball(whole, 7.5, (-3, -3, -3))
    both[(ball(whole, 6.5, (6, 6, 6)) > 0) & (both == 0)] = 2
    problem = problem_of(coarse, both, directions=6)
    mine = np.where(both == 1, both, 0)[whole.owned_cells].astype(np.int32)
    models = Models(problem)
    before = np.mean(models.exact(both * (both == 1), models.start, models.all) ** 2)
    best, *_ = freedoms(problem, mine, {})
    assert best.name == "further cell" and best.misfit < 0.5 * before


# ---- annealing, steps, level sets ---------------------------------------------------------------

def test_annealing_finds_the_set_that_explains_a_residual():
    rng = np.random.default_rng(3)
    D = rng.normal(size=(60, 100))
    truth = [4, 17, 23, 42, 51]
    together = np.array([rng.normal(size=100)])
    Q = {4: (np.array([17]), together), 17: (np.array([4]), together)}
    r = -(D[truth].sum(axis=0) + together[0])
    parents: list = [None] * 60
    parents[51] = {42, 7}
    pool = anneal(r, D, parents, [[1, 2], [23, 24]], Q, np.random.default_rng(0), 30.0, 0.1)
    best = min(pool, key=pool.get)
    assert list(best) == truth and pool[best] < 1e-20
    assert not any({1, 2} <= set(moves) or {23, 24} <= set(moves) for moves in pool)
    assert all(51 not in moves or {42, 7} & set(moves) for moves in pool)


def test_bounded_steps_stay_in_the_box_and_descend():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(40, 30))
    H, g, c = A.T @ A + 0.1 * np.eye(30), 10 * rng.normal(size=30), rng.random(30)
    d = bounded_minimum(Dense(H, g), -c, 1 - c)
    assert (c + d >= -1e-12).all() and (c + d <= 1 + 1e-12).all()
    slope, free = H @ d + g, (c + d > 1e-9) & (c + d < 1 - 1e-9)
    assert np.abs(slope[free]).max() < 1e-6
    assert (slope[c + d <= 1e-9] > -1e-6).all() and (slope[c + d >= 1 - 1e-9] < 1e-6).all()


def test_the_derivative_of_level_sets(whole):
    levels = Levels(SimpleNamespace(whole=whole), 2)
    rng = np.random.default_rng(0)
    a, v = rng.normal(size=10), rng.normal(size=10)
    c, J = levels.shares(a, 1.0)
    slope = (levels.shares(a + 1e-5 * v, 1.0)[0] - levels.shares(a - 1e-5 * v, 1.0)[0]) / 2e-5
    np.testing.assert_allclose(J @ v, slope, atol=1e-8)
    assert c.min() >= 0 and c.max() <= 1
    np.testing.assert_array_equal(sharpest(c), c > 0.5)


# ---- walks --------------------------------------------------------------------------------------

def flipped(cells, labels, number, seed=5):
    rng = np.random.default_rng(seed)
    for _ in range(number):
        moves = [m for m in cells.moves(labels) if cells.allowed(changed(labels, [m]))]
        labels = changed(labels, [moves[rng.integers(len(moves))]])
    return labels


@pytest.mark.mpi
def test_a_walk_finds_the_cells_that_were_flipped(mesh, whole):
    """The same steps at any number of ranks, and home."""
    truth, cells = ball(whole, 6.5), Cells(whole)
    models = Models(problem_of(mesh, truth, directions=2))
    labels = flipped(cells, truth, 5)
    models.calibrate(labels, models.start, models.all)
    walk = Walk(models, cells, models.all, (0,))
    walk.begin(labels)
    start = walk.here.misfit
    walk.run(6, 1e-8)
    assert start > 1e-4 and walk.best.misfit < 1e-8
    np.testing.assert_array_equal(walk.best.labels, truth)
    assert len(set(mesh.comm.allgather((walk.best.labels.tobytes(), walk.shapes)))) == 1


@pytest.mark.parametrize("boundary", ["absorbing", "reflecting"])
def test_open_facets_count_where_walls_leak(mesh, whole, boundary):
    """What moves change is then that of the full model."""
    truth, cells = ball(whole, 6.5), Cells(whole)
    models = Models(problem_of(mesh, truth, boundary, directions=2, wall=0.5))
    shapes = [truth, *(changed(truth, [move]) for move in cells.moves(truth)[::16])]
    exact = np.array([models.exact(shape, models.start, models.all) for shape in shapes])
    models.calibrate(truth, models.start, models.all)
    assert models.leaky
    off = []
    for models.leaky in (True, False):
        wrong = models.residuals(shapes, models.start, models.all) - exact
        off.append(np.linalg.norm(wrong[1:] - wrong[0]) / np.linalg.norm(exact[1:] - exact[0]))
    assert off[0] < 0.08 and off[0] < 0.2 * off[1]


@pytest.mark.mpi
def test_smooth_fits_near_the_data_are_of_the_full_model(coarse):
    """What the fast model is wrong by in a reflecting box does not keep them from the truth."""
    whole = WholeMesh.of(coarse)
    truth, cells = ball(whole, 7), Cells(whole)
    models = Models(problem_of(coarse, truth, "reflecting", directions=6))
    own = np.mean(models.residuals([truth], models.start, models.all) ** 2)
    smooth = Surfaces(models, cells, models.all).fit(Hypothesis(ball(whole, 8), models.start))
    found = smooth.hypothesis
    exact = models.exact(found.labels, found.theta, models.all)
    assert found.misfit == pytest.approx(np.mean(exact**2), rel=1e-6)
    assert found.misfit < 1e-3 * own and smooth.white < 1e-2
    assert len(set(coarse.comm.allgather(found.labels.tobytes()))) == 1


def test_a_walk_finds_unknown_numbers_on_its_way(coarse):
    whole = WholeMesh.of(coarse)
    truth, cells = ball(whole, 7), Cells(whole)
    models = Models(problem_of(
        coarse, truth, directions=6, wall=0.05,
        unknown={"wall_permeability": Unknown(0.02, 0.001, 1.0)}))
    walk = Walk(models, cells, models.all, (0,))
    walk.begin(flipped(cells, truth, 4))
    walk.run(8, 1e-9)
    np.testing.assert_array_equal(walk.best.labels, truth)
    found, = models.values(walk.best.theta)["wall_permeability"]
    assert found == pytest.approx(0.05, rel=2e-3)


def test_whitening_that_does_not_see_other_places(mesh, whole):
    cells, labels = Cells(whole), ball(whole, 6, (4, 3, 0))
    models = Models(problem_of(mesh, labels))
    walk = Walk(models, cells, models.all, (0,))
    walk.begin(labels)
    surrogate = Surrogate(walk.residuals, cells, labels, pairs=False)
    shapes = [place(labels) for place in Placements(cells).of(labels)]
    also = walk.residuals([s for s in shapes if cells.allowed(s)]) - surrogate.r
    assert len(also) > 3
    there = also[np.argmax(np.sum(also**2, axis=1))]

    def seen(W):
        return np.sum((there @ W) ** 2) / np.sum((surrogate.D[: surrogate.number] @ W) ** 2)

    assert seen(surrogate.whitening(0.3, also)) < 0.2 * seen(surrogate.whitening(0.3))


# ---- strategies ---------------------------------------------------------------------------------

SMALL = Settings(ellipsoids=30, candidates=2, couples=1, walks=1, steps=1,
                 walk=3, turns=1, settled=1, sharpened=1, examples=4)


def ledger_of(problem, settings=SMALL):
    search = Search(problem, settings)
    ledger = SearchLedger(search)
    ledger.begin(0)
    return search, ledger


@pytest.mark.mpi
@pytest.mark.parametrize("number", [1, 2])
def test_starts_do_not_depend_on_the_ranks(mesh, whole, number):
    problem, cells = problem_of(mesh, ball(whole)), Cells(whole)
    alone = spinverse.mesh.read(MESH, comm=MPI.COMM_SELF)

    def starts_of(models):
        if number == 1:
            return starts(models, cells, models.all, 8, 1, (1,), [models.start])
        return Pool(models, cells, models.all, 12, (1,), [models.start]).starts(2, 2)

    found, again = map(starts_of, (Models(problem), Models(InverseProblem(
        alone, problem.signals, boundary="absorbing", wall_permeability=WALL))))
    assert len(found) >= 1 and set(np.unique(found[0].labels)) == set(range(number + 1))
    np.testing.assert_array_equal(found[0].labels, again[0].labels)


def apart(whole):
    """Two cells with a gap."""
    return (ball(whole, 4.7, (-6.5, -6.0, -6.0)) + 2 * ball(whole, 6.5, (6.0, 5.5, 6.0))).astype(
        np.int8)


def test_what_cells_change_adds_up(mesh, whole):
    labels = apart(whole)
    assert Cells(whole).allowed(labels)
    models = Models(problem_of(mesh, labels), 2)
    model = models.partition(models.start)

    def signals(labels):
        return model.signals(labels.astype(np.int8), models.all.sweeps(0.5, model.kind))

    empty, both = signals(0 * labels), signals(labels)
    added = empty + sum(signals(labels == k) - empty for k in (1, 2))
    off = models.all.predicted(added) - models.all.predicted(both)
    alone = models.all.predicted(empty) - models.all.predicted(both)
    assert np.mean(off**2) < 2e-6 < 1e-3 * np.mean(alone**2)


def test_ellipsoids_tell_the_number_of_cells(mesh, whole):
    cells = Cells(whole)
    for labels, several in ((apart(whole), True), (ball(whole), False)):
        models = Models(problem_of(mesh, labels, directions=10), 2)
        pool = Pool(models, cells, models.all, 200, (0,), [models.start])
        one = starts(models, cells, models.all, 60, 1, (0,), [models.start])[0].misfit
        assert (pool.promise(2) < 0.35 * one) == several
        if several:  # in places that do not overlap
            two = pool.starts(2, 1)[0]
            assert two.misfit < 0.2 * one and cells.allowed(two.labels)


@pytest.mark.mpi
def test_cells_of_a_pool_have_numbers_of_their_own(coarse):
    whole = WholeMesh.of(coarse)
    unknown = ["wall_permeability", "diffusivity_inside", "diffusivity_outside"]
    problem = problem_of(coarse, ball(whole, 7), unknown=unknown)
    alone = spinverse.mesh.build(spinverse.mesh.tagged_grid, spinverse.mesh.Ball(7), 20, cells=2,
                                 comm=MPI.COMM_SELF)
    found, cells = [], Cells(whole)
    for models in (Models(problem, 2), Models(InverseProblem(
            alone, problem.signals, boundary="absorbing", unknown=unknown), 2)):
        # an odd number: ranks have different work
        pool = Pool(models, cells, models.all, 13, (0,), models.design[:3])
        assert len({member.theta.tobytes() for member in pool.members}) == 3
        shared = models.cell_of == 0
        assert shared.any() and not shared.all()
        found.append(pool.starts(2, 2))
        assert all(h.cells == 2 and np.all(models.bounds[0] <= h.theta)
                   and np.all(h.theta <= models.bounds[1]) for h in found[-1])
    assert len(found[0]) == len(found[1])
    for mine, other in zip(*found, strict=True):
        np.testing.assert_array_equal(mine.labels, other.labels)
        # fast models are in single precision, which numbers that signals hardly tell amplify
        np.testing.assert_allclose(mine.theta, other.theta, atol=1e-2)


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", [one_cell, graded_shapes])
def test_a_strategy_for_one_cell(coarse, strategy):
    truth = ball(WholeMesh.of(coarse), 7)
    search, ledger = ledger_of(problem_of(coarse, truth, directions=4))
    found = strategy(search, [], ledger, 1)
    assert found and all(isinstance(h, Hypothesis) for h in found)
    assert min(h.misfit for h in found) == ledger.best.misfit and ledger.shapes > 0
    assert overlap(ledger.best.labels, truth) > 0.5
    assert search.cells.allowed(ledger.best.labels)


@pytest.mark.slow
def test_a_strategy_for_two_cells(coarse):
    whole = WholeMesh.of(coarse)
    truth = ball(whole, 12, (0, 0, 0))
    truth[(truth > 0) & (whole.centroids[:, 0] > whole.centre[0])] = 2
    search, ledger = ledger_of(problem_of(coarse, truth, directions=4))
    found = two_cells(search, [], ledger, 0)
    assert found and ledger.best.cells == 2


def test_the_right_place_of_a_compartment_is_found_from_about_right_shapes(mesh, whole):
    """Two cells apart, one shifted by steps of the lattice and both with a cell too many."""
    cells, labels = Cells(whole), ball(whole, 5, (-6, -6, 0)) + 2 * ball(whole, 5, (6, 6, 0))
    wrong = labels
    for label in (1, 2):
        wrong = changed(wrong, [next(m for m in cells.moves(wrong) if m[1] == label)])
    moved = [place(wrong) for place in Placements(cells).of(wrong)]
    at = next(shape for shape in moved if cells.allowed(shape)
              and np.count_nonzero(shape) == np.count_nonzero(wrong)
              and overlap(shape, wrong) < 0.7)
    search, ledger = ledger_of(problem_of(mesh, labels), Settings(settled=1))
    scout = search.scout((0,))
    scout.begin(at)
    found = walking.placed(search, scout, ledger)
    assert overlap(found, labels) > 0.8 or overlap(found, np.array([0, 2, 1])[labels]) > 0.8


@pytest.mark.mpi
def test_one_cell_walks_from_the_right_place(mesh, whole):
    """Of about the right shape, one step of the lattice away; magnitudes do not see the mirror."""
    cells, labels = Cells(whole), ball(whole, 6, (4, 3, 0))
    wrong = labels
    for _ in range(2):
        wrong = changed(wrong, [next(m for m in cells.moves(wrong) if m[1] == 1)])
    moved = [place(wrong) for place in Placements(cells).of(wrong)]
    at = next(shape for shape in moved if cells.allowed(shape)
              and np.count_nonzero(shape) == np.count_nonzero(wrong)
              and 0.05 < overlap(shape, labels) < 0.7)
    search, ledger = ledger_of(problem_of(mesh, labels), Settings(blind=1, places=2))
    walks = list(walking.begin(search, Hypothesis(at), ledger, (0,), []))
    mirror = ball(whole, 6, (-4, -3, 0))
    assert max(overlap(walk.here.labels, there)
               for walk in walks for there in (labels, mirror)) > 0.8


def test_walks_of_many_moves_are_told_more(mesh, whole):
    """The first steps look at few directions, and where one small cell is followed the rest."""
    search, _ = ledger_of(problem_of(mesh, ball(whole), directions=2), Settings(few=1, examples=4))
    assert len(search.few.measured) < len(search.all.measured)

    def told(labels, search=search, part=0):
        walk = search.scout((0,))
        walk.begin(labels)
        assert walk.look is search.few
        return search.told(walk, part)

    assert told(ball(whole)).look is search.few and told(halved(whole)).look is search.all
    assert told(ball(whole), part=search.settings.early).look is search.all
    many, _ = ledger_of(search.models.problem, Settings(few=1, moves=3, examples=4))
    walk = told(ball(whole), many)
    assert walk.look is many.all and many.told(walk, 0) is walk


def test_polish_makes_noisy_data_likelier(coarse):
    truth = ball(WholeMesh.of(coarse), 7)
    search, ledger = ledger_of(problem_of(coarse, truth, directions=6, snr=50))
    assert search.noisy and polish(search, [], ledger, 0) == []  # nothing to polish
    walk = search.scout((0, 0, 0, 0))
    walk.begin(flipped(search.cells, truth, 1))
    before = ledger.take(walk)
    found = polish(search, [], ledger, 0) if not ledger.gap() else [before]
    assert found[0].misfit <= before.misfit
    if not ledger.gap():
        assert ledger.polished and polish(search, [], ledger, 0) == []  # once for each


# ---- whole searches -----------------------------------------------------------------------------

def shapes_of(mesh, labels):
    return labels[WholeMesh.of(mesh).owned_cells]


@pytest.mark.mpi
@pytest.mark.parametrize("boundary", [
    "absorbing", pytest.param("reflecting", marks=pytest.mark.slow)])
def test_a_search_for_one_cell(coarse, boundary):
    truth = ball(WholeMesh.of(coarse), 7)
    problem = problem_of(coarse, truth, boundary, directions=6)
    result = solve(problem, [Shapes(cells=1, ellipsoids=40, candidates=2)], problem.state(1.0))
    assert result.data_misfit < 1e-7 and result.endings == {"shapes": "the data are explained"}
    # a point reflection is as good
    mirror = ball(WholeMesh.of(coarse), 7, (-1.0, 0.5, -0.3))
    assert any(np.array_equal(result.labels, shapes_of(coarse, t)) for t in (truth, mirror))


@pytest.mark.slow
def test_a_search_for_two_cells(coarse):
    whole = WholeMesh.of(coarse)
    truth = ball(whole, 9, (0, 0, 0))
    truth[(truth > 0) & (whole.centroids[:, 0] > whole.centre[0])] = 2
    problem = problem_of(coarse, truth, directions=10, wall=WALL)
    result = solve(problem, [Shapes(ellipsoids=60, candidates=3, rounds=1)], problem.state(1.0))
    assert result.labels.max() == 2 and result.data_misfit < 1e-6


@pytest.mark.slow
def test_a_search_of_noisy_data(coarse):
    truth = ball(WholeMesh.of(coarse), 7)
    problem = problem_of(coarse, truth, directions=10, snr=50)
    assert problem.likelihood.sigma == pytest.approx(0.02, rel=0.3)
    result = solve(problem, [Shapes(cells=1, ellipsoids=40, candidates=2, rounds=1)],
                   problem.state(1.0))
    there = np.mean(problem.likelihood.residual(
        solve(problem, [], State(problem.permeability(Models(problem).permeability(
            truth, np.zeros(0))).values)).predicted.values) ** 2)
    assert result.data_misfit <= there * (1 + 1e-6)  # as likely as the truth, or likelier
    assert result.data_misfit < problem.likelihood.explained()


@pytest.mark.slow
@pytest.mark.parametrize("term", [outer_wall, on_membranes])
def test_a_search_with_an_unknown_coefficient_of_ones_own_term(coarse, term):
    truth = ball(WholeMesh.of(coarse), 7)
    terms = {"extra_terms": term, "extra_coefficients": {"rho": 0.05}}
    made = problem_of(coarse, truth, "reflecting", directions=6, terms=terms)
    known = solve(made, [Shapes(cells=1, ellipsoids=40, candidates=2)], made.state(1.0))
    assert known.data_misfit < 1e-7
    problem = replace(made, unknown={"rho": Unknown(0.02, 0.002, 0.5)})
    result = solve(problem, [Shapes(cells=1, ellipsoids=40, candidates=2)], problem.state(1.0))
    assert result.theta["rho"] == pytest.approx(0.05, rel=1e-2) and result.data_misfit < 1e-7


@pytest.mark.slow
def test_a_search_of_other_waveforms(coarse):
    truth = ball(WholeMesh.of(coarse), 7)
    table = Acquisition.concatenate([
        Acquisition.ogse([0, 300], 6, delta=20, Delta=25, periods=2, kind="cos"),
        Acquisition.pgse([0, 2000, 4000], 6, 10, 30, echo_time=50)])
    problem = problem_of(coarse, truth, table=table)
    result = solve(problem, [Shapes(cells=1, ellipsoids=40, candidates=2)], problem.state(1.0))
    assert result.data_misfit < 1e-7


class Kept(Saver):
    def __init__(self):
        self.states = []

    def within(self, stage, iteration, state, memory):
        self.states.append((iteration, state, memory()))


@pytest.mark.slow
def test_a_search_goes_on_from_its_state(coarse):
    problem = problem_of(coarse, ball(WholeMesh.of(coarse), 7), directions=4)
    stages = [Shapes(cells=1, ellipsoids=12, candidates=1, rounds=1, stop_at=0.0, budget=4000)]
    kept = Kept()
    whole = solve(problem, stages, problem.state(1.0), Ledger(saver=kept))
    parts = [iteration for iteration, *_ in kept.states]
    assert parts == sorted(parts) and 0 in parts and 1 in parts
    for part in (0, 1):  # in the middle of a part, and after it
        _, state, memory = kept.states[parts.index(part)]
        again = solve(problem, stages, state, Ledger(memory=memory.in_slabs(coarse)))
        np.testing.assert_array_equal(again.labels, whole.labels)
        assert again.evaluations == whole.evaluations


@pytest.mark.mpi
def test_a_search_that_may_look_at_few_shapes_ends_with_the_best(coarse):
    problem = problem_of(coarse, ball(WholeMesh.of(coarse), 7), directions=2)
    for budget in ({"budget": 1}, {"budget_cpu_s": 1}):
        stage = Shapes(cells=1, ellipsoids=6, candidates=1, stop_at=0.0, **budget,
                       schedule=(ROUND, FINE))  # without the surface beside it
        result = solve(problem, [stage], problem.state(1.0))
        assert result.endings["shapes"].startswith("as many shapes as it may look at, or CPU sec")
        assert coarse.comm.allreduce(int(result.labels.any())) and np.isfinite(result.data_misfit)


def test_a_mesh_cell_that_hardly_changes_signals_is_put_right(coarse):
    """Data that count as explained, with one mesh cell wrong."""
    whole = WholeMesh.of(coarse)
    truth = ball(whole, 7)
    search, ledger = ledger_of(problem_of(coarse, truth))
    wrong = flipped(search.cells, truth, 1)
    residual = search.models.exact(wrong, search.models.start, search.models.all)
    ledger.best = Hypothesis(wrong, search.models.start, float(np.mean(residual**2)))
    ledger.score = replace(ledger.score, limit=2 * ledger.best.misfit)
    ledger.tune()
    np.testing.assert_array_equal(ledger.best.labels, truth)


def test_a_schedule_of_ones_own(coarse):
    truth, ran = ball(WholeMesh.of(coarse), 7), []
    search, ledger = ledger_of(problem_of(coarse, truth))

    def peek(search, hypotheses, ledger, turn):
        """A strategy that knows the answer."""
        ran.append(turn)
        walk = search.scout(ledger.stream(turn, 0, 0, 0))
        walk.begin(truth)
        return [ledger.take(walk)]

    assert schedule.run(search, ledger, rounds=((peek,), (peek,))) == "the data are explained"
    np.testing.assert_array_equal(ledger.best.labels, truth)
    assert ran == [0]


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["absorbing", "reflecting"])
def test_a_whole_search(mesh, whole, boundary):
    problem = problem_of(mesh, ball(whole), boundary, directions=30)
    result = solve(problem, [Shapes(cells=1)], problem.state(1.0))
    np.testing.assert_array_equal(result.labels, shapes_of(mesh, ball(whole)))
    assert result.data_misfit < 1e-7


# ---- what is refused, and said ------------------------------------------------------------------

def test_presets_fall_back_where_a_search_cannot_run(coarse, caplog):
    problem = problem_of(coarse, ball(WholeMesh.of(coarse), 7))
    assert stages_for(problem, "default") == [Shapes()] and not caplog.records
    large = spinverse.mesh.build(spinverse.mesh.box, lengths=(10, 10, 10), cells=(9, 9, 9))
    table = acquisition()
    problem = InverseProblem(large, spinverse.Signals(table, np.exp(-table.b / 3000)),
                             boundary="periodic")
    found = stages_for(problem, "default")
    assert found == spinverse.stages.facets()
    assert "facets in place of default, because the mesh has 4374 cells" in caplog.text
    with pytest.raises(InputError, match="4374 cells, and the search takes at most 4000 in a"):
        solve(problem, [Shapes()], problem.state(1.0))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"cells": 10}, "cells 10, expected from 1 to 9"),
    ({"rounds": 0}, "rounds 0, expected at least 1"),
    ({"budget": 0}, "budget 0, expected at least 1"),
    ({"budget_cpu_s": 0.5}, "budget_cpu_s 0.5, expected at least 1"),
])
def test_wrong_settings(wrong, message):
    with pytest.raises(InputError, match=message):
        Shapes(**wrong)


@pytest.mark.parametrize(("known", "message"), [
    ({"noise": -0.1}, "noise: -0.1, expected a standard deviation"),
    ({"noise": "loud"}, "noise: 'loud', expected a standard deviation"),
    ({"noise": 0.1, "unknown": ["noise"]}, "noise: 0.1 is said, and it is among the unknown"),
    ({"unknown": ["scale"], "normalisation": "measured"}, "'measured', and scale is among the"),
    ({"unknown": ["density_ratio"], "interface": "plain"}, "'plain', and density_ratio is among"),
    ({"unknown": ["density_ratio"], "density": {1: 0.7}},
     "unknown: density_ratio: its known value is no single number"),
    ({"noise_model": "poisson"}, "noise_model: 'poisson', expected one of rician, gaussian"),
    ({"unknown": {"rho": Unknown(1, 0.1, 2)}}, "unknown: 'rho', expected one of wall_permeability"),
    ({"unknown": {"T2": 40.0}}, "unknown: T2: 40.0, expected Unknown"),
    ({"unknown": ["T2", "T2_inside"]}, "unknown: T2 and T2_inside, expected one of the whole"),
    ({"unknown": ["wall_permeability"], "wall_permeability": 0.1}, "0.1 is said, and it is among"),
    ({"wall_permeability": 0.0}, "wall_permeability: 0.0, expected a positive number"),
    ({"unknown": {"diffusivity": Unknown(1, 0.1, 2)}, "diffusivity": np.eye(3)},
     "unknown: diffusivity: its known value is no single number")])
def test_wrong_problems(coarse, known, message):
    table = acquisition()
    signals = spinverse.Signals(table, np.exp(-table.b / 3000))
    with pytest.raises(InputError, match=message):
        InverseProblem(coarse, signals, **known)


@pytest.mark.parametrize(("arguments", "message"), [
    ((3, 0.1, 2), "start: 3, expected a value from 0.1 to 2"),
    ((1, 2, 0.1), "low, high: 2, 0.1, expected two finite numbers, the lower first"),
    ((1, -1, 2), "low: -1, expected a positive number, or scale 'linear'"),
    ((1, 0.5, 2, "square"), "scale: 'square', expected one of log, linear"),
    ((1, 0.5, 2, "log", 0.0), "deviation: 0.0, expected a positive number, or None")])
def test_wrong_ranges(arguments, message):
    with pytest.raises(InputError, match=message):
        Unknown(*arguments)


def test_units_of_signals(coarse):
    """What a simulation gives is compared in um^3, anything else by its own b = 0."""
    labels = ball(WholeMesh.of(coarse), 7)
    problem = problem_of(coarse, labels)
    assert problem.signals.unit == "um^3" and not problem.own
    scanner = replace(problem.signals, values=1e-3 * problem.signals.magnitude, unit="")
    assert InverseProblem(coarse, scanner).own
    look = Look(InverseProblem(coarse, scanner).likelihood)
    np.testing.assert_allclose(look.predicted(7 * scanner.values), look.measured)
