"""pyadjoint's view of the problem: types, operations on the tape, Taylor tests."""

from .blocks import mapped, scalar, simulated_signals
from .taylor import taylor_rate
from .types import FacetField, SignalVector

__all__ = ["FacetField", "SignalVector", "mapped", "scalar", "simulated_signals", "taylor_rate"]
