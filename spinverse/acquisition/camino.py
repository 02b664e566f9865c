"""Camino scheme files: STEJSKALTANNER, BVECTOR and GRADIENT_WAVEFORM.

Camino is in SI units: s, T/m, s/m^2. A measurement is a line,

    STEJSKALTANNER      x y z |G| DELTA delta TE
    BVECTOR             x y z b
    GRADIENT_WAVEFORM   K dt G1x G1y G1z ... GKx GKy GKz

below ``VERSION: NAME``; lines that start with # or % are remarks. Samples of a GRADIENT_WAVEFORM
are held for dt each and are the effective gradient, with the 180-degree pulses folded into the
sign.
"""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .. import units
from ..errors import InputError, warn_caller
from . import files
from .pulses import PGSE
from .samples import ROUNDED, Sampled, SampledGradient, along_a_line, held
from .table import Acquisition, b_of_gradient
from .waveform import Waveform

_VERSIONS = {"STEJSKALTANNER": "STEJSKALTANNER", "1": "STEJSKALTANNER", "BVECTOR": "BVECTOR",
             "2": "BVECTOR", "GRADIENT_WAVEFORM": "GRADIENT_WAVEFORM"}
_ROUNDED_DIGITS = 3.0  # shapes are one that differ by less than this many of the file's last digit,
_ROUNDED_MOST = 1e-3  # but for this much of the peak
_REMARKS = ("#", "%")
_COLUMNS = {"STEJSKALTANNER": "x y z |G| DELTA delta TE", "BVECTOR": "x y z b"}
_BY_WIDTH = {len(names.split()): name for name, names in _COLUMNS.items()}
_ROUNDED_AREA = 1e-3  # of int |G|: a rest that rounding may leave
_MICROSECOND = 1e-3  # ms


def read_camino(path: str | Path, delta=None, Delta=None, echo_time=None,
                b0_threshold: float = 0.0) -> Acquisition:
    """Read an acquisition from a Camino scheme file; a UserWarning if it has no line VERSION.

    Measurements of a GRADIENT_WAVEFORM along a line become a scalar waveform with a direction,
    others a vector one. Shapes that differ by less than 1e-6 of the peak, or than rounding to the
    digits of the file explains (up to 1e-3 of the peak), are one waveform. A rest of up to 1e-3 of
    the area, as rounded samples leave, is taken off the samples in proportion. Without the line
    VERSION, lines of 7 numbers are STEJSKALTANNER and those of 4 BVECTOR.

    Args:
        path: The scheme file.
        delta, Delta: Pulse length and separation in ms; for BVECTOR only, which needs them.
        echo_time: TE in ms; for BVECTOR only, Delta + delta unless given.
        b0_threshold: b up to this many s/mm^2 counts as 0.

    Raises:
        InputError: No scheme file of these versions, a bad line (named), ``delta`` or ``Delta``
            missing for a BVECTOR scheme or given for another one.
    """
    version, rows, digit = _scheme(path)
    given = [n for n, t in (("delta", delta), ("Delta", Delta), ("TE", echo_time)) if t is not None]
    if version == "BVECTOR":
        files.require_times(path, delta, Delta, "a BVECTOR scheme holds b and directions only")
    elif given:
        raise InputError(f"{path}: {given[0]}: given, but a {version} scheme has its own")
    try:
        if version == "BVECTOR":
            table = _columns(path, version, rows)
            b = files.without_small_b(path, units.b_from_si(table[:, 3]), b0_threshold)
            vectors = files.tidy_directions(path, b, table[:, :3])
            return Acquisition.from_rows(b, vectors, delta, Delta, echo_time)
        found = _waveforms(path, rows, digit) if version == "GRADIENT_WAVEFORM" else \
            _pulses(path, _columns(path, version, rows))
        return replace(found, b=files.without_small_b(path, found.b, b0_threshold))
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def write_camino(path: str | Path, acquisition: Acquisition, version: str | None = None,
                 step: float = 0.01) -> None:
    """Write a Camino scheme file; it appears complete or not at all.

    Args:
        version: STEJSKALTANNER or GRADIENT_WAVEFORM; the first if all waveforms are PGSE, unless
            given.
        step: dt of a GRADIENT_WAVEFORM in ms, about; the samples are the means over it, so that the
            areas are exact. Piecewise constant waveforms whose breakpoints are whole microseconds
            take the largest dt that fits them all.

    Raises:
        InputError: Another version, no PGSE for STEJSKALTANNER, or no such folder.
    """
    pulses = all(type(waveform) is PGSE for waveform in acquisition.waveforms)
    version = version or ("STEJSKALTANNER" if pulses else "GRADIENT_WAVEFORM")
    if version not in ("STEJSKALTANNER", "GRADIENT_WAVEFORM"):
        raise InputError(f"version = {version!r}: expected STEJSKALTANNER or GRADIENT_WAVEFORM")
    lines = [f"VERSION: {version}"]
    if version == "STEJSKALTANNER":
        if not pulses:
            raise InputError(f"{path}: a STEJSKALTANNER scheme holds PGSE only")
        G = units.gradient_to_si(acquisition.gradient_strength_mT_m)
        vectors = np.where(acquisition.b[:, None] > 0.0, acquisition.directions, 0.0)
        times = np.column_stack([acquisition.Delta, acquisition.delta, acquisition.echo_time])
        table = np.column_stack([vectors, G, units.time_from_internal(times)])
        lines += [" ".join(map(repr, row)) for row in table.tolist()]
    else:
        for waveform in acquisition.waveforms:
            if waveform.storage:
                raise InputError(f"{path}: {waveform.describe()}: a GRADIENT_WAVEFORM scheme has "
                                 "no storage along z")
        slices = [_slices(waveform, step) for waveform in acquisition.waveforms]
        G = units.gradient_to_si(units.gradient_from_internal(acquisition.strength))
        for row, k in enumerate(acquisition.waveform_index):
            dt, means = slices[k]
            if means.ndim == 1:
                means = means[:, None] * acquisition.directions[row]
            cells = " ".join(f"{value:.12g}" for value in (G[row] * means).ravel() + 0.0)
            lines.append(f"{len(means)} {units.time_from_internal(dt):.12g} {cells}")
    files.write_text(path, "\n".join(lines) + "\n")


