"""Meshes: files, builders, checks, and the distributed mesh with its facet submesh."""

from __future__ import annotations

from pathlib import Path

from mpi4py import MPI

from ..errors import InputError, on_root
from . import builders, readers, shapes
from .blocks import box, intervals, l_cell, slabs, tagged_grid
from .checks import RepairWarning, UnitWarning
from .data import MeshData
from .distributed import Mesh
from .images import LabelImage, from_labels, interface_pairs, read_labels
from .in_slabs import read_in_slabs
from .layers import cylinders, disks, sphere_in_box, spheres
from .morphology import neuron_surface
from .packed import packed_cylinders, packed_spheres
from .readers import write_msh, write_npz
from .shapes import Ball, BentTube, Cylinder, Torus
from .surfaces import Surface, read_surface
from .tetrahedralise import from_surface
from .tubes import bent_axon, torus, twisted_axons

__all__ = [
    "Ball", "BentTube", "Cylinder", "LabelImage", "Mesh", "MeshData", "RepairWarning", "Surface",
    "Torus", "UnitWarning", "bent_axon", "box", "build", "builders", "cylinders", "disks",
    "from_labels", "from_surface", "interface_pairs", "intervals", "l_cell", "neuron_surface",
    "packed_cylinders", "packed_spheres", "read", "read_in_slabs", "read_labels", "read_surface",
    "shapes", "slabs", "sphere_in_box", "spheres", "tagged_grid", "torus", "twisted_axons",
    "write_msh", "write_npz",
]


def read(path: str | Path, comm: MPI.Comm | None = None, repair: bool = False) -> Mesh:
    """Read a mesh file on rank 0, check it, and distribute it. Collective.

    Args:
        path: ``.npz``, gmsh ``.msh``, TetGen ``.node`` or ``.ele``, or ``.xdmf``; coordinates in
            um. `readers.read` has what each may hold.
        comm: ``MPI.COMM_WORLD`` when nothing is said.
        repair: turn inverted cells and drop unused vertices, with a warning, instead of refusing.

    Raises:
        InputError: on every rank, in one line, for a file or mesh that cannot be used.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    return Mesh.from_data(on_root(comm, readers.read, path, repair=repair), comm)


def build(builder, *args, comm: MPI.Comm | None = None, **kwargs) -> Mesh:
    """Run a builder on rank 0 and distribute its mesh. Collective.

    Args:
        builder: returns a `MeshData`, as `spheres` does: ``build(spheres, [3, 6], size=1)``.
        comm: ``MPI.COMM_WORLD`` when nothing is said.

    Raises:
        InputError: on every rank, what the builder raises.
    """
    if not callable(builder):
        raise InputError(f"builder: {builder!r:.60}, expected a function as spinverse.mesh.spheres")
    comm = MPI.COMM_WORLD if comm is None else comm
    return Mesh.from_data(on_root(comm, builder, *args, **kwargs), comm)
