"""``spinverse config``: example run files, and the keys of the mesh builders."""

from __future__ import annotations

import argparse
import inspect
from importlib import resources

from mpi4py import MPI

from .. import config
from ..config.arguments import keys_of
from ..errors import InputError
from ..report.screen import Screen

NEEDS_OUTPUT = False
HELP = "print a run file to begin with, or the keys of a mesh builder"
EXAMPLES = ("simulate", "reconstruct")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("--example", choices=EXAMPLES, metavar="COMMAND",
                        help=f"a commented run file that runs: {' or '.join(EXAMPLES)}")
    parser.add_argument("--builder", metavar="NAME", nargs="?", const="",
                        help="the keys of a mesh builder; without NAME all builders")


def run(arguments, comm: MPI.Comm) -> None:
    """Print what was asked for."""
    screen = Screen(comm)
    if (arguments.example is None) == (arguments.builder is None):
        raise InputError("expected one of --example simulate, --example reconstruct and "
                         "--builder [NAME]")
    if arguments.example is not None:
        text = resources.files("spinverse.config").joinpath(f"{arguments.example}.yaml")
        screen.say(text.read_text(encoding="utf-8").rstrip())
    elif not arguments.builder:
        for name, function in config.BUILDERS.items():
            first = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
            screen.say(f"{name:17} {first}")
    elif arguments.builder in config.BUILDERS:
        screen.say(*_keys(arguments.builder))
    else:
        raise InputError(f"--builder {arguments.builder}: expected one of "
                         f"{', '.join(config.BUILDERS)}")


def _keys(name: str) -> list[str]:
    """A builder's keys as they stand below mesh, and its documentation."""
    function = config.BUILDERS[name]
    lines = ["mesh:", f"  builder: {name}"]
    for key, parameter in keys_of(function).items():
        if key == "shape":
            lines.append("  shape: {kind: ball, radius_um: ...}  # or cylinder, bent_tube, torus")
        elif parameter.default is parameter.empty:
            lines.append(f"  {key}: ...".ljust(34) + "# needed")
        else:
            lines.append(f"  # {key}:".ljust(34) + f"# {_yaml(parameter.default)} unless given")
    return [*lines, "", *(inspect.getdoc(function) or "").splitlines()]


def _yaml(value) -> str:
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else \
        f"{list(value) if isinstance(value, tuple) else value}"
