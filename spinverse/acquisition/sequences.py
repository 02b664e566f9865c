"""From the arguments that a person gives, or the columns of a file, to waveforms and directions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import InputError
from .directions import fibonacci_directions
from .pulses import PGSE, DoublePGSE
from .stored import FEXI
from .waveform import Waveform, floats, positive


def as_waveforms(waveforms) -> tuple[Waveform, ...]:
    """One waveform or several as a tuple."""
    return (waveforms,) if isinstance(waveforms, Waveform) else tuple(waveforms)


def unit_vectors(waveforms: Iterable[Waveform], directions) -> np.ndarray:
    """The directions that a person gave, shape (n, 3); one without meaning for vector waveforms."""
    for waveform in waveforms:
        if isinstance(waveform, Waveform) and waveform.vector != (directions is None):
            if directions is None:
                raise InputError(f"directions: missing for {waveform.describe()}, expected a "
                                 "number of directions or unit vectors (n, 3)")
            raise InputError(f"directions: given, but {waveform.describe()} has its own, expected "
                             "None")
    if directions is None:
        return np.array([[1.0, 0.0, 0.0]])
    if np.ndim(directions) == 0:
        return fibonacci_directions(directions)
    vectors = np.atleast_2d(floats("directions", directions))
    if vectors.ndim != 2 or vectors.shape[1] != 3:
        raise InputError(f"directions: shape {vectors.shape}, expected (n, 3)")
    return vectors


def make[W: Waveform](kind: type[W], echo_time=None, **parameters) -> list[W]:
    """Waveforms of a class from its parameters, each a number or a list; lists are paired."""
    missing = " and ".join(name for name, value in parameters.items() if value is None)
    if missing:
        needs = ", ".join(parameters)
        raise InputError(f"{missing}: missing, {kind.name} needs {needs} (times in ms; echo_time "
                         "is optional)")
    names = [*parameters, "echo_time"]
    columns = [floats(name, value) for name, value in parameters.items()]
    columns.append(floats("echo_time", np.nan if echo_time is None else echo_time))
    try:
        rows = np.broadcast_arrays(*(np.atleast_1d(column) for column in columns))
    except ValueError:
        used = columns if echo_time is not None else columns[:-1]
        raise InputError(f"{', '.join(names)}: {' and '.join(str(column.size) for column in used)} "
                         "values, expected lists of equal length or one") from None
    if rows[0].ndim != 1:
        raise InputError(f"{', '.join(names)}: expected numbers or flat lists")
    made = []
    for *values, end in zip(*(row.tolist() for row in rows), strict=True):
        arguments: dict[str, Any] = dict(zip(parameters, values, strict=True))
        made.append(kind(**arguments | {"echo_time": None if np.isnan(end) else end}))
    return made


def second_pairs(waveforms: list[DoublePGSE], first: np.ndarray,
                 second) -> tuple[tuple[DoublePGSE, ...], np.ndarray]:
    """Scalar double PGSE with ``first`` directions (n, 3), and ``second``, one or (n, 3).

    Gives waveforms, and which of them belongs to waveform w and direction j, shape
    (len(waveforms), n). Where the two directions are the same, the waveform stays scalar.
    """
    vectors = np.atleast_2d(floats("second_directions", second))
    if vectors.ndim != 2 or vectors.shape[1] != 3 or len(vectors) not in (1, len(first)):
        raise InputError(f"second_directions: shape {vectors.shape}, expected (3,) or, as "
                         f"directions, {first.shape}")
    vectors = np.broadcast_to(vectors, first.shape)
    table: dict[DoublePGSE, int] = {}
    each = np.zeros((len(waveforms), len(first)), dtype=int)
    for w, waveform in enumerate(waveforms):
        for j, pair in enumerate(zip(first, vectors, strict=True)):
            if not np.array_equal(*pair):
                one = DoublePGSE(waveform.delta, waveform.Delta, waveform.mixing_time,
                                 waveform.parallel, pair, waveform.echo_time)
            else:
                one = waveform
            each[w, j] = table.setdefault(one, len(table))
    return tuple(table), each


def filters(b, directions, delta, Delta, mixing_time, filter_b, detection_echo_time,
            **given) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[FEXI, ...]]:
    """b ``(N,)`` of both blocks, directions, index and waveforms, as of ``Acquisition.fexi``.

    What is ``given`` are parameters of the filter, one each or None.
    """
    missing = " and ".join(name for name, value in {
        "delta": delta, "Delta": Delta, "mixing_time": mixing_time, "filter_b": filter_b}.items()
        if value is None)
    if missing:
        raise InputError(f"{missing}: missing, FEXI needs delta, Delta, mixing_time (ms) and "
                         "filter_b (s/mm^2)")
    detection, mixing, filtering = (np.atleast_1d(floats(name, value)) for name, value in (
        ("b", b), ("mixing_time", mixing_time), ("filter_b", filter_b)))
    for name, values in (("b", detection), ("filter_b", filtering)):
        for value in values[~(np.isfinite(values) & (values >= 0.0))][:1]:
            raise InputError(f"{name}: {value:g}, expected a finite value >= 0 in s/mm^2")
    made, table = [], {}
    for time in mixing:
        for first in filtering:
            for second in detection:
                share = first / (first + second) if first else 0.0
                key = float(time), float(share)
                if key not in table:
                    table[key] = FEXI(delta, Delta, time, share, **given)
                    if detection_echo_time is not None:
                        begin = table[key].filter_echo_time + time
                        table[key] = FEXI(delta, Delta, time, share, **given, echo_time=(
                            begin + positive("detection_echo_time", detection_echo_time)))
                made.append((first + second, key))
    vectors = unit_vectors(table.values(), directions)
    place = {key: k for k, key in enumerate(table)}
    rows = np.repeat(np.arange(len(made)), len(vectors))
    return (np.array([total for total, _ in made])[rows], np.tile(vectors, (len(made), 1)),
            np.array([place[key] for _, key in made])[rows], tuple(table.values()))


def of_rows(b: np.ndarray, delta, Delta, echo_time,
            waveforms) -> tuple[np.ndarray, tuple[Waveform, ...]]:
    """Index (N,) and waveforms of rows; arguments and errors as ``Acquisition.from_rows``."""
    delta = _column("delta", delta, b.size)
    Delta = _column("Delta", Delta, b.size)
    echo_time = _column("echo_time", echo_time, b.size)
    given = [None] * b.size if waveforms is None else list(waveforms)
    if len(given) != b.size:
        raise InputError(f"waveforms: {len(given)} rows, expected {b.size} as in b")
    made: dict[tuple, PGSE] = {}
    position: dict[Waveform, int] = {}
    index = np.full(b.size, -1)
    for row, waveform in enumerate(given):
        if waveform is None:
            waveform = _row_pgse(row, b[row], delta[row], Delta[row], echo_time[row], made)
        if waveform is not None:
            index[row] = position.setdefault(waveform, len(position))
    for row in np.flatnonzero(index < 0):
        index[row] = position[_only_waveform(int(row), echo_time[row], position)]
    return index, tuple(position)


def _column(field: str, values, rows: int) -> np.ndarray:
    """``values`` (None, one number, or one a row) as shape (rows,), nan where missing."""
    array = floats(field, np.nan if values is None else values)
    if array.ndim == 0:
        return np.full(rows, float(array))
    if array.shape != (rows,):
        raise InputError(f"{field}: shape {array.shape}, expected one number or ({rows},)")
    return array


def _row_pgse(row: int, b: float, delta: float, Delta: float, echo_time: float,
              made: dict[tuple, PGSE]) -> PGSE | None:
    """The PGSE of a row, from ``made`` if it is there; None if a b = 0 row lacks its times."""
    missing = " and ".join(n for n, t in (("delta", delta), ("Delta", Delta)) if np.isnan(t))
    if missing and b == 0.0:
        return None
    if missing:
        raise InputError(f"{missing}: missing in row {row}, where b = {b:g}; PGSE needs delta and "
                         "Delta in ms (TE is optional)")
    # nan never equals itself
    key = (float(delta), float(Delta), None if np.isnan(echo_time) else float(echo_time))
    if key not in made:
        try:
            made[key] = PGSE(*key)  # type: ignore[arg-type]  # None is TE as it follows
        except InputError as error:
            raise InputError(f"row {row}: {error}") from None
    return made[key]


def _only_waveform(row: int, echo_time: float, waveforms: Iterable[Waveform]) -> Waveform:
    """The waveform that a b = 0 row without timing can only mean."""
    fits = [
        waveform for waveform in waveforms
        if np.isnan(echo_time) or np.isclose(waveform.echo_time, echo_time, rtol=1e-6, atol=0.0)]
    # without gradient only TE and storage matter: of waveforms with the same any will do
    if len({str([f"{time:.6g}" for time in (waveform.echo_time, *np.ravel(waveform.storage))])
            for waveform in fits}) != 1:
        raise InputError(f"delta and Delta: missing in row {row} (b = 0), where {len(fits)} "
                         "sequences would fit")
    return fits[0]
