"""The march of `time_stepping`, forward and back, on columns: of one measurement, or of several.

A *system* has the operators: `PairSystem` those of one measurement at a time, `CommonFactor` those
of up to ``width`` side by side. ``gradients`` has one for each of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from mpi4py import MPI


class March:
    """Steps of a Runge-Kutta scheme, and their transpose."""

    def __init__(self, system, scheme):
        self.system, self.scheme = system, scheme

    def run(self, plan: dict, result: np.ndarray, progress: Callable[[int, int], None]) -> None:
        """Put the signals of the rows in ``plan`` into ``result``. Collective.

        ``progress(done, total)`` is told the measurements before each block.
        """
        done = 0
        for runs, rows in _blocks(plan, self.system.width):
            progress(done, len(plan))
            done += len(runs)
            y = self.system.start(len(rows))
            for run in _together(runs):
                self.forward(y, *run)
            for signal, its in zip(self.system.signals(y), rows, strict=True):
                result[its] = signal

    def sweep(self, plan: dict, adjoint: np.ndarray, sums: list, most_bytes: int) -> None:
        """Forward and back again, adding to ``sums``. Collective.

        Stages of ``most_bytes`` are kept on a rank; beyond, it is done in blocks of steps.
        """
        system = self.system
        for runs, its in _blocks(plan, system.width):
            together, y = _together(runs), system.start(len(its))
            a_step = 8 * system.comm.allreduce(y.size, op=MPI.MAX) * len(self.scheme.b)
            longest = max(1, most_bytes // a_step)
            fits = sum(steps for _, steps, _ in together) <= longest
            blocks = together if fits else [
                (g, min(longest, steps - first), step) for g, steps, step in together
                for first in range(0, steps, longest)]
            starts: list = []
            trajectories: list[list] = []
            for g, steps, step in blocks:
                trajectories.append([])
                starts.append(None if fits else y.copy())
                self.forward(y, g, steps, step, trajectories[-1] if fits else None)
            p = system.end(np.array([adjoint[k].sum() for k in its]))
            for g, steps, step in reversed(blocks):
                start, stages = starts.pop(), trajectories.pop()
                if not fits:
                    self.forward(start, g, steps, step, stages)
                self._back(p, g, steps, step, stages, sums)

    def forward(self, y: np.ndarray, gradients: Sequence, steps: int, step: float,
                keep: list | None = None) -> None:
        """Advance ``y`` in place; append the stages to ``keep``."""
        system, scheme = self.system, self.scheme
        tau = scheme.diagonal * step
        moved = [np.zeros_like(y) for _ in scheme.a]  # what a stage did in the last step
        system.turn(y, gradients)
        for _ in range(steps):
            K: list[np.ndarray] = []
            for i, row in enumerate(scheme.a):
                z = y.copy(order="F")
                for a, k in zip(row[:-1], K, strict=True):
                    z += a * k
                Y = system.solve(system.mass_times(z), z + moved[i], gradients, tau)
                moved[i] = Y - z
                if keep is not None:
                    keep.append(Y)
                K.append(moved[i] / scheme.diagonal)
            for b, k in zip(scheme.b, K, strict=True):
                y += b * k
        system.turn(y, gradients)

    def _back(self, p: np.ndarray, gradients: Sequence, steps: int, step: float, stages: list,
              sums: list) -> None:
        """The transpose of `forward`; adds -a h mu^T (dA/dc) Y of every stage to ``sums``."""
        system, scheme = self.system, self.scheme
        count, tau = len(scheme.b), scheme.diagonal * step
        guesses = [np.zeros_like(p) for _ in range(count)]
        z = [np.zeros(0)] * count
        system.turn(p, gradients)
        for k in reversed(range(steps)):
            for i in reversed(range(count)):
                rhs = scheme.b[i] * p
                for j in range(i + 1, count):
                    rhs += scheme.a[j][i] * z[j]
                rhs /= scheme.diagonal
                mu = guesses[i] = system.solve(rhs, guesses[i], gradients, tau, transposed=True)
                z[i] = system.mass_times(mu) - rhs  # M is symmetric
                system.add(-tau, stages[k * count + i], mu, gradients, sums)
            for part in z:
                p += part
        system.turn(p, gradients)


def _blocks(plan: dict, width: int) -> Iterator[tuple[list, list]]:
    """Runs and rows of measurements that take the same steps, at most ``width`` at a time."""
    alike = defaultdict(list)
    for runs, rows in plan.items():  # one by one in their order: neighbours share factors
        key = runs if width == 1 else tuple((run.steps, run.step, run.stored) for run in runs)
        alike[key].append((runs, rows))
    for items in alike.values():
        for first in range(0, len(items), width):
            runs, rows = zip(*items[first: first + width], strict=True)
            yield list(runs), list(rows)


def _together(runs: list) -> list[tuple[list, int, float]]:
    """Gradients of all measurements, number and length of steps, run by run."""
    return [([run.gradient for run in same], same[0].steps, same[0].step)
            for same in zip(*runs, strict=True)]
