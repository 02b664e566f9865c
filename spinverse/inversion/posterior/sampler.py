"""Chains over hypotheses: tempering, proposals by the emulator, decisions by the fast model.

A chain holds hypotheses x_0, x_1, ..., x_n of the posteriors exp(beta_j L) times the prior, from
beta_0 = 1 to small ones, and a reservoir of many at beta 0, of the prior itself, whose signals are
known as well. x_j moves by some moves that the emulator alone decides, at beta_j, and then a
decision by the fast model, min(1, exp(beta_j (L(y) - L*(y) - L(x) + L*(x)))), which is exact
whatever the emulator is like (surrogate transitions: Liu, Monte Carlo Strategies in Scientific
Computing, 2001, 9.4.3; delayed acceptance: Christen and Fox, J. Comput. Graph. Stat. 14, 795,
2005). All else costs no signals: neighbours exchange in turn, even pairs and odd ones, with betas
spaced for equal rejections (Syed, Bouchard-Cote, Deligiannidis and Doucet, J. R. Stat. Soc. B 84,
321, 2022), and each x_j is drawn anew from itself and all of the reservoir, with chances that are
proportional to exp(beta_j L); what it was before takes the place of what is drawn.

What is adapted, emulator, betas, numbers of moves and the full model's correction, is fixed before
samples are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf, log

import numpy as np
from mpi4py import MPI

from ...errors import InputError
from ...mesh.data import MeshData
from ...mesh.distributed import Mesh
from ...mesh.whole import WholeMesh
from ..likelihood import Likelihood
from ..problem import InverseProblem
from ..shapes.cells import EXACT, Cells
from ..shapes.ellipsoids import ellipsoid_labels, random_ellipsoid
from ..shapes.models import PARTITION_STEP, Models
from .emulator import Emulator, Features
from .moves import Moves, moved
from .nearby import Nearby
from .prior import Prior, ShapePrior

HOTTEST = 0.05  # smallest beta to begin with
LENGTHS = 5, 2000  # moves of x that the emulator alone decides: fewest, most
WANTED = 0.4  # of such moves that the fast model should accept
APART = 500  # moves of the prior between two that are kept: volumes are half forgotten
CHOICE = 10.0  # effective number of examples that is a choice
RARER = 2  # times as many steps between sets of moves while climbing: some tens of sets are enough
TRIES = 100  # drawings of a first shape

Arrays = dict[str, np.ndarray]


def alone(problem: InverseProblem) -> InverseProblem:
    """The same problem on this rank, for itself, the same on every rank. Collective."""
    mesh, whole = problem.mesh, WholeMesh.of(problem.mesh)
    tags = np.zeros(len(whole.cells), np.int32)
    tags[whole.owned_cells] = mesh.cell_tags[: mesh.num_owned_cells]
    mesh.comm.Allreduce(MPI.IN_PLACE, tags, MPI.SUM)
    own = Mesh.from_data(MeshData(whole.points, whole.cells, tags, name=mesh.name), MPI.COMM_SELF)
    return replace(problem, mesh=own)


@dataclass(frozen=True, eq=False)
class Space:
    """Hypotheses of a problem: their prior, their moves, their signals.

    Attributes:
        problem: on this rank alone, see `alone`.
        shapes: the prior of shapes.
        most: at most so many cells.
        data: likelihood in place of that of the problem, with the same acquisition; None for it.
    """

    problem: InverseProblem
    shapes: ShapePrior
    most: int = 1
    data: Likelihood | None = None

    def __post_init__(self):
        if not self.problem.likelihood.sigma:
            raise InputError("posterior: the noise is 0, expected its standard deviation")

    @cached_property
    def models(self) -> Models:
        return Models(self.problem, self.most)

    @cached_property
    def cells(self) -> Cells:
        return Cells(self.models.whole)

    @cached_property
    def prior(self) -> Prior:
        return Prior(self.shapes, self.models, self.cells)

    @cached_property
    def moves(self) -> Moves:
        return Moves(self.cells, self.models.bounds, self.models.cell_of, self.most)

    @cached_property
    def sides(self) -> list[tuple[int, int]]:
        """Cells on the two sides of each facet, -1 beyond the mesh."""
        return [(a, b) for a, b in self.models.whole.sides.tolist()]

    @cached_property
    def volumes(self) -> list[float]:
        """Of mesh cells, um^3."""
        return self.models.whole.volumes.tolist()

    @cached_property
    def areas(self) -> list[float]:
        """Of facets, um^2."""
        return self.models.whole.areas.tolist()

    @cached_property
    def features(self) -> Features:
        return Features(self.prior, self.moves, self.models)

    @property
    def likelihood(self) -> Likelihood:
        """Of what was measured."""
        return self.models.all.likelihood if self.data is None else self.data

    def measured(self, likelihood: Likelihood) -> Space:
        """The same hypotheses with other data of the same acquisition."""
        other, made = replace(self, data=likelihood), (
            "models", "cells", "prior", "moves", "features", "sides", "volumes", "areas")
        # what takes time to make
        other.__dict__.update({name: getattr(self, name) for name in made})
        return other

    def predicted(self, labels: np.ndarray, theta: np.ndarray,
                  step: float = PARTITION_STEP) -> np.ndarray:
        """Normalised magnitudes by the fast model with steps of ``step`` ms at most, ``(N,)``."""
        model = self.models.partition(theta)
        return self.likelihood.normalised(model.signals(
            labels, self.models.all.sweeps(step, model.kind)))

    def exact(self, labels: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Normalised magnitudes by the full model, ``(N,)``."""
        return self.likelihood.normalised(self.models.signals(labels, theta, self.models.all))

    # ---- walking ---------------------------------------------------------------------------------

    def walk(self, rng: np.random.Generator, labels: np.ndarray, theta: np.ndarray, number: int,
             emulator: Emulator | None = None, beta: float = 1.0, tally: np.ndarray | None = None
             ) -> tuple[np.ndarray, np.ndarray]:
        """``number`` moves, reversible for the prior times exp(beta L*)."""
        here = Place(self, labels, theta, emulator, beta)
        kinds, places = self.moves.draws(rng, number)
        for kind, place in zip(kinds, places, strict=True):
            moved = here.move(rng, kind, place)
            if tally is not None:
                tally[kind] += 1, moved
        return np.frombuffer(bytes(here.labels), np.int8)[:-1], here.theta

    def first(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """An allowed hypothesis to begin with: an ellipsoid, or all; numbers from their ranges."""
        for _ in range(TRIES):
            labels = self.cells.repaired(ellipsoid_labels(
                self.cells, random_ellipsoid(rng, self.cells)))
            if self.cells.allowed(labels):
                break
        else:
            labels = np.ones_like(labels)
        return labels, rng.uniform(*self.models.bounds)

    def draws(self, rng: np.random.Generator, number: int,
              apart: int = APART) -> list[tuple[np.ndarray, np.ndarray]]:
        """So many hypotheses of the prior, moves ``apart``, from one chain."""
        here, found = self.walk(rng, *self.first(rng), 10 * apart), []
        for _ in range(number):
            here = self.walk(rng, *here, apart)
            found.append(here)
        return found


class Place:
    """Where a walk is; what a move changes is computed by differences.

    Args:
        space: of hypotheses.
        labels, theta: an allowed hypothesis.
        emulator, beta: the walk is reversible for the prior times exp(beta L*).
    """

    def __init__(self, space: Space, labels: np.ndarray, theta: np.ndarray,
                 emulator: Emulator | None, beta: float):
        self.space, self.theta, self.beta = space, theta, beta
        self.emulator = emulator if beta else None
        self.labels, self.number = bytearray(labels.tobytes() + b"\0"), int(labels.max())
        walls = space.prior.walls(labels)
        self.sizes = space.prior.sizes(labels, walls)
        self.prior = space.prior.of_sizes(*self.sizes, self.number, theta)
        self.L = 0.0
        if self.emulator is not None:
            self.sums = self.emulator.sums(labels, walls)
            self.L = self.emulator.value(self.sums, theta, self.number)

    def move(self, rng: np.random.Generator, kind: int, place: int) -> bool:
        """Try a move; whether it was made."""
        space, labels = self.space, self.labels
        made = space.moves.propose(rng, kind, place, labels, self.theta)
        if made is None:
            return False
        cells, values, theta, ratio = made
        before = [labels[cell] for cell in cells]
        rows, signs = self._changed(cells, values)
        (V, S), number = self.sizes, self.number
        if cells:
            volumes, areas, n = space.volumes, space.areas, len(space.volumes)
            for row, sign in zip(rows, signs, strict=True):
                if row < n:
                    V += sign * volumes[row]
                else:
                    S += sign * areas[row - n]
            number = max(labels)
        prior = space.prior.of_sizes(V, S, number, theta)
        gain = prior - self.prior + ratio - log(1.0 - rng.random())
        L, sums = 0.0, None
        good = gain > (-inf if self.emulator is not None else 0.0) and (
            not cells or space.cells.still_allowed(labels, cells, before))
        if good and self.emulator is not None:
            sums = self.sums
            if rows:
                sums = sums + np.array(signs) @ self.emulator.table[rows]
            L = self.emulator.value(sums, theta, number)
            good = gain + self.beta * (L - self.L) > 0
        if not good:
            for cell, label in zip(cells, before, strict=True):
                labels[cell] = label
            return False
        self.theta, self.sizes, self.number, self.prior = theta, (V, S), number, prior
        if self.emulator is not None:
            self.L, self.sums = L, sums
        return True

    def _changed(self, cells: list[int], values: list[int]) -> tuple[list[int], list[float]]:
        """Give cells their labels; which mesh cells come and go, and which walls.

        Rows of `Emulator.table`, and 1 or -1.
        """
        labels, sides, n = self.labels, self.space.sides, len(self.space.volumes)
        facets_of, rows, signs = self.space.models.whole.facets_of, [], []
        facets = {facet for cell in cells for facet in facets_of[cell]}
        were = [labels[a] != labels[b] for a, b in (sides[facet] for facet in facets)]
        for cell, label in zip(cells, values, strict=True):
            if (labels[cell] > 0) != (label > 0):
                rows.append(cell)
                signs.append(1.0 if label else -1.0)
            labels[cell] = label
        for facet, was in zip(facets, were, strict=True):
            a, b = sides[facet]
            if (labels[a] != labels[b]) != was:
                rows.append(n + facet)
                signs.append(-1.0 if was else 1.0)
        return rows, signs


@dataclass(frozen=True, eq=False)
class Tuned:
    """What all chains share, and adapt before samples are kept.

    Attributes:
        emulator: of the likelihood.
        betas: of the levels, from 1 on.
        lengths: moves that the emulator alone decides, of each level.
        bias: ``(N,)`` full model minus fast model, normalised magnitudes.
        reference: ``(P,)`` numbers that effects of single moves are computed at.
        sets: whether sets of moves are tried, see `nearby`.
        effects: of single moves, by shape: what has been computed.
    """

    emulator: Emulator
    betas: np.ndarray
    lengths: np.ndarray
    bias: np.ndarray
    reference: np.ndarray
    sets: bool
    effects: dict[bytes, tuple] = field(default_factory=dict)

    def log_likelihood(self, predicted: np.ndarray) -> np.ndarray:
        """Of predictions of the fast model ``(..., N)``, ``(...)``."""
        return self.emulator.likelihood.log_density(np.maximum(predicted + self.bias, 0.0))


def first_betas(number: int) -> np.ndarray:
    """Geometric."""
    return np.geomspace(1.0, HOTTEST, number)


def spaced(betas: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """Betas with equal rejections between neighbours, from those between the present ones.

    ``rejected``: of each level with the next, and of the last one with the reservoir, at 0, where
    it is small if many have a weight in it.
    """
    barrier = np.r_[0.0, np.cumsum(np.maximum(rejected, 1e-3))]
    return np.interp(np.linspace(0, barrier[-1], len(barrier)), barrier, np.r_[betas, 0.0])[:-1]


def longer(lengths: np.ndarray, accepted: np.ndarray) -> np.ndarray:
    """More moves between decisions where many are accepted, fewer where few are."""
    return np.clip(np.round(lengths * np.exp(1.5 * (accepted - WANTED))), *LENGTHS).astype(int)


def examples(space: Space, seed: tuple, number: int,
             start: tuple[np.ndarray, np.ndarray] | None = None) -> Arrays:
    """What the emulator learns from: hypotheses of the prior, and half of them near a start.

    Returns:
        ``labels``, ``theta`` and ``predicted``, and whether they are of the ``prior``.
    """
    rng = np.random.default_rng(seed)
    near = [] if start is None else [start, *(space.walk(rng, *start, 5 * (k % 40 + 1))
                                              for k in range(number // 2))]
    found = [*near, *space.draws(rng, max(number - len(near), 1))]
    return {"labels": np.array([labels for labels, _ in found], np.int8),
            "theta": np.array([theta for _, theta in found]),
            "predicted": np.array([space.predicted(*each) for each in found]),
            "prior": np.arange(len(found)) >= len(near)}


def begin(space: Space, known: Arrays, seed: tuple, start: tuple[np.ndarray, np.ndarray] | None,
          levels: int) -> Arrays:
    """The first state of a chain: at the start, or at one of the examples that explain most.

    By weights exp(beta L), with the largest beta that leaves some of them a choice. All examples of
    the prior are the reservoir.
    """
    rng = np.random.default_rng(seed)
    names = "labels", "theta", "predicted"
    mine = np.flatnonzero(known["prior"])
    L = space.likelihood.log_density(known["predicted"])
    for beta in np.geomspace(1.0, 1e-6, 61):
        weights = np.exp(beta * (L - L.max()))
        if weights.sum() ** 2 >= CHOICE * np.sum(weights**2):
            break
    chosen = rng.choice(len(L), levels, p=weights / weights.sum())
    state = {name: known[name][chosen] for name in names}
    if start is not None:
        state["labels"][0], state["theta"][0] = start
        state["predicted"][0] = space.predicted(*start)
    return state | {f"reservoir_{name}": known[name][mine] for name in names}


def advance(space: Space, tuned: Tuned, state: Arrays, seed: tuple, steps: int, keep: int,
            climbing: bool = False) -> tuple[Arrays, Arrays, Arrays]:
    """Some steps of a chain.

    Args:
        space, tuned: of the problem.
        state: of `begin`, or of before.
        seed: of this part of the chain.
        steps: each takes one or no partition.
        keep: every so many steps a sample is kept, and a set of moves tried, if they are (`RARER`
            while climbing).
        climbing: sets that are likelier are taken, whatever the way back: not for samples.

    Returns:
        The state after them; samples (labels, theta, log-likelihood); and what was met:
        partitions that were computed, decisions of each level, rejections between levels, tried and
        accepted moves of the first; how many shapes the first came to without sets, and tried and
        accepted sets; how many partitions effects of single moves took.
    """
    rng, emulator, prior = np.random.default_rng(seed), tuned.emulator, space.prior
    n, betas = len(tuned.betas), tuned.betas
    z = list(zip(state["labels"], state["theta"], state["predicted"], strict=True))
    others = [state[f"reservoir_{name}"].copy() for name in ("labels", "theta", "predicted")]
    # log-likelihoods: of the levels, and of the reservoir
    L, free = tuned.log_likelihood(state["predicted"]), tuned.log_likelihood(others[2])
    decided, rejected = np.zeros((2, n)), np.zeros((2, n))
    tally = np.zeros((len(space.moves.kinds), 2))
    kept: list[tuple] = []
    met: list[tuple] = []
    near, shapes, sets = Nearby(space, tuned), 0.0, np.zeros(2)

    def error(labels, theta, value):
        return value - emulator.log_likelihood(labels, theta, prior.walls(labels))

    w = np.exp(betas[-1] * (free - free.max()))
    rejected[:, -1] = steps / (1 + w.sum() ** 2 / np.sum(w**2) / CHOICE), steps
    for step in range(steps):
        for j in range(n):
            every = np.append(free, L[j])
            until = np.cumsum(np.exp(betas[j] * (every - every.max())))
            k = int(np.searchsorted(until, rng.random() * until[-1], side="right"))
            if k < len(free):
                y = tuple(part[k].copy() for part in others)
                for part, value in zip(others, z[j], strict=True):
                    part[k] = value
                z[j], L[j], free[k] = y, free[k], L[j]
        for j in (0, 1 + step % (n - 1)):
            labels, theta, _ = z[j]
            y = space.walk(rng, labels, theta, int(tuned.lengths[j]), emulator, betas[j],
                           None if j else tally)
            if np.array_equal(y[0], labels) and np.array_equal(y[1], theta):
                continue
            met.append((*y, space.predicted(*y)))
            there = float(tuned.log_likelihood(met[-1][2]))
            gain = betas[j] * (error(*y, there) - error(labels, theta, L[j]))
            decided[:, j] += min(1.0, np.exp(min(0.0, gain))), 1
            if not j and _another(space, labels, y[0]):
                shapes += min(1.0, np.exp(min(0.0, gain)))
            if np.log(1.0 - rng.random()) < gain:
                z[j], L[j] = met[-1], there
        if tuned.sets and (step + 1) % (RARER * keep if climbing else keep) == 0:
            y, there, chance = near.step(rng, z[0], L[0], climbing)
            sets += 1, chance
            if y is not None:
                met.append(y)
                if rng.random() < chance:
                    z[0], L[0] = y, there
        for j in range(step % 2, n - 1, 2):
            gain = (betas[j] - betas[j + 1]) * (L[j + 1] - L[j])
            rejected[:, j] += 1 - min(1.0, np.exp(min(0.0, gain))), 1
            if np.log(1.0 - rng.random()) < gain:
                z[j], z[j + 1], L[j], L[j + 1] = z[j + 1], z[j], L[j + 1], L[j]
        if (step + 1) % keep == 0:
            kept.append((*z[0][:2], L[0]))
    after = _columns(z, ("labels", "theta", "predicted"), state)
    after |= dict(zip((f"reservoir_{name}" for name in after), others, strict=True))
    samples = _columns(kept, ("labels", "theta"), state) | {
        "log_likelihood": np.array([row[2] for row in kept])}
    found = _columns(met, ("labels", "theta", "predicted"), state)
    return after, samples, found | {
        "decided": decided, "rejected": rejected, "moves": tally, "sets": sets,
        "shapes": np.array(shapes), "solved": np.array(near.solved)}


def _another(space: Space, labels: np.ndarray, new: np.ndarray) -> bool:
    """Whether a shape is another one, not the same elsewhere or reflected."""
    if not np.allclose(space.prior.sizes(labels), space.prior.sizes(new), rtol=EXACT):
        return True
    return not np.array_equal(labels, new) and not any(
        np.array_equal(new, moved(labels, source)) for _, _, source in space.cells.maps)


def _columns(rows: list[tuple], names: tuple[str, ...], like: Arrays) -> Arrays:
    """Arrays by name, with the items and types of others of these names."""
    return {name: np.array([row[k] for row in rows], like[name].dtype).reshape(
        len(rows), *like[name].shape[1:]) for k, name in enumerate(names)}
