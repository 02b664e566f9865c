"""Reading and writing mesh files, and the published benchmark's meshes."""

from pathlib import Path

import meshio
import numpy as np
import pytest

from spinverse.errors import InputError
from spinverse.mesh.builders import box, slabs, tagged_grid
from spinverse.mesh.checks import RepairWarning, cell_volumes, facets_of, quality
from spinverse.mesh.data import MeshData
from spinverse.mesh.readers import read, write_msh, write_npz
from spinverse.mesh.shapes import Ball

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).parent / "data"
BENCHMARK = ROOT.parent / "shared" / "benchmark"
ARRAYS = ("points", "cells", "cell_tags", "interface_facets", "interface_tags")


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
             tets=data.cells.astype(np.uint32), remark="ignored")
    again = read(str(tmp_path / "plain.npz"))
    assert (again.cell_tags == 1).all() and len(again.interface_facets) == 0


def test_bad_files(tmp_path):
    fails(tmp_path / "no.npz", "no such file")
    fails(tmp_path / "mesh.vtk", "suffix is '.vtk'", ".npz, .msh, .node, .ele, .xdmf")
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
    tets = data.cells + 1
    tets[3] = tets[3, [1, 0, 2, 3]]
    path = tmp_path / "crooked.npz"
    np.savez(path, points=points, tets=tets, interface_facets=tets[:1, :3])
    fails(path, "1 of 48 tets are inverted", "repair=True")
    with pytest.warns(RepairWarning, match="1 vertices of no tet dropped.*1 inverted tets"):
        again = read(path, repair=True)
    assert (again.points == data.points).all()
    assert (cell_volumes(again.points, again.cells) > 0).all()
    assert again.input_vertices.tolist() == list(range(1, 28))
    assert again.input_vertices[again.interface_facets[0]].tolist() == sorted(tets[0, :3])


def gmsh_file(path, version: float, groups, save_all: bool = False, parts: int = 0,
              **options) -> None:
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
        for key, value in options.items():
            gmsh.option.setNumber(f"Mesh.{key}", value)
        gmsh.model.mesh.generate(3)
        if parts:
            gmsh.model.mesh.partition(parts)
        gmsh.write(str(path))
    finally:
        gmsh.finalize()


@pytest.mark.parametrize("version", [2.2, 4.0, 4.1])
def test_gmsh_file(tmp_path, version):
    path = tmp_path / "two.msh"
    # 7: the plane between the boxes; 8: an outer side, no membrane
    gmsh_file(path, version, [(3, 5, -1), (3, 6, 1), (2, 7, 0), (2, 8, -2)])
    data = read(path)
    volumes = np.bincount(data.cell_tags, weights=cell_volumes(data.points, data.cells))
    np.testing.assert_allclose(volumes, [0, 0, 0, 0, 0, 8, 8])
    assert set(data.interface_tags) == {7}
    middle = data.points[data.interface_facets].mean(axis=1)
    facets, pairs = facets_of(data.cells)
    sides = np.where(pairs < 0, 0, data.cell_tags[pairs])
    between = facets[(sides == [5, 6]).all(axis=1) | (sides == [6, 5]).all(axis=1)]
    assert sorted(map(tuple, data.interface_facets)) == sorted(map(tuple, between))
    np.testing.assert_allclose(middle[:, 0], 0, atol=1e-12)


