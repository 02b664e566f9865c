"""What acquisitions tell of the wall, volume and surface to volume of a cell, at SNR 50.

    python benchmarks/tells.py [output.csv]

The 90 % intervals at the true shape and permeability of a sphere (grid and boundary of the
published benchmark, absorbing), the shape's own uncertainty carried along: no search is run.
"""

from __future__ import annotations

import csv
import sys

import numpy as np
from mpi4py import MPI

from spinverse import Acquisition, Permeability, Tissue, simulate
from spinverse.benchmark import targets
from spinverse.benchmark.runs import ACQUISITIONS, ELSEWHERE
from spinverse.config.acquisition import AcquisitionSection
from spinverse.inversion.problem import InverseProblem
from spinverse.inversion.shapes.cell_table import cell_table
from spinverse.mesh.distributed import Mesh

WALLS = 0.001, 0.01, 0.05, 0.1, 0.5  # um/ms
SIGMA = 0.02  # of |S(b = 0)|


def main() -> None:
    target = targets.own("sphere")
    mesh = Mesh.from_data(target.data, MPI.COMM_WORLD)
    tags = mesh.cell_tags[: mesh.num_owned_cells]
    labels = (tags > target.data.cell_tags.min()).astype(np.int32)
    rows = []
    for name in ("published", "ogse"):
        table = Acquisition.concatenate([
            AcquisitionSection.model_validate({kind: keys}, context={"folder": "."}).table()
            for kind, keys in ACQUISITIONS[name].items()])
        for wall in WALLS:
            permeability = Permeability.on(mesh, membrane=wall, elsewhere=ELSEWHERE,
                                           outer=ELSEWHERE)
            signals = simulate(Tissue(mesh, permeability=permeability), table)
            problem = InverseProblem(mesh, signals, boundary="absorbing", noise=SIGMA)
            row = cell_table(problem, labels, {"wall_permeability": wall}).rows[0]
            rows.append({"acquisition": name, "wall": wall} | {
                quantity: f"{row[quantity]}" for quantity in (
                    "permeability", "volume", "surface_to_volume")})
            print(rows[-1], flush=True)
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
