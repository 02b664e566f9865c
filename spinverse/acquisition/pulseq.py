"""Pulseq sequence files (.seq; Layton et al., Magn. Reson. Med. 77 (2017) 1544), read by PyPulseq.

A file has everything that the scanner plays: pulses, gradients of three axes in Hz/m, the ADC. One
measurement is taken from it for each excitation that the ADC listens to. Its waveform is the whole
effective gradient from the centre of the excitation to the echo, that of slices and readout as that
of diffusion: linear pieces as in the file, whose sign changes at each refocusing pulse.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, one_line, warn_caller
from ..units import gradient_from_hertz, time_to_internal
from .files import without_small_b
from .samples import Sampled, SampledGradient, along_a_line
from .table import Acquisition, b_of_gradient
from .waveform import Waveform

_DIGITS = 6  # decimals of a time in ms: events are on rasters of 50 ns and more
_SAME_ECHO = 1e-4  # ms, the raster of the ADC: echoes of rows that differ less are at one time
_SAME_SHAPE = 1e-5  # of the peak: amplitudes have six digits in a file
_SAID = 1e-5  # moments at the echo, relative to int |G|: more than rounding, and said,
_MOST = 1e-2  # and no echo of the whole voxel
_FLAT = 1e-12  # of the peak: a sample this near to the line through its neighbours is none
_NOTHING = 1e-6  # of int |G|: moments that differ less are the same
_RIGHT_ANGLE = 85.0, 95.0  # degrees of a pulse that stores or restores
_LARGEST_EXCITATION = 90.01  # degrees; Pulseq's own rule where a file says no use of pulses


@dataclass(frozen=True)
class _Pulse:
    """RF: its centre in ms, its use in Pulseq's words, its flip angle in degrees."""

    time: float
    use: str
    angle: float

    @property
    def right_angle(self) -> bool:
        return _RIGHT_ANGLE[0] <= self.angle <= _RIGHT_ANGLE[1]


@dataclass(frozen=True)
class _Gradients:
    """Linear pieces of one axis, ascending, in ms and Hz/m; zero in between. All of shape (n,)."""

    start: np.ndarray
    stop: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def limits(self, edges: np.ndarray) -> np.ndarray:
        """Values at the start and at the end of intervals inside which it has no corner, (n, 2)."""
        if not self.start.size:
            return np.zeros((edges.size - 1, 2))
        middle = 0.5 * (edges[1:] + edges[:-1])
        k = np.clip(np.searchsorted(self.start, middle, side="right") - 1, 0, None)
        slope = (self.last - self.first)[k] / (self.stop - self.start)[k]
        values = [self.first[k] + slope * (t - self.start[k]) for t in (edges[:-1], edges[1:])]
        return np.where((middle < self.stop[k]) & (middle > self.start[k]), values, 0.0).T


def read_pulseq(path: str | Path, b0_threshold: float = 0.0) -> Acquisition:
    """Read an acquisition from a Pulseq file: a row for each excitation that the ADC listens to.

    The echo is where the ADC, after the last pulse that acts on the repetition, comes closest to
    the centre of k-space; where no gradient is on meanwhile, the middle of the ADC. What is left
    of the moment there (rounding; phase encoding) is taken off each axis in proportion to |G|; a
    UserWarning says how much if it is over 1e-5 of the largest int |G| of the file.

    A pulse without use in the file is an excitation up to 90 degrees, and refocuses above. Two
    other pulses of 90 degrees between excitation and echo store magnetisation along z (stimulated
    echo); they may be called excitations too, where all measurements of the file have three with
    no refocusing pulse between the second and the third. Gradients in between only crush.

    Repetitions along a line become a scalar waveform with a direction, others a vector one; shapes
    that differ by less than 1e-5 of the peak, as amplitudes of six digits do, are one waveform.

    Args:
        path: The .seq file; versions are those of PyPulseq.
        b0_threshold: b up to this many s/mm^2 counts as 0; imaging gradients have some.

    Raises:
        InputError: PyPulseq is not installed, or cannot read the file; no excitation with an ADC
            after it; another pulse before the echo; a moment at the echo of over 1e-2 of the
            largest int |G| of the file; a row without gradients whose TE no other row has.
    """
    pulses, axes, adc = _events(path, _sequence(path))
    found = [_echo(axes, *repetition) for repetition in _repetitions(path, pulses, adc)]
    area = max(float(np.max(echo.area)) for echo in found)
    if area == 0.0:
        raise InputError(f"{path}: no gradient between excitation and echo, expected some")
    rests = np.array([np.max(np.abs(echo.rest)) for echo in found]) / area
    for row in np.flatnonzero(rests > _MOST)[:1]:
        moments = ", ".join(f"{1e-3 * value:.4g}" for value in found[row].rest)  # Hz/m ms to 1/m
        raise InputError(f"{path}: row {row}, excitation at {found[row].excitation:g} ms: the ADC "
                         f"comes no closer to the centre of k-space than {moments} 1/m, "
                         f"{rests[row]:.2g} of the gradients' area, expected up to {_MOST:g} (an "
                         "echo; refocusing pulses are those with use 'refocusing')")
    if np.max(rests) > _SAID:
        warn_caller(f"{path}: up to {np.max(rests):.2g} of the gradients' area is left at the echo "
                    "(phase encoding, rasters); it is taken off the gradients in proportion")
    try:
        table = _table(path, found)
        return replace(table, b=without_small_b(path, table.b, b0_threshold))
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def _sequence(path):
    """What PyPulseq makes of the file, or InputError."""
    try:
        import pypulseq
    except ImportError:
        raise InputError("pypulseq is not installed, expected it for Pulseq files: "
                         "pip install 'spinverse[pulseq]'") from None
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    sequence = pypulseq.Sequence()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            sequence.read(str(path))
    except Exception as error:  # of any kind, where a line is not as expected
        raise InputError(f"{path}: cannot be read as Pulseq ({one_line(error)[:200]})") from None
    if not sequence.block_events:
        raise InputError(f"{path}: cannot be read as Pulseq (it has no blocks)")
    for warning in said:
        warn_caller(f"{path}: {one_line(warning.message)}")
    return sequence


