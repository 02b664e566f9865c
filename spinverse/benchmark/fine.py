"""The true shape of a target on a mesh of its own: no facet is shared with the grid's.

gmsh meshes the body of the grid anew, then the surfaces of the shapes are cut into it: vertices
near a surface move onto it, and edges that still cross it are split, with all tetrahedra around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import InputError
from ..mesh import gmsh_model
from ..mesh.checks import cell_volumes, facets_of
from ..mesh.data import MeshData
from ..mesh.grids import oriented
from .targets import Target, labelled

SIZE = 1.7  # um
_SNAP = 0.3  # of an edge: how far a vertex moves to lie on a surface
_NEAR = 0.05  # of an edge: crossings this near its end are taken to be there
_KEPT = 0.25  # of its volume that a tetrahedron keeps when a vertex moves
_STEP = 1e-4  # um, of differences

Level = Callable[[np.ndarray], np.ndarray]


def mesh(target: Target, size: float = SIZE) -> MeshData:
    """The compartments of a target with their smooth surfaces, in the body of its grid.

    Tags and interface facets are as in `targets.on_grid`; ``size`` is the edge length, um. Raises
    InputError where the true shape is not known, SolverError where gmsh failed.
    """
    if not target.shapes:
        raise InputError(f"target {target.name}: its true shape is not known, expected one of "
                         "our own for --target-mesh fine")
    points, tets = body(target.data, size)
    return cut(target.name, points, tets, [shape.level for shape in target.shapes])


def body(data: MeshData, size: float) -> tuple[np.ndarray, np.ndarray]:
    """The body that a mesh fills, meshed by gmsh from its outer facets alone: points (um), tets."""
    facets, pairs = facets_of(data.cells, data.name)
    faces = facets[pairs[:, 1] < 0]
    with gmsh_model.model("fine target", size) as gmsh:
        geo = gmsh.model.geo
        vertex = {v: geo.addPoint(*data.points[v]) for v in np.unique(faces).tolist()}
        line: dict[tuple[int, int], int] = {}

        def side(a: int, b: int) -> int:
            if a > b:
                return -side(b, a)
            if (a, b) not in line:
                line[a, b] = geo.addLine(vertex[a], vertex[b])
            return line[a, b]

        surfaces = [geo.addPlaneSurface([geo.addCurveLoop([side(a, b), side(b, c), side(c, a)])])
                    for a, b, c in faces.tolist()]
        geo.addVolume([geo.addSurfaceLoop(surfaces)])
        geo.synchronize()
        points, tets, _ = gmsh_model.arrays(gmsh, "fine target")
    return points, oriented(points, tets)


def cut(name: str, points: np.ndarray, tets: np.ndarray, levels: Sequence[Level]) -> MeshData:
    """Cut surfaces into a mesh; each compartment is its largest connected part.

    ``levels`` of the compartments are negative inside; the first that is negative has a point.
    """
    for function in levels:
        points, tets = _cut_one(points, tets, function)
    return labelled(name, points, tets, (_inside(points, tets, function) for function in levels),
                    "tetrahedron of the fine mesh, expected a larger shape")


def _inside(points: np.ndarray, tets: np.ndarray, function: Level) -> np.ndarray:
    """Which tetrahedra of a mesh that was cut lie inside, ``(Nt,)`` bool."""
    values = function(points)[tets]
    furthest = np.abs(values).argmax(axis=1)
    value = np.take_along_axis(values, furthest[:, None], axis=1)[:, 0]
    # with all its vertices (nearly) on the surface, a tetrahedron has only its middle to go by
    length = np.linalg.norm(points[tets[:, 1]] - points[tets[:, 0]], axis=1)
    flat = np.abs(value) < 2 * _NEAR * length
    value[flat] = function(points[tets[flat]].mean(axis=1))
    return value < 0


def _cut_one(points: np.ndarray, tets: np.ndarray, function: Level):
    points = points.copy()
    values = function(points)
    edges = np.unique(np.sort(tets[:, [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]]
                              .reshape(-1, 2), axis=1), axis=0)
    _snap(points, tets, values, edges, function)
    a, b = edges.T
    crossing = values[a] * values[b] < 0
    share = _crossings(points[a[crossing]], points[b[crossing]], function)
    # too near an end for a tetrahedron between: the end counts as on the surface
    ends = np.concatenate([a[crossing][share < _NEAR], b[crossing][share > 1 - _NEAR]])
    values[ends] = 0.0
    still = values[a[crossing]] * values[b[crossing]] < 0
    ends, share = edges[crossing][still], share[still][:, None]
    new = points[ends[:, 0]] * (1 - share) + points[ends[:, 1]] * share
    return np.concatenate([points, new]), _split(tets, ends, len(points))


def _snap(points: np.ndarray, tets: np.ndarray, values: np.ndarray, edges: np.ndarray,
          function: Level) -> None:
    """Move inner vertices that are near the surface onto it, in place, where no tet suffers."""
    facets, pairs = facets_of(tets)
    fixed = np.zeros(len(points), bool)
    fixed[np.unique(facets[pairs[:, 1] < 0])] = True
    length = np.full(len(points), np.inf)
    long = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    np.minimum.at(length, edges, long[:, None])
    near = np.flatnonzero(~fixed & (np.abs(values) < 2 * _SNAP * length))
    goal = points[near]
    for _ in range(4):  # Newton along the gradient
        slope = np.stack([(function(goal + d) - function(goal - d)) / (2 * _STEP)
                          for d in _STEP * np.eye(3)], axis=1)
        goal = goal - slope * (function(goal) / np.maximum((slope**2).sum(axis=1), 1e-12))[:, None]
    step = np.linalg.norm(goal - points[near], axis=1)
    good = (step < _SNAP * length[near]) & (np.abs(function(goal)) < 1e-6)
    near, goal = near[good], goal[good]
    moved = points.copy()
    moved[near] = goal
    least = _KEPT * cell_volumes(points, tets)
    for _ in range(50):
        spoilt = cell_volumes(moved, tets) < least
        back = np.intersect1d(tets[spoilt], near)
        if not len(back):
            break
        moved[back] = points[back]
        near = np.setdiff1d(near, back)
    points[:] = moved
    values[near] = 0.0


def _crossings(a: np.ndarray, b: np.ndarray, function: Level) -> np.ndarray:
    """Where edges from ``a`` to ``b`` cross the surface, as a share of the edge, by bisection."""
    low, high = np.zeros(len(a)), np.ones(len(a))
    start = function(a) < 0
    for _ in range(40):
        middle = (low + high) / 2
        same = (function(a + middle[:, None] * (b - a)) < 0) == start
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return (low + high) / 2


def _split(tets: np.ndarray, edges: np.ndarray, first: int) -> np.ndarray:
    """Split edges one after another, with all tetrahedra around each; new vertices from first."""
    cells = tets.tolist()
    around: dict[int, set[int]] = {}
    for number, row in enumerate(cells):
        for v in row:
            around.setdefault(v, set()).add(number)
    for middle, (a, b) in enumerate(edges.tolist(), first):
        for number in sorted(around[a] & around[b]):
            row = cells[number]
            other = [middle if v == a else v for v in row]
            cells[number] = [middle if v == b else v for v in row]
            around[b].discard(number)
            around.setdefault(middle, set()).update((number, len(cells)))
            for v in other:
                around[v].add(len(cells))
            cells.append(other)
    return np.array(cells, np.int64)
