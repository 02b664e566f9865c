"""Reconstructions of targets whose membrane is known, as one table."""

from .runs import ACQUISITIONS, Bench, Case, Data, add_noise
from .targets import OWN, Target, grid, on_grid, own

__all__ = ["ACQUISITIONS", "OWN", "Bench", "Case", "Data", "Target", "add_noise", "grid",
           "on_grid", "own"]
