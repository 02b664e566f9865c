"""From tissue and acquisition to signals."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .acquisition import Acquisition, Signals
from .acquisition.signals import UM3
from .engines.basis.eigenmodes import eigenmodes
from .engines.march.time_stepping import TimeStepping
from .engines.modal.matrix_formalism import MatrixFormalism
from .errors import InputError
from .extra_terms import Unsuitable
from .problem import BlochTorrey
from .tissue import Tissue

ENGINES = ("matrix_formalism", "time_stepping")

_log = logging.getLogger(__name__)


def make_engine(problem: BlochTorrey, acquisition: Acquisition, engine: str = "auto",
                modes: int | str = "auto", tolerance: float = 1e-4,
                time_step: float | str = "auto",
                functions: str = "modes") -> MatrixFormalism | TimeStepping:
    """The engine of a name; see `simulate` for the arguments. Collective.

    ``functions`` is of the matrix formalism (`MatrixFormalism`).

    With "auto" a line of the log (rank 0, level warning) says it if the matrix formalism cannot
    take the problem's extra terms.

    Raises:
        InputError: an unknown name, or arguments that the engine refuses.
    """
    if engine == "auto":
        try:
            if problem.extra_structure[1]:
                eigenmodes(problem, 1)
            engine = "matrix_formalism"
        except Unsuitable as error:
            engine = "time_stepping"
            if problem.comm.rank == 0:
                _log.warning("engine: time_stepping; the matrix formalism cannot take extra_terms, "
                             "because %s", error.reason)
    if engine == "matrix_formalism":
        return MatrixFormalism(problem, acquisition, modes, tolerance, functions=functions)
    if engine == "time_stepping":
        return TimeStepping(problem, acquisition, time_step, tolerance=tolerance)
    raise InputError(f"engine: {engine!r}, expected one of {', '.join(ENGINES)}, auto")


def simulate(tissue: Tissue, acquisition: Acquisition, engine: str = "auto",
             degree: int = 1, modes: int | str = "auto", tolerance: float = 1e-4,
             time_step: float | str = "auto", extra_terms: Callable | None = None,
             extra_coefficients: Mapping | None = None,
             extra_breakpoints: Sequence[float] = ()) -> Signals:
    """Simulate every measurement. Collective.

    Args:
        tissue: what the spins live in.
        acquisition: the measurements.
        engine: "matrix_formalism" (all measurements from one eigenproblem), "time_stepping", or
            "auto": the first one, unless it cannot take ``extra_terms``.
        degree: polynomial degree within a cell.
        modes: of the matrix formalism: a number, or "auto" for as many as ``tolerance`` needs.
        tolerance: wanted absolute error of S / S(b=0, t=0) from modes or time steps; the error
            of the mesh comes on top.
        time_step: of time stepping: longest step, ms, or "auto" for what ``tolerance`` needs.
        extra_terms: physics of your own, ``extra_terms(m, v, t, coefficients) -> ufl.Form``: see
            docs/new_physics.md.
        extra_coefficients: what it finds as ``coefficients[name]``: numbers, values by cell tag or
            by cell, or UFL coefficients.
        extra_breakpoints: times in ms at which it jumps.

    Returns:
        Signals, um^d times density, the same on every rank, with `Signals.estimated_error`.

    Raises:
        InputError: an argument that makes no sense; SolverError: a solver failed.
    """
    for name, value, kind in (("tissue", tissue, Tissue),
                              ("acquisition", acquisition, Acquisition)):
        if not isinstance(value, kind):
            raise InputError(f"{name}: a {type(value).__name__}, expected a "
                             f"spinverse.{kind.__name__}")
    problem = BlochTorrey(tissue, degree, extra_terms, extra_coefficients, extra_breakpoints)
    solver = make_engine(problem, acquisition.with_unweighted(), engine, modes, tolerance,
                         time_step)
    return signals_of(solver, acquisition)


def signals_of(engine: MatrixFormalism | TimeStepping, acquisition: Acquisition) -> Signals:
    """Signals of an engine for ``acquisition.with_unweighted()``. Collective."""
    whole = Signals(acquisition.with_unweighted(), engine.signals(), engine.estimated_error, UM3)
    return replace(whole.select(slice(len(acquisition))), acquisition=acquisition,
                   unweighted=_reference(whole)[: len(acquisition)])


def _reference(signals: Signals) -> np.ndarray:
    try:
        return signals.reference
    except InputError:  # nothing is left at b = 0
        return np.full(len(signals), np.nan)
