"""The posterior as samples, and what they say of mesh cells, facets and numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...atomic import replace as replace_file
from ...engines.shapes.walls import is_wall, labels_beside
from ...errors import InputError
from ...units import permeability_from_internal
from ..shapes.cell_table import CellTable, Figure
from . import diagnostics
from .moves import moved
from .sampler import Space

LEVELS = 0.5, 0.9  # of the intervals
CANDIDATES = 200  # samples among which is the shape of the largest expected F1
CUTS = np.linspace(0.05, 0.95, 19)  # of probabilities, that give further ones
DIGITS = 6  # of quantities that chains are judged by: points of meshes may have seven
TYPICAL = 6  # samples that are shown
#: Of which R-hat and the effective sample size count.
JUDGED = ("volume", "surface_to_volume", "permeability", "log_likelihood")


@dataclass(frozen=True, eq=False)
class Posterior:
    """Shapes and numbers as likely as the data and the prior make them.

    Attributes:
        labels: ``(n, Nt)`` int8 in the order of the input, 0 outside, 1, 2, ... cells by volume.
        theta: values of unknown numbers by name, ``(n,)``, or ``(n, cells)``, nan where a sample
            has no such cell.
        log_likelihood: ``(n,)``, up to a constant.
        chain: ``(n,)`` which each sample is of.
        quantities: ``(n,)`` by name: ``volume`` (um^3), ``surface`` (um^2), ``surface_to_volume``
            (1/um), ``permeability`` (um/ms), ``exchange_time`` (ms), of all cells together and
            ``... of cell 1``, ...; ``cells``; ``log_likelihood``.
        facets: ``(Nf, 3)`` vertices of all facets in the numbering of the input.
        sides: ``(Nf, 2)`` cells on their two sides, -1 for the outside.
        aligned: ``(n, Nt)`` labels after the shift or reflection that fits the likeliest sample
            best: magnitudes hardly tell them apart.
        expected_f1_shape: ``(Nt,)`` labels of the largest expected F1 of wall facets.
        expected_f1: that value, over aligned samples.
        acceptance: shares of accepted moves, by kind, and of decisions.
        correction: rms change of the log-likelihood by the full model in place of the fast one,
            and how often it would change a decision between samples.
        solves: partitions whose signals were computed.
    """

    labels: np.ndarray
    theta: dict[str, np.ndarray]
    log_likelihood: np.ndarray
    chain: np.ndarray
    quantities: dict[str, np.ndarray]
    facets: np.ndarray
    sides: np.ndarray
    aligned: np.ndarray
    expected_f1_shape: np.ndarray
    expected_f1: float
    acceptance: dict[str, float]
    correction: dict[str, float]
    solves: int

    # ---- shapes ----------------------------------------------------------------------------------

    @cached_property
    def probability(self) -> np.ndarray:
        """To be inside, of each mesh cell, ``(Nt,)``."""
        return np.mean(self.labels > 0, axis=0)

    @cached_property
    def aligned_probability(self) -> np.ndarray:
        """The same of aligned samples, ``(Nt,)``."""
        return np.mean(self.aligned > 0, axis=0)

    @cached_property
    def wall_probability(self) -> np.ndarray:
        """To be a wall, of each facet, ``(Nf,)``."""
        return np.mean([is_wall(labels, self.sides) for labels in self.labels], axis=0)

    @property
    def likeliest(self) -> np.ndarray:
        """Labels of the likeliest sample, ``(Nt,)``."""
        return self.labels[int(self.log_likelihood.argmax())]

    @cached_property
    def shapes(self) -> int:
        """How many are different; the same elsewhere or reflected counts once."""
        return len(np.unique(self.aligned, axis=0))

    @property
    def of_cells(self) -> dict[str, np.ndarray]:
        """What there is of each mesh cell, ``(Nt,)`` by name: for ``posterior.vtu``."""
        return {"probability": self.probability, "aligned_probability": self.aligned_probability,
                "likeliest": self.likeliest, "expected_f1_shape": self.expected_f1_shape}

    @property
    def typical(self) -> np.ndarray:
        """A few samples far apart in the chains, ``(k, Nt)``."""
        chosen = np.linspace(0, len(self.labels) - 1, TYPICAL).astype(int)
        return self.labels[np.unique(chosen)]

    # ---- numbers ---------------------------------------------------------------------------------

    def interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """Central, of a quantity or of an unknown number; nan where no sample has it."""
        values = self.quantities[name] if name in self.quantities else self.theta[name]
        known = values[np.isfinite(values)]
        if not len(known):
            return np.nan, np.nan
        low, high = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2])
        return float(low), float(high)

    def summary(self) -> dict[str, Any]:
        """Medians and intervals, diagnostics, acceptance: for ``summary.json``."""
        rows = {name: {"median": float(np.nanmedian(values)), **{
            f"interval_{100 * level:.0f}": self.interval(name, level) for level in LEVELS}}
            for name, values in {**self.quantities, **self.theta}.items()
            if np.isfinite(values).any()}
        return {"samples": len(self.labels), "chains": len(np.unique(self.chain)),
                "different_shapes": self.shapes,
                "quantities": rows, "r_hat": self.r_hat, "effective_samples": self.effective,
                "expected_f1": self.expected_f1, "acceptance": self.acceptance,
                "correction": self.correction, "solves": self.solves,
                "good_enough": not self.doubts}

    @cached_property
    def _diagnosed(self) -> tuple[dict[str, float], dict[str, float]]:
        return diagnosed(self.quantities, self.chain)

    @property
    def r_hat(self) -> dict[str, float]:
        """Of `JUDGED` quantities."""
        return self._diagnosed[0]

    @property
    def effective(self) -> dict[str, float]:
        """Effective sample sizes of `JUDGED` quantities; nan where nothing varies."""
        return self._diagnosed[1]

    @property
    def doubts(self) -> str:
        """What is not good enough, in words; "" if nothing."""
        bad = [f"{name.replace('_', ' ')} (R-hat {self.r_hat[name]:.2f}, "
               f"{self.effective[name]:.0f} effective samples)" for name in doubtful(
                   self.r_hat, self.effective)]
        return "" if not bad else (
            f"the posterior is not sampled well enough by {len(self.labels)} samples: "
            f"{', '.join(bad)}; expected at most {diagnostics.LARGEST:g} and at least "
            f"{diagnostics.FEWEST:g}: more samples, or a larger limit")

    def describe(self) -> list[str]:
        """Lines for people."""
        lines = [f"posterior: {len(self.labels)} samples of {len(np.unique(self.chain))} chains, "
                 f"{self.shapes} different shapes, {self.solves} partitions computed; expected F1 "
                 f"{self.expected_f1:.2f} of the shape that has most of it"]
        for name, unit in (("volume", "um^3"), ("surface_to_volume", "1/um"),
                           ("permeability", "um/ms"), ("exchange_time", "ms")):
            low, high = self.interval(name)
            lines.append(f"posterior: {name.replace('_', ' ')} "
                         f"{np.nanmedian(self.quantities[name]):.4g} ({low:.4g} to {high:.4g}) "
                         f"{unit}")
        return [*lines, *[self.doubts] * bool(self.doubts)]

    def improved(self, table: CellTable) -> CellTable:
        """A table of cells with the intervals of the samples; cells are matched by volume."""
        order = np.argsort([-row["volume"].value for row in table.rows], kind="stable")
        rows = [dict(row) for row in table.rows]
        for k, at in enumerate(order, 1):
            row = rows[at]
            for name, figure in row.items():
                found = self._of_cell(name, k)
                if found is not None and np.isfinite(found).any():
                    known = found[np.isfinite(found)]
                    low, high = np.quantile(known, [0.5 - table.level / 2, 0.5 + table.level / 2])
                    row[name] = Figure(figure.value, float(low), float(high), figure.unit)
        return replace(table, rows=rows)

    def _of_cell(self, name: str, k: int) -> np.ndarray | None:
        volume = self.quantities.get(f"volume of cell {k}")
        made = {"equivalent_diameter": lambda: (6 * volume / np.pi) ** (1 / 3),
                "volume_fraction": lambda: volume / self.box,
                "permeability_si": lambda: self.quantities[f"permeability of cell {k}"]
                * float(permeability_from_internal(1.0))}
        if volume is None:
            return None
        if name in made:
            return made[name]()
        if name in self.theta and self.theta[name].ndim == 2:
            return self.theta[name][:, k - 1]
        return self.quantities.get(f"{name} of cell {k}")

    @property
    def box(self) -> float:
        """Volume of the mesh, um^3."""
        return float(np.median(self.quantities["volume"] / self.quantities["volume_fraction"]))

    # ---- files -----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """As ``.npz``, with the probabilities beside what `load` needs. For one rank."""
        arrays: dict[str, Any] = {"probability": self.probability,
                                  "aligned_probability": self.aligned_probability,
                                  "wall_probability": self.wall_probability}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ("theta", "quantities"):
                arrays |= {f"{item.name}/{name}": each for name, each in value.items()}
            else:
                arrays[item.name] = np.array(json.dumps(value)) if isinstance(
                    value, dict) else np.asarray(value)
        replace_file(Path(path), lambda temporary: np.savez_compressed(temporary, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> Posterior:
        """From `save`.

        Raises:
            InputError: no such file, or another content.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                arrays = dict(file)
            values: dict[str, Any] = {}
            for item in fields(cls):
                name = item.name
                if name in ("theta", "quantities"):
                    values[name] = {key.removeprefix(f"{name}/"): each for key, each in
                                    arrays.items() if key.startswith(f"{name}/")}
                elif name in ("acceptance", "correction"):
                    values[name] = json.loads(str(arrays[name]))
                else:
                    values[name] = arrays[name] if arrays[name].ndim else arrays[name].item()
        except Exception as error:  # noqa: BLE001 - zip, key and header errors have no common base
            raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}), expected "
                             "a posterior.npz") from None
        return cls(**values)


