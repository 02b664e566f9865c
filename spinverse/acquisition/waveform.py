"""The base of all gradient waveforms: the effective shape f(t) between excitation and echo.

A waveform is scalar, and the spins feel the gradient G f(t) along the direction of the table's row,
or it is vector valued, and they feel G f(t) with f(t) in R^3 in the laboratory frame. Every
180-degree pulse is already folded into the sign of f. Times are in ms and f has no unit. With
g = gamma G in rad/(ms um),

    F(t) = int_0^t f,      b [ms/um^2] = g^2 int_0^TE |F(t)|^2 dt = g^2 b_factor.

Conventions that all classes share: the waveform starts at t = 0, the excitation, and an echo time
later than its end means dead time at the end.

A waveform may have periods of *storage*: a 90-degree pulse turns the magnetisation along z, where
it diffuses and relaxes with T1, and another one turns it back. The pathway is followed that
crushers select (Frahm et al., J. Magn. Reson. 64 (1985) 81): what is stored keeps its phase, F(t)
goes on, what stays transverse is crushed, and so is what recovers along z meanwhile. Half of the
magnetisation is then left; this factor 1/2 is not in the signals, which are those of the spin echo
of the same pulses where T1 = T2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..errors import InputError

REFOCUSING_TOLERANCE = 1e-9  # of int |f|
ROUNDING = 1e-12  # times closer than this, relative to TE, are the same time
_MIRROR_TOLERANCE = 1e-10  # of the peak
SAME_VALUE = 1e-14  # of the peak

# Composite Gauss-Legendre rule on [0, 1]: four panels of 16 nodes resolve several periods of an
# oscillating gradient inside one smooth interval.
_PANELS = 4
_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(16)
_UNIT_NODES = ((np.arange(_PANELS)[:, None] + 0.5 * (_GAUSS_NODES + 1.0)) / _PANELS).ravel()
_UNIT_WEIGHTS = np.tile(0.5 * _GAUSS_WEIGHTS / _PANELS, _PANELS)

# Commutator-free Magnus integrator of order 4 with two exponentials (Blanes & Moan 2006, Alvermann
# & Fehske 2011): nodes in the step, weights of the two nodes in its first half.
MAGNUS_NODES = 0.5 + np.array([-1.0, 1.0]) * np.sqrt(3.0) / 6.0
MAGNUS_NEAR, MAGNUS_FAR = 0.25 + np.sqrt(3.0) / 6.0, 0.25 - np.sqrt(3.0) / 6.0


def _points(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Quadrature points of the intervals [start, stop], shape start.shape + (nodes,)."""
    return start[..., None] + (stop - start)[..., None] * _UNIT_NODES


