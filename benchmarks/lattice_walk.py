"""A random walk through permeable balls on a cubic lattice: the reference of one validation family.

    python benchmarks/lattice_walk.py [walkers] [step in ms]

Gaussian steps. One that would cross a surface does so with probability kappa sqrt(pi dt / D) and is
mirrored at the surface otherwise, which is exact as dt goes to 0. It shares nothing with the
engines.
"""

from __future__ import annotations

import sys

import numpy as np

from spinverse.validation.references import LENGTH, PULSE, RADIUS, SEPARATION, WALKS, D


def phases(kappa: float, walkers: int, dt: float, seed: int = 1) -> np.ndarray:
    """int f x dt of each walker, um ms."""
    rng = np.random.default_rng(seed)
    x = LENGTH * (rng.random((walkers, 3)) - 0.5)
    along, phase = x[:, 0].copy(), np.zeros(walkers)
    for k in range(round((PULSE + SEPARATION) / dt)):
        t = (k + 0.5) * dt
        f = float(t < PULSE) - float(t >= SEPARATION)
        y = x + rng.normal(0.0, np.sqrt(2 * D * dt), x.shape)
        centre = LENGTH * np.round(y / LENGTH)
        crosses = (np.sum((y - centre) ** 2, axis=1) < RADIUS**2) != (
            np.sum(x**2, axis=1) < RADIUS**2)
        back = np.flatnonzero(crosses & (rng.random(walkers) > kappa * np.sqrt(np.pi * dt / D)))
        inside = np.sum(x[back] ** 2, axis=1) < RADIUS**2
        origin = np.where(inside[:, None], 0.0, centre[back])
        radius = np.linalg.norm(y[back] - origin, axis=1)
        y[back] = origin + (y[back] - origin) * (2 * RADIUS / radius - 1)[:, None]
        phase += 0.5 * f * dt * (2 * along + y[:, 0] - x[:, 0])
        along += y[:, 0] - x[:, 0]
        x = y - LENGTH * np.round(y / LENGTH)
    return phase


def main() -> None:
    walkers = int(sys.argv[1]) if len(sys.argv) > 1 else 150_000
    dt = float(sys.argv[2]) if len(sys.argv) > 2 else 0.01
    for kappa, values in WALKS.items():
        phase = phases(kappa, walkers, dt)
        for b in values:
            signal = np.cos(phase * np.sqrt(1e-3 * b / (PULSE**2 * (SEPARATION - PULSE / 3))))
            print(f"kappa {kappa:g} um/ms, b {b} s/mm^2: {signal.mean():.4f} +- "
                  f"{2 * signal.std() / np.sqrt(walkers):.4f}")


if __name__ == "__main__":
    main()
