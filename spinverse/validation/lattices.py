"""Balls on a cubic lattice: periodic axes in 3-D, against a random walk.

The walk is that of `benchmarks/lattice_walk.py`, 150000 walkers in steps of 10 us.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..acquisition import Acquisition
from ..mesh import packed_spheres
from ..simulate import simulate
from .discretisation import REFINED, Discretisation
from .rows import Row
from .signals import WALK_TARGET
from .solve import MATRIX_FORMALISM, Settings

LENGTH, RADIUS, D, PULSE, SEPARATION = 10.0, 4.0, 2.0, 10.0, 20.0  # um, um^2/ms, ms
# by permeability, um/ms: signals over b, s/mm^2, and two standard deviations
WALKS = {0.01: {1000: (0.3742, 0.0035), 2000: (0.2541, 0.0037), 4000: (0.2069, 0.0037)}}


def lattice_rows(settings: Settings) -> Iterator[Row]:
    """With the degree that `simulate` chooses, and the error of the mesh that it says. Collective.

    Time stepping would take a factor for every step of every gradient.
    """
    if not settings.runs(MATRIX_FORMALISM):
        return
    for level in settings.levels:
        for kappa, walk in WALKS.items():
            choice = Discretisation(packed_spheres, (
                ("radii", (RADIUS,)), ("box", (LENGTH,) * 3), ("periodic", True)),
                1.0 if level == REFINED else 1.5, 2)
            problem, columns = choice.problem(settings.comm, D, kappa=kappa, periodic="xyz")
            table = Acquisition.pgse([0, *walk], [1.0, 0.0, 0.0], PULSE, SEPARATION)
            found = simulate(problem.tissue, table, tolerance=settings.tolerance_at(level))
            reference, uncertainty = np.array(list(walk.values())).T.tolist()
            yield Row("lattice", f"balls_kappa{kappa:g}", level, MATRIX_FORMALISM,
                      tuple(f"b = {b:g}" for b in walk), tuple(found.normalised[1:].tolist()),
                      tuple(reference), tuple(uncertainty), WALK_TARGET,
                      resolution=f"mesh: {found.mesh_error:.1g}",
                      estimated_error=found.estimated_error, **columns)
