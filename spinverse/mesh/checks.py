"""Checks of a simplex mesh, and the facet and volume helpers that they need."""

from __future__ import annotations

from itertools import combinations
from math import factorial
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from spinverse.errors import InputError, warn_caller

if TYPE_CHECKING:
    from spinverse.mesh.data import MeshData

FLAT = 1e-10  # |6 V| / (longest edge)^3 of a tet that counts as flat; a regular one has 0.71
COINCIDENT = 1e-9  # of the box diagonal
ON_FACET = 1e-6  # in barycentric coordinates
_CELLS = {3: "tet", 2: "triangle", 1: "interval"}  # by dimension
QUALITY = 0.05  # radius ratio below which a cell is warned of
SMALLEST, LARGEST = 0.1, 1e5  # um, box diagonals that look like micrometres


class UnitWarning(UserWarning):
    """The mesh's size suggests that its coordinates are not in um."""


class RepairWarning(UserWarning):
    """A reader changed the mesh because the caller asked for a repair."""


def cell_volumes(points: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Signed volumes of ``cells (Nt, d + 1)``, ``(Nt,)`` um^d; of right-handed ones positive.

    Of ``points (Nv, 3)`` the first d coordinates count.
    """
    dim = cells.shape[1] - 1
    edges = (points[cells[:, 1:]] - points[cells[:, :1]])[..., :dim]
    return np.linalg.det(edges) / factorial(dim)


def flat_cells(points: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`cell_volumes`, and which cells are flat beside their longest edge, ``(Nt,)`` bool."""
    volumes, corners, dim = cell_volumes(points, cells), points[cells], cells.shape[1] - 1
    i, j = np.triu_indices(dim + 1, 1)
    longest = np.linalg.norm(corners[:, i] - corners[:, j], axis=2).max(axis=1)
    return volumes, factorial(dim) * np.abs(volumes) <= FLAT * longest**dim


def facets_of(cells: np.ndarray, name: str = "mesh") -> tuple[np.ndarray, np.ndarray]:
    """The facets of a mesh of ``cells (Nt, d + 1)`` and the cells on their two sides.

    Returns:
        facets: ``(Nf, d)`` int64, each row ascending, rows unique in lexicographic order.
        cell_pairs: ``(Nf, 2)`` int64, the lower cell first; -1 for the outside, second.

    Raises:
        InputError: a facet belongs to more than two cells; the line has the mesh's ``name``.
    """
    vertices = np.asarray(cells, dtype=np.int64)
    width = vertices.shape[1]
    ascending = np.sort(vertices, axis=1)
    without = [[j for j in range(width) if j != i] for i in range(width)]
    facets = ascending[:, without].reshape(-1, width - 1)
    cells = np.repeat(np.arange(len(vertices)), width)
    order = np.lexsort((cells, *facets.T[::-1]))
    facets, cells = facets[order], cells[order]
    starts = np.flatnonzero(np.append(True, (facets[1:] != facets[:-1]).any(axis=1))[:len(facets)])
    counts = np.diff(np.append(starts, len(facets)))
    if (counts > 2).any():
        first = counts.argmax()
        raise InputError(f"mesh '{name}': facet {_triple(facets[starts[first]])} belongs to "
                         f"{counts[first]} {_CELLS[width - 1]}s, expected at most 2")
    pairs = np.full((len(starts), 2), -1, dtype=np.int64)
    pairs[:, 0] = cells[starts]
    pairs[counts == 2, 1] = cells[starts[counts == 2] + 1]
    return facets[starts], pairs


def find_facets(facets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Place of each of ``rows (n, d)`` in the ``facets (Nf, d)`` of :func:`facets_of`, or -1.

    Vertices may be in any order within a row.
    """
    width = np.shape(facets)[1]
    rows = np.sort(np.asarray(rows, dtype=np.int64).reshape(-1, width), axis=1)
    if not len(facets) or not len(rows):
        return np.full(len(rows), -1, dtype=np.int64)
    base = max(facets.max(), rows.max()) + 1
    code, wanted = facets[:, 0], rows[:, 0]
    for column in range(1, width):
        # in steps, as base**3 would overflow int64 from two million vertices on
        prefixes = np.unique(code)
        place = np.minimum(np.searchsorted(prefixes, wanted), len(prefixes) - 1)
        unknown = prefixes[place] != wanted
        code = np.searchsorted(prefixes, code) * base + facets[:, column]
        wanted = np.where(unknown | (rows[:, column] < 0), -1, place * base + rows[:, column])
    place = np.minimum(np.searchsorted(code, wanted), len(code) - 1)
    return np.where(code[place] == wanted, place, -1)


def quality(data: MeshData) -> np.ndarray:
    """Radius ratio d r_in / r_circ of each cell, ``(Nt,)``: 1 regular, 0 flat (intervals: 1)."""
    parts = np.array_split(data.cells, len(data.cells) // 100000 + 1)  # bounds the memory
    return np.concatenate([radius_ratios(data.points, part) for part in parts])


def radius_ratios(points: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """`quality` of cells ``(Nt, d + 1)`` with vertices ``(Nv, 3)``."""
    corners, dim = points[cells], cells.shape[1] - 1
    tiny = np.finfo(float).tiny
    if dim == 1:
        return np.ones(len(corners))
    if dim == 2:
        a, b, c = (np.linalg.norm(corners[:, i] - corners[:, i - 1], axis=1) for i in range(3))
        # r_in = area / s, r_circ = a b c / (4 area), s half the perimeter
        area = np.abs(cell_volumes(points, cells))
        return 16 * area**2 / np.maximum((a + b + c) * a * b * c, tiny)
    a, b, c = (corners[:, i] - corners[:, 0] for i in (1, 2, 3))
    ab, bc, ca = np.cross(a, b), np.cross(b, c), np.cross(c, a)
    six_v = np.abs(np.einsum("ij,ij->i", ab, c))
    doubled_areas = sum(np.linalg.norm(n, axis=1) for n in (ab, bc, ca, ab + bc + ca))
    # r_in = 3 V / areas; r_circ = |a^2 (b x c) + b^2 (c x a) + c^2 (a x b)| / (12 V)
    squares = [np.einsum("ij,ij->i", x, x)[:, None] for x in (a, b, c)]
    moment = np.linalg.norm(squares[0] * bc + squares[1] * ca + squares[2] * ab, axis=1)
    return 6 * six_v**2 / np.maximum(doubled_areas * moment, tiny)


def check_mesh(data: MeshData) -> None:
    """Raise on the first defect of a mesh.

    Raises:
        InputError: in one line, in this order: no cells; points not finite, or off the plane or
            axis; vertex numbers out of range; a cell with repeated vertices; duplicated cells;
            flat cells (``|d! V|`` at most 1e-10 of the d-th power of the cell's longest edge);
            inverted cells; vertices of no cell; coincident vertices (1e-9 of the box diagonal); a
            facet of more than two cells; hanging nodes and mismatched diagonals on the boundary;
            cells that overlap; interface facets that are no facets, or given twice.

    Warns:
        UserWarning: a radius ratio is below 0.05.
        UnitWarning: the box diagonal is below 0.1 um or above 1e5 um.
    """
    where = f"mesh '{data.name}'"
    diagonal = _check_arrays(data, where)
    _check_cells(data, where)
    _check_vertices(data, where, diagonal)
    facets, pairs = facets_of(data.cells, data.name)
    _check_sides(data, facets, pairs, where)
    _check_boundary(data, facets[pairs[:, 1] < 0], where)
    _check_interface(data, facets, where)
    ratios = quality(data)
    if (flat := np.count_nonzero(ratios < QUALITY)):
        warn_caller(f"{where}: {flat} of {len(ratios)} {_CELLS[data.dim]}s are nearly flat, the "
                    f"lowest radius ratio is {ratios.min():.2g} (1: regular), expected "
                    f"{QUALITY:g} at least: signals lose accuracy and solvers time there (try "
                    "another size, or the mesher's optimisation)")
    warn_of_units(where, diagonal, "mesh in metres or millimetres?")


def warn_of_units(where: str, diagonal: float, hint: str) -> None:
    if not SMALLEST <= diagonal <= LARGEST:
        warn_caller(f"{where}: box diagonal is {diagonal:.3g} um, expected {SMALLEST:g} to "
                    f"{LARGEST:g} um ({hint})", UnitWarning)


def _check_arrays(data: MeshData, where: str) -> float:
    points, cells = data.points, data.cells
    if not len(cells):
        raise InputError(f"{where}: holds no tetrahedra, expected at least one")
    bad = ~np.isfinite(points).all(axis=1)
    for first in np.flatnonzero(bad)[:1]:
        raise InputError(f"{where}: point {first} is {_vector(points[first])} "
                         f"({bad.sum()} such), expected finite coordinates")
    off = np.abs(points[:, data.dim:]).max(axis=1, initial=0.0)
    if off.any():
        first = off.argmax()
        raise InputError(f"{where}: point {first} is {_vector(points[first])}, expected "
                         f"{'z = 0' if data.dim == 2 else 'y = z = 0'} in a mesh of "
                         f"{_CELLS[data.dim]}s")
    for key, rows in ((_CELLS[data.dim], cells), ("interface facet", data.interface_facets)):
        bad = ((rows < 0) | (rows >= len(points))).any(axis=1)
        for first in np.flatnonzero(bad)[:1]:
            raise InputError(f"{where}: {key} {first} has vertices {_triple(rows[first])} "
                             f"({bad.sum()} such), expected 0 to {len(points) - 1}")
    return float(np.linalg.norm(np.ptp(points, axis=0)))


def _check_cells(data: MeshData, where: str) -> None:
    cells, kind, dim = data.cells, _CELLS[data.dim], data.dim
    ascending = np.sort(cells, axis=1)
    bad = (ascending[:, 1:] == ascending[:, :-1]).any(axis=1)
    for first in np.flatnonzero(bad)[:1]:
        raise InputError(f"{where}: {kind} {first} repeats a vertex, {_triple(cells[first])} "
                         f"({bad.sum()} such), expected {dim + 1} different ones")
    twins = _first_twins(ascending)
    if twins:
        raise InputError(f"{where}: {kind} {twins[1]} duplicates {kind} {twins[0]} "
                         f"{_triple(ascending[twins[0]])}, expected each once")
    volumes, bad = flat_cells(data.points, cells)
    for first in np.flatnonzero(bad)[:1]:
        raise InputError(f"{where}: {bad.sum()} of {len(cells)} {kind}s have no volume, first "
                         f"{kind} {first} with {volumes[first]:.3g} um^{dim}, "
                         f"expected {factorial(dim)} V > {FLAT:g} of its longest edge to the "
                         f"power {dim}")
    bad = volumes < 0
    for first in np.flatnonzero(bad)[:1]:
        raise InputError(f"{where}: {bad.sum()} of {len(cells)} {kind}s are inverted, first {kind} "
                         f"{first} with volume {volumes[first]:.6g} um^{dim}, expected positive "
                         "orientation (read with repair=True swaps two vertices)")


def _check_vertices(data: MeshData, where: str, diagonal: float) -> None:
    used = np.zeros(len(data.points), bool)
    used[data.cells] = True
    if not used.all():
        first = used.argmin()
        raise InputError(f"{where}: {(~used).sum()} of {len(used)} vertices belong to no cell, "
                         f"first vertex {first}, expected none (read with repair=True drops "
                         "them)")
    pairs = cKDTree(data.points).query_pairs(COINCIDENT * diagonal, output_type="ndarray")
    if len(pairs):
        i, j = min(map(tuple, np.sort(pairs, axis=1).tolist()))
        raise InputError(f"{where}: vertices {i} and {j} coincide at {_vector(data.points[i])} "
                         f"({len(pairs)} pairs), expected at least {COINCIDENT * diagonal:.3g} "
                         "um between vertices")


def near(corners: np.ndarray, places: np.ndarray, reach: float = 1.0):
    """Yield arrays i, j: the place is within ``reach`` radii of the middle of ``corners[i]``.

    The radius is that of the ball about the middle of the corners ``(m, 3)`` that holds them.
    """
    tree, middle = cKDTree(places), corners.mean(axis=1)
    radius = np.linalg.norm(corners - middle[:, None], axis=2).max(axis=1) * (1 + ON_FACET) * reach
    size = np.frexp(radius)[1]  # by powers of two, that a large one does not widen the search
    for power in np.unique(size):
        rows = np.flatnonzero(size == power)
        for part in np.array_split(rows, len(rows) // 20000 + 1):  # bounds the memory
            pairs = cKDTree(middle[part]).sparse_distance_matrix(
                tree, 2.0**power, output_type="ndarray")
            i = part[pairs["i"]]
            held = pairs["v"] <= radius[i]
            yield i[held], pairs["j"][held]


def places_in_cells(points: np.ndarray, cells: np.ndarray, places: np.ndarray,
                    margin: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triples (cell, place, weights) where one of ``places (n, 3)`` um is in a cell, not flat.

    All barycentric coordinates, the weights ``(d + 1,)``, exceed the margin.
    """
    dim = cells.shape[1] - 1
    found: list[tuple] = [(*np.empty((2, 0), np.int64), np.empty((0, dim + 1)))]
    for cell, place in near(points[cells], places):
        hit, which = np.unique(cell, return_inverse=True)
        corners = points[cells[hit]][..., :dim]
        inverse = np.linalg.inv(corners[:, 1:] - corners[:, :1])
        offset = places[place, :dim] - corners[which, 0]
        weights = np.einsum("ni,nij->nj", offset, inverse[which])
        weights = np.column_stack([1 - weights.sum(axis=1), weights])
        inside = weights.min(axis=1) > margin
        found.append((cell[inside], place[inside], weights[inside]))
    holders, held, shares = (np.concatenate(x) for x in zip(*found, strict=True))
    return holders, held, shares


def _check_sides(data: MeshData, facets: np.ndarray, pairs: np.ndarray, where: str) -> None:
    """Neighbours lie on the two sides of their facet."""
    cells, inner, kind = data.cells, pairs[:, 1] >= 0, _CELLS[data.dim]
    opposite = cells[pairs[inner]].sum(axis=2) - facets[inner].sum(axis=1)[:, None]
    # the facet as the boundary of either: even or odd permutations of its ascending vertices
    odd = np.sum([cells[:, i] > cells[:, j] for i, j in combinations(range(data.dim + 1), 2)],
                 axis=0)
    side = [(odd[pairs[inner, k]] + (facets[inner] < opposite[:, k:k + 1]).sum(axis=1)) % 2
            for k in (0, 1)]
    bad = side[0] == side[1]
    for first in np.flatnonzero(bad)[:1]:
        i, j = pairs[inner][first]
        raise InputError(f"{where}: {kind}s {i} and {j} overlap, on the same side of their facet "
                         f"{_triple(facets[inner][first])} ({bad.sum()} such), expected one on "
                         "each side")


def _check_boundary(data: MeshData, boundary: np.ndarray, where: str) -> None:
    """Nothing of the boundary may lie in or on a cell but on its own ones.

    Vertices, and middles of edges and facets, are looked at: where two sides split a quadrilateral
    along different diagonals no vertex gives it away. The number of cells that a point is in
    changes at the boundary only, so nowhere else can cells overlap.
    """
    points, cells, dim, kind = data.points, data.cells, data.dim, _CELLS[data.dim]
    rows = [np.unique(np.concatenate([boundary[:, list(chosen)] for chosen in
                                      combinations(range(dim), count)]), axis=0)
            for count in range(1, dim + 1)]
    places = np.concatenate([points[row].mean(axis=1) for row in rows])
    holders, held, weights = places_in_cells(points, cells, places, -ON_FACET)
    for k, row in ((0, rows[0]), (dim - 1, rows[-1])) if dim > 1 else ():
        # on a cell's facet, and of no facet of the cell
        place = held - sum(map(len, rows[:k]))
        on = np.flatnonzero((place >= 0) & (place < len(row)) & (weights.min(axis=1) < ON_FACET))
        own = (row[place[on]][:, :, None] == cells[holders[on]][:, None]).any(axis=2).all(axis=1)
        on = on[~own]
        if not len(on):
            continue
        first = on[np.lexsort((holders[on], place[on]))[0]]
        facet = _triple(np.sort(np.delete(cells[holders[first]], weights[first].argmin())))
        other = row[place[first]]
        raise InputError(f"{where}: " + (
            f"vertex {other[0]} lies on boundary facet {facet} ({len(on)} such), expected a "
            "conforming mesh without hanging nodes" if k == 0 else
            f"boundary facets {_triple(other)} and {facet} overlap ({len(on)} such), expected a "
            "conforming mesh"))
    inside = np.flatnonzero(weights.min(axis=1) > ON_FACET)
    for first in inside[np.argsort(holders[inside], kind="stable")][:1]:
        raise InputError(f"{where}: cells overlap: {kind} {holders[first]} holds "
                         f"{_vector(places[held[first]])} of the boundary of others "
                         f"({len(np.unique(holders[inside]))} such {kind}s), expected cells that "
                         "share no more than facets (in gmsh: fragment the volumes before meshing)")


def _check_interface(data: MeshData, facets: np.ndarray, where: str) -> None:
    triples = data.interface_facets
    bad = find_facets(facets, triples) < 0
    for first in np.flatnonzero(bad)[:1]:
        raise InputError(f"{where}: interface facet {first} {_triple(triples[first])} is no "
                         f"facet of the mesh ({bad.sum()} such), expected the vertices of one")
    twins = _first_twins(triples)
    if twins:
        raise InputError(f"{where}: interface facet {twins[1]} duplicates interface facet "
                         f"{twins[0]} {_triple(triples[twins[0]])}, expected each facet once")


def _first_twins(rows: np.ndarray) -> tuple[int, int] | None:
    """The first two equal rows, lower index first, or ``None``."""
    order = np.lexsort(rows.T[::-1])
    same = np.flatnonzero((rows[order[1:]] == rows[order[:-1]]).all(axis=1))
    return min(((int(order[k]), int(order[k + 1])) for k in same), default=None)


def _triple(row: np.ndarray) -> str:
    return "(" + ", ".join(str(int(v)) for v in row) + ")"


def _vector(row: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in row) + ") um"
