"""Signals: one complex value for each row of an acquisition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spinverse.acquisition.table import Acquisition
from spinverse.errors import InputError


@dataclass(frozen=True, eq=False)
class Signals:
    """Measured or simulated signals. Rows are counted from 0.

    Attributes:
        acquisition: The measurements, N rows.
        values: Complex signals, shape (N,); magnitude data have a zero imaginary part. The array is
            a read-only copy.

    Raises:
        InputError: Another number of values than of measurements, or a value that is not finite.
    """

    acquisition: Acquisition
    values: np.ndarray

    def __post_init__(self) -> None:
        try:
            values = np.array(self.values, dtype=complex)
        except (TypeError, ValueError):
            raise InputError("values: expected complex or real numbers") from None
        if values.shape != (len(self.acquisition),):
            raise InputError(
                f"values: shape {values.shape}, expected ({len(self.acquisition)},), one for each "
                "row of the acquisition"
            )
        for row in np.flatnonzero(~np.isfinite(values))[:1]:
            column = "im" if np.isfinite(values[row].real) else "re"
            value = values[row].imag if column == "im" else values[row].real
            raise InputError(f"values: row {row}, column {column} is {value}, expected a number")
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

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
    def normalised(self) -> np.ndarray:
        """|S| over the mean |S(b=0)| of the same waveform, shape (N,).

        Raises:
            InputError: A waveform has no row with b = 0, or no signal there; names the waveform.
        """
        magnitude, index = self.magnitude, self.acquisition.waveform_index
        reference = np.zeros(len(self.acquisition.waveforms))
        for k, waveform in enumerate(self.acquisition.waveforms):
            rows = (index == k) & (self.acquisition.b == 0.0)
            if not np.any(rows):
                raise InputError(
                    f"normalised: {waveform.describe()} has no row with b = 0 to divide by"
                )
            reference[k] = np.mean(magnitude[rows])
            if reference[k] == 0.0:
                raise InputError(f"normalised: {waveform.describe()} has zero signal at b = 0")
        return magnitude / reference[index]

    def select(self, rows) -> Signals:
        """The rows that a mask (N,), a slice or indices choose, in that order."""
        rows = self.acquisition.row_numbers(rows)
        return Signals(self.acquisition.select(rows), self.values[rows])
