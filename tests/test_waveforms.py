"""Gradient waveforms: shapes, closed forms, segments, and the tables made of them.

The physics is checked without an engine: a slab's cosine modes, exponentials of dense matrices and
the values of `spinverse.validation`.
"""

import json
import pickle

import numpy as np
import pytest
from scipy.linalg import expm

from spinverse.acquisition import (
    FEXI,
    PGSE,
    Acquisition,
    CosOGSE,
    DoublePGSE,
    Sampled,
    SampledGradient,
    Signals,
    SinOGSE,
    StimulatedEcho,
    TrapezoidPGSE,
    Waveform,
    read_acquisition,
    read_signals,
    write_acquisition,
    write_signals,
)
from spinverse.acquisition.samples import held
from spinverse.errors import InputError
from spinverse.units import GAMMA
from spinverse.validation.references import data

CASES = data()["cases"]
X, Y, Z = np.eye(3)


def circle(samples=401, duration=20.0, refocusing_times=(), echo_time=None):
    """A gradient that turns once in the xy plane, and back again negative."""
    t = np.linspace(0.0, duration, samples)
    angle = 4.0 * np.pi * t / duration
    values = np.stack([np.sin(angle), np.sin(2 * angle), 0.0 * t], axis=1)
    return SampledGradient(t, values, refocusing_times, echo_time)


WAVEFORMS = [
    PGSE(5, 20, 40),
    DoublePGSE(5, 10, 10),
    DoublePGSE(5, 10, 10, parallel=False, echo_time=50),
    DoublePGSE(2.5, 5, 1.0, True),
    DoublePGSE(5, 10, 12, True, (X, Y)),
    DoublePGSE(5, 10, 3, False, (X, (0.6, 0.8, 0.0))),
    CosOGSE(10, 20, 1),
    CosOGSE(10, 10, 7, 25),
    SinOGSE(10, 20, 2),
    SinOGSE(1 / 3, 0.7, 4),
    TrapezoidPGSE(5, 20, 0.5),
    TrapezoidPGSE(2, 4, 2),
    TrapezoidPGSE(5, 20, 0.5, 30),
    StimulatedEcho(5, 20, 10),
    StimulatedEcho(5, 20, 4, 30),
]
SAMPLES = [
    Sampled([0, 1, 2, 3], [1, 1, -1, -1]),
    Sampled([0, 5, 5, 20, 20, 25], [1, 1, 0, 0, 1, 1], [12.5], 30),
    circle(41),
    circle(41, echo_time=33.0),
    FEXI(5, 20, 30, 0.3, 4, 6),
    Sampled([0, 5, 5, 20, 20, 25], [1, 1, 0, 0, -1, -1], echo_time=30, storage=((6, 18),)),
]


def label(waveform):
    return waveform.describe()


def closed_form(waveform):
    """b / g^2 in ms^3 (Stejskal & Tanner 1965; Does, Parsons & Gore 2003), as textbooks have it."""
    delta, Delta = waveform.delta, waveform.Delta
    pair = delta**2 * (Delta - delta / 3)
    if isinstance(waveform, TrapezoidPGSE):
        return pair + waveform.ramp**3 / 30 - delta * waveform.ramp**2 / 6
    if isinstance(waveform, DoublePGSE):
        cosine = np.dot(*waveform.directions) if waveform.vector else 1.0
        overlap = max(delta - waveform.mixing_time, 0.0)
        return 2 * pair + (1 if waveform.parallel else -1) * cosine * overlap**3 / 3
    if isinstance(waveform, (CosOGSE, SinOGSE)):
        sine = isinstance(waveform, SinOGSE)
        return (3 if sine else 1) * delta**3 / (2 * np.pi * waveform.periods)**2
    return pair


# --- every class ---------------------------------------------------------------------------------


