"""Meshes made from a few numbers, in um: structured ones by hand, curved ones by gmsh."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from itertools import permutations
from math import ceil, pi

import numpy as np

from spinverse.errors import InputError, SolverError
from spinverse.mesh.checks import facets_of, tet_volumes
from spinverse.mesh.data import MeshData
from spinverse.mesh.shapes import positive, shown, vector

ORIGIN = (0.0, 0.0, 0.0)


def box(lengths: Sequence[float], size: float | None = None,
        cells: Sequence[int] | None = None, centre: Sequence[float] = ORIGIN) -> MeshData:
    """A box; give either ``size`` (unstructured) or ``cells`` (six tets per brick).

    Args:
        lengths: (x, y, z), um.
        size: target edge length, um.
        cells: bricks along x, y, z.
        centre: of the box, um.

    Raises:
        InputError: a bad value, both or none of ``size`` and ``cells``.
        SolverError: gmsh failed.
    """
    lengths = _lengths("box", "lengths", lengths, 3)
    centre = np.array(vector("box", "centre", centre))
    _one_of("box", size=size, cells=cells)
    if cells is not None:
        counts = _counts("box", "cells", cells, 3)
        points, tets = _kuhn(*(np.linspace(-a / 2, a / 2, n + 1)
                               for a, n in zip(lengths, counts, strict=True)))
    else:
        size = positive("box", "size", size)
        with _model("box", size) as gmsh:
            gmsh.model.occ.addBox(*(-lengths / 2), *lengths)
            points, tets, _ = _volume_mesh(gmsh, "box")
    return MeshData(points + centre, tets, name="box").check()


def slabs(thicknesses: Sequence[float], cells_per_layer: int | Sequence[int] | None = None,
          size: float | None = None, width: float = 1.0, cells_across: int = 1) -> MeshData:
    """Parallel layers along x from ``-sum/2`` on, tagged 1..n; the planes between, 1..n-1.

    Args:
        thicknesses: of the layers, um.
        cells_per_layer: bricks along x in every layer, or one number for each.
        size: instead of ``cells_per_layer``: largest brick length along x, um.
        width: along y and z, um.
        cells_across: bricks along y and along z.

    Raises:
        InputError: a bad value, both or none of ``cells_per_layer`` and ``size``.
    """
    thicknesses = _lengths("slabs", "thicknesses", thicknesses)
    width = positive("slabs", "width", width)
    across = _counts("slabs", "cells_across", [cells_across], 1)[0]
    _one_of("slabs", cells_per_layer=cells_per_layer, size=size)
    if size is not None:
        size = positive("slabs", "size", size)
        counts = [max(1, ceil(t / size * (1 - 1e-12))) for t in thicknesses]
    else:
        each = [cells_per_layer] * len(thicknesses) if np.ndim(cells_per_layer) == 0 \
            else cells_per_layer
        counts = _counts("slabs", "cells_per_layer", each, len(thicknesses))
    edges = np.concatenate([[0], np.cumsum(thicknesses)]) - thicknesses.sum() / 2
    x = np.concatenate([np.linspace(a, b, n, endpoint=False) for a, b, n
                        in zip(edges[:-1], edges[1:], counts, strict=True)] + [edges[-1:]])
    side = np.linspace(-width / 2, width / 2, across + 1)
    points, tets = _kuhn(x, side, side)
    tags = np.searchsorted(edges, points[tets].mean(axis=1)[:, 0])
    return _layered("slabs", points, tets, tags)


def sphere_in_box(radius: float, box: Sequence[float], size: float,
                  size_interface: float | None = None, centre: Sequence[float] = ORIGIN,
                  match_volume: bool = True) -> MeshData:
    """A ball (tag 1) in a box (tag 2) that is centred at the origin; interface tagged 1.

    Args:
        radius: um.
        box: lengths (x, y, z) of the box, um.
        size: target edge length, um; above the gap to the box it gives flat tets there
            (see :func:`.checks.quality`).
        size_interface: target edge length at the sphere, um; it grows to ``size`` over
            one radius. ``None``: ``size``.
        centre: of the ball, um.
        match_volume: move the faceted sphere out so that it holds 4/3 pi radius^3.

    Raises:
        InputError: a bad value, a ball that does not lie inside the box.
        SolverError: gmsh failed.
    """
    name = "sphere_in_box"
    radius, lengths = positive(name, "radius", radius), _lengths(name, "box", box, 3)
    size, centre = positive(name, "size", size), np.array(vector(name, "centre", centre))
    fine = size if size_interface is None else positive(name, "size_interface", size_interface)
    gap = float((lengths / 2 - np.abs(centre)).min()) - radius
    if not gap > 0:
        raise InputError(f"{name}: ball of radius {radius:g} um leaves a gap of {gap:g} um to "
                         "the box, expected a positive one")

    def target(_dim, _tag, x, y, z, _size):
        distance = abs(np.linalg.norm(np.array([x, y, z]) - centre) - radius)
        return fine + (size - fine) * min(1.0, distance / radius)

    with _model(name, max(size, fine), min(size, fine)) as gmsh:
        occ = gmsh.model.occ
        outer = occ.addBox(*(-lengths / 2), *lengths)
        occ.fragment([(3, outer)], [(3, occ.addSphere(*centre, radius))])
        if fine != size:
            gmsh.model.mesh.setSizeCallback(target)
        points, tets, entities = _volume_mesh(gmsh, name)
    tags = 1 + (_reach(points - centre, tets, entities) > radius * (1 + 1e-6))
    points = points - centre
    if match_volume:
        points = _match(name, points, tets, tags, np.array([radius]), radius + gap)
    return _layered(name, points + centre, tets, tags)


def spheres(radii: Sequence[float], size: float, centre: Sequence[float] = ORIGIN,
            match_volume: bool = True) -> MeshData:
    """Concentric balls: layers tagged 1 (inner) .. n, spheres between them 1 .. n-1.

    Args:
        radii: ascending, um; the last is the outer boundary.
        size: target edge length, um; above a layer's thickness it gives flat tets there
            (see :func:`.checks.quality`).
        centre: um.
        match_volume: move the faceted spheres out so that each holds 4/3 pi r^3.

    Raises:
        InputError: a bad value, radii that do not ascend.
        SolverError: gmsh failed.
    """
    radii, size = _ascending("spheres", radii), positive("spheres", "size", size)
    centre = np.array(vector("spheres", "centre", centre))
    with _model("spheres", size) as gmsh:
        occ = gmsh.model.occ
        balls = [(3, occ.addSphere(0, 0, 0, r)) for r in radii]
        if len(balls) > 1:
            occ.fragment(balls[-1:], balls[:-1])
        points, tets, entities = _volume_mesh(gmsh, "spheres")
    reach = _reach(points, tets, entities)
    tags = 1 + np.abs(reach[:, None] - radii).argmin(axis=1)
    if match_volume:
        points = _match("spheres", points, tets, tags, radii)
    return _layered("spheres", points + centre, tets, tags)


def cylinders(radii: Sequence[float], height: float, size: float, layers: int = 1,
              match_volume: bool = True) -> MeshData:
    """Concentric cylinders along z, centred at the origin, tagged as :func:`spheres` are.

    A triangle mesh of the discs is extruded in prisms of three tets each.

    Args:
        radii: ascending, um; the last is the outer boundary.
        height: um.
        size: target edge length in the plane, um.
        layers: prisms along z.
        match_volume: move the faceted circles out so that each holds pi r^2.

    Raises:
        InputError: a bad value, radii that do not ascend.
        SolverError: gmsh failed.
    """
    name = "cylinders"
    radii, size = _ascending(name, radii), positive(name, "size", size)
    height = positive(name, "height", height)
    layers = _counts(name, "layers", [layers], 1)[0]
    with _model(name, size) as gmsh:
        occ = gmsh.model.occ
        discs = [(2, occ.addDisk(0, 0, 0, r, r)) for r in radii]
        if len(discs) > 1:
            occ.fragment(discs[-1:], discs[:-1])
        flat, triangles, entities = _volume_mesh(gmsh, name, dim=2)
    reach = _reach(flat, triangles, entities)
    flat_tags = 1 + np.abs(reach[:, None] - radii).argmin(axis=1)
    points, tets = _extrude(flat[:, :2], triangles, np.linspace(-height / 2, height / 2,
                                                                layers + 1))
    tags = np.tile(np.repeat(flat_tags, 3), layers)
    if match_volume:
        points = _match(name, points, tets, tags, radii, height=height)
    return _layered(name, points, tets, tags)


def tagged_grid(shape, length: float, size: float | None = None, cells: int | None = None,
                pattern: str = "bcc") -> MeshData:
    """A cube whose cells are tagged 1 where their centroid lies in ``shape``, else 2.

    Interface facets (tag 1) are those between the two tags, and the outer facets of cells
    tagged 1: the whole surface of the tagged region.

    Args:
        shape: has ``contains(points (n, 3)) -> (n,) bool`` (see :mod:`.shapes`).
        length: side of the cube, um; it is centred at the origin.
        size: target edge length, um; for the lattices ``cells`` is ``length / size`` rounded.
        cells: cubes along each side; for gmsh ``size`` is ``length / cells``.
        pattern: ``"bcc"``: body-centred cubic, neighbouring cubes' centres joined by four
            tets around the square they share, outer squares closed by pyramids split in
            two; ``"kuhn"``: six tets in each cube; ``"gmsh"``: unstructured.

    Raises:
        InputError: a bad value, or no cell's centroid lies in the shape.
        SolverError: gmsh failed.
    """
    name = "tagged_grid"
    length = positive(name, "length", length)
    if pattern not in ("bcc", "kuhn", "gmsh"):
        raise InputError(f"{name}: pattern is {shown(pattern)}, expected 'bcc', 'kuhn' or 'gmsh'")
    _one_of(name, size=size, cells=cells)
    if cells is not None:
        cells = _counts(name, "cells", [cells], 1)[0]
        size = length / cells
    size = positive(name, "size", size)
    if pattern == "gmsh":
        grid = box([length] * 3, size=size)
        points, tets = grid.points, grid.tets
    else:
        lattice = np.linspace(-length / 2, length / 2, max(1, round(length / size)) + 1)
        points, tets = _bcc(lattice) if pattern == "bcc" else _kuhn(*[lattice] * 3)
    inside = np.asarray(shape.contains(points[tets].mean(axis=1)), bool)
    if not inside.any():
        raise InputError(f"{name}: {shape.describe()} holds no centroid of the {len(tets)} "
                         "cells, expected at least one (a smaller size, or a larger shape)")
    facets, pairs = facets_of(tets)
    sides = np.where(pairs < 0, False, inside[pairs])
    surface = facets[sides[:, 0] != sides[:, 1]]
    return MeshData(points, tets, np.where(inside, 1, 2), surface, name=name).check()


# --- structured grids ------------------------------------------------------------------

def _kuhn(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bricks of six tets around the diagonal: one tet for each order of the three steps."""
    shape = (len(x), len(y), len(z))
    points = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)
    number = np.arange(len(points)).reshape(shape)
    low = number[:-1, :-1, :-1].reshape(-1)
    steps = np.array([shape[1] * shape[2], shape[2], 1])
    tets = np.stack([np.stack([low, low + steps[i], low + steps[i] + steps[j],
                               low + steps.sum()], axis=1)
                     for i, j, _ in permutations(range(3))], axis=1).reshape(-1, 4)
    return points, _oriented(points, tets)


