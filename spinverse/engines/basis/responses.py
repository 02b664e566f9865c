"""A Galerkin basis of what a uniform start becomes, instead of the lowest modes.

Where walls are half closed everywhere, modes lie close together and hundreds of them matter, while
what measurements reach from their common start is a space of few dimensions. It is spanned by the
responses

    w_0 = (A + s M)^-1 s M start,   w = (A + s M)^-1 F w',   F one of  s M,  g x_j M,  B,

to decay itself, to the strongest gradient g along each axis, and to fields: the terms of the
expansion of (A + i g . X + s M)^-1 in the gradient, a block rational Krylov space with one pole
(Ruhe, Linear Algebra Appl. 58 (1984) 391). What is rough of the start has decayed before a pulse
ends, so it is relaxed first. Long after a pulse the slowest modes are left; an approximation of
them begins the space, with their share then as weight. A generation of responses is orthogonalised
against those before it, and its singular vectors are kept from the largest singular value on.

One factorisation and blocks of right-hand sides make all this. In the space the decay operator is
diagonalised (Rayleigh-Ritz), so that all else is as with modes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from petsc4py import PETSc

from ...errors import SolverError
from ...parallel.columns import inner, times
from ...phases import phase
from ...problem import BlochTorrey
from ..linear.direct import factor_of
from .eigenmodes import Eigenmodes, check_decay, extent_of, project
from .krylov import Space, normalised, slow_space, waves
from .spectrum import decay_rates, diagonalised, rounding

_ROUNDS = 9  # of the Krylov space of slow modes
_SLOW = 3  # one function in three is a slow mode
_FADING = 1.5  # slow modes weigh exp(-_FADING lambda / s)
_FASTEST = 200.0  # of s: functions that decay faster only make exponentials long


def response_basis(problem: BlochTorrey, number: int, rate: float, strength: float,
                   options_prefix: str = "spinverse_responses_") -> Eigenmodes:
    """Responses of the start at the problem's present permeability, diagonalised. Collective.

    Args:
        problem: the discrete problem, without periodic axes.
        number: of functions; a few fewer or more come back, cut at a gap, or what there is.
        rate: s, 1/ms; a few over the time that the gradient is on for.
        strength: g, rad/(ms um).
        options_prefix: PETSc options with this prefix reach the linear solver.

    Raises:
        SolverError: if the factorisation fails; InputError: extra terms that have no place.
    """
    with phase("assembly"):
        A, M = problem.decay_matrix(), problem.mass_matrix
    values, columns = _responses(problem, A, M, number, rate, strength, options_prefix)
    return project(problem, values, columns)


@phase("responses")
def _responses(problem: BlochTorrey, A: PETSc.Mat, M: PETSc.Mat, number: int, rate: float,
               strength: float, options_prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Decay rates ascending, ``(K,)``, and local columns of the functions; A is freed if tied."""
    dim, size, unknowns = problem.mesh.dim, A.getSize()[0], problem.unknowns
    mass = problem.mass_of_unknowns
    number = min(number, size)
    shifted = A.copy()
    shifted.axpy(rate, M)
    try:
        solve = factor_of(shifted, options_prefix, "responses", problem.extra_blocks is None)
    except SolverError:
        shifted.destroy()
        problem.release(A)
        raise
    try:
        def respond(loads):
            return unknowns.local(solve(unknowns.gathered(loads)))

        def relax(functions):
            return respond(rate * (mass @ functions))

        space = Space(problem.comm, mass, number)
        values, slow = _slowest(problem, A, relax, number // _SLOW)
        newest = space.add(slow * np.exp(-_FADING * values / rate))
        # what the evolution and its adjoint begin with, of norm 1
        starts = normalised(problem.comm, problem.local_mass,
                             np.column_stack([problem.initial, problem.scale]))
        loads = unknowns.load(problem.local_mass @ starts)
        newest = np.hstack([newest, space.add(respond(rate * loads))])
        operators = problem.phase_operators
        forces = [rate * mass, *(strength * J for J in operators[:dim]), *operators[dim:]]
        while space.size < number and newest.shape[1]:
            newest = space.add(respond(np.hstack([F @ newest for F in forces])))
        values, functions = _diagonalised(problem, A, space)
        kept = max(1, int(np.searchsorted(values, _FASTEST * rate)))
    finally:
        solve.destroy()
        shifted.destroy()
        problem.release(A)
    return values[:kept], functions[:, :kept]


def _slowest(problem: BlochTorrey, A: PETSc.Mat, relax: Callable,
             number: int) -> tuple[np.ndarray, np.ndarray]:
    """About the slowest modes: values ``(k,)`` and functions, by a block Krylov space."""
    x = problem.space.tabulate_dof_coordinates()[: problem.local_mass.shape[0]]
    space = slow_space(problem.comm, problem.mass_of_unknowns, relax, problem.unknowns.nearest(
        waves(x, extent_of(problem), number)), _ROUNDS, A.getSize()[0])
    values, functions = _diagonalised(problem, A, space)
    return values[:number], functions[:, :number]


def _diagonalised(problem: BlochTorrey, A: PETSc.Mat,
                  space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Rayleigh-Ritz: eigenvalues ascending, ``(K,)``, and functions ``(n, K)``."""
    functions = space.functions
    columns = functions[: A.getLocalSize()[1]]
    values, rotation = diagonalised(space.comm, inner(space.comm, columns, times(A, columns)))
    check_decay(problem, values)
    return decay_rates(values, rounding(A, problem.mass_matrix)), functions @ rotation
