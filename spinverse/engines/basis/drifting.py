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

from ...problem import BlochTorrey

_INDEPENDENT = 3e-5  # part of a function's norm that is not in those before it, at least
_BLOCK = 32
_FEWEST = 24  # modes, so that the first truncations say something


def lowest(problem: BlochTorrey, number: int) -> int:
    """How many modes make a basis of about ``number`` functions, or of somewhat more."""
    each = 1 + len(problem.periodic)
    size = problem.num_unknowns
    few = max(_FEWEST, -(-number // each)) if each > 1 else number
    return size if number >= size or few * each >= size else few


def enriched(problem: BlochTorrey, values: np.ndarray, modes: np.ndarray, shift: float,
             solve: Callable[[np.ndarray], np.ndarray]) -> tuple:
    """Modes and responses, diagonalised. Collective.

    Args:
        values: ``(K,)`` eigenvalues, 1/ms.
        modes: ``(n_owned, K)`` at the owned broken dofs, mass-orthonormal.
        shift: s, 1/ms.
        solve: ``(n_owned,)`` load at the broken dofs to (A + s M)^-1 of it there.

    Returns:
        Eigenvalues ``(n,)``, functions ``(n_owned, n)`` and a rotation ``(n, n)``: the functions
        times its transpose are the modes and responses one after the other, orthonormalised, so
        that a smaller basis is the first of them.
    """
    comm, mass, count = problem.comm, problem.local_mass, len(values)
    axes = problem.periodic
    each = 1 + len(axes)
    functions = np.empty((len(modes), each * count))
    # A of a function is its load less s M times it
    loads = np.empty_like(functions)
    functions[:, ::each] = modes
    loads[:, ::each] = (mass @ modes) * (values + shift)
    for place, axis in enumerate(axes, start=1):
        loads[:, place::each] = problem.local_drifts[axis] @ modes
        for k in range(count):
            functions[:, place + each * k] = solve(loads[:, place + each * k])
    # a mode that nothing drifts has responses of round-off alone
    norms = np.sqrt(comm.allreduce(np.einsum("ij,ij->j", functions, mass @ functions)))
    norms[::each] = np.inf
    there = norms > _INDEPENDENT**2 * norms[norms < np.inf].max()
    functions, loads = _orthonormal(comm, mass, functions[:, there], loads[:, there])
    operator = comm.allreduce(functions.T @ loads) - shift * np.eye(functions.shape[1])
    found, rotation = comm.bcast(tuple(np.linalg.eigh(0.5 * (operator + operator.T))))
    return np.maximum(found, 0.0), functions @ rotation, rotation


def _orthonormal(comm, mass, functions: np.ndarray, loads: np.ndarray) -> tuple:
    """Gram-Schmidt in the mass product, dependent functions left out; loads go along.

    In order, so that the first n span what the first n that were kept did. By blocks, and twice,
    for what is lost of the digits the first time.
    """
    kept = np.empty((2, len(functions), 0))  # functions, loads
    for first in range(0, functions.shape[1], _BLOCK):
        block = np.stack([functions[:, first: first + _BLOCK], loads[:, first: first + _BLOCK]])
        norms = np.sqrt(comm.allreduce(np.einsum("ij,ij->j", block[0], mass @ block[0])))
        for _ in range(2):
            block -= kept @ comm.allreduce(kept[0].T @ (mass @ block[0]))
        chosen = np.empty((2, len(functions), 0))
        for k in range(block.shape[2]):
            column = block[:, :, k: k + 1]
            for _ in range(2):
                column = column - chosen @ comm.allreduce(chosen[0].T @ (mass @ column[0]))
            norm = np.sqrt(comm.allreduce(float(column[0, :, 0] @ (mass @ column[0, :, 0]))))
            if norm > _INDEPENDENT * norms[k]:
                chosen = np.concatenate([chosen, column / norm], axis=2)
        kept = np.concatenate([kept, chosen], axis=2)
    return kept[0], kept[1]
