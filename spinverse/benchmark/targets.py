"""Targets: meshes whose membrane is known, from files or made here from a name.

Our own targets lie on the grid of the published benchmark: the body-centred cubic lattice of a
cube of 26.667 um with four cubes a side, without the pyramids at its faces (576 tetrahedra).
A cell of the grid belongs to the shape that holds its centroid.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from mpi4py import MPI

from ..errors import InputError
from ..glued import glued
from ..mesh import readers
from ..mesh.checks import RepairWarning, facets_of
from ..mesh.connected import cell_regions
from ..mesh.data import MeshData
from ..mesh.distributed import Mesh
from ..mesh.grids import bcc, kuhn
from ..mesh.shapes import Ball, BentTube, Cylinder, Torus
from ..mesh.whole import WholeMesh

SIDE, CUBES = 80.0 / 3.0, 4  # um, and along each side, as in the published benchmark
PERIODIC_CUBES, ACROSS = 5, 0.4  # in periodic boxes; by how much of the side shapes are shifted
LEAKY = 2  # tag of interface facets of a patch
LEAST, PLACES = 4, 100  # mesh cells of a cell of several; places tried for each
NODE = 7.0  # um, length of a node along its axon: a ring of facets on the grid


@dataclass(frozen=True, eq=False)
class Target:
    """A mesh with its membrane: its ``interface_facets`` are the truth.

    ``shapes`` of the compartments, the first that holds a point has it; none if they are unknown.
    Interface facets of tag `LEAKY`, if any, are a patch that leaks more.
    """

    name: str
    data: MeshData
    shapes: tuple = ()


def grid(cubes: int = CUBES) -> tuple[np.ndarray, np.ndarray]:
    """The grid of our own targets, centred at the origin: points (um) and tets."""
    points, tets = bcc(np.linspace(-SIDE / 2, SIDE / 2, cubes + 1))
    tets = tets[(tets >= (cubes + 1) ** 3).sum(axis=1) == 2]  # two cube centres: no pyramid
    used, tets = np.unique(tets, return_inverse=True)
    return points[used], tets.reshape(-1, 4)


def on_grid(name: str, shapes: Sequence, cubes: int = CUBES) -> Target:
    """Compartments on the grid, each the largest connected part of the cells in its shape.

    The names of finer or coarser grids end in the number of cubes.

    Cell tags are 1, 2, ... in the order of ``shapes``, and 0 outside. Interface facets separate
    different tags; the outer facets of cells that are not outside are among them. A shape that
    holds no centroid is an InputError.
    """
    points, tets = grid(cubes)
    name = name if cubes == CUBES else f"{name}-{cubes}cubes"
    centroids = points[tets].mean(axis=1)
    data = labelled(name, points, tets, (shape.contains(centroids) for shape in shapes),
                    f"centroid of the {len(tets)} cells, expected at least one")
    return Target(name, data, tuple(shapes))


def across(target: Target) -> Target:
    """One of our own in a periodic box, shifted by 0.4 of the side along x and y.

    On a grid of cubes of six tetrahedra, which all steps of a cube take to itself. Compartments
    cross the faces; where shapes leave the box they come in again opposite. Its name ends in
    "across". Meshes from files are as they are. Raises InputError of one with a patch.
    """
    if not target.shapes:
        return target
    if (target.data.interface_tags == LEAKY).any():
        raise InputError(f"target {target.name}: has a patch, which is not there in a periodic box")
    planes = np.linspace(-SIDE / 2, SIDE / 2, PERIODIC_CUBES + 1)
    points, tets = kuhn(planes, planes, planes)
    whole = WholeMesh.of(glued(Mesh.from_data(MeshData(points, tets), MPI.COMM_SELF)))
    images = SIDE * (np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), axis=-1).reshape(-1, 3)
                     - ACROSS * np.array([1, 1, 0]))
    name = f"{target.name}-across"
    tags = _compartments(name, len(tets), whole.sides, (
        np.any([shape.contains(whole.centroids + image) for image in images], axis=0)
        for shape in target.shapes), f"centroid of the {len(tets)} cells, expected at least one")
    first, second = tags[whole.sides].T
    data = MeshData(points, tets, tags, whole.facets[first != second], name=name).check()
    return Target(name, data, target.shapes)


def labelled(name: str, points: np.ndarray, tets: np.ndarray, insides: Iterable[np.ndarray],
             what: str) -> MeshData:
    """A mesh with the largest part of each ``(Nt,)`` bool as a compartment; the first counts."""
    facets, pairs = facets_of(tets, name)
    tags = _compartments(name, len(tets), pairs, insides, what)
    sides = np.where(pairs < 0, 0, tags[pairs])
    walls = facets[sides[:, 0] != sides[:, 1]]
    return MeshData(points, tets, tags, walls, name=name).check()


def _compartments(name: str, cells: int, pairs: np.ndarray, insides: Iterable[np.ndarray],
                  what: str) -> np.ndarray:
    """Tags 1, 2, ... of the largest part of each compartment, ``(Nt,)``; 0 outside."""
    tags = np.zeros(cells, np.int32)
    for number, inside in enumerate(insides, 1):
        inside = inside & (tags == 0)
        if not inside.any():
            raise InputError(f"target {name}: compartment {number} holds no {what}")
        label = cell_regions(cells, pairs, ~inside[pairs].all(axis=1))
        tags[inside & (label == np.bincount(label[inside]).argmax())] = number
    return tags


@dataclass(frozen=True)
class Blob:
    """Where a ball's signed distance plus a random sum of plane waves is negative, um.

    The waves have standard deviation ``amplitude`` and lengths of 1 to 2 times ``wavelength``.
    """

    seed: int
    radius: float = 9.0
    amplitude: float = 2.5
    wavelength: float = 14.0
    waves: int = 24

    @cached_property
    def _modes(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([5, self.seed])
        k = rng.normal(size=(self.waves, 3))
        k *= (2 * np.pi / (self.wavelength * rng.uniform(1.0, 2.0, self.waves))
              / np.linalg.norm(k, axis=1))[:, None]
        return k, rng.uniform(0.0, 2 * np.pi, self.waves)

    def level(self, points: np.ndarray) -> np.ndarray:
        """The function at ``points (n, 3)`` um, ``(n,)`` um, negative inside."""
        k, phase = self._modes
        points = np.asarray(points, float)
        waves = np.cos(points @ k.T + phase).sum(axis=1) * np.sqrt(2.0 / self.waves)
        return np.linalg.norm(points, axis=1) - self.radius + self.amplitude * waves

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which of ``points (n, 3)`` um are inside, ``(n,)`` bool."""
        return self.level(points) < 0


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
    return _pair(rng, r.sum() + rng.uniform(4.0, 5.0), r)


