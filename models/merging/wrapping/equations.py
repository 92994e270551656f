"""What each kind of block computes: its own equations, with merging between attention and MLP.

The equations are written around the block's own submodules: norms, projections, dropout, layer scale and MLP are called
as they are, so that LoRA layers and hooks in them take part. There are two exceptions, which the libraries' own code
has too: the weights of Beit's qkv (where it has biases) and of the projections in torchvision's attention are used
without calling the modules. A LoRA layer there is refused, and a hook there does not run.

With `own`, which is used as long as nothing is merged, a block calls its own attention module, so that its output is
that of the unwrapped block to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ...attention import attend, split_heads
from ..contract import Removal
from ..layer import Attended, MergeLayer, Scores
from ..tokens import Tokens


def vit_block(
    block: Any,
    x: Tensor,
    tokens: Tokens,
    r: Removal,
    merge: MergeLayer,
    bias: Tensor | None,
    *,
    own: bool,
    **options: Any,
) -> tuple[Tensor, Tokens]:
    """timm's Block: x + LS(attention(norm x)), then x + LS(MLP(norm x)), with merging in between."""
    source = block.norm1(x)
    out, attended = _timm_attention(block.attn, source, bias, own, options)
    x = x + block.drop_path1(block.ls1(out))
    x, tokens = merge(x, tokens, r, attended)
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), tokens


def post_norm_block(
    block: Any,
    x: Tensor,
    tokens: Tokens,
    r: Removal,
    merge: MergeLayer,
    bias: Tensor | None,
    *,
    own: bool,
    **options: Any,
) -> tuple[Tensor, Tokens]:
    """timm's ResPostBlock: x + norm(attention(x)), then x + norm(MLP(x)), with merging in between."""
    out, attended = _timm_attention(block.attn, x, bias, own, options)
    x = x + block.drop_path1(block.norm1(out))
    x, tokens = merge(x, tokens, r, attended)
    return x + block.drop_path2(block.norm2(block.mlp(x))), tokens


def _timm_attention(
    attn: Any, source: Tensor, bias: Tensor | None, own: bool, options: dict[str, Any]
) -> tuple[Tensor, Attended]:
    """timm's Attention of source (B, T, C): its output (B, T, C), and what it is computed from."""
    if own:
        return attn(source, **options), Attended(source, lambda: _scores(_timm_qkv(attn, source), bias))
    q, k, v = _timm_qkv(attn, source)
    out = attend(q, k, v, bias, attn.attn_drop.p if attn.training else 0.0)
    if hasattr(attn, "norm"):  # since timm 1.0.16
        out = attn.norm(out)
    if getattr(attn, "gate", None) is not None:
        out = out * attn.gate(source).sigmoid()
    return attn.proj_drop(attn.proj(out)), Attended(source, lambda: Scores(q, k, bias, v=v))


