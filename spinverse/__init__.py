"""spinverse: diffusion MRI signals from permeable membranes, and membranes from signals."""

# isort: skip_file
# ruff: noqa: E402
from ._stack import load_stack_or_end

load_stack_or_end()  # the DOLFINx wheel must come first

__version__ = "0.1.0"

from . import acquisition, mesh, units
from .acquisition import Acquisition, Signals
from .errors import InputError, SolverError, SpinverseError, StackError
from .mesh import Mesh
from .problem import BlochTorrey
from .inversion import (
    InverseProblem, Posterior, Reconstruction, Sampling, ShapePrior, Shapes, Stage, Unknown,
    posterior, reconstruct, stages)
from .simulate import simulate
from .tissue import Permeability, Tissue
from . import quantities

__all__ = [
    "Acquisition", "BlochTorrey", "InputError", "InverseProblem", "Mesh", "Permeability", "Signals",
    "Posterior", "SolverError", "Reconstruction", "Sampling", "ShapePrior", "Shapes",
    "SpinverseError", "StackError", "Stage", "Tissue", "Unknown", "acquisition", "mesh",
    "posterior", "quantities", "reconstruct", "simulate", "stages", "units",
]
