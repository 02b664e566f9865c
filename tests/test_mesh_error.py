"""The error of the mesh: its estimate against polynomials of one more degree; periodic lattices."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import ufl
from mpi4py import MPI
from periodic_boxes import along_x

from spinverse import BlochTorrey, Permeability, Tissue, forms, mesh, simulate
from spinverse.acquisition import Acquisition, Sampled, TrapezoidPGSE
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.engines.modal.mesh_error import mesh_error
from spinverse.simulate import degree_for


def closed(comm) -> tuple:
    ball = mesh.build(mesh.spheres, radii=[5.0], size=4.0, comm=comm)
    return Tissue(ball), Acquisition.pgse([0, 4000], [[0.6, 0.0, 0.8]], 10, 30)


def membrane(comm) -> tuple:
    line = mesh.build(mesh.intervals, [5.0, 5.0], cells_per_layer=5, comm=comm)
    return (Tissue(line, T2=80.0, density={1: 1.0, 2: 0.7},
                   permeability=Permeability.on(line, membrane=0.02)),
            Acquisition.product([TrapezoidPGSE(8, 20, 2)], [0, 3000], [[1.0, 0, 0]]))


def lattice(comm) -> tuple:
    line = mesh.build(mesh.intervals, [5.0, 5.0], cells_per_layer=4, comm=comm)
    return (Tissue(line, permeability=Permeability.on(line, membrane=0.02), periodic="x"),
            along_x([0, 4000], 10, 30))


def lopsided(comm) -> tuple:
    tissue, _ = lattice(comm)
    wave = Sampled((0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 8.0), (0.0, 1.0, 0.0, 0.0, -0.5, 0.0, 0.0))
    return tissue, Acquisition.product([wave], [0, 2000], [[1.0, 0, 0]])


def turning(m, v, t, c):
    """A field on the way to the echo and another one after it."""
    return c.echo_sign * 0.05 * c.x[0] * ufl.inner(forms.i_times(m), v) * c.dx


@pytest.mark.parametrize("case, terms", [(closed, None), (membrane, None), (lattice, None),
                                         (lopsided, None), (membrane, turning)])
def test_estimate_is_what_another_degree_changes(case, terms):
    tissue, table = case(MPI.COMM_SELF)
    engines = [MatrixFormalism(BlochTorrey(tissue, degree, terms), table, 10**6, max_step=0.05)
               for degree in (1, 2)]
    plain, better = (engine.signals() for engine in engines)
    change = np.abs(better - plain).max() / engines[0].problem.magnetisation_at_start
    assert change > 1e-3 and mesh_error(engines[0]) == pytest.approx(change, rel=0.4)
    assert mesh_error(engines[1]) < 0.3 * change


@pytest.mark.mpi
@pytest.mark.parametrize("case", [closed, lopsided])
def test_the_same_on_any_number_of_ranks(comm, case):
    found = []
    for where in (comm, MPI.COMM_SELF):
        tissue, table = case(where)
        engine = MatrixFormalism(BlochTorrey(tissue), table, 10**6)
        engine.signals()
        found.append(mesh_error(engine))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_simulate_says_it_and_changes_nothing(caplog):
    tissue, table = closed(MPI.COMM_SELF)
    with caplog.at_level(logging.WARNING, logger="spinverse"):
        signals = simulate(tissue, table)
    assert signals.mesh_error > 1e-2 and "expected smaller cells or degree=2" in caplog.text
    caplog.clear()
    again = simulate(tissue, table, degree=1, mesh_error=False)
    assert np.isnan(again.mesh_error) and not caplog.records
    assert np.array_equal(signals.values, again.values)
    assert np.isnan(simulate(tissue, table, "time_stepping", time_step=2.0).mesh_error)


def test_degree_follows_the_phase_along_periodic_axes():
    tissue, table = lattice(MPI.COMM_SELF)  # Q = 0.387 rad/um, cells of 1.25 um
    assert degree_for(tissue, table) == 2 and degree_for(tissue, table, 1) == 1
    assert degree_for(tissue, along_x([0, 50], 10, 30)) == 1
    assert degree_for(tissue, along_x([0, 20000], 10, 30)) == 3
    assert degree_for(Tissue(tissue.mesh), table) == 1
    assert simulate(tissue, table, mesh_error=False).values[1] == simulate(
        tissue, table, degree=2, mesh_error=False).values[1]


@pytest.mark.slow
def test_a_lattice_of_closed_balls_is_balls_and_what_is_between():
    """What is between has a signal of its own sign: none is less than the balls alone."""
    size, table = 1.5, Acquisition.pgse([0, 4000], [[1.0, 0, 0]], 10, 60)
    box = mesh.build(mesh.packed_spheres, size=size, radii=[4.0], box=[10.0] * 3, periodic=True,
                     comm=MPI.COMM_SELF)
    found = simulate(Tissue(box, permeability=Permeability.on(box, membrane=0.0), periodic="xyz"),
                     table)
    ball = mesh.build(mesh.spheres, radii=[4.0], size=1.0, comm=MPI.COMM_SELF)
    alone = simulate(Tissue(ball), table, degree=2).values.real
    assert found.values[1].real > alone[1] and found.mesh_error < 1e-3
