"""The whole search: many starts, the promising ones followed up, until the data are explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import SolverError
from . import levels
from .cells import Cells
from .ellipsoids import GENERATIONS, Start, examples, starts
from .flips import Walk
from .graded import SHARPER, Graded, blurred, sharpest
from .placements import Placements
from .task import Lifted, Task

NEAR = 1e-4  # misfit, in the unit of walks, that is followed up at once
# whitened misfit, of walks that do not look at their place and of others: from there they are not
# followed before graded shapes were tried
STRANGE, LOST = 1e-2, 2e-3
CLOSE = 1.3  # variances of the noise, within which a shape is near
# parts that a search of noisy data has at least, if no second start confirms its find; and so many
# without a likelier shape end it
SURE, FRUITLESS = 3, 2
PARTED = 0.25  # of the misfit of the largest part alone, to believe in several
LIKELY = 0.5  # of the misfit of one ellipsoid: where two leave less, they are followed up first

# the parts of a round: where one cell is likely, and where two are
ONE = ("sharp", "graded", "sharp", "graded", "sharp", "several")
TWO = ("sharp", "several", "several", "graded", "several", "sharp")
# what counts as how many shapes of an absorbing box
REFLECTING, STEP = 2.5, 30


@dataclass(frozen=True)
class Settings:
    """How much work a search may do. The same for every target.

    Attributes:
        cells: at most so many.
        ellipsoids: random ones that are tried in each round, sharp and graded.
        candidates: the best distinct ones of each kind, which are improved.
        pairs, likely: so many candidates of two walk; so many tell whether there are two.
        rounds: at most so many.
        budget: shapes whose signals may be computed, about; the search ends after the walk that
            passes it. A reflecting one counts 2.5, a step of graded ones 30, and one in three
            times as many directions twice.
        target: noise-free, a mean-square misfit that ends the search.
        seed: of all that is random.
        few, more: directions that the walks and the graded shapes look at, if there is no noise.
        moves, early: shapes with more moves, several cells, and all after so many parts, look at
            all directions where they are followed.
        noisy: directions that are computed where there is noise, to tell the others from.
        examples: shapes that this is learnt from.
        walks, steps: so many of the starts walk so far before the best are followed up.
        followed: so many of these, of one cell.
        couples: so many, of two cells, each the best of its share of the starts.
        turns: walks from one start, elsewhere on the lattice each time.
        sharpened: so many of the graded candidates.
        walk: iterations of a walk of single cells.
        settled: so many places are looked at closely before a walk of several cells.
        blind, places: steps of one cell that do not look at its place; then so many are tried.
    """

    cells: int = 2
    ellipsoids: int = 400
    candidates: int = 6
    pairs: int = 6
    likely: int = 4
    rounds: int = 3
    budget: int = 40_000
    target: float = 1e-7
    seed: int = 0
    few: int = 10
    more: int = 10
    moves: int = 140
    early: int = 2
    noisy: int = 10
    examples: int = 200
    walks: int = 3
    steps: int = 3
    followed: int = 1
    couples: int = 2
    turns: int = 2
    sharpened: int = 3
    walk: int = 40
    settled: int = 3
    blind: int = 3
    places: int = 2


@dataclass(frozen=True, eq=False)
class Found:
    """The best partition of a search.

    Attributes:
        labels: ``(Nt,)`` 0 outside, 1.. compartments.
        misfit: mean square of all normalised magnitudes, by the full model.
        shapes: partitions whose signals were computed.
        ending: why the search ended.
    """

    labels: np.ndarray
    misfit: float
    shapes: int
    ending: str


Report = Callable[[str, float], None]


class Search:
    """A search for one task. Collective.

    Args:
        task: what is known.
        settings: how much work.
        report: called with a phase and its misfit.
    """

    def __init__(self, task: Task, settings: Settings, report: Report | None = None):
        self.task, self.settings = task, settings
        self.report = report or (lambda phase, misfit: None)
        self.cells = Cells(task.whole)
        if task.floor:  # noise is averaged by looking at everything
            self.first, self.more = task.all.directions(settings.noisy), task.all
            self.few = Lifted.learnt(task.all, settings.noisy, examples(
                task, self.cells, settings.examples, (settings.seed, 0)))
        else:
            self.first = self.few = task.all.directions(settings.few)
            self.more = task.all.directions(settings.more)
        self.all = self.few if task.floor else task.all
        self.part = 0
        self.placements = Placements(self.cells)
        self.width = 0.31 * task.size
        self.shapes = self.steps = 0
        self.best: tuple[float, np.ndarray] | None = None
        self.fitted = False
        self.several = False  # cells are likely
        # noisy data: shapes that were polished, which start led to the best one, and whether
        # another one did, too
        self.polished: set[bytes] = set()
        self.origin: tuple = ()
        self.confirmed = False
        self.bests: list[float] = []  # after each part
        self.after_part: Callable[[dict], None] | None = None
        self.before: dict | None = None  # the state at the beginning of a part
        self._set_target()

    def run(self, after_part: Callable[[dict], None] | None = None,
            state: dict | None = None) -> Found:
        """Rounds of starts until one explains the data.

        Args:
            after_part: called after each part, and in the middle of one with the best so far, with
                a state, plain arrays, to go on from. A part that was begun is done again then.
            state: such a one.
        """
        done = 0 if state is None else self._restore(state)
        self.after_part = after_part
        noise = self.task.floor > 0
        kinds = {"sharp": self._sharp, "graded": self._graded, "several": self._several}
        for part in range(done, len(ONE) * self.settings.rounds):
            plan = TWO if self.several else ONE
            turn, k = divmod(part, len(plan))
            kind = plan[k]
            # graded shapes fit noise: only what is far from it gains
            if (kind == "several" and self.settings.cells == 1
                    or kind == "graded" and noise and self._near()):
                continue
            self.part = part
            self.before = self._state(part)
            kinds[kind](turn * plan.count(kind) + plan[:k].count(kind))
            self.before = None
            if noise and self.best is not None and not self.confirmed:
                self._polish()
            if self.best is not None:
                self.bests.append(self.best[0])
            if self._finished() or (len(self.bests) >= SURE
                                    and (self._explained() or self._fruitless())):
                break
            if after_part is not None and self.best is not None:
                after_part(self._state(part + 1))
        if self.best is None:
            raise SolverError("shape search: no start with a closed surface; more ellipsoids?")
        return self._found("the data are explained" if self._explained() else
                           "no likelier shape any more" if self._fruitless() else
                           "as many shapes as it may look at" if self._left() <= 0 else
                           "all rounds are done")

    def _state(self, part: int) -> dict:
        misfit, labels = self.best or (np.inf, np.zeros(len(self.task.whole.cells), np.int8))
        return {"part": np.array(part), "labels": labels, "misfit": np.array(misfit),
                "shapes": np.array([self.shapes, self.steps]), "fitted": np.array(self.fitted),
                "resistance": np.array(self.task.elements.resistance),
                "unit": np.array(self.task.unit), "origin": np.array(self.origin),
                "several": np.array(self.several), "bests": np.array(self.bests),
                "polished": np.frombuffer(b"".join(sorted(self.polished)), dtype=np.int8)}

    def _restore(self, state: dict) -> int:
        task = self.task
        self.best = float(state["misfit"]), np.asarray(state["labels"], dtype=np.int8)
        self.fitted = bool(state["fitted"])
        # checkpoints of before have no steps
        self.shapes, self.steps = [*np.atleast_1d(state["shapes"]).astype(int).tolist(), 0][:2]
        task.elements = replace(task.elements, resistance=float(state["resistance"]))
        task.unit = float(state["unit"])
        # checkpoints of before have none of these
        self.several = bool(state.get("several", False))
        self.bests = np.asarray(state.get("bests", ())).tolist()
        self.origin = tuple(np.asarray(state.get("origin", ())).tolist())
        polished = np.asarray(state.get("polished", ()), np.int8).reshape(-1, len(self.best[1]))
        self.polished = {labels.tobytes() for labels in polished}
        self._set_target()
        return int(state["part"])

    def _set_target(self) -> None:
        # what noise explains does not end a search: see `_polish`
        self.target = self.task.all.explained or self.settings.target * min(self.task.unit, 1.0)

    def _solved(self) -> bool:
        """Whether there is nothing more to look for."""
        if self.task.floor:
            return self.confirmed
        return self.best is not None and self.best[0] <= self.target

    def _left(self, walk: Walk | None = None) -> float:
        """How many shapes may still be looked at."""
        each = 1.0 if self.task.absorbing else REFLECTING
        done = self.shapes + (0 if walk is None else self._worth(walk))
        return self.settings.budget / each - done - STEP * self.steps / each

    def _finished(self) -> bool:
        return self._solved() or (self.best is not None and self._left() <= 0)

    def _explained(self) -> bool:
        """Whether noise explains what is left; many shapes may come to that, one is likeliest."""
        return self.best is not None and self.best[0] <= self.target

    def _near(self) -> bool:
        """Whether the noise is a good part of what is left."""
        return self.best is not None and self.best[0] <= CLOSE * self.task.floor

    def _fruitless(self) -> bool:
        """Whether the last parts have not made noisy data likelier by a factor of e."""
        floor, bests = self.task.floor, self.bests
        if not self._near() or len(bests) <= FRUITLESS:
            return False
        return bests[-1 - FRUITLESS] - bests[-1] < 2 * floor / len(self.task.all.measured)

    def _found(self, why: str) -> Found:
        misfit, labels = self.best
        return Found(labels, misfit, self.shapes, why)

    def _calibrate(self, labels: np.ndarray) -> None:
        """Fit what the models cannot know, once there is a shape that is about right."""
        if not self.fitted:
            self.task.fit_resistance(labels, self.more)
            self.fitted = True

    # ---- sharp starts ---------------------------------------------------------------------------

    def _sharp(self, number: int) -> None:
        """Ellipsoids with sharp walls; a short walk from each tells the good ones."""
        s = self.settings
        found = starts(self.task, self.cells, self.first, 1, s.ellipsoids, s.candidates,
                       (s.seed, number))
        self.shapes += s.ellipsoids + s.candidates * GENERATIONS
        if not found:
            return
        self.report("1 ellipsoid", found[0].misfit)
        self._calibrate(found[0].labels)
        if not number:
            self._set_unit(found[0].labels)
            self.several = self._two_are_likely(found[0].misfit)
            if self.several:
                return
        self._walks([start.labels for start in found[: s.walks]], (s.seed, number, 1), s.followed)

    def _walks(self, starts: list[np.ndarray], seed: tuple, followed: int,
               numbers: Sequence[int] | None = None) -> None:
        """A short walk from each start; the best of them, or one that comes near, go on."""
        s, begun = self.settings, []
        for k, labels in zip(numbers or range(len(starts)), starts, strict=True):
            places = []
            for walk in self._begun((*seed, k), labels):
                self._run(walk, s.steps)
                self._keep(walk)
                if walk.best[0] < NEAR * walk.unit + self.task.floor:
                    self._follow(walk)
                else:
                    places.append(walk)
                if self._finished():
                    return
            if len(places) > 1:  # in its right place a shape is soon found
                places.sort(key=lambda walk: walk.white)
                self._run(places[0], s.steps)
                self._keep(places[0])
                if self._finished():
                    return
            begun += places
        begun.sort(key=lambda walk: walk.white)
        for walk in begun[:followed]:
            if self._graded_first(walk, LOST):
                break
            self._follow(walk)
            if self._finished():
                return

    def _begun(self, seed: tuple, labels: np.ndarray) -> Iterator[Walk]:
        """Walks from a start: of one cell from the places that fit its shape best.

        A shape that is nearly right lies in a wrong place as long as that makes up for its errors,
        and no single moves take it from there. So what places change does not count at first.
        """
        s, scout = self.settings, self._scout(seed)
        if labels.max() > 1:
            yield scout.fork(self._placed(scout, labels))
            return
        scout.begin(labels)
        self._run(scout, s.blind, places=self.placements.of)
        self._keep(scout)
        if self._finished() or self._graded_first(scout, STRANGE):
            return
        scout.begin(scout.labels, nearby=True)
        found = self._ranked(scout, s.places + 1, self.placements.of)
        self._count(scout)
        for _, there in found[: s.places]:
            yield scout.fork(there)

    def _graded_first(self, walk: Walk, limit: float) -> bool:
        """Whether graded shapes, which have not been tried, promise more than a far walk."""
        return not self.part and not self.task.floor and walk.white > limit

    def _ranked(self, walk: Walk, number: int, places: Callable) -> list[tuple[float, np.ndarray]]:
        """Partitions at so many other places, those that explain most first."""
        ranked = sorted(walk.survey(places(walk.labels)), key=lambda item: item[0])
        found = [walk.settle(place) for _, place in ranked[:number]]
        return sorted((item for item in found if item is not None), key=lambda item: item[0])

    def _two_are_likely(self, one: float) -> bool:
        """Whether two ellipsoids leave far less than one did."""
        s, floor = self.settings, self.first.floor
        found = self._pairs(0, s.ellipsoids, s.likely) if s.cells > 1 else []
        return bool(found) and found[0].misfit - floor < LIKELY * (one - floor)

    def _pairs(self, number: int, tried: int, keep: int) -> list[Start]:
        found = starts(self.task, self.cells, self.first, 2, tried, keep,
                       (self.settings.seed, number))
        self.shapes += tried + 2 * keep * GENERATIONS
        if found:
            self.report("2 ellipsoids", found[0].misfit)
        return found

    def _several(self, number: int) -> None:
        """Two cells of about the right shapes in all places that they can have."""
        s = self.settings
        found = self._pairs(number + 1, 2 * s.ellipsoids, s.pairs)  # others than the first ones
        if found:
            self._calibrate(found[0].labels)
            # the best of a few is followed before the others are looked at
            for few in np.array_split(np.arange(len(found)), s.couples):
                self._walks([found[k].labels for k in few], (s.seed, number, 2), 1, few.tolist())
                if self._finished():
                    return

    def _set_unit(self, labels: np.ndarray) -> None:
        task = self.task
        task.measure_unit(blurred(task, labels > 0, 1), self.first)
        self._set_target()

    def _scout(self, seed: tuple) -> Walk:
        return Walk(self.task, self.cells, self.few, seed)

    def _told(self, walk: Walk) -> Walk:
        """A walk that is told enough: from few directions many moves do not come apart."""
        s, labels = self.settings, walk.labels
        if (walk.look is self.all or self.part < s.early and labels.max() == 1
                and len(self.cells.moves(labels)) <= s.moves):
            return walk
        told = Walk(self.task, self.cells, self.all, walk.seed)
        told.begin(labels)
        return told

    def _run(self, walk: Walk, iterations: int, target: float | None = None,
             places=None) -> None:
        walk.run(iterations, self.target if target is None else target, self.report,
                 self._left(walk), places)

    def _follow(self, walk: Walk) -> None:
        """Walk on; where it stalls, elsewhere on the lattice."""
        walk = self._told(walk)
        for turn in range(1, self.settings.turns + 1):
            self._run(walk, self.settings.walk)
            self._keep(walk)
            if (self._finished() or walk.best[0] <= self.target
                    or turn == self.settings.turns):
                return
            f, labels = walk.best
            if labels.max() > 1:
                walk.begin(self._placed(self._scout(walk.seed), labels), nearby=True)
                continue
            here = walk.misfit(labels)
            places = self._places(walk, labels)
            if not places or places[0][2] > 1.5 * here + 5.0 * walk.unit * 1e-4:
                return
            self.report("moved", places[0][2])
            walk.begin(places[0][1])
            self._run(walk, self.settings.steps)
            if walk.best[0] > 3 * f + 1e-3 * walk.unit:
                return

    def _places(self, walk: Walk, labels: np.ndarray) -> list[tuple]:
        """Where else a shape might be: (source of each cell, labels, misfit), the best first.

        A shape one step of the lattice away from the truth is a deep minimum of its own.
        """
        found, inside = [], np.count_nonzero(labels)
        for source in self.cells.translations():
            moved = np.where(source >= 0, labels[source], 0).astype(labels.dtype)
            if np.count_nonzero(moved) < 0.75 * inside:
                continue
            moved = self.cells.repaired(moved)
            if self.cells.allowed(moved) and not np.array_equal(moved, labels):
                found.append((source, moved))
        if not found:
            return []
        values = np.mean(walk.residuals([moved for _, moved in found]) ** 2, axis=1)
        found = [(*item, float(v)) for item, v in zip(found, values, strict=True)]
        return sorted(found, key=lambda item: item[2])

    # ---- graded starts --------------------------------------------------------------------------

    def _graded(self, number: int) -> None:
        """Ellipsoids with soft edges, smooth shapes, shares of cells; the best are sharpened."""
        s, task = self.settings, self.task
        candidates = []
        started = levels.screen(task, self.first, s.ellipsoids, s.candidates, (s.seed, number),
                                self.width)
        self.report("soft ellipsoids", started[0][0])
        for k, (_, a) in enumerate(started):
            fit = Graded(task, self.first)
            c = fit.run(self._smooth(a), 12)
            self.steps += 26
            candidates.append((fit.misfit, k, c))
            self.report("candidate", fit.misfit)
            if fit.misfit < 4e-6 * task.unit:
                break
        for _, k, c in sorted(candidates, key=lambda item: item[:2])[: s.sharpened]:
            self._sharpen(c, (s.seed, number, 0, k))
            if self._finished():
                return

    def _smooth(self, a: np.ndarray) -> np.ndarray:
        second, fourth = levels.Levels(self.task, 2), levels.Levels(self.task, 4)
        a, _, _ = levels.fit(self.task, second, a, self.first, self.width, 6)
        a = fourth.raised(a, second.powers)
        return levels.fit(self.task, fourth, a, self.first, 0.8 * self.width, 8)[1]

    def _sharpen(self, c: np.ndarray, seed: tuple) -> None:
        """From a graded candidate to partitions, at its place and at others of the lattice."""
        c, misfit = Graded(self.task, self.more).sharpened(c)
        self.steps += sum(steps for _, steps in SHARPER)
        self.report("sharp", misfit)
        labels = self._labels(c)
        if labels is not None:
            self._walks([labels], seed, 1)

    def _labels(self, c: np.ndarray) -> np.ndarray | None:
        """The partition that shares come to; what has come apart may be several compartments."""
        labels = sharpest(c)
        whole = self.cells.repaired(labels)
        found = [whole] if self.cells.allowed(whole) else []
        if labels.max() == 1 < self.settings.cells:
            parted = self.cells.repaired(self.cells.parted(labels, self.settings.cells))
            # compartments never join again: crumbs of one cell are not taken for a second
            if self.cells.allowed(parted) and (
                    not found or self._misfit(parted) < PARTED * self._misfit(whole)):
                found = [parted]
        return found[0] if found else None

    def _misfit(self, labels: np.ndarray) -> float:
        self.shapes += 1
        return float(np.mean(self.task.residual(self.task.partition(), labels, self.first) ** 2))

    def _placed(self, scout: Walk, labels: np.ndarray) -> np.ndarray:
        """Compartments of about the right shapes in the places that explain most."""
        scout.begin(labels)
        # relative to each other, then as a whole
        for places in (self.placements.of, self.placements.together):
            found = self._ranked(scout, self.settings.settled, places)
            if found:
                scout.begin(found[0][1], nearby=True)
                self.report("placed", found[0][0])
        self._count(scout)
        return scout.labels

    def _count(self, walk: Walk) -> None:
        self.shapes += self._worth(walk)
        walk.shapes = 0

    def _worth(self, walk: Walk) -> int:
        """Its shapes; half of what one costs goes with the measurements."""
        return round(walk.shapes * (1 + len(walk.look.measured) / len(self.few.measured)) / 2)

    def _keep(self, walk: Walk) -> None:
        """Remember a partition that explains all measurements better than any before."""
        self._count(walk)
        task, (_, labels), origin = self.task, walk.best, walk.seed[:4]
        misfit = float(np.mean(task.exact(labels, task.all) ** 2))
        if self.best is None or misfit < self.best[0]:
            self.best, self.origin = (misfit, labels), origin
            self.report("best", misfit)
            if self.after_part is not None and self.before is not None:
                self.after_part(self.before | {"labels": labels, "misfit": np.array(misfit),
                                              "origin": np.array(origin)})
        elif np.array_equal(labels, self.best[1]) and origin != self.origin and self._explained():
            self.confirmed = task.floor > 0

    def _polish(self) -> None:
        """Walk on from the best shape: of many that explain noisy data one is the likeliest."""
        labels = self.best[1]
        if labels.tobytes() in self.polished or not self._near():
            return
        walk = self._scout((*self.origin, 0))  # with noise it looks at everything
        walk.begin(labels)
        self._run(walk, self.settings.walk, 0.0)
        self._keep(walk)
        self.polished |= {labels.tobytes(), self.best[1].tobytes()}
