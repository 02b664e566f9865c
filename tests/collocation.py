"""An independent 1-D solver: layers with membranes by Chebyshev collocation, no weak form.

Values at the Chebyshev points of each layer obey the Bloch-Torrey equation inside; those at the
ends follow from the flux conditions (Trefethen, Spectral Methods in MATLAB, 2000, chapters 6 and
13). Time runs by exponentials: of each piece of constant gradient, or of the fourth-order Magnus
series with its commutator (Blanes et al., Phys. Rep. 470 (2009) 151, eq. 255).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial import chebyshev
from scipy.linalg import block_diag, expm


@dataclass(frozen=True)
class Stack:
    """Parallel layers from x = 0 on, the outermost planes reflecting.

    Attributes:
        thicknesses: um.
        permeabilities: of the membranes between them, um/ms; ``inf`` for none.
        diffusivity, T2, density, T1: of each layer; um^2/ms, ms; T1 while a waveform stores m.
        equilibrium: whether m = density is at rest; else uniform m is.
        points: Chebyshev points in each layer.
    """

    thicknesses: tuple[float, ...]
    permeabilities: tuple[float, ...] = ()
    diffusivity: tuple[float, ...] | float = 2.0
    T2: tuple[float, ...] | float = np.inf
    density: tuple[float, ...] | float = 1.0
    equilibrium: bool = True
    points: int = 20
    T1: tuple[float, ...] | float = np.inf

    def _layers(self, value) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, float), (len(self.thicknesses),))

    @cached_property
    def nodes(self) -> np.ndarray:
        """``(layers, points)`` ascending, um."""
        unit = (1 - np.cos(np.pi * np.arange(self.points) / (self.points - 1))) / 2
        edges = np.concatenate([[0.0], np.cumsum(self.thicknesses)])
        return edges[:-1, None] + np.asarray(self.thicknesses)[:, None] * unit

    @cached_property
    def _unit(self) -> tuple[np.ndarray, np.ndarray]:
        """Differentiation matrix and quadrature weights of the points on [0, 1]."""
        t = np.cos(np.pi * np.arange(self.points) / (self.points - 1))[::-1]
        V = chebyshev.chebvander(t, self.points - 1)
        dV = np.column_stack([chebyshev.chebval(t, chebyshev.chebder(row))
                              for row in np.eye(self.points)])
        k = np.arange(self.points)
        moments = np.where(k % 2, 0.0, 1.0 / (1.0 - k**2 + (k == 1)))
        return 2 * dV @ np.linalg.inv(V), np.linalg.solve(V.T, moments)

    def _rest(self, relaxation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """dm/dt = -A m of the inner points without gradient; all points from the inner ones."""
        n, layers = self.points, len(self.thicknesses)
        D, R2 = self._layers(self.diffusivity), 1 / self._layers(relaxation)
        rho = self._layers(self.density) if self.equilibrium else np.ones(layers)
        slope = [self._unit[0] / L for L in self.thicknesses]
        flux = block_diag(*[d * s for d, s in zip(D, slope, strict=True)])
        change = block_diag(*[r * np.eye(n) - d * s @ s
                              for r, d, s in zip(R2, D, slope, strict=True)])
        value = np.eye(n * layers)
        conditions = [flux[0], flux[-1]]
        for i, kappa in enumerate(self.permeabilities):
            left, right = (i + 1) * n - 1, (i + 1) * n
            conditions.append(flux[left] - flux[right])
            jump = 2 * (rho[i] * value[right] - rho[i + 1] * value[left]) / (rho[i] + rho[i + 1])
            conditions.append(jump if np.isinf(kappa) else flux[left] - kappa * jump)
        C = np.array(conditions)
        ends = np.arange(n * layers).reshape(layers, n)[:, [0, -1]].ravel()
        inner = np.setdiff1d(np.arange(n * layers), ends)
        whole = np.zeros((n * layers, len(inner)))
        whole[inner] = np.eye(len(inner))
        whole[ends] = -np.linalg.solve(C[:, ends], C[:, inner])
        return (change @ whole)[inner], whole, inner

    def signal(self, waveform, strength: float, steps: int = 0) -> complex:
        """Integral of m at the echo over that at the start; gradient along x, strength in
        rad/(ms um). ``steps`` for each interval where the waveform is not constant."""
        (A, whole, inner), stored = self._rest(self.T2), self._rest(self.T1)[0]
        x, weights = self.nodes.ravel(), np.concatenate(
            [L * self._unit[1] for L in self.thicknesses])
        start = np.repeat(self._layers(self.density), self.points)
        m, x = start[inner].astype(complex), x[inner]
        commutator = A * x - x[:, None] * A
        cache = {}
        edges = np.asarray(waveform.breakpoints)
        for begin, end in zip(edges[:-1], edges[1:], strict=True):
            f = self._component(waveform, np.linspace(begin, end, 9)[1:-1])
            count = 1 if np.ptp(f) <= 1e-13 * np.abs(f).max() else steps
            h = (end - begin) / count
            if waveform.stored(begin + h / 2):
                m = expm(-h * stored) @ m
                continue
            for k in range(count):
                if count == 1:
                    key, twist = (round(float(f[0]), 12), round(h, 12)), 0.0
                else:
                    gauss = begin + h * (k + 0.5 + np.array([-1, 1]) * np.sqrt(3) / 6)
                    one, two = self._component(waveform, gauss)
                    key, twist = (0.5 * (one + two), h, k), np.sqrt(3) / 12 * h**2 * (two - one)
                if key not in cache:
                    # with a(t) = -(A + i s f x): [a2, a1] = i s (f1 - f2) [A, x]
                    cache[key] = expm(-h * (A + 1j * strength * key[0] * np.diag(x))
                                      - twist * 1j * strength * commutator)
                m = cache[key] @ m
        return complex(weights @ (whole @ m) / (weights @ start))

    @staticmethod
    def _component(waveform, t):
        f = waveform(t)
        return f[..., 0] if waveform.vector else f

    def signals(self, acquisition, steps: int = 0) -> np.ndarray:
        """``signal`` of each row, the gradient's x component."""
        return np.array([
            self.signal(w, s * (1.0 if w.vector else d[0]), steps) for w, s, d in zip(
                (acquisition.waveforms[k] for k in acquisition.waveform_index),
                acquisition.strength, acquisition.directions, strict=True)])
