"""Matrices of single cells and facets of a whole mesh, for models that put them together anew."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...mesh.whole import WholeMesh

# (1, x, x^2) products of barycentric coordinates: integral over a tetrahedron of volume 1
_TRIPLES = np.array([[[{1: 6, 2: 2, 3: 1}[len({a, b, c})] / 120 for c in range(4)]
                      for b in range(4)] for a in range(4)])


@dataclass(frozen=True, eq=False)
class Elements:
    """What P1 functions on each cell and facet contribute.

    Attributes:
        whole: the mesh.
        diffusivity: ``(Nt, 3, 3)`` um^2/ms.
        relaxation: ``(Nt,)`` 1/T2, 1/ms.
        open_permeability: um/ms of facets that are no membrane; ``inf`` costs nothing.
        resistance: how much of these facets' resistance the cells take over, see `conductivity`.
    """

    whole: WholeMesh
    diffusivity: np.ndarray
    relaxation: np.ndarray
    open_permeability: float
    resistance: float = 2.0

    @cached_property
    def conductivity(self) -> np.ndarray:
        """Diffusivity of cells whose open facets are taken for no obstacle, ``(Nt, 3, 3)``.

        A facet of permeability kappa is in series with the cells on its sides; to first order
        each loses D (A n n^T / (2 V kappa)) D, times a factor that depends on the elements
        (about 2 on lattices; it can be fitted: `resistance`).
        """
        D = self.diffusivity.copy()
        if not np.isfinite(self.open_permeability):
            return D
        whole = self.whole
        inner = ~whole.outer
        n = whole.normals[inner] / np.sqrt(whole.areas[inner])[:, None]
        for side in whole.sides[inner].T:
            Dn = np.einsum("fij,fj->fi", self.diffusivity[side], n)
            loss = Dn[:, :, None] * Dn[:, None, :] / (
                2 * whole.volumes[side] * self.open_permeability)[:, None, None]
            np.add.at(D, side, -self.resistance * loss)
        floor = 0.2 * np.linalg.eigvalsh(self.diffusivity)[:, 0]
        low = np.linalg.eigvalsh(D)[:, 0] < floor
        D[low] = 0.2 * self.diffusivity[low]
        return D

    @cached_property
    def gradients(self) -> np.ndarray:
        """Of the barycentric coordinates, ``(Nt, 4, 3)`` 1/um."""
        x = self.whole.points[self.whole.cells]
        inverse = np.linalg.inv(x[:, 1:] - x[:, :1]).transpose(0, 2, 1)
        return np.concatenate([-inverse.sum(axis=1, keepdims=True), inverse], axis=1)

    @cached_property
    def mass(self) -> np.ndarray:
        """``(Nt, 4, 4)``."""
        return (self.whole.volumes / 20)[:, None, None] * (1 + np.eye(4))

    @cached_property
    def decay(self) -> np.ndarray:
        """Diffusion and relaxation, ``(Nt, 4, 4)``."""
        g = self.gradients
        diffusion = np.einsum("tai,tij,tbj->tab", g, self.conductivity, g)
        return (self.whole.volumes[:, None, None] * diffusion
                + self.relaxation[:, None, None] * self.mass)

    @cached_property
    def position(self) -> np.ndarray:
        """``(3, Nt, 4, 4)`` um, from the centre of the box."""
        x = self.whole.points[self.whole.cells] - self.whole.centre
        return np.einsum("tcj,abc->jtab", x, _TRIPLES) * self.whole.volumes[:, None, None]

    @cached_property
    def facet_mass(self) -> np.ndarray:
        """``(Nf, 3, 3)``."""
        return (self.whole.areas / 12)[:, None, None] * (1 + np.eye(3))
