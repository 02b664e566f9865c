"""Priors against brute force over a dictionary of edges, and against finite differences."""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations

import numpy as np
import pytest
from mpi4py import MPI

from spinverse import mesh
from spinverse.inversion.facets.facet_graph import FacetGraph
from spinverse.inversion.facets.priors import PRIORS, Binarisation, Continuity, Manifold
from spinverse.mesh import Ball

NAMES = ("continuity", "manifold", "binarisation", "smoothness")


def grid(comm):
    return mesh.build(mesh.tagged_grid, Ball(radius=3.0), 10.0, cells=2, comm=comm)


def field(facets, scale=2.0) -> np.ndarray:
    """Values that belong to the facets, whatever rank owns them."""
    return scale * np.sin(facets.facet_vertices @ np.array([1.3, 2.1, 0.7]) + 0.3)


def some(facets) -> np.ndarray:
    """Facets that take part: all inside, and a few of the outer ones."""
    return ~facets.outer | (facets.facet_vertices.sum(axis=1) % 5 == 0)


def setting(comm, scale=2.0):
    facets = grid(comm)
    included = some(facets)
    return facets, included, FacetGraph(facets, included), field(facets, scale)


def indicator(z):
    return 1 / (1 + np.exp(z / 0.5))


def edges_of(facets, included) -> dict:
    """Edge -> positions of the facets around it; for a mesh on one rank."""
    around = defaultdict(list)
    for i, triple in enumerate(facets.facet_vertices):
        if included[i]:
            for edge in combinations(triple.tolist(), 2):
                around[edge].append(i)
    return around


def brute_force(name, facets, included, z, gate_at=None, delta=5.0) -> float:
    """A prior in plain loops; the continuity's gate is that of ``gate_at``."""
    p = indicator(z)
    if name == "binarisation":
        return float(np.mean([p[i] * (1 - p[i]) for i in np.flatnonzero(included)]))
    around = edges_of(facets, included)
    terms = []
    if name == "manifold":
        for members in around.values():
            k = sum(p[i] for i in members)
            cost = -0.1 * np.log(np.exp(-k**2 / 0.1) + np.exp(-((k - 2) ** 2) / 0.1))
            terms.append(cost / len(members))
        return float(np.mean(terms))
    q = p if gate_at is None else indicator(gate_at)
    for members in around.values():
        for i, j in combinations(members, 2):
            d = abs(z[i] - z[j])
            if name == "smoothness":
                terms.append(np.sqrt(d**2 + 0.05**2) - 0.05)
                continue
            huber = 0.5 * d**2 if d <= delta else delta * (d - 0.5 * delta)
            terms.append(huber * (1 - abs(q[i] - q[j])))
    return float(np.mean(terms))


# ---- the graph ----------------------------------------------------------------------------------


@pytest.mark.mpi
def test_collect_is_the_transpose_of_spread(comm):
    facets, included, graph, z = setting(comm)
    local = graph.spread(z)
    assert np.array_equal(local[: len(z)], z)
    y = np.random.default_rng(comm.rank).normal(size=len(local))
    left = comm.allreduce(float(local @ y))
    right = comm.allreduce(float(z @ graph.collect(y)))
    assert left == pytest.approx(right, rel=1e-12)


@pytest.mark.mpi
def test_graph_knows_every_edge_once(comm):
    facets, included, graph, _ = setting(comm)
    alone = grid(MPI.COMM_SELF)
    around = edges_of(alone, some(alone))
    assert graph.num_edges == len(around)
    assert graph.num_pairs == sum(len(m) * (len(m) - 1) // 2 for m in around.values())
    # vertex triples travel to the rank of the edge: all facets around it share two vertices
    corners = np.column_stack([graph.spread(v.astype(float)) for v in facets.facet_vertices.T])
    found = {}
    for edge in range(len(graph.degree)):
        rows = corners[graph.facet[graph.edge == edge]].astype(int)
        common = set(rows[0]).intersection(*map(set, rows)) if len(rows) > 1 else None
        assert len(rows) == graph.degree[edge]
        if common is not None:
            found[tuple(sorted(int(v) for v in common))] = sorted(map(tuple, rows.tolist()))
    everywhere = [item for part in comm.allgather(list(found.items())) for item in part]
    expected = {edge: sorted(tuple(t) for t in alone.facet_vertices[m].tolist())
                for edge, m in around.items() if len(m) > 1}
    assert len(everywhere) == len(expected) and dict(everywhere) == expected


@pytest.mark.mpi
def test_nothing_included(comm):
    facets = grid(comm)
    none = np.zeros(facets.num_owned_facets, bool)
    graph = FacetGraph(facets, none)
    assert graph.num_edges == graph.num_pairs == 0
    for name in NAMES:
        prior = PRIORS[name](graph)
        assert prior.value(field(facets)) == 0.0
        assert not prior.pull_back(field(facets), 1.0).any()


# ---- values and derivatives ---------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_on_any_number_of_ranks(comm, name):
    facets, included, graph, z = setting(comm)
    prior = PRIORS[name](graph)
    alone, everywhere, whole, z_alone = setting(MPI.COMM_SELF)
    reference = PRIORS[name](whole)
    expected = brute_force(name, alone, everywhere, z_alone)
    assert expected > 1e-3
    assert prior.value(z) == pytest.approx(expected, rel=1e-12)
    partner = alone.find_facets(facets.facet_vertices)
    gradient = reference.pull_back(z_alone, 0.7)
    assert np.abs(prior.pull_back(z, 0.7) - gradient[partner]).max(initial=0) < (
        1e-12 * np.abs(gradient).max())


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_central_differences(name):
    facets, included, graph, z = setting(MPI.COMM_SELF)
    prior = PRIORS[name](graph)
    gradient = prior.pull_back(z, 1.0)
    assert not gradient[~included].any()
    h = 1e-4
    for i in np.flatnonzero(included)[::7]:
        moved = []
        for sign in (1, -1):
            at = z.copy()
            at[i] += sign * h
            moved.append(brute_force(name, facets, included, at, gate_at=z))
        slope = (moved[0] - moved[1]) / (2 * h)
        assert gradient[i] == pytest.approx(slope, rel=1e-5, abs=1e-6 * np.abs(gradient).max())


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["manifold", "binarisation", "smoothness"])
def test_taylor(comm, name):
    _, included, graph, z = setting(comm)
    prior = PRIORS[name](graph)
    along = np.where(included, np.cos(3 * z), 0.0)
    slope = comm.allreduce(float(prior.pull_back(z, 1.0) @ along))
    rest = [abs(prior.value(z + h * along) - prior.value(z) - h * slope)
            for h in (1e-2, 5e-3, 2.5e-3)]
    assert min(np.log2(np.array(rest[:-1]) / np.array(rest[1:]))) > 1.9


