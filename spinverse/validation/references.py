"""The independent reference values, in the units of the package.

The file has um, us, D in um^2/us, kappa in um/us; times become ms, D um^2/ms and kappa um/ms here
and nowhere else. b stays in s/mm^2 (= us/um^2).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from ..acquisition import PGSE, CosOGSE, DoublePGSE, SinOGSE, TrapezoidPGSE, Waveform

US = 1e-3  # ms
PER_US = 1e3  # 1/ms

# b is fixed and q follows it; the long pulses of the file's effective-medium entries, which it
# does not state, are those that give all of its values to 1e-6
EFFECTIVE_MEDIUM_DELTA = 1.0  # ms
EFFECTIVE_MEDIUM_BD = 0.1  # b D_eff


@dataclass(frozen=True)
class Case:
    """A reference case: a tissue, a waveform, signals over b.

    Attributes:
        family: "1" to "7".
        tissue: the name without waveform and directions; cases with the same one share a mesh.
        geometry: "slab", "free", "disk", "sphere", "sphere_in_cube" or "l_cell".
        lengths: layers of a stack, or radii, um.
        diffusivity: um^2/ms; or of each layer, by tag.
        permeability: of the membranes, um/ms, or by tag; 0 where there is none.
        T2: ms of each layer, or None.
        directions: unit vectors over which the signal is averaged.
        b: s/mm^2.
        reference: signals over those at time 0, each with its ``uncertainty``: what the file says,
            or two standard deviations where it is a random walk (``monte_carlo``).
    """

    family: str
    name: str
    tissue: str
    geometry: str
    lengths: tuple[float, ...]
    diffusivity: float | dict[int, float]
    permeability: float | dict[int, float]
    T2: tuple[float, ...] | None
    waveform: Waveform
    directions: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    reference: tuple[float, ...]
    uncertainty: tuple[float, ...]
    monte_carlo: bool


@cache
def data() -> dict:
    """The whole file as it is: its own units."""
    text = resources.files(__package__).joinpath("reference_values.json").read_text()
    return json.loads(text)


@cache
def cases(family: str | None = None) -> tuple[Case, ...]:
    """The cases of a family, or all of them."""
    found = tuple(_case(entry) for entry in data()["cases"])
    return found if family is None else tuple(c for c in found if c.family == family)


def by_tissue(family: str) -> dict[str, list[Case]]:
    """Cases that share a tissue, in the order of the file."""
    groups: dict[str, list[Case]] = {}
    for case in cases(family):
        groups.setdefault(case.tissue, []).append(case)
    return groups


_GEOMETRIES = {"slab": "slab", "free": "free", "cylinder_perp": "disk", "sphere": "sphere",
               "sphere_in_cube": "sphere_in_cube", "L_cell_in_cube": "l_cell"}
_WAVEFORM_PART = re.compile(
    r"(_(x|y|z|111|avg_xyz|avg_xy|avg_111))?_d\d+_D\d+$|_(OGSE|dPGSE|trapezoid).*$")


def _case(entry: dict) -> Case:
    geometry = entry["geometry"]
    directions = entry["directions"]
    walk, exact = entry.get("method") == "Monte Carlo", "deterministic" in entry
    if exact:
        uncertainty = entry["deterministic_truncation"]
    elif walk:
        uncertainty = [2 * sigma for sigma in entry["sigma"]]
    else:
        uncertainty = [entry["abs_error"]] * len(entry["b"])
    return Case(
        family=str(entry["family"]), name=entry["name"],
        tissue=_WAVEFORM_PART.sub("", entry["name"]),
        geometry=_GEOMETRIES[geometry["type"]],
        lengths=tuple(geometry.get("L") or geometry.get("radii")
                      or [geometry.get("sphere_radius", 10.0)]),
        diffusivity=PER_US * float(np.unique(entry["D"])[0]),
        permeability=PER_US * (entry["kappa"] or 0.0),
        T2=entry["T2"] and tuple(US * value for value in entry["T2"]),
        waveform=waveform_of(entry.get("waveform", "PGSE"), entry.get("waveform_params", entry)),
        directions=((1.0, 0.0, 0.0),) if isinstance(directions[0], str)
        else tuple(tuple(map(float, d)) for d in directions),
        b=tuple(entry["b"]),
        reference=tuple(entry["deterministic" if exact else "signal_re"]),
        uncertainty=tuple(uncertainty), monte_carlo=walk and not exact)


def waveform_of(name: str, values: dict) -> Waveform:
    """A waveform from the file's name and parameters (us)."""
    delta, Delta = US * values["delta"], US * values["Delta"]
    if name == "PGSE":
        return PGSE(delta, Delta)
    if name == "trapezoid":
        return TrapezoidPGSE(delta, Delta, US * values["eps"])
    if name.startswith("dPGSE"):
        return DoublePGSE(delta, Delta, mixing_time=US * values["tpause"] + delta,
                          parallel=values["s2"] > 0)
    return {"OGSE-cos": CosOGSE, "OGSE-sin": SinOGSE}[name](delta, Delta, values["n"])


