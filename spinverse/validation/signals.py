"""Families 1 to 7: signals over b, each tissue by one eigenproblem and by time steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np

from ..problem import BlochTorrey
from .discretisation import REFINED, Discretisation, discretisation
from .references import Case, by_tissue
from .rows import Row
from .solve import MATRIX_FORMALISM, TIME_STEPPING, Measurement, Settings, Solved, solve

TARGETS = {"default": 1e-3, "refined": 1e-4}
WALK_TARGET = 1e-3  # random walks are not known better


def signal_rows(family: str, settings: Settings) -> Iterator[Row]:
    """Rows of a family of the references. Collective."""
    for level in settings.levels:
        for group in by_tissue(family).values():
            yield from tissue_rows(group, level, settings)


def tissue_rows(group: list[Case], level: str, settings: Settings,
                choice: Discretisation | None = None) -> Iterator[Row]:
    """Rows of cases that share a tissue: modes first, then steps. Collective."""
    began = time.perf_counter()
    problem, columns = set_up(choice or discretisation(group[0], level), group[0], settings)
    tolerance = settings.tolerance_at(level)
    reference = None
    if settings.runs(MATRIX_FORMALISM):
        measured = [m for case in group for row in _measurements(case) for m in row]
        reference = solve(problem, measured, MATRIX_FORMALISM, tolerance)
        share = (time.perf_counter() - began) / len(group)
        for case in group:
            yield _row(case, level, MATRIX_FORMALISM, reference, case.b, case.directions, columns,
                       share)
    if settings.steps_through(problem.mesh.dim, level):
        # a factorisation a gradient: in 3-D the strongest of each sequence, in one direction
        few = problem.mesh.dim == 3 and not settings.everything
        chosen = _strongest(group) if few else [(c, c.b, c.directions) for c in group]
        for waveform in dict.fromkeys(case.waveform for case, *_ in chosen):
            # a waveform at a time, as each allows a step of its own
            these = [item for item in chosen if item[0].waveform == waveform]
            stepped = solve(problem, [m for item in these for row in _measurements(*item)
                                      for m in row], TIME_STEPPING, tolerance)
            for case, b, directions in these:
                row = _row(case, level, TIME_STEPPING, stepped, b, directions, columns,
                           stepped.seconds / len(these))
                if reference is not None:
                    other = reference.average(_measurements(case, b, directions))
                    row = dataclasses.replace(
                        row, difference=float(np.abs(np.subtract(row.ours, other)).max()))
                yield row


def set_up(choice: Discretisation, case: Case, settings: Settings) -> tuple[BlochTorrey, dict]:
    """The discrete problem, and the columns that say which."""
    return choice.problem(settings.comm, case.diffusivity,
                          np.inf if case.T2 is None else dict(enumerate(case.T2, 1)),
                          case.permeability, periodic="x" if case.geometry == "free" else "")


def _measurements(case: Case, b: Sequence[float] | None = None,
                  directions=None) -> list[list[Measurement]]:
    """For each b-value the measurements whose mean is its signal."""
    return [[Measurement(case.waveform, value, direction)
             for direction in (case.directions if directions is None else directions)]
            for value in (case.b if b is None else b)]


def _strongest(group: list[Case]) -> list[tuple[Case, tuple, tuple]]:
    """Of each waveform the case with the fewest directions, at its largest b."""
    first: dict = {}
    for case in group:
        if len(case.directions) < len(getattr(first.get(case.waveform), "directions", [0] * 9)):
            first[case.waveform] = case
    return [(case, case.b[-1:], case.directions) for case in first.values()]


def _row(case: Case, level: str, engine: str, solved: Solved, b, directions, columns: dict,
         seconds: float) -> Row:
    places = [case.b.index(value) for value in b]
    target = WALK_TARGET if case.monte_carlo else TARGETS[level]
    if level == REFINED and max(case.uncertainty) > target:
        target = TARGETS["default"]
    return Row(family=case.family, case=case.name, level=level, method=engine,
               at=tuple(f"b = {value:g}" for value in b),
               ours=solved.average(_measurements(case, b, directions)),
               reference=tuple(case.reference[k] for k in places),
               uncertainty=tuple(case.uncertainty[k] for k in places), target=target,
               seconds=seconds, **solved.columns, **columns)
