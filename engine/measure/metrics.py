"""The metrics that are measured on a split.

A new metric is a torchmetrics class, a line in METRICS, and its title in the `Task` that measures it (`engine.tasks`),
after the main metric. Its value is a fraction.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision, MultilabelF1Score
from torchmetrics.utilities import dim_zero_cat

from engine.tasks import Task


class LabelsWithPositives(MultilabelAveragePrecision):
    """Mean average precision over the labels that apply to at least one image."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none")

    def compute(self) -> Tensor:
        applies = dim_zero_cat(self.target).amax(dim=0) > 0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples")
            return super().compute()[applies].mean()


def accuracy(num_classes: int, top_k: int) -> Metric:
    """Returns the fraction of images whose class is among the k most probable."""
    return MulticlassAccuracy(num_classes, top_k=min(top_k, num_classes), average="micro")


# Metrics by name. Each is built from the number of classes and updated with logits (B, classes) and labels.
METRICS: dict[str, Callable[[int], Metric]] = {
    "top1": lambda classes: accuracy(classes, top_k=1),
    "top5": lambda classes: accuracy(classes, top_k=5),
    "map": LabelsWithPositives,
    "f1": lambda classes: MultilabelF1Score(classes, average="macro"),  # at probability 1/2
}


def build_metrics(task: Task, num_classes: int) -> MetricCollection:
    """Builds every metric of a task, to be updated with logits (B, classes) and `task.metric_labels(labels)`."""
    return MetricCollection({name: METRICS[name](num_classes) for name in task.titles}, compute_groups=False)
