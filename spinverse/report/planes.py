"""Planes through a tetrahedral mesh: the polygons of its cells and the lines of its facets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# of the mesh's extent: planes through vertices would cut cells in points and edges
_ASIDE = 1.2345e-4
_EDGES = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
_SIDES = np.array([[0, 1], [0, 2], [1, 2]])


@dataclass(frozen=True, eq=False)
class Section:
    """A plane at right angles to an axis, at a height on it, um."""

    axis: int
    height: float
    polygons: np.ndarray  # (n, 4, 2) um, corners in the other axes; triangles have their last twice
    cells: np.ndarray  # (n,) the cell of each


def section(points: np.ndarray, cells: np.ndarray, axis: int, height: float) -> Section:
    """Cut cells ``(Nt, 4)`` at right angles to an axis, 1e-4 of the mesh beside a height."""
    height = float(height + _ASIDE * np.ptp(points[:, axis]))
    above = points[cells, axis] > height
    cut = np.flatnonzero(above.any(axis=1) & ~above.all(axis=1))
    corners, above = points[cells[cut]], above[cut]
    first, second = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    crossed = above[:, _EDGES[:, 0]] != above[:, _EDGES[:, 1]]
    x = _crossings(first, second, axis, height)
    x = np.where(crossed[..., None], x, 0.0)
    centre = x.sum(axis=1) / crossed.sum(axis=1)[:, None]
    angle = np.arctan2(x[..., 1] - centre[:, None, 1], x[..., 0] - centre[:, None, 0])
    order = np.argsort(np.where(crossed, angle, np.inf), axis=1)[:, :4]
    three = crossed.sum(axis=1) == 3
    order[three, 3] = order[three, 2]
    return Section(axis, height, np.take_along_axis(x, order[..., None], axis=1), cut)


def lines(points: np.ndarray, triples: np.ndarray, axis: int, height: float) -> np.ndarray:
    """Where facets meet the plane of `Section.height`: ends ``(n, 2, 2)``, um."""
    above = points[triples, axis] > height
    cut = above.any(axis=1) & ~above.all(axis=1)
    corners, above = points[triples[cut]], above[cut]
    crossed = above[:, _SIDES[:, 0]] != above[:, _SIDES[:, 1]]
    x = _crossings(corners[:, _SIDES[:, 0]], corners[:, _SIDES[:, 1]], axis, height)
    return x[crossed].reshape(-1, 2, 2)


def box_edges(bounds: np.ndarray) -> np.ndarray:
    """Edges of a box with corners ``(2, 3)``: their ends, ``(12, 2, 3)``."""
    unit = np.array(list(np.ndindex(2, 2, 2)))
    ends = [(i, j) for i in range(8) for j in range(i) if np.abs(unit[i] - unit[j]).sum() == 1]
    return (bounds[0] + unit * (bounds[1] - bounds[0]))[np.array(ends)]


def _crossings(first, second, axis: int, height: float) -> np.ndarray:
    """Points of segments at a height, in the two other axes."""
    rise = second[..., axis] - first[..., axis]
    share = (height - first[..., axis]) / np.where(rise == 0, 1.0, rise)
    x = first + share[..., None] * (second - first)
    return np.delete(x, axis, axis=-1)
