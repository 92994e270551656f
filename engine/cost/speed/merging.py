"""Times a single merge for each method: matching, merging, unmerging, and the attention that follows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.merging import (
    MERGERS,
    Assignment,
    Merger,
    Tokens,
    apply_assignment,
    effective_schedule,
    initial_tokens,
    size_bias,
    unmerge,
)
from models.merging.layer import attention_received
from models.merging.tokens import merge_context
from models.timing import Times, timed

HEAD_DIM = 64


def merging_times(
    method: str, shape: tuple[int, int, int], r: int, repeats: int, device: torch.device
) -> tuple[int, Times]:
    """Times one merge in fp32, with a class token and attention heads of width 64.

    Every method compares keys, including dtem, which has no learned metric here.

    Args:
        method: one of MERGERS.
        shape: (B, T, C) of the tokens.
        r: number of patches to remove; methods on a grid remove as many as the grid allows.
        repeats: timed calls of each part.
        device: the device to compute on.

    Returns:
        The number of tokens removed, and the milliseconds of `match` (including the attention scores if the method uses
        them), `merge`, `unmerge`, and fused `attention` with the size bias over the remaining tokens.
    """
    merger, (batch, count, channels) = MERGERS[method], shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device)
    q, k, v = (
        torch.randn(batch, channels // HEAD_DIM, count, HEAD_DIM, generator=generator).to(device) for _ in range(3)
    )
    side = round((count - 1) ** 0.5)
    r = effective_schedule([r], count - 1, merger, (side, side))[0]
    tokens = initial_tokens(x, (side, side))
    with torch.no_grad():
        assignment = _match(merger, tokens, q, k, r)
        merged, after = apply_assignment(x, tokens, assignment, prefix=1)
        left, bias = merged.shape[1], size_bias(after)
        calls = {
            "match": lambda: _match(merger, tokens, q, k, r),
            "merge": lambda: apply_assignment(x, tokens, assignment, prefix=1),
            "unmerge": lambda: unmerge(merged, after),
            "attention": lambda: F.scaled_dot_product_attention(
                q[:, :, :left], k[:, :, :left], v[:, :, :left], attn_mask=bias
            ),
        }
        return r, timed(calls, repeats, device)


def _match(merger: Merger, tokens: Tokens, q: Tensor, k: Tensor, r: int) -> Assignment:
    attention = None if merger.attends is None else attention_received(q, k, None, merger.attends)
    return merger.assign(k.mean(1)[:, 1:], r, merge_context(tokens, merger, 1, attention))
