"""Signals, and the files of acquisitions and signals."""

import csv

import numpy as np
import pytest
from mpi4py import MPI

from spinverse import Tissue, simulate
from spinverse.acquisition import PGSE, Sampled
from spinverse.acquisition.io import (
    read_acquisition,
    read_signals,
    write_acquisition,
    write_signals,
)
from spinverse.acquisition.signals import Signals
from spinverse.acquisition.table import Acquisition
from spinverse.errors import InputError
from spinverse.inversion.likelihood import references
from spinverse.mesh import build, intervals

HEADER = "b,direction_x,direction_y,direction_z,delta,Delta"
TRIANGLES = Sampled([0, 1 / 3, 1, 2], [0, 1.0, -0.6, 0])


@pytest.fixture
def table():
    return Acquisition.pgse([0, 1000, 1000 / 3], 5, [10, 10 / 3], [20, 60], [40, 70])


@pytest.fixture
def signals(table):
    random = np.random.default_rng(1)
    values = random.normal(size=len(table)) + 1j * random.normal(size=len(table))
    values[3] = complex(0.0, -0.0)
    return Signals(table, values)


def rewrite(path, change):
    """Pass the lines of a file through ``change``."""
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def with_cell(row, column, value):
    """A change for ``rewrite``: another value in one cell."""

    def change(lines):
        k = lines[0].split(",").index(column)
        cells = lines[row + 1].split(",")
        cells[k] = value
        return [*lines[: row + 1], ",".join(cells), *lines[row + 2 :]]

    return change


# --- signals -------------------------------------------------------------------------------------


def test_normalised_divides_by_the_mean_of_the_same_waveform():
    table = Acquisition.pgse([0, 1000], 2, 10, [20, 60])
    signals = Signals(table, [2, 4, 3j, 1.5, 10, 10, 5, -1])
    np.testing.assert_allclose(signals.magnitude, [2, 4, 3, 1.5, 10, 10, 5, 1])
    np.testing.assert_allclose(signals.normalised, [2 / 3, 4 / 3, 1, 0.5, 1, 1, 0.5, 0.1])


def test_normalised_names_the_waveform_without_reference():
    table = Acquisition.pgse([0, 1000], 2, 10, [20, 60])
    signals = Signals(table, np.ones(8))
    with pytest.raises(InputError, match="PGSE, delta 10 ms, Delta 60 ms.* has no row with b = 0"):
        _ = signals.select((table.b > 0) | (table.Delta == 20)).normalised
    with pytest.raises(InputError, match="zero signal at b = 0"):
        _ = Signals(table, np.where(table.b > 0, 1.0, 0.0)).normalised


def test_a_waveform_without_b0_takes_those_of_its_echo_time():
    tables = [Acquisition.pgse([0, 1000], 1, delta=10, Delta=20, echo_time=40),
              Acquisition.ogse([1000], 1, delta=10, Delta=20, periods=2, echo_time=40)]
    signals = Signals(Acquisition.concatenate(tables), [4, 2, 1])
    np.testing.assert_allclose(signals.reference, [4, 4, 4])
    np.testing.assert_allclose(signals.normalised, [1, 0.5, 0.25])
    np.testing.assert_allclose(references(signals.acquisition) @ signals.magnitude, [4, 4, 4])
    tables[1] = Acquisition.ogse([1000], 1, delta=10, Delta=20, periods=2, echo_time=41)
    with pytest.raises(InputError, match="CosOGSE.*no row with b = 0.*with its echo time"):
        _ = Signals(Acquisition.concatenate(tables), [4, 2, 1]).normalised


def test_signals_select_and_equality(signals):
    part = signals.select([4, 2])
    np.testing.assert_array_equal(part.values, signals.values[[4, 2]])
    assert part.acquisition == signals.acquisition.select([4, 2])
    assert part == signals.select([4, 2]) != signals.select([2, 4])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "row 3, column re is nan"),
        (complex(1, np.inf), "row 3, column im is inf"),
        (complex(np.inf, np.nan), "row 3, column re is inf"),
    ],
)
def test_signals_must_be_finite(signals, value, message):
    values = signals.values.copy()
    values[3] = value
    with pytest.raises(InputError, match=message):
        Signals(signals.acquisition, values)


