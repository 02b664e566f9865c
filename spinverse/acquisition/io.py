"""Acquisitions and signals in files: a flat table with one measurement a row.

Both formats, csv and npz, hold the same columns:

    b (s/mm^2), direction_x, direction_y, direction_z, delta, Delta, TE (ms), waveform,
    and for signals re, im, magnitude, normalised.

``waveform`` is "PGSE" where delta, Delta and TE say everything. Other waveforms get a label, and
their samples or parameters stand, as JSON, in a comment line of the csv, ``# waveform LABEL
{...}``, or in the array ``waveform_definitions`` of the npz. Numbers are written so that reading
gives back the same bits. Rows are counted from 0 in messages.
"""

from __future__ import annotations

import csv
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .. import atomic
from ..errors import InputError
from .bids import SUFFIXES, read_bids
from .camino import is_scheme, read_camino
from .files import in_a_folder, read_lines, without_small_b, write_text
from .fsl import read_fsl
from .plain import plain_values
from .pulseq import read_pulseq
from .pulses import PGSE
from .signals import Signals
from .table import Acquisition
from .waveform import Waveform

DIRECTION_COLUMNS = ("direction_x", "direction_y", "direction_z")
REQUIRED_COLUMNS = ("b", *DIRECTION_COLUMNS, "delta", "Delta")
ACQUISITION_COLUMNS = (*REQUIRED_COLUMNS, "TE", "waveform")
_TIME_COLUMNS = {"delta": "delta", "Delta": "Delta", "echo_time": "TE"}
VALUE_COLUMNS = ("re", "im", "magnitude", "normalised")
_TEXT = ("waveform", "unit")  # columns of words

# nan or an empty cell; of the last two, only where re and im are there
_MAY_BE_MISSING = ("delta", "Delta", "TE", "magnitude", "normalised")
_DEFINITIONS = "waveform_definitions"
_COMMENT = "# waveform "
_MATCH = 1e-6  # relative; of the unit for directions

Columns = dict[str, np.ndarray]


def write_acquisition(path: str | Path, acquisition: Acquisition) -> None:
    """Write the table of measurements to ``path``, .csv or .npz, completely or not at all.

    Raises:
        InputError: Another suffix, or a folder that does not exist.
    """
    _write(path, *_acquisition_columns(acquisition))


def write_signals(path: str | Path, signals: Signals) -> None:
    """Write measurements and signals, as ``write_acquisition``.

    ``normalised`` is nan in all rows if a waveform has no signal at b = 0.
    """
    columns, definitions = _acquisition_columns(signals.acquisition)
    try:
        normalised = signals.normalised
    except InputError:
        normalised = np.full(len(signals), np.nan)
    columns |= {"re": signals.values.real, "im": signals.values.imag,
                "magnitude": signals.magnitude, "normalised": normalised}
    if signals.unit:
        columns["unit"] = np.full(len(signals), signals.unit)
    _write(path, columns, definitions)


def read_acquisition(path: str | Path, bvec: str | Path | None = None, *, delta=None, Delta=None,
                     echo_time=None, b0_threshold: float = 0.0) -> Acquisition:
    """Read the table of measurements from a file.

    The name says which: .csv and .npz as described above, .scheme (or any file that starts with
    VERSION:) by ``read_camino``, .bval and .bvec (or .bvals and .bvecs) of one name, .json, .nii
    and .nii.gz by ``read_bids``, .seq by ``read_pulseq``, and files called bvals or bval with bvecs
    or bvec beside them by ``read_fsl``.

    Args:
        bvec: The file of directions, if ``path`` is a bval file and it is not beside it under the
            same name.
        delta, Delta: Pulse length and separation in ms, one or (N,); needed for FSL files, for BIDS
            where the sidecar does not have them, and for tables without such a column.
        echo_time: TE in ms, one or (N,); Delta + delta unless given or in the file.
        b0_threshold: b up to this many s/mm^2 counts as 0, and needs no direction then.

    Raises:
        InputError: Missing file or column, a bad cell (row, column and value are named), times that
            are missing, or given for a file that has its own, or values that Acquisition refuses.
    """
    path = Path(path)
    times = {"delta": delta, "Delta": Delta, "echo_time": echo_time}
    if bvec is not None:
        return read_fsl(path, bvec, **times, b0_threshold=b0_threshold)
    if path.name in ("bvals", "bval"):
        bvec = path.with_name(path.name.replace("val", "vec"))
        return read_fsl(path, bvec, **times, b0_threshold=b0_threshold)
    if path.name.endswith(SUFFIXES):
        return read_bids(path, **times, b0_threshold=b0_threshold)
    if path.suffix.lower() == ".seq":
        for name in (name for name, time in times.items() if time is not None):
            raise InputError(f"{path}: {name}: given, but a Pulseq file has its own times")
        return read_pulseq(path, b0_threshold)
    if path.suffix == ".scheme" or (path.suffix not in (".csv", ".npz") and is_scheme(path)):
        return read_camino(path, **times, b0_threshold=b0_threshold)
    if path.suffix.lower() not in (".csv", ".npz"):
        raise InputError(f"{path}: suffix {path.suffix!r}, expected .csv, .npz, .scheme, .seq, "
                         ".bval or .json")
    times = {_TIME_COLUMNS[name]: value for name, value in times.items() if value is not None}
    columns, definitions = _read(path, times)
    columns["b"] = without_small_b(path, columns["b"], b0_threshold)
    return _acquisition(path, columns, definitions)


