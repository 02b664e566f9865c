"""Acquisitions in the formats of the field: FSL, BIDS, Camino, DIPY."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from spinverse.acquisition import (
    PGSE,
    Acquisition,
    CosOGSE,
    DoublePGSE,
    Sampled,
    SampledGradient,
    TrapezoidPGSE,
    from_dipy,
    read_acquisition,
    read_bids,
    read_camino,
    read_fsl,
    to_dipy,
    write_acquisition,
    write_bids,
    write_camino,
    write_fsl,
)
from spinverse.acquisition.directions import fibonacci_directions
from spinverse.config import AcquisitionSection
from spinverse.errors import InputError
from spinverse.units import GAMMA

DATA = Path(__file__).parent / "data" / "acquisition"
BVAL, BVEC = DATA / "shells.bval", DATA / "shells.bvec"


@pytest.fixture
def table():
    return Acquisition.pgse([0, 1000, 1e4 / 3], 6, 10.6, 43.1, 89.5)


@pytest.fixture
def copy(tmp_path):
    for file in DATA.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


def refuses(function, *arguments, match, **options):
    with pytest.raises(InputError, match=match) as info:
        function(*arguments, **options)
    assert "\n" not in str(info.value)


# --- what the formats share ----------------------------------------------------------------------


def small_b(folder, kind, b, vectors):
    """Measurements with delta 12 and Delta 35 ms in a file of this kind."""
    if kind in ("fsl", "bids"):
        (folder / "dwi.bval").write_text(" ".join(map(str, b)))
        (folder / "dwi.bvec").write_text(
            "\n".join(" ".join(map(str, v)) for v in zip(*vectors, strict=True)))
        (folder / "dwi.json").write_text('{"SmallDelta": 0.012, "BigDelta": 0.035}')
        return folder / ("dwi.bval" if kind == "fsl" else "dwi.json")
    rows = [",".join(map(str, [b, *v, 12, 35])) for b, v in zip(b, vectors, strict=True)]
    (folder / "dwi.csv").write_text(
        "b,direction_x,direction_y,direction_z,delta,Delta\n" + "\n".join(rows))
    lines = [" ".join(map(str, [*v, b * 1e6])) for b, v in zip(b, vectors, strict=True)]
    (folder / "dwi.scheme").write_text("VERSION: BVECTOR\n" + "\n".join(lines))
    return folder / f"dwi.{kind}"


@pytest.mark.parametrize("kind", ["fsl", "bids", "csv", "scheme"])
def test_small_b_counts_as_none_when_it_is_read(tmp_path, kind):
    """Rows that are taken for b = 0 need no direction, in a file as beside a run file's key."""
    path = small_b(tmp_path, kind, [0, 5, 1000, 1000], [(0, 0, 0)] * 2 + [(1, 0, 0), (0, 0, 1)])
    times = {} if kind in ("bids", "csv") else {"delta": 12, "Delta": 35}
    found = read_acquisition(path, **times, b0_threshold=20)
    np.testing.assert_array_equal(found.b, [0, 0, 1000, 1000])
    refuses(read_acquisition, path, **times, match="row 1 h")
    run = {"file": str(path), "b0_up_to_s_per_mm2": 20} | {f"{k}_ms": v for k, v in times.items()}
    np.testing.assert_array_equal(AcquisitionSection(**run).table().b, found.b)


@pytest.mark.parametrize("kind", ["fsl", "bids", "csv", "scheme"])
def test_small_b_does_not_hide_another_unit(tmp_path, kind):
    path = small_b(tmp_path, kind, [0, 1, 2], [(1, 0, 0)] * 3)
    times = {} if kind in ("bids", "csv") else {"delta": 12, "Delta": 35}
    with pytest.warns(UserWarning, match=r"all 3 measurements are b = 0: the largest b is 2 .*"
                                         r"meant in ms/um\^2"):
        assert not read_acquisition(path, **times, b0_threshold=20).b.any()


