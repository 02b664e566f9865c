"""The weak form cell by cell and facet by facet, for models that put it together anew.

Broken spaces are block diagonal: what `spinverse.forms` and the user's extra terms assemble inside
cells is a small matrix for each cell, and what they assemble on facets one for each facet and its
two cells. Facets are told apart by colours: no cell has two facets of one colour, so that an
assembly with the facets of one colour alone holds the matrix of each of them in a place of its own.

All matrices are for the unknown v with m = rho v, rho the density: v is continuous across open
facets and 1 at the start, so that loads of ones excite and receive. Where the density of a label is
not the known one, its matrices are that many times those of the known one (`Blocks.density`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import dolfinx
import numpy as np
import ufl
from mpi4py import MPI

from ... import forms
from ...errors import InputError
from ...extra_terms import Unsuitable, cell_function, has
from ...mesh.whole import WholeMesh
from ...problem import BlochTorrey
from .drift import AXIS_PAIRS, DriftSweeps
from .propagation import Sweeps
from .walls import Walls

_ZERO = 1e-12  # of the largest entry: what an assembly leaves where nothing is
_OPEN = 1e12  # um/ms, in terms of the user's that depend on the permeability: no membrane
_LEAST = 0.2  # of the diffusivity, that open facets of finite permeability leave of it


@dataclass(frozen=True, eq=False)
class Blocks:
    """What cells and facets contribute to the operators, the same on every rank.

    Attributes:
        whole: the mesh.
        mass: ``(Nt, n, n)`` for the n values of a cell.
        decay: ``(C, Nt, n, n)`` diffusion, relaxation and extra terms, of mesh cells with the label
            0, 1, ...; those of the last row have all further labels.
        position: ``(3, Nt, n, n)`` um, from the centre of the box.
        drift: ``(C, 3, Nt, n, n)`` um/ms, `forms.drift` where the box is periodic, else None.
        square: ``(C, 6, Nt, n, n)`` um^2/ms, `forms.drift_squared` of `AXIS_PAIRS`.
        fastest: largest diffusivity, um^2/ms.
        nodes: ``(Nf, 2, p)`` values at the same nodes on the two sides: n times the cell, plus the
            place in the cell. The second side of an outer facet stands for nothing.
        exchange: ``(Nf, 2, p, 2, p)`` between them: `forms.exchange`, `forms.outflow` of 1 um/ms.
        at_walls: ``(C, Nf, 2, p, 2, p)`` the user's terms on facets that are walls of the cell 1,
            2, ...; the last row is of all further ones; None without.
        at_open: ``(Nf, 2, p, 2, p)`` on others.
        density: ``(C,)`` of mesh cells with the label 0, 1, ..., over the known one that all
            matrices are for; the last row is of all further labels.
    """

    whole: WholeMesh
    mass: np.ndarray
    decay: np.ndarray
    position: np.ndarray
    nodes: np.ndarray
    exchange: np.ndarray
    at_walls: np.ndarray | None = None
    at_open: np.ndarray | None = None
    density: np.ndarray = field(default_factory=lambda: np.ones(1))
    drift: np.ndarray | None = None
    square: np.ndarray | None = None
    fastest: float = 0.0

    @property
    def kind(self) -> type:
        """Of the sweeps that models of these take."""
        return Sweeps if self.drift is None else DriftSweeps

    @property
    def drift_of_two(self) -> list[np.ndarray]:
        """Of the inside and the outside, ``(3, Nt, n, n)`` each."""
        return [self.drift[min(label, len(self.drift) - 1)] for label in (1, 0)]

    @property
    def square_of_two(self) -> list[np.ndarray]:
        """Of the inside and the outside, ``(6, Nt, n, n)`` each."""
        return [self.square[min(label, len(self.square) - 1)] for label in (1, 0)]

    def decay_of(self, label: int) -> np.ndarray:
        """Of mesh cells with this label, ``(Nt, n, n)``."""
        return self.decay[min(label, len(self.decay) - 1)]

    def density_of(self, label: np.ndarray | int) -> np.ndarray:
        """Of mesh cells with these labels, over the known one."""
        return self.density[np.minimum(label, len(self.density) - 1)]

    def between(self, kappa: np.ndarray | float, exchange: np.ndarray, first: np.ndarray,
                second: np.ndarray, facets: np.ndarray) -> np.ndarray:
        """What walls between two labels contribute, ``(n, 2, p, 2, p)``.

        What crosses a membrane is kappa 2 rho+ rho- / (rho+ + rho-) [v], see `forms.jump`.

        Args:
            kappa: of each wall, um/ms.
            exchange: as the attribute, of all facets.
            first, second: labels of the two sides, ``(n,)``; 0 beyond the mesh.
            facets: numbers of the walls, ``(n,)``.
        """
        rho = self.density_of(np.stack([first, second], axis=-1))
        outer = self.whole.outer[facets]  # nothing is beyond
        rho[outer, 1] = rho[outer, 0]
        found = np.reshape(kappa * 2 * rho[:, 0] * rho[:, 1] / rho.sum(axis=1),
                           (-1, 1, 1, 1, 1)) * exchange[facets]
        if self.at_walls is None:
            return found
        cell, root = np.maximum(first, second).clip(1, len(self.at_walls)), np.sqrt(rho)
        return found + (root[:, :, None, None, None] * root[:, None, None, :, None]
                        * self.at_walls[cell - 1, facets])


def check(problem: BlochTorrey) -> None:
    """Which problems the fast models can take: the one place that says it. Collective.

    Raises:
        InputError: naming what they cannot take.
    """
    where = "shape search"
    if problem.mesh.dim != 3:
        raise InputError(f"{where}: mesh of dimension {problem.mesh.dim}, expected tetrahedra")
    if problem.periodic and not problem.mesh.glued == "xyz":
        raise InputError(f"{where}: tissue periodic along {problem.tissue.periodic} or tied there, "
                         "expected a mesh glued along xyz, or one that is not periodic")
    if problem.periodic and has(problem.extra_form, problem.g):
        raise InputError(f"{where}: extra_terms depend on the gradient in a periodic box, expected "
                         "terms that decay")
    if not problem.tissue.balanced and np.ptp(_reduced(problem, problem.tissue.density)) > 0:
        raise InputError(f"{where}: several densities with interface 'plain', expected "
                         "'equilibrium' (a uniform start is at rest then)")
    try:
        turning = problem.num_fields > 0
    except Unsuitable as error:
        raise InputError(f"{where}: extra_terms do not suit it, because {error.reason}") from None
    if turning:
        raise InputError(f"{where}: extra_terms turn the phase without a gradient, expected terms "
                         "that decay or are proportional to the gradient")
    around = _parted(problem.extra_form, None)[1]
    if around is not None and has(around, problem.g):
        raise InputError(f"{where}: extra_terms on facets depend on the gradient, expected terms "
                         "inside cells to do so alone")


def _reduced(problem: BlochTorrey, values: np.ndarray) -> np.ndarray:
    """Least and largest value over all ranks."""
    comm = problem.comm
    return np.array([comm.allreduce(float(values.min(initial=np.inf)), MPI.MIN),
                     comm.allreduce(float(values.max(initial=-np.inf)), MPI.MAX)])


class Assembly:
    """Assembles the `Blocks` of a problem at its present coefficients. Methods are collective.

    Args:
        problem: the discrete problem.
        whole: its mesh.

    Raises:
        InputError: see `check`.
    """

    def __init__(self, problem: BlochTorrey, whole: WholeMesh):
        check(problem)
        self.problem, self.whole = problem, whole
        mesh, space = problem.mesh, problem.space
        dofs = space.dofmap.list
        self.size = dofs.shape[1]
        # of every broken dof on this rank: its cell in the order of the input, and its place there
        self._cell_of, self._place_of = np.empty((2, dofs.max(initial=-1) + 1), dtype=np.int64)
        self._cell_of[dofs] = mesh.input_cells[:, None]
        self._place_of[dofs] = np.arange(self.size)
        root = np.zeros(len(whole.cells))
        root[mesh.input_cells] = np.sqrt(problem.tissue.density)
        mesh.comm.Allreduce(MPI.IN_PLACE, root, op=MPI.MAX)
        self._root = root  # of the density
        colours = _colours(whole)
        self._mine = colours[whole.owned]
        self._facet_of = np.full((len(whole.cells), int(colours.max()) + 1), -1)
        for side in whole.sides.T:
            there = np.flatnonzero(side >= 0)
            self._facet_of[side[there], colours[there]] = there
        self._chosen = mesh.facet_function(np.zeros(mesh.num_owned_facets), "chosen")
        self._parts = [form if form is None else problem.compile(form)
                       for form in _parted(problem.extra_form, self._chosen)]

    def blocks(self, walls: Walls, resistance: float = 2.0,
               labelled: Sequence[Callable[[], object]] = (lambda: None,)) -> Blocks:
        """At the present coefficients.

        Args:
            walls: the user's terms may depend on the permeability, and open facets of finite
                permeability slow diffusion down.
            resistance: how much of the resistance of open facets the cells take over, see
                `_slow`; about 2 on lattices.
            labelled: for each label from 0 on, what sets the coefficients as in cells of this label
                all over the mesh.
        """
        problem = self.problem
        inside, around = self._parts
        decays, densities, drifts, squares, fastest = [], [], [], [], 0.0
        for label in labelled:
            label()
            densities.append(self._density())
            mass, position, exchange = self._fixed
            if np.isfinite(walls.open):
                self._slow(resistance / walls.open)
            decay = self._inside(self._decay[int(np.isfinite(walls.open))])
            decays.append(decay if inside is None else decay + self._inside(inside, 0))
            if problem.periodic:
                D = self._diffusivity(np.isfinite(walls.open))
                fastest = max(fastest, float(np.linalg.eigvalsh(D)[:, -1].max()))
                squares.append([D[:, j, k, None, None] * mass for j, k in AXIS_PAIRS])
                drifts.append([self._inside(form)
                               for form in self._drift[int(np.isfinite(walls.open))]])
        at_walls = at_open = None
        if inside is not None and not problem.periodic:
            position = position + self._turned(inside)
        if around is not None:
            if has(problem.extra_form, problem.kappa):
                at_walls = np.array([self._terms_at(wall) for wall in np.atleast_1d(walls.wall)])
                at_open = self._terms_at(min(walls.open, _OPEN))
            else:
                at_open = self._terms_at(1.0)
                at_walls = at_open[None]
        driven = (np.array(drifts), np.array(squares), fastest) if drifts else ()
        return Blocks(self.whole, mass, np.array(decays), position, self._nodes, exchange,
                      at_walls, at_open, np.array(densities), *driven)

    @cached_property
    def corners(self) -> np.ndarray:
        """Coordinates of the values of each cell, ``(Nt, n, 3)`` um. Collective."""
        space, owned = self.problem.space, self.whole.owned_cells
        dofs = space.dofmap.list[: len(owned)]
        found = np.zeros((len(self.whole.cells), self.size, 3))
        found[owned] = space.tabulate_dof_coordinates()[dofs]
        return self.problem.comm.allreduce(found) if self.problem.comm.size > 1 else found

    def _density(self) -> float:
        """At present, the same everywhere, over the known one."""
        problem = self.problem
        if problem.tissue.balanced:  # the known one differs from cell to cell
            return 1.0
        return float(_reduced(problem, problem.density / problem.tissue.density)[1])

    @cached_property
    def _fixed(self) -> tuple:
        """Mass, positions and exchange, which no unknown coefficient changes."""
        problem = self.problem
        m, v, c = problem.scalar_arguments
        mass = self._inside(problem.compile(forms.mass(m, v, c)))
        position = np.array([self._inside(problem.compile(forms.position(m, v, c, j)))
                             for j in range(3)])
        form = problem.compile(forms.exchange(m, v, c) + forms.outflow(m, v, c))
        before = problem.kappa.x.array.copy()
        exchange = self._on_facets(form, problem.kappa)
        problem.kappa.x.array[:] = before
        return mass, position, self._between_nodes(exchange)

    @cached_property
    def _decay(self) -> tuple[dolfinx.fem.Form, dolfinx.fem.Form]:
        """With the diffusivity as it is, and as open facets leave it."""
        m, v, c = self.problem.scalar_arguments
        plain, slowed = (self.problem.compile(
            forms.diffusion(m, v, replace(c, D=D)) + forms.relaxation(m, v, c))
            for D in (c.D, self._slowed))
        return plain, slowed

    @cached_property
    def _drift(self) -> tuple[list[dolfinx.fem.Form], ...]:
        """`forms.drift` of the axes, with the diffusivities of `_decay`."""
        m, v, c = self.problem.scalar_arguments
        return tuple([self.problem.compile(forms.drift(m, v, replace(c, D=D), axis))
                      for axis in range(3)] for D in (c.D, self._slowed))

    def _diffusivity(self, slowed: bool) -> np.ndarray:
        """Of all cells, as it is or as open facets leave it, ``(Nt, 3, 3)`` um^2/ms."""
        D = self._slowed if slowed else self.problem.coefficients.D
        shape = (3, 3) if D.function_space.dofmap.bs > 1 else ()
        values = D.x.array.reshape(-1, *shape)[D.function_space.dofmap.list.ravel()]
        if not shape:
            values = values[:, None, None] * np.eye(3)
        mesh = self.problem.mesh
        result = np.zeros((len(self.whole.cells), 3, 3))
        result[mesh.input_cells[: mesh.num_owned_cells]] = values[: mesh.num_owned_cells]
        return mesh.comm.allreduce(result) if mesh.comm.size > 1 else result

    def _terms_at(self, permeability: float) -> np.ndarray:
        """The user's terms on facets, all of which have this permeability."""
        kappa = self.problem.kappa.x.array
        before = kappa.copy()
        kappa[:] = permeability
        found = self._on_facets(self._parts[1], self._chosen, 0)
        kappa[:] = before
        return self._between_nodes(found)

    def _turned(self, form: dolfinx.fem.Form) -> np.ndarray:
        """What the user's terms add to the positions, ``(3, Nt, n, n)`` or 0."""
        problem = self.problem
        if not has(problem.extra_form, problem.g):
            return np.zeros(1)
        rest = self._inside(form, 1)
        found = []
        for axis in np.eye(3):
            problem.g.value[:] = axis
            found.append(self._inside(form, 1) - rest)
        problem.g.value[:] = 0.0
        return np.array(found)

    # ---- assembled matrices as blocks ---------------------------------------------------------

    def _entries(self, form: dolfinx.fem.Form, part: int | None) -> tuple:
        """Entries of the owned rows: cells and places of rows and columns, values.

        Args:
            part: of a form of pairs: 0 for what is real of it, 1 for what i multiplies.
        """
        matrix = dolfinx.fem.assemble_matrix(form)
        matrix.scatter_reverse()
        found = matrix.to_scipy().tocsr()
        if part is not None:
            found = found[part::2, ::2]
        found = found[: self.problem.space.dofmap.index_map.size_local].tocoo()
        rows, columns = self._cell_of[found.row], self._cell_of[found.col]
        return (rows, self._place_of[found.row], columns, self._place_of[found.col],
                found.data * self._root[rows] * self._root[columns])

    def _inside(self, form: dolfinx.fem.Form, part: int | None = None) -> np.ndarray:
        """A form without facets, cell by cell, ``(Nt, n, n)``."""
        rows, i, _, j, values = self._entries(form, part)
        blocks = np.zeros((len(self.whole.cells), self.size, self.size))
        blocks[rows, i, j] = values
        return self.problem.comm.allreduce(blocks) if self.problem.comm.size > 1 else blocks

    def _on_facets(self, form: dolfinx.fem.Form, weight, part: int | None = None) -> np.ndarray:
        """A form on facets that is proportional to ``weight``, ``(Nf, 2, n, 2, n)``."""
        sides, n = self.whole.sides, self.size
        blocks = np.zeros((len(sides), 2, n, 2, n))
        for colour in range(self._facet_of.shape[1]):
            weight.x.array[: len(self._mine)] = self._mine == colour
            rows, i, columns, j, values = self._entries(form, part)
            facets = self._facet_of[rows, colour]
            kept = (facets >= 0) & (values != 0)
            rows, i, columns, j, values, facets = (
                a[kept] for a in (rows, i, columns, j, values, facets))
            row_side, column_side = (
                (sides[facets, 0] != cells).astype(int) for cells in (rows, columns))
            blocks[facets, row_side, i, column_side, j] = values
        return self.problem.comm.allreduce(blocks) if self.problem.comm.size > 1 else blocks

    @cached_property
    def _nodes(self) -> np.ndarray:
        problem, whole = self.problem, self.whole
        outer, number = problem.mesh.outer, problem.mesh.num_owned_facets
        first = problem.traces.side_nodes(0, np.arange(number))
        second = first.copy()
        second[~outer] = problem.traces.side_nodes(1, np.flatnonzero(~outer))
        found = np.stack([first, second], axis=1)
        found = self.size * self._cell_of[found] + self._place_of[found]
        swapped = found[:, 0, 0] // self.size != whole.sides[whole.owned, 0]
        found[swapped] = found[swapped][:, ::-1]
        result = np.zeros((len(whole.facets), *found.shape[1:]), dtype=np.int64)
        result[whole.owned] = found
        return problem.comm.allreduce(result) if problem.comm.size > 1 else result

    def _between_nodes(self, blocks: np.ndarray) -> np.ndarray:
        """``(Nf, 2, p, 2, p)`` of ``(Nf, 2, n, 2, n)``: nodes off a facet have no part in it."""
        here, two = self._nodes % self.size, np.arange(2)
        index = (np.arange(len(here))[:, None, None, None, None], two[:, None, None, None],
                 here[:, :, :, None, None], two[:, None], here[:, None, None])
        found = blocks[index]
        blocks = blocks.copy()
        blocks[index] = 0.0
        if np.abs(blocks).max() > _ZERO * np.abs(found).max():
            raise InputError("shape search: extra_terms have derivatives of m on facets, expected "
                             "its values alone there")
        return found

    # ---- open facets of finite permeability ---------------------------------------------------

    @cached_property
    def _slowed(self) -> dolfinx.fem.Function:
        cells = len(self.problem.mesh.input_cells)
        return cell_function(self.problem.mesh.domain, np.zeros((cells, 3, 3)), "slowed")

    def _slow(self, resistance: float) -> None:
        """Set the diffusivity of cells whose open facets are taken for no obstacle, ms/um.

        A facet of permeability kappa is in series with the cells on its sides; to first order each
        loses D (A n n^T / (2 V kappa)) D, times a factor that depends on the elements.
        """
        D, made = self.problem.coefficients.D, self._slowed
        shape = (3, 3) if D.function_space.dofmap.bs > 1 else ()
        values = D.x.array.reshape(-1, *shape)[D.function_space.dofmap.list.ravel()]
        if not shape:
            values = values[:, None, None] * np.eye(3)
        loss = values @ self._across[self.problem.mesh.input_cells] @ values
        slow = values - resistance * loss
        least = np.linalg.eigvalsh(slow)[:, 0] < _LEAST * np.linalg.eigvalsh(values)[:, 0]
        slow[least] = _LEAST * values[least]
        made.x.array.reshape(-1, 3, 3)[made.function_space.dofmap.list.ravel()] = slow

    @cached_property
    def _across(self) -> np.ndarray:
        """Sum over the inner facets of each cell of A n n^T / (2 V), ``(Nt, 3, 3)`` 1/um."""
        whole = self.whole
        inner = ~whole.outer
        n = whole.normals[inner] / np.sqrt(whole.areas[inner])[:, None]
        total = np.zeros((len(whole.cells), 3, 3))
        for side in whole.sides[inner].T:
            np.add.at(total, side, n[:, :, None] * n[:, None, :]
                      / (2 * whole.volumes[side])[:, None, None])
        return total


def _parted(form: ufl.Form, weight) -> tuple[ufl.Form | None, ufl.Form | None]:
    """What a form has inside cells, and on facets times a DG0 ``weight`` on these (None: as is)."""
    inside, around = [], []
    for integral in form.integrals():
        if integral.integral_type() == "cell":
            inside.append(integral)
        elif weight is None:
            around.append(integral)
        else:
            side = weight("+") if integral.integral_type() == "interior_facet" else weight
            around.append(integral.reconstruct(integral.integrand() * side))
    return tuple(ufl.Form(part) if part else None for part in (inside, around))


def _colours(whole: WholeMesh) -> np.ndarray:
    """A colour for each facet, ``(Nf,)``: no cell has two facets of one."""
    used: list[set[int]] = [set() for _ in whole.cells]
    result = np.empty(len(whole.sides), dtype=np.int64)
    for facet, sides in enumerate(whole.sides.tolist()):
        taken = set().union(*(used[cell] for cell in sides if cell >= 0))
        colour = next(k for k in range(len(taken) + 1) if k not in taken)
        result[facet] = colour
        for cell in sides:
            if cell >= 0:
                used[cell].add(colour)
    return result
