"""A model on a split: loss, accuracy, and what it got wrong with most confidence."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.metrics import build_metrics
from engine.runtime import to_device


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

    def scalars(self, split: str) -> dict[str, float]:
        """Flat names for logs: `val/loss`, `val/top1`, ...."""
        return {f"{split}/loss": self.loss, **{f"{split}/{name}": value for name, value in self.metrics.items()}}


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
) -> Evaluation:
    """Runs the model over all batches of a split.

    Args:
        batches: normalised images (B, C, H, W) and labels (B,), in the split's order.
        autocast: the precision to run in, a reusable context manager.
        keep_mistakes: how many of the most confident mistakes to return.

    Raises:
        ValueError: no images.
    """
    metrics = build_metrics(num_classes).to(device)
    total, n = 0.0, 0
    mistakes: list[Mistake] = []
    with eval_mode(model):
        for images, labels in batches:
            images, labels = to_device(images, device), labels.to(device, non_blocking=True)
            with autocast:
                logits = model(images)
            logits = logits.float()
            total += F.cross_entropy(logits, labels, reduction="sum").item()
            metrics.update(logits, labels)
            mistakes = _most_confident(mistakes + _mistakes(logits, labels, n, keep_mistakes), keep_mistakes)
            n += len(labels)
    if n == 0:
        raise ValueError("the split has no images")
    return Evaluation(n, total / n, {name: value.item() for name, value in metrics.compute().items()}, mistakes)


def _mistakes(logits: Tensor, labels: Tensor, offset: int, keep: int) -> list[Mistake]:
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    score = torch.where(predicted == labels, -1.0, confidence)
    top = score.topk(min(keep, len(score))).indices
    wrong = top[score[top] >= 0].tolist()
    return [Mistake(offset + i, int(labels[i]), int(predicted[i]), float(confidence[i])) for i in wrong]


def _most_confident(mistakes: list[Mistake], keep: int) -> list[Mistake]:
    return sorted(mistakes, key=lambda m: (-m.confidence, m.position))[:keep]
