"""Time stepping of many measurements side by side, with the factor that they share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
from mpi4py import MPI

from ...parallel.columns import column_inner, times
from ..derivatives import OfPermeability
from .common_factor import CommonFactor

WIDTH = 32  # measurements at once


class SideBySide:
    """The march of `time_stepping` on columns: the same formulas, the same discrete adjoint.

    Args:
        system: operators and factor.
        pair: `PairSystem` of the problem, at whose Functions derivatives are taken.
        scheme: the Runge-Kutta scheme.
    """

    def __init__(self, system: CommonFactor, pair, scheme):
        self.system, self.pair, self.scheme = system, pair, scheme

    def run(self, plan: dict, result: np.ndarray, progress: Callable[[int, int], None]) -> None:
        """Put the signals of the rows in ``plan`` into ``result``. Collective.

        ``progress(done, total)`` is told the measurements before each block.
        """
        done = 0
        for runs, rows in _blocks(plan, WIDTH):
            progress(done, len(plan))
            done += len(runs)
            y = self._start(len(rows))
            for run in _together(runs):
                self._march(y, *run)
            for signal, its in zip(self._signals(y), rows, strict=True):
                result[its] = signal

    def sweep(self, plan: dict, adjoint: np.ndarray, sums: list, most_bytes: int) -> None:
        """Forward and back again, adding to ``sums``. Collective."""
        system = self.system
        rows = system.comm.allreduce(system.local_size, op=MPI.MAX)
        for runs, its in _blocks(plan, WIDTH):
            together = _together(runs)
            a_step = 8 * rows * 2 * len(its) * len(self.scheme.b)
            longest = max(1, most_bytes // a_step)
            fits = sum(steps for _, steps, _ in together) <= longest
            blocks = together if fits else [
                (g, min(longest, steps - first), step) for g, steps, step in together
                for first in range(0, steps, longest)]
            y, starts = self._start(len(its)), []
            trajectories: list[list] = []
            for g, steps, step in blocks:
                trajectories.append([])
                starts.append(None if fits else y.copy())
                self._march(y, g, steps, step, trajectories[-1] if fits else None)
            w = np.array([adjoint[k].sum() for k in its])
            p = np.outer(system.receive, np.concatenate([w.real, w.imag]))
            for g, steps, step in reversed(blocks):
                start, stages = starts.pop(), trajectories.pop()
                if not fits:
                    self._march(start, g, steps, step, stages)
                self._march_back(p, g, steps, step, stages, sums)

    def _start(self, count: int) -> np.ndarray:
        y = np.zeros((self.system.local_size, 2 * count), order="F")
        y[:, :count] = self.system.initial[:, None]
        return y

    def _signals(self, y: np.ndarray) -> np.ndarray:
        receive = np.broadcast_to(self.system.receive[:, None], y.shape)
        parts = column_inner(self.system.comm, receive, y)
        half = len(parts) // 2
        return parts[:half] + 1j * parts[half:]

    def _march(self, y: np.ndarray, gradients: np.ndarray, steps: int, step: float,
               keep: list | None = None) -> None:
        """Advance ``y`` in place; append the stages to ``keep``."""
        system, scheme = self.system, self.scheme
        tau = scheme.diagonal * step
        moved = [np.zeros_like(y) for _ in scheme.a]  # what a stage did in the last step
        for _ in range(steps):
            K: list[np.ndarray] = []
            for i, row in enumerate(scheme.a):
                z = y.copy(order="F")
                for a, k in zip(row[:-1], K, strict=True):
                    z += a * k
                Y = system.solve(times(system.mass, z), z + moved[i], gradients, tau)
                moved[i] = Y - z
                if keep is not None:
                    keep.append(Y)
                K.append(moved[i] / scheme.diagonal)
            for b, k in zip(scheme.b, K, strict=True):
                y += b * k

    def _march_back(self, p: np.ndarray, gradients: np.ndarray, steps: int, step: float,
                    stages: list, sums: list) -> None:
        """The transpose of `_march`: see `TimeStepping`."""
        system, scheme = self.system, self.scheme
        count, tau = len(scheme.b), scheme.diagonal * step
        guesses = [np.zeros_like(p) for _ in range(count)]
        z = [np.zeros(0)] * count
        for k in reversed(range(steps)):
            for i in reversed(range(count)):
                rhs = scheme.b[i] * p
                for j in range(i + 1, count):
                    rhs += scheme.a[j][i] * z[j]
                rhs /= scheme.diagonal
                mu = guesses[i] = system.solve(rhs, guesses[i], gradients, tau, transposed=True)
                z[i] = times(system.mass, mu) - rhs
                self._add(-tau, stages[k * count + i], mu, gradients, sums)
            for part in z:
                p += part

    def _add(self, weight: float, stage: np.ndarray, adjoint: np.ndarray, gradients: np.ndarray,
             sums: list) -> None:
        stage, adjoint = (self.system.with_ghosts(columns) for columns in (stage, adjoint))
        for total in sums:
            if isinstance(total, OfPermeability):
                total.add_columns(weight, stage, adjoint)
        rest = [total for total in sums if not isinstance(total, OfPermeability)]
        for c, gradient in enumerate(gradients if rest else ()):
            self.pair.problem.g.value[:] = gradient
            for function, columns in ((self.pair.stage, stage), (self.pair.adjoint, adjoint)):
                function.x.array[:] = columns[:, c:: len(gradients)].ravel()
            for total in rest:
                total.add(weight)


def _blocks(plan: dict, width: int) -> Iterator[tuple[list, list]]:
    """Runs and rows of measurements that take the same steps, at most ``width`` at a time."""
    alike = defaultdict(list)
    for runs, rows in plan.items():
        alike[tuple((run.steps, run.step) for run in runs)].append((runs, rows))
    for items in alike.values():
        for first in range(0, len(items), width):
            runs, rows = zip(*items[first: first + width], strict=True)
            yield list(runs), list(rows)


def _together(runs: list) -> list[tuple[np.ndarray, int, float]]:
    """Gradients of all measurements, number and length of steps, run by run."""
    return [(np.array([run.gradient for run in same]), same[0].steps, same[0].step)
            for same in zip(*runs, strict=True)]
