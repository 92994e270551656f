"""Explanations by attention, carried through merging by the same means as the tokens are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .recording import Block, recording, score


def rollout(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema, 2020): how much of each input patch attention brings to the classifier.

    Each block mixes its tokens by (A + I) / 2, where A is the attention averaged over the heads, size bias included,
    and then merges rows as it merges tokens. Rows of the product sum to one. It does not depend on the target.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        target: (B,) classes; they only tell which tokens the classifier reads.

    Returns:
        (B, rows, columns): shares of the input patches; with those of the prefix tokens they sum to one.
    """
    with torch.enable_grad(), recording(model) as blocks:
        read = _read(blocks, score(model(images), target))
    rows = _identity(blocks)
    for block in blocks:
        rows = block.carry((block.attention.detach().mean(1) @ rows + rows) / 2)
    return _of_patches(read @ rows, blocks)


def gradient_rollout(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Relevance by attention and its gradient (Chefer, Gur and Wolf, Generic Attention-model Explainability, 2021).

    R <- R + A' R in each block, where A' is the mean over heads of the positive part of attention times the gradient of
    the target's logit by attention; merging carries rows of R as it carries tokens. A merged token's row has the
    gradients of all its members, and their mean is taken: so equal patches have the same relevance, merged or not.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        target: (B,) classes.

    Returns:
        (B, rows, columns): relevance of the input patches, not negative.
    """
    with torch.enable_grad(), recording(model) as blocks:
        total = score(model(images), target)
        read = _read(blocks, total)
        gradients = torch.autograd.grad(total, [block.attention for block in blocks], allow_unused=True)
    rows = _identity(blocks)
    for block, gradient in zip(blocks, gradients, strict=True):
        if gradient is not None:
            weighted = (block.attention.detach() * gradient).clamp(min=0).mean(1)
            size = block.before.size.clamp(min=1)  # padding, whose rows nothing reads, has size 0
            rows = rows + weighted / size.unsqueeze(2) @ rows
        rows = block.carry(rows)
    return _of_patches(read @ rows, blocks)


def _read(blocks: list[Block], total: Tensor) -> Tensor:
    """What the classifier reads of the last block's S tokens: rows of weights (B, 1, S) that sum to one.

    The prefix tokens that it reads, such as the class token; if it reads none of them, the mean of the patches, each as
    often as it has members. What it reads has a gradient.
    """
    last = blocks[-1]
    (gradient,) = torch.autograd.grad(total, last.merged, retain_graph=True)
    read = (gradient != 0).any(2)
    patches = torch.arange(read.shape[1], device=read.device) >= last.prefix
    if read[:, : last.prefix].any():
        read = read & ~patches
    weight = read * last.after.size
    return (weight / weight.sum(1, keepdim=True)).unsqueeze(1)


def _identity(blocks: list[Block]) -> Tensor:
    """(B, P + N, P + N): each input token is its own."""
    batch, count = blocks[0].before.index.shape
    return torch.eye(count, device=blocks[0].attention.device).expand(batch, -1, -1)


def _of_patches(row: Tensor, blocks: list[Block]) -> Tensor:
    """A row (B, 1, P + N) without the prefix tokens, as a map (B, rows, columns)."""
    return blocks[0].on_grid(row[:, 0, blocks[0].prefix :])
