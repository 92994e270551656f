"""A segmenter of a model's maps, and its linear head, which says the class of every patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.data.keyed import PLANT, hash64
from engine.data.masks import IGNORED
from engine.study.segment.maps import Maps


class Segmenter(nn.Module):
    """Maps -> logits of patches -> logits of pixels, bilinear.

    Args:
        maps: images -> maps (B, D, rows, columns).
        head: maps -> logits (B, classes, rows, columns).
        size: height and width of the logits, pixels.
    """

    def __init__(self, maps: Maps, head: nn.Module, size: int) -> None:
        super().__init__()
        self.maps, self.head, self.size = maps, head, size
        self.img_size, self.in_chans = maps.img_size, maps.in_chans

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes, size, size)."""
        logits = self.head(self.maps(images))
        return F.interpolate(logits.float(), size=(self.size, self.size), mode="bilinear")


def linear_head(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Returns a linear layer for each patch.

    Args:
        weight: (classes, D).
        bias: (classes,).
    """
    head = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    head.weight, head.bias = nn.Parameter(weight[:, :, None, None]), nn.Parameter(bias)
    return head


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