def is_scheme(path: str | Path) -> bool:
    """Whether a file says VERSION: in its first line that is not empty or a remark."""
    try:
        with Path(path).open("rb") as file:
            lines = file.read(4096).decode("utf-8-sig", errors="replace").splitlines()
    except OSError:
        return False
    lines = [line.strip() for line in lines if line.strip() and not line.startswith(_REMARKS)]
    return bool(lines) and lines[0].startswith("VERSION:")


def _scheme(path) -> tuple[str, list[tuple[int, list[float]]], float]:
    """Version, the line number and the numbers of each line, and their last digit as mT/m."""
    lines = [(k, line.split()) for k, line in enumerate(files.read_lines(path), start=1)]
    lines = [(k, cells) for k, cells in lines if cells and not cells[0].startswith(_REMARKS)]
    if lines and lines[0][1][0].startswith("VERSION:"):
        name = "".join(lines.pop(0)[1]).removeprefix("VERSION:")
    else:
        name = _BY_WIDTH.get(len(lines[0][1]) if lines else 0, "")
        if not name:
            raise InputError(f"{path}: expected a first line 'VERSION: NAME' as in Camino schemes")
        warn_caller(f"{path}: has no line VERSION; its lines of {len(lines[0][1])} numbers are "
                    f"taken as {name}: {_COLUMNS[name]} in SI units")
    if name not in _VERSIONS:
        raise InputError(f"{path}: VERSION {name}: expected one of {', '.join(_VERSIONS)}")
    rows = [(k, files.numbers(path, k, cells)) for k, cells in lines]
    if not rows:
        raise InputError(f"{path}: no measurements below VERSION")
    for k, values in rows:
        if not all(math.isfinite(value) for value in values):
            raise InputError(f"{path}: line {k}: expected finite numbers")
    some = islice((cell for _, cells in lines for cell in cells[2:] if float(cell)), 200)
    digit = 10.0 ** min((int(Decimal(cell).as_tuple().exponent) for cell in some), default=-99)
    return _VERSIONS[name], rows, float(units.gradient_from_si(digit))


def _columns(path, version: str, rows) -> np.ndarray:
    names = _COLUMNS[version]
    count = len(names.split())
    for k, values in rows:
        if len(values) != count:
            raise InputError(f"{path}: line {k}: {len(values)} numbers, expected {count}: {names}")
    return np.array([values for _, values in rows])


