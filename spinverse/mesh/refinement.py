"""Uniform refinement of tetrahedra: each into eight."""

from __future__ import annotations

import numpy as np

_EDGES = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]])
# the four at the corners; of numbers 0 to 3 for vertices, 4 to 9 for the middles of the edges
_CORNERS = [[0, 4, 5, 6], [1, 4, 7, 8], [2, 5, 7, 9], [3, 6, 8, 9]]
# the octahedron between them, about each of its diagonals: that, and the ring round it
_DIAGONALS = [((4, 9), (5, 7, 8, 6)), ((5, 8), (4, 7, 9, 6)), ((6, 7), (4, 8, 9, 5))]


def refined(points: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and cells after each cell was cut into eight at the middles of its edges.

    The octahedron in its middle is cut along the shortest diagonal, which keeps angles from
    getting worse with every refinement (Bey, Computing 55 (1995) 355).

    Args:
        points: ``(Nv, 3)``; they come first in the result.
        cells: ``(Nt, 4)``.

    Returns:
        ``(Nv + edges, 3)`` and ``(8 Nt, 4)``, positively oriented; the eight parts of a cell come
        one after the other, in the order of the cells.
    """
    edges, which = np.unique(np.sort(cells[:, _EDGES].reshape(-1, 2), axis=1), axis=0,
                             return_inverse=True)
    points = np.concatenate([points, points[edges].mean(axis=1)])
    local = np.hstack([cells, len(points) - len(edges) + which.reshape(-1, len(_EDGES))])
    lengths = np.stack([np.linalg.norm(points[local[:, a]] - points[local[:, b]], axis=1)
                        for (a, b), _ in _DIAGONALS], axis=1)
    # rounded: which of several equal ones it is must not hang on the last digit
    shortest = np.round(lengths / lengths.max(), 9).argmin(axis=1)
    patterns = np.array([_CORNERS + [[a, b, ring[k], ring[(k + 1) % 4]] for k in range(4)]
                         for (a, b), ring in _DIAGONALS])
    parts = local[np.arange(len(cells))[:, None, None], patterns[shortest]].reshape(-1, 4)
    x = points[parts]
    turned = np.einsum("ni,ni->n", np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]),
                       x[:, 3] - x[:, 0]) < 0
    parts[turned] = parts[turned][:, [0, 1, 3, 2]]
    return points, parts
