# %% [markdown]
# # New physics 2: flow
#
# - **Goal**: spins that are carried along by a given velocity; compare plug flow and flow between
#   two plates with closed forms; check that no magnetisation is lost; differentiate by the
#   velocity.
# - **Cores**: 1 (the same file runs under `mpiexec -n 2`).
# - **Minutes**: less than 1.
# - **Expected output**: lines that say that the time-stepping engine runs, and why; an error of
#   plug flow below 1e-4; the mean displacement between plates to 1e-4 um; nothing lost; a Taylor
#   rate of 2.00.
#
# `SPINVERSE_DEMO_SIZE=small` runs fewer cells and longer steps.

# %%
import os

import numpy as np
import ufl
from mpi4py import MPI

import spinverse
from spinverse import Acquisition, Tissue, forms, mesh
from spinverse.adjoint import reduced_functional, taylor_rate

SMALL = os.environ.get("SPINVERSE_DEMO_SIZE") == "small"


def on_rank_0(*words):
    """Under `mpiexec` every rank runs this file, one of them speaks."""
    if MPI.COMM_WORLD.rank == 0:
        print(*words)


# %% [markdown]
# ## The term
#
# dm/dt + div(u m) = ... for a velocity u (um/ms) without sources, that runs along walls and not
# through them. Tested with v and integrated by parts that is `-(m u, grad v)`, with nothing left
# at the walls: v = 1 shows that no magnetisation is lost. On a box that repeats the unknown is
# not m (see `spinverse.forms`), so `forms.gradient` stands in place of `ufl.grad`.


# %%
def flow(m, v, t, c):
    along = ufl.dot(forms.gradient(v, c), c["u"])
    return -ufl.inner(m, along) * c.dx


# %% [markdown]
# ## Plug flow
#
# All spins move by u t: the signal of a PGSE gains the phase g u delta Delta.

# %%
D = 2.0
box = mesh.build(mesh.box, [6.0, 4.0, 2.0], cells=(2, 2, 1) if SMALL else (3, 4, 1))
tissue = Tissue(box, D, periodic="x")
table = Acquisition.pgse([0, 50, 200], directions=[1, 0, 0], delta=3, Delta=10)
q = table.strength * 3.0  # rad/um
u = 0.25
step = 0.25 if SMALL else 0.05
plug = spinverse.simulate(tissue, table, time_step=step, extra_terms=flow,
                          extra_coefficients={"u": [u, 0.0, 0.0]})
plug_error = np.abs(plug.values / 48.0 - np.exp(-table.b / 1000 * D + 1j * q * u * 10.0)).max()
on_rank_0(f"plug flow: largest error of S / S0 {plug_error:.1e}")

# %% [markdown]
# ## Between two plates
#
# u = U (1 - (y / h)^2) between plates at y = -h and h. Diffusion across carries spins through all
# speeds, but uniform magnetisation stays uniform, so the mean displacement is 2/3 U Delta, and
# the phase of a weak gradient is q times that.

# %%
U, h = 0.3, 2.0


def between_plates(m, v, t, c):
    speed = c["U"] * (1 - (c.x[1] / h) ** 2)
    return -ufl.inner(m, speed * forms.gradient(v, c)[:, 0]) * c.dx


weak = Acquisition.pgse([0, 0.5], directions=[1, 0, 0], delta=3, Delta=10)
plates = spinverse.simulate(tissue, weak, time_step=step, degree=2, extra_terms=between_plates,
                            extra_coefficients={"U": U})
displacement = np.angle(plates.values[1]) / (weak.strength[1] * 3.0)
lost = abs(plates.values[0] / 48.0 - 1)
on_rank_0(f"plates: mean displacement {displacement:.5f} um, 2/3 U Delta = {2 / 3 * U * 10:.5f} um")
on_rank_0(f"magnetisation lost without gradient: {lost:.1e}")

# %% [markdown]
# ## Its derivative
#
# By the velocity U, with signals at U = 0.2 as the measured ones.

# %%
fewer = table.select(slice(1, 3))
measured = spinverse.simulate(tissue, fewer, engine="time_stepping", time_step=1.0,
                              extra_terms=between_plates, extra_coefficients={"U": 0.2})
J = reduced_functional(tissue, fewer, measured, ["U"], engine="time_stepping", time_step=1.0,
                       extra_terms=between_plates, extra_coefficients={"U": U})
rate = taylor_rate(J, J.controls[0].control)
on_rank_0(f"Taylor rate: {rate:.2f}")
