"""How well found membrane facets match known ones. Only where a truth is known.

Every rank counts what it owns; only the found and the true surface go from rank to rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mpi4py import MPI

from ..errors import InputError, on_root
from ..glued import glued
from ..mesh.checks import facets_of, find_facets
from ..mesh.connected import cell_regions, connected_cells
from ..mesh.data import MeshData
from ..mesh.distributed import Mesh, representative
from ..parallel.exchange import Route, gather_chosen, summed
from .alignment import align, best_f1
from .lattice import Lattice
from .ranking import ranking
from .surfaces import among, chamfer, edge_defects, edges_of, percent, ratio, surface_points

MEMBRANE_CUT = 1.0  # um/ms; 1e-3 um/us in the published code
BOUNDARIES = ("reflecting", "absorbing", "periodic")


def metrics(mesh: Mesh, found: np.ndarray, permeability: np.ndarray, included: np.ndarray,
            boundary: str = "absorbing") -> dict:
    """Compare a reconstruction with the known membrane ``mesh.interface``. Collective.

    Facets that are not ``included`` take no part. Counts, precision, recall, F1, IoU, AUC and
    the best F1 are over interior facets; surfaces (Chamfer, edges) hold outer facets as well
    where the boundary absorbs. Where it reflects, a membrane may end on it: edges on the outer
    boundary are then not counted. Only ``chamfer`` (centred) and what is called aligned know of
    shifts.

    Args:
        found: ``(nf,)`` bool, owned facets that are taken for membrane.
        permeability: ``(nf,)`` um/ms.
        included: ``(nf,)`` bool, facets that were unknown.
        boundary: "absorbing", "reflecting" or "periodic": then the mesh is one whose faces are
            glued, and shifts go round.

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
    # glued facets share their edges once vertices that are one are one
    triples = np.sort(representative(mesh.same, mesh.input_nodes[mesh.facet_nodes]), axis=1)
    period = np.ptp(mesh.bounds, axis=0) * np.isin(list("xyz"), list(mesh.glued))
    return _compare(_Facets(
        mesh.comm, triples if mesh.glued else mesh.facet_vertices, mesh.facet_corners,
        np.asarray(found, bool), np.asarray(permeability, float), np.asarray(included, bool),
        mesh.interface > 0, mesh.outer,
        lambda walls: connected_cells(mesh, ~walls)[: mesh.num_owned_cells], period),
        boundary == "absorbing")


def compare(data: MeshData, facets: np.ndarray, found: np.ndarray, permeability: np.ndarray,
            boundary: str = "absorbing", surface: np.ndarray | None = None) -> dict:
    """`metrics` of a result that is on file, without a distributed mesh.

    Args:
        data: a mesh with ``interface_facets``, the truth.
        facets: ``(n, 3)`` vertex triples in the numbering of ``data``, every facet once.
        found: ``(n,)`` bool.
        permeability: ``(n,)`` um/ms.
        boundary: "absorbing": all facets were unknown; "reflecting": the interior ones;
            "periodic": of two opposite facets on the faces the file has one.
        surface: ``(m, 3, 3)`` um, triangles of the true surface where it is known better than
            by the facets of the grid; the Chamfer distances are then taken to it.

    Raises:
        InputError: a boundary of another name, facets that are not those of the mesh.
    """
    if boundary not in BOUNDARIES:
        raise InputError(f"boundary: {boundary!r}, expected one of {', '.join(BOUNDARIES)}")
    if boundary == "periodic":
        mesh = glued(Mesh.from_data(data, MPI.COMM_SELF))
        place = mesh.find_facets(np.asarray(facets, np.int64))
        if not np.array_equal(np.sort(place), np.arange(mesh.num_facets)):
            raise InputError(f"facets: {len(place)} vertex triples that are not the "
                             f"{mesh.num_facets} facets of mesh '{data.name}' with its faces "
                             "glued, expected every facet once")
        order = np.argsort(place)
        return metrics(mesh, np.asarray(found, bool)[order], np.asarray(permeability)[order],
                       np.ones(len(order), bool), boundary)
    known, pairs = facets_of(data.cells, data.name)
    triples = np.sort(np.asarray(facets, dtype=np.int64).reshape(-1, 3), axis=1)
    order = np.lexsort(triples.T[::-1])
    if not np.array_equal(triples[order], known):
        raise InputError(f"facets: {len(triples)} vertex triples that are not the {len(known)} "
                         f"facets of mesh '{data.name}', expected every facet once")
    outer = pairs[:, 1] < 0
    true = np.zeros(len(known), bool)
    place = find_facets(known, data.interface_facets)
    true[place[place >= 0]] = True
    included = np.ones(len(known), bool) if boundary == "absorbing" else ~outer
    return _compare(_Facets(
        MPI.COMM_SELF, known, data.points[known], np.asarray(found, bool)[order],
        np.asarray(permeability, float)[order], included, true, outer,
        lambda walls: cell_regions(len(data.cells), pairs, walls)),
        boundary == "absorbing", surface)


