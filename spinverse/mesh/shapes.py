"""Solid shapes that say which points they hold; builders use them to tag cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf

import numpy as np

from spinverse.errors import InputError
from spinverse.mesh.arguments import positive, shown, vector


def _axis(owner: str, key: str, value) -> tuple[float, float, float]:
    axis = np.array(vector(owner, key, value))
    length = np.linalg.norm(axis)
    if not length > 0:
        raise InputError(f"{owner}: {key} is {shown(value)}, expected a vector that is not zero")
    return vector(owner, key, axis / length)


def _path(owner: str, key: str, value) -> tuple[tuple[float, float, float], ...]:
    rows = value if np.ndim(value) else ()
    path = tuple(vector(owner, f"{key}[{i}]", p) for i, p in enumerate(rows))
    if len(path) < 2:
        raise InputError(f"{owner}: {key} has {len(path)} points, expected at least 2")
    for i in range(1, len(path)):
        if path[i] == path[i - 1]:
            raise InputError(f"{owner}: {key}[{i}] repeats {key}[{i - 1}] {_text(path[i])}, "
                             "expected different points")
    return path


def _text(row) -> str:
    return "(" + ", ".join(f"{v:g}" for v in row) + ")"


CHECKS: dict[str, Callable] = {"axis": _axis, "centre": vector, "path": _path,
                               "height": partial(positive, infinite=True)}


class Shape:
    """A solid whose surface is known.

    Attributes:
        axis: direction, of any length; kept as a unit vector.
        centre: (x, y, z), um.

    Raises:
        InputError: lengths that are not positive, a zero axis, a centre that is not three numbers.
    """

    centre: tuple[float, float, float]
    axis: tuple[float, float, float]

    def __post_init__(self):
        for key, value in vars(self).items():
            check = CHECKS.get(key, positive)
            object.__setattr__(self, key, check(type(self).__name__, key, value))

    def describe(self) -> str:
        """One line for reports."""
        raise NotImplementedError

    def level(self, points: np.ndarray) -> np.ndarray:
        """Signed distance at ``points (n, 3)`` um, ``(n,)`` um, negative inside.

        Of a cylinder it is not exact near the edges.
        """
        raise NotImplementedError

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which of ``points (n, 3)`` um are inside or on the surface, ``(n,)`` bool."""
        points = np.asarray(points, dtype=float)
        if points.ndim != 2 or points.shape[1] != 3:
            raise InputError(f"contains: points have shape {points.shape}, expected (n, 3)")
        return self.level(points) <= 0

    def _around(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinate along the axis, and the distance to it."""
        offset = points - np.array(self.centre)
        along = offset @ np.array(self.axis)
        return along, np.linalg.norm(offset - np.outer(along, self.axis), axis=1)


@dataclass(frozen=True)
class Ball(Shape):
    """A ball.

    Attributes:
        radius: um.
    """

    radius: float
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def level(self, points: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points - np.array(self.centre), axis=1) - self.radius

    def describe(self) -> str:
        return f"ball of radius {self.radius:g} um at {_text(self.centre)} um"


@dataclass(frozen=True)
class Cylinder(Shape):
    """A circular cylinder.

    Attributes:
        radius: um.
        height: um, inf for one without ends.
    """

    radius: float
    height: float = inf
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def level(self, points: np.ndarray) -> np.ndarray:
        along, across = self._around(points)
        return np.maximum(across - self.radius, np.abs(along) - self.height / 2)

    def describe(self) -> str:
        height = "endless" if self.height == inf else f"height {self.height:g} um"
        return (f"cylinder of radius {self.radius:g} um, {height}, along {_text(self.axis)} "
                f"at {_text(self.centre)} um")


@dataclass(frozen=True)
class BentTube(Shape):
    """All points within a radius of a polyline; its ends and bends are round.

    Attributes:
        radius: um.
        path: the polyline's points, ``(n, 3)`` um, n >= 2, kept as a tuple of tuples.

    Raises:
        InputError: as all, and fewer than two points, or repeated ones.
    """

    radius: float
    path: tuple[tuple[float, float, float], ...]

    def level(self, points: np.ndarray) -> np.ndarray:
        path = np.array(self.path)
        nearest = np.full(len(points), inf)
        for start, end in zip(path[:-1], path[1:], strict=True):
            leg = end - start
            share = np.clip((points - start) @ leg / (leg @ leg), 0, 1)
            gap = np.linalg.norm(points - start - np.outer(share, leg), axis=1)
            nearest = np.minimum(nearest, gap)
        return nearest - self.radius

    def describe(self) -> str:
        length = np.linalg.norm(np.diff(self.path, axis=0), axis=1).sum()
        return (f"tube of radius {self.radius:g} um along {len(self.path)} points "
                f"({length:.4g} um) from {_text(self.path[0])} to {_text(self.path[-1])} um")


@dataclass(frozen=True)
class Torus(Shape):
    """A torus around its axis.

    Attributes:
        major_radius: of the circle in the tube's middle, um.
        minor_radius: of the tube, um, below ``major_radius``.

    Raises:
        InputError: as all, and radii that do not leave a hole.
    """

    major_radius: float
    minor_radius: float
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self):
        super().__post_init__()
        if self.minor_radius >= self.major_radius:
            raise InputError(f"Torus: minor_radius is {self.minor_radius:g} um, expected less "
                             f"than major_radius {self.major_radius:g} um")

    def level(self, points: np.ndarray) -> np.ndarray:
        along, across = self._around(points)
        return np.hypot(across - self.major_radius, along) - self.minor_radius

    def describe(self) -> str:
        return (f"torus of radii {self.major_radius:g} and {self.minor_radius:g} um around "
                f"{_text(self.axis)} at {_text(self.centre)} um")