def by_volume(space: Space, labels: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same hypothesis with its cells numbered by volume, the largest first."""
    number = int(labels.max())
    volumes = np.bincount(labels, space.models.whole.volumes, number + 1)[1:]
    order = np.argsort(-volumes, kind="stable") + 1
    table, new = np.arange(number + 1), theta.copy()
    table[order] = np.arange(1, number + 1)
    for to, label in enumerate(order, 1):
        new[space.models.cell_of == to] = theta[space.models.cell_of == label]
    return table.astype(labels.dtype)[labels], new


def quantities_of(space: Space, labels: np.ndarray, theta: np.ndarray) -> dict[str, float]:
    """What people publish, of one hypothesis; its cells are in order."""
    whole, problem = space.models.whole, space.problem
    walls = space.prior.walls(labels) & (problem.absorbing | ~whole.outer)
    first, second = labels_beside(labels, whole.sides[walls])
    n, areas = space.most + 1, whole.areas[walls]
    volume = np.bincount(labels, whole.volumes, n)[1:]
    surface = (np.bincount(first, areas, n) + np.bincount(second, areas, n))[1:]
    kappa = np.broadcast_to(space.models.values(theta).get(
        "wall_permeability", problem.walls.first), len(volume)).astype(float)
    there = volume > 0
    V, S, flux = volume.sum(), surface.sum(), kappa[there] @ surface[there]
    with np.errstate(divide="ignore", invalid="ignore"):  # a cell that fills the box has no walls
        found = {"cells": there.sum(), "volume": V, "volume_fraction": V / whole.volumes.sum(),
                 "surface": S, "surface_to_volume": S / V, "permeability": flux / S,
                 "exchange_time": V / flux}
        for k in range(len(volume)):
            v, s, w = ((volume[k], surface[k], kappa[k]) if there[k] else (np.nan,) * 3)
            found |= {f"{name} of cell {k + 1}": value for name, value in (
                ("volume", v), ("surface", s), ("surface_to_volume", s / v), ("permeability", w),
                ("exchange_time", v / (w * s)))}
    return {name: float(value) for name, value in found.items()}


def diagnosed(quantities: Mapping[str, np.ndarray],
              chain: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    """R-hat and effective sample sizes of `JUDGED` quantities ``(n,)``, chains of equal length."""
    members = [chain == c for c in np.unique(chain)]
    values = {name: _rounded(np.array([quantities[name][mine] for mine in members]))
              for name in JUDGED}
    return ({name: diagnostics.r_hat(each) for name, each in values.items()},
            {name: diagnostics.effective(each) for name, each in values.items()})


def _rounded(values: np.ndarray) -> np.ndarray:
    """To `DIGITS`: ranks would tell a shape from its reflection by the last digits of the mesh."""
    size = np.max(np.abs(values), initial=0.0, where=np.isfinite(values))
    return np.round(values / size, DIGITS) if size else values


def doubtful(r_hat: Mapping[str, float], effective: Mapping[str, float]) -> list[str]:
    """Names of the quantities whose chains do not agree, or are worth too few samples."""
    return [name for name in JUDGED if not r_hat[name] <= diagnostics.LARGEST
            or effective[name] < diagnostics.FEWEST]


def quantities_by_name(space: Space, samples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`quantities_of` samples and their log-likelihood, ``(n,)`` each."""
    rows = [quantities_of(space, *by_volume(space, *each)) for each in zip(
        samples["labels"], samples["theta"], strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} | {
        "log_likelihood": np.asarray(samples["log_likelihood"])}


def made(space: Space, samples: Mapping[str, np.ndarray], facets: np.ndarray,
         acceptance: dict[str, float], correction: dict[str, float], solves: int) -> Posterior:
    """Of samples: ``labels``, ``theta``, ``log_likelihood``, ``chain``."""
    ordered = [by_volume(space, *each) for each in zip(
        samples["labels"], samples["theta"], strict=True)]
    labels = np.array([each[0] for each in ordered], np.int8)
    quantities = quantities_by_name(space, samples)
    theta: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(space.models.names):
        values = np.array([np.where(space.models.active(each[0]), [
            space.problem.unknown[n].value(x) for n, x in zip(space.models.names, each[1],
                                                              strict=True)], np.nan)
            for each in ordered])[:, [n == name for n in space.models.names]]
        theta[name] = values if space.models.cell_of[list(space.models.names).index(name)] else (
            values[:, 0])
    aligned = align(space, labels, labels[int(np.argmax(samples["log_likelihood"]))])
    shape, value = largest_expected_f1(space, aligned)
    return Posterior(labels, theta, np.asarray(samples["log_likelihood"]),
                     np.asarray(samples["chain"]), quantities, facets, space.models.whole.sides,
                     aligned, shape, value, acceptance, correction, solves)


def align(space: Space, labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Samples after the map of `Cells.maps` that lays most of their inside over a reference's."""
    maps = [np.arange(labels.shape[1]), *(source for _, _, source in space.cells.maps)]
    result, target = labels.copy(), reference > 0
    for k, sample in enumerate(labels):
        best = -1
        for source in maps:
            new = moved(sample, source)
            if np.count_nonzero(new) == np.count_nonzero(sample):
                common = int(np.count_nonzero((new > 0) & target))
                if common > best:
                    best, result[k] = common, new
    return result


def largest_expected_f1(space: Space, samples: np.ndarray) -> tuple[np.ndarray, float]:
    """The partition whose walls have the largest mean F1 against those of samples.

    Among samples, and what is more probable than a cut, repaired.
    """
    sides = space.models.whole.sides[~space.models.whole.outer]
    W = np.array([is_wall(sample, sides) for sample in samples]).astype(np.float32)
    number, p = W.sum(axis=1), np.mean(samples > 0, axis=0)
    chosen = np.unique(np.linspace(0, len(samples) - 1, CANDIDATES).astype(int))
    shapes = [*samples[chosen]]
    for cut in CUTS:
        cell = samples[:, p > cut]
        shape = np.zeros(samples.shape[1], np.int8)
        for at, column in zip(np.flatnonzero(p > cut), cell.T, strict=True):
            shape[at] = np.bincount(column)[1:].argmax() + 1
        if shape.any():
            shape = space.cells.repaired(shape)
            if space.cells.allowed(shape):
                shapes.append(shape)
    A = np.array([is_wall(shape, sides) for shape in shapes]).astype(np.float32)
    f1 = np.mean(2 * (A @ W.T) / np.maximum(A.sum(axis=1)[:, None] + number, 1), axis=1)
    best = int(f1.argmax())
    return shapes[best], float(f1[best])
