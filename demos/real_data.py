# %% [markdown]
# # One voxel of a real brain, and what it can tell
#
# - **Goal**: read a real acquisition (FSL files), fit the signals of one voxel with a model of
#   parallel permeable axons, and see which of its properties the data determine. Most they do
#   not.
# - **Cores**: 1.
# - **Minutes**: 1.
# - **Expected output**: a table of models whose axon radius, packing and permeability differ
#   widely and whose misfits do not; what the posterior says of each, in bits: of the radius
#   nothing; `results/real_data/voxel.png`.
#
# The data are the volume `small_64D` (10 x 10 x 10 voxels of 2 mm, 64 directions, b near 1000
# s/mm²) that lies in the `dipy` package itself: nothing is downloaded.
# `SPINVERSE_DEMO_SIZE=small` tries fewer models.

# %%
import os
import warnings
from pathlib import Path

import nibabel
import numpy as np
from dipy.data import get_fnames
from scipy.interpolate import CubicSpline
from scipy.optimize import least_squares

import spinverse
from spinverse import Acquisition, Permeability, Signals, Tissue, mesh
from spinverse.quantities import fit_tensor

SMALL = os.environ.get("SPINVERSE_DEMO_SIZE") == "small"
OUT = Path("results/real_data")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Reading it
#
# FSL files hold b and directions, not times, and no other file says the pulse length and
# separation of this scan: delta = 20 ms and Delta = 40 ms are **assumed**, and so is all below
# that depends on them. The one volume at b = 0 is a single sample: there is no repeated
# measurement to tell the noise from.

# %%
image, bval, bvec = get_fnames(name="small_64D")
acquisition = spinverse.acquisition.read_fsl(bval, bvec, delta=20, Delta=40, b0_threshold=20)
volume = nibabel.load(image).get_fdata()
voxel = (8, 5, 9)  # one where a tensor looks like a single bundle of fibres
signals = Signals(acquisition, volume[voxel])
b, S = acquisition.b, signals.magnitude
print(f"{len(b)} measurements, b up to {b.max():.0f} s/mm^2, S(b = 0) = {S[b == 0]}")

# %% [markdown]
# ## What any model of this kind must agree with: the tensor
#
# Seven numbers from 65 measurements. Its residual is our estimate of the noise, an upper bound
# since it holds what a tensor does not describe. The warning about kurtosis is right that nothing
# is known of it: all b are between 989 and 1003 s/mm², one shell.

# %%
with warnings.catch_warnings(record=True) as remarks:
    warnings.simplefilter("always")
    tensor = fit_tensor(signals)
for remark in remarks:
    print("warned:", remark.message)
axis = tensor.eigenvectors[0][:, 0]
along, across = tensor.eigenvalues[0][0], tensor.eigenvalues[0][1:]
S0 = tensor.S0[0]
B = b / 1000.0  # ms/um^2
predicted = S0 * np.exp(-B * np.einsum("ni,ij,nj->n", acquisition.directions, tensor.tensors[0],
                                       acquisition.directions))
sigma = np.sqrt(np.sum((S - predicted) ** 2) / (len(S) - 7))
print(f"eigenvalues {np.round(tensor.eigenvalues[0], 2)} um^2/ms, "
      f"FA {tensor.fractional_anisotropy[0]:.2f}, noise {sigma:.1f} = S0/{S0 / sigma:.0f}")

# %% [markdown]
# ## Models
#
# Parallel cylinders on a square lattice, endless in all directions: radius R, volume fraction f,
# permeability kappa of the wall, one diffusivity. Along the axis nothing varies, so that
#
#     S(b, n) = S0 exp(-b D (n.a)^2) E(b (1 - (n.a)^2)),
#
# where E is the signal across the axis. E comes from a periodic box, as a curve over b. S0, D
# along the axis and the axis a are fitted for each model.
#
# That is already much to assume of a voxel of 8 mm³, which holds millions of axons of all sizes,
# with bends, undulation, glia, myelin of another T2 and perhaps other fibres.

# %%
levels = np.linspace(0, 1000, 5)
table = Acquisition.pgse(levels, [1, 0, 0], delta=20, Delta=40)


def across_axons(radius, fraction, kappa):
    """E over b as a spline."""
    size = radius / 2
    lattice = mesh.build(mesh.packed_cylinders, height=size, size=size, radii=[radius],
                         volume_fraction=fraction, periodic=True, gap=0.02 * radius)
    tissue = Tissue(lattice, diffusivity=float(along),
                    permeability=Permeability.on(lattice, membrane=kappa), periodic="xy")
    E = spinverse.simulate(tissue, table, tolerance=1e-2 if SMALL else 1e-3).normalised
    return CubicSpline(levels, np.log(E))


def fit(log_E):
    """S0, D along and the axis that fit best: the residual in units of the noise, and D."""
    frame = np.linalg.svd(axis[None])[2][1:]  # two vectors across the axis

    def residual(p):
        a = axis + p[2] * frame[0] + p[3] * frame[1]
        cosine = (acquisition.directions @ (a / np.linalg.norm(a))) ** 2
        E = np.exp(-B * p[1] * cosine + log_E(b * (1 - cosine)))
        return (p[0] * S0 * E - S) / sigma

    best = least_squares(residual, [1.0, along, 0.0, 0.0])
    return np.sqrt(np.mean(best.fun**2)), best.x[1]


