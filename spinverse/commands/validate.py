"""``spinverse validate``: the reference cases through both engines, as one table."""

from __future__ import annotations

import argparse
import time

from ..errors import InputError, on_root
from ..report import folder
from ..report.screen import Screen, versions
from ..validation import table
from ..validation.families import FAMILIES, choose_families, validate
from ..validation.rows import TargetMissed, verdicts
from ..validation.solve import BOTH, ENGINES, Settings

HELP = "both engines against independent reference values, as one table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command alone."""
    known = "; ".join(f"{family.name}: {family.title}" for family in FAMILIES)
    parser.add_argument("--families", nargs="+", metavar="NAME",
                        help=f"only these; all if not given, nearly half of the time for family 6 "
                        f"({known})")
    parser.add_argument("--refined", action="store_true",
                        help="refined meshes too, with a target of 1e-4; an hour or more for all")
    parser.add_argument("--engine", choices=(BOTH, *ENGINES), default=BOTH,
                        help="only one engine where a family has both")
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="ERROR",
                        help="what modes and time steps may leave (default 1e-4), a tenth of it on "
                        "the refined meshes")
    parser.add_argument("--all", action="store_true", dest="everything",
                        help="time stepping of every 3-D measurement, not of the strongest of each "
                        "sequence alone; hours")


def run(arguments: argparse.Namespace, comm) -> None:
    """Run the families, print and write the table; TargetMissed if a case did. Collective."""
    screen, out = Screen(comm, arguments.quiet), arguments.output
    if not 0 < arguments.tolerance < 1:
        raise InputError(f"--tolerance: {arguments.tolerance:g}, expected a number between 0 and 1")
    chosen = choose_families(arguments.families)
    both = [family.name for family in chosen if family.needs_both]
    if arguments.engine != BOTH and arguments.families is None:
        chosen = [family for family in chosen if not family.needs_both]
    elif arguments.engine != BOTH and both:
        raise InputError(f"--engine {arguments.engine}: {both[0]} needs both engines")
    on_root(comm, folder.check_output, out, arguments.force)
    settings = Settings(comm, arguments.refined, arguments.engine, arguments.tolerance,
                        arguments.everything)
    names, began = [family.name for family in chosen], time.perf_counter()
    screen.say(versions(comm), f"validating {', '.join(names)}")
    with screen.held_warnings():
        rows = validate(names, settings, lambda row: screen.say(table.line(row)))
    found = comm.bcast(verdicts(rows))
    summary = {"command": "validate", "ranks": comm.size, "families": names,
               "refined": arguments.refined, "engine": arguments.engine,
               "tolerance": arguments.tolerance, "everything": arguments.everything,
               "passed": all(verdict.passed for verdict in found),
               "seconds": time.perf_counter() - began}

    def write() -> None:
        with folder.appearing(out) as partial:
            table.write(partial, rows)
            folder.write_json(partial / folder.SUMMARY, summary)

    on_root(comm, write)
    if not screen.quiet:
        table.print_table(rows)
    screen.say(*(verdict.describe() for verdict in found), f"results in {out}")
    missed = [f"{v.family} ({len(v.missed)})" for v in found
              if v.level == "default" and not v.passed]
    if missed:
        raise TargetMissed(f"targets of the default meshes are missed in: {', '.join(missed)}; "
                           f"{out / table.MARKDOWN} has the cases")
