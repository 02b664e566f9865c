"""The posterior over shapes: moves, prior and sampler against exact enumeration, densities,
diagnostics, ranks, resumption, bad input, calibration from end to end."""

import hashlib
import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from mpi import run_mpi
from scipy.stats import kstest, rice

import spinverse
from spinverse import (
    Acquisition,
    InputError,
    InverseProblem,
    Posterior,
    Sampling,
    ShapePrior,
    Signals,
    Tissue,
    Unknown,
    cli,
)
from spinverse.acquisition import TrapezoidPGSE
from spinverse.acquisition.io import write_signals
from spinverse.inversion.likelihood import Likelihood
from spinverse.inversion.posterior import calibration, design, diagnostics, nearby, run
from spinverse.inversion.posterior.emulator import Emulator
from spinverse.inversion.posterior.nearby import Nearby
from spinverse.inversion.posterior.result import (
    JUDGED,
    align,
    diagnosed,
    largest_expected_f1,
)
from spinverse.inversion.posterior.run import KEEPING, LEARNING, _Run, sample
from spinverse.inversion.posterior.sampler import Place, Space, Tuned, alone
from spinverse.inversion.shapes.cells import changed

FEW = Sampling(samples=8, limit=8, chains=2, steps=1, learning=6, examples=40)


def acquisition():
    return Acquisition.pgse([0, 0, 1000, 3000], np.eye(3), 8, [12, 40])


def problem_on(cells, length=8.0, noise=0.05, unknown=(), **known):
    mesh = spinverse.mesh.build(spinverse.mesh.box, [length * n for n in cells], cells=cells)
    table = acquisition()
    signals = Signals(table, spinverse.simulate(Tissue(mesh), table, tolerance=1e-3).values,
                      unit="um^3")
    return InverseProblem(mesh, signals, noise=noise, unknown=unknown, **known)


@pytest.fixture(scope="module")
def cube():
    """Six mesh cells round a diagonal: 13 partitions are allowed."""
    space = Space(alone(problem_on([1, 1, 1], wall_permeability=0.01)), ShapePrior())
    truth = np.array([1, 1, 1, 1, 0, 0], np.int8)
    truth = truth if space.cells.allowed(truth) else allowed(space)[0]
    data = space.likelihood.drawn(space.exact(truth, np.zeros(0)), np.random.default_rng(3))
    space = space.measured(data)
    for model in ("predicted", "exact"):  # of so few partitions, each computed once
        space.__dict__[model] = once(getattr(space, model))
    return space


def once(model):
    known = {}

    def ask(labels, theta, *step):
        key = labels.tobytes(), step
        if key not in known:
            known[key] = model(labels, theta, *step)
        return known[key]
    return ask


@pytest.fixture(scope="module")
def two():
    """Twelve mesh cells, two cells with a permeability of their own."""
    unknown = {"wall_permeability": Unknown(0.02, 0.001, 1.0)}
    return Space(alone(problem_on([2, 1, 1], unknown=unknown)), ShapePrior(), most=2)


def allowed(space):
    every = itertools.product((0, 1), repeat=len(space.models.whole.cells))
    shapes = (np.array(shape, np.int8) for shape in every)
    return [shape for shape in shapes if space.cells.allowed(shape)]


# ---- densities ----------------------------------------------------------------------------------

def test_density_is_that_of_rice():
    measured, predicted, sigma = np.array([0.9, 0.1, 0.02]), np.array([1.0, 0.05, 0.0]), 0.05
    made = Likelihood(measured, np.ones(3), sigma=sigma)
    exact = rice.logpdf(measured, predicted / sigma, scale=sigma) - np.log(measured)
    assert np.isclose(made.log_density(predicted), exact.sum(), rtol=1e-10)
    gauss = replace(made, rician=False)
    more, less = gauss.log_density(measured), gauss.log_density(measured + sigma)
    assert np.isclose(more - less, 3 / 2)


@pytest.mark.parametrize("rician", [True, False])
def test_slopes_of_the_density(rician):
    measured, predicted, step = np.array([0.9, 0.1, 0.02]), np.array([1.0, 0.05, 0.01]), 1e-4
    made = Likelihood(measured, np.ones(3), sigma=0.05, rician=rician)
    first, second = made.slopes_of_log_density(predicted)
    for k, unit in enumerate(step * np.eye(3)):
        up, here, down = (made.log_density(predicted + sign * unit) for sign in (1, 0, -1))
        assert np.isclose(first[k], (up - down) / (2 * step), rtol=1e-5, atol=1e-4)
        assert np.isclose(second[k], -(up - 2 * here + down) / step**2, rtol=1e-3)


