"""Operations on the tape: each knows its value and its adjoint, pyadjoint composes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from pyadjoint import AdjFloat, Block, annotate_tape, get_working_tape

from .types import FacetField, SignalVector


class Operation(Protocol):
    """A differentiable function of one array.

    ``value(x)`` returns the result; ``pull_back(x, adjoint)`` the adjoint of the input.
    """

    def value(self, x: np.ndarray): ...

    def pull_back(self, x: np.ndarray, adjoint): ...


class OperationBlock(Block):
    """One operation with one input and one output."""

    def __init__(self, operation: Operation, x, wrap: Callable):
        super().__init__()
        self.operation, self.wrap = operation, wrap
        self.add_dependency(x)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return self.wrap(self.operation.value(inputs[0].values))

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        adjoint = adj_inputs[0]
        adjoint = adjoint.values if hasattr(adjoint, "values") else float(adjoint)
        return inputs[0]._like(self.operation.pull_back(inputs[0].values, adjoint))


def apply(operation: Operation, x, wrap: Callable):
    """The operation's value, taped when pyadjoint annotates."""
    result = wrap(operation.value(x.values))
    if annotate_tape():
        block = OperationBlock(operation, x, wrap)
        get_working_tape().add_block(block)
        block.add_output(result.create_block_variable())
    return result


class EngineOperation:
    """Permeability to signals: either engine."""

    def __init__(self, engine):
        self.engine = engine
        self._last: np.ndarray | None = None

    def value(self, permeability: np.ndarray) -> np.ndarray:
        self._last = None  # a failed solve must not leave a state that looks valid
        signals = self.engine.signals(permeability, remember=True)
        self._last = permeability.copy()
        return signals

    def pull_back(self, permeability: np.ndarray, adjoint: np.ndarray) -> np.ndarray:
        comm = self.engine.problem.comm
        known = self._last is not None and np.array_equal(self._last, permeability)
        if not all(comm.allgather(known)):
            self.value(permeability)
        return self.engine.gradient(adjoint)


def simulated_signals(permeability: FacetField, engine) -> SignalVector:
    """Signals of an engine at a permeability, um/ms, on the tape. Collective.

    Args:
        permeability: on every owned facet of the engine's mesh.
        engine: `MatrixFormalism` or `TimeStepping`.
    """
    return apply(EngineOperation(engine), permeability, SignalVector)


def mapped(field: FacetField, operation: Operation) -> FacetField:
    """A facet-wise map, such as a control to its permeability, on the tape."""
    return apply(operation, field, lambda values: FacetField(field.mesh, values))


def scalar(x, operation: Operation) -> AdjFloat:
    """A number from facet values or signals, such as a prior or a misfit, on the tape."""
    return apply(operation, x, AdjFloat)
