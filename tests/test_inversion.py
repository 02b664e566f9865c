"""Reconstruction: stages as data, optimisers, failures, and a small one from end to end."""

from __future__ import annotations

import numpy as np
import pytest
import ufl
from mpi4py import MPI
from pyadjoint import Control, Tape, continue_annotation, pause_annotation, set_working_tape

from spinverse import InputError, Permeability, SolverError, Tissue, mesh
from spinverse.acquisition import Acquisition
from spinverse.adjoint import FacetField, scalar
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.inversion import TAO, Adam, Ledger, Saver, Shapes, Stage, reconstruct, stages
from spinverse.inversion.facets.controls import CONTROLS, FromLog
from spinverse.inversion.facets.optimise import BacktrackingFunctional, StopStage, minimise
from spinverse.inversion.facets.stage import sequence_ranks
from spinverse.inversion.likelihood import Likelihood, rician_mean
from spinverse.mesh import Ball
from spinverse.simulate import simulate


def grid(comm=MPI.COMM_SELF):
    return mesh.build(mesh.tagged_grid, Ball(radius=3.0), 10.0, cells=2, comm=comm)


def table(directions=6) -> Acquisition:
    return Acquisition.pgse(b=[0, 1000, 3000], directions=directions, delta=[3, 3], Delta=[5, 20])


def truth(facets, outer=100.0) -> Permeability:
    return Permeability.on(facets, membrane=0.02, elsewhere=100.0, outer=outer)


def measured(facets, outer=100.0, directions=6, modes="auto"):
    tissue = Tissue(facets, permeability=truth(facets, outer))
    return simulate(tissue, table(directions), modes=modes)


def ten(**extra) -> Stage:
    return Stage("ten", iterations=10, **extra)


# ---- controls and misfit ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_go_there_and_back(name):
    control = CONTROLS[name](0.01, 100.0)
    kappa = np.array([0.02, 0.3, 1.0, 40.0])
    v = control.control(kappa)
    assert np.allclose(10 ** control.value(v), kappa, rtol=1e-12)
    h = 1e-6
    slope = (control.value(v + h) - control.value(v - h)) / (2 * h)
    assert np.allclose(control.pull_back(v, np.full(4, 2.0)), 2 * slope, rtol=1e-6)
    ends = 10 ** control.value(control.control(np.array([0.0, 1e-9, 1e9])))
    assert np.all((ends >= 0.0099) & (ends <= 100.1)) and np.all(np.isfinite(ends))


def test_published_control_starts_in_the_middle():
    assert CONTROLS["squashed"]().control(np.array([1.0])) == pytest.approx(0.0, abs=1e-12)


def test_facets_that_are_known_stay_and_have_no_derivative():
    from_log = FromLog(np.array([True, False]), np.array([9.0, 0.5]))
    z = np.array([2.0, 400.0])  # what stands on a known facet may be anything
    assert from_log.value(z).tolist() == [100.0, 0.5]
    assert from_log.pull_back(z, np.ones(2)) == pytest.approx([100 * np.log(10), 0.0])


@pytest.mark.parametrize("sigma, rician", [(0.0, True), (0.2, True), (0.2, False)])
def test_misfit_and_its_derivative(sigma, rician):
    rng = np.random.default_rng(0)
    S = rng.normal(size=5) + 1j * rng.normal(size=5)
    weights = np.array([1.0, 2, 0, 1, 1])
    misfit = Likelihood(rng.uniform(size=5), np.full(5, 3.0), weights=weights, sigma=sigma,
                        rician=rician)
    lifted = rician_mean(np.abs(S) / 3.0, sigma) if rician else np.abs(S) / 3.0
    expected = np.average((lifted - misfit.measured) ** 2, weights=misfit.weights)
    assert misfit.value(S) == pytest.approx(expected)
    w = misfit.pull_back(S, 0.5)
    for step in (1e-6, 1e-6j):
        for i in range(5):
            e = step * np.eye(5)[i]
            slope = (misfit.value(S + e) - misfit.value(S - e)) / 2
            assert 0.5 * slope == pytest.approx((w.conj() @ e).real, rel=1e-5, abs=1e-14)
    assert np.all(misfit.pull_back(np.zeros(5, complex), 1.0) == 0)  # no phase, no direction


