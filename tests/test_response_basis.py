"""Responses of the start as a basis: accuracy, ranks, gradients, what may go wrong."""

from __future__ import annotations

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

from spinverse import BlochTorrey, Permeability, Tissue, mesh
from spinverse.acquisition import Acquisition
from spinverse.engines.basis.eigenmodes import eigenmodes
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.errors import InputError, SolverError
from spinverse.forms import decay, i_times
from spinverse.mesh import Ball


def table() -> Acquisition:
    return Acquisition.pgse(b=[0, 1000, 4000], directions=[[0.6, 0.0, 0.8], [-0.48, 0.8, 0.36]],
                            delta=8.0, Delta=25.0)


def leaky(comm=MPI.COMM_SELF, degree=1, density=1.0, tied=False, **extra) -> BlochTorrey:
    """A ball in a box of half-closed facets everywhere; 192 cells, 768 broken unknowns."""
    grid = mesh.build(mesh.tagged_grid, Ball(radius=5.0), 16.0, cells=2, comm=comm)
    wave = np.sin(grid.facet_vertices @ np.array([1.3, 2.9, 0.7]))
    kappa = 10.0 ** (0.5 * wave)
    if tied:
        kappa[(grid.interface == 0) & ~grid.outer & (wave > 0.5)] = np.inf
    return BlochTorrey(Tissue(grid, T2=80.0, density=density,
                              permeability=Permeability(grid, kappa)), degree, **extra)


def run(problem, number, functions="responses", adjoint=None):
    engine = MatrixFormalism(problem, table(), modes=number, functions=functions)
    signals = engine.signals(remember=True)
    adjoint = signals / problem.magnetisation_at_start if adjoint is None else adjoint
    return signals, engine.gradient(adjoint), engine


