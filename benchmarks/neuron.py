"""CPU seconds of signals inside the surface of a neuron, by engine.

    python benchmarks/neuron.py                         # a made-up neuron of about 24,000 triangles
    python benchmarks/neuron.py --surface cell.ply      # another one, in um
    python benchmarks/neuron.py --engines auto --directions 3 64 --csv neuron.csv

Nothing passes the membrane. b is 1000 and 3000 s/mm^2 for each direction, 10/40 ms, D 2 um^2/ms.
Each engine and number of directions is a process of its own, which reads the mesh from a file;
reading is not counted, the estimated error of the mesh is. The error is the largest difference of
S/S0 from signals by bases for each direction to the tolerance ``--reference``.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import trimesh

import spinverse
from spinverse import Acquisition, Tissue, mesh
from spinverse.mesh.isosurface import isosurface
from spinverse.mesh.surfaces import Surface

STEP = 1.9  # um, between the nodes that the shape is sampled at: for 25,500 triangles
BLEND = 0.8  # um, over which parts flow into each other
SOMA, FIRST, LEAST = 10.0, 3.0, 1.6  # um, radii of the soma, of neurites at it and at their ends
NEURITES, LEVELS = 4, 2  # at the soma; how often each branches
LEG, PIECES = 60.0, 5  # um, length between branchings, in so many straight pieces
MARGIN, REACH = 4.0, 8.0  # um, around everything; beyond a part, where nothing is left of it
SMOOTH = 20  # steps of Taubin's smoothing, for triangles that are not thin


def neuron_surface(seed: int = 0) -> Surface:
    """A soma with neurites that bend and branch; closed."""
    random, segments = np.random.default_rng(seed), []

    def grow(point, heading, radius, level):
        for _ in range(PIECES):
            heading = heading + 0.35 * random.normal(size=3)
            heading /= np.linalg.norm(heading)
            thinner = max(LEAST, 0.96 * radius)
            following = point + heading * LEG / PIECES
            segments.append((point, following, radius, thinner))
            point, radius = following, thinner
        if level:
            side = np.cross(heading, random.normal(size=3))
            for sign in (1, -1):
                grow(point, heading + 0.7 * sign * side / np.linalg.norm(side), 0.85 * radius,
                     level - 1)

    for k in range(NEURITES):  # the corners of a tetrahedron
        grow(np.zeros(3), np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)][k]) / 3**0.5,
             FIRST, LEVELS - 1)
    ends = np.array([end for a, b, *_ in segments for end in (a, b)])
    low = ends.min(axis=0) - SOMA - MARGIN
    shape = np.ceil((ends.max(axis=0) + SOMA + MARGIN - low) / STEP).astype(int) + 1
    total = np.zeros(shape)  # of exp(-distance / BLEND)

    def add(distance, centre, reach):
        first = np.maximum(np.floor((centre - reach - low) / STEP).astype(int), 0)
        last = np.minimum(np.ceil((centre + reach - low) / STEP).astype(int) + 1, shape)
        axes = [low[j] + STEP * np.arange(first[j], last[j]) for j in range(3)]
        x = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        total[tuple(map(slice, first, last))] += np.exp(-distance(x) / BLEND)

    add(lambda x: np.linalg.norm(x, axis=-1) - SOMA, np.zeros(3), SOMA + REACH)
    for a, b, start, end in segments:
        def distance(x, a=a, leg=b - a, start=start, end=end):
            share = np.clip((x - a) @ leg / (leg @ leg), 0.0, 1.0)
            return np.linalg.norm(x - a - share[..., None] * leg, axis=-1) - (
                start + share * (end - start))

        add(distance, (a + b) / 2, np.linalg.norm(b - a) / 2 + start + REACH)
    rough = isosurface(-BLEND * np.log(np.maximum(total, 1e-300)), 0.0, low, STEP, "neuron")
    smooth = trimesh.Trimesh(rough.points, rough.triangles, process=False)
    trimesh.smoothing.filter_taubin(smooth, iterations=SMOOTH)
    return Surface(np.array(smooth.vertices), rough.triangles, "neuron")


def table(directions: int) -> Acquisition:
    return Acquisition.pgse(b=[1000, 3000], directions=directions, delta=10, Delta=40)


def child(options) -> dict:
    """Signals by one engine, in this process."""
    tissue = Tissue(mesh.read(options.mesh))
    before = time.process_time()
    signals = spinverse.simulate(tissue, table(options.directions[0]), options.engines[0],
                                 tolerance=options.tolerance)
    return {"CPU s": time.process_time() - before,
            "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "estimate": signals.estimated_error, "mesh": signals.mesh_error,
            "signals": np.abs(signals.normalised).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--surface", default="", help="a file, in um")
    parser.add_argument("--size", type=float, help="longest edges inside, um")
    parser.add_argument("--mesh", default="", help="file of the mesh, made if it is not there")
    parser.add_argument("--engines", nargs="+", default=["auto"])
    parser.add_argument("--directions", type=int, nargs="+", default=[3, 64])
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--reference", type=float, default=0.0, help="its tolerance")
    parser.add_argument("--csv", type=Path, help="file for the rows")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(options.mesh or Path(folder) / "neuron.npz")
        if not file.exists():
            before = time.process_time()
            made = {} if options.surface else {"method": "exact", "repair": False}
            domain = mesh.build(mesh.from_surface, options.surface or neuron_surface(),
                                size=options.size, **made)
            domain.save(file)
            print(f"mesh: {domain.num_cells} tetrahedra, "
                  f"{np.count_nonzero(domain.interface)} triangles, "
                  f"{time.process_time() - before:.0f} CPU s and its mesher's", flush=True)

        def run(engine: str, directions: int, tolerance: float) -> dict:
            done = subprocess.run(
                [sys.executable, __file__, "--child", "--mesh", str(file), "--engines", engine,
                 "--directions", str(directions), "--tolerance", str(tolerance)],
                stdout=subprocess.PIPE, text=True, check=True)
            return json.loads(done.stdout.splitlines()[-1])

        rows = []
        for directions in options.directions:
            exact = None
            if options.reference:
                exact = np.array(run("direction_bases", directions, options.reference)["signals"])
            for engine in options.engines:
                found = run(engine, directions, options.tolerance)
                error = "" if exact is None else (
                    f"{np.abs(np.array(found['signals']) - exact).max():.1e}")
                rows.append({"measurements": 2 * directions, "engine": engine,
                             "CPU s": f"{found['CPU s']:.1f}", "MB": f"{found['MB']:.0f}",
                             "estimated error": f"{found['estimate']:.1e}", "error": error,
                             "of the mesh": f"{found['mesh']:.1e}"})
                print(rows[-1], flush=True)
    if options.csv:
        with options.csv.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
