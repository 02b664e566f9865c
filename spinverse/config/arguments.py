"""Arguments of functions as keys of a run file: the same names, with their units."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping

from .values import KeyProblem

_LENGTHS = (
    "arm", "box", "centre", "centres", "corner", "ecs_gap", "envelope", "gap", "height", "length",
    "lengths", "major_radius", "mean_radius", "minor_radius", "path", "radii", "radius",
    "radius_deviation", "size", "size_interface", "thicknesses", "voxel_size", "width")
#: What the key of an argument has after its name.
UNITS = {
    **dict.fromkeys(_LENGTHS, "_um"), "bend": "_per_um", "twist": "_rad_per_um",
    "scale": "_um_per_unit", "timeout": "_s", "times": "_ms", "time_step": "_ms",
    "b_max": "_s_per_mm2", "cut": "_um_per_ms"}


def keys_of(function: Callable, leave_out=()) -> dict[str, inspect.Parameter]:
    """The keys that a function's arguments have in a run file, with their parameters."""
    return {name + UNITS.get(name, ""): parameter
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in leave_out}


def arguments_of(function: Callable, given: Mapping, leave_out=(), optional=(),
                 where: str = "") -> dict:
    """The keys of a run file as arguments of a function, or the InputError of a wrong key.

    Arguments to ``leave_out`` have no key, ``optional`` ones may be missing without a default;
    ``where`` comes before the key in messages, with its dot.
    """
    known = keys_of(function, leave_out)
    for key in given:
        if key not in known:
            raise KeyProblem(f"{where}{key}", unknown(str(key), list(known)))
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in given \
                and parameter.name not in optional:
            others = [k for k, p in known.items() if p.default is p.empty and k != key]
            also = f" (it needs {', '.join(others)} too)" if others else ""
            raise KeyProblem(f"{where}{key}", f"missing, expected a value{also}")
    return {known[key].name: value for key, value in given.items()}


def unknown(key: str, known: list[str]) -> str:
    """What is said of an unknown key: the nearest known one, or all of them."""
    return f"unknown key, {nearest(key, known)}"


def nearest(name: str, known: list[str]) -> str:
    """The known name that was probably meant, or all of them; that without its unit is as near."""
    units = sorted(set(UNITS.values()), key=len, reverse=True)
    names = {k.lower(): k for k in known}
    for k in known:
        bare = next((k.removesuffix(unit) for unit in units if k.endswith(unit)), k)
        names.setdefault(bare.lower(), k)
    near = [k for k in known if k.startswith(name)] or [
        names[k] for k in difflib.get_close_matches(name.lower(), list(names), n=1)]
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"


def chosen(value, known, kind: str) -> str:
    """``value`` if it is one of ``known``, else a ValueError with the nearest."""
    if isinstance(value, str) and value in known:
        return value
    near = difflib.get_close_matches(str(value).lower(), known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{hint}expected {kind}: {', '.join(known)}")
