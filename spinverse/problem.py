"""The discrete problem: the weak form of `spinverse.forms` on a tissue, as matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import dolfinx
import numpy as np
import scipy.sparse
import ufl
from dolfinx.fem import petsc as fem_petsc
from petsc4py import PETSc

from . import forms
from .errors import InputError
from .tissue import Tissue
from .traces import FacetTraces, tie


class BlochTorrey:
    """The Bloch-Torrey equation on a tissue, discretised with broken Lagrange elements.

    Facets whose permeability is ``inf`` are tied when the problem is made; the others may change
    through `set_permeability`.

    Args:
        tissue: diffusivity, T2, density and permeability on a mesh.
        degree: polynomial degree within a cell, at least 1.
        extra_terms: ``extra_terms(m, v, c) -> ufl.Form``, added to the pair form (see
            `spinverse.forms`); the matrix formalism refuses it, time stepping runs it.
        extra_coefficients: named UFL coefficients that ``extra_terms`` finds in ``c.extra``.
    """

    def __init__(self, tissue: Tissue, degree: int = 1,
                 extra_terms: Callable | None = None, extra_coefficients: dict | None = None):
        if not (isinstance(degree, int) and degree >= 1):
            raise InputError(f"degree: {degree!r}, expected a whole number of at least 1")
        self.tissue, self.mesh, self.degree = tissue, tissue.mesh, degree
        self.extra_terms = extra_terms
        domain = self.mesh.domain
        self.tied = tissue.permeability.tied
        self.kappa = self.mesh.facet_function(np.where(self.tied, 0, tissue.permeability.values))
        self.g = dolfinx.fem.Constant(domain, np.zeros(3))
        centre = dolfinx.fem.Constant(domain, self.mesh.centre)
        self.coefficients = forms.Coefficients(
            D=_cell_function(domain, tissue.diffusivity, "D"),
            R2=_cell_function(domain, 1.0 / tissue.T2, "R2"),
            kappa=self.kappa, x=ufl.SpatialCoordinate(domain) - centre, g=self.g,
            dx=ufl.Measure("dx", domain), dS=ufl.Measure("dS", domain),
            ds=ufl.Measure("ds", domain), extra=extra_coefficients or {})
        self.space = dolfinx.fem.functionspace(domain, ("DG", degree))

    # ---- what both engines share -------------------------------------------------------------

    @property
    def comm(self):
        return self.mesh.comm

    def set_permeability(self, values: np.ndarray) -> None:
        """New permeability of the owned facets, ``(nf,)`` um/ms; tied facets stay tied."""
        self.kappa.x.array[: self.mesh.num_owned_facets] = np.where(self.tied, 0.0, values)

    def compile(self, form: ufl.Form) -> dolfinx.fem.Form:
        """The form, ready to assemble, with the facet submesh's entity map."""
        return dolfinx.fem.form(form, entity_maps=[self.mesh.facet_map])

    @cached_property
    def traces(self) -> FacetTraces:
        return FacetTraces(self.mesh, self.space)

    @cached_property
    def jump_matrix(self) -> scipy.sparse.csr_matrix:
        """T with Q(kappa) = T^T diag(kappa) T: see `FacetTraces.jump_matrix`."""
        return self.traces.jump_matrix()

    @cached_property
    def prolongation(self) -> PETSc.Mat | None:
        """P from the tied space to the broken scalar one; None when nothing is tied. Collective."""
        return tie(self.mesh, self.space, self.traces, self.tied)

    @property
    def num_unknowns(self) -> int:
        """Complex unknowns of the whole problem, tied facets taken into account. Collective."""
        if self.prolongation is None:
            return self.space.dofmap.index_map.size_global
        return self.prolongation.getSize()[1]

    # ---- real symmetric operators of the scalar space (matrix formalism) ---------------------

    @cached_property
    def _scalar(self) -> tuple:
        m, v = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        return m, v, self.coefficients

    @cached_property
    def _decay_form(self) -> dolfinx.fem.Form:
        return self.compile(forms.decay(*self._scalar))

    @cached_property
    def _decay_matrix(self) -> PETSc.Mat:
        return fem_petsc.create_matrix(self._decay_form)

    def decay_matrix(self) -> PETSc.Mat:
        """Matrix of `forms.decay` at the present permeability, on the tied space."""
        matrix = self._decay_matrix
        matrix.zeroEntries()
        fem_petsc.assemble_matrix(matrix, self._decay_form)
        matrix.assemble()
        return self._tie(matrix)

    @cached_property
    def mass_matrix(self) -> PETSc.Mat:
        """Matrix of (m, v), on the tied space."""
        matrix = fem_petsc.assemble_matrix(self.compile(forms.mass(*self._scalar)))
        matrix.assemble()
        return self._tie(matrix)

    @cached_property
    def local_mass(self) -> scipy.sparse.csr_matrix:
        """(m, v) between owned broken dofs: block diagonal by cell, no other rank needed."""
        return self._local(forms.mass(*self._scalar))

    @cached_property
    def local_positions(self) -> list[scipy.sparse.csr_matrix]:
        """(x_j m, v) for j = 0, 1, 2 between owned broken dofs, um."""
        m, v, c = self._scalar
        return [self._local(forms.position(m, v, c, j)) for j in range(3)]

    @cached_property
    def initial(self) -> np.ndarray:
        """Initial magnetisation at the owned broken dofs: the density of each dof's cell."""
        return self._by_cell(self.tissue.density)

    @cached_property
    def magnetisation_at_start(self) -> float:
        """Integral of the initial magnetisation over the mesh, um^3."""
        ones = np.ones(self.local_mass.shape[0])
        return self.comm.allreduce(float(ones @ (self.local_mass @ self.initial)))

    def _by_cell(self, values: np.ndarray) -> np.ndarray:
        dofs = self.space.dofmap
        result = np.zeros(dofs.index_map.size_local + dofs.index_map.num_ghosts)
        result[dofs.list] = np.asarray(values)[:, None]
        return result[: dofs.index_map.size_local]

    def _local(self, form: ufl.Form) -> scipy.sparse.csr_matrix:
        matrix = dolfinx.fem.assemble_matrix(self.compile(form))
        matrix.scatter_reverse()
        owned = self.space.dofmap.index_map.size_local
        return matrix.to_scipy()[:owned, :owned].tocsr()

    def _tie(self, matrix: PETSc.Mat) -> PETSc.Mat:
        return matrix if self.prolongation is None else matrix.ptap(self.prolongation)


def _cell_function(domain, values: np.ndarray, name: str) -> dolfinx.fem.Function:
    """DG0 function, scalar or tensor, from values over the cells of this rank."""
    shape = values.shape[1:]
    space = dolfinx.fem.functionspace(domain, ("DG", 0, shape) if shape else ("DG", 0))
    function = dolfinx.fem.Function(space, name=name)
    cells = space.dofmap.list.ravel()
    function.x.array.reshape(-1, *shape)[cells] = values
    function.x.scatter_forward()
    return function
