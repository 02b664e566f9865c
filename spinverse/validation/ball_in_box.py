"""PGSE signals of a permeable ball in a cube that reflects or repeats, without a mesh.

A Galerkin method. Outside of the ball: products of sines and cosines of the cube, those of a
reflecting cube or of a periodic one. On the cube without the ball they are a frame, not a basis:
they converge faster than any power, and what is nearly dependent is left out. Inside: spherical
harmonics times polynomials of the radius. The membrane is the exact jump term between the two.
All integrals are closed forms, as those of plane waves over a ball and a sphere are,

    int_ball exp(i k.x) dV = 4 pi R^3 j_1(kR) / (kR),
    int_sphere Y_nm exp(i k.x) dS = 4 pi R^2 i^n j_n(kR) Y_nm(k / |k|).

The gradient is along an edge or along a diagonal of the cube. Only functions with the symmetry that
this leaves to the magnetisation are kept: even along the other edges and exchangeable with them, or
the same in all three.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations, product

import numpy as np
from scipy.linalg import eigh, expm
from scipy.special import eval_jacobi, sph_harm_y, spherical_jn

from ..errors import InputError
from ..units import b_to_internal
from .analytic import Modes, _b_values, _count, _positive

__all__ = ["ball_in_cube", "ball_lattice"]

EDGE, DIAGONAL = "edge", "diagonal"
_SIGNS = np.array(list(product((1, -1), repeat=3)))
_DEPENDENT = 1e-12  # of the largest square norm: combinations of waves that are left out
WAVE_NUMBERS, SLOWEST = 6, 16  # at so many Q so many modes of a lattice: 1e-6 of the signals
FASTEST = 100.0  # 1/ms, of the modes that are kept in a cube
STEP = 0.4  # ms, of pulses in a lattice: 2e-6 of the signals


def ball_in_cube(b, delta: float, Delta: float, radius: float, length: float, permeability: float,
                 diffusivity: float = 2.0, direction: str = EDGE, waves: int = 14,
                 degree: int = 12) -> np.ndarray:
    """A permeable ball in the middle of a cube whose faces reflect.

    Args:
        b: s/mm^2, any shape.
        delta, Delta: length of a pulse, and between the starts of the pulses, ms.
        radius, length: of the ball and of the cube's edges, um.
        permeability: of the ball's surface, um/ms.
        diffusivity: um^2/ms.
        direction: of the gradient, "edge" or "diagonal".
        waves: half waves along the cube's edge; the error falls faster than any power of it.
        degree: of the polynomials inside.

    Returns:
        Signals over those at time 0, shaped as ``b``.

    Raises:
        InputError: a value out of range, a ball that does not fit.
    """
    return _Box(radius, length, permeability, diffusivity, direction, waves, degree).modes().pgse(
        b, delta, Delta)


def ball_lattice(b, delta: float, Delta: float, radius: float, length: float, permeability: float,
                 diffusivity: float = 2.0, waves: int = 14, degree: int = 12) -> np.ndarray:
    """Permeable balls on a cubic lattice, gradient along its edge; else as `ball_in_cube`."""
    box = _Box(radius, length, permeability, diffusivity, EDGE, waves, degree, periodic=True)
    return box.lattice_pgse(b, delta, Delta)


@dataclass(frozen=True, eq=False)
class _Operators:
    """Matrices of functions on both sides: mass, diffusion, position, drift; uniform start."""

    mass: np.ndarray
    decay: np.ndarray
    position: np.ndarray
    drift: np.ndarray
    load: np.ndarray


@dataclass(frozen=True)
class _Box:
    """A ball in the middle of a cube; arguments as of `ball_in_cube`."""

    radius: float
    length: float
    permeability: float
    diffusivity: float
    direction: str
    waves: int
    degree: int
    periodic: bool = False
    along: np.ndarray = field(init=False)

    def __post_init__(self):
        for name in ("radius", "length", "diffusivity"):
            _positive(name, getattr(self, name))
        if not (np.isfinite(self.permeability) and self.permeability >= 0):
            raise InputError(f"permeability: {self.permeability!r}, expected a finite one >= 0 "
                             "(um/ms)")
        if not 2 * self.radius < self.length:
            raise InputError(f"radius: {self.radius:g} um, expected less than half of the length "
                             f"{self.length:g} um")
        if self.direction not in (EDGE, DIAGONAL):
            raise InputError(f"direction: {self.direction!r}, expected '{EDGE}' or '{DIAGONAL}'")
        _count("waves", self.waves)
        _count("degree", self.degree)
        along = [1.0, 0.0, 0.0] if self.direction == EDGE else [3**-0.5] * 3
        object.__setattr__(self, "along", np.array(along))

    def modes(self) -> Modes:
        """Of the reflecting cube, slow ones."""
        found = self.operators()
        values, vectors = _modes(found)
        slow = vectors[:, values < FASTEST]
        return Modes(values[values < FASTEST], slow.T @ found.position @ slow,
                     slow.T @ found.load / np.sqrt(self.length**3))

    def lattice_pgse(self, b, delta: float, Delta: float) -> np.ndarray:
        """w' = -(A + i Q N + Q^2 D) w with Q the integral of the gradient, m = w exp(-i Q x).

        By time reversal only the first half is propagated, as in `Modes.pgse`. The pulse goes by
        steps with the means of Q and Q^2 (first term of the Magnus expansion), extrapolated to
        steps of no length.
        """
        delta, Delta = _positive("delta", delta, " (ms)"), _positive("Delta", Delta, " (ms)")
        if Delta < delta:
            raise InputError(f"Delta: {Delta:g} ms, expected at least delta = {delta:g} ms")
        g = np.sqrt(b_to_internal(_b_values(b)) / (delta**2 * (Delta - delta / 3)))
        A, N, start = self._drifting(float(np.max(g, initial=0.0)) * delta)
        count, signal = int(np.ceil(delta / STEP)), np.empty(g.shape)
        for index in np.ndindex(g.shape):
            Q = g[index] * delta
            rest = expm(-0.5 * (Delta - delta) * self._operator(A, N, Q, Q**2))
            coarse, fine = (np.linalg.norm(rest @ self._pulse(A, N, start, Q, steps)) ** 2
                            for steps in (delta / count * np.ones(count),
                                          delta / count / 2 * np.ones(2 * count)))
            signal[index] = fine + (fine - coarse) / 3
        return signal

    def _pulse(self, A, N, start, Q: float, steps: np.ndarray) -> np.ndarray:
        """What is left of ``start`` once Q is reached."""
        u, turn = start, Q / steps.sum()
        for h, t in zip(steps, np.cumsum(steps) - steps / 2, strict=True):
            square = (turn * t) ** 2 + (turn * h) ** 2 / 12
            u = expm(-h * self._operator(A, N, turn * t, square)) @ u
        return u

    def _operator(self, A, N, Q: float, square: float) -> np.ndarray:
        return A + 1j * Q * N + self.diffusivity * square * np.eye(len(A))

    def _drifting(self, highest: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Decay, drift and start between slow modes at some Q up to the ``highest``."""
        found = self.operators()
        values, modes = _modes(found)
        N, start = modes.T @ found.drift @ modes, modes.T @ found.load
        columns = [start[:, None].astype(complex)]
        for Q in np.linspace(0, highest, WAVE_NUMBERS):
            columns.append(eigh(self._operator(np.diag(values), N, Q, Q**2),
                                subset_by_index=[0, min(SLOWEST, len(values)) - 1])[1])
        left, sizes, _ = np.linalg.svd(np.hstack(columns), full_matrices=False)
        V = left[:, sizes > 1e-8 * sizes[0]]
        return ((V.conj().T * values) @ V, V.conj().T @ N @ V,
                V.conj().T @ start / np.sqrt(self.length**3))

    def operators(self) -> _Operators:
        """Of functions outside (first) and inside."""
        out, inside = self._outside(), self._inside()
        kappa = self.permeability
        return _Operators(
            _blocks(out.mass, inside.mass),
            _blocks(out.decay, inside.decay, -kappa * self._coupling()),
            _blocks(out.position, inside.position), _blocks(out.drift, inside.drift),
            np.concatenate([out.load, inside.load]))

    # --- outside ---------------------------------------------------------------------------------

    def _wave_list(self) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
        """Wave numbers ``(n, 3)``, whether each factor is a sine, permutations of the symmetry."""
        half = np.pi / self.length
        odd_step = 2 if self.periodic else 1  # sines of full waves, or of odd half waves
        factors = [(k, False) for k in range(0, self.waves + 1, 2)] + [
            (k, True) for k in range(odd_step, self.waves + 1, 2)]
        even = [factor for factor in factors if not factor[1]]
        if self.direction == EDGE:
            triples = [(a, b, c) for a in factors for b, c in product(even, repeat=2) if b <= c]
            group: list[tuple[int, ...]] = [(0, 1, 2), (0, 2, 1)]
        else:
            triples = [(a, b, c) for a, b, c in product(factors, repeat=3) if a <= b <= c]
            group = list(permutations(range(3)))
        triples = [each for each in triples if sum(k * k for k, _ in each) <= self.waves**2]
        k = np.array([[factor[0] for factor in each] for each in triples]) * half
        sines = np.array([[factor[1] for factor in each] for each in triples])
        return k, sines, group

    def _outside(self) -> _Operators:
        """Integrals over the cube minus those over the ball, and the membrane's."""
        k, sines, group = self._wave_list()
        n = len(k)
        M, S, X, N, W = np.zeros((5, n, n))
        for order in group:
            parts = self._pairs(k, sines, k[:, order], sines[:, order])
            for whole, part in zip((M, S, X, N, W), parts, strict=True):
                whole += part
        load = np.sqrt(len(group)) * self._integral(k, sines)
        D = self.diffusivity
        decay = D * S + self.permeability * W
        return _Operators((M + M.T) / 2, (decay + decay.T) / 2, (X + X.T) / 2, D * (N - N.T) / 2,
                          load)

    def _pairs(self, k, sines, p, sines_p) -> list[np.ndarray]:
        """Mass, gradients, position, drift outside, and the sphere's mass, of all pairs."""
        R, n = self.radius, len(k)
        same = sines[:, None, :] == sines_p[None, :, :]
        differ = (~same).sum(axis=2)
        M, S, X, N, W = np.zeros((5, n, n))
        one = [self._line(k[:, j], sines[:, j], p[:, j], sines_p[:, j]) for j in range(3)]
        masses = [line[0] for line in one]
        M += masses[0] * masses[1] * masses[2]
        for j in range(3):
            others = masses[(j + 1) % 3] * masses[(j + 2) % 3]
            S += one[j][1] * others
            if self.along[j]:
                X += self.along[j] * one[j][2] * others
                N += self.along[j] * one[j][3] * others
        for sign in _SIGNS:
            K = k[:, None, :] + sign * p[None, :, :]
            size = np.linalg.norm(K, axis=2)
            ball, slope = _ball(size, R)
            weight = np.where(sines[:, None, :], np.where(same, -sign, 1), np.where(
                same, 1, sign)) / 2
            whole = weight.prod(axis=2)
            equal = whole * (differ == 0)
            M -= equal * ball
            S += equal * ball * ((k[:, None, :] * p) @ sign)
            W += equal * 4 * np.pi * R**2 * spherical_jn(0, size * R)
            for j in np.flatnonzero(self.along):
                odd = whole * ((differ == 1) & ~same[:, :, j]) * self.along[j]
                X += odd * slope * K[:, :, j]
                # sine of the second: p - s k; of the first the negative of its mirror image
                ahead = np.where(sines[:, None, j], sign[j] * p[None, :, j] - k[:, None, j],
                                 sign[j] * (p[None, :, j] - sign[j] * k[:, None, j]))
                N -= odd * ball * ahead
        return [M, S, X, N, W]

    def _line(self, k, sines, p, sines_p) -> list[np.ndarray]:
        """Along an edge: mass, slopes, position, drift of factors, by quadrature."""
        x, w = np.polynomial.legendre.leggauss(8 * self.waves + 40)
        x, w = x * self.length / 2, w * self.length / 2
        f, df = _factors(k, sines, x)
        g, dg = _factors(p, sines_p, x)
        return [(f * w) @ g.T, (df * w) @ dg.T, (f * w * x) @ g.T,
                (f * w) @ dg.T - (df * w) @ g.T]

    def _integral(self, k, sines) -> np.ndarray:
        """Of each product over the cube without the ball."""
        x, w = np.polynomial.legendre.leggauss(8 * self.waves + 40)
        whole = np.prod([_factors(k[:, j], sines[:, j], x * self.length / 2)[0] @ (
            w * self.length / 2) for j in range(3)], axis=0)
        return whole - np.where(sines.any(axis=1), 0.0,
                                _ball(np.linalg.norm(k, axis=1), self.radius)[0])

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _harmonics(self) -> list[tuple[int, int]]:
        """(n, m) of the symmetry about the gradient: four-fold or three-fold."""
        fold = 4 if self.direction == EDGE else 3
        return [(n, m) for n in range(self.degree + 1) for m in range(0, n + 1, fold)]

    def _radial(self, n: int) -> tuple[np.ndarray, ...]:
        """Points, weights r^2 dr, orthonormal r^n p(r^2) there and their slopes; at R."""
        x, w = np.polynomial.legendre.leggauss(2 * self.degree + 20)
        r, w = (x + 1) / 2, w / 2
        count = (self.degree + 4 - n) // 2 + 1

        def values(r):
            return np.array([np.sqrt(4 * j + 2 * n + 3) * r**n * eval_jacobi(
                j, 0, n + 0.5, 2 * r**2 - 1) for j in range(count)])

        def slopes(r):
            found = []
            for j in range(count):
                p, dp = eval_jacobi(j, 0, n + 0.5, 2 * r**2 - 1), (
                    0.5 * (j + n + 1.5) * eval_jacobi(j - 1, 1, n + 1.5, 2 * r**2 - 1) * 4 * r
                    if j else 0.0 * r)
                found.append(np.sqrt(4 * j + 2 * n + 3) * (n * r**max(n - 1, 0) * p + r**n * dp))
            return np.array(found)

        R = self.radius
        return (R * r, w * r**2 * R**3, values(r) / R**1.5, slopes(r) / R**2.5,
                values(np.ones(1))[:, 0] / R**1.5)

    def _inside(self) -> _Operators:
        radial = {n: self._radial(n) for n in range(self.degree + 1)}
        pairs = self._harmonics
        first = np.concatenate([[0], np.cumsum([len(radial[n][2]) for n, _ in pairs])])
        place = {pair: slice(first[k], first[k + 1]) for k, pair in enumerate(pairs)}
        S, X, N = np.zeros((3, first[-1], first[-1]))
        load = np.zeros(first[-1])
        D, R = self.diffusivity, self.radius
        for (n, m), mine in place.items():
            r, w, f, df, end = radial[n]
            S[mine, mine] = D * ((df * w) @ df.T + n * (n + 1) * (f * w / r**2) @ f.T) + (
                self.permeability * R**2 * np.outer(end, end))
            if n == 0:
                load[mine] = np.sqrt(4 * np.pi) * (f @ w)
            if (n + 1, m) not in place:
                continue
            other, (_, _, g, dg, _) = place[n + 1, m], radial[n + 1]
            c = np.sqrt(((n + 1) ** 2 - m**2) / ((2 * n + 1) * (2 * n + 3)))
            X[mine, other] = c * (f * w * r) @ g.T
            X[other, mine] = X[mine, other].T
            # d/dz of g Y(n + 1) on Y(n), minus d/dz of f Y(n) on Y(n + 1)
            N[mine, other] = D * c * ((f * w) @ (dg + (n + 2) * g / r).T
                                      - ((df - n * f / r) * w) @ g.T)
            N[other, mine] = -N[mine, other].T
        return _Operators(np.eye(len(S)), S, X, N, load)

    def _coupling(self) -> np.ndarray:
        """Integrals over the sphere of functions outside times inside."""
        k, sines, group = self._wave_list()
        size = np.linalg.norm(k, axis=1)
        # rotated so that the gradient is along z, and a mirror plane at azimuth 0
        z = self.along
        x = np.array([0.0, 1.0, 0.0]) if self.direction == EDGE else np.array(
            [2.0, -1.0, -1.0]) / 6**0.5
        frame = np.array([x, np.cross(z, x), z])
        number = sines.sum(axis=1)
        blocks = []
        for n, m in self._harmonics:
            total = np.zeros(len(k), dtype=complex)
            for sign in _SIGNS:
                u = (sign * k / np.maximum(size, 1e-300)[:, None]) @ frame.T
                u[size == 0] = [0, 0, 1]
                polar, azimuth = np.arccos(np.clip(u[:, 2], -1, 1)), np.arctan2(u[:, 1], u[:, 0])
                Y = sph_harm_y(n, m, polar, azimuth)
                Y = np.real(Y) * (np.sqrt(2) if m else 1)
                total += np.where(sines, sign, 1).prod(axis=1) * Y / 8
            total *= 4 * np.pi * 1j**n * (-1j) ** number * spherical_jn(n, size * self.radius)
            end = self._radial(n)[4]
            blocks.append(np.sqrt(len(group)) * np.outer(total.real, end) * self.radius**2)
        return np.hstack(blocks)


