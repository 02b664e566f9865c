"""Reports of how far an engine is."""

from __future__ import annotations


def silent(what: str, done: int, total: int) -> None:
    """Say nothing: what ``progress`` of an engine is until it is set.

    Called on every rank; counts are those of the rank. Never collective.

    Args:
        what: the present part of the work, in words.
        done, total: parts of it; total 0 where it is not known.
    """
