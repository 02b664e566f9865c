"""How well found membrane facets match known ones. Only where a truth is known.

All metrics are taken on rank 0 from gathered facets: they serve validation, not reconstruction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..errors import InputError, on_root
from ..mesh.checks import facets_of
from ..mesh.data import MeshData
from ..mesh.distributed import Mesh
from .alignment import Lattice, align

MEMBRANE_CUT = 1.0  # um/ms; 1e-3 um/us in the published code
SAMPLES = 4096  # points on a surface, for the Chamfer distance
BOUNDARIES = ("reflecting", "absorbing")
# Cuts, and maps for each, that are tried for the best aligned F1; one cut on larger meshes.
_CUTS, _MAPS, _LARGE = 24, 60, 20000
_KEY = np.array([1 << 42, 1 << 21, 1])  # vertex triples as one number


def metrics(mesh: Mesh, found: np.ndarray, permeability: np.ndarray, included: np.ndarray,
            boundary: str = "absorbing") -> dict:
    """Compare a reconstruction with the known membrane ``mesh.interface``. Collective.

    Facets that are not ``included`` take no part. Counts, precision, recall, F1, IoU, AUC and
    the best F1 are over interior facets; surfaces (Chamfer, edges) hold outer facets as well
    where the boundary absorbs. Where it reflects, a membrane may end on it: edges on the outer
    boundary are then not counted. Only ``chamfer`` (centred) and what is called aligned know of
    shifts.

    Args:
        mesh: a mesh that knows its interface.
        found: ``(nf,)`` bool, owned facets that are taken for membrane.
        permeability: ``(nf,)`` um/ms.
        included: ``(nf,)`` bool, facets that were unknown.
        boundary: "absorbing" or "reflecting".

    Returns:
        The same on every rank; plain numbers, ``None`` where a figure is undefined:

        - ``membrane_below_percent``, ``other_above_percent``: membrane facets below 1 um/ms
          (outer ones count where the boundary absorbs), other interior facets not below it;
        - ``found``, ``true``, ``false_positives``, ``false_negatives``, ``precision``,
          ``recall``, ``f1``, ``iou``;
        - ``aligned_precision``, ``aligned_recall``, ``aligned_f1``, ``aligned_iou`` after the
          best shift of the grid (``aligned_shift``, um) and point reflection
          (``aligned_reflected``), see `alignment.align`;
        - ``auc``, ``best_f1``, ``best_f1_cut`` (um/ms): by ranking permeabilities;
        - ``aligned_best_f1``: the largest aligned F1 over cuts of the permeability;
        - ``chamfer`` (both surfaces centred, as published), ``chamfer_uncentred``: um^2;
        - ``edges``, ``open_edges_percent``, ``branch_edges_percent``, ``bad_edges_percent``:
          see `edge_defects`; ``bad_edges_inside_percent``: of the edges that do not lie on the
          outer boundary, which may force some; ``true_bad_edges_inside_percent``: the same of
          the truth, which has some where compartments touch;
        - ``adjusted_rand_index``: of the cells' partition by the found facets, see
          `adjusted_rand_index`.

    Raises:
        InputError: a boundary of another name, an array of another shape.
    """
    if boundary not in BOUNDARIES:
        raise InputError(f"boundary: {boundary!r}, expected one of {', '.join(BOUNDARIES)}")
    nf = mesh.num_owned_facets
    arrays = {"found": found, "permeability": permeability, "included": included}
    wrong = next((f"{name}: shape {np.shape(value)}, expected ({nf},): one value for each facet "
                  "that this rank owns"
                  for name, value in arrays.items() if np.shape(value) != (nf,)), None)
    wrong = next((text for text in mesh.comm.allgather(wrong) if text), None)
    if wrong:
        raise InputError(wrong)
    whole: Any = mesh.gather_facets(  # None but on rank 0
        np.asarray(found, bool), np.asarray(permeability, float), np.asarray(included, bool),
        mesh.interface > 0, mesh.outer, mesh.facet_corners, cell_pairs(mesh))
    result = on_root(mesh.comm, lambda: _compare(whole, mesh.num_cells, boundary == "absorbing"))
    return mesh.comm.bcast(result, root=0)


def compare(data: MeshData, facets: np.ndarray, found: np.ndarray, permeability: np.ndarray,
            boundary: str = "absorbing", surface: np.ndarray | None = None) -> dict:
    """`metrics` of a result that is on file, without a distributed mesh.

    Args:
        data: a mesh with ``interface_facets``, the truth.
        facets: ``(n, 3)`` vertex triples in the numbering of ``data``, every facet once.
        found: ``(n,)`` bool.
        permeability: ``(n,)`` um/ms.
        boundary: "absorbing": all facets were unknown; "reflecting": the interior ones.
        surface: ``(m, 3, 3)`` um, triangles of the true surface where it is known better than
            by the facets of the grid; the Chamfer distances are then taken to it.

    Raises:
        InputError: a boundary of another name, facets that are not those of the mesh.
    """
    if boundary not in BOUNDARIES:
        raise InputError(f"boundary: {boundary!r}, expected one of {', '.join(BOUNDARIES)}")
    known, pairs = facets_of(data.cells, data.name)
    triples = np.sort(np.asarray(facets, dtype=np.int64).reshape(-1, 3), axis=1)
    order = np.lexsort(triples.T[::-1])
    if not np.array_equal(triples[order], known):
        raise InputError(f"facets: {len(triples)} vertex triples that are not the {len(known)} "
                         f"facets of mesh '{data.name}', expected every facet once")
    outer = pairs[:, 1] < 0
    true = np.isin(known @ _KEY, np.sort(data.interface_facets, axis=1) @ _KEY)
    included = np.ones(len(known), bool) if boundary == "absorbing" else ~outer
    whole = (known, np.asarray(found, bool)[order], np.asarray(permeability, float)[order],
             included, true, outer, data.points[known], pairs)
    return _compare(whole, len(data.cells), boundary == "absorbing", surface)


def cell_pairs(mesh: Mesh) -> np.ndarray:
    """Cells on the two sides of each owned facet by their number in the input, ``(nf, 2)``.

    -1 is outside.
    """
    return np.where(mesh.facet_cells >= 0, mesh.input_cells[mesh.facet_cells], -1)


def cell_regions(num_cells: int, pairs: np.ndarray, walls: np.ndarray) -> np.ndarray:
    """Connected regions of cells when some facets are walls.

    Args:
        num_cells: of the whole mesh.
        pairs: ``(n, 2)`` cells of every facet, -1 outside.
        walls: ``(n,)`` bool.

    Returns:
        ``(num_cells,)`` region of each cell, numbered from 0 in the order of first cells.
    """
    passage = pairs[~walls & (pairs >= 0).all(axis=1)]
    graph = coo_matrix((np.ones(len(passage)), (passage[:, 0], passage[:, 1])),
                       shape=(num_cells, num_cells))
    return connected_components(graph, directed=False)[1]


def edge_defects(triples: np.ndarray, ignored: np.ndarray | None = None) -> dict:
    """Edges of a facet set by their degree, the number of its facets that share them.

    A closed surface without branches has degree 2 everywhere.

    Args:
        triples: ``(n, 3)`` vertex triples.
        ignored: ``(m, 2)`` edges, ascending vertices, that are not counted.

    Returns:
        ``edges`` (count) and percentages ``open_edges_percent`` (degree 1),
        ``branch_edges_percent`` (above 2), ``bad_edges_percent`` (not 2); ``None`` without edges.
    """
    edges, degree = np.unique(_edges(triples), axis=0, return_counts=True)
    if ignored is not None and len(ignored) and len(edges):
        top = max(edges.max(), ignored.max()) + 1
        keep = ~np.isin(edges @ [top, 1], ignored @ [top, 1])
        degree = degree[keep]
    return {"edges": len(degree),
            "open_edges_percent": _percent(degree == 1),
            "branch_edges_percent": _percent(degree > 2),
            "bad_edges_percent": _percent(degree != 2)}


def surface_points(corners: np.ndarray, number: int = SAMPLES) -> np.ndarray:
    """Points uniform by area on triangles, the same every time, ``(number, 3)``.

    Args:
        corners: ``(n, 3, 3)``; the order within a triangle does not matter.
        number: of points.
    """
    # ranks list the corners of a facet in different orders: sort them by x, then y, then z
    order = np.lexsort(np.moveaxis(corners, 2, 0)[::-1], axis=1)
    corners = np.take_along_axis(corners, order[:, :, None], axis=1)
    areas = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0],
                                          corners[:, 2] - corners[:, 0]), axis=1)
    total = np.cumsum(areas)
    index = np.arange(number)
    level = (index + 0.5) / number * total[-1]
    triangle = np.minimum(np.searchsorted(total, level), len(areas) - 1)
    # additive recurrence with the plastic number: low discrepancy in the unit square
    plastic = 1.32471795724474602596
    u, v = (0.5 + index / plastic) % 1.0, (0.5 + index / plastic**2) % 1.0
    over = u + v > 1
    u, v = np.where(over, 1 - u, u), np.where(over, 1 - v, v)
    x = corners[triangle]
    return x[:, 0] + u[:, None] * (x[:, 1] - x[:, 0]) + v[:, None] * (x[:, 2] - x[:, 0])


def chamfer(first: np.ndarray, second: np.ndarray, centred: bool = True) -> float:
    """Sum of the two mean squared nearest distances between point clouds ``(n, 3)``, um^2."""
    if centred:
        first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    there = cKDTree(second).query(first)[0]
    back = cKDTree(first).query(second)[0]
    return float((there**2).mean() + (back**2).mean())


def ranking(score: np.ndarray, truth: np.ndarray) -> dict:
    """How a low score tells true facets from others, whatever the threshold.

    Args:
        score: ``(n,)``, low for membrane.
        truth: ``(n,)`` bool.

    Returns:
        ``auc`` (ties count half), ``best_f1`` and ``best_f1_cut``: the F1 of ``score < cut`` at
        the best cut, half-way (in log where positive) to the next score; ``None`` where
        undefined.
    """
    positive, negative = int(truth.sum()), int((~truth).sum())
    if not positive:
        return {"auc": None, "best_f1": None, "best_f1_cut": None}
    values, place = np.unique(score, return_inverse=True)
    hits = np.bincount(place, weights=truth, minlength=len(values))
    misses = np.bincount(place, weights=~truth, minlength=len(values))
    before = np.cumsum(misses) - misses
    auc = None
    if negative:
        auc = float(1 - (hits @ (before + 0.5 * misses)) / (positive * negative))
    f1 = 2 * np.cumsum(hits) / (np.cumsum(hits + misses) + positive)
    best = int(np.argmax(f1))
    low, high = values[best], values[min(best + 1, len(values) - 1)]
    if best + 1 == len(values) or not np.isfinite(high):
        cut = 2 * low if low > 0 else 1.0
    else:
        cut = np.sqrt(low * high) if low > 0 else high / 2
    cut = float(cut) if np.isfinite(cut) else None
    return {"auc": auc, "best_f1": float(f1[best]), "best_f1_cut": cut}


def adjusted_rand_index(first: np.ndarray, second: np.ndarray) -> float:
    """Agreement of two partitions (Hubert and Arabie, J. Classif. 2, 193, 1985).

    1 for the same partition, about 0 by chance. Arguments: labels ``(n,)`` from 0.
    """
    table = coo_matrix((np.ones(len(first)), (first, second))).tocsr()
    table.sum_duplicates()

    def pairs(n):
        n = np.asarray(n, dtype=float)
        return float((n * (n - 1) / 2).sum())

    together = pairs(table.data)
    rows, columns = pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    chance = rows * columns / max(pairs(len(first)), 1.0)
    most = 0.5 * (rows + columns)
    return 1.0 if most == chance else float((together - chance) / (most - chance))


def _compare(whole: tuple, num_cells: int, absorbing: bool,
             true_surface: np.ndarray | None = None) -> dict:
    triples, found, kappa, included, true, outer, corners, pairs = whole
    interior = included & ~outer
    surface = included if absorbing else interior
    f, t = found[interior], true[interior]
    tp = int((f & t).sum())
    fp, fn = int((f & ~t).sum()), int((~f & t).sum())
    low = kappa < MEMBRANE_CUT
    result = {
        "membrane_below_percent": _percent(low[surface & true]),
        "other_above_percent": _percent(~low[interior & ~true]),
        "found": int(f.sum()), "true": int(t.sum()),
        "false_positives": fp, "false_negatives": fn,
        "precision": _ratio(tp, tp + fp), "recall": _ratio(tp, tp + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn), "iou": _ratio(tp, tp + fp + fn),
        **ranking(kappa[interior], t)}
    lattice = Lattice(corners, outer)
    best = align(lattice, found & surface, true & included)
    best_cut = _aligned_best_f1(lattice, kappa, surface, true & included, result["best_f1_cut"])
    result |= {"aligned_precision": best.precision, "aligned_recall": best.recall,
               "aligned_f1": best.f1, "aligned_iou": best.iou,
               "aligned_shift": list(best.shift), "aligned_reflected": best.reflected,
               "aligned_best_f1": best_cut}
    if true_surface is None:
        true_surface = corners[true & surface]
    clouds: Any = [surface_points(c) if len(c) else None
              for c in (corners[found & surface], true_surface)]
    both = all(cloud is not None for cloud in clouds)
    result["chamfer"] = chamfer(clouds[0], clouds[1]) if both else None
    result["chamfer_uncentred"] = chamfer(clouds[0], clouds[1], centred=False) if both else None
    on_boundary = np.unique(_edges(triples[outer]), axis=0)
    result |= edge_defects(triples[found & surface], None if absorbing else on_boundary)
    inside = edge_defects(triples[found & surface], on_boundary)
    result["bad_edges_inside_percent"] = inside["bad_edges_percent"]
    own = edge_defects(triples[true & surface], on_boundary)
    result["true_bad_edges_inside_percent"] = own["bad_edges_percent"]
    regions = [cell_regions(num_cells, pairs, s & surface) for s in (found, true)]
    result["adjusted_rand_index"] = adjusted_rand_index(*regions)
    return result


def _aligned_best_f1(lattice: Lattice, kappa: np.ndarray, surface: np.ndarray,
                     true: np.ndarray, cut: float | None) -> float | None:
    """The largest aligned F1 of the facets below a cut: ``cut``, or one of those in between."""
    values = np.unique(kappa[surface])
    if not true.any() or not len(values):
        return None
    # beyond four times the true number F1 cannot reach 0.4
    most = np.sort(kappa[surface])[min(int(surface.sum()), 4 * int(true.sum())) - 1]
    values = values[values <= max(most, values[0])]
    chosen = values[np.unique(np.linspace(0, len(values) - 1, _CUTS).astype(int))]
    if len(kappa) > _LARGE and cut is not None:
        chosen = chosen[:0]
    cuts = np.append(chosen, chosen[:0] if cut is None else cut)
    scores = [align(lattice, surface & (kappa <= value), true, _MAPS).f1 for value in cuts]
    return max(score or 0.0 for score in scores)


def _edges(triples: np.ndarray) -> np.ndarray:
    triples = np.sort(np.asarray(triples, dtype=np.int64).reshape(-1, 3), axis=1)
    return triples[:, [[0, 1], [0, 2], [1, 2]]].reshape(-1, 2)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(flags: np.ndarray) -> float | None:
    return float(100.0 * flags.mean()) if len(flags) else None
