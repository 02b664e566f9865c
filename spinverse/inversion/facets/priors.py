"""What membranes look like: the priors of the published method (arXiv 2603.04638).

All act on z = log10(kappa / (um/ms)) of the unknown facets, and share the soft membrane
indicator p = sigmoid((threshold - z) / width): near 1 on membranes, near 0 where it is open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import expit

from .facet_graph import FacetGraph

THRESHOLD = 0.0  # log10 of 1 um/ms = 1e-3 um/us
WIDTH = 0.5
MOST_PAIRS = 5000  # that Gauss-Newton steps take as rows of their own: a wall, not a mesh


def membrane_indicator(z: np.ndarray) -> np.ndarray:
    """p, near 1 on membranes."""
    return expit((THRESHOLD - z) / WIDTH)


@dataclass(frozen=True, eq=False)
class Continuity:
    """Mean over facets that share an edge of Huber_5(z_i - z_j) (1 - |p_i - p_j|).

    The last factor gates: a membrane may end against an open facet. It is not differentiated.
    """

    name: ClassVar[str] = "continuity"
    graph: FacetGraph
    delta: float = 5.0

    def value(self, z: np.ndarray) -> float:
        difference, gate = self._parts(z)
        small = np.abs(difference) <= self.delta
        huber = np.where(small, 0.5 * difference**2,
                         self.delta * (np.abs(difference) - 0.5 * self.delta))
        return _mean(self.graph, float(huber @ gate), self.graph.num_pairs)

    def pull_back(self, z: np.ndarray, adjoint: float) -> np.ndarray:
        difference, gate = self._parts(z)
        slope = np.clip(difference, -self.delta, self.delta) * gate
        slope *= adjoint / max(self.graph.num_pairs, 1)
        return _scatter(self.graph, len(z), (self.graph.pairs[:, 0], slope),
                        (self.graph.pairs[:, 1], -slope))

    def _parts(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        local = self.graph.spread(z)
        i, j = self.graph.pairs.T
        p = membrane_indicator(local)
        return local[i] - local[j], 1 - np.abs(p[i] - p[j])


@dataclass(frozen=True, eq=False)
class Manifold:
    """Mean over edges of softmin_t(k^2, (k - 2)^2) / degree, k the sum of p around the edge.

    A surface that is closed and does not branch has 0 or 2 membrane facets at every edge.
    """

    name: ClassVar[str] = "manifold"
    graph: FacetGraph
    temperature: float = 0.1

    def value(self, z: np.ndarray) -> float:
        k = self._count(membrane_indicator(self.graph.spread(z)))
        t = self.temperature
        cost = -t * np.logaddexp(-(k**2) / t, -((k - 2) ** 2) / t)
        return _mean(self.graph, float(np.sum(cost / self.graph.degree)), self.graph.num_edges)

    def pull_back(self, z: np.ndarray, adjoint: float) -> np.ndarray:
        p = membrane_indicator(self.graph.spread(z))
        k = self._count(p)
        share = expit((k**2 - (k - 2) ** 2) / self.temperature)  # of the second argument
        slope = 2 * k * (1 - share) + 2 * (k - 2) * share
        slope *= adjoint / max(self.graph.num_edges, 1) / self.graph.degree
        dp = -p * (1 - p) / WIDTH
        facet = self.graph.facet
        return _scatter(self.graph, len(z), (facet, slope[self.graph.edge] * dp[facet]))

    def _count(self, p: np.ndarray) -> np.ndarray:
        return np.bincount(self.graph.edge, p[self.graph.facet], minlength=len(self.graph.degree))


@dataclass(frozen=True, eq=False)
class Binarisation:
    """Mean of p (1 - p) over the unknown facets."""

    name: ClassVar[str] = "binarisation"
    graph: FacetGraph

    def value(self, z: np.ndarray) -> float:
        p = membrane_indicator(z[self.graph.included])
        return _mean(self.graph, float(p @ (1 - p)), self._number)

    def pull_back(self, z: np.ndarray, adjoint: float) -> np.ndarray:
        p = membrane_indicator(z)
        slope = (1 - 2 * p) * (-p * (1 - p) / WIDTH) * adjoint / max(self._number, 1)
        return np.where(self.graph.included, slope, 0.0)

    @property
    def _number(self) -> int:
        return self.graph.mesh.comm.allreduce(int(np.count_nonzero(self.graph.included)))


@dataclass(frozen=True, eq=False)
class Smoothness:
    """Mean over facets that share an edge of sqrt((z_i - z_j)^2 + e^2) - e: total variation.

    Rudin, Osher and Fatemi (1992): the sum of the jumps counts, whether they lie at one edge or
    spread over many, so that a patch may end sharply. e rounds it off, to have a derivative.
    """

    name: ClassVar[str] = "smoothness"
    graph: FacetGraph
    rounding: float = 0.05  # e, of log10 kappa: 12 %

    def value(self, z: np.ndarray) -> float:
        i, j = self.graph.pairs.T
        local = self.graph.spread(z)
        jump = np.hypot(local[i] - local[j], self.rounding) - self.rounding
        return _mean(self.graph, float(jump.sum()), self.graph.num_pairs)

    def pull_back(self, z: np.ndarray, adjoint: float) -> np.ndarray:
        i, j = self.graph.pairs.T
        local = self.graph.spread(z)
        slope = (local[i] - local[j]) / np.hypot(local[i] - local[j], self.rounding)
        slope *= adjoint / max(self.graph.num_pairs, 1)
        return _scatter(self.graph, len(z), (i, slope), (j, -slope))

    def squares(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """r ``(n,)`` and dr/dz ``(n, nf)``, so that |r|^2 has its derivative and lies above it.

        With the weights of the jumps as they are (iterated least squares). Of all pairs, the same
        r on all ranks; None where they are too many.
        """
        graph = self.graph
        if graph.num_pairs > MOST_PAIRS:
            return None
        pairs = np.concatenate(graph.mesh.comm.allgather(graph.ids[graph.pairs]))
        pairs = np.sort(pairs, axis=1)
        pairs = pairs[np.lexsort(pairs.T[::-1])]
        owned = graph.ids[: len(z)]
        known = graph.mesh.comm.allgather((owned[graph.included], z[graph.included]))
        ids, values = (np.concatenate(part) for part in zip(*known, strict=True))
        order = np.argsort(ids)
        i, j = values[order[np.searchsorted(ids, pairs.T, sorter=order)]]
        weight = np.sqrt(0.5 / np.hypot(i - j, self.rounding) / max(len(pairs), 1))
        rows = np.zeros((len(pairs), len(z)))
        for side, sign in enumerate((1.0, -1.0)):
            place = pairs[:, side] - graph.ids[0] if len(z) else np.full(len(pairs), -1)
            mine = (place >= 0) & (place < len(z))
            rows[mine, place[mine]] += sign * weight[mine]
        return weight * (i - j), rows


#: By name; each is made of a `FacetGraph`.
PRIORS = {prior.name: prior for prior in (Continuity, Manifold, Binarisation, Smoothness)}


def _mean(graph: FacetGraph, local: float, number: int) -> float:
    return graph.mesh.comm.allreduce(local) / max(number, 1)


def _scatter(graph: FacetGraph, owned: int, *parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    size = max(owned, int(max((p[0].max(initial=-1) for p in parts), default=-1)) + 1)
    with graph._vector.localForm() as local:
        size = max(size, local.getSize())
    total = np.zeros(size)
    for where, what in parts:
        total += np.bincount(where, what, minlength=size)
    return graph.collect(total)