def adjusted_rand_index(first: np.ndarray, second: np.ndarray,
                        comm: MPI.Comm = MPI.COMM_SELF) -> float:
    """Agreement of two partitions (Hubert and Arabie, J. Classif. 2, 193, 1985). Collective.

    1 for the same partition, about 0 by chance.

    Args:
        first, second: ``(n,)`` labels of this rank's cells, integers from 0.
        comm: the ranks that have all cells together.
    """
    labels = np.column_stack([first, second]).astype(np.int64)
    together = _pairs_within(comm, labels)
    rows, columns = (_pairs_within(comm, labels[:, [k]]) for k in (0, 1))
    number = comm.allreduce(len(labels))
    chance = rows * columns / max(number * (number - 1) / 2, 1.0)
    most = 0.5 * (rows + columns)
    return 1.0 if most == chance else float((together - chance) / (most - chance))


def _pairs_within(comm: MPI.Comm, labels: np.ndarray) -> float:
    """Number of pairs of rows ``(n, k)``, of all ranks, that are equal."""
    keys, counts = summed(labels, np.ones(len(labels), np.int64))
    # equal rows meet on one rank
    route = Route(comm, keys.sum(axis=1) % comm.size)
    keys, counts = summed(route.forward(keys), route.forward(counts))
    return float(comm.allreduce(int((counts * (counts - 1) // 2).sum())))


@dataclass(frozen=True, eq=False)
class _Facets:
    """The facets of one rank, each on one of ``comm``, and what connects the cells."""

    comm: MPI.Comm
    triples: np.ndarray  # (nf, 3) vertices, ascending
    corners: np.ndarray  # (nf, 3, 3) um
    found: np.ndarray  # (nf,) bool, as the others below
    kappa: np.ndarray  # (nf,) um/ms
    included: np.ndarray
    true: np.ndarray
    outer: np.ndarray
    regions: Callable[[np.ndarray], np.ndarray]  # of walls: sets of the owned cells; collective
    period: np.ndarray = field(default_factory=lambda: np.zeros(3))  # um, 0 for none

    def count(self, *chosen: np.ndarray) -> list[int]:
        """How many facets there are of each kind, over all ranks."""
        return self.comm.allreduce(np.array([c.sum() for c in chosen])).tolist()


def _compare(facets: _Facets, absorbing: bool, true_surface: np.ndarray | None = None) -> dict:
    comm, found, true = facets.comm, facets.found, facets.true
    interior = facets.included & ~facets.outer
    surface = facets.included if absorbing else interior
    low = facets.kappa < MEMBRANE_CUT
    tp, fp, fn, walls, low_walls, others, high_others = facets.count(
        interior & found & true, interior & found & ~true, interior & ~found & true,
        surface & true, surface & true & low, interior & ~true, interior & ~true & ~low)
    result = {
        "membrane_below_percent": percent(low_walls, walls),
        "other_above_percent": percent(high_others, others),
        "found": tp + fp, "true": tp + fn,
        "false_positives": fp, "false_negatives": fn,
        "precision": ratio(tp, tp + fp), "recall": ratio(tp, tp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn), "iou": ratio(tp, tp + fp + fn),
        **ranking(facets.kappa[interior], true[interior], comm)}
    lattice = Lattice(facets.corners, facets.outer, facets.triples, comm, facets.period)
    truth = true & facets.included
    best = align(lattice, found & surface, truth)
    result |= {"aligned_precision": best.precision, "aligned_recall": best.recall,
               "aligned_f1": best.f1, "aligned_iou": best.iou,
               "aligned_shift": list(best.shift), "aligned_reflected": best.reflected,
               "aligned_best_f1": best_f1(lattice, facets.kappa, surface, truth,
                                          result["best_f1_cut"])}
    result |= _surfaces(facets, surface, absorbing, true_surface)
    result["adjusted_rand_index"] = adjusted_rand_index(
        facets.regions(found & surface), facets.regions(true & surface), comm)
    return result


def _surfaces(facets: _Facets, surface: np.ndarray, absorbing: bool,
              true_surface: np.ndarray | None) -> dict:
    """Distances and defects of edges: of the two surfaces, on rank 0."""
    comm = facets.comm
    chosen = surface & (facets.found | facets.true)
    whole: Any = gather_chosen(comm, chosen, facets.triples, facets.corners,  # None but on rank 0
                               facets.found, facets.true)
    edges = comm.bcast(on_root(comm, lambda: np.unique(edges_of(whole[0]), axis=0)), root=0)
    # an edge of a facet of this rank may lie on outer facets of others
    on_boundary = among(edges, edges_of(facets.triples[facets.outer]))
    comm.Allreduce(MPI.IN_PLACE, on_boundary, op=MPI.LOR)

    def judge() -> dict:
        triples, corners, found, true = whole
        truth = corners[true] if true_surface is None else true_surface
        both = len(truth) > 0 and bool(found.any())
        clouds = [surface_points(c) for c in (corners[found], truth)] if both else []
        outer = edges[on_boundary]
        inside, own = (edge_defects(triples[s], outer) for s in (found, true))
        return {"chamfer": chamfer(clouds[0], clouds[1]) if both else None,
                "chamfer_uncentred": chamfer(clouds[0], clouds[1], False) if both else None,
                **edge_defects(triples[found], None if absorbing else outer),
                "bad_edges_inside_percent": inside["bad_edges_percent"],
                "true_bad_edges_inside_percent": own["bad_edges_percent"]}

    return comm.bcast(on_root(comm, judge), root=0)
