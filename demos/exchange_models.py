# %% [markdown]
# # What models of exchange say of a tissue whose exchange is known
#
# - **Goal**: powder averages of permeable spheres on a lattice, whose exchange time is that of
#   their slowest mode; fitted by NEXI and SMEX (graymatter-swissknife), models of sticks that
#   exchange with what is around, and by Kärger's model with two isotropic pools, at last with
#   one in which diffusion is restricted.
# - **Cores**: 1.
# - **Minutes**: 3.
# - **Expected output**: for each permeability the exchange time, the share inside and both
#   diffusivities beside the truth; a table and a figure in `results/exchange_models/`.
#
# Needs `pip install 'spinverse[exchange]'`. `SPINVERSE_DEMO_SIZE=small` runs one permeability and
# fewer measurements.

# %%
import csv
import os
from pathlib import Path

import numpy as np
from graymatter_swissknife.models import AcquisitionParameters, Nexi, Smex
from scipy.optimize import least_squares

import spinverse
from spinverse import Acquisition, Permeability, Tissue, mesh
from spinverse.quantities import exchange_times, karger_pools
from spinverse.units import b_to_internal

SMALL = os.environ.get("SPINVERSE_DEMO_SIZE") == "small"
folder = Path("results/exchange_models")
folder.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The tissue
#
# A ball of radius R in a periodic cube: two compartments, and nothing else. Its slowest mode that
# is even in x, y and z is also that of one ball in a closed cube, so there its exchange time is
# computed. R / (3 kappa) (1 - f) would be that of pools that are well mixed, f the share inside.

# %%
RADIUS, LENGTH, D, DELTA = 2.5, 5.5, 2.0, 4.0  # um, um, um^2/ms, ms
PERMEABILITIES = [0.02] if SMALL else [0.01, 0.02, 0.05]  # um/ms
SEPARATIONS = [12.0, 35.0] if SMALL else [12.0, 20.0, 35.0, 60.0]  # ms
B = [1000.0, 3000.0] if SMALL else [1000.0, 2000.0, 3000.0, 4000.0, 5000.0]  # s/mm^2

inside = 4 / 3 * np.pi * RADIUS**3 / LENGTH**3
cell = mesh.build(mesh.sphere_in_box, radius=RADIUS, box=[LENGTH] * 3, size=1.5)
lattice = mesh.build(mesh.packed_spheres, 1.7, radii=[RADIUS], box=[LENGTH] * 3, periodic=True)

# %% [markdown]
# ## Powder averages
#
# Three directions are 26 by the symmetry of a cube: Lebedev's rule of degree 7.

# %%
directions = np.array([[1.0, 0, 0], [1, 1, 0], [1, 1, 1]])
directions /= np.linalg.norm(directions, axis=1)[:, None]
weights = np.array([6 * 40, 12 * 32, 8 * 27]) / 840
table = Acquisition.pgse([0, *B], directions, DELTA, SEPARATIONS)
truth, averages = [], []
for kappa in PERMEABILITIES:
    tissue = Tissue(lattice, D, permeability=Permeability.on(lattice, membrane=kappa),
                    periodic="xyz")
    signals = spinverse.simulate(tissue, table, tolerance=1e-3)
    E = signals.normalised.reshape(len(SEPARATIONS), 1 + len(B), 3) @ weights
    averages.append(E[:, 1:].ravel())
    closed = Tissue(cell, D, permeability=Permeability.on(cell, membrane=kappa))
    truth.append(exchange_times(closed, 1, degree=2)[0])
    print(f"kappa {kappa:g} um/ms: exchange time {truth[-1]:.2f} ms, of well mixed pools "
          f"{RADIUS / (3 * kappa) * (1 - inside):.2f}; estimated errors of signals "
          f"{signals.mesh_error:.0e} (mesh), {signals.estimated_error:.0e}")

# %% [markdown]
# ## The models
#
# All have the same four numbers: exchange time 1 / (k_ie + k_ei) in ms, diffusivity inside
# and around in um^2/ms, share inside. In NEXI (Jelescu et al., NeuroImage 256 (2022) 119277) the
# inside is sticks in all directions and pulses are short, in SMEX (Olesen et al., NeuroImage 251
# (2022) 118976) pulses have their length. Their signals and limits are the package's, the
# fit is scipy's, the same for all. Inside of Kärger's pools water may be at rest. In the last
# model it is restricted: its signal does not depend on the separation of pulses that are longer
# than it takes to cross, so that D inside is as 1 / (Delta - delta / 3).

