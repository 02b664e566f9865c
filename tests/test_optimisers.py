"""Gauss-Newton on facets, and stages that are interrupted and go on."""

from __future__ import annotations

import re

import numpy as np
import pytest
from mpi4py import MPI
from pyadjoint import Control, Tape, continue_annotation, pause_annotation, set_working_tape

from spinverse import BlochTorrey, InputError, Permeability, SolverError, Tissue, config, mesh
from spinverse.acquisition import Acquisition
from spinverse.adjoint import FacetField, mapped, scalar, simulated_signals
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.inversion import TAO, Adam, GaussNewton, State
from spinverse.inversion.facets.controls import CONTROLS, FromLog
from spinverse.inversion.facets.facet_graph import FacetGraph
from spinverse.inversion.facets.gauss_newton import Linearisation, Linearised, bounded_step
from spinverse.inversion.facets.memory import Keeper, Memory
from spinverse.inversion.facets.optimise import BacktrackingFunctional, StopStage, minimise
from spinverse.inversion.facets.priors import PRIORS
from spinverse.inversion.likelihood import Likelihood, references
from spinverse.mesh import Ball
from spinverse.report import folder

LOW, HIGH = 0.01, 100.0
OPTIMISERS = {"adam": Adam(0.3, warm_up=3, cycle=8), "blmvm": TAO(), "bqnls": TAO("bqnls"),
              "bncg": TAO("bncg"), "gauss_newton": GaussNewton(damping=1.0)}


class Weighted:
    """A term of the loss with its weight."""

    def __init__(self, operation, weight):
        self.operation, self.weight = operation, weight

    def value(self, x):
        return self.weight * self.operation.value(x)

    def pull_back(self, x, adjoint):
        return self.operation.pull_back(x, self.weight * adjoint)


class Small:
    """A ball in a grid of 48 cells, with all that a stage needs.

    Walls start at three times what they are, the rest at a third.
    """

    def __init__(self, comm=MPI.COMM_SELF, control="log", priors=(), own=False, weight=100.0,
                 modes=60, directions=6):
        self.mesh = mesh.build(mesh.tagged_grid, Ball(radius=3.0), 10.0, cells=2, comm=comm)
        acquisition = Acquisition.pgse(b=[0, 1000, 3000], directions=directions, delta=[3, 3],
                                       Delta=[5, 20])
        self.true = Permeability.on(self.mesh, 0.02, 30.0, outer=30.0).values
        problem = BlochTorrey(Tissue(self.mesh, permeability=Permeability(self.mesh, self.true)))
        self.engine = MatrixFormalism(problem, acquisition, modes=modes)
        found = np.abs(self.engine.signals())
        ones = references(acquisition)
        scale = ones @ found
        weights = 1 + 0.5 * np.sin(np.arange(len(found)))
        self.misfit = Likelihood(found / scale, scale, ones if own else None, weights=weights)
        self.type = CONTROLS[control](LOW, HIGH)
        unknown = np.ones(self.mesh.num_owned_facets, dtype=bool)
        if own:
            unknown = self.mesh.facet_vertices.sum(axis=1) % 7 > 0
        self.from_log = FromLog(unknown, self.true)
        graph = FacetGraph(self.mesh, unknown) if priors else None
        self.priors = [Weighted(PRIORS[name](graph), 0.3) for name in priors]
        start = np.where(self.true < 1, 3 * self.true, self.true / 3)
        self.start = FacetField(self.mesh, np.where(unknown, self.type.control(start), 0.0))
        set_working_tape(Tape())
        continue_annotation()
        z = mapped(self.start, self.type)
        loss = scalar(simulated_signals(mapped(z, self.from_log), self.engine),
                      Weighted(self.misfit, weight))
        for prior in self.priors:
            loss = loss + scalar(z, prior)
        pause_annotation()
        self.functional = BacktrackingFunctional(loss, Control(self.start))
        self.linearisation = Linearisation(self.engine, self.misfit, self.type, self.from_log,
                                           weight, self.priors)

    def run(self, optimiser, iterations, earlier=None, until=None):
        """Controls after each iteration by number, where it ended, why, and the memory there."""
        keeper, seen, losses = Keeper(earlier), {}, []

        def monitor(iteration, loss, norm, step):
            seen[iteration] = keeper.memory().facets["control"].copy()
            losses.append(loss)
            if iteration == until:
                raise StopStage("power cut")

        result, why = minimise(optimiser, "test", iterations, self.functional, self.start,
                               self.type.bounds, monitor, keeper, self.linearisation)
        return seen, result.values, why, keeper.memory(), losses


