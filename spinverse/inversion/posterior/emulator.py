"""A cheap stand-in for the model: linear in mesh cells, walls and a few sizes of a hypothesis.

Ridge regression of predicted magnitudes, learnt from hypotheses whose signals are known. Features
are which cells are inside and which facets are walls (so that neighbours count together), each as
the mean with its opposite one, since magnitudes do not see a reflection; volume, area of the walls,
their orientation, the numbers, and products of these. It screens, it never decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..likelihood import Likelihood
from ..shapes.models import Models
from .moves import Moves
from .prior import Prior

RIDGES = 10.0 ** np.arange(-6, 3)  # of the trace of the Gram matrix over its size
TESTED = 5  # one example of so many tests the ridge
NEAR = 10.0  # chi-square for each measurement, beyond which an example counts less


class Features:
    """What is told of a hypothesis.

    Args:
        prior, moves, models: of the problem.
    """

    def __init__(self, prior: Prior, moves: Moves, models: Models):
        self.active, whole = models.active, models.whole
        self.mirror = mirror = moves.mirror
        self.low, self.width = models.bounds[0], np.ptp(models.bounds, axis=0)
        n, number = whole.normals, len(whole.facets)
        self.tensor = np.stack([n[:, i] * n[:, j] for i in range(3) for j in range(i, 3)], 1) / (
            np.maximum(whole.areas, 1e-300)[:, None] * prior.area_scale * number)
        sides = np.where(whole.sides < 0, -1, mirror[whole.sides])
        place = {tuple(sorted(pair)): f for f, pair in enumerate(whole.sides.tolist())}
        self.opposite = np.array([place.get(tuple(sorted(pair)), f)
                                  for f, pair in enumerate(sides.tolist())])
        self.volumes = whole.volumes / whole.volumes.sum()
        few = 3 + len(self.low)
        self.pairs = np.triu_indices(few)
        self.number = 1 + few + len(self.pairs[0]) + 6 + 6 * few  # of those that are smooth

    def smooth(self, labels: np.ndarray, theta: np.ndarray, inside: np.ndarray,
               walls: np.ndarray) -> np.ndarray:
        """Sizes, numbers, and their products."""
        T = 10 * walls @ self.tensor
        few = np.concatenate([
            [self.volumes @ inside, T[0] + T[3] + T[5], labels.max()],
            ((theta - self.low) / self.width - 0.5) * self.active(labels)])
        return np.concatenate([[1.0], few, few[self.pairs[0]] * few[self.pairs[1]], T,
                               (few[:, None] * T).ravel()])

    def __call__(self, labels: np.ndarray, theta: np.ndarray, walls: np.ndarray) -> np.ndarray:
        """All of them, ``(F,)``; ``walls`` as of `Prior.walls`."""
        inside, w = (labels > 0).astype(float), walls.astype(float)
        return np.concatenate([self.smooth(labels, theta, inside, w),
                               inside + inside[self.mirror], w + w[self.opposite]])


@dataclass(frozen=True, eq=False)
class Emulator:
    """Predicted magnitudes ``features @ slopes`` of hypotheses.

    Attributes:
        features: of hypotheses.
        likelihood: of the measurements.
        slopes: ``(F, N)``.
        variance: ``(N,)`` of its errors, where examples explain the data about.
    """

    features: Features
    likelihood: Likelihood
    slopes: np.ndarray
    variance: np.ndarray

    @cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Slopes by smooth features, mesh cells and facets."""
        f, end = self.features, self.features.number
        cells = self.slopes[end: end + len(f.mirror)]
        walls = self.slopes[end + len(f.mirror):]
        return self.slopes[:end], cells + cells[f.mirror], walls + walls[f.opposite]

    @classmethod
    def learnt(cls, features: Features, likelihood: Likelihood, X: np.ndarray,
               Y: np.ndarray) -> Emulator:
        """From features ``(m, F)`` and predicted magnitudes ``(m, N)`` of examples."""
        chi2 = np.mean((Y - likelihood.measured) ** 2, axis=1) / likelihood.sigma**2
        weight = 1 / (1 + chi2 / NEAR)
        tested = np.arange(len(X)) % TESTED == 0
        root = np.sqrt(weight)[:, None]
        A, B = root * X, root * Y
        values, vectors = np.linalg.eigh(A[~tested].T @ A[~tested])
        pull = vectors.T @ (A[~tested].T @ B[~tested])
        level, seen, best = values.sum() / len(values), X[tested] @ vectors, None
        for ridge in RIDGES:
            error = seen @ (pull / (np.maximum(values, 0) + ridge * level)[:, None]) - Y[tested]
            variance = weight[tested] @ error**2 / weight[tested].sum()
            if best is None or variance.sum() < best[0].sum():
                best = variance, ridge
        variance, ridge = best
        G = A.T @ A
        G[np.diag_indices(len(G))] += ridge * level
        return cls(features, likelihood, np.linalg.solve(G, A.T @ B), variance)

    def log_likelihood(self, labels: np.ndarray, theta: np.ndarray, walls: np.ndarray) -> float:
        """Of what was measured, errors of the emulator on top of the noise."""
        inside, w = (labels > 0).astype(float), walls.astype(float)
        smooth, by_cell, by_wall = self._parts
        predicted = self.features.smooth(labels, theta, inside, w) @ smooth + (
            inside @ by_cell + w @ by_wall)
        return float(self.likelihood.log_density(np.maximum(predicted, 0.0), self.variance))
