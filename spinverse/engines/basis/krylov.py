"""Orthonormal functions that grow by blocks, and the block Krylov space of what is slow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...parallel.exchange import reduced

PER_WAVE = 4  # functions wanted for each one that a space of slow ones starts from
_SMALL = 1e-7  # of the start's norm: what is below is round-off of others
_CANDIDATES = 12  # the last block is cut at the widest gap of this many last values


class Space:
    """Mass-orthonormal functions in local columns, up to about ``most`` of them.

    ``mass @ columns`` is the mass times columns ``(n, k)``; products are summed over ranks.
    """

    def __init__(self, comm, mass, most: int):
        self.comm, self.mass, self.most, self.size = comm, mass, most, 0
        self._columns = np.empty((2, mass.shape[0], most + _CANDIDATES), order="F")

    @property
    def functions(self) -> np.ndarray:
        """``(n, size)``."""
        return self._columns[0, :, : self.size]

    @property
    def _loads(self) -> np.ndarray:
        """The mass times them."""
        return self._columns[1, :, : self.size]

    def add(self, candidates: np.ndarray) -> np.ndarray:
        """New directions ``(n, k)`` of candidates ``(n, m)``, as long as they are among these."""
        new = self._without(self._without(candidates))
        values, vectors = self.comm.bcast(
            tuple(np.linalg.eigh(self._products(new, self.mass @ new))))
        sizes = np.sqrt(np.maximum(values[::-1], 0.0))
        sizes = sizes[: _kept(sizes, self.most - self.size)]
        new = new @ vectors[:, ::-1][:, : len(sizes)]
        # once more, for the digits that small ones have lost
        functions = self._without(new / sizes)
        loads = self.mass @ functions
        triangle = np.linalg.cholesky(self._products(functions, loads))
        turn = np.linalg.inv(self.comm.bcast(triangle)).T
        added = slice(self.size, self.size + len(sizes))
        self._columns[0, :, added] = functions @ turn
        self._columns[1, :, added] = loads @ turn
        self.size = added.stop
        return new

    def _without(self, columns: np.ndarray) -> np.ndarray:
        return columns - self.functions @ self._products(self._loads, columns)

    def _products(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return reduced(self.comm, a.T @ b)


def slow_space(comm, mass, relax: Callable, first: np.ndarray, rounds: int,
               size: int) -> Space:
    """The block Krylov space of ``relax``, in which slow functions lie. Collective.

    Args:
        mass: as of `Space`.
        relax: (A + s M)^-1 M of columns, in any unit.
        first: ``(n, k)`` what it starts from, of no symmetry.
        rounds: of ``relax``, each with as many new functions as ``first`` has.
        size: unknowns of all ranks: no more functions than these.
    """
    space = Space(comm, mass, min(rounds * first.shape[1], size))
    block = normalised(comm, mass, first)
    for _ in range(rounds):
        before = space.size
        space.add(relax(block))
        block = space.functions[:, before:]
        if not block.shape[1]:
            break
    return space


def waves(coordinates: np.ndarray, extent: float, number: int) -> np.ndarray:
    """Waves from long to short ones, of no symmetry, ``(n, 1 + number // PER_WAVE)``.

    Args:
        coordinates: ``(n, 3)`` um: values depend on nothing else, and not on ranks.
        extent: of the mesh, um.
        number: of slow functions that a space that starts from these is to tell.
    """
    k = np.arange(1, 2 + number // PER_WAVE)
    along = np.sin(np.outer([1.3, 2.1, 2.9], k)) * (3 * k ** (1 / 3) / extent)
    return np.cos(coordinates @ along + k)


def normalised(comm, mass, functions: np.ndarray) -> np.ndarray:
    """The functions ``(n, k)`` with norm 1. Collective."""
    squares = np.einsum("ij,ij->j", functions, mass @ functions)
    return functions / np.sqrt(reduced(comm, squares))


def _kept(sizes: np.ndarray, room: int) -> int:
    """How many of the descending sizes to keep: those that are not small, as far as there is room.

    Where room ends, the cut is at the widest gap nearby: equal ones stay together, whose span, and
    the signals, would else depend on the ranks.
    """
    there = int(np.count_nonzero(sizes > _SMALL))
    if there <= room:
        return there
    first = max(room - _CANDIDATES, 1)
    logs = np.log(np.maximum(sizes[first - 1: room + _CANDIDATES], _SMALL))
    return first + int(np.argmax(-np.diff(logs)))
