"""spinverse beside dmipy-sim on the same geometries: error against exact values over CPU seconds.

    python benchmarks/peers.py -o DIR --peer-python PATH [--cases closed_sphere ...]
    python benchmarks/peers.py -o DIR                    # ours alone

`pip install 'spinverse[peers]'` has the peer (JAX on the CPU); it may live in an environment of its
own, whose Python is given. Each of its runs is a process (`peer_walk.py`). PGSE of 10/20 ms,
gradient along x, D = 2 um^2/ms, b = 1000, 2000, 4000 s/mm^2. The error is the largest of
|E - exact| over b: of the peer the root mean square over seeds. CPU seconds of all threads: ours
with the mesh, the peer's without compilation. Writes peers.csv and peers.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spinverse import Acquisition, Permeability, Tissue, mesh, simulate
from spinverse.mesh.packing import pack
from spinverse.validation import analytic
from spinverse.validation.references import LATTICE

B, DELTA, SEPARATION, D, X = (1000.0, 2000.0, 4000.0), 10.0, 20.0, 2.0, (1.0, 0.0, 0.0)
SPHERES, SHARE = (4.5, 4.0, 3.5, 3.0), 0.3
#: Four packed spheres: P2 at 1.5, 1.2 and 0.9 um, which fall on a line in the square of the size,
#: extrapolated; to 5e-5.
FOUR_SPHERES = (0.39775, 0.27391, 0.21472)


@dataclass(frozen=True)
class Case:
    """A geometry.

    Attributes:
        exact: signals over `B`, or what gives them.
        build: mesh of a size.
        sizes: um, and degrees ("auto": what is chosen); round walls are curved from degree 2 on.
        kappa: of its membranes, um/ms.
        peer: what `peer_walk.geometry_of` reads; walkers of its runs.
    """

    exact: Callable[[], np.ndarray]
    build: Callable
    sizes: tuple[tuple[float, int | str], ...]
    peer: dict
    walkers: tuple[int, ...]
    kappa: float = 0.0
    periodic: str = ""


def closed(shape: Callable, length: float) -> Callable[[], np.ndarray]:
    return lambda: shape(B, DELTA, SEPARATION, length, D)


def shells(shape: Callable, radii, kappa: float) -> Callable[[], np.ndarray]:
    return lambda: shape(B, DELTA, SEPARATION, radii, [kappa], D)


def box_of_spheres() -> tuple[float, list]:
    """Length and centres of the four, as the builder has them."""
    length = float((4 / 3 * np.pi * np.sum(np.array(SPHERES)**3) / SHARE) ** (1 / 3))
    radii = np.array(SPHERES)
    centres = pack("packed_spheres", radii, np.full(3, length), radii.mean() / 10, 0, True)
    return length, centres.tolist()


def cases() -> dict[str, Case]:
    length, centres = box_of_spheres()
    few, many = (1000, 10_000, 100_000), (1000, 4000, 16_000)
    return {
        "closed slab": Case(
            closed(analytic.slab, 10.0), lambda size: (mesh.intervals, dict(
                thicknesses=[10.0], size=size)), ((1.0, 1), (0.25, 1), (0.5, 2)),
            {"kind": "slab", "length": 10.0}, few),
        "closed cylinder": Case(
            closed(analytic.cylinder, 5.0), lambda size: (mesh.disks, dict(
                radii=[5.0], size=size)), ((1.0, 1), (0.5, 1), (1.0, 2)),
            {"kind": "cylinder", "radii": [5.0]}, few),
        "closed sphere": Case(
            closed(analytic.sphere, 5.0), lambda size: (mesh.spheres, dict(
                radii=[5.0], size=size)), ((1.5, 1), (1.0, 1), (2.5, 2)),
            {"kind": "sphere", "radii": [5.0]}, few),
        "permeable slab": Case(
            lambda: analytic.slabs(B, DELTA, SEPARATION, [10.0, 10.0], [0.02], D),
            lambda size: (mesh.intervals, dict(thicknesses=[10.0, 10.0], size=size)),
            ((1.0, 1), (0.25, 1), (0.5, 2)), {"kind": "slab", "length": 20.0}, many, 0.02),
        "permeable cylinder": Case(
            shells(analytic.cylinders, [5.0, 10.0], 0.02), lambda size: (mesh.disks, dict(
                radii=[5.0, 10.0], size=size)), ((1.0, 1), (0.5, 1), (0.8, 2)),
            {"kind": "cylinder", "radii": [5.0, 10.0]}, many, 0.02),
        "permeable sphere": Case(
            shells(analytic.spheres, [5.0, 8.0], 0.02), lambda size: (mesh.spheres, dict(
                radii=[5.0, 8.0], size=size)), ((2.0, 1), (3.5, 2), (2.5, 2)),
            {"kind": "sphere", "radii": [5.0, 8.0]}, many[:2], 0.02),
        "lattice of permeable spheres": Case(
            lambda: np.array([LATTICE[0.01][b] for b in B]), lambda size: (
                mesh.packed_spheres, dict(radii=(4.0,), box=(10.0,) * 3, periodic=True, size=size)),
            ((2.0, "auto"), (1.5, "auto"), (1.2, "auto")),
            {"kind": "packed_spheres", "radii": [4.0], "centres": [[0, 0, 0]], "length": 10.0},
            many[:2], 0.01, "xyz"),
        "four packed spheres": Case(
            lambda: np.array(FOUR_SPHERES), lambda size: (mesh.packed_spheres, dict(
                radii=SPHERES, volume_fraction=SHARE, periodic=True, size=size)),
            ((2.5, 2), (1.5, 2)),
            {"kind": "packed_spheres", "radii": list(SPHERES), "centres": centres,
             "length": length}, many[:1], 0.01, "xyz"),
        "square array of permeable cylinders": Case(
            _array, lambda size: (mesh.packed_cylinders, dict(
                height=1.0, radii=(3.0,), box=(8.0, 8.0), periodic=True, size=size)),
            ((1.5, "auto"), (0.8, "auto")),
            {"kind": "packed_cylinders", "radii": [3.0], "centres": [[0, 0]], "length": 8.0},
            many[:1], 0.01, "xyz")}


def ours(case: Case, size: float, degree: int | str) -> tuple[np.ndarray, float]:
    """Signals, and CPU seconds with the mesh."""
    began = time.process_time()
    builder, arguments = case.build(size)
    if degree != 1 and builder is not mesh.intervals:
        arguments |= {"order": 2}
    made = mesh.build(builder, **arguments)
    known = bool(made.interface.any())
    tissue = Tissue(made, D, permeability=Permeability.on(
        made, membrane=case.kappa if known else None), periodic=case.periodic)
    found = simulate(tissue, Acquisition.pgse([0, *B], X, DELTA, SEPARATION), degree=degree,
                     mesh_error=bool(case.periodic))
    return found.normalised[1:], time.process_time() - began


def _array() -> np.ndarray:
    """P2 at 0.4 and 0.2 um, extrapolated in the square of the size; to 2e-5."""
    case = cases()["square array of permeable cylinders"]
    coarse, fine = (ours(case, size, 2)[0] for size in (0.4, 0.2))
    return fine + (fine - coarse) / 3


def peer(case: Case, python: str, walkers: int, steps: int, seed: int) -> tuple[np.ndarray, float]:
    asked = {**case.peer, "permeability": case.kappa, "b": B, "delta": DELTA,
             "Delta": SEPARATION, "diffusivity": D, "steps": steps, "walkers": walkers,
             "seed": seed}
    done = subprocess.run(
        [python, str(Path(__file__).with_name("peer_walk.py"))], input=json.dumps(asked),
        capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    if done.returncode:
        raise SystemExit(f"dmipy-sim: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return np.array(found["signals"]), found["seconds"]


def rows_of(name: str, case: Case, asked: argparse.Namespace) -> list[dict]:
    exact, found = np.asarray(case.exact()), []

    def add(who: str, how: str, errors: list[np.ndarray], seconds: float) -> None:
        error = float(np.sqrt(np.mean(np.square(errors), axis=0)).max())
        found.append({"geometry": name, "by": who, "how": how, "error of E": f"{error:.1e}",
                      "CPU s": f"{seconds:.2f}"})
        print(*found[-1].values(), sep=", ", flush=True)

    for size, degree in case.sizes:
        ours(case, size, degree)  # forms are compiled once
        signals, seconds = ours(case, size, degree)
        add("spinverse", f"{size:g} um, " + (f"P{degree}" if degree != "auto" else "auto"),
            [signals - exact], seconds)
    for walkers in case.walkers if asked.peer_python else ():
        results = [peer(case, asked.peer_python, walkers, asked.steps, seed + 1)
                   for seed in range(asked.seeds)]
        add("dmipy-sim", f"{walkers} walkers, {asked.steps} steps",
            [signals - exact for signals, _ in results], float(np.mean([s for _, s in results])))
    return found


def figure(rows: list[dict], path: Path) -> None:
    """Error over CPU seconds, a panel for each geometry."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["geometry"] for row in rows))
    columns = 3
    drawn, panels = plt.subplots(-(-len(names) // columns), columns, figsize=(9, 8), sharex=True,
                                 sharey=True, squeeze=False, layout="constrained")
    for panel, name in zip(panels.flat, names, strict=False):
        for who, marker in (("spinverse", "o-"), ("dmipy-sim", "s--")):
            points = sorted((float(row["CPU s"]), float(row["error of E"])) for row in rows
                            if row["geometry"] == name and row["by"] == who)
            if points:
                panel.loglog(*zip(*points, strict=True), marker, label=who)
        panel.set_title(name, fontsize=9)
        panel.axhline(1e-3, color="0.7", lw=0.8)
    for panel in panels.flat[len(names):]:
        panel.set_axis_off()
    panels[0, 0].legend()
    drawn.supxlabel("CPU seconds")
    drawn.supylabel("largest error of E, b up to 4000 s/mm²")
    drawn.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--peer-python", help="a Python that has dmipy-sim; ours alone without")
    parser.add_argument("--cases", nargs="+", help="names of geometries; all if not given")
    parser.add_argument("--steps", type=int, default=300, help="of the peer's waveforms")
    parser.add_argument("--seeds", type=int, default=2, help="the peer's runs of each kind")
    asked = parser.parse_args()
    known = cases()
    for name in asked.cases or ():
        if name not in known:
            parser.error(f"--cases: {name!r}, expected some of {', '.join(known)}")
    asked.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    for name in asked.cases or known:
        rows += rows_of(name, known[name], asked)
        with (asked.output / "peers.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    figure(rows, asked.output / "peers.png")


if __name__ == "__main__":
    sys.exit(main())
