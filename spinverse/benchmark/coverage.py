"""Whether the intervals of a run's cells hold the true numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..mesh.checks import cell_volumes, facets_of
from ..mesh.data import MeshData

QUANTITIES = ("volume", "surface_to_volume", "permeability")


def covered(truth: MeshData, found: Sequence[dict], wall: float, absorbing: bool) -> dict:
    """The share of cells whose interval holds the true number, by `QUANTITIES`.

    Cells go together by the order of their volumes.

    Args:
        truth: a mesh whose lowest tag is the outside.
        found: a row a cell, with ``volume_low``, ``volume_high``, ... (``cells`` of a summary).
        wall: true permeability of walls, um/ms.
        absorbing: whether walls on the outer boundary count.

    Returns:
        ``covered_volume`` and so on; None where the number of cells is wrong, and
        where the truth has no tags (published meshes).
    """
    tags = np.unique(truth.cell_tags)[1:]
    triples, sides = facets_of(truth.cells, truth.name)
    labels = np.r_[truth.cell_tags, truth.cell_tags.min()][sides]  # -1: beyond the mesh
    walls = (labels[:, 0] != labels[:, 1]) & (absorbing | (sides[:, 1] >= 0))
    edges = truth.points[triples[:, 1:]] - truth.points[triples[:, :1]]
    areas = 0.5 * np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    volumes = np.abs(cell_volumes(truth.points, truth.cells))
    true = []
    for tag in tags:
        volume = float(volumes[truth.cell_tags == tag].sum())
        surface = float(areas[walls & (labels == tag).any(axis=1)].sum())
        true.append({"volume": volume, "surface_to_volume": surface / volume,
                     "permeability": wall})
    if len(found) != len(true):
        return {f"covered_{name}": None for name in QUANTITIES}
    pairs = list(zip(*(sorted(rows, key=lambda row: row["volume"]) for rows in (true, found)),
                     strict=True))
    return {f"covered_{name}": float(np.mean([
        row[f"{name}_low"] <= value[name] <= (row[f"{name}_high"] or np.inf)
        for value, row in pairs])) for name in QUANTITIES}