@pytest.mark.parametrize(("b", "vectors", "words"), [
    ([0, 1000, 1000], [(0, 0, 0), (1, 0, 0), (0, 0, 0)], "rows with b > 0 have none: if they are"),
    ([0, 1000, 3000], [(0, 0, 0), (3**-0.5, 0, 0), (0, 1, 0)], "divide each vector by its length"),
    ([3000, 3000, 3000], [(0, 0, 0), (3**-0.5, 0, 0), (0, 1, 0)], "multiply b by their squares"),
])
def test_directions_that_are_none_say_what_to_do(tmp_path, b, vectors, words):
    path = small_b(tmp_path, "fsl", b, vectors)
    refuses(read_acquisition, path, delta=12, Delta=35, match="expected a unit vector.*" + words)


# --- FSL -----------------------------------------------------------------------------------------


def test_fsl_file():
    table = read_fsl(BVAL, BVEC, delta=10.6, Delta=43.1, echo_time=89.5)
    np.testing.assert_array_equal(table.b, [0, 995, 1000, 0, 3005, 2990])
    np.testing.assert_allclose(table.directions[[1, 4]], [[1, 0, 0], np.array([-1, 1, 1]) / 3**0.5])
    np.testing.assert_allclose(np.linalg.norm(table.directions[table.b > 0], axis=1), 1, rtol=1e-14)
    np.testing.assert_array_equal(table.directions[table.b == 0], 0)
    assert table.waveforms == (PGSE(10.6, 43.1, 89.5),)
    assert read_fsl(BVAL, BVEC, 10.6, 43.1).waveforms == (PGSE(10.6, 43.1),)
    each = read_fsl(BVAL, BVEC, 10.6, [20, 20, 20, 40, 40, 40])
    np.testing.assert_array_equal(each.Delta, [20, 20, 20, 40, 40, 40])


def test_fsl_with_another_waveform():
    table = read_fsl(BVAL, BVEC, waveform=CosOGSE(20, 30, 2))
    assert table.waveforms == (CosOGSE(20, 30, 2),)
    refuses(read_fsl, BVAL, BVEC, 5, 20, waveform=PGSE(5, 20), match="waveform: given beside")
    vector = DoublePGSE(5, 10, 10, True, ([1, 0, 0], [0, 1, 0]))
    refuses(read_fsl, BVAL, BVEC, waveform=vector, match="DoublePGSE has its own directions")


def test_fsl_orientations_and_columns(tmp_path):
    table = read_fsl(BVAL, BVEC, 5, 20)
    np.savetxt(tmp_path / "b", np.loadtxt(BVAL)[:, None])
    np.savetxt(tmp_path / "v", np.loadtxt(BVEC).T)
    assert read_fsl(tmp_path / "b", tmp_path / "v", 5, 20) == table
    # three by three: the lines are x, y and z
    (tmp_path / "b3").write_text("1000 1000 1000\n")
    (tmp_path / "v3").write_text("0 1 0\n0 0 1\n1 0 0\n")
    square = read_fsl(tmp_path / "b3", tmp_path / "v3", 5, 20)
    np.testing.assert_array_equal(square.directions, [[0, 0, 1], [1, 0, 0], [0, 1, 0]])


def test_fsl_round_trip(tmp_path, table):
    write_fsl(tmp_path / "bvals", tmp_path / "bvecs", table)
    back = read_fsl(tmp_path / "bvals", tmp_path / "bvecs", 10.6, 43.1, 89.5)
    np.testing.assert_array_equal(back.b, table.b)
    weighted = table.b > 0
    np.testing.assert_array_equal(back.directions[weighted], table.directions[weighted])
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "bvecs")[:, ~weighted], 0)
    assert (tmp_path / "bvals").read_text().startswith("0 0 0 0 0 0 1000 ")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bvals", "bvecs"]
    assert read_acquisition(tmp_path / "bvals", delta=10.6, Delta=43.1, echo_time=89.5) == back


