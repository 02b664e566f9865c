"""The command ``spinverse``; the same under ``mpiexec -n N``, where rank 0 speaks.

Exit codes: 0; 2 for bad input, with one line on standard error; 1 for a failure; 3 where a
reconstruction is done and does not explain the data; 75 where SIGTERM or SIGUSR1 ended the run, 130
where Ctrl-C did.
"""

from __future__ import annotations

import argparse
import errno
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

from mpi4py import MPI
from petsc4py import PETSc

from . import __version__
from .commands import interruption
from .errors import InputError, SpinverseError, StackError, one_line

PATIENCE = 10.0  # s that a failed rank waits for the others before it ends them
#: Of a disk that is full, over its quota, read-only or failing.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
#: PETSc options that are looked at when all is over, if not at the start.
AT_THE_END = ("-log", "-options", "-malloc", "-memory", "-objects", "-info", "-help", "-on_error",
              "-fp_trap", "-viewer")
#: Modules of `spinverse.commands`.
COMMANDS = ("simulate", "reconstruct", "calibrate", "design", "report", "benchmark", "validate",
            "config")


class _Parser(argparse.ArgumentParser):
    """Wrong usage is an InputError; help and version come from rank 0 only."""

    def error(self, message):
        raise InputError(f"{message} (spinverse --help shows the usage)")

    def _print_message(self, message, file=None):
        if MPI.COMM_WORLD.rank == 0:
            super()._print_message(message, file)


def _parser(modules: dict) -> argparse.ArgumentParser:
    parser = _Parser(prog="spinverse", description="Diffusion-MRI signals from permeable "
                     "membranes, and membranes from signals.",
                     epilog="What follows -- are PETSc options. Run in parallel with "
                     "mpiexec -n N spinverse ...")
    parser.add_argument("--version", action="version", version=f"spinverse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND",
                                     parser_class=_Parser)
    for name, module in modules.items():
        command = commands.add_parser(
            name, help=module.HELP, description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
            epilog=getattr(module, "EPILOG", None))
        module.add_arguments(command)
        command.add_argument("-o", "--output", type=Path, metavar="DIR",
                             help="folder of the run, needed; must not exist or be empty")
        command.add_argument("--force", action="store_true", help="overwrite an earlier run in DIR")
        command.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
        command.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of ``sys.argv``; its exit code. Collective."""
    argv = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # PETSc's handler would end the run
    comm, watch = MPI.COMM_WORLD, MPI.COMM_WORLD.Dup()
    try:
        petsc: list[str] = []
        if "--" in argv:
            argv, petsc = argv[: argv.index("--")], argv[argv.index("--") + 1:]
            _set_petsc_options(petsc)
        modules = {name: import_module(f"spinverse.commands.{name}") for name in COMMANDS}
        arguments = _parser(modules).parse_args(argv)
        command = modules[arguments.command]
        needs = getattr(command, "NEEDS_OUTPUT", not getattr(arguments, "dry_run", False))
        if arguments.output is None and needs:
            raise InputError("-o DIR: missing, expected the folder of the run")
        with interruption.at_once():
            code = command.run(arguments, comm) or 0
        if not getattr(arguments, "dry_run", False):
            _warn_of_unused(comm, petsc)
        return code
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        return _fail(watch, *_exit(error, "--debug" in argv))
    finally:
        watch.Free()


def _exit(error: BaseException, debug: bool) -> tuple[int, str]:
    """Exit code and what to say."""
    cause = error
    while isinstance(cause, PETSc.Error) and cause.__cause__ is not None:
        cause = cause.__cause__  # an exception that passed through a callback of PETSc
    if isinstance(cause, InputError | StackError):
        return 2, one_line(cause)
    if isinstance(cause, interruption.Interrupted):
        return cause.code, one_line(cause)
    if isinstance(cause, KeyboardInterrupt):
        return interruption.BY_HAND, "interrupted (--resume continues a reconstruction)"
    if isinstance(cause, OSError) and cause.errno in DISK and not debug:
        return 1, (f"cannot write: {one_line(cause)}; what was written before is whole "
                   "(--resume continues a reconstruction)")
    if debug:
        return 1, "".join(traceback.format_exception(error))
    kind = "" if isinstance(cause, SpinverseError) else f"{type(cause).__name__}: "
    return 1, f"{kind}{one_line(cause)} (--debug shows where)"


def _fail(comm: MPI.Comm, code: int, message: str) -> int:
    """Say it once; if this rank failed alone, end the others, which would wait for ever."""
    request, deadline = comm.Ibarrier(), time.monotonic() + PATIENCE
    while not (met := request.Test()) and time.monotonic() <= deadline:
        time.sleep(0.01)
    if comm.rank == 0 or not met:
        print(f"spinverse: {message}", file=sys.stderr, flush=True)
    if not met:
        comm.Abort(code)
    return code


def _warn_of_unused(comm: MPI.Comm, words: list[str]) -> None:
    """A line about the PETSc options that nothing has looked at."""
    options = PETSc.Options()
    unused = [word for word in words if word.startswith("-") and not word[1:2].isdigit()
              and not word.startswith(AT_THE_END) and not options.used(word.removeprefix("-"))]
    if unused and comm.rank == 0:
        print(f"spinverse: warning: nothing used the PETSc options {', '.join(unused)} (a "
              "misspelt name, or one of a solver that this run does not have)", file=sys.stderr,
              flush=True)


def _set_petsc_options(words: list[str]) -> None:
    if words and not words[0].startswith("-"):
        raise InputError(f"{words[0]!r} after --, expected PETSc options as -name value")
    PETSc.Options().insertString("-options_left no " + " ".join(words))  # `_warn_of_unused` says it
    if "-log_view" in words:
        PETSc.Log.begin()  # too late for PETSc to see it: it started before
