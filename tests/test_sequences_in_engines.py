"""Both engines against solvers that know no finite elements, for all kinds of waveforms."""

from __future__ import annotations

import numpy as np
import pytest
from collocation import Stack
from mpi4py import MPI

from spinverse import BlochTorrey, Permeability, Tissue
from spinverse.acquisition import (
    PGSE,
    Acquisition,
    CosOGSE,
    DoublePGSE,
    Sampled,
    SampledGradient,
    SinOGSE,
    TrapezoidPGSE,
)
from spinverse.mesh import box, build, intervals, slabs
from spinverse.simulate import ENGINES, make_engine
from spinverse.validation import analytic

B = [0, 1000, 4000]
UNEVEN = Stack((3.0, 5.0, 9.0), (0.05, 0.5), (1.0, 2.0, 3.0), (30.0, 60.0, np.inf))


def smooth_noise(end=30.0, samples=121, terms=6) -> tuple[np.ndarray, np.ndarray]:
    """Times and values of a random sum of sines whose integral is zero."""
    t = np.linspace(0.0, end, samples)
    weights = np.random.default_rng(1).normal(size=terms)
    sines = np.sin(np.pi * np.arange(1, terms + 1)[:, None] * t / end)
    areas = np.trapezoid(sines, t, axis=1)
    weights[0] -= weights @ areas / areas[0]
    return t, weights @ sines / np.abs(weights @ sines).max()


SEQUENCES = {
    "pgse": PGSE(5, 20), "pgse short": PGSE(2.5, 5), "pgse long": PGSE(10, 60),
    "late echo": PGSE(5, 20, 40.0), "trapezoid": TrapezoidPGSE(5, 20, 1.5),
    "parallel": DoublePGSE(4, 15, 6), "antiparallel 0": DoublePGSE(4, 15, 0, False),
    "antiparallel 4": DoublePGSE(4, 15, 4, False),
    "antiparallel 20": DoublePGSE(4, 15, 20, False, echo_time=60.0),
    "cos 2": CosOGSE(10, 20, 2), "cos 8": CosOGSE(20, 25, 8), "sin 3": SinOGSE(12, 20, 3),
    "sin 8": SinOGSE(20, 25, 8), "cos 4 late": CosOGSE(20, 25, 4, echo_time=60.0),
    "noise": Sampled(*map(tuple, smooth_noise()), echo_time=40.0),
    "one 180": Sampled((0, 1, 6, 7, 13, 14, 19, 20), (0, 1, 1, 0, 0, 1, 1, 0),
                       refocusing_times=(10,), echo_time=45.0),
    "uneven 180": Sampled((0, 1, 6, 7, 17, 18, 20.5, 21.5), (0, 1, 1, 0, 0, 12 / 7, 12 / 7, 0),
                          refocusing_times=(12,), echo_time=35.0),
}
SLOW = {"cos 2", "cos 8", "sin 3", "sin 8", "cos 4 late", "noise"}  # a factor each time step


def problem_of(stack: Stack, per_um=4.0, degree=2, comm=MPI.COMM_SELF, builder=intervals,
               **options) -> BlochTorrey:
    """The stack on the x axis, or in three dimensions."""
    mesh = build(builder, stack.thicknesses,
                 cells_per_layer=[round(per_um * L) for L in stack.thicknesses], comm=comm,
                 **options)
    tags = range(1, len(stack.thicknesses) + 1)

    def each(value):
        values = np.broadcast_to(value, len(tags)).tolist()
        return dict(zip(tags, values, strict=True))

    kappa = dict(zip(tags, stack.permeabilities, strict=False))
    return BlochTorrey(Tissue(
        mesh, each(stack.diffusivity), each(stack.T2), each(stack.density),
        Permeability.on(mesh, membrane=kappa) if kappa else np.inf,
        interface="equilibrium" if stack.equilibrium else "plain"), degree)


def solved(problem, acquisition, engine, tolerance) -> np.ndarray:
    found = make_engine(problem, acquisition, engine, tolerance=tolerance).signals()
    return found / problem.magnetisation_at_start


@pytest.mark.parametrize("name", SEQUENCES)
def test_uneven_stack(name):
    """D and T2 by layer, no mirror symmetry: signals are complex."""
    acquisition = Acquisition.product([SEQUENCES[name]], B, [[1.0, 0, 0]])
    # steps for each smooth interval, of which samples and many periods make many
    exact = UNEVEN.signals(acquisition, 3 if name == "noise" else 30 if name in SLOW else 60)
    problem = problem_of(UNEVEN, per_um=3)
    found = solved(problem, acquisition, "matrix_formalism", 1e-5)
    assert np.abs(found - exact).max() < 2e-5
    tolerance = 1e-3 if name in SLOW else 5e-5
    found = solved(problem, acquisition, "time_stepping", tolerance)
    assert np.abs(found - exact).max() < 1.5 * tolerance


