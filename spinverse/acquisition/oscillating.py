"""Oscillating gradients: cosine and sine OGSE."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError
from ..units import frequency_from_internal
from .pulses import Pulses, pair_times


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
class _OGSE(Pulses):
    """What cosine and sine OGSE share."""

    periods: int
    echo_time: float = None  # type: ignore[assignment]  # a number once it is made

    piecewise_constant = False

    def __post_init__(self) -> None:
        delta, big_delta = pair_times(self.delta, self.Delta)
        self._finish("Delta + delta", delta=delta, Delta=big_delta, periods=_whole(self.periods))

    @property
    def _rate(self) -> float:
        """Angular frequency in rad/ms."""
        return 2.0 * np.pi * self.periods / self.delta

    @property
    def frequency(self) -> float:
        """Oscillation frequency in kHz (1/ms), periods / delta."""
        return self.periods / self.delta

    @property
    def _corners(self) -> tuple[float, ...]:
        # each period on its own, so that quadrature resolves any number of them
        grid = self.delta / self.periods * np.arange(self.periods)
        return (*grid.tolist(), self.delta)

    def describe(self) -> str:
        hertz = frequency_from_internal(self.frequency)
        return self._describe(f", {self.periods} period(s) ({hertz:.4g} Hz)")


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

    def _lobe(self, t):
        return np.sin(self._rate * t)

    def _lobe_integral(self, t):
        return (1.0 - np.cos(self._rate * t)) / self._rate

    @property
    def diffusion_time(self) -> float:
        """3 delta / (8 n) in ms, three eighths of a period (Does, Parsons & Gore 2003)."""
        return 0.375 * self.delta / self.periods
