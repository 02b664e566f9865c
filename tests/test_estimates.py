"""What a dry run says of the number of modes, on unlike meshes, and when it is said."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from mpi4py import MPI
from test_parts import balls

from spinverse import BlochTorrey, Permeability, Tissue, mesh
from spinverse.acquisition import Acquisition
from spinverse.commands import estimates
from spinverse.engines.basis.spectrum import count_below
from spinverse.engines.modal.matrix_formalism import MatrixFormalism

RUN = SimpleNamespace(modes="auto", time_step_ms="auto")
FACTOR = 3.0  # that the dry run claims


def pgse(b, directions=3, delta=10, Delta=30):
    return Acquisition.pgse([0, b], directions, delta, Delta)


def built(builder, **arguments):
    return mesh.build(builder, comm=MPI.COMM_SELF, **arguments)


def walls(there, membrane, elsewhere=np.inf):
    kappa = np.where(there.interface > 0, membrane, elsewhere)
    return Tissue(there, permeability=Permeability(there, np.where(there.outer, 0.0, kappa)))


def packed():
    return built(mesh.packed_spheres, size=2.5, radii=[4.0, 3.0], box=[15.0] * 3)


def row_of_balls(radii):
    return Tissue(balls([(35.0 * k, 0, 0) for k in range(len(radii))], radii, MPI.COMM_SELF, 7.0))


MESHES = {
    "thin tube": (lambda: Tissue(built(mesh.box, lengths=[800, 1.5, 1.5], cells=[280, 1, 1])),
                  pgse(1000)),
    "layers": (lambda: walls(built(mesh.intervals, thicknesses=[20.0, 30.0, 10.0], size=0.5), 0.02),
               pgse(5000, [[1, 0, 0]])),
    "long slab": (lambda: Tissue(built(mesh.intervals, thicknesses=[500.0], size=0.5)),
                  pgse(3000, [[1, 0, 0]], 5, 20)),
    "ball": (lambda: Tissue(built(mesh.spheres, radii=[5], size=1.5)), pgse(4000)),
    "large ball": (lambda: Tissue(built(mesh.spheres, radii=[20], size=5)), pgse(1000)),
    "balls and what is between": (lambda: walls(packed(), 0.01), pgse(2000)),
    "closed balls and what is between": (lambda: walls(packed(), 0.0), pgse(2000)),
    "open facets": (lambda: walls(built(mesh.box, lengths=[16.0] * 3, cells=(3, 3, 3)), None, 1.0),
                    pgse(1000)),
    "sheet": (lambda: Tissue(built(mesh.box, lengths=[60.0, 60.0, 2.0], cells=(30, 30, 1))),
              pgse(1000, [[1, 0, 0], [0, 1, 0]])),
    "like balls": (lambda: row_of_balls([15] * 8), pgse(1000)),
    "unlike balls": (lambda: row_of_balls([15, 14, 13, 12, 11]), pgse(3000)),
    "strong gradient": (lambda: Tissue(built(mesh.box, lengths=[10.0] * 3, cells=(5, 5, 5))),
                        pgse(20000, 3, 2, 20)),
}


@pytest.mark.parametrize("name", MESHES)
def test_modes_are_foretold_within_a_factor_of_three(name):
    make, table = MESHES[name]
    engine = MatrixFormalism(BlochTorrey(make()), table, tolerance=1e-4)
    said = estimates.of_simulation(RUN, engine)
    engine.signals()
    assert 1 / FACTOR < said.modes / engine.num_modes < FACTOR
    assert f"{said.modes} modes (rough: a factor of three)" in said.lines[0]


@pytest.mark.mpi
def test_a_factor_counts_modes(comm):
    box = mesh.build(mesh.box, lengths=[10.0, 7.0, 6.0], cells=(6, 5, 4), comm=comm)
    for tissue in (Tissue(box), walls(box, None, 0.7)):
        problem = BlochTorrey(tissue)
        basis = MatrixFormalism(problem, pgse(1000), 60).find_modes()
        cut = 0.5 * (basis.eigenvalues[40] + basis.eigenvalues[41])
        assert count_below(problem.decay_matrix(), problem.mass_matrix, float(cut)) == 41


def test_only_long_runs_are_announced():
    lines = ["estimate: about 4 hours"]
    assert estimates.Estimate(4 * 3600.0, 300.0, 80, lines).at_start == lines
    assert not estimates.Estimate(60.0, 300.0, 80, lines).at_start
