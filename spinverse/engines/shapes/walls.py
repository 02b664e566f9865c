"""Which facets a partition of the mesh cells makes walls: the one rule, asked by all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


def is_wall(labels: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Facets between cells of different labels, ``(Nf,)`` bool; beyond the mesh the label is 0.

    Args:
        labels: ``(Nt,)``.
        sides: ``(Nf, 2)`` cells on the two sides, -1 for outside.
    """
    first, second = sides.T
    return labels[first] != np.where(second >= 0, labels[second], 0)


@dataclass(frozen=True)
class Walls:
    """Permeabilities of the facets of a partition.

    Attributes:
        wall: of facets between different labels, um/ms: a number, or one for each cell from label 1
            on. Where two cells touch it is the geometric mean of theirs.
        open: of the other facets, um/ms; inf ties them.
        absorbing: whether outer facets follow the same rule; else they are closed.
    """

    wall: float | tuple[float, ...]
    open: float
    absorbing: bool

    @property
    def outer(self) -> float:
        """Of outer facets of label 0, um/ms."""
        return self.open if self.absorbing else 0.0

    def of(self, first: np.ndarray | int, second: np.ndarray | int) -> Any:
        """Of walls between two labels, whole numbers, not both of them 0, um/ms, likewise."""
        if np.isscalar(self.wall):
            return self.wall
        logs = np.r_[0.0, np.log(self.wall)]
        return np.exp((logs[first] + logs[second]) / ((first > 0) + 1.0 * (second > 0)))

    def permeability(self, labels: np.ndarray, sides: np.ndarray) -> np.ndarray:
        """Of every facet, ``(Nf,)`` um/ms; arguments as of `is_wall`."""
        walls, kappa = is_wall(labels, sides), np.full(len(sides), self.open)
        first, second = sides[walls].T
        kappa[walls] = self.of(labels[first], np.where(second >= 0, labels[second], 0))
        return kappa if self.absorbing else np.where(sides[:, 1] < 0, 0.0, kappa)