# ---- schedules ----------------------------------------------------------------------------------


def test_adam_schedule():
    adam = Adam()
    assert adam.rate(0) == pytest.approx(0.6 / 50)
    assert adam.rate(24) == pytest.approx(0.3)
    assert adam.rate(49) == adam.rate(50) == pytest.approx(0.6)
    assert adam.rate(125) == pytest.approx(0.6 * 0.55)
    assert adam.rate(199) == pytest.approx(0.06, rel=1e-2)
    assert [adam.rate(200 + n) for n in (0, 77, 150)] == [adam.rate(n) for n in (0, 77, 150)]
    rates = [adam.rate(n) for n in range(200)]
    assert np.all(np.diff(rates[:50]) > 0) and np.all(np.diff(rates[50:]) < 0)


def test_prior_weights_ramp():
    stage = Stage("s", iterations=11, priors={"manifold": (0.0, 2.0), "continuity": 3.0})
    found = [stage.prior_weights(n)["manifold"] for n in (0, 5, 10, 20)]
    assert found == pytest.approx([0.0, 1.0, 2.0, 2.0])
    assert stage.prior_weights(7)["continuity"] == 3.0


# ---- which measurements -------------------------------------------------------------------------


def sequences() -> Acquisition:
    """Diffusion times in no order: middle, shortest, longest."""
    return Acquisition.pgse(b=[0, 1000, 3000], directions=4, delta=[10, 5, 10], Delta=[20, 6, 60])


def test_sequences_are_ranked_by_diffusion_time():
    assert sequence_ranks(sequences()).tolist() == [1, 2, 0]


def test_rows_of_a_stage():
    acquisition = sequences()
    assert np.array_equal(Stage("all").rows(acquisition), np.arange(36))
    longest = Stage("long", sequences=(0,)).rows(acquisition)
    assert np.array_equal(longest, np.arange(24, 36))
    two = Stage("two", sequences=(0, 2)).rows(acquisition)
    assert set(acquisition.Delta[two]) == {60.0, 6.0}
    weak = Stage("weak", b_max=1000).rows(acquisition)
    assert set(acquisition.b[weak]) == {0.0, 1000.0}
    # a preset for more sequences than there are: the shortest stands in
    assert set(acquisition.Delta[Stage("s", sequences=(7,)).rows(acquisition)]) == {6.0}


def test_every_other_direction_is_the_same_for_all_shells_and_sequences():
    acquisition = sequences()
    rows = Stage("half", every=2).rows(acquisition)
    strong = rows[acquisition.b[rows] > 0]
    assert len(strong) == 2 * 2 * 3
    assert len(np.unique(acquisition.directions[strong], axis=0)) == 2
    assert np.count_nonzero(acquisition.b[rows] == 0) == 12  # all of them


def test_row_weights_by_sequence():
    weights = Stage("s", weights=(3.0, 2.0)).row_weights(sequences())
    assert weights.reshape(3, 12).T[0].tolist() == [2.0, 1.0, 3.0]
    assert np.all(weights.reshape(3, 12) == weights.reshape(3, 12)[:, :1])
    assert np.all(Stage("s").row_weights(sequences()) == 1.0)


def test_a_stage_without_diffusion_weighting():
    with pytest.raises(InputError, match=r"stage 's': sequences 'all' up to b = 500 s/mm\^2 choose "
                                         "no measurement with b > 0"):
        Stage("s", b_max=500).rows(sequences())


@pytest.mark.parametrize("wrong, message", [
    ({"control": "linear"}, "stage 's': control 'linear', expected one of log, squashed"),
    ({"priors": {"smooth": 1.0}}, "stage 's': prior 'smooth', expected one of continuity"),
    ({"every": 0}, "stage 's': every 0, expected at least 1"),
    ({"iterations": 0}, "stage 's': iterations 0, expected at least 1"),
])
def test_wrong_stages(wrong, message):
    with pytest.raises(InputError, match=message):
        Stage("s", **wrong)


