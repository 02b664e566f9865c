"""What is probably in another unit than its key says: values off by a factor of 1000.

None is an error: all can be meant. Messages say values in SI units too, and the likely other unit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .. import units
from ..acquisition import Acquisition
from .tissue import KnownTissue, TissueSection

DIFFUSIVITY = 0.01, 20.0  # um^2/ms, of anything that MRI sees
RELAXATION = 1.0, 1e4  # ms
MEMBRANE = 5e-5, 10.0  # um/ms, the second excluded
EDGES = 20.0  # of a mesh, in lengths that magnetisation diffuses


def of_tissue(tissue: KnownTissue) -> list[str]:
    """Warnings about diffusivity, T2, T1 and permeability."""
    found = []
    for value in _values(tissue.diffusivity_um2_per_ms):
        size = float(np.abs(np.linalg.eigvals(np.atleast_2d(value))).max())
        if 0 < size < DIFFUSIVITY[0] or size > DIFFUSIVITY[1]:
            said = (f"tissue.diffusivity_um2_per_ms: {size:g} um^2/ms is "
                    f"{units.diffusivity_from_internal(size):g} m^2/s")
            meant = {"m^2/s": 1e9, "mm^2/s": 1e3, "um^2/s": 1e-3}
            found.append(f"{said}; water has 2 to 3 um^2/ms"
                         + units.other_unit(size, meant, DIFFUSIVITY))
    for name, value in [(key, each) for key in ("T2_ms", "T1_ms")
                        for each in _values(getattr(tissue, key))]:
        if 0 < value < RELAXATION[0] or RELAXATION[1] < value < np.inf:
            found.append(f"tissue.{name}: {value:g} ms is {units.time_from_internal(value):g} s; "
                         "tissue has 10 to 3000 ms"
                         + units.other_unit(value, {"s": 1e3, "us": 1e-3}, RELAXATION))
    if not isinstance(tissue, TissueSection):
        return found
    section = tissue.permeability
    key = "membrane_m_per_s" if section.membrane_m_per_s is not None else "membrane_um_per_ms"
    for value in _values(section.value("membrane", None)):
        if value is not None and (0 < value < MEMBRANE[0] or MEMBRANE[1] <= value < np.inf):
            meant = {"um/ms": 1e-3} if key == "membrane_m_per_s" else {"m/s": 1e3}
            found.append(f"tissue.permeability.{key}: {value:g} um/ms is "
                         f"{units.permeability_from_internal(value):g} m/s; membranes of cells "
                         f"have 1e-7 to 1e-3 m/s{units.other_unit(value, meant, MEMBRANE)}")
    return found


def of_mesh(edge: float, tissue: KnownTissue, acquisition: Acquisition) -> list[str]:
    """A warning about a mesh whose median ``edge``, um, is too coarse to be in um."""
    D = max(float(np.max(np.abs(value))) for value in _values(tissue.diffusivity_um2_per_ms))
    longest = max(waveform.echo_time for waveform in acquisition.waveforms)
    length = float(np.sqrt(2 * D * longest))
    if 0 < EDGES * length < edge:
        return [f"mesh: edges of {edge:.3g} um, that is {units.length_from_internal(edge):.3g} m, "
                f"where magnetisation diffuses {length:.3g} um in {longest:g} ms (a mesh in nm?)"]
    return []


def _values(given) -> list:
    return list(given.values()) if isinstance(given, Mapping) else [given]
