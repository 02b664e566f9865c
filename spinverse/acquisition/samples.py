"""Waveforms given by samples, along one direction or in three dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from .pulses import set_fields
from .waveform import (
    SAME_VALUE,
    Waveform,
    cut,
    echo_time_after,
    floats,
    merge_pieces,
    with_ends,
)

ROUNDED = 1e-6  # of the peak: values that differ less are one


def _numbers(field: str, values: Any, ndim: int) -> np.ndarray:
    """``values`` as a finite array of ``ndim`` axes, or the InputError that names ``field``."""
    array = floats(field, values)
    fits = array.ndim == ndim and (ndim == 1 or array.shape[1] == 3)
    if not (fits and np.all(np.isfinite(array))):
        found = "" if fits else f"shape {array.shape}, "
        kind = "(n, 3)" if ndim == 2 else "flat"
        raise InputError(f"{field}: {found}expected a {kind} list of finite numbers")
    return array


def _tuples(array: np.ndarray) -> tuple:
    return tuple(map(tuple, array.tolist())) if array.ndim == 2 else tuple(array.tolist())


def held(step: float, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Times, ms, and values, as `Sampled` takes them, of samples (n,) or (n, 3) held for ``step``.

    Equal neighbours are one.
    """
    values = np.asarray(values, dtype=float)
    changes = np.any(np.diff(values.reshape(values.shape[0], -1), axis=0) != 0.0, axis=1)
    first = np.concatenate([[0], np.flatnonzero(changes) + 1])
    edges = step * np.append(first, values.shape[0])
    return np.repeat(edges, 2)[1:-1], np.repeat(values[first], 2, axis=0)


