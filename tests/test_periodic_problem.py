"""Periodic boxes: the operators, quantities, derivatives, ranks, bad input."""

from __future__ import annotations

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI
from periodic_boxes import LEAN, TENSOR, WEIGHTS, along_x, every_mode, few, layers, small_box, stack

from spinverse import BlochTorrey, InputError, Permeability, Tissue, forms, mesh, quantities
from spinverse.acquisition import Acquisition, CosOGSE
from spinverse.engines.basis.eigenmodes import eigenmodes
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.mesh.data import MeshData

# ---- the operators ------------------------------------------------------------------------------


def test_drift_and_its_square_make_the_whole_form():
    """The pair form at Q is decay + i Q_j N_j + Q_j Q_k C_jk of the scalar one."""
    problem = small_box("xz", degree=2)
    pair = dolfinx.fem.functionspace(problem.mesh.domain, ("DG", 2, (2,)))
    m, v, c = ufl.TrialFunction(pair), ufl.TestFunction(pair), problem.coefficients
    Q = np.array([0.7, 0.0, -0.4])
    problem.Q.value[:] = Q
    problem.g.value[:] = [3.0, 0.0, 5.0]  # periodic axes do not precess
    form = forms.bloch_torrey(m, v, c)
    whole = dolfinx.fem.assemble_matrix(problem.compile(form)).to_scipy().toarray()
    m, v = ufl.TrialFunction(problem.space), ufl.TestFunction(problem.space)
    decay = dolfinx.fem.assemble_matrix(problem.compile(forms.decay(m, v, c))).to_scipy().toarray()
    real = decay + sum((1 if j == k else 2) * Q[j] * Q[k] * C.toarray()
                       for (j, k), C in problem.local_squares.items())
    imaginary = sum(Q[j] * N.toarray() for j, N in problem.local_drifts.items())
    assert np.abs(imaginary + imaginary.T).max() < 1e-12
    assert np.abs(whole[::2, ::2] - real).max() < 1e-11 * np.abs(real).max()
    assert np.abs(whole[1::2, 1::2] - real).max() < 1e-11 * np.abs(real).max()
    assert np.abs(whole[1::2, ::2] - imaginary).max() < 1e-11 * np.abs(real).max()
    assert np.abs(whole[::2, 1::2] + imaginary).max() < 1e-11 * np.abs(real).max()


@pytest.mark.mpi
@pytest.mark.parametrize("degree", [1, 2])
def test_unknowns_of_a_periodic_box(comm, degree):
    """A conforming periodic lattice of n bricks an axis has (n degree)^3 nodes."""
    box = mesh.build(mesh.box, [6.0, 4.0, 5.0], cells=(3, 2, 2), comm=comm)
    n = np.array([3, 2, 2]) * degree
    for periodic in ("", "y", "xz", "xyz"):
        expected = np.prod([k + (axis not in periodic) for axis, k in zip("xyz", n, strict=True)])
        assert BlochTorrey(Tissue(box, periodic=periodic), degree).num_unknowns == expected


@pytest.mark.mpi
def test_the_outer_boundary_has_no_periodic_face(comm):
    problem = small_box("xz", comm)
    one = dolfinx.fem.Constant(problem.mesh.domain, 1.0)
    area = dolfinx.fem.assemble_scalar(problem.compile(one * problem.coefficients.ds))
    assert comm.allreduce(area) == pytest.approx(2 * 8 * 6)
    faces = problem.tissue.periodic_facets
    assert np.all(problem.tied[faces]) and np.all(problem.kappa.x.array[: len(faces)][faces] == 0)
    problem.set_permeability(np.full(len(faces), 2.0))
    assert np.all(problem.kappa.x.array[: len(faces)][faces] == 0)


def test_permeability_of_periodic_faces_is_not_looked_at():
    problem = small_box("xyz")
    tissue = problem.tissue
    values = np.where(tissue.periodic_facets, 7.0, tissue.permeability.values)
    other = BlochTorrey(tissue.with_permeability(values))
    assert other.periodic == (0, 1, 2) and tissue.with_permeability(values).periodic == "xyz"
    assert np.allclose(every_mode(other, few()).signals(), every_mode(problem, few()).signals(),
                       rtol=1e-10)


def test_gmsh_boxes_that_match():
    box = mesh.build(mesh.sphere_in_box, radius=2.0, box=(6, 6, 6), size=2.0, periodic=True,
                     comm=MPI.COMM_SELF)
    problem = BlochTorrey(Tissue(box, permeability=Permeability.on(box, membrane=np.inf),
                                 periodic="xyz"))
    found = MatrixFormalism(problem, few(), modes=20, max_step=0.5).signals()
    assert np.abs(found / found[0] - np.exp(-2 * few().b / 1000)).max() < 1e-8


