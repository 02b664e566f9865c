"""Reconstructions as data: the presets are lists of stages."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from .facets.stage import Adam, GaussNewton, Stage
from .shapes.stage import Shapes


def default() -> list[Stage | Shapes]:
    """The search for shapes."""
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
    """The published schedule (arXiv 2603.04638): 200 Adam steps on each of two sequences."""
    common: dict[str, Any] = dict(control="squashed", optimiser=Adam(), iterations=200)
    return [Stage("10/60", sequences=(0,), **common,
                  priors={"continuity": 2.0, "manifold": (0.0, 1.0)}),
            Stage("10/20", sequences=(1,), **common,
                  priors={"continuity": 2.0, "manifold": (1.0, 2.0)})]


def walls() -> list[Stage | Shapes]:
    """The search for shapes, then walls that differ from place to place if they must.

    From a smooth wall to one that the data alone tell, each only where the one before does not
    explain the data: 1e-6 is the error of the model, and without noise the last one goes further.
    """
    def stage(name, smoothness, skip_below):
        return Stage(name, iterations=20, facets="walls", optimiser=GaussNewton(),
                     priors={"smoothness": smoothness}, skip_below=skip_below)
    return [Shapes(), stage("walls", 1e-2, 1e-6), stage("walls, less smooth", 1e-5, 1e-10)]


PRESETS = {"default": default, "fast": fast, "walls": walls, "facets": facets,
           "published": published}


def preset(name: str) -> list[Stage | Shapes]:
    """The stages of a preset.

    Raises:
        InputError: no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"stages: {name!r}, expected one of {', '.join(PRESETS)} or a list of "
                         "stages")
    return PRESETS[name]()