# ---- Gauss-Newton -------------------------------------------------------------------------------


@pytest.mark.parametrize("control, own", [("log", False), ("squashed", True)])
def test_linearisation_is_the_derivative_of_the_loss(control, own):
    small = Small(control=control, own=own, priors=("continuity", "manifold", "binarisation"))
    v = small.start.values
    model = small.linearisation(v)
    loss = float(small.functional(small.start))
    expected = small.functional.derivative().values
    assert np.allclose(model.gradient, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())
    priors = sum(p.value(small.type.value(v)) for p in small.priors)
    assert model.residual @ model.residual == pytest.approx(loss - priors, rel=1e-12)
    assert model.prior_curvature.min() >= 0 < model.prior_curvature.max()
    assert not model.jacobian[:, ~small.from_log.unknown].any()
    # columns against differences, with all modes there are so that the basis does not matter
    small = Small(control=control, own=own, modes=384)
    v = small.start.values
    model, h = small.linearisation(v), 2e-4
    for facet in np.flatnonzero(small.from_log.unknown)[::80]:
        e = h * np.eye(len(v))[facet]
        difference = (small.linearisation(v + e).residual
                      - small.linearisation(v - e).residual) / (2 * h)
        assert np.allclose(model.jacobian[:, facet], difference, rtol=1e-5,
                           atol=1e-6 * np.abs(model.jacobian).max())


def model_of(N, nf, seed=0) -> Linearised:
    rng = np.random.default_rng(seed)
    return Linearised(rng.normal(size=N), rng.normal(size=(N, nf)), rng.normal(size=nf),
                      rng.uniform(size=nf))


@pytest.mark.parametrize("N, nf", [(8, 30), (30, 8)])
def test_step_without_bounds_solves_the_normal_equations(N, nf):
    model, damping = model_of(N, nf), np.full(nf, 0.1)
    far = np.full(nf, 1e3)
    d, fall = bounded_step(MPI.COMM_SELF, model, damping, -far, far)
    matrix = 2 * model.jacobian.T @ model.jacobian + np.diag(model.prior_curvature + damping)
    assert np.allclose(matrix @ d, -model.gradient, atol=1e-9 * np.abs(model.gradient).max())
    quadratic = matrix - np.diag(damping)
    assert fall == pytest.approx(-(model.gradient @ d + 0.5 * d @ quadratic @ d))


@pytest.mark.parametrize("seed", range(5))
def test_step_within_bounds_is_optimal(seed):
    nf = 40
    model, damping = model_of(12, nf, seed), np.full(nf, 1e-2)
    lower, upper = np.full(nf, -0.1), np.full(nf, 0.2)
    lower[:5] = 0.0  # facets that stand at a bound
    upper[5:8] = lower[5:8] = 0.0  # and such that are known
    d, _ = bounded_step(MPI.COMM_SELF, model, damping, lower, upper)
    assert np.all((d >= lower) & (d <= upper))
    matrix = 2 * model.jacobian.T @ model.jacobian + np.diag(model.prior_curvature + damping)
    slope = matrix @ d + model.gradient
    projected = d - np.clip(d - slope, lower, upper)  # zero where Karush, Kuhn, Tucker hold
    assert np.abs(projected).max() < 1e-8
    assert np.count_nonzero((d == lower) | (d == upper)) > 8  # the bounds mattered


