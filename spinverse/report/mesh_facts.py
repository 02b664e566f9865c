"""What a mesh is like: lengths of its edges, quality of its cells, parts that do not touch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from mpi4py import MPI

from ..mesh import Mesh
from ..mesh.checks import radius_ratios
from ..mesh.connected import connected_cells, sizes_of
from ..parallel.statistics import order_statistics

BLOCK = 1024  # cells whose quality is looked at together
UNITS = ("", "um", "um^2", "um^3")  # of sizes, by their dimension


@dataclass(frozen=True)
class MeshFacts:
    """Facts about a whole mesh, the same on every rank."""

    edges: tuple[float, float, float]  # shortest, median and longest, um
    worst: float  # radius ratio of the cells, 1 for regular ones, 0 for flat ones
    mean: float
    parts: tuple[float, ...]  # volumes, um^d, of those that share no facet, the largest first

    @classmethod
    def of(cls, mesh: Mesh) -> MeshFacts:
        """Collective."""
        comm, owned = mesh.comm, mesh.num_owned_cells
        nodes = mesh.geometry.dofmaps[0][:owned]
        x = mesh.geometry.x
        lengths = np.concatenate([np.linalg.norm(x[nodes[:, i]] - x[nodes[:, j]], axis=1)
                                  for i, j in combinations(range(mesh.dim + 1), 2)])
        ratios = np.concatenate([np.empty(0), *(radius_ratios(x, nodes[begin: begin + BLOCK])
                                                for begin in range(0, len(nodes), BLOCK))])
        number = comm.allreduce(len(lengths))
        middle = order_statistics(comm, lengths, np.array([(number - 1) // 2, number // 2]))
        edges = (comm.allreduce(float(lengths.min(initial=np.inf)), op=MPI.MIN),
                 float(middle.mean()),
                 comm.allreduce(float(lengths.max(initial=0.0)), op=MPI.MAX))
        labels = connected_cells(mesh, ~mesh.outer)[:owned]
        firsts = labels[labels == mesh.input_cells[:owned]]  # a part is told by its first cell
        parts = np.concatenate(comm.allgather(sizes_of(mesh, labels, firsts)))
        return cls(edges, comm.allreduce(float(ratios.min(initial=1.0)), op=MPI.MIN),
                   comm.allreduce(float(ratios.sum())) / mesh.num_cells,
                   tuple(sorted(parts.tolist(), reverse=True)))

    def describe(self, dim: int) -> str:
        """Edges and quality in words."""
        low, middle, high = self.edges
        return (f"mesh edges: {low:.3g} to {high:.3g} um, median {middle:.3g} um"
                + (f"; quality (radius ratio) {self.worst:.2g} at worst, {self.mean:.2g} on "
                   "average" if dim > 1 else ""))

    def describe_parts(self, dim: int) -> str:
        """The parts in words; "" for one."""
        if len(self.parts) == 1:
            return ""
        shown = ", ".join(f"{part:.4g}" for part in self.parts[:6])
        shown += ", ..." * (len(self.parts) > 6)
        return (f"mesh: {len(self.parts)} parts that share no facet, of {shown} {UNITS[dim]}: "
                "nothing passes between them")
