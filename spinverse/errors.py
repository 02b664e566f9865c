"""The exceptions of spinverse, and how an error on one rank reaches all of them."""

from __future__ import annotations

import os
import pickle
import time
import warnings
from collections.abc import Callable
from typing import cast

_PACKAGE = os.path.dirname(__file__)
_SHORTEST, _LONGEST = 1e-5, 2e-3  # s, that a rank sleeps before it looks again


class SpinverseError(Exception):
    """Base class of every error that spinverse raises on purpose."""


class InputError(SpinverseError, ValueError):
    """Bad input of the user's: names the field, the value and what was expected."""


class StackError(SpinverseError, ImportError):
    """The installed DOLFINx / PETSc / SLEPc cannot run spinverse."""


class SolverError(SpinverseError, RuntimeError):
    """A solver failed: no factorisation, no convergence, not enough eigenpairs."""


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside this package that asked for it."""
    warnings.warn(message, category, skip_file_prefixes=(_PACKAGE,))


def one_line(message) -> str:
    """A message without line breaks; an exception without one gives its name."""
    return " ".join(str(message).split()) or type(message).__name__


def on_root[T](comm, function: Callable[..., T], *args, **kwargs) -> T | None:
    """Run ``function`` on rank 0 only; an exception there is raised on every rank.

    Returns the function's value on rank 0 and ``None`` elsewhere. Collective over ``comm``.
    """
    value, error = _tried(function, *args, **kwargs) if comm.rank == 0 else (None, None)
    sleep_until_all_are_here(comm)
    error = comm.bcast(error, root=0)
    if error is not None:
        raise error
    return value


def sleep_until_all_are_here(comm) -> None:
    """Before a message for which ranks have nothing to do for long. Collective.

    Ranks that wait for a message spin, and take the cores of those that work.
    """
    if comm.size == 1:
        return
    here, pause = comm.Ibarrier(), _SHORTEST
    while not here.Test():
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST)


def on_all[T](comm, function: Callable[..., T], *args, **kwargs) -> T:
    """Run ``function`` on every rank; an exception on any of them is raised on every rank.

    The function must not be collective: one that fails would leave the others waiting. Collective
    over ``comm``.
    """
    value, error = _tried(function, *args, **kwargs)
    for found in comm.allgather(error):
        if found is not None:
            raise found
    return cast(T, value)


def _tried(function: Callable, *args, **kwargs) -> tuple:
    try:
        return function(*args, **kwargs), None
    except Exception as exception:  # noqa: BLE001 - handed on, on every rank
        return None, _sendable(exception)


def _sendable(error: Exception) -> Exception:
    """The error, or its words where pickle cannot take it to the ranks that wait for it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - of whatever a library has put into it
        words = RuntimeError(f"{type(error).__name__}: {error}")
        words.__cause__ = error
        return words
    return error
