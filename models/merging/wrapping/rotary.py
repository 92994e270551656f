"""Blocks of timm's Eva (EVA, EVA-02, DINOv3, Perception Encoder, ViTs with RoPE), with merging inside.

Their queries and keys are rotated by the position of their patch (Su et al.: RoFormer, 2021; Fang et al.: EVA-02,
2023). A merged token has several positions, and is rotated by the mean of its members' rotations. Rotation is linear,
so the score between two merged tokens is the mean of the scores that their members would have with the tokens'
contents, over all pairs, as for the position bias of Beit. Between patches, merged or not, scores depend on
differences of positions alone. Against attention over duplicated tokens this errs 1.7 to 6 times less than rotating
by the mean position (docs/results/rotary).

See equations.py for what all kinds of blocks share.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from timm.models.eva import Eva
from torch import Tensor
from torch.nn import functional as F

from ...attention import attend, split_heads
from ..contract import Removal
from ..layer import Attended, MergeLayer, Scores
from ..tokens import Tokens, mean_over_members

# In older versions of timm, embeddings of three dimensions are those of each image; in newer ones of each head.
OF_HEADS = any(name.startswith(("rope_type", "rope_mixed")) for name in signature(Eva).parameters)


def eva_block(
    block: Any,
    x: Tensor,
    tokens: Tokens,
    r: Removal,
    merge: MergeLayer,
    bias: Tensor | None,
    *,
    own: bool,
    rope: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tokens]:
    """timm's EvaBlock: x + gamma attention(norm x), then x + gamma MLP(norm x), with merging in between."""
    out, attended = _attention(block.attn, block.norm1(x), tokens, bias, own, rope, options)
    scale1, scale2 = (1.0 if gamma is None else gamma for gamma in (block.gamma_1, block.gamma_2))
    x = x + block.drop_path1(scale1 * out)
    x, tokens = merge(x, tokens, r, attended)
    return x + block.drop_path2(scale2 * block.mlp(block.norm2(x))), tokens


def eva_post_norm_block(
    block: Any,
    x: Tensor,
    tokens: Tokens,
    r: Removal,
    merge: MergeLayer,
    bias: Tensor | None,
    *,
    own: bool,
    rope: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tokens]:
    """timm's EvaBlockPostNorm: x + norm(attention(x)), then x + norm(MLP(x)), with merging in between."""
    out, attended = _attention(block.attn, x, tokens, bias, own, rope, options)
    x = x + block.drop_path1(block.norm1(out))
    x, tokens = merge(x, tokens, r, attended)
    return x + block.drop_path2(block.norm2(block.mlp(x))), tokens


def _attention(
    attn: Any,
    source: Tensor,
    tokens: Tokens,
    bias: Tensor | None,
    own: bool,
    rope: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Attended]:
    """Attention of source (B, T, C): its output (B, T, C), and what it is computed from."""

    def projected() -> tuple[Scores, Tensor]:
        q, unrotated, v = _qkv(attn, source)
        if rope is None:
            return Scores(q, _repeated(attn, unrotated), bias, v=v), v
        places = rope.unsqueeze(1) if rope.ndim == 3 and not OF_HEADS else rope
        rotation = mean_rotation(places, tokens, attn.num_prefix_tokens)
        half = getattr(attn, "rotate_half", False)
        q, k = (rotated(part, rotation, attn.num_prefix_tokens, half).to(v.dtype) for part in (q, unrotated))
        return Scores(q, _repeated(attn, k), bias, unrotated, v), v

    if own:
        return attn(source, rope=rope, **options), Attended(source, lambda: projected()[0])
    scores, v = projected()
    dropout = attn.attn_drop.p if attn.training else 0.0
    out = attn.norm(attend(scores.q, scores.k, _repeated(attn, v), bias, dropout))
    if getattr(attn, "gate", None) is not None:
        out = out * attn.gate(source).sigmoid()
    return attn.proj_drop(attn.proj(out)), Attended(source, lambda: scores)


def _qkv(attn: Any, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, T, head_dim), normalised and not rotated."""
    if attn.qkv is None:
        parts = (attn.q_proj(source), attn.k_proj(source), attn.v_proj(source))
        width = attn.proj.in_features // attn.num_heads  # of a head; there may be fewer heads of keys and values
        q, k, v = (part.unflatten(-1, (-1, width)).transpose(1, 2) for part in parts)
    else:
        q, k, v = split_heads(_fused(attn, source), attn.num_heads)
    if getattr(attn, "q_norm", None) is not None:
        q, k = attn.q_norm(q), attn.k_norm(k)
    return q, k, v


def _fused(attn: Any, source: Tensor) -> Tensor:
    """Projects source by one layer. Like timm's own code, this calls the layer only where biases are separate."""
    if getattr(attn, "q_bias", None) is None:
        projected: Tensor = attn.qkv(source)
        return projected
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    if getattr(attn, "qkv_bias_separate", False):
        separate: Tensor = attn.qkv(source) + bias
        return separate
    return F.linear(source, attn.qkv.weight, bias)


def _repeated(attn: Any, x: Tensor) -> Tensor:
    """Keys or values with as many heads as the queries have."""
    groups = attn.num_heads // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def mean_rotation(rope: Tensor, tokens: Tokens, prefix: int) -> Tensor:
    """The mean of the members' sines and cosines for each patch.

    Args:
        rope: sines and cosines of the N input patches, concatenated: (N, 2 x head_dim) for all heads alike,
            (heads, N, 2 x head_dim), or either with images first, (B, 1, N, ...) and (B, heads, N, ...).
        tokens: the state.
        prefix: number of leading tokens, which are not rotated.

    Returns:
        As rope as long as nothing is merged, then (B, 1 or heads, T - prefix, 2 x head_dim) float32.
    """
    if not tokens.merged:
        return rope
    heads = 1 if rope.ndim == 2 else rope.shape[-3]
    each = rope.float().reshape(-1, heads, *rope.shape[-2:]).transpose(1, 2)  # (B or 1, N, heads, width)
    with torch.autocast(rope.device.type, enabled=False):
        mean = mean_over_members(each.flatten(2), tokens, prefix)
    return mean.view(*mean.shape[:2], heads, -1).transpose(1, 2)


def rotated(x: Tensor, rotation: Tensor, prefix: int, half: bool) -> Tensor:
    """Rotates queries or keys.

    Args:
        x: (B, heads, T, head_dim).
        rotation: as `mean_rotation` returns it.
        prefix: number of leading tokens, which are not rotated.
        half: the two numbers that form a pair are half a head apart; otherwise they are neighbours.
    """
    patches = x[:, :, prefix:]
    sine, cosine = rotation.chunk(2, dim=-1)
    if half:
        first, second = patches.chunk(2, dim=-1)
        quarter = torch.cat([-second, first], dim=-1)
    else:
        quarter = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    turned = patches * cosine + quarter * sine
    return torch.cat([x[:, :, :prefix].to(turned.dtype), turned], dim=2)
