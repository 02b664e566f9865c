"""What an optimiser remembers, so that an interrupted stage goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...errors import InputError
from ...mesh.distributed import Mesh

LARGEST_LOG = 2**31  # bytes, of the whole mesh


@dataclass(frozen=True, eq=False)
class Memory:
    """The state of an optimiser between two iterations.

    Attributes:
        optimiser: which one, with its settings; another one cannot go on with it.
        iteration: number of the last iteration that was reported.
        numbers: arrays that are the same on every rank.
        facets: arrays whose last axis runs over the owned facets, and on rank 0 over the numbers
            that go with them (`FacetField`). ``control`` is always there.
    """

    optimiser: str
    iteration: int
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    facets: dict[str, np.ndarray] = field(default_factory=dict)

    def in_slabs(self, mesh: Mesh) -> dict[str, np.ndarray]:
        """As plain arrays, facets in the order of their vertex triples. Collective.

        Returns:
            ``optimiser``, ``iteration`` and ``numbers/NAME`` as they are, and ``beside/NAME``, the
            numbers that go with facets; and of ``triples`` ``(n, d)`` and ``facets/NAME``, with the
            facets along the first axis, the rows of this rank's slab. `scattered` reads it at any
            number of ranks.
        """
        slabs, count = mesh.facet_slabs, mesh.num_owned_facets
        return {"triples": slabs.keys, "optimiser": np.array(self.optimiser),
                "iteration": np.array(self.iteration),
                **{f"numbers/{name}": np.asarray(a) for name, a in self.numbers.items()},
                **{f"beside/{name}": mesh.comm.bcast(a[..., count:])
                   for name, a in self.facets.items()},
                **{f"facets/{name}": slabs.collect(np.moveaxis(a[..., :count], -1, 0))
                   for name, a in self.facets.items()}}

    @classmethod
    def scattered(cls, mesh: Mesh, saved: dict[str, np.ndarray]) -> Memory:
        """The memory that `in_slabs` gave. Collective.

        Args:
            mesh: the mesh.
            saved: what is not over facets is the same on every rank; rows of facets may be on any
                rank, and on several.

        Raises:
            InputError: arrays are missing, or belong to another mesh.
        """
        try:
            triples, optimiser = saved["triples"], str(saved["optimiser"])
            iteration = int(saved["iteration"])
        except KeyError as error:
            raise InputError(f"optimiser's memory: no {error.args[0]!r}, "
                             "expected what Memory.in_slabs gives") from None
        numbers = {name.removeprefix("numbers/"): np.asarray(a) for name, a in saved.items()
                   if name.startswith("numbers/")}
        rows = mesh.facet_rows(triples, "optimiser's memory")
        facets = {name.removeprefix("facets/"): np.ascontiguousarray(
                      np.moveaxis(rows.values(a), 0, -1))
                  for name, a in saved.items() if name.startswith("facets/")}
        if mesh.comm.rank == 0:
            for name, a in facets.items():
                beside = saved.get(f"beside/{name}", np.zeros((*a.shape[:-1], 0)))
                facets[name] = np.concatenate([a, beside], axis=-1)
        return cls(optimiser, iteration, numbers, facets)


class Keeper:
    """Hands an optimiser its earlier memory, and the latest one to whoever saves it.

    Args:
        earlier: the memory of a run of the same stage that was interrupted.

    Attributes:
        losses: of all iterations of the stage, those of the earlier run included.
    """

    def __init__(self, earlier: Memory | None = None):
        self.earlier = earlier
        self.losses: list[float] = []
        if earlier is not None:
            self.losses = np.atleast_1d(earlier.numbers.get("losses", [])).tolist()
        self._make: Callable[[], Memory] | None = None

    def keep(self, loss: float, make: Callable[[], Memory]) -> None:
        """Called by an optimiser after each iteration; ``make`` is valid until the next one."""
        self.losses.append(float(loss))
        self._make = make

    def memory(self) -> Memory | None:
        """The state after the last iteration; None before the first one of this run."""
        if self._make is None:
            return None
        found = self._make()
        found.numbers["losses"] = np.array(self.losses)
        return found


class Log:
    """Losses and gradients that an optimiser was given, in order.

    An optimiser asks for nothing else. Whatever it keeps inside (pairs of a quasi-Newton matrix,
    its scaling, trust radius, active set), it arrives at the same again when it starts from the
    same point and gets the same answers, which cost nothing when they are read from here.

    Args:
        size: number of facets of the whole mesh.
        memory: with a log in it, whose answers are given first.
    """

    def __init__(self, size: int, memory: Memory | None = None):
        self.size, self.next, self.broken = size, 0, False
        self.kinds: list[bool] | None = []  # True is a gradient; None: too long to be kept
        self.losses: list[float] = []
        self.gradients: list[np.ndarray] = []
        if memory is not None:
            self.kinds = memory.numbers["kinds"].astype(bool).tolist()
            self.losses = memory.numbers["values"].tolist()
            self.gradients = list(memory.facets["gradients"])
        self.known = len(self.kinds)
        self._given = [0, 0]

    @property
    def replays(self) -> bool:
        """Whether the next answer is read."""
        return self.next < self.known and not self.broken

    def answer(self, gradient: bool):
        """The next answer of the log; None if there is none, or is of the other kind."""
        if not self.replays:
            return None
        if self.kinds[self.next] != gradient:
            self.broken = True
            return None
        self.next += 1
        self._given[gradient] += 1
        return (self.gradients if gradient else self.losses)[self._given[gradient] - 1]

    def add(self, gradient: bool, value) -> None:
        """Write down an answer."""
        if self.kinds is None:
            return
        if 8 * self.size * (len(self.gradients) + gradient) > LARGEST_LOG:
            self.kinds, self.losses, self.gradients = None, [], []
            return
        self.kinds.append(gradient)
        if gradient:
            self.gradients.append(np.array(value))
        else:
            self.losses.append(float(value))

    def arrays(self) -> tuple[dict, dict]:
        """What `Memory` keeps: numbers, and values on facets. Empty if the log grew too long."""
        if self.kinds is None:
            return {}, {}
        return ({"kinds": np.array(self.kinds, dtype=np.int8), "values": np.array(self.losses)},
                {"gradients": np.array(self.gradients)})