def test_own_normalisation_does_not_know_the_unit():
    """The measured |S(b = 0)| is noisy: its error does not count against a prediction."""
    problem = problem_on([1, 1, 1], normalisation="own", wall_permeability=0.01)
    likelihood = problem.likelihood
    predicted = likelihood.normalised(problem.signals.values)
    off = replace(likelihood, measured=1.03 * likelihood.measured)
    assert np.isclose(off.log_density(predicted), off.log_density(1.1 * predicted))
    assert likelihood.log_density(predicted) > likelihood.log_density(predicted**2)


# ---- moves --------------------------------------------------------------------------------------

def proposed(space, rng, kind, place, labels, theta):
    """Labels and theta after a proposal, and the logarithm of the ratio; None if there is none."""
    known = bytearray(labels.tobytes() + b"\0")
    made = space.moves.propose(rng, space.moves.kinds.index(kind), place, known, theta)
    assert known == labels.tobytes() + b"\0"
    if made is None:
        return None
    cells, values, there, ratio = made
    new = labels.copy()
    new[cells] = values
    return new, there, ratio


def proposals(space, kind, labels, theta, number, seed):
    """How often each partition is proposed, and how often back by the ratios that come with it."""
    rng, counts, expected = np.random.default_rng(seed), {}, {}
    for place in rng.integers(2 * len(space.models.whole.sides), size=number):
        made = proposed(space, rng, kind, int(place), labels, theta)
        if made is not None:
            key = made[0].tobytes()
            counts[key] = counts.get(key, 0) + 1
            expected.setdefault(key, []).append(np.exp(made[2]))
    return counts, expected


def one_cell(space):
    labels = np.zeros(len(space.models.whole.cells), np.int8)
    labels[space.moves._seeds[0]] = 1
    return labels


def two_cells(space):
    labels = one_cell(space)
    labels[next(s for s in space.moves._seeds if not labels[s].any())] = 2
    return labels


@pytest.mark.parametrize("kind", ["flip", "pair", "cluster", "place"])
def test_moves_go_back_as_often_as_they_say(two, kind):
    """Counts of both directions against log q(back) - log q(there); all are within five errors."""
    number, theta, compared = 6000, two.models.start, 0
    for labels in (one_cell(two), two_cells(two)):
        there, ratios = proposals(two, kind, labels, theta, number, 1)
        usual = sorted(there, key=there.get, reverse=True)[:3]
        for key in usual:
            new = np.frombuffer(key, np.int8)
            if np.array_equal(new, labels):
                continue
            back, _ = proposals(two, kind, new, theta, number, 2)
            b, expected = back.get(labels.tobytes(), 0), np.sum(ratios[key])
            error = np.sqrt(expected + np.sum(np.square(ratios[key])))
            assert abs(b - expected) < 5 * error + 3
            compared += 1
    assert compared


def test_births_go_back(two):
    rng, theta = np.random.default_rng(0), two.models.start
    labels = one_cell(two)
    number = len(two.moves._seeds)
    made = [m for m in (proposed(two, rng, "birth", 0, labels, theta) for _ in range(400)) if m]
    assert made and all(new.max() == 2 and np.isclose(ratio, np.log(number))
                        for new, _, ratio in made)
    back = [m for m in (proposed(two, rng, "birth", 0, made[0][0], theta)
                        for _ in range(40)) if m]
    assert back and all(np.array_equal(new, labels) and np.isclose(ratio, -np.log(number))
                        for new, _, ratio in back)


def test_cells_exchange_all_they_have(two):
    labels, theta = two_cells(two), np.array([0.1, 0.2])
    new, there, ratio = proposed(two, np.random.default_rng(0), "exchange", 0, labels, theta)
    assert np.array_equal(new, np.array([0, 2, 1])[labels]) and ratio == 0
    assert np.array_equal(there, [0.2, 0.1])


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_differences_are_those_of_the_whole(two, beta):
    """A local look at what is allowed, and sums of prior and emulator, step by step."""
    rng, N = np.random.default_rng(0), len(two.likelihood)
    emulator = Emulator(two.features, two.likelihood,
                        0.01 * rng.normal(size=(two.features.ends[-1], N)), np.full(N, 1e-4))
    place, seen = Place(two, two_cells(two), two.models.start, emulator, beta), Counter()
    look = two.cells.still_allowed

    def both(labels, changed, before):
        found = look(labels, changed, before)
        assert found == two.cells.allowed(np.frombuffer(bytes(labels[:-1]), np.int8))
        seen[found] += 1
        return found

    two.cells.still_allowed = both
    try:
        for kind, at in zip(*two.moves.draws(rng, 4000), strict=True):
            if not place.move(rng, kind, at):
                continue
            labels = np.frombuffer(bytes(place.labels[:-1]), np.int8)
            seen[int(labels.max()), "cells"] += 1
            walls = two.prior.walls(labels)
            assert np.isclose(place.prior, two.prior.log_density(labels, place.theta, walls))
            if beta:
                predicted = two.features(labels, place.theta, walls) @ emulator.slopes
                assert np.isclose(place.L, two.likelihood.log_density(
                    np.maximum(predicted, 0.0), emulator.variance))
    finally:
        del two.cells.still_allowed
    assert min(seen[True], seen[False], seen[2, "cells"]) > 20


