"""From permeabilities to membranes: extraction, metrics against a known truth, export."""

from .export import (
    read_permeability,
    write_cells,
    write_compartment,
    write_permeability,
    write_ply,
    write_stl,
    write_surfaces,
    write_vtu,
)
from .extraction import Compartments, automatic_cut, by_threshold, compartments
from .magnetisation import magnetisation, write_magnetisation
from .metrics import metrics
from .surfaces import edge_defects

__all__ = [
    "Compartments", "automatic_cut", "by_threshold", "compartments", "edge_defects",
    "magnetisation", "metrics", "read_permeability", "write_cells", "write_compartment",
    "write_magnetisation", "write_permeability", "write_ply", "write_stl", "write_surfaces",
    "write_vtu",
]