def test_fsl_b0_threshold(tmp_path):
    (tmp_path / "b").write_text("5 1000 10")
    (tmp_path / "v").write_text("0 1 nan\n0 0 nan\n0 0 nan\n")
    refuses(
        read_fsl, tmp_path / "b", tmp_path / "v", 5, 20, match="v: row 0 has b = 5 and a direction"
    )
    table = read_fsl(tmp_path / "b", tmp_path / "v", 5, 20, b0_threshold=50)
    np.testing.assert_array_equal(table.b, [0, 1000, 0])


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({}, "delta and Delta: missing, bval and bvec files hold no times; expected delta"),
        ({"delta": 10}, "shells.bval: Delta: missing.*TE is optional"),
        ({"Delta": 10}, "shells.bval: delta: missing"),
        ({"delta": 10, "Delta": [20, 30]}, "Delta: shape \\(2,\\), expected one number or"),
        ({"delta": 10, "Delta": 5}, "shells.bval: row 0: Delta = 5 ms"),
    ],
)
def test_fsl_times_are_named(times, message):
    refuses(read_fsl, BVAL, BVEC, match=message, **times)


@pytest.mark.parametrize(
    ("b", "v", "message"),
    [
        ("", "1", "b: the file is empty"),
        ("1000 x", "1 0 0\n0 1 0", "b: line 1: 'x' is not a number"),
        ("1000 -5", "1 0 0\n0 1 0", "b: row 1 is -5, expected a b-value >= 0"),
        ("1000 nan", "1 0 0\n0 1 0", "b: row 1 is nan"),
        ("1 2\n3 4", "1 0 0\n0 1 0", "b: 2 lines, expected b-values in one line or one column"),
        ("1000 1000", "1 0 0\n0 1 0\n0 0 1", "v: 3 x 3 numbers, expected 3 x 2 or 2 x 3 as there"),
        ("1000 1000", "1 0 0\n0 1", "v: lines of different length"),
        ("1000 1000", "1 0 0\n0 0.9 0", "v: row 1 has b = 1000 and a direction of length 0.9"),
        ("1000 1000", "1 0 0\n0 0 0", "v: row 1 .* of length 0, expected a unit vector"),
    ],
)
def test_fsl_bad_files(tmp_path, b, v, message):
    (tmp_path / "b").write_text(b)
    (tmp_path / "v").write_text(v)
    refuses(read_fsl, tmp_path / "b", tmp_path / "v", 5, 20, match=message)


def test_fsl_refuses_vector_waveforms_and_missing_files(tmp_path):
    vector = DoublePGSE(5, 10, 10, True, ([1, 0, 0], [0, 1, 0]))
    table = Acquisition.product(vector, 1000)
    refuses(write_fsl, tmp_path / "b", tmp_path / "v", table, match="no single direction")
    refuses(read_fsl, tmp_path / "b", tmp_path / "v", 5, 20, match="b: there is no such file")
    assert not list(tmp_path.iterdir())


# --- BIDS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".bval", ".bvec", ".json", ".nii.gz"])
def test_bids_sidecar(suffix):
    table = read_bids(DATA / f"shells{suffix}")
    assert table == read_fsl(BVAL, BVEC, 10.6, 43.1, 89.5)
    assert read_acquisition(DATA / f"shells{suffix}") == table


def test_bids_files_further_up(tmp_path):
    """Sidecar and gradients of all subjects above the images, as BIDS inherits them."""
    (tmp_path / "dataset_description.json").write_text("{}")
    folder = tmp_path / "sub-01" / "ses-a" / "dwi"
    folder.mkdir(parents=True)
    small_b(tmp_path, "bids", [0, 1000], [(0, 0, 0), (0, 1, 0)])
    for suffix in (".bval", ".bvec"):
        (tmp_path / f"dwi{suffix}").rename(tmp_path / f"acq-x_dwi{suffix}")
    (tmp_path / "dwi.json").write_text('{"SmallDelta": 0.012, "BigDelta": 0.03, "EchoTime": 0.09}')
    (tmp_path / "acq-y_dwi.json").write_text('{"BigDelta": 0.05}')
    (tmp_path / "sub-01" / "acq-x_dwi.json").write_text('{"BigDelta": 0.04}')
    found = read_bids(folder / "sub-01_ses-a_acq-x_dwi.nii.gz")
    assert found.waveforms == (PGSE(12, 40, 90),)
    (folder / "sub-01_ses-a_acq-x_dwi.json").write_text('{"BigDelta": 0.045}')
    assert read_bids(folder / "sub-01_ses-a_acq-x_dwi.nii").waveforms == (PGSE(12, 45, 90),)
    refuses(read_bids, folder / "sub-01_ses-a_acq-y_dwi.nii", match="no such file")
    (tmp_path / "dataset_description.json").unlink()
    refuses(read_bids, folder / "sub-01_ses-a_acq-x_dwi.nii", match="Delta|delta")


