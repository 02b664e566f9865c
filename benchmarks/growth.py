"""Seconds and memory of one evaluation by phase against cells, and the exponents they grow with.

    python benchmarks/growth.py                      # 0.8k, 6k, 40k and 111k cells; some minutes
    python benchmarks/growth.py --cells 4 6 8        # a look
    python benchmarks/growth.py --petsc "-spinverse_eps_solver direct" --cells 4 6 8 10

Each case is a process of its own, see `one_case.py`. Processor seconds do not see what else the
machine does, other than through its memory bus; elapsed seconds do.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

CASE = Path(__file__).with_name("one_case.py")


def run(cells: int, *words: str, ranks: int = 1, petsc: str = "") -> dict:
    """One case; the JSON that it prints."""
    launcher = [] if ranks == 1 else [str(Path(sys.executable).with_name("mpiexec")),
                                      "-n", str(ranks)]
    command = [*launcher, sys.executable, str(CASE), "--cells", str(cells), *words]
    if petsc:
        command += ["--", *shlex.split(petsc)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def exponent(cells, values) -> float:
    """Least-squares slope of log values over log cells."""
    return float(np.polyfit(np.log(cells), np.log(np.maximum(values, 1e-3)), 1)[0])


def table(cases: list[dict]) -> list[str]:
    """Processor seconds by phase, elapsed seconds and memory, a column a case."""
    phases = list(cases[0]["cpu"])
    cells = [case["cells"] for case in cases]
    last = slice(-3, None)
    lines = ["| | " + " | ".join(f"{n} cells" for n in cells) + " | exponent |",
             "|---" * (len(cases) + 2) + "|"]

    def row(name: str, values: list[float], digits: int = 2) -> None:
        slope = f"{exponent(cells[last], values[last]):.2f}" if len(cells) > 1 else ""
        lines.append(f"| {name} | " + " | ".join(f"{v:.{digits}f}" for v in values)
                     + f" | {slope} |")

    row("unknowns", [case["unknowns"] for case in cases], 0)
    row("modes", [case["modes"] for case in cases], 0)
    for name in phases:
        row(f"{name}, CPU s", [case["cpu"].get(name, 0.0) for case in cases])
    row("all, CPU s", [sum(case["cpu"].values()) for case in cases])
    row("all, elapsed s", [case["total_wall"] for case in cases])
    row("forward, elapsed s", [case["forward_wall"] for case in cases])
    row("peak, MB", [max(case["peak_MB"]) for case in cases], 0)
    row("peak above import, MB", [max(case["peak_MB"]) - max(case["import_MB"])
                                  for case in cases], 0)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[4, 8, 15, 21],
                        help="cubes along a side, of 12 cells each")
    parser.add_argument("--cases", nargs="+", default=["open", "tied"], choices=["open", "tied"])
    parser.add_argument("--modes", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--petsc", default="", help="PETSc options of all cases")
    parser.add_argument("--json", type=Path, help="file for the figures, a line a case")
    arguments = parser.parse_args()
    for kind in arguments.cases:
        cases = []
        for cells in arguments.cells:
            cases.append(run(cells, "--modes", str(arguments.modes),
                             *(["--tied"] if kind == "tied" else []), ranks=arguments.ranks,
                             petsc=arguments.petsc))
            if arguments.json:
                with arguments.json.open("a") as file:
                    file.write(json.dumps(cases[-1]) + "\n")
        print(f"{kind}, {arguments.ranks} rank(s); exponents of the last three\n")
        print("\n".join(table(cases)), "\n", flush=True)


if __name__ == "__main__":
    main()
