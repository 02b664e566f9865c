"""The same evaluation on 1, 2 and more ranks: seconds by phase, speed-up, and equal results.

    python benchmarks/ranks.py --cells 15 --ranks 1 2
    python benchmarks/ranks.py --cells 8 --ranks 1 2 4

Speed-up by elapsed time means something on an idle machine only. Processor seconds of the slowest
rank, which are shown beside it, hold the time in which a rank waits for others spinning.
"""

from __future__ import annotations

import argparse

from growth import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=15, help="cubes along a side")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--petsc", default="")
    arguments = parser.parse_args()
    cases = [run(arguments.cells, *(["--tied"] if arguments.tied else []), ranks=ranks,
                 petsc=arguments.petsc) for ranks in arguments.ranks]
    first = cases[0]
    print("| | " + " | ".join(f"{case['ranks']} rank(s)" for case in cases) + " |")
    print("|---" * (len(cases) + 1) + "|")
    rows = {f"{name}, CPU s of the slowest rank": [case["cpu"][name] for case in cases]
            for name in first["cpu"]}
    rows["all, CPU s of the slowest rank"] = [max(case["cpu_per_rank"]) for case in cases]
    rows["all, elapsed s"] = [case["total_wall"] for case in cases]
    rows["speed-up by CPU s"] = [max(first["cpu_per_rank"]) / max(case["cpu_per_rank"])
                                 for case in cases]
    rows["speed-up by elapsed s"] = [first["total_wall"] / case["total_wall"] for case in cases]
    rows["peak of a rank, MB"] = [max(case["peak_MB"]) for case in cases]
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    for case in cases[1:]:
        signals = abs(case["signal_sum"][0] / first["signal_sum"][0] - 1)
        gradient = abs(case["gradient_norm"] / first["gradient_norm"] - 1)
        print(f"\n{case['ranks']} ranks: sum of signals differs by {signals:.1e}, norm of the "
              f"gradient by {gradient:.1e}")


if __name__ == "__main__":
    main()
