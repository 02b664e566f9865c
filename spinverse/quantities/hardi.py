"""Signals or ADC over the sphere as real spherical harmonics of even order."""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial, pi

import numpy as np
from scipy.special import lpmv

from ..acquisition.signals import Signals
from ..errors import InputError
from ..units import b_to_internal
from .effective import unit_directions
from .measured import positive_magnitudes, same_axis

_LARGEST_DEFAULT = 8
_SAME_SHELL = 1e-2  # relative difference of b-values that count as one


@dataclass(frozen=True, eq=False)
class HARDIFit:
    """Spherical-harmonic series, one for each of G shells (a waveform and a b-value).

    Attributes:
        quantity: "signal" or "adc".
        order: highest order of the harmonics.
        coefficients: ``(G, R)``, R = (order + 1)(order + 2)/2, in the order of
            `spherical_harmonics`; of the normalised signal, or of the ADC in um^2/ms.
        b: ``(G,)`` mean b of each shell, s/mm^2.
        waveform_index: ``(G,)``.
        residual: ``(G,)`` root mean square of the fit, in the unit of the quantity.
    """

    quantity: str
    order: int
    coefficients: np.ndarray
    b: np.ndarray
    waveform_index: np.ndarray
    residual: np.ndarray

    def evaluate(self, directions) -> np.ndarray:
        """The fitted quantity along directions ``(n, 3)``, ``(G, n)``."""
        return self.coefficients @ spherical_harmonics(directions, self.order).T

    @property
    def mean(self) -> np.ndarray:
        """Mean over the sphere, ``(G,)``: the powder average."""
        return self.coefficients[:, 0] / np.sqrt(4 * pi)


def fit_hardi(signals: Signals, order: int | None = None, regularisation: float = 0.006,
              quantity: str = "signal") -> HARDIFit:
    """Fit each shell, with Laplace-Beltrami regularisation.

    The coefficients c minimise |B c - s|^2 + regularisation sum_l l^2 (l + 1)^2 |c_l|^2
    (Descoteaux, Angelino, Fitzgibbons and Deriche, Magn. Reson. Med. 58, 497, 2007).

    Args:
        signals: one or more shells of fixed-direction waveforms, each with rows at b = 0.
        order: even; the largest up to 8 that the directions of every shell determine if not given.
        regularisation: 0 for none.
        quantity: "signal" (over that at b = 0) or "adc" (-ln of it over b, um^2/ms).

    Raises:
        InputError: a bad argument, no shell, too few directions, a waveform without b = 0.
    """
    if quantity not in ("signal", "adc"):
        raise InputError(f"quantity: {quantity!r}, expected 'signal' or 'adc'")
    if order is not None and not (isinstance(order, int | np.integer) and 0 <= order <= 16
                                  and order % 2 == 0):
        raise InputError(f"order: {order!r}, expected an even number from 0 to 16")
    if not regularisation >= 0:
        raise InputError(f"regularisation: {regularisation!r}, expected 0 or more")
    table = signals.acquisition
    shells = shells_of(signals)
    if not shells:
        raise InputError("signals: no row with b > 0 of a waveform with a fixed direction, "
                         "expected at least one shell")
    fewest = min(same_axis(table.directions[rows]).max() + 1 for _, rows in shells)
    if order is None:
        order = max(L for L in range(0, _LARGEST_DEFAULT + 1, 2)
                    if (L + 1) * (L + 2) // 2 <= fewest)
    terms = (order + 1) * (order + 2) // 2
    if terms > fewest:
        raise InputError(f"directions: {fewest} in a shell, expected at least {terms} for order "
                         f"{order}")
    positive_magnitudes(signals)
    values = signals.normalised
    coefficients, residual = [], []
    even = np.arange(0, order + 1, 2)
    degree = np.repeat(even, 2 * even + 1)
    penalty = regularisation * (degree * (degree + 1.0)) ** 2
    for _, rows in shells:
        s = values[rows]
        if quantity == "adc":
            s = -np.log(s) / b_to_internal(table.b[rows])
        B = spherical_harmonics(table.directions[rows], order)
        c = np.linalg.solve(B.T @ B + np.diag(penalty), B.T @ s)
        coefficients.append(c)
        residual.append(np.sqrt(np.mean((B @ c - s) ** 2)))
    return HARDIFit(quantity, int(order), np.array(coefficients),
                    np.array([table.b[rows].mean() for _, rows in shells]),
                    np.array([w for w, _ in shells]), np.array(residual))


def spherical_harmonics(directions, order: int) -> np.ndarray:
    """Real orthonormal harmonics of even degree l <= order, ``(n, R)``.

    Columns run over l = 0, 2, ..., and within l over m = -l..l: sqrt(2) N cos(m phi) P for m < 0
    (with |m|), N P for m = 0, sqrt(2) N sin(m phi) P for m > 0, as Descoteaux et al. order them.

    Args:
        directions: ``(n, 3)``, of any length but 0.
        order: even.
    """
    n = np.atleast_2d(np.asarray(directions, dtype=float))
    if n.ndim != 2 or n.shape[1] != 3 or not (np.linalg.norm(n, axis=1) > 0).all():
        raise InputError(f"directions: shape {n.shape}, expected (n, 3) vectors that are not 0")
    x, y, z = unit_directions(n).T
    phi = np.arctan2(y, x)
    columns = []
    for degree in range(0, order + 1, 2):
        for m in range(-degree, degree + 1):
            k = abs(m)
            norm = np.sqrt((2 * degree + 1) / (4 * pi) * factorial(degree - k)
                           / factorial(degree + k))
            radial = norm * lpmv(k, degree, np.clip(z, -1.0, 1.0))
            angular = 1.0 if m == 0 else np.sqrt(2) * (np.cos(k * phi) if m < 0
                                                       else np.sin(k * phi))
            columns.append(radial * angular)
    return np.column_stack(columns)


def shells_of(signals: Signals) -> list[tuple[int, np.ndarray]]:
    """(waveform, rows) of each shell, b ascending: b-values within 1 % of their neighbour's."""
    table, shells = signals.acquisition, []
    for w, waveform in enumerate(table.waveforms):
        if waveform.vector:
            continue
        rows = np.flatnonzero((table.waveform_index == w) & (table.b > 0))
        rows = rows[np.argsort(table.b[rows], kind="stable")]
        b = table.b[rows]
        gaps = np.flatnonzero(np.diff(b) > _SAME_SHELL * b[1:]) + 1
        shells += [(w, part) for part in np.split(rows, gaps) if len(part)]
    return shells
