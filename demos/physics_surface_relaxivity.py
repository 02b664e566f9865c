# %% [markdown]
# # New physics 1: surface relaxivity of membranes
#
# - **Goal**: magnetisation that dies at membranes, on both of their sides, as a term of your own;
#   compare with closed forms; recover relaxivity, diffusivity and permeability from signals.
# - **Cores**: 1 (the same file runs under `mpiexec -n 2`).
# - **Minutes**: 1.
# - **Expected output**: S(TE)/S(0) of three slabs and of a ball against the series of Brownstein
#   and Tarr (1979), errors below 1e-3; a Taylor rate of 2.00; the three coefficients, each within
#   1 % of the true one.
#
# `SPINVERSE_DEMO_SIZE=small` runs coarser meshes and fewer measurements.

# %%
import os

import numpy as np
import pyadjoint
import scipy.optimize
import ufl
from mpi4py import MPI

import spinverse
from spinverse import Acquisition, Permeability, Tissue, mesh
from spinverse.adjoint import Number, Values, reduced_functional, taylor_rate

SMALL = os.environ.get("SPINVERSE_DEMO_SIZE") == "small"


def on_rank_0(*words):
    """Under `mpiexec` every rank runs this file, one of them speaks."""
    if MPI.COMM_WORLD.rank == 0:
        print(*words)


# %% [markdown]
# ## The term
#
# At a wall with relaxivity rho (um/ms), D grad m . n = -rho m, n pointing into the wall. Tested
# with v that is `rho m v` on the wall. A membrane inside the mesh has two sides, `m("+")` and
# `m("-")`; a field on the facets has one value for both, and is still to be given a side there.


# %%
def relaxing_walls(m, v, t, c):
    rho = c["rho"]
    both_sides = ufl.inner(m("+"), v("+")) + ufl.inner(m("-"), v("-"))
    return rho("+") * both_sides * c.dS + rho * ufl.inner(m, v) * c.ds


# %% [markdown]
# ## Closed forms
#
# Brownstein and Tarr, Phys. Rev. A 19 (1979) 2446: in a slab of width 2 a the modes cos(xi x / a)
# have xi tan(xi) = rho a / D, in a ball of radius a 1 - xi cot(xi) = rho a / D, and decay with D
# xi^2 / a^2.


# %%
def remaining(kind, a, rho, D, time, terms=40):
    """S(t) / S(0) between walls with relaxivity rho."""
    h = rho * a / D
    total = 0.0
    for n in range(terms):
        low, high = n * np.pi + 1e-9, n * np.pi + (np.pi / 2 if kind == "slab" else np.pi) - 1e-9
        if kind == "slab":
            xi = scipy.optimize.brentq(lambda x: x * np.sin(x) - h * np.cos(x), low, high)
            weight = 4 * np.sin(xi) ** 2 / (xi * (2 * xi + np.sin(2 * xi)))
        else:
            xi = scipy.optimize.brentq(lambda x: (1 - h) * np.sin(x) - x * np.cos(x), low, high)
            weight = 12 * (np.sin(xi) - xi * np.cos(xi)) ** 2 / (
                xi**3 * (2 * xi - np.sin(2 * xi)))
        total += weight * np.exp(-D * (xi / a) ** 2 * time)
    return total


# %% [markdown]
# ## Three slabs of 4 um and a ball of 5 um
#
# The membranes between the slabs let nothing through, so each slab is one by itself, and the
# signal is that of a single one. In slow relaxation (rho a << D) the rate is rho S / V, 2 rho / 4
# um for the slabs. A term that is symmetric and does not depend on the time goes into the
# eigenproblem of the fast engine; nothing is to be said for that.

# %%
D, rho, TE = 2.0, 0.1, 30.0
still = Acquisition.pgse(b=[0], directions=[1, 0, 0], delta=5, Delta=TE - 5)

slabs = mesh.build(mesh.intervals, [4.0, 4.0, 4.0], size=0.4 if SMALL else 0.1)
on_walls = slabs.facet_function(np.where((slabs.interface > 0) | slabs.outer, rho, 0.0))
tissue = Tissue(slabs, D, permeability=Permeability.on(slabs, membrane=0.0))
signal = spinverse.simulate(tissue, still, tolerance=1e-6, extra_terms=relaxing_walls,
                            extra_coefficients={"rho": on_walls})
