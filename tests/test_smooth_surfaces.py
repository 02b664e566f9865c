"""Cells with smooth surfaces through mesh cells: refinement, cuts, signals, slopes, fits."""

from dataclasses import replace

import numpy as np
import pytest
from mpi4py import MPI

import spinverse
from spinverse import Acquisition, InverseProblem, Permeability, Signals, Tissue
from spinverse.benchmark import targets
from spinverse.engines.shapes.partition import PartitionModel
from spinverse.inversion.shapes import smooth_surfaces
from spinverse.inversion.shapes.cells import Cells
from spinverse.inversion.shapes.hypothesis import Hypothesis
from spinverse.inversion.shapes.ledger import SearchLedger
from spinverse.inversion.shapes.levels import Levels
from spinverse.inversion.shapes.models import Models
from spinverse.inversion.shapes.search import Search
from spinverse.inversion.shapes.settings import Settings
from spinverse.inversion.shapes.smooth_surfaces import SmoothFit, suits
from spinverse.inversion.verdict import verdict
from spinverse.mesh.checks import cell_volumes, facets_of
from spinverse.mesh.grids import kuhn
from spinverse.mesh.refinement import refined

SIDE, RADIUS = 16.0, 5.3  # um, of the box and the balls here, an edge of a mesh cell


@pytest.fixture(scope="module")
def grid():
    """216 mesh cells."""
    points, tets = targets.grid(3)
    return spinverse.mesh.MeshData(SIDE / np.ptp(points) * points, tets)


def models_of(grid, comm, boundary="absorbing", values=None, **known):
    mesh = spinverse.mesh.Mesh.from_data(grid, comm)
    table = Acquisition.pgse(b=[0, 1000, 4000], directions=6, delta=[5, 10], Delta=[6, 40])
    signals = Signals(table, np.ones(len(table), complex) if values is None else values)
    return Models(InverseProblem(mesh, signals, boundary=boundary, **(
        {"wall_permeability": 0.05, "noise": 0.0} | known)))


def ball(points, radius=RADIUS, middle=(0.0, 0.0, 0.0)):
    return radius - np.linalg.norm(points - np.array(middle), axis=-1)


def test_each_cell_is_eight(grid):
    points, cells = refined(*refined(grid.points, grid.cells))
    volumes = cell_volumes(points, cells)
    assert len(cells) == 64 * len(grid.cells) and (volumes > 0).all()
    assert np.allclose(volumes.reshape(-1, 64).sum(axis=1), grid.volumes)
    _, pairs = facets_of(cells)  # an error where they do not fit
    assert np.count_nonzero(pairs[:, 1] < 0) == 16 * np.count_nonzero(
        facets_of(grid.cells)[1][:, 1] < 0)
    assert np.array_equal(points[: len(grid.points)], grid.points)


