"""Pairs of rectangular pulses in a small basis of modes, many directions at a time.

For searches that solve thousands of small problems: a fixed splitting of second order instead of
the error-controlled propagation of `spinverse.engines.modal.matrix_formalism`. One pulse is enough,

    S = sum_k exp(-lambda_k tau) |u_k(delta)|^2,

for the operators are symmetric and the second pulse mirrors the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ...acquisition.table import Acquisition
from ...errors import InputError
from ..schedule.groups import plan

FIRST_STEPS = (0.03, 0.07, 0.15, 0.25)  # ms: magnetisation is not smooth when a pulse begins


@dataclass(frozen=True, eq=False)
class Pulses:
    """Measurements with the same pulse and the same strengths and gaps, in several directions.

    Attributes:
        duration: delta, ms.
        directions: ``(D, 3)`` unit vectors.
        gradient: ``(m,)`` gamma G, rad/(ms um).
        gap: ``(m,)`` time between the pulses, ms.
        rows: ``(D, m)`` rows of the acquisition.
    """

    duration: float
    directions: np.ndarray
    gradient: np.ndarray
    gap: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class PulseTable:
    """An acquisition as pulses, and its rows without gradient.

    Attributes:
        number: of rows.
        pulses: batches of measurements.
        still: ``(n,)`` rows without gradient.
        echo_time: ``(n,)`` ms of these.
    """

    number: int
    pulses: list[Pulses]
    still: np.ndarray
    echo_time: np.ndarray

    @classmethod
    def of(cls, acquisition: Acquisition) -> PulseTable:
        """Raises InputError for waveforms other than two opposite rectangular pulses."""
        batches: dict[tuple, list] = {}
        still: list[tuple[int, float]] = []
        for group in plan(acquisition, 0.1, 3):
            moving = [piece for piece in group.pieces if np.any(piece[1])]
            if not moving:
                still += [(row, acquisition.waveforms[acquisition.waveform_index[row]].echo_time)
                          for row in group.rows]
                continue
            if group.fold != -1 or len(group.pieces) != 1:
                raise InputError("shape search: expected pairs of opposite rectangular pulses "
                                 "without a pause before them (PGSE) in all measurements; use "
                                 "stages of facets for other waveforms")
            duration, value, direction = group.pieces[0]
            key = (duration, tuple(np.round(np.array(group.strength) * value, 12)),
                   tuple(group.gap))
            batches.setdefault(key, []).append((direction, group.rows))
        pulses = [Pulses(duration, np.array([d for d, _ in items]), np.array(gradient),
                         np.array(gap), np.array([rows for _, rows in items]))
                  for (duration, gradient, gap), items in batches.items()]
        rows = np.array([row for row, _ in still], dtype=int)
        return cls(len(acquisition), pulses, rows, np.array([time for _, time in still]))


def steps(duration: float, longest: float) -> np.ndarray:
    """Steps of a pulse, ms: growing from a short first one up to ``longest``."""
    found, time = [], 0.0
    for step in FIRST_STEPS:
        if step < longest and time + step < duration / 3:
            found.append(step)
            time += step
    rest = int(np.ceil((duration - time) / longest - 1e-9))
    return np.array(found + [(duration - time) / rest] * rest)


def signals(table: PulseTable, rates: np.ndarray, start: np.ndarray, positions: np.ndarray,
            longest: float) -> np.ndarray:
    """Signals of a table in a basis of modes.

    Args:
        table: the measurements, N rows.
        rates: ``(K,)`` decay rates of the modes, 1/ms.
        start: ``(K,)`` overlap of the modes with a uniform magnetisation.
        positions: ``(3, K, K)`` position operators, um.
        longest: longest step, ms.

    Returns:
        ``(N,)`` real.
    """
    result = np.zeros(table.number)
    result[table.still] = np.exp(-np.outer(table.echo_time, rates)) @ start**2
    frames: dict[bytes, tuple] = {}
    for pulse in table.pulses:
        key = pulse.directions.tobytes()
        if key not in frames:
            xi, W = np.linalg.eigh(np.tensordot(pulse.directions, positions, axes=1))
            frames[key] = (xi, W, np.ascontiguousarray(W.transpose(0, 2, 1)), {})
        xi, W, Wt, transfer = frames[key]
        h = steps(pulse.duration, longest)
        first = Wt @ (np.exp(-rates * h[0] / 2) * start)
        y = np.repeat(first[:, :, None], len(pulse.gradient), axis=2).astype(complex)
        last = None
        for k, step in enumerate(h):
            if step != last:
                phase, last = np.exp(-1j * step * xi[:, :, None] * pulse.gradient), step
            y *= phase
            if k < len(h) - 1:
                between = round((step + h[k + 1]) / 2, 12)
                if between not in transfer:
                    transfer[between] = (Wt * np.exp(-rates * between)) @ W
                y = (transfer[between] @ y.view(float)).view(complex)
        u = (W @ y.view(float)).view(complex)
        decay = np.exp(-rates * h[-1])[:, None] * np.exp(-rates[:, None] * pulse.gap)
        result[pulse.rows] = np.einsum("dkm,km->dm", u.real**2 + u.imag**2, decay)
    return result


def signals_of_blocks(table: PulseTable, rates: np.ndarray, start: np.ndarray, modes: np.ndarray,
                      positions: list[np.ndarray], longest: float) -> np.ndarray:
    """As `signals`, for position operators that are block diagonal; in single precision.

    Args:
        table: the measurements, N rows.
        rates: ``(K,)`` decay rates, 1/ms.
        start: ``(K,)`` overlap of the modes with a uniform magnetisation.
        modes: ``(K, K)`` in the basis of the blocks.
        positions: of each block, ``(3, n, n)`` um.
        longest: longest step, ms.
    """
    single = np.float32
    result = np.zeros(table.number)
    result[table.still] = np.exp(-np.outer(table.echo_time, rates)) @ start**2
    ends = np.cumsum([0] + [x.shape[1] for x in positions])
    rows = [modes[a:b].T.astype(single) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    positions = [x.astype(single) for x in positions]
    frames: dict[bytes, tuple] = {}

    def frame(direction):
        key = direction.tobytes()
        if key not in frames:
            found = [scipy.linalg.eigh(np.tensordot(direction.astype(single), x, axes=1),
                                       driver="evd", check_finite=False) for x in positions]
            R = np.concatenate([r @ W for r, (_, W) in zip(rows, found, strict=True)], axis=1)
            frames[key] = (np.concatenate([xi for xi, _ in found]), R,
                           np.ascontiguousarray(R.T), {})
        return frames[key]

    def decay(time):
        return np.exp(-rates * time).astype(single)[:, None]

    for pulse in table.pulses:
        h = steps(pulse.duration, longest)
        between = np.round((h[:-1] + h[1:]) / 2, 9)
        common = between[-1] if len(between) else 0.0
        weight = decay(h[-1]) * np.exp(-rates[:, None] * pulse.gap)
        gradient = pulse.gradient.astype(single)
        for direction, where in zip(pulse.directions, pulse.rows, strict=True):
            xi, R, Rt, transfer = frame(direction)
            first = Rt @ (np.exp(-rates * h[0] / 2) * start).astype(single)
            y = np.repeat(first[:, None], len(gradient), axis=1).astype(np.complex64)
            last = None
            for k, step in enumerate(h):
                if step != last:
                    phase = np.exp(single(-step) * 1j * xi[:, None] * gradient)
                    phase, last = phase.astype(np.complex64), step
                y *= phase
                if k == len(h) - 1:
                    break
                if between[k] == common:  # a step that comes many times
                    if common not in transfer:
                        transfer[common] = (Rt * decay(common)[:, 0]) @ R
                    y = (transfer[common] @ y.view(single)).view(np.complex64)
                else:
                    y = (Rt @ (decay(between[k]) * (R @ y.view(single)))).view(np.complex64)
            u = (R @ y.view(single)).view(np.complex64).astype(complex)
            result[where] = ((u.real**2 + u.imag**2) * weight).sum(axis=0)
    return result
