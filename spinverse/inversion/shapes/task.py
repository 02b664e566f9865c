"""What a shape search knows: the mesh, the tissue, the measurements, and three forward models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.special import ive

from ...acquisition import Acquisition, Signals
from ...engines.modal.matrix_formalism import MatrixFormalism
from ...engines.shapes.density import DensityModel
from ...engines.shapes.elements import Elements
from ...engines.shapes.partition import PartitionModel
from ...engines.shapes.pulsed import PulseTable
from ...errors import InputError, on_root
from ...mesh.distributed import Mesh
from ...mesh.whole import WholeMesh
from ...problem import BlochTorrey
from ...tissue import Permeability, Tissue
from ..misfit import references

LARGEST = 4000  # cells; all models are dense
RIDGE = 5e-3  # rms of normalised magnitudes that examples do not tell


@dataclass(frozen=True, eq=False)
class Measurements:
    """Normalised magnitudes and how predicted signals become comparable with them.

    Attributes:
        signals: the measurements.
        measured: ``(N,)`` normalised magnitudes.
        scale: ``(N,)`` what predicted signals are divided by.
        references: ``(N, N)`` or None; with it, predicted signals are divided by their own
            average at b = 0.
        sigma: standard deviation of the noise of ``measured``.
        freedom: degrees of freedom that sigma was found with, inf where it was given.
        table: the pulses of the measurements.
    """

    signals: Signals
    measured: np.ndarray
    scale: np.ndarray
    references: np.ndarray | None
    sigma: float
    freedom: float
    table: PulseTable

    @classmethod
    def of(cls, signals: Signals, own: bool, sigma: float | None = None) -> Measurements:
        """Of all rows; ``own``: see `NormalisedMagnitude`. ``sigma``: None to find it."""
        acquisition, measured = signals.acquisition, signals.normalised
        sigma, freedom = repeated_noise(signals) if sigma is None else (sigma, np.inf)
        return cls(signals, measured, signals.reference,
                   references(acquisition) if own else None, sigma, freedom,
                   PulseTable.of(acquisition))

    @cached_property
    def floor(self) -> float:
        """Mean variance of noisy magnitudes (Rice): below sigma^2 where signals are small.

        From the measurements themselves: a quarter too much if there were nothing but noise.
        """
        if not self.sigma:
            return 0.0
        signal = np.linspace(0.0, max(10.0, self.measured.max() / self.sigma), 4001)
        mean = rician_mean(signal, 1.0)
        return self.sigma**2 * float(np.mean(np.interp(self.measured / self.sigma, mean,
                                                       2 + signal**2 - mean**2)))

    @property
    def explained(self) -> float:
        """The mean-square residual up to which noise explains it, 0 without noise.

        Its variance and one standard error: of the repetitions that it was found with, and of the
        residuals themselves.
        """
        return self.floor * (1 + np.sqrt(2 / self.freedom + 2 / len(self.measured)))

    def select(self, rows: np.ndarray) -> Measurements:
        signals = Signals(self.signals.acquisition.select(rows), self.signals.values[rows])
        ratio = None
        if self.references is not None:
            ratio = references(signals.acquisition)
        return Measurements(signals, self.measured[rows], self.scale[rows], ratio, self.sigma,
                            self.freedom, PulseTable.of(signals.acquisition))

    def directions(self, number: int) -> Measurements:
        """At most ``number`` of the directions, spread as well as a greedy choice does."""
        rows = self.rows_of(number)
        return self if len(rows) == len(self.measured) else self.select(rows)

    def rows_of(self, number: int) -> np.ndarray:
        """Rows of at most ``number`` of the directions, and those without gradient."""
        acquisition = self.signals.acquisition
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

    def predicted(self, S: np.ndarray) -> np.ndarray:
        """Expected normalised magnitudes of all rows from the signals of those of `table`."""
        return self.normalised(S)

    def normalised(self, S: np.ndarray) -> np.ndarray:
        """Expected normalised magnitudes of real signals ``(..., N)``; noise lifts them (Rice)."""
        scale = self.scale if self.references is None else S @ self.references.T
        return rician_mean(S / scale, self.sigma)

    def slope(self, S: np.ndarray, J: np.ndarray) -> np.ndarray:
        """Derivative of `normalised` from that of the signals, ``(N, n)``."""
        if self.references is None:
            scale = self.scale
            J = J / scale[:, None]
        else:
            scale = self.references @ S
            J = J / scale[:, None] - (S / scale**2)[:, None] * (self.references @ J)
        if self.sigma:
            J = J * _rician_slope(S / scale, self.sigma)[:, None]
        return J


@dataclass(frozen=True, eq=False)
class Lifted(Measurements):
    """All measurements, of which the fast models compute some directions and the rest follows.

    Signals of one pair of pulses are smooth in the direction: what ten of them say of the others is
    linear, learnt from shapes, and good enough where the full model has corrected it nearby.

    Attributes:
        part: the rows that are computed.
        lift, mean: ``(n, N)`` and ``(N,)``: ``part.normalised(S) @ lift + mean`` is predicted.
    """

    part: Measurements
    lift: np.ndarray
    mean: np.ndarray

    @classmethod
    def learnt(cls, whole: Measurements, number: int, examples: np.ndarray) -> Measurements:
        """From ``number`` directions; examples: normalised magnitudes of shapes, ``(m, N)``."""
        rows = whole.rows_of(number)
        if len(rows) == len(whole.measured):
            return whole
        kind = whole.signals.acquisition.waveform_index
        centre = examples.mean(axis=0)
        X = examples - centre
        lift = np.zeros((len(rows), X.shape[1]))
        for wave in np.unique(kind):
            known, asked = np.flatnonzero(kind[rows] == wave), np.flatnonzero(kind == wave)
            A = X[:, rows[known]]
            ridge = RIDGE**2 * len(X) * np.eye(len(known))
            lift[np.ix_(known, asked)] = np.linalg.solve(A.T @ A + ridge, A.T @ X[:, asked])
        lift[:, rows] = np.eye(len(rows))
        part = whole.select(rows)
        return cls(whole.signals, whole.measured, whole.scale, whole.references, whole.sigma,
                   whole.freedom, part.table, part, lift, centre - centre[rows] @ lift)

    def predicted(self, S: np.ndarray) -> np.ndarray:
        return self.part.normalised(S) @ self.lift + self.mean


def rician_mean(signal: np.ndarray, sigma: float) -> np.ndarray:
    """Mean magnitude of a signal in complex noise of standard deviation sigma (Rice 1944)."""
    if not sigma:
        return signal
    x = signal**2 / (4 * sigma**2)
    return sigma * np.sqrt(np.pi / 2) * ((1 + 2 * x) * ive(0, x) + 2 * x * ive(1, x))


def _rician_slope(signal: np.ndarray, sigma: float) -> np.ndarray:
    x = signal**2 / (4 * sigma**2)
    return np.sqrt(np.pi / 2) * signal / (2 * sigma) * (ive(0, x) + ive(1, x))


def repeated_noise(signals: Signals) -> tuple[float, float]:
    """Standard deviation of normalised magnitudes that were measured more than once.

    Returns:
        It, and its degrees of freedom; 0 and inf where nothing was repeated or nothing differs.
    """
    acquisition, measured = signals.acquisition, signals.normalised
    total, freedom = 0.0, 0
    moving = acquisition.b > 0
    key = np.column_stack([acquisition.waveform_index, acquisition.b,
                           np.where(moving[:, None], acquisition.directions, 0.0)])
    _, which = np.unique(np.round(key, 9), axis=0, return_inverse=True)
    which = which.ravel()
    for group in np.unique(which):
        values = measured[which == group]
        total += ((values - values.mean()) ** 2).sum()
        freedom += len(values) - 1
    sigma = float(np.sqrt(total / freedom)) if freedom else 0.0
    return (sigma, float(freedom)) if sigma > 1e-7 else (0.0, np.inf)


class Task:
    """Everything that the stages of a search ask. Methods are collective.

    Args:
        mesh: the mesh.
        tissue: what is known: diffusivity, T2, one density.
        signals: the measurements.
        absorbing: magnetisation leaves through outer facets.
        permeability_range: of walls and of open facets, um/ms.
        own: predicted signals are normalised by their own b = 0.
        sigma: noise of the normalised magnitudes; None: from repeated measurements.
    """

    def __init__(self, mesh: Mesh, tissue: Tissue, signals: Signals, absorbing: bool,
                 permeability_range: tuple[float, float], own: bool = False,
                 sigma: float | None = None):
        check_task(mesh, signals.acquisition)
        self.mesh, self.comm, self.absorbing = mesh, mesh.comm, absorbing
        self.wall, self.open = permeability_range
        self.outer = self.open if absorbing else 0.0
        self.whole = WholeMesh.of(mesh)
        self.D, self.T2, self.density = (
            _gathered(mesh, self.whole, values)
            for values in (tissue.diffusivity, tissue.T2, tissue.density))
        if np.ptp(self.density) > 1e-12 * self.density.max():
            raise InputError("density: several, expected one for the shape search")
        self.rho = float(self.density[0])
        self.all = Measurements.of(signals, own, sigma)
        self.floor = self.all.floor
        tensor = self.D if self.D.ndim == 3 else self.D[:, None, None] * np.eye(3)
        self.elements = Elements(self.whole, tensor, 1 / self.T2, self.open)
        self.unit = 1.0
        self.size = float(np.mean(self.whole.volumes) ** (1 / 3))
        self._exact: dict[int, tuple] = {}
        self._alone: tuple[BlochTorrey, np.ndarray] | None = None

    # ---- sharing out ----------------------------------------------------------------------------

    def shared(self, function: Callable, items: Sequence) -> list:
        """``[function(item) for item in items]``, the items dealt out to the ranks."""
        mine = [function(item) for item in items[self.comm.rank:: self.comm.size]]
        parts = self.comm.allgather(mine)
        return [parts[k % self.comm.size][k // self.comm.size] for k in range(len(items))]

    def on_root(self, function: Callable, *arguments) -> Any:
        """The value, or the exception, of a function that only rank 0 calls."""
        return self.comm.bcast(on_root(self.comm, function, *arguments), root=0)

    # ---- models ---------------------------------------------------------------------------------

    def partition(self) -> PartitionModel:
        # outside, magnetisation stays in all modes where the boundary reflects
        modes = (60, 30) if self.absorbing else None
        return PartitionModel(self.elements, self.wall, self.outer, modes)

    def graded(self, modes: int, longest: float, mass_floor: float = 1e-4) -> DensityModel:
        # three quarters: the outer cells of a broken mesh add their resistance
        return DensityModel(self.elements, self.wall, 0.75 * self.outer, modes, longest,
                            mass_floor)

    def graded_jacobian(self, model: DensityModel, c: np.ndarray,
                        look: Measurements) -> tuple[np.ndarray, np.ndarray]:
        """Normalised magnitudes and their derivatives, directions dealt out to the ranks."""
        S, J = model.jacobian(c, look.table,
                              lambda k: k % self.comm.size == self.comm.rank)
        if self.comm.size > 1:  # each row comes from one rank: the sum adds zeros
            self.comm.Allreduce(MPI.IN_PLACE, S)
            self.comm.Allreduce(MPI.IN_PLACE, J)
        S, J = self.rho * S, self.rho * J
        return look.normalised(S), look.slope(S, J)

    def measure_unit(self, c: np.ndarray, look: Measurements) -> None:
        """Set `unit`: 1 where the share of a cell at the edge changes signals by 1.3 % rms."""
        _, J = self.graded_jacobian(self.graded(120, 1.0), c, look)
        edge = (c > 0.1) & (c < 0.9)
        self.unit = float(np.mean(J[:, edge] ** 2)) / 1.6e-4 if edge.any() else 1.0

    def permeability(self, labels: np.ndarray) -> np.ndarray:
        """Of all facets of the mesh, ``(Nf,)`` um/ms."""
        first, second = self.whole.sides.T
        a = labels[first]
        b = np.where(second >= 0, labels[second], 0)
        kappa = np.where(a != b, self.wall, self.open)
        if not self.absorbing:
            kappa = np.where(second < 0, 0.0, kappa)
        return kappa

    def exact(self, labels: np.ndarray, look: Measurements) -> np.ndarray:
        """Residual of the full model, as `reconstruct` ends with, on rank 0 and sent out."""
        def residual():
            engine, owned = self._engine(look)
            S = engine.signals(self.permeability(labels)[owned])
            return look.normalised(np.abs(S)) - look.measured

        return self.on_root(residual)

    def _engine(self, look: Measurements) -> tuple:
        if self._alone is None:
            mesh = Mesh.from_data(self.whole.data, MPI.COMM_SELF)
            whole = WholeMesh.of(mesh)
            kappa = self.permeability(np.zeros(len(whole.cells), int))[whole.owned]
            tissue = Tissue(mesh, self.D, self.T2, self.density, Permeability(mesh, kappa))
            self._alone = BlochTorrey(tissue), whole.owned
        problem, owned = self._alone
        if id(look) not in self._exact:
            share = 0.35 if self.absorbing else 0.46
            modes = min(max(96, int(share * len(self.whole.cells))), problem.num_unknowns)
            self._exact[id(look)] = look, MatrixFormalism(problem, look.signals.acquisition,
                                                          modes)
        return self._exact[id(look)][1], owned

    def fit_resistance(self, labels: np.ndarray, look: Measurements) -> None:
        """Fit `Elements.resistance`, which no formula gives, to the full model at one shape."""
        if not np.isfinite(self.open):
            return
        full = self.exact(labels, look)
        trial = {}
        for value in (1.0, 3.0):
            self.elements = replace(self.elements, resistance=value)
            trial[value] = self.residual(self.partition(), labels, look) - full
        slope = (trial[3.0] - trial[1.0]) / 2
        best = 1.0 - (trial[1.0] @ slope) / max(slope @ slope, 1e-300)
        self.elements = replace(self.elements, resistance=float(np.clip(best, 0.0, 4.0)))

    def residual(self, model, shape: np.ndarray, look: Measurements) -> np.ndarray:
        """Of a partition or graded model, ``(N,)``."""
        return look.predicted(self.rho * model.signals(shape, look.table)) - look.measured


def check_task(mesh: Mesh, acquisition: Acquisition) -> None:
    """Raise InputError where a search for shapes cannot run."""
    if mesh.num_cells > LARGEST:
        raise InputError(f"shape search: {mesh.num_cells} cells, expected at most {LARGEST}; "
                         "use stages of facets for larger meshes")
    if mesh.dim != 3:
        raise InputError(f"shape search: mesh of dimension {mesh.dim}, expected tetrahedra")
    PulseTable.of(acquisition)


def _gathered(mesh: Mesh, whole: WholeMesh, values: np.ndarray) -> np.ndarray:
    """Values of the whole mesh's cells from those of the owned cells."""
    parts = mesh.comm.allgather((whole.owned_cells, values[: mesh.num_owned_cells]))
    result = np.zeros((len(whole.cells), *values.shape[1:]))
    for cells, part in parts:
        result[cells] = part
    return result
