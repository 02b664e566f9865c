"""Terms of the user's own: their coefficients, their form, and what structure it has.

A form F(m, v) that is linear in the pairs m = (Re m, Im m) and v is a real matrix with four blocks.
Where it is linear in the complex m, these are [[R, -J], [J, R]], which stands for R + i J. The
matrix formalism can take

    R + i (J_b + s J_e + sum_j g_j J_j),       all of them real and symmetric,

R into its eigenproblem, the others into the propagation of its modes; s is the sign that 180-degree
pulses turn (`spinverse.forms.Coefficients.echo_sign`).

How a form depends on t, g and Q is read off its expressions (`degree_in`), for a sample could lie
where a term is switched off: whether t is in it, and whether they say that it is affine in g. Then
its values for s = 1 and -1, without g and for g along each axis, are all there is to know: `blocks`
assembles these, and says what of the structure above they have not.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import dolfinx
import numpy as np
import ufl
from dolfinx.fem import petsc as fem_petsc
from petsc4py import PETSc
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from ufl.algorithms import expand_derivatives
from ufl.algorithms.check_arities import ArityMismatch, check_form_arity

from .errors import InputError
from .mesh.distributed import Mesh
from .parallel.columns import times
from .tissue import by_cell_tag, numbers

_ROUNDING = 1e-9  # of the norm of all blocks
_LINEAR = (ufl.classes.Sum, ufl.classes.Indexed, ufl.classes.IndexSum, ufl.classes.ComponentTensor,
           ufl.classes.ListTensor, ufl.classes.Restricted, ufl.classes.Variable, ufl.classes.Conj,
           ufl.classes.Real)  # operators, once derivatives and tensor algebra are expanded
_DIFFERENT = PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN
_SIGNATURE = "expected a function (m, v, t, coefficients) that returns a UFL form"


class Unsuitable(InputError):
    """Terms that the matrix formalism has no place for; ``reason`` says why."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__("extra_terms: engine matrix_formalism cannot take them, because "
                         f"{reason}; expected engine 'time_stepping' or 'auto'")


