"""Periodic boxes: free diffusion, repeated tissue, both engines."""

from __future__ import annotations

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI
from periodic_boxes import LEAN, TENSOR, WEIGHTS, along_x, error, every_mode, few, layers, small_box
from scipy.linalg import expm
from scipy.optimize import brentq

from spinverse import BlochTorrey, Permeability, Tissue, forms, mesh
from spinverse.acquisition import Acquisition, CosOGSE, DoublePGSE
from spinverse.engines.basis.eigenmodes import eigenmodes
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.chebyshev import Propagation
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.engines.modal.steps import drifting
from spinverse.engines.schedule import waves
from spinverse.mesh.data import MeshData
from spinverse.mesh.grids import tagged
from spinverse.parallel.columns import inner, times

# ---- free diffusion -----------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("D", [2.0, TENSOR], ids=["number", "tensor"])
def test_free_diffusion_is_exact_on_any_periodic_box(D, degree):
    """Constants are in the space, so there is no error of the mesh, which a wall would show."""
    box = mesh.build(mesh.box, [4.0, 3.0, 5.0], cells=(1, 2, 1), comm=MPI.COMM_SELF)
    directions = np.array([[0.6, 0.0, 0.8], [-0.48, 0.8, 0.36], [0.0, 1.0, 0.0]])
    acquisition = Acquisition.pgse(b=[0, 500, 4000], directions=directions, delta=5, Delta=30)
    problem = BlochTorrey(Tissue(box, D, T2=50.0, periodic="xyz"), degree)
    exact = 60.0 * np.exp(-35.0 / 50.0 - acquisition.b / 1000 * np.einsum(
        "ri,ij,rj->r", acquisition.directions, D * np.eye(3) if np.ndim(D) == 0 else D,
        acquisition.directions))
    found = every_mode(problem, acquisition, max_step=2.5).signals()
    assert np.abs(found - exact).max() < 1e-8 * 60
    if degree == 1:
        found = TimeStepping(problem, acquisition, 0.5).signals()
        assert np.abs(found - exact).max() < 1e-3 * 60
    walls = every_mode(BlochTorrey(Tissue(box, D, T2=50.0), degree), acquisition).signals()
    assert np.abs(walls - exact).max() > 0.3 * 60


@pytest.mark.parametrize("periodic", ["x", "y", "xy"])
def test_free_diffusion_along_some_axes(periodic):
    """The walls of the other axis are met, as in a box of that axis alone."""
    square = mesh.build(grid, 6, (6.0, 4.0), comm=MPI.COMM_SELF)
    acquisition = Acquisition.pgse(b=[0, 1000], directions=[[0.6, 0.8, 0]], delta=3, Delta=10)
    problem = BlochTorrey(Tissue(square, periodic=periodic), 2)
    found = every_mode(problem, acquisition).signals() / 24
    axes = []
    for axis, length in (("x", 6.0), ("y", 4.0)):
        share = (0.6 if axis == "x" else 0.8) ** 2
        line = mesh.build(mesh.intervals, [length], cells_per_layer=6, comm=MPI.COMM_SELF)
        alone = BlochTorrey(Tissue(line), 2)
        walls = every_mode(alone, along_x([1000 * share], 3, 10)).signals()[0] / length
        axes.append(np.exp(-2 * share) if axis in periodic else walls)
    assert found[1] == pytest.approx(axes[0] * axes[1], abs=2e-5)


@pytest.mark.parametrize("Q", [0.2, 0.5])
def test_slowest_decay_between_membranes_is_that_of_the_bloch_wave(Q):
    """Between pulses, spacing a: cos(Q a) = cos(k a) - D k / (2 kappa) sin(k a), rate D k^2.

    Half the trace of the transfer over one layer and one membrane.
    """
    a, D, kappa, delta = 5.0, 2.0, 0.2, 2.0
    line = mesh.build(mesh.intervals, [a / 2, a, a / 2], cells_per_layer=(5, 10, 5),
                      comm=MPI.COMM_SELF)
    problem = BlochTorrey(Tissue(line, D, permeability=Permeability.on(line, membrane=kappa),
                                 periodic="x"), 3)
    k = brentq(lambda k: np.cos(k * a) - D * k / (2 * kappa) * np.sin(k * a) - np.cos(Q * a),
               1e-9, np.pi / a)
    Delta = np.array([60.0, 80.0])
    signals = [every_mode(problem, along_x([1000 * Q**2 * (time - delta / 3)], delta, time), 0.5)
               .signals()[0].real for time in Delta]
    assert np.log(signals[0] / signals[1]) / 20 == pytest.approx(D * k**2, rel=1e-6)


