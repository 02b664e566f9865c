"""Metrics with known answers."""

import json
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from spinverse import mesh as meshes
from spinverse.benchmark import on_grid
from spinverse.errors import InputError
from spinverse.interface.alignment import _votes, align
from spinverse.interface.lattice import Lattice
from spinverse.interface.metrics import adjusted_rand_index, compare, metrics
from spinverse.interface.ranking import ranking
from spinverse.interface.surfaces import chamfer, edge_defects, surface_points
from spinverse.mesh.checks import facets_of
from spinverse.parallel.statistics import order_statistics, spread_distinct

SPHERE = Path(__file__).parent.parent / "meshes" / "sphere_in_grid_bcc.npz"
TETRAHEDRON = np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]])


def case(comm, change=None):
    """The sphere; ``change(found, mesh, row)`` alters what is found, row: lexicographic order."""
    mesh = meshes.read(SPHERE, comm)
    true = mesh.interface > 0
    found = true.copy()
    keys = mesh.facet_vertices @ [10**6, 10**3, 1]
    if change:
        members = np.sort(np.concatenate(comm.allgather(keys[true])))
        others = np.sort(np.concatenate(comm.allgather(keys[~true & ~mesh.outer])))
        change(found, keys, members, others)
    kappa = np.where(found, 0.01, 100.0)
    return metrics(mesh, found, kappa, np.ones(len(found), bool))


def drop(found, keys, members, others):
    found[keys == members[0]] = False


def add(found, keys, members, others):
    found[keys == others[0]] = True


@pytest.mark.mpi
def test_perfect(comm):
    m = case(comm)
    assert m["found"] == m["true"] == 96 and m["false_positives"] == m["false_negatives"] == 0
    for name in ("precision", "recall", "f1", "iou", "auc", "best_f1", "adjusted_rand_index"):
        assert m[name] == 1.0
    for name in ("chamfer", "chamfer_uncentred", "open_edges_percent", "bad_edges_percent"):
        assert m[name] == 0.0
    assert m["edges"] == 144 and np.isclose(m["best_f1_cut"], 1.0)
    assert m["membrane_below_percent"] == m["other_above_percent"] == 100.0


@pytest.mark.mpi
def test_one_missing_opens_three_edges(comm):
    m = case(comm, drop)
    assert (m["false_negatives"], m["precision"], m["recall"]) == (1, 1.0, 95 / 96)
    assert m["edges"] == 144 and np.isclose(m["open_edges_percent"], 100 * 3 / 144)
    assert m["adjusted_rand_index"] == 0.0 and np.isclose(m["iou"], 95 / 96)
    assert m["chamfer_uncentred"] > 0


@pytest.mark.mpi
def test_one_too_many(comm):
    m = case(comm, add)
    assert (m["false_positives"], m["recall"], m["precision"]) == (1, 1.0, 96 / 97)
    assert m["adjusted_rand_index"] == 1.0 and m["bad_edges_percent"] > 0


@pytest.mark.mpi
@pytest.mark.parametrize("change", [None, drop, add])
def test_the_same_on_any_number_of_ranks(comm, change):
    together, alone = case(comm, change), case(MPI.COMM_SELF, change)
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        assert together[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_nothing_found():
    m = case(MPI.COMM_SELF, lambda found, *_: found.fill(False))
    assert m["precision"] is None and m["chamfer"] is None and m["open_edges_percent"] is None
    assert m["recall"] == m["f1"] == 0.0 and m["auc"] == 0.5
    json.dumps(m, allow_nan=False)


def test_edges():
    assert edge_defects(TETRAHEDRON)["bad_edges_percent"] == 0.0
    assert edge_defects(TETRAHEDRON[1:])["open_edges_percent"] == 50.0
    fan = edge_defects([[0, 1, 2], [0, 1, 3], [0, 1, 4]])
    assert np.isclose(fan["branch_edges_percent"], 100 / 7) and fan["bad_edges_percent"] == 100.0
    assert edge_defects(TETRAHEDRON[1:], np.array([[0, 1], [0, 2], [1, 2]]))["edges"] == 3


def test_chamfer_of_a_shift():
    triangle = np.array([[[0.0, 0, 0], [4, 0, 0], [0, 4, 0]]])
    points = surface_points(triangle)
    assert np.array_equal(points, surface_points(triangle[:, [2, 0, 1]]))
    assert np.allclose(points.mean(axis=0), [4 / 3, 4 / 3, 0], atol=0.01)
    assert np.isclose(chamfer(points, points + [0, 0, 0.5], centred=False), 0.5)
    assert chamfer(points, points + [0, 0, 0.5]) < 1e-12


def test_ranking_and_rand():
    truth = np.array([True, True, False, False])
    assert ranking(np.array([1.0, 3, 2, 4]), truth)["auc"] == 0.75
    assert np.isclose(ranking(np.array([1.0, 3, 2, 4]), truth)["best_f1"], 0.8)
    assert ranking(np.ones(4), np.zeros(4, bool))["auc"] is None
    assert adjusted_rand_index(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])) == 1.0
    assert np.isclose(adjusted_rand_index(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])), -0.5)