@pytest.mark.parametrize("wrong, message", [
    ({"stages": "fastest"},
     "stages: 'fastest', expected one of default, fast, walls, facets, published or a list"),
    ({"boundary": "open"}, "boundary: 'open', expected one of reflecting, absorbing"),
    ({"permeability_range": (1.0, 0.1)}, "permeability_range: .* expected 0 < low < high"),
    ({"permeability_range": (0.0, 1.0)}, "permeability_range: .* expected 0 < low < high"),
    ({"engine": "random_walk"},
     "engine: 'random_walk', expected one of matrix_formalism, time_stepping"),
])
def test_wrong_arguments(wrong, message):
    facets = grid()
    with pytest.raises(InputError, match=message):
        reconstruct(facets, measured(facets, directions=1), **{"stages": [ten()], **wrong})


def test_presets_build():
    published = stages.PRESETS["published"]()
    assert [stage.sequences for stage in published] == [(0,), (1,)]
    assert all(isinstance(s.optimiser, Adam) and s.control == "squashed" for s in published)
    assert all(s.iterations == 200 and s.misfit_weight == 100.0 for s in published)
    ramp = [stage.prior_weights(n)["manifold"] for stage in published for n in (0, 199)]
    assert ramp == pytest.approx([0.0, 1.0, 1.0, 2.0])
    # all timings of the published table: 10/60 first, then 10/20
    assert {sequences().Delta[published[0].rows(sequences())][0]} == {60.0}
    assert {sequences().Delta[published[1].rows(sequences())][0]} == {20.0}
    assert all(isinstance(stage, Stage) for stage in stages.PRESETS["facets"]())
    assert [type(stage) for stage in stages.PRESETS["default"]()] == [Shapes]


# ---- optimisers on a function that is known -----------------------------------------------------


class Bowl:
    """sum of (x - goal)^2 over the facets of the whole mesh; may fail once."""

    def __init__(self, facets, goal=0.7):
        self.comm, self.goal, self.fail_at, self.calls = facets.comm, goal, (), 0

    def value(self, x):
        self.calls += 1
        if self.calls in self.fail_at:
            raise SolverError("no factorisation")
        return self.comm.allreduce(float(np.sum((x - self.goal) ** 2)))

    def pull_back(self, x, adjoint):
        return 2 * adjoint * (x - self.goal)


def bowl(facets, start=-0.5):
    operation = Bowl(facets)
    field = FacetField(facets, np.full(facets.num_owned_facets, start))
    set_working_tape(Tape())
    continue_annotation()
    try:
        loss = scalar(field, operation)
    finally:
        pause_annotation()
    return BacktrackingFunctional(loss, Control(field)), field, operation


def ignore(*_):
    pass


@pytest.mark.mpi
@pytest.mark.parametrize("optimiser", [TAO("blmvm"), TAO("bqnls"), Adam(0.1, 5, 100)])
def test_optimisers_reach_the_minimum(comm, optimiser):
    facets = grid(comm)
    functional, start, _ = bowl(facets)
    found, ending = minimise(optimiser, "s", 100, functional, start, (-1.0, 2.0), ignore)
    # the sign-normalised steps of Adam end at about its last rate
    assert np.abs(found.values - 0.7).max(initial=0) < (
        1e-6 if isinstance(optimiser, TAO) else 0.05)
    assert isinstance(ending, str) and ending


@pytest.mark.mpi
@pytest.mark.parametrize("optimiser", [TAO("blmvm"), TAO("bqnls"), Adam(0.1, 5, 100)])
def test_optimisers_respect_bounds(comm, optimiser):
    facets = grid(comm)
    functional, start, _ = bowl(facets)
    found, _ = minimise(optimiser, "s", 40, functional, start, (-1.0, 0.25), ignore)
    assert np.allclose(found.values, 0.25, atol=1e-12)


