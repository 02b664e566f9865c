# %% [markdown]
# # New physics 4: diffusion along fibres
#
# - **Goal**: an anisotropic diffusivity that follows a field of directions, as a term of your
#   own; compare it with a tensor tissue; recover the diffusivities along and across from signals.
# - **Cores**: 1 (the same file runs under `mpiexec -n 2`).
# - **Minutes**: less than 1.
# - **Expected output**: the term and the tensor tissue agree to 1e-8; a Taylor rate of 2.00; both
#   diffusivities within 1 %.
#
# `SPINVERSE_DEMO_SIZE=small` runs a coarser mesh and fewer measurements.

# %%
import os

import numpy as np
import pyadjoint
import ufl
from mpi4py import MPI

import spinverse
from spinverse import Acquisition, Tissue, mesh
from spinverse.adjoint import Number, reduced_functional, taylor_rate

SMALL = os.environ.get("SPINVERSE_DEMO_SIZE") == "small"


def on_rank_0(*words):
    """Under `mpiexec` every rank runs this file, one of them speaks."""
    if MPI.COMM_WORLD.rank == 0:
        print(*words)


# %% [markdown]
# ## The term
#
# D = D_across I + (D_along - D_across) n n^T with n a unit vector in each cell. The first part is
# the tissue's own diffusivity; the second one adds the flux along n.


# %%
def along_fibres(m, v, t, c):
    n = c["n"]
    return c["excess"] * ufl.inner(ufl.dot(ufl.grad(m), n), ufl.dot(ufl.grad(v), n)) * c.dx


# %% [markdown]
# ## A bundle that bends
#
# In a disc of 6 um the fibres turn by 80 degrees from left to right. Values for the cells of the
# mesh as it was built, here one vector at the middle of each, become a piecewise constant field.

# %%
data = mesh.disks(radii=[6.0], size=2.5 if SMALL else 1.2)
disc = mesh.Mesh.from_data(data)
middle = data.points[data.cells].mean(axis=1)[:, :2]
turn = np.deg2rad(40.0) * middle[:, 0] / 6.0
n = np.column_stack([np.cos(turn), np.sin(turn)])

across, along = 0.4, 1.8  # um^2/ms
angles = np.pi * np.arange(2 if SMALL else 4) / 4
table = Acquisition.pgse([0, 500, 2000], delta=4, Delta=[10] if SMALL else [10, 30],
                         directions=np.column_stack([np.cos(angles), np.sin(angles), 0 * angles]))
exact = {"engine": "matrix_formalism", "modes": 10**6}  # all there are
signals = spinverse.simulate(Tissue(disc, across), table, extra_terms=along_fibres,
                             extra_coefficients={"n": n, "excess": along - across}, **exact)
tensors = across * np.eye(2) + (along - across) * n[:, :, None] * n[:, None, :]
by_tensor = spinverse.simulate(Tissue(disc, tensors), table, **exact)
difference = np.abs(signals.values - by_tensor.values).max() / abs(by_tensor.values[0])
on_rank_0(f"term against tensor: {difference:.1e}")

# %% [markdown]
# ## Both diffusivities from the signals
#
# The excess is a Constant; the tissue's own diffusivity "D" is a value for each cell, made one
# number.

# %%
J = reduced_functional(
    Tissue(disc, 0.8), table, signals, extra_terms=along_fibres,
    extra_coefficients={"n": n, "excess": 0.5}, **exact,
    controls={"D": Number(log=True), "excess": Number()})
rate = taylor_rate(J, [control.control for control in J.controls])
on_rank_0(f"Taylor rate: {rate:.2f}")

found = J.physical(pyadjoint.minimize(J, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 0.0}))
on_rank_0(f"across: true {across:.4f}, found {found['D']:.4f}")
on_rank_0(f"along:  true {along:.4f}, found {found['D'] + found['excess']:.4f}")