@pytest.mark.mpi
def test_step_is_the_same_on_any_number_of_ranks(comm):
    model, damping = model_of(10, 60), np.full(60, 1e-2)
    lower, upper = np.full(60, -0.1), np.full(60, 0.1)
    expected, fall = bounded_step(MPI.COMM_SELF, model, damping, lower, upper)
    mine = np.array_split(np.arange(60), comm.size)[comm.rank]
    part = Linearised(model.residual, model.jacobian[:, mine], model.prior_gradient[mine],
                      model.prior_curvature[mine])
    d, same = bounded_step(comm, part, damping[mine], lower[mine], upper[mine])
    assert np.allclose(d, expected[mine], atol=1e-10) and same == pytest.approx(fall)


@pytest.mark.parametrize("control", CONTROLS)
def test_gauss_newton_converges_from_near_the_solution(control):
    small = Small(control=control)
    seen, reached, why, memory, losses = small.run(GaussNewton(), 8)
    assert losses[-1] < 1e-8 * losses[0]
    assert np.all(np.diff(losses) < 0)
    assert memory.iteration == max(seen) == len(losses) - 1
    assert np.array_equal(memory.facets["control"], reached)
    quasi = small.run(TAO(), len(losses) - 1)[4]
    assert losses[-1] < 1e-4 * quasi[-1]


def test_gauss_newton_with_priors_lowers_the_loss_and_stays_in_bounds():
    small = Small(priors=("continuity", "manifold"))
    _, reached, why, _, losses = small.run(GaussNewton(), 15)
    assert losses[-1] < 0.5 * losses[0] and np.all(np.diff(losses) < 0)
    assert reached.min() >= np.log10(LOW) and reached.max() <= np.log10(HIGH)


def test_gauss_newton_says_why_it_ends():
    small = Small()
    assert small.run(GaussNewton(), 2)[2] == "iteration limit"
    assert small.run(GaussNewton(), 50, until=3)[2] == "power cut"
    assert small.run(GaussNewton(tolerance=1e3), 5)[2] == "gradient small enough"
    assert small.run(GaussNewton(least_gain=2.0), 9)[2] == "no longer improving"
    assert len(small.run(GaussNewton(least_gain=2.0), 9)[4]) == 3
    with pytest.raises(InputError, match="needs the matrix formalism"):
        minimise(GaussNewton(), "test", 50, small.functional, small.start, small.type.bounds,
                 lambda *_: None)


def test_a_failed_solve_raises_the_damping(monkeypatch):
    small, signals, calls = Small(), MatrixFormalism.signals, []

    def breaks(self, permeability=None, remember=False):
        calls.append(permeability)
        if len(calls) in (2, 3):  # the first two steps
            raise SolverError("no eigenvalues")
        return signals(self, permeability, remember)

    monkeypatch.setattr(MatrixFormalism, "signals", breaks)
    _, _, _, _, losses = small.run(GaussNewton(), 2)
    assert len(losses) == 3 and losses[1] < losses[0] and small.functional.failures == 2
    lengths = [np.abs(np.log10(k) - np.log10(calls[0])).sum() for k in calls[1:4]]
    assert lengths[0] > lengths[1] > lengths[2]

    def breaks_after_the_first(*args, **kwargs):
        calls.append(0)
        if len(calls) > 1:
            raise SolverError("no eigenvalues")
        return signals(*args, **kwargs)

    monkeypatch.setattr(MatrixFormalism, "signals", breaks_after_the_first)
    calls.clear()
    _, reached, why, _, losses = small.run(GaussNewton(tries=3), 5)
    assert why == "no step of 3 dampings lowered the loss (the solver failed)"
    assert np.array_equal(reached, small.start.values) and len(losses) == 1


def test_gauss_newton_in_a_run_file():
    section = config.stages.StageSection.model_validate(
        {"name": "end", "optimiser": {"gauss_newton": {"damping": 0.5}}})
    assert section.stage().optimiser == GaussNewton(damping=0.5)


# ---- interrupted stages -------------------------------------------------------------------------