# ---- against enumeration ------------------------------------------------------------------------

def distance(found, exact):
    """Total variation."""
    return 0.5 * sum(abs(found.get(key, 0.0) - exact.get(key, 0.0)) for key in {*found, *exact})


def test_prior_alone(two):
    """Of one cell: probabilities of all partitions, and a permeability that is log-uniform."""
    one = replace(two, most=1)
    shapes = allowed(one)
    log_p = np.array([one.prior.log_density(shape, one.models.start) for shape in shapes])
    p = np.exp(log_p - log_p.max())
    by_size = {}
    for shape, weight in zip(shapes, p / p.sum(), strict=True):
        by_size[int(shape.sum())] = by_size.get(int(shape.sum()), 0.0) + weight
    drawn = one.draws(np.random.default_rng(1), 1500, 30)
    sizes, counts = np.unique([labels.sum() for labels, _ in drawn], return_counts=True)
    assert distance(dict(zip(sizes.tolist(), counts / len(drawn), strict=True)), by_size) < 0.06
    low, high = one.models.bounds[:, 0]
    at = (np.array([theta[0] for _, theta in drawn])[::5] - low) / (high - low)
    assert kstest(at, "uniform").pvalue > 1e-3


def sampled(space, sampling, comm):
    """Samples of all chains, and what the sampler says that they are of."""
    run = _Run(space, sampling, comm)
    run.begin(None, None)
    while run.round < LEARNING + KEEPING:
        run.advance()
    return {name: np.concatenate([part[name] for part in run.samples])
            for name in ("labels", "theta")}, run.bias


def shares(values):
    return {key: number / len(values) for key, number in Counter(values).items()}


def made_up(space):
    """The same shapes and numbers with a model of no sense that takes no time."""
    rng, N = np.random.default_rng(1), len(space.likelihood)
    first, slope = rng.uniform(0.2, 1.0, size=(2, len(space.models.whole.cells), N))
    low, high = space.models.bounds[:, 0]

    def predicted(labels, theta, *_):
        inside, x = (labels > 0) / len(labels), (theta[0] - low) / (high - low)
        return inside @ first + np.cos(5 * x) * (inside @ slope) ** 2

    space.__dict__["predicted"] = predicted
    space.__dict__["exact"] = lambda labels, theta: predicted(labels, theta) + 0.01
    return space


def invented(sigma):
    """A space with a model of no sense, and with measurements that it explains."""
    unknown = {"wall_permeability": Unknown(0.02, 0.001, 1.0)}
    space = Space(alone(problem_on([1, 1, 1], unknown=unknown)), ShapePrior())
    space = made_up(space.measured(replace(space.likelihood, sigma=sigma)))
    low, high = space.models.bounds[:, 0]
    measured = space.exact(allowed(space)[5], np.array([0.3 * low + 0.7 * high]))
    return made_up(space.measured(replace(space.likelihood, measured=measured)))


def as_enumerated(space, bias, found):
    """Shapes, and the permeability of the walls in tenths of its range."""
    shapes, (low, high) = allowed(space), space.models.bounds[:, 0]
    grid = low + (np.arange(400) + 0.5) / 400 * (high - low)
    log_p = np.array([[space.prior.log_density(s, np.array([x])) + space.likelihood.log_density(
        np.maximum(space.predicted(s, np.array([x])) + bias, 0.0)) for x in grid] for s in shapes])
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    tenths = p.reshape(len(shapes), 10, -1).sum(axis=2)
    exact = {(s.tobytes(), k): tenths[n, k] for n, s in enumerate(shapes) for k in range(10)}
    at = np.minimum(10 * (found["theta"][:, 0] - low) / (high - low), 9).astype(int).tolist()
    keys = [(s.tobytes(), k) for s, k in zip(found["labels"], at, strict=True)]
    # as many independent draws are this far
    rng, every = np.random.default_rng(0), np.arange(len(exact))
    drawn = [distance(shares(rng.choice(every, len(keys), p=list(exact.values())).tolist()),
                      dict(zip(every.tolist(), exact.values(), strict=True))) for _ in range(10)]
    assert distance(shares(keys), exact) < 2.5 * np.mean(drawn)


@pytest.mark.parametrize(("sigma", "temperatures", "rare"), [
    (0.07, 5, 0.1), (0.07, 2, 0.1), (0.07, 2, np.inf), (1e3, 5, 0.1)])
