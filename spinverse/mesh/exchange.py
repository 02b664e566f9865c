"""Rows of arrays that change ranks: a few of all to rank 0, or each to the rank that needs it."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI


def gather_chosen(comm: MPI.Comm, chosen: np.ndarray, keys: np.ndarray,
                  *arrays: np.ndarray) -> tuple[np.ndarray, ...] | None:
    """The chosen rows of all ranks on rank 0, in the lexicographic order of their keys. Collective.

    Args:
        comm: the communicator.
        chosen: ``(n,)`` bool: a surface in a mesh, say; not most of what there is.
        keys: ``(n, k)`` integers that tell rows apart whatever the rank, as vertex triples do.
        *arrays: ``(n, ...)`` each.

    Returns:
        ``(keys, *arrays)`` on rank 0, ``None`` elsewhere.
    """
    parts = [comm.gather(np.asarray(a)[chosen], root=0) for a in (keys, *arrays)]
    if comm.rank:
        return None
    whole = [np.concatenate(part) for part in parts]
    order = np.lexsort(whole[0].T[::-1])
    return tuple(array[order] for array in whole)


def send(comm: MPI.Comm, ranks: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """Send every row to a rank. Collective.

    Args:
        comm: the communicator.
        ranks: ``(n,)`` where each row goes.
        *arrays: ``(n, ...)`` each.

    Returns:
        Of each array the rows that this rank gets, those of rank 0 first.
    """
    if comm.size == 1:
        return [np.asarray(array) for array in arrays]
    order = np.argsort(ranks, kind="stable")
    ends = np.searchsorted(np.asarray(ranks)[order], np.arange(1, comm.size))
    return [np.concatenate(comm.alltoall(np.split(np.asarray(array)[order], ends)))
            for array in arrays]


def summed(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal rows of integer keys ``(n, k)`` once, and the sums of their values ``(n,)``."""
    order = np.lexsort(keys.T[::-1])
    keys, values = keys[order], values[order]
    first = np.ones(len(keys), bool)
    first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    if not len(keys):
        return keys, values
    return keys[first], np.add.reduceat(values, np.flatnonzero(first))
