"""Meshes: files, builders, checks, and the distributed mesh with its facet submesh."""

from __future__ import annotations

from pathlib import Path

from mpi4py import MPI

from ..errors import on_root
from . import builders, readers, shapes
from .builders import (
    bent_axon,
    box,
    cylinders,
    disks,
    intervals,
    l_cell,
    packed_cylinders,
    packed_spheres,
    slabs,
    sphere_in_box,
    spheres,
    tagged_grid,
    torus,
    twisted_axons,
)
from .checks import RepairWarning, UnitWarning
from .data import MeshData
from .distributed import Mesh
from .readers import write_msh, write_npz
from .shapes import Ball, BentTube, Cylinder, Torus

__all__ = [
    "Ball", "BentTube", "Cylinder", "Mesh", "MeshData", "RepairWarning", "Torus", "UnitWarning",
    "bent_axon", "box", "build", "builders", "cylinders", "disks", "intervals", "l_cell",
    "packed_cylinders", "packed_spheres", "read", "shapes", "slabs", "sphere_in_box", "spheres",
    "tagged_grid", "torus", "twisted_axons", "write_msh", "write_npz",
]


def read(path: str | Path, comm: MPI.Comm | None = None, repair: bool = False) -> Mesh:
    """Read a mesh file on rank 0, check it, and distribute it. Collective.

    Args:
        path: ``.npz`` or gmsh ``.msh``, coordinates in um.
        comm: ``MPI.COMM_WORLD`` when nothing is said.
        repair: turn inverted tets and drop unused vertices, with a warning, instead of refusing.

    Raises:
        InputError: on every rank, in one line, for a file or mesh that cannot be used.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    return Mesh.from_data(on_root(comm, readers.read, path, repair=repair), comm)


def build(builder, *args, comm: MPI.Comm | None = None, **kwargs) -> Mesh:
    """Run a builder on rank 0 and distribute its mesh: ``build(spheres, [3, 6], size=1)``."""
    comm = MPI.COMM_WORLD if comm is None else comm
    return Mesh.from_data(on_root(comm, builder, *args, **kwargs), comm)
