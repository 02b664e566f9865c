"""Repair of closed triangle surfaces.

trimesh's repairs would change what is right, or leave what is wrong: `fix_inversion` turns
cavities inside out, `stitch` closes holes at right angles the wrong way round, `merge_vertices`
rounds, `unique_faces` keeps one of two walls that cancel; and `fix_winding`, `fill_holes` and
`contains` want networkx and rtree.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from spinverse.errors import InputError, warn_caller
from spinverse.mesh.checks import RepairWarning
from spinverse.mesh.connected import components
from spinverse.mesh.surfaces import Surface, defects, edges_of, flips, merged, outward, repeats

MENDED = 0.02  # of volume and area: what MeshFix may change
NEAR = 1e-6  # of the box diagonal: vertices that a repair merges


def repair_with_defects(surface: Surface) -> tuple[Surface, list[str]]:
    """Repair what can be without a guess about the shape.

    In this order: vertices nearer than 1e-6 of the box diagonal are merged; triangles that
    repeat a vertex are dropped, and of triangles given twice one is kept (none if the two have
    opposite orientations); neighbours get the same orientation; holes are closed by a fan;
    every part gets normals that point out of the cell, or into the cavity if it lies in
    another part; unused vertices are dropped. Edges of more than two triangles and triangles
    that cut each other, which are left then, are cut out and closed anew by MeshFix (Attene,
    Visual Comput. 26, 1393, 2010) where pymeshfix is installed, unless that changes the shape.

    Returns the surface, and its :func:`.surfaces.defects` that are left to the mesher. A
    :class:`.RepairWarning` says what was done, and what is left.

    Raises:
        InputError: no triangle is left.
    """
    done: dict[str, int] = {}
    given, surface = surface, merged(surface, NEAR * surface.diagonal)
    done["vertices merged or unused"] = len(given.points) - len(surface.points)
    bad = repeats(surface.triangles)
    done["triangles that repeat a vertex dropped"] = bad.sum()
    triangles = surface.triangles[~bad]
    kept = _once(triangles)
    done["triangles given twice dropped"] = len(triangles) - len(kept)
    triangles = triangles[kept]
    if not len(triangles):
        raise InputError(f"surface '{surface.name}': no triangle is left of "
                         f"{len(surface.triangles)} after the repair, expected a closed surface")
    against, _ = flips(*edges_of(triangles)[:2])
    done["triangles turned to agree with their neighbours"] = against.sum()
    triangles = np.where(against[:, None], triangles[:, ::-1], triangles)
    points, triangles, holes = _filled(surface.points, triangles)
    done[f"holes closed, of up to {max(holes, default=0)} edges"] = len(holes)
    surface = merged(Surface(points, triangles, surface.name), None)
    if not len(edges_of(surface.triangles)[2]):
        surface, done["parts turned inside out"] = outward(surface)
    said = [f"{number} {text}" for text, number in done.items() if number]
    left = defects(surface)
    if left and (mended := _mended(surface)) is not None:
        said.append(f"by MeshFix: {'; '.join(left)}")
        surface, left = mended, []
    if said or left:
        text = "; ".join(said) or "nothing could be repaired"
        rest = f"; left: {'; '.join(left)}" if left else ""
        warn_caller(f"surface '{surface.name}': {text}{rest}", RepairWarning)
    return surface, left


def _mended(surface: Surface) -> Surface | None:
    """The surface without defects, by MeshFix; None if it cannot, or makes another shape."""
    if find_spec("pymeshfix") is None:
        return None
    from pymeshfix import MeshFix

    fix = MeshFix(surface.points, surface.triangles.astype(np.int32))
    fix.repair(joincomp=False, remove_smallest_components=False)
    if not len(fix.faces):
        return None
    found, _ = outward(Surface(fix.points, fix.faces, surface.name))
    change = max(abs(found.volume / surface.volume - 1) if surface.volume else np.inf,
                 abs(found.areas.sum() / surface.areas.sum() - 1))
    return None if change > MENDED or defects(found) else found


def _once(triangles: np.ndarray) -> np.ndarray:
    """Rows to keep for each triangle to be there once; two of opposite orientation cancel."""
    sign = np.linalg.det(np.eye(3)[np.argsort(triangles, axis=1)])
    _, group = np.unique(np.sort(triangles, axis=1), axis=0, return_inverse=True)
    net = np.bincount(group.ravel(), sign)[group.ravel()]
    rows = np.flatnonzero(sign * net > 0)  # of the orientation that prevails
    return np.sort(rows[np.unique(group.ravel()[rows], return_index=True)[1]])


def _filled(points: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Close each hole whose rim is a simple loop by triangles to its centre, or by one."""
    halves, _, open_edges, _ = edges_of(triangles)
    rim, count = halves[open_edges][:, ::-1], len(points)  # the new triangles run the other way
    labels = components(count, rim)
    once = np.all([np.bincount(ends, minlength=count) == 1 for ends in rim.T], axis=0)
    rim = rim[~np.isin(labels[rim[:, 0]], labels[rim[~once[rim]]])]
    if not len(rim):
        return points, triangles, []
    _, first, hole, sizes = np.unique(labels[rim[:, 0]], return_index=True, return_inverse=True,
                                      return_counts=True)
    centres = np.stack([np.bincount(hole, x) / sizes for x in points[rim[:, 0]].T], axis=1)
    follows = np.zeros(count, np.int64)
    follows[rim[:, 0]] = rim[:, 1]
    small = sizes[hole] == 3
    new = np.column_stack([rim, np.where(small, follows[rim[:, 1]], count + hole)])
    small[first] = False  # of three equal ones one is kept
    return (np.concatenate([points, centres]), np.concatenate([triangles, new[~small]]),
            sizes.tolist())
