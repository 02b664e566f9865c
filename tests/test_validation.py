"""The finite-element engine against independent reference values, through the public API.

``python tests/test_validation.py`` prints the whole table (slow cases too); ``pytest -s`` prints
that of the default cases. References: ``tests/data/reference_values.json``, none of them from
finite elements.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from spinverse import Acquisition, BlochTorrey, Permeability, Tissue
from spinverse.acquisition.waveforms import Sampled
from spinverse.engines import analytic
from spinverse.engines.eigenmodes import eigenmodes
from spinverse.engines.matrix_formalism import MatrixFormalism
from spinverse.mesh import MeshData, box, build, cylinders, slabs, sphere_in_box, spheres
from spinverse.mesh.checks import facets_of

DATA = Path(__file__).parent / "data" / "reference_values.json"
CASES = json.loads(DATA.read_text())["cases"]
TABLE: list[Row] = []


@dataclass(frozen=True)
class Row:
    """One reference case: signals over b, and what they cost (seconds of the whole group)."""

    case: str
    ours: np.ndarray
    reference: np.ndarray
    unknowns: int
    modes: int
    seconds: float

    @property
    def error(self) -> float:
        return float(np.abs(self.ours - self.reference).max())


@dataclass(frozen=True)
class Solved:
    signals: np.ndarray
    unknowns: int
    modes: int
    seconds: float


def signals_of(mesh, tissue, acquisition, degree=1, tolerance=1e-5) -> Solved:
    """Normalised signals: integral at the echo over integral at the start."""
    began = time.perf_counter()
    problem = BlochTorrey(tissue, degree=degree)
    engine = MatrixFormalism(problem, acquisition, modes="auto", tolerance=tolerance)
    signals = engine.signals() / problem.magnetisation_at_start
    return Solved(signals, problem.num_unknowns, len(engine.basis), time.perf_counter() - began)


def tissue_of(mesh, case) -> Tissue:
    """The tissue of a reference case: um, us -> um, ms."""
    kappa = case["kappa"] or 0.0
    T2 = case["T2"]
    return Tissue(
        mesh, diffusivity=1e3 * float(np.unique(case["D"])[0]),
        T2=np.inf if T2 is None else {i + 1: t / 1e3 for i, t in enumerate(T2)},
        permeability=Permeability.on(mesh, membrane=1e3 * kappa, elsewhere=np.inf))


def directions_of(case) -> np.ndarray:
    listed = case["directions"]
    return np.array([[1.0, 0.0, 0.0]] if isinstance(listed[0], str) else listed, float)


def solve(mesh, cases, **options) -> list[Row]:
    """All cases of one tissue by one eigenproblem; a case is averaged over its directions."""
    tables = [Acquisition.pgse(case["b"], directions_of(case), delta=case["delta"] / 1e3,
                               Delta=case["Delta"] / 1e3) for case in cases]
    solved = signals_of(mesh, tissue_of(mesh, cases[0]), Acquisition.concatenate(tables),
                        **options)
    assert np.abs(solved.signals.imag).max() < 1e-9
    rows, first = [], 0
    for case, table in zip(cases, tables, strict=True):
        part = solved.signals.real[first: first + len(table)]
        first += len(table)
        rows.append(Row(case["name"], part.reshape(len(case["b"]), -1).mean(axis=1),
                        np.array(case.get("deterministic", case["signal_re"])),
                        solved.unknowns, solved.modes, solved.seconds))
    TABLE.extend(rows)
    return rows


def groups(family: int) -> dict[str, list[dict]]:
    """Cases of a family by tissue."""
    found = defaultdict(list)
    for case in CASES:
        if case["family"] == family:
            found[re.sub(r"(_(x|y|z|111|avg_xyz|avg_xy|avg_111))?_d\d+_D\d+$", "",
                         case["name"])].append(case)
    return dict(found)


# --- meshes --------------------------------------------------------------------------------------

def l_cell(per_side: int) -> MeshData:
    """The L-shaped cell in the cube of 20 um, on a grid that its planes (all even) lie on."""
    grid = box([20.0] * 3, cells=[per_side] * 3, centre=[10.0] * 3)
    x, y, z = grid.points[grid.tets].mean(axis=1).T
    foot = (4 < x) & (x < 16) & (4 < y) & (y < 10)
    leg = (4 < x) & (x < 10) & (10 < y) & (y < 16)
    inside = (foot | leg) & (4 < z) & (z < 12)
    facets, pairs = facets_of(grid.tets)
    sides = np.where(pairs < 0, inside[pairs[:, :1]], inside[pairs])
    return MeshData(grid.points, grid.tets, np.where(inside, 1, 2),
                    facets[sides[:, 0] != sides[:, 1]], name="L cell").check()


def stack(case, per_um: float):
    lengths = case["geometry"]["L"]
    counts = [round(length * per_um) for length in lengths]
    return build(slabs, lengths, cells_per_layer=counts, width=1 / per_um)


def layered(case, size: float):
    radii = case["geometry"]["radii"]
    if case["geometry"]["type"] == "sphere":
        return build(spheres, radii, size=size)
    return build(cylinders, radii, height=size, size=size)


def check(rows, tolerance=1e-3):
    for row in rows:
        assert row.error <= tolerance, f"{row.case}: {row.ours} against {row.reference}"


# --- PGSE, families 1 to 6 -----------------------------------------------------------------------

PER_UM = 4.0
SIZE = {"disk5": 0.5, "sphere5": 0.75, "sphere2": 0.65, "cyl2": 0.4}
FINE = {"disk5": 0.25, "sphere5": 0.5, "sphere2": 0.45, "cyl2": 0.25}


@pytest.mark.parametrize("name", [*groups(1), *groups(2)])
def test_stacks_of_slabs(name):
    cases = (groups(1) | groups(2))[name]
    check(solve(stack(cases[0], PER_UM), cases), 3e-4)


@pytest.mark.parametrize("name", groups(5))
def test_21_slabs(name):
    cases = groups(5)[name]
    check(solve(stack(cases[0], per_um=5), cases), 3e-4)


@pytest.mark.parametrize("name", [*groups(3), *groups(4)])
def test_disks_and_spheres(name):
    cases = (groups(3) | groups(4))[name]
    check(solve(layered(cases[0], SIZE[name.split("_")[0]]), cases), 1.2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*groups(3), *groups(4)])
def test_disks_and_spheres_fine(name):
    cases = (groups(3) | groups(4))[name]
    check(solve(layered(cases[0], FINE[name.split("_")[0]]), cases), 6e-4)


SPHERE_IN_CUBE = next(name for name in groups(6) if name.startswith("sphere"))
L_CELL = next(name for name in groups(6) if name.startswith("L"))


@pytest.mark.parametrize("size, bound", [
    (2.0, 1e-2), pytest.param(1.2, 3e-3, marks=pytest.mark.slow)])
def test_sphere_in_cube(size, bound):
    """The reference is a random walk: three of its standard deviations on top."""
    cases = groups(6)[SPHERE_IN_CUBE]
    mesh = build(sphere_in_box, 7.0, [20.0] * 3, size=size)
    for row, case in zip(solve(mesh, cases, tolerance=1e-4), cases, strict=True):
        assert row.error <= bound + 3 * case["abs_error"], f"{row.case}: {row.ours}"


@pytest.mark.parametrize("per_side, bound", [
    (10, 3e-2), pytest.param(20, 1e-2, marks=pytest.mark.slow)])
def test_l_cell(per_side, bound):
    """The corners cost: the error at 5/6 ms and b = 4000 along the diagonal is the largest."""
    cases = groups(6)[L_CELL]
    check(solve(build(l_cell, per_side), cases, tolerance=1e-3), bound)


# --- other waveforms: family 7 by samples --------------------------------------------------------

def sampled(case) -> Sampled:
    """Trapezoids and cosine pulses as samples, ms."""
    p = {key: value / 1e3 for key, value in case["waveform_params"].items() if key != "n"}
    if case["waveform"] == "trapezoid":
        times = np.array([0.0, p["eps"], p["delta"], p["delta"] + p["eps"]])
        values = np.array([0.0, 1.0, 1.0, 0.0])
    else:
        times = np.linspace(0.0, p["delta"], 401)
        values = np.cos(2 * np.pi * case["waveform_params"]["n"] * times / p["delta"])
        # jumps to and from the pause between the lobes
        times = np.concatenate([[0.0], times, [p["delta"]]])
        values = np.concatenate([[0.0], values, [0.0]])
    return Sampled(tuple(np.concatenate([times, times + p["Delta"]])),
                   tuple(np.concatenate([values, -values])))


@pytest.mark.parametrize("case", [
    pytest.param(case, id=case["name"]) for case in CASES
    if case["family"] == 7 and case["name"].startswith("slab10")
    and case["waveform"] in ("trapezoid", "OGSE-cos")])
def test_sampled_waveforms(case):
    mesh = stack(case, PER_UM)
    acquisition = Acquisition.product([sampled(case)], case["b"], [1.0, 0.0, 0.0])
    solved = signals_of(mesh, tissue_of(mesh, case), acquisition)
    row = Row(case["name"], solved.signals.real, np.array(case["signal_re"]), solved.unknowns,
              solved.modes, solved.seconds)
    TABLE.append(row)
    check([row])


# --- convergence ---------------------------------------------------------------------------------

def errors(case, meshes, **options) -> np.ndarray:
    return np.array([solve(mesh, [case], **options)[0].error for mesh in meshes])


def orders(found: np.ndarray, sizes) -> np.ndarray:
    sizes = np.array(sizes)
    return np.log(found[1:] / found[:-1]) / np.log(sizes[1:] / sizes[:-1])


@pytest.mark.parametrize("degree, per_um, expected", [(1, [2, 4, 8], 1.8), (2, [0.5, 1, 2], 3.5)])
@pytest.mark.parametrize("case", groups(1)["slab10_reflect"], ids=lambda case: case["name"])
def test_convergence_on_the_slab(case, degree, per_um, expected):
    found = errors(case, [stack(case, n) for n in per_um], degree=degree, tolerance=1e-8)
    assert orders(found, 1 / np.array(per_um)).min() >= expected, found


def test_convergence_with_a_membrane():
    case = groups(2)["stack2x5_k0.0001"][1]
    found = errors(case, [stack(case, n) for n in (1, 2, 4)], tolerance=1e-8)
    assert orders(found, [4, 2, 1]).min() >= 1.8, found


@pytest.mark.slow
def test_convergence_on_the_sphere():
    """Second order, although the surface is faceted: its volume is matched.

    Unstructured meshes are not refinements of each other, so that the order between neighbours
    scatters (2.3, 1.6): it is taken from the first to the last, with the size of a mean tet.
    """
    case = groups(3)["sphere5"][1]
    meshes = [build(spheres, [5.0], size=size) for size in (1.0, 0.7, 0.5)]
    sizes = [mesh.num_cells ** (-1 / 3) for mesh in meshes]
    found = errors(case, meshes)
    assert orders(found[[0, 2]], [sizes[0], sizes[2]]).min() >= 1.8, (found, sizes)


# --- exchange, motional narrowing, published tables ----------------------------------------------

@pytest.mark.parametrize("builder, arguments, slowest, bound", [
    (slabs, {"thicknesses": [10, 10], "cells_per_layer": 20, "width": 0.5}, 266.8786, 1e-4),
    (cylinders, {"radii": [10, 20], "height": 1.2, "size": 1.2}, 198.2512, 1e-3),
    (spheres, {"radii": [10, 20], "size": 2.0}, 153.0855, 4e-3)])
def test_slowest_exchange(builder, arguments, slowest, bound):
    mesh = build(builder, **arguments)
    tissue = Tissue(mesh, 2.0, permeability=Permeability.on(mesh, membrane=0.02))
    rates = eigenmodes(BlochTorrey(tissue), 8).eigenvalues
    assert rates[0] == pytest.approx(0.0, abs=1e-9)
    assert 1 / rates[1] == pytest.approx(slowest, rel=bound)


def test_motional_narrowing():
    """Long pulses in a small slab: -ln E -> 2 delta g^2 L^4 / (120 D)."""
    mesh = build(slabs, [2.0], cells_per_layer=20, width=0.1)
    acquisition = Acquisition.pgse(1e5, [1.0, 0.0, 0.0], delta=400.0, Delta=400.0)
    found = -np.log(signals_of(mesh, Tissue(mesh, 2.0), acquisition).signals.real[0])
    g = np.linalg.norm(acquisition.gradient[0])
    assert found == pytest.approx(2 * 400.0 * g**2 * 2.0**4 / 120 / 2.0, rel=5e-3)


@pytest.mark.parametrize("diffusivity, permeability, published", [
    ({1: 3.0, 2: 3.0, 3: 3.0}, 0.05,
     [.7181, .5234, .3899, .2990, .2373, .1952, .1661, .1454, .1302, .1184]),
    ({1: 3.0, 2: 1.0, 3: 3.0}, 0.01,
     [.7297, .5525, .4381, .3649, .3181, .2877, .2672, .2522, .2402, .2297])])
def test_published_three_layer_disks(diffusivity, permeability, published):
    radii, b = [5.0, 7.5, 10.0], np.arange(1000, 10001, 1000)
    mesh = build(cylinders, radii, height=0.7, size=0.7)
    tissue = Tissue(mesh, diffusivity, permeability=Permeability.on(mesh, membrane=permeability))
    acquisition = Acquisition.pgse(b, [1.0, 0.0, 0.0], delta=40, Delta=40)
    solved = signals_of(mesh, tissue, acquisition)
    TABLE.append(Row(f"disk3_D{tuple(diffusivity.values())}", solved.signals.real,
                     np.array(published), solved.unknowns, solved.modes, solved.seconds))
    check(TABLE[-1:])


def test_agrees_with_the_layer_solver_where_no_table_is():
    """Unequal layers, diffusivities and T2, one leaky and one open interface."""
    D, T2 = [2.0, 1.0, 3.0], [80.0, 40.0, np.inf]
    mesh = build(slabs, [3.0, 5.0, 4.0], cells_per_layer=[12, 20, 16], width=0.25)
    tissue = Tissue(mesh, dict(enumerate(D, 1)), dict(enumerate(T2, 1)),
                    permeability=Permeability.on(mesh, membrane={1: 0.05, 2: np.inf}))
    acquisition = Acquisition.pgse([0, 1000, 4000], [1.0, 0.0, 0.0], delta=5, Delta=15)
    expected = analytic.slabs([0, 1000, 4000], 5, 15, [3, 5, 4], [0.05, np.inf], D, T2)
    np.testing.assert_allclose(signals_of(mesh, tissue, acquisition).signals, expected, atol=5e-4)


# --- the table -----------------------------------------------------------------------------------

def print_table() -> None:
    print(f"\n{'case':46} {'ours':>36}   {'reference':>36}   error unknowns modes seconds")
    for row in TABLE:
        ours, reference = (" ".join(f"{v:8.5f}" for v in values[:4])
                           for values in (row.ours, row.reference))
        print(f"{row.case:46} {ours:>36} | {reference:>36} {row.error:8.1e} "
              f"{row.unknowns:7d} {row.modes:5d} {row.seconds:7.2f}")


@pytest.fixture(scope="module", autouse=True)
def _table_at_the_end():
    yield
    print_table()


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-s", "-q", "-m", "slow or not slow",
                                  "-p", "no:cacheprovider"]))
