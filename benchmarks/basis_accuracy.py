"""Errors of the bases that runs take by default, on several meshes and contrasts.

    python benchmarks/basis_accuracy.py                            # all cases, a few minutes
    python benchmarks/basis_accuracy.py --cases sphere 2d --published ../shared/benchmark

Stages of a reconstruction take as many responses as there are quarters of the cells, at least 96;
the same number of modes and twice as many responses stand beside them. Final signals and
simulations take as many modes as a tolerance needs. Errors of signals are relative to all
magnetisation at the start, as `tolerance` is; of gradients, to their norm. The reference has four
times the responses, of which twenty times faster ones are kept, or all modes where there are fewer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from spinverse import Acquisition, BlochTorrey, Permeability, Tissue, mesh
from spinverse.engines.basis import responses as response_basis
from spinverse.engines.modal.matrix_formalism import MatrixFormalism

PUBLISHED = Path(__file__).resolve().parents[2] / "shared/benchmark"
SPHERE = "018_sphere_10r_in_grid_20x20.npz"
AXON = "000_bentaxon_r4.58_seg9_fill0.115_tets66_bf88.npz"
SEQUENCES = ([10.0, 10.0, 5.0], [60.0, 20.0, 6.0])
TOLERANCE = 1e-5


def published(name: str) -> Callable:
    return lambda folder: mesh.read(folder / name, repair=True)


def built(builder: Callable, *args, **kwargs) -> Callable:
    return lambda folder: mesh.build(builder, *args, **kwargs)


def walls(membrane: float, elsewhere: float, outer: float) -> Callable:
    """Permeabilities in um/ms, which are 1e-3 m/s."""
    return lambda grid: np.where(grid.interface > 0, membrane,
                                 np.where(grid.outer, outer, elsewhere))


def random(low: float, high: float, outer: float | None = None) -> Callable:
    """Log-uniform by facet; the same whatever the ranks."""
    def values(grid):
        share = 0.5 + 0.5 * np.sin(grid.facet_vertices @ np.array([12.9, 78.2, 37.7])[: grid.dim])
        found = low * (high / low) ** share
        return found if outer is None else np.where(grid.outer, outer, found)
    return values


PACKED = built(mesh.packed_cylinders, 5.0, 4.0, radii=[3.0, 2.5], box=[11.0] * 2, seed=1)
CASES = {
    "018, start": (published(SPHERE), walls(1.0, 1.0, 1.0)),
    "018, end": (published(SPHERE), walls(0.01, 100.0, 100.0)),
    "018, end, reflecting": (published(SPHERE), walls(0.01, 100.0, 0.0)),
    "000, end": (published(AXON), walls(0.01, 100.0, 100.0)),
    "000, random": (published(AXON), random(0.01, 100.0)),
    "000, 1e-6 and 1 m/s": (published(AXON), walls(0.001, 1000.0, 1000.0)),
    "000, random, 1e-6 to 1 m/s": (published(AXON), random(0.001, 1000.0, 0.0)),
    "sphere, end": (built(mesh.sphere_in_box, 5.0, [14.0] * 3, 5.0), walls(0.01, 100.0, 0.0)),
    "sphere, start": (built(mesh.sphere_in_box, 5.0, [14.0] * 3, 5.0), walls(1.0, 1.0, 1.0)),
    "packed, end": (PACKED, walls(0.02, 100.0, 0.0)),
    "packed, 1e-6 and 1 m/s": (PACKED, walls(0.001, 1000.0, 0.0)),
    "2d, end": (built(mesh.disks, [5.0, 10.0], 1.5), walls(0.01, 100.0, 0.0)),
    "2d, random": (built(mesh.disks, [5.0, 10.0], 1.5), random(0.01, 100.0)),
}


def signals_and_gradient(problem: BlochTorrey, table: Acquisition, modes, functions: str,
                         weights: np.ndarray) -> tuple[int, np.ndarray, np.ndarray, float]:
    engine = MatrixFormalism(problem, table, modes, TOLERANCE, functions=functions)
    signals = engine.signals(remember=True)
    gradient = engine.gradient(weights * np.exp(1j * np.angle(signals)))
    return len(engine.basis), signals, gradient, engine.estimated_error


def case(name: str, folder: Path, auto: bool) -> None:
    make, permeability = CASES[name]
    grid = make(folder)
    problem = BlochTorrey(Tissue(grid, 2.0, permeability=Permeability(grid, permeability(grid))))
    directions = np.array([[1.0, 0.0, 0.0], [0.6, -0.64, 0.48]]) * (np.arange(3) < grid.dim)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    table = Acquisition.pgse([0, 1000, 5000], directions, *SEQUENCES)
    size = problem.num_unknowns
    number = max(96, grid.num_cells // 4)
    scale, weights = problem.magnetisation_at_start, np.cos(np.arange(len(table)))
    usual = response_basis._FASTEST
    response_basis._FASTEST = 20 * usual
    _, exact, slope, _ = signals_and_gradient(problem, table, min(4 * number, size), "responses",
                                              weights)
    response_basis._FASTEST = usual
    free = ~problem.tied
    cells = []
    kinds = [(number, "responses"), (number, "modes"), (2 * number, "responses"), ("auto", "modes")]
    for modes, functions in kinds[: 3 + auto]:
        found, signals, gradient, estimate = signals_and_gradient(problem, table, modes, functions,
                                                                  weights)
        error = np.abs(signals - exact) / scale
        by = [error[table.waveform_index == k].max() for k in range(3)]
        gradient_error = np.linalg.norm((gradient - slope)[free]) / np.linalg.norm(slope[free])
        more = f" ({estimate:.0e})" if modes == "auto" else ""
        cells.append(f"{found}: " + " ".join(f"{e:.0e}" for e in by) + more
                     + f"; {gradient_error:.0e}")
    cells += [] if auto else ["not looked at"]
    print(f"| {name} | {grid.num_cells} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=[""], help="those whose names begin so")
    parser.add_argument("--published", type=Path, default=PUBLISHED,
                        help="folder of the published meshes; without it their cases are left out")
    parser.add_argument("--without-auto", action="store_true",
                        help="leave out the last column, minutes a case where all modes are needed")
    arguments = parser.parse_args()
    print("| mesh, permeability | cells | responses | as many modes | twice the responses | "
          f"modes for {TOLERANCE:g} (their estimate) |\n" + "|---" * 6 + "|")
    for name, (make, _) in CASES.items():
        there = arguments.published.is_dir() or not make.__qualname__.startswith("published")
        if there and name.startswith(tuple(arguments.cases)):
            case(name, arguments.published, not arguments.without_auto)


if __name__ == "__main__":
    main()
