"""Evaluates a model on a split: the loss, the metrics, and the most confident mistakes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from engine.data import Data
from engine.data.loading.loader import eval_batches
from engine.launch.group import ALONE, Group
from engine.machine import to_device
from engine.measure.metrics import build_metrics
from engine.runs.records.class_scores import ClassScores
from engine.tasks import Task


@dataclass(frozen=True)
class Mistake:
    """A misclassified image."""

    position: int  # in the split
    label: int
    predicted: int
    confidence: float  # probability of the predicted class


@dataclass(frozen=True)
class Evaluation:
    """The measurements of a model on a split of n images."""

    n: int
    loss: float | None  # the task's mean loss, without label smoothing; None without images
    metrics: dict[str, float]  # fractions, by the names of the task's metrics, the main metric first
    mistakes: list[Mistake] = field(default_factory=list)  # most confident first
    logits: Tensor | None = None  # float32 (n, classes), on the CPU; None unless requested
    classes: ClassScores | None = None  # the score of each class, where the task has such scores

    @property
    def score(self) -> float:
        """The main metric."""
        return next(iter(self.metrics.values()))

    def value(self, metric: str | None) -> float:
        """Returns a metric by its name; None: the main metric."""
        return self.score if metric is None else self.metrics[metric]

    def scalars(self, split: str) -> dict[str, float]:
        """Returns the loss and the metrics under their names in the log: `val/loss`, `val/top1`, ..."""
        return {f"{split}/loss": self.loss, **{f"{split}/{name}": value for name, value in self.metrics.items()}}


class Mirrored(nn.Module):
    """Averages a model's probabilities over an image and its mirror image, and returns them as logits.

    Args:
        model: images -> logits.
        task: what the labels mean, which determines how logits become probabilities.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits, float32 (B, classes)."""
        return self.task.mean_logits([self.model(images).float(), self.model(images.flip(-1)).float()])


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts the model into evaluation mode, without gradients, and restores its mode at the end."""
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
    task: Task,
    num_classes: int,
    device: torch.device,
    autocast: AbstractContextManager,
    *,
    keep_mistakes: int = 0,
    keep_logits: bool = False,
    group: Group = ALONE,
) -> Evaluation:
    """Runs a model over all batches of a split and measures its predictions.

    Args:
        model: images -> logits, on `device`.
        batches: normalised images (B, C, H, W), or features, and labels (B, ...), in the order of the split.
        task: what the labels mean.
        num_classes: the number of logits of each image.
        device: the model's device.
        autocast: a reusable context manager for the precision to compute in.
        keep_mistakes: the number of most confident mistakes to return; only for tasks with one class per image.
        keep_logits: whether to return the logits of every image.
        group: the processes that share the batches; all of them get the measurements on all images.

    Raises:
        ValueError: there are no images.
    """

    def compute(images: Tensor) -> Tensor:
        with autocast:
            logits: Tensor = model(to_device(images, device))
        return logits.float()

    metrics = build_metrics(task, num_classes).to(device)
    kept: list[Tensor] = []
    mistakes: list[Mistake] = []
    total, n = 0.0, 0
    with eval_mode(model):
        for logits, labels in group.spread(compute, batches, num_classes):
            labels = labels.to(device, non_blocking=True)
            total += task.loss(logits, labels).item() * len(labels)
            metrics.update(logits, task.metric_labels(labels))
            if keep_logits:
                kept.append(logits.cpu())
            if task.one_class and keep_mistakes:
                mistakes = _most_confident(mistakes + _mistakes(task, logits, labels, n, keep_mistakes), keep_mistakes)
            n += len(labels)
    if n == 0:
        raise ValueError("the split has no images")
    logits = torch.cat(kept) if kept else None
    return Evaluation(n, total / n, _values(metrics, task), mistakes, logits, _class_scores(metrics, task))


def evaluate_split(
    model: nn.Module,
    data: Data,
    split: str,
    batch_size: int,
    autocast: AbstractContextManager,
    *,
    first: int | None = None,
    keep_logits: bool = False,
    keep_mistakes: int = 0,
    group: Group = ALONE,
) -> Evaluation:
    """Runs a model over a split of its data and measures its predictions.

    Args:
        model: normalised images -> logits.
        data: the splits, classes and statistics.
        split: "val" or "test".
        batch_size: images in a batch.
        autocast: a reusable context manager for the precision to compute in.
        first: the number of batches to evaluate; None: all.
        keep_logits: whether to return the logits of every image.
        keep_mistakes: the number of most confident mistakes to return; only for tasks with one class per image.
        group: as of `evaluate`.
    """
    device = next(model.parameters()).device
    of_split = eval_batches(getattr(data, split), batch_size, data.mean, data.std, data.resize, device)
    kept = {"keep_logits": keep_logits, "keep_mistakes": keep_mistakes, "group": group}
    return evaluate(model, islice(of_split, first), data.task, len(data.classes), device, autocast, **kept)


def evaluate_logits(logits: Tensor, labels: Tensor, task: Task) -> Evaluation:
    """Measures logits that have already been computed.

    Args:
        logits: float32 (n, classes).
        labels: (n, ...).
        task: what the labels mean.
    """
    metrics = build_metrics(task, logits.shape[1])
    metrics.update(logits, task.metric_labels(labels))
    loss, scores = task.loss(logits, labels).item(), _class_scores(metrics, task)
    return Evaluation(len(labels), loss, _values(metrics, task), logits=logits, classes=scores)


def _values(metrics: nn.Module, task: Task) -> dict[str, float]:
    """Returns the metrics as numbers in the task's order; torchmetrics sorts them by name."""
    values = metrics.compute()
    return {name: values[name].item() for name in task.titles}


def _class_scores(metrics: nn.Module, task: Task) -> ClassScores | None:
    """Returns the score of each class, from the metric that is their mean."""
    if not task.class_metric:
        return None
    scores, images = metrics[task.class_metric].of_classes()
    known = [score if n else None for score, n in zip(scores.tolist(), images.tolist(), strict=True)]
    return ClassScores(known, images.tolist())


def _mistakes(task: Task, logits: Tensor, labels: Tensor, offset: int, most: int) -> list[Mistake]:
    """Returns the most confident mistakes of a batch whose first image has the position `offset` in the split."""
    predicted = task.chosen(logits)
    confidence = task.probabilities(logits).gather(1, predicted[:, None])[:, 0]
    score = torch.where(predicted == labels, -1.0, confidence)
    top = score.topk(min(most, len(score))).indices
    wrong = top[score[top] >= 0].tolist()
    return [Mistake(offset + i, int(labels[i]), int(predicted[i]), float(confidence[i])) for i in wrong]


def _most_confident(mistakes: list[Mistake], most: int) -> list[Mistake]:
    return sorted(mistakes, key=lambda m: (-m.confidence, m.position))[:most]