@pytest.mark.parametrize("waveform", WAVEFORMS, ids=label)
def test_b_factor_is_the_closed_form(waveform):
    assert waveform.b_factor == pytest.approx(closed_form(waveform), rel=1e-13)
    direction = np.array([2.0, -1.0, 2.0]) / 3.0
    tensor = waveform.b_tensor_factor(direction)
    assert np.trace(tensor) == pytest.approx(waveform.b_factor, rel=1e-13)
    if not waveform.vector:
        np.testing.assert_allclose(tensor, waveform.b_factor * np.outer(direction, direction))


@pytest.mark.parametrize("waveform", WAVEFORMS + SAMPLES, ids=label)
def test_integral_is_that_of_f(waveform):
    t = np.linspace(-1.0, waveform.echo_time + 1.0, 173)
    shape = (173, 3) if waveform.vector else (173,)
    assert waveform(t).shape == waveform.integral(t).shape == shape
    assert waveform(t.reshape(1, 173, 1)).shape == (1, 173, 1, *shape[1:])
    assert waveform.integral(3.0).shape == shape[1:]
    np.testing.assert_allclose(waveform.integral(t), Waveform.integral(waveform, t), atol=1e-13)
    assert np.max(np.abs(waveform.integral(waveform.echo_time))) < 1e-13
    assert waveform(waveform.echo_time + 1.0).shape == shape[1:]
    assert not np.any(waveform(waveform.echo_time + 1.0))


@pytest.mark.parametrize("waveform", WAVEFORMS + SAMPLES, ids=label)
def test_peak_and_breakpoints(waveform):
    breakpoints = np.asarray(waveform.breakpoints)
    assert breakpoints[0] == 0.0 and breakpoints[-1] == waveform.echo_time
    assert np.all(np.diff(breakpoints) > 1e-9)
    t = np.linspace(0, waveform.echo_time, 20001)
    sizes = np.linalg.norm(waveform(t).reshape(t.size, -1), axis=1)
    assert sizes.max() == pytest.approx(waveform.peak, rel=1e-3)


@pytest.mark.parametrize("waveform", WAVEFORMS + SAMPLES, ids=label)
def test_symmetry_is_what_the_base_class_finds(waveform):
    t = np.linspace(0.0, waveform.echo_time, 997)[1:-1] + 1e-4  # off the jumps
    for sign, claimed in ((-1.0, waveform.antisymmetric), (1.0, waveform.symmetric)):
        assert claimed == waveform._mirror(sign)
        assert claimed == np.allclose(waveform(waveform.echo_time - t), sign * waveform(t))


def test_which_are_symmetric():
    def kind(waveform):
        return waveform.antisymmetric, waveform.symmetric

    odd, even, neither = (True, False), (False, True), (False, False)
    assert kind(PGSE(5, 10)) == kind(CosOGSE(5, 10, 2)) == kind(TrapezoidPGSE(5, 10, 1)) == odd
    assert kind(DoublePGSE(5, 10, 7)) == odd and kind(DoublePGSE(5, 10, 7, False)) == even
    assert kind(SinOGSE(5, 10, 3)) == even and kind(circle(401)) == odd
    for late in (PGSE(5, 10, 20), CosOGSE(5, 10, 2, 20), SinOGSE(5, 10, 2, 20)):
        assert kind(late) == neither
    assert kind(DoublePGSE(5, 10, 7, True, (X, Y))) == neither
    assert kind(DoublePGSE(5, 10, 7, True, (X, X))) == odd


@pytest.mark.parametrize("waveform", WAVEFORMS + SAMPLES, ids=label)
def test_waveforms_are_values(waveform, tmp_path):
    copy = Waveform.from_dict(json.loads(json.dumps(waveform.to_dict())))
    assert copy == waveform and hash(copy) == hash(waveform) and copy is not waveform
    assert pickle.loads(pickle.dumps(waveform)) == waveform
    assert waveform.name in waveform.describe() and f"TE {waveform.echo_time:g}" in copy.describe()


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_tables_and_signals_of_every_class_come_back(tmp_path, suffix):
    tables = [
        Acquisition.product(w, [0, 1000, 1e4 / 3], None if w.vector else 3)
        for w in WAVEFORMS + SAMPLES
    ]
    table = Acquisition.concatenate(tables)
    write_acquisition(tmp_path / f"table{suffix}", table)
    assert read_acquisition(tmp_path / f"table{suffix}") == table
    signals = Signals(table, np.exp(-table.b / 1000) * (1 + 0.1j))
    write_signals(tmp_path / f"signals{suffix}", signals)
    assert read_signals(tmp_path / f"signals{suffix}", expected=table) == signals


