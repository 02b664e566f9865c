"""Surfaces of neurons from SWC morphologies: the union of round cones and a soma.

SWC has a tree of points with radii (Cannon et al., J. Neurosci. Methods 84, 49, 1998). Each piece
between a point and its parent becomes the convex hull of the balls at its two ends, and the union
of all pieces (manifold3d) is one closed surface, at branch points too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, one_line
from .arguments import positive
from .surfaces import Surface

SOMA, AXON, BASAL, APICAL = 1, 2, 3, 4  # kinds of points that SWC numbers
FINEST = 0.01  # of the least radius: edges that give less than this go
SHORT = 0.5  # of the smaller radius at its ends: shorter pieces are merged into their parents


def read_swc(path: str | Path) -> np.ndarray:
    """The points of an SWC file, parents first, ``(n, 7)``: number, kind, x, y, z, radius, parent.

    Numbers and parents are rows, -1 for none. Lengths are as in the file, um by the convention.

    Raises:
        InputError: a file that cannot be read, or is no tree of points.
    """
    where = f"morphology '{path}'"
    try:
        with warnings.catch_warnings(action="ignore"):  # of no rows, which are an error here
            table = np.loadtxt(path, comments="#", usecols=range(7), ndmin=2)
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: {one_line(error)}, expected rows of number, kind, x, y, z, "
                         "radius, parent") from None
    if not len(table) or not np.isfinite(table).all():
        raise InputError(f"{where}: {len(table)} points, expected some, all finite")
    for row in np.flatnonzero(table[:, 5] <= 0)[:1]:
        raise InputError(f"{where}: point {table[row, 0]:.0f} has radius {table[row, 5]:g}, "
                         "expected a positive one")
    place = {int(number): row for row, number in enumerate(table[:, 0])}
    if len(place) < len(table):
        raise InputError(f"{where}: numbers occur twice, expected each once")
    parents = [place.get(int(parent), -2) if parent >= 0 else -1 for parent in table[:, 6]]
    if -2 in parents:
        row = parents.index(-2)
        raise InputError(f"{where}: point {table[row, 0]:.0f} has parent {table[row, 6]:.0f}, "
                         "expected the number of a point, or -1")
    children: dict[int, list[int]] = {}
    for row, parent in enumerate(parents):
        children.setdefault(parent, []).append(row)
    order = list(children.get(-1, []))
    for row in order:
        order += children.get(row, [])
    if len(order) < len(table):
        raise InputError(f"{where}: parents go round in a circle, expected a tree")
    rank = np.append(np.argsort(order), -1)  # -1: that of no parent
    found = table[order]
    found[:, 0] = np.arange(len(found))
    found[:, 6] = rank[np.array(parents)[order]]
    return found


def neuron_surface(path: str | Path, kinds: Sequence[int] = (SOMA, BASAL, APICAL),
                   radius_floor: float = 0.2, segments: int = 12, scale: float = 1.0) -> Surface:
    """The closed surface of a neuron.

    A soma of one point is a ball, and so is one of three points, two of which stand for its size;
    others are drawn as they are. Where a process leaves the soma it has its own radius.

    Args:
        path: an SWC file.
        kinds: of points that are taken: 1 soma, 2 axon, 3 basal and 4 apical dendrites. Processes
            without a taken point between them and the soma come off it where they end.
        radius_floor: um, least radius: thinner processes would ask for a mesh that nobody can pay.
        segments: round a circle.
        scale: um per unit of the file.

    Raises:
        InputError: see `read_swc`; no point of these kinds; several trees that do not meet;
            manifold3d is not installed.
    """
    where = f"morphology '{path}'"
    positive(where, "radius_floor", radius_floor)
    positive(where, "scale", scale)
    try:
        from manifold3d import Manifold, OpType
    except ImportError:
        raise InputError(f"{where}: manifold3d is missing, expected spinverse[mesh]") from None
    table = read_swc(path)
    kept = _kept(table, kinds, where)
    x, r = table[:, 2:5] * scale, np.maximum(table[:, 5] * scale, radius_floor)
    kind = table[:, 1].astype(int)

    angle = 2 * np.pi / segments
    wider = np.sqrt(angle / np.sin(angle))  # so that polygons have the area of their circles

    def ball(centre, radius):
        return Manifold.sphere(float(wider * radius), segments).translate(centre.tolist())

    pieces, end = [], {}  # end: the point that stands for a merged one
    for row, parent in kept.items():
        end[row] = row
        if parent < 0:
            pieces.append(ball(x[row], r[row]))
            continue
        parent = end[parent]
        length = np.linalg.norm(x[row] - x[parent])
        leaves = kind[parent] == SOMA and kind[row] != SOMA
        if length < SHORT * min(r[row], r[parent]) and not leaves and r[row] <= r[parent]:
            end[row] = parent
            continue
        start = r[row] if leaves else r[parent]
        pieces.append(Manifold.batch_hull([ball(x[parent], start), ball(x[row], r[row])]))
    body = Manifold.batch_boolean(pieces, OpType.Add)
    number = len(body.decompose())
    if number > 1:
        raise InputError(f"{where}: its processes fall into {number} parts, expected one tree (of "
                         "these kinds of points)")
    made = body.simplify(FINEST * radius_floor).to_mesh()
    return Surface(np.asarray(made.vert_properties)[:, :3], np.asarray(made.tri_verts, np.int64),
                   Path(path).stem)


def _kept(table: np.ndarray, kinds: Sequence[int], where: str) -> dict[int, int]:
    """Rows that are taken, parents first, and the nearest taken row above each, -1 for none."""
    kind, parent = table[:, 1].astype(int), table[:, 6].astype(int)
    soma = np.flatnonzero(kind == SOMA)
    # two of three points say how large the ball at the first one is
    three = len(soma) == 3 and (parent[soma[1:]] == soma[0]).all()
    size = set(soma[1:].tolist()) if three else set()
    above: dict[int, int] = {}  # of every row, the nearest taken one
    kept: dict[int, int] = {}
    for row in range(len(table)):
        above[row] = nearest = above.get(parent[row], -1)
        if row not in size and kind[row] in kinds:
            kept[row], above[row] = nearest, row
    if not kept:
        raise InputError(f"{where}: no points of kinds {', '.join(map(str, kinds))}, expected some "
                         f"of {', '.join(map(str, np.unique(kind)))}")
    return kept