def test_signals_must_fit_the_acquisition(table):
    with pytest.raises(InputError, match="values: shape \\(3,\\), expected \\(30,\\)"):
        Signals(table, np.ones(3))
    with pytest.raises(InputError, match="values: expected complex or real numbers"):
        Signals(table, ["a"] * len(table))


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_signals_come_back_to_the_last_bit(tmp_path, signals, suffix):
    path = tmp_path / f"signals{suffix}"
    write_signals(path, signals)
    back = read_signals(path)
    assert back == signals
    assert back.values.tobytes() == signals.values.tobytes()  # signed zeros too
    assert read_acquisition(path) == signals.acquisition
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # nothing temporary stays


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_mixed_waveforms_come_back(tmp_path, suffix):
    table = Acquisition.product([TRIANGLES, PGSE(10 / 3, 20, 30), PGSE(1, 2)], [0, 1e3 / 7], 3)
    path = tmp_path / f"table{suffix}"
    write_acquisition(path, table)
    back = read_acquisition(path)
    assert back == table and back.waveforms == table.waveforms
    signals = Signals(table, np.arange(len(table)) + 1.0)
    write_signals(path, signals)
    assert read_signals(path, expected=table) == signals
    changed = (Sampled([0, 1, 2], [1, 0, -1]), *table.waveforms[1:])
    other = Acquisition.product(changed, [0, 1e3 / 7], 3)
    with pytest.raises(InputError, match="row 0, waveform is Sampled"):
        read_signals(path, expected=other)


def test_csv_columns(tmp_path):
    table = Acquisition.pgse([0, 1000], [[1, 0, 0]], 10, 20)
    write_signals(tmp_path / "s.csv", Signals(table, [2.0, 0.1 + 0.2j]))
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *HEADER.split(","), "TE", "waveform", "re", "im", "magnitude", "normalised",
    ]  # fmt: skip
    assert rows[1]["waveform"] == "PGSE" and rows[1]["TE"] == "30.0" and rows[1]["re"] == "0.1"
    assert float(rows[1]["normalised"]) == abs(0.1 + 0.2j) / 2


def test_normalised_column_is_nan_without_reference(tmp_path):
    signals = Signals(Acquisition.pgse(1000, 2, 10, 20), [0.5, 0.25])
    write_signals(tmp_path / "s.csv", signals)
    assert (tmp_path / "s.csv").read_text().count("nan") == 2
    assert read_signals(tmp_path / "s.csv") == signals


@pytest.mark.parametrize("column", ["magnitude", "normalised"])
def test_csv_with_one_real_column(tmp_path, column):
    path = tmp_path / "s.csv"
    body = "0,0,0,0,,,2.5\n# a remark\n\n1000, 0,1,0, 10,20,.5\n"
    path.write_text(f"\ufeff{HEADER},{column}\n{body}")
    signals = read_signals(path)
    np.testing.assert_array_equal(signals.values, [2.5, 0.5])
    assert signals.acquisition.waveforms == (PGSE(10, 20),)


@pytest.mark.parametrize("column", ["magnitude", "normalised"])
def test_a_magnitude_is_not_negative(tmp_path, column):
    path = tmp_path / "s.csv"
    path.write_text(f"{HEADER},{column}\n0,0,0,0,10,20,2.5\n1000,0,1,0,10,20,-.5\n")
    with pytest.raises(InputError, match=f"row 1, column {column} is -0.5, expected a magnitude"):
        read_signals(path)


@pytest.mark.parametrize("engine", ["matrix_formalism", "time_stepping"])
def test_a_simulator_knows_the_signal_without_gradient(tmp_path, engine):
    """A table without b = 0 is normalised by what it would have been, also read from its file."""
    slab = Tissue(build(intervals, [10], size=1.0, comm=MPI.COMM_SELF), T2=50.0)
    times = [5, 5], [20, 40]
    whole = simulate(slab, Acquisition.pgse([0, 1000, 2000], [1, 0, 0], *times), engine)
    # a row for each echo time that has none
    assert len(Acquisition.pgse(500, 2, [5, 5, 6], [20, 40, 39]).with_unweighted()) == 6 + 2
    assert whole.acquisition.with_unweighted() == whole.acquisition
    weighted = simulate(slab, Acquisition.pgse([1000, 2000], [1, 0, 0], *times), engine)
    wanted = whole.normalised[whole.acquisition.b > 0]
    np.testing.assert_allclose(weighted.normalised, wanted, rtol=1e-12)
    np.testing.assert_allclose(weighted.reference[[0, 2]], 10 * np.exp([-0.5, -0.9]), rtol=1e-3)
    for name in ("s.csv", "s.npz"):
        write_signals(tmp_path / name, weighted)
        again = read_signals(tmp_path / name)
        np.testing.assert_allclose(again.normalised, wanted, rtol=1e-12)
        np.testing.assert_allclose(again.select([3]).normalised, wanted[3:], rtol=1e-12)


