"""The section tissue: diffusivity, T2, T1, density, permeability, boundary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import model_validator

from ..errors import InputError
from ..units import permeability_to_internal
from .values import FilePath, Number, PerCell, Positive, Section, TensorPerCell, kind


class PermeabilitySection(Section):
    """Values for the known membrane, the other interior facets and the outer facets, or a file."""

    file: FilePath | None = None
    membrane_m_per_s: PerCell | None = None
    membrane_um_per_ms: PerCell | None = None
    elsewhere_m_per_s: Number | None = None
    elsewhere_um_per_ms: Number | None = None
    outer_m_per_s: Number | None = None
    outer_um_per_ms: Number | None = None

    @model_validator(mode="after")
    def _one_unit(self):
        for name in ("membrane", "elsewhere", "outer"):
            given = [key for key in (f"{name}_m_per_s", f"{name}_um_per_ms")
                     if getattr(self, key) is not None]
            given = ["file"] * (self.file is not None and bool(given)) + given
            if len(given) > 1:
                raise InputError(f"{given[0]} and {given[1]} are both there, expected one of them")
        return self

    def value(self, name: str, default):
        """``membrane``, ``elsewhere`` or ``outer`` in um/ms; the default where nothing is said."""
        um_per_ms, given = (getattr(self, f"{name}_{unit}") for unit in ("um_per_ms", "m_per_s"))
        if given is None:
            return default if um_per_ms is None else um_per_ms
        if isinstance(given, Mapping):
            return {tag: float(permeability_to_internal(v)) for tag, v in given.items()}
        return float(permeability_to_internal(given))


class KnownTissue(Section):
    """What a reconstruction takes as known, and every simulation needs."""

    diffusivity_um2_per_ms: TensorPerCell = 2.0
    T2_ms: PerCell = math.inf
    T1_ms: PerCell = math.inf
    density: PerCell = 1.0
    boundary: Literal["reflecting", "absorbing", "periodic"] = "reflecting"
    interface: Literal["equilibrium", "plain"] = "equilibrium"


class TissueSection(KnownTissue):
    permeability: PermeabilitySection = PermeabilitySection()
    periodic: Annotated[str, kind(
        "axes in one word, as x or xyz, or '' for none",
        lambda value: value is None or (isinstance(value, str) and set(value) <= set("xyz")
                                        and len(set(value)) == len(value)),
        lambda value: value or "")] = ""


class UnknownTissue(KnownTissue):
    wall_permeability_um_per_ms: Positive | None = None
    wall_permeability_m_per_s: Positive | None = None
    start_um_per_ms: Positive = 1.0
    permeability_range_um_per_ms: tuple[Positive, Positive] | None = None

    @model_validator(mode="after")
    def _one_unit(self):
        if None not in (self.wall_permeability_um_per_ms, self.wall_permeability_m_per_s):
            raise InputError("wall_permeability_um_per_ms and wall_permeability_m_per_s are both "
                             "there, expected one of them")
        return self

    @property
    def wall_permeability(self) -> float | None:
        """Of walls in a search, um/ms; None where it is not said."""
        if self.wall_permeability_m_per_s is None:
            return self.wall_permeability_um_per_ms
        return float(permeability_to_internal(self.wall_permeability_m_per_s))
