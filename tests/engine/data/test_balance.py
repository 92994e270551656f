"""When classes are unequal, and what is said about it."""

import pytest

from engine.data.balance import advice, are_unequal, unequal_text
from engine.tasks import MANY_LABELS, ONE_LABEL
from tests.engine.test_tasks import LEVELS


@pytest.mark.parametrize(
    ("images", "unequal"),
    [([95, 5], True), ([3, 2], False), ([31, 20], True), ([30, 20], False), ([7, 0, 7], False), ([0, 0], False)],
)
def test_the_largest_class_has_more_than_one_and_a_half_times_the_images_of_the_smallest(images, unequal):
    assert are_unequal(images) is unequal
    assert bool(unequal_text(images, ONE_LABEL)) is unequal


def test_one_unequal_part_suffices():
    assert are_unequal([5, 5], [95, 5]) and are_unequal([95, 5], []) and not are_unequal([5, 5], [95, 95], [])


def test_what_is_said():
    assert unequal_text([95, 5, 0], ONE_LABEL) == "classes are unequal: 5 to 95 training images"
    assert unequal_text([95, 5], MANY_LABELS) == "labels are unequal: 5 to 95 training images"
    assert advice(ONE_LABEL) == (
        "look at balanced accuracy and at the worst class; train.class_weights=balanced or train.sampling=balanced "
        "makes rare ones count more"
    )
    assert "sampling" not in advice(MANY_LABELS) and "train.class_weights=balanced makes" in advice(MANY_LABELS)
    assert advice(LEVELS) == "", "of labels that have no such remedy"
