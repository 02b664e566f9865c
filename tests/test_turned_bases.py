"""A basis for each direction, turned with the phase of each node, beside all modes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from mpi4py import MPI
from periodic_boxes import LEAN, along_x, small_box

from spinverse import Acquisition, BlochTorrey, Permeability, Tissue, mesh, simulate
from spinverse.acquisition import SampledGradient
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.engines.modal.mesh_error import error_of_states, mesh_error
from spinverse.engines.modal.turned_bases import TurnedBases
from spinverse.errors import InputError
from spinverse.simulate import make_engine, name_of

OBLIQUE = [[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]]
TABLES = {
    "pgse": Acquisition.pgse([0, 1000, 3000], OBLIQUE, 2.0, 6.0),
    "ramps": Acquisition.trapezoid([1000, 2000], OBLIQUE[:1], 3.0, 8.0, 0.5),
    "no symmetry": Acquisition.product(LEAN, [0, 1000, 2000], OBLIQUE[:1]),
    "both signs": Acquisition.ogse([300, 600], OBLIQUE[:1], 6.0, 8.0, 1, kind="cos"),
}


def ball(comm=MPI.COMM_SELF) -> BlochTorrey:
    """A ball with a membrane in a box that leaks."""
    box = mesh.build(mesh.tagged_grid, mesh.Ball(4), 12.0, cells=2, comm=comm)
    return BlochTorrey(Tissue(box, 2.0, T2=80.0, permeability=Permeability.on(
        box, membrane=0.05, elsewhere=np.inf, outer=0.02)))


@pytest.mark.parametrize("kind", TABLES)
def test_against_all_modes(kind):
    problem, table = ball(), TABLES[kind]
    exact = MatrixFormalism(problem, table, problem.num_unknowns, max_step=0.05).signals()
    for tolerance in (1e-3, 1e-5):
        engine = TurnedBases(problem, table, tolerance)
        found = engine.signals()
        assert np.abs(found - exact).max() < tolerance * abs(problem.magnetisation_at_start)
        assert engine.estimated_error < tolerance


@pytest.mark.parametrize("arguments", [{}, {"tied": False}, {"degree": 2}])
def test_everything_different_from_cell_to_cell(arguments):
    """Tensors, T2, densities, outflow; phases that turn by several rad within a cell."""
    problem, table = small_box("", **arguments), TABLES["pgse"]
    exact = MatrixFormalism(problem, table, problem.num_unknowns, max_step=0.05).signals()
    found = TurnedBases(problem, table, 1e-3).signals()
    assert np.abs(found - exact).max() < 1e-3 * abs(problem.magnetisation_at_start)


def test_on_a_line():
    problem = BlochTorrey(Tissue(mesh.build(mesh.intervals, [10.0], size=0.25)))
    exact = MatrixFormalism(problem, along_x(), problem.num_unknowns).signals()
    found = TurnedBases(problem, along_x(), 1e-4).signals()
    assert np.abs(found - exact).max() < 1e-4 * abs(exact[0])


@pytest.mark.mpi
def test_the_same_on_any_number_of_ranks(comm):
    one, other = (TurnedBases(ball(comm=where), TABLES["pgse"], 1e-3) for where in (
        comm, MPI.COMM_SELF))
    signals = one.signals(), other.signals()
    assert np.abs(signals[0] - signals[1]).max() < 1e-8 * abs(signals[1][0])
    assert one.estimated_error == pytest.approx(other.estimated_error, rel=1e-4)
    assert error_of_states(one) == pytest.approx(error_of_states(other), rel=1e-5)


def test_error_of_the_mesh(monkeypatch):
    """That of all modes, with another rate that keeps it definite; and by the adjoint itself."""
    problem, table = ball(), TABLES["pgse"].select([1, 3, 5])
    table = table.select(np.flatnonzero(np.all(table.directions == table.directions[-1], axis=1)))
    engine, modes = TurnedBases(problem, table, 1e-6), MatrixFormalism(
        problem, table, problem.num_unknowns)
    engine.signals()
    modes.signals()
    found = error_of_states(engine)
    assert found == pytest.approx(mesh_error(modes), rel=0.1)
    monkeypatch.setattr("spinverse.engines.modal.mesh_error.mirror_sign", lambda waveform: 0)
    assert error_of_states(engine) == pytest.approx(found, rel=1e-3)


def test_what_is_refused():
    problem = ball()
    turning = SampledGradient((0.0, 1.0, 2.0, 3.0, 4.0), [
        [0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [-1.0, -1.0, 0], [0, 0, 0]])
    with pytest.raises(InputError, match="varies its direction"):
        TurnedBases(problem, Acquisition.product(turning, [1000]))
    with pytest.raises(InputError, match="periodic along x, y and z, or along none"):
        TurnedBases(small_box("x"), TABLES["pgse"])
    with pytest.raises(InputError, match="stores magnetisation"):
        TurnedBases(problem, Acquisition.stimulated_echo([1000], OBLIQUE[:1], 2.0, 20.0, 10.0))
    with pytest.raises(InputError, match="several densities"):
        TurnedBases(small_box("", interface="plain"), TABLES["pgse"])


def test_what_is_chosen(caplog):
    """A long thin tube has many modes, and few functions of a direction."""
    tube = mesh.build(mesh.box, [300.0, 2.0, 2.0], cells=(400, 3, 3))
    problem = BlochTorrey(Tissue(tube))
    few, many = (Acquisition.pgse([1000, 3000], n, 10.0, 40.0) for n in (2, 5000))
    with caplog.at_level(logging.INFO, logger="spinverse"):
        chosen = make_engine(problem, few, tolerance=1e-3, derivatives=False)
    assert name_of(chosen) == "direction_bases" and isinstance(chosen, TurnedBases)
    assert "engine: direction_bases, 2 directions of" in caplog.text
    for table, arguments in ((many, {}), (few, {"derivatives": True}), (few, {"modes": 5})):
        engine = make_engine(problem, table, tolerance=1e-3,
                             **{"derivatives": False, **arguments})
        assert name_of(engine) == "matrix_formalism"
    assert name_of(make_engine(ball(), few, derivatives=False)) == "matrix_formalism"
    signals = simulate(Tissue(tube), few, tolerance=1e-3)
    assert signals.estimated_error < 1e-3 and 0 < signals.mesh_error < 0.05
