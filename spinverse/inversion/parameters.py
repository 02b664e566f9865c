"""Unknown numbers beside the membranes: theta."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..engines.shapes.walls import Walls
from ..errors import InputError
from ..problem import BlochTorrey

SCALES = ("log", "linear")
#: Values by name: a number, or one for each cell from label 1 on.
type Theta = Mapping[str, float | Sequence[float]]


@dataclass(frozen=True)
class Unknown:
    """A number that is found with the membranes.

    Attributes:
        start: what the search begins with, in the unit of what it is a value of.
        low, high: range.
        scale: "log": steps are relative, which needs a positive range; or "linear".
        deviation: of a normal prior round the start, relative on a logarithmic scale (0.2 is about
            20 %), else in the unit of the value; None: all values of the range are alike.

    Raises:
        InputError: a range that is empty or does not hold the start.
    """

    start: float
    low: float
    high: float
    scale: str = "log"
    deviation: float | None = None

    def __post_init__(self):
        if self.scale not in SCALES:
            raise InputError(f"scale: {self.scale!r}, expected one of {', '.join(SCALES)}")
        if not self.low < self.high < np.inf or not np.isfinite(self.low):
            raise InputError(f"low, high: {self.low:g}, {self.high:g}, expected two finite "
                             "numbers, the lower first")
        if not self.low <= self.start <= self.high:
            raise InputError(f"start: {self.start:g}, expected a value from {self.low:g} to "
                             f"{self.high:g}")
        if self.scale == "log" and self.low <= 0:
            raise InputError(f"low: {self.low:g}, expected a positive number, or scale 'linear'")
        if self.deviation is not None and not 0 < self.deviation < np.inf:
            raise InputError(f"deviation: {self.deviation!r}, expected a positive number, or None")

    @property
    def range(self) -> tuple[float, float]:
        """In the coordinate."""
        return self.coordinate(self.low), self.coordinate(self.high)

    @property
    def precision(self) -> float:
        """Of the prior in the coordinate, one over its variance; 0 for none."""
        if self.deviation is None:
            return 0.0
        width = 1.0 if self.scale == "log" else self.high - self.low
        return (width / self.deviation) ** 2

    @property
    def relative_deviation(self) -> float | None:
        """Of the prior, as a share of the start."""
        if self.deviation is None or self.scale == "log":
            return self.deviation
        return self.deviation / self.start

    def coordinate(self, value: float) -> float:
        """Where steps are taken: the logarithm, or the share of the range."""
        if self.scale == "log":
            return float(np.log(value))
        return (value - self.low) / (self.high - self.low)

    def value(self, coordinate: float) -> float:
        """The value at a coordinate, kept in the range."""
        value = np.exp(coordinate) if self.scale == "log" else (
            self.low + coordinate * (self.high - self.low))
        return float(np.clip(value, self.low, self.high))


@dataclass(frozen=True)
class Kind:
    """What the equation takes a number as.

    Attributes:
        put: sets it: from the discrete problem, the permeabilities of walls, labels of the mesh
            cells of this rank (or one label of all) and the value to these permeabilities. None:
            the equation does not have it, `likelihood` finds it.
        usual: start and range where none are said; None: they must be.
        each: every cell has a value of its own.
        labelled: coefficients of a mesh cell depend on its label.
        unit: of the value.
    """

    put: Callable[[BlochTorrey, Walls, np.ndarray | int, float | Sequence[float]], Walls] | None
    usual: Unknown | None = None
    each: bool = False
    labelled: bool = False
    unit: str = ""


def _wall_permeability(forward, walls, labels, value):
    return replace(walls, wall=value if np.isscalar(value) else tuple(value))


def _diffusivity(forward, walls, labels, value):
    _put(forward.coefficients.D, labels, value, True)
    return walls


def _diffusivity_inside(forward, walls, labels, value):
    _put(forward.coefficients.D, labels, value, np.asarray(labels) > 0)
    return walls


def _diffusivity_outside(forward, walls, labels, value):
    _put(forward.coefficients.D, labels, value, np.asarray(labels) == 0)
    return walls


def _T2(forward, walls, labels, value):
    _put(forward.coefficients.R2, labels, 1.0 / value, True)
    return walls


def _T2_inside(forward, walls, labels, value):
    _put(forward.coefficients.R2, labels, 1.0 / np.asarray(value), np.asarray(labels) > 0)
    return walls


def _T2_outside(forward, walls, labels, value):
    _put(forward.coefficients.R2, labels, 1.0 / value, np.asarray(labels) == 0)
    return walls


def _density_ratio(forward, walls, labels, value):
    rho = forward.coefficients.rho  # the known one at this point, which is uniform
    _put(rho, labels, np.asarray(value) * rho.x.array[0] if len(rho.x.array) else value,
         np.asarray(labels) > 0)
    return walls


def _put(function, labels, value, where) -> None:
    """Values of mesh cells: one, or those of their labels from 1 on, where it is said."""
    labels, where = np.broadcast_arrays(labels, where)
    values, cells = np.atleast_1d(value), slice(None) if labels.ndim == 0 else slice(len(labels))
    chosen = values[np.clip(labels, 1, len(values)) - 1]
    at = function.function_space.dofmap.list[cells].ravel()
    function.x.array[at] = np.where(where, chosen, function.x.array[at])


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Unknown numbers as one vector of coordinates.

    Args:
        unknown: by name.
        cells: at most so many cells, each of which has numbers of its own.
    """

    unknown: Mapping[str, Unknown]
    cells: int = 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the unknown numbers, those that every cell has of its own once for each."""
        return tuple(name for name in self.unknown
                     for _ in range(self.cells if is_each(name) else 1))

    @cached_property
    def cell_of(self) -> np.ndarray:
        """Of which cell each is, ``(P,)``: 1, 2, ..., or 0 for none."""
        return np.array([k for name in self.unknown for k in (
            range(1, self.cells + 1) if is_each(name) else (0,))], dtype=int)

    @cached_property
    def start(self) -> np.ndarray:
        """Coordinates of the unknown numbers at the start, ``(P,)``."""
        return np.array([u.coordinate(u.start) for u in self.each])

    @cached_property
    def bounds(self) -> np.ndarray:
        """Their ranges, ``(2, P)``."""
        return np.array([u.range for u in self.each]).reshape(-1, 2).T

    @cached_property
    def precision(self) -> np.ndarray:
        """Of their priors round the start, ``(P,)``."""
        return np.array([u.precision for u in self.each])

    @property
    def each(self) -> list[Unknown]:
        """What is said of each."""
        return [self.unknown[name] for name in self.names]

    def active(self, labels: np.ndarray) -> np.ndarray:
        """Which of them a hypothesis with these labels has, ``(P,)`` bool."""
        return self.cell_of <= labels.max(initial=0)

    def values(self, theta: np.ndarray, cells: int | None = None) -> dict:
        """The unknown numbers at coordinates, by name; those of ``cells`` cells where each has one.
        """
        found: dict = {}
        for name, unknown, cell, x in zip(self.names, self.each, self.cell_of, theta,
                                          strict=True):
            if not cell:
                found[name] = unknown.value(x)
            elif cells is None or cell <= max(cells, 1):
                found[name] = (*found.get(name, ()), unknown.value(x))
        return found

    def coordinates(self, values: Theta) -> np.ndarray:
        """Coordinates of unknown numbers by name; further cells have the value of the last one."""
        def of(name, cell):
            given = np.atleast_1d(values[name])
            return given[min(max(cell, 1), len(given)) - 1]

        return np.array([unknown.coordinate(of(name, cell)) for name, unknown, cell in zip(
            self.names, self.each, self.cell_of, strict=True)])


_D, _T = Unknown(1.5, 0.2, 3.5), Unknown(60.0, 5.0, 1000.0)
RATIO, SCALE, NOISE = "density_ratio", "scale", "noise"
#: By name. A new one is a function above and a line here.
KINDS = {
    "wall_permeability": Kind(_wall_permeability, Unknown(0.01, 1e-5, 1.0), each=True,
                              unit="um/ms"),
    "diffusivity": Kind(_diffusivity, _D, unit="um^2/ms"),
    "diffusivity_inside": Kind(_diffusivity_inside, _D, True, True, "um^2/ms"),
    "diffusivity_outside": Kind(_diffusivity_outside, _D, False, True, "um^2/ms"),
    "T2": Kind(_T2, _T, unit="ms"),
    "T2_inside": Kind(_T2_inside, _T, True, True, "ms"),
    "T2_outside": Kind(_T2_outside, _T, False, True, "ms"),
    # of each cell, over that outside, which is the known one
    RATIO: Kind(_density_ratio, Unknown(1.0, 0.2, 5.0), True, True),
    # of signals in arbitrary units, over um^3 times density; and the noise, of |S(b = 0)|
    SCALE: Kind(None, Unknown(1.0, 0.0, 1e30, "linear")),
    NOISE: Kind(None, Unknown(0.02, 0.0, 0.5, "linear"))}


def checked(unknown: Mapping[str, Unknown] | Sequence[str], known: Mapping[str, object],
            coefficients: Mapping[str, object]) -> dict[str, Unknown]:
    """Unknown numbers by name, with usual ranges where none are said.

    Args:
        unknown: by name, or names alone.
        known: what the problem says of diffusivity, T2 and, as `RATIO`, of the density.
        coefficients: of the user's terms.

    Raises:
        InputError: unknown numbers that are no numbers of the problem, or are so twice.
    """
    if not isinstance(unknown, Mapping):
        unknown = dict.fromkeys([unknown] if isinstance(unknown, str) else unknown)
    found = {}
    for name, value in unknown.items():
        if name not in KINDS and name not in coefficients:
            raise InputError(f"unknown: {name!r}, expected one of "
                             f"{', '.join([*KINDS, *coefficients])}")
        if value is None and name in KINDS:
            value = KINDS[name].usual
        if not isinstance(value, Unknown):
            raise InputError(f"unknown: {name}: {value!r:.40}, expected "
                             "Unknown(start, low, high)")
        whole = _whole(name)
        if whole != name and whole in unknown:
            raise InputError(f"unknown: {whole} and {name}, expected one of the whole mesh, or "
                             "those inside and outside")
        given = coefficients.get(name, known.get(whole, 0.0))
        if not isinstance(given, int | float):
            raise InputError(f"unknown: {name}: its known value is no single number, expected one "
                             "number for the whole mesh")
        found[name] = value
    return found


def additional(unknown: Sequence[str]) -> list[str]:
    """Numbers that could be unknown as well."""
    whole = {_whole(name) for name in unknown}
    return [name for name, kind in KINDS.items() if kind.usual is not None and kind.put is not None
            and not {name, _whole(name)} & set(unknown) and name not in whole]


def of_theta(unknown: Mapping[str, Unknown]) -> dict[str, Unknown]:
    """Those that a search steps through; the likelihood finds the others."""
    return {name: value for name, value in unknown.items()
            if name not in KINDS or KINDS[name].put is not None}


def _whole(name: str) -> str:
    """The number of the whole mesh that one inside or outside is a part of."""
    return name.removesuffix("_inside").removesuffix("_outside")


def is_each(name: str) -> bool:
    """Whether every cell has one of its own."""
    return name in KINDS and KINDS[name].each


def labelled(theta: Iterable[str]) -> bool:
    """Whether coefficients depend on the labels of mesh cells."""
    return any(name in KINDS and KINDS[name].labelled for name in theta)


def apply(theta: Theta, forward: BlochTorrey, walls: Walls,
          labels: np.ndarray | int = 0) -> Walls:
    """Put values into a discrete problem, and into the permeabilities of walls. Collective.

    Args:
        theta: values by name.
        forward: the problem; its diffusivity, T2 and density become those of its tissue first.
        walls: permeabilities of walls.
        labels: of the owned mesh cells, or one of all.
    """
    c, tissue = forward.coefficients, forward.tissue
    touched = [(function, known) for function, known, start in (
        (c.D, tissue.diffusivity, "diffusivity"), (c.R2, 1.0 / tissue.T2, "T2"),
        (c.rho, tissue.density, "density"))
        if any(name.startswith(start) for name in theta)]
    for function, known in touched:
        at = function.function_space.dofmap.list.ravel()
        function.x.array.reshape(len(at), -1)[at] = np.reshape(known, (len(at), -1))
    for name, value in theta.items():
        if name in KINDS:
            put = KINDS[name].put
            walls = walls if put is None else put(forward, walls, labels, value)
        else:
            forward.coefficients[name].value = value
    for function, _ in touched:
        function.x.scatter_forward()
    if RATIO in theta:
        forward.density_has_changed()
    return walls