def _factors(k, sines, x) -> tuple[np.ndarray, np.ndarray]:
    """cos(kx) or sin(kx), and slopes, ``(n, points)``."""
    phase, k, sines = np.outer(k, x), k[:, None], sines[:, None]
    return (np.where(sines, np.sin(phase), np.cos(phase)),
            np.where(sines, k * np.cos(phase), -k * np.sin(phase)))


def _ball(size, R: float) -> tuple[np.ndarray, np.ndarray]:
    """Of a plane wave: its integral over the ball, and the slope of that by k over k."""
    x = size * R
    small = x < 1e-4
    safe = np.where(small, 1.0, x)
    one, two = spherical_jn(1, safe) / safe, spherical_jn(2, safe) / safe**2
    return (4 * np.pi * R**3 * np.where(small, 1 / 3 - x**2 / 30, one),
            -4 * np.pi * R**5 * np.where(small, 1 / 15 - x**2 / 210, two))


def _blocks(a, b, across=None) -> np.ndarray:
    whole = np.zeros((len(a) + len(b),) * 2)
    whole[: len(a), : len(a)], whole[len(a):, len(a):] = a, b
    if across is not None:
        whole[: len(a), len(a):], whole[len(a):, : len(a)] = across, across.T
    return whole


def _modes(found: _Operators) -> tuple[np.ndarray, np.ndarray]:
    """Rates and modes, orthonormal in the mass, without what is nearly dependent."""
    size = np.sqrt(np.diag(found.mass))
    square, vectors = eigh(found.mass / np.outer(size, size))
    kept = square > _DEPENDENT * square[-1]
    basis = vectors[:, kept] / np.sqrt(square[kept]) / size[:, None]
    values, modes = eigh(basis.T @ found.decay @ basis)
    return np.maximum(values, 0.0), basis @ modes
