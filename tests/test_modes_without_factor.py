"""Modes of large meshes: products of rows, the inverse without a factor, modes beside others."""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI
from petsc4py import PETSc

from spinverse import Acquisition, BlochTorrey, Permeability, SolverError, Tissue, mesh
from spinverse.engines.basis.blocks import Inverse
from spinverse.engines.basis.eigenmodes import eigenmodes, shift_of
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.parallel.columns import times
from spinverse.parallel.rows import Rows

TABLE = Acquisition.pgse([0, 1000, 3000], directions=4, delta=10, Delta=60)
WEIGHTS = np.exp(1j * np.arange(len(TABLE)))


@pytest.fixture
def options():
    """Sets PETSc options of the eigenproblem, and takes them away again."""
    given, here = [], PETSc.Options("spinverse_eps_")

    def give(**more):
        for name, value in more.items():
            given.append(name)
            here.setValue(name, value)

    yield give
    for name in set(given):
        here.delValue(name)


def grid(kind: str, comm=MPI.COMM_SELF, cells: int = 3) -> BlochTorrey:
    """A ball in a closed box: its wall, all facets closed, or permeabilities of six decades."""
    built = mesh.build(mesh.tagged_grid, shape=mesh.Ball(6), length=20, cells=cells, comm=comm)
    problem = BlochTorrey(Tissue(built, permeability=Permeability.on(built, 0.01, 100.0)))
    # values that know the facet and not the rank
    random = np.sin(built.facet_vertices @ [12.9898, 78.233, 37.719]) * 43758.5453 % 1.0
    inner = {"walls": problem.kappa.x.array[: built.num_owned_facets].copy(), "closed": 1e-3,
             "mixed": 10 ** (6 * random - 4)}[kind]
    problem.set_permeability(np.where(built.outer, 0.0, inner))
    return problem


@pytest.mark.mpi
@pytest.mark.parametrize("dtype, digits", [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_products_of_rows(comm, dtype, digits):
    problem = grid("mixed", comm)
    A, P = problem.decay_matrix(), problem.tie(~problem.mesh.outer)
    for matrix in (A, P, P.copy().transpose()):
        columns = np.cos(np.outer(np.arange(*matrix.getOwnershipRangeColumn()), [1.0, 2.0, 3.0]))
        product = Rows(matrix, dtype) @ np.ascontiguousarray(columns, dtype=dtype)
        assert product.dtype == dtype
        expected = times(matrix, columns)
        largest = comm.allreduce(np.abs(expected).max(initial=0.0), op=MPI.MAX)
        assert np.abs(product - expected).max(initial=0.0) < digits * largest


@pytest.mark.mpi
@pytest.mark.parametrize("kind", ["walls", "mixed", "closed"])
def test_inverse_is_exact_to_its_tolerance(comm, kind):
    problem = grid(kind, comm)
    A, M = problem.decay_matrix(), problem.mass_matrix
    inverse = Inverse(problem, A, M, shift_of(problem), "test_inverse_")
    loads = times(M, np.cos(np.outer(np.arange(*A.getOwnershipRange()), [0.01, 0.7])))
    left = loads - times(inverse.matrix, inverse(loads))
    sizes = comm.allreduce(np.array([(left**2).sum(axis=0), (loads**2).sum(axis=0)]))
    assert (sizes[0] < 1e-14 * sizes[1]).all()
    inverse.destroy()


@pytest.mark.parametrize("kind, gradients", [("walls", 1e-4), ("mixed", 1e-3), ("closed", 1e-3)])
def test_modes_are_those_of_a_factor(kind, gradients, options):
    problem, found = grid(kind), []
    for solver in ("direct", "iterative"):
        options(solver=solver)
        engine = MatrixFormalism(problem, TABLE, 30)
        signals = engine.signals(remember=True)
        found.append((engine.basis.eigenvalues, signals, engine.gradient(WEIGHTS)))
    (values, signals, gradient), (other, theirs, slope) = found
    assert len(values) == len(other)
    assert np.allclose(other, values, rtol=1e-4, atol=1e-6 * values[-1])
    assert np.abs(signals - theirs).max() < 1e-6 * np.abs(signals).max()
    assert np.linalg.norm(gradient - slope) < gradients * np.linalg.norm(gradient)


def test_too_few_iterations_are_said(options):
    options(max_it=1, rtol=1e-12)
    with pytest.raises(SolverError, match=r"after 1 iterations.*-spinverse_eps_max_it"):
        eigenmodes(grid("mixed"), 30, solver="iterative")
