"""What pyadjoint's tape carries: values on facets, and signals."""

from __future__ import annotations

import numpy as np
from petsc4py import PETSc
from pyadjoint.overloaded_type import OverloadedType

from ..mesh.distributed import Mesh


class _Array(OverloadedType):
    """A numpy array on the tape; subclasses know how it is spread over the ranks."""

    def __init__(self, values: np.ndarray):
        super().__init__()
        self.values = np.array(values)

    def _like(self, values: np.ndarray) -> _Array:
        raise NotImplementedError

    def _ad_copy(self):
        return self._like(self.values)

    _ad_create_checkpoint = _ad_copy

    def _ad_restore_at_checkpoint(self, checkpoint):
        return checkpoint

    def _ad_init_zero(self, dual=False):
        return self._like(np.zeros_like(self.values))

    def _ad_init_object(self, obj):
        # pyadjoint hands over values that are wrapped already as well as bare ones
        return self._like(obj.values if isinstance(obj, _Array) else obj)

    def _ad_convert_riesz(self, value, riesz_map=None):
        return self._ad_init_object(value)

    def _ad_mul(self, other):
        return self._like(self.values * (other.values if isinstance(other, _Array) else other))

    def _ad_add(self, other):
        return self._like(self.values + other.values)

    def __iadd__(self, other):
        self.values = self.values + other.values
        return self

    def __imul__(self, other):
        self.values = self.values * float(other)
        return self

    def __len__(self) -> int:
        return len(self.values)


class Spread(_Array):
    """Values ``(n,)`` of which each rank owns some, or, if shared, has all."""

    def __init__(self, comm, values: np.ndarray, shared: bool):
        self.comm, self.shared = comm, shared
        super().__init__(np.atleast_1d(np.array(values, dtype=float)))

    def _ad_dim(self):
        return len(self.values) if self.shared else self.comm.allreduce(len(self.values))

    def _ad_dot(self, other):
        dot = float(self.values @ other.values)
        return dot if self.shared else self.comm.allreduce(dot)

    def _ad_to_petsc(self, vec=None):
        mine = self.values if not self.shared or self.comm.rank == 0 else self.values[:0]
        if vec is None:
            vec = PETSc.Vec().createMPI((len(mine), self._ad_dim()), comm=self.comm)
        vec.setArray(mine)
        return vec

    def _ad_from_petsc(self, vec):
        values = np.array(vec.array_r)
        self.values = self.comm.bcast(values) if self.shared else values


class FacetField(Spread):
    """Values on owned facets: a control, a permeability, or a derivative by either.

    ``(nf,)``; on rank 0 numbers that go with them may follow, ``(nf + P,)``.
    """

    def __init__(self, mesh: Mesh, values: np.ndarray):
        self.mesh = mesh
        super().__init__(mesh.comm, values, shared=False)

    def _like(self, values):
        return FacetField(self.mesh, values)

    @property
    def function(self):
        """As a DG0 function on the facet submesh."""
        return self.mesh.facet_function(self.values[: self.mesh.num_owned_facets])


class SignalVector(_Array):
    """Complex signals, ``(N,)``, the same on every rank.

    Its adjoint w is complex too, with dJ = Re sum(conj(w) dS).
    """

    def __init__(self, values: np.ndarray):
        super().__init__(np.asarray(values, dtype=complex))

    def _like(self, values):
        return SignalVector(values)

    def _ad_dim(self):
        return 2 * len(self.values)

    def _ad_dot(self, other):
        return float(np.vdot(self.values, other.values).real)
