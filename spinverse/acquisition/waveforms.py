"""Gradient waveforms: the effective shape f(t) between excitation and echo.

The gradient that the spins feel is G f(t), with every 180-degree pulse already folded into the
sign of f. Times are in ms and f has no unit. With g = gamma G in rad/(ms um),

    F(t) = int_0^t f,      b [ms/um^2] = g^2 int_0^TE F(t)^2 dt = g^2 b_factor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from spinverse.errors import InputError

REFOCUSING_TOLERANCE = 1e-9  # of int |f|
_ROUNDING = 1e-12  # times closer than this, relative to TE, are the same time

# Composite Gauss-Legendre rule on [0, 1]: four panels of 16 nodes resolve several periods of an
# oscillating gradient inside one smooth interval.
_PANELS = 4
_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(16)
_UNIT_NODES = ((np.arange(_PANELS)[:, None] + 0.5 * (_GAUSS_NODES + 1.0)) / _PANELS).ravel()
_UNIT_WEIGHTS = np.tile(0.5 * _GAUSS_WEIGHTS / _PANELS, _PANELS)


def _points(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Quadrature points of the intervals [start, stop], shape start.shape + (nodes,)."""
    return start[..., None] + (stop - start)[..., None] * _UNIT_NODES


def _quadrature(function, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Integrate ``function`` over each interval [start, stop]; it must be smooth inside."""
    return (stop - start) * (function(_points(start, stop)) @ _UNIT_WEIGHTS)


def _positive(field: str, value: Any) -> float:
    """``value`` as a float, or the InputError that names ``field``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not (np.isfinite(number) and number > 0.0):
        raise InputError(f"{field} = {value!r}: expected a positive time in ms")
    return number


class Waveform(ABC):
    """Base of all waveforms; subclasses are frozen dataclasses.

    A subclass sets ``name``, has an ``echo_time``, implements ``breakpoints``,
    ``piecewise_constant``, ``antisymmetric`` and ``__call__``, and calls ``check_refocused`` at the
    end of its ``__post_init__``. Its dataclass fields must be numbers or tuples of numbers: they
    are what is hashed, compared and written to files. Closed forms may override ``integral`` and
    ``diffusion_time``.

    Attributes:
        name: Name of the class of waveforms, in files and messages.
        echo_time: TE in ms, the end of the waveform.
    """

    name: ClassVar[str]
    echo_time: float
    _registry: ClassVar[dict[str, type[Waveform]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            if len(cls.name.split()) != 1 or "," in cls.name:
                raise InputError(f"name {cls.name!r}: expected one word, it stands in csv cells")
            Waveform._registry[cls.name] = cls

    @property
    @abstractmethod
    def breakpoints(self) -> tuple[float, ...]:
        """Increasing times in ms from 0 to TE, both included, where f is not smooth."""

    @property
    @abstractmethod
    def piecewise_constant(self) -> bool:
        """Whether f is constant between breakpoints."""

    @property
    @abstractmethod
    def antisymmetric(self) -> bool:
        """Whether f(TE - t) = -f(t) for all t (jumps aside)."""

    @abstractmethod
    def __call__(self, t):
        """f at times ``t`` in ms (any shape; zero outside [0, TE], right limit at a jump)."""

    @property
    def peak(self) -> float:
        """Largest |f|; the hardware's strongest gradient is G times this."""
        return 1.0

    @cached_property
    def _intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and stop of each smooth interval."""
        breakpoints = np.asarray(self.breakpoints)
        return breakpoints[:-1], breakpoints[1:]

    @cached_property
    def _integral_at_starts(self) -> np.ndarray:
        """F at the start of each smooth interval."""
        pieces = _quadrature(self, *self._intervals)
        return np.concatenate([[0.0], np.cumsum(pieces)[:-1]])

    def integral(self, t):
        """F(t) = int_0^t f in ms, for times ``t`` of any shape."""
        t = np.clip(np.asarray(t, dtype=float), 0.0, self.echo_time)
        starts, _ = self._intervals
        interval = np.clip(np.searchsorted(starts, t, side="right") - 1, 0, None)
        return self._integral_at_starts[interval] + _quadrature(self, starts[interval], t)

    @cached_property
    def b_factor(self) -> float:
        """int_0^TE F(t)^2 dt in ms^3, by Gauss-Legendre quadrature between breakpoints."""
        return float(np.sum(_quadrature(lambda t: self.integral(t) ** 2, *self._intervals)))

    @property
    def diffusion_time(self) -> float:
        """Effective diffusion time in ms, b_factor / max F^2 (PGSE: Delta - delta/3)."""
        starts, stops = self._intervals
        times = np.concatenate([starts, _points(starts, stops).ravel()])
        return self.b_factor / float(np.max(np.abs(self.integral(times)))) ** 2

    def segments(self, max_step: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Divide [0, TE] into pieces of constant f.

        Exact, and independent of ``max_step``, for a piecewise constant waveform. Otherwise each
        smooth interval is cut into equal steps no longer than ``max_step``, with the value of f at
        their midpoints: second order in the step.

        Args:
            max_step: Longest step in ms; needed unless the waveform is piecewise constant.

        Returns:
            Durations in ms and values of f, both of shape (pieces,).

        Raises:
            InputError: ``max_step`` is missing or not a positive time.
        """
        starts, stops = self._intervals
        if self.piecewise_constant:
            return stops - starts, self(0.5 * (starts + stops))
        if max_step is None:
            raise InputError(
                f"max_step: {self.name} is not piecewise constant, expected a longest step in ms"
            )
        max_step = _positive("max_step", max_step)
        # a length that is a whole number of steps up to rounding is not cut once more
        counts = np.maximum(np.ceil((stops - starts) / max_step * (1.0 - _ROUNDING)), 1).astype(int)
        durations = np.repeat((stops - starts) / counts, counts)
        step = np.concatenate([np.arange(count) for count in counts])
        return durations, self(np.repeat(starts, counts) + (step + 0.5) * durations)

    def check_refocused(self) -> None:
        """Raise InputError unless f is somewhere non-zero and F(TE) = 0."""
        starts, stops = self._intervals
        total = float(np.sum(_quadrature(lambda t: np.abs(self(t)), starts, stops)))
        if not total > 0.0:
            raise InputError(f"waveform {self.name}: f is zero everywhere, expected a gradient")
        rest = float(self.integral(self.echo_time))
        if abs(rest) > REFOCUSING_TOLERANCE * total:
            raise InputError(
                f"waveform {self.name}: its integral over [0, TE] is {rest:g} ms, expected 0 "
                "(fold the 180-degree pulse into the sign)"
            )

    def describe(self) -> str:
        """One line for a person."""
        return f"{self.name}, TE {self.echo_time:g} ms"

    def to_dict(self) -> dict[str, Any]:
        """Name and fields as plain values (numbers, lists) that JSON can hold."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"name": self.name} | {
            key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Waveform:
        """Rebuild a waveform from ``to_dict``.

        Raises:
            InputError: Unknown name, or fields that do not belong to it.
        """
        arguments = dict(data)
        name = arguments.pop("name", None)
        if name not in Waveform._registry:
            known = ", ".join(sorted(Waveform._registry))
            raise InputError(f"waveform name {name!r}: expected one of {known}")
        try:
            return Waveform._registry[name](**arguments)
        except TypeError as error:
            raise InputError(f"waveform {name}: fields {sorted(arguments)} do not fit") from error


@dataclass(frozen=True)
class PGSE(Waveform):
    """Pulsed-gradient spin echo: two rectangular pulses (Stejskal & Tanner 1965).

    f = +1 on [0, delta], -1 on [Delta, Delta + delta], else 0.

    Attributes:
        delta: Length of a pulse, ms.
        Delta: From the start of the first pulse to the start of the second, ms; at least delta.
        echo_time: TE in ms; Delta + delta unless given, later means dead time at the end.

    Raises:
        InputError: A time is not positive, the pulses overlap, or TE is too early.
    """

    delta: float
    Delta: float
    echo_time: float | None = None

    name: ClassVar[str] = "PGSE"

    def __post_init__(self) -> None:
        delta, big_delta = _positive("delta", self.delta), _positive("Delta", self.Delta)
        if abs(big_delta - delta) <= _ROUNDING * delta:
            big_delta = delta
        if big_delta < delta:
            raise InputError(f"Delta = {big_delta:g} ms: expected at least delta = {delta:g} ms")
        end = big_delta + delta
        echo_time = end if self.echo_time is None else _positive("echo_time", self.echo_time)
        if abs(echo_time - end) <= _ROUNDING * end:
            echo_time = end
        if echo_time < end:
            raise InputError(
                f"echo_time = {echo_time:g} ms: expected at least Delta + delta = {end:g} ms"
            )
        object.__setattr__(self, "delta", delta)
        object.__setattr__(self, "Delta", big_delta)
        object.__setattr__(self, "echo_time", echo_time)
        self.check_refocused()

    @property
    def _pulse_end(self) -> float:
        return self.Delta + self.delta

    @property
    def breakpoints(self) -> tuple[float, ...]:
        # as a set: without a gap or dead time two of them coincide
        return tuple(sorted({0.0, self.delta, self.Delta, self._pulse_end, self.echo_time}))

    @property
    def piecewise_constant(self) -> bool:
        return True

    @property
    def antisymmetric(self) -> bool:
        return self.echo_time == self._pulse_end

    def __call__(self, t):
        t = np.asarray(t, dtype=float)
        first = (t >= 0.0) & (t < self.delta)
        second = (t >= self.Delta) & (t < self._pulse_end)
        return first.astype(float) - second.astype(float)

    def integral(self, t):
        """F(t) in ms, in closed form."""
        t = np.asarray(t, dtype=float)
        # taken as a ratio, both pulses have exactly the same area
        first = np.clip(t / self.delta, 0.0, 1.0)
        second = np.clip((t - self.Delta) / (self._pulse_end - self.Delta), 0.0, 1.0)
        return self.delta * (first - second)

    @property
    def b_factor_closed_form(self) -> float:
        """delta^2 (Delta - delta/3) in ms^3 (Stejskal & Tanner 1965)."""
        return self.delta**2 * (self.Delta - self.delta / 3.0)

    @property
    def diffusion_time(self) -> float:
        """Delta - delta/3 in ms."""
        return self.Delta - self.delta / 3.0

    def describe(self) -> str:
        """One line for a person."""
        return f"PGSE, delta {self.delta:g} ms, Delta {self.Delta:g} ms, TE {self.echo_time:g} ms"


@dataclass(frozen=True)
class Sampled(Waveform):
    """Waveform given by samples, linear in between.

    The same time given twice makes a jump. Only the shape matters: b fixes the strength.

    Attributes:
        times: Times in ms, from 0 to TE, never decreasing, at most two equal.
        values: f at those times, one for each.

    Raises:
        InputError: Times or values are malformed, or the waveform does not refocus.
    """

    times: tuple[float, ...]
    values: tuple[float, ...]

    name: ClassVar[str] = "Sampled"

    def __post_init__(self) -> None:
        for field in ("times", "values"):
            try:
                array = np.asarray(getattr(self, field), dtype=float)
            except (TypeError, ValueError):
                raise InputError(f"{field}: expected a list of numbers") from None
            if array.ndim != 1 or not np.all(np.isfinite(array)):
                raise InputError(f"{field}: expected a flat list of finite numbers")
            object.__setattr__(self, field, tuple(array.tolist()))
        times = np.asarray(self.times)
        if len(self.values) != times.size:
            raise InputError(
                f"values: {len(self.values)} samples, expected {times.size} as in times"
            )
        if times.size < 2 or times[0] != 0.0:
            raise InputError("times: expected at least two samples, the first at 0 ms")
        if np.any(np.diff(times) < 0.0) or np.any(times[2:] == times[:-2]) or times[-1] == 0.0:
            raise InputError("times: expected increasing times (a time given twice is a jump)")
        # a jump at 0 or TE says nothing, and would hide an antisymmetry
        inside = slice(int(times[1] == 0.0), times.size - int(times[-2] == times[-1]))
        object.__setattr__(self, "times", self.times[inside])
        object.__setattr__(self, "values", self.values[inside])
        self.check_refocused()

    @cached_property
    def _samples(self) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(self.times), np.asarray(self.values)

    @property
    def echo_time(self) -> float:
        """TE in ms, the last sample's time."""
        return self.times[-1]

    @property
    def breakpoints(self) -> tuple[float, ...]:
        return tuple(dict.fromkeys(self.times))

    @cached_property
    def piecewise_constant(self) -> bool:
        times, values = self._samples
        return not np.any((np.diff(times) > 0.0) & (np.diff(values) != 0.0))

    @cached_property
    def antisymmetric(self) -> bool:
        times, values = self._samples
        return bool(
            np.allclose(times + times[::-1], self.echo_time, rtol=_ROUNDING, atol=0.0)
            and np.max(np.abs(values + values[::-1])) <= 1e-10 * self.peak
        )

    @property
    def peak(self) -> float:
        """Largest |f|."""
        return float(np.max(np.abs(self._samples[1])))

    def __call__(self, t):
        t = np.asarray(t, dtype=float)
        times, values = self._samples
        inside = (t >= 0.0) & (t <= self.echo_time)
        return np.where(inside, np.interp(t, times, values), 0.0)

    @cached_property
    def _integral_at_samples(self) -> np.ndarray:
        times, values = self._samples
        return np.concatenate([[0.0], np.cumsum(0.5 * np.diff(times) * (values[1:] + values[:-1]))])

    def integral(self, t):
        """F(t) in ms, exact for the linear pieces."""
        times, values = self._samples
        t = np.clip(np.asarray(t, dtype=float), 0.0, self.echo_time)
        # the clip keeps TE itself in the last piece
        piece = np.clip(np.searchsorted(times, t, side="right") - 1, 0, times.size - 2)
        length = times[piece + 1] - times[piece]
        slope = np.divide(
            values[piece + 1] - values[piece], length, out=np.zeros_like(length), where=length > 0.0
        )
        elapsed = t - times[piece]
        return self._integral_at_samples[piece] + elapsed * (values[piece] + 0.5 * slope * elapsed)
