"""Run files: YAML into checked, frozen models. Every key that has a unit says it.

Checked here is what one file can tell: keys, kinds, units, choices. What the numbers mean is
checked by the rooms that use them. Paths are relative to the folder of the run file.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from . import mesh
from .errors import InputError
from .inversion.stages import PRESETS, TAO, Adam, Stage

BUILDERS = {"box": mesh.box, "slabs": mesh.slabs, "sphere_in_box": mesh.sphere_in_box,
            "spheres": mesh.spheres, "cylinders": mesh.cylinders, "tagged_grid": mesh.tagged_grid}
SHAPES = {"ball": mesh.Ball, "cylinder": mesh.Cylinder, "bent_tube": mesh.BentTube,
          "torus": mesh.Torus}
# arguments of builders and shapes that are lengths; in a run file they end in _um
LENGTHS = frozenset({
    "lengths", "size", "size_interface", "centre", "thicknesses", "width", "radius", "radii", "box",
    "height", "length", "path", "major_radius", "minor_radius"})


# ---- kinds of values ------------------------------------------------------------------------

def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _number(value):
    if not _is_number(value):
        raise ValueError("expected a number")
    return float(value)


def _number_or_list(value):
    if _is_number(value):
        return float(value)
    if isinstance(value, list) and value and all(map(_is_number, value)):
        return [float(v) for v in value]
    raise ValueError("expected a number or a list of numbers")


def _rows_of_three(value) -> bool:
    return (isinstance(value, list) and bool(value)
            and all(isinstance(row, list) and len(row) == 3 and all(map(_is_number, row))
                    for row in value))


def _directions(value):
    if _rows_of_three(value) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError("expected a whole number of directions or a list of [x, y, z]")


def _by_tag(kinds: str, good):
    """A validator for a value, or a mapping from tags to such values."""
    def validate(value):
        if good(value):
            return value
        if isinstance(value, Mapping) and value and all(isinstance(tag, int) for tag in value) \
                and all(map(good, value.values())):
            return dict(value)
        raise ValueError(f"expected {kinds}, or {{tag: value}}")
    return BeforeValidator(validate)


def _is_tensor(value) -> bool:
    return _is_number(value) or (_rows_of_three(value) and len(value) == 3)


def _path(value, info: ValidationInfo):
    if not isinstance(value, str) or not value:
        raise ValueError("expected the path of a file")
    folder = (info.context or {}).get("folder", ".")
    return Path(os.path.normpath(Path(folder) / Path(value).expanduser()))


def _modes(value):
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError("expected a positive whole number or auto")


def _sequences(value):
    if value == "all":
        return value
    if isinstance(value, list) and value and all(type(v) is int and v >= 0 for v in value):
        return tuple(value)
    raise ValueError("expected all, or numbers counted from the longest diffusion time as [0, 1]")


def _ramp(value):
    if _is_number(value):
        return float(value)
    if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        return tuple(map(float, value))
    raise ValueError("expected a weight, or [first, last] of a ramp")


Number = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Number, Field(gt=0)]
NumberOrList = Annotated[Any, BeforeValidator(_number_or_list)]
PerCell = Annotated[Any, _by_tag("a number", _is_number)]
TensorPerCell = Annotated[Any, _by_tag("a number, a symmetric 3 x 3 tensor", _is_tensor)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Directions = Annotated[Any, BeforeValidator(_directions)]
Modes = Annotated[Any, BeforeValidator(_modes)]
Sequences = Annotated[Any, BeforeValidator(_sequences)]
Ramp = Annotated[Any, BeforeValidator(_ramp)]


class Section(BaseModel):
    """A mapping of the run file; keys that it does not know are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ---- sections -------------------------------------------------------------------------------

