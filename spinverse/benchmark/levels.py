"""Signed distances to the surfaces of shapes, um, negative inside."""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from ..errors import InputError
from ..mesh.shapes import Ball, BentTube, Cylinder, Torus
from .blob import Blob


@singledispatch
def level(shape, points: np.ndarray) -> np.ndarray:
    """The distance at ``points (n, 3)`` um, ``(n,)`` um; of a cylinder and a blob not exact.

    Raises:
        InputError: a shape that has no such function.
    """
    raise InputError(f"shape: a {type(shape).__name__}, expected one whose surface is known")


@level.register
def _(shape: Ball, points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points - np.array(shape.centre), axis=1) - shape.radius


@level.register
def _(shape: Cylinder, points: np.ndarray) -> np.ndarray:
    along, across = _around(shape, points)
    return np.maximum(across - shape.radius, np.abs(along) - shape.height / 2)


@level.register
def _(shape: Torus, points: np.ndarray) -> np.ndarray:
    along, across = _around(shape, points)
    return np.hypot(across - shape.major_radius, along) - shape.minor_radius


@level.register
def _(shape: BentTube, points: np.ndarray) -> np.ndarray:
    path = np.array(shape.path)
    nearest = np.full(len(points), np.inf)
    for start, end in zip(path[:-1], path[1:], strict=True):
        leg = end - start
        share = np.clip((points - start) @ leg / (leg @ leg), 0, 1)
        gap = np.linalg.norm(points - start - np.outer(share, leg), axis=1)
        nearest = np.minimum(nearest, gap)
    return nearest - shape.radius


@level.register
def _(shape: Blob, points: np.ndarray) -> np.ndarray:
    return shape.level(points)


def _around(shape, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinate along the axis of a shape, and the distance to it."""
    offset = points - np.array(shape.centre)
    along = offset @ np.array(shape.axis)
    return along, np.linalg.norm(offset - np.outer(along, shape.axis), axis=1)
