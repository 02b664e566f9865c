"""Losses as functions of the coefficients of the weak form, the user's own among them.

`reduced_functional` tapes one: what comes back is a `pyadjoint.ReducedFunctional`, so pyadjoint's
optimisers (scipy's, TAO's) take it. No adjoint is to be written for a new term: the engines
differentiate the weak form by UFL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import dolfinx
import numpy as np
from pyadjoint import (
    AdjFloat,
    Control,
    ReducedFunctional,
    Tape,
    continue_annotation,
    get_working_tape,
    pause_annotation,
    set_working_tape,
)

from ..acquisition import Acquisition, Signals
from ..errors import InputError
from ..problem import BlochTorrey
from ..simulate import degree_for, make_engine
from ..tissue import Tissue
from .blocks import EngineOperation, apply
from .types import SignalVector, Spread, _Array


@dataclass(frozen=True, eq=False)
class Number:
    """A control that is one number: all entries of a coefficient, or some of them, have its value.

    Those ``where`` ``(n,)`` bool over the owned entries is True, for example ``mesh.interface > 0``
    for the permeability; the others stay as they are. ``log``: the control is the natural
    logarithm.
    """

    where: np.ndarray | None = None
    log: bool = False


@dataclass(frozen=True)
class Values:
    """A control with a value for each entry of a coefficient; ``log`` as `Number`."""

    log: bool = False


class CoefficientValues(Spread):
    """A control, or a derivative by it: owned entries, or numbers that all ranks have."""

    def _like(self, values):
        return CoefficientValues(self.comm, values, self.shared)

    @staticmethod
    def _ad_to_list(m):
        """All values, of all ranks."""
        parts = [m.values] if m.shared else m.comm.allgather(m.values)
        return np.concatenate(parts).tolist()

    @staticmethod
    def _ad_assign_numpy(dst, src, offset):
        counts = [len(dst.values)] if dst.shared else dst.comm.allgather(len(dst.values))
        first = offset + (0 if dst.shared else sum(counts[: dst.comm.rank]))
        return dst._like(src[first: first + len(dst.values)]), offset + sum(counts)


class _Handle:
    """One control: how its values go into a coefficient, and derivatives come back."""

    def __init__(self, problem: BlochTorrey, name: str, coefficient, kind: Number | Values):
        self.name, self.coefficient, self.kind = name, coefficient, kind
        self.comm = problem.comm
        constant = isinstance(coefficient, dolfinx.fem.Constant)
        if not constant and not isinstance(coefficient, dolfinx.fem.Function):
            raise InputError(f"controls: {name!r} is a UFL expression, expected a coefficient that "
                             "is a number, values by cell, or a dolfinx Function or Constant")
        self.array = coefficient.value.reshape(-1) if constant else coefficient.x.array
        self.shared = constant or isinstance(kind, Number)
        self.one_of_many = self.shared and not constant
        self.owned = len(self.array)
        if not constant:
            dofmap = coefficient.function_space.dofmap
            self.owned = dofmap.index_map.size_local * dofmap.index_map_bs
            if self.one_of_many and dofmap.index_map_bs > 1:
                raise InputError(f"controls: {name!r} has components, expected Values() for it, or "
                                 "a number in a term of your own")
        where = np.ones(self.owned, bool)
        if isinstance(kind, Number) and kind.where is not None:
            where = np.asarray(kind.where, dtype=bool)
            if where.shape != (self.owned,):
                raise InputError(f"controls: {name!r}: where has shape {where.shape}, expected "
                                 f"({self.owned},): one for each entry that this rank owns")
        if coefficient is problem.kappa:
            where = where & ~problem.tied
        self.where = where

    def start(self) -> CoefficientValues:
        values = self.array[: self.owned]
        if self.one_of_many:
            total = self.comm.allreduce(np.array([values[self.where].sum(), self.where.sum()]))
            if not total[1]:
                raise InputError(f"controls: {self.name!r} is nowhere: no entry is chosen")
            values = total[:1] / total[1]
        if self.kind.log:
            if self.comm.allreduce(bool(np.any(values <= 0))):
                raise InputError(f"controls: {self.name!r} is not positive everywhere, expected "
                                 "log=False")
            values = np.log(values)
        return CoefficientValues(self.comm, values, self.shared)

    def physical(self, values: np.ndarray) -> np.ndarray:
        return np.exp(values) if self.kind.log else values

    def put(self, values: np.ndarray) -> None:
        physical = self.physical(values)
        self.array[: self.owned][self.where] = (
            physical if len(physical) != self.owned else physical[self.where])
        if isinstance(self.coefficient, dolfinx.fem.Function):
            self.coefficient.x.scatter_forward()

    def pull(self, values: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        gradient = np.where(self.where, np.ravel(gradient), 0.0)
        if self.one_of_many:
            gradient = np.array([self.comm.allreduce(float(gradient.sum()))])
        return gradient * self.physical(values) if self.kind.log else gradient


class _SignalsOfControls(EngineOperation):
    """Controls to signals."""

    def __init__(self, engine, handles: list[_Handle]):
        super().__init__(engine)
        self.handles = handles

    def _put(self, controls: Sequence[np.ndarray]) -> None:
        for handle, values in zip(self.handles, controls, strict=True):
            handle.put(values)

    def _signals(self, *controls):
        self._put(controls)
        return self.engine.signals(remember=True)

    def _derivative(self, adjoint, *controls):
        self._put(controls)  # others may have written into the coefficients meanwhile
        gradients = self.engine.gradients(adjoint, [each.coefficient for each in self.handles])
        return [handle.pull(values, gradient) for handle, values, gradient in zip(
            self.handles, controls, gradients, strict=True)]


@dataclass(frozen=True, eq=False)
class SquaredDifference:
    """Half the mean of |S - measured|^2 / scale^2, of ``(N,)`` complex S: the default loss."""

    measured: np.ndarray
    scale: float

    def value(self, signals: np.ndarray) -> float:
        return 0.5 * float(np.mean(np.abs(signals - self.measured) ** 2)) / self.scale**2

    def pull_back(self, signals: np.ndarray, adjoint: float) -> np.ndarray:
        return adjoint * (signals - self.measured) / (len(signals) * self.scale**2)


class CoefficientFunctional(ReducedFunctional):
    """A `pyadjoint.ReducedFunctional` that takes plain numbers and arrays too.

    Attributes:
        engine: the engine behind it.
        names: of the controls, in order.
    """

    def __init__(self, functional, handles: list[_Handle], controls: list, tape, engine):
        super().__init__(functional, [Control(control) for control in controls], tape=tape)
        self.engine, self._handles = engine, handles
        self.names = [handle.name for handle in handles]

    def __call__(self, values):
        """J at values of the controls (logarithms where a control is one). Collective."""
        return super().__call__(self._wrapped(values))

    def physical(self, values=None) -> dict[str, np.ndarray | float]:
        """Coefficients by name at values of the controls; where J was taken last if not given.

        Numbers as floats; owned entries otherwise.
        """
        values = [c.tape_value() for c in self.controls] if values is None else values
        found = {handle.name: (handle.physical(control.values), handle.shared) for handle, control
                 in zip(self._handles, self._wrapped(values), strict=True)}
        return {name: float(array[0]) if shared and array.size == 1 else array
                for name, (array, shared) in found.items()}

    def _wrapped(self, values) -> list[CoefficientValues]:
        if isinstance(values, _Array) or np.ndim(values) == 0:
            values = [values]
        elif not isinstance(values, list | tuple):
            values = [values] if len(self._handles) == 1 else list(values)
        if len(values) != len(self._handles):
            raise InputError(f"values: {len(values)}, expected one for each of the controls "
                             f"{', '.join(self.names)}")
        result = []
        for control, value in zip(self.controls, values, strict=True):
            wrapped = control.control._ad_init_object(value)
            if wrapped.values.shape != control.control.values.shape:
                raise InputError(f"values: shape {wrapped.values.shape}, expected "
                                 f"{control.control.values.shape}")
            result.append(wrapped)
        return result


def reduced_functional(tissue: Tissue, acquisition: Acquisition, loss, controls,
                       engine: str = "auto", degree: int | str = "auto", modes: int | str = "auto",
                       tolerance: float = 1e-4, time_step: float | str = "auto",
                       extra_terms: Callable | None = None,
                       extra_coefficients: Mapping | None = None,
                       extra_breakpoints: Sequence[float] = ()) -> CoefficientFunctional:
    """How far simulated signals are from measured ones, as a function of coefficients. Collective.

    Args:
        tissue, acquisition: as `spinverse.simulate`, like the arguments that are not named here.
        loss: measured signals, `Signals` or ``(N,)`` complex, for `SquaredDifference` over the
            magnetisation at the start; or any loss of complex signals with ``value(S)`` and
            ``pull_back(S, adjoint)``, such as those of `spinverse.inversion.likelihood`.
        controls: names of coefficients: those of ``extra_coefficients``, "D" (diffusivity), "R2"
            (1/T2), "R1" (1/T1) and "kappa" (permeability); or a mapping of names to `Number` and
            `Values`. Constants are one control of their size; of other coefficients all entries
            are, unless `Number` says otherwise.
        engine: time stepping has the exact derivative of its discrete signals; the matrix formalism
            that in a fixed basis, which all modes, or as many as the tolerance asks for, make as
            good as exact.

    Returns:
        J, taped at the coefficients as they are: ``J(values)``, ``J.derivative()`` (a list, one for
        each control), ``J.physical(values)``; `pyadjoint.minimize(J)` and TAO take it.

    Raises:
        InputError: an argument that makes no sense.
    """
    problem = BlochTorrey(tissue, degree_for(tissue, acquisition, degree), extra_terms,
                          extra_coefficients, extra_breakpoints)
    solver = make_engine(problem, acquisition, engine, modes, tolerance, time_step)
    if isinstance(controls, str):
        controls = [controls]
    kinds = dict(controls) if isinstance(controls, Mapping) else dict.fromkeys(controls, Values())
    if not kinds:
        raise InputError("controls: none, expected at least one name")
    handles = [_Handle(problem, name, _named(problem, name), kind)
               for name, kind in kinds.items()]
    previous, tape = get_working_tape(), Tape()
    set_working_tape(tape)
    continue_annotation()
    try:
        start = [handle.start() for handle in handles]
        signals = apply(_SignalsOfControls(solver, handles), start, SignalVector)
        value = apply(_as_loss(problem, acquisition, loss), signals, AdjFloat)
    finally:
        pause_annotation()
        set_working_tape(previous)
    return CoefficientFunctional(value, handles, start, tape, solver)


def _named(problem: BlochTorrey, name: str):
    c = problem.coefficients
    known = {"D": c.D, "R2": c.R2, "kappa": problem.kappa, **c.extra}
    known.setdefault("R1", c.R1)  # a user's own may have that name
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"controls: {name!r}{hint}, expected some of {', '.join(known)}")
    return known[name]


def _as_loss(problem: BlochTorrey, acquisition: Acquisition, loss):
    if hasattr(loss, "value") and hasattr(loss, "pull_back"):
        return loss
    try:
        measured = np.array(loss.values if isinstance(loss, Signals) else loss, dtype=complex)
    except (TypeError, ValueError):
        measured = np.zeros(0)
    if measured.shape != (len(acquisition),):
        raise InputError(f"loss: {type(loss).__name__} of shape {measured.shape}, expected "
                         f"{len(acquisition)} measured signals, or a loss with value and "
                         "pull_back")
    return SquaredDifference(measured, abs(problem.magnetisation_at_start) or 1.0)
