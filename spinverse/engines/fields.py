"""The matrix formalism under a field: phases that turn without gradient.

What turns them does not change its sign with the gradient, so no half of a waveform is the mirror
image of the other one, and there is no rest: all pieces are propagated,

    u' = -(Lambda + i B_s + i g(t) . X) u,

with the field B_s of the sign s that 180-degree pulses turn, if it is one that they turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..acquisition.table import Acquisition
from .chebyshev import Propagation
from .echoes import refocusing_times, split


def plan_in_field(acquisition: Acquisition, max_step: float, dim: int, fields: int,
                  make: type, unit: Callable) -> list:
    """Groups of measurements as `matrix_formalism.plan`, of whole waveforms.

    Args:
        fields: how many there are; 2 are one for each sign.
        make: the class of a group.
        unit: of a piece of a vector waveform.
    """
    whole = []
    for waveform in acquisition.waveforms:
        durations, values = waveform.segments(max_step)
        turns = refocusing_times(waveform) if fields > 1 else ()
        pieces = split(zip(durations.tolist(), (tuple(v) if waveform.vector else v
                                                for v in values.tolist()), strict=True), turns)
        middles = np.cumsum([piece[0] for piece in pieces]) - [piece[0] / 2 for piece in pieces]
        whole.append((pieces, tuple(sum(turn < t for turn in turns) % 2 for t in middles)))
    groups: dict[tuple, Any] = {}
    for row, strength in enumerate(acquisition.strength):
        waveform = acquisition.waveforms[acquisition.waveform_index[row]]
        pieces, numbers = whole[acquisition.waveform_index[row]]
        if strength == 0:
            pieces = tuple((duration, 0.0, ()) for duration, _ in pieces)
        elif waveform.vector:
            pieces = tuple(unit(duration, value[:dim]) for duration, value in pieces)
        else:
            along = tuple(acquisition.directions[row, :dim].tolist())
            pieces = tuple((duration, value, along) for duration, value in pieces)
        pieces, numbers = _joined(pieces, numbers)
        group = groups.setdefault((pieces, numbers), make(pieces, 0, fields=numbers))
        group.rows.append(row)
        group.strength.append(float(strength))
        group.gap.append(0.0)
    return list(groups.values())


def _joined(pieces: tuple, numbers: tuple) -> tuple[tuple, tuple]:
    """Neighbours without gradient under the same field are one."""
    result: list = []
    for (duration, value, along), number in zip(pieces, numbers, strict=True):
        if result and not value and not result[-1][0][1] and result[-1][1] == number:
            duration += result.pop()[0][0]
        result.append(((duration, value, along), number))
    return tuple(piece for piece, _ in result), tuple(number for _, number in result)


def step_in_field(basis, number: int, direction: tuple[float, ...], gradient: np.ndarray,
                  duration: float, known: dict, corrected: bool):
    """The exponential of one piece.

    Args:
        basis: `Eigenmodes` with fields.
        number: of the field.
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