# --- shapes --------------------------------------------------------------------------------------


def test_double_pgse_pulses():
    parallel, antiparallel = DoublePGSE(5, 10, 10), DoublePGSE(5, 10, 10, parallel=-1)
    assert parallel.echo_time == 35 and DoublePGSE(5, 10, 10, 1) == parallel
    for waveform, signs in ((parallel, [1, -1, 1, -1]), (antiparallel, [1, -1, -1, 1])):
        np.testing.assert_array_equal(waveform([2, 12, 22, 32]), signs)
        np.testing.assert_array_equal(waveform([7, 17, 27, 36]), 0)
    durations, values = DoublePGSE(5, 10, 5).segments()  # the pairs are back to back
    np.testing.assert_array_equal(durations, [5, 5, 5, 5, 5, 5])
    np.testing.assert_array_equal(values, [1, 0, -1, 1, 0, -1])
    assert parallel.diffusion_time == PGSE(5, 10).diffusion_time


def test_double_pgse_without_mixing_time_is_one_pgse_or_a_double_middle_pulse():
    together = DoublePGSE(5, 10, 0)
    assert together.b_factor == pytest.approx(PGSE(5, 20).b_factor, rel=1e-14)
    for mine, theirs in zip(together.segments(), PGSE(5, 20).segments(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    apart = DoublePGSE(5, 10, 0, parallel=False)
    assert apart.peak == 2.0 and apart(12.0) == -2.0
    table = Acquisition.product([apart, together], 1000, [1, 0, 0])
    np.testing.assert_allclose(
        table.gradient_strength_mT_m[0] / table.gradient_strength_mT_m[1],
        2 * np.sqrt(together.b_factor / apart.b_factor),
    )


def test_double_pgse_with_two_directions():
    waveform = DoublePGSE(5, 10, 10, True, (X, Y))
    np.testing.assert_array_equal(waveform([2.0, 12.0, 22.0, 32.0]), [X, -X, Y, -Y])
    half = PGSE(5, 10).b_factor
    np.testing.assert_allclose(
        waveform.b_tensor_factor(), np.diag([half, half, 0]), rtol=1e-13, atol=1e-10
    )
    np.testing.assert_array_equal(waveform.first_direction, X)
    same = DoublePGSE(5, 10, 10, False, (X, X))
    opposite = DoublePGSE(5, 10, 10, True, (X, -X))
    t = np.linspace(0, 36, 100)
    np.testing.assert_array_equal(same(t), opposite(t))
    np.testing.assert_array_equal(same(t), DoublePGSE(5, 10, 10, False)(t)[:, None] * X)


def test_oscillating_pulses():
    cosine, sine = CosOGSE(10, 20, 2), SinOGSE(10, 20, 2)
    t = np.linspace(0, 9.99, 50)
    np.testing.assert_allclose(cosine(t), np.cos(2 * np.pi * 2 * t / 10), atol=1e-14)
    np.testing.assert_allclose(sine(20 + t), -np.sin(2 * np.pi * 2 * t / 10), atol=1e-13)
    assert cosine(15.0) == sine(15.0) == 0.0 and cosine.frequency == 0.2
    assert cosine.diffusion_time == 10 / 8 and sine.diffusion_time == 30 / 16
    assert CosOGSE(10, 20, 2.0) == cosine and "200 Hz" in cosine.describe()
    # many periods cost no accuracy
    assert CosOGSE(20, 30, 150).b_factor == pytest.approx(20 / (2 * np.pi * 7.5) ** 2, rel=1e-12)


def test_trapezoid_pulses():
    waveform = TrapezoidPGSE(5, 20, 1)
    np.testing.assert_allclose(
        waveform([0, 0.5, 1, 3, 5, 5.5, 6, 10, 20.5, 24, 26]),
        [0, 0.5, 1, 1, 1, 0.5, 0, 0, -0.5, -1, 0],
    )
    times = [0, 1, 5, 6, 20, 21, 25, 26]
    samples = Sampled(times, [0, 1, 1, 0, 0, -1, -1, 0])
    assert samples.b_factor == pytest.approx(waveform.b_factor, rel=1e-13)
    # short ramps: PGSE
    short = TrapezoidPGSE(5, 20, 1e-4)
    assert short.b_factor == pytest.approx(PGSE(5, 20).b_factor, rel=1e-8)
    assert short.diffusion_time == pytest.approx(PGSE(5, 20).diffusion_time, rel=1e-8)


def test_refocusing_times_fold_the_sign():
    physical = Sampled([0, 5, 5, 20, 20, 25], [1, 1, 0, 0, 1, 1], [12.5])
    assert physical.b_factor == pytest.approx(PGSE(5, 20).b_factor, rel=1e-13)
    durations, values = physical.segments()
    np.testing.assert_array_equal(durations, [5, 15, 5])
    np.testing.assert_array_equal(values, [1, 0, -1])
    assert physical.antisymmetric and "180-degree pulses at 12.5 ms" in physical.describe()
    # constant gradient, a 180 in its middle (Hahn), with a jump made there
    hahn = Sampled([0, 10], [1, 1], [5])
    np.testing.assert_array_equal(hahn([2, 7]), [1, -1])
    assert hahn.b_factor == pytest.approx(PGSE(5, 5).b_factor, rel=1e-13)
    # twice refocused
    twice = SampledGradient([0, 8], [X, X], [2, 6])
    np.testing.assert_array_equal(twice([1.0, 4.0, 7.0]), [X, -X, X])
    assert twice.symmetric and twice.b_factor == pytest.approx(4 * 8 / 3, rel=1e-13)
    # where the sample already jumps
    jump = Sampled([0, 5, 5, 10], [1, 1, 1, 1], [5])
    np.testing.assert_array_equal(jump([2, 7]), [1, -1])


def test_echo_time_after_samples_is_dead_time():
    late = Sampled([0, 1, 2], [1, 0, -1], echo_time=5)
    assert late.echo_time == 5 and late(3.0) == 0 and late.breakpoints == (0, 1, 2, 5)
    assert late.b_factor == pytest.approx(Sampled([0, 1, 2], [1, 0, -1]).b_factor, rel=1e-14)
    assert late.segments(0.5)[0][-1] == 3.0  # whole


def test_held_samples():
    times, values = held(0.5, [1, 1, 0, 0, -1, -1])
    assert Sampled(times, values) == Sampled([0, 1, 1, 2, 2, 3], [1, 1, 0, 0, -1, -1])
    times, values = held(0.5, [X, X, -X, -X])
    waveform = SampledGradient(times, values)
    assert waveform.piecewise_constant and waveform.b_factor == pytest.approx(PGSE(1, 1).b_factor)


def test_vector_samples():
    waveform = circle(2001)
    # F = [(1 - cos w t) / w, (1 - cos 2 w t) / (2 w), 0], w = pi / 5, over two or four periods
    w = 4 * np.pi / 20
    exact = 20 / w**2 * np.array([[1.5, 0.5], [0.5, 0.375]])
    np.testing.assert_allclose(waveform.b_tensor_factor()[:2, :2], exact, rtol=4e-5)
    assert waveform.vector and not waveform.piecewise_constant
    R = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    turned = waveform.rotated(R)
    np.testing.assert_allclose(
        turned.b_tensor_factor(), R @ waveform.b_tensor_factor() @ R.T, atol=1e-10
    )
    # along one line it is the scalar waveform
    samples = np.array([0, 1, 0, -1, 0])
    line = SampledGradient(range(5), samples[:, None] * Y)
    scalar = Sampled(range(5), samples)
    np.testing.assert_allclose(line.b_tensor_factor(), scalar.b_tensor_factor(Y), atol=1e-14)
    assert line.diffusion_time == pytest.approx(scalar.diffusion_time, rel=1e-13)
    np.testing.assert_allclose(line.first_direction, Y)


# --- segments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("waveform", WAVEFORMS + SAMPLES, ids=label)
def test_segments_keep_time_area_and_symmetry(waveform):
    durations, values = waveform.segments(0.13)
    assert durations.sum() == pytest.approx(waveform.echo_time, rel=1e-13)
    assert np.all(durations > 0) and values.shape[1:] == ((3,) if waveform.vector else ())
    varying = np.any(np.diff(values.reshape(len(values), -1), axis=0) != 0, axis=1)
    assert np.all(durations[1:][varying] > 0)
    area = np.tensordot(durations, values, axes=1)
    assert np.max(np.abs(area)) < 1e-12 * waveform.echo_time
    for known, sign in ((waveform.antisymmetric, -1), (waveform.symmetric, 1)):
        if known:
            np.testing.assert_allclose(durations[::-1], durations, rtol=1e-11)
            np.testing.assert_allclose(sign * values[::-1], values, atol=1e-11)
    if not waveform.piecewise_constant:
        with pytest.raises(InputError, match="max_step: .* is not piecewise constant"):
            waveform.segments()


def test_segments_are_the_longest_pieces():
    durations, _ = CosOGSE(10, 20, 1).segments(0.1)
    assert len(durations) == 201 and durations.max() == 10.0  # the gap
    assert np.delete(durations, 100).max() == pytest.approx(0.1)


class Slab:
    """Cosine modes of a reflecting slab, D = 2 um^2/ms; x is counted from the middle."""

    def __init__(self, length=10.0, modes=40):
        n = np.arange(modes)
        x, weights = np.polynomial.legendre.leggauss(8 * modes)
        scale = np.where(n == 0, 1.0, np.sqrt(2.0))
        phi = scale[:, None] * np.cos(n[:, None] * np.pi * (x + 1) / 2)
        self.position = (phi * weights / 2) @ (0.5 * length * x * phi).T
        self.decay = np.diag(2.0 * (n * np.pi / length) ** 2)

    def signal(self, waveform, b, max_step=None):
        """E at b in s/mm^2 with f along x."""
        g = np.sqrt(b / 1000.0 / waveform.b_factor)
        state = np.zeros(len(self.decay), dtype=complex)
        state[0] = 1.0
        for duration, f in zip(*waveform.segments(max_step), strict=True):
            state = expm(-duration * (self.decay + 1j * g * f * self.position)) @ state
        return state[0]


def waveform_of(case):
    p = {k: v if k in ("n", "s2") else v / 1000 for k, v in case["waveform_params"].items()}
    kind = case["waveform"]
    if kind == "trapezoid":
        return TrapezoidPGSE(p["delta"], p["Delta"], p["eps"])
    if kind.startswith("OGSE"):
        return {"OGSE-cos": CosOGSE, "OGSE-sin": SinOGSE}[kind](p["delta"], p["Delta"], p["n"])
    # the mixing time counts from the start of the second pulse, tpause from its end
    return DoublePGSE(p["delta"], p["Delta"], p["tpause"] + p["delta"], p["s2"])


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c["family"] == 7 and c["name"].startswith("slab10")],
    ids=lambda case: case["name"],
)
def test_signals_of_the_slab_are_the_reference(case):
    waveform, slab = waveform_of(case), Slab()
    for b, expected in list(zip(case["b"], case["signal_re"], strict=True))[::3]:
        tolerance = 1e-8 if waveform.piecewise_constant else 1e-6
        assert abs(slab.signal(waveform, b, 0.05) - expected) < tolerance


