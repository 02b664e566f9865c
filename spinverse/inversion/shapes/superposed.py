"""Starts of several cells: what each of them alone changes of the signals is added up.

Magnetisation that has left one cell hardly comes to another, so the signal of several is that of
the empty box and what each adds to it: to 1e-7 mean square of cells apart in an absorbing box
(0.1 is what they add). So the best of all sets of some hundred cells is found with as many solves
as there are cells, wherever they lie. A cell with another one in it counts as one of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...engines.shapes.partition import PartitionModel
from .cells import Cells
from .ellipsoids import (
    MUTATION,
    SIZE,
    SIZES,
    allowed_labels,
    nested_ellipsoids,
    random_ellipsoid,
    tuned,
)
from .hypothesis import Hypothesis
from .look import Look
from .models import PARTITION_STEP, Models

SHARE, LONG = (0.006, 0.18), 3.0  # volume of a random cell over that of the box; longest axis
HOSTS = 0.3  # share of the pool that is a cell with another one in it
# random sets that exchanges of single members begin with; that are kept of each exchange
SETS, RUNNERS = 40, 6
GENERATIONS, OFFSPRING = 12, 6  # of an evolution; of each member in each of them
LARGER, SMALLER = 1.2, 0.7  # factors of the size of mutations
WALL = 0.3  # of a mutation: of the coordinate of a cell's own numbers
AT_ONCE = 16  # models of different numbers that are held
PLACES, TRIES = 10, 300  # random places of a set that are solved; drawings for them


@dataclass(frozen=True, eq=False)
class Member:
    """A cell, or a cell with another one in it, alone in the box.

    Attributes:
        ellipsoids: ``(1 or 2, 9)``.
        labels: of the mesh cells.
        theta: coordinates of unknown numbers, both cells with those of the first.
        change: of the signals, beside an empty box, ``(N,)`` complex.
    """

    ellipsoids: np.ndarray
    labels: np.ndarray
    theta: np.ndarray
    change: np.ndarray

    @property
    def cells(self) -> int:
        return len(self.ellipsoids)


class Pool:
    """Random cells, each solved alone, of which sets are made. Collective.

    Args:
        models, cells, look: of the search.
        number: of members.
        seed: of all that is random.
        thetas: of unknown numbers, dealt out to the members.

    Attributes:
        shapes: partitions whose signals were computed.
    """

    def __init__(self, models: Models, cells: Cells, look: Look, number: int, seed: tuple,
                 thetas: Sequence[np.ndarray]):
        self.models, self.cells, self.look, self.seed = models, cells, look, seed
        self._names, self._shared = np.array(models.names), models.cell_of == 0
        self._empty: dict[bytes, np.ndarray] = {}
        self.shapes = 0
        rng, drawn = np.random.default_rng(seed), []
        for k in range(number):
            nested = rng.random() < HOSTS
            ellipsoids = (nested_ellipsoids(rng, cells) if nested
                          else random_ellipsoid(rng, cells, SHARE, LONG))
            drawn.append((ellipsoids, thetas[k % len(thetas)]))
        self.members = [member for member in self._solved(drawn) if member is not None]

    def promise(self, number: int) -> float:
        """Misfit of the best set of ``number`` cells in all; inf if there is none."""
        best = self._best(number, 1)
        return self._misfit(best[0]) if best else np.inf

    def starts(self, number: int, keep: int) -> list[Hypothesis]:
        """The best distinct sets of ``number`` cells in all, evolved and put somewhere.

        At most ``keep``; half of them with a cell in another.
        """
        rng = np.random.default_rng((*self.seed, number))
        sets = self._best(number, keep)
        sizes = [SIZE] * len(sets)
        for _ in range(GENERATIONS):
            drawn, of = [], []
            for which, members in enumerate(sets):
                for place, member in enumerate(members):
                    drawn += self._mutated(member, sizes[which], rng)
                    of += [(which, place)] * OFFSPRING
            young: dict[tuple, list[Member]] = {}
            for key, member in zip(of, self._solved(drawn), strict=True):
                if member is not None:
                    young.setdefault(key, []).append(member)
            for which, members in enumerate(sets):
                groups = [[member, *young.get((which, place), [])]
                          for place, member in enumerate(members)]
                before = self._misfit(members)
                sets[which] = self._chosen(groups)
                better = self._misfit(sets[which]) < before
                sizes[which] = (min(LARGER * sizes[which], SIZES[1]) if better
                                else max(SMALLER * sizes[which], SIZES[0]))
        found = [self._put(members, rng) for members in sets]
        return sorted((tuned(self.models, start, self.look) for start in found
                       if start is not None), key=lambda start: start.misfit)

    # ---- sets -----------------------------------------------------------------------------------

    def _best(self, number: int, keep: int) -> list[list[Member]]:
        """Of random sets that exchange members as long as that gains, the best distinct ones.

        Half of them with a cell in another, if there are such, the best first.
        """
        rng = np.random.default_rng((*self.seed, number, 0))
        found: tuple[dict[tuple, float], ...] = {}, {}  # without a cell in another, and with one
        by_theta: dict[bytes, list[int]] = {}
        for k, member in enumerate(self.members):
            by_theta.setdefault(member.theta[self._shared].tobytes(), []).append(k)
        for mine in by_theta.values():
            cells = np.array([self.members[k].cells for k in mine])
            changes = np.array([self.members[k].change for k in mine])
            empty = self._alone(self.members[mine[0]].theta)
            for turn in range(-(-SETS // len(by_theta))):
                hosts = turn % 2 if number > 1 and (cells == 2).any() else 0
                sizes = [2] * hosts + [1] * (number - 2 * hosts)
                if any(np.count_nonzero(cells == size) < sizes.count(size) for size in (1, 2)):
                    continue
                chosen = np.concatenate([rng.choice(np.flatnonzero(cells == size),
                                                    sizes.count(size), replace=False)
                                         for size in (2, 1)])
                seen: dict[tuple, float] = {}
                self._exchanged(empty, changes, chosen, cells, seen)
                found[hosts].update((tuple(sorted(mine[k] for k in members)), misfit)
                                    for members, misfit in seen.items())
        best: list[tuple] = []
        for misfits in found:
            distinct: list[tuple] = []
            for members in sorted(misfits, key=misfits.__getitem__):
                if all(2 * len({*members} & {*other}) <= len(members) for other in distinct):
                    distinct.append(members)
                if len(distinct) == -(-keep // 2):
                    break
            best += [(misfits[members], members) for members in distinct]
        return [[self.members[k] for k in members] for _, members in sorted(best)]

    def _exchanged(self, empty: np.ndarray, changes: np.ndarray, chosen: np.ndarray,
                   kind: np.ndarray, seen: dict | None = None) -> list[int]:
        """Each of the chosen for the best of its kind, until nothing is gained.

        ``seen``: is given the `RUNNERS` best sets on the way, and what they leave.
        """
        chosen, least = chosen.tolist(), np.inf
        while True:
            before = least
            for place in range(len(chosen)):
                rest = [k for other, k in enumerate(chosen) if other != place]
                values = self._misfits(empty + changes[rest].sum(axis=0) + changes)
                values[rest] = np.inf
                values[kind != kind[chosen[place]]] = np.inf
                if seen is not None:
                    seen.update((tuple(sorted([*rest, k])), float(values[k]))
                                for k in values.argsort()[:RUNNERS].tolist() if values[k] < np.inf)
                k = int(values.argmin())
                if values[k] < least:
                    chosen[place], least = k, float(values[k])
            if least >= before:
                return chosen

    def _chosen(self, groups: list[list[Member]]) -> list[Member]:
        """One of each group, from the first ones by exchanges."""
        members = [member for group in groups for member in group]
        kind = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        first = np.flatnonzero(np.r_[True, np.diff(kind) > 0])
        chosen = self._exchanged(self._alone(members[0].theta),
                                 np.array([member.change for member in members]), first, kind)
        return [members[k] for k in chosen]

    def _misfit(self, members: Sequence[Member]) -> float:
        return float(self._misfits(self._alone(members[0].theta)
                                   + sum(member.change for member in members)))

    def _misfits(self, signals: np.ndarray) -> np.ndarray:
        return np.mean((self.look.predicted(signals) - self.look.measured) ** 2, axis=-1)

    # ---- members --------------------------------------------------------------------------------

    def _mutated(self, member: Member, size: float, rng: np.random.Generator) -> list[tuple]:
        """Other ellipsoids; every second one has other numbers of its own, too."""
        theta = member.theta.copy()
        for name in dict.fromkeys(self._names[~self._shared].tolist()):  # alike in all cells
            theta[self._names == name] += size * WALL * rng.normal()
        if len(theta):
            theta = np.clip(theta, *self.models.bounds)
        return [(member.ellipsoids + size * MUTATION * rng.normal(size=member.ellipsoids.shape),
                 theta if k % 2 else member.theta) for k in range(OFFSPRING)]

    def _solved(self, drawn: Sequence[tuple]) -> list[Member | None]:
        """Members of ellipsoids and coordinates; None where they are not allowed."""
        by_theta: dict[bytes, list[int]] = {}
        for k, (_, theta) in enumerate(drawn):
            by_theta.setdefault(theta.tobytes(), []).append(k)
        members: list[Member | None] = [None] * len(drawn)
        groups = list(by_theta.values())
        for first in range(0, len(groups), AT_ONCE):
            # assembled on all ranks: what is dealt out to them is not collective
            known: dict[int, tuple[PartitionModel, np.ndarray]] = {}
            for group in groups[first: first + AT_ONCE]:
                theta = drawn[group[0]][1]
                known |= dict.fromkeys(group, (self.models.partition(theta), self._alone(theta)))

            def one(k, known=known):
                (ellipsoids, theta), (model, empty) = drawn[k], known[k]
                labels = allowed_labels(self.cells, ellipsoids)
                return None if labels is None else Member(
                    ellipsoids, labels, theta, self._signals(model, labels) - empty)

            for k, member in zip(known, self.models.shared(one, list(known)), strict=True):
                members[k] = member
        self.shapes += sum(member is not None for member in members)
        return members

    def _signals(self, model: PartitionModel, labels: np.ndarray) -> np.ndarray:
        return model.signals(labels, self.look.sweeps(PARTITION_STEP, model.kind))

    def _alone(self, theta: np.ndarray) -> np.ndarray:
        """Signals of the empty box."""
        key = theta[self._shared].tobytes()
        if key not in self._empty:
            nothing = np.zeros(len(self.models.whole.cells), np.int8)
            self._empty[key] = self._signals(self.models.partition(theta), nothing)
        return self._empty[key]

    # ---- places ---------------------------------------------------------------------------------

    def _put(self, members: Sequence[Member], rng: np.random.Generator) -> Hypothesis | None:
        """A set in the best of some random places where nothing overlaps."""
        ordered = sorted(members, key=lambda member: -np.count_nonzero(member.labels))
        theta, of = ordered[0].theta.copy(), self.models.cell_of
        each = [member for member in ordered for _ in range(member.cells)]
        for label, member in enumerate(each, 1):
            theta[of == label] = member.theta[of == 1]
        found: dict[bytes, np.ndarray] = {}
        for _ in range(TRIES):
            labels = self._somewhere(ordered, rng)
            if labels is not None and self.cells.allowed(labels):
                found[labels.tobytes()] = labels
            if len(found) == PLACES:
                break
        if not found:
            return None
        shapes = list(found.values())
        values = self.models.misfits(shapes, theta, self.look)
        self.shapes += len(shapes)
        best = int(values.argmin())
        return Hypothesis(shapes[best], theta, float(values[best]), self.seed)

    def _somewhere(self, members: Sequence[Member],
                   rng: np.random.Generator) -> np.ndarray | None:
        result, label = np.zeros(len(self.models.whole.cells), np.int8), 0
        for member in members:
            for place in rng.permutation(len(self.cells.maps)):
                _, _, source = self.cells.maps[place]
                moved = np.where(source >= 0, member.labels[source], 0)
                inside = moved > 0
                if (np.count_nonzero(inside) == np.count_nonzero(member.labels)
                        and not result[inside].any()):
                    result[inside] = label + moved[inside]
                    break
            else:
                return None
            label += member.cells
        return result
