# %% [markdown]
# # A geometry of your own
#
# - **Goal**: three ways to bring a geometry along, each simulated: a closed surface (`.stl`,
#   `.ply`), a label image (a segmentation), and a mesh file (gmsh `.msh`); and what to look at
#   before trusting a mesh.
# - **Cores**: 1.
# - **Minutes**: less than 1.
# - **Expected output**: a line a mesh with its volume and quality, the ADC along x and z of each;
#   `results/own_geometry/` with the three meshes and `signals.png`.
#
# `SPINVERSE_DEMO_SIZE=small` takes coarser meshes.

# %%
import os
from pathlib import Path

import numpy as np

import spinverse
from spinverse import Acquisition, Permeability, Tissue, mesh
from spinverse.mesh import checks
from spinverse.quantities import fit_adc

SMALL = os.environ.get("SPINVERSE_DEMO_SIZE") == "small"
OUT = Path("results/own_geometry")
OUT.mkdir(parents=True, exist_ok=True)


def look_at(name, data):
    """What to look at: the volume, the tags, and the lowest radius ratio (1 is a regular tet)."""
    volume = checks.cell_volumes(data.points, data.cells)
    tags = {int(tag): float(volume[data.cell_tags == tag].sum())
            for tag in np.unique(data.cell_tags)}
    print(f"{name}: {len(data.cells)} tets, volume by cell tag "
          + ", ".join(f"{tag}: {value:.0f} um^3" for tag, value in tags.items())
          + f", lowest quality {checks.quality(data).min():.2f}")


# %% [markdown]
# ## A closed surface
#
# A made-up one: a capsule, radius 3 um. Yours comes from a segmentation or a drawing. Lengths in
# the file are taken as um; `scale=0.001` would read nm. `outside="box"` meshes the space around
# the cell too: cell tag 1 inside, 2 outside, and the surface is the membrane.

# %%
import trimesh  # noqa: E402

capsule = trimesh.creation.capsule(height=6, radius=3, count=[12, 12])
capsule.export(OUT / "capsule.stl")
surface_mesh = mesh.from_surface(OUT / "capsule.stl", size=3.0 if SMALL else 1.5,
                                 outside="box", gap=2)
look_at("surface", surface_mesh)
mesh.write_npz(OUT / "capsule.npz", surface_mesh)

# %% [markdown]
# ## A label image
#
# Two cells that touch, as a numpy array; a NIfTI file works the same way
# (`mesh.from_labels("seg.nii.gz")`). Every voxel becomes six tetrahedra, and the walls' staircase
# is smoothed. Cell tags are the labels; interface tags number the pairs of labels that touch.

# %%
n = 8 if SMALL else 14
x, y, z = np.indices((2 * n, n, n)) - np.array([n, n / 2, n / 2])[:, None, None, None] + 0.5
labels = np.zeros(x.shape, dtype=int)
labels[(x + n / 2.2) ** 2 + y**2 + z**2 < (n / 2) ** 2] = 1
labels[((x - n / 2.2) ** 2 + y**2 + z**2 < (n / 2) ** 2) & (labels == 0)] = 2
image_mesh = mesh.from_labels(labels, voxel_size=8.0 / n)
look_at("labels", image_mesh)
print("interface tags:", mesh.interface_pairs(image_mesh))
mesh.write_npz(OUT / "two_cells.npz", image_mesh)

# %% [markdown]
# ## A mesh file
#
# Here it is written first. In gmsh, give each volume a physical group (cell tags) and each
# membrane one too (interface tags). The readers take gmsh 2.2 and 4.x, TetGen, XDMF and `.npz`.

# %%
made = mesh.cylinders([2, 4], height=8, size=2.0 if SMALL else 1.0, layers=2)
mesh.write_msh(OUT / "cylinders.msh", made)
file_mesh = mesh.readers.read(OUT / "cylinders.msh")
look_at("file", file_mesh)

# %% [markdown]
# ## Signals
#
# `Mesh.from_data` distributes a mesh over the ranks (`mesh.read` and `mesh.build` do both at
# once). Membranes have 1e-5 m/s = 0.01 um/ms; the outer boundary reflects.

# %%
acquisition = Acquisition.pgse([0, 250, 500, 1000], [[1, 0, 0], [0, 0, 1]], delta=5, Delta=30)
curves = {}
for name, data in (("surface", surface_mesh), ("labels", image_mesh), ("file", file_mesh)):
    cells = mesh.Mesh.from_data(data)
    tissue = Tissue(cells, diffusivity=2.0, permeability=Permeability.on(cells, membrane=0.01))
    signals = spinverse.simulate(tissue, acquisition, tolerance=1e-3)
    adc = fit_adc(signals, b_max=1000).adc
    print(f"{name}: ADC along x {adc[0]:.3f}, along z {adc[1]:.3f} um^2/ms, error of the modes "
          f"{signals.estimated_error:.0e}")
    curves[name] = signals.normalised
    assert 0 < adc.min() and adc.max() < 2.0
    spinverse.acquisition.write_signals(OUT / f"{name}.csv", signals)

# %%
try:
    from matplotlib import pyplot as plt
except ImportError:
    plt = None
if plt is not None:
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    along_x = acquisition.directions[:, 0] > 0.5
    for name, values in curves.items():
        line, = axes.semilogy(acquisition.b[along_x], values[along_x], "o-", label=f"{name}, x")
        axes.semilogy(acquisition.b[~along_x], values[~along_x], "s--", color=line.get_color(),
                      label=f"{name}, z")
    axes.set(xlabel="b, s/mm²", ylabel="S / S(b = 0)")
    axes.legend()
    figure.savefig(OUT / "signals.png", dpi=120)
    plt.close(figure)
    print("written:", OUT / "signals.png")