class MeshSection(Section):
    """``file`` (and ``repair``), or ``builder`` with the builder's arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)
    file: FilePath | None = None
    repair: bool = False
    builder: Literal[tuple(BUILDERS)] | None = None

    @model_validator(mode="after")
    def _one(self):
        extra = dict(self.model_extra or {})
        if (self.file is None) == (self.builder is None):
            raise InputError("mesh: expected one of the keys file and builder")
        if self.builder is None:
            for key in extra:
                raise InputError(_unknown(f"mesh.{key}", key, ["file", "repair", "builder"]))
            return self
        if self.repair:
            raise InputError("mesh.repair: true, expected it beside file only")
        shape = extra.pop("shape", None)
        if self.builder == "tagged_grid":
            if not isinstance(shape, Mapping) or shape.get("kind") not in SHAPES:
                raise InputError(f"mesh.shape: {shape!r:.60}, expected a mapping with kind: "
                                 f"one of {', '.join(SHAPES)}, and its arguments")
            rest = {key: value for key, value in shape.items() if key != "kind"}
            _arguments("mesh.shape", SHAPES[shape["kind"]], rest)
        elif shape is not None:
            raise InputError("mesh.shape: expected it with builder tagged_grid only")
        _arguments("mesh", BUILDERS[self.builder], extra)
        return self

    def build(self, comm) -> mesh.Mesh:
        """Read or build the mesh. Collective."""
        if self.file is not None:
            return mesh.read(self.file, comm, repair=self.repair)
        return mesh.build(self._make, comm=comm)

    def _make(self):
        extra = dict(self.model_extra or {})
        shape = extra.pop("shape", None)
        try:
            given = _arguments("mesh", BUILDERS[self.builder], extra)
            if shape is not None:
                shape = dict(shape)
                kind = SHAPES[shape.pop("kind")]
                given["shape"] = kind(**_arguments("mesh.shape", kind, shape))
            return BUILDERS[self.builder](**given)
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"mesh: builder {self.builder}: {error}") from None


class PermeabilitySection(Section):
    """Values for the known membrane, the other interior facets and the outer facets, or a file."""

    file: FilePath | None = None
    membrane_m_per_s: Annotated[Any, _by_tag("a number", _is_number)] = None
    membrane_um_per_ms: Annotated[Any, _by_tag("a number", _is_number)] = None
    elsewhere_m_per_s: Number | None = None
    elsewhere_um_per_ms: Number | None = None
    outer_m_per_s: Number | None = None
    outer_um_per_ms: Number | None = None

    @model_validator(mode="after")
    def _one_unit(self):
        for name in ("membrane", "elsewhere", "outer"):
            given = [key for key in (f"{name}_m_per_s", f"{name}_um_per_ms")
                     if getattr(self, key) is not None]
            if len(given) == 2:
                raise InputError(f"tissue.permeability: {given[0]} and {given[1]} are both there, "
                                 "expected one of them")
            if given and self.file is not None:
                raise InputError(f"tissue.permeability: file and {given[0]} are both there, "
                                 "expected one of them")
        return self

    def value(self, name: str, default):
        """``membrane``, ``elsewhere`` or ``outer`` in um/ms; the default where nothing is said."""
        um_per_ms = getattr(self, f"{name}_um_per_ms")
        m_per_s = getattr(self, f"{name}_m_per_s")
        if m_per_s is None:
            return default if um_per_ms is None else um_per_ms
        if isinstance(m_per_s, Mapping):
            return {tag: 1000.0 * value for tag, value in m_per_s.items()}
        return 1000.0 * m_per_s


class KnownTissue(Section):
    """What a reconstruction takes as known, and every simulation needs."""

    diffusivity_um2_per_ms: TensorPerCell = 2.0
    T2_ms: PerCell = math.inf
    density: PerCell = 1.0
    boundary: Literal["reflecting", "absorbing"] = "reflecting"


class TissueSection(KnownTissue):
    permeability: PermeabilitySection = PermeabilitySection()


class UnknownTissue(KnownTissue):
    start_um_per_ms: Positive = 1.0
    permeability_range_um_per_ms: tuple[Positive, Positive] = (0.01, 100.0)


class PGSESection(Section):
    b_s_per_mm2: NumberOrList
    directions: Directions
    delta_ms: NumberOrList | None = None
    Delta_ms: NumberOrList | None = None
    echo_time_ms: NumberOrList | None = None


class AcquisitionSection(Section):
    pgse: PGSESection | None = None
    file: FilePath | None = None

    @model_validator(mode="after")
    def _one(self):
        if (self.pgse is None) == (self.file is None):
            raise InputError("acquisition: expected one of the keys pgse and file")
        return self


class SignalsSection(Section):
    file: FilePath
    normalisation: Literal["measured", "own"] = "measured"


class TAOSection(Section):
    type: str = TAO.type
    options: dict[str, Any] = {}


class AdamSection(Section):
    learning_rate: Positive = Adam.learning_rate
    warm_up: int = Adam.warm_up
    cycle: Annotated[int, Field(ge=1)] = Adam.cycle
    final: Number = Adam.final
    clip: Positive = Adam.clip


class OptimiserSection(Section):
    tao: TAOSection | None = None
    adam: AdamSection | None = None

    @model_validator(mode="after")
    def _one(self):
        if (self.tao is None) == (self.adam is None):
            raise InputError("optimiser: expected one of the keys tao and adam")
        return self


class StageSection(Section):
    name: str
    iterations: Annotated[int, Field(ge=1)] = Stage.iterations
    sequences: Sequences = Stage.sequences
    b_max_s_per_mm2: Positive = Stage.b_max
    weights: tuple[Number, ...] = Stage.weights
    control: str = Stage.control
    priors: dict[str, Ramp] = {}
    optimiser: OptimiserSection | None = None
    misfit_weight: Positive = Stage.misfit_weight
    stop_at: Number = Stage.stop_at
    every: Annotated[int, Field(ge=1)] = Stage.every
    restart_um_per_ms: Positive | None = Stage.restart
    skip_below: Number = Stage.skip_below
    patience: Annotated[int, Field(ge=1)] = Stage.patience

    def stage(self) -> Stage:
        """The stage, or the InputError that it raises."""
        optimiser = TAO()
        if self.optimiser is not None and self.optimiser.tao is not None:
            optimiser = TAO(**self.optimiser.tao.model_dump())
        elif self.optimiser is not None:
            optimiser = Adam(**self.optimiser.adam.model_dump())
        rest = {key: getattr(self, key) for key in (
            "name", "iterations", "sequences", "weights", "control", "priors", "misfit_weight",
            "stop_at", "every", "skip_below", "patience")}
        return Stage(b_max=self.b_max_s_per_mm2, restart=self.restart_um_per_ms,
                     optimiser=optimiser, **rest)


class InterfaceSection(Section):
    rule: Literal["compartments", "threshold", "automatic"] = "compartments"
    cut_um_per_ms: Positive | None = None

    @model_validator(mode="after")
    def _cut(self):
        if (self.rule == "threshold") != (self.cut_um_per_ms is not None):
            raise InputError("interface.cut_um_per_ms: expected with rule threshold, there only")
        return self


class _Run(Section):
    mesh: MeshSection
    engine: Literal["matrix_formalism", "time_stepping"] = "matrix_formalism"
    modes: Modes = "auto"
    tolerance: Positive = 1e-5


class SimulateConfig(_Run):
    """The run file of ``spinverse simulate``."""

    tissue: TissueSection = TissueSection()
    acquisition: AcquisitionSection
    degree: Annotated[int, Field(ge=1)] = 1
    time_step_ms: Positive = 0.1


def _stage_list(value):
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"expected one of {', '.join(PRESETS)}, or a list of stages")
    elif not isinstance(value, list) or not value:
        raise ValueError(f"expected one of {', '.join(PRESETS)}, or a list of stages")
    return value


class ReconstructConfig(_Run):
    """The run file of ``spinverse reconstruct``."""

    tissue: UnknownTissue = UnknownTissue()
    signals: SignalsSection
    acquisition: AcquisitionSection | None = None
    stages: Annotated[str | list[StageSection], BeforeValidator(_stage_list)] = "default"
    time_step_ms: Positive = 0.25
    interface: InterfaceSection = InterfaceSection()

    def stage_list(self) -> list[Stage]:
        """The stages of the preset or of the list."""
        if isinstance(self.stages, str):
            return PRESETS[self.stages]()
        return [stage.stage() for stage in self.stages]

    @model_validator(mode="after")
    def _names(self):
        names = [stage.name for stage in self.stage_list()]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"stages: name {name!r} appears twice, expected different ones")
        return self


# ---- reading --------------------------------------------------------------------------------

class _Loader(yaml.SafeLoader):
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


_Loader.add_implicit_resolver("tag:yaml.org,2002:float",
                              re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
                              list("-+.0123456789"))


def read(path: str | Path, model: type[_Run]) -> _Run:
    """Read a run file.

    Args:
        path: a YAML file.
        model: `SimulateConfig` or `ReconstructConfig`.

    Raises:
        InputError: in one line: the file, the key, the value, and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a run file (YAML)")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected keys with values, as mesh: ..., in YAML")
    try:
        return model.model_validate(data, context={"folder": path.parent})
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, model, data)}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def explain(error: ValidationError, model: type[BaseModel], data) -> str:
    """One line for the first of pydantic's errors; a wrong key comes before what it misses."""
    # of the branches of a union the one that came furthest was meant
    errors = sorted(error.errors(), key=lambda e: (e["type"] != "extra_forbidden", -len(e["loc"])))
    first = errors[0]
    if isinstance((first.get("ctx") or {}).get("error"), InputError):
        return str(first["ctx"]["error"])
    place, keys, here = [], first["loc"], data
    for key in keys:  # steps that are no key are branches of a union
        if isinstance(here, Mapping) and key in here:
            here = here[key]
        elif isinstance(here, list) and isinstance(key, int) and key < len(here):
            here = here[key]
        elif first["type"] != "missing" or key is not keys[-1]:
            continue
        place.append(key)
    name = ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        known = _model_at(model, place[:-1])
        return _unknown(name, str(place[-1]), list(known.model_fields) if known else [])
    if first["type"] == "missing":
        return f"{name}: missing, expected a value"
    if first["type"] in ("model_type", "model_attributes_type"):
        return f"{name}: {here!r:.60}, expected keys with values"
    message = first["msg"].removeprefix("Value error, ")
    message = re.sub(r"^Input should (be|have) ", "expected ", message)
    return f"{name}: {here!r:.60}, {' '.join(message.split())}"


def _model_at(model: type[BaseModel], place: list) -> type[BaseModel] | None:
    for key in place:
        if isinstance(key, int):
            continue
        field = model.model_fields.get(key)
        model = next(_models_in(field.annotation), None) if field else None
        if model is None:
            return None
    return model


def _models_in(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)


def _unknown(name: str, key: str, known: list[str]) -> str:
    by_lower = {k.lower(): k for k in known}
    near = [k for k in known if k.startswith(key)] or [
        by_lower[k] for k in difflib.get_close_matches(key.lower(), list(by_lower), n=1)]
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    return f"{name}: unknown key, {hint}"


def _arguments(where: str, function, given: Mapping) -> dict:
    """The run file's keys as arguments of a builder or shape, without their _um."""
    parameters = {(f"{name}_um" if name in LENGTHS else name): parameter
                  for name, parameter in inspect.signature(function).parameters.items()
                  if name != "shape"}
    for key in given:
        if key not in parameters:
            raise InputError(_unknown(f"{where}.{key}", str(key), list(parameters)))
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in given:
            raise InputError(f"{where}.{key}: missing, expected a value")
    return {key.removesuffix("_um"): value for key, value in given.items()}
