"""Time stepping: order, agreement with the matrix formalism, exact derivatives, ranks."""

from __future__ import annotations

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI
from petsc4py import PETSc

from spinverse import BlochTorrey, InputError, Permeability, SolverError, Tissue, mesh
from spinverse.acquisition import PGSE, Acquisition, Sampled
from spinverse.engines.march import time_stepping
from spinverse.engines.march.columns import March
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.matrix_formalism import MatrixFormalism

SCHEMES = ("sdirk2", "midpoint")
D = np.array([[2.0, 0.3, 0.0], [0.3, 1.5, 0.1], [0.0, 0.1, 1.0]])


def make(tied=False, uniform=False, comm=MPI.COMM_SELF, degree=1, **extra) -> BlochTorrey:
    """A small box, everything in it different from cell to cell and facet to facet."""
    box = mesh.build(mesh.box, [8.0, 7.0, 6.0], cells=(2, 2, 2), comm=comm)
    wave = np.sin(box.facet_vertices @ np.array([1.3, 2.9, 0.7]))
    kappa = np.where(box.outer, 0.01, 0.04) * (1.2 + wave)
    if tied:
        kappa[~box.outer & (box.facet_vertices.sum(axis=1) % 3 == 0)] = np.inf
    permeability = Permeability(box, kappa)
    if uniform:
        return BlochTorrey(Tissue(box, T2=60.0, permeability=permeability), degree)
    cell = np.arange(box.num_cells)
    tissue = Tissue(box, diffusivity=D * (1 + 0.2 * np.cos(cell))[:, None, None],
                    T2=40.0 + 10 * np.sin(cell), density=1 + 0.3 * np.cos(2 * cell),
                    permeability=permeability)
    return BlochTorrey(tissue, degree, **extra)


def pgse(b=(0, 1000, 3000)) -> Acquisition:
    return Acquisition.pgse(b=b, directions=[[0.6, 0.0, 0.8], [-0.48, 0.8, 0.36]],
                            delta=3.0, Delta=5.3, echo_time=8.5)


def few() -> Acquisition:
    """Little to solve: ranks may outnumber the cores."""
    return Acquisition.pgse(b=[0, 2000], directions=[[0.6, 0.0, 0.8]], delta=3, Delta=4.5)


def trapezoids() -> Acquisition:
    wave = Sampled((0.0, 0.4, 2.0, 2.4, 4.0, 4.4, 6.0, 6.4),
                   (0.0, 1.0, 1.0, 0.0, 0.0, -1.0, -1.0, 0.0))
    return Acquisition.product([wave], [500.0], [[0.6, 0.0, 0.8]])


def reference(problem, acquisition, max_step=0.1) -> np.ndarray:
    return MatrixFormalism(problem, acquisition, modes=problem.num_unknowns,
                           max_step=max_step).signals()


def error(problem, acquisition, exact, *args) -> float:
    found = TimeStepping(problem, acquisition, *args).signals()
    return np.abs(found - exact).max() / problem.magnetisation_at_start


WEIGHTS = np.array([0.3 - 1j, 0.5 + 0.2j, -0.7j, 1.0, -0.4 + 0.6j, 0.8 - 0.1j])


def objective(engine, n=None) -> float:
    return float((WEIGHTS[:n].conj() * engine.signals()).sum().real)


def taylor_rates(value, gradient_along, step, start) -> list[float]:
    """Rates of |J(s) - J(0) - s dJ| for s = step, step/2, step/4."""
    rest = [abs(value(s) - start - s * gradient_along) for s in (step, step / 2, step / 4)]
    return [np.log2(a / b) for a, b in zip(rest[:-1], rest[1:], strict=True)]


# ---- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_second_order_in_the_time_step(scheme):
    problem = make(uniform=True)
    exact = reference(problem, pgse())
    errors = [error(problem, pgse(), exact, step, scheme) for step in (0.1, 0.05, 0.025)]
    assert np.log2(errors[0] / errors[1]) > 1.9
    assert np.log2(errors[1] / errors[2]) > 1.9


