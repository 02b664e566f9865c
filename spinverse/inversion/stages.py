"""A reconstruction as data: a list of stages, each with its measurements, priors and optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..acquisition import Acquisition
from ..errors import InputError
from ..mesh.distributed import Mesh
from .controls import CONTROLS
from .priors import PRIORS
from .shapes.task import check_task


@dataclass(frozen=True)
class TAO:
    """A bounded optimiser of PETSc/TAO through pyadjoint.

    Attributes:
        type: TAO's name: "bqnls", "blmvm", "bncg", ...
        options: further PETSc options, without the prefix.
    """

    type: str = "blmvm"
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015) as the published method runs it (DESIGN section 9).

    Attributes:
        learning_rate: of a cycle, after its warm-up.
        warm_up: steps over which the rate rises.
        cycle: steps after which the schedule starts anew.
        final: factor that the cosine decay ends at.
        clip: largest gradient norm.
    """

    learning_rate: float = 0.6
    warm_up: int = 50
    cycle: int = 200
    final: float = 0.1
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        place = step % self.cycle
        if place < self.warm_up:
            return self.learning_rate * (place + 1) / self.warm_up
        share = (place - self.warm_up) / max(1, self.cycle - self.warm_up)
        return self.learning_rate * (self.final + (1 - self.final)
                                     * 0.5 * (1 + np.cos(np.pi * share)))


@dataclass(frozen=True)
class GaussNewton:
    """Levenberg-Marquardt with bounds and the whole Jacobian (`spinverse.inversion.gauss_newton`).

    For the end of a reconstruction: far from the solution it moves too many facets at once.

    Attributes:
        damping: mu at first, in units of the largest diagonal entry of the Gauss-Newton matrix.
        least_damping: mu never gets smaller than this, in the same units.
        tries: steps that are refused, mu growing from one to the next, before the stage ends.
        longest_step: largest change of any facet's control in one iteration.
        tolerance: the stage ends when the norm of the projected gradient is smaller.
        least_gain: or when two iterations running lower the loss by less than this share of it.
    """

    damping: float = 1e-2
    least_damping: float = 1e-12
    tries: int = 12
    longest_step: float = 1.0
    tolerance: float = 1e-9
    least_gain: float = 1e-3


@dataclass(frozen=True)
class Stage:
    """One stage of a reconstruction.

    Attributes:
        name: for the history.
        iterations: at most so many.
        sequences: "all", or which ones, counted from the longest diffusion time: ``(0,)``.
        b_max: leave out larger b-values, s/mm^2.
        every: look at every n-th direction only.
        weights: weight of each sequence, from the longest; 1 where nothing is said.
        control: "log" (bounded) or "squashed" (the published one).
        priors: weight of each prior, or (first, last) of a linear ramp over the stage.
        optimiser: `TAO`, `Adam` or `GaussNewton`.
        misfit_weight: what the misfit is multiplied by in the loss.
        stop_at: stop when the data misfit (mean square) falls below.
        restart: um/ms; start anew from this uniform permeability, and go on with the result only
            if it fits this stage's measurements better than what there was.
        skip_below: leave a stage that restarts out when what there is fits better than this.
        patience: a TAO stage ends when the loss has not fallen by 1 % over so many iterations.
    """

    name: str
    iterations: int = 50
    sequences: str | tuple[int, ...] = "all"
    b_max: float = np.inf
    every: int = 1
    weights: tuple[float, ...] = ()
    control: str = "log"
    priors: dict = field(default_factory=dict)
    optimiser: TAO | Adam | GaussNewton = field(default_factory=TAO)
    misfit_weight: float = 100.0
    stop_at: float = 0.0
    restart: float | None = None
    skip_below: float = 0.0
    patience: int = 20

    def __post_init__(self):
        if self.control not in CONTROLS:
            raise InputError(f"stage {self.name!r}: control {self.control!r}, "
                             f"expected one of {', '.join(CONTROLS)}")
        for name in self.priors:
            if name not in PRIORS:
                raise InputError(f"stage {self.name!r}: prior {name!r}, "
                                 f"expected one of {', '.join(PRIORS)}")
        if self.every < 1:
            raise InputError(f"stage {self.name!r}: every {self.every}, expected at least 1")
        if self.iterations < 1:
            raise InputError(f"stage {self.name!r}: iterations {self.iterations}, "
                             "expected at least 1")

    def rows(self, acquisition: Acquisition) -> np.ndarray:
        """Rows of the table that this stage looks at, ``(n,)``."""
        rank = sequence_ranks(acquisition)
        chosen = acquisition.b <= self.b_max
        if self.sequences != "all":
            count = len(acquisition.waveforms)
            # a table with fewer sequences than the preset knows: the shortest stands in
            wanted = {min(int(number), count - 1) for number in self.sequences}
            chosen &= np.isin(rank[acquisition.waveform_index], sorted(wanted))
        _, direction = np.unique(acquisition.directions, axis=0, return_inverse=True)
        chosen &= (direction.ravel() % self.every == 0) | (acquisition.b == 0)
        if not (chosen & (acquisition.b > 0)).any():
            raise InputError(f"stage {self.name!r}: sequences {self.sequences!r} up to b = "
                             f"{self.b_max:g} s/mm^2 choose no measurement with b > 0")
        for waveform in np.unique(acquisition.waveform_index[chosen]):
            chosen[acquisition.reference_rows(waveform)] = True
        return np.flatnonzero(chosen)

    def row_weights(self, acquisition: Acquisition) -> np.ndarray:
        """Weight of every row of the (whole) table, ``(N,)``."""
        rank = sequence_ranks(acquisition)[acquisition.waveform_index]
        weights = np.ones(len(acquisition.waveforms))
        weights[: len(self.weights)] = self.weights[: len(weights)]
        return weights[rank]

    def prior_weights(self, iteration: int) -> dict[str, float]:
        """Weight of each prior at an iteration of this stage."""
        share = min(1.0, iteration / max(1, self.iterations - 1))
        return {name: float(np.interp(share, [0, 1], np.broadcast_to(weight, 2)))
                for name, weight in self.priors.items()}