def test_numbers_alone(tmp_path, table):
    values = np.linspace(1, 2, len(table))
    texts = ["\n".join(map(str, values)), "# from a scanner\n\n" + ",\n".join(map(str, values)),
             " ".join(map(str, values))]
    for text, name in zip(texts, ("s.csv", "s.txt", "s.txt"), strict=True):
        (tmp_path / name).write_text(text)
        found = read_signals(tmp_path / name, table)
        assert found == Signals(table, values) and not found.unit
    np.save(tmp_path / "s.npy", values[:, None] * (1 + 1j))
    np.testing.assert_array_equal(read_signals(tmp_path / "s.npy", table).values, values * (1 + 1j))


@pytest.mark.parametrize(("name", "content", "voxel", "words"), [
    ("s.txt", "1\n2", None, "2 numbers, expected 30, one for each"),
    ("s.txt", "1 2\n3 4", None, "line 1: 2 numbers, expected one a line"),
    ("s.txt", "one", None, "line 1: 'one' is not a number"),
    ("s.txt", "\n".join(["-1", *["1"] * 29]), None, "row 0 is -1, expected a magnitude"),
    ("s.txt", "\n".join(["nan", *["1"] * 29]), None, "row 0, column signal is nan"),
    ("s.txt", "1", [0, 0, 0], "voxel: given, expected it for an image"),
    ("s.npy", np.ones((5, 6)), None, "float64 of shape (5, 6), expected numbers (N,)"),
    ("s.nii", np.ones((2, 2, 2, 30)), None, "voxel: missing, expected [i, j, k]"),
    ("s.nii", np.ones((2, 2, 2, 30)), [0, 2, 0], "voxel: [0, 2, 0], expected [i, j, k] inside"),
    ("s.nii", np.ones((2, 2, 2, 9)), [0, 1, 0], "9 numbers, expected 30"),
    ("s.nii", np.ones((2, 2, 2)), [0, 1, 0], "has shape (2, 2, 2), expected (x, y, z, meas"),
])
def test_bad_numbers_alone(tmp_path, table, name, content, voxel, words):
    path = tmp_path / name
    if name == "s.npy":
        np.save(path, content)
    elif name == "s.nii":
        nibabel = pytest.importorskip("nibabel")
        nibabel.save(nibabel.Nifti1Image(content, np.eye(4)), path)
    else:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_signals(path, table, voxel)
    assert words in str(caught.value) and str(path) in str(caught.value)


def test_write_replaces_and_cleans_up(tmp_path, signals, monkeypatch):
    path = tmp_path / "s.npz"
    write_signals(path, signals)

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        write_signals(path, signals.select([0]))
    monkeypatch.undo()
    assert read_signals(path) == signals and len(list(tmp_path.iterdir())) == 1


# --- bad files -----------------------------------------------------------------------------------


def test_expected_acquisition(tmp_path, signals):
    path, table = tmp_path / "s.csv", signals.acquisition
    write_signals(path, signals)
    assert read_signals(path, expected=table).acquisition is table
    with pytest.raises(InputError, match="expected 29 rows as in the acquisition, found 30"):
        read_signals(path, expected=table.select(slice(1, None)))
    swapped = table.select([*range(5), 6, 5, *range(7, 30)])
    with pytest.raises(InputError, match="row 5, direction is .*expected"):
        read_signals(path, expected=swapped)
    rewrite(path, with_cell(7, "b", "1000.5"))
    with pytest.raises(InputError, match="row 7, b is 1000.5, expected 1000.0 as in the acq"):
        read_signals(path, expected=table)
    write_signals(path, signals)
    rewrite(path, with_cell(17, "TE", "75"))
    with pytest.raises(InputError, match="row 17, TE is 75.0, expected 70.0"):
        read_signals(path, expected=table)
    write_signals(path, signals)
    rewrite(path, with_cell(4, "Delta", "21"))
    with pytest.raises(InputError, match="row 4, Delta is 21.0, expected 20.0"):
        read_signals(path, expected=table)


