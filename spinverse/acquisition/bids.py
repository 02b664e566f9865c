"""Diffusion acquisitions in BIDS: bval and bvec files with a JSON sidecar.

EchoTime (s) is BIDS. Of the pulse timing, what is in use has several names:

    delta: DiffusionGradientDuration, GradientDuration, SmallDelta
    Delta: DiffusionGradientSeparation, GradientSeparation, BigDelta, LargeDelta

each one number or one a volume. BIDS times are in seconds, but sidecars with these in ms are about;
a separation of 1 or more is taken as ms, for no sequence waits a second.

In a BIDS folder (one with a dataset_description.json above) files may lie further up and serve
all images whose names have their entities: fields of sidecars further down come first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..units import time_from_internal, time_to_internal
from .files import read_lines, require_times, write_text
from .fsl import read_fsl, write_fsl
from .pulses import PGSE
from .table import Acquisition

DELTA_FIELDS = ("DiffusionGradientDuration", "GradientDuration", "SmallDelta")
SEPARATION_FIELDS = ("DiffusionGradientSeparation", "GradientSeparation", "BigDelta", "LargeDelta")
SUFFIXES = (".bval", ".bvec", ".bvals", ".bvecs", ".json", ".nii", ".nii.gz")
_FIRST_MS = 1.0


def read_bids(path: str | Path, delta=None, Delta=None, echo_time=None,
              time_unit: str | None = None, b0_threshold: float = 0.0) -> Acquisition:
    """Read an acquisition from ``NAME.bval``, ``NAME.bvec`` and ``NAME.json``.

    Args:
        path: Any of the three, or NAME.nii or NAME.nii.gz beside them.
        delta, Delta, echo_time: Pulse length, separation and TE in ms, one or (N,); in place of
            the sidecar's.
        time_unit: "s" or "ms" of the sidecar's pulse times; found from the separation unless given.
            EchoTime is always in s.
        b0_threshold: b up to this many s/mm^2 counts as 0.

    Raises:
        InputError: ``delta`` or ``Delta`` neither given nor in the sidecar, a field that is no
            time, or as ``read_fsl``. A missing sidecar is an error only if it is needed.
    """
    if time_unit not in (None, "s", "ms"):
        raise InputError(f"time_unit = {time_unit!r}: expected 's' or 'ms'")
    stem = _stem(path)
    sidecar = stem.with_name(stem.name + ".json")
    found: dict[str, Any] = {}
    for above in reversed(_serving(stem, ".json")):
        found, sidecar = found | _sidecar(above), above
    length = _times(sidecar, found, DELTA_FIELDS)
    separation = _times(sidecar, found, SEPARATION_FIELDS)
    if time_unit is None:
        judge = separation if separation is not None else length
        time_unit = "ms" if judge is not None and np.max(judge) >= _FIRST_MS else "s"
    in_ms = time_to_internal if time_unit == "s" else np.asarray
    delta = in_ms(length) if delta is None and length is not None else delta
    Delta = in_ms(separation) if Delta is None and separation is not None else Delta
    if echo_time is None:
        echo = _times(sidecar, found, ("EchoTime",))
        echo_time = None if echo is None else time_to_internal(echo)
    lacks = "the sidecar has no such fields (" if found else \
        f"there is no sidecar {sidecar.name} (with "
    names = f"{' or '.join(DELTA_FIELDS)}, and {' or '.join(SEPARATION_FIELDS)}"
    require_times(sidecar if found else path, delta, Delta, f"{lacks}{names})")
    bval, bvec = (next(iter([*_serving(stem, suffix), *_serving(stem, suffix + "s")]),
                       stem.with_name(stem.name + suffix)) for suffix in (".bval", ".bvec"))
    return read_fsl(bval, bvec, delta, Delta, echo_time, b0_threshold=b0_threshold)


def write_bids(path: str | Path, acquisition: Acquisition) -> None:
    """Write NAME.bval, NAME.bvec and the times to NAME.json, where they are in s.

    ``path`` is any of them. Fields of a sidecar that is there are kept.

    Raises:
        InputError: A waveform that is no PGSE, or a folder that does not exist.
    """
    for waveform in acquisition.waveforms:
        if type(waveform) is not PGSE:
            raise InputError(f"{path}: {waveform.describe()}: BIDS has fields for PGSE only")
    stem = _stem(path)
    sidecar = stem.with_name(stem.name + ".json")
    fields = _sidecar(sidecar) if sidecar.is_file() else {}
    for name in (*DELTA_FIELDS, *SEPARATION_FIELDS):
        fields.pop(name, None)
    for name, column in (("EchoTime", acquisition.echo_time), (DELTA_FIELDS[0], acquisition.delta),
                         (SEPARATION_FIELDS[0], acquisition.Delta)):
        seconds = time_from_internal(column).tolist()
        fields[name] = seconds[0] if len(acquisition.waveforms) == 1 else seconds
    write_fsl(stem.with_name(stem.name + ".bval"), stem.with_name(stem.name + ".bvec"), acquisition)
    write_text(sidecar, json.dumps(fields, indent=2) + "\n")


def _stem(path: str | Path) -> Path:
    """NAME of NAME.bval, NAME.bvec, NAME.json, NAME.nii or NAME.nii.gz."""
    path = Path(path)
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.with_name(path.name.removesuffix(suffix))
    raise InputError(f"{path}: suffix {path.suffix!r}, expected .bval, .bvec, .json, .nii or "
                     ".nii.gz")


def _serving(stem: Path, suffix: str) -> list[Path]:
    """The files of a suffix that serve an image, the nearest first (BIDS's inheritance)."""
    beside = stem.with_name(stem.name + suffix)
    found = [beside] if beside.is_file() else []
    *entities, kind = stem.name.split("_")
    folders = [stem.parent.resolve(), *stem.parent.resolve().parents]
    roots = [k for k, folder in enumerate(folders)
             if (folder / "dataset_description.json").is_file()]
    for folder in folders[: roots[0] + 1] if roots else ():
        for file in sorted(folder.glob(f"*{suffix}"), key=lambda path: -path.name.count("_")):
            *others, other = file.name.removesuffix(suffix).split("_")
            if other == kind and set(others) <= set(entities) and file != beside.resolve():
                found.append(file)
    return found


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads("\n".join(read_lines(path)))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: expected a JSON object of fields")
    return fields


def _times(path: Path, fields: dict[str, Any], names: tuple[str, ...]) -> np.ndarray | None:
    """The first of the fields that is there, as an array; None if none is."""
    name = next((name for name in names if name in fields), None)
    if name is None:
        return None
    try:
        array = np.array(fields[name], dtype=float)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.ndim > 1 or array.size == 0 or not np.all(np.isfinite(array) & (array > 0.0)):
        raise InputError(f"{path}: {name} = {fields[name]!r:.60}: expected a positive time or one "
                         "a volume")
    return array