# ---- repeated tissue ----------------------------------------------------------------------------


@pytest.mark.parametrize("waveform", [None, CosOGSE(4.0, 5.0, 2), LEAN],
                         ids=["pgse", "cos", "lean"])
@pytest.mark.parametrize("varied", [False, True])
def test_one_period_is_what_an_interior_period_of_a_long_stack_is(waveform, varied):
    """One more period in a stack adds an interior one, whatever happens at the far ends."""
    acquisition = along_x() if waveform is None else Acquisition.product(
        [waveform], [0, 1000, 3000], [[1.0, 0, 0]])
    one = every_mode(layers(varied=varied, cells=12), acquisition, max_step=0.015).signals()
    longer, shorter = (MatrixFormalism(layers("", periods, varied=varied), acquisition, 240,
                                       max_step=0.05).signals() for periods in (5, 4))
    assert np.abs(one - (longer - shorter)).max() < 2e-5 * abs(one[0])


def grid(n, lengths, cells=(1, 1), radius=0.0) -> MeshData:
    """Cells of n x n squares, cut in two; a disc (of squares) in each is tagged 1, the rest 2."""
    x, y = (np.linspace(-c * a / 2, c * a / 2, c * n + 1)
            for a, c in zip(lengths, cells, strict=True))
    points = np.array([(a, b, 0.0) for a in x for b in y])
    number = np.arange(len(points)).reshape(len(x), len(y))
    corners = [number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]]
    triangles = np.concatenate([np.stack([corners[i].ravel() for i in half], axis=1)
                                for half in ((0, 1, 2), (0, 2, 3))])
    size = np.array(lengths)
    middle = points[triangles].mean(axis=1)[:, :2] + np.array(cells) * size / 2
    middle = np.floor(middle / size * n) + 0.5
    inside = np.linalg.norm((middle % n / n - 0.5) * size, axis=1) < radius
    return tagged("grid", points, triangles, np.where(inside, 1, 2))


def discs(cells, periodic, degree=1, n=6, comm=MPI.COMM_SELF) -> BlochTorrey:
    square = mesh.build(grid, n, (8.0, 8.0), cells, 3.1, comm=comm)
    return BlochTorrey(Tissue(square, diffusivity={1: 0.7, 2: 1.0}, T2={1: 30.0, 2: 60.0},
                              density={1: 0.7, 2: 1.0}, periodic=periodic,
                              permeability=Permeability.on(square, membrane=0.1)), degree)


def in_plane(b=(300, 1000)) -> Acquisition:
    return Acquisition.pgse(b=b, directions=[[0.6, 0.8, 0]], delta=2, Delta=4)


def test_a_periodic_array_of_discs_is_the_interior_of_a_large_one():
    acquisition = in_plane()
    one = discs((1, 1), "xy", 2)
    found = every_mode(one, acquisition, 0.1).signals()
    many = {cells: TimeStepping(discs(cells, "", 2), acquisition, 0.025).signals()
            for cells in ((3, 3), (2, 3), (3, 2), (2, 2))}
    interior = many[3, 3] - many[2, 3] - many[3, 2] + many[2, 2]
    assert error(one, found, interior) < 7e-4
    assert error(one, many[2, 2] / 4, interior) > 0.02


def test_two_periods_are_twice_one():
    one, two = (every_mode(layers(periods=n, cells=4), along_x()).signals() for n in (1, 2))
    assert np.abs(two - 2 * one).max() < 1e-9 * abs(one[0])
    one, four = (TimeStepping(discs(cells, "xy"), in_plane(), 0.4).signals()
                 for cells in ((1, 1), (2, 2)))
    assert np.abs(four - 4 * one).max() < 1e-9 * abs(one[0])


