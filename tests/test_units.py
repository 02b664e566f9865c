"""Unit conversions."""

import numpy as np
import pytest

from spinverse import units


def test_known_conversions():
    assert units.b_to_internal(1000.0) == 1.0
    assert units.permeability_to_internal(1e-5) == pytest.approx(0.01, rel=1e-15)
    # 1 T/m turns proton spins 1 um apart by 0.267522... rad in a ms
    assert units.gradient_to_internal(1000.0) == pytest.approx(0.26752218744, rel=1e-14)


@pytest.mark.parametrize("quantity", ["b", "permeability", "gradient"])
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
    assert units.describe_gradient(units.gradient_to_internal(100.0)).endswith("(100 mT/m)")
