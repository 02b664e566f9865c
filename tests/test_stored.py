"""Storage along z: stimulated echo, filter exchange, T1, and the exchange rate that they tell."""

from __future__ import annotations

import json

import numpy as np
import pytest
import ufl
from collocation import Stack
from mpi4py import MPI

import spinverse
from spinverse import (
    BlochTorrey,
    InputError,
    InverseProblem,
    Permeability,
    Tissue,
    cli,
    mesh,
    simulate,
)
from spinverse.acquisition import (
    FEXI,
    PGSE,
    Acquisition,
    Sampled,
    StimulatedEcho,
    read_acquisition,
    write_acquisition,
    write_camino,
)
from spinverse.adjoint import Values, reduced_functional, taylor_rate
from spinverse.engines.basis.eigenmodes import eigenmodes
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.jacobian import signal_jacobian
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.interface.magnetisation import magnetisation
from spinverse.inversion.shapes.models import Models
from spinverse.quantities import exchange_times, fit_axr, hadc, karger_pools
from spinverse.simulate import make_engine

X = [[1.0, 0.0, 0.0]]
UNEVEN = Stack((3.0, 5.0, 9.0), (0.05, 0.5), (1.0, 2.0, 3.0), (30.0, 60.0, np.inf),
               T1=(400.0, 90.0, 700.0))


def rest_between() -> Sampled:
    """Pulses of different length and strength, two periods of storage, rests of any length."""
    return Sampled((0, 1, 4, 5, 40, 41, 47, 48), (0, 1, 1, 0, 0, -4 / 7, -4 / 7, 0),
                   echo_time=55.0, storage=((6, 15), (20, 38)))


WAVEFORMS = {
    "whole gap": StimulatedEcho(4, 40), "in the middle": StimulatedEcho(4, 40, 20),
    "late echo": StimulatedEcho(4, 40, 25, 50), "fexi": FEXI(4, 14, 50, 0.6, 6, 8, 20, 100),
    "filter alone": FEXI(4, 14, 30, 1.0), "sampled": rest_between(),
}


# ---- waveforms ----------------------------------------------------------------------------------


def test_periods_and_b():
    echo = StimulatedEcho(4, 40, 25, 50)
    assert echo.storage == ((12.5, 37.5),) and echo.stored_time == 25
    assert echo.stored([12.4, 12.5, 37.4, 37.5]).tolist() == [False, True, True, False]
    assert {12.5, 37.5} < set(echo.breakpoints) and StimulatedEcho(4, 40).antisymmetric
    assert np.isclose(echo.b_factor, PGSE(4, 40).b_factor, rtol=1e-14)
    assert StimulatedEcho(4, 40).storage == ((4.0, 40.0),) and not StimulatedEcho(4, 40, 0).storage
    fexi = FEXI(4, 14, 50, 0.6, 6, 8, 20, 100)
    assert fexi.storage == ((20.0, 70.0),) and fexi.echo_time == 100 and fexi.peak == 1.0
    t = np.linspace(0, 100, 100001)
    F = fexi.integral(t)
    np.testing.assert_allclose(F, np.append(0, np.cumsum(fexi(t[:-1])) * 1e-3), atol=4e-3)
    first, second = (np.trapezoid(np.where(part, F**2, 0), t) for part in (t < 20, t >= 20))
    assert np.isclose(first / (first + second), 0.6, rtol=1e-4)
    assert np.isclose(first + second, fexi.b_factor, rtol=1e-4)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: StimulatedEcho(4, 40, 37), "mixing_time = 37 ms: expected at most 36 ms"),
    (lambda: StimulatedEcho(4, 40, 30, 60), "mixing_time = 30 ms: expected at most 20 ms"),
    (lambda: StimulatedEcho(4, 40, echo_time=90), "echo_time = 90 ms: expected at most 2 Delta"),
    (lambda: StimulatedEcho(4, 40, -1), "mixing_time = -1: expected a time >= 0"),
    (lambda: FEXI(4, 14, 50, 1.2), r"filter_share = 1.2: expected a part of b in \[0, 1\]"),
    (lambda: FEXI(4, 14, 50, 0.5, 20), "filter: Delta = 14 ms: expected at least delta"),
    (lambda: FEXI(4, 14, "x", 0.5), "mixing_time = 'x'"),
    (lambda: Sampled((0, 1, 2), (1, 0, -1), storage=((1, 3),)), "storage: .* inside"),
    (lambda: Sampled((0, 1, 2), (1, 0, -1), storage=(1, 2)), "storage: "),
    (lambda: Sampled((0, 1, 2), (1, 0, -1), storage=((0.5, 1),)), "gradient while magnetisation"),
    (lambda: Sampled((0, 1, 1, 3, 3, 4), (1, 1, 0, 0, 1, 1), (2,), storage=((1, 3),)),
     "refocusing_times: 2 ms, expected none while"),
    (lambda: Acquisition.fexi([0], X, 4, 14, 50), "filter_b: missing, FEXI needs"),
    (lambda: Acquisition.fexi([0], X, 4, 14, 50, -1), "filter_b: -1, expected a finite value"),
    (lambda: Acquisition.stimulated_echo([0], X, 4), "Delta: missing, StimulatedEcho needs"),
])
def test_what_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_tables_of_filters(tmp_path):
    table = Acquisition.fexi([0, 800], X, 4, 14, [20, 60], [0, 1500], filter_echo_time=25,
                             detection_echo_time=30)
    assert table.b.tolist() == [0, 800, 1500, 2300] * 2
    share = [w.filter_share for w in table.waveforms]
    assert np.allclose([share[k] for k in table.waveform_index], [0, 0, 1, 1500 / 2300] * 2)
    assert {(w.mixing_time, w.echo_time) for w in table.waveforms} == {(20, 75), (60, 115)}
    # what is without gradient is of its own mixing time
    assert table.reference_rows(table.waveform_index[7]).tolist() == [4]
    assert len(table.select([1, 5]).with_unweighted()) == 4
    write_acquisition(tmp_path / "table.csv", table)
    assert read_acquisition(tmp_path / "table.csv") == table
    sampled = Acquisition.product([rest_between()], [0, 500], X)
    write_acquisition(tmp_path / "sampled.npz", sampled)
    assert read_acquisition(tmp_path / "sampled.npz") == sampled
    with pytest.raises(InputError, match="scheme has no storage"):
        write_camino(tmp_path / "table.scheme", table)


