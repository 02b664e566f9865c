"""Errors on ordinary meshes against references without elements, and what ``auto`` promises."""

from __future__ import annotations

import numpy as np
import pytest
from collocation import Stack
from mpi4py import MPI
from test_sequences_in_engines import problem_of

import spinverse
from spinverse import BlochTorrey, InputError, Mesh, Permeability, Tissue
from spinverse.acquisition import PGSE, Acquisition, CosOGSE, DoublePGSE, SampledGradient
from spinverse.engines.basis.dense import is_small
from spinverse.engines.basis.eigenmodes import eigenmodes
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.mesh import (
    Ball,
    MeshData,
    box,
    build,
    cylinders,
    disks,
    l_cell,
    sphere_in_box,
    spheres,
    tagged_grid,
)
from spinverse.simulate import ENGINES, make_engine
from spinverse.validation import analytic

B = [0, 1000, 4000]
X = [[1.0, 0, 0]]


# ---- layers of other radii, D and T2 by layer ---------------------------------------------------

@pytest.mark.parametrize("builder, options, reference", [
    pytest.param(spheres, {"size": 0.9}, analytic.spheres, marks=pytest.mark.slow),
    (disks, {"size": 0.5}, analytic.cylinders),
    (cylinders, {"size": 0.5, "height": 0.5}, analytic.cylinders)],
    ids=["spheres", "disks", "cylinders"])
@pytest.mark.parametrize("radii, finer, kappa, D, T2", [
    ((2.5, 4.0), 0.6, (0.05,), (1.0, 2.5), (30.0, 80.0)),
    ((4.0, 5.5), 1.0, (0.3,), (2.0, 2.0), (np.inf, 40.0))])
def test_layers_of_other_radii(builder, options, reference, radii, finer, kappa, D, T2):
    options = options | {"size": finer * options["size"]}
    mesh = build(builder, list(radii), comm=MPI.COMM_SELF, **options)
    tissue = Tissue(mesh, dict(enumerate(D, 1)), dict(enumerate(T2, 1)),
                    permeability=Permeability.on(mesh, membrane=kappa[0]))
    problem = BlochTorrey(tissue)
    acquisition = Acquisition.pgse(B, X, delta=[5, 10], Delta=[10, 60])
    found = MatrixFormalism(problem, acquisition, tolerance=1e-4).signals()
    exact = np.concatenate([reference(B, delta, Delta, radii, kappa, D, T2)
                            for delta, Delta in ((5, 10), (10, 60))])
    assert np.abs(found / problem.magnetisation_at_start - exact).max() < 1.2e-3


# ---- modes and steps: true error and estimate ---------------------------------------------------

def ball_in_box() -> BlochTorrey:
    mesh = build(sphere_in_box, 5.0, (14.0, 14.0, 14.0), 3.0, comm=MPI.COMM_SELF)
    return BlochTorrey(Tissue(mesh, {1: 1.0, 2: 2.0}, permeability=Permeability.on(
        mesh, membrane=0.05)))


def discs() -> BlochTorrey:
    mesh = build(disks, [3.0, 6.0], 0.8, comm=MPI.COMM_SELF)
    return BlochTorrey(Tissue(mesh, {1: 1.0, 2: 2.5}, {1: 40.0, 2: 80.0},
                              permeability=Permeability.on(mesh, membrane=0.02)))


def broken() -> BlochTorrey:
    """Finite permeability on every facet."""
    mesh = build(tagged_grid, Ball(radius=3.0), 9.0, cells=2, comm=MPI.COMM_SELF)
    kappa = np.where(mesh.interface > 0, 0.02, 1.0)
    return BlochTorrey(Tissue(mesh, permeability=Permeability(
        mesh, np.where(mesh.outer, 0.0, kappa))))


def line() -> BlochTorrey:
    return problem_of(Stack((3.0, 5.0, 9.0), (0.05, 0.5), (1.0, 2.0, 3.0), (30.0, 60.0, np.inf)),
                      degree=1, per_um=10)


PROBLEMS = {"ball in box": ball_in_box, "discs": discs, "broken": broken, "line": line}
WAVEFORMS = {"short": PGSE(5, 6), "long": PGSE(10, 60), "narrow": PGSE(1, 30),
             "antiparallel": DoublePGSE(4, 15, 6, False), "cos": CosOGSE(20, 25, 4)}


def directions(problem) -> list:
    return {1: X, 2: [[0.6, 0.8, 0]], 3: [[0.6, 0, 0.8], [0, 1, 0]]}[problem.mesh.dim]


def check_promise(error, estimate, tolerance) -> None:
    """The estimate is near the error, neither far above nor below; both keep the tolerance."""
    assert estimate <= 1.05 * tolerance
    assert error <= 1.3 * tolerance
    if estimate > 1e-9:
        assert 0.2 < error / estimate < 3.0, (error, estimate)


LONG = {("ball in box", "cos"), ("broken", "cos"), ("line", "cos"), ("broken", "antiparallel"),
        ("ball in box", "short"), ("ball in box", "long"), ("broken", "narrow")}


