"""Signals of a partition whose open facets are as permeable as they are: none is tied.

To `PartitionModel` open facets are no obstacle, and cells are slower instead. What single moves
change is then 1, 28 and 42 % off where walls have 0.05, 0.5 and 0.5 um/ms and open facets 100
(`axon-1` twice, torus); here 0.1, 0.2 and 0.5 %, for two to three times the time. Functions of a
label are

    phi = (A + s M)^-1 M u,        u continuous,

A of the broken space with all its facets, so that phi jumps at open facets as far as it would; and
outside also (A + s M)^-1 f, f what comes through walls from the slowest modes of cells. What all
modes of other labels send through walls, F, is answered at rest beyond these functions:

    - F^T ((A + s M)^-1 - phi (phi^T A phi + s)^-1 phi^T) F

(static condensation; Guyan, AIAA J. 3, 380, 1965). What is so answered of one label does not act
on that of another, for which a rate of 0 may come out negative: by up to 4e-5 of the answer (walls
up to 1 um/ms, closed box).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy.sparse import coo_matrix, csc_matrix, csr_matrix, eye_array
from scipy.sparse.linalg import SuperLU, splu

from ..basis.spectrum import decay_rates
from .blocks import Blocks
from .partition import TOLD_APART, PartitionModel
from .propagation import Basis
from .smooth import Smooth
from .walls import Walls, is_wall

SHIFT = 0.1  # s, 1/ms: about the rate of what signals see
SLOW = 8  # modes of each cell whose loads the outside has functions for
OPEN = 1e6  # um/ms: what is more permeable is no obstacle
APART = 1e-3  # of what is answered at rest: a negative rate this small is its, and 0
_SYMMETRIC = {"diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}


class Pattern:
    """Where the entries of the broken space are, in an order whose factors stay sparse.

    Args:
        blocks: of the mesh.

    Attributes:
        order: values of cells, ``(Nt n,)``; ``place``: of each of them in this order.
        cell_of: the cell of each value.
    """

    def __init__(self, blocks: Blocks):
        cells, n = blocks.mass.shape[:2]
        self.size = cells * n
        self.cell_of = np.repeat(np.arange(cells), n)
        rows, columns = _within(cells, n)
        nodes = blocks.nodes.reshape(len(blocks.nodes), -1)
        shape = (*nodes.shape, nodes.shape[1])
        self._inside = rows, columns
        rows = np.concatenate([rows, np.broadcast_to(nodes[:, :, None], shape).ravel()])
        columns = np.concatenate([columns, np.broadcast_to(nodes[:, None, :], shape).ravel()])
        entries = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(self.size,) * 2)
        heavy = entries.tocsc() + len(rows) * eye_array(self.size, format="csc")
        self.place = splu(heavy, permc_spec="MMD_AT_PLUS_A", **_SYMMETRIC).perm_c
        self.order = np.argsort(self.place)
        known, self._entry = np.unique(
            self.place[columns].astype(np.int64) * self.size + self.place[rows],
            return_inverse=True)
        self._indices = known % self.size
        self._ends = np.searchsorted(known // self.size, np.arange(self.size + 1))

    def matrix(self, cells: np.ndarray, facets: np.ndarray) -> csc_matrix:
        """Of cells ``(Nt, n, n)`` and facets ``(Nf, 2, p, 2, p)``, in `order`."""
        values = np.concatenate([cells.ravel(), facets.ravel()])
        data = np.bincount(self._entry, values, len(self._indices))
        return csc_matrix((data, self._indices, self._ends), shape=(self.size,) * 2)

    def of_cells(self, values: np.ndarray) -> csr_matrix:
        """A matrix of cells alone, by the number of each value."""
        return csr_matrix((values.ravel(), self._inside), shape=(self.size,) * 2)


def _within(cells: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.arange(cells * n).reshape(cells, n)
    return np.repeat(values, n, axis=1).ravel(), np.tile(values, (1, n)).ravel()


@dataclass(frozen=True, eq=False)
class _Part:
    """A label: its values, the factor of A + s M, its modes ``(n, K)`` and their rates."""

    values: np.ndarray
    factor: SuperLU
    modes: np.ndarray
    rates: np.ndarray
    start: np.ndarray
    positions: np.ndarray


class BrokenModel(PartitionModel):
    """Signals of partitions of a mesh that is not periodic, um^3 times density.

    Args:
        blocks: matrices of the cells and facets, with diffusivities as they are.
        walls: permeabilities.
        smooth: functions u that label 0 is expanded in; None for all, as of the other labels.
        pattern: of the mesh.
    """

    def __init__(self, blocks: Blocks, walls: Walls, smooth: Smooth | None, pattern: Pattern):
        super().__init__(blocks, walls, smooth)
        self._pattern, self._open = pattern, min(walls.open, OPEN)
        self._mass = pattern.of_cells(blocks.mass)
        self._positions = [pattern.of_cells(x) for x in blocks.position]

    def basis(self, labels: np.ndarray, dtype=np.float32) -> Basis:
        """The modes of all labels, coupled."""
        wall = np.flatnonzero(is_wall(labels, self.sides) & ~self.outer)
        crossing = self._between(labels, wall)
        operator = self._operator(labels, wall, crossing)
        number = self._unknowns(labels)
        parts: list[_Part] = []
        loads: list[np.ndarray] = []  # of each label on the others
        for label in sorted(np.unique(labels).tolist(), reverse=True):  # the outside is the last
            parts.append(self._part(labels, label, operator, number, loads))
            loads.append(self._load(parts[-1], wall, crossing))
        ends = np.cumsum([0] + [len(part.rates) for part in parts])
        A, every = np.diag(np.concatenate([part.rates for part in parts])), np.hstack(loads)
        answered = 0.0
        for part, a, b in zip(parts, ends[:-1], ends[1:], strict=True):
            F = every[part.values]
            F[:, a:b] = 0.0
            C = part.modes.T @ F
            A[a:b] += C
            answer = F.T @ part.factor.solve(F) - C.T @ (C / (part.rates + SHIFT)[:, None])
            answered += np.trace(answer)
            A -= answer
        rates, Q = scipy.linalg.eigh(A, driver="evd", check_finite=False, overwrite_a=True)
        start = Q.T @ np.concatenate([part.start for part in parts])
        return Basis(decay_rates(rates, APART * answered), start, Q,
                     [part.positions for part in parts], dtype)

    def _operator(self, labels: np.ndarray, wall: np.ndarray, crossing: np.ndarray) -> csc_matrix:
        """A + s M of all labels, not coupled, in the order of the pattern."""
        blocks, rho = self.blocks, self.blocks.density_of(labels)
        which = np.minimum(labels, len(blocks.decay) - 1)
        cells = rho[:, None, None] * (blocks.decay[which, np.arange(len(labels))]
                                      + SHIFT * blocks.mass)
        facets = self._open * blocks.exchange
        if blocks.at_open is not None:
            facets = facets + blocks.at_open
        facets = rho[self.sides[:, 0], None, None, None, None] * facets
        facets[wall] = crossing
        facets[wall, 0, :, 1] = facets[wall, 1, :, 0] = 0.0
        rim = np.flatnonzero(self.outer)
        facets[rim] = 0.0
        beside = labels[self.sides[rim, 0]]
        facets[rim[beside > 0]] = self._between(labels, rim[beside > 0])
        rim = rim[beside == 0]
        facets[rim, 0, :, 0] = rho[self.sides[rim, 0], None, None] * self._rim[rim]
        return self._pattern.matrix(cells, facets)

    def _part(self, labels: np.ndarray, label: int, operator: csc_matrix, number: np.ndarray,
              loads: list[np.ndarray]) -> _Part:
        pattern, rho = self._pattern, self.blocks.density_of(label)
        kept = pattern.order[labels[pattern.cell_of[pattern.order]] == label]
        where, n = pattern.place[kept], len(kept)
        factor = splu(operator[where][:, where], permc_spec="NATURAL", **_SYMMETRIC)
        mass = rho * self._mass[kept][:, kept]
        if label or self.smooth is None:
            used, local = np.unique(number[kept], return_inverse=True)
            u = csr_matrix((np.ones(n), (np.arange(n), local)), shape=(n, len(used)))
            load = (mass @ u).toarray()
        else:
            load = mass @ self.smooth.outside[self.smooth.node.ravel()[kept]]
        if not label:
            load = np.hstack([load, *(other[kept, :SLOW] for other in loads)])
        phi = factor.solve(load)
        energy, Z = np.linalg.eigh(phi.T @ load)
        told = energy > TOLD_APART * energy[-1]
        Z = Z[:, told] / np.sqrt(energy[told])
        # of -1 / (rate + s): the slowest come first
        slow, Q = np.linalg.eigh(-Z.T @ (phi.T @ (mass @ phi)) @ Z)
        modes = phi @ (Z @ (Q / np.sqrt(-slow)))
        positions = np.stack([modes.T @ (rho * (x[kept][:, kept] @ modes))
                              for x in self._positions])
        return _Part(kept, factor, modes, -1 / slow - SHIFT, modes.T @ (mass @ np.ones(n)),
                     positions)

    def _load(self, part: _Part, wall: np.ndarray, crossing: np.ndarray) -> np.ndarray:
        """What modes of a label send through walls, ``(Nt n, K)``."""
        nodes = self.blocks.nodes[wall]
        modes, result = np.zeros((2, self._values.size, len(part.rates)))
        modes[part.values] = part.modes
        for here, there in ((0, 1), (1, 0)):
            np.add.at(result, nodes[:, here], crossing[:, here, :, there] @ modes[nodes[:, there]])
        return result
