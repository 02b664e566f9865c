"""A whole tetrahedral mesh on every rank: for searches that look at cells of all ranks at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import InputError
from .checks import cell_volumes, facets_of, find_facets
from .distributed import Mesh, representative


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
        period: ``(3,)`` um, of axes whose faces are glued; 0 for the others. A glued facet is on
            the lower face, and its cells on both.
    """

    points: np.ndarray
    cells: np.ndarray
    facets: np.ndarray
    sides: np.ndarray
    owned: np.ndarray
    owned_cells: np.ndarray
    period: np.ndarray

    @classmethod
    def of(cls, mesh: Mesh) -> WholeMesh:
        """Gather a distributed mesh on every rank. Collective; for meshes of moderate size.

        Raises InputError of curved cells: searches ask which straight cells are inside.
        """
        if mesh.curved:
            raise InputError(f"mesh '{mesh.name}': has curved cells, expected straight ones "
                             "(order 1) for a search of shapes and its posterior")
        geometry, count, vertices = mesh.geometry, mesh.num_owned_cells, mesh.input_nodes
        parts = mesh.comm.allgather((mesh.input_cells[:count],
                                     vertices[geometry.dofmaps[0][:count]], vertices, geometry.x))
        ids = np.concatenate([part[0] for part in parts])
        cells = np.concatenate([part[1] for part in parts])[np.argsort(ids)]
        points = np.zeros((max(part[2].max(initial=-1) for part in parts) + 1, 3))
        for _, _, where, x in parts:
            points[where] = x
        facets, sides = facets_of(cells)
        if mesh.glued:
            facets, sides = _glued(points, facets, sides, mesh.same)
        owned = find_facets(facets, vertices[mesh.facet_nodes])
        period = np.ptp(points, axis=0) * np.isin(list("xyz"), list(mesh.glued))
        return cls(points, cells, facets, sides, owned, mesh.input_cells[:count], period)

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

    @cached_property
    def facets_of(self) -> list[list[int]]:
        """Facets of each cell."""
        result: list[list[int]] = [[] for _ in range(len(self.cells))]
        for facet, (first, second) in enumerate(self.sides.tolist()):
            result[first].append(facet)
            if second >= 0:
                result[second].append(facet)
        return result

    @property
    def periodic(self) -> bool:
        """Whether all faces are glued: the mesh has no outside."""
        return bool(self.period.all())

    def wrapped(self, steps: np.ndarray) -> np.ndarray:
        """Differences of points, ``(..., 3)`` um, each by the shortest way round."""
        return steps - self.period * np.round(steps / np.where(self.period > 0, self.period, 1.0))

    def facet_values(self, values: np.ndarray) -> np.ndarray:
        """Values of this rank's facets from values of all, ``(nf,)``."""
        return np.asarray(values)[self.owned]


def _glued(points: np.ndarray, facets: np.ndarray, sides: np.ndarray,
           same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Facets and sides once outer facets that are one are one."""
    outer = np.flatnonzero(sides[:, 1] < 0)
    _, which = np.unique(np.sort(representative(same, facets[outer]), axis=1), axis=0,
                         return_inverse=True)
    height = points[facets[outer]].sum(axis=(1, 2))
    order = np.lexsort((height, which.ravel()))  # the lower of two first
    outer, which = outer[order], which.ravel()[order]
    upper = np.flatnonzero(which[1:] == which[:-1]) + 1
    sides = sides.copy()
    sides[outer[upper - 1], 1] = sides[outer[upper], 0]
    kept = np.ones(len(facets), bool)
    kept[outer[upper]] = False
    return facets[kept], np.where(sides[:, 1:] < 0, sides, np.sort(sides, axis=1))[kept]
