"""Smooth shapes with sharp walls: level sets of polynomials, moved by Gauss-Newton steps.

Each cell k has a polynomial psi_k, the outside psi_0 = 0, and a mesh cell belongs to the label
whose psi is the largest at its centroid. Of a cell within another psi is the sum
of both. Where the wall from p to q moves by

    (d psi_p - d psi_q) / |grad (psi_p - psi_q)|

towards q, the residual changes by what a volume there does: the effects of the moves of the mesh
cells on either side (`Models.effects`), over their volumes. So a step costs what these effects do,
and each try one partition. Residuals are whitened by the effects, as those of walks are: what is
finer than the polynomials is taken for noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .cells import Cells
from .hypothesis import Hypothesis
from .levels import Levels, damping
from .look import Look
from .models import Models
from .placements import Placement
from .surrogate import unit_of, whitening
from .walk import EFFECTS, FAR, FAR_NOISY, LONGEST

DEGREES = (2, 6), (3, 6), (4, 12), (5, 6), (6, 12)  # of the polynomials, steps at most for a cell
RAGGED = DEGREES[2:]  # where mesh cells that are no ellipsoid are followed
DAMPING, LEAST = 1e-2, 1e-6  # of the mean curvature, when a degree begins and at least
TRIES, HARDER, EASIER = 8, 4.0, 0.25  # dampings of a step; their factors
SHORT, LONG = 0.05, 3.0  # rms of a wall's movement, in sizes of a mesh cell: nothing, too far
# weight of what a step changes in the whole box, in what damps it: walls alone do not hold
# polynomials elsewhere, and pieces came up there (a torus, wall unknown: whitened misfit of three
# fits 1.1 to 2.8e-3 for 5.3e-3; 0.1 and 2 are worse)
HELD = 0.5
GAIN = 0.02  # share of the whitened misfit: less than this in two steps ends a degree
# whitened misfit below which the full model corrects the fast one before each degree: what that is
# wrong by leaves 2e-3 of true shapes in reflecting boxes, as much as good fits may
NEAR = 1e-2
ANSWERS = 4  # steps of unknown numbers where a shape is tried in another place


@dataclass(frozen=True, eq=False)
class Smooth:
    """What a fit came to.

    Attributes:
        hypothesis: labels, theta, and the plain misfit; by the full model below `NEAR`, on meshes
            that are not large.
        white: whitened misfit, in units of `Surrogate.unit`, likewise.
        shapes: partitions that it looked at; the effects of all moves count as `EFFECTS`.
    """

    hypothesis: Hypothesis
    white: float
    shapes: int


class Surfaces:
    """Level sets that follow a hypothesis, fitted to measurements.

    Args:
        models: of the search, of a box that is not periodic.
        cells: adjacency.
        look: measurements that count.
    """

    def __init__(self, models: Models, cells: Cells, look: Look):
        self.models, self.cells, self.look, self.whole = models, cells, look, models.whole
        whole = self.whole
        corners = whole.points[whole.facets] - whole.centre
        self._middle = corners.mean(axis=1)
        across = np.zeros((len(corners), 3))
        self._inner = np.flatnonzero(~whole.outer)
        first, second = whole.sides[self._inner].T
        across[self._inner] = whole.centroids[second] - whole.centroids[first]
        area = 0.5 * np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        sign = np.where((area * across).sum(axis=1) < 0, -1.0, 1.0)
        self._area = sign[:, None] * area  # um^2, from the first side to the second
        self._of: tuple[Hypothesis, list, np.ndarray] | None = None  # effects of moves there
        self._sums = np.eye(1)
        self._bias = np.zeros(len(look.measured))  # of the fast model, corrected there:
        self._exact: tuple[Hypothesis, np.ndarray] | None = None
        self._whitening, self._unit = np.eye(len(look.measured)), 1.0  # of the last step
        self.shapes = 0

    def fit(self, start: Hypothesis, degrees: Sequence[tuple[int, int]] = DEGREES,
            enough: Callable[[float], bool] = lambda white: False) -> Smooth:
        """From polynomials near the walls of a start to ones of ever higher degree.

        Until it is ``enough``, of the whitened misfit after a degree.
        """
        levels, a, here, best = None, None, None, np.inf
        self._sums = self._within(start.labels, start.cells)
        for degree, steps in degrees:
            finer = Levels(self.models, degree)
            if here is None:
                near = finer.ellipsoid if degrees[0] == DEGREES[0] else finer.around
                a = np.array([near(np.isin(start.labels, 1 + np.flatnonzero(inside)))
                              for inside in self._sums.T])
            else:
                a = np.array([finer.scaled(finer.raised(one, levels.powers)) for one in a])
            levels = finer
            # the scale decides between cells that meet
            there = self._at(levels, a, start.theta if here is None else here.theta) or here
            if here is None or not np.array_equal(there.labels, here.labels):
                here = there
            if here is not None:
                if self._near(best):
                    self._corrected(here)
                a, here, best = self._degree(levels, a, here, steps * len(a))
                if enough(best):
                    break
        if self._near(best):
            r = self._corrected(here)
            here = replace(here, misfit=float(np.mean(r**2)))
            best = float(np.mean((self._whitening @ r) ** 2)) / self._unit
        return Smooth(here or start, best, self.shapes)

    def elsewhere(self, here: Hypothesis, places: Sequence[Placement]) -> list[Hypothesis]:
        """A fitted shape in places that explain more, the best first.

        Compared once unknown numbers have answered, whitened by the effects of moves where it is.

        In wrong places numbers of the outside make up for the place: a bent axon had all but 16
        mesh cells after a fit, all of it elsewhere, and 3.5 um^2/ms outside for 2.4.
        """
        models = self.models
        W, _ = self._weights(self._effects(here)[1])
        r = self._corrected(here) if not models.large else self._alone(here.labels, here.theta)
        least = float(np.mean((W @ r) ** 2))

        def one(labels):
            theta = here.theta
            r = W @ self._alone(labels, theta)
            for _ in range(ANSWERS):
                slopes = models.slopes(labels, theta, self.look) @ W.T
                new = models.theta_step(labels, theta, slopes, r, LONGEST)
                there = W @ self._alone(labels, new)
                if there @ there >= r @ r:
                    break
                theta, r = new, there
            return float(np.mean(r**2)), Hypothesis(labels, theta, origin=here.origin)

        shapes = [place(here.labels) for place in places]
        shapes = [labels for labels in shapes if self.cells.allowed(labels)
                  and not np.array_equal(labels, here.labels)]
        self.shapes += len(shapes) * ANSWERS * (1 + 2 * int(models.active(here.labels).sum()))
        found = [item for item in models.shared(one, shapes) if item[0] < least]
        return [there for _, there in sorted(found, key=lambda item: item[0])]

    def _weights(self, D: np.ndarray) -> tuple[np.ndarray, float]:
        """What whitens residuals by the effects of moves, and the unit of misfits."""
        unit = unit_of(D)
        noise = np.sqrt(self.models.floor / (1e-4 * unit))
        return whitening(D, max(FAR, FAR_NOISY * noise)), unit

    def _alone(self, labels: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Residual of one shape on this rank."""
        models = self.models
        return models.residual(models.partition(theta), labels, self.look) - self._bias

    def _near(self, white: float) -> bool:
        """Whether the full model is asked; on large meshes, where it costs most, never."""
        return white < NEAR and not self.models.large

    def _corrected(self, here: Hypothesis) -> np.ndarray:
        """Let the full model correct the fast one at a shape; its residual there, ``(N,)``."""
        if self._exact is None or self._exact[0] is not here:
            exact = self.models.exact(here.labels, here.theta, self.look)
            self._bias = self.models.residuals([here.labels], here.theta, self.look)[0] - exact
            self._exact = here, exact
        return self._exact[1]

    def _within(self, labels: np.ndarray, cells: int) -> np.ndarray:
        """Of which level functions psi of each cell is the sum, ``(cells, cells)`` 0 or 1.

        Its own, and that of a larger cell which has the greater part of its wall: it would have to
        be higher than that otherwise, of which its own wall tells nothing.
        """
        sums, sizes = np.eye(cells), np.bincount(labels, minlength=cells + 1)
        between = np.zeros((cells + 1, cells + 1))
        walls = np.linalg.norm(self._area[self._inner], axis=1)
        np.add.at(between, tuple(labels[self.whole.sides[self._inner]].T.astype(int)), walls)
        between += between.T
        np.fill_diagonal(between, 0.0)
        for k in sorted(range(1, cells + 1), key=lambda k: -sizes[k]):
            host = int(between[k].argmax())
            if host and sizes[host] > sizes[k] and 2 * between[k, host] > between[k].sum():
                sums[k - 1] += sums[host - 1]
        return sums

    def _at(self, levels: Levels, a: np.ndarray, theta: np.ndarray) -> Hypothesis | None:
        """The partition of some coefficients ``(cells, n)``, if it is allowed."""
        psi = np.vstack([np.zeros(len(self.whole.cells)), self._sums @ a @ levels.values.T])
        labels = psi.argmax(axis=0).astype(np.int8)
        if len(np.unique(labels[labels > 0])) < len(a):
            return None
        labels = self.cells.repaired(labels)
        if not self.cells.allowed(labels):
            return None
        return self._hypothesis(labels, theta)

    def _hypothesis(self, labels: np.ndarray, theta: np.ndarray) -> Hypothesis:
        self.shapes += 1
        self._r = self.models.residuals([labels], theta, self.look)[0] - self._bias
        return Hypothesis(labels, theta, float(np.mean(self._r**2)))

    def _degree(self, levels: Levels, a: np.ndarray, here: Hypothesis,
                steps: int) -> tuple[np.ndarray, Hypothesis, float]:
        """Levenberg-Marquardt on the coefficients and the unknown numbers.

        Its damping does not follow how well a step was foreseen (as in `levenberg.damped_step`):
        mesh cells flip or not, which blurs that, and a fit ended far off with it.
        """
        models, mu, size = self.models, DAMPING, self.models.size
        values: list[float] = []
        r = models.residuals([here.labels], here.theta, self.look)[0] - self._bias
        self.shapes += 1
        for _ in range(steps):
            J, metric, D, moved = self._slopes(levels, a, here)
            slopes = models.slopes(here.labels, here.theta, self.look)
            self.shapes += 2 * len(slopes)
            W, unit = self._whitening, self._unit = self._weights(D)
            both, rw, n = W @ np.hstack([J, slopes.T]), W @ r, J.shape[1]
            H, g = both.T @ both / len(r), both.T @ rw / len(r)
            damped = damping(H, metric)
            active = np.flatnonzero(models.active(here.labels)) if len(slopes) else np.arange(0)
            before = float(np.mean(rw**2))
            values.append(before / unit)
            better = None
            for _ in range(TRIES):
                step = -np.linalg.solve(H + mu * damped, g)
                far = float(np.sqrt(np.mean((moved @ step[:n]) ** 2)))
                longest = np.abs(step[n:]).max(initial=0.0)
                if far < SHORT * size and longest < SHORT:
                    break
                if far < LONG * size and longest < LONGEST:
                    theta = here.theta.copy()
                    theta[active] += step[n:]
                    theta = np.clip(theta, *models.bounds) if len(theta) else theta
                    there = self._at(levels, a + step[:n].reshape(a.shape), theta)
                    reached = np.inf if there is None else float(np.mean((W @ self._r) ** 2))
                    if reached < before:
                        better = there, reached / unit, self._r
                        break
                mu *= HARDER
            if better is None:
                break
            a, mu = a + step[:n].reshape(a.shape), max(mu * EASIER, LEAST)
            here, white, r = better
            values.append(white)
            if white > (1 - GAIN) * values[-2] and len(values) > 2:
                break
        return a, here, values[-1]

    def _slopes(self, levels: Levels, a: np.ndarray, here: Hypothesis) -> tuple:
        """Derivatives of the residual by the coefficients, ``(N, cells n)``.

        And what damps them, the effects of single moves, and how far walls move, by facet.
        """
        labels, whole, n = here.labels, self.whole, a.shape[1]
        moves, D = self._effects(here)
        place = {move: k for k, move in enumerate(moves)}
        walls = self._inner[np.not_equal(*labels[whole.sides[self._inner]].T)]
        first, second = whole.sides[walls].T
        p, q = labels[first].astype(int), labels[second].astype(int)
        gain = np.array([place[c, k] for c, k in zip(second.tolist(), p.tolist(), strict=True)])
        loss = np.array([place[c, k] for c, k in zip(first.tolist(), q.tolist(), strict=True)])
        # of a volume that p takes from q
        per_volume = 0.5 * (D[gain] / whole.volumes[second, None]
                            - D[loss] / whole.volumes[first, None])
        x = self._middle[walls]
        psi = np.vstack([np.zeros(n), self._sums @ a])
        slope = np.einsum("dfk,fk->fd", levels.gradients(x), psi[p] - psi[q])
        steep = np.sqrt((slope**2).sum(axis=1) + 1e-12)
        # the stairs' area, as far as it faces the way the wall moves
        facing = np.maximum(-(self._area[walls] * slope).sum(axis=1) / steep, 0.0)
        basis = levels.basis(x) / steep[:, None]
        moved = np.zeros((len(walls), len(a), n))
        for sign, labels_there in ((1.0, p), (-1.0, q)):
            inside = np.flatnonzero(labels_there > 0)
            moved[inside, labels_there[inside] - 1] += sign * basis[inside]
        moved = np.einsum("wkn,kj->wjn", moved, self._sums).reshape(len(walls), -1)
        J = per_volume.T @ (facing[:, None] * moved)
        metric = moved.T @ (facing[:, None] * moved) / facing.sum()
        share = HELD * whole.volumes / whole.volumes.sum()
        metric += np.kron(np.eye(len(a)), levels.values.T @ (levels.values * share[:, None]))
        return J, metric, D, moved

    def _effects(self, here: Hypothesis) -> tuple[list, np.ndarray]:
        """The moves at the walls and what they change, ``(n, N)``."""
        if self._of is None or self._of[0] is not here:
            moves = self.cells.moves(here.labels)
            D, _ = self.models.effects(here.labels, here.theta, self.look, moves, [])
            self.shapes += EFFECTS if self.models.large else len(moves)
            self._of = here, moves, D
        return self._of[1:]
