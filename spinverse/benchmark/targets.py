"""Targets: meshes whose membrane is known, from files or made here from a name.

Our own targets lie on the grid of the published benchmark: the body-centred cubic lattice of a
cube of 26.667 um with four cubes a side, without the pyramids at its faces (576 tetrahedra).
A cell of the grid belongs to the shape that holds its centroid.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..mesh import readers
from ..mesh.checks import RepairWarning, facets_of
from ..mesh.connected import cell_regions
from ..mesh.data import MeshData
from ..mesh.grids import bcc
from ..mesh.shapes import Ball, BentTube, Cylinder, Torus
from .blob import Blob

SIDE, CUBES = 80.0 / 3.0, 4  # um, and along each side, as in the published benchmark


@dataclass(frozen=True, eq=False)
class Target:
    """A mesh with its membrane.

    Attributes:
        name: of its folders and rows.
        data: the grid; its ``interface_facets`` are the truth.
        shapes: of the compartments, the first that holds a point has it; empty where only the
            facets are known.
    """

    name: str
    data: MeshData
    shapes: tuple = ()


def grid(side: float = SIDE, cubes: int = CUBES) -> tuple[np.ndarray, np.ndarray]:
    """The published benchmark's kind of grid: points ``(Nv, 3)`` um and tets ``(Nt, 4)``.

    Args:
        side: of the cube, um; it is centred at the origin.
        cubes: along each side.
    """
    points, tets = bcc(np.linspace(-side / 2, side / 2, cubes + 1))
    tets = tets[(tets >= (cubes + 1) ** 3).sum(axis=1) == 2]  # two cube centres: no pyramid
    used, tets = np.unique(tets, return_inverse=True)
    return points[used], tets.reshape(-1, 4)


def on_grid(name: str, shapes: Sequence, side: float = SIDE, cubes: int = CUBES) -> Target:
    """Compartments on the grid, each the largest connected part of the cells in its shape.

    Cell tags are 1, 2, ... in the order of ``shapes``, and 0 outside. Interface facets separate
    different tags; the outer facets of cells that are not outside are among them.

    Args:
        name: of the target.
        shapes: have ``contains(points (n, 3)) -> (n,) bool``.
        side, cubes: as in `grid`.

    Raises:
        InputError: a shape that holds no centroid.
    """
    points, tets = grid(side, cubes)
    centroids = points[tets].mean(axis=1)
    facets, pairs = facets_of(tets, name)
    tags = np.zeros(len(tets), np.int32)
    for number, shape in enumerate(shapes, 1):
        inside = (tags == 0) & shape.contains(centroids)
        if not inside.any():
            raise InputError(f"target {name}: compartment {number} holds no centroid of the "
                             f"{len(tets)} cells, expected at least one")
        tags[largest(inside, pairs)] = number
    sides = np.where(pairs < 0, 0, tags[pairs])
    walls = facets[sides[:, 0] != sides[:, 1]]
    data = MeshData(points, tets, tags, walls, name=name).check()
    return Target(name, data, tuple(shapes))


def largest(inside: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The cells of the largest part of ``inside (Nt,)`` bool that is connected through facets.

    Args:
        inside: at least one cell.
        pairs: ``(Nf, 2)`` cells of every facet, -1 outside.
    """
    label = cell_regions(len(inside), pairs, ~inside[pairs].all(axis=1))
    counts = np.bincount(label[inside])
    return np.flatnonzero(inside & (label == counts.argmax()))


# ---- our own --------------------------------------------------------------------------------

def axon(seed: int) -> tuple[BentTube]:
    """A bent axon of 4.5 to 5.5 um radius that runs through the box, 4 to 9 segments."""
    rng = np.random.default_rng([1, seed])
    number, radius = int(rng.integers(4, 10)), float(rng.uniform(4.5, 5.5))
    axis = int(rng.integers(3))
    along = np.linspace(-0.5, 0.5, number + 1) * (SIDE + 4.0)
    steps = rng.normal(0.0, 0.22 * SIDE / np.sqrt(number), (number + 1, 2))
    aside = np.cumsum(steps, axis=0)
    aside += rng.uniform(-3.0, 3.0, 2) - aside.mean(axis=0)
    aside = np.clip(aside, radius - SIDE / 2, SIDE / 2 - radius)
    path = np.insert(aside, axis, along, axis=1)
    return (BentTube(radius, tuple(map(tuple, path))),)


