"""`Results`: one record for what every version of the code wrote."""

import pytest
from pydantic import ValidationError

from engine.runs.results import VERSION, Results
from models.settings import UserError
from tests.results import FIRST_VERSION as FIRST
from tests.results import results_of


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