@pytest.mark.parametrize("optimiser", [TAO(), Adam()])
def test_a_monitor_may_stop_the_stage(optimiser):
    functional, start, _ = bowl(grid())
    seen = []

    def monitor(iteration, loss, gradient, step):
        seen.append(iteration)
        if iteration == 1:
            raise StopStage("enough")

    _, ending = minimise(optimiser, "s", 50, functional, start, (-1, 2), monitor)
    assert ending == "enough" and seen == [0, 1]


@pytest.mark.mpi
@pytest.mark.parametrize("fail_at", [(4,), (4, 5), tuple(range(4, 200))])
def test_a_failed_solve_ends_the_stage_or_is_stepped_back_from(comm, fail_at):
    facets = grid(comm)
    functional, start, operation = bowl(facets)
    operation.fail_at = fail_at
    found, ending = minimise(TAO(), "s", 20, functional, start, (-1.0, 2.0), ignore)
    assert functional.failures > 0 and isinstance(ending, str)
    assert np.all(np.isfinite(found.values))
    operation.fail_at = ()
    assert operation.value(found.values) <= operation.value(start.values)


def test_adam_ends_when_the_solver_fails():
    functional, start, operation = bowl(grid())
    operation.fail_at = (4,)
    found, ending = minimise(Adam(), "s", 50, functional, start, (-1, 2), ignore)
    assert ending == "the solver failed" and np.all(np.isfinite(found.values))


# ---- whole reconstructions ----------------------------------------------------------------------


@pytest.mark.mpi
def test_a_small_reconstruction(comm):
    facets = grid(comm)
    few = comm.size > 1  # little to solve: ranks may outnumber the cores
    modes = 30 if few else 60
    signals = measured(facets, directions=1 if few else 6, modes=modes if few else "auto")
    seen = []
    plan = [Stage("long", iterations=2 if few else 15, sequences=(0,)),
            Stage("all", iterations=2 if few else 40, stop_at=1e-7)]
    result = reconstruct(facets, signals, plan, boundary="absorbing", modes=modes,
                         progress=seen.append)
    first = seen[0].data
    assert result.data_misfit < (first if few else 1e-3 * first)
    assert seen == result.history and set(result.endings) == {"long", "all"}
    assert result.evaluations >= len(seen) and result.modes > 0
    assert np.all((result.permeability >= 0.01 - 1e-12) & (result.permeability <= 100 + 1e-9))
    acquisition = signals.acquisition
    scale = np.array([signals.magnitude[(acquisition.waveform_index == index)
                                        & (acquisition.b == 0)].mean()
                      for index in acquisition.waveform_index])
    residual = result.predicted.magnitude / scale - signals.normalised
    assert np.mean(residual**2) == pytest.approx(result.data_misfit, rel=0.2, abs=1e-8)
    assert {"total", "forward", "gradient", "final signals"} <= set(result.seconds)
    assert np.array_equal(result.tissue.permeability.values, result.permeability)


def test_the_truth_is_a_solution():
    facets = grid()
    exact = truth(facets).values
    result = reconstruct(facets, measured(facets), [ten(stop_at=1e-6)], start=exact,
                         boundary="absorbing")
    assert result.data_misfit < 1e-6 and result.endings["ten"].startswith("data misfit below")
    assert np.allclose(result.permeability, exact, rtol=1e-9)


def test_a_reflecting_boundary_stays_closed():
    facets = grid()
    signals = measured(facets, outer=0.0, directions=3)
    result = reconstruct(facets, signals, [ten(priors={"continuity": 0.1})],
                         boundary="reflecting", modes=60)
    assert np.all(result.permeability[facets.outer] == 0.0)
    assert np.all(result.permeability[~facets.outer] >= 0.01 - 1e-12)
    assert np.array_equal(result.unknown, ~facets.outer)
    assert result.history[-1].data < result.history[0].data


