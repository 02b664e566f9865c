"""Checks of a tetrahedral mesh, and the facet and volume helpers they stand on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from spinverse.errors import InputError

if TYPE_CHECKING:
    from spinverse.mesh.data import MeshData

FLAT = 1e-10  # |6 V| / (longest edge)^3 of a tet that counts as flat; a regular one has 0.71
COINCIDENT = 1e-9  # of the box diagonal
ON_FACET = 1e-6  # of the facet's longest edge, and in barycentric coordinates
SMALLEST, LARGEST = 0.1, 1e5  # um, box diagonals that look like micrometres


class UnitWarning(UserWarning):
    """The mesh's size suggests that its coordinates are not in um."""


class RepairWarning(UserWarning):
    """A reader changed the mesh because the caller asked for a repair."""


def tet_volumes(points: np.ndarray, tets: np.ndarray) -> np.ndarray:
    """Signed volumes, ``(Nt,)`` um^3; positive where vertices 0, 1, 2, 3 are right-handed."""
    a, b, c = (points[tets[:, i]] - points[tets[:, 0]] for i in (1, 2, 3))
    return np.einsum("ij,ij->i", np.cross(a, b), c) / 6


def facets_of(tets: np.ndarray, name: str = "mesh") -> tuple[np.ndarray, np.ndarray]:
    """The facets of a mesh and the cells on their two sides.

    Args:
        tets: vertices of each tetrahedron, ``(Nt, 4)``.
        name: of the mesh, for the message.

    Returns:
        facets: ``(Nf, 3)`` int64, each row ascending, rows unique in lexicographic order.
        cell_pairs: ``(Nf, 2)`` int64, the lower cell first; -1 for the outside, second.

    Raises:
        InputError: a facet belongs to more than two tets.
    """
    tets = np.asarray(tets, dtype=np.int64)
    ascending = np.sort(tets, axis=1)
    triples = ascending[:, [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]].reshape(-1, 3)
    cells = np.repeat(np.arange(len(tets)), 4)
    order = np.lexsort((cells, triples[:, 2], triples[:, 1], triples[:, 0]))
    triples, cells = triples[order], cells[order]
    new = np.ones(len(triples), bool)
    new[1:] = (triples[1:] != triples[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    counts = np.diff(np.append(starts, len(triples)))
    if (counts > 2).any():
        first = counts.argmax()
        raise InputError(f"mesh '{name}': facet {_triple(triples[starts[first]])} belongs to "
                         f"{counts[first]} tets, expected at most 2")
    pairs = np.full((len(starts), 2), -1, dtype=np.int64)
    pairs[:, 0] = cells[starts]
    pairs[counts == 2, 1] = cells[starts[counts == 2] + 1]
    return triples[starts], pairs


def find_facets(facets: np.ndarray, triples: np.ndarray) -> np.ndarray:
    """Row of each triple in the unique ascending ``facets`` of :func:`facets_of`, or -1.

    Args:
        facets: ``(Nf, 3)``.
        triples: ``(n, 3)``, any order within a row.
    """
    triples = np.sort(np.asarray(triples, dtype=np.int64).reshape(-1, 3), axis=1)
    if not len(facets) or not len(triples):
        return np.full(len(triples), -1, dtype=np.int64)
    base = max(facets.max(), triples.max()) + 1
    # two steps, as base**3 would overflow int64 from two million vertices on
    pair_code = facets[:, 0] * base + facets[:, 1]
    pairs = np.unique(pair_code)
    codes = np.searchsorted(pairs, pair_code) * base + facets[:, 2]
    wanted_pair = triples[:, 0] * base + triples[:, 1]
    row = np.minimum(np.searchsorted(pairs, wanted_pair), len(pairs) - 1)
    wanted = row * base + triples[:, 2]
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    found = (pairs[row] == wanted_pair) & (codes[place] == wanted) & (triples[:, 0] >= 0)
    return np.where(found, place, -1)


def quality(data: MeshData) -> np.ndarray:
    """Radius ratio 3 r_in / r_circ of each tet, ``(Nt,)``: 1 regular, 0 flat."""
    p0 = data.points[data.tets[:, 0]]
    a, b, c = (data.points[data.tets[:, i]] - p0 for i in (1, 2, 3))
    ab, bc, ca = np.cross(a, b), np.cross(b, c), np.cross(c, a)
    six_v = np.abs(np.einsum("ij,ij->i", ab, c))
    doubled_areas = sum(np.linalg.norm(n, axis=1) for n in (ab, bc, ca, ab + bc + ca))
    # r_in = 3 V / areas; r_circ = |a^2 (b x c) + b^2 (c x a) + c^2 (a x b)| / (12 V)
    squares = [np.einsum("ij,ij->i", x, x)[:, None] for x in (a, b, c)]
    moment = np.linalg.norm(squares[0] * bc + squares[1] * ca + squares[2] * ab, axis=1)
    return 6 * six_v**2 / np.maximum(doubled_areas * moment, np.finfo(float).tiny)


def check_mesh(data: MeshData) -> None:
    """Raise on the first defect of a mesh.

    In this order: no tets; points not finite; vertex numbers out of range; a tet with
    repeated vertices; duplicated tets; flat tets (``|6 V|`` at most 1e-10 of the cube of the
    tet's own longest edge, so the test knows no unit and no mesh size); no volume; inverted
    tets; vertices of no tet; coincident vertices (1e-9 of the box diagonal); a facet of more
    than two tets; hanging nodes and mismatched diagonals on the boundary; interface facets
    that are no facets, or given twice.

    Raises:
        InputError: in one line, with the mesh's name, the entity and what was expected.

    Warns:
        UnitWarning: the box diagonal is below 0.1 um or above 1e5 um.
    """
    where = f"mesh '{data.name}'"
    diagonal = _check_arrays(data, where)
    _check_tets(data, where)
    _check_vertices(data, where, diagonal)
    facets, pairs = facets_of(data.tets, data.name)
    _check_boundary(data.points, facets[pairs[:, 1] < 0], where)
    _check_interface(data, facets, where)
    if not SMALLEST <= diagonal <= LARGEST:
        warnings.warn(f"{where}: box diagonal is {diagonal:.3g} um, expected "
                      f"{SMALLEST:g} to {LARGEST:g} um (mesh in metres or millimetres?)",
                      UnitWarning, stacklevel=3)


def _check_arrays(data: MeshData, where: str) -> float:
    points, tets = data.points, data.tets
    if not len(tets):
        raise InputError(f"{where}: holds no tetrahedra, expected at least one")
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        first = bad.argmax()
        raise InputError(f"{where}: point {first} is {_vector(points[first])} "
                         f"({bad.sum()} such), expected finite coordinates")
    for key, rows in (("tet", tets), ("interface facet", data.interface_facets)):
        bad = ((rows < 0) | (rows >= len(points))).any(axis=1)
        if bad.any():
            first = bad.argmax()
            raise InputError(f"{where}: {key} {first} has vertices {_triple(rows[first])} "
                             f"({bad.sum()} such), expected 0 to {len(points) - 1}")
    return float(np.linalg.norm(np.ptp(points, axis=0)))


def _check_tets(data: MeshData, where: str) -> None:
    tets = data.tets
    ascending = np.sort(tets, axis=1)
    bad = (ascending[:, 1:] == ascending[:, :-1]).any(axis=1)
    if bad.any():
        first = bad.argmax()
        raise InputError(f"{where}: tet {first} repeats a vertex, {_triple(tets[first])} "
                         f"({bad.sum()} such), expected four different ones")
    twins = _first_twins(ascending)
    if twins:
        raise InputError(f"{where}: tet {twins[1]} duplicates tet {twins[0]} "
                         f"{_triple(ascending[twins[0]])}, expected each tet once")
    volumes = tet_volumes(data.points, tets)
    corners = data.points[tets]
    i, j = np.triu_indices(4, 1)
    longest = np.linalg.norm(corners[:, i] - corners[:, j], axis=2).max(axis=1)
    bad = 6 * np.abs(volumes) <= FLAT * longest**3
    if bad.any():
        first = bad.argmax()
        raise InputError(f"{where}: {bad.sum()} of {len(tets)} tets have no volume, first tet "
                         f"{first} with {volumes[first]:.3g} um^3, expected 6 V > {FLAT:g} of "
                         "its longest edge cubed")
    if not np.abs(volumes).sum() > 0:
        raise InputError(f"{where}: total volume is 0 um^3, expected a positive one")
    bad = volumes < 0
    if bad.any():
        first = bad.argmax()
        raise InputError(f"{where}: {bad.sum()} of {len(tets)} tets are inverted, first tet "
                         f"{first} with volume {volumes[first]:.6g} um^3, expected positive "
                         "orientation (read with repair=True swaps two vertices)")


def _check_vertices(data: MeshData, where: str, diagonal: float) -> None:
    used = np.zeros(len(data.points), bool)
    used[data.tets] = True
    if not used.all():
        first = used.argmin()
        raise InputError(f"{where}: {(~used).sum()} of {len(used)} vertices belong to no tet, "
                         f"first vertex {first}, expected none (read with repair=True drops "
                         "them)")
    pairs = cKDTree(data.points).query_pairs(COINCIDENT * diagonal, output_type="ndarray")
    if len(pairs):
        i, j = min(map(tuple, np.sort(pairs, axis=1).tolist()))
        raise InputError(f"{where}: vertices {i} and {j} coincide at {_vector(data.points[i])} "
                         f"({len(pairs)} pairs), expected at least {COINCIDENT * diagonal:.3g} "
                         "um between vertices")


def _check_boundary(points: np.ndarray, boundary: np.ndarray, where: str) -> None:
    """Nothing of the mesh may lie on a boundary facet except its own vertices.

    Centroids of the other boundary facets are tried besides the vertices: where two sides
    split the same quadrilateral along different diagonals no vertex gives it away.
    """
    corners = points[boundary]
    centroids = corners.mean(axis=1)
    facet, vertex = _on_facets(corners, points)
    other = (boundary[facet] != vertex[:, None]).all(axis=1)
    if other.any():
        first = np.lexsort((facet[other], vertex[other]))[0]
        f, v = facet[other][first], vertex[other][first]
        raise InputError(f"{where}: vertex {v} lies on boundary facet {_triple(boundary[f])} "
                         f"({other.sum()} such), expected a conforming mesh without hanging "
                         "nodes")
    facet, twin = _on_facets(corners, centroids)
    other = facet != twin
    if other.any():
        f, g = facet[other][0], twin[other][0]
        raise InputError(f"{where}: boundary facets {_triple(boundary[f])} and "
                         f"{_triple(boundary[g])} overlap ({other.sum()} such), expected a "
                         "conforming mesh")


def _on_facets(corners: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (facet, candidate) with the candidate point in the closed facet."""
    tree = cKDTree(candidates)
    found = []
    for start in range(0, len(corners), 20000):  # bounds the memory
        part = corners[start:start + 20000]
        middle = part.mean(axis=1)
        radius = np.linalg.norm(part - middle[:, None], axis=2).max(axis=1) * (1 + ON_FACET)
        lists = tree.query_ball_point(middle, radius)
        facet = np.repeat(np.arange(len(part)), [len(x) for x in lists])
        candidate = np.fromiter((i for x in lists for i in x), np.int64, len(facet))
        a, b, c = (part[facet, i] for i in range(3))
        p = candidates[candidate] - a
        u, v = b - a, c - a
        normal = np.cross(u, v)
        square = np.einsum("ij,ij->i", normal, normal)
        height = np.abs(np.einsum("ij,ij->i", normal, p)) / np.sqrt(square)
        beta = np.einsum("ij,ij->i", np.cross(p, v), normal) / square
        gamma = np.einsum("ij,ij->i", np.cross(u, p), normal) / square
        longest = np.sqrt(np.max([(x * x).sum(axis=1) for x in (u, v, u - v)], axis=0))
        inside = np.minimum(np.minimum(beta, gamma), 1 - beta - gamma) > -ON_FACET
        on = inside & (height < ON_FACET * longest)
        found.append((facet[on] + start, candidate[on]))
    return tuple(np.concatenate(x) for x in zip(*found, strict=True))


def _check_interface(data: MeshData, facets: np.ndarray, where: str) -> None:
    triples = data.interface_facets
    bad = find_facets(facets, triples) < 0
    if bad.any():
        first = bad.argmax()
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
    if not len(same):
        return None
    return min((int(order[k]), int(order[k + 1])) for k in same)


def _triple(row: np.ndarray) -> str:
    return "(" + ", ".join(str(int(v)) for v in row) + ")"


def _vector(row: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in row) + ") um"
