"""Signals: one complex value for each row of an acquisition."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from .table import Acquisition

UM3 = "um^3"  # times density: what is integrated over the mesh


@dataclass(frozen=True, eq=False, repr=False)
class Signals:
    """Measured or simulated signals. Rows are counted from 0.

    Attributes:
        acquisition: The measurements, N rows.
        values: Complex signals, shape (N,); magnitude data have a zero imaginary part. The array is
            a read-only copy.
        estimated_error: of simulated ones: the engine's estimate of the largest absolute error of S
            / S(b=0, t=0) that modes and steps leave on the given mesh; nan where there is none.
        mesh_error: the same of the mesh, which comes on top; nan where it was not asked for.
        unit: what values are in, `UM3` if they are a simulation's; "" if it is not known, as of
            every scanner.
        unweighted: |S(b=0)| of each row, shape (N,), nan where it is not known: what a simulator
            knows without measurements at b = 0. Those come first where there are some.

    Raises:
        InputError: Another number of values than of measurements, or a value that is not finite.
    """

    acquisition: Acquisition
    values: np.ndarray
    estimated_error: float = np.nan
    unit: str = ""
    unweighted: np.ndarray | None = None
    mesh_error: float = np.nan

    def __post_init__(self) -> None:
        try:
            values = np.array(self.values, dtype=complex)
        except (TypeError, ValueError):
            raise InputError("values: expected complex or real numbers") from None
        if values.shape != (len(self.acquisition),):
            raise InputError(f"values: shape {values.shape}, expected ({len(self.acquisition)},), "
                             "one for each row of the acquisition")
        for row in np.flatnonzero(~np.isfinite(values))[:1]:
            column = "im" if np.isfinite(values[row].real) else "re"
            value = values[row].imag if column == "im" else values[row].real
            raise InputError(f"values: row {row}, column {column} is {value}, expected a number")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        low, high = self.magnitude.min(), self.magnitude.max()
        return (f"Signals({len(self)} of {self.acquisition!r}, magnitudes {low:.4g} to {high:.4g}"
                f"{f' {self.unit}' if self.unit else ''})")

    def __len__(self) -> int:
        return self.values.size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Signals):
            return NotImplemented
        return self.acquisition == other.acquisition and np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]

    @property
    def magnitude(self) -> np.ndarray:
        """|S|, shape (N,)."""
        return np.abs(self.values)

    @property
    def reference(self) -> np.ndarray:
        """Mean |S(b=0)| that each row is normalised by, shape (N,).

        Of the same waveform, or else of the same echo time (``Acquisition.reference_rows``).

        Raises:
            InputError: There is no such row, or no signal there; names the waveform.
        """
        mean = np.zeros(len(self.acquisition.waveforms))
        for k in np.unique(self.acquisition.waveform_index):
            waveform = self.acquisition.waveforms[k]
            known = np.empty(0) if self.unweighted is None else \
                self.unweighted[self.acquisition.waveform_index == k]
            try:
                mean[k] = np.mean(self.magnitude[self.acquisition.reference_rows(k)])
            except InputError:
                if not np.isfinite(known).any():
                    raise
                mean[k] = np.nanmean(known)
            if mean[k] == 0.0:
                raise InputError(f"normalised: {waveform.describe()} has zero signal at b = 0")
        return mean[self.acquisition.waveform_index]

    @property
    def normalised(self) -> np.ndarray:
        """|S| over `reference`, shape (N,), with its errors."""
        return self.magnitude / self.reference

    def select(self, rows) -> Signals:
        """The rows that a mask (N,), a slice or indices choose, in that order."""
        rows = self.acquisition.row_numbers(rows)
        return replace(self, acquisition=self.acquisition.select(rows), values=self.values[rows],
                       unweighted=None if self.unweighted is None else self.unweighted[rows])