@pytest.mark.parametrize("scheme", SCHEMES)
def test_second_order_where_the_waveform_is_not_piecewise_constant(scheme):
    problem = make()
    exact = reference(problem, trapezoids(), max_step=0.01)
    errors = [error(problem, trapezoids(), exact, step, scheme) for step in (0.4, 0.2)]
    assert np.log2(errors[0] / errors[1]) > 1.85


@pytest.mark.parametrize("tied", [False, True])
def test_agrees_with_the_matrix_formalism(tied):
    problem = make(tied)
    exact = reference(problem, pgse())
    assert error(problem, pgse(), exact, 0.02) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
def test_agrees_on_a_sampled_waveform(tied):
    problem = make(tied)
    exact = reference(problem, trapezoids(), max_step=0.02)
    assert error(problem, trapezoids(), exact, 0.02) < 1e-5


def test_agrees_at_degree_two():
    problem = make(tied=True, degree=2)
    acquisition = pgse(b=(500,))
    assert error(problem, acquisition, reference(problem, acquisition), 0.05) < 3e-5


def test_stiff_membranes_do_not_ring():
    layers = mesh.build(mesh.slabs, [2.0, 2.0], cells_per_layer=1, comm=MPI.COMM_SELF)
    acquisition = Acquisition.pgse(b=[0, 2000], directions=[[1.0, 0, 0]], delta=5, Delta=10)
    stiff = BlochTorrey(Tissue(layers, density={1: 1, 2: 0}, permeability=1e4,
                                interface="plain"))
    exact = reference(stiff, acquisition)
    assert error(stiff, acquisition, exact, 0.5) < 2e-5

    # the jump of the density at the membrane, seen right after two coarse steps
    jumps = {}
    for scheme in SCHEMES:
        engine = TimeStepping(stiff, acquisition, 0.5, scheme)
        engine._system.update()
        y = engine._system.start(1)
        March(engine._system, engine.scheme).forward(y, [(0.0, 0.0, 0.0)], 2, 0.5)
        values = stiff.traces.jump_matrix() @ y.reshape(-1, 2)
        interior = np.repeat(~layers.outer, len(values) // len(layers.outer))
        jumps[scheme] = np.abs(values[interior]).max()
    assert jumps["sdirk2"] < 2e-3 < 0.1 < jumps["midpoint"]


def test_opposite_gradient_by_turned_sign_equals_its_own_factor():
    plain = make()
    zero = dolfinx.fem.Constant(plain.mesh.domain, 0.0)
    extra = BlochTorrey(plain.tissue, extra_terms=lambda m, v, t, c: zero * ufl.inner(m, v) * c.dx)
    assert np.allclose(TimeStepping(plain, pgse(), 0.2).signals(),
                       TimeStepping(extra, pgse(), 0.2).signals(), rtol=1e-11)


# ---- extra terms --------------------------------------------------------------------------------


def rotating(m, v, t, c):
    """Off-resonance, and a sink on the interior facets."""
    turned = ufl.as_vector((-m[1], m[0]))
    return (c.extra["omega"] ** 2 * ufl.inner(turned, v) * c.dx
            + c.extra["sink"] * ufl.inner(ufl.avg(m), ufl.avg(v)) * c.dS)


def by_gradient(m, v, t, c):
    """A term that knows the gradient, and not as a factor."""
    return ufl.dot(c.g, c.g) * c.extra["omega"] * ufl.inner(m, v) * c.dx


def with_extra(terms=rotating, tied=False, comm=MPI.COMM_SELF):
    box = mesh.build(mesh.box, [8.0, 7.0, 6.0], cells=(2, 2, 2), comm=comm)
    omega = dolfinx.fem.Function(dolfinx.fem.functionspace(box.domain, ("Lagrange", 1)))
    omega.interpolate(lambda x: 0.3 + 0.05 * x[0] + 0.02 * x[1])
    sink = dolfinx.fem.Constant(box.domain, 0.02)
    kappa = np.where(box.outer, 0.01, 0.05)
    if tied:
        kappa[~box.outer & (box.facet_vertices.sum(axis=1) % 3 == 0)] = np.inf
    problem = BlochTorrey(Tissue(box, permeability=Permeability(box, kappa)), extra_terms=terms,
                          extra_coefficients={"omega": omega, "sink": sink})
    return problem, omega, sink


def test_uniform_off_resonance_turns_the_phase():
    problem, omega, sink = with_extra()
    plain = BlochTorrey(problem.tissue)
    omega.x.array[:], sink.value = np.sqrt(0.2), 0.0
    found = TimeStepping(problem, pgse(), 0.02).signals()
    expected = TimeStepping(plain, pgse(), 0.02).signals() * np.exp(-0.2j * 8.5)
    assert np.abs(found - expected).max() < 1e-4 * problem.magnetisation_at_start


@pytest.mark.parametrize("terms", [rotating, by_gradient])
def test_derivative_of_extra_coefficients(terms):
    problem, omega, sink = with_extra(terms, tied=True)
    engine = TimeStepping(problem, pgse(), 0.5)
    start = objective(engine)
    gradient = engine.gradient_of(omega, WEIGHTS)
    base = omega.x.array.copy()
    along = 1 + 0.5 * np.sin(np.arange(len(base)))

    def value(s):
        omega.x.array[:] = base + s * along
        return objective(engine)

    assert min(taylor_rates(value, gradient @ along, 0.02, start)) > 1.9


def test_derivative_of_a_constant():
    problem, _, sink = with_extra()
    engine = TimeStepping(problem, pgse(), 0.5)
    start = objective(engine)
    gradient = engine.gradient_of(sink, WEIGHTS)
    assert gradient.shape == ()

    def value(s):
        sink.value = 0.02 + s
        return objective(engine)

    assert min(taylor_rates(value, float(gradient), 0.01, start)) > 1.9


# ---- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tied", [False, True])
def test_taylor_permeability(scheme, tied):
    problem = make(tied)
    engine = TimeStepping(problem, pgse(), 0.5, scheme)
    engine.signals(remember=True)
    start = objective(engine)
    gradient = engine.gradient(WEIGHTS)
    assert np.all(gradient[problem.tied] == 0)
    base = problem.kappa.x.array.copy()
    for facets in (problem.mesh.outer, ~problem.mesh.outer & ~problem.tied):
        along = np.where(facets, 1 + 0.5 * np.sin(np.arange(len(base))), 0.0)

        def value(s, along=along):
            return float((WEIGHTS.conj() * engine.signals(base + s * along)).sum().real)

        assert min(taylor_rates(value, gradient @ along, 4e-3, start)) > 1.9


@pytest.mark.parametrize("name, step", [("D", 0.1), ("R2", 0.02)])
def test_taylor_cell_coefficients(name, step):
    problem = make(tied=True)
    engine = TimeStepping(problem, trapezoids(), 0.3)
    function = getattr(problem.coefficients, name)
    start = objective(engine, 1)
    gradient = engine.gradient_of(function, WEIGHTS[:1])
    base = function.x.array.copy()
    shape = (-1, 3, 3) if name == "D" else (-1,)
    along = np.sin(1 + np.arange(len(base))).reshape(shape)
    along = ((along + along.swapaxes(1, 2)) / 2 if name == "D" else along).ravel()

    def value(s):
        function.x.array[:] = base + s * along
        return objective(engine, 1)

    assert min(taylor_rates(value, gradient @ along, step, start)) > 1.9


def test_facet_jumps_and_ufl_derivative_agree(monkeypatch):
    problem = make(tied=True)
    fast = TimeStepping(problem, pgse(), 0.5).gradient(WEIGHTS)
    engine = TimeStepping(problem, pgse(), 0.5)
    monkeypatch.setattr("spinverse.engines.derivatives.has", lambda form, coefficient: True)
    slow, R2 = engine.gradients(WEIGHTS, [problem.kappa, problem.coefficients.R2])
    assert np.abs(fast - slow).max() < 1e-11 * np.abs(fast).max()
    alone = engine.gradient_of(problem.coefficients.R2, WEIGHTS)
    assert np.array_equal(R2, alone)


def test_gradient_approaches_that_of_the_matrix_formalism():
    problem = make(tied=True)
    engine = MatrixFormalism(problem, pgse(), modes=problem.num_unknowns)
    engine.signals(remember=True)
    exact = engine.gradient(WEIGHTS)
    errors = [np.abs(TimeStepping(problem, pgse(), step).gradient(WEIGHTS) - exact).max()
              / np.abs(exact).max() for step in (0.1, 0.05)]
    assert errors[1] < 3e-4
    assert np.log2(errors[0] / errors[1]) > 1.8


def test_gradient_in_blocks_of_steps(monkeypatch):
    problem = make()
    whole = TimeStepping(problem, pgse(), 0.5).gradient(WEIGHTS)
    monkeypatch.setattr(time_stepping, "TRAJECTORY_BYTES", 2 * 2 * 8 * problem.num_unknowns * 4)
    assert np.allclose(TimeStepping(problem, pgse(), 0.5).gradient(WEIGHTS), whole, rtol=1e-12)


@pytest.mark.mpi
@pytest.mark.parametrize("tied", [False, True])
def test_a_common_factor_changes_nothing(comm, tied, monkeypatch):
    """Signals and every derivative, whole trajectories kept or not."""
    problem = make(tied, uniform=True, comm=comm)
    coefficients = [problem.kappa, problem.coefficients.R2, problem.coefficients.D]
    table = Acquisition.product([PGSE(2, 4)], [1000.0], [[1.0, 0, 0], [0, 0.6, 0.8]])
    options, results = PETSc.Options(), []
    for common in (False, True, True):
        options["spinverse_ts_common"] = common
        engine = TimeStepping(problem, table, 1.0)
        assert (engine._common is not None) == common
        results.append([engine.signals(), *engine.gradients(WEIGHTS[:2], coefficients)])
        if common:  # the third time in blocks of a few steps
            monkeypatch.setattr(time_stepping, "TRAJECTORY_BYTES", 20 * 8 * problem.num_unknowns)
    options.delValue("spinverse_ts_common")
    for own, whole, blocks in zip(*results, strict=True):
        largest = comm.allreduce(float(np.abs(own).max(initial=0.0)), MPI.MAX)
        assert np.abs(whole - own).max(initial=0.0) < 1e-10 * largest
        assert np.abs(blocks - whole).max(initial=0.0) < 1e-10 * largest


def test_gradient_is_taken_where_the_signals_were_remembered():
    problem = make()
    base = problem.kappa.x.array.copy()
    engine = TimeStepping(problem, pgse(), 0.5)
    engine.signals(base, remember=True)
    expected = engine.gradient(WEIGHTS)
    engine.signals(2 * base)
    assert np.array_equal(engine.gradient(WEIGHTS), expected)
    assert np.array_equal(problem.kappa.x.array, 2 * base)


# ---- ranks --------------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("tied", [False, True])
def test_the_same_on_any_number_of_ranks(comm, tied):
    found = []
    for where in (comm, MPI.COMM_SELF):
        problem = make(tied, comm=where)
        engine = TimeStepping(problem, few(), 1.5)
        found.append((problem, engine.signals(remember=True),
                      *engine.gradients(WEIGHTS[:2], [problem.kappa, problem.coefficients.R2])))
    (problem, signals, kappa, R2), (alone, signals_alone, kappa_alone, R2_alone) = found
    assert np.abs(signals - signals_alone).max() < 1e-10 * np.abs(signals_alone).max()
    partner = alone.mesh.find_facets(problem.mesh.facet_vertices)
    assert np.abs(kappa - kappa_alone[partner]).max(initial=0) < 1e-9 * np.abs(kappa_alone).max()
    position = np.argsort(alone.mesh.input_cells)
    partner = position[problem.mesh.input_cells[:len(R2)]]
    assert np.abs(R2 - R2_alone[partner]).max(initial=0) < 1e-9 * np.abs(R2_alone).max()


@pytest.mark.mpi
def test_extra_coefficients_on_any_number_of_ranks(comm):
    found = []
    for where in (comm, MPI.COMM_SELF):
        problem, omega, sink = with_extra(tied=True, comm=where)
        engine = TimeStepping(problem, few(), 1.5)
        S = engine.signals()
        by_omega, by_sink = engine.gradients(WEIGHTS[:2], [omega, sink])
        x = omega.function_space.tabulate_dof_coordinates()[: len(by_omega)]
        moments = where.allreduce(by_omega @ np.column_stack([np.ones(len(x)), x, x**2]))
        found.append(np.concatenate([S.real, S.imag, moments, [by_sink]]))
    assert np.abs(found[0] - found[1]).max() < 1e-10 * np.abs(found[1]).max()


@pytest.mark.mpi
def test_pair_dofs_are_those_of_the_scalar_space_doubled(comm):
    problem = make(comm=comm, degree=2)
    pair = TimeStepping(problem, pgse())._system.space.dofmap
    scalar = problem.space.dofmap
    assert pair.bs == 2 and np.array_equal(pair.list, scalar.list)
    assert pair.index_map.local_range == scalar.index_map.local_range
    assert np.array_equal(pair.index_map.ghosts, scalar.index_map.ghosts)


# ---- bad input, failures ------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, message", [
    ({"time_step": 0.0}, "time_step: 0.0, expected a positive time in ms"),
    ({"time_step": "fast"}, "time_step: 'fast', expected a positive time in ms"),
    ({"scheme": "euler"}, "scheme: 'euler', expected one of midpoint, sdirk2"),
])
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        TimeStepping(make(), pgse(), **arguments)


