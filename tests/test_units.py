"""Unit conversions."""

import numpy as np
import pytest

from spinverse import units


def test_known_conversions():
    assert units.b_to_internal(1000.0) == 1.0
    assert units.permeability_to_internal(1e-5) == pytest.approx(0.01, rel=1e-15)
    # 1 T/m turns proton spins 1 um apart by 0.267522... rad in a ms
    assert units.gradient_to_internal(1000.0) == pytest.approx(0.26752218744, rel=1e-14)


def test_what_files_and_the_screen_have_in_si():
    assert (units.time_to_internal(0.04), units.time_from_internal(40.0)) == (40.0, 0.04)
    assert (units.b_to_si(1000.0), units.b_from_si(1e9)) == (1e9, 1000.0)
    assert (units.gradient_to_si(300.0), units.gradient_from_si(0.3)) == (0.3, 300.0)
    assert (units.length_from_internal(5.0), units.diffusivity_from_internal(2.0)) == (5e-6, 2e-9)
    assert units.frequency_from_internal(0.1) == 100.0  # Hz


@pytest.mark.parametrize("quantity", ["b", "permeability", "gradient", "time"])
def test_conversions_are_inverse_and_keep_shapes(quantity):
    values = np.array([[0.0, 1e-5, 3.7], [1e3, 5e4, np.inf]])
    there = getattr(units, f"{quantity}_to_internal")(values)
    back = getattr(units, f"{quantity}_from_internal")(there)
    assert there.shape == values.shape
    np.testing.assert_allclose(back, values, rtol=1e-15)


def test_echo_text():
    assert units.describe_permeability(0.01) == "0.01 um/ms (1e-05 m/s)"
    assert units.describe_b(1000) == "1000 s/mm^2 (1 ms/um^2)"
    assert units.describe_diffusivity(2.0) == "2 um^2/ms (0.002 mm^2/s)"
