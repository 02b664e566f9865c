"""Reading and writing mesh files, and the published benchmark's meshes."""

from pathlib import Path

import numpy as np
import pytest

from spinverse.errors import InputError
from spinverse.mesh.builders import box, slabs, tagged_grid
from spinverse.mesh.checks import RepairWarning, facets_of, quality, tet_volumes
from spinverse.mesh.data import MeshData
from spinverse.mesh.readers import read, write_msh, write_npz
from spinverse.mesh.shapes import Ball

ROOT = Path(__file__).resolve().parents[1]
BENCHMARK = ROOT.parent / "shared" / "benchmark"
ARRAYS = ("points", "tets", "cell_tags", "interface_facets", "interface_tags")


def fails(path, *parts: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message and path.name in message and "expected" in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(("write", "suffix"), [(write_npz, ".npz"), (write_msh, ".msh")])
@pytest.mark.parametrize("data", [slabs([1, 2, 3], 2, width=2.0), box((5, 5, 5), cells=(2, 2, 2)),
                                  tagged_grid(Ball(5), 12, cells=4)], ids=lambda d: d.name)
def test_round_trip(tmp_path, data, write, suffix):
    path = tmp_path / f"mesh{suffix}"
    write(path, data)
    again = read(path)
    for key in ARRAYS:
        assert (getattr(again, key) == getattr(data, key)).all(), key
    assert again.name == path.name


def test_npz_with_points_and_tets_only(tmp_path):
    data = box((5, 5, 5), cells=(2, 2, 2))
    np.savez(tmp_path / "plain.npz", points=data.points.astype(np.float32),
             tets=data.tets.astype(np.uint32), remark="ignored")
    again = read(str(tmp_path / "plain.npz"))
    assert (again.cell_tags == 1).all() and len(again.interface_facets) == 0


def test_bad_files(tmp_path):
    fails(tmp_path / "no.npz", "no such file")
    fails(tmp_path / "mesh.vtk", "suffix is '.vtk'", ".npz or .msh")
    for suffix in (".npz", ".msh"):
        path = tmp_path / f"noise{suffix}"
        for content in (b"", b"\x00\x01noise", b"PK\x03\x04", b"$MeshFormat\n4.1 0 8\n"):
            path.write_bytes(content)
            fails(path, f"cannot be read as {'gmsh ' * (suffix == '.msh')}{suffix}")
    np.savez(tmp_path / "half.npz", points=np.zeros((4, 3)))
    fails(tmp_path / "half.npz", "'tets' is missing")
    np.savez(tmp_path / "object.npz", points=np.array([{}]), tets=np.array([1]))
    fails(tmp_path / "object.npz", "cannot be read as .npz")


@pytest.mark.parametrize("write", [write_npz, write_msh])
def test_wrong_suffix_to_write(tmp_path, write):
    with pytest.raises(InputError, match="suffix is '.vtk'"):
        write(tmp_path / "mesh.vtk", box((5, 5, 5), cells=(1, 1, 1)))


def test_repair(tmp_path):
    data = box((5, 5, 5), cells=(2, 2, 2))
    points = np.vstack([[[9.0, 9, 9]], data.points])
    tets = data.tets + 1
    tets[3] = tets[3, [1, 0, 2, 3]]
    path = tmp_path / "crooked.npz"
    np.savez(path, points=points, tets=tets, interface_facets=tets[:1, :3])
    fails(path, "1 of 48 tets are inverted", "repair=True")
    with pytest.warns(RepairWarning, match="1 vertices of no tet dropped.*1 inverted tets"):
        again = read(path, repair=True)
    assert (again.points == data.points).all() and (tet_volumes(again.points, again.tets) > 0).all()
    assert again.input_vertices.tolist() == list(range(1, 28))
    assert again.input_vertices[again.interface_facets[0]].tolist() == sorted(tets[0, :3])


def gmsh_file(path, version: float, groups, save_all: bool = False) -> None:
    """Two boxes that share the plane x = 0, written by gmsh with physical ``groups``."""
    gmsh = pytest.importorskip("gmsh", exc_type=ImportError)
    gmsh.initialize(["x", "-v", "0"], readConfigFiles=False, interruptible=False)
    try:
        occ = gmsh.model.occ
        occ.fragment([(3, occ.addBox(-2, 0, 0, 2, 2, 2))], [(3, occ.addBox(0, 0, 0, 2, 2, 2))])
        occ.synchronize()
        for dim, tag, at in groups:
            found = [e for d, e in gmsh.model.getEntities(dim)
                     if abs(occ.getCenterOfMass(d, e)[0] - at) < 1e-6]
            gmsh.model.addPhysicalGroup(dim, found, tag, name=f"group {tag}")
        gmsh.option.setNumber("Mesh.MeshSizeMax", 1.0)
        gmsh.option.setNumber("Mesh.MshFileVersion", version)
        gmsh.option.setNumber("Mesh.SaveAll", save_all)
        gmsh.model.mesh.generate(3)
        gmsh.write(str(path))
    finally:
        gmsh.finalize()


@pytest.mark.parametrize("version", [2.2, 4.0, 4.1])
def test_gmsh_file(tmp_path, version):
    path = tmp_path / "two.msh"
    # 7: the plane between the boxes; 8: an outer side, no membrane
    gmsh_file(path, version, [(3, 5, -1), (3, 6, 1), (2, 7, 0), (2, 8, -2)])
    data = read(path)
    volumes = np.bincount(data.cell_tags, weights=tet_volumes(data.points, data.tets))
    np.testing.assert_allclose(volumes, [0, 0, 0, 0, 0, 8, 8])
    assert set(data.interface_tags) == {7}
    middle = data.points[data.interface_facets].mean(axis=1)
    facets, pairs = facets_of(data.tets)
    sides = np.where(pairs < 0, 0, data.cell_tags[pairs])
    between = facets[(sides == [5, 6]).all(axis=1) | (sides == [6, 5]).all(axis=1)]
    assert sorted(map(tuple, data.interface_facets)) == sorted(map(tuple, between))
    np.testing.assert_allclose(middle[:, 0], 0, atol=1e-12)


def test_gmsh_membrane_keeps_its_outer_part(tmp_path):
    path = tmp_path / "two.msh"
    gmsh_file(path, 4.1, [(3, 5, -1), (3, 6, 1), (2, 7, 0), (2, 8, -2)])
    inner = read(path)
    facets, pairs = facets_of(inner.tets)
    cell = MeshData(inner.points, inner.tets, inner.cell_tags,
                    facets[(np.where(pairs < 0, 0, inner.cell_tags[pairs]) == 5).sum(1) == 1])
    write_msh(path, cell)
    assert len(read(path).interface_facets) == len(cell.interface_facets)


def test_gmsh_file_without_groups_or_tets(tmp_path):
    path = tmp_path / "plain.msh"
    gmsh_file(path, 4.1, [])
    data = read(path)
    assert (data.cell_tags == 1).all() and len(data.interface_facets) == 0
    gmsh_file(path, 4.1, [(2, 7, 0)])
    fails(path, "holds no tetrahedra", "triangle")


def test_gmsh_file_with_cells_in_and_out_of_groups(tmp_path):
    """meshio cannot read it; the message says how to save it."""
    path = tmp_path / "all.msh"
    gmsh_file(path, 4.1, [(3, 5, -1), (2, 7, 0)], save_all=True)
    fails(path, "Mesh.SaveAll = 0")


def test_msh_drops_unused_vertices(tmp_path):
    meshio = pytest.importorskip("meshio")
    data = box((5, 5, 5), cells=(1, 1, 1))
    points = np.insert(data.points, 2, 99.0, axis=0)
    tets = data.tets + (data.tets >= 2)
    meshio.write(tmp_path / "extra.msh", meshio.Mesh(points, [("tetra", tets)]),
                 file_format="gmsh22")
    again = read(tmp_path / "extra.msh")
    assert (again.points == data.points).all() and (again.tets == data.tets).all()
    assert again.input_vertices.tolist() == [0, 1, 3, 4, 5, 6, 7, 8]


@pytest.mark.skipif(not BENCHMARK.is_dir(), reason="the published benchmark's meshes are not "
                                                   "beside this repository")
def test_published_benchmark():
    """Half of its tets are inverted and the box's corners unused: it needs the repair."""
    paths = sorted(BENCHMARK.glob("0*.npz"))
    assert len(paths) == 9
    for path in paths:
        fails(path, "288 of 576 tets are inverted")
        with pytest.warns(RepairWarning, match="8 vertices of no tet.*288 inverted tets"):
            data = read(path, repair=True)
        facets, pairs = facets_of(data.tets)
        assert (len(data.tets), len(facets), (pairs[:, 1] < 0).sum()) == (576, 1296, 288)
        np.testing.assert_allclose(tet_volumes(data.points, data.tets).sum(), 14222.2, rtol=1e-5)
        with np.load(path) as file:
            assert len(file["points"]) == 189
            raw = np.sort(file["interface_facets"], axis=1)
        assert (np.sort(data.input_vertices[data.interface_facets], axis=1) == raw).all()
        assert quality(data).min() > 0.9


@pytest.mark.parametrize("stem", ["sphere_in_grid_bcc", "sphere_in_grid_gmsh"])
def test_meshes_of_the_repository(stem):
    path = ROOT / "meshes" / f"{stem}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} has not been made")
    data = read(path)
    assert 600 <= len(data.tets) <= 1500 and path.stat().st_size < 200e3
    facets, pairs = facets_of(data.tets)
    inside = data.cell_tags == 1
    assert not inside[pairs[pairs[:, 1] < 0, 0]].any()
    sides = inside[pairs] & (pairs >= 0)
    surface = facets[sides[:, 0] != sides[:, 1]]
    assert (data.interface_facets == surface).all()
