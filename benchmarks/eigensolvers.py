"""Our block eigensolver beside SLEPc's LOBPCG, GD and JD, with the same preconditioner and start.

    python benchmarks/eigensolvers.py                          # 10 368 unknowns, 60 modes; a minute
    python benchmarks/eigensolvers.py --cells 6 8 10 --modes 60 200 --solvers blocks lobpcg small
    python benchmarks/eigensolvers.py --scan                   # options of SLEPc's solvers
    mpiexec -n 2 python benchmarks/eigensolvers.py --cells 8

The lowest modes of decay and mass on the broken space of a ball of 6 um in a cube of 20 um, closed
outside. Fields, um/ms: walls are 0.01 on the ball and 100 elsewhere, mixed is random from 1e-4 to
100, middling is 1 and closed 1e-3 everywhere. Solvers:

- direct: shift and invert with a MUMPS factor, as for small meshes. It is asked for more modes than
  the others, and its values are the reference.
- blocks: `spinverse.engines.basis.blocks`, tolerance 1e-5.
- lobpcg, small, gd, jd: SLEPc's, for A + s M and M, with `TwoLevel` as a shell and the modes of the
  coarse spaces as initial space. LOBPCG has one block for all modes, or (small) many of 32; its
  preconditioner is five steps of conjugate gradients, as in blocks. GD applies it once, JD solves
  five steps. Their tolerance is for the norm of a residual of a vector of norm 1 (both made free of
  the cells' size) over lambda + s.

Set-up (blocks, coarse factors, coarse modes) is the same for all but direct, and in the seconds of
none. Seconds are processor seconds of the slowest rank, the fewest of ``--rounds``; columns are
what the preconditioner was applied to. Errors are of eigenvalues, relative to lambda + s, of all
and of the ten lowest; missed are those off by more than 1e-3. Memory is what a solver adds to the
peak of a rank, MB (Linux).
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mpi4py import MPI

from spinverse import BlochTorrey, Permeability, Tissue, mesh
from spinverse.engines.basis import blocks, eigenmodes
from spinverse.engines.basis.krylov import waves

# isort: split
from petsc4py import PETSc
from slepc4py import SLEPc

FIELDS = ("walls", "mixed", "middling", "closed")
HEADS = ("unknowns", "field", "modes", "solver", "CPU s", "of blocks", "columns", "found", "missed",
         "error", "of the lowest", "MB")
MISSED = 1e-3  # relative error of an eigenvalue that is another's
EXTRA = 40  # modes of the reference beyond those compared: Lanczos misses equal ones at its end
PREFIX = "bench_"
LOBPCG = dict(kind="lobpcg", tolerance=1e-2, block=0, cg=True, orthogonal="CHOL")
GD = dict(kind="gd", tolerance=1e-2, block=8, space=1.5)
JD = dict(kind="jd", tolerance=1e-2, block=8, space=1.5, inner=5)
TUNED = {"lobpcg": LOBPCG, "small": LOBPCG | dict(block=32), "gd": GD, "jd": JD}
SCAN = [
    *(LOBPCG | dict(block=block, cg=cg) for block in (16, 32, 64, 0) for cg in (True, False)),
    *(LOBPCG | dict(tolerance=tolerance) for tolerance in (3e-2, 3e-3)),
    *(LOBPCG | dict(orthogonal=name) for name in ("GS", "SVQB")),
    LOBPCG | dict(lock=False),
    *(LOBPCG | dict(block=32, restart=restart) for restart in (0.5, 0.7)),
    *(GD | dict(block=block, cg=cg) for block in (1, 8) for cg in (False, True)),
    GD | dict(kept=0.5), GD | dict(space=2.5),
    *(JD | dict(block=block, inner=inner) for block in (1, 8) for inner in (5, 12)),
]


class Counted(blocks.Inverse):
    """Counts the columns that its preconditioner is applied to."""

    columns = 0

    def roughly(self, loads: np.ndarray) -> np.ndarray:
        self.columns += blocks.STEPS * loads.shape[1]
        return super().roughly(loads)


class Shell:
    """The preconditioner, of single precision, as PETSc calls it: for one vector or many at once.

    Args:
        cg: a few steps of conjugate gradients with it, instead of itself.
    """

    def __init__(self, inverse: Counted, cg: bool):
        self.inverse, self.cg = inverse, cg

    def columns(self, loads: np.ndarray) -> np.ndarray:
        if self.cg:
            return self.inverse.roughly(loads)
        self.inverse.columns += loads.shape[1]
        block = np.ascontiguousarray(loads, dtype=self.inverse.rows.dtype)
        return self.inverse.preconditioner(block).astype(float)

    def matApply(self, pc, X, Y) -> None:
        Y.getDenseArray()[:] = self.columns(np.asfortranarray(X.getDenseArray(readonly=True)))
        Y.assemble()

    def apply(self, pc, x, y) -> None:
        y.setArray(self.columns(x.array_r[:, None])[:, 0])


class Case:
    """One problem: matrices, and what all but the direct solver begin with."""

    def __init__(self, cells: int, field: str, wanted: int):
        grid = mesh.build(mesh.tagged_grid, shape=mesh.Ball(6), length=20, cells=cells)
        problem = BlochTorrey(Tissue(grid, permeability=Permeability.on(grid, 0.01, 100.0)))
        # values that know the facet and not the rank
        random = np.sin(grid.facet_vertices @ [12.9898, 78.233, 37.719]) * 43758.5453 % 1.0
        inner = {"walls": problem.kappa.x.array[: grid.num_owned_facets].copy(), "closed": 1e-3,
                 "middling": 1.0, "mixed": 10 ** (6 * random - 4)}[field]
        problem.set_permeability(np.where(grid.outer, 0.0, inner))
        self.problem, self.wanted, self.size = problem, wanted, problem.num_unknowns
        self.A, self.M = problem.decay_matrix(), problem.mass_matrix
        fastest = problem.comm.allreduce(float(np.max(problem.tissue.diffusivity)), MPI.MAX)
        self.shift = 0.3 * fastest / 20**2
        self.start = eigenmodes.wave(problem)[:, 0]
        self.waves = waves(problem.space.tabulate_dof_coordinates()[: self.A.getLocalSize()[0]],
                           20, blocks.iterated(self.A, wanted))

    def set_up(self) -> None:
        self.inverse = Counted(self.problem, self.A, self.M, self.shift, PREFIX)
        self.first = blocks.coarse_modes(self.inverse.preconditioner, self.A, self.M, self.wanted,
                                         self.waves)

    def direct(self) -> np.ndarray:
        most = min(self.wanted + EXTRA, self.size)
        eps = eigenmodes.shift_invert(self.A, self.M, most, most, self.shift, PREFIX, self.start)
        values = eigenmodes.converged_pairs(eps, self.wanted)[0]
        eps.destroy()
        return values

    def blocks(self) -> np.ndarray:
        return blocks.lowest_pairs(self.inverse, self.A, self.M, self.wanted, self.shift,
                                   self.first, PREFIX)[0]

    def slepc(self, kind: str, tolerance: float, block: int, cg: bool = False,
              orthogonal: str = "GS", lock: bool = True, restart: float = 0.9, space: float = 2.0,
              kept: float = 0.0, inner: int = 0) -> np.ndarray:
        """Values found by one of SLEPc's solvers.

        Args:
            block: 0 for all modes and the surplus that `blocks` has.
            cg: five steps of conjugate gradients as preconditioner.
            orthogonal: how LOBPCG makes blocks orthonormal.
            lock: LOBPCG's soft locking.
            restart: LOBPCG's share of a block that converges before the next begins.
            space: of GD and JD, the largest, in modes wanted.
            kept: of that after a restart; 0 for as many as the initial space has.
            inner: steps of JD's solver.
        """
        wanted, shifted = self.wanted, self.inverse.matrix
        eps = SLEPc.EPS().create(self.A.comm)
        eps.setOperators(shifted, self.M)
        eps.setProblemType(SLEPc.EPS.ProblemType.GHEP)
        eps.setType(kind)
        eps.setTolerances(tolerance * np.sqrt(self.M.getDiagonal().sum() / self.size))
        initial = self.first.shape[1]
        if kind == "lobpcg":
            block = block or blocks.iterated(self.A, wanted)
            eps.setDimensions(wanted)
            eps.setWhichEigenpairs(SLEPc.EPS.Which.SMALLEST_REAL)
            eps.setLOBPCGBlockSize(block)
            eps.setLOBPCGLocking(lock)
            eps.setLOBPCGRestart(restart)
            eps.getBV().setOrthogonalization(block=getattr(SLEPc.BV.OrthogBlockType, orthogonal))
            initial = min(initial, ((wanted - 1) // block + 3) * block)
        else:
            most = int(space * wanted)
            initial = min(initial, wanted + 4)
            eps.setDimensions(wanted, most + wanted + block, most)
            eps.setWhichEigenpairs(SLEPc.EPS.Which.TARGET_MAGNITUDE)
            eps.setTarget(0.0)
            for name, value in (("BlockSize", (block,)), ("InitialSize", (initial,)),
                                ("Restart", (int(kept * most) or initial, 1))):
                getattr(eps, f"set{kind.upper()}{name}")(*value)
        st = eps.getST()
        st.setType(SLEPc.ST.Type.PRECOND)
        st.setPreconditionerMat(shifted)
        ksp = st.getKSP()
        ksp.setType(PETSc.KSP.Type.MINRES if inner else PETSc.KSP.Type.PREONLY)
        if inner:
            ksp.setTolerances(rtol=1e-2, max_it=inner)
        ksp.getPC().setType(PETSc.PC.Type.PYTHON)
        ksp.getPC().setPythonContext(Shell(self.inverse, cg))
        given = []
        for column in self.first.T[:initial]:
            given.append(self.A.createVecRight())
            given[-1].setArray(column)
        eps.setInitialSpace(given)
        for vector in given:
            vector.destroy()
        eps.setOptionsPrefix(PREFIX)
        eps.setFromOptions()
        eps.solve()
        values = eigenmodes.converged_pairs(eps, wanted)[0] - self.shift
        eps.destroy()
        return values


def peak(reset: bool = False) -> float:
    """MB; nan where the system does not tell."""
    try:
        if reset:
            ctypes.CDLL(None).malloc_trim(0)  # what others have freed
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, AttributeError, StopIteration):
        return float("nan")


def measured(comm, act: Callable) -> tuple:
    """What it returns, processor seconds and MB."""
    before = peak(reset=True)
    comm.Barrier()
    start = time.process_time()
    found = act()
    return (found, comm.allreduce(time.process_time() - start, MPI.MAX),
            comm.allreduce(peak() - before, MPI.MAX))


def compared(comm, case: Case, act: Callable, reference: np.ndarray, rounds: int) -> tuple:
    """Seconds, and the cells of a row behind them."""
    seconds, memory = np.inf, 0.0
    for _ in range(rounds):
        case.inverse.columns = 0
        try:
            values, took, memory = measured(comm, act)
        except (PETSc.Error, SystemError):  # slepc4py wraps some PETSc errors
            return np.inf, ["", "fails"]
        seconds = min(seconds, took)
    number = len(values)
    error = np.abs(values - reference[:number]) / (reference[:number] + case.shift)
    return seconds, [case.inverse.columns, number, np.count_nonzero(error > MISSED),
                     f"{error.max(initial=0):.0e}", f"{error[:10].max(initial=0):.0e}",
                     f"{memory:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[6],
                        help="cubes along a side, of 12 cells and 48 unknowns each")
    parser.add_argument("--modes", type=int, nargs="+", default=[60])
    parser.add_argument("--fields", nargs="+", default=["walls", "mixed"], choices=FIELDS)
    parser.add_argument("--solvers", nargs="+", default=["blocks", *TUNED],
                        choices=["blocks", *TUNED])
    parser.add_argument("--scan", action="store_true", help="blocks and all of SLEPc's options")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="file for the table")
    arguments = parser.parse_args()
    chosen = {name: TUNED.get(name) for name in arguments.solvers}
    if arguments.scan:
        chosen = {"blocks": None} | {" ".join(f"{key}={value}" for key, value in options.items()):
                                     options for options in SCAN}
    comm = MPI.COMM_WORLD
    rows: list[list[str]] = []

    def show(*cells) -> None:
        rows.append([str(cell) for cell in cells] + [""] * (len(HEADS) - len(cells)))
        if comm.rank == 0:
            print(f"| {' | '.join(rows[-1])} |", flush=True)

    if comm.rank == 0:
        print(f"{comm.size} rank(s)\n")
    show(*HEADS)
    show(*["---"] * len(HEADS))
    for cells, field, modes in ((c, f, m) for c in arguments.cells for f in arguments.fields
                                for m in arguments.modes):
        case = Case(cells, field, modes)
        head = (case.size, field, modes)
        _, seconds, memory = measured(comm, case.set_up)
        show(*head, "set-up", f"{seconds:.2f}", *[""] * 6, f"{memory:.0f}")
        reference, seconds, memory = measured(comm, case.direct)
        show(*head, "direct", f"{seconds:.2f}", "", "", modes, "", "", "", f"{memory:.0f}")
        ours = None
        for name, options in chosen.items():
            act = (lambda o=options, c=case: c.slepc(**o)) if options else case.blocks
            seconds, rest = compared(comm, case, act, reference, arguments.rounds)
            ours = seconds if name == "blocks" else ours
            show(*head, name, f"{seconds:.2f}", f"{seconds / ours:.2f}" if ours else "", *rest)
    if arguments.csv and comm.rank == 0:
        with arguments.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([rows[0], *rows[2:]])


if __name__ == "__main__":
    main()