def test_sampler_against_enumeration(comm, monkeypatch, sigma, temperatures, rare):
    """Of a posterior with emulator, temperatures and reservoir, also with sets of moves, and of
    the prior, where data say nothing."""
    monkeypatch.setattr(run, "RARE", rare)
    space = invented(sigma)
    sampling = Sampling(samples=500, chains=2, temperatures=temperatures, steps=1, learning=30,
                        examples=60)
    found, bias = sampled(space, sampling, comm)
    assert np.allclose(bias, 0.01)
    as_enumerated(space, bias, found)


def near_of(space):
    """Its sets of moves, by numbers that are not those of a chain."""
    emulator = Emulator(space.features, space.likelihood, np.zeros((space.features.ends[-1], 1)),
                        np.ones(1))
    return Nearby(space, Tuned(emulator, np.ones(1), np.ones(1), np.full(
        len(space.likelihood), 0.01), space.models.start, True))


class Chosen:
    """In place of a generator: draws a set of a picture."""

    def __init__(self, picture, k):
        until = np.cumsum(picture.weights)
        self.value = (until[k] - 0.5 * picture.weights[k]) / until[-1]

    def random(self):
        return self.value

    def normal(self, size):
        return np.zeros(size)


def test_sets_of_moves_go_back_as_often():
    """Detailed balance of all pairs of some shapes, of a model that is far from linear."""
    space = Space(alone(problem_on([2, 1, 1], wall_permeability=0.01)), ShapePrior())
    rng, N = np.random.default_rng(1), len(space.likelihood)
    first, second = rng.uniform(0.2, 1.0, size=(2, 12, N))

    def predicted(labels, *_):
        return (labels > 0) @ first / 12 + 0.3 * ((labels > 0) @ second / 12) ** 2

    shapes, none, flow = [shape for shape in allowed(space) if shape[0]], np.zeros(0), {}
    space = space.measured(replace(space.likelihood, sigma=0.1, measured=predicted(shapes[9])))
    space.__dict__["predicted"] = predicted
    near = near_of(space)
    for x in shapes:
        here = x, none, space.predicted(x)
        L = float(near.tuned.log_likelihood(here[2]))
        picture = near.picture(*here)
        for k in range(len(picture.weights)):
            y, _, chance = near.step(Chosen(picture, k), here, L, False)
            if chance:
                flow[x.tobytes(), y[0].tobytes()] = (
                    L + space.prior.log_density(x, none) + np.log(chance)
                    + np.log(picture.weights[k] / picture.weights.sum()))
    both = [(value, flow[b, a]) for (a, b), value in flow.items() if (b, a) in flow]
    assert len(both) > 1000
    np.testing.assert_allclose(*np.transpose(both), rtol=1e-9)
    ends = {shape.tobytes() for shape in shapes}
    assert all((b, a) in flow for a, b in flow if b in ends)


def test_sets_of_moves_where_nothing_else_is_likely():
    """A shape that data leave no doubt of, and one of which every mesh cell is."""
    space = Space(alone(problem_on([2, 1, 1], wall_permeability=0.01)), ShapePrior())
    first = np.random.default_rng(1).uniform(0.2, 1.0, (12, len(space.likelihood)))
    shape = allowed(space)[100]
    space = space.measured(replace(space.likelihood, sigma=1e-4, measured=shape @ first / 12))
    space.__dict__["predicted"] = lambda labels, *_: labels @ first / 12
    near, none = near_of(space), np.zeros(0)
    near.tuned.bias[:] = 0.0
    for labels in (shape, np.ones(12, np.int8)):
        here = labels, none, space.predicted(labels)
        L = float(near.tuned.log_likelihood(here[2]))
        y, _, chance = near.step(np.random.default_rng(0), here, L, False)
        assert chance < 1e-4 and (y is None or len(near.picture(*here).sets))
    assert not len(near.picture(shape, none, space.predicted(shape)).sets)


def test_sets_of_moves_leave_numbers_as_they_are():
    """Of one shape, which is all but certain, and a model that is far from linear in them."""
    space = invented(0.07)
    near, rng, chain = near_of(space), np.random.default_rng(0), []
    labels, theta = allowed(space)[5], space.models.start
    z = labels, theta, space.predicted(labels, theta)
    L = float(near.tuned.log_likelihood(z[2]))
    for _ in range(3000):
        y, there, chance = near.step(rng, z, L, False)
        if y is not None and rng.random() < chance:
            z, L = y, there
        chain.append(z)
    assert near.solved < 40 * len(allowed(space))  # effects of a shape are computed once
    as_enumerated(space, near.tuned.bias, {"labels": np.array([each[0] for each in chain[::6]]),
                                           "theta": np.array([each[1] for each in chain[::6]])})


