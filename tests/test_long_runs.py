"""Runs that are told to end, killed, or damaged go on as if nothing had been; real processes."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from mpi import GUARD, ROOT, clean_environment, find_mpiexec, run_mpi, wait_until

from spinverse import cli, commands
from spinverse.commands import interruption
from spinverse.commands.interruption import BY_HAND, CODE, Interrupted, at_once, noted
from spinverse.inversion.verdict import NOT_EXPLAINED
from spinverse.mesh import Ball, tagged_grid, write_npz
from spinverse.report import folder

SIMULATE = """mesh: {file: ball.npz}
tissue:
  boundary: absorbing
  permeability: {membrane_m_per_s: 1.0e-5, elsewhere_m_per_s: 0.1, outer_m_per_s: 0.1}
acquisition:
  pgse: {b_s_per_mm2: [0, 2000], directions: 3, delta_ms: [5, 10], Delta_ms: [10, 30]}
modes: 40
"""
# too few iterations to explain the data: its runs end with NOT_EXPLAINED
RECONSTRUCT = """mesh: {file: ball.npz}
tissue: {boundary: absorbing}
signals: {file: target/signals.csv}
stages:
  - {name: long, iterations: 2, sequences: [0]}
  - {name: all, iterations: 15, priors: {continuity: 0.1}}
modes: 40
checkpoint: {every_iterations: 2}
"""
SHAPES = """mesh: {file: ball.npz}
tissue: {boundary: absorbing}
signals: {file: target/signals.csv}
stages:
  - {name: cell, shapes: {cells: 1, ellipsoids: 12, candidates: 2, budget: 4000, stop_at: 1e-30}}
modes: 40
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Inputs, and the unbroken run in ``whole``."""
    place = tmp_path_factory.mktemp("long")
    write_npz(place / "ball.npz", tagged_grid(Ball(7.0), length=20.0, cells=2))
    for name, text in (("simulate", SIMULATE), ("run", RECONSTRUCT), ("shapes", SHAPES)):
        (place / f"{name}.yaml").write_text(text)
    assert cli.main(["simulate", str(place / "simulate.yaml"), "-o", str(place / "target"),
                     "-q"]) == 0
    assert cli.main(["reconstruct", str(place / "run.yaml"), "-o", str(place / "whole"),
                     "-q"]) == NOT_EXPLAINED
    return place


@pytest.fixture
def out(made, request):
    """A folder of its own for each test."""
    path = made / re.sub(r"\W+", "_", request.node.name)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def start(out, *more, hold="", config="run.yaml", ranks=1):
    """A reconstruction; one that is to be sent a signal is held there until it comes."""
    launch = [find_mpiexec(), "-n", str(ranks)] if ranks > 1 else []
    program = [str(ROOT / "tests" / "command.py")] if hold else ["-m", "spinverse"]
    return subprocess.Popen(
        [*launch, sys.executable, *program, "reconstruct", config, "-o", str(out), *more],
        cwd=out.parent, env=clean_environment({"HOLD": hold}), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)


def heed_ctrl_c() -> None:
    """As a terminal would have it: what a shell starts in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def told(out, where: str, number, **more) -> tuple[int, str]:
    """Send a signal to a run that is at ``STAGE,ITERATION``; exit code and lines of errors."""
    process, path = start(out, hold=where, **more), out / folder.HISTORY
    wait_until(lambda: path.is_file() and f"\n{where}," in path.read_text(), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=GUARD)
    return process.returncode, errors


def resume(out, config="run.yaml", ends=NOT_EXPLAINED) -> None:
    assert cli.main(["reconstruct", str(out.parent / config), "-o", str(out), "--resume"]) == ends


