"""Runs Python programs from a test, under mpiexec and otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Seconds after which something that a test waits for is taken to hang. It only guards: the longest
# takes a small part of it on a machine that is busy, and no test says anything by it.
GUARD = 1200.0

# Ranks of MPICH spin while they wait; where there are more of them than cores they give way. With a
# core each that makes runs of many small messages ten times slower.
PATIENT = {
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "64",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
    "MPIR_CVAR_POLLS_BEFORE_YIELD": "10",
}
# What a launcher leaves in the environment; a nested one must not see it.
LAUNCHER_PREFIXES = ("PMI_", "PMIX_", "MPI_LOCAL", "HYDI_", "HYDRA_", "OMPI_COMM", "OMPI_MCA_ess")


def find_mpiexec() -> str:
    """Return the path of mpiexec: the one beside this Python, else the first on PATH."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise FileNotFoundError(f"no mpiexec beside {sys.executable} nor on PATH")
    return found


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment for a new MPI run: no outer launcher, one BLAS thread per rank."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_PREFIXES)
    }
    environment.update(
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
        # Open MPI refuses root and more ranks than cores unless told; MPICH ignores these.
        OMPI_ALLOW_RUN_AS_ROOT="1",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
        OMPI_MCA_rmaps_base_oversubscribe="1",
        PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe",
    )
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment.update(extra or {})
    return environment


def run_mpi(
    n: int,
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    check: bool = True,
) -> str | subprocess.CompletedProcess[str]:
    """Run ``python arguments...`` under ``mpiexec -n n`` and return its output.

    Args:
        n: Number of ranks.
        *arguments: What follows the interpreter: a script and its arguments, ``"-m", "module"``
            or ``"-c", "code"``.
        env: Variables added to the environment.
        cwd: Working directory.
        check: Raise on a non-zero exit code and return the output; else return the
            ``CompletedProcess`` whatever the exit code.

    Returns:
        Standard output of all ranks, or the completed process if ``check`` is false.

    Raises:
        AssertionError: The run failed, or hangs and was ended; the message has its output.
    """
    command = [find_mpiexec(), "-n", str(n), sys.executable, *map(str, arguments)]
    patient = PATIENT if n > len(os.sched_getaffinity(0)) else {}
    process = subprocess.Popen(
        command,
        env=clean_environment(patient | dict(env or {})),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=GUARD)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher passes it on; SIGKILL could leave ranks behind
        try:
            stdout, stderr = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
        raise AssertionError(
            f"no end after {GUARD} s: {' '.join(command)}\n{stdout}\n{stderr}"
        ) from None
    run = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    if not check:
        return run
    if run.returncode != 0:
        raise AssertionError(
            f"exit code {run.returncode}: {' '.join(command)}\n{run.stdout}\n{run.stderr}"
        )
    return run.stdout


def wait_until(happened: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait for what a process is to bring about; where it does not, end it and fail."""
    deadline = time.monotonic() + GUARD
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            raise AssertionError(f"exit code {process.returncode}: {process.communicate()}")
        time.sleep(0.01)


def as_python(monkeypatch, folder: Path, script: str) -> None:
    """Let a shell script be what ``sys.executable`` starts, written into a folder."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
