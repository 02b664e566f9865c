"""Files that are not trusted: `fuzz.py` in a process of its own, which may crash."""

import subprocess
import sys

import pytest
from mpi import GUARD, ROOT, clean_environment

pytest.importorskip("hypothesis")


@pytest.mark.parametrize("examples", [
    10, pytest.param(500, marks=pytest.mark.slow)])
def test_files_are_read_or_refused(examples):
    ended = subprocess.run([sys.executable, str(ROOT / "tests" / "fuzz.py"), str(examples)],
                           env=clean_environment(), capture_output=True, text=True,
                           timeout=3 * GUARD)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]
    assert "CODE OF THE FILE WAS RUN" not in ended.stdout
    assert ended.stdout.count("examples\n") > 15
