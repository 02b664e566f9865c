"""What large meshes need: modes without a factor, failures that say what helps, few rows a rank."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mpi import run_mpi
from mpi4py import MPI
from petsc4py import PETSc

from spinverse import Acquisition, BlochTorrey, Permeability, SolverError, Tissue, mesh
from spinverse.engines.basis.blocks import Inverse, conjugate_gradients
from spinverse.engines.basis.eigenmodes import eigenmodes
from spinverse.engines.basis.two_level import TwoLevel, coarse_spaces
from spinverse.engines.linear.facet_response import surrounding_conductance
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.errors import InputError
from spinverse.parallel.columns import column_inner, times
from spinverse.phases import phase, recorded

TABLE = Acquisition.pgse([0, 1000, 3000], directions=3, delta=5, Delta=20)
WEIGHTS = np.exp(1j * np.arange(len(TABLE)))
FIELDS = ("target", "closed", "middling", "mixed")


def make(comm, cells=3, field="target", **kw):
    """A ball in a grid; broken everywhere, with permeabilities of some kind."""
    grid = mesh.build(mesh.tagged_grid, shape=mesh.Ball(6), length=20, cells=cells, comm=comm)
    problem = BlochTorrey(Tissue(grid, permeability=Permeability.on(grid, 0.01, 100.0)), **kw)
    # values that know the facet and not the rank
    random = np.sin(grid.facet_vertices @ [12.9898, 78.233, 37.719]) * 43758.5453 % 1.0
    inner = {"target": problem.kappa.x.array[: grid.num_owned_facets].copy(), "closed": 1e-3,
             "middling": 1.0, "mixed": 10 ** (6 * random - 4)}[field]
    problem.set_permeability(np.where(grid.outer, 0.0, inner))
    return problem


@pytest.fixture
def options():
    """PETSc options that are gone after the test."""
    database, given = PETSc.Options(), []

    def set_(**values):
        for name, value in values.items():
            database[name] = value
            given.append(name)

    yield set_
    for name in given:
        if database.hasName(name):
            database.delValue(name)


# ---- modes without a factor ---------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("field", FIELDS)
def test_iterated_modes_give_the_signals_of_factorised_ones(comm, field, options):
    problem = make(comm, field=field)
    engine = MatrixFormalism(problem, TABLE, 60)

    def evaluated(solver):
        engine.basis = eigenmodes(problem, 60, solver=solver)
        return engine.basis.eigenvalues, engine.evolve(remember=True), engine.gradient(WEIGHTS)

    def largest(local):
        return comm.allreduce(float(np.abs(local).max(initial=0.0)), MPI.MAX)

    values, signals, gradient = evaluated("direct")
    # errors of modes enter signals squared, gradients as they are
    for tolerance, slack, more in ((1e-6, 1e-7, 1e-4), (1e-10, 1e-9, 1e-5)):
        options(spinverse_eps_rtol=tolerance)
        found, same, slope = evaluated("iterative")
        assert len(found) == len(values)
        assert np.allclose(found, values, rtol=tolerance, atol=1e-9)
        assert np.abs(same - signals).max() < slack * abs(signals[0])
        assert largest(slope - gradient) < more * largest(gradient)


@pytest.mark.mpi
def test_iterated_modes_do_not_depend_on_the_ranks(comm):
    engines = [MatrixFormalism(make(c), TABLE, 60) for c in (comm, MPI.COMM_SELF)]
    for engine in engines:
        engine.basis = eigenmodes(engine.problem, 60, solver="iterative")
    many, one = (engine.evolve() for engine in engines)
    assert np.abs(many - one).max() < 1e-8 * abs(one[0])


def test_iterated_modes_of_degree_two_and_of_tied_facets():
    problems = [make(MPI.COMM_SELF, 2, degree=2)]
    grid = mesh.build(mesh.tagged_grid, shape=mesh.Ball(6), length=20, cells=5,
                      comm=MPI.COMM_SELF)
    problems.append(BlochTorrey(Tissue(grid, permeability=Permeability.on(grid, 0.01))))
    for problem in problems:
        direct, iterated = (eigenmodes(problem, 20, solver=solver, responses=True)
                            for solver in ("direct", "iterative"))
        assert np.allclose(direct.eigenvalues, iterated.eigenvalues, rtol=1e-6, atol=1e-9)
        assert np.allclose(np.abs(direct.start), np.abs(iterated.start),
                           atol=1e-4 * np.abs(direct.start).max())
        whole = np.einsum("jjkk->", direct.responses)
        assert np.isclose(np.einsum("jjkk->", iterated.responses), whole, rtol=1e-6)


@pytest.mark.parametrize("field", FIELDS)
def test_few_modes_are_as_many_without_a_factor(field):
    found, expected = (eigenmodes(make(MPI.COMM_SELF, field=field), 2, solver=solver).eigenvalues
                       for solver in ("iterative", "direct"))
    assert len(found) == len(expected)
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.mpi
@pytest.mark.parametrize("field", FIELDS)
def test_preconditioner_takes_any_permeability(comm, field):
    problem = make(comm, 4, field)
    A, M = problem.decay_matrix(), problem.mass_matrix
    inverse = Inverse(problem, A, M, 0.001, "test_")
    load = times(M, np.cos(np.arange(*A.getOwnershipRange()))[:, None])
    solution = conjugate_gradients(inverse.matrix, inverse.preconditioner, load, 60, 1e-8)
    rest = load - times(inverse.matrix, solution)
    assert column_inner(comm, rest, rest)[0] < 1e-10 * column_inner(comm, load, load)[0]
    inverse.destroy()


@pytest.mark.mpi
def test_one_rank_finds_the_modes_of_a_small_coarse_space(comm, monkeypatch):
    # not by LAPACK
    monkeypatch.setattr("spinverse.engines.basis.eigenmodes.is_small", lambda *_: False)
    found, expected = (eigenmodes(make(where, field="mixed"), 20, solver="iterative").eigenvalues
                       for where in (comm, MPI.COMM_SELF))
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_coarse_spaces_follow_the_permeability():
    found = {field: coarse_spaces(make(MPI.COMM_SELF, 4, field)) for field in FIELDS}
    assert set(found["target"]) == {"continuous"}
    assert set(found["closed"]) == {"constants"}
    assert set(found["mixed"]) == {"continuous", "constants"}
    problem = make(MPI.COMM_SELF, 4)
    vertices = problem.mesh.domain.topology.index_map(0).size_global
    # the membrane is not tied: some vertices are there on both of its sides
    assert vertices < found["target"]["continuous"].getSize()[1] < 1.5 * vertices


def test_preconditioner_is_symmetric_and_positive():
    problem = make(MPI.COMM_SELF, 2, "mixed")
    matrix = problem.decay_matrix().copy()
    matrix.axpy(0.001, problem.mass_matrix)
    inverse = TwoLevel(problem, matrix, "test_")(np.eye(matrix.getSize()[0]))
    assert np.abs(inverse - inverse.T).max() < 1e-10 * np.abs(inverse).max()
    assert np.linalg.eigvalsh(inverse)[0] > 0


def test_an_option_chooses_the_solver_and_its_failure_is_an_error(options):
    problem = make(MPI.COMM_SELF)
    expected = eigenmodes(problem, 10).eigenvalues
    options(spinverse_eps_solver="iterative", spinverse_eps_rtol=1e-10)
    with recorded() as record:
        found = eigenmodes(problem, 10).eigenvalues
    assert record.calls["eigenproblem"] == 1 and "eigenproblem" in record.cpu
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)
    options(spinverse_eps_max_it=1)
    with pytest.raises(SolverError, match="after 1 iterations.*-spinverse_eps_max_it"):
        eigenmodes(problem, 10)
    options(spinverse_eps_solver="factorless")
    with pytest.raises(InputError, match="'factorless', expected one of auto, direct, iterative"):
        eigenmodes(problem, 10)


def test_phases_nest(monkeypatch):
    now = [0.0]  # clocks that are set by hand
    monkeypatch.setattr("spinverse.phases.time", SimpleNamespace(
        process_time=lambda: now[0], perf_counter=lambda: 10 * now[0]))

    def work(seconds):
        now[0] += seconds

    with recorded() as record:
        work(1)
        with phase("outer"):
            work(2)
            with phase("inner"):
                work(4)
            work(8)
        phase("inner")(work)(16)
        work(32)
    assert record.calls == {"outer": 1, "inner": 2}
    assert record.cpu == {"outer": 10, "inner": 20}  # without what is inside
    assert record.wall == {"outer": 100, "inner": 200}


# ---- failures -----------------------------------------------------------------------------------


@pytest.mark.mpi
def test_out_of_memory_says_what_helps(comm, options):
    """ICNTL(23) is the megabytes that MUMPS may take a rank: what a small machine would have."""
    problem = make(comm, 5)
    few = {"mat_mumps_icntl_23": 1}
    options(**{prefix + name: value for name, value in few.items()
               for prefix in ("spinverse_eps_st_", "spinverse_ts_", "spinverse_facets_")})
    message = "out of memory in the factorisation of 6000 unknowns .*PETSc options -spinverse_"
    with pytest.raises(SolverError, match=f"eigenproblem.*{message}eps_solver iterative"):
        eigenmodes(problem, 20, solver="direct")
    options(spinverse_ts_common=True)
    with pytest.raises(SolverError, match=f"time stepping.*{message}ts_ksp_type cg"):
        TimeStepping(problem, TABLE, 1.0).signals()
    options(spinverse_ts_common=False)
    with pytest.raises(SolverError, match=f"time stepping.*{message.replace('6000', '12000')}"):
        TimeStepping(problem, TABLE, 1.0).signals()
    with pytest.raises(SolverError, match=f"facet responses.*{message}"):
        surrounding_conductance(problem, 0.1)


def test_a_problem_can_be_solved_after_a_failure(options):
    problem = make(MPI.COMM_SELF)
    expected = eigenmodes(problem, 40).eigenvalues
    options(spinverse_eps_eps_max_it=1, spinverse_eps_eps_ncv=56)
    with pytest.raises(SolverError, match="modes converged .*-spinverse_eps_eps_max_it"):
        eigenmodes(problem, 40)
    PETSc.Options().delValue("spinverse_eps_eps_max_it")
    PETSc.Options().delValue("spinverse_eps_eps_ncv")
    assert np.allclose(eigenmodes(problem, 40).eigenvalues, expected)


@pytest.mark.mpi
@pytest.mark.parametrize("tied", [False, True])
def test_no_permeability_at_all(comm, tied):
    """A mode of rate 0 for each compartment: cells one by one, or the two sides of the ball."""
    grid = mesh.build(mesh.tagged_grid, shape=mesh.Ball(6), length=20, cells=2, comm=comm)
    permeability = Permeability.on(grid, 0.0, np.inf if tied else 0.0)
    problem = BlochTorrey(Tissue(grid, permeability=permeability))
    basis = eigenmodes(problem, problem.num_unknowns)
    assert np.count_nonzero(basis.eigenvalues < 1e-9) == (2 if tied else grid.num_cells)
    engines = [MatrixFormalism(problem, TABLE, problem.num_unknowns),
               TimeStepping(problem, TABLE, 0.5)]
    signals, slopes = [], []
    for engine in engines:
        signals.append(engine.signals(remember=True))
        slopes.append(engine.gradient(WEIGHTS))
    assert np.abs(signals[0] - signals[1]).max() < 3e-3 * abs(signals[0][0])
    largest = comm.allreduce(float(np.abs(slopes[0]).max(initial=0.0)), MPI.MAX)
    assert np.abs(slopes[0] - slopes[1]).max(initial=0.0) < 2e-2 * largest
    few = MatrixFormalism(problem, TABLE).signals()
    assert np.abs(few - signals[0]).max() < 1e-4 * abs(signals[0][0])


@pytest.mark.slow
def test_ranks_without_facets_and_without_cells():
    """Two intervals on four ranks: some own nothing at all."""
    where = Path(__file__).with_name("empty_ranks.py")
    assert "equal" in run_mpi(4, where)