@pytest.mark.parametrize("waveform", [CosOGSE(5, 10, 2), SinOGSE(5, 10, 2), TrapezoidPGSE(3, 6, 1)])
def test_segments_are_fourth_order(waveform):
    slab = Slab(modes=16)
    steps = np.array([0.25, 0.125, 0.0625])
    exact = slab.signal(waveform, 1500.0, steps[-1] / 4)
    errors = [abs(slab.signal(waveform, 1500.0, step) - exact) for step in steps]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert rates[-1] > 3.7 and errors[-1] < 1e-4, (errors, rates)


@pytest.mark.parametrize("order", ["forward", "mirrored"])
def test_steps_span_fine_samples(order):
    cosine, slab = CosOGSE(5, 10, 2), Slab(modes=16)
    t = np.linspace(0, 5, 1001)
    first = cosine(np.minimum(t, 5 - 1e-13))
    values = np.r_[first, 0, 0, -first]
    times = np.r_[t, 5, 10, 10 + t]
    sampled = Sampled(times, values if order == "forward" else -values[::-1])
    assert sampled.antisymmetric
    pieces, exact = sampled.segments(0.125)[0], cosine.segments(0.125)[0]
    np.testing.assert_allclose(pieces, exact)  # not one for each of the 2000 samples
    reference = slab.signal(sampled, 1500.0, 0.01)
    errors = np.array([abs(slab.signal(sampled, 1500.0, h) - reference) for h in (0.25, 0.125)])
    assert np.log2(errors[0] / errors[1]) > 3.7
    exact = slab.signal(cosine, 1500.0, 0.02)
    assert abs(exact - reference) < 1e-5  # the samples
    assert errors[1] < 1e-4


