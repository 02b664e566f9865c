"""The closed forms and layer solvers against independent values, limits and each other."""

from __future__ import annotations

import numpy as np
import pytest

from spinverse.errors import InputError
from spinverse.validation import analytic
from spinverse.validation.references import data

CASES = data()["cases"]


def _family(*numbers):
    return [pytest.param(case, id=case["name"]) for case in CASES if case["family"] in numbers]


def _sequence(case):
    """b in s/mm^2, delta and Delta in ms."""
    return case["b"], case["delta"] / 1e3, case["Delta"] / 1e3


def _layers(case):
    """Diffusivity (um^2/ms), T2 (ms) and permeabilities (um/ms) of a case."""
    T2 = np.inf if case["T2"] is None else np.array(case["T2"]) / 1e3
    return {"diffusivity": 1e3 * np.array(case["D"]), "T2": T2,
            "permeabilities": 1e3 * np.array(case["geometry"]["kappa"])}


@pytest.mark.parametrize("case", _family(1))
def test_slab(case):
    signal = analytic.slab(*_sequence(case), thickness=10.0, diffusivity=2.0)
    assert np.abs(signal - case["signal_re"]).max() < 2 * case["abs_error"]


@pytest.mark.parametrize("case", _family(3))
def test_cylinder_and_sphere(case):
    shape = analytic.sphere if case["geometry"]["type"] == "sphere" else analytic.cylinder
    signal = shape(*_sequence(case), radius=5.0, diffusivity=2.0)
    assert np.abs(signal - case["signal_re"]).max() < 1e-8


@pytest.mark.parametrize("case", _family(2, 5))
def test_layered_slabs(case):
    signal = analytic.slabs(*_sequence(case), thicknesses=case["geometry"]["L"], **_layers(case))
    assert np.abs(signal - case["signal_re"]).max() < 2 * case["abs_error"]


@pytest.mark.parametrize("case", _family(3, 4))
def test_concentric_layers(case):
    shape = analytic.spheres if case["geometry"]["type"] == "sphere" else analytic.cylinders
    signal = shape(*_sequence(case), radii=case["geometry"]["radii"], **_layers(case))
    assert np.abs(signal - case["signal_re"]).max() < 2 * case["abs_error"]


@pytest.mark.parametrize("shape, diffusivity, permeability, published", [
    (analytic.cylinders, 3.0, 0.05,
     [.7181, .5234, .3899, .2990, .2373, .1952, .1661, .1454, .1302, .1184]),
    (analytic.cylinders, [3.0, 1.0, 3.0], 0.01,
     [.7297, .5525, .4381, .3649, .3181, .2877, .2672, .2522, .2402, .2297]),
    (analytic.spheres, 3.0, 0.05,
     [.7886, .6228, .4932, .3921, .3135, .2526, .2054, .1688, .1406, .1186])])
def test_published_three_layers(shape, diffusivity, permeability, published):
    b = np.arange(1000, 10001, 1000)
    signal = shape(b, 40, 40, [5.0, 7.5, 10.0], permeability, diffusivity, degree=8, orders=8)
    np.testing.assert_allclose(signal, published, atol=6e-5)


@pytest.mark.parametrize("dim, edges, slowest", [
    (1, [-10, 0, 10], 266.8786), (2, [0, 10, 20], 198.2512), (3, [0, 10, 20], 153.0855)])
def test_slowest_exchange(dim, edges, slowest):
    modes = analytic.layer_modes(dim, np.array(edges, float), 0.02, 2.0, np.inf, degree=12)
    assert 1 / np.sort(modes.eigenvalues)[1] == pytest.approx(slowest, abs=6e-5)


@pytest.mark.parametrize("modes, c", [
    (analytic.slab_modes(4.0, 2.0, 40), 4.0**4 / 120),
    (analytic.ball_modes(2, 2.0, 2.0, 60), 7 * 2.0**4 / 96),
    (analytic.ball_modes(3, 2.0, 2.0, 60), 8 * 2.0**4 / 175)])
