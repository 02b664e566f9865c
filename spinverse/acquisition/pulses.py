"""Waveforms of rectangular and trapezoidal pulses: PGSE, double PGSE, PGSE with ramps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from spinverse.acquisition.waveform import ROUNDING, Waveform, echo_time_after, positive
from spinverse.errors import InputError

_UNIT_TOLERANCE = 1e-6


def pair_times(delta: Any, Delta: Any, ramp: float = 0.0) -> tuple[float, float]:
    """delta and Delta in ms of two pulses that last delta + ramp and do not overlap.

    Raises:
        InputError: A time is not positive, or Delta is shorter than a pulse.
    """
    delta, big_delta = positive("delta", delta), positive("Delta", Delta)
    length = delta + ramp
    if abs(big_delta - length) <= ROUNDING * length:
        big_delta = length
    if big_delta < length:
        what = "delta + ramp" if ramp else "delta"
        raise InputError(f"Delta = {big_delta:g} ms: expected at least {what} = {length:g} ms")
    return delta, big_delta


def set_fields(frozen: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass, while it is made."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def box(t: np.ndarray, start: float, stop: float) -> np.ndarray:
    """1 on [start, stop), else 0."""
    return ((t >= start) & (t < stop)).astype(float)


def _cosine(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    return float(np.dot(first, second))


@dataclass(frozen=True)
class TwoPulses(Waveform):
    """A pulse and its opposite, Delta later: what single PGSE and OGSE share."""

    delta: float
    Delta: float

    @property
    def _length(self) -> float:
        """Of a pulse, ms."""
        return self.delta

    @property
    def _pulse_end(self) -> float:
        return self.Delta + self._length

    @property
    def piecewise_constant(self) -> bool:
        return False

    @property
    def antisymmetric(self) -> bool:
        return self.echo_time == self._pulse_end

    @property
    def symmetric(self) -> bool:
        return False


@dataclass(frozen=True)
class PGSE(TwoPulses):
    """Pulsed-gradient spin echo: two rectangular pulses (Stejskal & Tanner 1965).

    f = +1 on [0, delta], -1 on [Delta, Delta + delta], else 0.

    Attributes:
        delta: Length of a pulse, ms.
        Delta: From the start of the first pulse to the start of the second, ms; at least delta.
        echo_time: TE in ms; Delta + delta unless given, later means dead time at the end.

    Raises:
        InputError: A time is not positive, the pulses overlap, or TE is too early.
    """

    echo_time: float = None  # type: ignore[assignment]  # a number once it is made

    name: ClassVar[str] = "PGSE"

    def __post_init__(self) -> None:
        delta, big_delta = pair_times(self.delta, self.Delta)
        echo_time = echo_time_after(big_delta + delta, self.echo_time, "Delta + delta")
        set_fields(self, delta=delta, Delta=big_delta, echo_time=echo_time)
        self.check_refocused()

    @property
    def breakpoints(self) -> tuple[float, ...]:
        # as a set: without a gap or dead time two of them coincide
        return tuple(sorted({0.0, self.delta, self.Delta, self._pulse_end, self.echo_time}))

    @property
    def piecewise_constant(self) -> bool:
        return True

    def __call__(self, t):
        t = np.asarray(t, dtype=float)
        return box(t, 0.0, self.delta) - box(t, self.Delta, self._pulse_end)

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
class DoublePGSE(Waveform):
    """Double PGSE (double diffusion encoding): two pairs of rectangular pulses.

    With d1 and d2 the directions of the pairs (both the row's direction unless given) and s = +1
    for parallel, -1 for antiparallel encoding, the pulses of length delta are

        + d1 at 0,  - d1 at Delta,  + s d2 at Delta + mixing_time,  - s d2 at 2 Delta + mixing_time.

    So the signs are + - + - (parallel) or + - - + (antiparallel), with the 180-degree pulses folded
    in: parallel means equal wave vectors q1 = q2.

    Attributes:
        delta: Length of a pulse, ms.
        Delta: From the start of the first pulse of a pair to the start of its second, ms.
        mixing_time: From the start of the second pulse to the start of the third, ms: between
            leading edges, as Delta is, so that 0 superposes these two pulses, less than delta
            overlaps them, and delta puts the pairs back to back. With a pause between the end of
            one pair and the start of the other (SpinDoctor's tpause) it is ``pause + delta``.
        parallel: True or +1 for parallel, False or -1 for antiparallel.
        directions: d1 and d2, unit vectors of shape (2, 3). If given, the waveform is vector
            valued, and the row's direction is not used.
        echo_time: TE in ms; 2 Delta + mixing_time + delta unless given.

    Raises:
        InputError: A time is out of range, or a direction is not a unit vector to 1e-6.
    """

    delta: float
    Delta: float
    mixing_time: float
    parallel: bool = True
    directions: tuple[tuple[float, ...], ...] | None = None
    echo_time: float = None  # type: ignore[assignment]  # a number once it is made

    name: ClassVar[str] = "DoublePGSE"

    def __post_init__(self) -> None:
        delta, big_delta = pair_times(self.delta, self.Delta)
        try:
            mixing_time = float(self.mixing_time)
        except (TypeError, ValueError):
            mixing_time = np.nan
        if not (np.isfinite(mixing_time) and mixing_time >= 0.0):
            raise InputError(f"mixing_time = {self.mixing_time!r}: expected a time >= 0 in ms")
        if abs(mixing_time - delta) <= ROUNDING * delta:
            mixing_time = delta
        if self.parallel not in (True, False, -1):
            raise InputError(
                f"parallel = {self.parallel!r}: expected True (or 1) or False (or -1)"
            )
        set_fields(
            self,
            delta=delta,
            Delta=big_delta,
            mixing_time=mixing_time,
            parallel=self.parallel in (True, 1),
            directions=self._unit_vectors(),
        )
        what = "2 Delta + mixing_time + delta"
        set_fields(self, echo_time=echo_time_after(self._pulse_end, self.echo_time, what))
        self.check_refocused()

    def _unit_vectors(self) -> tuple[tuple[float, ...], ...] | None:
        if self.directions is None:
            return None
        try:
            vectors = np.array(self.directions, dtype=float)
        except (TypeError, ValueError):
            vectors = np.empty(0)
        if vectors.shape != (2, 3) or not np.all(np.isfinite(vectors)):
            raise InputError(f"directions: {self.directions!r:.60}, expected two vectors (2, 3)")
        for norm in np.linalg.norm(vectors, axis=1):
            if abs(norm - 1.0) > _UNIT_TOLERANCE:
                raise InputError(f"directions: length {norm:.9g}, expected two unit vectors")
        first, second = (tuple(vectors[k].tolist()) for k in (0, 1))
        return first, second

    @property
    def vector(self) -> bool:
        return self.directions is not None

    @property
    def _starts(self) -> tuple[float, ...]:
        third = self.Delta + self.mixing_time
        return 0.0, self.Delta, third, third + self.Delta

    @property
    def _pulse_end(self) -> float:
        return self._starts[3] + self.delta

    @property
    def _sign(self) -> float:
        return 1.0 if self.parallel else -1.0

    @property
    def breakpoints(self) -> tuple[float, ...]:
        edges = {time for start in self._starts for time in (start, start + self.delta)}
        edges = sorted(edges | {self.echo_time})
        # back to back, an end and a start may differ by rounding
        apart = np.diff(edges) > ROUNDING * self.echo_time
        return (0.0, *(time for time, new in zip(edges[1:], apart, strict=True) if new))

    @property
    def piecewise_constant(self) -> bool:
        return True

    def __call__(self, t):
        t = np.asarray(t, dtype=float)
        return self._both_pairs([box(t, s, s + self.delta) for s in self._starts])

    def integral(self, t):
        """F(t) in ms, in closed form."""
        t = np.asarray(t, dtype=float)
        return self._both_pairs(
            [self.delta * np.clip((t - s) / self.delta, 0.0, 1.0) for s in self._starts])

    def _both_pairs(self, pulses: list[np.ndarray]) -> np.ndarray:
        """The sum of four pulses with their signs, along their directions if there are any."""
        first, second = pulses[0] - pulses[1], self._sign * (pulses[2] - pulses[3])
        if self.directions is None:
            return first + second
        d1, d2 = np.asarray(self.directions)
        return first[..., None] * d1 + second[..., None] * d2

    @property
    def peak(self) -> float:
        """Largest |f|; not 1 where the second and third pulses overlap."""
        breakpoints = np.asarray(self.breakpoints)
        f = self(0.5 * (breakpoints[:-1] + breakpoints[1:])).reshape(breakpoints.size - 1, -1)
        return float(np.max(np.linalg.norm(f, axis=1)))

    @property
    def b_factor_closed_form(self) -> float:
        """2 delta^2 (Delta - delta/3) in ms^3; s d1.d2 (delta - mixing_time)^3 / 3 more, where the
        second and third pulses overlap."""
        cosine = 1.0 if self.directions is None else _cosine(*self.directions)
        overlap = max(self.delta - self.mixing_time, 0.0)
        both = 2.0 * self.delta**2 * (self.Delta - self.delta / 3.0)
        return both + self._sign * cosine * overlap**3 / 3.0

    @property
    def diffusion_time(self) -> float:
        """Delta - delta/3 in ms, that of each pair."""
        return self.Delta - self.delta / 3.0

    def describe(self) -> str:
        """One line for a person."""
        kind = "parallel" if self.parallel else "antiparallel"
        if self.directions is not None:
            cosine = self._sign * _cosine(*self.directions)
            kind = f"angle {np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))):.4g} degrees"
        return (
            f"DoublePGSE, {kind}, delta {self.delta:g} ms, Delta {self.Delta:g} ms, "
            f"mixing time {self.mixing_time:g} ms, TE {self.echo_time:g} ms"
        )


@dataclass(frozen=True)
class TrapezoidPGSE(TwoPulses):
    """PGSE whose pulses have ramps.

    A pulse rises from 0 to 1 in ``ramp``, is 1 until ``delta`` and falls to 0 at delta + ramp, so
    that its area is delta. The second pulse is the first one shifted by Delta, negative.

    Attributes:
        delta: Time from the start of a pulse to the start of its fall, ms: one ramp and the flat
            top. At least ramp; equal to it the pulse is a triangle.
        Delta: From the start of the first pulse to the start of the second, ms; at least
            delta + ramp.
        ramp: Time of a rise or fall, ms.
        echo_time: TE in ms; Delta + delta + ramp unless given.

    Raises:
        InputError: A time is not positive, the pulses overlap, or TE is too early.
    """

    ramp: float
    echo_time: float = None  # type: ignore[assignment]  # a number once it is made

    name: ClassVar[str] = "TrapezoidPGSE"

    def __post_init__(self) -> None:
        ramp = positive("ramp", self.ramp)
        delta, big_delta = pair_times(self.delta, self.Delta, ramp)
        if abs(delta - ramp) <= ROUNDING * delta:
            ramp = delta
        if ramp > delta:
            raise InputError(f"ramp = {ramp:g} ms: expected at most delta = {delta:g} ms")
        end = big_delta + (delta + ramp)
        echo_time = echo_time_after(end, self.echo_time, "Delta + delta + ramp")
        set_fields(self, delta=delta, Delta=big_delta, ramp=ramp, echo_time=echo_time)
        self.check_refocused()

    @property
    def _length(self) -> float:
        return self.delta + self.ramp

    @property
    def breakpoints(self) -> tuple[float, ...]:
        corners = (0.0, self.ramp, self.delta, self._length)
        second = {self.Delta + time for time in corners}
        return tuple(sorted({*corners, *second, self.echo_time}))

    def __call__(self, t):
        t = np.asarray(t, dtype=float)
        # a minimum rather than interpolation, so that the flat top is exactly 1
        rise = [(t - start) / self.ramp for start in (0.0, self.Delta)]
        fall = [(start + self._length - t) / self.ramp for start in (0.0, self.Delta)]
        first, second = (
            np.clip(np.minimum(up, down), 0.0, 1.0) for up, down in zip(rise, fall, strict=True)
        )
        return first - second

    @property
    def b_factor_closed_form(self) -> float:
        """delta^2 (Delta - delta/3) + ramp^3/30 - delta ramp^2/6 in ms^3."""
        square = self.delta**2 * (self.Delta - self.delta / 3.0)
        return square + self.ramp**3 / 30.0 - self.delta * self.ramp**2 / 6.0

    @property
    def diffusion_time(self) -> float:
        """b_factor / delta^2 in ms; Delta - delta/3 for short ramps."""
        return self.b_factor_closed_form / self.delta**2

    def describe(self) -> str:
        """One line for a person."""
        return (
            f"TrapezoidPGSE, delta {self.delta:g} ms, Delta {self.Delta:g} ms, "
            f"ramp {self.ramp:g} ms, TE {self.echo_time:g} ms"
        )
