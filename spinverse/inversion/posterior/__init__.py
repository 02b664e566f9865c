"""What the data say, and what they do not: a posterior over shapes and numbers.

    prior         of shapes and numbers, in one formula
    moves         proposals with their ratios
    emulator      a cheap stand-in for the model, that proposes
    sampler       chains: temperatures, a reservoir of the prior, decisions by the fast model
    diagnostics   R-hat and effective samples
    result        probabilities, intervals, shapes, files
    run           chains on all ranks, resumable
"""

from .prior import ShapePrior
from .result import Posterior
from .run import Sampling, posterior

__all__ = ["Posterior", "Sampling", "ShapePrior", "posterior"]