def test_bvals_and_bvecs(tmp_path):
    path = small_b(tmp_path, "bids", [0, 1000], [(0, 0, 0), (0, 1, 0)])
    for name in ("dwi.bval", "dwi.bvec"):
        (tmp_path / name).rename(tmp_path / f"{name}s")
    for name in ("dwi.bvals", "dwi.bvecs", "dwi.json"):
        assert len(read_acquisition(path.with_name(name))) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"SmallDelta": 0.0106, "BigDelta": 0.0431, "EchoTime": 0.0895},
        {"SmallDelta": 10.6, "LargeDelta": 43.1, "EchoTime": 0.0895},  # ms
        {
            "DiffusionGradientDuration": [0.0106] * 6,
            "DiffusionGradientSeparation": [0.0431] * 6,
            "EchoTime": [0.0895] * 6,
        },
        {"GradientDuration": 10.6, "GradientSeparation": 43.1, "EchoTime": 0.0895},
    ],
)
def test_bids_fields(copy, fields):
    (copy / "shells.json").write_text(json.dumps(fields))
    table = read_bids(copy / "shells.json")
    np.testing.assert_allclose(table.delta, 10.6, rtol=1e-12)
    np.testing.assert_allclose(table.Delta, 43.1, rtol=1e-12)
    np.testing.assert_allclose(table.echo_time, 89.5, rtol=1e-12)


def test_bids_arguments_come_first(copy):
    table = read_bids(copy / "shells.bval", delta=5, Delta=20, echo_time=30)
    assert table.waveforms == (PGSE(5, 20, 30),)
    (copy / "shells.json").write_text('{"SmallDelta": 0.5, "BigDelta": 0.8}')
    assert read_bids(copy / "shells.bval").waveforms == (PGSE(500, 800),)
    assert read_bids(copy / "shells.bval", time_unit="ms").waveforms == (PGSE(0.5, 0.8),)
    (copy / "shells.json").unlink()
    assert read_bids(copy / "shells.bval", delta=5, Delta=20).waveforms == (PGSE(5, 20),)


def test_bids_round_trip(tmp_path, table):
    (tmp_path / "a_dwi.json").write_text('{"Manufacturer": "M", "BigDelta": 1}')
    write_bids(tmp_path / "a_dwi.bval", table)
    back = read_bids(tmp_path / "a_dwi.json")
    np.testing.assert_array_equal(back.b, table.b)
    np.testing.assert_allclose(back.echo_time, table.echo_time, rtol=1e-15)
    fields = json.loads((tmp_path / "a_dwi.json").read_text())
    assert fields["Manufacturer"] == "M" and fields["EchoTime"] == 0.0895
    assert "BigDelta" not in fields
    both = Acquisition.pgse([0, 1000], 3, 5, [20, 60])
    write_bids(tmp_path / "b_dwi.json", both)
    np.testing.assert_allclose(read_bids(tmp_path / "b_dwi.bval").Delta, both.Delta, rtol=1e-15)


