"""Terms of the user's own: their structure, both engines, gradients, the demos, the page."""

from __future__ import annotations

import logging
import re
import runpy
from pathlib import Path

import dolfinx
import numpy as np
import pyadjoint
import pytest
import ufl
from mpi4py import MPI

from spinverse import BlochTorrey, InputError, Permeability, Tissue, forms, mesh, simulate
from spinverse.acquisition import Acquisition, DoublePGSE, Sampled
from spinverse.adjoint import Number, Values, reduced_functional, taylor_rate
from spinverse.engines.basis.eigenmodes import eigenmodes
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.jacobian import signal_jacobian
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.extra_terms import degree_in
from spinverse.inversion.likelihood import Likelihood
from spinverse.simulate import make_engine

ROOT = Path(__file__).resolve().parent.parent
ALL = 10**6  # modes: as many as there are
VALUES = {"rho": 0.01, "w": 0.03, "e": 0.05, "n": 0.02}
WEIGHTS = np.array([0.5 + 0.2j, -0.4 + 0.6j])


def make_tissue(comm=MPI.COMM_SELF, cells=(2, 1, 1), **arguments) -> Tissue:
    box = mesh.build(mesh.box, [6.0, 5.0, 4.0], cells=cells, comm=comm)
    kappa = np.where(box.outer, 0.01, 0.05)
    kappa[~box.outer & (box.facet_vertices.sum(axis=1) % 3 == 0)] = np.inf
    return Tissue(box, T2=60.0, permeability=Permeability(box, kappa), **arguments)


def pgse() -> Acquisition:
    return Acquisition.pgse(b=[0, 2000], directions=[[0.6, 0.0, 0.8]], delta=3, Delta=4.5,
                            echo_time=8.0)


def everything(m, v, t, c):
    """Walls that relax, fields that an echo turns and does not turn, a gradient that is bent."""
    turned, x = forms.i_times(m), c.x
    walls = ufl.inner(m("+"), v("+")) + ufl.inner(m("-"), v("-"))
    bent = c["n"] * (c.g[0] * x[0] * x[0] + c.g[2] * x[1])
    field = c["w"] * x[0] * x[1] + c.echo_sign * c["e"] * x[2]
    return (c["rho"] * walls * c.dS + c["rho"] * ufl.inner(m, v) * c.ds
            + (field + bent) * ufl.inner(turned, v) * c.dx)


def problem_of(terms=everything, values=VALUES, comm=MPI.COMM_SELF, **arguments) -> BlochTorrey:
    return BlochTorrey(make_tissue(comm, **arguments), 1, terms, values)


def sink(m, v, t, c):
    return 0.1 * (1 + ufl.sin(t)) * ufl.inner(m, v) * c.dx


def switched(m, v, t, c):
    return ufl.conditional(ufl.lt(t, 3.1), 0.0, 0.2) * ufl.inner(m, v) * c.dx


def window(m, v, t, c):
    """From 2.2 to 2.6 ms."""
    return (ufl.conditional(ufl.And(ufl.ge(t, 2.2), ufl.le(t, 2.6)), 1, 0) * c["rate"]
            * ufl.inner(m, v) * c.dx)


def strong_only(m, v, t, c):
    """Of the gradient, where it is stronger than any sample would be."""
    strength = ufl.sqrt(ufl.dot(c.g, c.g))
    return (ufl.conditional(ufl.gt(strength, 50.0), strength, 0)
            * ufl.inner(forms.i_times(m), v) * c.dx)


def bent_by_echo(m, v, t, c):
    return c.echo_sign * c.g[0] * c.x[0] ** 2 * ufl.inner(forms.i_times(m), v) * c.dx


def sideways(m, v, t, c):
    return c["u"] * ufl.inner(ufl.grad(m)[:, 0], v) * c.dx


def squared(m, v, t, c):
    return ufl.dot(c.g, c.g) * ufl.inner(forms.i_times(m), v) * c.dx


def mixing(m, v, t, c):
    return m[0] * v[1] * c.dx


def real_by_gradient(m, v, t, c):
    return c.g[0] * ufl.inner(m, v) * c.dx


