"""One piece of a waveform along periodic axes, as an exponential of drifting modes."""

from __future__ import annotations

import numpy as np

from ..basis.gauge import Gauge
from ..schedule.waves import Wave
from .chebyshev import Propagation


def propagation(basis, wave: Wave, direction: tuple[float, ...], q: np.ndarray, duration: float,
                operators: dict) -> Propagation:
    """The exponential of one piece.

    Args:
        basis: `Eigenmodes` with a gauge.
        direction: of the gradient, empty for a vector waveform.
        q: ``(C,)`` strength of each column, rad/(ms um).
        operators: a cache for one basis, from direction to its operators.
    """
    gauge = basis.gauge
    rate, phase, square = (np.asarray(mean) for mean in (wave.rate, wave.phase, wave.square))
    if direction:
        if direction not in operators:
            operators[direction] = _along(basis, np.array(direction))
        N, X, C, reach, size = operators[direction]
        Y, Z = phase * N + rate * X, square * C
        reach, wave_number, excess = abs(rate) * reach, abs(phase) * size, square - phase**2
        excess = excess * size**2
    else:
        fixed = _fixed(gauge, len(rate))
        Y = np.tensordot(phase, gauge.drifts, axes=1) + np.tensordot(
            np.where(fixed, rate, 0.0), basis.positions, axes=1)
        inside = np.where(np.add.outer(fixed, fixed), 0.0, square)
        Z = np.tensordot(inside, gauge.squares, axes=2)
        reach = np.abs(np.where(fixed, rate, 0.0)) @ basis.reach
        phase = np.where(fixed, 0.0, phase)
        wave_number = np.linalg.norm(phase)
        spread = np.linalg.eigvalsh(inside - np.outer(phase, phase))
        excess = spread[np.abs(spread).argmax()]
    # (grad - i Q) adds at most |Q| to the wave number of a mode; means add their variance, which
    # weights of both signs may make negative
    strongest = float(np.abs(q).max(initial=0.0))
    root = np.sqrt(max(basis.eigenvalues[-1], 0.0)) + (
        np.sqrt(gauge.fastest) * wave_number * strongest)
    beyond = float(gauge.fastest * excess * strongest**2)
    interval = (min(beyond, 0.0), float(root**2) + max(beyond, 0.0))
    return Propagation(basis.eigenvalues, Y, q, float(reach), duration, Z, interval)


def _along(basis, direction: np.ndarray) -> tuple:
    """Drift, position and square along a direction; reach of the position; |direction| inside."""
    gauge = basis.gauge
    fixed = _fixed(gauge, len(direction))
    inside, outside = np.where(fixed, 0.0, direction), np.where(fixed, direction, 0.0)
    return (np.tensordot(inside, gauge.drifts, axes=1),
            np.tensordot(outside, basis.positions, axes=1),
            np.tensordot(np.outer(inside, inside), gauge.squares, axes=2),
            float(np.abs(outside) @ basis.reach), float(np.linalg.norm(inside)))


def _fixed(gauge: Gauge, dim: int) -> np.ndarray:
    return ~np.isin(np.arange(dim), gauge.axes)
