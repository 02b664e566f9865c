# %% [markdown]
# # Signals, and whether they are right
#
# - **Goal**: simulate PGSE signals of a slab, of layers with permeable membranes and of a sphere;
#   compare both engines with solutions that no finite elements were used for.
# - **Cores**: 1 (the same file runs under `mpiexec -n 2`).
# - **Minutes**: less than 1.
# - **Expected output**: a table of errors, all below 1e-3; orders of convergence near 2;
#   `results/forward_and_validation/signals.png`.
#
# `SPINVERSE_DEMO_SIZE=small` runs a coarser sphere and fewer b-values.

# %%
import os
from pathlib import Path

import numpy as np
from mpi4py import MPI

import spinverse
from spinverse import Acquisition, Permeability, Tissue, mesh
from spinverse.validation import analytic

SMALL = os.environ.get("SPINVERSE_DEMO_SIZE") == "small"
OUT = Path("results/forward_and_validation")
OUT.mkdir(parents=True, exist_ok=True)

b = np.linspace(0, 4000, 3 if SMALL else 9)  # s/mm^2
delta, Delta = 10.0, 40.0  # ms
acquisition = Acquisition.pgse(b, directions=[1, 0, 0], delta=delta, Delta=Delta)


def on_rank_0(*words):
    """Under `mpiexec` every rank runs this file, one of them speaks."""
    if MPI.COMM_WORLD.rank == 0:
        print(*words)


# %% [markdown]
# ## Three cases
#
# The gradient is across the layers. A mesh of intervals is enough there: what does not vary need
# not be meshed. Lengths in um, permeabilities in um/ms (0.05 um/ms is 5e-5 m/s).

# %%
slab = Tissue(mesh.build(mesh.intervals, [10], size=0.25), diffusivity=2.0)

layers = mesh.build(mesh.intervals, [5, 5, 5, 5, 5], size=0.25)
layers = Tissue(layers, diffusivity=2.0, permeability=Permeability.on(layers, membrane=0.05))

sphere = Tissue(mesh.build(mesh.spheres, [5], size=2.5 if SMALL else 1.5), diffusivity=2.0)

cases = {
    "slab of 10 um": (slab, 1, analytic.slab(b, delta, Delta, 10.0)),
    "5 slabs of 5 um": (layers, 1, analytic.slabs(b, delta, Delta, [5.0] * 5, 0.05)),
    "sphere of 5 um": (sphere, 2, analytic.sphere(b, delta, Delta, 5.0)),
}

# %% [markdown]
# ## Both engines against the references
#
# `tolerance` is what modes or time steps may leave of S/S(b=0); the mesh's own error comes on
# top, and is most of what is seen here. `degree=2` is broken P2.

# %%
curves = {}
on_rank_0(f"{'case':18s} {'engine':18s} {'error':>14s} {'estimated':>10s}")
for name, (tissue, degree, expected) in cases.items():
    for engine in ("matrix_formalism", "time_stepping"):
        if engine == "time_stepping" and tissue is sphere:
            continue  # the same answer, but a factor for every gradient: minutes
        signals = spinverse.simulate(tissue, acquisition, engine=engine, degree=degree,
                                     tolerance=1e-4)
        error = float(np.abs(signals.normalised - expected).max())
        on_rank_0(f"{name:18s} {engine:18s} {error:14.1e} {signals.estimated_error:10.1e}")
        assert error < (5e-3 if SMALL and tissue is sphere else 1e-3)
        curves[name] = signals.normalised, expected

# %% [markdown]
# ## Does the error fall as it should?
#
# Halving the mesh size divides the error of linear elements by four: order 2.

# %%
errors = []
for size in (1.25, 0.625, 0.3125):
    coarse = mesh.build(mesh.intervals, [5, 5, 5, 5, 5], size=size)
    coarse = Tissue(coarse, permeability=Permeability.on(coarse, membrane=0.05))
    signals = spinverse.simulate(coarse, acquisition, tolerance=1e-6)
    errors.append(float(np.abs(signals.normalised - cases["5 slabs of 5 um"][2]).max()))
orders = np.log2(np.array(errors[:-1]) / errors[1:])
on_rank_0("errors", [f"{e:.1e}" for e in errors], "orders", np.round(orders, 2).tolist())
assert orders[-1] > 1.7

# %% [markdown]
# ## A picture

# %%
try:
    from matplotlib import pyplot as plt
except ImportError:
    plt = None
if plt is not None:
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for name, (simulated, expected) in curves.items():
        line, = axes.semilogy(b, expected, label=name)
        axes.semilogy(b, simulated, "o", color=line.get_color(), mfc="none")
    axes.set(xlabel="b, s/mm²", ylabel="S / S(b = 0)", title="lines: references; circles: meshes")
    axes.legend()
    figure.savefig(OUT / "signals.png", dpi=120)
    plt.close(figure)
    on_rank_0("written:", OUT / "signals.png")
