"""Metrics with known answers."""

import json
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from spinverse import mesh as meshes
from spinverse.errors import InputError
from spinverse.interface.metrics import (
    adjusted_rand_index,
    chamfer,
    edge_defects,
    metrics,
    ranking,
    surface_points,
)

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


def test_bad_boundary():
    mesh = meshes.read(SPHERE, MPI.COMM_SELF)
    values = np.ones(mesh.num_owned_facets)
    with pytest.raises(InputError, match="boundary: 'open', expected one of"):
        metrics(mesh, values, values, values, "open")
