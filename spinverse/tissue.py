"""Tissue: diffusivity, relaxation and density per cell, permeability per facet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from mpi4py import MPI

from .errors import InputError, warn_caller
from .mesh.distributed import Mesh
from .periodic import AXES, check_faces, periodic_axes
from .units import describe_permeability

PerCell = "float | Mapping[int, float] | np.ndarray"


@dataclass(frozen=True, eq=False)
class Permeability:
    """Permeability of every owned facet, um/ms, ``(nf,)``, in [0, inf].

    On interior facets ``inf`` ties the two sides exactly. On outer facets 0 reflects; inf is not
    allowed there.
    """

    mesh: Mesh
    values: np.ndarray

    def __post_init__(self):
        values = np.array(self.values, dtype=float)
        expected = (self.mesh.num_owned_facets,)
        if values.shape != expected:
            raise InputError(f"permeability: shape {values.shape}, expected {expected}: "
                             "one value for each facet that this rank owns")
        bad = np.isnan(values) | (values < 0)
        open_wall = self.mesh.outer & np.isinf(values)
        worst = self.mesh.comm.allgather((values[bad].tolist()[:1], int(open_wall.sum())))
        for wrong, _ in worst:
            if wrong:
                raise InputError(f"permeability: {describe_permeability(wrong[0])}, expected a "
                                 "value in [0, inf]")
        if any(count for _, count in worst):
            raise InputError("permeability: inf on an outer facet, expected a finite value "
                             "(0 reflects)")
        object.__setattr__(self, "values", values)

    @classmethod
    def on(cls, mesh: Mesh, membrane: float | Mapping[int, float] | None,
           elsewhere: float = np.inf, outer: float = 0.0) -> Permeability:
        """One permeability on the known membrane, another elsewhere.

        Args:
            mesh: a mesh that knows its interface facets.
            membrane: um/ms on interface facets; or a value for each interface tag; ``None`` on a
                mesh that has none.
            elsewhere: um/ms on the other interior facets; ``inf`` ties them.
            outer: um/ms on outer facets. 0 reflects, and then interface facets that lie on the
                outer boundary reflect too; with a positive value (absorbing) they are membrane.

        Raises:
            InputError: a membrane without interface facets, or the other way round.
        """
        outer, elsewhere = _number("outer", outer), _number("elsewhere", elsewhere)
        values = np.where(mesh.outer, outer, elsewhere)
        present = set().union(*mesh.comm.allgather(set(np.unique(mesh.interface).tolist()))) - {0}
        tags = membrane if isinstance(membrane, Mapping) else dict.fromkeys(present, membrane)
        check_tags("permeability", "interface", tags, present)
        walls = ~mesh.outer | (outer > 0)
        on_outer, known = (mesh.comm.allreduce(int(np.count_nonzero(mesh.interface[where])))
                           for where in (~walls, walls))
        if known and membrane is None:
            raise InputError("permeability.membrane: missing, expected a value for the "
                             f"{known} known interface facets of the mesh")
        none = membrane is None or membrane == {} or (np.isscalar(membrane) and membrane == np.inf)
        if not none and not known:
            raise InputError("permeability: a value for the membrane, but " + (
                f"its {on_outer} facets are all on the outer boundary, which reflects; expected "
                "none, or boundary: absorbing" if on_outer else
                "the mesh has no interface facets (of gmsh: a physical group of surfaces), "
                "expected elsewhere alone, and no membrane"))
        for tag in present if known else ():
            values[(mesh.interface == tag) & walls] = _number("membrane", tags[tag])
        return cls(mesh, values)

    @classmethod
    def uniform(cls, mesh: Mesh, value: float, outer: float = 0.0) -> Permeability:
        """The same permeability, um/ms, on every interior facet."""
        return cls(mesh, np.where(mesh.outer, float(outer), float(value)))

    @property
    def tied(self) -> np.ndarray:
        """Owned facets whose two sides are one, ``(nf,)`` bool."""
        return np.isinf(self.values)


@dataclass(frozen=True, eq=False)
class Tissue:
    """What the spins live in.

    Args:
        mesh: the mesh.
        diffusivity: um^2/ms; a number, a symmetric positive ``(d, d)`` tensor, ``{tag: either}``,
            or an array ``(Nt,)`` or ``(Nt, d, d)`` over the cells of the input.
        T2: ms, ``inf`` for none; a number, ``{tag: number}`` or ``(Nt,)``.
        density: initial magnetisation per volume; as T2.
        interface: what is at rest across a membrane where densities differ: "equilibrium", the
            densities themselves (positive then), or "plain", a uniform magnetisation, so that
            densities level out.
        permeability: a `Permeability`, or one number for all interior facets (outer: reflecting).
        periodic: axes along which the tissue repeats with the period of the mesh, "x", "xy",
            "xyz", ...; "" for none. Opposite faces are one then: nothing crosses a membrane
            there, and their permeability is not looked at, so membranes belong inside the box
            (half a layer at both ends of a stack). Faces match on the grids of
            `spinverse.mesh.box`, `slabs`, `intervals`, and with ``periodic=True`` on gmsh's.
            On a mesh whose faces are `spinverse.glued` facets there are as all others.
        T1: ms, as T2; of magnetisation that a waveform stores along z, else it plays no part.

    Raises:
        InputError: naming the field, the value and what was expected.
    """

    mesh: Mesh
    # arrays over cells, and a Permeability, once made
    diffusivity: Any = 2.0
    T2: Any = np.inf
    density: Any = 1.0
    permeability: Any = np.inf
    interface: str = "equilibrium"
    periodic: str = ""
    T1: Any = np.inf

    def __post_init__(self):
        mesh = self.mesh
        if not isinstance(mesh, Mesh):
            raise InputError(f"mesh: a {type(mesh).__name__}, expected a spinverse.Mesh "
                             "(spinverse.mesh.build or read)")
        axes = periodic_axes(mesh, self.periodic or mesh.glued)
        if mesh.glued and mesh.glued != "".join(AXES[axis] for axis in axes):
            raise InputError(f"periodic: {self.periodic!r} on a mesh that is glued along "
                             f"{mesh.glued}, expected the same")
        object.__setattr__(self, "periodic", "".join(AXES[axis] for axis in axes))
        _ = self.periodic_facets
        if self.interface not in ("equilibrium", "plain"):
            raise InputError(f"interface: {self.interface!r}, expected 'equilibrium' or 'plain'")
        permeability = self.permeability
        if not isinstance(permeability, Permeability):
            if np.ndim(permeability):
                raise InputError(f"permeability: an array of shape {np.shape(permeability)}, "
                                 "expected a number or a spinverse.Permeability (of such values: "
                                 "Permeability(mesh, values))")
            permeability = Permeability.uniform(mesh, _number("permeability", permeability))
        D = _per_cell(mesh, "diffusivity", self.diffusivity, tensor=True)
        T2, T1 = (_per_cell(mesh, name, getattr(self, name)) for name in ("T2", "T1"))
        density = _per_cell(mesh, "density", self.density)
        _check(mesh, "diffusivity", "um^2/ms, finite and positive"
               + (" (tensors: symmetric and positive definite)" if D.ndim > 1 else ""), D,
               np.isfinite(D).all(axis=tuple(range(1, D.ndim))) & (_smallest_eigenvalue(D) > 0))
        for name, times in (("T2", T2), ("T1", T1)):
            _check(mesh, name, "ms, positive (inf for none)", times, times > 0)
        _check(mesh, "density", "finite and not negative", density,
               np.isfinite(density) & (density >= 0))
        if self.interface == "equilibrium" and not _uniform(mesh, density):
            _check(mesh, "density", "a positive one with interface 'equilibrium' (or 'plain')",
                   density, density > 0)
        for field, value in (("diffusivity", D), ("T2", T2), ("T1", T1), ("density", density),
                             ("permeability", permeability)):
            object.__setattr__(self, field, value)

    @property
    def periodic_axes(self) -> tuple[int, ...]:
        """Periodic axes as numbers, ascending."""
        return periodic_axes(self.mesh, self.periodic)

    @cached_property
    def periodic_facets(self) -> np.ndarray:
        """Owned facets on periodic faces, ``(nf,)`` bool: no outer boundary. Collective."""
        return check_faces(self.mesh, () if self.mesh.glued else self.periodic_axes)

    @property
    def balanced(self) -> bool:
        """Whether densities differ and are at rest across membranes. Collective."""
        return self.interface == "equilibrium" and not _uniform(self.mesh, self.density)

    def with_permeability(self, values: np.ndarray) -> Tissue:
        """The same tissue with other facet permeabilities, ``(nf,)`` um/ms."""
        result = copy(self)
        object.__setattr__(result, "permeability", Permeability(self.mesh, values))
        return result


def check_tags(field: str, kind: str, given: Iterable[int], present: set[int]) -> None:
    """Refuse values by tag ("cell" or "interface") where one is missing.

    Warns:
        UserWarning: a value for a tag that is not there.
    """
    given = {int(tag) for tag in given}
    known = sorted(present)
    if missing := sorted(present - given):
        raise InputError(f"{field}: no value for {kind} tag {missing[0]}, expected one for each "
                         f"of {known}")
    if more := sorted(given - present):
        warn_caller(f"{field}: a value for {kind} tag {more[0]}, which no part of the mesh has "
                    f"(it has {known or 'none'})")


def by_cell_tag(mesh: Mesh, field: str, entries: Mapping[int, np.ndarray]) -> np.ndarray:
    """Values over the cells of this rank, ``(nc, ...)``, from one of each tag. Collective."""
    present = set().union(*mesh.comm.allgather(set(np.unique(mesh.cell_tags).tolist())))
    check_tags(field, "cell", entries, present)
    result = np.zeros((len(mesh.cell_tags), *next(iter(entries.values())).shape))
    for tag in present:
        result[mesh.cell_tags == tag] = entries[tag]
    return result


def _per_cell(mesh: Mesh, field: str, value, tensor: bool = False) -> np.ndarray:
    """Values over the cells of this rank, ghosts included: ``(nc,)`` or ``(nc, 3, 3)``."""
    number = len(mesh.cell_tags)
    square = (mesh.dim, mesh.dim)
    shapes = ((), square) if tensor else ((),)
    if isinstance(value, Mapping):
        entries = {int(tag): numbers(field, v) for tag, v in value.items()}
        if any(v.shape == square for v in entries.values()):
            entries = {tag: v if v.ndim == 2 else v * np.eye(mesh.dim)
                       for tag, v in entries.items()}
        result = by_cell_tag(mesh, field, entries)
        _known_shape(field, result.shape[1:], shapes)
        return result
    array = numbers(field, value)
    if array.shape in shapes:
        return np.broadcast_to(array, (number, *array.shape)).copy()
    if array.ndim and len(array) == mesh.num_cells:
        _known_shape(field, array.shape[1:], shapes)
        return array[mesh.input_cells]
    raise InputError(f"{field}: shape {array.shape}, expected a number"
                     f"{f', a {square} tensor' if tensor else ''}, one value for each cell tag, "
                     f"or one for each of the {mesh.num_cells} cells")


def numbers(field: str, value, expected: str = "numbers") -> np.ndarray:
    """An array, or the InputError that names ``field``."""
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        raise InputError(f"{field}: {value!r:.60}, expected {expected}") from None


def _number(field: str, value) -> float:
    array = numbers(field, value)
    if array.ndim:
        raise InputError(f"{field}: {value!r:.60}, expected a number")
    return float(array)


def _uniform(mesh: Mesh, values: np.ndarray) -> bool:
    """Whether all cells of the whole mesh have the same value. Collective."""
    low = mesh.comm.allreduce(float(values.min(initial=np.inf)), MPI.MIN)
    high = mesh.comm.allreduce(float(values.max(initial=-np.inf)), MPI.MAX)
    return low == high


def _known_shape(field: str, shape: tuple, shapes: tuple) -> None:
    if shape not in shapes:
        raise InputError(f"{field}: shape {shape} per cell, expected "
                         + " or ".join("a number" if s == () else str(s) for s in shapes))


def _smallest_eigenvalue(D: np.ndarray) -> np.ndarray:
    if D.ndim == 1:
        return D
    symmetric = np.abs(D - D.transpose(0, 2, 1)).max(axis=(1, 2), initial=0.0)
    scale = np.abs(D).max(axis=(1, 2), initial=0.0)
    smallest = np.linalg.eigvalsh(np.nan_to_num(D, nan=-1.0, posinf=-1.0, neginf=-1.0))[:, 0]
    return np.where(symmetric <= 1e-12 * scale, smallest, -np.inf)


def _check(mesh: Mesh, field: str, expected: str, values: np.ndarray, good: np.ndarray) -> None:
    """Raise the same error on every rank for the first bad cell."""
    found = [(int(mesh.input_cells[i]),
              f"{values[i]:g}" if values.ndim == 1 else str(values[i].tolist()))
             for i in np.flatnonzero(~good)[:1]]
    everywhere = [item for part in mesh.comm.allgather(found) for item in part]
    if everywhere:
        cell, value = min(everywhere)
        raise InputError(f"{field}: {value} in cell {cell}, expected {expected}")