def test_motional_narrowing(modes, c):
    """Long weak pulses: -ln E -> 2 delta g^2 c / D, with a correction of order 1 / delta."""
    delta, b = 1000.0, 1e5
    g2 = b / 1e3 / (delta**2 * (delta - delta / 3))
    expected = 2 * delta * g2 * c / 2.0
    assert -np.log(modes.pgse(b, delta, delta)) == pytest.approx(expected, rel=3e-3)


def test_free():
    np.testing.assert_allclose(analytic.free([0, 1000], 2.0), [1.0, np.exp(-2)], rtol=1e-15)
    assert analytic.free(np.zeros((2, 3))).shape == (2, 3)


def test_wide_slab_looks_free():
    signal = analytic.slab(1000, 1, 2, thickness=500.0, modes=400)
    assert signal == pytest.approx(np.exp(-2), abs=5e-3)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_no_membrane_and_closed_membrane(dim):
    b, delta, Delta = [0, 1000, 4000], 5.0, 12.0
    if dim == 1:
        whole = analytic.slab(b, delta, Delta, 10.0)
        open_ = analytic.slabs(b, delta, Delta, [4.0, 6.0], np.inf)
        closed = analytic.slabs(b, delta, Delta, [4.0, 6.0], 0.0)
        apart = [analytic.slab(b, delta, Delta, width) for width in (4.0, 6.0)]
        np.testing.assert_allclose(closed, 0.4 * apart[0] + 0.6 * apart[1], atol=1e-9)
    else:
        one, many = ((analytic.cylinder, analytic.cylinders) if dim == 2
                     else (analytic.sphere, analytic.spheres))
        whole, open_ = one(b, delta, Delta, 5.0), many(b, delta, Delta, [3.0, 5.0], np.inf)
    # rounding of the lowest eigenvalue: that of the largest, over 17 ms
    assert open_[0] == pytest.approx(1.0, abs=1e-10)
    np.testing.assert_allclose(open_, whole, atol=1e-8)


def test_position_matrices_are_those_of_the_eigenfunctions():
    """Sum rule: row 0 of X^2 is the mean square position, L^2/12, R^2/4 and R^2/5."""
    for modes, expected in ((analytic.slab_modes(6.0, 2.0, 400), 3.0),
                            (analytic.ball_modes(2, 6.0, 2.0, 400), 9.0),
                            (analytic.ball_modes(3, 6.0, 2.0, 400), 7.2)):
        assert modes.position[0] @ modes.position[0] == pytest.approx(expected, rel=1e-5)


def test_relaxation_multiplies():
    plain = analytic.slabs(1000, 5, 10, [5, 5], 0.1)
    relaxed = analytic.slabs(1000, 5, 10, [5, 5], 0.1, T2=50.0)
    assert relaxed == pytest.approx(plain * np.exp(-15 / 50), rel=1e-10)


@pytest.mark.parametrize("call, message", [
    (lambda: analytic.free(-1.0), "b: -1, expected"),
    (lambda: analytic.free(1.0, 0.0), "diffusivity: 0.0, expected"),
    (lambda: analytic.slab(1, 5, 4, 10.0), "Delta: 4 ms, expected at least delta = 5 ms"),
    (lambda: analytic.slab(1, 0, 4, 10.0), "delta: 0, expected"),
    (lambda: analytic.slab(1, 5, 9, "wide"), "thickness: 'wide', expected"),
    (lambda: analytic.sphere(1, 5, 9, 3.0, modes=0), "modes: 0, expected"),
    (lambda: analytic.slabs(1, 5, 9, [5, 5], [1, 2]), "permeabilities: [1, 2], expected"),
    (lambda: analytic.slabs(1, 5, 9, [5, 5], -1.0), "permeabilities: -1.0, expected"),
    (lambda: analytic.slabs(1, 5, 9, 5.0, []), "thicknesses: 5.0, expected"),
    (lambda: analytic.cylinders(1, 5, 9, [5, 3], 1), "radii: [5, 3], expected ascending"),
    (lambda: analytic.spheres(1, 5, 9, [3, 5], 1, [1, 2, 3]), "diffusivity: [1, 2, 3], expected"),
    (lambda: analytic.spheres(1, 5, 9, [3, 5], 1, T2=[1, -2]), "T2: -2, expected")])
def test_bad_input(call, message):
    with pytest.raises(InputError) as raised:
        call()
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
