"""Periods in which magnetisation is stored along z, in the pieces of a waveform.

There is no gradient in them, and R1 is in the place of R2 (`spinverse.acquisition.waveform`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...acquisition.table import Acquisition
from ...acquisition.waveform import Waveform
from ...errors import InputError
from ...problem import BlochTorrey
from .echoes import split


@dataclass(frozen=True)
class _Stored:
    """What a piece of storage has in the place of a gradient; false, as there is none."""

    def __bool__(self) -> bool:
        return False


STORED = _Stored()


def stores(problem: BlochTorrey, acquisition: Acquisition) -> bool:
    """Whether any waveform stores magnetisation; the problem is told.

    Raises:
        InputError: it does, and the problem has extra terms.
    """
    found = [waveform for waveform in acquisition.waveforms if waveform.storage]
    if found and problem.extra_terms is not None:
        raise InputError(f"extra_terms: with {found[0].describe()}; what they do to magnetisation "
                         "that is stored along z is not known, expected none")
    problem.storing = problem.storing or bool(found)
    return bool(found)


def refuse(acquisition: Acquisition, where: str) -> None:
    """Raise InputError for a waveform that stores magnetisation."""
    for waveform in acquisition.waveforms:
        if waveform.storage:
            raise InputError(f"{where}: {waveform.describe()} stores magnetisation along z, "
                             "expected engine matrix_formalism or time_stepping")


def ends(waveform: Waveform) -> tuple[float, ...]:
    """Of all periods of storage, ms, ascending."""
    return tuple(time for period in waveform.storage for time in period)


def marked(waveform: Waveform, pieces: Iterable[tuple]) -> list[tuple]:
    """Pieces (duration, value) of a whole waveform, cut at `ends`, with `STORED` in between."""
    result, begin = [], 0.0
    for duration, value in split(pieces, ends(waveform)):
        result.append((duration, STORED if waveform.stored(begin + duration / 2) else value))
        begin += duration
    return result
