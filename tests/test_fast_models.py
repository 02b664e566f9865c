"""The fast models of the search: their matrices against the assembled operator, their signals
against the engine, their derivatives against differences."""

from pathlib import Path

import numpy as np
import pytest
import ufl
from mpi4py import MPI

import spinverse
from spinverse import Acquisition, BlochTorrey, InputError, Permeability, Tissue
from spinverse.engines.shapes.blocks import Assembly
from spinverse.engines.shapes.broken import BrokenModel, Pattern
from spinverse.engines.shapes.graded import GradedModel
from spinverse.engines.shapes.partition import PartitionModel
from spinverse.engines.shapes.propagation import Sweeps, steps
from spinverse.engines.shapes.smooth import Smooth
from spinverse.engines.shapes.walls import Walls, is_wall
from spinverse.inversion.shapes.cells import Cells, changed
from spinverse.mesh.whole import WholeMesh

MESH = Path(__file__).parents[1] / "meshes" / "sphere_in_grid_bcc.npz"
WALL, OPEN = 0.01, 100.0
TENSOR = np.array([[2.0, 0.3, 0.1], [0.3, 1.5, -0.2], [0.1, -0.2, 1.0]])


def relaxing(m, v, t, c):
    """Inside cells, on the outer boundary and on membranes; none of it depends on their side."""
    both = ufl.inner(m("+"), v("+")) + ufl.inner(m("-"), v("-"))
    return (0.02 * ufl.inner(m, v) * c.dx + c["rho"] * ufl.inner(m, v) * c.ds
            + c["rho"] * c.membrane("+") * both * c.dS)


TERMS = {"extra_terms": relaxing, "extra_coefficients": {"rho": 0.03}}
CASES = {  # two values: of the cells of the input in turn
    "water": ({}, {}, 1), "P2": ({}, {}, 2), "tensor": ({"diffusivity": TENSOR}, {}, 1),
    "T2": ({"T2": (40.0, 80.0), "diffusivity": (2.0, 1.0)}, {}, 1),
    "densities": ({"density": (1.0, 0.6)}, {}, 1), "one density": ({"density": 0.7}, {}, 1),
    "terms": ({}, TERMS, 1), "terms, densities": ({"density": (1.0, 0.6)}, TERMS, 2)}


def tissue_of(mesh, kappa, values):
    turns = np.arange(mesh.num_cells) % 2
    return Tissue(mesh, permeability=Permeability(mesh, kappa), **{
        name: np.array(value)[turns] if isinstance(value, tuple) else value
        for name, value in values.items()})


def grid(comm=MPI.COMM_SELF):
    return spinverse.mesh.build(spinverse.mesh.tagged_grid, spinverse.mesh.Ball(6.0), 18.0, cells=2,
                                comm=comm)


def problem_of(mesh, kappa, tissue, terms, degree):
    return BlochTorrey(tissue_of(mesh, kappa, tissue), degree, **terms)


# ---- the one weak form --------------------------------------------------------------------------

