"""The hypotheses that a run file of a reconstruction speaks of: shapes and numbers of its prior."""

from __future__ import annotations

from pathlib import Path

from mpi4py import MPI

from .. import config
from ..acquisition import Signals
from ..config.physics import in_keys
from ..errors import on_all
from ..inversion import InverseProblem, Sampling
from ..inversion.posterior.sampler import Space, alone
from . import shared
from .reconstruct import read_signals


def of_run(path: Path,
           comm: MPI.Comm) -> tuple[config.ReconstructConfig, Signals, Sampling, Space]:
    """The run file, its signals, its posterior's section, and its hypotheses. Collective."""
    run = shared.everywhere(comm, config.read, path, config.ReconstructConfig)
    signals = read_signals(run, comm, path)
    with shared.named(str(path)):
        mesh, _ = shared.make_mesh(run.mesh, comm, None, run.tissue.boundary)
        with in_keys():
            problem = InverseProblem(mesh, signals, **run.known(comm))
            sampling = Sampling() if run.posterior is None else run.posterior.sampling()
            space = Space(alone(problem), sampling.prior, sampling.cells or 1)
            on_all(comm, lambda: space.models)
    return run, signals, sampling, space
