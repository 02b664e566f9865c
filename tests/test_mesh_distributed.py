"""The distributed mesh: facets, tags and integrals are those of the input at any rank count."""

from __future__ import annotations

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

from spinverse import InputError, mesh
from spinverse.mesh import Ball
from spinverse.mesh.checks import facets_of
from spinverse.mesh.data import CELLS, MeshData
from spinverse.report.mesh_facts import MeshFacts

pytestmark = pytest.mark.mpi


def ball_data() -> MeshData:
    data = mesh.tagged_grid(Ball(radius=3.0), 10.0, cells=2)
    tags = 1 + np.arange(len(data.interface_facets)) % 3
    return MeshData(data.points, data.cells, data.cell_tags, data.interface_facets, tags)


def one_brick() -> MeshData:
    return mesh.box([3.0, 2.0, 1.0], cells=(1, 1, 1))


def one_tet() -> MeshData:
    return MeshData([[0.0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2]], [[0, 1, 2, 3]])


MESHES = [ball_data, one_brick, one_tet]


@pytest.fixture(params=MESHES)
def both(request, comm):
    """The input, known on every rank, and its distributed mesh."""
    data = comm.bcast(request.param() if comm.rank == 0 else None)
    return data, mesh.Mesh.from_data(data if comm.rank == 0 else None, comm)


def together(comm, rows) -> np.ndarray:
    return np.concatenate(comm.allgather(np.asarray(rows)))


def pattern(triples) -> np.ndarray:
    return 1.5 + np.sin(np.asarray(triples) @ np.array([1.3, 2.1, 0.7]))


def test_every_facet_is_owned_once(comm, both):
    data, grid = both
    expected, pairs = facets_of(data.cells)
    triples = together(comm, grid.facet_vertices)
    order = np.lexsort(triples.T[::-1])
    assert np.array_equal(triples[order], expected)
    assert grid.num_facets == len(expected)
    assert np.array_equal(together(comm, grid.outer)[order], pairs[:, 1] < 0)
    assert grid.num_owned_facets == grid.facet_space.dofmap.index_map.size_local


def test_cells_and_their_tags(comm, both):
    data, grid = both
    owned = grid.num_owned_cells
    assert np.array_equal(np.sort(together(comm, grid.input_cells[:owned])),
                          np.arange(len(data.cells)))
    assert np.array_equal(grid.cell_tags, data.cell_tags[grid.input_cells])
    corners = data.points[data.cells[grid.input_cells]]
    volumes = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / 6
    assert np.allclose(grid.cell_volumes, volumes, rtol=1e-12)


def test_a_saved_mesh_is_the_input(comm, both, shared_tmp_path):
    data, grid = both
    grid.save(shared_tmp_path / "saved.npz")
    again = mesh.readers.read(shared_tmp_path / "saved.npz")
    for key in ("points", "cells", "cell_tags"):
        np.testing.assert_array_equal(getattr(again, key), getattr(data, key))
    rows = [sorted(zip(map(tuple, one.interface_facets), one.interface_tags, strict=True))
            for one in (again, data)]
    assert rows[0] == rows[1]
    for name in ("saved.msh", "no/folder.npz"):
        with pytest.raises(InputError, match="expected the suffix .npz and a folder that is there"):
            grid.save(shared_tmp_path / name)


def test_a_printed_mesh_is_a_few_lines(both):
    """Also of one rank alone."""
    data, grid = both
    for one in (data, grid) if grid.comm.rank == 0 else ():
        assert f"{len(data.cells)} tets" in str(one) and str(one).count("\n") <= 3
        assert len(repr(one)) < 80
    if grid.comm.size == 1:
        assert "cell tags: " in str(grid) and "interface tags: " in str(grid)


def test_interface_tags_land_on_their_facets(comm, both):
    data, grid = both
    known = {tuple(t): tag for t, tag in zip(data.interface_facets.tolist(),
                                             data.interface_tags.tolist(), strict=True)}
    expected = [known.get(tuple(t), 0) for t in grid.facet_vertices.tolist()]
    assert grid.interface.tolist() == expected
    assert comm.allreduce(int(np.count_nonzero(grid.interface))) == len(known)


