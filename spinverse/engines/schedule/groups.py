"""Which measurements are propagated together, and through which pieces of their waveform."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ...acquisition.table import Acquisition
from ...errors import InputError
from ...mesh.distributed import Mesh
from .echoes import refocusing_times, split
from .storage import STORED, marked
from .waves import Wave, moves
from .waves import pieces as wave_pieces

_COLUMNS = 50  # of a batch, about


@dataclass
class Group:
    """Measurements that share their pieces of constant gradient, up to its strength.

    A piece is (duration, value, direction); `STORED` is a value too. ``fold`` is 0 when the pieces
    are the whole waveform, -1 or +1 when they are the first half of an antisymmetric or symmetric
    one. ``fields`` are the numbers of the fields (`Eigenmodes.fields`) that they are run under,
    empty without.
    """

    pieces: tuple[tuple[float, float, tuple[float, ...]], ...]
    fold: int
    rows: list[int] = field(default_factory=list)
    strength: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    fields: tuple[int, ...] = ()

    @property
    def cost(self) -> float:
        return len(self.rows) * sum(duration for duration, value, _ in self.pieces if value)


@dataclass(frozen=True, eq=False)
class Batch:
    """D groups of C measurements each that differ by their directions alone.

    A piece is (duration, value, D directions); rows and gap ``(D C,)``, group after group;
    strength ``(D, C)``.
    """

    pieces: tuple[tuple[float, float, tuple[tuple[float, ...], ...]], ...]
    fold: int
    fields: tuple[int, ...]
    rows: np.ndarray
    strength: np.ndarray
    gap: np.ndarray

    @classmethod
    def of(cls, groups: list[Group]) -> Batch:
        """The batch of groups with the same number of rows and the same pieces otherwise."""
        pieces = tuple((same[0][0], same[0][1], tuple(piece[2] for piece in same))
                       for same in zip(*(group.pieces for group in groups), strict=True))
        return cls(pieces, groups[0].fold, groups[0].fields,
                   np.concatenate([group.rows for group in groups]).astype(int),
                   np.array([group.strength for group in groups]),
                   np.concatenate([group.gap for group in groups]))


def batches(groups: Iterable[Group]) -> list[Batch]:
    """Batches of up to about `_COLUMNS` measurements, for their states to stay in the cache.

    Those under fields or along periodic axes are of one group each.
    """
    alike: dict[tuple, list[Group]] = {}
    for group in groups:
        apart = group.fields or any(isinstance(value, Wave) for _, value, _ in group.pieces)
        key = (id(group),) if apart else (
            tuple(piece[:2] for piece in group.pieces), group.fold, len(group.rows))
        alike.setdefault(key, []).append(group)
    result: list[Batch] = []
    for found in alike.values():
        parts = -(-len(found) * len(found[0].rows) // _COLUMNS)
        each = -(-len(found) // parts)
        result += [Batch.of(found[k: k + each]) for k in range(0, len(found), each)]
    return result


def check_directions(acquisition: Acquisition, mesh: Mesh) -> None:
    """Refuse gradients that a mesh in the plane or on a line has no room for."""
    for row in np.flatnonzero(acquisition.b > 0):
        waveform = acquisition.waveforms[acquisition.waveform_index[row]]
        if waveform.vector:
            times, _ = waveform.segments(max_step=waveform.echo_time / 50)
            axis = np.abs(waveform(np.cumsum(times) - 0.5 * times)).max(axis=0)
        else:
            axis = np.abs(acquisition.directions[row])
        if np.any(axis[mesh.dim:] > 1e-9):
            room = "in the xy plane" if mesh.dim == 2 else "along x"
            raise InputError(f"directions: row {row} is {acquisition.directions[row].tolist()}, "
                             f"expected a gradient {room} on a mesh of dimension {mesh.dim}")


def plan(acquisition: Acquisition, max_step: float, dim: int,
         periodic: tuple[int, ...] = (), fields: int = 0, storing: bool = True) -> list[Group]:
    """Group the rows of the table by the pieces that are to be propagated.

    Under ``fields`` of `Eigenmodes` whole waveforms; two are one for each sign of the echo. Without
    ``storing`` what is stored is at rest like all else, which is right where T1 = T2.
    """
    groups: dict[tuple, Group] = {}
    drifting: dict[int, tuple] = {}
    known = [_in_fields(waveform, max_step, fields) if fields
             else (*_fold(waveform, max_step, storing), ())
             for waveform in acquisition.waveforms]
    for row, strength in enumerate(acquisition.strength):
        k = acquisition.waveform_index[row]
        waveform = acquisition.waveforms[k]
        along = () if waveform.vector else tuple(acquisition.directions[row, :dim].tolist())
        pieces, fold, gap, numbers = known[k]
        if strength == 0 and fields:
            pieces = tuple((duration, 0.0, ()) for duration, _ in pieces)
        elif strength == 0 and storing and waveform.storage:
            fold, gap = 0, 0.0
            pieces = tuple((*piece, ()) for piece in marked(waveform, [(waveform.echo_time, 0.0)]))
        elif strength == 0:
            pieces, fold, gap = (), 0, waveform.echo_time
        elif periodic and moves(waveform, acquisition.directions[row], periodic):
            fold, gap = mirror_sign(waveform, storing), 0.0
            if k not in drifting:
                drifting[k] = wave_pieces(waveform, max_step, fold, periodic, dim, storing)
            pieces = tuple((*piece, along) for piece in drifting[k])
        elif waveform.vector:
            pieces = tuple((duration, STORED, ()) if value is STORED
                           else _unit(duration, value[:dim]) for duration, value in pieces)
        else:
            pieces = tuple((duration, value, along) for duration, value in pieces)
        if fields:
            pieces, numbers = _joined(pieces, numbers)
        group = groups.setdefault((pieces, fold, numbers), Group(pieces, fold, fields=numbers))
        group.rows.append(row)
        group.strength.append(float(strength))
        group.gap.append(float(gap))
    return list(groups.values())


def _segments(waveform, max_step: float) -> list[tuple]:
    durations, values = waveform.segments(max_step)
    return [(duration, tuple(value) if waveform.vector else value)
            for duration, value in zip(durations.tolist(), values.tolist(), strict=True)]


def _in_fields(waveform, max_step: float, fields: int) -> tuple[list, int, float, tuple]:
    """As `_fold`, of the whole waveform; and the number of the field under each piece."""
    turns = refocusing_times(waveform) if fields > 1 else ()
    pieces = split(_segments(waveform, max_step), turns)
    middles = np.cumsum([piece[0] for piece in pieces]) - [piece[0] / 2 for piece in pieces]
    return pieces, 0, 0.0, tuple(sum(turn < t for turn in turns) % 2 for t in middles)


def _joined(pieces: tuple, numbers: tuple) -> tuple[tuple, tuple]:
    """Neighbours without gradient under the same field are one."""
    result: list = []
    for (duration, value, along), number in zip(pieces, numbers, strict=True):
        if result and not value and not result[-1][0][1] and result[-1][1] == number:
            duration += result.pop()[0][0]
        result.append(((duration, value, along), number))
    return tuple(piece for piece, _ in result), tuple(number for _, number in result)


def _unit(duration: float, vector: tuple[float, ...]) -> tuple:
    """A piece of a vector waveform as (duration, value, unit direction)."""
    length = float(np.linalg.norm(vector))
    # rounded, so that equal directions are one
    unit = tuple(round(v / length, 14) + 0.0 for v in vector) if length else tuple(vector)
    return duration, length, unit


def _fold(waveform, max_step: float, storing: bool) -> tuple[tuple, int, float]:
    """Pieces to propagate, whether they are a first half (see `Group`), and the gap after them."""
    pieces, fold = _segments(waveform, max_step), mirror_sign(waveform, storing)
    if storing and waveform.storage:
        pieces = marked(waveform, pieces)
    if fold:
        middle = len(pieces) // 2
        if len(pieces) % 2 == 0:
            return tuple(pieces[:middle]), fold, 0.0
        duration, value = pieces[middle]
        if value is STORED:  # half of it is the mirror image of the other half
            return (*pieces[:middle], (duration / 2, STORED)), fold, 0.0
        if not np.any(value):
            return tuple(pieces[:middle]), fold, duration
        if fold > 0:  # half of the piece in the middle is its mirror image
            return (*pieces[:middle], (duration / 2, value)), fold, 0.0
    rests = pieces[-1][1] is not STORED and not np.any(pieces[-1][1])
    gap = pieces.pop()[0] if rests else 0.0
    return tuple(pieces), 0, gap


def mirror_sign(waveform, storing: bool = True) -> int:
    """As `_sign`; 0 where storage has no such symmetry."""
    if storing and waveform.storage:
        times = np.array(waveform.storage)
        back = waveform.echo_time - times[::-1, ::-1]
        if np.max(np.abs(times - back)) > 1e-12 * waveform.echo_time:
            return 0
    return _sign(waveform)


def _sign(waveform) -> int:
    """-1 for f(TE - t) = -f(t), +1 for f(TE - t) = f(t), else 0."""
    return -1 if waveform.antisymmetric else int(waveform.symmetric)
