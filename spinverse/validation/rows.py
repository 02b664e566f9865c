"""A row of the table, and the verdict over the rows of a family."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import SpinverseError

MET, WITHIN, MISSED, SHOWN = "met", "within the reference's own error", "missed", "shown"


class TargetMissed(SpinverseError):
    """A case at the default level is further from its reference than the target."""


@dataclass(frozen=True)
class Row:
    """One case by one method on one mesh; figures that are not there are nan.

    Attributes:
        method: "matrix_formalism", "time_stepping", or the function that made the value.
        at: what the values belong to: b-values, sizes, times; one text each.
        ours, reference: values, as many as ``at``; of each reference the ``uncertainty``, two
            standard deviations of a random walk.
        target: largest error that passes, absolute; of relative errors where ``relative``; nan
            where the row only shows something.
        mesh: dimension, cells, size, degree in words.
        size: target edge length, um.
        unknowns: complex unknowns.
        resolution: modes or time step in words.
        estimated_error: what the engine says that modes or steps leave.
        difference: largest difference from the matrix formalism on the same mesh.
        order, least_order: of convergence over a refined family, and what it has to reach.
        seconds: wall time, by `validate` unless given; cases that share a solve divide its time.
    """

    family: str
    case: str
    level: str
    method: str
    at: tuple[str, ...]
    ours: tuple[float, ...]
    reference: tuple[float, ...]
    uncertainty: tuple[float, ...] = ()
    target: float = math.nan
    relative: bool = False
    mesh: str = ""
    cells: int = 0
    size: float = math.nan
    degree: int = 0
    unknowns: int = 0
    resolution: str = ""
    estimated_error: float = math.nan
    difference: float = math.nan
    order: float = math.nan
    least_order: float = math.nan
    seconds: float = 0.0

    @property
    def errors(self) -> np.ndarray:
        """|ours - reference| of each value, relative if the row is."""
        found = np.abs(np.subtract(self.ours, self.reference))
        return found / np.abs(self.reference) if self.relative else found

    @property
    def worst(self) -> int:
        """Which value is furthest from its reference."""
        return int(np.argmax(self.errors))

    @property
    def error(self) -> float:
        """The largest error."""
        return float(self.errors.max())

    @property
    def excess(self) -> float:
        """The largest error beyond what the reference's own uncertainty explains."""
        own = np.array(self.uncertainty or (0.0,))
        if self.relative and self.uncertainty:
            own = own / np.abs(self.reference)
        return float((self.errors - own).max())

    @property
    def verdict(self) -> str:
        """`MET`, `WITHIN`, `MISSED`, or `SHOWN` for rows without a target."""
        if not math.isnan(self.least_order):
            return MET if self.order >= self.least_order else MISSED
        if math.isnan(self.target):
            return SHOWN
        if self.error <= self.target:
            return MET
        return WITHIN if self.uncertainty and self.excess <= self.target else MISSED


@dataclass(frozen=True)
class Verdict:
    """All rows of a family and level.

    Attributes:
        rows: how many have a target.
        worst: the row furthest above, or nearest to, its target.
        missed: cases that miss it, each once.
        within: cases that only the reference's own error keeps from meeting it.
    """

    family: str
    level: str
    rows: int
    worst: Row
    missed: tuple[str, ...]
    within: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.missed

    def describe(self) -> str:
        """One line for a person."""
        worst = self.worst
        if not math.isnan(worst.least_order):
            figure = f"lowest order {worst.order:.2f} (expected {worst.least_order:g})"
        elif self.rows:
            kind = "relative error" if worst.relative else "error"
            figure = f"worst {kind} {worst.error:.1e} (target {worst.target:g})"
        else:
            figure = f"largest error {worst.error:.1e} (no target)"
        more = f" and {len(self.missed) - 3} more" if len(self.missed) > 3 else ""
        state = "passed" if self.passed else f"MISSED: {', '.join(self.missed[:3])}{more}"
        note = f" but for {len(self.within)} that the reference's own error leaves open" \
            if self.within else ""
        return (f"{self.family:>11} {self.level:8} {figure} in {worst.case}: {state}{note}; "
                f"{self.seconds:.0f} s")


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    """One verdict for each family and level, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.family, row.level), []).append(row)
    found = []
    for (family, level), group in groups.items():
        judged = [row for row in group if row.verdict != SHOWN]
        found.append(Verdict(family, level, len(judged), max(judged or group, key=_distance),
                             tuple(dict.fromkeys(r.case for r in judged if r.verdict == MISSED)),
                             tuple(dict.fromkeys(r.case for r in judged if r.verdict == WITHIN)),
                             sum(row.seconds for row in group)))
    return found


def _distance(row: Row) -> tuple[bool, float]:
    """How far above its target a row is: missed ones first."""
    if not math.isnan(row.least_order):
        return row.verdict == MISSED, row.least_order / max(row.order, 1e-9)
    return row.verdict == MISSED, row.error / row.target if row.target > 0 else row.error
