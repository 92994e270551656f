"""The metrics that are measured on a split.

A new metric is a torchmetrics class, a line in METRICS, and its title in the `Task` that measures it (`engine.tasks`),
after the main metric. Its value is a fraction.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassStatScores,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)
from torchmetrics.utilities import dim_zero_cat

from engine.tasks import Task


class ClassMean(ABC):
    """A metric that is the mean of a score of each class, over the classes that occur in the labels."""

    @abstractmethod
    def of_classes(self) -> tuple[Tensor, Tensor]:
        """Returns the score of each class, a fraction (classes,), and the number of its images, int64 (classes,).

        The score of a class without images has no meaning.
        """

    def mean_of_classes(self) -> Tensor:
        """Returns the mean score of the classes that have images."""
        scores, images = self.of_classes()
        return scores[images > 0].mean()


class BalancedAccuracy(MulticlassStatScores, ClassMean):
    """The mean accuracy (recall) of the classes that occur in the labels, float64.

    This is scikit-learn's `balanced_accuracy_score`: a class that is predicted and does not occur does not count.
    torchmetrics' macro average counts it as 0.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def of_classes(self) -> tuple[Tensor, Tensor]:
        right, images = self.tp.cpu(), (self.tp + self.fn).cpu()  # not every accelerator has float64
        return right.double() / images.clamp(min=1), images

    def compute(self) -> Tensor:
        return self.mean_of_classes()


class LabelsWithPositives(MultilabelAveragePrecision, ClassMean):
    """Mean average precision over the labels that apply to at least one image."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none")

    def of_classes(self) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples")
            return super().compute(), dim_zero_cat(self.target).sum(dim=0)

    def compute(self) -> Tensor:
        return self.mean_of_classes()


def accuracy(num_classes: int, top_k: int) -> Metric:
    """Returns the fraction of images whose class is among the k most probable."""
    return MulticlassAccuracy(num_classes, top_k=min(top_k, num_classes), average="micro")


# Metrics by name. Each is built from the number of classes and updated with logits (B, classes) and labels.
METRICS: dict[str, Callable[[int], Metric]] = {
    "top1": lambda classes: accuracy(classes, top_k=1),
    "top5": lambda classes: accuracy(classes, top_k=5),
    "balanced_accuracy": BalancedAccuracy,
    "map": LabelsWithPositives,
    "f1": lambda classes: MultilabelF1Score(classes, average="macro"),  # at probability 1/2
}


def _never() -> bool:
    return False


def build_metrics(task: Task, num_classes: int) -> MetricCollection:
    """Builds every metric of a task, to be updated with logits (B, classes) and `task.metric_labels(labels)`.

    Where several processes train together, each metric gets all images: nothing is added up over the processes.
    """
    built = {name: METRICS[name](num_classes) for name in task.titles}
    for metric in built.values():
        metric.distributed_available_fn = _never
    return MetricCollection(built, compute_groups=False)
