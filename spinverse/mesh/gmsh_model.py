"""A gmsh session: a fresh model, the mesh of it as arrays, matching opposite faces."""

from __future__ import annotations

import ctypes
import threading
from contextlib import contextmanager

import numpy as np
from scipy.optimize import linear_sum_assignment

from spinverse.errors import InputError, SolverError, one_line

FRONTAL_DELAUNAY, DELAUNAY = 6, 5  # gmsh's surface meshers
TIMEOUT = 1800.0  # s that gmsh may take for one mesh; it can be set by the caller
_busy: list[str] = []  # what gmsh was left with; it cannot be stopped


@contextmanager
def model(name: str, size: float, smallest: float | None = None,
          algorithm: int = FRONTAL_DELAUNAY):
    """A fresh gmsh model; closes gmsh again, or leaves the caller's session as it was.

    Args:
        size, smallest: largest and smallest target edge length, um; ``None``: as the largest.
        algorithm: of gmsh for surfaces.

    Raises:
        InputError: gmsh is not installed.
        SolverError: gmsh raised inside the block, or has not ended since an earlier one.
    """
    if _busy:
        raise SolverError(f"{name}: gmsh is still busy with {_busy[0]}, which took too long; "
                          "expected a new process")
    try:
        import gmsh
    except (ImportError, OSError) as error:
        raise InputError(f"{name}: gmsh cannot be imported ({str(error).splitlines()[0]}), "
                         "expected the extra: pip install 'spinverse[mesh]'") from None
    # without a lower limit gmsh takes a tenth of the model's diagonal where that is less
    options = {"General.Terminal": 0, "General.NumThreads": 1, "Mesh.MeshSizeMax": size,
               "Mesh.MeshSizeMin": smallest or size, "Mesh.Algorithm": algorithm,
               "Mesh.Algorithm3D": 1, "Mesh.Optimize": 1, "Mesh.OptimizeNetgen": 1,
               "Mesh.RandomSeed": 1, "Mesh.ElementOrder": 1, "Mesh.MeshSizeExtendFromBoundary": 1}
    shared = bool(gmsh.isInitialized())
    if not shared:
        gmsh.initialize(["spinverse", "-v", "0"], readConfigFiles=False, interruptible=False)
    before = {key: gmsh.option.getNumber(key) for key in options}
    current = gmsh.model.getCurrent() if shared else None
    try:
        for key, value in options.items():
            gmsh.option.setNumber(key, value)
        gmsh.model.add(f"spinverse {name}")
        yield gmsh
    except Exception as error:
        if type(error) is not Exception:  # gmsh raises the bare class
            raise
        raise SolverError(f"{name}: gmsh could not mesh it ({one_line(error)})") from None
    finally:
        if shared and not _busy:
            gmsh.model.remove()
            gmsh.model.setCurrent(current)
            for key, value in before.items():
                gmsh.option.setNumber(key, value)
        elif not _busy:
            gmsh.finalize()


def arrays(gmsh, name: str, dim: int = 3, again: bool = False,
           target=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mesh the model: points, cells (tets or triangles) and each cell's gmsh entity.

    Args:
        again: optimise tets once more, which rids narrow gaps of the worst.
        target: ``target(point (3,)) -> um`` says the edge length, clipped to the model's limits.

    Raises:
        SolverError: gmsh left a part of the geometry without cells, or took longer than TIMEOUT.
    """
    if target is not None:
        # else the fine edges of a boundary reach far inside
        gmsh.option.setNumber("Mesh.MeshSizeExtendFromBoundary", 0)
        gmsh.model.mesh.setSizeCallback(
            lambda _dim, _tag, x, y, z, _size: float(target(np.array([x, y, z]))))

    def make():
        gmsh.model.mesh.generate(dim)
        if again and dim == 3:
            gmsh.model.mesh.optimize("", niter=3)

    _in_time(name, make)
    numbers, coordinates, _ = gmsh.model.mesh.getNodes()
    entities = [entity for _, entity in gmsh.model.getEntities(dim)]
    nodes = [gmsh.model.mesh.getElementsByType({2: 2, 3: 4}[dim], entity)[1]
             for entity in entities]
    counts = [len(part) // (dim + 1) for part in nodes]
    if not counts or 0 in counts:
        where = f" in part {entities[counts.index(0)]} of the geometry" if counts else ""
        raise SolverError(f"{name}: gmsh made no cells{where} (try a smaller size)")
    place = np.zeros(int(max(numbers)) + 1, np.int64)
    place[np.asarray(numbers, np.int64)] = np.arange(len(numbers))
    used, cells = np.unique(place[np.concatenate(nodes).astype(np.int64)], return_inverse=True)
    points = np.asarray(coordinates, float).reshape(-1, 3)[used]
    return points, cells.reshape(-1, dim + 1), np.repeat(entities, counts)


def _in_time(name: str, make) -> None:
    """Run ``make`` in a thread, for gmsh's calls cannot be interrupted, and wait for its end."""
    errors: list[BaseException] = []

    def run():
        try:
            make()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name=f"gmsh {name}", daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    if thread.is_alive():
        _busy.append(name)
        # When this process ends, C++ destructors would take the data from under the thread, which
        # now and then is a segmentation fault. glibc hands the exit code to _exit, which calls none
        libc = ctypes.CDLL(None)
        if hasattr(libc, "on_exit"):
            libc.on_exit(libc._exit, None)
        raise SolverError(f"{name}: gmsh made no mesh in {TIMEOUT:g} s (try a larger size, or a "
                          "simpler geometry)")
    if errors:
        raise errors[0]


def match_opposite(gmsh, name: str, lengths: np.ndarray, dim: int = 3) -> None:
    """Make the mesh of each face of a box centred at the origin a copy of the opposite one's.

    Faces are paired by the bounding boxes of their parts, moved by the ``lengths (3,)`` um of the
    box, of which the first ``dim`` count.

    Raises:
        SolverError: opposite faces are cut into different parts.
    """
    tags = np.array([tag for _, tag in gmsh.model.getEntities(dim - 1)])
    bounds = np.reshape([gmsh.model.getBoundingBox(dim - 1, tag) for tag in tags], (-1, 2, 3))
    # OCC widens bounding boxes by 1e-7 of its own
    near = max(1e-5 * float(np.max(lengths[:dim])), 1e-6)
    for axis in range(dim):
        shift = np.zeros(3)
        shift[axis] = lengths[axis]
        low, high = (np.flatnonzero(np.abs(bounds[:, :, axis] - side * lengths[axis] / 2)
                                    .max(axis=1) < near) for side in (-1, 1))
        gap = np.abs(bounds[low][:, None] + shift - bounds[high][None]).max(axis=(2, 3))
        rows, partner = linear_sum_assignment(gap)
        if len(low) != len(high) or (gap[rows, partner] > near).any():
            raise SolverError(f"{name}: the faces across axis {'xyz'[axis]} are cut into "
                              f"{len(low)} and {len(high)} parts that do not match, expected a "
                              "periodic geometry (try another seed)")
        affine = np.eye(4)
        affine[:3, 3] = shift
        gmsh.model.mesh.setPeriodic(dim - 1, tags[high[partner]].tolist(), tags[low].tolist(),
                                    affine.ravel().tolist())
