"""A random smooth shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Blob:
    """Where a ball's signed distance plus a random sum of plane waves is negative.

    Attributes:
        seed: of the random numbers; the same seed, the same blob.
        radius: of the ball, um.
        amplitude: standard deviation of the waves, um.
        wavelength: shortest of the waves, um; the longest is twice as long.
        waves: how many.
    """

    seed: int
    radius: float = 9.0
    amplitude: float = 2.5
    wavelength: float = 14.0
    waves: int = 24

    @cached_property
    def _modes(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([5, self.seed])
        k = rng.normal(size=(self.waves, 3))
        k *= (2 * np.pi / (self.wavelength * rng.uniform(1.0, 2.0, self.waves))
              / np.linalg.norm(k, axis=1))[:, None]
        return k, rng.uniform(0.0, 2 * np.pi, self.waves)

    def level(self, points: np.ndarray) -> np.ndarray:
        """The function at ``points (n, 3)`` um, ``(n,)`` um, negative inside."""
        k, phase = self._modes
        points = np.asarray(points, float)
        waves = np.cos(points @ k.T + phase).sum(axis=1) * np.sqrt(2.0 / self.waves)
        return np.linalg.norm(points, axis=1) - self.radius + self.amplitude * waves

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which of ``points (n, 3)`` um are inside, ``(n,)`` bool."""
        return self.level(points) < 0

    def describe(self) -> str:
        """One line for reports."""
        return f"blob {self.seed} about a ball of radius {self.radius:g} um"
