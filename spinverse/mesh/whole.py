"""A whole tetrahedral mesh on every rank: for searches that look at cells of all ranks at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import dolfinx
import numpy as np

from .checks import cell_volumes, facets_of, find_facets
from .distributed import Mesh


@dataclass(frozen=True, eq=False)
class WholeMesh:
    """Cells and facets of a mesh in the order of its input, the same on every rank.

    Attributes:
        points: ``(Nv, 3)`` um.
        cells: ``(Nt, 4)`` vertices.
        facets: ``(Nf, 3)`` vertices, ascending, in lexicographic order.
        sides: ``(Nf, 2)`` cells on the two sides, the lower first; -1 for the outside.
        owned: ``(nf,)`` which of the facets each facet owned by this rank is.
        owned_cells: ``(owned cells,)`` which of the cells each cell owned by this rank is.
    """

    points: np.ndarray
    cells: np.ndarray
    facets: np.ndarray
    sides: np.ndarray
    owned: np.ndarray
    owned_cells: np.ndarray

    @classmethod
    def of(cls, mesh: Mesh) -> WholeMesh:
        """Gather a distributed mesh on every rank. Collective; for meshes of moderate size."""
        geometry, count, vertices = mesh.domain.geometry, mesh.num_owned_cells, mesh.input_nodes
        parts = mesh.comm.allgather((mesh.input_cells[:count],
                                     vertices[geometry.dofmaps[0][:count]], vertices, geometry.x))
        ids = np.concatenate([part[0] for part in parts])
        cells = np.concatenate([part[1] for part in parts])[np.argsort(ids)]
        points = np.zeros((max(part[2].max(initial=-1) for part in parts) + 1, 3))
        for _, _, where, x in parts:
            points[where] = x
        facets, sides = facets_of(cells)
        mine = dolfinx.mesh.entities_to_geometry(mesh.domain, mesh.dim - 1, mesh.facet_entities)
        owned = find_facets(facets, vertices[mine].reshape(-1, mesh.dim))
        return cls(points, cells, facets, sides, owned, mesh.input_cells[:count])

    @cached_property
    def outer(self) -> np.ndarray:
        """``(Nf,)`` bool."""
        return self.sides[:, 1] < 0

    @cached_property
    def centroids(self) -> np.ndarray:
        """Of the cells, ``(Nt, 3)`` um."""
        return self.points[self.cells].mean(axis=1)

    @cached_property
    def centre(self) -> np.ndarray:
        """Of the bounding box, ``(3,)`` um: the origin of the gradient."""
        return 0.5 * (self.points.min(axis=0) + self.points.max(axis=0))

    @cached_property
    def volumes(self) -> np.ndarray:
        """``(Nt,)`` um^3."""
        return np.abs(cell_volumes(self.points, self.cells))

    @cached_property
    def normals(self) -> np.ndarray:
        """Normals of the facets as long as their area, ``(Nf, 3)`` um^2; of either sign."""
        x = self.points[self.facets]
        return 0.5 * np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0])

    @cached_property
    def areas(self) -> np.ndarray:
        """``(Nf,)`` um^2."""
        return np.linalg.norm(self.normals, axis=1)

    @cached_property
    def neighbours(self) -> list[list[int]]:
        """Cells that share a facet with each cell."""
        result: list[list[int]] = [[] for _ in range(len(self.cells))]
        for a, b in self.sides[~self.outer].tolist():
            result[a].append(b)
            result[b].append(a)
        return result

    def facet_values(self, values: np.ndarray) -> np.ndarray:
        """Values of this rank's facets from values of all, ``(nf,)``."""
        return np.asarray(values)[self.owned]