def assert_same(out, whole, within: float) -> None:
    """The same permeabilities, and the same history row by row."""
    ours, theirs = (np.load(run / "permeability.npz") for run in (out, whole))
    np.testing.assert_array_equal(ours["facets"], theirs["facets"])
    np.testing.assert_allclose(ours["permeability"], theirs["permeability"], rtol=within)
    ours, theirs = (folder.read_history(run / folder.HISTORY) for run in (out, whole))
    assert [(row["stage"], row["iteration"]) for row in ours] == [
        (row["stage"], row["iteration"]) for row in theirs]
    # the norm of a gradient and a step are small differences of large numbers
    for name, more in (("loss", 1), ("data", 100), ("gradient_norm", 100), ("step", 100)):
        np.testing.assert_allclose([row[name] for row in ours], [row[name] for row in theirs],
                                   rtol=more * within, atol=1e-14)


@pytest.mark.parametrize("name, code", [("SIGTERM", CODE), ("SIGUSR1", CODE), ("SIGINT", BY_HAND)])
def test_a_signal_writes_a_checkpoint_and_ends_the_run(made, out, capsys, name, code):
    ended, errors = told(out, "all,3", getattr(signal, name))
    assert ended == code and errors.count("\n") == 1, errors
    assert errors == (f"spinverse: stopped by {name} at stage all, iteration 3; --resume goes on "
                      "from its checkpoint\n")
    found = folder.load_checkpoint(out, ["long", "all"], {})
    assert (found.stage, found.iteration) == (1, 3) and found.note == ""
    assert not (out / folder.SUMMARY).exists() and not list(out.rglob(".*"))
    resume(out)
    assert "resumed at stage all, iteration 3" in capsys.readouterr().out
    assert_same(out, made / "whole", 1e-12)


def test_a_killed_run_goes_on_from_its_last_checkpoint(made, out, capsys):
    ended, _ = told(out, "all,5", signal.SIGKILL)
    assert ended == -signal.SIGKILL
    found = folder.load_checkpoint(out, ["long", "all"], {})
    assert (found.stage, found.iteration) == (1, 4)
    # and once more, with that one damaged
    latest = out / folder.CHECKPOINT
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 4
    latest.write_bytes(content)
    resume(out)
    said = capsys.readouterr().out
    assert "went on from previous.npz" in said
    assert "resumed at stage all, iteration 2" in said
    assert_same(out, made / "whole", 1e-12)


def test_another_number_of_ranks_goes_on(made, out):
    """Told to end on two ranks, gone on with by one."""
    ended, errors = told(out, "all,3", signal.SIGUSR1, ranks=2)
    assert ended == CODE and errors.count("stopped by SIGUSR1") == 1, errors
    resume(out)
    assert_same(out, made / "whole", 1e-6)


def test_more_ranks_go_on(made, out):
    ended, errors = told(out, "all,3", signal.SIGTERM)
    assert ended == CODE, errors
    ended = run_mpi(2, "-m", "spinverse", "reconstruct", made / "run.yaml", "-o", out, "--resume",
                    "-q", check=False)
    assert ended.returncode == NOT_EXPLAINED, ended.stderr
    assert_same(out, made / "whole", 1e-6)


def test_checkpoints_by_time(made, out, monkeypatch):
    (made / "timed.yaml").write_text(RECONSTRUCT.replace(
        "{every_iterations: 2}", "{every_iterations: 1000, every_s: 1e-9}"))
    say = commands.reconstruct.terminal.Screen.iteration

    def power_cut(self, item, done):
        say(self, item, done)
        if (item.stage, item.iteration) == ("all", 4):
            raise RuntimeError("power cut")

    monkeypatch.setattr(commands.reconstruct.terminal.Screen, "iteration", power_cut)
    assert cli.main(["reconstruct", str(made / "timed.yaml"), "-o", str(out), "-q"]) == 1
    assert folder.load_checkpoint(out, ["long", "all"], {}).iteration == 3


def test_a_search_for_shapes_that_has_done_no_part(made, out):
    ended, errors = told(out, "cell,1", signal.SIGUSR1, config="shapes.yaml")
    assert ended == CODE and "stage cell, iteration 1; there was no checkpoint yet, so" in errors
    assert not out.exists()


