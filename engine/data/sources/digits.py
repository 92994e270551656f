"""Scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels that are part of the package."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch

from engine.data.arrays import Arrays, RawData
from engine.data.settings import ArraySettings

TEST_IMAGES = 360


class DigitsSettings(ArraySettings):
    """Settings without options of their own: the images come with scikit-learn."""

    published_classes: ClassVar[int] = 10

    name: Literal["digits"] = "digits"


def load_digits(settings: DigitsSettings) -> RawData:
    """Loads 1,437 training and 360 test images, uint8 (N, 1, 8, 8), with the original values 0..16 scaled to 0..255.

    Scikit-learn has no separate test set. This one is stratified and does not depend on the run's seed. Its digits are
    by the same 43 writers as the training images, so it is easier than the original test set.

    Source: the test set of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998).
    """
    from sklearn.datasets import load_digits as sklearn_digits  # slow to import, and not needed by other datasets
    from sklearn.model_selection import train_test_split

    pixels, labels = sklearn_digits(return_X_y=True)
    images = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8))
    digits = Arrays(images, torch.from_numpy(labels.astype(np.int64)))
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=0)
    train, test = (digits.take(torch.from_numpy(np.sort(part))) for part in (train, test))
    return RawData(train, test, classes=[str(i) for i in range(10)])
