"""Both engines on more ranks than cells: run under mpiexec by `test_large_meshes`."""

import numpy as np
from mpi4py import MPI

from spinverse import Acquisition, BlochTorrey, Permeability, Tissue, mesh
from spinverse.engines.basis.eigenmodes import eigenmodes
from spinverse.engines.march.time_stepping import TimeStepping
from spinverse.engines.modal.matrix_formalism import MatrixFormalism

TABLE = Acquisition.pgse([0, 1000], directions=[[1, 0, 0]], delta=2, Delta=5)
WEIGHTS = np.exp(1j * np.arange(len(TABLE)))


def results(comm):
    found, facets = [], []
    for build, sizes in ((mesh.intervals, [4.0, 3.0]), (mesh.slabs, [2.0, 2.0])):
        size = {"size": 10} if build is mesh.intervals else {"cells_per_layer": 1}
        grid = mesh.build(build, sizes, comm=comm, **size)
        facets += comm.allgather(grid.num_owned_facets)
        for elsewhere in (np.inf, 1.0):
            tissue = Tissue(grid, permeability=Permeability.on(grid, 0.05, elsewhere))
            problem = BlochTorrey(tissue)
            engines = [MatrixFormalism(problem, TABLE), TimeStepping(problem, TABLE, 0.5)]
            for engine in engines:
                found.append(engine.signals(remember=True))
                found.append(comm.allreduce(float((engine.gradient(WEIGHTS) ** 2).sum())))
            values = eigenmodes(problem, 2, solver="iterative").eigenvalues[:2]
            found.append(values)
    return found, facets


if __name__ == "__main__":
    many, facets = results(MPI.COMM_WORLD)
    one, _ = results(MPI.COMM_SELF)
    assert min(facets) == 0, facets
    for a, b in zip(many, one, strict=True):
        assert np.allclose(a, b, rtol=1e-8, atol=1e-9), (a, b)
    if MPI.COMM_WORLD.rank == 0:
        print("equal", facets)
