"""The images of a comparison, and which of the model's classes each of them is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.data import Split, load_raw
from engine.data.images import relative_paths
from engine.data.loading.loader import eval_batches
from engine.study.zeroshot.fingerprints import of_values
from engine.study.zeroshot.labels import class_numbers
from engine.study.zeroshot.settings import ZeroshotSettings
from engine.study.zeroshot.ways import WaysSettings
from models.settings import UserError
from models.settings.zoo import normalisation


@dataclass(frozen=True)
class LabelledImages:
    """The images of a comparison.

    Attributes:
        splits: the images, in the order of the predictions.
        targets: the model's class of each image, int64 (N,).
        names: the images' paths relative to the folder that holds all of them, or their numbers.
        mean, std: what the model normalises images by.
        fingerprint: of pixels, targets and `resize`.
        resize: height and width to which batches are resized, pixels; None: unchanged.
    """

    splits: list[Split]
    targets: Tensor
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    resize: int | None = None


def labelled_images(settings: ZeroshotSettings) -> LabelledImages:
    """Loads all images of the dataset, whatever splits it has, and finds their classes in the model.

    Raises:
        UserError: the dataset is missing or malformed, its images have another size than the model takes, or a class is
            not found.
    """
    data = settings.data
    if not data.task.one_class:
        raise UserError("data: its images have many labels each; give images with one class each")
    if getattr(data, "size", 0) is None:
        data = data.model_copy(update={"size": settings.model.img_size})
    raw = load_raw(data)
    splits = [split for split in (raw.train, raw.val, raw.test) if split is not None and len(split)]
    resize = getattr(data, "resize", None)
    _check_shape(splits[0].shape, resize, "size" if hasattr(data, "size") else "resize", settings)
    numbers = torch.tensor(class_numbers(raw.classes, settings.model.classes, settings.classes))
    targets = numbers[torch.cat([split.labels for split in splits])]
    paths = [path for split in splits for path in split.paths or ()]
    names = relative_paths(paths) if paths else [str(i) for i in range(len(targets))]
    statistics = normalisation_of(settings)
    pixels = [digest.hex() for split in splits for digest in split.digests()]
    content = (pixels, targets.tolist()) if resize is None else (pixels, targets.tolist(), resize)
    return LabelledImages(splits, targets, tuple(names), *statistics, of_values(*content), resize)


def normalisation_of(settings: WaysSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation that the pretrained model normalises images by.

    Raises:
        UserError: they are not known.
    """
    statistics = normalisation(settings.model)
    if statistics is None:
        raise UserError(
            f"model.weights = {settings.model.weights!r}: no mean and std are known for these weights; give timm:NAME, "
            "torchvision:NAME or a file"
        )
    return statistics


def _check_shape(shape: tuple[int, int, int], resize: int | None, key: str, settings: ZeroshotSettings) -> None:
    """Checks that images of this shape (C, H, W) are what the model takes; `key` of the data decides their size."""
    (channels, *sides), size = shape, settings.model.img_size
    if channels != settings.model.in_chans:
        raise UserError(
            f"data: images have {channels} channels, the model takes {settings.model.in_chans}; give others"
        )
    found = sides if resize is None else [resize, resize]
    if found != [size, size]:
        images = f"images are {found[0]} x {found[1]}, the model takes {size} x {size}"
        raise UserError(f"data.{key}: {images}; set data.{key}={size}")


def batches(
    images: LabelledImages, batch_size: int, device: torch.device | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields normalised images (B, C, H, W), on a device, and their labels in the dataset, in the order of the
    predictions."""
    for split in images.splits:
        yield from eval_batches(split, batch_size, images.mean, images.std, images.resize, device)
