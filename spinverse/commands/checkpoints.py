"""When a reconstruction writes a checkpoint, and where it ends if it is asked to."""

from __future__ import annotations

import time
from pathlib import Path

from ..inversion import Progress, Saver, Shapes, Stage, State
from ..mesh import Mesh
from ..report import folder
from .interruption import Interrupted, Note


class Checkpoints(Saver):
    """Keeps states in the run's folder. Methods are collective.

    Checkpoints are written every ``every`` iterations or ``seconds`` (by rank 0's clock), after
    each part of a search for shapes, after each stage, and where a signal asks the run to end.
    ``first`` is the number of the stage that it begins with, ``inputs`` are sha256 by name.
    """

    def __init__(self, out: Path, mesh: Mesh, stages: list[Stage | Shapes], first: int,
                 inputs: dict[str, str], every: int, seconds: float, note: Note):
        self.out, self.mesh, self.stages, self.first = out, mesh, stages, first
        self.inputs, self.every, self.seconds, self.note = inputs, every, seconds, note
        self._saved = time.monotonic()

    def within(self, number: int, iteration: int, state: State, memory) -> None:
        stage = self.stages[self.first + number]
        by, late = self._asked_or_late()
        due = late or (iteration % self.every == 0 and iteration < stage.iterations)
        if iteration and (due or by or isinstance(stage, Shapes)):
            self._save(state, number, iteration, memory())
        self._end(by, f"at stage {stage.name}, iteration {iteration}")

    def due(self) -> bool:
        by, late = self._asked_or_late()
        return bool(by) or late

    def within_part(self, item: Progress) -> None:
        """For ``progress`` of a search for shapes, where it has nothing new to keep."""
        self._end(self._asked_or_late()[0], f"at stage {item.stage}, iteration {item.iteration}")

    def after(self, number: int, state: State) -> None:
        self._save(state, number + 1, 0, None)
        self._end(self._asked_or_late()[0], f"after stage {self.stages[self.first + number].name}")

    def at_end(self) -> None:
        """When all stages are done."""
        self._end(self._asked_or_late()[0], "after the last stage")

    def _asked_or_late(self) -> tuple[str, bool]:
        # ranks hear of a signal at different times
        late = time.monotonic() - self._saved >= self.seconds
        said = self.mesh.comm.allgather((self.note.by, late))
        by = max(by for by, _ in said)
        if by:
            self.note.heeded()
        return by, said[0][1]

    def _save(self, state: State, number: int, iteration: int, memory) -> None:
        folder.save_checkpoint(self.out, self.mesh, state, self.first + number, iteration,
                               [stage.name for stage in self.stages], self.inputs, memory)
        self._saved = time.monotonic()

    def _end(self, by: str, where: str) -> None:
        """End the run if a signal asked for it."""
        if not by:
            return
        there = self.mesh.comm.bcast((self.out / folder.CHECKPOINT).is_file())
        raise Interrupted(by, f"stopped by {by} {where}; " + (
            "--resume goes on from its checkpoint" if there else
            "there was no checkpoint yet, so nothing is kept"))
