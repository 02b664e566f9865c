"""Random positions of discs and balls that do not overlap, and random radii."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
from scipy.spatial import cKDTree

from spinverse.errors import InputError
from spinverse.mesh import arguments as expect

TRIES = 200  # positions tried for each cell before it is put down anyway and pushed free
SWEEPS = 3000  # of the pushing
STARTS = 5  # of the whole
DISTRIBUTIONS = ("gamma", "lognormal", "normal")


def random_radii(name: str, count: int, mean: float, deviation: float, distribution: str,
                 seed: int) -> np.ndarray:
    """``count`` radii, ``(count,)`` um, of a distribution with this mean and deviation.

    ``"normal"`` is cut below a tenth of the mean; a deviation of 0 gives equal radii.
    """
    count = expect.count(name, "count", count)
    mean = expect.positive(name, "mean_radius", mean)
    deviation = expect.number(name, "radius_deviation", deviation, low=0.0)
    expect.choice(name, "distribution", distribution, DISTRIBUTIONS)
    rng = generator(name, seed)
    if deviation == 0:
        return np.full(count, mean)
    if distribution == "gamma":
        return rng.gamma((mean / deviation)**2, deviation**2 / mean, count)
    if distribution == "lognormal":
        variance = np.log1p((deviation / mean)**2)
        return rng.lognormal(np.log(mean) - variance / 2, np.sqrt(variance), count)
    return np.maximum(rng.normal(mean, deviation, count), mean / 10)


def generator(name: str, seed) -> np.random.Generator:
    """The random numbers of ``seed``, a whole number of at least 0."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"{name}: seed is {expect.shown(seed)}, expected a whole number >= 0")
    return np.random.default_rng(int(seed))


def pack(name: str, radii: np.ndarray, lengths: np.ndarray, gap: float, seed: int,
         periodic: bool = False, inner: float | None = None) -> np.ndarray:
    """Centres of cells in a box centred at the origin, ``(n, d)`` um.

    Cells are put down in descending order at random free positions. One that finds none in
    ``TRIES`` is put down at the best of them, and at the end all overlapping pairs are pushed
    apart: that packs denser than random sequential addition alone. In a periodic box cells reach
    through its faces; none nearly touches a face, an edge or a corner (by half a gap and a tenth
    of the radius), inside or out, as that would leave flat tets.

    Args:
        radii: of the cells, ``(n,)`` um.
        lengths: of the box, ``(d,)`` um.
        gap: smallest distance between two cells (and to the box if it is not periodic), um.
        inner: inner over outer radius of layered cells, whose insides nearly touch no face
            of a periodic box either.
    """
    rng = generator(name, seed)
    room = lengths.min() - 2 * radii.max() - (gap if periodic else 2 * gap)
    if not room > 0:
        raise InputError(f"{name}: a cell of radius {radii.max():g} um with gaps of {gap:g} um "
                         f"does not fit the box of {lengths.min():.4g} um (a larger box, a lower "
                         "volume fraction, or more cells)")
    shells = (1.0,) if inner is None else (1.0, inner)
    for _ in range(STARTS):
        centres, crowded = np.zeros((len(radii), len(lengths))), False
        placed: list[int] = []
        for i in np.argsort(-radii, kind="stable"):
            half = lengths / 2 - (0 if periodic else gap + radii[i])
            found = rng.uniform(-half, half, (TRIES, len(lengths)))
            clear = _clearance(found, radii[i], centres[placed], radii[placed], lengths, gap,
                               periodic, shells)
            free = clear >= 0
            crowded |= not free.any()
            centres[i] = found[free.argmax() if free.any() else clear.argmax()]
            placed.append(i)
        if not crowded:
            return centres
        centres, overlap = _push(centres, radii, lengths, gap, periodic, shells)
        if overlap <= 1e-6 * gap:
            return centres
    raise InputError(f"{name}: {len(radii)} cells find no place in the box of "
                     f"{' x '.join(f'{v:.4g}' for v in lengths)} um with gaps of {gap:g} um "
                     f"(overlaps of {overlap:.2g} um are left after {STARTS} starts), expected a "
                     "lower volume fraction, a larger box or a smaller gap")