def _bcc(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Body-centred cubic lattice on the cube ``x`` by ``x`` by ``x``, filled to its faces."""
    n = len(x) - 1
    middle = (x[1:] + x[:-1]) / 2
    points = np.concatenate([
        np.stack(np.meshgrid(g, g, g, indexing="ij"), axis=-1).reshape(-1, 3)
        for g in (x, middle)])
    corner = np.arange((n + 1)**3).reshape([n + 1] * 3)
    centre = (n + 1)**3 + np.arange(n**3).reshape([n] * 3)
    tets = []
    for axis in range(3):
        grid, cubes = np.moveaxis(corner, axis, 0), np.moveaxis(centre, axis, 0)
        ring = np.stack([grid[:, :-1, :-1], grid[:, 1:, :-1], grid[:, 1:, 1:],
                         grid[:, :-1, 1:]], axis=-1)
        for k in range(4):
            edge = ring[1:-1][..., [k, (k + 1) % 4]]
            tets.append(np.stack([cubes[:-1], cubes[1:], edge[..., 0], edge[..., 1]], axis=-1))
        i, j = np.indices((n, n))
        for face, top in ((ring[0], cubes[0]), (ring[-1], cubes[-1])):
            # alternating diagonals keep the closed grid free of a preferred direction
            turned = np.where(((i + j) % 2)[..., None] == 0, face, np.roll(face, 1, axis=-1))
            for half in ([0, 1, 2], [0, 2, 3]):
                tets.append(np.concatenate([top[..., None], turned[..., half]], axis=-1))
    tets = np.concatenate([t.reshape(-1, 4) for t in tets])
    return points, _oriented(points, tets)


def _extrude(flat: np.ndarray, triangles: np.ndarray,
             z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prisms over ``triangles`` between the levels ``z``, three tets each, layer by layer.

    Splitting from the lowest vertex number upwards gives neighbours the same diagonal.
    """
    n = len(flat)
    points = np.concatenate([np.column_stack([flat, np.full(n, level)]) for level in z])
    low = np.sort(triangles, axis=1)
    prism = np.concatenate([low, low + n], axis=1)
    tets = prism[:, [[0, 1, 2, 5], [0, 1, 4, 5], [0, 3, 4, 5]]].reshape(-1, 4)
    tets = np.concatenate([tets + k * n for k in range(len(z) - 1)])
    return points, _oriented(points, tets)


def _oriented(points: np.ndarray, tets: np.ndarray) -> np.ndarray:
    inverted = tet_volumes(points, tets) < 0
    tets[inverted] = tets[inverted][:, [0, 1, 3, 2]]
    return tets


def _layered(name: str, points: np.ndarray, tets: np.ndarray, tags: np.ndarray) -> MeshData:
    """Checked mesh with the facets between different tags, tagged with the lower one."""
    facets, pairs = facets_of(tets, name)
    sides = tags[pairs]
    between = (pairs[:, 1] >= 0) & (sides[:, 0] != sides[:, 1])
    try:
        return MeshData(points, tets, tags, facets[between], sides[between].min(axis=1),
                        name=name).check()
    except InputError as error:
        raise SolverError(f"{error} (try a smaller size)") from None


# --- curved shapes -----------------------------------------------------------------------

def _reach(points: np.ndarray, cells: np.ndarray, entities: np.ndarray) -> np.ndarray:
    """For each cell the largest distance from the origin in its gmsh entity, ``(Nt,)``."""
    reach = np.zeros(entities.max() + 1)
    np.maximum.at(reach, entities, np.linalg.norm(points[cells], axis=2).max(axis=1))
    return reach[entities]


def _match(name: str, points: np.ndarray, tets: np.ndarray, tags: np.ndarray,
           radii: np.ndarray, fixed: float | None = None,
           height: float | None = None) -> np.ndarray:
    """Move vertices radially until each faceted surface holds what the smooth one holds.

    All vertices of a surface lie at its radius, so that scaling them by one factor scales
    the volume (with ``height``: the cross-section) exactly; between surfaces the radius is
    mapped linearly, and beyond ``fixed`` nothing moves.
    """
    volumes = np.bincount(tags, weights=tet_volumes(points, tets))[1:len(radii) + 1].cumsum()
    if height is None:
        wanted = radii * (4 / 3 * pi * radii**3 / volumes)**(1 / 3)
        r = np.linalg.norm(points, axis=1)
    else:
        wanted = radii * (pi * radii**2 * height / volumes)**(1 / 2)
        r = np.linalg.norm(points[:, :2], axis=1)
    if fixed is not None and not wanted[-1] < fixed:
        raise SolverError(f"{name}: matching the volume needs radius {wanted[-1]:g} um, which "
                          f"leaves the box at {fixed:g} um (try a smaller size)")
    outer = [] if fixed is None else [fixed]
    knots = np.concatenate([[0], radii, outer])
    values = np.concatenate([[0], wanted, outer])
    # past the last knot: the same factor; that is 1 with `fixed`, round-off without
    new = np.where(r <= knots[-1], np.interp(r, knots, values), r * values[-1] / knots[-1])
    factor = np.divide(new, r, out=np.ones_like(r), where=r > 0)
    moved = points.copy()
    moved[:, :3 if height is None else 2] *= factor[:, None]
    return moved


@contextmanager
def _model(name: str, size: float, smallest: float | None = None):
    """A fresh gmsh model; closes gmsh again, or leaves the caller's session as it was."""
    try:
        import gmsh
    except (ImportError, OSError) as error:
        raise InputError(f"{name}: gmsh cannot be imported ({str(error).splitlines()[0]}), "
                         "expected the extra: pip install 'spinverse[mesh]'") from None
    # without a lower limit gmsh takes a tenth of the model's diagonal where that is less
    options = {"General.Terminal": 0, "General.NumThreads": 1, "Mesh.MeshSizeMax": size,
               "Mesh.MeshSizeMin": smallest or size, "Mesh.Algorithm": 6, "Mesh.Algorithm3D": 1,
               "Mesh.Optimize": 1, "Mesh.OptimizeNetgen": 1, "Mesh.RandomSeed": 1,
               "Mesh.ElementOrder": 1}
    shared = bool(gmsh.isInitialized())
    if not shared:
        gmsh.initialize(["spinverse", "-v", "0"], readConfigFiles=False, interruptible=False)
    before = {key: gmsh.option.getNumber(key) for key in options}
    try:
        current = gmsh.model.getCurrent() if shared else None
        for key, value in options.items():
            gmsh.option.setNumber(key, value)
        gmsh.model.add(f"spinverse {name}")
        yield gmsh
    except Exception as error:
        if type(error) is not Exception:  # gmsh raises the bare class
            raise
        reason = " ".join(str(error).split())
        raise SolverError(f"{name}: gmsh could not mesh it ({reason})") from None
    finally:
        if shared:
            gmsh.model.remove()
            gmsh.model.setCurrent(current)
            for key, value in before.items():
                gmsh.option.setNumber(key, value)
        else:
            gmsh.finalize()


def _volume_mesh(gmsh, name: str, dim: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mesh the model: points, cells (tets or triangles) and each cell's gmsh entity."""
    gmsh.model.occ.synchronize()
    gmsh.model.mesh.generate(dim)
    numbers, coordinates, _ = gmsh.model.mesh.getNodes()
    cells, entities = [], []
    for _, entity in gmsh.model.getEntities(dim):
        _, nodes = gmsh.model.mesh.getElementsByType({2: 2, 3: 4}[dim], entity)
        cells.append(np.asarray(nodes, np.int64).reshape(-1, dim + 1))
        entities.append(np.full(len(cells[-1]), entity))
    if not cells or not sum(map(len, cells)):
        raise SolverError(f"{name}: gmsh made no cells (try a smaller size)")
    cells, entities = np.concatenate(cells), np.concatenate(entities)
    place = np.zeros(int(max(numbers)) + 1, np.int64)
    place[np.asarray(numbers, np.int64)] = np.arange(len(numbers))
    used, cells = np.unique(place[cells], return_inverse=True)
    points = np.asarray(coordinates, float).reshape(-1, 3)[used]
    return points, cells.reshape(-1, dim + 1), entities


# --- arguments -----------------------------------------------------------------------------

def _lengths(name: str, key: str, values, count: int | None = None) -> np.ndarray:
    if np.ndim(values) != 1 or not len(values) or count not in (None, len(values)):
        raise InputError(f"{name}: {key} is {shown(values)}, expected "
                         f"{count or 'one or more'} positive lengths in um")
    return np.array([positive(name, f"{key}[{i}]", v) for i, v in enumerate(values)])


def _ascending(name: str, radii) -> np.ndarray:
    values = _lengths(name, "radii", radii)
    if not (np.diff(values) > 0).all():
        raise InputError(f"{name}: radii is {shown(radii)}, expected ascending ones")
    return values


def _counts(name: str, key: str, values, count: int) -> list[int]:
    fits = np.ndim(values) == 1 and len(values) == count
    if not fits or not all(isinstance(v, int | np.integer) and v > 0 for v in values):
        value = values[0] if fits and count == 1 else values
        raise InputError(f"{name}: {key} is {shown(value)}, expected "
                         f"{'a positive integer' if count == 1 else f'{count} positive integers'}")
    return [int(v) for v in values]


def _one_of(name: str, **options) -> None:
    if sum(v is not None for v in options.values()) != 1:
        given = ", ".join(f"{k}={shown(v)}" for k, v in options.items())
        raise InputError(f"{name}: got {given}, expected exactly one of {' and '.join(options)}")
