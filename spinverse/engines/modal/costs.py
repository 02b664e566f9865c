"""What signals will cost: CPU seconds of one core of 2024, to a factor of three.

Fits to runs of 600 to 41000 unknowns and 80 to 900 modes. The number of modes is the engine's first
guess, raised as the engine does until it is that of the modes slower than `_NEEDED` says, which a
factorisation counts.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from ...acquisition.table import Acquisition
from ..basis.parts import Parts
from ..basis.spectrum import count_below
from .matrix_formalism import MatrixFormalism
from .turned_bases import TurnedBases

_COUNTED = 100_000  # unknowns up to which a factor counts modes: beyond, the first guess has to do
# (g / D)^(1/3) times it is the wave number of modes that a tolerance of 1e-4 needs: 2.7 to 6 on
# balls, sheets, tubes and random facets
_NEEDED = 4.0
_RAISED = 2.5  # from one try to the next; the engine's steps are 1.6 to 3
_TURNED = 0.2  # s for each direction and 10,000 unknowns of `TurnedBases`, to a tolerance of 1e-3


def of_modes(engine: MatrixFormalism) -> tuple[float, list[tuple[int, list[int], int]]]:
    """CPU s of an engine's signals; unknowns, modes tried, copies of each kind of part. Collective.
    """
    unknowns = engine.problem.num_unknowns
    kinds, count = tried(engine) if isinstance(engine.modes, str) else (
        [(unknowns, [min(engine.modes, unknowns)], 1)], 0)
    seconds, fastest, whole = 0.0, cutoff(engine), sum(size for size, _, _ in kinds)
    for size, tries, _ in kinds:
        evolutions = [_propagation(
            engine, K, fastest * max(1.0, K * whole / (max(count, 1) * size)) ** 2) for K in tries]
        seconds += sum(eigenproblem(size, K) for K in tries) + 1.5 * sum(evolutions) + \
            evolutions[-1]
    return seconds, kinds


def of_turned_bases(engine: TurnedBases) -> float:
    """CPU s of an engine's signals. Collective."""
    more = max(1.0, np.log10(1e-2 / engine.tolerance))
    return float(_TURNED * more * engine.num_directions * engine.problem.num_unknowns / 10_000)


def tried(engine: MatrixFormalism) -> tuple[list[tuple[int, list[int], int]], int]:
    """Unknowns, numbers of modes to try and copies of each kind of part; modes that matter."""
    problem = engine.problem
    unknowns, matter = problem.num_unknowns, 0
    if unknowns <= _COUNTED:
        A = problem.decay_matrix()
        matter = count_below(A, problem.mass_matrix, cutoff(engine))
        problem.release(A)
    parts = Parts(problem, False)
    if parts.worth_it:
        # by size and volume, for all that is known before they are solved for
        keys = list(zip(parts.sizes.tolist(), np.round(parts.volumes, 6).tolist(), strict=True))
        kinds = [(*key, keys.count(key)) for key in dict.fromkeys(keys)]
    else:
        kinds = [(unknowns, float(parts.volumes.sum()), 1)]
    whole, result = parts.volumes.sum(), []
    for size, volume, copies in kinds:
        tries = [min(size, engine.choice.first_guess(volume))]
        while tries[-1] < min(size, matter * volume / whole):
            tries.append(min(size, int(_RAISED * tries[-1]) + 1))
        result.append((size, tries, copies))
    return result, matter


def cutoff(engine: MatrixFormalism) -> float:
    """Decay rate, 1/ms, of the modes that the strongest gradient still needs."""
    problem, strongest = engine.problem, float(np.max(engine.acquisition.strength, initial=0.0))
    D = problem.comm.allreduce(float(np.max(problem.tissue.diffusivity, initial=1e-12)), MPI.MAX)
    # the error falls with the fourth power of their number, and that with a wave number's third
    wave = _NEEDED * (1e-4 / engine.tolerance) ** (1 / 12) * (strongest / D) ** (1 / 3)
    return D * wave**2


def eigenproblem(unknowns: int, number: int) -> float:
    """A factor and solves; the orthogonalisation of so many vectors."""
    return (0.02 + 2.0 * (unknowns / 10_000) ** 1.56 * (number / 200)
            + 4e-9 * unknowns * number**2)


def _propagation(engine: MatrixFormalism, number: int, rate: float) -> float:
    """Of all measurements, in modes up to a decay rate, 1/ms: terms of Chebyshev series."""
    table, mesh = engine.acquisition, engine.problem.mesh
    half = (mesh.bounds[1] - mesh.bounds[0])[: mesh.dim] / 2
    always = engine.problem.num_fields or engine.problem.periodic
    times = table.echo_time if always else driven(table)
    reach = np.abs(table.directions[:, : mesh.dim]) @ half
    terms = 1.3 * times * (rate / 2 + table.strength * reach) + 30 * (times > 0)
    return 2e-9 * number**2 * float(terms.sum())


def driven(table: Acquisition) -> np.ndarray:
    """About how long each measurement has gradients, ``(N,)`` ms."""
    return np.where(np.isfinite(table.delta), table.delta, table.echo_time / 2) * (table.b > 0)