# ---- engines ------------------------------------------------------------------------------------


def stack_problem(stack: Stack, comm=MPI.COMM_SELF, periodic="") -> BlochTorrey:
    line = mesh.build(mesh.intervals, stack.thicknesses,
                      cells_per_layer=[round(3 * L) for L in stack.thicknesses], comm=comm)
    each = [dict(enumerate(values, 1)) for values in (
        stack.diffusivity, stack.T2, stack.T1, stack.permeabilities)]
    return BlochTorrey(Tissue(line, each[0], each[1], T1=each[2], periodic=periodic,
                              permeability=Permeability.on(line, membrane=each[3])), 2)


@pytest.mark.parametrize("name", WAVEFORMS)
def test_both_engines_against_collocation(name):
    table = Acquisition.product([WAVEFORMS[name]], [0, 1000, 4000], X)
    exact, problem = UNEVEN.signals(table, 30), stack_problem(UNEVEN)
    engine = make_engine(problem, table, "matrix_formalism", tolerance=1e-5)
    assert np.abs(engine.signals() / 17 - exact).max() < 2e-5
    step = 0.5 if name == "sampled" else 1.0
    errors = [np.abs(TimeStepping(problem, table.select([1]), h).signals() / 17 - exact[1]).max()
              for h in (step, step / 2)]
    assert errors[1] < 1e-3 and errors[0] / errors[1] > 3  # second order


def test_spin_echo_without_storage_or_where_T1_is_T2():
    echoes = Acquisition.product([StimulatedEcho(4, 30, 0), StimulatedEcho(4, 30, 15)],
                                 [0, 2000], X)
    same = Acquisition.product([PGSE(4, 30)], [0, 2000], X)
    problem = stack_problem(Stack((3.0, 6.0), (0.05,), (1.0, 2.0), (40.0, 80.0), T1=(40.0, 80.0)))
    spin = MatrixFormalism(problem, same, modes=40).signals()
    np.testing.assert_allclose(MatrixFormalism(problem, echoes, modes=40).signals().reshape(2, 2),
                               [spin, spin], rtol=1e-10)
    for T1 in (40.0, np.inf):  # uniform relaxation is a factor
        pair = [simulate(Tissue(problem.mesh, T2=80.0, T1=T1), table, mesh_error=False).values
                for table in (echoes.select([2, 3]), same)]
        np.testing.assert_allclose(pair[0] / pair[1], np.exp(15 / 80 - 15 / T1), rtol=1e-9)


