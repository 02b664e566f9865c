"""What is thought of shapes and numbers before the signals are known, in one formula.

    log p(labels, theta) = -S / a - (ln(V / (f B)))^2 / (2 s^2) - c (n - 1) + sum_i log p(theta_i)

on allowed partitions (`Cells.allowed`) of at most so many cells: S is the area of all walls and of
the outer facets of cells, so that none is drawn to the boundary, V the volume inside, B that of the
box, n the number of cells. Unknown numbers are uniform in their
coordinate (so logarithmic ones are log-uniform) within their range, times the normal prior where
they have one. Numbers of cells that are not there have the same prior, so that hypotheses of any
number of cells have the same dimension (Carlin and Chib, J. R. Stat. Soc. B 57, 473, 1995).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log

import numpy as np

from ...engines.shapes.walls import is_wall
from ...errors import InputError
from ..shapes.cells import Cells
from ..shapes.models import Models

FACETS = 1.5  # with fewer, shapes shrink to a few mesh cells; with many more, they become twigs


@dataclass(frozen=True)
class ShapePrior:
    """The prior of shapes; see the formula of this module.

    Attributes:
        area_scale: a, um^2; None: `FACETS` mean facets of the mesh.
        volume_fraction: f, of the box.
        volume_spread: s, of the logarithm of the volume; inf: all volumes alike.
        per_cell: c, units of log-probability that a further cell costs.

    Raises:
        InputError: a number out of its range.
    """

    area_scale: float | None = None
    volume_fraction: float = 0.2
    volume_spread: float = 0.5
    per_cell: float = 2.0

    def __post_init__(self):
        for name, low, high in (("area_scale", 0.0, np.inf), ("volume_fraction", 0.0, 1.0),
                                ("volume_spread", 0.0, np.inf), ("per_cell", -np.inf, np.inf)):
            value = getattr(self, name)
            if value is None and name == "area_scale":
                continue
            inclusive = name == "volume_spread"
            if not (low < value < high or value == high and inclusive):
                raise InputError(f"prior: {name} {value!r}, expected a number between {low:g} and "
                                 f"{high:g}")


class Prior:
    """A `ShapePrior` on a mesh, with the numbers of a problem.

    Args:
        shapes: the prior of shapes.
        models: has the mesh and the unknown numbers.
        cells: adjacency.
    """

    def __init__(self, shapes: ShapePrior, models: Models, cells: Cells):
        self.shapes, self.cells, self.whole = shapes, cells, models.whole
        self.bounds, self.start, self.precision = models.bounds, models.start, models.precision
        self._numbers = [values.tolist() for values in (*self.bounds, self.start, self.precision)]
        self.area_scale = shapes.area_scale or FACETS * float(np.mean(self.whole.areas))
        self.middle = float(np.log(shapes.volume_fraction * self.whole.volumes.sum()))

    def walls(self, labels: np.ndarray) -> np.ndarray:
        """Which facets are of the surface of a cell, ``(Nf,)`` bool."""
        return is_wall(labels, self.whole.sides)

    def sizes(self, labels: np.ndarray, walls: np.ndarray | None = None) -> tuple[float, float]:
        """Volume inside (um^3) and area of the surfaces (um^2)."""
        walls = self.walls(labels) if walls is None else walls
        return float(self.whole.volumes @ (labels > 0)), float(self.whole.areas @ walls)

    def log_density(self, labels: np.ndarray, theta: np.ndarray,
                    walls: np.ndarray | None = None) -> float:
        """Of an allowed partition, up to a constant; -inf where nothing is inside."""
        return self.of_sizes(*self.sizes(labels, walls), int(labels.max()), theta)

    def of_sizes(self, V: float, S: float, number: int, theta: np.ndarray) -> float:
        """The same of volume, area and number of cells."""
        if V <= 0:
            return -inf
        found = -S / self.area_scale - self.shapes.per_cell * (number - 1) - 0.5 * (
            (log(V) - self.middle) / self.shapes.volume_spread) ** 2
        for x, low, high, start, precision in zip(theta.tolist(), *self._numbers, strict=True):
            if not low <= x <= high:
                return -inf
            found -= 0.5 * precision * (x - start) ** 2
        return found

    def changes(self, labels: np.ndarray,
                moves: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """What moves (cell, new label) change of the log density of a shape, to second order.

        Returns:
            ``(n,)`` a and ``(n, n)`` Q: a set s of moves changes a s + s Q s / 2. The area of walls
            is exact for moves of different cells.
        """
        V, n = self.sizes(labels)[0], len(moves)
        sides, areas = self.whole.sides.tolist(), self.whole.areas.tolist()
        turned: dict[int, list[int]] = {}
        single, Q = np.zeros(n), np.zeros((n, n))
        for k, (cell, _) in enumerate(moves):
            turned.setdefault(cell, []).append(k)
        for k, (cell, label) in enumerate(moves):
            for facet in self.whole.facets_of[cell]:
                a, b = sides[facet]
                other = b if a == cell else a
                beside = labels[other] if other >= 0 else 0
                change = int(label != beside) - int(labels[cell] != beside)
                single[k] -= change * areas[facet] / self.area_scale
                for m in turned.get(other, ()):
                    new = moves[m][1]
                    both = int(label != new) - int(labels[cell] != new)
                    Q[k, m] -= (both - change) * areas[facet] / self.area_scale
        volumes = self.whole.volumes[[cell for cell, _ in moves]]
        gained = volumes * ([int(label > 0) - int(labels[cell] > 0) for cell, label in moves])
        far = (log(V) - self.middle) / self.shapes.volume_spread**2
        single -= far / V * gained
        Q += (far - self.shapes.volume_spread**-2) / V**2 * np.outer(gained, gained)
        return single, Q
