"""The section posterior of a reconstruction."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..inversion import Sampling, ShapePrior
from .stages import Whole
from .values import Number, Positive, Section


class ShapePriorSection(Section):
    area_scale_um2: Positive | None = ShapePrior.area_scale
    volume_fraction: Positive = ShapePrior.volume_fraction
    volume_spread: Positive = ShapePrior.volume_spread
    per_cell: Number = ShapePrior.per_cell


class PosteriorSection(Section):
    samples: Whole = Sampling.samples
    limit: Whole | None = Sampling.limit
    chains: Whole = Sampling.chains
    temperatures: Whole = Sampling.temperatures
    steps: Whole = Sampling.steps
    learning: Whole = Sampling.learning
    examples: Whole = Sampling.examples
    cells: Whole | None = Sampling.cells
    prior: ShapePriorSection = ShapePriorSection()
    seed: Annotated[int, Field(ge=0)] = Sampling.seed

    def sampling(self) -> Sampling:
        """What it says, or the InputError that it raises."""
        prior = self.prior.model_dump(exclude={"area_scale_um2"})
        return Sampling(**self.model_dump(exclude={"prior"}),
                        prior=ShapePrior(self.prior.area_scale_um2, **prior))
