"""Initial slopes of the signal: homogenised, modal, short-time; against closed forms."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from mpi4py import MPI
from scipy.integrate import solve_ivp

from spinverse import Acquisition, BlochTorrey, InputError, Permeability, Tissue, mesh, simulate
from spinverse.acquisition import PGSE, CosOGSE, SinOGSE, TrapezoidPGSE
from spinverse.mesh import MeshData
from spinverse.quantities import ValidityWarning, hadc, mf_adc, short_time_approximation
from spinverse.quantities.short_time import facet_normals
from spinverse.quantities.waveform_integrals import memory, short_time_weight
from spinverse.validation import analytic

X, Y, Z = np.eye(3)
RATES = np.array([0.0, 1e-3, 0.1, 1.0, 20.0])


def interval(length: float, cells: int, comm=MPI.COMM_SELF):
    points = np.zeros((cells + 1, 3))
    points[:, 0] = np.linspace(0, length, cells + 1)
    lines = np.column_stack([np.arange(cells), np.arange(1, cells + 1)])
    return mesh.build(lambda: MeshData(points, lines), comm=comm)


def slab_modes(length: float, diffusivity: float, number: int = 400):
    """Rates and a_k^2 / V of the cosines that the position of a slab is made of."""
    k = np.arange(1, 2 * number, 2)
    return diffusivity * (k * np.pi / length) ** 2, 8 * length**2 / (k * np.pi) ** 4


def slab_adc(waveform, length: float = 10.0, diffusivity: float = 2.0, number=400) -> float:
    rates, squares = slab_modes(length, diffusivity, number)
    return float(squares @ memory(waveform, rates))


def two_pools(comm=MPI.COMM_SELF, kappa=0.05, across=1, **tissue):
    grid = mesh.build(mesh.slabs, [4.0, 6.0], cells_per_layer=[8, 12], width=0.5 * across,
                      cells_across=across, comm=comm)
    return Tissue(grid, permeability=Permeability.on(grid, membrane=kappa), **tissue)


def slope_of_signals(tissue, acquisition, b=2.0, **options):
    """-d ln S / db at 0 from signals at b and 2 b, up to b^2."""
    adc = []
    for strength in (b, 2 * b):
        def at(value):
            table = Acquisition(np.full(len(acquisition), value), acquisition.directions,
                                acquisition.waveform_index, acquisition.waveforms)
            return np.abs(simulate(tissue, table, tolerance=1e-10, **options).values)
        adc.append(-np.log(at(strength) / at(0.0)) / strength * 1000)
    return 2 * adc[0] - adc[1]


# --- time integrals of waveforms ----------------------------------------------------------------

def test_memory_of_pgse_is_the_closed_form():
    """Neuman (1974), as Li et al. (2020) write it."""
    delta, Delta = 3.0, 8.0
    rates = RATES[1:]
    e = {t: np.exp(-rates * t) for t in (delta, Delta, Delta - delta, Delta + delta)}
    exact = (2 * rates * delta - 2 + 2 * e[delta] + 2 * e[Delta] - e[Delta - delta]
             - e[Delta + delta]) / (rates**2 * delta**2 * (Delta - delta / 3))
    np.testing.assert_allclose(memory(PGSE(delta, Delta), rates), exact, rtol=1e-9, atol=1e-11)
    assert memory(PGSE(delta, Delta), RATES)[0] == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("waveform", [CosOGSE(5, 8, 2), SinOGSE(5, 8, 2), TrapezoidPGSE(5, 8, 1)],
                         ids=lambda waveform: waveform.name)
def test_memory_of_smooth_waveforms(waveform):
    """Against the differential equations that define it."""
    for rate in (0.1, 2.0):
        y = np.zeros(2)
        for start, stop in zip(waveform.breakpoints[:-1], waveform.breakpoints[1:], strict=True):
            def slope(t, y, stop=stop, rate=rate):
                f = float(waveform(min(t, stop - 1e-12)))
                return [f - rate * y[0], f * y[0]]
            y = solve_ivp(slope, (start, stop - 1e-12), y, rtol=1e-10, atol=1e-13,
                          method="DOP853").y[:, -1]
        assert memory(waveform, [rate])[0] == pytest.approx(y[1] / waveform.b_factor, abs=2e-7)
    assert memory(waveform, [1e-6])[0] == pytest.approx(1e-6, rel=1e-4)


def test_short_time_weight_of_pgse_is_the_closed_form():
    d, D = 3.0, 8.0
    exact = 4 / 35 * ((D + d)**3.5 + (D - d)**3.5 - 2 * d**3.5 - 2 * D**3.5) / (d**2 * (D - d / 3))
    assert short_time_weight(PGSE(d, D)) == pytest.approx(exact, rel=1e-12)
    assert short_time_weight(PGSE(1e-3, D)) == pytest.approx(np.sqrt(D), rel=1e-4)


# --- slab, sphere, box --------------------------------------------------------------------------

def waveforms_table(directions) -> Acquisition:
    return Acquisition.product([PGSE(3, 8), PGSE(10, 20), CosOGSE(5, 8, 2), SinOGSE(5, 8, 1)],
                               1000, directions)


def test_slab_in_one_dimension():
    table = waveforms_table([X])
    exact = [slab_adc(waveform) for waveform in table.waveforms]
    tissue = Tissue(interval(10.0, 200), 2.0)
    homogenised, modal = hadc(tissue, table), mf_adc(tissue, table, tolerance=1e-6)
    np.testing.assert_allclose(homogenised.adc, exact, atol=4e-5)
    np.testing.assert_allclose(modal.adc, exact, atol=4e-5)
    np.testing.assert_allclose(homogenised.adc, modal.adc, atol=2e-6)
    assert modal.errors.max() <= 2e-6 and (modal.tensor[:, 1:] == 0).all()


def test_second_order_in_the_mesh_and_in_the_step():
    table = Acquisition.product([PGSE(3, 8)], 0, [X])
    exact = slab_adc(PGSE(3, 8))
    found = [mf_adc(Tissue(interval(10.0, n), 2.0), table, 1e-8).adc[0] for n in (10, 20, 40)]
    error = np.abs(np.array(found) - exact)
    assert np.log2(error[:-1] / error[1:]).min() > 1.9
    tissue = Tissue(interval(10.0, 40), 2.0)
    limit = mf_adc(tissue, table, 1e-10).adc[0]
    coarse, fine = (abs(hadc(tissue, table, time_step=h).adc[0] - limit) for h in (0.25, 0.125))
    assert coarse / fine > 6  # third order or better: extrapolated
    estimates = [hadc(tissue, table, time_step=h).errors[0, 0] for h in (0.25, 0.125)]
    assert 3 < estimates[0] / estimates[1] < 6


def test_sphere():
    grid = mesh.build(mesh.spheres, [5.0], size=1.5, comm=MPI.COMM_SELF)
    table = waveforms_table([X, [0.6, 0.0, 0.8]])
    ball = analytic.ball_modes(3, 5.0, 2.0, 2000)
    squares = (ball.position @ ball.start) ** 2
    exact = np.repeat([squares @ memory(w, ball.eigenvalues) for w in table.waveforms], 2)
    tissue = Tissue(grid, 2.0)
    homogenised, modal = hadc(tissue, table), mf_adc(tissue, table)
    np.testing.assert_allclose(homogenised.adc, modal.adc, atol=2e-4)
    np.testing.assert_allclose(modal.adc, exact, rtol=3e-2)


def test_box_with_a_tensor_and_a_problem():
    """Axes of the box: each is a slab, with the D of its axis."""
    grid = mesh.build(mesh.box, [4.0, 6.0, 8.0], cells=[4, 6, 8], comm=MPI.COMM_SELF)
    D = np.diag([1.0, 2.0, 3.0])
    problem = BlochTorrey(Tissue(grid, D, T2=50.0), degree=2)
    table = Acquisition.product([PGSE(2, 6)], 1000, [X, Y, Z, np.ones(3) / np.sqrt(3)])
    exact = [slab_adc(PGSE(2, 6), L, d) for L, d in ((4, 1.0), (6, 2.0), (8, 3.0))]
    exact.append(np.mean(exact))
    modal = mf_adc(problem, table, tolerance=1e-3)
    np.testing.assert_allclose(modal.adc, exact, atol=3e-3)
    np.testing.assert_allclose(hadc(problem, table, time_step=0.25).adc, modal.adc, atol=2e-3)
    assert problem.coefficients.R2.x.array[0] == pytest.approx(1 / 50)  # left as it was


def test_free_diffusion_across_nothing():
    """A slab so thick that walls hardly matter: ADC = D to the short-time term."""
    table = Acquisition.product([PGSE(0.1, 0.5)], 1000, [X])
    tissue = Tissue(interval(2000.0, 2000), 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = short_time_approximation(tissue, table).adc
    np.testing.assert_allclose(expected, slab_adc(PGSE(0.1, 0.5), 2000.0, number=20000),
                               atol=1e-7)


# --- several compartments -----------------------------------------------------------------------

@pytest.mark.parametrize("tissue", [
    {}, {"diffusivity": {1: 1.0, 2: 2.5}, "T2": 40.0}, {"density": {1: 0.4, 2: 1.0}}],
    ids=["plain", "D and T2", "densities at rest"])
def test_slope_of_the_signals_at_any_permeability(tissue):
    pools = two_pools(**tissue)
    table = Acquisition.product([PGSE(3, 8), CosOGSE(5, 8, 1)], 1.0, [X])
    found = mf_adc(pools, table, tolerance=1e-6)
    assert len(found.compartments) == 1
    np.testing.assert_allclose(found.adc, slope_of_signals(pools, table), rtol=5e-5)


def test_closed_compartments_have_slopes_of_their_own():
    """Different T2 too: what is left of each at the echo is its weight."""
    pools = two_pools(kappa=0.0, diffusivity={1: 1.0, 2: 2.5}, T2={1: 20.0, 2: 60.0},
                      density={1: 2.0, 2: 1.0})
    table = Acquisition.product([PGSE(3, 8)], 1.0, [X])
    modal, homogenised = mf_adc(pools, table, tolerance=1e-6), hadc(pools, table)
    exact = [slab_adc(PGSE(3, 8), 4.0, 1.0), slab_adc(PGSE(3, 8), 6.0, 2.5)]
    np.testing.assert_allclose(modal.of_compartments[:, 0], exact, atol=2e-3)
    np.testing.assert_allclose(homogenised.of_compartments, modal.of_compartments, atol=1e-5)
    weights = np.array([2.0 * 4 * np.exp(-11 / 20), 6 * np.exp(-11 / 60)])
    np.testing.assert_allclose(modal.weights[:, 0], weights / weights.sum(), rtol=1e-9)
    np.testing.assert_allclose(homogenised.adc, slope_of_signals(pools, table), rtol=1e-4)


def test_hadc_takes_membranes_as_closed():
    table = Acquisition.product([PGSE(3, 8)], 1.0, [X])
    np.testing.assert_allclose(hadc(two_pools(kappa=0.3), table).of_compartments,
                               mf_adc(two_pools(kappa=0.0), table, 1e-6).of_compartments,
                               atol=1e-5)


def test_waveform_of_varying_direction():
    """Two pairs along different axes: in a box the parts of the slope along each axis add."""
    grid = mesh.build(mesh.box, [5.0, 8.0, 3.0], cells=[5, 8, 3], comm=MPI.COMM_SELF)
    tissue = Tissue(grid, 2.0)
    table = Acquisition.double_pgse([1.0], [X], delta=1, Delta=4, mixing_time=5,
                                    second_directions=[[0.0, 0.6, 0.8]])
    assert table.waveforms[0].vector
    modal = mf_adc(tissue, table, tolerance=1e-5)
    np.testing.assert_allclose(hadc(tissue, table).adc, modal.adc, atol=1e-4)
    np.testing.assert_allclose(modal.adc, slope_of_signals(tissue, table), rtol=2e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ValidityWarning)
        early = Acquisition.double_pgse([1.0], [X], delta=0.004, Delta=0.02, mixing_time=0.02,
                                        second_directions=[[0.0, 0.6, 0.8]])
        short = short_time_approximation(tissue, early).adc
    assert short == pytest.approx(mf_adc(tissue, early, tolerance=1e-3).adc, rel=0.1)
    assert np.isnan(modal.tensors).all()


# --- short times --------------------------------------------------------------------------------

def test_short_times_near_flat_walls():
    """No curvature: the slab's next term is exponentially small."""
    table = waveforms_table([X]).select([0, 2])
    tissue = Tissue(interval(40.0, 400), 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = short_time_approximation(tissue, table)
    exact = [slab_adc(waveform, 40.0) for waveform in table.waveforms]
    np.testing.assert_allclose(found.adc, exact, atol=1e-6)


def test_short_times_in_a_sphere_and_with_a_tensor():
    table = Acquisition.product([PGSE(0.02, 0.1)], 1000, [X, Z])
    grid = mesh.build(mesh.spheres, [5.0], size=1.0, comm=MPI.COMM_SELF)
    ball = analytic.ball_modes(3, 5.0, 2.0, 2000)
    exact = (ball.position @ ball.start) ** 2 @ memory(PGSE(0.02, 0.1), ball.eigenvalues)
    found = short_time_approximation(Tissue(grid, 2.0), table)
    np.testing.assert_allclose(found.adc, exact, atol=2 * found.errors.max())
    assert found.errors.max() < 0.02
    # stretched by sqrt(D): a box with a turned tensor against that with a number
    box = mesh.build(mesh.box, [2.0, 2.0, 2.0], cells=[2, 2, 2], comm=MPI.COMM_SELF)
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0, 0, 1.0]])
    tensor = turn @ np.diag([2.0, 1.0, 0.5]) @ turn.T
    n = tensor @ X
    walls = n[:, None] * n / np.sqrt(X @ n) + sum(
        np.outer(tensor @ e, tensor @ e) / np.sqrt(e @ tensor @ e) for e in (Y, Z))
    short = PGSE(0.002, 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ValidityWarning)
        tensors = short_time_approximation(
            Tissue(box, tensor), Acquisition.product([short], 1000, [X])).tensor[0]
    expected = tensor - 4 / (3 * np.sqrt(np.pi)) * short_time_weight(short) * walls * 8 / 8
    np.testing.assert_allclose(tensors, expected, atol=1e-12)