def test_sets_of_up_to_four_are_all_that_are_likely():
    """Against all sets, with two moves that exclude each other."""
    rng, n = np.random.default_rng(0), 9
    single, Q = rng.normal(-6, 5, n), rng.normal(0, 6, (n, n))
    Q += Q.T
    Q[2, 5] = Q[5, 2] = -1e6
    sets, values = nearby.likely(single, Q, True)
    wanted = {}
    for size in range(5):
        for chosen in itertools.combinations(range(n), size):
            v = single[list(chosen)].sum() + sum(Q[i, j] for i, j in itertools.combinations(
                chosen, 2))
            wanted[chosen + (n,) * (4 - size)] = v
    best = max(wanted.values())
    wanted = {key: v for key, v in wanted.items() if v > max(best, 0.0) - nearby.NEAR}
    assert {tuple(row) for row in sets.tolist()} == set(wanted)
    for row, value in zip(sets.tolist(), values, strict=True):
        assert np.isclose(value, wanted[tuple(row)], atol=1e-4)


def test_what_moves_change_of_the_prior(two):
    """Against the prior itself: its area exactly, its volume to second order."""
    labels = two_cells(two)
    moves = [move for move in two.cells.moves(labels)]
    wide = Space(two.problem, replace(two.shapes, volume_spread=np.inf), 2).prior
    single, Q = wide.changes(labels, moves)
    np.testing.assert_allclose(Q, Q.T)
    for i, j in itertools.combinations(range(len(moves)), 2):
        if moves[i][0] == moves[j][0]:
            continue
        there = changed(labels, [moves[i], moves[j]])
        if there.max() < 2:
            continue
        made = wide.log_density(there, two.models.start) - wide.log_density(
            labels, two.models.start)
        assert np.isclose(made, single[i] + single[j] + Q[i, j])
    loose = Space(two.problem, replace(two.shapes, volume_spread=50.0), 2).prior
    with_volume, pairs = loose.changes(labels, moves)
    for i, move in enumerate(moves):
        there = changed(labels, [move])
        made = [prior.log_density(there, two.models.start) - prior.log_density(
            labels, two.models.start) for prior in (loose, wide)]
        found = with_volume[i] + 0.5 * pairs[i, i] - single[i]
        assert abs(made[0] - made[1] - found) < 0.3 * abs(made[0] - made[1]) + 1e-9


@pytest.mark.slow
def test_sampler_with_the_model(cube, comm):
    shapes, none = allowed(cube), np.zeros(0)
    assert len(shapes) == 13
    sampling = Sampling(samples=2000, chains=2, steps=1, learning=12, examples=40)
    found, bias = sampled(cube, sampling, comm)
    log_p = np.array([cube.prior.log_density(s, none) + cube.likelihood.log_density(
        np.maximum(cube.predicted(s, none) + bias, 0.0)) for s in shapes])
    p = np.exp(log_p - log_p.max())
    exact = {s.tobytes(): weight for s, weight in zip(shapes, p / p.sum(), strict=True)}
    assert max(exact.values()) < 0.9
    assert distance(shares([s.tobytes() for s in found["labels"]]), exact) < 0.1


# ---- results ------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def found(two):
    return sample(two, FEW, alone(two.problem).comm,
                  np.zeros((len(two.models.whole.facets), 3), int))


def test_result(found, two, tmp_path):
    n, cells = found.labels.shape
    assert n >= FEW.samples and cells == 12 and set(found.chain) == {0, 1}
    assert found.theta["wall_permeability"].shape == (n, 2)
    assert np.allclose(found.probability, (found.labels > 0).mean(axis=0))
    V, low, high = found.quantities["volume"], *found.interval("volume")
    assert np.allclose(V, (found.labels > 0) @ two.models.whole.volumes)
    assert V.min() <= low <= np.median(V) <= high <= V.max()
    assert 0 < found.expected_f1 <= 1 and two.cells.allowed(found.expected_f1_shape)
    assert "not sampled well enough" in found.doubts and found.describe()[-1] == found.doubts
    path = tmp_path / "posterior.npz"
    found.save(path)
    same = Posterior.load(path)
    assert np.array_equal(same.labels, found.labels)
    assert json.dumps(same.summary()) == json.dumps(found.summary())


def test_expected_f1_is_the_largest_of_samples(two):
    labels = np.zeros((3, 12), np.int8)
    part = two.moves._seeds[0]
    labels[:, part] = 1
    labels[2] = 1
    shape, value = largest_expected_f1(two, labels)
    assert np.array_equal(shape, labels[0]) and 2 / 3 <= value < 1