def read_signals(path: str | Path, expected: Acquisition | None = None, voxel=None) -> Signals:
    """Read measurements and signals from a .csv or .npz file, or signals alone.

    The signal is taken from ``re`` and ``im``, or else from ``magnitude``, or else from
    ``normalised``. A file with nothing but numbers, one for each of the ``expected`` measurements
    in their order and in any unit, is a column of text, a .npy, or a voxel of a .nii or .nii.gz.

    Args:
        expected: If given, the file must have these measurements in this order (to 1e-6; the
            direction does not matter at b = 0, nor TE in a file without it), and the result
            carries this acquisition. Needed for numbers alone.
        voxel: (i, j, k) of an image, counted from 0.

    Raises:
        InputError: As ``read_acquisition``; no column with signals; a row that differs from
            ``expected`` (names the first one).
    """
    plain = plain_values(Path(path), voxel)
    if plain is not None:
        return _measured(path, plain, expected)
    columns, definitions = _read(path)
    rows = columns["b"].size
    if expected is not None and rows != len(expected):
        raise InputError(f"{path}: expected {len(expected)} rows as in the acquisition, found "
                         f"{rows}")
    values = _values(path, columns)
    acquisition = _acquisition(path, columns, definitions)
    if expected is not None:
        _check_same(path, acquisition, expected, with_echo_time="TE" in columns)
        acquisition = expected
    unit = set(columns.get("unit", [""]))
    unweighted = None
    if "normalised" in columns:
        with np.errstate(divide="ignore", invalid="ignore"):
            unweighted = np.abs(values) / columns["normalised"]
        unweighted[~np.isfinite(unweighted)] = np.nan
    return Signals(acquisition, values, unit=unit.pop() if len(unit) == 1 else "",
                   unweighted=unweighted)


def _measured(path, values: np.ndarray, expected: Acquisition | None) -> Signals:
    """Numbers alone as the signals of the measurements that they belong to."""
    if expected is None:
        raise InputError(f"{path}: holds {values.size} numbers and no measurements, expected an "
                         "acquisition beside it")
    if values.size != len(expected):
        raise InputError(f"{path}: {values.size} numbers, expected {len(expected)}, one for each "
                         "measurement of the acquisition")
    _require_finite(path, {"signal": values}, ("signal",))
    for row in np.flatnonzero(values.real < 0.0)[:1] if values.dtype.kind != "c" else ():
        raise InputError(f"{path}: row {row} is {values[row]:g}, expected a magnitude >= 0 (of "
                         "complex signals: a complex .npy)")
    return Signals(expected, values)


def _acquisition_columns(acquisition: Acquisition) -> tuple[Columns, dict[str, Waveform]]:
    """The columns of a table, and the waveforms that the columns alone do not define."""
    labels, definitions = [], {}
    for k, waveform in enumerate(acquisition.waveforms):
        # a class derived from PGSE is another waveform
        label = "PGSE" if type(waveform) is PGSE else f"{waveform.name}-{k}"
        if label != "PGSE":
            definitions[label] = waveform
        labels.append(label)
    columns = dict(zip(ACQUISITION_COLUMNS, (
        acquisition.b, *acquisition.directions.T, acquisition.delta, acquisition.Delta,
        acquisition.echo_time, np.array(labels)[acquisition.waveform_index]), strict=True))
    return columns, definitions


