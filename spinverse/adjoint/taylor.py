"""Is a derivative right? The Taylor remainder says."""

from __future__ import annotations

import numpy as np
from pyadjoint import ReducedFunctional, stop_annotating

from ..errors import InputError
from .types import FacetField


def taylor_rate(reduced_functional, field, direction=None, steps: int = 4,
                first: float = 1e-2) -> float:
    """Order at which |J(m + h d) - J(m) - h J'(m) d| falls with h: 2 when J' is right. Collective.

    Args:
        reduced_functional: J.
        field: m, where the derivative is checked, or values of it; a list where J has several
            controls.
        direction: d, as m; a reproducible one of no symmetry if nothing is said.
        steps: how often h is halved, the ``first`` h.

    Returns:
        The smallest rate between two successive steps.

    Raises:
        InputError: J is no reduced functional, or fields do not fit its controls.
    """
    if not isinstance(reduced_functional, ReducedFunctional):
        raise InputError(f"reduced_functional: a {type(reduced_functional).__name__}, expected J "
                         "of spinverse.reduced_functional or a pyadjoint.ReducedFunctional")
    controls = [each.control for each in reduced_functional.controls]
    fields = _as_controls("field", field, controls)
    directions = ([_direction(each) for each in fields] if direction is None
                  else _as_controls("direction", direction, controls))

    def at(h: float) -> float:
        moved = [m._ad_add(d._ad_mul(h)) for m, d in zip(fields, directions, strict=True)]
        return float(reduced_functional(moved if len(moved) > 1 else moved[0]))

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
        facets = np.sin(field.mesh.facet_vertices @ np.array([1.3, 2.1, 0.7]) + 0.3)
        return field._like(np.r_[facets, np.sin(1.0 + np.arange(len(field) - len(facets)))])
    return field._like(np.sin(1.0 + 1.3 * np.arange(len(field))))


def _as_controls(name: str, given, controls: list) -> list:
    """One value for each control, of its type."""
    values = list(given) if isinstance(given, list | tuple) else [given]
    if len(values) != len(controls):
        raise InputError(f"{name}: {len(values)}, expected one for each of {len(controls)} "
                         "control(s)")
    found = []
    for value, control in zip(values, controls, strict=True):
        try:
            found.append(value if isinstance(value, type(control))
                         else control._ad_init_object(value))
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{name}: a {type(value).__name__} ({error}), expected a "
                             f"{type(control).__name__} or its values") from None
    return found
