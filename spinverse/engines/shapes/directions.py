"""Signals of a periodic box by a small basis for each direction, in the whole discrete space.

As exact as the matrix formalism in as many modes as it needs, and much faster where measurements
have a few dozen directions: walls that are half open, and phases exp(i Q . x), need many modes but
few functions that know the direction. Two kinds of bases:

- the chain of `spinverse.engines.shapes.drift`, which is moments at Q = 0: for small boxes;
- resolvents at some Q along the direction, twice each, real and imaginary part,

      (A(Q) + s M)^-1 M start,    A(Q) = A + i Q N + Q^2 C,

  which is what the start comes to if Q stays (a reduced basis; Quarteroni, Manzoni and Negri,
  Reduced Basis Methods, 2016): where the chain does not do, as |Q| times the box is large.

Without derivatives. All ranks hold the matrices: for meshes of moderate size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import dolfinx
import numpy as np
import scipy.sparse

from ... import forms
from ...acquisition.table import Acquisition
from ...errors import InputError, SolverError
from ...parallel.exchange import reduced
from ...problem import BlochTorrey
from .. import silent
from ..basis.eigenmodes import Eigenmodes, project
from ..linear.whole import blocks, ratio_of_decay, solver, whole
from .drift import ALL, AXIS_PAIRS, LINKS, RATES, DriftSweeps, DriftSystem, Reduced, along_pairs

STEP = 0.25  # ms, longest: 1e-6 of the signals
_LESS = 3  # links of a chain that are left out to see what they do
_WIDE = 4.0  # rad, |Q| times the box: beyond it the chain is not tried where facets are tied
_TRUSTED = 0.25  # of the tolerance: what the chain may seem to leave, as it leaves more
SHARES = 4, 8  # equal ones of the largest Q, at which resolvents are taken: more if need be
_PRECISE = 1e-7  # of a resolvent: as precise as signals are over ranks
_ITERATIONS = 100
_FINEST = 64  # parts of a longest step
_TINY = 1e-300


@dataclass(frozen=True, eq=False)
class WholeSystem(DriftSystem):
    """Sparse operators of a whole mesh."""

    left_out: float = 0.0  # as ranks hold different directions

    @cached_property
    def _solvers(self) -> dict[float, Callable[[np.ndarray], np.ndarray]]:
        return {}

    def _solver(self, rate: float) -> Callable[[np.ndarray], np.ndarray]:
        if rate not in self._solvers:
            self._solvers[rate] = solver(self.decay + rate * self.mass, "spinverse_directions_",
                                         "direction_bases")
        return self._solvers[rate]

    def resolvents(self, directions: np.ndarray, highest: np.ndarray,
                   number: int) -> np.ndarray:
        """The start, first and second resolvents at a ``number`` of Q, ``(D, n, r)``.

        Up to the ``highest (D,)`` of each direction; real and imaginary parts. Conjugate gradients
        with the factor at Q = 0, for all Q at once.
        """
        return np.stack([self._resolvents(along, top * np.arange(1, number + 1) / number)
                         for along, top in zip(directions, highest, strict=True)])

    def _resolvents(self, along: np.ndarray, Q: np.ndarray) -> np.ndarray:
        N = self._sum(self.drifts, along)
        C = self._sum(self.squares, along_pairs(along[None])[0])
        first, second = [], []
        for rate in RATES:
            shifted, solve = self.decay + rate * self.mass, self._solver(rate)

            def apply(u, shifted=shifted):
                return shifted @ u + 1j * (N @ (u * Q)) + C @ (u * Q**2)

            loads = np.repeat(self.load[:, None], len(Q), axis=1).astype(complex)
            first.append(_conjugate_gradients(apply, solve, loads))
            second.append(_conjugate_gradients(apply, solve, self.mass @ first[-1]))
        found = [part for each in (*first, *second) for part in (each.real, each.imag)]
        columns = np.hstack([self.uniform[:, None], *found])
        return columns / np.maximum(np.abs(columns).max(axis=0), _TINY)

    @staticmethod
    def _sum(operators: list, weights: np.ndarray) -> scipy.sparse.csr_matrix:
        return sum(w * operator for w, operator in zip(weights, operators, strict=True)).tocsr()


def _conjugate_gradients(apply: Callable, solve: Callable, loads: np.ndarray) -> np.ndarray:
    """Solutions ``(n, k)`` complex of a Hermitian operator with ``solve`` as preconditioner.

    Raises:
        SolverError: they do not converge.
    """
    def precondition(r):
        return solve(np.ascontiguousarray(r).view(float)).copy().view(complex)

    def dot(a, b):
        return np.einsum("nk,nk->k", a.conj(), b).real

    x, r = np.zeros_like(loads), loads
    z = precondition(r)
    p, size = z, dot(r, z)
    first = size
    for _ in range(_ITERATIONS):
        image = apply(p)
        step = size / np.maximum(dot(p, image), _TINY)
        x, r = x + step * p, r - step * image
        z = precondition(r)
        before, size = size, dot(r, z)
        if np.all(size <= _PRECISE**2 * first):
            return x
        p = z + size / np.maximum(before, _TINY) * p
    raise SolverError(f"direction_bases: no resolvents after {_ITERATIONS} iterations")


class DirectionBases:
    """Signals of a problem that is periodic along all axes.

    Args:
        problem: the discrete problem.
        acquisition: the measurements.
        tolerance: wanted absolute error of S / S(b=0, t=0): the chain where it is about as good,
            else resolvents; None for the chain.

    Raises:
        InputError: a problem that is not periodic along all axes, extra terms that know the
            gradient or turn the phase, initial magnetisations that are not at rest, waveforms whose
            direction varies or that store magnetisation.

    Attributes:
        estimated_error: of the first signals over S(b = 0, t = 0), of one direction; NaN before.
        num_modes: functions of each direction.
        shares: number of Q of each direction at which there are resolvents; 0: the chain.
    """

    def __init__(self, problem: BlochTorrey, acquisition: Acquisition,
                 tolerance: float | None = None):
        where = "engine: direction_bases"
        if problem.periodic != ALL:
            raise InputError(f"{where}, expected a box that is periodic along x, y and z")
        self.problem, self.acquisition = problem, acquisition
        self.ratio = ratio_of_decay(problem, acquisition, where)
        self.tolerance = tolerance
        self.shares = 0
        _, which = np.unique(np.round(acquisition.directions, 9), axis=0, return_inverse=True)
        which = which.ravel()
        strongest = which[np.argmax(acquisition.strength)]
        # all of a direction are on one rank; what has no gradient is where the strongest is, which
        # is the first: its basis is that of them
        known = np.where(acquisition.strength > 0, which, strongest)
        mine = np.flatnonzero(known % problem.comm.size == problem.comm.rank)
        self._mine = mine[np.argsort(known[mine] != strongest, kind="stable")]
        self._sweeps = DriftSweeps.of(acquisition.select(self._mine), STEP) if len(
            self._mine) else None
        self._alone = bool(np.all(known == strongest))
        self._measured = acquisition.select(which == strongest)
        self._tried = DriftSweeps.of(self._measured, STEP)
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
        known = self._choose(system) if np.isnan(self.estimated_error) else None
        found = np.zeros(len(self.acquisition), dtype=complex)
        if self._sweeps is not None:
            bases = self._bases(system, self._sweeps, known)
            found[self._mine] = self.ratio * system.signals(self._sweeps, bases)
        return reduced(self.problem.comm, found)

    def modes_of_strongest(self) -> tuple[Acquisition, Eigenmodes]:
        """Measurements of the direction with the strongest, and its functions as modes. Collective.

        After `signals`, for the error of the mesh.
        """
        bases, unknowns = self._strongest, self.problem.unknowns
        values, rotation = np.linalg.eigh(bases.decay[0])
        first = self.problem.comm.exscan(unknowns.num_owned) or 0
        owned = bases.functions[first: first + unknowns.num_owned, 0] @ rotation
        return self._measured, project(self.problem, np.maximum(values, 0.0),
                                       unknowns.local(owned))

    def _choose(self, system: WholeSystem) -> Reduced:
        """The kind of basis by the strongest direction, and that direction's. Collective."""
        tried, comm = self._tried, self.problem.comm
        scale = float(system.start @ system.load)

        def apart(*columns: np.ndarray) -> float:
            signals = [system.signals(tried, system.between(each, tried.asked))
                       for each in columns]
            return float(np.abs(signals[0] - signals[1]).max()) / scale

        highest, lengths = tried.highest(), np.diff(self.problem.mesh.bounds, axis=0)
        # where all facets are open the chain is better, and what searches compare with
        shifted = (self.tolerance is not None and self.problem.prolongation is not None
                   and highest[0] * lengths.max() > _WIDE)
        if not shifted:
            kept = [0, 1, *(2 + k for k in range(len(RATES) * LINKS) if k % LINKS < LINKS - _LESS)]
            columns = system.chain(tried.asked, LINKS)
            count = columns.shape[2]
            error = apart(columns, columns[:, :, [k for k in kept if k < count]])
            shifted = self.tolerance is not None and error > _TRUSTED * self.tolerance
        shares = 0
        for shares in SHARES if shifted else ():
            columns = system.resolvents(tried.asked, highest, shares)
            # what the second resolvents do is more than what third ones would
            error = apart(columns, columns[:, :, : 1 + columns.shape[2] // 2])
            if error <= self.tolerance:
                break
        self.estimated_error, self.shares = comm.bcast((error, shares))
        self.num_modes = columns.shape[2]
        self._strongest = system.between(columns, tried.asked)
        if self.tolerance is not None:
            self._halve_steps(system, scale)
        return self._strongest

    def _halve_steps(self, system: WholeSystem, scale: float) -> None:
        """Until that changes signals by little: they are of fourth order."""
        step, coarse = STEP, system.signals(self._tried, self._strongest)
        while True:
            tried = DriftSweeps.of(self._measured, step / 2)
            fine = system.signals(tried, self._strongest)
            change = self.problem.comm.bcast(float(np.abs(fine - coarse).max()) / scale)
            if change <= 0.5 * self.tolerance or step < STEP / _FINEST:
                break
            step, coarse, self._tried = step / 2, fine, tried
        self.estimated_error += change
        if step < STEP and self._sweeps is not None:
            self._sweeps = DriftSweeps.of(self.acquisition.select(self._mine), step)

    def _bases(self, system: WholeSystem, sweeps: DriftSweeps, known: Reduced | None) -> Reduced:
        """``known``: of the direction with the strongest gradient."""
        if known is not None and self._alone and len(sweeps.directions) == 1:
            return known
        if not self.shares:
            return system.bases(sweeps.asked, LINKS)
        return system.between(system.resolvents(sweeps.asked, sweeps.highest(), self.shares),
                              sweeps.asked)

    def _system(self) -> WholeSystem:
        problem = self.problem
        comm, P = problem.comm, problem.prolongation
        decay = problem.decay_matrix()
        A = whole(comm, decay.getValuesCSR())
        problem.release(decay)
        mass, *drifts = self._water
        D = np.concatenate(comm.allgather(self._diffusivities()))
        by_row = [[scipy.sparse.diags(D[:, j, k]) for k in ALL] for j in ALL]
        between = [mass, *(sum(by_row[j][k] @ drifts[k] for k in ALL).tocsr() for j in ALL),
                 *((by_row[j][k] @ mass).tocsr() for j, k in AXIS_PAIRS)]
        start = np.concatenate(comm.allgather(problem.scale))
        if P is not None:
            T = whole(comm, P.getValuesCSR(), P.getSize()[1])
            between = [(T.T @ form @ T).tocsr() for form in between]
            start = (T.T @ start) / np.asarray(T.multiply(T).sum(axis=0)).ravel()
        fastest = float(np.linalg.eigvalsh(D)[:, -1].max())
        return WholeSystem(A, between[0], between[1:4], between[4:], fastest, start)

    @cached_property
    def _water(self) -> list[scipy.sparse.csr_matrix]:
        """The mass, and the drifts for a diffusivity of 1, whole."""
        problem = self.problem
        m, v, c = problem.scalar_arguments
        one = replace(c, D=dolfinx.fem.Constant(problem.mesh.domain, 1.0))
        local = [problem.local_mass, *(problem.assembled(forms.drift(m, v, one, axis))
                                       for axis in ALL)]
        return [blocks(problem.comm, form) for form in local]

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