def _quadrature(function, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Integrate ``function`` over each interval [start, stop]; it must be smooth inside.

    Its values may have more axes than its argument; they come last in the result.
    """
    points = _points(start, stop)
    values = function(points)
    integrals = np.tensordot(values, _UNIT_WEIGHTS, axes=(points.ndim - 1, 0))
    return (stop - start).reshape(start.shape + (1,) * (values.ndim - points.ndim)) * integrals


def floats(field: str, values) -> np.ndarray:
    """A fresh float array, or the InputError that names ``field``."""
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{field}: expected numbers, got {values!r:.60}") from None


def positive(field: str, value: Any) -> float:
    """``value`` as a float, or the InputError that names ``field``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not (np.isfinite(number) and number > 0.0):
        raise InputError(f"{field} = {value!r}: expected a positive time in ms")
    return number


def echo_time_after(end: float, echo_time: Any, what: str) -> float:
    """TE in ms: ``end``, ``what`` in words, unless given; InputError where it is earlier."""
    if echo_time is None:
        return end
    number = positive("echo_time", echo_time)
    if abs(number - end) <= ROUNDING * end:
        return end
    if number < end:
        raise InputError(f"echo_time = {number:g} ms: expected at least {what} = {end:g} ms")
    return number


class Waveform(ABC):
    """Base of all waveforms; subclasses are frozen dataclasses.

    A subclass sets ``name``, has an ``echo_time``, implements ``breakpoints``,
    ``piecewise_constant`` and ``__call__``, and calls ``check_refocused`` at the end of its
    ``__post_init__``. Its dataclass fields must be None, numbers or (nested) tuples of numbers:
    they are what is hashed, compared and written to files. Closed forms may override ``integral``
    and ``diffusion_time``, and what is known of symmetry ``antisymmetric`` and ``symmetric``.

    Attributes:
        name: Name of the class of waveforms, in files and messages.
        echo_time: TE in ms, the end of the waveform, periods of storage included.
        storage: Periods (start, stop) in ms, ascending, in which magnetisation is stored along z;
            their ends are breakpoints, and f is zero inside.
    """

    name: ClassVar[str]
    echo_time: float
    storage: tuple[tuple[float, float], ...] = ()
    _registry: ClassVar[dict[str, type[Waveform]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            if len(cls.name.split()) != 1 or "," in cls.name:
                raise InputError(f"name {cls.name!r}: expected one word, it stands in csv cells")
            Waveform._registry[cls.name] = cls

    @property
    def vector(self) -> bool:
        """Whether f(t) is in R^3; the direction of the table's row is then not used."""
        return False

    @property
    @abstractmethod
    def breakpoints(self) -> tuple[float, ...]:
        """Increasing times in ms from 0 to TE, both included, where f is not smooth."""

    @property
    @abstractmethod
    def piecewise_constant(self) -> bool:
        """Whether f is constant between breakpoints."""

    @abstractmethod
    def __call__(self, t):
        """f at times ``t`` in ms (zero outside [0, TE], right limit at a jump).

        Shape: that of ``t``, with an axis of 3 behind it for a vector waveform.
        """

    @cached_property
    def antisymmetric(self) -> bool:
        """Whether f(TE - t) = -f(t) for all t (jumps aside)."""
        return self._mirror(-1.0)

    @cached_property
    def symmetric(self) -> bool:
        """Whether f(TE - t) = f(t) for all t (jumps aside)."""
        return self._mirror(1.0)

    def _mirror(self, sign: float) -> bool:
        """Whether f(TE - t) = sign f(t), looked at inside all intervals and their mirror images."""
        breakpoints = np.asarray(self.breakpoints)
        edges = np.unique(np.concatenate([breakpoints, self.echo_time - breakpoints]))
        edges = edges[np.concatenate([[True], np.diff(edges) > 1e3 * ROUNDING * self.echo_time])]
        t = _points(edges[:-1], edges[1:])
        difference = self(self.echo_time - t) - sign * self(t)
        return bool(np.max(np.abs(difference)) <= _MIRROR_TOLERANCE * self.peak)

    @property
    def stored_time(self) -> float:
        """Length of all periods of storage together, ms."""
        return sum(stop - start for start, stop in self.storage)

    def stored(self, t) -> np.ndarray:
        """Whether magnetisation is stored along z at times ``t`` in ms; bool, shape of ``t``."""
        t, result = np.asarray(t, dtype=float), np.zeros(np.shape(t), dtype=bool)
        for start, stop in self.storage:
            result |= (t >= start) & (t < stop)
        return result

    def same_at_rest(self, other: Waveform) -> bool:
        """Whether signals without gradient are the same: echo time and storage, to 1e-9 of TE."""
        times, others = (np.array([w.echo_time, *np.ravel(w.storage)]) for w in (self, other))
        return times.shape == others.shape and bool(np.allclose(
            times, others, rtol=0.0, atol=1e-9 * self.echo_time))

    @property
    def peak(self) -> float:
        """Largest |f|; the hardware's strongest gradient is G times this."""
        return 1.0

    @property
    def first_direction(self) -> np.ndarray:
        """Unit vector (3,) along the first f that is not zero; InputError if f is scalar."""
        if not self.vector:
            raise InputError(f"waveform {self.name}: is scalar, its direction is in the table")
        values = self(_points(*self._intervals).ravel())
        sizes = np.linalg.norm(values, axis=1)
        first = int(np.argmax(sizes > ROUNDING * self.peak))
        return values[first] / sizes[first]

    @cached_property
    def _intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and stop of each smooth interval."""
        breakpoints = np.asarray(self.breakpoints)
        return breakpoints[:-1], breakpoints[1:]

    @cached_property
    def _integral_at_starts(self) -> np.ndarray:
        """F at the start of each smooth interval."""
        pieces = _quadrature(self, *self._intervals)
        return np.concatenate([np.zeros_like(pieces[:1]), np.cumsum(pieces, axis=0)[:-1]])

    def integral(self, t):
        """F(t) = int_0^t f in ms, for times ``t`` of any shape (a vector: one more axis of 3)."""
        t = np.clip(np.asarray(t, dtype=float), 0.0, self.echo_time)
        starts, _ = self._intervals
        interval = np.clip(np.searchsorted(starts, t, side="right") - 1, 0, None)
        return self._integral_at_starts[interval] + _quadrature(self, starts[interval], t)

    @cached_property
    def b_factor(self) -> float:
        """int_0^TE |F(t)|^2 dt in ms^3, by Gauss-Legendre quadrature between breakpoints."""
        return float(np.sum(_quadrature(lambda t: self.integral(t) ** 2, *self._intervals)))

    def b_tensor_factor(self, direction=None) -> np.ndarray:
        """int_0^TE F F^T dt in ms^3, shape (3, 3); its trace is ``b_factor``.

        A scalar waveform needs its ``direction``, a unit vector (3,), or it is an InputError.
        """
        if not self.vector:
            vector = np.full(3, np.nan) if direction is None else np.asarray(direction, dtype=float)
            if vector.shape != (3,) or not np.all(np.isfinite(vector)):
                raise InputError(f"direction: {direction!r}, expected three numbers")
            return self.b_factor * np.outer(vector, vector)

        def product(t):
            F = self.integral(t)
            return F[..., :, None] * F[..., None, :]

        return np.sum(_quadrature(product, *self._intervals), axis=0)

    @property
    def diffusion_time(self) -> float:
        """Effective diffusion time in ms, b_factor / max |F|^2 (PGSE: Delta - delta/3)."""
        starts, stops = self._intervals
        times = np.concatenate([starts, _points(starts, stops).ravel()])
        F = self.integral(times).reshape(times.size, -1)
        return self.b_factor / float(np.max(np.sum(F**2, axis=1)))

    def segments(self, max_step: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Divide [0, TE] into pieces of constant f.

        Exact, and independent of ``max_step``, wherever f is constant between breakpoints; equal
        neighbours there are one piece. Elsewhere each smooth interval is cut into equal steps of
        two pieces no longer than ``max_step``, with the values 2 (a f1 + b f2) and
        2 (b f1 + a f2), where a, b = 1/4 +- sqrt(3)/6 and f1, f2 are those at the Gauss points of
        the step. The product of the pieces' exponentials is then fourth order in the step, though
        diffusion and gradient do not commute (the commutator-free Magnus integrator CF4:2; Blanes &
        Moan, Appl. Numer. Math. 56 (2006) 1519; Alvermann & Fehske, J. Comput. Phys. 230 (2011)
        5930). The pieces keep f(TE - t) = -+f(t).

        Args:
            max_step: Longest piece in ms where f varies; needed unless the waveform is piecewise
                constant.

        Returns:
            Durations in ms, shape (pieces,), and values of f, shape (pieces,) or (pieces, 3).

        Raises:
            InputError: ``max_step`` is missing or not a positive time.
        """
        starts, stops = self._intervals
        if self.piecewise_constant:
            values = self(0.5 * (starts + stops))
            return merge_pieces(stops - starts, values, np.full(starts.size, True), self.peak)
        max_step = self._checked_step(max_step)
        f = self(_points(starts, stops)).reshape(starts.size, _UNIT_NODES.size, -1)
        constant = np.max(np.abs(f - f[:, :1]), axis=(1, 2)) <= SAME_VALUE * self.peak
        begin, lengths, constant = cut(starts, stops, constant, max_step)
        f1, f2 = (self(begin + node * lengths) for node in MAGNUS_NODES)
        values = 2.0 * np.stack([MAGNUS_NEAR * f1 + MAGNUS_FAR * f2,
                                 MAGNUS_FAR * f1 + MAGNUS_NEAR * f2], axis=1)
        values[constant] = f1[constant, None]
        values = values.reshape((-1, *f1.shape[1:]))
        return merge_pieces(np.repeat(0.5 * lengths, 2), values, np.repeat(constant, 2), self.peak)

    def _checked_step(self, max_step: float | None) -> float:
        """``max_step`` as a time in ms, or InputError."""
        if max_step is None:
            raise InputError(f"max_step: {self.name} is not piecewise constant, expected a longest "
                             "step in ms")
        return positive("max_step", max_step)

    def check_refocused(self) -> None:
        """Raise InputError unless f is somewhere non-zero, F(TE) = 0, and f = 0 in storage."""
        starts, stops = self._intervals
        inside = self.stored(0.5 * (starts + stops))
        if np.any(self(_points(starts[inside], stops[inside])) != 0.0):
            raise InputError(f"waveform {self.name}: has a gradient while magnetisation is stored "
                             "along z, expected none (there it only crushes what is transverse)")
        total = float(np.sum(_quadrature(lambda t: np.abs(self(t)), *self._intervals)))
        if not total > 0.0:
            raise InputError(f"waveform {self.name}: f is zero everywhere, expected a gradient")
        rest = self.integral(self.echo_time)
        if np.max(np.abs(rest)) > REFOCUSING_TOLERANCE * total:
            text = ", ".join(f"{value:g}" for value in np.atleast_1d(rest))
            raise InputError(f"waveform {self.name}: its integral over [0, TE] is {text} ms, "
                             "expected 0 (the sign must change at each 180-degree pulse)")

    def describe(self) -> str:
        """One line for a person."""
        return f"{self.name}, TE {self.echo_time:g} ms"

    def to_dict(self) -> dict[str, Any]:
        """Name and fields as plain values (numbers, tuples) that JSON can hold."""
        return {"name": self.name} | asdict(self)  # type: ignore[call-overload]  # a dataclass

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Waveform:
        """Rebuild a waveform from ``to_dict``; InputError for a name or fields that do not fit."""
        arguments = dict(data)
        name = arguments.pop("name", None)
        if name not in Waveform._registry:
            known = ", ".join(sorted(Waveform._registry))
            raise InputError(f"waveform name {name!r}: expected one of {known}")
        try:
            return Waveform._registry[name](**arguments)
        except TypeError as error:
            raise InputError(f"waveform {name}: fields {sorted(arguments)} do not fit") from error


def with_ends(breakpoints: Iterable[float],
              storage: tuple[tuple[float, float], ...]) -> tuple[float, ...]:
    """Increasing ``breakpoints`` without repetition, and with the ends of periods of storage."""
    found = sorted(dict.fromkeys(breakpoints))
    for time in np.ravel(storage).tolist():
        if min(abs(time - other) for other in found) > ROUNDING * found[-1]:
            found.append(time)
    return tuple(sorted(found))


def cut(starts, stops, constant, max_step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Begin, length, constancy of equal steps of two pieces up to ``max_step``; one if constant."""
    # a length that is a whole number of steps up to rounding is not cut once more
    counts = np.ceil((stops - starts) / (2.0 * max_step) * (1.0 - ROUNDING))
    counts = np.where(constant, 1, np.maximum(counts, 1)).astype(int)
    lengths = np.repeat((stops - starts) / counts, counts)
    number = np.arange(lengths.size) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + number * lengths, lengths, np.repeat(constant, counts)


def merge_pieces(durations, values, constant, peak) -> tuple[np.ndarray, np.ndarray]:
    """Pieces with equal neighbours joined, where f is constant.

    Elsewhere it would be by chance, and not the same in the mirror image.
    """
    steps = np.abs(np.diff(values.reshape(values.shape[0], -1), axis=0))
    same = np.all(steps <= SAME_VALUE * peak, axis=1) & constant[1:] & constant[:-1]
    first = np.concatenate([[0], np.flatnonzero(~same) + 1])
    return np.add.reduceat(durations, first), values[first]
