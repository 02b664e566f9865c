"""How much memory something takes, as tracemalloc sees it, to which numpy reports."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any


def peak(action: Callable[[], Any]) -> tuple[Any, int]:
    """What ``action()`` returns, and the most memory, bytes, that it had above the start."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = action()
        return result, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
