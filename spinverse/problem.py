"""The discrete problem: the weak form of `spinverse.forms` on a tissue, as matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import dolfinx
import numpy as np
import scipy.sparse
import ufl
from dolfinx.fem import petsc as fem_petsc
from petsc4py import PETSc

from . import extra_terms as extra
from . import forms
from .errors import InputError, SpinverseError, one_line
from .mesh.distributed import Mesh
from .tissue import Tissue
from .traces import FacetTraces, facet_degree, tie
from .unknowns import Unknowns

MEMBRANE = 1.0  # um/ms: facets of a much higher permeability are open, not membranes


class BlochTorrey:
    """The Bloch-Torrey equation on a tissue, discretised with broken Lagrange elements.

    Facets whose permeability is ``inf`` and periodic faces are tied when the problem is made; the
    permeability of the others may change through `set_permeability`.

    Args:
        tissue: diffusivity, T2, T1, density and permeability on a mesh.
        degree: polynomial degree within a cell, at least 1.
        extra_terms: ``extra_terms(m, v, t, coefficients) -> ufl.Form``, added to the pair form;
            t is the time in ms (see `spinverse.forms` and docs/new_physics.md).
        extra_coefficients: what ``extra_terms`` finds as ``coefficients[name]``: numbers, values
            by cell tag or by cell, or UFL coefficients (see `spinverse.extra_terms`).
        extra_breakpoints: times in ms at which ``extra_terms`` jump: steps end there.
        densities: whether densities may come to differ later (`density_has_changed`); those of the
            tissue are at rest across membranes then.

    Raises:
        InputError: an argument that makes no sense; terms that are not linear in m and in v.
    """

    def __init__(self, tissue: Tissue, degree: int = 1,
                 extra_terms: Callable | None = None, extra_coefficients: Mapping | None = None,
                 extra_breakpoints: Sequence[float] = (), densities: bool = False):
        if not (isinstance(degree, int) and degree >= 1):
            raise InputError(f"degree: {degree!r}, expected a whole number of at least 1")
        if extra_terms is None and extra_coefficients:
            raise InputError("extra_coefficients: given without extra_terms")
        if extra_terms is not None:
            extra.check_function(extra_terms)
        self.tissue, self.mesh, self.degree = tissue, tissue.mesh, degree
        self.extra_terms = extra_terms
        self.extra_breakpoints = tuple(sorted(float(time) for time in extra_breakpoints))
        domain = self.mesh.domain
        self.periodic = tissue.periodic_axes
        self.tied = tissue.permeability.tied | tissue.periodic_facets
        self.kappa = self.mesh.facet_function(np.where(self.tied, 0, tissue.permeability.values))
        self.g = dolfinx.fem.Constant(domain, np.zeros(self.mesh.dim))
        self.Q = dolfinx.fem.Constant(domain, np.zeros(self.mesh.dim)) if self.periodic else None
        self.t = dolfinx.fem.Constant(domain, 0.0)
        self.echo_sign = dolfinx.fem.Constant(domain, 1.0)
        self.stored = dolfinx.fem.Constant(domain, 0.0)
        # whether modes are to know what changes while magnetisation is stored: engines say so
        self.storing = False
        centre = dolfinx.fem.Constant(domain, self.mesh.centre[: self.mesh.dim])
        self._balanced = tissue.balanced or densities
        self.coefficients = forms.Coefficients(
            D=extra.cell_function(domain, tissue.diffusivity, "D"),
            R2=extra.cell_function(domain, 1.0 / tissue.T2, "R2"),
            kappa=self.kappa, x=ufl.SpatialCoordinate(domain) - centre, g=self.g,
            dx=_cells(self.mesh), dS=ufl.Measure("dS", domain, metadata=self._on_facets),
            ds=_boundary(tissue, self._on_facets),
            extra=extra.coefficients_of(self.mesh, extra_coefficients),
            rho=extra.cell_function(domain, tissue.density, "rho") if self._balanced else None,
            periodic=self.periodic, Q=self.Q, echo_sign=self.echo_sign,
            R1=extra.cell_function(domain, 1.0 / tissue.T1, "R1"), stored=self.stored,
            membrane=self.mesh.facet_function(np.where(self.tied, 0, 1), "not tied")
            / (1 + (self.kappa / MEMBRANE) ** 2))
        self.space = dolfinx.fem.functionspace(domain, ("DG", degree))
        self.extra_form = ufl.form.Form([])
        if extra_terms is not None:
            m, v = ufl.TrialFunction(self.pair_space), ufl.TestFunction(self.pair_space)
            try:
                self.extra_form = self.extra_of(m, v)
            except SpinverseError:
                raise
            except Exception as error:  # UFL's have no common base
                raise InputError(f"extra_terms: {type(error).__name__}: {one_line(error)}, "
                                 "expected a function that returns a UFL form") from error
            extra.check_bilinear(self.extra_form, m, v)
            extra.check_regions(self.extra_form, self.mesh, [1] if self.periodic else [])
        # the extra terms as `decay_matrix` saw them last
        self.extra_blocks: extra.Blocks | None = None
        self._with_extra: PETSc.Mat | None = None

    @property
    def comm(self):
        return self.mesh.comm

    @property
    def _on_facets(self) -> dict:
        """Quadrature of forms on facets: of `jump_matrix` where no degree is exact."""
        return {"quadrature_degree": facet_degree(self.mesh, self.degree)} if self.mesh.curved \
            else {}

    def set_permeability(self, values: np.ndarray) -> None:
        """New permeability of the owned facets, ``(nf,)`` um/ms; tied facets stay tied."""
        self.kappa.x.array[: self.mesh.num_owned_facets] = np.where(self.tied, 0.0, values)

    @property
    def density(self) -> np.ndarray:
        """At present, of the cells of this rank."""
        rho = self.coefficients.rho
        return (self.tissue.density if rho is None else
                rho.x.array[rho.function_space.dofmap.list.ravel()])

    def density_has_changed(self) -> None:
        """Forget what was made of the coefficient ``rho`` before; nothing may be tied."""
        for name in ("scale", "initial", "magnetisation_at_start", "jump_matrix", "free_jumps"):
            self.__dict__.pop(name, None)

    def compile(self, form: ufl.Form) -> dolfinx.fem.Form:
        """The form, ready to assemble, with the facet submesh's entity map.

        Raises:
            InputError: extra terms that UFL or its compiler refuse.
        """
        try:
            return dolfinx.fem.form(form, entity_maps=[self.mesh.facet_map])
        except Exception as error:  # noqa: BLE001 - UFL raises all kinds
            if self.extra_terms is None:
                raise
            hint = ("; on dS fields and m have two sides, m('+') and m('-')"
                    if "restrict" in str(error) else "")
            raise InputError(f"extra_terms: the form does not compile: {error}{hint}") from error

    @cached_property
    def pair_space(self) -> dolfinx.fem.FunctionSpace:
        """Broken Lagrange pairs (Re m, Im m)."""
        return dolfinx.fem.functionspace(self.mesh.domain, ("DG", self.degree, (2,)))

    def extra_of(self, m, v) -> ufl.Form:
        """The extra terms for pairs m and v; nothing if there are none."""
        if self.extra_terms is None:
            return ufl.form.Form([])
        return self.extra_terms(m, v, self.t, self.coefficients)

    def weak_form(self, m, v) -> ufl.Form:
        """The whole form for pairs m and v, extra terms included, at the common g and Q."""
        return forms.bloch_torrey(m, v, self.coefficients) + self.extra_of(m, v)

    def release(self, matrix: PETSc.Mat) -> None:
        """Free what `decay_matrix` gave: it is the caller's where facets are tied."""
        if self.prolongation is not None:
            matrix.destroy()

    @cached_property
    def traces(self) -> FacetTraces:
        return FacetTraces(self.mesh, self.space)

    @cached_property
    def jump_matrix(self) -> scipy.sparse.csr_matrix:
        """T with Q(kappa) = T^T diag(kappa) T: see `FacetTraces.jump_matrix`."""
        if not self._balanced:
            return self.traces.jump_matrix()
        cells = self.mesh.facet_cells
        rho = self.density[cells]  # outer facets have no other side
        other = np.where(cells[:, 1:] < 0, rho[:, :1], rho[:, ::-1])
        rho = np.where(cells < 0, rho[:, :1], rho)
        return self.traces.jump_matrix(np.sqrt(2 * other / (rho + other)))

    @cached_property
    def prolongation(self) -> PETSc.Mat | None:
        """P from the tied space to the broken scalar one; None when nothing is tied. Collective."""
        faces = () if self.mesh.glued else self.periodic
        return self.tie(self.tissue.permeability.tied,
                        [self.traces.periodic_pairs(axis) for axis in faces])

    @cached_property
    def unknowns(self) -> Unknowns:
        """What columns of values at the unknowns are made and multiplied with. Collective."""
        return Unknowns(self.space.dofmap.index_map, self.prolongation)

    @cached_property
    def free_jumps(self) -> tuple[np.ndarray, scipy.sparse.csr_matrix]:
        """Owned facets that are not tied, ``(n,)``, and their rows of `jump_matrix`. Collective.

        Of local columns (`spinverse.unknowns`) where something is tied; else of values at owned
        and ghost broken dofs.
        """
        free, T = np.flatnonzero(~self.tied), self.jump_matrix
        if not self.unknowns.tied:
            return free, T
        facets = max(self.mesh.num_owned_facets, 1)
        each = T.shape[0] // facets
        rows = (free[:, None] * each + np.arange(each)).ravel()
        return free, (T[rows] @ self.unknowns.all_dofs).tocsr()

    def tie(self, facets: np.ndarray, periodic: Sequence[np.ndarray] = ()) -> PETSc.Mat | None:
        """The prolongation with some facets tied, ``(nf,)`` bool; see `traces.tie`. Collective."""
        return tie(self.mesh, self.space, self.traces, facets,
                   self.scale if self._balanced else None, periodic)

    @property
    def num_unknowns(self) -> int:
        """Complex unknowns of the whole problem, tied facets taken into account. Collective."""
        if self.prolongation is None:
            return self.space.dofmap.index_map.size_global
        return self.prolongation.getSize()[1]

    @cached_property
    def scalar_arguments(self) -> tuple:
        """Trial and test function of the scalar space and the coefficients, for `forms`."""
        m, v = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        return m, v, self.coefficients

    @cached_property
    def _decay(self) -> tuple[dolfinx.fem.Form, PETSc.Mat]:
        form = self.compile(forms.decay(*self.scalar_arguments))
        return form, fem_petsc.create_matrix(form)

    def decay_matrix(self) -> PETSc.Mat:
        """Matrix of `forms.decay` and of what is real of the extra terms, as they are now.

        On the tied space. Raises InputError for extra terms that the matrix formalism cannot take.
        """
        for old in (self.extra_blocks, self._with_extra):
            if old is not None:
                old.destroy()
        self.extra_blocks = self._with_extra = None
        if not self.extra_form.empty():
            self.extra_blocks = extra.blocks(self)
            if self.extra_blocks.turns and not self.num_fields:
                raise extra.Unsuitable("with their present coefficients they turn the phase without"
                                       " a gradient, which they did not at first")
        form, matrix = self._decay
        matrix.zeroEntries()
        fem_petsc.assemble_matrix(matrix, form)
        matrix.assemble()
        if self.extra_blocks is None:
            return self._tie(matrix)
        self._with_extra = matrix.copy()
        self._with_extra.axpy(1.0, self.extra_blocks.decay,
                              PETSc.Mat.Structure.DIFFERENT_NONZERO_PATTERN)
        return self._tie(self._with_extra)

    @cached_property
    def mass_matrix(self) -> PETSc.Mat:
        """Matrix of (m, v), on the tied space."""
        matrix = fem_petsc.assemble_matrix(self.compile(forms.mass(*self.scalar_arguments)))
        matrix.assemble()
        return self._tie(matrix)

    @cached_property
    def local_mass(self) -> scipy.sparse.csr_matrix:
        """(m, v) between owned broken dofs: block diagonal by cell, no other rank needed."""
        return self.assembled(forms.mass(*self.scalar_arguments))

    @cached_property
    def local_positions(self) -> list[scipy.sparse.csr_matrix]:
        """(x_j m, v) for each axis j between owned broken dofs, um."""
        m, v, c = self.scalar_arguments
        return [self.assembled(forms.position(m, v, c, j)) for j in range(self.mesh.dim)]

    @cached_property
    def mass_of_unknowns(self) -> scipy.sparse.csr_matrix:
        """A rank's part of (m, v) for local columns of `unknowns`. Collective."""
        return self.unknowns.operator(self.local_mass)

    @cached_property
    def _positions_of_unknowns(self) -> list[scipy.sparse.csr_matrix]:
        return [self.unknowns.operator(J) for J in self.local_positions]

    @property
    def phase_operators(self) -> list:
        """What turns phases, to be multiplied with local columns of `unknowns` by ``@``.

        One for each axis, um: what g_j times i multiplies; then, where extra terms turn phases by
        themselves, what i multiplies for `echo_sign` 1 and, if they know it, -1, rad/ms.
        """
        if self.extra_blocks is None:
            return self._positions_of_unknowns
        more, operator = self.extra_blocks.positions, self.unknowns.operator
        return [operator(extra.reaching(more[j], self.local_positions[j])) if j in more else J
                for j, J in enumerate(self._positions_of_unknowns)] + [
                operator(extra.reaching(matrix))
                for matrix in self.extra_blocks.fields[: self.num_fields]]

    @cached_property
    def extra_structure(self) -> tuple[int, bool]:
        """`spinverse.extra_terms.structure`, or its error. Collective."""
        return (0, False) if self.extra_form.empty() else extra.structure(self)

    @cached_property
    def _storage_form(self) -> dolfinx.fem.Form:
        return self.compile(forms.storage(*self.scalar_arguments))

    @property
    def storage_operators(self) -> list:
        """`forms.storage` for local columns of `unknowns`; none unless the problem is `storing`."""
        if not self.storing:
            return []
        return [self.unknowns.operator(self._assembled_local(self._storage_form))]

    @property
    def num_fields(self) -> int:
        """How many `phase_operators` are no axes: none, one, or one for each sign. Collective."""
        return self.extra_structure[0]

    @cached_property
    def local_drifts(self) -> dict[int, scipy.sparse.csr_matrix]:
        """`forms.drift` for each periodic axis between owned broken dofs."""
        m, v, c = self.scalar_arguments
        return {j: self.assembled(forms.drift(m, v, c, j)) for j in self.periodic}

    @cached_property
    def local_squares(self) -> dict[tuple[int, int], scipy.sparse.csr_matrix]:
        """`forms.drift_squared` for the pairs j <= k of periodic axes where it is not zero."""
        m, v, c = self.scalar_arguments
        tensor = bool(ufl.shape(c.D))
        return {(j, k): self.assembled(forms.drift_squared(m, v, c, j, k))
                for j in self.periodic for k in self.periodic if j == k or (tensor and j < k)}

    @cached_property
    def scale(self) -> np.ndarray:
        """Magnetisation over unknown at the owned broken dofs: see `spinverse.forms`."""
        density = self.density
        return self._by_cell(np.sqrt(density) if self._balanced else np.ones_like(density))

    @cached_property
    def initial(self) -> np.ndarray:
        """The unknown at the start at the owned broken dofs: density over `scale`."""
        return self.scale if self._balanced else self._by_cell(self.tissue.density)

    @cached_property
    def magnetisation_at_start(self) -> float:
        """Integral of the initial magnetisation over the mesh, um^d times density."""
        return self.comm.allreduce(float(self.scale @ (self.local_mass @ self.initial)))

    def _by_cell(self, values: np.ndarray) -> np.ndarray:
        dofs = self.space.dofmap
        result = np.zeros(dofs.index_map.size_local + dofs.index_map.num_ghosts)
        result[dofs.list] = np.asarray(values)[:, None]
        return result[: dofs.index_map.size_local]

    def assembled(self, form: ufl.Form) -> scipy.sparse.csr_matrix:
        """A form inside cells between owned broken dofs: no other rank is needed."""
        return self._assembled_local(self.compile(form))

    def _assembled_local(self, form: dolfinx.fem.Form) -> scipy.sparse.csr_matrix:
        matrix = dolfinx.fem.assemble_matrix(form)
        matrix.scatter_reverse()
        owned = self.space.dofmap.index_map.size_local
        return matrix.to_scipy()[:owned, :owned].tocsr()

    def _tie(self, matrix: PETSc.Mat) -> PETSc.Mat:
        return matrix if self.prolongation is None else matrix.ptap(self.prolongation)


def _cells(mesh: Mesh) -> ufl.Measure:
    """Integrals over cells; those of a tag are ``dx(tag)``."""
    tags = dolfinx.mesh.meshtags(mesh.domain, mesh.dim, np.arange(
        len(mesh.cell_tags), dtype=np.int32), mesh.cell_tags.astype(np.int32))
    return ufl.Measure("dx", mesh.domain, subdomain_data=tags)


def _boundary(tissue: Tissue, metadata: dict) -> ufl.Measure:
    """Measure over the outer facets that are not periodic."""
    mesh = tissue.mesh
    if not tissue.periodic:
        return ufl.Measure("ds", mesh.domain, metadata=metadata)
    there = np.sort(mesh.facet_entities[mesh.outer & ~tissue.periodic_facets])
    tags = dolfinx.mesh.meshtags(mesh.domain, mesh.dim - 1, there.astype(np.int32),
                                 np.ones(len(there), dtype=np.int32))
    return ufl.Measure("ds", mesh.domain, subdomain_data=tags, metadata=metadata)(1)