@pytest.mark.mpi
@pytest.mark.parametrize("ties", [True, False])
def test_ranking_over_ranks(comm, ties):
    rng = np.random.default_rng(comm.rank)
    score = 10 ** rng.uniform(-2, 2, 40 * (comm.rank % 2 == 0))  # some ranks have none
    score = np.round(score, 1) if ties else score
    truth = rng.random(len(score)) < 1 / (1 + score)
    everything, known = (np.concatenate(comm.allgather(a)) for a in (score, truth))
    assert ranking(score, truth, comm) == ranking(everything, known)
    places = np.array([0, 7, len(everything) - 1])
    assert np.array_equal(order_statistics(comm, score, places), np.sort(everything)[places])
    distinct = np.concatenate(comm.allgather(spread_distinct(comm, score)))
    assert np.array_equal(np.sort(distinct), np.unique(everything))


def test_order_statistics_of_all_floats():
    values = np.array([np.inf, 3.0, -np.inf, -2.0, 0.0, 5e-324, -0.0, 1e300])
    found = order_statistics(MPI.COMM_SELF, values, np.arange(8))
    assert np.array_equal(found, np.sort(values))


@pytest.mark.parametrize("width", [0.3, 1e-9])  # of the narrow ones there are more than 2^62
def test_votes_are_those_of_rows(width):
    goal, few = np.random.default_rng(0).integers(0, 4, (2, 30, 3)) * 1.0
    pairs = np.round((goal[:, None] - few).reshape(-1, 3) / width).astype(np.int64)
    _, first, count = np.unique(pairs, axis=0, return_index=True, return_counts=True)
    for found, expected in zip(_votes(goal, few, width), (first, count), strict=True):
        assert np.array_equal(found, expected)


def test_bad_boundary():
    mesh = meshes.read(SPHERE, MPI.COMM_SELF)
    values = np.ones(mesh.num_owned_facets)
    with pytest.raises(InputError, match="boundary: 'open', expected one of"):
        metrics(mesh, values, values, values, "open")


# ---- shifts and reflections -----------------------------------------------------------------

CUBE = 80 / 12  # um, of the benchmark's grid: shifts by it, and by half of it along all axes
HOOK = np.array([[-4.3, -4.1, -3.7], [3.1, -3.3, -4.4], [2.9, 2.2, -3.1]])  # no symmetry


def hook(sign=1, shift=(0.0, 0.0, 0.0)):
    """A tube without symmetries, turned through the origin or not, then moved."""
    path = sign * HOOK + np.array(shift)
    return on_grid("hook", [meshes.BentTube(3.9, tuple(map(tuple, path)))]).data


def judged(found, truth, boundary="absorbing"):
    """Metrics of the interface of one mesh against that of another of the same grid."""
    facets, _ = facets_of(truth.cells)
    key = np.array([1 << 42, 1 << 21, 1])
    member = np.isin(facets @ key, found.interface_facets @ key)
    return compare(truth, facets, member, np.where(member, 0.01, 100.0), boundary)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shift", [(0, 0, 0), (0.5, 0.5, 0.5), (-0.5, 0.5, 0.5),
                                   (0.5, 0.5, -0.5)])
