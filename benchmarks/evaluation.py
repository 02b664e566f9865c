"""One evaluation of misfit and gradient by phase, against what the core allows.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/evaluation.py
    ... --modes 144 --repeats 5 --mesh FILE.npz     # another number of functions, another grid
    ... --against TREE                              # the same through another checkout

The grid is the published benchmark's kind: 576 cells, 1296 facets, all unknown, outer ones too. CPU
seconds are minima over repeats. Floor: the larger of flops over the rate of matrix products and
bytes over memory bandwidth; both rates are measured here, on the same core, at the shapes of the
evaluation. Bytes count each operand of a product once, whether it comes from a cache or not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from mpi4py import MPI
from pyadjoint import Control, Tape, continue_annotation, pause_annotation, set_working_tape

import spinverse
from spinverse import Acquisition, Permeability, Signals, Tissue, mesh
from spinverse.adjoint import FacetField, mapped, scalar, simulated_signals
from spinverse.benchmark.targets import own
from spinverse.inversion import TAO
from spinverse.inversion import stages as presets
from spinverse.inversion.facets.controls import CONTROLS, FromLog
from spinverse.inversion.facets.facet_graph import FacetGraph
from spinverse.inversion.facets.memory import Keeper
from spinverse.inversion.facets.optimise import BacktrackingFunctional, minimise
from spinverse.inversion.facets.priors import PRIORS
from spinverse.inversion.likelihood import Likelihood
from spinverse.problem import BlochTorrey

SEQUENCES = {1: ([10.0], [60.0]), 3: ([10.0, 10.0, 5.0], [60.0, 20.0, 6.0])}
B = np.arange(6) * 1000.0
PUBLISHED = (Path(__file__).resolve().parents[2]
             / "shared/benchmark/018_sphere_10r_in_grid_20x20.npz")


def cpu(function, repeats: int):
    """Fewest CPU seconds of a call, and what it returned last."""
    best = np.inf
    for _ in range(repeats):
        before = time.process_time()
        result = function()
        best = min(best, time.process_time() - before)
    return best, result


class Case:
    """The loss of a stage of facets at a permeability, as `spinverse.reconstruct` tapes it."""

    def __init__(self, path: str, sequences: int, where: str, modes: int, functions: str):
        if path:
            self.mesh = mesh.read(path, repair=True)
        else:
            self.mesh = mesh.Mesh.from_data(own("sphere").data, MPI.COMM_WORLD)
        everywhere = np.ones(self.mesh.num_owned_facets)
        truth = np.where(self.mesh.interface > 0, 0.01, 100.0)
        self.kappa = truth if where == "end" else everywhere
        self.tissue = Tissue(self.mesh, 2.0, permeability=Permeability(self.mesh, truth))
        self.acquisition = Acquisition.pgse(B, 30, *SEQUENCES[sequences])
        self.problem = BlochTorrey(self.tissue.with_permeability(self.kappa))
        self.engine = self.make(modes, functions)
        # a target of its own, so that the residual is not zero at the end
        self.reference = np.full(len(self.acquisition), 0.06 * self.problem.magnetisation_at_start)
        self.misfit = Likelihood(np.exp(-0.3 * self.acquisition.b / 1000), self.reference)
        unknown = everywhere > 0
        graph = FacetGraph(self.mesh, unknown)
        self.priors = [PRIORS[name](graph) for name in ("continuity", "manifold")]
        self.control_type = CONTROLS["squashed"]()
        set_working_tape(Tape())
        continue_annotation()
        self.control = FacetField(self.mesh, self.control_type.control(self.kappa))
        z = mapped(self.control, self.control_type)
        signals = simulated_signals(mapped(z, FromLog(unknown, 0 * everywhere)), self.engine)
        loss = scalar(signals, self.misfit)
        for prior in self.priors:
            loss = loss + scalar(z, prior)
        pause_annotation()
        self.z = z.values
        self.functional = BacktrackingFunctional(loss, Control(self.control))

    def make(self, modes: int, functions: str):
        from spinverse.engines.modal.matrix_formalism import MatrixFormalism
        new = {"functions": functions} if functions else {}
        return MatrixFormalism(self.problem, self.acquisition, modes, **new)

    def evaluate(self) -> tuple[float, np.ndarray]:
        value = float(self.functional(self.control))
        return value, self.functional.derivative().values

    def tao(self) -> int:
        """A few steps of TAO; returns how often the engine was asked."""
        calls = []
        signals = self.engine.signals
        self.engine.signals = lambda *args, **more: (calls.append(1), signals(*args, **more))[1]
        minimise(TAO(), "tao", 4, self.functional, self.control, (-np.inf, np.inf),
                 lambda *state: None, Keeper())
        del self.engine.signals
        return len(calls)


# ---- what the core does -----------------------------------------------------------------------

def rates(n: int, K: int, directions: int, columns: int, repeats: int) -> dict[str, float]:
    """Flops a second at the shapes of the propagation and of the basis; bytes a second."""
    rng = np.random.default_rng(0)
    X, u = rng.random((directions, K, K)), rng.random((directions, K, columns))
    wide, tall = rng.random((K, directions * columns)), rng.random((n, K))
    out, square = np.empty_like(u), np.empty((K, K))
    big, other = np.ones(2**24), np.zeros(2**24)  # 128 MiB each: beyond all caches
    found = {
        "many skinny products": (2 * u.size * K, lambda: np.matmul(X, u, out=out)),
        "wide product": (2 * wide.size * K, lambda: np.matmul(wide, wide[::-1].T, out=square)),
        "tall product": (2 * n * K * K, lambda: np.matmul(tall.T, tall[::-1], out=square)),
        "bandwidth": (16 * big.size, lambda: np.copyto(other, big)),
    }
    return {name: amount / cpu(call, repeats)[0] for name, (amount, call) in found.items()}


# ---- what there is to do ----------------------------------------------------------------------

def work(case: Case, adds: list, factor: int) -> dict[str, tuple[float, float]]:
    """Flops and bytes of each phase, counted from the sizes that were met."""
    engine, problem = case.engine, case.problem
    basis = engine.basis
    n, K = basis.modes.shape
    entries = problem.decay_matrix().getInfo()["nz_used"]
    rows = problem.jump_matrix.shape[0]
    count = {"assembly": (40.0 * entries, 16.0 * entries)}
    flops = bytes_ = 0.0
    for size, candidates, kept in adds:
        # two passes against what there is, products among themselves, turned, a third pass
        flops += 2 * n * (4 * size * candidates + candidates**2 + candidates * kept
                          + 2 * size * kept + 2 * kept**2 + kept**2)
        flops += 4 * factor * candidates + 9 * candidates**3  # its solves, and LAPACK's syevd
        bytes_ += 8 * n * (6 * size + 6 * candidates + 6 * kept) + 24 * factor * candidates / 32
    last = sum(kept for _, _, kept in adds[-1:]) + adds[-1][0]
    for size in (last, adds_of_slow(adds)):
        flops += 2 * entries * size + 4 * n * size**2 + 9 * size**3
        bytes_ += 12 * entries + 8 * n * 4 * size
    count["basis"] = (flops, bytes_)
    count["projection"] = (3 * (8 * n * K + 2 * n * K**2), 8.0 * n * K * 6)
    forward = back = traffic = traffic_back = 0.0
    for batch, _, _, steps in engine._tape:
        columns = 2 * len(batch.rows)
        for step in steps:
            products = step.plan.steps * (len(step.plan.coefficients) - 1)
            operators = 8 * step._operators.size
            forward += products * columns * (2 * K**2 + 8 * K)
            traffic += products * (operators + 8 * K * columns * 4)
            back += products * columns * (4 * K**2 + 8 * K)
            traffic_back += products * (operators + 8 * K * columns * 6)
    count["forward"], count["back"] = (forward, traffic), (back, traffic_back)
    count["contraction"] = (2.0 * rows * K**2 + 2 * rows * K + 12 * rows * K, 8.0 * (
        2 * rows * K + n * K + K * K))
    pairs, incidences = case.priors[0].graph.num_pairs, len(case.priors[0].graph.edge)
    count["priors"] = (60.0 * pairs + 60 * incidences, 100.0 * pairs + 100 * incidences)
    return count


def adds_of_slow(adds: list) -> int:
    """Functions of the space that the slow modes were found in: the first of two."""
    for before, after in zip(adds, adds[1:], strict=False):
        if after[0] == 0:
            return before[0] + before[2]
    return 0


def by_phase(case: Case, repeats: int) -> tuple[dict[str, float], list, int]:
    """CPU seconds of each phase, and the sizes that the basis met."""
    from spinverse.engines.basis import responses as module
    from spinverse.engines.basis.eigenmodes import project
    problem, engine = case.problem, case.engine
    adds, factors, add, make = [], [], module._Space.add, module.factor_of

    def noted(self, candidates):
        size = self.size
        result = add(self, candidates)
        adds.append((size, candidates.shape[1], self.size - size))
        return result

    def factorised(*args):
        factor = make(*args)
        factors.append(factor.ksp.getPC().getFactorMatrix().getMumpsInfog(29))
        return factor

    module._Space.add, module.factor_of = noted, factorised
    case.evaluate()
    module._Space.add, module.factor_of = add, make
    basis = engine.basis
    found = {}
    found["assembly"], _ = cpu(problem.decay_matrix, repeats)
    found["projection"], _ = cpu(
        lambda: project(problem, basis.eigenvalues, basis.columns), repeats)
    whole, _ = cpu(lambda: engine.find_modes(case.kappa), repeats)
    found["basis"] = whole - found["assembly"] - found["projection"]
    found["forward"], signals = cpu(lambda: engine.evolve(True), repeats)
    w = case.misfit.pull_back(signals, 1.0)
    found["back"], G = cpu(lambda: engine._by_operator(w), repeats)
    found["contraction"], _ = cpu(lambda: engine._contract([part[0] for part in G]), repeats)
    gradient = engine.gradient(w)
    engine.signals = lambda *args, **more: signals
    engine.gradient = lambda adjoint: gradient
    found["tape"], _ = cpu(case.evaluate, repeats)
    del engine.signals, engine.gradient
    found["priors"], _ = cpu(lambda: [(p.value(case.z), p.pull_back(case.z, 1.0))
                                      for p in case.priors], repeats)
    found["tape"] -= found["priors"]
    return found, adds, factors[0] if factors else 0


def table(case: Case, repeats: int) -> dict:
    seconds, adds, factor = by_phase(case, repeats)
    n, K = case.engine.basis.modes.shape
    whole, (loss, gradient) = cpu(case.evaluate, repeats)
    calls = 0

    def with_tao():
        nonlocal calls
        calls = case.tao()
    tao, _ = cpu(with_tao, max(2, repeats // 2))
    batch = case.engine._tape[-1][0]
    speed = rates(n, K, len(batch.strength), 2 * batch.strength.shape[1], repeats)
    of = {"forward": "many skinny products", "back": "wide product"}
    shapes = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in speed.items()
                       if name != "bandwidth")
    print(f"  {K} functions of {n} unknowns, decay up to "
          f"{case.engine.basis.eigenvalues[-1]:.3g}/ms")
    print(f"  Gflop/s: {shapes}; copy {speed['bandwidth'] / 1e9:.1f} GB/s")
    print(f"  {'phase':12} {'CPU s':>8} {'Gflop':>8} {'MB':>8} {'floor s':>8} {'ratio':>6}")
    floors = 0.0
    work_of = work(case, adds, factor) if adds else {}
    for name in ("assembly", "basis", "projection", "forward", "back", "contraction", "priors",
                 "tape"):
        if name not in work_of:
            print(f"  {name:12} {seconds[name]:8.4f}")
            continue
        flops, moved = work_of[name]
        floor = max(flops / speed[of.get(name, "tall product")], moved / speed["bandwidth"])
        floors += floor
        print(f"  {name:12} {seconds[name]:8.4f} {flops / 1e9:8.3f} {moved / 1e6:8.1f} "
              f"{floor:8.4f} {seconds[name] / floor:6.1f}")
    print(f"  {'sum':12} {sum(seconds.values()):8.4f}")
    print(f"  {'whole':12} {whole:8.4f} {'':8} {'':8} {floors:8.4f} "
          + (f"{whole / floors:6.1f}" if floors else ""))
    print(f"  with TAO, each of {calls} evaluations: {tao / calls:.4f} s")
    return {"loss": loss, "gradient": gradient, "whole": whole}


def agreement(case: Case, options, found: dict) -> None:
    """Against twice the functions."""
    from spinverse.engines.basis import responses as response_basis
    twice = case.make(2 * options.modes, options.functions)
    signals, usual = case.engine.signals(case.kappa), response_basis._FASTEST
    response_basis._FASTEST = np.inf  # the other one keeps its fast functions
    finer = twice.signals(case.kappa, remember=True)
    response_basis._FASTEST = usual
    error = np.abs(np.abs(signals) - np.abs(finer)) / case.reference
    w = case.misfit.pull_back(finer, 1.0)
    case.engine.signals(case.kappa, remember=True)
    g, h = case.engine.gradient(w), twice.gradient(w)
    loss, other = case.misfit.value(signals), case.misfit.value(finer)
    by_sequence = [error[case.acquisition.waveform_index == k].max()
                   for k in range(len(case.acquisition.waveforms))]
    print(f"  against {len(twice.basis)} functions: normalised signals "
          + ", ".join(f"{e:.1e}" for e in by_sequence)
          + f" by sequence; misfit {abs(loss - other) / other:.1e} of it; gradient "
          f"{np.linalg.norm(g - h) / np.linalg.norm(h):.1e} of it")


# ---- other processes --------------------------------------------------------------------------

def child(options, *arguments: str, tree: str | None = None) -> dict:
    """This script once more, in a process of its own; the last line of its output."""
    tree = tree or str(Path(spinverse.__file__).resolve().parents[1])
    command = [sys.executable, __file__, "--modes", str(options.modes), "--mesh", options.mesh,
               "--repeats", str(options.repeats), *arguments]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": tree}, check=True,
                          stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak() -> float:
    """MB that this process has held at most; a child's getrusage begins with its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1e3
    return float("nan")


