"""The section stages of a reconstruction."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from ..inversion import TAO, Adam, GaussNewton, Shapes, Stage
from ..inversion.stages import PRESETS
from .values import KeyProblem, Number, Positive, Ramp, Section, Sequences, exactly_one


class TAOSection(Section):
    type: str = TAO.type
    options: dict[str, Any] = {}


class AdamSection(Section):
    learning_rate: Positive = Adam.learning_rate
    warm_up: int = Adam.warm_up
    cycle: Annotated[int, Field(ge=1)] = Adam.cycle
    final: Number = Adam.final
    clip: Positive = Adam.clip


class GaussNewtonSection(Section):
    damping: Positive = GaussNewton.damping
    least_damping: Positive = GaussNewton.least_damping
    tries: Annotated[int, Field(ge=1)] = GaussNewton.tries
    longest_step: Positive = GaussNewton.longest_step
    tolerance: Positive = GaussNewton.tolerance
    least_gain: Positive = GaussNewton.least_gain


class OptimiserSection(Section):
    tao: TAOSection | None = None
    adam: AdamSection | None = None
    gauss_newton: GaussNewtonSection | None = None

    @model_validator(mode="after")
    def _one(self):
        exactly_one(self, ("tao", "adam", "gauss_newton"))
        return self


class ShapesSection(Section):
    cells: Annotated[int, Field(ge=1)] = Shapes.cells
    ellipsoids: Annotated[int, Field(ge=1)] = Shapes.ellipsoids
    candidates: Annotated[int, Field(ge=1)] = Shapes.candidates
    rounds: Annotated[int, Field(ge=1)] = Shapes.rounds
    budget: Annotated[int, Field(ge=1)] = Shapes.budget
    stop_at: Number = Shapes.stop_at
    seed: Annotated[int, Field(ge=0)] = Shapes.seed


class StageSection(Section):
    name: str
    shapes: ShapesSection | None = None
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

    @model_validator(mode="after")
    def _one_kind(self):
        others = sorted(self.model_fields_set - {"name", "shapes"})
        if self.shapes is not None and others:
            raise KeyProblem(others[0], "expected no other key than name in a stage with shapes")
        return self

    def stage(self) -> Stage | Shapes:
        """The stage, or the InputError that it raises."""
        if self.shapes is not None:
            return Shapes(self.name, **self.shapes.model_dump())
        optimiser = TAO()
        if self.optimiser is not None and self.optimiser.tao is not None:
            optimiser = TAO(**self.optimiser.tao.model_dump())
        elif self.optimiser is not None and self.optimiser.adam is not None:
            optimiser = Adam(**self.optimiser.adam.model_dump())
        elif self.optimiser is not None:
            optimiser = GaussNewton(**self.optimiser.gauss_newton.model_dump())
        rest = {key: getattr(self, key) for key in (
            "name", "iterations", "sequences", "weights", "control", "priors", "misfit_weight",
            "stop_at", "every", "skip_below", "patience")}
        return Stage(b_max=self.b_max_s_per_mm2, restart=self.restart_um_per_ms,
                     optimiser=optimiser, **rest)


def stages_value(value):
    """A validator: the name of a preset or a list of stages."""
    if isinstance(value, str):
        if value not in PRESETS:
            raise ValueError(f"expected one of {', '.join(PRESETS)}, or a list of stages")
    elif not isinstance(value, list) or not value:
        raise ValueError(f"expected one of {', '.join(PRESETS)}, or a list of stages")
    return value
