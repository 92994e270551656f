"""Settings of data that hold for every dataset: the validation split and the augmentation."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, Field

from models.settings import Settings


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


# Kept absolute: a run folder names its data wherever it is read from.
DataPath = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]


class SplitSettings(Settings):
    """What is held out of the training set, and how much of the rest is used; see engine.data.split."""

    val: float = Field(0.1, ge=0, lt=1, description="fraction of each class held out for validation; 0 holds out none")
    part: float = Field(1.0, gt=0, le=1, description="fraction of each class, after the hold-out, that trains")


class AugmentSettings(Settings):
    """What happens to training images: each by draws of its own, but mixup and cutmix by one draw for a batch."""

    crop: int = Field(0, ge=0, description="pixels of black padding on each side before a random crop to the old size")
    flip: bool = Field(False, description="mirror left and right with probability 1/2")
    erase: float = Field(0.0, ge=0, le=1, description="probability that a random rectangle is erased")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup's Beta distribution; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="alpha of cutmix's Beta distribution; 0 is off")
