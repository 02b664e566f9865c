"""Exchange without gradient: decay times of concentration differences, and mass balance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ufl

from .. import forms
from ..engines.basis.eigenmodes import eigenmodes
from ..errors import InputError
from ..problem import BlochTorrey
from ..tissue import Tissue
from .compartments import TissueCompartments, compartments_of, pools_of
from .mf_adc import plain, without_relaxation
from .scalar_system import ScalarSystem


def exchange_times(tissue: Tissue | BlochTorrey, number: int | None = None,
                   degree: int = 1) -> np.ndarray:
    """Decay times 1/lambda of the slowest diffusion modes, without gradient and T2. Collective.

    Cells that exchange spins and lose none have one constant mode, which is left out. With weak
    membranes the next C - 1 modes of C compartments are concentration differences between them,
    and their times are those of exchange; with permeable ones they mix with diffusion inside.

    Args:
        tissue: a tissue, or a problem without extra terms at its present permeability.
        number: how many; if not given one less than there are compartments, summed over the
            sets that exchange spins.
        degree: polynomial degree within a cell; that of a problem is its own.

    Returns:
        ``(number,)`` ms, descending: fewer if the mesh has fewer modes.

    Raises:
        InputError: a number that is not positive, extra terms; SolverError: no modes.
    """
    if number is not None and not (isinstance(number, int | np.integer) and number > 0):
        raise InputError(f"number: {number!r}, expected a positive whole number")
    tissue, degree = plain(tissue, degree, "exchange_times")
    pools = pools_of(tissue)
    mesh = tissue.mesh
    open_wall = mesh.outer & (tissue.permeability.values > 0)
    lost = np.bincount(pools.labels[mesh.facet_cells[open_wall, 0]], minlength=len(pools))
    conserved = int(np.count_nonzero(mesh.comm.allreduce(lost) == 0))
    if number is None:
        number = len(compartments_of(tissue)) - conserved
    if number == 0:
        return np.zeros(0)
    problem = without_relaxation(tissue, degree)
    asked = conserved + number
    while True:  # a few fewer modes may come back
        rates = eigenmodes(problem, min(problem.num_unknowns, asked + 12)).eigenvalues
        if len(rates) >= min(conserved + number, problem.num_unknowns):
            break
        asked = 2 * asked
    return 1.0 / rates[conserved: conserved + number]


@dataclass(frozen=True, eq=False)
class MassBalance:
    """Magnetisation over time without gradient.

    Attributes:
        times: ``(T,)`` ms.
        compartments: what the columns of ``by_compartment`` are.
        by_compartment: ``(T, C)`` integral of the magnetisation over each, um^3 times density.
    """

    times: np.ndarray
    compartments: TissueCompartments
    by_compartment: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """``(T,)``: constant where nothing relaxes or leaves."""
        return self.by_compartment.sum(axis=1)

    @property
    def concentrations(self) -> np.ndarray:
        """Mean magnetisation per volume in each compartment, ``(T, C)``."""
        return self.by_compartment / self.compartments.volumes


def mass_balance(tissue: Tissue | BlochTorrey, times, start=None, time_step: float = 0.1,
                 degree: int = 1) -> MassBalance:
    """Magnetisation of every compartment over time, without gradient. Collective.

    The steps conserve the total to rounding where nothing relaxes or leaves, and decay it as
    exp(-t/T2) to rounding where T2 is uniform and nothing leaves; all else is of second order.

    Args:
        tissue, degree: as of `exchange_times`.
        times: ms, one or more, not descending, from 0 on.
        start: number of the one compartment that starts with its density, the others with
            nothing; or ``(C,)`` factors of the densities; all 1 if not given.
        time_step: longest step, ms.

    Raises:
        InputError: a bad argument; SolverError: a factorisation failed.
    """
    times = np.atleast_1d(np.asarray(times, dtype=float))
    if times.ndim != 1 or not np.isfinite(times).all() or (np.diff(times, prepend=0.0) < 0).any():
        raise InputError(f"times: {times!r:.60}, expected times from 0 ms on, not descending")
    if not (np.isfinite(time_step) and time_step > 0):
        raise InputError(f"time_step: {time_step!r}, expected a positive time in ms")
    tissue, degree = plain(tissue, degree, "mass_balance")
    parts = compartments_of(tissue)
    factors = _factors(parts, start)
    problem = BlochTorrey(tissue, degree)
    # a decay that all cells share is exact as a factor
    R2 = problem.coefficients.R2.x
    common = min(problem.comm.allgather(float((1 / tissue.T2).min(initial=np.inf))))
    R2.array[:] -= common
    m, v = ufl.TrialFunction(problem.space), ufl.TestFunction(problem.space)
    system = ScalarSystem(problem, forms.decay(m, v, problem.coefficients), "spinverse_mass_")

    dofs = problem.space.dofmap.list[: problem.mesh.num_owned_cells]
    label = np.empty(len(problem.initial), dtype=np.int64)
    label[dofs] = parts.labels[: len(dofs), None]
    y = system.project(system.restrict(problem.local_mass @ (factors[label] * problem.initial)))
    rows, now = [], 0.0
    for time in times:
        if time > now:
            system.march([y], now, time, time_step)
            now = time
        mass = problem.scale * (problem.local_mass @ system.expand(y))
        rows.append(np.bincount(label, mass, minlength=len(parts)) * np.exp(-common * time))
    system.destroy()
    y.destroy()
    return MassBalance(times, parts, problem.comm.allreduce(np.array(rows)))


def _factors(parts: TissueCompartments, start) -> np.ndarray:
    count = len(parts)
    if start is None:
        return np.ones(count)
    if isinstance(start, int | np.integer):
        if not 0 <= start < count:
            raise InputError(f"start: compartment {start}, expected 0 to {count - 1}")
        return (np.arange(count) == start).astype(float)
    factors = np.asarray(start, dtype=float)
    if factors.shape != (count,) or not (np.isfinite(factors) & (factors >= 0)).all():
        raise InputError(f"start: {start!r:.60}, expected a compartment, or {count} factors of "
                         "the densities, not negative")
    return factors
