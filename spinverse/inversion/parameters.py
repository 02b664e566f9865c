"""Unknown numbers beside the membranes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError

SCALES = ("log", "linear")


@dataclass(frozen=True)
class Unknown:
    """A number that is found with the membranes.

    Attributes:
        start: what the search begins with, in the unit of what it is a value of.
        low, high: range.
        scale: "log": steps are relative, which needs a positive range; or "linear".

    Raises:
        InputError: a range that is empty or does not hold the start.
    """

    start: float
    low: float
    high: float
    scale: str = "log"

    def __post_init__(self):
        if self.scale not in SCALES:
            raise InputError(f"scale: {self.scale!r}, expected one of {', '.join(SCALES)}")
        if not self.low < self.high < np.inf or not np.isfinite(self.low):
            raise InputError(f"low, high: {self.low:g}, {self.high:g}, expected two finite "
                             "numbers, the lower first")
        if not self.low <= self.start <= self.high:
            raise InputError(f"start: {self.start:g}, expected a value from {self.low:g} to "
                             f"{self.high:g}")
        if self.scale == "log" and self.low <= 0:
            raise InputError(f"low: {self.low:g}, expected a positive number, or scale 'linear'")

    @property
    def range(self) -> tuple[float, float]:
        """In the coordinate."""
        return self.coordinate(self.low), self.coordinate(self.high)

    def coordinate(self, value: float) -> float:
        """Where steps are taken: the logarithm, or the share of the range."""
        if self.scale == "log":
            return float(np.log(value))
        return (value - self.low) / (self.high - self.low)

    def value(self, coordinate: float) -> float:
        """The value at a coordinate, kept in the range."""
        value = np.exp(coordinate) if self.scale == "log" else (
            self.low + coordinate * (self.high - self.low))
        return float(np.clip(value, self.low, self.high))
