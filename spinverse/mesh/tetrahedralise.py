"""Tetrahedra inside and outside a cell surface, made in a process that can be ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from ..errors import InputError, SolverError, warn_caller
from .arguments import affordable_volume, choice, positive, shown
from .arguments import order as expected_order
from .arrangement import TAGGED
from .checks import RepairWarning, cell_volumes, facets_of, find_facets, places_in_cells
from .connected import components
from .curved import by_normals
from .data import MeshData
from .grids import oriented
from .isosurface import layer, samples
from .repair import repair_with_defects
from .surfaces import Surface, defects, depths, load_surface, parts

# what an MPI launcher tells its ranks; a child that imports MPI would take itself for one
LAUNCHERS = ("PMI", "PMIX", "MPI_LOCAL", "HYDI_", "HYDRA_", "MPIEXEC_", "OMPI_", "PRTE_", "SLURM_")
INSIDE, OUTSIDE = 1, 2  # cell tags
LOST = 0.02  # relative difference of volumes that is worth a warning; of areas, an error
THIN = 0.01  # height over longest edge of a triangle
NEAR_BY = 0.005  # of the box diagonal: what is no farther from the mesh is not lost
TRY = "try repair=True, another size, or a smaller or larger envelope"


def from_surface(surface: Surface | str | Path, size: float | None = None,
                 outside: str | None = None, gap: float | None = None, method: str = "auto",
                 envelope: float | None = None, repair: bool = True, scale: float = 1.0,
                 timeout: float = 600.0, cell_tags: str = "common", order: int = 1) -> MeshData:
    """Mesh the inside of a closed surface, and the outside if asked.

    Cells inside have tag 1, outside tag 2; the interface facets are the surface, with tag 1.
    Parts of the surface within another bound cavities, which are outside (empty without it).

    ``"exact"`` keeps every triangle (gmsh, Delaunay), and needs a surface without defects.
    ``"envelope"`` makes a new surface within a distance of the given one (fTetWild, Hu et al., ACM
    Trans. Graph. 39 (2020) 117), and takes holes, cuts and overlaps. ``"auto"`` is exact for a
    surface without defects whose triangles are not thin and no finer than a third of ``size``, and
    envelope otherwise and where exact fails.

    Args:
        surface: a :class:`Surface`, or a file for :func:`surfaces.read_surface`.
        size: largest target edge length, um. Exact: none but that of the surface, which grows
            into the volume. Envelope: a twentieth of the box diagonal.
        outside: ``"box"``: up to a box; ``"tight"``: a layer around the cell; ``None``: nothing.
        gap: between the cell and the outer boundary, um; a tenth of the cell's largest extent.
        method: as above.
        envelope: distance that the surface may move, um; the smaller of 1e-3 of the box diagonal
            and a tenth of the median edge.
        repair: repair the surface first, see :func:`.repair.repair_with_defects`; without it a
            defect is an error, except for ``method="envelope"``.
        scale: um per unit of the file.
        timeout: seconds for the mesher, which is ended then.
        cell_tags: ``"common"``, or ``"each"``: the insides of the surface's parts have tags 1, 2,
            ..., outside the number after the last, the facets of the surface the tag of the inside
            that they bound. Parts that the mesher has joined count as one.
        order: 1: facets; 2: their edges are bent, to the smooth surface that has the mean normals
            of the triangles around each vertex (:func:`.curved.by_normals`). Vertices stay.

    Raises:
        InputError: a bad argument, file or surface, or no mesher is installed.
        SolverError: the mesher failed, crashed, or took too long, or lost more than 2 % of the
            surface's area, as of processes thinner than the envelope.

    Warns:
        RepairWarning: what was repaired; another volume than the surface's, or more parts.
    """
    owner = "from_surface"
    method = choice(owner, "method", method, ("auto", "exact", "envelope"))
    choice(owner, "cell_tags", cell_tags, TAGGED)
    order = expected_order(owner, order)
    if outside is not None:
        choice(owner, "outside", outside, ("box", "tight"))
    given = {"size": size, "gap": gap, "envelope": envelope, "timeout": timeout}
    size, gap, envelope, timeout = (v if v is None else positive(owner, k, v)
                                    for k, v in given.items())
    if timeout is None:
        raise InputError(f"{owner}: timeout is None, expected seconds")
    if gap is not None and outside is None:
        raise InputError(f"{owner}: gap is {gap:g} without outside, expected outside='box' or "
                         "'tight'")
    if isinstance(surface, str | Path):
        surface = load_surface(surface, scale)
    elif not isinstance(surface, Surface):
        raise InputError(f"{owner}: surface is {shown(surface)}, expected a Surface or a path")
    surface, found = repair_with_defects(surface) if repair else (surface, defects(surface))
    if found and (method == "exact" or not repair and method != "envelope"):
        wanted = "clean surface for method='exact' ('auto' or 'envelope' take it)" if repair else \
            "clean surface (repair=True, or method='envelope')"
        raise InputError(f"surface '{surface.name}': {'; '.join(found)}; expected a {wanted}")
    outer = None
    if outside is not None:
        gap = 0.1 * float(np.ptp(surface.points, axis=0).max()) if gap is None else gap
        outer = _box(surface, gap, size) if outside == "box" else layer(surface, gap)
    if size is not None:
        extent = np.ptp((outer or surface).points, axis=0)
        try:
            affordable_volume(owner, np.prod(extent) if outer else abs(surface.volume), size)
        except InputError as error:
            raise InputError(f"{error}; the surface is {np.max(extent):.3g} um across (another "
                             "unit in its file? scale=1e-3 for nm)") from None
    common = {"points": surface.points, "triangles": surface.triangles,
              "outer_points": outer.points if outer else np.empty((0, 3)),
              "outer_triangles": outer.triangles if outer else np.empty((0, 3), np.int64)}
    if envelope is None:
        envelope = min(1e-3 * surface.diagonal, 0.1 * surface.edge_length)
    failures = []
    for step in _steps(surface, method, found, size):
        job = _exact_job(surface, outer, size) if step == "exact" else {
            "size": surface.diagonal / 20 if size is None else size, "envelope": envelope}
        try:
            arrays = run_mesher({"method": step, **common, **job}, timeout, surface.name)
            flush = outer if outside == "box" and step == "envelope" else None
            data = _mesh(surface, arrays, flush)
            said = _compare(surface, data, step, job.get("envelope", 0.0))
            inside = data.cell_tags == INSIDE
            data = _by_part(surface, data) if cell_tags == "each" else data
            if order == 2:
                data = replace(data, **by_normals(data.points, data.cells, data.interface_facets,
                                                  inside)._asdict()).check()
        except (SolverError, InputError) as error:
            failures.append(f"{step}: {error}")
            continue
        if said:
            warn_caller(f"surface '{surface.name}': {'; '.join(said)}", RepairWarning)
        return data
    why = f"; the surface has defects: {'; '.join(found)}" if found else ""
    raise SolverError(f"surface '{surface.name}': could not be meshed ({'; '.join(failures)}); "
                      f"{TRY}{why}")


def run_mesher(job: dict, timeout: float, name: str) -> dict[str, np.ndarray]:
    """Run ``_mesher.py`` on ``job`` in a process group of its own; ``points, tets, tags``.

    Raises:
        SolverError: it failed, ended by a signal, or was ended after ``timeout`` seconds.
    """
    program = Path(__file__).with_name("_mesher.py")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="spinverse-") as folder:
        source, target = Path(folder) / "job.npz", Path(folder) / "mesh.npz"
        np.savez(source, **job)
        with open(Path(folder) / "log", "w+b") as log:
            # -P: modules beside the program must not shadow others; cwd: fTetWild leaves files
            child = subprocess.Popen(
                [sys.executable, "-P", program, source, target, str(timeout)], cwd=folder,
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True)
            try:
                code = child.wait(timeout)
            except subprocess.TimeoutExpired:
                raise SolverError(f"no mesh of '{name}' after {timeout:g} s (timeout), ended"
                                  ) from None
            finally:
                if child.poll() is None:
                    with suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
            log.seek(max(0, log.tell() - 2000))
            last = log.read().decode(errors="replace").strip().splitlines()[-1:]
        if code != 0 or not target.is_file():
            cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            said = f": {last[0][:200]}" if last and code > 0 else ""
            raise SolverError(f"the mesher of '{name}' crashed ({cause}{said})")
        with np.load(target) as file:
            arrays = dict(file)
    if "error" in arrays:
        raise SolverError(str(arrays["error"]))
    if not len(arrays["tets"]):
        raise SolverError("the mesher found no inside")
    return arrays


def _steps(surface: Surface, method: str, found: list[str], size: float | None) -> list[str]:
    """The methods to try, in order."""
    library = {"exact": "gmsh", "envelope": "wildmeshing"}
    # fine or thin triangles would make as fine or thin tetrahedra
    fine = size is not None and 3 * surface.edge_length < size
    order = [method] if method != "auto" else ["envelope"] if found else \
        ["envelope", "exact"] if fine or surface.flatness.min() < THIN else ["exact", "envelope"]
    steps = [step for step in order if find_spec(library[step]) is not None]
    if not steps:
        why = f" for a surface with defects ({'; '.join(found)})" if found else ""
        raise InputError(f"surface '{surface.name}': {library[order[0]]} is not installed, "
                         f"expected it{why}: pip install 'spinverse[mesh]'")
    return steps


def _exact_job(surface: Surface, outer: Surface | None, size: float | None) -> dict:
    """Volumes as gmsh takes them: each bounded by a part and the parts right inside it."""
    labels = parts(surface)
    depth, parent = depths(surface, labels)
    rows = []
    for part, level in enumerate(depth):
        if level % 2 and outer is None:
            continue  # a cavity
        tag = OUTSIDE if level % 2 else INSIDE
        rows += [(part, tag, p) for p in (part, *np.flatnonzero(parent == part))]
    if outer is not None:
        rows += [(-1, OUTSIDE, p) for p in (-1, *np.flatnonzero(depth == 0))]
    return {"shells": labels, "volumes": np.array(rows, np.int64),
            "size": 1e22 if size is None else size}


def _box(surface: Surface, gap: float, size: float | None) -> Surface:
    """The bounding box, ``gap`` um larger on each side, its faces split into right triangles."""
    low, high = surface.points.min(axis=0) - gap, surface.points.max(axis=0) + gap
    step = (high - low).max() / 8
    counts = np.ceil((high - low) / (step if size is None else min(size, step)) - 1e-9).astype(int)
    faces = []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        ij = np.indices((counts[u], counts[v])).reshape(2, -1)
        for side, turn in ((0, -1), (1, 1)):
            corner = np.full((4, ij.shape[1], 3), side * counts[axis])
            for k, step in enumerate([(0, 0), (1, 0), (1, 1), (0, 1)]):
                corner[k][:, [u, v]] = ij.T + step
            faces += [corner[list(three[::turn])].swapaxes(0, 1)
                      for three in ((0, 1, 2), (0, 2, 3))]
    nodes, place = np.unique(np.concatenate(faces).reshape(-1, 3), axis=0, return_inverse=True)
    return Surface(low + nodes * ((high - low) / counts), place.reshape(-1, 3), "box")


def _mesh(surface: Surface, arrays: dict, box: Surface | None) -> MeshData:
    points, tets, tags = arrays["points"], arrays["tets"], arrays["tags"]
    used, numbers = np.unique(tets, return_inverse=True)
    points = points[used]
    tets = oriented(points, numbers.reshape(-1, 4))
    if box is not None:
        points = _flush(points, tets, box)
    facets, pairs = facets_of(tets, surface.name)
    sides = np.where(pairs < 0, OUTSIDE, tags[pairs])
    return MeshData(points, tets, tags, facets[sides[:, 0] != sides[:, 1]],
                    name=surface.name).check()


def _pieces(tets: np.ndarray) -> np.ndarray:
    """The connected piece of each tet, ``(Nt,)``."""
    _, pairs = facets_of(tets)
    return components(len(tets), pairs[pairs[:, 1] >= 0])


def _by_part(surface: Surface, data: MeshData) -> MeshData:
    """Tags 1, 2, ... for the pieces of the inside in the order of the surface's parts."""
    inside = np.flatnonzero(data.cell_tags == INSIDE)
    piece = _pieces(data.cells[inside])
    # the surface nearest to a place inside is that around it
    _, near = cKDTree(surface.corners.mean(axis=1)).query(
        data.points[data.cells[inside]].mean(axis=1))
    first = np.full(piece.max() + 1, len(surface.triangles))
    np.minimum.at(first, piece, parts(surface)[near])
    rank = np.argsort(np.argsort(first, kind="stable"))
    tags = np.full(len(data.cells), len(rank) + 1)
    tags[inside] = rank[piece] + 1
    facets, pairs = facets_of(data.cells)
    sides = pairs[find_facets(facets, data.interface_facets)]
    walls = np.where(sides < 0, len(rank) + 1, tags[sides]).min(axis=1)
    return replace(data, cell_tags=tags, interface_tags=walls)


