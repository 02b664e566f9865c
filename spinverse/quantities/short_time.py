"""Short-time approximation of the ADC: what the walls near to a spin do first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..acquisition.table import Acquisition
from ..errors import warn_caller
from ..mesh.curved import facet_rule
from ..mesh.distributed import Mesh
from ..problem import BlochTorrey
from ..tissue import Tissue
from . import effective
from .compartments import TissueCompartments, compartments_of
from .mf_adc import plain
from .waveform_integrals import short_time_weight, squared

# sqrt(D t) S_n/V up to which the neglected terms stay below 5 % of D on slab, cylinder and sphere.
LARGEST_REACH = 0.3

_FACTOR = 4 / (3 * np.sqrt(np.pi))


def short_time_approximation(tissue: Tissue | BlochTorrey,
                             acquisition: Acquisition) -> effective.EffectiveDiffusion:
    """Initial slopes of the signals for diffusion lengths well below V/S. Collective.

    Near a flat wall the mean squared displacement along n grows as (Mitra, Sen, Schwartz and
    Le Doussal, Phys. Rev. Lett. 68, 3555, 1992; Phys. Rev. B 47, 8565, 1993)

        MSD(t) / 2 = D t (1 - 4 / (3 sqrt(pi)) sqrt(D t) (1/V) int_walls (n . nu)^2),

    4/(9 sqrt(pi)) S/V on average over directions. As <phi^2>/2 = -(g^2/2) int_{t>s} f f MSD(t-s),
    any waveform has

        ADC = n . D n - 4 / (3 sqrt(pi)) w (1/V) int_walls (n . D nu)^2 / sqrt(nu . D nu),

    where w = `waveform_integrals.short_time_weight`, sqrt(Delta) for short pulses; the integrand
    is D^(3/2) (n . nu)^2 for a scalar D and comes for a tensor from the map x -> D^(-1/2) x.

    Membranes of finite permeability count as impermeable walls, on both sides: exchange is of
    the next order. Curvature, edges and corners are of the next order too.

    Tissue and acquisition are as of `mf_adc`; ``errors`` is the square of the leading term over D,
    the size of the next.

    Raises:
        InputError: density or T2 that varies within a compartment, an absorbing outer boundary.

    Warns:
        ValidityWarning: sqrt(D t) (1/V) int_walls (n . nu)^2 with t = w^2 is above 0.3 along a
            gradient (far above it, where no positive slope is left, slope and tensor are nan); or
            cells of different diffusivity or density touch without a membrane, which the formula
            leaves out.
    """
    tissue, _ = plain(tissue, 1, "short_time_approximation")
    parts = compartments_of(tissue)
    effective.check_stationary(tissue, parts, "short_time_approximation")
    mean_D = effective.mean_diffusivity_tensors(tissue, parts)
    walls = _wall_tensors(tissue, parts)
    values, errors, reach = [], [], np.zeros(len(parts))
    for k, waveform in enumerate(acquisition.waveforms):
        w = short_time_weight(waveform)
        if waveform.vector:
            free = np.einsum("cij,ij->c", mean_D, squared(waveform))
            first = np.einsum("cij,ij->c", walls, w)
            values.append(free - _FACTOR * first)
            ratio = np.abs(first) / free
        else:
            n = effective.unit_directions(acquisition.directions[acquisition.waveform_index == k])
            first = w * np.einsum("ni,cij,nj->cn", n, walls, n)
            free = np.einsum("ni,cij,nj->cn", n, mean_D, n)
            values.append(mean_D - _FACTOR * w * walls)
            ratio = np.divide(first, free, out=np.zeros_like(free), where=free > 0).max(axis=1)
            free = free.max(axis=1)
        errors.append((_FACTOR * ratio) ** 2 * free)
        reach = np.maximum(reach, ratio)
    if reach.max() > LARGEST_REACH:
        worst = int(reach.argmax())
        warn_caller(
            f"short-time approximation: sqrt(D t) S_n/V = {reach[worst]:.3g} in compartment "
            f"{worst}, expected at most {LARGEST_REACH:g} (S_n: area of the walls across the "
            "gradient); mf_adc and hadc have no such limit", effective.ValidityWarning)
    _warn_of_open_interfaces(tissue)
    return _positive(effective.collect(tissue, acquisition, parts, values, np.column_stack(errors)))


def _positive(found: effective.EffectiveDiffusion) -> effective.EffectiveDiffusion:
    """Slopes and tensors that are not positive become nan: the time is too long for them."""
    tensors, slopes = found.tensors.copy(), found.of_compartments.copy()
    lowest = np.linalg.eigvalsh(np.nan_to_num(tensors))[..., 0]
    tensors[lowest < -1e-12 * np.abs(tensors).max(axis=(-2, -1))] = np.nan
    slopes[slopes < 0] = np.nan
    return replace(found, tensors=tensors, of_compartments=slopes)


def _wall_tensors(tissue: Tissue, parts: TissueCompartments) -> np.ndarray:
    """(1/V) int_walls (D nu)(D nu)^T / sqrt(nu . D nu), ``(C, 3, 3)`` um^2/ms^(3/2)."""
    mesh = tissue.mesh
    D, share = effective.cell_tensors(tissue), effective.profile(tissue)
    # normals as long as the area that they stand for, one a facet, or one a point of curved ones
    if mesh.curved:
        vectors, weights = facet_rule(mesh)
        nu = vectors * weights[:, None]
    else:
        nu = (facet_normals(mesh) * mesh.facet_areas[:, None])[:, None]
    wall = np.flatnonzero(mesh.outer | np.isfinite(tissue.permeability.values))
    total = np.zeros((len(parts), 3, 3))
    for cells in mesh.facet_cells.T:
        facets = wall[cells[wall] >= 0]
        cell = cells[facets]
        flux = np.einsum("fij,fqj->fqi", D[cell], nu[facets])
        size = np.sqrt(np.einsum("fqi,fqi->fq", flux, nu[facets]))
        weight = share[cell, None] / size
        np.add.at(total, parts.labels[cell], np.einsum("fq,fqi,fqj->fij", weight, flux, flux))
    return mesh.comm.allreduce(total) / parts.capacities[:, None, None]


def facet_normals(mesh: Mesh) -> np.ndarray:
    """Unit normal of each owned facet within the mesh's dimensions, either way, ``(nf, 3)``."""
    x = mesh.geometry.x
    corners = mesh.facet_corners
    if not len(corners):
        return np.zeros((0, 3))
    centroid = x[mesh.geometry.dofmaps[0][mesh.facet_cells[:, 0]]].mean(axis=1)
    normal = centroid - corners[:, 0]
    if corners.shape[1] > 1:
        # without its part along the facet
        edges = (corners[:, 1:] - corners[:, :1]).transpose(0, 2, 1)
        basis, _ = np.linalg.qr(edges)
        normal = normal - np.einsum("fij,fkj,fk->fi", basis, basis, normal)
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


def _warn_of_open_interfaces(tissue: Tissue) -> None:
    mesh = tissue.mesh
    one, two = mesh.facet_cells[np.isinf(tissue.permeability.values)].T
    differ = [np.any(values[one] != values[two]) for values in (tissue.diffusivity, tissue.density)]
    if mesh.comm.allreduce(int(any(differ))):
        warn_caller("short-time approximation: cells of different diffusivity or density touch "
                    "without a membrane; their interface is left out", effective.ValidityWarning)


