"""What was understood of an acquisition, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spinverse.units import describe_b

if TYPE_CHECKING:
    from spinverse.acquisition.table import Acquisition

# Beyond these a unit was probably mistaken; no scanner comes near them.
_LARGEST_GRADIENT = 5000.0  # mT/m
_SMALLEST_TOP_B = 20.0  # s/mm^2
_LARGEST_B = 1e6  # s/mm^2
_DELTA = 0.1, 1000.0  # ms
_TE = 0.5, 5000.0  # ms, of waveforms without delta


def lines(acquisition: Acquisition, most: int | None = None) -> list[str]:
    """A line for the table, one a waveform (of ``most`` at the most), two for b, one a warning."""
    strength = acquisition.gradient_strength_mT_m
    text = [f"{len(acquisition)} measurements, {len(acquisition.waveforms)} gradient waveform(s)"]
    for k, waveform in enumerate(acquisition.waveforms[:most]):
        rows = acquisition.waveform_index == k
        text.append(f"{waveform.describe()}: diffusion time {waveform.diffusion_time:.4g} ms, "
                    f"{np.count_nonzero(rows)} rows, gradient up to {strength[rows].max():.4g} "
                    f"mT/m{_shape(waveform)}")
    if most is not None and len(acquisition.waveforms) > most:
        text.append(f"and {len(acquisition.waveforms) - most} waveforms more")
    levels = np.unique(acquisition.b)
    if levels.size <= 12:
        text.append(f"b {', '.join(f'{b:g}' for b in levels)} s/mm^2")
    else:
        text.append(f"b {levels.size} values, {levels[0]:g} to {levels[-1]:g} s/mm^2")
    text.append(f"largest b {describe_b(levels[-1])}")
    return text + _unit_warnings(acquisition, strength.max(), levels[-1])


def _shape(waveform) -> str:
    """The b-tensor's eigenvalues over b, for a vector waveform."""
    if not waveform.vector:
        return ""
    shares = np.linalg.eigvalsh(waveform.b_tensor_factor())[::-1] / waveform.b_factor
    return f", b-tensor {', '.join(f'{max(share, 0.0):.2g}' for share in shares)} of b"


def _unit_warnings(acquisition: Acquisition, strength: float, top: float) -> list[str]:
    """A line for each figure that looks as if a unit was mistaken."""
    text = []
    if strength > _LARGEST_GRADIENT:
        text.append(f"warning: gradient {strength:.4g} mT/m is far beyond any scanner")
    if 0.0 < top < _SMALLEST_TOP_B:
        text.append(f"warning: largest b {top:g} s/mm^2 is tiny, was it meant in ms/um^2?")
    if top > _LARGEST_B:
        text.append(f"warning: largest b {top:g} s/mm^2 is huge, is it in s/mm^2?")
    pulses = np.isfinite(acquisition.delta)
    for name, times, (low, high), asked in (
            ("delta", acquisition.delta[pulses], _DELTA, "was it meant"),
            ("TE", acquisition.echo_time[~pulses], _TE, "were the times")):
        for time in np.unique(times[(times < low) | (times > high)]):
            kind, unit = ("short", "s") if time < low else ("long", "us")
            text.append(f"warning: {name} {time:g} ms is very {kind}, {asked} in {unit}?")
    return text
