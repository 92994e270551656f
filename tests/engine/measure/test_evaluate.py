"""Evaluation against counting by hand."""

import pytest
import torch
from torch.nn import functional as F

from engine.measure.evaluate import Mirrored, evaluate, evaluate_logits
from engine.tasks import MANY_LABELS, ONE_LABEL

CPU, FP32 = torch.device("cpu"), torch.autocast("cpu", enabled=False)


def batches(images, labels, size):
    return zip(images.split(size), labels.split(size), strict=True)


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_equals_counting(classes, size):
    logits = torch.randn(23, classes, 1, 1, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(classes, (23,), generator=torch.Generator().manual_seed(1))
    found = evaluate(torch.nn.Flatten(), batches(logits, labels, size), ONE_LABEL, classes, CPU, FP32, keep_mistakes=4)

    flat = logits.flatten(1)
    ranked = flat.argsort(1, descending=True)
    assert found.n == 23
    assert found.metrics["top1"] == pytest.approx((ranked[:, 0] == labels).double().mean().item())
    assert found.metrics["top5"] == pytest.approx((ranked[:, :5] == labels[:, None]).any(1).double().mean().item())
    assert found.loss == pytest.approx(F.cross_entropy(flat, labels).item(), rel=1e-5)

    confidence = flat.softmax(1).amax(1)
    wrong = [i for i in range(23) if ranked[i, 0] != labels[i]]
    expected = sorted(wrong, key=lambda i: -confidence[i])[:4]
    assert [m.position for m in found.mistakes] == expected
    for m in found.mistakes:
        assert (m.label, m.predicted) == (int(labels[m.position]), int(ranked[m.position, 0]))
        assert m.confidence == pytest.approx(float(confidence[m.position]))


def test_mode_is_restored_and_batchnorm_is_not_moved():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten())
    model.train()
    evaluate(model, batches(torch.randn(8, 3, 1, 1), torch.zeros(8, dtype=torch.long), 4), ONE_LABEL, 3, CPU, FP32)
    assert model.training and model[0].num_batches_tracked == 0


def test_an_empty_split_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        evaluate(torch.nn.Flatten(), [], ONE_LABEL, 3, CPU, FP32)


@pytest.mark.parametrize("task", [ONE_LABEL, MANY_LABELS])
def test_mean_probabilities_as_logits(task):
    views = [4 * torch.randn(6, 5, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    found = task.mean_logits(views)
    of = {ONE_LABEL: lambda x: x.softmax(1), MANY_LABELS: torch.sigmoid}[task]
    torch.testing.assert_close(of(found), torch.stack([of(view) for view in views]).mean(0))
    torch.testing.assert_close(of(task.mean_logits([views[0]] * 2)), of(views[0]))
    assert torch.isfinite(task.mean_logits([200 * view for view in views])).all()


@pytest.mark.parametrize("task", [ONE_LABEL, MANY_LABELS])
def test_an_image_and_its_mirror_image(task):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    x = torch.randn(4, 3, 2, 2)
    found = Mirrored(model, task)(x)
    torch.testing.assert_close(found, task.mean_logits([model(x), model(x[..., [1, 0]])]))
    torch.testing.assert_close(found, Mirrored(model, task)(x.flip(-1)))
    assert not torch.allclose(model(x), model(x.flip(-1)))


def test_what_was_said_is_measured_like_a_model():
    logits = torch.randn(23, 7, 1, 1, generator=torch.Generator().manual_seed(0))
    binary = (torch.arange(23 * 7).reshape(23, 7) % 3 == 0).float()
    for task, labels in ((ONE_LABEL, torch.arange(23) % 7), (MANY_LABELS, binary)):
        model = evaluate(torch.nn.Flatten(), batches(logits, labels, 5), task, 7, CPU, FP32)
        said = evaluate_logits(logits.flatten(1), labels, task)
        assert said.metrics == pytest.approx(model.metrics) and said.n == 23
        assert said.loss == pytest.approx(model.loss, rel=1e-5)
