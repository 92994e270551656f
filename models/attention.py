"""Attention of all models: softmax(q k^T / sqrt(head_dim) + bias) v, computed the way that is fastest where it runs."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .modes import without_autocast

# How many attention scores are computed at a time in bf16 on a CPU: they stay in its cache (docs/performance.md).
BLOCK = 1_000_000
# Exporting needs a torch version that has this function.
_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


@cache
def cpu_has_bf16() -> bool:
    """Whether this machine's processor multiplies in bf16. Versions of torch that cannot say count as without."""
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention of q, k, v (B, heads, T, head_dim), in v's dtype.

    It is PyTorch's fused kernel, except in bf16 on a CPU. There the kernel is slower than plain products where the
    processor multiplies in bf16, and its backward pass takes up to four times as long as in fp32 where it does not, so
    that it trains in fp32 (docs/performance.md).

    Args:
        q, k, v: queries, keys and values, (B, heads, T, head_dim).
        bias: added to the scores, broadcastable to (B, heads, T, T); None: none.
        dropout: share of the attention weights that are dropped.

    Returns:
        (B, T, heads x head_dim).
    """
    device, result = q.device.type, v.dtype
    with without_autocast(device):
        plain = device == "cpu" and result == torch.bfloat16 and not torch.compiler.is_compiling()
        if plain and cpu_has_bf16() and _is_free():
            out = by_blocks(_cast(q, result), _cast(k, result), v, bias, dropout)
        else:
            dtype = torch.float32 if q.requires_grad and device == "cpu" else result
            mask = None if bias is None else _cast(bias, dtype)
            q, k, v = (_cast(x, dtype) for x in (q, k, v))
            out = _cast(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout), result)
    if _exporting():  # the operator that a converter substitutes for the fused kernel returns strides without this view
        out = out.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
    return out.transpose(1, 2).flatten(2)


def _is_free() -> bool:
    """Whether it does not matter which operators compute attention: they are not recorded, and no kernel was chosen."""
    chosen = not (torch.backends.cuda.math_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled())  # for a CPU, too
    watched = torch._C._len_torch_function_stack() > 0  # such as models.explain, which looks for the fused kernel
    return not (chosen or watched or torch.jit.is_tracing())


def by_blocks(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention by plain products, for as many images at a time as have BLOCK scores.

    Arguments as for `attend`, in one dtype. Returns (B, heads, T, head_dim).
    """
    images = max(1, BLOCK // (q.shape[1] * q.shape[2] * k.shape[2]))
    scale, parts = q.shape[-1] ** -0.5, []
    if bias is not None:
        bias = _cast(bias, q.dtype).view(*(1,) * (4 - bias.ndim), *bias.shape)
    for first in range(0, max(q.shape[0], 1), images):
        part = slice(first, first + images)
        scores = (q[part] * scale) @ k[part].mT
        if bias is not None:
            scores = scores + (bias if bias.shape[0] == 1 else bias[part])
        # In bf16 its sums are in fp32, and what it keeps for the backward pass is what the product keeps.
        parts.append(F.dropout(scores.softmax(dim=-1), dropout) @ v[part])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """(B, T, 3 x heads x head_dim) -> q, k, v, each (B, heads, T, head_dim)."""
    batch, count, width = qkv.shape
    parts = qkv.view(batch, count, 3, num_heads, width // (3 * num_heads))
    return parts.permute(2, 0, 3, 1, 4).unbind(0)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), without the call of an operator where x has this dtype."""
    return x if x.dtype == dtype else x.to(dtype)
