"""Cases by which other simulators show what they are worth."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.linalg import expm

from ..acquisition import PGSE, Acquisition
from ..mesh import packed_cylinders, packed_spheres
from ..simulate import DIRECTION_BASES, simulate
from . import analytic
from . import references as ref
from .discretisation import REFINED, Discretisation, round_layers
from .rows import Row
from .signals import TARGETS, tissue_rows
from .solve import MATRIX_FORMALISM, Settings

X = (1.0, 0.0, 0.0)
# a square array of cylinders: radius, um; diffusion times, ms, long beside L^2 / D; b, s/mm^2
ARRAY_RADIUS, ARRAY_TIMES, ARRAY_B, ARRAY_SHARES = 3.0, (40.0, 80.0), 50.0, (0.3, 0.5)


def published_rows(settings: Settings) -> Iterator[Row]:
    """All of them. Collective."""
    yield from misst_rows(settings)
    if settings.runs(MATRIX_FORMALISM):  # time stepping of a lattice would take hours
        yield from karger_rows(settings)
        yield from tortuosity_rows(settings)


def misst_rows(settings: Settings) -> Iterator[Row]:
    """Signals inside a cylinder and a sphere as MISST has them (Drobnjak et al., JMR 2011).

    Its gradients are steps of finite height and length: that is the references' uncertainty.
    """
    for level in settings.levels:
        for (geometry, delta), signals in ref.MISST.items():
            case = ref.Case("published", f"misst_{geometry}_d{delta:g}", f"misst_{geometry}",
                            geometry, (ref.MISST_RADIUS,), 2.0, 0.0, None,
                            PGSE(delta, ref.MISST_DELTA), (X,), ref.MISST_B, signals,
                            (ref.MISST_ERROR,) * len(signals), False)
            disk, fine = geometry == "disk", level == REFINED
            yield from tissue_rows([case], level, settings, round_layers(
                geometry, [ref.MISST_RADIUS], (0.5 if disk else 1.0) if fine else
                (0.5 if disk else 1.5), 1 if disk and not fine else 2))


def karger(inside, outside, share: float, rate: float, time: float) -> np.ndarray:
    """Signals of two well-mixed compartments that exchange (Karger et al., Adv. Magn. Reson. 1988).

    Args:
        inside, outside: ``(n,)`` signals of each without exchange.
        share: of the inside at equilibrium.
        rate: of leaving the inside, 1/ms.
        time: of exchange, ms.
    """
    away = np.array([[rate, -rate * share / (1 - share)], [-rate, rate * share / (1 - share)]])
    weights = np.array([share, 1 - share])
    return np.array([(expm(np.diag(np.log([s_in, s_out])) - time * away) @ weights).sum()
                     for s_in, s_out in zip(inside, outside, strict=True)])


def karger_rows(settings: Settings) -> Iterator[Row]:
    """Permeable packed spheres beside the model: it is the model that is off. Collective."""
    share, (delta, Delta), radius = ref.KARGER_SHARE, ref.KARGER_PULSES, ref.KARGER_RADIUS
    length = radius * (4 / 3 * np.pi / share) ** (1 / 3)
    table = Acquisition.pgse(ref.KARGER_B, X, delta, Delta)
    inside = analytic.sphere(ref.KARGER_B, delta, Delta, radius)
    for level in settings.levels:
        choice = Discretisation(packed_spheres, (("radii", (radius,)), ("box", (length,) * 3),
                                                 ("gap", 0.5), ("periodic", True),
                                                 ("order", 2)),
                                1.2 if level == REFINED else 1.8, 2)

        def signals(kappa, choice=choice, level=level):
            problem, columns = choice.problem(settings.comm, kappa=kappa, periodic="xyz")
            return simulate(problem.tissue, table, tolerance=settings.tolerance_at(level)), columns

        outside = (signals(0.0)[0].normalised - share * inside) / (1 - share)
        for kappa, target in ref.KARGER.items():
            found, columns = signals(kappa)
            model = karger(inside, outside, share, 3 * kappa / radius, Delta - delta / 3)
            yield Row("published", f"karger_kappa{kappa:g}", level, DIRECTION_BASES,
                      tuple(f"b = {b:g}" for b in ref.KARGER_B), tuple(found.normalised.tolist()),
                      tuple(model.tolist()), (), target,
                      resolution=f"mesh: {found.mesh_error:.1g}",
                      estimated_error=found.estimated_error, **columns)


def tortuosity_rows(settings: Settings) -> Iterator[Row]:
    """D_infinity / D between closed cylinders in a square array. Collective.

    Of insulating cylinders with the share f: the conductivity of Perrins, McKenzie and McPhedran
    (Proc. R. Soc. A 369, 207 (1979)), over what is left of the volume. Ours: the slope of the mean
    square displacement between two long times, at low b.
    """
    times = np.array(ARRAY_TIMES) - 1 / 3
    table = Acquisition.concatenate([Acquisition.pgse(ARRAY_B, X, 1.0, Delta)
                                     for Delta in ARRAY_TIMES])
    for level in settings.levels:
        for f in ARRAY_SHARES:
            length = float(np.sqrt(np.pi * ARRAY_RADIUS**2 / f))
            choice = Discretisation(packed_cylinders, (
                ("height", 1.0), ("radii", (ARRAY_RADIUS,)), ("box", (length,) * 2), ("gap", 0.2),
                ("periodic", True), ("order", 2)), 0.4 if level == REFINED else 0.8, 2)
            problem, columns = choice.problem(settings.comm, kappa=0.0, periodic="xyz")
            # -ln E is a tenth
            found = simulate(problem.tissue, table, DIRECTION_BASES, 2, mesh_error=False,
                             tolerance=settings.tolerance_at(level) / 10)
            inside = np.array([analytic.cylinder(ARRAY_B, 1.0, Delta, ARRAY_RADIUS)
                               for Delta in ARRAY_TIMES])
            outside = (found.normalised - f * inside) / (1 - f)
            D = np.diff(-np.log(outside) * 1e3 / ARRAY_B * times)[0] / np.diff(times)[0]
            yield Row("published", f"tortuosity_f{f:g}", level, DIRECTION_BASES, ("D / D0",),
                      (float(D / 2.0),), (square_array(f),), (), TARGETS["default"], relative=True,
                      estimated_error=found.estimated_error, **columns)


def square_array(f: float) -> float:
    """D_infinity / D between insulating cylinders with the share ``f``; see `tortuosity_rows`."""
    inner = f + 1 - 0.305827 * f**4 / (1 - 1.402958 * f**8) - 0.013362 * f**8
    return (1 - 2 * f / inner) / (1 - f)
