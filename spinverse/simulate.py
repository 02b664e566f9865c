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
from .engines.modal.costs import of_modes, of_turned_bases
from .engines.modal.matrix_formalism import MatrixFormalism
from .engines.modal.mesh_error import LARGE, error_in, error_of_states
from .engines.modal.mesh_error import mesh_error as error_of_mesh
from .engines.modal.turned_bases import TurnedBases
from .engines.shapes.directions import DirectionBases
from .errors import InputError
from .extra_terms import Unsuitable
from .problem import BlochTorrey
from .tissue import Tissue

ENGINES = ("matrix_formalism", "time_stepping")
DIRECTION_BASES = "direction_bases"  # periodic along all axes or none, no derivatives
# Q h, rad, to which degrees 1, 2, 3 leave at most 1e-3 of signals of permeable balls on a lattice,
# with edges of at most a third of the radius (tests/test_lattice.py)
RESOLVED = 0.07, 0.7, 1.2
_FEW = 8  # directions, of which bases of their own cost less than modes for all
_ON_EVERY_RANK = 60_000  # unknowns: direction_bases holds factors of all of them on every rank
_SMALL = 5000  # unknowns of which modes cost next to nothing
_TIMES = 401  # at which Q is looked at for its largest value

Engine = MatrixFormalism | TimeStepping | DirectionBases | TurnedBases

_log = logging.getLogger(__name__)


def make_engine(problem: BlochTorrey, acquisition: Acquisition, engine: str = "auto",
                modes: int | str = "auto", tolerance: float = 1e-4,
                time_step: float | str = "auto", functions: str = "modes",
                derivatives: bool = True) -> Engine:
    """The engine of a name; see `simulate` and `MatrixFormalism` for the arguments. Collective.

    With "auto" the log says (level warning) why the matrix formalism cannot take extra terms, and
    (level info) which engine was chosen where there was a choice; one with ``derivatives`` if they
    are wanted.

    Raises:
        InputError: an unknown name, or arguments that the engine refuses.
    """
    if engine == "auto":
        if not derivatives and modes == "auto" and functions == "modes":
            choose = _bases_of_directions if problem.periodic else _turned_bases
            if (chosen := choose(problem, acquisition, tolerance)) is not None:
                return chosen
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
    if engine == DIRECTION_BASES:
        kind = DirectionBases if problem.periodic else TurnedBases
        return kind(problem, acquisition, tolerance)
    raise InputError(f"engine: {engine!r}, expected one of {', '.join(ENGINES)}, "
                     f"{DIRECTION_BASES}, auto")


def simulate(tissue: Tissue, acquisition: Acquisition, engine: str = "auto",
             degree: int | str = "auto", modes: int | str = "auto", tolerance: float = 1e-4,
             time_step: float | str = "auto", extra_terms: Callable | None = None,
             extra_coefficients: Mapping | None = None,
             extra_breakpoints: Sequence[float] = (), mesh_error: bool = True) -> Signals:
    """Simulate every measurement. Collective.

    Args:
        tissue: what the spins live in.
        acquisition: the measurements.
        engine: "matrix_formalism" (all measurements from one eigenproblem), "time_stepping", or
            "auto": the first one, unless it cannot take ``extra_terms``. "direction_bases" is for
            waveforms of one direction each, and faster where directions are few: "auto" takes it in
            boxes that are periodic along all axes for up to eight directions, and without periodic
            axes on meshes of 5000 to 60,000 tied unknowns where an estimate says so.
        degree: polynomial degree within a cell; "auto" for 1, or 2 or 3 where that is needed to
            resolve the phase along periodic axes to 1e-3 of the signals (`degree_for`); at least 2
            in curved cells.
        modes: of the matrix formalism: a number, or "auto" for as many as ``tolerance`` needs.
        tolerance: wanted absolute error of S / S(b=0, t=0) from modes or time steps; the error of
            the mesh comes on top (``mesh_error``).
        time_step: of time stepping: longest step, ms, or "auto" for what ``tolerance`` needs.
        extra_terms, extra_coefficients, extra_breakpoints: physics of your own, as of
            `BlochTorrey`: see docs/new_physics.md.
        mesh_error: estimate the error of the mesh, once, for a strong and a middle measurement
            (`engines.modal.mesh_error`; not by time stepping). It takes a tenth to a half of the
            time, or a twentieth of a second. A line of the log warns of errors that are not small.

    Returns:
        Signals, um^d times density, the same on every rank, with `Signals.estimated_error` and
        `Signals.mesh_error`.

    Raises:
        InputError: an argument that makes no sense; SolverError: a solver failed.
    """
    for name, value, kind in (("tissue", tissue, Tissue),
                              ("acquisition", acquisition, Acquisition)):
        if not isinstance(value, kind):
            raise InputError(f"{name}: a {type(value).__name__}, expected a "
                             f"spinverse.{kind.__name__}")
    problem = BlochTorrey(tissue, degree_for(tissue, acquisition, degree), extra_terms,
                          extra_coefficients, extra_breakpoints)
    solver = make_engine(problem, acquisition.with_unweighted(), engine, modes, tolerance,
                         time_step, derivatives=False)
    signals = signals_of(solver, acquisition, mesh_error)
    if signals.mesh_error > LARGE and tissue.mesh.comm.rank == 0:
        _log.warning("mesh: estimated error %.2g of S/S0, beside %.1g of modes or steps; expected "
                     "smaller cells%s", signals.mesh_error, solver.estimated_error,
                     " or degree=2" if problem.degree == 1 else "")
    return signals


