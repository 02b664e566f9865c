"""pyadjoint's view of the problem: types, operations on the tape, Taylor tests."""

from .blocks import mapped, scalar, simulated_signals
from .coefficients import (
    CoefficientFunctional,
    CoefficientValues,
    Number,
    SquaredDifference,
    Values,
    reduced_functional,
)
from .taylor import taylor_rate
from .types import FacetField, SignalVector

__all__ = [
    "CoefficientFunctional", "CoefficientValues", "FacetField", "Number", "SignalVector",
    "SquaredDifference", "Values", "mapped", "reduced_functional", "scalar", "simulated_signals",
    "taylor_rate",
]