def test_short_times_warn_when_they_are_long():
    tissue = Tissue(interval(10.0, 20), 2.0)
    table = Acquisition.pgse([1000], [X], delta=10, Delta=[3.0 + 10, 50])
    with pytest.warns(ValidityWarning, match="expected at most 0.3"):
        late = short_time_approximation(tissue, table)
    # no slope is better than a negative one
    assert late.adc[0] > 0 and np.isnan(late.adc[1])
    assert np.isfinite(late.tensors[:, 0]).all() and np.isnan(late.tensors[:, 1]).all()
    grid = mesh.build(mesh.slabs, [50.0, 50.0], cells_per_layer=5, width=20, comm=MPI.COMM_SELF)
    open_interface = Tissue(grid, {1: 1.0, 2: 2.0})
    with pytest.warns(ValidityWarning, match="without a membrane"):
        short_time_approximation(open_interface,
                                 Acquisition.pgse([1000], [X], delta=0.1, Delta=1))


def test_facet_normals_in_every_dimension():
    assert np.abs(facet_normals(interval(3.0, 4))).tolist() == [[1.0, 0.0, 0.0]] * 5
    grid = mesh.build(mesh.box, [1.0, 2.0, 3.0], cells=[1, 2, 2], comm=MPI.COMM_SELF)
    corners, normals = grid.facet_corners, facet_normals(grid)
    across = np.einsum("fki,fi->fk", corners[:, 1:] - corners[:, :1], normals)
    np.testing.assert_allclose(across, 0.0, atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0)


