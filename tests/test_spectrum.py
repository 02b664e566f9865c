"""Decay rates that are no decay rates."""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI

from spinverse import SolverError
from spinverse.engines.basis.spectrum import decay_rates, diagonalised


def test_rounding_is_clipped_and_nothing_else():
    assert np.array_equal(decay_rates(np.array([-1e-10, 0.5, 3.0])), [0.0, 0.5, 3.0])
    assert np.array_equal(decay_rates(np.array([-1e-5]), 1e-4), [0.0]) and not len(
        decay_rates(np.zeros(0)))
    for values in ([-4e4, 0.0, 12.0], [np.nan, 1.0], [-1e-5, 1.0]):
        with pytest.raises(SolverError, match="decay rate of"):
            decay_rates(np.array(values))


def test_an_operator_that_is_not_symmetric_is_refused():
    operator = np.array([[2.0, 1.0], [1.0 + 1e-12, 2.0]])
    values, vectors = diagonalised(MPI.COMM_SELF, operator)
    assert np.allclose(values, [1.0, 3.0]) and np.allclose(np.abs(vectors), np.sqrt(0.5))
    operator[0, 1] = 1.001
    with pytest.raises(SolverError, match="not symmetric"):
        diagonalised(MPI.COMM_SELF, operator)
