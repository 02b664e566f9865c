"""A Galerkin basis for modes that drift with Q: the lowest modes and their first responses.

What is at rest in a closed compartment on a periodic box is w = exp(i Q . x), whose gradient does
not vanish at the walls, as that of all modes does. Modes alone approach it slowly, with a power of
their number. The responses eta_jk = (A + s M)^-1 N_j phi_k to a drift along each periodic axis
(`gauge.py` beside this) have the right flux: for a closed compartment x_j itself. With them the
error falls by about three orders at the same number of functions. In the space that both span, the
decay operator is diagonalised again (Rayleigh-Ritz); its lowest modes are still exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from petsc4py import PETSc

from ...parallel.columns import column_inner, inner, times
from ...problem import BlochTorrey
from .spectrum import decay_rates, diagonalised

_INDEPENDENT = 3e-5  # part of a function's norm that is not in those before it, at least
_BLOCK = 32
_FEWEST = 24  # modes, so that the first truncations say something


def lowest(problem: BlochTorrey, number: int) -> int:
    """How many modes make a basis of about ``number`` functions, or of somewhat more."""
    each = 1 + len(problem.periodic)
    size = problem.num_unknowns
    few = max(_FEWEST, -(-number // each)) if each > 1 else number
    return size if number >= size or few * each >= size else few


def enriched(problem: BlochTorrey, A: PETSc.Mat, columns: np.ndarray,
             solve: Callable[[np.ndarray], np.ndarray], rounding: float) -> tuple:
    """Modes and responses, diagonalised. Collective.

    The operator between them is made of the functions as they are after orthonormalisation: through
    the combinations of functions that nearly depend on each other what is known of A times each
    would lose digits.

    Args:
        A: the decay matrix of the problem.
        columns: ``(n, K)`` modes, local columns of `spinverse.unknowns`, mass-orthonormal.
        solve: owned columns of loads to (A + s M)^-1 of them.
        rounding: of decay rates, 1/ms.

    Returns:
        Eigenvalues ``(m,)``, local columns ``(n, m)`` and a rotation ``(m, m)``: the columns times
        its transpose are modes and responses one after the other, orthonormalised, so that a
        smaller basis is the first of them.

    Raises:
        SolverError: the functions lost their digits.
    """
    comm, mass, unknowns = problem.comm, problem.mass_of_unknowns, problem.unknowns
    each = 1 + len(problem.periodic)
    functions = np.empty((len(columns), each * columns.shape[1]), order="F")
    functions[:, ::each] = columns
    for place, axis in enumerate(problem.periodic, start=1):
        loads = unknowns.gathered(unknowns.operator(problem.local_drifts[axis]) @ columns)
        for first in range(0, loads.shape[1], _BLOCK):
            block = slice(first, first + _BLOCK)
            functions[:, place::each][:, block] = unknowns.local(solve(loads[:, block]))
    # a mode that nothing drifts has responses of round-off alone
    norms = np.sqrt(column_inner(comm, functions, mass @ functions))
    norms[::each] = np.inf
    there = norms > _INDEPENDENT**2 * norms[norms < np.inf].max()
    functions = _orthonormal(comm, mass, functions[:, there])
    owned = np.asfortranarray(functions[: A.getLocalSize()[1]])
    found, rotation = diagonalised(comm, inner(comm, owned, times(A, owned)))
    return decay_rates(found, rounding), functions @ rotation, rotation


def _orthonormal(comm, mass, functions: np.ndarray) -> np.ndarray:
    """Gram-Schmidt in the mass product, dependent functions left out.

    In order, so that the first n span what the first n that were kept did. By blocks, and twice,
    for what is lost of the digits the first time.
    """
    kept = np.empty((len(functions), 0))
    for first in range(0, functions.shape[1], _BLOCK):
        block = functions[:, first: first + _BLOCK]
        norms = np.sqrt(column_inner(comm, block, mass @ block))
        for _ in range(2):
            block = block - kept @ inner(comm, kept, mass @ block)
        chosen = np.empty((len(functions), 0))
        for k in range(block.shape[1]):
            column = block[:, k: k + 1]
            for _ in range(2):
                column = column - chosen @ inner(comm, chosen, mass @ column)
            norm = float(np.sqrt(column_inner(comm, column, mass @ column))[0])
            if norm > _INDEPENDENT * norms[k]:
                chosen = np.hstack([chosen, column / norm])
        # what was taken off the last of a block may be large beside what is left of it
        chosen = chosen - kept @ inner(comm, kept, mass @ chosen)
        kept = np.hstack([kept, chosen])
    return kept