@pytest.mark.mpi
def test_surfaces_close_and_keep_their_volume(comm, grid):
    models = models_of(grid, comm)
    model = models.cut(models.start, 2)
    x = model.grid.points
    # of radius R, and one that the box cuts off: a blob apart is none of it
    inner = ball(x, 4.5)
    other = np.maximum(ball(x, 5.0, (5.0, 0.0, 0.0)), ball(x, 1.0, (-6.0, 0.0, 0.0)))
    for values in (inner, other):
        shape, = model.shapes([values])
        surface = shape.surface(model.grid, "ball")
        assert surface.volume == pytest.approx(shape.volume, rel=0.02)
        edges = np.sort(surface.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        assert (np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all()
    shape, = model.shapes([inner])
    assert shape.volume == pytest.approx(4 / 3 * np.pi * 4.5**3, rel=0.04)
    assert shape.area == pytest.approx(4 * np.pi * 4.5**2, rel=0.04)
    whole = model.grid.whole
    assert shape.share @ whole.volumes[shape.cut] + whole.volumes[shape.full].sum() == (
        pytest.approx(shape.volume))


@pytest.mark.mpi
@pytest.mark.parametrize("boundary", ["absorbing", "reflecting"])
def test_surfaces_along_facets_give_the_signals_of_labels(comm, boundary):
    """A box in a box, whose faces are facets, against the model of labels."""
    planes = np.linspace(-10.0, 10.0, 5)
    models = models_of(spinverse.mesh.MeshData(*kuhn(planes, planes, planes)), comm, boundary)
    models.resistance = 0.0
    model = models.cut(models.start, 1)
    shape, = model.shapes([5.0 - np.abs(model.grid.points).max(axis=1)])
    labels = (np.abs(models.whole.centroids - models.whole.centre).max(axis=1) < 5).astype(np.int8)
    blocks, walls = models._at(models.start)
    expected = PartitionModel(blocks, walls).signals(labels, models.all.sweeps(0.25))
    found = model.signals([shape], models.all.sweeps(0.25))
    assert np.abs(np.abs(found) - np.abs(expected)).max() < 5e-3 * np.abs(expected).max()


@pytest.mark.mpi
def test_slopes_by_levels_are_those_of_differences(comm, grid, monkeypatch):
    for name in ("LONGEST", "OF_SLOPES"):
        monkeypatch.setattr(smooth_surfaces, name, 0.1)
    models = models_of(grid, comm)
    fit = SmoothFit(models, models.all)
    levels = Levels(models, 2)
    x = (models.whole.centroids - models.whole.centre).T
    psi = 1 - ((x[0] - 0.6) / 5) ** 2 - (x[1] / 4) ** 2 - ((x[2] + 0.3) / 4.5) ** 2
    a = levels.scaled(np.linalg.lstsq(levels.values, psi, rcond=None)[0])[None]
    J, metric, by_area = fit._slopes(levels, a, models.start)
    assert metric.shape == (10, 10) and J.shape == (len(models.all.measured), 10)
    up, down = (np.array([fit.residual(levels, a + step, models.start)
                          for step in sign * 1e-3 * np.eye(10)]).T for sign in (1, -1))
    differences = (up - down) / 2e-3
    areas = []
    for step in 1e-3 * np.eye(10):
        sides = [fit._shapes(fit.model(models.start), levels, a + sign * step)[0].area
                 for sign in (1, -1)]
        areas.append((sides[0] - sides[1]) / 2e-3)
    # vertices on the surface are moved a little, whatever the step
    assert np.allclose(by_area, areas, atol=1e-2 * np.abs(areas).max())
    assert np.linalg.norm(J - differences) < 0.02 * np.linalg.norm(differences)


def test_surfaces_tell_cells_of_a_mesh_from_the_others(grid):
    models = models_of(grid, MPI.COMM_SELF)
    x, volumes = models.whole.centroids - models.whole.centre, models.whole.volumes
    levels = Levels(models, 4)
    for inside in (ball(x, 5.0) > 0, ball(x, 5.0, (2.0, -1.0, 3.0)) > 0):
        wrong = (levels.values @ levels.around(inside) > 0) != inside
        assert volumes[wrong].sum() < 0.1 * volumes[inside].sum()


def ring(points):
    """Of radius 4.6 and 2.8 um, a quartic, about distances near it."""
    square = (points**2).sum(axis=1)
    flat = 4 * 4.6**2 * (square - points[:, 2] ** 2)
    return (flat - (square + 4.6**2 - 2.8**2) ** 2) / 200


@pytest.mark.mpi
def test_steps_open_the_hole_of_a_ring(comm, grid):
    """Narrower than a mesh cell, from a disk of mesh cells."""
    models = models_of(grid, comm)
    fit = SmoothFit(models, models.all)
    model = fit.model(models.start)
    truth, = model.shapes([ring(model.grid.points)])
    values = model.signals([truth], models.all.sweeps(smooth_surfaces.LONGEST))
    models = models_of(grid, comm, values=values)
    fit, levels = SmoothFit(models, models.all), Levels(models, 4)
    x = models.whole.centroids - models.whole.centre
    disk = (np.hypot(x[:, 0], x[:, 1]) < 6.5) & (np.abs(x[:, 2]) < 2.5)
    a, _, misfit = fit._degree(levels, levels.around(disk)[None], models.start, 8, 0.0)
    found, = fit._shapes(fit.model(models.start), levels, a)
    assert misfit < 1e-5
    assert found.volume == pytest.approx(truth.volume, rel=0.1)
    surface = found.surface(model.grid, "ring")
    edges = np.unique(np.sort(surface.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1),
                      axis=0)
    assert len(surface.points) - len(edges) + len(surface.triangles) == 0


@pytest.fixture(scope="module")
def measured(grid):
    """Of a ball that is no union of mesh cells, on a mesh of 64 times as many."""
    middle = (0.4, -0.3, 0.2)
    finer = spinverse.mesh.MeshData(*refined(*refined(grid.points, grid.cells)))
    made = models_of(finer, MPI.COMM_SELF)
    made.resistance = 0.0
    model = made.cut(made.start, 1)
    shapes = model.shapes([ball(model.grid.points, RADIUS, middle)])
    return model.signals(shapes, made.all.sweeps(0.5)), shapes[0]


@pytest.mark.mpi
def test_a_fit_finds_what_no_mesh_cells_are(comm, grid, measured):
    values, truth = measured
    models = models_of(grid, comm, values=values)
    assert suits(models.problem)
    cells = Cells(models.whole)
    start = cells.repaired((ball(models.whole.centroids, 5.5, (1.2, 0.6, 0.0)) > 0).astype(np.int8))
    said = []
    found = SmoothFit(models, models.all).fit(Hypothesis(start, models.start),
                                              lambda phase, misfit: said.append((phase, misfit)))
    assert found.refined and said[0][0] == "smooth surface 2"
    assert found.misfit < found.error < 1e-3
    assert found.volumes[0] == pytest.approx(truth.volume, rel=0.03)
    assert found.areas[0] / found.volumes[0] == pytest.approx(truth.area / truth.volume, rel=0.03)
    # wherever it is
    surface = found.surfaces[0]
    x, area = surface.corners.mean(axis=1), surface.areas
    away = np.linalg.norm(x - np.average(x, axis=0, weights=area), axis=1) - RADIUS
    assert np.sqrt(np.average(away**2, weights=area)) < 0.3
    # what a search keeps of it
    again = SmoothFit(models, models.all).result(found.coefficients, found.theta)
    assert again.degree == found.degree and again.misfit == pytest.approx(found.misfit, rel=1e-6)
    # and how it is judged
    said = verdict(replace(models.problem, noise=1e-3), found.misfit, found.error)
    assert said.explained and said.limit >= found.error


def test_a_search_goes_on_without_facets(grid, measured):
    """Data that no mesh cells explain end with surfaces, as the budget is spent, and figures."""
    values, truth = measured
    models = models_of(grid, MPI.COMM_SELF, values=values, noise=0.0)
    few = {"cells": 1, "ellipsoids": 20, "candidates": 1, "budget": 1000}
    result = spinverse.reconstruct(
        models.problem.mesh, models.problem.signals, [spinverse.Shapes(**few)],
        boundary="absorbing", wall_permeability=0.05, noise=0.0)
    assert "smooth surfaces explain the data" in result.endings["shapes"]
    assert result.surface.misfit == pytest.approx(result.data_misfit)
    assert result.surface.describe().startswith("smooth surfaces")
    assert set(result.surface.summary()) >= {"misfit", "mesh_error", "volume_um3"}
    table = result.cell_table()
    assert table.rows[0]["volume"].value == pytest.approx(truth.volume, rel=0.03)
    assert table.rows[0]["smooth_surface_to_volume"].value == pytest.approx(
        truth.area / truth.volume, rel=0.03)
    (surface,) = result.surfaces()
    assert surface.smooth.volume == pytest.approx(truth.volume, rel=0.03)
    inside = ball(models.whole.centroids, RADIUS) > 0
    assert 0.5 * inside.sum() < np.count_nonzero(result.labels) < 2 * inside.sum()


def test_data_of_the_mesh_are_not_explained(grid, monkeypatch):
    mesh = spinverse.mesh.Mesh.from_data(grid, MPI.COMM_SELF)
    models = models_of(grid, MPI.COMM_SELF)
    labels = Cells(models.whole).repaired(
        (ball(models.whole.centroids, 5.0) > 0).astype(np.int8))
    kappa = Permeability(mesh, models.permeability(labels, models.start))
    signals = spinverse.simulate(Tissue(mesh, permeability=kappa),
                                 models.problem.acquisition, tolerance=1e-6)
    problem = InverseProblem(mesh, signals, boundary="absorbing", wall_permeability=0.05)
    search = Search(problem, Settings(cells=1, ellipsoids=40, candidates=2, rounds=1))
    ledger = SearchLedger(search)
    monkeypatch.setattr(smooth_surfaces, "DEGREES", ((2, 6), (3, 3)))
    monkeypatch.setattr(smooth_surfaces, "LOWER", ())
    fit = SmoothFit(search.models, search.models.all)
    ledger.surface = fit.fit(Hypothesis(labels, search.models.start), lambda *said: None)
    assert not ledger.surfaced() and ledger.surface.misfit > 2 * ledger.surface.error
