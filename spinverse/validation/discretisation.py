"""The mesh and polynomial degree of every tissue of the references, at two levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpi4py import MPI

from ..mesh import build, disks, intervals, l_cell, sphere_in_box, spheres
from ..problem import BlochTorrey
from ..tissue import Permeability, Tissue
from .references import Case

DEFAULT, REFINED = "default", "refined"
LEVELS = (DEFAULT, REFINED)


@dataclass(frozen=True)
class Discretisation:
    """A mesh to be built, and the degree of the polynomials on it.

    ``shape`` are keywords of the builder besides sizes; ``size`` is the target edge length, um, one
    or one for each layer, and ``size_interface`` that at the membrane, where the builder takes it.
    """

    builder: Callable
    shape: tuple[tuple[str, object], ...]
    size: float | tuple[float, ...]
    degree: int
    size_interface: float | None = None

    def problem(self, comm: MPI.Comm, diffusivity=2.0, T2=np.inf, kappa=np.inf,
                periodic: str = "") -> tuple[BlochTorrey, dict]:
        """A tissue on the mesh, and the columns of a `Row` that say which mesh it is. Collective.

        ``kappa`` is that of the membranes, um/ms, one or by tag; the others are as of a `Tissue`.
        """
        fine = {} if self.size_interface is None else {"size_interface": self.size_interface}
        mesh = build(self.builder, **dict(self.shape), size=self.size, **fine, comm=comm)
        known = comm.allreduce(bool(mesh.interface.any()), MPI.LOR)  # one layer has no membrane
        problem = BlochTorrey(Tissue(mesh, diffusivity, T2, periodic=periodic, permeability=(
            Permeability.on(mesh, membrane=kappa if known else None))), self.degree)
        sizes = np.atleast_1d(self.size).tolist()
        words = "/".join(f"{s:g}" for s in sizes)
        if self.size_interface is not None:
            words += f" ({self.size_interface:g} at membranes)"
        return problem, {
            "mesh": f"{mesh.dim}-D, {mesh.num_cells} {'curved ' * mesh.curved}cells, {words} um, "
                    f"P{self.degree}",
            "cells": mesh.num_cells, "size": min([*sizes, *fine.values()]),
            "degree": self.degree, "unknowns": problem.num_unknowns}


def stack(lengths, size: float, degree: int = 1) -> Discretisation:
    """Layers on a line."""
    return Discretisation(intervals, (("thicknesses", tuple(lengths)),), size, degree)


def round_layers(geometry: str, radii, size, degree: int = 1) -> Discretisation:
    """Concentric discs ("disk") or balls ("sphere"), areas or volumes matched.

    With curved cells from P2 on, which is no better than P1 on polygons and polyhedra.
    """
    builder: Any = {"disk": disks, "sphere": spheres}[geometry]
    return Discretisation(builder, (("radii", tuple(radii)), ("order", min(degree, 2))), size,
                          degree)


def discretisation(case: Case, level: str) -> Discretisation:
    """What a case of the references is solved on."""
    fine = level == REFINED
    layered = len(case.lengths) > 1
    if case.geometry in ("slab", "free"):
        return stack(case.lengths, *((0.5, 2) if fine else (0.25, 1)))
    if case.geometry == "disk":
        size = (0.5 if layered else 1.0) if fine else (0.4 if layered else 0.5)
        return round_layers("disk", case.lengths, size, 2 if fine else 1)
    if case.geometry == "sphere":
        return round_layers("sphere", case.lengths, 1.5 if fine else 2.0, 2)
    if case.geometry == "sphere_in_cube":
        return Discretisation(sphere_in_box, (("radius", case.lengths[0]), ("box", (20.0,) * 3),
                                              ("order", 2)),
                              2.0 if fine else 2.5, 2, 1.5 if fine else 2.0)
    return Discretisation(l_cell, (), 2.0, 2, 1.0 if fine else None)
