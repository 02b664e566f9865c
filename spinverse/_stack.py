"""Loads DOLFINx, PETSc, SLEPc and pyadjoint in the right order and checks that they fit.

The PyPI wheel of DOLFINx wants ``import dolfinx_solver`` before any of its compiled modules;
a DOLFINx of conda or of the system has no such module. :func:`load_stack` hides the difference
and turns every stack that cannot run spinverse into one :class:`~spinverse.errors.StackError`.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import PurePath
from types import ModuleType

from spinverse.errors import StackError, one_line

DOLFINX_SERIES = "0.11"
WHEEL = "dolfinx-solver-real"
INSTALL_HINT = ("install the wheel with `pip install 'spinverse[solver]'` (Linux, x86_64), "
                "or use conda-forge with environment.yml")

# Launchers tell each process how many there are; read before MPI is initialised.
# SLURM_NTASKS is not here: a batch script has it too, around serial programs.
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "MPI_LOCALNRANKS")
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Stack:
    """Versions of what spinverse runs on; the source is "wheel" (of PyPI) or "system"."""

    dolfinx: str
    petsc: str
    slepc: str
    pyadjoint: str
    mpi: str
    source: str

    def describe(self) -> str:
        """Return all of it in one line."""
        return (f"DOLFINx {self.dolfinx} ({self.source}), PETSc {self.petsc}, SLEPc {self.slepc}, "
                f"pyadjoint {self.pyadjoint}, {self.mpi}")


def launched_size(environment: Mapping[str, str]) -> int:
    """Return the number of MPI processes that the launcher announces, 1 if there is none."""
    values = (environment.get(name, "") for name in SIZE_VARIABLES)
    return next((int(value) for value in values if value.isdigit()), 1)


def limit_threads(environment: MutableMapping[str, str]) -> bool:
    """Give each rank of a parallel run one BLAS thread, unless the user has set a number.

    Returns whether it did. BLAS reads these variables when it is loaded: ``import numpy`` before
    ``import spinverse`` comes too early for numpy's own.
    """
    if launched_size(environment) < 2 or any(name in environment for name in THREAD_VARIABLES):
        return False
    environment.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    return True


def _check_distributions(names: set[str]) -> None:
    if "dolfinx-solver-complex" in names:
        raise StackError(
            "dolfinx-solver-complex is installed, but spinverse needs real PETSc scalars: "
            f"pip uninstall dolfinx-solver-complex, then pip install --force-reinstall {WHEEL}")
    foreign = sorted(names & {"petsc", "petsc4py", "slepc", "slepc4py"})
    if WHEEL in names and foreign:
        raise StackError(
            f"{', '.join(foreign)} from PyPI overwrote the PETSc inside {WHEEL}: pip uninstall "
            f"{' '.join(foreign)}, then pip install --force-reinstall --no-deps {WHEEL}")


def _check_dolfinx(dolfinx: ModuleType) -> None:
    version = str(getattr(dolfinx, "__version__", "unknown"))
    if version.split(".")[:2] != DOLFINX_SERIES.split("."):
        raise StackError(
            f"DOLFINx {version} found, spinverse needs {DOLFINX_SERIES}.x: {INSTALL_HINT}")
    for flag, part in (("has_petsc", "PETSc"), ("has_petsc4py", "petsc4py")):
        if not getattr(dolfinx, flag, False):
            raise StackError(f"DOLFINx {version} was built without {part}: {INSTALL_HINT}")


def _check_launcher(announced: int, actual: int) -> None:
    """Refuse N copies that would each compute alone."""
    if actual < 2 <= announced:
        raise StackError(
            f"started as {announced} processes, but MPI sees only one: the launcher is of another "
            f"MPI than mpi4py; use the mpiexec beside {sys.executable}")


def check_stack(import_module: Callable[[str], ModuleType], distributions: Iterable[str]) -> Stack:
    """Import the stack in order and check each part; :func:`load_stack` is the usual entry.

    ``distributions`` are names of the installed ones, normalised (lower case, hyphens).

    Raises:
        StackError: The first thing that is missing, foreign or of a wrong version or kind.
    """
    def get(name: str, missing: str) -> ModuleType:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and name.split(".")[0] != error.name.split(".")[0]:
                missing = f"{name} cannot be imported: {one_line(error)}"
            raise StackError(missing) from error
        except Exception as error:  # compiled modules raise more than ImportError
            raise StackError(f"{name} cannot be imported: {one_line(error)}") from error

    _check_distributions(set(distributions))
    source = "wheel"
    try:
        import_module("dolfinx_solver")
    except ModuleNotFoundError as error:
        if error.name != "dolfinx_solver":
            raise StackError(f"dolfinx_solver cannot be imported: {one_line(error)}") from error
        source = "system"
    except Exception as error:  # its own refusal of a foreign PETSc
        raise StackError(one_line(error)) from error

    mpi = get("mpi4py.MPI", f"mpi4py is not installed: {INSTALL_HINT}")
    _check_launcher(launched_size(os.environ), mpi.COMM_WORLD.size)
    dolfinx = get("dolfinx", f"DOLFINx is not installed: {INSTALL_HINT}")
    _check_dolfinx(dolfinx)
    petsc = get("petsc4py.PETSc", f"petsc4py is not installed: {INSTALL_HINT}")
    if (scalar := petsc.ScalarType.__name__) != "float64":
        raise StackError(f"PETSc has scalars of type {scalar}, spinverse needs real float64 "
                         "(conda: petsc=*=real*; PyPI: dolfinx-solver-real)")
    slepc = get("slepc4py.SLEPc", "slepc4py is not installed (conda: conda install -c conda-forge "
                f"slepc4py; PyPI: it is part of {WHEEL})")
    get("petsctools", "petsctools is not installed: pip install petsctools")
    pyadjoint = get("pyadjoint", "pyadjoint is not installed: pip install pyadjoint-ad")
    if not (hasattr(pyadjoint, "ReducedFunctional") and hasattr(pyadjoint, "OverloadedType")):
        raise StackError(
            "pyadjoint is not the automatic-differentiation library (PyPI's `pyadjoint` is a "
            "seismology package): pip uninstall pyadjoint, then pip install --force-reinstall "
            "pyadjoint-ad")
    return Stack(
        str(dolfinx.__version__), ".".join(map(str, petsc.Sys.getVersion())),
        ".".join(map(str, slepc.Sys.getVersion())),
        str(getattr(pyadjoint, "__version__", "unknown")),
        " ".join(mpi.Get_library_version().partition("\n")[0].replace(":", " ").split()), source)


@functools.cache
def load_stack() -> Stack:
    """Limit BLAS threads of parallel runs, import the stack in order, check it.

    Must run before anything imports dolfinx, petsc4py or slepc4py; a second call is free.

    Raises:
        StackError: The stack cannot run spinverse, in one line that says what to do.
    """
    limit_threads(os.environ)
    names = (distribution.metadata["Name"] for distribution in metadata.distributions())
    normalised = {name.lower().replace("_", "-").replace(".", "-") for name in names if name}
    return check_stack(importlib.import_module, normalised)


def is_command(argv: Sequence[str], interpreter_argv: Sequence[str]) -> bool:
    """Return whether a process is the command ``spinverse`` or ``python -m spinverse``.

    From ``sys.argv``, which begins with -m while the package of a module is imported, and
    ``sys.orig_argv``.
    """
    if not argv:
        return False
    if argv[0] == "-m":
        words = list(interpreter_argv)
        return "-m" in words and words[words.index("-m") + 1:][:1] == ["spinverse"]
    return PurePath(argv[0]).stem == "spinverse"


def load_stack_or_end() -> None:
    """:func:`load_stack`; where that fails, the command ends with one line and exit code 2.

    The package is imported before the command's own code runs. Everything else that imports it, and
    the command with ``--debug``, gets the StackError.
    """
    try:
        load_stack()
    except StackError as error:
        if "--debug" in sys.argv or not is_command(sys.argv, sys.orig_argv):
            raise
        rank = next((os.environ[name] for name in RANK_VARIABLES if name in os.environ), "0")
        if rank == "0":
            print(f"spinverse: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