def test_gmsh_membrane_keeps_its_outer_part(tmp_path):
    path = tmp_path / "two.msh"
    gmsh_file(path, 4.1, [(3, 5, -1), (3, 6, 1), (2, 7, 0), (2, 8, -2)])
    inner = read(path)
    facets, pairs = facets_of(inner.cells)
    cell = MeshData(inner.points, inner.cells, inner.cell_tags,
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


@pytest.mark.parametrize(("version", "binary"), [(2.2, 0), (2.2, 1), (4.0, 0), (4.1, 0), (4.1, 1)])
def test_gmsh_entities_in_two_groups(tmp_path, version, binary):
    path = tmp_path / "two.msh"
    inner = [(3, 5, -1), (3, 6, 1), (2, 7, 0)]
    gmsh_file(path, version, [*inner, (3, 9, 1)], Binary=binary)
    fails(path, "tets are in several physical groups", "those 6 and 9")
    gmsh_file(path, version, [*inner, (2, 8, 0)], Binary=binary)
    fails(path, "interface facets are in several physical groups", "those 7 and 8")
    # outer sides are no membranes, whatever they are called
    gmsh_file(path, version, [*inner, (2, 8, -2), (2, 10, -2)], Binary=binary)
    assert set(read(path).interface_tags) == {7}


def test_gmsh_files_by_hand():
    """A cell in two groups, listed by its entity and twice."""
    for name in ("two_groups_4.1.msh", "two_groups_2.2.msh"):
        fails(DATA / name, "2 tets are in several physical groups", "those 1 and 2")


def test_gmsh_files_that_lack_or_have_too_much(tmp_path):
    path = tmp_path / "two.msh"
    gmsh_file(path, 2.2, [(3, 5, -1), (3, 6, 1)], save_all=True)
    with pytest.warns(UserWarning, match="names physical groups, but no cell is in one.*SaveAll"):
        assert set(read(path).cell_tags) == {1}
    gmsh_file(path, 4.1, [(3, 5, -1), (3, 6, 1)], SaveParametric=1)
    fails(path, "without parametric coordinates", "SaveParametric = 0")
    gmsh_file(path, 4.1, [(3, 5, -1), (3, 6, 1)], parts=2)
    fails(path, "is cut into partitions", "unpartition")
    gmsh_file(path, 2.2, [(3, 5, -1), (3, 6, 1)], parts=2)
    assert set(read(path).cell_tags) == {5, 6}


def test_msh_drops_unused_vertices(tmp_path):
    data = box((5, 5, 5), cells=(1, 1, 1))
    points = np.insert(data.points, 2, 99.0, axis=0)
    tets = data.cells + (data.cells >= 2)
    meshio.write(tmp_path / "extra.msh", meshio.Mesh(points, [("tetra", tets)]),
                 file_format="gmsh22")
    again = read(tmp_path / "extra.msh")
    assert (again.points == data.points).all() and (again.cells == data.cells).all()
    assert again.input_vertices.tolist() == [0, 1, 3, 4, 5, 6, 7, 8]


def test_msh_of_a_plane(tmp_path):
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.0]])
    data = MeshData(points, np.array([[0, 1, 2], [0, 2, 3]]), [4, 5], np.array([[0, 2]]), [9])
    write_msh(tmp_path / "plane.msh", data.check())
    again = read(tmp_path / "plane.msh")
    for key in ("points", "cells", "cell_tags", "interface_facets", "interface_tags"):
        assert (getattr(again, key) == getattr(data, key)).all(), key


def tetgen_files(folder, first: int = 1, **texts: str):
    """Two tets on the two sides of a triangle; ``texts`` replace whole files."""
    rows = {"node": [(0, 0, 0), (2, 0, 0), (0, 2, 0), (0, 0, 2), (0, 0, -2), (9, 9, 9)],
            "ele": [(0, 1, 2, 3), (0, 2, 1, 4)], "face": [(0, 1, 2), (0, 1, 3), (0, 2, 3)]}
    heads = {"node": "6 3 0 0", "ele": "2 4 1", "face": "3 1"}
    last = {"node": ["", "", "", "", "", ""], "ele": ["11", "12.0"], "face": ["5", "-1", "0"]}
    for kind, lines in rows.items():
        offset = 0 if kind == "node" else first
        text = f"# a comment\n{heads[kind]}\n\n" + "".join(
            f"  {n + first}  {' '.join(str(v + offset) for v in row)} {end} # row\n"
            for n, (row, end) in enumerate(zip(lines, last[kind], strict=True)))
        (folder / f"cell.1.{kind}").write_text(texts.get(kind, text))
    return folder / "cell.1.node"


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("suffix", [".node", ".ele"])
def test_tetgen(tmp_path, first, suffix):
    data = read(tetgen_files(tmp_path, first).with_suffix(suffix))
    assert data.points.tolist() == [[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2], [0, 0, -2]]
    assert data.cell_tags.tolist() == [11, 12]
    np.testing.assert_allclose(cell_volumes(data.points, data.cells), 8 / 6)
    # the group of marker -1 lies on the outer boundary, marker 0 is none
    assert data.interface_facets.tolist() == [[0, 1, 2]] and data.interface_tags.tolist() == [5]