def real_by_echo(m, v, t, c):
    return c.echo_sign * ufl.inner(m, v) * c.dx


def turning_slope(m, v, t, c):
    return ufl.inner(forms.i_times(m).dx(0), v) * c.dx


def source(m, v, t, c):
    return -3.0 * ufl.inner(m, v) * c.dx


# ---- time ---------------------------------------------------------------------------------------


def test_time_is_of_second_order():
    tissue, decay = make_tissue(), np.exp(-0.1 * (8.0 + 1 - np.cos(8.0)))
    errors = []
    for step in (0.5, 0.25):
        plain = TimeStepping(BlochTorrey(tissue), pgse(), step).signals()
        found = TimeStepping(BlochTorrey(tissue, 1, sink), pgse(), step).signals()
        errors.append(np.abs(found - decay * plain).max())
    assert np.log2(errors[0] / errors[1]) > 1.9


def test_steps_end_where_terms_jump():
    tissue, decay = make_tissue(), np.exp(-0.2 * (8.0 - 3.1))
    plain = TimeStepping(BlochTorrey(tissue), pgse(), 0.25).signals()
    errors = [np.abs(TimeStepping(BlochTorrey(tissue, 1, switched, None, cuts), pgse(), 0.25)
                     .signals() - decay * plain).max() / np.abs(plain).max()
              for cuts in ((3.1,), ())]
    assert errors[0] < 2e-4 < 1e-3 < errors[1]


@pytest.mark.parametrize("start", [2.2, 0.0])
def test_a_term_of_a_window_of_time_acts(start):
    """A closed box, where relaxation of all magnetisation is a factor."""
    line = mesh.build(mesh.intervals, [6.0], size=1.0)

    def terms(m, v, t, c):
        inside = ufl.And(ufl.ge(t, start), ufl.le(t, start + 0.4))
        return ufl.conditional(inside, c["rate"], 0) * ufl.inner(m, v) * c.dx

    arguments = {"extra_terms": terms, "extra_coefficients": {"rate": 1.0},
                 "extra_breakpoints": (start, start + 0.4)}
    table = Acquisition.pgse(b=[0, 500], directions=[1.0, 0.0, 0.0], delta=3, Delta=4.5)
    plain = simulate(Tissue(line), table).values
    found = simulate(Tissue(line), table, **arguments).values
    assert np.allclose(found / plain, np.exp(-0.4), rtol=5e-4)
    J = reduced_functional(Tissue(line), table, [0.0, 0.0], "rate", **arguments)
    # half the mean square of signals that fall as exp(-0.4 rate)
    assert J.derivative()[0].values.sum() == pytest.approx(
        -0.4 * np.mean(np.abs(found / 6.0) ** 2), rel=5e-3)


# ---- both engines -------------------------------------------------------------------------------


def test_engines_agree_on_terms_that_both_take():
    problem, table = problem_of(), pgse()
    exact = MatrixFormalism(problem, table, ALL).signals()
    assert np.abs(exact.imag).max() > 1e-3 * np.abs(exact).max()
    errors = [np.abs(TimeStepping(problem, table, step).signals() - exact).max()
              / problem.magnetisation_at_start for step in (0.1, 0.05)]
    assert errors[1] < 2e-4 and np.log2(errors[0] / errors[1]) > 1.9


@pytest.mark.parametrize("waveform", [
    Sampled((0.0, 0.4, 2.0, 2.4, 4.0, 4.4, 6.0, 6.4), (0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0),
            refocusing_times=(3.0,)),
    Sampled((0.0, 1.0, 1.0, 2.0, 2.0, 4.0), (1.0, 1.0, -2.0, -2.0, 0.5, 0.5), echo_time=5.0)])
def test_engines_agree_whatever_the_waveform(waveform):
    table = Acquisition.product([waveform], [0, 500.0], [[0.6, 0.0, 0.8]])
    problem = problem_of()
    exact = MatrixFormalism(problem, table, ALL, max_step=0.02).signals()
    found = TimeStepping(problem, table, 0.01).signals()
    assert np.abs(found - exact).max() < 2e-5 * problem.magnetisation_at_start


