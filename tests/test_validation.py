"""Both engines against independent reference values: parts of ``spinverse validate``.

``spinverse validate -o DIR`` is the whole of it; what takes longer than some seconds is slow here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import islice

import numpy as np
import pytest

from spinverse import Acquisition, InputError
from spinverse.validation import (
    FAMILIES,
    Row,
    Settings,
    analytic,
    choose_families,
    validate,
    verdicts,
)
from spinverse.validation import table as table_module
from spinverse.validation.convergence import agreement_rows, order_rows, tolerance_rows
from spinverse.validation.facts import (
    effective_rows,
    exchange_rows,
    layer_rows,
    narrowing_rows,
    short_time_rows,
)
from spinverse.validation.published import (
    karger,
    karger_rows,
    misst_rows,
    square_array,
    tortuosity_rows,
)
from spinverse.validation.references import MISST, MISST_B, MISST_ERROR, by_tissue, cases, data
from spinverse.validation.rows import MET, MISSED, SHOWN, WITHIN
from spinverse.validation.signals import tissue_rows

MODES = Settings(engine="matrix_formalism")
BOTH = Settings()


def check(rows, worst: float | None = None) -> list[Row]:
    """Every row meets its target, and ``worst`` where that is tighter."""
    rows = list(rows)
    assert rows
    for row in rows:
        assert row.verdict == MET, f"{row.case} {row.method}: {row.ours} against {row.reference}"
        assert worst is None or row.error <= worst, f"{row.case} {row.method}: {row.error}"
    return rows


# --- the references ------------------------------------------------------------------------------

def test_every_case_of_the_file_is_there():
    assert len(cases()) == len(data()["cases"]) == 104
    assert {case.family for case in cases()} == set("1234567")
    assert sum(len(group) for f in "1234567" for group in by_tissue(f).values()) == 104


@pytest.mark.parametrize("entry, case", [*zip(data()["cases"], cases(), strict=True)],
                         ids=lambda item: getattr(item, "name", ""))
def test_units_of_the_file(entry, case):
    """q of the file, rad/(um us), is the gradient that b asks for."""
    table = Acquisition.product(case.waveform, case.b, case.directions[:1])
    np.testing.assert_allclose(table.strength * 1e-3, entry["q"], rtol=1e-9)


# --- families 1 to 7 -----------------------------------------------------------------------------

@pytest.mark.parametrize("family", ["1", "2", "5"])
def test_stacks(family):
    rows = check(validate([family], BOTH), 4e-4)
    assert len(rows) == 2 * len(cases(family))
    # modes and steps may leave 1e-4 each
    assert all(row.difference <= 2e-4 for row in rows if row.method == "time_stepping")


@pytest.mark.parametrize("name", by_tissue("1"))
def test_stacks_refined(name):
    check(tissue_rows(by_tissue("1")[name], "refined", BOTH), 2e-5)


@pytest.mark.mpi
def test_stacks_on_any_number_of_ranks():
    rows = check(tissue_rows(by_tissue("2")["stack2x5_k0.0001"], "default", BOTH))
    assert rows[0].ours == pytest.approx(rows[0].reference, abs=3e-4)


@pytest.mark.parametrize("name", ["disk5", "sphere5"])
def test_disk_and_sphere(name):
    check(tissue_rows(by_tissue("3")[name], "default", MODES), 6e-4)


@pytest.mark.parametrize("name", [
    "cyl2_3_6_k0.0001", "sphere2_3_6_k0.0001_T2_40_80",
    pytest.param("sphere2_3_6_k1e-05", marks=pytest.mark.slow),
    pytest.param("sphere2_3_6_k0.0001", marks=pytest.mark.slow)])
def test_two_layers(name):
    check(tissue_rows(by_tissue("4")[name], "default", MODES), 5e-4)


@pytest.mark.parametrize("name", by_tissue("7"))
def test_other_waveforms(name):
    check(tissue_rows(by_tissue("7")[name], "default", MODES), 4e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", by_tissue("6"))
def test_cells_in_a_cube(name):
    """The sphere's reference is a random walk: its two standard deviations come on top."""
    rows = list(tissue_rows(by_tissue("6")[name], "default", MODES))
    assert all(row.verdict in (MET, WITHIN) for row in rows)
    assert {row.verdict for row in rows} == {MET} or name.startswith("sphere")


@pytest.mark.slow
def test_time_steps_in_two_and_three_dimensions():
    check(validate(["3"], Settings(engine="time_stepping")), 6e-4)


# --- exchange, layers, limits --------------------------------------------------------------------

def test_slowest_exchange():
    assert len(check(exchange_rows(MODES), 1e-4)) == 3


def test_published_layers():
    """Unequal slabs against the layer solver, then the published disks."""
    slab, *disks = islice(layer_rows(MODES), 3)
    check([slab], 5e-4)
    check(disks)
    assert all(len(row.at) == 10 for row in disks)


@pytest.mark.slow
def test_published_layers_of_spheres():
    check(layer_rows(MODES))


def test_motional_narrowing():
    check(islice(narrowing_rows(BOTH), 4))


def test_short_times():
    check(islice(short_time_rows(MODES), 2), 1e-5)


