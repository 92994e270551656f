"""The images and masks that every row of a comparison is fitted to and measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from engine.data.loading.loader import Normalise, resized
from engine.data.masks import Masked, MaskedImages, load_masked
from engine.machine import pick_device
from engine.study.segment.settings import SegmentSettings
from engine.study.zeroshot.images import normalisation_of
from models.settings import UserError


@dataclass(frozen=True)
class Subject:
    """What every row of a comparison is fitted to and measured on.

    Attributes:
        images: with masks.
        fingerprint: of them.
        mean, std: what the model normalises images by.
    """

    images: MaskedImages
    fingerprint: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_subject(settings: SegmentSettings) -> Subject:
    """Loads the images and masks, at the size that the model takes.

    Raises:
        UserError: they are missing or malformed, or have another size than the model takes.
    """
    data, size = settings.data, settings.model.img_size
    if data.size not in (None, size):
        raise UserError(f"data.size = {data.size}: the model takes {size} x {size}; set data.size={size}, or omit it")
    images = load_masked(data.model_copy(update={"size": size}))
    if settings.model.in_chans != 3:
        raise UserError(f"model.in_chans = {settings.model.in_chans}: images have 3 channels; set it to 3")
    return Subject(images, images.fingerprint(), *normalisation_of(settings))


def preparing(settings: SegmentSettings, subject: Subject, size: int | None) -> Callable[[Tensor], Tensor]:
    """Returns a function: images, uint8 (B, C, H, W) -> normalised and resized, float32, on the device.

    Args:
        settings: the comparison.
        subject: what it is fitted to and measured on.
        size: height and width to which images are resized, pixels; None: unchanged.
    """
    device = pick_device(settings.device)
    normalise = Normalise(subject.mean, subject.std, device)
    return lambda images: resized(normalise(images.to(device)), size)


def batches(
    settings: SegmentSettings, subject: Subject, part: Masked, size: int | None
) -> Iterator[tuple[Tensor, slice]]:
    """Yields prepared images (B, C, H, W), and their positions; see `preparing`.

    Args:
        settings: the comparison.
        subject: what it is fitted to and measured on.
        part: its images for one of both.
        size: height and width of the images, pixels; None: unchanged.
    """
    prepare = preparing(settings, subject, size)
    for start in range(0, len(part), settings.batch_size):
        place = slice(start, min(start + settings.batch_size, len(part)))
        yield prepare(part.images[place]), place