@dataclass(frozen=True)
class Shapes:
    """A search for the shapes of cells: see `spinverse.inversion.shapes`.

    It finds which mesh cells lie inside; every interface is closed by construction. Walls have
    the lowest permeability of the range, all other facets the highest. For meshes of up to a few
    thousand cells, and pairs of rectangular pulses.

    Attributes:
        name: for the history.
        cells: at most so many cells, which may touch or contain each other: 1 or 2. A second one
            is looked for where one does not explain the data.
        ellipsoids: random ones to begin with in every round.
        candidates: of these, the best distinct ones are followed up.
        rounds: at most so many; a round has six parts that begin with new ellipsoids.
        budget: shapes that may be looked at, about 30 ms of one core each (absorbing; reflecting
            ones count 2.5). The search ends with the best one so far after some more.
        stop_at: mean-square misfit that ends the search where there is no noise.
        noise: standard deviation of the normalised magnitudes; None: from measurements that were
            repeated (as b = 0 usually is), else 0.
        seed: of all that is random.
    """

    name: str = "shapes"
    cells: int = 2
    ellipsoids: int = 400
    candidates: int = 6
    rounds: int = 3
    budget: int = 40_000
    stop_at: float = 1e-7
    noise: float | None = None
    seed: int = 0

    def __post_init__(self):
        for name, least, most in (("cells", 1, 2), ("ellipsoids", 1, np.inf),
                                  ("candidates", 1, np.inf), ("rounds", 1, np.inf),
                                  ("budget", 1, np.inf), ("seed", 0, np.inf)):
            value = getattr(self, name)
            if not least <= value <= most:
                expected = f"from {least} to {most}" if most < np.inf else f"at least {least}"
                raise InputError(f"stage {self.name!r}: {name} {value}, expected {expected}")

    @property
    def iterations(self) -> int:
        """About so many reports, for a progress bar."""
        return self.candidates * 8


def sequence_ranks(acquisition: Acquisition) -> np.ndarray:
    """Rank of each waveform by diffusion time, 0 the longest."""
    times = np.array([waveform.diffusion_time for waveform in acquisition.waveforms])
    ranks = np.empty(len(times), dtype=int)
    ranks[np.argsort(-times, kind="stable")] = np.arange(len(times))
    return ranks


def default() -> list[Stage | Shapes]:
    """The search for shapes. `facets` where that cannot run: see `preset`."""
    return [Shapes()]


def fast() -> list[Stage | Shapes]:
    """The search for shapes with less patience, and for a single cell."""
    return [Shapes(cells=1, ellipsoids=200, candidates=3, budget=10_000)]


def facets() -> list[Stage | Shapes]:
    """Search, long diffusion times first; a second start if that did not fit; then converge.

    A cell that closes in the wrong place does not open again. Sign-normalised steps (Adam) and
    bounded quasi-Newton steps (TAO) take different ways from the same start; the data misfit
    tells which one was right long before it has converged. Both look at a third of the directions.
    """
    def search(name, rate, sequences):
        return Stage(name, iterations=50, sequences=sequences, every=3, control="squashed",
                     optimiser=Adam(rate, warm_up=10, cycle=50))
    return [search("long", 0.6, (0,)), search("long+middle", 0.4, (0, 1)),
            Stage("second start", iterations=45, every=3, restart=1.0, skip_below=2e-4,
                  stop_at=1e-5),
            Stage("all", iterations=150, stop_at=3e-7, patience=12)]


def published() -> list[Stage | Shapes]:
    """The published schedule: 200 Adam steps on the longest sequence, 200 on the second."""
    common: dict[str, Any] = dict(control="squashed", optimiser=Adam(), iterations=200)
    return [Stage("10/60", sequences=(0,), **common,
                  priors={"continuity": 2.0, "manifold": (0.0, 1.0)}),
            Stage("10/20", sequences=(1,), **common,
                  priors={"continuity": 2.0, "manifold": (1.0, 2.0)})]


PRESETS = {"default": default, "fast": fast, "facets": facets, "published": published}


def preset(name: str, mesh: Mesh | None = None,
           acquisition: Acquisition | None = None) -> list[Stage | Shapes]:
    """The stages of a preset; `facets` instead of a search that a mesh or waveforms do not allow.

    Raises:
        InputError: no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"stages: {name!r}, expected one of {', '.join(PRESETS)} or a list of "
                         "stages")
    found = PRESETS[name]()
    if any(isinstance(stage, Shapes) for stage in found) and mesh is not None \
            and acquisition is not None:
        try:
            check_task(mesh, acquisition)
        except InputError:
            return facets()
    return found
