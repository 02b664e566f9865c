"""Commands as processes of their own: time, processor time and peak memory of each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..mesh.tetrahedralise import LAUNCHERS

_POLL = 0.05  # s
_GRACE = 10.0  # s between asking a process to end and ending it


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    code: int  # negative: the signal
    seconds: float
    cpu_seconds: float  # with its children
    peak_mb: float  # largest resident memory, MiB
    ended: str  # "" if by itself, else "time limit" or "interrupted"
    message: str  # the last line on its standard error


def environment() -> dict[str, str]:
    """The environment for a run on one core: one thread, no MPI launcher, this package."""
    found = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
    above = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(p for p in (above, found.get("PYTHONPATH", "")) if p)
    return found | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                    "MPLBACKEND": "agg", "PYTHONPATH": path}


def spinverse(words: Sequence[str], folder: Path, limit: float = float("inf"),
              stop: threading.Event | None = None) -> Outcome:
    """Run the command in a folder, logged in ``log.txt``, for ``limit`` s or until ``stop``."""
    with (folder / "log.txt").open("ab") as log, (folder / "errors.txt").open("w+b") as errors:
        began = time.monotonic()
        child = subprocess.Popen([sys.executable, "-m", "spinverse", *words], cwd=folder,
                                 env=environment(), stdin=subprocess.DEVNULL, stdout=log,
                                 stderr=errors, start_new_session=True)
        ended, asked, status = "", None, 0
        try:
            while True:
                number, status, usage = os.wait4(child.pid, os.WNOHANG)
                if number:
                    break
                now = time.monotonic()
                if not ended and now - began > limit:
                    ended = "time limit"
                elif not ended and stop is not None and stop.is_set():
                    ended = "interrupted"
                if ended and asked is None:
                    asked = now
                    os.killpg(child.pid, signal.SIGTERM)
                elif asked is not None and now - asked > _GRACE:
                    os.killpg(child.pid, signal.SIGKILL)
                time.sleep(_POLL)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        seconds = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
        log.write("".join(f"{line}\n" for line in said).encode())
    (folder / "errors.txt").unlink()
    message = said[-1].removeprefix("spinverse: ") if said else ""
    return Outcome(child.returncode, seconds, usage.ru_utime + usage.ru_stime,
                   usage.ru_maxrss / 1024.0, ended, message)