def distance(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def background(m, v, t, c):
    """A field that turns phases by up to 0.3 rad/ms."""
    return 0.3 * ufl.sin(0.4 * c.x[0]) * ufl.inner(i_times(m), v) * c.dx


@pytest.mark.parametrize("case", ["plain", "densities", "tied", "field"])
def test_far_closer_than_as_many_modes(case):
    problem = leaky(density={1: 0.7, 2: 1.0} if case == "densities" else 1.0, tied=case == "tied",
                    **({"extra_terms": background} if case == "field" else {}))
    signals, gradient, engine = run(problem, problem.num_unknowns, "modes")
    few, slope, reduced = run(problem, 90)
    modes, slope_of_modes, other = run(problem, len(reduced.basis), "modes")
    assert 78 <= len(reduced.basis) <= 102
    scale = problem.magnetisation_at_start
    error, usual = (np.abs(s - signals).max() / scale for s in (few, modes))
    assert error < 1e-6 and error < usual / 20
    assert distance(slope, gradient) < min(0.02, distance(slope_of_modes, gradient) / 3)


@pytest.mark.parametrize("degree, tied", [(1, False), (1, True), (2, False)])
def test_functions_diagonalise_the_operators(degree, tied):
    problem = leaky(degree=degree, tied=tied)
    basis = run(problem, 60)[2].basis
    gram = basis.modes.T @ (problem.local_mass @ basis.modes)
    assert np.abs(gram - np.eye(len(basis))).max() < 1e-12
    m, v = ufl.TrialFunction(problem.space), ufl.TestFunction(problem.space)
    A = dolfinx.fem.assemble_matrix(
        problem.compile(decay(m, v, problem.coefficients))).to_scipy()
    projected = basis.modes.T @ (A @ basis.modes)
    assert np.abs(projected - np.diag(basis.eigenvalues)).max() < 1e-10 * basis.eigenvalues[-1]


@pytest.mark.mpi
@pytest.mark.parametrize("tied", [False, True])
def test_the_same_on_any_number_of_ranks(comm, tied):
    w = np.array([0.3, 0.5, 0.1, 1.0, 0.4, 0.8])
    signals, gradient, engine = run(here := leaky(comm, tied=tied), 60, adjoint=w)
    expected, whole, other = run(alone := leaky(tied=tied), 60, adjoint=w)
    assert len(engine.basis) == len(other.basis)
    assert np.abs(signals - expected).max() < 1e-8 * np.abs(expected).max()
    partner = alone.mesh.find_facets(here.mesh.facet_vertices)
    assert np.abs(gradient - whole[partner]).max(initial=0) < 1e-8 * np.abs(whole).max()


@pytest.mark.mpi
def test_slope_along_a_direction(comm):
    """Differences see the functions turn as well, which the gradient leaves out."""
    problem = leaky(comm)
    kappa = problem.tissue.permeability.values
    along = kappa * np.sin(1 + problem.mesh.facet_vertices @ np.array([0.9, 1.7, 0.4]))
    scale = problem.magnetisation_at_start
    engine = MatrixFormalism(problem, table(), modes=130, functions="responses")

    def loss(values, remember=False):
        S = engine.signals(values, remember)
        return 0.5 * float(np.sum(np.abs(S) ** 2)) / scale**2, S

    value, S = loss(kappa, True)
    slope = comm.allreduce(float(engine.gradient(S / scale**2) @ along))
    h = 1e-3
    difference = (loss(kappa + h * along)[0] - loss(kappa - h * along)[0]) / (2 * h)
    assert difference == pytest.approx(slope, rel=5e-3)


def test_closed_everywhere_and_no_gradient():
    grid = mesh.build(mesh.box, [10.0] * 3, cells=(2, 2, 2), comm=MPI.COMM_SELF)
    problem = BlochTorrey(Tissue(grid, permeability=0.0))
    still = Acquisition.pgse(b=[0], directions=1, delta=3.0, Delta=8.0)
    engine = MatrixFormalism(problem, still, modes=20, functions="responses")
    assert engine.signals(remember=True)[0] == pytest.approx(1000.0, rel=1e-9)
    assert np.isfinite(engine.gradient(np.ones(1, complex))).all()
    few, modes, signals = (run(problem, number, kind)[0] for number, kind in (
        (50, "responses"), (50, "modes"), (192, "modes")))
    assert np.abs(few - signals).max() < np.abs(modes - signals).max() / 2


def test_as_many_as_there_are_unknowns_are_all_modes():
    problem = BlochTorrey(Tissue(mesh.build(mesh.box, [10.0] * 3, cells=(1, 1, 1),
                                            comm=MPI.COMM_SELF), permeability=0.3))
    assert len(run(problem, 500)[2].basis) == problem.num_unknowns


def test_bad_arguments_and_values():
    problem = leaky()
    with pytest.raises(InputError, match="functions: 'waves', expected one of modes, responses"):
        MatrixFormalism(problem, table(), functions="waves")
    engine = MatrixFormalism(problem, table(), modes=20, functions="responses")
    with pytest.raises(SolverError):
        engine.signals(np.full(problem.mesh.num_owned_facets, np.nan))


@pytest.mark.mpi
@pytest.mark.parametrize("functions", ["modes", "responses"])
def test_small_problems_are_solved_by_rank_0(comm, functions):
    """1296 unknowns: too many for LAPACK, too few to share; with what omitted modes do."""
    def evaluated(where):
        box = mesh.build(mesh.tagged_grid, Ball(4), 12.0, cells=3, comm=where)
        problem = BlochTorrey(Tissue(box, permeability=Permeability.on(
            box, membrane=0.05, elsewhere=20.0)))
        table = Acquisition.pgse([0, 1000, 3000], [[0.6, 0, 0.8], [0, 1, 0]], 5.0, 10.0)
        engine = MatrixFormalism(problem, table, 60, functions=functions)
        signals = engine.signals(remember=True)
        gradient = engine.gradient(np.exp(1j * np.arange(len(table))))
        square = where.allreduce(float(gradient @ gradient))
        omitted = eigenmodes(problem, 60, responses=True).responses
        return signals, square, omitted.trace(axis1=2, axis2=3)  # whatever turns equal modes

    for one, other in zip(evaluated(comm), evaluated(MPI.COMM_SELF), strict=True):
        assert np.abs(one - other).max() < 1e-8 * np.abs(other).max()