@pytest.mark.slow
def test_a_search_for_shapes_goes_on_in_the_middle_of_a_part(made, out, capsys):
    assert cli.main(["reconstruct", str(made / "shapes.yaml"), "-o", str(made / "searched"),
                     "-q"]) == 0
    process = start(out, "--resume", config="shapes.yaml", hold="cell,0")  # of nothing: it begins
    wait_until((out / folder.CHECKPOINT).is_file, process)
    process.kill()
    process.communicate(timeout=GUARD)
    assert cli.main(["reconstruct", str(made / "shapes.yaml"), "-o", str(out)]) == 2
    assert "(or --resume to go on with the run in it, --force" in capsys.readouterr().err
    kept = folder.load_checkpoint(out, ["cell"], {}).iteration
    resume(out, "shapes.yaml", ends=0)
    assert f"resumed at stage cell, iteration {kept}" in capsys.readouterr().out
    rows = [row["iteration"] for row in folder.read_history(out / folder.HISTORY)]
    assert rows == list(range(1, len(rows) + 1)) and len(rows) > kept
    with np.load(out / "permeability.npz") as ours, \
            np.load(made / "searched" / "permeability.npz") as theirs:
        np.testing.assert_array_equal(ours["permeability"], theirs["permeability"])


# ---- signals, by themselves ---------------------------------------------------------------------

def test_a_simulation_that_is_told_to_end_leaves_nothing(made, out, monkeypatch, capsys):
    def asked(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(commands.simulate, "write_signals", asked)
    assert cli.main(["simulate", str(made / "simulate.yaml"), "-o", str(out), "-q"]) == CODE
    assert capsys.readouterr().err == "spinverse: stopped by SIGTERM\n"
    assert not [path for path in made.iterdir() if path.name.startswith(out.name)]


def test_handlers_are_put_back():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell says so
    before = signal.getsignal(signal.SIGTERM)
    with at_once():
        with noted() as note:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert note.by == "SIGUSR1"
            with pytest.raises(KeyboardInterrupt):  # a second time, by hand
                os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) in (before, signal.SIG_DFL)


def test_a_solve_does_not_keep_a_run_from_ending(monkeypatch):
    monkeypatch.setattr(interruption, "GRACE", 0.05)
    with pytest.raises(Interrupted, match="by SIGTERM in the middle of a solve; --resume"):
        with noted():
            os.kill(os.getpid(), signal.SIGTERM)
            while True:  # no place to end at
                time.sleep(0.01)
    with noted() as note:
        os.kill(os.getpid(), signal.SIGTERM)
        note.heeded()
        time.sleep(0.1)


# ---- what is shown ------------------------------------------------------------------------------

def test_a_log_has_plain_lines_and_quiet_none(made, out):
    warned = "spinverse: warning: the data are NOT explained"
    for more, lines in (((), 3 + 16), (("-q", "--force"), 0)):
        ended = start(out, *more)
        said, errors = ended.communicate(timeout=GUARD)
        assert ended.returncode == NOT_EXPLAINED
        assert errors.count("\n") == errors.count(warned) == len(more) // 2
        assert "\x1b" not in said and "\r" not in said
        rows = [line for line in said.splitlines() if line.split()[:1] in (["long"], ["all"])]
        assert len(rows) == lines and all("data" in row and row.endswith(" s") for row in rows)
        assert bool(said) == bool(lines)


