"""Times a single merge for each method: matching, merging, unmerging, and the attention that follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.merging import MERGERS, Merger, Tokens, effective_schedule, initial_tokens, size_bias, unmerge
from models.merging.contract import Answer
from models.merging.layer import attention_received
from models.merging.tokens import apply_answer, merge_context
from models.timing import Times, timed

HEAD_DIM = 64


def merging_times(
    method: str, shape: tuple[int, int, int], r: int, repeats: int, device: torch.device
) -> tuple[int, Times]:
    """Times one merge in fp32, with a class token and attention heads of width 64.

    Every method compares keys, including dtem, which has no learned metric here, but those that compare tokens by what
    they have learned; it is drawn at random here.

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
    pooling = None if merger.pooling is None or r == 0 else merger.pooling(channels, count - 1 - r).to(device)
    metric = k.mean(1) if pooling is None else x
    with torch.no_grad():
        answer = _match(merger, tokens, metric, q, k, r, pooling)
        merged, after = apply_answer(x, tokens, answer, prefix=1)
        left, bias = merged.shape[1], size_bias(after)
        calls = {
            "match": lambda: _match(merger, tokens, metric, q, k, r, pooling),
            "merge": lambda: apply_answer(x, tokens, answer, prefix=1),
            "unmerge": lambda: unmerge(merged, after),
            "attention": lambda: F.scaled_dot_product_attention(
                q[:, :, :left], k[:, :, :left], v[:, :, :left], attn_mask=bias
            ),
        }
        return r, timed(calls, repeats, device)


def _match(
    merger: Merger, tokens: Tokens, metric: Tensor, q: Tensor, k: Tensor, r: int, pooling: nn.Module | None
) -> Answer:
    attention = None if merger.attends is None else attention_received(q, k, None, merger.attends)
    return merger.assign(metric[:, 1:], r, merge_context(tokens, merger, 1, attention, pooling=pooling))
