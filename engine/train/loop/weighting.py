"""Weights of classes in the training loss."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.data.names import differing, placing
from engine.tasks import MANY_LABELS, ONE_LABEL, Task
from engine.wording import counted, few
from models.settings import UserError, nearest

MOST = 100.0  # largest weight of the images that a label applies to, where weights balance it


class Weighting(ABC):
    """How classes are weighted in the loss of a task. It is a function of its arguments: instances have no state."""

    @abstractmethod
    def weights(self, counts: Tensor, images: int, given: Tensor | None = None) -> Tensor:
        """Returns the weights of classes, float32 (classes,).

        Args:
            counts: the number of training images of each class, int64 (classes,).
            images: the number of all training images.
            given: weights that the user gives, float64 (classes,); None: those that balance the classes.
        """

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Returns the mean loss of a batch.

        It is divided by the number of images, not by their weights, so that the mean over micro-batches of equal size
        is the loss of all their images. `torch.nn.CrossEntropyLoss` divides by the weights of the batch's labels, where
        targets are labels, and by the number of images where they are probabilities.

        Args:
            logits: float32 (B, classes).
            targets: labels (B, ...), or soft targets, float32 (B, classes), not smoothed.
            weights: returned by `weights`.
            label_smoothing: the share of the target that is spread over all classes.
        """


class OneLabelWeighting(Weighting):
    """Each image counts by the weight of its class, and a mixed image by those of its classes in their shares."""

    def weights(self, counts: Tensor, images: int, given: Tensor | None = None) -> Tensor:
        """Returns N / (K n_c) for the K classes that have images, which is scikit-learn's class_weight="balanced" (King
        and Zeng, 2001), or the given weights. Both are scaled so that their mean over the training images is 1, and
        the learning rate keeps its meaning."""
        weights = 1 / counts.clamp(min=1).double() if given is None else given
        return (weights * images / (weights * counts).sum()).float()

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The weight of an image is that of its label before smoothing. torch's cross_entropy weighs the smoothed
        target, which pushes images of common classes towards the rare ones."""
        classes = logits.shape[1]
        shares = weights * (targets if targets.ndim == 2 else F.one_hot(targets, classes))
        smoothed = (1 - label_smoothing) * shares + label_smoothing / classes * shares.sum(dim=1, keepdim=True)
        return -(smoothed * logits.log_softmax(dim=1)).sum(dim=1).mean()


class ManyLabelsWeighting(Weighting):
    """The images that a label applies to count by its weight, all others by 1."""

    def weights(self, counts: Tensor, images: int, given: Tensor | None = None) -> Tensor:
        """Returns for each label the images without it over those with it, from 1 / MOST to MOST, or the given
        weights."""
        ratio = (images - counts) / counts.clamp(min=1).double()
        return (ratio.clamp(1 / MOST, MOST) if given is None else given).float()

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
        assert label_smoothing == 0, "binary targets are not smoothed"
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights)


WEIGHTINGS: dict[Task, Weighting] = {ONE_LABEL: OneLabelWeighting(), MANY_LABELS: ManyLabelsWeighting()}


def class_weights(
    setting: str | dict[str, float] | list[float], task: Task, classes: list[str], labels: Tensor
) -> Tensor | None:
    """Returns the weights of classes that `train.class_weights` asks for, float32 (classes,); None: all count alike.

    Args:
        setting: the value of the setting.
        task: what the labels mean.
        classes: names, in the order of the labels.
        labels: of the training images, (N, ...).

    Raises:
        UserError: a name that is no class, a list of another length, or labels whose loss cannot weigh classes.
    """
    if setting == "none":
        return None
    if task not in WEIGHTINGS:
        raise UserError(f"train.class_weights = {setting!r}: not for these labels; set it to none")
    given = None
    if isinstance(setting, list):
        if len(setting) != len(classes):
            raise UserError(
                f"train.class_weights: {counted(len(setting), 'weight')} for {counted(len(classes), 'class')} "
                f"({few(classes)}); give one for each, in this order, or {{name: weight}}"
            )
        given = torch.tensor(setting, dtype=torch.float64)
    elif isinstance(setting, dict):
        given = _by_name(setting, classes)
    return WEIGHTINGS[task].weights(task.counts(labels, len(classes)), len(labels), given)


def _by_name(weights: dict[str, float], classes: list[str]) -> Tensor:
    """Returns the weights of classes by their names, in either form of Unicode, float64 (classes,); 1 for the others.

    Raises:
        UserError: a name that is no class, or two names of one class.
    """
    given: dict[int, tuple[str, float]] = {}  # by the position of the class
    place_of = placing(classes)
    for name, weight in weights.items():
        place = place_of(name)
        if place is None:
            raise UserError(f"train.class_weights: {name!r} is not a class of the data; {nearest(name, classes)}")
        if place in given:
            names = differing([given[place][0], name])
            raise UserError(f"train.class_weights: {names} are one class, given twice; leave one out")
        given[place] = name, weight
    return torch.tensor([given[i][1] if i in given else 1.0 for i in range(len(classes))], dtype=torch.float64)
