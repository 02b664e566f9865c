"""What was understood of an acquisition, in words, and what is probably in another unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..units import b_to_si, describe_b, gradient_to_si, other_unit, time_from_internal

if TYPE_CHECKING:
    from .table import Acquisition

# Beyond these a unit was probably mistaken; no scanner comes near them.
LARGEST_B = 10.0, 1e5  # s/mm^2, of the largest b of a table
ECHO_TIME = 1.0, 1e4  # ms
GRADIENT = 1e4  # mT/m


def lines(acquisition: Acquisition, most: int | None = None) -> list[str]:
    """A line for the table, one a waveform (of ``most`` at the most), two for b."""
    strength = acquisition.gradient_strength_mT_m
    text = [f"{len(acquisition)} measurements, {len(acquisition.waveforms)} gradient waveform(s)"]
    for k, waveform in enumerate(acquisition.waveforms[:most]):
        rows, shape = acquisition.waveform_index == k, ""
        if waveform.vector:
            shares = np.linalg.eigvalsh(waveform.b_tensor_factor())[::-1] / waveform.b_factor
            shape = f", b-tensor {', '.join(f'{max(share, 0.0):.2g}' for share in shares)} of b"
        text.append(f"{waveform.describe()}: diffusion time {waveform.diffusion_time:.4g} ms, "
                    f"{np.count_nonzero(rows)} rows, gradient up to {strength[rows].max():.4g} "
                    f"mT/m{shape}")
    if most is not None and len(acquisition.waveforms) > most:
        text.append(f"and {len(acquisition.waveforms) - most} waveforms more")
    levels = np.unique(acquisition.b)
    if levels.size <= 12:
        text.append(f"b {', '.join(f'{b:g}' for b in levels)} s/mm^2")
    else:
        text.append(f"b {levels.size} values, {levels[0]:g} to {levels[-1]:g} s/mm^2")
    text.append(f"largest b {describe_b(levels[-1])}")
    return text


def unit_warnings(acquisition: Acquisition) -> list[str]:
    """A line for each b-value, time or gradient that looks as if a unit was mistaken."""
    found, b = [], float(acquisition.b.max())
    if 0 < b < LARGEST_B[0] or b > LARGEST_B[1]:
        what = "no signal falls by more than 1 or 2 %" if b < LARGEST_B[0] else \
            "more than scanners reach"
        meant = {"ms/um^2": 1e3, "s/m^2": 1e-6, "s/cm^2": 1e-2}
        found.append(f"the largest b is {b:g} s/mm^2, that is {b_to_si(b):g} s/m^2: {what}"
                     + other_unit(b, meant, LARGEST_B))
    times = [(w.name, w.echo_time) for w in acquisition.waveforms
             if not ECHO_TIME[0] <= w.echo_time <= ECHO_TIME[1]]
    found += [f"{name} with TE {time:g} ms, that is {time_from_internal(time):g} s"
              + other_unit(time, {"s": 1e3, "us": 1e-3}, ECHO_TIME) for name, time in times]
    strongest = float(acquisition.gradient_strength_mT_m.max())
    if strongest > GRADIENT and not times and b <= LARGEST_B[1]:
        found.append(f"gradients of {strongest:.3g} mT/m, that is {gradient_to_si(strongest):.3g} "
                     "T/m, more than magnets have (a pulse length in s?)")
    return found
