"""PGSE signals of simple shapes without a mesh: what the other engines are tested against.

Free diffusion, and the matrix formalism (see `spinverse.engines.modal.matrix_formalism`) where its
matrices are known without finite elements:

- one slab, cylinder or sphere with a reflecting wall: cosines and Bessel functions, whose position
  matrix elements have closed forms (Grebenkov, Rev. Mod. Phys. 79, 1077 (2007), section II.B);
- layered slabs, cylinders and spheres with membranes between the layers: a Galerkin method with
  polynomials along the axis or radius of each layer and the angular functions of the shape. The
  membranes are exact jump terms, so the error falls exponentially with the degree.

The gradient is across the layers (slabs), across the axis (cylinders), or anywhere (spheres).
All signals are normalised by the magnetisation at time zero and start uniform.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, expm, null_space
from scipy.optimize import brentq
from scipy.special import jvp, spherical_jn

from ..errors import InputError
from ..units import b_to_internal

__all__ = ["cylinder", "cylinders", "free", "slab", "slabs", "sphere", "spheres"]


@dataclass(frozen=True, eq=False)
class Modes:
    """Diffusion modes of a shape, orthonormal over its volume (per length or area that is free).

    Attributes:
        eigenvalues: ``(K,)`` decay rates, 1/ms, relaxation included; not sorted for layers.
        position: ``(K, K)`` position along the gradient between modes, um.
        start: ``(K,)`` uniform magnetisation in the modes, of length one.
    """

    eigenvalues: np.ndarray
    position: np.ndarray
    start: np.ndarray

    def pgse(self, b, delta: float, Delta: float) -> np.ndarray:
        """Signals of rectangular pulses, shaped as ``b`` (s/mm^2); delta, Delta in ms.

        By time reversal the second pulse is the conjugate of the first:
        E = u^H exp(-Lambda (Delta - delta)) u, u = exp(-delta (Lambda + i q X)) start.
        """
        delta, Delta = _positive("delta", delta, " (ms)"), _positive("Delta", Delta, " (ms)")
        if Delta < delta * (1 - 1e-12):
            raise InputError(f"Delta: {Delta:g} ms, expected at least delta = {delta:g} ms")
        Delta = max(delta, Delta)
        q = np.sqrt(b_to_internal(_b_values(b)) / (delta**2 * (Delta - delta / 3)))
        rest = np.exp(-self.eigenvalues * (Delta - delta))
        signal = np.empty(q.shape)
        for index in np.ndindex(q.shape):
            operator = np.diag(self.eigenvalues) + 1j * q[index] * self.position
            u = expm(-delta * operator) @ self.start
            signal[index] = rest @ np.abs(u)**2
        return signal


def free(b, diffusivity: float = 2.0) -> np.ndarray:
    """Unbounded medium, any refocused waveform: exp(-b D), shaped as ``b``; else as `slab`."""
    return np.exp(-b_to_internal(_b_values(b)) * _positive("diffusivity", diffusivity))


def slab(b, delta: float, Delta: float, thickness: float, diffusivity: float = 2.0,
         modes: int = 250) -> np.ndarray:
    """Between two reflecting planes, gradient across them.

    Args:
        b: s/mm^2, any shape.
        delta, Delta: length of a pulse, and between the starts of the pulses, ms.
        thickness: um.
        diffusivity: um^2/ms.
        modes: cosines to keep; the error falls with a power of it.

    Returns:
        Signals, shaped as ``b``.

    Raises:
        InputError: a value out of range.
    """
    return slab_modes(thickness, diffusivity, modes).pgse(b, delta, Delta)


def cylinder(b, delta: float, Delta: float, radius: float, diffusivity: float = 2.0,
             modes: int = 250) -> np.ndarray:
    """Inside an infinite reflecting cylinder, gradient across its axis; else as `slab`."""
    return ball_modes(2, radius, diffusivity, modes).pgse(b, delta, Delta)


def sphere(b, delta: float, Delta: float, radius: float, diffusivity: float = 2.0,
           modes: int = 250) -> np.ndarray:
    """Inside a reflecting sphere; else as `slab`."""
    return ball_modes(3, radius, diffusivity, modes).pgse(b, delta, Delta)


def slabs(b, delta: float, Delta: float, thicknesses, permeabilities, diffusivity=2.0,
          T2=np.inf, degree: int = 12) -> np.ndarray:
    """Parallel layers with membranes between them, relaxation included; else as `slab`.

    Args:
        thicknesses: of the n layers, um; the outermost planes reflect.
        permeabilities: of the n - 1 membranes, um/ms, one number or each; ``inf`` is no membrane.
        diffusivity: um^2/ms, one number or one for each layer.
        T2: ms, one number or one for each layer.
        degree: of the polynomials in each layer.

    Raises:
        InputError: a value out of range, lists that do not fit the layers.
    """
    edges = np.concatenate([[0.0], np.cumsum(_lengths("thicknesses", thicknesses))])
    return layer_modes(1, edges - edges[-1] / 2, permeabilities, diffusivity, T2,
                       degree).pgse(b, delta, Delta)


def cylinders(b, delta: float, Delta: float, radii, permeabilities, diffusivity=2.0,
              T2=np.inf, degree: int = 12, orders: int = 12) -> np.ndarray:
    """Concentric cylinders of ascending ``radii`` (um), the last reflecting; else as `slabs`.

    Angular orders are kept up to ``orders``.
    """
    return layer_modes(2, _ascending(radii), permeabilities, diffusivity, T2, degree,
                       orders).pgse(b, delta, Delta)


def spheres(b, delta: float, Delta: float, radii, permeabilities, diffusivity=2.0,
            T2=np.inf, degree: int = 12, orders: int = 12) -> np.ndarray:
    """Concentric spheres; else as `cylinders`."""
    return layer_modes(3, _ascending(radii), permeabilities, diffusivity, T2, degree,
                       orders).pgse(b, delta, Delta)


# --- one compartment: closed forms ---------------------------------------------------------------

def slab_modes(thickness: float, diffusivity: float, modes: int) -> Modes:
    """Cosines cos(m pi x / L): lambda_m = D (m pi / L)^2, positions in closed form."""
    L, D = _positive("thickness", thickness), _positive("diffusivity", diffusivity)
    m = np.arange(_count("modes", modes))
    norm = np.where(m == 0, 1.0, np.sqrt(2.0))
    odd = (m[:, None] + m) % 2 == 1
    squares = (m**2).astype(float)
    difference = np.where(odd, squares[:, None] - squares, 1.0)
    position = np.where(odd, -2 * L / np.pi**2 * np.outer(norm, norm)
                        * (squares[:, None] + squares) / difference**2, 0.0)
    return Modes(D * (np.pi / L)**2 * squares, position, (m == 0).astype(float))


def ball_modes(dim: int, radius: float, diffusivity: float, modes: int) -> Modes:
    """The disk (dim 2) or the ball (dim 3): lowest ``modes`` of those that the gradient reaches.

    Modes are J_n(a r / R) cos(n theta) or j_n(a r / R) P_n(cos theta) with a the zeros of the
    derivative of J_n or j_n. In units of R, with mu = a^2, positions between orders n, n' = n +- 1:

        disk: sqrt(1 + [n n' = 0]) B B' (mu + mu' - 2 n n') / (mu - mu')^2,
              B^2 = mu / (mu - n^2)
        ball: (n + n' + 1) B B' (mu + mu' - n (n' + 1) - n' (n + 1) + 1) / (mu - mu')^2,
              B^2 = mu / ((mu - n (n + 1)) (2 n + 1)),

    and for the constant B^2 = 1 (disk), 3 / 2 (ball).
    """
    R, D = _positive("radius", radius), _positive("diffusivity", diffusivity)
    order, root = _lowest_roots(dim, _count("modes", modes))
    mu, constant = root**2, root == 0
    spread = mu - order * (order + dim - 2)
    B = np.sqrt(np.where(constant, dim / 2, mu / np.where(constant, 1.0, spread)))
    n, k = order[:, None], order[None, :]
    coupled = np.abs(n - k) == 1
    difference = np.where(coupled, mu[:, None] - mu, 1.0)
    if dim == 2:
        weight = np.sqrt(1.0 + ((n == 0) | (k == 0))) * (mu[:, None] + mu - 2 * n * k)
    else:
        B = B / np.sqrt(2 * order + 1)
        weight = (n + k + 1) * (mu[:, None] + mu - n * (k + 1) - k * (n + 1) + 1)
    position = np.where(coupled, R * np.outer(B, B) * weight / difference**2, 0.0)
    return Modes(D * mu / R**2, position, constant.astype(float))


def _lowest_roots(dim: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Orders n and zeros a of J_n' (dim 2) or j_n' (dim 3), the ``number`` smallest a.

    Orders stop at sqrt(number): the signal's error falls exponentially with the highest order,
    and only with a power of the largest zero.
    """
    highest = int(np.sqrt(number)) + 1
    # each order has at least (limit - highest) / pi - 1 zeros below the limit
    limit = np.pi * (number / (highest + 1) + 2) + highest
    orders, roots = [np.zeros(1, int)], [np.zeros(1)]
    for n in range(highest + 1):
        found = _zeros((lambda a, n=n: jvp(n, a)) if dim == 2 else
                       (lambda a, n=n: spherical_jn(n, a, derivative=True)),
                       max(0.5, 0.9 * n), limit)
        orders.append(np.full(len(found), n))
        roots.append(found)
    order, root = np.concatenate(orders), np.concatenate(roots)
    lowest = np.argsort(root, kind="stable")[:number]
    return order[lowest], root[lowest]


def _zeros(function: Callable, start: float, stop: float) -> np.ndarray:
    """Zeros in [start, stop], which lie at least 0.1 apart."""
    grid = np.linspace(start, stop, int((stop - start) / 0.1) + 2)
    value = function(grid)
    change = np.flatnonzero(value[:-1] * value[1:] < 0)
    return np.array([brentq(function, grid[k], grid[k + 1], xtol=1e-14) for k in change])


# --- layers: polynomials in each ------------------------------------------------------------------

def layer_modes(dim: int, edges: np.ndarray, permeabilities, diffusivity, T2, degree: int,
                orders: int = 0) -> Modes:
    """Modes of slabs (dim 1), concentric cylinders (2) or spheres (3).

    ``edges (n + 1,)`` are ascending planes, um, or radii, the first 0; other arguments as `slabs`.
    Of angular orders up to ``orders`` each only meets its neighbours.
    """
    layers = len(edges) - 1
    D = _per_layer("diffusivity", diffusivity, layers)
    R2 = 1.0 / _per_layer("T2", T2, layers, finite=False)
    kappa = _membranes(permeabilities, layers - 1)
    degree = _count("degree", degree)
    orders = _count("orders", orders + 1) - 1 if dim > 1 else 0
    blocks = [_radial(dim, n, edges, kappa, D, R2, degree) for n in range(orders + 1)]
    r, weight = blocks[0][2:]
    counts = np.array([len(values) for values, *_ in blocks])
    first = np.concatenate([[0], np.cumsum(counts)])
    position = np.zeros((first[-1],) * 2)
    for n, here, there in _neighbours(dim, orders):
        block = n * (blocks[here][1] * (weight * r)[:, None]).T @ blocks[there][1]
        rows, columns = (slice(first[k], first[k + 1]) for k in (here, there))
        position[rows, columns], position[columns, rows] = block, block.T
    start = np.zeros(first[-1])
    start[: counts[0]] = weight @ blocks[0][1] / np.sqrt(weight.sum())
    return Modes(np.concatenate([values for values, *_ in blocks]), position, start)


def _neighbours(dim: int, orders: int):
    """Angular factor of the position between normalised orders: (factor, n, n')."""
    if dim == 1:
        return [(1.0, 0, 0)]
    if dim == 2:  # cos(n theta)
        return [(np.sqrt(0.5) if n == 0 else 0.5, n, n + 1) for n in range(orders)]
    return [((n + 1) / np.sqrt((2 * n + 1) * (2 * n + 3)), n, n + 1) for n in range(orders)]


def _radial(dim: int, order: int, edges, kappa, D, R2, degree: int):
    """Eigenvalues, modes at quadrature points, points and weights (r^(dim-1) dr) of one order."""
    legendre, layers, size = np.polynomial.legendre, len(D), degree + 1
    nodes, gauss = legendre.leggauss(degree + 4)
    half = np.diff(edges) / 2
    r = (edges[:-1, None] + half[:, None] * (nodes + 1)).ravel()
    weight = (half[:, None] * gauss).ravel() * r**(dim - 1)
    values, slopes = np.zeros((2, len(r), layers * size))
    left, right = np.zeros((2, layers, layers * size))
    inside = legendre.legvander(nodes, degree)
    slope = legendre.legval(nodes, legendre.legder(np.eye(size))).T
    ends = legendre.legvander(np.array([-1.0, 1.0]), degree)
    for i in range(layers):
        rows = slice(i * len(nodes), (i + 1) * len(nodes))
        columns = slice(i * size, (i + 1) * size)
        values[rows, columns], slopes[rows, columns] = inside, slope / half[i]
        left[i, columns], right[i, columns] = ends
        if i == 0 and order > 0:  # vanishes at the centre: times r
            slopes[rows, columns] = inside + r[rows, None] * slope / half[0]
            values[rows, columns] *= r[rows, None]
            left[0, columns], right[0, columns] = 0.0, edges[1] * ends[1]
    centrifugal = order * (order + dim - 2)
    rate = np.repeat(D, len(nodes)) * weight
    loss = np.repeat(R2, len(nodes)) * weight
    if centrifugal:
        loss += centrifugal * rate / r**2
    A = slopes.T @ (rate[:, None] * slopes) + values.T @ (loss[:, None] * values)
    jump = right[:-1] - left[1:]
    area = edges[1:-1]**(dim - 1)
    finite = np.isfinite(kappa)
    A += jump[finite].T @ ((kappa * area)[finite, None] * jump[finite])
    M = values.T @ (weight[:, None] * values)
    if not finite.all():
        Z = null_space(jump[~finite])
        A, M, values = Z.T @ A @ Z, Z.T @ M @ Z, values @ Z
    eigenvalues, vectors = eigh(A, M)
    return np.maximum(eigenvalues, 0.0), values @ vectors, r, weight


def _positive(field: str, value, unit: str = "", finite: bool = True) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not number > 0 or (finite and np.isinf(number)):
        raise InputError(f"{field}: {value!r}, expected a positive number{unit}")
    return number


def _count(field: str, value) -> int:
    if not (isinstance(value, int | np.integer) and value > 0):
        raise InputError(f"{field}: {value!r}, expected a positive whole number")
    return int(value)


def _b_values(b) -> np.ndarray:
    b = np.asarray(b, dtype=float)
    bad = b[~(np.isfinite(b) & (b >= 0))]
    if bad.size:
        raise InputError(f"b: {bad[0]:g}, expected finite values >= 0 in s/mm^2")
    return b


def _lengths(field: str, values) -> np.ndarray:
    if np.ndim(values) != 1 or not len(values):
        raise InputError(f"{field}: {values!r}, expected one or more positive lengths in um")
    return np.array([_positive(field, value, " (um)") for value in values])


def _ascending(radii) -> np.ndarray:
    edges = np.concatenate([[0.0], _lengths("radii", radii)])
    if not (np.diff(edges) > 0).all():
        raise InputError(f"radii: {radii!r}, expected ascending ones in um")
    return edges


def _per_layer(field: str, value, layers: int, finite: bool = True) -> np.ndarray:
    if np.ndim(value) == 0:
        value = [value] * layers
    if np.ndim(value) != 1 or len(value) != layers:
        raise InputError(f"{field}: {value!r}, expected one number or {layers}, one a layer")
    return np.array([_positive(field, v, finite=finite) for v in value])


def _membranes(value, count: int) -> np.ndarray:
    kappa = np.full(count, float(value)) if np.ndim(value) == 0 else np.asarray(value, float)
    if kappa.shape != (count,) or not (kappa >= 0).all():
        raise InputError(f"permeabilities: {value!r}, expected one value in [0, inf] um/ms, "
                         f"or {count}, one a membrane")
    return kappa
