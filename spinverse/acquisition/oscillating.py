"""Oscillating gradients: cosine and sine OGSE."""

from __future__ import annotations

import operator
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from spinverse.acquisition.pulses import TwoPulses, pair_times, set_fields
from spinverse.acquisition.waveform import ROUNDING, echo_time_after
from spinverse.errors import InputError
from spinverse.units import frequency_from_internal


def _whole(periods: Any) -> int:
    """``periods`` as a positive int, or InputError."""
    try:
        number = int(periods) if float(periods).is_integer() else operator.index(periods)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise InputError(f"periods = {periods!r}: expected a whole number of at least 1")
    return number


@dataclass(frozen=True)
class _OGSE(TwoPulses):
    """What cosine and sine OGSE share."""

    periods: int
    echo_time: float = None  # type: ignore[assignment]  # a number once it is made

    def __post_init__(self) -> None:
        delta, big_delta = pair_times(self.delta, self.Delta)
        echo_time = echo_time_after(big_delta + delta, self.echo_time, "Delta + delta")
        set_fields(self, delta=delta, Delta=big_delta, periods=_whole(self.periods),
                   echo_time=echo_time)
        self.check_refocused()

    @property
    def _rate(self) -> float:
        """Angular frequency in rad/ms."""
        return 2.0 * np.pi * self.periods / self.delta

    @property
    def frequency(self) -> float:
        """Oscillation frequency in kHz (1/ms), periods / delta."""
        return self.periods / self.delta

    @property
    def breakpoints(self) -> tuple[float, ...]:
        # each period on its own, so that quadrature resolves any number of them
        grid = self.delta / self.periods * np.arange(self.periods)
        edges = np.concatenate([grid, self.Delta + grid, [self.delta, self._pulse_end]])
        edges = np.unique(np.append(edges, self.echo_time))
        apart = np.diff(edges) > ROUNDING * self.echo_time
        return tuple(edges[np.append(True, apart)].tolist())

    @abstractmethod
    def _lobe(self, t: np.ndarray) -> np.ndarray:
        """f of the first pulse, for t in [0, delta]."""

    @abstractmethod
    def _lobe_integral(self, t: np.ndarray) -> np.ndarray:
        """Integral of f from 0 to t in [0, delta]."""

    def __call__(self, t):
        t = np.asarray(t, dtype=float)
        first = np.where((t >= 0.0) & (t < self.delta), self._lobe(t), 0.0)
        inside = (t >= self.Delta) & (t < self._pulse_end)
        return first - np.where(inside, self._lobe(t - self.Delta), 0.0)

    def integral(self, t):
        """F(t) in ms, in closed form."""
        t = np.asarray(t, dtype=float)
        first = self._lobe_integral(np.clip(t, 0.0, self.delta))
        return first - self._lobe_integral(np.clip(t - self.Delta, 0.0, self.delta))

    def describe(self) -> str:
        """One line for a person."""
        hertz = frequency_from_internal(self.frequency)
        return (
            f"{self.name}, {self.periods} period(s) ({hertz:.4g} Hz), delta {self.delta:g} ms, "
            f"Delta {self.Delta:g} ms, TE {self.echo_time:g} ms"
        )


@dataclass(frozen=True)
class CosOGSE(_OGSE):
    """Oscillating gradient spin echo with cosine pulses (Does, Parsons & Gore 2003).

    f = cos(2 pi n t / delta) on [0, delta], -cos(2 pi n (t - Delta) / delta) on
    [Delta, Delta + delta], else 0, with n periods in a pulse.

    Attributes:
        delta: Length of a pulse, ms.
        Delta: From the start of the first pulse to the start of the second, ms; at least delta.
        periods: n, a whole number.
        echo_time: TE in ms; Delta + delta unless given.

    Raises:
        InputError: A time is not positive, the pulses overlap, n is not whole, or TE is too early.
    """

    name: ClassVar[str] = "CosOGSE"

    def _lobe(self, t):
        return np.cos(self._rate * t)

    def _lobe_integral(self, t):
        return np.sin(self._rate * t) / self._rate

    @property
    def b_factor_closed_form(self) -> float:
        """delta^3 / (2 pi n)^2 in ms^3."""
        return self.delta / self._rate**2

    @property
    def diffusion_time(self) -> float:
        """delta / (4 n) in ms, a quarter of a period (Does, Parsons & Gore 2003)."""
        return 0.25 * self.delta / self.periods


@dataclass(frozen=True)
class SinOGSE(_OGSE):
    """Oscillating gradient spin echo with sine pulses (Does, Parsons & Gore 2003).

    f = sin(2 pi n t / delta) on [0, delta], -sin(2 pi n (t - Delta) / delta) on
    [Delta, Delta + delta], else 0, with n periods in a pulse.

    Attributes and errors are those of `CosOGSE`.
    """

    name: ClassVar[str] = "SinOGSE"

    @property
    def antisymmetric(self) -> bool:
        return False

    @property
    def symmetric(self) -> bool:
        return self.echo_time == self._pulse_end

    def _lobe(self, t):
        return np.sin(self._rate * t)

    def _lobe_integral(self, t):
        return (1.0 - np.cos(self._rate * t)) / self._rate

    @property
    def b_factor_closed_form(self) -> float:
        """3 delta^3 / (2 pi n)^2 in ms^3."""
        return 3.0 * self.delta / self._rate**2

    @property
    def diffusion_time(self) -> float:
        """3 delta / (8 n) in ms, three eighths of a period (Does, Parsons & Gore 2003)."""
        return 0.375 * self.delta / self.periods