def touching(seed: int) -> tuple[Ball, Ball]:
    """Two cells that share a wall: a ball of 6 to 7 um and what sticks out of a second one."""
    rng = np.random.default_rng([3, seed])
    r = rng.uniform(6.0, 7.0, 2)
    return _pair(rng, 0.75 * r.sum(), r)


def nested(seed: int) -> tuple[Ball, Ball]:
    """A nucleus of 5 to 6 um in a cell of 10.5 to 11.5 um."""
    rng = np.random.default_rng([4, seed])
    inner, outer = rng.uniform(5.0, 6.0), rng.uniform(10.5, 11.5)
    centre = rng.uniform(-1.0, 1.0, 3)
    return Ball(inner, tuple(centre + rng.uniform(-1.0, 1.0, 3))), Ball(outer, tuple(centre))


def several(number: int, seed: int) -> tuple[Ball, ...]:
    """Balls of 3 to 5 um inside the box, apart or nearly touching.

    Each holds at least `LEAST` cells of the published grid, which are connected.
    """
    rng = np.random.default_rng([6, number, seed])
    points, tets = grid()
    centroids = points[tets].mean(axis=1)
    _, pairs = facets_of(tets, "grid")
    while True:
        balls: list[Ball] = []
        for radius in rng.uniform(3.0, 5.0, number):
            for _ in range(PLACES):
                centre = rng.uniform(-1, 1, 3) * (SIDE / 2 - radius)
                if all(np.linalg.norm(centre - b.centre) > radius + b.radius for b in balls):
                    balls.append(Ball(radius, tuple(centre)))
                    break
        insides = [ball.contains(centroids) for ball in balls]
        if len(balls) == number and all(map(np.any, insides)):
            tags = _compartments("several", len(tets), pairs, insides, "centroid")
            if all(np.count_nonzero(tags == k) == np.count_nonzero(inside) >= LEAST
                   for k, inside in enumerate(insides, 1)):
                return tuple(balls)


