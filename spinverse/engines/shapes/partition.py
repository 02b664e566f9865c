"""Signals of a partition of the cells into compartments: a few milliseconds a partition.

Inside a compartment functions are continuous, across its surface they may jump, and the surface has
one permeability. Each label has a small eigenproblem of its own; the lowest modes of all of them,
coupled through the surfaces, are the basis of the signals.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from ..basis.spectrum import decay_rates
from .blocks import Blocks
from .drift import DriftSweeps, DriftSystem
from .propagation import Basis, Sweeps, signals
from .smooth import Smooth
from .walls import Walls, is_wall, labels_beside

# 1/ms, and iterations: then what moves change is that of all functions, to 2e-3
SHIFT, INVERSE_ITERATIONS = 0.5, 2
TOLD_APART = 1e-12  # of the largest mass: combinations that are told apart after these


class PartitionModel:
    """Signals of partitions of a mesh, um^3 times density.

    Args:
        blocks: matrices of the cells and facets.
        walls: permeabilities.
        smooth: functions that label 0 is expanded in, where most of what is in higher modes leaves
            soon; None for all functions, as of the other labels, which a reflecting boundary needs.
    """

    def __init__(self, blocks: Blocks, walls: Walls, smooth: Smooth | None = None):
        self.blocks, self.walls, self.smooth = blocks, walls, smooth
        whole = blocks.whole
        self.sides, self.outer = whole.sides, whole.outer
        self._inner = np.flatnonzero(~whole.outer)
        self._values = np.arange(blocks.mass.shape[0] * blocks.mass.shape[1]).reshape(
            len(whole.cells), -1)
        leaves = np.where(walls.absorbing | ~whole.outer, 1.0, 0.0)[:, None, None, None, None]
        self._exchange = blocks.exchange * leaves
        self._rim = walls.outer * self._exchange[:, 0, :, 0]
        if blocks.at_open is not None:
            self._rim = self._rim + blocks.at_open[:, 0, :, 0]

    @property
    def kind(self) -> type:
        """Of the sweeps that it takes."""
        return self.blocks.kind

    def signals(self, labels: np.ndarray, sweeps: Sweeps | DriftSweeps) -> np.ndarray:
        """``(N,)`` complex.

        Args:
            labels: ``(Nt,)`` whole numbers from 0.
            sweeps: the measurements.
        """
        if isinstance(sweeps, DriftSweeps):
            return self.system(labels).signals(sweeps)
        return signals(sweeps, self.basis(labels))

    def system(self, labels: np.ndarray) -> DriftSystem:
        """The operators of a periodic box."""
        blocks, nodes = self.blocks, self.blocks.nodes
        number = self._unknowns(labels)
        local, n = number[self._values], int(number.max()) + 1
        which = np.minimum(labels, len(blocks.decay) - 1)
        every = np.arange(len(labels))
        entries = (local[:, :, None] * n + local[:, None, :]).ravel()

        def dense(values):
            return np.bincount(entries, values.ravel(), n * n).reshape(n, n)

        rows, columns = entries // n, entries % n
        rho = blocks.density_of(labels)[:, None, None]
        A, m = dense(rho * blocks.decay[which, every]), 2 * nodes.shape[2]
        wall = is_wall(labels, self.sides)
        parts = [(np.flatnonzero(wall), self._between(labels, np.flatnonzero(wall)))]
        if blocks.at_open is not None:
            of = rho[self.sides[~wall, 0], :, :, None, None]
            parts.append((np.flatnonzero(~wall), of * blocks.at_open[~wall]))
        for facets, values in parts:
            where = number[nodes[facets]].reshape(-1, m)
            A += np.bincount((where[:, :, None] * n + where[:, None, :]).ravel(), values.ravel(),
                             n * n).reshape(n, n)
        N, C = ([csr_matrix(((rho * values[which, j, every]).ravel(), (rows, columns)),
                            shape=(n, n)) for j in range(values.shape[1])]
                for values in (blocks.drift, blocks.square))
        return DriftSystem(A, dense(rho * blocks.mass), N, C, blocks.fastest)

    def basis(self, labels: np.ndarray, dtype=np.float32) -> Basis:
        """The modes of all labels, coupled."""
        nodes = self.blocks.nodes
        number = self._unknowns(labels)
        wall = np.flatnonzero(is_wall(labels, self.sides) & ~self.outer)
        found, traces, order = [], {}, np.unique(labels).tolist()
        for label in order:
            decay, modes, place, load, positions = self._block(labels, label, number, wall)
            for side in range(2):
                mine = wall[labels[self.sides[wall, side]] == label]
                traces[label, side] = mine, modes[place[number[nodes[mine, side]]]]
            found.append((decay, load, positions))
        sizes = np.cumsum([0] + [len(part[0]) for part in found])
        A = scipy.linalg.block_diag(*(part[0] for part in found))
        for i, a in enumerate(order):
            for j, b in enumerate(order):
                facets, left = traces[a, 0]
                others, right = traces[b, 1]
                common, here, there = np.intersect1d(facets, others, assume_unique=True,
                                                     return_indices=True)
                if i == j or not len(common):
                    continue
                flux = self._between(labels, common)[:, 0, :, 1] @ right[there]
                C = left[here].reshape(-1, left.shape[2]).T @ flux.reshape(-1, right.shape[2])
                A[sizes[i]:sizes[i + 1], sizes[j]:sizes[j + 1]] += C
                A[sizes[j]:sizes[j + 1], sizes[i]:sizes[i + 1]] += C.T
        rates, Q = scipy.linalg.eigh(A, driver="evd", check_finite=False, overwrite_a=True)
        start = Q.T @ np.concatenate([part[1] for part in found])
        return Basis(decay_rates(rates), start, Q, [part[2] for part in found], dtype)

    def _between(self, labels: np.ndarray, facets: np.ndarray) -> np.ndarray:
        """What some walls contribute, ``(n, 2, p, 2, p)``."""
        first, second = labels_beside(labels, self.sides[facets])
        return self.blocks.between(self.walls.of(first, second, facets), self._exchange, first,
                                   second, facets)

    def _unknowns(self, labels: np.ndarray) -> np.ndarray:
        """Number of the unknown of each value in each cell, ``(Nt n,)``."""
        inner = self._inner
        tied = inner[labels[self.sides[inner, 0]] == labels[self.sides[inner, 1]]]
        a, b = self.blocks.nodes[tied, 0].ravel(), self.blocks.nodes[tied, 1].ravel()
        graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)),
                           shape=(self._values.size,) * 2)
        return connected_components(graph, directed=False)[1]

    def _block(self, labels, label, number, wall):
        blocks, nodes, rho = self.blocks, self.blocks.nodes, self.blocks.density_of(label)
        cells = np.flatnonzero(labels == label)
        used, local = np.unique(number[self._values[cells]], return_inverse=True)
        local, n = local.reshape(len(cells), -1), len(used)
        place = np.full(number.max() + 1, -1)
        place[used] = np.arange(n)
        entries = (local[:, :, None] * n + local[:, None, :]).ravel()

        def assembled(values):
            return rho * np.bincount(entries, values.ravel(), n * n).reshape(n, n)

        def add(matrix, where, values):
            where = place[number[where]]
            where = (where[:, :, None] * n + where[:, None, :]).ravel()
            matrix += np.bincount(where, values.ravel(), n * n).reshape(n, n)

        A, M = assembled(blocks.decay_of(label)[cells]), assembled(blocks.mass[cells])
        for side in range(2):
            mine = wall[labels[self.sides[wall, side]] == label]
            add(A, nodes[mine, side], self._between(labels, mine)[:, side, :, side])
        rim = np.flatnonzero(self.outer & (labels[self.sides[:, 0]] == label))
        if label:
            add(A, nodes[rim, 0], self._between(labels, rim)[:, 0, :, 0])
        elif self._rim[rim].any():
            add(A, nodes[rim, 0], rho * self._rim[rim])
        if blocks.at_open is not None:
            tied = self._inner[(labels[self.sides[self._inner]] == label).all(axis=1)]
            m = 2 * nodes.shape[2]
            add(A, nodes[tied].reshape(-1, m), rho * blocks.at_open[tied].reshape(-1, m, m))
        modes = self._lowest(A, M, place[number[self._values[cells]]], cells) if not label else None
        if modes is None:  # any orthonormal basis does
            low = scipy.linalg.cholesky(M, lower=True, check_finite=False)
            modes = scipy.linalg.solve_triangular(low, np.eye(n), lower=True,
                                                  check_finite=False).T
        A = modes.T @ A @ modes
        positions = np.stack([modes.T @ assembled(x[cells]) @ modes for x in blocks.position])
        return A, modes, place, modes.T @ M.sum(axis=1), positions

    def _lowest(self, A: np.ndarray, M: np.ndarray, where: np.ndarray,
                cells: np.ndarray) -> np.ndarray | None:
        """An orthonormal basis of about the lowest modes of label 0, ``(n, K)``; None for all.

        Modes of the box without walls after inverse iterations, a fifth of what modes of the label
        take.
        """
        if self.smooth is None or len(A) <= self.smooth.outside.shape[1]:
            return None
        V = np.empty((len(A), self.smooth.outside.shape[1]))
        V[where.ravel()] = self.smooth.outside[self.smooth.node[cells].ravel()]
        try:
            factor = scipy.linalg.cho_factor(A + SHIFT * M, check_finite=False)
        except scipy.linalg.LinAlgError:  # a term of the user's grows faster
            return None
        for _ in range(INVERSE_ITERATIONS):
            V = scipy.linalg.cho_solve(factor, M @ V, check_finite=False)
        mass, Q = np.linalg.eigh(V.T @ M @ V)
        told = mass > TOLD_APART * mass[-1]
        return V @ (Q[:, told] / np.sqrt(mass[told]))