def along_a_line(G: np.ndarray, same: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Peak, shape (K,) or (K, 3) of largest length 1, and direction (3,) of samples (K, 3).

    The shape is (K,) where all samples are along a line, to ``same`` of the peak. The direction is
    that of the first gradient.
    """
    sizes = np.linalg.norm(G, axis=1)
    peak = float(np.max(sizes))
    direction = G[int(np.argmax(sizes))] / peak
    first = int(np.argmax(sizes > ROUNDED * peak))
    direction = direction * np.sign(G[first] @ direction or 1.0)
    along = G @ direction
    if np.max(np.abs(G - along[:, None] * direction)) > same * peak:
        return peak, G / peak, direction
    if same > ROUNDED:  # all samples know the direction better than one
        direction = along @ G / np.linalg.norm(along @ G)
        along = G @ direction
        peak = float(np.max(np.abs(along)))
    return peak, along / peak, direction


@dataclass(frozen=True)
class _Samples(Waveform):
    """What scalar and vector samples share."""

    times: tuple[float, ...]
    values: tuple
    refocusing_times: tuple[float, ...] = ()
    echo_time: float = None  # type: ignore[assignment]  # a number once it is made
    storage: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        times = _numbers("times", self.times, 1)
        values = _numbers("values", self.values, 2 if self.vector else 1)
        if len(values) != times.size:
            raise InputError(f"values: {len(values)} samples, expected {times.size} as in times")
        if times.size < 2 or times[0] != 0.0:
            raise InputError("times: expected at least two samples, the first at 0 ms")
        if np.any(np.diff(times) < 0.0) or np.any(times[2:] == times[:-2]) or times[-1] == 0.0:
            raise InputError("times: expected increasing times (a time given twice is a jump)")
        # a jump at 0 or at the end says nothing
        inside = slice(int(times[1] == 0.0), times.size - int(times[-2] == times[-1]))
        times, values = times[inside], values[inside]
        end = float(times[-1])
        echo_time = echo_time_after(end, self.echo_time, "the last of times")
        pulses = _numbers("refocusing_times", self.refocusing_times, 1)
        if np.any(np.diff(pulses) <= 0.0) or np.any((pulses <= 0.0) | (pulses >= echo_time)):
            raise InputError(f"refocusing_times: {pulses.tolist()}, expected increasing times "
                             f"inside (0, {echo_time:g}) ms")
        periods = floats("storage", self.storage)
        periods = periods if periods.size else np.zeros((0, 2))
        ends = periods.ravel()
        if periods.ndim != 2 or periods.shape[1] != 2 or not np.all(np.isfinite(ends)) or np.any(
                np.diff(ends) < 0.0) or np.any(np.diff(periods) <= 0.0) or np.any(
                (ends < 0.0) | (ends > echo_time)):
            raise InputError(f"storage: {self.storage!r:.60}, expected increasing periods "
                             f"(start, stop) inside [0, {echo_time:g}] ms")
        for pulse in pulses[np.any((pulses[:, None] > periods[:, 0])
                                   & (pulses[:, None] < periods[:, 1]), axis=1)][:1]:
            raise InputError(f"refocusing_times: {pulse:g} ms, expected none while magnetisation "
                             "is stored along z")
        set_fields(self, times=_tuples(times), values=_tuples(values),
                   refocusing_times=_tuples(pulses), echo_time=echo_time,
                   storage=tuple(map(tuple, periods.tolist())))
        self.check_refocused()

    @cached_property
    def _samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Times and values of the effective f, to the echo, with the sign of each 180 folded in."""
        times, values = np.asarray(self.times), np.asarray(self.values)
        if self.echo_time > times[-1]:
            dead = np.zeros_like(values[:1])
            if np.any(values[-1] != 0.0):
                times, values = np.append(times, times[-1]), np.concatenate([values, dead])
            times, values = np.append(times, self.echo_time), np.concatenate([values, dead])
        for pulse in self.refocusing_times:
            left = np.searchsorted(times, pulse, side="left")
            right = np.searchsorted(times, pulse, side="right")
            if right - left < 2:  # no jump yet
                at = _interpolate(times, values, np.array([pulse]))
                times = np.concatenate([times[:left], [pulse, pulse], times[right:]])
                values = np.concatenate([values[:left], at, at, values[right:]])
            values = np.concatenate([values[: left + 1], -values[left + 1 :]])
        return times, values

    @property
    def breakpoints(self) -> tuple[float, ...]:
        return with_ends(self._samples[0].tolist(), self.storage)

    @cached_property
    def piecewise_constant(self) -> bool:
        times, values = self._samples
        changes = np.any(np.diff(values, axis=0).reshape(times.size - 1, -1) != 0.0, axis=1)
        return not np.any((np.diff(times) > 0.0) & changes)

    @cached_property
    def peak(self) -> float:
        """Largest |f|."""
        values = np.asarray(self.values)
        return float(np.max(np.linalg.norm(values.reshape(len(values), -1), axis=1)))

    def __call__(self, t):
        t = np.asarray(t, dtype=float)
        times, values = self._samples
        inside = (t >= 0.0) & (t <= self.echo_time)
        inside = inside.reshape(t.shape + (1,) * (values.ndim - 1))
        return np.where(inside, _interpolate(times, values, t), 0.0)

    @cached_property
    def _integral_at_samples(self) -> np.ndarray:
        times, values = self._samples
        lengths = np.diff(times).reshape((-1,) + (1,) * (values.ndim - 1))
        areas = 0.5 * lengths * (values[1:] + values[:-1])
        return np.concatenate([np.zeros_like(values[:1]), np.cumsum(areas, axis=0)])

    def integral(self, t):
        """F(t) in ms, exact for the linear pieces; shape that of t, or with an axis of 3 behind."""
        times, values = self._samples
        t = np.clip(np.asarray(t, dtype=float), 0.0, self.echo_time)
        # the clip keeps TE itself in the last piece
        piece = np.clip(np.searchsorted(times, t, side="right") - 1, 0, times.size - 2)
        elapsed = (t - times[piece]).reshape(t.shape + (1,) * (values.ndim - 1))
        now = _interpolate(times, values, t)
        return self._integral_at_samples[piece] + 0.5 * elapsed * (values[piece] + now)

    def _second_integral(self, t: np.ndarray) -> np.ndarray:
        """int_0^t F in ms^2, exact for the linear pieces; t inside [0, TE]."""
        times, values = self._samples
        F, axes = self._integral_at_samples, (1,) * (values.ndim - 1)
        lengths = np.diff(times).reshape((-1, *axes))
        areas = lengths * F[:-1] + lengths**2 * (2.0 * values[:-1] + values[1:]) / 6.0
        before = np.concatenate([np.zeros_like(values[:1]), np.cumsum(areas, axis=0)])
        piece = np.clip(np.searchsorted(times, t, side="right") - 1, 0, times.size - 2)
        elapsed = (t - times[piece]).reshape((-1, *axes))
        now = _interpolate(times, values, t)
        inside = elapsed * F[piece] + elapsed**2 * (2.0 * values[piece] + now) / 6.0
        return before[piece] + inside

    def _stretches(self, max_step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts, stops and constancy of the stretches that are cut one by one.

        Those are intervals longer than ``max_step``, stretches of constant f that long, and between
        them whole runs of shorter intervals, up to a jump.
        """
        times, values = self._samples
        changes = np.abs(np.diff(values, axis=0)).reshape(times.size - 1, -1)
        same = np.all(changes <= SAME_VALUE * self.peak, axis=1)
        found: list[list] = []  # start, stop, constant
        for i in np.flatnonzero(np.diff(times) > 0.0).tolist():
            joined = i > 0 and times[i] > times[i - 1]
            if joined and same[i] and found[-1][2]:
                found[-1][1] = times[i + 1]
            else:
                found.append([times[i], times[i + 1], bool(same[i]), joined])
        result: list[list] = []
        for start, stop, constant, joined in found:
            short = stop - start <= max_step * (1.0 + 1e-9)
            if short and joined and result[-1][3]:
                result[-1][1:3] = stop, False
            else:
                result.append([start, stop, constant, short])
        starts, stops, constant, _ = map(np.array, zip(*result, strict=True))
        return starts, stops, constant

    def segments(self, max_step: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As ``Waveform.segments``, but a step may span many samples.

        The two values of a step come from the mean of f and its first moment over the step, both
        exact, in place of two Gauss points (Blanes & Moan 2006): fine samples of a smooth gradient
        cost no more than the smooth gradient, and F is exact after every step.
        """
        if self.piecewise_constant:
            return super().segments()
        max_step = self._checked_step(max_step)
        starts, stops, constant = self._stretches(max_step)
        begin, h, constant = cut(starts, stops, constant, max_step)
        column = h.reshape((-1,) + (1,) * (self._samples[1].ndim - 1))
        end = np.minimum(begin + h, self.echo_time)
        F0, F1 = self.integral(begin), self.integral(end)
        mean = (F1 - F0) / column
        rise = self._second_integral(end) - self._second_integral(begin)
        moment = 0.5 * (F0 + F1) - rise / column  # int (t - middle) f dt / h
        tilt = 4.0 * moment / column
        values = np.stack([mean - tilt, mean + tilt], axis=1)
        middle = self(begin[constant] + 0.5 * h[constant])
        values[constant] = middle[:, None]
        values = values.reshape((-1, *mean.shape[1:]))
        return merge_pieces(np.repeat(0.5 * h, 2), values, np.repeat(constant, 2), self.peak)

    def describe(self) -> str:
        text = f"{self.name}, {len(self.times)} samples"
        if self.refocusing_times:
            times = ", ".join(f"{time:g}" for time in self.refocusing_times)
            text += f", 180-degree pulses at {times} ms"
        if self.storage:
            times = ", ".join(f"{start:g} to {stop:g}" for start, stop in self.storage)
            text += f", stored {times} ms"
        return f"{text}, TE {self.echo_time:g} ms"


def _interpolate(times: np.ndarray, values: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Linear interpolation of values (n,) or (n, 3); the right limit at a jump."""
    if values.ndim == 1:
        return np.interp(t, times, values)
    return np.stack([np.interp(t, times, component) for component in values.T], axis=-1)


@dataclass(frozen=True)
class Sampled(_Samples):
    """Waveform given by samples, linear in between.

    The same time given twice makes a jump. Only the shape matters: b fixes the strength.

    Attributes:
        times: Times in ms, from 0, never decreasing, at most two equal.
        values: f at those times, one for each.
        refocusing_times: Times of 180-degree pulses in ms. If given, ``values`` are the physical
            gradient of the scanner, and the sign of f changes at each of them; otherwise they are
            the effective one, with the sign folded in.
        echo_time: TE in ms; the last of ``times`` unless given.
        storage: Periods (start, stop) in ms in which magnetisation is stored along z
            (`spinverse.acquisition.waveform`), if any; ``values`` are zero there.

    Raises:
        InputError: Times, values or storage are malformed, or the waveform does not refocus.
    """

    name: ClassVar[str] = "Sampled"


@dataclass(frozen=True)
class SampledGradient(_Samples):
    """Gradient waveform in three dimensions given by samples, linear in between.

    Its direction may vary in time; f(t) is in the laboratory frame. Attributes and errors are those
    of `Sampled`, but for values of shape (n, 3) at n times.
    """

    name: ClassVar[str] = "SampledGradient"

    vector = True

    def rotated(self, rotation) -> SampledGradient:
        """R f(t) for an orthogonal matrix R, shape (3, 3); InputError if it is not, to 1e-6."""
        R = _numbers("rotation", rotation, 2)
        if R.shape != (3, 3) or np.max(np.abs(R @ R.T - np.eye(3))) > 1e-6:
            raise InputError("rotation: expected an orthogonal matrix of shape (3, 3)")
        values = np.asarray(self.values) @ R.T
        return SampledGradient(self.times, values, self.refocusing_times, self.echo_time,
                               self.storage)
