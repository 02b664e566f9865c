"""Signals of a partition of the cells into compartments: a few milliseconds a partition.

Inside a compartment P1 functions are continuous, across its surface they may jump, and the
surface has one permeability. Each label has a small eigenproblem of its own; the lowest modes of
all of them, coupled through the surfaces, are the basis of the signals.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from . import pulsed
from .elements import Elements


class PartitionModel:
    """Signals of partitions of a mesh, in um^3.

    Args:
        elements: matrices of the cells.
        wall: permeability of the surfaces, um/ms.
        outer: permeability of outer facets of label 0, um/ms; 0 reflects. Those of other labels
            are walls, or reflect too if this is 0.
        modes: number of modes of label 0, and of each of the others at least; None for all of
            them, which a reflecting boundary needs.
        longest: ms, longest step of the splitting.
    """

    def __init__(self, elements: Elements, wall: float, outer: float,
                 modes: tuple[int, int] | None = (40, 30), longest: float = 0.5):
        self.elements, self.wall, self.outer = elements, wall, outer
        self.modes, self.longest = modes, longest
        whole = elements.whole
        self.inner = ~whole.outer
        self.sides, self.outer_cells = whole.sides[self.inner], whole.sides[~self.inner, 0]
        # corners of a facet as corners of its cells: 4 * cell + place in the cell
        self._first = _corners(whole.cells, self.sides[:, 0], whole.facets[self.inner])
        self._second = _corners(whole.cells, self.sides[:, 1], whole.facets[self.inner])
        self._outer = _corners(whole.cells, self.outer_cells, whole.facets[~self.inner])
        self._wall_mass = elements.facet_mass[self.inner] * wall
        self._outer_mass = elements.facet_mass[~self.inner]
        self._corner_of = np.arange(4 * len(whole.cells)).reshape(-1, 4)

    def signals(self, labels: np.ndarray, table: pulsed.PulseTable) -> np.ndarray:
        """``(N,)`` um^3, real: two opposite pulses leave no phase.

        Args:
            labels: ``(Nt,)`` whole numbers from 0.
            table: the measurements.
        """
        return pulsed.signals_of_blocks(table, *self.basis(labels), self.longest)

    def basis(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list]:
        """Rates ``(K,)``, overlaps with 1 ``(K,)``, modes ``(K, K)`` in the basis of the blocks.

        And the position operators of each block, ``(3, n, n)``.
        """
        dof = self._unknowns(labels)
        first, second = labels[self.sides].T
        wall = np.flatnonzero(first != second)
        blocks, traces, order = [], {}, []
        for label in np.unique(labels):
            decay, modes, place, overlap, positions = self._block(labels, label, dof, wall)
            for side, corners, of in ((0, self._first, first), (1, self._second, second)):
                mine = wall[of[wall] == label]
                traces[label, side] = mine, modes[place[dof[corners[mine]]]]
            blocks.append((decay, overlap, positions))
            order.append(label)
        sizes = np.cumsum([0] + [len(block[0]) for block in blocks])
        A = scipy.linalg.block_diag(*(block[0] for block in blocks))
        for i, a in enumerate(order):
            for j, b in enumerate(order):
                facets, left = traces[a, 0]
                others, right = traces[b, 1]
                common, here, there = np.intersect1d(facets, others, assume_unique=True,
                                                     return_indices=True)
                if i == j or not len(common):
                    continue
                flux = np.einsum("fab,fbl->fal", self._wall_mass[common], right[there])
                C = left[here].reshape(-1, left.shape[2]).T @ flux.reshape(-1, right.shape[2])
                A[sizes[i]:sizes[i + 1], sizes[j]:sizes[j + 1]] -= C
                A[sizes[j]:sizes[j + 1], sizes[i]:sizes[i + 1]] -= C.T
        rates, Q = scipy.linalg.eigh(A, driver="evd", check_finite=False, overwrite_a=True)
        start = Q.T @ np.concatenate([block[1] for block in blocks])
        return np.maximum(rates, 0.0), start, Q, [block[2] for block in blocks]

    def _unknowns(self, labels: np.ndarray) -> np.ndarray:
        """Number of the unknown at each corner of each cell, ``(4 Nt,)``."""
        same = labels[self.sides[:, 0]] == labels[self.sides[:, 1]]
        a, b = self._first[same].ravel(), self._second[same].ravel()
        size = 4 * len(labels)
        graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(size, size))
        return connected_components(graph, directed=False)[1]

    def _block(self, labels, label, dof, wall):
        elements = self.elements
        cells = np.flatnonzero(labels == label)
        used, local = np.unique(dof[self._corner_of[cells]], return_inverse=True)
        local, n = local.reshape(-1, 4), len(used)
        place = np.full(dof.max() + 1, -1)
        place[used] = np.arange(n)
        entries = (local[:, :, None] * n + local[:, None, :]).ravel()

        def assembled(values):
            return np.bincount(entries, values.ravel(), n * n).reshape(n, n)

        def add(matrix, corners, values):
            where = place[dof[corners]]
            where = (where[:, :, None] * n + where[:, None, :]).ravel()
            matrix += np.bincount(where, values.ravel(), n * n).reshape(n, n)

        A, M = assembled(elements.decay[cells]), assembled(elements.mass[cells])
        for side, corners in ((0, self._first), (1, self._second)):
            mine = wall[labels[self.sides[wall, side]] == label]
            add(A, corners[mine], self._wall_mass[mine])
        if self.outer:
            mine = np.flatnonzero(labels[self.outer_cells] == label)
            add(A, self._outer[mine],
                self._outer_mass[mine] * (self.wall if label else self.outer))
        K = n
        if self.modes is not None:
            # large cells hold more of their magnetisation in higher modes
            K = min(n, max(self.modes[1], int(0.75 * n)) if label else self.modes[0])
        if K < n:
            # all of them by divide and conquer take less time than some of them by bisection
            rates, modes = scipy.linalg.eigh(A, M, driver="gvd", check_finite=False,
                                             overwrite_a=True)
            A, modes = np.diag(rates[:K]), modes[:, :K]
        else:  # any orthonormal basis does
            low = scipy.linalg.cholesky(M, lower=True, check_finite=False)
            modes = scipy.linalg.solve_triangular(low, np.eye(n), lower=True,
                                                  check_finite=False).T
            A = modes.T @ A @ modes
        positions = np.stack([modes.T @ assembled(x[cells]) @ modes
                              for x in elements.position])
        return A, modes, place, modes.T @ M.sum(axis=1), positions


def _corners(cells: np.ndarray, of: np.ndarray, facets: np.ndarray) -> np.ndarray:
    """Corners of facets as corners of the cells ``of``, ``(n, 3)``: 4 * cell + place."""
    place = (cells[of][:, None, :] == facets[:, :, None]).argmax(axis=2)
    return 4 * of[:, None] + place
