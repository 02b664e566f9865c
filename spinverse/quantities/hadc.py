"""Homogenised ADC: the long-scale limit of the Bloch-Torrey equation, as a diffusion problem.

To second order in the gradient the magnetisation behind impermeable walls is
m = 1 - i g (F x.n - omega) + ..., with F(t) = int_0^t f and, for a gradient along n,

    d omega/dt = div(D grad omega),    omega(0) = 0,
    D grad omega . nu = F(t) (D n) . nu        on the walls, nu pointing out,

and the slope of the signal is (Haddar, Li and Schiavi, J. Comput. Phys. 375, 1021, 2018; Li et
al., NeuroImage 202, 116120, 2019)

    ADC = n . D n - (1 / int F^2) int_0^TE F(t) h(t) dt,
    h(t) = (1/V) int_walls omega (D n) . nu = (1/V) int (D n) . grad omega.

The weak form is a(omega, v) = (D grad omega, grad v), `forms.diffusion`, with the source
F(t) a(n . x, v) = F(t) (D n, grad v). The volume form of h and of the source holds for D that
varies within a compartment too, where the surface form lacks the jumps of D n. Where densities rho
are at rest, omega stands for omega / sqrt(rho), x for sqrt(rho) x, and V for the integral of rho.
"""

from __future__ import annotations

from itertools import pairwise

import dolfinx
import numpy as np
import ufl
from dolfinx.fem import petsc as fem_petsc
from petsc4py import PETSc

from .. import forms
from ..acquisition.table import Acquisition
from ..acquisition.waveform import Waveform
from ..errors import InputError
from ..problem import BlochTorrey
from ..tissue import Tissue
from .compartments import TissueCompartments, compartments_of
from .effective import EffectiveDiffusion, check_stationary, collect, mean_diffusivity_tensors
from .mf_adc import plain, without_relaxation
from .scalar_system import ScalarSystem
from .waveform_integrals import squared, time_scale


def flux(n, c: forms.Coefficients):
    """D n, times sqrt(rho) where the densities are at rest."""
    scale = 1.0 if c.rho is None else ufl.sqrt(c.rho)
    return scale * (ufl.dot(c.D, n) if ufl.shape(c.D) else c.D * n)


def hadc(tissue: Tissue | BlochTorrey, acquisition: Acquisition, time_step: float | None = None,
         degree: int = 1) -> EffectiveDiffusion:
    """Homogenised ADC of every compartment for every measurement. Collective.

    Membranes are impermeable here whatever their permeability (see `mf_adc` for any). One
    omega for each axis gives the tensor of a waveform; it is stepped implicitly, and the result
    is extrapolated from ``time_step`` and half of it.

    Args:
        tissue, acquisition, degree: as of `mf_adc`.
        time_step: longest step of the coarser run, ms; if not given, for each waveform the
            smaller of TE/100 and a tenth of its `waveform_integrals.time_scale`.

    Returns:
        The slopes; ``errors`` is a third of the difference between the two runs, which
        extrapolation removes to leading order.

    Raises:
        InputError: a bad time step, density or T2 that varies within a compartment, an
            absorbing outer boundary, extra terms.
        SolverError: a factorisation failed.
    """
    if time_step is not None and not (np.isfinite(time_step) and time_step > 0):
        raise InputError(f"time_step: {time_step!r}, expected a positive time in ms")
    tissue, degree = plain(tissue, degree, "hadc")
    values = tissue.permeability.values  # without exchange
    tissue = tissue.with_permeability(np.where(tissue.mesh.outer | np.isinf(values), values, 0.0))
    parts = compartments_of(tissue)
    check_stationary(tissue, parts, "hadc")
    problem = without_relaxation(tissue, degree)
    model = _Homogenised(problem, parts, mean_diffusivity_tensors(tissue, parts))
    values, errors = [], []
    for waveform in acquisition.waveforms:
        step = time_step
        if step is None:
            step = min(waveform.echo_time / 100, time_scale(waveform) / 10)
        coarse, fine = (model.slopes(waveform, h) for h in (step, step / 2))
        change = (fine - coarse) / 3
        values.append(fine + change)
        errors.append(np.abs(change).reshape(len(parts), -1).max(axis=1))
    model.system.destroy()
    return collect(tissue, acquisition, parts, values, np.column_stack(errors))


