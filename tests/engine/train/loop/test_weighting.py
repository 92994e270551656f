"""Weights of classes: the numbers, the loss, and that micro-batches give what the whole batch gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F

from engine.tasks import MANY_LABELS, ONE_LABEL
from engine.train.loop.objective import Objective
from engine.train.loop.weighting import WEIGHTINGS, class_weights
from models.settings import UserError
from tests.engine.test_tasks import LEVELS

FP32 = torch.autocast("cpu", enabled=False)
LABELS = torch.tensor([0] * 95 + [1] * 5)
LOSS = WEIGHTINGS[ONE_LABEL].loss


def test_balanced_weights_are_scikit_learn_s():
    weights = class_weights("balanced", ONE_LABEL, ["skin", "mole"], LABELS)
    assert weights.tolist() == pytest.approx([100 / (2 * 95), 100 / (2 * 5)])
    labels = torch.tensor([0] * 7 + [1] * 2 + [3] * 11)
    ours = class_weights("balanced", ONE_LABEL, list("abcd"), labels)[[0, 1, 3]]
    assert ours.tolist() == pytest.approx(
        compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels.numpy()).tolist()
    )
    assert ours[labels.clamp(max=2)].mean() == pytest.approx(1.0)


def test_given_weights_count_by_their_ratios():
    names = ["skin", "mole"]
    balanced = class_weights("balanced", ONE_LABEL, names, LABELS)
    for given in ([1.0, 19.0], [0.5, 9.5], {"mole": 19.0}, {"mole": 9.5, "skin": 0.5}):
        assert class_weights(given, ONE_LABEL, names, LABELS).tolist() == pytest.approx(balanced.tolist())
    assert class_weights("none", ONE_LABEL, names, LABELS) is None


def test_many_labels_weigh_the_images_that_have_the_label():
    labels = torch.zeros(1000, 4)
    labels[:200, 0], labels[:2, 1], labels[:, 2] = 1, 1, 1
    weights = class_weights("balanced", MANY_LABELS, list("abcd"), labels)
    assert weights.tolist() == pytest.approx([800 / 200, 100, 1 / 100, 100]), "from 1/100 to 100"
    assert class_weights([2.0, 3.0, 1.0, 1.0], MANY_LABELS, list("abcd"), labels).tolist() == [2, 3, 1, 1]
    logits = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    expected = -(weights * labels * F.logsigmoid(logits) + (1 - labels) * F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(WEIGHTINGS[MANY_LABELS].loss(logits, labels, weights), expected)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ([1.0], r"train.class_weights: 1 weight for 2 classes \(skin, mole\); give one for each, in this order"),
        ({"moel": 2.0}, "train.class_weights: 'moel' is not a class of the data; did you mean mole?"),
    ],
)
def test_weights_that_fit_no_class_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        class_weights(setting, ONE_LABEL, ["skin", "mole"], LABELS)
    with pytest.raises(UserError, match="train.class_weights = 'balanced': not for these labels"):
        class_weights("balanced", LEVELS, ["low", "high"], LABELS)


def test_names_are_found_in_either_form_of_unicode():
    composed, apart = "caf\u00e9", "cafe\u0301"
    for name, other in ((composed, apart), (apart, composed)):
        weights = class_weights({name: 3.0}, ONE_LABEL, ["skin", other], torch.tensor([0, 0, 0, 1]))
        assert (weights[1] / weights[0]).item() == pytest.approx(3)
    with pytest.raises(UserError, match=r"'caf\\xe9' and 'cafe\\u0301' are one class, given twice"):
        class_weights({composed: 3.0, apart: 2.0}, ONE_LABEL, ["skin", apart], LABELS)


def test_the_loss_by_hand():
    """Two images, of probabilities 3/4 and 1/4 for their classes, with weights 1/2 and 4."""
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    loss = LOSS(logits, torch.tensor([0, 1]), torch.tensor([0.5, 4.0]))
    three_quarters, quarter = torch.tensor([0.75, 0.25]).log()
    torch.testing.assert_close(loss, -(0.5 * three_quarters + 4 * quarter) / 2)


def test_it_is_torch_s_sum_over_the_number_of_images():
    rng = torch.Generator().manual_seed(0)
    logits, labels, weights = torch.randn(9, 3, generator=rng), torch.arange(9) % 3, torch.tensor([0.2, 1.0, 3.0])
    torch.testing.assert_close(
        LOSS(logits, labels, weights), F.cross_entropy(logits, labels, weight=weights, reduction="sum") / 9
    )
    soft = torch.rand(9, 3, generator=rng).softmax(1)
    torch.testing.assert_close(LOSS(logits, soft, weights), F.cross_entropy(logits, soft, weight=weights))
    ones = torch.ones(3)
    for smoothing in (0.0, 0.2):
        for targets in (labels, soft):
            plain = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            torch.testing.assert_close(LOSS(logits, targets, ones, smoothing), plain)


def test_smoothing_leaves_an_image_the_weight_of_its_label():
    """The smoothed target of a common class stays a common image's: best is 90 % and 10 %, whatever the weights."""
    weights = torch.tensor([0.5, 10.0])
    logits = torch.tensor([[0.9, 0.1]]).log().requires_grad_()
    LOSS(logits, torch.tensor([0]), weights, label_smoothing=0.2).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 2), atol=1e-6, rtol=0)
    mixed = LOSS(logits, torch.tensor([[0.3, 0.7]]), weights, 0.2)
    alone = [LOSS(logits, torch.tensor([label]), weights, 0.2) for label in (0, 1)]
    torch.testing.assert_close(mixed, 0.3 * alone[0] + 0.7 * alone[1])


@pytest.mark.parametrize("task", [ONE_LABEL, MANY_LABELS])
def test_micro_batches_give_the_gradient_of_the_whole_batch(task):
    """With weights the classes of a micro-batch must not change what it is divided by."""
    network, x = nn.Linear(4, 2), torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    if task is MANY_LABELS:
        labels = torch.stack([labels, 1 - labels], 1).float()
    objective = Objective(network, task, FP32, 0.1 if task is ONE_LABEL else 0.0, torch.tensor([0.5, 10.0]))
    gradients = []
    for parts in (1, 3):
        network.zero_grad()
        for images, targets in zip(x.chunk(parts), labels.chunk(parts)):
            (objective(images, targets)[0] / parts).backward()
        gradients.append(network.weight.grad.clone())
    torch.testing.assert_close(*gradients)