@pytest.mark.mpi
@pytest.mark.parametrize("case", CASES)
def test_blocks_add_up_to_the_assembled_operator(comm, case):
    """Entry by entry, at walls and open facets, in the numbering of the input."""
    tissue, terms, degree = CASES[case]
    mesh = grid(comm)
    whole = WholeMesh.of(mesh)
    labels = (np.linalg.norm(whole.centroids - whole.centre, axis=1) < 6).astype(np.int8)
    walls = is_wall(labels, whole.sides)
    kappa = Walls(WALL, OPEN, True).permeability(labels, whole.sides)
    problem = problem_of(mesh, whole.facet_values(kappa), tissue, terms, degree)
    density = np.zeros(len(whole.cells))
    density[mesh.input_cells] = problem.tissue.density
    comm.Allreduce(MPI.IN_PLACE, density, op=MPI.MAX)
    # with nothing slowed by open facets
    blocks = Assembly(problem, whole).blocks(Walls(WALL, OPEN, True), 0.0)
    n = blocks.mass.shape[1]
    size = n * len(whole.cells)
    root = np.repeat(np.sqrt(density), n)
    A, M, X = np.zeros((size, size)), np.zeros((size, size)), np.zeros((3, size, size))
    for k in range(len(whole.cells)):
        here = slice(k * n, (k + 1) * n)
        A[here, here], M[here, here] = blocks.decay[0, k], blocks.mass[k]
        X[:, here, here] = blocks.position[:, k]
    facets = kappa[:, None, None, None, None] * blocks.exchange
    if blocks.at_walls is not None:
        facets = facets + np.where(walls[:, None, None, None, None], blocks.at_walls[0],
                                   blocks.at_open)
    for where, values, outer in zip(blocks.nodes, facets, whole.outer, strict=True):
        sides = 1 if outer else 2
        where, values = where[:sides].ravel(), values[:sides, :, :sides]
        A[np.ix_(where, where)] += values.reshape(len(where), -1)
    found = [matrix / np.outer(root, root) for matrix in (A, M, *X)]

    dofs = problem.space.dofmap
    number = np.empty(dofs.index_map.size_local + dofs.index_map.num_ghosts, dtype=np.int64)
    number[dofs.list] = n * mesh.input_cells[:, None] + np.arange(n)
    ours = number[: dofs.index_map.size_local]
    everyone = np.concatenate(comm.allgather(ours))  # of global dofs
    decay = problem.decay_matrix()
    indptr, indices, values = decay.getValuesCSR()
    rows = np.repeat(ours, np.diff(indptr))
    expected = np.zeros((size, size))
    expected[rows, everyone[indices]] = values
    np.testing.assert_allclose(found[0], comm.allreduce(expected), atol=1e-12 * np.abs(A).max())
    for matrix, local in zip(found[1:], [problem.local_mass, *problem.local_positions],
                             strict=True):
        expected = np.zeros((size, size))
        entries = local.tocoo()
        expected[ours[entries.row], ours[entries.col]] = entries.data
        np.testing.assert_allclose(matrix, comm.allreduce(expected),
                                   atol=1e-12 * np.abs(matrix).max())
    np.testing.assert_allclose(np.ones(size) @ M @ np.ones(size), problem.magnetisation_at_start)


@pytest.mark.mpi
@pytest.mark.parametrize("terms", [{}, TERMS], ids=["water", "terms"])
def test_blocks_of_unknown_densities_add_up_to_the_operator_of_the_tissue(comm, terms):
    """Those of one density, times what `Blocks` says of labels, are those of a tissue of several.

    Two cells that touch each other and the outer boundary.
    """
    mesh = grid(comm)
    whole = WholeMesh.of(mesh)
    x = whole.centroids - whole.centre
    labels = np.where(x[:, 0] < -3, 0, np.where(x[:, 1] < 0, 1, 2))
    ratio, rho = np.array([1.0, 0.6, 1.7]), 0.8
    walls = Walls((WALL, 0.03), OPEN, True)
    kappa = walls.permeability(labels, whole.sides)
    known = Tissue(mesh, density=rho, permeability=Permeability(mesh, whole.facet_values(kappa)))
    uniform = BlochTorrey(known, **terms, densities=True)

    def put(label):
        uniform.coefficients.rho.x.array[:] = rho * ratio[label]

    blocks = Assembly(uniform, whole).blocks(
        walls, 0.0, [lambda label=label: put(label) for label in range(3)])
    np.testing.assert_allclose(blocks.density, ratio)
    problem = BlochTorrey(Tissue(mesh, density=rho * ratio[labels],
                                 permeability=known.permeability), **terms)
    wanted = Assembly(problem, whole).blocks(walls, 0.0)
    first, second = whole.sides.T
    pair = labels[first], np.where(second >= 0, labels[second], 0)
    there = np.flatnonzero(is_wall(labels, whole.sides))
    found = blocks.between(walls.of(*(side[there] for side in pair), there), blocks.exchange,
                           *(side[there] for side in pair), there)
    expected = kappa[there, None, None, None, None] * wanted.exchange[there]
    if terms:  # of the cell of the larger label, the last one that the assembly knows
        expected = expected + wanted.at_walls[np.maximum(*pair)[there] - 1, there]
    outer = whole.outer[there]
    np.testing.assert_allclose(found[~outer], expected[~outer], atol=1e-12)
    np.testing.assert_allclose(found[outer][:, 0, :, 0], expected[outer][:, 0, :, 0], atol=1e-12)
    of = blocks.density_of(labels)[:, None, None]
    np.testing.assert_allclose(of * blocks.decay[0], wanted.decay[0], atol=1e-12)
    np.testing.assert_allclose(of * blocks.mass, wanted.mass, atol=1e-12)
    np.testing.assert_allclose(of * blocks.position, wanted.position, atol=1e-10)
    sweeps = Sweeps.of(TABLES["pgse"], 0.5)
    signals = [PartitionModel(made, walls).signals(labels, sweeps) for made in (
        blocks, wanted)]
    np.testing.assert_allclose(*signals, rtol=1e-4)  # single precision


