"""No rank holds a whole field of the mesh: run under mpiexec by `test_no_gathers`.

Every action is run by one rank alone and by all together, and its memory watched. Together no rank
may need more than `SHARE` of what one alone needs, which it would if all of something came to it;
nor as much as the whole has bytes. Less than `INTERFACE` of the whole may come to one rank: a
picture of an interface does. The whole is what an action returns: the size of the file that it
writes or reads, or of a field of facets with their vertices. To add an action, write a function
with `@action`. Metrics and surfaces, whose figures are compared too, are in `metrics_over_ranks`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from mpi4py import MPI
from peaks import peak

from spinverse import BlochTorrey, Mesh, Permeability, Tissue
from spinverse import mesh as meshes
from spinverse.adjoint import FacetField
from spinverse.interface import (
    read_permeability,
    write_cells,
    write_magnetisation,
    write_permeability,
    write_vtu,
)
from spinverse.inversion import State
from spinverse.inversion.facets.memory import Memory
from spinverse.report import folder
from spinverse.report.mesh_facts import MeshFacts

SHARE = 0.5  # on four ranks; a quarter, and ghosts, if all is shared out
INTERFACE = 0.25
CELLS = 12  # 20736 cells
ACTIONS = {}


def action(function):
    """One more thing that must not gather."""
    ACTIONS[function.__name__] = function
    return function


class Case:
    """What the actions work with: the input on rank 0, the mesh, fields on it, a folder."""

    def __init__(self, comm: MPI.Comm, place: Path):
        self.comm, self.folder = comm, place
        self.data = meshes.tagged_grid(meshes.Ball(7.0), 20.0, cells=CELLS) \
            if comm.rank == 0 else None
        self.mesh = Mesh.from_data(self.data, comm)
        if self.data is not None:
            with (place / "mesh.npz").open("wb") as file:
                np.savez(file, points=self.data.points, tets=self.data.cells,
                         cell_tags=self.data.cell_tags,
                         interface_facets=self.data.interface_facets)
        comm.Barrier()
        self.kappa = 1.0 + np.modf(self.mesh.facet_vertices @ [0.1, 0.01, 0.003])[0]
        self.labels = (self.mesh.cell_tags[: self.mesh.num_owned_cells] == 1).astype(np.int32)
        self.found = self.mesh.interface > 0
        self.mesh.facet_corners  # noqa: B018 - of this rank's facets, and kept
        self.field = 32 * self.mesh.num_facets  # a triple and a value
        self.problem = BlochTorrey(Tissue(self.mesh, permeability=Permeability(
            self.mesh, np.where(self.mesh.outer, 0.0, self.kappa))))
        self.moments = np.exp(1j * np.arange(2 * len(self.problem.scale)).reshape(2, -1))
        self.memory = Memory("x", 3, {"losses": np.arange(4.0)}, {
            "control": self.kappa, "gradients": np.array([self.kappa, -self.kappa])})

    def size(self, name: str) -> int:
        """Bytes of a file."""
        self.comm.Barrier()
        return (self.folder / name).stat().st_size


@action
def distributes_a_mesh(case):
    given = 0 if case.data is None else sum(a.nbytes for a in (
        case.data.points, case.data.cells, case.data.cell_tags, case.data.input_vertices))
    again = Mesh.from_data(case.data, case.comm)
    assert np.array_equal(again.cell_tags, case.mesh.cell_tags)
    # and what the mesh makes of it: every facet's vertices, tag and side
    return case.comm.bcast(given) + case.field


@action
def reads_a_mesh_in_slabs(case):
    again = meshes.read_in_slabs(case.folder / "mesh.npz", case.comm)
    assert again.num_cells == case.mesh.num_cells
    return case.size("mesh.npz") + case.field


@action
def writes_permeabilities(case):
    write_permeability(case.folder / "permeability.npz", case.mesh, case.kappa,
                       membrane=case.found)
    return case.size("permeability.npz")


@action
def reads_permeabilities(case):
    found = read_permeability(case.folder / "permeability.npz", case.mesh)
    assert np.array_equal(found, case.kappa)
    return case.size("permeability.npz")


@action
def writes_facets_for_paraview(case):
    write_vtu(case.folder / "facets.vtu", case.mesh, {"permeability": case.kappa})
    return case.size("facets.vtu")


@action
def writes_cells_for_paraview(case):
    write_cells(case.folder / "cells.vtu", case.mesh, {"label": case.labels})
    return case.size("cells.vtu")


@action
def writes_a_magnetisation(case):
    write_magnetisation(case.folder / "m.pvd", case.problem, [0.0, 1.0], case.moments)
    return case.size("m_0000.vtu")


@action
def saves_a_checkpoint(case):
    folder.save_checkpoint(case.folder, case.mesh, State(case.kappa, case.labels), 0, 3, ["a"],
                           {"mesh": "1"}, case.memory)
    return case.size(folder.CHECKPOINT)


@action
def goes_on_from_a_checkpoint(case):
    found = folder.load_checkpoint(case.folder, ["a"], {"mesh": "1"}, case.comm)
    kappa = case.mesh.scatter_facets(found.triples, found.permeability, "checkpoint")
    memory = Memory.scattered(case.mesh, found.memory)
    assert np.array_equal(kappa, case.kappa) and found.note == ""
    assert np.array_equal(memory.facets["gradients"], case.memory.facets["gradients"])
    assert np.array_equal(case.mesh.cell_slabs.spread(found.labels), case.labels)
    return case.size(folder.CHECKPOINT)


@action
def says_what_a_mesh_is_like(case):
    assert len(MeshFacts.of(case.mesh).parts) == 1
    return 6 * 24 * case.mesh.num_cells  # edges of cells: their ends and lengths


@action
def gathers_an_interface_for_a_picture(case):
    case.mesh.gather_facets(case.mesh.facet_corners, case.kappa, where=case.found)
    return case.field


@action
def gives_tao_its_vector(case):
    field = FacetField(case.mesh, case.kappa)
    vector = field._ad_to_petsc()  # of PETSc's memory tracemalloc knows nothing
    assert vector.getLocalSize() == case.mesh.num_owned_facets
    field._ad_from_petsc(vector)
    assert np.array_equal(field.values, case.kappa)
    return case.field


# ---- gathers on rank 0, which the rule must find --------------------------------------------

def the_old_file(case):
    """Rank 0 gathers and writes."""
    whole = case.mesh.gather_facets(case.kappa, case.found)
    if whole is not None:
        with (case.folder / "old.npz").open("wb") as file:
            np.savez(file, facets=whole[0], permeability=whole[1], membrane=whole[2])
    return case.size("old.npz")


def the_old_input(case):
    """Every rank gets the input's vertices and tags."""
    held = case.data
    small = case.comm.bcast((held.cell_tags.copy(), held.input_vertices.copy())
                            if held is not None else None)
    return sum(a.nbytes for a in small)