def test_both_cells_of_every_facet_are_here(comm, both):
    data, grid = both
    triples, pairs = facets_of(data.cells)
    known = {tuple(t): set(pair.tolist()) for t, pair in zip(triples.tolist(), pairs, strict=True)}
    for triple, cells in zip(grid.facet_vertices.tolist(), grid.facet_cells, strict=True):
        found = {int(grid.input_cells[c]) if c >= 0 else -1 for c in cells}
        assert found == known[tuple(triple)]


def test_geometry(comm, both):
    data, grid = both
    x = data.points[grid.facet_vertices]
    areas = 0.5 * np.linalg.norm(np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]), axis=1)
    assert np.allclose(grid.facet_areas, areas, rtol=1e-12)
    assert np.array_equal(grid.bounds, [data.points.min(axis=0), data.points.max(axis=0)])


def test_find_facets(comm, both):
    data, grid = both
    triples, _ = facets_of(data.cells)
    place = grid.find_facets(triples[:, [2, 0, 1]])
    owners = comm.allreduce((place >= 0).astype(int), op=MPI.SUM)
    assert np.array_equal(owners, np.ones(len(triples), int))
    assert np.array_equal(grid.facet_vertices[place[place >= 0]], triples[place >= 0])
    assert grid.find_facets([[0, 1, 10**6]]).tolist() == [-1]
    assert grid.find_facets(np.empty((0, 3), int)).shape == (0,)


def test_gather_and_scatter(comm, both):
    data, grid = both
    gathered = grid.gather_facets(pattern(grid.facet_vertices), grid.outer)
    assert (gathered is None) == (comm.rank > 0)
    triples, values, outer = comm.bcast(gathered)
    assert np.array_equal(triples, facets_of(data.cells)[0])
    assert np.array_equal(values, pattern(triples)) and outer.dtype == bool
    shuffled = np.random.default_rng(0).permutation(len(triples))
    back = grid.scatter_facets(triples[shuffled], values[shuffled], "values")
    assert np.array_equal(back, pattern(grid.facet_vertices))
    with pytest.raises(InputError, match=f"values: 1 of the mesh's {len(triples)} facets have no"):
        grid.scatter_facets(triples[1:], values[1:], "values")


def test_facet_integrals_are_those_of_the_input(comm, both):
    """DG0 on the facet submesh inside the parent's dS and ds, and a jump across facets."""
    data, grid = both
    kappa = grid.facet_function(pattern(grid.facet_vertices))
    space = dolfinx.fem.functionspace(grid.domain, ("DG", 0))
    cell = dolfinx.fem.Function(space)
    cell.x.array[space.dofmap.list.ravel()] = np.sqrt(1.0 + grid.input_cells)
    dS, ds = ufl.Measure("dS", grid.domain), ufl.Measure("ds", grid.domain)
    found = [comm.allreduce(dolfinx.fem.assemble_scalar(
        dolfinx.fem.form(form, entity_maps=[grid.facet_map])))
        for form in (kappa("+") * dS, kappa * ds, kappa("+") * ufl.jump(cell) ** 2 * dS)]
    triples, pairs = facets_of(data.cells)
    x = data.points[triples]
    weight = pattern(triples) * 0.5 * np.linalg.norm(
        np.cross(x[:, 1] - x[:, 0], x[:, 2] - x[:, 0]), axis=1)
    inside = pairs[:, 1] >= 0
    jump = np.sqrt(1.0 + pairs[:, 0]) - np.sqrt(1.0 + np.maximum(pairs[:, 1], 0))
    expected = [weight[inside].sum(), weight[~inside].sum(), (weight * jump**2)[inside].sum()]
    assert np.allclose(found, expected, rtol=1e-12)


def test_facts_are_those_of_the_input(comm):
    """Two parts, of which no cell of the second is the first cell of the mesh."""
    one = mesh.tagged_grid(Ball(3.0), 10.0, cells=2)
    data = MeshData(np.vstack([one.points, 0.5 * one.points + [20.0, 0, 0]]),
                    np.vstack([one.cells, one.cells + len(one.points)]), name="two")
    facts = MeshFacts.of(mesh.Mesh.from_data(data if comm.rank == 0 else None, comm))
    assert facts.parts == pytest.approx((1000.0, 125.0))
    corners = data.points[data.cells]
    lengths = np.concatenate([np.linalg.norm(corners[:, i] - corners[:, j], axis=1)
                              for i in range(4) for j in range(i)])
    assert facts.edges == pytest.approx((lengths.min(), np.median(lengths), lengths.max()))


