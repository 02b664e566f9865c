"""Pieces of waveforms along periodic axes, where modes drift with Q(t) = int_0^t g.

Where Q varies, steps are of fourth order: two exponentials of weighted means of the operator at
Gauss points (commutator-free, `spinverse.acquisition.waveform`), for which the means of g, Q and
Q Q^T are enough. Plateaus of Q are one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...acquisition.table import Acquisition
from ...acquisition.waveform import MAGNUS_FAR, MAGNUS_NEAR, MAGNUS_NODES
from .storage import STORED

_EQUAL = 1e-12  # times closer than this, relative to TE, are the same


@dataclass(frozen=True)
class Wave:
    """Means of f, F = int f and F F over a piece; vectors and a matrix for a vector waveform.

    And whether the magnetisation is ``stored`` along z.
    """

    rate: float | tuple[float, ...]
    phase: float | tuple[float, ...]
    square: float | tuple[tuple[float, ...], ...]
    stored: bool = False


def moves(waveform, direction: np.ndarray, axes: tuple[int, ...]) -> bool:
    """Whether there is a gradient along the periodic axes."""
    if not waveform.vector:
        return bool(np.any(direction[list(axes)]))
    return any(np.any(f[:, list(axes)]) for _, _, f in _intervals(waveform))


def first_step(acquisition: Acquisition, axes: tuple[int, ...]) -> float | None:
    """Piece length, ms, that cuts every waveform's longest interval where the operator varies.

    It varies with f, and along periodic axes with F = int f; None where it varies nowhere.
    """
    driven = {k for row, k in enumerate(acquisition.waveform_index) if axes and moves(
        acquisition.waveforms[k], acquisition.directions[row], axes)}
    longest = []
    for k, waveform in enumerate(acquisition.waveforms):
        used = axes if k in driven else ()
        lengths = [stop - start for start, stop, f in _intervals(waveform)
                   if not _constant(waveform, f, used)]
        longest += [max(lengths)] if lengths else []
    return float(min(longest)) / 4 if longest else None


def pieces(waveform, max_step: float, fold: int, axes: tuple[int, ...], dim: int,
           storing: bool = True) -> tuple:
    """(duration, `Wave`) of what is to be propagated; 0.0 or `STORED` for a `Wave` that is zero.

    Args:
        waveform: with gradients along the periodic ``axes``.
        max_step: longest piece in ms where Q varies.
        fold: stop at TE / 2 if it is not 0.
        dim: of the mesh.
        storing: whether storage differs from rest.
    """
    durations, times, whole, kept = [], [], [], []
    for start, stop, f in _intervals(waveform, bool(fold)):
        constant = _constant(waveform, f, axes)
        count = 1 if constant else max(1, int(np.ceil(
            (stop - start) / (2 * max_step) * (1 - _EQUAL))))
        length = (stop - start) / count
        nodes = np.full(2, 0.5) if constant else MAGNUS_NODES
        times += list(start + length * (np.arange(count)[:, None] + nodes))
        durations += [length] * count
        whole += [constant] * count
        kept += [storing and bool(waveform.stored((start + stop) / 2))] * count
    times = np.array(times)
    f, F = waveform(times), waveform.integral(times)
    if waveform.vector:
        f, F = f[..., :dim], F[..., :dim]
    FF = F[..., :, None] * F[..., None, :] if waveform.vector else F**2
    small = _EQUAL * waveform.peak
    result: list[tuple] = []
    for k, (duration, constant) in enumerate(zip(durations, whole, strict=True)):
        if constant:
            still = np.all(np.abs(f[k]) <= small) and np.all(
                np.abs(F[k]) <= small * waveform.echo_time)
            if still:
                result.append((duration, STORED if kept[k] else 0.0))
                continue
            one = [_plain(values[k, 0]) for values in (f, F, FF)]
            result.append((duration, Wave(one[0], one[1], one[2], kept[k])))
            continue
        for weights in ((MAGNUS_NEAR, MAGNUS_FAR), (MAGNUS_FAR, MAGNUS_NEAR)):
            means = (2 * np.tensordot(weights, values[k], axes=1) for values in (f, F, FF))
            result.append((0.5 * duration, Wave(*map(_plain, means))))
    return tuple(result)


def _constant(waveform, f: np.ndarray, axes: tuple[int, ...]) -> bool:
    """Whether neither f nor its integral along the periodic axes varies; f at points inside."""
    if np.any(np.abs(f - f[:1]) > _EQUAL * waveform.peak):
        return False
    return not axes or not np.any(f[:, list(axes)] if waveform.vector else f)


def _intervals(waveform, half: bool = False):
    """Smooth intervals up to TE, or to TE / 2: start, stop and values of f inside."""
    edges = np.asarray(waveform.breakpoints)
    if half:
        middle = waveform.echo_time / 2
        edges = np.append(edges[edges < middle - _EQUAL * waveform.echo_time], middle)
    inside = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(17) + 0.5) / 17
    f = waveform(inside)
    f[np.abs(f) <= _EQUAL * waveform.peak] = 0.0
    return zip(edges[:-1], edges[1:], f, strict=True)


def _plain(mean):
    """A number, or nested tuples: they are hashed."""
    return tuple(_plain(part) for part in mean) if np.ndim(mean) else float(mean)
