# %% [markdown]
# # The same run on many ranks
#
# - **Goal**: run one simulation and one gradient on any number of MPI ranks and see that the
#   numbers are the same; see what is shared out, and how long each phase takes.
# - **Cores**: as many as you give it: `mpiexec -n 4 python demos/cluster.py`; on a cluster `srun
#   python demos/cluster.py` with `OMP_NUM_THREADS=1`.
# - **Minutes**: less than 1 on one core.
# - **Expected output**: cells, facets and measurements by rank, seconds by phase, and
#   `results/cluster/ranks_N.npz`; from the second run on also the largest difference from the run
#   on the fewest ranks, below 1e-8.
#
# `SPINVERSE_DEMO_SIZE=small` takes a coarser mesh.

# %%
import os
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

from spinverse import Acquisition, BlochTorrey, Permeability, Tissue, mesh
from spinverse.engines.modal.matrix_formalism import MatrixFormalism
from spinverse.parallel.npz import Rows, write_npz

comm = MPI.COMM_WORLD
SMALL = os.environ.get("SPINVERSE_DEMO_SIZE") == "small"
OUT = Path("results/cluster")
clock = time.perf_counter()


def phase(name):
    """Seconds since the last phase ended, of the slowest rank."""
    global clock
    now = time.perf_counter()
    seconds = comm.allreduce(now - clock, MPI.MAX)
    if comm.rank == 0:
        print(f"{name:24s} {seconds:7.2f} s", flush=True)
    clock = time.perf_counter()


# %% [markdown]
# Rank 0 reads or builds the mesh; cells are shared out, with a layer of ghosts across facets.
# Every rank owns some facets, and arrays of permeabilities are over these:
# `(mesh.num_owned_facets,)`.

# %%
cells = 3 if SMALL else 6
grid = mesh.build(mesh.tagged_grid, shape=mesh.Ball(7), length=20, cells=cells)
tissue = Tissue(grid, permeability=Permeability.on(grid, membrane=0.05, elsewhere=100, outer=1))
acquisition = Acquisition.pgse([0, 1000, 2000], directions=4 if SMALL else 30, delta=10,
                               Delta=[20, 40])
owned = comm.gather((grid.num_owned_cells, grid.num_owned_facets))
phase("mesh")
if comm.rank == 0:
    for rank, (mine, facets) in enumerate(owned):
        print(f"    rank {rank}: {mine} cells, {facets} facets")

# %% [markdown]
# The eigenproblem is solved by all ranks together; measurements are then shared out by direction.
# Functions that end with "Collective." in the reference must be called by all ranks.

# %%
engine = MatrixFormalism(BlochTorrey(tissue), acquisition, modes=60 if SMALL else 120)
signals = engine.signals(remember=True)
phase(f"{len(engine.basis)} modes, signals")
gradient = engine.gradient(signals)  # of sum |S|^2 / 2, over the facets that this rank owns
phase("gradient")

# %% [markdown]
# Facets are known by their vertices, in the numbering of the input: so files do not depend on the
# number of ranks. Each rank gets a slab of the facets in their order and writes that; nobody holds
# all of them.

# %%
if comm.rank == 0:
    OUT.mkdir(parents=True, exist_ok=True)
comm.Barrier()
slabs = grid.facet_slabs
write_npz(comm, OUT / f"ranks_{comm.size}.npz", {
    "signals": signals, "facets": Rows(slabs.keys), "gradient": Rows(slabs.collect(gradient))})
if comm.rank == 0:
    others = sorted(OUT.glob("ranks_*.npz"), key=lambda path: int(path.stem.split("_")[1]))
    with np.load(OUT / f"ranks_{comm.size}.npz") as ours, np.load(others[0]) as first:
        gradient = ours["gradient"]
        if first["signals"].shape == signals.shape and first["gradient"].shape == gradient.shape:
            for name, here in (("signals", signals), ("gradient", gradient)):
                there = first[name]
                worst = np.abs(here - there).max() / np.abs(there).max()
                print(f"{name}: {worst:.1e} from {others[0].name}")
                assert worst < 1e-8
    print("written:", OUT / f"ranks_{comm.size}.npz")
