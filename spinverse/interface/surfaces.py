"""Measures of a set of triangles: points on it, distances to another, defects of edges."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

SAMPLES = 4096  # points on a surface, for the Chamfer distance


def sorted_corners(corners: np.ndarray) -> np.ndarray:
    """Triangles ``(n, 3, 3)`` with their corners by x, then y, then z: ranks list them as it is."""
    order = np.lexsort(np.moveaxis(corners, 2, 0)[::-1], axis=1)
    return np.take_along_axis(corners, order[:, :, None], axis=1)


def surface_points(corners: np.ndarray) -> np.ndarray:
    """4096 points uniform by area on triangles ``(n, 3, 3)``, the same for any order of corners."""
    corners = sorted_corners(corners)
    areas = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0],
                                          corners[:, 2] - corners[:, 0]), axis=1)
    total = np.cumsum(areas)
    index = np.arange(SAMPLES)
    level = (index + 0.5) / SAMPLES * total[-1]
    triangle = np.minimum(np.searchsorted(total, level), len(areas) - 1)
    # additive recurrence with the plastic number: low discrepancy in the unit square
    plastic = 1.32471795724474602596
    u, v = (0.5 + index / plastic) % 1.0, (0.5 + index / plastic**2) % 1.0
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    x = corners[triangle]
    return x[:, 0] + u[:, None] * (x[:, 1] - x[:, 0]) + v[:, None] * (x[:, 2] - x[:, 0])


def chamfer(first: np.ndarray, second: np.ndarray, centred: bool = True) -> float:
    """Sum of the two mean squared nearest distances between point clouds ``(n, 3)``, um^2."""
    if centred:
        first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    there, back = cKDTree(second).query(first)[0], cKDTree(first).query(second)[0]
    return float((there**2).mean() + (back**2).mean())


def edge_defects(triples: np.ndarray, ignored: np.ndarray | None = None) -> dict:
    """Edges of a facet set by their degree, the number of its facets that share them.

    A closed surface without branches has degree 2 everywhere.

    Args:
        triples: ``(n, 3)`` vertex triples.
        ignored: ``(m, 2)`` edges, ascending vertices, that are not counted.

    Returns:
        ``edges`` (count) and percentages ``open_edges_percent`` (degree 1),
        ``branch_edges_percent`` (above 2), ``bad_edges_percent`` (not 2); ``None`` without edges.
    """
    edges, degree = np.unique(edges_of(triples), axis=0, return_counts=True)
    if ignored is not None:
        degree = degree[~among(edges, ignored)]
    return {"edges": len(degree),
            "open_edges_percent": percent(int((degree == 1).sum()), len(degree)),
            "branch_edges_percent": percent(int((degree > 2).sum()), len(degree)),
            "bad_edges_percent": percent(int((degree != 2).sum()), len(degree))}


def edges_of(triples: np.ndarray) -> np.ndarray:
    """The three edges of each triple, ``(3 n, 2)``, ascending vertices."""
    triples = np.sort(np.asarray(triples, dtype=np.int64).reshape(-1, 3), axis=1)
    return triples[:, [[0, 1], [0, 2], [1, 2]]].reshape(-1, 2)


def among(edges: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the edges ``(n, 2)`` are there in ``others (m, 2)`` too, ``(n,)`` bool."""
    if not len(edges) or not len(others):
        return np.zeros(len(edges), bool)
    top = max(edges.max(), others.max()) + 1
    return np.isin(edges @ [top, 1], others @ [top, 1])


def ratio(part: float, whole: float) -> float | None:
    """part / whole; None of nothing."""
    return part / whole if whole else None


def percent(part: int, whole: int) -> float | None:
    """100 part / whole; None of nothing."""
    return 100.0 * (part / whole) if whole else None