def test_bids_refuses(copy, table):
    sidecar = copy / "shells.json"
    sidecar.write_text('{"EchoTime": 0.09, "SmallDelta": 0.01}')
    refuses(
        read_bids,
        copy / "shells.bval",
        match="shells.json: Delta: missing, the sidecar has no such fields .*BigDelta.*; expected",
    )
    for text, message in [
        ('{"SmallDelta": "x"}', "SmallDelta = 'x': expected a positive time"),
        ('{"SmallDelta": -1}', "SmallDelta = -1: expected a positive time"),
        ("{", "shells.json: not JSON"),
        ("[]", "expected a JSON object"),
    ]:
        sidecar.write_text(text)
        refuses(read_bids, sidecar, match=message)
    sidecar.unlink()
    refuses(read_bids, copy / "shells.bval", match="delta and Delta: missing, there is no sidecar")
    refuses(read_bids, copy / "shells.txt", match="suffix '.txt', expected .bval")
    refuses(read_bids, BVAL, time_unit="us", match="time_unit = 'us'")
    ogse = Acquisition.ogse(1000, 3, 10, 20, 1)
    refuses(write_bids, copy / "x.json", ogse, match="CosOGSE.*BIDS has fields for PGSE only")


# --- Camino --------------------------------------------------------------------------------------


def test_stejskal_tanner_scheme():
    table = read_camino(DATA / "stejskal_tanner.scheme")
    assert table.waveforms == (PGSE(5, 20, 50), PGSE(10, 30, 60))
    np.testing.assert_array_equal(table.waveform_index, [0, 0, 0, 1, 1])
    b = (GAMMA * 0.06 * 0.010) ** 2 * (0.030 - 0.010 / 3) * 1e-6
    assert table.b[3] == pytest.approx(b, rel=1e-12) and table.b[0] == table.b[4] == 0
    np.testing.assert_allclose(table.gradient_strength_mT_m, [0, 40, 80, 60, 0], rtol=1e-12)
    np.testing.assert_allclose(table.directions[2], [0.5**0.5, 0.5**0.5, 0], rtol=1e-12)


def test_stejskal_tanner_round_trip(tmp_path, table):
    both = Acquisition.concatenate([table, Acquisition.pgse([0, 1000], 3, 5, 60)])
    path = tmp_path / "table.scheme"
    write_camino(path, both)
    assert path.read_text().startswith("VERSION: STEJSKALTANNER\n0.0 0.0 0.0 0.0 0.0431 0.0106 ")
    back = read_acquisition(path)
    np.testing.assert_allclose(back.b, both.b, rtol=1e-12)
    weighted = both.b > 0
    np.testing.assert_array_equal(back.directions[weighted], both.directions[weighted])
    for name in ("delta", "Delta", "echo_time"):
        np.testing.assert_allclose(getattr(back, name), getattr(both, name), rtol=1e-14)


def test_b_vector_scheme():
    table = read_camino(DATA / "b_vectors.scheme", delta=5, Delta=20)
    np.testing.assert_allclose(table.b, [0, 1000, 2000], rtol=1e-12)
    assert table.waveforms == (PGSE(5, 20),)
    refuses(
        read_acquisition,
        DATA / "b_vectors.scheme",
        match="delta and Delta: missing, a BVECTOR scheme holds b and directions only; expected",
    )


def test_gradient_waveform_scheme():
    table = read_camino(DATA / "gradient_waveform.scheme")
    assert len(table.waveforms) == 3 and len(table) == 5
    np.testing.assert_array_equal(table.waveform_index, [0, 0, 0, 1, 2])
    # rows 1 and 2 are one scalar waveform along two directions: boxes of 5 ms, 20 ms apart
    boxes, two, rounded = table.waveforms
    assert type(boxes) is Sampled and boxes.segments()[0].tolist() == [5, 15, 5]
    np.testing.assert_allclose(table.directions[1:3], [[1, 0, 0], [0, 0.6, 0.8]], rtol=1e-12)
    b = Acquisition.from_gradient(PGSE(5, 20), 40, [1, 0, 0]).b
    np.testing.assert_allclose(table.b[:3], [0, b[0], b[0]], rtol=1e-12)
    # row 3 is two pairs in different directions
    assert type(two) is SampledGradient
    pairs = DoublePGSE(5, 5, 10, True, ([1, 0, 0], [0, 1, 0]))
    np.testing.assert_allclose(two.b_tensor_factor(), pairs.b_tensor_factor(), rtol=1e-12)
    # row 4 is off by rounding
    assert abs(rounded.integral(rounded.echo_time)) < 1e-14
    assert table.gradient_strength_mT_m[4] == pytest.approx(30, rel=1e-3)