def test_corners_of_fine_samples_are_kept():
    exact = TrapezoidPGSE(3, 6, 1)
    times = np.unique(np.r_[np.linspace(0, 4, 401), np.linspace(6, 10, 401)])
    sampled = Sampled(times, exact(times))
    for mine, theirs in zip(sampled.segments(0.1), exact.segments(0.1), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-11)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DoublePGSE(5, 10, -1), "mixing_time = -1: expected a time >= 0"),
        (lambda: DoublePGSE(5, 10, None), "mixing_time = None"),
        (lambda: DoublePGSE(5, 4, 5), "Delta = 4 ms: expected at least delta = 5 ms"),
        (lambda: DoublePGSE(5, 10, 5, 2), "parallel = 2: expected True"),
        (lambda: DoublePGSE(5, 10, 5, "both"), "parallel = 'both'"),
        (lambda: DoublePGSE(5, 10, 5, True, X), "directions: .*two vectors"),
        (lambda: DoublePGSE(5, 10, 5, True, (X, 2 * Y)), "directions: length 2, expected two unit"),
        (lambda: DoublePGSE(5, 10, 5, echo_time=20), "2 Delta \\+ mixing_time \\+ delta = 30 ms"),
        (lambda: CosOGSE(5, 10, 0), "periods = 0: expected a whole number"),
        (lambda: SinOGSE(5, 10, 1.5), "periods = 1.5"),
        (lambda: SinOGSE(5, 10, None), "periods = None"),
        (lambda: CosOGSE(5, 4, 1), "Delta = 4 ms"),
        (lambda: CosOGSE(5, 10, 1, 14), "echo_time = 14 ms: expected at least Delta \\+ delta"),
        (lambda: TrapezoidPGSE(5, 10, 0), "ramp = 0"),
        (lambda: TrapezoidPGSE(5, 20, 6), "ramp = 6 ms: expected at most delta = 5 ms"),
        (lambda: TrapezoidPGSE(5, 5.5, 1), "Delta = 5.5 ms: expected at least delta \\+ ramp = 6"),
        (lambda: SampledGradient([0, 1], [1, -1]), "values: shape \\(2,\\), expected a \\(n, 3\\)"),
        (lambda: SampledGradient([0, 1], [X, X]), "its integral over \\[0, TE\\] is 1, 0, 0 ms"),
        (lambda: Sampled([0, 1, 2], [1, 0, -1], echo_time=1), "at least the last of times = 2"),
        (lambda: Sampled([0, 2], [1, 1], [2]), "refocusing_times: \\[2.0\\], expected increasing"),
        (lambda: Sampled([0, 2], [1, 1], [1, 1]), "refocusing_times"),
        (lambda: circle().rotated(2 * np.eye(3)), "rotation: expected an orthogonal matrix"),
        (lambda: PGSE(5, 10).b_tensor_factor(), "direction: None, expected three numbers"),
        (lambda: PGSE(5, 10).first_direction, "waveform PGSE: is scalar"),
    ],
)
def test_waveforms_refuse(make, message):
    with pytest.raises(InputError, match=message) as info:
        make()
    assert "\n" not in str(info.value)


