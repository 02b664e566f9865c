"""Threads, import order and MPI behaviour of the test suite."""

from __future__ import annotations

import os
import sys
import time

# Before numpy loads its BLAS.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest  # noqa: E402

from spinverse._stack import load_stack  # noqa: E402

load_stack()

from mpi4py import MPI  # noqa: E402

WORLD = MPI.COMM_WORLD


@pytest.fixture
def comm():
    """The world communicator."""
    return WORLD


@pytest.fixture
def shared_tmp_path(tmp_path):
    """One temporary folder for all ranks (``tmp_path`` differs from rank to rank)."""
    return WORLD.bcast(tmp_path, root=0)


def abort(report: str) -> None:
    """Print a failure and end every rank: the others may wait for this one for ever."""
    print(f"\n[rank {WORLD.rank} of {WORLD.size}] {report}", file=sys.stderr, flush=True)
    time.sleep(0.5)  # a failure on all ranks is then printed by all of them
    WORLD.Abort(1)


class ParallelRun:
    """Hooks of a pytest that runs under mpiexec."""

    def pytest_runtest_logreport(self, report):
        if report.failed:
            sections = "".join(f"\n--- {title} ---\n{text}" for title, text in report.sections)
            abort(f"{report.nodeid} ({report.when})\n{report.longreprtext}{sections}")

    def pytest_collectreport(self, report):
        if report.failed:
            abort(f"{report.nodeid} (collection)\n{report.longreprtext}")

    def pytest_internalerror(self, excrepr):
        abort(str(excrepr))


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if WORLD.size == 1:
        return
    config.pluginmanager.register(ParallelRun(), "parallel-run")
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if WORLD.rank != 0 and reporter is not None:
        config.pluginmanager.unregister(reporter)


def pytest_collection_modifyitems(config, items):
    """Under mpiexec only tests marked ``mpi`` are collective; run no other."""
    if WORLD.size == 1:
        return
    serial = [item for item in items if item.get_closest_marker("mpi") is None]
    if serial:
        config.hook.pytest_deselected(items=serial)
        items[:] = [item for item in items if item not in serial]


def pytest_sessionfinish(session, exitstatus):
    """No test marked ``mpi`` in the chosen files is no failure of a parallel run."""
    if WORLD.size > 1 and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
