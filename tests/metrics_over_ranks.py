"""Metrics and surfaces on several ranks: run under mpiexec by `test_no_gathers_metrics`.

Prints as JSON what all ranks and what one alone find on a mesh of 20000 cells, with the peaks of
memory of every rank, and on meshes so small that ranks own nothing.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from mpi4py import MPI
from peaks import peak

from spinverse import mesh as meshes
from spinverse.interface import write_compartment, write_ply, write_stl
from spinverse.interface.metrics import metrics
from spinverse.mesh.connected import connected_cells
from spinverse.mesh.data import MeshData


def random(mesh):
    """Numbers in [0, 1) that know the facet and not the rank, ``(nf,)``."""
    return np.sin(mesh.facet_vertices @ [12.9898, 78.233, 37.719]) * 43758.5453 % 1.0


def content(comm, path):
    """Of a file, on rank 0; without a header, which says the time."""
    return path.read_bytes().split(b"end_header\n")[-1].hex() if comm.rank == 0 else None


def large(comm, folder):
    """A small ball in a fine grid; found with holes and false facets."""
    mesh = meshes.build(meshes.tagged_grid, shape=meshes.Ball(3.0), length=20.0, cells=12,
                        comm=comm)
    true = mesh.interface > 0
    near = np.linalg.norm(mesh.facet_corners.mean(axis=1), axis=1) < 6.0
    found = np.where(true, random(mesh) < 0.95, near & (random(mesh) > 0.98))
    kappa = np.where(found, 0.1, 100.0) * 10 ** (2 * random(mesh) - 1)
    # what a mesh makes once, and what a first call imports
    assert mesh.facet_cells.shape[1] == 2 and len(mesh.cell_volumes) == len(mesh.input_cells)
    write_stl(folder / "none.stl", mesh, np.zeros_like(found))
    result, first = peak(lambda: metrics(mesh, found, kappa, ~mesh.outer, "reflecting"))
    path = folder / "found.stl"
    _, second = peak(lambda: write_stl(path, mesh, found))
    return {"cells": mesh.num_cells, "metrics": result, "stl": content(comm, path)}, [first, second]


def tets(number):
    """One tetrahedron, or two with a membrane between them."""
    points = [[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2], [2, 2, 2]]
    return MeshData(points[: 3 + number], [[0, 1, 2, 3], [1, 2, 3, 4]][:number],
                    interface_facets=[[1, 2, 3]], name="tets")


def few(mesh, folder, share):
    """What is found, written and connected where that share of the facets is found."""
    comm, owned = mesh.comm, mesh.num_owned_cells
    found = random(mesh) < share
    kappa = np.where(found, 0.1, 10.0) * (1 + np.round(2 * random(mesh)))
    results = [metrics(mesh, found, kappa, (boundary == "absorbing") | ~mesh.outer, boundary)
               for boundary in ("absorbing", "reflecting")]
    labels = mesh.input_cells[:owned] % 2
    write_stl(folder / "a.stl", mesh, found)
    write_stl(folder / "b.stl", mesh, found, labels)
    write_ply(folder / "c.ply", mesh, found)
    write_compartment(folder / "d.ply", mesh, labels, 0)
    results += [content(comm, folder / name) for name in ("a.stl", "b.stl", "c.ply", "d.ply")]
    sets = connected_cells(mesh, ~found)[:owned].tolist()
    results.append(sorted(sum(comm.allgather(
        list(zip(mesh.input_cells[:owned].tolist(), sets, strict=True))), [])))
    return results


def small(comm, folder):
    """`few` of one cell, two and twelve; and the fewest cells and facets that a rank owns."""
    results, fewest = [], []
    for build, arguments in ((tets, {"number": 1}), (tets, {"number": 2}),
                             (meshes.slabs, {"thicknesses": [2.0, 2.0], "cells_per_layer": 1})):
        mesh = meshes.build(build, comm=comm, **arguments)
        fewest.append([min(comm.allgather(n))
                       for n in (mesh.num_owned_cells, mesh.num_owned_facets)])
        results += [few(mesh, folder, share) for share in (0.0, 0.5, 1.0)]
    return results, fewest


if __name__ == "__main__":
    world = MPI.COMM_WORLD
    with tempfile.TemporaryDirectory() as own:
        folder = Path(world.bcast(own, root=0))
        together, peaks = large(world, folder)
        together["small"], fewest = small(world, folder)
        peaks = world.gather(peaks, root=0)
        if world.rank == 0:
            alone, alone_peaks = large(MPI.COMM_SELF, folder)
            alone["small"], _ = small(MPI.COMM_SELF, folder)
            print(json.dumps({"together": together, "alone": alone, "peaks": peaks,
                              "alone_peaks": alone_peaks, "fewest": fewest}))
        world.Barrier()
