"""Karger model: well-mixed compartments, each with Gaussian diffusion, that exchange spins."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.linalg import expm

from ..acquisition.signals import Signals
from ..acquisition.table import Acquisition
from ..acquisition.waveform import Waveform
from ..errors import InputError, SolverError, warn_caller
from ..problem import BlochTorrey
from ..tissue import Tissue
from ..units import b_to_internal
from .compartments import TissueCompartments, compartments_of, residence_times, uniform_in
from .effective import ValidityWarning, check_stationary, mean_diffusivity_tensors, unit_directions
from .hadc import hadc
from .mf_adc import plain

# kappa V / (A D) up to which a compartment counts as well mixed. Two slabs at 0.1 exchange 6 %
# more slowly than the well-mixed formula says.
LARGEST_BIOT = 0.25

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)


@dataclass(frozen=True, eq=False)
class KargerSignals:
    """Signals of the Karger model.

    Attributes:
        signals: of the whole, N measurements.
        by_compartment: ``(C, N)`` magnetisation of each pool at the echo.
        diffusivities: ``(C, N)`` of each pool in each measurement, um^2/ms.
        exchange_rates: ``(C, C)`` k_ij from pool i to pool j, 1/ms.
    """

    signals: Signals
    by_compartment: np.ndarray
    diffusivities: np.ndarray
    exchange_rates: np.ndarray

    @property
    def residence_times(self) -> np.ndarray:
        """1 / sum_j k_ij, ``(C,)`` ms; inf where nothing leaves."""
        return residence_times(self.exchange_rates)


def karger(tissue: Tissue | BlochTorrey, acquisition: Acquisition, diffusivities=None,
           exchange_rates=None, degree: int = 1) -> KargerSignals:
    """Karger signals of the compartments of a mesh. Collective.

    The model holds where each compartment diffuses as a Gaussian and exchange is limited by the
    membranes. It does not know where pools lie: a spin that changes from one closed pool to
    another moves by the distance of their centres, which the true signal sees and this does not.

    Args:
        tissue: a tissue, or a problem without extra terms at its present permeability.
        diffusivities: of the compartments, um^2/ms: ``(C,)`` or ``(C, 3, 3)``; their homogenised
            ADC behind impermeable walls (`hadc`) if not given.
        exchange_rates: ``(C, C)`` k_ij from compartment i to j, 1/ms, for two pools 1/tau off the
            diagonal; if not given, kappa A_ij / V_i of the mesh.
        degree: of the elements that `hadc` uses; that of a problem is its own.

    Returns:
        The signals, um^3 times density, the same on every rank.

    Raises:
        InputError: a bad argument, density, T2 or T1 that varies within a compartment, an absorbing
            outer boundary.

    Warns:
        ValidityWarning: a compartment is not well mixed: kappa V / (A D) is above 0.25.
    """
    problem = tissue
    tissue, degree = plain(tissue, degree, "karger")
    parts = compartments_of(tissue)
    check_stationary(tissue, parts, "karger")
    if diffusivities is None:
        diffusivities = hadc(problem, acquisition, degree=degree).of_compartments
    else:
        diffusivities = _diffusivities(diffusivities, len(parts))
    if exchange_rates is None:
        exchange_rates = parts.exchange_rates
        _warn_unless_mixed(tissue, parts)
    T2, T1 = (uniform_in(parts, tissue.mesh, times) for times in (tissue.T2, tissue.T1))
    if T1 is None:
        raise InputError("T1: varies within a compartment, expected one value in each")
    return karger_pools(acquisition, parts.magnetisation, diffusivities, exchange_rates, T2,
                        capacities=parts.capacities, T1=T1)


def karger_pools(acquisition: Acquisition, magnetisation, diffusivities, exchange_rates=None,
                 T2=np.inf, capacities=None, tolerance: float = 1e-9,
                 T1=np.inf) -> KargerSignals:
    """Karger signals of pools given by numbers (Karger, Adv. Colloid Interface Sci. 23, 129, 1985).

        dM_i/dt = -(g^2 |F(t)|^2 D_i + 1/T2_i) M_i - sum_j k_ij M_i + sum_j k_ji M_j

    for any F(t): the pulses need not be short; with T1 while a
    waveform stores M along z. Steps split exchange from attenuation and are
    halved and extrapolated until the signals settle.

    Args:
        magnetisation: ``(C,)`` at the start.
        diffusivities: um^2/ms, ``(C,)``, ``(C, 3, 3)``, or ``(C, N)`` for N measurements.
        exchange_rates: ``(C, C)`` 1/ms, the diagonal plays no part; none if not given.
        T2: ms, one or ``(C,)``.
        capacities: ``(C,)`` shares at rest, for instance volumes: V_i k_ij = V_j k_ji must hold;
            as ``magnetisation`` if not given.
        tolerance: of the signals, relative to the whole magnetisation.
        T1: ms, as T2.

    Raises:
        InputError: wrong shapes, negative values, rates that are not in balance.
    """
    start = _column("magnetisation", magnetisation)
    C, N = len(start), len(acquisition)
    capacities = start if capacities is None else _column("capacities", capacities, C)
    T2, T1 = _times("T2", T2, C), _times("T1", T1, C)
    rates = _rates(exchange_rates, capacities)
    D = np.asarray(diffusivities, dtype=float)
    if D.shape != (C, N):
        D = _diffusivities(diffusivities, C)
    # transverse, and stored
    generator = tuple(rates.T - np.diag(rates.sum(axis=1) + 1 / times) for times in (T2, T1))
    by_pool = np.empty((C, N))
    effective = np.empty((C, N))
    for w, waveform in enumerate(acquisition.waveforms):
        rows = np.flatnonzero(acquisition.waveform_index == w)
        g2 = b_to_internal(acquisition.b[rows]) / waveform.b_factor
        if D.shape == (C, N):
            squares, along = _squares(waveform), D[:, rows]
        elif waveform.vector:
            squares, along = _squares(waveform, D), np.ones((C, len(rows)))
        else:
            n = unit_directions(acquisition.directions[rows])
            squares, along = _squares(waveform), np.einsum("ni,cij,nj->cn", n, D, n)
        by_pool[:, rows] = _evolve(waveform, generator, start, g2 * along, squares, tolerance)
        total = squares(np.asarray(waveform.breakpoints)).sum(axis=-1) / waveform.b_factor
        effective[:, rows] = along * np.reshape(total, (-1, 1))
    return KargerSignals(Signals(acquisition, by_pool.sum(axis=0)), by_pool, effective, rates)


def _squares(waveform: Waveform, D: np.ndarray | None = None):
    """Function of nodes ``(n + 1,)``: int |F|^2 over steps, ``(n,)``; or F . D_i F, ``(C, n)``."""
    def integrals(nodes: np.ndarray) -> np.ndarray:
        half = 0.5 * np.diff(nodes)
        F = np.asarray(waveform.integral(nodes[:-1, None] + half[:, None] * (_NODES + 1)))
        F = F.reshape(len(half), len(_NODES), -1)
        if D is None:
            return half * (np.einsum("nqi,nqi->nq", F, F) @ _WEIGHTS)
        return half * (np.einsum("nqi,cij,nqj->cnq", F, D, F) @ _WEIGHTS)
    return integrals


def _evolve(waveform, generator, start, strength, squares, tolerance) -> np.ndarray:
    """Romberg extrapolation of Strang splitting: its error is a series in the square of the step.

    ``strength (C, N)`` is g^2 D; ``squares`` are the integrals that it multiplies, see `_squares`.
    """
    scale, number = start.sum(), 8
    table: list = []
    for _ in range(9):
        row = [_strang(waveform, generator, start, strength, squares, number)]
        for k, older in enumerate(table):
            row.append(row[-1] + (row[-1] - older) / (4 ** (k + 1) - 1))
        if table and np.abs(row[-1] - table[-1]).max() <= tolerance * scale:
            return row[-1]
        table, number = row, 2 * number
    raise SolverError(f"karger: the signals of {waveform.describe()} did not settle to "
                      f"{tolerance:g}; is an exchange rate far too fast?")


def _strang(waveform, generator, start, strength, squares, number) -> np.ndarray:
    M = np.repeat(start[:, None], strength.shape[1], axis=1)
    for begin, end in pairwise(waveform.breakpoints):
        stored = bool(waveform.stored((begin + end) / 2))
        half = expm(generator[stored] * (end - begin) / number / 2)
        weights = squares(np.linspace(begin, end, number + 1))
        for n in range(number):
            M = half @ M
            M *= np.exp(-strength * np.reshape(weights[..., n], (-1, 1)))
            M = half @ M
    return M


def _times(field: str, values, count: int) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    array = np.broadcast_to(array, (count,)) if array.ndim == 0 else array
    if array.shape != (count,) or not (array > 0).all():
        raise InputError(f"{field}: {values!r:.60}, expected one positive time in ms or {count}")
    return array


def _column(field: str, values, count: int | None = None) -> np.ndarray:
    array = np.atleast_1d(np.asarray(values, dtype=float))
    good = array.ndim == 1 and count in (None, len(array)) and np.isfinite(array).all()
    if not good or not (array >= 0).all() or not array.sum() > 0:
        raise InputError(f"{field}: {values!r:.60}, expected {count or 'one or more'} finite "
                         "values, not negative and not all 0")
    return array


def _diffusivities(values, count: int) -> np.ndarray:
    """``(C, 3, 3)`` from ``(C,)`` or ``(C, 3, 3)``."""
    D = np.asarray(values, dtype=float)
    if D.shape == (count,):
        D = D[:, None, None] * np.eye(3)
    if D.shape != (count, 3, 3) or not np.isfinite(D).all() or \
            np.linalg.eigvalsh(D).min() < -1e-12 * np.abs(D).max():
        raise InputError(f"diffusivities: shape {np.shape(values)}, expected ({count},) numbers or "
                         f"({count}, 3, 3) tensors in um^2/ms, not negative")
    return D


def _rates(values, capacities: np.ndarray) -> np.ndarray:
    count = len(capacities)
    rates = np.zeros((count, count)) if values is None else np.array(values, dtype=float)
    if rates.shape != (count, count) or not (np.isfinite(rates) & (rates >= 0)).all():
        raise InputError(f"exchange_rates: {values!r:.60}, expected ({count}, {count}) rates in "
                         "1/ms, not negative")
    np.fill_diagonal(rates, 0.0)
    flow = capacities[:, None] * rates
    if np.abs(flow - flow.T).max() > 1e-6 * flow.max(initial=0.0):
        i, j = np.unravel_index(np.abs(flow - flow.T).argmax(), flow.shape)
        raise InputError(f"exchange_rates: V_{i} k_{i}{j} = {flow[i, j]:g} but V_{j} k_{j}{i} = "
                         f"{flow[j, i]:g}, expected equal flows in equilibrium")
    return rates


def _warn_unless_mixed(tissue: Tissue, parts: TissueCompartments) -> None:
    D = np.trace(mean_diffusivity_tensors(tissue, parts), axis1=1, axis2=2) / tissue.mesh.dim
    areas = parts.interface_areas.sum(axis=1)
    biot = np.divide(parts.exchange_rates.sum(axis=1) * parts.volumes**2, areas**2 * D,
                     out=np.zeros(len(parts)), where=areas > 0)
    if biot.max() > LARGEST_BIOT:
        worst = int(biot.argmax())
        warn_caller(f"karger: kappa V / (A D) = {biot[worst]:.3g} in compartment {worst}, expected "
                    f"at most {LARGEST_BIOT:g}: diffusion inside, not the membrane, limits "
                    "exchange", ValidityWarning)