# --- tables --------------------------------------------------------------------------------------


def test_constructors():
    table = Acquisition.ogse([0, 500], 3, delta=10, Delta=20, periods=[1, 2])
    assert table.waveforms == (CosOGSE(10, 20, 1), CosOGSE(10, 20, 2)) and len(table) == 12
    np.testing.assert_array_equal(table.diffusion_time, np.repeat([2.5, 1.25], 6))
    assert Acquisition.ogse(1, 1, 10, 20, 1, kind="sin", echo_time=40).waveforms == (
        SinOGSE(10, 20, 1, 40),
    )
    table = Acquisition.trapezoid(1000, 2, delta=5, Delta=[20, 30], ramp=0.5)
    assert table.waveforms == (TrapezoidPGSE(5, 20, 0.5), TrapezoidPGSE(5, 30, 0.5))
    table = Acquisition.double_pgse([0, 1], 2, 5, 10, mixing_time=[5, 20], parallel=[True, False])
    assert table.waveforms == (DoublePGSE(5, 10, 5), DoublePGSE(5, 10, 20, False))
    np.testing.assert_array_equal(table.delta, 5)


def test_double_pgse_with_second_directions():
    table = Acquisition.double_pgse(
        [0, 1000], [X, Y, Z], 5, 10, 10, second_directions=X, parallel=[True, False]
    )
    assert len(table) == 12 and len(table.waveforms) == 6
    assert table.waveforms[0] == DoublePGSE(5, 10, 10)  # equal directions: scalar
    assert table.waveforms[1] == DoublePGSE(5, 10, 10, True, (Y, X))
    np.testing.assert_array_equal(table.directions[:3], [X, Y, Z])
    np.testing.assert_allclose(table.b_tensors[4], 500 * (np.outer(X, X) + np.outer(Y, Y)))
    signals = Signals(table, np.where(table.b > 0, 0.5, 1.0))
    np.testing.assert_array_equal(signals.normalised, np.where(table.b > 0, 0.5, 1.0))


