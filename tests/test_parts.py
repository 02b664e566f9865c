"""Parts that exchange nothing: signals and gradients part by part are those of all at once."""

from __future__ import annotations

import numpy as np
import pytest
import ufl
from mpi4py import MPI

from spinverse import BlochTorrey, Permeability, Tissue, forms, mesh
from spinverse.acquisition import Acquisition, CosOGSE
from spinverse.adjoint import reduced_functional, taylor_rate
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.engines.modal.mesh_error import mesh_error
from spinverse.mesh.data import MeshData

ALL = 10**6  # modes


def balls(places, radii, comm, size=5.0):
    """Balls apart, as the builder makes each."""
    points, cells, tags, first = [], [], [], 0
    for k, (place, radius) in enumerate(zip(places, radii, strict=True)):
        one = mesh.spheres(radii=[radius], size=size)
        points.append(one.points + place)
        cells.append(one.cells + first)
        tags.append(np.full(len(one.cells), k + 1))
        first += len(one.points)
    return mesh.Mesh.from_data(MeshData(*map(np.concatenate, (points, cells)),
                                        cell_tags=np.concatenate(tags)), comm)


def apart(comm, **arguments) -> Tissue:
    """Three like balls and one that is not."""
    there = balls([(0, 0, 0), (30, 5, 0), (0, -35, 8), (-40, 0, 3)], (10, 10, 10, 8), comm)
    return Tissue(there, **arguments)


def broken(comm) -> Tissue:
    """Unlike parts with facets of finite permeability inside, and walls that leak outwards."""
    there = balls([(0, 0, 0), (30, 5, 0)], (10, 9), comm, 9.0)
    return Tissue(there, {1: 2.0, 2: 1.5}, T2=70.0, density={1: 1.0, 2: 0.6},
                  permeability=Permeability(there, np.where(there.outer, 0.005, 0.3)))


def touching(comm) -> Tissue:
    """Layers between closed walls."""
    line = mesh.build(mesh.intervals, [4.0, 7.0, 5.0], cells_per_layer=(90, 130, 120), comm=comm)
    return Tissue(line, permeability=Permeability.on(line, membrane=0.0))


def table(b=(0, 1500)) -> Acquisition:
    return Acquisition.pgse(b=b, directions=[[1.0, 0, 0], [0.6, 0, 0.8]], delta=6, Delta=12)


def oscillating() -> Acquisition:
    return Acquisition.product([CosOGSE(8.0, 12.0, 2)], [0, 400], [[1.0, 0, 0]])


def background(m, v, t, c):
    return 0.02 * c.x[0] * ufl.inner(forms.i_times(m), v) * c.dx + c["rho"] * ufl.inner(
        m, v) * c.ds


def line_table():
    return Acquisition.pgse([0, 1500], [[1.0, 0, 0]], 6, 12)


CASES = {"apart": (apart, table, {}, 3), "broken": (broken, table, {}, 2),
         "touching": (touching, line_table, {}, 3), "oscillating": (apart, oscillating, {}, 3),
         "field": (apart, table, {"extra_terms": background,
                                  "extra_coefficients": {"rho": 0.004}}, 4)}


def both(case, comm, remember=False):
    make, acquisition, extra, _ = CASES[case]
    problem = BlochTorrey(make(comm), 1, **extra)
    return [MatrixFormalism(problem, acquisition(), modes, 1e-6) for modes in ("auto", ALL)]


@pytest.mark.mpi
@pytest.mark.parametrize("case", CASES)
def test_signals_are_those_of_all_at_once(comm, case):
    by_parts, whole = both(case, comm)
    found, exact = by_parts.signals(), whole.signals()
    error = np.abs(found - exact).max() / whole.problem.magnetisation_at_start
    assert by_parts.basis is None and error < 2e-6
    assert sum(basis.count for basis in by_parts.parts) == {"broken": 2, "touching": 3}.get(case, 4)
    if comm.size == 1:
        assert len(by_parts.parts) == {"apart": 2, "oscillating": 2, "field": 3}.get(
            case, CASES[case][3])
    assert np.abs(by_parts.signals() - found).max() < 1e-9 * np.abs(found).max()


@pytest.mark.mpi
@pytest.mark.parametrize("case", ["apart", "broken", "field"])
def test_gradients_are_those_of_all_at_once(comm, case):
    engines = both(case, comm)
    problem = engines[0].problem
    weights = np.array([0.3 - 1j, 0.5 + 0.2j, -0.7j, 1.0])
    wanted = [problem.kappa, problem.coefficients.D, problem.coefficients.R2]
    wanted += [problem.coefficients["rho"]] if case == "field" else []
    slopes = []
    for engine in engines:
        engine.signals(remember=True)
        slopes.append([engine.gradient(weights), *engine.gradients(weights, wanted)])
    for found, exact in zip(*slopes, strict=True):
        largest = comm.allreduce(float(np.abs(exact).max(initial=0.0)), MPI.MAX)
        assert np.abs(found - exact).max(initial=0.0) < 1e-4 * largest


@pytest.mark.mpi
@pytest.mark.parametrize("make", [broken, touching])
def test_taylor(comm, make):
    """What crosses a closed wall has a derivative: parts that touch are one then."""
    tissue = make(comm)
    J = reduced_functional(tissue, line_table() if make is touching else table(),
                           np.full(2 if make is touching else 4, 3.0), ["kappa", "D"],
                           engine="matrix_formalism", tolerance=1e-5)
    start = [control.control for control in J.controls]
    assert (J.engine.basis is None) == (make is broken)
    direction = [each._like(1.0 + 0.3 * np.cos(np.arange(each.values.size))) for each in start]
    assert taylor_rate(J, start, direction, steps=3, first=1e-3) > 1.9


@pytest.mark.mpi
def test_the_same_on_any_number_of_ranks(comm):
    found = []
    for where in (comm, MPI.COMM_SELF):
        engine = MatrixFormalism(BlochTorrey(broken(where)), table(), tolerance=1e-4)
        S = engine.signals(remember=True)
        slope = engine.gradient(S) @ engine.problem.mesh.facet_areas
        found.append([*S.real, *S.imag, where.allreduce(float(slope)), engine.estimated_error])
    assert np.allclose(found[0], found[1], rtol=1e-7, atol=1e-8 * np.abs(found[1]).max())


def test_error_of_the_mesh_of_parts():
    tissue = apart(MPI.COMM_SELF)
    estimates = []
    for modes in ("auto", ALL):
        engine = MatrixFormalism(BlochTorrey(tissue), table(), modes, 1e-7)
        engine.signals()
        estimates.append(mesh_error(engine))
    assert estimates[0] == pytest.approx(estimates[1], rel=1e-2)


def test_what_is_not_solved_part_by_part():
    line = touching(MPI.COMM_SELF).mesh
    leaking = Tissue(line, permeability=Permeability.on(line, membrane=1e-4))
    for engine in (MatrixFormalism(BlochTorrey(leaking), line_table()),
                   MatrixFormalism(BlochTorrey(touching(MPI.COMM_SELF)), line_table(), 60)):
        engine.signals()
        assert engine.basis is not None and not engine.parts
