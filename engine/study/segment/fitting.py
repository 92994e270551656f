"""Fits what reads the maps of a row: a linear probe, a CNN stage, or a CNN stage together with the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from engine.machine import pick_autocast, pick_device
from engine.measure.evaluate import eval_mode
from engine.study.segment.maps import Maps
from engine.study.segment.probe import Segmenter, drawn_patches, fit_linear, linear_head, patch_shares
from engine.study.segment.settings import SegmentSettings
from engine.study.segment.stage import fit_stage, fit_together
from engine.study.segment.subject import Subject, batches, preparing
from engine.study.zeroshot.ways import Way

log = logging.getLogger("hybridmerge.segment")


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
    prepare, autocast = preparing(settings, subject, way.size), pick_autocast(settings.precision, device)
    shares, means, squares = [], [], []
    for found, of_patches, _ in _features(settings, subject, maps, way):
        shares.append(of_patches)
        exact = found.cpu().double()  # MPS has no float64
        means.append(exact.mean((2, 3)))
        squares.append(exact.square().mean((2, 3)))
    mean, square = torch.cat(means).mean(0), torch.cat(squares).mean(0)
    std = (square - mean.square()).clamp(min=0).sqrt()
    moments = mean.float().to(device), std.float().to(device)

    def images(chosen: Tensor) -> Tensor:
        return prepare(train.images[chosen.cpu()])

    assert settings.probe.cnn is not None
    return fit_together(maps, images, torch.cat(shares), moments, settings.probe.cnn, autocast)