def test_closed_cells_do_not_see_the_period():
    """Signals of what does not reach the faces are those of a box with walls."""
    acquisition = along_x()
    line = mesh.build(mesh.intervals, [2.0, 5.0, 2.0], cells_per_layer=12, comm=MPI.COMM_SELF)
    closed = Permeability.on(line, membrane=0.0)
    found = [every_mode(BlochTorrey(Tissue(
        line, density={1: 0, 2: 1, 3: 0}, interface="plain", permeability=closed,
        periodic=periodic), 2), acquisition, 0.05).signals() for periodic in ("x", "")]
    assert np.abs(found[0] - found[1]).max() < 2e-5 * 5


# ---- the two engines ----------------------------------------------------------------------------


ROTATING = DoublePGSE(0.8, 1.6, 1.0, directions=((0.6, 0.0, 0.8), (-0.48, 0.8, 0.36)))


@pytest.mark.parametrize("periodic", ["x", "yz", "xyz"])
@pytest.mark.parametrize("waveform", [None, LEAN, ROTATING], ids=["pgse", "lean", "vector"])
def test_engines_agree(periodic, waveform):
    problem = small_box(periodic)
    acquisition = few() if waveform is None else Acquisition.product(
        [waveform], [500.0], None if waveform.vector else [[-0.48, 0.8, 0.36]])
    exact = every_mode(problem, acquisition, 0.02).signals()
    assert error(problem, TimeStepping(problem, acquisition, 0.03).signals(), exact) < 3e-5


def test_engines_agree_where_densities_level_out():
    problem = small_box("xz", interface="plain")
    exact = every_mode(problem, few(), 0.02).signals()
    assert error(problem, TimeStepping(problem, few(), "auto", tolerance=1e-4).signals(),
                 exact) < 2e-4


def test_engines_agree_closely_when_refined():
    problem = layers(cells=6)
    exact = every_mode(problem, along_x(), 0.01).signals()
    assert error(problem, TimeStepping(problem, along_x(), 0.01).signals(), exact) < 1e-5


def test_gradients_across_the_period_need_no_drift():
    """Along a fixed axis nothing is periodic: the exponentials are exact, whatever the step."""
    problem = small_box("y")
    acquisition = Acquisition.pgse(b=[1500], directions=[[0.6, 0.0, 0.8]], delta=2, Delta=3)
    coarse, fine = (every_mode(problem, acquisition, step).signals() for step in (2.0, 0.1))
    assert np.array_equal(coarse, fine)


@pytest.mark.parametrize("scheme", ["sdirk2", "midpoint"])
def test_second_order_in_the_time_step(scheme):
    problem = layers(cells=6)
    exact = every_mode(problem, along_x(), 0.01).signals()
    errors = [error(problem, TimeStepping(problem, along_x(), step, scheme).signals(), exact)
              for step in (0.1, 0.05, 0.025)]
    assert np.log2(errors[0] / errors[1]) > 1.85
    assert np.log2(errors[1] / errors[2]) > 1.85


def test_fourth_order_in_the_pieces_while_the_modes_are_smooth():
    """Membranes whose condition moves with Q cost an order and a half on all modes."""
    problem = layers(cells=6)
    basis = eigenmodes(problem, problem.num_unknowns).truncated(6)
    found = {}
    for step in (0.125, 0.0625, 0.03125, 0.01):
        engine = MatrixFormalism(problem, along_x(), 6, max_step=step)
        engine.basis = basis
        found[step] = engine.evolve()
    errors = [error(problem, found[step], found[0.01]) for step in (0.125, 0.0625, 0.03125)]
    assert np.log2(errors[0] / errors[1]) > 3.7 and np.log2(errors[1] / errors[2]) > 3.7
    exact = every_mode(problem, along_x(), 0.01).signals()
    errors = [error(problem, every_mode(problem, along_x(), step).signals(), exact)
              for step in (0.25, 0.125, 0.0625)]
    assert np.log2(errors[0] / errors[1]) > 2.4 and np.log2(errors[1] / errors[2]) > 2.4


