"""Closed triangle surfaces: cell membranes as files give them, checked and repaired.

trimesh parses files. Its repairs would change what is right, or leave what is wrong:
`fix_inversion` turns cavities inside out, `stitch` closes holes at right angles the wrong way
round, `merge_vertices` rounds, `unique_faces` keeps one of two walls that cancel; and
`fix_winding`, `fill_holes` and `contains` want networkx and rtree.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from spinverse.errors import InputError, one_line, warn_caller
from spinverse.mesh.arguments import positive
from spinverse.mesh.checks import LARGEST, SMALLEST, RepairWarning, UnitWarning
from spinverse.mesh.connected import components

SUFFIXES = (".stl", ".ply", ".off", ".obj", ".swc")
FLAT = 1e-7  # height over longest edge of a triangle that counts as flat
MENDED = 0.02  # of volume and area: what MeshFix may change
NEAR = 1e-6  # of the box diagonal: vertices that a repair merges


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles that bound cells; normals point out of the cell, and into its cavities.

    Attributes:
        points: ``(Nv, 3)`` float64, um.
        triangles: vertices of each triangle, ``(Nt, 3)`` int64.
        name: for messages.

    Raises:
        InputError: no triangles, wrong shapes, coordinates that are not finite, or vertex
            numbers out of range.
    """

    points: np.ndarray
    triangles: np.ndarray
    name: str = "surface"

    def __post_init__(self):
        where = f"surface '{self.name}'"
        values = {}
        for key, kinds, dtype in (("points", "iuf", np.float64), ("triangles", "iu", np.int64)):
            try:
                array = np.asarray(getattr(self, key))
            except ValueError:
                array = np.empty(0)
            if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in kinds \
                    or not len(array):
                raise InputError(f"{where}: {key} has shape {array.shape} and type "
                                 f"{array.dtype}, expected (N, 3) with N > 0")
            values[key] = np.array(array, dtype=dtype, order="C")
        bad = ~np.isfinite(values["points"]).all(axis=1)
        if bad.any():
            raise InputError(f"{where}: point {bad.argmax()} is not finite ({bad.sum()} such), "
                             "expected finite coordinates")
        bad = ((values["triangles"] < 0) | (values["triangles"] >= len(values["points"]))).any(1)
        if bad.any():
            raise InputError(f"{where}: triangle {bad.argmax()} has vertex numbers out of range "
                             f"({bad.sum()} such), expected 0 to {len(values['points']) - 1}")
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @property
    def corners(self) -> np.ndarray:
        """Coordinates of the corners of each triangle, ``(Nt, 3, 3)`` um."""
        return self.points[self.triangles]

    @property
    def areas(self) -> np.ndarray:
        """Area of each triangle, ``(Nt,)`` um^2."""
        a, b, c = self.corners.swapaxes(0, 1)
        return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2

    @property
    def volume(self) -> float:
        """Signed enclosed volume, um^3 (divergence theorem); positive: normals point out."""
        a, b, c = (self.corners - self.points[self.triangles[0, 0]]).swapaxes(0, 1)
        return float(np.einsum("ij,ij->", np.cross(a, b), c) / 6)

    @property
    def diagonal(self) -> float:
        """Of the bounding box of the triangles, um."""
        return float(np.linalg.norm(np.ptp(self.corners.reshape(-1, 3), axis=0)))

    @property
    def edge_length(self) -> float:
        """Median length of the triangles' edges, um."""
        corners = self.corners
        return float(np.median(np.linalg.norm(corners - corners[:, [1, 2, 0]], axis=2)))