def _events(path, sequence) -> tuple[list[_Pulse], list[_Gradients], np.ndarray]:
    """Pulses, gradients of x, y, z, and times of ADC samples in ms, in the order of time."""
    pulses: list[_Pulse] = []
    pieces: list[list[tuple[np.ndarray, np.ndarray]]] = [[], [], []]
    samples, start = [np.zeros(0)], 0.0
    try:
        for number in sequence.block_events:
            block = sequence.get_block(number)
            if block.rf is not None:
                pulses.append(_pulse(start, block.rf))
            for axis, gradient in zip(pieces, (block.gx, block.gy, block.gz), strict=True):
                if gradient is not None:
                    axis.append(_corners(start, gradient))
            if block.adc is not None:
                dwell = np.arange(block.adc.num_samples) + 0.5
                samples.append(_ms(start + block.adc.delay + dwell * block.adc.dwell))
            start += sequence.block_durations[number]
    except Exception as error:  # shapes and events that are named but not there
        raise InputError(f"{path}: cannot be read as Pulseq ({one_line(error)[:200]})") from None
    axes = []
    for axis in pieces:
        lines = np.concatenate([np.zeros((4, 0)), *(
            np.stack([t[:-1], t[1:], g[:-1], g[1:]]) for t, g in axis)], axis=1)
        axes.append(_Gradients(*lines[:, lines[1] > lines[0]]))
        if not np.all(np.isfinite(lines)) or np.any(np.diff(axes[-1].start) < 0.0):
            raise InputError(f"{path}: cannot be read as Pulseq (gradients that are not finite, or "
                             "overlap)")
    adc, times = np.concatenate(samples), np.array([pulse.time for pulse in pulses])
    for values in (adc, times):
        if not np.all(np.isfinite(values)) or np.any(np.diff(values) <= 0.0):
            raise InputError(f"{path}: cannot be read as Pulseq (pulses or ADC samples that are "
                             "not in order)")
    return pulses, axes, adc


def _ms(seconds):
    return np.round(time_to_internal(seconds), _DIGITS)


def _pulse(start: float, rf) -> _Pulse:
    turns = np.abs(np.sum(rf.signal[:-1] * np.diff(rf.t)))  # as Pulseq's own files of older days
    use, angle = rf.use, 360.0 * float(turns)
    if use == "undefined":
        use = "excitation" if angle < _LARGEST_EXCITATION else "refocusing"
    return _Pulse(float(_ms(start + rf.delay + rf.center)), use, angle)


def _corners(start: float, gradient) -> tuple[np.ndarray, np.ndarray]:
    """Times in ms and values in Hz/m of the corners of a gradient of a block."""
    if gradient.type == "trap":
        lengths = [0.0, gradient.rise_time, gradient.flat_time, gradient.fall_time]
        times, values = np.cumsum(lengths), gradient.amplitude * np.array([0.0, 1.0, 1.0, 0.0])
    else:
        times, values = gradient.tt, gradient.waveform
        if gradient.time_id in (0, -1):  # samples inside raster intervals; the ends are apart
            times = np.concatenate([[0.0], times, [gradient.shape_dur]])
            values = np.concatenate([[gradient.first], values, [gradient.last]])
    return _ms(start + gradient.delay + np.asarray(times)), np.asarray(values, dtype=float)


