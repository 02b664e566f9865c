"""Permeable balls on a lattice by what `simulate` chooses by itself."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from mpi4py import MPI
from periodic_boxes import along_x, few, small_box

from spinverse import Acquisition, Permeability, Tissue, mesh, simulate
from spinverse.acquisition import SampledGradient
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.engines.shapes.directions import DirectionBases
from spinverse.simulate import degree_for, make_engine, name_of
from spinverse.validation.references import LATTICE, LENGTH, PULSE, RADIUS, SEPARATION


def lattice(size: float, comm=MPI.COMM_SELF) -> Tissue:
    box = mesh.build(mesh.packed_spheres, radii=(RADIUS,), box=(LENGTH,) * 3, periodic=True,
                     size=size, comm=comm)
    return Tissue(box, 2.0, permeability=Permeability.on(box, membrane=0.01), periodic="xyz")


@pytest.fixture(scope="module")
def table():
    return Acquisition.pgse(list(LATTICE[0.01]), [[1.0, 0, 0]], PULSE, SEPARATION)


def test_a_third_of_a_radius_does_to_a_thousandth(table, caplog):
    with caplog.at_level(logging.INFO, logger="spinverse"):
        found = simulate(lattice(RADIUS / 3 + 0.15), table)
    assert np.abs(found.normalised - list(LATTICE[0.01].values())).max() < 1e-3
    assert found.estimated_error < 1e-4 and 1e-5 < found.mesh_error < 1e-3
    assert "degree: 2, as the phase along periodic axes turns by" in caplog.text
    assert "engine: direction_bases, for a box that is periodic" in caplog.text


def test_cells_that_are_too_large_are_said(table, caplog):
    with caplog.at_level(logging.WARNING, logger="spinverse"):
        strong = Acquisition.pgse([60000], [[1.0, 0, 0]], PULSE, SEPARATION)
        assert degree_for(lattice(2.0), strong) == 3
    assert "expected smaller cells: at most 1.2 rad" in caplog.text


@pytest.mark.mpi
def test_the_same_on_any_number_of_ranks(comm, table):
    """Several directions, of which ranks have their own, and the error of the mesh."""
    several = Acquisition.pgse([1000, 3000], [[1.0, 0, 0], [0.6, 0, 0.8], [0, 0.8, -0.6]],
                               PULSE, SEPARATION)
    one, other = (simulate(lattice(3.0, where), several, degree=1)
                  for where in (comm, MPI.COMM_SELF))
    assert np.abs(one.values - other.values).max() < 1e-8 * abs(other.unweighted[0])
    # of residuals, in which the fastest rates multiply what states differ by (2e-10 of S)
    assert one.mesh_error == pytest.approx(other.mesh_error, rel=1e-5)


@pytest.mark.mpi
@pytest.mark.parametrize("tolerance", [1e-5, None])
def test_the_same_on_any_number_of_ranks_without_symmetry(comm, tolerance):
    """Both kinds of bases; with T2 a row without gradient depends on the basis, too."""
    strong = Acquisition.pgse([0, 3000, 8000], [[0.6, 0.0, 0.8], [0, 1, 0]], 2.0, 6.0)
    one, other = (DirectionBases(small_box("xyz", where), strong, tolerance).signals()
                  for where in (comm, MPI.COMM_SELF))
    assert np.abs(one - other).max() < 1e-10 * abs(other[0])


def test_resolvents_against_all_modes(table):
    """Where the chain does not do."""
    problem = small_box("xyz")
    strong = Acquisition.pgse([0, 3000, 8000], [[0.6, 0.0, 0.8], [0, 1, 0]], 2.0, 6.0)
    engine = DirectionBases(problem, strong, 1e-5)
    found = engine.signals()
    exact = MatrixFormalism(problem, strong, problem.num_unknowns, max_step=0.05).signals()
    assert engine.shares and np.abs(found - exact).max() < 2e-5 * abs(exact[0])


def test_what_is_chosen():
    """Only where it knows everything, directions are few, and no derivatives are wanted."""
    def name(problem, acquisition, **arguments):
        return name_of(make_engine(problem, acquisition, derivatives=False, **arguments))

    box = small_box("xyz")
    assert name(box, few()) == "direction_bases"
    assert name(small_box("xy"), few()) == "matrix_formalism"
    assert name(box, few((0,))) == "matrix_formalism"
    assert name(box, few(), modes=5) == "matrix_formalism"
    assert name(box, Acquisition.pgse([1000], 30, 2.0, 3.0)) == "matrix_formalism"
    assert name(small_box("xyz", interface="plain"), few()) == "matrix_formalism"
    turning = SampledGradient((0.0, 1.0, 2.0, 3.0, 4.0), [
        [0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [-1.0, -1.0, 0], [0, 0, 0]])
    assert name(box, Acquisition.product(turning, [1000])) == "matrix_formalism"
    assert name_of(make_engine(box, along_x())) == "matrix_formalism"
