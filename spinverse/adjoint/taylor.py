"""Is a derivative right? The Taylor remainder says."""

from __future__ import annotations

import numpy as np
from pyadjoint import stop_annotating

from .types import FacetField


def taylor_rate(reduced_functional, field, direction=None, steps: int = 4,
                first: float = 1e-2) -> float:
    """Order at which |J(m + h d) - J(m) - h J'(m) d| falls with h: 2 when J' is right. Collective.

    Args:
        reduced_functional: J.
        field: m, where the derivative is checked; a list of them where J has several controls.
        direction: d, as m; a reproducible one of no symmetry if nothing is said.
        steps: how often h is halved.
        first: the first h.

    Returns:
        The smallest rate between two successive steps.
    """
    fields = field if isinstance(field, list) else [field]
    if direction is None:
        direction = [_direction(each) for each in fields]
    directions = direction if isinstance(direction, list) else [direction]

    def at(h: float) -> float:
        moved = [m._ad_add(d._ad_mul(h)) for m, d in zip(fields, directions, strict=True)]
        return float(reduced_functional(moved if isinstance(field, list) else moved[0]))

    with stop_annotating():
        value = at(0.0)
        slopes = reduced_functional.derivative()
        slopes = slopes if isinstance(slopes, list | tuple) else [slopes]
        slope = sum(s._ad_dot(d) for s, d in zip(slopes, directions, strict=True))
        sizes = first / 2.0 ** np.arange(steps)
        remainders = [abs(at(float(h)) - value - h * slope) for h in sizes]
    return float(np.min(np.log2(np.array(remainders[:-1]) / np.array(remainders[1:]))))


def _direction(field):
    if isinstance(field, FacetField):
        return field._like(np.sin(field.mesh.facet_vertices @ np.array([1.3, 2.1, 0.7]) + 0.3))
    return field._like(np.sin(1.0 + 1.3 * np.arange(len(field))))
