"""What is measured on a split. A metric is a torchmetrics class and a line in METRICS."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy


def _top_k(num_classes: int, k: int) -> Metric:
    return MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro")


METRICS: dict[str, Callable[[int], Metric]] = {"top1": partial(_top_k, k=1), "top5": partial(_top_k, k=5)}


def build_metrics(num_classes: int) -> MetricCollection:
    """Every entry of METRICS, updated with logits (B, classes) and labels (B,)."""
    return MetricCollection({name: build(num_classes) for name, build in METRICS.items()}, compute_groups=False)
