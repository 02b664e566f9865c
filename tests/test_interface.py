"""Extraction of membranes from permeabilities, and the files that hold them."""

from pathlib import Path

import meshio
import numpy as np
import pytest
from mpi4py import MPI

from spinverse import mesh as meshes
from spinverse.errors import InputError
from spinverse.interface import export, extraction
from spinverse.tissue import Permeability, Tissue

SPHERE = Path(__file__).parent.parent / "meshes" / "sphere_in_grid_bcc.npz"


class TwoBalls:
    def contains(self, points):
        return np.minimum(np.linalg.norm(points - [-6, 0, 0], axis=1),
                          np.linalg.norm(points - [6, 0, 0], axis=1)) <= 4.5


def uniform(mesh):
    """Numbers in [0, 1) that belong to the vertex triple, on any number of ranks."""
    return np.abs(np.modf(np.sin(mesh.facet_vertices @ [12.9898, 78.233, 37.719]) * 43758.5)[0])


def field(mesh, absorbing, membrane, elsewhere):
    kappa = np.where(mesh.outer, 100.0 * absorbing, elsewhere)
    return np.where((mesh.interface > 0) & (~mesh.outer | absorbing), membrane, kappa)


def extract(mesh, kappa, absorbing):
    tissue = Tissue(mesh, 2.0, permeability=Permeability(mesh, kappa))
    return extraction.compartments(tissue, absorbing)


@pytest.mark.mpi
@pytest.mark.parametrize("absorbing", [True, False])
def test_sphere_among_undetermined_facets(comm, absorbing):
    mesh = meshes.read(SPHERE, comm)
    kappa = field(mesh, absorbing, 0.01, 10 ** (-1 + 3 * uniform(mesh)))
    found = extract(mesh, kappa, absorbing)
    assert np.array_equal(found.facets, mesh.interface > 0)
    below = extraction.by_threshold(mesh, kappa) & ~mesh.outer
    assert comm.allreduce(int(below.sum())) > 3 * 96
    assert len(found.volumes) == (1 if absorbing else 2)
    inside = mesh.cell_tags[: mesh.num_owned_cells] == 1
    assert np.array_equal(found.labels, np.where(inside, 1, 0) if absorbing
                          else np.where(inside, 2, 1))


@pytest.mark.mpi
@pytest.mark.parametrize("absorbing", [True, False])
@pytest.mark.parametrize("membrane", [0.01, 0.1])
def test_two_cells(comm, absorbing, membrane):
    mesh = meshes.build(meshes.tagged_grid, TwoBalls(), length=24.0, cells=6, comm=comm)
    found = extract(mesh, field(mesh, absorbing, membrane, 100.0), absorbing)
    assert np.array_equal(found.facets, mesh.interface > 0)
    assert np.allclose(found.volumes[-2:], 384.0)


@pytest.mark.parametrize("absorbing", [True, False])
@pytest.mark.parametrize("elsewhere", [100.0, np.inf])
def test_no_membrane(absorbing, elsewhere):
    mesh = meshes.read(SPHERE, MPI.COMM_SELF)
    found = extract(mesh, field(mesh, absorbing, elsewhere, elsewhere), absorbing)
    assert not found.facets.any() and len(found.volumes) == (0 if absorbing else 1)


@pytest.mark.mpi
def test_automatic_cut(comm):
    mesh = meshes.read(SPHERE, comm)
    kappa = np.where(mesh.interface > 0, 0.01, 100.0)
    everything = np.ones(len(kappa), bool)
    assert np.isclose(np.log10(extraction.automatic_cut(mesh, kappa, everything)), 0, atol=0.05)
    flat = extraction.automatic_cut(mesh, np.full(len(kappa), 0.3), everything)
    assert 0.25 < flat <= 0.3


def test_bad_input():
    mesh = meshes.read(SPHERE, MPI.COMM_SELF)
    with pytest.raises(InputError, match="permeability: shape"):
        extraction.by_threshold(mesh, np.ones(3))
    with pytest.raises(InputError, match="cut: 0"):
        extraction.by_threshold(mesh, np.ones(mesh.num_owned_facets), 0)
    with pytest.raises(InputError, match="max_compartments"):
        extraction.compartments(Tissue(mesh), True, 0)


@pytest.mark.mpi
def test_files(comm, shared_tmp_path):
    mesh = meshes.read(SPHERE, comm)
    kappa, member = 0.1 + uniform(mesh), mesh.interface > 0
    path = shared_tmp_path / "permeability.npz"
    labels = np.where(mesh.cell_tags == 1, 1, 0)[: mesh.num_owned_cells]
    export.write_permeability(path, mesh, kappa, membrane=member, labels=labels)
    assert np.array_equal(export.read_permeability(path, mesh), kappa)
    export.write_vtu(shared_tmp_path / "f.vtu", mesh, {"permeability": kappa, "member": member})
    export.write_stl(shared_tmp_path / "given.stl", mesh, member, labels)
    export.write_stl(shared_tmp_path / "regions.stl", mesh, member)
    export.write_stl(shared_tmp_path / "none.stl", mesh, np.zeros_like(member))
    with np.load(path) as file:
        assert file["membrane"].sum() == 96
        assert np.array_equal(file["labels"], meshes.readers.read(SPHERE).cell_tags == 1)
        assert np.array_equal(np.lexsort(file["facets"].T[::-1]), np.arange(len(file["facets"])))
    whole = meshio.read(shared_tmp_path / "f.vtu")
    assert len(whole.cells[0].data) == mesh.num_facets and len(whole.points) == 189
    for name in ("given", "regions"):
        surface = meshio.read(shared_tmp_path / f"{name}.stl")
        a, b, c = np.moveaxis(surface.points[surface.cells[0].data].astype(float), 1, 0)
        volume = np.einsum("ni,ni->", a, np.cross(b, c)) / 6  # positive when normals point out
        assert len(a) == 96 and np.isclose(volume, 4148.3, rtol=1e-4)
    assert (shared_tmp_path / "none.stl").stat().st_size == 84
    assert not list(shared_tmp_path.glob(".*"))
    with pytest.raises(InputError, match="no such file"):
        export.read_permeability(shared_tmp_path / "other.npz", mesh)
    with pytest.raises(InputError, match="cannot be read"):
        export.read_permeability(shared_tmp_path / "f.vtu", mesh)
