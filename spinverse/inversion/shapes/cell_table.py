"""The cells that were found, in numbers that people publish, with intervals.

The numbers of theta and the shape are uncertain together. Round the solution the residual is taken
as linear in the coordinates of theta and in shares of the moves of single mesh cells across the
walls, each of which has a normal prior of half a cell: C = (J^T J / sigma^2 + P)^-1 (Gauss-Newton;
Nocedal and Wright 2006, chapter 10). Volumes, surfaces and what follows from them get their
deviations from C by their own slopes. The permeability of walls, which is far from linear, gets the
interval of its profile likelihood (Venzon and Moolgavkar, Appl. Stat. 37, 87, 1988): all others
answer as well as they can. Where it is open to one side, that is a bound. Where walls are not
uniform it is the mean over their area, and the interval that of a factor for all walls of the cell.

Figures whose names begin with ``smooth`` are those of walls without the stairs of the mesh
(`cell_surface`), at the same kappa S.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from mpi4py import MPI
from scipy.stats import chi2, norm

from ...engines.basis.eigenmodes import eigenmodes
from ...engines.shapes.walls import is_wall, labels_beside
from ...mesh.whole import WholeMesh
from ...units import permeability_from_internal
from .. import parameters
from ..problem import InverseProblem
from ..verdict import ERRORS, MODEL
from .cell_surface import cell_surface
from .cells import Cells, changed
from .hypothesis import whole_labels
from .models import PARTITION_STEP, Models
from .smooth_surfaces import SmoothCells
from .surrogate import Surrogate

LEVEL = 0.9  # of the intervals
SHARE = 0.5  # standard deviation of a move of a mesh cell before the signals are known
STEP = 0.02  # of a coordinate, for slopes
SAME = 1e-3  # of log kappa: walls that differ by less are uniform
SMALLEST, HALVINGS = 0.02, 6  # first step of a profile, at least; refinements of its end
PART = 0.3  # of a combination of unit length, from which on a number is named
MODES = 48  # among which is the one of exchange


@dataclass(frozen=True)
class Figure:
    """A number with its interval.

    Attributes:
        value: what fits best.
        low, high: of the interval; 0 or inf where it is open.
        unit: of all three.
    """

    value: float
    low: float
    high: float
    unit: str = ""

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if self.low <= 0 and np.isinf(self.high):
            return f"not told ({self.value:.3g}{unit} fits)"
        if self.low <= 0:
            return f"at most {self.high:.3g}{unit}"
        if np.isinf(self.high):
            return f"at least {self.low:.3g}{unit}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g}){unit}"

    def times(self, factor: float, unit: str) -> Figure:
        """In another unit."""
        return Figure(self.value * factor, self.low * factor, self.high * factor, unit)


@dataclass(frozen=True, eq=False)
class CellTable:
    """Of every cell that was found, from label 1 on.

    Attributes:
        rows: figures of each cell by name.
        others: figures of what no cell has of its own.
        names: of the correlated numbers: unknown ones, and ``volume`` and ``surface`` of cells.
        correlation: ``(n, n)`` of them.
        level: of the intervals.
        untold: combinations of unknown numbers that the data say nothing of, in words.
    """

    rows: list[dict[str, Figure]]
    others: dict[str, Figure]
    names: list[str]
    correlation: np.ndarray
    level: float
    untold: list[str]

    def columns(self) -> list[dict[str, float]]:
        """A flat row for each cell: every figure, and its ``_low`` and ``_high``."""
        return [{"cell": k} | {f"{name}{end}": getattr(figure, part)
                               for name, figure in row.items()
                               for end, part in (("", "value"), ("_low", "low"),
                                                 ("_high", "high"))}
                for k, row in enumerate(self.rows, 1)]

    def write(self, path: Path) -> None:
        """As a table of comma-separated values, a row a cell."""
        rows = self.columns()
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["cell"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def summary(self) -> dict:
        """For ``summary.json``."""
        def closed(value):
            return None if np.isinf(value) else value  # JSON has no infinity

        return {"level": self.level,
                "cells": [{name: closed(value) for name, value in row.items()}
                          for row in self.columns()],
                "untold": self.untold,
                "others": {name: {"value": f.value, "low": closed(f.low), "high": closed(f.high),
                                  "unit": f.unit} for name, f in self.others.items()},
                "correlation": {"names": self.names, "matrix": self.correlation.tolist()}}

    def describe(self) -> list[str]:
        """Lines for people."""
        return [f"cell {k}: {name.replace('_', ' ')} {figure}"
                for k, row in enumerate(self.rows, 1) for name, figure in row.items()] + [
                f"{name.replace('_', ' ')} {figure}" for name, figure in self.others.items()
                ] + self.untold


def cell_table(problem: InverseProblem, labels: np.ndarray, theta: parameters.Theta,
               level: float = LEVEL, permeability: np.ndarray | None = None,
               surface: SmoothCells | None = None) -> CellTable:
    """Numbers of the cells of a solution, with intervals. Collective.

    Args:
        problem: what is known, and the measurements.
        labels: ``(owned cells,)`` that were found (`Reconstruction.labels`).
        theta: values that were found (`Reconstruction.theta`).
        level: probability of the intervals.
        permeability: ``(nf,)`` um/ms of the owned facets, where walls are not uniform.
        surface: smooth ones that were found, which volumes and areas are of; labels tell then how
            much the signals change with them.

    Returns:
        The table; the same at any number of ranks.

    Raises:
        InputError: a problem that the fast models cannot take.
    """
    found = _Solution(problem, whole_labels(problem.mesh, labels), theta,
                      float(norm.ppf(0.5 + level / 2)), permeability, surface)
    return CellTable([found.row(label) for label in range(1, found.number + 1)],
                     found.others(), *found.correlated(), level, found.untold())


def _varying(problem: InverseProblem, labels: np.ndarray, theta: parameters.Theta,
             permeability: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Means of the permeability of each cell's walls over their area, ``(C,)`` um/ms, and what all
    facets have over walls that are so; None where walls are as theta says. Collective.
    """
    whole = WholeMesh.of(problem.mesh)
    kappa = np.zeros(len(whole.facets))
    kappa[whole.owned] = permeability
    problem.comm.Allreduce(MPI.IN_PLACE, kappa, MPI.MAX)
    walls = np.flatnonzero(is_wall(labels, whole.sides) & (problem.absorbing | ~whole.outer))
    sides = labels_beside(labels, whole.sides[walls])

    def of(wall):
        factor = np.ones(len(kappa))
        uniform = replace(problem.walls, wall=tuple(np.broadcast_to(wall, number)))
        factor[walls] = kappa[walls] / uniform.of(*sides, walls)
        return factor

    number = max(int(labels.max(initial=0)), 1)
    factor = of(theta.get("wall_permeability", problem.walls.first))
    if np.abs(np.log(factor)).max(initial=0.0) < SAME:
        return np.zeros(0), None
    areas = whole.areas[walls]
    area, flux = (np.sum([np.bincount(side, weights, number + 1) for side in sides], axis=0)[1:]
                  for weights in (areas, areas * kappa[walls]))
    means = flux / np.maximum(area, 1e-300)
    return means, of(means)


