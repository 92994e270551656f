"""The table, zeroshot.json and predictions.npz say the same, and their statistics are those of other libraries."""

import json

import numpy as np
import pytest
import torch
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from engine.study.zeroshot.evaluate import evaluate_rows
from engine.study.zeroshot.images import LabelledImages
from engine.study.zeroshot.report import compared, earlier_times, table, write_outputs
from engine.study.zeroshot.rows import ZeroshotRow
from engine.study.zeroshot.timing import time_rows

N = 200


def made_up(seed=0, flips=(0, 5, 40)):
    """Images with targets, and rows that differ from the first in so many predictions."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 10, N)
    first = np.where(rng.random(N) < 0.7, targets, (targets + 1) % 10)
    rows = []
    for number, count in enumerate(flips):
        predicted = first.copy()
        where = rng.choice(N, count, replace=False)
        predicted[where] = (predicted[where] + rng.integers(1, 3, count)) % 10
        rows.append(
            ZeroshotRow(
                key=str(number),
                name="unmerged" if not number else f"tome, r = {number}",
                method="tome" if number else None,
                budget=f"r = {number}" if number else None,
                merge={"r": number} if number else None,
                removed=[number] * 3,
                gmacs=2.0 / (number + 1),
                params=7,
                predicted=predicted.tolist(),
                seconds=1.0,
                commit=None,
            )
        )
    images = LabelledImages([], torch.from_numpy(targets), tuple(map(str, range(N))), (), (), "x")
    return images, rows


def test_statistics_equal_statsmodels():
    images, rows = made_up(flips=(0, 5, 40, 80))
    right = [row.predictions == images.targets.numpy() for row in rows]
    tables = [
        [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]] for b in right[1:] for a in right[:1]
    ]
    expected = multipletests([mcnemar(counts, exact=True).pvalue for counts in tables], method="holm")[1]
    answer = compared(images, rows)
    assert [row.p for row in answer[1:]] == pytest.approx(expected)
    assert answer[0].p is answer[0].difference is answer[0].agreement is None
    for row, ours in zip(answer, right, strict=True):
        assert row.accuracy == ours.mean() and row.interval[0] <= row.accuracy <= row.interval[1]
    for row, ours, count in zip(answer[1:], right[1:], (5, 40, 80), strict=True):
        assert row.difference.mean == pytest.approx(ours.mean() - right[0].mean())
        assert row.agreement == 1 - count / N
        assert row.difference.low <= row.difference.mean <= row.difference.high


def test_table_json_and_predictions_agree(load, tmp_path):
    images, rows = made_up()
    times = {row.name: [4.0 / (number + 1), 6.0 / (number + 1)] for number, row in enumerate(rows)}
    answer = compared(images, rows, times)
    write_outputs(tmp_path, load(), images, answer)
    record = json.loads((tmp_path / "zeroshot.json").read_text())
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as arrays:
        predicted, targets, names = arrays["predicted"], arrays["targets"], arrays["rows"]
    assert list(names) == [row["name"] for row in record["rows"]] and record["images"] == N
    titles, cells = table(answer)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 2 + len(rows) and all(len(row) == len(titles) for row in cells)
    for row, line, guess, text in zip(record["rows"], cells, predicted, lines[2:], strict=True):
        shown = dict(zip([column.title for column in titles], line, strict=True))
        assert row["top1"] == (guess == targets).mean() and shown["top-1, %"] == f"{100 * row['top1']:.2f}"
        assert shown["GMACs"] == f"{row['gmacs']:.4f}" and all(cell in text for cell in line)
        if row["method"]:
            assert row["agreement"] == (guess == predicted[0]).mean()
            assert shown["agreement, %"] == f"{100 * row['agreement']:.2f}"
            gain = np.median(record["rows"][0]["ms_per_image"]) / np.median(row["ms_per_image"])
            ratio = record["rows"][0]["gmacs"] / row["gmacs"]
            assert shown["images/s"] == f"{1e3 / np.median(row['ms_per_image']):.1f}"
            assert shown["speed-up"] == f"{gain:.3f}" and shown["over MAC ratio"] == f"{gain / ratio:.3f}"
    assert [row["line"] for row in record["rows"]] == ["unmerged", "tome", "tome"]


def test_times_outlast_a_run_that_measures_none(load, tmp_path):
    images, rows = made_up()
    assert earlier_times(tmp_path, rows) == {}
    times = {row.name: [4.0, 6.0] for row in rows[:2]}
    write_outputs(tmp_path, load(), images, compared(images, rows, times))
    renamed = [rows[0], rows[2], rows[1].model_copy(update={"name": "renamed"})]
    assert earlier_times(tmp_path, renamed) == {"unmerged": [4.0, 6.0], "renamed": [4.0, 6.0]}
    (tmp_path / "zeroshot.json").write_text("{")
    assert earlier_times(tmp_path, rows) == {}


def test_without_times_there_are_no_columns_of_times():
    titles, _ = table(compared(*made_up()))
    assert not any("ms" in column.title or "speed" in column.title for column in titles)


def test_timing_takes_every_row_in_every_round(load, tmp_path):
    settings = load("budgets=[{target_ratio: 1.2}]")
    images, rows = evaluate_rows(settings, tmp_path, report=lambda line: None)
    times = time_rows(settings, images, rows, rounds=3)
    assert {name: len(values) for name, values in times.items()} == {row.name: 3 for row in rows}
    assert all(value > 0 for values in times.values() for value in values)
