"""Waveforms that store magnetisation along z: stimulated echo, filter-exchange imaging.

What storage is, and which factor is left out of the signals, `spinverse.acquisition.waveform` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from .pulses import PGSE, Pulses, pair_times, set_fields
from .waveform import ROUNDING, Waveform, echo_time_after, with_ends


def mixing_time_of(value: Any) -> float:
    """A mixing time in ms, not negative, or InputError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not (np.isfinite(number) and number >= 0.0):
        raise InputError(f"mixing_time = {value!r}: expected a time >= 0 in ms")
    return number


@dataclass(frozen=True)
class StimulatedEcho(Pulses):
    """Stimulated echo 90-90-90 with two rectangular pulses (Tanner, J. Chem. Phys. 52 (1970) 2523).

    f = +1 on [0, delta], -1 on [Delta, Delta + delta], else 0, as of `PGSE`. The second 90-degree
    pulse is at (TE - mixing_time) / 2, the third one ``mixing_time`` later; in between
    magnetisation is stored along z. Without mixing time it is the spin echo of the same pulses.
    The signal leaves out the factor 1/2 of the pathway: with T1 = T2 it is that of the spin echo.

    Attributes:
        delta: Length of a pulse, ms.
        Delta: From the start of the first pulse to the start of the second, ms; at least delta.
        mixing_time: Between the second and third 90-degree pulse, ms; Delta - delta, all of the
            time between the gradient pulses, unless given.
        echo_time: TE in ms, from the first 90-degree pulse to the echo, mixing time included;
            Delta + delta unless given.

    Raises:
        InputError: A time is out of range, the pulses overlap, TE is too early, or a gradient is on
            during the mixing time.
    """

    mixing_time: float = None  # type: ignore[assignment]  # a number once it is made
    echo_time: float = None  # type: ignore[assignment]  # a number once it is made

    name: ClassVar[str] = "StimulatedEcho"

    def __post_init__(self) -> None:
        delta, big_delta = pair_times(self.delta, self.Delta)
        end = "Delta + delta"
        echo_time = echo_time_after(big_delta + delta, self.echo_time, end)
        # both pulses while the magnetisation is transverse
        most = min(echo_time - 2.0 * delta, 2.0 * big_delta - echo_time)
        if self.mixing_time is None and most < 0.0:
            raise InputError(f"echo_time = {echo_time:g} ms: expected at most 2 Delta = "
                             f"{2.0 * big_delta:g} ms")
        time = most if self.mixing_time is None else mixing_time_of(self.mixing_time)
        if abs(time - most) <= ROUNDING * echo_time:
            time = max(most, 0.0)
        if time > most:
            raise InputError(f"mixing_time = {time:g} ms: expected at most {most:g} ms, where no "
                             "gradient is on (Delta - delta, less with a later echo_time)")
        start = 0.5 * (echo_time - time)
        set_fields(self, storage=((start, start + time),) if time > 0.0 else ())
        self._finish(end, delta=delta, Delta=big_delta, mixing_time=time)

    @property
    def breakpoints(self) -> tuple[float, ...]:
        return with_ends(super().breakpoints, self.storage)

    @property
    def diffusion_time(self) -> float:
        """Delta - delta/3 in ms."""
        return self.Delta - self.delta / 3.0

    def describe(self) -> str:
        return self._describe(more=f", mixing time {self.mixing_time:g} ms")


