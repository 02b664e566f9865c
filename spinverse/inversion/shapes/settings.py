"""How much work a search does. The same for every target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Numbers of starts, walks and steps. Figures behind them are in docs/notes.md.

    Attributes:
        cells: at most so many cells.
        ellipsoids: random ones that are tried in each part, sharp and graded.
        candidates: the best distinct ones of each kind, which are improved.
        rounds: at most so many rounds of the schedule.
        budget: shapes whose signals may be computed, about; the search ends after the walk that
            passes it.
        cpu_seconds: of all ranks together that it may take, likewise.
        target: mean-square misfit that ends the search where there is no noise.
        seed: of all that is random.
        few: directions that the first steps and graded shapes look at, if there is no noise.
        moves: shapes with more moves of single cells look at all directions where they are
            followed: from few, many moves do not come apart.
        early: parts after which everything that is followed looks at all directions.
        noisy: directions that are computed where there is noise, to tell the others from.
        examples: shapes that this is learnt from.
        walks: starts of one cell that walk.
        steps: of the short walks that tell good starts from bad ones.
        followed: walks of one cell that go on.
        couples: groups of pairs, of each of which the best walk goes on.
        turns: walks from one start, elsewhere on the lattice each time.
        sharpened: graded candidates that are made sharp.
        walk: iterations of a walk that is followed, at most.
        settled: places that are looked at closely before a walk of several cells.
        blind: steps of one cell that do not look at its place.
        places: places of one cell that are tried then.
    """

    cells: int = 2
    ellipsoids: int = 400
    candidates: int = 6
    rounds: int = 3
    budget: int = 40_000
    cpu_seconds: float = float("inf")
    target: float = 1e-7
    seed: int = 0
    few: int = 10
    moves: int = 140
    early: int = 2
    noisy: int = 10
    examples: int = 200
    walks: int = 3
    steps: int = 3
    followed: int = 1
    couples: int = 2
    turns: int = 2
    sharpened: int = 3
    walk: int = 40
    settled: int = 3
    blind: int = 3
    places: int = 2
