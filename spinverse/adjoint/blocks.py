"""Operations on the tape: each knows its value and its adjoint, pyadjoint composes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from pyadjoint import AdjFloat, Block, annotate_tape, get_working_tape

from .types import FacetField, SignalVector


class Operation(Protocol):
    """A differentiable function of arrays, mostly of one.

    ``value(x)`` returns the result; ``pull_back(x, adjoint)`` the adjoint of the input, or a list.
    """

    @property
    def value(self) -> Callable: ...

    @property
    def pull_back(self) -> Callable: ...


class OperationBlock(Block):
    """One operation with one output, of one input or several."""

    def __init__(self, operation: Operation, inputs: list, wrap: Callable):
        super().__init__()
        self.operation, self.wrap = operation, wrap
        for x in inputs:
            self.add_dependency(x)

    def recompute_component(self, inputs, block_variable, idx, prepared):
        return self.wrap(self.operation.value(*(x.values for x in inputs)))

    def prepare_evaluate_adj(self, inputs, adj_inputs, relevant_dependencies):
        adjoint = adj_inputs[0]
        adjoint = adjoint.values if hasattr(adjoint, "values") else float(adjoint)
        found = self.operation.pull_back(*(x.values for x in inputs), adjoint)
        return found if isinstance(found, list) else [found]

    def evaluate_adj_component(self, inputs, adj_inputs, block_variable, idx, prepared=None):
        return inputs[idx]._like(prepared[idx])


def apply(operation: Operation, x, wrap: Callable):
    """The operation's value at x, or at a list of them; taped when pyadjoint annotates."""
    inputs = x if isinstance(x, list) else [x]
    result = wrap(operation.value(*(each.values for each in inputs)))
    if annotate_tape():
        block = OperationBlock(operation, inputs, wrap)
        get_working_tape().add_block(block)
        block.add_output(result.create_block_variable())
    return result


class EngineOperation:
    """Permeability to signals: either engine."""

    def __init__(self, engine):
        self.engine = engine
        self._last: list[np.ndarray] | None = None

    def value(self, *inputs: np.ndarray) -> np.ndarray:
        self._last = None  # a failed solve must not leave a state that looks valid
        signals = self._signals(*inputs)
        self._last = [x.copy() for x in inputs]
        return signals

    def pull_back(self, *inputs_and_adjoint: np.ndarray):
        *inputs, adjoint = inputs_and_adjoint
        known = self._last is not None and all(map(np.array_equal, self._last, inputs))
        if not all(self.engine.problem.comm.allgather(known)):
            self.value(*inputs)
        return self._derivative(adjoint, *inputs)

    def _signals(self, permeability: np.ndarray) -> np.ndarray:
        return self.engine.signals(permeability, remember=True)

    def _derivative(self, adjoint: np.ndarray, permeability: np.ndarray):
        return self.engine.gradient(adjoint)


def simulated_signals(permeability: FacetField, engine) -> SignalVector:
    """Signals of either engine at a permeability, um/ms, on the tape. Collective."""
    return apply(EngineOperation(engine), permeability, SignalVector)


def mapped(field: FacetField, operation: Operation) -> FacetField:
    """A facet-wise map, such as a control to its permeability, on the tape."""
    return apply(operation, field, lambda values: FacetField(field.mesh, values))


def scalar(x, operation: Operation) -> AdjFloat:
    """A number from facet values or signals, such as a prior or a misfit, on the tape."""
    return apply(operation, x, AdjFloat)
