"""Fits to signals: ADC and kurtosis, diffusion tensor, spherical harmonics."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from mpi4py import MPI
from scipy.integrate import quad

from spinverse import Acquisition, InputError, Signals, Tissue, mesh, simulate
from spinverse.acquisition import PGSE, SampledGradient, fibonacci_directions
from spinverse.quantities import (
    FitWarning,
    fit_adc,
    fit_hardi,
    fit_tensor,
    fractional_anisotropy,
    hadc,
    spherical_harmonics,
)
from spinverse.validation import analytic

X, Y, Z = np.eye(3)
TENSOR = np.array([[1.7, 0.3, 0.0], [0.3, 0.6, 0.1], [0.0, 0.1, 0.4]])


def gaussian(table: Acquisition, tensor=TENSOR, S0=50.0) -> Signals:
    return Signals(table, S0 * np.exp(-np.einsum("nij,ij->n", table.b_tensors, tensor) / 1000))


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- ADC and kurtosis ----------------------------------------------------------------------------

def test_adc_of_free_diffusion(no_warnings):
    table = Acquisition.pgse([0, 200, 500, 1000], [X, -Z], delta=3, Delta=[8, 20])
    fit = fit_adc(gaussian(table))
    np.testing.assert_allclose(fit.adc, [1.7, 0.4, 1.7, 0.4], rtol=1e-10)
    np.testing.assert_allclose(fit.kurtosis, 0, atol=1e-8)
    np.testing.assert_allclose(fit.S0, 50.0)
    assert fit.waveform_index.tolist() == [0, 0, 1, 1] and fit.valid.all() and len(fit) == 4
    np.testing.assert_allclose(fit.b_range, [[0, 1000]] * 4)
    assert fit.residual.max() < 1e-12 and fit.adc_error.max() < 1e-10


def test_kurtosis_of_a_known_series(no_warnings):
    b = np.arange(0, 1.01, 0.1)
    fit = fit_adc(1000 * b, 3 * np.exp(-1.2 * b + (1.2 * b) ** 2 * 0.8 / 6))
    assert fit.adc == pytest.approx(1.2) and fit.kurtosis == pytest.approx(0.8)
    assert fit.S0 == pytest.approx(3.0) and np.isnan(fit.directions).all()


def test_opposite_directions_are_one_axis(no_warnings):
    table = Acquisition.from_rows([0, 300, 600, 900, 1200], [X, X, -X, X, -X], delta=3, Delta=8)
    assert fit_adc(gaussian(table)).adc == pytest.approx([1.7])


def test_the_range_is_found_where_a_cubic_term_matters(no_warnings):
    """A slab: the slope at b = 0 is known; from all b-values it is missed."""
    b = np.array([0, 100, 200, 300, 400, 600, 1000, 2000, 4000, 8000, 16000.0])
    S = analytic.slab(b, 10.0, 20.0, 10.0)
    exact = -np.log(analytic.slab(1.0, 10.0, 20.0, 10.0)) * 1000
    fit = fit_adc(b, S)
    assert fit.b_range[0, 1] < 16000 and fit.valid.all()
    assert abs(fit.adc[0] - exact) < 0.02 * exact
    assert abs(fit.adc[0] - exact) <= fit.adc_error[0] * 1.5
    with pytest.warns(FitWarning, match="too wide"):
        wide = fit_adc(b, S, b_max=16000)
    assert not wide.valid[0] and abs(wide.adc[0] - exact) > 0.02 * exact


def test_adc_is_the_homogenised_one(no_warnings):
    grid = mesh.build(mesh.box, [4.0, 8.0, 2.0], cells=[8, 16, 2], comm=MPI.COMM_SELF)
    tissue = Tissue(grid, 2.0)
    table = Acquisition.pgse([0, 50, 100, 150, 200], [X, Y], delta=2, Delta=6)
    np.testing.assert_allclose(fit_adc(simulate(tissue, table, tolerance=1e-9)).adc,
                               hadc(tissue, table.select([0, 1])).adc, rtol=3e-3)


def test_waveform_of_varying_direction(no_warnings):
    table = Acquisition.double_pgse([0, 300, 600, 900], [X], delta=2, Delta=6, mixing_time=5,
                                    second_directions=[Z])
    assert fit_adc(gaussian(table)).adc == pytest.approx([(1.7 + 0.4) / 2])


def test_adc_warns_where_the_data_do_not_allow_it():
    b = np.array([0, 500, 1000.0])
    with pytest.warns(FitWarning, match="cannot tell"):
        three = fit_adc(b, np.exp(-b / 1000))
    assert three.adc == pytest.approx([1.0]) and np.isnan(three.adc_error).all()
    with pytest.warns(FitWarning, match="cannot tell"):
        assert np.isnan(fit_adc(b[:2], np.exp(-b[:2] / 1000)).kurtosis).all()
    small = np.array([0, 1, 2, 3, 4.0])
    with pytest.warns(FitWarning, match="b is too small"):
        fit_adc(small, np.exp(-small / 1000))
    b = np.linspace(0, 1000, 6)
    with pytest.warns(FitWarning, match="rises"):
        fit_adc(b, np.array([1, 0.6, 0.4, 0.3, 0.25, 0.4]), b_max=1000)
    b = np.linspace(0, 5000, 11)
    floor = np.sqrt(np.exp(-b / 500) ** 2 + 0.02**2)
    with pytest.warns(FitWarning, match="noise floor"):
        found = fit_adc(b, floor, noise=0.02)
    assert found.adc[0] == pytest.approx(2.0, rel=0.1) and found.b_range[0, 1] < 2000


def test_noise_leaves_the_adc_within_its_error():
    rng = np.random.default_rng(5)
    b = np.repeat(np.linspace(0, 1000, 6), 20)
    S = np.exp(-1.3 * b / 1000) + rng.normal(scale=0.01, size=b.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        fit = fit_adc(b, S, noise=0.01)
    assert abs(fit.adc[0] - 1.3) < 2 * fit.adc_error[0] < 0.4


# --- tensor --------------------------------------------------------------------------------------

def test_tensor_of_gaussian_signals(no_warnings):
    table = Acquisition.pgse([0, 700, 1500], 12, delta=3, Delta=[8, 20])
    fit = fit_tensor(gaussian(table))
    np.testing.assert_allclose(fit.tensors, [TENSOR, TENSOR], atol=1e-12)
    np.testing.assert_allclose(fit.S0, 50.0)
    np.testing.assert_allclose(fit.mean_diffusivity, 0.9)
    values = np.linalg.eigvalsh(TENSOR)
    np.testing.assert_allclose(fit.eigenvalues[0], values[::-1])
    np.testing.assert_allclose(TENSOR @ fit.eigenvectors[0, :, 0],
                               values[-1] * fit.eigenvectors[0, :, 0])
    exact = np.sqrt(1.5 * ((values - 0.9) ** 2).sum() / (values**2).sum())
    np.testing.assert_allclose(fit.fractional_anisotropy, exact)


def test_anisotropy_at_its_ends():
    np.testing.assert_allclose(fractional_anisotropy(
        [np.eye(3), np.diag([1.0, 0, 0]), np.zeros((3, 3))]), [0, 1, 0], atol=1e-12)


def test_tensor_of_waveforms_of_varying_direction(no_warnings):
    axes = fibonacci_directions(8)
    table = Acquisition.double_pgse([0, 700, 1500], axes, delta=2, Delta=6, mixing_time=5,
                                    second_directions=np.roll(axes, 3, axis=0))
    fit = fit_tensor(gaussian(table))
    assert fit.waveform_index.tolist() == [-1]
    np.testing.assert_allclose(fit.tensors[0], TENSOR, atol=1e-10)


def test_tensor_warns_of_another_model():
    table = Acquisition.pgse([0, 2000, 6000], 12, delta=3, Delta=8)
    two = Signals(table, gaussian(table).values + 25 * np.exp(-table.b / 1e4))
    with pytest.warns(FitWarning, match="kurtosis would change"):
        fit_tensor(two)
    growing = Signals(table, np.exp(0.1 * table.b / 1000))
    with pytest.warns(FitWarning, match="eigenvalue"):
        fit_tensor(growing, b_max=2000)


def test_tensor_needs_six_directions():
    with pytest.raises(InputError, match="determine 5 of the 6"):
        fit_tensor(gaussian(Acquisition.pgse([0, 1000], 5, delta=3, Delta=8)))
    flat = np.array([[np.cos(a), np.sin(a), 0] for a in np.linspace(0, 3, 9)])
    with pytest.raises(InputError, match="determine 3 of the 6"):
        fit_tensor(gaussian(Acquisition.pgse([0, 1000], flat, delta=3, Delta=8)))
    with pytest.raises(InputError, match="one b-value only"):
        fit_tensor(gaussian(Acquisition.pgse([1000], 10, delta=3, Delta=8)))
    with pytest.raises(InputError, match="b_max"):
        fit_tensor(gaussian(Acquisition.pgse([0, 1000], 10, delta=3, Delta=8)), b_max=-1)


# --- spherical harmonics -------------------------------------------------------------------------

def test_harmonics_are_orthonormal():
    nodes, weights = np.polynomial.legendre.leggauss(12)
    phi = np.arange(24) * 2 * np.pi / 24
    z, phi = (a.ravel() for a in np.meshgrid(nodes, phi, indexing="ij"))
    w = np.repeat(weights, 24) * 2 * np.pi / 24
    r = np.sqrt(1 - z**2)
    B = spherical_harmonics(np.column_stack([r * np.cos(phi), r * np.sin(phi), z]), 6)
    assert B.shape == (288, 28)
    np.testing.assert_allclose(B.T @ (w[:, None] * B), np.eye(28), atol=1e-12)


def test_hardi_of_a_tensor(no_warnings):
    """Its ADC is of order 2; its signal is not, and more orders leave less."""
    table = Acquisition.pgse([0, 1000, 3000], 60, delta=3, Delta=8)
    signals = gaussian(table)
    adc = fit_hardi(signals, order=2, regularisation=0, quantity="adc")
    along = fibonacci_directions(7)
    np.testing.assert_allclose(adc.evaluate(along), np.tile(
        np.einsum("ni,ij,nj->n", along, TENSOR, along), (2, 1)), atol=1e-10)
    np.testing.assert_allclose(adc.mean, 0.9, atol=1e-10)
    np.testing.assert_allclose(adc.b, [1000, 3000])
    residuals = [fit_hardi(signals, order=L, regularisation=0).residual for L in (2, 4, 6, 8)]
    assert (np.diff(residuals, axis=0) < 0).all() and residuals[-1].max() < 1e-3


def test_powder_average_of_sticks():
    """Mean over the sphere of exp(-b D z^2), and what regularisation does to high orders."""
    table = Acquisition.pgse([0, 2000], 90, delta=3, Delta=8)
    signals = gaussian(table, np.diag([0, 0, 1.7]))
    exact = quad(lambda z: np.exp(-2 * 1.7 * z**2), 0, 1)[0]
    smooth, sharp = fit_hardi(signals, 8, 0.1), fit_hardi(signals, 8, 0.0)
    assert sharp.mean[0] == pytest.approx(exact, rel=1e-4)
    assert smooth.mean[0] == pytest.approx(exact, rel=1e-3)
    assert np.abs(smooth.coefficients[0, 28:]).sum() < np.abs(sharp.coefficients[0, 28:]).sum()
    assert fit_hardi(signals).order == 8
    assert fit_hardi(signals.select(np.arange(0, 180, 6))).order == 4  # 15 directions, 15 terms


def test_hardi_bad_input():
    table = Acquisition.pgse([0, 1000], 10, delta=3, Delta=8)
    signals = gaussian(table)
    for arguments, message in [({"order": 3}, "order: 3"), ({"order": 4}, "at least 15"),
                               ({"quantity": "odf"}, "quantity"),
                               ({"regularisation": -1}, "regularisation")]:
        with pytest.raises(InputError, match=message):
            fit_hardi(signals, **arguments)
    with pytest.raises(InputError, match="no row with b = 0"):
        fit_hardi(gaussian(Acquisition.pgse([1000], 10, delta=3, Delta=8)))
    wave = SampledGradient((0, 1, 1, 2), ((1, 0, 0), (1, 0, 0), (-1, 0, 0), (-1, 0, 0)))
    with pytest.raises(InputError, match="at least one shell"):
        fit_hardi(gaussian(Acquisition.product([wave], [0, 100], None)))
    with pytest.raises(InputError, match="directions: shape"):
        spherical_harmonics([[0, 0, 0]], 2)


# --- bad input -----------------------------------------------------------------------------------

def test_adc_bad_input():
    table = Acquisition.product([PGSE(3, 8)], [0, 1000], [X])
    with pytest.raises(InputError, match="magnitude 0"):
        fit_adc(Signals(table, [1.0, 0.0]))
    with pytest.raises(InputError, match="no row with b > 0"):
        fit_adc(Signals(table.select([0]), [1.0]))
    with pytest.raises(InputError, match="expected at least 2"):
        fit_adc(gaussian(table), b_max=500)
    for arguments in (([0, 1], [1.0]), ([0, -1], [1.0, 0.5]), ([0, 1], [1.0, 0.0]),
                      ([0, 1], ["a", "b"])):
        with pytest.raises(InputError, match="signals"):
            fit_adc(*arguments)
    for name in ("b_max", "tolerance", "noise"):
        with pytest.raises(InputError, match=name):
            fit_adc(gaussian(table), **{name: -1.0})
