# %% [markdown]
# # From signals to membranes
#
# - **Goal**: simulate the signals of a cell in a grid of tetrahedra, forget the cell, and find
#   its membrane again from the signals: the search for shapes (the default), and permeabilities
#   of facets by gradients (the preset `facets`).
# - **Cores**: 1, or as many as you like: `mpiexec -n 2 python demos/reconstruction.py`.
# - **Minutes**: 5. (`make demo` does the search from the command line.)
# - **Expected output**: 96 of 96 membrane facets found and none false by the search, data misfit
#   below 1e-7; in `results/reconstruction/` the permeabilities, an `.stl` of the membrane, a
#   `.vtu` for ParaView and `reconstruction.png`.
#
# `SPINVERSE_DEMO_SIZE=small` takes a grid of 96 cells and the preset `facets` only, in a few
# seconds.

# %%
import os
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import spinverse
from spinverse import Acquisition, Permeability, Tissue, interface, mesh

SMALL = os.environ.get("SPINVERSE_DEMO_SIZE") == "small"
OUT = Path("results/reconstruction")
OUT.mkdir(parents=True, exist_ok=True)
root = MPI.COMM_WORLD.rank == 0

# %% [markdown]
# ## The target
#
# A body-centred cubic grid in which the cells with their centroid in a ball are the inside.
# Membrane: 1e-5 m/s = 0.01 um/ms. The other facets have 0.1 m/s = 100 um/ms, nearly open. The
# outer boundary absorbs, as in the published benchmark.

# %%
if SMALL:
    grid = mesh.build(mesh.tagged_grid, shape=mesh.Ball(7), length=20, cells=2)
    acquisition = Acquisition.pgse([0, 500, 1000, 2000], directions=10, delta=10, Delta=[20, 60])
else:
    grid = mesh.build(mesh.tagged_grid, shape=mesh.Ball(10), length=26.667, cells=4)
    acquisition = Acquisition.pgse([0, 1000, 2000, 3000, 4000, 5000], directions=30,
                                   delta=[5, 10, 10], Delta=[6, 20, 60])
truth = Tissue(grid, diffusivity=2.0,
               permeability=Permeability.on(grid, membrane=0.01, elsewhere=100, outer=100))
measured = spinverse.simulate(truth, acquisition)
if root:
    print(f"{grid.num_cells} cells, {grid.num_facets} facets, {len(acquisition)} measurements")

# %% [markdown]
# ## The reconstruction
#
# It knows the grid, the diffusivity and the signals. Of the true membrane, which `grid` knows
# too, nothing is looked at before the metrics.

# %%
results = {}
for name in ("facets",) if SMALL else ("default", "facets"):
    begin = time.perf_counter()
    result = spinverse.reconstruct(grid, measured, stages=name, boundary="absorbing")
    if result.labels is not None:  # a search for shapes: the facets between what it found
        found = interface.extraction.between(grid, result.labels, boundary_absorbing=True)
    else:  # permeabilities: cells are clustered by their slow modes
        found = interface.compartments(result.tissue, boundary_absorbing=True).facets
    scores = interface.metrics(grid, found, result.permeability, result.unknown)
    results[name] = result, found, scores
    if root:
        print(f"{name}: data misfit {result.data_misfit:.1e}, "
              f"{scores['true'] - scores['false_negatives']} of {scores['true']} facets found, "
              f"{scores['false_positives']} false, {time.perf_counter() - begin:.0f} s")
        for stage, ending in result.endings.items():
            print(f"    stage {stage!r}: {ending}")
    assert scores["aligned_f1"] == 1.0, "moved or reflected as a whole it would not be an error"

# %% [markdown]
# `aligned_f1` is taken after the best shift and point reflection of the whole cell, which
# magnitude signals cannot see.
#
# ## Files

# %%
result, found, scores = next(iter(results.values()))
interface.write_permeability(OUT / "permeability.npz", grid, result.permeability)
interface.write_vtu(OUT / "permeability.vtu", grid,
                    {"permeability": result.permeability, "membrane": found.astype(float)})
interface.write_stl(OUT / "interface.stl", grid, found, result.labels)

# %%
try:
    from matplotlib import pyplot as plt
except ImportError:
    plt = None
values = grid.gather_facets(result.permeability, grid.interface > 0)
if root and plt is not None:
    _, kappa, true = values
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    bins = np.linspace(-2, 2, 41)
    left.hist([np.log10(kappa[true]), np.log10(kappa[~true])], bins, stacked=True,
              label=["true membrane", "other facets"])
    left.set(xlabel="log10 permeability, um/ms", ylabel="facets", yscale="log")
    left.legend()
    right.plot(measured.normalised, np.abs(result.predicted.values) / measured.reference, ".")
    right.plot([0, 1], [0, 1], "k-", lw=0.5)
    right.set(xlabel="measured S/S(b = 0)", ylabel="predicted")
    figure.savefig(OUT / "reconstruction.png", dpi=120)
    plt.close(figure)
    print("written:", ", ".join(sorted(path.name for path in OUT.iterdir())))