def test_number_of_modes_is_found_under_a_field():
    problem = problem_of(values={**VALUES, "w": 0.1}, cells=(4, 3, 3))
    engine = make_engine(problem, pgse(), "matrix_formalism", tolerance=1e-3)
    found = engine.signals()
    assert len(engine.basis) < problem.num_unknowns
    exact = MatrixFormalism(problem, pgse(), ALL).signals()
    error = np.abs(found - exact).max() / problem.magnetisation_at_start
    assert error < 1e-3 and error < 5 * engine.estimated_error + 1e-9


def coefficients_of(problem) -> list:
    c = problem.coefficients
    return [problem.kappa, c.D, c.R2, *(c[name] for name in VALUES)]


def test_gradients_of_both_engines():
    problem, table = problem_of(), pgse()
    fast, slow = MatrixFormalism(problem, table, ALL), TimeStepping(problem, table, 0.05)
    fast.signals(remember=True)
    slow.signals(remember=True)
    pairs = zip(fast.gradients(WEIGHTS, coefficients_of(problem)),
                slow.gradients(WEIGHTS, coefficients_of(problem)), strict=True)
    for found, expected in pairs:
        assert np.shape(found) == np.shape(expected)
        assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()
    assert np.allclose(fast.gradient(WEIGHTS), fast.gradients(WEIGHTS, [problem.kappa])[0])
    _, rows = signal_jacobian(fast, weights=WEIGHTS)
    assert np.allclose(rows.sum(axis=0), fast.gradient(WEIGHTS), atol=1e-9 * np.abs(rows).max())


@pytest.mark.mpi
def test_the_same_on_any_number_of_ranks(comm):
    found = []
    for where in (comm, MPI.COMM_SELF):
        problem = problem_of(comm=where)
        for engine in (MatrixFormalism(problem, pgse(), ALL), TimeStepping(problem, pgse(), 1.0)):
            S = engine.signals(remember=True)
            kappa, *rest = engine.gradients(WEIGHTS, [problem.kappa, *coefficients_of(problem)[3:]])
            total = where.allreduce(float(kappa @ problem.mesh.facet_areas))
            found.append(np.concatenate([S.real, S.imag, [total], rest]))
    for one, other in zip(found[:2], found[2:], strict=True):
        assert np.abs(one - other).max() < 1e-8 * np.abs(other).max()


# ---- what the fast engine cannot take -----------------------------------------------------------


@pytest.mark.parametrize("terms, reason", [
    (sink, "they depend on the time"),
    (switched, "they depend on the time"),
    (window, "they depend on the time"),
    (strong_only, "they depend on the gradient, and not in proportion"),
    (bent_by_echo, "they depend on the gradient, and not in proportion"),
    (sideways, "a part that is not symmetric in m and v"),
    (turning_slope, "i times a part that is not symmetric"),
    (squared, "they depend on the gradient, and not in proportion"),
    (mixing, "they treat Re m and Im m differently"),
    (real_by_gradient, "the gradient is in a term that is not i times a symmetric one"),
    (real_by_echo, "echo_sign is in a term that is not i times a symmetric one"),
    (source, "a mode grows by a factor e in 0.3"),
])
def test_matrix_formalism_says_what_it_cannot_take(terms, reason, caplog):
    # a velocity of zero is found out as well
    arguments = {"extra_terms": terms, "extra_coefficients": {"u": 0.0, "rate": 0.1}}
    with pytest.raises(InputError, match=f"cannot take them, because .*{reason}"):
        simulate(make_tissue(), pgse(), "matrix_formalism", **arguments)
    problem = BlochTorrey(make_tissue(), **arguments)
    with caplog.at_level(logging.WARNING, logger="spinverse"):
        assert isinstance(make_engine(problem, pgse()), TimeStepping)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert re.search(f"engine: time_stepping; .*{reason}", caplog.text)