class _Solution:
    """A solution and its neighbourhood.

    Args:
        z: half width of intervals in standard deviations.
    """

    def __init__(self, problem: InverseProblem, labels: np.ndarray, theta: parameters.Theta,
                 z: float, permeability: np.ndarray | None, surface: SmoothCells | None):
        self.problem, self.labels, self.z = problem, labels, z
        self.number = int(labels.max(initial=0))
        values: dict = {**problem.start_of_unknown, **theta}
        self.known_wall, factor = np.full(self.number, problem.walls.first), None
        if permeability is not None:
            means, factor = _varying(problem, labels, values, permeability)
            if factor is not None:
                self.known_wall = means
                if "wall_permeability" in problem.unknown:
                    values["wall_permeability"] = means
        models = self.models = Models(problem, max(self.number, 1), factor)
        self.theta = models.coordinates(values)
        self.active = np.flatnonzero(models.active(labels))
        cells, look = Cells(models.whole), models.all
        self.surface = surface
        residual = models.exact(labels, self.theta, look) if surface is None else (
            look.likelihood.residual(surface.signals))
        # the fast model from here on: its error hardly changes with theta
        self.bias = residual - self._fast(self.theta)
        self.misfit = float(np.mean(residual**2))
        error = 0.0 if surface is None else surface.error
        self.variance = max(problem.likelihood.floor, self.misfit) + max(MODEL**2, error)
        units = STEP * np.eye(len(self.theta))[self.active]
        slopes = [(self._residual(self.theta + e) - self._residual(self.theta - e)) / (2 * STEP)
                  for e in units]
        moves = Surrogate(lambda shapes: models.residuals(shapes, self.theta, look), cells,
                          labels, pairs=False)
        effects = moves.D if moves.number else np.zeros((0, len(look.measured)))
        self.J = np.vstack([np.reshape(slopes, (-1, len(look.measured))), effects])
        low, high = models.bounds[:, self.active]
        # a range is a uniform prior, of which the variance counts
        self.precision = np.r_[models.precision[self.active] + 12 / (high - low) ** 2,
                               np.full(len(effects), SHARE**-2)]
        self.covariance = np.linalg.inv(self.J @ self.J.T / self.variance
                                        + np.diag(self.precision))
        self.moved = [changed(labels, [move]) for move in moves.moves[: moves.number]]
        # of volume and surface of every cell by all of it
        here = self._sizes(labels)
        self.sizes = here if surface is None else np.column_stack([surface.volumes, surface.areas])
        self.size_slopes = np.zeros((*here.shape, len(self.J)))
        for k, shape in enumerate(self.moved, len(self.active)):
            # as large a share of the smooth ones
            self.size_slopes[..., k] = (self._sizes(shape) - here) / here * self.sizes

    def _residual(self, theta: np.ndarray) -> np.ndarray:
        return self._fast(theta) + self.bias

    def _fast(self, theta: np.ndarray) -> np.ndarray:
        return self.models.residuals([self.labels], theta, self.models.all)[0]

    def _sizes(self, labels: np.ndarray) -> np.ndarray:
        """Volume (um^3) and surface (um^2) of every cell, ``(C, 2)``."""
        whole = self.models.whole
        walls = is_wall(labels, whole.sides) & (self.problem.absorbing | ~whole.outer)
        first, second = labels_beside(labels, whole.sides[walls])
        n, areas = self.number + 1, whole.areas[walls]
        surface = np.bincount(first, areas, n) + np.bincount(second, areas, n)
        volume = np.bincount(labels, whole.volumes, n)
        return np.column_stack([volume, surface])[1:]

    # ---- figures --------------------------------------------------------------------------------

    def row(self, label: int) -> dict[str, Figure]:
        """Of one cell."""
        V, S = self.sizes[label - 1]
        dV, dS = self.size_slopes[label - 1]
        box = self.models.whole.volumes.sum()
        row = {"volume": self._positive(V, dV / V, "um^3"),
               "surface": self._positive(S, dS / S, "um^2"),
               "surface_to_volume": self._positive(S / V, dS / S - dV / V, "1/um"),
               "equivalent_diameter": self._positive((6 * V / np.pi) ** (1 / 3), dV / V / 3, "um"),
               "volume_fraction": self._positive(V / box, dV / V)}
        wall, slope = float(self.known_wall[label - 1]), np.zeros(len(self.J))
        for k, i in enumerate(self.active):
            name, cell = self.models.names[i], self.models.cell_of[i]
            if cell != label:
                continue
            row[name] = self._unknown(k)
            if name == "wall_permeability":
                slope[k] = self._log_slope(k)
                wall = row[name].value
        if "wall_permeability" not in row:
            row["wall_permeability"] = Figure(wall, wall, wall, "um/ms")
        kappa = row.pop("wall_permeability")
        row["permeability"] = kappa
        row["permeability_si"] = kappa.times(float(permeability_from_internal(1.0)), "m/s")
        whole = self.models.whole
        if not whole.period.any():  # there surfaces end at the faces
            narrower = 1.0 if self.surface is not None else cell_surface(
                whole, self.labels, label, self.problem.absorbing).narrowing
            for name, factor in (("surface", narrower), ("surface_to_volume", narrower),
                                 ("permeability", 1 / narrower), ("permeability_si", 1 / narrower)):
                row[f"smooth_{name}"] = row[name].times(factor, row[name].unit)
        spread = self._positive(1.0, dV / V - dS / S - slope)
        times = {"exchange_time": V / (kappa.value * S), "exchange_time_of_mode": self._modes[
            label - 1]}
        for name, value in times.items():
            low, high = value * spread.low, value * spread.high
            if kappa.low <= 0:
                low, high = V / (kappa.high * S), np.inf
            row[name] = Figure(value, low, high, "ms")
        return row

    def others(self) -> dict[str, Figure]:
        """Unknown numbers that no cell has of its own."""
        found = {self.models.names[i]: self._unknown(k) for k, i in enumerate(self.active)
                 if not self.models.cell_of[i]}
        if self.problem.unit is not None:
            found[parameters.SCALE] = self._scale()
        if parameters.NOISE in self.problem.unknown:
            found[parameters.NOISE] = self._noise()
        return found

    def _scale(self) -> Figure:
        """The factor of all signals, which answers to unknown numbers and to the shape."""
        models, look = self.models, self.models.all
        likelihood, sweeps = look.likelihood, look.sweeps(PARTITION_STEP)

        def log_of(theta, shapes):
            model = models.partition(theta)
            return models.shared(lambda shape: np.log(likelihood.factor(
                np.abs(model.signals(shape, sweeps)))), shapes)

        here, *moved = log_of(self.theta, [self.labels, *self.moved])
        full = models.signals(self.labels, self.theta, look)
        steps = [[log_of(self.theta + sign * STEP * unit, [self.labels])[0]
                  for sign in (1, -1)] for unit in np.eye(len(self.theta))[self.active]]
        slope = np.array([*((up - down) / (2 * STEP) for up, down in steps),
                          *(there - here for there in moved)])
        # what it is known to where all else is
        alone = self.variance / np.sum(likelihood.expected(full) ** 2)
        factor = float(likelihood.factor(np.abs(full)))
        width = np.exp(self.z * np.sqrt(slope @ self.covariance @ slope + alone))
        return Figure(factor, float(factor / width), float(factor * width))

    def _noise(self) -> Figure:
        """Its deviation, of |S(b = 0)|, with the interval of a chi-square.

        Of what the solution leaves, less the freedoms that it has taken; where that is more than
        what noise can be, of the estimate before the search.
        """
        first, now = self.problem.first_likelihood, self.problem.likelihood
        sigma, freedom = first.sigma, first.freedom
        if self.misfit <= first.explained(ERRORS) + MODEL**2 or not first.judges:
            taken = np.sum(self.covariance * (self.J @ self.J.T)) / self.variance
            freedom = max(len(now) - float(taken), 1.0)
            each = now.floor / now.sigma**2 if now.sigma else 1.0  # of sigma^2, in magnitudes
            sigma = float(np.sqrt(self.misfit * len(now) / freedom / each))
        if np.isinf(freedom):
            return Figure(sigma, sigma, sigma)
        tail = float(norm.sf(self.z))
        low, high = (sigma * float(np.sqrt(freedom / chi2.ppf(p, freedom)))
                     for p in (1 - tail, tail))
        return Figure(sigma, low, high)

    @property
    def _names(self) -> list[str]:
        return [self.models.names[i] + (f" of cell {self.models.cell_of[i]}"
                                        if self.models.cell_of[i] else "") for i in self.active]

    def untold(self) -> list[str]:
        """Combinations of unknown numbers of which the data say less than their ranges do."""
        width = np.ptp(self.models.bounds[:, self.active], axis=0)
        J = width[:, None] * self.J[: len(self.active)]
        values, vectors = np.linalg.eigh(J @ J.T / self.variance)
        found = []
        for vector in vectors[:, values < 12].T:  # one over the variance of a uniform range
            names = [name for name, share in zip(self._names, vector, strict=True)
                     if abs(share) > PART]
            found.append(f"the data do not tell {' and '.join(names)}"
                         + (" apart" if len(names) > 1 else ""))
        return found

    def correlated(self) -> tuple[list[str], np.ndarray]:
        """Names and correlation of unknown numbers, volumes and surfaces."""
        names, rows = self._names, [*np.eye(len(self.J))[: len(self.active)]]
        for label in range(1, self.number + 1):
            names += [f"volume of cell {label}", f"surface of cell {label}"]
            rows += [*self.size_slopes[label - 1]]
        G = np.reshape(rows, (len(names), len(self.J)))
        C = G @ self.covariance @ G.T
        deviation = np.sqrt(np.maximum(np.diag(C), 1e-300))
        return names, C / np.outer(deviation, deviation)

    def _positive(self, value: float, log_slope: np.ndarray, unit: str = "") -> Figure:
        """From the slope of its logarithm."""
        factor = np.exp(self.z * np.sqrt(log_slope @ self.covariance @ log_slope))
        return Figure(float(value), float(value / factor), float(value * factor), unit)

    def _unknown(self, k: int) -> Figure:
        models, i = self.models, self.active[k]
        unknown, x = self.problem.unknown[models.names[i]], self.theta[self.active[k]]
        kind = parameters.KINDS.get(models.names[i])
        if models.names[i] == "wall_permeability":
            low, high = self._profile(k, -1), self._profile(k, 1)
        else:
            width = self.z * np.sqrt(self.covariance[k, k])
            low, high = x - width, x + width
        least, most = models.bounds[:, i]
        open_low = 0.0 if unknown.scale == "log" else -np.inf
        return Figure(unknown.value(x), unknown.value(low) if low > least else open_low,
                      unknown.value(high) if high < most else np.inf, kind.unit if kind else "")

    def _log_slope(self, k: int) -> float:
        """Of the logarithm of an unknown number by its coordinate."""
        unknown, x = self.problem.unknown[self.models.names[self.active[k]]], self.theta[
            self.active[k]]
        return float(np.log(unknown.value(x + STEP) / unknown.value(x - STEP)) / (2 * STEP))

    def _profile(self, k: int, side: int) -> float:
        """The coordinate where the profile likelihood leaves the interval, or its bound."""
        end = self.models.bounds[(side + 1) // 2, self.active[k]]
        others = np.arange(len(self.J)) != k
        J, precision = self.J[others], self.precision[others]
        answer = np.linalg.inv(J @ J.T / self.variance + np.diag(precision))
        start = self.theta[self.active[k]]

        def rise(x):
            theta = self.theta.copy()
            theta[self.active[k]] = x
            r = self._residual(theta)
            pull = J @ r / self.variance
            return float(r @ r / self.variance - pull @ answer @ pull) / self.z**2

        least, inside = rise(start), start
        step = max(self.z * np.sqrt(self.covariance[k, k]), SMALLEST)
        while True:
            outside = start + side * step
            if side * (end - outside) <= 0:
                outside = end
            if rise(outside) - least >= 1:
                break
            if outside == end:
                return end
            inside, step = outside, 2 * step
        for _ in range(HALVINGS):
            middle = 0.5 * (inside + outside)
            inside, outside = (inside, middle) if rise(middle) - least >= 1 else (middle, outside)
        return 0.5 * (inside + outside)

    @cached_property
    def _modes(self) -> np.ndarray:
        """Decay time of the mode that is most like each cell, without T2, ``(C,)`` ms."""
        problem, models = self.problem, self.models
        mine = self.labels[models.whole.owned_cells]
        forward = problem.forward(models.permeability(self.labels, self.theta),
                                  models.values(self.theta), mine)
        forward.coefficients.R2.x.array[:] = 0.0
        basis = eigenmodes(forward, min(MODES, forward.num_unknowns))
        dofs = forward.space.dofmap.list[: len(mine)]
        label = np.zeros(forward.local_mass.shape[0], int)
        label[dofs] = mine[:, None]
        mass = forward.scale[:, None] * (forward.local_mass @ basis.modes[: len(label)])
        inside = problem.comm.allreduce(np.array([
            mass[label == c].sum(axis=0) for c in range(1, self.number + 1)]))
        rates = np.maximum(basis.eigenvalues[np.abs(inside).argmax(axis=1)], 1e-300)
        return 1.0 / rates
