"""The sections extra_terms and unknown: a term of the user's own, from a Python file.

The code of the file runs when `ExtraTermsSection.arguments` is called: on every rank, of the text
that rank 0 has read; the folder of the file is not searched for modules.
"""

from __future__ import annotations

import functools
import hashlib
import keyword
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from ..errors import InputError, on_all, on_root
from ..extra_terms import Unsuitable, check_function
from ..inversion.parameters import Unknown
from .arguments import nearest
from .values import FilePath, KeyProblem, Number, Positive, Section, is_list_of, is_number, kind

_KINDS = ("expected a finite number, a vector, a tensor as rows of up to 3, or {cell tag: value} "
          "with the same of these for each tag")


def _is_finite(value) -> bool:
    return is_number(value) and math.isfinite(value)


def _constant(value):
    """A number, vector or tensor in floats; None if it is none of these."""
    if _is_finite(value):
        return float(value)
    if not (isinstance(value, list) and 0 < len(value) <= 3):
        return None
    entries = [_constant(entry) for entry in value]
    return entries if _alike(entries) and np.ndim(entries) <= 2 else None


def _alike(constants: list) -> bool:
    return None not in constants and len({np.shape(each) for each in constants}) == 1


def _coefficient(value):
    by_tag = value if isinstance(value, Mapping) else {0: value}
    found = {tag: _constant(entry) for tag, entry in by_tag.items()}
    if not _alike(list(found.values())) or not all(type(tag) is int for tag in found):
        raise ValueError(_KINDS)
    return found if by_tag is value else found[0]


def _by_name(value):
    if not isinstance(value, Mapping):
        raise ValueError("expected a value for each name, as rho: ...")
    for name in value:
        if not (isinstance(name, str) and name.strip()):
            raise ValueError(f"expected names, got {name!r:.40} (words as yes and on need quotes)")
    return value


def _is_time(value) -> bool:
    return _is_finite(value) and value >= 0


class ExtraTermsSection(Section):
    """A term of the weak form: a function of a Python file, and what it is made of.

    ``coefficients`` are in um, ms and rad: numbers, vectors and tensors as lists, or ``{cell tag:
    value}``; at ``breakpoints_ms`` the term jumps.
    """

    file: Annotated[FilePath, Field(description="a Python file with the function")]
    function: Annotated[str, kind(
        "the name of a function in the file",
        lambda value: isinstance(value, str) and value.isidentifier()
        and not keyword.iskeyword(value)), Field(
            description="the name of a function (m, v, t, coefficients) in the file")]
    coefficients: Annotated[dict[str, Annotated[Any, BeforeValidator(_coefficient)]],
                            BeforeValidator(_by_name)] = {}
    breakpoints_ms: Annotated[tuple[float, ...], kind(
        "a time in ms, not negative, or a list of them",
        lambda value: _is_time(value) or is_list_of(_is_time)(value),
        lambda value: tuple(map(float, value if isinstance(value, list) else [value])))] = ()

    @model_validator(mode="after")
    def _is_python(self):
        if self.file.suffix != ".py":
            raise KeyProblem("file", f"{self.file}, expected a Python file (.py)")
        return self

    def arguments(self, comm) -> dict[str, Any]:
        """Run the code of the file; what `BlochTorrey` and `simulate` take. Collective.

        What fails is an InputError, when it is loaded and when the function is called.
        """
        source = comm.bcast(on_root(comm, self._read))
        return {"extra_terms": on_all(comm, self._load, source),
                "extra_coefficients": dict(self.coefficients),
                "extra_breakpoints": self.breakpoints_ms}

    def _read(self) -> bytes:
        if not self.file.is_file():
            raise InputError(f"extra_terms.file: {self.file}: no such file, expected a Python file")
        try:
            return self.file.read_bytes()
        except OSError as error:
            raise InputError(f"extra_terms.file: {self.file}: cannot be read "
                             f"({error.strerror}), expected a Python file") from None

    def _load(self, source: bytes) -> Callable:
        place = self.file.resolve()
        try:
            module = _run(place, source)
        except (Exception, SystemExit) as error:
            raise InputError(f"extra_terms.file: {self.file}: {_said(error, place)}, expected "
                             "Python that runs by itself (its folder is not searched for "
                             "modules)") from error
        if self.function not in vars(module):
            known = [key for key, value in vars(module).items() if callable(value)
                     and getattr(value, "__module__", None) == module.__name__]
            raise InputError(f"extra_terms.function: {self.function!r}, no such function in "
                             f"{self.file}, "
                             f"{nearest(self.function, known) if known else 'which has none'}")
        function = vars(module)[self.function]
        try:
            check_function(function)
        except InputError as error:
            raise InputError(f"extra_terms.function: {self.function} of {self.file}: "
                             f"{_without_key(error)}") from None

        @functools.wraps(function)
        def guarded(m, v, t, coefficients):
            try:
                return function(m, v, t, coefficients)
            except (Exception, SystemExit) as error:
                raise InputError(f"extra_terms.function: {self.function} of {self.file}: "
                                 f"{_said(error, place)}") from error

        return guarded


def _run(path: Path, source: bytes) -> ModuleType:
    """The module of a text, under a name that no other module can have."""
    name = f"spinverse run file {path} {hashlib.sha256(source).hexdigest()}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look for their module there
    try:
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _said(error: BaseException, path: Path) -> str:
    """An exception in a line, with the line of the file that it came from."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, words = error.lineno, error.msg
    else:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename == str(path)]
        line, words = (lines or [None])[-1], _without_key(error)
    words = " ".join(words.split())
    kind = "" if isinstance(error, InputError) else type(error).__name__ + ": " * bool(words)
    return (f"line {line}: " if line else "") + kind + words


def _without_key(error: BaseException) -> str:
    """Words of the library about its arguments as words about the section's keys."""
    return str(error).removeprefix("extra_terms: ").replace("extra_coefficients", "coefficients")


@contextmanager
def in_keys():
    """InputErrors of the solver about a run's extra terms, in the keys of the run file."""
    try:
        yield
    except Unsuitable as error:
        raise InputError("extra_terms: engine matrix_formalism cannot take them, because "
                         f"{error.reason}; expected engine: time_stepping") from None
    except InputError as error:
        if "extra_coefficients" not in str(error):
            raise
        raise InputError(str(error).replace("extra_coefficients: ", "extra_terms.coefficients.")
                         .replace("extra_coefficients", "extra_terms.coefficients")) from None


class UnknownSection(Section):
    """A number that is found with the membranes: `spinverse.inversion.parameters.Unknown`."""

    start: Annotated[Number, Field(description="the value to begin with")]
    low: Annotated[Number, Field(description="the smallest value")]
    high: Annotated[Number, Field(description="the largest value")]
    scale: Literal["log", "linear"] | None = None
    deviation: Positive | None = None

    @model_validator(mode="after")
    def _makes_sense(self):
        self.value()
        return self

    def value(self) -> Unknown:
        """The unknown; on a logarithmic scale, unless it may be zero or another one is said."""
        scale = self.scale or ("log" if self.low > 0 else "linear")
        return Unknown(self.start, self.low, self.high, scale, self.deviation)


def _or_names(value):
    """Names alone have usual ranges: None."""
    if isinstance(value, list):
        value = dict.fromkeys(name if isinstance(name, str) else repr(name) for name in value)
    value = _by_name(value)
    return {name: None if section == "usual" else section for name, section in value.items()}


Unknowns = Annotated[dict[str, UnknownSection | None], BeforeValidator(_or_names)]
