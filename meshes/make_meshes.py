"""Make the meshes of this folder: ``python make_meshes.py [--out DIR]``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from spinverse.mesh.builders import tagged_grid
from spinverse.mesh.checks import cell_volumes, facets_of, find_facets, quality
from spinverse.mesh.data import MeshData
from spinverse.mesh.readers import write_npz
from spinverse.mesh.shapes import Ball

BALL = Ball(radius=10.0)
SIDE = 26.667  # um, as in the published benchmark


def meshes() -> dict[str, MeshData]:
    """File stem to mesh."""
    return {
        "sphere_in_grid_bcc": tagged_grid(BALL, SIDE, cells=4),
        "sphere_in_grid_gmsh": tagged_grid(BALL, SIDE, size=5.0, pattern="gmsh"),
    }


def facts(data: MeshData) -> dict:
    """What a user wants to know of a tagged grid.

    Returns:
        ``vertices``, ``cells``, ``facets``, ``outer`` (facets), ``volume`` (um^3),
        ``inside`` (cells tagged 1) and their ``inside_volume``, ``interface`` (facets) and
        how many of them are outer, ``touching``; face-connected ``parts`` of the inside and
        of the ``outside_parts``; ``bad_edges`` of the interface (not shared by two of its
        facets); ``quality``, the lowest radius ratio.
    """
    facets, pairs = facets_of(data.cells)
    volumes = cell_volumes(data.points, data.cells)
    inside = data.cell_tags == 1
    place = find_facets(facets, data.interface_facets)
    edges = data.interface_facets[:, [[0, 1], [0, 2], [1, 2]]].reshape(-1, 2)
    _, degree = np.unique(edges, axis=0, return_counts=True)
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
    for stem, data in meshes().items():
        path = out / f"{stem}.npz"
        write_npz(path, data)
        print(f"{path.name} ({path.stat().st_size / 1000:.0f} kB): "
              + ", ".join(f"{key} {value:.6g}" for key, value in facts(data).items()))


if __name__ == "__main__":
    main()
