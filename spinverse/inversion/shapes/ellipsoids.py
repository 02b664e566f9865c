"""Starts: random ellipsoids with sharp walls, improved by evolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from .cells import Cells
from .hypothesis import Hypothesis, overlap
from .look import Look
from .models import Models

LEAST, MOST = 0.04, 0.25  # volume of a random ellipsoid over that of the box
LONG, ROUND, FLAT = 4.0, 2.0, 0.2  # longest axis; that of nested ones; deviation of log ratios
HOSTS = 0.1, 0.42  # volume of one with another in it over that of the box
INNER, SMALLEST = (0.12, 0.5), 0.008  # volume of an inner one over its host's; over the box's
SPREAD = 0.65  # of the centre, in half boxes
FULL = 0.45  # share of the cells that may be inside
DISTINCT = 0.5  # overlap below which two starts are two
TRIES, MANY = 50, 10**6  # drawings until one is allowed; where one must be
GENERATIONS = 45  # of the evolution
# of a mutation: centre (um), log of the axes, rotation (rad)
MUTATION = np.repeat([2.0, 0.2, 0.4], 3)
# size of mutations at first, its factors after a success and a failure, and its bounds
SIZE, LARGER, SMALLER, SIZES = 0.5, 1.5, 0.93, (0.1, 1.5)
# how often an evolution stops for unknown numbers; Gauss-Newton steps then; the longest
PAUSES, STEPS, LONGEST = 3, 2, 1.5


def ellipsoid_labels(cells: Cells, ellipsoids: np.ndarray) -> np.ndarray:
    """Labels of the cells in ellipsoids; where two overlap, the one whose centre is nearer.

    Nearer is measured in the metric of each; a much smaller one is never swallowed.
    """
    whole = cells.whole
    x = whole.centroids - whole.centre
    distance = np.array([((whole.wrapped(x - e[:3]) @ Rotation.from_rotvec(e[6:]).as_matrix()
                           / np.exp(e[3:6])) ** 2).sum(axis=1) for e in ellipsoids])
    nearest, volume = distance.argmin(axis=0), np.exp(ellipsoids[:, 3:6].sum(axis=1))
    for k in range(1, len(ellipsoids)):
        swallowed = (distance[k] < 1) & (volume[k] < 0.5 * volume[nearest]) & (nearest < k)
        nearest[swallowed] = k
    return np.where(distance[nearest, np.arange(len(x))] < 1, nearest + 1, 0).astype(np.int8)


def random_ellipsoid(rng: np.random.Generator, cells: Cells, share: tuple[float, float] = (
        LEAST, MOST), long: float = LONG) -> np.ndarray:
    """Centre, log of the axes, rotation, ``(1, 9)``; ``share``: of the box, of its volume."""
    whole = cells.whole
    volume = np.exp(rng.uniform(*np.log(share))) * whole.volumes.sum()
    longest, flat = np.exp(rng.uniform(0, np.log(long))), np.exp(FLAT * rng.normal())
    centre = rng.uniform(-SPREAD, SPREAD, 3) * 0.5 * np.ptp(whole.points, axis=0)
    return _ellipsoid(rng, centre, volume, np.array([flat, 1 / flat, longest]))[None]


def nested_ellipsoids(rng: np.random.Generator, cells: Cells) -> np.ndarray:
    """A cell, and one in it, ``(2, 9)``."""
    outer = random_ellipsoid(rng, cells, HOSTS, ROUND)
    host, box = np.exp(outer[0, 3:6]), cells.whole.volumes.sum()
    volume = max(SMALLEST * box, rng.uniform(*INNER) * 4 * np.pi / 3 * host.prod())
    centre = outer[0, :3] + 0.2 * host.min() * rng.normal(size=3)
    flat = np.exp(FLAT * rng.normal())
    inner = _ellipsoid(rng, centre, volume, np.array(
        [flat, 1 / flat, np.exp(rng.uniform(0, np.log(ROUND)))]))
    return np.array([outer[0], inner])


def _ellipsoid(rng: np.random.Generator, centre: np.ndarray, volume: float,
               axes: np.ndarray) -> np.ndarray:
    radius = (3 * volume / (4 * np.pi * axes.prod())) ** (1 / 3)
    turn = Rotation.random(random_state=rng).as_rotvec()
    return np.concatenate([centre, np.log(radius * axes), turn])


def starts(models: Models, cells: Cells, look: Look, tried: int, keep: int, seed: tuple,
           thetas: list[np.ndarray]) -> list[Hypothesis]:
    """The best distinct partitions into an ellipsoid and the outside. Collective.

    Args:
        models: of the search.
        cells: adjacency.
        look: measurements that count.
        tried: random ones.
        keep: so many of them go through an evolution of (1 + 1) and are returned.
        seed: of all that is random.
        thetas: of unknown numbers, dealt out to the random ones; Gauss-Newton steps change them.

    Shapes are compared after the unknown numbers have answered.
    """
    fast = [models.partition(theta) for theta in thetas]
    slopes = [_first_slopes(models, cells, theta, look, seed) for theta in thetas]

    def misfit(labels, model, slopes):
        """After the best change of unknown numbers."""
        r = models.residual(model, labels, look)
        return float(np.mean(models.answered(r, slopes) ** 2))

    def one(k):
        drawn = _drawn(cells, np.random.default_rng((*seed, 1, k)))
        if drawn is None:
            return None
        labels, ellipsoid = drawn
        which = k % len(thetas)
        return Hypothesis(labels, thetas[which], misfit(
            labels, fast[which], slopes[which]), seed), ellipsoid

    found = [s for s in models.shared(one, range(tried)) if s is not None]
    chosen: list[tuple] = []
    for start in sorted(found, key=lambda s: s[0].misfit):
        if all(overlap(start[0].labels, other.labels) < DISTINCT for other, *_ in chosen):
            chosen.append((*start, SIZE))
        if len(chosen) == keep:
            break
    pauses = PAUSES if models.names else 1

    def evolved(item):
        seed_of, (best, ellipsoid, size), model, slopes = item
        best = replace(best, misfit=misfit(best.labels, model, slopes))
        rng = np.random.default_rng((*seed, 1, seed_of))
        for _ in range(GENERATIONS // pauses):
            step = size * MUTATION * rng.normal(size=ellipsoid.shape)
            labels = allowed_labels(cells, ellipsoid + step)
            if labels is None:
                continue
            new = replace(best, labels=labels, misfit=misfit(labels, model, slopes))
            if new.misfit < best.misfit:
                best, ellipsoid = new, ellipsoid + step
                size = min(LARGER * size, SIZES[1])
            else:
                size = max(SMALLER * size, SIZES[0])
        return best, ellipsoid, size

    for pause in range(pauses):
        chosen = [(tuned(models, best, look), *rest) for best, *rest in chosen]
        streams = range(tried + pause * keep, tried + (pause + 1) * keep)
        chosen = models.shared(evolved, [
            (stream, start, models.partition(start[0].theta),
             models.slopes(start[0].labels, start[0].theta, look))
            for stream, start in zip(streams, chosen, strict=False)])
    return sorted((tuned(models, best, look) for best, *_ in chosen), key=lambda h: h.misfit)


def _first_slopes(models: Models, cells: Cells, theta: np.ndarray, look: Look,
                  seed: tuple) -> np.ndarray:
    """By the unknown numbers at some ellipsoid."""
    labels, _ = _drawn(cells, np.random.default_rng((*seed, 1)), MANY)
    return models.slopes(labels, theta, look)


def cost(models: Models, tried: int, keep: int, thetas: int = 1) -> int:
    """Shapes that `starts` looks at, with so many ``thetas``."""
    each, slopes = GENERATIONS, 2 * int(models.active(np.array([1])).sum())
    if slopes:
        each += (PAUSES + 1) * STEPS * (slopes + 1) + PAUSES * slopes
    return tried + thetas * slopes + keep * each


def tuned(models: Models, start: Hypothesis, look: Look) -> Hypothesis:
    """After Gauss-Newton steps of the unknown numbers. Collective."""
    if not models.names:
        return start
    r = models.residuals([start.labels], start.theta, look)[0]
    start = replace(start, misfit=float(np.mean(r**2)))
    for _ in range(STEPS):
        slopes = models.slopes(start.labels, start.theta, look)
        theta = models.theta_step(start.labels, start.theta, slopes, r, LONGEST)
        r = models.residuals([start.labels], theta, look)[0]
        misfit = float(np.mean(r**2))
        if misfit >= start.misfit:
            break
        start = replace(start, theta=theta, misfit=misfit)
    return start


def examples(models: Models, cells: Cells, number: int, seed: tuple) -> np.ndarray:
    """Expected magnitudes ``(number, N)`` of random ellipsoids. Collective."""
    look, model = models.all, models.partition(models.start)

    def one(k):
        labels, _ = _drawn(cells, np.random.default_rng((*seed, k)), MANY)
        return models.residual(model, labels, look) + look.measured

    return np.array(models.shared(one, range(number)))


def _drawn(cells: Cells, rng: np.random.Generator, tries: int = TRIES):
    """Allowed labels and a random ellipsoid, or None."""
    for _ in range(tries):
        ellipsoid = random_ellipsoid(rng, cells)
        labels = allowed_labels(cells, ellipsoid)
        if labels is not None:
            return labels, ellipsoid
    return None


def allowed_labels(cells: Cells, ellipsoids: np.ndarray) -> np.ndarray | None:
    """Labels of ellipsoids ``(n, 9)``, repaired, if such a partition is allowed."""
    labels = ellipsoid_labels(cells, ellipsoids)
    if (len(np.unique(labels)) != len(ellipsoids) + 1
            or np.count_nonzero(labels) > FULL * len(labels)):
        return None
    labels = cells.repaired(labels)
    return labels if cells.allowed(labels) else None
