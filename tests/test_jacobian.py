"""The whole Jacobian of the matrix formalism, and the conductance around facets."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from mpi4py import MPI

from spinverse import BlochTorrey, InputError, Permeability, Tissue, mesh
from spinverse.acquisition import Acquisition
from spinverse.engines.linear.facet_response import surrounding_conductance
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal import jacobian as module
from spinverse.engines.modal.jacobian import signal_jacobian
from spinverse.engines.modal.matrix_formalism import MatrixFormalism

DIRECTIONS = [[0.6, 0.0, 0.8], [-0.48, 0.8, 0.36]]


def problem_of(comm=MPI.COMM_SELF, tied=False, plain=True) -> BlochTorrey:
    """A ball in a box; with ``plain``, start and receive are the same."""
    grid = mesh.build(mesh.tagged_grid, mesh.Ball(radius=3.0), 10.0, cells=2, comm=comm)
    wave = np.sin(grid.facet_vertices @ np.array([1.3, 2.9, 0.7]))
    kappa = np.where(grid.interface > 0, 0.05 * (2 + wave), np.inf if tied else 2.0 + wave)
    kappa[grid.outer] = 0.03 * (2 + wave[grid.outer])
    return BlochTorrey(Tissue(grid, T2=80.0, permeability=Permeability(grid, kappa),
                              **({} if plain else {"density": {1: 0.7, 2: 1.0},
                                                   "interface": "plain"})))


def pgse() -> Acquisition:
    return Acquisition.pgse(b=[0, 1000, 3000], directions=DIRECTIONS, delta=3.0, Delta=[5.0, 12.0])


def others() -> Acquisition:
    """Waveforms that are symmetric, antisymmetric and neither."""
    return Acquisition.concatenate([
        Acquisition.ogse([0, 300], DIRECTIONS[:1], delta=4, Delta=5, periods=1, kind="cos"),
        Acquisition.double_pgse([0, 1500], DIRECTIONS, delta=2, Delta=4, mixing_time=3,
                                parallel=False),
        Acquisition.sampled([1000], DIRECTIONS[:1], [0.0, 1.0, 3.0, 5.0], [0.0, 1.0, -0.75, 0.0],
                            echo_time=7.0)])


@pytest.mark.mpi
@pytest.mark.parametrize("case", ["pgse", "tied", "waveforms", "other start"])
def test_rows_are_gradients(comm, case, monkeypatch):
    problem = problem_of(comm, tied=case == "tied", plain=case != "other start")
    acquisition = others() if case == "waveforms" else pgse()
    engine = MatrixFormalism(problem, acquisition, modes=20, max_step=0.5)
    signals = engine.signals(remember=True)
    # several blocks of measurements and of facets
    monkeypatch.setattr(module, "_BLOCK_BYTES", 8 * 210 * 3 * comm.size)
    found, J = signal_jacobian(engine)
    np.testing.assert_allclose(found, signals, rtol=1e-10)
    phase = signals / np.abs(signals)
    for row in range(len(acquisition)):
        adjoint = np.where(np.arange(len(acquisition)) == row, phase, 0.0)
        wanted = engine.gradient(adjoint)  # it still remembers
        size = comm.allreduce(float(np.abs(wanted).max(initial=0.0)), op=MPI.MAX)
        assert size > 0 and np.abs(J[row] - wanted).max(initial=0.0) < 1e-10 * size
    weights = np.exp(1j * np.arange(len(acquisition)))
    _, J = signal_jacobian(engine, weights=weights)
    wanted = engine.gradient(weights)
    assert np.abs(J.sum(axis=0) - wanted).max(initial=0.0) < 1e-9 * comm.allreduce(
        float(np.abs(wanted).max(initial=0.0)), op=MPI.MAX)


@pytest.mark.mpi
def test_the_same_on_any_number_of_ranks(comm):
    parts = []
    for where in (comm, MPI.COMM_SELF):
        problem = problem_of(where)
        _, J = signal_jacobian(MatrixFormalism(problem, pgse(), modes=24))
        parts.append((problem.mesh, J, surrounding_conductance(problem, 0.1)))
    (here, J, c), (alone, J_alone, c_alone) = parts
    partner = alone.find_facets(here.facet_vertices)
    assert np.abs(J - J_alone[:, partner]).max(initial=0) < 1e-8 * np.abs(J_alone).max()
    np.testing.assert_allclose(c, c_alone[partner], rtol=1e-6)


@pytest.mark.mpi
def test_central_differences(comm):
    problem = problem_of(comm)
    engine = MatrixFormalism(problem, pgse(), modes=problem.num_unknowns)  # nothing is left out
    kappa = problem.tissue.permeability.values
    direction = np.cos(problem.mesh.facet_vertices @ np.array([0.9, 1.7, 0.4])) * kappa
    _, J = signal_jacobian(engine, kappa)
    h = 1e-4
    plus, minus = (np.abs(engine.signals(kappa + s * h * direction)) for s in (1, -1))
    slope = comm.allreduce(J @ direction)
    np.testing.assert_allclose((plus - minus) / (2 * h), slope, atol=1e-6 * np.abs(slope).max())


def test_only_the_matrix_formalism():
    problem = problem_of()
    with pytest.raises(InputError, match="engine: a TimeStepping, expected a MatrixFormalism"):
        signal_jacobian(TimeStepping(problem, pgse(), 0.5))
    with pytest.raises(InputError, match=r"weights: shape \(2,\), expected \(12,\)"):
        signal_jacobian(MatrixFormalism(problem, pgse(), 8), weights=np.ones(2))


@pytest.mark.parametrize("tied", [False, True])
def test_conductance_is_that_of_the_rank_one_change(tied):
    """Sherman and Morrison: a facet in series with c leaves the jump 1 / (kappa + c)."""
    problem, rate = problem_of(tied=tied), 0.2
    c = surrounding_conductance(problem, rate)
    assert np.isinf(c[problem.tied]).all() and (c[~problem.tied] > 0).all()
    T = problem.jump_matrix
    P = problem.prolongation
    size = problem.num_unknowns
    P = scipy.sparse.eye(T.shape[1]) if P is None else scipy.sparse.csr_matrix(
        P.getValuesCSR()[::-1], shape=P.getSize())
    facets = problem.mesh.num_owned_facets
    each = T.shape[0] // facets
    A = problem.decay_matrix()
    shifted = (A.convert("dense").getDenseArray()
               + rate * problem.mass_matrix.convert("dense").getDenseArray())
    inverse = np.linalg.solve(shifted, np.eye(size))
    kappa = problem.tissue.permeability.values
    for f in np.flatnonzero(~problem.tied)[::9]:
        W = (T[f * each: (f + 1) * each] @ P).toarray()
        # equal weights of the quadrature: the uniform jump
        w = W.sum(axis=0) / np.sqrt(each)
        assert w @ inverse @ w == pytest.approx(1 / (kappa[f] + c[f]), rel=1e-7)


def test_two_layers_conduct_in_series():
    """1-D: around a membrane between thin layers at rest, leaks to the ends are all there is."""
    layers = mesh.build(mesh.intervals, [1.0, 1.0], cells_per_layer=4, comm=MPI.COMM_SELF)
    rate, kappa = 0.05, 0.3
    problem = BlochTorrey(Tissue(layers, permeability=Permeability.on(layers, kappa)))
    c = surrounding_conductance(problem, rate)[layers.interface > 0]
    # flux j into a layer of length L: u = j cosh(m (L - x)) / (D m sinh(m L)), m^2 = s / D
    m = np.sqrt(rate / 2.0)
    assert c == pytest.approx(2.0 * m * np.tanh(m) / 2, rel=1e-3)
