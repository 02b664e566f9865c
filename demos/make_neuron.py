"""Makes neuron.ply: the surface of a made-up neuron, a soma with four branching neurites, in um."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh

from spinverse.mesh.isosurface import isosurface

STEP = 0.9  # um, between the nodes that the shape is sampled at
BLEND = 0.8  # um, over which parts flow into each other
SOMA = 4.0  # um
# neurites: points (x, y, z) and a radius at each, um
NEURITES = [
    [(0, 0, 0, 1.6), (9, 2, 1, 1.3), (17, 3, 4, 1.1), (25, 8, 5, 1.0)],
    [(17, 3, 4, 1.1), (23, -2, 6, 1.0), (28, -7, 6, 1.0)],
    [(0, 0, 0, 1.6), (-5, 8, -2, 1.3), (-7, 16, -1, 1.1), (-13, 22, 2, 1.0)],
    [(-7, 16, -1, 1.1), (-2, 22, -4, 1.0)],
    [(0, 0, 0, 1.6), (-8, -5, 2, 1.3), (-16, -7, 0, 1.1)],
    [(0, 0, 0, 1.6), (2, -6, -7, 1.2), (1, -10, -15, 1.0)],
]


def distances(points: np.ndarray) -> list[np.ndarray]:
    """About the signed distance of points ``(n, 3)`` from each part, um."""
    parts = [np.linalg.norm(points, axis=1) - SOMA]
    for neurite in NEURITES:
        for a, b in zip(neurite[:-1], neurite[1:], strict=True):
            (start, first), (leg, last) = (np.array(a[:3]), a[3]), (np.subtract(b, a)[:3], b[3])
            share = np.clip((points - start) @ leg / (leg @ leg), 0.0, 1.0)
            axis = np.linalg.norm(points - start - share[:, None] * leg, axis=1)
            parts.append(axis - (first + share * (last - first)))
    return parts


def main() -> None:
    """Sample the shape, cut it at zero, write it beside this file."""
    corners = np.array([p[:3] for neurite in NEURITES for p in neurite], dtype=float)
    low, high = corners.min(axis=0) - SOMA - 2, corners.max(axis=0) + SOMA + 2
    axes = [np.arange(a, b, STEP) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    parts = distances(grid.reshape(-1, 3))
    smooth = -BLEND * np.logaddexp.reduce([-part / BLEND for part in parts], axis=0)
    surface = isosurface(smooth.reshape(grid.shape[:3]), 0.0, low, STEP, "neuron")
    mesh = trimesh.Trimesh(surface.points, surface.triangles)
    path = Path(__file__).with_name("neuron.ply")
    path.write_bytes(trimesh.exchange.ply.export_ply(mesh))
    print(f"{path}: {len(mesh.faces)} triangles, {mesh.volume:.0f} um^3, "
          f"closed: {mesh.is_watertight}")


if __name__ == "__main__":
    main()
