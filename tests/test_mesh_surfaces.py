"""Surfaces: reading, defects, repair; tetrahedra inside and outside of them."""

import os
import select
import struct
import subprocess
import warnings

import numpy as np
import pytest
from mpi import GUARD, as_python
from mpi4py import MPI

from spinverse.errors import InputError, SolverError
from spinverse.mesh import tetrahedralise
from spinverse.mesh.builders import tagged_grid
from spinverse.mesh.checks import RepairWarning, UnitWarning, cell_volumes, facets_of, quality
from spinverse.mesh.distributed import Mesh
from spinverse.mesh.isosurface import isosurface, layer
from spinverse.mesh.repair import repair_with_defects
from spinverse.mesh.shapes import Ball
from spinverse.mesh.surfaces import (
    Surface,
    defects,
    parts,
    read_surface,
    self_intersections,
    winding_number,
)
from spinverse.mesh.tetrahedralise import from_surface, run_mesher


def ball(radius: float = 5.0, step: float = 1.6, centre=(0.0, 0.0, 0.0)) -> Surface:
    n = int(np.ceil(radius / step)) + 2
    x = np.arange(-n, n + 1) * step
    grid = np.stack(np.meshgrid(x, x, x, indexing="ij"), -1)
    surface = isosurface(np.linalg.norm(grid, axis=-1), radius, [-n * step] * 3, step, "ball")
    return Surface(surface.points + centre, surface.triangles, "ball")


