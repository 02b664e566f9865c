"""All builders: meshes made from a few numbers, in um.

Boxes and layers are structured or made by gmsh (:mod:`.blocks`), round shapes by gmsh
(:mod:`.layers`, :mod:`.tubes`, :mod:`.packed`). Every builder raises :class:`.InputError` before it
starts for a bad value: radii that do not ascend, cells that touch, find no place or leave the box,
more cells than one rank can hold, both or none of two arguments of which one is needed. It raises
:class:`.SolverError` for what gmsh could not do in time. Same arguments, same mesh.
"""

from __future__ import annotations

from spinverse.mesh.blocks import box, intervals, l_cell, slabs, tagged_grid
from spinverse.mesh.layers import cylinders, disks, sphere_in_box, spheres
from spinverse.mesh.packed import packed_cylinders, packed_spheres
from spinverse.mesh.tubes import bent_axon, torus, twisted_axons

__all__ = [
    "bent_axon", "box", "cylinders", "disks", "intervals", "l_cell", "packed_cylinders",
    "packed_spheres", "slabs", "sphere_in_box", "spheres", "tagged_grid", "torus",
    "twisted_axons",
]