def test_omitted_modes_and_the_mesh_are_estimated():
    """Relaxation that differs couples modes with those left out: the correction sees it."""
    stack = Stack((4.0, 6.0), (0.02,), (2.0, 2.0), (10.0, 200.0), T1=(500.0, 12.0))
    problem = stack_problem(stack)
    table = Acquisition.product([FEXI(3, 8, 60, 0.5)], [0, 1500], X)
    exact = stack.signals(table)
    engine = MatrixFormalism(problem, table.select([0]), modes=2)
    basis = eigenmodes(problem, 2, responses=True).truncated(2)
    plain, corrected = (engine.evolve_batch(basis, engine._batches[0], corrected=c)[0][0] / 10
                        for c in (False, True))
    assert abs(corrected - exact[0]) < 0.25 * abs(plain - exact[0])
    coarse = mesh.build(mesh.intervals, (4.0, 6.0), size=1.0)
    tissue = Tissue(coarse, T2={1: 10, 2: 200}, T1={1: 500, 2: 12},
                    permeability=Permeability.on(coarse, membrane=0.02))
    signals = simulate(tissue, table, degree=1, tolerance=1e-7)
    error = abs(signals.values[1] / 10 - exact[1])
    assert error / 2 < signals.mesh_error < 2 * error


@pytest.mark.parametrize("name", ["in the middle", "fexi"])
def test_engines_agree_along_a_periodic_axis(name):
    stack = Stack((2.0, 4.0, 2.0), (0.05, 0.2), (1.0, 2.0, 1.0), (30.0, 60.0, 30.0),
                  T1=(400.0, 90.0, 400.0))
    problem = stack_problem(stack, periodic="x")
    table = Acquisition.product([WAVEFORMS[name]], [0, 1500], X)
    modal = make_engine(problem, table, "matrix_formalism", tolerance=1e-5).signals()
    stepped = TimeStepping(problem, table, 0.5).signals()
    assert np.abs(modal - stepped).max() / 8 < 1e-4


def box_problem(comm=MPI.COMM_SELF) -> BlochTorrey:
    box = mesh.build(mesh.box, [9.0, 6.0, 5.0], cells=(2, 1, 1), comm=comm)
    wave = np.sin(box.facet_vertices @ np.array([1.3, 2.9, 0.7]))
    cell = np.arange(box.num_cells)
    return BlochTorrey(Tissue(box, diffusivity=2 + 0.5 * np.cos(cell), T2=20 + 5 * np.sin(cell),
                              T1=90 + 50 * np.cos(3 * cell),
                              permeability=Permeability(box, 10.0 ** (-0.5 + 0.8 * wave))))


def few() -> Acquisition:
    return Acquisition.product([StimulatedEcho(2, 9, 5), FEXI(2, 4, 6, 0.5, 1, 3)], [1200],
                               [[0.6, 0.0, 0.8]])


@pytest.mark.mpi
@pytest.mark.parametrize("engine", ["matrix_formalism", "time_stepping"])
def test_taylor_of_all_coefficients(comm, engine):
    problem, table = box_problem(comm), few()
    measured = 0.5 * problem.magnetisation_at_start * np.ones(len(table))
    for name in ("kappa", "R1", "R2", "D"):
        J = reduced_functional(
            problem.tissue, table, measured, {name: Values(log=True)},
            engine=engine, time_step=1.0, degree=1,
            modes=problem.num_unknowns if engine == "matrix_formalism" else "auto")
        start = [control.tape_value() for control in J.controls]
        assert taylor_rate(J, start, steps=2) > 1.9, name


@pytest.mark.mpi
def test_the_same_on_any_number_of_ranks(comm, monkeypatch):
    table = few()
    parts = []
    for where in (comm, MPI.COMM_SELF):
        problem = box_problem(where)
        engines = [MatrixFormalism(problem, table, modes=24), TimeStepping(problem, table, 1.0)]
        monkeypatch.setattr("spinverse.engines.march.common_factor.PAYS_FROM", 0)
        engines.append(TimeStepping(problem, table, 1.0))
        monkeypatch.undo()
        found = []
        for engine in engines:
            values = engine.signals(remember=True)
            found.append((values, engine.gradient(values), engine.gradient_of(
                problem.coefficients.R1, values)))
        J = signal_jacobian(engines[0])[1]
        np.testing.assert_allclose(J.T @ np.abs(found[0][0]), found[0][1], rtol=1e-7, atol=1e-9)
        for one, other in zip(found[1], found[2], strict=True):  # a common factor or not
            assert np.abs(one - other).max(initial=0) < 1e-7 * problem.magnetisation_at_start
        parts.append((problem.mesh, found))
    (here, found), (alone, wanted) = parts
    partner = alone.find_facets(here.facet_vertices)
    for (S, dS, _), (S1, dS1, _) in zip(found, wanted, strict=True):
        assert np.abs(S - S1).max() < 1e-8 * np.abs(S1).max()
        assert np.abs(dS - dS1[partner]).max(initial=0) < 1e-8 * np.abs(dS1).max()


