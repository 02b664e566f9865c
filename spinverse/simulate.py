"""From tissue and acquisition to signals."""

from __future__ import annotations

from .acquisition import Acquisition, Signals
from .engines.matrix_formalism import MatrixFormalism
from .engines.time_stepping import TimeStepping
from .errors import InputError
from .problem import BlochTorrey
from .tissue import Tissue

ENGINES = ("matrix_formalism", "time_stepping")


def make_engine(problem: BlochTorrey, acquisition: Acquisition, engine: str = "matrix_formalism",
                modes: int | str = "auto", tolerance: float = 1e-4,
                time_step: float | str = "auto") -> MatrixFormalism | TimeStepping:
    """The engine of a name; see `simulate` for the arguments.

    Raises:
        InputError: an unknown name, or arguments that the engine refuses.
    """
    if engine == "matrix_formalism":
        return MatrixFormalism(problem, acquisition, modes, tolerance)
    if engine == "time_stepping":
        return TimeStepping(problem, acquisition, time_step, tolerance=tolerance)
    raise InputError(f"engine: {engine!r}, expected one of {', '.join(ENGINES)}")


def simulate(tissue: Tissue, acquisition: Acquisition, engine: str = "matrix_formalism",
             degree: int = 1, modes: int | str = "auto", tolerance: float = 1e-4,
             time_step: float | str = "auto") -> Signals:
    """Simulate every measurement. Collective.

    Args:
        tissue: what the spins live in.
        acquisition: the measurements.
        engine: "matrix_formalism" (all measurements from one eigenproblem) or "time_stepping".
        degree: polynomial degree within a cell.
        modes: of the matrix formalism: a number, or "auto" for as many as ``tolerance`` needs.
        tolerance: wanted absolute error of S / S(b=0, t=0) from modes or time steps; the error
            of the mesh comes on top.
        time_step: of time stepping: longest step, ms, or "auto" for what ``tolerance`` needs.

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
    problem = BlochTorrey(tissue, degree)
    solver = make_engine(problem, acquisition, engine, modes, tolerance, time_step)
    return Signals(acquisition, solver.signals(), solver.estimated_error)
