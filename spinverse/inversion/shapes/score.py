"""What a misfit is worth: whether it is explained, and what noise has to say."""

from __future__ import annotations

from dataclasses import dataclass

from ..likelihood import Likelihood

CLOSE = 1.3  # variances of the noise, within which a shape is near the truth


@dataclass(frozen=True)
class Score:
    """Of mean-square residuals of all measurements.

    Attributes:
        floor: mean variance of the noise, 0 for none.
        limit: misfit from which on the data are explained.
        number: of measurements.
    """

    floor: float
    limit: float
    number: int

    @classmethod
    def of(cls, likelihood: Likelihood, target: float, unit: float) -> Score:
        """With noise, what it explains; without, ``target`` where moves change much.

        Args:
            likelihood: of all measurements.
            target: mean-square misfit.
            unit: `Models.unit`: less where moves change the signals less.
        """
        return cls(likelihood.floor, likelihood.explained() or target * min(unit, 1.0),
                   len(likelihood))

    def explains(self, misfit: float) -> bool:
        """Whether nothing is left but noise. Many shapes may come to that."""
        return misfit <= self.limit

    def near(self, misfit: float) -> bool:
        """Whether the noise is a good part of what is left."""
        return misfit <= CLOSE * self.floor

    def likelier(self, before: float, after: float) -> float:
        """By how much one is likelier than another, units of log-likelihood; inf without noise."""
        gain = before - after
        return gain * self.number / (2 * self.floor) if self.floor else float("inf") * (gain > 0)