@pytest.mark.parametrize("kappa", [0.01, 0.1, 1.0, np.inf])
def test_permeabilities_on_ordinary_elements(kappa):
    """1e-5 to 1e-3 m/s and none: P1 with four cells per um."""
    stack = Stack((3.0, 5.0, 9.0), (kappa, 2 * kappa), (1.0, 2.0, 3.0), (30.0, 60.0, np.inf))
    acquisition = Acquisition.product(
        [PGSE(5, 6), PGSE(10, 60), DoublePGSE(4, 15, 4, False)], B, [[1.0, 0, 0]])
    found = solved(problem_of(stack, degree=1), acquisition, "matrix_formalism", 1e-5)
    assert np.abs(found - stack.signals(acquisition)).max() < 5e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_sign_of_the_imaginary_part(engine):
    """m' = -i g x m: antiparallel pairs in an uneven stack, far from zero, of both directions."""
    waveform = DoublePGSE(4, 15, 4, False)
    acquisition = Acquisition.product([waveform], [800.0], [[1.0, 0, 0], [-1.0, 0, 0]])
    stack = Stack((3.0, 9.0), (0.2,), (1.0, 3.0), (20.0, np.inf))
    exact = stack.signals(acquisition)
    found = solved(problem_of(stack), acquisition, engine, 3e-5)
    assert np.abs(exact.imag).min() > 2e-3 and exact[0] == pytest.approx(exact[1].conj())
    assert np.abs(found - exact).max() < 6e-5


@pytest.mark.mpi
def test_complex_signals_in_three_dimensions(comm):
    """The engines agree with the line, and with each other, on any number of ranks."""
    acquisition = Acquisition.product([DoublePGSE(4, 15, 4, False)], [0, 2000], [[1.0, 0, 0]])
    problem = problem_of(UNEVEN, per_um=2, degree=1, comm=comm, builder=slabs, width=1.0)
    exact = UNEVEN.signals(acquisition)
    one = solved(problem, acquisition, "matrix_formalism", 1e-6)
    two = solved(problem, acquisition, "time_stepping", 3e-5)
    assert np.abs(one - exact).max() < 1e-3 and np.abs(one - two).max() < 6e-5


# ---- gradients whose direction varies -----------------------------------------------------------

def rotating(end=16.0, samples=65) -> SampledGradient:
    """Turns in all three directions under a window, refocused along each axis."""
    t = np.linspace(0.0, end, samples)
    window = np.sin(np.pi * t / end) ** 2
    f = np.column_stack([window * np.cos(4 * np.pi * t / end), window * np.sin(4 * np.pi * t / end),
                         window * np.sin(6 * np.pi * t / end)])
    f -= np.outer(window, np.trapezoid(f, t, axis=0) / np.trapezoid(window, t))
    return SampledGradient(tuple(t), tuple(map(tuple, f)))


def orthogonal() -> DoublePGSE:
    return DoublePGSE(3, 10, 5, directions=((1.0, 0, 0), (0, 0.6, 0.8)))


def overlapping() -> DoublePGSE:
    """Second and third pulse at once: a gradient along the diagonal."""
    return DoublePGSE(3, 10, 0, False, directions=((1.0, 0, 0), (0, 1.0, 0)))


@pytest.mark.parametrize("waveform, steps", [
    (orthogonal(), 0), (overlapping(), 0), pytest.param(rotating(), 8, marks=pytest.mark.slow)],
    ids=["orthogonal", "overlapping", "rotating"])
def test_a_box_is_the_product_of_its_sides(waveform, steps):
    sides = (6.0, 4.0, 5.0)
    mesh = build(box, sides, cells=(4, 3, 3), comm=MPI.COMM_SELF)
    problem = BlochTorrey(Tissue(mesh, T2=50.0), 2)
    acquisition = Acquisition.product([waveform], [500.0, 2000.0])
    exact = np.exp(-waveform.echo_time / 50.0) * np.ones(2, complex)
    for axis, side in enumerate(sides):
        turn = np.roll(np.eye(3), -axis, axis=0)  # that axis to x
        for row, strength in enumerate(acquisition.strength):
            exact[row] *= Stack((side,)).signal(_Turned(waveform, turn), strength, steps)
    for engine, tolerance in (("matrix_formalism", 1e-4), ("time_stepping", 1e-3)):
        found = solved(problem, acquisition, engine, tolerance)
        assert np.abs(found - exact).max() < 1e-3 + tolerance


class _Turned:
    """A vector waveform in turned axes."""

    vector = True

    def __init__(self, waveform, turn):
        self.breakpoints, self._f, self._turn = waveform.breakpoints, waveform, turn
        self.stored = waveform.stored

    def __call__(self, t):
        return self._f(t) @ self._turn.T


# ---- layers of spheres and cylinders: see test_accuracy.py for D and T2 by layer -----------------

def test_the_layer_solver_agrees_with_collocation():
    """Two independent references: polynomials in a weak form, and points."""
    acquisition = Acquisition.product([PGSE(5, 20)], B, [[1.0, 0, 0]])
    exact = analytic.slabs(B, 5, 20, UNEVEN.thicknesses, UNEVEN.permeabilities,
                           UNEVEN.diffusivity, UNEVEN.T2)
    np.testing.assert_allclose(UNEVEN.signals(acquisition), exact, atol=1e-9)


@pytest.mark.parametrize("waveform", [CosOGSE(10, 20, 2), SinOGSE(12, 20, 3)],
                         ids=lambda w: w.name)
def test_collocation_is_of_fourth_order_in_time(waveform):
    acquisition = Acquisition.product([waveform], [1000.0], [[1.0, 0, 0]])
    values = [UNEVEN.signals(acquisition, steps)[0] for steps in (10, 20, 40)]
    assert abs(values[2] - values[1]) < abs(values[1] - values[0]) / 12
