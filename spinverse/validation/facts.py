"""Cases beyond families 1 to 7: exchange, published layers, limits, a lattice, b-values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..acquisition import PGSE, Acquisition
from ..mesh import packed_spheres
from ..quantities import exchange_times, hadc, short_time_approximation
from ..simulate import DIRECTION_BASES, simulate
from ..units import b_from_internal
from . import analytic
from . import references as ref
from .discretisation import REFINED, Discretisation, round_layers, stack
from .rows import Row
from .signals import TARGETS, tissue_rows
from .solve import ENGINES, MATRIX_FORMALISM, Measurement, Settings, solve

X = (1.0, 0.0, 0.0)


def _chosen(geometry: str, lengths, level: str, coarse, fine) -> Discretisation:
    """P1 of a size at the default level (P2 in 3-D), P2 of another at the refined one."""
    size, degree = (fine, 2) if level == REFINED else (coarse, 2 if geometry == "sphere" else 1)
    if geometry == "slab":
        return stack(lengths, size, degree)
    return round_layers(geometry, lengths, size, degree)


def exchange_rows(settings: Settings) -> Iterator[Row]:
    """The slowest decay of a concentration difference, ms, in curved cells. Collective."""
    sizes = {"disk": (3.5, 1.8), "sphere": (5.0, 2.5)}
    for level in settings.levels:
        fine = level == REFINED
        for geometry, (lengths, slowest) in ref.EXCHANGE.items():
            choice = (stack(lengths, 0.2 if fine else 0.5) if geometry == "slab" else
                      round_layers(geometry, lengths, sizes[geometry][fine], 2))
            problem, columns = choice.problem(settings.comm, kappa=0.02)
            ours = exchange_times(problem, 1)
            yield Row("exchange", f"exchange_{geometry}", level, "exchange_times", ("ms",),
                      (float(ours[0]),), (slowest,), (5e-5,), TARGETS[level], relative=True,
                      **columns)


def layer_rows(settings: Settings) -> Iterator[Row]:
    """Published three-layer signals, and unequal slabs against the layer solver. Collective."""
    sizes = {"disk": (0.5, 1.0), "sphere": (2.0, 1.5)}
    for level in settings.levels:
        thicknesses, D, T2 = (3.0, 5.0, 4.0), (2.0, 1.0, 3.0), (80.0, 40.0, np.inf)
        b = (500.0, 1000.0, 2000.0, 4000.0)
        exact = analytic.slabs(b, 5, 15, thicknesses, [0.05, np.inf], D, T2)
        case = _layered("slab3_unequal_open_T2", "slab", thicknesses, D, {1: 0.05, 2: np.inf}, T2,
                        PGSE(5.0, 15.0), b, tuple(exact.tolist()), 1e-9)
        yield from tissue_rows([case], level, settings,
                               _chosen("slab", thicknesses, level, 0.25, 0.5))
        for name, (geometry, D, kappa, published) in ref.LAYERS.items():
            case = _layered(name, geometry, ref.LAYER_RADII, D, kappa, None, PGSE(40.0, 40.0),
                            ref.LAYER_B, published, ref.ROUNDING)
            yield from tissue_rows([case], level, settings, _chosen(
                geometry, ref.LAYER_RADII, level, *sizes[geometry]))


def _layered(name, geometry, lengths, D, kappa, T2, waveform, b, reference,
             uncertainty: float) -> ref.Case:
    """Layers of different diffusivity, gradient along x."""
    return ref.Case("layers", name, name, geometry, lengths, dict(enumerate(D, 1)), kappa, T2,
                    waveform, (X,), b, reference, (uncertainty,) * len(b), False)


def narrowing_rows(settings: Settings) -> Iterator[Row]:
    """Long pulses without a gap: -ln E = (gamma g)^2 c1 L^4 / D (2 delta - c2 L^2 / D).

    c1 = 1/120 and c2 = 17/56 for a slab of thickness L, 7/96 and 99/112 for a cylinder, 8/175 and
    83/120 for a sphere of radius L (Robertson, Phys. Rev. 151, 273, 1966; Neuman, J. Chem. Phys.
    60, 4508, 1974): two pulse lengths give both, two strengths what is left at g = 0. Collective.
    """
    D, wanted = 2.0, 0.01
    lengths = {"slab": 10.0, "disk": 5.0, "sphere": 5.0}
    sizes = {"slab": (0.25, 0.5), "disk": (0.4, 0.7), "sphere": (1.6, 1.2)}
    known = {entry["geometry"]: (entry["theory_c1"], entry["theory_c2"])
             for entry in ref.data()["limits"] if "theory_c1" in entry}
    for level in settings.levels:
        for geometry, (c1, c2) in known.items():
            L = lengths[geometry]
            choice = _chosen(geometry, [L], level, *sizes[geometry])
            problem, columns = choice.problem(settings.comm, D)
            deltas = np.array([3.0, 6.0]) * L**2 / D
            g2 = wanted * D / (2 * c1 * L**4 * deltas[1])
            pulses = [PGSE(float(delta), float(delta)) for delta in deltas]
            rows = [Measurement(p, float(b_from_internal(share * g2 * p.b_factor)), X)
                    for share in (1.0, 0.5) for p in pulses]
            for engine in filter(settings.runs, ENGINES):
                # -ln E is a hundredth: so is what modes and steps may leave
                solved = solve(problem, rows, engine, wanted * settings.tolerance_at(level))
                full, half = (-np.log([solved.signals[row] for row in part]) for part in
                              (rows[:2], rows[2:]))
                # what is left of -ln E / g^2 at g = 0; the next order in g^2 goes
                found = (4 * half - full) * D / (g2 * L**4)
                ours1 = np.diff(found)[0] / (2 * np.diff(deltas)[0])
                ours2 = (2 * deltas[1] - found[1] / ours1) * D / L**2
                yield Row("narrowing", f"narrowing_{geometry}", level, engine, ("c1", "c2"),
                          (float(ours1), float(ours2)), (c1, c2), (), TARGETS[level],
                          relative=True, **solved.columns, **columns)


def short_time_rows(settings: Settings) -> Iterator[Row]:
    """D(t) / D of short pulses, by `hadc`, and its Mitra limit, by the walls' area. Collective.

    Each shape is meshed finely in the layer at the wall that diffusion reaches, for the times
    that its mesh resolves: from ``shortest`` on.
    """
    # by level: layers, um, their sizes, um, shortest time, us
    choices: dict[str, dict[str, Any]] = {
        "slab": {"default": ((0.5, 9.0, 0.5), 0.02, 1), "refined": ((0.5, 9.0, 0.5), 0.005, 1)},
        "disk": {"default": ((4.3, 5.0), (0.8, 0.2), 16), "refined": ((4.3, 5.0), (0.8, 0.08), 4)},
        "sphere": {"default": ((4.0, 5.0), (1.5, 0.8), 256),
                   "refined": ((4.3, 5.0), (1.5, 0.5), 64)}}
    for level in settings.levels:
        for geometry, by_level in choices.items():
            layers, sizes, shortest = by_level[level]
            choice = (stack(layers, sizes, 2) if geometry == "slab"
                      else round_layers(geometry, layers, sizes, 2))
            problem, columns = choice.problem(settings.comm)
            del columns["unknowns"]  # both models have their own
            entries = [e for e in ref.data()["limits"] if e["geometry"] == geometry and "t" in e]
            times = [ref.US * entry["t"] for entry in entries]
            table = Acquisition.concatenate([
                Acquisition.pgse(1000.0, X, delta=1e-4 * t, Delta=t) for t in times])
            resolved = [k for k, entry in enumerate(entries) if entry["t"] >= shortest]
            for column, method in (("D_ratio", hadc), ("mitra", short_time_approximation)):
                if method is hadc:
                    shown = [entries[k] for k in resolved]
                    # its own choice of steps follows the pulses, which do not matter here
                    ours = [float(hadc(problem, table.select([k]), times[k] / 50).adc[0])
                            for k in resolved]
                else:
                    shown, ours = entries, short_time_approximation(problem, table).adc.tolist()
                yield Row("short_time", f"{column}_{geometry}", level, method.__name__,
                          tuple(f"t = {e['t']:g} us" for e in shown), tuple(D / 2.0 for D in ours),
                          tuple(entry[column] for entry in shown), (), TARGETS[level], **columns)


def effective_rows(settings: Settings) -> Iterator[Row]:
    """ADC of an endless stack at long times, which tends to 1 / (1/D + 1/(kappa h)). Collective.

    The stack is one period of a periodic box, half a layer on each side of the membrane.
    """
    for level in settings.levels:
        stacks = {(e["h"], e["kappa"]): e["D_eff"] for e in ref.data()["effective_medium"]}
        for (h, kappa), D_eff in stacks.items():
            entries = [e for e in ref.data()["effective_medium"]
                       if (e["h"], e["kappa"]) == (h, kappa)]
            choice = stack([h / 2, h / 2], h / 20, 2 if level == REFINED else 1)
            problem, columns = choice.problem(settings.comm, kappa=ref.PER_US * kappa, periodic="x")
            b = float(b_from_internal(ref.EFFECTIVE_MEDIUM_BD / (ref.PER_US * D_eff)))
            rows = [Measurement(PGSE(ref.EFFECTIVE_MEDIUM_DELTA, ref.US * e["Delta"]), b, X)
                    for e in entries]
            at = tuple(f"Delta = {ref.US * e['Delta']:g} ms" for e in entries)
            for engine in filter(settings.runs, ENGINES):
                # implicit steps over 1.6 s of a decay that is nearly over: the shortest only
                some = rows if engine == MATRIX_FORMALISM or settings.everything else rows[:1]
                solved = solve(problem, some, engine, settings.tolerance_at(level) / 10)
                ours = -np.log([solved.signals[row] for row in some]) / ref.EFFECTIVE_MEDIUM_BD
                yield Row("effective", f"effective_h{h:g}_k{kappa:g}", level, engine,
                          at[:len(some)], tuple((ours * D_eff * ref.PER_US).tolist()),
                          tuple(ref.PER_US * e["D_app"] for e in entries[:len(some)]), (),
                          TARGETS[level], relative=True, **solved.columns, **columns)


def lattice_rows(settings: Settings) -> Iterator[Row]:
    """Balls on a periodic lattice by what `simulate` chooses, with the mesh's error that it says.

    Time stepping would take a factor for every step of every gradient. Collective.
    """
    for level in settings.levels if settings.runs(MATRIX_FORMALISM) else ():
        choice = Discretisation(packed_spheres, (
            ("radii", (ref.RADIUS,)), ("box", (ref.LENGTH,) * 3), ("periodic", True),
            ("order", 2)), 1.0 if level == REFINED else 1.5, 2)
        for kappa, exact in ref.LATTICE.items():
            problem, columns = choice.problem(settings.comm, ref.D, kappa=kappa, periodic="xyz")
            table = Acquisition.pgse([0, *exact], X, ref.PULSE, ref.SEPARATION)
            found = simulate(problem.tissue, table, tolerance=settings.tolerance_at(level))
            yield Row("lattice", f"balls_kappa{kappa:g}", level, DIRECTION_BASES,
                      tuple(f"b = {b:g}" for b in exact), tuple(found.normalised[1:].tolist()),
                      tuple(exact.values()), (1e-6,) * len(exact), TARGETS["default"],
                      resolution=f"mesh: {found.mesh_error:.1g}",
                      estimated_error=found.estimated_error, **columns)


def b_value_rows(settings: Settings) -> Iterator[Row]:
    """b over q^2 of every waveform, ms^3, without a mesh."""
    for entry in ref.data()["bvalue_checks"]:
        waveform = ref.waveform_of(entry["waveform"], entry["params"])
        words = "_".join(f"{key}{value:g}" for key, value in entry["params"].items())
        yield Row("b_values", f"b_{entry['waveform']}_{words}", "default", "b_factor",
                  ("closed form", "quadrature"), (float(waveform.b_factor),) * 2,
                  (ref.US**3 * entry["b_over_q2"], ref.US**3 * entry["b_over_q2_quadrature"]), (),
                  1e-9, relative=True)
