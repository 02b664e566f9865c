"""Functions that the magnetisation of a label is expanded in: modes of the box without walls."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from .blocks import Blocks
from .walls import Walls

SHIFT = 1e-2  # 1/ms below the spectrum: of the factor for modes of the box
ALIKE, SAME = 8, 1e-6  # modes of one rate at most; relative difference of rates below which two are
LEAST = 1000  # mesh cells: fewer have little more nodes than functions


def suits(cells: int, periodic: bool) -> bool:
    """Whether a mesh of so many cells is one for such functions: large, and not periodic."""
    return cells > LEAST and not periodic


class Smooth:
    """Functions that the magnetisation of a label is expanded in, at the nodes of a mesh.

    Args:
        blocks: matrices of the cells and facets.
        walls: permeabilities.
        number: of functions for each kind, and some more where the last has others of its rate.

    Attributes:
        node: ``(Nt, n)`` number of the node of each value of a cell.
        outside, inside: ``(nodes, functions)`` for label 0 and for the others.
    """

    def __init__(self, blocks: Blocks, walls: Walls, number: int):
        self.node = nodes_of(blocks)
        nv, whole = int(self.node.max()) + 1, blocks.whole
        A = scattered(self.node, blocks.decay_of(0), nv)
        M = scattered(self.node, blocks.mass, nv)
        rim = np.flatnonzero(whole.outer)
        leaves = scattered(self.node.ravel()[blocks.nodes[rim, 0]],
                           walls.outer * blocks.exchange[rim, 0, :, 0], nv)
        self.inside = _modes(A, M, number)
        self.outside = _modes(A + leaves, M, number) if walls.outer else self.inside


def nodes_of(blocks: Blocks) -> np.ndarray:
    """The node of each value of a cell where no facet is a wall, ``(Nt, n)``."""
    inner = ~blocks.whole.outer
    cells, n = blocks.mass.shape[:2]
    a, b = blocks.nodes[inner, 0].ravel(), blocks.nodes[inner, 1].ravel()
    graph = csr_matrix((np.ones(len(a), np.int8), (a, b)), shape=(cells * n,) * 2)
    return connected_components(graph, directed=False)[1].reshape(cells, n)


def scattered(where: np.ndarray, values: np.ndarray, size: int) -> csr_matrix:
    """The sum of matrices ``(m, n, n)`` of nodes ``(m, n)``."""
    rows = np.broadcast_to(where[:, :, None], values.shape).ravel()
    columns = np.broadcast_to(where[:, None, :], values.shape).ravel()
    return csr_matrix((values.ravel(), (rows, columns)), shape=(size, size))


def _modes(A: csr_matrix, M: csr_matrix, number: int) -> np.ndarray:
    """The lowest ones, and those of the same rate as the last of them.

    A part of these, which rounding chose, would be another one with another number of ranks.
    """
    size, more = A.shape[0], min(number + ALIKE, A.shape[0])
    if number > size // 3:
        values, vectors = scipy.linalg.eigh(A.toarray(), M.toarray(),
                                            subset_by_index=[0, more - 1])
    else:
        start = np.ones(size)  # the same on all ranks
        values, vectors = scipy.sparse.linalg.eigsh(A.tocsc(), more, M.tocsc(), sigma=-SHIFT,
                                                    v0=start)
        order = values.argsort()
        values, vectors = values[order], vectors[:, order]
    gaps = np.flatnonzero(np.diff(values) > SAME * values[1:]) + 1
    return vectors[:, : next((int(gap) for gap in gaps if gap >= number), more)]