def _pulses(path, table: np.ndarray) -> Acquisition:
    """The PGSE of a STEJSKALTANNER scheme."""
    G = units.gradient_from_si(table[:, 3])
    times = np.where(table[:, 4:] > 0.0, units.time_to_internal(table[:, 4:]), np.nan)
    Delta, delta, echo_time = times.T
    for row in np.flatnonzero(G < 0.0)[:1]:
        raise InputError(f"{path}: row {row} has |G| = {table[row, 3]:g} T/m, expected >= 0")
    vectors = files.tidy_directions(path, G, table[:, :3])
    for row in np.flatnonzero((G > 0.0) & (np.isnan(Delta) | np.isnan(delta)))[:1]:
        raise InputError(f"{path}: row {row} has DELTA = {table[row, 4]:g} s and delta = "
                         f"{table[row, 5]:g} s, expected positive times where |G| > 0")
    # b needs the waveforms, which b = 0 makes as well
    shapes = Acquisition.from_rows((G > 0.0).astype(float), vectors, delta, Delta, echo_time)
    b = np.zeros(G.size)
    for k, waveform in enumerate(shapes.waveforms):
        rows = shapes.waveform_index == k
        b[rows] = b_of_gradient(waveform, G[rows])
    return Acquisition(b, vectors, shapes.waveform_index, shapes.waveforms)


def _waveforms(path, rows, digit: float) -> Acquisition:
    """The waveforms of a GRADIENT_WAVEFORM scheme, whose numbers are rounded to ``digit`` mT/m."""
    known: list[tuple[float, np.ndarray, Waveform, float]] = []
    b, vectors, index = np.zeros(len(rows)), np.zeros((len(rows), 3)), np.full(len(rows), -1)
    durations = np.zeros(len(rows))
    for row, (line, values) in enumerate(rows):
        K = values[0]
        if len(values) < 5 or K != int(K) or len(values) != 2 + 3 * int(K) or values[1] <= 0.0:
            raise InputError(f"{path}: line {line}: {len(values)} numbers, expected K dt and 3 K "
                             "gradients")
        dt = float(units.time_to_internal(values[1]))
        G = units.gradient_from_si(values[2:]).reshape(-1, 3)
        durations[row] = K * dt
        if not np.any(G):
            continue
        largest = float(np.max(np.linalg.norm(G, axis=1)))
        same = np.clip(_ROUNDED_DIGITS * digit / largest, ROUNDED, _ROUNDED_MOST)
        peak, shape, vectors[row] = _shape(path, line, G, same)
        for k, (step, other, _, rounded) in enumerate(known):
            if step == dt and other.shape == shape.shape and \
                    np.max(np.abs(other - shape)) <= max(same, rounded):
                index[row] = k
                break
        else:
            kind: Any = Sampled if shape.ndim == 1 else SampledGradient
            index[row] = len(known)
            known.append((dt, shape, kind(*held(dt, shape)), same))
        b[row] = b_of_gradient(known[index[row]][2], peak)
    # without gradient only TE matters
    for row in np.flatnonzero(index < 0):
        fits = [k for k, (_, _, w, _) in enumerate(known)
                if np.isclose(w.echo_time, durations[row], 1e-9)]
        if not fits:
            raise InputError(f"{path}: line {rows[row][0]}: no gradient, and no other measurement "
                             f"lasts {durations[row]:g} ms")
        index[row] = fits[0]
    return Acquisition(b, vectors, index, tuple(waveform for _, _, waveform, _ in known))


def _shape(path, line: int, G: np.ndarray, same: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Peak, shape (K,) or (K, 3) of largest length 1, and direction (3,) of samples (K, 3)."""
    area = np.sum(np.abs(G), axis=0)
    rest = np.sum(G, axis=0)
    if np.max(np.abs(rest)) > _ROUNDED_AREA * np.sum(area):
        raise InputError(f"{path}: line {line}: the gradients add up to {rest.tolist()} of "
                         f"{area.tolist()}, expected 0 (fold the 180-degree pulse into the sign)")
    return along_a_line(G - np.abs(G) * np.divide(rest, area, out=np.zeros(3), where=area > 0.0),
                        same)


def _slices(waveform: Waveform, step: float) -> tuple[float, np.ndarray]:
    """dt in ms and the means of f over the slices, shape (K,) or (K, 3)."""
    if not (np.isfinite(step) and step > 0.0):
        raise InputError(f"step = {step!r}: expected a positive time in ms")
    count = max(math.ceil(waveform.echo_time / step * (1.0 - 1e-12)), 1)
    if waveform.piecewise_constant:
        ticks = np.asarray(waveform.breakpoints) / _MICROSECOND
        if np.max(np.abs(ticks - np.round(ticks))) < 1e-6:
            common = math.gcd(*np.round(ticks).astype(int).tolist())
            count = int(round(ticks[-1])) // common
    edges = np.linspace(0.0, waveform.echo_time, count + 1)
    dt = waveform.echo_time / count
    return dt, np.diff(waveform.integral(edges), axis=0) / dt
