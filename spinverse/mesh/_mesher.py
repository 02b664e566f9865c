"""Tetrahedra from surfaces, run as a program of its own: python _mesher.py IN.npz OUT.npz SECONDS.

The libraries may hang or crash on a surface they cannot mesh, and MPI may not be started twice, so
the caller runs this file by its path: it imports nothing of spinverse.

IN holds ``method``, ``points``, ``triangles`` of the cell surface, ``outer_points`` and
``outer_triangles`` (empty: nothing outside is meshed), and the method's options. OUT holds
``points``, ``tets``, ``tags`` (1 inside, 2 outside), or ``error``.
"""

import json
import signal
import sys

import numpy as np


def exact(job) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Delaunay tetrahedra of gmsh that keep every triangle.

    ``shells`` numbers the part of each triangle; ``volumes`` has rows (volume, tag, part), one
    for each part that bounds the volume, with part -1 for the outer surface.
    """
    import gmsh

    gmsh.initialize(["mesher", "-v", "2"], readConfigFiles=False, interruptible=False)
    for key, value in {"General.NumThreads": 1, "Mesh.Algorithm3D": 1, "Mesh.RandomSeed": 1,
                       "Mesh.Optimize": 1, "Mesh.MeshSizeMax": float(job["size"])}.items():
        gmsh.option.setNumber(key, value)
    points = np.concatenate([job["points"], job["outer_points"]])
    triangles = np.concatenate([job["triangles"], job["outer_triangles"] + len(job["points"])])
    shells = np.concatenate([job["shells"], np.full(len(job["outer_triangles"]), -1)])
    gmsh.model.add("surface")
    loops = {}
    for shell in np.unique(shells):
        rows = triangles[shells == shell]
        entity = gmsh.model.addDiscreteEntity(2)
        nodes = np.unique(rows)
        gmsh.model.mesh.addNodes(2, entity, nodes + 1, points[nodes].ravel())
        gmsh.model.mesh.addElementsByType(entity, 2, [], (rows + 1).ravel())
        loops[int(shell)] = gmsh.model.geo.addSurfaceLoop([entity])
    volumes = {}
    for number in np.unique(job["volumes"][:, 0]):
        rows = job["volumes"][job["volumes"][:, 0] == number].tolist()
        volume = gmsh.model.geo.addVolume([loops[shell] for _, _, shell in rows])
        volumes[volume] = rows[0][1]
    gmsh.model.geo.synchronize()
    gmsh.model.mesh.generate(3)
    numbers, coordinates, _ = gmsh.model.mesh.getNodes()
    place = np.zeros(int(max(numbers)) + 1, np.int64)
    place[np.asarray(numbers, np.int64)] = np.arange(len(numbers))
    found = [gmsh.model.mesh.getElementsByType(4, volume)[1] for volume in volumes]
    counts = [len(nodes) // 4 for nodes in found]
    if not all(counts):
        raise RuntimeError(f"gmsh made no tetrahedra in volume {counts.index(0) + 1}")
    tets = place[np.concatenate(found).astype(np.int64)].reshape(-1, 4)
    return np.reshape(coordinates, (-1, 3)), tets, np.repeat(list(volumes.values()), counts)


def envelope(job) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tetrahedra of fTetWild, whose surface stays within ``envelope`` um of the triangles."""
    import wildmeshing

    points, triangles = job["points"], job["triangles"].astype(np.int32)
    outer = job["outer_points"]
    diagonal = np.linalg.norm(np.ptp(np.concatenate([points, outer]), axis=0))
    mesher = wildmeshing.Tetrahedralizer(
        epsilon=float(job["envelope"]) / diagonal,
        edge_length_r=min(float(job["size"]) / diagonal, 1.0), max_threads=1, coarsen=False)
    mesher.set_log_level(4)
    if not len(outer):
        mesher.set_mesh(points, triangles)
        mesher.tetrahedralize()
        found, tets = mesher.get_tet_mesh()[:2]
        return found, np.asarray(tets, np.int64), np.ones(len(tets), np.int64)
    mesher.set_meshes([points, outer], [triangles, job["outer_triangles"].astype(np.int32)])
    mesher.tetrahedralize()
    found, tets = [], []
    for operation, left, right in (("intersection", 0, 1), ("difference", 1, 0)):
        tree = json.dumps({"operation": operation, "left": left, "right": right})
        part = mesher.get_tet_mesh_from_csg(tree)
        tets.append(np.asarray(part[1], np.int64) + sum(map(len, found)))
        found.append(part[0])
    tags = np.repeat([1, 2], [len(part) for part in tets])
    # both parts have their own copy of the vertices between them, equal to the last bit
    found, place = np.unique(np.concatenate(found), axis=0, return_inverse=True)
    return found, place.ravel()[np.concatenate(tets)], tags


def main(source: str, target: str, seconds: str) -> None:
    signal.alarm(int(float(seconds)) + 2)  # if the caller is gone
    with np.load(source) as file:
        job = dict(file)
    try:
        points, tets, tags = {"exact": exact, "envelope": envelope}[str(job["method"])](job)
    except Exception as error:  # the libraries raise whatever they like
        np.savez(target, error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return
    np.savez(target, points=points, tets=tets, tags=tags)


if __name__ == "__main__":
    main(*sys.argv[1:])
