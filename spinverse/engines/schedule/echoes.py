"""180-degree pulses: when they are, and pieces of a waveform that end at them."""

from __future__ import annotations

from collections.abc import Iterable

from ...acquisition.pulses import DoublePGSE
from ...acquisition.waveform import Waveform
from ...errors import InputError

_SAME = 1e-9  # times closer than this, relative to the end, are one


def refocusing_times(waveform: Waveform) -> tuple[float, ...]:
    """Times of the 180-degree pulses, ms: those of samples that have them, else TE / 2.

    Raises:
        InputError: a double PGSE, which does not say where its pulses are.
    """
    if isinstance(waveform, DoublePGSE):
        raise InputError("echo_sign: a double PGSE does not say when its 180-degree pulses are; "
                         "expected samples with refocusing_times (Acquisition.sampled)")
    return getattr(waveform, "refocusing_times", ()) or (waveform.echo_time / 2,)


def split(pieces: Iterable[tuple], cuts: Iterable[float]) -> list[tuple]:
    """Pieces (duration, ...) one after the other, cut in two at the times ``cuts``, ms."""
    pieces = list(pieces)
    same = _SAME * sum(piece[0] for piece in pieces)
    result, begin = [], 0.0
    for duration, *rest in pieces:
        end = begin + duration
        for cut in cuts:
            if begin + same < cut < end - same:
                result.append((cut - begin, *rest))
                begin = cut
        result.append((end - begin, *rest))
        begin = end
    return result
