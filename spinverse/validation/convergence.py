"""Orders in h and in the time step, agreement of the engines, and the automatic choices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .discretisation import Discretisation, discretisation, round_layers, stack
from .references import Case, cases
from .rows import Row
from .signals import set_up
from .solve import MATRIX_FORMALISM, TIME_STEPPING, Measurement, Settings, solve

LEAST = {1: 1.9, 2: 3.9}  # orders that pass, by degree
EXACT = 1e-10  # tolerance for modes where another error is to be seen
ALL_MODES = 10**6


def case_of(name: str) -> Case:
    """A reference case by its name."""
    return next(case for case in cases() if case.name == name)


def _measured(case: Case) -> list[Measurement]:
    return [Measurement(case.waveform, b, case.directions[0]) for b in case.b]


def fitted_order(sizes, errors) -> float:
    """Slope of log(error) over log(size), least squares."""
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def order_rows(settings: Settings) -> Iterator[Row]:
    """Errors on refined meshes and steps, and the order of their fall. Collective.

    The size of an unstructured mesh is that of its mean cell; P1 there and polygons and polyhedra
    are both of second order, P2 and curved cells of fourth.
    """
    slab, membrane = case_of("slab10_reflect_d2500_D5000"), case_of("stack2x5_k0.0001_d2500_D5000")
    disk, sphere = case_of("disk5_d2500_D5000"), case_of("sphere5_d10000_D20000")
    stacks = {1: (0.5, 0.25, 0.125, 0.0625), 2: (1.0, 0.5, 0.25, 0.125)}
    families = [(case, degree, [stack(case.lengths, size, degree) for size in stacks[degree]])
                for case in (slab, membrane) for degree in (1, 2)]
    families.append((disk, 1, [round_layers("disk", disk.lengths, size)
                               for size in (1.0, 0.5, 0.25, 0.125)]))
    families.append((sphere, 1, [round_layers("sphere", sphere.lengths, size)
                                 for size in (1.4, 1.0, 0.7, 0.5)]))
    families.append((disk, 2, [round_layers("disk", disk.lengths, size, 2)
                               for size in (2.0, 1.4, 1.0, 0.7)]))
    families.append((sphere, 2, [round_layers("sphere", sphere.lengths, size, 2)
                                 for size in (2.8, 2.0, 1.4)]))
    if settings.runs(MATRIX_FORMALISM):
        for case, degree, choices in families:
            yield _mesh_order(case, degree, choices, settings)
    if settings.runs(TIME_STEPPING):
        for case in (slab, membrane, disk):
            yield _step_order(case, settings)


def _mesh_order(case: Case, degree: int, choices: list[Discretisation], settings: Settings) -> Row:
    sizes, errors = [], []
    for choice in choices:
        problem, columns = set_up(choice, case, settings)
        modes = 1e-9 if problem.mesh.dim == 1 else {1: 1e-5, 2: 1e-6}[degree]
        solved = solve(problem, _measured(case), MATRIX_FORMALISM, modes)
        ours = solved.average([[m] for m in _measured(case)])
        sizes.append(columns["cells"] ** (-1 / problem.mesh.dim))
        errors.append(float(np.abs(np.subtract(ours, case.reference)).max()))
    at = tuple(f"h = {np.max(choice.size):g} um" for choice in choices)
    return Row("orders", f"h_P{degree}_{case.tissue}", "default", MATRIX_FORMALISM, at,
               tuple(errors), (0.0,) * len(errors), order=fitted_order(sizes, errors),
               least_order=LEAST[degree], resolution=solved.resolution, **columns)


def _step_order(case: Case, settings: Settings) -> Row:
    """Against all modes on the same mesh: the error of the steps alone."""
    choice = (stack(case.lengths, 0.5) if case.geometry == "slab"
              else round_layers("disk", case.lengths, 1.0))
    problem, columns = set_up(choice, case, settings)
    measured = _measured(case)
    exact = solve(problem, measured, MATRIX_FORMALISM, EXACT, modes=ALL_MODES)
    # the impulsive start excites every mode of the mesh: steps resolve the fastest that matter
    steps = [0.02, 0.01, 0.005, 0.0025]
    errors = []
    for step in steps:
        stepped = solve(problem, measured, TIME_STEPPING, EXACT, time_step=step)
        errors.append(max(abs(stepped.signals[m] - exact.signals[m]) for m in measured))
    return Row("orders", f"time_step_{case.tissue}", "default", TIME_STEPPING,
               tuple(f"step = {step:g} ms" for step in steps), tuple(errors),
               (0.0,) * len(errors), order=fitted_order(steps, errors), least_order=LEAST[1],
               resolution=stepped.resolution, **columns)


def agreement_rows(settings: Settings) -> Iterator[Row]:
    """Both engines on one mesh with refined modes and steps: 1e-5. Collective."""
    for case, choice in _small():
        problem, columns = set_up(choice, case, settings)
        measured = _measured(case)
        modes = solve(problem, measured, MATRIX_FORMALISM, 1e-7)
        steps = solve(problem, measured, TIME_STEPPING, 5e-6)
        ours, other = (s.average([[m] for m in measured]) for s in (steps, modes))
        difference = float(np.abs(np.subtract(ours, other)).max())
        yield Row("agreement", f"engines_{case.name}", "default", TIME_STEPPING,
                  tuple(f"b = {b:g}" for b in case.b), ours, other, (), 1e-5,
                  resolution=f"{steps.resolution}; {modes.resolution}",
                  estimated_error=steps.estimated_error, difference=difference, **columns)


def _small() -> list[tuple[Case, Discretisation]]:
    names = ["slab10_reflect_d2500_D5000", "stack2x5_k0.0001_d10000_D20000",
             "stack5x5_k1e-05_d2500_D5000", "stack5x5_k1e-05_d10000_D20000",
             "slab10_OGSE-cos_delta10000_Delta20000_n2", "disk5_d2500_D5000",
             "cyl2_3_6_k0.0001_d10000_D60000", "sphere5_d2500_D5000",
             "sphere2_3_6_k0.0001_T2_40_80_d10000_D20000"]
    chosen = [case_of(name) for name in names]
    return [(case, round_layers("sphere", case.lengths, 2.0, 1) if case.geometry == "sphere"
             else discretisation(case, "default")) for case in chosen]


def tolerance_rows(settings: Settings) -> Iterator[Row]:
    """Automatic modes and steps: what is wanted, estimated and left. Collective.

    The values are those of all modes on the same mesh; the target is what was asked for.
    """
    for case, choice in (_small()[k] for k in (0, 2, 3, 4, 5, 7)):
        problem, columns = set_up(choice, case, settings)
        measured = _measured(case)
        exact = solve(problem, measured, MATRIX_FORMALISM, EXACT,
                      modes=min(ALL_MODES, problem.num_unknowns))
        reference = exact.average([[m] for m in measured])
        for engine in (MATRIX_FORMALISM, TIME_STEPPING):
            for tolerance in (1e-3, 1e-4, 1e-5) if settings.runs(engine) else ():
                solved = solve(problem, measured, engine, tolerance)
                yield Row("tolerance", f"asked_{tolerance:g}_{case.name}", "default", engine,
                          tuple(f"b = {b:g}" for b in case.b),
                          solved.average([[m] for m in measured]), reference, (), tolerance,
                          seconds=solved.seconds, **solved.columns, **columns)
