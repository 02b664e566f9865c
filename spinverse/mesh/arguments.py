"""Checks of arguments that builders and shapes share.

All raise :class:`.InputError`; the line names ``owner``, the function that was called, and ``key``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import numpy as np

from spinverse.errors import InputError

MOST_CELLS = 2e7  # more do not fit one rank, on which meshes are made


def shown(value) -> str:
    """``value`` on one line of bounded length, for messages."""
    return " ".join(repr(value).split())[:80]


def array(owner: str, key: str, value, shape: tuple, dtype) -> np.ndarray:
    """``value`` as a fresh array of ``dtype`` and ``shape`` (``None``: any length)."""
    expected = str(tuple("N" if n is None else n for n in shape)).replace("'", "")
    try:
        found = np.asarray(value)
    except ValueError:
        raise InputError(f"{owner}: {key} is ragged, expected an array of shape "
                         f"{expected}") from None
    if found.size == 0 and found.ndim < 2:
        # an empty list has no second dimension and no integer type
        found = np.empty([n or 0 for n in shape], dtype)
    if found.ndim != len(shape) or any(
            n not in (None, m) for n, m in zip(shape, found.shape, strict=True)):
        raise InputError(f"{owner}: {key} has shape {found.shape}, expected {expected}")
    kinds, words = ("iu", "integers") if dtype == np.int64 else ("iuf", "real numbers")
    if found.dtype.kind not in kinds:
        raise InputError(f"{owner}: {key} has type {found.dtype}, expected {words}")
    return np.array(found, dtype=dtype, order="C")


def vector(owner: str, key: str, value) -> tuple[float, float, float]:
    """Three finite numbers."""
    try:
        x, y, z = np.asarray(value, dtype=float).tolist()
        if not isfinite(x + y + z):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{owner}: {key} is {shown(value)}, expected three finite numbers"
                         ) from None
    return x, y, z


def target(path: str | Path, suffix: str) -> Path:
    """A file to write a mesh to."""
    path = Path(path)
    if path.suffix.lower() != suffix or not path.parent.is_dir():
        raise InputError(f"mesh file '{path}': suffix is '{path.suffix}', expected the suffix "
                         f"{suffix} and a folder that is there")
    return path


def number(owner: str, key: str, value, low: float = -np.inf, high: float = np.inf) -> float:
    """A finite number in ``[low, high]``."""
    result = _float(value)
    if not isfinite(result) or not low <= result <= high:
        bounds = "" if low == -np.inf else f" of at least {low:g}" if high == np.inf \
            else f" from {low:g} to {high:g}"
        raise InputError(f"{owner}: {key} is {shown(value)}, expected a number{bounds}")
    return result


def _float(value) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan


def positive(owner: str, key: str, value, infinite: bool = False) -> float:
    """A positive length, um, finite unless ``infinite`` allows otherwise."""
    result = _float(value)
    if not result > 0 or not (infinite or isfinite(result)):
        raise InputError(f"{owner}: {key} is {shown(value)}, expected a positive length in um")
    return result


def lengths(owner: str, key: str, values, count: int | None = None) -> np.ndarray:
    """``count`` positive lengths (any number where none is said), ``(n,)`` um."""
    if np.ndim(values) != 1 or not len(values) or count not in (None, len(values)):
        raise InputError(f"{owner}: {key} is {shown(values)}, expected "
                         f"{count or 'one or more'} positive lengths in um")
    return np.array([positive(owner, f"{key}[{i}]", v) for i, v in enumerate(values)])


def ascending(owner: str, key: str, values) -> np.ndarray:
    """Positive lengths, each above the one before, ``(n,)`` um."""
    found = lengths(owner, key, values)
    if not (np.diff(found) > 0).all():
        raise InputError(f"{owner}: {key} is {shown(values)}, expected ascending ones")
    return found


def each(owner: str, key: str, value, count: int) -> np.ndarray:
    """One positive length for all of ``count`` layers, or a list of one for each."""
    if np.ndim(value) == 0:
        return np.full(count, positive(owner, key, value))
    return lengths(owner, key, value, count)


def counts(owner: str, key: str, values, count: int) -> list[int]:
    """``count`` positive integers."""
    fits = np.ndim(values) == 1 and len(values) == count
    if not fits or not all(isinstance(v, int | np.integer) and v > 0 for v in values):
        value = values[0] if fits and count == 1 else values
        raise InputError(f"{owner}: {key} is {shown(value)}, expected "
                         f"{'a positive integer' if count == 1 else f'{count} positive integers'}")
    return [int(v) for v in values]


def count(owner: str, key: str, value) -> int:
    """A positive integer."""
    return counts(owner, key, [value], 1)[0]


def order(owner: str, value) -> int:
    """Of the geometry: 1 or 2."""
    if value not in (1, 2) or isinstance(value, bool):
        raise InputError(f"{owner}: order is {shown(value)}, expected 1 (straight cells) or 2 "
                         "(curved ones)")
    return int(value)


def one_of(owner: str, **options) -> None:
    """Exactly one of ``options`` is not ``None``."""
    if sum(v is not None for v in options.values()) != 1:
        given = ", ".join(f"{k}={shown(v)}" for k, v in options.items())
        raise InputError(f"{owner}: got {given}, expected exactly one of {' and '.join(options)}")


def choice(owner: str, key: str, value, known: Sequence[str]) -> str:
    """One of ``known``."""
    if not isinstance(value, str) or value not in known:
        words = [repr(k) for k in known]
        raise InputError(f"{owner}: {key} is {shown(value)}, expected "
                         f"{', '.join(words[:-1])} or {words[-1]}")
    return value


def affordable(owner: str, cells: float) -> None:
    """Refuse a size that asks for more cells, by an estimate, than one rank can hold."""
    if not cells <= MOST_CELLS:
        raise InputError(f"{owner}: the sizes asked for make about {cells:.2g} cells, expected "
                         f"at most {MOST_CELLS:.2g} (try a larger size)")


def affordable_volume(owner: str, volume, size, dim: int = 3) -> None:
    """:func:`affordable` for regular cells of edge ``size`` in ``volume`` um^dim (lists add up)."""
    cell = {2: 3**0.5 / 4, 3: 2**0.5 / 12}[dim]
    affordable(owner, float(np.sum(np.asarray(volume) / (cell * np.asarray(size)**dim))))
