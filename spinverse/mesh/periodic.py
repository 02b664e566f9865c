"""Pairs of facets on opposite faces of a periodic mesh."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from spinverse.errors import InputError
from spinverse.mesh import arguments as expect
from spinverse.mesh.checks import facets_of, find_facets
from spinverse.mesh.data import MeshData

ON_FACE = 1e-7  # of the mesh's length across


def opposite_facets(data: MeshData, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Outer facets on the two planes that end a mesh along an axis, paired by translation.

    Args:
        data: such as ``box`` makes with ``cells``, or a builder with ``periodic=True``.
        axis: 0, 1 or 2.

    Returns:
        low: ``(n, d)`` vertices of the facets on the lower plane, each row ascending.
        high: ``(n, d)`` vertices on the upper plane; ``high[i, k]`` is ``low[i, k]`` moved.

    Raises:
        InputError: a bad axis, or facets that do not match.
    """
    where = f"mesh '{data.name}'"
    if axis not in range(data.dim):
        raise InputError(f"{where}: axis is {expect.shown(axis)}, expected 0 to {data.dim - 1}")
    facets, pairs = facets_of(data.cells, data.name)
    outer = facets[pairs[:, 1] < 0]
    x = data.points[:, axis]
    length = np.ptp(x)
    ends = []
    for plane in (x.min(), x.max()):
        on = (np.abs(x[outer] - plane) <= ON_FACE * length).all(axis=1)
        ends.append(outer[on])
    low, high = ends
    shift = np.zeros(3)
    shift[axis] = length
    start, end = np.unique(low), np.unique(high)
    if len(low) and len(high):
        distance, place = cKDTree(data.points[end]).query(data.points[start] + shift)
        moved = np.full(len(data.points), -1)
        moved[start[distance <= ON_FACE * length]] = end[place[distance <= ON_FACE * length]]
        partner = moved[low]
        row = find_facets(high, partner)
        missing = ((partner < 0).any(axis=1) | (row < 0)).sum()
    else:
        missing = max(len(low), len(high), 1)
    if missing or len(low) != len(high):
        raise InputError(f"{where}: {missing} of {len(low)} facets on the lower end along "
                         f"{'xyz'[axis]} have no translate among the {len(high)} on the upper "
                         "one, expected a mesh made with periodic=True")
    return low, partner