def read_surface(path: str | Path, repair: bool = False, scale: float = 1.0) -> Surface:
    """Read a triangle surface and check it.

    Formats are ``.stl``, ``.ply`` (text or binary), ``.off`` and ``.obj``; polygons are split
    into triangles. Equal vertices are merged in ``.stl``, which repeats them for each triangle,
    and elsewhere where the surface is not closed without. The surface of a ``.swc`` is that of
    :func:`morphology.neuron_surface`.

    Args:
        path: the file; its suffix says the format.
        repair: repair what can be (see :func:`repair_with_defects`) instead of refusing.
        scale: um per unit of the file: 1e-3 for nanometres, 1e6 for metres.

    Raises:
        InputError: no such file, an unknown suffix, a file that cannot be parsed, trimesh is
            not installed; without ``repair`` also any of :func:`defects`.

    Warns:
        RepairWarning: what was repaired, and which defects are left.
        UnitWarning: the size suggests that the coordinates are not in um.
    """
    surface = load_surface(path, scale)
    if repair:
        return repair_with_defects(surface)[0]
    if found := defects(surface):
        raise InputError(f"surface '{surface.name}': {'; '.join(found)}; expected a closed "
                         "surface with outward normals (repair=True repairs what can be)")
    return surface


def load_surface(path: str | Path, scale: float = 1.0) -> Surface:
    """:func:`read_surface` without the check of the surface."""
    path = Path(path)
    scale = positive(f"surface file '{path}'", "scale", scale)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"surface file '{path}': suffix is '{path.suffix}', expected one of "
                         + ", ".join(SUFFIXES))
    if not path.is_file():
        raise InputError(f"surface file '{path}': no such file, expected a surface")
    if path.suffix.lower() == ".swc":
        from .morphology import neuron_surface

        return neuron_surface(path, scale=scale)
    points, triangles = _parse(path)
    surface = Surface(points * scale, triangles, path.name)
    if path.suffix.lower() == ".stl" or len(_edges(surface.triangles)[2]):
        surface = _merged(surface, 0.0)
    if not SMALLEST <= surface.diagonal <= LARGEST:
        warn_caller(f"surface '{surface.name}': box diagonal is {surface.diagonal:.3g} um, "
                    f"expected {SMALLEST:g} to {LARGEST:g} um (scale=1e-3 for nanometres)",
                    UnitWarning)
    return surface


def defects(surface: Surface, intersections: bool = True) -> list[str]:
    """What keeps the surface from bounding a volume, in words; empty for a clean one.

    Triangles that repeat a vertex, are given twice or have no area; edges with one triangle
    (holes) or more than two; neighbours of opposite orientation; parts whose normals point the
    wrong way; and, unless ``intersections`` is false, triangles that cut others.
    """
    triangles = surface.triangles
    repeats = _repeats(triangles)
    found = []
    if repeats.any():
        found.append(f"{repeats.sum()} triangles repeat a vertex")
    twins = len(triangles) - len(np.unique(np.sort(triangles, axis=1), axis=0))
    if twins:
        found.append(f"{twins} triangles are given twice")
    flat = (flatness(surface) <= FLAT) & ~repeats
    if flat.any():
        found.append(f"{flat.sum()} triangles have no area")
    halves, pairs, open_edges, crowded = _edges(triangles)
    if len(open_edges):
        found.append(f"{len(open_edges)} edges belong to one triangle only (holes)")
    if crowded:
        found.append(f"{crowded} edges belong to more than two triangles")
    flips, twisted = _flips(halves, pairs)
    if twisted:
        found.append(f"{twisted} parts cannot be oriented")
    elif flips.any():
        found.append(f"{flips.sum()} triangles are oriented against their neighbours")
    elif not found:
        inward = _turned_parts(surface, parts(surface)).sum()
        if inward:
            found.append(f"{inward} parts have normals that point the wrong way")
    if intersections:
        cuts = self_intersections(surface)
        if len(cuts):
            found.append(f"{len(cuts)} pairs of triangles cut each other, first "
                         f"{cuts[0, 0]} and {cuts[0, 1]}")
        elif not found:
            # edges that pass exactly through edges are no cuts, as where mirror images meet
            crossed = _half_in_each_other(surface, parts(surface))
            if crossed:
                found.append(f"{len(crossed)} pairs of parts lie half in each other")
    return found


def repair_with_defects(surface: Surface) -> tuple[Surface, list[str]]:
    """Repair what can be without a guess about the shape.

    In this order: vertices nearer than 1e-6 of the box diagonal are merged; triangles that
    repeat a vertex are dropped, and of triangles given twice one is kept (none if the two have
    opposite orientations); neighbours get the same orientation; holes are closed by a fan;
    every part gets normals that point out of the cell, or into the cavity if it lies in
    another part; unused vertices are dropped. Edges of more than two triangles and triangles
    that cut each other, which are left then, are cut out and closed anew by MeshFix (Attene,
    Visual Comput. 26, 1393, 2010) where pymeshfix is installed, unless that changes the shape.

    Returns:
        The surface, and its :func:`defects` that are left to the mesher.

    Warns:
        RepairWarning: what was done, and what is left.
    """
    done = []
    count = len(surface.points)
    surface = _merged(surface, NEAR * surface.diagonal)
    if len(surface.points) < count:
        done.append(f"{count - len(surface.points)} vertices merged or unused")
    triangles = surface.triangles
    repeats = _repeats(triangles)
    if repeats.any():
        done.append(f"{repeats.sum()} triangles that repeat a vertex dropped")
        triangles = triangles[~repeats]
    kept = _once(triangles)
    if len(kept) < len(triangles):
        done.append(f"{len(triangles) - len(kept)} triangles given twice dropped")
        triangles = triangles[kept]
    if not len(triangles):
        raise InputError(f"surface '{surface.name}': no triangle is left of "
                         f"{len(surface.triangles)} after the repair, expected a closed surface")
    flips, _ = _flips(*_edges(triangles)[:2])
    if flips.any():
        done.append(f"{flips.sum()} triangles turned to agree with their neighbours")
        triangles = np.where(flips[:, None], triangles[:, ::-1], triangles)
    points, triangles, holes = _filled(surface.points, triangles)
    if holes:
        done.append(f"{len(holes)} holes closed, of up to {max(holes)} edges")
    surface = _merged(Surface(points, triangles, surface.name), None)
    if not len(_edges(surface.triangles)[2]):
        labels = parts(surface)
        wrong = _turned_parts(surface, labels)
        if wrong.any():
            done.append(f"{wrong.sum()} parts turned inside out")
            turned = np.where(wrong[labels][:, None], surface.triangles[:, ::-1],
                              surface.triangles)
            surface = Surface(surface.points, turned, surface.name)
    left = defects(surface)
    mended = _mended(surface) if left else None
    if mended is not None:
        done.append(f"by MeshFix: {'; '.join(left)}")
        surface, left = mended, []
    if done or left:
        text = "; ".join(done) or "nothing could be repaired"
        rest = f"; left: {'; '.join(left)}" if left else ""
        warn_caller(f"surface '{surface.name}': {text}{rest}", RepairWarning)
    return surface, left


def _mended(surface: Surface) -> Surface | None:
    """The surface without defects, by MeshFix; None if it cannot, or makes another shape."""
    if find_spec("pymeshfix") is None:
        return None
    from pymeshfix import MeshFix

    fix = MeshFix(surface.points, surface.triangles.astype(np.int32))
    fix.repair(joincomp=False, remove_smallest_components=False)
    if not len(fix.faces):
        return None
    found = Surface(fix.points, fix.faces.astype(np.int64), surface.name)
    labels = parts(found)
    wrong = _turned_parts(found, labels)[labels]
    found = Surface(found.points, np.where(wrong[:, None], found.triangles[:, ::-1],
                                           found.triangles), surface.name)
    change = max(abs(found.volume / surface.volume - 1) if surface.volume else np.inf,
                 abs(found.areas.sum() / surface.areas.sum() - 1))
    return None if change > MENDED or defects(found) else found


def parts(surface: Surface) -> np.ndarray:
    """Number of the connected part (over shared vertices) of each triangle, ``(Nt,)``."""
    t = surface.triangles
    labels = components(len(surface.points), t[:, [0, 1, 1, 2]].reshape(-1, 2))
    return np.unique(labels[t[:, 0]], return_inverse=True)[1]


def part_volumes(surface: Surface, labels: np.ndarray) -> np.ndarray:
    """Signed volume that each part of :func:`parts` encloses, ``(number of parts,)`` um^3."""
    a, b, c = (surface.corners - surface.points.mean(axis=0)).swapaxes(0, 1)
    return np.bincount(labels, np.einsum("ij,ij->i", np.cross(a, b), c) / 6)


def depths(surface: Surface, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many other parts enclose each part, and the innermost of them (-1: none).

    Args:
        labels: of :func:`parts`.

    Returns:
        Both ``(number of parts,)`` int64. A part is taken to lie where its first vertex lies.
    """
    each, low, high = _by_part(surface, labels)
    inside = np.zeros((len(each), len(each)), bool)  # [k, j]: part k lies in part j
    for k, part in enumerate(each):
        for j in np.flatnonzero((low <= low[k]).all(1) & (high >= high[k]).all(1)):
            inside[k, j] = j != k and abs(winding_number(each[j], part[0, 0])) > 0.5
    depth = inside.sum(axis=1)
    parent = np.where(inside, depth[None, :], -1).argmax(axis=1)
    return depth, np.where(depth > 0, parent, -1)


def _half_in_each_other(surface: Surface, labels: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of parts of which the first has vertices inside and outside the second."""
    each, low, high = _by_part(surface, labels)
    found = []
    for k, part in enumerate(each):
        points = np.unique(part.reshape(-1, 3), axis=0)
        for j in np.flatnonzero((low < high[k]).all(1) & (high > low[k]).all(1)):
            near = points[((points > low[j]) & (points < high[j])).all(axis=1)]
            if j == k or not len(near):
                continue
            some = near[:: max(1, len(near) // 100)]
            inside = np.array([abs(winding_number(each[j], point)) for point in some])
            outside = len(near) < len(points) or (inside < 0.25).any()
            if (inside > 0.75).any() and outside:
                found.append((k, int(j)))
    return found


def _by_part(surface: Surface, labels: np.ndarray) -> tuple:
    """Corners of each part, and the low and high corners of their boxes, ``(parts, 3)``."""
    corners = surface.corners
    each = [corners[labels == k] for k in range(labels.max() + 1)]
    return each, *(np.array([f(part, axis=(0, 1)) for part in each]) for f in (np.min, np.max))


def winding_number(corners: np.ndarray, point: np.ndarray) -> float:
    """How often triangles wind around a point: their solid angles over 4 pi.

    The solid angle is that of Van Oosterom and Strackee, IEEE Trans. Biomed. Eng. 30 (1983) 125.

    Args:
        corners: ``(n, 3, 3)``.
        point: ``(3,)``.
    """
    a, b, c = (corners - point).swapaxes(0, 1)
    la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
    top = np.einsum("ij,ij->i", np.cross(a, b), c)
    bottom = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return float(np.arctan2(top, bottom).sum() / (2 * np.pi))


def self_intersections(surface: Surface) -> np.ndarray:
    """Pairs of triangles without a common vertex of which an edge of one cuts the other.

    Triangles that overlap within one plane are not found.

    Returns:
        ``(n, 2)`` int64, ascending.
    """
    corners = surface.corners
    found = []
    for i, j in _near_pairs(corners):
        share = (surface.triangles[i][:, :, None] == surface.triangles[j][:, None, :])
        i, j = i[~share.any(axis=(1, 2))], j[~share.any(axis=(1, 2))]
        boxes = ((corners[i].min(1) <= corners[j].max(1))
                 & (corners[j].min(1) <= corners[i].max(1))).all(axis=1)
        i, j = i[boxes], j[boxes]
        cut = _edges_cut(corners[i], corners[j]) | _edges_cut(corners[j], corners[i])
        found.append(np.sort(np.stack([i[cut], j[cut]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _near_pairs(corners: np.ndarray):
    """Yield index arrays (i, j) of all pairs of triangles whose bounding balls meet.

    Triangles are sorted into classes of similar size, so that one large triangle does not make
    the search radius of all.
    """
    centre = corners.mean(axis=1)
    radius = np.linalg.norm(corners - centre[:, None], axis=2).max(axis=1)
    level = np.ceil(np.log2(np.maximum(radius, radius.max() * 1e-9))).astype(int)
    for k in np.unique(level):
        smaller, same = np.flatnonzero(level <= k), np.flatnonzero(level == k)
        tree = cKDTree(centre[smaller])
        for block in np.array_split(same, max(1, len(same) // 4000)):  # bounds the memory
            lists = tree.query_ball_point(centre[block], radius[block] + 2.0**k)
            i = np.repeat(block, [len(x) for x in lists])
            j = smaller[np.fromiter((n for x in lists for n in x), np.int64, len(i))]
            once = (level[j] < k) | (i < j)
            yield i[once], j[once]


def _edges_cut(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether an edge of each first triangle cuts the second one strictly, ``(n,)``."""
    def side(a, b, c, d):
        return np.sign(np.einsum("ij,ij->i", np.cross(b - a, c - a), d - a))

    a, b, c = second.swapaxes(0, 1)
    heights = [side(a, b, c, first[:, k]) for k in range(3)]
    cut = np.zeros(len(first), bool)
    for k in range(3):
        p, q = first[:, k], first[:, (k + 1) % 3]
        across = heights[k] * heights[(k + 1) % 3] < 0
        turns = side(p, q, a, b), side(p, q, b, c), side(p, q, c, a)
        cut |= across & (turns[0] != 0) & (turns[0] == turns[1]) & (turns[1] == turns[2])
    return cut


def _edges(triangles: np.ndarray):
    """The edges of triangles.

    Returns:
        halves: ``(3 Nt, 2)`` directed edges, triangle by triangle.
        pairs: rows of ``halves`` of each edge of exactly two triangles, ``(n, 2)``.
        open_edges: rows of ``halves`` of the edges of one triangle.
        crowded: number of edges of more than two.
    """
    halves = triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    _, edge, counts = np.unique(np.sort(halves, axis=1) @ [triangles.max() + 1, 1],
                                return_inverse=True, return_counts=True)
    order = np.argsort(edge, kind="stable")
    pairs = order[counts[edge[order]] == 2].reshape(-1, 2)
    return halves, pairs, np.flatnonzero(counts[edge] == 1), int((counts > 2).sum())


def _flips(halves: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, int]:
    """Triangles to turn for neighbours to agree, and the number of parts that cannot.

    Each triangle stands in a graph twice, once for each orientation; neighbours link the
    orientations that agree. A part that can be oriented falls into two mirror images, of which
    the one that turns fewer triangles is taken.
    """
    n = len(halves) // 3
    (i, j), starts = pairs.T // 3, halves[pairs, 0]
    against = (starts[:, 0] == starts[:, 1]).astype(np.int64)
    links = np.stack([[i, i + n], [j + n * against, j + n * (1 - against)]], axis=-1)
    labels = components(2 * n, links.reshape(-1, 2))
    kept, turned = labels[:n], labels[n:]
    twisted = len(np.unique(kept[kept == turned]))
    size = np.bincount(kept, minlength=2 * n)
    return (size[kept] < size[turned]) | ((size[kept] == size[turned]) & (kept > turned)), twisted


def _once(triangles: np.ndarray) -> np.ndarray:
    """Rows to keep for each triangle to be there once; two of opposite orientation cancel."""
    sign = np.linalg.det(np.eye(3)[np.argsort(triangles, axis=1)])
    _, group = np.unique(np.sort(triangles, axis=1), axis=0, return_inverse=True)
    net = np.bincount(group.ravel(), sign)[group.ravel()]
    rows = np.flatnonzero(sign * net > 0)  # of the orientation that prevails
    return np.sort(rows[np.unique(group.ravel()[rows], return_index=True)[1]])


def _repeats(triangles: np.ndarray) -> np.ndarray:
    """Whether triangles repeat a vertex, ``(Nt,)``."""
    return (triangles == triangles[:, [1, 2, 0]]).any(axis=1)


def _filled(points: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Close each hole whose rim is a simple loop by triangles to its centre, or by one."""
    halves, _, open_edges, _ = _edges(triangles)
    rim, count = halves[open_edges][:, ::-1], len(points)  # the new triangles run the other way
    labels = components(count, rim)
    once = np.all([np.bincount(ends, minlength=count) == 1 for ends in rim.T], axis=0)
    rim = rim[~np.isin(labels[rim[:, 0]], labels[rim[~once[rim]]])]
    if not len(rim):
        return points, triangles, []
    _, first, hole, sizes = np.unique(labels[rim[:, 0]], return_index=True, return_inverse=True,
                                      return_counts=True)
    centres = np.stack([np.bincount(hole, x) / sizes for x in points[rim[:, 0]].T], axis=1)
    follows = np.zeros(count, np.int64)
    follows[rim[:, 0]] = rim[:, 1]
    small = sizes[hole] == 3
    new = np.column_stack([rim, np.where(small, follows[rim[:, 1]], count + hole)])
    small[first] = False  # of three equal ones one is kept
    return (np.concatenate([points, centres]), np.concatenate([triangles, new[~small]]),
            sizes.tolist())


def _turned_parts(surface: Surface, labels: np.ndarray) -> np.ndarray:
    """Parts whose normals point inwards at even depth, or outwards at odd depth."""
    depth, _ = depths(surface, labels)
    return (part_volumes(surface, labels) < 0) == (depth % 2 == 0)


def flatness(surface: Surface) -> np.ndarray:
    """Height over longest edge of each triangle, ``(Nt,)``: 0 where it has no area."""
    corners = surface.corners
    longest = np.linalg.norm(corners - corners[:, [1, 2, 0]], axis=2).max(axis=1)
    return 2 * surface.areas / np.maximum(longest, np.finfo(float).tiny) ** 2


def _merged(surface: Surface, tolerance: float | None) -> Surface:
    """Merge vertices within ``tolerance`` um (0: equal ones, ``None``: none), drop unused ones."""
    points, triangles = surface.points, surface.triangles
    same = points
    if tolerance:  # no rounding, which would part two that lie on both sides of a step
        same = components(len(points),
                          cKDTree(points).query_pairs(tolerance, output_type="ndarray"))
    if tolerance is not None:
        _, first, group = np.unique(same, axis=0, return_index=True, return_inverse=True)
        triangles = first[group.ravel()][triangles]
    used, numbers = np.unique(triangles, return_inverse=True)
    return Surface(points[used], numbers.reshape(-1, 3), surface.name)


def _parse(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        import trimesh
    except ImportError:
        raise InputError("trimesh is not installed, expected it for surface files: "
                         "pip install 'spinverse[mesh]'") from None
    try:
        mesh = trimesh.load(path, process=False, force="mesh")
        points, triangles = np.asarray(mesh.vertices, float), np.asarray(mesh.faces, np.int64)
    except Exception as error:  # the parser raises whatever the bytes lead to
        raise InputError(f"surface file '{path}': cannot be read as {path.suffix} "
                         f"({one_line(error)[:200]}), expected triangles") from None
    if not len(triangles) or not len(points):
        raise InputError(f"surface file '{path}': holds no triangles, expected some")
    return points, triangles
