"""What is measured on a split. A metric is a torchmetrics class, a line in METRICS or MULTILABEL, and a title."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision, MultilabelF1Score
from torchmetrics.utilities import dim_zero_cat


def _top_k(num_classes: int, k: int) -> Metric:
    return MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")


class LabelsWithPositives(MultilabelAveragePrecision):
    """Mean average precision over the labels that apply to any image at all."""

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels, average="none")

    def compute(self) -> Tensor:
        applies = dim_zero_cat(self.target).amax(dim=0) > 0
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples")
            return super().compute()[applies].mean()


Table = dict[str, Callable[[int], Metric]]
# The first of each is what validation goes by.
METRICS: Table = {"top1": partial(_top_k, k=1), "top5": partial(_top_k, k=5)}
MULTILABEL: Table = {
    "map": LabelsWithPositives,
    "f1": lambda labels: MultilabelF1Score(labels, average="macro"),  # at probability 1/2
}

TITLES = {"top1": "top-1", "top5": "top-5", "map": "mAP", "f1": "F1"}  # as people write them


def metrics_of(multi_label: bool) -> Table:
    """The metrics of one label for each image, or of many."""
    return MULTILABEL if multi_label else METRICS


def main_metric(multi_label: bool) -> str:
    """The name of the metric that validation goes by."""
    return next(iter(metrics_of(multi_label)))


def build_metrics(num_classes: int, multi_label: bool = False) -> MetricCollection:
    """Every entry of the table, updated with logits (B, classes) and labels: (B,), or (B, classes) of 0 and 1."""
    table = metrics_of(multi_label)
    return MetricCollection({name: build(num_classes) for name, build in table.items()}, compute_groups=False)


def best_thresholds(probabilities: Tensor, labels: Tensor) -> list[float]:
    """For each label the probability from which on saying yes gives the highest F1, (N, K) and (N, K) -> K.

    Thresholds lie half-way between neighbouring probabilities; 1/2 for a label without a positive image.
    """
    found = []
    for scores, truth in zip(probabilities.double().T, labels.T, strict=True):
        ranked, order = scores.sort(descending=True, stable=True)
        hits = truth[order].cumsum(0)
        f1 = 2 * hits / (torch.arange(1, len(hits) + 1) + truth.sum())
        f1[:-1][ranked[:-1] == ranked[1:]] = -1  # no threshold parts equal probabilities
        best = int(f1.argmax())
        below = ranked[best + 1] if best + 1 < len(ranked) else torch.zeros(())
        found.append(float((ranked[best] + below) / 2) if truth.sum() else 0.5)
    return found
