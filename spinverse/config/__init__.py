"""Run files: YAML into checked, frozen models. Every key that has a unit says it.

Checked here is what one file can tell: keys, kinds, units, choices. What the numbers mean is
checked by the rooms that use them. Paths are relative to the folder of the run file.
"""

from .acquisition import AcquisitionSection, read_table
from .mesh import BUILDERS, MeshSection
from .physics import ExtraTermsSection, UnknownSection
from .quantities import QUANTITIES
from .reading import read
from .runs import (
    VERSION,
    CheckpointSection,
    InterfaceSection,
    ReconstructConfig,
    SignalsSection,
    SimulateConfig,
)
from .stages import StageSection
from .tissue import KnownTissue, PermeabilitySection, TissueSection, UnknownTissue

__all__ = [
    "BUILDERS", "QUANTITIES", "VERSION", "AcquisitionSection", "CheckpointSection",
    "ExtraTermsSection", "InterfaceSection", "KnownTissue", "MeshSection", "PermeabilitySection",
    "ReconstructConfig", "SignalsSection", "SimulateConfig", "StageSection", "TissueSection",
    "UnknownSection", "UnknownTissue", "read", "read_table",
]
