"""Which facets a partition of the mesh cells makes walls: the one rule, asked by all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...mesh.distributed import Mesh
from ...unknowns import with_ghosts


def is_wall(labels: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Facets between cells of different labels, ``(Nf,)`` bool; beyond the mesh the label is 0.

    Args:
        labels: ``(Nt,)``.
        sides: ``(Nf, 2)`` cells on the two sides, -1 for outside.
    """
    first, second = labels_beside(labels, sides)
    return first != second


def labels_beside(labels: np.ndarray, sides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the two sides of facets, ``(n,)`` each; arguments as of `is_wall`."""
    first, second = sides.T
    return labels[first], np.where(second >= 0, labels[second], 0)


def between(mesh: Mesh, labels: np.ndarray, boundary_absorbing: bool) -> np.ndarray:
    """The surfaces of a partition of the cells, ``(nf,)`` bool over owned facets. Collective.

    ``labels (owned cells,)`` are 0 outside. Where the boundary absorbs, outer facets of cells that
    are not outside belong to the surfaces.
    """
    first, second = spread_cells(mesh, labels)[mesh.facet_cells].T
    return np.where(mesh.outer, boundary_absorbing & (first > 0), first != second)


def spread_cells(mesh: Mesh, values: np.ndarray) -> np.ndarray:
    """Values of owned cells, followed by those of the ghosts. Collective."""
    index_map = mesh.domain.topology.index_map(mesh.domain.topology.dim)
    values = np.asarray(values)
    return with_ghosts(index_map, values.astype(float)).astype(values.dtype)


@dataclass(frozen=True, eq=False)
class Walls:
    """Permeabilities of the facets of a partition.

    Attributes:
        wall: of facets between different labels, um/ms: a number, or one for each cell from label 1
            on. Where two cells touch it is the geometric mean of theirs.
        open: of the other facets, um/ms; inf ties them.
        absorbing: whether outer facets follow the same rule; else they are closed.
        factor: ``(Nf,)`` what the permeability of each facet that is a wall is over ``wall``; None
            where walls are uniform.
    """

    wall: float | tuple[float, ...]
    open: float
    absorbing: bool
    factor: np.ndarray | None = None

    @property
    def outer(self) -> float:
        """Of outer facets of label 0, um/ms."""
        return self.open if self.absorbing else 0.0

    @property
    def first(self) -> float:
        """Of the wall between cell 1 and the outside, um/ms."""
        return float(np.ravel(self.wall)[0])

    def of(self, first: np.ndarray, second: np.ndarray,
           facets: np.ndarray) -> np.ndarray | float:
        """Of walls between two labels, arrays of whole numbers, not both of them 0, um/ms.

        ``facets``: numbers of the walls, or which of all they are.
        """
        factor = 1.0 if self.factor is None else self.factor[facets]
        if np.isscalar(self.wall):
            return self.wall * factor
        logs = np.r_[0.0, np.log(self.wall)]
        share = (first > 0) + 1.0 * (second > 0)
        return factor * np.exp((logs[first] + logs[second]) / share)

    def permeability(self, labels: np.ndarray, sides: np.ndarray) -> np.ndarray:
        """Of every facet, ``(Nf,)`` um/ms; arguments as of `is_wall`."""
        walls, kappa = is_wall(labels, sides), np.full(len(sides), self.open)
        kappa[walls] = self.of(*labels_beside(labels, sides[walls]), walls)
        return kappa if self.absorbing else np.where(sides[:, 1] < 0, 0.0, kappa)
