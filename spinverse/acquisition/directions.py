"""Gradient directions."""

from __future__ import annotations

import operator

import numpy as np

from ..errors import InputError

GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))


def fibonacci_directions(n: int) -> np.ndarray:
    """Spread ``n`` unit vectors over the whole sphere along a Fibonacci spiral.

    Direction i has z_i = 1 - (2 i + 1)/n, so that each owns the same area, and the azimuth i times
    the golden angle pi (3 - sqrt 5), counted from +x towards +y.

    For a diffusion tensor take 7 or more: the 6 of them determine only five of its components.

    Returns:
        Unit vectors, shape (n, 3).

    Raises:
        InputError: ``n`` is not a positive whole number.
    """
    try:
        count = operator.index(n)
    except TypeError:
        count = 0
    if count < 1:
        raise InputError(f"directions: {n!r} is not a positive whole number of directions")
    i = np.arange(count)
    z = 1.0 - (2.0 * i + 1.0) / count
    radius = np.sqrt(1.0 - z**2)
    azimuth = i * GOLDEN_ANGLE
    return np.column_stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z])
