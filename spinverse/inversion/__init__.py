"""Reconstruction: controls, misfit, priors, stages, optimisers."""

from . import stages
from .reconstruct import Progress, Reconstruction, reconstruct
from .stages import TAO, Adam, GaussNewton, Shapes, Stage

__all__ = ["TAO", "Adam", "GaussNewton", "Progress", "Reconstruction", "Shapes", "Stage",
           "reconstruct", "stages"]
