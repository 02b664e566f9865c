"""What can be validated, and the run over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from ..errors import InputError
from . import facts, published
from .convergence import agreement_rows, order_rows, tolerance_rows
from .rows import Row
from .signals import signal_rows
from .solve import Settings


@dataclass(frozen=True)
class Family:
    """Reference cases of one kind.

    Attributes:
        name: what ``--families`` takes.
        rows: yields the rows as they are done; collective.
        needs_both: whether it compares the engines with each other.
    """

    name: str
    title: str
    rows: Callable[[Settings], Iterator[Row]]
    needs_both: bool = False


_TITLES = {
    "1": "slab of 10 um", "2": "stacks of 5 um slabs with membranes",
    "3": "disk (infinite cylinder) and sphere, radius 5 um",
    "4": "two-layer cylinder and spheres, radii 3 and 6 um",
    "5": "21 slabs of 2 um", "6": "sphere and L-shaped cell in a cube of 20 um",
    "7": "OGSE, double PGSE and trapezoids: slab, disk, free medium"}

FAMILIES: tuple[Family, ...] = (
    *(Family(name, title, partial(signal_rows, name)) for name, title in _TITLES.items()),
    Family("exchange", "slowest exchange time without gradient", facts.exchange_rows),
    Family("layers", "published three-layer tables, b to 10000; unequal layers", facts.layer_rows),
    Family("narrowing", "motional narrowing of long pulses", facts.narrowing_rows),
    Family("short_time", "D(t) at short times and its limit", facts.short_time_rows),
    Family("effective", "effective medium: long times in an endless stack", facts.effective_rows),
    Family("lattice", "balls on a periodic lattice", facts.lattice_rows),
    Family("published", "MISST's signals, Karger's model, tortuosity of a square array",
           published.published_rows),
    Family("b_values", "b of every waveform", facts.b_value_rows),
    Family("orders", "orders of convergence in h and the time step", order_rows),
    Family("agreement", "both engines on one mesh, refined modes and steps", agreement_rows,
           needs_both=True),
    Family("tolerance", "automatic modes and steps against what was asked", tolerance_rows),
)


def choose_families(names: Iterable[str] | None = None) -> list[Family]:
    """Families by name, or the InputError that one is none, in the order of the list; None: all."""
    known = {family.name: family for family in FAMILIES}
    names = list(known if names is None else names)
    for name in names:
        if name not in known:
            raise InputError(f"--families: {name!r}, expected some of {', '.join(known)}")
    return [family for family in FAMILIES if family.name in names]


def validate(families: Iterable[str] | None = None, settings: Settings | None = None,
             progress: Callable[[Row], object] | None = None) -> list[Row]:
    """Run families, all if not given; ``progress`` gets each row, on every rank. Collective.

    Returns:
        The rows, the same on every rank but for the seconds.

    Raises:
        InputError: an unknown family; SolverError: a solver failed.
    """
    settings, rows = settings or Settings(), []
    for family in choose_families(families):
        began = time.perf_counter()
        for row in family.rows(settings):
            rows.append(row if row.seconds else replace(row, seconds=time.perf_counter() - began))
            if progress is not None:
                progress(rows[-1])
            began = time.perf_counter()
    return rows
