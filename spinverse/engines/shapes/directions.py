"""Signals of a periodic box by a small basis for each direction, in the whole discrete space.

As exact as the matrix formalism in as many modes as it needs, and much faster where measurements
have a few dozen directions: walls that are half open, and phases exp(i Q . x), need many modes but
few functions of a chain (`spinverse.engines.shapes.drift`). Without derivatives. All ranks hold the
matrices: for meshes of moderate size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import dolfinx
import numpy as np
import scipy.sparse
from mpi4py import MPI

from ... import forms
from ...acquisition.table import Acquisition
from ...errors import InputError
from ...extra_terms import has
from ...parallel.exchange import reduced
from ...problem import BlochTorrey
from .. import silent
from ..schedule.storage import refuse
from .drift import ALL, AXIS_PAIRS, LINKS, DriftSweeps, DriftSystem

STEP = 0.25  # ms, longest: 1e-6 of the signals
_LESS = 3  # links of a chain that are left out to see what they do


class DirectionBases:
    """Signals of a problem that is periodic along all axes.

    Args:
        problem: the discrete problem.
        acquisition: the measurements.

    Raises:
        InputError: a problem that is not periodic along all axes, extra terms that know the
            gradient or turn the phase, initial magnetisations that are not at rest, waveforms whose
            direction varies or that store magnetisation.

    Attributes:
        estimated_error: of the last signals over S(b = 0, t = 0), of one direction; NaN before.
        num_modes: functions of each direction.
    """

    def __init__(self, problem: BlochTorrey, acquisition: Acquisition):
        where = "engine: direction_bases"
        if problem.periodic != ALL:
            raise InputError(f"{where}, expected a box that is periodic along x, y and z")
        if has(problem.extra_form, problem.g) or problem.num_fields:
            raise InputError(f"{where} with extra_terms that know the gradient or turn the phase, "
                             "expected terms that decay")
        refuse(acquisition, where)
        ratio = problem.initial / problem.scale
        low, high = (problem.comm.allreduce(float(value), op) for value, op in (
            (ratio.min(initial=np.inf), MPI.MIN), (ratio.max(initial=-np.inf), MPI.MAX)))
        if low < high:
            raise InputError(f"{where} with several densities and interface 'plain', expected "
                             "'equilibrium'")
        self.problem, self.acquisition, self.ratio = problem, acquisition, low
        # all of a direction are on one rank
        _, which = np.unique(np.round(acquisition.directions, 9), axis=0, return_inverse=True)
        self._mine = np.flatnonzero(which.ravel() % problem.comm.size == problem.comm.rank)
        self._sweeps = DriftSweeps.of(acquisition.select(self._mine), STEP) if len(
            self._mine) else None
        strongest = which.ravel()[np.argmax(acquisition.strength)]
        self._tried = DriftSweeps.of(acquisition.select(which.ravel() == strongest), STEP)
        self.estimated_error, self.num_modes = np.nan, 2 + 3 * LINKS
        self.progress: Callable[[str, int, int], None] = silent

    def signals(self, permeability: np.ndarray | None = None) -> np.ndarray:
        """Complex signals, ``(N,)``, um^3 times density, the same on every rank. Collective.

        Args:
            permeability: ``(nf,)`` um/ms of the owned facets; the present one if not given.
        """
        if permeability is not None:
            self.problem.set_permeability(permeability)
        self.progress("signals", 0, 0)
        system = self._system()
        found = np.zeros(len(self.acquisition), dtype=complex)
        if self._sweeps is not None:
            found[self._mine] = self.ratio * system.signals(self._sweeps, LINKS)
        if np.isnan(self.estimated_error):
            both = [system.signals(self._tried, links) for links in (LINKS, LINKS - _LESS)]
            error = float(np.abs(both[0] - both[1]).max() / (system.start @ system.load))
            self.estimated_error = self.problem.comm.bcast(error)
        return reduced(self.problem.comm, found)

    def _system(self) -> DriftSystem:
        problem = self.problem
        comm, P = problem.comm, problem.prolongation
        decay = problem.decay_matrix()
        A = self._whole(decay.getValuesCSR())
        problem.release(decay)
        mass, *drifts = self._water
        D = np.concatenate(comm.allgather(self._diffusivities()))
        by_row = [[scipy.sparse.diags(D[:, j, k]) for k in ALL] for j in ALL]
        whole = [mass, *(sum(by_row[j][k] @ drifts[k] for k in ALL).tocsr() for j in ALL),
                 *((by_row[j][k] @ mass).tocsr() for j, k in AXIS_PAIRS)]
        start = np.concatenate(comm.allgather(problem.scale))
        if P is not None:
            T = self._whole(P.getValuesCSR(), P.getSize()[1])
            whole = [(T.T @ form @ T).tocsr() for form in whole]
            start = (T.T @ start) / np.asarray(T.multiply(T).sum(axis=0)).ravel()
        fastest = float(np.linalg.eigvalsh(D)[:, -1].max())
        return DriftSystem(A, whole[0], whole[1:4], whole[4:], fastest, start)

    @cached_property
    def _water(self) -> list[scipy.sparse.csr_matrix]:
        """The mass, and the drifts for a diffusivity of 1, whole."""
        problem = self.problem
        m, v, c = problem.scalar_arguments
        one = replace(c, D=dolfinx.fem.Constant(problem.mesh.domain, 1.0))
        local = [problem.local_mass, *(problem.assembled(forms.drift(m, v, one, axis))
                                       for axis in ALL)]
        parts = zip(*problem.comm.allgather([form.tocsr() for form in local]), strict=True)
        return [scipy.sparse.block_diag(blocks, format="csr") for blocks in parts]

    def _diffusivities(self) -> np.ndarray:
        """As they are now, at each owned broken dof, ``(n, 3, 3)`` um^2/ms."""
        D, dofs = self.problem.coefficients.D, self.problem.space.dofmap
        shape = (3, 3) if D.function_space.dofmap.bs > 1 else ()
        values = D.x.array.reshape(-1, *shape)[D.function_space.dofmap.list.ravel()]
        if not shape:
            values = values[:, None, None] * np.eye(3)
        result = np.zeros((dofs.index_map.size_local + dofs.index_map.num_ghosts, 3, 3))
        result[dofs.list] = values[:, None]
        return result[: dofs.index_map.size_local]

    def _whole(self, rows: tuple, width: int | None = None) -> scipy.sparse.csr_matrix:
        """The matrix of which each rank has some rows, on every rank."""
        parts = self.problem.comm.allgather(rows)
        count = sum(len(part[0]) - 1 for part in parts)
        starts = np.concatenate([[0], *(np.diff(part[0]) for part in parts)]).cumsum()
        columns, values = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
        return scipy.sparse.csr_matrix((values, columns, starts), shape=(count, width or count))
