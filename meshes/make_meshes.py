"""Make the meshes of this folder: ``python make_meshes.py [--out DIR]``."""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from spinverse.mesh.builders import disks, intervals, l_cell, spheres, tagged_grid
from spinverse.mesh.checks import cell_volumes, facets_of, find_facets, quality
from spinverse.mesh.data import MeshData
from spinverse.mesh.images import from_labels
from spinverse.mesh.readers import write_msh, write_npz
from spinverse.mesh.shapes import Ball

BALL = Ball(radius=10.0)
SIDE = 26.667  # um, as in the published benchmark


def meshes() -> dict[str, MeshData]:
    """File name to mesh."""
    return {
        "sphere_in_grid_bcc.npz": tagged_grid(BALL, SIDE, cells=4),
        "sphere_in_grid_gmsh.npz": tagged_grid(BALL, SIDE, size=5.0, pattern="gmsh"),
        "stack.npz": intervals([2, 4, 9], size=0.5),
        "axon.npz": disks([2.0, 2.8, 5.0], size=[0.8, 0.8, 1.2]),
        "two_cells.npz": from_labels(two_cells(), voxel_size=1.0),
        "ball_in_ball.msh": spheres([3, 5], size=2.0),
        "l_cell.node": l_cell(4.0),
    }


def two_cells() -> np.ndarray:
    """Labels of two round cells with a common wall, voxels of 1 um."""
    x, y, z = np.indices((14, 8, 8)) + 0.5
    labels = np.zeros((14, 8, 8), int)
    labels[(x - 4) ** 2 + (y - 4) ** 2 + (z - 4) ** 2 < 3.6**2] = 1
    labels[((x - 10) ** 2 + (y - 4) ** 2 + (z - 4) ** 2 < 3.6**2) & (labels == 0)] = 2
    return labels


def write(path: Path, data: MeshData) -> None:
    """In the format of the suffix; TetGen's three files have one name."""
    if path.suffix == ".npz":
        write_npz(path, data)
    elif path.suffix == ".msh":
        write_msh(path, data)
    else:
        tables = {".node": ([len(data.points), 3, 0, 0], data.points),
                  ".ele": ([len(data.cells), 4, 1],
                           np.column_stack([data.cells, data.cell_tags])),
                  ".face": ([len(data.interface_facets), 1],
                            np.column_stack([data.interface_facets, data.interface_tags]))}
        for suffix, (header, rows) in tables.items():
            lines = [" ".join(map(str, header))]
            lines += [f"{k} " + " ".join(f"{v:.10g}" for v in row) for k, row in enumerate(rows)]
            path.with_suffix(suffix).write_text("\n".join(lines) + "\n")


def facts(data: MeshData) -> dict:
    """What a user wants to know of a mesh whose inside has tag 1.

    Returns:
        ``vertices``, ``cells``, ``facets``, ``outer`` (facets), ``volume`` (um^d),
        ``inside`` (cells tagged 1) and their ``inside_volume``, ``interface`` (facets) and
        how many of them are outer, ``touching``; face-connected ``parts`` of the inside and
        of the ``outside_parts``; ``bad_edges`` of the interface (not shared by two of its
        facets); ``quality``, the lowest radius ratio.
    """
    facets, pairs = facets_of(data.cells)
    volumes = cell_volumes(data.points, data.cells)
    inside = data.cell_tags == 1
    place = find_facets(facets, data.interface_facets)
    rim = [list(rest) for rest in combinations(range(data.dim), data.dim - 1)]
    edges = data.interface_facets[:, rim].reshape(len(place) * data.dim, data.dim - 1)
    degree = np.unique(edges, axis=0, return_counts=True)[1] if data.dim > 1 else np.array([2])
    return {
        "vertices": len(data.points), "cells": len(data.cells), "facets": len(facets),
        "outer": int((pairs[:, 1] < 0).sum()), "volume": float(volumes.sum()),
        "inside": int(inside.sum()), "inside_volume": float(volumes[inside].sum()),
        "interface": len(place), "touching": int((pairs[place, 1] < 0).sum()),
        "parts": _parts(pairs, inside), "outside_parts": _parts(pairs, ~inside),
        "bad_edges": int((degree != 2).sum()), "quality": float(quality(data).min()),
    }


def _parts(pairs: np.ndarray, chosen: np.ndarray) -> int:
    """Number of face-connected parts of the chosen cells."""
    links = pairs[pairs[:, 1] >= 0]
    links = links[chosen[links].all(axis=1)]
    graph = coo_matrix((np.ones(len(links)), links.T), shape=(len(chosen),) * 2)
    _, label = connected_components(graph, directed=False)
    return len(np.unique(label[chosen]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent,
                        help="folder to write to (default: the script's own)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, data in meshes().items():
        path = out / name
        write(path, data)
        print(f"{name} ({path.stat().st_size / 1000:.0f} kB): "
              + ", ".join(f"{key} {value:.6g}" for key, value in facts(data).items()))


if __name__ == "__main__":
    main()
