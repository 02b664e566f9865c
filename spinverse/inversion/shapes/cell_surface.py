"""Surfaces of the cells that were found, without the stairs of the mesh.

Walls follow the facets of the mesh, whose area is 20 to 70 % too large for a smooth cell. So the
permeability that explains the data, which see kappa S, is too small by as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...mesh.distributed import Mesh
from ...mesh.smoothing import smoothed_surface
from ...mesh.surfaces import Surface
from ...mesh.whole import WholeMesh
from .hypothesis import whole_labels


@dataclass(frozen=True, eq=False)
class CellSurface:
    """What bounds a cell.

    Attributes:
        stairs: facets of the mesh, normals outwards.
        smooth: the same triangles smoothed (`mesh.smoothing.smoothed_surface`).
        walls: ``(m,)`` bool, which triangles are walls; the others are where the box ends.
    """

    stairs: Surface
    smooth: Surface
    walls: np.ndarray

    @property
    def narrowing(self) -> float:
        """Area of the smooth walls over that of the stairs; 1 of a cell without walls."""
        stairs, smooth = (each.areas[self.walls].sum() for each in (self.stairs, self.smooth))
        return float(smooth / stairs) if stairs else 1.0


def cell_surface(whole: WholeMesh, labels: np.ndarray, label: int, absorbing: bool) -> CellSurface:
    """The surface of one cell, each on its own: where two touch, both have a sheet.

    Where the outer boundary is no wall, it stays as it is.

    Args:
        whole: the mesh; its faces are not glued.
        labels: ``(Nt,)``, 0 outside.
        label: of the cell; there are mesh cells with it.
        absorbing: whether the outer boundary is a wall.
    """
    inside = np.append(labels == label, False)  # -1 is outside
    first, second = inside[whole.sides].T
    chosen = np.flatnonzero(first != second)
    triangles = whole.facets[chosen]
    cell = np.where(first[chosen], whole.sides[chosen, 0], whole.sides[chosen, 1])
    a, b, c = whole.points[triangles].swapaxes(0, 1)
    inwards = np.einsum("fi,fi->f", np.cross(b - a, c - a), a - whole.centroids[cell]) < 0
    triangles = np.where(inwards[:, None], triangles[:, [0, 2, 1]], triangles)
    used, triangles = np.unique(triangles, return_inverse=True)
    stairs = Surface(whole.points[used], triangles.reshape(-1, 3), f"cell {label}")
    walls = absorbing | ~whole.outer[chosen]
    rim = np.isin(used, whole.facets[chosen[~walls]])
    return CellSurface(stairs, smoothed_surface(stairs, rim), walls)


def cell_surfaces(mesh: Mesh, labels: np.ndarray, absorbing: bool) -> list[CellSurface]:
    """Of all cells of a distributed mesh whose owned cells have these labels. Collective."""
    labels, whole = whole_labels(mesh, labels), WholeMesh.of(mesh)
    return [cell_surface(whole, labels, label, absorbing)
            for label in range(1, int(labels.max(initial=0)) + 1)]
