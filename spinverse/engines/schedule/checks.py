"""What both engines ask of an acquisition."""

from __future__ import annotations

import numpy as np

from ...acquisition.table import Acquisition
from ...errors import InputError
from ...mesh.distributed import Mesh


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
