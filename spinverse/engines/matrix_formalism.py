"""Matrix formalism: all measurements as small dense evolutions in the lowest diffusion modes.

Callaghan (1997), Barzykin (1998), Grebenkov (2007): with Phi the modes, Lambda their
eigenvalues and X_j = Phi^T x_j Phi,

    u' = -(Lambda + i g(t) . X) u,        S = receive . u(TE).

Pieces of constant gradient are propagated exactly (`spinverse.engines.chebyshev`). All operators
are symmetric, so a waveform with f(TE - t) = -f(t) needs its first half only:
S = conj(l)^T exp(-Lambda tau) u, where u and l are start and receive after that half and tau is
the gap in the middle.

One eigenproblem serves all measurements; these are shared out over the ranks by direction.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import dolfinx
import numpy as np

from ..acquisition.table import Acquisition
from ..errors import InputError
from ..problem import BlochTorrey
from .chebyshev import Propagation
from .eigenmodes import Eigenmodes, eigenmodes


@dataclass
class _Group:
    """Measurements along one direction that share their pieces of constant gradient."""

    direction: np.ndarray
    pieces: tuple[tuple[float, float], ...]
    folded: bool
    rows: list[int] = field(default_factory=list)
    strength: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)

    @property
    def cost(self) -> float:
        return len(self.rows) * sum(duration for duration, value in self.pieces if value)


class MatrixFormalism:
    """Signals and their exact derivative with respect to the facet permeabilities.

    Args:
        problem: the discrete problem, without extra terms.
        acquisition: the measurements.
        modes: number of modes, or "auto": as many as `tolerance` needs, found at the first call.
        tolerance: wanted absolute error of the normalised signal from cutting the spectrum.
        max_step: ms; pieces of a waveform that is not piecewise constant.
    """

    def __init__(self, problem: BlochTorrey, acquisition: Acquisition,
                 modes: int | str = "auto", tolerance: float = 1e-5, max_step: float = 0.1):
        if problem.extra_terms is not None:
            raise InputError("engine: matrix_formalism does not know extra_terms; "
                             "expected engine time_stepping for this problem")
        if modes != "auto" and not (isinstance(modes, int) and modes > 0):
            raise InputError(f"modes: {modes!r}, expected a positive number or 'auto'")
        self.problem, self.acquisition = problem, acquisition
        self.modes, self.tolerance = modes, tolerance
        self.basis: Eigenmodes | None = None
        self.estimated_error = np.nan
        found = set(np.unique(problem.initial).tolist())
        found = set().union(*problem.comm.allgather(found))
        # one density everywhere: then receive = start / density, and one half serves both
        self._density = found.pop() if len(found) == 1 else None
        self._groups = _plan(acquisition, max_step)
        by_cost = sorted(range(len(self._groups)), key=lambda i: (-self._groups[i].cost, i))
        self._mine = by_cost[problem.comm.rank:: problem.comm.size]
        self._tape: list[tuple] = []
        self._taped: Eigenmodes | None = None

    def signals(self, permeability: np.ndarray | None = None, remember: bool = False) -> np.ndarray:
        """Complex signals, ``(N,)``, um^3 times density, the same on every rank. Collective.

        Args:
            permeability: ``(nf,)`` um/ms of the owned facets; as it is if nothing is said.
            remember: keep what `gradient` needs.
        """
        if permeability is not None:
            self.problem.set_permeability(permeability)
        if self.modes == "auto":
            self._choose_modes()
        else:
            self.basis = eigenmodes(self.problem, self.modes)
        return self.evolve(remember)

    def evolve(self, remember: bool = False) -> np.ndarray:
        """Signals in the present modes. Collective."""
        if remember:
            self._tape, self._taped = [], self.basis
        return self._sum([self._evolve_group(self.basis, self._groups[i], remember)
                          for i in self._mine], self._mine)

    def gradient(self, adjoint: np.ndarray) -> np.ndarray:
        """Derivative of J with respect to the permeability of the owned facets. Collective.

        It is the exact derivative of the signals with the modes as a fixed Galerkin basis; how
        they turn out of their own span is left out, and vanishes as their number grows.

        Args:
            adjoint: ``(N,)`` complex w with dJ = Re sum(conj(w) dS), the same on every rank.

        Returns:
            ``(nf,)``, zero on tied facets; after ``signals(..., remember=True)``.
        """
        basis = self._taped
        K = len(basis)
        G = np.zeros((K, K))
        gaps = defaultdict(lambda: np.zeros((K, K)))
        for group, left, right, forward in self._tape:
            self._pull_back(group, adjoint, left, right, forward, G, gaps)
        for gap in sorted(gaps):
            G += gaps[gap] * _divided_differences(basis.eigenvalues, gap)
        total = np.empty_like(G)
        self.problem.comm.Allreduce(0.5 * (G + G.T), total)
        return self._contract(basis, total)

    # ---- one group ----------------------------------------------------------------------------

    def _evolve_group(self, basis: Eigenmodes, group: _Group, remember: bool = False):
        count = len(group.rows)
        q = np.array(group.strength)
        double = group.folded and self._density is None
        u = np.repeat(basis.start[:, None].astype(complex), count, axis=1)
        if double:
            u = np.hstack([u, np.repeat(basis.receive[:, None], count, axis=1)])
            q = np.concatenate([q, q])
        forward = []
        X = np.tensordot(group.direction, basis.positions, axes=1) if group.pieces else None
        reach = float(np.abs(group.direction) @ basis.reach)
        for duration, value in group.pieces:
            step = (Propagation(basis.eigenvalues, X, value * q, reach, duration) if value
                    else _Rest(basis.eigenvalues, duration))
            u = step.forward(u, remember)
            forward.append(step)
        right = u[:, :count]
        if not group.folded:
            left = np.repeat(basis.receive[:, None], count, axis=1)
        else:
            left = u[:, count:] if double else right / self._density
        if remember:
            self._tape.append((group, left, right, forward))
        decay = np.exp(-basis.eigenvalues[:, None] * np.array(group.gap))
        return (left.conj() * decay * right).sum(axis=0)

    def _pull_back(self, group, adjoint, left, right, forward, G, gaps):
        basis = self._taped
        w = adjoint[group.rows]
        for gap in set(group.gap):
            chosen = np.flatnonzero(np.array(group.gap) == gap)
            if gap:
                product = (w * left)[:, chosen].conj() @ right[:, chosen].T
                gaps[gap] += product.real
        if not forward:
            return
        decay = np.exp(-basis.eigenvalues[:, None] * np.array(group.gap))
        p = w * decay * left
        if group.folded:
            p_left = w.conj() * decay * right
            p = np.hstack([p, p_left]) if self._density is None else p + p_left / self._density
        for step in reversed(forward):
            p = step.backward(p, G)

    # ---- over ranks ---------------------------------------------------------------------------

    def _sum(self, parts, indices) -> np.ndarray:
        result = np.zeros(len(self.acquisition), dtype=complex)
        for index, part in zip(indices, parts, strict=True):
            result[self._groups[index].rows] = part
        return self.problem.comm.allreduce(result)

    def _contract(self, basis: Eigenmodes, G: np.ndarray) -> np.ndarray:
        """sum_ab G_ab int_F [phi_a][phi_b] for every owned facet."""
        problem = self.problem
        W = problem.jump_matrix @ _with_ghosts(problem, basis.modes)
        per_row = np.einsum("ra,ra->r", W @ G, W)
        facets = problem.mesh.num_owned_facets
        gradient = per_row.reshape(facets, -1).sum(axis=1) if facets else np.zeros(0)
        gradient[problem.tied] = 0.0
        return gradient

    # ---- how many modes -----------------------------------------------------------------------

    def _choose_modes(self) -> None:
        """Double the modes until dropping the last quarter changes no signal by `tolerance`."""
        size = self.problem.num_unknowns
        number = min(size, 96)
        scale = abs(self.problem.magnetisation_at_start) or 1.0
        hardest = self._hardest()
        while True:
            self.basis = eigenmodes(self.problem, number)
            if len(self.basis) >= size:
                self.estimated_error = 0.0
                break
            full = self._probe(self.basis, hardest)
            fewer = self._probe(self.basis.truncated(3 * len(self.basis) // 4), hardest)
            self.estimated_error = float(np.abs(full - fewer).max(initial=0.0)) / scale
            if self.estimated_error <= self.tolerance:
                break
            number = min(size, int(1.5 * number) + 1)
        self.modes = min(len(self.basis) + 4, size)

    def _hardest(self) -> list[int]:
        """The strongest measurement of each kind of group: up to 6 directions of each."""
        kinds = defaultdict(list)
        for index, group in enumerate(self._groups):
            if group.pieces:
                kinds[group.pieces].append(index)
        return [i for kind in kinds.values() for i in kind[:: max(1, len(kind) // 6)]]

    def _probe(self, basis: Eigenmodes, indices: list[int]) -> np.ndarray:
        mine = indices[self.problem.comm.rank:: self.problem.comm.size]
        return self._sum([self._evolve_group(basis, self._groups[i]) for i in mine], mine)


@dataclass
class _Rest:
    """A piece without gradient: exp(-Lambda t)."""

    eigenvalues: np.ndarray
    duration: float
    _input: np.ndarray = None

    def forward(self, u, remember=False):
        self._input = u if remember else None
        return np.exp(-self.eigenvalues * self.duration)[:, None] * u

    def backward(self, adjoint, gradient):
        product = (adjoint.conj() @ self._input.T).real
        gradient += product * _divided_differences(self.eigenvalues, self.duration)
        return np.exp(-self.eigenvalues * self.duration)[:, None] * adjoint


def _plan(acquisition: Acquisition, max_step: float) -> list[_Group]:
    """Group the rows of the table: by direction, and by the pieces that are to be propagated."""
    groups: dict[tuple, _Group] = {}
    folds = [_fold(waveform, max_step) for waveform in acquisition.waveforms]
    g = acquisition.gradient
    strength = np.linalg.norm(g, axis=1)
    for row in range(len(acquisition)):
        waveform = acquisition.waveforms[acquisition.waveform_index[row]]
        if strength[row] == 0:
            direction, pieces, folded, gap = np.zeros(3), (), False, waveform.echo_time
        else:
            direction = acquisition.directions[row]
            pieces, folded, gap = folds[acquisition.waveform_index[row]]
        key = (direction.tobytes(), pieces, folded)
        group = groups.setdefault(key, _Group(direction, pieces, folded))
        group.rows.append(row)
        group.strength.append(float(strength[row]))
        group.gap.append(float(gap))
    return list(groups.values())


def _fold(waveform, max_step: float) -> tuple[tuple, bool, float]:
    """Pieces to propagate, whether they are the first half only, and the gap after them."""
    durations, values = waveform.segments(max_step)
    pieces = list(zip((float(d) for d in durations), (float(v) for v in values), strict=True))
    if waveform.antisymmetric:
        middle = len(pieces) // 2
        if len(pieces) % 2 == 0:
            return tuple(pieces[:middle]), True, 0.0
        if pieces[middle][1] == 0:
            return tuple(pieces[:middle]), True, pieces[middle][0]
    gap = pieces.pop()[0] if pieces[-1][1] == 0 else 0.0
    return tuple(pieces), False, gap


def _divided_differences(eigenvalues: np.ndarray, duration: float) -> np.ndarray:
    """(exp(-a t) - exp(-b t)) / (a - b) for all pairs, its limit -t exp(-a t) on the diagonal."""
    a, b = eigenvalues[:, None], eigenvalues[None, :]
    half = 0.5 * (a - b) * duration
    small = np.abs(half) < 1e-4
    sinhc = np.where(small, 1 + half**2 / 6, 0.0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        direct = (np.exp(-a * duration) - np.exp(-b * duration)) / (a - b)
    smooth = -duration * np.exp(-0.5 * (a + b) * duration) * sinhc
    return np.where(small, smooth, direct)


def _with_ghosts(problem: BlochTorrey, modes: np.ndarray) -> np.ndarray:
    """Values at owned dofs followed by those at ghosts, ``(nd, K)``."""
    index_map = problem.space.dofmap.index_map
    if problem.comm.size == 1:
        return modes
    K = modes.shape[1]
    vector = dolfinx.la.vector(index_map, K)
    vector.array[: modes.size] = np.ascontiguousarray(modes).ravel()
    vector.scatter_forward()
    return vector.array.reshape(-1, K)
