"""From signals to membranes.

    problem       the inverse problem as one value: what is known and unknown, what was measured
    likelihood    the one quotient rule and the one noise model
    parameters    unknown numbers beside the membranes
    ledger        what stages hand on, and what a run writes down
    facets        stages that look for the permeability of every facet: controls, priors, optimisers
    shapes        the search for which mesh cells lie inside: hypotheses, models, strategies
    stages        the presets
    reconstruct   runs stages one after the other
    posterior     samples of shapes and numbers: what the data say, and what they do not
    verdict       whether the data are explained, in words
    uncertainty   what the signals say about each facet
"""

from . import stages
from .facets.stage import TAO, Adam, GaussNewton, Stage
from .ledger import Ledger, Progress, Saver, State
from .parameters import Unknown
from .posterior import Posterior, Sampling, ShapePrior, posterior
from .problem import InverseProblem
from .reconstruct import Reconstruction, reconstruct
from .shapes.stage import Shapes
from .verdict import Verdict

__all__ = ["TAO", "Adam", "GaussNewton", "InverseProblem", "Ledger", "Posterior", "Progress",
           "Reconstruction", "Sampling", "Saver", "ShapePrior", "Shapes", "Stage", "State",
           "Unknown", "Verdict", "posterior", "reconstruct", "stages"]
