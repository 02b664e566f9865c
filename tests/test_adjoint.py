"""The tape: gradients of whole reconstruction losses, both engines."""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI
from pyadjoint import (
    Control,
    ReducedFunctional,
    Tape,
    continue_annotation,
    pause_annotation,
    set_working_tape,
)

from spinverse import BlochTorrey, Permeability, Tissue, mesh
from spinverse.acquisition import Acquisition, Sampled
from spinverse.adjoint import FacetField, mapped, scalar, simulated_signals, taylor_rate
from spinverse.adjoint.blocks import EngineOperation
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.inversion.facets.controls import CONTROLS, FromLog
from spinverse.inversion.facets.facet_graph import FacetGraph
from spinverse.inversion.facets.priors import PRIORS
from spinverse.inversion.likelihood import Likelihood

ENGINES = ("matrix_formalism", "time_stepping")


def make(comm=MPI.COMM_SELF, cells=(2, 1, 1), density=True) -> BlochTorrey:
    """A box without symmetry in its coefficients; 12 cells, 48 unknowns."""
    box = mesh.build(mesh.box, [9.0, 6.0, 5.0], cells=cells, comm=comm)
    wave = np.sin(box.facet_vertices @ np.array([1.3, 2.9, 0.7]))
    cell = np.arange(box.num_cells)
    tissue = Tissue(box, diffusivity=2 + 0.5 * np.cos(cell), T2=60.0,
                    density=1 + 0.4 * np.cos(2 * cell) if density else 1.0,
                    permeability=Permeability(box, 10.0 ** (-0.5 + 0.8 * wave)))
    return BlochTorrey(tissue)


def pgse() -> Acquisition:
    return Acquisition.pgse(b=[0, 1500], directions=[[0.6, 0.0, 0.8], [-0.48, 0.8, 0.36]],
                            delta=3.0, Delta=5.0)


def refocused() -> Acquisition:
    """A strong lobe against a weak one that is twice as long, and a rest at the end."""
    waveform = Sampled((0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 8.0), (0.0, 1.0, 0.0, 0.0, -0.5, 0.0, 0.0))
    return Acquisition.product([waveform], [800.0, 2500.0], [[0.6, 0.0, 0.8]])


def engine_of(name, problem, acquisition, step=1.0):
    if name == "time_stepping":
        return TimeStepping(problem, acquisition, step)
    return MatrixFormalism(problem, acquisition, modes=problem.num_unknowns)


def functional(problem, engine, control="log", priors=PRIORS):
    """J(control), and the control at which it is taped: misfit and all priors."""
    facets = problem.mesh
    unknown = ~facets.outer | (facets.facet_vertices.sum(axis=1) % 2 == 0)
    fixed = np.full(facets.num_owned_facets, 0.02)
    kappa = problem.tissue.permeability.values
    signals = engine.signals(kappa)
    kind = CONTROLS[control](0.001, 100.0)
    misfit = Likelihood(0.8 * np.abs(signals) / 50.0 + 0.02, np.full(len(signals), 50.0),
                        weights=1 + 0.5 * np.sin(np.arange(len(signals))))
    graph = FacetGraph(facets, unknown)
    set_working_tape(Tape())
    continue_annotation()
    try:
        start = FacetField(facets, kind.control(kappa))
        z = mapped(start, kind)
        predicted = simulated_signals(mapped(z, FromLog(unknown, fixed)), engine)
        loss = scalar(predicted, misfit)
        for name in priors:
            loss = loss + scalar(z, PRIORS[name](graph))
    finally:
        pause_annotation()
    return ReducedFunctional(loss, Control(start)), start


# ---- Taylor tests -------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("name", ENGINES)
def test_taylor_of_a_whole_loss(comm, name):
    problem = make(comm, cells=(1, 1, 1))
    # the gate of the continuity prior is not differentiated: see test_priors
    few = pgse().select([2])  # little to solve: ranks may outnumber the cores
    J, start = functional(problem, engine_of(name, problem, few, 2.0),
                          priors=("manifold", "binarisation"))
    assert taylor_rate(J, start, steps=2) > 1.9


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("acquisition", [pgse, refocused])
@pytest.mark.parametrize("density", [True, False])
def test_taylor_of_the_misfit(name, control, acquisition, density):
    problem = make(density=density)
    engine = engine_of(name, problem, acquisition())
    J, start = functional(problem, engine, control, priors=())
    assert taylor_rate(J, start) > 1.9


def test_taylor_rate_sees_a_wrong_derivative():
    class Wrong:
        def value(self, x):
            return float(np.sum(x**3))

        def pull_back(self, x, adjoint):
            return adjoint * 3.1 * x**2

    box = mesh.build(mesh.box, [1.0, 1, 1], cells=(1, 1, 1), comm=MPI.COMM_SELF)
    field = FacetField(box, np.linspace(1, 2, box.num_owned_facets))
    set_working_tape(Tape())
    continue_annotation()
    try:
        loss = scalar(field, Wrong())
    finally:
        pause_annotation()
    assert taylor_rate(ReducedFunctional(loss, Control(field)), field) < 1.2


