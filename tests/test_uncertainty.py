"""What signals determine of facets: predicted toggles, posterior, bounds, ranks, files."""

from __future__ import annotations

import meshio
import numpy as np
import pytest
from mpi4py import MPI

from spinverse import (
    BlochTorrey,
    InputError,
    InverseProblem,
    Permeability,
    Signals,
    Tissue,
    mesh,
    simulate,
)
from spinverse.acquisition import Acquisition
from spinverse.engines.modal.jacobian import signal_jacobian
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.interface import export
from spinverse.inversion.likelihood import Likelihood
from spinverse.inversion.uncertainty import uncertainty

MODES = 80


def cell(comm=MPI.COMM_SELF, stray=True, cells=3):
    """A closed cell in a box that drains, and with ``stray`` walls where nothing is left."""
    grid = mesh.build(mesh.tagged_grid, mesh.Ball(radius=6.0), 18.0, cells=cells, comm=comm)
    kappa = Permeability.on(grid, 0.01, elsewhere=100.0, outer=100.0).values
    lost = np.zeros(len(kappa), bool)
    if stray:
        corners = np.linalg.norm(grid.facet_corners - grid.centre, axis=2).min(axis=1)
        pick = np.sin(grid.facet_vertices @ np.array([12.9, 78.2, 37.7])) > 0.85
        # fewer than four of any cell: those would enclose it
        lost = ~grid.outer & (corners > 8.0) & pick
        kappa[lost] = 0.01
    return grid, Tissue(grid, permeability=Permeability(grid, kappa)), lost


def known(tissue, signals, unknown=None, boundary="absorbing", **more):
    """The uncertainty at a tissue; ``more``: of the problem, or of the uncertainty."""
    own = {k: more.pop(k) for k in ("permeability_range", "normalisation") if k in more}
    problem = InverseProblem(tissue.mesh, signals, boundary=boundary, **own)
    return uncertainty(problem, tissue.permeability.values, unknown=unknown, **more)


def acquisition() -> Acquisition:
    return Acquisition.pgse([0, 1000, 3000], directions=6, delta=5, Delta=[10, 40])


@pytest.fixture(scope="module")
def one():
    grid, tissue, lost = cell()
    signals = simulate(tissue, acquisition(), modes=200)
    return grid, tissue, lost, signals, known(tissue, signals, sigma=0.02, modes=MODES)


def test_walls_are_determined_and_strays_are_not(one):
    grid, tissue, lost, _, found = one
    wall = grid.interface > 0
    assert lost.sum() > 10 and wall.sum() > 20
    assert found.determined[wall].all() and not found.determined[lost].any()
    assert found.sensitivity[wall].min() > 100 * found.sensitivity[lost].max()
    assert np.allclose(found.openness[wall | lost], 0.0) and np.allclose(
        found.openness[~(wall | lost)], 1.0)
    # one facet alone, closed in the middle of the open: nothing that this noise would show
    assert not found.determined[~wall].any()


@pytest.mark.parametrize("open_to_wall", [False, True])
def test_sensitivity_predicts_what_toggling_does(one, open_to_wall):
    grid, tissue, lost, signals, found = one
    engine = MatrixFormalism(BlochTorrey(tissue), signals.acquisition, modes=200)
    kappa = tissue.permeability.values
    before = np.abs(engine.signals())
    inside = (np.linalg.norm(grid.facet_corners - grid.centre, axis=2) < 6.5).all(axis=1)
    wall = grid.interface > 0
    chosen = np.flatnonzero(inside & ~wall if open_to_wall else wall)[::8]
    actual = []
    for f in chosen:
        toggled = kappa.copy()
        toggled[f] = 0.01 if open_to_wall else 100.0
        change = (np.abs(engine.signals(toggled)) - before) / signals.reference
        actual.append(np.sqrt(np.mean(change**2)))
    ratio = found.sensitivity[chosen] / np.array(actual)
    assert len(chosen) >= 5 and 0.75 < np.median(ratio) < 1.25 and ratio.max() < 1.6
    # beside a wall the jump across a closed facet is not uniform, and more of it is noticed
    assert ratio.min() > (0.15 if open_to_wall else 0.6)


def test_posterior_is_that_of_the_whole_hessian(one):
    grid, tissue, _, signals, found = one
    from spinverse.inversion import uncertainty as module
    engine = MatrixFormalism(BlochTorrey(tissue), signals.acquisition, MODES)
    J = Likelihood.of(signals).slope(*signal_jacobian(engine))
    _, slope = module._openness(tissue.permeability.values, found.conductance, 0.01, 100.0)
    J = J * slope
    hessian = J.T @ J / 0.02**2 + np.eye(J.shape[1]) / 0.5**2
    exact = np.sqrt(np.diag(np.linalg.inv(hessian)))
    np.testing.assert_allclose(found.posterior_std, exact, rtol=1e-5)
    np.testing.assert_allclose(found.sensitivity, np.sqrt(np.mean(J**2, axis=0)), rtol=1e-9)
    # no bounds, more freedom: the evidence that is left is less
    free = np.sqrt(np.maximum(1 / exact**2 - 1 / 0.5**2, 0.0))
    wall = grid.interface > 0
    assert (found.evidence[wall] > free[wall]).all()
    alone = np.sqrt(len(signals)) * found.sensitivity / 0.02
    assert (found.evidence <= alone * (1 + 1e-9)).all()