@pytest.mark.parametrize("name, waveform", [
    pytest.param(name, waveform, marks=pytest.mark.slow if (name, waveform) in LONG else ())
    for name in PROBLEMS for waveform in WAVEFORMS])
def test_modes_of_auto(name, waveform):
    problem = PROBLEMS[name]()
    acquisition = Acquisition.product([WAVEFORMS[waveform]], B, directions(problem))
    scale = problem.magnetisation_at_start
    exact = None
    for tolerance in (1e-5, 1e-4, 1e-3):
        engine = MatrixFormalism(problem, acquisition, tolerance=tolerance)
        signals = engine.signals()
        if exact is None:
            most = min(problem.num_unknowns, 3 * len(engine.basis) + 50)
            exact = MatrixFormalism(problem, acquisition, modes=most,
                                    max_step=engine.max_step / 3).signals()
        error = float(np.abs(signals - exact).max()) / scale
        check_promise(error, engine.estimated_error, tolerance)


@pytest.mark.parametrize("waveform", ["short", "long", "antiparallel", "narrow"])
@pytest.mark.parametrize("name", ["discs", "line"])
def test_steps_of_auto(name, waveform):
    problem = PROBLEMS[name]()
    acquisition = Acquisition.product([WAVEFORMS[waveform]], B, directions(problem))
    exact = MatrixFormalism(problem, acquisition, tolerance=1e-8).signals()
    for tolerance in (1e-3, 1e-4, 1e-5) if name == "line" else (1e-3, 1e-4):
        engine = TimeStepping(problem, acquisition, "auto", tolerance=tolerance)
        error = np.abs(engine.signals() - exact).max() / problem.magnetisation_at_start
        check_promise(error, engine.estimated_error, tolerance)


def test_steps_that_the_shape_of_the_gradient_cuts_short():
    """Halving a step that is longer than all pieces changes nothing, and tells nothing."""
    problem = PROBLEMS["line"]()
    acquisition = Acquisition.product([CosOGSE(20, 25, 8)], B, X)
    exact = MatrixFormalism(problem, acquisition, tolerance=1e-6).signals()
    engine = TimeStepping(problem, acquisition, "auto", tolerance=1e-3)
    error = np.abs(engine.signals() - exact).max() / problem.magnetisation_at_start
    check_promise(error, engine.estimated_error, 1e-3)


@pytest.mark.mpi
def test_what_omitted_modes_do(comm):
    """C from solves is C from the omitted modes, and from a dense solve, on any ranks."""
    mesh = build(tagged_grid, Ball(radius=3.0), 9.0, cells=3, comm=comm)
    problem = BlochTorrey(Tissue(mesh, {1: 1.0, 2: 2.0}, permeability=Permeability.on(
        mesh, membrane=0.05, elsewhere=3.0)))
    assert not is_small(problem.num_unknowns, 40, comm.size)
    few, all_modes = eigenmodes(problem, 40, responses=True), eigenmodes(
        problem, problem.num_unknowns)
    n, direction = len(few), np.array([0.6, 0.0, 0.8])
    coupling = np.tensordot(direction, all_modes.positions, axes=1)[:n, n:]
    expected = (coupling / (all_modes.eigenvalues[n:] + few.shift)) @ coupling.T
    C = few.omitted(direction)
    scale = np.abs(expected).max()
    assert np.abs(np.linalg.eigvalsh(C) - np.linalg.eigvalsh(expected)).max() < 1e-7 * scale
    assert np.array_equal(comm.bcast(C), C)
    part = few.truncated(12)
    assert part.omitted(direction).shape == (12, 12) and len(part) == 12
    assert np.linalg.eigvalsh(part.omitted(direction))[-1] > np.linalg.eigvalsh(C)[-1]


# ---- edges --------------------------------------------------------------------------------------

def tets(number: int) -> MeshData:
    points = [[0.0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4], [4, 4, 4]]
    cells = [[0, 1, 2, 3], [1, 2, 3, 4]][:number]
    used = points[: 3 + number]
    volumes = [np.linalg.det(np.array(used)[c[1:]] - np.array(used)[c[0]]) for c in cells]
    cells = [c if v > 0 else [*c[:2], c[3], c[2]] for c, v in zip(cells, volumes, strict=True)]
    return MeshData(used, cells).check()


@pytest.mark.mpi
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("kappa", [0.0, 1e-12, 0.3, 1e9, np.inf])
def test_meshes_of_one_or_two_cells(comm, engine, number, kappa):
    mesh = Mesh.from_data(tets(number) if comm.rank == 0 else None, comm)
    acquisition = Acquisition.pgse([0, 100], X, delta=4, Delta=10)
    signals = spinverse.simulate(Tissue(mesh, permeability=kappa), acquisition, engine)
    volume = sum(comm.allgather(mesh.cell_volumes[: mesh.num_owned_cells].sum()))
    # 1e9 um/ms between free vertices: what is left of 16 digits
    assert signals.values[0] == pytest.approx(volume, rel=1e-5 if kappa == 1e9 else 1e-9)
    assert 0 < abs(signals.values[1]) < volume
    assert signals.estimated_error <= 1e-4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("b", [[0.0], [0.0, 0.0], [700.0], [40000.0], [1e-6]])
