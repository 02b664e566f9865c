"""Compartments of a tissue: regions between membranes, their sizes, and what they touch.

A compartment is a set of cells that are connected through tied facets (kappa = inf), or through
facets of at least some permeability. The other facets are its walls, those of the outer boundary
too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..mesh.connected import connected_cells
from ..mesh.distributed import Mesh
from ..problem import BlochTorrey
from ..tissue import Tissue

# Tables of pairs of compartments grow with the square of their number.
MOST_COMPARTMENTS = 4096


@dataclass(frozen=True, eq=False)
class TissueCompartments:
    """Compartments 0..C-1, ordered by cell tag, then by their first cell in the input.

    Lengths, areas and volumes are those of the mesh: in a mesh of lower dimension per unit of
    what it leaves out. All arrays but ``labels`` are the same on every rank.

    Attributes:
        labels: ``(nc,)`` compartment of each cell on this rank, ghosts last.
        cell_tags: ``(C,)`` tag of the first cell of each.
        volumes: ``(C,)`` um^3.
        magnetisation: ``(C,)`` integral of the density.
        outer_areas: ``(C,)`` area on the outer boundary, um^2.
        interface_areas: ``(C, C)`` area of membrane between two compartments, um^2; on the
            diagonal the area, both sides, of membranes inside one.
        conductances: ``(C, C)`` sum of permeability times area between two, um^3/ms, times
            2 rho_i rho_j / (rho_i + rho_j) where densities are at rest; the diagonal is 0.
        capacities: ``(C,)`` what each holds when at rest: the volume, or the integral of the
            density where that is at rest.
    """

    labels: np.ndarray
    cell_tags: np.ndarray
    volumes: np.ndarray
    magnetisation: np.ndarray
    outer_areas: np.ndarray
    interface_areas: np.ndarray
    conductances: np.ndarray
    capacities: np.ndarray

    def __len__(self) -> int:
        return len(self.volumes)

    @property
    def surfaces(self) -> np.ndarray:
        """Area of all walls of each, ``(C,)`` um^2."""
        return self.outer_areas + self.interface_areas.sum(axis=1)

    @property
    def surface_to_volume(self) -> np.ndarray:
        """S/V, ``(C,)`` 1/um."""
        return self.surfaces / self.volumes

    @property
    def exchange_rates(self) -> np.ndarray:
        """k_ij = kappa A_ij / V_i: rate of well-mixed spins of i into j, ``(C, C)`` 1/ms.

        Where the densities are at rest it is times 2 rho_j / (rho_i + rho_j).
        """
        return self.conductances / self.capacities[:, None]

    @property
    def residence_times(self) -> np.ndarray:
        """tau_i = 1 / sum_j k_ij, ``(C,)`` ms; inf where nothing leaves."""
        return residence_times(self.exchange_rates)


def residence_times(exchange_rates: np.ndarray) -> np.ndarray:
    """1 / sum_j k_ij, ``(C,)`` ms; inf where nothing leaves."""
    rates = exchange_rates.sum(axis=1)
    return np.divide(1.0, rates, out=np.full(len(rates), np.inf), where=rates > 0)


def compartments_of(tissue: Tissue | BlochTorrey, cut: float = np.inf) -> TissueCompartments:
    """Compartments of a tissue, or of a problem at its present permeability. Collective.

    Args:
        tissue: the tissue or problem.
        cut: um/ms: facets of at least this permeability connect cells.

    Raises:
        InputError: a cut that is not positive, more than 4096 compartments, a periodic tissue.
    """
    if not cut > 0:
        raise InputError(f"cut: {cut!r} um/ms, expected a positive permeability")
    return _partition(present_tissue(tissue), cut)


def pools_of(tissue: Tissue | BlochTorrey) -> TissueCompartments:
    """Sets of cells that exchange spins: connected through facets with kappa > 0. Collective."""
    return _partition(present_tissue(tissue), np.nextafter(0.0, 1.0))


def present_tissue(tissue: Tissue | BlochTorrey) -> Tissue:
    """The tissue of a problem, with the permeability that the problem has now."""
    if isinstance(tissue, Tissue):
        return tissue
    values = tissue.kappa.x.array[: tissue.mesh.num_owned_facets]
    return tissue.tissue.with_permeability(np.where(tissue.tied, np.inf, values))


def refuse_periodic(tissue: Tissue, quantity: str) -> None:
    """Positions, walls and what is connected are not those of one box where it repeats."""
    if tissue.periodic:
        raise InputError(f"tissue: periodic along {', '.join(tissue.periodic)}, which {quantity} "
                         "does not know; expected a tissue that is not periodic")


def _numbered(mesh: Mesh, open_facets: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the sets of cells that open owned facets, ``(nf,)`` bool, connect. Collective.

    Gives the ``(nc,)`` label of each cell on this rank, ghosts last, and the number of labels;
    ordered by cell tag, then by the smallest input number of a cell, whatever the ranks.
    """
    sets, owned = connected_cells(mesh, open_facets), slice(0, mesh.num_owned_cells)
    first = sets[owned] == mesh.input_cells[owned]
    number = mesh.comm.allreduce(int(first.sum()))
    if number > MOST_COMPARTMENTS:
        raise InputError(f"permeability: {number} sets of cells lie behind membranes, expected at "
                         f"most {MOST_COMPARTMENTS} (inf ties the facets inside a compartment; "
                         "compartments_of takes a cut)")
    mine = np.column_stack([sets[owned], mesh.cell_tags[owned]])[first]
    cells, tags = np.concatenate(mesh.comm.allgather(mine)).T
    order = np.lexsort((cells, tags))
    by_cell = np.argsort(cells)
    place = np.empty(number, dtype=np.int64)
    place[order] = np.arange(number)
    return place[by_cell[np.searchsorted(cells, sets, sorter=by_cell)]], number


