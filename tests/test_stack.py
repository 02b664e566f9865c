"""Every wrong stack gets one clear error; the right one loads."""

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from mpi import ROOT, clean_environment, run_mpi

from spinverse import _stack
from spinverse.errors import StackError

GOOD = {
    "dolfinx_solver": SimpleNamespace(),
    "mpi4py.MPI": SimpleNamespace(
        COMM_WORLD=SimpleNamespace(size=1), Get_library_version=lambda: "MPICH Version:  5.0\nmore"
    ),
    "dolfinx": SimpleNamespace(__version__="0.11.0.post0", has_petsc=True, has_petsc4py=True),
    "petsc4py.PETSc": SimpleNamespace(
        ScalarType=float, Sys=SimpleNamespace(getVersion=lambda: (3, 25, 5))
    ),
    "slepc4py.SLEPc": SimpleNamespace(Sys=SimpleNamespace(getVersion=lambda: (3, 25, 1))),
    "petsctools": SimpleNamespace(),
    "pyadjoint": SimpleNamespace(ReducedFunctional=object, OverloadedType=object, __version__="1"),
}
GOOD["petsc4py.PETSc"].ScalarType = type("float64", (float,), {})


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in _stack.SIZE_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def check(distributions=(), **changes):
    """Run the checks on fake modules; a change is a module, an exception or None (absent)."""
    modules = GOOD | {name.replace("__", "."): value for name, value in changes.items()}

    def import_module(name):
        module = modules[name]
        if module is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if isinstance(module, Exception):
            raise module
        return module

    return _stack.check_stack(import_module, distributions)


def test_good_wheel_and_good_system():
    stack = check({"dolfinx-solver-real", "numpy"})
    assert (stack.source, stack.petsc, stack.mpi) == ("wheel", "3.25.5", "MPICH Version 5.0")
    stack = check({"petsc4py", "slepc4py", "fenics-dolfinx"}, dolfinx_solver=None)
    assert stack.source == "system"
    assert "\n" not in stack.describe()


COMPLEX = SimpleNamespace(ScalarType=type("complex128", (), {}), Sys=None)
FUTURE = SimpleNamespace(__version__="0.12.1", has_petsc=True, has_petsc4py=True)
NO_PETSC = SimpleNamespace(__version__="0.11.0", has_petsc=False, has_petsc4py=False)
NO_PETSC4PY = SimpleNamespace(__version__="0.11.0", has_petsc=True, has_petsc4py=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dolfinx_solver": None, "dolfinx": None}, r"DOLFINx is not installed: .*\[solver\].*yml"),
        ({"dolfinx": FUTURE}, "DOLFINx 0.12.1 found, spinverse needs 0.11.x"),
        ({"dolfinx": NO_PETSC}, "built without PETSc"),
        ({"dolfinx": NO_PETSC4PY}, "built without petsc4py"),
        ({"dolfinx": ImportError("libmpi.so.12: cannot\nopen")}, "dolfinx cannot be imported: lib"),
        ({"dolfinx": ModuleNotFoundError("No module named 'ufl'", name="ufl")}, "named 'ufl'"),
        ({"dolfinx_solver": ImportError("petsc4py would be\nimported from /x")}, "be imported"),
        ({"mpi4py__MPI": None}, "mpi4py is not installed"),
        ({"petsc4py__PETSc": COMPLEX}, "type complex128, spinverse needs real"),
        ({"petsc4py__PETSc": None}, "petsc4py is not installed"),
        ({"slepc4py__SLEPc": None}, "slepc4py is not installed"),
        ({"slepc4py__SLEPc": ImportError("undefined symbol: EPSx")}, "undefined symbol"),
        ({"petsctools": None}, "petsctools is not installed"),
        ({"pyadjoint": None}, "pyadjoint is not installed"),
        ({"pyadjoint": SimpleNamespace(AdjointSource=1)}, "seismology"),
        ({"distributions": {"dolfinx-solver-real", "petsc4py"}}, "pip uninstall petsc4py, then"),
        ({"distributions": {"dolfinx-solver-complex"}}, "needs real PETSc"),
    ],
)
def test_wrong_stack_is_one_clear_line(changes, message):
    with pytest.raises(StackError, match=message) as caught:
        check(**changes)
    assert "\n" not in str(caught.value)


