"""Periodic tissues and tables that several files test."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from spinverse import BlochTorrey, Permeability, Tissue, mesh
from spinverse.acquisition import Acquisition, Sampled
from spinverse.engines.modal.matrix_formalism import MatrixFormalism

TENSOR = np.array([[2.0, 0.3, 0.1], [0.3, 1.5, 0.2], [0.1, 0.2, 1.0]])
WEIGHTS = np.array([0.3 - 1j, 0.5 + 0.2j, -0.7j, 1.0, -0.4 + 0.6j, 0.8 - 0.1j])
LEAN = Sampled((0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 8.0), (0.0, 1.0, 0.0, 0.0, -0.5, 0.0, 0.0))


def along_x(b=(0, 1000, 3000), delta=2.0, Delta=6.0) -> Acquisition:
    return Acquisition.pgse(b=b, directions=[[1.0, 0, 0]], delta=delta, Delta=Delta)


def stack(periods=1, cells=8, comm=MPI.COMM_SELF):
    """Layers of 3 and 5 um with membranes 0.05 and 0.4; a third layer is cut by the box's ends."""
    lengths = [1.0] + ([3.0, 5.0, 2.0] * periods)[:-1] + [1.0]
    counts = [cells * (2 if length == 2.0 else 1) for length in lengths]
    line = mesh.build(mesh.intervals, lengths, cells_per_layer=counts, comm=comm)
    layer = np.array(([0] + [1, 2, 0] * periods)[: len(lengths)])
    kappa = np.where(line.interface > 0, np.array([0.05, 0.4, 0.15])[(line.interface - 1) % 3],
                     np.inf)
    return line, layer, np.where(line.outer, 0.0, kappa)


def layers(periodic="x", periods=1, cells=8, degree=2, comm=MPI.COMM_SELF, varied=True,
           broken=False) -> BlochTorrey:
    line, layer, kappa = stack(periods, cells, comm)
    kappa = np.where(broken & np.isinf(kappa), 20.0, kappa)
    by_tag = {tag + 1: kind for tag, kind in enumerate(layer)}
    values = {name: {tag: choice[kind] for tag, kind in by_tag.items()} for name, choice in (
        ("diffusivity", (2.0, 1.0, 2.5)), ("T2", (60.0, 30.0, 90.0)), ("density", (1.0, 0.6, 0.8)))}
    return BlochTorrey(Tissue(line, permeability=Permeability(line, kappa), periodic=periodic,
                              **(values if varied else {})), degree)


def small_box(periodic="xyz", comm=MPI.COMM_SELF, tied=True, degree=1,
              interface="equilibrium", **extra) -> BlochTorrey:
    """Everything in it different from cell to cell and facet to facet."""
    box = mesh.build(mesh.box, [8.0, 7.0, 6.0], cells=(2, 2, 2), comm=comm)
    wave = np.sin(box.facet_vertices @ np.array([1.3, 2.9, 0.7]))
    kappa = np.where(box.outer, 0.03, 0.1) * (1.2 + wave)
    if tied:
        kappa[~box.outer & (box.facet_vertices.sum(axis=1) % 3 == 0)] = np.inf
    cell = np.arange(box.num_cells)
    tissue = Tissue(box, diffusivity=TENSOR * (1 + 0.2 * np.cos(cell))[:, None, None],
                    T2=40.0 + 10 * np.sin(cell), density=1 + 0.3 * np.cos(2 * cell),
                    permeability=Permeability(box, kappa), interface=interface,
                    periodic=periodic)
    return BlochTorrey(tissue, degree, **extra)


def few(b=(0, 1500)) -> Acquisition:
    return Acquisition.pgse(b=b, directions=[[0.6, 0.0, 0.8], [-0.48, 0.8, 0.36]],
                            delta=2.0, Delta=3.0)


def every_mode(problem, acquisition, max_step=0.1, **kwargs) -> MatrixFormalism:
    return MatrixFormalism(problem, acquisition, modes=problem.num_unknowns, max_step=max_step,
                           **kwargs)


def error(problem, found, exact) -> float:
    return np.abs(found - exact).max() / problem.magnetisation_at_start