@pytest.mark.mpi
def test_squares_of_smoothness_have_its_derivative(comm):
    facets, included, graph, z = setting(comm)
    prior = PRIORS["smoothness"](graph)
    r, J = prior.squares(z)
    assert J.shape == (graph.num_pairs, facets.num_owned_facets)
    np.testing.assert_allclose(2 * r @ J, prior.pull_back(z, 1.0), atol=1e-14)
    # the square lies above, and touches here
    moved = z + 0.1 * np.cos(3 * z)
    square = np.sum((r + comm.allreduce(J @ (moved - z))) ** 2) - np.sum(r**2)
    assert square >= prior.value(moved) - prior.value(z)


def test_huber_is_linear_beyond_delta():
    facets, included, graph, z = setting(MPI.COMM_SELF, scale=1.0)
    prior = Continuity(graph, delta=0.5)
    assert prior.value(z) == pytest.approx(
        brute_force("continuity", facets, included, z, delta=0.5), rel=1e-12)
    gradient = prior.pull_back(z, 1.0)
    along = np.where(included, np.cos(5 * z), 0.0)
    h = 1e-5
    moved = [brute_force("continuity", facets, included, z + s * h * along, z, 0.5)
             for s in (1, -1)]
    assert gradient @ along == pytest.approx((moved[0] - moved[1]) / (2 * h), rel=1e-6)


# ---- what they want -----------------------------------------------------------------------------


def test_uniform_fields():
    facets, included, graph, z = setting(MPI.COMM_SELF)
    uniform = np.full(len(z), 0.4)
    assert Continuity(graph).value(uniform) == 0.0
    # half way in the indicator, p = 1/2
    assert Binarisation(graph).value(0 * z) == pytest.approx(0.25)
    # open everywhere: every edge has its 0 membrane facets
    assert Manifold(graph).value(np.full(len(z), 2.0)) < 0.02


def test_a_closed_surface_costs_nothing_and_a_torn_one_does():
    facets = grid(MPI.COMM_SELF)
    everything = np.ones(facets.num_owned_facets, bool)
    graph = FacetGraph(facets, everything)
    closed = np.where(facets.interface > 0, -5.0, 5.0)
    torn = closed.copy()
    torn[np.flatnonzero(facets.interface > 0)[0]] = 5.0
    assert Manifold(graph).value(closed) == pytest.approx(0.0, abs=1e-6)
    assert Manifold(graph).value(torn) > 10 * abs(Manifold(graph).value(closed))
    # three edges lack one facet: each costs 1 - t log 2 over its degree
    edges = [m for m in edges_of(facets, everything).values()
             if sum(torn[i] < 0 for i in m) == 1]
    assert len(edges) == 3
    assert Manifold(graph).value(torn) == pytest.approx(
        sum((1 - 0.1 * np.log(2)) / len(m) for m in edges) / graph.num_edges, rel=1e-3)


def test_the_gate_lets_a_membrane_end_against_open_space():
    facets = grid(MPI.COMM_SELF)
    graph = FacetGraph(facets, np.ones(facets.num_owned_facets, bool))
    sharp = np.where(facets.interface > 0, -2.0, 2.0)
    both_open = np.where(facets.interface > 0, 1.0, 5.0)  # as far apart, all of it open
    assert Continuity(graph).value(sharp) < 0.1 * Continuity(graph).value(both_open)
