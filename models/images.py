"""Checks that images have the channels and the size that a model was built for."""

from __future__ import annotations

from torch import Tensor, nn


def check_images(images: Tensor, model: nn.Module) -> None:
    """Raises ValueError if images (B, C, H, W) do not have the model's `in_chans` and `img_size`."""
    expected = (model.in_chans, model.img_size, model.img_size)
    if images.shape[1:] != expected:
        raise ValueError(f"images are {tuple(images.shape[1:])}; the model takes {expected} (in_chans, img_size)")