def test_gradient_waveforms_of_six_decimals(tmp_path):
    """One shape in 30 directions, as SpinDoctor writes it, is one waveform; others are others."""
    t = np.linspace(0, 1, 40)
    shape = np.concatenate([np.sin(np.pi * t), -np.sin(np.pi * t)])
    directions = fibonacci_directions(30)

    def written(shapes, digits):
        lines = [" ".join(["80", "0.00075", *(f"{v:.{digits}f}" for v in np.outer(s, d).ravel())])
                 for s, d in zip(shapes, directions, strict=False)]
        path = tmp_path / "six.scheme"
        path.write_text("VERSION: GRADIENT_WAVEFORM\n" + "\n".join(lines))
        return read_camino(path)

    found = written([0.04 * shape] * 30, 6)
    assert [type(waveform) for waveform in found.waveforms] == [Sampled]
    np.testing.assert_allclose(found.directions, directions, atol=2e-5)
    assert np.ptp(found.b) < 2e-4 * found.b[0]
    bent = np.sign(shape) * np.abs(shape)**1.01
    assert len(written([0.04 * shape, 0.04 * bent], 6).waveforms) == 2
    turning = np.outer(shape, [1.0, 0, 0]) + 1e-2 * np.outer(np.roll(shape, 5), [0, 1.0, 0])
    lines = " ".join(f"{v:.6f}" for v in 0.04 * turning.ravel())
    (tmp_path / "two.scheme").write_text(f"VERSION: GRADIENT_WAVEFORM\n80 0.00075 {lines}")
    assert read_camino(tmp_path / "two.scheme").waveforms[0].vector


def test_camino_remarks_and_a_missing_version(tmp_path):
    path = tmp_path / "a.scheme"
    path.write_text("% from a scanner\n# and a remark\n0 0 1 0.04 0.03 0.01 0.06\n")
    with pytest.warns(UserWarning, match="no line VERSION; its lines of 7 .* STEJSKALTANNER"):
        assert read_acquisition(path).waveforms == (PGSE(10, 30, 60),)
    path.write_text("0 0 1 1e9\n")
    with pytest.warns(UserWarning, match="lines of 4 numbers are taken as BVECTOR"):
        assert read_acquisition(path, delta=10, Delta=30).b == [1000]
    path.write_text("0.03\n0\n")
    refuses(read_acquisition, path, match="expected a first line 'VERSION: NAME'")


def test_gradient_waveform_round_trip(tmp_path):
    path = tmp_path / "waves.scheme"
    pair = DoublePGSE(5, 10, 12, True, ([1, 0, 0], [0, 0.6, 0.8]))
    table = Acquisition.concatenate([
        Acquisition.pgse([0, 1000], [[1, 0, 0], [0, 0.6, 0.8]], 10, 40, 60),
        Acquisition.product(pair, [500, 2000]),
    ])  # fmt: skip
    write_camino(path, table)
    lines = path.read_text().splitlines()
    assert lines[0] == "VERSION: GRADIENT_WAVEFORM"
    assert lines[1].startswith("6 0.01 ") and lines[-1].startswith("37 0.001 ")
    back = read_acquisition(path)
    np.testing.assert_allclose(back.b, table.b, rtol=1e-10)
    np.testing.assert_allclose(back.b_tensors, table.b_tensors, atol=1e-6)
    np.testing.assert_allclose(back.strength, table.strength, rtol=1e-10)
    assert len(back.waveforms) == 2 and back.waveforms[1].vector
    for mine, theirs in zip(back.waveforms, table.waveforms, strict=True):
        for part, other in zip(mine.segments(), theirs.segments(), strict=True):
            np.testing.assert_allclose(part, other, atol=1e-9)


