"""Densities that differ: what is at rest, what crosses a membrane, derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import ufl
from collocation import Stack
from mpi4py import MPI
from test_sequences_in_engines import problem_of, solved

from spinverse import BlochTorrey, Permeability, Tissue
from spinverse.acquisition import PGSE, Acquisition, DoublePGSE
from spinverse.errors import InputError
from spinverse.mesh import box, build, intervals, tagged_grid
from spinverse.mesh.shapes import Ball
from spinverse.quantities import mass_balance
from spinverse.simulate import ENGINES, make_engine, simulate

THICKNESSES, DENSITY = (3.0, 5.0, 4.0), (1.0, 0.3, 2.0)
MIXED = Acquisition.product([PGSE(4, 15), DoublePGSE(4, 12, 4, False)], [0, 1000, 3000],
                            [[1.0, 0, 0]])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("equilibrium", [True, False], ids=["equilibrium", "plain"])
@pytest.mark.parametrize("kappa", [(0.05, 0.4), (np.inf, 0.1), (np.inf, np.inf)])
def test_stacks_of_unequal_densities(engine, equilibrium, kappa):
    """T2 by layer, so that b = 0 sees how magnetisation has spread, and complex signals."""
    stack = Stack(THICKNESSES, kappa, (2.0, 1.0, 3.0), (20.0, np.inf, 60.0), DENSITY, equilibrium)
    exact = stack.signals(MIXED)
    found = solved(problem_of(stack), MIXED, engine, 5e-5)
    assert np.abs(found - exact).max() < 1.2e-4
    other = Stack(THICKNESSES, kappa, (2.0, 1.0, 3.0), (20.0, np.inf, 60.0), DENSITY,
                  not equilibrium).signals(MIXED)
    assert np.abs(other - exact).max() > 5e-3  # the two conventions are far apart


@pytest.mark.mpi
@pytest.mark.parametrize("elsewhere", [np.inf, 2.0])
def test_equilibrium_stays(comm, elsewhere):
    """Without gradient and relaxation nothing moves: in each compartment, at any time."""
    mesh = build(tagged_grid, Ball(radius=3.0), 10.0, cells=2, comm=comm)
    tissue = Tissue(mesh, {1: 1.0, 2: 2.0}, density={1: 0.6, 2: 1.5},
                    permeability=Permeability.on(mesh, membrane=0.2, elsewhere=elsewhere))
    start = BlochTorrey(tissue).magnetisation_at_start
    balance = mass_balance(tissue, [0.0, 5.0, 50.0], time_step=1.0)
    np.testing.assert_allclose(balance.total, start, rtol=1e-11)
    np.testing.assert_allclose(balance.by_compartment,
                               np.broadcast_to(balance.by_compartment[0],
                                               balance.by_compartment.shape), rtol=1e-10)
    for engine in ENGINES:
        late = Acquisition.pgse([0.0], 1, delta=5, Delta=200)
        assert solved(BlochTorrey(tissue), late, engine, 1e-6)[0] == pytest.approx(1, abs=1e-9)


def test_plain_densities_level_out_at_the_rate_of_exchange():
    """Thin layers mix at once: the difference decays with kappa (1/L1 + 1/L2)."""
    kappa, lengths = 1e-3, (1.0, 2.0)
    mesh = build(intervals, lengths, cells_per_layer=4, comm=MPI.COMM_SELF)
    tissue = Tissue(mesh, 3.0, density={1: 1.0, 2: 0.2}, interface="plain",
                    permeability=Permeability.on(mesh, membrane=kappa))
    times = np.array([0.0, 200.0, 500.0, 1000.0])
    balance = mass_balance(tissue, times, time_step=2.0)
    np.testing.assert_allclose(balance.total, 1.4, rtol=1e-11)
    difference = balance.concentrations @ [1.0, -1.0]
    expected = 0.8 * np.exp(-kappa * 1.5 * times)
    np.testing.assert_allclose(difference, expected, rtol=2e-3)  # 1 / (1 + Biot number / 3)


@pytest.mark.mpi
def test_tags_that_nothing_has_are_named(comm):
    mesh = build(intervals, (1.0, 2.0), cells_per_layer=4, comm=comm)
    with pytest.warns(UserWarning, match=r"T2: a value for cell tag 3, .* \(it has \[1, 2\]\)"):
        Tissue(mesh, T2={1: 50, 2: 60, 3: 70})
    with pytest.warns(UserWarning, match="permeability: a value for interface tag 9"):
        Permeability.on(mesh, {1: 0.1, 9: 0.2})
    with pytest.warns(UserWarning, match="extra_coefficients: a: a value for cell tag 7"):
        BlochTorrey(Tissue(mesh), extra_terms=lambda m, v, t, c: c["a"] * ufl.inner(m, v) * c.dx,
                    extra_coefficients={"a": {1: 1.0, 2: 2.0, 7: 0.0}})
    with pytest.raises(InputError, match=r"T2: no value for cell tag 2, expected one for each of"):
        Tissue(mesh, T2={1: 50})


@pytest.mark.mpi
def test_a_membrane_where_none_is_known(comm):
    plain = build(box, (2, 2, 2), cells=(1, 1, 1), comm=comm)
    with pytest.raises(InputError, match="a value for the membrane, but the mesh has no interface"):
        Permeability.on(plain, membrane=0.01)
    assert not np.isfinite(Permeability.on(plain, None).values[~plain.outer]).any()
    layers = build(intervals, (1.0, 2.0), cells_per_layer=4, comm=comm)
    with pytest.raises(InputError, match="permeability.membrane: missing, expected a value for "
                                         "the 1 known"):
        Permeability.on(layers, None)


def test_permeability_across_unequal_densities():
    """kappa 2 (rho- m+ - rho+ m-) / (rho+ + rho-): the slow rate between well-mixed layers."""
    kappa, lengths, rho = 1e-3, (1.0, 2.0), (1.0, 0.25)
    mesh = build(intervals, lengths, cells_per_layer=4, comm=MPI.COMM_SELF)
    tissue = Tissue(mesh, 3.0, density=dict(enumerate(rho, 1)),
                    permeability=Permeability.on(mesh, membrane=kappa))
    balance = mass_balance(tissue, [0.0, 300.0, 1e5], start=0, time_step=2.0)
    rate = 2 * kappa / sum(rho) * (rho[1] / lengths[0] + rho[0] / lengths[1])
    ends = np.array([1.0, 0.5]) / 1.5  # in proportion to what each holds
    fraction = balance.by_compartment / balance.total[:, None]
    np.testing.assert_allclose(fraction[-1], ends, rtol=1e-6)
    assert (fraction[1, 0] - ends[0]) / (1 - ends[0]) == pytest.approx(np.exp(-rate * 300),
                                                                       rel=2e-3)


def test_engines_agree_to_1e_5_once_refined():
    mesh = build(tagged_grid, Ball(radius=3.0), 10.0, cells=2, comm=MPI.COMM_SELF)
    tissue = Tissue(mesh, {1: 1.0, 2: 2.0}, {1: 30.0, 2: 70.0}, {1: 0.6, 2: 1.5},
                    Permeability.on(mesh, membrane=0.2))
    acquisition = Acquisition.product([PGSE(4, 15)], [0, 1500], [[0.6, 0.0, 0.8]])
    problem = BlochTorrey(tissue)
    one = make_engine(problem, acquisition, modes=problem.num_unknowns).signals()
    two = make_engine(problem, acquisition, "time_stepping", time_step=0.04).signals()
    three = make_engine(problem, acquisition, "time_stepping", time_step=0.02).signals()
    limit = three + (three - two) / 3
    assert np.abs(limit - one).max() < 1e-6 * problem.magnetisation_at_start
    assert np.abs(three - one).max() < 1e-5 * problem.magnetisation_at_start


@pytest.mark.mpi
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("interface", ["equilibrium", "plain"])
def test_taylor_permeability(comm, engine, interface):
    mesh = build(box, [6.0, 4.0, 4.0], cells=(2, 1, 1), comm=comm)
    wave = np.sin(mesh.facet_vertices @ np.array([1.3, 2.9, 0.7]))
    kappa = np.where(mesh.outer, 0.02, 0.3) * (1.5 + wave)
    tissue = Tissue(mesh, 2.0, 60.0, 1 + 0.5 * np.sin(3.0 * np.arange(mesh.num_cells)),
                    Permeability(mesh, kappa), interface)
    assert tissue.balanced == (interface == "equilibrium")
    problem = BlochTorrey(tissue)
    acquisition = Acquisition.product([DoublePGSE(2, 6, 3, False)], [500, 2000], [[0.6, 0.8, 0]])
    solver = make_engine(problem, acquisition, engine, modes=problem.num_unknowns, time_step=0.5)
    target = np.array([20.0 + 3j, 5.0 - 1j])
    S = solver.signals(kappa, remember=True)
    slope = comm.allreduce(float(solver.gradient(S - target) @ (kappa * wave)))
    start = 0.5 * np.sum(np.abs(S - target) ** 2)
    left = []
    for step in (0.1, 0.05, 0.025):
        moved = solver.signals(kappa * (1 + step * wave))
        left.append(abs(0.5 * np.sum(np.abs(moved - target) ** 2) - start - step * slope))
    rates = np.log2(np.array(left[:-1]) / left[1:])
    assert rates.min() > 1.8, (left, slope)


@pytest.mark.parametrize(("make", "message"), [
    (lambda m: Tissue("mesh"), "mesh: a str, expected a spinverse.Mesh"),
    (lambda m: Tissue(m, diffusivity="water"), "diffusivity: 'water', expected numbers"),
    (lambda m: Tissue(m, permeability=np.ones(3)), "permeability: an array of shape"),
    (lambda m: Tissue(m, permeability="open"), "permeability: 'open', expected numbers"),
    (lambda m: Permeability.on(m, membrane="x"), "membrane: 'x', expected numbers"),
    (lambda m: simulate(m, Acquisition.pgse(0, 1, 1, 2)), "tissue: a Mesh, expected"),
    (lambda m: simulate(Tissue(m), "pgse"), "acquisition: a str, expected"),
    (lambda m: simulate(Tissue(m), Acquisition.pgse(0, 1, 1, 2), tolerance=0), "tolerance: 0"),
    (lambda m: build("spheres", [3, 6]), "builder: 'spheres', expected a function"),
])
def test_wrong_kinds_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make(build(intervals, [2.0, 3.0], size=1.0))
