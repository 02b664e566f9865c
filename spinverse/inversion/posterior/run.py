"""The posterior of a problem: chains on all ranks, round by round, resumable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mpi4py import MPI

from ...errors import InputError, on_all
from ...mesh.whole import WholeMesh
from ..parameters import NOISE, Theta
from ..problem import InverseProblem
from ..shapes.hypothesis import whole_labels
from ..shapes.stage import Shapes
from .emulator import Emulator
from .prior import ShapePrior
from .result import Posterior, diagnosed, doubtful, made, quantities_by_name
from .sampler import (
    WANTED,
    Arrays,
    Space,
    Tuned,
    advance,
    alone,
    begin,
    examples,
    first_betas,
    longer,
    spaced,
)

LEARNING, KEEPING = 6, 4  # rounds before samples are kept, and of samples, at the least
BLOCKS = 4  # of so many rounds of samples at most, unless a limit is given
FIRST_LENGTH = 20  # moves that the emulator alone decides, to begin with
LEARNT = 1500  # likeliest examples, that the emulator first learns from
STATE = ("round", "betas", "lengths", "bias", "reference", "few", "decided", "rejected", "moves",
         "sets", "solves")
RARE = 0.1  # other shapes a step: where chains come to fewer, sets of moves are tried
CHECKED = 12  # samples whose log-likelihood the full model computes


@dataclass(frozen=True)
class Sampling:
    """How much work a posterior is.

    Attributes:
        samples: that are kept, of all chains, before it is asked whether chains agree.
        limit: where they do not (`diagnostics.LARGEST`, `FEWEST`), as many samples again are drawn,
            and again, to so many at most; None: four times ``samples``.
        chains: each with temperatures and a reservoir of its own.
        temperatures: of each chain, from that of the posterior to hot ones; the more data tell, the
            more are needed.
        steps: of a chain between two samples, each of which computes two partitions.
        learning: steps of a chain before samples are kept.
        examples: hypotheses with their signals, of all chains, that the emulator first learns
            from, and that the hottest temperatures exchange with.
        cells: at most so many cells; None: as many as the solution that it begins with has.
        prior: of shapes.
        seed: of all that is random.

    Raises:
        InputError: a number out of its range.
    """

    samples: int = 800
    limit: int | None = None
    chains: int = 4
    temperatures: int = 5
    steps: int = 4
    learning: int = 400
    examples: int = 600
    cells: int | None = None
    prior: ShapePrior = field(default_factory=ShapePrior)
    seed: int = 0

    def __post_init__(self):
        for name, least in (("samples", 1), ("chains", 1), ("temperatures", 2), ("steps", 1),
                            ("learning", LEARNING), ("examples", 40), ("seed", 0), ("cells", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"posterior: {name} {value}, expected at least {least}")
        if self.limit is not None and self.limit < self.samples:
            raise InputError(f"posterior: limit {self.limit}, expected at least the "
                             f"{self.samples} of samples")

    @property
    def kept(self) -> int:
        """Samples of one chain in one round."""
        return -(-self.samples // (self.chains * KEEPING))

    @property
    def blocks(self) -> int:
        """How often `KEEPING` rounds of samples are drawn at most."""
        return BLOCKS if self.limit is None else self.limit // self.samples


def posterior(problem: InverseProblem, sampling: Sampling | None = None,
              labels: np.ndarray | None = None, theta: Theta | None = None, *,
              progress: Callable[[int, int], None] | None = None,
              keep: Callable[[dict], None] | None = None,
              saved: Mapping[str, Any] | None = None) -> Posterior:
    """Samples of shapes and unknown numbers, given the data. Collective.

    Args:
        problem: what is known, and the measurements; its noise must be known.
        sampling: how much work, and the prior.
        labels: ``(owned cells,)`` of a solution to begin with; None: from the prior.
        theta: values of unknown numbers there.
        progress: called after each round with its number, from 1 on, and how many there are.
        keep: called on every rank with plain arrays to go on from, after each round.
        saved: such arrays, of a run that was interrupted.

    Returns:
        The same at any number of ranks.

    Raises:
        InputError: no noise is known, or a problem that the fast models cannot take.
    """
    sampling, comm = sampling or Sampling(), problem.comm
    check(problem)
    start = None if labels is None else whole_labels(problem.mesh, labels)
    most = sampling.cells or max(1 if start is None else int(start.max()), 1)
    if start is not None and not 1 <= start.max() <= most:
        raise InputError(f"posterior: a solution of {start.max()} cells, expected 1 to {most}")
    space = Space(alone(problem), sampling.prior, most)
    whole = WholeMesh.of(problem.mesh)
    facets = np.zeros(whole.facets.shape, np.int64)
    facets[whole.owned] = problem.mesh.facet_vertices
    comm.Allreduce(MPI.IN_PLACE, facets, MPI.SUM)
    first = None if start is None else (start, space.models.coordinates(
        {**problem.start_of_unknown, **(theta or {})}))
    return sample(space, sampling, comm, facets, first, None, progress, keep, saved)


def check(problem: InverseProblem) -> None:
    """Raise InputError if there can be no posterior of a problem. Collective."""
    if not problem.likelihood.sigma and NOISE not in problem.unknown:
        raise InputError("posterior: no noise is known, expected noise, the standard deviation of "
                         "normalised magnitudes, or measurements that were repeated")
    why = Shapes().unsuitable(problem)
    if why:
        raise InputError(f"posterior: {why}")


def sample(space: Space, sampling: Sampling, comm: MPI.Comm, facets: np.ndarray,
           start: tuple[np.ndarray, np.ndarray] | None = None, known: Arrays | None = None,
           progress: Callable[[int, int], None] | None = None,
           keep: Callable[[dict], None] | None = None,
           saved: Mapping[str, Any] | None = None) -> Posterior:
    """`posterior` in a space of hypotheses; chains are dealt out to ranks. Collective.

    ``known`` are examples, in place of those that chains make.
    """
    run = _Run(space, sampling, comm)
    if saved is None:
        run.begin(start, known)
    else:
        run.restore(saved)
    while not run.done():
        run.advance()
        if keep is not None:
            keep(run.state())
        if progress is not None:
            progress(run.round, LEARNING + KEEPING * max(1, -(-run.kept // KEEPING)))
    return run.result(facets)


class _Run:
    """Rounds of all chains. Everything in it is the same on every rank."""

    def __init__(self, space: Space, sampling: Sampling, comm: MPI.Comm):
        self.space, self.sampling, self.comm, self.round = space, sampling, comm, 0
        self.samples: list[Arrays] = []
        self.decided = np.zeros((2, sampling.temperatures))
        self.moves = np.zeros((len(space.moves.kinds), 2))
        self.sets, self.few = np.zeros(2), 0
        self.reference = space.models.start
        self.solves = 0

    @property
    def kept(self) -> int:
        """Rounds of samples."""
        return max(self.round - LEARNING, 0)

    def done(self) -> bool:
        """Whether chains agree at the end of a block of rounds, or the limit is met. Collective."""
        if not self.kept or self.kept % KEEPING:
            return False
        if self.kept >= KEEPING * self.sampling.blocks:
            return True
        samples = self._ordered()
        quantities = quantities_by_name(self.space, samples)
        return self.comm.bcast(not doubtful(*diagnosed(quantities, samples["chain"])))

    def _ordered(self) -> Arrays:
        """All samples, chain by chain."""
        n = self.sampling.chains
        order = [self.samples[k * n + c] for c in range(n) for k in range(self.kept)]
        return {name: np.concatenate([part[name] for part in order]) for name in order[0]}

    def _shared(self, function: Callable) -> list:
        """``function(chain)`` of each chain, in order."""
        return shared(self.comm, function, range(self.sampling.chains))

    def begin(self, start: tuple[np.ndarray, np.ndarray] | None,
              known: Arrays | None) -> None:
        s, space = self.sampling, self.space
        if start is not None:  # on every rank for itself: no rank waits for another
            space.models.calibrate(*start, space.models.all)
        parts = [known] if known is not None else self._shared(
            lambda c: examples(space, (s.seed, c, 0), s.examples // s.chains, start))
        every = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self.solves = 0 if known is not None else len(every["labels"])
        # chains that share what they begin with would agree too early: one begins at the start
        self.chains = self._shared(lambda c: begin(space, {
            name: values[c:: s.chains] for name, values in every.items()}, (s.seed, c, 1),
            None if c else start, s.temperatures))
        near = np.argsort(-space.likelihood.log_density(every["predicted"]), kind="stable")
        near = np.sort(near[:LEARNT])  # in no order: some are left out to test with
        self.examples = {name: values[near] for name, values in every.items()}
        self.betas = first_betas(s.temperatures)
        self.lengths = np.full(s.temperatures, FIRST_LENGTH)
        self.rejected = np.zeros((2, s.temperatures))
        self.bias = np.zeros(len(space.likelihood))
        self._learn()

    def _learn(self) -> None:
        space, known = self.space, getattr(self, "_features", np.zeros((0, 0)))
        new = [space.features(labels, theta, space.prior.walls(labels)) for labels, theta in zip(
            self.examples["labels"][len(known):], self.examples["theta"][len(known):],
            strict=True)]
        self._features = np.vstack([known, *new]) if len(known) else np.array(new)
        self.tuned = Tuned(Emulator.learnt(space.features, space.likelihood, self._features,
                                           self.examples["predicted"]),
                           self.betas, self.lengths, self.bias, self.reference, bool(self.few))

    def advance(self) -> None:
        """One round of all chains, and what is adapted after it."""
        s, space, number = self.sampling, self.space, self.round
        learning = number < LEARNING
        steps = -(-s.learning // LEARNING) if learning else s.kept * s.steps

        def one(c):
            state, samples, met = advance(space, self.tuned, self.chains[c],
                                          (s.seed, c, number + 2), steps, s.steps, learning)
            x = state["labels"][0], state["theta"][0]
            bias = space.exact(*x) - state["predicted"][0] if learning and number % 2 else None
            return state, samples, met, bias

        found = self._shared(one)
        self.chains = [each[0] for each in found]
        met = [each[2] for each in found]
        self.solves += sum(len(each["predicted"]) + int(each["solved"]) for each in met)
        self.round += 1
        if not learning:
            for c, (_, samples, _, _) in enumerate(found):
                self.samples.append({**samples, "chain": np.full(len(samples["labels"]), c)})
            self.decided += sum(each["decided"] for each in met)
            self.rejected += sum(each["rejected"] for each in met)
            self.moves += sum(each["moves"] for each in met)
            self.sets += sum(each["sets"] for each in met)
            return
        met = [{**each, "prior": np.zeros(len(each["theta"]), bool)} for each in met]
        self.examples = {name: np.concatenate([self.examples[name], *(e[name] for e in met)])
                         for name in self.examples}
        rejected, decided = (sum(each[name] for each in met) for name in ("rejected", "decided"))
        self.betas = spaced(self.betas, rejected[0] / np.maximum(rejected[1], 1))
        self.lengths = longer(self.lengths, np.where(
            decided[1], decided[0] / np.maximum(decided[1], 1), WANTED))
        self.few = int(sum(each["shapes"] for each in met) < RARE * steps * s.chains)
        self.reference = np.mean([state["theta"][0] for state in self.chains], axis=0)
        if found[0][3] is not None:
            self.bias = np.mean([each[3] for each in found], axis=0)
        self._learn()

    # ---- going on --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Plain arrays to go on from."""
        arrays = {name: getattr(self, name) for name in STATE} | {
            "resistance": self.space.models.resistance}
        for name, parts in (("chain", self.chains), ("sample", self.samples)):
            arrays |= {f"{name}/{k}/{key}": value for k, part in enumerate(parts)
                       for key, value in part.items()}
        return {name: np.asarray(value) for name, value in arrays.items()} | {
            f"examples/{name}": value for name, value in self.examples.items()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        try:
            for name in STATE:
                value = saved[name]
                setattr(self, name, value if np.ndim(value) else int(value))
            self.space.models.resistance = float(saved["resistance"])

            def part(name):
                return {key.removeprefix(f"{name}/"): value for key, value in saved.items()
                        if key.startswith(f"{name}/")}

            self.examples = part("examples")
            self.chains = [part(f"chain/{c}") for c in range(self.sampling.chains)]
            self.samples = [part(f"sample/{k}") for k in range(self.kept * self.sampling.chains)]
            if f"chain/{self.sampling.chains}/theta" in saved or not all(self.chains):
                raise KeyError(f"{self.sampling.chains} chains")
        except KeyError as error:
            raise InputError(f"posterior: the state to go on from has no {error}, expected one of "
                             "the same posterior") from None
        self._learn()

    # ---- the end ---------------------------------------------------------------------------------

    def result(self, facets: np.ndarray) -> Posterior:
        """Of the samples that were kept, in order of the chains."""
        samples = self._ordered()
        decided, rejected = (values[0] / np.maximum(values[1], 1) for values in (
            self.decided, self.rejected))
        acceptance = {"decisions of the fast model": float(decided[0]),
                      "exchanges between temperatures": 1 - float(rejected[:-1].max())}
        acceptance |= {f"{kind} by the emulator": float(a / max(n, 1)) for kind, (n, a) in zip(
            self.space.moves.kinds, self.moves, strict=True)}
        if self.sets[0]:
            acceptance["sets of moves"] = float(self.sets[1] / self.sets[0])
        return made(self.space, samples, facets, acceptance, self._correction(samples),
                    self.solves)

    def _correction(self, samples: Arrays) -> dict[str, float]:
        """What the full model in place of the fast one would change."""
        space = self.space
        chosen = np.unique(np.linspace(0, len(samples["labels"]) - 1, CHECKED).astype(int))

        def exact(k):
            predicted = space.exact(samples["labels"][k], samples["theta"][k])
            return float(space.likelihood.log_density(np.maximum(predicted, 0.0)))

        fast = samples["log_likelihood"][chosen]
        full = np.array(shared(self.comm, exact, chosen.tolist()))
        first, second = np.triu_indices(len(chosen), 1)

        def chances(values):
            return np.exp(np.minimum(0.0, values[second] - values[first]))

        change = full - fast - np.mean(full - fast)
        return {"rms_of_log_likelihood": float(np.sqrt(np.mean(change**2))),
                "changed_decisions": float(np.mean(np.abs(chances(full) - chances(fast))))
                if len(first) else 0.0}


def shared(comm: MPI.Comm, function: Callable, items) -> list:
    """``[function(item) for item in items]``, items dealt out to the ranks. Collective."""
    items = list(items)
    mine = on_all(comm, lambda: [function(item) for item in items[comm.rank:: comm.size]])
    parts = comm.allgather(mine)
    return [parts[k % comm.size][k // comm.size] for k in range(len(items))]
