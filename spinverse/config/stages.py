"""The section stages of a reconstruction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, model_validator

from ..inversion import TAO, Adam, GaussNewton, Shapes, Stage
from .values import KeyProblem, Number, Positive, Ramp, Section, Sequences, exactly_one

Whole = Annotated[int, Field(ge=1)]


class TAOSection(Section):
    type: str = TAO.type
    options: dict[str, Any] = {}


class AdamSection(Section):
    learning_rate: Positive = Adam.learning_rate
    warm_up: int = Adam.warm_up
    cycle: Whole = Adam.cycle
    final: Number = Adam.final
    clip: Positive = Adam.clip


class GaussNewtonSection(Section):
    damping: Positive = GaussNewton.damping
    least_damping: Positive = GaussNewton.least_damping
    tries: Whole = GaussNewton.tries
    longest_step: Positive = GaussNewton.longest_step
    tolerance: Positive = GaussNewton.tolerance
    least_gain: Positive = GaussNewton.least_gain


OPTIMISERS: dict[str, Callable] = {"tao": TAO, "adam": Adam, "gauss_newton": GaussNewton}


class OptimiserSection(Section):
    tao: TAOSection | None = None
    adam: AdamSection | None = None
    gauss_newton: GaussNewtonSection | None = None

    @model_validator(mode="after")
    def _one(self):
        exactly_one(self, tuple(OPTIMISERS))
        return self

    def optimiser(self) -> TAO | Adam | GaussNewton:
        """The one that is there."""
        name = exactly_one(self, tuple(OPTIMISERS))
        return OPTIMISERS[name](**getattr(self, name).model_dump())


class ShapesSection(Section):
    cells: Whole | None = Shapes.cells
    ellipsoids: Whole = Shapes.ellipsoids
    candidates: Whole = Shapes.candidates
    rounds: Whole = Shapes.rounds
    budget: Whole = Shapes.budget
    budget_cpu_s: Positive | None = Shapes.budget_cpu_s
    stop_at: Number = Shapes.stop_at
    seed: Annotated[int, Field(ge=0)] = Shapes.seed


class StageSection(Section):
    name: str
    shapes: ShapesSection | None = None
    iterations: Whole = Stage.iterations
    sequences: Sequences = Stage.sequences
    b_max_s_per_mm2: Positive = Stage.b_max
    weights: tuple[Number, ...] = Stage.weights
    control: str = Stage.control
    priors: dict[str, Ramp] = {}
    optimiser: OptimiserSection | None = None
    misfit_weight: Positive = Stage.misfit_weight
    stop_at: Number = Stage.stop_at
    every: Whole = Stage.every
    restart_um_per_ms: Positive | None = Stage.restart
    skip_below: Number = Stage.skip_below
    patience: Whole = Stage.patience
    facets: str = Stage.facets

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
        other = {"shapes", "b_max_s_per_mm2", "restart_um_per_ms", "optimiser"}
        return Stage(b_max=self.b_max_s_per_mm2, restart=self.restart_um_per_ms,
                     optimiser=self.optimiser.optimiser() if self.optimiser else TAO(),
                     **self.model_dump(exclude=other))