def _flush(points: np.ndarray, tets: np.ndarray, box: Surface) -> np.ndarray:
    """Move vertices of the outer boundary onto the box, unless that spoils a tet."""
    facets, pairs = facets_of(tets)
    boundary = np.unique(facets[pairs[:, 1] < 0])
    moved = points.copy()
    for plane in (box.points.min(axis=0), box.points.max(axis=0)):
        on = np.abs(points[boundary] - plane) < 0.01 * box.diagonal
        moved[boundary] = np.where(on, plane, moved[boundary])
    spoilt = cell_volumes(moved, tets) < 0.1 * cell_volumes(points, tets)
    moved[tets[spoilt]] = points[tets[spoilt]]
    return moved if (cell_volumes(moved, tets) > 0).all() else points


def _compare(surface: Surface, data: MeshData, step: str, envelope: float) -> list[str]:
    """How the mesh's inside differs from the surface's, in words; an error if a part is lost."""
    inside = data.cells[data.cell_tags == INSIDE]
    if not len(inside):
        raise SolverError(f"surface '{surface.name}': {step} found no inside; {TRY}")
    middles, close = surface.corners.mean(axis=1), NEAR_BY * surface.diagonal
    walls = samples(Surface(data.points, data.interface_facets), close)
    distance, _ = cKDTree(walls).query(middles)
    away = np.flatnonzero(distance > 2 * close + envelope)
    # what lies in the inside is not lost: parts that overlap have become one
    away = np.delete(away, places_in_cells(data.points, inside, middles[away], 0.0)[1])
    lost = surface.areas[away].sum() / surface.areas.sum()
    if lost > LOST:
        before, after = (np.ptp(points, axis=0) for points in
                         (surface.points, data.points[inside].reshape(-1, 3)))
        axis = (before - after).argmax()
        raise SolverError(f"surface '{surface.name}': the mesh has lost {lost:.0%} of its area, up "
                          f"to {distance[away].max():.3g} um away from what is left "
                          f"({before[axis]:.3g} um along {'xyz'[axis]} became {after[axis]:.3g}); "
                          "expected all of it (thin processes need an envelope below their radius)")
    said = []
    mesh, wanted = cell_volumes(data.points, inside).sum(), surface.volume
    if abs(mesh - wanted) > LOST * abs(wanted):
        said.append(f"the inside has {mesh:.4g} um^3, the surface encloses {wanted:.4g}, "
                    "overlaps twice (a smaller envelope follows thin processes better)")
    pieces = _pieces(inside).max() + 1
    bodies = (depths(surface, parts(surface))[0] % 2 == 0).sum()
    if pieces > bodies:
        said.append(f"the inside falls into {pieces} pieces, the surface into {bodies}")
    return said
