"""Units: what the user and the files say, and what the equations use.

Inside the package lengths are um, times ms, angles rad. b-values are in s/mm^2 and gradients in
mT/m wherever a person gives them; some files have the SI's s, s/m^2 and T/m. Each conversion is
made here and only here. Every function takes a number or an array and returns the same shape.
"""

from __future__ import annotations

import numpy as np

#: Gyromagnetic ratio of the proton, rad/s/T (CODATA 2018).
GAMMA = 2.6752218744e8

#: The same in internal units: rad/(ms um) for each mT/m. 1 mT/m = 1e-3 T/m, and
#: 1 rad/(s m) = 1e-9 rad/(ms um).
GAMMA_INTERNAL = GAMMA * 1e-12


def b_to_internal(b):
    """b-value from s/mm^2 to ms/um^2 (1000 s/mm^2 = 1 ms/um^2)."""
    return np.divide(b, 1000.0)


def b_from_internal(b):
    """b-value from ms/um^2 to s/mm^2."""
    return np.multiply(b, 1000.0)


def permeability_to_internal(permeability):
    """Permeability from m/s to um/ms (1e-5 m/s = 0.01 um/ms)."""
    return np.multiply(permeability, 1000.0)


def permeability_from_internal(permeability):
    """Permeability from um/ms to m/s."""
    return np.divide(permeability, 1000.0)


def gradient_to_internal(gradient):
    """Gradient strength G in mT/m to g = gamma G in rad/(ms um)."""
    return np.multiply(gradient, GAMMA_INTERNAL)


def gradient_from_internal(gradient):
    """g = gamma G in rad/(ms um) to the gradient strength G in mT/m."""
    return np.divide(gradient, GAMMA_INTERNAL)


def time_to_internal(time):
    """Time from s to ms."""
    return np.multiply(time, 1000.0)


def time_from_internal(time):
    """Time from ms to s."""
    return np.divide(time, 1000.0)


def frequency_from_internal(frequency):
    """Frequency from 1/ms to Hz."""
    return np.multiply(frequency, 1000.0)


def rate_from_internal(rate):
    """Rate from 1/ms to 1/s."""
    return np.multiply(rate, 1000.0)


def length_from_internal(length):
    """Length from um to m."""
    return np.divide(length, 1e6)


def diffusivity_from_internal(diffusivity):
    """Diffusivity from um^2/ms to m^2/s."""
    return np.divide(diffusivity, 1e9)


def b_to_si(b):
    """b-value from s/mm^2 to s/m^2."""
    return np.multiply(b, 1e6)


def b_from_si(b):
    """b-value from s/m^2 to s/mm^2."""
    return np.divide(b, 1e6)


def gradient_to_si(gradient):
    """Gradient strength from mT/m to T/m."""
    return np.divide(gradient, 1000.0)


def gradient_from_si(gradient):
    """Gradient strength from T/m to mT/m."""
    return np.multiply(gradient, 1000.0)


def gradient_from_hertz(gradient):
    """Gradient strength from Hz/m of protons, as in Pulseq, to mT/m."""
    return np.multiply(gradient, 2e3 * np.pi / GAMMA)


def describe_range(values, digits: int = 4) -> str:
    """Text for the range of values, for instance ``1 to 2.5``; nan are left out."""
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if not len(values):
        return "unknown"
    low, high = (f"{end:.{digits}g}" for end in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def other_unit(value: float, others: dict[str, float], usual: tuple[float, float]) -> str:
    """Which of the ``others``, unit: factor, makes a value usual, in words; "" if none does."""
    for unit, factor in others.items():
        if usual[0] <= value * factor <= usual[1]:
            return f" (given in {unit}? then it would be {value * factor:g} here)"
    return ""


def describe_b(b: float) -> str:
    """Text for a b-value given in s/mm^2, for instance ``1000 s/mm^2 (1 ms/um^2)``."""
    return f"{b:g} s/mm^2 ({b_to_internal(b):g} ms/um^2)"


def describe_permeability(permeability: float) -> str:
    """Text for a permeability given in um/ms, for instance ``0.01 um/ms (1e-05 m/s)``."""
    return f"{permeability:g} um/ms ({permeability_from_internal(permeability):g} m/s)"


def describe_diffusivity(diffusivity: float) -> str:
    """Text for a diffusivity given in um^2/ms, for instance ``2 um^2/ms (0.002 mm^2/s)``."""
    return f"{diffusivity:g} um^2/ms ({diffusivity / 1000.0:g} mm^2/s)"
