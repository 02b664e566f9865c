"""What a search looks for: labels of the mesh cells, and numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from mpi4py import MPI

from ...mesh.distributed import Mesh


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """One explanation of the data.

    Attributes:
        labels: ``(Nt,)`` int8 in the order of the input: 0 outside, 1, 2, ... cells.
        theta: ``(P,)`` coordinates of the unknown numbers, in the order of `Models.names`.
        misfit: mean square residual; of which measurements and model says who made it.
        origin: the random stream that it comes from.
    """

    labels: np.ndarray
    theta: np.ndarray = field(default_factory=lambda: np.zeros(0))
    misfit: float = np.inf
    origin: tuple[int, ...] = ()

    @property
    def cells(self) -> int:
        """How many cells it has."""
        return int(self.labels.max(initial=0))


def whole_labels(mesh: Mesh, labels: np.ndarray) -> np.ndarray:
    """Labels of all cells in the order of the input, ``(Nt,)`` int8. Collective.

    Args:
        mesh: the mesh.
        labels: ``(owned cells,)``.
    """
    whole = np.zeros(mesh.num_cells, np.int8)
    whole[mesh.input_cells[: len(labels)]] = labels
    mesh.comm.Allreduce(MPI.IN_PLACE, whole, MPI.MAX)
    return whole


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the mesh cells with the same label among those that are inside either."""
    return np.count_nonzero((a == b) & (a > 0)) / np.count_nonzero((a > 0) | (b > 0))