def test_alignment_undoes_a_reflection(two):
    labels = np.zeros((2, 12), np.int8)
    labels[0, two.moves._seeds[3]] = 1
    labels[1] = labels[0][two.moves.mirror]
    assert not np.array_equal(labels[0], labels[1])
    assert np.array_equal(align(two, labels, labels[0])[1], labels[0])


def test_chains_of_one_shape_and_its_reflection_agree():
    """Whose volumes differ by the rounding of the mesh."""
    rng, chain = np.random.default_rng(0), np.repeat([0, 1], 50)
    volume = 1827.16 + 8e-5 * (rng.random(100) < np.where(chain, 0.9, 0.1))
    found = {name: volume for name in JUDGED}
    r_hat, effective = diagnosed(found, chain)
    assert set(r_hat.values()) == {1.0} and np.isnan(list(effective.values())).all()
    r_hat, _ = diagnosed({name: volume + 30 * chain for name in JUDGED}, chain)
    assert min(r_hat.values()) > 1.05


def test_diagnostics():
    rng = np.random.default_rng(0)
    good = rng.normal(size=(4, 2000))
    assert diagnostics.r_hat(good) < 1.01 and abs(diagnostics.effective(good) / 8000 - 1) < 0.15
    slow = np.zeros((4, 4000))
    for k in range(1, 4000):
        slow[:, k] = 0.8 * slow[:, k - 1] + rng.normal(size=4)
    assert abs(diagnostics.effective(slow) / (16000 * 0.2 / 1.8) - 1) < 0.25
    assert diagnostics.r_hat(good + np.arange(4)[:, None]) > 1.2
    assert diagnostics.r_hat(np.ones((2, 10))) == 1.0


# ---- ranks, going on, bad input -----------------------------------------------------------------

PROGRAM = """
import sys; sys.path.insert(0, {tests!r})
from dataclasses import replace
from test_posterior import FEW, problem_on, digest
import spinverse
from spinverse.inversion.posterior import run
run.RARE = {rare}
found = spinverse.posterior(problem_on([1, 1, 1], wall_permeability=0.01),
                            replace(FEW, limit=24))
if found.chain.size and spinverse.mesh.build(spinverse.mesh.box, [1, 1, 1], cells=[1, 1, 1]
                                             ).comm.rank == 0:
    print("digest", digest(found))
"""


def digest(found):
    return hashlib.sha256(found.labels.tobytes() + np.round(
        found.log_likelihood, 6).tobytes()).hexdigest()


@pytest.mark.parametrize("rare", ["0", "float('inf')"])
def test_two_ranks_draw_the_same(request, rare):
    """Without sets of moves and with them."""
    program = PROGRAM.format(tests=str(request.path.parent), rare=rare)
    lines = [[line for line in run_mpi(n, "-c", program).splitlines() if "digest" in line]
             for n in (1, 2)]
    assert len(lines[0]) == 1 and lines[0] == lines[1]


@pytest.mark.parametrize("rare", [0.0, np.inf])
def test_going_on_gives_the_same(cube, comm, monkeypatch, rare):
    """Without sets of moves and with them."""
    monkeypatch.setattr(run, "RARE", rare)
    kept, facets = [], np.zeros((len(cube.models.whole.facets), 3), int)
    whole = sample(cube, FEW, comm, facets, keep=kept.append)
    for state in (kept[2], kept[-2]):
        again = sample(cube, FEW, comm, facets, saved=state)
        assert digest(again) == digest(whole)
    assert ("sets of moves" in whole.acceptance) == bool(rare)
    with pytest.raises(InputError, match="state to go on from has no"):
        sample(cube, replace(FEW, chains=3), comm, facets, saved=kept[0])


@pytest.mark.parametrize(("agree_at", "limit", "drawn"), [(8, None, 8), (24, None, 24),
                                                          (99, None, 32), (99, 20, 16)])
def test_goes_on_until_chains_agree(cube, comm, monkeypatch, agree_at, limit, drawn):
    """Block by block, as far as the limit; what is drawn first is the same."""
    monkeypatch.setattr(run, "doubtful", lambda r_hat, effective: ["volume"] * (
        counted[-1] < agree_at))
    counted, diagnosed = [], run.diagnosed

    def count(quantities, chain):
        counted.append(len(chain))
        return diagnosed(quantities, chain)

    monkeypatch.setattr(run, "diagnosed", count)
    facets, rounds = np.zeros((len(cube.models.whole.facets), 3), int), []
    found = sample(cube, replace(FEW, limit=limit), comm, facets,
                   progress=lambda *each: rounds.append(each))
    assert len(found.labels) == drawn and rounds[-1][0] == rounds[-1][1]
    first = sample(cube, FEW, comm, facets)
    for c in (0, 1):
        assert np.array_equal(found.labels[found.chain == c][:4], first.labels[first.chain == c])


