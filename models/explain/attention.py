"""Explanations by attention, carried through merging by the same means as the tokens are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .recording import Block, recording


def rollout(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema, 2020): how much of each input patch the class token's attention reaches.

    Each block mixes its tokens by (A + I) / 2, where A is the attention averaged over the heads, size bias included,
    and then merges rows as it merges tokens. Each row of the product sums to one. It does not depend on the target.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        target: not used.

    Returns:
        (B, rows, columns): shares of the input patches; with those of the prefix tokens they sum to one.
    """
    with torch.no_grad(), recording(model) as blocks:
        model(images)
    rows = _identity(blocks)
    for block in blocks:
        rows = block.carry((block.attention.mean(1) @ rows + rows) / 2)
    return _class_row(rows, blocks)


def gradient_rollout(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Relevance by attention and its gradient (Chefer, Gur and Wolf, Transformer Interpretability, ICCV 2021).

    R <- R + A' R in each block, where A' is the mean over heads of the positive part of attention times the gradient of
    the target's logit by attention; merging carries rows of R as it carries tokens.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        target: (B,) classes.

    Returns:
        (B, rows, columns): relevance of the input patches, not negative.
    """
    with torch.enable_grad(), recording(model) as blocks:
        logits = model(images)
        score = logits.gather(1, target.unsqueeze(1)).sum()
        gradients = torch.autograd.grad(score, [block.attention for block in blocks], allow_unused=True)
    rows = _identity(blocks)
    for block, gradient in zip(blocks, gradients, strict=True):
        if gradient is not None:
            weighted = (block.attention.detach() * gradient).clamp(min=0).mean(1)
            rows = rows + weighted @ rows
        rows = block.carry(rows)
    return _class_row(rows, blocks)


def _identity(blocks: list[Block]) -> Tensor:
    """(B, P + N, P + N): each input token is its own."""
    batch, count = blocks[0].before.index.shape
    return torch.eye(count, device=blocks[0].attention.device).expand(batch, -1, -1)


def _class_row(rows: Tensor, blocks: list[Block]) -> Tensor:
    """The first token's row (B, P + N) without the prefix tokens, as a map (B, rows, columns)."""
    return blocks[0].on_grid(rows[:, 0, blocks[0].prefix :])