def test_magnetisation_in_storage():
    problem = stack_problem(UNEVEN)
    table = Acquisition.product([WAVEFORMS["in the middle"]], [2000], X)
    times = [3.0, 12.0, 20.0, 31.0, 44.0]
    one = magnetisation(MatrixFormalism(problem, table, modes=problem.num_unknowns), 0, times)
    other = magnetisation(TimeStepping(problem, table, 0.05), 0, times)
    assert np.abs(one - other).max() < 2e-3


def test_what_engines_refuse():
    line = mesh.build(mesh.intervals, [5.0], size=1.0)
    table = Acquisition.stimulated_echo([0, 500], X, 4, 20)

    def leak(m, v, t, c):
        return 0.01 * ufl.inner(m, v) * c.dx

    for engine in ("matrix_formalism", "time_stepping"):
        with pytest.raises(InputError, match="extra_terms: with StimulatedEcho, .* expected none"):
            simulate(Tissue(line), table, engine=engine, extra_terms=leak)
    cube = mesh.build(mesh.box, [4.0] * 3, cells=(1, 1, 1))
    with pytest.raises(InputError, match="engine: direction_bases: StimulatedEcho, .* stores"):
        simulate(Tissue(cube, periodic="xyz"), table, engine="direction_bases")
    with pytest.raises(InputError, match="T1: -1 in cell 0, expected ms, positive"):
        Tissue(line, T1=-1.0)


# ---- what exchange they tell --------------------------------------------------------------------


def pools(rate: float, T1=np.inf):
    """Two pools of equal size, slow and fast, with this sum of the exchange rates, 1/ms."""
    rates = np.array([[0.0, rate / 2], [rate / 2, 0.0]])
    table = Acquisition.fexi([0, 50, 100], X, 3, 12, [10, 40, 90, 200], [0, 1500])
    return karger_pools(table, [1.0, 1.0], [0.3, 2.0], rates, T2=60.0, T1=T1).signals


@pytest.mark.parametrize("rate", [0.0, 0.004, 0.03])
def test_pools_have_their_rate(rate):
    """The slope at b = 0 relaxes with the sum of both rates; T1 of both is a common factor."""
    fit = fit_axr(pools(rate, T1=300.0))
    assert np.isclose(fit.axr[0], rate, rtol=2e-3, atol=1e-9) and fit.valid.all()
    assert 0.2 < fit.sigma[0] < 1 and np.isclose(fit.adc_equilibrium[0], 1.15, rtol=1e-2)
    assert fit.filter_b.tolist() == [1500] and fit.mixing_times[0].tolist() == [10, 40, 90, 200]


def test_fits_without_reference_and_bad_rows():
    signals = pools(0.02)
    share = np.array([w.filter_share for w in signals.acquisition.waveforms])
    filtered = signals.select(share[signals.acquisition.waveform_index] > 0)
    assert np.isclose(fit_axr(filtered).axr[0], 0.02, rtol=0.02)
    with pytest.raises(InputError, match=r"1 mixing time\(s\) of at least two b-values"):
        fit_axr(filtered.select([0, 1, 2]))
    with pytest.raises(InputError, match="no row with filter_b > 0"):
        fit_axr(signals.select(share[signals.acquisition.waveform_index] == 0))
    with pytest.raises(InputError, match="no row of filter-exchange imaging"):
        fit_axr(karger_pools(Acquisition.pgse([0, 500], X, 3, 12), [1.0], [1.0]).signals)
    with pytest.warns(spinverse.quantities.FitWarning, match="the filter changes nothing"):
        free = karger_pools(signals.acquisition, [1.0], [2.0]).signals
        assert np.isnan(fit_axr(free).axr[0])


@pytest.fixture(scope="module")
def packed():
    return mesh.build(mesh.packed_spheres, 2.0, radii=[2.5] * 2, box=[14.0, 6.0, 6.0], seed=1,
                      gap=0.3, comm=MPI.COMM_SELF)


