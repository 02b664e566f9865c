"""Run files: YAML into checked, frozen models. Every key that has a unit says it.

Checked here is what one file can tell: keys, kinds, units, choices. What the numbers mean is
checked by the rooms that use them. Paths are relative to the folder of the run file.
"""

from .acquisition import AcquisitionSection, read_table
from .mesh import BUILDERS, MeshSection
from .physics import ExtraTermsSection
from .reading import read
from .runs import VERSION, InterfaceSection, ReconstructConfig, SimulateConfig
from .tissue import KnownTissue, PermeabilitySection, TissueSection

__all__ = [
    "BUILDERS", "VERSION", "AcquisitionSection", "ExtraTermsSection", "InterfaceSection",
    "KnownTissue", "MeshSection", "PermeabilitySection", "ReconstructConfig", "SimulateConfig",
    "TissueSection", "read", "read_table",
]
