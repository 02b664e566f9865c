"""Kinds of values in a run file, and the base of its sections."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
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
    """The one key of ``names`` that is there. Raises InputError: none of them, or several."""
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} are both there, " if given else ""
        raise InputError(f"{found}expected one of the keys {', '.join(names[:-1])} and {names[-1]}")
    return given[0]


def kind(expected: str, good: Callable, convert: Callable = lambda value: value,
         file: bool = False) -> BeforeValidator:
    """A validator: ``convert`` of what is ``good``; with ``file``, text is the name of one."""
    def validate(value, info: ValidationInfo):
        if file and isinstance(value, str):
            return path_in(value, info)
        if good(value):
            return convert(value)
        raise ValueError(f"expected {expected}")
    return BeforeValidator(validate)


def is_number(value) -> bool:
    if isinstance(value, float):
        return not math.isnan(value)
    return type(value) is int and abs(value) < 2**1023  # beyond, no float holds it


def _is_whole(value) -> bool:
    return type(value) is int


def is_list_of(good: Callable, length: int | None = None) -> Callable:
    """Tells whether a value is a list of good values, one or more, or of that length."""
    return lambda value: isinstance(value, list) and 0 < len(value) == (
        length or len(value)) and all(map(good, value))


def _infinite(value):
    """YAML's word for it is .inf; inf is taken too."""
    return math.inf if value in ("inf", "+inf") else value


def by_tag(kinds: str, good):
    """A validator for a value, or a mapping from tags to such values."""
    def convert(value):
        return {tag: _infinite(v) for tag, v in value.items()} if isinstance(value, Mapping) \
            else _infinite(value)

    def fits(value) -> bool:
        value = convert(value)
        return good(value) or (isinstance(value, Mapping) and len(value) > 0 and all(
            isinstance(tag, int) and good(v) for tag, v in value.items()))
    return kind(f"{kinds}, or {{tag: value}}", fits, convert)


def _is_tensor(value) -> bool:
    return is_number(value) or (isinstance(value, list) and len(value) <= 3
                                and is_list_of(is_list_of(is_number, len(value)))(value))


def path_in(value, info: ValidationInfo) -> Path:
    """A path relative to the folder of the run file."""
    if not isinstance(value, str) or not value:
        raise ValueError("expected the path of a file")
    folder = (info.context or {}).get("folder", ".")
    return Path(os.path.normpath(Path(folder) / Path(value).expanduser()))


def table_of(path: Path) -> np.ndarray:
    """Numbers of a .npy array or of a text file in rows, ``(n, columns)``.

    In text the cells are separated by commas or blanks; lines that start with # and a first line of
    names are left out.
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


_numbers, _vectors = is_list_of(is_number), is_list_of(is_list_of(is_number, 3))
_is_vector = is_list_of(is_number, 3)

Number = Annotated[float, kind("a number", lambda value: is_number(_infinite(value)),
                               lambda value: float(_infinite(value)))]
Positive = Annotated[Number, Field(gt=0)]
NumberOrList = Annotated[Any, kind(
    "a number or a list of numbers", lambda value: is_number(value) or _numbers(value),
    lambda value: list(map(float, value)) if isinstance(value, list) else float(value))]
PerCell = Annotated[Any, by_tag("a number", is_number)]
TensorPerCell = Annotated[Any, by_tag("a number, a symmetric tensor as 3 rows of 3", _is_tensor)]
FilePath = Annotated[Path, BeforeValidator(path_in)]
Directions = Annotated[Any, kind(
    "a whole number of directions, a list of [x, y, z], or a file of such rows",
    lambda value: _is_whole(value) or _is_vector(value) or _vectors(value),
    lambda value: [value] if _is_vector(value) else value, file=True)]
Samples = Annotated[Any, kind(
    "a list of numbers, a list of [x, y, z], or a .csv or .npy file",
    lambda value: _numbers(value) or _vectors(value), file=True)]
Times = Annotated[Any, kind("a list of times, or a .csv or .npy file", _numbers, file=True)]
Modes = Annotated[Any, kind("a positive whole number or auto",
                            lambda value: value == "auto" or (_is_whole(value) and value > 0))]
TimeStep = Annotated[Any, kind(
    "a positive time in ms or auto",
    lambda value: value == "auto" or (is_number(value) and 0 < value < math.inf),
    lambda value: value if value == "auto" else float(value))]
Sequences = Annotated[Any, kind(
    "all, or numbers counted from the longest diffusion time as [0, 1]",
    lambda value: value == "all" or is_list_of(lambda v: _is_whole(v) and v >= 0)(value),
    lambda value: value if value == "all" else tuple(value))]
Ramp = Annotated[Any, kind(
    "a weight, or [first, last] of a ramp",
    lambda value: is_number(value) or is_list_of(is_number, 2)(value),
    lambda value: tuple(map(float, value)) if isinstance(value, list) else float(value))]