def test_tetgen_variants(tmp_path):
    path = tetgen_files(tmp_path, ele="2 4 0\n1 1 2 4 3\n2 1 3 5 2\n", face="3 0\n1 1 2 3\n"
                        "2 1 2 4\n3 1 3 4\n")
    data = read(path)  # without attributes and markers, all tets turned the other way
    assert data.cell_tags.tolist() == [1, 1] and not len(data.interface_facets)
    path.with_suffix(".face").unlink()
    assert len(read(path).cells) == 2
    quadratic = "1 10 1\n1 1 2 3 4 6 6 6 6 6 6 3\n"
    assert read(tetgen_files(tmp_path, ele=quadratic, face="0 1\n")).cell_tags.tolist() == [3]


@pytest.mark.parametrize(("kind", "text", "words"), [
    ("node", "", "cannot be read as TetGen .node"),
    ("node", "6 3 0 0\n1 0 0\n", "has 1 rows"),
    ("node", "1 3 0 0\n1 0 0 0\n2 0 0 0\n", "has 2 rows"),
    ("node", "6 2 0 0\n" + "".join(f"{n} 0 0 0\n" for n in range(6)), "dimension is 2"),
    ("node", "2 3 0 0\n5 0 0 0\n6 1 0 0\n", "numbered one by one"),
    ("node", "1 3 0 0\n1 a b c\n", "cannot be read"),
    ("node", "1 3 0 0\n1 0 0\n", "columns"),
    ("ele", "2 4 1\n1 1 2 3 4 1\n2 1 2 3\n", "cannot be read as TetGen .ele"),
    ("ele", "1 4 1\n1 1 2 3 77 1\n", "names a vertex"),
    ("ele", "1 4 1\n1 1 2 3 4 1.5\n", "holds 1.5"),
    ("ele", "1 3 0\n1 1 2 3 4\n", "3 nodes a tetrahedron"),
    ("ele", "0 4 0\n", "no tetrahedra"),
    ("face", "1 1\n1 1 2 3\n", "the marker"),
    ("face", "1 1\n1 1 4 5 3\n", "no facet of the mesh"),
    ("face", "\x00\xff", "cannot be read as TetGen .face"),
])
def test_bad_tetgen(tmp_path, kind, text, words):
    path = tetgen_files(tmp_path, **{kind: text})
    with pytest.raises(InputError) as caught:
        read(path)
    assert words in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_tetgen_without_a_companion(tmp_path):
    path = tetgen_files(tmp_path)
    path.with_suffix(".ele").unlink()
    fails(path, "no such file as 'cell.1.ele' beside it")


def dolfinx_file(path, facets: bool = True, some: bool = False):
    """A box with cell tags 5 and 6 and facets 7 between them, written by DOLFINx."""
    from dolfinx import mesh
    from dolfinx.io import XDMFFile
    from mpi4py import MPI

    box = mesh.create_box(MPI.COMM_SELF, [[0, 0, 0], [2, 1, 1]], [4, 2, 2])
    cells = np.arange(box.topology.index_map(3).size_local, dtype=np.int32)
    values = np.where(mesh.compute_midpoints(box, 3, cells)[:, 0] < 1, 5, 6).astype(np.int32)
    chosen = cells[::2] if some else cells
    tags = [mesh.meshtags(box, 3, chosen, values[chosen])]
    box.topology.create_connectivity(2, 3)
    found = mesh.locate_entities(box, 2, lambda x: np.isclose(x[0], 1))
    tags.append(mesh.meshtags(box, 2, found, np.full(len(found), 7, np.int32)))
    with XDMFFile(MPI.COMM_SELF, path, "w") as file:
        file.write_mesh(box)
        for name, one in zip(("cells", "facets"), tags[:1 + facets], strict=False):
            one.name = name
            file.write_meshtags(one, box.geometry)