def test_gradient_waveforms_of_smooth_shapes_converge(tmp_path):
    table = Acquisition.ogse(1000, [[0, 0, 1]], 5, 10, 1)
    errors = []
    for step in (0.2, 0.1, 0.05):
        write_camino(tmp_path / "w.scheme", table, step=step)
        back = read_camino(tmp_path / "w.scheme")
        np.testing.assert_allclose(back.directions, [[0, 0, 1]])
        errors.append(abs(back.b[0] / 1000 - 1))
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, 2.0, atol=0.1)
    ramps = Acquisition.trapezoid([0, 1000], 2, 5, 10, 1)
    write_camino(tmp_path / "w.scheme", ramps)
    np.testing.assert_allclose(read_camino(tmp_path / "w.scheme").b, ramps.b, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a first line 'VERSION: NAME'"),
        ("1 0 0 0.04 0.02 0.005", "expected a first line 'VERSION: NAME'"),
        ("VERSION: SPIRAL\n1", "VERSION SPIRAL: expected one of STEJSKALTANNER"),
        ("VERSION: 1", "no measurements below VERSION"),
        ("VERSION: 1\n1 0 0 0.04 0.02 0.005", "line 2: 6 numbers, expected 7: x y z |G| DELTA"),
        ("VERSION: 1\n1 0 0 a 0.02 0.005 1", "line 2: 'a' is not a number"),
        ("VERSION: 1\n1 0 0 nan 0.02 0.005 1", "line 2: expected finite numbers"),
        ("VERSION: 1\n1 0 0 -0.04 0.02 0.005 1", "row 0 has |G| = -0.04 T/m"),
        ("VERSION: 1\n2 0 0 0.04 0.02 0.005 1", "row 0 has b = 40 and a direction of length 2"),
        ("VERSION: 1\n1 0 0 0.04 0 0.005 1", "row 0 has DELTA = 0 s and delta = 0.005 s"),
        ("VERSION: 1\n1 0 0 0.04 0.004 0.005 1", "row 0: Delta = 4 ms: expected at least delta"),
        ("VERSION: GRADIENT_WAVEFORM\n2 0.1 1 0 0", "line 2: 5 numbers, expected K dt and 3 K"),
        ("VERSION: GRADIENT_WAVEFORM\n2 0.1 1 0 0 1 0 0", "line 2: the gradients add up to"),
        ("VERSION: GRADIENT_WAVEFORM\n1 0.1 0 0 0", "no gradient, and no other measurement lasts"),
    ],
)
def test_camino_bad_files(tmp_path, text, message):
    path = tmp_path / "x.scheme"
    path.write_text(text)
    with pytest.raises(InputError) as info:
        read_camino(path)
    assert str(info.value).startswith(str(path)) and "\n" not in str(info.value)
    assert message.replace("\\", "") in str(info.value)


def test_camino_refuses(tmp_path, table):
    refuses(
        read_camino, DATA / "stejskal_tanner.scheme", delta=5,
        match="delta: given, but a STEJSKALTANNER scheme has its own",
    )  # fmt: skip
    ogse = Acquisition.ogse(1000, 3, 10, 20, 1)
    path = tmp_path / "x.scheme"
    refuses(write_camino, path, ogse, "STEJSKALTANNER", match="holds PGSE only")
    refuses(write_camino, path, table, "BVECTOR", match="version = 'BVECTOR'")
    refuses(write_camino, path, ogse, step=0, match="step = 0")
    refuses(write_camino, tmp_path / "no" / "x", table, match="folder .* does not exist")


# --- DIPY ----------------------------------------------------------------------------------------


def stand_in(table, **times):
    vectors = np.where(table.b[:, None] > 0, table.directions, 0)
    return SimpleNamespace(bvals=table.b, bvecs=vectors, **times)


def test_from_a_gradient_table(table):
    back = from_dipy(stand_in(table, small_delta=0.0106, big_delta=0.0431), echo_time=89.5)
    np.testing.assert_array_equal(back.b, table.b)
    assert back.waveforms == table.waveforms
    np.testing.assert_array_equal(back.directions[table.b > 0], table.directions[table.b > 0])
    given = from_dipy(stand_in(table, small_delta=None, big_delta=0.0431), delta=5)
    assert given.waveforms == (PGSE(5, 43.1),)


