"""Stages of facets that find numbers too, and stages of the facets of walls."""

from __future__ import annotations

import numpy as np
import pytest
import ufl
from mpi4py import MPI

from spinverse import InputError, Permeability, Tissue, Unknown, mesh, simulate
from spinverse.acquisition import Acquisition
from spinverse.adjoint import taylor_rate
from spinverse.inversion import TAO, GaussNewton, InverseProblem, Stage, State
from spinverse.inversion.facets.memory import Memory
from spinverse.inversion.facets.stage import _Running
from spinverse.inversion.ledger import Ledger, Saver
from spinverse.inversion.reconstruct import solve
from spinverse.mesh import Ball

UNKNOWN = {"rho": Unknown(0.02, 0.0, 0.1, "linear"), "T2": Unknown(60.0, 5.0, 1000.0),
           "diffusivity_inside": Unknown(2.0, 0.5, 3.5, deviation=0.5),
           "diffusivity_outside": Unknown(1.7, 0.5, 3.5)}


def relaxing_membranes(m, v, t, coefficients):
    both = ufl.inner(m("+"), v("+")) + ufl.inner(m("-"), v("-"))
    return coefficients["rho"] * coefficients.membrane("+") * both * coefficients.dS


TERM = dict(extra_terms=relaxing_membranes, extra_coefficients={"rho": 0.02})


def ball():
    return mesh.build(mesh.tagged_grid, Ball(3.0), 10.0, cells=2, comm=MPI.COMM_SELF)


def truth(facets) -> Permeability:
    return Permeability.on(facets, 0.02, 100.0, outer=100.0)


def labels_of(facets) -> np.ndarray:
    return (facets.cell_tags[: facets.num_owned_cells] == 1).astype(np.int32)


def table(directions=6) -> Acquisition:
    return Acquisition.pgse([0, 1000, 3000], directions=directions, delta=[3, 3], Delta=[5, 20])


def problem_of(facets, signals, unknown, **known) -> InverseProblem:
    return InverseProblem(facets, signals, boundary="absorbing", unknown=unknown, **known)


# ---- slopes -------------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("engine", ["matrix_formalism", "time_stepping"])
@pytest.mark.parametrize("control", ["log", "squashed"])
def test_taylor_of_facets_and_numbers(comm, engine, control):
    facets = mesh.build(mesh.box, [10.0] * 3, cells=(1, 1, 1), comm=comm)
    few = Acquisition.pgse([0, 2000], directions=1, delta=2, Delta=4)
    signals = simulate(Tissue(facets, permeability=0.5), few, modes=20)
    problem = problem_of(facets, signals, UNKNOWN, engine=engine, time_step=1.0, noise=0.05,
                         noise_model="gaussian", modes=4 * facets.num_cells, **TERM)
    labels = (facets.input_cells[: facets.num_owned_cells] < 3).astype(np.int32)
    state = State(problem.permeability(1.0).values, labels, problem.start_of_unknown)
    stage = Stage("s", control=control)
    running = _Running(stage, problem, state, Ledger())
    control, J = running._taped()
    assert comm.allreduce(len(control)) == facets.num_facets + 4
    assert taylor_rate(J, control, steps=2) > 1.9
    alone = np.r_[np.zeros(facets.num_owned_facets), np.linspace(0.5, 1, running.numbers.own)]
    assert taylor_rate(J, control, alone, steps=2) > 1.9


# ---- numbers are found --------------------------------------------------------------------------


@pytest.mark.parametrize("unknown, optimiser, iterations", [
    ("diffusivity", GaussNewton(), 12), ("rho", GaussNewton(), 12), ("rho", TAO(), 40)])
def test_a_number_is_found_beside_the_facets(unknown, optimiser, iterations):
    facets, exact = ball(), {"diffusivity": 1.5, "rho": 0.03}
    start = {"diffusivity": Unknown(2.0, 0.5, 3.5), "rho": Unknown(0.02, 0.0, 0.1, "linear")}
    signals = simulate(Tissue(facets, diffusivity=1.5, permeability=truth(facets)), table(8),
                       modes=192, extra_terms=relaxing_membranes,
                       extra_coefficients={"rho": 0.03})
    problem = problem_of(facets, signals, {unknown: start[unknown]}, modes=192,
                         diffusivity=2.0 if unknown == "diffusivity" else 1.5,
                         extra_terms=relaxing_membranes,
                         extra_coefficients={"rho": 0.02 if unknown == "rho" else 0.03})
    near = np.where(truth(facets).values < 1, 0.05, 100.0)
    result = solve(problem, [Stage("s", optimiser=optimiser, iterations=iterations)],
                   State(near, None, problem.start_of_unknown))
    assert result.theta[unknown] == pytest.approx(exact[unknown], rel=1e-2)
    assert result.data_misfit < 1e-4 * result.history[0].data


