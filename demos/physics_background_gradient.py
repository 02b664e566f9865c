# %% [markdown]
# # New physics 3: background gradients from susceptibility
#
# - **Goal**: the field of a magnetised cylinder turns phases all the time, whatever the gradients
#   of the scanner do; compare a linear field with the same gradient in the waveform; see what a
#   vessel does to a spin echo, with both engines; differentiate by its susceptibility.
# - **Cores**: 1 (the same file runs under `mpiexec -n 2`).
# - **Minutes**: less than 1.
# - **Expected output**: the linear field and the waveform agree to 1e-4, the engines too; a table
#   of signals with and without the vessel's field; a Taylor rate of 2.00.
#
# `SPINVERSE_DEMO_SIZE=small` runs a coarser mesh and fewer b-values.

# %%
import os

import numpy as np
import ufl
from mpi4py import MPI

import spinverse
from spinverse import Acquisition, Permeability, Tissue, forms, mesh, units
from spinverse.adjoint import reduced_functional, taylor_rate

SMALL = os.environ.get("SPINVERSE_DEMO_SIZE") == "small"


def on_rank_0(*words):
    """Under `mpiexec` every rank runs this file, one of them speaks."""
    if MPI.COMM_WORLD.rank == 0:
        print(*words)


# %% [markdown]
# ## The term
#
# A field that shifts the Larmor frequency by omega(x), rad/ms, adds i omega m. `forms.i_times` is
# i for the pair (Re m, Im m). The 180-degree pulse turns the sign of all phases; waveforms have
# that folded into the gradient, and `echo_sign` says it to terms that need it: +1 before, -1
# after it. Without `echo_sign` the same line is the field of a gradient echo.


# %%
def background(m, v, t, c):
    return c.echo_sign * c["omega"] * ufl.inner(forms.i_times(m), v) * c.dx


# %% [markdown]
# ## A linear field is a gradient
#
# Between walls at 8 um: omega = w x with w = 0.02 rad/(ms um), against a waveform that has it in
# itself, with its sign turned in the middle.

# %%
line = mesh.build(mesh.intervals, [8.0], size=0.5 if SMALL else 0.2)
x = ufl.SpatialCoordinate(line.domain)
pulse, TE = 5.0, 30.0  # ms
g, w = 0.06, 0.02  # rad/(ms um)

plain = spinverse.acquisition.PGSE(pulse, TE - pulse)
table = Acquisition.from_gradient(plain, units.gradient_from_internal(g), [1, 0, 0])
in_term = spinverse.simulate(Tissue(line), table, tolerance=1e-5, extra_terms=background,
                             extra_coefficients={"omega": w * x[0]})
times = [0, pulse, pulse, TE / 2, TE / 2, TE - pulse, TE - pulse, TE]
values = np.array([g + w, g + w, w, w, -w, -w, -g - w, -g - w])
both = Acquisition.sampled(times=times, values=units.gradient_from_internal(values),
                           directions=[1, 0, 0])
in_waveform = spinverse.simulate(Tissue(line), both, tolerance=1e-5)
linear_error = abs(in_term.values[0] - in_waveform.values[0]) / 8.0
without = spinverse.simulate(Tissue(line), table, tolerance=1e-5)
on_rank_0(f"linear field: S/S0 {in_term.values[0].real / 8:.5f}, as a waveform "
          f"{in_waveform.values[0].real / 8:.5f}, without it {without.values[0].real / 8:.5f}")

# %% [markdown]
# ## A vessel
#
# A cylinder of radius a across B0, with a susceptibility that differs by chi (SI) from what is
# around it, shifts the frequency outside by gamma B0 chi / 2 (a / r)^2 cos 2 theta, and inside by
# gamma B0 chi (1/2 - 1/3), theta from B0. The plane of the mesh is across the vessel, B0 along x,
# and the vessel's wall lets nothing through. chi is a plain number: a Constant that J below may
# vary.

# %%
a, B0, chi = 3.0, 7.0, 4e-7
per_tesla = units.GAMMA / 1000  # rad/ms
disc = mesh.build(mesh.disks, radii=[a, 12.0], size=[1.5, 3.0] if SMALL else [0.7, 1.0])


def vessel(m, v, t, c):
    x, y = c.x
    r2 = x**2 + y**2
    outside = 0.5 * a**2 * (x**2 - y**2) / ufl.max_value(r2, a**2) ** 2
    shape = c["inside"] / 6 + (1 - c["inside"]) * outside
    return (c.echo_sign * per_tesla * B0 * c["chi"] * 1e-6 * shape
            * ufl.inner(forms.i_times(m), v) * c.dx(degree=4))


tissue = Tissue(disc, 1.0, permeability=Permeability.on(disc, membrane=0.0))
extra = {"chi": 1e6 * chi, "inside": {1: 1.0, 2: 0.0}}  # chi in ppm
angles = np.deg2rad([0.0, 45.0, 90.0])
echo = Acquisition.pgse([0, 1000] if SMALL else [0, 500, 1000, 2000],
                        directions=np.column_stack([np.cos(angles), np.sin(angles), 0 * angles]),
                        delta=10, Delta=30)
dark = spinverse.simulate(tissue, echo, tolerance=1e-4, extra_terms=vessel,
                          extra_coefficients=extra)
bright = spinverse.simulate(tissue, echo, tolerance=1e-4)
area = 12.0**2 * np.pi
on_rank_0("b (s/mm^2)  angle to B0   S/S0 with the field      without")
for b, direction, with_field, plain_signal in zip(echo.b, echo.directions, dark.values / area,
                                                  bright.values / area, strict=True):
    angle = np.rad2deg(np.arctan2(direction[1], direction[0]))
    on_rank_0(f"{b:8.0f} {angle:12.0f} {with_field.real:16.4f}{with_field.imag:+.4f}i "
              f"{plain_signal.real:10.4f}")

# %% [markdown]
# The field is constant but for the sign of the echo, so the fast engine took it. Time stepping
# must say the same.

# %%
last = echo.select([len(echo) - 2])
stepped = spinverse.simulate(tissue, last, engine="time_stepping", tolerance=2e-4,
                             extra_terms=vessel, extra_coefficients=extra)
engines_differ = abs(stepped.values[0] - dark.values[len(echo) - 2]) / area
on_rank_0(f"engines differ by {engines_differ:.1e} of S0")

# %% [markdown]
# ## Its derivative
#
# The loss against signals without the field, as a function of chi: what a fit of the oxygenation
# of blood would start from.

# %%
J = reduced_functional(tissue, last, bright.select([len(echo) - 2]), "chi",
                       engine="time_stepping", time_step=2.0,
                       extra_terms=vessel, extra_coefficients=extra)
rate = taylor_rate(J, J.controls[0].control)
on_rank_0(f"Taylor rate, time stepping: {rate:.2f}")

small_disc = mesh.build(mesh.disks, radii=[a, 6.0], size=3.0)
tissue = Tissue(small_disc, 1.0, permeability=Permeability.on(small_disc, membrane=0.0))
J = reduced_functional(tissue, last, np.array([50.0]), "chi", engine="matrix_formalism",
                       modes=10**6, extra_terms=vessel, extra_coefficients=extra)
fast_rate = taylor_rate(J, J.controls[0].control, first=2e-3)
on_rank_0(f"Taylor rate, matrix formalism with all modes of a smaller disc: {fast_rate:.2f}")
