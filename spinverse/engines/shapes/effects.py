"""What moves of single mesh cells do to signals, all of them from the states at one partition.

A move takes a mesh cell T from one label to another. To first order in its volume

    dS = -int p . (dA + i g dX) u + p . dM u' dt + ends,

with the adjoint state p as in `graded`, where dA, dM and dX are the matrices of T, gained by the
one label and lost by the other, and those of the four facets of T as they become after the move:
both labels' fields continue smoothly over T (`restricted`). Two moves of neighbours add up but for
the facet between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_matrix

from .graded import Adjoint, product
from .propagation import Sweep, Sweeps
from .restricted import RestrictedModel

Move = tuple[int, int]  # mesh cell, new label


class Effects:
    """Moves round a partition, and pairs of neighbouring ones.

    Args:
        model: of the signals.
        labels: ``(Nt,)`` the partition.
        moves: of mesh cells to labels that are there.
        pairs: places of two moves of cells that share a facet.
    """

    mass_floor = 0.0

    def __init__(self, model: RestrictedModel, labels: np.ndarray, moves: Sequence[Move],
                 pairs: Sequence[tuple[int, int]]):
        self.blocks, self.number = model.blocks, len(moves)
        self._outputs = len(moves) + len(pairs)
        blocks, whole = model.blocks, model.blocks.whole
        self._cells = np.array([cell for cell, _ in moves])
        before, after = labels[self._cells], np.array([label for _, label in moves])
        order = np.unique(labels).tolist()
        nodes, local = np.unique(model.smooth.node[self._cells], return_inverse=True)
        self.basis, fields = model.fields(labels, nodes)
        self.modes = np.vstack([fields[label] for label in order])
        row = {label: k * len(nodes) for k, label in enumerate(order)}
        local = local.reshape(len(moves), -1)
        # what cells lose and gain
        self._at = [local + np.array([row[label] for label in which.tolist()])[:, None]
                    for which in (before, after)]
        self._density = [-blocks.density_of(before), blocks.density_of(after)]
        self._decay = [np.array([blocks.decay_of(label)[cell] for cell, label in zip(
            self._cells, which, strict=True)]) for which in (before, after)]
        self._mass = blocks.mass[self._cells]
        self._position = blocks.position[:, self._cells]

        # facets by the labels of their two sides, each once; what they count in moves and pairs
        items: dict[tuple[int, int, int], int] = {}
        entries: list[tuple[int, int, float]] = []
        facets = whole.facets_of

        def count(output, facet, one, other, sign):
            """``one`` is the label of the first side of the facet, ``other`` of the second."""
            item = items.setdefault((facet, one, other), len(items))
            entries.append((output, item, sign))

        for k, (cell, new) in enumerate(moves):
            for facet in facets[cell]:
                first, second = whole.sides[facet]
                a, b = int(labels[first]), 0 if second < 0 else int(labels[second])
                here = (new, b) if first == cell else (a, new)
                count(k, facet, a, b, -1.0)
                count(k, facet, *here, 1.0)
        for k, (one, two) in enumerate(pairs, self.number):
            facet = next(f for f in facets[moves[one][0]] if f in facets[moves[two][0]])
            if whole.sides[facet, 0] != moves[one][0]:
                one, two = two, one
            a, b = (int(labels[cell]) for cell in whole.sides[facet])
            x, y = moves[one][1], moves[two][1]
            for this, that, sign in ((x, y, 1.0), (x, b, -1.0), (a, y, -1.0), (a, b, 1.0)):
                count(k, facet, this, that, sign)
        self._facets(model, items, nodes, row)
        out, item, sign = (np.array(x) for x in zip(*entries, strict=True))
        self._count = csr_matrix((sign, (out, item)), shape=(self._outputs, len(items)),
                                 dtype=np.float32)

    def _facets(self, model, items, nodes, row):
        """Matrices of the facets between their two sides, and where their values are."""
        blocks, whole = model.blocks, model.blocks.whole
        facet, one, other = np.array(list(items)).T
        outer, p = whole.outer[facet], blocks.nodes.shape[2]
        values = np.zeros((len(facet), 2, p, 2, p))
        wall = (one != other) & ~outer
        exchange = model._exchange
        if wall.any():
            values[wall] = blocks.between(
                model.walls.of(one[wall], other[wall], facet[wall]), exchange, one[wall],
                other[wall], facet[wall])
        inside, rest = outer & (one > 0), outer & (one == 0)
        if inside.any():
            values[inside, 0, :, 0] = blocks.between(
                model.walls.of(one[inside], other[inside], facet[inside]), exchange, one[inside],
                other[inside], facet[inside])[:, 0, :, 0]
        values[rest, 0, :, 0] = (blocks.density_of(0) * model._rim[facet[rest]])
        if blocks.at_open is not None:
            tied = (one == other) & ~outer
            values[tied] = (blocks.density_of(one[tied])[:, None, None, None, None]
                            * blocks.at_open[facet[tied]])
        where = np.searchsorted(nodes, model.smooth.node.ravel()[blocks.nodes[facet, 0]])
        where = np.minimum(where, len(nodes) - 1)
        self._where = np.hstack([
            where + np.array([row[label] for label in which.tolist()])[:, None]
            for which in (one, other)])
        self._exchange = values.reshape(len(facet), 2 * p, 2 * p).astype(np.float32)

    def measure(self, sweeps: Sweeps,
                mine: Callable[[int], bool] = lambda k: True) -> tuple[np.ndarray, np.ndarray]:
        """Signals ``(N,)``, and changes of their magnitudes, ``(N, moves + pairs)``.

        Args:
            sweeps: the measurements.
            mine: says whether to do the k-th part of the work; rows of others stay zero.
        """
        S, J = np.zeros(sweeps.number, complex), np.zeros((sweeps.number, self._outputs))
        for k, sweep in enumerate(sweeps.parts):
            if mine(k):
                S[sweep.rows], J[sweep.rows] = Adjoint(
                    self, self.basis, self.modes, sweep).result()
        if len(sweeps.still) and mine(len(sweeps.parts)):
            time, which = np.unique(sweeps.echo_time, return_inverse=True)
            sweep = Sweep((), 0, np.arange(len(time)), np.zeros(len(time)), time)
            values, slopes = Adjoint(self, self.basis, self.modes, sweep).result()
            S[sweeps.still], J[sweeps.still] = values[which], slopes[which]
        return S, J

    # ---- what the adjoint asks -----------------------------------------------------------------

    def mass_term(self, p: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Re p . dM u for values at the nodes, ``(m, moves + pairs)``."""
        total = np.zeros((self._outputs, p.shape[1]))
        for rho, at in zip(self._density, self._at, strict=True):
            right = product(self._mass, u[at])
            total[: self.number] += rho[:, None] * np.einsum("tnc,tnc->tc", p[at], right).real
        return total.T

    def contract(self, P: np.ndarray, U: np.ndarray, slope: np.ndarray, weight: np.ndarray, m: int,
                 position: Sequence[np.ndarray] | None = None,
                 strength: np.ndarray | None = None) -> np.ndarray:
        """As of `Shares.contract`, ``(m, moves + pairs)``."""
        single = np.float32
        total = np.zeros((self._outputs, P.shape[1]), single)
        mass = self._mass.astype(single)
        for rho, at, decay in zip(self._density, self._at, self._decay, strict=True):
            there = U[at]
            right = product(decay.astype(single), there) + product(mass, slope[at])
            if position is not None:
                right += product(position[0][self._cells].astype(single), there) * (
                    1j * strength).astype(right.dtype)
            total[: self.number] -= rho.astype(single)[:, None] * np.einsum(
                "tnc,tnc->tc", P[at], right).real
        f = np.einsum("fmc,fmc->fc", P[self._where], product(self._exchange, U[self._where])).real
        total -= self._count @ f
        total *= weight.astype(single)
        return total.reshape(self._outputs, -1, m).sum(axis=1).T
