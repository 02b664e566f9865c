"""Pieces of waveforms as exponentials in the modes: at rest, under a field, along periodic axes.

A field turns phases without gradient, and does not change its sign with it: no half of a waveform
is the mirror image of the other one then, and there is no rest. All pieces are propagated,
u' = -(Lambda + i B_s + i g(t) . X) u, with the field B_s of the sign s that 180-degree pulses turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..basis.drifting import Gauge
from ..schedule.waves import Wave
from .chebyshev import Propagation


def real_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Re(conj(a) b^T) of complex columns, ``(K, K)``."""
    return np.hstack([a.real, a.imag]) @ np.hstack([b.real, b.imag]).T


@dataclass
class Rest:
    """A piece without gradient: exp(-Lambda t)."""

    eigenvalues: np.ndarray
    duration: float
    _input: np.ndarray = None

    def forward(self, u, remember=False):
        self._input = u if remember else None
        return np.exp(-self.eigenvalues * self.duration)[:, None] * u

    def backward(self, adjoint, gradient):
        def visit(swept, term, factor):
            gradient[:] += real_product(swept, term) * factor

        return self.sweep(adjoint, visit)

    def sweep(self, adjoint, visit):
        """As `Propagation.sweep`; the factor is ``(K, K)``."""
        visit(adjoint, self._input, divided_differences(self.eigenvalues, self.duration))
        return np.exp(-self.eigenvalues * self.duration)[:, None] * adjoint


class Stored:
    """A piece of storage along z: another step, of the operator Lambda + R in its own vectors V.

    ``inner`` is that step, for columns V^T u.
    """

    def __init__(self, V: np.ndarray, inner: Rest | Propagation):
        self.V, self.inner = V, inner

    def forward(self, u, remember=False):
        return self.V @ self.inner.forward(self.V.T @ u, remember)

    def backward(self, adjoint, gradient):
        turned = np.zeros_like(gradient)
        result = self.V @ self.inner.backward(self.V.T @ adjoint, turned)
        gradient += self.V @ turned @ self.V.T
        return result

    def sweep(self, adjoint, visit):
        """As `Propagation.sweep`, of columns V^T u: the derivative is by V^T (Lambda + R) V."""
        return self.V @ self.inner.sweep(self.V.T @ adjoint, visit)


def stored_rest(basis, duration: float, corrected: bool = False) -> Stored:
    """Storage without a phase exp(i Q . x) along periodic axes; ``corrected`` for omitted modes."""
    values, V = basis.stored_with_omitted if corrected else basis.stored
    return Stored(V, Rest(values, duration))


def divided_differences(eigenvalues: np.ndarray, duration: float) -> np.ndarray:
    """(exp(-a t) - exp(-b t)) / (a - b) for all pairs, its limit -t exp(-a t) on the diagonal."""
    a, b = eigenvalues[:, None], eigenvalues[None, :]
    half = 0.5 * (a - b) * duration
    small = np.abs(half) < 1e-4
    sinhc = np.where(small, 1 + half**2 / 6, 0.0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        direct = (np.exp(-a * duration) - np.exp(-b * duration)) / (a - b)
    smooth = -duration * np.exp(-0.5 * (a + b) * duration) * sinhc
    return np.where(small, smooth, direct)


def step_in_field(basis, number: int, direction: tuple[float, ...], gradient: np.ndarray,
                  duration: float, known: dict, corrected: bool):
    """The exponential of one piece in a basis with fields, of which one has the ``number``.

    Along a direction, empty without gradient, whose strength in each column is ``(C,)`` rad/(ms
    um). ``known`` is a cache for one basis; ``corrected``: with what omitted modes do.
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


def drifting(basis, wave: Wave, direction: tuple[float, ...], q: np.ndarray, duration: float,
             operators: dict) -> Propagation | Stored:
    """The exponential of one piece in a basis with a `Gauge`.

    Along a direction, empty for a vector waveform, with the strength q ``(C,)`` of each column,
    rad/(ms um). ``operators`` is a cache for one basis, from direction to its operators.
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
    if wave.stored:
        rates, V = basis.stored
        low, high = np.linalg.eigvalsh(basis.storage)[[0, -1]]
        interval = (interval[0] + min(low, 0.0), interval[1] + max(high, 0.0))
        Z = V.T @ Z @ V if np.ndim(Z) else Z
        return Stored(V, Propagation(rates, V.T @ Y @ V, q, float(reach), duration, Z, interval))
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
