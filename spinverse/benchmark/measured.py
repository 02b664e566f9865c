"""Signals of a target: the acquisitions, and noise."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from ..acquisition import Signals
from ..errors import InputError

_PUBLISHED = {"pgse": {"b_s_per_mm2": [0, 1000, 2000, 3000, 4000, 5000], "directions": 30,
                       "delta_ms": [5, 10, 10], "Delta_ms": [6, 20, 60]}}
_RICH = {"pgse": {"b_s_per_mm2": [0, 1000, 2000, 3000, 4000, 5000, 10000, 20000, 40000],
                  "directions": 60, "delta_ms": [5, 5, 10, 10, 10],
                  "Delta_ms": [6, 20, 20, 60, 120]}}
#: Sections of a run file. ``published``: 540 measurements of three sequences, b to 5000 s/mm^2;
#: ``rich``: 2700 of five, b to 40,000 s/mm^2 (gradients up to 2.3 T/m).
ACQUISITIONS = {"published": _PUBLISHED, "rich": _RICH}


def add_noise(signals: Signals, snr: float, seed: int, name: str) -> Signals:
    """Magnitudes with Rician noise: |S + e1 + i e2|, normal e1, e2 of deviation |S(b=0)| / snr.

    S(b=0) is that of the row's own sequence.

    Args:
        signals: without noise.
        snr: signal over noise at b = 0; inf for none.
        seed: of the noise.
        name: of the data set; sets with different names have different noise.

    Raises:
        InputError: ``snr`` is not positive.
    """
    if not snr > 0:
        raise InputError(f"snr: {snr:g}, expected a positive number or inf")
    if np.isinf(snr):
        return replace(signals, values=signals.magnitude)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    e1, e2 = rng.normal(size=(2, len(signals))) * signals.reference / snr
    return replace(signals, values=np.abs(signals.values + e1 + 1j * e2))
