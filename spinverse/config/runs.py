"""Whole run files: of a simulation and of a reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .. import __version__
from ..errors import InputError
from ..inversion import Shapes, Stage, Unknown
from ..inversion.parameters import KINDS, NOISE
from ..inversion.stages import PRESETS, preset
from .acquisition import Acquisitions
from .arguments import nearest
from .mesh import MeshSection
from .physics import ExtraTermsSection, Unknowns
from .posterior import PosteriorSection
from .quantities import FROM_SIGNALS, KNOW_EXTRA_TERMS, requests
from .stages import StageSection
from .tissue import TissueSection, UnknownTissue
from .values import FilePath, KeyProblem, Modes, Number, Positive, Section, TimeStep, kind

#: Of the keys of run files. Files that say another one are refused; see `Run`.
VERSION = 1


class SignalsSection(Section):
    file: FilePath
    voxel: Annotated[list[int], Field(min_length=3, max_length=3)] | None = None
    normalisation: Literal["auto", "measured", "own"] = "auto"
    noise: Annotated[Number, Field(ge=0)] | Literal["unknown"] | None = None
    noise_model: Literal["rician", "gaussian"] = "rician"


class InterfaceSection(Section):
    rule: Literal["compartments", "threshold", "automatic"] = "compartments"
    cut_um_per_ms: Positive | None = None

    @model_validator(mode="after")
    def _cut(self):
        if (self.rule == "threshold") != (self.cut_um_per_ms is not None):
            raise KeyProblem("cut_um_per_ms", "expected with rule threshold, there only")
        return self


class CheckpointSection(Section):
    """When checkpoints are written, besides those after each stage."""

    every_iterations: Annotated[int, Field(ge=1)] | None = None
    every_s: Positive = 60.0


class Run(Section):
    """What both kinds of run files have; the `VERSION` is checked before all other keys."""

    version: int = VERSION
    mesh: MeshSection
    modes: Modes = "auto"
    extra_terms: ExtraTermsSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_this_version(cls, data):
        found = data.get("version", VERSION) if isinstance(data, Mapping) else VERSION
        if type(found) is not int:
            raise KeyProblem("version", f"{found!r:.40}, expected a whole number: {VERSION} in "
                             f"spinverse {__version__}")
        if found != VERSION:
            age = "an older" if found < VERSION else "a newer"
            raise KeyProblem("version", f"{found}, of {age} spinverse; expected {VERSION}, as "
                             f"spinverse {__version__} reads (spinverse config --example prints "
                             "such a file)")
        return data

    def extra_arguments(self, comm) -> dict[str, Any]:
        """`ExtraTermsSection.arguments`, which runs code; none without the section. Collective."""
        return {} if self.extra_terms is None else self.extra_terms.arguments(comm)


class SimulateConfig(Run):
    """The run file of ``spinverse simulate``."""

    tissue: TissueSection = TissueSection()
    acquisition: Acquisitions
    engine: Literal["auto", "matrix_formalism", "time_stepping", "direction_bases"] = "auto"
    degree: Literal["auto", 1, 2, 3] = "auto"
    mesh_error: bool = True
    tolerance: Positive = 1e-4
    time_step_ms: TimeStep = "auto"
    quantities: Annotated[dict[str, dict[str, Any]], BeforeValidator(requests)] = {}

    @model_validator(mode="after")
    def _known_physics(self):
        for name in self.quantities:
            if self.tissue.periodic and name not in FROM_SIGNALS:
                raise InputError(f"quantities.{name}: with tissue.periodic: "
                                 f"{self.tissue.periodic}, expected {', '.join(FROM_SIGNALS)} "
                                 "there (the others do not know periodic tissues)")
            if self.extra_terms is not None and name not in KNOW_EXTRA_TERMS:
                raise InputError(f"quantities.{name}: with extra_terms, expected "
                                 f"{', '.join(KNOW_EXTRA_TERMS)} there (the others do not know "
                                 "extra terms)")
        return self


class ReconstructConfig(Run):
    """The run file of ``spinverse reconstruct``."""

    tissue: UnknownTissue = UnknownTissue()
    signals: SignalsSection
    engine: Literal["matrix_formalism", "time_stepping"] = "matrix_formalism"
    acquisition: Acquisitions | None = None
    stages: Annotated[str | list[StageSection], kind(
        f"one of {', '.join(PRESETS)}, or a list of stages",
        lambda value: value in PRESETS if isinstance(value, str) else
        isinstance(value, list) and value)] = "default"
    tolerance: Positive = 1e-5
    time_step_ms: Positive = 0.25
    interface: InterfaceSection = InterfaceSection()
    checkpoint: CheckpointSection = CheckpointSection()
    unknown: Unknowns = {}
    posterior: PosteriorSection | None = None

    @model_validator(mode="after")
    def _unknown_is_there(self):
        own = {} if self.extra_terms is None else self.extra_terms.coefficients
        for name in self.unknown:
            if name not in {**own, **KINDS}:
                raise InputError(f"unknown.{name}: no coefficient of extra_terms, "
                                 + nearest(name, [*own, *KINDS]))
            if name == NOISE and isinstance(self.signals.noise, float):
                raise InputError("unknown.noise: signals.noise is there as well, expected what is "
                                 "known, or what is unknown")
            if self.unknown[name] is None and name in own:
                raise InputError(f"unknown.{name}: usual, expected {{start, low, high}} of a "
                                 "coefficient of extra_terms")
            said = {"diffusivity": "diffusivity_um2_per_ms", "T2": "T2_ms",
                    "diffusivity_outside": "diffusivity_um2_per_ms", "T2_outside": "T2_ms"}
            if said.get(name) in self.tissue.model_fields_set:
                raise InputError(f"unknown.{name}: tissue.{said[name]} is there as well, expected "
                                 "what is known, or what is unknown")
            if not isinstance(own.get(name, 0.0), float):
                raise InputError(f"unknown.{name}: extra_terms.coefficients.{name} is {own[name]}, "
                                 "expected a single number there")
        return self

    @property
    def unknowns(self) -> dict[str, Unknown]:
        """Numbers that are found with the membranes, by name."""
        return {name: KINDS[name].usual if section is None else section.value()
                for name, section in self.unknown.items()}

    def stage_list(self) -> list[Stage | Shapes]:
        """The stages of the preset, or of the list."""
        if isinstance(self.stages, str):
            return preset(self.stages)
        return [stage.stage() for stage in self.stages]

    def known(self, comm) -> dict[str, Any]:
        """Arguments of `InverseProblem`, beside mesh and signals. Runs code. Collective."""
        tissue, signals = self.tissue, self.signals
        return {**self.extra_arguments(comm),
                "unknown": self.unknowns, "wall_permeability": tissue.wall_permeability,
                "diffusivity": tissue.diffusivity_um2_per_ms, "T2": tissue.T2_ms,
                "T1": tissue.T1_ms, "density": tissue.density, "boundary": tissue.boundary,
                "interface": tissue.interface,
                "permeability_range": tissue.permeability_range_um_per_ms,
                "normalisation": signals.normalisation, "noise": signals.noise,
                "noise_model": signals.noise_model, "engine": self.engine, "modes": self.modes,
                "tolerance": self.tolerance, "time_step": self.time_step_ms}

    @model_validator(mode="after")
    def _posterior(self):
        if self.posterior is not None:
            try:
                self.posterior.sampling()
            except InputError as error:
                raise InputError(str(error).replace("posterior: ", "posterior.").replace(
                    "prior: ", "posterior.prior.")) from None
        return self

    @model_validator(mode="after")
    def _names(self):
        names = [stage.name for stage in self.stage_list()]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"stages: name {name!r} appears twice, expected different ones")
        return self
