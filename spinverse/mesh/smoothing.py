"""Smoothing of the interfaces of a tetrahedral mesh whose tets stay as they are connected, and of
closed surfaces."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array

from spinverse.mesh.checks import cell_volumes
from spinverse.mesh.surfaces import Surface

SHRINK, GROW = 0.5, -0.53  # Taubin, SIGGRAPH 1995: pass band 1/SHRINK + 1/GROW = 0.11
LEAST = 0.1  # of its volume before: what a tet keeps
# steps of a surface of mesh facets: area / volume^(2/3) of twelve smooth shapes on lattices is
# 1.3 % too large in the mean and 3 % rms (20 to 70 % before); more steps thin out tubes
STEPS = 10
SWELLINGS = 5  # Newton steps to the volume before


def smoothed(points: np.ndarray, tets: np.ndarray, interface: np.ndarray, steps: int,
             low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Points after ``steps`` pairs of shrinking and growing steps (Taubin, SIGGRAPH 1995, 351).

    Vertices of the interface move towards the mean of their neighbours on it; where three
    interfaces meet, or one has a rim, towards those on that curve. Other inner vertices follow the
    mean of all theirs. Vertices on the planes of the box stay in them. A step that would leave a
    tet less than a tenth of its volume is shortened at its vertices.

    Of ``points (Nv, 3)`` um, ``tets (Nt, 4)``, positively oriented before and after, an
    ``interface (Nb, 3)`` and a box with corners ``low`` and ``high``, um.
    """
    count = len(points)
    edges, faces = np.unique(np.sort(interface[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1),
                             axis=0, return_counts=True)
    curves = edges[faces != 2]
    on_interface, on_curve = (np.isin(np.arange(count), e) for e in (edges, curves))
    every = tets[:, [0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3]].reshape(-1, 2)
    mean = (_means(curves, count, on_curve) + _means(edges, count, on_interface & ~on_curve)
            + _means(every, count, ~on_interface))
    close = np.maximum(np.abs(high - low).max(), 1.0) * 1e-9
    fixed = (np.abs(points - low) < close) | (np.abs(points - high) < close)
    least = LEAST * cell_volumes(points, tets)
    for _ in range(steps):
        moved = points
        for weight in (SHRINK, GROW):
            moved = np.where(fixed, points, moved + weight * (mean @ moved - moved))
        points = _allowed(points, moved - points, tets, least)
    return points


def smoothed_surface(surface: Surface, fixed: np.ndarray, steps: int = STEPS) -> Surface:
    """A closed surface without the stairs of mesh facets, of the same volume.

    As `smoothed`, on the surface alone; then vertices that move are shifted along their normals.

    Args:
        surface: every edge has two triangles, or four where it touches itself.
        fixed: ``(Nv,)`` bool, vertices that stay.
        steps: pairs of a shrinking and a growing one.
    """
    edges = np.sort(surface.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    edges = np.unique(edges, axis=0)
    free = np.isin(np.arange(len(fixed)), edges) & ~fixed
    mean, moves = _means(edges, len(fixed), free), free[:, None]
    points = surface.points
    for weight in (SHRINK, GROW) * steps:
        points = np.where(moves, points + weight * (mean @ points - points), points)
    for _ in range(SWELLINGS if free.any() else 0):
        now = Surface(points, surface.triangles, surface.name)
        a, b, c = now.corners.swapaxes(0, 1)
        normals = np.zeros_like(points)
        for corner in now.triangles.T:
            np.add.at(normals, corner, np.cross(b - a, c - a) / 6)  # dV by moving the vertex
        size = np.linalg.norm(normals, axis=1, keepdims=True)
        out = np.where(moves, normals / np.maximum(size, np.finfo(float).tiny), 0.0)
        points = points + (surface.volume - now.volume) / (normals * out).sum() * out
    return Surface(points, surface.triangles, surface.name)


def _allowed(points, move, tets, least) -> np.ndarray:
    """``points + move``, with shorter moves of the vertices of tets that would be spoilt."""
    checked = np.arange(len(tets))
    part = np.ones((len(points), 1))
    while True:
        moved = points + part * move
        bad = checked[cell_volumes(moved, tets[checked]) < least[checked]]
        if not len(bad):
            return moved
        back = np.zeros(len(points), bool)
        back[tets[bad]] = True
        part[back] = np.where(part[back] > 0.2, part[back] / 2, 0.0)
        checked = np.flatnonzero(back[tets].any(axis=1))


def _means(edges: np.ndarray, count: int, rows: np.ndarray) -> csr_array:
    """The matrix that averages over neighbours along edges in ``rows``, and is 0 elsewhere."""
    both = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0).reshape(-1, 2)
    both = both[rows[both[:, 0]]]
    degree = np.bincount(both[:, 0], minlength=count)
    return coo_array((1.0 / degree[both[:, 0]], (both[:, 0], both[:, 1])), (count, count)).tocsr()
