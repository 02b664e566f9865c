"""Named phases of a computation, as stages and events of PETSc's log and as a table of seconds.

``spinverse simulate run.yaml -o out -- -log_view`` shows them among the stages. A phase inside
another one is counted as itself only.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from petsc4py import PETSc


@dataclass
class Record:
    """Seconds of this rank by phase, of processor (``cpu``) and ``wall`` time, and ``calls``."""

    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    wall: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _stack: list[str] = field(default_factory=list)
    _since: tuple[float, float] = (0.0, 0.0)

    def _switch(self) -> None:
        now = time.process_time(), time.perf_counter()
        if self._stack:
            self.cpu[self._stack[-1]] += now[0] - self._since[0]
            self.wall[self._stack[-1]] += now[1] - self._since[1]
        self._since = now

    def enter(self, name: str) -> None:
        self._switch()
        self._stack.append(name)
        self.calls[name] += 1

    def leave(self) -> None:
        self._switch()
        self._stack.pop()


_record: ContextVar[Record | None] = ContextVar("spinverse_phases", default=None)


@contextmanager
def recorded() -> Iterator[Record]:
    """The seconds of all phases that are run in the block."""
    record = Record()
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A phase of a computation; also a decorator of functions. The same on every rank."""
    stage, event = PETSc.Log.Stage(name), PETSc.Log.Event(name)
    record = _record.get()
    stage.push()
    event.begin()
    if record is not None:
        record.enter(name)
    try:
        yield
    finally:
        if record is not None:
            record.leave()
        event.end()
        stage.pop()
