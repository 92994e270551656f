"""The worst class, the mean over classes, and what a report says about them."""

import pytest

from engine.runs.records.class_scores import ClassScores, classes_to_json, pooled_scores
from engine.tasks import MANY_LABELS, ONE_LABEL

NAMES = ["mole", "scar", "skin"]


def test_lines():
    scores = ClassScores([0.25, None, 1.0], [4, 0, 1900])
    assert scores.lines(ONE_LABEL, NAMES) == [
        "balanced        62.50 %  (balanced accuracy: the mean over 2 classes of 4 to 1900 images)",
        "worst class     mole 25.00 %  (4 images)",
        "not measured    scar  (no test images)",
    ]
    assert scores.lines(ONE_LABEL, NAMES, worst=False) == [
        line for line in scores.lines(ONE_LABEL, NAMES) if "worst" not in line
    ]
    assert scores.untested_lines(NAMES, "val") == ["not measured    scar  (no val images)"]
    one = ClassScores([0.5, 0.25, 1.0], [4, 1, 19])
    assert one.lines(MANY_LABELS, NAMES) == ["worst label     scar 25.00 %  (average precision; 1 image)"]
    assert one.untested_lines(NAMES) == []


def test_of_equal_scores_that_of_more_images_is_worst():
    assert ClassScores([0.0, 0.0, 1.0], [1, 5, 9]).worst == 1
    assert ClassScores([0.0, 0.0, 1.0], [5, 5, 9]).worst == 0


def test_several_parts_together_are_all_their_images():
    first, second = ClassScores([0.5, None, 1.0], [2, 0, 10]), ClassScores([1.0, 0.25, 0.5], [1, 4, 10])
    together = pooled_scores([first, second])
    assert together.images == [3, 4, 20]
    assert together.scores == pytest.approx([2 / 3, 1 / 4, 15 / 20])
    assert pooled_scores([ClassScores([None], [0])] * 2) == ClassScores([None], [0])


def test_in_json():
    written = classes_to_json(ClassScores([0.25, None, 1.0], [4, 0, 19]), ONE_LABEL, NAMES)
    assert written == {
        "balanced_accuracy": 0.625,
        "class_accuracy": {"mole": 0.25, "scar": None, "skin": 1.0},
        "class_images": {"mole": 4, "scar": 0, "skin": 19},
        "worst_class": "mole",
        "worst_class_score": 0.25,
        "worst_class_images": 4,
    }
    many = classes_to_json(ClassScores([0.25, None, 1.0], [4, 0, 19]), MANY_LABELS, NAMES)
    assert "balanced_accuracy" not in many and many["label_precision"]["mole"] == 0.25
    assert classes_to_json(None, ONE_LABEL, NAMES) == {}