@pytest.mark.mpi
@pytest.mark.parametrize("rate", [1.0, 30.0, 3000.0])
def test_growth_is_found_however_fast(comm, rate):
    """A mode that grows fast is far from the lowest modes, where none is looked for."""
    box = mesh.build(mesh.box, [6.0, 6.0, 6.0], cells=(6, 6, 6), comm=comm)
    problem = BlochTorrey(Tissue(box), 1, lambda m, v, t, c: -c["w"] * ufl.inner(m, v) * c.dx,
                          {"w": np.where(np.arange(1296) < 6, rate, 0.0)})
    with pytest.raises(InputError, match="a mode grows"):
        eigenmodes(problem, 10, solver="direct")


def test_a_coefficient_that_switches_a_field_on_later_is_refused():
    def late(m, v, t, c):
        return (ufl.conditional(ufl.gt(c["w"], 5.0), c["w"], 0)
                * ufl.inner(forms.i_times(m), v) * c.dx)

    problem = problem_of(late, {"w": 1.0})
    engine = MatrixFormalism(problem, pgse(), ALL)
    engine.signals()
    problem.coefficients["w"].value = 6.0
    with pytest.raises(InputError, match="they turn the phase without a gradient"):
        engine.signals()


@pytest.mark.parametrize("expression, degree", [
    (lambda g, t: 3.0 + t, 0), (lambda g, t: g[0] * t - g[1], 1), (lambda g, t: g[0] / (1 + t), 1),
    (lambda g, t: ufl.dot(g, g), 2), (lambda g, t: 1 / (1 + g[0]), np.inf),
    (lambda g, t: ufl.conditional(ufl.gt(t, 1), g[0], 0), 1),
    (lambda g, t: ufl.conditional(ufl.gt(g[0], 1), t, 0), np.inf),
    (lambda g, t: ufl.diff(ufl.sin(ufl.variable(g[0])), ufl.variable(t)), 0)])
def test_degree_is_read_off_the_form(expression, degree):
    problem = problem_of(lambda m, v, t, c: expression(c.g, t) * ufl.inner(m, v) * c.dx, {})
    assert degree_in(problem.extra_form, problem.g) == degree


def test_periodic_boxes():
    tissue = make_tissue(periodic="x")

    def relaxing(m, v, t, c):
        return c["rho"] * ufl.inner(m, v) * c.dx

    for terms, reason in ((sideways, None), (everything, "they depend on the gradient"),
                          (lambda m, v, t, c: ufl.inner(forms.i_times(m), v) * c.dx,
                           "they turn the phase")):
        with pytest.raises(InputError, match=reason or "not symmetric"):
            MatrixFormalism(BlochTorrey(tissue, 1, terms, {**VALUES, "u": 1.0}), pgse())
    plain = MatrixFormalism(BlochTorrey(tissue), pgse(), 60).signals()
    problem = BlochTorrey(tissue, 1, relaxing, {"rho": 0.05})
    engine = MatrixFormalism(problem, pgse(), 60)
    found = engine.signals(remember=True)
    assert np.allclose(found, plain * np.exp(-0.05 * 8.0), rtol=1e-8)
    slope = engine.gradient_of(problem.coefficients["rho"], found)
    assert slope == pytest.approx(-8.0 * np.sum(np.abs(found) ** 2), rel=1e-6)
    with pytest.raises(InputError, match="the diffusivity on a periodic box"):
        engine.gradient_of(problem.coefficients.D, found)


def test_auto_takes_the_fast_engine_without_a_word(caplog):
    assert isinstance(make_engine(problem_of(), pgse()), MatrixFormalism)
    assert isinstance(make_engine(BlochTorrey(make_tissue()), pgse()), MatrixFormalism)
    assert not caplog.records


