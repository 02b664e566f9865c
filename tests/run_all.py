"""``make test``: the suite in serial and under MPI, all parts whatever fails, then a line on each.

    python tests/run_all.py --ranks 2 3 4 --core FILE... -- ARGUMENTS OF PYTEST...

The serial part has a process on each core, and each file stays in one of them. Three ranks and more
run the core files only.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys

from mpi import PATIENT, find_mpiexec

PYTEST = [sys.executable, "-m", "pytest", *["--color=yes"] * sys.stdout.isatty()]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CLOSING = re.compile(r"^=* ?((?:\d+ \w+|no tests ran)\b.* in [\d.]+s\b.*?) ?=*$", re.MULTILINE)


def run(command: list[str], more: dict[str, str], who: str = "") -> tuple[bool, str]:
    """Run and pass on what is said; whether it was well, and what pytest counted at the end."""
    with subprocess.Popen(command, env=os.environ | more, stdout=subprocess.PIPE) as process:
        last = b""
        while part := process.stdout.read1():
            sys.stdout.buffer.write(part)
            sys.stdout.buffer.flush()
            last = (last + part)[-10_000:]
    counts = CLOSING.findall(COLOUR.sub("", last.decode(errors="replace")))
    said = f"{counts[-1]}{who}" if counts else "ended before pytest had counted"
    return process.returncode == 0, f"{said} (exit code {process.returncode})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[])
    parser.add_argument("--core", nargs="*", default=[], help="files for three ranks and more")
    parser.add_argument("arguments", nargs="*", help="of pytest")
    given = parser.parse_args()

    cores = len(os.sched_getaffinity(0))
    beside = ["-n", str(cores), "--dist", "loadfile"] if cores > 1 else []
    results = {"serial": run([*PYTEST, *beside, *given.arguments], PATIENT if beside else {})}
    for n in given.ranks:
        print(f"\nMPI tests with {n} ranks", flush=True)
        results[f"{n} ranks"] = run(
            [find_mpiexec(), "-n", str(n), *PYTEST, "-q", "-m", "mpi and not slow",
             "-p", "no:cacheprovider", *given.arguments, *(given.core if n > 2 else [])],
            PATIENT if n > cores else {}, " on rank 0")

    print("\nsummary")
    for part, (well, said) in results.items():
        print(f"  {part:8} {'passed' if well else 'FAILED'}: {said}")
    return 0 if all(well for well, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
