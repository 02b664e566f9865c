"""Statistics of values that are spread over the ranks; no rank has all of them."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from .exchange import Route, reduced


def order_statistics(comm: MPI.Comm, values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The values at some places of the ascending order of all ranks' values. Collective.

    ``values`` ``(n,)`` are of this rank; ``places`` ``(k,)``, from 0, and what is returned ``(k,)``
    the same on every rank.
    """
    keys = np.sort(_ordered(np.asarray(values, float) + 0.0))  # no -0
    places = np.asarray(places)
    low = np.full(len(places), np.iinfo(np.int64).min)
    high = np.full(len(places), np.iinfo(np.int64).max)
    while (low < high).any():  # 64 times
        middle = (low & high) + ((low ^ high) >> 1)
        enough = reduced(comm, np.searchsorted(keys, middle, "right")) > places
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return _ordered(low.view(float)).view(float)


def spread_distinct(comm: MPI.Comm, values: np.ndarray) -> np.ndarray:
    """The distinct values of all ranks, each on one rank. Collective."""
    values = np.unique(np.asarray(values, float) + 0.0)
    mixed = values.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(33)
    return np.unique(Route(comm, mixed % np.uint64(comm.size)).forward(values))


def _ordered(values: np.ndarray) -> np.ndarray:
    """Bits of floats as integers of the same order; its own inverse on their views."""
    bits = values.view(np.int64)
    return np.where(bits < 0, bits ^ np.iinfo(np.int64).max, bits)