def _timm_qkv(attn: Any, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = split_heads(attn.qkv(source), attn.num_heads)
    return attn.q_norm(q), attn.k_norm(k), v


def _scores(qkv: tuple[Tensor, ...], bias: Tensor | None) -> Scores:
    q, k, v = qkv
    return Scores(q, k, bias, v=v)


def torchvision_block(
    block: Any, x: Tensor, tokens: Tokens, r: Removal, merge: MergeLayer, bias: Tensor | None, *, own: bool
) -> tuple[Tensor, Tokens]:
    """torchvision's EncoderBlock: x + dropout(attention(norm x)), then x + MLP(norm x), with merging in between."""
    source = block.ln_1(x)
    out, attended = _torchvision_attention(block.self_attention, source, bias, own)
    x = x + block.dropout(out)
    x, tokens = merge(x, tokens, r, attended)
    return x + block.mlp(block.ln_2(x)), tokens


def _torchvision_attention(attn: Any, source: Tensor, bias: Tensor | None, own: bool) -> tuple[Tensor, Attended]:
    """nn.MultiheadAttention of source (B, T, C). Like its own forward, this uses the weights of its projections."""

    def qkv() -> tuple[Tensor, ...]:
        return split_heads(F.linear(source, attn.in_proj_weight, attn.in_proj_bias), attn.num_heads)

    if own:
        out, _ = attn(source, source, source, need_weights=False)
        return out, Attended(source, lambda: _scores(qkv(), bias))
    q, k, v = qkv()
    out = attend(q, k, v, bias, attn.dropout if attn.training else 0.0)
    out = F.linear(out, attn.out_proj.weight, attn.out_proj.bias)
    return out, Attended(source, lambda: Scores(q, k, bias, v=v))


def beit_block(
    block: Any,
    x: Tensor,
    tokens: Tokens,
    r: Removal,
    merge: MergeLayer,
    bias: Tensor | None,
    *,
    own: bool,
    **options: Any,
) -> tuple[Tensor, Tokens]:
    """timm's Beit block: a ViT's, with a position bias on the scores: from its own table, a shared one, or both."""
    source = block.norm1(x)
    out, attended = _beit_attention(block.attn, source, tokens, bias, own, options)
    scale1, scale2 = (1.0, 1.0) if block.gamma_1 is None else (block.gamma_1, block.gamma_2)
    x = x + block.drop_path1(scale1 * out)
    x, tokens = merge(x, tokens, r, attended)
    return x + block.drop_path2(scale2 * block.mlp(block.norm2(x))), tokens


def _beit_attention(
    attn: Any, source: Tensor, tokens: Tokens, bias: Tensor | None, own: bool, options: dict[str, Any]
) -> tuple[Tensor, Attended]:
    """Beit's attention of source (B, T, C); `options` may hold the shared position bias."""

    def qkv() -> tuple[Tensor, ...]:
        return split_heads(_beit_qkv(attn, source), attn.num_heads)

    if own:
        out = attn(source, **options)
        return out, Attended(source, lambda: _scores(qkv(), _beit_bias(attn, tokens, bias, **options)))
    q, k, v = qkv()
    bias = _beit_bias(attn, tokens, bias, **options)
    out = attn.proj(attend(q, k, v, bias, attn.attn_drop.p if attn.training else 0.0))
    return attn.proj_drop(out), Attended(source, lambda: Scores(q, k, bias, v=v))


def _beit_qkv(attn: Any, x: Tensor) -> Tensor:
    """Projects x; keys have no bias. Like Beit's own code, this calls the projection only where biases are separate."""
    bias = None if attn.q_bias is None else torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    if bias is not None and not attn.qkv_bias_separate:
        return F.linear(x, attn.qkv.weight, bias)
    projected: Tensor = attn.qkv(x)
    return projected if bias is None else projected + bias


def _beit_bias(
    attn: Any, tokens: Tokens, bias: Tensor | None, shared_rel_pos_bias: Tensor | None = None
) -> Tensor | None:
    """The sum of all biases on the scores: size, the block's own positions, shared positions."""
    positions = [] if shared_rel_pos_bias is None else [shared_rel_pos_bias]
    if attn.relative_position_bias_table is not None:
        # A table (distances, heads), looked up for each pair of input tokens: (heads, P + N, P + N)
        positions.insert(0, attn.relative_position_bias_table[attn.relative_position_index].permute(2, 0, 1))
    if not positions:
        return bias
    position = between_tokens(sum(positions[1:], positions[0]), tokens)
    return position if bias is None else position + bias


def between_tokens(bias: Tensor, tokens: Tokens) -> Tensor:
    """The relative position bias between merged tokens: the mean of the bias between their members.

        b_IJ = 1 / (|I| |J|) sum_{i in I} sum_{j in J} b_ij

    This is an approximation: softmax over the members' own scores would average exp(b_ij), which no single bias can
    express. A pruned patch counts as a member of the token that it is shown as. The members of a soft state are
    weighted by their shares.

    Args:
        bias: of input tokens, (heads, P + N, P + N).
        tokens: their state.

    Returns:
        (1, heads, P + N, P + N) as long as nothing is merged, then (B, heads, T, T) float32.
    """
    if not tokens.merged:
        return bias.unsqueeze(0)
    bias = bias.float()
    if tokens.soft is not None:
        share = tokens.soft.share / tokens.size.clamp(min=1e-6).unsqueeze(1)  # (B, P + N, T)
        with torch.autocast(bias.device.type, enabled=False):
            return share.mT.unsqueeze(1) @ bias @ share.unsqueeze(1)
    heads, many = bias.shape[:2]
    batch, left = tokens.size.shape
    # Members sorted by token, and where the members of each token start. embedding_bag, whose rows are shared by the
    # batch, is three to four times as fast as one-hot products on a CPU, and twice as fast as scatter.
    members = tokens.index.argsort(dim=1, stable=True)
    ones = torch.ones_like(tokens.index)
    count = ones.new_zeros(batch, left).scatter_add(1, tokens.index, ones)
    image = torch.arange(batch, device=bias.device).unsqueeze(1) * many
    start = (count.cumsum(1) - count + image).flatten()

    columns = rearrange(bias, "h i j -> j (h i)")
    columns = F.embedding_bag(members.flatten(), columns, start, mode="mean")
    rows = rearrange(columns, "(b j) (h i) -> (b i) (h j)", b=batch, h=heads)
    rows = F.embedding_bag((members + image).flatten(), rows, start, mode="mean")
    return rearrange(rows, "(b i) (h j) -> b h i j", b=batch, h=heads)
