"""What a validation run is to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpi4py import MPI

from .discretisation import DEFAULT, LEVELS, REFINED
from .solve import TIME_STEPPING

BOTH = "both"


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Attributes:
        comm: communicator of the meshes.
        refined: whether the refined level runs too.
        engine: "both", "matrix_formalism" or "time_stepping".
        tolerance: of modes and steps at the default level; a tenth of it at the refined one.
        everything: time stepping of all 3-D measurements on both levels, not of the strongest
            on the default one alone.
    """

    comm: MPI.Comm = field(default_factory=lambda: MPI.COMM_WORLD)
    refined: bool = False
    engine: str = BOTH
    tolerance: float = 1e-4
    everything: bool = False

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels to run."""
        return LEVELS if self.refined else (DEFAULT,)

    def runs(self, engine: str) -> bool:
        """Whether an engine is wanted."""
        return self.engine in (BOTH, engine)

    def steps_through(self, dim: int, level: str) -> bool:
        """Whether time stepping runs on a mesh: in 3-D at the default level, or if asked for."""
        return self.runs(TIME_STEPPING) and (
            dim < 3 or level == DEFAULT or self.everything)

    def tolerance_at(self, level: str) -> float:
        """What modes and steps may leave."""
        return self.tolerance / 10 if level == REFINED else self.tolerance
