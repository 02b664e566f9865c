"""``spinverse report``: one HTML page of a run's folder, and figures for papers."""

from __future__ import annotations

import argparse
from pathlib import Path

from mpi4py import MPI

from ..errors import InputError
from ..report.screen import Screen
from .shared import everywhere

NEEDS_OUTPUT = False
HELP = "a page with figures of a simulation's or reconstruction's folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--mesh", type=Path, metavar="FILE",
                        help="the mesh of the run, where it is no longer where it was")
    parser.add_argument("--png", action="store_true",
                        help="also write the figures as DIR/figures/*.png")


def run(arguments, comm: MPI.Comm) -> None:
    """Write ``report.html`` into the folder. Collective; rank 0 reads and writes."""
    screen = Screen(comm, arguments.quiet)
    if arguments.output is not None:
        raise InputError(f"-o {arguments.output}: report writes into the folder of the run, "
                         "expected no -o")

    def write() -> tuple[Path, int, list[Path]]:
        from ..report import html, plots
        from ..report.html_run import read_run

        found = read_run(arguments.folder, arguments.mesh)
        try:
            page = html.write_page(found)
            return page, page.stat().st_size, plots.write_all(found) if arguments.png else []
        except OSError as error:
            raise InputError(f"{arguments.folder}: cannot be written to ({error.strerror}), "
                             "expected the folder of a run with room for a page") from None

    page, size, pictures = everywhere(comm, write)
    screen.say(*(f"picture in {picture}" for picture in pictures),
               f"report in {page} ({size / 1e6:.1f} MB)")
