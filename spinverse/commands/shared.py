"""What the commands share: reading inputs on rank 0, naming places, summary.json, figures."""

from __future__ import annotations

import dataclasses
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mpi4py import MPI

from .. import __version__, config
from .._stack import load_stack
from ..acquisition import Acquisition
from ..acquisition.description import unit_warnings
from ..config import plausible
from ..errors import InputError, on_root, one_line
from ..glued import glued
from ..inversion.clock import Clock
from ..mesh import Mesh, MeshData, readers, write_npz
from ..report import folder
from ..report.mesh_facts import MeshFacts
from ..report.screen import Screen, describe_mesh
from ..tissue import Permeability
from ..units import describe_permeability

MESH = "mesh.npz"  # in a run's folder, if the mesh was made


def everywhere(comm: MPI.Comm, function, *args, **kwargs):
    """Run on rank 0, have the result on every rank. Collective."""
    return comm.bcast(on_root(comm, function, *args, **kwargs))


@contextmanager
def named(where: str):
    """Put the place in the run file before an InputError's message."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def permeability(tissue: config.TissueSection, mesh: Mesh) -> Permeability:
    """The permeability of every facet that a run file describes. Collective."""
    section, absorbing = tissue.permeability, tissue.boundary == "absorbing"
    if section.file is not None:
        from ..interface import export

        values = export.read_permeability(section.file, mesh)
        return Permeability(mesh, values if absorbing else np.where(mesh.outer, 0.0, values))
    outer = section.value("outer", 0.0)
    if absorbing and not outer > 0:
        raise InputError(f"permeability.outer_m_per_s: {outer:g} with boundary absorbing, "
                         "expected a positive value")
    if outer and not absorbing:
        raise InputError(f"permeability: outer facets have {describe_permeability(outer)} with "
                         "boundary reflecting, expected boundary: absorbing")
    try:
        return Permeability.on(mesh, section.value("membrane", None),
                               section.value("elsewhere", np.inf), outer)
    except InputError as error:  # in the words of run files
        said = str(error).replace("permeability.membrane:", "permeability.membrane_m_per_s:")
        raise InputError(said.replace("elsewhere alone", "elsewhere_m_per_s alone")) from None


def make_mesh(section: config.MeshSection, comm: MPI.Comm, stored: Path | None = None,
              boundary: str = "reflecting") -> tuple[Mesh, MeshData | None]:
    """The mesh of a run file, distributed, and what rank 0 made if it is of no file. Collective.

    With its faces glued where the boundary is "periodic".
    """
    # not every mesher makes the same mesh of a surface twice: that of an earlier part is taken
    kept = stored is not None and section.surface is not None and stored.is_file()
    data = on_root(comm, readers.read, stored) if kept else on_root(comm, section.make)
    mesh, made = Mesh.from_data(data, comm), data if section.file is None else None
    if boundary != "periodic":
        return mesh, made
    try:
        return glued(mesh), made
    except InputError as error:
        hint = "; mesh.periodic: true makes it so" if section.could_be_periodic else ""
        raise InputError(f"{error}{hint}") from None


def write_mesh(run_folder: Path, data: MeshData | None) -> None:
    """``mesh.npz``: the facets in the other files are those of this mesh. For one rank."""
    if data is not None:
        folder.replace(run_folder / MESH, lambda path: write_npz(path, data))


def hashes(comm: MPI.Comm, name: Path, run, **more: Path | None) -> dict[str, dict]:
    """Path and hash of every file that a run reads, by what it is. Collective."""
    paths = {"config": name, "mesh": run.mesh.source, **more,
             "extra_terms": run.extra_terms and run.extra_terms.file}
    sections = run.acquisition or ()
    for number, section in enumerate(sections):
        mark = f" {number}" if len(sections) > 1 else ""
        paths |= {f"acquisition{mark}": section.file, f"bvec{mark}": section.bvec}
    return everywhere(comm, lambda: {
        what: {"path": str(path), "sha256": folder.sha256(path)}
        for what, path in paths.items() if path is not None})


def understood(screen: Screen, run, mesh: Mesh, acquisition: Acquisition) -> MeshFacts:
    """Say what the mesh is like; warn of what is probably in another unit. Collective."""
    facts = MeshFacts.of(mesh)
    parts = facts.describe_parts(mesh.dim)
    screen.say(*describe_mesh(mesh), facts.describe(mesh.dim))
    if parts:  # of meshes that are of no file it is known that they are several
        (screen.say if run.mesh.file is None else screen.warn)(parts)
    warnings = plausible.of_tissue(run.tissue)
    warnings += [f"acquisition: {text}" for text in unit_warnings(acquisition)]
    # a time or diffusivity that is wrong makes any mesh look wrong; tags may share a value
    screen.warn(*(dict.fromkeys(warnings)
                  or plausible.of_mesh(facts.edges[1], run.tissue, acquisition)))
    return facts


def summary(arguments, run, comm: MPI.Comm, inputs: dict, clock: Clock) -> dict:
    """The part of summary.json that the commands share. Collective."""
    memory = comm.gather(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0)
    return {"command": arguments.command, "spinverse": __version__,
            "stack": dataclasses.asdict(load_stack()), "ranks": comm.size,
            "units": {"length": "um", "time": "ms", "permeability": "um/ms", "b": "s/mm^2",
                      "signal": "um^3 times density", "seconds": "s", "memory": "MiB"},
            "config": run.model_dump(mode="python", exclude_none=True), "inputs": inputs,
            "seconds": dict(clock.seconds), "peak_memory_per_rank": memory}


def plot(run_folder: Path, name: str, *args, **kwargs) -> list[str]:
    """Write a figure; a line instead where matplotlib is missing."""
    from ..report import plots

    figures = run_folder / "figures"
    figures.mkdir(exist_ok=True)
    try:
        folder.replace(figures / f"{name}.png",
                       lambda path: getattr(plots, name)(path, *args, **kwargs))
    except ImportError as error:
        if not any(figures.iterdir()):
            figures.rmdir()
        return [f"no figure {name}.png: {one_line(error)} (pip install 'spinverse[plot]')"]
    return []