def smaller(comm=MPI.COMM_SELF):
    """Where iterates are compared, and not what they come to."""
    return Small(comm, modes=30, directions=2)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_interrupted_stage_goes_on_with_the_same_iterates(name, tmp_path):
    optimiser = OPTIMISERS[name]
    whole, reached, why, last, losses = smaller().run(optimiser, 10)
    assert len(whole) >= 8
    *_, memory, _ = smaller().run(optimiser, 10, until=4)
    assert memory.iteration == 4
    same = 1e-12

    small = smaller()  # what a new process has: the checkpoint
    folder.make(tmp_path / "run")
    folder.save_checkpoint(tmp_path / "run", small.mesh, State(small.true), 0, 4, ["test"], {},
                           memory)
    found = folder.load_checkpoint(tmp_path / "run", ["test"], {})
    earlier = Memory.scattered(small.mesh, found.memory)
    rest, again, why_again, last_again, _ = small.run(optimiser, 10, earlier)
    assert sorted(rest) == [i for i in sorted(whole) if i > 4]
    for iteration, control in rest.items():
        assert np.abs(control - whole[iteration]).max() <= same
    assert np.abs(again - reached).max() <= same and why_again == why
    assert last_again.numbers["losses"] == pytest.approx(losses, rel=same)
    # and once more, from a memory that has been through this
    *_, twice, _ = smaller().run(optimiser, 10, earlier, until=6)
    third, again, *_ = smaller().run(optimiser, 10, twice)
    assert min(third) == 7 and np.abs(again - reached).max() <= same


def test_without_its_memory_a_quasi_newton_stage_takes_another_way():
    """What the memory is for."""
    whole = smaller().run(TAO(), 8)[0]
    *_, memory, _ = smaller().run(TAO(), 8, until=4)
    bare = Memory(memory.optimiser, 4, {"before": np.array(0)},
                  {"control": memory.facets["control"]})
    small = smaller()
    rest, *_ = small.run(TAO(), 8, bare)
    assert sorted(rest) == [5, 6, 7, 8]
    assert np.abs(rest[8] - whole[8]).max() > 1e-3


def test_going_on_costs_no_solve_that_was_done():
    small = smaller()
    *_, memory, _ = small.run(TAO(), 10, until=5)
    calls, signals = [], small.engine.signals
    small.engine.signals = lambda *a, **k: calls.append(0) or signals(*a, **k)
    small.run(TAO(), 10, memory, until=6)
    assert 1 <= len(calls) <= 3


@pytest.mark.parametrize("name", OPTIMISERS)
def test_another_optimiser_goes_on_from_the_control(name):
    *_, memory, _ = smaller().run(Adam(0.1, warm_up=3), 9, until=3)
    small = smaller()
    seen, *_ = small.run(OPTIMISERS[name], 9, memory)
    assert min(seen) == 4 and max(seen) <= 9
    *_, again, _ = smaller().run(OPTIMISERS[name], 9, memory, until=6)
    rest, *_ = smaller().run(OPTIMISERS[name], 9, again)
    for iteration, control in rest.items():
        assert np.abs(control - seen[iteration]).max() <= 1e-12


def test_a_log_that_does_not_fit_is_noticed():
    *_, memory, _ = smaller().run(TAO(), 9, until=4)
    for spoilt in ({"kinds": 1 - memory.numbers["kinds"]},
                   {"values": memory.numbers["values"][::-1]}):
        seen, _, _, _, losses = smaller().run(TAO(), 9, Memory(
            memory.optimiser, 4, {**memory.numbers, **spoilt}, memory.facets))
        assert min(seen) == 5 and losses[-1] < memory.numbers["losses"][-1]


def test_a_log_that_grows_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr("spinverse.inversion.facets.memory.LARGEST_LOG", 4 * 8 * 216)
    *_, memory, _ = smaller().run(TAO(), 9, until=6)
    assert set(memory.facets) == {"control", "start"} and "kinds" not in memory.numbers
    seen, *_ = smaller().run(TAO(), 9, memory)
    assert min(seen) == 7