def test_sampled_tables():
    times, values = [0, 5, 5, 20, 20, 25], [40, 40, 0, 0, 40, 40]  # mT/m, physical
    physical = Acquisition.sampled(
        directions=[X, Y], times=times, values=values, refocusing_times=[12.5]
    )
    # b = (gamma G delta)^2 (Delta - delta/3), in s/mm^2
    b = (GAMMA * 0.04 * 5e-3) ** 2 * (20e-3 - 5e-3 / 3) * 1e-6
    np.testing.assert_allclose(physical.b, b, rtol=1e-12)
    np.testing.assert_allclose(physical.gradient_strength_mT_m, 40, rtol=1e-12)
    given = Acquisition.sampled(b, [X, Y], times, values, refocusing_times=[12.5])
    np.testing.assert_allclose(given.strength, physical.strength, rtol=1e-12)
    strengths = Acquisition.sampled(
        None, X, times, values, gradient=[0, 20, 40], refocusing_times=[12.5]
    )
    np.testing.assert_allclose(strengths.b, [0, b / 4, b], rtol=1e-12)
    np.testing.assert_allclose(
        Acquisition.from_gradient(PGSE(5, 20), 40, 2).b, b, rtol=1e-12
    )


def test_vector_rows_have_their_own_direction():
    waveform = circle(41)
    table = Acquisition.product(waveform, [0, 1000])
    assert len(table) == 2
    np.testing.assert_allclose(np.linalg.norm(table.directions, axis=1), 1.0, rtol=1e-14)
    np.testing.assert_array_equal(table.directions[0], waveform.first_direction)
    assert Acquisition([0, 1000], [X, Z], [0, 0], (waveform,)) == table
    np.testing.assert_allclose(np.trace(table.b_tensors, axis1=1, axis2=2), table.b)
    np.testing.assert_allclose(table.strength**2 * waveform.b_factor * 1000, table.b)
    assert "b-tensor 0.9, 0.095, 0 of b" in "\n".join(table.describe())