def test_expected_forgives_rounding_and_a_missing_echo_time(tmp_path, table):
    path = tmp_path / "s.csv"
    lines = [f"{HEADER},magnitude"]
    for row in range(len(table)):
        direction = ",".join(f"{x:.8f}" for x in table.directions[row])
        times = f"{table.delta[row]:.8g},{table.Delta[row]:.8g}"
        lines.append(f"{table.b[row]:.8g},{direction},{times},{row}")
    path.write_text("\n".join(lines))
    signals = read_signals(path, expected=table)
    assert signals.acquisition is table
    np.testing.assert_array_equal(signals.values, np.arange(len(table)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_cell(2, "re", "high"), "row 2 \\(line 4\\), column re: 'high' is not a number"),
        (with_cell(2, "b", ""), "row 2 \\(line 4\\), column b: '' is not a number"),
        (with_cell(2, "im", "nan"), "row 2, column im is nan"),
        (with_cell(2, "direction_y", "inf"), "row 2, column direction_y is inf"),
        (with_cell(7, "delta", ""), "delta: missing in row 7"),
        (with_cell(7, "waveform", "spiral"), "row 7, column waveform: 'spiral' is not defined"),
        (lambda lines: [*lines[:4], "1,2,3", *lines[5:]], "row 3 \\(line 5\\) has 3 cells, exp"),
        (lambda lines: [lines[0].replace("Delta", "separation"), *lines[1:]], "column Delta is mi"),
        (lambda lines: [lines[0].replace("im,", "imag,"), *lines[1:]], "column im is missing"),
        (lambda lines: [lines[0].replace("im,", "re,"), *lines[1:]], "column re appears twice"),
        (lambda lines: lines[:1], "no rows below the header"),
        (lambda lines: [], "the file is empty"),
        (lambda lines: ['# waveform w {"name": "spiral"}', *lines], "waveform w: waveform name"),
        (lambda lines: ["# waveform w {nonsense", *lines], "waveform w: "),
    ],
)
def test_bad_csv(tmp_path, signals, change, message):
    path = tmp_path / "s.csv"
    write_signals(path, signals)
    rewrite(path, change)
    with pytest.raises(InputError, match=message) as info:
        read_signals(path)
    assert str(info.value).startswith(str(path)) and "\n" not in str(info.value)


def test_missing_things_are_named(tmp_path, signals):
    with pytest.raises(InputError, match="none.csv: there is no such file"):
        read_signals(tmp_path / "none.csv")
    with pytest.raises(InputError, match="suffix '.dat', expected one of .csv, .npz"):
        read_signals(tmp_path / "none.dat")
    with pytest.raises(InputError, match="folder .* does not exist"):
        write_signals(tmp_path / "deep" / "s.csv", signals)
    write_acquisition(tmp_path / "table.csv", signals.acquisition)
    with pytest.raises(InputError, match="column re is missing"):
        read_signals(tmp_path / "table.csv")


def test_bad_npz(tmp_path, signals):
    path = tmp_path / "s.npz"
    write_signals(path, signals)
    arrays = dict(np.load(path))
    for name, value, message in [
        ("re", arrays["re"][:-1], "column re has shape \\(29,\\)"),
        ("re", arrays["re"].astype(complex), "column re holds complex128, expected real"),
        ("b", np.array(1000.0), "column b has shape \\(\\)"),
        ("waveform", np.arange(30), "column waveform holds int64, expected text"),
        ("im", np.where(np.arange(30) == 8, np.nan, arrays["im"]), "row 8, column im is nan"),
        ("waveform_definitions", np.array(["w"]), "expected \\(waveforms, 2\\)"),
    ]:
        np.savez(path, **(arrays | {name: value}))
        with pytest.raises(InputError, match=message):
            read_signals(path)
    arrays.pop("direction_z")
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="column direction_z is missing"):
        read_signals(path)
    np.savez(path, b=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="not an npz file of plain arrays"):
        read_signals(path)
    for content in (b"", b"PK\x03\x04 nonsense", b"plain text"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not an npz file"):
            read_signals(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(InputError, match="not an npz file"):
        read_signals(path)


def test_times_that_a_table_does_not_have_are_given_beside_it(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("b,direction_x,direction_y,direction_z\n0,1,0,0\n1000,0,1,0\n")
    expected = Acquisition.pgse([0, 1000], [[1, 0, 0], [0, 1, 0]], 10, 20, 40).select([0, 3])
    assert read_acquisition(path, delta=10, Delta=20, echo_time=40) == expected
    assert read_acquisition(path, delta=10, Delta=[20, 20], echo_time=40) == expected
    with pytest.raises(InputError, match="column Delta is missing, and not given beside"):
        read_acquisition(path, delta=10)
    with pytest.raises(InputError, match="Delta: .*expected a time in ms, or one for each"):
        read_acquisition(path, delta=10, Delta=[1, 2, 3])
    write_acquisition(path, expected)
    with pytest.raises(InputError, match="delta: given, but the file has such a column"):
        read_acquisition(path, delta=10)