def check_function(function) -> None:
    """Refuse what cannot be called with m, v, t and the coefficients."""
    if not callable(function):
        raise InputError(f"extra_terms: {function!r:.60}, {_SIGNATURE}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # compiled functions may have none
        return
    try:
        signature.bind(None, None, None, None)
    except TypeError:
        name = getattr(function, "__name__", type(function).__name__)
        raise InputError(f"extra_terms: {name}{signature}, {_SIGNATURE}") from None


def check_bilinear(form, m, v) -> None:
    """Refuse what is no form, or not linear in m and in v: compiling would find out too late."""
    bilinear = isinstance(form, ufl.Form)
    try:
        if bilinear:
            check_form_arity(expand_derivatives(form), (v, m))
            bilinear = form.empty() or set(form.arguments()) == {m, v}
    except ArityMismatch:
        bilinear = False
    if not bilinear:
        raise InputError("extra_terms: expected a UFL form linear in m and in v, "
                         f"got {str(form)!r:.60}")


def check_regions(form: ufl.Form, mesh: Mesh, outer: list[int]) -> None:
    """Refuse integrals over regions that the mesh has not: they would be nothing. Collective.

    ``outer`` are numbers that ``ds`` itself has.
    """
    tags = sorted(set().union(*mesh.comm.allgather(set(mesh.cell_tags.tolist()))))
    for integral in form.integrals():
        kind, ids = integral.integral_type(), integral.subdomain_id()
        ids = ids if isinstance(ids, tuple) else (ids,)
        wrong = [i for i in ids if isinstance(i, int) and i not in (
            tags if kind == "cell" else outer if kind == "exterior_facet" else [])]
        if wrong and kind == "cell":
            raise InputError(f"extra_terms: dx({wrong[0]}), but the mesh has the cell tags "
                             f"{', '.join(map(str, tags))}")
        if wrong:
            raise InputError(f"extra_terms: {'dS' if kind == 'interior_facet' else 'ds'}"
                             f"({wrong[0]}): facets have no tags, expected dS and ds alone, times "
                             "a coefficient that says where")


def has(form: ufl.Form, coefficient) -> bool:
    """Whether a coefficient or constant is in a form."""
    return any(coefficient is x for x in (*form.coefficients(), *form.constants()))


def degree_in(form: ufl.Form, coefficient) -> float:
    """Polynomial degree of a form in a coefficient or constant, an upper bound.

    Read off the expressions: inf where these do not prove a degree, as where the coefficient is in
    a condition, a function or a denominator.
    """
    known: dict = {}

    def degree(expression) -> float:
        if expression not in known:
            operands = expression.ufl_operands
            known[expression] = (float(expression is coefficient) if not operands
                                 else _degree(expression, [degree(o) for o in operands]))
        return known[expression]

    return max((degree(integral.integrand())
                for integral in expand_derivatives(form).integrals()), default=0.0)


def _degree(expression, degrees: list[float]) -> float:
    """Of an operator, whose operands have these degrees."""
    if not any(degrees):
        return 0.0
    if isinstance(expression, ufl.classes.Product):
        return sum(degrees)
    dependent = [degree > 0 for degree in degrees]
    if isinstance(expression, _LINEAR) or (
            isinstance(expression, ufl.classes.Division) and not dependent[1]) or (
            isinstance(expression, ufl.classes.Conditional) and not dependent[0]):
        return max(degrees)
    return np.inf


def coefficients_of(mesh: Mesh, given: Mapping | None) -> dict:
    """Named values as UFL.

    A number, a vector or a tensor becomes a Constant; values by cell tag or ``(Nt, ...)`` over the
    cells of the input DG0 Functions; anything that UFL knows stays as it is.

    Raises:
        InputError: a value that is none of these.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(f"extra_coefficients: a {type(given).__name__}, expected a mapping of "
                         "names to values")
    return {name: _coefficient(mesh, name, value) for name, value in given.items()}


def _coefficient(mesh: Mesh, name: str, value):
    if isinstance(value, ufl.core.expr.Expr):
        return value
    field = f"extra_coefficients: {name}"
    if isinstance(value, Mapping):
        entries = {int(tag): _finite(field, entry) for tag, entry in value.items()}
        shapes = {entry.shape for entry in entries.values()}
        if len(shapes) > 1:
            raise InputError(f"{field}: shapes {sorted(shapes)}, expected the same for all tags")
        return cell_function(mesh.domain, by_cell_tag(mesh, field, entries), name)
    array = _finite(field, value)
    if array.ndim and len(array) == mesh.num_cells:
        return cell_function(mesh.domain, array[mesh.input_cells], name)
    if any(size > 3 for size in array.shape):
        raise InputError(f"{field}: shape {array.shape}, expected a number, a vector, a tensor, or "
                         f"one of these for each of the {mesh.num_cells} cells")
    return dolfinx.fem.Constant(mesh.domain, array)


def _finite(field: str, value) -> np.ndarray:
    array = numbers(field, value, "numbers or a UFL coefficient")
    if not np.isfinite(array).all():
        raise InputError(f"{field}: has values that are not finite")
    return array


def cell_function(domain, values: np.ndarray, name: str) -> dolfinx.fem.Function:
    """DG0 function, scalar or not, from values over the cells of this rank."""
    shape = values.shape[1:]
    space = dolfinx.fem.functionspace(domain, ("DG", 0, shape) if shape else ("DG", 0))
    function = dolfinx.fem.Function(space, name=name)
    cells = space.dofmap.list.ravel()
    function.x.array.reshape(-1, *shape)[cells] = values
    function.x.scatter_forward()
    return function


@dataclass(frozen=True, eq=False)
class Blocks:
    """Real symmetric matrices on the broken scalar space: R, and J_j by axis, if the terms know g.

    ``fields`` are J_b + J_e and, if the terms know s, J_b - J_e; ``turns``: whether any is not
    zero.
    """

    decay: PETSc.Mat
    fields: tuple[PETSc.Mat, ...]
    positions: dict[int, PETSc.Mat]
    turns: bool

    @property
    def matrices(self) -> list[PETSc.Mat]:
        return [self.decay, *self.fields, *self.positions.values()]

    def destroy(self) -> None:
        for matrix in self.matrices:
            matrix.destroy()


def blocks(problem) -> Blocks:
    """The extra terms of a `spinverse.BlochTorrey` at their present coefficients. Collective.

    Raises:
        Unsuitable: what is in the way of the structure above.
        InputError: entries that are not finite.
    """
    pool: list[PETSc.Mat] = []  # in parallel PETSc frees nothing by itself
    kept: list[PETSc.Mat] = []
    try:
        result = _blocks(problem, pool)
        kept = result.matrices
        return result
    finally:
        problem.g.value[:], problem.echo_sign.value = 0.0, 1.0
        for matrix in pool:
            if not any(matrix is other for other in kept):
                matrix.destroy()


def _blocks(problem, pool: list) -> Blocks:
    form, dim = problem.extra_form, problem.mesh.dim
    if problem.periodic and (has(form, problem.g) or has(form, problem.Q)):
        raise Unsuitable("they depend on the gradient, on a periodic box")
    if degree_in(form, problem.t) > 0:
        raise Unsuitable("they depend on the time")
    if degree_in(form, problem.g) > 1:
        raise Unsuitable("they depend on the gradient, and not in proportion to it")
    compiled = problem.compile(form)
    signs = (1.0, -1.0) if has(form, problem.echo_sign) else (1.0,)

    def at(s: float, g=0.0) -> PETSc.Mat:
        problem.g.value[:], problem.echo_sign.value = g, s
        pool.append(fem_petsc.assemble_matrix(compiled))
        pool[-1].assemble()
        return pool[-1]

    whole = [at(s) for s in signs]
    size = max(matrix.norm() for matrix in whole)
    if not np.isfinite(size):
        raise InputError("extra_terms: their matrix has entries that are not finite; a coefficient "
                         "that is not, or a division by zero?")
    small = _ROUNDING * size
    decays, fields = zip(*(_complex(problem, matrix, small, pool) for matrix in whole),
                         strict=True)
    if _distance(decays[0], decays[-1]) > small:
        raise Unsuitable("echo_sign is in a term that is not i times a symmetric one")
    positions = {}
    for axis in range(dim if has(form, problem.g) else 0):
        by_sign = [at(s, np.eye(dim)[axis]) for s in signs]
        small = _ROUNDING * max(size, *(matrix.norm() for matrix in by_sign))
        real, positions[axis] = _complex(problem, by_sign[0], small, pool)
        if _distance(real, decays[0]) > small:
            raise Unsuitable("the gradient is in a term that is not i times a symmetric one")
        positions[axis].axpy(-1.0, fields[0], _DIFFERENT)
        for matrix, base in zip(by_sign, whole, strict=True):
            matrix.axpy(-1.0, base, _DIFFERENT)
        if _distance(by_sign[0], by_sign[-1]) > small:
            raise Unsuitable("they depend on the gradient, and not in proportion to it alone")
    turning = max(matrix.norm() for matrix in fields) > _ROUNDING * size
    if turning and problem.periodic:
        raise Unsuitable("they turn the phase, on a periodic box")
    return Blocks(decays[0], fields, positions, turning)


def structure(problem) -> tuple[int, bool]:
    """What the matrix formalism is to expect. Collective.

    How many of `Blocks.fields` are ever to be looked at, 0, 1 or 2; and whether magnetisation may
    grow (if it does, the modes tell). At coefficients near the present ones too, for they may
    change: a velocity of zero has any structure.

    Raises:
        Unsuitable: as `blocks`.
    """
    found = [blocks(problem)]
    try:
        with _perturbed(problem):
            found.append(blocks(problem))
    except Unsuitable:
        raise
    except InputError:  # not finite: the moved values are out of a function's domain
        pass
    number = max(len(b.fields) * b.turns for b in found)
    diagonal = found[0].decay.getDiagonal()
    may_grow = diagonal.min()[1] < 0
    diagonal.destroy()
    for each in found:
        each.destroy()
    return number, may_grow


def _complex(problem, pair: PETSc.Mat, small: float, pool: list) -> tuple:
    """R and J of a pair matrix, dofs of the scalar space doubled."""
    first, last = problem.space.dofmap.index_map.local_range
    parts = [PETSc.IS().createStride(last - first, 2 * first + part, 2, comm=problem.comm)
             for part in range(2)]
    found = [pair.createSubMatrix(row, column) for row in parts for column in parts]
    pool += found
    for index in parts:
        index.destroy()
    re, minus, im, other = found
    minus.scale(-1.0)
    if max(_distance(re, other), _distance(im, minus)) > small:
        raise Unsuitable("they treat Re m and Im m differently")
    for matrix, what in ((re, "a part"), (im, "i times a part")):
        transposed = PETSc.Mat()
        matrix.transpose(transposed)
        pool.append(transposed)
        if _distance(transposed, matrix) > small:
            raise Unsuitable(f"they have {what} that is not symmetric in m and v, as flow has")
    return re, im


def _distance(one: PETSc.Mat, other: PETSc.Mat) -> float:
    difference = one.copy()
    difference.axpy(-1.0, other, _DIFFERENT)
    distance = difference.norm()
    difference.destroy()
    return distance


@contextmanager
def _perturbed(problem):
    """Coefficients of the extra terms at other values, and back again."""
    own = (problem.g, problem.Q, problem.t, problem.echo_sign)
    form = problem.extra_form
    constants = [c for c in form.constants() if not any(c is x for x in own)
                 and isinstance(c, dolfinx.fem.Constant)]
    functions = [f for f in form.coefficients() if isinstance(f, dolfinx.fem.Function)]
    views = [c.value.reshape(1, *c.ufl_shape) for c in constants] + [
        f.x.array.reshape(-1, *(f.function_space.value_shape * (f.function_space.dofmap.bs > 1)))
        for f in functions]
    before = [view.copy() for view in views]
    try:
        for k, view in enumerate(views):
            view[...] = _moved(view, view.shape[1:], k)
        for f in functions:
            f.x.scatter_forward()
        yield
    finally:
        for view, values in zip(views, before, strict=True):
            view[...] = values


def _moved(values: np.ndarray, shape: tuple, seed: int) -> np.ndarray:
    """Values ``(n, *shape)`` moved by about a tenth; symmetric tensors stay so."""
    wave = np.sin(1.0 + seed + np.arange(len(values)) * 1.7).reshape(-1, *[1] * len(shape))
    size = max(float(np.abs(values).max(initial=0.0)), 1e-3)
    pattern = np.cos(1.0 + np.arange(int(np.prod(shape)))).reshape(shape) if shape else np.ones(1)
    if len(shape) == 2 and shape[0] == shape[1]:
        pattern = pattern + pattern.T
    return values * (1 + 0.1 * wave) + 0.05 * size * pattern * (1 + 0.3 * wave)


def reaching(matrix: PETSc.Mat, local=None) -> LinearOperator:
    """A matrix that reaches over ranks, plus a local one, for columns of owned rows. Collective."""
    product = partial(times, matrix)
    operator = LinearOperator(matrix.getSizes()[0][:1] * 2, product, matmat=product, dtype=float)
    return operator if local is None else operator + aslinearoperator(local)