def test_numbers_of_a_file_that_leaves_vertices_out(comm):
    data = None
    if comm.rank == 0:
        brick = one_brick()
        data = MeshData(brick.points, brick.cells, interface_facets=facets_of(brick.cells)[0][3:4],
                        interface_tags=[7], input_vertices=10 + 3 * np.arange(8))
    grid = mesh.Mesh.from_data(data, comm)
    wanted = comm.bcast(10 + 3 * data.interface_facets if comm.rank == 0 else None)
    assert np.all(grid.facet_vertices >= 10) and np.all((grid.facet_vertices - 10) % 3 == 0)
    tagged = together(comm, grid.facet_vertices[grid.interface == 7])
    assert np.array_equal(tagged, wanted)


def test_a_builder_that_fails_fails_everywhere(comm):
    with pytest.raises(InputError, match="holds no centroid"):
        mesh.build(mesh.tagged_grid, Ball(radius=0.01), 10.0, cells=2, comm=comm)


# ---- files that no rank reads whole -----------------------------------------------------------

@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("make", [*MESHES, lambda: mesh.intervals([2.0, 3.0], cells_per_layer=4)])
def test_a_file_read_in_slabs(comm, shared_tmp_path, make, save):
    path = shared_tmp_path / "mesh.npz"
    data = comm.bcast(make() if comm.rank == 0 else None)
    if comm.rank == 0:
        save(path, points=data.points, cell_tags=data.cell_tags,
             interface_tags=data.interface_tags, interface_facets=data.interface_facets,
             **{CELLS[data.dim]: data.cells})
    comm.Barrier()
    grid, other = mesh.read_in_slabs(path, comm), mesh.read(path, comm)
    for one in (grid, other):
        owned = one.num_owned_cells
        order = np.argsort(together(comm, one.input_cells[:owned]))
        assert np.array_equal(together(comm, one.cell_tags[:owned])[order], data.cell_tags)
    facets = [comm.bcast(one.gather_facets(one.interface, one.outer)) for one in (grid, other)]
    for one, two in zip(*facets, strict=True):
        assert np.array_equal(one, two)
    x = data.points[grid.facet_vertices].mean(axis=1)
    assert np.allclose(grid.facet_corners.mean(axis=1), x, atol=1e-12)


@pytest.mark.parametrize("change, words", [
    ({"points": np.nan}, "1 points are not finite"),
    ({"tets": 99}, "1 cells have vertices that are not there, expected numbers from 0 to 7"),
    ({"tets": "turned"}, "1 cells are inverted"),
    ({"more": True}, "1 vertices belong to no cell"),
    ({"interface_facets": [[1, 2, 4]]}, "interface facets are no facets of the mesh"),
    ({"cell_tags": [1]}, r"cell_tags has shape \(1,\), expected"),
    ({"points": None}, "expected 'points' and 'tets'"),
])
def test_files_that_cannot_be_read_in_slabs(comm, shared_tmp_path, change, words):
    path = shared_tmp_path / "mesh.npz"
    if comm.rank == 0:
        brick = mesh.box([3.0, 2.0, 1.0], cells=(1, 1, 1))
        arrays = {"points": brick.points, "tets": brick.cells}
        for key, value in change.items():
            if value is None:
                del arrays[key]
            elif key == "more":
                arrays["points"] = np.vstack([brick.points, [9, 9, 9]])
            elif value == "turned":
                arrays[key] = np.vstack([brick.cells[:1, [1, 0, 2, 3]], brick.cells[1:]])
            elif np.ndim(value):
                arrays[key] = np.array(value)
            else:
                arrays[key] = arrays[key].copy()
                arrays[key][0, 0] = value
        np.savez(path, **arrays)
    comm.Barrier()
    with pytest.raises(InputError, match=words):
        mesh.read_in_slabs(path, comm)
    with pytest.raises(InputError, match="no such file"):
        mesh.read_in_slabs(shared_tmp_path / "other.npz", comm)
