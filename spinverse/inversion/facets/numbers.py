"""Unknown numbers as controls beside the permeabilities of facets.

One vector has both: the facets of each rank, and on rank 0 the coordinates of the numbers after
them (`FacetField`), so that optimisers need not know of two kinds. Numbers reach the signals
through coefficients of the weak form, whose derivatives the engines have.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import dolfinx
import numpy as np
from mpi4py import MPI

from ...adjoint.blocks import EngineOperation, Operation
from ...errors import InputError
from ...problem import BlochTorrey
from .. import parameters
from ..ledger import State
from ..problem import InverseProblem

_STEP = 1e-4  # of a coordinate, for differences of coefficients: 1e-9 of their slopes
_SIGNAL_STEP = 1e-3  # for differences of signals: above the rounding of eigenproblems


class Numbers:
    """The unknown numbers of a stage of facets, which hold `parameters.RATIO`.

    `wall_permeability` is what facets have.

    Args:
        problem: whose ``unknown`` they are.
        forward: the discrete problem that they are put into.
        state: with their values, and labels where cells have numbers of their own.

    Raises:
        InputError: numbers of the inside or the outside, and no labels.
    """

    def __init__(self, problem: InverseProblem, forward: BlochTorrey, state: State):
        self.problem, self.forward, self.comm = problem, forward, problem.comm
        self.facets = problem.mesh.num_owned_facets
        unknown = {k: u for k, u in parameters.of_theta(problem.unknown).items()
                   if k not in ("wall_permeability", parameters.RATIO)}
        if state.labels is None and parameters.labelled(unknown):
            name = next(name for name in unknown if parameters.labelled([name]))
            raise InputError(f"unknown: {name} in a stage of facets, which do not tell inside from "
                             "outside; expected a search for shapes before it, or the number of "
                             "the whole mesh")
        self.labels = 0 if state.labels is None else state.labels
        cells = self.comm.allreduce(int(np.max(self.labels, initial=0)), op=MPI.MAX)
        self.coordinates = parameters.Coordinates(unknown, max(cells, 1))
        self._theta = {**problem.start_of_unknown, **state.theta}
        self.start = self.coordinates.coordinates(self._theta)
        self.put(self.start)

    def __len__(self) -> int:
        return len(self.coordinates.names)

    @property
    def theta(self) -> parameters.Theta:
        """All unknown numbers, by name, as they were put last."""
        return {**self._theta, **self.coordinates.values(self.present)}

    def put(self, x: np.ndarray) -> None:
        """Put coordinates ``(P,)`` into the discrete problem. Collective."""
        self.present = np.array(x)
        parameters.apply({k: v for k, v in self.theta.items() if k != "wall_permeability"},
                         self.forward, self.problem.walls, self.labels)

    # ---- in one vector with facets --------------------------------------------------------------

    def joined(self, facets: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """A vector of both, ``(..., nf)`` and, the same on all ranks, ``(..., P)``."""
        return np.concatenate([facets, numbers[..., : self.own]], axis=-1)

    @property
    def own(self) -> int:
        """How many of them this rank has in vectors of both."""
        return 0 if self.comm.rank else len(self)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Those of a vector of both, on all ranks. Collective."""
        return self.comm.bcast(values[self.facets:])

    # ---- derivatives ----------------------------------------------------------------------------

    @cached_property
    def coefficients(self) -> list:
        """Coefficients of the weak form that some of them change. Collective."""
        c = self.forward.coefficients
        known = [each for each in (c.D, c.R2, *c.extra.values())
                 if isinstance(each, dolfinx.fem.Function | dolfinx.fem.Constant)]
        before = [_entries(each) for each in known]
        changed = np.zeros(len(known), bool)
        for unit in _STEP * np.eye(len(self)):
            self.put(self.start + unit)
            changed |= [not np.array_equal(_entries(each), old)
                        for each, old in zip(known, before, strict=True)]
        self.put(self.start)
        changed = self.comm.allreduce(changed.astype(int))
        return [each for each, here in zip(known, changed, strict=True) if here]

    def pull_back(self, x: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
        """Derivatives by the coordinates at x, from those by `coefficients`. Collective."""
        found = np.zeros(len(self))
        for k, unit in enumerate(_STEP * np.eye(len(self))):
            ends = []
            for sign in (1, -1):
                self.put(x + sign * unit)
                ends.append([_entries(each) for each in self.coefficients])
            for each, gradient, up, down in zip(self.coefficients, gradients, *ends, strict=True):
                part = float(np.ravel(gradient) @ (up - down)) / (2 * _STEP)
                constant = isinstance(each, dolfinx.fem.Constant)
                found[k] += part if constant else self.comm.allreduce(part)
        self.put(x)
        return found

    def slopes(self, engine, x: np.ndarray) -> np.ndarray:
        """Derivatives of the magnitudes of signals by the coordinates, ``(N, P)``. Collective.

        By central differences, at the permeability as it is.
        """
        found = []
        for unit in _SIGNAL_STEP * np.eye(len(self)):
            up, down = (np.abs(self._signals(engine, x + sign * unit)) for sign in (1, -1))
            found.append((up - down) / (2 * _SIGNAL_STEP))
        self.put(x)
        return np.array(found).reshape(len(self), len(engine.acquisition)).T

    def _signals(self, engine, x: np.ndarray) -> np.ndarray:
        self.put(x)
        return engine.signals()


def _entries(coefficient) -> np.ndarray:
    """A copy of what this rank has of a coefficient, owned entries of a Function."""
    if isinstance(coefficient, dolfinx.fem.Constant):
        return np.array(coefficient.value, dtype=float).ravel()
    dofmap = coefficient.function_space.dofmap
    return coefficient.x.array[: dofmap.index_map.size_local * dofmap.index_map_bs].copy()


class SignalsOfBoth(EngineOperation):
    """Permeabilities of facets, and coordinates of numbers after them, to signals."""

    def __init__(self, engine, numbers: Numbers):
        super().__init__(engine)
        self.numbers = numbers

    def _signals(self, values):
        self.numbers.put(self.numbers.of(values))
        return self.engine.signals(values[: self.numbers.facets], remember=True)

    def _derivative(self, adjoint, values):
        numbers = self.numbers
        if not len(numbers):
            return self.engine.gradient(adjoint)
        x = numbers.of(values)
        numbers.put(x)
        facets, *others = self.engine.gradients(
            adjoint, [numbers.forward.kappa, *numbers.coefficients])
        return numbers.joined(facets, numbers.pull_back(x, others))


@dataclass(frozen=True, eq=False)
class Both:
    """Two maps side by side: of the first ``count`` entries, the facets, and of the others."""

    count: int
    facets: Operation
    others: Operation

    def value(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([self.facets.value(x[: self.count]),
                               self.others.value(x[self.count:])])

    def pull_back(self, x: np.ndarray, adjoint: np.ndarray) -> np.ndarray:
        n = self.count
        return np.concatenate([self.facets.pull_back(x[:n], adjoint[..., :n]),
                               self.others.pull_back(x[n:], adjoint[..., n:])], axis=-1)


@dataclass(frozen=True, eq=False)
class OfFacets:
    """A number from the first ``count`` entries: a prior that does not look at numbers."""

    count: int
    operation: Operation

    def value(self, x: np.ndarray) -> float:
        return self.operation.value(x[: self.count])

    def pull_back(self, x: np.ndarray, adjoint: float) -> np.ndarray:
        return np.r_[self.operation.pull_back(x[: self.count], adjoint),
                     np.zeros(len(x) - self.count)]

    def squares(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """See `Smoothness.squares`; None for priors without."""
        found = getattr(self.operation, "squares", lambda x: None)(x[: self.count])
        return found and (found[0], np.pad(found[1], ((0, 0), (0, len(x) - self.count))))


@dataclass(frozen=True, eq=False)
class NumberPrior:
    """What is thought of numbers beforehand: sum of (x - start)^2 / deviation^2 in the coordinates.

    Times the variance of noise over the number of measurements, as the mean square misfit is what
    it is added to; without noise the data alone tell.
    """

    numbers: Numbers
    variance: float

    name = "numbers"

    def value(self, x: np.ndarray) -> float:
        away = self.numbers.of(x) - self.numbers.coordinates.start
        return self.variance * float(self.numbers.coordinates.precision @ away**2)

    def pull_back(self, x: np.ndarray, adjoint: float) -> np.ndarray:
        numbers = self.numbers.coordinates
        slope = numbers.precision * (self.numbers.of(x) - numbers.start)
        return self.numbers.joined(np.zeros(self.numbers.facets),
                                   2 * adjoint * self.variance * slope)
