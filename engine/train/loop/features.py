"""Features of a frozen model: what its head sees of every image, computed once where nothing is augmented."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from engine.data import AugmentSettings, Data
from engine.data.loading.loader import eval_batches
from engine.data.loading.order import Order
from engine.files import writing
from engine.launch.sharding import is_sharded
from engine.machine import to_device
from engine.measure.evaluate import eval_mode
from engine.wording import counted
from models.settings.finetune import FinetuneSettings

log = logging.getLogger("hybridmerge")

IN_MEMORY = 2 * 2**30  # bytes; `auto` keeps larger features on disk


class HeadOnFeatures(nn.Module):
    """A model's head as a network of its own: features -> logits (B, classes)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features).flatten(1)


class FeatureLoader:
    """Yields training batches of features, in the order in which `TrainLoader` yields their images."""

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int, order: Order) -> None:
        self.features, self.labels, self.batch_size, self.order = features, labels, batch_size, order

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields features (B, ...) and labels of an epoch, counted from 0, from batch `start` on."""
        draws = self.order(epoch) % len(self.labels)
        for batch in range(start, len(self)):
            index = draws[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self.features[index].float(), self.labels[index]

    def close(self) -> None:
        """Does nothing: unlike `TrainLoader` it has no processes to end."""


def in_batches(features: Tensor, labels: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields all features and labels, once and in order."""
    for start in range(0, len(labels), batch_size):
        yield features[start : start + batch_size].float(), labels[start : start + batch_size]


class Features(NamedTuple):
    """The features of the training and validation images, computed once."""

    loader: FeatureLoader
    val: Tensor | None  # of the validation images; None where there are none


def keep_features(
    model: nn.Module,
    data: Data,
    finetune: FinetuneSettings | None,
    augment: AugmentSettings,
    *,
    batch_size: int,
    order: Order,
    folder: Path,
    autocast: AbstractContextManager,
    taught: bool = False,
) -> Features | None:
    """Runs the frozen part of a model once over training and validation images, if only the head learns.

    Args:
        model: on its device; its one head is named by `head_names`.
        data: the images.
        finetune: what learns.
        augment: the changes to training images.
        batch_size: of training, and of this pass.
        order: of training.
        folder: where features lie that are kept on disk.
        autocast: a reusable context manager for the precision to compute in.
        taught: whether there is a teacher.

    Returns:
        None where features cannot be kept; the log says why.
    """
    if finetune is None or finetune.mode != "head":
        return None
    start, features = time.perf_counter(), []
    reason = "the teacher needs the images" if taught else _refused(model, finetune, augment)
    device = next(model.parameters()).device
    for name, split in (("train", data.train), ("val", data.val)):
        if not reason and len(split):
            batches = eval_batches(split, batch_size, data.mean, data.std, data.resize, device)
            file = folder / f".features.{name}.npy"
            features.append(extract(model, batches, len(split), device, autocast, finetune.cache, file))
            reason = "its head is not the last thing that it does" if features[-1] is None else ""
    if reason:
        log.info("features are not kept: %s", reason)
        return None
    train, *val = features
    images, seconds = sum(map(len, features)), time.perf_counter() - start
    log.info("features of %s kept, %.0f s, %s each", counted(images, "image"), seconds, tuple(train.shape[1:]))
    loader = FeatureLoader(train, data.train.labels, batch_size, order)
    return Features(loader, val[0] if val else None)


def head_on_features(model: nn.Module) -> HeadOnFeatures:
    """Returns the head of a model that has one, to be called with features."""
    return HeadOnFeatures(model.get_submodule(model.head_names[0]))


def _refused(model: nn.Module, settings: FinetuneSettings, augment: AugmentSettings) -> str:
    """Returns why features cannot be kept, for the log; "" where they can be."""
    if settings.cache == "none":
        return "finetune.cache = none"
    if is_sharded(model):
        return "train.parallel = fsdp splits the head with the model"
    if _drops_before_head(model):
        return "dropout stands before the head"
    if on := [key for key, value in augment.model_dump().items() if value]:
        return f"augment.{on[0]} changes the images"
    return f"{type(model).__name__} has {len(model.head_names)} heads" if len(model.head_names) != 1 else ""


def _drops_before_head(model: nn.Module) -> bool:
    """Whether there is dropout between the frozen part and the head while the head learns."""
    heads = tuple(f"{head}." for head in model.head_names)
    kinds = nn.Dropout | nn.Dropout2d | nn.AlphaDropout
    layers = [m for n, m in model.named_modules() if isinstance(m, kinds) and not f"{n}.".startswith(heads)]
    # timm's convolutional models call a function with this probability instead
    return any(m.training and m.p > 0 for m in layers) or bool(getattr(model, "drop_rate", 0))


def extract(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    count: int,
    device: torch.device,
    autocast: AbstractContextManager,
    cache: str | None,
    file: Path,
) -> Tensor | None:
    """Computes the input of the head for each of `count` images, (count, ...), float32 on the CPU.

    Args:
        model: its one head is named by `head_names`.
        cache: "memory", "disk", or "auto" (or None): on disk what takes more than IN_MEMORY.
        file: of features that are kept on disk; it exists as long as the tensor.

    Returns:
        None where the logits depend on more than the output of the head, so that features cannot replace images.
    """
    head = model.get_submodule(model.head_names[0])
    caught: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    features, done = None, 0
    try:
        with eval_mode(model):
            for images, _ in batches:
                with autocast:
                    logits = model(to_device(images, device))
                    head_input = caught.pop().float().cpu()
                    if features is None:
                        again = HeadOnFeatures(head)(head_input.to(device))
                        if logits.shape != again.shape or not torch.allclose(logits, again, atol=1e-3, rtol=1e-3):
                            return None
                        caught.clear()
                        features = _room((count, *head_input.shape[1:]), cache, file)
                features[done : done + len(head_input)] = head_input.numpy()
                done += len(head_input)
    finally:
        hook.remove()
    return torch.from_numpy(features)


def _room(shape: tuple[int, ...], cache: str | None, file: Path) -> np.ndarray:
    """Allocates an array in memory, or on disk."""
    if cache == "memory" or (cache != "disk" and 4 * prod(shape) <= IN_MEMORY):
        return np.empty(shape, np.float32)
    own = file.with_name(f"{file.name}.{os.getpid()}")  # several processes may train together
    with writing(file), open(own, "w+b") as opened:
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk shows now, not as a signal when a page is written
                os.posix_fallocate(opened.fileno(), 0, 4 * prod(shape))
            return np.memmap(opened, np.float32, mode="r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)
        finally:
            own.unlink()  # the pages stay until the last reader is gone, and no file is left behind
