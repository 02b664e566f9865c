# %% [markdown]
# # Noise, and what the data determine
#
# - **Goal**: reconstruct the same cell from signals with more and more noise, and ask which
#   facets the signals determine at each level.
# - **Cores**: 1.
# - **Minutes**: 2.
# - **Expected output**: a table by signal-to-noise ratio: facets found and false, misfit against
#   the variance of the noise, walls and open facets that are determined;
#   `results/noise_and_uncertainty/uncertainty.png`.
#
# `SPINVERSE_DEMO_SIZE=small` takes fewer directions and two noise levels.

# %%
import os
from pathlib import Path

import numpy as np

import spinverse
from spinverse import Acquisition, Permeability, Signals, Tissue, interface, mesh
from spinverse.inversion.uncertainty import uncertainty

SMALL = os.environ.get("SPINVERSE_DEMO_SIZE") == "small"
OUT = Path("results/noise_and_uncertainty")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Target and signals
#
# A ball in a grid of 96 cells, 1e-5 m/s = 0.01 um/ms on its membrane, absorbing outer boundary.

# %%
grid = mesh.build(mesh.tagged_grid, shape=mesh.Ball(7), length=20, cells=2)
truth = Tissue(grid, permeability=Permeability.on(grid, membrane=0.01, elsewhere=100, outer=100))
acquisition = Acquisition.pgse([0, 500, 1000, 2000], directions=8 if SMALL else 20,
                               delta=10, Delta=[20, 60])
clean = spinverse.simulate(truth, acquisition)


def noisy(signals, sigma, seed=0):
    """Magnitudes with Rician noise: |S + n|, n complex, sigma in units of the row's S(b = 0)."""
    random = np.random.default_rng(seed)
    n = random.normal(size=(2, len(signals))) * sigma * signals.reference
    return Signals(signals.acquisition, np.abs(signals.values + n[0] + 1j * n[1]))


# %% [markdown]
# ## Reconstructions
#
# The preset `facets` treats noise as if it were Gaussian, which is wrong near the noise floor:
# there magnitudes are biased upwards. The search for shapes (`stages="default"`) predicts Rician
# means. `uncertainty` needs `sigma`, the standard deviation of the noise of the normalised
# signals: 1 / SNR.

# %%
levels = (np.inf, 50) if SMALL else (np.inf, 50, 20, 5)
print(f"{'SNR':>5s} {'found':>6s} {'false':>6s} {'misfit':>8s} {'sigma^2':>8s} "
      f"{'walls determined':>17s} {'open determined':>16s}")
known = {}
for snr in levels:
    sigma = 1 / snr
    measured = noisy(clean, sigma) if sigma else clean
    result = spinverse.reconstruct(grid, measured, stages="facets", boundary="absorbing")
    walls = interface.compartments(result.tissue, boundary_absorbing=True).facets
    scores = interface.metrics(grid, walls, result.permeability, result.unknown)
    says = uncertainty(result.problem, result.permeability, sigma=max(sigma, 1e-3))
    known[snr] = says, walls
    print(f"{snr:5g} {scores['found'] - scores['false_positives']:3d}/{scores['true']:<2d} "
          f"{scores['false_positives']:6d} {result.data_misfit:8.1e} {sigma**2:8.1e} "
          f"{np.count_nonzero(says.determined & walls):10d}/{np.count_nonzero(walls):<6d} "
          f"{np.count_nonzero(says.determined & ~walls):9d}/{np.count_nonzero(~walls):<6d}")
    if snr == np.inf:
        assert scores["f1"] == 1.0

# %% [markdown]
# How to read it:
#
# - A misfit well below sigma squared means that noise was fitted: there are more facets than
#   independent measurements say anything about.
# - Most open facets are *not* determined: magnetisation goes around a single closed facet in the
#   open. Their permeability is whatever the optimiser left there.
# - It is about the neighbourhood of this solution. A wrong closed shape has determined walls too;
#   a misfit well above sigma squared is the sign.
# - The seed matters. Run several before you believe a row.

# %%
try:
    from matplotlib import pyplot as plt
except ImportError:
    plt = None
if plt is not None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for snr, (says, walls) in known.items():
        axes.semilogy(np.sort(says.evidence[walls])[::-1], "o-", label=f"SNR {snr:g}, walls found")
    axes.axhline(3, color="k", lw=0.5)
    axes.set(xlabel="facet", ylabel="evidence, standard deviations of the noise",
             title="determined: above 3 (without noise: sigma = 0.001)")
    axes.legend()
    figure.savefig(OUT / "uncertainty.png", dpi=120)
    plt.close(figure)
    print("written:", OUT / "uncertainty.png")
