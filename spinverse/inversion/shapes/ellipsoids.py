"""Starts for one or two cells: random ellipsoids, improved by evolution, with sharp walls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from .cells import Cells
from .task import Measurements, Task

LEAST, MOST = 0.04, 0.25  # volume of a random ellipsoid over that of the box
NESTED, HOSTS = 0.35, (0.1, 0.42)  # share of pairs one within the other; volume of the outer one
SPREAD = 0.65  # of its centre, in half boxes
GENERATIONS = 45  # of the evolution, for each ellipsoid
# of a mutation: centre (um), log of the axes, rotation (rad)
MUTATION = np.repeat([2.0, 0.2, 0.4], 3)


@dataclass(frozen=True, eq=False)
class Start:
    """A partition to begin with, the parameters of its ellipsoids ``(k, 9)``, its misfit."""

    misfit: float
    labels: np.ndarray
    ellipsoids: np.ndarray


def ellipsoid_labels(cells: Cells, ellipsoids: np.ndarray) -> np.ndarray:
    """Labels of the cells in ellipsoids; where two overlap, the one whose centre is nearer.

    One that lies inside the other is a compartment of its own, too: nearer is measured in the
    metric of each.
    """
    whole = cells.whole
    x = whole.centroids - whole.centre
    distance = np.array([(((x - e[:3]) @ Rotation.from_rotvec(e[6:]).as_matrix()
                           / np.exp(e[3:6])) ** 2).sum(axis=1) for e in ellipsoids])
    nearest = distance.argmin(axis=0)
    if len(ellipsoids) == 2 and _volume(ellipsoids[1]) < 0.5 * _volume(ellipsoids[0]):
        nearest = np.where(distance[1] < 1, 1, 0)  # the small one is never swallowed
    return np.where(distance[nearest, np.arange(len(x))] < 1, nearest + 1, 0).astype(np.int8)


def _volume(ellipsoid: np.ndarray) -> float:
    return float(np.exp(ellipsoid[3:6].sum()))


def random_ellipsoids(cells: Cells, number: int, rng: np.random.Generator) -> np.ndarray:
    """``(number, 9)``: apart, touching, or the second within the first."""
    whole = cells.whole
    half = 0.5 * np.ptp(whole.points, axis=0)
    box = whole.volumes.sum()
    result: list[np.ndarray] = []
    nested = number > 1 and rng.random() < NESTED
    for k in range(number):
        share = np.exp(rng.uniform(np.log(LEAST), np.log(MOST))) / (1.0 if number == 1 else 1.4)
        long, flat = np.exp(rng.uniform(0, np.log(4))), np.exp(0.2 * rng.normal())
        centre = rng.uniform(-SPREAD, SPREAD, 3) * half
        if nested and k == 0:
            share = np.exp(rng.uniform(*np.log(HOSTS)))
            long = np.exp(rng.uniform(0, np.log(2)))
        if nested and k == 1:
            share = max(0.008, rng.uniform(0.12, 0.5) * _volume(result[0]) * 4.19 / box)
            long = np.exp(rng.uniform(0, np.log(2)))
            centre = result[0][:3] + 0.2 * np.exp(result[0][3:6]).min() * rng.normal(size=3)
        axes = np.array([flat, 1 / flat, long])
        radius = (3 * share * box / (4 * np.pi * axes.prod())) ** (1 / 3)
        turn = Rotation.random(random_state=rng).as_rotvec()
        result.append(np.concatenate([centre, np.log(radius * axes), turn]))
    return np.array(result)


def starts(task: Task, cells: Cells, look: Measurements, number: int, tried: int, keep: int,
           seed: tuple, generations: int = GENERATIONS) -> list[Start]:
    """The best distinct partitions into ``number`` ellipsoids and the outside. Collective.

    Args:
        task: of the search.
        cells: adjacency.
        look: measurements that count.
        number: of ellipsoids.
        tried: random ones.
        keep: so many of them go through an evolution of (1 + 1) and are returned.
        seed: of all that is random.
        generations: of the evolution, for each ellipsoid.
    """
    model = task.partition()

    def misfit(labels):
        return float(np.mean(task.residual(model, labels, look) ** 2))

    def one(k):
        drawn = _drawn(cells, number, np.random.default_rng((*seed, number, k)))
        return None if drawn is None else Start(misfit(drawn[0]), *drawn)

    found = [s for s in task.shared(one, range(tried)) if s is not None]
    chosen: list[Start] = []
    for start in sorted(found, key=lambda s: s.misfit):
        if all(overlap(start.labels, other.labels) < 0.5 for other in chosen):
            chosen.append(start)
        if len(chosen) == keep:
            break

    def evolved(item):
        k, best = item
        rng = np.random.default_rng((*seed, number, tried + k))
        size = 0.5
        for _ in range(generations * number):
            step = size * MUTATION * rng.normal(size=best.ellipsoids.shape)
            if number > 1:  # now one, now the other, now both
                step *= (rng.random(number) < 0.6)[:, None]
            labels = _allowed(cells, best.ellipsoids + step)
            if labels is None:
                continue
            new = misfit(labels)
            if new < best.misfit:
                best, size = Start(new, labels, best.ellipsoids + step), min(1.5 * size, 1.5)
            else:
                size = max(0.93 * size, 0.1)
        return best

    return sorted(task.shared(evolved, list(enumerate(chosen))), key=lambda s: s.misfit)


def examples(task: Task, cells: Cells, number: int, seed: tuple) -> np.ndarray:
    """Normalised magnitudes ``(number, N)`` of random ellipsoids. Collective."""
    model, look = task.partition(), task.all

    def one(k):
        labels, _ = _drawn(cells, 1, np.random.default_rng((*seed, k)), 10**6)
        return look.normalised(task.rho * model.signals(labels, look.table))

    return np.array(task.shared(one, range(number)))


def _drawn(cells: Cells, number: int, rng: np.random.Generator, tries: int = 50):
    """Allowed labels and random ellipsoids, or None."""
    for _ in range(tries):
        ellipsoids = random_ellipsoids(cells, number, rng)
        labels = _allowed(cells, ellipsoids)
        if labels is not None:
            return labels, ellipsoids
    return None


def _allowed(cells: Cells, ellipsoids: np.ndarray) -> np.ndarray | None:
    labels = ellipsoid_labels(cells, ellipsoids)
    if (len(np.unique(labels)) != len(ellipsoids) + 1
            or np.count_nonzero(labels) > 0.45 * len(labels)):
        return None
    labels = cells.repaired(labels)
    return labels if cells.allowed(labels) else None


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the cells with the same label among those that are inside either."""
    return np.count_nonzero((a == b) & (a > 0)) / np.count_nonzero((a > 0) | (b > 0))
