"""The magnetisation at chosen times, and as files for ParaView.

It is that of the frame of the effective gradient: where a 180-degree pulse turns the sign of f(t),
the phase before the pulse is shown with its sign turned. While it is stored along z, it is what
will be turned back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from ..acquisition.waveform import MAGNUS_FAR, MAGNUS_NEAR, MAGNUS_NODES, Waveform
from ..atomic import replace
from ..engines.march.time_stepping import TimeStepping
from ..engines.modal.chebyshev import Propagation
from ..engines.modal.matrix_formalism import MatrixFormalism
from ..engines.modal.steps import stored_rest
from ..errors import InputError, on_root
from ..parallel.exchange import Ranges
from ..problem import BlochTorrey
from .export import turned
from .vtu import NODES, write_grid

_SAME = 1e-9  # ms; times closer than this are one


def magnetisation(engine: MatrixFormalism | TimeStepping, measurement: int,
                  times: Sequence[float]) -> np.ndarray:
    """Magnetisation in one measurement. Collective.

    Args:
        engine: either one, with its problem and acquisition. The matrix formalism shows what its
            modes resolve; under extra terms take time stepping.
        measurement: row of the acquisition, from 0.
        times: ms from the start of the waveform, at most its TE, in any order.

    Returns:
        ``(n, nd)`` complex, density times the share that is left: at each time the values at the
        owned degrees of freedom of ``engine.problem.space``.

    Raises:
        InputError: a row or a time that is not there, a periodic problem, extra terms in the
            matrix formalism; SolverError: a solver failed.
    """
    acquisition, problem = engine.acquisition, engine.problem
    if not (isinstance(measurement, int | np.integer) and 0 <= measurement < len(acquisition)):
        raise InputError(f"measurement: {measurement!r}, expected a row from 0 to "
                         f"{len(acquisition) - 1}")
    waveform = acquisition.waveforms[acquisition.waveform_index[measurement]]
    times = np.asarray(times, dtype=float).ravel()
    for time in times[~((times >= 0) & (times <= waveform.echo_time + _SAME))][:1]:
        raise InputError(f"times: {time:g} ms, expected 0 to {waveform.echo_time:g} ms, the TE")
    if problem.periodic:
        raise InputError("magnetisation: the problem is periodic, where only its signals are "
                         "known; expected a reflecting or absorbing box")
    order = np.argsort(times, kind="stable")
    row, ascending = int(measurement), np.minimum(times[order], waveform.echo_time)
    result = np.empty((len(times), len(problem.scale)), dtype=complex)
    result[order] = _in_modes(engine, row, ascending) if isinstance(engine, MatrixFormalism) \
        else engine.states(row, ascending)
    return result * problem.scale


def write_magnetisation(path: str | Path, problem: BlochTorrey, times: Sequence[float],
                        values: np.ndarray) -> None:
    """Write a magnetisation as a series for ParaView. Collective.

    ``path`` is a ``.pvd`` that names one ``.vtu`` a time beside it, with ``re``, ``im``,
    ``magnitude`` and ``phase`` (rad) at the corners of every cell: cells do not share corners, so
    that jumps across membranes are there. Of elements of higher degree the corners are written;
    curved cells are VTK's quadratic ones if the degree is 2, and else straight.

    Args:
        problem: as in ``engine.problem``.
        times: ``(n,)`` ms.
        values: ``(n, nd)`` of `magnetisation`.

    Raises:
        InputError: on every rank: another suffix, arrays that do not fit.
    """
    path, mesh = Path(path), problem.mesh
    values = np.asarray(values)
    if path.suffix != ".pvd":
        raise InputError(f"{path}: suffix {path.suffix!r}, expected .pvd")
    fits = values.shape == (len(times), len(problem.scale))
    if not all(mesh.comm.allgather(fits)):
        raise InputError(f"values: shape {values.shape}, expected ({len(times)}, "
                         f"{len(problem.scale)}): one row for each time")
    # of a Lagrange element the corners come first, in the order of the geometry; of curved cells
    # the middles of edges follow in both if the element is of second order too
    slabs, owned = mesh.cell_slabs, mesh.num_owned_cells
    second = mesh.curved and problem.degree == 2
    chosen = np.array(NODES[mesh.dim] if second else range(mesh.dim + 1))
    geometry, width = mesh.domain.geometry if second else mesh.geometry, len(chosen)
    corners = turned(mesh, problem.space.dofmap.list[:owned][:, chosen])
    x = slabs.collect(turned(mesh, geometry.x[geometry.dofmaps[0][:owned][:, chosen]]))
    x = x.reshape(-1, 3)
    numbers = Ranges(mesh.comm, mesh.num_cells).start * width + np.arange(len(x))
    names = [f"{path.stem}_{k:04d}.vtu" for k in range(len(times))]
    for name, row in zip(names, values, strict=True):
        value = slabs.collect(row[corners]).ravel()
        write_grid(mesh.comm, path.with_name(name), x, numbers.reshape(-1, width), {},
                   {"re": value.real, "im": value.imag, "magnitude": np.abs(value),
                    "phase": np.angle(value)})
    sets = "".join(f'<DataSet timestep="{float(time)!r}" part="0" file={quoteattr(name)}/>\n'
                   for time, name in zip(times, names, strict=True))
    text = ('<?xml version="1.0"?>\n<VTKFile type="Collection" version="0.1" byte_order='
            f'"LittleEndian">\n<Collection>\n{sets}</Collection>\n</VTKFile>\n')
    on_root(mesh.comm, replace, path, lambda temporary: temporary.write_text(text, "utf-8"))


def _in_modes(engine: MatrixFormalism, row: int, times: np.ndarray) -> np.ndarray:
    """The unknown at ascending times, ``(n, nd)``."""
    problem, acquisition = engine.problem, engine.acquisition
    if problem.extra_terms is not None:
        raise InputError("magnetisation: the problem has extra terms, expected engine "
                         "time_stepping for it")
    basis = engine.basis if engine.basis is not None else engine.find_modes()
    waveform = acquisition.waveforms[acquisition.waveform_index[row]]
    u, states, modes = basis.start[:, None].astype(complex), [], basis.modes
    begin = 0.0
    for duration, gradient in _pieces(waveform, engine.max_step, times):
        if duration is None:
            states.append(modes @ u[:, 0])
            continue
        begin += duration
        if waveform.stored(begin - duration / 2):
            u = stored_rest(basis, duration).forward(u)
            continue
        g = np.asarray(gradient) if np.ndim(gradient) else gradient * acquisition.directions[row]
        g = acquisition.strength[row] * g[: problem.mesh.dim]
        size = float(np.linalg.norm(g))
        if size == 0:
            u = np.exp(-basis.eigenvalues * duration)[:, None] * u
        else:
            X = np.tensordot(g / size, basis.positions, axes=1)
            reach = float(np.abs(g / size) @ basis.reach)
            u = Propagation(basis.eigenvalues, X, np.array([size]), reach, duration).forward(u)
    return np.array(states)


def _pieces(waveform: Waveform, max_step: float, times: np.ndarray):
    """(duration, f) one after the other, with (None, None) where one of ``times`` is reached.

    As `Waveform.segments`, but with steps that end at the times: within a step of two pieces the
    state is of a lower order.
    """
    bounds = np.unique(np.concatenate([np.asarray(waveform.breakpoints, float), times]))
    bounds = bounds[np.concatenate([[True], np.diff(bounds) > _SAME])]
    waiting = list(times)
    for begin, end in zip(bounds, np.append(bounds[1:], np.nan), strict=True):
        while waiting and waiting[0] <= begin + _SAME:
            waiting.pop(0)
            yield None, None
        if not end > begin:
            break
        if waveform.piecewise_constant:
            yield end - begin, waveform(np.array([0.5 * (begin + end)]))[0]
            continue
        count = max(1, int(np.ceil((end - begin) / (2 * max_step) * (1 - 1e-12))))
        h = (end - begin) / count
        starts = begin + h * np.arange(count)
        early, late = (waveform(starts + node * h) for node in MAGNUS_NODES)
        for first, second in zip(early, late, strict=True):
            yield h / 2, 2 * (MAGNUS_NEAR * first + MAGNUS_FAR * second)
            yield h / 2, 2 * (MAGNUS_FAR * first + MAGNUS_NEAR * second)
    yield from ((None, None) for _ in waiting)