def test_densities_of_opposite_faces_are_at_rest():
    """Uniform m / rho: nothing moves, though rho differs across faces, tied facets, membranes."""
    problem = small_box("xyz")
    cell = np.arange(problem.mesh.num_cells)
    tissue = Tissue(problem.mesh, TENSOR, density=1 + 0.3 * np.cos(2 * cell),
                    permeability=problem.tissue.permeability, periodic="xyz")
    at_rest = BlochTorrey(tissue)
    assert eigenmodes(at_rest, 5).eigenvalues[0] < 1e-10
    acquisition = few((0, 1500))
    for engine in (every_mode(at_rest, acquisition, 0.5), TimeStepping(at_rest, acquisition, 0.5)):
        signals = engine.signals()
        assert signals[0] == pytest.approx(at_rest.magnetisation_at_start, rel=1e-9)
        assert abs(signals[-1]) < 0.9 * at_rest.magnetisation_at_start


@pytest.mark.parametrize("name", ["hadc", "mf_adc", "short_time_approximation", "karger",
                                  "exchange_times", "compartments_of", "mass_balance"])
def test_quantities_refuse_what_repeats(name):
    arguments = {"exchange_times": (), "compartments_of": (), "mass_balance": ([1.0],)}
    with pytest.raises(InputError, match=f"tissue: periodic along x, which {name} does not know"):
        getattr(quantities, name)(layers().tissue, *arguments.get(name, (along_x(),)))


# ---- derivatives --------------------------------------------------------------------------------


def rates(value, slope, step) -> list[float]:
    """Of |J(s) - J(0) - s dJ| for s = step, step/2, step/4."""
    start = value(0.0)
    rest = [abs(value(s) - start - s * slope) for s in (step, step / 2, step / 4)]
    return [np.log2(a / b) for a, b in zip(rest[:-1], rest[1:], strict=True)]


@pytest.mark.parametrize("name", ["matrix_formalism", "time_stepping"])
@pytest.mark.parametrize("waveform", [None, LEAN, CosOGSE(2.0, 3.0, 1)],
                         ids=["pgse", "lean", "cos"])
def test_taylor_permeability(name, waveform):
    problem = layers(cells=2, degree=1, broken=True)
    acquisition = along_x((0, 500, 2500)) if waveform is None else Acquisition.product(
        [waveform], [0, 500, 2500], [[1.0, 0, 0]])
    engine = every_mode(problem, acquisition, 0.5) if name == "matrix_formalism" else \
        TimeStepping(problem, acquisition, 0.5)
    engine.signals(remember=True)
    gradient = engine.gradient(WEIGHTS[:3])
    base = problem.kappa.x.array.copy()
    along = base * (1 + 0.5 * np.sin(np.arange(len(base))))
    assert np.all(gradient[problem.tied] == 0) and np.any(gradient)

    def value(s):
        signals = engine.signals(base + s * along)
        return float((WEIGHTS[:3].conj() * signals).sum().real)

    assert min(rates(value, gradient @ along, 0.05)) > 1.9


@pytest.mark.parametrize("interface", ["equilibrium", "plain"])
def test_taylor_permeability_of_a_box(interface):
    problem = small_box("xz", tied=False, interface=interface)
    engine = every_mode(problem, few(), 0.5)
    engine.signals(remember=True)
    gradient = engine.gradient(WEIGHTS[:4])
    base = problem.kappa.x.array.copy()
    along = base * (1 + 0.5 * np.sin(np.arange(len(base))))

    def value(s):
        return float((WEIGHTS[:4].conj() * engine.signals(base + s * along)).sum().real)

    assert min(rates(value, gradient @ along, 0.05)) > 1.9


@pytest.mark.parametrize("name, step", [("D", 0.05), ("R2", 0.01)])
def test_taylor_cell_coefficients(name, step):
    problem = small_box("xz")
    engine = TimeStepping(problem, few((1500,)), 0.5)
    function = getattr(problem.coefficients, name)
    engine.signals(remember=True)
    gradient = engine.gradient_of(function, WEIGHTS[:2])
    base = function.x.array.copy()
    shape = (-1, 3, 3) if name == "D" else (-1,)
    along = np.sin(1 + np.arange(len(base))).reshape(shape)
    along = ((along + along.swapaxes(1, 2)) / 2 if name == "D" else along).ravel()

    def value(s):
        function.x.array[:] = base + s * along
        return float((WEIGHTS[:2].conj() * engine.signals()).sum().real)

    assert min(rates(value, gradient @ along, step)) > 1.9