@pytest.mark.mpi
def test_integrals_over_the_cells_of_a_tag(comm):
    grid = mesh.build(mesh.tagged_grid, mesh.Ball(7), 20, cells=2, comm=comm)
    by_tag, by_value = (simulate(Tissue(grid), pgse(), extra_terms=term, extra_coefficients={
        "q": {1: 0.05, 2: 0.0}}).values for term in (
        lambda m, v, t, c: 0.05 * ufl.inner(m, v) * c.dx(1),
        lambda m, v, t, c: c["q"] * ufl.inner(m, v) * c.dx))
    np.testing.assert_allclose(by_tag, by_value, rtol=1e-9)
    assert abs(by_tag[0]) < 0.99 * grid.comm.allreduce(
        float(grid.cell_volumes[: grid.num_owned_cells].sum()))


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("terms, values, message", [
    (lambda m, v, c: ufl.inner(m, v) * c.dx, None, r"<lambda>\(m, v, c\), expected a function "
                                                   r"\(m, v, t, coefficients\)"),
    ("walls", None, "'walls', expected a function"),
    (lambda m, v, t, c: None, None, "expected a UFL form linear in m and in v, got 'None'"),
    (lambda m, v, t, c: ufl.inner(m, m) * v[0] * c.dx, None, "linear in m and in v"),
    (lambda m, v, t, c: c["rha"] * ufl.inner(m, v) * c.dx, {"rho": 1.0},
     "coefficient 'rha', expected one of extra_coefficients: 'rho'"),
    (lambda m, v, t, c: ufl.inner(m, v) * c.dx(7), None,
     r"dx\(7\), but the mesh has the cell tags"),
    (lambda m, v, t, c: ufl.inner(m, v) * c.ds(1), None, r"ds\(1\): facets have no tags"),
    (lambda m, v, t, c: m.dx(5) * v * c.dx, None, "extra_terms: ValueError: Index out of bounds"),
    (sideways, {"u": "fast"}, "extra_coefficients: u: 'fast', expected numbers"),
    (sideways, {"u": np.nan}, "extra_coefficients: u: has values that are not finite"),
    (sideways, {"u": np.ones(5)}, r"extra_coefficients: u: shape \(5,\), expected a number"),
    (sideways, {"u": {2: 1.0}}, "extra_coefficients: u: no value for cell tag"),
    (sideways, [1.0], "extra_coefficients: a list, expected a mapping"),
    (None, {"u": 1.0}, "extra_coefficients: given without extra_terms"),
])
def test_bad_terms(terms, values, message):
    with pytest.raises(InputError, match=message):
        BlochTorrey(make_tissue(), 1, terms, values)


def test_bad_forms_and_echoes():
    tissue = make_tissue()
    with pytest.raises(InputError, match="does not compile: .* two sides, m.'.'. and"):
        simulate(tissue, pgse(), extra_terms=lambda m, v, t, c: ufl.inner(m, v) * c.dS)
    with pytest.raises(InputError, match="matrix has entries that are not finite"):
        simulate(tissue, pgse(), extra_coefficients={"a": 0.0},
                 extra_terms=lambda m, v, t, c: 1 / c["a"] * ufl.inner(m, v) * c.dx)
    table = Acquisition.product([DoublePGSE(1.0, 2.0, 1.0)], [100.0], [[1.0, 0, 0]])
    with pytest.raises(InputError, match="echo_sign: a double PGSE does not say"):
        simulate(tissue, table, extra_terms=everything, extra_coefficients=VALUES)
    with pytest.raises(InputError, match="expected one of matrix_formalism, time_stepping, "
                       "direction_bases, auto"):
        simulate(tissue, pgse(), "random_walk")


def test_coefficients_by_tag_and_by_cell():
    tissue = make_tissue()
    cells = tissue.mesh.num_cells
    vectors = np.arange(3.0 * cells).reshape(cells, 3)
    problem = BlochTorrey(tissue, 1, sink, {"a": {1: [1.0, 2.0], 0: [1.0, 2.0]}, "b": vectors,
                                            "c": np.eye(3), "d": 2})
    c = problem.coefficients
    assert c["a"].x.array.reshape(-1, 2)[0].tolist() == [1.0, 2.0]
    order = c["b"].function_space.dofmap.list.ravel()
    assert np.array_equal(c["b"].x.array.reshape(-1, 3)[order], vectors[tissue.mesh.input_cells])
    assert c["c"].value.shape == (3, 3) and float(c["d"].value) == 2.0


# ---- the four terms, their derivatives ----------------------------------------------------------