class _Homogenised:
    """The problem of omega: matrices, sources, and the flux that h is made of."""

    def __init__(self, problem: BlochTorrey, parts: TissueCompartments, mean_D: np.ndarray):
        self.problem, self.parts, self.mean_D = problem, parts, mean_D
        domain, c = problem.mesh.domain, problem.coefficients
        omega, v = ufl.TrialFunction(problem.space), ufl.TestFunction(problem.space)
        self.system = ScalarSystem(problem, forms.diffusion(omega, v, c), "spinverse_hadc_")
        self.dim = problem.mesh.dim
        self.axis = dolfinx.fem.Constant(domain, np.zeros(self.dim))
        load = problem.compile(ufl.inner(flux(self.axis, c), ufl.grad(v)) * c.dx)
        cells = dolfinx.fem.functionspace(domain, ("DG", 0))
        per_cell = problem.compile(
            ufl.inner(flux(self.axis, c), ufl.grad(omega)) * ufl.TestFunction(cells) * c.dx)
        owned = problem.mesh.num_owned_cells
        row = cells.dofmap.list.ravel()[:owned]
        dofs = problem.space.dofmap.index_map.size_local
        self.sources, self.fluxes = [], []
        for i in range(self.dim):
            self.axis.value[:] = np.eye(self.dim)[i]
            vector = fem_petsc.assemble_vector(load)
            vector.ghostUpdate(PETSc.InsertMode.ADD, PETSc.ScatterMode.REVERSE)
            self.sources.append(self.system.restrict(vector.getArray(readonly=True)[:dofs]))
            vector.destroy()
            matrix = dolfinx.fem.assemble_matrix(per_cell)
            self.fluxes.append(matrix.to_scipy().tocsr()[row, :dofs])

    def slopes(self, waveform: Waveform, time_step: float) -> np.ndarray:
        """``(C, 3, 3)`` tensors, or ``(C,)`` slopes of a vector waveform, um^2/ms."""
        vector, dim = waveform.vector, self.dim
        # one omega, driven along all axes, for a vector waveform; else one for each axis
        states = [self.system.vector() for _ in range(1 if vector else dim)]
        sums = [self.system.vector() for _ in range(dim)]

        def axes(i, t):
            """Axes that act in problem i, and F along each."""
            F = waveform.integral(t)
            return enumerate(F[:dim]) if vector else ((i, F),)

        def load(i, t, factor, rhs):
            for axis, F in axes(i, t):
                rhs.axpy(factor * float(F), self.sources[axis])

        def add(i, weight, t, y):
            for axis, F in axes(i, t):
                sums[axis].axpy(weight * float(F), y)

        for start, stop in pairwise(waveform.breakpoints):
            self.system.march(states, start, stop, time_step, load, add)
        moments = self._fluxes_of(sums) / waveform.b_factor
        for thing in (*states, *sums):
            thing.destroy()
        if vector:
            free = np.einsum("cij,ij->c", self.mean_D, squared(waveform))
            return free - np.trace(moments, axis1=1, axis2=2)
        return self.mean_D - 0.5 * (moments + moments.transpose(0, 2, 1))

    def _fluxes_of(self, sums: list[PETSc.Vec]) -> np.ndarray:
        """(1/V) int_part D e_j . grad (sum of i), ``(C, 3, 3)``."""
        owned = self.problem.mesh.num_owned_cells
        label, number = self.parts.labels[:owned], len(self.parts)
        total = np.zeros((number, 3, 3))
        for i, vector in enumerate(sums):
            values = self.system.expand(vector)
            for j, matrix in enumerate(self.fluxes):
                total[:, i, j] = np.bincount(label, matrix @ values, minlength=number)
        return self.problem.comm.allreduce(total) / self.parts.capacities[:, None, None]
