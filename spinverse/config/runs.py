"""Whole run files: of a simulation and of a reconstruction."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from ..errors import InputError
from ..inversion.stages import Shapes, Stage, preset
from ..mesh import Mesh
from .acquisition import Acquisitions
from .mesh import MeshSection
from .quantities import FROM_SIGNALS, requests
from .stages import StageSection, stages_value
from .tissue import TissueSection, UnknownTissue
from .values import FilePath, KeyProblem, Modes, Positive, Section, TimeStep


class SignalsSection(Section):
    file: FilePath
    normalisation: Literal["measured", "own"] = "measured"


class InterfaceSection(Section):
    rule: Literal["compartments", "threshold", "automatic"] = "compartments"
    cut_um_per_ms: Positive | None = None

    @model_validator(mode="after")
    def _cut(self):
        if (self.rule == "threshold") != (self.cut_um_per_ms is not None):
            raise KeyProblem("cut_um_per_ms", "expected with rule threshold, there only")
        return self


class Run(Section):
    mesh: MeshSection
    engine: Literal["matrix_formalism", "time_stepping"] = "matrix_formalism"
    modes: Modes = "auto"


class SimulateConfig(Run):
    """The run file of ``spinverse simulate``."""

    tissue: TissueSection = TissueSection()
    acquisition: Acquisitions
    degree: Literal[1, 2] = 1
    tolerance: Positive = 1e-4
    time_step_ms: TimeStep = "auto"
    quantities: Annotated[dict[str, dict[str, Any]], BeforeValidator(requests)] = {}

    @model_validator(mode="after")
    def _no_walls(self):
        for name in self.quantities if self.tissue.periodic else ():
            if name not in FROM_SIGNALS:
                raise InputError(f"quantities.{name}: with tissue.periodic: "
                                 f"{self.tissue.periodic}, expected {', '.join(FROM_SIGNALS)} "
                                 "there (the others do not know periodic tissues)")
        return self


class ReconstructConfig(Run):
    """The run file of ``spinverse reconstruct``."""

    tissue: UnknownTissue = UnknownTissue()
    signals: SignalsSection
    acquisition: Acquisitions | None = None
    stages: Annotated[str | list[StageSection], BeforeValidator(stages_value)] = "default"
    tolerance: Positive = 1e-5
    time_step_ms: Positive = 0.25
    interface: InterfaceSection = InterfaceSection()

    def stage_list(self, mesh: Mesh | None = None, acquisition=None) -> list[Stage | Shapes]:
        """The stages of the preset, as a mesh and waveforms allow them, or of the list."""
        if isinstance(self.stages, str):
            return preset(self.stages, mesh, acquisition)
        return [stage.stage() for stage in self.stages]

    @model_validator(mode="after")
    def _names(self):
        names = [stage.name for stage in self.stage_list()]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"stages: name {name!r} appears twice, expected different ones")
        return self
