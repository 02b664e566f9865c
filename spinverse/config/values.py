"""Kinds of values in a run file, and the base of its sections."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from ..acquisition.files import numbers, read_lines
from ..errors import InputError


class KeyProblem(InputError):
    """What is wrong with one key of the section that is being read."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key

    def __reduce__(self):  # for other ranks
        return type(self), (self.key, str(self))


class Section(BaseModel):
    """A mapping of the run file; keys that it does not know are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def exactly_one(section: Section, names: tuple[str, ...]) -> str:
    """The one key of ``names`` that is there.

    Raises:
        InputError: none of them, or several.
    """
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} are both there, " if given else ""
        raise InputError(f"{found}expected one of the keys {', '.join(names[:-1])} and {names[-1]}")
    return given[0]


def is_number(value) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:  # a whole number of more than 300 digits
        return False


def _infinite(value):
    """YAML's word for it is .inf; inf is taken too."""
    return math.inf if value in ("inf", "+inf") else value


def _number(value):
    value = _infinite(value)
    if not is_number(value):
        raise ValueError("expected a number")
    return float(value)


def _number_or_list(value):
    if is_number(value):
        return float(value)
    if isinstance(value, list) and value and all(map(is_number, value)):
        return [float(v) for v in value]
    raise ValueError("expected a number or a list of numbers")


def _rows_of(value, length: int | None = None) -> bool:
    """Whether value is a list of lists of numbers, all as long as the first (or ``length``)."""
    if not (isinstance(value, list) and value and all(isinstance(row, list) for row in value)):
        return False
    length = len(value[0]) if length is None else length
    return all(len(row) == length and all(map(is_number, row)) for row in value)


def by_tag(kinds: str, good):
    """A validator for a value, or a mapping from tags to such values."""
    def validate(value):
        if isinstance(value, Mapping):
            value = {tag: _infinite(v) for tag, v in value.items()}
            if value and all(isinstance(tag, int) for tag in value) and all(
                    map(good, value.values())):
                return value
        elif good(_infinite(value)):
            return _infinite(value)
        raise ValueError(f"expected {kinds}, or {{tag: value}}")
    return BeforeValidator(validate)


def _is_tensor(value) -> bool:
    return is_number(value) or (_rows_of(value) and len(value) == len(value[0]) <= 3)


def path_in(value, info: ValidationInfo) -> Path:
    """A path relative to the folder of the run file."""
    if not isinstance(value, str) or not value:
        raise ValueError("expected the path of a file")
    folder = (info.context or {}).get("folder", ".")
    return Path(os.path.normpath(Path(folder) / Path(value).expanduser()))


def _directions(value, info: ValidationInfo):
    if isinstance(value, str):
        return path_in(value, info)
    if isinstance(value, list) and len(value) == 3 and all(map(is_number, value)):
        return [value]
    if _rows_of(value, 3) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError("expected a whole number of directions, a list of [x, y, z], or a file of "
                     "such rows")


def _list_or_file(kinds: str, vectors: bool):
    """A validator for a list of numbers (or of three each), or the file that holds it."""
    def validate(value, info: ValidationInfo):
        if isinstance(value, str):
            return path_in(value, info)
        if isinstance(value, list) and value and (
                all(map(is_number, value)) or (vectors and _rows_of(value, 3))):
            return value
        raise ValueError(f"expected {kinds}, or a .csv or .npy file")
    return BeforeValidator(validate)


def table_of(path: Path) -> np.ndarray:
    """Numbers of a .npy array or of a text file in rows, ``(n, columns)``.

    In text the cells are separated by commas or blanks; lines that start with # and a first line
    of names are left out.

    Raises:
        InputError: no such file, another suffix, no numbers, rows of different length.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a table of numbers (.csv or .npy)")
    if path.suffix.lower() == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except Exception as error:  # header and pickle errors have no common base
            raise InputError(f"{path}: cannot be read ({error}), expected an array") from None
        if array.dtype.kind not in "fiu" or array.ndim not in (1, 2) or not array.size:
            raise InputError(f"{path}: {array.dtype} of shape {array.shape}, expected numbers in "
                             "one or two dimensions")
        return array.astype(float).reshape(len(array), -1)
    lines = [(k, line.replace(",", " ").split()) for k, line in enumerate(read_lines(path), 1)
             if line.strip() and not line.lstrip().startswith("#")]
    if lines and not _all_numbers(lines[0][1]):
        lines = lines[1:]
    rows = [numbers(path, k, cells) for k, cells in lines]
    if not rows or len({len(row) for row in rows}) > 1:
        raise InputError(f"{path}: {'rows of different length' if rows else 'no numbers'}, "
                         "expected a table of numbers")
    return np.array(rows)


def _all_numbers(cells: list[str]) -> bool:
    try:
        return bool([float(cell) for cell in cells])
    except ValueError:
        return False


def _modes(value):
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError("expected a positive whole number or auto")


def _time_step(value):
    if value == "auto" or (is_number(value) and 0 < value < math.inf):
        return value if value == "auto" else float(value)
    raise ValueError("expected a positive time in ms or auto")


def _sequences(value):
    if value == "all":
        return value
    if isinstance(value, list) and value and all(type(v) is int and v >= 0 for v in value):
        return tuple(value)
    raise ValueError("expected all, or numbers counted from the longest diffusion time as [0, 1]")


def _ramp(value):
    if is_number(value):
        return float(value)
    if isinstance(value, list) and len(value) == 2 and all(map(is_number, value)):
        return tuple(map(float, value))
    raise ValueError("expected a weight, or [first, last] of a ramp")


Number = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Number, Field(gt=0)]
NumberOrList = Annotated[Any, BeforeValidator(_number_or_list)]
PerCell = Annotated[Any, by_tag("a number", is_number)]
TensorPerCell = Annotated[Any, by_tag("a number, a symmetric tensor as 3 rows of 3", _is_tensor)]
FilePath = Annotated[Path, BeforeValidator(path_in)]
Directions = Annotated[Any, BeforeValidator(_directions)]
Samples = Annotated[Any, _list_or_file("a list of numbers, a list of [x, y, z]", True)]
Times = Annotated[Any, _list_or_file("a list of times", False)]
Modes = Annotated[Any, BeforeValidator(_modes)]
TimeStep = Annotated[Any, BeforeValidator(_time_step)]
Sequences = Annotated[Any, BeforeValidator(_sequences)]
Ramp = Annotated[Any, BeforeValidator(_ramp)]
