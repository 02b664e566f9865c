"""What moves of single mesh cells do to the residual, alone and in pairs.

Near the truth the effects of single moves nearly add up; those of neighbouring cells are measured
in pairs. The residual is whitened by what single moves do: signals that every move changes alike
count less, and the many shapes with nearly the same signals come apart. (The plain mean square gets
stuck ten or twenty cells away from the truth.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .cells import Cells, changed

FAR_OFF = 0.5  # of the effect of a move: what solving adds, above which it is solved every time
RINGS = 2  # of mesh cells round a change, where single moves are solved anew
_CHANGE = 1e-4  # mean square change of normalised signals by single moves, where `unit` is 1


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
        residuals: of partitions, ``(n, N)``, corrected by the full model at this one.
        cells: adjacency.
        labels: the partition.
        before: surrogate of a partition nearby, whose effects far from the change still hold.
        effects: of moves and pairs of neighbouring ones, ``(n, N)`` and ``(m, N)``, from the states
            at the partition, where single ones are solved beside; None: pairs are solved, too.
        pairs: whether to measure more than the moves at the wall, one by one.
    """

    def __init__(self, residuals: Callable, cells: Cells, labels: np.ndarray,
                 before: Surrogate | None = None, pairs: bool = True,
                 effects: Callable | None = None):
        self.labels = labels
        self.r = residuals([labels])[0]
        single = [(m, changed(labels, [m])) for m in cells.moves(labels)]
        single = [(m, shape) for m, shape in single if cells.allowed(shape)]
        self.moves = [m for m, _ in single]
        self.number, self.measured = len(single), [shape for _, shape in single]
        if not single:
            return
        if effects is not None:
            self._from_states(cells, effects, pairs)
            self._solved(cells, residuals, before)
            return
        effects = list(residuals(self.measured) - self.r)
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
            touched = _touched(cells, before.labels != labels)

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
        values = residuals(shapes) - self.r if shapes else []
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

    def _solved(self, cells: Cells, residuals: Callable, before: Surrogate | None) -> None:
        """Correct effects of single moves by solving those near what has changed since ``before``.

        What solving adds to the others, once found, holds as long as their surroundings do.
        """
        self.solved: dict[tuple, np.ndarray] = {}
        if before is not None:
            near = before.labels != self.labels
            for _ in range(RINGS):
                near = near | _touched(cells, near)
            self.solved = {move: more for move, more in before.solved.items() if not near[move[0]]}
        moves = self.moves[: self.number]
        for k, move in enumerate(moves):  # what is far off need not stay as it is
            more = self.solved.get(move)
            if more is not None and np.linalg.norm(more) > FAR_OFF * np.linalg.norm(
                    self.D[k] + more):
                del self.solved[move]
        ask = [k for k, move in enumerate(moves) if move not in self.solved]
        self.measured = [self.measured[k] for k in ask]
        if ask:
            values = residuals(self.measured) - self.r - self.D[ask]
            self.solved.update(zip((moves[k] for k in ask), values, strict=True))
        self.D[: self.number] += np.array([self.solved[move] for move in moves])

    def _from_states(self, cells: Cells, effects: Callable, pairs: bool) -> None:
        """Without solving anything: moves at the wall, those behind them, and neighbours."""
        labels, place = self.labels, {m: k for k, m in enumerate(self.moves)}
        parents: dict[int, set] = {}
        for k, (cell, label) in enumerate(self.moves[: self.number] if pairs else ()):
            for other in cells.neighbours[cell]:
                move = other, label
                if labels[other] != labels[cell] or place.get(move, len(labels)) < self.number:
                    continue
                if move not in place:
                    place[move] = len(self.moves)
                    self.moves.append(move)
                parents.setdefault(place[move], set()).add(k)
        self.parents = [parents.get(k) for k in range(len(self.moves))]
        by_cell: dict[int, list[int]] = {}
        for k, (cell, _) in enumerate(self.moves):
            by_cell.setdefault(cell, []).append(k)
        both = [(k, j) for k, (cell, _) in enumerate(self.moves) for other in cells.neighbours[cell]
                for j in by_cell.get(other, ()) if j > k] if pairs else []
        self.D, V = effects(self.labels, self.moves, both)
        links: dict[int, list[int]] = {}
        for n, (a, b) in enumerate(both):
            links.setdefault(a, []).append(n)
            links.setdefault(b, []).append(n)
        self.interactions = {
            k: (np.array([both[n][both[n][0] == k] for n in mine]), V[mine])
            for k, mine in links.items()}
        self.rivals = [group for group in by_cell.values() if len(group) > 1]

    @property
    def unit(self) -> float:
        """1 where single moves change the normalised signals by 1 % rms."""
        return unit_of(self.D[: self.number])

    def whitening(self, keep: float, also: np.ndarray | None = None) -> np.ndarray:
        """As of `whitening`, by single moves at the wall."""
        return whitening(self.D[: self.number], keep, also, self.D)


def _touched(cells: Cells, which: np.ndarray) -> np.ndarray:
    """Some mesh cells and those that share a facet with them, ``(Nt,)`` bool."""
    found = which.copy()
    for cell in np.flatnonzero(which).tolist():
        found[cells.neighbours[cell]] = True
    return found


def unit_of(D: np.ndarray) -> float:
    """`Surrogate.unit` of the effects of single moves, ``(n, N)``."""
    return float(np.mean(D**2)) / _CHANGE


def whitening(D: np.ndarray, keep: float, also: np.ndarray | None = None,
              every: np.ndarray | None = None) -> np.ndarray:
    """(C + keep^2 tr C / N)^(-1/2), C of single moves, scaled to their mean square.

    Args:
        D: ``(n, N)`` their effects.
        keep: see above.
        also: other changes, ``(m, N)``, much larger ones, that C is to have, too.
        every: whose mean square stays as it is; ``D`` if not given.
    """
    every = D if every is None else every
    N = D.shape[1]
    C = D.T @ D / len(D)
    level = keep**2 * np.trace(C) / N
    if also is not None and len(also):
        C = C + also.T @ also / len(also)
    values, vectors = np.linalg.eigh(C)
    W = (vectors / np.sqrt(np.maximum(values, 0) + level)) @ vectors.T
    return W * np.sqrt(np.mean(every**2) / np.mean((every @ W) ** 2))
