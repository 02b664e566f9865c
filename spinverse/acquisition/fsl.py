"""FSL's bval and bvec files: b-values in s/mm^2 and directions, without any time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from . import files
from .table import Acquisition
from .waveform import Waveform


def read_fsl(bval: str | Path, bvec: str | Path, delta=None, Delta=None, echo_time=None,
             waveform: Waveform | None = None, b0_threshold: float = 0.0) -> Acquisition:
    """Read an acquisition from a bval and a bvec file.

    The directions are taken as they stand, in the file's axes. Vectors within 1 % of unit length
    are normalised; rows with b = 0 may have zero or nan vectors.

    Args:
        bval: File with N b-values in s/mm^2, in a row or a column.
        bvec: File with the directions, 3 lines of N numbers, or N lines of 3 (three by three: the
            lines are x, y and z).
        delta, Delta: Pulse length and separation in ms, one or (N,); unless there is ``waveform``.
        echo_time: TE in ms, one or (N,); Delta + delta unless given.
        waveform: The scalar waveform of all rows, if they are not PGSE.
        b0_threshold: b up to this many s/mm^2 counts as 0.

    Raises:
        InputError: ``delta`` or ``Delta`` missing, a file that is missing or malformed, files of
            different length, a direction that is no unit vector where b > 0, or a value that PGSE
            refuses.
    """
    if waveform is None:
        files.require_times(bval, delta, Delta, "bval and bvec files hold no times")
    elif any(time is not None for time in (delta, Delta, echo_time)):
        raise InputError("waveform: given beside delta, Delta or TE, expected one or the other")
    elif waveform.vector:
        raise InputError(f"waveform: {waveform.name} has its own directions, expected a scalar one "
                         f"for {bvec}")
    rows = _rows(bval)
    if len(rows) > 1 and any(len(row) != 1 for row in rows):
        raise InputError(f"{bval}: {len(rows)} lines, expected b-values in one line or one column")
    b = np.array([value for row in rows for value in row])
    for row in np.flatnonzero(~np.isfinite(b) | (b < 0.0))[:1]:
        raise InputError(f"{bval}: row {row} is {b[row]:g}, expected a b-value >= 0 in s/mm^2")
    b = files.without_small_b(bval, b, b0_threshold)
    vectors = files.tidy_directions(bvec, b, _vectors(bvec, b.size, bval))
    waveforms = None if waveform is None else [waveform] * b.size
    try:
        return Acquisition.from_rows(b, vectors, delta, Delta, echo_time, waveforms)
    except InputError as error:
        raise InputError(f"{bval}: {error}") from None


def write_fsl(bval: str | Path, bvec: str | Path, acquisition: Acquisition) -> None:
    """Write b-values and directions, in 3 lines of N numbers; the times are not in these files.

    Raises:
        InputError: A waveform is vector valued, or a folder does not exist.
    """
    for waveform in acquisition.waveforms:
        if waveform.vector:
            raise InputError(f"{bvec}: {waveform.describe()} has no single direction for FSL files")
    vectors = np.where(acquisition.b[:, None] > 0.0, acquisition.directions, 0.0)
    files.write_text(bval, _line(acquisition.b))
    files.write_text(bvec, "".join(_line(component) for component in vectors.T))


def _line(values: np.ndarray) -> str:
    return " ".join(repr(value).removesuffix(".0") for value in values.tolist()) + "\n"


def _rows(path) -> list[list[float]]:
    """The numbers of each line that is not empty."""
    lines = [(k, line.split()) for k, line in enumerate(files.read_lines(path), start=1)]
    rows = [files.numbers(path, k, cells) for k, cells in lines if cells]
    if not rows:
        raise InputError(f"{path}: the file is empty")
    return rows


def _vectors(path, count: int, bval) -> np.ndarray:
    """Directions, shape (count, 3), from either orientation; nan becomes 0."""
    rows = _rows(path)
    if len({len(row) for row in rows}) > 1:
        raise InputError(f"{path}: lines of different length, expected 3 x N or N x 3 numbers")
    table = np.nan_to_num(np.array(rows), nan=0.0, posinf=np.inf, neginf=-np.inf)
    if table.shape == (3, count):
        table = table.T
    if table.shape != (count, 3):
        raise InputError(f"{path}: {table.shape[0]} x {table.shape[1]} numbers, expected 3 x "
                         f"{count} or {count} x 3 as there are {count} b-values in {bval}")
    return table