@pytest.mark.mpi
@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_memory_does_not_know_the_number_of_ranks(comm, shared_tmp_path, name):
    """Saved by all ranks, gone on with by one, and the other way round."""
    optimiser = OPTIMISERS[name]
    *_, memory, _ = smaller(comm).run(optimiser, 8, until=4)
    together = smaller(comm)
    if comm.rank == 0:
        (shared_tmp_path / "checkpoint").mkdir()
    comm.Barrier()
    folder.save_checkpoint(shared_tmp_path, together.mesh, State(together.true), 0, 4, ["test"],
                           {}, memory)
    comm.Barrier()
    saved = folder.load_checkpoint(shared_tmp_path, ["test"], {}).memory
    alone = smaller()
    rest, *_ = alone.run(optimiser, 8, Memory.scattered(alone.mesh, saved))
    mine, *_ = together.run(optimiser, 8, Memory.scattered(together.mesh, saved))
    assert sorted(rest) == sorted(mine) and min(rest) == 5
    where = alone.mesh.find_facets(together.mesh.facet_vertices)
    for iteration in rest:
        assert np.abs(rest[iteration][where] - mine[iteration]).max() < 1e-6


# ---- checkpoints --------------------------------------------------------------------------------


def checkpoint(place, iteration, memory=None, labels=None):
    small = mesh.build(mesh.tagged_grid, Ball(radius=5.0), 10.0, cells=1, comm=MPI.COMM_SELF)
    values = 0.5 * np.arange(small.num_owned_facets)
    folder.save_checkpoint(place, small, State(values, labels, {"rho": 0.5}), 0, iteration, ["a"],
                           {"mesh": "1"}, memory)
    return small, values


@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(tmp_path, damage):
    folder.make(tmp_path / "run")
    latest = tmp_path / "run" / folder.CHECKPOINT
    for iteration in (20, 40):
        checkpoint(tmp_path / "run", iteration)
    assert folder.load_checkpoint(tmp_path / "run", ["a"], {}).iteration == 40
    content = bytearray(latest.read_bytes())
    if damage == "cut":
        latest.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        content[len(content) // 3] ^= 1
        latest.write_bytes(content)
    else:
        latest.unlink()
    found = folder.load_checkpoint(tmp_path / "run", ["a"], {})
    assert found.iteration == 20
    assert "latest.npz" in found.note and "went on from previous.npz" in found.note
    assert "\n" not in found.note
    (latest.parent / folder.PREVIOUS).write_bytes(b"")
    with pytest.raises(InputError, match="latest.npz: cannot be read"):
        folder.load_checkpoint(tmp_path / "run", ["a"], {})


def test_a_checkpoint_has_the_compartments(tmp_path):
    folder.make(tmp_path / "run")
    small, values = checkpoint(tmp_path / "run", 3)
    assert folder.load_checkpoint(tmp_path / "run", ["a"], {"mesh": "1"}).labels is None
    labels = np.arange(small.num_cells, dtype=np.int32) % 3
    checkpoint(tmp_path / "run", 4, labels=labels)
    found = folder.load_checkpoint(tmp_path / "run", ["a"], {"mesh": "1"})
    assert np.array_equal(found.labels[small.input_cells[: small.num_owned_cells]], labels)
    assert found.memory is None and found.note == ""
    assert np.array_equal(small.scatter_facets(found.triples, found.permeability, "p"), values)


def test_bad_memories():
    small = smaller()
    with pytest.raises(InputError, match="no 'triples'"):
        Memory.scattered(small.mesh, {})
    saved = Memory("x", 1, {}, {"control": small.start.values}).in_slabs(small.mesh)
    with pytest.raises(InputError, match="facets have no value"):
        Memory.scattered(small.mesh, {**saved, "triples": saved["triples"][:-1]})


@pytest.mark.parametrize("kind", ["blmvm", "bqnls"])
def test_quasi_newton_remembers_what_it_is_told_to(kind, tmp_path):
    """PETSc says itself what its matrix keeps, so that an option it does not know would show."""
    for options, expected in (({}, 5), ({f"tao_{kind}_mat_lmvm_hist_size": 7}, 7)):
        view = tmp_path / f"{expected}.txt"
        smaller().run(TAO(kind, {**options, "tao_view": f":{view}"}), 3)
        found = re.findall(r"Max. storage: (\d+)", view.read_text())
        assert found and set(found) == {str(expected)}