def the_old_cells(case):
    """Rank 0 gathers the corners of all cells."""
    x, count = case.mesh.domain.geometry, case.mesh.num_owned_cells
    parts = case.comm.gather((case.mesh.input_cells[:count], x.x[x.dofmaps[0][:count]]))
    if parts is not None:
        order = np.argsort(np.concatenate([part[0] for part in parts]))
        np.save(case.folder / "old.npy", np.concatenate([part[1] for part in parts])[order])
    return case.size("old.npy")


OLD = (the_old_file, the_old_input, the_old_cells)


def measure(case, act) -> tuple[int, int]:
    """The largest peak of a rank and the whole, both in bytes."""
    case.comm.Barrier()
    whole, most = peak(lambda: act(case))
    return case.comm.allreduce(most, op=MPI.MAX), whole


def measured(comm: MPI.Comm, place: Path) -> dict[str, tuple[int, int]]:
    """Peak and whole of each action."""
    if comm.rank == 0:
        (place / "checkpoint").mkdir(parents=True)
    case = Case(comm, place)
    return {act.__name__: measure(case, act) for act in (*ACTIONS.values(), *OLD)}


def main(place: Path) -> int:
    comm = MPI.COMM_WORLD
    alone = comm.bcast(measured(MPI.COMM_SELF, place / "alone") if comm.rank == 0 else None)
    together = measured(comm, place / "together")
    wrong = []
    for name, (most, whole) in together.items():
        share, of_whole = most / alone[name][0], most / whole
        gathers = (share > SHARE and of_whole > INTERFACE) or of_whole >= 1
        if gathers != (name in [old.__name__ for old in OLD]):
            wrong.append(name)
        if comm.rank == 0:
            print(f"{name}: {share:.2f} of one rank's peak, {of_whole:.2f} of the whole of "
                  f"{whole / 1e6:.2f} MB", flush=True)
    if comm.rank == 0:
        print("wrong:", wrong)
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
