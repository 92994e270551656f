"""Comparing finished runs: grouping, averaging, the cells of the table, and what is refused."""

import shutil
from functools import partial

import pytest

from engine.measure.metrics import METRICS
from engine.runs.folder import RunFolder
from engine.runs.records.results import Results
from engine.study.compare.outputs import table
from engine.study.compare.runs import points_of_runs
from engine.study.table import COLUMNS, ResultColumn, Row, compare, number, percent
from models.settings import UserError
from tests.engine.study.run_folders import write_run
from tests.results import results_of


@pytest.fixture
def make_run(tmp_path):
    """Writes a finished run folder; see `write_run`."""
    return partial(write_run, tmp_path)


def test_seeds_are_one_row_and_other_settings_another(make_run):
    a, b = make_run("wide_s0", 0, 0.90), make_run("wide_s1", 1, 0.94)
    c = make_run("deep", 0, 0.5, "model.depth=6")
    wide, deep = compare([a, c, b])
    assert (wide.name, wide.seeds, deep.name, deep.seeds) == ("wide", [0, 1], "deep", [0])
    assert wide.value("test_score") == pytest.approx(0.92)
    assert wide.spread("test_score") == pytest.approx(0.02 * 2**0.5)  # sample standard deviation
    assert wide.value("images_per_second") == 100.5 and deep.spread("test_score") is None


def test_columns_are_fields_of_results_or_metrics():
    fields = {*Results.model_fields, "test_score", *(f"test_{metric}" for metric in METRICS)}
    assert set(COLUMNS) <= fields


def test_a_column_is_a_line(make_run, monkeypatch):
    """For a field, and for a metric, which older runs and other tasks have not measured."""
    monkeypatch.setitem(COLUMNS, "best_step", ResultColumn("best step", number(0)))
    monkeypatch.setitem(COLUMNS, "test_macro_f1", ResultColumn("macro F1, %", percent, spread=True))
    run, other, older = make_run("a_s0", 0, 0.90), make_run("a_s1", 1, 0.94), make_run("older", 0, 0.5, "model.depth=6")
    for folder, score in ((run, 0.5), (other, 0.75)):
        results = RunFolder(folder).read_results()
        metrics = {**results.test_metrics, "macro_f1": score}
        RunFolder(folder).write_results(results.model_copy(update={"test_metrics": metrics, "best_step": 40}))
    columns, (cells, of_older) = table(points_of_runs([run, other, older]))
    titles = [column.title for column in columns]
    assert cells[titles.index("best step")] == "40" and cells[titles.index("macro F1, %")] == "62.50 ± 17.68"
    assert of_older[titles.index("macro F1, %")] == "-"


def test_the_worst_class_is_not_that_of_one_run_among_several():
    classes = {"class_accuracy": {"a": 1.0, "b": 0.5}, "worst_class": "b", "worst_class_score": 0.5}
    older = results_of(**classes)
    untested = results_of(**classes, test_images=0, test_metrics={"top1": None}, classes_of="val")
    assert Row([older]).worst_class == ("b", 0.5)
    assert Row([untested]).worst_class is None
    assert Row([untested, older]).worst_class is None and Row([older, untested]).worst_class is None


def test_cells(make_run):
    run, other = make_run("a_s0", 0, 0.90), make_run("a_s1", 1, 0.94)
    for folder in (run, other):
        results = RunFolder(folder).read_results()
        tiny = {"gmacs": 2.5e-5, "trained_share": 0.125, "method": "lora"}
        RunFolder(folder).write_results(results.model_copy(update=tiny))
    columns, (cells,) = table(points_of_runs([run, other]))
    row = dict(zip([column.title for column in columns], cells, strict=True))
    assert row["run"] == "a" and row["seeds"] == "2" and row["test top-1, %"] == "92.00 ± 2.83"
    assert (row["GMACs"], row["trained, %"], row["training"]) == ("0.0000250", "12.50", "lora")
    assert row["parameters, M"] == "2.000" and "saved, MiB" not in row  # which no run has


def test_multiply_adds_that_cannot_be_counted(make_run):
    run, counted = make_run("a", 0, 0.9), make_run("b", 0, 0.8, "model.depth=6")
    results = RunFolder(run).read_results()
    RunFolder(run).write_results(results.model_copy(update={"gmacs": None}))
    assert RunFolder(run).read_results().gmacs is None
    columns, cells = table(points_of_runs([run, counted]))
    at = [column.title for column in columns].index("GMACs")
    assert [row[at] for row in cells] == ["not counted", "0.5000"]


def test_what_is_refused(make_run, tmp_path):
    run = make_run("one", 0, 0.9)
    with pytest.raises(UserError, match="not a run folder"):
        compare([tmp_path])
    unfinished = make_run("unfinished", 1, 0.9)
    (unfinished / "results.json").unlink()
    with pytest.raises(UserError, match="not a finished run"):
        compare([run, unfinished])
    twin = tmp_path / "twin"
    shutil.copytree(run, twin)
    with pytest.raises(UserError, match="seed 0 of this kind is given twice"):
        compare([run, twin])