def test_tables_of_few_or_strong_measurements(engine, b):
    problem = PROBLEMS["line"]()
    acquisition = Acquisition.pgse(b, X, delta=5, Delta=20)
    solver = make_engine(problem, acquisition, engine, tolerance=1e-4)
    exact = MatrixFormalism(problem, acquisition, modes=problem.num_unknowns).signals()
    assert np.abs(solver.signals() - exact).max() < 1.3e-4 * problem.magnetisation_at_start
    assert solver.estimated_error <= 1.05e-4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("T2", [0.5, 1e-3])
def test_very_short_T2(engine, T2):
    mesh = build(box, [6.0, 5.0, 4.0], cells=(2, 2, 1), comm=MPI.COMM_SELF)
    acquisition = Acquisition.pgse([0, 1000], X, delta=1, Delta=3)
    signals = spinverse.simulate(Tissue(mesh, T2={1: T2}), acquisition, engine, tolerance=1e-5)
    still = spinverse.simulate(Tissue(mesh), acquisition, tolerance=1e-6)
    expected = still.values * np.exp(-4 / T2)
    assert np.abs(signals.values - expected).max() < 3e-5 * 120


def test_a_thousand_measurements():
    problem = PROBLEMS["line"]()
    acquisition = Acquisition.pgse(np.linspace(0, 4000, 250), X, delta=[2, 5, 10, 4],
                                   Delta=[5, 10, 30, 60])
    signals = MatrixFormalism(problem, acquisition, tolerance=1e-4).signals()
    assert len(signals) == 1000 and np.isfinite(signals).all()
    assert (np.diff(np.abs(signals[:100])) < 0).all()


@pytest.mark.parametrize("number", [10**6, 300])
def test_more_modes_than_unknowns(number):
    problem = PROBLEMS["broken"]()
    acquisition = Acquisition.product([PGSE(5, 6)], B, X)
    engine = MatrixFormalism(problem, acquisition, modes=max(number, problem.num_unknowns + 1))
    assert np.isfinite(engine.signals()).all() and len(engine.basis) == problem.num_unknowns


@pytest.mark.mpi
@pytest.mark.parametrize("wanted", [1, 100, 143, 144])
def test_nearly_all_modes_of_a_small_mesh(comm, wanted):
    """Iterations for nearly all modes were very slow, or never ended, at three ranks."""
    mesh = build(box, [6.0, 5.0, 4.0], cells=(3, 2, 1), comm=comm)
    problem = BlochTorrey(Tissue(mesh, permeability=0.0))
    modes = eigenmodes(problem, wanted)
    assert max(1, wanted - 12) <= len(modes) <= wanted + 12
    gram = comm.allreduce(modes.modes.T @ (problem.local_mass @ modes.modes))
    assert np.abs(gram - np.eye(len(modes))).max() < 1e-9


def test_vector_waveforms_on_a_plane():
    mesh = build(disks, [3.0], 1.0, comm=MPI.COMM_SELF)
    t = np.linspace(0, 12, 49)
    f = np.column_stack([np.sin(2 * np.pi * t / 12), np.cos(2 * np.pi * t / 6), 0 * t])
    problem = BlochTorrey(Tissue(mesh))
    acquisition = Acquisition.product([SampledGradient(tuple(t), tuple(map(tuple, f)))], [800.0])
    one, two = (make_engine(problem, acquisition, engine, tolerance=2e-4).signals()
                for engine in ENGINES)
    assert abs(one - two)[0] < 4e-4 * problem.magnetisation_at_start
    out = np.column_stack([f[:, 0], f[:, 1], f[:, 0]])
    with pytest.raises(InputError, match="expected a gradient in the xy plane"):
        make_engine(problem, Acquisition.product(
            [SampledGradient(tuple(t), tuple(map(tuple, out)))], [800.0]))


# ---- finer and slower ---------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize("kappa", [0.1, 0.001])
def test_l_cell_of_other_permeabilities(kappa):
    """1e-4 and 1e-6 m/s: the engines agree, and P1 approaches P2."""
    acquisition = Acquisition.product([PGSE(10, 20)], B, [[1.0, 0, 0], [0.6, 0.8, 0]])
    found = {}
    for size, degree in ((4.0, 1), (2.0, 1), (2.5, 2)):
        mesh = build(l_cell, size, comm=MPI.COMM_SELF)
        tissue = Tissue(mesh, permeability=Permeability.on(mesh, membrane=kappa))
        problem = BlochTorrey(tissue, degree)
        found[size, degree] = MatrixFormalism(problem, acquisition, tolerance=3e-4
                                              ).signals() / problem.magnetisation_at_start
        if size == 4.0:
            two = TimeStepping(problem, acquisition, "auto", tolerance=1e-3).signals()
            assert np.abs(two / problem.magnetisation_at_start - found[size, degree]
                          ).max() < 1.6e-3
    coarse, fine = (np.abs(found[key] - found[2.5, 2]).max() for key in ((4.0, 1), (2.0, 1)))
    assert fine < 0.5 * coarse and fine < 1e-2
