"""The section acquisition: sequences with their b-values, files, or a list of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from ..acquisition import Acquisition, read_acquisition
from ..acquisition.table import b_of_gradient
from ..errors import InputError
from .values import (
    Directions,
    FilePath,
    KeyProblem,
    Number,
    NumberOrList,
    Samples,
    Section,
    Times,
    exactly_one,
    is_list_of,
    is_number,
    kind,
    table_of,
)

_TE = " (echo_time_ms may be left out: the gradients' end)"
PulseLength = Annotated[NumberOrList, Field(description=f"the pulse length in ms{_TE}")]
Separation = Annotated[NumberOrList, Field(description=f"the time from pulse to pulse in ms{_TE}")]
STRENGTHS = ("b_s_per_mm2", "gradient_mT_per_m")


def _is_flag(value) -> bool:
    return isinstance(value, bool)


class _Sequence(Section):
    """Strengths and directions; classes derived from this add what their ``make`` takes."""

    make: ClassVar[Callable]
    b_s_per_mm2: NumberOrList | None = None
    gradient_mT_per_m: NumberOrList | None = None
    directions: Directions | None = None
    echo_time_ms: NumberOrList | None = None
    delta_ms: PulseLength
    Delta_ms: Separation

    @model_validator(mode="after")
    def _strength(self):
        exactly_one(self, STRENGTHS)
        if self.directions is None:
            raise KeyProblem("directions", "missing, expected a number of directions, a list of "
                             "[x, y, z], or a file of such rows")
        return self

    def table(self) -> Acquisition:
        """The measurements, or the InputError that they raise."""
        directions = _read(self.directions)
        if self.b_s_per_mm2 is not None:
            return self._with(self.b_s_per_mm2, directions)
        levels = np.atleast_1d(self.gradient_mT_per_m)
        for level in levels[~(np.isfinite(levels) & (levels >= 0))][:1]:
            raise InputError(f"gradient_mT_per_m: {level:g}, expected a finite strength >= 0")
        # the waveforms do not depend on b; rows are waveforms x strengths x directions
        one = self._with(1.0, directions)
        count = directions if isinstance(directions, int) else len(directions)
        rows = np.arange(len(one)).reshape(-1, 1, count).repeat(len(levels), axis=1)
        factors = np.array([b_of_gradient(waveform, 1.0) for waveform in one.waveforms])
        b = factors[one.waveform_index[rows]] * levels[:, None] ** 2
        return Acquisition(b.ravel(), one.directions[rows.ravel()],
                           one.waveform_index[rows.ravel()], one.waveforms)

    def _with(self, b, directions) -> Acquisition:
        own = {key.removesuffix("_ms"): _read(value) for key, value in self
               if key not in (*STRENGTHS, "directions")}
        return self.make(b, directions, **own)


class PGSESection(_Sequence):
    make = Acquisition.pgse


class TrapezoidSection(_Sequence):
    make = Acquisition.trapezoid
    ramp_ms: Annotated[NumberOrList, Field(description="the time of a rise or fall in ms")]


class OGSESection(_Sequence):
    make = Acquisition.ogse
    periods: Annotated[NumberOrList, Field(
        description="how many periods a pulse has, a whole number or several")]
    kind: Literal["cos", "sin"] = "cos"


class DoublePGSESection(_Sequence):
    make = Acquisition.double_pgse
    mixing_time_ms: Annotated[NumberOrList, Field(
        description="the time from the start of the second pulse to that of the third in ms")]
    parallel: Annotated[Any, kind(
        "true (+ - + -) or false (+ - - +), or a list of them",
        lambda value: _is_flag(value) or is_list_of(_is_flag)(value))] = True
    second_directions: Directions | None = None

    @model_validator(mode="after")
    def _vectors_only(self):
        if isinstance(self.second_directions, int):
            raise KeyProblem("second_directions", f"{self.second_directions}, expected a list of "
                             "[x, y, z] or a file of such rows")
        return self


class StimulatedEchoSection(_Sequence):
    make = Acquisition.stimulated_echo
    mixing_time_ms: NumberOrList | None = None


class FEXISection(_Sequence):
    """b is that of the detection; lists of mixing times and filters are combined."""

    make = Acquisition.fexi
    delta_ms: Annotated[float, Field(description="the pulse length of the detection in ms")]
    Delta_ms: Annotated[float, Field(
        description="the time from pulse to pulse of the detection in ms")]
    mixing_time_ms: Annotated[NumberOrList, Field(
        description="the time from the filter to the detection in ms")]
    filter_b_s_per_mm2: Annotated[NumberOrList, Field(
        description="b of the filter in s/mm^2, 0 among them for a reference without")]
    filter_delta_ms: float | None = None
    filter_Delta_ms: float | None = None
    filter_echo_time_ms: float | None = None
    detection_echo_time_ms: float | None = None

    @model_validator(mode="after")
    def _by_b(self):
        for key, other in (("gradient_mT_per_m", "b_s_per_mm2"),
                           ("echo_time_ms", "detection_echo_time_ms")):
            if getattr(self, key) is not None:
                raise KeyProblem(key, f"not for fexi, expected {other}")
        return self

    def _with(self, b, directions) -> Acquisition:
        return Acquisition.fexi(
            b, directions, self.delta_ms, self.Delta_ms, self.mixing_time_ms,
            self.filter_b_s_per_mm2, self.filter_delta_ms, self.filter_Delta_ms,
            self.filter_echo_time_ms, self.detection_echo_time_ms)


class SampledSection(Section):
    """Samples of one waveform; ``values`` give its shape, ``values_mT_per_m`` all of it."""

    times_ms: Times | None = None
    values: Samples | None = None
    values_mT_per_m: Samples | None = None
    b_s_per_mm2: NumberOrList | None = None
    gradient_mT_per_m: NumberOrList | None = None
    directions: Directions | None = None
    refocusing_times_ms: NumberOrList = []
    storage_ms: Annotated[Any, kind(
        "a list of [start, stop] in ms",
        lambda value: value == [] or is_list_of(is_list_of(is_number, 2))(value))] = []
    echo_time_ms: float | None = None

    @model_validator(mode="after")
    def _fits(self):
        name = exactly_one(self, ("values", "values_mT_per_m"))
        strengths = [key for key in STRENGTHS if getattr(self, key) is not None]
        if name == "values" and len(strengths) != 1:
            raise InputError("values say the shape only, expected one of b_s_per_mm2 and "
                             "gradient_mT_per_m beside them (or values_mT_per_m instead)")
        if name == "values_mT_per_m" and strengths:
            raise KeyProblem(strengths[0], "expected it beside values, values_mT_per_m say it "
                             "already")
        if self.times_ms is None and not isinstance(getattr(self, name), Path):
            raise KeyProblem("times_ms", f"missing, expected the times of the {name} in ms")
        return self

    def table(self) -> Acquisition:
        """The measurements, or the InputError that they raise."""
        times, values = self._samples()
        refocusing = tuple(np.atleast_1d(self.refocusing_times_ms))
        return Acquisition.sampled(self.b_s_per_mm2, _read(self.directions), times, values,
                                   self.gradient_mT_per_m, refocusing, self.echo_time_ms,
                                   tuple(self.storage_ms))

    def _samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Times ``(n,)`` and values ``(n,)`` or ``(n, 3)``, from lists or files."""
        given = self.values if self.values is not None else self.values_mT_per_m
        values = np.asarray(_read(given), dtype=float)
        if self.times_ms is not None:
            times = np.asarray(_read(self.times_ms), dtype=float).ravel()
        elif values.shape[1] in (2, 4):
            times, values = values[:, 0], values[:, 1:]
        else:
            raise InputError(f"{given}: {values.shape[1]} columns, expected 2 or 4: time in ms and "
                             "one value or x, y, z (or times_ms beside it)")
        return times, values[:, 0] if values.shape[1:] == (1,) else values


