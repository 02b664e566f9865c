"""All builders: meshes made from a few numbers, in um.

Boxes and layers are structured or made by gmsh (:mod:`.blocks`), round shapes by gmsh
(:mod:`.layers`, :mod:`.tubes`, :mod:`.packed`). Every builder checks its arguments
(:class:`.InputError`) before it starts, among them the number of cells to expect, and says
what gmsh could not do (:class:`.SolverError`). Same arguments, same mesh.
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
