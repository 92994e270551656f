"""Counts and scores of segmentation, beside literal computations and torchmetrics'."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from engine.measure.segmentation import class_ious, mean_iou, paired_images, pixel_accuracy, pixel_counts

K = 6


@pytest.fixture
def pixels():
    """Predictions and masks of five images. Class 4 is predicted and never labelled, 3 and 5 are neither."""
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randint(0, 4, (5, 9, 7), generator=generator)
    predicted[predicted == 3] = 4
    masks = torch.randint(0, 3, (5, 9, 7), generator=generator).byte()
    masks[0, :4] = 255
    masks[3] = 255
    return predicted, masks


def literal_ious(predicted, masks):
    """By sets of pixels, for the classes that have any."""
    flat = [(a, b) for a, b in zip(predicted.flatten().tolist(), masks.flatten().tolist(), strict=True) if b != 255]
    ious = {}
    for number in range(K):
        guess, truth = ({i for i, pair in enumerate(flat) if pair[side] == number} for side in (0, 1))
        if guess | truth:
            ious[number] = len(guess & truth) / len(guess | truth)
    return ious


def test_scores_are_those_of_a_literal_computation_and_of_torchmetrics(pixels):
    counts = pixel_counts(*pixels, K).numpy()
    expected = literal_ious(*pixels)
    assert counts.shape == (5, 3, K) and expected.keys() == {0, 1, 2, 4} and expected[4] == 0
    total = counts.sum(0)
    assert {k: v for k, v in enumerate(class_ious(total).tolist()) if v == v} == pytest.approx(expected)
    assert mean_iou(total) == pytest.approx(np.mean(list(expected.values())))
    theirs = MulticlassJaccardIndex(K, ignore_index=255)(pixels[0], pixels[1].long())
    assert mean_iou(total) == pytest.approx(theirs.item(), rel=1e-6)
    kept = pixels[1] != 255
    assert pixel_accuracy(total) == pytest.approx((pixels[0] == pixels[1])[kept].double().mean().item())


def test_images_are_counted_apart(pixels):
    counts = pixel_counts(*pixels, K)
    assert counts[3].sum() == 0 and counts[0, 2].sum() == 9 * 7 - 4 * 7
    for number in range(5):
        alone = pixel_counts(pixels[0][number : number + 1], pixels[1][number : number + 1], K)
        assert torch.equal(alone[0], counts[number])


def test_the_bootstrap_is_over_images():
    """Beside a loop that draws images one by one: other draws, nearly the same interval."""
    generator = np.random.default_rng(1)
    right = generator.integers(0, 50, (2, 12, 1, 3))
    more = generator.integers(0, 50, (2, 12, 2, 3))
    a, b = np.concatenate([right, right + more], axis=2)  # (12, 3, 3) each: right <= predicted, labelled
    found = paired_images(mean_iou, a, b)
    assert found.mean == pytest.approx(mean_iou(a.sum(0)) - mean_iou(b.sum(0))) and found.n == 12
    drawn = [generator.integers(0, 12, 12) for _ in range(4000)]
    literal = [mean_iou(a[rows].sum(0)) - mean_iou(b[rows].sum(0)) for rows in drawn]
    assert [found.low, found.high] == pytest.approx(np.quantile(literal, [0.025, 0.975]), abs=0.01)
    assert found.low < found.mean < found.high
    again = paired_images(mean_iou, a, b)
    assert (again.low, again.high) == (found.low, found.high)


def test_what_is_equal_in_all_images_has_no_spread():
    a = np.tile(np.array([[[4, 2], [5, 4], [6, 3]]]), (7, 1, 1))
    b = np.tile(np.array([[[3, 2], [5, 4], [6, 3]]]), (7, 1, 1))
    difference = paired_images(pixel_accuracy, a, b)
    assert difference.low == pytest.approx(difference.high) == pytest.approx(difference.mean) == pytest.approx(1 / 9)
    assert paired_images(mean_iou, a, a).mean == 0