def test_two_facets_in_series_are_not_told_apart():
    """Two membranes close to each other let through what one of half the permeability does."""
    layers = mesh.build(mesh.intervals, [5.0, 0.5, 5.0], cells_per_layer=4, comm=MPI.COMM_SELF)
    tissue = Tissue(layers, permeability=Permeability.on(layers, 0.05, elsewhere=100.0))
    signals = simulate(tissue, Acquisition.pgse([0, 500, 2000], [[1.0, 0, 0]], 5, [10, 40]))
    membranes = layers.interface > 0
    both = known(tissue, signals, membranes, "reflecting", sigma=1e-3)
    here = np.arange(len(membranes)) == np.flatnonzero(membranes)[0]
    one = known(tissue, signals, here, "reflecting", sigma=1e-3)
    assert both.posterior_std[here] > 4 * one.posterior_std[here]
    others = ~membranes
    assert np.isinf(both.evidence[others]).all() and not both.sensitivity[others].any()


@pytest.mark.mpi
@pytest.mark.parametrize("normalisation", ["measured", "own"])
def test_the_same_on_any_number_of_ranks(comm, normalisation):
    parts = []
    for where in (comm, MPI.COMM_SELF):
        grid, tissue, _ = cell(where, cells=2)
        signals = simulate(tissue, acquisition(), modes=60)
        if normalisation == "own":
            signals = Signals(signals.acquisition, 3.7 * signals.values)
        parts.append((grid, known(tissue, signals, sigma=0.01, modes=60,
                                        normalisation=normalisation)))
    (here, found), (alone, wanted) = parts
    partner = alone.find_facets(here.facet_vertices)
    for name in ("sensitivity", "posterior_std", "conductance", "openness"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name)[partner],
                                   rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.evidence, wanted.evidence[partner], rtol=1e-4, atol=1e-6)
    assert np.array_equal(found.determined, wanted.determined[partner])


def test_noise_from_the_residual(one):
    _, tissue, _, signals, _ = one
    noise = 0.01 * np.random.default_rng(2).normal(size=len(signals)) * signals.reference
    noisy = Signals(signals.acquisition, np.abs(signals.magnitude + noise))
    found = known(tissue, noisy, modes=MODES)
    assert found.sigma == pytest.approx(0.01, rel=0.4)
    assert known(tissue, signals, modes=200, model_error=2e-3).sigma == pytest.approx(
        2e-3, rel=0.1)


@pytest.mark.mpi
def test_files_say_it(comm, shared_tmp_path):
    grid, tissue, _ = cell(comm, cells=2)
    signals = simulate(tissue, acquisition(), modes=40)
    found = known(tissue, signals, sigma=0.02, modes=40)
    kappa = tissue.permeability.values
    path = shared_tmp_path / "permeability.npz"
    export.write_permeability(path, grid, kappa, found, membrane=kappa < 1)
    export.write_vtu(shared_tmp_path / "permeability.vtu", grid, {"permeability": kappa}, found)
    whole = grid.gather_facets(found.sensitivity, found.posterior_std, found.determined)
    if comm.rank == 0:
        with np.load(path) as file:
            for name, values in zip(("sensitivity", "posterior_std", "determined"), whole[1:],
                                    strict=True):
                assert np.array_equal(file[name], values)
            assert file["determined"].dtype == bool and file["membrane"].dtype == bool
        data = meshio.read(shared_tmp_path / "permeability.vtu").cell_data
        assert {"permeability", "sensitivity", "posterior_std", "determined"} == set(data)
    comm.Barrier()


def test_picture_with_and_without(one, tmp_path):
    pytest.importorskip("matplotlib")
    from spinverse.report import plots

    grid, tissue, _, _, found = one
    kappa = tissue.permeability.values
    for name, member, more in (("plain", kappa < 1, ()), ("sure", kappa < 1, (found.evidence,)),
                               ("none", kappa < 0, (found.evidence,))):
        plots.interface(tmp_path / f"{name}.png", grid.facet_corners, kappa, member,
                        grid.interface > 0, grid.bounds, *more)
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_a_picture_of_what_explains_nothing_calls_nothing_determined(one, tmp_path, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    from spinverse.report import plots

    grid, tissue, _, _, found = one
    kept, kappa = [], tissue.permeability.values
    monkeypatch.setattr(figure_module.Figure, "savefig", lambda self, *a, **k: kept.append(self))
    plots.interface(tmp_path / "a.png", grid.facet_corners, kappa, kappa < 1, None, grid.bounds,
                    found.evidence, explained=False)
    text, = (text.get_text() for text in kept[0].legends[0].get_texts())
    assert text == f"the data are NOT explained: none of {(kappa < 1).sum()} is determined"


def test_a_misfit_that_is_known_is_judged(one):
    _, tissue, _, signals, found = one
    assert found.determined.any()
    assert not known(tissue, signals, modes=MODES, sigma=0.02, misfit=0.1).determined.any()


@pytest.mark.parametrize("arguments, message", [
    ({"sigma": 0.0}, "sigma: 0.0, expected a positive number"),
    ({"prior_std": -1}, "prior_std: -1, expected a positive number"),
    ({"permeability_range": (1.0, 0.1)}, "permeability_range"),
    ({"normalisation": "none"}, "normalisation: 'none', expected one of auto, measured, own"),
    ({"unknown": np.ones(3)}, r"unknown: shape \(3,\)")])
def test_bad_input(one, arguments, message):
    _, tissue, _, signals, _ = one
    with pytest.raises(InputError, match=message):
        known(tissue, signals, **arguments)
