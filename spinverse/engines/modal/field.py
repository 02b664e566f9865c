"""The matrix formalism under a field: phases that turn without gradient.

What turns them does not change its sign with the gradient, so no half of a waveform is the mirror
image of the other one, and there is no rest: all pieces are propagated,
u' = -(Lambda + i B_s + i g(t) . X) u, with the field B_s of the sign s that 180-degree pulses turn.
"""

from __future__ import annotations

import numpy as np

from .chebyshev import Propagation


def step_in_field(basis, number: int, direction: tuple[float, ...], gradient: np.ndarray,
                  duration: float, known: dict, corrected: bool):
    """The exponential of one piece in a `Eigenmodes` with fields, under that of a ``number``.

    Args:
        direction: of the gradient, empty without.
        gradient: ``(C,)`` of each column, rad/(ms um).
        known: a cache for one basis.
        corrected: with what omitted modes do.
    """
    B, bound = basis.fields[number], basis.field_reach[number]
    if direction not in known:
        known[direction] = ((np.tensordot(direction, basis.positions, axes=1),
                             float(np.abs(direction) @ basis.reach)) if direction
                            else (np.zeros_like(B), 0.0))
    X, reach = known[direction]
    if not corrected:
        return Propagation(basis.eigenvalues, X, gradient, reach, duration, field=B,
                           field_reach=bound)
    steps = []
    for strength in gradient:
        along = np.zeros(len(basis.turning))
        along[: len(direction)] = strength * np.array(direction)
        along[len(basis.positions) + number] = 1.0
        C = basis.omitted(along)
        highest = basis.eigenvalues[-1] + max(float(np.linalg.eigvalsh(C)[-1]), 0.0)
        steps.append(Propagation(
            basis.eigenvalues, strength * X + B, np.ones(1), abs(strength) * reach + bound,
            duration, C, (0.0, highest)))
    return _ByColumn(steps)


class _ByColumn:
    """A propagation for each column: what omitted modes do is not a multiple of one matrix."""

    def __init__(self, steps: list[Propagation]):
        self.steps = steps

    def forward(self, u: np.ndarray, remember: bool = False) -> np.ndarray:
        return np.hstack([step.forward(u[:, k: k + 1], remember)
                          for k, step in enumerate(self.steps)])