# --- ranks and bad input ------------------------------------------------------------------------

@pytest.mark.mpi
def test_the_same_on_every_number_of_ranks(comm):
    table = Acquisition.product([PGSE(3, 8)], 1000.0, [X, Y])
    for kappa in (0.0, 0.1):
        here, alone = (two_pools(c, kappa, 4, density={1: 0.4, 2: 1.0}) for c in
                       (comm, MPI.COMM_SELF))
        for one, other in ((mf_adc(here, table), mf_adc(alone, table)),
                           (hadc(here, table, time_step=3.0), hadc(alone, table, time_step=3.0))):
            np.testing.assert_allclose(one.tensors, other.tensors, atol=1e-9)
            np.testing.assert_allclose(one.adc, other.adc, rtol=1e-8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ValidityWarning)
            np.testing.assert_allclose(short_time_approximation(here, table).tensors,
                                       short_time_approximation(alone, table).tensors, atol=1e-10)


def test_bad_input():
    table = Acquisition.product([PGSE(3, 8)], 1000.0, [X])
    pools = two_pools()
    leaking = Permeability.on(pools.mesh, membrane=0.1, outer=0.01)
    for quantity in (mf_adc, hadc, short_time_approximation):
        with pytest.raises(InputError, match="permeability: 0.01 um/ms on an outer facet"):
            quantity(Tissue(pools.mesh, permeability=leaking), table)
    with pytest.raises(InputError, match="T2: varies"):
        mf_adc(two_pools(T2={1: 10.0, 2: 20.0}), table)
    with pytest.raises(InputError, match="density: varies"):
        mf_adc(two_pools(density={1: 1.0, 2: 2.0}, interface="plain"), table)
    with pytest.raises(InputError, match="tolerance: 0"):
        mf_adc(pools, table, tolerance=0)
    with pytest.raises(InputError, match="time_step: -1"):
        hadc(pools, table, time_step=-1)
    with pytest.raises(InputError, match="extra_terms"):
        hadc(BlochTorrey(pools, extra_terms=lambda m, v, t, c: m[0] * v[0] * c.dx), table)
