"""What all strategies ask: models, mesh, places, measurements, settings."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..problem import InverseProblem
from .cells import Cells
from .ellipsoids import examples
from .look import Lifted, Look
from .models import Models
from .placements import Placements
from .settings import Settings
from .walk import Walk

_EDGE = 0.31  # of graded shapes, in sizes of a mean cell: those at the edge alone are graded


class Search:
    """A search problem; nothing in it changes but what `Models` calibrates. Collective.

    Args:
        problem: the inverse problem.
        settings: how much work.

    Attributes:
        first: the measurements that starts look at.
        few: those of the first steps of a walk.
        more: those of graded shapes.
        all: those of walks that are followed.
    """

    def __init__(self, problem: InverseProblem, settings: Settings):
        self.settings, self.models = settings, Models(problem, settings.cells)
        self.cells = Cells(self.models.whole)
        whole: Look = self.models.all
        if self.models.floor:  # noise is averaged by looking at everything
            self.first, self.more = whole.directions(settings.noisy), whole
            self.few = self.all = Lifted.learnt(whole, settings.noisy, examples(
                self.models, self.cells, settings.examples, (settings.seed, 0)))
        else:
            self.first = self.few = self.more = whole.directions(settings.few)
            self.all = whole

        if self.models.whole.periodic:
            # a box without cells tells it, before ellipsoids make up for what it does to signals
            nothing = np.zeros(len(self.models.whole.cells), np.int8)
            self.models.calibrate(nothing, self.models.start, self.first)

    @property
    def noisy(self) -> bool:
        """Whether the data have noise."""
        return self.models.floor > 0

    @cached_property
    def placements(self) -> Placements:
        return Placements(self.cells)

    @property
    def width(self) -> float:
        """Of the edges of graded shapes, um."""
        return _EDGE * self.models.size

    def scout(self, seed: tuple) -> Walk:
        """A walk that looks at few measurements."""
        return Walk(self.models, self.cells, self.few, seed)

    def told(self, walk: Walk, part: int) -> Walk:
        """A walk that looks at enough: from few directions many moves do not come apart."""
        s, here = self.settings, walk.here
        moves, look = len(self.cells.moves(here.labels)), self.all
        if walk.look is look or (not self.models.large and part < s.early and here.cells == 1
                                 and moves <= s.moves):
            return walk
        if self.models.large:  # as many rows as moves
            each = max(len(walk.look.measured) // s.few, 1)
            look = self.models.all.directions(-(-moves // each))
            look = walk.look if len(look.measured) <= len(walk.look.measured) else look
        told = Walk(self.models, self.cells, look, walk.seed)
        told.begin(here.labels, here.theta)
        return told