def _repetitions(path, pulses: list[_Pulse], adc: np.ndarray):
    """Excitation (ms), pulses before the ADC's last sample, ADC samples (ms) of each measurement.

    Pulses that store and restore are called "storage".
    """
    if not adc.size:
        raise InputError(f"{path}: has no ADC, expected one after each excitation")
    starts = [k for k, pulse in enumerate(pulses) if pulse.use == "excitation"]
    groups: list[tuple[list[int], np.ndarray]] = [([], adc[:0])]
    for k, after in zip(starts, [*starts[1:], None], strict=False):
        groups[-1][0].append(k)
        stop = np.inf if after is None else pulses[after].time
        heard = adc[(adc > pulses[k].time) & (adc < stop)]
        if heard.size:
            groups[-1] = groups[-1][0], heard
            groups.append(([], adc[:0]))
    groups.pop()  # excitations that nothing listens to
    if not groups:
        raise InputError(f"{path}: no excitation has an ADC after it, expected one at least")
    stored = all(_is_stored(pulses, members) for members, _ in groups)
    for members, heard in groups:
        first = members[-3 if stored else -1]
        acting = [pulse for pulse in pulses[first + 1:] if pulse.time < heard[-1]]
        right = [pulse for pulse in acting if pulse.use != "refocusing"]
        for pulse in right if len(right) != 2 or not all(p.right_angle for p in right) else ():
            raise InputError(
                f"{path}: {pulse.use} pulse of {pulse.angle:.4g} degrees at {pulse.time:g} ms, "
                "between excitation and echo, expected refocusing pulses, or two of 90 degrees "
                "between which magnetisation is stored")
        acting = [replace(p, use="storage") if p in right else p for p in acting]
        yield pulses[first].time, acting, heard[heard > (acting[-1].time if acting else 0.0)]


def _is_stored(pulses: list[_Pulse], members: list[int]) -> bool:
    """Whether excitations up to an ADC are threes of a stimulated echo."""
    if len(members) % 3:
        return False
    store, restore = members[-2:]
    return restore == store + 1 and all(pulses[k].right_angle for k in members)


@dataclass(frozen=True)
class _Echo:
    """The effective gradient of a measurement. Times in ms from the excitation.

    times (n,) and values (n, 3) in Hz/m are of samples, linear in between; rest is the moment at
    the echo, area is int |G|, of each axis, Hz/m ms.
    """

    excitation: float
    times: np.ndarray
    values: np.ndarray
    refocusing: tuple[float, ...]
    storage: tuple[tuple[float, float], ...]

    @property
    def rest(self) -> np.ndarray:
        return np.trapezoid(self.values, self.times, axis=0)

    @property
    def area(self) -> np.ndarray:
        return np.trapezoid(np.abs(self.values), self.times, axis=0)

    @property
    def time(self) -> float:
        return float(self.times[-1])

    def refocused(self) -> np.ndarray:
        """The values with nothing left at the echo, (n, 3)."""
        share = np.divide(self.rest, self.area, out=np.zeros(3), where=self.area > 0.0)
        return self.values - share * np.abs(self.values)


