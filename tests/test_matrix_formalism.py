"""The matrix formalism and its parts: exponentials, jumps, ties, modes, ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI
from scipy.linalg import expm, expm_frechet

from spinverse import BlochTorrey, InputError, Permeability, SolverError, Tissue, forms, mesh
from spinverse.acquisition import Acquisition
from spinverse.engines.basis.eigenmodes import eigenmodes
from spinverse.engines.modal.chebyshev import Propagation
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.engines.modal.steps import divided_differences
from spinverse.mesh import Ball
from spinverse.mesh.checks import facets_of
from spinverse.validation import analytic

SHARED = Path(__file__).parents[2] / "shared" / "benchmark"


def ball_data():
    return mesh.tagged_grid(Ball(radius=3.0), 10.0, cells=2)


def ball(comm=MPI.COMM_SELF):
    return mesh.build(ball_data, comm=comm)


def tagged(comm=MPI.COMM_SELF, tied=False, degree=1, T2=80.0) -> BlochTorrey:
    """A ball of slow, sparse medium in a box of fast medium; outer facets let through."""
    grid = ball(comm)
    wave = np.sin(grid.facet_vertices @ np.array([1.3, 2.9, 0.7]))
    elsewhere = np.inf if tied else 3.0
    kappa = np.where(grid.interface > 0, 0.05 * (2 + wave), elsewhere)
    kappa[grid.outer] = 0.03 * (2 + wave[grid.outer])
    return BlochTorrey(Tissue(grid, diffusivity={1: 0.8, 2: 2.0}, T2=T2, density={1: 0.7, 2: 1.0},
                              permeability=Permeability(grid, kappa)), degree)


def few() -> Acquisition:
    return Acquisition.pgse(b=[0, 1000, 3000], directions=[[0.6, 0.0, 0.8], [-0.48, 0.8, 0.36]],
                            delta=3.0, Delta=8.0)


# ---- exponentials -------------------------------------------------------------------------------


def operators(size=12, largest=6.0, reach=4.0):
    rng = np.random.default_rng(3)
    eigenvalues = np.sort(rng.uniform(0, largest, size))
    X = rng.normal(size=(size, size))
    X = X + X.T
    return eigenvalues, X * (reach / np.abs(np.linalg.eigvalsh(X)).max()), rng


@pytest.mark.parametrize("largest, strength, duration", [
    (6.0, 0.3, 2.0), (0.5, 3.0, 5.0), (400.0, 0.2, 10.0), (400.0, 40.0, 3.0), (6.0, 0.0, 2.0)])
def test_propagation_is_the_exponential(largest, strength, duration):
    eigenvalues, X, rng = operators(largest=largest)
    q = strength * np.array([1.0, 0.3, -0.7])
    u = rng.normal(size=(12, 3)) + 1j * rng.normal(size=(12, 3))
    found = Propagation(eigenvalues, X, q, 4.0, duration).forward(u)
    for c in range(3):
        exact = expm(-duration * (np.diag(eigenvalues) + 1j * q[c] * X)) @ u[:, c]
        assert np.abs(found[:, c] - exact).max() < 1e-8 * np.linalg.norm(u[:, c])


@pytest.mark.parametrize("largest, strength", [(6.0, 0.5), (60.0, 2.0)])
def test_pulling_back_is_the_derivative_of_the_exponential(largest, strength):
    eigenvalues, X, rng = operators(largest=largest)
    q = strength * np.array([1.0, -0.4])
    u, p = (rng.normal(size=(2, 12, 2)) + 1j * rng.normal(size=(2, 12, 2)))
    E = rng.normal(size=(12, 12))
    step = Propagation(eigenvalues, X, q, 4.0, 2.0)
    step.forward(u, remember=True)
    gradient = np.zeros((12, 12))
    adjoint = step.backward(p, gradient)
    expected = 0.0
    for c in range(2):
        B = -2.0 * (np.diag(eigenvalues) + 1j * q[c] * X)
        full, derivative = expm_frechet(B, -2.0 * E.astype(complex))
        expected += (p[:, c].conj() @ derivative @ u[:, c]).real
        assert np.abs(adjoint[:, c] - full.conj().T @ p[:, c]).max() < 1e-8
    assert np.sum(gradient * E) == pytest.approx(expected, rel=1e-7)


def testdivided_differences():
    values = np.array([0.0, 0.0, 1e-9, 0.3, 0.3 + 1e-7, 2.0, 500.0])
    E = np.random.default_rng(1).normal(size=(7, 7))
    exact = expm_frechet(-1.5 * np.diag(values), -1.5 * E, compute_expm=False)
    assert np.abs(divided_differences(values, 1.5) * E - exact).max() < 1e-9


# ---- jumps and ties -----------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("degree", [1, 2])
def test_exchange_is_the_gram_matrix_of_the_jumps(comm, degree):
    problem = tagged(comm, degree=degree)
    m, v, c = ufl.TrialFunction(problem.space), ufl.TestFunction(problem.space), \
        problem.coefficients
    Q = dolfinx.fem.petsc.assemble_matrix(
        problem.compile(forms.exchange(m, v, c) + forms.outflow(m, v, c)))
    Q.assemble()
    x = dolfinx.fem.Function(problem.space)
    x.interpolate(lambda p: np.sin(p[0]) + 0.2 * p[1] * p[2])
    # break it: cells know their input number whatever the ranks
    dofs = problem.space.dofmap.list
    x.x.array[dofs] *= 1 + 0.5 * np.cos(problem.mesh.input_cells[: len(dofs)])[:, None]
    x.x.scatter_forward()
    y = Q.createVecLeft()
    Q.mult(x.x.petsc_vec, y)
    energy = y.dot(x.x.petsc_vec)
    T = problem.jump_matrix
    kappa = problem.kappa.x.array[: problem.mesh.num_owned_facets]
    per_facet = ((T @ x.x.array) ** 2).reshape(len(kappa), T.shape[0] // max(len(kappa), 1)
                                              ).sum(axis=1) if len(kappa) else np.zeros(0)
    assert energy > 0
    assert comm.allreduce(float(kappa @ per_facet)) == pytest.approx(energy, rel=1e-12)


@pytest.mark.parametrize("degree", [1, 2])
def test_exchange_matrix_entry_by_entry(degree):
    problem = tagged(degree=degree)
    m, v, c = ufl.TrialFunction(problem.space), ufl.TestFunction(problem.space), \
        problem.coefficients
    form = problem.compile(forms.exchange(m, v, c) + forms.outflow(m, v, c))
    Q = dolfinx.fem.assemble_matrix(form).to_scipy()
    T = problem.jump_matrix
    weights = np.repeat(problem.kappa.x.array, T.shape[0] // problem.mesh.num_owned_facets)
    difference = T.T @ T.multiply(weights[:, None]) - Q
    assert np.abs(difference).max() < 1e-12 * np.abs(Q).max()


def sheets(data, separating) -> int:
    """Vertices of the mesh after it is cut along the facets ``separating``: plain union-find."""
    facets, pairs = facets_of(data.cells)
    parent = {(cell, v): (cell, v) for cell, tet in enumerate(data.cells.tolist()) for v in tet}

    def root(key):
        while parent[key] != key:
            key = parent[key]
        return key

    for triple, (a, b) in zip(facets.tolist(), pairs.tolist(), strict=True):
        if b >= 0 and tuple(triple) not in separating:
            for v in triple:
                parent[root((a, v))] = root((b, v))
    return sum(parent[key] == key for key in parent)


@pytest.mark.mpi
def test_tied_unknowns_are_those_of_a_conforming_mesh(comm):
    data = comm.bcast(ball_data() if comm.rank == 0 else None)
    grid = ball(comm)
    edges = {tuple(sorted((t[i], t[j]))) for t in data.cells.tolist()
             for i in range(4) for j in range(i)}
    everything = Permeability.on(grid, membrane=np.inf)
    assert BlochTorrey(Tissue(grid, permeability=everything)).num_unknowns == len(data.points)
    assert BlochTorrey(Tissue(grid, permeability=everything), 2).num_unknowns == (
        len(data.points) + len(edges))
    split = BlochTorrey(Tissue(grid, permeability=Permeability.on(grid, membrane=0.02)))
    separating = set(map(tuple, data.interface_facets.tolist()))
    assert split.num_unknowns == sheets(data, separating) > len(data.points)
    broken = BlochTorrey(Tissue(grid, permeability=1.0))
    assert broken.num_unknowns == 4 * len(data.cells) and broken.prolongation is None


@pytest.mark.mpi
def test_prolongation_has_one_entry_in_each_row(comm):
    problem = tagged(comm, tied=True)
    P = problem.prolongation
    column = P.createVecRight()
    column.set(1.0)
    row = P.createVecLeft()
    P.mult(column, row)
    np.testing.assert_allclose(row.array_r, problem.scale)
    P.multTranspose(row, column)
    assert column.min()[1] >= problem.tissue.density.min() * (1 - 1e-12)
    assert column.sum() == pytest.approx(
        comm.allreduce(float(4 * problem.tissue.density[: problem.mesh.num_owned_cells].sum())))


@pytest.mark.mpi
@pytest.mark.parametrize("degree", [1, 2])
def test_products_on_the_tied_space_are_those_on_the_broken_one(comm, degree):
    problem = tagged(comm, tied=True, degree=degree)
    basis, unknowns = eigenmodes(problem, 20), problem.unknowns
    broken = basis.modes
    assert len(basis.columns) < len(broken) or not len(broken)
    for X, J in zip(basis.positions, problem.local_positions, strict=True):
        assert np.abs(X - comm.allreduce(broken.T @ (J @ broken))).max() < 1e-12 * np.abs(X).max()
    assert np.abs(unknowns.nearest(broken) - basis.columns).max(initial=0) < 1e-12
    mass = problem.mass_matrix.createVecRight()
    load = unknowns.gathered(problem.mass_of_unknowns @ basis.columns)
    for k in (0, 7):
        column = problem.mass_matrix.createVecRight()
        column.setArray(basis.columns[: unknowns.num_owned, k])
        problem.mass_matrix.mult(column, mass)
        assert np.abs(load[:, k] - mass.array_r).max(initial=0) < 1e-12
    free, T = problem.free_jumps
    assert np.array_equal(free, np.flatnonzero(~problem.tied))
    whole = dolfinx.la.vector(problem.space.dofmap.index_map, 1)
    whole.array[: len(broken)] = broken[:, 3]
    whole.scatter_forward()
    jumps = (problem.jump_matrix @ whole.array).reshape(len(problem.tied), -1)
    assert np.abs(jumps[free].ravel() - T @ basis.columns[:, 3]).max(initial=0) < 1e-12


# ---- signals ------------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("tied, modes", [(False, 24), (True, 24), (True, "auto")])
def test_the_same_on_any_number_of_ranks(comm, tied, modes):
    found = []
    weights = np.array([0.3 - 1j, 0.5 + 0.2j, -0.7j, 1.0, -0.4 + 0.6j, 0.8 - 0.1j])
    for where in (comm, MPI.COMM_SELF):
        problem = tagged(where, tied)
        engine = MatrixFormalism(problem, few(), modes=modes, tolerance=1e-3)
        signals = engine.signals(remember=True)
        found.append((problem.mesh, signals, engine.gradient(weights), len(engine.basis)))
    (here, signals, gradient, number), (alone, signals_alone, gradient_alone, expected) = found
    assert number == expected
    assert np.abs(signals - signals_alone).max() < 1e-8 * np.abs(signals_alone).max()
    assert np.array_equal(comm.bcast(signals), signals)
    partner = alone.find_facets(here.facet_vertices)
    assert np.abs(gradient - gradient_alone[partner]).max(initial=0) < (
        1e-8 * np.abs(gradient_alone).max())


@pytest.mark.parametrize("density", [{1: 0.7, 2: 1.0}, 1.0])
def test_directions_at_once_or_one_by_one(density, monkeypatch):
    problem = tagged()
    problem = BlochTorrey(replace(problem.tissue, density=density))
    acquisition = Acquisition.pgse([0, 500, 2500], 5, [3.0, 3.0, 2.0], [8.0, 12.0, 5.0])
    weights = np.exp(1j * np.arange(len(acquisition)))
    found = []
    for columns in (10**6, 1):
        monkeypatch.setattr("spinverse.engines.schedule.groups._COLUMNS", columns)
        engine = MatrixFormalism(problem, acquisition, modes=30)
        signals = engine.signals(remember=True)
        coefficients = engine.gradient(weights), engine.gradient_of(problem.kappa, weights)
        found.append((len(engine._batches), signals, *coefficients))
    (few, *first), (many, *second) = found
    assert few == 3 and many == 11  # no gradient, pulses of 3 ms, of 2 ms; each direction
    for a, b in zip(first, second, strict=True):
        assert np.abs(a - b).max() < 1e-11 * np.abs(b).max()
    assert np.abs(first[1] - first[2]).max() < 1e-9 * np.abs(first[1]).max()


@pytest.mark.mpi
def test_closed_cells_everywhere(comm):
    """Zero permeability on every facet: one mode without decay for each cell."""
    grid = mesh.build(mesh.box, [10.0] * 3, cells=(1, 1, 1), comm=comm)
    problem = BlochTorrey(Tissue(grid, permeability=0.0))
    modes = eigenmodes(problem, grid.num_cells + 5)
    assert np.count_nonzero(modes.eigenvalues < 1e-9) == grid.num_cells
    engine = MatrixFormalism(problem, few(), modes=problem.num_unknowns)
    signals = engine.signals(remember=True)
    assert signals[0] == pytest.approx(1000.0, rel=1e-9)
    assert np.isfinite(engine.gradient(np.ones(len(signals), complex))).all()


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_modes_diagonalise_the_operators(tied, degree):
    problem = tagged(tied=tied, degree=degree)
    modes = eigenmodes(problem, 20)
    assert 8 <= len(modes) <= 32 and np.all(np.diff(modes.eigenvalues) >= 0)
    gram = modes.modes.T @ (problem.local_mass @ modes.modes)
    assert np.abs(gram - np.eye(len(modes))).max() < 1e-8
    m, v, c = ufl.TrialFunction(problem.space), ufl.TestFunction(problem.space), \
        problem.coefficients
    A = dolfinx.fem.assemble_matrix(problem.compile(forms.decay(m, v, c))).to_scipy()
    projected = modes.modes.T @ (A @ modes.modes)
    assert np.abs(projected - np.diag(modes.eigenvalues)).max() < 1e-7 * modes.eigenvalues[-1]


@pytest.mark.parametrize("T2", [np.inf, 40.0])
def test_signal_without_gradient_is_the_magnetisation(T2):
    box = mesh.build(mesh.box, [5.0, 4, 3], cells=(1, 1, 1), comm=MPI.COMM_SELF)
    problem = BlochTorrey(Tissue(box, T2=T2, permeability=0.3))
    signals = MatrixFormalism(problem, few(), modes=24).signals()
    assert signals[0] == pytest.approx(60.0 * np.exp(-11.0 / T2), rel=1e-9)


def test_free_diffusion_in_a_large_tied_box():
    """Short times: only a few per cent of the spins meet a wall."""
    box = mesh.build(mesh.box, [80.0, 4.0, 4.0], cells=(24, 1, 1), comm=MPI.COMM_SELF)
    problem = BlochTorrey(Tissue(box, permeability=Permeability.on(box, membrane=np.inf)), 2)
    acquisition = Acquisition.pgse(b=[0, 20, 100], directions=[[1.0, 0, 0]], delta=2, Delta=4)
    signals = MatrixFormalism(problem, acquisition, modes=300).signals()
    exact = analytic.slab([0, 20, 100], 2.0, 4.0, 80.0)
    assert np.abs(signals / signals[0] - exact).max() < 2e-3
    assert np.abs(signals / signals[0] - analytic.free([0, 20, 100])).max() < 0.02


def test_two_slabs_against_the_layered_solution():
    layers = mesh.build(mesh.slabs, [5.0, 5.0], cells_per_layer=4, comm=MPI.COMM_SELF)
    permeability = Permeability.on(layers, membrane=0.03)
    problem = BlochTorrey(Tissue(layers, permeability=permeability), 2)
    b = [0, 1000, 3000]
    acquisition = Acquisition.pgse(b=b, directions=[[1.0, 0, 0]], delta=4, Delta=20)
    signals = MatrixFormalism(problem, acquisition).signals()
    exact = analytic.slabs(b, 4.0, 20.0, [5.0, 5.0], 0.03)
    assert np.abs(signals / signals[0] - exact).max() < 5e-5


def test_signals_of_the_published_sphere():
    for name in ("018_sphere_10r_in_grid_20x20.npz", "signals_018.npz"):
        if not (SHARED / name).exists():
            pytest.skip(f"benchmark/{name} is not beside the checkout")
    grid = mesh.read(SHARED / "018_sphere_10r_in_grid_20x20.npz", MPI.COMM_SELF, repair=True)
    published = np.load(SHARED / "signals_018.npz")
    # the published target: 1e-5 on the membrane, 0.1 elsewhere, um/us, outer facets included
    permeability = Permeability.on(grid, membrane=0.01, elsewhere=100.0, outer=100.0)
    problem = BlochTorrey(Tissue(grid, permeability=permeability))
    delta, Delta = published["deltas"].T / 1000.0
    directions = published["directions"]
    directions = directions if directions.shape[1] == 3 else directions.T
    acquisition = Acquisition.pgse(published["bvalues"][:, 0].astype(float), directions,
                                   delta=delta, Delta=Delta)
    signals = np.abs(MatrixFormalism(problem, acquisition, tolerance=1e-4).signals())
    signals = signals.reshape(3, 6, 30)
    normed = (signals / signals[:, :1]).transpose(1, 0, 2)
    assert np.abs(normed - published["signal_ref_normed"]).max() < 1e-3


# ---- how many modes, bad input ------------------------------------------------------------------


def test_auto_keeps_its_promise():
    problem = tagged()
    engine = MatrixFormalism(problem, few(), tolerance=1e-3)
    signals = engine.signals()
    exact = MatrixFormalism(problem, few(), modes=problem.num_unknowns).signals()
    assert np.abs(signals - exact).max() < 3e-3 * problem.magnetisation_at_start
    assert engine.estimated_error <= 1e-3


@pytest.mark.parametrize("modes", [0, -3, 2.5, "many"])
def test_bad_number_of_modes(modes):
    with pytest.raises(InputError, match=f"modes: {modes!r}, expected a positive number or 'auto'"):
        MatrixFormalism(tagged(), few(), modes=modes)


def test_extra_terms_that_are_not_symmetric_are_refused():
    grid = ball()
    problem = BlochTorrey(Tissue(grid), extra_terms=lambda m, v, t, c: ufl.inner(
        ufl.grad(m)[:, 0], v) * c.dx)
    with pytest.raises(InputError, match="matrix_formalism cannot take them, because they have a "
                                         "part that is not symmetric"):
        MatrixFormalism(problem, few())


def test_permeability_that_is_not_a_number_is_a_solver_error():
    problem = tagged()
    engine = MatrixFormalism(problem, few(), modes=20)
    with pytest.raises(SolverError, match="eigenproblem"):
        engine.signals(np.full(problem.mesh.num_owned_facets, np.nan))