def two_cells(seed: int) -> tuple[Ball, Ball]:
    """Two balls of 4.5 to 6 um with a gap, both inside the box."""
    rng = np.random.default_rng([2, seed])
    r = rng.uniform(4.5, 6.0, 2)
    apart = r.sum() + rng.uniform(4.0, 5.0)
    way = _direction(rng, apart, r)
    return Ball(r[0], tuple(-way / 2)), Ball(r[1], tuple(way / 2))


def touching(seed: int) -> tuple[Ball, Ball]:
    """Two cells that share a wall: a ball of 6 to 7 um and what sticks out of a second one."""
    rng = np.random.default_rng([3, seed])
    r = rng.uniform(6.0, 7.0, 2)
    way = _direction(rng, 0.75 * r.sum(), r)
    return Ball(r[0], tuple(-way / 2)), Ball(r[1], tuple(way / 2))


def nested(seed: int) -> tuple[Ball, Ball]:
    """A nucleus of 5 to 6 um in a cell of 10.5 to 11.5 um."""
    rng = np.random.default_rng([4, seed])
    inner, outer = rng.uniform(5.0, 6.0), rng.uniform(10.5, 11.5)
    centre = rng.uniform(-1.0, 1.0, 3)
    return Ball(inner, tuple(centre + rng.uniform(-1.0, 1.0, 3))), Ball(outer, tuple(centre))


def blob(seed: int) -> tuple[Blob]:
    """A blob of about 9 um with random lobes."""
    return (Blob(seed),)


def _direction(rng: np.random.Generator, apart: float, radii: np.ndarray) -> np.ndarray:
    """A vector of length ``apart`` um along which two balls, half of it away, stay in the box."""
    room = SIDE / 2 - radii.max()
    while True:
        way = rng.normal(size=3)
        way *= apart / np.linalg.norm(way)
        if np.abs(way / 2).max() <= room:
            return way


FIXED: dict[str, tuple] = {
    "sphere": (Ball(20 / 3),),
    "torus": (Torus(6.5, 3.8),),
    "cylinder": (Cylinder(16 / 3, 44 / 3, (1.0, 0.0, 1.0)),),
}
SEEDED: dict[str, Callable[[int], tuple]] = {
    "axon": axon, "two-cells": two_cells, "touching": touching, "nested": nested, "blob": blob}
#: What ``own`` stands for.
OWN = (*FIXED, *(f"axon-{seed}" for seed in range(6)), *(f"two-cells-{seed}" for seed in range(3)),
       "touching-0", "nested-0", "blob-0")


def own(name: str) -> Target:
    """One of our own: ``sphere``, ``axon-3``, ...

    Raises:
        InputError: an unknown name.
    """
    if name in FIXED:
        return on_grid(name, FIXED[name])
    match = re.fullmatch(r"([a-z-]+)-(\d{1,9})", name)
    if match is None or match[1] not in SEEDED:
        raise InputError(f"target {name!r}: expected a file, a folder of files, own, "
                         f"{', '.join(FIXED)}, or {', '.join(SEEDED)} with a seed as axon-0")
    return on_grid(name, SEEDED[match[1]](int(match[2])))


# ---- from files -----------------------------------------------------------------------------

def from_file(path: Path) -> Target:
    """A mesh file with ``interface_facets``; inverted cells are turned, as published ones need.

    Raises:
        InputError: not a mesh of tetrahedra, or one that does not know its membrane.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepairWarning)
        data = readers.read(path, repair=True)
    if data.dim != 3:
        raise InputError(f"target {path}: dimension {data.dim}, expected tetrahedra")
    if not len(data.interface_facets):
        raise InputError(f"target {path}: no interface_facets, expected the true membrane")
    return Target(path.stem, data)


def find(words: Sequence[str]) -> list[Target]:
    """The targets that words stand for: our own names, ``own``, files, folders of ``.npz`` files.

    A folder's files that hold no mesh with a membrane are passed over.

    Raises:
        InputError: a word that is none of these, two targets of one name.
    """
    found: list[Target] = []
    for word in words:
        path = Path(word).expanduser()
        if word == "own":
            found += map(own, OWN)
        elif path.is_dir():
            files = [file for file in sorted(path.glob("*.npz")) if _has_membrane(file)]
            if not files:
                raise InputError(f"target {path}: no .npz mesh with interface_facets in this "
                                 "folder, expected some")
            found += map(from_file, files)
        elif path.is_file():
            found.append(from_file(path))
        else:
            found.append(own(word))
    names = [target.name for target in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"target {name}: named {names.count(name)} times, expected "
                             "different names")
    return found


def _has_membrane(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {"tets", "interface_facets"} <= set(file.files)
    except Exception:  # noqa: BLE001 - no archive of numpy's: not one of ours
        return False