def test_effective_medium():
    row = next(effective_rows(MODES))
    check([row])
    assert row.ours[-1] == pytest.approx(1 / (1 / 2.0 + 1 / (0.1 * 2.0)), rel=1e-3)


# --- what others publish -------------------------------------------------------------------------

def test_signals_of_misst():
    """Within what its discrete gradients are off the exact values."""
    for (geometry, delta), published in MISST.items():
        shape = analytic.cylinder if geometry == "disk" else analytic.sphere
        exact = shape(MISST_B, delta, 40.0, 5.0)
        assert np.abs(exact - published).max() < MISST_ERROR
    rows = list(islice(misst_rows(MODES), 2))
    assert {row.verdict for row in rows} <= {MET, WITHIN}


def test_tortuosity_of_a_square_array():
    """Of few cylinders Maxwell's formula is exact: D = (1 - f) / (1 - f) / (1 + f)."""
    assert square_array(1e-3) == pytest.approx(1 / (1 + 1e-3), rel=1e-9)
    check(islice(tortuosity_rows(MODES), 1))


def test_kargers_model_at_its_ends():
    inside, outside = np.array([0.8, 0.5]), np.array([0.3, 0.02])
    apart = karger(inside, outside, 0.3, 0.0, 20.0)
    assert np.allclose(apart, 0.3 * inside + 0.7 * outside)
    mixed = karger(inside, outside, 0.3, 1e4, 20.0)
    assert np.allclose(mixed, inside**0.3 * outside**0.7, rtol=1e-4)


@pytest.mark.slow
def test_packed_spheres_beside_kargers_model():
    rows = check(karger_rows(MODES))
    assert rows[0].error < rows[1].error < rows[2].error


def test_b_values():
    assert len(check(validate(["b_values"]), 1e-12)) == len(data()["bvalue_checks"])


# --- convergence ---------------------------------------------------------------------------------

def test_orders_on_the_line():
    rows = check(islice(order_rows(MODES), 4))
    assert [round(row.order) for row in rows] == [2, 4, 2, 4]
    assert all(a > b for row in rows for a, b in zip(row.ours, row.ours[1:], strict=False))


@pytest.mark.slow
def test_orders_of_disk_and_sphere():
    check(list(order_rows(MODES))[4:])


def test_order_in_the_time_step():
    row = next(order_rows(Settings(engine="time_stepping")))
    check([row])
    assert row.order == pytest.approx(2, abs=0.1)


def test_engines_agree():
    rows = check(islice(agreement_rows(BOTH), 3), 1e-5)
    assert all(row.difference == row.error for row in rows)


def test_automatic_choices_reach_the_tolerance():
    rows = check(islice(tolerance_rows(BOTH), 6))
    assert [row.target for row in rows] == 2 * [1e-3, 1e-4, 1e-5]
    assert all(row.estimated_error <= row.target for row in rows)


# --- rows, verdicts, the table -------------------------------------------------------------------

ROW = Row("1", "one", "default", "matrix_formalism", ("b = 1", "b = 2"), (0.5, 0.3), (0.5, 0.302),
          target=1e-3)


@pytest.mark.parametrize("changes, expected", [
    ({}, MISSED),
    ({"target": 3e-3}, MET),
    ({"uncertainty": (0.0, 1.5e-3)}, WITHIN),
    ({"uncertainty": (1.5e-3, 0.0)}, MISSED),
    ({"target": math.nan}, SHOWN),
    ({"relative": True, "target": 6e-3}, MISSED),
    ({"relative": True, "target": 7e-3}, MET),
    ({"order": 1.95, "least_order": 1.9}, MET),
    ({"order": 1.85, "least_order": 1.9}, MISSED),
    ({"ours": (0.5, math.nan), "target": 1.0}, MISSED),
    ({"order": math.nan, "least_order": 1.9}, MISSED),
])
def test_verdict_of_a_row(changes, expected):
    assert dataclasses.replace(ROW, **changes).verdict == expected


def test_verdict_of_a_family():
    good = dataclasses.replace(ROW, case="good", target=1e-2, seconds=1.0)
    bad, other = dataclasses.replace(ROW, seconds=2.0), dataclasses.replace(ROW, level="refined")
    first, second = verdicts([good, bad, bad, other])
    assert (first.missed, first.passed, first.seconds) == (("one",), False, 5.0)
    assert first.worst == bad and "MISSED: one" in first.describe()
    assert second.level == "refined" and not second.passed
    assert verdicts([good])[0].passed


def test_table_files(tmp_path):
    order = dataclasses.replace(ROW, case="order", order=2.01, least_order=1.9)
    table_module.write(tmp_path, [ROW, order])
    saved = json.loads((tmp_path / "table.json").read_text())
    assert [row["verdict"] for row in saved["rows"]] == [MISSED, MET]
    assert saved["rows"][0]["estimated_error"] is None
    text = (tmp_path / "table.md").read_text()
    assert "| one | default | modes |" in text and "MISSED" in text and "2.01" in text
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2 and lines[0].startswith("family,case,level,method,at,ours")


def test_unknown_family():
    with pytest.raises(InputError, match="families: 'eight', expected some of 1, 2"):
        validate(["1", "eight"])
    assert [family.name for family in choose_families(["5", "1"])] == ["1", "5"]
    assert choose_families() == list(FAMILIES)