def test_auto_keeps_its_promise():
    problem = layers()
    acquisition = along_x((0, 300, 1000), 4.0, 10.0)
    engine = MatrixFormalism(problem, acquisition, tolerance=1e-3)
    exact = every_mode(problem, acquisition, 0.05).signals()
    assert error(problem, engine.signals(), exact) < 2e-3


@pytest.mark.parametrize("waveform", [None, CosOGSE(2.0, 3.0, 1), ROTATING],
                         ids=["antisymmetric", "symmetric", "vector"])
def test_half_of_the_waveform_gives_what_the_whole_gives(waveform, monkeypatch):
    problem = small_box("xz")
    acquisition = few() if waveform is None else Acquisition.product(
        [waveform], [1500.0], None if waveform.vector else [[-0.48, 0.8, 0.36]])
    half = every_mode(problem, acquisition, 0.05).signals()
    monkeypatch.setattr("spinverse.engines.schedule.groups._sign", lambda waveform: 0)
    whole = every_mode(problem, acquisition, 0.05).signals()
    assert error(problem, half, whole) < 1e-6


def test_first_length_of_pieces():
    pgse, cos = few().waveforms[0], CosOGSE(8.0, 9.0, 1)
    along_xz = [[0.6, 0.0, 0.8]]
    table = Acquisition.product([pgse], [1500.0], along_xz)
    assert waves.first_step(table, ()) is None is waves.first_step(table, (1,))
    assert waves.first_step(table, (1, 2)) == 0.5
    both = Acquisition.product([pgse, cos], [1500.0], along_xz)
    assert waves.first_step(both, (0,)) == 0.5
    start, stop = np.array(cos.breakpoints[:-1]), np.array(cos.breakpoints[1:])
    smooth = cos((start + stop) / 2) != cos(0.9 * start + 0.1 * stop)
    assert waves.first_step(both, (1,)) == pytest.approx((stop - start)[smooth].max() / 4)
    table = Acquisition.product([ROTATING], [1500.0])
    assert waves.first_step(table, ()) is None
    assert waves.first_step(table, (1,)) == pytest.approx(0.2)


def test_bounds_hold_the_spectrum():
    problem = small_box("xy")
    basis = eigenmodes(problem, 40)
    for waveform, along in ((LEAN, (-0.48, 0.8, 0.36)), (ROTATING, ())):
        for duration, wave in waves.pieces(waveform, 2.0, 0, (0, 1), 3):
            if not wave:
                continue
            step = drifting(basis, wave, along, np.array([0.9]), duration, {})
            A = np.diag(basis.eigenvalues) + 0.9j * step.X + 0.81 * step.square
            hermitian = np.linalg.eigvalsh((A + A.conj().T) / 2)
            low, high = step.interval
            assert low - 1e-9 <= hermitian[0] and hermitian[-1] <= high
            skew = np.abs(np.linalg.eigvalsh((A - A.conj().T) / 2j)).max()
            assert skew <= 0.9 * step.reach * (1 + 1e-12)
            exact = expm(-duration * A)
            found = step.forward(np.eye(len(basis))[:, :1] + 0j)
            assert np.abs(found - exact[:, :1]).max() < 1e-8


@pytest.mark.mpi
def test_responses_to_drift_stand_for_many_modes(comm):
    problem = discs((1, 1), "xy", 2, n=8, comm=comm)
    acquisition = in_plane((300, 1000))
    exact = every_mode(problem, acquisition, 0.5).signals()
    engine = MatrixFormalism(problem, acquisition, 100, max_step=0.5)
    found = engine.signals()
    assert len(engine.basis) < problem.num_unknowns / 2
    assert error(problem, found, exact) < 2e-4
    plain = eigenmodes(problem, problem.num_unknowns).truncated(len(engine.basis))
    low = plain.eigenvalues[:5]
    assert np.allclose(engine.basis.eigenvalues[:5], low, rtol=1e-7, atol=1e-9)
    engine.basis = plain
    assert error(problem, engine.evolve(), exact) > 5 * error(problem, found, exact)
    alone = discs((1, 1), "xy", 2, n=8)
    again = MatrixFormalism(alone, acquisition, 100, max_step=0.5)
    assert np.abs(found - again.signals()).max() < 1e-8 * abs(found[0])


