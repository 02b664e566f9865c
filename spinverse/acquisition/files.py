"""What the readers and writers of all formats share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import atomic
from ..errors import InputError, warn_caller

ROUNDED_UNIT = 0.01  # a direction may be this far from a unit vector in a file
_EXACT_UNIT = 1e-12


def write_text(path: str | Path, text: str) -> None:
    """Write a file that appears complete or not at all; its folder must exist."""
    atomic.replace(in_a_folder(path), lambda temporary: temporary.write_bytes(text.encode()))


def in_a_folder(path: str | Path) -> Path:
    """The path, or the InputError that its folder does not exist."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist")
    return path


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file, or the InputError why not, without ends and a byte-order mark."""
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None


def numbers(path: str | Path, line: int, cells: list[str]) -> list[float]:
    """The numbers of a line, counted from 1, or the InputError that names the cell."""
    values = []
    for cell in cells:
        try:
            values.append(float(cell))
        except ValueError:
            raise InputError(f"{path}: line {line}: {cell!r} is not a number") from None
    return values


def without_small_b(source, b: np.ndarray, threshold: float) -> np.ndarray:
    """b with 0 where a file has up to ``threshold`` s/mm^2: scanners write small values for none.

    Warns where all of them are that small, as in another unit.
    """
    top = float(np.max(b, initial=0.0))
    if 0.0 < top <= threshold:
        warn_caller(f"{source}: all {b.size} measurements are b = 0: the largest b is {top:g} "
                    f"s/mm^2, and up to {threshold:g} count as 0 (was it meant in ms/um^2? then "
                    f"it would be {1e3 * top:g} here)")
    return np.where(b <= threshold, 0.0, b)


def tidy_directions(source, b: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Directions of a file as unit vectors, shape (N, 3).

    Vectors within 1 % of unit length are normalised, others are set to zero where b = 0, and an
    InputError where b > 0.
    """
    vectors = np.array(vectors, dtype=float)
    norms = np.linalg.norm(vectors, axis=1)
    wrong = (b > 0.0) & ~(np.abs(norms - 1.0) <= ROUNDED_UNIT)
    for row in np.flatnonzero(wrong)[:1]:
        raise InputError(f"{source}: row {row} has b = {b[row]:g} and a direction of length "
                         f"{norms[row]:.6g}, expected a unit vector (to "
                         f"{ROUNDED_UNIT:.0%}){_what_to_do(b, norms, wrong)}")
    usable = np.abs(norms - 1.0) <= ROUNDED_UNIT
    rounded = usable & (np.abs(norms - 1.0) > _EXACT_UNIT)
    vectors[rounded] /= norms[rounded, None]
    vectors[~usable] = 0.0
    return vectors


def _what_to_do(b: np.ndarray, norms: np.ndarray, wrong: np.ndarray) -> str:
    """What directions that are no unit vectors probably are, in words."""
    if not np.any(norms[wrong]):
        return (f"; {wrong.sum()} rows with b > 0 have none: if they are small b-values for none, "
                "say up to which b counts as 0 (b0_threshold; b0_up_to_s_per_mm2 in run files); if "
                "they are trace-weighted means over directions, leave them out")
    weighted = (b > 0.0) & (norms > 0.0)
    scaled = np.sqrt(b[weighted] / b.max())
    if np.all(np.abs(norms[weighted] / norms[weighted].max() - scaled) <= ROUNDED_UNIT):
        return "; the lengths are sqrt(b / largest b): divide each vector by its length"
    if np.all(norms <= 1.0 + ROUNDED_UNIT) and np.ptp(b[weighted]) <= ROUNDED_UNIT * b.max():
        return ("; with one b for all, the lengths may be sqrt(b / largest b): then multiply b by "
                "their squares, and divide each vector by its length")
    return ""


def require_times(source, delta, Delta, holds: str) -> None:
    """Raise InputError where ``delta`` or ``Delta`` is None; ``holds`` says what ``source`` has."""
    missing = " and ".join(n for n, v in (("delta", delta), ("Delta", Delta)) if v is None)
    if missing:
        raise InputError(f"{source}: {missing}: missing, {holds}; expected delta (pulse length) "
                         "and Delta (pulse separation) in ms; TE is optional and Delta + delta "
                         "unless given")
