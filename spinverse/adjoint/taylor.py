"""Is a derivative right? The Taylor remainder says."""

from __future__ import annotations

import numpy as np
from pyadjoint import stop_annotating

from .types import FacetField


def taylor_rate(reduced_functional, field: FacetField, direction: FacetField | None = None,
                steps: int = 4, first: float = 1e-2) -> float:
    """Order at which |J(m + h d) - J(m) - h J'(m) d| falls with h: 2 when J' is right. Collective.

    Args:
        reduced_functional: J.
        field: m, where the derivative is checked.
        direction: d; a reproducible one of no symmetry if nothing is said.
        steps: how often h is halved.
        first: the first h.

    Returns:
        The smallest rate between two successive steps.
    """
    if direction is None:
        triples = field.mesh.facet_vertices
        direction = field._like(np.sin(triples @ np.array([1.3, 2.1, 0.7]) + 0.3))
    with stop_annotating():
        value = float(reduced_functional(field))
        slope = reduced_functional.derivative()._ad_dot(direction)
        sizes = first / 2.0 ** np.arange(steps)
        remainders = [abs(float(reduced_functional(field._ad_add(direction._ad_mul(float(h)))))
                          - value - h * slope) for h in sizes]
    return float(np.min(np.log2(np.array(remainders[:-1]) / np.array(remainders[1:]))))
