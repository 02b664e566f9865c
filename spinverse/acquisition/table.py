"""The acquisition: a flat table with one measurement a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from spinverse.acquisition.directions import fibonacci_directions
from spinverse.acquisition.waveforms import PGSE, Waveform
from spinverse.errors import InputError
from spinverse.units import b_to_internal, describe_b, gradient_from_internal

UNIT_TOLERANCE = 1e-6

# Beyond these a unit was probably mistaken; no scanner comes near them.
_LARGEST_GRADIENT = 5000.0  # mT/m
_SMALLEST_TOP_B = 20.0  # s/mm^2
_LARGEST_B = 1e6  # s/mm^2
_SMALLEST_DELTA, _LARGEST_DELTA = 0.1, 1000.0  # ms


def _floats(field: str, values) -> np.ndarray:
    """A fresh float array, or the InputError that names ``field``."""
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{field}: expected numbers, got {values!r:.60}") from None


@dataclass(frozen=True, eq=False)
class Acquisition:
    """Measurements, one a row. Rows are counted from 0.

    The waveforms are kept once each, in the order of their first use, whatever was passed: two
    equal tables compare equal. The arrays are read-only copies.

    Attributes:
        b: b-values in s/mm^2, shape (N,).
        directions: Unit vectors, shape (N, 3); where b = 0 any finite vector will do.
        waveform_index: Which waveform each row uses, shape (N,), int.
        waveforms: The distinct gradient waveforms.

    Raises:
        InputError: Wrong shapes, values that are not finite, b < 0, a direction that is not a unit
            vector to 1e-6 where b > 0, or an index without a waveform.
    """

    b: np.ndarray
    directions: np.ndarray
    waveform_index: np.ndarray
    waveforms: tuple[Waveform, ...]

    def __post_init__(self) -> None:
        b, directions = _floats("b", self.b), _floats("directions", self.directions)
        if b.ndim != 1 or b.size == 0:
            raise InputError(f"b: shape {b.shape}, expected (N,) with at least one measurement")
        if directions.shape != (b.size, 3):
            raise InputError(f"directions: shape {directions.shape}, expected {(b.size, 3)}")
        for row in np.flatnonzero(~(np.isfinite(b) & (b >= 0.0)))[:1]:
            raise InputError(f"b: row {row} is {b[row]:g}, expected a finite value >= 0 in s/mm^2")
        for row in np.flatnonzero(~np.all(np.isfinite(directions), axis=1))[:1]:
            raise InputError(f"directions: row {row} is {directions[row]}, expected finite numbers")
        norms = np.linalg.norm(directions, axis=1)
        for row in np.flatnonzero((b > 0.0) & (np.abs(norms - 1.0) > UNIT_TOLERANCE))[:1]:
            raise InputError(
                f"directions: row {row} has length {norms[row]:.9g}, expected a unit vector"
            )
        index, waveforms = self._distinct_waveforms(b.size)
        for array in (b, directions, index):
            array.setflags(write=False)
        object.__setattr__(self, "b", b)
        object.__setattr__(self, "directions", directions)
        object.__setattr__(self, "waveform_index", index)
        object.__setattr__(self, "waveforms", waveforms)

    def _distinct_waveforms(self, rows: int) -> tuple[np.ndarray, tuple[Waveform, ...]]:
        """Index and waveforms with equal ones merged, unused ones dropped, in order of use."""
        waveforms, index = tuple(self.waveforms), np.asarray(self.waveform_index)
        for waveform in waveforms:
            if not isinstance(waveform, Waveform):
                raise InputError(f"waveforms: {waveform!r} is not a Waveform")
        if index.shape != (rows,) or index.dtype.kind not in "iu":
            raise InputError(
                f"waveform_index: {index.dtype} of shape {index.shape}, expected ints ({rows},)"
            )
        for row in np.flatnonzero((index < 0) | (index >= len(waveforms)))[:1]:
            raise InputError(
                f"waveform_index: row {row} is {index[row]}, expected 0 to {len(waveforms) - 1}"
            )
        used, first_rows = np.unique(index, return_index=True)
        position: dict[Waveform, int] = {}
        renumber = np.zeros(len(waveforms), dtype=int)
        for old in used[np.argsort(first_rows)]:
            renumber[old] = position.setdefault(waveforms[old], len(position))
        return renumber[index], tuple(position)

    @classmethod
    def product(cls, waveforms: Sequence[Waveform], b, directions) -> Acquisition:
        """Every waveform with every b-value and every direction; the last varies fastest.

        Args:
            waveforms: Gradient waveforms.
            b: b-value or list of them, s/mm^2.
            directions: A number of Fibonacci directions, or unit vectors of shape (n, 3) or (3,).

        Raises:
            InputError: As the class, and for directions of another shape.
        """
        b = np.atleast_1d(_floats("b", b))
        if np.ndim(directions) == 0:
            vectors = fibonacci_directions(directions)
        else:
            vectors = np.atleast_2d(_floats("directions", directions))
            if vectors.ndim != 2 or vectors.shape[1] != 3:
                raise InputError(f"directions: shape {vectors.shape}, expected (n, 3)")
        waveforms = tuple(waveforms)
        w, i, j = np.indices((len(waveforms), b.size, len(vectors))).reshape(3, -1)
        return cls(b.ravel()[i], vectors[j], w, waveforms)

    @classmethod
    def pgse(cls, b, directions, delta=None, Delta=None, echo_time=None) -> Acquisition:
        """Pulsed-gradient spin echo: sequences x b x directions, the last varies fastest.

        Args:
            b: b-value or list of them, s/mm^2.
            directions: A number of Fibonacci directions, or unit vectors of shape (n, 3) or (3,).
            delta: Pulse length or lengths, ms.
            Delta: Pulse separation or separations, ms; paired with ``delta`` after broadcasting.
            echo_time: TE, ms, one or as many as pairs; Delta + delta if not given.

        Raises:
            InputError: ``delta`` or ``Delta`` missing, lists of different length, or any value that
                PGSE or the table refuses.
        """
        missing = " and ".join(n for n, v in (("delta", delta), ("Delta", Delta)) if v is None)
        if missing:
            raise InputError(f"{missing}: missing, expected the time or times of the pulses in ms")
        times = [
            _floats("delta", delta),
            _floats("Delta", Delta),
            _floats("echo_time", np.nan if echo_time is None else echo_time),
        ]
        try:
            pairs = np.broadcast_arrays(*(np.atleast_1d(time) for time in times))
        except ValueError:
            sizes = " and ".join(str(time.size) for time in times[: 2 if echo_time is None else 3])
            raise InputError(
                f"delta, Delta, echo_time: {sizes} values, expected lists of equal length or one"
            ) from None
        if pairs[0].ndim != 1:
            raise InputError("delta, Delta, echo_time: expected numbers or flat lists")
        waveforms = [_pgse(*pair) for pair in zip(*pairs, strict=True)]
        return cls.product(waveforms, b, directions)

    @classmethod
    def from_rows(
        cls, b, directions, delta=None, Delta=None, echo_time=None, waveforms=None
    ) -> Acquisition:
        """Measurements row by row, as tables in files have them.

        Rows with b = 0 may leave delta or Delta out (nan); they then belong to the table's only
        sequence (to the only one with their TE, if that is given).

        Args:
            b: b-values in s/mm^2, shape (N,).
            directions: Unit vectors, shape (N, 3); free where b = 0.
            delta: Pulse length in ms, one or (N,).
            Delta: Pulse separation in ms, one or (N,).
            echo_time: TE in ms, one or (N,); Delta + delta where missing or nan.
            waveforms: N waveforms, None where the row is the PGSE that its times say; the times of
                the other rows are not looked at.

        Raises:
            InputError: b > 0 without delta or Delta, a row with b = 0 whose sequence is unknown, or
                any value that PGSE or the table refuses; names the row.
        """
        b = np.atleast_1d(_floats("b", b))
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
            index[row] = position[_only_waveform(row, echo_time[row], position)]
        return cls(b, directions, index, tuple(position))

    @classmethod
    def concatenate(cls, tables: Iterable[Acquisition]) -> Acquisition:
        """One table after the other; equal waveforms are merged."""
        tables = list(tables)
        if not tables:
            raise InputError("acquisitions: nothing to concatenate")
        offsets = np.cumsum([0] + [len(table.waveforms) for table in tables])
        return cls(
            np.concatenate([table.b for table in tables]),
            np.concatenate([table.directions for table in tables]),
            np.concatenate(
                [t.waveform_index + offset for t, offset in zip(tables, offsets, strict=False)]
            ),
            tuple(waveform for table in tables for waveform in table.waveforms),
        )

    def select(self, rows) -> Acquisition:
        """The rows that a mask (N,), a slice or indices choose, in that order."""
        rows = self.row_numbers(rows)
        return Acquisition(
            self.b[rows], self.directions[rows], self.waveform_index[rows], self.waveforms
        )

    def row_numbers(self, rows) -> np.ndarray:
        """A mask (N,), a slice or indices as an array of row numbers.

        Raises:
            InputError: The selection does not fit the table or is empty.
        """
        try:
            numbers = np.atleast_1d(np.arange(len(self))[rows])
        except (IndexError, TypeError) as error:
            raise InputError(f"rows: {error}; the table has {len(self)} rows") from None
        if numbers.size == 0:
            raise InputError(f"rows: none of the {len(self)} measurements is selected")
        return numbers

    def __len__(self) -> int:
        return self.b.size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Acquisition):
            return NotImplemented
        return (
            self.waveforms == other.waveforms
            and np.array_equal(self.b, other.b)
            and np.array_equal(self.directions, other.directions)
            and np.array_equal(self.waveform_index, other.waveform_index)
        )

    __hash__ = None  # type: ignore[assignment]

    def _per_row(self, values: Iterable[float]) -> np.ndarray:
        """One value a waveform -> one value a row."""
        return np.array(list(values), dtype=float)[self.waveform_index]

    @property
    def _amplitude(self) -> np.ndarray:
        """g = gamma G in rad/(ms um), from b = g^2 b_factor."""
        return np.sqrt(b_to_internal(self.b) / self._per_row(w.b_factor for w in self.waveforms))

    @property
    def gradient(self) -> np.ndarray:
        """g times the direction in rad/(ms um), shape (N, 3); f(t) multiplies it."""
        return self._amplitude[:, None] * self.directions

    @property
    def gradient_strength_mT_m(self) -> np.ndarray:
        """Strongest gradient of each row in mT/m, shape (N,)."""
        peak = self._per_row(w.peak for w in self.waveforms)
        return gradient_from_internal(self._amplitude * peak)

    @property
    def delta(self) -> np.ndarray:
        """Pulse length in ms, shape (N,); nan where the waveform has none."""
        return self._per_row(getattr(w, "delta", np.nan) for w in self.waveforms)

    @property
    def Delta(self) -> np.ndarray:
        """Pulse separation in ms, shape (N,); nan where the waveform has none."""
        return self._per_row(getattr(w, "Delta", np.nan) for w in self.waveforms)

    @property
    def echo_time(self) -> np.ndarray:
        """TE in ms, shape (N,)."""
        return self._per_row(w.echo_time for w in self.waveforms)

    def describe(self) -> list[str]:
        """Lines that tell a person what was understood, with warnings about likely wrong units."""
        strength = self.gradient_strength_mT_m
        lines = [f"{len(self)} measurements, {len(self.waveforms)} gradient waveform(s)"]
        for k, waveform in enumerate(self.waveforms):
            rows = self.waveform_index == k
            lines.append(
                f"{waveform.describe()}: diffusion time {waveform.diffusion_time:.4g} ms, "
                f"{np.count_nonzero(rows)} rows, gradient up to {strength[rows].max():.4g} mT/m"
            )
        levels = np.unique(self.b)
        if levels.size <= 12:
            lines.append(f"b {', '.join(f'{b:g}' for b in levels)} s/mm^2")
        else:
            lines.append(f"b {levels.size} values, {levels[0]:g} to {levels[-1]:g} s/mm^2")
        lines.append(f"largest b {describe_b(levels[-1])}")
        return lines + self._unit_warnings(strength.max(), levels[-1])

    def _unit_warnings(self, strength: float, top: float) -> list[str]:
        """A line for each figure that looks as if a unit was mistaken."""
        lines = []
        if strength > _LARGEST_GRADIENT:
            lines.append(f"warning: gradient {strength:.4g} mT/m is far beyond any scanner")
        if 0.0 < top < _SMALLEST_TOP_B:
            lines.append(f"warning: largest b {top:g} s/mm^2 is tiny, was it meant in ms/um^2?")
        if top > _LARGEST_B:
            lines.append(f"warning: largest b {top:g} s/mm^2 is huge, is it in s/mm^2?")
        for delta in np.unique(self.delta[np.isfinite(self.delta)]):
            if delta < _SMALLEST_DELTA:
                lines.append(f"warning: delta {delta:g} ms is very short, was it meant in s?")
            if delta > _LARGEST_DELTA:
                lines.append(f"warning: delta {delta:g} ms is very long, was it meant in us?")
        return lines


def _pgse(delta: float, Delta: float, echo_time: float) -> PGSE:
    """PGSE of plain floats; a TE that is nan means the default."""
    return PGSE(float(delta), float(Delta), None if np.isnan(echo_time) else float(echo_time))


def _column(field: str, values, rows: int) -> np.ndarray:
    """``values`` (None, one number, or one a row) as shape (rows,), nan where missing."""
    array = _floats(field, np.nan if values is None else values)
    if array.ndim == 0:
        return np.full(rows, float(array))
    if array.shape != (rows,):
        raise InputError(f"{field}: shape {array.shape}, expected one number or ({rows},)")
    return array


def _row_pgse(
    row: int, b: float, delta: float, Delta: float, echo_time: float, made: dict[tuple, PGSE]
) -> PGSE | None:
    """The PGSE of a row, from ``made`` if it is there; None if a b = 0 row lacks its times."""
    missing = " and ".join(n for n, t in (("delta", delta), ("Delta", Delta)) if np.isnan(t))
    if missing and b == 0.0:
        return None
    if missing:
        raise InputError(f"{missing}: missing in row {row}, where b = {b:g}")
    key = (delta, Delta, None if np.isnan(echo_time) else echo_time)  # nan never equals itself
    if key not in made:
        try:
            made[key] = _pgse(delta, Delta, echo_time)
        except InputError as error:
            raise InputError(f"row {row}: {error}") from None
    return made[key]


def _only_waveform(row: int, echo_time: float, waveforms: Iterable[Waveform]) -> Waveform:
    """The waveform that a b = 0 row without timing can only mean."""
    fits = [
        waveform
        for waveform in waveforms
        if np.isnan(echo_time) or np.isclose(waveform.echo_time, echo_time, rtol=1e-6, atol=0.0)
    ]
    if len(fits) != 1:
        raise InputError(
            f"delta and Delta: missing in row {row} (b = 0), where {len(fits)} sequences would fit"
        )
    return fits[0]
