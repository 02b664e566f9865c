"""The schedule: which strategies a search runs, in which order, until the data are explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count

import numpy as np

from ...errors import SolverError
from .hypothesis import Hypothesis
from .ledger import SearchLedger
from .search import Search
from .strategies.graded_shapes import graded_shapes
from .strategies.one_cell import one_cell
from .strategies.polish import polish
from .strategies.smooth_shapes import smooth_shapes
from .strategies.smooth_surface import smooth_surface
from .strategies.two_cells import two_cells
from .strategies.walking import go_on

#: A strategy goes from hypotheses to hypotheses under a ledger; ``turn`` counts its earlier
#: places in the schedule (of those that follow a part: the parts before).
Strategy = Callable[[Search, Sequence[Hypothesis], SearchLedger, int], list[Hypothesis]]

#: The parts of a round.
ROUND: tuple[Strategy, ...] = (smooth_shapes, graded_shapes, smooth_shapes, graded_shapes,
                               smooth_shapes, two_cells)
#: On large meshes (`Models.large`), and of several cells.
FINE: tuple[Strategy, ...] = (smooth_shapes,) * len(ROUND)
#: In periodic boxes: where one cell is likely, and where two are.
ONE: tuple[Strategy, ...] = (one_cell, graded_shapes, one_cell, graded_shapes, one_cell, two_cells)
TWO: tuple[Strategy, ...] = (one_cell, two_cells, two_cells, graded_shapes, two_cells, one_cell)
#: What follows each part where the data have noise.
AFTER: tuple[Strategy, ...] = (polish,)
#: What follows the first `EARLY` parts, in which data of the mesh are mostly explained, each round,
#: and the end, where the best does not explain the data; ``turn`` is the part.
EARLY = 2
BESIDE: tuple[Strategy, ...] = (smooth_surface,)


def run(search: Search, ledger: SearchLedger, state: Mapping[str, np.ndarray] | None = None,
        rounds: tuple[Sequence[Strategy], Sequence[Strategy]] | None = None) -> str:
    """Run the schedule until one hypothesis explains the data. Collective.

    Args:
        search: what is searched.
        ledger: has the best hypothesis at the end.
        state: of a search that was interrupted (`SearchLedger.state`).
        rounds: the schedule where one cell is likely, and where several are; `ROUND`, `FINE`, or
            `ONE` and `TWO`, if not given.

    Returns:
        Why it ended.

    Raises:
        SolverError: no start gave a closed surface.
    """
    usual = rounds is None
    if rounds is None:
        models = search.models
        rounds = (ONE, TWO) if models.whole.periodic else ((FINE if models.large else ROUND), FINE)
    hypotheses: list[Hypothesis] = []
    first = 0 if state is None else ledger.restore(state)
    if state is not None and state["within"]:
        hypotheses += go_on(search, ledger)  # what walks had come to is not walked again
        why = ledger.verdict()
        if why:
            return why
    for part in count(first):
        plan = rounds[ledger.several]
        turn, k = divmod(part, len(plan))
        if usual and (part == EARLY or turn and not k) and ledger.unexplained():
            why = _beside(search, hypotheses, ledger, part)
            if why:
                return why
        if turn >= search.settings.rounds:
            break
        strategy = plan[k]
        # graded shapes fit noise: only what is far from it gains
        if (strategy is two_cells and search.settings.cells == 1
                or strategy is graded_shapes and search.noisy and not ledger.gap()):
            continue
        ledger.begin(part)
        before = plan[:k].count(strategy)
        hypotheses += strategy(search, hypotheses, ledger, turn * plan.count(strategy) + before)
        ledger.pause()
        if search.noisy and ledger.best is not None and not ledger.solved():
            for strategy in AFTER:
                hypotheses += strategy(search, hypotheses, ledger, part)
        ledger.end()
        why = ledger.verdict()
        if why:
            if usual and ledger.unexplained():
                why = _beside(search, hypotheses, ledger, part) or why
            return why
        ledger.keep()
    if ledger.best is None:
        raise SolverError("shape search: no start with a closed surface; more ellipsoids?")
    return "all rounds are done"


def _beside(search: Search, hypotheses: list[Hypothesis], ledger: SearchLedger, part: int) -> str:
    """Run what is `BESIDE`; why to end after it, or ""."""
    for strategy in BESIDE:
        hypotheses += strategy(search, hypotheses, ledger, part)
    return ledger.verdict()