def _acquisition(path, columns: Columns, definitions: dict[str, Waveform]) -> Acquisition:
    """The table that the columns of a file describe."""
    b, directions = columns["b"], np.column_stack([columns[name] for name in DIRECTION_COLUMNS])
    labels = columns.get("waveform", np.full(b.size, "PGSE"))
    for row, label in enumerate(labels):
        if label != "PGSE" and label not in definitions:
            raise InputError(f"{path}: row {row}, column waveform: {str(label)!r} is not defined "
                             f"in the file, expected one of {', '.join(['PGSE', *definitions])}")
    times = (columns["delta"], columns["Delta"], columns.get("TE"))
    try:
        return Acquisition.from_rows(b, directions, *times,
                                     waveforms=[definitions.get(label) for label in labels])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _values(path, columns: Columns) -> np.ndarray:
    """The complex signal from the columns that the file has."""
    if "re" in columns or "im" in columns:
        for name in ("re", "im"):
            if name not in columns:
                raise InputError(f"{path}: column {name} is missing beside the other of re and im")
        # not re + 1j * im, which would lose the sign of a zero
        values = np.empty(columns["re"].size, dtype=complex)
        values.real, values.imag = columns["re"], columns["im"]
        used = ("re", "im")
    else:
        used = tuple(name for name in ("magnitude", "normalised") if name in columns)[:1]
        if not used:
            raise InputError(f"{path}: column re is missing (nor is there magnitude or normalised)")
        values = columns[used[0]].astype(complex)
        for row in np.flatnonzero(columns[used[0]] < 0.0)[:1]:
            raise InputError(f"{path}: row {row}, column {used[0]} is {columns[used[0]][row]:g}, "
                             "expected a magnitude >= 0 (signed signals go into re and im)")
    _require_finite(path, columns, used)
    return values


def _require_finite(path, columns: Columns, names) -> None:
    for name in names:
        for row in np.flatnonzero(~np.isfinite(columns[name]))[:1]:
            raise InputError(f"{path}: row {row}, column {name} is {columns[name][row]}, expected "
                             "a number")


def _check_same(path, found: Acquisition, expected: Acquisition, with_echo_time: bool) -> None:
    """Raise InputError at the first row in which two tables of equal length differ."""
    cells = {"b": (found.b, expected.b), "direction": (found.directions, expected.directions),
             "delta": (found.delta, expected.delta), "Delta": (found.Delta, expected.Delta)}
    if with_echo_time:
        cells["TE"] = found.echo_time, expected.echo_time
    same = {name: np.isclose(*pair, rtol=_MATCH, atol=0.0, equal_nan=True)
            for name, pair in cells.items()}
    same["direction"] = np.all(np.abs(found.directions - expected.directions) <= _MATCH, axis=1) \
        | ((found.b == 0.0) & (expected.b == 0.0))
    # PGSE is all in the times above; other waveforms must be the same object of plain values
    equal = np.array([[type(w) is type(v) is PGSE or w == v for v in expected.waveforms]
                      for w in found.waveforms])
    same["waveform"] = equal[found.waveform_index, expected.waveform_index]
    wrong = ~np.all(list(same.values()), axis=0)
    if not np.any(wrong):
        return
    row = int(np.argmax(wrong))
    name = next(name for name, column in same.items() if not column[row])
    ours, theirs = (column[row].tolist() for column in cells[name]) if name in cells else (
        table.waveforms[table.waveform_index[row]].describe() for table in (found, expected))
    raise InputError(f"{path}: row {row}, {name} is {ours}, expected {theirs} as in the "
                     "acquisition")


def _write(path: str | Path, columns: Columns, definitions: dict[str, Waveform]) -> None:
    texts = {name: json.dumps(waveform.to_dict()) for name, waveform in definitions.items()}
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".npz"):
        raise InputError(f"{path}: suffix {suffix!r}, expected .csv or .npz")
    if suffix == ".npz":
        arrays: dict[str, Any] = dict(columns)
        if texts:
            arrays[_DEFINITIONS] = np.array([[name, text] for name, text in texts.items()])

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:  # savez would add .npz to .NPZ
                np.savez(file, **arrays)

        atomic.replace(in_a_folder(path), write)
        return
    lines = [f"{_COMMENT}{name} {text}" for name, text in texts.items()]
    lines.append(",".join(columns))
    cells = [column.tolist() if column.dtype.kind == "U" else [repr(x) for x in column.tolist()]
             for column in columns.values()]
    lines += [",".join(row) for row in zip(*cells, strict=True)]
    write_text(path, "\n".join(lines) + "\n")


