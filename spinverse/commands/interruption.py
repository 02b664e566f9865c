"""Signals that ask a run to end: at once, or where it can go on later.

Batch systems send SIGTERM, and SIGUSR1 if told to (``sbatch --signal``); a person presses Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager

#: Exit code of a run that was asked to end, EX_TEMPFAIL of sysexits.h: the same command, with
#: --resume, is to be run again.
CODE = 75
BY_HAND = 130  # the same after Ctrl-C, as shells have it
ASKING = (signal.SIGTERM, signal.SIGUSR1)
#: s, from SIGTERM to the next place where a run can go on later; then it ends where it is. Batch
#: systems kill after 30 s (Slurm's KillWait). Who sends another signal can wait for longer.
GRACE = 10.0


class Interrupted(KeyboardInterrupt):
    """The run was asked to end by a signal of the name ``by``."""

    def __init__(self, by: str, message: str = ""):
        super().__init__(message or f"stopped by {by}")
        self.by = by

    @property
    def code(self) -> int:
        """The exit code of the command."""
        return BY_HAND if self.by == "SIGINT" else CODE


class Note:
    """Which signal asked this rank to end; "" for none yet."""

    by = ""

    def heeded(self) -> None:
        """The run is where it can end."""
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def at_once(numbers=ASKING):
    """Within the block these signals raise `Interrupted`, wherever the program is."""
    def raises(number, frame):
        raise Interrupted(signal.Signals(number).name)

    with _handled(numbers, raises):
        yield


@contextmanager
def noted():
    """Within the block they are written down in the `Note` that it gives; a second Ctrl-C raises.

    So does a solve that still goes on `GRACE` seconds after SIGTERM. Ignored signals stay ignored.
    """
    note = Note()

    def writes(number, frame):
        if number == signal.SIGALRM:
            raise Interrupted(note.by, f"stopped by {note.by} in the middle of a solve; --resume "
                              "goes on from the last checkpoint, if there is one")
        if number == signal.SIGINT and note.by:
            raise KeyboardInterrupt
        note.by = signal.Signals(number).name
        if number == signal.SIGTERM:
            signal.setitimer(signal.ITIMER_REAL, GRACE)

    with _handled((*ASKING, signal.SIGINT, signal.SIGALRM), writes):
        try:
            yield note
        finally:
            note.heeded()


@contextmanager
def _handled(numbers, handler):
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            # None: PETSc's, which cannot be had back
            signal.signal(number, signal.SIG_DFL if old is None else old)