def images(centres: np.ndarray, radii: np.ndarray, lengths: np.ndarray,
           margin: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Periodic images of cells within ``margin`` um of the box: centres and the cell of each."""
    shifts = np.array(sorted(product((0, -1, 1), repeat=len(lengths)),
                             key=lambda s: (np.abs(s).sum(), s)))
    moved = centres[:, None] + shifts * lengths
    apart = np.linalg.norm(np.maximum(0, np.abs(moved) - lengths / 2), axis=2)
    cell, shift = np.nonzero(apart < radii[:, None] + margin)
    return moved[cell, shift], cell


def smallest_cut(centres: np.ndarray, radii: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Half width of the smallest cut of each cell by the faces of a periodic box, ``(n,)`` um.

    Of all its layers, whose ``radii`` are ``(n, layers)`` um.
    """
    smallest = np.full(len(centres), np.inf)
    for axes, wall in _walls(centres, lengths):
        cut = radii**2 - (wall[:, axes]**2).sum(axis=1)[:, None]
        smallest = np.minimum(smallest, np.sqrt(np.where(cut > 0, cut, np.inf)).min(axis=1))
    return smallest


def _clearance(points, radius, centres, radii, lengths, gap, periodic, shells) -> np.ndarray:
    """What is left of the gap between a cell at each of ``points`` and the placed ones."""
    offset = points[:, None] - centres[None]
    if periodic:
        offset -= lengths * np.round(offset / lengths)
    clear = (np.linalg.norm(offset, axis=2) - radii - radius - gap).min(axis=1, initial=np.inf)
    for axes, wall in _walls(points, lengths) if periodic else ():
        distance = np.linalg.norm(wall[:, axes], axis=1)
        for shell in shells:
            clear = np.minimum(clear, np.abs(distance - shell * radius)
                               - np.maximum(gap / 2, shell * radius / 10))
    return clear


def _walls(points, lengths):
    """Faces, edges and corners of the periodic box: axes across, offset from the nearest."""
    offset = points - lengths / 2
    offset = offset - lengths * np.round(offset / lengths)
    for number in range(1, len(lengths) + 1):
        for axes in combinations(range(len(lengths)), number):
            yield list(axes), offset


def _push(centres, radii, lengths, gap, periodic, shells) -> tuple[np.ndarray, float]:
    """Push overlapping pairs apart, sweep after sweep; also the largest overlap left."""
    margin, x = gap * (1 + 1e-6) + 1e-9 * radii.max(), centres.copy()
    half = lengths / 2 - radii[:, None] - gap
    for _ in range(SWEEPS):
        wrapped = np.mod(x + lengths / 2, lengths) if periodic else x
        tree = cKDTree(wrapped, boxsize=lengths if periodic else None)
        i, j = tree.query_pairs(2 * radii.max() + margin, output_type="ndarray").T
        offset = x[i] - x[j]
        if periodic:
            offset -= lengths * np.round(offset / lengths)
        distance = np.linalg.norm(offset, axis=1)
        overlap = radii[i] + radii[j] + margin - distance
        near = overlap > 0
        step = offset[near] / np.maximum(distance[near], 1e-300)[:, None] \
            * overlap[near, None] / 2
        move = np.zeros_like(x)
        np.add.at(move, i[near], step)
        np.add.at(move, j[near], -step)
        worst = overlap.max(initial=0.0)
        x += move
        if periodic:
            worst = max(worst, _push_off_walls(x, radii, lengths, gap, shells))
        else:
            x = np.clip(x, -half, half)
        if worst <= 1e-6 * gap:
            break
    return (np.mod(x + lengths / 2, lengths) - lengths / 2 if periodic else x), worst


def _push_off_walls(x, radii, lengths, gap, shells) -> float:
    """Move centres in place so that no shell nearly touches a face; the largest shortage."""
    worst = 0.0
    for shell in shells:
        for axes, wall in _walls(x, lengths):
            side = np.zeros_like(x)
            side[:, axes] = wall[:, axes]
            distance = np.linalg.norm(side, axis=1)
            short = np.maximum(0, np.maximum(gap / 2, shell * radii / 10) * (1 + 1e-6)
                               - np.abs(distance - shell * radii))
            worst = max(worst, short.max())
            short *= np.where(distance < shell * radii, -1, 1)
            x += side / np.maximum(distance, 1e-300)[:, None] * short[:, None]
    return worst