def test_signals_of_a_waveform_without_symmetry_are_complex():
    problem = make()
    for name in ENGINES:
        signals = engine_of(name, problem, refocused()).signals()
        assert np.abs(signals.imag).max() > 1e-3 * np.abs(signals).max()


def test_derivative_of_real_and_imaginary_parts():
    problem = make()
    kappa = problem.tissue.permeability.values
    along = np.sin(1 + np.arange(len(kappa))) * kappa
    for name in ENGINES:
        engine = engine_of(name, problem, refocused())
        for w in ([1.0, 0.0], [1j, 0.0], [0.3 - 2j, 0.7 + 0.1j]):
            w = np.array(w, dtype=complex)
            engine.signals(kappa, remember=True)
            slope = engine.gradient(w) @ along
            h = 1e-4
            moved = [(w.conj() @ engine.signals(kappa + s * h * along)).real for s in (1, -1)]
            assert (moved[0] - moved[1]) / (2 * h) == pytest.approx(slope, rel=1e-6, abs=1e-7)


# ---- the two engines ----------------------------------------------------------------------------


def test_engines_have_the_same_gradient_as_steps_shrink():
    problem = make()
    gradients = {}
    for step in (None, 0.1, 0.05):
        engine = engine_of("time_stepping" if step else "matrix_formalism", problem, pgse(), step)
        J, _ = functional(problem, engine, priors=())
        gradients[step] = J.derivative().values
    exact = gradients.pop(None)
    errors = [np.linalg.norm(g - exact) / np.linalg.norm(exact) for g in gradients.values()]
    assert errors[1] < 1e-3
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_gradient_converges_with_the_number_of_modes():
    problem = make(cells=(2, 2, 2))
    size = problem.num_unknowns
    w = np.array([0.2, 0.4, -1.0, 0.5 + 0.5j])
    gradients = []
    for modes in (size // 8, size // 4, size // 2, size):
        engine = MatrixFormalism(problem, pgse(), modes=modes)
        engine.signals(remember=True)
        gradients.append(engine.gradient(w))
    errors = [np.linalg.norm(g - gradients[-1]) / np.linalg.norm(gradients[-1])
              for g in gradients[:-1]]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.03


# ---- the tape -----------------------------------------------------------------------------------


class Spy:
    """An engine that counts its forward solves."""

    def __init__(self, engine):
        self.engine, self.problem, self.calls = engine, engine.problem, 0

    def signals(self, permeability=None, remember=False):
        self.calls += 1
        return self.engine.signals(permeability, remember)

    def gradient(self, adjoint):
        return self.engine.gradient(adjoint)


@pytest.mark.parametrize("name", ENGINES)
def test_engine_is_run_again_only_if_it_was_elsewhere(name):
    problem = make()
    kappa = problem.tissue.permeability.values
    spy = Spy(engine_of(name, problem, pgse()))
    operation = EngineOperation(spy)
    w = np.array([0.2, 0.4, -1.0, 0.5 + 0.5j])
    operation.value(kappa)
    here = operation.pull_back(kappa, w)
    assert spy.calls == 1
    operation.value(2 * kappa)
    assert np.allclose(operation.pull_back(kappa, w), here, rtol=1e-9, atol=1e-12)
    assert spy.calls == 3
    there = operation.pull_back(2 * kappa, w)
    assert spy.calls == 4
    assert not np.allclose(there, here, rtol=1e-3)


def test_engine_is_run_again_after_a_failure():
    problem = make()
    kappa = problem.tissue.permeability.values
    spy = Spy(engine_of("matrix_formalism", problem, pgse()))
    operation = EngineOperation(spy)
    operation.value(kappa)
    before = spy.engine.signals

    def failing(*_):
        raise RuntimeError("no")

    spy.engine.signals = failing
    with pytest.raises(RuntimeError):
        operation.value(2 * kappa)
    spy.engine.signals = before
    assert operation._last is None
    operation.pull_back(kappa, np.ones(4, complex))
    assert spy.calls == 3


@pytest.mark.mpi
def test_facet_field_goes_to_petsc_and_back(comm):
    box = mesh.build(mesh.box, [2.0, 1, 1], cells=(2, 1, 1), comm=comm)
    field = FacetField(box, box.facet_vertices.sum(axis=1))
    vec = field._ad_to_petsc()
    assert vec.getSize() == box.num_facets == field._ad_dim()
    assert vec.norm() ** 2 == pytest.approx(field._ad_dot(field))
    other = field._ad_init_zero()
    other._ad_from_petsc(vec)
    assert np.array_equal(other.values, field.values)
    other += field._ad_mul(2.0)
    assert np.array_equal(other.values, 3 * field.values)
    assert np.array_equal(field.function.x.array[: len(field)], field.values)
