"""The search for shapes as a stage of a reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...engines.shapes import blocks
from ...errors import InputError
from ..facets.memory import Memory
from ..ledger import Ledger, State
from ..parameters import NOISE
from ..problem import InverseProblem
from .ledger import SearchLedger
from .schedule import Strategy, run
from .search import Search
from .settings import Settings

# mesh cells: every rank holds the mesh and the functions that fields are expanded in; in periodic
# boxes the fast models are dense
LARGEST, LARGEST_PERIODIC = 100_000, 4000
# cells: what the schedule has strategies for
MOST_CELLS, MOST_CELLS_PERIODIC = 9, 2


@dataclass(frozen=True)
class Shapes:
    """A search for the shapes of cells: which mesh cells lie inside.

    Every interface is closed by construction. Walls have the lowest permeability of the range, all
    other facets the highest. For meshes of up to 100,000 cells, and all waveforms.

    Attributes:
        name: for the history.
        cells: at most so many cells, which may touch or contain each other: up to 9, in periodic
            boxes 2. One more is looked for where fewer do not explain the data. None: the most.
        ellipsoids: random ones to begin with in every round.
        candidates: of these, the best distinct ones are followed up.
        rounds: at most so many; a round has six parts that begin with new ellipsoids.
        budget: shapes that may be looked at, about 30 ms of one core each (absorbing; reflecting
            ones count 2.5). The search ends with the best one so far after some more.
        budget_cpu_s: CPU seconds of all ranks together that the search may take, likewise; a run
            that is resumed begins anew. None: any number.
        stop_at: mean-square misfit that ends the search where there is no noise.
        seed: of all that is random.
        schedule: strategies of a round, where one cell is likely and where several are; None: the
            usual ones, see `spinverse.inversion.shapes.schedule`.

    Raises:
        InputError: a number out of its range.
    """

    name: str = "shapes"
    cells: int | None = None
    ellipsoids: int = 400
    candidates: int = 6
    rounds: int = 3
    budget: int = 40_000
    budget_cpu_s: float | None = None
    stop_at: float = 1e-7
    seed: int = 0
    schedule: tuple[Sequence[Strategy], Sequence[Strategy]] | None = None

    def __post_init__(self):
        for name, least, most in (("cells", 1, MOST_CELLS), ("ellipsoids", 1, np.inf),
                                  ("candidates", 1, np.inf), ("rounds", 1, np.inf),
                                  ("budget", 1, np.inf), ("budget_cpu_s", 1, np.inf),
                                  ("seed", 0, np.inf)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                expected = f"from {least} to {most}" if most < np.inf else f"at least {least}"
                raise InputError(f"stage {self.name!r}: {name} {value}, expected {expected}")

    @property
    def iterations(self) -> int:
        """About so many reports, for a progress bar."""
        return self.candidates * 8

    def unsuitable(self, problem: InverseProblem) -> str:
        """Why the search cannot run on a problem; "" if it can. Collective."""
        largest = LARGEST_PERIODIC if problem.periodic else LARGEST
        if problem.mesh.num_cells > largest:
            return (f"the mesh has {problem.mesh.num_cells} cells, and the search takes at most "
                    f"{largest}{' in a periodic box' if problem.periodic else ''}")
        forward = problem.forward(problem.permeability(1.0).values)
        try:
            blocks.check(forward)
        except InputError as error:
            return str(error).removeprefix("shape search: ")
        return ""

    def check(self, problem: InverseProblem) -> None:
        """Raise InputError if the search cannot run. Collective."""
        if (self.cells or 1) > _most_cells(problem):
            raise InputError(f"stage {self.name!r}: cells {self.cells}, expected at most "
                             f"{_most_cells(problem)} in a periodic box")
        why = self.unsuitable(problem)
        if why:
            raise InputError(f"stage {self.name!r}: {why}; use stages of facets")

    def run(self, problem: InverseProblem, state: State, ledger: Ledger) -> tuple[State, str]:
        """From a state to the next one, and why it ended. Collective.

        Raises:
            SolverError: no start gave a closed surface.
        """
        earlier = ledger.earlier(problem.mesh)
        done = 0 if earlier is None else earlier.iteration

        def report(phase: str, misfit: float) -> None:
            nonlocal done
            done += 1
            ledger.report(self.name, done, misfit, misfit, phase=phase)

        settings = Settings(
            cells=self.cells or _most_cells(problem), ellipsoids=self.ellipsoids,
            candidates=self.candidates, rounds=self.rounds, budget=self.budget,
            target=self.stop_at, seed=self.seed, cpu_seconds=self.budget_cpu_s or np.inf)
        numbers = None if earlier is None else earlier.numbers
        with ledger.clock("shapes"):
            search = Search(problem, settings)

            def at(labels: np.ndarray, theta: np.ndarray) -> State:
                models = search.models
                values = models.values(theta, int(labels.max(initial=0)))
                if NOISE in problem.unknown:
                    values[NOISE] = models.problem.likelihood.sigma
                return State(models.permeability(labels, theta),
                             labels[models.whole.owned_cells].astype(np.int32), values)

            def keep(kept: dict) -> None:
                there = at(kept["labels"], kept["theta"])
                ledger.keep(done, there, lambda: Memory(
                    "Shapes", done, kept, {"control": there.permeability}))

            while True:
                found = SearchLedger(search, report, keep, ledger.due)
                ending = run(search, found, numbers, self.schedule)
                sigma = found.lower_noise()
                if sigma is None:
                    break
                # what explained data of more noise is where the search goes on
                search = Search(replace(problem, sigma=sigma), settings)
                numbers = found.state(found.part) | {"within": np.array(True),
                                                     "bests": np.zeros(0)}
            surface = found.smooth()
            if surface is None:
                found.tune()
            ledger.evaluations += found.shapes
            if surface is None:
                return at(found.best.labels, found.best.theta), ending
            labels = search.cells.repaired(surface.labels)
            return replace(at(labels, surface.theta), surface=surface), ending


def _most_cells(problem: InverseProblem) -> int:
    """How many cells can be looked for."""
    return MOST_CELLS_PERIODIC if problem.periodic else MOST_CELLS
