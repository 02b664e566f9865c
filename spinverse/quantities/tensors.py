"""Diffusion tensor from signals along many directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..acquisition.signals import Signals
from ..errors import InputError, warn_caller
from ..units import b_to_internal
from .effective import FitWarning, unit_directions
from .measured import positive_magnitudes

_LARGEST_CHANGE = 0.1  # of the mean diffusivity by a term in b^2
_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclass(frozen=True, eq=False)
class TensorFit:
    """Fits ln S = ln S0 - b n . D n (B : D for a waveform whose direction varies).

    One for each of G groups: every waveform of fixed direction, and all the others together.

    Attributes:
        tensors: ``(G, 3, 3)`` um^2/ms.
        S0: ``(G,)`` fitted signal at b = 0.
        residual: ``(G,)`` root mean square of the fit of ln S, weighted with the signal.
        waveform_index: ``(G,)`` the waveform; -1 for the group of those whose direction varies.
    """

    tensors: np.ndarray
    S0: np.ndarray
    residual: np.ndarray
    waveform_index: np.ndarray

    @property
    def eigenvalues(self) -> np.ndarray:
        """``(G, 3)`` um^2/ms, descending."""
        return np.linalg.eigvalsh(self.tensors)[:, ::-1]

    @property
    def eigenvectors(self) -> np.ndarray:
        """``(G, 3, 3)``: column k belongs to eigenvalue k."""
        return np.linalg.eigh(self.tensors)[1][:, :, ::-1]

    @property
    def mean_diffusivity(self) -> np.ndarray:
        """MD, a third of the trace, ``(G,)`` um^2/ms."""
        return np.trace(self.tensors, axis1=1, axis2=2) / 3

    @property
    def fractional_anisotropy(self) -> np.ndarray:
        """FA in [0, 1] (Basser and Pierpaoli, J. Magn. Reson. B 111, 209, 1996), ``(G,)``."""
        return fractional_anisotropy(self.tensors)


def fractional_anisotropy(tensors: np.ndarray) -> np.ndarray:
    """sqrt(3/2) |D - MD| / |D| of tensors ``(..., 3, 3)``."""
    tensors = np.asarray(tensors, dtype=float)
    mean = np.trace(tensors, axis1=-2, axis2=-1)[..., None, None] / 3 * np.eye(3)
    size = np.linalg.norm(tensors, axis=(-2, -1))
    deviation = np.linalg.norm(tensors - mean, axis=(-2, -1))
    return np.sqrt(1.5) * np.divide(deviation, size, out=np.zeros_like(size), where=size > 0)


def fit_tensor(signals: Signals, b_max: float | None = None) -> TensorFit:
    """Diffusion tensor of each waveform, by weighted linear least squares.

    The weights are the squares of the signals that a first fit predicts (Veraart et al.,
    NeuroImage 81, 335, 2013).

    Args:
        signals: at least 6 directions in general position for each waveform, and two b-values.
        b_max: largest b to use, s/mm^2; all if not given.

    Raises:
        InputError: too few directions or b-values, a signal of magnitude 0, a bad b_max.

    Warns:
        FitWarning: a term in b^2, where there are three b-values, would change the mean
            diffusivity by more than a tenth; an eigenvalue is negative.
    """
    if b_max is not None and not b_max > 0:
        raise InputError(f"b_max: {b_max!r}, expected a positive number in s/mm^2")
    table = signals.acquisition
    magnitude, b = positive_magnitudes(signals), b_to_internal(table.b)
    used = np.ones(len(table), bool) if b_max is None else table.b <= b_max * (1 + 1e-12)
    vector = np.array([waveform.vector for waveform in table.waveforms])
    groups = [(int(w), used & (table.waveform_index == w)) for w in np.flatnonzero(~vector)]
    if vector.any():
        groups.append((-1, used & vector[table.waveform_index]))
    B = b[:, None, None] * np.einsum("ni,nj->nij", *[unit_directions(table.directions)] * 2)
    if vector.any():
        varying = vector[table.waveform_index]
        B[varying] = b_to_internal(table.b_tensors[varying])
    fits = []
    for w, rows in groups:
        name = table.waveforms[w].describe() if w >= 0 else "waveforms of varying direction"
        fits.append(_fit(B[rows], magnitude[rows], name))
    tensors, S0, residual, changes = (np.array(column) for column in zip(*fits, strict=True))
    _warn(tensors, changes)
    return TensorFit(tensors, S0, residual, np.array([w for w, _ in groups]))


def _fit(B: np.ndarray, S: np.ndarray, name: str) -> tuple:
    """Tensor, S0, residual, and the relative change of the trace by a term in b^2."""
    design = np.column_stack([np.ones(len(B)), *(-B[:, i, j] * (1 + (i != j)) for i, j in _PAIRS)])
    strength = np.trace(B, axis1=1, axis2=2)
    encoded = strength > 1e-9 * strength.max(initial=0.0)
    shape = design[encoded, 1:] / strength[encoded, None]
    directions = np.linalg.matrix_rank(shape, tol=1e-4) if encoded.any() else 0
    if directions < 6:
        raise InputError(f"directions: those of {name} determine {directions} of the 6 components "
                         "of a tensor, expected at least 6 directions in general position")
    if np.linalg.matrix_rank(design / np.abs(design).max(axis=0), tol=1e-9) < 7:
        raise InputError(f"b: one b-value only for {name}, expected two or more, for instance 0")
    y, weight = np.log(S), S
    for _ in range(2):
        c, *_ = np.linalg.lstsq(design * weight[:, None], y * weight, rcond=None)
        weight = np.exp(np.clip(design @ c, y.min() - 1, y.max() + 1))
    D = np.zeros((3, 3))
    for value, (i, j) in zip(c[1:], _PAIRS, strict=True):
        D[i, j] = D[j, i] = value
    residual = np.sqrt(np.average((y - design @ c) ** 2, weights=weight**2))
    change = 0.0
    more = np.column_stack([design, strength**2])
    if np.linalg.matrix_rank(more / np.abs(more).max(axis=0), tol=1e-6) == 8:
        curved, *_ = np.linalg.lstsq(more * weight[:, None], y * weight, rcond=None)
        change = abs(curved[1:4].sum() / c[1:4].sum() - 1) if c[1:4].sum() else 0.0
    return D, float(np.exp(c[0])), float(residual), float(change)


def _warn(tensors: np.ndarray, changes: np.ndarray) -> None:
    remarks = []
    if changes.max() > _LARGEST_CHANGE:
        remarks.append(f"kurtosis would change the mean diffusivity by {100 * changes.max():.2g} "
                       f"%, expected at most {100 * _LARGEST_CHANGE:g} % (a smaller b_max?)")
    lowest = np.linalg.eigvalsh(tensors).min()
    if lowest < -1e-6 * np.abs(tensors).max():
        remarks.append(f"an eigenvalue is {lowest:.3g} um^2/ms, expected positive ones")
    if remarks:
        warn_caller("fit_tensor: " + "; ".join(remarks), FitWarning)
