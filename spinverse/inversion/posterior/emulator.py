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
from math import log

import numpy as np
from scipy.spatial import cKDTree

from ..likelihood import Likelihood
from ..shapes.models import Models
from .moves import Moves
from .prior import Prior

RIDGES = 10.0 ** np.arange(-7, 2)  # of the trace of the Gram matrix over its size
TESTED = 5  # one example of so many tests the ridge
NEAR = 10.0  # chi-square for each measurement, beyond which an example counts less

_ROWS, _COLUMNS = (index.tolist() for index in np.triu_indices(3))
_SUMS = 16  # moments of the inside, and of the walls


class Features:
    """What is told of a hypothesis.

    Args:
        prior, moves, models: of the problem.
    """

    def __init__(self, prior: Prior, moves: Moves, models: Models):
        whole = models.whole
        self.mirror = mirror = moves.mirror
        self._numbers = [values.tolist() for values in (
            models.bounds[0], np.ptp(models.bounds, axis=0), models.cell_of)]
        n, number = whole.normals, len(whole.facets)
        size = np.maximum(whole.areas, 1e-300)[:, None] * prior.area_scale * number
        self.tensor = 10 / size * np.stack(
            [n[:, i] * n[:, j] for i in range(3) for j in range(i, 3)], axis=1)
        middle, every = whole.points[whole.facets].mean(axis=1) - whole.centre, np.arange(number)
        mirrored = not np.array_equal(mirror, np.arange(len(mirror)))
        self.opposite = cKDTree(middle).query(-middle)[1] if mirrored else every
        x = (whole.centroids - whole.centre) / np.ptp(whole.points, axis=0).max()
        self.moments = (whole.volumes / whole.volumes.sum())[:, None] * np.column_stack(
            [np.ones(len(x)), x, *(x[:, i] * x[:, j] for i in range(3) for j in range(i, 3))])
        few = 3 + len(models.cell_of)
        many = few + 8
        rows, columns = np.triu_indices(many)
        self.pairs = rows * many + columns
        #: of smooth ones, and with mesh cells
        self.number = len(self.pairs) + 18 + 6 * few
        self.ends = self.number, self.number + len(mirror), self.number + len(mirror) + number

    def smooth(self, moments: np.ndarray, T: np.ndarray, theta: np.ndarray,
               number: int) -> np.ndarray:
        """Sizes, surfaces by orientation, second moments of the inside, numbers; products.

        Args:
            moments: ``(10,)`` of the inside: sum of `moments`.
            T: ``(6,)`` of the walls: sum of `tensor`.
            theta: coordinates.
            number: of cells.
        """
        # plain numbers: arrays this small take longer
        (V, *c), T = moments[:4].tolist(), T.tolist()
        V = max(V, 1e-12)
        c = [x / V for x in c]
        spread = [10 * (m / V - c[i] * c[j])
                  for m, i, j in zip(moments[4:].tolist(), _ROWS, _COLUMNS, strict=True)]
        per_volume = [t / (3 * V) for t in T]
        few = [V, T[0] + T[3] + T[5], number, *(
            ((x - low) / width - 0.5) * (cell <= number)
            for x, low, width, cell in zip(theta.tolist(), *self._numbers, strict=True))]
        many = np.array([1.0, *few, per_volume[0], per_volume[3], per_volume[5],
                         spread[0], spread[3], spread[5], log(V)])
        return np.concatenate([
            np.multiply.outer(many, many).take(self.pairs), T, per_volume, spread,
            np.multiply.outer(few, T).ravel()])

    def __call__(self, labels: np.ndarray, theta: np.ndarray, walls: np.ndarray) -> np.ndarray:
        """All of them, ``(F,)``; ``walls`` as of `Prior.walls`."""
        inside, w = (labels > 0).astype(float), walls.astype(float)
        return np.concatenate([
            self.smooth(inside @ self.moments, w @ self.tensor, theta, int(labels.max())),
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
    def table(self) -> np.ndarray:
        """What each mesh cell inside and each wall adds to `sums`, ``(Nt + Nf, 16 + N)``."""
        f = self.features
        cells, walls = np.split(self.slopes[f.number:], [len(f.mirror)])
        return np.block([
            [f.moments, np.zeros((len(f.mirror), 6)), cells + cells[f.mirror]],
            [np.zeros((len(f.opposite), 10)), f.tensor, walls + walls[f.opposite]]])

    def sums(self, labels: np.ndarray, walls: np.ndarray) -> np.ndarray:
        """All that `value` needs to know of a partition, ``(16 + N,)``: linear in it."""
        return np.concatenate([labels > 0, walls]).astype(float) @ self.table

    def value(self, sums: np.ndarray, theta: np.ndarray, number: int) -> float:
        """Log-likelihood of what was measured, errors of the emulator on top of the noise."""
        predicted = sums[_SUMS:] + self.features.smooth(
            sums[:10], sums[10:_SUMS], theta, number) @ self._smooth
        return float(self.likelihood.log_density(np.maximum(predicted, 0.0), self.variance))

    @cached_property
    def _smooth(self) -> np.ndarray:
        return np.ascontiguousarray(self.slopes[: self.features.number])

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
        """`value` of a hypothesis."""
        return self.value(self.sums(labels, walls), theta, int(labels.max()))