def test_xdmf_of_dolfinx(tmp_path):
    path = tmp_path / "box.xdmf"
    dolfinx_file(path)
    data = read(path)
    middle = data.points[data.cells].mean(axis=1)
    assert (data.cell_tags == np.where(middle[:, 0] < 1, 5, 6)).all()
    np.testing.assert_allclose(cell_volumes(data.points, data.cells).sum(), 2)
    assert len(data.interface_facets) == 8 and set(data.interface_tags) == {7}
    np.testing.assert_allclose(data.points[data.interface_facets][..., 0], 1)
    dolfinx_file(path, facets=False)
    assert len(read(path).interface_facets) == 0
    dolfinx_file(path, some=True)
    fails(path, "a tag for each")
    path.with_suffix(".h5").unlink()
    fails(path, "no such file as 'box.h5' beside it")


def xdmf_text(data, tags=True) -> str:
    def item(array):
        return (f'<DataItem Format="XML" Dimensions="{" ".join(map(str, array.shape))}">'
                + " ".join(map(repr, array.ravel().tolist())) + "</DataItem>")

    values = f'<Attribute Name="t" Center="Cell">{item(data.cell_tags)}</Attribute>' if tags \
        else ""
    return (f'<Xdmf Version="3.0"><Domain><Grid Name="Grid"><Geometry>{item(data.points)}'
            f'</Geometry><Topology TopologyType="Tetrahedron">{item(data.cells)}</Topology>'
            f'{values}</Grid><Grid Name="walls"><Topology TopologyType="Triangle">'
            f'{item(data.interface_facets)}</Topology><Attribute Name="w" Center="Cell">'
            f'{item(data.interface_tags)}</Attribute></Grid></Domain></Xdmf>')


def test_xdmf_with_numbers_inside(tmp_path):
    data = slabs([1, 2, 3], 2, width=2.0)
    path = tmp_path / "slabs.xdmf"
    path.write_text(xdmf_text(data))
    again = read(path)
    for key in ("points", "cells", "cell_tags", "interface_facets", "interface_tags"):
        assert (getattr(again, key) == getattr(data, key)).all(), key
    path.write_text(xdmf_text(data, tags=False))
    assert set(read(path).cell_tags) == {1}


def test_xdmf_of_meshio(tmp_path):
    """It compresses unless told not to."""
    data = slabs([1, 2, 3], 2, width=2.0)
    path = tmp_path / "slabs.xdmf"
    for compression in ("gzip", None):
        meshio.write(path, meshio.Mesh(data.points, [("tetra", data.cells)],
                                       cell_data={"tag": [data.cell_tags]}),
                     compression=compression)
        again = read(path)
        for key in ("points", "cells", "cell_tags"):
            assert (getattr(again, key) == getattr(data, key)).all(), key
    mixed = meshio.Mesh(data.points, [("tetra", data.cells), ("triangle", data.interface_facets)])
    meshio.write(path, mixed)
    fails(path, "topology 'mixed'", "tetrahedron, triangle")


def test_bad_xdmf(tmp_path):
    path = tmp_path / "bad.xdmf"
    text = xdmf_text(slabs([1, 2], 2, width=2.0))
    for content, words in (
            ("", "cannot be read as .xdmf"), ("noise", "cannot be read as .xdmf"),
            ("<Xdmf/>", "format nothing"), (text[:-40], "cannot be read as .xdmf"),
            (text.replace("Tetrahedron", "Hexahedron"), "topology 'hexahedron'"),
            (text.replace('"XML"', '"Binary"', 1), "expected HDF or XML"),
            (text.replace("Geometry>", "Other>"), "expected topology and geometry"),
            (text.replace("</DataItem>", " x</DataItem>", 1), "cannot be read as .xdmf")):
        path.write_text(content)
        fails(path, words)


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
        facets, pairs = facets_of(data.cells)
        assert (len(data.cells), len(facets), (pairs[:, 1] < 0).sum()) == (576, 1296, 288)
        np.testing.assert_allclose(cell_volumes(data.points, data.cells).sum(), 14222.2, rtol=1e-5)
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
    assert 600 <= len(data.cells) <= 1500 and path.stat().st_size < 200e3
    facets, pairs = facets_of(data.cells)
    inside = data.cell_tags == 1
    assert not inside[pairs[pairs[:, 1] < 0, 0]].any()
    sides = inside[pairs] & (pairs >= 0)
    surface = facets[sides[:, 0] != sides[:, 1]]
    assert (data.interface_facets == surface).all()
