"""The Bloch-Torrey equation as a weak form: the place to read it, and to extend it.

In each cell, with the transverse magnetisation m (um, ms, rad):

    dm/dt = div(D grad m) - i (g . x) m - m / T2,          g(t) = gamma G f(t)

(div(D grad m) - m / T1 while a waveform stores m along z: `spinverse.acquisition.waveform`),
across every interior facet, n pointing from the - to the + side, and on the outer boundary:

    D grad m . n = kappa (m+ - m-),        D grad m . n = -kappa m

Multiplying by v, integrating over each cell and summing (v and m jump across facets):

    (dm/dt, v) + decay(m, v) + precession(m, v) = 0

Every function below is one term. ``m`` and ``v`` are scalar for the matrix formalism, which
needs real symmetric operators, and pairs (Re m, Im m) for time stepping; the terms are the same.
A new term is a function ``extra_terms(m, v, t, coefficients)`` of the pair, with the time t in ms:
pass it to `spinverse.simulate` or `spinverse.BlochTorrey` (docs/new_physics.md). The same form
runs on intervals, triangles and tetrahedra.

Where the spin densities rho of neighbours differ, uniform magnetisation is not at rest but
m = rho is. What crosses a membrane is then (SpinDoctor, Li et al. 2019)

    D grad m . n = kappa 2 (rho- m+ - rho+ m-) / (rho+ + rho-),

and the unknown is m / sqrt(rho), which keeps all operators symmetric; terms inside cells, where
rho is constant, read the same for it.

On boxes that repeat, m has a phase jump from one face to the opposite one that grows with the
gradient. Along periodic axes the unknown is therefore w = m exp(i Q . x) with

    Q(t) = int_0^t g,      dw/dt = (grad - i Q) . D (grad - i Q) w - w / T2,

membranes as before. w is periodic, and as Q(TE) = 0 the signal is its integral. Along the other
axes, where Q has no entry, the gradient precesses as always.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ufl

from .errors import InputError


@dataclass(frozen=True)
class Coefficients:
    """What the terms are made of. ``coefficients["name"]`` is one of the user's own.

    Attributes:
        D: diffusivity, scalar or 3x3 tensor per cell, um^2/ms.
        R2: transverse relaxation rate 1/T2 per cell, 1/ms.
        R1: longitudinal relaxation rate 1/T1 per cell, 1/ms.
        stored: 1 while magnetisation is stored along z and relaxes with R1, else 0, a constant.
        kappa: permeability, DG0 on the facet submesh, um/ms; 0 where facets are tied.
        membrane: 1 on facets that are membranes and 0 on open or tied ones, on the facet submesh:
            what a term on membranes is multiplied by where these are not known beforehand. It is
            1 / (1 + (kappa / (1 um/ms))^2), so that permeabilities have their gradient.
        x: position relative to the centre of the mesh, um.
        g: precession gradient gamma G f(t), a constant vector, rad/(ms um).
        dx, dS, ds: measures over cells, interior facets and outer facets.
        rho: spin density per cell where densities differ, None where they do not matter.
        extra: named coefficients of the user's own.
        periodic: axes along which the mesh repeats; ``ds`` leaves their faces out.
        Q: int_0^t g along these axes and 0 along the others, a constant vector, rad/um; None
            where no axis is periodic. Terms of the user's see the whole g as well as Q, and
            the unknown w: with `gradient` in place of ``ufl.grad`` they read as for m.
        echo_sign: +1 from the excitation on, turned by every 180-degree pulse. These are folded
            into the sign of g; a phase that goes on through them, as that of a background field
            does, is to be multiplied by this.
    """

    # of UFL, or DOLFINx's
    D: Any
    R2: Any
    kappa: Any
    x: Any
    g: Any
    dx: ufl.Measure
    dS: ufl.Measure
    ds: ufl.Measure
    rho: Any = None
    membrane: Any = None
    extra: dict = field(default_factory=dict)
    periodic: tuple[int, ...] = ()
    Q: Any = None
    echo_sign: Any = None
    R1: Any = None
    stored: Any = None

    def __getitem__(self, name: str):
        if name not in self.extra:
            raise InputError(f"extra_terms: coefficient {name!r}, expected one of "
                             f"extra_coefficients: {', '.join(map(repr, self.extra)) or 'none'}")
        return self.extra[name]


def mass(m, v, c: Coefficients) -> ufl.Form:
    """(m, v): what multiplies the time derivative."""
    return ufl.inner(m, v) * c.dx


def i_times(m):
    """i m for the pair m = (Re, Im)."""
    return ufl.as_vector((-m[1], m[0]))


def gradient(m, c: Coefficients):
    """grad m; on periodic boxes (grad - i Q) w, for the pair."""
    if c.Q is None or not ufl.shape(m):
        return ufl.grad(m)
    turned = i_times(m)
    return ufl.grad(m) - ufl.as_tensor([[part * Q for Q in c.Q] for part in turned])


def flux(m, c: Coefficients):
    """D grad m."""
    return ufl.dot(gradient(m, c), c.D) if ufl.shape(c.D) else c.D * gradient(m, c)


def diffusion(m, v, c: Coefficients) -> ufl.Form:
    """(D grad m, grad v) inside the cells."""
    return ufl.inner(flux(m, c), gradient(v, c)) * c.dx


def relaxation(m, v, c: Coefficients) -> ufl.Form:
    """(m / T2, v), or (m / T1, v) while m is stored."""
    rate = c.R2 if c.stored is None else (1 - c.stored) * c.R2 + c.stored * c.R1
    return rate * ufl.inner(m, v) * c.dx


def storage(m, v, c: Coefficients) -> ufl.Form:
    """(m / T1 - m / T2, v): what `relaxation` changes by where m is stored."""
    return (c.R1 - c.R2) * ufl.inner(m, v) * c.dx


def exchange(m, v, c: Coefficients) -> ufl.Form:
    """sum over interior facets of kappa [m] [v]: what crosses a membrane."""
    return c.kappa("+") * ufl.inner(jump(m, c), jump(v, c)) * c.dS


def jump(m, c: Coefficients):
    """m+ - m-; where densities differ, the difference that vanishes for m = rho."""
    if c.rho is None:
        return ufl.jump(m)
    plus, minus, mean = c.rho("+"), c.rho("-"), ufl.avg(c.rho)
    return ufl.sqrt(minus / mean) * m("+") - ufl.sqrt(plus / mean) * m("-")


def outflow(m, v, c: Coefficients) -> ufl.Form:
    """sum over outer facets of kappa m v: what leaves (kappa = 0 reflects)."""
    return c.kappa * ufl.inner(m, v) * c.ds


def precession(m, v, c: Coefficients) -> ufl.Form:
    """i (g . x) m tested with v, for the pair m; along axes that are not periodic."""
    axes = [j for j in range(len(c.g)) if j not in c.periodic]
    if not axes:
        return ufl.form.Form([])
    return sum(c.g[j] * c.x[j] for j in axes) * ufl.inner(i_times(m), v) * c.dx


def position(m, v, c: Coefficients, axis: int) -> ufl.Form:
    """(x_j m, v): what the matrix formalism knows of the precession."""
    return c.x[axis] * ufl.inner(m, v) * c.dx


def drift(m, v, c: Coefficients, axis: int) -> ufl.Form:
    """N_j with decay(w, v) + i Q_j N_j(w, v) + Q_j Q_k C_jk(w, v) what the whole form is at Q.

    Antisymmetric: (D_j . grad w, v) - (w, D_j . grad v), D_j the rows of D.
    """
    def along(u):
        return flux(u, c)[axis]

    return (along(m) * v - m * along(v)) * c.dx


def drift_squared(m, v, c: Coefficients, axis: int, other: int) -> ufl.Form:
    """C_jk of `drift`: (D_jk w, v); for a scalar D with j = k."""
    return (c.D[axis, other] if ufl.shape(c.D) else c.D) * ufl.inner(m, v) * c.dx


def decay(m, v, c: Coefficients) -> ufl.Form:
    """All that does not precess: for scalar m what is left without gradient."""
    return diffusion(m, v, c) + relaxation(m, v, c) + exchange(m, v, c) + outflow(m, v, c)


def bloch_torrey(m, v, c: Coefficients) -> ufl.Form:
    """The whole operator A(t) of M dm/dt + A(t) m = 0, for the pair (Re m, Im m)."""
    return decay(m, v, c) + precession(m, v, c)
