"""A cheap stand-in for the model: linear in mesh cells, walls and a few sizes of a hypothesis.

Ridge regression of predicted magnitudes, learnt from hypotheses whose signals are known. Features
are volume, area of the walls by orientation, second moments of the inside, the numbers, products of
these; which cells are inside and which facets are walls (so that neighbours count together), each
with its opposite one, since magnitudes do not see a reflection. Examples that are left out choose
ridge and features. It screens, it never decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..likelihood import Likelihood
from ..shapes.models import Models
from .moves import Moves
from .prior import Prior

RIDGES = 10.0 ** np.arange(-7, 2)  # of the trace of the Gram matrix over its size
TESTED = 5  # one example of so many tests the ridge
NEAR = 10.0  # chi-square for each measurement, beyond which an example counts less

_ROWS, _COLUMNS = np.triu_indices(3)
_DIAGONAL = np.flatnonzero(_ROWS == _COLUMNS)


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
        x = (whole.centroids - whole.centre) / np.ptp(whole.points, axis=0).max()
        self.moments = (whole.volumes / whole.volumes.sum())[:, None] * np.column_stack(
            [np.ones(len(x)), x, *(x[:, i] * x[:, j] for i in range(3) for j in range(i, 3))])
        few = 3 + len(self.low)
        self.pairs = np.triu_indices(few + len(_DIAGONAL) * 2 + 1)
        #: of smooth ones, and with mesh cells
        self.number = 1 + few + 7 + len(self.pairs[0]) + 18 + 6 * few
        self.ends = self.number, self.number + len(mirror), self.number + len(mirror) + number

    def smooth(self, labels: np.ndarray, theta: np.ndarray, inside: np.ndarray,
               walls: np.ndarray) -> np.ndarray:
        """Sizes, surfaces by orientation, second moments of the inside, numbers; products."""
        T, moments = 10 * walls @ self.tensor, inside @ self.moments
        V = max(moments[0], 1e-12)
        c = moments[1:4] / V
        spread = 10 * (moments[4:] / V - c[_ROWS] * c[_COLUMNS])
        few = np.concatenate([
            [V, T[_DIAGONAL].sum(), labels.max()],
            ((theta - self.low) / self.width - 0.5) * self.active(labels)])
        per_volume = T / (3 * V)
        base = np.concatenate([few, per_volume[_DIAGONAL], spread[_DIAGONAL], [np.log(V)]])
        return np.concatenate([[1.0], base, base[self.pairs[0]] * base[self.pairs[1]], T,
                               per_volume, spread, (few[:, None] * T).ravel()])

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
        root, best = np.sqrt(weight)[:, None], None
        A, B = root * X, root * Y
        for end in features.ends:  # few examples tell of few features
            some = A[~tested, :end]
            values, vectors = np.linalg.eigh(some.T @ some)
            pull = vectors.T @ (some.T @ B[~tested])
            level, seen = values.sum() / len(values), X[tested, :end] @ vectors
            for ridge in RIDGES:
                error = seen @ (pull / (np.maximum(values, 0) + ridge * level)[:, None]) - Y[tested]
                variance = weight[tested] @ error**2 / weight[tested].sum()
                if best is None or variance.sum() < best[0].sum():
                    best = variance, end, ridge * level
        variance, end, ridge = best
        G, slopes = A[:, :end].T @ A[:, :end], np.zeros((X.shape[1], Y.shape[1]))
        G[np.diag_indices(end)] += ridge
        slopes[:end] = np.linalg.solve(G, A[:, :end].T @ B)
        return cls(features, likelihood, slopes, variance)

    def log_likelihood(self, labels: np.ndarray, theta: np.ndarray, walls: np.ndarray) -> float:
        """Of what was measured, errors of the emulator on top of the noise."""
        inside, w = (labels > 0).astype(float), walls.astype(float)
        smooth, by_cell, by_wall = self._parts
        predicted = self.features.smooth(labels, theta, inside, w) @ smooth + (
            inside @ by_cell + w @ by_wall)
        return float(self.likelihood.log_density(np.maximum(predicted, 0.0), self.variance))
