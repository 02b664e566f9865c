"""What the optimiser moves, and the permeability that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LN10 = np.log(10.0)


@dataclass(frozen=True)
class LogPermeability:
    """z = log10(kappa / (um/ms)), kept in its range by the optimiser's bounds.

    Attributes:
        minimum, maximum: range of the permeability, um/ms.
    """

    minimum: float = 0.01
    maximum: float = 100.0
    bounded = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the control."""
        return np.log10(self.minimum), np.log10(self.maximum)

    def value(self, control: np.ndarray) -> np.ndarray:
        """log10 kappa."""
        return control

    def pull_back(self, control: np.ndarray, adjoint: np.ndarray) -> np.ndarray:
        return adjoint

    def control(self, permeability: np.ndarray) -> np.ndarray:
        """The control that stands for a permeability, um/ms."""
        return np.log10(np.clip(permeability, self.minimum, self.maximum))


@dataclass(frozen=True)
class SquashedLogPermeability:
    """log10 kappa = low + (high - low) sigmoid(v): the published control (arXiv 2603.04638).

    Attributes:
        minimum, maximum: range of the permeability, um/ms.
    """

    minimum: float = 0.01
    maximum: float = 100.0
    bounded = False

    @property
    def bounds(self) -> tuple[float, float]:
        return -np.inf, np.inf

    def value(self, control: np.ndarray) -> np.ndarray:
        low, high = np.log10(self.minimum), np.log10(self.maximum)
        return low + (high - low) * _sigmoid(control)

    def pull_back(self, control: np.ndarray, adjoint: np.ndarray) -> np.ndarray:
        low, high = np.log10(self.minimum), np.log10(self.maximum)
        s = _sigmoid(control)
        return adjoint * (high - low) * s * (1 - s)

    def control(self, permeability: np.ndarray) -> np.ndarray:
        low, high = np.log10(self.minimum), np.log10(self.maximum)
        s = (np.log10(np.clip(permeability, self.minimum, self.maximum)) - low) / (high - low)
        s = np.clip(s, 1e-3, 1 - 1e-3)
        return np.log(s / (1 - s))


@dataclass(frozen=True, eq=False)
class FromLog:
    """kappa = 10^z on the unknown facets, fixed elsewhere.

    Attributes:
        unknown: ``(nf,)`` bool.
        fixed: ``(nf,)`` um/ms, used where a facet is not unknown.
    """

    unknown: np.ndarray
    fixed: np.ndarray

    def value(self, z: np.ndarray) -> np.ndarray:
        return np.where(self.unknown, 10.0 ** np.where(self.unknown, z, 0.0), self.fixed)

    def pull_back(self, z: np.ndarray, adjoint: np.ndarray) -> np.ndarray:
        return np.where(self.unknown, adjoint * LN10 * 10.0 ** np.where(self.unknown, z, 0.0), 0.0)


CONTROLS: dict[str, type[LogPermeability] | type[SquashedLogPermeability]] = {
    "log": LogPermeability, "squashed": SquashedLogPermeability}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))