@pytest.mark.parametrize("terms", [
    lambda m, v, t, c: m[0] * c.dx,
    lambda m, v, t, c: ufl.inner(m, m) * v[0] * c.dx,
    lambda m, v, t, c: ufl.inner(m, v) * c.dx + v[0] * c.dx,
    lambda m, v, t, c: 3.0,
])
def test_extra_terms_that_are_not_bilinear(terms):
    with pytest.raises(InputError, match="extra_terms: expected a UFL form linear in m and in v"):
        TimeStepping(make(extra_terms=terms), pgse())


def test_coefficient_that_the_form_does_not_contain():
    problem = make()
    engine = TimeStepping(problem, pgse())
    stranger = dolfinx.fem.Function(problem.space, name="stranger")
    with pytest.raises(InputError, match="coefficient: 'stranger' is not in the weak form"):
        engine.gradient_of(stranger, WEIGHTS)
    with pytest.raises(InputError, match="coefficient: .* is not in the weak form"):
        engine.gradient_of(dolfinx.fem.Constant(problem.mesh.domain, 1.0), WEIGHTS)
    with pytest.raises(InputError, match=r"coefficient: 2.0 .* expected a dolfinx Function"):
        engine.gradient_of(2.0, WEIGHTS)
    with pytest.raises(InputError, match=r"adjoint: shape \(2,\), expected \(6,\)"):
        engine.gradient(WEIGHTS[:2])


