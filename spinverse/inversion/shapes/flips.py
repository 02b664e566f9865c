"""Moves of single mesh cells across walls, many at a time, until the signals are explained.

Near the truth the effects of single moves nearly add up; those of neighbouring cells are measured
in pairs. So a quadratic surrogate of the residual round a shape is measured, annealed without
rejections, and its best finds are verified. The residual is whitened by what single moves do:
signals that every move changes alike count less, and the many shapes with nearly the same signals
come apart. (The plain mean square gets stuck ten or twenty cells away from the truth.)
"""

from __future__ import annotations

import numpy as np

from .cells import Cells, changed
from .graded import bounded_step
from .placements import Placement
from .task import Measurements, Task

# misfits in units of 1e4 times the mean square of what single moves change
SOLVED = 3e-7  # a plain misfit below this is taken, whatever the whitened one says
LIKELIER = 5.0  # of the log of the likelihood
# what the whitening keeps, in rms changes by single moves; and at least, in rms of the noise
FAR, CYCLE = 0.3, (0.1, 0.05, 0.02, 0.1)
FAR_NOISY, CYCLE_NOISY = 0.5, (0.75, 2.5, 1.25, 0.4)
STEPS, CHAINS, MOST = 4000, 3, 16  # of an annealing; moves at a time
VERIFIED = 50  # shapes
PATIENCE, PATIENCE_NOISY = 6, 4  # iterations
GAIN_NOISY = 0.1  # of the noise: the least excess of which a part should be gained