def tree(step: float = 0.7) -> Surface:
    """A soma with tapered, branching processes that are thin beside their length."""
    ends = {"a": (0, 0, 0), "b": (14, 2, 1), "c": (22, 9, 3), "d": (23, -6, -2), "e": (-13, 3, 4)}
    links = [("a", "b", 1.8, 1.0), ("b", "c", 1.0, 0.6), ("b", "d", 1.0, 0.6),
             ("a", "e", 1.6, 0.6)]
    low, high = np.array([-18.0, -11, -8]), np.array([27.0, 14, 9])
    axes = [np.arange(a, b, step) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    field = np.linalg.norm(grid, axis=-1) - 4.0
    for p, q, r, s in links:
        p, q = np.array(ends[p], float), np.array(ends[q], float)
        t = np.clip((grid - p) @ (q - p) / ((q - p) @ (q - p)), 0, 1)
        away = np.linalg.norm(grid - p - t[..., None] * (q - p), axis=-1) - (r + t * (s - r))
        field = np.minimum(field, away)
    return isosurface(field, 0.0, low, step, "tree")


def joined(*surfaces: Surface) -> Surface:
    starts = np.cumsum([0, *(len(s.points) for s in surfaces)])
    return Surface(np.concatenate([s.points for s in surfaces]),
                   np.concatenate([s.triangles + n
                                   for s, n in zip(surfaces, starts, strict=False)]), "joined")


def turned(surface: Surface, rows=slice(None)) -> Surface:
    triangles = surface.triangles.copy()
    triangles[rows] = triangles[rows][:, ::-1]
    return Surface(surface.points, triangles, surface.name)


def volumes(data) -> dict[int, float]:
    found = cell_volumes(data.points, data.cells)
    return {int(tag): float(found[data.cell_tags == tag].sum()) for tag in set(data.cell_tags)}


def fix(surface: Surface, *words: str) -> Surface:
    with pytest.warns(RepairWarning) as caught:
        surface, _ = repair_with_defects(surface)
    message = str(caught[0].message)
    for word in words:
        assert word in message, message
    return surface


def test_isosurface_of_a_ball_is_closed_and_second_order():
    errors = []
    for step in (1.0, 0.5, 0.25):
        surface = ball(5.0, step)
        assert defects(surface, intersections=False) == []
        errors.append(4 / 3 * np.pi * 125 - surface.volume)
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0


def test_isosurface_of_noise_is_closed():
    values = np.ones((9, 10, 11))
    values[1:-1, 1:-1, 1:-1] = np.random.default_rng(3).normal(size=(7, 8, 9))
    surface = isosurface(values, 0.0, (0, 0, 0), 1.0)
    assert defects(surface, intersections=False) == [] or "point the wrong way" in \
        defects(surface)[0]
    edges = np.sort(surface.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all()


def test_layer_is_at_its_distance():
    outer = layer(ball(5.0, 0.8), 2.0)
    assert defects(outer) == [] and parts(outer).max() == 0
    distance = np.linalg.norm(outer.points, axis=1)
    assert 6.6 < distance.min() < distance.max() < 7.2
    with pytest.raises(InputError, match="gap is 0.001 um, expected at least"):
        layer(ball(), 0.001)


def test_winding_number():
    corners = ball().corners
    for point, wanted in (((0, 0, 0), 1), ((4, 1, 1), 1), ((6, 0, 0), 0)):
        np.testing.assert_allclose(winding_number(corners, np.array(point, float)), wanted,
                                   atol=1e-12)


def write(path, surface: Surface, kind: str) -> None:
    p, t = surface.points, surface.triangles
    if kind == "stl text":
        rows = "".join("facet normal 0 0 0\nouter loop\n"
                       + "".join("vertex {:.9g} {:.9g} {:.9g}\n".format(*p[v]) for v in row)
                       + "endloop\nendfacet\n" for row in t)
        path.write_text(f"solid cell\n{rows}endsolid cell\n")
    elif kind == "stl binary":  # with a header as text files have it
        rows = b"".join(struct.pack("<12fH", *[0.0] * 3, *p[row].ravel(), 0) for row in t)
        path.write_bytes(b"solid cell".ljust(80) + struct.pack("<I", len(t)) + rows)
    elif kind.startswith("ply"):
        text = kind == "ply text"
        head = ("ply\nformat {} 1.0\ncomment made by a test\nelement vertex {}\n"
                "property double x\nproperty double y\nproperty double z\nproperty uchar red\n"
                "element face {}\nproperty list uchar int vertex_indices\n"
                "property uchar flags\nend_header\n").format(
                    "ascii" if text else "binary_little_endian", len(p), len(t))
        if text:
            path.write_text(head + "".join("{!r} {!r} {!r} 7\n".format(*map(float, x)) for x in p)
                            + "".join("3 {} {} {} 1\n".format(*row) for row in t))
        else:
            path.write_bytes(head.encode() + b"".join(struct.pack("<3dB", *x, 7) for x in p)
                             + b"".join(struct.pack("<B3iB", 3, *row, 1) for row in t))
    elif kind == "off":
        path.write_text(f"OFF\n{len(p)} {len(t)} 0\n"
                        + "".join("{!r} {!r} {!r}\n".format(*map(float, x)) for x in p)
                        + "".join("3 {} {} {}\n".format(*row) for row in t))
    else:
        path.write_text("# cell\n" + "".join("v {!r} {!r} {!r}\n".format(*map(float, x))
                                             for x in p)
                        + "vn 0 0 1\n"
                        + "".join("f {}//1 {}//1 {}//1\n".format(*(row + 1)) for row in t))


@pytest.mark.parametrize("kind", ["stl text", "stl binary", "ply text", "ply binary", "off",
                                  "obj"])
def test_read_surface(tmp_path, kind):
    pytest.importorskip("trimesh")
    path, surface = tmp_path / f"cell.{kind[:3]}", ball()
    write(path, surface, kind)
    again = read_surface(path)
    assert (len(again.points), len(again.triangles)) == (len(surface.points),
                                                         len(surface.triangles))
    np.testing.assert_allclose(again.volume, surface.volume, rtol=1e-6)
    np.testing.assert_allclose(read_surface(path, scale=2).volume, 8 * again.volume)
    with pytest.warns(UnitWarning, match="scale=1e-3 for nanometres"):
        read_surface(path, scale=1e6)


def test_read_surface_refuses(tmp_path):
    pytest.importorskip("trimesh")
    write(tmp_path / "open.ply", Surface(ball().points, ball().triangles[5:], "x"), "ply text")
    cases = {"none.ply": "no such file", "cell.vtk": "suffix is '.vtk'",
             "open.ply": "edges belong to one triangle only (holes)"}
    for suffix in ("stl", "ply", "off", "obj"):
        for number, content in enumerate((b"", b"\x00\x01noise", b"ply\nformat ascii 1.0\n",
                                          b"solid x\nendsolid x\n")):
            name = f"bad{number}.{suffix}"
            (tmp_path / name).write_bytes(content)
            cases[name] = name
    for name, words in cases.items():
        with pytest.raises(InputError) as caught:
            read_surface(tmp_path / name)
        message = str(caught.value)
        assert words in message and "expected" in message and "\n" not in message
    with pytest.warns(RepairWarning, match="holes closed"):
        assert defects(read_surface(tmp_path / "open.ply", repair=True)) == []
    with pytest.raises(InputError, match="scale is 0"):
        read_surface(tmp_path / "open.ply", scale=0)


@pytest.mark.parametrize(("arguments", "words"), [
    (([[0, 0, 0]], np.empty((0, 3), int)), "holds no triangles"),
    (([[0, 0, np.nan]] * 3, [[0, 1, 2]]), "not finite"),
    (([[0, 0, 0.0]] * 3, [[0, 1, 3]]), "out of range"),
    (([[0, 0]] * 3, [[0, 1, 2]]), "points has shape"),
    (([[0, 0, 0]] * 3, [[0.0, 1, 2]]), "triangles has type"),
])
def test_surface_refuses(arguments, words):
    with pytest.raises(InputError, match=words):
        Surface(*arguments)


def test_repair_restores_a_damaged_ball():
    whole = ball()
    assert not defects(whole)
    rng = np.random.default_rng(1)
    n = len(whole.triangles)

    flipped = turned(whole, rng.choice(n, n // 3, replace=False))
    assert "oriented against" in defects(flipped)[0]
    np.testing.assert_allclose(fix(flipped, "turned to agree").volume, whole.volume)

    inward = turned(whole)
    assert "point the wrong way" in defects(inward)[0]
    np.testing.assert_allclose(fix(inward, "1 parts turned inside out").volume, whole.volume)

    split = Surface(whole.corners.reshape(-1, 3), np.arange(3 * n).reshape(-1, 3), "split")
    shaken = Surface(split.points + 1e-7 * rng.normal(size=split.points.shape), split.triangles)
    for surface in (split, shaken):
        assert "one triangle only" in " ".join(defects(surface, intersections=False))
        again = fix(surface, f"{3 * n - len(whole.points)} vertices merged")
        np.testing.assert_allclose(again.volume, whole.volume, rtol=1e-6)

    twice = Surface(whole.points, np.concatenate([whole.triangles, whole.triangles[:5, [1, 2, 0]],
                                                  [[3, 3, 4]]]), "twice")
    assert "5 triangles are given twice" in " ".join(defects(twice))
    again = fix(twice, "1 triangles that repeat a vertex dropped", "5 triangles given twice")
    assert (again.triangles == whole.triangles).all()

    # an inner wall: the same triangle once in each direction
    wall = Surface(whole.points, np.concatenate([whole.triangles, [[0, 9, 40], [0, 40, 9]]]))
    assert (fix(wall, "2 triangles given twice dropped").triangles == whole.triangles).all()

    holes = Surface(whole.points, np.delete(whole.triangles, [7, 200, 201, 202], axis=0), "holes")
    again = fix(holes, "holes closed")
    np.testing.assert_allclose(again.volume, whole.volume, rtol=1e-2)
    assert defects(again) == []


def test_repair_leaves_what_it_cannot_mend():
    moebius_points = [(np.cos(a) * (2 + w * np.cos(a / 2)), np.sin(a) * (2 + w * np.cos(a / 2)),
                       w * np.sin(a / 2)) for a in np.linspace(0, 2 * np.pi, 12, endpoint=False)
                      for w in (-0.5, 0.5)]
    k = np.arange(11)
    rows = [(2 * k, 2 * k + 1, 2 * k + 2), (2 * k + 1, 2 * k + 3, 2 * k + 2)]
    strip = np.concatenate([np.stack(r, axis=1) for r in rows]).tolist()
    strip += [[22, 23, 1], [23, 0, 1]]
    with pytest.warns(RepairWarning, match="left: .*cannot be oriented"):
        repair_with_defects(Surface(moebius_points, strip, "strip"))
    fin = ball()
    fin = Surface(np.concatenate([fin.points, [[9.0, 9, 9]]]),
                  np.concatenate([fin.triangles, [[*fin.triangles[0, :2], len(fin.points)]]]))
    assert "more than two triangles" in " ".join(defects(fin))
    with pytest.raises(InputError, match="no triangle is left"):
        repair_with_defects(Surface([[0, 0, 0.0], [1, 0, 0], [0, 1, 0]], [[0, 0, 1]]))


def test_nested_parts_and_orientation():
    cell = joined(ball(8.0), turned(ball(4.0)), ball(2.0), ball(3.0, centre=(20, 0, 0)))
    assert defects(cell) == []
    again = fix(joined(ball(8.0), ball(4.0)), "1 parts turned inside out")
    np.testing.assert_allclose(again.volume, ball(8.0).volume - ball(4.0).volume)


def test_self_intersections_are_those_of_all_pairs():
    rng = np.random.default_rng(5)
    points = rng.normal(size=(120, 3)) * np.repeat(rng.choice([0.2, 1.0], 40), 3)[:, None]
    soup = Surface(points, np.arange(120).reshape(-1, 3))

    def cuts(first, second):
        for k in range(3):
            p, q = first[k], first[(k + 1) % 3]
            a, b, c = second
            matrix = np.stack([b - a, c - a, p - q], axis=1)
            u, v, t = np.linalg.solve(matrix, p - a)
            if u > 0 and v > 0 and u + v < 1 and 0 < t < 1:
                return True
        return False

    corners = soup.corners
    wanted = [(i, j) for i in range(40) for j in range(i + 1, 40)
              if cuts(corners[i], corners[j]) or cuts(corners[j], corners[i])]
    assert len(wanted) > 20
    assert self_intersections(soup).tolist() == [list(pair) for pair in wanted]
    crossing = joined(ball(), ball(centre=(6.1, 0.3, 0.2)))
    assert "cut each other" in defects(crossing)[0]


def test_exact_keeps_every_triangle():
    pytest.importorskip("gmsh", exc_type=ImportError)
    surface = ball()
    for outside in (None, "box", "tight"):
        data = from_surface(surface, outside=outside, method="exact")
        found = volumes(data)
        np.testing.assert_allclose(found[1], surface.volume, rtol=1e-9)
        if outside == "box":
            gap = 0.1 * np.ptp(surface.points, axis=0).max()
            np.testing.assert_allclose(sum(found.values()),
                                       np.prod(np.ptp(surface.points, axis=0) + 2 * gap))
        wanted = np.sort(surface.corners.mean(axis=1), axis=0)
        rows = np.sort(data.points[data.interface_facets].mean(axis=1), axis=0)
        np.testing.assert_allclose(rows, wanted, atol=1e-9)
        assert set(found) == ({1} if outside is None else {1, 2})


def test_exact_with_cavities_and_a_size():
    pytest.importorskip("gmsh", exc_type=ImportError)
    shell = joined(ball(8.0, 2.5), turned(ball(4.0, 2.0)), ball(3.0, 1.5, centre=(14, 0, 0)))
    data = from_surface(shell)
    np.testing.assert_allclose(volumes(data)[1], shell.volume)
    both = from_surface(shell, outside="box", gap=2.0, size=3.0)
    np.testing.assert_allclose(volumes(both)[1], shell.volume)
    np.testing.assert_allclose(sum(volumes(both).values()),
                               np.prod(np.ptp(shell.points, axis=0) + 4))
    assert len(from_surface(shell, size=1.0, method="exact").cells) > 2 * len(data.cells)


def test_exact_of_a_thin_tree():
    pytest.importorskip("gmsh", exc_type=ImportError)
    surface = tree()
    assert defects(surface) == []
    data = from_surface(surface, outside="box")
    np.testing.assert_allclose(volumes(data)[1], surface.volume, rtol=1e-9)
    assert len(data.interface_facets) == len(surface.triangles)


def test_envelope_of_a_clean_ball():
    pytest.importorskip("wildmeshing")
    surface = ball()
    data = from_surface(surface, method="envelope", outside="box", gap=2.0, envelope=0.05, size=3)
    found = volumes(data)
    np.testing.assert_allclose(found[1], surface.volume, rtol=0.01)
    box = np.prod(np.ptp(surface.points, axis=0) + 4)
    np.testing.assert_allclose(sum(found.values()), box, rtol=1e-9)
    assert quality(data).min() > 0.02
    facets, pairs = facets_of(data.cells)
    sides = np.sort(np.where(pairs < 0, 0, data.cell_tags[pairs]), axis=1)
    assert (data.interface_facets == facets[(sides == [1, 2]).all(axis=1)]).all()


def test_a_tag_for_each_part():
    """So that two cells can have two permeabilities."""
    pytest.importorskip("gmsh", exc_type=ImportError)
    hollow = ball(2, 1.0, centre=(0, 1, 0))
    cavity = Surface(hollow.points, hollow.triangles[:, ::-1])
    surfaces = [ball(3, 1.6, centre=(9, 0, 0)), cavity, ball(5, 1.6)]
    data = from_surface(joined(*surfaces), method="exact", outside="box", cell_tags="each")
    found = volumes(data)
    assert set(found) == {1, 2, 3} and set(data.interface_tags) == {1, 2}
    wanted = surfaces[0].volume, surfaces[2].volume - hollow.volume
    np.testing.assert_allclose([found[1], found[2]], wanted, rtol=1e-9)
    middle = data.points[data.interface_facets].mean(axis=1)
    assert (data.interface_tags == np.where(middle[:, 0] > 5.5, 1, 2)).all()
    one = from_surface(joined(*surfaces), method="exact")
    assert set(one.cell_tags) == set(one.interface_tags) == {1}


def test_a_mesh_that_lost_a_part_is_none(monkeypatch):
    """As fTetWild loses processes that are thinner than the envelope."""
    pytest.importorskip("wildmeshing")
    soma = tagged_grid(Ball(5.0), 10.4, cells=12)
    inside = {"points": soma.points, "tets": soma.cells[soma.cell_tags == 1],
              "tags": np.ones((soma.cell_tags == 1).sum(), int)}
    monkeypatch.setattr(tetrahedralise, "run_mesher", lambda *_: inside)
    whole = ball(5, 1.0)
    with pytest.warns(RepairWarning, match="the inside has"):  # the grid's staircase
        from_surface(whole, method="envelope", envelope=0.5)
    far = joined(whole, ball(1.5, 1.0, centre=(20, 0, 0)))
    with pytest.raises(SolverError, match=r"has lost 8% of its area, up to 16.* um away .*26.4 um "
                                          "along x became 10.4"):
        from_surface(far, method="envelope", envelope=0.5)
    # what another part has swallowed is not lost
    inner = joined(whole, ball(1.5, 1.0, centre=(4, 0, 0)))
    with pytest.warns(RepairWarning):
        from_surface(inner, method="envelope", envelope=0.5)


def test_envelope_takes_defects():
    pytest.importorskip("wildmeshing")
    crossing = joined(ball(5, 2.5), ball(5, 2.5, centre=(6.1, 0.3, 0.2)))
    distance, radius = np.linalg.norm([6.1, 0.3, 0.2]), 5.0
    lens = np.pi * (4 * radius + distance) * (2 * radius - distance)**2 / 12
    with pytest.warns(RepairWarning) as caught:
        data = from_surface(crossing, size=5.0, envelope=0.1)
    said = " ".join(str(warning.message) for warning in caught)
    assert "cut each other" in said and "overlaps twice" in said
    np.testing.assert_allclose(volumes(data)[1], 2 * ball(5, 2.5).volume - lens, rtol=0.08)
    whole = ball(5, 2.5)
    torn = Surface(whole.points, np.delete(whole.triangles, np.s_[3:6], axis=0), "torn")
    data = from_surface(torn, method="envelope", repair=False, size=5.0, envelope=0.1)
    np.testing.assert_allclose(volumes(data)[1], whole.volume, rtol=0.08)


def test_defects_without_the_mesher_that_takes_them(monkeypatch):
    monkeypatch.setattr(tetrahedralise, "find_spec", lambda name: None)
    crossing = joined(ball(), ball(centre=(6.1, 0.3, 0.2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepairWarning)
        with pytest.raises(InputError, match="wildmeshing is not installed.*cut each other"):
            from_surface(crossing)
    with pytest.raises(InputError, match="cut each other.*method='envelope'"):
        from_surface(crossing, repair=False)


@pytest.mark.parametrize(("options", "words"), [
    ({"outside": "sphere"}, "outside is 'sphere'"),
    ({"method": "best"}, "method is 'best'"),
    ({"size": -1}, "size is -1"),
    ({"size": 1e-3}, "cells, expected at most"),
    ({"gap": 2.0}, "without outside"),
    ({"timeout": None}, "timeout is None"),
    ({"envelope": "x"}, "envelope is 'x'"),
])
def test_bad_arguments(options, words):
    with pytest.raises(InputError, match=words):
        from_surface(ball(), **options)


def test_a_surface_is_a_surface():
    with pytest.raises(InputError, match="expected a Surface or a path"):
        from_surface([1, 2])


def test_mesher_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    """With what it has started: all of them hold a pipe, which has an end when they have gone."""
    os.mkfifo(tmp_path / "pipe")
    as_python(monkeypatch, tmp_path, f"""exec > {tmp_path}/pipe
        (sleep {GUARD}; echo too late) &
        echo started
        wait""")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)

    class Started(subprocess.Popen):
        def wait(self, timeout=None):
            select.select([pipe], [], [], GUARD)  # only then the time runs
            return super().wait(timeout)

    monkeypatch.setattr(tetrahedralise.subprocess, "Popen", Started)
    with pytest.raises(SolverError, match="after 0.5 s .timeout., ended.*try "):
        from_surface(ball(), method="exact", timeout=0.5)
    os.set_blocking(pipe, True)
    with open(pipe) as said:
        assert said.read() == "started\n"


def test_mesher_that_crashes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        as_python(patch, tmp_path, "kill -SEGV $$")
        with pytest.raises(SolverError, match="crashed .signal SIGSEGV"):
            from_surface(ball(), method="exact")
    with pytest.raises(SolverError, match="KeyError"):
        run_mesher({"points": np.zeros((0, 3))}, GUARD, "nothing")


def test_mesher_does_not_see_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    as_python(monkeypatch, tmp_path, f"env > {tmp_path}/env; exit 3")
    with pytest.raises(SolverError, match="exit code 3"):
        from_surface(ball(), method="exact")
    seen = (tmp_path / "env").read_text()
    assert "PMI_RANK" not in seen and "OMPI_COMM" not in seen and "OMP_NUM_THREADS=1" in seen


@pytest.mark.mpi
def test_on_any_rank_count(tmp_path, monkeypatch):
    pytest.importorskip("gmsh", exc_type=ImportError)
    from spinverse.errors import on_root

    comm = MPI.COMM_WORLD
    surface = ball(5.0, 2.0)
    mesh = Mesh.from_data(on_root(comm, from_surface, surface, outside="box"), comm)
    tags = np.unique(np.concatenate(comm.allgather(np.unique(mesh.cell_tags))))
    assert tags.tolist() == [1, 2]
    walls = comm.allreduce(int((mesh.interface == 1).sum()))
    assert walls == len(surface.triangles)
    as_python(monkeypatch, tmp_path, f"exec sleep {GUARD}")
    with pytest.raises(SolverError, match="timeout"):
        on_root(comm, from_surface, surface, method="exact", timeout=0.01)


def test_mirror_images_that_pass_through_each_other_are_no_clean_surface():
    """Their edges meet exactly, so that no edge cuts a triangle's inside."""
    cell = joined(ball(4.0), ball(4.0, centre=(5.0, 0.0, 0.0)))
    assert any("half in each other" in text or "cut each other" in text for text in defects(cell))
    with pytest.raises(InputError, match="clean surface for method='exact'"), \
            pytest.warns(RepairWarning):
        from_surface(cell, size=2.0, method="exact")
