"""Evaluates the rows of a comparison: a probe of its own for every way of merging, on the same images and masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from engine.cost.images import ImageCounter
from engine.cost.macs import measure_or_say
from engine.data.loading.loader import Normalise, resized
from engine.data.masks import Masked, MaskedImages, load_masked
from engine.machine import pick_autocast, pick_device
from engine.measure.evaluate import eval_mode
from engine.measure.segmentation import mean_iou, pixel_counts
from engine.runs.records.record import Count
from engine.study.segment.maps import Maps
from engine.study.segment.probe import Segmenter, drawn_patches, fit_linear, linear_head, patch_shares
from engine.study.segment.settings import SegmentSettings
from engine.study.segment.stage import fit_stage, fit_together
from engine.study.zeroshot.each import Comparison, evaluate_ways, pretrained
from engine.study.zeroshot.images import normalisation_of
from engine.study.zeroshot.rows import Row, spread_of
from engine.study.zeroshot.ways import Way
from models.settings import UserError

log = logging.getLogger("hybridmerge.segment")


class SegmentRow(Row):
    """The counted pixels and the cost of one row."""

    pixels: list[list[list[Count]]] = Field(
        description="of each test image: pixels that are rightly predicted, predicted and labelled, by class"
    )

    @property
    def counts(self) -> np.ndarray:
        """The counted pixels, int64 (N, 3, classes); see `engine.measure.segmentation`."""
        return np.asarray(self.pixels, np.int64)


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


def evaluate_rows(
    settings: SegmentSettings, folder: Path, report: Callable[[str], None] = print, *, again: bool = False
) -> tuple[Subject, list[SegmentRow]]:
    """Evaluates every row that has not been evaluated yet.

    Args:
        settings: the comparison.
        folder: where rows are kept; it is created.
        report: called with a line for each row.
        again: whether to evaluate rows once more that another version of the merging code evaluated.

    Returns:
        The images and masks, and the rows, the unmerged one first.

    Raises:
        UserError: as `evaluate_ways`, `pretrained` and `load_subject`; or the model gives no maps of the blocks.
    """
    device = pick_device(settings.device)
    model, weights = pretrained(settings, device)
    Maps(model, settings.probe.blocks, settings.probe.grid)
    subject = load_subject(settings)

    def evaluate(model: nn.Module, way: Way) -> dict[str, Any]:
        segmenter = fitted(settings, subject, model, way)
        cost = measure_or_say(segmenter)  # of an empty image, which is not meant where the image decides
        with ImageCounter(segmenter, part=(segmenter.maps.model, segmenter.maps.depth)) as counter:
            counts = count_pixels(settings, subject, segmenter, way)
        costs = counter.costs()
        return {
            "gmacs": cost.gmacs if costs is None else costs.mean,
            "gmacs_spread": spread_of(costs),
            "params": cost.params,
            "pixels": counts.tolist(),
        }

    def says(row: SegmentRow) -> str:
        return f"mIoU {100 * mean_iou(row.counts.sum(0)):.2f} %"

    content = subject.fingerprint, subject.mean, subject.std, settings.probe.deciding()
    comparison = Comparison(settings, SegmentRow, content, evaluate, says)
    return subject, evaluate_ways(comparison, model, weights, folder, report, again=again)


def batches(
    settings: SegmentSettings, subject: Subject, part: Masked, size: int | None
) -> Iterator[tuple[Tensor, slice]]:
    """Yields normalised images (B, C, H, W), on the device, and their positions.

    Args:
        settings: the comparison.
        subject: what it is fitted to and measured on.
        part: its images for one of both.
        size: height and width to which images are resized, pixels; None: unchanged.
    """
    device = pick_device(settings.device)
    normalise = Normalise(subject.mean, subject.std, device)
    for start in range(0, len(part), settings.batch_size):
        place = slice(start, min(start + settings.batch_size, len(part)))
        yield resized(normalise(part.images[place].to(device)), size), place


def fitted(settings: SegmentSettings, subject: Subject, model: nn.Module, way: Way) -> Segmenter:
    """Fits the probe to the features of a frozen model: a linear classifier, or a CNN stage; or trains both together.

    Args:
        settings: the comparison.
        subject: of which the training images are used.
        model: merges as the row says, or is none of those that merge. It stays as it is: what is trained is a copy.
        way: the row's way of merging.

    Raises:
        UserError: see `fit_stage` and `fit_together`.
    """
    probe, size = settings.probe, subject.images.train.masks.shape[-1]
    maps = Maps(model, probe.blocks, probe.grid)
    if probe.cnn is None:
        head = _linear_head(settings, subject, maps, way)
    elif probe.cnn.model_lr is None:
        head = _cnn_stage(settings, subject, maps, way)
    else:
        maps, head = _together(settings, subject, maps, way)
    return Segmenter(maps, head, size)


def _features(
    settings: SegmentSettings, subject: Subject, maps: Maps, way: Way
) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Yields maps of training images, float32 (B, D, rows, columns), their patches' shares, and their positions."""
    train, device = subject.images.train, pick_device(settings.device)
    autocast = pick_autocast(settings.precision, device)
    for images, place in batches(settings, subject, train, way.size):
        with eval_mode(maps), autocast:
            found = maps(images).float()
        shares = patch_shares(train.masks[place], len(subject.images.classes), *found.shape[2:])
        yield found, shares.to(device), place