def walls(m, v, t, c):
    both = ufl.inner(m("+"), v("+")) + ufl.inner(m("-"), v("-"))
    return c["new"]("+") * both * c.dS + c["new"] * ufl.inner(m, v) * c.ds


def flow(m, v, t, c):
    return -ufl.inner(m, ufl.dot(ufl.grad(v), c["new"])) * c.dx


def field(m, v, t, c):
    return c.echo_sign * c["new"] * ufl.inner(forms.i_times(m), v) * c.dx


def fibre(m, v, t, c):
    n = c["new"]
    return ufl.inner(ufl.dot(ufl.grad(m), n), ufl.dot(ufl.grad(v), n)) * c.dx


def new_coefficient(kind, facets):
    if kind is walls:
        return facets.facet_function(0.02 + 0.01 * np.sin(facets.facet_vertices.sum(axis=1)))
    shape = () if kind is field else (3,)
    space = dolfinx.fem.functionspace(facets.domain, ("DG", 0, shape) if shape else ("DG", 0))
    function = dolfinx.fem.Function(space, name="new")
    wave = np.sin(1.0 + np.arange(facets.num_cells * max(1, len(shape) * 3)))
    function.x.array[:] = 0.3 * wave.reshape(facets.num_cells, -1)[facets.input_cells].ravel()
    return function


@pytest.mark.mpi
@pytest.mark.parametrize("kind, engine", [
    (walls, "time_stepping"), (walls, "matrix_formalism"), (flow, "time_stepping"),
    (field, "time_stepping"), (field, "matrix_formalism"), (fibre, "matrix_formalism")])
def test_taylor_of_a_new_coefficient(comm, kind, engine):
    tissue = make_tissue(comm)
    J = reduced_functional(
        tissue, pgse(), [60.0, 20.0 + 5j], ["new", "D"], engine, modes=ALL, time_step=2.0,
        extra_terms=kind, extra_coefficients={"new": new_coefficient(kind, tissue.mesh)})
    start = [control.control for control in J.controls]
    assert taylor_rate(J, start, steps=3, first=4e-3) > 1.9
    # the new one alone
    still = start[1]._ad_init_zero()
    direction = start[0]._like(np.cos(0.3 + np.arange(len(start[0]))))
    assert taylor_rate(J, start, [direction, still], steps=3, first=4e-3) > 1.9


def scaled(m, v, t, c):
    return c["rho"] * ufl.inner(m, v) * c.dx


@pytest.mark.mpi
def test_tao_and_scipy_find_diffusivity_and_permeability(comm):
    line = mesh.build(mesh.intervals, [3.0, 5.0], size=0.8, comm=comm)
    table = Acquisition.pgse([0, 500, 2000], [1, 0, 0], delta=4, Delta=[8, 30])
    membranes = line.interface > 0

    def tissue(D, kappa):
        return Tissue(line, D, permeability=Permeability.on(line, membrane=kappa))

    arguments = {"engine": "matrix_formalism", "modes": ALL, "extra_terms": scaled}
    measured = simulate(tissue(2.0, 0.05), table, extra_coefficients={"rho": 0.01}, **arguments)
    kinds = {"D": Number(log=True), "kappa": Number(where=membranes, log=True),
             "rho": Number(log=True)}
    for use_tao in (True, False):
        J = reduced_functional(tissue(1.5, 0.1), table, measured, kinds,
                               extra_coefficients={"rho": 0.02}, **arguments)
        if use_tao:
            problem = pyadjoint.MinimizationProblem(J)
            found = pyadjoint.TAOSolver(problem, {"tao_type": "lmvm", "tao_gatol": 1e-9,
                                                  "tao_grtol": 0.0}, comm=comm).solve()
        else:
            found = pyadjoint.minimize(J, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 0.0})
        values = J.physical(found)
        assert values["D"] == pytest.approx(2.0, rel=1e-2)
        assert values["kappa"] == pytest.approx(0.05, rel=1e-2)
        assert values["rho"] == pytest.approx(0.01, rel=1e-2)