class Walk:
    """A search from one partition: `begin`, then `step` or `run`.

    Attributes:
        labels, f: the present partition and its misfit by the full model.
        best: the lowest misfit so far and its partition.
        unit: of misfits, see `Surrogate.unit`.
        white: whitened misfit after the last step, in this unit.
        shapes: partitions whose signals were computed.

    Args:
        task: of the search.
        cells: adjacency.
        look: measurements that count.
        seed: of the annealing.
    """

    def __init__(self, task: Task, cells: Cells, look: Measurements, seed: tuple):
        self.task, self.cells, self.look, self.seed = task, cells, look, seed
        self.model = task.partition()
        # uncorrected residuals of this model, and residuals of the full one
        self.known: dict[bytes, np.ndarray] = {}
        self.exact: dict[bytes, np.ndarray] = {}
        self.bias: np.ndarray | float = 0.0  # of each measurement, once corrected
        self.shapes = 0
        self.visited: set[bytes] = set()
        self.surrogate: Surrogate | None = None

    def residuals(self, shapes: list[np.ndarray]) -> np.ndarray:
        """``(n, N)``, corrected by the full model at the present shape."""
        new = {s.tobytes(): s for s in shapes if s.tobytes() not in self.known}
        values = self.task.shared(
            lambda s: self.task.residual(self.model, s, self.look), list(new.values()))
        self.known.update(zip(new, values, strict=True))
        self.shapes += len(new)
        values = np.array([self.known[s.tobytes()] for s in shapes])
        return values.reshape(len(shapes), len(self.look.measured)) - self.bias

    def misfit(self, labels: np.ndarray) -> float:
        """By this model, uncorrected at the first call."""
        return float(np.mean(self.residuals([labels])[0] ** 2))

    def centre_on(self, labels: np.ndarray) -> float:
        """Correct the model at a shape; the misfit by the full model."""
        key = labels.tobytes()
        if key not in self.exact:
            self.exact[key] = self.task.exact(labels, self.look)
        self.bias = 0.0
        self.bias = self.residuals([labels])[0] - self.exact[key]
        return float(np.mean(self.exact[key] ** 2))

    def begin(self, labels: np.ndarray, nearby: bool = False) -> None:
        """Go to a partition; ``nearby``: few cells away, what pairs of moves do still holds."""
        self.f = self.centre_on(labels)
        self.labels, self.best = labels, (self.f, labels)
        if not nearby:
            self.visited, self.surrogate = set(), None
        self.visited.add(labels.tobytes())
        self.sharper = 0
        self.iterations, self.unit, self.marks, self.white = 0, 1.0, [self.f], np.inf

    def fork(self, labels: np.ndarray) -> Walk:
        """Another walk, from another partition, that knows what this one does."""
        other = Walk(self.task, self.cells, self.look, self.seed)
        other.known, other.exact = self.known, self.exact
        other.begin(labels)
        return other

    def step(self, places: list[Placement] | None = None) -> bool:
        """One iteration; False if there is nowhere to go.

        Args:
            places: what going there changes does not count.
        """
        floor = self.task.floor
        self.surrogate = surrogate = Surrogate(self, self.labels, self.surrogate)
        if surrogate.number < 2:
            return False
        self.unit = unit = surrogate.unit
        far = self.f > 3e-4 * unit + 1.5 * floor
        turn = self.sharper % len(CYCLE)
        noise = np.sqrt(floor / (1e-4 * unit))
        W = surrogate.whitening(self._far(unit) if far or places
                                else max(CYCLE[turn], CYCLE_NOISY[turn] * noise),
                                self._elsewhere(places or []))
        before = np.mean((surrogate.r @ W) ** 2)
        excess = before - floor * np.sum(W**2) / len(W)
        found = self._annealed(surrogate, W, max(1e-4 * unit, excess / 10),
                               (*self.seed, self.iterations))
        # taken by its plain misfit: an explanation, or where there is noise a likelier shape
        taken = self.best[0] - 2 * LIKELIER * floor / len(W) if floor else SOLVED * unit
        shape, value = self._verified(surrogate, W, found, taken)
        if shape is None:
            return False
        self.sharper += value >= before
        self.white = value / unit
        self.labels = shape
        self.visited.add(shape.tobytes())
        self.f = self.centre_on(shape)
        self.iterations += 1
        self.marks.append(self.f)
        if self.f < self.best[0]:
            self.best = self.f, shape
        return True

    def stalled(self) -> bool:
        """Whether the last iterations did not lower the best misfit by a good deal."""
        floor = self.task.floor
        patience = PATIENCE_NOISY if floor else PATIENCE
        if len(self.marks) <= patience:
            return False
        before, now = min(self.marks[:-patience]), min(self.marks[-patience:])
        return before - now < 0.4 * max(before - floor, GAIN_NOISY * floor)

    def run(self, iterations: int, target: float, report=None, shapes: float = np.inf,
            places=None) -> None:
        """Walk until the misfit is below ``target``, or nothing is gained any more.

        Or more than so many shapes were looked at. ``places``: see `step`, of a partition.
        """
        last = self.shapes + shapes
        for _ in range(iterations):
            if (self.best[0] <= target or self.stalled() or self.shapes >= last
                    or not self.step(places and places(self.labels))):
                return
            if report is not None:
                report("cells", self.f)

    def survey(self, places: list[Placement]) -> list[tuple[float, Placement]]:
        """What moves of single cells can at best leave of the misfit at other places.

        The effects of such moves hardly depend on the place: they are those measured here,
        relaxed to shares. Whitened, in units of `Surrogate.unit`.
        """
        shapes = [place(self.labels) for place in places]
        which = [k for k, shape in enumerate(shapes) if self.cells.allowed(shape)]
        surrogate = Surrogate(self, self.labels, pairs=False)
        if surrogate.number < 2 or not which:
            return []
        W = surrogate.whitening(self._far(surrogate.unit))
        D = surrogate.D @ W
        N = len(W)
        H = D @ D.T / N
        H += 1e-2 * np.trace(H) / len(H) * np.eye(len(H))

        def left(r):
            share = bounded_step(H, D @ (r @ W) / N, np.zeros(len(D)))
            return float(np.mean((r @ W + share @ D) ** 2)) / surrogate.unit

        values = self.task.shared(left, list(self.residuals([shapes[k] for k in which])))
        return [(value, places[k]) for value, k in zip(values, which, strict=True)]

    def settle(self, place: Placement) -> tuple[float, np.ndarray] | None:
        """The best partition with a compartment at another place and some cells moved.

        And its misfit, whitened as round the present partition.
        """
        labels = self.labels
        if self.surrogate is None or self.surrogate.labels is not labels:
            self.surrogate = Surrogate(self, labels, self.surrogate)
        surrogate = self.surrogate
        W = surrogate.whitening(self._far(surrogate.unit))
        r = self.residuals([place(labels)])[0]
        before = np.mean((r @ W) ** 2)
        excess = before - self.task.floor * np.sum(W**2) / len(W)
        found = self._annealed(surrogate, W, max(1e-4 * surrogate.unit, excess / 10),
                               (*self.seed, 0), r)
        shapes = [place(labels)]
        for _, moves in sorted((score, moves) for moves, score in found.items()):
            shapes.append(place(changed(labels, (surrogate.moves[m] for m in moves))))
            if len(shapes) > VERIFIED:
                break
        shapes = [shape for shape in shapes if self.cells.allowed(shape)]
        if not shapes:
            return None
        values = np.mean((self.residuals(shapes) @ W) ** 2, axis=1)
        return float(values.min()), shapes[int(values.argmin())]

    def _elsewhere(self, places: list[Placement]) -> np.ndarray:
        """What other places change of the residual, ``(m, N)``."""
        shapes = [place(self.labels) for place in places]
        here = self.residuals([self.labels])[0]
        return self.residuals([s for s in shapes if self.cells.allowed(s)]) - here

    def _far(self, unit: float) -> float:
        return max(FAR, FAR_NOISY * np.sqrt(self.task.floor / (1e-4 * unit)))

    def _annealed(self, surrogate, W, hot, seed, residual=None) -> dict[tuple, float]:
        N = len(surrogate.r)
        D, r = surrogate.D @ W, (surrogate.r if residual is None else residual) @ W
        Q = {k: (places, V @ W) for k, (places, V) in surrogate.interactions.items()}

        def chain(k):
            return anneal(r, D, surrogate.parents, surrogate.rivals, Q,
                          np.random.default_rng((*seed, k)),
                          hot * N, 5e-6 * surrogate.unit * N)

        pool: dict[tuple, float] = {}
        for part in self.task.shared(chain, range(CHAINS)):
            pool.update(part)
        return pool

    def _verified(self, surrogate, W, pool, taken):
        """The best shape that has not been visited, among the verified and the measured."""
        labels = surrogate.labels
        by_size: dict[int, list] = {}
        ordered = sorted((score, moves) for moves, score in pool.items())
        for score, moves in ordered:
            by_size.setdefault(len(moves), []).append((score, moves))
        wanted = [item for size in by_size.values()
                  for item in size[: max(VERIFIED // (3 * len(by_size)), 1)]]
        shapes, seen = [], set()
        for _, moves in [*wanted, *ordered[:400]]:
            if moves in seen:
                continue
            seen.add(moves)
            shape = changed(labels, (surrogate.moves[k] for k in moves))
            if shape.tobytes() not in self.visited and self.cells.allowed(shape):
                shapes.append(shape)
            if len(shapes) == VERIFIED:
                break
        shapes += [s for s in surrogate.measured if s.tobytes() not in self.visited]
        if not shapes:
            return None, np.inf
        r = self.residuals(shapes)
        plain, white = np.mean(r**2, axis=1), np.mean((r @ W) ** 2, axis=1)
        k = int(plain.argmin())
        if plain[k] >= taken:
            k = int(white.argmin())
        return shapes[k], white[k]


class Surrogate:
    """What moves do to the residual round a partition, alone and in pairs.

    Attributes:
        moves: (cell, new label), those at the wall first, then those behind them.
        D: ``(n, N)`` change of the residual by each.
        parents: for moves behind the wall, which of the others must go with them; else None.
        rivals: groups of moves of the same cell.
        interactions: by move: places of others and ``(m, N)`` what they change together.
        number: of moves at the wall.
        measured: allowed shapes of which the residual is known.

    Args:
        walk: whose model and place it is.
        labels: the partition.
        before: surrogate of a partition nearby, whose effects far from the change still hold.
        pairs: whether to measure more than the moves at the wall, one by one.
    """

    def __init__(self, walk: Walk, labels: np.ndarray, before: Surrogate | None = None,
                 pairs: bool = True):
        cells, self.labels = walk.cells, labels
        self.r = walk.residuals([labels])[0]
        single = [(m, changed(labels, [m])) for m in cells.moves(labels)]
        single = [(m, shape) for m, shape in single if cells.allowed(shape)]
        self.moves = [m for m, _ in single]
        self.number, self.measured = len(single), [shape for _, shape in single]
        if not single:
            return
        effects = list(walk.residuals(self.measured) - self.r)
        if not pairs:
            self.D = np.array(effects)
            return
        self.parents: list[set | None] = [None] * self.number
        place = {m: k for k, m in enumerate(self.moves)}
        by_cell: dict[int, list[int]] = {}
        for k, (cell, _) in enumerate(self.moves):
            by_cell.setdefault(cell, []).append(k)
        touched = np.ones(len(labels), bool)
        if before is not None:
            touched = np.zeros(len(labels), bool)
            for cell in np.flatnonzero(before.labels != labels).tolist():
                touched[[cell, *cells.neighbours[cell]]] = True

        def old(kind, a, b):
            if before is None or touched[a[0]] or touched[b[0]]:
                return None
            return getattr(before, kind).get((a, b))

        both: dict[tuple, np.ndarray | None] = {}
        behind: dict[tuple, tuple] = {}
        for k, a in enumerate(self.moves[: self.number]):
            for other in cells.neighbours[a[0]]:
                for j in by_cell.get(other, ()):
                    if j > k:
                        both[a, self.moves[j]] = old("pairs", a, self.moves[j])
                b = (other, a[1])
                if labels[other] == labels[a[0]] and b not in place:
                    if b in behind:
                        behind[b][0].add(k)
                    else:
                        behind[b] = ({k}, a)
        self.pairs, self.behind = both, {}
        ask = [key for key, value in both.items() if value is None]
        deep = [(a, b) for b, (_, a) in behind.items() if old("behind", a, b) is None]
        shapes = [changed(labels, key) for key in [*ask, *deep]]
        values = walk.residuals(shapes) - self.r if shapes else []
        self.measured += [shape for shape in shapes if cells.allowed(shape)]
        for (a, b), value in zip(ask, values[: len(ask)], strict=True):
            both[a, b] = value - effects[place[a]] - effects[place[b]]
        fresh = dict(zip(deep, values[len(ask):], strict=True))
        for b, (parents, a) in behind.items():
            value = old("behind", a, b)
            if value is None:
                value = fresh[a, b] - effects[place[a]]
            self.behind[a, b] = value
            self.moves.append(b)
            effects.append(value)
            self.parents.append(parents)
            by_cell.setdefault(b[0], []).append(len(effects) - 1)
        self.D = np.array(effects)
        links: dict[int, list] = {}
        for (a, b), value in both.items():
            links.setdefault(place[a], []).append((place[b], value))
            links.setdefault(place[b], []).append((place[a], value))
        self.interactions = {k: (np.array([j for j, _ in items]),
                                 np.array([value for _, value in items]))
                             for k, items in links.items()}
        self.rivals = [group for group in by_cell.values() if len(group) > 1]

    @property
    def unit(self) -> float:
        """1 where single moves change the normalised signals by 1 % rms."""
        return 1e4 * float(np.mean(self.D[: self.number] ** 2))

    def whitening(self, keep: float, also: np.ndarray | None = None) -> np.ndarray:
        """(C + keep^2 tr C / N)^(-1/2), C of single moves, scaled to their mean square.

        ``also``: other changes, ``(m, N)``, much larger ones, that C is to have, too.
        """
        D = self.D[: self.number]
        N = D.shape[1]
        C = D.T @ D / len(D)
        level = keep**2 * np.trace(C) / N
        if also is not None and len(also):
            C = C + also.T @ also / len(also)
        values, vectors = np.linalg.eigh(C)
        W = (vectors / np.sqrt(np.maximum(values, 0) + level)) @ vectors.T
        return W * np.sqrt(np.mean(D**2) / np.mean((D @ W) ** 2))


def anneal(r: np.ndarray, D: np.ndarray, parents: list, rivals: list, interactions: dict,
           rng: np.random.Generator, hot: float, cold: float) -> dict[tuple, float]:
    """Sets of moves with a small |r + their effects|^2, by a chain without rejections.

    Args:
        r: ``(N,)``.
        D: ``(n, N)`` effects of single moves.
        parents, rivals, interactions: see `Surrogate`.
        rng: of the chain.
        hot, cold: temperatures at its ends.

    Returns:
        Mean square by set, for the sets of two and more that were met.
    """
    n, N = D.shape
    E, R, on, sign = D.copy(), r.copy(), np.zeros(n, bool), np.ones(n)
    square = (E**2).sum(axis=1)
    needs = np.zeros((n, n), bool)
    for k, mine in enumerate(parents):
        if mine is not None:
            needs[k, list(mine)] = True
    deep = needs.any(axis=1)
    group_of = np.full(n, -1)
    for g, group in enumerate(rivals):
        group_of[group] = g
    taken = np.zeros(len(rivals) + 1, bool)  # the last one, of no group, stays free
    pool: dict[tuple, float] = {}
    value, last = float(R @ R), -1
    temperature = hot * (cold / hot) ** (np.arange(STEPS) / STEPS)
    draw = rng.random(STEPS)
    for step in range(STEPS):
        score = square + 2 * sign * (E @ R)
        if deep.any():
            score[deep & ~on & ~(needs & on).any(axis=1)] = np.inf
            for k in np.flatnonzero(deep & on):
                support = np.flatnonzero(needs[k] & on)
                if len(support) == 1:
                    score[support[0]] = np.inf
        score[~on & taken[group_of]] = np.inf
        if on.sum() >= MOST:
            score[~on] = np.inf
        if last >= 0:
            score[last] = np.inf
        low = score.min()
        if not np.isfinite(low):
            break
        chance = np.cumsum(np.exp(-(score - low) / temperature[step]))
        k = min(int(np.searchsorted(chance, draw[step] * chance[-1])), n - 1)
        R, value = R + sign[k] * E[k], value + score[k]
        on[k] ^= True
        direction = 1.0 if on[k] else -1.0
        sign[k] = -direction
        if group_of[k] >= 0:
            taken[group_of[k]] = on[k]
        if k in interactions:
            others, V = interactions[k]
            E[others] += direction * V
            square[others] = (E[others] ** 2).sum(axis=1)
        last = k
        if on.sum() > 1:
            pool[tuple(np.flatnonzero(on).tolist())] = float(R @ R) / N
    return pool