def test_stops_where_chains_agree(cube, comm):
    """The rule itself: R-hat and effective samples of all that was drawn."""
    facets = np.zeros((len(cube.models.whole.facets), 3), int)
    sampling = Sampling(samples=120, limit=1200, chains=2, steps=1, learning=12, examples=40)
    found = sample(cube, sampling, comm, facets)
    assert len(found.labels) < 1200 and not found.doubts
    assert max(found.r_hat.values()) <= 1.05
    assert not min(found.effective.values()) < 100


@pytest.mark.parametrize(("made", "words"), [
    (lambda: Sampling(samples=0), "samples 0, expected at least 1"),
    (lambda: Sampling(temperatures=1), "temperatures 1, expected at least 2"),
    (lambda: Sampling(samples=9, limit=8), "limit 8, expected at least the 9 of samples"),
    (lambda: ShapePrior(volume_fraction=1.5), "volume_fraction 1.5, expected a number between"),
    (lambda: ShapePrior(area_scale=-1), "area_scale -1"),
    (lambda: Posterior.load("nowhere.npz"), "nowhere.npz: cannot be read"),
    (lambda: spinverse.posterior(problem_on([1, 1, 1], noise=0.0), FEW), "no noise is known")])
def test_bad_input(made, words):
    with pytest.raises(InputError, match=words):
        made()


# ---- commands -----------------------------------------------------------------------------------

RUN = """mesh: {builder: box, lengths_um: [8, 8, 8], cells: [1, 1, 1]}
signals: {file: signals.npz, noise: 0.05}
tissue: {wall_permeability_um_per_ms: 0.01}
stages: [{name: first, iterations: 1}]
posterior: {samples: 8, limit: 8, chains: 2, steps: 1, learning: 6, examples: 40}
"""


@pytest.fixture
def folder_of_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN)
    write_signals(tmp_path / "signals.npz", problem_on([1, 1, 1]).signals)
    return tmp_path


def test_calibrate(folder_of_run, capsys):
    assert cli.main(["calibrate", "run.yaml", "--truths", "2", "-o", "out"]) == 0
    out = folder_of_run / "out"
    first = (out / "truth_0000.npz").stat().st_mtime_ns
    rows = (out / "reliability.csv").read_text().splitlines()
    assert len(rows) == 1 + calibration.BINS
    assert sum(int(row.split(",")[2]) for row in rows[1:]) == 2 * 6
    assert "R-hat" in capsys.readouterr().out
    assert cli.main(["calibrate", "run.yaml", "--truths", "3", "-o", "out"]) == 0
    assert (out / "truth_0000.npz").stat().st_mtime_ns == first
    summary = json.loads((out / "summary.json").read_text())
    assert summary["truths"] == 3 and len(summary["coverage"]) == 6
    assert cli.main(["calibrate", "run.yaml", "--truths", "0", "-o", "other"]) == 2
    assert "--truths 0: expected at least 1" in capsys.readouterr().err
    (folder_of_run / "run.yaml").write_text(RUN.replace("samples: 8, limit: 8", "samples: 0"))
    assert cli.main(["calibrate", "run.yaml", "--truths", "2", "-o", "out"]) == 2
    assert "posterior.samples" in capsys.readouterr().err


def test_reconstruct_writes_the_posterior(folder_of_run, capsys):
    assert cli.main(["reconstruct", "run.yaml", "-o", "out"]) in (0, 3)
    out = folder_of_run / "out"
    found = Posterior.load(out / "posterior.npz")
    assert (out / "posterior.vtu").is_file() and len(found.labels) == 8
    summary = json.loads((out / "summary.json").read_text())
    assert summary["posterior"]["samples"] == 8
    assert "posterior: volume" in capsys.readouterr().out


def test_the_page_shows_samples(found, two, tmp_path):
    """One sample at a time; quantities with their units."""
    pytest.importorskip("plotly")
    from spinverse.report.html_posterior import section
    from spinverse.report.html_run import Found

    whole = two.models.whole
    found.save(tmp_path / "posterior.npz")
    none = np.zeros(len(whole.facets), bool)
    shown = Found(whole.points, whole.cells, found.facets, whole.outer, none, none * 1.0, none)
    made = section(tmp_path, shown)
    figure = {picture.name: picture.figure for picture in made.pictures}["posterior-samples"]
    steps = figure.layout.sliders[0].steps
    seen = np.array([step.args[0]["visible"] for step in steps])
    assert len(steps) == len(found.labels) and seen.shape[1] == len(figure.data)
    assert np.array_equal(seen[0], [trace.visible is not False for trace in figure.data])
    assert np.all(seen[:, -1])  # the box
    assert (seen[:, :-1].sum(axis=0) == 1).all()
    for flags, labels in zip(seen, found.aligned, strict=True):
        drawn = [trace for trace, there in zip(figure.data, flags, strict=True)
                 if there and trace.type == "mesh3d"]
        assert sum(len(trace.i) for trace in drawn) == two.prior.walls(labels).sum()
        assert len(drawn) == labels.max()
    rows = {row[0]: row for row in made.tables[0].rows}
    assert rows["volume"][-1] == "µm³" and rows["exchange time of cell 1"][-1] == "ms"
    assert rows["cells"][-1] == "" and "wall permeability" not in rows


