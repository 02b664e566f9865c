"""What a real case would cost: bytes, operations and messages by phase, on 64 to 4096 ranks.

    python benchmarks/cost_model.py --cells 10e6 --measurements 1000 --steps 500
    python benchmarks/cost_model.py --measure --bandwidth 5e9 --latency 2e-6

A model on paper: counts from the algorithms of `spinverse.engines`, times from four constants of a
rank (matrix-product rate, memory bandwidth, network latency and bandwidth). ``--measure`` takes the
first two from this machine, on one core. A phase takes the longest of its arithmetic, its memory
traffic and its messages. The broken space has 4 unknowns a cell, cells have 2 facets each. The
number of modes belongs to the volume and the gradient, not to the mesh, and is an argument.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

WORD = 8
VERTICES = 0.185  # of a cell of a body-centred grid
ENTRIES = 16  # a row of the broken matrix
BLOCK_ENTRIES = 4 + 24  # a row of the inverse blocks, of cells and of nodes
OUTER, STEPS = 6, 5  # iterations for the modes; conjugate gradients in each
SURPLUS = 1.15
BLOCK = 32  # columns that share a message
DEGREE = 60  # products with X a pulse, forward
SHARED = 8  # iterations of a stage with the common factor


@dataclass(frozen=True)
class Machine:
    """One rank.

    Attributes:
        flops: of matrix products, 1/s.
        bandwidth: of memory, bytes/s.
        latency: of a message, s.
        network: bytes/s.
        memory: bytes.
    """

    flops: float
    bandwidth: float
    latency: float
    network: float
    memory: float


@dataclass(frozen=True)
class Phase:
    """Work of the slowest rank."""

    name: str
    flops: float
    traffic: float
    messages: float
    sent: float

    def seconds(self, machine: Machine) -> tuple[float, str]:
        """Its time, and what limits it."""
        parts = {"arithmetic": self.flops / machine.flops,
                 "memory": self.traffic / machine.bandwidth,
                 "network": self.messages * machine.latency + self.sent / machine.network}
        limit = max(parts, key=parts.__getitem__)
        return parts[limit], limit


def phases(cells: float, measurements: int, directions: int, steps: int, modes: int,
           ranks: int) -> list[Phase]:
    """Everything of one evaluation of misfit and gradient; time stepping for comparison."""
    unknowns, facets, coarse = 4 * cells, 2 * cells, VERTICES * cells
    n, K, kept = unknowns / ranks, modes, SURPLUS * modes
    tree = np.log2(max(ranks, 2))
    surface = 6 * (cells / ranks) ** (2 / 3) * 4  # broken unknowns on the skin of a part
    neighbours = 14
    columns = OUTER * (STEPS + 1) * kept
    per_column = n * (ENTRIES + BLOCK_ENTRIES + 20)
    halo = columns / BLOCK * neighbours
    # a cycle of multigrid: a message a level and neighbour, levels of 8 times fewer unknowns
    levels = max(1.0, np.log(max(coarse, 8)) / np.log(8))
    smoother = Phase("modes: conjugate gradients", 2 * columns * per_column,
                     columns * WORD * n * (12 + (ENTRIES + BLOCK_ENTRIES) * 1.5 / 4),
                     2 * halo + columns / BLOCK * 3 * tree, 2 * columns * surface * WORD)
    multigrid = Phase("modes: coarse space (multigrid)",
                      2 * columns * coarse / ranks * 15 * 4,
                      columns * WORD * coarse / ranks * 15 * 4,
                      columns / BLOCK * levels * 6 * neighbours + columns / BLOCK * 2 * tree,
                      columns * 6 * WORD * 6 * (coarse / ranks) ** (2 / 3))
    gram = Phase("modes: Rayleigh-Ritz", OUTER * n * 24 * kept**2,
                 OUTER * WORD * n * (3 * kept) ** 2 / BLOCK,
                 OUTER * 2 * 3 * kept / BLOCK * tree,
                 OUTER * 3 * kept * 3 * kept * 2 * WORD * 2)
    serial = Phase("modes: small dense problems, on one rank", OUTER * 2 * 25 * (3 * kept) ** 3 / 3,
                   OUTER * 10 * WORD * (3 * kept) ** 2, OUTER * tree,
                   OUTER * WORD * 6 * kept**2)
    project = Phase("position operators", 3 * n * 2 * K**2, 3 * n * K * WORD * 2, 2 * tree,
                    6 * K**2 * WORD)
    share = np.ceil(directions / ranks) / directions  # measurements are dealt by direction
    waves = share * measurements
    propagate = Phase("propagation", DEGREE * 2 * K**2 * 2 * waves, DEGREE * K**2 * WORD,
                      2 * tree, measurements * 16)
    back = Phase("propagation back", DEGREE * 2 * 2 * K**2 * 2 * waves, DEGREE * 2 * K**2 * WORD,
                 2 * tree, 2 * K**2 * WORD)
    rows = 3 * facets / ranks
    contract = Phase("facet contraction", rows * (2 * 8 * K + 2 * K**2 + 2 * K),
                     rows * K * WORD * 4, neighbours, surface * K * WORD)
    tries = SHARED * 2 * steps * 2 * measurements  # columns times stages
    stepping = Phase("time stepping instead (forward)", 2 * tries * per_column,
                     tries * WORD * n * (10 + (ENTRIES + BLOCK_ENTRIES) * 1.5 / 4),
                     tries / (2 * BLOCK) * (3 * neighbours + 2 * tree) * 6,
                     tries * 2 * surface * WORD * 6)
    return [smoother, multigrid, gram, serial, project, propagate, back, contract, stepping]


def memory(cells: float, modes: int, ranks: int) -> dict[str, float]:
    """Bytes of the fullest rank."""
    n = 4 * cells / ranks
    return {
        "modes, corrections and moves": 3 * SURPLUS * modes * n * WORD,
        "jumps of the modes": 2 * 3 * 2 * cells / ranks * modes * WORD,
        "matrices": n * (2 * ENTRIES + BLOCK_ENTRIES) * 1.5 * WORD,
        "mesh as read, on rank 0": cells * (4 + VERTICES * 3) * WORD * 2,
        "input vertices and tags": cells * (VERTICES * 8 + 4 + 0.1 * 24) / ranks,
    }


def measured() -> tuple[float, float]:
    """Rate of matrix products, 1/s, and memory bandwidth, bytes/s, of this process."""
    a = np.random.default_rng(0).standard_normal((1500, 1500))
    big = np.zeros(20_000_000)
    rates = []
    for _ in range(3):
        begin = time.process_time()
        a @ a
        rates.append(2 * 1500**3 / (time.process_time() - begin))
    speeds = []
    for _ in range(3):
        begin = time.process_time()
        big += 1.0
        speeds.append(2 * big.nbytes / (time.process_time() - begin))
    return max(rates), max(speeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=float, default=10e6)
    parser.add_argument("--measurements", type=int, default=1000)
    parser.add_argument("--directions", type=int, default=100)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--modes", type=int, default=2000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--flops", type=float, default=15e9, help="of a rank, 1/s")
    parser.add_argument("--bandwidth", type=float, default=5e9, help="of a rank, bytes/s")
    parser.add_argument("--latency", type=float, default=2e-6, help="s a message")
    parser.add_argument("--network", type=float, default=1e9, help="of a rank, bytes/s")
    parser.add_argument("--memory", type=float, default=4e9, help="of a rank, bytes")
    parser.add_argument("--measure", action="store_true", help="flops and bandwidth from here")
    given = parser.parse_args()
    flops, bandwidth = measured() if given.measure else (given.flops, given.bandwidth)
    machine = Machine(flops, bandwidth, given.latency, given.network, given.memory)
    print(f"{given.cells:.3g} cells, {given.measurements} measurements in {given.directions} "
          f"directions, {given.modes} modes; a rank: {flops:.3g} flop/s, {bandwidth:.3g} B/s, "
          f"{given.latency:.2g} s, {given.network:.2g} B/s, {given.memory:.2g} B\n")
    print("| s | " + " | ".join(f"{ranks} ranks" for ranks in given.ranks) + " |")
    print("|---" * (len(given.ranks) + 1) + "|")
    table = [phases(given.cells, given.measurements, given.directions, given.steps, given.modes,
                    ranks) for ranks in given.ranks]
    for row in zip(*table, strict=True):
        cells = ["{:.3g} ({})".format(*phase.seconds(machine)) for phase in row]
        print(f"| {row[0].name} | " + " | ".join(cells) + " |")
    sums = [sum(phase.seconds(machine)[0] for phase in column[:-1]) for column in table]
    print("| **matrix formalism, all** | " + " | ".join(f"**{total:.3g}**" for total in sums)
          + " |\n")
    print("| per rank | " + " | ".join(f"{ranks} ranks" for ranks in given.ranks) + " |")
    print("|---" * (len(given.ranks) + 1) + "|")
    for name, unit, pick in (("operations", 1.0, lambda p: p.flops),
                             ("memory traffic, GB", 1e9, lambda p: p.traffic),
                             ("messages", 1.0, lambda p: p.messages),
                             ("sent, GB", 1e9, lambda p: p.sent)):
        print(f"| {name} | " + " | ".join(
            f"{sum(pick(p) for p in column[:-1]) / unit:.3g}" for column in table) + " |")
    held = [memory(given.cells, given.modes, ranks) for ranks in given.ranks]
    for name in held[0]:
        print(f"| {name}, GB | " + " | ".join(f"{part[name] / 1e9:.3g}" for part in held) + " |")
    for ranks, part in zip(given.ranks, held, strict=True):
        total = sum(part.values())
        if total > machine.memory:
            worst = max(part, key=part.__getitem__)
            print(f"\n{ranks} ranks: {total / 1e9:.1f} GB on the fullest rank do not fit in "
                  f"{machine.memory / 1e9:.1f} GB; first of all {worst}")


if __name__ == "__main__":
    main()