def memory(options, imported: float) -> dict:
    """MB above the import's own footprint at the peak of one evaluation, and before it."""
    case = Case(options.mesh, options.sequences, options.where, options.modes, options.functions)
    ready = peak()
    case.evaluate()
    return {"MB": peak() - imported, "ready": ready - imported, "imported": imported}


def whole(options) -> dict:
    """CPU seconds of one evaluation, and of an iteration of two presets."""
    from inspect import signature

    from spinverse.engines.modal.matrix_formalism import MatrixFormalism
    new = "functions" in signature(MatrixFormalism.__init__).parameters
    functions = options.functions if new else ""
    found = {"file": spinverse.__file__}
    for sequences in SEQUENCES:
        for where in ("start", "end"):
            case = Case(options.mesh, sequences, where, options.modes, functions)
            found[f"{sequences} {where}"] = cpu(case.evaluate, options.repeats)[0]
    if options.presets:
        truth = case.tissue
        acquisition = Acquisition.pgse(B, 30, *SEQUENCES[3])
        measured = Signals(acquisition, MatrixFormalism(BlochTorrey(truth), acquisition,
                                                        200).signals())
        for name in ("published", "facets"):
            for stage in presets.preset(name)[:2]:
                marks = []
                spinverse.reconstruct(
                    case.mesh, measured, [replace(stage, iterations=8)], boundary="absorbing",
                    modes=options.modes, progress=lambda item, m=marks: m.append(
                        time.process_time()))
                found[f"{name} {stage.name}"] = float(np.min(np.diff(marks)))
    return found