def test_a_terminal_has_a_bar(made, out):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "spinverse", "reconstruct", "run.yaml", "-o", str(out)], cwd=made,
        env=clean_environment({"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}),
        stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert process.wait(GUARD) == NOT_EXPLAINED
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    assert re.search(r"all .*\d+/17 misfit \d\.\d+e-\d+ 0:\d\d:\d\d left (0|-):", text), text
    assert "results in" in text.splitlines()[-1]


# ---- the scripts for Slurm ----------------------------------------------------------------------

SLURM = ROOT / "demos" / "slurm"
FAKES = {
    "srun": 'while [[ ${1:-} == --* ]]; do shift; done; exec "$@"',
    "scontrol": 'echo "$@" >> "$CALLS"',
    "spinverse": 'echo "$@" >> "$CALLS"; echo "$XDG_CACHE_HOME" >> "$CALLS"; exit "$ENDS"',
}


def batch(place, script, *arguments, ends=0, real=False, **more):
    """Run the body of a script where srun is a shell function of ours; what was called."""
    (place / "bin").mkdir(exist_ok=True)
    calls = place / "calls"
    calls.unlink(missing_ok=True)
    for name, body in FAKES.items():
        if name == "spinverse" and real:
            body = f'exec {sys.executable} -m spinverse "$@"'
        path = place / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    env = clean_environment({"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls),
                             "ENDS": str(ends), "SLURM_JOB_ID": "77", "TMPDIR": str(place),
                             "SLURM_CPUS_PER_TASK": "2", **more})
    env.pop("SLURM_TMPDIR", None)
    ended = subprocess.run(["bash", str(SLURM / script), *map(str, arguments)], cwd=place, env=env,
                           capture_output=True, text=True, timeout=GUARD)
    return ended, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("script", sorted(path.name for path in SLURM.glob("*.sh")))
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n", SLURM / script], check=True)
    assert os.access(SLURM / script, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SLURM / script], check=True)


def test_a_job_on_one_node(tmp_path):
    ended, calls = batch(tmp_path, "single_node.sh", "a.yaml", "out")
    assert ended.returncode == 0 and calls[0] == "reconstruct a.yaml -o out --resume"
    assert calls[1].startswith(str(tmp_path)) and not os.path.exists(calls[1])
    ended, calls = batch(tmp_path, "single_node.sh", "a.yaml", "out", ends=CODE)
    assert ended.returncode == 0 and calls[2] == "requeue 77"
    ended, calls = batch(tmp_path, "single_node.sh", "a.yaml", "out", ends=2)
    assert ended.returncode == 2 and len(calls) == 2
    ended, calls = batch(tmp_path, "single_node.sh", "a.yaml")
    assert ended.returncode != 0 and "usage: sbatch single_node.sh" in ended.stderr and not calls


def test_a_job_on_several_nodes(made, out):
    out.mkdir()
    for name in ("ball.npz", "simulate.yaml"):
        shutil.copy(made / name, out)
    ended, _ = batch(out, "several_nodes.sh", "simulate", "simulate.yaml", "signals", real=True,
                     SLURM_NNODES="2")
    assert ended.returncode == 0, ended.stderr
    assert (out / "signals" / folder.SUMMARY).is_file()
    assert not list(out.glob("spinverse-*"))  # the cache
    for command, code in (("simulate", 1), ("reconstruct", 0)):
        ended, calls = batch(out, "several_nodes.sh", command, "a.yaml", "out", ends=CODE)
        assert ended.returncode == code and ("requeue 77" in calls) == (code == 0)
    ended, calls = batch(out, "several_nodes.sh", "report", "a.yaml", "out")
    assert ended.returncode == 2 and "usage:" in ended.stderr and not calls


def test_a_job_array_over_targets(tmp_path):
    ended, calls = batch(tmp_path, "benchmark_array.sh", "bench", "fast", "published",
                         SLURM_ARRAY_TASK_ID="1", TARGETS="sphere grids/018.npz")
    assert ended.returncode == 0, ended.stderr
    assert calls[0] == ("benchmark -o bench/018 --targets grids/018.npz --methods fast published "
                        "--jobs 2")
    ended, calls = batch(tmp_path, "benchmark_array.sh", "bench", SLURM_ARRAY_TASK_ID="0")
    assert calls[0] == "benchmark -o bench/sphere --targets sphere --methods default --jobs 2"
    ended, calls = batch(tmp_path, "benchmark_array.sh", "bench", SLURM_ARRAY_TASK_ID="9")
    assert ended.returncode == 0 and "no target for task 9" in ended.stdout and not calls
