"""Maps of a frozen ViT, and a linear classifier of their patches that says the class of every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.data.keyed import PLANT, hash64
from engine.data.masks import IGNORED
from models.settings import UserError


class Maps(nn.Module):
    """The maps of some blocks of a ViT, side by side, normalised by its last norm; in a merged one, a patch has the
    features of the token that it became part of.

    Args:
        model: a ViT of timm, wrapped or not, with `img_size` and `in_chans`.
        blocks: numbers of blocks from 1; None: the last. Blocks behind the greatest are not run.

    Attributes:
        depth: how many blocks are run.

    Raises:
        UserError: a model without such maps, or without such a block.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int] | None) -> None:
        super().__init__()
        if not (hasattr(model, "forward_intermediates") and hasattr(model, "blocks")):
            raise UserError(f"model.name: {type(model).__name__} gives no maps of blocks; choose a ViT of timm")
        depth = len(model.blocks)
        blocks = [depth] if blocks is None else list(blocks)
        if max(blocks) > depth:
            raise UserError(f"probe.blocks = {blocks}: the model has {depth} blocks; give numbers from 1 to {depth}")
        self.model, self.indices, self.depth = model, [block - 1 for block in blocks], max(blocks)
        self.img_size, self.in_chans = model.img_size, model.in_chans

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, D x blocks, rows, columns)."""
        maps = self.model.forward_intermediates(
            images, indices=self.indices, norm=True, stop_early=True, intermediates_only=True
        )
        return torch.cat(maps, dim=1)


class Segmenter(nn.Module):
    """Maps -> a linear layer for each patch -> logits of pixels, bilinear.

    Args:
        maps: images -> maps.
        weight: of the linear layer, (classes, D).
        bias: (classes,).
        size: height and width of the logits, pixels.
    """

    def __init__(self, maps: Maps, weight: Tensor, bias: Tensor, size: int) -> None:
        super().__init__()
        self.maps, self.size = maps, size
        self.img_size, self.in_chans = maps.img_size, maps.in_chans
        self.linear = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
        self.linear.weight = nn.Parameter(weight[:, :, None, None])
        self.linear.bias = nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes, size, size)."""
        logits = self.linear(self.maps(images))
        return F.interpolate(logits.float(), size=(self.size, self.size), mode="bilinear")


def patch_shares(masks: Tensor, classes: int, rows: int, columns: int) -> Tensor:
    """Returns the share of each patch's pixels that is of each class.

    Args:
        masks: uint8 (B, H, W). Where H or W is no multiple of the grid, a pixel between two patches counts in both.
        classes: the number of classes.
        rows, columns: of the patches.

    Returns:
        float32 (B, rows, columns, classes); what is missing to a sum of 1 is IGNORED.
    """
    found = []
    for mask in masks.long():  # one by one: a number for each pixel and class
        one_hot = F.one_hot(mask.masked_fill(mask == IGNORED, classes), classes + 1)[..., :classes]
        found.append(F.adaptive_avg_pool2d(one_hot.float().movedim(-1, 0), (rows, columns)).movedim(0, -1))
    return torch.stack(found)


def drawn_patches(images: Tensor, patches: int, most: int) -> Tensor:
    """Returns which patches of each image are used for fitting, in order, int64 (B, min(patches, most)).

    Args:
        images: numbers of images, (B,), which decide the draw.
        patches: of an image.
        most: patches of an image to use at most.
    """
    if patches <= most:
        return torch.arange(patches).expand(len(images), -1)
    keys = hash64(PLANT, images.numpy()[:, None], torch.arange(patches).numpy())
    return torch.from_numpy(keys.argsort(axis=1, kind="stable")[:, :most]).sort(dim=1).values


def fit_linear(features: Tensor, shares: Tensor, l2: float, steps: int) -> tuple[Tensor, Tensor]:
    """Fits a multinomial logistic regression of patches whose classes are shares, to its only optimum, by L-BFGS.

    It minimises the mean cross-entropy over all labelled pixels, plus l2 / 2 times the sum of squared weights of the
    features, which are standardised first: each channel to mean 0 and variance 1 over the patches.

    Args:
        features: float32 (M, D).
        shares: float32 (M, classes), at least 0, with sums of at most 1.
        l2: weight of the penalty.
        steps: iterations at most.

    Returns:
        Weight (classes, D) and bias (classes,) for features that are not standardised.
    """
    features, shares = features[shares.sum(1) > 0], shares[shares.sum(1) > 0]
    mean, std = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    standard, total = (features - mean) / std, shares.sum()
    weight = torch.zeros(shares.shape[1], features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(shares.shape[1], device=features.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        # F.cross_entropy with shares, but divided by their sum, which ignored pixels make less than M
        logits = F.linear(standard, weight, bias)
        value = -(shares * logits.log_softmax(1)).sum() / total + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    weight, bias = weight.detach() / std, bias.detach()
    return weight, bias - weight @ mean
