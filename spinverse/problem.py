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

    Facets whose permeability is ``inf`` and periodic faces are tied when the problem is made; the
    permeability of the others may change through `set_permeability`.

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
        self.periodic = tissue.periodic_axes
        self.tied = tissue.permeability.tied | tissue.periodic_facets
        self.kappa = self.mesh.facet_function(np.where(self.tied, 0, tissue.permeability.values))
        self.g = dolfinx.fem.Constant(domain, np.zeros(self.mesh.dim))
        self.Q = dolfinx.fem.Constant(domain, np.zeros(self.mesh.dim)) if self.periodic else None
        centre = dolfinx.fem.Constant(domain, self.mesh.centre[: self.mesh.dim])
        self._balanced = tissue.balanced
        self.coefficients = forms.Coefficients(
            D=_cell_function(domain, tissue.diffusivity, "D"),
            R2=_cell_function(domain, 1.0 / tissue.T2, "R2"),
            kappa=self.kappa, x=ufl.SpatialCoordinate(domain) - centre, g=self.g,
            dx=ufl.Measure("dx", domain), dS=ufl.Measure("dS", domain),
            ds=_boundary(tissue), extra=extra_coefficients or {},
            rho=_cell_function(domain, tissue.density, "rho") if self._balanced else None,
            periodic=self.periodic, Q=self.Q)
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
        if not self._balanced:
            return self.traces.jump_matrix()
        cells = self.mesh.facet_cells
        rho = self.tissue.density[cells]  # outer facets have no other side
        other = np.where(cells[:, 1:] < 0, rho[:, :1], rho[:, ::-1])
        rho = np.where(cells < 0, rho[:, :1], rho)
        return self.traces.jump_matrix(np.sqrt(2 * other / (rho + other)))

    @cached_property
    def prolongation(self) -> PETSc.Mat | None:
        """P from the tied space to the broken scalar one; None when nothing is tied. Collective."""
        return tie(self.mesh, self.space, self.traces, self.tissue.permeability.tied,
                   self.scale if self._balanced else None,
                   [self.traces.periodic_pairs(axis) for axis in self.periodic])

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
        """(x_j m, v) for each axis j between owned broken dofs, um."""
        m, v, c = self._scalar
        return [self._local(forms.position(m, v, c, j)) for j in range(self.mesh.dim)]

    @cached_property
    def local_drifts(self) -> dict[int, scipy.sparse.csr_matrix]:
        """`forms.drift` for each periodic axis between owned broken dofs."""
        m, v, c = self._scalar
        return {j: self._local(forms.drift(m, v, c, j)) for j in self.periodic}

    @cached_property
    def local_squares(self) -> dict[tuple[int, int], scipy.sparse.csr_matrix]:
        """`forms.drift_squared` for the pairs j <= k of periodic axes where it is not zero."""
        m, v, c = self._scalar
        tensor = bool(ufl.shape(c.D))
        return {(j, k): self._local(forms.drift_squared(m, v, c, j, k))
                for j in self.periodic for k in self.periodic if j == k or (tensor and j < k)}

    @cached_property
    def scale(self) -> np.ndarray:
        """Magnetisation over unknown at the owned broken dofs: see `spinverse.forms`."""
        density = self.tissue.density
        return self._by_cell(np.sqrt(density) if self._balanced else np.ones_like(density))

    @cached_property
    def initial(self) -> np.ndarray:
        """The unknown at the start at the owned broken dofs: density over `scale`."""
        return self._by_cell(self.tissue.density) / self.scale

    @cached_property
    def magnetisation_at_start(self) -> float:
        """Integral of the initial magnetisation over the mesh, um^d times density."""
        return self.comm.allreduce(float(self.scale @ (self.local_mass @ self.initial)))

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


def _boundary(tissue: Tissue) -> ufl.Measure:
    """Measure over the outer facets that are not periodic."""
    mesh = tissue.mesh
    if not tissue.periodic:
        return ufl.Measure("ds", mesh.domain)
    there = np.sort(mesh.facet_entities[mesh.outer & ~tissue.periodic_facets])
    tags = dolfinx.mesh.meshtags(mesh.domain, mesh.dim - 1, there.astype(np.int32),
                                 np.ones(len(there), dtype=np.int32))
    return ufl.Measure("ds", mesh.domain, subdomain_data=tags)(1)


def _cell_function(domain, values: np.ndarray, name: str) -> dolfinx.fem.Function:
    """DG0 function, scalar or tensor, from values over the cells of this rank."""
    shape = values.shape[1:]
    space = dolfinx.fem.functionspace(domain, ("DG", 0, shape) if shape else ("DG", 0))
    function = dolfinx.fem.Function(space, name=name)
    cells = space.dofmap.list.ravel()
    function.x.array.reshape(-1, *shape)[cells] = values
    function.x.scatter_forward()
    return function
