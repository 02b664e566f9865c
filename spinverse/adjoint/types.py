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

    def _ad_create_checkpoint(self):
        return self._like(self.values)

    def _ad_restore_at_checkpoint(self, checkpoint):
        return checkpoint

    def _ad_copy(self):
        return self._like(self.values)

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


class FacetField(_Array):
    """Values on facets: a control, a permeability, or a derivative with respect to either.

    Args:
        mesh: the mesh.
        values: ``(nf,)`` one for each owned facet.
    """

    def __init__(self, mesh: Mesh, values: np.ndarray):
        self.mesh = mesh
        super().__init__(np.asarray(values, dtype=float))

    def _like(self, values):
        return FacetField(self.mesh, values)

    @property
    def function(self):
        """As a DG0 function on the facet submesh."""
        return self.mesh.facet_function(self.values)

    def _ad_dim(self):
        return self.mesh.num_facets

    def _ad_dot(self, other):
        return self.mesh.comm.allreduce(float(self.values @ other.values))

    def _ad_to_petsc(self, vec=None):
        if vec is None:
            size = (len(self.values), self.mesh.num_facets)
            vec = PETSc.Vec().createMPI(size, comm=self.mesh.comm)
        vec.setArray(self.values)
        return vec

    def _ad_from_petsc(self, vec):
        self.values = np.array(vec.array_r)


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