def test_counts_of_a_calibration():
    """Posteriors that are right pass; the tables are counts."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(40):
        p, x = rng.random(50), rng.random()
        row = {"probability": p, "inside": rng.random(50) < p}
        for name in calibration.QUANTITIES:
            row |= {f"{name} rank": x, f"{name} in 50 %": abs(x - 0.5) < 0.25,
                    f"{name} in 90 %": abs(x - 0.5) < 0.45}
        rows.append(row)
    for row in calibration.reliability(rows):
        assert abs(row["inside"] - row["mean probability"]) < 4 * row["error"]
    for row in calibration.coverage(rows):
        assert abs(row["covered"] - row["level"]) < 4 * row["error"]
    assert all(row["chi-square of 9"] < 30 for row in calibration.ranks(rows))


# ---- design -------------------------------------------------------------------------------------

def test_a_choice_is_the_best_step_by_step():
    """Against the formula; b = 0 comes with its sequence."""
    table = Acquisition.pgse([0, 500, 1000, 3000], np.eye(3)[:2], 8, [12, 40])
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, len(table))) * np.where(table.b > 0, 3.0, 0.0)
    X[:, 5] = X[:, 4]
    C, within = np.cov(X.T), np.ones(len(table), bool)
    found = design.choose(C, table, 6, within)
    for n in range(1, 7):
        A = C[np.ix_(found.rows[:n], found.rows[:n])]
        expected = 0.5 * np.linalg.slogdet(np.eye(n) + A)[1]
        assert found.information[n - 1] == pytest.approx(expected)
    first = found.rows[1]
    assert C[first, first] == np.diag(C).max() and table.b[found.rows[0]] == 0
    assert found.information[-1] > found.at_random[:, -1].mean()
    assert found.of_all >= found.information[-1]
    for sequence in set(table.waveform_index[found.rows]):
        assert (table.b[found.rows[table.waveform_index[found.rows] == sequence]] == 0).sum() == 1
    within[table.b > 1000] = False
    assert table.b[design.choose(C, table, 6, within).rows].max() == 1000
    with pytest.raises(InputError, match="measurements: 1, expected 2 to the 12 within"):
        design.choose(C, table, 1, within)


def test_limits_of_a_scanner():
    sharp = Acquisition.pgse([0, 1000], [[1.0, 0, 0]], 10, 30)
    ramped = Acquisition.product(TrapezoidPGSE(10, 30, 0.5), [0, 1000], [[1.0, 0, 0]])
    assert np.array_equal(design.slew_rate(sharp), [0.0, np.inf])
    strength = ramped.gradient_strength_mT_m[1]
    assert design.slew_rate(ramped)[1] == pytest.approx(strength / 0.5, rel=1e-6)
    assert design.allowed(ramped, slew=1.01 * strength / 0.5).all()
    assert not design.allowed(Acquisition.pgse([0, 100, 9000], [[1.0, 0, 0]], 10, 30),
                              gradient=40.0)[2]
    with pytest.raises(InputError, match="leave no measurement with a gradient of 2"):
        design.allowed(sharp, slew=200.0)


def test_design(folder_of_run, capsys):
    words = ["design", "run.yaml", "--hypotheses", "20", "--measurements", "5", "-o", "out"]
    assert cli.main(words) == 0
    said, out = capsys.readouterr().out, folder_of_run / "out"
    assert "5 measurements tell" in said and "left of the variance of volume" in said
    chosen = spinverse.acquisition.read_acquisition(out / "acquisition.csv")
    assert len(chosen) == 5 and (out / "design.csv").read_text().count("\n") == 6
    assert json.loads((out / "summary.json").read_text())["pool"] == len(acquisition())
    for more, message in ((["--hypotheses", "5"], "--hypotheses 5: expected at least 20"),
                          (["--time", "10"], "one of them is missing"),
                          (["--gradient", "0.1"], "leave no measurement with a gradient"),
                          (["--measurements", "99"], "measurements: 99, expected 2 to")):
        assert cli.main([*words[:2], *more, "-o", "other"]) == 2
        assert message in capsys.readouterr().err and not (folder_of_run / "other").exists()
