"""Measurements that a strategy looks at: all of them, some directions, or some that tell all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...engines.shapes.propagation import Sweeps
from ..likelihood import Likelihood

RIDGE = 5e-3  # rms of normalised magnitudes that examples do not tell


@dataclass(frozen=True, eq=False)
class Look:
    """Rows of a likelihood, as the fast models propagate them.

    Attributes:
        likelihood: of the rows.
    """

    likelihood: Likelihood

    @property
    def measured(self) -> np.ndarray:
        """``(N,)`` normalised magnitudes."""
        return self.likelihood.measured

    @property
    def computed(self) -> Likelihood:
        """Of the rows that are propagated."""
        return self.likelihood

    def sweeps(self, longest: float, kind: Any = Sweeps):
        """What is propagated, in steps of at most ``longest`` ms, of the kind of the model."""
        known = self._sweeps
        if (longest, kind) not in known:
            known[longest, kind] = kind.of(self.computed.acquisition, longest)
        return known[longest, kind]

    @cached_property
    def _sweeps(self) -> dict:
        return {}

    def predicted(self, signals: np.ndarray) -> np.ndarray:
        """Expected normalised magnitudes of all rows from the signals that were propagated."""
        return self.likelihood.expected(signals)

    def change(self, signals: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        """Of the expected magnitudes of all rows, ``(N, n)``, from those of the signals'."""
        return self.likelihood.slope(signals, slopes)

    def directions(self, number: int) -> Look:
        """At most ``number`` of the directions, spread as well as a greedy choice does."""
        rows = self.rows_of(number)
        return self if len(rows) == len(self.measured) else Look(self.likelihood.select(rows))

    def rows_of(self, number: int) -> np.ndarray:
        """Rows of at most ``number`` of the directions, and those without gradient."""
        acquisition = self.likelihood.acquisition
        moving = acquisition.b > 0
        axes, which = np.unique(np.round(acquisition.directions, 9), axis=0, return_inverse=True)
        which = which.ravel()
        present = np.unique(which[moving])
        if len(present) <= number:
            return np.arange(len(self.measured))
        # opposite directions are the same to a magnitude
        alike = np.abs(axes[present] @ axes[present].T)
        chosen = [0]
        while len(chosen) < number:
            chosen.append(int(alike[chosen].max(axis=0).argmin()))
        keep = np.isin(which, present[chosen])
        # rows without gradient whose direction is none of these count once each
        still = ~moving & ~np.isin(which, present)
        return np.flatnonzero(keep | still)


@dataclass(frozen=True, eq=False)
class Lifted(Look):
    """All measurements, of which the fast models compute some directions and the rest follows.

    Signals of one waveform are smooth in the direction: what ten of them say of the others is
    linear, learnt from shapes, and good enough where the full model has corrected it nearby.

    Attributes:
        part: the rows that are computed.
        lift, mean: ``(n, N)`` and ``(N,)``: expected magnitudes of ``part`` times ``lift`` plus
            ``mean`` are predicted.
    """

    part: Likelihood
    lift: np.ndarray
    mean: np.ndarray

    @classmethod
    def learnt(cls, whole: Look, number: int, examples: np.ndarray) -> Look:
        """From ``number`` directions; examples: normalised magnitudes of shapes, ``(m, N)``."""
        rows = whole.rows_of(number)
        if len(rows) == len(whole.measured):
            return whole
        kind = whole.likelihood.acquisition.waveform_index
        centre = examples.mean(axis=0)
        X = examples - centre
        lift = np.zeros((len(rows), X.shape[1]))
        for wave in np.unique(kind):
            known, asked = np.flatnonzero(kind[rows] == wave), np.flatnonzero(kind == wave)
            A = X[:, rows[known]]
            ridge = RIDGE**2 * len(X) * np.eye(len(known))
            lift[np.ix_(known, asked)] = np.linalg.solve(A.T @ A + ridge, A.T @ X[:, asked])
        lift[:, rows] = np.eye(len(rows))
        return cls(whole.likelihood, whole.likelihood.select(rows), lift,
                   centre - centre[rows] @ lift)

    @property
    def computed(self) -> Likelihood:
        return self.part

    def predicted(self, signals: np.ndarray) -> np.ndarray:
        return self.part.expected(signals) @ self.lift + self.mean

    def change(self, signals: np.ndarray, slopes: np.ndarray) -> np.ndarray:
        return self.lift.T @ self.part.slope(signals, slopes)
