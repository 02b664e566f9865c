"""One evaluation on a body-centred grid, as a process of its own: prints a line of JSON.

    python benchmarks/one_case.py --cells 8
    mpiexec -n 2 python benchmarks/one_case.py --cells 15 --tied

A ball of radius 8 um in a cube of 26.667 um; ``--cells`` are the cubes along each side, of twelve
tetrahedra each. 180 measurements: 10/60 ms, 6 b, 30 directions. Open: membrane 0.01 um/ms, all
other facets 100 um/ms and unknown too. Tied: all other facets tied, the membrane's unknown.
Seconds are of the slowest rank; memory is the operating system's account of each rank's peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time

import numpy as np

import spinverse
from spinverse import Acquisition, BlochTorrey, Permeability, Tissue, mesh
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.phases import phase, recorded


def options(argv=None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0],
                                     epilog="what follows -- are PETSc options")
    parser.add_argument("--cells", type=int, default=8, help="cubes along each side")
    parser.add_argument("--modes", type=int, default=200)
    parser.add_argument("--tied", action="store_true", help="known interface, the rest tied")
    parser.add_argument("--engine", default="matrix_formalism")
    parser.add_argument("--directions", type=int, default=30)
    parser.add_argument("--time-step", type=float, default=0.5, help="ms, of time stepping")
    parser.add_argument("--forward-only", action="store_true")
    words = list(sys.argv[1:] if argv is None else argv)
    petsc = words[words.index("--") + 1:] if "--" in words else []
    return parser.parse_args(words[: words.index("--")] if "--" in words else words), petsc


def main() -> None:
    arguments, petsc = options()
    from petsc4py import PETSc

    PETSc.Options().insertString(" ".join(petsc))
    if "-log_view" in petsc:  # PETSc looks for it when it starts
        PETSc.Log.begin()
    wall = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with recorded() as record:
        with phase("mesh"):
            grid = mesh.build(mesh.tagged_grid, shape=mesh.Ball(8), length=26.667,
                              cells=arguments.cells)
        with phase("set-up"):
            elsewhere = np.inf if arguments.tied else 100.0
            permeability = Permeability.on(grid, membrane=0.01, elsewhere=elsewhere)
            problem = BlochTorrey(Tissue(grid, permeability=permeability))
            table = Acquisition.pgse([0, 1000, 2000, 3000, 4000, 5000],
                                     directions=arguments.directions, delta=10, Delta=60)
            if arguments.engine == "matrix_formalism":
                engine = MatrixFormalism(problem, table, arguments.modes)
            else:
                engine = TimeStepping(problem, table, arguments.time_step)
            unknowns = problem.num_unknowns
        forward_wall = time.perf_counter()
        signals = engine.signals(remember=not arguments.forward_only)
        forward_wall = time.perf_counter() - forward_wall
        gradient = np.zeros(grid.num_owned_facets)
        if not arguments.forward_only:
            gradient = engine.gradient(np.exp(1j * np.arange(len(table))))
    comm = grid.comm
    cpu = comm.gather(dict(record.cpu))
    peak = comm.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    square = comm.allreduce(float(gradient @ gradient))
    imports = comm.gather(before / 1024)
    if comm.rank:
        return
    print(json.dumps({
        "cells": grid.num_cells, "facets": grid.num_facets, "unknowns": unknowns,
        "measurements": len(table), "ranks": comm.size, "tied": arguments.tied,
        "engine": arguments.engine, "modes": len(engine.basis) if hasattr(engine, "basis") else 0,
        "cpu": {name: max(part.get(name, 0.0) for part in cpu) for name in cpu[0]},
        "wall": dict(record.wall), "total_wall": time.perf_counter() - wall,
        "forward_wall": forward_wall,
        "cpu_per_rank": [sum(part.values()) for part in cpu], "peak_MB": peak,
        "import_MB": imports, "signal_sum": [float(signals.real.sum()), float(signals.imag.sum())],
        "gradient_norm": float(np.sqrt(square)),
        "version": spinverse.__version__}))


if __name__ == "__main__":
    main()