radii = (1.0, 3.0) if SMALL else (0.5, 1.0, 2.0, 4.0)  # um
fractions = (0.7,) if SMALL else (0.5, 0.65, 0.75)
permeabilities = (0.0, 0.02) if SMALL else (0.0, 0.005, 0.02, 0.1)  # um/ms
rows = []
for radius in radii:
    for fraction in fractions:
        for kappa in permeabilities:
            curve = across_axons(radius, fraction, kappa)
            misfit, D = fit(curve)
            rows.append((misfit, radius, fraction, kappa, D, curve))
rows.sort(key=lambda row: row[0])
print(f"{'misfit/noise':>12s} {'R, um':>6s} {'f':>5s} {'kappa, m/s':>11s} {'D along':>8s}")
for misfit, radius, fraction, kappa, D, _ in rows:
    print(f"{misfit:12.3f} {radius:6.1f} {fraction:5.2f} {kappa / 1000:11.1e} {D:8.2f}")

# %% [markdown]
# ## What one can tell, and what not
#
# Models whose sums of squared residuals, in units of the noise, differ by less than 4 cannot be
# told apart (two standard deviations of one parameter).

# %%
best = rows[0][0]
alike = [row for row in rows if row[0] ** 2 < best**2 + 4 / len(S)]
print(f"{len(alike)} of {len(rows)} models fit as well as the best one:")
for name, place, scale, unit in (("radius", 1, 1, "um"), ("volume fraction", 2, 1, ""),
                                 ("permeability", 3, 1e-3, "m/s")):
    values = sorted({row[place] * scale for row in alike})
    print(f"  {name}: from {values[0]:g} to {values[-1]:g} {unit}")
assert len(alike) > 1, "if one model stood out, the text below would be wrong"

# %% [markdown]
# **One can tell** the direction of the bundle, the apparent diffusivities along and across it,
# and that something hinders diffusion across it far more than along it.
#
# **One cannot tell** the radius of axons, how densely they are packed, or the permeability of
# their walls: one shell at b = 1000 s/mm² and one diffusion time give about one number across the
# axis, which each of these moves. Wider or more open axons look like looser packing. Nor can the
# pulse times be checked. What would help: several diffusion times (exchange), much higher b with
# short strong pulses (radius), repeated b = 0 volumes (noise).
#
# ## The posterior of this voxel
#
# Before the scan all models of the table are alike, which is log-uniform in radius and
# permeability. After it each has a weight exp(-chi^2 / 2), with S0, D and the axis at their best.
# What the scan tells of a property is the entropy that its marginal loses: log2 of the number of
# values if one is left, 0 bits if all are as likely as before.

# %%
chi2 = np.array([len(S) * row[0] ** 2 for row in rows])
weights = np.exp(-0.5 * (chi2 - chi2.min()))
weights /= weights.sum()


def bits(p):
    """Entropy of probabilities."""
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


print(f"of the model: {np.log2(len(rows)) - bits(weights):.2f} of {np.log2(len(rows)):.2f} bits")
for name, place, scale, unit in (("radius", 1, 1, " um"), ("volume fraction", 2, 1, ""),
                                 ("permeability", 3, 1e-3, " m/s")):
    values = sorted({row[place] for row in rows})
    marginal = np.array([weights[[row[place] == x for row in rows]].sum() for x in values])
    prior = np.log2(len(values))
    print(f"{name}: {prior - bits(marginal):.2f} of {prior:.2f} bits; " + ", ".join(
        f"{x * scale:g}{unit} {100 * p:.0f} %" for x, p in zip(values, marginal, strict=True)))

# %% [markdown]
# Nothing of the radius, next to nothing of the permeability, and of the packing that it is not the
# loosest. And this is the posterior *given* that the voxel is a lattice of equal cylinders, of
# which the scan says nothing either.
#
# `spinverse.reconstruct` and `spinverse.posterior` have no business here. They look for the
# membranes of single cells on a mesh of some tens of um, and a clinical voxel is 2 mm wide. Their
# data would be those of a microscope sample, or of a voxel of a few tens of um.

# %%
try:
    from matplotlib import pyplot as plt
except ImportError:
    plt = None
if plt is not None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    cosine = np.abs(acquisition.directions @ axis)[b > 0]
    axes.plot(cosine, S[b > 0] / S0, "k.", label="measured, 64 directions")
    mu = np.linspace(0, 1, 101)
    for row in (alike[0], alike[-1]):
        E = np.exp(-row[4] * mu**2 + row[5](1000 * (1 - mu**2)))
        axes.plot(mu, E, label=f"R {row[1]:g} um, f {row[2]:g}, {row[3] / 1000:.0e} m/s")
    axes.set(xlabel="|cosine| of gradient and fibre axis", ylabel="S / S0",
             title="two models that fit as well as each other")
    axes.legend()
    figure.savefig(OUT / "voxel.png", dpi=120)
    plt.close(figure)
    print("written:", OUT / "voxel.png")