def test_graded_shapes_of_an_unknown_density():
    """A sharp one is a partition, and the derivative is that of differences."""
    mesh = grid()
    whole = WholeMesh.of(mesh)
    problem = BlochTorrey(Tissue(mesh, permeability=1.0), densities=True)

    def put(value):
        problem.coefficients.rho.x.array[:] = value

    walls, sweeps = Walls(2.0, OPEN, False), Sweeps.of(TABLES["late echo"], 0.1)
    blocks = Assembly(problem, whole).blocks(walls, 2.0, [lambda: put(1.0), lambda: put(0.6)])
    labels = ball(whole, 6)
    model = GradedModel(blocks, walls, 10_000)
    sharp = PartitionModel(blocks, walls).signals(labels, sweeps)
    assert np.abs(model.signals(labels.astype(float), sweeps) - sharp).max() < (
        3e-3 * whole.volumes.sum())
    rng = np.random.default_rng(0)
    c, v = 0.1 + 0.7 * labels + 0.05 * rng.random(len(labels)), rng.normal(size=len(labels))
    up, down = (np.abs(model.signals(c + sign * 1e-4 * v, sweeps)) for sign in (1, -1))
    slope = (up - down) / 2e-4
    assert np.linalg.norm(model.jacobian(c, sweeps)[1] @ v - slope) < 5e-3 * np.linalg.norm(slope)


def test_open_facets_slow_cells_down():
    """To first order in their resistance, and never to nothing."""
    mesh = grid()
    whole = WholeMesh.of(mesh)
    problem = problem_of(mesh, np.full(mesh.num_owned_facets, 1.0), {}, {}, 1)
    free, slow, half = (Assembly(problem, whole).blocks(Walls(WALL, opening, True), r).decay
                        for opening, r in ((np.inf, 2.0), (100.0, 2.0), (100.0, 1.0)))
    np.testing.assert_allclose(free - slow, 2 * (free - half), atol=1e-12)
    assert np.trace(free - slow, axis1=2, axis2=3).min() > 0
    closed = Assembly(problem, whole).blocks(Walls(WALL, 1e-3, True), 2.0).decay
    np.testing.assert_allclose(closed, 0.2 * free, atol=1e-12)


def flowing(m, v, t, c):
    return ufl.inner(ufl.dot(ufl.grad(m), ufl.as_vector((1.0, 0, 0))), v) * c.dx


def turning(m, v, t, c):
    return 0.1 * ufl.inner(ufl.as_vector((-m[1], m[0])), v) * c.dx


def window(m, v, t, c):
    return ufl.conditional(ufl.And(ufl.ge(t, 8), ufl.le(t, 12)), 1, 0) * relaxing(m, v, t, c)


def steep(m, v, t, c):
    n = ufl.FacetNormal(c.dx.ufl_domain())
    return ufl.inner(ufl.dot(ufl.grad(m), n), ufl.dot(ufl.grad(v), n)) * c.ds


@pytest.mark.parametrize(("tissue", "terms", "message"), [
    ({"density": (1.0, 0.5), "interface": "plain"}, None, "several densities with interface"),
    ({}, flowing, "not symmetric in m and v"),
    ({}, turning, "extra_terms turn the phase without a gradient"),
    ({}, window, "they depend on the time"),
    ({}, steep, "extra_terms have derivatives of m on facets")])
def test_what_the_fast_models_cannot_take_is_said(tissue, terms, message):
    mesh = grid()
    problem = problem_of(mesh, np.ones(mesh.num_owned_facets), tissue,
                         {**TERMS, "extra_terms": terms} if terms else {}, 1)
    with pytest.raises(InputError, match=message):
        Assembly(problem, WholeMesh.of(mesh)).blocks(Walls(WALL, OPEN, True))


# ---- signals ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def mesh():
    return spinverse.mesh.read(MESH, comm=MPI.COMM_SELF)


@pytest.fixture(scope="module")
def whole(mesh):
    return WholeMesh.of(mesh)


def ball(whole, radius=8.0, centre=(1.0, -0.5, 0.3)):
    x = whole.centroids - whole.centre - np.array(centre)
    return (np.linalg.norm(x, axis=1) < radius).astype(np.int8)


