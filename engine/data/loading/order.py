"""The order in which training draws its images: a function of (seed, epoch), which can be entered at any batch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.data.keyed import DRAW, ORDER, hash64, permutation


class Order(Protocol):
    """Returns the draws of an epoch, int64 (N,), for N training images.

    The draw i + N r is image i, drawn for the time r of this epoch, counted from 0. Augmentation is keyed by the draw,
    so that an image that is drawn several times is augmented differently each time.
    """

    def __call__(self, epoch: int) -> Tensor:
        """Returns the draws of an epoch, counted from 0."""


class Shuffled:
    """Every image once in each epoch.

    Args:
        count: the number of images.
        seed: of the run.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __call__(self, epoch: int) -> Tensor:
        return torch.from_numpy(permutation(self.count, ORDER, self.seed, epoch))


class Balanced:
    """As many images in each epoch as there are, an equal number of each class that has any.

    If the number of images is no multiple of the number of classes, classes that are chosen anew in each epoch give one
    more. A class gives all of its images before it gives one of them again, so that images of rare classes are drawn
    several times in an epoch, and of common classes a part of the images, another one in each epoch.

    Args:
        labels: the class of each image, int64 (N,).
        seed: of the run.
    """

    def __init__(self, labels: Tensor, seed: int) -> None:
        self.count, self.seed = len(labels), seed
        classes = labels.numpy()
        self.members = [np.flatnonzero(classes == label) for label in np.unique(classes)]

    def __call__(self, epoch: int) -> Tensor:
        each, rest = divmod(self.count, len(self.members))
        quotas = np.full(len(self.members), each)
        quotas[permutation(len(self.members), DRAW, self.seed, epoch)[:rest]] += 1
        draws = [self._of_class(members, quota, epoch) for members, quota in zip(self.members, quotas.tolist())]
        order = permutation(self.count, ORDER, self.seed, epoch)
        return torch.from_numpy(np.concatenate(draws)[order])

    def _of_class(self, members: np.ndarray, quota: int, epoch: int) -> np.ndarray:
        """Returns `quota` draws of the images of a class: all of them in some order, then all in another, ..."""
        times = -(-quota // len(members))
        draws = members + self.count * np.arange(times)[:, None]  # (times, images)
        order = np.argsort(hash64(DRAW, self.seed, epoch, draws), axis=1, kind="stable")
        return np.take_along_axis(draws, order, axis=1).ravel()[:quota]


def build_order(labels: Tensor, seed: int, sampling: str) -> Order:
    """Returns the order that `train.sampling` names: "uniform" or "balanced".

    Args:
        labels: of the training images, (N, ...); for "balanced" int64 (N,).
        seed: of the run.
        sampling: the value of the setting.
    """
    return Balanced(labels, seed) if sampling == "balanced" else Shuffled(len(labels), seed)
