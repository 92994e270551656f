"""The report on all folds as a record: what versions wrote is read, what is wrong is one line, whose report it is."""

import io
import itertools
import json
import math
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from engine.runs.folder import RunFolder
from engine.runs.records.folds_report import VERSION, FoldResult, FoldsReport
from engine.runs.records.record import NewerVersion
from engine.train.folds_report import read_report, together
from engine.train.report import print_folds
from models.settings import UserError
from tests.engine.fold_runs import settings_of
from tests.paths import ROOT
from tests.results import results_of

FIRST = json.loads((ROOT / "tests" / "golden" / "runs_0_1" / "folds" / "folds.json").read_text())
BAD = ("gone", None, "x", "", -1, 0, True, [], {}, [1], {"a": 1}, 10**30, 1.5, -0.5, math.nan, math.inf)


def made(correct: int = 1, size: int = 49, **fields):
    """Three folds with as many images of the first class right, and one image of the second."""
    runs = [
        results_of(
            test_images=size + 1,
            test_metrics={"top1": (correct + 1) / (size + 1), "top5": 1.0, "balanced_accuracy": 0.5},
            class_accuracy={"a": correct / size, "b": 1.0},
            class_images={"a": size, "b": 1},
            fold=number,
            **fields,
        )
        for number in range(3)
    ]
    return together(settings_of({}), runs)


def test_every_field_is_described():
    assert all(field.description for field in FoldsReport.model_fields.values())


def test_the_first_version_is_read_and_printed(capsys):
    report = FoldsReport.from_json(FIRST)
    assert (report.version, report.folds, report.metric, report.selecting) == (1, 2, "top1", "top1")
    assert report.spread.pooled.correct == 320 and report.spread.unseen.interval == (0.0, 0.9594467682213534)
    first = report.fold[0]
    assert (first.test_score, first.val_score) == (0.25730180740356445, 0.24285714328289032)
    assert first.test_balanced_accuracy is None and report.class_scores is None and not report.unequal
    assert report.class_accuracy["4"] == 0.9172413793103448 and report.confusion["0"]["4"] == 101
    written = report.to_json()
    assert {key: written[key] for key in FIRST if key != "fold"} == {k: v for k, v in FIRST.items() if k != "fold"}
    assert all(written["fold"][i][key] == value for i in (0, 1) for key, value in FIRST["fold"][i].items())
    print_folds(report, Path("runs/folds"))
    assert "0 as 4 101, 4 as 0 1\n" in capsys.readouterr().out


def test_it_reads_what_it_wrote(tmp_path):
    report = made(selected_by="balanced_accuracy", val_score=0.75)
    RunFolder(tmp_path).write_folds_report(report)
    assert RunFolder(tmp_path).read_folds_report() == report
    written = json.loads((tmp_path / "folds.json").read_text())
    assert written["version"] == VERSION and written["images"] == 150 and written["class_images"] == {"a": 147, "b": 3}
    assert [fold["val_balanced_accuracy"] for fold in written["fold"]] == [0.75] * 3
    assert RunFolder(tmp_path / "none").read_folds_report() is None


def test_a_report_is_on_its_results_in_spite_of_rounding(tmp_path, caplog):
    """The mean of three times 15 / 22 is not 15 / 22 in floating point."""
    run, expected = RunFolder(tmp_path), made(15, 22)
    accuracy = {"a": 45 / 66, "b": 1.0}
    assert expected.class_accuracy != accuracy and expected.class_accuracy == pytest.approx(accuracy)
    counted = {"class_accuracy": accuracy, "confusion": {}, "confused": []}
    run.write_folds_report(expected.model_copy(update=counted))
    assert read_report(run, expected) == expected.model_copy(update=counted) and caplog.text == ""
    assert read_report(run, made(14, 22)) is None
    assert "not the report on the results of these folds; it is written again" in caplog.text


def test_of_a_newer_version_it_is_not_written_over(tmp_path):
    run, report = RunFolder(tmp_path), made()
    run.write_folds_report(report.model_copy(update={"version": VERSION + 1}))
    with pytest.raises(NewerVersion, match=r"folds.json: version = 3: this code reads versions 1 to 2; update"):
        read_report(run, report)


@pytest.mark.parametrize("part", ["report", "fold"])
def test_any_wrong_value_is_one_line_or_a_report(part):
    whole = FoldsReport.from_json(made().to_json()).to_json()
    for base in (FIRST, {**whole, "confused": [], "confusion": {}}):
        for key, value in itertools.product(base if part == "report" else base["fold"][0], BAD):
            values = json.loads(json.dumps(base))
            place = values if part == "report" else values["fold"][0]
            place[key] = value
            if value == "gone":
                del place[key]
            try:
                report = FoldsReport.from_json(values)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 200, (key, value)
                continue
            with redirect_stdout(io.StringIO()):
                print_folds(report, Path("runs/folds"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fold": None}, "fold: input should be a valid list, not None"),
        ({"mean": "x"}, "spread.mean: input should be a valid number, not 'x'"),
        ({"folds": 3}, "folds = 3: there are 2 in `fold`"),
        ({"metric": "auc"}, "metric = 'auc': unknown"),
        ({"class_images": {"x": 1}}, "class_images: not of the classes that have scores"),
    ],
)
def test_wrong_values_are_named(tmp_path, change, says):
    file = tmp_path / "folds.json"
    file.write_text(json.dumps({**FIRST, **change}))
    with pytest.raises(UserError, match=says) as error:
        RunFolder(tmp_path).read_folds_report()
    assert str(error.value).startswith(f"{file}: ") and "delete it and make it again with --resume" in str(error.value)


def test_a_fold_has_the_fields_of_its_results_under_their_names():
    own = {"images", "test_score", "test_balanced_accuracy"}
    assert set(FoldResult.model_fields) - own <= set(results_of().model_dump())