def test_a_moved_copy_is_aligned(sign, shift):
    shift = CUBE * np.array(shift, float)
    found = judged(hook(sign, shift), hook())
    for name in ("f1", "precision", "recall", "iou", "best_f1"):
        assert found["aligned_" + name] == 1.0
    assert found["aligned_reflected"] == (sign < 0)
    # the map takes what was found back to the truth
    np.testing.assert_allclose(found["aligned_shift"], -sign * shift, atol=1e-9)
    moved = sign < 0 or shift.any()
    assert (found["f1"] < 0.7) if moved else (found["f1"] == 1.0)
    assert found["bad_edges_inside_percent"] == 0.0
    if sign > 0:  # centred: what is left is how the surfaces are sampled
        assert found["chamfer"] < 0.15 and found["chamfer_uncentred"] >= found["chamfer"]


def test_only_shifts_of_the_grid_count():
    # as large, half a cube along one axis: no vertex meets another one
    found = judged(hook(1, (CUBE / 2, 0, 0)), hook())
    assert found["aligned_f1"] < 1.0
    vertices = hook().points
    for name in ("aligned_shift",):
        goal = vertices[0] + found[name]
        inside = np.abs(goal).max() <= 2 * CUBE + 1e-6
        assert not inside or np.linalg.norm(vertices - goal, axis=1).min() < 1e-6


def test_what_leaves_the_grid_is_false():
    data = hook()
    facets, pairs = facets_of(data.cells)
    lattice = Lattice(data.points[facets], pairs[:, 1] < 0)
    key = np.array([1 << 42, 1 << 21, 1])
    true = np.isin(facets @ key, data.interface_facets @ key)
    # a copy half a cube away, and a second one: only one of them can be where the truth is
    copies = [np.isin(facets @ key, hook(1, (s * CUBE / 2,) * 3).interface_facets @ key)
              for s in (1, -1)]
    both = copies[0] | copies[1]
    best = align(lattice, both, true)
    assert best.recall == 1.0 and best.true_positives == true.sum() == copies[0].sum()
    centroids = data.points[facets].mean(axis=1)
    outer = centroids[pairs[:, 1] < 0]
    gaps = np.linalg.norm((centroids[both] + best.shift)[:, None] - outer, axis=2)
    assert best.counted == both.sum() - (gaps.min(axis=1) < 1e-6).sum() > true.sum()
    assert np.isclose(best.precision, true.sum() / best.counted) and not best.reflected
    nothing = align(lattice, np.zeros(len(true), bool), true)
    assert nothing.precision is None and nothing.recall == nothing.f1 == nothing.iou == 0.0


def test_a_copy_at_the_outer_boundary():
    """Its wall on the outer boundary lands inside the grid, where the truth has it too."""
    truth = on_grid("ball", [meshes.Ball(5.0)]).data
    moved = on_grid("ball", [meshes.Ball(5.0, (CUBE, 0.0, 0.0))]).data
    m = judged(moved, truth)
    assert m["aligned_f1"] == 1.0 and m["f1"] < 1
    assert judged(moved, truth, "reflecting")["aligned_f1"] <= 1.0


def test_of_files_as_of_meshes(comm):
    mesh = meshes.read(SPHERE, MPI.COMM_SELF)
    data = meshes.readers.read(SPHERE)
    rng = np.random.default_rng(3)
    kappa = 10 ** rng.uniform(-2, 2, mesh.num_owned_facets)
    for boundary in ("absorbing", "reflecting"):
        included = ~mesh.outer if boundary == "reflecting" else np.ones(len(kappa), bool)
        found = (kappa < 0.1) & included
        theirs = metrics(mesh, found, kappa, included, boundary)
        order = rng.permutation(len(kappa))
        ours = compare(data, mesh.facet_vertices[order], found[order], kappa[order], boundary)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    with pytest.raises(InputError, match="expected every facet once"):
        compare(data, mesh.facet_vertices[1:], found[1:], kappa[1:])
