"""Balanced accuracy and the score of each class, against numbers by hand and scikit-learn's."""

import warnings

import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, recall_score
from torch.nn import functional as F

from engine.measure.evaluate import evaluate_logits
from engine.tasks import MANY_LABELS, ONE_LABEL


def test_a_model_that_always_says_the_common_class():
    """96 % of 100 images are right, and one class scores 0."""
    labels = torch.tensor([0] * 95 + [1] * 5)
    logits = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    logits[99] = torch.tensor([0.0, 1.0])
    found = evaluate_logits(logits, labels, ONE_LABEL)
    assert found.metrics["top1"] == pytest.approx(0.96)
    assert found.metrics["balanced_accuracy"] == (1 + 0.2) / 2
    assert (found.classes.scores, found.classes.images, found.classes.worst) == ([1.0, 0.2], [95, 5], 1)
    found = evaluate_logits(logits[:99], labels[:99], ONE_LABEL)
    assert found.metrics["balanced_accuracy"] == 0.5 and found.classes.scores == [1.0, 0.0]


@pytest.mark.parametrize("seed", range(8))
def test_it_is_scikit_learn_s(seed):
    """Also where a class is predicted that no image has, and where images come in batches."""
    rng = torch.Generator().manual_seed(seed)
    classes = 2 + seed
    labels = torch.randint(0, max(1, classes - seed % 2), (60,), generator=rng)
    logits = torch.randn(60, classes, generator=rng) + 2 * F.one_hot(labels, classes)
    found = evaluate_logits(logits, labels, ONE_LABEL)
    predicted = logits.argmax(dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class that is predicted and does not occur
        assert found.metrics["balanced_accuracy"] == pytest.approx(
            balanced_accuracy_score(labels, predicted), abs=1e-12
        )
        recalls = recall_score(labels, predicted, labels=range(classes), average=None, zero_division=0)
    for score, images, recall, label in zip(found.classes.scores, found.classes.images, recalls, range(classes)):
        assert images == (labels == label).sum()
        assert score == (pytest.approx(recall) if images else None)


def test_each_label_has_its_average_precision():
    rng = torch.Generator().manual_seed(0)
    truth = (torch.rand(50, 3, generator=rng) < 0.3).float()
    truth[:, 2] = 0
    logits = torch.randn(50, 3, generator=rng) + truth
    found = evaluate_logits(logits, truth, MANY_LABELS)
    scores = [average_precision_score(truth[:, label], logits[:, label]) for label in (0, 1)]
    assert found.classes.scores == [pytest.approx(scores[0], abs=1e-6), pytest.approx(scores[1], abs=1e-6), None]
    assert found.classes.images == truth.sum(0).tolist()
    assert found.metrics["map"] == pytest.approx(sum(scores) / 2, abs=1e-6)
