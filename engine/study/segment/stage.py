"""A CNN stage on the maps of a model, frozen or not, which says the class of every patch, and how it is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from engine.study.segment.maps import Maps
from engine.study.segment.settings import StageSettings
from models.cnn import CONV_BLOCKS
from models.settings import UserError

Moments: TypeAlias = tuple[Tensor, Tensor]  # mean and standard deviation of each channel, (D,) and (D,)


class CNNStage(nn.Module):
    """A 1x1 convolution to a width of its own, convolutional blocks, a norm, and a linear layer for each patch.

    Args:
        settings: its blocks and their width.
        channels: of the maps.
        classes: number of classes.
    """

    def __init__(self, settings: StageSettings, channels: int, classes: int) -> None:
        super().__init__()
        s = settings
        self.drop = nn.Dropout2d(s.dropout)
        self.proj = nn.Conv2d(channels, s.dim, 1)
        self.blocks = nn.Sequential(*[CONV_BLOCKS[s.block](s.dim, s.layer_scale) for _ in range(s.depth)])
        self.norm = nn.BatchNorm2d(s.dim)
        self.fc = nn.Conv2d(s.dim, classes, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, D, rows, columns) -> logits (B, classes, rows, columns)."""
        return self.fc(F.relu(self.norm(self.blocks(self.proj(self.drop(maps))))))


def fit_stage(features: Tensor, shares: Tensor, settings: StageSettings) -> CNNStage:
    """Trains a CNN stage by AdamW, with a learning rate that rises for a tenth of the steps and falls by a cosine.

    The loss is that of the linear probe: the mean cross-entropy over labelled pixels, each patch with the shares of its
    classes. Channels are standardised over all patches while it is trained; afterwards this is a part of the weights.

    Args:
        features: float32 (N, D, rows, columns).
        shares: float32 (N, rows, columns, classes), at least 0, with sums of at most 1.
        settings: the stage, and how it is trained.

    Returns:
        The stage in evaluation mode, for features that are not standardised. It is decided by the seed on a CPU.

    Raises:
        UserError: a step has a single patch, of which BatchNorm has no statistics; or the training diverged.
    """
    moments = features.mean((0, 2, 3)), features.std((0, 2, 3), correction=0)
    return _trained(lambda chosen: features[chosen], shares, moments, settings)


def fit_together(
    maps: Maps,
    images: Callable[[Tensor], Tensor],
    shares: Tensor,
    moments: Moments,
    settings: StageSettings,
    autocast: AbstractContextManager,
) -> tuple[Maps, CNNStage]:
    """Trains a CNN stage as `fit_stage`, together with the model whose maps it reads.

    The model stays in evaluation mode, so that BatchNorm keeps its statistics and dropout is off, and its learning rate
    is `settings.model_lr` at most.

    Args:
        maps: the maps of the model, which stays as it is.
        images: numbers (B,) of training images -> these, normalised (B, C, H, W).
        shares: see `fit_stage`.
        moments: of the maps before the training.
        settings: the stage, and how both are trained.
        autocast: for the model; the stage computes in float32.

    Returns:
        The maps of a trained copy of the model, and the stage, both in evaluation mode.

    Raises:
        UserError: see `fit_stage`.
    """
    maps = copy.deepcopy(maps).eval().requires_grad_()

    def features(chosen: Tensor) -> Tensor:
        _forget_biases(maps)
        with autocast:
            return maps(images(chosen)).float()

    stage = _trained(features, shares, moments, settings, maps)
    _forget_biases(maps)
    return maps.requires_grad_(False), stage


def _forget_biases(model: nn.Module) -> None:
    """Empties timm's caches of attention biases (LeViT, TinyViT), which are of earlier weights in evaluation mode."""
    for module in model.modules():
        cache = getattr(module, "attention_bias_cache", None)
        if isinstance(cache, dict):
            cache.clear()


def _trained(
    features: Callable[[Tensor], Tensor],
    shares: Tensor,
    moments: Moments,
    settings: StageSettings,
    maps: Maps | None = None,
) -> CNNStage:
    """Trains a stage on the features of numbers of images, and `maps`, if given, with it."""
    (mean, std), device, (count, *grid, classes) = moments, shares.device, shares.shape
    if min(count, settings.batch_size) * grid[0] * grid[1] == 1:
        raise UserError(
            f"probe.cnn.batch_size = {settings.batch_size}: a step has a single patch, which BatchNorm cannot "
            "normalise; give more of probe.cnn.batch_size, probe.patches or training images"
        )
    std = std.masked_fill(std < 1e-6, torch.inf)  # a channel that is constant teaches nothing: its weights become 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        stage = CNNStage(settings, len(mean), classes).to(device)
        steps = settings.epochs * len(_parts(torch.arange(count), settings.batch_size))
        groups, lrs = [{"params": stage.parameters()}], [settings.lr]
        if maps is not None and settings.model_lr is not None:
            groups, lrs = [*groups, {"params": maps.parameters()}], [*lrs, settings.model_lr]
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
        rise = min(0.9, max(0.1, 1.5 / steps))  # OneCycleLR divides by zero where the rise is a single step
        schedule = OneCycleLR(optimizer, lrs, total_steps=steps, pct_start=rise)
        for _ in range(settings.epochs):
            for chosen in _parts(torch.randperm(count).to(device), settings.batch_size):
                standard = (features(chosen) - mean[:, None, None]) / std[:, None, None]
                wanted = shares[chosen].movedim(-1, 1)
                logits = stage(standard)
                loss = -(wanted * logits.log_softmax(1)).sum() / wanted.sum().clamp(min=1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    tensors = [tensor for part in (stage, maps) if part is not None for tensor in part.state_dict().values()]
    if not all(tensor.isfinite().all() for tensor in tensors):
        names = [f"probe.cnn.lr = {settings.lr}"] + [f"probe.cnn.model_lr = {settings.model_lr}"] * (maps is not None)
        raise UserError(f"{', '.join(names)}: the training of the CNN stage diverged; give a smaller one")
    return _for_raw_features(stage.eval(), mean, std)


def _parts(order: Tensor, size: int) -> list[Tensor]:
    """Returns the images of each step; a last one that would be alone joins the step before."""
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


@torch.no_grad()
def _for_raw_features(stage: CNNStage, mean: Tensor, std: Tensor) -> CNNStage:
    """Puts the standardisation of the features into the first convolution."""
    weight = stage.proj.weight / std[:, None, None]
    stage.proj.weight.copy_(weight)
    stage.proj.bias.sub_(weight.flatten(1) @ mean)
    return stage