def _partition(tissue: Tissue, cut: float) -> TissueCompartments:
    """Connect cells through facets of at least ``cut``, and measure what that gives."""
    refuse_periodic(tissue, "compartments_of")
    mesh, comm = tissue.mesh, tissue.mesh.comm
    open_facets = tissue.permeability.values >= cut
    labels, number = _numbered(mesh, open_facets)
    owned = slice(0, mesh.num_owned_cells)
    volume, label = mesh.cell_volumes[owned], labels[owned]
    volumes = np.bincount(label, volume, minlength=number)
    magnetisation = np.bincount(label, volume * tissue.density[owned], minlength=number)
    tags = np.full(number, np.iinfo(np.int32).max)
    np.minimum.at(tags, label, mesh.cell_tags[owned])

    area, kappa = mesh.facet_areas, tissue.permeability.values
    first, second = mesh.facet_cells.T
    outer, wall = mesh.outer, ~mesh.outer & ~open_facets
    outer_areas = np.bincount(labels[first[outer]], area[outer], minlength=number)
    areas, conductances = np.zeros((2, number, number))
    one, two = labels[first[wall]], labels[second[wall]]
    flow = (kappa * area)[wall]
    if tissue.balanced:
        rho = tissue.density[mesh.facet_cells[wall]]
        flow = flow * 2 * rho.prod(axis=1) / rho.sum(axis=1)
    for target, values in ((areas, area[wall]), (conductances, flow)):
        np.add.at(target, (one, two), values)
        np.add.at(target, (two, one), values)
    parts = (volumes, magnetisation, outer_areas, areas, conductances)
    volumes, magnetisation, outer_areas, areas, conductances = (comm.allreduce(p) for p in parts)
    np.fill_diagonal(conductances, 0.0)
    tags = np.min(comm.allgather(tags), axis=0)
    return TissueCompartments(labels, tags, volumes, magnetisation, outer_areas, areas,
                              conductances, magnetisation if tissue.balanced else volumes)


def uniform_in(partition: TissueCompartments, mesh: Mesh, values: np.ndarray) -> np.ndarray | None:
    """The value that ``values``, ``(nc,)``, has in each part; None if it varies. Collective."""
    owned = slice(0, mesh.num_owned_cells)
    low, high = np.full(len(partition), np.inf), np.full(len(partition), -np.inf)
    np.minimum.at(low, partition.labels[owned], values[owned])
    np.maximum.at(high, partition.labels[owned], values[owned])
    low, high = (np.min(mesh.comm.allgather(low), axis=0),
                 np.max(mesh.comm.allgather(high), axis=0))
    with np.errstate(invalid="ignore"):
        same = (low == high) | (np.abs(high - low) <= 1e-12 * np.abs(high))
    return high if same.all() else None