def _echo(axes: list[_Gradients], excitation: float, pulses: list[_Pulse],
          adc: np.ndarray) -> _Echo:
    """The measurement of an excitation, up to where the ADC is closest to F = 0."""
    ends = [pulse.time for pulse in pulses if pulse.use == "storage"]
    refocusing = np.array([pulse.time for pulse in pulses if pulse.use == "refocusing"])
    changes = np.append(refocusing, ends[-1:])

    def limits(stop: float, more) -> tuple[np.ndarray, np.ndarray]:
        """Edges in ms and the effective gradient at both ends of the intervals, (n, 2, 3)."""
        edges = np.concatenate([[excitation, stop], changes, ends, more,
                                *(np.append(axis.start, axis.stop) for axis in axes)])
        edges = np.unique(edges[(edges >= excitation) & (edges <= stop)])
        middle = 0.5 * (edges[1:] + edges[:-1])
        sign = (-1.0) ** np.sum(middle[:, None] > changes, axis=1)
        if ends:
            sign[(middle > ends[0]) & (middle < ends[1])] = 0.0
        values = np.stack([axis.limits(edges) for axis in axes], axis=2)
        return edges, sign[:, None, None] * values

    edges, values = limits(adc[-1], adc)
    areas = np.diff(edges)[:, None] * np.mean(values, axis=1)
    F = np.concatenate([np.zeros((1, 3)), np.cumsum(areas, axis=0)])
    heard = np.searchsorted(edges, adc)
    sizes = np.linalg.norm(F[heard], axis=1)
    near = sizes <= sizes.min() + _NOTHING * np.abs(areas).sum()
    first = int(np.argmax(near))
    last = first + int(np.argmin(np.append(near[first:], False))) - 1
    time, G = 0.5 * (adc[first] + adc[last]), values[heard[first] - 1, 1]
    if first == last and np.any(G):  # between two samples
        dwell = adc[1] - adc[0] if adc.size > 1 else 0.0
        time -= float(np.clip(F[heard[first]] @ G / (G @ G), -0.5 * dwell, 0.5 * dwell))
    edges, values = limits(float(time), [])
    storage = (tuple(np.round(np.array(ends) - excitation, _DIGITS).tolist()),) if ends else ()
    return _Echo(excitation, *_samples(edges - excitation, values),
                 tuple(np.round(refocusing - excitation, _DIGITS).tolist()), storage)


def _samples(edges: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples without those on a line: times (n,), values (n, 3); a jump is a time given twice."""
    times = np.round(np.repeat(edges, 2)[1:-1], _DIGITS)
    values = limits.reshape(-1, 3)
    least = _FLAT * max(float(np.max(np.abs(values))), 1e-300)
    keep = np.ones(times.size, dtype=bool)
    keep[2::2] = np.any(np.abs(values[2::2] - values[1:-1:2]) > least, axis=1)
    times, values = times[keep], values[keep]
    before, length = np.diff(times)[:-1], times[2:] - times[:-2]
    line = values[:-2] + (before / length)[:, None] * (values[2:] - values[:-2])
    keep = np.ones(times.size, dtype=bool)
    keep[1:-1] = np.any(np.abs(values[1:-1] - line) > least, axis=1) \
        | (before == 0.0) | (np.diff(times)[1:] == 0.0)
    return times[keep], values[keep]


def _table(path, found: list[_Echo]) -> Acquisition:
    """Rows of the measurements; shapes that differ by rounding are one waveform."""
    known: list[tuple[_Echo, np.ndarray, Waveform]] = []
    b, vectors, index = np.zeros(len(found)), np.zeros((len(found), 3)), np.full(len(found), -1)
    echoes: list[float] = []
    for row, echo in enumerate(found):
        time = next((t for t in echoes if abs(t - echo.time) <= _SAME_ECHO), echo.time)
        echoes.append(time)
        echo = replace(echo, times=np.append(echo.times[:-1], time))
        if not np.any(echo.values):
            continue
        peak, shape, vectors[row] = along_a_line(gradient_from_hertz(echo.refocused()),
                                                 _SAME_SHAPE)
        for k, (other, its_shape, _) in enumerate(known):
            if its_shape.shape == shape.shape and np.array_equal(other.times, echo.times) and \
                    (other.refocusing, other.storage) == (echo.refocusing, echo.storage) and \
                    np.max(np.abs(its_shape - shape)) <= _SAME_SHAPE:
                index[row] = k
                break
        else:
            kind: Any = Sampled if shape.ndim == 1 else SampledGradient
            index[row] = len(known)
            known.append((echo, shape, kind(echo.times, _physical(echo, shape), echo.refocusing,
                                            None, echo.storage)))
        b[row] = b_of_gradient(known[index[row]][2], peak)
    for row in np.flatnonzero(index < 0):
        fits = [k for k, (echo, _, waveform) in enumerate(known)
                if waveform.echo_time == echoes[row] and echo.storage == found[row].storage]
        if not fits:
            raise InputError(f"{path}: row {row}: no gradient, and no other row has TE "
                             f"{echoes[row]:g} ms")
        index[row] = fits[0]
    return Acquisition(b, vectors, index, tuple(waveform for *_, waveform in known))


def _physical(echo: _Echo, shape: np.ndarray) -> np.ndarray:
    """The shape without the signs of refocusing pulses."""
    second = np.append(False, np.diff(echo.times) == 0.0)  # of the two samples of a jump
    pulses = np.array(echo.refocusing)
    before = np.searchsorted(pulses, echo.times, side="left")
    count = np.where(second, np.searchsorted(pulses, echo.times, side="right"), before)
    return (shape.T * (-1.0) ** count).T
