"""Periodic boxes: opposite faces of the mesh, and which of their nodes are one.

With m = w exp(-i Q(t) . x), Q(t) = int_0^t g (see `spinverse.forms`), m has a phase jump across the
box and w has none, so opposite faces are tied node by node, like facets of infinite permeability.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from .errors import InputError
from .mesh.distributed import Mesh

AXES = "xyz"
TOLERANCE = 1e-6  # of the period: nodes this near each other's image are one


def periodic_axes(mesh: Mesh, value: str | None) -> tuple[int, ...]:
    """Axes of a string like "x" or "xyz", ascending.

    Raises:
        InputError: another kind of value, an axis twice or one that the mesh does not have.
    """
    names = AXES[: mesh.dim]
    if value is None:
        return ()
    if not isinstance(value, str) or len(set(value)) < len(value) or set(value) - set(names):
        raise InputError(f"periodic: {value!r}, expected some of the axes {', '.join(names)} "
                         "in one word, like 'x'")
    return tuple(j for j in range(mesh.dim) if AXES[j] in value)


def faces(mesh: Mesh, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Owned outer facets on the lower and on the upper plane of the bounding box, indices."""
    low, high = mesh.bounds[:, axis]
    x = mesh.facet_corners[:, :, axis]
    near = TOLERANCE * (high - low)
    lower, upper = (np.flatnonzero(mesh.outer & (np.abs(x - plane).max(axis=1) < near))
                    for plane in (low, high))
    return lower, upper


def pair_across(mesh: Mesh, axis: int, points: tuple[np.ndarray, np.ndarray],
                labels: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Labels of nodes that the period of ``axis`` carries onto each other. Collective.

    Every rank gathers both faces: surfaces are small beside what a rank holds of the volume.
    ``points (n, k, 3)`` um and ``labels (n, k)`` are of the nodes of the owned facets on the lower
    and the upper face. Gives ``(m, 2)`` labels, lower face first, the same on every rank. Raises
    InputError where a face is missing, or the two do not carry the same triangulation.
    """
    bounds = mesh.bounds[:, axis]
    period = bounds[1] - bounds[0]
    name = AXES[axis]
    everywhere = mesh.comm.allgather((points, labels))
    (below, above), (first, second) = (
        [np.concatenate([part[kind][side] for part in everywhere]) for side in range(2)]
        for kind in range(2))
    for side, found in ((0, below), (1, above)):
        if not len(found):
            raise InputError(f"periodic: axis {name}: no outer facet lies on the plane {name} = "
                             f"{bounds[side]:g} um, expected a box there")
    kind = ("points", "edges", "triangles")[mesh.dim - 1]
    if len(below) != len(above):
        raise InputError(f"periodic: axis {name}: {len(below)} {kind} at {name} = {bounds[0]:g} "
                         f"um and {len(above)} at {name} = {bounds[1]:g} um, expected the same "
                         "mesh on opposite faces")
    image = below.copy()
    image[..., axis] += period
    near = TOLERANCE * period
    distance, partner = cKDTree(above.mean(axis=1)).query(image.mean(axis=1))
    gaps = np.linalg.norm(image[:, :, None] - above[partner][:, None], axis=-1)
    apart = np.maximum(distance, gaps.min(axis=2).max(axis=1))
    apart[np.bincount(partner, minlength=len(above))[partner] > 1] = np.inf
    if (worst := int(apart.argmax())) >= 0 and not apart[worst] < near:
        where = ", ".join(f"{value:g}" for value in below[worst].mean(axis=0)[: mesh.dim])
        raise InputError(f"periodic: axis {name}: one of the {kind} at ({where}) um has no equal "
                         f"at {name} = {bounds[1]:g} um, expected the same mesh on opposite faces")
    match = gaps.argmin(axis=2)
    return np.column_stack([first.ravel(),
                            np.take_along_axis(second[partner], match, axis=1).ravel()])


def check_faces(mesh: Mesh, axes: tuple[int, ...]) -> np.ndarray:
    """Owned facets on the periodic faces, ``(nf,)`` bool, once they are known to match. Collective.

    Raises:
        InputError: naming the axis and the mismatch.
    """
    result = np.zeros(mesh.num_owned_facets, dtype=bool)
    for axis in axes:
        sides = faces(mesh, axis)
        pair_across(mesh, axis, tuple(mesh.facet_corners[side] for side in sides),
                    tuple(mesh.facet_vertices[side] for side in sides))
        for side in sides:
            result[side] = True
    return result
