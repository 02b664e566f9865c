"""Signals of a partition in modes of the box: a shape costs what the modes cost, not the mesh.

In each label magnetisation is smooth up to its walls, even where these are stairs. So it is
expanded in the lowest modes of the whole mesh, restricted to the cells of the label: of the mesh
with its outer boundary for label 0, with closed faces for the others. Matrices are sums over cells,
for label 0 the whole less the other labels: what they cost goes with the cells inside, and all else
with the number of modes. On a lattice of 1200 cells: signals to 5e-5 of |S(b = 0)|, what a cell
at the wall changes to 0.05 % of what all functions say.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from .blocks import Blocks
from .partition import PartitionModel
from .propagation import Basis
from .smooth import Smooth, scattered
from .walls import Walls

# modes of label 0, and of each other label, at most: what moves change to 0.05 % (60 and 50: 2.6 %)
KEPT = 100, 50
TOLD_APART = 1e-7  # of the largest mass: combinations of functions that a label still tells
DENSE = 400  # nodes up to which matrices of a label are dense


class RestrictedModel(PartitionModel):
    """Signals of partitions of a mesh of any size, um^3 times density.

    Args:
        blocks: matrices of the cells and facets; of a box that is not periodic.
        walls: permeabilities.
        smooth: functions that fields are expanded in.
    """

    def __init__(self, blocks: Blocks, walls: Walls, smooth: Smooth):
        super().__init__(blocks, walls, smooth)
        self.kept = KEPT if walls.absorbing else (None, None)
        self._number = smooth.node.ravel()
        self._coefficients: dict[int, np.ndarray] = {}  # of the functions, of the last basis
        B, nv = smooth.outside, len(smooth.outside)
        rho = blocks.density_of(0)
        A = scattered(smooth.node, blocks.decay_of(0), nv)
        rim = np.flatnonzero(self.outer)
        A = A + scattered(self._number[blocks.nodes[rim, 0]], self._rim[rim], nv)
        if blocks.at_open is not None:
            A = A + self._open_terms(self._inner, nv)
        self._all = [rho * B.T @ (matrix @ B) for matrix in (
            A, *(scattered(smooth.node, values, nv) for values in (blocks.mass, *blocks.position)))]
        self._load = rho * (scattered(smooth.node, blocks.mass, nv) @ B).sum(axis=0)

    def fields(self, labels: np.ndarray, nodes: np.ndarray) -> tuple[Basis, dict]:
        """The coupled modes, and their values at some nodes.

        Args:
            labels: ``(Nt,)``.
            nodes: ``(n,)`` numbers as of `Smooth.node`.

        Returns:
            The basis, and ``(n, K)`` for each label, which also continues beyond its cells.
        """
        basis, found, end = self.basis(labels, float), {}, 0
        for label in np.unique(labels).tolist():
            F = self._coefficients[label]
            begin, end = end, end + F.shape[1]
            B = self.smooth.inside if label else self.smooth.outside
            found[label] = (B[nodes] @ F[: B.shape[1]]) @ basis.modes[begin:end]
        return basis, found

    def _unknowns(self, labels: np.ndarray) -> np.ndarray:
        """The row of each value in each cell, ``(Nt n,)``: that of its node, or one of its own.

        Parts of a label that meet at a node and not across facets have values of their own there:
        all but the largest have rows beyond the nodes.
        """
        nodes, inner, nv = self.blocks.nodes, self._inner, len(self.smooth.outside)
        one, other = labels[self.sides[inner]].T
        at_wall = np.zeros(nv, bool)
        at_wall[self._number[nodes[inner[one != other], 0]]] = True
        values = np.flatnonzero(at_wall[self._number])
        place = np.full(self._number.size, -1)
        place[values] = np.arange(len(values))
        a, b = (place[nodes[inner[one == other], side]].ravel() for side in range(2))
        tied = a >= 0
        graph = coo_matrix((np.ones(np.count_nonzero(tied), np.int8), (a[tied], b[tied])),
                           shape=(len(values),) * 2)
        count, part = connected_components(graph, directed=False)
        where = np.zeros(count, int)  # label and node of a part
        where[part] = (labels[values // self._values.shape[1]].astype(int) * nv
                       + self._number[values])
        order = np.lexsort((-np.bincount(part, minlength=count), where))
        further = order[1:][where[order[1:]] == where[order[:-1]]]
        self._apart = where[further] // nv, where[further] % nv
        row = np.full(count, -1)
        row[further] = nv + np.arange(len(further))
        number = self._number.copy()
        number[values] = np.where(row[part] < 0, number[values], row[part])
        return number

    def _open_terms(self, facets, size, number=None):
        """The user's terms on facets that are no walls."""
        number = self._number if number is None else number
        where = number[self.blocks.nodes[facets]].reshape(len(facets), -1)
        return scattered(where, self.blocks.at_open[facets].reshape(*where.shape, -1), size)

    def _block(self, labels, label, number, wall):
        """As of `PartitionModel`, with modes at the rows of the walls."""
        nodes = self.blocks.nodes
        A, M, X, load = self._matrices(labels, label, number)
        traced = [wall[labels[self.sides[wall, side]] == label] for side in range(2)]
        place, b = self._rows(label, [number[nodes[mine, side]]
                                      for side, mine in enumerate(traced)])
        for side, mine in enumerate(traced):
            if len(mine):
                flux = self._between(labels, mine)[:, side, :, side]
                A = A + b.T @ (_sum(place[number[nodes[mine, side]]], flux, len(b)) @ b)
        mass, Q = scipy.linalg.eigh(M, driver="evd", check_finite=False)
        told = mass > TOLD_APART * mass[-1]
        Q = Q[:, told] / np.sqrt(mass[told])
        rates, Z = scipy.linalg.eigh(Q.T @ A @ Q, driver="evd", check_finite=False)
        K = min(len(rates), self.kept[int(label > 0)] or len(rates))
        F = self._coefficients[label] = Q @ Z[:, :K]
        positions = np.stack([F.T @ x @ F for x in X])
        return np.diag(rates[:K]), b @ F, place, F.T @ load, positions

    def _rows(self, label: int, which: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The place of each row among those that count, and the functions of a label there.

        Each further part has a function of its own beside those of the box.
        """
        B = self.smooth.inside if label else self.smooth.outside
        of, node = self._apart
        (nv, n), mine = B.shape, np.cumsum(of == label) - 1
        used = np.unique(np.concatenate([rows.ravel() for rows in which]))
        place = np.full(nv + len(of), -1)
        place[used] = np.arange(len(used))
        b = np.zeros((len(used), n + np.count_nonzero(of == label)))
        smooth = int(np.searchsorted(used, nv))
        b[:smooth, :n] = B[used[:smooth]]
        further = used[smooth:] - nv
        b[smooth:, :n] = B[node[further]]
        b[np.arange(smooth, len(used)), n + mine[further]] = 1.0
        return place, b

    def _matrices(self, labels: np.ndarray, label: int, number: np.ndarray) -> tuple:
        """Decay, without walls, mass, positions and load of the functions of a label."""
        rim = np.flatnonzero(self.outer)
        here, at_rim = labels == label, labels[self.sides[rim, 0]] == label
        both = here[self.sides[self._inner]].all(axis=1)
        if label:
            return self._summed(labels, label, number, np.flatnonzero(here), rim[at_rim],
                                self._inner[both])
        # of the whole less all that is not within label 0, and what further parts add
        A, M, X, load = self._summed(labels, 0, self._number, np.flatnonzero(~here), rim[~at_rim],
                                     self._inner[~both])
        n = self.smooth.outside.shape[1]
        A, M, *X = (whole - part[:n, :n] for whole, part in zip(self._all, (A, M, *X),
                                                                strict=True))
        load = self._load - load[:n]
        further, nodes = number >= len(self.smooth.outside), self.blocks.nodes
        cells = np.flatnonzero(here & further[self._values].any(axis=1))
        if not len(cells):
            return A, M, X, load
        more = self._summed(
            labels, 0, number, cells,
            rim[at_rim & further[nodes[rim, 0]].any(axis=1)],
            self._inner[both & further[nodes[self._inner]].any(axis=(1, 2))])
        A, M, *X = (np.block([[smooth, part[:n, n:]], [part[n:, :n], part[n:, n:]]])
                    for smooth, part in zip((A, M, *X), (*more[:2], *more[2]), strict=True))
        return A, M, X, np.append(load, more[3][n:])

    def _summed(self, labels, label, number, cells, rim, inner):
        """As `_matrices`, of some cells, and facets that are no walls, with what label 0 has."""
        blocks, nodes, rho = self.blocks, self.blocks.nodes, self.blocks.density_of(label)
        place, b = self._rows(label, [number[self._values[cells]], number[nodes[rim, 0]],
                                      number[nodes[inner]]])
        at, size = place[number], len(b)
        sums = [_sum(at[self._values[cells]], values[cells], size)
                for values in (blocks.decay_of(label), blocks.mass, *blocks.position)]
        if len(rim):
            outflow = self._between(labels, rim)[:, 0, :, 0] / rho if label else self._rim[rim]
            sums[0] = sums[0] + _sum(at[nodes[rim, 0]], outflow, size)
        if blocks.at_open is not None and len(inner):
            sums[0] = sums[0] + self._open_terms(inner, size, at)
        load = rho * (np.asarray(sums[1].sum(axis=0)).ravel() @ b)
        A, M, *X = (rho * (b.T @ (matrix @ b)) for matrix in sums)
        return A, M, X, load


def _sum(where: np.ndarray, values: np.ndarray, size: int):
    """The sum of matrices ``(m, n, n)`` of places ``(m, n)``."""
    if size > DENSE:
        return scattered(where, values, size)
    entries = (where[:, :, None] * size + where[:, None, :]).ravel()
    return np.bincount(entries, values.ravel(), size * size).reshape(size, size)