def test_options_reach_the_solver_and_its_failure_is_an_error():
    problem = make()
    acquisition = Acquisition.product([PGSE(2, 4)], [1000.0], [[1.0, 0, 0]])
    direct = TimeStepping(problem, acquisition, 0.5)
    exact, slope = direct.signals(), direct.gradient(WEIGHTS[:1])
    options = PETSc.Options()
    given = {"ksp_type": "gmres", "pc_type": "bjacobi", "ksp_rtol": 1e-12}
    for key, value in given.items():
        options[f"test_ts_{key}"] = value
    iterative = TimeStepping(problem, acquisition, 0.5, options_prefix="test_ts_")
    assert np.allclose(iterative.signals(), exact, rtol=1e-9)
    assert np.allclose(iterative.gradient(WEIGHTS[:1]), slope, rtol=1e-7,
                       atol=1e-7 * np.abs(slope).max())
    options["test_ts_ksp_max_it"] = 1
    try:
        with pytest.raises(SolverError, match="time stepping: linear solve of 384 unknowns"):
            iterative.signals()
    finally:
        for key in (*given, "ksp_max_it"):
            options.delValue(f"test_ts_{key}")


def test_permeability_that_is_not_a_number_is_a_solver_error():
    problem = make()
    with pytest.raises(SolverError, match="time stepping: "):
        TimeStepping(problem, pgse(), 1.0).signals(np.full(problem.mesh.num_owned_facets, np.nan))