def test_from_a_gradient_table_refuses(table):
    plain = stand_in(table, small_delta=0.0106, big_delta=None)
    refuses(from_dipy, plain, match="gradient table: Delta: missing, it has no small_delta or big")
    refuses(from_dipy, stand_in(table), match="delta and Delta: missing")
    refuses(from_dipy, "table", match="gradient table: str, expected an object with bvals")
    odd = SimpleNamespace(bvals=[1, 2], bvecs=[[1, 0, 0]])
    refuses(from_dipy, odd, 5, 20, match="bvals \\(2,\\) and bvecs \\(1, 3\\)")
    flat = stand_in(table, btens=np.tile(np.diag([0.5, 0.5, 0.0]), (len(table), 1, 1)))
    refuses(from_dipy, flat, 5, 20, match="row 6 has a b-tensor that is not linear")
    refuses(from_dipy, stand_in(table), 50, 20, match="gradient table: row 0: Delta = 20 ms")


def test_dipy_round_trip(table):
    pytest.importorskip("dipy.core.gradients")
    made = to_dipy(table)
    np.testing.assert_allclose(made.bvals, table.b, rtol=1e-12)
    assert made.small_delta == pytest.approx(0.0106) and made.big_delta == pytest.approx(0.0431)
    np.testing.assert_array_equal(made.b0s_mask, table.b == 0)
    back = from_dipy(made, echo_time=89.5)
    np.testing.assert_allclose(back.b, table.b, rtol=1e-12)
    np.testing.assert_allclose(back.directions[back.b > 0], table.directions[table.b > 0])
    vector = Acquisition.product(DoublePGSE(5, 10, 10, True, ([1, 0, 0], [0, 1, 0])), [0, 1000])
    np.testing.assert_allclose(to_dipy(vector).btens, vector.b_tensors)
    several = Acquisition.pgse(1000, 6, 5, [20, 60])
    refuses(to_dipy, several, match="2 values of big_delta \\(20, 60 ms\\), expected one")


def test_to_dipy_without_dipy(table, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dipy.core.gradients", None)
    refuses(to_dipy, table, match="to_dipy: needs DIPY")


# --- one door ------------------------------------------------------------------------------------


def test_read_acquisition_picks_the_format(copy, table):
    write_acquisition(copy / "t.csv", table)
    assert read_acquisition(copy / "t.csv") == table
    fsl = read_fsl(BVAL, BVEC, 5, 20)
    assert read_acquisition(BVAL, BVEC, delta=5, Delta=20) == fsl
    assert read_acquisition(str(BVAL), delta=5, Delta=20, echo_time=25) == fsl
    scheme = read_camino(DATA / "stejskal_tanner.scheme")
    assert read_acquisition(DATA / "stejskal_tanner.scheme") == scheme
    shutil.copy(DATA / "stejskal_tanner.scheme", copy / "protocol.txt")
    assert read_acquisition(copy / "protocol.txt") == scheme  # by what it says


def test_read_acquisition_refuses(copy, table):
    write_acquisition(copy / "t.csv", table)
    refuses(read_acquisition, copy / "t.csv", delta=5,
            match="delta: given, but the file has such a column")
    refuses(
        read_acquisition, copy / "none.txt",
        match="suffix '.txt', expected .csv, .npz, .scheme, .seq, .bval or .json",
    )  # fmt: skip
    refuses(read_acquisition, copy / "none.scheme", match="none.scheme: there is no such file")
    refuses(read_acquisition, copy / "none.bval", delta=5, Delta=20, match="there is no such file")


def test_times_in_tables_are_kept_to_the_bit(tmp_path):
    table = Acquisition.product(
        [TrapezoidPGSE(5, 20, 1 / 3), CosOGSE(1 / 3, 0.7, 3)], [0, 1e3 / 7], 3
    )
    for name in ("t.csv", "t.npz"):
        write_acquisition(tmp_path / name, table)
        assert read_acquisition(tmp_path / name) == table