def _linear_head(settings: SegmentSettings, subject: Subject, maps: Maps, way: Way) -> nn.Module:
    """Fits a linear classifier to as many patches of every training image."""
    probe, features, shares = settings.probe, [], []
    most = max(1, probe.patches // len(subject.images.train))
    for found, of_patches, place in _features(settings, subject, maps, way):
        chosen = drawn_patches(torch.arange(place.start, place.stop), found[0, 0].numel(), most)
        chosen = chosen.unsqueeze(-1).to(found.device)
        features.append(found.flatten(2).mT.take_along_dim(chosen, 1).flatten(0, 1))
        shares.append(of_patches.flatten(1, 2).take_along_dim(chosen, 1).flatten(0, 1))
    return linear_head(*fit_linear(torch.cat(features), torch.cat(shares), probe.l2, probe.steps))


def _cnn_stage(settings: SegmentSettings, subject: Subject, maps: Maps, way: Way) -> nn.Module:
    """Trains a CNN stage on all patches of as many training images as are kept."""
    probe, count, most, features, shares = settings.probe, len(subject.images.train), 0, [], []
    assert probe.cnn is not None
    for found, of_patches, place in _features(settings, subject, maps, way):
        most = max(1, probe.patches // found[0, 0].numel())
        kept = torch.isin(torch.arange(place.start, place.stop), drawn_patches(torch.tensor([0]), count, most))
        features.append(found[kept.to(found.device)])
        shares.append(of_patches[kept.to(found.device)])
    if most < count:
        log.warning(f"probe.patches = {probe.patches}: the stage is trained on {most} of {count} images of this size")
    return fit_stage(torch.cat(features), torch.cat(shares), probe.cnn)


def _together(settings: SegmentSettings, subject: Subject, maps: Maps, way: Way) -> tuple[Maps, nn.Module]:
    """Trains a copy of the model and a CNN stage on all training images."""
    train, device = subject.images.train, pick_device(settings.device)
    normalise, autocast = Normalise(subject.mean, subject.std, device), pick_autocast(settings.precision, device)
    shares, means, squares = [], [], []
    for found, of_patches, _ in _features(settings, subject, maps, way):
        shares.append(of_patches)
        means.append(found.double().mean((2, 3)))
        squares.append(found.double().square().mean((2, 3)))
    mean, square = torch.cat(means).mean(0), torch.cat(squares).mean(0)
    moments = mean.float(), (square - mean.square()).clamp(min=0).sqrt().float()

    def images(chosen: Tensor) -> Tensor:
        return resized(normalise(train.images[chosen.cpu()].to(device)), way.size)

    assert settings.probe.cnn is not None
    return fit_together(maps, images, torch.cat(shares), moments, settings.probe.cnn, autocast)


def count_pixels(settings: SegmentSettings, subject: Subject, segmenter: Segmenter, way: Way) -> Tensor:
    """Counts the pixels of the test images that are predicted right: int64 (N, 3, classes), on the CPU."""
    test, device = subject.images.test, pick_device(settings.device)
    autocast, found = pick_autocast(settings.precision, device), []
    for images, place in batches(settings, subject, test, way.size):
        with eval_mode(segmenter), autocast:
            predicted = segmenter(images).argmax(1)
        found.append(pixel_counts(predicted, test.masks[place].to(device), len(subject.images.classes)).cpu())
    return torch.cat(found)
