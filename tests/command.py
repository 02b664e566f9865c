"""The command ``spinverse``, run by tests that send it signals: ``python command.py WORDS...``

``HOLD=STAGE,ITERATION`` in the environment: there a reconstruction waits for a signal, so that it
cannot be over before one comes, however slow the test is. ``STAGE,0`` of a search for shapes is
where its first state has been kept.
"""

import os
import sys
import time

from mpi import GUARD

from spinverse import cli
from spinverse.commands import reconstruct
from spinverse.commands.checkpoints import Checkpoints
from spinverse.inversion import Shapes

STAGE, _, ITERATION = (os.environ.get("HOLD") or ",-1").partition(",")


class Held(Checkpoints):
    """Waits when an iteration is in the history."""

    def within(self, number, iteration, *rest):
        stage = self.stages[self.first + number]
        if not isinstance(stage, Shapes):
            self._wait(stage.name, iteration)
        super().within(number, iteration, *rest)
        if isinstance(stage, Shapes):
            self._wait(stage.name, 0)

    def within_part(self, item):
        self._wait(item.stage, item.iteration)
        super().within_part(item)

    def _wait(self, stage, iteration):
        end = time.monotonic() + GUARD
        while (stage, iteration) == (STAGE, int(ITERATION)) and not self.note.by:
            if time.monotonic() > end:
                os._exit(3)  # the test has gone
            time.sleep(0.01)


if __name__ == "__main__":
    reconstruct.Checkpoints = Held
    cli.PATIENCE = GUARD  # ranks that fail together may be slow to hear of each other
    sys.exit(cli.main())
