"""Waveforms, directions and the table of measurements."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from spinverse.acquisition import PGSE, Sampled, Waveform
from spinverse.acquisition.directions import fibonacci_directions
from spinverse.acquisition.table import Acquisition
from spinverse.errors import InputError
from spinverse.units import gradient_from_internal

SHARED = Path(__file__).parents[2] / "shared"


def shared(relative):
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"{relative} is not beside the checkout")
    return path


def two_pulses(delta, Delta, times, values, sign=-1.0):
    """A sampled pulse on [0, delta], and ``sign`` times the same from Delta on."""
    times, values = np.asarray(times), np.asarray(values)
    gap = ([delta, Delta], [0.0, 0.0]) if Delta > delta else ([], [])
    return Sampled(
        np.concatenate([times, gap[0], Delta + times]),
        np.concatenate([values, gap[1], sign * values]),
    )


def ogse(delta, Delta, n, shape=np.cos, samples=2001):
    t = np.linspace(0.0, delta, samples)
    values = shape(2.0 * np.pi * n * t / delta)
    if shape is np.sin:  # no jump, so no double samples
        values[[0, -1]] = 0.0
        return Sampled(np.r_[t, Delta + t], np.r_[values, -values])
    return two_pulses(delta, Delta, t, values)


def trapezoid(delta, Delta, ramp):
    times, values = np.array([0.0, ramp, delta, delta + ramp]), np.array([0.0, 1.0, 1.0, 0.0])
    return Sampled(np.r_[times, Delta + times], np.r_[values, -values])


def double_pgse(delta, Delta, pause, second_sign):
    start = Delta + delta + pause
    pulses = [(0.0, 1.0), (Delta, -1.0), (start, second_sign), (start + Delta, -second_sign)]
    times, values = [], []
    for at, sign in pulses:
        if times and times[-1] == at:  # back to back: one jump, without a sample at zero
            times, values = times[:-1], values[:-1]
        elif at > 0.0:
            times, values = [*times, at], [*values, 0.0]
        times, values = [*times, at, at + delta, at + delta], [*values, sign, sign, 0.0]
    return Sampled(times, values)


class Cosine(Waveform):
    """A smooth waveform with nothing but the required members."""

    name = "Cosine"
    echo_time = 12.0
    breakpoints = (0.0, 12.0)
    piecewise_constant = False
    antisymmetric = False

    def __call__(self, t):
        t = np.asarray(t, dtype=float)
        return np.where((t >= 0) & (t <= 12.0), np.cos(2 * np.pi * t / 12.0), 0.0)


# --- waveforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "times", [(5.0, 6.0), (10.0, 20.0), (10.0, 60.0), (7.0, 7.0), (2.5, 5.0, 20.0)]
)
def test_pgse_b_factor_is_the_closed_form(times):
    waveform = PGSE(*times)
    delta, Delta = times[:2]
    assert waveform.b_factor == pytest.approx(delta**2 * (Delta - delta / 3), rel=1e-14)
    assert waveform.diffusion_time == pytest.approx(Delta - delta / 3)
    assert Waveform.diffusion_time.fget(waveform) == pytest.approx(Delta - delta / 3)


def test_pgse_shape_and_integral():
    waveform = PGSE(10, 20, echo_time=35)
    t = np.array([-1.0, 0.0, 5.0, 9.99, 10.0, 15.0, 20.0, 29.0, 30.0, 34.0, 36.0])
    np.testing.assert_array_equal(waveform(t), [0, 1, 1, 1, 0, 0, -1, -1, 0, 0, 0])
    np.testing.assert_allclose(waveform.integral(t), [0, 0, 5, 9.99, 10, 10, 10, 1, 0, 0, 0])
    np.testing.assert_allclose(waveform.integral(t), Waveform.integral(waveform, t), atol=1e-13)
    assert waveform.breakpoints == (0.0, 10.0, 20.0, 30.0, 35.0)
    assert not waveform.antisymmetric and PGSE(10, 20).antisymmetric
    assert PGSE(10, 10).breakpoints == (0.0, 10.0, 20.0)


def test_pgse_segments_are_exact():
    durations, values = PGSE(10, 60, 80).segments(max_step=0.1)
    np.testing.assert_array_equal(durations, [10, 50, 10, 10])
    np.testing.assert_array_equal(values, [1, 0, -1, 0])


def test_pgse_rounding_of_times_is_forgiven():
    assert PGSE(0.1 + 0.2, 0.3).Delta == 0.1 + 0.2
    assert PGSE(0.1, 0.2, 0.3).antisymmetric


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ((0, 10), "delta = 0: expected a positive time"),
        ((-1, 10), "delta = -1"),
        ((np.nan, 10), "delta = nan"),
        ((10, None), "Delta = None"),
        (("ten", 20), "delta = 'ten'"),
        ((10, 9), "Delta = 9 ms: expected at least delta = 10 ms"),
        ((10, 20, 29), "echo_time = 29 ms: expected at least Delta \\+ delta = 30 ms"),
    ],
)
def test_pgse_refuses(times, message):
    with pytest.raises(InputError, match=message):
        PGSE(*times)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_sampled_cosine_converges_to_the_closed_form(n):
    exact = 10.0**3 / (2 * np.pi * n) ** 2
    errors = [abs(ogse(10, 20, n, samples=s).b_factor / exact - 1) for s in (101, 201, 401)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, 2.0, atol=0.1)
    assert abs(ogse(10, 20, n).b_factor / exact - 1) < 5e-5


def test_reference_b_factors():
    checks = json.loads(shared("validation/reference_values.json").read_text())["bvalue_checks"]
    for check in checks:
        p = {k: v if k in ("n", "s2") else v / 1000 for k, v in check["params"].items()}  # us to ms
        kind, rel = check["waveform"], 1e-13
        if kind == "PGSE":
            waveform = PGSE(p["delta"], p["Delta"])
        elif kind == "trapezoid":
            waveform = trapezoid(p["delta"], p["Delta"], p["eps"])
        elif kind.startswith("OGSE"):
            shape, rel = (np.cos if kind == "OGSE-cos" else np.sin), 3e-5
            waveform = ogse(p["delta"], p["Delta"], p["n"], shape)
        else:
            waveform = double_pgse(p["delta"], p["Delta"], p["tpause"], p["s2"])
        assert waveform.b_factor == pytest.approx(check["b_over_q2"] * 1e-9, rel=rel), check


def test_sampled_integral_matches_quadrature_and_jumps_take_the_right_limit():
    waveform = ogse(4, 6, 1, samples=21)
    t = np.linspace(-1.0, 11.0, 77)
    np.testing.assert_allclose(waveform.integral(t), Waveform.integral(waveform, t), atol=1e-13)
    np.testing.assert_allclose(waveform([0.0, 4.0, 6.0]), [1.0, 0.0, -1.0])
    assert waveform.integral(waveform.echo_time) == pytest.approx(0.0, abs=1e-14)


def test_sampled_boxes_are_pgse():
    boxes, pgse = two_pulses(5, 8, [0, 5], [1, 1]), PGSE(5, 8)
    assert boxes.piecewise_constant and boxes.antisymmetric
    assert boxes.breakpoints == pgse.breakpoints
    assert boxes.b_factor == pytest.approx(pgse.b_factor, rel=1e-14)
    for mine, theirs in zip(boxes.segments(), pgse.segments(), strict=True):
        np.testing.assert_allclose(mine, theirs)


def test_a_jump_at_the_ends_says_nothing():
    waveform = Sampled([0, 0, 1, 1, 2, 2], [0, 1, 1, -1, -1, 0])
    assert waveform == Sampled([0, 1, 1, 2], [1, 1, -1, -1]) and waveform.antisymmetric


def test_antisymmetry_is_found():
    assert ogse(10, 20, 2).antisymmetric
    assert trapezoid(5, 20, 0.5).antisymmetric
    assert double_pgse(5, 10, 5, 1).antisymmetric
    assert not double_pgse(5, 10, 5, -1).antisymmetric
    assert not ogse(10, 20, 2, np.sin).antisymmetric
    assert not Sampled([0, 1, 4], [4, -1, 0]).antisymmetric


def test_segments_of_a_smooth_waveform():
    waveform = trapezoid(4, 10, 1)
    with pytest.raises(InputError, match="max_step: Sampled is not piecewise constant"):
        waveform.segments()
    with pytest.raises(InputError, match="max_step = 0"):
        waveform.segments(0)
    durations, values = waveform.segments(max_step=0.3)
    # flat tops and the gap are whole; a ramp of 1 ms is two steps of two pieces
    np.testing.assert_allclose(
        durations, [*[0.25] * 4, 3, *[0.25] * 4, 5, *[0.25] * 4, 3, *[0.25] * 4]
    )
    assert durations.sum() == pytest.approx(waveform.echo_time, rel=1e-14)
    # t0 + h/6 and t0 + 5h/6 for f = t in a step h from t0
    np.testing.assert_allclose(values[:5], [1 / 12, 5 / 12, 7 / 12, 11 / 12, 1])
    assert np.sum(durations * values) == pytest.approx(0.0, abs=1e-13)
    # a step that divides the ramps is used as it is
    assert len(waveform.segments(max_step=0.1)[0]) == 4 * 10 + 3


def test_base_class_quadrature_serves_a_smooth_waveform():
    waveform = Cosine()
    t = np.linspace(0, 12, 50)
    np.testing.assert_allclose(
        waveform.integral(t), 6 / np.pi * np.sin(2 * np.pi * t / 12), atol=1e-13
    )
    assert waveform.b_factor == pytest.approx(12.0**3 / (2 * (2 * np.pi) ** 2), rel=1e-13)


@pytest.mark.parametrize(
    ("times", "values", "message"),
    [
        ([0, 1, 2], [1, 1, 1], "its integral over \\[0, TE\\] is 2 ms, expected 0"),
        ([0, 1, 2], [0, 0, 0], "zero everywhere"),
        ([1, 2], [1, -1], "the first at 0 ms"),
        ([0], [1], "at least two samples"),
        ([0, 2, 1], [1, 0, -1], "increasing"),
        ([0, 1, 1, 1, 2], [1, 1, 0, -1, -1], "increasing"),
        ([0, 1], [1, 0, -1], "3 samples, expected 2"),
        ([0, 1, 2], [1, np.nan, -1], "values: expected a flat list of finite"),
        ("late", [1, -1], "times: expected numbers, got 'late'"),
    ],
)
def test_sampled_refuses(times, values, message):
    with pytest.raises(InputError, match=message):
        Sampled(times, values)


@pytest.mark.parametrize("waveform", [PGSE(10, 0.1 + 60), PGSE(5, 6, 30), ogse(10, 20, 1)])
def test_waveforms_are_values(waveform):
    copy = Waveform.from_dict(json.loads(json.dumps(waveform.to_dict())))
    assert copy == waveform and hash(copy) == hash(waveform) and copy is not waveform
    assert pickle.loads(pickle.dumps(waveform)) == waveform
    assert len({copy, waveform, PGSE(1, 2)}) == 2


def test_from_dict_refuses():
    with pytest.raises(InputError, match="waveform name 'spiral': expected one of .*PGSE"):
        Waveform.from_dict({"name": "spiral"})
    with pytest.raises(InputError, match="fields \\['delta'\\] do not fit"):
        Waveform.from_dict({"name": "PGSE", "delta": 1})


# --- directions ----------------------------------------------------------------------------------


def test_fibonacci_directions():
    vectors = fibonacci_directions(64)
    assert vectors.shape == (64, 3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-15)
    # evenly spread: the second moment is near isotropic
    np.testing.assert_allclose(vectors.T @ vectors / 64, np.eye(3) / 3, atol=5e-3)
    np.testing.assert_allclose(fibonacci_directions(1), [[1, 0, 0]])


def test_fibonacci_directions_are_the_published_ones():
    published = np.load(shared("benchmark/signals_018.npz"))["directions"].T
    np.testing.assert_allclose(fibonacci_directions(30), published, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [0, -3, 2.5, "30"])
def test_fibonacci_directions_refuse(n):
    with pytest.raises(InputError, match="positive whole number"):
        fibonacci_directions(n)


# --- table ---------------------------------------------------------------------------------------


def test_pgse_table_is_an_outer_product_in_order():
    table = Acquisition.pgse([0, 1000, 3000], 4, delta=10, Delta=[20, 60])
    assert len(table) == 24 and table.waveforms == (PGSE(10, 20), PGSE(10, 60))
    np.testing.assert_array_equal(table.waveform_index, np.repeat([0, 1], 12))
    np.testing.assert_array_equal(table.b, np.tile(np.repeat([0, 1000, 3000], 4), 2))
    np.testing.assert_array_equal(table.directions, np.tile(fibonacci_directions(4), (6, 1)))
    np.testing.assert_array_equal(table.Delta, np.repeat([20, 60], 12))
    np.testing.assert_array_equal(table.delta, 10)
    np.testing.assert_array_equal(table.echo_time, np.repeat([30, 70], 12))


def test_gradient_gives_the_b_value_back():
    table = Acquisition.pgse([0, 1000, 5000], np.eye(3), delta=[5, 10], Delta=[6, 60])
    g = np.linalg.norm(table.gradient, axis=1)
    factor = table.delta**2 * (table.Delta - table.delta / 3)
    np.testing.assert_allclose(g**2 * factor * 1000, table.b, rtol=1e-13)
    np.testing.assert_allclose(table.gradient_strength_mT_m, gradient_from_internal(g), rtol=1e-14)
    # 5/6 ms at b = 1000: q = 9.6074e-5 rad/(us um), 359.1 mT/m
    assert table.gradient_strength_mT_m[3] == pytest.approx(359.13, rel=1e-4)


def test_gradients_match_the_published_ones():
    data = np.load(shared("benchmark/signals_018.npz"))
    for k, (delta, Delta) in enumerate(data["deltas"] / 1000):
        table = Acquisition.pgse(data["bvalues"][:, k], [1, 0, 0], delta, Delta)
        # published b-values come from a coarse quadrature, some 4e-5 off
        np.testing.assert_allclose(table.gradient[:, 0], 1000 * data["qvalues"][:, k], rtol=1e-4)


def test_strength_is_that_of_the_peak():
    boxes = two_pulses(10, 20, [0, 10], [0.5, 0.5])
    table = Acquisition.product([boxes, PGSE(10, 20)], 1000, [1, 0, 0])
    assert table.gradient_strength_mT_m[0] == pytest.approx(table.gradient_strength_mT_m[1])
    assert np.isnan(table.delta[0]) and table.delta[1] == 10


def test_from_rows_merges_equal_sequences():
    table = Acquisition.from_rows(
        b=[0, 1000, 0, 1000],
        directions=[[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]],
        delta=10,
        Delta=[20, 60, 60, 20],
    )
    assert table.waveforms == (PGSE(10, 20), PGSE(10, 60))
    np.testing.assert_array_equal(table.waveform_index, [0, 1, 1, 0])
    same = Acquisition.from_rows([1], [[1, 0, 0]], 10, 20, [np.nan])
    assert same.waveforms == (PGSE(10, 20),)


def test_unweighted_rows_without_times_take_the_only_sequence():
    x = [[0, 0, 0], [1, 0, 0], [1, 0, 0]]
    nan = np.nan
    table = Acquisition.from_rows([0, 1000, 2000], x, [nan, 10, 10], [nan, 20, 20])
    assert table.waveforms == (PGSE(10, 20),)
    with pytest.raises(InputError, match="missing in row 0 .*where 2 sequences would fit"):
        Acquisition.from_rows([0, 1000, 2000], x, [nan, 10, 10], [nan, 20, 30])
    table = Acquisition.from_rows([0, 1, 2], x, [nan, 10, 10], [nan, 20, 30], [40, 30, 40])
    np.testing.assert_array_equal(table.Delta, [30, 20, 30])


def test_missing_times_are_named():
    with pytest.raises(InputError, match="^Delta: missing"):
        Acquisition.pgse([0, 1000], 6, delta=10)
    with pytest.raises(InputError, match="^delta and Delta: missing"):
        Acquisition.pgse([0, 1000], 6)
    with pytest.raises(InputError, match="^delta: missing in row 1, where b = 1000"):
        Acquisition.from_rows([0, 1000], np.eye(3)[:2], delta=[10, np.nan], Delta=20)
    with pytest.raises(InputError, match="^Delta: missing in row 0, where b = 5"):
        Acquisition.from_rows([5], [[1, 0, 0]], delta=10)


def test_pgse_lists_must_pair():
    with pytest.raises(InputError, match="2 and 3 values, expected lists of equal length"):
        Acquisition.pgse(1000, 6, delta=[5, 10], Delta=[20, 30, 60])
    with pytest.raises(InputError, match="directions: shape \\(2, 2\\), expected \\(n, 3\\)"):
        Acquisition.pgse(1000, np.eye(2), 10, 20)
    with pytest.raises(InputError, match="b: expected numbers"):
        Acquisition.pgse(["high"], 6, 10, 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": [0, -5]}, "b: row 1 is -5, expected a finite value >= 0"),
        ({"b": [0, np.inf]}, "b: row 1 is inf"),
        ({"b": []}, "at least one measurement"),
        ({"b": [[0, 1]]}, "b: shape"),
        ({"directions": [[0, 0, 0], [1, 0, 1]]}, "directions: row 1 has length 1.41421356"),
        ({"directions": [[0, 0, 0], [1, 0, np.nan]]}, "directions: row 1 is .* finite"),
        ({"directions": [1, 0, 0]}, "directions: shape \\(3,\\), expected \\(2, 3\\)"),
        ({"waveform_index": [0, 1]}, "waveform_index: row 1 is 1, expected 0 to 0"),
        ({"waveform_index": [0, -1]}, "waveform_index: row 1 is -1"),
        ({"waveform_index": [0.0, 0.0]}, "waveform_index: float64"),
        ({"waveform_index": [0]}, "expected ints \\(2,\\)"),
        ({"waveforms": ["PGSE"]}, "'PGSE' is not a Waveform"),
    ],
)
def test_table_refuses(change, message):
    good = {
        "b": [0, 1000],
        "directions": [[0, 0, 0], [1, 0, 0]],
        "waveform_index": [0, 0],
        "waveforms": (PGSE(10, 20),),
    }
    Acquisition(**good)
    with pytest.raises(InputError, match=message) as info:
        Acquisition(**(good | change))
    assert "\n" not in str(info.value)


def test_from_rows_names_the_row_of_a_bad_sequence():
    with pytest.raises(InputError, match="row 1: Delta = 5 ms: expected at least delta = 10 ms"):
        Acquisition.from_rows([1, 1], np.eye(3)[:2], 10, [20, 5])


def test_select_and_concatenate():
    table = Acquisition.pgse([0, 1000], 3, 10, [20, 60])
    long = table.select(table.Delta == 60)
    assert len(long) == 6 and long.waveforms == (PGSE(10, 60),)
    assert table.select(slice(2, 4)) == table.select([2, 3]) == table.select([-10, -9])
    assert len(table.select(5)) == 1
    halves = [table.select(table.Delta == Delta) for Delta in (20, 60)]
    assert Acquisition.concatenate(halves) == table
    assert Acquisition.concatenate(halves[::-1]) != table
    for rows in ([12], np.ones(3, dtype=bool), "all"):
        with pytest.raises(InputError, match="rows: .* 12 rows"):
            table.select(rows)
    with pytest.raises(InputError, match="none of the 12"):
        table.select(table.b > 1e9)


def test_tables_are_read_only_copies():
    b = np.array([0.0, 1000.0])
    table = Acquisition.pgse(b, 1, 10, 20)
    b[1] = 7.0
    assert table.b[1] == 1000.0
    with pytest.raises(ValueError, match="read-only"):
        table.b[0] = 1.0
    assert pickle.loads(pickle.dumps(table)) == table


def test_unused_and_equal_waveforms_are_tidied():
    waveforms = (PGSE(1, 2), PGSE(10, 20), PGSE(10, 60), PGSE(10, 20))
    table = Acquisition([0, 0, 0], np.zeros((3, 3)), [3, 2, 1], waveforms)
    assert table.waveforms == (PGSE(10, 20), PGSE(10, 60))
    np.testing.assert_array_equal(table.waveform_index, [0, 1, 0])


def test_describe():
    lines = Acquisition.pgse([0, 1000, 5000], 30, 10, [20, 60]).describe()
    text = "\n".join(lines)
    assert "180 measurements" in text and "delta 10 ms, Delta 60 ms, TE 70 ms" in text
    assert "diffusion time 56.67 ms" in text and "5000 s/mm^2 (5 ms/um^2)" in text
    assert "111 mT/m" in text and "warning" not in text


@pytest.mark.parametrize(
    ("b", "delta", "Delta", "warning"),
    [
        (3, 10, 20, "the largest b is 3 s/mm^2, that is 3e+06 s/m^2: no signal falls"),
        (3e6, 10, 20, "more than scanners reach"),
        (1000, 0.01, 0.02, "PGSE with TE 0.03 ms, that is 3e-05 s (given in s?"),
        (2000, 0.5, 1.0, "T/m, more than magnets have"),
        (1000, 10000, 20000, "PGSE with TE 30000 ms"),
    ],
)
def test_describe_warns_of_likely_wrong_units(b, delta, Delta, warning):
    lines = Acquisition.pgse([0, b], 3, delta, Delta).describe()
    assert any(line.startswith("warning:") and warning in line for line in lines)


def test_a_printed_table_is_a_few_lines():
    table = Acquisition.pgse([0, 1000], 30, np.arange(3, 23), 40)
    said = str(table)
    assert said.startswith("1200 measurements, 20 gradient waveform(s)\nPGSE, delta 3 ms")
    assert said.count("\n") <= 8 and "and 16 waveforms more" in said and "b 0, 1000" in said
    assert repr(table) == "Acquisition(1200 measurements, 20 waveforms)"
