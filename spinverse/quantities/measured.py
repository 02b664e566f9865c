"""Signals as the fits see them: magnitudes, and which rows belong together."""

from __future__ import annotations

import numpy as np

from ..acquisition.signals import Signals
from ..errors import InputError
from .effective import unit_directions


def by_waveform_and_direction(signals: Signals) -> list[tuple[np.ndarray, int, np.ndarray]]:
    """Rows, waveform and axis, nan where it varies, of each; rows without gradient are in all."""
    table, groups = signals.acquisition, []
    for w, waveform in enumerate(table.waveforms):
        here = table.waveform_index == w
        rest = here & (table.b == 0)
        rows = np.flatnonzero(here & (table.b > 0))
        if not len(rows):
            continue
        if waveform.vector:
            groups.append((np.flatnonzero(here), w, np.full(3, np.nan)))
            continue
        axes = same_axis(table.directions[rows])
        for label in range(axes.max() + 1):
            mine = rows[axes == label]
            groups.append((np.sort(np.concatenate([np.flatnonzero(rest), mine])), w,
                           table.directions[mine[0]]))
    return groups


def same_axis(directions: np.ndarray) -> np.ndarray:
    """Label of each direction: equal for those that agree up to sign, to 1e-4, ``(n,)``."""
    n = unit_directions(directions)
    labels, found = np.full(len(n), -1), 0
    while (labels < 0).any():
        first = int(np.flatnonzero(labels < 0)[0])
        labels[(labels < 0) & (np.abs(n @ n[first]) > 1 - 5e-9)] = found
        found += 1
    return labels


def positive_magnitudes(signals: Signals) -> np.ndarray:
    """|S| of every row, or the InputError that one is 0 and has no logarithm."""
    magnitude = signals.magnitude
    for row in np.flatnonzero(magnitude <= 0)[:1]:
        raise InputError(f"signals: row {row} has magnitude 0, expected a positive one")
    return magnitude
