"""What the labels of an image mean: one class per image, or any number of labels at once.

A `Task` is everything that depends on this: the loss, the probabilities behind logits, which predictions are right, the
names of the metrics, and which reports make sense. The data know their task (`RawData.task`, `Data.task`), and so do
the settings of a dataset (`settings.data.task`, for programs that have a run folder but not its images). All other code
asks the task and does not look at the labels. A new kind of label is a subclass of `Task`, a line in `TASKS`, and a
dataset whose `task` it is; metrics that it introduces are lines in `engine.measure.metrics.METRICS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from models.settings import UserError


class Task(ABC):
    """The meaning of labels. Subclasses have no state, so that one instance of each is enough.

    Attributes:
        titles: the metrics that are measured, by their names in `METRICS`, with their titles in tables. All are
            fractions, of which higher is better. The first is the main metric: validation selects the best weights by
            it, unless `train.select` names another. No other task has a metric of the same name, because results name
            their main metric and not their task.
        score_title: the main metric in a sentence, such as "accuracy".
        one_class: whether every image has exactly one class. If so there is a confusion matrix, `predictions.csv`
            holds the predicted class of each test image (see `chosen`), and probabilities are those of the classes.
        counts_images: whether the main metric is the fraction of images that are right. If so it has a binomial
            confidence interval, and images of several folds can be pooled.
        has_thresholds: whether each label is predicted from a probability threshold of its own, fitted on validation
            images.
        weighs_classes: whether its loss can weigh classes, see `engine.train.loop.weighting`.
        soft_targets: whether a target can be a distribution over classes, as mixup, cutmix and label smoothing make it.
        class_metric: the metric that is the mean of a score of each class (a `ClassMean`); empty: there is none.
        class_noun: what the report calls a class.
        class_score_title: what its score is, where that is not the share of its images that are right.
        training_score_title: the title of `train/accuracy` in the log if it is not the main metric; otherwise empty.
        missing_words: a part of the warning about classes that have no image in one part of the data; the name of the
            part replaces the braces.
    """

    titles: ClassVar[Mapping[str, str]]
    score_title: ClassVar[str]
    one_class: ClassVar[bool] = False
    counts_images: ClassVar[bool] = False
    has_thresholds: ClassVar[bool] = False
    weighs_classes: ClassVar[bool] = False
    soft_targets: ClassVar[bool] = False
    class_metric: ClassVar[str] = ""
    class_noun: ClassVar[str] = "class"
    class_score_title: ClassVar[str] = ""
    training_score_title: ClassVar[str] = ""
    missing_words: ClassVar[tuple[str, str]] = ("label has no {} image", "labels have no {} image")

    @property
    def main_metric(self) -> str:
        """The name of the first metric in reports; validation selects the best weights by it, unless told another."""
        return next(iter(self.titles))

    @abstractmethod
    def accepts(self, labels: Tensor) -> bool:
        """Returns whether a tensor of labels has the type, the shape and the values of this task."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Returns the mean loss of a batch.

        Args:
            logits: float32 (B, classes).
            targets: labels (B, ...), or soft targets, float32 (B, classes), where the task has them.
            label_smoothing: the share of the target that is spread over all classes; only for tasks with soft targets.
        """

    def distillation(self, logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Returns how far logits (B, classes) are from a teacher's, as a scalar.

        A task that knows probabilities gives their divergence (Hinton, Vinyals and Dean, 2015): both logits are divided
        by the temperature, and the loss is multiplied by its square, so that gradients keep their size. Here it is the
        mean squared difference of logits (Ba and Caruana, 2014), for which a temperature would change nothing.
        """
        return F.mse_loss(logits, teacher)

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Converts logits (B, classes) to probabilities of the same shape."""

    @abstractmethod
    def mean_logits(self, views: Sequence[Tensor]) -> Tensor:
        """Averages the probabilities of several models or views, given and returned as logits, each (B, classes)."""

    @abstractmethod
    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the fraction of each image's prediction that is correct, (B,), for the training log.

        Args:
            logits: (B, classes).
            targets: labels, or soft targets; of soft targets the class with the largest share counts as correct.
        """

    def chosen(self, logits: Tensor) -> Tensor:
        """Returns the predicted class of each image, int64 (N,), from logits (N, classes), for tasks with one class."""
        return self.probabilities(logits).argmax(dim=1)

    @abstractmethod
    def predicted(self, probabilities: Tensor, thresholds: Tensor | None) -> list[list[int]]:
        """Returns the classes predicted for each image, from probabilities (N, classes).

        Args:
            probabilities: returned by `probabilities`.
            thresholds: the threshold of each label, (classes,), for tasks with thresholds; otherwise unused.
        """

    @abstractmethod
    def counts(self, labels: Tensor, num_classes: int) -> Tensor:
        """Counts the images of each class, int64 (classes,)."""

    def strata(self, labels: Tensor) -> Tensor:
        """Returns the group of each image, int64 (N,), for stratified splits. By default there is a single group."""
        return torch.zeros(len(labels), dtype=torch.int64)

    def missing(self, labels: Tensor, part: Tensor, num_classes: int) -> Tensor:
        """Returns the classes, int64 (M,), that have no image among the labels of a part of the data."""
        return (self.counts(part, num_classes) == 0).nonzero()[:, 0]

    def renumbered(self, labels: Tensor, order: Tensor) -> Tensor:
        """Renumbers the classes of labels: the new class i is the old class order[i]."""
        return labels[:, order]

    def metric_labels(self, labels: Tensor) -> Tensor:
        """Converts labels to the form that the task's metrics expect."""
        return labels

    def thresholds(self, probabilities: Tensor, labels: Tensor) -> list[float]:
        """Returns the threshold of each label, fitted to probabilities (N, classes), for tasks that have thresholds."""
        raise NotImplementedError(f"{type(self).__name__} has no thresholds")

    def check_measurable(self, classes: Sequence[str], labels: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Raises a UserError if the metrics cannot be computed.

        Args:
            classes: the names of the classes.
            labels: the labels of "val" and "test", possibly empty.
        """


class OneLabel(Task):
    """Every image has exactly one of the classes: labels are int64 (B,)."""

    titles = {"top1": "top-1", "top5": "top-5", "balanced_accuracy": "balanced accuracy"}
    score_title = "accuracy"
    class_metric = "balanced_accuracy"
    one_class = counts_images = weighs_classes = soft_targets = True
    missing_words = ("class cannot spare a {} image", "classes cannot spare a {} image")

    def accepts(self, labels: Tensor) -> bool:
        return labels.dtype == torch.int64 and labels.ndim == 1

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    def distillation(self, logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        own, theirs = ((values / temperature).log_softmax(1) for values in (logits, teacher))
        return temperature**2 * F.kl_div(own, theirs, reduction="batchmean", log_target=True)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)

    def mean_logits(self, views: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(views)).log_softmax(-1).logsumexp(0) - math.log(len(views))

    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        return (self.chosen(logits) == labels).float()

    def chosen(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    def predicted(self, probabilities: Tensor, thresholds: Tensor | None) -> list[list[int]]:
        return [[label] for label in probabilities.argmax(dim=1).tolist()]

    def counts(self, labels: Tensor, num_classes: int) -> Tensor:
        return labels.bincount(minlength=num_classes)

    def strata(self, labels: Tensor) -> Tensor:
        return labels

    def missing(self, labels: Tensor, part: Tensor, num_classes: int) -> Tensor:
        """Returns the classes, int64 (M,), that have images, but none in the part."""
        return ((self.counts(labels, num_classes) > 0) & (self.counts(part, num_classes) == 0)).nonzero()[:, 0]

    def renumbered(self, labels: Tensor, order: Tensor) -> Tensor:
        return torch.argsort(order)[labels]


class ManyLabels(Task):
    """Any number of labels apply to an image: labels are float32 (B, classes) of 0 and 1."""

    titles = {"map": "mAP", "f1": "F1"}
    score_title = "mAP"
    has_thresholds = weighs_classes = True
    class_metric = "map"
    class_noun = "label"
    class_score_title = "average precision"
    training_score_title = "share of labels that are right"
    missing_words = ("label has no positive {} image", "labels have no positive {} image")

    def accepts(self, labels: Tensor) -> bool:
        return labels.dtype == torch.float32 and labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all())

    def loss(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        assert label_smoothing == 0, "binary targets are not smoothed"
        return F.binary_cross_entropy_with_logits(logits, targets)

    def distillation(self, logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        theirs = teacher / temperature
        targets, least = theirs.sigmoid(), F.binary_cross_entropy_with_logits(theirs, theirs.sigmoid())
        return temperature**2 * (F.binary_cross_entropy_with_logits(logits / temperature, targets) - least)

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def mean_logits(self, views: Sequence[Tensor]) -> Tensor:
        logits = torch.stack(tuple(views))
        return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)

    def correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        return ((logits > 0) == (targets > 0)).float().mean(dim=1)

    def predicted(self, probabilities: Tensor, thresholds: Tensor | None) -> list[list[int]]:
        assert thresholds is not None, "each label has a threshold"
        return [row.nonzero()[:, 0].tolist() for row in probabilities >= thresholds]

    def counts(self, labels: Tensor, num_classes: int) -> Tensor:
        return labels.sum(dim=0).long()

    def metric_labels(self, labels: Tensor) -> Tensor:
        return labels.long()

    def thresholds(self, probabilities: Tensor, labels: Tensor) -> list[float]:
        return best_thresholds(probabilities, labels)

    def check_measurable(self, classes: Sequence[str], labels: Mapping[str, Tensor]) -> None:
        if len(classes) < 2:
            raise UserError("data.labels = 'many': there is one label; use labels: one, with a name for yes and for no")
        for split, rows in labels.items():
            if len(rows) and not rows.any():
                raise UserError(
                    f"split.{split}: no label applies to any of these {len(rows)} images, so that there is no average "
                    "precision; hold out more"
                )


ONE_LABEL, MANY_LABELS = OneLabel(), ManyLabels()

TASKS: dict[str, Task] = {"one": ONE_LABEL, "many": MANY_LABELS}  # by the value of `data.labels`


def task_with_metric(metric: str) -> Task:
    """Returns the task that uses a metric, for code that knows only the metric's name."""
    return next(task for task in TASKS.values() if metric in task.titles)


def title_of(metric: str) -> str:
    """Returns the title of a metric in tables, such as "top-1"."""
    return task_with_metric(metric).titles[metric]


def best_thresholds(probabilities: Tensor, labels: Tensor) -> list[float]:
    """Returns for each label the probability threshold with the highest F1 score.

    Thresholds lie half-way between neighbouring probabilities; a label without a positive image has 1/2.

    Args:
        probabilities: (N, classes).
        labels: (N, classes) of 0 and 1.
    """
    thresholds = []
    for scores, truth in zip(probabilities.double().T, labels.T, strict=True):
        ranked, order = scores.sort(descending=True, stable=True)
        hits = truth[order].cumsum(0)
        f1 = 2 * hits / (torch.arange(1, len(hits) + 1) + truth.sum())
        f1[:-1][ranked[:-1] == ranked[1:]] = -1  # no threshold separates equal probabilities
        best = int(f1.argmax())
        below = ranked[best + 1] if best + 1 < len(ranked) else torch.zeros(())
        thresholds.append(float((ranked[best] + below) / 2) if truth.sum() else 0.5)
    return thresholds
