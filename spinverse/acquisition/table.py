"""The acquisition: a flat table with one measurement a row."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .. import units
from ..errors import InputError
from . import description, sequences
from .oscillating import CosOGSE, SinOGSE
from .pulses import PGSE, DoublePGSE, TrapezoidPGSE, set_fields
from .samples import Sampled, SampledGradient
from .stored import StimulatedEcho
from .waveform import Waveform, floats

UNIT_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class Acquisition:
    """Measurements, one a row. Rows are counted from 0.

    The waveforms are kept once each, in the order of their first use, whatever was passed: two
    equal tables compare equal. The arrays are read-only copies.

    Attributes:
        b: b-values in s/mm^2, shape (N,).
        directions: Unit vectors, shape (N, 3); where b = 0 any finite vector will do. A row whose
            waveform is vector valued has that of its first gradient, whatever was passed, and
            physics does not use it.
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
        b, directions = floats("b", self.b), floats("directions", self.directions)
        if b.ndim != 1 or b.size == 0:
            raise InputError(f"b: shape {b.shape}, expected (N,) with at least one measurement")
        if directions.shape != (b.size, 3):
            raise InputError(f"directions: shape {directions.shape}, expected {(b.size, 3)}")
        for row in np.flatnonzero(~(np.isfinite(b) & (b >= 0.0)))[:1]:
            raise InputError(f"b: row {row} is {b[row]:g}, expected a finite value >= 0 in s/mm^2")
        for row in np.flatnonzero(~np.all(np.isfinite(directions), axis=1))[:1]:
            raise InputError(f"directions: row {row} is {directions[row]}, expected finite numbers")
        index, waveforms = self._distinct_waveforms(b.size)
        for k, waveform in enumerate(waveforms):
            if waveform.vector:
                directions[index == k] = waveform.first_direction
        norms = np.linalg.norm(directions, axis=1)
        for row in np.flatnonzero((b > 0.0) & (np.abs(norms - 1.0) > UNIT_TOLERANCE))[:1]:
            raise InputError(f"directions: row {row} has length {norms[row]:.9g}, expected a unit "
                             "vector")
        for array in (b, directions, index):
            array.setflags(write=False)
        set_fields(self, b=b, directions=directions, waveform_index=index, waveforms=waveforms)

    def _distinct_waveforms(self, rows: int) -> tuple[np.ndarray, tuple[Waveform, ...]]:
        """Index and waveforms with equal ones merged, unused ones dropped, in order of use."""
        waveforms, index = tuple(self.waveforms), np.asarray(self.waveform_index)
        for waveform in waveforms:
            if not isinstance(waveform, Waveform):
                raise InputError(f"waveforms: {waveform!r} is not a Waveform")
        if index.shape != (rows,) or index.dtype.kind not in "iu":
            raise InputError(f"waveform_index: {index.dtype} of shape {index.shape}, expected ints "
                             f"({rows},)")
        for row in np.flatnonzero((index < 0) | (index >= len(waveforms)))[:1]:
            raise InputError(f"waveform_index: row {row} is {index[row]}, expected 0 to "
                             f"{len(waveforms) - 1}")
        used, first_rows = np.unique(index, return_index=True)
        position: dict[Waveform, int] = {}
        renumber = np.zeros(len(waveforms), dtype=int)
        for old in used[np.argsort(first_rows)]:
            renumber[old] = position.setdefault(waveforms[old], len(position))
        return renumber[index], tuple(position)

    @classmethod
    def product(cls, waveforms, b, directions=None) -> Acquisition:
        """Every waveform with every b-value and every direction; the last varies fastest.

        Args:
            waveforms: A gradient waveform, or several.
            b: b-value or list of them, s/mm^2.
            directions: A number of Fibonacci directions, or unit vectors of shape (n, 3) or (3,).
                None for vector waveforms, which bring theirs.

        Raises:
            InputError: As the class; directions of another shape, missing for a scalar waveform or
                given for a vector one.
        """
        waveforms = sequences.as_waveforms(waveforms)
        b = np.atleast_1d(floats("b", b))
        return cls._outer(waveforms, np.broadcast_to(b, (len(waveforms), b.size)), directions)

    @classmethod
    def from_gradient(cls, waveforms, gradient, directions=None) -> Acquisition:
        """As ``product``, with the gradient strength in place of b.

        Args:
            gradient: Strongest gradient of the waveform in mT/m (the length of the vector), or list
                of them.

        Raises:
            InputError: As ``product``; a strength that is negative or not finite.
        """
        waveforms = sequences.as_waveforms(waveforms)
        gradient = np.atleast_1d(floats("gradient", gradient))
        for value in gradient[~(np.isfinite(gradient) & (gradient >= 0.0))][:1]:
            raise InputError(f"gradient: {value:g}, expected a finite strength >= 0 in mT/m")
        return cls._outer(waveforms, np.array([b_of_gradient(w, gradient) for w in waveforms]),
                          directions)

    @classmethod
    def _outer(cls, waveforms, b, directions) -> Acquisition:
        """Waveforms x b x directions with b-values of shape (waveforms, levels)."""
        vectors = sequences.unit_vectors(waveforms, directions)
        w, i, j = np.indices((*b.shape, len(vectors))).reshape(3, -1)
        return cls(b[w, i], vectors[j], w, waveforms)

    @classmethod
    def pgse(cls, b, directions, delta=None, Delta=None, echo_time=None) -> Acquisition:
        """Pulsed-gradient spin echo: sequences x b x directions, the last varies fastest.

        Args:
            b, directions: As in ``product``.
            delta, Delta: Pulse length and separation, one or several, ms; they are paired.
            echo_time: TE, ms, one or as many as pairs; Delta + delta if not given.

        Raises:
            InputError: ``delta`` or ``Delta`` missing, lists of different length, or any value that
                PGSE or the table refuses.
        """
        waveforms = sequences.make(PGSE, echo_time, delta=delta, Delta=Delta)
        return cls.product(waveforms, b, directions)

    @classmethod
    def trapezoid(cls, b, directions, delta=None, Delta=None, ramp=None,
                  echo_time=None) -> Acquisition:
        """PGSE with ramps; ms, one or several, as of ``TrapezoidPGSE``; else as ``pgse``."""
        waveforms = sequences.make(TrapezoidPGSE, echo_time, delta=delta, Delta=Delta, ramp=ramp)
        return cls.product(waveforms, b, directions)

    @classmethod
    def ogse(cls, b, directions, delta=None, Delta=None, periods=None, kind="cos",
             echo_time=None) -> Acquisition:
        """Oscillating gradients, see ``CosOGSE`` and ``SinOGSE``; else as ``pgse``.

        Args:
            periods: Whole number or numbers of periods in a pulse.
            kind: "cos" or "sin"; another one is an InputError.
        """
        if kind not in ("cos", "sin"):
            raise InputError(f"kind = {kind!r}: expected one of cos, sin")
        waveforms = sequences.make(CosOGSE if kind == "cos" else SinOGSE, echo_time, delta=delta,
                                   Delta=Delta, periods=periods)
        return cls.product(waveforms, b, directions)

    @classmethod
    def double_pgse(cls, b, directions, delta=None, Delta=None, mixing_time=None, parallel=True,
                    second_directions=None, echo_time=None) -> Acquisition:
        """Double PGSE; times in ms and ``parallel``, one or several, as of ``DoublePGSE``.

        Args:
            b: That of both pairs together; else as ``pgse``.
            directions: Those of the first pair.
            second_directions: Directions of the second pair, unit vectors (n, 3), one for each of
                ``directions`` or one for all; the same unless given.
        """
        waveforms = sequences.make(DoublePGSE, echo_time, delta=delta, Delta=Delta,
                                   mixing_time=mixing_time, parallel=parallel)
        if second_directions is None:
            return cls.product(waveforms, b, directions)
        b = np.atleast_1d(floats("b", b))
        first = sequences.unit_vectors(waveforms, directions)
        table, each = sequences.second_pairs(waveforms, first, second_directions)
        w, i, j = np.indices((len(waveforms), b.size, len(first))).reshape(3, -1)
        return cls(b[i], first[j], each[w, j], table)

    @classmethod
    def stimulated_echo(cls, b, directions, delta=None, Delta=None, mixing_time=None,
                        echo_time=None) -> Acquisition:
        """Stimulated echo; times in ms, one or several, as of ``StimulatedEcho``; else as ``pgse``.

        The mixing time is all of the time between the gradient pulses if not given.
        """
        given = {} if mixing_time is None else {"mixing_time": mixing_time}
        waveforms = sequences.make(StimulatedEcho, echo_time, delta=delta, Delta=Delta, **given)
        return cls.product(waveforms, b, directions)

    @classmethod
    def fexi(cls, b, directions, delta=None, Delta=None, mixing_time=None, filter_b=None,
             filter_delta=None, filter_Delta=None, filter_echo_time=None,
             detection_echo_time=None) -> Acquisition:
        """Filter-exchange imaging: mixing times x filters x b x directions, the last fastest.

        A row's ``b`` is that of filter and detection together; see ``FEXI``, whose parameter
        ``filter_share`` says which part is the filter's.

        Args:
            b: b-value or values of the detection, s/mm^2.
            directions: As in ``product``, of filter and detection.
            delta, Delta: Of the detection, ms.
            mixing_time: One or several, ms.
            filter_b: b-value or values of the filter, s/mm^2; with 0 among them there is a
                reference without filter.
            filter_delta, filter_Delta: Of the filter, ms; as of the detection unless given.
            filter_echo_time: From the excitation to the storage, ms; no longer than the filter
                unless given.
            detection_echo_time: From the end of the storage to the echo, ms; likewise.

        Raises:
            InputError: A value is missing or refused by ``FEXI`` or the table.
        """
        return cls(*sequences.filters(
            b, directions, delta, Delta, mixing_time, filter_b, detection_echo_time,
            filter_delta=filter_delta, filter_Delta=filter_Delta,
            filter_echo_time=filter_echo_time))

    @classmethod
    def sampled(cls, b=None, directions=None, times=None, values=None, gradient=None,
                refocusing_times=(), echo_time=None, storage=()) -> Acquisition:
        """One sampled waveform: strengths x directions, the last varies fastest.

        Give ``b`` or ``gradient``, and ``values`` says the shape only; with neither of them
        ``values`` are in mT/m.

        Args:
            b: b-value or list of them, s/mm^2.
            directions: As in ``pgse`` for ``values`` of shape (n,); None for (n, 3).
            gradient: Strongest gradient in mT/m, or list of them.
            times, values, refocusing_times, echo_time, storage: As of ``Sampled`` for values of
                shape (n,), and of ``SampledGradient`` for (n, 3); ms.

        Raises:
            InputError: ``times`` or ``values`` missing, both of ``b`` and ``gradient``, or a value
                that is refused.
        """
        if times is None or values is None:
            raise InputError("times and values: missing, expected the samples of the waveform")
        if b is not None and gradient is not None:
            raise InputError("b and gradient: both are given, expected one of them")
        kind = SampledGradient if np.ndim(values) == 2 else Sampled
        waveform = kind(times, values, refocusing_times, echo_time, storage)
        if b is not None:
            return cls.product(waveform, b, directions)
        return cls.from_gradient(waveform, waveform.peak if gradient is None else gradient,
                                 directions)

    @classmethod
    def from_rows(cls, b, directions, delta=None, Delta=None, echo_time=None,
                  waveforms=None) -> Acquisition:
        """Measurements row by row, as tables in files have them.

        Rows with b = 0 may leave delta or Delta out (nan); they then belong to the table's only
        sequence (to the only one with their TE, if that is given; to the first one of several that
        have the same TE).

        Args:
            b: b-values in s/mm^2, shape (N,).
            directions: Unit vectors, shape (N, 3); free where b = 0.
            delta, Delta: Pulse length and separation in ms, one or (N,).
            echo_time: TE in ms, one or (N,); Delta + delta where missing or nan.
            waveforms: N waveforms, None where the row is the PGSE that its times say; the times of
                the other rows are not looked at.

        Raises:
            InputError: b > 0 without delta or Delta, a row with b = 0 whose sequence is unknown, or
                any value that PGSE or the table refuses; names the row.
        """
        b = np.atleast_1d(floats("b", b))
        index, made = sequences.of_rows(b, delta, Delta, echo_time, waveforms)
        return cls(b, directions, index, made)

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
                [t.waveform_index + offset for t, offset in zip(tables, offsets, strict=False)]),
            tuple(waveform for table in tables for waveform in table.waveforms))

    def select(self, rows) -> Acquisition:
        """The rows that a mask (N,), a slice or indices choose, in that order."""
        rows = self.row_numbers(rows)
        return Acquisition(self.b[rows], self.directions[rows], self.waveform_index[rows],
                           self.waveforms)

    def reference_rows(self, waveform: int) -> np.ndarray:
        """Rows that the signals of a waveform, its place in ``waveforms``, are normalised by.

        Its rows with b = 0; where it has none, all rows with b = 0 and the same echo time and
        storage, for the shape of a gradient of strength 0 does not matter. InputError if there are
        none.
        """
        unweighted = self.b == 0.0
        rows = np.flatnonzero(unweighted & (self.waveform_index == waveform))
        if not rows.size:
            alike = [self.waveforms[waveform].same_at_rest(other) for other in self.waveforms]
            rows = np.flatnonzero(unweighted & np.array(alike)[self.waveform_index])
        if not rows.size:
            raise InputError(f"normalised: {self.waveforms[waveform].describe()} has no row with b "
                             "= 0 to divide by, nor is there one with its echo time")
        return rows

    def with_unweighted(self) -> Acquisition:
        """Itself, then a row with b = 0 for each kind of echo that has no `reference_rows`."""
        lacking: list[int] = []
        there = [self.waveforms[k] for k in np.unique(self.waveform_index[self.b == 0.0])]
        for k, waveform in enumerate(self.waveforms):
            if not any(waveform.same_at_rest(other) for other in there):
                there.append(waveform)
                lacking.append(k)
        return Acquisition(
            np.append(self.b, np.zeros(len(lacking))),
            np.concatenate([self.directions, np.tile([1.0, 0.0, 0.0], (len(lacking), 1))]),
            np.append(self.waveform_index, np.array(lacking, int)), self.waveforms)

    def row_numbers(self, rows) -> np.ndarray:
        """A mask (N,), a slice or indices that fit and are not empty, as row numbers."""
        try:
            numbers = np.atleast_1d(np.arange(len(self))[rows])
        except (IndexError, TypeError) as error:
            raise InputError(f"rows: {error}; the table has {len(self)} rows") from None
        if numbers.size == 0:
            raise InputError(f"rows: none of the {len(self)} measurements is selected")
        return numbers

    def __len__(self) -> int:
        return self.b.size

    def __repr__(self) -> str:
        return f"Acquisition({len(self)} measurements, {len(self.waveforms)} waveforms)"

    def __str__(self) -> str:
        return "\n".join(self.describe(most=4))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Acquisition):
            return NotImplemented
        return (self.waveforms == other.waveforms and np.array_equal(self.b, other.b)
                and np.array_equal(self.directions, other.directions)
                and np.array_equal(self.waveform_index, other.waveform_index))

    __hash__ = None  # type: ignore[assignment]

    def _per_row(self, values: Iterable[float]) -> np.ndarray:
        """One value a waveform -> one value a row."""
        return np.array(list(values), dtype=float)[self.waveform_index]

    @property
    def strength(self) -> np.ndarray:
        """g = gamma G in rad/(ms um), shape (N,), from b = g^2 b_factor; f(t) multiplies it."""
        factor = self._per_row(w.b_factor for w in self.waveforms)
        return np.sqrt(units.b_to_internal(self.b) / factor)

    @property
    def gradient(self) -> np.ndarray:
        """g times the direction in rad/(ms um), shape (N, 3); a scalar f(t) multiplies it."""
        return self.strength[:, None] * self.directions

    @property
    def gradient_strength_mT_m(self) -> np.ndarray:
        """Strongest gradient of each row in mT/m, shape (N,)."""
        peak = self._per_row(w.peak for w in self.waveforms)
        return units.gradient_from_internal(self.strength * peak)

    @property
    def b_tensors(self) -> np.ndarray:
        """b-tensors in s/mm^2, shape (N, 3, 3); the trace is b."""
        tensors = np.zeros((len(self), 3, 3))
        for k, waveform in enumerate(self.waveforms):
            rows = self.waveform_index == k
            if waveform.vector:
                tensors[rows] = waveform.b_tensor_factor() / waveform.b_factor
            else:
                unit = self.directions[rows]
                tensors[rows] = unit[:, :, None] * unit[:, None, :]
        return self.b[:, None, None] * tensors

    @property
    def diffusion_time(self) -> np.ndarray:
        """Effective diffusion time in ms, shape (N,)."""
        return self._per_row(w.diffusion_time for w in self.waveforms)

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

    def describe(self, most: int | None = None) -> list[str]:
        """What was understood, of ``most`` waveforms, with warnings about likely wrong units."""
        warnings = [f"warning: {text}" for text in description.unit_warnings(self)]
        return description.lines(self, most) + warnings


def b_of_gradient(waveform: Waveform, gradient):
    """b in s/mm^2 of a waveform whose strongest gradient is ``gradient`` mT/m (any shape)."""
    g = units.gradient_to_internal(gradient) / waveform.peak
    return units.b_from_internal(g**2 * waveform.b_factor)