@pytest.mark.mpi
def test_values_on_facets_go_through_scipy(comm):
    tissue = make_tissue(comm)
    rho = new_coefficient(walls, tissue.mesh)
    misfit = Likelihood(np.array([0.6, 0.2]), np.full(2, 120.0))
    J = reduced_functional(tissue, pgse(), misfit, "new", "time_stepping", time_step=2.0,
                           extra_terms=walls, extra_coefficients={"new": rho})
    numbers = pyadjoint.reduced_functional_numpy.ReducedFunctionalNumPy(J)
    start = numbers.obj_to_array([J.controls[0].control])
    assert len(start) == tissue.mesh.num_facets == J.controls[0].control._ad_dim()
    assert numbers(start) == pytest.approx(float(J(J.controls[0].control)), rel=1e-12)
    slopes = numbers.derivative()
    along = np.cos(np.arange(len(start)))
    assert numbers(start + 1e-4 * along) - numbers(start - 1e-4 * along) == pytest.approx(
        2e-4 * slopes @ along, rel=1e-4)


def test_functional_takes_plain_values_and_runs_again_only_if_it_must():
    tissue = make_tissue()
    J = reduced_functional(tissue, pgse(), [60, 20], {"rho": Number(log=True)}, time_step=2.0,
                           engine="time_stepping", extra_terms=scaled,
                           extra_coefficients={"rho": 0.02})
    assert J.physical() == {"rho": pytest.approx(0.02)}
    calls = []
    signals = J.engine.signals
    J.engine.signals = lambda **arguments: calls.append(1) or signals(**arguments)
    there = J(np.log(0.03))
    (slope,) = J.derivative()
    assert len(calls) == 1 and J([np.log(0.03)]) == there
    assert J.physical([np.log(0.05)])["rho"] == pytest.approx(0.05)
    J.engine.problem.coefficients["rho"].value = 7.0
    assert np.array_equal(J.derivative()[0].values, slope.values)
    assert taylor_rate(J, np.log(0.03)) > 1.9
    for wrong, said in (((tissue, 0.1), "reduced_functional: a Tissue, expected J"),
                        ((J, [1.0, 2.0]), "field: 2, expected one for each of 1"),
                        ((J, "much"), "field: a str")):
        with pytest.raises(InputError, match=said):
            taylor_rate(*wrong)


@pytest.mark.parametrize("controls, message", [
    ("rhp", "controls: 'rhp' .did you mean 'rho'.., expected some of D, R2, kappa, rho"),
    ([], "controls: none"),
    ({"kappa": Number(where=np.ones(3, bool))}, r"controls: 'kappa': where has shape \(3,\)"),
    ({"kappa": Number(log=True)}, None),
    ({"zero": Number(log=True)}, "controls: 'zero' is not positive everywhere"),
    ({"x": Values()}, "controls: 'x' is a UFL expression"),
    ({"n": Number()}, "controls: 'n' has components"),
])
def test_bad_controls(controls, message):
    tissue = make_tissue()
    x = ufl.SpatialCoordinate(tissue.mesh.domain)[0]
    n = np.ones((tissue.mesh.num_cells, 3))

    def make(loss=(60, 20)):
        return reduced_functional(
            tissue, pgse(), loss, controls, engine="time_stepping", time_step=4.0,
            extra_terms=scaled, extra_coefficients={"rho": 0.1, "x": x, "n": n, "zero": 0.0})

    if message is None:
        J = make()
        with pytest.raises(InputError, match="values: 2, expected one for each of the controls"):
            J([0.1, 0.2])
        with pytest.raises(InputError, match=r"loss: list of shape \(3,\), expected 2 measured"):
            make([1, 2, 3])
        return
    with pytest.raises(InputError, match=message):
        make()


# ---- demos and the page -------------------------------------------------------------------------


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.setenv("SPINVERSE_DEMO_SIZE", "small")
    return lambda name: runpy.run_path(str(ROOT / "demos" / f"physics_{name}.py"))


