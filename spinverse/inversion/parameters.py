"""Unknown numbers beside the membranes: theta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..engines.shapes.walls import Walls
from ..errors import InputError
from ..problem import BlochTorrey

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


# What the equation takes a number as. Each sets it in the discrete problem; a new one is a function
# here and a name below.

def _wall_permeability(forward: BlochTorrey, walls: Walls, value: float) -> Walls:
    """um/ms, of all walls."""
    return replace(walls, wall=value)


def _diffusivity(forward: BlochTorrey, walls: Walls, value: float) -> Walls:
    """um^2/ms, the same everywhere."""
    forward.coefficients.D.x.array[:] = value
    return walls


def _T2(forward: BlochTorrey, walls: Walls, value: float) -> Walls:
    """ms, the same everywhere."""
    forward.coefficients.R2.x.array[:] = 1.0 / value
    return walls


KINDS = {"wall_permeability": _wall_permeability, "diffusivity": _diffusivity, "T2": _T2}


def check(unknown: Mapping[str, Unknown], known: Mapping[str, object],
          coefficients: Mapping[str, object]) -> None:
    """Raise InputError for unknown numbers that are no numbers of the problem.

    Args:
        unknown: by name.
        known: arguments of the problem that have this name: what is known, if it is.
        coefficients: of the user's terms.
    """
    for name, value in unknown.items():
        if not isinstance(value, Unknown):
            raise InputError(f"unknown: {name}: a {type(value).__name__}, expected "
                             "Unknown(start, low, high)")
        given = coefficients.get(name, known.get(name, 0.0))
        if name not in {**KINDS, **coefficients}:
            names = ", ".join([*KINDS, *coefficients])
            raise InputError(f"unknown: {name!r}, expected one of {names}")
        if not isinstance(given, int | float):
            raise InputError(f"unknown: {name}: its known value is no single number, expected one "
                             "number for the whole mesh")


def apply(theta: Mapping[str, float], forward: BlochTorrey, walls: Walls) -> Walls:
    """Put values into a discrete problem, and into the permeabilities of walls."""
    for name, value in theta.items():
        if name in KINDS:
            walls = KINDS[name](forward, walls, value)
        else:
            forward.coefficients[name].value = value
    return walls
