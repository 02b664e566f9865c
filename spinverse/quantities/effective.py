"""Effective diffusion: what homogenised, modal and short-time models give for an acquisition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..acquisition.table import Acquisition
from ..errors import InputError
from ..tissue import Tissue
from .compartments import TissueCompartments, uniform_in


class ValidityWarning(UserWarning):
    """A quantity was computed, but an assumption of its formula does not hold well."""


class FitWarning(ValidityWarning):
    """The signals do not determine what was fitted to them: range of b, noise, or model."""


@dataclass(frozen=True, eq=False)
class EffectiveDiffusion:
    """Initial slopes -d ln|S| / db of the signals, by compartment and in all.

    Attributes:
        acquisition: the measurements, N rows, W waveforms; their b-values play no part.
        compartments: the C parts that do not exchange spins in this model.
        weights: ``(C, W)`` share of each part in the signal without gradient at the echo.
        tensors: ``(C, W, 3, 3)`` um^2/ms: the slope along n is n . tensor n; nan for a waveform
            whose direction varies in time. Components across a mesh of lower dimension are 0.
        of_compartments: ``(C, N)`` slope of each part for each measurement, um^2/ms.
        errors: ``(C, W)`` bound or estimate of the error that the method knows of, um^2/ms.
    """

    acquisition: Acquisition
    compartments: TissueCompartments
    weights: np.ndarray
    tensors: np.ndarray
    of_compartments: np.ndarray
    errors: np.ndarray

    @property
    def adc(self) -> np.ndarray:
        """Slope of the whole signal for each measurement, ``(N,)`` um^2/ms."""
        return np.einsum("cn,cn->n", self.weights[:, self.acquisition.waveform_index],
                         self.of_compartments)

    @property
    def tensor(self) -> np.ndarray:
        """Effective diffusion tensor of the whole for each waveform, ``(W, 3, 3)`` um^2/ms."""
        return np.einsum("cw,cwij->wij", self.weights, self.tensors)


def collect(tissue: Tissue, acquisition: Acquisition, parts: TissueCompartments,
            values: list[np.ndarray], errors: np.ndarray) -> EffectiveDiffusion:
    """From ``(C, 3, 3)`` tensors (``(C,)`` slopes of vector waveforms), one of each waveform."""
    index = acquisition.waveform_index
    tensors = np.full((len(parts), len(acquisition.waveforms), 3, 3), np.nan)
    slopes = np.empty((len(parts), len(acquisition)))
    for w, (waveform, value) in enumerate(zip(acquisition.waveforms, values, strict=True)):
        rows = np.flatnonzero(index == w)
        if waveform.vector:
            slopes[:, rows] = value[:, None]
        else:
            n = unit_directions(acquisition.directions[rows])
            tensors[:, w] = value
            slopes[:, rows] = np.einsum("ni,cij,nj->cn", n, value, n)
    return EffectiveDiffusion(acquisition, parts, _weights(tissue, acquisition, parts), tensors,
                              slopes, errors)


def unit_directions(directions: np.ndarray) -> np.ndarray:
    """Directions of length one; where b = 0 any vector is allowed, and 0 stays 0."""
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    return np.divide(directions, length, out=np.zeros_like(directions), where=length > 0)


def check_stationary(tissue: Tissue, parts: TissueCompartments, quantity: str) -> None:
    """Raise InputError unless nothing but the gradient changes the profile in any part.

    The slopes of this package are those of stationary diffusion: a density that exchange evens
    out, unequal relaxation and an absorbing boundary add terms of their own. Collective.
    """
    mesh = tissue.mesh
    for field, values in (("density", tissue.density), ("T2", tissue.T2)):
        if field == "density" and tissue.balanced:
            continue
        if uniform_in(parts, mesh, values) is None:
            raise InputError(f"{field}: varies within cells that exchange spins, expected one "
                             f"value there for {quantity} (fit_adc of simulated signals takes any)")
    leaking = tissue.permeability.values[mesh.outer].max(initial=0.0)
    leaking = max(mesh.comm.allgather(float(leaking)))
    if leaking > 0:
        raise InputError(f"permeability: {leaking:g} um/ms on an outer facet, expected 0 for "
                         f"{quantity} (fit_adc of simulated signals takes any)")


def profile(tissue: Tissue) -> np.ndarray:
    """Square of the stationary unknown in each cell on this rank, ``(nc,)``. Collective.

    The density where that is at rest; otherwise it is uniform within each part, and 1 does. Its
    integral over a part is ``capacities``.
    """
    return tissue.density if tissue.balanced else np.ones(len(tissue.density))


def mean_diffusivity_tensors(tissue: Tissue, parts: TissueCompartments) -> np.ndarray:
    """Mean of D over the spins of each part, ``(C, 3, 3)`` um^2/ms. Collective."""
    mesh = tissue.mesh
    owned = slice(0, mesh.num_owned_cells)
    share = profile(tissue)[owned] * mesh.cell_volumes[owned]
    total = np.zeros((len(parts), 3, 3))
    np.add.at(total, parts.labels[owned], cell_tensors(tissue)[owned] * share[:, None, None])
    return mesh.comm.allreduce(total) / parts.capacities[:, None, None]


def cell_tensors(tissue: Tissue) -> np.ndarray:
    """D of each cell on this rank, ``(nc, 3, 3)``, 0 across a mesh of lower dimension."""
    D, dim = tissue.diffusivity, tissue.mesh.dim
    tensors = np.zeros((len(D), 3, 3))
    tensors[:, :dim, :dim] = D[:, None, None] * np.eye(dim) if D.ndim == 1 else D
    return tensors


def _weights(tissue: Tissue, acquisition: Acquisition, parts: TissueCompartments) -> np.ndarray:
    T2 = uniform_in(parts, tissue.mesh, tissue.T2)
    if T2 is None:
        raise InputError("T2: varies within a compartment, expected one value in each")
    stored = np.array([waveform.stored_time for waveform in acquisition.waveforms])
    TE = np.array([waveform.echo_time for waveform in acquisition.waveforms]) - stored
    T1 = uniform_in(parts, tissue.mesh, tissue.T1)
    if T1 is None and stored.any():
        raise InputError("T1: varies within a compartment, expected one value in each")
    T1 = np.full(len(parts), np.inf) if T1 is None else T1
    share = parts.magnetisation[:, None] * np.exp(-TE / T2[:, None] - stored / T1[:, None])
    if not (share.sum(axis=0) > 0).all():
        raise InputError("density: 0 everywhere, expected some magnetisation")
    return share / share.sum(axis=0)