def name_of(engine: Engine) -> str:
    """Its name, as `simulate` takes it."""
    kinds = MatrixFormalism, TimeStepping, DirectionBases, TurnedBases
    return (*ENGINES, DIRECTION_BASES, DIRECTION_BASES)[kinds.index(type(engine))]


def _turned_bases(problem: BlochTorrey, acquisition: Acquisition,
                  tolerance: float) -> TurnedBases | None:
    """The engine of a basis for each direction, where an estimate says it is faster. Collective.

    Of meshes whose cells are tied but for membranes: else matrices are those of many times as many
    unknowns, which modes are found of without a factor.
    """
    if problem.prolongation is None or not np.any(acquisition.b > 0):
        return None
    if not _SMALL < problem.num_unknowns <= _ON_EVERY_RANK:
        return None
    try:
        engine = TurnedBases(problem, acquisition, tolerance)
    except InputError:  # waveforms or terms that it does not know
        return None
    seconds = of_turned_bases(engine)
    modes, kinds = of_modes(MatrixFormalism(problem, acquisition, "auto", tolerance))
    if seconds > modes:  # an estimate that is three times too low inside a neuron
        return None
    if problem.comm.rank == 0:
        number = sum(tries[-1] * copies for _, tries, copies in kinds)
        _log.info("engine: direction_bases, %d direction%s of %d unknowns: about %.2g CPU s, and "
                  "%.2g for the matrix formalism with about %d modes", engine.num_directions,
                  "s" * (engine.num_directions > 1), problem.num_unknowns, seconds, modes, number)
    return engine


def _bases_of_directions(problem: BlochTorrey, acquisition: Acquisition,
                         tolerance: float) -> DirectionBases | None:
    """The engine for periodic boxes, where it is right and faster. Collective."""
    driven = acquisition.directions[acquisition.b > 0]
    number = len(np.unique(np.round(driven, 9), axis=0))
    if not (0 < number <= _FEW and problem.num_unknowns <= _ON_EVERY_RANK
            and len(problem.periodic) == 3):
        return None
    try:
        engine = DirectionBases(problem, acquisition, tolerance)
    except InputError:  # waveforms or terms that it does not know
        return None
    if problem.comm.rank == 0:
        _log.info("engine: direction_bases, for a box that is periodic along x, y and z, %d "
                  "direction%s, %d unknowns of degree %d", number, "s" * (number > 1),
                  problem.num_unknowns, problem.degree)
    return engine


def signals_of(engine: Engine,
               acquisition: Acquisition, mesh_error: bool = True) -> Signals:
    """Signals of an engine for ``acquisition.with_unweighted()``. Collective.

    With the error of the mesh, if it is wanted and the engine has modes.
    """
    whole = Signals(acquisition.with_unweighted(), engine.signals(), engine.estimated_error, UM3)
    error = np.nan
    if mesh_error and isinstance(engine, MatrixFormalism):
        error = error_of_mesh(engine)
    elif mesh_error and isinstance(engine, TurnedBases):
        error = error_of_states(engine)
    elif mesh_error and isinstance(engine, DirectionBases):
        table, modes = engine.modes_of_strongest()
        error = error_in(engine.problem, [modes], engine.ratio, table)
    try:
        unweighted = whole.reference
    except InputError:  # nothing is left at b = 0
        unweighted = np.full(len(whole), np.nan)
    return replace(whole.select(slice(len(acquisition))), acquisition=acquisition,
                   unweighted=unweighted[: len(acquisition)], mesh_error=error)


def degree_for(tissue: Tissue, acquisition: Acquisition, degree: int | str = "auto") -> int:
    """The polynomial degree that "auto" stands for; any other is returned. Collective.

    Along periodic axes what is at rest is exp(i Q . x), which cells of size h have to follow: see
    `RESOLVED`. The log says (level info) what was chosen, and (level warning) where degree 3 would
    not do.
    """
    if not isinstance(degree, str):
        return degree
    if degree != "auto":
        raise InputError(f"degree: {degree!r}, expected a whole number of at least 1, or 'auto'")
    least = 2 if tissue.mesh.curved else 1
    if not tissue.periodic_axes:
        return least
    mesh, axes = tissue.mesh, list(tissue.periodic_axes)
    volume = mesh.comm.allreduce(float(mesh.cell_volumes[: mesh.num_owned_cells].sum()))
    # edges of a regular simplex of the mean volume
    edge = {1: 1.0, 2: (4 / 3**0.5) ** (1 / 2), 3: (6 * 2**0.5) ** (1 / 3)}[mesh.dim] * (
        volume / mesh.num_cells) ** (1 / mesh.dim)
    reached = 0.0
    for k, waveform in enumerate(acquisition.waveforms):
        rows = acquisition.waveform_index == k
        F = waveform.integral(np.linspace(0, waveform.echo_time, _TIMES))
        share = (np.linalg.norm(F[:, axes], axis=1).max() if waveform.vector else np.abs(F).max()
                 * np.linalg.norm(acquisition.directions[rows][:, axes], axis=1))
        reached = max(reached, float(np.max(acquisition.strength[rows] * share, initial=0.0)))
    phase = reached * edge
    chosen = max(least, min(1 + sum(phase > limit for limit in RESOLVED), len(RESOLVED)))
    if mesh.comm.rank == 0:
        say = _log.warning if phase > RESOLVED[-1] else _log.info
        say("degree: %d, as the phase along periodic axes turns by %.2g rad in a cell of %.2g um%s",
            chosen, phase, edge, f", expected smaller cells: at most {RESOLVED[-1]:g} rad"
            if phase > RESOLVED[-1] else "")
    return chosen