def halved(whole):
    """Two cells that touch."""
    labels = ball(whole)
    labels[(labels > 0) & (whole.centroids[:, 0] > whole.centre[0] + 2)] = 2
    return labels


ALONG = [[0.6, 0.0, 0.8]]
TABLES = {
    "pgse": Acquisition.pgse(np.arange(0, 5001, 1000), 3, [5, 10, 10], [6, 20, 60]),
    "late echo": Acquisition.pgse([0, 2000], ALONG, 5, 20, echo_time=45),
    "ogse cos": Acquisition.ogse([0, 500], ALONG, delta=20, Delta=25, periods=2, kind="cos"),
    "ogse sin": Acquisition.ogse([500], ALONG, delta=20, Delta=25, periods=2, kind="sin"),
    "trapezoid": Acquisition.trapezoid([1000], ALONG, 8, 20, ramp=1),
    "double pgse": Acquisition.double_pgse([0, 2000], ALONG, delta=5, Delta=12, mixing_time=8,
                                           parallel=False),
    "two directions": Acquisition.double_pgse([1500], ALONG, delta=4, Delta=10, mixing_time=6,
                                              second_directions=[[0.0, 1.0, 0.0]])}


def blocks_of(mesh, whole, opening=np.inf, tissue=None, terms=None):
    problem = problem_of(mesh, np.ones(mesh.num_owned_facets), tissue or {}, terms or {}, 1)
    return Assembly(problem, whole).blocks(Walls(WALL, opening, True))


@pytest.mark.parametrize("boundary", ["absorbing", "reflecting"])
@pytest.mark.parametrize("table", TABLES)
def test_a_partition_with_tied_cells_is_what_the_engine_solves(mesh, whole, boundary, table):
    labels, acquisition = halved(whole), TABLES[table]
    kappa = Walls(WALL, np.inf, boundary == "absorbing").permeability(labels, whole.sides)
    kappa = np.where(whole.outer & np.isinf(kappa), OPEN, kappa)  # as good as open
    wanted = spinverse.simulate(Tissue(mesh, permeability=Permeability(
        mesh, whole.facet_values(kappa))), acquisition, tolerance=1e-5).values
    model = PartitionModel(blocks_of(mesh, whole), Walls(WALL, OPEN, boundary == "absorbing"))
    found = model.signals(labels, Sweeps.of(acquisition, 0.1))
    assert np.abs(found - wanted).max() < 3e-4 * whole.volumes.sum()


@pytest.mark.parametrize("case", ["tensor", "T2", "densities", "one density", "terms"])
def test_a_partition_of_any_tissue_is_what_the_engine_solves(mesh, whole, case):
    tissue, terms, _ = CASES[case]
    labels, acquisition = halved(whole), TABLES["pgse"]
    kappa = Walls(WALL, np.inf, False).permeability(labels, whole.sides)
    wanted = spinverse.simulate(
        tissue_of(mesh, whole.facet_values(kappa), tissue), acquisition, tolerance=1e-5,
        **terms).values
    blocks = blocks_of(mesh, whole, tissue=tissue, terms=terms)
    found = PartitionModel(blocks, Walls(WALL, OPEN, False)).signals(
        labels, Sweeps.of(acquisition, 0.1))
    assert np.abs(found - wanted).max() < 3e-4 * np.abs(wanted).max()


def test_few_functions_outside_tell_moves_as_all_do(mesh, whole):
    blocks, walls, labels = blocks_of(mesh, whole), Walls(WALL, OPEN, True), ball(whole)
    few, full = (PartitionModel(blocks, walls, smooth) for smooth in (
        Smooth(blocks, walls, 60), None))
    assert len(few.basis(labels).rates) < len(full.basis(labels).rates) - 40
    cells, sweeps = Cells(whole), Sweeps.of(TABLES["pgse"], 0.5)
    shapes = [labels, *(changed(labels, [move]) for move in cells.moves(labels)[::5])]
    found, expected = (np.abs([model.signals(shape, sweeps) for shape in shapes])
                       for model in (few, full))
    change = expected[1:] - expected[0]
    assert np.linalg.norm(found[1:] - found[0] - change) < 0.01 * np.linalg.norm(change)


