"""Signals of graded shapes: every cell belongs to compartments by shares, with derivatives.

A continuous P1 field on the whole mesh for each compartment and for the outside, with matrices
weighted by its share c_a of each cell. Fields a and b exchange through every facet with the
permeability -wall [c_a][c_b], which is wall [c]^2 for a single compartment. Where all shares are 0
or 1 this is a partition with walls; in between, a differentiable path from one to the next. The
derivative of every measurement with respect to every share comes from one sweep back in time, for

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
        """Rates ``(K,)``, modes ``((P + 1) Nv, K)``, overlaps with 1 ``(K,)``, positions.

        The outside is the last field.
        """
        whole, elements, nv = self.whole, self.elements, len(self.whole.points)
        shares = _shares(c)
        size = len(shares) * nv
        A, M = np.zeros((size, size)), np.zeros((size, size))
        X = np.zeros((3, size, size))

        def put(corners, values, weight):
            where = (corners[:, :, None] * nv + corners[:, None, :]).ravel()
            return np.bincount(where, (values * weight[:, None, None]).ravel(),
                               nv * nv).reshape(nv, nv)

        block = [slice(a * nv, (a + 1) * nv) for a in range(len(shares))]
        for a, share in enumerate(shares):
            here = block[a], block[a]
            A[here] = put(whole.cells, elements.decay, _FLOOR + (1 - _FLOOR) * share)
            weight = self.mass_floor + (1 - self.mass_floor) * share
            M[here] = put(whole.cells, elements.mass, weight)
            for axis in range(3):
                X[axis][here] = put(whole.cells, elements.position[axis], weight)
            if self.outer:
                out = self.outer if a == len(shares) - 1 else self.wall
                A[here] += put(whole.facets[~self.inner], elements.facet_mass[~self.inner],
                               out * (self.rim_cell @ share))
        for a, b, weight in self._exchange(shares):
            B = put(whole.facets[self.inner], elements.facet_mass[self.inner], weight)
            A[block[a], block[a]] += B
            A[block[b], block[b]] += B
            A[block[a], block[b]] -= B
            A[block[b], block[a]] -= B
        K = min(self.modes, size)
        some = {"subset_by_index": [0, K - 1]} if K < size else {}
        rates, modes = scipy.linalg.eigh(A, M, check_finite=False, **some)
        return (np.maximum(rates, 0.0), modes, modes.T @ M.sum(axis=1),
                np.stack([modes.T @ x @ modes for x in X]))

    def _exchange(self, shares: np.ndarray):
        """Pairs of fields and the permeability between them on interior facets."""
        jumps = [self.jump @ share for share in shares]
        for a in range(len(shares)):
            for b in range(a):
                # two compartments that grow side by side do not exchange
                yield a, b, self.wall * np.maximum(-jumps[a] * jumps[b], 0.0)

    def signals(self, c: np.ndarray, table: pulsed.PulseTable) -> np.ndarray:
        """``(N,)`` um^3 for shares ``(Nt,)`` or ``(P, Nt)``."""
        rates, _, start, positions = self.basis(c)
        return pulsed.signals(table, rates, start, positions, self.longest)

    def jacobian(self, c: np.ndarray, table: pulsed.PulseTable, mine=None) -> tuple:
        """Signals ``(N,)`` and their derivatives ``(N, P Nt)``.

        Args:
            c: ``(Nt,)`` or ``(P, Nt)`` shares of the compartments.
            table: the measurements.
            mine: ``mine(k)`` says whether to do the k-th direction; rows of others stay zero.
        """
        basis = self.basis(c)
        n = np.size(c)
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
        g, gap = pulse.gradient, pulse.gap
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
        J += self._mass_term(modes @ (decay * u.conj()), modes @ u)
        rest = 2 - 2 * (modes @ start)
        if np.abs(rest).max() > 1e-9:
            z0 = np.exp(-rates * h[0] / 2)[:, None] * (W @ z)
            J += self._mass_term(modes @ z0, np.repeat(rest[:, None], len(g), 1))
        return S, J

    def _still(self, c, basis, time):
        """Signals without gradient at echo times, and their derivatives."""
        rates, modes, start, _ = basis
        u = np.exp(-np.outer(rates, time)) * start[:, None]
        J = self._mass_term(modes @ u, np.repeat((2 - modes @ start)[:, None], len(time), 1))
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

    def _mass_term(self, p, u):
        """p^T dM u, ``(m, P Nt)``."""
        S, nv = self._of_cell, len(self.whole.points)
        fields = []
        for a, b in zip(np.split(p, len(p) // nv), np.split(u, len(u) // nv), strict=True):
            fields.append(((S @ a) * (S @ b) + S @ (a * b)).real)
        weight = (1 - self.mass_floor) * self.whole.volumes[:, None] / 20
        return np.concatenate([weight * (f - fields[-1]) for f in fields[:-1]]).T

    def _contract(self, c, P, U, slope, weight, m, strength=None, direction=None):
        """-sum of weights p^T (dA + i g dX) u + p^T dM u', ``(m, P Nt)``, from values at nodes."""
        S, SF, SO = self._single
        volumes = self.whole.volumes.astype(np.float32)[:, None]
        weight = weight.astype(np.float32)
        relaxation = self.elements.relaxation.astype(np.float32)[:, None]
        shares = _shares(c)
        P, U, slope = (np.split(x, len(shares)) for x in (P, U, slope))
        if strength is not None:
            x = (self._x @ direction).astype(np.float32)[:, None]
            Sx = S @ x
        totals = []
        for p, u, du in zip(P, U, slope, strict=True):
            t = np.zeros((len(volumes), p.shape[1]), np.float32)
            for G in self._gradient:
                t += _real(G @ p, G @ u)
            Sp = S @ p
            t += (_real(Sp, S @ du) + (S @ (p * du)).real) / 20
            if relaxation.any():
                t += relaxation * (_real(Sp, S @ u) + (S @ (p * u)).real) / 20
            if strength is not None:
                pu, Su = p * u, S @ u
                phase = (Sx * _imag(Sp, Su) + Sx * (S @ pu.imag) + _imag(Sp, S @ (x * u))
                         + _imag(Su, S @ (x * p)) + 2 * (S @ (x * pu.imag)))
                t -= strength.astype(np.float32) * phase / 120
            totals.append(-np.float32(1 - _FLOOR) * volumes * t)

        def face(matrix, areas, a, b):
            A, B = matrix @ a, matrix @ b
            return (areas / 12).astype(np.float32)[:, None] * (
                _real(A, B) + (matrix @ (a * b)).real)

        areas, jumps = self.whole.areas, [self.jump @ share for share in shares]
        for a, b, permeability in self._exchange(shares):
            f = face(SF, areas[self.inner], P[a] - P[b], U[a] - U[b])
            f *= (self.wall * (permeability > 0))[:, None].astype(np.float32)
            totals[a] += self.jump.T @ (jumps[b][:, None] * f)
            totals[b] += self.jump.T @ (jumps[a][:, None] * f)
        if self.outer:
            for a, total in enumerate(totals):
                out = self.outer if a == len(totals) - 1 else self.wall
                total -= self.rim_cell.T @ (out * face(SO, areas[~self.inner], P[a], U[a]))
        result = []
        for total in totals[:-1]:
            total = (total - totals[-1]) * weight
            result.append(total.reshape(len(volumes), -1, m).sum(axis=1))
        return np.concatenate(result).T


def _shares(c: np.ndarray) -> np.ndarray:
    """Shares of all fields, the outside last, ``(P + 1, Nt)``."""
    c = np.atleast_2d(c)
    return np.concatenate([c, 1 - c.sum(axis=0, keepdims=True)])


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