def blob(seed: int) -> tuple[Blob]:
    """A blob of about 9 um with random lobes."""
    return (Blob(seed),)


def _pair(rng: np.random.Generator, apart: float, radii: np.ndarray) -> tuple[Ball, Ball]:
    """Two balls in the box with centres ``apart`` um, about its own, in a random direction."""
    while True:
        way = rng.normal(size=3)
        way *= apart / 2 / np.linalg.norm(way)
        if np.abs(way).max() <= SIDE / 2 - radii.max():
            return Ball(radii[0], tuple(-way)), Ball(radii[1], tuple(way))


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


def node(seed: int, cubes: int = CUBES) -> Target:
    """The axon of this seed, with a ring in the middle that leaks."""
    target = on_grid(f"node-{seed}", axon(seed), cubes)
    data, (tube,) = target.data, target.shapes
    axis = int(np.argmax(np.ptp(tube.path, axis=0)))
    along = data.points[data.interface_facets].mean(axis=1)[:, axis]
    tags = np.where(np.abs(along) < NODE / 2, LEAKY, 1)
    return replace(target, data=replace(data, interface_tags=tags))


def own(name: str, cubes: int = CUBES) -> Target:
    """One of our own: ``sphere``, ``axon-3``, ...; or the InputError of an unknown name."""
    if name in FIXED:
        return on_grid(name, FIXED[name], cubes)
    match = re.fullmatch(r"([a-z-]+)-(\d{1,9})", name)
    if match and match[1] == "node":
        return node(int(match[2]), cubes)
    many = re.fullmatch(r"cells-([3-9])-(\d{1,9})", name)
    if many:
        return on_grid(name, several(int(many[1]), int(many[2])), cubes)
    if match is None or match[1] not in SEEDED:
        raise InputError(f"target {name!r}: expected a file, a folder of files, own, "
                         f"{', '.join(FIXED)}, or {', '.join(SEEDED)}, node with a seed as axon-0, "
                         "or cells with a number and a seed as cells-3-0")
    return on_grid(name, SEEDED[match[1]](int(match[2])), cubes)


# ---- from files -----------------------------------------------------------------------------

def from_file(path: Path) -> Target:
    """A mesh of tetrahedra with its membrane; inverted cells are turned, as published ones need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepairWarning)
        data = readers.read(path, repair=True)
    if data.dim != 3:
        raise InputError(f"target {path}: dimension {data.dim}, expected tetrahedra")
    if not len(data.interface_facets):
        raise InputError(f"target {path}: no interface_facets, expected the true membrane")
    return Target(path.stem, data)


def find(words: Sequence[str], cubes: int = CUBES) -> list[Target]:
    """The targets that words stand for: our own, files, folders with ``.npz`` files of targets.

    ``cubes``: of the grid of our own, along each side.
    """
    found: list[Target] = []
    for word in words:
        path = Path(word).expanduser()
        if word == "own":
            found += [own(name, cubes) for name in OWN]
        elif path.is_dir():
            files = [file for file in sorted(path.glob("*.npz")) if _has_membrane(file)]
            if not files:
                raise InputError(f"target {path}: no .npz mesh with interface_facets in this "
                                 "folder, expected some")
            found += map(from_file, files)
        elif path.is_file():
            found.append(from_file(path))
        else:
            found.append(own(word, cubes))
    check_names("target", found)
    return found


def check_names(kind: str, things: Sequence) -> None:
    """Raise InputError if two of them have one name."""
    for name, count in Counter(thing.name for thing in things).items():
        if count > 1:
            raise InputError(f"{kind} {name}: named {count} times, expected different names")


def _has_membrane(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {"tets", "interface_facets"} <= set(file.files)
    except Exception:  # noqa: BLE001 - no archive of numpy's: not one of ours
        return False