def filter_exchange(packed, kappa: float, mixing_times):
    tissue = Tissue(packed, permeability=Permeability.on(packed, membrane=kappa))
    table = Acquisition.fexi([0, 100], X, 4, 14, mixing_times, [0, 3000])
    return tissue, fit_axr(simulate(tissue, table, mesh_error=False))


def test_packed_spheres_tell_their_slowest_mode(packed):
    """Long mixing times: what differs inside the space around has levelled out by then.

    Of the modes of two spheres and the space around, one, which differs between the spheres, is
    not excited by a start that is the same in both: the next one exchanges with the space around.
    """
    tissue, fit = filter_exchange(packed, 0.008, [60, 120, 240])
    expected = 1 / exchange_times(tissue)[-1]
    assert abs(fit.axr[0] / expected - 1) < 0.05
    assert 0.2 < fit.sigma[0] < 0.8


def test_closed_spheres_do_not_exchange(packed):
    _, fit = filter_exchange(packed, 0.0, [100, 200, 400])
    assert 0 <= fit.axr[0] < 3e-6 and fit.sigma[0] > 0.3


# ---- inverse problem, run files -----------------------------------------------------------------


def test_a_search_takes_storage_where_it_is_rest():
    cube = mesh.build(mesh.tagged_grid, mesh.Ball(7), 20, cells=2)
    truth = Permeability.on(cube, membrane=0.01, elsewhere=100.0)
    pair = [Acquisition.product([w], [0, 2000], [[0.6, 0.0, 0.8]])
            for w in (PGSE(4, 20), StimulatedEcho(4, 20))]
    labels = (cube.cell_tags == 1).astype(np.int8)
    residuals = []
    for table in pair:
        signals = simulate(Tissue(cube, permeability=truth), table, mesh_error=False)
        problem = InverseProblem(cube, signals, wall_permeability=0.01)
        models = Models(problem)
        residuals.append(models.residuals([labels], models.start, models.all)[0])
    np.testing.assert_allclose(residuals[1], residuals[0], atol=1e-9)
    with pytest.raises(InputError, match="shape search: StimulatedEcho, .* expected T1 = T2"):
        Models(InverseProblem(cube, signals, wall_permeability=0.01, T2=50.0, T1=500.0))


def test_homogenised_weights_know_T1():
    line = mesh.build(mesh.intervals, (4.0, 6.0), size=0.5)
    tissue = Tissue(line, T2={1: 30, 2: 60}, T1={1: 200, 2: 900},
                    permeability=Permeability.on(line, membrane=0.0))
    weights = hadc(tissue, Acquisition.stimulated_echo([500], X, 4, 40, 20)).weights[:, 0]
    share = np.array([4 * np.exp(-24 / 30 - 20 / 200), 6 * np.exp(-24 / 60 - 20 / 900)])
    np.testing.assert_allclose(weights, share / share.sum())


RUN = """
version: 1
mesh: {builder: intervals, thicknesses_um: [4, 10], size_um: 1}
tissue:
  T2_ms: 60
  T1_ms: {1: 300, 2: 900}
  permeability: {membrane_um_per_ms: 0.02}
acquisition:
  - stimulated_echo: {b_s_per_mm2: [0, 500], directions: [1, 0, 0], delta_ms: 4, Delta_ms: 30,
                      mixing_time_ms: 20}
  - fexi: {b_s_per_mm2: [0, 400], directions: [1, 0, 0], delta_ms: 4, Delta_ms: 14,
           mixing_time_ms: [20, 60, 120], filter_b_s_per_mm2: [0, 1500]}
mesh_error: false
quantities: [axr]
"""


def test_a_run_file(tmp_path, capsys):
    run = tmp_path / "run.yaml"
    run.write_text(RUN)
    assert cli.main(["simulate", str(run), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "T1: " in said and "300 ms" in said and "1/s, efficiency" in said
    fit = json.loads((tmp_path / "out" / "quantities.json").read_text())["axr"]["fits"][0]
    assert 0 < fit["axr_per_ms"] < 0.1 and fit["mixing_times_ms"] == [20, 60, 120]
    table = read_acquisition(tmp_path / "out" / "signals.csv")
    assert [w.name for w in table.waveforms].count("FEXI") == 9
    run.write_text(RUN.replace("mixing_time_ms: 20}", "mixing_time_ms: 27}"))
    assert cli.main(["simulate", str(run), "-o", str(tmp_path / "bad")]) == 2
    assert "acquisition.0.stimulated_echo: mixing_time = 27 ms: expected at most 26" in (
        capsys.readouterr().err)
