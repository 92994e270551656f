"""Settings that all datasets share: how image files are read, split and augmented."""

from __future__ import annotations

import os
from typing import Annotated, ClassVar, Literal, Union

from PIL import ImageColor
from pydantic import AfterValidator, Field, model_validator

from engine.data.augmentation.transforms import TRANSFORMS
from engine.tasks import ONE_LABEL, Task
from models.settings import Settings

Transform = Annotated[Union[tuple(cls for cls, _ in TRANSFORMS.values())], Field(discriminator="name")]  # noqa: UP007


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _colour(name: str) -> str:
    try:
        ImageColor.getrgb(name)
    except ValueError:
        raise ValueError(f"{name!r} is not a colour; write a name such as white, or #rrggbb") from None
    return name


# Stored as an absolute path, so that a run folder finds its data from any working directory.
DataPath = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]


class DataSettings(Settings):
    """Base of the settings of every dataset.

    Attributes:
        published_classes: the dataset's number of classes, if it is known before anything is read.
    """

    published_classes: ClassVar[int | None] = None

    @property
    def task(self) -> Task:
        """What the labels of the dataset mean; the same as `RawData.task`, without reading the data."""
        return ONE_LABEL


class ArraySettings(DataSettings):
    """Settings of datasets in arrays, whose images all have one size. Each dataset adds its `name` and its location."""

    resize: int | None = Field(
        None, gt=0, le=16384, description="height and width to which batches are resized, pixels; null: unchanged"
    )


class ReadSettings(DataSettings):
    """How an image file is turned into pixels."""

    size: int | None = Field(None, gt=0, le=16384, description="height and width, pixels; null: model.img_size")
    fit: Literal["crop", "squash"] = Field(
        "crop", description="crop: the square in the middle; squash: the whole image, which changes its shape"
    )
    crop_pct: float = Field(1.0, gt=0, le=1, description="side of that square, as a share of the shorter side")
    background: Annotated[str, AfterValidator(_colour)] = Field(
        "white", description="colour of transparent areas: a name, or #rrggbb"
    )
    max_pixels: int = Field(
        89_478_485, gt=0, le=10**12, description="larger images are refused by their headers, before decoding"
    )


class FileSettings(ReadSettings):
    """Settings of datasets of image files: how the files are read. Each dataset adds its `name` and its location."""

    on_error: Literal["stop", "skip"] = Field(
        "stop", description="skip: training images that cannot be read are left out and named; never test images"
    )
    cache: Literal["memory", "none"] = Field(
        "memory", description="memory: decoded once, at `size`; none: training images are decoded in every epoch"
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=256,
        description="processes that decode and transform; null: one per processor, at most 8; processes that train "
        "together on a machine share its processors",
    )


class SplitSettings(Settings):
    """Which images are for testing and validation, and how many of the others for training; see engine.data.split."""

    test: float = Field(
        0.2, ge=0, lt=1, description="fraction of each class held out for testing if the dataset has no test set"
    )
    test_seed: int = Field(
        0, ge=0, lt=2**32, description="seed of that hold-out; runs with different seeds share the test set"
    )
    val: float = Field(0.1, ge=0, lt=1, description="fraction of each class held out for validation; 0 holds out none")
    part: float = Field(1.0, gt=0, le=1, description="fraction of the remaining images of each class to train on")
    folds: int | None = Field(
        None, ge=2, le=100, description="number of folds: each fold of the training images is the test set of one run"
    )
    fold: int | None = Field(None, ge=0, le=99, description="which fold to run, from 0; null: all of them")

    @model_validator(mode="after")
    def _fits(self) -> SplitSettings:
        if self.fold is not None and self.fold >= (self.folds or 0):
            folds = f"split.folds = {self.folds}" if self.folds else "there are no folds"
            raise ValueError(f"fold = {self.fold}: {folds}; use 0 to split.folds - 1")
        return self

    @property
    def all_folds(self) -> bool:
        """Whether there are folds and none is chosen, so that all of them run."""
        return self.folds is not None and self.fold is None


class AugmentSettings(Settings):
    """Augmentation of training images, with random numbers for each image, or for each batch in mixup and cutmix."""

    crop: int = Field(
        0, ge=0, le=4096, description="pixels of black padding on each side before a random crop to the old size"
    )
    scale: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="smallest share of the image's area in a random crop that is resized to full size; 0 is off",
    )
    flip: bool = Field(False, description="mirror left and right with probability 1/2")
    vflip: bool = Field(False, description="mirror top and bottom with probability 1/2")
    rotate90: bool = Field(False, description="rotate by a random multiple of 90 degrees; square images only")
    jitter: float = Field(
        0.0, ge=0, lt=1, description="j: brightness and contrast change by factors from 1 - j to 1 + j; 0 is off"
    )
    erase: float = Field(0.0, ge=0, le=1, description="probability that a random rectangle is erased")
    mixup: float = Field(0.0, ge=0, le=1000, description="alpha of mixup's Beta distribution; 0 is off")
    cutmix: float = Field(0.0, ge=0, le=1000, description="alpha of cutmix's Beta distribution; 0 is off")
    transforms: list[Transform] | None = Field(
        None, min_length=1, description="instead of the other keys: torchvision's transforms, by name, in order"
    )

    @model_validator(mode="after")
    def _one_way(self) -> AugmentSettings:
        if self.transforms is None:
            return self
        others = [key for key, value in self.model_dump(exclude={"transforms"}).items() if value]
        if others:
            raise ValueError(
                f"transforms: not beside {', '.join(others)}; put the corresponding transforms into the list"
            )
        names = [entry.name for entry in self.transforms]
        mixing = [name for name in names if name in ("MixUp", "CutMix")]
        if names[len(names) - len(mixing) :] != mixing or len(set(mixing)) < len(mixing):
            raise ValueError(f"transforms: {' and '.join(mixing)} mix whole batches; put each once, at the end")
        return self

    def mixing(self) -> tuple[float, float]:
        """Returns the alphas of mixup and cutmix, from the keys or from the transforms; 0 is off."""
        alphas = {entry.name: entry.alpha for entry in self.transforms or [] if entry.name in ("MixUp", "CutMix")}
        return alphas.get("MixUp", self.mixup), alphas.get("CutMix", self.cutmix)
