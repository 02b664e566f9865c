"""A walk: from partition to partition by many moves of single mesh cells at a time.

Round each partition a surrogate of the residual is measured, annealed, and its best finds verified;
the walk goes to the best one that it has not visited, uphill if need be. Unknown numbers take
Gauss-Newton steps before, and what they can make up for does not count: their slopes join the
covariance that whitens the residual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..levenberg import Dense, bounded_minimum
from .anneal import anneal
from .cells import Cells, changed
from .hypothesis import Hypothesis
from .look import Look
from .models import FLAT, Models
from .placements import Placement
from .surrogate import Surrogate

# misfits in units of the mean square of what single moves change, see `Surrogate.unit`
SOLVED = 3e-7  # a plain misfit below this is taken, whatever the whitened one says
LIKELIER = 5.0  # units of log-likelihood by which a shape is taken by its plain misfit
NEAR = 3e-4  # a shape above this is far: its whitening keeps more
# what the whitening keeps beside the effects of moves, in rms of these, or of the noise; near a
# solution it varies from one turn uphill to the next
FAR, CYCLE = 0.3, (0.1, 0.05, 0.02, 0.1)
NUMBERS = 0.05  # likewise, where unknown numbers take a step
FAR_NOISY, CYCLE_NOISY = 0.5, (0.75, 2.5, 1.25, 0.4)
CHAINS = 3  # of annealing
HOT, HOTTER, COLD = 1e-4, 0.1, 5e-6  # temperatures: units, or of the excess over noise; last
VERIFIED = 50  # sets of moves whose signals are computed
POOL = 400  # sets of moves that are looked through for them
PATIENCE, PATIENCE_NOISY = 6, 4  # iterations without a gain
GAIN, GAIN_NOISY = 0.4, 0.1  # shares of the misfit, of the noise: what is a gain
RELAXED = 1e-2  # of the mean curvature: keeps shares of moves apart when places are surveyed
# unknown numbers: Gauss-Newton steps before each step of a walk, or while each halves the misfit;
# the largest in the coordinate; and below which there is nothing to gain
TUNINGS, FAST, LONGEST, SHORTEST = 3, 12, 0.5, 2e-5
LOOSER = 10.0  # by how much steps are damped less after one that gained
# large meshes: a correction drifts by this share of what the residual changes; share of the
# residual that it may be wrong by
DRIFT, GOOD = 0.05, 0.3
EFFECTS = 30  # shapes that cost what the effects of all moves do on large meshes
MADE_UP = 3.0  # rms residuals that unknown numbers may make up for, in the whitening

Places = Callable[[np.ndarray], Sequence[Placement]]


class Walk:
    """A search from one hypothesis: `begin`, then `step` or `run`.

    Args:
        models: of the search.
        cells: adjacency.
        look: measurements that count.
        seed: of the annealing.

    Attributes:
        here: the present hypothesis and its misfit by the full model; on large meshes by the fast
            one as it was corrected last.
        best: the one of the lowest misfit so far.
        unit: of misfits, see `Surrogate.unit`.
        white: whitened misfit after the last step, in this unit.
        shapes: partitions whose signals were computed.
    """

    def __init__(self, models: Models, cells: Cells, look: Look, seed: tuple):
        self.models, self.cells, self.look, self.seed = models, cells, look, seed
        self.theta = models.start
        # residuals of the fast model, uncorrected, and of the full one, at theta
        self._known: dict[bytes, np.ndarray] = {}
        self._exact: dict[bytes, np.ndarray] = {}
        self._bias: np.ndarray | float = 0.0  # of the fast model, once corrected
        self._corrected: np.ndarray | None = None  # the uncorrected residual that it was made at
        self._slopes = np.zeros((0, len(look.measured)))
        self._visited: set[bytes] = set()
        self._surrogate: Surrogate | None = None
        self._flat, self._least = FLAT, 0.0
        self.shapes = 0

    # ---- what partitions leave of the data ------------------------------------------------------

    def residuals(self, shapes: list[np.ndarray]) -> np.ndarray:
        """``(n, N)``, corrected by the full model at the present shape."""
        new = {s.tobytes(): s for s in shapes if s.tobytes() not in self._known}
        values = self.models.residuals(list(new.values()), self.theta, self.look)
        self._known.update(zip(new, values, strict=True))
        self.shapes += len(new)
        values = np.array([self._known[s.tobytes()] for s in shapes])
        return values.reshape(len(shapes), len(self.look.measured)) - self._bias

    def misfits(self, shapes: list[np.ndarray]) -> np.ndarray:
        """Mean squares of `residuals`, ``(n,)``."""
        return np.mean(self.residuals(shapes) ** 2, axis=1)

    def _centred(self, labels: np.ndarray) -> Hypothesis:
        """Correct the fast model at a shape, of which the full model tells the misfit."""
        key = labels.tobytes()
        if key not in self._exact:
            r = self._still_corrected(labels)
            if r is not None:
                return Hypothesis(labels, self.theta, float(np.mean(r**2)), self.seed)
            self._exact[key] = self.models.exact(labels, self.theta, self.look)
        self._bias = 0.0
        raw = self.residuals([labels])[0]
        self._bias, self._corrected = raw - self._exact[key], raw
        return Hypothesis(labels, self.theta, float(np.mean(self._exact[key] ** 2)),
                          self.seed)

    def _still_corrected(self, labels: np.ndarray) -> np.ndarray | None:
        """The residual, if the last correction is good enough for it; of large meshes."""
        if not self.models.large or self._corrected is None:
            return None
        r = self.residuals([labels])[0]
        change = r + self._bias - self._corrected
        good = DRIFT * np.linalg.norm(change) < GOOD * np.linalg.norm(r)
        # what may be the best so far is known exactly
        return r if good and np.mean(r**2) > self._least else None

    # ---- walking --------------------------------------------------------------------------------

    def begin(self, labels: np.ndarray, theta: np.ndarray | None = None,
              nearby: bool = False) -> None:
        """Go to a partition; ``nearby``: few cells away, what pairs of moves do still holds."""
        if theta is not None and not np.array_equal(theta, self.theta):
            self._at(theta)
        self._least = 0.0
        self.here = self.best = self._centred(labels)
        if not nearby:
            self._visited, self._surrogate = set(), None
        self._visited.add(labels.tobytes())
        self._uphill = 0
        self.iterations, self.unit, self.marks = 0, 1.0, [self.here.misfit]
        self.white = np.inf
        self._whites: list[float] = []

    def fork(self, labels: np.ndarray) -> Walk:
        """Another walk, from another partition, that knows what this one does."""
        other = Walk(self.models, self.cells, self.look, self.seed)
        other.theta, other._known, other._exact = self.theta, self._known, self._exact
        other.begin(labels)
        return other

    def step(self, places: Sequence[Placement] = ()) -> bool:
        """One iteration; False if there is nowhere to go.

        Args:
            places: what going there changes does not count.
        """
        self._least = self.best.misfit
        self.tune()
        floor = self.models.floor
        surrogate = self._surrogate = self._measured(self.here.labels)
        if surrogate.number < 2:
            return False
        self.unit = unit = surrogate.unit
        far = self._is_far(unit)
        turn = self._uphill % len(CYCLE)
        W = surrogate.whitening(
            self._far(unit) if far or places
            else max(CYCLE[turn], CYCLE_NOISY[turn] * self._noise(unit)),
            np.vstack([self._elsewhere(places), self._made_up()]))
        before = np.mean((surrogate.r @ W) ** 2)
        pool = self._annealed(surrogate, W, surrogate.r, self.iterations)
        # taken by its plain misfit: an explanation, or where there is noise a likelier shape
        taken = (self.best.misfit - 2 * LIKELIER * floor / len(W)) if floor else SOLVED * unit
        shape, value = self._verified(surrogate, W, pool, taken)
        if shape is None:
            return False
        self._uphill += value >= before
        self.white = value / unit
        self._whites.append(self.white)
        self._visited.add(shape.tobytes())
        self.here = self._centred(shape)
        self.iterations += 1
        self.marks.append(self.here.misfit)
        if self.here.misfit < self.best.misfit:
            self.best = self.here
        return True

    def stalled(self) -> bool:
        """Whether the last iterations lowered no misfit by a good deal.

        Without noise neither the whitened one, of which the plain one tells little: a walk to a
        torus had none lower for six steps, while its overlap with the truth went from 0.63 to 0.98.
        """
        floor = self.models.floor
        patience = PATIENCE_NOISY if floor else PATIENCE
        if len(self.marks) <= patience:
            return False
        before, now = min(self.marks[:-patience]), min(self.marks[-patience:])
        if before - now >= GAIN * max(before - floor, GAIN_NOISY * floor):
            return False
        whites = self._whites
        return bool(floor) or len(whites) <= patience or (
            min(whites[-patience:]) > (1 - GAIN) * min(whites[:-patience]))

    def run(self, iterations: int, target: float, report: Callable | None = None,
            enough: Callable[[], bool] = lambda: False, places: Places | None = None) -> None:
        """Walk until the misfit is below ``target``, or nothing is gained any more.

        Or it is ``enough``. ``places``: see `step`, of a partition.
        """
        for _ in range(iterations):
            if (self.best.misfit <= target or self.stalled() or enough()
                    or not self.step(places(self.here.labels) if places else ())):
                return
            if report is not None:
                report("cells", self.here.misfit, self)

    # ---- unknown numbers ------------------------------------------------------------------------

    def tune(self) -> None:
        """Gauss-Newton steps of theta at the present shape, and the slopes there."""
        models, labels = self.models, self.here.labels
        if not models.names:
            return
        W = self._weights()
        noise = models.floor * float(np.sum(W**2)) / len(W)
        precision = noise * models.precision  # a prior counts as far as there is noise

        def loss(there):
            away = there.theta - models.start
            left = float(np.mean((self.residuals([labels])[0] @ W) ** 2))
            return left + precision @ away**2 / len(W)

        for turn in range(1, FAST + 1):
            self._measure_slopes(labels)
            theta = models.theta_step(labels, self.theta, self._slopes @ W,
                                      self.residuals([labels])[0] @ W, LONGEST, self._flat, noise)
            if np.abs(theta - self.theta).max() < SHORTEST:
                return
            # without moves the best is what a prior makes it, too
            follows, most = self._surrogate is None and self.here is self.best, loss(self.here)
            known = self.theta, self._known, self._exact
            self._at(theta)
            self.here = self._centred(labels)
            left = loss(self.here)
            if left > most:  # too far: the slopes are those of before
                self.theta, self._known, self._exact = known
                self.here = self._centred(labels)
                self.best = self.here if follows else self.best
                self._flat = min(LOOSER * self._flat, FLAT)
                return
            self._flat /= LOOSER
            if follows or self.here.misfit < self.best.misfit:
                self.best = self.here
            if turn >= TUNINGS and left > most / 2:
                break
        self._measure_slopes(labels)

    def _weights(self) -> np.ndarray:
        """Of residuals, for unknown numbers, ``(N, N)``: what moves do is noise to them.

        By the plain misfit they make up for mesh cells that are still wrong (a cylinder, wall of
        0.5 um/ms: 0.44 with ten wrong, of which walks left ten; by this 0.47, and the walk ended).
        """
        if self._surrogate is None:
            return np.eye(len(self.look.measured))
        unit = self._surrogate.unit
        return self._surrogate.whitening(self._far(unit) if self._is_far(unit)
                                         else max(NUMBERS, self._noise(unit)))

    def _at(self, theta: np.ndarray) -> None:
        self.theta, self._known, self._exact = theta, {}, {}

    def _measure_slopes(self, labels: np.ndarray) -> None:
        self._slopes = self.models.slopes(labels, self.theta, self.look)
        self.shapes += 2 * len(self._slopes)

    def _made_up(self) -> np.ndarray:
        """What unknown numbers change of the residual, as large as it, ``(P, N)``."""
        if not len(self._slopes):
            return self._slopes
        size = np.linalg.norm(self.residuals([self.here.labels])[0])
        return MADE_UP * size * np.linalg.qr(self._slopes.T)[0].T

    def _answered(self, r: np.ndarray) -> np.ndarray:
        """Residuals ``(n, N)`` after the best change of unknown numbers."""
        return self.models.answered(r, self._slopes)

    # ---- other places ---------------------------------------------------------------------------

    def survey(self, places: Sequence[Placement]) -> list[tuple[float, Placement]]:
        """What moves of single cells can at best leave of the misfit at other places.

        The effects of such moves hardly depend on the place: they are those measured here,
        relaxed to shares. Whitened, in units of `Surrogate.unit`.
        """
        shapes = [place(self.here.labels) for place in places]
        which = [k for k, shape in enumerate(shapes) if self.cells.allowed(shape)]
        surrogate = self._measured(self.here.labels, pairs=False)
        if surrogate.number < 2 or not which:
            return []
        W = surrogate.whitening(self._far(surrogate.unit))
        D = surrogate.D @ W
        N = len(W)
        H = D @ D.T / N
        H += RELAXED * np.trace(H) / len(H) * np.eye(len(H))
        none, all_of_it = np.zeros(len(D)), np.ones(len(D))

        def left(r):
            share = bounded_minimum(Dense(H, D @ (r @ W) / N), none, all_of_it, rounds=8)
            return float(np.mean((r @ W + share @ D) ** 2)) / surrogate.unit

        residuals = self._answered(self.residuals([shapes[k] for k in which]))
        values = self.models.shared(left, list(residuals))
        return [(value, places[k]) for value, k in zip(values, which, strict=True)]

    def settle(self, place: Placement) -> tuple[float, np.ndarray] | None:
        """The best partition with a compartment at another place and some cells moved.

        And its misfit, whitened as round the present partition.
        """
        labels = self.here.labels
        if self._surrogate is None or self._surrogate.labels is not labels:
            self._surrogate = self._measured(labels)
        surrogate = self._surrogate
        W = surrogate.whitening(self._far(surrogate.unit))
        r = self._answered(self.residuals([place(labels)]))[0]
        pool = self._annealed(surrogate, W, r, 0)
        shapes = [place(labels)]
        for _, moves in sorted((score, moves) for moves, score in pool.items()):
            shapes.append(place(changed(labels, (surrogate.moves[m] for m in moves))))
            if len(shapes) > VERIFIED:
                break
        shapes = [shape for shape in shapes if self.cells.allowed(shape)]
        if not shapes:
            return None
        values = np.mean((self._answered(self.residuals(shapes)) @ W) ** 2, axis=1)
        return float(values.min()), shapes[int(values.argmin())]

    def _elsewhere(self, places: Sequence[Placement]) -> np.ndarray:
        """What other places change of the residual, ``(m, N)``."""
        shapes = [place(self.here.labels) for place in places]
        here = self.residuals([self.here.labels])[0]
        return self.residuals([s for s in shapes if self.cells.allowed(s)]) - here

    # ---- a step in parts ------------------------------------------------------------------------

    def _measured(self, labels: np.ndarray, pairs: bool = True) -> Surrogate:
        """The surrogate round a partition."""
        if not self.models.large:
            return Surrogate(self.residuals, self.cells, labels, self._surrogate if pairs else None,
                             pairs)

        def effects(labels, moves, pairs):
            self.shapes += EFFECTS
            return self.models.effects(labels, self.theta, self.look, moves, pairs)

        return Surrogate(self.residuals, self.cells, labels, self._surrogate, pairs, effects)

    def _noise(self, unit: float) -> float:
        """Rms of the noise over that of what single moves change."""
        return np.sqrt(self.models.floor / (1e-4 * unit))

    def _is_far(self, unit: float) -> bool:
        return self.here.misfit > NEAR * unit + 1.5 * self.models.floor

    def _far(self, unit: float) -> float:
        return max(FAR, FAR_NOISY * self._noise(unit))

    def _annealed(self, surrogate: Surrogate, W: np.ndarray, residual: np.ndarray,
                  turn: int) -> dict[tuple, float]:
        N, unit = len(W), surrogate.unit
        D, r = surrogate.D @ W, residual @ W
        Q = {k: (places, V @ W) for k, (places, V) in surrogate.interactions.items()}
        excess = np.mean(r**2) - self.models.floor * np.sum(W**2) / N
        hot = max(HOT * unit, HOTTER * excess)

        def chain(k):
            rng = np.random.default_rng((*self.seed, turn, k))
            return anneal(r, D, surrogate.parents, surrogate.rivals, Q, rng, hot * N,
                          COLD * unit * N)

        pool: dict[tuple, float] = {}
        for part in self.models.shared(chain, range(CHAINS)):
            pool.update(part)
        return pool

    def _verified(self, surrogate: Surrogate, W: np.ndarray, pool: dict[tuple, float],
                  taken: float) -> tuple[np.ndarray | None, float]:
        """The best shape that has not been visited, among the verified and the measured."""
        labels = surrogate.labels
        by_size: dict[int, list] = {}
        ordered = sorted((score, moves) for moves, score in pool.items())
        for score, moves in ordered:
            by_size.setdefault(len(moves), []).append((score, moves))
        wanted = [item for size in by_size.values()
                  for item in size[: max(VERIFIED // (3 * len(by_size)), 1)]]
        shapes, seen = [], set()
        for _, moves in [*wanted, *ordered[:POOL]]:
            if moves in seen:
                continue
            seen.add(moves)
            shape = changed(labels, (surrogate.moves[k] for k in moves))
            if shape.tobytes() not in self._visited and self.cells.allowed(shape):
                shapes.append(shape)
            if len(shapes) == VERIFIED:
                break
        shapes += [s for s in surrogate.measured if s.tobytes() not in self._visited]
        if not shapes:
            return None, np.inf
        r = self._answered(self.residuals(shapes))
        plain, white = np.mean(r**2, axis=1), np.mean((r @ W) ** 2, axis=1)
        k = int(plain.argmin())
        if plain[k] >= taken:
            k = int(white.argmin())
        return shapes[k], white[k]