@pytest.mark.parametrize("boundary", ["absorbing", "reflecting"])
@pytest.mark.parametrize("case", ["tensor", "T2", "densities", "one density", "terms"])
def test_broken_functions_of_any_tissue_are_tied_ones_where_facets_are_open(mesh, whole, boundary,
                                                                           case):
    tissue, terms, _ = CASES[case]
    walls = Walls(0.5, 1e5, boundary == "absorbing")
    blocks = blocks_of(mesh, whole, 1e5, tissue, terms)
    sweeps, labels = Sweeps.of(TABLES["pgse"], 0.1), ball(whole)
    found, wanted = (model.signals(labels, sweeps) for model in (
        BrokenModel(blocks, walls, None, Pattern(blocks)), PartitionModel(blocks, walls)))
    assert np.abs(found - wanted).max() < 5e-4 * np.abs(wanted).max()


def test_broken_functions_of_a_closed_box_decay_never(mesh, whole):
    """Nothing leaves it; what is answered at rest makes rates of 0 negative where walls leak."""
    blocks = blocks_of(mesh, whole)
    pattern, cells, rng = Pattern(blocks), Cells(whole), np.random.default_rng(0)
    model = BrokenModel(blocks, Walls(1.0, OPEN, False), None, pattern)
    for _ in range(10):
        labels = cells.repaired((rng.random(len(whole.cells)) < 0.5).astype(np.int8))
        start = model.signals(labels, Sweeps.of(TABLES["pgse"], 0.5))[0]
        assert start == pytest.approx(whole.volumes.sum(), rel=5e-4)


def test_the_splitting_is_of_second_order(mesh, whole):
    model = PartitionModel(blocks_of(mesh, whole), Walls(WALL, OPEN, True))
    coarse, fine, exact = (model.signals(ball(whole), Sweeps.of(TABLES["pgse"], h))
                           for h in (0.8, 0.4, 0.02))
    ratio = np.linalg.norm(coarse - exact) / np.linalg.norm(fine - exact)
    assert 2.5 < ratio < 6.0


def test_steps_fill_the_pulse():
    for duration in (0.5, 5.0, 10.0, 23.7):
        h = steps(duration, 0.5)
        assert h.sum() == pytest.approx(duration, abs=1e-12) and h.max() <= 0.5 + 1e-12
    sweeps = Sweeps.of(TABLES["late echo"], 0.5)
    times = [sum(run.steps.sum() for run in part.runs) + part.gap for part in sweeps.parts]
    np.testing.assert_allclose(np.concatenate(times), 45)


# ---- graded shapes ------------------------------------------------------------------------------

@pytest.mark.parametrize(("table", "absorbing", "case"), [
    ("pgse", True, "water"), ("pgse", False, "water"), ("pgse", False, "terms"),
    ("pgse", True, "terms"), ("late echo", True, "water"), ("ogse cos", False, "water"),
    ("ogse sin", True, "densities"), ("double pgse", False, "T2"),
    ("two directions", True, "water")])
def test_the_derivative_of_graded_shapes(table, absorbing, case):
    tissue, terms, _ = CASES[case]
    mesh = grid()
    whole = WholeMesh.of(mesh)
    model = GradedModel(blocks_of(mesh, whole, OPEN, tissue, terms), Walls(WALL, 2.0, absorbing),
                        10_000)
    sweeps, rng = Sweeps.of(TABLES[table], 0.1), np.random.default_rng(0)
    c = 0.1 + 0.7 * ball(whole, 6) + 0.05 * rng.random(len(whole.cells))
    S, J = model.jacobian(c, sweeps)
    np.testing.assert_allclose(S, model.signals(c, sweeps), rtol=1e-9, atol=1e-9)
    v = rng.normal(size=len(c))
    up, down = (np.abs(model.signals(c + sign * 1e-4 * v, sweeps)) for sign in (1, -1))
    slope = (up - down) / 2e-4
    # a continuous adjoint in single precision: steps of 0.1 ms leave this
    assert np.linalg.norm(J @ v - slope) < 5e-3 * np.linalg.norm(slope)


@pytest.mark.parametrize("case", ["water", "terms"])
def test_a_sharp_graded_shape_is_a_partition(mesh, whole, case):
    tissue, terms, _ = CASES[case]
    blocks, labels = blocks_of(mesh, whole, tissue=tissue, terms=terms), ball(whole)
    walls, sweeps = Walls(WALL, OPEN, False), Sweeps.of(TABLES["pgse"], 0.2)
    graded = GradedModel(blocks, walls, 10_000).signals(labels.astype(float), sweeps)
    sharp = PartitionModel(blocks, walls).signals(labels, sweeps)
    assert np.abs(graded - sharp).max() < 3e-3 * whole.volumes.sum()
