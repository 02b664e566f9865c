"""The spectral solution of a permeable ball in a cube or on a lattice."""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI

from spinverse import Acquisition, InputError, Permeability, Tissue, mesh, simulate
from spinverse.validation import analytic
from spinverse.validation.ball_in_box import ball_in_cube, ball_lattice
from spinverse.validation.references import LATTICE, LENGTH, PULSE, RADIUS, SEPARATION, cases

B = np.array([500.0, 1000.0, 2000.0, 4000.0])
CUBE = {"radius": 7.0, "length": 20.0, "permeability": 0.01}


def of_file(direction: str, delta: float) -> np.ndarray:
    """The references of the sphere in the cube."""
    name = {"edge": "x", "diagonal": "111"}[direction]
    case = next(c for c in cases("6") if c.geometry == "sphere_in_cube"
                and f"_{name}_d" in c.name and c.waveform.delta == delta)
    assert max(case.uncertainty) < 4e-6 and not case.monte_carlo
    return np.array(case.reference)


@pytest.mark.parametrize("direction, waves", [("edge", (4, 8, 12)), ("diagonal", (4, 7, 10))])
def test_convergence_in_the_number_of_waves(direction, waves):
    exact = of_file(direction, 5.0)
    errors = [np.abs(ball_in_cube(B, 5, 6, **CUBE, direction=direction, waves=n) - exact).max()
              for n in waves]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 3e-5


def test_convergence_on_a_lattice():
    b = np.array(list(LATTICE[0.01]))
    exact = list(LATTICE[0.01].values())
    errors = [np.abs(ball_lattice(b, PULSE, SEPARATION, RADIUS, LENGTH, 0.01, waves=waves,
                                  degree=degree) - exact).max()
              for waves, degree in ((4, 4), (6, 7), (8, 10))]
    assert errors[0] > 5 * errors[1] and errors[2] < 1e-5


@pytest.mark.parametrize("direction", ["edge", "diagonal"])
def test_a_closed_ball_and_what_is_around_it_are_two(direction):
    """The share of the ball in the signal, where the rest has a share of its own."""
    share = 4 / 3 * np.pi * 7**3 / 20**3
    whole = ball_in_cube(B, 10, 20, 7.0, 20.0, 0.0, direction=direction, waves=8, degree=10)
    rest = (whole - share * analytic.sphere(B, 10, 20, 7.0)) / (1 - share)
    assert np.all((rest > 0) & (rest < np.exp(-0.3 * B / 1000)))


def test_a_ball_so_small_that_nothing_is_in_the_way():
    free = ball_lattice(B, PULSE, SEPARATION, 0.05, LENGTH, 0.0, waves=4, degree=3)
    assert np.abs(free - np.exp(-2 * B / 1000)).max() < 2e-6
    cube = ball_in_cube(B, 10, 20, 0.05, 12.0, 0.0, waves=12, degree=4)
    assert np.abs(cube - analytic.slab(B, 10, 20, 12.0)).max() < 2e-5


@pytest.mark.slow
def test_beside_finite_elements():
    """The errors of finite elements fall towards it."""
    errors = []
    for size in (3.0, 2.0):
        box = mesh.build(mesh.sphere_in_box, radius=7.0, box=(20.0,) * 3, size=size,
                         size_interface=0.7 * size, comm=MPI.COMM_SELF)
        table = Acquisition.pgse(B[-2:], [[1.0, 0, 0]], 10, 20)
        found = simulate(Tissue(box, permeability=Permeability.on(box, membrane=0.01)), table,
                         degree=2, mesh_error=False).normalised
        errors.append(np.abs(found - of_file("edge", 10.0)[-2:]).max())
    assert errors[1] < 0.6 * errors[0] and errors[1] < 3e-4


@pytest.mark.parametrize("changes, message", [
    ({"radius": 10.0}, "radius: 10 um, expected less than half of the length 20 um"),
    ({"permeability": np.inf}, "permeability: inf, expected a finite one"),
    ({"direction": "x"}, "direction: 'x', expected 'edge' or 'diagonal'"),
    ({"waves": 0}, "waves: 0, expected a positive whole number"),
    ({"diffusivity": -1.0}, "diffusivity: -1.0, expected a positive number")])
def test_bad_input(changes, message):
    with pytest.raises(InputError, match=message):
        ball_in_cube(B, 5, 6, **{**CUBE, **changes})
