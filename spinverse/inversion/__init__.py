"""Reconstruction: controls, misfit, priors, stages, optimisers."""

from . import stages
from .reconstruct import Progress, Reconstruction, reconstruct
from .stages import TAO, Adam, Stage

__all__ = ["TAO", "Adam", "Progress", "Reconstruction", "Stage", "reconstruct", "stages"]
