"""Whether the intervals of a run's cells hold the true numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..mesh.checks import cell_volumes, facets_of, find_facets
from ..mesh.connected import cell_regions
from ..mesh.data import MeshData

QUANTITIES = ("volume", "surface_to_volume", "permeability")


def covered(truth: MeshData, found: Sequence[dict], wall: float, absorbing: bool) -> dict:
    """The share of cells whose interval holds the true number, by `QUANTITIES`.

    Cells go together by the order of their volumes.

    Args:
        truth: a mesh whose ``interface_facets`` bound the cells, on the outer boundary too.
        found: a row a cell, with ``volume_low``, ``volume_high``, ... (``cells`` of a summary).
        wall: true permeability of walls, um/ms.
        absorbing: whether walls on the outer boundary count.

    Returns:
        ``covered_volume`` and so on; None where the number of cells is wrong.
    """
    triples, sides = facets_of(truth.cells, truth.name)
    walls = np.zeros(len(triples), bool)
    place = find_facets(triples, truth.interface_facets)
    walls[place[place >= 0]] = True
    count, inner = len(truth.cells), sides[:, 1] >= 0
    # what is beyond the mesh is one more cell, of the outside
    sides = np.where(sides < 0, count, sides)
    part = cell_regions(count + 1, sides, walls)
    walls &= absorbing | inner
    edges = truth.points[triples[:, 1:]] - truth.points[triples[:, :1]]
    areas = 0.5 * np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    volumes = np.bincount(part[:-1], np.abs(cell_volumes(truth.points, truth.cells)))
    true = []
    for cell in [cell for cell in np.argsort(volumes) if cell != part[-1]]:
        mine = (part[sides] == cell).any(axis=1)
        true.append({"volume": volumes[cell], "permeability": wall,
                     "surface_to_volume": areas[walls & mine].sum() / volumes[cell]})
    if len(found) != len(true):
        return {f"covered_{name}": None for name in QUANTITIES}
    pairs = list(zip(true, sorted(found, key=lambda row: row["volume"]), strict=True))
    return {f"covered_{name}": float(np.mean([
        row[f"{name}_low"] <= value[name] <= (row[f"{name}_high"] or np.inf)
        for value, row in pairs])) for name in QUANTITIES}