def test_gradients_of_the_engines_approach_each_other():
    problem = layers(cells=3, broken=True)
    engine = every_mode(problem, along_x(), 0.05)
    engine.signals(remember=True)
    exact = engine.gradient(WEIGHTS[:3])
    found = TimeStepping(problem, along_x(), 0.02).gradient(WEIGHTS[:3])
    assert np.abs(found - exact).max() < 1e-3 * np.abs(exact).max()


def sink(m, v, t, c):
    """A second diffusivity, as a user would add it: by `forms.gradient`, not ``ufl.grad``."""
    return c.extra["more"] * ufl.inner(forms.gradient(m, c), forms.gradient(v, c)) * c.dx


def test_extra_terms_by_the_gradient_of_the_whole_magnetisation():
    line, _, kappa = stack(cells=4)
    more = dolfinx.fem.Constant(line.domain, 0.5)
    tissue = [Tissue(line, D, permeability=Permeability(line, kappa), periodic="x")
              for D in (1.5, 2.0)]
    with_extra = BlochTorrey(tissue[0], extra_terms=sink, extra_coefficients={"more": more})
    engine = TimeStepping(with_extra, along_x(), 0.2)
    found = engine.signals(remember=True)
    assert np.allclose(found, TimeStepping(BlochTorrey(tissue[1]), along_x(), 0.2).signals(),
                       rtol=1e-10)
    slope = float(engine.gradient_of(more, WEIGHTS[:3]))

    def value(s):
        more.value = 0.5 + s
        return float((WEIGHTS[:3].conj() * engine.signals()).sum().real)

    assert min(rates(value, slope, 0.05)) > 1.9


# ---- ranks --------------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("periodic", ["x", "xyz"])
def test_the_same_on_any_number_of_ranks(comm, periodic):
    found = []
    for where in (comm, MPI.COMM_SELF):
        problem = small_box(periodic, where)
        modes = every_mode(problem, few(), 0.5)
        steps = TimeStepping(problem, few((1500,)), 1.0)
        found.append((problem.mesh, modes.signals(remember=True), modes.gradient(WEIGHTS[:4]),
                      steps.signals(remember=True), steps.gradient(WEIGHTS[:2])))
    (here, *parts), (alone, *whole) = found
    partner = alone.find_facets(here.facet_vertices)
    for signals, expected in ((parts[0], whole[0]), (parts[2], whole[2])):
        assert np.abs(signals - expected).max() < 1e-8 * np.abs(expected).max()
    for gradient, expected in ((parts[1], whole[1]), (parts[3], whole[3])):
        assert np.abs(gradient - expected[partner]).max(initial=0) < 1e-7 * np.abs(expected).max()


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("periodic", ["w", "xx", "y", 1, "x y"])
def test_axes_that_are_not_there(periodic):
    line = mesh.build(mesh.intervals, [4.0], cells_per_layer=2, comm=MPI.COMM_SELF)
    with pytest.raises(InputError, match=f"periodic: {periodic!r}, expected some of the axes x "):
        Tissue(line, periodic=periodic)


def sheared(shift=0.0, extra=False) -> MeshData:
    """A rectangle whose upper side has its inner vertex moved, or one vertex more."""
    top = [0.5 + shift] if not extra else [0.3, 0.7]
    x = np.array([0, 0.5, 1, 0, *top, 1])
    points = np.column_stack([4 * x, 3 * (np.arange(len(x)) > 2), np.zeros(len(x))])
    n = len(x) - 1
    cells = [[0, 1, 3], [1, 4, 3], [1, 2, n], [1, n, 4]] if not extra else \
        [[0, 1, 3], [1, 4, 3], [1, 5, 4], [1, 2, 5], [2, 6, 5]]
    return MeshData(points, np.array(cells), name="sheared").check()


@pytest.mark.mpi
def test_faces_that_do_not_match(comm):
    Tissue(mesh.build(sheared, comm=comm), periodic="xy")
    moved = mesh.build(sheared, 0.1, comm=comm)
    Tissue(moved, periodic="x")
    with pytest.raises(InputError, match="periodic: axis y: one of the edges at .* um has no equal "
                                         "at y = 3 um, expected the same mesh on opposite faces"):
        Tissue(moved, periodic="xy")
    with pytest.raises(InputError, match="periodic: axis y: 2 edges at y = 0 um and 3 at y = 3 um, "
                                         "expected the same mesh on opposite faces"):
        Tissue(mesh.build(sheared, extra=True, comm=comm), periodic="y")


def test_meshes_that_are_no_box():
    ball = mesh.build(mesh.spheres, [3.0], size=2.0, comm=MPI.COMM_SELF)
    with pytest.raises(InputError, match="periodic: axis x: no outer facet lies on the plane x = -"
                                         r"\S+ um, expected a box there"):
        Tissue(ball, periodic="x")