def test_a_nested_basis_is_that_of_fewer_functions():
    problem = discs((1, 1), "xy", 2, n=8)
    basis = eigenmodes(problem, 100)
    part = basis.truncated(60)
    gram = part.modes.T @ (problem.local_mass @ part.modes)
    assert np.abs(gram - np.eye(60)).max() < 1e-9
    m, v, c = ufl.TrialFunction(problem.space), ufl.TestFunction(problem.space), \
        problem.coefficients
    A = dolfinx.fem.assemble_matrix(problem.compile(forms.decay(m, v, c))).to_scipy()
    projected = part.modes.T @ (A @ part.modes)
    assert np.abs(projected - np.diag(part.eigenvalues)).max() < 1e-8 * part.eigenvalues[-1]
    for j, form in problem.local_drifts.items():
        assert np.allclose(part.modes.T @ (form @ part.modes), part.gauge.drifts[j], atol=1e-8)


def test_gradient_in_part_of_the_modes():
    problem = layers(cells=6, broken=True)
    gradients = []
    for modes in (problem.num_unknowns, 100):
        engine = MatrixFormalism(problem, along_x(), modes, max_step=0.1)
        engine.signals(remember=True)
        gradients.append(engine.gradient(WEIGHTS[:3]))
    assert np.abs(gradients[1] - gradients[0]).max() < 1e-2 * np.abs(gradients[0]).max()


def test_pulling_back_is_the_transposed_exponential():
    rng = np.random.default_rng(5)
    eigenvalues, X, Z = np.sort(rng.uniform(0, 6, 9)), *rng.normal(size=(2, 9, 9))
    Z = Z @ Z.T / 9
    q = np.array([0.5, -0.3])
    u, p = rng.normal(size=(2, 9, 2)) + 1j * rng.normal(size=(2, 9, 2))
    for square in (0.7, Z):
        step = Propagation(eigenvalues, X, q, 8.0, 1.5, square, (-9.0, 20.0))
        found = step.forward(u, remember=True)
        adjoint = step.backward(p, np.zeros((9, 9)))
        for c in range(2):
            full = expm(-1.5 * (np.diag(eigenvalues) + 1j * q[c] * X
                                + q[c] ** 2 * square * (np.eye(9) if square is not Z else 1)))
            assert np.abs(found[:, c] - full @ u[:, c]).max() < 1e-7
            assert np.abs(adjoint[:, c] - full.conj().T @ p[:, c]).max() < 1e-7


@pytest.mark.parametrize("cells, kappa, b, exact", [
    (40, 0.1, 1600, 0.7516721), (25, 1.0, 200, 0.8188501), (80, 0.1, 10, 0.9981771)])
def test_a_fine_mesh_keeps_its_basis(cells, kappa, b, exact):
    """Modes and responses nearly depend on each other there; values of fine time steps."""
    line = mesh.build(mesh.intervals, [1.0, 1.0], cells_per_layer=cells, comm=MPI.COMM_SELF)
    problem = BlochTorrey(Tissue(line, permeability=Permeability.on(line, membrane=kappa),
                                 periodic="x"))
    engine = MatrixFormalism(problem, along_x([b], 10, 20), tolerance=1e-4)
    error = abs(engine.signals()[0] / 2.0 - exact)
    assert error < 1e-4 and error < 3 * engine.estimated_error


@pytest.mark.mpi
def test_the_basis_of_drift_diagonalises_the_decay(comm):
    problem = layers(broken=True, cells=30, degree=1, comm=comm)
    basis = eigenmodes(problem, 90)
    columns = np.asfortranarray(basis.columns[: problem.unknowns.num_owned])
    for matrix, values in ((problem.decay_matrix(), np.diag(basis.eigenvalues)),
                           (problem.mass_matrix, np.eye(len(basis)))):
        found = inner(comm, columns, times(matrix, columns))
        assert np.abs(found - values).max() < 1e-9 * np.abs(values).max()
