"""How many modes, and pieces of what length, keep signals within a tolerance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from ...errors import SolverError
from ..basis.eigenmodes import Eigenmodes, eigenmodes, fastest
from ..basis.parts import Parts
from ..schedule.groups import Batch
from ..schedule.waves import first_step

_FIRST_MODES = 48
_MOST_AT_FIRST = 400
_FINEST = 2.5  # shortest wave number of the first guess, in units of (g / D)^(1/3)
_LEVEL = 0.45  # from one truncation to the next
_STIFFEST = 1e5  # 1/ms: modes that decay faster only make exponentials long


class Choice:
    """For one `MatrixFormalism`, whose pieces it cuts; half of its tolerance is for either."""

    def __init__(self, engine):
        self.engine, self.problem, self.table = engine, engine.problem, engine.acquisition
        self._known: dict[bytes, tuple] = {}  # numbers of modes and error, by the sizes of parts

    def of_whole(self) -> tuple[Eigenmodes, int, float]:
        """Modes, how many to ask for at other permeabilities, and the error. Collective."""
        problem, size = self.problem, self.problem.num_unknowns
        pieces_error = self._choose_pieces(
            lambda: [eigenmodes(problem, min(size, _FIRST_MODES))])
        number, wanted = min(size, self.first_guess()), 0.5 * self.engine.tolerance
        while True:
            self.engine.progress(f"trying {number} modes", 0, 0)
            basis, stiff, error, before = self._judged(
                eigenmodes(problem, number, responses=not problem.periodic), size, wanted)
            if error <= wanted or stiff:
                again = len(basis) if stiff else min(len(basis) + 4, size)
                return basis, again, error + pieces_error
            number = min(size, more_modes(len(basis), before, error, error / wanted))

    def of_parts(self, parts: Parts) -> tuple[list[Eigenmodes], float]:
        """Modes of each, and the error: a part has its share by its volume. Collective."""
        everywhere, sizes = list(range(len(parts))), parts.sizes
        if sizes.tobytes() in self._known:
            numbers, total = self._known[sizes.tobytes()]
            return [basis for _, basis in parts.modes(numbers, everywhere)], total
        few = np.minimum(sizes, _FIRST_MODES)
        total = self._choose_pieces(lambda: [basis for _, basis in parts.modes(few, everywhere)])
        numbers = np.minimum(sizes, [self.first_guess(volume) for volume in parts.volumes])
        wanted = 0.5 * self.engine.tolerance * parts.volumes / parts.volumes.sum()
        bases, chosen, waiting = [], numbers.copy(), everywhere
        while waiting:
            self.engine.progress(f"trying {int(numbers[waiting].sum())} modes of {len(waiting)} "
                                 "parts", 0, 0)
            again: list[int] = []
            for members, basis in parts.modes(numbers[waiting], waiting):
                size, share = sizes[members[0]], wanted[members[0]]
                basis, stiff, error, before = self._judged(basis, size, share)
                if error <= share or stiff:
                    bases.append(basis)
                    total += len(members) * error
                    chosen[members] = min(len(basis) + 4, size)
                else:
                    again += members
                    numbers[members] = min(size, more_modes(len(basis), before, error,
                                                            error / share))
            waiting = again
        self._known[sizes.tobytes()] = chosen, total
        return bases, total

    def _judged(self, basis: Eigenmodes, size: int, wanted: float) -> tuple:
        """The basis without stiff modes, whether it had any, its error, and that of fewer modes."""
        found = max(1, int(np.searchsorted(basis.eigenvalues, _STIFFEST)))
        stiff = found < len(basis)
        if stiff:
            basis = basis.truncated(found)
        if found >= size:
            return basis, stiff, 0.0, 0.0
        estimate = self._tail_of_truncations if self.problem.periodic else self._omitted_error
        return basis, stiff, *estimate(basis, wanted)

    def _omitted_error(self, basis: Eigenmodes, wanted: float) -> tuple[float, float]:
        """What the omitted modes change, to leading order, and what they do at fewer modes.

        See `basis.eigenmodes`: no look at a sequence of truncations tells as much, for modes that
        matter may lie far apart.
        """
        def change(basis):
            return self._apart(*(self._probe(basis, corrected) for corrected in (True, False)))

        error = change(basis)
        if error <= wanted:
            return error, error
        return error, change(basis.truncated(max(1, int(_LEVEL * len(basis)))))

    def _tail_of_truncations(self, basis: Eigenmodes, wanted: float) -> tuple[float, float]:
        """The same along periodic axes, where it is extrapolated.

        The lowest fifth, 45 % and all of the modes are looked at; the change goes on falling by the
        ratio of its last two values, or slower by a factor that `_tail` has.
        """
        low, middle, full = (self._probe(basis.truncated(max(1, int(_LEVEL**k * len(basis)))))
                             for k in (2, 1, 0))
        before, last = self._apart(middle, low), self._apart(full, middle)
        error = _tail(before, last)
        return error, error * before / last if last else error

    def first_guess(self, volume: float | None = None) -> int:
        """Modes with wavelengths down to what the strongest gradient resolves, of all of the mesh.

        Or of a volume, um^d. A gradient g localises magnetisation to (D / g)^(1/3); Weyl's law
        counts the modes. The error falls with about the fourth power of their number.
        """
        mesh, strength = self.problem.mesh, self.table.strength
        strongest = float(np.max(strength, initial=0.0))
        if volume is None:
            volume = self.problem.comm.allreduce(
                float(mesh.cell_volumes[: mesh.num_owned_cells].sum()))
        wave_number = _FINEST * (strongest / fastest(self.problem)) ** (1 / 3)
        if self.problem.periodic:  # drifting modes are shifted by Q = int g
            phase = np.array([np.sqrt(w.b_factor / w.diffusion_time) for w in self.table.waveforms])
            wave_number += float(np.max(strength * phase[self.table.waveform_index], initial=0.0))
        ball = {1: 2.0, 2: np.pi, 3: 4 / 3 * np.pi}[mesh.dim]
        count = volume * ball * (wave_number / (2 * np.pi)) ** mesh.dim
        finer = np.clip((1e-3 / self.engine.tolerance) ** 0.25, 1.0, 4.0)
        return int(min(max(_FIRST_MODES, count) * finer, _MOST_AT_FIRST))

    def _choose_pieces(self, few_modes: Callable[[], list[Eigenmodes]]) -> float:
        """Halve the pieces of smooth waveforms until that changes little; the error that is left.

        A short basis is enough: what a piece's length leaves out grows with the commutator of
        diffusion and gradient, which magnetisation in the low modes feels first.
        """
        step = first_step(self.table, self.problem.periodic)
        if step is None:
            return 0.0
        # the error falls by 16; along periodic axes the coarsest pieces are not there yet
        gain = 4 if self.problem.periodic else 15
        shortest = 1e-4 * min(w.echo_time for w in self.table.waveforms)
        bases = few_modes()

        def probe(step: float) -> np.ndarray:
            self.engine.share_out(step)
            return np.sum([basis.count * self._probe(basis) for basis in bases], axis=0)

        coarse = probe(step)
        while True:
            step /= 2
            fine = probe(step)
            error = self._apart(fine, coarse) / gain
            if error <= 0.25 * self.engine.tolerance:
                return error
            if step < shortest:
                raise SolverError(f"matrix formalism: pieces of {step:g} ms still leave an error "
                                  f"of {error:.2g}, expected at most {self.engine.tolerance:g}; is "
                                  "the waveform far steeper than its samples?")
            coarse = fine

    def _apart(self, one: np.ndarray, other: np.ndarray) -> float:
        """The largest difference of signals, of S(b=0, t=0)."""
        scale = abs(self.problem.magnetisation_at_start) or 1.0
        return float(np.abs(one - other).max(initial=0.0)) / scale

    def _probe(self, basis: Eigenmodes, corrected=False) -> np.ndarray:
        """Signals of the strongest measurements of each kind: up to 6 directions or so of each."""
        kinds = defaultdict(list)
        for group in self.engine.groups:
            if group.pieces:
                kinds[tuple(piece[:2] for piece in group.pieces)].append(group)
        hardest = [group for kind in kinds.values() for group in kind[:: max(1, len(kind) // 6)]]
        comm = self.problem.comm
        # what the omitted modes do is one matrix for each direction
        batches = [Batch.of([group]) for group in hardest[comm.rank:: comm.size]]
        return self.engine.added_up(batches, [
            self.engine.evolve_batch(basis, batch, corrected=corrected)[0] for batch in batches])


def _tail(before: float, last: float) -> float:
    """What is left of a sequence of changes that went from ``before`` to ``last``.

    A geometric series with their ratio, but not below a tenth of the last change, which a lucky
    coincidence would give.
    """
    ratio = min(last / before, 0.75) if before > 0 else 0.0
    return last * max(ratio / (1 - ratio), 0.1)


def more_modes(found: int, before: float, error: float, excess: float) -> int:
    """Modes that lower the error by the factor ``excess``, if it goes on falling as it did."""
    order = np.log(before / error) / np.log(1 / _LEVEL) if before > error > 0 else 1.0
    return int(found * np.clip(1.1 * excess ** (1 / np.clip(order, 2.0, 4.0)), 1.6, 3.0)) + 1