slab_signal = signal.values[0].real / 12.0
slab_exact = remaining("slab", 2.0, rho, D, TE)

ball = mesh.build(mesh.spheres, radii=[5.0], size=2.5 if SMALL else 1.5)
on_sphere = ball.facet_function(np.where(ball.outer, rho, 0.0))
signal = spinverse.simulate(Tissue(ball, D), still, degree=2, tolerance=1e-5,
                            extra_terms=relaxing_walls, extra_coefficients={"rho": on_sphere})
# the flat facets of the ball hold its volume, but have another area
areas = MPI.COMM_WORLD.allreduce(float(ball.facet_areas[ball.outer].sum()))
ball_signal = signal.values[0].real / (4 / 3 * np.pi * 5**3)
ball_exact = remaining("ball", 5.0, rho * areas / (4 * np.pi * 25), D, TE)

on_rank_0(f"slabs: {slab_signal:.6f}, closed form {slab_exact:.6f}, "
          f"exp(-rho S/V t) {np.exp(-rho * TE / 2):.6f}")
on_rank_0(f"ball:  {ball_signal:.6f}, closed form {ball_exact:.6f}, "
          f"exp(-rho S/V t) {np.exp(-rho * 3 * TE / 5):.6f}")

# %% [markdown]
# ## Is its derivative right?
#
# `reduced_functional` makes a loss, the mean square difference from measured signals, a function
# of coefficients by name. No adjoint is written for the new term. Let the membranes leak, and
# take all three coefficients as numbers: on membranes where there are any, in all cells.

# %%
true = {"rho": 0.1, "D": 2.0, "kappa": 0.05}
table = Acquisition.pgse([0, 500, 1500] if SMALL else [0, 300, 800, 1500, 3000],
                         directions=[1, 0, 0], delta=4, Delta=[8, 30] if SMALL else [8, 20, 50])
layers = mesh.build(mesh.intervals, [3.0, 5.0, 4.0], size=0.5 if SMALL else 0.2)
membranes = layers.interface > 0


def fields(values):
    """A tissue with these values, and the relaxivity of its membranes."""
    kappa = np.where(membranes, values["kappa"], np.where(layers.outer, 0.0, np.inf))
    return (Tissue(layers, values["D"], permeability=Permeability(layers, kappa)),
            {"rho": layers.facet_function(np.where(membranes, values["rho"], 0.0))})


tissue, extra = fields(true)
exact = {"engine": "matrix_formalism", "modes": 10**6}  # all there are
measured = spinverse.simulate(tissue, table, extra_terms=relaxing_walls, extra_coefficients=extra,
                              **exact)

tissue, extra = fields({"rho": 0.03, "D": 1.2, "kappa": 0.2})
J = reduced_functional(
    tissue, table, measured, extra_terms=relaxing_walls, extra_coefficients=extra, **exact,
    controls={"rho": Number(where=membranes, log=True), "D": Number(log=True),
              "kappa": Number(where=membranes, log=True)})
start = [control.control for control in J.controls]
rate = taylor_rate(J, start)
on_rank_0(f"Taylor rate: {rate:.2f}")

# %% [markdown]
# Every value of a coefficient can be a control as well: here each facet's relaxivity. A
# functional writes into the Functions that it is given, so this one gets its own.

# %%
_, extra = fields({"rho": 0.03, "D": 1.2, "kappa": 0.2})
J_each = reduced_functional(tissue, table, measured, extra_terms=relaxing_walls,
                            extra_coefficients=extra, controls={"rho": Values()}, **exact)
rate_each = taylor_rate(J_each, J_each.controls[0].control, first=2e-3)
on_rank_0(f"Taylor rate, {J_each.controls[0].control._ad_dim()} facets: {rate_each:.2f}")

# %% [markdown]
# ## All three from the signals
#
# The optimiser is scipy's, through pyadjoint; TAO's take the same J. Losses of good fits are
# small numbers: leave the end to the gradient, not to the change of J (`ftol`).

# %%
found = pyadjoint.minimize(J, method="L-BFGS-B",
                           options={"gtol": 1e-10, "ftol": 0.0, "maxiter": 200})
values = J.physical(found)
for name in true:
    on_rank_0(f"{name:6s} true {true[name]:.4f}   found {values[name]:.4f}")
