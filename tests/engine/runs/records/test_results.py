"""`Results`: one record for what every version of the code wrote."""

import io
import itertools
import json
import math
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.runs.records.results import VERSION, Results
from engine.train.report import print_run
from models.settings import UserError
from tests.paths import ROOT
from tests.results import FIRST_VERSION as FIRST
from tests.results import results_of

RUNS = ROOT / "tests" / "golden" / "runs_0_1"


def test_a_record_of_the_first_version():
    results = Results.from_json(FIRST)
    assert (results.metric, results.method, results.fold) == ("top1", "from scratch", None)
    assert results.test_metrics == {"top1": 0.95, "top5": 1.0} and results.test_score == 0.95
    assert (results.trained_params, results.trained_share) == (12345, 1.0)  # everything was trained
    assert results.saved_mib is None and results.val_images is None and results.thresholds is None
    assert results.version == VERSION
    assert FIRST.items() <= results.to_json().items()


@pytest.mark.parametrize("metric", ["top1", "map"])
def test_what_is_written_is_read_back(metric):
    scores = {metric: 0.5, "other": 0.25}
    results = results_of(
        metric=metric, test_metrics=scores, val_score=0.75, test_interval=(0.4, 0.6), thresholds={"a": 0.5}, fold=2
    )
    assert Results.from_json(results.to_json()) == results
    assert results.to_json()[f"val_{metric}"] == 0.75


def test_without_test_images_nothing_is_measured():
    results = results_of(test_images=0, test_loss=None, test_metrics={"top1": None, "top5": None})
    assert results.test_score is None and Results.from_json(results.to_json()) == results


def test_keys_of_a_later_field_are_passed_over():
    assert Results.from_json({**FIRST, "explained": 0.5}) == Results.from_json(FIRST)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**FIRST, "version": VERSION + 1}, f"version = {VERSION + 1}: this code reads versions 1 to {VERSION}"),
        ({**FIRST, "version": "x"}, "version = 'x'"),
        ({**FIRST, "params": "many"}, "params: input should be a valid integer"),
        ({key: value for key, value in FIRST.items() if key != "gmacs"}, "gmacs: field required"),
        ({**FIRST, "metric": "auc"}, "metric = 'auc': unknown"),
        ({**FIRST, "test_top1": None}, "test_top1 = null: not measured, although there are test images"),
    ],
)
def test_records_that_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Results.from_json(values)


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError):
        results_of().seed = 1


def test_every_field_is_described():
    assert all(field.description for field in Results.model_fields.values())


BAD = ("gone", None, "x", "", -1, 0, True, [], {}, [1], {"a": 1}, 10**30, 1.5, -0.5, math.nan, math.inf)


@pytest.mark.parametrize("name", ["hybrid", "labels"])
def test_any_wrong_value_is_one_line_or_a_report(name):
    """Of runs with one label and with many, with and without test images."""
    record = json.loads((RUNS / name / "results.json").read_text())
    untested = {key: None for key in record if key.startswith("test_")} | {"test_images": 0, "classes_of": "val"}
    for whole in (record, {**record, **untested}):
        for key, value in itertools.product(whole, BAD):
            values = {**whole, key: value}
            if value == "gone":
                del values[key]
            try:
                results = Results.from_json(values)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 200, (key, value)
                continue
            with redirect_stdout(io.StringIO()):
                print_run(results, Path("run"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test_top1": 71.9}, "test_metrics.top1: must be a fraction, from 0 to 1, not 71.9"),
        ({"test_top1": 0.9}, "test_interval: does not hold test_top1 = 0.9"),
        ({"params": True}, "params: input should be a valid integer, not True"),
        ({"seconds": -1}, "seconds: must not be negative, not -1"),
        ({"metric": ["top1"]}, r"metric = \['top1'\]: unknown"),
        ({"selected_by": [1]}, r"selected_by = \[1\]: unknown"),
        ({"version": True}, "version = True"),
        ({"class_images": {"a": 1}}, "class_images: not of the classes that have scores"),
    ],
)
def test_wrong_values_are_named(change, says):
    record = json.loads((RUNS / "hybrid" / "results.json").read_text())
    with pytest.raises(UserError, match=says):
        Results.from_json({**record, **change})


def test_the_worst_class_of_a_record_that_does_not_name_it():
    results = Results.from_json({**FIRST, "class_accuracy": {"a": 1.0, "b": 0.25, "c": None}})
    assert (results.worst_class, results.worst_class_score, results.worst_class_images) == ("b", 0.25, None)
    assert results.test_metrics == {"top1": 0.95, "top5": 1.0, "balanced_accuracy": 0.625}
    assert results.class_scores is None, "the numbers of images are not known"
    assert Results.from_json(results.to_json()) == results


@pytest.mark.parametrize("images", [{"a": 3, "b": 0}, {"a": 0, "b": 0}, None])
def test_scores_and_numbers_of_images_that_do_not_fit_are_not_used(images):
    results = results_of(class_accuracy={"a": 1.0, "b": 0.5}, class_images=images)
    assert results.class_scores is None
    fitting = results_of(class_accuracy={"a": 1.0, "b": 0.5}, class_images={"b": 1, "a": 3}).class_scores
    assert (fitting.scores, fitting.images) == ([0.5, 1.0], [1, 3]), "in the order of class_images, which has the names"
