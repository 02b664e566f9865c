"""Seconds by phase."""

from __future__ import annotations

import time
from contextlib import contextmanager


class Clock:
    """Adds up wall-clock seconds: ``with clock("forward"): ...``"""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent
