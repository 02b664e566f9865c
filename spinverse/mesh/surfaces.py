"""Closed triangle surfaces: cell membranes as files give them, and what is wrong with them.

trimesh parses files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from spinverse.errors import InputError, one_line
from spinverse.mesh.arguments import array, positive
from spinverse.mesh.checks import near, warn_of_units
from spinverse.mesh.connected import components

SUFFIXES = (".stl", ".ply", ".off", ".obj", ".swc")
FLAT = 1e-7  # height over longest edge of a triangle that counts as flat


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles that bound cells; normals point out of the cell, and into its cavities.

    Attributes:
        points: ``(Nv, 3)`` float64, um.
        triangles: vertices of each triangle, ``(Nt, 3)`` int64.
        name: for messages.

    Raises:
        InputError: no triangles, a wrong shape or type, points that are not finite or not there.
    """

    points: np.ndarray
    triangles: np.ndarray
    name: str = "surface"

    def __post_init__(self):
        where = f"surface '{self.name}'"
        points = array(where, "points", self.points, (None, 3), np.float64)
        triangles = array(where, "triangles", self.triangles, (None, 3), np.int64)
        if not len(triangles):
            raise InputError(f"{where}: holds no triangles, expected some")
        bad = ~np.isfinite(points).all(axis=1)
        if bad.any():
            raise InputError(f"{where}: point {bad.argmax()} is not finite ({bad.sum()} such), "
                             "expected finite coordinates")
        bad = ((triangles < 0) | (triangles >= len(points))).any(axis=1)
        if bad.any():
            raise InputError(f"{where}: triangle {bad.argmax()} has vertex numbers out of range "
                             f"({bad.sum()} such), expected 0 to {len(points) - 1}")
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "triangles", triangles)

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
    def lengths(self) -> np.ndarray:
        """Of the edges of each triangle, ``(Nt, 3)`` um."""
        return np.linalg.norm(self.corners - self.corners[:, [1, 2, 0]], axis=2)

    @property
    def edge_length(self) -> float:
        """Median length of the triangles' edges, um."""
        return float(np.median(self.lengths))

    @property
    def flatness(self) -> np.ndarray:
        """Height over longest edge of each triangle, ``(Nt,)``: 0 where it has no area."""
        return 2 * self.areas / np.maximum(self.lengths.max(axis=1), np.finfo(float).tiny) ** 2


def read_surface(path: str | Path, repair: bool = False, scale: float = 1.0) -> Surface:
    """Read a triangle surface and check it.

    Formats are ``.stl``, ``.ply`` (text or binary), ``.off`` and ``.obj``; polygons are split
    into triangles. Equal vertices are merged in ``.stl``, which repeats them for each triangle,
    and elsewhere where the surface is not closed without. The surface of a ``.swc`` is that of
    :func:`morphology.neuron_surface`.

    Args:
        repair: repair what can be (see :func:`.repair.repair_with_defects`) instead of refusing.
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
        from .repair import repair_with_defects

        return repair_with_defects(surface)[0]
    if found := defects(surface):
        raise InputError(f"surface '{surface.name}': {'; '.join(found)}; expected a closed "
                         "surface with outward normals (repair=True repairs what can be)")
    return surface


def load_surface(path: str | Path, scale: float = 1.0) -> Surface:
    """:func:`read_surface` without the check of the surface."""
    path = Path(path)
    where, suffix = f"surface file '{path}'", path.suffix.lower()
    scale = positive(where, "scale", scale)
    if suffix not in SUFFIXES:
        raise InputError(f"{where}: suffix is '{path.suffix}', expected one of "
                         + ", ".join(SUFFIXES))
    if not path.is_file():
        raise InputError(f"{where}: no such file, expected a surface")
    if suffix == ".swc":
        from .morphology import neuron_surface

        return neuron_surface(path, scale=scale)
    try:
        import trimesh
    except ImportError:
        raise InputError("trimesh is not installed, expected it for surface files: "
                         "pip install 'spinverse[mesh]'") from None
    try:
        mesh = trimesh.load(path, process=False, force="mesh")
        points, triangles = np.asarray(mesh.vertices, float), np.asarray(mesh.faces, np.int64)
    except Exception as error:  # the parser raises whatever the bytes lead to
        raise InputError(f"{where}: cannot be read as {path.suffix} "
                         f"({one_line(error)[:200]}), expected triangles") from None
    surface = Surface(points * scale, triangles, path.name)
    if suffix == ".stl" or len(edges_of(surface.triangles)[2]):
        surface = merged(surface, 0.0)
    warn_of_units(f"surface '{surface.name}'", surface.diagonal, "scale=1e-3 for nanometres")
    return surface


def defects(surface: Surface, intersections: bool = True) -> list[str]:
    """What keeps the surface from bounding a volume, in words; cuts only with ``intersections``."""
    triangles = surface.triangles
    repeated = repeats(triangles)
    halves, pairs, open_edges, crowded = edges_of(triangles)
    turned, twisted = flips(halves, pairs)
    counts = {
        "triangles repeat a vertex": repeated.sum(),
        "triangles are given twice":
            len(triangles) - len(np.unique(np.sort(triangles, axis=1), axis=0)),
        "triangles have no area": ((surface.flatness <= FLAT) & ~repeated).sum(),
        "edges belong to one triangle only (holes)": len(open_edges),
        "edges belong to more than two triangles": crowded,
        "parts cannot be oriented": twisted,
        "triangles are oriented against their neighbours": 0 if twisted else turned.sum()}
    if not any(counts.values()):
        counts["parts have normals that point the wrong way"] = outward(surface)[1]
    found = [f"{count} {text}" for text, count in counts.items() if count]
    if intersections:
        cuts = self_intersections(surface)
        if len(cuts):
            found.append(f"{len(cuts)} pairs of triangles cut each other, first "
                         f"{cuts[0, 0]} and {cuts[0, 1]}")
        # edges that pass exactly through edges are no cuts, as where mirror images meet
        elif not found and (crossed := _half_in_each_other(surface)):
            found.append(f"{crossed} pairs of parts lie half in each other")
    return found


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
    """How many others enclose each of the :func:`parts`, and the innermost of them (-1: none).

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


def _half_in_each_other(surface: Surface) -> int:
    """Number of pairs of parts of which the first has vertices inside and outside the second."""
    each, low, high = _by_part(surface, parts(surface))
    found = 0
    for k, part in enumerate(each):
        points = np.unique(part.reshape(-1, 3), axis=0)
        for j in np.flatnonzero((low < high[k]).all(1) & (high > low[k]).all(1)):
            near_it = points[((points > low[j]) & (points < high[j])).all(axis=1)]
            if j == k or not len(near_it):
                continue
            some = near_it[:: max(1, len(near_it) // 100)]
            inside = np.array([abs(winding_number(each[j], point)) for point in some])
            outside = len(near_it) < len(points) or (inside < 0.25).any()
            found += bool((inside > 0.75).any() and outside)
    return found


def _by_part(surface: Surface, labels: np.ndarray) -> tuple:
    """Corners of each part, and the low and high corners of their boxes, ``(parts, 3)``."""
    corners = surface.corners
    each = [corners[labels == k] for k in range(labels.max() + 1)]
    return each, *(np.array([f(part, axis=(0, 1)) for part in each]) for f in (np.min, np.max))


def winding_number(corners: np.ndarray, point: np.ndarray) -> float:
    """How often triangles of ``corners (n, 3, 3)`` wind around a ``point (3,)``.

    Solid angles over 4 pi: Van Oosterom and Strackee, IEEE Trans. Biomed. Eng. 30 (1983) 125.
    """
    a, b, c = (corners - point).swapaxes(0, 1)
    la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
    top = np.einsum("ij,ij->i", np.cross(a, b), c)
    bottom = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return float(np.arctan2(top, bottom).sum() / (2 * np.pi))


def self_intersections(surface: Surface) -> np.ndarray:
    """Pairs of triangles without a common vertex of which an edge of one cuts the other.

    Ascending, ``(n, 2)`` int64. Triangles that overlap within one plane are not found.
    """
    corners, found = surface.corners, []
    # the larger of two that meet has the other's middle within twice its radius
    for i, j in near(corners, corners.mean(axis=1), 2.0):
        boxes = ((corners[i].min(1) <= corners[j].max(1))
                 & (corners[j].min(1) <= corners[i].max(1))).all(axis=1)
        i, j = i[boxes], j[boxes]
        share = (surface.triangles[i][:, :, None] == surface.triangles[j][:, None, :])
        i, j = i[~share.any(axis=(1, 2))], j[~share.any(axis=(1, 2))]
        cut = _edges_cut(corners[i], corners[j]) | _edges_cut(corners[j], corners[i])
        found.append(np.sort(np.stack([i[cut], j[cut]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _edges_cut(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether an edge of each first triangle cuts the second one strictly, ``(n,)``."""
    def side(a, b, c, d):
        return np.sign(np.einsum("ij,ij->i", np.cross(b - a, c - a), d - a))

    a, b, c = second.swapaxes(0, 1)
    heights = [side(a, b, c, first[:, k]) for k in range(3)]
    cut = np.zeros(len(first), bool)
    for k in range(3):
        p, q = first[:, k], first[:, (k + 1) % 3]
        turns = side(p, q, a, b) + side(p, q, b, c) + side(p, q, c, a)
        cut |= (heights[k] * heights[(k + 1) % 3] < 0) & (np.abs(turns) == 3)
    return cut


def edges_of(triangles: np.ndarray):
    """The directed edges ``(3 Nt, 2)``, triangle by triangle, and how they belong together.

    Then the two rows of them for each edge of exactly two triangles, ``(n, 2)``, the row of each
    edge of one triangle, and the number of edges of more than two.
    """
    halves = triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    _, edge, counts = np.unique(np.sort(halves, axis=1) @ [triangles.max() + 1, 1],
                                return_inverse=True, return_counts=True)
    order = np.argsort(edge, kind="stable")
    pairs = order[counts[edge[order]] == 2].reshape(-1, 2)
    return halves, pairs, np.flatnonzero(counts[edge] == 1), int((counts > 2).sum())


def flips(halves: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, int]:
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


def repeats(triangles: np.ndarray) -> np.ndarray:
    """Whether triangles repeat a vertex, ``(Nt,)``."""
    return (triangles == triangles[:, [1, 2, 0]]).any(axis=1)


def outward(surface: Surface) -> tuple[Surface, int]:
    """The surface with parts turned whose normals point the wrong way, and how many they are."""
    labels = parts(surface)
    inward = part_volumes(surface, labels) < 0
    wrong = inward == (depths(surface, labels)[0] % 2 == 0)
    turned = np.where(wrong[labels][:, None], surface.triangles[:, ::-1], surface.triangles)
    return replace(surface, triangles=turned), int(wrong.sum())


def merged(surface: Surface, tolerance: float | None) -> Surface:
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
