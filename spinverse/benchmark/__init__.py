"""Reconstructions of targets whose membrane is known, as one table."""

from .measured import ACQUISITIONS, add_noise
from .runs import Bench, Case, Data
from .targets import OWN, Target, grid, on_grid, own

__all__ = ["ACQUISITIONS", "OWN", "Bench", "Case", "Data", "Target", "add_noise", "grid",
           "on_grid", "own"]