def _read(path: str | Path, times: dict | None = None) -> tuple[Columns, dict[str, Waveform]]:
    """Columns and waveform definitions of a file; the required columns are there and finite.

    ``times`` are columns that the file does not have, one number or a value for each row.
    """
    reader = _read_npz if Path(path).suffix.lower() == ".npz" else _read_csv
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    times = times or {}
    columns, texts = reader(path, times)
    for name, value in times.items():
        if name in columns:
            raise InputError(f"{path}: {name}: given, but the file has such a column")
        try:
            columns[name] = np.broadcast_to(np.asarray(value, float), columns["b"].shape).copy()
        except (TypeError, ValueError):
            raise InputError(f"{path}: {name}: {value!r:.60}, expected a time in ms, or one for "
                             f"each of the {columns['b'].size} rows") from None
    definitions = {}
    for name, text in texts.items():
        try:
            definitions[name] = Waveform.from_dict(json.loads(text))
        except (json.JSONDecodeError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path}: waveform {name}: {error}") from None
    _require_finite(path, columns, ("b", *DIRECTION_COLUMNS))
    return columns, definitions


def _check_columns(path, names, times) -> None:
    for name in REQUIRED_COLUMNS:
        if name not in names and name not in times:
            hint = ", and not given beside the file" if name in _TIME_COLUMNS else ""
            raise InputError(f"{path}: column {name} is missing{hint}")


def _read_npz(path, times) -> tuple[Columns, dict[str, str]]:
    try:
        # opened here, since np.load leaves a broken archive open
        with Path(path).open("rb") as binary, np.load(binary, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not an npz file of plain arrays ({error})") from None
    _check_columns(path, arrays, times)
    columns: Columns = {}
    for name in (*ACQUISITION_COLUMNS, *VALUE_COLUMNS, "unit"):
        if name not in arrays:
            continue
        array, kinds = arrays[name], "U" if name in _TEXT else "fiu"
        if array.shape != arrays["b"].shape or array.ndim != 1 or array.size == 0:
            raise InputError(f"{path}: column {name} has shape {array.shape}, expected one value "
                             f"for each row of b, whose shape is {arrays['b'].shape}")
        if array.dtype.kind not in kinds:
            wanted = "text" if name in _TEXT else "real numbers"
            raise InputError(f"{path}: column {name} holds {array.dtype}, expected {wanted}")
        columns[name] = array if name in _TEXT else array.astype(float)
    definitions = arrays.get(_DEFINITIONS, np.empty((0, 2), dtype=str))
    if definitions.ndim != 2 or definitions.shape[1] != 2:
        raise InputError(f"{path}: {_DEFINITIONS} has shape {definitions.shape}, expected "
                         "(waveforms, 2)")
    return columns, {str(name): str(text) for name, text in definitions}


def _read_csv(path, times) -> tuple[Columns, dict[str, str]]:
    lines = read_lines(path)
    definitions: dict[str, str] = {}
    table: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines, start=1):
        if line.startswith(_COMMENT):
            name, _, text = line.removeprefix(_COMMENT).partition(" ")
            definitions[name] = text
        elif line.strip() and not line.startswith("#"):
            table.append((number, [cell.strip() for cell in next(csv.reader([line]))]))
    if not table:
        raise InputError(f"{path}: the file is empty, expected a header line")
    header, body = table[0][1], table[1:]
    _check_columns(path, header, times)
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{path}: column {twice} appears twice")
    if not body:
        raise InputError(f"{path}: no rows below the header")
    for row, (number, cells) in enumerate(body):
        if len(cells) != len(header):
            raise InputError(f"{path}: row {row} (line {number}) has {len(cells)} cells, expected "
                             f"{len(header)} as in the header")
    columns: Columns = {}
    for k, name in enumerate(header):
        if name in _TEXT:
            columns[name] = np.array([cells[k] for _, cells in body])
        elif name in ACQUISITION_COLUMNS or name in VALUE_COLUMNS:
            columns[name] = np.array(
                [_number(path, row, line, name, cells[k]) for row, (line, cells) in enumerate(body)]
            )
    return columns, definitions


def _number(path, row: int, line: int, name: str, cell: str) -> float:
    if not cell and name in _MAY_BE_MISSING:
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{path}: row {row} (line {line}), column {name}: {cell!r} is not a "
                         "number") from None
