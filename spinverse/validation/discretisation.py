"""The mesh and polynomial degree of every tissue of the references, at two levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from ..mesh import Mesh, build, disks, intervals, l_cell, sphere_in_box, spheres
from ..tissue import Permeability, Tissue
from .references import Case

DEFAULT, REFINED = "default", "refined"
LEVELS = (DEFAULT, REFINED)


@dataclass(frozen=True)
class Discretisation:
    """A mesh to be built, and the degree of the polynomials on it.

    Attributes:
        builder: of `spinverse.mesh`.
        shape: what the builder takes besides sizes, keywords.
        size: target edge length, um, one or one for each layer.
        degree: of the polynomials.
        size_interface: at the membrane, um, where the builder takes it.
    """

    builder: Callable
    shape: tuple[tuple[str, object], ...]
    size: float | tuple[float, ...]
    degree: int
    size_interface: float | None = None

    def build(self, comm: MPI.Comm) -> Mesh:
        """Build and distribute the mesh. Collective."""
        fine = {} if self.size_interface is None else {"size_interface": self.size_interface}
        return build(self.builder, **dict(self.shape), size=self.size, **fine, comm=comm)

    def describe(self, mesh: Mesh) -> dict:
        """The columns of a `Row` that say which mesh it was. Collective."""
        sizes = [*np.atleast_1d(self.size).tolist()]
        smallest = min(sizes if self.size_interface is None else [*sizes, self.size_interface])
        words = "/".join(f"{s:g}" for s in sizes)
        if self.size_interface is not None:
            words += f" ({self.size_interface:g} at membranes)"
        return {"mesh": f"{mesh.dim}-D, {mesh.num_cells} cells, {words} um, P{self.degree}",
                "cells": mesh.num_cells, "size": smallest, "degree": self.degree}


def stack(lengths, size: float, degree: int = 1) -> Discretisation:
    """Layers on a line."""
    return Discretisation(intervals, (("thicknesses", tuple(lengths)),), size, degree)


def round_layers(geometry: str, radii, size, degree: int = 1) -> Discretisation:
    """Concentric discs ("disk") or balls ("sphere"), areas or volumes matched."""
    builder: Any = {"disk": disks, "sphere": spheres}[geometry]
    return Discretisation(builder, (("radii", tuple(radii)),), size, degree)


def discretisation(case: Case, level: str) -> Discretisation:
    """What a case of the references is solved on."""
    fine = level == REFINED
    layered = len(case.lengths) > 1
    if case.geometry in ("slab", "free"):
        return stack(case.lengths, *((0.5, 2) if fine else (0.25, 1)))
    if case.geometry == "disk":
        size = 0.25 if layered and fine else 0.5 if fine or not layered else 0.4
        return round_layers("disk", case.lengths, size, 2 if fine else 1)
    if case.geometry == "sphere":
        size = 1.0 if fine else 1.5
        return round_layers("sphere", case.lengths, size, 2)
    if case.geometry == "sphere_in_cube":
        return Discretisation(sphere_in_box, (("radius", case.lengths[0]), ("box", (20.0,) * 3)),
                              2.0 if fine else 2.5, 2, 1.5 if fine else 2.0)
    return Discretisation(l_cell, (), 2.0, 2, 1.0 if fine else None)


def tissue_of(case: Case, mesh: Mesh) -> Tissue:
    """The tissue of a reference case; the free medium is a periodic box. Collective."""
    T2 = np.inf if case.T2 is None else dict(enumerate(case.T2, 1))
    return Tissue(mesh, case.diffusivity, T2,
                  permeability=Permeability.on(mesh, membrane=case.permeability),
                  periodic="x" if case.geometry == "free" else "")