def test_demo_surface_relaxivity(demo):
    found = demo("surface_relaxivity")
    assert found["slab_signal"] == pytest.approx(found["slab_exact"], rel=1e-3)
    assert found["ball_signal"] == pytest.approx(found["ball_exact"], rel=1e-3)
    assert found["rate"] > 1.9 and found["rate_each"] > 1.9
    for name, value in found["true"].items():
        assert found["values"][name] == pytest.approx(value, rel=1e-2)


def test_demo_flow(demo):
    found = demo("flow")
    assert found["plug_error"] < 2e-4
    assert found["displacement"] == pytest.approx(2.0, rel=1e-4)
    assert found["lost"] < 1e-10
    assert found["rate"] > 1.9


def test_demo_background_gradient(demo):
    found = demo("background_gradient")
    assert found["linear_error"] < 1e-4
    assert abs(found["in_term"].values[0] - found["without"].values[0]) > 0.1 * 8
    assert found["engines_differ"] < 3e-4
    assert np.all(np.abs(found["dark"].values) < np.abs(found["bright"].values))
    assert found["rate"] > 1.9 and found["fast_rate"] > 1.9


def test_demo_fibre_diffusion(demo):
    found = demo("fibre_diffusion")
    assert found["difference"] < 1e-8
    assert found["rate"] > 1.9
    assert found["found"]["D"] == pytest.approx(0.4, rel=1e-2)
    assert found["found"]["D"] + found["found"]["excess"] == pytest.approx(1.8, rel=1e-2)


def test_code_of_the_page_runs(capsys):
    page = (ROOT / "docs" / "new_physics.md").read_text()
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for block in blocks:
        exec(compile(block, "docs/new_physics.md", "exec"), names)  # noqa: S102
    assert len(blocks) >= 6
    assert names["signals"].normalised[1] < names["signals"].normalised[0] == 1.0
    assert names["J"].physical()["rho"] == pytest.approx(0.02, rel=0.1)
    assert "not symmetric in m and v" in capsys.readouterr().out


# ---- terms on membranes, and in reconstructions -------------------------------------------------


def on_membranes(m, v, t, c):
    both = ufl.inner(m("+"), v("+")) + ufl.inner(m("-"), v("-"))
    return c["rho"] * c.membrane("+") * both * c.dS


def test_membranes_are_facets_of_low_permeability():
    """Tied facets are none, and neither are open ones."""
    tissue = make_tissue()
    facets, kappa = tissue.mesh, tissue.permeability.values.copy()
    assert np.isinf(kappa).any()
    left = {}
    for opened in (np.inf, 1e4):
        values = np.where(np.isinf(kappa), opened, kappa)
        problem = BlochTorrey(tissue.with_permeability(values), extra_terms=on_membranes,
                              extra_coefficients={"rho": 1.0})
        form = problem.compile(problem.coefficients.membrane("+") * problem.coefficients.dS)
        left[opened] = dolfinx.fem.assemble_scalar(form)
    walls = facets.facet_areas[~facets.outer & np.isfinite(kappa)].sum()
    assert left[np.inf] == pytest.approx(walls / (1 + 0.05**2), rel=1e-12)
    assert left[1e4] == pytest.approx(left[np.inf], rel=1e-6)


@pytest.mark.mpi
@pytest.mark.parametrize("engine", ["matrix_formalism", "time_stepping"])
def test_terms_on_membranes_change_with_the_permeability(comm, engine):
    tissue = make_tissue(comm)
    kappa = np.where(np.isinf(tissue.permeability.values), 0.4, tissue.permeability.values)
    problem = BlochTorrey(tissue.with_permeability(kappa), extra_terms=on_membranes,
                          extra_coefficients={"rho": 0.1})
    solver = make_engine(problem, pgse(), engine, problem.num_unknowns, time_step=1.0)

    def value(values):
        signals = solver.signals(values, remember=True)
        return float((WEIGHTS.conj() @ signals).real)

    value(kappa)
    gradient = solver.gradient(WEIGHTS)
    away = np.cos(tissue.mesh.facet_vertices.sum(axis=1)) * kappa
    slope = (value(kappa + 1e-4 * away) - value(kappa - 1e-4 * away)) / 2e-4
    assert comm.allreduce(float(gradient @ away)) == pytest.approx(slope, rel=1e-5)