# %%
separations, b = (grid.ravel() for grid in np.meshgrid(SEPARATIONS, B, indexing="ij"))
protocol = AcquisitionParameters(b_to_internal(b), separations, DELTA)
pools = Acquisition.pgse(B, [1.0, 0, 0], DELTA, SEPARATIONS)


def karger(x, _, power=0):
    time, within, around, share = x
    time_of = pools.diffusion_time
    D = [within * (time_of[0] / time_of) ** power, np.full(len(pools), around)]
    rates = np.array([[0.0, 1 - share], [share, 0.0]]) / time  # inside to around, and back
    return karger_pools(pools, [share, 1 - share], D, rates, tolerance=1e-7).signals.magnitude


def restricted(x, _):
    return karger(x, _, power=1)


MODELS = {"NEXI": Nexi.get_signal, "SMEX": Smex.get_signal, "Kärger": karger,
          "Kärger, restricted": restricted}
LIMITS = np.array(Nexi.classic_limits, dtype=float).T


def fit(model, measured):
    """The best of two starts: numbers, and the root mean square of what is left."""
    low, high = LIMITS
    if model in (karger, restricted):
        low = low * [1, 0, 1, 1]
    found = [least_squares(lambda x: model(x, protocol) - measured, [time, 0.5, 1.5, 0.4],
                           bounds=(low, high), x_scale=[10, 0.5, 0.5, 0.2])
             for time in (10.0, 60.0)]
    best = min(found, key=lambda result: result.cost)
    return best.x, np.sqrt(np.mean(best.fun**2))


# %%
fits = {name: [fit(model, E) for E in averages] for name, model in MODELS.items()}
around = 2 * D / (2 + inside)  # Maxwell's, for long times and closed spheres
rows = []
for k, kappa in enumerate(PERMEABILITIES):
    rows.append([f"{kappa:g}", "truth", f"{truth[k]:.1f}", "", f"{inside:.3f}", "restricted",
                 f"{around:.2f}", ""])
    for name in MODELS:
        (time, within, outside, share), rms = fits[name][k]
        rows.append([f"{kappa:g}", name, f"{time:.1f}", f"{time / truth[k] - 1:+.0%}",
                     f"{share:.3f}", f"{within:.2f}" + (
                         f" at {SEPARATIONS[0]:g} ms" if name == "Kärger, restricted" else ""),
                     f"{outside:.2f}", f"{rms:.0e}"])
HEADS = ["kappa, um/ms", "model", "exchange time, ms", "off by", "share inside", "D inside",
         "D around", "rms of E"]
with (folder / "exchange_models.csv").open("w", newline="") as file:
    csv.writer(file, lineterminator="\n").writerows([HEADS, *rows])
for row in [HEADS, *rows]:
    print("".join(f"{cell:>20}" for cell in row))

# %%
try:
    import matplotlib
except ImportError:
    print("no figure: matplotlib is missing")
else:
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for name, marker in zip(MODELS, "os^d", strict=True):
        axes[0].plot(truth, [x[0] for x, _ in fits[name]], marker, label=name, alpha=0.8)
    axes[0].plot([0, 1.1 * max(truth)], [0, 1.1 * max(truth)], "k:", label="truth")
    axes[0].set(xlabel="exchange time of the tissue (ms)", ylabel="exchange time of the model (ms)")
    axes[0].legend()
    middle = len(PERMEABILITIES) // 2
    measured = averages[middle].reshape(len(SEPARATIONS), -1)
    colours = plt.cm.viridis(np.linspace(0, 0.8, len(measured)))
    for name, style in (("NEXI", "--"), ("Kärger, restricted", "-")):
        model = MODELS[name](fits[name][middle][0], protocol).reshape(measured.shape)
        for row, colour in zip(model, colours, strict=True):
            axes[1].plot(B, row, style, color=colour)
        axes[1].plot([], [], style, color="k", label=name)
    for row, separation, colour in zip(measured, SEPARATIONS, colours, strict=True):
        axes[1].plot(B, row, "o", color=colour, label=f"simulated, Delta {separation:g} ms")
    axes[1].set(xlabel="b (s/mm^2)", ylabel="powder average", yscale="log",
                title=f"kappa {PERMEABILITIES[middle]:g} um/ms")
    axes[1].legend(fontsize=7)
    figure.savefig(folder / "exchange_models.png", dpi=110)
