"""Waveforms of rectangular and trapezoidal pulses: PGSE, double PGSE, PGSE with ramps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from .waveform import ROUNDING, Waveform, echo_time_after, floats, positive

_UNIT_TOLERANCE = 1e-6


def pair_times(delta: Any, Delta: Any, ramp: float = 0.0) -> tuple[float, float]:
    """delta and Delta in ms, or InputError, of two pulses of delta + ramp that do not overlap."""
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


@dataclass(frozen=True)
class Pulses(Waveform):
    """Pulses of one shape, rectangular unless a subclass says another: a pulse and its opposite."""

    delta: float
    Delta: float

    piecewise_constant = True

    def _finish(self, end: str, **values: Any) -> None:
        """Set the fields, and TE as it follows; ``end`` is that of the pulses in words."""
        set_fields(self, **values)
        last = self._starts[-1] + self._corners[-1]
        set_fields(self, echo_time=echo_time_after(last, self.echo_time, end))
        self.check_refocused()

    @property
    def _starts(self) -> tuple[float, ...]:
        """Of the pulses, ms."""
        return 0.0, self.Delta

    @property
    def _corners(self) -> tuple[float, ...]:
        """Where a pulse is not smooth, its start and its end included, ms after its start."""
        return 0.0, self.delta

    def _lobe(self, t: np.ndarray) -> np.ndarray:
        """f of a pulse, for t from its start to its end."""
        return np.ones_like(t)

    def _lobe_integral(self, t: np.ndarray) -> np.ndarray:
        """Integral of f from the start of a pulse to t before its end."""
        return t

    def _sum(self, pulses: list[np.ndarray]) -> np.ndarray:
        """The pulses with their signs."""
        return pulses[0] - pulses[1]

    @property
    def breakpoints(self) -> tuple[float, ...]:
        edges = {start + corner for start in self._starts for corner in self._corners}
        edges = sorted(edges | {self.echo_time})
        # back to back, an end and a start may differ by rounding
        apart = np.diff(edges) > ROUNDING * self.echo_time
        return (0.0, *(time for time, new in zip(edges[1:], apart, strict=True) if new))

    def __call__(self, t):
        t, length = np.asarray(t, dtype=float), self._corners[-1]
        return self._sum([np.where((t >= start) & (t < start + length), self._lobe(t - start), 0.0)
                          for start in self._starts])

    def integral(self, t):
        """F(t) in ms, in closed form."""
        t, length = np.asarray(t, dtype=float), self._corners[-1]
        # by its end a pulse has its whole area, whatever rounding says
        return self._sum([self._lobe_integral(np.where(
            t < start + length, np.clip(t - start, 0.0, length), length))
            for start in self._starts])

    def _describe(self, kind: str = "", more: str = "") -> str:
        return (f"{self.name}{kind}, delta {self.delta:g} ms, Delta {self.Delta:g} ms{more}, "
                f"TE {self.echo_time:g} ms")

    def describe(self) -> str:
        return self._describe()


@dataclass(frozen=True)
class PGSE(Pulses):
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
        self._finish("Delta + delta", delta=delta, Delta=big_delta)

    @property
    def diffusion_time(self) -> float:
        """Delta - delta/3 in ms."""
        return self.Delta - self.delta / 3.0


@dataclass(frozen=True)
class DoublePGSE(Pulses):
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
            raise InputError(f"parallel = {self.parallel!r}: expected True (or 1) or False (or -1)")
        self._finish("2 Delta + mixing_time + delta", delta=delta, Delta=big_delta,
                     mixing_time=mixing_time, parallel=self.parallel in (True, 1),
                     directions=self._unit_vectors())

    def _unit_vectors(self) -> tuple[tuple[float, ...], ...] | None:
        if self.directions is None:
            return None
        vectors = floats("directions", self.directions)
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
    def _sign(self) -> float:
        return 1.0 if self.parallel else -1.0

    def _sum(self, pulses: list[np.ndarray]) -> np.ndarray:
        """Four pulses with their signs, along their directions if there are any."""
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
    def diffusion_time(self) -> float:
        """Delta - delta/3 in ms, that of each pair."""
        return self.Delta - self.delta / 3.0

    def describe(self) -> str:
        kind = "parallel" if self.parallel else "antiparallel"
        if self.directions is not None:
            first, second = self.directions
            cosine = self._sign * np.dot(first, second)
            kind = f"angle {np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))):.4g} degrees"
        return self._describe(f", {kind}", f", mixing time {self.mixing_time:g} ms")


@dataclass(frozen=True)
class TrapezoidPGSE(Pulses):
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
    piecewise_constant = False

    def __post_init__(self) -> None:
        ramp = positive("ramp", self.ramp)
        delta, big_delta = pair_times(self.delta, self.Delta, ramp)
        if abs(delta - ramp) <= ROUNDING * delta:
            ramp = delta
        if ramp > delta:
            raise InputError(f"ramp = {ramp:g} ms: expected at most delta = {delta:g} ms")
        self._finish("Delta + delta + ramp", delta=delta, Delta=big_delta, ramp=ramp)

    @property
    def _corners(self) -> tuple[float, ...]:
        return 0.0, self.ramp, self.delta, self.delta + self.ramp

    def _lobe(self, t):
        # a minimum rather than interpolation, so that the flat top is exactly 1
        fall = (self.delta + self.ramp - t) / self.ramp
        return np.clip(np.minimum(t / self.ramp, fall), 0.0, 1.0)

    def _lobe_integral(self, t):
        def rise(s):
            return np.clip(s, 0.0, self.ramp) ** 2 / (2.0 * self.ramp) + np.maximum(
                s - self.ramp, 0.0)

        return rise(t) - rise(t - self.delta)

    def describe(self) -> str:
        return self._describe(more=f", ramp {self.ramp:g} ms")
