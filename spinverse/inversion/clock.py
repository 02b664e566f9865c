"""Seconds by part of a run, which are stages of PETSc's log as well."""

from __future__ import annotations

import time
from contextlib import contextmanager

from ..phases import phase


class Clock:
    """Adds up wall-clock seconds: ``with clock("forward"): ...``"""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str):
        start = time.perf_counter()
        try:
            with phase(part):
                yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[part] = self.seconds.get(part, 0.0) + spent