def test_launcher_of_another_mpi(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    with pytest.raises(StackError, match="started as 4 processes, but MPI sees only one"):
        check()
    _stack._check_launcher(4, 4)
    _stack._check_launcher(1, 1)


def test_threads_are_limited_in_parallel_runs_only():
    serial = {"SLURM_NTASKS": "8"}
    assert not _stack.limit_threads(serial) and "OMP_NUM_THREADS" not in serial
    parallel = {"PMI_SIZE": "2"}
    assert _stack.limit_threads(parallel)
    assert parallel["OMP_NUM_THREADS"] == parallel["OPENBLAS_NUM_THREADS"] == "1"
    chosen = {"OMPI_COMM_WORLD_SIZE": "2", "OMP_NUM_THREADS": "4"}
    assert not _stack.limit_threads(chosen) and chosen["OMP_NUM_THREADS"] == "4"


LOAD = "from spinverse._stack import load_stack; print(load_stack().describe())"


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("pyadjoint.py", "class AdjointSource: pass", "seismology"),
        ("dolfinx/__init__.py", "__version__ = '0.9.0'", "needs 0.11.x"),
        ("petsc4py/__init__.py", "", "petsc4py"),
        ("slepc4py/__init__.py", "raise ImportError('no EPS')", "no EPS"),
    ],
)
def test_wrong_package_in_front_on_the_path(tmp_path, path, source, message):
    """The real importer on real files: a foreign package shadows the right one."""
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(textwrap.dedent(source))
    environment = clean_environment({"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    run = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("spinverse.errors.StackError: ") and message in last


def test_load_is_cached_and_real():
    stack = _stack.load_stack()
    assert stack is _stack.load_stack()
    assert stack.dolfinx.startswith("0.11.")


def test_two_ranks_get_one_thread_each():
    code = "import os; {}; print(os.environ['OMP_NUM_THREADS'])".format(
        "os.environ.pop('OMP_NUM_THREADS'); os.environ.pop('OPENBLAS_NUM_THREADS'); " + LOAD
    )
    lines = run_mpi(2, "-c", code).split("\n")
    assert lines.count("1") == 2


COMMANDS = [["-m", "spinverse", "simulate", "a.yaml"], ["-c", "import spinverse.cli"]]


@pytest.mark.parametrize("debug", [False, True])
def test_the_command_says_one_line_and_a_program_gets_the_exception(tmp_path, debug):
    (tmp_path / "pyadjoint.py").write_text("class AdjointSource: pass")
    environment = clean_environment({"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    for words in COMMANDS:
        run = subprocess.run([sys.executable, *words, *["--debug"] * debug], env=environment,
                             capture_output=True, text=True, cwd=tmp_path)
        if words[0] == "-m" and not debug:
            assert run.returncode == 2
            assert run.stderr.startswith("spinverse: pyadjoint is not the automatic-")
            assert run.stderr.count("\n") == 1
        else:
            assert run.returncode == 1 and "Traceback" in run.stderr


def test_of_several_ranks_one_speaks(tmp_path):
    (tmp_path / "pyadjoint.py").write_text("class AdjointSource: pass")
    run = run_mpi(2, "-m", "spinverse", "simulate", "a.yaml", cwd=tmp_path, check=False,
                  env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert run.returncode == 2 and run.stderr.count("spinverse: ") == 1


@pytest.mark.parametrize(("argv", "original", "expected"), [
    (["/usr/bin/spinverse", "simulate"], [], True),
    (["-m", "simulate"], ["python", "-m", "spinverse", "simulate"], True),
    (["-m", "spinverse"], ["python", "-m", "pytest", "spinverse"], False),
    (["-c"], ["python", "-c", "import spinverse"], False),
    (["study.py"], ["python", "study.py"], False),
    ([], [], False),
])
def test_what_is_the_command(argv, original, expected):
    assert _stack.is_command(argv, original) == expected
