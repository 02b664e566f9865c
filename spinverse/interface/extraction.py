"""Which facets are membrane: by a cut of the permeability, or as closed surfaces.

A facet that no magnetisation reaches may have any permeability. `compartments` looks at what they
do together: a closed one holds a diffusion mode, nearly constant in it, that decays by leaking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mpi4py import MPI

from ..engines.basis.eigenmodes import eigenmodes
from ..engines.shapes.walls import between
from ..errors import InputError
from ..mesh.distributed import Mesh
from ..parallel.exchange import reduced
from ..problem import BlochTorrey
from ..tissue import Tissue
from .metrics import MEMBRANE_CUT

# Decades of permeability that `automatic_cut` tells apart (um/ms), and bins in each.
_DECADES = (-5.0, 5.0)
_BINS = 50

# A mode is a compartment's when facets, not gradients, dissipate more than this share of it.
_LEAK_SHARE = 0.5

# Scattered facets of low permeability slow free diffusion too and dissipate up to about 0.6 of
# it. Behind a gap of the rates as wide as this, a mode must be a clear case.
_RATE_GAP, _CLEAR_SHARE = 5.0, 0.8

# Directions of feature space with less than this share of the largest cell are not a compartment.
_INDEPENDENT = 1e-3


@dataclass(frozen=True, eq=False)
class Compartments:
    """A partition of the cells by slow diffusion modes, and the surfaces between its parts.

    Attributes:
        labels: ``(owned cells,)`` int32: 0 where magnetisation drains through the outer
            boundary, else 1..n in the order of descending volume.
        facets: ``(nf,)`` bool over owned facets: the surfaces of the compartments.
        eigenvalues: decay rates of the slow modes, 1/ms, ascending.
        retained: ``(owned cells,)`` about 1 in a compartment, about 0 where nothing is retained.
        volumes: ``(n,)`` of the compartments 1..n, um^3.
    """

    labels: np.ndarray
    facets: np.ndarray
    eigenvalues: np.ndarray
    retained: np.ndarray
    volumes: np.ndarray


def by_threshold(mesh: Mesh, permeability: np.ndarray, cut: float = MEMBRANE_CUT) -> np.ndarray:
    """Owned facets whose permeability ``(nf,)`` is below a cut, um/ms; gives ``(nf,)`` bool.

    Raises:
        InputError: a permeability of another shape, a cut that is not positive.
    """
    if not cut > 0:
        raise InputError(f"cut: {cut!r} um/ms, expected a positive permeability")
    return _facet_values(mesh, "permeability", permeability) < cut


def automatic_cut(mesh: Mesh, permeability: np.ndarray, included: np.ndarray) -> float:
    """The cut between low and high permeabilities that the data show, um/ms. Collective.

    Otsu's threshold (IEEE Trans. Syst. Man Cybern. 9, 62, 1979) of log10 permeability: the cut
    with the largest variance between the two classes; in an empty gap, its middle. Where all values
    fall together it is below them: nothing is membrane.

    Args:
        permeability: ``(nf,)`` um/ms.
        included: ``(nf,)`` bool, the facets that count.
    """
    values = _facet_values(mesh, "permeability", permeability)
    included = _facet_values(mesh, "included", included).astype(bool)
    low, high = _DECADES
    number = int(round((high - low) * _BINS))
    log = np.log10(np.clip(values[included], 10.0**low, 10.0**high))
    # rounded: a value on the edge of a bin stays on one side whatever its last digit
    place = np.clip(np.floor(np.round((log - low) * _BINS, 6)).astype(int), 0, number - 1)
    counts = mesh.comm.allreduce(np.bincount(place, minlength=number))
    filled = np.flatnonzero(counts)
    if len(filled) < 2:
        return float(10.0 ** (low + (filled[0] if len(filled) else 0) / _BINS))
    moments = counts * np.arange(number)
    below, first = np.cumsum(counts)[:-1], np.cumsum(moments)[:-1]
    above, last = counts.sum() - below, moments.sum() - first
    # below or above may have none, and then no moment
    between = below * above.astype(float) * (
        last / np.maximum(above, 1) - first / np.maximum(below, 1)) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(10.0 ** (low + (0.5 * (best[0] + best[-1]) + 1) / _BINS))


def compartments(tissue: Tissue, boundary_absorbing: bool,
                 max_compartments: int = 8) -> Compartments:
    """Closed compartments of a tissue, from its slow diffusion modes. Collective.

    The rate of a mode is what gradients dissipate plus what facets do. A mode that is nearly
    constant within closed surfaces dissipates at the facets, a mode of free diffusion in the
    cells: the share of the facets tells them apart whatever the size and the leak. Cell averages
    of the slow modes put the cells of each compartment at a corner of a simplex (and drained
    cells at the origin); the corners are found by successive projection, then refined by
    k-means in the coordinates that they span (compare the spectral clustering of metastable
    states, Deuflhard and Weber, Linear Algebra Appl. 398, 161, 2005). T2 plays no part.

    Args:
        tissue: the tissue; its permeability is what is looked at.
        boundary_absorbing: magnetisation leaves through outer facets. Cells that drain get
            label 0, and outer facets of the others belong to the surfaces.
        max_compartments: the largest number of them.

    Returns:
        The partition. Its facets enclose every compartment, by construction.

    Raises:
        InputError: ``max_compartments`` below 1, a periodic tissue.
        SolverError: the eigenproblem failed.
    """
    if not max_compartments >= 1:
        raise InputError(f"max_compartments: {max_compartments!r}, expected at least 1")
    if tissue.periodic and not tissue.mesh.glued:
        raise InputError(f"tissue: periodic along {', '.join(tissue.periodic)}, expected one that "
                         "is not periodic to extract an interface from")
    mesh = tissue.mesh
    problem = BlochTorrey(tissue)
    problem.coefficients.R2.x.array[:] = 0.0  # relaxation would hide how slow a mode is
    modes = eigenmodes(problem, 16 + max_compartments)
    rates = modes.eigenvalues
    share = 1.0 - _gradient_energies(problem, modes.modes) / np.maximum(rates, 1e-12)
    chosen = _slow(rates, share, boundary_absorbing)[:max_compartments]
    cells = problem.space.dofmap.list[: mesh.num_owned_cells]
    features = modes.modes[:, chosen][cells].mean(axis=1)
    labels, retained = _classify(mesh, features, boundary_absorbing)
    labels, volumes = _by_volume(mesh, labels)
    return Compartments(labels, between(mesh, labels, boundary_absorbing), rates[chosen],
                        retained, volumes)


def _slow(rates: np.ndarray, share: np.ndarray, absorbing: bool) -> np.ndarray:
    """Indices of the modes of compartments; ``share`` is what facets dissipate of each."""
    chosen = [] if absorbing else [0]  # the constant: nothing leaves
    last = np.inf
    for k in range(len(chosen), len(rates)):
        if share[k] > (_CLEAR_SHARE if rates[k] > _RATE_GAP * last else _LEAK_SHARE):
            chosen.append(k)
            last = rates[k]
    return np.array(chosen, dtype=int)


def _gradient_energies(problem: BlochTorrey, modes: np.ndarray) -> np.ndarray:
    """Integral of D grad phi . grad phi for each mode, ``(K,)`` 1/ms."""
    mesh, owned = problem.mesh, problem.mesh.num_owned_cells
    corners = mesh.geometry.x[mesh.geometry.dofmaps[0][:owned]]
    inverse = np.linalg.inv(corners[:, 1:] - corners[:, :1])
    values = modes[problem.space.dofmap.list[:owned]]
    gradients = inverse @ (values[:, 1:] - values[:, :1])
    D = problem.tissue.diffusivity[:owned]
    flux = D[:, None, None] * gradients if D.ndim == 1 else D @ gradients
    return reduced(mesh.comm, np.einsum("c,cik,cik->k", mesh.cell_volumes[:owned], gradients, flux))


def _classify(mesh: Mesh, features: np.ndarray, drained: bool) -> tuple[np.ndarray, np.ndarray]:
    """Class of each owned cell (0 drained, then 1..n) and how much it retains."""
    corners = _corners(mesh, features)
    if not len(corners):
        return np.zeros(len(features), dtype=np.int32), np.zeros(len(features))
    membership = features @ np.linalg.pinv(corners)
    n = len(corners)
    centres = np.concatenate([np.zeros((1, n)), np.eye(n)])
    weights = mesh.cell_volumes[: mesh.num_owned_cells]
    labels = np.full(len(features), -1)
    for _ in range(100):
        distances = ((membership[:, None, :] - centres) ** 2).sum(axis=2)
        if not drained:
            distances[:, 0] = np.inf
        before, labels = labels, distances.argmin(axis=1)
        if not mesh.comm.allreduce(bool((labels != before).any()), op=MPI.LOR):
            break
        member = labels[:, None] == np.arange(n + 1)
        sums = reduced(mesh.comm, np.column_stack(
            [(member * weights[:, None]).T @ membership, member.T @ weights]))
        kept = sums[:, -1] > 0
        centres[kept] = sums[kept, :-1] / sums[kept, -1:]
    return labels.astype(np.int32), membership.sum(axis=1)


def _corners(mesh: Mesh, features: np.ndarray) -> np.ndarray:
    """Feature vectors of one cell for each compartment, ``(n, n_modes)``.

    Successive projection: the longest, then what sticks out most of the span of those before.
    """
    comm, number = mesh.comm, features.shape[1]
    ids = mesh.input_cells[: mesh.num_owned_cells]
    rest, found, longest = features.copy(), [], None
    for _ in range(number):
        length = np.linalg.norm(rest, axis=1)
        top = comm.allreduce(float(length.max(initial=0.0)), op=MPI.MAX)
        longest = top if longest is None else longest
        if not top > _INDEPENDENT * longest:
            break
        # equal but for rounding: the first cell of the input
        near = np.flatnonzero(length >= top * (1 - 1e-6))
        mine = min(((int(ids[i]), int(i)) for i in near), default=None)
        candidates = [c for c in comm.allgather(mine) if c is not None]
        winner = min(candidates)[0]
        row = features[mine[1]] if mine is not None and mine[0] == winner else None
        corner = next(r for r in comm.allgather(row) if r is not None)
        found.append(corner)
        basis, _ = np.linalg.qr(np.array(found).T)
        rest = features - (features @ basis) @ basis.T
    return np.array(found).reshape(len(found), number)


def _by_volume(mesh: Mesh, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels 1..n by descending volume, equal ones by their first cell; and the volumes."""
    owned = mesh.num_owned_cells
    number = mesh.comm.allreduce(int(labels.max(initial=0)), op=MPI.MAX)
    volumes = reduced(mesh.comm, np.bincount(
        labels, weights=mesh.cell_volumes[:owned], minlength=number + 1))
    first = np.full(number + 1, mesh.num_cells, dtype=np.int64)
    np.minimum.at(first, labels, mesh.input_cells[:owned])
    everywhere = reduced(mesh.comm, first, MPI.MIN)
    total = volumes.sum()
    present = [k for k in range(1, number + 1) if volumes[k] > 0]
    order = sorted(present, key=lambda k: (-round(volumes[k] / total, 9), everywhere[k]))
    new = np.zeros(number + 1, dtype=np.int32)
    new[order] = np.arange(1, len(order) + 1)
    return new[labels], volumes[order]


def _facet_values(mesh: Mesh, field: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (mesh.num_owned_facets,):
        raise InputError(f"{field}: shape {values.shape}, expected ({mesh.num_owned_facets},): "
                         "one value for each facet that this rank owns")
    return values