def test_b_tensors_of_scalar_rows():
    table = Acquisition.pgse([0, 1000], [X, (0.6, 0.8, 0)], 10, 20)
    for row in range(4):
        u = table.directions[row]
        np.testing.assert_allclose(table.b_tensors[row], table.b[row] * np.outer(u, u))


def test_unweighted_rows_belong_to_any_waveform_of_their_echo_time():
    nan, x = np.nan, [X, X, X]
    table = Acquisition.from_rows([0, 1, 1], x, [nan, 5, 10], [nan, 20, 20], [40, 40, 40])
    assert table.waveforms[0] == PGSE(5, 20, 40) and table.waveform_index.tolist() == [0, 0, 1]
    with pytest.raises(InputError, match="where 2 sequences would fit"):
        Acquisition.from_rows([0, 1, 1], x, [nan, 5, 10], [nan, 20, 20], [nan, 40, 50])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Acquisition.ogse(1, 1, 10, 20), "^periods: missing"),
        (lambda: Acquisition.ogse(1, 1, 10, 20, 1, kind="tan"), "kind = 'tan': expected one of"),
        (lambda: Acquisition.trapezoid(1, 1, 10), "^Delta and ramp: missing"),
        (lambda: Acquisition.double_pgse(1, 1, 10, 20), "^mixing_time: missing"),
        (lambda: Acquisition.double_pgse(1, 1, [5, 6], 20, [5, 6, 7]), "equal length"),
        (
            lambda: Acquisition.double_pgse(1, 3, 5, 10, 5, second_directions=[X, Y]),
            "second_directions: shape \\(2, 3\\)",
        ),
        (lambda: Acquisition.sampled(1000, 3), "times and values: missing"),
        (
            lambda: Acquisition.sampled(1, 3, [0, 1, 2], [1, 0, -1], gradient=1),
            "b and gradient: both",
        ),
        (lambda: Acquisition.product(PGSE(5, 10), 1000), "directions: missing for PGSE"),
        (lambda: Acquisition.product(circle(), 1000, 3), "directions: given, but SampledGradient"),
        (lambda: Acquisition.from_gradient(PGSE(5, 10), -1, 3), "gradient: -1, expected"),
        (lambda: Acquisition.product("PGSE", 1000, 3), "is not a Waveform"),
    ],
)
def test_tables_refuse(make, message):
    with pytest.raises(InputError, match=message) as info:
        make()
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("table", "warning"),
    [
        (lambda: Acquisition.ogse(500, 1, 0.02, 0.04, 1), "CosOGSE with TE 0.06 ms"),
        (lambda: Acquisition.trapezoid(1, 1, 5, 20, 1), "the largest b is 1 s/mm^2"),
        (lambda: Acquisition.double_pgse(1e4, 1, 5e3, 1e4, 1e4), "DoublePGSE with TE 35000 ms"),
        (
            lambda: Acquisition.sampled(None, X, [0, 0.01, 0.02], [10, 0, -10]),
            "Sampled with TE 0.02 ms",
        ),
        (lambda: Acquisition.sampled(None, X, [0, 1, 2], [2e4, 0, -2e4]), "gradients of 2e+04 mT"),
    ],
)
def test_describe_warns(table, warning):
    lines = table().describe()
    assert any(line.startswith("warning:") and warning in line for line in lines), lines
