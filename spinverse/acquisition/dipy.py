"""Acquisitions from and to the gradient tables of DIPY, which need not be installed to import this.

DIPY has b in s/mm^2 and small_delta and big_delta in s.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..units import time_from_internal, time_to_internal
from .files import require_times, tidy_directions, without_small_b
from .table import Acquisition
from .waveform import floats


def from_dipy(table, delta=None, Delta=None, echo_time=None,
              b0_threshold: float = 0.0) -> Acquisition:
    """An acquisition from a DIPY gradient table.

    Args:
        table: A ``dipy.core.gradients.GradientTable``, or anything that has ``bvals`` (N,) and
            ``bvecs`` (N, 3), and perhaps ``small_delta`` and ``big_delta``.
        delta, Delta: Pulse length and separation in ms, one or (N,), in place of the table's
            small_delta and big_delta.
        echo_time: TE in ms, one or (N,); Delta + delta unless given.
        b0_threshold: b up to this many s/mm^2 counts as 0.

    Raises:
        InputError: Not a gradient table, ``delta`` or ``Delta`` neither given nor in the table, a
            b-tensor that is not linear, or a value that the acquisition refuses.
    """
    source = "gradient table"
    try:
        b = np.array(table.bvals, dtype=float)
        vectors = np.array(table.bvecs, dtype=float)
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{source}: {type(table).__name__}, expected an object with bvals and "
                         "bvecs") from None
    if b.ndim != 1 or vectors.shape != (b.size, 3):
        raise InputError(f"{source}: bvals {b.shape} and bvecs {vectors.shape}, expected (N,) and "
                         "(N, 3)")
    b = without_small_b(source, b, b0_threshold)
    tensors = getattr(table, "btens", None)
    if tensors is not None:
        largest = np.linalg.eigvalsh(np.asarray(tensors, dtype=float))[:, -1]
        traces = np.trace(np.asarray(tensors, dtype=float), axis1=1, axis2=2)
        for row in np.flatnonzero((b > 0.0) & (largest < 0.99 * traces))[:1]:
            raise InputError(f"{source}: row {row} has a b-tensor that is not linear, which leaves "
                             "the waveform open; expected it in Acquisition.sampled")
    delta = _milliseconds(table, "small_delta") if delta is None else delta
    Delta = _milliseconds(table, "big_delta") if Delta is None else Delta
    require_times(source, delta, Delta, "it has no small_delta or big_delta (s)")
    try:
        return Acquisition.from_rows(b, tidy_directions(source, b, np.nan_to_num(vectors)), delta,
                                     Delta, echo_time)
    except InputError as error:
        raise InputError(f"{source}: {str(error).removeprefix(f'{source}: ')}") from None


def _milliseconds(table, name: str):
    """A time of the table in ms, or None."""
    seconds = getattr(table, name, None)
    return None if seconds is None else time_to_internal(floats(f"gradient table: {name}", seconds))


def to_dipy(acquisition: Acquisition, **options):
    """A DIPY ``GradientTable`` with small_delta and big_delta in s, where the waveform has them.

    Vector waveforms go in as b-tensors.

    Args:
        acquisition: Measurements of one delta and Delta (``select`` chooses them).
        options: For ``dipy.core.gradients.gradient_table``; b0_threshold is 0 unless given.

    Raises:
        InputError: DIPY is not installed, or there are several pulse timings.
    """
    try:
        from dipy.core.gradients import gradient_table
    except ImportError as error:
        raise InputError(f"to_dipy: needs DIPY, which cannot be imported ({error})") from None
    times = {}
    for name, column in (("small_delta", acquisition.delta), ("big_delta", acquisition.Delta)):
        values = np.unique(column)
        if values.size > 1:
            raise InputError(f"to_dipy: {values.size} values of {name} "
                             f"({', '.join(f'{v:g}' for v in values)} ms), expected one: a DIPY "
                             "table has one; select its rows first")
        times[name] = None if np.isnan(values[0]) else float(time_from_internal(values[0]))
    vectors = np.where(acquisition.b[:, None] > 0.0, acquisition.directions, 0.0)
    if any(waveform.vector for waveform in acquisition.waveforms):
        options.setdefault("btens", acquisition.b_tensors)
    options.setdefault("b0_threshold", 0)
    return gradient_table(acquisition.b, bvecs=vectors, **times, **options)
