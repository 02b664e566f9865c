"""From a YAML file to a checked model, or to one line about what is wrong with it."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import InputError, one_line
from .arguments import unknown
from .runs import Run
from .values import KeyProblem

#: Keys by which the file of another command is known.
ONLY_IN = {"SimulateConfig": {"signals": "reconstruct", "stages": "reconstruct",
                               "unknown": "reconstruct", "posterior": "reconstruct"},
           "ReconstructConfig": {"quantities": "simulate"}}
_UNKNOWN_KEY = ("extra_forbidden", "invalid_key")  # of pydantic; the second is no text


class Loader(yaml.SafeLoader):
    """YAML whose 1e-5 is a number, and in which a key that appears twice is an error."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} appears twice", key_node.start_mark)
            seen.add(key if isinstance(key, str | int) else None)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:float",
                              re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
                              list("-+.0123456789"))


def yaml_of(path: Path, where: str):
    """The content of a YAML file, read by `Loader`, or an InputError that begins with ``where``."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{where}: not YAML: {one_line(error)}") from None


def checked(model: type[Run], data: Mapping, folder: Path, where: str) -> Run:
    """The model of a run file's content; paths are relative to a folder, errors as in `yaml_of`."""
    try:
        return model.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, model, data)}") from None
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def read(path: str | Path, model: type[Run]) -> Run:
    """Read a run file, or raise an InputError: file, key, value, and what was expected."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a run file (YAML)")
    data = yaml_of(path, str(path))
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected keys with values, as mesh: ..., in YAML")
    for key, kind in ONLY_IN.get(model.__name__, {}).items():
        if key in data:
            raise InputError(f"{path}: has {key}, so it is a run file of spinverse {kind}")
    return checked(model, data, path.parent, str(path))


def explain(error: ValidationError, model: type[BaseModel], data) -> str:
    """One line for the first of pydantic's errors; a wrong key comes before what it misses."""
    # of the branches of a union the one that came furthest was meant
    first = min(error.errors(), key=lambda e: (e["type"] not in _UNKNOWN_KEY, -len(e["loc"])))
    place: list = []
    keys, here = first["loc"], data
    for key in keys:  # steps that are no key are branches of a union
        if isinstance(here, Mapping) and key in here:
            here = here[key]
        elif isinstance(here, list) and isinstance(key, int) and key < len(here):
            here = here[key]
        elif first["type"] != "missing" or key is not keys[-1]:
            continue
        place.append(key)
    cause = (first.get("ctx") or {}).get("error")
    if isinstance(cause, KeyProblem):
        place.append(cause.key)
    name = ".".join(map(str, place))
    if isinstance(cause, InputError):
        return f"{name}: {cause}" if name else str(cause)
    above = _model_at(model, place[:-1])
    if first["type"] in _UNKNOWN_KEY:
        return f"{name}: {unknown(str(place[-1]), list(above.model_fields) if above else [])}"
    if first["type"] == "missing":
        field = above.model_fields.get(place[-1]) if above else None
        return f"{name}: missing, expected {(field and field.description) or 'a value'}"
    if first["type"] in ("model_type", "model_attributes_type"):
        meant = next(_models_in(model.model_fields[place[0]].annotation), None) if len(
            place) == 1 else _model_at(model, place)
        keys = f": {', '.join(meant.model_fields)}" if meant else ""
        return f"{name}: {here!r:.60}, expected keys with values{keys}"
    message = first["msg"].removeprefix("Value error, ")
    message = re.sub(r"^Input should (be|have) ", "expected ", message)
    return f"{name}: {here!r:.60}, {' '.join(message.split())}"


def _model_at(model: type[BaseModel], place: list) -> type[BaseModel] | None:
    named = False  # whether the next key is a name that the user chose
    for key in place:
        if isinstance(key, int) or named:
            named = False
            continue
        field = model.model_fields.get(key)
        model = next(_models_in(field.annotation), None) if field else None
        if model is None:
            return None
        named = typing.get_origin(field.annotation) is dict
    return model


def _models_in(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)
