"""What a search has found, spent, and may still spend."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from ..likelihood import NEGLIGIBLE
from ..parameters import NOISE
from .hypothesis import Hypothesis
from .score import Score
from .search import Search
from .smooth_surfaces import SmoothCells, SmoothFit
from .walk import Walk

# shapes of an absorbing box that others cost as much as: one of a reflecting box; a step of graded
# shapes
REFLECTING, STEP = 2.5, 30
# parts that a search of noisy data has at least, if no second start confirms its find; parts
# without a likelier shape (by LIKELIER units of log-likelihood) that end it
SURE, FRUITLESS, LIKELIER = 3, 2, 1.0
# without noise: share of what counts as explained, beyond which a mesh cell may still be wrong
# where moves change little, and steps of a walk that see to it (a wall of 0.5 um/ms, unknown: one
# cell left 6e-8)
SURELY, LAST = 1e-2, 3
LOWER = 0.5  # of its variance, below which noise that is unknown is less than was thought

Report = Callable[[str, float], None]


class SearchLedger:
    """Best hypothesis, budget, random streams, checkpoints and progress of a search. Collective.

    Args:
        search: what is searched.
        report: called with a phase and its misfit.
        keep: called with a state to go on from, plain arrays, after each part, and in the middle of
            one with the best so far: a search goes on with walks from there, and does the part
            again.
        due: asked in the middle of walks whether such a state is to be kept.

    Attributes:
        best: the hypothesis of the lowest misfit of all measurements by the full model.
        part: number of the present part of the schedule.
        several: whether several cells are likely.
        polished: labels that were walked on from with noise.
        surface: the best smooth surfaces, if any were fitted.
        fits: how often they were.
    """

    def __init__(self, search: Search, report: Report | None = None,
                 keep: Callable[[dict], None] | None = None,
                 due: Callable[[], bool] = lambda: False):
        self.search, self.settings = search, search.settings
        self.report = report or (lambda phase, misfit: None)
        self._keep, self._due = keep, due
        self.best: Hypothesis | None = None
        self.surface: SmoothCells | None = None
        self.fits = 0
        self.part, self.several = 0, False
        self.polished: set[bytes] = set()
        self._fitted = False
        self._shapes = self._steps = 0
        self._bests: list[float] = []  # after each part
        self._confirmed = False  # noisy data: by another start
        self._before: dict | None = None  # the state at the beginning of the part
        self._begun = time.process_time()
        self.set_score()

    def set_score(self) -> None:
        """When the unit of misfits has changed."""
        models = self.search.models
        self.score = Score.of(models.problem.likelihood, self.settings.target, models.unit)

    def stream(self, *key: int) -> tuple[int, ...]:
        """The seed of a random stream."""
        return (self.settings.seed, *key)

    # ---- the end --------------------------------------------------------------------------------

    def solved(self) -> bool:
        """Whether there is nothing more to look for."""
        if self.surfaced():
            return True
        if self.best is None or not self.score.floor:
            return self.best is not None and self.score.explains(self.best.misfit)
        return self._confirmed

    def surfaced(self) -> bool:
        """Whether smooth surfaces, and no labels, explain the data, as far as the mesh tells."""
        found, best = self.surface, self.best
        return (found is not None and self.score.explains(found.misfit - found.error)
                and (best is None or found.misfit < best.misfit))

    def unexplained(self) -> bool:
        """Whether to look for something that no labels of mesh cells are."""
        explained = self.best is not None and self.score.explains(self.best.misfit)
        return not (explained or self.solved() or self.lower_noise() is not None)

    def smooth(self) -> SmoothCells | None:
        """Smooth surfaces that explain the data better than the best labels, if there are any."""
        found, best = self.surface, self.best
        if found is None or best is None or found.misfit >= best.misfit:
            return None
        return found if self.surfaced() or best.cells == len(found.volumes) else None

    def left(self, walk: Walk | None = None) -> float:
        """How many shapes may still be looked at. Collective."""
        limit = self.settings.cpu_seconds
        if np.isfinite(limit) and self.search.models.comm.allreduce(
                time.process_time() - self._begun) >= limit:
            return 0.0
        each = 1.0 if self.search.models.problem.absorbing else REFLECTING
        done = self._shapes + (0 if walk is None else self._worth(walk))
        return self.settings.budget / each - done - STEP * self._steps / each

    def over(self) -> bool:
        """Whether to stop in the middle of a part."""
        return (self.solved() or self.lower_noise() is not None
                or (self.best is not None and self.left() <= 0))

    def verdict(self) -> str:
        """Why to end after a part; "" to go on."""
        if self.best is None:
            return ""
        if self.lower_noise() is not None:
            return "the noise is less than was thought"
        if self.surfaced():
            return "smooth surfaces explain the data, as far as the mesh tells"
        score, bests = self.score, self._bests
        explained = score.explains(self.best.misfit)
        fruitless = (score.near(self.best.misfit) and len(bests) > FRUITLESS
                     and score.likelier(bests[-1 - FRUITLESS], bests[-1]) < LIKELIER)
        if not (self.over() or (len(bests) >= SURE and (explained or fruitless))):
            return ""
        return ("the data are explained" if explained else
                "no likelier shape any more" if fruitless else
                "as many shapes as it may look at, or CPU seconds as it may take")

    def lower_noise(self) -> float | None:
        """What the best shape leaves, where noise is unknown and far less than was thought."""
        problem, best = self.search.models.problem, self.best
        likelihood = problem.likelihood
        if NOISE not in problem.unknown or not likelihood.sigma or best is None:
            return None
        freedom = max(len(likelihood) - int(self.search.models.active(best.labels).sum()), 1)
        share = best.misfit * len(likelihood) / (freedom * likelihood.floor)
        low = problem.unknown[NOISE].low
        if share >= LOWER or likelihood.sigma <= low:
            return None
        sigma = max(likelihood.sigma * float(np.sqrt(share)), low)
        return sigma if sigma >= max(NEGLIGIBLE, low) else 0.0

    def gap(self) -> bool:
        """Whether the best shape is far from what noise explains."""
        return self.best is None or not self.score.near(self.best.misfit)

    # ---- what it costs --------------------------------------------------------------------------

    @property
    def shapes(self) -> int:
        """Shapes whose signals were computed."""
        return self._shapes

    def spend(self, shapes: int = 0, steps: int = 0) -> None:
        """Shapes that were computed, steps of graded ones."""
        self._shapes += shapes
        self._steps += steps

    def count(self, walk: Walk) -> None:
        """What a walk has computed since it was counted last."""
        self._shapes += self._worth(walk)
        walk.shapes = 0

    def _worth(self, walk: Walk) -> int:
        # half of what a shape costs goes with the measurements
        share = len(walk.look.measured) / len(self.search.few.measured)
        return round(walk.shapes * (1 + share) / 2)

    # ---- what was found -------------------------------------------------------------------------

    def take(self, walk: Walk) -> Hypothesis:
        """Remember a walk's best if it explains all measurements better than any before.

        Returns:
            The hypothesis, with its misfit of all measurements.
        """
        self.count(walk)
        found = self._by_all(walk)
        if self.best is None or found.misfit < self.best.misfit:
            self.best = found
            self.report("best", found.misfit)
            self._keep_within(found)
        elif (np.array_equal(found.labels, self.best.labels) and found.origin != self.best.origin
                and self.score.explains(self.best.misfit)):
            self._confirmed = self.score.floor > 0
        return found

    def step(self, phase: str, misfit: float, walk: Walk) -> None:
        """Report a step of a walk, whose best is kept if it is time to."""
        self.report(phase, misfit)
        if self._keep is not None and self._due():
            found = self._by_all(walk)
            if self.best is None or found.misfit < self.best.misfit:
                self._keep_within(found)

    def _by_all(self, walk: Walk) -> Hypothesis:
        """A walk's best with its misfit of all measurements."""
        models, there = self.search.models, walk.best
        residual = models.exact(there.labels, there.theta, models.all)
        return Hypothesis(there.labels, there.theta, float(np.mean(residual**2)), walk.seed[:4])

    def tune(self) -> None:
        """Gauss-Newton steps of the unknown numbers at the best shape, by all measurements.

        And last steps of a walk where data without noise are explained, but not surely.
        """
        search, best, score = self.search, self.best, self.score
        sure = SURELY * score.limit
        doubtful = not score.floor and sure < best.misfit <= score.limit
        if not search.models.names and not doubtful:
            return
        walk = Walk(search.models, search.cells, search.models.all, best.origin)
        walk.begin(best.labels, best.theta)
        walk.tune()
        if doubtful:
            walk.run(LAST, sure, self.step, lambda: self.left(walk) <= 0)
            self.count(walk)
        self.best = walk.best

    def calibrate(self, hypothesis: Hypothesis) -> None:
        """Fit what the models cannot know, once there is a shape that is about right."""
        if not self._fitted:
            search = self.search
            search.models.calibrate(hypothesis.labels, hypothesis.theta, search.more)
            self._fitted = True

    # ---- going on -------------------------------------------------------------------------------

    def begin(self, part: int) -> None:
        """A part of the schedule begins."""
        self.part = part
        self._before = self.state(part)

    def pause(self) -> None:
        """What follows is not part of it: a state kept meanwhile would do it again."""
        self._before = None

    def end(self) -> None:
        """It has ended."""
        if self.best is not None:
            self._bests.append(self.best.misfit)

    def keep(self) -> None:
        """Keep a state from which the next part begins."""
        if self._keep is not None and self.best is not None:
            self._keep(self.state(self.part + 1))

    def _keep_within(self, best: Hypothesis) -> None:
        if self._keep is not None and self._before is not None:
            self._keep(self._before | self._of(best) | {"within": np.array(True)})

    def _of(self, best: Hypothesis | None) -> dict[str, np.ndarray]:
        best = best or Hypothesis(np.zeros(len(self.search.models.whole.cells), np.int8))
        return {"labels": best.labels, "theta": best.theta, "misfit": np.array(best.misfit),
                "origin": np.array(best.origin)}

    def state(self, part: int) -> dict[str, np.ndarray]:
        """Plain arrays to go on from, at the beginning of a part."""
        models = self.search.models
        return self._of(self.best) | {
            "within": np.array(False), "part": np.array(part),
            "shapes": np.array([self._shapes, self._steps]),
            "fitted": np.array(self._fitted), "resistance": np.array(models.resistance),
            "leaky": np.array(models.leaky),
            "unit": np.array(models.unit), "several": np.array(self.several),
            "bests": np.array(self._bests), "fits": np.array(self.fits), **(
                {"surface": surface.coefficients, "surface_theta": surface.theta}
                if (surface := self.surface) is not None else {}),
            "polished": np.frombuffer(b"".join(sorted(self.polished)), dtype=np.int8)}

    def restore(self, state: Mapping[str, np.ndarray]) -> int:
        """Go on from a state; the part to begin with."""
        models = self.search.models
        labels = np.asarray(state["labels"], dtype=np.int8)
        theta = np.asarray(state["theta"], dtype=float).reshape(-1)
        misfit = float(state["misfit"])
        if np.isfinite(misfit):
            origin = tuple(np.atleast_1d(state["origin"]).astype(int).tolist())
            self.best = Hypothesis(labels, theta, misfit, origin)
        self._shapes, self._steps = np.asarray(state["shapes"]).astype(int).tolist()
        self._fitted, self.several = bool(state["fitted"]), bool(state["several"])
        models.resistance, models.unit = float(state["resistance"]), float(state["unit"])
        models.leaky = bool(state.get("leaky", False))
        self._bests = np.atleast_1d(state["bests"]).tolist()
        polished = np.asarray(state["polished"], np.int8).reshape(-1, len(labels))
        self.polished = {each.tobytes() for each in polished}
        self.set_score()
        self.fits = int(state.get("fits", 0))
        if "surface" in state:
            a, at = (np.asarray(state[name], float) for name in ("surface", "surface_theta"))
            fit = SmoothFit(models, self.search.first, len(np.atleast_2d(a)))
            self.surface = fit.result(np.atleast_2d(a), at.reshape(-1))
        return int(state["part"])