@dataclass(frozen=True)
class FEXI(Waveform):
    """Filter-exchange imaging (Lasic et al., Magn. Reson. Med. 66 (2011) 356).

    A filter, a spin echo with a pair of pulses that takes the magnetisation of fast diffusion away,
    storage along z for the mixing time, in which water exchanges, and another spin echo that
    detects. A pair is + on [0, delta], - on [Delta, Delta + delta] after its start, as of `PGSE`;
    both are along the direction of the table's row. The b-value of a row is that of both blocks
    together, of which ``filter_share`` is the filter's: a waveform for each pair of them
    (`Acquisition.fexi` makes these). The factor 1/2 of the pathway is left out of the signal.

    Attributes:
        delta, Delta: Of the detection, ms.
        mixing_time: From the end of the filter to the start of the detection, ms.
        filter_share: Of the b-value, in [0, 1].
        filter_delta, filter_Delta: Of the filter, ms; as of the detection unless given.
        filter_echo_time: From the excitation to the storage, ms; filter_Delta + filter_delta unless
            given.
        echo_time: TE in ms, from the excitation to the last echo, mixing time included; the end of
            the last pulse unless given.

    Raises:
        InputError: A time or the share is out of range, or pulses overlap.
    """

    delta: float
    Delta: float
    mixing_time: float
    filter_share: float
    filter_delta: float | None = None
    filter_Delta: float | None = None
    filter_echo_time: float | None = None
    echo_time: float = None  # type: ignore[assignment]  # a number once it is made

    name: ClassVar[str] = "FEXI"
    # amplitude, pulses and begin of the filter and the detection; no field, set for each waveform
    _blocks: ClassVar[tuple[tuple[float, PGSE, float], ...]]

    def __post_init__(self) -> None:
        detection = PGSE(self.delta, self.Delta)
        try:
            share = float(self.filter_share)
        except (TypeError, ValueError):
            share = np.nan
        if not 0.0 <= share <= 1.0:
            raise InputError(f"filter_share = {self.filter_share!r}: expected a part of b in "
                             "[0, 1]")
        given = (detection.delta if self.filter_delta is None else self.filter_delta,
                 detection.Delta if self.filter_Delta is None else self.filter_Delta)
        try:
            encoding = PGSE(*given, self.filter_echo_time)  # type: ignore[arg-type]
        except InputError as error:
            raise InputError(f"filter: {error}") from None
        time = mixing_time_of(self.mixing_time)
        begin = encoding.echo_time + time
        end = begin + detection.Delta + detection.delta
        # amplitudes that share b so, the larger one 1
        sizes = np.sqrt([share / _b_factor(encoding), (1.0 - share) / _b_factor(detection)])
        sizes /= sizes.max()
        set_fields(self, delta=detection.delta, Delta=detection.Delta, mixing_time=time,
                   filter_share=share, filter_delta=encoding.delta, filter_Delta=encoding.Delta,
                   filter_echo_time=encoding.echo_time, echo_time=echo_time_after(
                       end, self.echo_time, "the end of the last pulse"),
                   storage=((encoding.echo_time, begin),) if time > 0.0 else (),
                   _blocks=tuple(zip(sizes.tolist(), (encoding, detection), (0.0, begin),
                                     strict=True)))
        self.check_refocused()

    @property
    def breakpoints(self) -> tuple[float, ...]:
        times = {start + time for _, pair, start in self._blocks for time in pair.breakpoints}
        edges = sorted({*times, self.echo_time})
        apart = np.diff(edges) > ROUNDING * self.echo_time
        return with_ends((0.0, *(time for time, new in zip(edges[1:], apart, strict=True) if new)),
                         self.storage)

    @property
    def piecewise_constant(self) -> bool:
        return True

    def __call__(self, t):
        t = np.asarray(t, dtype=float)
        return sum(size * pair(t - start) for size, pair, start in self._blocks)

    def integral(self, t):
        """F(t) in ms, in closed form."""
        t = np.asarray(t, dtype=float)
        return sum(size * pair.integral(np.maximum(t - start, 0.0))
                   for size, pair, start in self._blocks)

    @property
    def diffusion_time(self) -> float:
        """Delta - delta/3 in ms, that of the detection."""
        return self.Delta - self.delta / 3.0

    def describe(self) -> str:
        return (f"{self.name}, delta {self.delta:g} ms, Delta {self.Delta:g} ms, mixing time "
                f"{self.mixing_time:g} ms, filter {self.filter_delta:g}/{self.filter_Delta:g} ms "
                f"with {self.filter_share:.4g} of b, TE {self.echo_time:g} ms")


def _b_factor(pair: PGSE) -> float:
    return pair.delta**2 * (pair.Delta - pair.delta / 3.0)