def test_adam_with_priors_and_callbacks():
    facets = grid()
    iterations, ends = [], []

    class Noted(Saver):
        def within(self, number, iteration, state, memory):
            iterations.append((number, iteration, state.permeability))

        def after(self, number, state):
            ends.append((number, state.permeability))

    stage = Stage("published", iterations=12, control="squashed", optimiser=Adam(0.6, 3, 12),
                  priors={"continuity": 2.0, "manifold": (0.0, 1.0), "binarisation": 0.1})
    result = reconstruct(facets, measured(facets, directions=3), [stage], boundary="absorbing",
                         modes=60, ledger=Ledger(saver=Noted()))
    assert [entry[:2] for entry in iterations] == [(0, i) for i in range(12)]
    assert set(result.history[0].priors) == {"continuity", "manifold", "binarisation"}
    assert result.history[-1].loss < result.history[0].loss
    assert ends[0][0] == 0 and np.array_equal(ends[0][1], result.permeability)
    # on every rank the facet values are copies, not views of what changes
    assert not np.array_equal(iterations[0][2], iterations[-1][2])


@pytest.mark.parametrize("fail_at", [{5}, {5, 6}, set(range(5, 1000))])
@pytest.mark.parametrize("optimiser", [TAO(), Adam()])
def test_an_engine_that_fails(monkeypatch, fail_at, optimiser):
    """The stage goes on, or ends where it was; the final signals are computed all the same."""
    facets = grid()
    signals = measured(facets, directions=1)
    calls = [0]
    solve = MatrixFormalism.signals

    def sometimes(self, permeability=None, remember=False):
        if remember:
            calls[0] += 1
            if calls[0] in fail_at:
                raise SolverError("eigenproblem: 3 of 96 modes converged")
        return solve(self, permeability, remember)

    monkeypatch.setattr(MatrixFormalism, "signals", sometimes)
    result = reconstruct(facets, signals, [ten(optimiser=optimiser)], modes=60,
                         boundary="absorbing")
    assert calls[0] >= 5 and np.all(np.isfinite(result.permeability))
    assert result.endings["ten"] and np.isfinite(result.data_misfit)


def test_a_first_solve_that_fails_is_an_error(monkeypatch):
    facets = grid()
    signals = measured(facets, directions=1)

    def never(self, permeability=None, remember=False):
        raise SolverError("eigenproblem: 0 of 60 modes converged")

    monkeypatch.setattr(MatrixFormalism, "signals", never)
    with pytest.raises(SolverError, match="0 of 60 modes"):
        reconstruct(facets, signals, [ten()], modes=60)


def test_time_stepping_reconstructs_too():
    facets = mesh.build(mesh.box, [6.0, 5.0, 4.0], cells=(1, 1, 1), comm=MPI.COMM_SELF)
    kappa = np.where(facets.outer, 0.02, 0.1)
    acquisition = Acquisition.pgse(b=[0, 2000], directions=2, delta=2, Delta=5)
    signals = simulate(Tissue(facets, permeability=Permeability(facets, kappa)), acquisition,
                       "time_stepping", time_step=1.0)
    result = reconstruct(facets, signals, [ten()], engine="time_stepping", time_step=1.0,
                         boundary="absorbing")
    assert result.data_misfit < 0.1 * result.history[0].data and result.modes == 0


@pytest.mark.mpi
def test_facets_with_a_term_of_ones_own(comm):
    """The truth is a solution with the term, and not without; from afar it gets nearer."""
    facets = grid(comm)

    def relaxing(m, v, t, c):
        return c["rate"] * ufl.inner(m, v) * c.dx + c["rho"] * ufl.inner(m, v) * c.ds

    terms = {"extra_terms": relaxing, "extra_coefficients": {"rate": 0.02, "rho": 0.03}}
    exact = truth(facets).values
    acquisition = measured(facets, directions=2, modes=60).acquisition
    signals = simulate(Tissue(facets, permeability=Permeability(facets, exact)), acquisition,
                       modes=60, **terms)
    common = {"boundary": "absorbing", "modes": 60}
    found = reconstruct(facets, signals, [ten(stop_at=1e-6)], start=exact, **common, **terms)
    assert found.data_misfit < 1e-6
    without = reconstruct(facets, signals, [Stage("one", iterations=1)], start=exact, **common)
    assert without.history[0].data > 1e-5
    far = reconstruct(facets, signals, [ten()], **common, **terms)
    assert far.history[-1].data < 0.5 * far.history[0].data
