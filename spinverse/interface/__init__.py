"""From permeabilities to membranes: extraction, metrics against a known truth, export."""

from .export import read_permeability, write_permeability, write_stl, write_vtu
from .extraction import Compartments, automatic_cut, by_threshold, compartments
from .metrics import edge_defects, metrics

__all__ = [
    "Compartments", "automatic_cut", "by_threshold", "compartments", "edge_defects", "metrics",
    "read_permeability", "write_permeability", "write_stl", "write_vtu",
]