def main() -> None:
    imported = peak()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modes", type=int, default=144)
    parser.add_argument("--functions", default="responses", help="modes or responses")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mesh", default="", help="a mesh; 'published' for the sphere 018")
    parser.add_argument("--against", default="", help="another checkout of spinverse")
    parser.add_argument("--presets", action="store_true", help="with --against: iterations too")
    parser.add_argument("--sequences", type=int, choices=tuple(SEQUENCES), default=0)
    parser.add_argument("--where", choices=("start", "end"), default="")
    parser.add_argument("--child", choices=("memory", "whole"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mesh == "published":
        options.mesh = str(PUBLISHED)
    if options.child:
        print(json.dumps(memory(options, imported) if options.child == "memory"
                         else whole(options)))
        return
    if options.against:
        more = ["--presets"] if options.presets else []
        trees = {"here": None, "there": options.against}
        rounds = [{name: child(options, "--child", "whole", *more, tree=tree)
                   for name, tree in trees.items()} for _ in range(2)]
        print(f"{'CPU s':24} {'here':>8} {'there':>8} {'ratio':>6}")
        for key in rounds[0]["here"]:
            if key == "file":
                continue
            here, there = (min(r[name][key] for r in rounds) for name in trees)
            print(f"{key:24} {here:8.4f} {there:8.4f} {there / here:6.2f}")
        return
    for sequences in [options.sequences] if options.sequences else SEQUENCES:
        for where in [options.where] if options.where else ("start", "end"):
            print(f"{sequences} sequence{'s' * (sequences > 1)}, {where}:")
            case = Case(options.mesh, sequences, where, options.modes, options.functions)
            found = table(case, options.repeats)
            agreement(case, options, found)
            held = child(options, "--child", "memory", "--sequences", str(sequences), "--where",
                         where, "--functions", options.functions)
            print(f"  peak memory above the import's {held['imported']:.0f} MB: "
                  f"{held['MB']:.0f} MB, of which {held['ready']:.0f} before the evaluation",
                  flush=True)


if __name__ == "__main__":
    main()