# Values that README.md of the references states.

#: Slowest decay of a concentration difference, ms: D = 2, kappa = 0.02 um/ms.
EXCHANGE = {"slab": ((10.0, 10.0), 266.8786), "disk": ((10.0, 20.0), 198.2512),
            "sphere": ((10.0, 20.0), 153.0855)}

#: Radii 5, 7.5, 10 um, delta = Delta = 40 ms, b = 1000 .. 10000: (shape, D, kappa, signals).
LAYERS = {
    "disk3_D3_k5e-5": ("disk", (3.0, 3.0, 3.0), 0.05, (
        .7181, .5234, .3899, .2990, .2373, .1952, .1661, .1454, .1302, .1184)),
    "disk3_D313_k1e-5": ("disk", (3.0, 1.0, 3.0), 0.01, (
        .7297, .5525, .4381, .3649, .3181, .2877, .2672, .2522, .2402, .2297)),
    "sphere3_D3_k5e-5": ("sphere", (3.0, 3.0, 3.0), 0.05, (
        .7886, .6228, .4932, .3921, .3135, .2526, .2054, .1688, .1406, .1186)),
}
LAYER_RADII = (5.0, 7.5, 10.0)
LAYER_B = tuple(range(1000, 10001, 1000))
ROUNDING = 5e-5

# Balls on a cubic lattice.
LENGTH, RADIUS, D, PULSE, SEPARATION = 10.0, 4.0, 2.0, 10.0, 20.0  # um, um^2/ms, ms
#: By permeability, um/ms: signals over b, s/mm^2, by `ball_in_box.ball_lattice`, to 1e-6.
LATTICE = {0.01: {1000: 0.374097, 2000: 0.251942, 4000: 0.205469}}
#: The same by `benchmarks/lattice_walk.py` with 150000 walkers in steps of 10 us, and two standard
#: deviations.
WALKS = {0.01: {1000: (0.3742, 0.0035), 2000: (0.2541, 0.0037), 4000: (0.2069, 0.0037)}}

#: Signals of MISST in the tests of Disimpy 0.3: shape, delta, ms; b = 1000, 2000, 3000 of theirs,
#: Delta = 40 ms, D = 2 um^2/ms, radius 5 um. Gradients are discrete there: 2e-3 from exact values.
MISST = {("disk", 1.0): (0.8651166, 0.7453011, 0.6394964),
         ("disk", 30.0): (0.9564608, 0.9159093, 0.8763042),
         ("sphere", 1.0): (0.8938391, 0.7971026, 0.7093704),
         ("sphere", 30.0): (0.9716301, 0.9448431, 0.9183216)}
MISST_B, MISST_DELTA, MISST_RADIUS, MISST_ERROR = (1000.0, 2000.0, 3000.0), 40.0, 5.0, 1.4e-3
#: Packed spheres beside Karger's model, as dmipy-sim 2.1 tests itself: radius, um, share of the
#: volume, delta, Delta, ms, b; permeabilities, um/ms, and how far the model may be off there.
KARGER_RADIUS, KARGER_SHARE, KARGER_PULSES = 5.0, 0.3, (5.0, 20.0)
KARGER_B = (500.0, 1000.0, 2000.0, 3000.0)
KARGER = {5e-4: 0.012, 3e-3: 0.03, 0.01: 0.03}
