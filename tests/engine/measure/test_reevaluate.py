"""Evaluating finished runs again: F1 at the thresholds of a run."""

import pytest
import torch
from sklearn.metrics import f1_score

from engine.measure.reevaluate import f1_at_thresholds


def test_f1_at_thresholds_is_the_mean_over_labels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 3, generator=generator)
    labels = torch.randint(0, 2, (50, 3), generator=generator).float()
    thresholds = torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    predicted = logits.sigmoid().double() >= thresholds
    expected = f1_score(labels.numpy(), predicted.numpy(), average="macro")
    assert f1_at_thresholds(logits, labels, thresholds) == pytest.approx(expected)


def test_a_threshold_is_not_rounded_onto_a_probability_below_it():
    logits = torch.zeros(2, 2)
    labels = torch.ones(2, 2)
    just_above = torch.full((2,), 0.5, dtype=torch.float64) + 1e-9  # equal to 0.5 in float32
    assert f1_at_thresholds(logits, labels, just_above) == 0
