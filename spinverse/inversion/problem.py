"""The inverse problem as one value: what is known, what is unknown, what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..acquisition import Acquisition, Signals
from ..engines.shapes.walls import Walls
from ..errors import InputError
from ..glued import glued
from ..mesh.distributed import Mesh
from ..problem import BlochTorrey
from ..simulate import DIRECTION_BASES, ENGINES, make_engine
from ..tissue import Permeability, Tissue
from . import parameters
from .ledger import State
from .likelihood import NOISES, Likelihood, Scale
from .parameters import NOISE, RATIO, SCALE, Theta

PERMEABILITIES = 0.01, 100.0  # um/ms, of facets, where nothing is said
BOUNDARIES = ("reflecting", "absorbing", "periodic")
NORMALISATIONS = ("auto", "measured", "own")
FEWEST_MODES, CELLS_PER_MODE = 96, 4  # in stages: enough for gradients, see docs/performance.md


@dataclass(frozen=True, eq=False)
class InverseProblem:
    """Membranes from signals: everything that stages, search and uncertainty ask.

    Args:
        mesh: the mesh; what it knows of a true membrane is not looked at.
        signals: the measurements; magnitudes normalised by |S(b = 0)| of the same sequence count.
        diffusivity, T2, T1, density, interface: as in `Tissue`; they are known.
        boundary: "absorbing": outer facets are unknown too; "reflecting": they are closed;
            "periodic": opposite faces of the box are one (`spinverse.glued`), and `mesh` becomes
            the mesh of the torus, whose facets there are as all others.
        permeability_range: smallest and largest permeability of facets, um/ms; (0.01, 100) if
            None. In a search all facets that are no walls have the last.
        wall_permeability: of walls in a search, um/ms, where it is known. None: unknown, or the
            first of ``permeability_range`` where that is said.
        normalisation: what a predicted |S| is divided by: "measured", the measured |S(b = 0)| of
            the same sequence, when signals are in um^3 times density as `simulate` gives them;
            "own", the predicted one, when they are in arbitrary units; "auto": "measured" if the
            signals say that they come from a simulation (`Signals.unit`), else "own". Where
            "scale" is among the unknown numbers, signals are in arbitrary units with one factor
            for all of them, which keeps what T2 does between sequences.
        noise: standard deviation of the normalised magnitudes; None: from measurements that were
            repeated (as b = 0 usually is), else 0; "unknown" as "noise" among the unknown numbers:
            from these, or from smooth fits of the directions, and less where a search finds less.
        noise_model: "rician" (magnitudes of complex signals) or "gaussian".
        extra_terms, extra_coefficients, extra_breakpoints: a term of your own, as in `simulate`.
        unknown: `Unknown` numbers by name, or names alone (ranges are usual ones then), found by
            the search for shapes and by stages of facets: of `parameters.KINDS`, or among
            ``extra_coefficients``. Stages of facets hold the density ratio.
        sigma: of noise that is unknown, as a search has found it; None: not yet.
        engine: "matrix_formalism" or "time_stepping".
        modes: of the matrix formalism during stages of facets, made of responses of the start;
            "auto": a quarter of the number of cells. While walls are half closed everywhere, short
            pulses would need many more for exact signals.
        tolerance: of the final signals, which have as many modes as that needs.
        time_step: ms, of time stepping.

    Raises:
        InputError: naming the argument, its value and what was expected.
    """

    mesh: Mesh
    signals: Signals
    diffusivity: float | Mapping | np.ndarray = 2.0
    T2: float | Mapping | np.ndarray = np.inf
    density: float | Mapping | np.ndarray = 1.0
    interface: str = "equilibrium"
    boundary: str = "reflecting"
    permeability_range: tuple[float, float] | None = None
    wall_permeability: float | None = None
    normalisation: str = "auto"
    noise: Any = None
    noise_model: str = "rician"
    extra_terms: Callable | None = None
    extra_coefficients: Mapping | None = None
    extra_breakpoints: Sequence[float] = ()
    unknown: Any = ()  # names, or `Unknown` by name, which it is once made
    sigma: float | None = None
    engine: str = "matrix_formalism"
    modes: int | str = "auto"
    tolerance: float = 1e-5
    time_step: float | str = 0.25
    T1: float | Mapping | np.ndarray = np.inf

    def __post_init__(self):
        for name, known in (("boundary", BOUNDARIES), ("normalisation", NORMALISATIONS),
                            ("noise_model", NOISES), ("engine", ENGINES)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: {getattr(self, name)!r}, expected one of "
                                 f"{', '.join(known)}")
        if self.boundary == "periodic" and self.mesh.glued != "xyz":
            object.__setattr__(self, "mesh", glued(self.mesh))
        if self.mesh.glued and self.boundary != "periodic":
            raise InputError(f"boundary: {self.boundary!r} on a mesh whose faces are glued, "
                             "expected periodic")
        unknown = parameters.checked(
            self.unknown, {"diffusivity": self.diffusivity, "T2": self.T2, RATIO: self.density},
            self.extra_coefficients or {})
        if self.noise == "unknown":
            unknown.setdefault(NOISE, parameters.KINDS[NOISE].usual)
        elif self.noise is not None and NOISE in unknown:
            raise InputError(f"noise: {self.noise!r} is said, and it is among the unknown numbers; "
                             "expected one of them")
        elif not (self.noise is None or isinstance(self.noise, int | float)
                  and 0 <= self.noise < np.inf):
            raise InputError(f"noise: {self.noise!r}, expected a standard deviation of normalised "
                             "magnitudes, 'unknown', or None")
        if SCALE in unknown and self.normalisation != "auto":
            raise InputError(f"normalisation: {self.normalisation!r}, and scale is among the "
                             "unknown numbers; expected 'auto' with it")
        if RATIO in unknown and self.interface != "equilibrium":
            raise InputError(f"interface: {self.interface!r}, and density_ratio is among the "
                             "unknown numbers; expected 'equilibrium' with it")
        wall = self.wall_permeability
        if wall is not None and not 0 < wall < np.inf:
            raise InputError(f"wall_permeability: {wall!r}, expected a positive number, um/ms")
        if wall is not None and "wall_permeability" in unknown:
            raise InputError(f"wall_permeability: {wall:g} is said, and it is among the unknown "
                             "numbers; expected one of them")
        if wall is None and self.permeability_range is None:
            unknown.setdefault("wall_permeability", parameters.KINDS["wall_permeability"].usual)
        object.__setattr__(self, "permeability_range", self.permeability_range or PERMEABILITIES)
        object.__setattr__(self, "unknown", unknown)
        low, high = self.permeability_range
        if not 0 < low < high < np.inf:
            raise InputError(f"permeability_range: {self.permeability_range}, "
                             "expected 0 < low < high, um/ms")
        if not self.own and self.unit is None:
            densest = max(1.0, unknown[RATIO].high) if RATIO in unknown else 1.0
            check_amount(self.likelihood.scale, self.tissue, densest)

    # ---- what is known --------------------------------------------------------------------------

    @property
    def comm(self):
        return self.mesh.comm

    @property
    def acquisition(self) -> Acquisition:
        return self.signals.acquisition

    @property
    def absorbing(self) -> bool:
        return self.boundary == "absorbing"

    @property
    def periodic(self) -> bool:
        return self.boundary == "periodic"

    @property
    def own(self) -> bool:
        """Whether predicted signals are normalised by themselves."""
        return self.normalisation == "own" or (
            self.normalisation == "auto" and not self.signals.unit and self.unit is None)

    @property
    def unit(self) -> Scale | None:
        """What is known of the factor of signals in arbitrary units; None where none is fitted."""
        given = self.unknown.get(SCALE)
        return None if given is None else Scale(given.low, given.high, given.start,
                                                given.relative_deviation)

    @cached_property
    def likelihood(self) -> Likelihood:
        """Of all measurements."""
        if self.sigma is None:
            return self.first_likelihood
        return replace(self.first_likelihood, sigma=self.sigma, origin="what the search leaves")

    @cached_property
    def first_likelihood(self) -> Likelihood:
        """With the noise as it is known before a search."""
        unknown = self.unknown.get(NOISE)
        made = Likelihood.of(self.signals, self.own, None if unknown else self.noise,
                             self.noise_model == "rician", self.unit)
        return made if unknown is None else made.estimated(self.signals, unknown)

    @property
    def walls(self) -> Walls:
        """Permeabilities that a partition of the cells gives to the facets."""
        low, high = self.permeability_range
        return Walls(self.wall_permeability or low, high, self.absorbing)

    @cached_property
    def unknown_facets(self) -> np.ndarray:
        """Owned facets whose permeability is looked for, ``(nf,)`` bool."""
        return np.ones(self.mesh.num_owned_facets, bool) if self.absorbing else ~self.mesh.outer

    @cached_property
    def start_of_unknown(self) -> dict[str, float]:
        """Starts of the unknown numbers, by name."""
        return {name: unknown.start for name, unknown in
                parameters.of_theta(self.unknown).items()}

    def state(self, permeability) -> State:
        """To start from: a permeability, um/ms, a number or ``(nf,)``, and starts of theta."""
        return State(self.permeability(permeability).values, None, self.start_of_unknown)

    def with_noise_of(self, theta: Theta) -> InverseProblem:
        """With the noise that a search has found, where it was unknown."""
        sigma: Any = theta.get(NOISE, self.sigma)
        return self if sigma == self.sigma else replace(self, sigma=sigma)

    # ---- the forward problem --------------------------------------------------------------------

    @cached_property
    def tissue(self) -> Tissue:
        """What is known of the tissue; its permeability does not matter."""
        return Tissue(self.mesh, self.diffusivity, self.T2, self.density, self.permeability(1.0),
                      self.interface, T1=self.T1)

    def permeability(self, values) -> Permeability:
        """Within the range on facets that are unknown, closed elsewhere; ``(nf,)`` or a number."""
        kappa = np.clip(np.broadcast_to(values, self.unknown_facets.shape),
                        *self.permeability_range)
        return Permeability(self.mesh, np.where(self.unknown_facets, kappa, 0.0))

    def forward(self, permeability: np.ndarray, theta: Theta | None = None,
                labels: np.ndarray | int = 0) -> BlochTorrey:
        """The discrete problem at a permeability ``(nf,)`` um/ms. Collective.

        Args:
            permeability: of the owned facets.
            theta: values of unknown numbers; their starts if not given.
            labels: of the owned cells, where numbers differ between inside and outside.
        """
        theta = {**self.start_of_unknown, **(theta or {})}
        own = self.extra_coefficients or {}
        made = BlochTorrey(self.tissue.with_permeability(permeability),
                           extra_terms=self.extra_terms,
                           extra_coefficients={**own, **{k: theta[k] for k in theta if k in own}},
                           extra_breakpoints=self.extra_breakpoints, densities=RATIO in theta)
        parameters.apply(theta, made, self.walls, 0 if labels is None else labels)
        return made

    def stage_engine(self, problem: BlochTorrey, acquisition: Acquisition):
        """The engine of a stage of facets. Collective."""
        modes = self.modes
        if modes == "auto":
            modes = max(FEWEST_MODES, self.mesh.num_cells // CELLS_PER_MODE)
        return make_engine(problem, acquisition, self.engine, modes, self.tolerance,
                           self.time_step, "responses")

    def final_engine(self, problem: BlochTorrey):
        """The engine of the final signals. Collective."""
        if self.periodic and self.engine == "matrix_formalism":
            try:
                return make_engine(problem, self.acquisition, DIRECTION_BASES)
            except InputError:  # it does not know their waveforms, say
                pass
        return make_engine(problem, self.acquisition, self.engine, self.modes, self.tolerance,
                           self.time_step)


def check_amount(scale: np.ndarray, tissue: Tissue, densest: float = 1.0) -> None:
    """|S(b = 0)| cannot exceed what was there, and some is hardly a thousandth of it. Collective.

    The sequence that keeps most tells: through an absorbing boundary long ones lose nearly all.

    Args:
        scale: the measured |S(b = 0)|, ``(N,)``.
        tissue: with the density; its permeability does not matter.
        densest: of what there may be, over this density.

    Raises:
        InputError: the signals are in other units.
    """
    mesh, owned = tissue.mesh, slice(0, tissue.mesh.num_owned_cells)
    amount = mesh.comm.allreduce(float(tissue.density[owned] @ mesh.cell_volumes[owned]))
    most = float(scale.max())
    if not 1e-3 * amount <= most <= 1.05 * densest * amount:
        raise InputError(f"signals: |S(b = 0)| is {most:.4g}, but the mesh holds {amount:.4g} "
                         "um^3 times density; expected signals in these units, or "
                         "normalisation: own")
