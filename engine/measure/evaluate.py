"""A model on a split: loss, accuracy, and what it got wrong with most confidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.machine import to_device
from engine.measure.metrics import build_metrics, metrics_of


@dataclass(frozen=True)
class Mistake:
    """A misclassified image."""

    position: int  # in the split
    label: int
    predicted: int
    confidence: float  # softmax probability of the predicted class


@dataclass(frozen=True)
class Evaluation:
    """What was measured on a split of n images."""

    n: int
    loss: float  # mean cross-entropy, without label smoothing
    metrics: dict[str, float]  # METRICS' names; fractions
    mistakes: list[Mistake] = field(default_factory=list)  # most confident first
    logits: Tensor | None = None  # float32 (n, classes), on the CPU, where they were asked for

    @property
    def score(self) -> float:
        """The metric that validation goes by: METRICS' first."""
        return next(iter(self.metrics.values()))

    def scalars(self, split: str) -> dict[str, float]:
        """Flat names for logs: `val/loss`, `val/top1`, ...."""
        return {f"{split}/loss": self.loss, **{f"{split}/{name}": value for name, value in self.metrics.items()}}


class Mirrored(nn.Module):
    """The mean of a model's probabilities for an image and for its mirror image, as logits.

    Args:
        model: images -> logits.
        many: whether an image can have many labels: a logit is then of one label's probability alone.
    """

    def __init__(self, model: nn.Module, many: bool) -> None:
        super().__init__()
        self.model, self.many = model, many

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits, float32 (B, classes)."""
        return mean_logits([self.model(images).float(), self.model(images.flip(-1)).float()], self.many)


def mean_logits(views: Sequence[Tensor], many: bool) -> Tensor:
    """The mean probabilities behind the logits of several models or views, each (B, classes), as logits."""
    logits = torch.stack(tuple(views))
    if many:
        return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))


@contextmanager
def eval_mode(model: nn.Module):
    """The model in evaluation mode and without gradients; the mode that it was in comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    device: torch.device,
    autocast: AbstractContextManager,
    keep_mistakes: int = 0,
    keep_logits: bool = False,
) -> Evaluation:
    """Runs the model over all batches of a split.

    Args:
        batches: normalised images (B, C, H, W), or features, and labels, in the split's order: (B,), or (B, classes) of
            0 and 1 where an image has many.
        autocast: the precision to run in, a reusable context manager.
        keep_mistakes: how many of the most confident mistakes to return; none of images with many labels.
        keep_logits: return what the model said of every image.

    Raises:
        ValueError: no images.
    """
    metrics, many = None, False
    seen: list[Tensor] = []
    total, n = 0.0, 0
    mistakes: list[Mistake] = []
    with eval_mode(model):
        for images, labels in batches:
            images, labels = to_device(images, device), labels.to(device, non_blocking=True)
            with autocast:
                logits = model(images)
            logits = logits.float()
            if metrics is None:
                many = labels.ndim == 2
                metrics = build_metrics(num_classes, many).to(device)
            total += loss_of(logits, labels).item() * len(labels)
            metrics.update(logits, labels.long())
            if keep_logits:
                seen.append(logits.cpu())
            if not many:
                mistakes = _most_confident(mistakes + _mistakes(logits, labels, n, keep_mistakes), keep_mistakes)
            n += len(labels)
    if n == 0:
        raise ValueError("the split has no images")
    computed = metrics.compute()  # sorted by name
    values = {name: computed[name].item() for name in metrics_of(many)}
    return Evaluation(n, total / n, values, mistakes, torch.cat(seen) if seen else None)


def measured(logits: Tensor, labels: Tensor) -> Evaluation:
    """Loss and metrics of what was said of a split's images: float32 (n, classes), and their labels as in batches."""
    many = labels.ndim == 2
    metrics = build_metrics(logits.shape[1], many)
    metrics.update(logits, labels.long())
    computed = metrics.compute()  # sorted by name
    values = {name: computed[name].item() for name in metrics_of(many)}
    return Evaluation(len(labels), loss_of(logits, labels).item(), values, logits=logits)


def loss_of(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean loss: binary cross-entropy where an image has many labels, cross-entropy where it has one.

    Args:
        logits: float32 (B, classes).
        targets: int64 (B,) for one label; float32 (B, classes) of 0 and 1 for many.
        smoothing: share of the target spread over all classes; for one label alone.
    """
    if targets.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, targets)
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def _mistakes(logits: Tensor, labels: Tensor, offset: int, keep: int) -> list[Mistake]:
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    score = torch.where(predicted == labels, -1.0, confidence)
    top = score.topk(min(keep, len(score))).indices
    wrong = top[score[top] >= 0].tolist()
    return [Mistake(offset + i, int(labels[i]), int(predicted[i]), float(confidence[i])) for i in wrong]


def _most_confident(mistakes: list[Mistake], keep: int) -> list[Mistake]:
    return sorted(mistakes, key=lambda m: (-m.confidence, m.position))[:keep]