SEQUENCES = ("pgse", "trapezoid", "ogse", "double_pgse", "stimulated_echo", "fexi", "sampled")
BESIDE_FILE = ("bvec", "delta_ms", "Delta_ms", "echo_time_ms", "b0_up_to_s_per_mm2")


class AcquisitionSection(Section):
    """One sequence, or a file with what it lacks beside it."""

    pgse: PGSESection | None = None
    trapezoid: TrapezoidSection | None = None
    ogse: OGSESection | None = None
    double_pgse: DoublePGSESection | None = None
    stimulated_echo: StimulatedEchoSection | None = None
    fexi: FEXISection | None = None
    sampled: SampledSection | None = None
    file: FilePath | None = None
    bvec: FilePath | None = None
    delta_ms: NumberOrList | None = None
    Delta_ms: NumberOrList | None = None
    echo_time_ms: NumberOrList | None = None
    b0_up_to_s_per_mm2: Number | None = None

    @model_validator(mode="after")
    def _one(self):
        name = exactly_one(self, (*SEQUENCES, "file"))
        for key in BESIDE_FILE:
            if name != "file" and getattr(self, key) is not None:
                raise KeyProblem(key, f"expected it beside file only, or (times) inside {name}")
        return self

    @property
    def kind(self) -> str:
        """The one key that is there: "pgse", ..., "file"."""
        return exactly_one(self, (*SEQUENCES, "file"))

    def table(self) -> Acquisition:
        """The measurements, or the InputError that they raise."""
        if self.file is None:
            return getattr(self, self.kind).table()
        try:
            return read_acquisition(self.file, self.bvec, delta=self.delta_ms,
                                    Delta=self.Delta_ms, echo_time=self.echo_time_ms,
                                    b0_threshold=self.b0_up_to_s_per_mm2 or 0.0)
        except InputError as error:
            if ": missing" in str(error) and None in (self.delta_ms, self.Delta_ms):
                raise InputError(f"{error}; they are the keys delta_ms, Delta_ms and "
                                 "echo_time_ms beside file") from None
            raise


def _read(given):
    """What stands in the run file, or in the file that it names."""
    return table_of(given) if isinstance(given, Path) else given


Acquisitions = Annotated[
    tuple[AcquisitionSection, ...],
    BeforeValidator(lambda value: value if isinstance(value, list) and value else [value]),
    Field(description="a sequence, as pgse: {...}, a file, or a list of them")]


def read_table(sections: Sequence[AcquisitionSection]) -> Acquisition:
    """All measurements, in the order of the run file. Raises InputError naming the section."""
    tables = []
    for number, section in enumerate(sections):
        place = "acquisition." + (f"{number}." if len(sections) > 1 else "") + section.kind
        try:
            tables.append(section.table())
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
    return Acquisition.concatenate(tables)
