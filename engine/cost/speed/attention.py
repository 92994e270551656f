"""Times attention with a size bias, for each precision and each way to add the bias."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.cost.speed.timing import Times, timed

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # queries, keys, values, bias -> weighted values


def masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention with the size bias as an additive mask."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))


def unbiased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention without a size bias, for comparison."""
    return F.scaled_dot_product_attention(q, k, v)


def mask_free(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention with the bias as one more column, q' = [q, 1 / scale], k' = [k, bias], padded to a multiple of 8."""
    scale, width = q.shape[-1] ** -0.5, q.shape[-1]
    column = bias.squeeze(-2).unsqueeze(-1).expand(-1, q.shape[1], -1, -1)
    padding = 8 - (width + 1) % 8
    q = F.pad(torch.cat([q, torch.full_like(column, 1 / scale).to(q.dtype)], -1), (0, padding))
    k = F.pad(torch.cat([k, column.to(k.dtype)], -1), (0, padding))
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, 1 + padding)), scale=scale)[..., :width]


def in_fp32(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention with the size bias as a mask, computed in fp32 whatever the inputs' precision."""
    return masked(q.float(), k.float(), v.float(), bias).to(q.dtype)


# name -> precision of queries, keys and values (B, heads, T, head_dim), and the form of attention
ATTENTIONS: dict[str, tuple[torch.dtype, Attention]] = {
    "fp32": (torch.float32, masked),
    "fp32, no bias": (torch.float32, unbiased),
    "fp32, mask-free": (torch.float32, mask_free),
    "bf16": (torch.bfloat16, masked),
    "bf16, no bias": (torch.bfloat16, unbiased),
    "bf16, mask-free": (torch.bfloat16, mask_free),
    "fp32 inside bf16 (ours)": (torch.bfloat16, in_fp32),
}


def attention_times(shape: tuple[int, int, int, int], repeats: int, device: torch.device, *, train: bool) -> Times:
    """Times each of ATTENTIONS.

    Args:
        shape: (B, heads, T, head_dim) of queries, keys and values.
        repeats: timed calls of each.
        device: the device to compute on.
        train: time the forward and the backward pass; otherwise the forward pass alone.

    Returns:
        Milliseconds of each call.
    """
    generator = torch.Generator().manual_seed(0)
    bias = torch.rand(shape[0], 1, 1, shape[2], generator=generator).to(device)
    calls = {}
    for name, (dtype, attend) in ATTENTIONS.items():
        inputs = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_(train) for _ in range(3)]

        def call(attend: Attention = attend, inputs: list[Tensor] = inputs) -> None:
            out = attend(*inputs, bias)
            if train:
                out.backward(torch.ones_like(out))

        calls[name] = call
    return timed(calls, repeats, device)
