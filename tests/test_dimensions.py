"""One form in one, two and three dimensions; unknowns of tied meshes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from collocation import Stack
from mpi4py import MPI
from test_sequences_in_engines import solved

from spinverse import BlochTorrey, InputError, Mesh, Permeability, Tissue
from spinverse.acquisition import PGSE, Acquisition, DoublePGSE
from spinverse.mesh import Ball, MeshData, build, disks, intervals, slabs, spheres, tagged_grid
from spinverse.mesh.checks import facets_of
from spinverse.simulate import ENGINES

STACK = Stack((3.0, 5.0), (0.1,), (1.0, 2.5), (30.0, np.inf), (1.0, 0.5))


def strip(thicknesses, cells_per_layer, width: float) -> MeshData:
    """A stack in the plane: two triangles a square of width ``width``."""
    edges = np.concatenate([[0.0], np.cumsum(thicknesses)])
    x = np.concatenate([np.linspace(a, b, n, endpoint=False) for a, b, n in
                        zip(edges[:-1], edges[1:], cells_per_layer, strict=True)] + [edges[-1:]])
    n = len(x)
    points = np.zeros((2 * n, 3))
    points[:, 0], points[n:, 1] = np.tile(x, 2), width
    k = np.arange(n - 1)
    triangles = np.stack([np.column_stack([k, k + 1, k + 1 + n]),
                          np.column_stack([k, k + 1 + n, k + n])], axis=1).reshape(-1, 3)
    tags = np.repeat(np.repeat(np.arange(1, len(cells_per_layer) + 1), cells_per_layer), 2)
    walls = np.cumsum(cells_per_layer)[:-1]
    return MeshData(points, triangles, tags, np.column_stack([walls, walls + n])).check()


BUILDERS = {1: (intervals, {}), 2: (strip, {"width": 0.5}), 3: (slabs, {"width": 0.5})}


def stack_problem(dim: int, per_um: int, degree: int, comm=MPI.COMM_SELF) -> BlochTorrey:
    builder, options = BUILDERS[dim]
    counts = [round(per_um * L) for L in STACK.thicknesses]
    mesh = build(builder, STACK.thicknesses, cells_per_layer=counts, comm=comm, **options)
    assert mesh.dim == dim
    D, T2, rho = ({1: value[0], 2: value[1]} for value in
                  (STACK.diffusivity, STACK.T2, STACK.density))
    return BlochTorrey(Tissue(mesh, D, T2, rho,
                              Permeability.on(mesh, membrane=STACK.permeabilities[0])), degree)


@pytest.mark.parametrize("engine, degree, per_um, bound", [
    *((engine, 1, 4, 4e-4) for engine in ENGINES), ("matrix_formalism", 2, 2, 4e-5),
    pytest.param("time_stepping", 2, 2, 4e-5, marks=pytest.mark.slow)])
def test_a_stack_in_any_dimension(engine, degree, per_um, bound):
    """Simplices in a plane are no product of intervals: equal up to the error of the mesh."""
    acquisition = Acquisition.product([PGSE(4, 15), DoublePGSE(4, 12, 4, False)],
                                      [0, 1000, 3000], [[1.0, 0, 0]])
    exact, tolerance = STACK.signals(acquisition), bound / 4
    signals = [solved(stack_problem(dim, per_um, degree), acquisition, engine, tolerance)
               for dim in (1, 2, 3)]
    for found in signals:
        assert np.abs(found - exact).max() < bound
        assert np.abs(found - signals[0]).max() < bound


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_axis_across_a_strip_sees_reflecting_walls(dim):
    """A gradient along y: refused on a line, in a plane and in space that of a thin slab."""
    problem = stack_problem(dim, 2, 1)
    acquisition = Acquisition.product([PGSE(4, 15)], [1000.0], [[0, 1.0, 0]])
    if dim == 1:
        with pytest.raises(InputError, match="expected a gradient along x on a mesh of dimension"):
            solved(problem, acquisition, "matrix_formalism", 1e-4)
        return
    found = solved(problem, acquisition, "matrix_formalism", 1e-6)
    still = STACK.signal(PGSE(4, 15), 0.0)
    assert abs(found[0] - still) < 1e-3 and abs(found[0]) < still.real


# ---- unknowns -----------------------------------------------------------------------------------

def split_nodes(data: MeshData, degree: int) -> int:
    """Nodes of the mesh after it is cut along its interfaces: plain union-find over cells.

    Nodes of degree 1 are vertices, of degree 2 the middles of edges too.
    """
    facets, pairs = facets_of(data.cells)
    separating = {tuple(sorted(f)) for f in data.interface_facets.tolist()}
    parent: dict = {}

    def root(key):
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    def nodes(vertices):
        return [node for size in range(1, degree + 1) for node in
                combinations(sorted(vertices), size)]

    for cell, vertices in enumerate(data.cells.tolist()):
        for node in nodes(vertices):
            root((cell, node))
    for facet, (a, b) in zip(facets.tolist(), pairs.tolist(), strict=True):
        if b >= 0 and tuple(sorted(facet)) not in separating:
            for node in nodes(facet):
                parent[root((a, node))] = root((b, node))
    return sum(root(key) == key for key in list(parent))


def by_compartment(data: MeshData) -> int:
    """Vertices of each compartment, added: what a conforming mesh split at the walls has."""
    return sum(len(np.unique(data.cells[data.cell_tags == tag]))
               for tag in np.unique(data.cell_tags))


MESHES = {
    "line": lambda: intervals([2.0, 3.0, 1.0], cells_per_layer=[3, 4, 2]),
    "strip": lambda: strip([2.0, 3.0], [4, 5], 0.5),
    "discs": lambda: disks([2.0, 4.0], 1.0),
    "slabs": lambda: slabs([2.0, 3.0], cells_per_layer=[2, 3], width=1.0),
    "balls": lambda: spheres([2.0, 4.0], 1.6),
    "grid": lambda: tagged_grid(Ball(radius=3.0), 10.0, cells=2),
}


@pytest.mark.mpi
@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("name", MESHES)
def test_unknowns_are_those_of_a_mesh_that_is_split_at_its_walls(comm, name, degree):
    data = comm.bcast(MESHES[name]() if comm.rank == 0 else None)
    mesh = Mesh.from_data(data if comm.rank == 0 else None, comm)
    problem = BlochTorrey(Tissue(mesh, permeability=Permeability.on(mesh, membrane=0.1)), degree)
    assert problem.num_unknowns == split_nodes(data, degree)
    if degree == 1:
        assert problem.num_unknowns == by_compartment(data)
    tied = BlochTorrey(Tissue(mesh, permeability=Permeability.on(mesh, membrane=np.inf)), degree)
    whole = {node for cell in data.cells.tolist() for size in range(1, degree + 1)
             for node in combinations(sorted(cell), size)}
    assert tied.num_unknowns == len(whole)
