"""Compartments, exchange times, mass balance and the Karger model."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from mpi4py import MPI
from scipy.linalg import expm

from spinverse import Acquisition, BlochTorrey, InputError, Permeability, Tissue, mesh, simulate
from spinverse.acquisition import PGSE, CosOGSE
from spinverse.mesh import MeshData
from spinverse.quantities import (
    ValidityWarning,
    compartments_of,
    exchange_times,
    hadc,
    karger,
    karger_pools,
    mass_balance,
    pools_of,
)

X, Y, Z = np.eye(3)


def slabs(lengths=(4.0, 6.0), kappa=0.02, comm=MPI.COMM_SELF, width=0.5, outer=0.0, **tissue):
    grid = mesh.build(mesh.slabs, lengths, cells_per_layer=[int(2 * x) for x in lengths],
                      width=width, comm=comm)
    return Tissue(grid, permeability=Permeability.on(grid, membrane=kappa, outer=outer), **tissue)


# --- compartments -------------------------------------------------------------------------------

def test_compartments_of_slabs():
    found = compartments_of(slabs((4, 6, 2), {1: 0.02, 2: np.inf}))
    np.testing.assert_allclose(found.volumes, [1.0, 2.0])
    np.testing.assert_allclose(found.interface_areas, [[0, 0.25], [0.25, 0]])
    np.testing.assert_allclose(found.outer_areas, [4 * 0.5 * 4 + 0.25, 8 * 0.5 * 4 + 0.25])
    np.testing.assert_allclose(found.residence_times, [4 / 0.02, 8 / 0.02])
    np.testing.assert_allclose(found.surface_to_volume * found.volumes, found.surfaces)
    assert found.cell_tags.tolist() == [1, 2]
    closed = slabs((4, 6, 2), {1: 0.0, 2: 0.1})
    assert len(compartments_of(closed)) == 3 and len(pools_of(closed)) == 2
    assert np.isinf(compartments_of(closed).residence_times[0])


def test_compartments_of_a_problem_are_those_of_its_permeability_now():
    problem = BlochTorrey(slabs(kappa=0.02))
    problem.set_permeability(np.where(problem.mesh.interface > 0, 0.5, 0.0))
    np.testing.assert_allclose(compartments_of(problem).residence_times, [8.0, 12.0])


def test_every_cell_is_a_compartment_where_nothing_is_tied():
    grid = mesh.build(mesh.box, [1.0, 1.0, 1.0], cells=[2, 1, 1], comm=MPI.COMM_SELF)
    found = compartments_of(Tissue(grid, permeability=1.0))
    assert sorted(found.labels) == list(range(12))
    np.testing.assert_allclose(found.volumes, 1 / 12)
    np.testing.assert_allclose(found.outer_areas.sum(), 6.0)


def test_a_cut_connects_what_is_permeable_enough():
    tissue = slabs((4, 6, 2), {1: 0.02, 2: 5.0})
    found = compartments_of(tissue, cut=1.0)
    np.testing.assert_allclose(found.volumes, [1.0, 2.0])
    np.testing.assert_allclose(found.interface_areas, [[0, 0.25], [0.25, 0]])
    assert len(compartments_of(tissue)) == 3 and len(compartments_of(tissue, cut=0.01)) == 1
    with pytest.raises(InputError, match="cut: 0"):
        compartments_of(tissue, cut=0)
    grid = mesh.build(mesh.box, [1.0] * 3, cells=[9, 9, 9], comm=MPI.COMM_SELF)
    with pytest.raises(InputError, match="4374 sets of cells"):
        compartments_of(Tissue(grid, permeability=0.1))


def test_sphere_in_a_box():
    grid = mesh.build(mesh.sphere_in_box, 3.0, [10.0] * 3, size=1.5, comm=MPI.COMM_SELF)
    found = compartments_of(Tissue(grid, permeability=Permeability.on(grid, 0.01)))
    np.testing.assert_allclose(found.volumes, [36 * np.pi, 1000 - 36 * np.pi], rtol=1e-6)
    assert found.surface_to_volume[0] == pytest.approx(1.0, rel=0.03)
    assert found.outer_areas == pytest.approx([0, 600])


@pytest.mark.mpi
def test_the_same_on_every_number_of_ranks(comm):
    # cells numbered across the membranes: every rank has pieces of every compartment
    def build(c):
        grid = mesh.build(mesh.tagged_grid, mesh.Ball(radius=3.5), 10.0, cells=3, comm=c)
        kappa = np.where(grid.interface > 0, 0.03, np.inf)
        lids = np.abs(grid.facet_corners[:, :, 0]).max(axis=1) < 1e-9  # cut the ball in halves
        kappa = np.where(lids & np.isinf(kappa), 0.4, kappa)
        return Tissue(grid, T2=60.0, permeability=Permeability(
            grid, np.where(grid.outer, 0.0, kappa)))

    here, alone = build(comm), build(MPI.COMM_SELF)
    one, other = compartments_of(here), compartments_of(alone)
    for name in ("cell_tags", "volumes", "outer_areas", "interface_areas", "conductances"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-10, atol=1e-12)
    by_cell = np.empty(here.mesh.num_cells, dtype=int)
    by_cell[alone.mesh.input_cells] = other.labels
    assert (one.labels == by_cell[here.mesh.input_cells]).all()
    np.testing.assert_allclose(exchange_times(here, 3), exchange_times(alone, 3), rtol=1e-7)
    curves = [mass_balance(t, [0, 1, 4], start=0, time_step=0.5).by_compartment
              for t in (here, alone)]
    np.testing.assert_allclose(*curves, rtol=1e-8, atol=1e-9)
    table = Acquisition.pgse([0, 1000], [X, Y], delta=2, Delta=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ValidityWarning)
        D = np.linspace(0.2, 1.0, len(one))
        np.testing.assert_allclose(karger(here, table, D).signals.values,
                                   karger(alone, table, D).signals.values, rtol=1e-7)


# --- exchange times and mass balance ------------------------------------------------------------

@pytest.mark.parametrize("builder, arguments, slowest, bound", [
    (mesh.slabs, {"thicknesses": [10, 10], "cells_per_layer": 20, "width": 0.5}, 266.8786, 1e-4),
    (mesh.cylinders, {"radii": [10, 20], "height": 1.5, "size": 1.5}, 198.2512, 2e-3),
    pytest.param(mesh.spheres, {"radii": [10, 20], "size": 2.0}, 153.0855, 4e-3,
                 marks=pytest.mark.slow)])
def test_exchange_times_are_the_exact_ones(builder, arguments, slowest, bound):
    grid = mesh.build(builder, **arguments, comm=MPI.COMM_SELF)
    tissue = Tissue(grid, 2.0, T2=50.0, permeability=Permeability.on(grid, membrane=0.02))
    times = exchange_times(tissue)
    assert times.shape == (1,) and times[0] == pytest.approx(slowest, rel=bound)
    more = exchange_times(BlochTorrey(tissue), 3)
    assert more.shape == (3,) and more[0] == pytest.approx(times[0]) and (np.diff(more) <= 0).all()


def test_exchange_times_without_exchange():
    assert exchange_times(slabs(kappa=0.0)).shape == (0,)
    assert exchange_times(slabs((4, 6, 4), {1: 0.02, 2: 0.0})).shape == (1,)
    # an absorbing wall: the total decays too
    assert exchange_times(slabs(outer=0.01)).shape == (2,)


def test_mass_is_conserved():
    found = mass_balance(slabs(kappa=0.05), [0, 0.5, 20, 3000], start=0, time_step=5.0)
    np.testing.assert_allclose(found.total, 1.0, rtol=1e-10)
    np.testing.assert_allclose(found.by_compartment[0], [1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(found.concentrations[-1], found.total[0] / 2.5, rtol=1e-6)


def test_relaxation_is_exact_where_it_is_uniform():
    times = np.array([0, 1.0, 7.0, 30.0])
    found = mass_balance(slabs(T2=25.0), times, time_step=1.0)
    np.testing.assert_allclose(found.total, 2.5 * np.exp(-times / 25), rtol=1e-10)
    closed = mass_balance(slabs(kappa=0.0, T2={1: 25.0, 2: 50.0}), times, time_step=0.25)
    np.testing.assert_allclose(closed.by_compartment, np.array([1.0, 1.5]) * np.exp(
        -times[:, None] / [25, 50]), rtol=1e-4)


def test_densities_stay_at_rest_or_level_out():
    densities = {1: 0.5, 2: 2.0}
    rest = mass_balance(slabs(kappa=0.5, density=densities), [0, 50], time_step=1.0)
    np.testing.assert_allclose(rest.by_compartment[1], [0.5, 3.0], rtol=1e-9)
    level = mass_balance(slabs(kappa=0.5, density=densities, interface="plain"), [0, 500],
                         time_step=5.0)
    np.testing.assert_allclose(level.concentrations[1], 3.5 / 2.5, rtol=1e-6)


def test_exchange_curve_decays_with_the_slowest_time():
    tissue = slabs((10, 10))
    late = mass_balance(tissue, [100, 200], start=0, time_step=0.5).concentrations
    difference = late[:, 0] - late[:, 1]
    assert 100 / np.log(difference[0] / difference[1]) == pytest.approx(
        exchange_times(tissue)[0], rel=1e-5)


# --- Karger -------------------------------------------------------------------------------------

def two_pools(b, Delta, delta=1e-4):
    return Acquisition.pgse(b, [X], delta=delta, Delta=Delta)


def test_short_pulses_give_the_matrix_exponential():
    rates = np.array([[0, 0.03], [0.02, 0]])
    M, D, Delta = np.array([0.4, 0.6]), np.array([0.3, 2.0]), 30.0
    b = np.array([0, 500, 2000, 6000.0])
    found = karger_pools(two_pools(b, Delta), M, D, rates)
    for value, b_i in zip(found.signals.values, b, strict=True):
        generator = rates.T - np.diag(rates.sum(axis=1) + b_i / 1000 / Delta * D)
        assert value == pytest.approx((expm(generator * Delta) @ M).sum(), abs=1e-5)
    np.testing.assert_allclose(found.residence_times, [1 / 0.03, 1 / 0.02])


def test_long_pulses_against_small_steps():
    rates, M, D = np.array([[0, 0.1], [0.05, 0]]), np.array([1.0, 2.0]), np.array([0.2, 2.0])
    for waveform in (PGSE(8, 15), CosOGSE(6, 9, 1)):
        table = Acquisition.product([waveform], [3000.0], [X])
        found = karger_pools(table, M, D, rates, T2=[50.0, 80.0])
        steps = 4000
        nodes = np.linspace(0, waveform.echo_time, steps + 1)
        F = waveform.integral((nodes[1:] + nodes[:-1]) / 2)
        m = M.copy()
        for value in F**2 * 3.0 / waveform.b_factor:
            m = expm((rates.T - np.diag(rates.sum(axis=1) + 1 / np.array([50.0, 80.0])
                                        + value * D)) * waveform.echo_time / steps) @ m
        np.testing.assert_allclose(found.by_compartment[:, 0], m, rtol=1e-5)


def test_without_exchange_each_pool_is_gaussian():
    table = Acquisition.pgse([0, 1000], [X, Y, Z], delta=3, Delta=9)
    D = np.array([np.diag([2.0, 0.5, 0.1]), np.eye(3)])
    found = karger_pools(table, [1.0, 3.0], D)
    along = np.array([[2.0, 0.5, 0.1] * 2, [1.0] * 6])
    np.testing.assert_allclose(found.diffusivities, along, rtol=1e-9)
    np.testing.assert_allclose(found.by_compartment, np.array([[1.0], [3.0]]) * np.exp(
        -table.b / 1000 * along), rtol=1e-8)


def test_waveform_of_varying_direction():
    table = Acquisition.double_pgse([1500.0], [X], delta=2, Delta=6, mixing_time=5,
                                    second_directions=[Y])
    found = karger_pools(table, [1.0], np.diag([2.0, 0.5, 0.1])[None])
    assert found.signals.values[0] == pytest.approx(np.exp(-1.5 * (2.0 + 0.5) / 2), rel=1e-8)


def strip(length=400.0, cells=120):
    """Two layers of 2 and 3 um, long in y: free diffusion along them, exchange between them."""
    x, y = np.arange(6.0), np.linspace(0, length, cells + 1)
    points = np.stack(np.meshgrid(x, y, [0.0], indexing="ij"), axis=-1).reshape(-1, 3)
    n = np.arange(len(points)).reshape(6, cells + 1)
    a, b, c, d = (m.ravel() for m in (n[:-1, :-1], n[1:, :-1], n[1:, 1:], n[:-1, 1:]))
    triangles = np.concatenate([np.column_stack([a, b, c]), np.column_stack([a, c, d])])
    tags = np.where(points[triangles, 0].mean(axis=1) < 2, 1, 2)
    membrane = np.column_stack([n[2, :-1], n[2, 1:]])
    return mesh.build(lambda: MeshData(points, triangles, tags, membrane), comm=MPI.COMM_SELF)


@pytest.mark.parametrize("densities", [{1: 1.0, 2: 1.0}, {1: 0.4, 2: 1.0}],
                         ids=["equal densities", "densities at rest"])
def test_karger_is_the_limit_of_weak_membranes(densities):
    """Gaussian diffusion along two layers: what exchange does is as the model says.

    What is left is that mixing across the layers takes time, which slows exchange by
    kappa sum L / (3 D): 2 % here, and 7 % at four times the permeability.
    """
    grid = strip()
    table = Acquisition.pgse([0, 500], [Y], delta=2, Delta=20)

    def signals(kappa):
        tissue = Tissue(grid, {1: 0.5, 2: 2.5}, T2=200.0, density=densities,
                        permeability=Permeability.on(grid, membrane=kappa))
        model = karger(tissue, table, diffusivities=[0.5, 2.5]).signals.values.real
        exact = simulate(tissue, table).values.real
        return model / exact[0], exact / exact[0]

    model_closed, closed = signals(0.0)
    excess = []
    for kappa in (0.01, 0.04):
        model, exact = signals(kappa)
        assert model[0] == pytest.approx(1.0, rel=1e-9)
        excess.append((model - model_closed)[1] / (exact - closed)[1] - 1)
        assert (exact - closed)[1] < -1e-3
    assert abs(excess[0]) < 0.03 < excess[1] < 0.1


def test_diffusivities_are_the_homogenised_ones():
    tissue, table = slabs((2.0, 3.0)), Acquisition.pgse([0, 1000], [X, Y], delta=2, Delta=10)
    np.testing.assert_allclose(karger(tissue, table).diffusivities,
                               hadc(tissue, table).of_compartments)


def test_warns_where_diffusion_limits_exchange():
    table = Acquisition.pgse([0, 1000], [X], delta=2, Delta=10)
    with pytest.warns(ValidityWarning, match="kappa V / .A D. = 1.5"):
        karger(slabs(kappa=0.5), table, diffusivities=[1.0, 1.0])


def test_bad_input():
    table, tissue = Acquisition.pgse([0, 1000], [X], delta=2, Delta=10), slabs()
    for arguments, message in [
            ({"diffusivities": [1.0]}, "diffusivities: shape"),
            ({"diffusivities": [1.0, -1.0]}, "diffusivities: shape"),
            ({"diffusivities": [1.0, 1.0], "exchange_rates": [[0, 1.0], [1.0, 0]]}, "equal flows"),
            ({"diffusivities": [1.0, 1.0], "exchange_rates": [1.0, 2.0]}, "exchange_rates")]:
        with pytest.raises(InputError, match=message):
            karger(tissue, table, **arguments)
    with pytest.raises(InputError, match="magnetisation"):
        karger_pools(table, [0.0, 0.0], [1.0, 1.0])
    with pytest.raises(InputError, match="T2"):
        karger_pools(table, [1.0, 1.0], [1.0, 1.0], T2=[-1.0, 1.0])
    for arguments, message in [({"times": [2, 1]}, "times"), ({"times": [-1]}, "times"),
                               ({"times": [1], "start": 2}, "start: compartment 2"),
                               ({"times": [1], "start": [1.0]}, "start"),
                               ({"times": [1], "time_step": 0}, "time_step")]:
        with pytest.raises(InputError, match=message):
            mass_balance(tissue, **arguments)
    with pytest.raises(InputError, match="number: 0"):
        exchange_times(tissue, 0)
