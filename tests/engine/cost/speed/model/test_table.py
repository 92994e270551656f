"""Everything that a table says is computed from the times of the rounds, checked on made-up rows."""

import numpy as np
import pytest

from engine.cost.speed.model.benchmark import Row
from engine.cost.speed.model.table import failures, gains, mac_ratio, quotient, share, table
from engine.cost.speed.model.variants import Variant

DRAW = np.random.default_rng(0)


def row(method, batch=8, runtime="eager", gmacs=2.0, failed=None, **values):
    made = Row(Variant(method, "forward", batch, runtime, "fp32", "auto"), "cpu", gmacs, "fused", failed=failed)
    made.ms = [] if failed else list(DRAW.uniform(5, 20, 7))
    for key, value in values.items():
        setattr(made, key, value)
    return made.record()


ROWS = [
    row("unmerged", gmacs=3.0),
    row("tome", merging_ms=[1.0, 3.0, 2.0], clocked_ms=[10.0, 10.0, 10.0], peak_mib=512.3),
    row("unmerged", batch=1, gmacs=3.0),
    row("tome", batch=1),
    row("unmerged", runtime="onnx", gmacs=3.0, failed="no operator"),
    row("tome", runtime="onnx"),
    row("dpc_knn", runtime="compiled"),
    row("pitome", gmacs=None),
]


def test_the_speed_up_is_over_the_unmerged_model_under_the_same_conditions():
    for merged, unmerged in ((ROWS[1], ROWS[0]), (ROWS[3], ROWS[2])):
        wanted = np.array(unmerged["ms"]) / np.array(merged["ms"])
        np.testing.assert_allclose(gains(merged, ROWS), wanted)
        assert mac_ratio(merged, ROWS) == 1.5
        assert quotient(merged, ROWS) == pytest.approx(np.median(wanted) / 1.5)


def test_what_is_not_known_is_not_computed():
    for one in (ROWS[0], ROWS[4], ROWS[5], ROWS[6]):
        assert gains(one, ROWS) == [] and quotient(one, ROWS) is None
    assert mac_ratio(ROWS[5], ROWS) == 1.5  # the MACs of a model that was not timed are known
    assert mac_ratio(ROWS[7], ROWS) is None and gains(ROWS[7], ROWS) and quotient(ROWS[7], ROWS) is None
    assert share(ROWS[1]) == pytest.approx(0.2) and share(ROWS[3]) is None


def test_the_cells():
    columns, cells = table(ROWS)
    printed = [dict(zip([column.title for column in columns], line, strict=True)) for line in cells]
    assert len(printed) == len(ROWS)
    for one, shown in zip(ROWS, printed, strict=True):
        for key, title in (("method", "method"), ("runtime", "runtime"), ("attention", "attention")):
            assert shown[title] == one[key]
        assert (shown["device"], shown["precision"], shown["step"]) == ("cpu", "fp32", "forward")
        if one["failed"]:
            assert shown["ms (min to max)"] == shown["images/s"] == "-"
            continue
        median, low, high = np.median(one["ms"]), min(one["ms"]), max(one["ms"])
        assert shown["ms (min to max)"] == f"{median:.2f} ({low:.2f} to {high:.2f})"
        assert float(shown["images/s"]) == pytest.approx(1000 * one["batch_size"] / median, abs=0.06)
        assert float(shown["steps/s"]) == pytest.approx(1000 / median, abs=0.06)
    assert (
        printed[1]["peak MiB"] == "512" and printed[1]["merging, %"] == "20.00" and printed[7]["GMACs"] == "not counted"
    )
    assert printed[1]["speed-up over MAC ratio"] == f"{quotient(ROWS[1], ROWS):.3f}"


def test_columns_without_a_number_are_left_out():
    titles = [column.title for column in table(ROWS[:1])[0]]
    assert titles[-3:] == ["images/s", "steps/s", "GMACs"]


def test_a_row_that_was_not_timed_says_why():
    [line] = failures(ROWS)
    assert line == "not timed: unmerged, forward, 8, onnx, fp32, auto: no operator"
    [line] = failures([row("tome", peak_failed="no room")])
    assert line == "memory not measured: tome, forward, 8, eager, fp32, auto: no room"
