"""The Bloch-Torrey equation as a weak form: the place to read it, and to extend it.

In each cell, with the transverse magnetisation m (um, ms, rad):

    dm/dt = div(D grad m) - i (g . x) m - m / T2,          g(t) = gamma G f(t)

across every interior facet, n pointing from the - to the + side, and on the outer boundary:

    D grad m . n = kappa (m+ - m-),        D grad m . n = -kappa m

Multiplying by v, integrating over each cell and summing (v and m jump across facets):

    (dm/dt, v) + decay(m, v) + precession(m, v) = 0

Every function below is one term. ``m`` and ``v`` are scalar for the matrix formalism, which
needs real symmetric operators, and pairs (Re m, Im m) for time stepping; the terms are the same.
A new term is a function of the same kind: pass it as ``extra_terms`` to
`spinverse.BlochTorrey`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import ufl


@dataclass(frozen=True)
class Coefficients:
    """What the terms are made of.

    Attributes:
        D: diffusivity, scalar or 3x3 tensor per cell, um^2/ms.
        R2: transverse relaxation rate 1/T2 per cell, 1/ms.
        kappa: permeability, DG0 on the facet submesh, um/ms.
        x: position relative to the centre of the mesh, um.
        g: precession gradient gamma G f(t), a constant vector, rad/(ms um).
        dx, dS, ds: measures over cells, interior facets and outer facets.
        extra: named coefficients of the user's own.
    """

    D: object
    R2: object
    kappa: object
    x: object
    g: object
    dx: ufl.Measure
    dS: ufl.Measure
    ds: ufl.Measure
    extra: dict = field(default_factory=dict)


def mass(m, v, c: Coefficients) -> ufl.Form:
    """(m, v): what multiplies the time derivative."""
    return ufl.inner(m, v) * c.dx


def diffusion(m, v, c: Coefficients) -> ufl.Form:
    """(D grad m, grad v) inside the cells."""
    flux = ufl.dot(ufl.grad(m), c.D) if ufl.shape(c.D) else c.D * ufl.grad(m)
    return ufl.inner(flux, ufl.grad(v)) * c.dx


def relaxation(m, v, c: Coefficients) -> ufl.Form:
    """(m / T2, v)."""
    return c.R2 * ufl.inner(m, v) * c.dx


def exchange(m, v, c: Coefficients) -> ufl.Form:
    """sum over interior facets of kappa [m] [v]: what crosses a membrane."""
    return c.kappa("+") * ufl.inner(ufl.jump(m), ufl.jump(v)) * c.dS


def outflow(m, v, c: Coefficients) -> ufl.Form:
    """sum over outer facets of kappa m v: what leaves (kappa = 0 reflects)."""
    return c.kappa * ufl.inner(m, v) * c.ds


def precession(m, v, c: Coefficients) -> ufl.Form:
    """i (g . x) m tested with v, for the pair m = (Re, Im): i m = (-Im, Re)."""
    i_m = ufl.as_vector((-m[1], m[0]))
    return ufl.dot(c.g, c.x) * ufl.inner(i_m, v) * c.dx


def position(m, v, c: Coefficients, axis: int) -> ufl.Form:
    """(x_j m, v): what the matrix formalism knows of the precession."""
    return c.x[axis] * ufl.inner(m, v) * c.dx


def decay(m, v, c: Coefficients) -> ufl.Form:
    """All that does not depend on the gradient."""
    return diffusion(m, v, c) + relaxation(m, v, c) + exchange(m, v, c) + outflow(m, v, c)


def bloch_torrey(m, v, c: Coefficients) -> ufl.Form:
    """The whole operator A(t) of M dm/dt + A(t) m = 0, for the pair (Re m, Im m)."""
    return decay(m, v, c) + precession(m, v, c)