def test_inside_and_outside_need_labels():
    facets = ball()
    signals = simulate(Tissue(facets, permeability=truth(facets)), table(), modes=60)
    problem = problem_of(facets, signals, ["T2_inside"], modes=60)
    with pytest.raises(InputError, match="T2_inside in a stage of facets.*search for shapes"):
        solve(problem, [Stage("s")], problem.state(1.0))


class Last(Saver):
    def within(self, stage, iteration, state, memory):
        self.state, self.memory = state, memory


@pytest.mark.mpi
@pytest.mark.parametrize("optimiser", [GaussNewton(damping=1.0), TAO()])
def test_an_interrupted_stage_goes_on_with_its_numbers(comm, optimiser):
    facets = mesh.build(mesh.box, [10.0] * 3, cells=(1, 1, 1), comm=comm)
    few = Acquisition.pgse([0, 2000], directions=3, delta=2, Delta=4)
    signals = simulate(Tissue(facets, diffusivity=1.5, permeability=0.1), few, modes=20)
    problem = InverseProblem(facets, signals, modes=20,
                             unknown={"diffusivity": Unknown(2.0, 0.5, 3.5)})

    def run(iterations, memory=None):
        saver = Last()
        found = solve(problem, [Stage("s", optimiser=optimiser, iterations=iterations)],
                      problem.state(1.0), Ledger(saver=saver, memory=memory))
        return found, saver

    whole, _ = run(4)
    _, saver = run(2)
    assert saver.state.theta["diffusivity"] != 2.0
    memory = saver.memory().in_slabs(facets)
    assert memory["beside/control"].shape == (1,)
    assert len(Memory.scattered(facets, memory).facets["control"]) == (
        facets.num_owned_facets + (comm.rank == 0))
    rest, _ = run(4, memory)
    assert rest.theta["diffusivity"] == pytest.approx(whole.theta["diffusivity"], rel=1e-6)
    np.testing.assert_allclose(rest.permeability, whole.permeability, rtol=1e-5)


# ---- walls that are not uniform -----------------------------------------------------------------


def patched(facets) -> Permeability:
    """A ball whose upper half leaks."""
    walls = truth(facets).values
    upper = facets.facet_corners.mean(axis=1)[:, 2] > facets.centre[2] + 0.5
    return Permeability(facets, np.where((walls < 1) & upper, 0.5, walls))


def test_a_leaky_patch_is_found():
    facets = ball()
    true = patched(facets)
    wall = true.values < 1
    signals = simulate(Tissue(facets, permeability=true), table(12), modes=150)
    problem = problem_of(facets, signals, (), modes=150)
    uniform = State(np.where(wall, 0.05, 100.0), labels_of(facets), problem.start_of_unknown)
    stage = Stage("walls", facets="walls", optimiser=GaussNewton(), iterations=30,
                  priors={"smoothness": 1e-4})
    result = solve(problem, [stage], uniform)
    assert np.all(result.permeability[~wall] == 100.0)
    # a ball is its own mirror image: what leaks is half of it, on one side or the other
    found = result.permeability[wall]
    assert result.data_misfit < 1e-3 * result.history[0].data
    assert found.max() > 0.1 > found.min()
    again = solve(problem, [Stage("walls", facets="walls", skip_below=1.0)],
                  State(result.permeability, result.labels, result.theta))
    assert again.endings["walls"].startswith("left out")


def test_wrong_stages_of_walls():
    with pytest.raises(InputError, match="facets 'some'"):
        Stage("s", facets="some")
    with pytest.raises(InputError, match="expected no restart"):
        Stage("s", facets="walls", restart=1.0)
    facets = ball()
    signals = simulate(Tissue(facets, permeability=truth(facets)), table(), modes=60)
    problem = problem_of(facets, signals, ())
    with pytest.raises(InputError, match="no labels of cells"):
        solve(problem, [Stage("s", facets="walls")], problem.state(1.0))
