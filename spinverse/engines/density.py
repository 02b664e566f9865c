"""Signals of a graded shape: every cell is inside by a share c in [0, 1], with derivatives.

Two continuous P1 fields on the whole mesh, one inside with matrices weighted by c, one outside
with 1 - c, exchange through every facet with the permeability wall (c_i - c_j)^2. Where c is 0 or
1 this is a partition with walls; in between, a differentiable path from one to the next. The
derivative of every measurement with respect to every c comes from one sweep back in time, for

    dS = -2 int_pulses p^T (dA + i g dX) u + p^T dM u' dt - int_gap ... + ends,

with p the adjoint state, because the operators are symmetric and the second pulse mirrors the
first. Sums over facets and cells run in single precision; signals do not.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.sparse

from . import pulsed
from .elements import Elements

_FLOOR = 1e-4  # share of a field where it should not be
_GAUSS = np.polynomial.legendre.leggauss(5)


class DensityModel:
    """Signals of shares of cells, um^3, and their derivatives.

    Args:
        elements: matrices of the cells.
        wall: permeability of the surface, um/ms.
        outer: permeability of outer facets outside, um/ms; 0 reflects, inside too.
        modes: number of modes.
        longest: ms, longest step of the splitting.
        mass_floor: share of the mass that is always there.
    """

    def __init__(self, elements: Elements, wall: float, outer: float, modes: int = 160,
                 longest: float = 0.8, mass_floor: float = _FLOOR):
        self.elements, self.wall, self.outer = elements, wall, outer
        self.modes, self.longest, self.mass_floor = modes, longest, mass_floor
        whole = self.whole = elements.whole
        n, nv = len(whole.cells), len(whole.points)
        self.inner = ~whole.outer
        sides = whole.sides[self.inner]
        outside = whole.sides[~self.inner, 0]
        self.jump = _sparse(np.repeat([[1.0, -1.0]], len(sides), axis=0), sides, n)
        self._of_cell = _sparse(np.ones((n, 4)), whole.cells, nv)
        # gradients in coordinates where diffusion is isotropic
        root = np.linalg.cholesky(elements.conductivity)
        gradients = np.einsum("tai,tij->taj", elements.gradients, root)
        self._gradient = [_sparse(gradients[:, :, j], whole.cells, nv).astype(np.float32)
                          for j in range(3)]
        self._facet = _sparse(np.ones((len(sides), 3)), whole.facets[self.inner], nv)
        self._rim = _sparse(np.ones((len(outside), 3)), whole.facets[~self.inner], nv)
        self.rim_cell = _sparse(np.ones((len(outside), 1)), outside[:, None], n)
        self._x = whole.points - whole.centre
        self._single = [m.astype(np.float32) for m in (self._of_cell, self._facet, self._rim)]

    def basis(self, c: np.ndarray) -> tuple:
        """Rates ``(K,)``, modes ``(2 Nv, K)``, overlaps with 1 ``(K,)``, positions."""
        whole, elements, nv = self.whole, self.elements, len(self.whole.points)
        size = 2 * nv
        A, M = np.zeros((size, size)), np.zeros((size, size))
        X = np.zeros((3, size, size))
        for offset, share in ((0, c), (nv, 1 - c)):
            block = slice(offset, offset + nv)
            where = (whole.cells[:, :, None] * nv + whole.cells[:, None, :]).ravel()

            def put(values, weight, where=where):
                return np.bincount(where, (values * weight[:, None, None]).ravel(),
                                   nv * nv).reshape(nv, nv)

            A[block, block] = put(elements.decay, _FLOOR + (1 - _FLOOR) * share)
            weight = self.mass_floor + (1 - self.mass_floor) * share
            M[block, block] = put(elements.mass, weight)
            for axis in range(3):
                X[axis][block, block] = put(elements.position[axis], weight)

        def across(facets, values):
            where = (facets[:, :, None] * nv + facets[:, None, :]).ravel()
            return np.bincount(where, values.ravel(), nv * nv).reshape(nv, nv)

        B = across(whole.facets[self.inner], elements.facet_mass[self.inner]
                   * (self.wall * (self.jump @ c) ** 2)[:, None, None])
        A[:nv, :nv] += B
        A[nv:, nv:] += B
        A[:nv, nv:] -= B
        A[nv:, :nv] -= B
        if self.outer:
            rim, share = elements.facet_mass[~self.inner], self.rim_cell @ c
            A[:nv, :nv] += across(whole.facets[~self.inner],
                                  rim * (self.wall * share)[:, None, None])
            A[nv:, nv:] += across(whole.facets[~self.inner],
                                  rim * (self.outer * (1 - share))[:, None, None])
        K = min(self.modes, size)
        some = {"subset_by_index": [0, K - 1]} if K < size else {}
        rates, modes = scipy.linalg.eigh(A, M, check_finite=False, **some)
        return (np.maximum(rates, 0.0), modes, modes.T @ M.sum(axis=1),
                np.stack([modes.T @ x @ modes for x in X]))

    def signals(self, c: np.ndarray, table: pulsed.PulseTable) -> np.ndarray:
        """``(N,)`` um^3 for shares ``(Nt,)``."""
        rates, _, start, positions = self.basis(c)
        return pulsed.signals(table, rates, start, positions, self.longest)

    def jacobian(self, c: np.ndarray, table: pulsed.PulseTable, mine=None) -> tuple:
        """Signals ``(N,)`` and their derivatives ``(N, Nt)``.

        Args:
            c: ``(Nt,)`` shares.
            table: the measurements.
            mine: ``mine(k)`` says whether to do the k-th direction; rows of others stay zero.
        """
        basis = self.basis(c)
        n = len(self.whole.cells)
        S, J = np.zeros(table.number), np.zeros((table.number, n))
        count = 0
        for pulse in table.pulses:
            for k, direction in enumerate(pulse.directions):
                if mine is None or mine(count):
                    rows = pulse.rows[k]
                    S[rows], J[rows] = self._measured(c, basis, pulse, direction)
                count += 1
        if len(table.still) and (mine is None or mine(count)):
            time, which = np.unique(table.echo_time, return_inverse=True)
            S_still, J_still = self._still(c, basis, time)
            S[table.still], J[table.still] = S_still[which], J_still[which]
        return S, J

    # ---- one direction ------------------------------------------------------------------------

    def _measured(self, c, basis, pulse, direction):
        rates, modes, start, positions = basis
        nv, g, gap = len(self.whole.points), pulse.gradient, pulse.gap
        h = pulsed.steps(pulse.duration, self.longest)
        xi, W = np.linalg.eigh(np.tensordot(direction, positions, axes=1))
        nodes, transfer = modes @ W, {}

        def between(k):
            time = round((h[k] + h[k + 1]) / 2, 12)
            if time not in transfer:
                transfer[time] = (W.T * np.exp(-rates * time)) @ W
            return transfer[time]

        def half(k):
            return np.exp(-0.5j * h[k] * xi[:, None] * g)

        y = np.repeat((W.T @ (np.exp(-rates * h[0] / 2) * start))[:, None], len(g), axis=1)
        y, middles = y.astype(complex), []
        for k in range(len(h)):
            phase = half(k)
            y = phase * y
            middles.append(y)
            y = phase * y
            if k < len(h) - 1:
                y = between(k) @ y
        last = np.exp(-rates * h[-1] / 2)[:, None]
        u = last * (W @ y)
        decay = np.exp(-rates[:, None] * gap)
        S = (np.abs(u) ** 2 * decay).sum(axis=0)

        z = W.T @ (last * (decay * u.conj()))
        states, adjoints, slopes, strength, weight = [], [], [], [], []
        for k in range(len(h) - 1, -1, -1):
            phase = half(k)
            z = phase * z
            m = middles[k]
            states.append(m)
            adjoints.append(z)
            slopes.append(-(W.T @ (rates[:, None] * (W @ m)) + 1j * g * xi[:, None] * m))
            weight.append(np.full(len(g), 2 * h[k]))
            strength.append(g)
            z = phase * z
            if k:
                z = between(k - 1) @ z
        single = nodes.astype(np.float32)
        J = self._contract(c, *(single @ np.hstack(a).astype(np.complex64)
                                for a in (adjoints, states, slopes)),
                           np.concatenate(weight), len(g), np.concatenate(strength), direction)
        if gap.max() > 0:
            J += self._gap(c, basis, u.conj(), u, gap)
        J += self._mass_term(modes @ (decay * u.conj()), modes @ u, nv)
        rest = 2 - 2 * (modes @ start)
        if np.abs(rest).max() > 1e-9:
            z0 = np.exp(-rates * h[0] / 2)[:, None] * (W @ z)
            J += self._mass_term(modes @ z0, np.repeat(rest[:, None], len(g), 1), nv)
        return S, J

    def _still(self, c, basis, time):
        """Signals without gradient at echo times, and their derivatives."""
        rates, modes, start, _ = basis
        u = np.exp(-np.outer(rates, time)) * start[:, None]
        J = self._mass_term(modes @ u, np.repeat((2 - modes @ start)[:, None], len(time), 1),
                            len(self.whole.points))
        # fast modes live near the ends
        half = np.array([0.0, 1e-4, 5e-4, 0.002, 0.008, 0.03, 0.12, 0.5])
        edges = np.concatenate([half, 1 - half[-2::-1]])
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            left = np.exp(-rates[:, None] * time * (1 - high)) * start[:, None]
            right = np.exp(-rates[:, None] * time * low) * start[:, None]
            J += self._gap(c, basis, left, right, time * (high - low))
        return start @ u, J

    def _gap(self, c, basis, left, right, time):
        """-int p^T dA u + p^T dM u' over times without gradient, ``(m, Nt)``.

        Args:
            left: ``(K, m)`` adjoint states at the end.
            right: ``(K, m)`` states at the beginning.
            time: ``(m,)`` ms.
        """
        rates, modes = basis[0][:, None], basis[1].astype(np.float32)
        points, weights = (_GAUSS[0] + 1) / 2, _GAUSS[1] / 2
        u = np.hstack([np.exp(-rates * time * t) * right for t in points])
        slope = np.hstack([-rates * np.exp(-rates * time * t) * right for t in points])
        p = np.hstack([np.exp(-rates * time * (1 - t)) * left for t in points])
        return self._contract(c, *(modes @ a.astype(np.complex64) for a in (p, u, slope)),
                              np.concatenate([w * time for w in weights]), right.shape[1])

    def _mass_term(self, p, u, nv):
        """p^T dM u, ``(m, Nt)``."""
        total, S = 0.0, self._of_cell
        for block, sign in ((slice(0, nv), 1.0), (slice(nv, None), -1.0)):
            a, b = p[block], u[block]
            total = total + sign * ((S @ a) * (S @ b) + S @ (a * b)).real
        return ((1 - self.mass_floor) * self.whole.volumes[:, None] / 20 * total).T

    def _contract(self, c, P, U, slope, weight, m, strength=None, direction=None):
        """-sum of weights p^T (dA + i g dX) u + p^T dM u', ``(m, Nt)``, from values at nodes."""
        nv, (S, SF, SO) = len(self.whole.points), self._single
        volumes = self.whole.volumes.astype(np.float32)[:, None]
        weight = weight.astype(np.float32)
        relaxation = self.elements.relaxation.astype(np.float32)[:, None]
        total = np.zeros((len(volumes), P.shape[1]), np.float32)
        if strength is not None:
            x = (self._x @ direction).astype(np.float32)[:, None]
            Sx = S @ x
        for block, sign in ((slice(0, nv), 1.0), (slice(nv, None), -1.0)):
            p, u, du = P[block], U[block], slope[block]
            t = np.zeros_like(total)
            for G in self._gradient:
                t += _real(G @ p, G @ u)
            Sp, rate = S @ p, du
            t += (_real(Sp, S @ rate) + (S @ (p * rate)).real) / 20
            if relaxation.any():
                t += relaxation * (_real(Sp, S @ u) + (S @ (p * u)).real) / 20
            if strength is not None:
                pu, Su = p * u, S @ u
                phase = (Sx * _imag(Sp, Su) + Sx * (S @ pu.imag) + _imag(Sp, S @ (x * u))
                         + _imag(Su, S @ (x * p)) + 2 * (S @ (x * pu.imag)))
                t -= strength.astype(np.float32) * phase / 120
            total -= np.float32(sign * (1 - _FLOOR)) * volumes * t

        def face(matrix, areas, a, b):
            A, B = matrix @ a, matrix @ b
            return (areas / 12).astype(np.float32)[:, None] * (
                _real(A, B) + (matrix @ (a * b)).real)

        areas, jump = self.whole.areas, (self.jump @ c)[:, None]
        f = face(SF, areas[self.inner], P[:nv] - P[nv:], U[:nv] - U[nv:])
        total -= self.jump.T @ (2 * self.wall * jump * f)
        if self.outer:
            rim = areas[~self.inner]
            total -= self.rim_cell.T @ (
                self.wall * face(SO, rim, P[:nv], U[:nv])
                - self.outer * face(SO, rim, P[nv:], U[nv:]))
        total *= weight
        return total.reshape(len(volumes), -1, m).sum(axis=1).T


def _real(a, b):
    return a.real * b.real - a.imag * b.imag


def _imag(a, b):
    return a.real * b.imag + a.imag * b.real


def _sparse(values: np.ndarray, columns: np.ndarray, width: int) -> scipy.sparse.csr_matrix:
    """Rows of values at the given columns, ``(n, width)``."""
    n, k = columns.shape
    rows = np.repeat(np.arange(n), k)
    return scipy.sparse.csr_matrix((np.asarray(values, float).ravel(), (rows, columns.ravel())),
                                   shape=(n, width))
